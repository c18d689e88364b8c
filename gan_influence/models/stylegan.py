"""A compact style-based GAN for colour images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..game.gan import GAN
from ..game.penalties import R1
from ..tools.streams import torch_stream

SMALLEST = 4  #: pixels of a side that the generator starts from and the discriminator ends with
CAP = 4  #: no resolution has more than so many times `width` channels
PACE = 0.05  #: at which the mapping network learns, against all else


class Slow(nn.Linear):
    """A linear layer that learns at `PACE` whatever the optimiser: its numbers are so much larger, and count so much less.

    Source: Karras et al., CVPR 2019, appendix C (a learning rate multiplier of the mapping network, there .01).
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * PACE, self.bias * PACE)


class ModulatedConv2d(nn.Conv2d):
    """A convolution whose input channels a style scales, and whose output channels are brought back to unit variance.

    The kernel of one instance is s_i·W_oik, divided by ‖s_i·W_oik‖ over i and k. Here its inputs are scaled by s_i and its outputs
    by 1/‖·‖ around one convolution for all instances, which is equal to rounding and can be stacked over many models.

    Args:
        inputs, outputs, kernel: as of nn.Conv2d; the size stays.
        style: length of a style vector.
        upsample: double the size first, bilinearly.
        demodulate: whether outputs are brought back to unit variance.

    Source: Karras et al., CVPR 2020, section 2.2.

    >>> ModulatedConv2d(3, 5, 3, style=7)(torch.ones(2, 3, 4, 4), torch.ones(2, 7)).shape
    torch.Size([2, 5, 4, 4])
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, style: int, upsample: bool = False, demodulate: bool = True):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.style, self.upsample, self.demodulate = nn.Linear(style, inputs), upsample, demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        s, weight = self.style(w), self.weight  # read once: an adapter computes it
        x = x * s[..., None, None]
        x = F.conv2d(F.interpolate(x, scale_factor=2, mode="bilinear") if self.upsample else x, weight, padding=self.padding)
        if self.demodulate:
            x = x * (s.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()[..., None, None]
        return x + self.bias[:, None, None]


class Synthesis(nn.Module):
    """Latents to styles to images: a mapping network, one modulated convolution a resolution with noise of a learnt strength, colours, tanh."""

    def __init__(self, channels: list[int], latent_dim: int, activation: type[nn.Module]):
        super().__init__()
        sizes = [latent_dim] * 3
        self.mapping = nn.Sequential(*[layer for a, b in zip(sizes, sizes[1:]) for layer in (Slow(a, b), activation())])
        self.start = nn.Parameter(torch.empty(channels[0], SMALLEST, SMALLEST))
        self.layers = nn.ModuleList([ModulatedConv2d(a, b, 3, latent_dim, upsample=i > 0) for i, (a, b) in enumerate(zip(channels[:1] + channels, channels))])
        self.noise = nn.Parameter(torch.zeros(len(self.layers)))
        self.activation, self.colours = activation(), ModulatedConv2d(channels[-1], 3, 1, latent_dim, demodulate=False)

    def forward(self, z: Tensor) -> Tensor:
        w = self.mapping(z * (z.square().mean(-1, keepdim=True) + 1e-8).rsqrt())
        x = self.start.expand(*z.shape[:-1], *self.start.shape)
        for layer, strength in zip(self.layers, self.noise):
            x = layer(x, w)
            drawn = torch.randn(*x.shape[:-3], 1, *x.shape[-2:], device=x.device, dtype=torch.float32)  # the same in float64
            x = self.activation(x + strength * drawn.to(x))
        return torch.tanh(self.colours(x, w))


def stylegan(seed: int = 0, size: int = 32, width: int = 16, latent_dim: int = 32, activation: type[nn.Module] = nn.SiLU,
             dtype: torch.dtype = torch.float32, loss: str = "non_saturating", penalty: R1 | None = R1(10.0)) -> GAN:
    """A style-based GAN of colour images (3, size, size) in [-1, 1], small enough for a CPU.

    The generator maps a latent, brought to unit length per entry, through two slow layers to a style w; a learnt 4 × 4 start is doubled until it
    has the image's size, with one modulated and demodulated 3 × 3 convolution and noise of a learnt strength (zero at first) at each.
    The discriminator halves the image by 4 × 4 convolutions and ends in two linear layers. Against the published networks there is one
    convolution a resolution, no equalised learning rate elsewhere, no style mixing, no residual connection, and no minibatch standard deviation, because
    it would tie an instance to its batch. Noise is drawn whenever an image is made: in a run under the step's recorded seed, by
    `gan.generate` always the same.

    Args:
        seed: initialises the parameters without touching torch's global generator: Kaiming normal, biases zero, styles one.
        size: pixels of a side, 8, 16, 32, ...
        width: channels at `size`; each halving doubles them, up to four times as many.
        latent_dim: length of a latent vector, and of a style.
        activation: between layers; published is a leaky ReLU, whose kinks limit what a derivative can predict.
        dtype: of parameters, latents and images.
        loss, penalty: see `gan_influence.GAN`.

    Raises:
        ValueError: for a size that doubling 4 does not reach.

    Source: Karras et al., CVPR 2019 (styles, noise) and CVPR 2020 (modulation, demodulation); Mescheder et al., ICML 2018 (R1).

    >>> gan = stylegan(width=4)
    >>> gan.generate(gan.state(), gan.sample_latents(2, seed=0)).shape
    torch.Size([2, 3, 32, 32])
    >>> sum(p.numel() for module in (stylegan().generator, stylegan().discriminator) for p in module.parameters())
    280824
    """
    doublings = len(f"{size // SMALLEST:b}") - 1 if isinstance(size, int) and size > SMALLEST else 0
    if not doublings or size != SMALLEST << doublings:
        raise ValueError(f"a style-based GAN doubles {SMALLEST} × {SMALLEST} until it has an image, so size is 8, 16, 32, ..., but got {size!r}: "
                         "resize the images, as gi.data.faces(size=...) and gi.data.images(folder, size=...) do")
    channels = [width * min(CAP, 1 << doublings - i) for i in range(doublings + 1)]
    with torch.device("meta"):  # where nothing is drawn
        generator, layers = Synthesis(channels, latent_dim, activation), []
        for i, (a, b) in enumerate(zip([3, *channels[::-1]], channels[::-1])):
            layers += [nn.Conv2d(a, b, 4, 2, 1) if i else nn.Conv2d(a, b, 3, padding=1), activation()]
        discriminator = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[0] * SMALLEST**2, channels[0]), activation(), nn.Linear(channels[0], 1))
    random = torch_stream("stylegan", seed)
    for module in (generator, discriminator):
        for layer in module.to_empty(device="cpu").to(dtype).modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, generator=random)
                nn.init.zeros_(layer.bias)
            if isinstance(layer, Slow):
                layer.weight.data /= PACE
    nn.init.normal_(generator.start, generator=random)
    nn.init.zeros_(generator.noise)
    for layer in (*generator.layers, generator.colours):
        nn.init.ones_(layer.style.bias)
    return GAN(generator, discriminator, latent_dim, loss, penalty=penalty)
