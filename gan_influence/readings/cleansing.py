"""Data cleansing: rank, remove, retrain, evaluate; and the baselines that rank without looking at the metric."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..game.state import State
from ..tools.streams import stream
from ..training.trajectory import Trajectory
from .judging import direction, metrics_of, settled, value
from .retraining import retrain

COLUMNS = "method", "metric", "n_removed", "valid_before", "valid_after", "test_before", "test_after"


@dataclass(frozen=True)
class Cleansing:
    """What `cleanse` measured.

    The rows' keys are method, metric, n_removed, valid_before, valid_after, test_before, test_after; values in the metric's units.
    """

    rows: list[dict]  #: one per method, metric and n_removed
    picked: list[dict]  #: one per method and metric: the n_removed best on validation data (0: nothing helped); its test values are honest
    states: dict[tuple[str, int], State]  #: the final states of the picked rows, by (method, n_removed)

    def __iter__(self) -> Iterator[dict]:
        """The rows."""
        return iter(self.rows)

    def __str__(self) -> str:
        chosen = [("*" if row in self.picked else " ", *(f"{v:.5g}" if isinstance(v, float) else str(v) for v in row.values())) for row in self.rows]
        lines = [("", *COLUMNS), *chosen]
        widths = [max(map(len, column)) for column in zip(*lines)]
        table = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)
        return "\n".join([*table, "* best on validation data; a method without one did not help"])

    def frame(self):
        """The rows as a pandas DataFrame, with a column `picked`."""
        import pandas as pd
        return pd.DataFrame([{**row, "picked": row in self.picked} for row in self.rows])


def cleanse(run: Trajectory, scores_by_method: Mapping[str, Tensor], fractions: Iterable[float], metric_valid, metric_test,
            last_epochs: int | None = 1, models_at_once: int | None = None, compile: bool = False) -> Cleansing:
    """Remove each method's most harmful instances, run the last epochs again without them, and measure what it brought.

    Args:
        run: a recorded run.
        scores_by_method: {name: (n,) harmfulness}, larger is removed first: what `harmfulness`, `isolation_forest` and
            `random_scores` return. An influence on a metric of which lower is better must go through `harmfulness`.
        fractions: of the training set to remove, each between 0 and 1.
        metric_valid: a metric on validation data, or a dict of them; it picks how many to remove.
        metric_test: the same metric on test data and fresh latents, or a dict with the same keys.
        last_epochs: how many epochs are run again; None retrains from the first step.
        models_at_once, compile: see `retrain`; all removal sets are retrained in one call.

    Returns:
        A `Cleansing`: print it, or go through its rows. A removal after which training did not stay finite has NaN for its values.

    Raises:
        ValueError: for a fraction outside (0, 1) or that removes none or all, scores that do not fit the run or are not finite,
            and metrics that do not fit each other. A set that leaves a batch without any real instance only earns a warning.

    Source: Terashita et al., ICLR 2021, section 5.2.

    >>> import gan_influence as gi
    >>> data = gi.data.normal_2d(train=200, valid=50, test=50, seed=0)
    >>> gan = gi.models.fcgan()
    >>> run = gi.train(gan, data.train, epochs=2, seed=0)
    >>> valid, test = (gi.metrics.AverageLogLikelihood(x, gan.sample_latents(50, seed)) for seed, x in enumerate(data[1:], 1))
    >>> scores = {"influence": gi.harmfulness(gi.influence(run, valid, last_epochs=1), valid), "random": random_scores(200, seed=0)}
    >>> [(row["method"], row["n_removed"]) for row in cleanse(run, scores, [0.05, 0.1], valid, test)]
    [('influence', 10), ('influence', 20), ('random', 10), ('random', 20)]
    """
    valid, test = metrics_of(metric_valid), metrics_of(metric_test)
    if valid.keys() != test.keys() or any(direction(valid[name]) != direction(test[name]) for name in valid):
        raise ValueError(f"cleansing measures the same metrics on validation and on test data, but was given {list(valid)} and {list(test)}")
    counts, sets = _counts(run.n, fractions), {}
    for method, scores in scores_by_method.items():
        ranked = _ranked(run, method, scores)
        sets |= {(method, n): ranked[:n] for n in counts}
    _warn_of_empty_batches(run, sets, last_epochs)

    @torch.no_grad()
    def measure(state: State) -> dict[str, tuple[float, ...]]:
        if not state.is_finite():  # a removal that derailed training must not cost the others' results
            return dict.fromkeys(valid, (math.nan, math.nan))
        return {name: tuple(value(metric, run.gan, state).item() for metric in (valid[name], test[name])) for name in valid}

    before = measure(run.final)
    for name, values in before.items():
        settled(run, valid[name], values[0])
        settled(run, test[name], values[1])
    states = dict(zip(sets, retrain(run, list(sets.values()), last_epochs, models_at_once, compile)))
    after = {key: measure(state) for key, state in states.items()}
    rows, picked = [], []
    for method in scores_by_method:
        for name in valid:
            nothing, *removals = ({"method": method, "metric": name, "n_removed": n, "valid_before": before[name][0], "valid_after": measured[name][0],
                                   "test_before": before[name][1], "test_after": measured[name][1]}
                                  for n, measured in [(0, before), *((n, after[method, n]) for n in counts)])
            best = max if valid[name].higher_is_better else min
            rows += removals
            picked.append(best([nothing, *removals], key=lambda row: row["valid_after"]))  # ties, and NaN, go to what stands first
    kept = {key: states.get(key) or run.final for key in ((row["method"], row["n_removed"]) for row in picked)}
    return Cleansing(rows, picked, kept)


def isolation_forest(x: Tensor, seed: int = 0, features: nn.Module | None = None) -> Tensor:
    """How isolated each instance is from all others: the baseline that looks for outliers, whatever the GAN does.

    Args:
        x: instances, (n, ...), or their features, (n, d).
        seed: of the forest.
        features: a module instances → (n, d) that is applied first; the classifier's `features` for images.

    Returns:
        (n,) float64, between 0 and 1; larger is more isolated.

    Raises:
        ImportError: where scikit-learn is not installed.
        ValueError: for numbers that are not finite.

    Source: Liu et al. 2008; Terashita et al., ICLR 2021, section 5.2 (baseline); computed by scikit-learn.

    >>> x = torch.zeros(20, 2)
    >>> x[7] = 5
    >>> int(isolation_forest(x).argmax())
    7
    """
    try:
        from sklearn.ensemble import IsolationForest
    except ImportError as error:
        raise ImportError("the isolation forest takes scikit-learn, which is not installed: pip install scikit-learn") from error
    if features is not None:
        with torch.no_grad():
            x = torch.cat([features(part) for part in x.split(1000)])
    rows = x.flatten(1).double().cpu().numpy()
    bad = ~np.isfinite(rows).all(1)
    if bad.any():
        raise ValueError(f"an isolation forest takes finite numbers, but {bad.sum()} of {len(rows)} instances hold a NaN or an infinity: take them out")
    return torch.from_numpy(-IsolationForest(random_state=seed).fit(rows).score_samples(rows))


def random_scores(n: int, seed: int = 0) -> Tensor:
    """Scores that know nothing, (n,) float64 uniform between 0 and 1: what removal as such does.

    >>> bool((random_scores(5, seed=1) == random_scores(5, seed=1)).all())
    True
    """
    return torch.from_numpy(stream("random scores", seed).random(n))


def _counts(n: int, fractions: Iterable[float]) -> list[int]:
    counts = []
    for fraction in fractions:
        if not 0 < fraction < 1 or not 0 < round(fraction * n) < n:
            raise ValueError(f"cleansing removes some instances and keeps some, so a fraction lies between 0 and 1, but {fraction:g} of {n} instances "
                             f"{'is ' + str(round(fraction * n)) if 0 <= fraction <= 1 else 'was asked for'}: choose others")
        counts.append(round(fraction * n))
    if not counts:
        raise ValueError("no fractions were given: pass for instance [0.01, 0.05, 0.1]")
    return sorted(set(counts))


def _ranked(run: Trajectory, method: str, scores) -> Tensor:
    scores = torch.as_tensor(scores).detach().cpu().to(torch.float64)
    if scores.shape != (run.n,) or not scores.isfinite().all():
        seen = f"shape {tuple(scores.shape)}" if scores.shape != (run.n,) else f"{int((~scores.isfinite()).sum())} that are NaN or infinite"
        raise ValueError(f"a method scores each of the run's {run.n} training instances with a finite number, but {method!r} has {seen}")
    return scores.argsort(descending=True, stable=True)


def _warn_of_empty_batches(run: Trajectory, sets: Mapping[tuple[str, int], Tensor], last_epochs: int | None) -> None:
    """A batch without real instances is well defined, as the loss keeps its 1/B; but it trains the discriminator on fakes alone."""
    rows, steps = run.draws(run.window(last_epochs))
    for (method, n), removed in sets.items():
        gone = np.zeros(run.n, dtype=bool)
        gone[removed.numpy()] = True
        drawn, left = np.unique(steps), set(steps[~gone[rows]].tolist())
        if empty := [t for t in drawn.tolist() if t not in left]:
            warnings.warn(f"the {n} most harmful by {method!r} are all real instances of {len(empty)} of {len(drawn)} batches (first: step "
                          f"{empty[0]}), where the discriminator then trains on generated ones alone: remove fewer, or trace back "
                          "over more epochs", stacklevel=3)
