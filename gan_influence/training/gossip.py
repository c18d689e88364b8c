"""Training without a centre: every client steps on its own data, and mixes what it holds with those who speak to it (push-sum)."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..game.gan import GAN, columns
from ..game.state import State, stack, unstack
from ..tools.checks import whole
from ..tools.streams import stream
from .conditions import try_networks
from .dynamics import Dynamics, Linearizable
from .graphs import Graph, check_graph
from .optimizers import SGD
from .plan import Batch, Order
from .rows import Rows
from .schedule import RecordedSchedule, Schedule
from .trajectory import Trajectory

WEIGHT = "push_sum_weight"  #: its name in a state's generator_memory, (clients,)
Exchange = Callable[[np.ndarray, Tensor], Tensor]


def everybody_here(p: np.ndarray, values: Tensor) -> Tensor:
    """One round of messages among clients that all live in this process: P times the rows that they hold."""
    return torch.as_tensor(p, dtype=values.dtype, device=values.device) @ values


def debiased(state: State) -> State:
    """What the clients hold, divided by their push-sum weights: a stack of states without these."""
    weight = state.generator_memory[WEIGHT]
    players = ({name: p / weight.view(-1, *[1] * (p.ndim - 1)) for name, p in player.items()} for player in state[:2])
    return State(*players, *state[2:])._replace(generator_memory={name: p for name, p in state.generator_memory.items() if name != WEIGHT})


def client_states(state: State) -> list[State]:
    """The state of every client, its parameters divided by its push-sum weight, in the order of the clients.

    >>> held = State({"p": torch.tensor([[1.0], [6.0]])}, {}, {WEIGHT: torch.tensor([0.5, 1.5])})
    >>> [one.generator["p"].item() for one in client_states(held)]
    [2.0, 4.0]
    """
    return unstack(debiased(state))


class Client(Linearizable):
    """One client's step, whose movement is weighed by its share, so that the mean over clients is that over instances."""

    def __init__(self, take: Callable, share: float):
        self.take, self.share = take, share

    def step(self, state: State, batch, weights: Tensor) -> State:
        after = self.take(state, batch, weights)
        players = ({name: p + self.share * (new[name] - p) for name, p in own.items()} for own, new in zip(state[:2], after[:2]))
        return after if self.share == 1 else State(*players, *after[2:])


class Clients(Linearizable):
    """The steps of all clients of this process before anybody speaks: step(stacked states, (round, batches, their sizes), all weights)."""

    gan, optimizers, order, models = None, (), "clients apart", False

    def __init__(self, take: Callable, shares: Sequence[float]):
        self.each = [Client(take, share) for share in shares]

    def twin(self, gan=None) -> "Clients":
        return self

    def step(self, state: State, batch: tuple, weights: Tensor) -> State:
        return stack([one.step(*own) for one, *own in zip(self.each, unstack(state), batch[1], weights.split(batch[2]))])


class Gossip(Linearizable):
    """Stochastic gradient push: z = x/ω, every client's step at z moves x, then x ← P x and ω ← P ω, as a pure function of (x, ω).

    Args:
        own: the clients' steps.
        clients: how many there are, in all processes.
        here: those of this process.
        graph, seed: who speaks to whom.
        exchange: takes P and what the clients here hold, (here, numbers), and returns what they hold after the round.
        game: the GAN; None for a step of one's own.

    Optimiser memory, buffers and moving averages are every client's own.

    Source: Assran et al., ICML 2019 (stochastic gradient push); Kempe et al., FOCS 2003 (push-sum).
    """

    gan, optimizers, order, models = None, (), "gossip", False

    def __init__(self, own: Clients, clients: int, here: Sequence[int], graph: Graph, seed: int, exchange: Exchange, game: GAN | None):
        self.own, self.clients, self.here, self.graph, self.seed, self.exchange, self.game = own, clients, list(here), graph, seed, exchange, game

    def twin(self, gan=None) -> "Gossip":
        return self

    def step(self, state: State, batch: tuple, weights: Tensor) -> State:
        before = debiased(state)
        after = self.own.step(before, batch, weights)
        held = [x + (b - a) for mine, *two in zip(state[:2], before[:2], after[:2]) for x, a, b in zip(mine.values(), *(player.values() for player in two))]
        flat = torch.cat([*(x.flatten(1) for x in held), state.generator_memory[WEIGHT][:, None]], dim=1)
        *mixed, weight = self.exchange(self.graph(self.clients, batch[0], self.seed), flat).split([*(x[0].numel() for x in held), 1], dim=1)
        values = iter(new.reshape(x.shape) for new, x in zip(mixed, held))
        players = [{name: next(values) for name in player} for player in state[:2]]
        return after._replace(generator=players[0], discriminator=players[1], generator_memory={**after.generator_memory, WEIGHT: weight[:, 0]})


class _Game:
    """A GAN's step, in the floating type of the weights it is given."""

    def __init__(self, dynamics: Dynamics):
        self.dynamics = dynamics

    def __call__(self, state: State, batch: Batch, weights: Tensor) -> State:
        if weights.dtype == self.dynamics.gan.dtype:
            return self.dynamics.step(state, batch, weights)
        return self.double.step(state, batch.double(), weights)

    @cached_property
    def double(self) -> Dynamics:
        return self.dynamics.double()


class _Rounds(RecordedSchedule):
    def __init__(self, sizes: Sequence[int], indices: list[list[Tensor]], draw: Callable[[int], list]):
        first = np.cumsum([0, *sizes[:-1]])
        super().__init__(sum(sizes), {"indices": [torch.cat([rows + int(start) for rows, start in zip(one, first)]) for one in indices]})
        self.sizes, self.counts, self.draw = list(sizes), [[len(rows) for rows in one] for one in indices], draw
        self.alone = [RecordedSchedule(n, {"indices": list(own)}) for n, own in zip(sizes, zip(*indices))]  #: each client's own draws

    def batch(self, t: int, rows: Rows) -> tuple[int, list, list[int]]:
        """The round, what every client here drew, and how many instances."""
        return t, self.draw(t), self.counts[t]


def train_by_gossip(gan: GAN, shards: Sequence, graph: Graph, steps: int, batch_size: int | None = None, optimizer=None, order: Order = "alternating",
                    seed: int = 0, initial: State | None = None, stride: int | None = None, exchange: Exchange | None = None) -> Trajectory:
    """Train a GAN on data that never leave their owners, and record the run.

    Every client trains on its own shard, and after every step mixes its parameters with those who speak to it in that round. The
    movement of a client with N_i of all N instances is weighed by n·N_i/N, n being the number of clients, so an instance counts the same everywhere.

    Args:
        gan: the two networks, with which all clients start.
        shards: every client's training set, (N_i, ...), a tensor or a tuple of them. With `exchange`, the size of each that lives elsewhere.
        graph: who speaks to whom, such as `gi.graphs.ring`, or any such function.
        steps: how many each client takes.
        batch_size: instances, and latents, per client and step; None: all of its own.
        optimizer: of every client; SGD(1e-3) by default.
        order: of the two players' updates.
        seed: decides the graph, and what every client draws.
        initial: a state to begin with, instead of what the networks hold.
        stride: steps between kept states.
        exchange: for clients in other processes: takes P and what the clients here hold, (here, numbers), and returns what they hold after
            the round. Every process then calls this function and every reading in the same order.

    Returns:
        The recorded run, on the shards one after the other. Its states are stacked, x beside the push-sum weights ω; see `client_states`. Every
        reading works on it, with metrics by `over_clients`: these are the decentralised run's own truth, which needs to see everything.

    Raises:
        ValueError: for a client without data, or a graph that is not strongly connected over its rounds.

    Source: Assran et al., ICML 2019 (stochastic gradient push).

    >>> import gan_influence as gi
    >>> shards = gi.data.normal_2d(train=40, seed=0).train.split(10)
    >>> gi.train_by_gossip(gi.models.fcgan(), shards, gi.graphs.ring, steps=2, batch_size=5, seed=0)
    Trajectory(2 steps = 1 epoch of batch 20, n=40, gossip, a state every step, 0.5 MiB)
    """
    sizes, here = _sizes(shards, exchange)
    check_graph(graph, len(sizes), seed)
    whole("steps", steps)
    dynamics, runs = Dynamics(gan, optimizer or SGD(1e-3), order), []
    for i in here:
        if batch_size is not None and batch_size > sizes[i]:
            raise ValueError(f"every client draws a batch of its own instances, but client {i} has {sizes[i]}, fewer than batch_size {batch_size}")
        rows, own_seed = Rows(shards[i], gan.device, gan.dtype), int(stream("clients", seed, i).integers(2**62))
        size = whole("batch_size", sizes[i] if batch_size is None else batch_size)
        schedule = Schedule(sizes[i], size, -(-steps // (sizes[i] // size)), gan.latent_dim, order != "alternating", own_seed, latents=gan.latents)
        try_networks(gan, rows, schedule)
        runs.append(Trajectory(dynamics, rows, schedule, 1, {}))
    every = [torch.cat(same) for same in zip(*(run.rows.columns for run in runs))]
    x = every[0] if runs[0].rows.single else tuple(every)
    schedule = _Rounds([run.n for run in runs], [[run.schedule.indices(t) for run in runs] for t in range(steps)], lambda t: [run.batch(t) for run in runs])
    begin = dynamics.with_memory(gan.state() if initial is None else gan.state()._replace(**{name: own for name, own in initial._asdict().items() if own}))
    return _follow(_Game(dynamics), gan, begin, sizes, here, graph, seed, exchange, Rows(x, gan.device, gan.dtype), schedule, stride)


def record_by_gossip(step: Callable, initial: State | dict, batches: Sequence[Sequence[tuple]], shards: Sequence, graph: Graph, seed: int = 0,
                     stride: int | None = None, exchange: Exchange | None = None) -> Trajectory:
    """Run a step of one's own, of any model, on every client, with gossip in between: to `record` what `train_by_gossip` is to `train`.

    Args:
        step: a pure function step(state, (x_batch, drawn), weights) -> state, as of `record`.
        initial: where all clients start: a State, or one dictionary of tensors, which then are a State's `generator`.
        batches: for every step, and in it for every client of this process: (indices into its own shard, whatever else it draws).
        shards, graph, seed, stride, exchange: as of `train_by_gossip`.

    >>> def step(state, batch, weights):
    ...     (x, _), p = batch, state.generator["p"]
    ...     return state._replace(generator={"p": p - 0.5 * (weights[:, None] * (p - x)).mean(0)})
    >>> from gan_influence.training.graphs import full
    >>> everything = [([0, 1], None), ([0, 1], None)]
    >>> run = record_by_gossip(step, {"p": torch.zeros(1)}, [everything], [torch.zeros(2, 1), torch.ones(2, 1)], full)
    >>> [one.generator["p"].item() for one in client_states(run.final)]  # of 0 and 0.5 the mean
    [0.25, 0.25]
    """
    sizes, here = _sizes(shards, exchange)
    check_graph(graph, len(sizes), seed)
    initial = State(dict(initial), {}) if isinstance(initial, dict) else initial
    like = next(iter(initial.tensors()))
    rows = [Rows(shards[i], like.device, like.dtype) for i in here]
    for i, own in zip(here, zip(*batches)):
        if any(not 0 <= int(j) < sizes[i] for indices, _ in own for j in indices):
            raise ValueError(f"indices must lie in 0..{sizes[i] - 1}, the rows of client {i}, but a batch of its own holds another")
    indices = [[torch.as_tensor(own, dtype=torch.int64) for own, _ in one] for one in batches]
    every = [torch.cat(same) for same in zip(*(own.columns for own in rows))]
    schedule = _Rounds([sizes[i] for i in here], indices, lambda t: [(own[j], drawn) for own, j, (_, drawn) in zip(rows, indices[t], batches[t])])
    return _follow(step, None, initial, sizes, here, graph, seed, exchange, Rows(every[0] if rows[0].single else tuple(every), like.device, like.dtype),
                   schedule, stride)


def _follow(take: Callable, game: GAN | None, begin: State, sizes: list[int], here: list[int], graph: Graph, seed: int, exchange: Exchange | None,
            rows: Rows, schedule: _Rounds, stride: int | None) -> Trajectory:
    own = Clients(take, [sizes[i] * len(sizes) / sum(sizes) for i in here])
    stacked = stack([begin] * len(here))
    weight = torch.ones(len(here), dtype=rows.dtype, device=rows.device)
    stacked = stacked._replace(generator_memory={**stacked.generator_memory, WEIGHT: weight})
    return Trajectory.follow(Gossip(own, len(sizes), here, graph, seed, exchange or everybody_here, game), rows, schedule, stride, stacked)


def _sizes(shards: Sequence, exchange: Exchange | None) -> tuple[list[int], list[int]]:
    """How many instances every client has, and which clients are those of this process."""
    here = [i for i, shard in enumerate(shards) if not isinstance(shard, int)]
    sizes = [len(columns(shard)[0]) if i in here else shard for i, shard in enumerate(shards)]
    if not here or len(here) < len(sizes) and exchange is None:
        raise ValueError("gossip assumes the data of every client, or an exchange that reaches those elsewhere, but "
                         + (f"{len(sizes) - len(here)} shards are numbers and no exchange was given" if shards else "no shard was given"))
    if 0 in sizes:
        raise ValueError(f"gossip assumes that every client has data, but client {sizes.index(0)} has none: leave it out, or give it some")
    return sizes, here
