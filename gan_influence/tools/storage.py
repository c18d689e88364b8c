"""Files that are whole or absent: tensors with a header, and the fingerprints that tell data sets apart."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import write_atomically


def write_tensors(folder: str | os.PathLike, readable: str, header: dict, tensors: dict[str, Tensor]) -> None:
    """Write `states.safetensors` and a readable copy of its header into a folder; what was there before stays whole until then."""
    folder, text = Path(folder), json.dumps(header, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    # The header travels inside the tensors' file, so that one rename swaps everything; the JSON beside it is for reading.
    save_file(tensors, folder / "states.partial", metadata={"header": text})
    os.replace(folder / "states.partial", folder / "states.safetensors")
    write_atomically(folder / readable, text)


def read_tensors(folder: str | os.PathLike, readable: str, device: str, needs: Sequence[str]) -> tuple[dict, dict[str, Tensor]]:
    """Read what `write_tensors` wrote: the header, which must have the keys `needs`, and the tensors.

    Raises:
        ValueError: for a file that is missing, truncated or foreign.
    """
    folder = Path(folder)
    try:
        json.loads((folder / readable).read_text())
        with safe_open(folder / "states.safetensors", "pt", device=device) as file:
            header = json.loads(file.metadata()["header"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        for key in needs:
            header[key]
    except (OSError, json.JSONDecodeError, SafetensorError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} does not hold a whole trajectory ({error}): it may be truncated or foreign; record the run again") from error
    return header, tensors


def fingerprint(x: Tensor) -> str:
    """A hash of a data set's type, shape and bytes."""
    x = x.detach().cpu().contiguous()
    return hashlib.blake2b(x.numpy().tobytes(), digest_size=16, person=str(x.dtype).encode()[-16:]).hexdigest()
