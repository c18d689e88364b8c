"""Whether training answers small changes of its instances' weights smoothly: what any derivative through training takes for granted."""

import math

import torch

from ..tools.streams import stream
from ..training.trajectory import Trajectory, last


def smoothness(run: Trajectory, last_epochs: int | None = None, step: float = 0.05, last_steps: int | None = None, seed: int = 0) -> float:
    """Compare how three trainings, whose instances' weights differ by equal steps, differ in each parameter: is the second step like the first?

    With weights 1, 1 + hv and 1 + 2hv, v drawn from a standard normal for every instance, training ends at θ0, θ1 and θ2. Of every parameter of
    both players, the sign of θ1 − θ0 is compared with that of θ2 − θ1; the agreement, 1 or −1, is averaged with weight \\|θ2 − θ0\\|. The first
    training is the recorded one, so it costs two replays of the window, no derivative and no leave-one-out.

    Args:
        run: a recorded run.
        last_epochs, last_steps: the window in which weights differ, in epochs or in steps; None means the whole run.
        step: h, by how much weights change, in weights.
        seed: draws v.

    Returns:
        Empirical metasmoothness, without unit, between −1 and 1: 1 where every parameter goes on as it began; near 0 influences predict little.
        NaN where no parameter moved.

    Raises:
        ValueError: for a step that is not a positive number.
        FloatingPointError: where training did not stay finite under other weights.

    Source: Engstrom et al., arXiv 2503.13751, Definition 2, with EleutherAI's bergson for the distribution of v.

    >>> import gan_influence as gi
    >>> run = gi.train(gi.models.fcgan(activation=torch.nn.Tanh), gi.data.normal_2d(train=200).train, epochs=2, seed=0)
    >>> smoothness(run) > .9
    True
    """
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 < step < math.inf:
        raise ValueError(f"the step by which weights change is a positive number, but got {step!r}: pass for instance 0.05")
    start = run.window(last_epochs, last_steps)
    v = torch.from_numpy(stream("verification", seed, 4).standard_normal(run.n)).to(run.rows.device, run.rows.dtype)
    ends = [run.final, *(last(run.walk(run.state(start), start, run.steps, run.present * (1 + times * step * v))) for times in (1, 2))]
    if not all(end.is_finite() for end in ends):
        raise FloatingPointError(f"smoothness assumes that training stays finite under slightly other weights, but with step={step:g} it did not: "
                                 "take a smaller step, or a shorter window (last_epochs)")
    first, second, third = (torch.cat([p.flatten().double() for player in end[:2] for p in player.values()]) for end in ends)
    moved = (third - first).abs()
    return float(((second - first).sign() * (third - second).sign() * moved).sum() / moved.sum())
