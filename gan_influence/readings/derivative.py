"""Is the pull-back the derivative of the step? Asked of every run before an influence is read off, because layers may lie."""

import threading
import warnings

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..game.state import State
from ..tools.streams import torch_stream
from ..training.optimizers import resting
from ..training.plan import PLAYERS, Batch, Judge, Make
from ..training.trajectory import Trajectory

ROWS = 16  #: of the batch that are tried: a derivative that is wrong is wrong for few
DEFAULT = threading.Lock()
TOLERANCE = 1e-5  #: of the typical size of what is compared
LEAST_RATE = 1e-2  #: learning rate of the tried step: with a smaller one, rounding would hide the gradient


def check_derivative(run: Trajectory) -> None:
    """Compare one pull-back with a central difference of the step along a random direction of state and weights, in float64.

    Some of torch's layers have a wrong second derivative, others (detach, no_grad, functions of one's own) none, and influence would
    be wrong without a word. Kinks may disturb a difference: only what disagrees along three directions, and on either side, is refused.

    Raises:
        ValueError: with the parameters that disagree.

    Source: the directional test of Griewank and Walther, Evaluating Derivatives, 2008.
    """
    try:
        return _check(run)
    except ValueError:
        if run.rows.dtype == torch.float64:
            raise
    with DEFAULT:  # it belongs to all threads
        own = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float64)  # losses of one's own may make tensors inside, whose rounding is no derivative
            return _check(run)
        finally:
            torch.set_default_dtype(own)


def _check(run: Trajectory) -> None:
    try:
        step, inputs = _double_step(run)
        after, pull = step(inputs, graph=True)
    except RuntimeError as error:
        warnings.warn(f"the derivative of a training step could not be checked, because the networks do not compute in float64 ({error}): compare "
                      "gi.influence with gi.leave_one_out for a few instances", stacklevel=4)
        return
    random = torch_stream("derivative", 0)
    # What must stay positive, second moments and variances, moves in proportion to itself.
    sizes = [p.abs() if name.partition(".")[0] not in State._fields[:2] else p.square().mean().sqrt().clamp(min=1e-3).expand(p.shape)
             for name, p in zip([*run.final.named(), "generator."], inputs)]
    counted = _counted(run.final.rebuild(after))
    for width in (1e-6, 1e-7, 3e-8):
        cotangent = [torch.randn(p.shape, generator=random, dtype=p.dtype).to(p.device) * counts for p, counts in zip(after, counted)]
        direction = [size * torch.randn(p.shape, generator=random, dtype=p.dtype).to(p.device) for size, p in zip(sizes, inputs)]
        pulled = pull(cotangent)
        if not all(p.isfinite().all() for p in pulled):
            return  # the sweep will say where
        # What the identity contributes, the cotangent itself, is no part of the question.
        learnt = [p - c for p, c in zip(pulled, cotangent)] + pulled[len(cotangent):]
        noise = 10 * torch.finfo(torch.float64).eps * _norm([c * p for c, p in zip(cotangent, after)]) / width

        def disagreement(which: range, direction=direction, cotangent=cotangent, pulled=pulled, width=width) -> Tensor:
            moved = [width * d if i in which else torch.zeros_like(d) for i, d in enumerate(direction)]
            ahead, behind = (step([p + sign * m for p, m in zip(inputs, moved)]) for sign in (1, -1))
            expected = width * _dot([pulled[i] for i in which], [direction[i] for i in which])
            # Where a kink lies within reach on one side, the other side tells.
            one, other = (_dot(cotangent, [a - b for a, b in zip(*pair)]) - expected for pair in ((ahead, after), (after, behind)))
            return torch.stack([one.abs(), other.abs(), (one + other).abs() / 2]).min() / width

        if disagreement(range(len(inputs))) <= TOLERANCE * _norm([p * size for p, size in zip(learnt, sizes)]) + noise:
            return
    names = [*run.final.named(), "the instances' weights"]
    wrong = [name for i, name in enumerate(names) if disagreement(range(i, i + 1)) > TOLERANCE * _norm([learnt[i] * sizes[i]]) + noise]
    raise ValueError("influence assumes that torch differentiates a training step rightly, but pulling back through one differs from a central difference "
                     f"in {', '.join(wrong or names)}: look in these networks for detach, no_grad, functions of your own, layers without a second "
                     "derivative")


def _double_step(run: Trajectory):
    """The run's last step in float64, on a few rows where its plan is cut short: a function of flat tensors, and where it is taken."""
    twin, t = run.double(), run.steps - 1
    batch, state = run.batch(t), run.state(t).map(Tensor.double)
    weights = run.weights(t).double()
    if run.gan is not None:
        batch, weights = _few(batch, weights)
        batch = batch.double()._replace(learning_rate=tree_map(lambda rate: max(LEAST_RATE, rate), batch.learning_rate))

    def step(flat: list[Tensor], graph: bool = False):
        here, weights = state.rebuild(flat[:-1]), flat[-1]
        if not graph:
            with torch.no_grad():
                return twin.step(here, batch, weights).tensors()
        after, pull = twin.linearize(here, batch, weights, reusable=True)

        def pull_flat(cotangent: list[Tensor]) -> list[Tensor]:
            before, row = pull(after.rebuild(cotangent))
            return [*before.tensors(), row]

        return after.tensors(), pull_flat

    return step, [*state.tensors(), weights]


def _few(batch: Batch, weights: Tensor) -> tuple[Batch, Tensor]:
    """The batch with at most ROWS rows in every piece that its plan names."""
    def cut(first: int, last: int) -> tuple[int, int]:
        return first, min(last, first + ROWS)

    plan = []
    for event in batch.plan:
        if isinstance(event, Make):
            event = event._replace(rows=cut(*event.rows))
        elif isinstance(event, Judge):
            event = event._replace(parts=tuple((kind, *cut(*where[:2]), *where[2:]) if kind != "fake" else (kind, *where) for kind, *where in event.parts))
        plan.append(event)
    return batch._replace(plan=tuple(plan)), weights


def _counted(after: State) -> list[Tensor | float]:
    """0 where an optimiser divides rounding noise by rounding noise, whose derivative is not taken; 1 elsewhere."""
    counts = dict.fromkeys(after.named(), 1.0)
    for player, memory in zip(PLAYERS, after[2:4]):
        counts |= {f"{player}.{name}": (~noise).double() for name, noise in resting(memory, 1e-24).items()}
    return list(counts.values())


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([(p * q).sum() for p, q in zip(a, b)]).sum()


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([p.norm() for p in tensors]).norm()
