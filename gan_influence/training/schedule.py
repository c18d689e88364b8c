"""Who is drawn when: a pure function of the step."""

from functools import lru_cache

import torch
from torch import Tensor

from ..tools.checks import whole
from ..tools.streams import stream


class Schedule:
    """Which instances and latents every step draws: a pure function of the seed and the step.

    Args:
        n: size of the training set. An epoch is n // batch_size steps over a fresh permutation; the rest sits out.
        batch_size: real instances, and latents, per step.
        epochs: length of the run.
        latent_dim: length of a latent vector.
        shared: whether both players use the same latents.
        seed: any non-negative integer.

    >>> schedule = Schedule(n=6, batch_size=2, epochs=2, latent_dim=3, shared=True, seed=0)
    >>> sorted(torch.cat([schedule.indices(t) for t in range(3)]).tolist())
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, n: int, batch_size: int, epochs: int, latent_dim: int, shared: bool, seed: int):
        if not 1 <= whole("batch_size", batch_size) <= n:
            raise ValueError(f"a batch holds between 1 and n = {n} distinct instances, but batch_size is {batch_size}")
        whole("epochs", epochs)
        self.n, self.batch_size, self.latent_dim, self.shared, self.seed = n, batch_size, latent_dim, shared, seed
        self.steps_per_epoch = n // batch_size
        self.steps = epochs * self.steps_per_epoch
        # Keep the two epochs that a sweep across a boundary touches; a whole epoch is drawn at once because that is cheap.
        self._order, self._latents = lru_cache(2)(self._draw_order), lru_cache(4)(self._draw_latents)

    def __reduce__(self):
        return restore_schedule, (self.describe(), {})

    def indices(self, t: int) -> Tensor:
        """The instances that step t draws, (batch_size,) int64."""
        return self._order(t // self.steps_per_epoch)[t % self.steps_per_epoch]

    def latents(self, t: int) -> tuple[Tensor, Tensor | None]:
        """Step t's latents, (batch_size, latent_dim) float64: the discriminator's, and the generator's own unless shared."""
        epoch, row = divmod(t, self.steps_per_epoch)
        return self._latents("discriminator", epoch)[row], None if self.shared else self._latents("generator", epoch)[row]

    def _draw_order(self, epoch: int) -> Tensor:
        order = stream("order", self.seed, epoch).permutation(self.n)
        return torch.from_numpy(order[: self.steps_per_epoch * self.batch_size]).view(self.steps_per_epoch, self.batch_size)

    def _draw_latents(self, player: str, epoch: int) -> Tensor:
        shape = self.steps_per_epoch, self.batch_size, self.latent_dim
        return torch.from_numpy(stream(f"{player} latents", self.seed, epoch).standard_normal(shape))

    def describe(self) -> dict:
        return {"kind": "seeded", "n": self.n, "batch_size": self.batch_size, "epochs": self.steps // self.steps_per_epoch,
                "latent_dim": self.latent_dim, "shared": self.shared, "seed": self.seed}

    def tensors(self) -> dict[str, Tensor]:
        return {}


class RecordedSchedule:
    """The same questions answered from arrays that somebody else's loop wrote down.

    Args:
        n: size of the training set.
        indices: (T, B) integers.
        latents: (T, B, latent_dim).
        generator_latents: the same shape, or None when both players used `latents`.
    """

    def __init__(self, n: int, indices: Tensor, latents: Tensor, generator_latents: Tensor | None):
        self.n, self._indices, self._latents, self._generator_latents = n, indices, latents, generator_latents
        self.steps, self.batch_size = indices.shape
        self.steps_per_epoch = max(1, n // self.batch_size)

    def indices(self, t: int) -> Tensor:
        return self._indices[t]

    def latents(self, t: int) -> tuple[Tensor, Tensor | None]:
        return self._latents[t], None if self._generator_latents is None else self._generator_latents[t]

    def describe(self) -> dict:
        return {"kind": "recorded", "n": self.n}

    def tensors(self) -> dict[str, Tensor]:
        named = {"indices": self._indices, "latents": self._latents, "generator_latents": self._generator_latents}
        return {f"schedule.{name}": tensor.contiguous() for name, tensor in named.items() if tensor is not None}


def restore_schedule(description: dict, tensors: dict[str, Tensor]) -> Schedule | RecordedSchedule:
    """The schedule that gave this description and these tensors."""
    arguments = dict(description)
    if arguments.pop("kind") == "seeded":
        return Schedule(**arguments)
    arrays = {name: tensors.get(f"schedule.{name}") for name in ("indices", "latents", "generator_latents")}
    return RecordedSchedule(arguments["n"], **{name: None if a is None else a.cpu() for name, a in arrays.items()})
