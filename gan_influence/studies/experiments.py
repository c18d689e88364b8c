"""The published protocols as plain values, and the functions that notebooks and the command line run them with."""

import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import data, models
from ..game.state import unstack
from ..metrics import AverageLogLikelihood, DiscriminatorLoss, FrechetDistance, InceptionScore, LogInceptionScore
from ..readings.agreement import agreement
from ..readings.cleansing import Cleansing, cleanse, isolation_forest, random_scores
from ..readings.influence import harmfulness, influence
from ..readings.retraining import counterfactuals, leave_one_out
from ..tools.streams import stream
from ..training.optimizers import SGD
from ..training.trajectory import Trajectory, train
from .published import PUBLISHED_ACCURACY, PUBLISHED_REMOVAL
from .recording import RECORDED, check_device, device_name, finished, gather, record, recorded, recorded_tensors, save_results

__all__ = ["ACCURACY", "Accuracy", "EXPERIMENTS", "PUBLISHED_ACCURACY", "PUBLISHED_REMOVAL", "RECORDED", "REMOVAL", "Removal", "Setup",
           "accuracy_experiment", "advantage", "check_device", "chosen_instances", "device_name", "finished", "fractional_leave_one_out", "gather",
           "images_at_hand", "kink_experiment", "over_seeds", "record", "recorded", "recorded_tensors", "removal_agreement", "removal_experiment",
           "removal_scores", "save_results"]

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}
EXTREMES = 36  #: instances at either end of a ranking that a recorded removal keeps
CHECKED = 20  #: instances that are left out alone to see whether a run's influences can be trusted
AGREEMENT = "agreement"  #: the piece of a removal experiment that does so


class Setup(NamedTuple):
    """A trained GAN, and what it is measured with."""

    run: Trajectory
    valid: dict[str, object]  #: metrics on validation data, by name
    test: dict[str, object]  #: the same on test data and other latents
    data: data.Split | data.LabelledSplit
    classifier: nn.Module | None  #: of images: its features and probabilities define the metrics
    folder: Path | None  #: where the run is kept


@dataclass(frozen=True)
class Protocol:
    """What both experiments share: which GAN is trained on what, and how much data measures it."""

    data: str = "normal_2d"  #: or "mnist", or "digits"
    n: int = 10_000  #: training instances
    epochs: int = 50
    batch_size: int = 100
    learning_rate: float = 1e-3
    order: str = "simultaneous"
    activation: str = "relu"  #: of the networks on 2D-normal
    width: int = 32  #: of the networks on images
    held_out: int = 1_000  #: validation instances, and as many test instances
    latents: int = 1_000  #: generated instances that the metrics see

    def prepare(self, seed: int, device: str = "cpu", folder: str | os.PathLike | None = None) -> Setup:
        """Train the experiment's GAN, or read it from a folder where it was kept before; and build its metrics.

        >>> setup = Accuracy(n=200, epochs=1, held_out=20, latents=20).prepare(seed=0)
        >>> setup.run.steps, list(setup.valid)
        (2, ['average log-likelihood'])
        """
        check_device(device)
        if self.data == "normal_2d":
            parts, classifier = data.normal_2d(self.n, self.held_out, self.held_out, seed=seed), None
            gan = models.fcgan(seed=seed, activation=ACTIVATIONS[self.activation])
        else:
            parts = {"mnist": data.mnist, "digits": data.digits}[self.data](train=self.n, valid=self.held_out, test=self.held_out, seed=seed)
            gan = models.dcgan(seed=seed, width=self.width)
        train_x, valid_x, test_x = (part.to(device) for part in parts[:3])
        gan.generator.to(device), gan.discriminator.to(device)
        if self.data != "normal_2d":
            classifier = models.train_classifier(valid_x, parts.labels.valid, test=(test_x, parts.labels.test), cache=folder and Path(folder) / "classifier")
        if folder and (Path(folder) / "trajectory.json").exists():
            run = Trajectory.load(folder, gan, train_x, SGD(self.learning_rate))
        else:
            run = train(gan, train_x, self.epochs, self.batch_size, SGD(self.learning_rate), self.order, seed)
            if folder:
                run.save(folder)
        valid, test = (self._metrics(x, gan.sample_latents(self.latents, seed, part), classifier) for part, x in enumerate((valid_x, test_x), 1))
        return Setup(run, valid, test, parts, classifier, folder and Path(folder))

    def _metrics(self, x: Tensor, latents: Tensor, classifier: nn.Module | None) -> dict:
        if classifier is None:
            return {AverageLogLikelihood.name: AverageLogLikelihood(x, latents)}
        return {FrechetDistance.name: FrechetDistance(classifier.features, x, latents), self._score.name: self._score(classifier, latents)}


@dataclass(frozen=True)
class Accuracy(Protocol):
    """Experiment 1: does the influence rank instances as leave-one-out retraining does?

    The defaults are the published protocol on 2D-normal: Terashita et al., ICLR 2021, section 5.1.
    """

    instances: int = 200  #: how many are left out, one at a time
    windows: tuple[int, ...] = (1, 5, 10, 20, 50)  #: k, in epochs

    _score = LogInceptionScore

    @property
    def pieces(self) -> list[str]:
        """What `record` runs one at a time: the windows; and, of a sample and for networks with kinks, smaller removals."""
        return [f"k={k}" for k in self.windows] + (["fractions"] if self.data == "normal_2d" and self.instances < self.n else [])

    def measure(self, setup: Setup, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict[str, Tensor]]:
        """One piece of the experiment; see `record`."""
        if piece == "fractions":
            return {"fractions": kink_experiment(self, seed, setup=setup)}, {}
        summary, scores = accuracy_experiment(self, seed, compile=compile and setup.classifier is None, setup=setup, windows=[int(piece.removeprefix("k="))])
        return {"summary": summary, "scores": scores}, {}


@dataclass(frozen=True)
class Removal(Protocol):
    """Experiment 2: is the GAN better when the last epoch is run again without the most harmful instances?

    The defaults are the published protocol on 2D-normal: Terashita et al., ICLR 2021, section 5.2.
    """

    n: int = 50_000
    epochs: int = 70
    held_out: int = 10_000
    latents: int = 10_000
    fractions: tuple[float, ...] = (.01, .02, .05, .1, .15, .2, .25, .3, .35, .4)  #: of the training set, removed
    last_epochs: int = 1  #: run again without them

    _score = InceptionScore

    @property
    def methods(self) -> list[str]:
        """The rankings that are compared, in order of value."""
        names = [AverageLogLikelihood.name] if self.data == "normal_2d" else [FrechetDistance.name, InceptionScore.name]
        return [f"influence on {name}" for name in names] + ["random", "isolation forest", "discriminator loss"]

    @property
    def pieces(self) -> list[str]:
        """What `record` runs one at a time: the methods, and a check of the influences they rank by."""
        return [*self.methods, AGREEMENT]

    def measure(self, setup: Setup, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict[str, Tensor]]:
        """One piece of the experiment; see `record`."""
        by_method = removal_scores(self, setup, seed, compile and setup.classifier is None)  # convolutions gain nothing
        if piece == AGREEMENT:
            return {AGREEMENT: removal_agreement(self, setup, by_method, seed)}, {}
        scores = by_method[piece]
        result = removal_experiment(self, setup, {piece: scores})
        ranked = scores.argsort(descending=True)
        extremes = [{"seed": seed, "method": piece, "end": end, "rank": rank, "instance": int(j), "score": float(scores[j])}
                    for end, which in (("most harmful", ranked[:EXTREMES]), ("most helpful", ranked.flip(0)[:EXTREMES])) for rank, j in enumerate(which)]
        states = {"before": setup.run.final, **{f"{piece} {row['metric']}": result.states[piece, row["n_removed"]] for row in result.picked}}
        tensors = {f"{label}|{name}": tensor for label, state in states.items() for name, tensor in state.generator.items()}
        accuracy = {"classifier_accuracy": setup.classifier.accuracy["test"]} if setup.classifier else {}
        picked = [{"seed": seed, **row} for row in result.picked]
        return {"summary": [{"seed": seed, **row, **accuracy} for row in result.rows], "picked": picked, "extremes": extremes}, tensors


ACCURACY = {
    "paper": Accuracy(),
    "quick": Accuracy(n=1_000, epochs=10, held_out=300, latents=300, instances=60, windows=(1, 2, 5, 10)),
    "every": Accuracy(instances=10_000, windows=(1,)),
    "mnist paper": Accuracy("mnist", width=8, held_out=10_000, latents=2_000),
    "mnist small": Accuracy("mnist", width=8, held_out=10_000, latents=2_000, instances=50, windows=(1, 5, 10)),  # a quarter of the instances
    "mnist quick": Accuracy("mnist", n=1_000, epochs=20, batch_size=50, learning_rate=5e-3, width=8, held_out=1_000, latents=500, instances=20, windows=(1, 2)),
    "digits quick": Accuracy("digits", n=1_000, epochs=20, batch_size=50, learning_rate=2e-3, width=8, held_out=300, latents=500, instances=20, windows=(1, 2)),
}

REMOVAL = {
    "paper": Removal(),
    "quick": Removal(n=5_000, learning_rate=1e-2, held_out=2_000, latents=2_000),  # a tenth of the steps, each ten times as long
    "mnist paper": Removal("mnist", epochs=20, fractions=(.01, .02, .05, .1, .2, .3, .4, .5, .7, .9)),
    # A fifth of the instances and three tenths of the steps, each twice as long, through networks of a quarter of the width.
    "mnist small": Removal("mnist", n=10_000, epochs=30, learning_rate=2e-3, width=8, latents=2_000, fractions=(.01, .05, .1, .2, .3, .5, .7)),
    "mnist quick": Removal("mnist", n=2_000, epochs=16, learning_rate=5e-3, width=8, held_out=1_000, latents=500, fractions=(.05, .2, .5)),
    "digits quick": Removal("digits", n=1_100, epochs=28, learning_rate=2e-3, width=8, held_out=300, latents=500, fractions=(.05, .2, .5)),
}

#: What notebooks/recorded holds: the protocol, and the seeds that complete it.
EXPERIMENTS = {
    "accuracy_2d": (ACCURACY["paper"], range(10)),
    "removal_2d": (REMOVAL["paper"], range(15)),
    "accuracy_2d_every": (ACCURACY["every"], range(3)),
    "accuracy_mnist_small": (ACCURACY["mnist small"], range(2)),
    "removal_mnist_small": (REMOVAL["mnist small"], range(10)),
    "accuracy_mnist": (ACCURACY["mnist paper"], range(10)),
    "removal_mnist": (REMOVAL["mnist paper"], range(15)),
}

FOR_A_GPU = "accuracy_mnist", "removal_mnist"  #: minutes a seed there, hours on a CPU; the small ones are what a CPU can do


def images_at_hand() -> str:
    """ "mnist" where MNIST is here or can be downloaded, else "digits".

    >>> images_at_hand() in ("mnist", "digits")
    True
    """
    try:
        data.mnist(train=1, valid=1, test=1)
    except (FileNotFoundError, ImportError):
        return "digits"
    return "mnist"


def chosen_instances(config: Protocol, seed: int, instances: int | None = None) -> np.ndarray:
    """Which instances an experiment leaves out, one at a time: a random draw without replacement; by default as many as Experiment 1 does."""
    return stream("chosen instances", seed).choice(config.n, instances or config.instances, replace=False)


def accuracy_experiment(config: Accuracy, seed: int, device: str = "cpu", compile: bool = False, setup: Setup | None = None,
                        windows: Iterable[int] | None = None) -> tuple[list[dict], list[dict]]:
    """Run Experiment 1 for one seed.

    Args:
        config: the protocol.
        seed: of the data, the initialisation, the schedule and the choice of instances.
        device: "cpu" or "cuda".
        compile: compile first, worth it at the published size of 2D-normal.
        setup: what `config.prepare(seed, device)` returned, if it is at hand.
        windows: only these of the protocol's windows.

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
            critical = 10 if config.instances <= 1_000 else 100
            agreed = {field: value for field, value in asdict(agreement(estimate, truth, critical)).items() if field not in ("n", "k")}
            summary.append({**key, **agreed, **seconds})
            scores += [{**key, "instance": int(j), "influence": float(a), "leave_one_out": float(b)} for j, a, b in zip(chosen, estimate, truth)]
    return summary, scores


def fractional_leave_one_out(run: Trajectory, metric, instances: Iterable[int], fraction: float, last_epochs: int | None = None) -> torch.Tensor:
    """Measure how the metric changes when a fraction of each instance is absent, per unit removed.

    Args:
        run, metric, last_epochs: as in `leave_one_out`.
        instances: which ones, each alone.
        fraction: ε; the instance's weight is 1 − ε. 1 is leave-one-out; for ε → 0 the result tends to the influence.

    Returns:
        (len(instances),) float64 on the CPU: (metric(weight 1 − ε) − metric(weight 1)) / ε.
    """
    sets = list(torch.as_tensor(instances).view(-1, 1))
    changes = torch.zeros(len(sets), dtype=torch.float64)
    with torch.no_grad():
        before = metric(run.gan, run.final)
        for which, stacked in counterfactuals(run, sets, run.window(last_epochs), weight=1 - fraction):
            for i, state in zip(which, unstack(stacked)):
                changes[i] = (metric(run.gan, state) - before).item() / fraction
    return changes


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
            rows.append({"seed": seed, "metric": name, "last_epochs": last_epochs, "fraction": float(fraction), "kendall_tau": found.kendall_tau,
                         "slope": found.slope})
    return rows


def removal_scores(config: Removal, setup: Setup, seed: int, compile: bool = False) -> dict[str, Tensor]:
    """Every method's harmfulness of all training instances; kept in the setup's folder, if it has one.

    Returns:
        {method: (n,) float64 on the CPU}, larger is removed first, in the order of `config.methods`.
    """
    kept = setup.folder and setup.folder / "scores.safetensors"
    if kept and kept.exists():
        return load_file(kept)
    run, (metric, *_) = setup.run, setup.valid.values()
    baseline = DiscriminatorLoss(setup.data.valid.to(run.x.device), metric.latents)
    metrics = {f"influence on {name}": metric for name, metric in setup.valid.items()} | {"discriminator loss": baseline}
    scores = {name: harmfulness(values, metrics[name]) for name, values in influence(run, metrics, config.last_epochs, compile=compile).items()}
    scores["isolation forest"] = isolation_forest(run.x, seed, setup.classifier and setup.classifier.features)
    scores["random"] = random_scores(run.n, seed)
    scores = {method: scores[method] for method in config.methods}
    if kept:
        save_file(scores, kept.with_suffix(".partial"))
        os.replace(kept.with_suffix(".partial"), kept)
    return scores


def removal_agreement(config: Removal, setup: Setup, scores: dict[str, Tensor], seed: int) -> list[dict]:
    """Rank agreement of the influences with leave-one-out for a few instances of this run, one row per metric.

    It is the check to make before a ranking is acted upon: where training is unstable, estimate and truth part.

    Args:
        config, setup, seed: as in `removal_scores`.
        scores: what that returned.

    Returns:
        Rows with the keys seed, metric, instances (how many were left out), kendall_tau, pearson, slope.
    """
    chosen, rows = chosen_instances(config, seed, CHECKED), []
    for name, truth in leave_one_out(setup.run, setup.valid, chosen, config.last_epochs).items():
        found = agreement(harmfulness(scores[f"influence on {name}"], setup.valid[name])[chosen], truth, k=CHECKED // 4)
        rows.append({"seed": seed, "metric": name, "instances": CHECKED, "kendall_tau": found.kendall_tau, "pearson": found.pearson, "slope": found.slope})
    return rows


def removal_experiment(config: Removal, setup: Setup, scores: dict[str, Tensor]) -> Cleansing:
    """Run the last epochs again without each method's most harmful instances, at every fraction of the protocol."""
    return cleanse(setup.run, scores, config.fractions, setup.valid, setup.test, config.last_epochs)


def over_seeds(rows):
    """Mean change on test data over seeds, per metric, method and number removed, and whether it could be chance.

    Args:
        rows: a DataFrame with the columns of a recorded removal's summary.

    Returns:
        A DataFrame indexed by (metric, method, n_removed): seeds, mean, std, p_t (one-sample t-test of no change, two-sided, as
        published) and p_wilcoxon (signed ranks, two-sided); p is NaN for fewer than two seeds.

    Source: Terashita et al., ICLR 2021, section 5.2; the tests are scipy's.
    """
    import pandas as pd
    from scipy import stats
    summary = {}
    for key, part in rows.groupby(["metric", "method", "n_removed"], sort=False):
        change, several = part.test_after - part.test_before, len(part) > 1
        summary[key] = {"seeds": len(change), "mean": change.mean(), "std": change.std(), "p_t": stats.ttest_1samp(change, 0).pvalue if several else np.nan,
                        "p_wilcoxon": stats.wilcoxon(change).pvalue if several else np.nan}
    return pd.DataFrame.from_dict(summary, orient="index").rename_axis(["metric", "method", "n_removed"]).astype({"seeds": int}).sort_index()


def advantage(rows, metric: str, method: str):
    """By how much a ranking improves a metric more than each other ranking does at the same number removed, over the seeds that have both.

    Args:
        rows: a DataFrame with the columns of a recorded removal's summary.
        metric, method: names in it.

    Returns:
        A DataFrame indexed by n_removed, with two columns for each other method: (other, "gain"), the mean difference of the changes
        on test data, positive where `method` is better; and (other, "p") of a paired t-test, two-sided, NaN for fewer than two seeds.
    """
    import pandas as pd
    from scipy import stats
    better = {one.name: 1 if one.higher_is_better else -1 for one in (AverageLogLikelihood, FrechetDistance, InceptionScore)}[metric]
    rows = rows[rows.metric == metric]
    changes = rows.assign(change=better * (rows.test_after - rows.test_before)).pivot(index=["n_removed", "seed"], columns="method", values="change")
    table = {}
    for other in rows.method.unique():
        if other != method:
            gains = (changes[method] - changes[other]).dropna().groupby("n_removed")
            table[other, "gain"] = gains.mean()
            table[other, "p"] = gains.agg(lambda gain: stats.ttest_1samp(gain, 0).pvalue if len(gain) > 1 else np.nan)
    return pd.DataFrame(table)
