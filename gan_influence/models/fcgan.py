"""The small fully connected GAN of the paper's 2D-normal experiments."""

import torch
from torch import nn

from ..game.gan import GAN
from ..tools.streams import torch_stream


def fcgan(seed: int = 0, latent_dim: int = 10, activation: type[nn.Module] = nn.ReLU, dtype: torch.dtype = torch.float64,
          loss: str = "non_saturating", weight_decay: float = 0.0) -> GAN:
    """The published 2D-normal networks: generator 10→32→32→2, discriminator 2→64→64→1, no bias, Glorot uniform.

    Args:
        seed: initialises the parameters without touching torch's global generator.
        latent_dim: length of a latent vector.
        activation: between layers; ReLU as published, `nn.Tanh` where smoothness matters.
        dtype: of parameters, latents and data; float64 as published.
        loss, weight_decay: see `gan_influence.GAN`.

    Source: Terashita et al., ICLR 2021, appendix on experimental settings (2D-Normal).

    >>> sum(p.numel() for p in fcgan().discriminator.parameters())
    4288
    """
    def layers(*widths: int) -> nn.Sequential:
        linears = [nn.utils.skip_init(nn.Linear, a, b, bias=False, dtype=dtype) for a, b in zip(widths, widths[1:])]
        return nn.Sequential(*[module for linear in linears for module in (linear, activation())][:-1])

    random = torch_stream("fcgan", seed)
    generator, discriminator = layers(latent_dim, 32, 32, 2), layers(2, 64, 64, 1)
    for parameter in [*generator.parameters(), *discriminator.parameters()]:
        nn.init.xavier_uniform_(parameter, generator=random)
    return GAN(generator, discriminator, latent_dim, loss, weight_decay)
