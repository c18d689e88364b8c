"""What batch runs found: their state, their results as tidy tables, and the figure that their notebook defines."""

import csv
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..tools.files import csv_text, read_json, write_atomically
from .grid import GRID, RUN, Run, results

SEEDS = "seed", "first_seed", "n_seeds"


def planned(folder: str | os.PathLike) -> list[Run]:
    """Every run that was asked for in a folder and the folders below it.

    Raises:
        FileNotFoundError: where there is none.
    """
    runs = [run for path in sorted(Path(folder).rglob(GRID)) for run in _of_grid(path)]
    if not runs:
        raise FileNotFoundError(f"there are no batch runs in {folder}: make some with `gan-influence run NOTEBOOK --out {folder}`")
    return runs


def _of_grid(path: Path) -> list[Run]:
    try:
        known = read_json(path)
        return [Run(Path(known["notebook"] + ".ipynb"), path.parent / name, dict(parameters)) for name, parameters in known["runs"].items()]
    except (KeyError, TypeError, ValueError, AttributeError):
        print(f"{path} is damaged: of its runs, only those are known that have begun", file=sys.stderr)
        begun = {file.parent: read_json(file) or {} for file in sorted(path.parent.glob(f"*/{RUN}"))}
        return [Run(Path(f"{run['notebook']}.ipynb"), folder, run["parameters"]) for folder, run in begun.items() if {"notebook", "parameters"} <= run.keys()]


def gather(folder: str | os.PathLike, target: str | os.PathLike | None = None) -> tuple[list[dict], list[Run], list[Path]]:
    """Collect the results of all done runs below a folder into tidy tables there or in `target`, and draw the figures that their notebooks define.

    Returns:
        One row per measurement (notebook, the parameters given, measurement, value); the runs that are missing; the files written.
    """
    runs, target = planned(folder), Path(target or folder)
    done = [run for run in runs if run.state == "done"]
    rows = [{"notebook": run.notebook.stem, **run.parameters, "measurement": name, "value": value}
            for run in done for name, value in _measurements(results(run.folder))]
    written = [target / "measurements.csv"]
    write_atomically(written[0], csv_text(rows, last=("measurement", "value")))
    for notebook in dict.fromkeys(run.notebook.stem for run in done):
        written += _gather_notebook([run for run in done if run.notebook.stem == notebook], target / notebook)
    return rows, [run for run in runs if run not in done], written


def _gather_notebook(done: list[Run], target: Path) -> list[Path]:
    rows = []
    for run in done:
        try:
            with suppress(FileNotFoundError), open(run.folder / "table.csv", newline="") as file:
                rows += [run.parameters | row for row in csv.DictReader(file)]
        except (OSError, ValueError, csv.Error) as error:
            print(f"{run.folder / 'table.csv'} is left out, because it is no table: {error}", file=sys.stderr)
    if not rows:
        return []
    written = [target.with_suffix(".csv")]
    write_atomically(written[0], csv_text(rows))
    if figure := (read_json(done[-1].folder / "results.json") or {}).get("figure"):
        try:
            written.append(_draw(figure, written[0], done[0].parameters))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # what a notebook wrote there may be anything
            print(f"{target.with_suffix('.png')} is not drawn, because of the figure in results.json: {type(error).__name__}: {error}", file=sys.stderr)
    return written


def _draw(figure: dict, path: Path, parameters: dict) -> Path:
    import pandas as pd

    from ..studies import plots
    table = pd.read_csv(path)
    # Parameters that the grid varies get lines of their own; seeds are what the mean is over.
    varied = [name for name in parameters if name not in SEEDS and table[name].nunique() > 1]
    plots.gathered(table, **figure | {"by": [*figure["by"], *varied]}).savefig(path.with_suffix(".png"), dpi=110)
    return path.with_suffix(".png")


def _measurements(found: object) -> Iterator[tuple[str, object]]:
    """Every number or word in nested results, under a dotted name."""
    waiting = [("", found)]
    while waiting:  # no recursion, which ends at some depth
        name, value = waiting.pop()
        if isinstance(value, (dict, list)):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += reversed([(f"{name}.{key}" if name else str(key), one) for key, one in inner])
        else:
            yield name, value
