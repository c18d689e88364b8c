"""Who is drawn when: a pure function of the step."""

from collections.abc import Sequence
from copy import copy
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..game.gan import draw_latents
from ..tools.checks import whole
from ..tools.streams import stream
from .plan import Judge, Make, Plan, Update


class Schedule:
    """Which instances and latents every step draws: a pure function of the seed and the step.

    Args:
        n: size of the training set. An epoch is a fresh permutation in batches; the rest sits out.
        batch_size: real instances, and latents, per update of the discriminator.
        epochs: length of the run.
        latent_dim: length of a latent vector, or the shape of one latent.
        shared: whether both players use the same latents.
        seed: any non-negative integer.
        updates: of the discriminator, per step.
        latents: their distribution, "normal" or "uniform".

    >>> schedule = Schedule(n=6, batch_size=2, epochs=2, latent_dim=3, shared=True, seed=0)
    >>> sorted(torch.cat([schedule.indices(t) for t in range(3)]).tolist())
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, n: int, batch_size: int, epochs: int, latent_dim: int | Sequence[int], shared: bool, seed: int, updates: int = 1,
                 latents: str = "normal"):
        if not 1 <= whole("batch_size", batch_size) * whole("discriminator_steps", updates) <= n:
            raise ValueError(f"a batch holds between 1 and n = {n} distinct instances, but batch_size is {batch_size}"
                             + (f" for {updates} updates a step" if updates > 1 else ""))
        whole("epochs", epochs)
        self.n, self.batch_size, self.latent_dim, self.shared, self.seed, self.updates, self.kind = n, batch_size, latent_dim, shared, seed, updates, latents
        self.steps_per_epoch = n // (batch_size * updates)
        self.steps = epochs * self.steps_per_epoch
        # Keep the two epochs that a sweep across a boundary touches; a whole epoch is drawn at once because that is cheap.
        self._order, self._latents = lru_cache(2)(self._draw_order), lru_cache(4)(self._draw_latents)

    def __reduce__(self):
        return restore_schedule, (self.describe(), {})

    def indices(self, t: int) -> Tensor:
        """The instances that step t draws, (batch_size · updates,) int64."""
        return self._order(t // self.steps_per_epoch)[t % self.steps_per_epoch]

    def latents(self, t: int) -> tuple[Tensor, Tensor | None]:
        """Step t's latents, (batch_size · updates, ...) float64: the discriminator's, and the generator's own (batch_size, ...) unless shared."""
        epoch, row = divmod(t, self.steps_per_epoch)
        return self._latents("discriminator", epoch)[row], None if self.shared else self._latents("generator", epoch)[row]

    def epoch_starts(self) -> Sequence[int]:
        """The first step of every epoch."""
        return range(0, self.steps, self.steps_per_epoch)

    def number(self, t: int) -> tuple[int, int]:
        """How often the generator and the discriminator were updated before step t."""
        return t, t * self.updates

    def plan(self, t: int) -> None:
        """None: the order decides."""

    def dice(self, t: int, passes: int) -> tuple[int, ...]:
        """A seed for each of step t's passes."""
        return tuple(stream("noise", self.seed, t).integers(2**62, size=passes).tolist())

    def mix(self, t: int) -> Tensor:
        """Where between an instance and a generated one a gradient penalty is taken, (batch_size · updates,) float64."""
        return torch.from_numpy(stream("mix", self.seed, t).uniform(size=self.batch_size * self.updates))

    def _draw_order(self, epoch: int) -> Tensor:
        order = stream("order", self.seed, epoch).permutation(self.n)
        return torch.from_numpy(order[: self.steps_per_epoch * self.batch_size * self.updates]).view(self.steps_per_epoch, -1)

    def _draw_latents(self, player: str, epoch: int) -> Tensor:
        rows = self.batch_size * (1 if player == "generator" else self.updates)
        one = (self.latent_dim,) if isinstance(self.latent_dim, int) else tuple(self.latent_dim)
        return torch.from_numpy(draw_latents(stream(f"{player} latents", self.seed, epoch), (self.steps_per_epoch, rows, *one), self.kind))

    def describe(self) -> dict:
        return {"kind": "seeded", "n": self.n, "batch_size": self.batch_size, "epochs": self.steps // self.steps_per_epoch,
                "latent_dim": self.latent_dim, "shared": self.shared, "seed": self.seed, "updates": self.updates, "latents": self.kind}

    def tensors(self) -> dict[str, Tensor]:
        return {}


class RecordedSchedule:
    """The same questions answered from what somebody else's loop drew.

    Args:
        n: size of the training set.
        parts: {name: one tensor per step}, of "indices" (int64), "latents" and, where they exist, "generator_latents", each also with a
            number behind it for further columns ("latents1"), "dice" (states of torch's generator), "mix" and "inputs" (what the
            discriminator was shown where that is not the training set's).
        plans, which: the different plans there are, and which of them each step follows; empty where the order decides.
        first: how often the generator and the discriminator had been updated before the first step.
    """

    def __init__(self, n: int, parts: dict[str, list[Tensor]], plans: Sequence[Plan] = (), which: Sequence[int] = (), first: tuple[int, int] = (0, 0)):
        self.n = n
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.steps, self.batch_size = len(parts["indices"]), max(map(len, parts["indices"]))
        self._starts = _epoch_starts(n, [rows.numpy() for rows in parts["indices"]])
        self.steps_per_epoch = max(1, round(self.steps / len(self._starts)))
        self._follow(plans, which, first)

    def _follow(self, plans: Sequence[Plan], which: Sequence[int], first: tuple[int, int]) -> None:
        self.plans, self.which, self.first = list(plans), list(which), tuple(first)
        players = [[sum(type(event) is Update and event.player == player for event in plan) for player in (0, 1)] for plan in self.plans] or [[1, 1]]
        self._numbers = np.cumsum([self.first, *(players[k] for k in self.which or [0] * self.steps)], axis=0).tolist()

    def following(self, plans: Sequence[Plan], which: Sequence[int], first: tuple[int, int]) -> "RecordedSchedule":
        """The same draws under other plans."""
        other = copy(self)
        other._follow(plans, which, first)
        return other

    def indices(self, t: int) -> Tensor:
        return self.parts["indices"][t]

    def latents(self, t: int) -> tuple:
        """Step t's latents: the discriminator's, and the generator's own or None; of several columns tuples."""
        found = [tuple(part[t] for name, part in self.parts.items() if name.rstrip("0123456789") == kind) for kind in ("latents", "generator_latents")]
        return tuple(columns[0] if len(columns) == 1 else columns or None for columns in found)

    def epoch_starts(self) -> Sequence[int]:
        return self._starts

    def number(self, t: int) -> tuple[int, int]:
        return tuple(self._numbers[t])

    def plan(self, t: int) -> Plan | None:
        return self.plans[self.which[t]] if self.plans else None

    def dice(self, t: int, passes: int) -> tuple:
        return tuple(self.parts["dice"][t]) if "dice" in self.parts else (0,) * passes

    def mix(self, t: int) -> Tensor | None:
        return self.parts["mix"][t] if "mix" in self.parts else None

    def describe(self) -> dict:
        return {"kind": "recorded", "n": self.n, "plans": [[[type(event).__name__, *event] for event in plan] for plan in self.plans], "which": self.which,
                "first": list(self.first), "counts": {name: [len(one) for one in part] for name, part in self.parts.items()}}

    def tensors(self) -> dict[str, Tensor]:
        return {f"schedule.{name}": torch.cat(list(part)).contiguous() for name, part in self.parts.items()}


def restore_schedule(description: dict, tensors: dict[str, Tensor]) -> Schedule | RecordedSchedule:
    """The schedule that gave this description and these tensors."""
    arguments = dict(description)
    if arguments.pop("kind") == "seeded":
        return Schedule(**arguments)
    counts, kinds = arguments.pop("counts"), {kind.__name__: kind for kind in (Make, Judge, Update)}
    parts = {name: list(tensors[f"schedule.{name}"].cpu().split(counts[name])) for name in counts}
    plans = [tuple(kinds[kind](*_tuples(fields)) for kind, *fields in plan) for plan in arguments.pop("plans")]
    return RecordedSchedule(parts=parts, plans=plans, **arguments)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _epoch_starts(n: int, drawn: list[np.ndarray]) -> list[int]:
    """Where a pass over the data begins: where rows come again that this pass has seen, other than the same batch once more."""
    starts, seen, sizes, before = [0], np.zeros(n, dtype=bool), [], np.empty(0)
    for t, rows in enumerate(drawn):
        own = np.unique(rows)
        again = seen[rows].any() and (len(own) == n or not np.array_equal(own, before))
        if again:
            starts.append(t)
            sizes.append(seen.sum())
            seen[:] = False
        seen[rows], before = True, own if len(rows) else before
    most = max(map(len, drawn))
    if all(size + most > n for size in sizes):
        return starts
    # Rows were drawn with repetition: count n of them for an epoch.
    passed = np.cumsum([len(rows) for rows in drawn]) // n
    return [0, *(t + 1 for t in range(len(drawn) - 1) if passed[t] > (passed[t - 1] if t else 0))]


def recorded(n: int, indices, latents, generator_latents, latent_shape: tuple[int, ...]) -> RecordedSchedule:
    """A schedule of arrays (T, B, ...) or lists of T batches, checked.

    Raises:
        ValueError: for indices outside 0..n-1, or shapes that do not fit.
    """
    try:
        rows = [torch.as_tensor(np.asarray(one)) for one in indices]
        given = {name: None if z is None else [torch.as_tensor(one).detach().cpu() for one in z]
                 for name, z in (("latents", latents), ("generator_latents", generator_latents))}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"indices are (T, B) and latents (T, B, ...), or lists of T batches of them, but something else was given ({error})") from error
    if not rows or any(one.ndim != 1 or one.is_floating_point() for one in rows):
        raise ValueError("indices must be (T, B), whole numbers: one row of instances per step; got " +
                         (f"rows of shape {tuple(rows[0].shape)}, {rows[0].dtype}" if rows else "no step"))
    least, most = min(int(one.min()) for one in rows), max(int(one.max()) for one in rows)
    if least < 0 or most >= n:
        raise ValueError(f"indices must lie in 0..{n - 1}, the rows of x; got {least}..{most}")
    for name, z in given.items():
        shapes = [(len(one), *latent_shape) for one in rows]
        if z is not None and [tuple(one.shape) for one in z] != shapes:
            seen = next((tuple(one.shape) for one, shape in zip(z, shapes) if tuple(one.shape) != shape), None) or f"{len(z)} batches for {len(rows)} steps"
            raise ValueError(f"{name} must be (T, B, latent_dim), {shapes[0]} in a step, to match indices; got {seen}")
    return RecordedSchedule(n, {"indices": [one.to(torch.int64) for one in rows]} | {name: z for name, z in given.items() if z is not None})
