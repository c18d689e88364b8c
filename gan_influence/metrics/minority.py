"""Whom a metric sees: the share of a minority among generated instances, likelihood class by class, and several aims at once."""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..game.gan import GAN
from ..game.state import State
from .images import Network, _chunks, _refuse_training_mode
from .likelihood import AverageLogLikelihood


class SoftShare:
    """Soft share of a class among the generated instances.

        V = mean_k σ( c(G(z_k)) / τ )

    Args:
        classifier: module in eval mode, or function, mapping instances (n, ...) to the class's logit c, (n, 1); its parameters stay as they are.
        latents: fixed latents, (n, latent_dim).
        temperature: τ, in logits; the smaller, the closer to a count and the rarer the instances that have a gradient.
        chunk: instances in memory at once; the gradient recomputes one chunk after another.

    Calling it gives a number between 0 and 1, float64; higher counts as better, so what lowers it by its presence is harmful.

    Raises:
        ValueError: for a temperature that is not positive, a classifier in training mode, another output than one logit each.

    >>> from torch import nn
    >>> gan = GAN(nn.Linear(1, 1), nn.Linear(1, 1), latent_dim=1)
    >>> state = gan.state().map(torch.zeros_like)  # every generated point is 0, and undecided
    >>> SoftShare(nn.Identity(), gan.sample_latents(5, seed=0))(gan, state).item()
    0.5
    """

    name = "soft share"
    higher_is_better = True

    def __init__(self, classifier: Network, latents: Tensor, temperature: float = 1.0, chunk: int = 250):
        if not temperature > 0:
            raise ValueError(f"a temperature is a positive number of logits, but {temperature!r} was given: pass for instance 1.0")
        self.classifier, self.latents, self.temperature, self.chunk = classifier, latents, temperature, chunk
        _refuse_training_mode(classifier)

    def __call__(self, gan: GAN, state: State) -> Tensor:
        return sum(_chunks(self._sum, self.classifier, gan, state, self.latents, self.chunk)) / len(self.latents)

    def _sum(self, logits: Tensor) -> Tensor:
        if logits.shape[1] != 1:
            raise ValueError(f"a share is of one class, so its classifier returns one logit each, (n, 1), but it returned shape {tuple(logits.shape)}: "
                             "take the class's logit minus the others'")
        return (logits / self.temperature).sigmoid().sum()


class BalancedLikelihood:
    """Average log-likelihood, averaged over classes first: a minority counts as much as the majority.

        V = mean over classes c of  mean_{i: y_i = c} log [ (1/n) Σ_k N(x_i; G(z_k), bandwidth²·I) ]

    Args:
        x, latents, bandwidth, chunk_bytes: as of `AverageLogLikelihood`.
        labels: the class of each instance, (m,) integers.

    Calling it gives nats per instance; higher is better.

    Raises:
        ValueError: for another number of labels than of instances.

    >>> from torch import nn
    >>> gan, x = GAN(nn.Linear(1, 1), nn.Linear(1, 1), latent_dim=1), torch.tensor([[0.0], [0.0], [0.0], [2.0]])
    >>> state = gan.state().map(torch.zeros_like)  # every generated point is 0
    >>> both = (metric(gan, state).item() for metric in (BalancedLikelihood(x, torch.tensor([0, 0, 0, 1]), torch.zeros(1, 1)),
    ...                                                  AverageLogLikelihood(x, torch.zeros(1, 1))))
    >>> [round(v + 0.9189, 3) for v in both]  # −½·2²/2 and −½·2²/4
    [-1.0, -0.5]
    """

    name = "balanced log-likelihood"
    higher_is_better = True

    def __init__(self, x: Tensor, labels: Tensor, latents: Tensor, bandwidth: float = 1.0, chunk_bytes: int = 2**25):
        if labels.shape != (len(x),):
            raise ValueError(f"every held-out instance has one label, but there are {len(x)} instances and labels of shape {tuple(labels.shape)}")
        self.latents = latents
        self.by_class = [AverageLogLikelihood(x[labels == c], latents, bandwidth, chunk_bytes) for c in labels.unique()]

    def __call__(self, gan: GAN, state: State) -> Tensor:
        return sum(metric(gan, state) for metric in self.by_class) / len(self.by_class)


class WeightedSum:
    """Several aims in one metric; its influences are the weighted sum of theirs, by one sweep.

    Args:
        weights: {metric: weight}; a metric of which lower is better gets a negative one.

    Calling it gives Σ weight·metric; higher is better.

    >>> from torch import nn
    >>> gan = GAN(nn.Linear(1, 1), nn.Linear(1, 1), latent_dim=1)
    >>> state, z = gan.state().map(torch.zeros_like), gan.sample_latents(5, seed=0)
    >>> WeightedSum({SoftShare(nn.Identity(), z): 2, SoftShare(nn.Identity(), z): -1})(gan, state).item()
    0.5
    """

    higher_is_better = True

    def __init__(self, weights: Mapping):
        self.weights = dict(weights)
        self.name = " + ".join(f"{weight:g} × {getattr(metric, 'name', 'metric')}" for metric, weight in self.weights.items())

    def __call__(self, gan: GAN, state: State) -> Tensor:
        return sum(weight * metric(gan, state) for metric, weight in self.weights.items())


def enrichment(removed, minority) -> float:
    """How many times more frequent a minority is among removed instances than among all: 1 by chance, 0 where none of it is removed.

    Args:
        removed: instances, indices (m,).
        minority: whether each of the n instances is of it, (n,) bool.

    Raises:
        ValueError: where nothing is removed, or there is no minority.

    >>> enrichment([0, 1], torch.tensor([True, False, False, False]))
    2.0
    """
    minority = torch.as_tensor(minority, dtype=torch.float64)
    if not len(removed) or not minority.any():
        raise ValueError(f"enrichment compares a minority's share among removed instances and among all, but {len(removed)} are removed and "
                         f"{int(minority.sum())} are of the minority: it takes one of each, at least")
    return float(minority[torch.as_tensor(removed)].mean() / minority.mean())


def recall(real, made, k: int = 5) -> float:
    """The part of real instances that the generated ones cover: those within a generated one's distance to its k-th neighbour.

    Args:
        real: (m, ...), such as a minority's held-out instances, or their features.
        made: generated instances or their features, (n, ...), n > k.
        k: neighbours.

    Returns:
        Between 0 and 1. It judges, and has no gradient.

    Raises:
        ValueError: for fewer than k + 1 generated instances.

    Source: Kynkäänniemi et al. 2019 (improved recall).

    >>> recall(torch.tensor([[0.4], [5.0]]), torch.tensor([[0.0], [1.0], [0.5]]), k=1)
    0.5
    """
    real, made = (np.asarray(torch.as_tensor(x).detach().cpu().flatten(1), np.float64) for x in (real, made))
    if len(made) <= k:
        raise ValueError(f"the distance to the {k}-th neighbour takes {k + 1} generated instances or more, but there are {len(made)}")
    radii = cKDTree(made).query(made, k + 1)[0][:, -1]
    pairs = cKDTree(real).sparse_distance_matrix(cKDTree(made), radii.max(), output_type="ndarray")
    return len(np.unique(pairs["i"][pairs["v"] <= radii[pairs["j"]]])) / len(real)
