"""Whom does cleansing remove? Runs on data with a minority, cleansed by one metric after another, and judged by all of them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import data
from ..game.gan import GAN
from ..metrics import AverageLogLikelihood, BalancedLikelihood, DiscriminatorLoss, FrechetDistance, KernelDistance, SoftShare, enrichment, recall
from ..readings.agreement import agreement
from ..readings.cleansing import isolation_forest, random_scores
from ..readings.influence import harmfulness, influence
from ..readings.retraining import leave_one_out
from ..tools.devices import check_device
from ..tools.noise import dice
from ..tools.streams import stream
from ..training.making import train
from ..training.optimizers import SGD, Adam
from ..training.trajectory import Trajectory, last
from .faces import face_classifier, face_gan
from .protocols import Minority

APART, SPREAD = 3.0, 0.4  #: the clusters' distance, and their standard deviation
ACTIVATIONS = {"tanh": nn.Tanh, "leaky relu": nn.LeakyReLU}
NEIGHBOURS = 3  #: of `recall`


class Question(NamedTuple):
    """A run, the groups in its training set, what its influences are taken of, and what judges the outcome."""

    run: Trajectory
    groups: dict[str, Tensor]  #: (n,) bool
    valid: dict  #: metrics that may steer
    sums: dict[str, dict[str, float]]  #: by name: sums of their harmfulness, which are one sweep as well
    forest_sees: object  #: what the isolation forest sees of an instance; None for all of it
    held_out: tuple[Tensor, Tensor]  #: validation data and latents, for the discriminator's loss
    judge: object  #: state -> {name: value on test data}


def mixture(n: int, seed: int, part: int = 0, share: float = 0.1, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two clusters on the plane: the majority around (0, 0), the minority around (3, 0); (n, 2) float64, and what each point is.

    Args:
        n, seed, part: how many, of which draw.
        share: the minority's probability.
        noise: the share of points that are uniform in a box around both instead.

    Returns:
        Points, and (n,) int64: 0 majority, 1 minority, 2 noise.

    >>> mixture(1000, seed=0, noise=0.05)[1].bincount().tolist()
    [870, 80, 50]
    """
    random = stream("mixture", seed, part)
    kind, noisy = (random.random(n) < share).astype(int), random.random(n) < noise
    x = np.where(noisy[:, None], random.uniform((-1.5, -1.5), (APART + 1.5, 1.5), (n, 2)),
                 SPREAD * random.standard_normal((n, 2)) + APART * kind[:, None] * [1, 0])
    return torch.from_numpy(x), torch.from_numpy(np.where(noisy, 2, kind))


def minority_logit(x: Tensor) -> Tensor:
    """The logit by which the optimal classifier tells the clusters apart, if both were as frequent, (n, 1)."""
    return (APART * x[:, :1] - APART**2 / 2) / SPREAD**2


def plane_gan(seed: int, activation: type[nn.Module] = nn.Tanh) -> GAN:
    """Generator 4→32→32→2 against discriminator 2→64→64→1."""
    def layers(*widths: int) -> nn.Sequential:
        return nn.Sequential(*[layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), activation())][:-1]).double()

    with dice(seed, torch.device("cpu")):
        return GAN(layers(4, 32, 32, 2), layers(2, 64, 64, 1), latent_dim=4)


def prepare(config: Minority, seed: int, device: str = "cpu", folder=None) -> Question:
    """Train a GAN on data with a minority, and build what steers and what judges; nothing is kept in a folder."""
    check_device(device)
    return (_faces if config.data == "faces" else _plane)(config, seed, device)


def _plane(config: Minority, seed: int, device: str) -> Question:
    (x, kind), (valid, valid_kind), (test, test_kind) = (mixture(n, seed, part, config.minority, noise) for part, (n, noise) in enumerate(
        ((config.n, config.noise), (config.held_out, 0), (config.held_out, 0))))
    gan = plane_gan(seed, ACTIVATIONS[config.activation]).to(device)
    rules = SGD(config.learning_rate), SGD(config.learning_rate, weight_decay=1e-3)
    run = train(gan, x.to(device), config.epochs, config.batch_size, rules, config.order, seed)
    z, z_test, z_share = gan.sample_latents(config.latents, seed, 1), gan.sample_latents(config.latents, seed, 2), gan.sample_latents(4_000, seed, 3)

    def metrics(x: Tensor, labels: Tensor, z: Tensor) -> dict:
        return {"likelihood": AverageLogLikelihood(x, z, config.bandwidth), "balanced likelihood": BalancedLikelihood(x, labels, z, config.bandwidth)}

    judges = metrics(test, test_kind, z_test)

    def judge(state) -> dict[str, float]:
        made = gan.generate(state, z_share)
        return {name: float(metric(gan, state)) for name, metric in judges.items()} | {
            "minority's share": float((minority_logit(made) > 0).double().mean()), "minority's recall": recall(test[test_kind == 1], made, NEIGHBOURS)}

    steering = metrics(valid, valid_kind, z) | {"share": SoftShare(minority_logit, z, temperature=5.0)}
    return Question(run, {"minority": kind == 1, "noise": kind == 2}, steering, {"likelihood and share": {"likelihood": 1.0, "share": config.weight}},
                    None, (valid, z), judge)


def _faces(config: Minority, seed: int, device: str) -> Question:
    kinds = {"glasses": ("glasses", 1), "dark skin": ("skin colour", 6)}  # a column of the labels, and the first of its values that count

    def draw(share: float, *sizes: int) -> data.Faces:
        return data.faces(*sizes, seed, 16, {"glasses": share, "skin colour": {"#a26d3d": share / 2, "#8d5524": share / 2}}, dtype=torch.float64)

    def groups(parts: data.Faces, labels: Tensor) -> dict[str, Tensor]:
        return {name: labels[:, list(parts.attributes).index(column)] >= first for name, (column, first) in kinds.items()}

    parts, even = draw(config.minority, config.n, config.held_out, config.held_out), draw(0.5, 0, config.held_out, 0)
    classifier = face_classifier(even.valid, torch.stack([*groups(even, even.labels.valid).values()], 1).double(), seed)
    present = (even.labels.valid[:, [list(even.attributes).index(name) for name in ("hat", "beard")]] > 0).double()
    features, blind = classifier[0], face_classifier(even.valid, present, seed)[0]  # one knows the minorities, the other what else there is
    gan = face_gan(seed, config.width).to(device)
    run = train(gan, parts.train, config.epochs, config.batch_size, Adam(config.learning_rate, betas=(0.5, 0.999)), config.order, seed)
    z, z_test, z_share = gan.sample_latents(config.latents, seed, 1), gan.sample_latents(config.latents, seed, 2), gan.sample_latents(2_000, seed, 3)

    def metrics(x: Tensor, z: Tensor) -> dict:
        return {"Fréchet distance": FrechetDistance(features, x, z), "Fréchet distance, blind": FrechetDistance(blind, x, z),
                "kernel distance": KernelDistance(features, x, z)}

    judges, of_test = metrics(parts.test, z_test), {name: features(parts.test[which]) for name, which in groups(parts, parts.labels.test).items()}

    def judge(state) -> dict[str, float]:
        seen = features(gan.generate(state, z_share))
        counted = (classifier[1](seen) > 0).double().mean(0)
        return {name: float(metric(gan, state)) for name, metric in judges.items()} | {f"{name}: share": float(p) for name, p in zip(kinds, counted)} | {
            f"{name}: recall": recall(of, seen, NEIGHBOURS) for name, of in of_test.items()}

    shares = {f"share of {name}": SoftShare(lambda x, i=i: classifier(x)[:, i:i + 1], z) for i, name in enumerate(kinds)}
    both = {"Fréchet distance and shares": {"Fréchet distance": 1.0} | dict.fromkeys(shares, config.weight)}
    return Question(run, groups(parts, parts.labels.train), metrics(parts.valid, z) | shares, both, features, (parts.valid, z), judge)


def measure(config: Minority, question: Question, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict]:
    """One window: who is removed by which method, and what that does to every judge.

    Returns:
        {"summary": a row per method, fraction and judge, (before, after, and after with the rest weighted so much more that the real term keeps its
        size); "groups": a row per method, fraction and group; "agreement": Kendall's tau and slope with leave-one-out per metric}, and no tensors.
    """
    run, k = question.run, int(piece.removeprefix("k="))
    start, key = run.window(k), {"seed": seed, "last_epochs": k}
    found = influence(run, question.valid | {"discriminator loss": DiscriminatorLoss(*question.held_out)}, k)
    harm = {name: harmfulness(found[name], metric) for name, metric in question.valid.items()}
    harm |= {name: sum(weight * harm[part] for part, weight in parts.items()) for name, parts in question.sums.items()}
    harm |= {"discriminator loss": harmfulness(found["discriminator loss"], DiscriminatorLoss),
             "isolation forest": isolation_forest(run.x, seed, question.forest_sees), "random": random_scores(run.n, seed)}
    some = stream("chosen instances", seed).choice(run.n, config.instances, replace=False)
    truth = leave_one_out(run, question.valid, some, k)
    agreed = {name: agreement(found[name][some], truth[name]) for name in question.valid}
    with torch.no_grad():
        before, summary, whom = question.judge(run.final), [], []
        for method, scores in harm.items():
            for fraction in config.fractions:
                removed = scores.argsort(descending=True, stable=True)[:round(fraction * run.n)]
                row = {**key, "method": method, "fraction": fraction}
                kept = torch.ones(run.n, dtype=run.rows.dtype)
                kept[removed] = 0
                after, level = (question.judge(last(run.walk(run.state(start), start, run.steps, keep))) for keep in (kept, kept * run.n / kept.sum()))
                summary += [{**row, "metric": name, "before": before[name], "after": after[name], "renormalised": level[name]} for name in before]
                whom += [{**row, "group": name, "enrichment": enrichment(removed, which)} for name, which in question.groups.items()]
    return {"summary": summary, "groups": whom, "agreement": [{**key, "metric": name, "kendall_tau": one.kendall_tau, "slope": one.slope}
                                                              for name, one in agreed.items()]}, {}


Minority.prepare, Minority.measure = prepare, measure
