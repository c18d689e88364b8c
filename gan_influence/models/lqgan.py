"""The linear-quadratic GAN: small enough for a closed form of every influence."""

from typing import Literal

import torch
from torch import Tensor, nn

from ..game.gan import GAN
from ..tools.streams import torch_stream


class Affine(nn.Module):
    """G(z) = a·z + b; one-dimensional parameters, so weight decay (on kernels) leaves them alone."""

    def __init__(self, a: float, b: float, dtype: torch.dtype):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([a], dtype=dtype))
        self.b = nn.Parameter(torch.tensor([b], dtype=dtype))

    def forward(self, z: Tensor) -> Tensor:
        return self.a * z + self.b


class Quadratic(nn.Module):
    """D(x) = w₁x + w₂x²."""

    def __init__(self, w: Tensor):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x**2], dim=1) @ self.w.T


def lqgan(variant: Literal["wasserstein", "non_saturating"] = "non_saturating", seed: int = 0, rho: float = 1.0,
          dtype: torch.dtype = torch.float64) -> GAN:
    """The LQGAN on scalars: G(z) = a·z + b against D(x) = w₁x + w₂x².

    Args:
        variant: "wasserstein" has the Wasserstein loss and (rho/2)‖w‖²; "non_saturating" has neither.
        seed: draws a around 1, and b and w around 0.
        rho: the Wasserstein variant's regularisation.
        dtype: of the parameters.

    Both have their optimum at w = 0, b = mean of x, a² = variance of x. There the influence of removing x_j, with the loss
    still divided by N, on any V(a, b) is −[V_a (x_j² − 2b·x_j) / (2aN) + V_b x_j / N] (see `lqgan_influence`).

    Source: Terashita et al., TNNLS 2025 (the LQGAN); closed forms derived in notebook 03.

    >>> gan = lqgan()
    >>> gan.generate(gan.state(), gan.sample_latents(4, seed=0)).shape
    torch.Size([4, 1])
    """
    if variant not in ("wasserstein", "non_saturating"):
        raise ValueError(f"unknown variant {variant!r}: choose 'wasserstein' or 'non_saturating'")
    start = torch.randn(4, generator=torch_stream("lqgan", seed), dtype=torch.float64) * 0.1
    return GAN(Affine(1 + start[0].item(), start[1].item(), dtype), Quadratic(start[None, 2:].to(dtype)), latent_dim=1,
               loss=variant, weight_decay=rho if variant == "wasserstein" else 0.0)


def lqgan_influence(x: Tensor, v_a: float, v_b: float) -> Tensor:
    """The closed form: influence of each instance on V(a, b) once training has converged on all of x.

    Args:
        x: training set, (N, 1).
        v_a, v_b: partial derivatives of V at the optimum.

    Returns:
        (N,): V(without j) − V(with j) to first order in 1/N, with the loss divided by N throughout.

    >>> lqgan_influence(torch.tensor([[0.0], [2.0]]), v_a=0.0, v_b=1.0)  # V = b, the mean of what is generated
    tensor([-0., -1.])
    """
    x = x.flatten()
    b, a = x.mean(), x.var(unbiased=False).sqrt()
    return -(v_a * (x**2 - 2 * b * x) / (2 * a) + v_b * x) / len(x)
