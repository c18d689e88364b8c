"""What a recorder saw, and which rows of the training set a batch is, by content."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..tools.streams import torch_stream
from .plan import GENERATOR
from .rows import Rows

TOGETHER = 64  #: batches that are looked up at once, and laid side by side
SHELF = 2**20  #: bytes that may lie side by side


class NotUnderstood(ValueError):
    """A loop did something that the engine has no counterpart of; says at which step, and what was seen."""


class Pass:
    """A forward pass as the hooks saw it: `parts` are its inputs' as `Judge` has them, once they are recognised."""

    __slots__ = ("player", "training", "inputs", "wants_grad", "throw", "told", "parts")

    def __init__(self, player: int, training: bool, wants_grad: bool, throw: Tensor | None, fake: int | None = None, told: Tensor | None = None):
        self.player, self.training, self.wants_grad, self.throw, self.told = player, training, wants_grad, throw, told
        self.parts = () if fake is None else (("fake", fake),)


class Seen(NamedTuple):
    """An update as the hooks saw it."""

    player: int
    rate: float
    mark: Tensor | float  #: the gradient's `fingerprint`
    gradients: dict[str, Tensor] | None  #: of the first updates of every kind


class Step:
    """What was seen between two cuts; `rows` are the real batches: (indices, where between them and generated ones, inputs if not the rows')."""

    __slots__ = ("events", "made", "rows", "ready", "shape", "updates")

    def __init__(self):
        self.events, self.made, self.rows, self.ready, self.shape, self.updates = [], [], [], False, None, 0

    def block(self, k: int) -> tuple[int, int]:
        """The positions of real batch k among all real rows of the step."""
        first = sum(len(indices) for indices, *_ in self.rows[:k])
        return first, first + len(self.rows[k][0])


def fingerprint(gradient: Tensor | None, shelf: "Shelf | None" = None) -> Tensor | float:
    """The norm of the gradient by a player's first parameter: cheap enough for every update of every loop."""
    return 0.0 if gradient is None else torch.linalg.vector_norm(gradient, out=None if shelf is None else shelf.place("mark", gradient, ()))


class Shelf:
    """Places for what is kept of every step, side by side: copies one by one would lie between what the loop takes and frees, and slow it down."""

    def __init__(self):
        self.free: dict[tuple, list[Tensor]] = {}

    def place(self, kind: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One of that shape, unwritten; those of a kind are let go together."""
        key = kind, shape, like.dtype, like.device
        if not (free := self.free.get(key)):
            many = max(1, min(TOGETHER, SHELF // max(1, like.element_size() * math.prod(shape))))
            free = self.free[key] = list(like.new_empty((many, *shape)).unbind())
        return free.pop()

    def copy(self, kind: str, a: Tensor) -> Tensor:
        return self.place(kind, a, a.shape).copy_(a.detach() if a.requires_grad else a)


class Known:
    """The training set by content."""

    def __init__(self, rows: Rows):
        one = rows.take(torch.tensor([0]))[0][0]
        self.rows, self.twins, self.shape = rows, set(), tuple(one.shape)
        self.keys = torch.randint(-2**62, 2**62, (one.numel(),), generator=torch_stream("derivative", 2)) * 2 + 1
        self.sorted, self.order = torch.cat([self._hash(rows.take(part)[0]) for part in torch.arange(len(rows)).split(1024)]).sort()
        self.used = torch.zeros(len(rows), dtype=torch.int64)

    def _hash(self, x: Tensor) -> Tensor:
        """A number per row by its bits, (n,) int64 on the CPU; both zeros are one."""
        x = x.detach().to("cpu", self.rows.dtype).flatten(1) + 0.0
        bits = x.contiguous().view(torch.int32 if x.element_size() == 4 else torch.int64).to(torch.int64)
        return ((bits ^ (bits >> 29)) * self.keys).sum(1)

    def find(self, *batches: Tensor) -> list[Tensor]:
        """The row of each instance of each batch, −1 where it is none. Of equal rows the one that was drawn least often is taken."""
        fit = [x[:1].numel() == len(x[:1]) * len(self.keys) for x in batches]
        if not all(fit):
            return [self.find(x)[0] if fits else torch.full((len(x),), -1) for x, fits in zip(batches, fit)]
        wanted = self._hash(torch.cat([x.flatten(1) for x in batches]))
        first, last = torch.searchsorted(self.sorted, wanted), torch.searchsorted(self.sorted, wanted, right=True)
        found = torch.where(last > first, self.order[first.clamp(max=len(self.order) - 1)], -1)
        for i in (last > first + 1).nonzero().flatten().tolist():
            twins = self.order[first[i]:last[i]].sort().values
            self.twins.update(twins.tolist())
            found[i] = twins[self.used[twins].argmin()]
            self.used[found[i]] += 1
        return list(found.split([len(x) for x in batches]))

    def recognise(self, steps: list[Step]) -> None:
        """Say what every pass of the discriminator judged, and let go of the batches."""
        told, new = {}, [event for step in steps if not step.ready for event in step.events
                         if isinstance(event, Pass) and event.player != GENERATOR and not event.parts and event.told is None]
        for some in (new[first:first + TOGETHER] for first in range(0, len(new), TOGETHER)):
            told |= zip(map(id, some), self.find(*(event.inputs[0] for event in some)))
        for t, step in enumerate(steps):
            if not step.ready:
                judged = [event for event in step.events if isinstance(event, Pass) and event.player != GENERATOR]
                for event in (*judged, *judged):  # points between may come before what they lie between
                    event.parts = event.parts or self._parts(step, event, told.get(id(event), event.told))
                for event in judged:
                    if not event.parts and (event.training or isinstance(step.events[-1], Seen)):
                        raise NotUnderstood(f"step {t}: the discriminator judges rows of the training set, or instances that the generator made in that "
                                            "step, but saw a "
                                            f"batch of shape {tuple(event.inputs[0].shape)} that is neither: give the recorder x exactly as the "
                                            "discriminator sees it, or say which rows they are by recorder.drew(indices) before the pass")
                for event in judged:
                    self._check_others(t, step, event)
                for event in step.events:
                    if isinstance(event, Pass):
                        event.inputs = [a.cpu() for a in event.inputs]
                step.events = [event._replace(mark=float(event.mark), rate=float(event.rate)) if isinstance(event, Seen) else event for event in step.events]
                step.made, step.ready = None, True

    def _parts(self, step: Step, event: Pass, found: Tensor) -> tuple:
        x = event.inputs[0]
        if len(found) == len(x) and (found >= 0).all():
            return (self._real(step, found, x, event.told is not None),)
        made = [fake.reshape(len(fake), *x.shape[1:]) if fake[0].numel() == x[0].numel() else fake for fake in step.made]
        for i, fake in enumerate(made):
            if fake.shape == x.shape and torch.equal(fake, x):
                return (("fake", i),)
            if len(fake) < len(x) and fake.shape[1:] == x.shape[1:]:
                for real, other, way in ((x[:-len(fake)], x[-len(fake):], 1), (x[len(fake):], x[:len(fake)], -1)):
                    if torch.equal(other, fake) and ((rows := self.find(real)[0]) >= 0).all():
                        return (self._real(step, rows, real, False), ("fake", i))[::way]
        for k, (rows, *_) in enumerate(step.rows):
            for i, fake in enumerate(made):
                if len(fake) == len(x) == len(rows) and fake.shape == x.shape:
                    far, off = ((a - fake).flatten(1) for a in (self.rows.take(rows)[0].reshape(x.shape).to(x), x))
                    a = (far * off).sum(1) / far.square().sum(1)
                    if (off - a[:, None] * far).abs().max() <= 1e3 * torch.finfo(x.dtype).eps * far.abs().max():
                        step.rows[k] = (rows, a.cpu(), step.rows[k][2])
                        return (("mix", *step.block(k), i),)
        return ()

    def _real(self, step: Step, found: Tensor, x: Tensor, told: bool) -> tuple:
        for k, (rows, *_) in enumerate(step.rows):
            if torch.equal(rows, found):  # the same batch once more
                return ("real", *step.block(k))
        own = self.rows.take(found)[0].reshape(x.shape)
        step.rows.append((found, torch.zeros(len(found), dtype=self.rows.dtype), x.to(self.rows.dtype) if told and not torch.equal(own, x.to(own)) else None))
        step.shape = x.shape[1:]
        return ("real", *step.block(len(step.rows) - 1))

    def _check_others(self, t: int, step: Step, event: Pass) -> None:
        """The discriminator's further inputs (labels) must be those of the rows, and of the latents that instances were made of."""
        others, first = [a.cpu() for a in event.inputs[1:]], 0
        makes = [one for one in step.events if isinstance(one, Pass) and one.player == GENERATOR]
        for kind, *where in event.parts if others else ():
            if kind == "fake":
                expected = makes[where[0]].inputs[1:]
            else:
                expected = self.rows.take(torch.cat([rows for rows, *_ in step.rows])[where[0]:where[1]])[1:]
            size = len(makes[where[0]].inputs[0]) if kind == "fake" else where[1] - where[0]
            seen = [a[first:first + size] for a in others]
            if len(expected) < len(seen) or not all(torch.equal(a.to(b.dtype), b.cpu()) for a, b in zip(seen, expected)):
                raise NotUnderstood(f"step {t}: beside an instance the discriminator is given its row's further columns, or for a generated one the "
                                    "generator's own (labels), "
                                    "but it was given others: pass x=(images, labels) to the recorder, with labels just as the networks take them")
            first += size
        event.inputs = event.inputs[1:0]
