"""Batch runs: one notebook over a grid of parameters, each a folder; what is done stays done, and the same call continues the rest."""

import hashlib
import itertools
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..tools.files import read_json, write_atomically
from ..tools.locks import is_locked, locked
from ..tools.places import without_places
from . import notebooks

GRID = "grid.json"  # in the folder of a grid
RUN, LOG, FAILED, DONE = "run.json", "log.txt", "failed.json", "done.json"  # in the folder of each run
LARGEST = 10_000  # runs of one folder


@dataclass(frozen=True)
class Run:
    """One execution of a notebook."""

    notebook: Path
    folder: Path  #: what it fills
    parameters: dict[str, object]  #: the values given to it; the notebook's own hold for the others
    timeout: int | None = None  #: seconds that a cell may take
    html: bool = False  #: whether to write an HTML page too
    code: str = ""  #: the fingerprint of the notebook's code when the grid was made

    @property
    def name(self) -> str:
        return self.folder.name  # which tells the parameters

    @property
    def state(self) -> str:
        """ "done", "running", "failed" or "waiting".

        Done needs a mark with these parameters, which is written last, and whole results beside it. What the executed
        notebook says about itself is not asked: after a timeout it looks like a finished one.
        """
        done = read_json(self.folder / DONE)
        if done and done.get("parameters") == self.parameters and results(self.folder) is not None:
            return "done"
        if (self.folder / LOG).exists() and is_locked(self.folder / LOG):
            return "running"
        return "failed" if (self.folder / FAILED).exists() else "waiting"

    @property
    def done_by(self) -> str | None:
        """The fingerprint of the code that its results are of."""
        return (read_json(self.folder / DONE) or {}).get("code")

    @property
    def error(self) -> str:
        return (read_json(self.folder / FAILED) or {}).get("error", "")


# What to run.


def grid(notebook: Path, out: str | os.PathLike, axes: Mapping[str, Sequence], timeout: int | None = None, html: bool = False) -> list[Run]:
    """All combinations of the axes' values, which may be text, as runs in folders below `out`; nothing is written yet.

    Raises:
        ValueError: for a parameter that the notebook does not have, a value of another type, or more runs than a folder takes.

    >>> notebook = notebooks.FOLDER / "04_leave_one_out_2d.ipynb"
    >>> [run.name for run in grid(notebook, "runs/04", {"preset": ["quick"], "first_seed": ["0", "1"]})]
    ['preset=quick,first_seed=0', 'preset=quick,first_seed=1']
    """
    if "out" in axes:
        raise ValueError("the notebook's parameter out is set for each run, below the folder of the grid: leave it out")
    if (n := math.prod(map(len, axes.values()))) > LARGEST:
        raise ValueError(f"these are {n} runs, and a folder takes {LARGEST}: give fewer values, or several folders")
    known = notebooks.declared(notebook)
    values = []
    for name, given in axes.items():
        notebooks.check_parameters(notebook, {name: given[0]})
        read = [json.dumps(notebooks.read_value(value, known[name]["inferred_type_name"], name)) for value in given]
        values.append([json.loads(text) for text in dict.fromkeys(read)])  # each once, as it will be read back: a tuple is a list
    points, code = [dict(zip(axes, point)) for point in itertools.product(*values)], notebooks.code_fingerprint(notebook)
    return [Run(notebook.resolve(), Path(out).resolve() / run_name(point), point, timeout, html, code) for point in points]


def seed_axes(notebook: Path, seeds: Sequence[int]) -> dict[str, Sequence]:
    """The axes that give each seed a run of its own: `seed`, or `first_seed` with one seed a run; a ValueError where the notebook has neither."""
    known = notebooks.declared(notebook)
    if "seed" in known:
        return {"seed": seeds}
    if {"first_seed", "n_seeds"} <= known.keys():
        return {"first_seed": seeds, "n_seeds": [1]}
    raise ValueError(f"{notebook.stem} has no parameter seed, nor first_seed with n_seeds: it has {', '.join(known) or 'none'}")


def run_name(parameters: Mapping[str, object]) -> str:
    """A readable folder name; a short hash is added where letters had to be replaced or cut.

    >>> run_name({"seed": 3, "rate": 0.1}), run_name({}), run_name({"windows": [1, 5]})
    ('seed=3,rate=0.1', 'defaults', 'windows=1-5-beda82')
    """
    exact = ",".join(f"{name}={value}" for name, value in parameters.items()) or "defaults"
    plain = ",".join(f"{name}={_letters(str(value))}" for name, value in parameters.items()) or "defaults"
    return plain if plain == exact and len(plain) <= 120 else f"{plain[:120]}-{hashlib.blake2b(exact.encode()).hexdigest()[:6]}"


# Running one.


def execute(run: Run) -> str | None:
    """Execute one run, in whatever process an executor calls this; returns None when it is done, or why it failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # kernels inherit it: digits must not depend on how many runs share the machine
    try:
        run.folder.mkdir(exist_ok=True)
        # Locked for as long as this process lives. A run whose driver was killed may still go on elsewhere: then wait for it.
        with locked(run.folder / LOG) as log:
            return None if run.state == "done" else _execute(run, log)
    except FileNotFoundError:
        return f"{socket.gethostname()} does not see the folder {run.folder.parent}: give an --out that all machines share"
    except OSError as error:
        return _os_error(error)


def _execute(run: Run, log: TextIO) -> str | None:
    for stale in (DONE, FAILED):
        (run.folder / stale).unlink(missing_ok=True)
    log.truncate(0)
    record = {"notebook": run.notebook.stem, "parameters": run.parameters}
    _write(run.folder / RUN, record)
    began = time.perf_counter()
    with _errors_into(log):
        error = _failure(run, log)
    record["seconds"] = round(time.perf_counter() - began, 2)
    log.seek(0)
    printed = without_places(log.read())
    log.truncate(0)
    print(f"{printed}{'failed: ' + error if error else 'done'}, after {record['seconds']} s", file=log, flush=True)
    _write(run.folder / (FAILED if error else DONE), record | ({"error": error} if error else {"code": run.code}))
    return error


@contextmanager
def _errors_into(log: TextIO) -> Iterator[None]:
    """Let the kernel, which inherits it, complain to the log and not to the terminal; and hold the log's lock until it is gone too."""
    from distributed import get_worker
    kept = os.dup(2)
    with suppress(ValueError):  # of a process that is no worker
        if get_worker().state.nthreads == 1:  # else it is not this run's own
            os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _failure(run: Run, log: TextIO) -> str | None:
    import papermill  # here, because a driver has no need of what takes a second
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    try:
        if notebooks.code_fingerprint(run.notebook) != run.code:
            return "the notebook's code has changed since this grid was started: the same command again runs what it is now"
        notebooks.run(run.notebook, run.folder, run.parameters, run.timeout, run.html, log)
    except papermill.PapermillExecutionError as error:
        return without_places(f"cell {error.cell_index}, {error.ename}: {error.evalue}")
    except CellTimeoutError:
        return f"a cell took longer than {run.timeout} s (--timeout)"
    except DeadKernelError:
        return "the notebook's process died: it ran out of memory, or ended itself"
    except OSError as error:
        return _os_error(error)
    except Exception as error:  # whatever it is, the other runs go on
        return without_places(f"{type(error).__name__}: {error}")
    if results(run.folder) is None:
        return "it left no results.json: its last cell must call experiments.save_results(out, ...)"
    return None


def plan(runs: Sequence[Run], out: str | os.PathLike, force: bool = False) -> list[Run]:
    """Note in the folder `out` that these runs of one notebook belong to it; returns those that are to do, with `force` all of them.

    Raises:
        ValueError: when the folder belongs to another notebook, or it cannot be read what it holds.
    """
    path, stem = Path(out) / GRID, runs[0].notebook.stem
    known = (read_json(path) or {}) if path.exists() else {"notebook": stem, "runs": {}}
    if known.keys() != {"notebook", "runs"}:
        raise ValueError(f"{path} lists the runs of its folder, and it is damaged: put it back, or remove it and ask for all of these runs again")
    if known["notebook"] != stem:
        raise ValueError(f"{out} holds runs of {known['notebook']}, and these are of {stem}: give each notebook a folder of its own")
    _write(path, {"notebook": stem, "runs": known["runs"] | {run.name: run.parameters for run in runs}})
    if force:
        for run in runs:
            (run.folder / DONE).unlink(missing_ok=True)
    return [run for run in runs if run.state != "done"]


def results(folder: Path) -> dict | None:
    return (read_json(folder / "results.json") or {}).get("results")


def _write(path: Path, content: dict) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def _letters(text: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII)
    return plain if plain == text else plain.strip("-")


def _os_error(error: OSError) -> str:
    return f"{error.strerror or error}{f': {Path(error.filename).name}' if error.filename else ''}"
