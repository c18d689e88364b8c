"""Files that are whole or absent; no torch here, because whoever drives notebooks has no other need of it."""

import csv
import io
import json
import os
from pathlib import Path


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file whole or not at all; text as UTF-8."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
        os.replace(partial, path)
    except OSError:  # a disk that is full needs the room
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict | None:
    """The object in a JSON file; None where it is absent, cut short or something else: all mean that it has not been made."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def csv_text(rows: list[dict], last: tuple[str, ...] = ()) -> str:
    """Rows as CSV, with the columns of all of them, those in `last` at the end.

    >>> csv_text([{"a": 1, "z": 0.5}, {"b": 2, "z": 1}], last=("z",))
    'a,b,z\\n1,,0.5\\n,2,1\\n'
    """
    lines = io.StringIO()
    writer = csv.DictWriter(lines, [*dict.fromkeys(name for row in rows for name in row if name not in last), *last], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue()
