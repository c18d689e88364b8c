"""The convolutional GAN of the paper's MNIST experiments."""

import torch
from torch import nn

from ..game.gan import GAN
from ..tools.streams import torch_stream

KERNELS = 4, 3, 3, 2, 3, 3, 2
STRIDES = 1, 2, 1, 1, 2, 1, 1


def dcgan(seed: int = 0, width: int = 32, latent_dim: int = 32, dtype: torch.dtype = torch.float32,
          loss: str = "non_saturating", weight_decay: float = 1e-3) -> GAN:
    """The published MNIST networks: seven convolutions against seven transposed ones, on images (1, 28, 28) in [-1, 1].

    Nothing is padded: an image shrinks 28→25→12→10→9→4→2→1 in the discriminator, whose last width numbers a linear layer
    turns into a logit. The generator is its mirror image, 1→2→4→9→10→12→25→28, with a 1 × 1 convolution and tanh at the end.
    After every (transposed) convolution comes a sigmoid, then layer normalisation over channels and space with one gain
    and one offset per channel. Kernels start Glorot uniform, biases at zero.

    Args:
        seed: initialises the parameters without touching torch's global generator.
        width: channels of every hidden layer; 32 in the published cleansing experiment, 8 in the accuracy experiment.
        latent_dim: length of a latent vector.
        dtype: of parameters, latents and images.
        loss, weight_decay: see `gan_influence.GAN`.

    Source: Terashita et al., ICLR 2021, appendix on experimental settings (MNIST).

    >>> gan = dcgan(width=4)
    >>> gan.generate(gan.state(), gan.sample_latents(2, seed=0)).shape
    torch.Size([2, 1, 28, 28])
    >>> sum(p.numel() for module in (dcgan().generator, dcgan().discriminator) for p in module.parameters())
    108418
    """
    def block(convolution: type[nn.Module], channels: int, kernel: int, stride: int) -> list[nn.Module]:
        # GroupNorm of one group is that layer normalisation. Nothing keeps its variance away from zero, as published.
        return [nn.utils.skip_init(convolution, channels, width, kernel, stride, dtype=dtype), nn.Sigmoid(), nn.GroupNorm(1, width, eps=1e-12, dtype=dtype)]

    generator, discriminator = [nn.Unflatten(1, (latent_dim, 1, 1))], []
    for i, (kernel, stride) in enumerate(zip(KERNELS, STRIDES)):
        discriminator += block(nn.Conv2d, width if i else 1, kernel, stride)
    for i, (kernel, stride) in enumerate(zip(KERNELS[::-1], STRIDES[::-1])):
        generator += block(nn.ConvTranspose2d, width if i else latent_dim, kernel, stride)
    generator += [nn.utils.skip_init(nn.Conv2d, width, 1, 1, dtype=dtype), nn.Tanh()]
    discriminator += [nn.Flatten(), nn.utils.skip_init(nn.Linear, width, 1, dtype=dtype)]
    players = nn.Sequential(*generator), nn.Sequential(*discriminator)

    random = torch_stream("dcgan", seed)
    for module in players:
        glorot(module, random)
    return GAN(*players, latent_dim, loss, weight_decay)


def glorot(module: nn.Module, random: torch.Generator) -> None:
    """Initialise every convolution and linear layer of a module: kernels Glorot uniform, biases zero."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight, generator=random)
            nn.init.zeros_(layer.bias)
