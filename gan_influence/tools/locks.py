"""Locks on files, which the system lets go of when their holder dies: none is ever stale."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

LOCK = ".lock"  # in a folder that one process at a time may fill


@contextmanager
def locked(path: str | os.PathLike, patient: bool = True) -> Iterator[TextIO]:
    """Hold a file, open for appending and reading; without patience, BlockingIOError while another process holds it."""
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
        yield file


def is_locked(path: str | os.PathLike) -> bool:
    """Whether another process, or another opening in this one, holds a file."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


@contextmanager
def only_driver(out: str | os.PathLike) -> Iterator[None]:
    """Hold a folder that this process fills, made if it is not there.

    Raises:
        BlockingIOError: while another process holds it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out, only_driver(out), only_driver(out):
    ...     pass  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    BlockingIOError: ... is being filled by process ... wait for it, or stop it, because both would do the same work
    """
    path = Path(out) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            lock = held.enter_context(locked(path, patient=False))
        except BlockingIOError:
            raise BlockingIOError(f"{out} is being filled by {path.read_text().strip() or 'another process'}: wait for it, or stop it, "
                                  "because both would do the same work") from None
        lock.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=lock, flush=True)
        yield
