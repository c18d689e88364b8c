"""Files that are whole or absent: tensors with a header, and the fingerprints that tell data sets apart."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import write_atomically


def write_tensors(folder: str | os.PathLike, readable: str, header: dict, tensors: dict[str, Tensor]) -> None:
    """Write `states.safetensors` and a readable copy of its header into a folder; what was there before stays whole until then."""
    folder, text = Path(folder), json.dumps(header | {"checksum": _checksum(tensors)}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder):
        workshop = folder / ".partial"
        shutil.rmtree(workshop, ignore_errors=True)  # what a killed process left: nobody else is at work here now
        workshop.mkdir()
        try:
            # The header travels inside the tensors' file, so that one rename swaps everything; the JSON beside it is for reading.
            save_file(tensors, workshop / "states.safetensors", metadata={"header": text})
            (workshop / "ordinary").touch()
            os.chmod(workshop / "states.safetensors", (workshop / "ordinary").stat().st_mode)  # safetensors' own is for its owner alone
            with open(workshop / "states.safetensors", "rb") as file:
                os.fsync(file.fileno())
            os.replace(workshop / "states.safetensors", folder / "states.safetensors")
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
        write_atomically(folder / readable, text)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # of the folder itself: no file is left behind
        yield
    finally:
        os.close(held)


def _checksum(tensors: dict[str, Tensor]) -> str:
    return hashlib.blake2b("".join(f"{name} {fingerprint(tensors[name])}\n" for name in sorted(tensors)).encode(), digest_size=16).hexdigest()


def read_tensors(folder: str | os.PathLike, readable: str, device: str, needs: Mapping[str, type]) -> tuple[dict, dict[str, Tensor]]:
    """Read what `write_tensors` wrote: the header, which must have values of these types at the keys `needs`, and the tensors.

    Raises:
        ValueError: for a file that is missing, truncated, damaged or foreign.
    """
    folder = Path(folder)
    try:
        json.loads((folder / readable).read_text())
        with safe_open(folder / "states.safetensors", "pt") as file:
            header = json.loads(file.metadata()["header"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        for key, kind in needs.items():
            if not isinstance(header[key], kind):
                raise TypeError(f"{key} is {header[key]!r}")
        if header["checksum"] != _checksum(tensors):
            raise ValueError("its tensors are not those that were written")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:  # ValueError: JSON's and Unicode's too
        raise ValueError(f"{folder} does not hold a whole trajectory ({error}): it may be truncated or foreign; record the run again") from error
    return header, {name: tensor.to(device) for name, tensor in tensors.items()}


def fingerprint(x: Tensor) -> str:
    """A hash of a data set's type, shape and bytes."""
    x = x.detach().cpu().contiguous()
    return hashlib.blake2b(x.numpy().tobytes(), digest_size=16, person=str(x.dtype).encode()[-16:]).hexdigest()
