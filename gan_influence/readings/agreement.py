"""How well estimated influences agree with true leave-one-out differences."""

from dataclasses import asdict, dataclass

import numpy as np

from ..tools.checks import whole


@dataclass(frozen=True)
class Agreement:
    """Estimate against truth over n instances; every field but `n` and `k` is 1 for perfect agreement, NaN where a score has no order, being constant."""

    kendall_tau: float  #: Kendall's tau-b: agreement of the order of all pairs
    jaccard: float  #: overlap of the critical instances: the k lowest and k highest pooled, as published
    jaccard_lowest: float  #: overlap of the k lowest alone
    jaccard_highest: float  #: overlap of the k highest alone
    jaccard_by_chance: float  #: what `jaccard` would be on average for a random estimate
    pearson: float  #: linear correlation
    slope: float  #: least-squares slope of the estimate against the truth; below 1 the estimate is too small
    n: int
    k: int

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in asdict(self).items())


def agreement(estimate, truth, k: int = 10) -> Agreement:
    """Compare estimated influences with leave-one-out differences.

    Args:
        estimate, truth: (n,), in the same units and for the same instances.
        k: critical instances at either end; at most n // 2.

    Raises:
        ValueError: for different lengths, fewer than two instances, numbers that are not finite, or a k below 1.

    Source: Terashita et al., ICLR 2021, section 5.1; tau-b and the hypergeometric distribution from scipy.

    >>> print(agreement([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0], k=1))
    kendall_tau 0.667  jaccard 0.333  jaccard_lowest 1.000  jaccard_highest 0.000  jaccard_by_chance 0.389  pearson 0.800  slope 0.800  n 4  k 1
    """
    from scipy import stats  # takes longer to import than all the rest of the package
    estimate, truth = (np.asarray(a.detach().cpu().double() if hasattr(a, "detach") else a, dtype=float).ravel() for a in (estimate, truth))
    n = len(truth)
    if len(estimate) != n or n < 2:
        raise ValueError(f"agreement compares two scores of the same two or more instances, got {len(estimate)} and {n}: "
                         "index the scores by the instances retrained")
    if not (np.isfinite(estimate).all() and np.isfinite(truth).all()):
        raise ValueError("agreement compares finite numbers, but a score is NaN or infinite")
    k = min(whole("k", k), n // 2)
    (low, high), (true_low, true_high) = (_ends(scores, k) for scores in (estimate, truth))
    common = np.arange(2 * k + 1)
    by_chance = np.sum(stats.hypergeom(n, 2 * k, 2 * k).pmf(common) * common / (4 * k - common))
    if not (np.ptp(estimate) > 0 and np.ptp(truth) > 0):
        return Agreement(*[np.nan] * 4, float(by_chance), np.nan, np.nan, n, k)
    line = stats.linregress(truth, estimate)
    return Agreement(
        kendall_tau=float(stats.kendalltau(estimate, truth).statistic),
        jaccard=_jaccard(low | high, true_low | true_high), jaccard_lowest=_jaccard(low, true_low), jaccard_highest=_jaccard(high, true_high),
        jaccard_by_chance=float(by_chance), pearson=float(line.rvalue), slope=float(line.slope), n=n, k=k)


def _ends(scores: np.ndarray, k: int) -> tuple[set[int], set[int]]:
    order = np.argsort(scores, kind="stable").tolist()
    return set(order[:k]), set(order[len(order) - k:])


def _jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)
