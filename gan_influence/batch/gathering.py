"""What batch runs found: their state, their results as tidy tables, and the figure that their notebook defines."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..tools.storage import write_atomically
from .grid import GRID, Run, read_json, results

SEEDS = "seed", "first_seed", "n_seeds"


def planned(folder: str | os.PathLike) -> list[Run]:
    """Every run that was asked for in a folder and the folders below it.

    Raises:
        FileNotFoundError: where there is none.
    """
    runs = []
    for path in sorted(Path(folder).rglob(GRID)):
        known = json.loads(path.read_text())
        runs += [Run(Path(known["notebook"] + ".ipynb"), path.parent / name, parameters) for name, parameters in known["runs"].items()]
    if not runs:
        raise FileNotFoundError(f"there are no batch runs in {folder}: make some with `gan-influence run NOTEBOOK --out {folder}`")
    return runs


def gather(folder: str | os.PathLike, target: str | os.PathLike | None = None) -> tuple[list[dict], list[Run], list[Path]]:
    """Collect the results of all done runs below a folder into tidy tables, and draw the figures that their notebooks define.

    Args:
        folder: of one grid or several.
        target: where to write: measurements.csv, and per notebook its own table of all runs and its figure. By default the folder.

    Returns:
        One row per measurement (notebook, the parameters given, measurement, value), as written; the runs that are missing; and
        the files.
    """
    runs, target = planned(folder), Path(target or folder)
    done = [run for run in runs if run.state == "done"]
    rows = [{"notebook": run.notebook.stem, **run.parameters, "measurement": name, "value": value}
            for run in done for name, value in _measurements(results(run.folder))]
    written = [target / "measurements.csv"]
    _write_table(written[0], rows, ("measurement", "value"))
    for notebook in dict.fromkeys(run.notebook.stem for run in done):
        written += _gather_notebook([run for run in done if run.notebook.stem == notebook], target / notebook)
    return rows, [run for run in runs if run not in done], written


def _gather_notebook(done: list[Run], target: Path) -> list[Path]:
    rows = []
    for run in done:
        with contextlib.suppress(FileNotFoundError), open(run.folder / "table.csv", newline="") as file:
            rows += [run.parameters | row for row in csv.DictReader(file)]
    if not rows:
        return []
    written = [target.with_suffix(".csv")]
    _write_table(written[0], rows)
    if figure := (read_json(done[-1].folder / "results.json") or {}).get("figure"):
        import pandas as pd

        from ..studies import plots
        table = pd.read_csv(written[0])
        # Parameters that the grid varies get lines of their own; seeds are what the mean is over.
        varied = [name for name in done[0].parameters if name not in SEEDS and table[name].nunique() > 1]
        written.append(target.with_suffix(".png"))
        plots.gathered(table, **figure | {"by": [*figure["by"], *varied]}).savefig(written[-1], dpi=110)
    return written


def _write_table(path: Path, rows: list[dict], last: tuple[str, ...] = ()) -> None:
    # A notebook's own parameters come before the last columns, also where another notebook has more of them.
    columns = [*dict.fromkeys(name for row in rows for name in row if name not in last), *last]
    lines = io.StringIO()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lines.getvalue())


def _measurements(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every number or word in nested results, under a dotted name."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _measurements(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
