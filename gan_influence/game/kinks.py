"""Kinks: the second derivative that ReLU lacks, given back as a bump."""

import torch
from torch import Tensor, nn

from .gan import GAN

KINKED = nn.ReLU, nn.LeakyReLU
WIDTH = 0.3  #: of a bump, in standard deviations of what enters the layer


def with_bumps(gan: GAN, mass: float) -> GAN:
    """The same GAN, whose ReLU and LeakyReLU layers have a bump for their derivative's derivative: a triangle around each kink of so much mass.

    Where a removal moves many pre-activations a little, some cross zero, and the gradient jumps there. Its average over a smooth density
    of pre-activations is what a mass of one at the kink gives; torch's own derivative, 0 almost everywhere, leaves it out.

    Args:
        mass: of the bump, relative to the jump of the derivative; 0 is torch's.

    Raises:
        ValueError: for a mass outside 0..1, and for networks without such a layer.

    >>> import gan_influence as gi
    >>> with_bumps(gi.models.fcgan(), 0.5).apply_discriminator.module[1]
    _Bumped(slope=0.0, mass=0.5)
    """
    if not 0 <= mass <= 1:
        raise ValueError(f"kinks is the share of a kink's jump that is given back, between 0 and 1, but {mass!r} was given")
    found, gan = False, gan and gan.copy()
    for network in (gan.apply_generator, gan.apply_discriminator) if gan else ():
        for parent in network.module.modules():
            for name, layer in list(parent._modules.items()):  # one that is used twice, twice
                if type(layer) in KINKED:
                    setattr(parent, name, _Bumped(getattr(layer, "negative_slope", 0.0), mass))
                    found = True
    if not found:
        raise ValueError("kinks are given back to nn.ReLU and nn.LeakyReLU layers, but these networks have none: leave kinks out, or make a layer of what "
                         "forward calls as a function")
    return gan


class _Bumped(nn.Module):
    def __init__(self, slope: float, mass: float):
        super().__init__()
        self.slope, self.mass = slope, mass

    def forward(self, a: Tensor) -> Tensor:
        width = WIDTH * a.detach().square().mean().sqrt()
        return _Value.apply(a, width, self.slope, self.mass)

    def extra_repr(self) -> str:
        return f"slope={self.slope}, mass={self.mass}"


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, width, slope, mass):
        ctx.save_for_backward(a, width)
        ctx.rest = slope, mass
        return torch.where(a > 0, a, slope * a)

    @staticmethod
    def backward(ctx, g):
        return g * _Slope.apply(*ctx.saved_tensors, *ctx.rest), None, None, None


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, width, slope, mass):
        ctx.save_for_backward(a, width)
        ctx.jump = mass * (1 - slope)
        return torch.where(a > 0, torch.ones_like(a), slope)

    @staticmethod
    def backward(ctx, g):
        a, width = ctx.saved_tensors
        return g * (ctx.jump * (1 - (a / width).abs()).clamp(min=0) / width), None, None, None
