"""The judges of attribution methods: how well scores predict what a bank of true removals holds, with intervals; none of them trains."""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from ..tools.streams import stream

FRACTIONS = 0.01, 0.1  #: of the training set that a random subset removes
ENDS = 10  #: instances at either end of a sample's ranking
RESAMPLES = 1_000  #: of a bootstrap

Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # estimate (m,), truth (m,), resamples (R, m) of their positions -> (R,)


def kendall(estimate: np.ndarray, truth: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of every resample, all at once: pairs are counted as often as their two members were drawn.

    >>> kendall(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]), np.array([[0, 1, 2], [0, 1, 1]]))
    array([0.33333333, 1.        ])
    """
    counts = np.stack([np.bincount(row, minlength=len(truth)) for row in which]).astype(float)
    a, b = (np.sign(np.subtract.outer(one, one)) for one in (estimate, truth))
    same, of_a, of_b = (np.einsum("ri,ri->r", counts @ pairs, counts) for pairs in (a * b, a * a, b * b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return same / np.sqrt(of_a * of_b)


def spearman(estimate: np.ndarray, truth: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of every resample."""
    from scipy.stats import rankdata
    a, b = (rankdata(one[which], axis=1) for one in (estimate, truth))
    a, b = (one - one.mean(1, keepdims=True) for one in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def precision(estimate: np.ndarray, truth: np.ndarray, which: np.ndarray, sign: int = 1) -> np.ndarray:
    """The share of the ENDS predicted most harmful that are among the ENDS most harmful in truth; with sign −1, of the most helpful."""
    ahead, last = [], min(ENDS, len(truth)) - 1
    for one in (estimate, truth):
        rank = np.argsort(np.argsort(-sign * one, kind="stable"))
        place = rank[which] * which.shape[1] + np.arange(which.shape[1])  # one drawn twice lies twice in a row
        ahead.append(place <= np.partition(place, last)[:, last, None])
    return (ahead[0] & ahead[1]).sum(1) / (last + 1)


#: Judges that need no training: the truth that each looks at, and how. All are 1 at best, and by chance 0, of the ends ENDS of a sample's size.
JUDGES: dict[str, tuple[str, Judge]] = {
    "tau": ("leave-one-out", kendall), "worst": ("leave-one-out", precision), "best": ("leave-one-out", lambda *given: precision(*given, sign=-1)),
    **{f"lds {fraction:.0%}": (f"changes {fraction:g}", spearman) for fraction in FRACTIONS}}


def judge(bank: Mapping[str, Tensor], setting: str, scores: Mapping[int, Tensor]) -> dict[str, float]:
    """What the judges say of one method's harmfulness in a setting, {seed: (n,)}: means over the seeds.

    Returns:
        For every judge its value, and under `<judge> low` and `<judge> high` a 95 % bootstrap interval that resamples instances or
        subsets within each seed, not seeds.
    """
    row = {}
    for name, (truth, function) in JUDGES.items():
        values, resampled = [], []
        for seed, own in scores.items():
            true, key = bank[f"{setting}|{seed}|{truth}"].double().numpy(), f"{setting}|{seed}|"
            removed = bank[key + ("left out" if truth == "leave-one-out" else truth.replace("changes", "subsets"))].long()
            estimate = own[removed].reshape(len(true), -1).sum(1).double().numpy()
            draws = stream("verification", seed, 5).integers(len(true), size=(RESAMPLES, len(true)))
            values.append(function(estimate, true, np.arange(len(true))[None])[0])
            resampled.append(function(estimate, true, draws))
        mean = np.mean(resampled, 0)
        mean = mean[np.isfinite(mean)]
        low, high = np.quantile(mean, [.025, .975]) if len(mean) else (np.nan, np.nan)
        row |= {name: float(np.mean(values)), f"{name} low": float(low), f"{name} high": float(high)}
    return row
