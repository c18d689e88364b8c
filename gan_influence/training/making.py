"""Runs are made: by training, or by following a step of one's own."""

from collections.abc import Callable, Sequence

import torch

from ..game.gan import GAN
from ..game.state import State
from .conditions import try_networks
from .dynamics import Dynamics, Linearizable
from .optimizers import SGD
from .plan import Order
from .rows import Rows
from .schedule import RecordedSchedule, Schedule
from .trajectory import Trajectory


def train(gan: GAN, x, epochs: int, batch_size: int = 100, optimizer=None, order: Order = "alternating", seed: int = 0, stride: int | None = None,
          dense_epochs: int | None = None, *, average: float | None = None, discriminator_steps: int = 1, clip_weights: float | None = None) -> Trajectory:
    """Train a GAN and record the run.

    Args:
        gan: the two networks; their modules are left as they were.
        x: training set, (n, ...), a tensor or an array, a tuple of them (images, labels), or a data set that gives one instance for an index
            and is read batch by batch. Its device is where everything happens. A generator that takes labels is given the batch's own.
        epochs: passes over the data, n // batch_size updates of the discriminator each.
        batch_size: real instances, and latents, per update.
        optimizer: SGD(1e-3) by default; one for both players or a pair, generator's first; torch.optim's are understood.
        order: "alternating" (discriminator first, then the generator against it), "simultaneous" or "generator first".
        seed: decides the order of the instances, all latents and whatever the networks draw.
        stride: steps between kept states; see `default_stride` and `trajectory_bytes`.
        dense_epochs: also keep every state of so many last epochs. An influence over them then replays nothing, which saves a fifth of
            its time for convolutional networks, whose steps take more memory than their states. None: see `default_dense_epochs`.
        average: decay of the generator's moving average, by which `gan.generate` then generates; its buffers are the generator's own.
        discriminator_steps: updates of the discriminator in every step, each with a batch of its own.
        clip_weights: clamp the discriminator's parameters to ±this after each update.

    Returns:
        The recorded run.

    Raises:
        ValueError: for networks, data or optimisers that a recorded run cannot hold.
        FloatingPointError: when a parameter stops being finite; the message names the step.

    >>> import gan_influence as gi
    >>> data = gi.data.normal_2d(train=200, valid=10, test=10, seed=0)
    >>> gi.train(gi.models.fcgan(), data.train, epochs=2, seed=0)
    Trajectory(4 steps = 2 epochs of batch 100, n=200, alternating, a state every step, 0.2 MiB)
    """
    rows, dynamics = Rows(x, gan.device, gan.dtype), Dynamics(gan, optimizer or SGD(1e-3), order, clip_weights, average)
    schedule = Schedule(len(rows), batch_size, epochs, gan.latent_dim, order != "alternating", seed, discriminator_steps, gan.latents)
    try_networks(gan, rows, schedule)
    return Trajectory.follow(dynamics, rows, schedule, stride, dense_epochs=dense_epochs)


class _OwnStep(Linearizable):
    """A step of the user's own, as the dynamics of a run."""

    gan, optimizers, order, models = None, (), "a step of your own", False

    def __init__(self, step: Callable[[State, tuple, torch.Tensor], State]):
        self.step = step

    def twin(self, gan=None) -> "_OwnStep":
        return self


class _OwnBatches(RecordedSchedule):
    def __init__(self, n: int, batches: Sequence[tuple]):
        super().__init__(n, {"indices": [torch.as_tensor(indices, dtype=torch.int64) for indices, _ in batches]})
        self.drawn = [drawn for _, drawn in batches]

    def batch(self, t: int, rows: Rows) -> tuple:
        return rows[self.indices(t)], self.drawn[t]


def record(step: Callable, initial: State | dict, batches: Sequence[tuple], x, stride: int | None = None) -> Trajectory:
    """Run a training step of one's own, of any model, and record the run; every reading works on it.

    Args:
        step: a pure function step(state, (x_batch, drawn), weights) -> state of differentiable operations; weights (B,) has one number per
            row of x_batch, 1 in ordinary training.
        initial: a State, or one dictionary of tensors, which then are a State's `generator`.
        batches: for every step (indices, drawn): which instances it draws, (B,), and whatever else it draws.
        x: training set.
        stride: steps between kept states.

    Returns:
        The recorded run. Metrics are called as metric(None, state). Leave-one-out trains one model at a time, and runs are not saved.

    Raises:
        ValueError: for indices outside the training set.

    >>> def step(state, batch, weights):
    ...     (x, _), p = batch, state.generator["p"]
    ...     return state._replace(generator={"p": p - 0.1 * (weights[:, None] * (p - x)).mean(0)})
    >>> record(step, {"p": torch.zeros(2)}, [([0, 1], None), ([2, 3], None)], torch.ones(4, 2)).final.generator["p"]
    tensor([0.1900, 0.1900])
    """
    initial = State(dict(initial), {}) if isinstance(initial, dict) else initial
    like = next(iter(initial.tensors()))
    rows = Rows(x, like.device, like.dtype)
    if batches and not all(0 <= int(i) < len(rows) for indices, _ in batches for i in indices):
        raise ValueError(f"indices must lie in 0..{len(rows) - 1}, the rows of x, but a batch holds another")
    schedule = _OwnBatches(len(rows), batches)
    return Trajectory.follow(_OwnStep(step), rows, schedule, stride, initial)
