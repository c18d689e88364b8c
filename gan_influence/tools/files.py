"""Text files that are whole or absent; no torch here, because whoever drives notebooks has no other need of it."""

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Write a text file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
        os.replace(partial, path)
    except OSError:  # a disk that is full needs the room
        partial.unlink(missing_ok=True)
        raise
