"""Influence by gossip against what a centre would say: at rest, where there is a closed form, and along the way, where the whole system is differentiated."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data import normal_2d
from ..game.gan import GAN
from ..game.state import State
from ..metrics import AverageLogLikelihood
from ..models.lqgan import lqgan, lqgan_influence
from ..readings.agreement import agreement
from ..readings.gossip import gossip_influence, over_clients
from ..readings.influence import influence
from ..tools.noise import dice
from ..tools.streams import stream, torch_stream
from ..training.dynamics import Dynamics
from ..training.gossip import record_by_gossip, train_by_gossip
from ..training.graphs import GRAPHS, Graph
from ..training.optimizers import SGD
from ..training.plan import Batch
from ..training.trajectory import Trajectory
from .protocols import Decentralised

SHARDS = 10_000  #: numbers of streams beyond those of any client's schedule


class ToTarget:
    """V(a, b) = (a − a₀)² + (b − b₀)² of a generator G(z) = a·z + b: its squared Wasserstein distance to N(b₀, a₀²)."""

    name, higher_is_better = "squared distance to a target", False

    def __init__(self, a: float, b: float):
        self.a, self.b = a, b

    def __call__(self, gan: GAN | None, state: State) -> Tensor:
        return ((state.generator["a"] - self.a) ** 2 + (state.generator["b"] - self.b) ** 2).sum()


def resting_clients(seed: int = 0, clients: int = 8, each: int = 25, rate: float = 0.05, spread: float = 1.5, alone: int | None = None,
                    exchange=None) -> tuple[Trajectory, list[Tensor]]:
    """Clients of an LQGAN, non-saturating, at its exact optimum on all data together: a run of one full-batch step; and their shards.

    Client means are spread over [−spread, spread], so that every client alone would rest elsewhere. Latents have mean 0 and variance 1 at each. With `alone`
    the run is of that client, which reaches the others through `exchange` (see `train_by_gossip`).
    """
    def normal(part: int) -> Tensor:
        return torch.from_numpy(stream("clients", seed, SHARDS + part).standard_normal((clients, each, 1)))

    z = normal(1)
    z = (z - z.mean(1, keepdim=True)) / z.std(1, unbiased=False, keepdim=True)
    shards = list(normal(0) + torch.linspace(-spread, spread, clients, dtype=torch.float64)[:, None, None])
    x, dynamics = torch.cat(shards), Dynamics(lqgan(), SGD(rate), "simultaneous")
    optimum = State({"a": x.std(unbiased=False)[None], "b": x.mean()[None]}, {"w": torch.zeros(1, 2, dtype=torch.float64)})

    def step(state: State, batch: tuple, weights: Tensor) -> State:
        return dynamics.step(state, Batch(*batch, None, (rate, rate)), weights)

    here = [i for i in range(clients) if alone in (None, i)]
    known = [shard if i in here else each for i, shard in enumerate(shards)]
    return record_by_gossip(step, optimum, [[(range(each), z[i]) for i in here]], known, GRAPHS["full"], exchange=exchange), shards


def targets(seed: int, clients: int) -> dict[str, list[ToTarget]]:
    """Metrics: one for all clients, and one of each client's own."""
    drawn = stream("clients", seed, SHARDS + 2).standard_normal((clients + 1, 2))
    return {"shared": [ToTarget(*drawn[0])] * clients, "of their own": [ToTarget(*one) for one in drawn[1:]]}


def central(shards: Sequence[Tensor], metrics: Sequence[ToTarget]) -> Tensor:
    """The closed form of the influences on the metrics' mean, of a centre that has all data."""
    x = torch.cat(list(shards))
    a, b = float(x.std(unbiased=False)), float(x.mean())
    return sum(lqgan_influence(x, 2 * (a - one.a), 2 * (b - one.b)) for one in metrics) / len(metrics)


def against(scores: Sequence[Tensor], truth: Tensor) -> dict[str, float]:
    """Relative error, cosine and Kendall's tau of all clients' scores together."""
    found = torch.cat(list(scores))
    return {"relative_error": float((found - truth).norm() / truth.norm()), "cosine": float(torch.cosine_similarity(found, truth, dim=0)),
            "kendall_tau": agreement(found, truth).kendall_tau}


def small_gan(seed: int) -> GAN:
    """A GAN of 163 parameters on the plane, smooth."""
    with dice(torch_stream("fcgan", seed).initial_seed(), torch.device("cpu")):
        nets = (nn.Sequential(nn.Linear(i, h), nn.Tanh(), nn.Linear(h, o)).double() for i, h, o in ((3, 12, 2), (2, 16, 1)))
        return GAN(*nets, latent_dim=3)


def training_clients(seed: int, graph: Graph, steps: int, rate: float, clients: int = 8, each: int = 25,
                     batch_size: int = 10) -> tuple[Trajectory, AverageLogLikelihood]:
    """A small GAN trained by gossip on 2D-normal data, which clients share among them by the first coordinate; and a metric."""
    data, gan = normal_2d(train=clients * each, valid=200, seed=seed), small_gan(seed)
    shards = data.train[data.train[:, 0].argsort()].split(each)
    run = train_by_gossip(gan, shards, graph, steps, batch_size, SGD(rate), "simultaneous", seed, stride=1)
    return run, AverageLogLikelihood(data.valid, gan.sample_latents(200, seed=1))


def prepare(config: Decentralised, seed: int, device: str = "cpu", folder=None) -> None:
    """Nothing is shared by the pieces."""


def measure(config: Decentralised, setup: None, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict]:
    """A row per metric, graph and rounds at rest; or per graph and rounds along the way, at one learning rate."""
    rows = []
    if piece == "at rest":
        run, shards = resting_clients(seed, config.clients, config.n // config.clients, config.learning_rate)
        for metric, own in targets(seed, config.clients).items():
            for name, rounds in [("nobody speaks", 0), *((name, rounds) for name in config.graphs for rounds in config.push_sums)]:
                graph = GRAPHS.get(name, GRAPHS["full"])
                scores = gossip_influence(run, own, rounds, "aid", graph=graph, damping=1.0, iterations=config.terms)
                sent = sum(one.diagnostics.bytes_sent for one in scores)
                rows.append({"seed": seed, "metric": metric, "method": name, "round": rounds, **against(scores, central(shards, own)), "bytes": sent})
        return {"summary": rows}, {}
    rate, everybody = float(piece.removeprefix("learning rate ")), None
    for name in config.graphs:
        run, metric = training_clients(seed, GRAPHS[name], config.steps, rate, config.clients, config.n // config.clients, config.batch_size)
        truth = influence(run, over_clients(run, metric))
        everybody = truth if name == "full" else everybody
        scores = gossip_influence(run, metric, config.traced)
        of_centre = {f"central_{key}": one for key, one in against(scores, everybody).items()}
        rows.append({"seed": seed, "learning_rate": rate, "method": name, **against(scores, truth), **of_centre,
                     "disagreement": max(one.diagnostics.disagreement for one in scores), "bytes": sum(one.diagnostics.bytes_sent for one in scores)})
    return {"training": rows}, {}


Decentralised.prepare, Decentralised.measure = prepare, measure  # here, because plain values are known without torch
