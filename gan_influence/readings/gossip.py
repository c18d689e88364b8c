"""Influence without a centre: every client pulls its own metric's gradient back, and averages it with the others' by push-sum."""

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..game.gan import GAN
from ..game.state import State
from ..training.gossip import WEIGHT, Exchange, Gossip, client_states, debiased, everybody_here
from ..training.graphs import Graph, check_graph
from ..training.trajectory import Trajectory
from .derivative import check_derivative
from .implicit import DIRECTIONS, _damping, _eigenvalues
from .influence import metric_gradient
from .judging import Metric, metrics_of, name_of

DENSE = 2_000  #: numbers of a client up to which D-AID makes its derivative a matrix, where that takes fewer pull-backs than the series has terms


class GossipDiagnostics(NamedTuple):
    """What one client's scores cost, and what they rest on."""

    rounds: int  #: of messages, in all
    messages: int  #: that this client sent
    bytes_sent: int  #: in them: the cotangent of the parameters and one push-sum weight, in float64
    disagreement: float  #: relative distance between this client's parameters at the end of the run and what push-sum makes of everybody's
    damping: float  #: of D-AID, in training steps; of D-ITD 1
    iterations: int  #: terms that were summed, or steps that were traced back
    residual: float  #: of D-AID: this client's last term over its first; of D-ITD 0


class OverClients:
    """The mean over clients of a metric, each at that client's own parameters: a metric of the decentralised run, for every reading."""

    def __init__(self, run: Trajectory, metric: Metric | Sequence[Metric]):
        gossip = gossip_of(run)
        self.gan, self.clients = gossip.game, gossip.clients
        self.metrics = list(metric) if isinstance(metric, (list, tuple)) else [metric] * len(gossip.here)
        if len(self.metrics) != len(gossip.here):
            raise ValueError(f"metrics are one for all clients or one for each, but there are {len(self.metrics)} for {len(gossip.here)} clients")
        for one in self.metrics:
            metrics_of(one)
        self.name = f"mean over clients of {name_of(self.metrics[0])}"
        self.higher_is_better = getattr(self.metrics[0], "higher_is_better", None)

    def __call__(self, gan: GAN | None, state: State) -> Tensor:
        return sum(metric(self.gan, own) for metric, own in zip(self.metrics, client_states(state))) / self.clients


def over_clients(run: Trajectory, metric: Metric | Sequence[Metric]) -> OverClients:
    """A metric, or one for each client, as a metric of a decentralised run: the mean over clients of metric(gan, the client's own state).

    With it `influence`, `leave_one_out` and every other reading work on the run: these see all clients at once, and are the truth
    that `gossip_influence` is measured against.

    >>> import gan_influence as gi
    >>> gan, shards = gi.models.lqgan(), torch.randn(8, 1, dtype=torch.float64).split(4)
    >>> run = gi.train_by_gossip(gan, shards, gi.graphs.full, steps=3, optimizer=gi.SGD(0.1))
    >>> metric = over_clients(run, lambda gan, state: gan.generate(state, torch.ones(1, 1, dtype=torch.float64)).sum())
    >>> gi.influence(run, metric).shape
    torch.Size([8])
    """
    return OverClients(run, metric)


def push_sum(values: Tensor, graph: Graph, rounds: int, seed: int = 0, first: int = 0, exchange: Exchange = everybody_here) -> Tensor:
    """The mean over clients by gossip: everybody passes shares of its value and of a weight of 1 on, and divides the two in the end.

    Args:
        values: every client's, (clients, numbers); with `exchange`, those of the clients here.
        graph, seed: who speaks to whom.
        rounds: how often.
        first: the first round's number.
        exchange: as of `train_by_gossip`.

    Returns:
        What every client then has for the mean, (clients, numbers).

    Source: Kempe et al., FOCS 2003.

    >>> import gan_influence as gi
    >>> push_sum(torch.tensor([[0.0], [4.0]]), gi.graphs.full, rounds=1)
    tensor([[2.],
            [2.]])
    """
    return _Voices(len(values), graph, rounds, seed, first, exchange).mean(values)


class _Voices:
    """Averages by push-sum, round after round; and how many messages went out by then."""

    def __init__(self, clients: int, graph: Graph, rounds: int, seed: int, first: int, exchange: Exchange):
        if isinstance(rounds, bool) or not isinstance(rounds, Integral) or rounds < 0:
            raise ValueError(f"rounds of gossip are a whole number, 0 (nobody speaks) or more, got {rounds!r}")
        self.clients, self.graph, self.rounds, self.seed, self.t, self.exchange = clients, graph, int(rounds), seed, first, exchange
        self.first, self.messages, self.bytes = first, np.zeros(clients, dtype=np.int64), np.zeros(clients, dtype=np.int64)

    def mean(self, values: Tensor) -> Tensor:
        held = torch.cat([values, values.new_ones(len(values), 1)], dim=1)
        for self.t in range(self.t + 1, self.t + 1 + self.rounds):  # noqa: B020
            p = self.graph(self.clients, self.t - 1, self.seed)
            sent = (p > 0).sum(0) - 1  # what stays at home is no message
            self.messages += sent
            self.bytes += sent * held[0].nbytes
            held = self.exchange(p, held)
        return _divided(held)


def _divided(held: Tensor) -> Tensor:
    return held[:, :-1] / held[:, -1:]


def gossip_influence(run: Trajectory, metric: Metric | Sequence[Metric], rounds: int, method: Literal["itd", "aid"] = "itd",
                     last_steps: int | None = None, graph: Graph | None = None, damping: float | None = None, iterations: int = 1_000) -> list[Tensor]:
    """Predict, at every client and for its own instances alone, how the clients' mean metric would change without each of them.

    Nobody sees another's data, batches or scores: only cotangents u, as long as the parameters, are averaged among neighbours. Every client starts
    from u = ∇V_i/n, n being the number of clients. "itd" follows the client's own steps back: u becomes the others' average, then goes through
    the client's step at its own recorded parameters. The exact adjoint would send along reversed links (Pᵀ); averaging instead leaves an error that
    vanishes as the clients come to agree. "aid" repeats, at the end of the run, u ← ū − damping·(I − Z_iᵀ)ū, Z_i being the derivative of the client's step
    averaged over its last pass, and reads the scores off the sum of all ū.

    Args:
        run: of `train_by_gossip` or `record_by_gossip`.
        metric: a differentiable callable metric(gan, state) -> scalar, judged at each client's own parameters; or a list, one for every client.
        rounds: of push-sum before each pull-back. 0: nobody speaks.
        method: "itd" or "aid".
        last_steps: of "itd": trace back so many; None means the whole run.
        graph: over which the clients speak now; None: as they trained.
        damping: of "aid", in training steps: under SGD α over the learning rate. None: as the spectrum of the clients' mean asks,
            which takes all clients in this process.
        iterations: of "aid": how many terms.

    Returns:
        For every client (N_i,) float64 on the CPU, in the metric's units: predicted mean metric without the instance, minus with it. Each has an
        attribute `diagnostics`, a named tuple: rounds, messages, bytes_sent, disagreement, damping, iterations, residual.

    Raises:
        TypeError: for a run that was not made by gossip.
        ValueError: for a graph that is not strongly connected, or whatever `influence` refuses.
        FloatingPointError: where a damping is too large for the spectrum, or none would do.

    Source: Terashita and Hara, arXiv 2210.02129 (hyper-gradients by gossip), with a game's Jacobian for the Hessian.

    >>> import gan_influence as gi
    >>> gan, shards = gi.models.lqgan(), torch.randn(8, 1, dtype=torch.float64).split(4)
    >>> run = gi.train_by_gossip(gan, shards, gi.graphs.ring, steps=3, optimizer=gi.SGD(0.1))
    >>> scores = gossip_influence(run, lambda gan, state: gan.generate(state, torch.ones(1, 1, dtype=torch.float64)).sum(), rounds=5)
    >>> [len(one) for one in scores], scores[0].diagnostics.bytes_sent  # (3 steps + 1) · 5 rounds · (4 parameters + 1 weight) · 8 bytes
    ([4, 4], 800)
    """
    gossip, graph = gossip_of(run), graph or run.dynamics.graph
    if method not in ("itd", "aid"):
        raise ValueError(f"unknown method {method!r}: choose 'itd' or 'aid'")
    check_graph(graph, gossip.clients, gossip.seed, run.steps)
    voices = _Voices(gossip.clients, graph, rounds, gossip.seed, run.steps, gossip.exchange)
    start = run.window(None, last_steps)
    apart = Trajectory(gossip.own, run.rows, run.schedule, run.stride, {t: debiased(state) for t, state in run.states.items()}, None, run.keep)
    check_derivative(apart)
    gradient = _at_own_parameters(metric_gradient(run, over_clients(run, metric)), run.final)
    end = flat(debiased(run.final))[:, :_shared(gradient)].double()
    mean = voices.mean(end)
    disagreement = (end - mean).norm(dim=1) / mean.norm(dim=1)
    if method == "itd":
        scores, seen = _trace_back(run, gradient, start, voices), (1.0, run.steps - start, [0.0] * len(gossip.here))
    else:
        scores, *seen = _series(run, gradient, voices, damping, iterations)
    found = [own.clone() for own in scores.split(run.schedule.sizes)]
    for k, (i, own) in enumerate(zip(gossip.here, found)):
        own.diagnostics = GossipDiagnostics(voices.t - run.steps, int(voices.messages[i]), int(voices.bytes[i]), float(disagreement[k]), *seen[:2], seen[2][k])
    return found


def gossip_of(run: Trajectory) -> Gossip:
    """The dynamics of a run that was made by gossip; TypeError for another."""
    if not isinstance(getattr(run, "dynamics", None), Gossip):
        raise TypeError(f"influence by gossip assumes a run of gi.train_by_gossip or gi.record_by_gossip, but got {run!r}: make one, or use gi.influence")
    return run.dynamics


def flat(states: State) -> Tensor:
    """Stacked states as rows, (clients, numbers): both players' parameters, which are spoken about, come first."""
    return torch.cat([p.flatten(1) for p in states.tensors()], dim=1)


def _unflat(rows: Tensor, like: State) -> State:
    return like.rebuild(part.reshape(p.shape) for part, p in zip(rows.split([p[0].numel() for p in like.tensors()], dim=1), like.tensors()))


def _shared(states: State) -> int:
    return sum(p[0].numel() for player in states[:2] for p in player.values())


def _at_own_parameters(cotangent: State, final: State) -> State:
    """A cotangent of x as one of z = x/ω."""
    memory = {name: p for name, p in cotangent.generator_memory.items() if name != WEIGHT}
    return debiased(cotangent._replace(generator_memory={**memory, WEIGHT: 1 / final.generator_memory[WEIGHT]}))


def _trace_back(run: Trajectory, gradient: State, start: int, voices: _Voices) -> Tensor:
    """D-ITD: for every step, last first, average what is shared, then pull each client's cotangent through its own step."""
    scores, own, shared, u = torch.zeros(run.n, dtype=torch.float64), run.dynamics.own, _shared(gradient), flat(gradient)
    bounds = sorted({start, run.steps} | {t for t in run.states if t > start})
    for a, b in reversed(list(zip(bounds, bounds[1:]))):
        states = list(run.walk(run.state(a), a, b - 1))
        for t in reversed(range(a, b)):
            u[:, :shared] = voices.mean(u[:, :shared].double())
            pulled, rows = own.linearize(debiased(states.pop()), run.batch(t), run.weights(t))[1](_unflat(u, gradient))
            u = flat(pulled)
            scores.index_add_(0, run.schedule.indices(t), -rows.to("cpu", torch.float64))
        if not u.isfinite().all():
            raise FloatingPointError(f"influence assumes a finite cotangent, but pulling it back to step {a} gave a NaN or an infinity: training is unstable "
                                     "there; trace back fewer steps (last_steps), or lower the learning rate")
    return scores


def _series(run: Trajectory, gradient: State, voices: _Voices, damping: float | None, iterations: int) -> tuple[Tensor, float, int, list[float]]:
    """D-AID: the sum over terms of what the clients have for the mean cotangent, through each client's derivative by its instances' weights."""
    gossip, shared, g = run.dynamics, _shared(gradient), flat(gradient).double()
    clients = [_AtRest(run, k, state, iterations) for k, state in enumerate(client_states(run.final))]

    def pull(u: Tensor) -> Tensor:
        return torch.stack([one.pull(own) for one, own in zip(clients, u)])

    if len(gossip.here) == gossip.clients:
        def agreed(u: Tensor) -> Tensor:
            return torch.cat([u[:, :shared].mean(0), u[:, shared:].flatten()])

        def operator(v: Tensor) -> Tensor:
            u = torch.cat([v[:shared].expand(len(g), -1), v[shared:].view(len(g), -1)], dim=1)
            return v - agreed(pull(u))

        start = agreed(g)
        values = _eigenvalues(operator, start, min(len(start), DIRECTIONS)) if start.any() else np.ones(1)
        damping, limit = _damping(values) if damping is None else damping, float((2 * values.real / np.abs(values) ** 2).min())
        if not 0 < damping < limit:
            raise FloatingPointError(f"decentralised AID assumes a damping between 0 and min 2·Re λ/|λ|², here {limit:.3g}, for all eigenvalues λ of I − Zᵀ, Z "
                                     f"being the mean derivative of the clients' steps, but damping is {damping:g}: its series diverges; lower it")
    elif damping is None:
        raise ValueError("the damping is found from the spectrum of all clients' mean, but not all clients are in this process: give one")
    total, u = torch.zeros_like(g), g.clone()
    for _ in range(iterations):
        u[:, :shared] = voices.mean(u[:, :shared])
        total += u
        u = u - damping * (u - pull(u))
    residual = u.norm(dim=1) / g.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    rest = f"decentralised AID assumes a series that comes to rest, but after {iterations} terms the last is {float(residual.max()):.1e} of the first: "
    if not (residual < 1).all():
        raise FloatingPointError(rest + "lower the damping, add rounds, or train until it settles")
    if residual.max() > 1e-2:
        warnings.warn(rest + "allow more iterations", stacklevel=3)
    return torch.cat([one.scores(damping * own) for one, own in zip(clients, total)]), damping, iterations, residual.tolist()


class _AtRest:
    """One client's steps of its last pass over its data, linearised at its final state in float64."""

    def __init__(self, run: Trajectory, k: int, state: State, iterations: int):
        self.like, alone, own = state.map(Tensor.double), run.schedule.alone[k], run.dynamics.own.each[k]
        self.n, starts = alone.n, [*alone.epoch_starts(), alone.steps]
        passes = list(zip(starts, starts[1:]))
        drawn = [sum(len(alone.indices(t)) for t in range(*one)) for one in passes]
        last = passes[-2] if len(passes) > 1 and drawn[-1] < drawn[-2] else passes[-1]  # the last one that is whole
        self.indices, self.pulls = [alone.indices(t) for t in range(*last)], []
        for t in range(*last):
            weights = run.weights(t).split(run.schedule.counts[t])[k].double()
            self.pulls.append(own.linearize(self.like, run.batch(t)[1][k], weights, reusable=True)[1])
        self.matrix, numbers = None, sum(p.numel() for p in self.like.tensors())
        if numbers < min(DENSE, iterations):
            self.matrix = torch.stack([self._pull(one)[0] for one in torch.eye(numbers, dtype=torch.float64, device=weights.device)])

    def _pull(self, u: Tensor) -> tuple[Tensor, Tensor]:
        cotangent = self.like.rebuild(part.view_as(p) for part, p in zip(u.split([p.numel() for p in self.like.tensors()]), self.like.tensors()))
        before, rows, scores = 0, 0, torch.zeros(self.n, dtype=torch.float64)
        for indices, pull in zip(self.indices, self.pulls):
            pulled, rows = pull(cotangent)
            before = before + torch.cat([p.flatten() for p in pulled.tensors()])
            scores.index_add_(0, indices, -rows.cpu())
        return before / len(self.pulls), scores / len(self.pulls)

    def pull(self, u: Tensor) -> Tensor:
        """The cotangent before the step."""
        return u @ self.matrix if self.matrix is not None else self._pull(u)[0]

    def scores(self, u: Tensor) -> Tensor:
        """Minus its product with the derivative by the instances' weights, (N_i,)."""
        return self._pull(u)[1]
