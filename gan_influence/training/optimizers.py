"""Optimisers as values: what they remember goes in and comes out."""

from collections.abc import Sequence

import torch
from torch import Tensor


class SGD:
    """Plain stochastic gradient descent, p ← p − η·gradient.

    Args:
        learning_rate: η of both players; a number, or one number per step.
        generator: the generator's own η, if it differs.
        discriminator: the discriminator's own η, if it differs.

    An optimiser is three methods. `init(parameters)` returns its memory (for SGD, nothing); `update(parameters, gradients,
    memory, learning_rate)` returns new parameters and memory and must be made of differentiable operations;
    `learning_rates(steps)` returns both players' rates, (steps, 2) float64, generator first.

    Source: the optimiser of both experiments in Terashita et al., ICLR 2021.

    >>> SGD(0.1, generator=[0.1, 0.05]).learning_rates(2)
    tensor([[0.1000, 0.1000],
            [0.0500, 0.1000]], dtype=torch.float64)
    """

    name = "sgd"

    def __init__(self, learning_rate: float | Sequence[float] | None = None, *,
                 generator: float | Sequence[float] | None = None, discriminator: float | Sequence[float] | None = None):
        self.generator = learning_rate if generator is None else generator
        self.discriminator = learning_rate if discriminator is None else discriminator
        if self.generator is None or self.discriminator is None:
            raise ValueError("both players need a learning rate: SGD(1e-3), or SGD(generator=1e-3, discriminator=4e-3)")

    def init(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """The memory before the first step: none."""
        return {}

    def update(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor], memory: dict[str, Tensor],
               learning_rate: float | Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """New parameters and memory; `learning_rate` is a number or a 0-d tensor."""
        return {name: p + gradients[name] * -learning_rate for name, p in parameters.items()}, memory

    def learning_rates(self, steps: int) -> Tensor:
        """Both players' rates at every step, (steps, 2) float64, generator first."""
        return torch.stack([_per_step(rate, steps) for rate in (self.generator, self.discriminator)], dim=1)

    def describe(self) -> dict:
        """The arguments that build this optimiser again, as JSON can hold them."""
        return {"generator": _plain(self.generator), "discriminator": _plain(self.discriminator)}


OPTIMIZERS = {SGD.name: SGD}


def _per_step(rate, steps: int) -> Tensor:
    rates = torch.as_tensor(_plain(rate), dtype=torch.float64)
    if rates.ndim > 1 or rates.ndim and len(rates) != steps:
        raise ValueError(f"a learning rate per step was given for {len(rates)} steps, but the run has {steps}: give one number, or {steps}")
    if (rates < 0).any():
        raise ValueError(f"a learning rate is 0 or more, but got {float(rates.min())}: turn the sign of the loss instead")
    return rates.expand(steps)


def _plain(rate) -> float | list[float]:
    return rate if isinstance(rate, float) else torch.as_tensor(rate, dtype=torch.float64).tolist()
