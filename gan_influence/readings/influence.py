"""Influence: a metric's gradient pulled back through a recorded run, one step at a time."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..game.kinks import with_bumps
from ..game.state import State
from ..tools.memory import in_chunks_that_fit
from ..tools.progress import progress
from ..training.dynamics import Dynamics, deterministic
from ..training.trajectory import Trajectory
from .derivative import check_derivative
from .implicit import implicit
from .judging import Metric, direction, instance_set, metrics_of, name_of, one_instance, settled, value

STATES_BYTES = 64 * 2**20  #: of states that are kept between two recorded ones


def influence(run: Trajectory, metric: Metric | Mapping[str, Metric], last_epochs: int | None = None,
              method: Literal["itd", "aid"] = "itd", compile: bool = False, iterations: int = 10_000,
              tolerance: float = 1e-12, last_steps: int | None = None, remove=(), kinks: float = 0.0) -> Tensor | dict[str, Tensor]:
    """Predict, for every training instance, how a metric would change if it had been absent.

    The metric's gradient u is pulled back through the run. At every step the product of u with the derivative by the
    batch's weights is minus the influence of the whole batch, and the product with the derivative by the state is the next u:
    one backward pass a step serves all instances.

    Args:
        run: a recorded run.
        metric: a differentiable callable metric(gan, state) -> scalar, or a dict of them; one sweep serves all.
        last_epochs: trace back this many epochs (k); removal before them is not counted. None means the whole run.
        last_steps: the same window in steps.
        method: "itd" differentiates the recorded steps (iterative differentiation). "aid" assumes that the last state is a
            fixed point of training and solves for the influence there, without the trajectory (approximate implicit differentiation), by a
            Neumann series that is damped as its spectrum asks.
        compile: compile the pull-back first (half a minute, once per run; needs a C++ compiler), for long windows.
        remove: instances that are absent from the window already: the same derivative, taken in that counterfactual. For them it is what their
            return would bring, with the sign of removal. Not for "aid".
        kinks: share, 0 to 1, of what ReLU and LeakyReLU lack of a second derivative that is given back as a bump at each kink; see
            `game.kinks`. It changes the estimate, not what it estimates. Not for "aid", nor compiled.
        iterations, tolerance: of "aid" only: what remains of its equation, ‖(I − Zᵀ)w − g‖ / ‖g‖, must fall to `tolerance`, or to rounding, in so many terms.

    Returns:
        (n,) float64 on the CPU, in the metric's units: predicted metric(without j) − metric(with j). Positive: removing j
        raises the metric. Exactly 0 for an instance that the window never drew. A dict for a dict. Of "aid", each has an attribute
        `diagnostics`, a named tuple that says whether to believe it: gradient_norm, drift (what the metric would still change by, were training
        to settle), smallest_real_part and spectral_radius of I − Zᵀ, step_radius (of Z, a step's derivative), alpha, iterations, residual.

    Raises:
        ValueError: for a metric that does not reach the generator, a window longer than the run, or a step that torch differentiates wrongly.
        FloatingPointError: for a metric, gradient or cotangent that is not finite, the message naming the step; for "aid" where no damping makes
            its series converge, or where it has not come to rest in `iterations` terms.

    Source: Terashita et al., ICLR 2021, section 3 (ITD); Terashita et al., TNNLS 2025 (AID).

    >>> import gan_influence as gi
    >>> data = gi.data.normal_2d(train=200, valid=50, test=50, seed=0)
    >>> gan = gi.models.fcgan()
    >>> run = gi.train(gan, data.train, epochs=2, seed=0)
    >>> gi.influence(run, gi.metrics.AverageLogLikelihood(data.valid, gan.sample_latents(50, seed=1)), last_epochs=1).shape
    torch.Size([200])
    """
    metrics = metrics_of(metric)
    start = run.window(last_epochs, last_steps)
    if len(removed := instance_set(run, remove)):
        if method != "itd":
            raise ValueError('influence in a counterfactual follows its steps, so method is "itd": leave remove out, or method')
        check_returns(run)
        run = run.without(removed, start)
    check_derivative(run)
    if kinks:
        if method != "itd" or compile:
            raise ValueError('kinks are given back where recorded steps are followed as they are: leave out method="aid" and compile, or kinks')
        run = run.with_gan(with_bumps(run.gan, kinks))
    if method == "itd":
        scores = pull_back(run, metrics, start, compile)
    elif method == "aid":
        if run.order == "gossip":
            raise ValueError("AID assumes a step that forgets where it began, but push-sum weights keep their sum for ever: use "
                             'gi.gossip_influence(run, metric, rounds, method="aid")')
        scores = implicit(run, [metric_gradient(run, m) for m in metrics.values()], iterations, tolerance)
    else:
        raise ValueError(f"unknown method {method!r}: choose 'itd' or 'aid'")
    return dict(zip(metrics, scores)) if isinstance(metric, Mapping) else scores[0]


def parameter_influence(run: Trajectory, j: int, last_epochs: int | None = None, last_steps: int | None = None) -> State:
    """Predict how the removal of one instance moves every parameter, by pushing a tangent forward through the run.

    Args:
        run: a recorded run.
        j: the instance.
        last_epochs, last_steps: count its removal from the start of the last k epochs, or of so many steps. None means the whole run.

    Returns:
        The predicted final state without j minus the one with j, as a State. Its product with a metric's gradient is
        `influence(run, metric, last_epochs)[j]`: the same linear map read in the other direction.

    Raises:
        IndexError: for an instance that does not exist.

    Source: Terashita et al., ICLR 2021, section 3 (ASGD-influence).

    >>> import gan_influence as gi
    >>> run = gi.train(gi.models.fcgan(), gi.data.normal_2d(train=200).train, epochs=2, seed=0)
    >>> gi.parameter_influence(run, 7, last_epochs=1).generator["0.weight"].shape
    torch.Size([32, 10])
    """
    start, j = run.window(last_epochs, last_steps), one_instance(run, j)
    rows, steps = run.draws(start)
    first = int(steps[rows == j][0]) if (rows == j).any() else run.steps
    state = run.state(first)
    tangent = state.map(torch.zeros_like)
    for t in range(first, run.steps):
        removed = (run.schedule.indices(t).to(run.rows.device) == j).to(run.rows.dtype)
        with forward_ad.dual_level(), torch.enable_grad(), deterministic(run.rows.device):
            dual = state.rebuild(map(forward_ad.make_dual, state.tensors(), tangent.tensors()))
            weights = forward_ad.make_dual(run.weights(t), -removed)
            after = run.dynamics.step(dual, run.batch(t), weights)
            pairs = [forward_ad.unpack_dual(p) for p in after.tensors()]
        state = state.rebuild(pair.primal.detach() for pair in pairs)
        tangent = state.rebuild(torch.zeros_like(p.primal) if p.tangent is None else p.tangent.detach() for p in pairs)
    return tangent


def harmfulness(scores: Tensor, metric: Metric) -> Tensor:
    """Influence signed so that larger means: the metric improves more when the instance is removed.

    >>> from types import SimpleNamespace
    >>> harmfulness(torch.tensor([1.0, -2.0]), SimpleNamespace(name="distance", higher_is_better=False))
    tensor([-1.,  2.])
    """
    return direction(metric) * scores


def metric_gradient(run: Trajectory, metric: Metric, trusted: bool = False) -> State:
    """The metric's gradient by the final state; a trusted metric is not asked whether it is a function of the state."""
    state = run.final.map(Tensor.requires_grad_)
    parameters = state.tensors()

    def differentiate() -> tuple[float, Sequence[Tensor | None]]:
        with torch.enable_grad(), deterministic(run.rows.device):
            found = value(metric, run.gan, state)
            return found.item(), torch.autograd.grad(found, parameters, allow_unused=True) if found.requires_grad else [None] * len(parameters)

    found, gradient = in_chunks_that_fit(metric, differentiate)
    if not trusted:
        settled(run, metric, found)
    name = name_of(metric)
    reached = state.rebuild(g is not None for g in gradient)
    if not any(any(field.values()) for field in (reached.generator, reached.generator_buffers, reached.average)):
        raise ValueError(f"influence assumes that the metric depends on the generator, but {name} does not reach it: build its value "
                         "from gan.generate(state, latents), without detaching and without numpy")
    cotangent = state.rebuild(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient))
    if not cotangent.is_finite():
        raise FloatingPointError(f"the gradient of {name} at the end of the run (step {run.steps}) holds a NaN or an infinity")
    return cotangent.map(Tensor.detach)


def check_returns(run: Trajectory) -> None:
    """Refuse a run in which what the return of a removed instance would bring cannot be read off a pull-back.

    Raises:
        ValueError: for a gradient penalty on a discriminator with batch normalisation: at weight 0 its slope by the instance is 0, too.
    """
    if run.gan is not None and run.gan.penalty is not None and run.dynamics.networks[1].norms:
        raise ValueError("what the return of a removed instance would bring has no derivative through a gradient penalty taken by way of batch statistics: "
                         "train the discriminator without one of the two, or remove in one round, by gi.cleanse")


def pull_back(run: Trajectory, metrics: Mapping[str, Metric], start: int, compile: bool = False, trusted: bool = False) -> list[Tensor]:
    """What `influence` returns of a run whose derivative has been checked, metric by metric."""
    return _sweep(run, [metric_gradient(run, metric, trusted) for metric in metrics.values()], start, compile)


def _sweep(run: Trajectory, cotangents: list[State], start: int, compile: bool) -> list[Tensor]:
    """Minus the sum over the window's steps of cotangent × derivative by the weights, per cotangent and instance."""
    scores = torch.zeros(len(cotangents), run.n, dtype=torch.float64)
    dynamics = run.stepper(compile=compile)
    length = 1 if compile else run.graphs_at_once
    bounds = sorted({start, run.steps} | {t for t in run.states if t > start})
    with progress(total=run.steps - start, desc="influence", unit="step") as bar:
        for a, b in reversed(list(zip(bounds, bounds[1:]))):
            later = cotangents
            cotangents, rows = _segment(run, dynamics, a, b, later, length)
            if not all(cotangent.is_finite() for cotangent in cotangents):
                _segment(run, dynamics, a, b, later, length, blame=True)
            drawn = torch.cat([run.schedule.indices(t) for t in reversed(range(a, b))])
            scores.index_add_(1, drawn, -rows.to("cpu", torch.float64))
            bar.update(b - a)
    return list(scores)


def _segment(run: Trajectory, dynamics: Dynamics, a: int, b: int, cotangents: Sequence[State], length: int,
             blame: bool = False, state: State | None = None) -> tuple[Sequence[State], Tensor]:
    """Pull cotangents back from state b to state a; also their products with the weights' derivatives, (m, ·), last step first.

    The steps are linearised in chunks of `length`, as many as memory may hold at once, so that few are computed twice. Where so many
    states would take more than STATES_BYTES, the segment is cut into parts, of which only the first states are kept.
    """
    state = run.state(a) if state is None else state
    few = -(-(b - a) // length) <= max(8, STATES_BYTES // state.nbytes)
    firsts, rows = range(a, b, length if few else length * math.isqrt((b - a) // length)), []
    states = [state for t, state in enumerate(run.walk(state, a, firsts[-1], dynamics=dynamics), a) if t in firsts]
    for first in reversed(firsts):
        state, pulls = states.pop(), []
        if not few:
            cotangents, part = _segment(run, dynamics, first, min(first + firsts.step, b), cotangents, length, blame, state)
            rows.append(part)
            continue
        for t in range(first, min(first + length, b)):
            state, pull = dynamics.linearize(state, run.batch(t), run.weights(t), reusable=len(cotangents) > 1)
            pulls.append(pull)
        while pulls:
            pull = pulls.pop()
            cotangents, batch_rows = zip(*map(pull, cotangents))
            del pull  # and with it the step's graph
            rows.append(torch.stack(batch_rows))
            if blame and not all(cotangent.is_finite() for cotangent in cotangents):
                raise FloatingPointError(f"influence assumes a finite cotangent, but pulling it back through step {first + len(pulls)} gave a NaN or an "
                                         "infinity: training is unstable there; trace back fewer epochs (last_epochs), or lower the learning rate")
    return cotangents, torch.cat(rows, dim=1)
