"""Random numbers drawn inside networks: a forward pass under a recorded throw of the dice."""

import contextlib
import threading

import torch
from torch import Tensor

DICE = threading.RLock()  # torch's generators belong to all threads


def generator_state(device: torch.device) -> Tensor:
    """The state of torch's generator that layers on a device draw from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextlib.contextmanager
def dice(throw: int | Tensor | None, device: torch.device):
    """Compute under a seed, or under a state of torch's generator; None leaves it as it is. Afterwards the generator is where it was.

    >>> with dice(3, torch.device("cpu")):
    ...     a = torch.rand(1)
    >>> with dice(3, torch.device("cpu")):
    ...     print(bool(a == torch.rand(1)))
    True
    """
    if throw is None:
        yield
        return
    with DICE:
        own = generator_state(device)
        put = torch.cuda.set_rng_state if device.type == "cuda" else torch.set_rng_state
        try:
            if isinstance(throw, int):
                torch.cuda.manual_seed(throw) if device.type == "cuda" else torch.default_generator.manual_seed(throw)
            else:
                put(throw.clone(), *([device] if device.type == "cuda" else []))
            yield
        finally:
            put(own, *([device] if device.type == "cuda" else []))
