"""Whether scores can be acted on: some instances left out for real, where decisions are made and at random, and how far rounding alone would go."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..tools.checks import whole
from ..tools.streams import stream
from ..training.trajectory import Trajectory
from .agreement import agreement
from .judging import Metric, direction, instance_set, metrics_of, name_of, value
from .retraining import leave_one_out

PRECISION = 0.8  #: scores are trusted where at least this share of the predicted most harmful is harmful, alone and beyond the noise floor,
TAU = 0.0  #: and where the interval of Kendall's tau over random instances lies above this
CONFIDENCE = 0.95  #: of all intervals
RESAMPLES = 1_000  #: of a bootstrap
LEAST = 8  #: probes


@dataclass(frozen=True)
class Verification:
    """What `verify` found. Kendall's tau, slope and Pearson's correlation are over the random instances; see `agreement` for what they are."""

    kendall_tau: float
    slope: float
    pearson: float
    precision_worst: float  #: share of the predicted most harmful whose removal, each alone, improves the metric by more than the noise floor
    precision_best: float  #: share of the predicted most helpful whose removal, each alone, worsens it by more than that; NaN where there is none
    intervals: dict[str, tuple[float, float]]  #: of each of the five above: bootstrap percentiles, Clopper and Pearson's exact ones of the shares
    noise_floor: float  #: metric's units: root mean square by which leave-one-out differences change when the start moves by one rounding unit; or
    #: the rounding unit of the metric's own value, where that is larger
    tau_ceiling: float  #: Kendall's tau of the one set of them with the other: about the most that any estimate can reach
    trustworthy: bool  #: precision_worst is at least PRECISION, and kendall_tau's interval lies above TAU
    verdict: str  #: a sentence with the number that decided
    rows: list[dict]  #: one per probe: instance, group (random, worst, best); influence, leave_one_out, repeated (or NaN), in the metric's units

    def __str__(self) -> str:
        lines = [f"{name} {getattr(self, name):.3f} ({low:.3f} to {high:.3f})" for name, (low, high) in self.intervals.items()]
        return "\n".join([*lines, f"noise_floor {self.noise_floor:.2g}  tau_ceiling {self.tau_ceiling:.3f}", self.verdict])

    def frame(self):
        """The probes as a pandas DataFrame."""
        import pandas as pd
        return pd.DataFrame(self.rows)


def verify(run: Trajectory, metric: Metric, scores: Tensor, last_epochs: int | None = None, probes: int = 40, last_steps: int | None = None,
           remove=(), seed: int = 0) -> Verification:
    """Leave out the predicted worst, the predicted best and a random sample, for real, and say whether the scores can be acted on.

    Decisions are made at the ends of a ranking, where agreement over random instances says little. So half of the probes are drawn at random, a
    quarter are predicted to be the most harmful and a quarter the most helpful, and all are left out, one at a time, together. A quarter, of
    the random ones, are left out once more in a run whose start was moved by one rounding unit: what differs then, no estimate can predict.

    Args:
        run: a recorded run.
        metric: what the scores predict: a callable metric(gan, state) -> scalar that says by higher_is_better which way is better.
        scores: (n,) influences, as `influence` returns them: metric's units, positive where removal raises the metric. Not `harmfulness`.
        last_epochs, last_steps: the scores' window, in epochs or in steps; None means the whole run.
        probes: instances that are left out, 8 or more; fewer where the window draws fewer. Those that it never draws are not probed.
        remove: instances that are absent already, as the scores were asked for; they are not probed.
        seed: draws the random sample, the moved start and the bootstrap.

    Returns:
        A `Verification`: print it, or read `trustworthy` and `verdict`.

    Raises:
        TypeError: for scores that are not one tensor, or a metric that does not say which way is better.
        ValueError: for scores that do not fit the run or are not finite, fewer than 8 probes, or a window that draws fewer than 8 instances.

    Source: leave-one-out as Terashita et al., ICLR 2021, section 5.1; Clopper and Pearson's interval from scipy.

    >>> import gan_influence as gi
    >>> data, gan = gi.data.normal_2d(train=200, valid=50, test=50, seed=0), gi.models.fcgan(activation=torch.nn.Tanh)
    >>> run = gi.train(gan, data.train, epochs=2, optimizer=gi.SGD(1e-2), seed=0)
    >>> metric = gi.metrics.AverageLogLikelihood(data.valid, gan.sample_latents(50, seed=1))
    >>> print(gi.verify(run, metric, gi.influence(run, metric, last_epochs=1), last_epochs=1).verdict)
    act on these scores: alone, removing 10 of the 10 predicted most harmful improves average log-likelihood, 80 % were asked for
    """
    from scipy import stats
    metric, scores = one_of_each(run, metric, scores)
    sign, name, probes = direction(metric), name_of(metric), whole("probes", probes, LEAST)
    start, absent = run.window(last_epochs, last_steps), instance_set(run, remove)
    if len(absent):
        run = run.without(absent, start)
    drawn = np.setdiff1d(run.draws(start)[0], absent.numpy())
    if len(drawn) < LEAST:
        raise ValueError(f"verification leaves out {LEAST} instances or more, but the window draws {len(drawn)}: take a longer one (last_epochs)")
    probes = min(probes, len(drawn))
    harm, end = sign * scores.numpy()[drawn], probes // 4
    ranked = drawn[np.argsort(-harm, kind="stable")]
    worst, best = ranked[:min(end, (harm > 0).sum())], ranked[::-1][:min(end, (harm < 0).sum())]
    groups = {"random": stream("verification", seed, 0).choice(drawn, probes - 2 * end, replace=False), "worst": worst, "best": best}

    left_out = np.unique(np.concatenate([*groups.values()]))
    window = {"last_epochs": None, "last_steps": run.steps - start}
    truth = dict(zip(left_out.tolist(), leave_one_out(run, metric, left_out, **window).tolist()))
    repeated = groups["random"][:end]
    again = dict(zip(repeated.tolist(), leave_one_out(moved(run, start, seed), metric, repeated, **window).tolist()))
    rows = [{"instance": j, "group": group, "influence": float(scores[j]), "leave_one_out": truth[j], "repeated": again.get(j, np.nan)}
            for group, instances in groups.items() for j in instances.tolist()]
    if not np.isfinite([*truth.values(), *again.values()]).all():
        raise FloatingPointError(f"verification assumes that training stays finite without a single instance, but {name} did not: lower the "
                                 "learning rate, or verify over a shorter window (last_epochs)")

    first, second = np.array([truth[j] for j in again]), np.array([*again.values()])
    trained = value(metric, run.gan, run.final)
    resolution = torch.finfo(trained.dtype).eps * abs(trained.item()) if trained.is_floating_point() else 0.0
    floor = max(float(np.sqrt(np.mean((first - second) ** 2))), resolution)
    hurt = [sum(way * sign * truth[j] > floor for j in group.tolist()) for way, group in ((1, worst), (-1, best))]
    shares = [stats.binomtest(int(k), len(group)) if len(group) else None for k, group in zip(hurt, (worst, best))]
    estimate, true = (np.array([values[j] for j in groups["random"].tolist()]) for values in (scores.tolist(), truth))
    found = agreement(estimate, true)
    measures = {"kendall_tau": lambda a, b: stats.kendalltau(a, b).statistic, "slope": _slope,
                "pearson": lambda a, b: _slope(a, b) * b.std() / a.std()}
    intervals = {measure: percentiles(function, estimate, true, seed) for measure, function in measures.items()}
    intervals |= {f"precision_{group}": tuple(map(float, share.proportion_ci(CONFIDENCE, "exact"))) if share else (np.nan, np.nan)
                  for group, share in zip(("worst", "best"), shares)}
    precision = [float(share.statistic) if share else np.nan for share in shares]
    ceiling = float(stats.kendalltau(first, second).statistic)
    low, high = intervals["kendall_tau"]

    asked = (f"alone, removing {hurt[0]} of the {len(worst)} predicted most harmful improves {name}"
             f"{f' by more than the {floor:.2g} of rounding' if floor > 1e-3 * np.abs(true).max() else ''}, {100 * PRECISION:g} % were asked for")
    against = (f"they predict 0 of {len(drawn)} instances to be harmful to {name}" if not len(worst) else asked if precision[0] < PRECISION else
               f"over {len(true)} random instances Kendall's tau is {found.kendall_tau:.2f}, and its interval, {low:.2f} to {high:.2f}, does not lie "
               f"above {TAU:g}" if not low > TAU else "")
    if against and ceiling < 0.5:
        against += f"; a repetition that differs by rounding alone agrees with tau {ceiling:.2f} only"
    verdict = f"do not act on these scores: {against}" if against else f"act on these scores: {asked}"
    return Verification(found.kendall_tau, found.slope, found.pearson, *precision, intervals, floor, ceiling, not against, verdict, rows)


def one_of_each(run: Trajectory, metric, scores) -> tuple[Metric, Tensor]:
    """A metric and all instances' scores, (n,) float64 on the CPU; refused where there are several, or where scores do not fit the run."""
    metrics = metrics_of(metric)
    if isinstance(metric, Mapping) or not isinstance(scores, (Tensor, np.ndarray)):
        raise TypeError("scores are judged by one metric at a time, a tensor as gi.influence(run, metric) returns it, but a "
                        f"{f'dict of {len(metrics)} metrics' if isinstance(metric, Mapping) else f'{type(scores).__name__} of scores'} was given: go "
                        "through a dict one by one")
    scores = torch.as_tensor(scores).detach().cpu().to(torch.float64)
    if scores.shape != (run.n,):
        raise ValueError(f"scores hold one number for each of the run's {run.n} training instances, but their shape is {tuple(scores.shape)}: "
                         "pass what gi.influence(run, metric) returned")
    if bad := int((~scores.isfinite()).sum()):
        raise ValueError(f"scores are finite numbers, but {bad} of {run.n} are NaN or infinite: compute them over a shorter window")
    return metric, scores


def percentiles(function: Callable, estimate: np.ndarray, truth: np.ndarray, seed: int) -> tuple[float, float]:
    """A bootstrap interval of function(estimate, truth), resampled in pairs; resamples of which it is undefined are left out."""
    random = stream("verification", seed, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = [function(estimate[which], truth[which]) for which in random.integers(len(truth), size=(RESAMPLES, len(truth)))]
    found = np.array(found)[np.isfinite(found)]
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if len(found) else (np.nan, np.nan)
    return float(low), float(high)


def moved(run: Trajectory, start: int, seed: int) -> Trajectory:
    """The same run from a start where each parameter is one rounding unit larger or smaller, by chance: what was, but for rounding."""
    state, random = run.state(start), stream("verification", seed, 1)

    def move(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        signs = {name: torch.from_numpy(random.choice([-1.0, 1.0], size=tuple(p.shape))).to(p) for name, p in parameters.items()}
        return {name: p * (1 + torch.finfo(p.dtype).eps * signs[name]) for name, p in parameters.items()}

    return run.starting(start, state._replace(generator=move(state.generator), discriminator=move(state.discriminator)))


def _slope(estimate: np.ndarray, truth: np.ndarray) -> float:
    centred = truth - truth.mean()
    return centred @ estimate / (centred @ centred)
