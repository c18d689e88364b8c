"""What to do when memory runs out while a metric is computed: the same in smaller chunks."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, which on a CPU torch says in words only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def in_chunks_that_fit(metric, compute: Callable[[], Result]) -> Result:
    """Call `compute`, and again with half the metric's `chunk` (or `chunk_bytes`) for as long as memory runs out.

    >>> from types import SimpleNamespace
    >>> metric = SimpleNamespace(chunk=250)
    >>> def compute():
    ...     if metric.chunk > 100:
    ...         raise torch.OutOfMemoryError
    ...     return "done"
    >>> in_chunks_that_fit(metric, compute), metric.chunk
    ('done', 62)
    """
    size = "chunk" if hasattr(metric, "chunk") else "chunk_bytes"
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or getattr(metric, size, 1) < 2:
                raise
        setattr(metric, size, getattr(metric, size) // 2)  # out here, where the failed attempt's tensors are gone
