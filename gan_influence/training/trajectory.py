"""A training run as a value: the states along the way, exact replay in between, files that hold it."""

import os
import warnings
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from ..game.gan import GAN
from ..game.state import State
from ..tools.checks import whole
from ..tools.progress import progress
from ..tools.storage import fingerprint, read_tensors, write_tensors
from ..tools.versions import versions
from .conditions import instances, refuse_other_modes
from .dynamics import Batch, Dynamics, Order, deterministic
from .keeping import default_stride, kept_steps
from .optimizers import OPTIMIZERS, SGD
from .schedule import RecordedSchedule, Schedule, restore_schedule

FORMAT = 2
GRAPH_BYTES = 128 * 2**20  #: of graphs of one pull-back that are kept at once
HEADER = {"format": int, "threads": int, "data": dict, "gan": dict, "optimizer": dict, "order": str, "stride": int, "schedule": dict,
          "steps": int}  # what a saved run must say about itself


class Trajectory:
    """A recorded run: everything needed to replay any step of it exactly, with or without an instance.

    Made by `train`, by `Trajectory.from_recording` or by `Trajectory.load`. States are kept every `stride` steps and
    recomputed in between; on the same machine with the same number of threads the recomputed states are equal bit for bit.

    Attributes:
        gan, x, optimizer, order, schedule: what was trained, on what, how.
        stride: steps between kept states.
        states: {step: State}, always holding the first and the last.
    """

    def __init__(self, gan: GAN, x: Tensor, optimizer, order: Order, schedule: Schedule | RecordedSchedule, stride: int,
                 states: dict[int, State]):
        self.gan, self.x, self.optimizer, self.order = gan.copy(), x, optimizer, order
        self.schedule, self.stride, self.states = schedule, stride, states
        self.dynamics = Dynamics(self.gan, optimizer, order)
        self.fingerprint, self._compiled = fingerprint(x), {}
        self.learning_rates = optimizer.learning_rates(schedule.steps).tolist()

    def __reduce__(self):
        return Trajectory, (self.gan, self.x, self.optimizer, self.order, self.schedule, self.stride, self.states)

    def __repr__(self) -> str:
        return (f"Trajectory({self.steps} steps = {self.steps / self.schedule.steps_per_epoch:g} epochs of batch {self.schedule.batch_size}, "
                f"n={self.n}, {self.order}, a state every {'step' if self.stride == 1 else f'{self.stride} steps'}, {self.nbytes / 2**20:.1f} MiB)")

    def stepper(self, models: bool = False, compile: bool = False):
        """The run's dynamics; for many models at once, or through torch's compiler: the same numbers to rounding, faster from the second call on."""
        if not compile:
            return self.dynamics.stacked if models else self.dynamics
        from .compiled import CompiledDynamics  # importing the compiler takes a second
        return self._compiled.setdefault(models, CompiledDynamics(self.stepper(models)))

    def double(self) -> Dynamics:
        """The run's dynamics in float64, whatever the run's own type is."""
        if self.gan.dtype == torch.float64:
            return self.dynamics
        gan = self.gan.copy()
        for network in gan.networks:
            network.double()
        return Dynamics(gan, self.optimizer, self.order)

    @property
    def n(self) -> int:
        """Number of training instances."""
        return len(self.x)

    @property
    def steps(self) -> int:
        """Number of training steps T; states are numbered 0..T."""
        return self.schedule.steps

    @property
    def initial(self) -> State:
        """The state before the first step; like every state that a run hands out, a copy."""
        return self.state(0)

    @property
    def final(self) -> State:
        """The state after the last step."""
        return self.state(self.steps)

    @property
    def nbytes(self) -> int:
        """Bytes of all kept states together."""
        return sum(state.nbytes for state in self.states.values())

    def batch(self, t: int) -> Batch:
        """What step t drew."""
        z, generator_z = self.schedule.latents(t)
        like = {"device": self.x.device, "dtype": self.x.dtype}
        return Batch(self.x[self.schedule.indices(t).to(self.x.device)], z.to(**like),
                     None if generator_z is None else generator_z.to(**like), tuple(self.learning_rates[t]))

    def state(self, t: int) -> State:
        """The state before step t (after the last step for t = T), replayed from the nearest kept one.

        Raises:
            IndexError: for t outside 0..T.
        """
        if not 0 <= t <= self.steps:
            raise IndexError(f"this run has states 0..{self.steps}, but state {t} was asked for")
        kept = max(s for s in self.states if s <= t)
        state = self.states[kept].map(Tensor.clone)
        return last(self.walk(state, kept, t)) if kept < t else state

    def replay(self, start: int = 0, stop: int | None = None) -> State:
        """Run steps start..stop-1 again and return the state reached; with nothing removed, the recorded one bit for bit."""
        return last(self.walk(self.state(start), start, self.steps if stop is None else stop))

    def walk(self, state: State, start: int, stop: int, keep: Tensor | None = None, dynamics: Dynamics | None = None) -> Iterator[State]:
        """Yield `state` and the states after each of the steps start..stop-1.

        Args:
            state: where to start from.
            start, stop: steps.
            keep: weights of all n instances, (n,), or (M, n) for M stacked models; None for ordinary training.
            dynamics: another step function than the recorded one, such as a stacked one.
        """
        dynamics = dynamics or self.dynamics
        weights = self.ones()
        yield state
        for t in range(start, stop):
            batch = self.batch(t)
            if keep is not None:
                weights = keep[..., self.schedule.indices(t).to(keep.device)]
            with torch.no_grad(), deterministic(self.x.device):  # not around the yield: the caller's grad mode is its own
                state = dynamics.step(state, batch, weights)
            yield state

    def ones(self) -> Tensor:
        """The weights of a batch from which nothing is removed, (B,)."""
        return torch.ones(self.schedule.batch_size, dtype=self.x.dtype, device=self.x.device)

    @cached_property
    def graph_bytes(self) -> int:
        """What one linearised step keeps alive until it is pulled back through."""
        saved = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.dynamics.linearize(self.initial, self.batch(0), self.ones())
        return sum(saved.values()) or 1

    @property
    def graphs_at_once(self) -> int:
        """How many linearised steps may be kept alive together."""
        return max(1, GRAPH_BYTES // self.graph_bytes)

    def window(self, last_epochs: int | None) -> int:
        """The first step of the last `last_epochs` epochs, None meaning the whole run, for a reading that begins now.

        Raises:
            ValueError: for a window longer than the run, or when the training set is no longer what was trained on.
            RuntimeError: where the reading would compute something else than the run did, or nothing.
        """
        self._refuse_other_conditions()
        if last_epochs is None:
            return 0
        epochs = self.steps // self.schedule.steps_per_epoch
        if isinstance(last_epochs, bool) or not isinstance(last_epochs, Integral) or not 1 <= last_epochs <= epochs:
            raise ValueError(f"last_epochs must be a whole number between 1 and the run's {epochs} epochs, got {last_epochs!r}")
        return self.steps - int(last_epochs) * self.schedule.steps_per_epoch

    def _refuse_other_conditions(self) -> None:
        if fingerprint(self.x) != self.fingerprint:
            raise ValueError("a reading assumes the training set that was trained on, but x has been changed since: leave it alone, or train on x.clone()")
        refuse_other_modes(self.x.device)

    def verify_replay(self) -> None:
        """Run again from one kept state to the next, and refuse the run when that ends elsewhere.

        Raises:
            ValueError: with both distances.
        """
        kept = sorted(self.states)
        stop = kept[min(1, len(kept) - 1)]
        state, expected = self.states[0], self.states[stop]
        gap, moved = _distance(last(self.walk(state, 0, stop)), expected), _distance(state, expected)
        if not gap <= 1e-3 * moved + 4 * torch.finfo(self.gan.dtype).eps * max(float(p.abs().max()) for p in expected.tensors()):
            raise ValueError(f"a run assumes that its steps can be taken again, but steps 0..{stop - 1} end {gap:.1e} away from where they ended, having moved "
                             f"{moved:.1e}: a network, loss or optimiser is not the one that was trained, or remembers something between calls")

    def draws(self, start: int) -> np.ndarray:
        """The instances that steps start..T-1 draw, (T - start, B) int64."""
        return np.stack([self.schedule.indices(t).numpy() for t in range(start, self.steps)])

    def save(self, path: str | os.PathLike) -> None:
        """Write `trajectory.json` and `states.safetensors` into the folder `path`; a run saved there before stays whole until the new one is."""
        self._refuse_other_conditions()
        header = {
            "format": FORMAT, "versions": versions(), "threads": torch.get_num_threads(), "device": str(self.x.device),
            "gan": self.gan.describe(), "optimizer": {"name": self.optimizer.name, **self.optimizer.describe()},
            "order": self.order, "stride": self.stride, "schedule": self.schedule.describe(), "steps": self.steps,
            "data": {"shape": list(self.x.shape), "fingerprint": self.fingerprint},
        }
        tensors = {f"{t}/{name}": p.cpu().contiguous() for t, state in self.states.items() for name, p in state.named().items()}
        write_tensors(path, "trajectory.json", header, tensors | self.schedule.tensors())

    @classmethod
    def load(cls, path: str | os.PathLike, gan: GAN, x: Tensor, optimizer=None) -> "Trajectory":
        """Read what `save` wrote.

        Args:
            path: the folder.
            gan: the architecture that was trained.
            x: the training set that was used, (n, ...).
            optimizer: only for optimisers of your own; the package's are built again from the file.

        Raises:
            ValueError: when the file is truncated or foreign, or belongs to another data set or another architecture.

        >>> import tempfile, gan_influence as gi
        >>> gan, x = gi.models.fcgan(), gi.data.normal_2d(train=200).train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     gi.train(gan, x, epochs=1, seed=0).save(folder)
        ...     Trajectory.load(folder, gan, x).steps
        2
        """
        x = instances(gan, x)
        header, tensors = read_tensors(path, "trajectory.json", str(x.device), needs=HEADER)
        if header["format"] != FORMAT:
            raise ValueError(f"{path} has trajectory format {header['format']!r}, this version reads {FORMAT}: use the version {header.get('versions')}")
        for what, recorded, given in (("training set", header["data"], {"shape": list(x.shape), "fingerprint": fingerprint(x)}),
                                      ("GAN", header["gan"], gan.describe())):
            if recorded != given:
                raise ValueError(f"{path} was recorded with another {what}: the file says {_difference(recorded, given)}; pass the one that was trained")
        schedule = restore_schedule(header["schedule"], tensors)
        if optimizer is None:
            arguments = dict(header["optimizer"])
            name = arguments.pop("name")
            if name not in OPTIMIZERS:
                raise ValueError(f"{path} was trained with the optimiser {name!r}, which this package does not have: pass optimizer=")
            optimizer = OPTIMIZERS[name](**arguments)
        template = Dynamics(gan, optimizer, header["order"]).initial().named()
        steps = sorted({int(name.split("/")[0]) for name in tensors if "/" in name})
        if not steps or steps[0] != 0 or steps[-1] != schedule.steps or schedule.steps != header["steps"]:
            raise ValueError(f"{path} should hold states 0..{schedule.steps} but holds {steps}: it may be truncated; record the run again")
        states = {t: _state(path, t, template, tensors) for t in steps}
        if header["threads"] != torch.get_num_threads():
            warnings.warn(f"{path} was recorded with {header['threads']} threads and is read with {torch.get_num_threads()}: the last digits of a replay "
                          f"may differ; torch.set_num_threads({header['threads']}) makes them equal", stacklevel=2)
        run = cls(gan, x, optimizer, header["order"], schedule, header["stride"], states)
        run.verify_replay()
        return run

    @classmethod
    def from_recording(cls, gan: GAN, x, indices, latents, optimizer, order: Order = "alternating", generator_latents=None,
                       initial: State | None = None, final: State | None = None, stride: int | None = None) -> "Trajectory":
        """Import a run that somebody else's loop made, by replaying it.

        Args:
            gan: the two networks.
            x: training set, (n, ...).
            indices: (T, B), which instances each step drew; an epoch counts n // B steps.
            latents: (T, B, latent_dim), used by both players unless `generator_latents`, of the same shape, is given.
            optimizer: such as `SGD(1e-3)`.
            order: "alternating" or "simultaneous".
            initial: the state it started from; by default the parameters that the two modules held when the GAN was made.
            final: if given, where the run must end.
            stride: steps between kept states.

        Raises:
            ValueError: for indices outside 0..n-1, shapes that do not fit, or a replay that ends elsewhere than `final`.

        >>> import gan_influence as gi
        >>> x, indices = gi.data.normal_2d(train=6).train, [[0, 1, 2], [3, 4, 5]]
        >>> Trajectory.from_recording(gi.models.fcgan(), x, indices, torch.zeros(2, 3, 10), gi.SGD(0.1))
        Trajectory(2 steps = 1 epochs of batch 3, n=6, alternating, a state every step, 0.1 MiB)
        """
        x = instances(gan, x)
        indices = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
        latents, generator_latents = (None if z is None else torch.as_tensor(z).detach().cpu() for z in (latents, generator_latents))
        if indices.ndim != 2:
            raise ValueError(f"indices must be (T, B): one row of instances per step; got shape {tuple(indices.shape)}")
        if indices.min() < 0 or indices.max() >= len(x):
            raise ValueError(f"indices must lie in 0..{len(x) - 1}, the rows of x; got {int(indices.min())}..{int(indices.max())}")
        for name, z in (("latents", latents), ("generator_latents", generator_latents)):
            if z is not None and z.shape != (*indices.shape, gan.latent_dim):
                raise ValueError(f"{name} must be (T, B, latent_dim) = {(*indices.shape, gan.latent_dim)} to match indices; got {tuple(z.shape)}")
        schedule = RecordedSchedule(len(x), indices, latents, generator_latents)
        run = record(gan, x, optimizer, order, schedule, stride, initial)
        if final is not None:
            expected = run.final._replace(generator=final.generator, discriminator=final.discriminator)
            gap, moved = _distance(run.final, expected), _distance(run.final, run.initial)
            size, eps = max(float(p.abs().max()) for p in run.final.tensors()), torch.finfo(gan.dtype).eps
            if not gap <= 64 * (eps**0.5 * moved + eps * size):
                raise ValueError(f"the replay of this recording ends {gap:.2e} away from `final`, having moved {moved:.2e}: the order, "
                                 "the learning rate, the latents, the loss, the weight decay or the initial state is not the one that was used")
        return run


def train(gan: GAN, x, epochs: int, batch_size: int = 100, optimizer: SGD | None = None, order: Order = "alternating",
          seed: int = 0, stride: int | None = None, dense_epochs: int | None = None) -> Trajectory:
    """Train a GAN and record the run.

    Args:
        gan: the two networks; their modules are left as they were.
        x: training set, (n, ...), a tensor or an array; its device is where everything happens.
        epochs: passes over the data, n // batch_size steps each.
        batch_size: real instances, and latents, per step.
        optimizer: SGD(1e-3) by default.
        order: "alternating" (discriminator first, then the generator against it) or "simultaneous".
        seed: decides the order of the instances and all latents.
        stride: steps between kept states; see `default_stride` and `trajectory_bytes`.
        dense_epochs: also keep every state of so many last epochs. An influence over them then replays nothing, which saves a fifth of
            its time for convolutional networks, whose steps take more memory than their states. None: see `default_dense_epochs`.

    Returns:
        The recorded run.

    Raises:
        ValueError: for networks or data that a recorded run cannot hold.
        FloatingPointError: when a parameter stops being finite; the message names the step.

    >>> import gan_influence as gi
    >>> data = gi.data.normal_2d(train=200, valid=10, test=10, seed=0)
    >>> gi.train(gi.models.fcgan(), data.train, epochs=2, seed=0)
    Trajectory(4 steps = 2 epochs of batch 100, n=200, alternating, a state every step, 0.2 MiB)
    """
    x = instances(gan, x)
    schedule = Schedule(len(x), batch_size, epochs, gan.latent_dim, order == "simultaneous", seed)
    return record(gan, x, optimizer or SGD(1e-3), order, schedule, stride, dense_epochs=dense_epochs)


def record(gan: GAN, x: Tensor, optimizer, order: Order, schedule, stride: int | None = None, initial: State | None = None,
           dense_epochs: int | None = None) -> Trajectory:
    """Run a schedule from an initial state (the modules' own by default), keeping a state every `stride` steps."""
    refuse_other_modes(x.device)
    if missing := [method for method in ("init", "update", "learning_rates") if not hasattr(optimizer, method)]:
        raise ValueError(f"an optimiser is a value such as gi.SGD(1e-3), with init, update and learning_rates, but {optimizer!r} has no {missing[0]}")
    gan.check(x, schedule.batch_size)
    stride = default_stride(schedule.steps, schedule.steps_per_epoch) if stride is None else whole("stride", stride)
    kept = kept_steps(gan, schedule.steps, schedule.steps_per_epoch, stride, dense_epochs)
    run = Trajectory(gan, x, optimizer, order, schedule, stride, {})
    like = {"device": x.device, "dtype": x.dtype}
    state = run.dynamics.initial() if initial is None else run.dynamics.with_memory(initial)
    states = run.walk(state.map(lambda p: p.detach().clone().to(**like)), 0, schedule.steps)
    for t, state in enumerate(progress(states, desc="training", total=schedule.steps + 1, unit="step")):
        if t in kept:
            if not state.is_finite():
                _blame(run, max(run.states, default=0), t)
            run.states[t] = state
    run.verify_replay()
    return run


def last(states: Iterator[State]) -> State:
    """The last of an iterator's states, without keeping the others."""
    return deque(states, maxlen=1).pop()


def _blame(run: Trajectory, start: int, stop: int) -> None:
    state = run.states.get(start)
    states = enumerate(run.walk(state, start, stop), start) if state else []
    bad = next((t for t, state in states if not state.is_finite()), stop)
    raise FloatingPointError(f"training assumes finite numbers, but after step {bad - 1} a parameter was NaN or infinite: "
                             "lower the learning rate, or look at the instances of that step")


def _state(path: str | os.PathLike, t: int, template: dict[str, Tensor], tensors: dict[str, Tensor]) -> State:
    players = {field: {} for field in State._fields}
    for name, like in template.items():
        found = tensors.get(f"{t}/{name}")
        if found is None or found.shape != like.shape or found.dtype != like.dtype:
            seen = "nothing" if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise ValueError(f"{path}: state {t} should hold {name} as {tuple(like.shape)} {like.dtype}, found {seen}: the file is damaged or foreign")
        field, key = name.split(".", 1)
        players[field][key] = found
    return State(**players)


def _difference(recorded: dict, given: dict) -> str:
    return "; ".join(f"{key} {recorded.get(key)!r}, given was {given.get(key)!r}" for key in recorded | given if recorded.get(key) != given.get(key))


def _distance(a: State, b: State) -> float:
    return max(float((p - q.to(p)).abs().max()) for p, q in zip(a.tensors(), b.tensors()))
