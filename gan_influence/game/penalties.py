"""Gradient penalties: what the discriminator pays for its slope at an instance. They belong to that instance and go with it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class R1:
    """½·gamma·every·‖∇D(x_j)‖² in instance j's term, at every `every`-th step (t % every = 0).

    Source: Mescheder et al., ICML 2018, equation 9; every (lazy regularisation): Karras et al., CVPR 2020, appendix B.

    >>> import torch
    >>> R1(gamma=10.0)(torch.tensor([[3.0, 4.0]]))
    tensor([125.])
    """

    gamma: float
    every: int = 1
    between = False  #: whether it is taken between an instance and a generated one

    def __call__(self, gradient: Tensor) -> Tensor:
        """Of gradients (..., d) by the instance, one number each, (...)."""
        return 0.5 * self.gamma * self.every * gradient.square().sum(-1)


@dataclass(frozen=True)
class GradientPenalty:
    """weight·(‖∇D(x̂)‖ − 1)² in instance j's term, at x̂ = a·x_j + (1 − a)·(a generated instance), a uniform in [0, 1].

    Source: Gulrajani et al., NeurIPS 2017, equation 3.

    >>> import torch
    >>> GradientPenalty(weight=10.0)(torch.tensor([[3.0, 4.0]]))
    tensor([160.])
    """

    weight: float = 10.0
    every = 1
    between = True

    def __call__(self, gradient: Tensor) -> Tensor:
        """Of gradients (..., d) by the point between, one number each, (...)."""
        return self.weight * (gradient.norm(dim=-1) - 1).square()


PENALTIES = {kind.__name__: kind for kind in (R1, GradientPenalty)}
