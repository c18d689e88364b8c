"""Whether what `verify` says of a run comes true: its verdict against what cleansing then brings on test data."""

import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from .. import data, models
from ..metrics import AverageLogLikelihood, FrechetDistance, LogInceptionScore
from ..readings.agreement import agreement
from ..readings.cleansing import cleanse
from ..readings.influence import harmfulness, influence, pull_back
from ..readings.judging import direction
from ..readings.retraining import leave_one_out
from ..readings.sets import linear_datamodelling_score
from ..readings.smoothness import smoothness
from ..readings.verification import LEAST, moved, verify
from ..tools.streams import stream
from ..training.making import train
from ..training.optimizers import SGD
from ..training.rows import Rows
from ..training.trajectory import Trajectory
from .protocols import Accuracy, Removal


def verdicts(config: Removal, seeds: Iterable[int], windows: Iterable[int], probes: int = 40) -> Iterator[dict]:
    """For every seed and window, what `verify` says on the validation metric, and what cleansing of the fraction picked on it does on test.

    Yields:
        Rows: activation, seed, last_epochs, the fields of a `Verification`, n_removed (0: no fraction helped), valid_gain and test_gain in
        the metric's units, signed so that positive is better; and seconds of the verification.
    """
    for seed in seeds:
        setup = config.prepare(seed)
        (valid,), (test,) = setup.valid.values(), setup.test.values()
        for k in windows:
            scores = influence(setup.run, valid, last_epochs=k)
            began = time.perf_counter()
            found = dataclasses.asdict(verify(setup.run, valid, scores, last_epochs=k, probes=probes))
            seconds = time.perf_counter() - began
            intervals, _ = found.pop("intervals"), found.pop("rows")
            found |= {f"{name}_{end}": value for name, ends in intervals.items() for end, value in zip(("low", "high"), ends)}
            (picked,) = cleanse(setup.run, {"influence": harmfulness(scores, valid)}, config.fractions, valid, test, last_epochs=k).picked
            gains = {f"{part}_gain": direction(valid) * (picked[f"{part}_after"] - picked[f"{part}_before"]) for part in ("valid", "test")}
            yield {"activation": config.activation, "seed": seed, "last_epochs": k, **found, "n_removed": picked["n_removed"], **gains,
                   "seconds": seconds}


def set_scores(config: Removal, seeds: Iterable[int], windows: Iterable[int], fraction: float = 0.01, subsets: int = 32) -> Iterator[dict]:
    """For every seed and window, the linear datamodelling score on the validation metric, the standard deviation of the subsets' effects beside
    the noise floor of `verify`, and the run's smoothness."""
    for seed in seeds:
        setup = config.prepare(seed)
        (valid,) = setup.valid.values()
        for k in windows:
            scores = influence(setup.run, valid, last_epochs=k)
            found = linear_datamodelling_score(setup.run, valid, scores, k, fraction, subsets)
            yield {"activation": config.activation, "seed": seed, "last_epochs": k, "fraction": fraction, "spearman": found.spearman, "low": found.low,
                   "high": found.high, "effects": float(found.true.std()), "noise_floor": verify(setup.run, valid, scores, k, LEAST).noise_floor,
                   "smoothness": smoothness(setup.run, k)}


def kink_shares(seeds: Iterable[int], windows: Iterable[int] = (1, 2, 5), shares: Iterable[float] = (0.0, 0.5, 1.0), instances: int = 100,
                n: int = 2_000, epochs: int = 30) -> Iterator[dict]:
    """For every seed, window and share of a kink's jump that is given back, agreement of the influence with leave-one-out: recorded as kinks_2d."""
    for seed in seeds:
        parts, gan = data.normal_2d(n, 1_000, 10, seed=seed), models.fcgan(seed=seed)
        run = train(gan, parts.train, epochs, 100, SGD(1e-2), "simultaneous", seed=seed)
        metric = AverageLogLikelihood(parts.valid, gan.sample_latents(1_000, seed=seed))
        for k in windows:
            truth = leave_one_out(run, metric, range(instances), last_epochs=k)
            for share in shares:
                found = agreement(influence(run, metric, last_epochs=k, kinks=share)[:instances], truth)
                yield {"seed": seed, "last_epochs": k, "kinks": share, "kendall_tau": found.kendall_tau, "slope": found.slope}


def rounding(config: Accuracy, seed: int, windows: Iterable[int] = (1, 5, 10), instances: int = 20, repeated: int = 8) -> Iterator[dict]:
    """On images, agreement and noise floor by window: of a run in float32, and of its last epochs in float64 from where it had come to.

    Recorded as noise_mnist, with a run that was trained anew in float64 beside. The floor is the root mean square by which leave-one-out
    differences change when the window's start moves by one rounding unit, `effects` their standard deviation, `tau_ceiling` Kendall's tau of both.
    """
    parts = data.mnist(train=config.n, valid=config.held_out, test=config.held_out, seed=seed)
    judge = models.train_classifier(parts.valid, parts.labels.valid, test=(parts.test, parts.labels.test))
    gan, exact = (models.dcgan(seed=seed, width=config.width, dtype=dtype) for dtype in (torch.float32, torch.float64))
    run = train(gan, parts.train, config.epochs, config.batch_size, SGD(config.learning_rate), config.order, seed)
    for k in windows:
        start, z = run.window(k), gan.sample_latents(config.latents, seed, 1)
        double = Trajectory(run.dynamics.twin(exact), Rows(parts.train.double(), exact.device, exact.dtype), run.schedule, run.stride, {})
        double = double.starting(start, run.state(start).map(Tensor.double))
        some = stream("chosen instances", seed).choice(np.unique(run.draws(start)[0]), instances, replace=False)
        for one, network in ((run, judge), (double, copy.deepcopy(judge).double())):
            x, latents = parts.valid.to(one.rows.dtype), z.to(one.rows.dtype)
            metrics = {metric.name: metric for metric in (FrechetDistance(network.features, x, latents), LogInceptionScore(network, latents))}
            estimates, window = dict(zip(metrics, pull_back(one, metrics, start))), {"last_steps": run.steps - start}
            truths = leave_one_out(one, metrics, some, **window)
            again = leave_one_out(moved(one, start, seed), metrics, some[:repeated], **window)
            for name, truth in truths.items():
                found, apart = agreement(estimates[name][some], truth), again[name] - truth[:repeated]
                yield {"seed": seed, "metric": name, "dtype": "float32" if one is run else "float64 from float32's start", "last_epochs": k,
                       "kendall_tau": found.kendall_tau, "slope": found.slope, "effects": float(truth.std()),
                       "tau_ceiling": float(stats.kendalltau(again[name], truth[:repeated]).statistic), "noise_floor": float(apart.square().mean().sqrt())}
