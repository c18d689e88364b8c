"""Cleansing in rounds: influence again and again, each time in the counterfactual that the rounds before have made."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..game.state import State
from ..tools.checks import whole
from ..tools.files import read_json, write_atomically
from ..training.trajectory import Trajectory
from .derivative import check_derivative
from .influence import check_returns, harmfulness, pull_back
from .judging import Metric, direction, name_of, settled, value


@dataclass(frozen=True)
class Rounds:
    """What `cleanse_in_rounds` found.

    The rows' keys are round, n_removed, changed (how many were removed or taken back), valid, test, better (whether the change was kept), and one
    for each further judge; values in the metrics' units. Row 0 is the run as it was.
    """

    removed: Tensor  #: (m,) int64, ascending: the instances whose absence is best on validation data
    state: State  #: the final state without them
    rows: list[dict]  #: one per round
    finished: str  #: why no further round was made

    def __str__(self) -> str:
        lines = [list(self.rows[0])] + [[f"{v:.5g}" if isinstance(v, float) else str(v) for v in row.values()] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join([*("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines), self.finished])

    def frame(self):
        """The rows as a pandas DataFrame."""
        import pandas as pd
        return pd.DataFrame(self.rows)


def cleanse_in_rounds(run: Trajectory, metric_valid: Metric, metric_test: Metric, last_epochs: int | None = 1, rounds: int = 12, step: float = 0.05,
                      judges: dict[str, Metric] | None = None, compile: bool = False, folder: str | os.PathLike | None = None,
                      last_steps: int | None = None) -> Rounds:
    """Remove harmful instances a few per cent at a time, asking anew after every change what is harmful now.

    Influences add up for few instances only. So a round removes the `step · n` instances whose removal promises most, or takes back
    removed ones whose return does; runs the window again without them; and pulls the metric back through that counterfactual for the next round.
    A change that does not improve the metric on validation data is undone, and half as many are tried. The first round is the published
    method. It is gradient descent on the training set's weights, through training.

    Args:
        run: a recorded run.
        metric_valid: a differentiable metric on validation data: what is pulled back, and what decides.
        metric_test: the same on test data and other latents: it only reports.
        last_epochs, last_steps: the window that is run again without them, in epochs or in steps; None means the whole run.
        rounds: changes that are tried at most; each costs one replay of the window, and one sweep through it where the change is kept.
        step: share of the training set that a round changes at first.
        judges: further metrics that are measured after every round and decide nothing, by name.
        compile: see `influence`.
        folder: where every round is written when it is finished; the same call again goes on from there.

    Returns:
        A `Rounds`: the removed instances, the final state without them, and a table.

    Raises:
        ValueError: for a step that is no share of the training set, metrics that disagree about the better direction, or a folder of other rounds, and a
            discriminator with both batch normalisation and a gradient penalty.

    Source: after Terashita et al., ICLR 2021, section 5.2 (one round); Engstrom et al., arXiv 2503.13751 (metagradient descent, of one network).

    >>> import gan_influence as gi
    >>> data, gan = gi.data.normal_2d(train=200, valid=50, test=50, seed=0), gi.models.fcgan()
    >>> run = gi.train(gan, data.train, epochs=2, optimizer=gi.SGD(1e-2), seed=0)
    >>> valid, test = (gi.metrics.AverageLogLikelihood(x, gan.sample_latents(50, seed)) for seed, x in enumerate(data[1:], 1))
    >>> found = cleanse_in_rounds(run, valid, test, rounds=3)
    >>> [row["changed"] for row in found.rows], len(found.removed) >= 10
    ([0, 10, 10, 10], True)
    """
    sign, judges, start = direction(metric_valid), judges or {}, run.window(last_epochs, last_steps)
    if direction(metric_test) != sign:
        raise ValueError(f"the same metric judges validation and test data, but of {name_of(metric_valid)} higher is {'better' if sign > 0 else 'worse'}, of "
                         f"{name_of(metric_test)} not: exchange one of them")
    if not 0 < step < 1 or round(step * run.n) < 1:
        raise ValueError(f"a round changes a share of the training set, between 0 and 1, but step={step!r} of {run.n} instances was asked for")
    most = whole("rounds", rounds)
    taken = set(judges) & {"round", "n_removed", "changed", "valid", "test", "better"}
    if taken:
        raise ValueError(f"a judge's name heads a column of the table, but {', '.join(sorted(taken))} stands there already: choose another")
    check_returns(run)
    check_derivative(run)

    @torch.no_grad()
    def measure(one: Trajectory, removed: Tensor, changed: int) -> dict:
        metrics = {"valid": metric_valid, "test": metric_test, **judges}
        finite = one.states[one.steps].is_finite()  # a removal that derailed training is no improvement
        values = {name: value(metric, one.gan, one.final).item() if finite else float("nan") for name, metric in metrics.items()}
        first = {name: values.pop(name) for name in ("valid", "test")}
        return {"round": 0, "n_removed": int(removed.sum()), "changed": changed, **first, "better": True, **values}

    absent = torch.zeros(run.n, dtype=torch.bool)
    record = _Record(folder, run, start, {"step": step, "metric": name_of(metric_valid), "judges": [*judges]})
    rows, size = record.rows, round(step * run.n) if record.size is None else record.size
    absent[record.removed] = True
    here = run.without(absent.nonzero().flatten(), start, compile) if absent.any() else run
    if not rows:
        rows.append(measure(here, absent, 0))
        settled(run, metric_valid, rows[0]["valid"])
        settled(run, metric_test, rows[0]["test"])
    best, promise, finished = [row for row in rows if row["better"]][-1]["valid"], None, f"all {most} rounds were made"
    while len(rows) <= most:
        if promise is None:
            # What a change of each promises: removal of the present, return of the absent.
            scores = harmfulness(pull_back(here, {"": metric_valid}, start, compile, trusted=True)[0], metric_valid)
            promise = torch.where(absent, -scores, scores)
            order = promise.argsort(descending=True, stable=True)
            able = int((promise > 0).sum())
        if not size or not able:
            finished = "not even the change of a single instance improves validation" if able else "no single change promises an improvement"
            break
        size = min(size, able)
        changed = absent.clone()
        changed[order[:size]] ^= True
        there = run.without(changed.nonzero().flatten(), start, compile)
        row = measure(there, changed, size) | {"round": len(rows)}
        row["better"] = bool(sign * row["valid"] > sign * best)
        rows.append(row)
        if row["better"]:
            here, absent, best, promise = there, changed, row["valid"], None
        else:
            size //= 2
        record.write(absent, size)
    return Rounds(absent.nonzero().flatten(), here.final, rows, finished)


class _Record:
    """The rounds so far, in a file that is whole or absent."""

    def __init__(self, folder, run: Trajectory, start: int, settings: dict):
        self.path = folder and Path(folder) / "rounds.json"
        self.rows, self.removed, self.size = [], [], None
        self.made_for = {"data": run.rows.fingerprint, "steps": run.steps, "from": start, **settings,
                         "final": float(torch.stack([p.double().norm() for p in run.final.tensors()]).norm())}
        if self.path and (there := read_json(self.path)):
            if there["made for"] != self.made_for:
                differ = ", ".join(key for key, own in self.made_for.items() if there["made for"].get(key) != own)
                raise ValueError(f"{self.path} holds the rounds of another run or other settings ({differ} differ): give each a folder of its own")
            self.rows, self.removed, self.size = there["rows"], there["removed"], there["size"]

    def write(self, absent: Tensor, size: int) -> None:
        if self.path:
            removed = absent.nonzero().flatten().tolist()
            write_atomically(self.path, json.dumps({"made for": self.made_for, "rows": self.rows, "removed": removed, "size": size}))
