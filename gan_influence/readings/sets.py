"""How well scores predict what the removal of many instances together brings."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..tools.checks import whole
from ..tools.streams import stream
from ..training.trajectory import Trajectory
from .judging import Metric, settled, value
from .retraining import retrain
from .verification import one_of_each, percentiles


class SetScore(NamedTuple):
    """What `linear_datamodelling_score` returns."""

    spearman: float  #: rank correlation of predicted with true changes, 1 for the same order
    low: float  #: bootstrap interval, 95 %
    high: float
    predicted: Tensor  #: (subsets,) summed scores, metric's units
    true: Tensor  #: (subsets,) metric(without the subset) − metric(as trained)


@torch.no_grad()
def linear_datamodelling_score(run: Trajectory, metric: Metric, scores: Tensor, last_epochs: int | None = None, fraction: float = 0.01,
                               subsets: int = 32, last_steps: int | None = None, seed: int = 0) -> SetScore:
    """Correlate summed influences of random subsets with what their removal really changes: the field's measure of an attribution.

    Args:
        run: a recorded run.
        metric: what the scores predict: a callable metric(gan, state) -> scalar.
        scores: (n,) influences, as `influence` returns them, in the metric's units.
        last_epochs, last_steps: the scores' window, in epochs or in steps; None means the whole run.
        fraction: of the training set that each subset removes, drawn without replacement.
        subsets: how many are removed, each in a run of its own, all trained together; 3 or more.
        seed: draws the subsets and the bootstrap.

    Returns:
        A `SetScore`: Spearman's correlation, its interval, and the changes themselves. NaN where a change is not finite, or all are equal.

    Raises:
        TypeError: for scores that are not one tensor.
        ValueError: for a fraction that removes none or all, fewer than 3 subsets, or scores that do not fit the run or are not finite.

    Source: the linear datamodelling score of Park et al., ICML 2023 (TRAK), after Ilyas et al., ICML 2022; here by removal of the subset from the
    window, where they train on the subset alone.

    >>> import gan_influence as gi
    >>> data, gan = gi.data.normal_2d(train=200, valid=50, test=50, seed=0), gi.models.fcgan(activation=torch.nn.Tanh)
    >>> run = gi.train(gan, data.train, epochs=2, seed=0)
    >>> metric = gi.metrics.AverageLogLikelihood(data.valid, gan.sample_latents(50, seed=1))
    >>> linear_datamodelling_score(run, metric, gi.influence(run, metric), fraction=.05, subsets=8).spearman > .9
    True
    """
    from scipy import stats
    whole("subsets", subsets, 3)
    (metric, scores), size = one_of_each(run, metric, scores), round(fraction * run.n)
    if not 0 < size < run.n:
        raise ValueError(f"a subset holds some instances and not all, but fraction={fraction!r} of {run.n} instances is {size}: choose another "
                         "between 0 and 1")
    before = value(metric, run.gan, run.final).item()
    settled(run, metric, before)
    sets = random_subsets(run.n, size, subsets, seed)
    predicted = torch.stack([scores[one].sum() for one in sets])
    states = retrain(run, sets, last_epochs, last_steps=last_steps)
    true = torch.tensor([value(metric, run.gan, state).item() - before for state in states], dtype=torch.float64)
    columns = predicted.numpy(), true.numpy()

    def spearman(a, b) -> float:
        return float(stats.spearmanr(a, b).statistic) if a.std() > 0 and b.std() > 0 else float("nan")

    return SetScore(spearman(*columns), *percentiles(spearman, *columns, seed), predicted, true)


def random_subsets(n: int, size: int, subsets: int, seed: int) -> list[Tensor]:
    """The subsets of 0..n-1 whose removal is compared, (size,) int64 each."""
    random = stream("verification", seed, 3)
    return [torch.from_numpy(random.choice(n, size, replace=False)) for _ in range(subsets)]
