"""A training run as a value: the states along the way, exact replay in between, files that hold it."""

import os
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from ..game.gan import GAN, columns
from ..game.state import State
from ..tools.checks import counted, whole
from ..tools.progress import progress
from .conditions import refuse_other_modes, try_networks
from .dynamics import Dynamics, deterministic
from .keeping import default_stride, kept_steps
from .plan import Batch, Judge, Order
from .rows import Rows
from .saving import read, write
from .schedule import RecordedSchedule, Schedule, recorded

GRAPH_BYTES = 128 * 2**20  #: of graphs of one pull-back that are kept at once


class Trajectory:
    """A recorded run: everything needed to replay any step of it exactly, with or without an instance.

    Made by `train`, by `record`, by a `Recorder`, by `Trajectory.from_recording` or by `Trajectory.load`. States are kept every `stride`
    steps and recomputed in between; on the same machine with the same number of threads the recomputed states are equal bit for bit.

    Attributes:
        gan, x, dynamics, schedule: what was trained, on what, how, and what each step drew.
        stride: steps between kept states.
        states: {step: State}, always holding the first and the last.
        keep: weights of all n instances from the first state on, (n,), of a counterfactual that `without` made; None: nothing is removed.
        report: where a Recorder made it, what was understood, in words.
    """

    report = ""

    def __init__(self, dynamics, rows: Rows, schedule: Schedule | RecordedSchedule, stride: int, states: dict[int, State], rates: list | None = None,
                 keep: Tensor | None = None):
        self.gan = dynamics.gan and dynamics.gan.copy()
        self.dynamics = dynamics.twin(self.gan)
        self.rows, self.schedule, self.stride, self.states = rows, schedule, stride, states
        self._compiled, self._ones, self.rates, self.keep = {}, {}, rates, keep
        pair = self.dynamics.optimizers
        if not rates and pair:
            rates = np.stack([one.learning_rates(schedule.steps)[:, player] for player, one in enumerate(pair)], 1).tolist()
        self.learning_rates = rates or []

    def __reduce__(self):
        return Trajectory, (self.dynamics, self.rows, self.schedule, self.stride, self.states, self.rates, self.keep)

    def __repr__(self) -> str:
        return (f"Trajectory({counted(self.steps, 'step')} = {counted(len(self.schedule.epoch_starts()), 'epoch')} of batch {self.schedule.batch_size}, "
                f"n={self.n}, {self.order}, a state every {'step' if self.stride == 1 else f'{self.stride} steps'}, {self.nbytes / 2**20:.1f} MiB)")

    @property
    def x(self):
        """The training set, as it was given, in the GAN's floating type."""
        if self.rows.read is not None:
            return self.rows.read
        return self.rows.columns[0] if self.rows.single else self.rows.columns

    @property
    def order(self) -> str:
        """In which order the players are updated."""
        return "the order it was recorded in" if self.schedule.plan(0) else self.dynamics.order

    @property
    def optimizer(self):
        """The optimiser of both players, or the pair of them."""
        generator, discriminator = self.dynamics.optimizers
        return generator if generator is discriminator else (generator, discriminator)

    def stepper(self, models: bool = False, compile: bool = False):
        """The run's dynamics; for many models at once, or through torch's compiler: the same numbers to rounding, faster from the second call on."""
        if not compile:
            return self.dynamics.stacked if models else self.dynamics
        if self.draws_within:
            raise ValueError("compile=True assumes that all random numbers are drawn before a step, but these networks draw some within, such as dropout's, "
                             "and a compiler would draw others: leave compile out")
        from .compiled import CompiledDynamics  # importing the compiler takes a second
        return self._compiled.setdefault(models, CompiledDynamics(self.stepper(models)))

    def double(self) -> Dynamics:
        """The run's dynamics in float64, whatever the run's own type is."""
        return self.dynamics if self.gan is None else self.dynamics.double()

    @property
    def draws_within(self) -> bool:
        """Whether passes through the networks draw random numbers."""
        return self.gan is not None and any(network.random for network in self.dynamics.networks)

    @property
    def n(self) -> int:
        """Number of training instances."""
        return len(self.rows)

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
        if self.gan is None:
            return self.schedule.batch(t, self.rows)
        indices, (z, own_z), plan = self.schedule.indices(t), map(columns, self.schedule.latents(t)), self.schedule.plan(t)
        x = self.rows.take(indices)
        mix, penalty = None, self.gan.penalty
        if inputs := self.schedule.parts.get("inputs") if plan else None:
            x = (inputs[t].to(self.rows.device, self.rows.dtype), *x[1:])
        if plan is None:
            takes = self.dynamics.networks[0].takes
            z = z if len(z) > 1 else (*z, *x[1:takes])  # a generator that takes labels is given the batch's
            own_z = own_z if len(own_z) != 1 else (*own_z, *(column[-len(own_z[0]):] for column in x[1:takes]))
            due = None if penalty is None or t % penalty.every else "mix" if penalty.between else "real"
            plan = self.dynamics.plan(len(indices), len(z[0]), len(own_z[0]) if own_z else None, getattr(self.schedule, "updates", 1), due)
        if any(event.parts[0][0] == "mix" for event in plan if type(event) is Judge):
            mix = self.schedule.mix(t).to(self.rows.device, self.rows.dtype)
        z, own_z = (tuple(a.to(self.rows.device, self.rows.dtype if a.is_floating_point() else None) for a in part) for part in (z, own_z))
        dice = self.schedule.dice(t, len(plan)) if self.draws_within else ()
        single = [part[0] if len(part) == 1 else part or None for part in (x, z, own_z)]
        return Batch(*single, tuple(self.learning_rates[t]), self.schedule.number(t), plan, dice, mix)

    def state(self, t: int) -> State:
        """The state before step t (after the last step for t = T), replayed from the nearest kept one.

        Raises:
            IndexError: for t outside 0..T.
        """
        if not 0 <= t <= self.steps:
            raise IndexError(f"this run has states 0..{self.steps}, but state {t} was asked for")
        if t < min(self.states):
            raise IndexError(f"this counterfactual begins with step {min(self.states)}, but state {t} was asked for: ask the run that it was made of")
        kept = max(s for s in self.states if s <= t)
        state = self.states[kept].map(Tensor.clone)
        return last(self.walk(state, kept, t)) if kept < t else state

    def replay(self, start: int = 0, stop: int | None = None) -> State:
        """Run steps start..stop-1 again and return the state reached; with nothing removed, the recorded one bit for bit."""
        return last(self.walk(self.state(start), start, self.steps if stop is None else stop))

    def walk(self, state: State, start: int, stop: int, keep: Tensor | None = None, dynamics: Dynamics | None = None, watch=None) -> Iterator[State]:
        """Yield `state` and the states after each of the steps start..stop-1.

        Args:
            state: where to start from.
            start, stop: steps.
            keep: weights of all n instances, (n,), or (M, n) for M stacked models; None for the run's own.
            dynamics: another step function than the recorded one, such as a stacked one.
            watch: called with the step, and the player and the gradients of each of its updates.
        """
        dynamics = dynamics or self.dynamics
        yield state
        for t in range(start, stop):
            batch = self.batch(t)
            weights = self.weights(t) if keep is None else keep[..., self.schedule.indices(t).to(keep.device)]
            options = {"watch": lambda *seen, t=t: watch(t, *seen)} if watch else {}
            with torch.no_grad(), deterministic(self.rows.device):  # not around the yield: the caller's grad mode is its own
                state = dynamics.step(state, batch, weights, **options)
            yield state

    def without(self, removed: Tensor, start: int, compile: bool = False) -> "Trajectory":
        """The counterfactual in which instances were absent from step `start` on, as a run that begins there; it costs one replay.

        Args:
            removed: which, (m,) int64.
            start: a step; what was absent already stays so.
            compile: take its steps through torch's compiler.
        """
        keep = self.present.clone()
        keep[removed.to(keep.device)] = 0
        return self.starting(start, self.state(start), keep, compile)

    def starting(self, start: int, state: State, keep: Tensor | None = None, compile: bool = False) -> "Trajectory":
        """The run that takes the same steps from another state on; `keep` and `compile` as `walk` and `without` have them."""
        run = Trajectory(self.dynamics, self.rows, self.schedule, self.stride, {}, self.rates, self.keep if keep is None else keep)
        run._compiled = self._compiled
        states = run.walk(state, start, self.steps, dynamics=self.stepper(compile=compile))
        run.states = {t: after for t, after in enumerate(states, start) if t in self.states or t == start}
        return run

    @property
    def present(self) -> Tensor:
        """The weights of all n instances, (n,): `keep`, or ones."""
        return torch.ones(self.n, dtype=self.rows.dtype, device=self.rows.device) if self.keep is None else self.keep

    def with_gan(self, gan: GAN) -> "Trajectory":
        """The same run, through networks that compute the same values."""
        return Trajectory(self.dynamics.twin(gan), self.rows, self.schedule, self.stride, self.states, self.rates, self.keep)

    def weights(self, t: int = 0) -> Tensor:
        """The weights of step t's batch, (B,): 1 each, but for what a counterfactual lacks."""
        if self.keep is not None:
            return self.keep[self.schedule.indices(t).to(self.keep.device)]
        size = len(self.schedule.indices(t))
        if size not in self._ones:
            self._ones[size] = torch.ones(size, dtype=self.rows.dtype, device=self.rows.device)
        return self._ones[size]

    @cached_property
    def graph_bytes(self) -> int:
        """What one linearised step keeps alive until it is pulled back through."""
        saved = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            t = self.steps - 1
            self.dynamics.linearize(self.final, self.batch(t), self.weights(t))
        return sum(saved.values()) or 1

    @property
    def graphs_at_once(self) -> int:
        """How many linearised steps may be kept alive together."""
        return max(1, GRAPH_BYTES // self.graph_bytes)

    def window(self, last_epochs: int | None, last_steps: int | None = None) -> int:
        """The first step of the last `last_epochs` epochs or `last_steps` steps, None meaning the whole run, for a reading that begins now.

        Raises:
            ValueError: for a window longer than the run, or when the training set is no longer what was trained on.
            RuntimeError: where the reading would compute something else than the run did, or nothing.
        """
        self._refuse_other_conditions()
        if last_epochs is not None and last_steps is not None:
            raise ValueError("a window is given in epochs or in steps, but last_epochs and last_steps were both given")
        starts = self.schedule.epoch_starts()
        name, asked, most = ("last_steps", last_steps, self.steps) if last_epochs is None else ("last_epochs", last_epochs, len(starts))
        if asked is None:
            return min(self.states)
        if isinstance(asked, bool) or not isinstance(asked, Integral) or not 1 <= asked <= most:
            raise ValueError(f"{name} must be a whole number between 1 and the run's {most} {name[5:]}, got {asked!r}")
        return self.steps - int(asked) if last_epochs is None else starts[len(starts) - int(asked)]

    def _refuse_other_conditions(self) -> None:
        if not self.rows.unchanged():
            raise ValueError("a reading assumes the training set that was trained on, but x has been changed since: leave it alone, or train on x.clone()")
        refuse_other_modes(self.rows.device)

    def verify_replay(self) -> None:
        """Run again from one kept state to the next, and refuse the run when that ends elsewhere.

        Raises:
            ValueError: with both distances.
        """
        kept = sorted(self.states)
        stop = kept[min(1, len(kept) - 1)]
        state, expected = self.states[0], self.states[stop]
        (gap, _), (moved, _) = apart(last(self.walk(state, 0, stop)), expected), apart(state, expected)
        if not gap <= 1e-3 * moved + 4 * torch.finfo(self.rows.dtype).eps * max(float(p.abs().max()) for p in expected.tensors()):
            raise ValueError(f"a run assumes that its steps can be taken again, but steps 0..{stop - 1} end {gap:.1e} away from where they ended, having moved "
                             f"{moved:.1e}: a network, loss or optimiser is not the one that was trained, or remembers something between calls")

    def draws(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """The instances that steps start..T-1 draw, one after the other, and the steps that draw them, int64 both."""
        drawn = [self.schedule.indices(t).numpy() for t in range(start, self.steps)]
        return np.concatenate(drawn) if drawn else np.empty(0, int), np.repeat(np.arange(start, self.steps), [len(rows) for rows in drawn])

    def save(self, path: str | os.PathLike) -> None:
        """Write `trajectory.json` and `states.safetensors` into the folder `path`; a run saved there before stays whole until the new one is."""
        self._refuse_other_conditions()
        if self.keep is not None:
            raise ValueError("a counterfactual is not saved: save the run that it was made of, and which instances it lacks")
        write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike, gan: GAN, x, optimizer=None) -> "Trajectory":
        """Read what `save` wrote.

        Args:
            path: the folder.
            gan: the architecture that was trained.
            x: the training set that was used.
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
        *parts, report = read(path, gan, x, optimizer)
        run = cls(*parts)
        run.report = report
        run.verify_replay()
        return run

    @classmethod
    def follow(cls, dynamics, rows: Rows, schedule, stride: int | None = None, initial: State | None = None, dense_epochs: int | None = None,
               rates: list | None = None) -> "Trajectory":
        """Run a schedule from an initial state (that of the dynamics by default), keeping a state every `stride` steps."""
        refuse_other_modes(rows.device)
        like = {"device": rows.device, "dtype": rows.dtype}
        state = (dynamics.initial() if initial is None else initial).map(lambda p: p.detach().clone().to(**like))
        stride = default_stride(schedule.steps, schedule.steps_per_epoch) if stride is None else whole("stride", stride)
        run = cls(dynamics, rows, schedule, stride, {}, rates)
        kept = kept_steps(state, schedule.steps, schedule.steps_per_epoch, stride, dense_epochs)
        states = run.walk(state, 0, schedule.steps)
        for t, state in enumerate(progress(states, desc="training", total=schedule.steps + 1, unit="step")):
            if t in kept:
                if not state.is_finite():
                    run._blame(max(run.states, default=0), t)
                run.states[t] = state
        run.verify_replay()
        return run

    def _blame(self, start: int, stop: int) -> None:
        state = self.states.get(start)
        states = enumerate(self.walk(state, start, stop), start) if state else []
        bad = next((t for t, state in states if not state.is_finite()), stop)
        raise FloatingPointError(f"training assumes finite numbers, but after step {bad - 1} a parameter was NaN or infinite: "
                                 "lower the learning rate, or look at the instances of that step")

    @classmethod
    def from_recording(cls, gan: GAN, x, indices, latents, optimizer, order: Order = "alternating", generator_latents=None, initial: State | None = None,
                       final=None, stride: int | None = None, verify: bool = True, **rules) -> "Trajectory":
        """Import a run that somebody else's loop made, by replaying it.

        Args:
            gan: the two networks.
            x: training set.
            indices: (T, B), which instances each step drew, or a list of T batches.
            latents: (T, B, latent_dim), or a list of T batches; used by both players unless `generator_latents` is given.
            optimizer: such as `SGD(1e-3)`, or a pair, generator's first.
            order: "alternating", "simultaneous" or "generator first".
            initial: the state it started from; by default what the two modules held when the GAN was made.
            final: where it must end: a State, or the generator's and the discriminator's state dicts.
            stride: steps between kept states.
            verify: whether to refuse a replay that ends elsewhere; False says that nobody checked.
            rules: `clip_weights`, `average` and `average_buffers`, as of `Dynamics`.

        Raises:
            ValueError: for indices outside 0..n-1, shapes that do not fit, a missing `final`, or a replay that ends elsewhere.

        >>> import gan_influence as gi
        >>> x, indices = gi.data.normal_2d(train=6).train, [[0, 1, 2], [3, 4, 5]]
        >>> Trajectory.from_recording(gi.models.fcgan(), x, indices, torch.zeros(2, 3, 10), gi.SGD(0.1), verify=False)
        Trajectory(2 steps = 1 epoch of batch 3, n=6, alternating, a state every step, 0.1 MiB)
        """
        if verify and final is None:
            raise ValueError("a recording is believed when its replay ends where the loop ended, but no final was given: pass final=(generator.state_dict(), "
                             "discriminator.state_dict()), or verify=False where nobody can check")
        if gan.penalty is not None and gan.penalty.between:
            raise ValueError("arrays of indices and latents do not say where between instances a gradient penalty was taken: let gi.Recorder watch the loop")
        rows, dynamics = Rows(x, gan.device, gan.dtype), Dynamics(gan, optimizer, order, **rules)
        schedule = recorded(len(rows), indices, latents, generator_latents, gan.latent_shape)
        try_networks(gan, rows, schedule, confirmed=verify)
        run = cls.follow(dynamics, rows, schedule, stride, None if initial is None else dynamics.with_memory(dynamics.gan.state()._replace(
            **{field: value for field, value in initial._asdict().items() if value})))
        if verify:
            wanted = final[:2] if isinstance(final, State) else [{name: dict(module)[name] for name in own} for module, own in zip(final, run.final[:2])]
            (gap, at), (moved, _) = apart(run.final[:2], wanted), apart(run.final[:2], run.initial[:2])
            size, eps = max(float(p.abs().max()) for p in run.final.tensors()), torch.finfo(gan.dtype).eps
            if not gap <= min(64, 1 + run.steps / 3) * eps**0.5 * moved + 64 * eps * size:
                raise ValueError(f"the replay of this recording ends {gap:.2e} away from `final` in {at}, having moved {moved:.2e}: the order, "
                                 "the learning rate, the latents, the loss, the weight decay or the initial state is not the one that was used")
        return run


def last(states: Iterator[State]) -> State:
    """The last of an iterator's states, without keeping the others."""
    return deque(states, maxlen=1).pop()


def apart(a, b) -> tuple[float, str]:
    """The largest difference between two states, or some of their fields, by name; and the name."""
    gaps = {name: float((p - other[name].to(p)).abs().max()) for own, other in zip(a, b) for name, p in own.items() if p.numel()}
    worst = max(gaps, key=lambda name: gaps[name] if gaps[name] == gaps[name] else float("inf"))
    return gaps[worst], worst
