"""Approximate implicit differentiation: influence at a fixed point of training, without the trajectory."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..game.state import State
from ..training.dynamics import Pull
from ..training.trajectory import Trajectory


def implicit(run: Trajectory, gradients: list[State], iterations: int, tolerance: float) -> list[Tensor]:
    """Influence at a fixed point of training, per gradient.

    Every step of the last epoch is linearised at the final state; a full batch makes them one.
    """
    epoch = range(max(0, run.steps - run.schedule.steps_per_epoch), run.steps)

    @lru_cache(run.graphs_at_once)
    def pull_at(t: int) -> Pull:
        return run.dynamics.linearize(run.final, run.batch(t), run.ones(), reusable=True)[1]

    scores = []
    for gradient in gradients:
        w, score = _neumann(gradient, pull_at, epoch, iterations, tolerance), torch.zeros(run.n, dtype=torch.float64)
        for t in epoch:
            # A removal at the fixed point is felt in every epoch, by the batch that holds the instance: on average in 1/len(epoch) of the steps.
            score.index_add_(0, run.schedule.indices(t), -pull_at(t)(w)[1].to("cpu", torch.float64) / len(epoch))
        scores.append(score)
    return scores


def _neumann(gradient: State, pull_at: Callable[[int], Pull], epoch: range, iterations: int, tolerance: float) -> State:
    """The fixed point w = gradient + pull(w), as a Neumann series whose terms go round the epoch's steps."""
    w, size = gradient, _norm(gradient)
    for k in range(iterations):
        pulled, _ = pull_at(epoch[k % len(epoch)])(w)
        w, previous = gradient.rebuild(g + p for g, p in zip(gradient.tensors(), pulled.tensors())), w
        change = _norm(w.rebuild(p - q for p, q in zip(w.tensors(), previous.tensors()))) / _norm(w)
        if not change < 1e6 or not _norm(w) < 1e12 * size:
            raise FloatingPointError(f"AID assumes that training has settled where it attracts, but its Neumann series diverges (term {k}): "
                                     "lower the learning rate, add weight decay, or use method='itd'")
        if change < tolerance:
            return w
    raise FloatingPointError(f"AID assumes a Neumann series that comes to rest, but after {iterations} terms the last is still {change:.1e} of the sum "
                             f"({tolerance:.1e} was wanted): allow more iterations, train at a larger learning rate, or use method='itd'")


def _norm(state: State) -> float:
    return float(torch.stack([p.norm() for p in state.tensors()]).norm())
