"""Adversarial losses, one number per instance: nothing here is averaged, so an instance can be weighted or removed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Loss(NamedTuple):
    """What each player pays per instance, as functions of the discriminator's output.

    Each function maps outputs of any shape to losses of the same shape, unreduced.

    >>> import torch
    >>> LOSSES["least_squares"].real(torch.tensor([1.0, 3.0]))
    tensor([0., 2.])
    """

    real: Callable[[Tensor], Tensor]  #: the discriminator's loss on a real instance
    fake: Callable[[Tensor], Tensor]  #: the discriminator's loss on a generated instance
    generator: Callable[[Tensor], Tensor]  #: the generator's loss on a generated instance


def _softplus(x: Tensor) -> Tensor:
    return -F.logsigmoid(-x)  # exact everywhere; F.softplus turns linear above 20, which is 2e-9 off


def _cross_entropy(p: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy(p, torch.full_like(p, target), reduction="none")


LOSSES = {
    "non_saturating": Loss(lambda d: -F.logsigmoid(d), _softplus, lambda d: -F.logsigmoid(d)),
    "minimax": Loss(lambda d: -F.logsigmoid(d), _softplus, lambda d: F.logsigmoid(-d)),
    "wasserstein": Loss(lambda d: -d, lambda d: d, lambda d: -d),
    "hinge": Loss(lambda d: F.relu(1 - d), lambda d: F.relu(1 + d), lambda d: -d),
    "least_squares": Loss(lambda d: 0.5 * (d - 1) ** 2, lambda d: 0.5 * d**2, lambda d: 0.5 * (d - 1) ** 2),
    "bce": Loss(lambda p: _cross_entropy(p, 1.0), lambda p: _cross_entropy(p, 0.0), lambda p: _cross_entropy(p, 1.0)),
}


def named_loss(name: str) -> Loss:
    """A loss by its name, or the discriminator's of one and the generator's of another, as in "hinge/non_saturating".

    Raises:
        ValueError: for a name that does not exist, with those that do.
    """
    first, _, second = name.partition("/")
    try:
        return LOSSES[first]._replace(generator=LOSSES[second or first].generator)
    except KeyError:
        raise ValueError(f"unknown loss {name!r}: choose one of {', '.join(LOSSES)}, or pass a gan_influence.losses.Loss") from None
