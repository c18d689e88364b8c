"""Distances between two samples: judges of a cleansing that was steered by another metric."""

import torch
from torch import Tensor

from ..game.gan import GAN
from ..game.state import State
from ..tools.streams import stream
from .images import Network, _apply, _chunks, _refuse_training_mode


class SlicedWasserstein:
    """Sliced Wasserstein distance: how far mass must move, on average over directions.

        V = mean over directions e of  mean_i | ⟨e, x⟩_(i) − ⟨e, G(z)⟩_(i) |

    Args:
        x: held-out instances, (m, ...).
        latents: fixed latents, (m, latent_dim), as many as instances.
        directions: how many, uniform on the sphere.
        seed: of the directions.

    Calling it gives the data's units; lower is better.

    Raises:
        ValueError: for another number of latents than of instances.

    Source: Bonneel et al. 2015 (sliced); the one-dimensional distance is that of the order statistics.

    >>> from torch import nn
    >>> gan, x = GAN(nn.Linear(1, 1), nn.Linear(1, 1), latent_dim=1), torch.tensor([[3.0], [5.0]])
    >>> state = gan.state().map(torch.zeros_like)  # every generated point is 0
    >>> SlicedWasserstein(x, gan.sample_latents(2, seed=0))(gan, state).item()
    4.0
    """

    name = "sliced Wasserstein distance"
    higher_is_better = False

    def __init__(self, x: Tensor, latents: Tensor, directions: int = 64, seed: int = 0):
        if len(x) != len(latents):
            raise ValueError(f"a sliced Wasserstein distance pairs instances with generated ones, but there are {len(x)} and {len(latents)}: take equally many")
        self.x, self.latents = x.flatten(1), latents
        drawn = torch.from_numpy(stream("directions", seed).standard_normal((directions, self.x.shape[1])))
        self.directions = drawn / drawn.norm(dim=1, keepdim=True)

    def __call__(self, gan: GAN, state: State) -> Tensor:
        made = gan.generate(state, self.latents).flatten(1)
        real, fake = ((points.to(made) @ self.directions.to(made).T).sort(0).values for points in (self.x, made))
        return (real - fake).abs().mean()


class KernelDistance:
    """Kernel distance between features of real and of generated images: KID, where the features are an Inception network's.

        V = mean_{i≠k} k(a_i, a_k) + mean_{i≠k} k(b_i, b_k) − 2 mean_{i,k} k(a_i, b_k),   k(a, b) = (⟨a, b⟩/d + 1)³

    Args:
        features, real, latents, chunk: as of `FrechetDistance`; two or more images and latents.

    Calling it gives a number without unit, float64, whose expectation over samples is 0 for equal distributions; lower is better.

    Raises:
        ValueError: for a feature network in training mode, fewer than two images or latents, NaN or infinite features.

    Source: Bińkowski et al. 2018 (KID, the unbiased estimator; all samples in one block).

    >>> from torch import nn
    >>> gan, real = GAN(nn.Linear(1, 1), nn.Linear(1, 1), latent_dim=1), torch.ones(3, 1)
    >>> state = gan.state().map(torch.zeros_like)  # every generated feature is 0
    >>> KernelDistance(nn.Identity(), real, gan.sample_latents(5, seed=0))(gan, state).item()  # 2³ + 1 − 2
    7.0
    """

    name = "kernel distance"
    higher_is_better = False

    def __init__(self, features: Network, real: Tensor, latents: Tensor, chunk: int = 250):
        self.features, self.latents, self.chunk = features, latents, chunk
        _refuse_training_mode(features)
        if min(len(real), len(latents)) < 2:
            raise ValueError(f"a kernel distance takes pairs of images, but there are {len(real)} real ones and {len(latents)} latents: take two or more")
        with torch.no_grad():
            self.real = torch.cat([_apply(features, images, "real images") for images in real.split(chunk)])
            self.within = _within(self.real)

    def __call__(self, gan: GAN, state: State) -> Tensor:
        made = torch.cat(list(_chunks(lambda features: features, self.features, gan, state, self.latents, self.chunk)))
        real = self.real.to(made)
        across = sum(_kernel(part, made).sum() for part in real.split(1000)) / (len(real) * len(made))
        return self.within.to(made) + _within(made) - 2 * across


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _within(a: Tensor) -> Tensor:
    """The mean over pairs of different samples."""
    total = sum(_kernel(part, a).sum() for part in a.split(1000)) - (((a * a).sum(1) / a.shape[1] + 1) ** 3).sum()
    return total / (len(a) * (len(a) - 1))
