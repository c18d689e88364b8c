"""A pretrained style-based generator, adapted to other faces by low-rank adapters and cleansed: what notebook 14 and its recordings run."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import data
from ..game.penalties import R1
from ..metrics import FrechetDistance
from ..models.adapters import adapted
from ..readings.agreement import agreement
from ..readings.cleansing import cleanse
from ..readings.influence import harmfulness
from ..readings.verification import verify
from ..tools.devices import check_device
from ..tools.noise import dice
from ..training.making import train
from ..training.optimizers import Adam
from ..training.trajectory import Trajectory
from .faces import taught
from .methods import METHODS
from .pretrained import BETAS, pretrained
from .protocols import AGREEMENT, Adaptation
from .released import Question

JUDGE = 10_000  #: seed of the faces that the features are learnt from


class Adapted(NamedTuple):
    """An adapted run, what measures it, its faces and what is planted among them, and the scores of the methods that cleanse."""

    run: Trajectory
    valid: FrechetDistance
    test: FrechetDistance
    data: data.Faces
    scores: dict[str, Tensor]  #: harmfulness, (n,) each


class Halved(nn.Module):
    """Features of images that are halved first, in float64."""

    def __init__(self, features: nn.Module):
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return self.features(nn.functional.avg_pool2d(x.double(), 2))


@cache
def face_judge(style: str, n: int = 500) -> nn.Module:
    """Sixteen features of 32 × 32 faces in a style: those from which a linear layer tells what they wear, and which colours they have."""
    known = data.faces(0, n, 0, JUDGE, 32, style=style)
    each = [labels[:, None] == torch.arange(len(values)) if name.endswith("colour") else labels[:, None] > 0
            for (name, values), labels in zip(known.attributes.items(), known.labels.valid.T)]
    present = torch.cat(each, 1).double()
    present = present[:, present.std(0) > 0]
    with dice(JUDGE, torch.device("cpu")), torch.enable_grad():
        layers = nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 16)
        features, head = Halved(nn.Sequential(*layers)).double(), nn.Sequential(nn.SiLU(), nn.Linear(16, present.shape[1])).double()
        return taught(nn.Sequential(features, head), known.valid, present, 300)[0]


def prepare(config: Adaptation, seed: int, device: str = "cpu", folder=None) -> Adapted:
    """Adapt the recorded network and score its training faces; nothing is kept in a folder."""
    check_device(device)
    parts = data.faces(config.n, config.held_out, config.held_out, seed, 32, plant=dict.fromkeys(config.kinds, config.planted), style=config.style)
    gan = adapted(pretrained(R1(config.gamma)), config.rank, seed).to(device)
    run = train(gan, parts.train.to(device), config.epochs, config.batch_size, Adam(config.learning_rate, betas=BETAS), config.order, seed,
                average=config.average)
    features = face_judge(config.style).to(device)
    valid, test = (FrechetDistance(features, x.to(device), gan.sample_latents(config.latents, seed, part)) for part, x in enumerate(parts[1:3], 1))
    question = Question(run, valid, config.last_epochs, parts.valid, seed)
    return Adapted(run, valid, test, parts, {method: METHODS[method](question) for method in config.methods})


def measure(config: Adaptation, found: Adapted, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict[str, Tensor]]:
    """One piece: retraining over the last epoch, or from the start; or the estimators beside true removals of single faces.

    Returns:
        {"summary": a row per method and number removed, (before, after) on validation and test data; "picked": those best on validation data;
        "planted": a row per method and kind}, or {"agreement": a row per estimator, with the verdict on the exact one}; generators' averages before and after.
    """
    run, key = found.run, {"seed": seed}
    if piece == AGREEMENT:
        return {AGREEMENT: [key | row for row in compared(config, found, seed)]}, {}
    full = piece == "full"
    cleansed = cleanse(run, found.scores, config.full if full else config.fractions, found.valid, found.test, None if full else config.last_epochs)
    key |= {"last_epochs": config.epochs if full else config.last_epochs}
    rows = {"summary": [key | row for row in cleansed.rows], "picked": [key | row for row in cleansed.picked]}
    if full:
        return rows, {}
    states = {"before": run.final, "exact": next(state for (method, _), state in cleansed.states.items() if method == "exact")}
    return rows | {"planted": [key | row for row in detected(found)]}, {
        f"{label}|{name}": tensor for label, state in states.items() for name, tensor in state.average.items()}


Adaptation.prepare, Adaptation.measure = prepare, measure  # here, because plain values are known without torch


def detected(found: Adapted) -> list[dict]:
    """For every method and planted kind the area under the ROC curve of its faces against those that were left alone: 1 where all are ranked above."""
    from sklearn.metrics import roc_auc_score
    kinds = dict.fromkeys(kind for kind in found.data.planted.tolist() if kind != "none")
    alone = found.data.planted == "none"
    return [{"method": method, "judge": kind, "auc": float(roc_auc_score((found.data.planted == kind)[which], scores.numpy()[which]))}
            for method, scores in found.scores.items() for kind in kinds for which in [alone | (found.data.planted == kind)]]


def compared(config: Adaptation, found: Adapted, seed: int) -> list[dict]:
    """Every estimator against leave-one-out over the last epoch: rank agreement over random faces, and over those with the exact one's ends."""
    run, metric = found.run, found.valid
    question = Question(run, metric, config.last_epochs, found.data.valid, seed)
    checked = verify(run, metric, harmfulness(found.scores["exact"], metric), config.last_epochs, config.probes, seed=seed)
    probes, truth = (np.array([row[key] for row in checked.rows]) for key in ("instance", "leave_one_out"))
    at_random, rows = np.array([row["group"] == "random" for row in checked.rows]), []
    for name in config.estimators:
        estimate = harmfulness(found.scores[name] if name in found.scores else METHODS[name](question), metric).numpy()[probes]
        random = agreement(estimate[at_random], truth[at_random], k=1)
        rows.append({"method": name, "kendall_tau": random.kendall_tau, "slope": random.slope, "tau_with_ends": agreement(estimate, truth, k=1).kendall_tau,
                     "noise_floor": checked.noise_floor, "tau_ceiling": checked.tau_ceiling, "trustworthy": int(checked.trustworthy)})
    return rows
