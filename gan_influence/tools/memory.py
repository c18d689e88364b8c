"""What to do when a device's memory runs out while a metric is computed: the same in smaller chunks."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


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
        except torch.OutOfMemoryError:
            if getattr(metric, size, 1) < 2:
                raise
        setattr(metric, size, getattr(metric, size) // 2)  # out here, where the failed attempt's tensors are gone
