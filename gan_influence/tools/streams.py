"""Random streams that never meet: everything the package draws comes from here, each purpose from a stream of its own."""

from numbers import Integral

import numpy as np
import torch

STREAMS = 2  #: raise it when a stream changes: recordings of different streams are not mixed
PURPOSES = ("normal_2d", "mnist", "digits", "order", "discriminator latents", "generator latents", "latents", "fcgan", "dcgan", "lqgan", "classifier",
            "classifier order", "random scores", "chosen instances", "derivative", "faces", "planted faces", "noise", "mix", "directions",
            "verification", "graph", "clients", "stylegan", "adapters", "mixture",
            "self-consumption", "hypernetwork")  #: append only


def stream(purpose: str, seed: int, *numbers: int) -> np.random.Generator:
    """NumPy's generator for one purpose of one seed; `numbers` tell apart what is drawn for it, such as parts or epochs.

    Args:
        purpose: one of `PURPOSES`.
        seed: an integer, 0 ≤ seed < 2¹²⁸.
        numbers: integers below 2³², as many at every call for a purpose.

    Raises:
        ValueError: for another seed.

    Source: NumPy's SeedSequence, whose spawn keys, unlike lists of integers, are not padded with zeros.

    >>> a, b = (stream("latents", 0, part).standard_normal() for part in (0, 1))
    >>> a == b, a == stream("latents", 0, 0).standard_normal()
    (False, True)
    """
    return np.random.default_rng(_sequence(purpose, seed, *numbers))


def torch_stream(purpose: str, seed: int) -> torch.Generator:
    """The same as torch's generator on the CPU."""
    return torch.Generator().manual_seed(int(_sequence(purpose, seed).generate_state(1)[0]))


def _sequence(purpose: str, seed: int, *numbers: int) -> np.random.SeedSequence:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**128:
        raise ValueError(f"a seed is an integer from 0 to 2**128 - 1, got {seed!r}")
    return np.random.SeedSequence(int(seed), spawn_key=(PURPOSES.index(purpose), *numbers))
