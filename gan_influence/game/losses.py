"""Adversarial losses, one number per instance: nothing here is averaged, so an instance can be weighted or removed."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Loss(NamedTuple):
    """What each player pays per instance, as functions of the discriminator's logits.

    Each function maps logits of any shape to losses of the same shape, unreduced.

    >>> import torch
    >>> LOSSES["least_squares"].real(torch.tensor([1.0, 3.0]))
    tensor([0., 2.])
    """

    real: Callable[[Tensor], Tensor]  #: the discriminator's loss on a real instance
    fake: Callable[[Tensor], Tensor]  #: the discriminator's loss on a generated instance
    generator: Callable[[Tensor], Tensor]  #: the generator's loss on a generated instance


def _softplus(x: Tensor) -> Tensor:
    return -F.logsigmoid(-x)  # exact everywhere; F.softplus turns linear above 20, which is 2e-9 off


LOSSES = {
    "non_saturating": Loss(lambda d: -F.logsigmoid(d), _softplus, lambda d: -F.logsigmoid(d)),
    "minimax": Loss(lambda d: -F.logsigmoid(d), _softplus, lambda d: F.logsigmoid(-d)),
    "wasserstein": Loss(lambda d: -d, lambda d: d, lambda d: -d),
    "hinge": Loss(lambda d: F.relu(1 - d), lambda d: F.relu(1 + d), lambda d: -d),
    "least_squares": Loss(lambda d: 0.5 * (d - 1) ** 2, lambda d: 0.5 * d**2, lambda d: 0.5 * (d - 1) ** 2),
}
