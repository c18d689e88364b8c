"""What a notebook leaves in its folder, for batch runs to gather: its numbers, its table, and how that is drawn."""

import json
import os
from pathlib import Path

from .files import csv_text, write_atomically
from .versions import versions


def save_results(out: str | os.PathLike, results: dict, rows: list[dict], figure: dict | None = None) -> None:
    """Write a notebook's numbers to `<out>/results.json` (with versions) and its table to `<out>/table.csv`, each whole or not at all.

    Args:
        out: the folder.
        results, rows: numbers, words, and lists and dicts of them; and the table, one dict a row.
        figure: what `gan-influence gather` draws from the tables of many runs: {"x": column, "y": column, "by": columns that
            tell lines apart, "published": {label: [x values, y values]}}; see `plots.gathered`.

    Raises:
        ValueError: for a figure of columns that the table does not have.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     save_results(out, {"tau": 0.9}, [{"k": 1, "tau": 0.9}])
    ...     print((Path(out) / "table.csv").read_text().split())
    ['k,tau', '1,0.9']
    """
    if figure and (unknown := [name for name in (figure["x"], figure["y"], *figure["by"]) if name not in rows[0]]):
        raise ValueError(f"the figure draws columns of the table, which are {', '.join(rows[0])}; it has no {', '.join(unknown)}")
    write_atomically(Path(out) / "table.csv", csv_text(six_digits(rows)))
    content = {"results": results, "versions": versions()} | ({"figure": figure} if figure else {})
    write_atomically(Path(out) / "results.json", json.dumps(content, indent=1) + "\n")


def six_digits(rows: list[dict]) -> list[dict]:
    """The rows with as many digits of their floats as tables keep."""
    return [{key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows]
