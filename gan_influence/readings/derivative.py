"""Is the pull-back the derivative of the step? Asked of every run before an influence is read off, because layers may lie."""

import warnings

import torch
from torch import Tensor

from ..tools.streams import torch_stream
from ..training.dynamics import Batch
from ..training.trajectory import Trajectory

ROWS = 16  #: of the batch that are tried: a derivative that is wrong is wrong for few
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
        step, inputs = _double_step(run)
        after, pull = step(inputs, graph=True)
    except RuntimeError as error:
        warnings.warn(f"the derivative of a training step could not be checked, because the networks do not compute in float64 ({error}): compare "
                      "gi.influence with gi.leave_one_out for a few instances", stacklevel=3)
        return
    random = torch_stream("derivative", 0)
    sizes = [p.square().mean().sqrt().clamp(min=1e-3) for p in inputs]
    for width in (1e-6, 1e-7, 3e-8):
        cotangent = [torch.randn(p.shape, generator=random, dtype=p.dtype).to(p.device) for p in after]
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
    names = [*run.states[0].named(), "the instances' weights"]
    wrong = [name for i, name in enumerate(names) if disagreement(range(i, i + 1)) > TOLERANCE * _norm([learnt[i] * sizes[i]]) + noise]
    raise ValueError("influence assumes that torch differentiates a training step rightly, but pulling back through one differs from a central difference "
                     f"in {', '.join(wrong or names)}: look in these networks for detach, no_grad, functions of your own, layers without a second "
                     "derivative")


def _double_step(run: Trajectory):
    """The run's last step on a few rows in float64: a function of flat tensors, and where it is taken."""
    twin, t = run.double(), run.steps - 1
    x, z, generator_z, rates = run.batch(t)
    rows = min(ROWS, len(x), len(z))
    batch = Batch(*(None if part is None else part[:rows].double() for part in (x, z, generator_z)), tuple(max(LEAST_RATE, rate) for rate in rates))
    state = run.state(t).map(Tensor.double)

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

    return step, [*state.tensors(), torch.ones(rows, dtype=torch.float64, device=x.device)]


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([(p * q).sum() for p, q in zip(a, b)]).sum()


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([p.norm() for p in tensors]).norm()
