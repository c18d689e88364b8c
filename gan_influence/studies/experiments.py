"""The published experiments, as notebooks and the command line run them."""

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .. import data, models
from ..data import images_at_hand  # noqa: F401, a name for notebooks, as are those below
from ..game.state import State
from ..metrics import AverageLogLikelihood, DiscriminatorLoss, FrechetDistance, InceptionScore, KernelDistance, LogInceptionScore, SlicedWasserstein, recall
from ..readings.agreement import agreement
from ..readings.cleansing import Cleansing, cleanse, isolation_forest, random_scores
from ..readings.influence import harmfulness, influence
from ..readings.judging import direction
from ..readings.retraining import fractional_leave_one_out, leave_one_out
from ..readings.rounds import cleanse_in_rounds
from ..readings.verification import verify
from ..tools.devices import check_device, device_name  # noqa: F401
from ..tools.files import write_atomically
from ..tools.results import save_results  # noqa: F401
from ..tools.streams import stream
from ..training.making import train
from ..training.optimizers import SGD
from ..training.trajectory import Trajectory
from . import adapted, autophagy, consumption, decentralised, minorities, recording  # noqa: F401, those but the last give their protocols prepare and measure
from .protocols import ACCURACY, AGREEMENT, EXPERIMENTS, FOR_A_GPU, REMOVAL, ROUNDS, Accuracy, InRounds, Protocol, Removal  # noqa: F401
from .published import PUBLISHED_ACCURACY, PUBLISHED_REMOVAL  # noqa: F401
from .recording import RECORDED, finished, gather, record, recorded, recorded_pieces, recorded_tensors  # noqa: F401

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}
EXTREMES = 36  #: instances at either end of a ranking that a recorded removal keeps
NEIGHBOURS = 3  #: of precision and recall (Kynkäänniemi et al. 2019)
PROBES = 40  #: instances that are left out alone to see whether a run's influences can be trusted


class Setup(NamedTuple):
    """A trained GAN, and what it is measured with."""

    run: Trajectory
    valid: dict[str, object]  #: metrics on validation data, by name
    test: dict[str, object]  #: the same on test data and other latents
    data: data.Split | data.LabelledSplit
    classifier: nn.Module | None  #: of images: its features and probabilities define the metrics
    folder: Path | None  #: where the run is kept


def prepare(config: Protocol, seed: int, device: str = "cpu", folder: str | os.PathLike | None = None) -> Setup:
    """Train the experiment's GAN, or read it from a folder where it was kept before (ValueError where that holds another); and build its metrics.

    >>> setup = Accuracy(n=200, epochs=1, held_out=20, latents=20).prepare(seed=0)
    >>> setup.run.steps, list(setup.valid)
    (2, ['average log-likelihood'])
    """
    check_device(device)
    if folder := folder and Path(folder):
        recording.claim(folder, config, seed)
    if config.data == "normal_2d":
        make, gan, classifier = data.normal_2d, models.fcgan(seed=seed, activation=ACTIVATIONS[config.activation]), None
    else:
        make, gan = {"mnist": data.mnist, "digits": data.digits}[config.data], models.dcgan(seed=seed, width=config.width)
    gan.to(device)
    parts = make(train=config.n, valid=config.held_out, test=config.held_out, seed=seed)
    train_x, valid_x, test_x = (part.to(device) for part in parts[:3])
    if config.data != "normal_2d":
        steps = 1_500 if config.n >= 1_000 else 500  # a small GAN has a judge that costs less than it
        classifier = models.train_classifier(valid_x, parts.labels.valid, steps=steps, test=(test_x, parts.labels.test), cache=folder and folder / "classifier")
    if folder and (folder / "trajectory.json").exists():
        run = Trajectory.load(folder, gan, train_x, SGD(config.learning_rate))
    else:
        run = train(gan, train_x, config.epochs, config.batch_size, SGD(config.learning_rate), config.order, seed)
        if folder:
            run.save(folder)

    def metrics(x: Tensor, latents: Tensor) -> dict:
        if classifier is None:
            return {AverageLogLikelihood.name: AverageLogLikelihood(x, latents)}
        score = InceptionScore if isinstance(config, Removal) else LogInceptionScore
        return {FrechetDistance.name: FrechetDistance(classifier.features, x, latents), score.name: score(classifier, latents)}

    valid, test = (metrics(x, gan.sample_latents(config.latents, seed, part)) for part, x in enumerate((valid_x, test_x), 1))
    return Setup(run, valid, test, parts, classifier, folder)


def measure(config: Protocol, setup: Setup, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict[str, Tensor]]:
    """One piece of the experiment; see `record`."""
    compile = compile and setup.classifier is None  # convolutions gain nothing
    if piece == "fractions":
        return {"fractions": kink_experiment(config, seed, setup=setup)}, {}
    if isinstance(config, Accuracy):
        summary, scores = accuracy_experiment(config, seed, compile=compile, setup=setup, windows=[int(piece.removeprefix("k="))])
        return {"summary": summary, "scores": scores}, {}
    if isinstance(config, InRounds):
        k, _, width = piece.removeprefix("k=").partition(" bandwidth ")
        return rounds_experiment(config, setup, seed, int(k), float(width or 1), compile), {}
    by_method = removal_scores(config, setup, seed, compile)
    if piece == AGREEMENT:
        return {AGREEMENT: removal_agreement(config, setup, by_method, seed)}, {}
    scores = by_method[piece]
    result, ranked = removal_experiment(config, setup, {piece: scores}), scores.argsort(descending=True)
    extremes = [{"seed": seed, "method": piece, "end": end, "rank": rank, "instance": int(j), "score": float(scores[j])}
                for end, which in (("most harmful", ranked[:EXTREMES]), ("most helpful", ranked.flip(0)[:EXTREMES])) for rank, j in enumerate(which)]
    states = {"before": setup.run.final, **{f"{piece} {row['metric']}": result.states[piece, row["n_removed"]] for row in result.picked}}
    tensors = {f"{label}|{name}": tensor for label, state in states.items() for name, tensor in state.generator.items()}
    accuracy = {"classifier_accuracy": setup.classifier.accuracy["test"]} if setup.classifier else {}
    return {"summary": [{"seed": seed, **row, **accuracy} for row in result.rows], "picked": [{"seed": seed, **row} for row in result.picked],
            "extremes": extremes}, tensors


Protocol.prepare, Protocol.measure = prepare, measure  # here, because plain values are known without torch


def chosen_instances(config: Protocol, seed: int) -> np.ndarray:
    """Which instances an experiment leaves out, one at a time: a random draw without replacement, as many as Experiment 1 does."""
    return stream("chosen instances", seed).choice(config.n, config.instances, replace=False)


def accuracy_experiment(config: Accuracy, seed: int, device: str = "cpu", compile: bool = False, setup: Setup | None = None,
                        windows: Iterable[int] | None = None) -> tuple[list[dict], list[dict]]:
    """Run Experiment 1 for one seed, or only some of its windows.

    Args:
        compile: compile first, worth it at the published size of 2D-normal.
        setup: what `config.prepare(seed, device)` returned, if it is at hand.

    Returns:
        One row per window and metric (k, agreement, seconds for all metrics), and one row per window, metric and instance
        (influence, leave-one-out) in the metric's units.
    """
    setup = setup or config.prepare(seed, device)
    chosen, summary, scores = chosen_instances(config, seed), [], []
    for k in windows or config.windows:
        began = time.perf_counter()
        estimates = influence(setup.run, setup.valid, last_epochs=k, compile=compile)
        estimated = time.perf_counter()
        truths = leave_one_out(setup.run, setup.valid, chosen, last_epochs=k, compile=compile)
        seconds = {"seconds_influence": estimated - began, "seconds_leave_one_out": time.perf_counter() - estimated}
        for name in setup.valid:
            estimate, truth, key = estimates[name][chosen], truths[name], {"seed": seed, "metric": name, "last_epochs": k}
            agreed = asdict(agreement(estimate, truth, k=10 if config.instances <= 1_000 else 100))
            summary.append({**key, **{field: value for field, value in agreed.items() if field not in ("n", "k")}, **seconds})
            scores += [{**key, "instance": int(j), "influence": float(a), "leave_one_out": float(b)} for j, a, b in zip(chosen, estimate, truth)]
    return summary, scores


def kink_experiment(config: Accuracy, seed: int, device: str = "cpu", last_epochs: int = 1, fractions: Iterable[float] = (1, 0.1, 0.01, 0.001),
                    setup: Setup | None = None) -> list[dict]:
    """Rank agreement of the influence with the removal of ever smaller fractions of each instance, one row per fraction and metric.

    It separates two suspects. A wrong derivative would disagree at every fraction; kinks of the activations, which a whole
    instance's removal crosses, stop mattering for small ones.
    """
    setup, chosen, rows = setup or config.prepare(seed, device), chosen_instances(config, seed), []
    estimates = influence(setup.run, setup.valid, last_epochs=last_epochs)
    for name, metric in setup.valid.items():
        for fraction in fractions:
            found = agreement(estimates[name][chosen], fractional_leave_one_out(setup.run, metric, chosen, fraction, last_epochs))
            rows.append({"seed": seed, "metric": name, "last_epochs": last_epochs, "fraction": float(fraction),
                         "kendall_tau": found.kendall_tau, "slope": found.slope})
    return rows


def removal_scores(config: Removal, setup: Setup, seed: int, compile: bool = False) -> dict[str, Tensor]:
    """Every method's harmfulness of all training instances, larger is removed first: {method: (n,) float64 on the CPU}, as in `config.methods`.

    They are kept in the setup's folder, if it has one, for the same protocol and seed.
    """
    kept, mark = setup.folder and setup.folder / "scores.safetensors", {"made for": json.dumps(recording.made_for(config, seed))}
    if kept:
        with suppress(FileNotFoundError, SafetensorError), safe_open(kept, "pt") as file:
            if file.metadata() == mark:
                return {method: file.get_tensor(method) for method in config.methods}
    run, latents = setup.run, next(iter(setup.valid.values())).latents
    metrics = {f"influence on {name}": metric for name, metric in setup.valid.items()}
    metrics["discriminator loss"] = DiscriminatorLoss(setup.data.valid.to(run.x.device), latents)
    scores = {name: harmfulness(values, metrics[name]) for name, values in influence(run, metrics, config.last_epochs, compile=compile).items()}
    scores |= {"isolation forest": isolation_forest(run.x, seed, setup.classifier and setup.classifier.features), "random": random_scores(run.n, seed)}
    scores = {method: scores[method] for method in config.methods}
    if kept:
        write_atomically(kept, save(scores, mark))
    return scores


def removal_agreement(config: Removal, setup: Setup, scores: dict[str, Tensor], seed: int) -> list[dict]:
    """What `gi.verify` says of the influences in `removal_scores`' scores, one row per metric: the check to make before a ranking is acted upon."""
    rows = []
    for name, metric in setup.valid.items():
        found = verify(setup.run, metric, harmfulness(scores[f"influence on {name}"], metric), config.last_epochs, PROBES, seed=seed)
        rows.append({"seed": seed, "metric": name, "instances": sum(row["group"] == "random" for row in found.rows),
                     **{field: getattr(found, field) for field in ("kendall_tau", "pearson", "slope", "precision_worst", "noise_floor")},
                     "trustworthy": int(found.trustworthy)})
    return rows


def removal_experiment(config: Removal, setup: Setup, scores: dict[str, Tensor]) -> Cleansing:
    """Run the last epochs again without each method's most harmful instances, at every fraction of the protocol."""
    return cleanse(setup.run, scores, config.fractions, setup.valid, setup.test, config.last_epochs)


def rounds_experiment(config: InRounds, setup: Setup, seed: int, last_epochs: int, bandwidth: float = 1.0, compile: bool = False) -> dict[str, list[dict]]:
    """One round and many from one run, both picked on validation data.

    Returns:
        {"summary": a row per method and judge, (before, after) in the judge's units; "rounds": a row per round}. The judges "validation" and
        "test" are the metric that is pulled back; the others are on test data, and steer nothing.
    """
    run, (valid, test) = setup.run, (next(iter(metrics.values())) for metrics in (setup.valid, setup.test))
    test_x, latents = setup.data.test.to(run.x.device), test.latents
    if setup.classifier is None:
        judges = {f"bandwidth {width:g}": AverageLogLikelihood(test_x, latents, width) for width in config.bandwidths if width != bandwidth}
        judges |= {SlicedWasserstein.name: SlicedWasserstein(test_x, latents)}
        valid, test = (AverageLogLikelihood(metric.x, metric.latents, bandwidth) for metric in (valid, test))
    else:
        features = torch.no_grad()(setup.classifier.features)
        real, made = features(test_x[:len(latents)]), lambda gan, state: features(gan.generate(state, latents))  # as many of either
        judges = {InceptionScore.name: setup.test[InceptionScore.name], KernelDistance.name: KernelDistance(setup.classifier.features, test_x, latents),
                  "precision": lambda *of: recall(made(*of), real, NEIGHBOURS), "recall": lambda *of: recall(real, made(*of), NEIGHBOURS)}
    key = {"seed": seed, "metric": valid.name + (f" bandwidth {bandwidth:g}" if bandwidth != 1 else ""), "last_epochs": last_epochs}
    scores = harmfulness(influence(run, valid, last_epochs, compile=compile), valid)
    shot = cleanse(run, {"one round": scores}, config.fractions, valid, test, last_epochs, compile=compile)
    found = cleanse_in_rounds(run, valid, test, last_epochs, config.most, config.step, compile=compile)
    picked, best, summary = shot.picked[0], [row for row in found.rows if row["better"]][-1], []
    outcomes = {"one round": (picked["n_removed"], (picked["valid_after"], picked["test_after"]), next(iter(shot.states.values()))),
                "in rounds": (best["n_removed"], (best["valid"], best["test"]), found.state)}

    @torch.no_grad()
    def judged(state: State, known: tuple[float, float]) -> dict[str, float]:
        return {"validation": known[0], "test": known[1], **{name: float(judge(run.gan, state)) for name, judge in judges.items()}}

    before = judged(run.final, (found.rows[0]["valid"], found.rows[0]["test"]))
    for method, (n, known, state) in outcomes.items():
        after = judged(state, known)
        summary += [{**key, "method": method, "judge": judge, "n_removed": n, "before": before[judge], "after": after[judge]} for judge in after]
    return {"summary": summary, "rounds": [{**key, **row, "better": int(row["better"])} for row in found.rows]}


def over_seeds(rows):
    """Mean change on test data over seeds, and whether it could be chance, from the DataFrame of a recorded removal's summary.

    Returns:
        A DataFrame indexed by (metric, method, n_removed): seeds, mean, std, p_t (scipy's one-sample t-test of no change, two-sided, as
        published: ICLR 2021, section 5.2) and p_wilcoxon (its signed ranks, two-sided); p is NaN for fewer than two seeds.
    """
    import pandas as pd
    from scipy import stats
    summary, keys = {}, ["metric", "method", "n_removed"]
    for key, part in rows.groupby(keys, sort=False):
        change = part.test_after - part.test_before
        p_t, p_wilcoxon = (stats.ttest_1samp(change, 0).pvalue, stats.wilcoxon(change).pvalue) if len(part) > 1 else (np.nan, np.nan)
        summary[key] = {"seeds": len(change), "mean": change.mean(), "std": change.std(), "p_t": p_t, "p_wilcoxon": p_wilcoxon}
    return pd.DataFrame.from_dict(summary, orient="index").rename_axis(keys).astype({"seeds": int}).sort_index()


def advantage(rows, metric: str, method: str):
    """By how much a ranking improves a metric more than each other one does at the same number removed, from the rows that `over_seeds` takes.

    Returns:
        A DataFrame indexed by n_removed: (other, "gain") is the mean difference of the changes on test data, over the seeds that have both,
        positive where `method` is better; (other, "p") of a paired t-test, two-sided, NaN for fewer than two seeds.
    """
    import pandas as pd
    from scipy import stats
    better = {one.name: direction(one) for one in (AverageLogLikelihood, FrechetDistance, InceptionScore)}[metric]
    rows = rows[rows.metric == metric]
    changes = rows.assign(change=better * (rows.test_after - rows.test_before)).pivot(index=["n_removed", "seed"], columns="method", values="change")
    table = {}
    for other in rows.method[rows.method != method].unique():
        gains = (changes[method] - changes[other]).dropna().groupby("n_removed")
        table[other, "gain"] = gains.mean()
        table[other, "p"] = gains.agg(lambda gain: stats.ttest_1samp(gain, 0).pvalue if len(gain) > 1 else np.nan)
    return pd.DataFrame(table)
