"""Everything that training changes, as one immutable value."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """Everything that training changes, at one moment of it.

    Each field maps names to tensors: both players' parameters, what their optimisers remember, the buffers that their layers write
    (batch normalisation's running statistics, spectral normalisation's u and v), and the generator's moving average, where a run has
    one. A tangent, a cotangent and a stack of many models' states have this type too.

    >>> state = State({"a": torch.ones(2)}, {"w": torch.zeros(3)})
    >>> state.map(lambda p: p + 1).generator["a"]
    tensor([2., 2.])
    """

    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    generator_memory: dict[str, Tensor] = {}
    discriminator_memory: dict[str, Tensor] = {}
    generator_buffers: dict[str, Tensor] = {}
    discriminator_buffers: dict[str, Tensor] = {}
    average: dict[str, Tensor] = {}

    def tensors(self) -> list[Tensor]:
        """All tensors in a fixed order, field by field."""
        return [tensor for player in self for tensor in player.values()]

    def rebuild(self, tensors: Iterable[Tensor]) -> "State":
        """A state with these names and other tensors, in the order of `tensors()`."""
        stream = iter(tensors)
        return State(*({name: next(stream) for name in player} for player in self))

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """Apply a function to every tensor."""
        return self.rebuild(map(function, self.tensors()))

    def named(self) -> dict[str, Tensor]:
        """One flat dictionary, "generator.<name>" and so on: the layout on disk."""
        return {f"{field}.{name}": tensor for field, player in zip(self._fields, self) for name, tensor in player.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def is_finite(self) -> bool:
        """Whether every number is finite (one pass, one synchronisation)."""
        return bool(torch.stack([tensor.isfinite().all() for tensor in self.tensors()]).all())


def stack(states: list[State]) -> State:
    """Many models' states as one, with a leading model dimension on every tensor.

    >>> one = State({"a": torch.ones(2)}, {"w": torch.zeros(3)})
    >>> stack([one] * 4).discriminator["w"].shape
    torch.Size([4, 3])
    """
    return states[0].rebuild(torch.stack(same) for same in zip(*(state.tensors() for state in states)))


def unstack(state: State) -> list[State]:
    """The inverse of `stack`."""
    return [state.rebuild(one) for one in zip(*(tensor.unbind() for tensor in state.tensors()))]
