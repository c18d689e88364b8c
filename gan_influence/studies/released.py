"""The estimators that were released with the papers of 2021 and 2025, as they behave, written from a description of that."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..game.gan import columns
from ..game.state import State
from ..readings.influence import harmfulness, metric_gradient
from ..readings.judging import Metric
from ..tools.noise import dice
from ..training.plan import DISCRIMINATOR, GENERATOR, Update
from ..training.trajectory import Trajectory

Pulled = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]  # by the generator's and the discriminator's parameters, and by the batch's weights
Change = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]  # a player's parameters and gradients -> its parameters afterwards


class Question(NamedTuple):
    """What a method is asked: which instances harm this metric, had they been absent from the run's last epochs?"""

    run: Trajectory
    metric: Metric
    last_epochs: int
    held_out: Tensor  #: validation instances, for the methods that look at the discriminator's loss on them
    seed: int = 0  #: of whatever a method draws


def released_2021(question: Question) -> Tensor:
    """The estimator released with the paper of 2021: every step is one of simultaneous plain SGD with the step's learning rates.

    Both players' gradients are taken at the parameters before the step, the metric by the generator's parameters alone, and an instance counts by
    its term of the loss. So it is exact for what it was made for, simultaneous SGD without batch statistics, penalties and averages, and
    differs elsewhere: it takes alternating updates for simultaneous ones, Adam for SGD, and knows of no batch normalisation.

    Source: Terashita et al., ICLR 2021, section 3, and the behaviour of their released code.
    """
    run, gradient = _two_players(question.run), metric_gradient(question.run, question.metric)

    def pull(t: int, state: State, after: State, u: State) -> tuple[State, Tensor]:
        halves = [_pull(run, t, player, state, u, _sgd(run.batch(t).learning_rate[player])) for player in (GENERATOR, DISCRIMINATOR)]
        return _plus(_plus(u, halves[0]), halves[1]), halves[1][2]

    return swept(question, _cotangent(run, gradient), pull)


def released_2025(question: Question, scale: float = 1.0) -> Tensor:
    """The iterative estimator released with the paper of 2025: alternating updates, of optimisers whose memory is constant.

    The update is differentiated by the present gradient, through both of Adam's moments, and not by the moments before it; the generator's
    memory is that of the end of the run at every step, the discriminator's the step's own. An instance counts by its term of the loss.
    `scale` damps every pull-back, u ← u + scale·(∂change/∂θ)ᵀu: the released commands have .01 for one epoch; 1 is what the mathematics says.

    Source: Terashita et al., TNNLS 2025, and the behaviour of their released code.
    """
    run, gradient, share = _two_players(question.run), metric_gradient(question.run, question.metric), question.run.dynamics.average
    (of_generator, of_discriminator), last = run.dynamics.optimizers, run.schedule.number(run.steps - 1)[GENERATOR] + 1

    def pull(t: int, state: State, after: State, u: State) -> tuple[State, Tensor]:
        batch = run.batch(t)
        if gradient.average:  # the average holds this share of what the step makes of the generator
            u = _plus(u, _cotangent(run, gradient)[:2], (1 - share) * share ** (run.steps - 1 - t))
        u = _plus(u, _pull(run, t, GENERATOR, state._replace(discriminator=after.discriminator), u, lambda p, g: of_generator.update(
            p, g, run.final.generator_memory, batch.learning_rate[GENERATOR], last)[0]), scale)
        half = _pull(run, t, DISCRIMINATOR, state, u, lambda p, g: of_discriminator.update(
            p, g, state.discriminator_memory, batch.learning_rate[DISCRIMINATOR], batch.number[DISCRIMINATOR])[0])
        return _plus(u, half, scale), half[2]

    start = _cotangent(run, gradient)
    return swept(question, start.map(torch.zeros_like) if gradient.average else start, pull)


def released_aid(question: Question, iterations: int = 1_000, rate: float = 1e-3, summed: bool = False) -> Tensor:
    """The implicit estimator released with the paper of 2025, at the end of the run: (I − sJᵀ)ᴷ g where the series Σₖ (I − sJᵀ)ᵏ g was meant.

    Batches are those of the last epoch, over and over, and the two players' halves follow each other within an iteration.
    `summed` adds g once per iteration, as was meant; neither has converged at the released s·K = 1, nor need it where training has not settled.

    Source: Terashita et al., TNNLS 2025, and the behaviour of their released code.
    """
    run, gradient, final = _two_players(question.run), metric_gradient(question.run, question.metric), question.run.final
    epoch, g, scores = range(run.schedule.epoch_starts()[-1], run.steps), _cotangent(run, gradient), torch.zeros(run.n, dtype=torch.float64)
    w = g
    for k in range(iterations):
        for player in (GENERATOR, DISCRIMINATOR):
            w = _plus(w, _pull(run, epoch[k % len(epoch)], player, final, w, _sgd(rate)))
        w = _plus(w, g[:2]) if summed else w
    for t in epoch:
        scores.index_add_(0, run.schedule.indices(t), -_pull(run, t, DISCRIMINATOR, final, w, _sgd(rate))[2].to("cpu", torch.float64))
    return harmfulness(scores, question.metric)


def swept(question: Question, u: State, pull: Callable[[int, State, State, State], tuple[State, Tensor]]) -> Tensor:
    """Minus the products with the weights' derivatives, summed over the window from its last step to its first; as harmfulness."""
    run, start, scores = question.run, question.run.window(question.last_epochs), torch.zeros(question.run.n, dtype=torch.float64)
    states = list(run.walk(run.state(start), start, run.steps))
    for t in reversed(range(start, run.steps)):
        u, row = pull(t, states[t - start], states[t + 1 - start], u)
        scores.index_add_(0, run.schedule.indices(t), -row.to("cpu", torch.float64))
    return harmfulness(scores, question.metric)


def _cotangent(run: Trajectory, gradient: State) -> State:
    """A metric's gradient as one by the generator's parameters, whether it looked at them or at their average."""
    by = gradient.average or gradient.generator
    return State({name: by[name] for name in run.final.generator}, {name: torch.zeros_like(p) for name, p in run.final.discriminator.items()})


def _pull(run: Trajectory, t: int, player: int, state: State, u: State, update: Change) -> Pulled:
    """Pull a cotangent back through how one player's update changes its parameters; weights count in the instances' terms of the loss alone."""
    gan, batch = run.gan, run.batch(t)
    z = batch.z if player == DISCRIMINATOR or batch.generator_z is None else batch.generator_z
    players = [{name: p.detach().requires_grad_() for name, p in own.items()} for own in state[:2]]
    weights, own = torch.ones(len(batch.x), dtype=batch.x.dtype, device=batch.x.device, requires_grad=True), players[player]
    throws = batch.dice if player == DISCRIMINATOR or batch.generator_z is None else batch.dice[1:]  # noise is the recorded one
    with torch.enable_grad(), dice(next(iter(throws), None), batch.x.device):
        fake = gan.apply_generator(players[0], state.generator_buffers, *columns(z))[0].reshape(-1, *batch.x.shape[1:])
        on_fake = gan.apply_discriminator(players[1], state.discriminator_buffers, fake)[0].flatten()
        if player == GENERATOR:
            loss = gan.loss.generator(on_fake).mean()
        else:
            on_real = gan.apply_discriminator(players[1], state.discriminator_buffers, batch.x)[0].flatten()
            loss = (weights * gan.loss.real(on_real)).mean() + gan.loss.fake(on_fake).mean()
        loss = loss + gan.weight_decay / 2 * sum(p.square().sum() for p in own.values() if p.ndim >= 2)
        after = update(own, dict(zip(own, torch.autograd.grad(loss, list(own.values()), create_graph=True))))
        pulled = torch.autograd.grad([after[name] - p for name, p in own.items()], [*players[0].values(), *players[1].values(), weights],
                                     [u[player][name] for name in own], allow_unused=True, materialize_grads=True)
    return dict(zip(players[0], pulled)), dict(zip(players[1], pulled[len(players[0]):])), pulled[-1]


def _plus(u: State, pulled: tuple, scale: float = 1.0) -> State:
    return State(*({name: p + scale * more[name] if name in more else p for name, p in own.items()} for own, more in zip(u[:2], pulled)))


def _sgd(rate: float) -> Change:
    return lambda parameters, gradients: {name: p - rate * gradients[name] for name, p in parameters.items()}


def _two_players(run: Trajectory) -> Trajectory:
    plan = run.batch(run.steps - 1).plan if run.gan else ()
    if run.gan is None or run.gan.own_losses or not run.rows.single or sum(type(event) is Update for event in plan) != 2:
        raise ValueError("the released estimators assume a GAN with losses of this package, data of one tensor and one update of each player a step, "
                         "but this run has others: ask for another method")
    return run
