"""Average log-likelihood of held-out data, in memory that does not grow with the sample."""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..game.gan import GAN
from ..game.state import State


class AverageLogLikelihood:
    """Average log-likelihood of held-out data under a Gaussian kernel density on the generated points.

        V = mean_i log [ (1/n) Σ_k N(x_i; G(z_k), bandwidth²·I) ]

    Args:
        x: held-out instances, (m, ...).
        latents: fixed latents, (n, latent_dim).
        bandwidth: the kernel's standard deviation, in the data's units.
        chunk_bytes: size of the largest intermediate; queries are processed in chunks and recomputed for the gradient.

    Calling it gives nats per instance; higher is better.

    Raises:
        ValueError: for a bandwidth that is not positive.

    Source: Terashita et al., ICLR 2021, section 5 ("ALL").

    >>> from torch import nn
    >>> gan = GAN(nn.Linear(1, 1), nn.Linear(1, 1), latent_dim=1)
    >>> state = gan.state().map(torch.zeros_like)  # every generated point is 0
    >>> metric = AverageLogLikelihood(torch.zeros(3, 1), gan.sample_latents(5, seed=0))
    >>> round(metric(gan, state).item(), 4)  # log N(0; 0, 1)
    -0.9189
    """

    name = "average log-likelihood"
    higher_is_better = True

    def __init__(self, x: Tensor, latents: Tensor, bandwidth: float = 1.0, chunk_bytes: int = 2**25):
        if not 0 < bandwidth < math.inf:
            raise ValueError(f"the bandwidth is a kernel's standard deviation, a positive number, but {bandwidth!r} was given: pass for instance 1.0")
        self.x, self.latents, self.bandwidth, self.chunk_bytes = x, latents, bandwidth, chunk_bytes

    def __call__(self, gan: GAN, state: State) -> Tensor:
        centres = gan.generate(state, self.latents).flatten(1)
        x = self.x.to(centres).flatten(1)
        origin = x.mean(0)  # squared distances are taken as differences of squares: keep those small
        x, centres = (x - origin) / self.bandwidth, (centres - origin) / self.bandwidth
        rows = max(1, self.chunk_bytes // (centres.element_size() * len(centres)))
        if rows >= len(x):
            sums = [_log_kernel_sum(x, centres)]  # small enough to keep for the gradient
        else:
            sums = [checkpoint(_log_kernel_sum, chunk, centres, use_reentrant=False, preserve_rng_state=False) for chunk in x.split(rows)]
        d = x.shape[1]
        return sum(sums) / len(x) - math.log(len(centres)) - 0.5 * d * math.log(2 * math.pi * self.bandwidth**2)


def _log_kernel_sum(x: Tensor, centres: Tensor) -> Tensor:
    # log Σ_k exp(−½‖x − c_k‖²), summed over x; one matrix product, and nothing else of size (rows of x) × (centres).
    exponents = torch.addmm(-0.5 * (centres**2).sum(1), x, centres.T)
    return (exponents.logsumexp(1) - 0.5 * (x**2).sum(1)).sum()
