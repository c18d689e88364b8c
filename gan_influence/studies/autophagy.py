"""The penalised likelihood of a hypernetwork that makes a model's parameters from data: where there is a closed form, on two normals, on two digits."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, distributions, nn
from torch.func import functional_call
from torch.nn import functional as F

from .. import data
from ..models import Hypernetwork, autophagy
from ..tools.noise import dice
from ..tools.streams import stream, torch_stream
from .faces import taught
from .protocols import Autophagy

MAJORITY, MINORITY = 3, 6  #: digits


def best_scale(n: int, penalty: float) -> float:
    """The closed form of a PLE with one parameter: c(n − 1), where c·Σ(x − x̄)² estimates a Gaussian's variance from n samples.

    It minimises J(c) = (n/2) ln c + 1/(2c) + λ(n² − 1)c²(1 − c(n − 1))², at σ = 1: (n − 1)/n without a penalty, 1 (unbiased) where λ → ∞.

    >>> round(best_scale(5, 1.0), 4)
    0.8753
    """
    def objective(s: float) -> float:
        c = s / (n - 1)
        return n / 2 * np.log(c) + 1 / (2 * c) + penalty * (n * n - 1) * c * c * (1 - s) ** 2

    return float(optimize.minimize_scalar(objective, bounds=(0.6, 1.4), method="bounded", options={"xatol": 1e-9}).x)


def trained_scale(n: int, penalty: float, seed: int = 0, start: float = 1.0, likelihood: bool = True, resamples: int = 4, steps: int = 300,
                  sets: int = 1024) -> float:
    """The same by training: c by Adam on fresh data sets and fresh samples, its mean over the second half.

    Args:
        start: c(n − 1) at the start.
        likelihood: without it only the penalty is minimised, and from below one half c collapses to 0.
        resamples: of `autophagy`; 1 gives the plain square, which is biased.
        steps, sets: of Adam; data sets a step.

    >>> abs(trained_scale(5, 1.0) / best_scale(5, 1.0) - 1) < 0.01
    True
    """
    random, log_c, path = torch_stream("hypernetwork", seed), torch.tensor(np.log(start / (n - 1)), requires_grad=True), []
    adam = torch.optim.Adam([log_c], lr=0.01)
    for _ in range(steps):
        def draw() -> Tensor:
            return torch.randn(sets, n, generator=random, dtype=torch.float64)

        def estimate(x: Tensor) -> Tensor:
            return log_c.exp() * (x - x.mean(1, keepdim=True)).square().sum(1)

        loss = penalty * autophagy(estimate, lambda variance: variance.sqrt()[:, None] * draw(), draw(), resamples) / sets
        if likelihood:
            loss = loss + n / 2 * log_c + (-log_c).exp() / 2
        adam.zero_grad()
        loss.backward()
        adam.step()
        path.append(float(log_c.detach().exp()) * (n - 1))
    return float(np.mean(path[steps // 2:]))


class Normals(nn.Module):
    """A mixture of two normals on the line; weights by softmax of logits, standard deviations by softplus: nothing is without a gradient."""

    def __init__(self, logits=(0.0, 0.0), means=(-0.5, 2.5), spread=(0.5, 0.5)):
        super().__init__()
        for name, value in (("logits", logits), ("means", means), ("spread", spread)):
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    @staticmethod
    def of(made: dict) -> distributions.MixtureSameFamily:
        """The distribution that parameters stand for."""
        return distributions.MixtureSameFamily(distributions.Categorical(logits=made["logits"]),
                                               distributions.Normal(made["means"], F.softplus(made["spread"]) + 1e-3))

    @staticmethod
    def draw(made: dict, n: int) -> Tensor:
        """Samples (n, 1), differentiable in all parameters by the implicit function theorem: dy/dθ = −∂F(y)/∂θ / p(y), with no choice relaxed."""
        model = Normals.of(made)
        with torch.no_grad():
            y = model.sample((n,))
            density = model.log_prob(y).exp()
        level = model.cdf(y)
        return (y - (level - level.detach()) / density)[:, None]


class Start(NamedTuple):
    """What the methods of one seed share: for digits, training sets by ratio, test images by digit, and a judge of the digit."""

    train: dict
    test: dict
    judge: nn.Module | None


def prepare(config: Autophagy, seed: int, device: str = "cpu", folder=None) -> Start:
    """Draw the data; for digits, also train the judge."""
    if config.data == "normals":
        return Start({}, {}, None)
    parts = data.mnist(train=20_000, valid=6_000, test=4_000, seed=seed)
    small = [F.avg_pool2d(x, 2).flatten(1).double() / 2 + 0.5 for x in parts[:3]]
    of = [{digit: x[labels == digit] for digit in (MAJORITY, MINORITY)} for x, labels in zip(small, parts.labels)]
    train = {ratio: (of[0][MAJORITY][:config.n], of[0][MINORITY][:round(config.n / ratio)]) for ratio in config.ratios}
    x, y = torch.cat([*of[1].values()]), torch.cat([torch.full((len(one),), float(digit == MINORITY)) for digit, one in of[1].items()]).double()[:, None]
    with dice(seed, torch.device("cpu")):
        judge = taught(nn.Sequential(nn.Linear(196, 32), nn.Tanh(), nn.Linear(32, 1)).double(), x, y, 300)
    return Start(train, of[2], judge)


def measure(config: Autophagy, start: Start, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict]:
    """One method; rows of `normals` or of `digits`."""
    return {"summary": [{"seed": seed, "method": piece, **row} for row in (normals if config.data == "normals" else digits)(config, start, seed, piece)]}, {}


def fit(parameters, loss: Callable[[], Tensor], config: Autophagy) -> None:
    """Adam, whose learning rate falls to a twentieth."""
    adam = torch.optim.Adam(parameters, lr=config.learning_rate)
    rate = torch.optim.lr_scheduler.LinearLR(adam, 1, 0.05, config.steps)
    for _ in range(config.steps):
        adam.zero_grad()
        loss().backward()
        adam.step()
        rate.step()


def normals(config: Autophagy, start: Start, seed: int, piece: str):
    """Generations of a mixture .8 N(0, 1) + .2 N(2, 1), each fitted to n samples of the one before: the minority's weight and W1 to the truth."""
    random = stream("hypernetwork", seed, 1)
    truth = {"logits": torch.tensor([0.8, 0.2], dtype=torch.float64).log(), "means": torch.tensor([0.0, 2.0], dtype=torch.float64),
             "spread": torch.full((2,), float(np.log(np.expm1(1 - 1e-3))), dtype=torch.float64)}
    grid, penalty = torch.linspace(-8, 10, 4_001, dtype=torch.float64), float(piece.split()[1]) if piece.startswith("PLE") else 0.0
    own = Normals()
    hyper, made = Hypernetwork(own, 1, outer=(16,), seed=seed), truth
    for t in range(config.generations + 1):
        with dice(int(random.integers(2**31)), torch.device("cpu")), torch.no_grad():
            x = Normals.of(made).sample((config.n,))[:, None]
        with dice(int(random.integers(2**31)), torch.device("cpu")):
            made = _fitted(config, x, own, None if piece == "MLE" else hyper, penalty)
        with torch.no_grad():
            gap = (Normals.of(made).cdf(grid) - Normals.of(truth).cdf(grid)).abs().sum() * (grid[1] - grid[0])
            weight = made["logits"].softmax(0)[made["means"].argmax()]
        yield {"round": t, "metric": "minority's weight", "value": float(weight)}
        yield {"round": t, "metric": "Wasserstein distance", "value": float(gap)}


def _fitted(config: Autophagy, x: Tensor, own: Normals, hyper: Hypernetwork | None, penalty: float) -> dict:
    def batch() -> Tensor:
        return x[torch.randint(len(x), (config.batch_size,))]

    def direct() -> Tensor:
        return -Normals.of(dict(own.named_parameters())).log_prob(batch()[:, 0]).mean()

    def indirect() -> Tensor:
        rows = batch()
        value = -Normals.of(hyper(rows)).log_prob(rows[:, 0]).mean()
        return value + penalty * autophagy(hyper, lambda made: Normals.draw(made, len(rows)), rows) if penalty else value

    fit((hyper or own).parameters(), indirect if hyper else direct, config)
    with torch.no_grad():
        return hyper(x) if hyper else {name: p.detach().clone() for name, p in own.named_parameters()}


class Autoencoder(nn.Module):
    """A variational autoencoder of 14 × 14 pixels; its call gives every image's negative evidence bound, in nats."""

    def __init__(self, latent: int = 8, hidden: int = 64):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(196, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latent))
        self.decode = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, 196))

    def forward(self, x: Tensor, noise: Tensor, sample: bool = False) -> Tensor:
        if sample:
            return self.decode(noise).sigmoid()
        mean, log_variance = self.encode(x).chunk(2, 1)
        rebuilt = self.decode(mean + (log_variance / 2).exp() * noise)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return F.binary_cross_entropy_with_logits(rebuilt, x, reduction="none").sum(1) + divergence


def digits(config: Autophagy, start: Start, seed: int, piece: str):
    """Autoencoders of two digits of unequal numbers: the minority's share of what is generated, bounds on test images of either, and the share when
    the hypernetwork is shown one digit only (an autoencoder is shown nothing, and differs by chance). Those with
    mixed data sets are trained on batches of every composition, the others on the data as they are."""
    for ratio, (many, few) in start.train.items():
        for metric, value in _digits_at(config, start, seed, piece, many, few):
            yield {"fraction": ratio, "metric": metric, "value": float(value)}


def _digits_at(config: Autophagy, start: Start, seed: int, piece: str, many: Tensor, few: Tensor):
    def noise(n: int) -> Tensor:
        return torch.randn(n, 8, dtype=torch.float64)

    def batch() -> Tensor:
        if "mixed" in piece:  # data sets of every composition, so that there is something to tell apart
            minority = torch.rand(config.batch_size) < torch.rand(1)
            return torch.where(minority, len(many) + torch.randint(len(few), minority.shape), torch.randint(len(many), minority.shape))
        return torch.randint(len(x), (config.batch_size,))

    def direct() -> Tensor:
        rows = batch()
        return (weights[rows] * own(x[rows], noise(len(rows)))).mean()

    def indirect() -> Tensor:
        rows = x[batch()]
        value = hyper.call(hyper(rows), rows, noise(len(rows))).mean()
        again = autophagy(hyper, lambda made: hyper.call(made, None, noise(len(rows)), True), rows) if penalty else 0.0
        return value + penalty * again

    penalty, one = float(piece.split()[1]) if piece.startswith("PLE") else 0.0, piece.startswith("VAE")
    x, weights = torch.cat([many, few]), torch.cat([torch.ones(len(many)), torch.full((len(few),), len(many) / len(few))]).double()
    weights = weights / weights.mean() if piece == "VAE reweighted" else torch.ones_like(weights)
    with dice(seed, torch.device("cpu")):
        own = Autoencoder().double()
        hyper = Hypernetwork(own, 196, (32, 32), (32,), rank=16, seed=seed)
        fit((own if one else hyper).parameters(), direct if one else indirect, config)
        with torch.no_grad():
            for what, shown in {"all": x, str(MAJORITY): many, str(MINORITY): few}.items():
                made = dict(own.named_parameters()) if one else hyper(shown)
                yield f"minority's share, shown {what}", (start.judge(functional_call(own, made, (None, noise(4_000), True))) > 0).double().mean()
            made = dict(own.named_parameters()) if one else hyper(x)
            for digit, test in start.test.items():
                yield f"bound of digit {digit}", functional_call(own, made, (test, noise(len(test)))).mean()
    right = sum(((start.judge(test) > 0) == (digit == MINORITY)).double().sum() for digit, test in start.test.items())
    yield "judge's accuracy", right / sum(map(len, start.test.values()))


Autophagy.prepare, Autophagy.measure = prepare, measure
