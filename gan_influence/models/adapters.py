"""Low-rank adapters: a pretrained GAN learns other data by a few numbers of each layer, everything else constant."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from ..game.gan import GAN
from ..game.layers import Pure
from ..tools.checks import whole
from ..tools.streams import torch_stream


class LowRank(nn.Module):
    """A weight W becomes W + B·A, A (rank, ·) random and B (·, rank) zero, of W as a matrix: its first dimension by all others."""

    def __init__(self, weight: Tensor, rank: int, random: torch.Generator):
        super().__init__()
        rows = weight.flatten(1)
        self.A = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, rows.shape[1]), a=5**0.5, generator=random).to(weight))
        self.B = nn.Parameter(weight.new_zeros(rows.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.B @ self.A).view_as(weight)


def adapted(gan: GAN, rank: int = 8, seed: int = 0) -> GAN:
    """The same game between copies of the two networks, of which nothing trains but a low-rank adapter of every linear layer and convolution.

    What the two modules hold is kept as constants, which are in the modules and not in the state; `gan.load(state)` puts a trained state
    there first. Until the first step the networks are what they were, bit for bit, because B is zero. A moving average averages A
    and B, as the released code does, and not their product.

    Args:
        gan: a game whose modules are pretrained.
        rank: of the adapters; a layer that admits less (a logit's has one row) gets what it admits.
        seed: draws the As, as torch does for a linear layer.

    Returns:
        A new GAN; parameters are named `<layer>.parametrizations.weight.<i>.A` and `.B`. It computes in its process alone: torch does
        not pickle parametrised modules, so `gi.leave_one_out` takes no executor.

    Raises:
        ValueError: for a network without a linear layer or convolution, or with one whose weight an older hook computes; for a rank that
            none of its layers admits.

    Source: Hu et al., ICLR 2022 (LoRA); on every layer of both players as in Terashita et al., TNNLS 2025.

    >>> import gan_influence as gi
    >>> gan = adapted(gi.models.fcgan(), rank=2)
    >>> {name: tuple(p.shape) for name, p in gan.state().discriminator.items() if name.startswith("0")}
    {'0.parametrizations.weight.0.A': (2, 2), '0.parametrizations.weight.0.B': (64, 2)}
    """
    rank, random, other = whole("an adapter's rank", rank), torch_stream("adapters", seed), gan.copy()
    for player in ("generator", "discriminator"):
        module = getattr(gan, player)
        if not (layers := _layers(module)):
            raise ValueError(f"adapters sit on linear layers and convolutions, but the {player} ({type(module).__name__}) has none: train it as it is")
        for name, layer in layers.items():
            if "weight" not in layer._parameters and not parametrize.is_parametrized(layer, "weight"):
                raise ValueError(f"adapters add to a layer's own weight, but an older hook computes that of layer {name!r} of the {player}: use "
                                 "torch.nn.utils.parametrizations instead")
        admitted = {name: min(layer.weight.shape[0], layer.weight[0].numel()) for name, layer in layers.items()}
        if rank > (most := max(admitted.values())):
            raise ValueError(f"an adapter's rank is at most its layer's, but {rank} is more than any of the {player}'s admits ({most} at most): take less")
        module = deepcopy(module).requires_grad_(False)
        for name, layer in _layers(module).items():
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, min(rank, admitted[name]), random))
        setattr(other, player, module)
        setattr(other, f"apply_{player}", Pure(player, module))
    return other


def _layers(module: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, _ConvNd))}
