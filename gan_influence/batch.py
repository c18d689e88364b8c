"""Batch runs: one notebook over a grid of parameters, on any executor; what is done stays done, and the same call continues the rest."""

import csv
import fcntl
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_process
from pathlib import Path
from typing import TextIO

import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from . import notebooks
from .storage import write_atomically

GRID, LOCK = "grid.json", ".lock"  # in the folder of a grid
RUN, LOG, FAILED, DONE = "run.json", "log.txt", "failed.json", "done.json"  # in the folder of each run
ATTEMPTS = 3  #: a run is given up when its worker process was killed so often


@dataclass(frozen=True)
class Run:
    """One execution of a notebook.

    Attributes:
        notebook: the .ipynb file.
        folder: what the run fills; its name tells the parameters.
        parameters: the values given to it; the notebook's own hold for the others.
        timeout: seconds that a cell may take.
        html: whether to write an HTML page too.
    """

    notebook: Path
    folder: Path
    parameters: dict[str, object]
    timeout: float | None = None
    html: bool = False

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def state(self) -> str:
        """ "done", "running", "failed" or "waiting".

        Done needs a mark with these parameters, which is written last, and whole results beside it. What the executed
        notebook says about itself is not asked: after a timeout it looks like a finished one.
        """
        done = _read(self.folder / DONE)
        if done and done["parameters"] == self.parameters and _results(self.folder) is not None:
            return "done"
        if (self.folder / LOG).exists() and _is_locked(self.folder / LOG):
            return "running"
        return "failed" if (self.folder / FAILED).exists() else "waiting"

    @property
    def error(self) -> str:
        """Why it failed."""
        return (_read(self.folder / FAILED) or {}).get("error", "")


# What to run.


def grid(notebook: Path, out: str | os.PathLike, axes: Mapping[str, Sequence], timeout: float | None = None, html: bool = False) -> list[Run]:
    """All combinations of the axes' values, as runs in the folder `out`; nothing is written yet.

    Args:
        notebook: the .ipynb file.
        out: the grid's folder; each run gets a folder in it.
        axes: the values of each parameter, which may be text.
        timeout, html: as in `Run`.

    Raises:
        ValueError: for a parameter that the notebook does not have, or a value of another type.

    >>> notebook = notebooks.FOLDER / "04_leave_one_out_2d.ipynb"
    >>> [run.name for run in grid(notebook, "runs/04", {"preset": ["quick"], "first_seed": ["0", "1"]})]
    ['preset=quick,first_seed=0', 'preset=quick,first_seed=1']
    """
    if "out" in axes:
        raise ValueError("the notebook's parameter out is set for each run, below the folder of the grid: leave it out")
    values = []
    for name, given in axes.items():
        read = [_plain(notebooks.check_parameters(notebook, {name: value})[name]) for value in given]
        values.append(list({json.dumps(value): value for value in read}.values()))
    points = [dict(zip(axes, point)) for point in itertools.product(*values)]
    return [Run(notebook.resolve(), Path(out).resolve() / run_name(point), point, timeout, html) for point in points]


def split_values(text: str) -> list[str]:
    """The values of a comma list; commas within brackets do not count.

    >>> split_values("1,2"), split_values("(1, 5),(1, 10)")
    (['1', '2'], ['(1, 5)', '(1, 10)'])
    """
    return [value.strip() for value in re.split(r",(?![^(\[{]*[)\]}])", text)]


def seed_axes(notebook: Path, seeds: Sequence[int]) -> dict[str, Sequence]:
    """The axes that give each seed a run of its own: `seed`, or `first_seed` with one seed a run.

    Raises:
        ValueError: where the notebook has neither.
    """
    known = notebooks.declared(notebook)
    if "seed" in known:
        return {"seed": seeds}
    if {"first_seed", "n_seeds"} <= known.keys():
        return {"first_seed": seeds, "n_seeds": [1]}
    raise ValueError(f"{notebook.stem} has no parameter seed, nor first_seed with n_seeds: it has {', '.join(known) or 'none'}")


def presets(notebook: Path) -> list[str]:
    """The values that the comment behind the parameter `preset` puts in quotes.

    >>> presets(notebooks.FOLDER / "04_leave_one_out_2d.ipynb")
    ['quick', 'paper']
    """
    return re.findall(r'"(\w+)"', notebooks.declared(notebook).get("preset", {}).get("help", ""))


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
        with _locked(run.folder / LOG) as log:
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
    printed = notebooks.without_places(log.read())
    log.truncate(0)
    print(f"{printed}{'failed: ' + error if error else 'done'}, after {record['seconds']} s", file=log, flush=True)
    _write(run.folder / (FAILED if error else DONE), record | ({"error": error} if error else {}))
    return error


@contextmanager
def _errors_into(log: TextIO) -> Iterator[None]:
    """Let the kernel, which inherits it, complain to the log and not to the terminal; and hold the log's lock until it is gone too."""
    if multiprocessing.parent_process() is None or threading.current_thread() is not threading.main_thread():
        yield  # the process is not this run's own
        return
    kept = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _failure(run: Run, log: TextIO) -> str | None:
    try:
        notebooks.run(run.notebook, run.folder, run.parameters, run.timeout, run.html, log)
    except papermill.PapermillExecutionError as error:
        return notebooks.without_places(f"cell {error.cell_index}, {error.ename}: {error.evalue}")
    except CellTimeoutError:
        return f"a cell took longer than {run.timeout:g} s (--timeout)"
    except DeadKernelError:
        return "the notebook's process died: it ran out of memory, or ended itself"
    except OSError as error:
        return _os_error(error)
    except Exception as error:  # whatever it is, the other runs go on
        return notebooks.without_places(f"{type(error).__name__}: {error}")
    if _results(run.folder) is None:
        return "it left no results.json: its last cell must call experiments.save_results(out, ...)"
    return None


# Running many.


def run_all(runs: Sequence[Run], executor: Callable[[], AbstractContextManager[Executor]], at_once: int,
            report: Callable[[Run, str | None, int], None] = lambda run, error, running: None) -> dict[str, str]:
    """Execute runs on an executor; failures do not stop the others.

    Args:
        runs: those to do; done ones among them are not repeated.
        executor: makes the executor, again when a worker process was killed and took it along.
        at_once: how many runs are handed over before the first is back.
        report: called after each run with why it failed (None: it is done) and how many are running now.

    Returns:
        {name: reason} of the runs that failed.
    """
    waiting, deaths, failed = deque(runs), Counter(), {}
    while waiting:
        with executor() as pool:
            running: dict[Future, Run] = {}
            try:
                while waiting or running:
                    # Runs that were under way when a worker died go alone: so the cause is found, and memory is theirs.
                    while waiting and len(running) < (1 if any(deaths[run.name] for run in (waiting[0], *running.values())) else at_once):
                        future = pool.submit(execute, waiting[0])
                        running[future] = waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        try:
                            error = future.result()
                        except BrokenExecutor:
                            raise
                        except Exception as problem:  # Dask's: a worker lost too often, the scheduler gone
                            error = f"{type(problem).__name__}: {problem}"
                        run = running.pop(future)
                        if error:
                            failed[run.name] = error
                        report(run, error, len(running))
            except BrokenExecutor:
                for run in running.values():
                    deaths[run.name] += 1
                    if deaths[run.name] < ATTEMPTS:
                        waiting.appendleft(run)
                    else:
                        failed[run.name] = f"its worker process was killed {ATTEMPTS} times: it may need more memory than there is"
                        report(run, failed[run.name], 0)
    return failed


@contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """A pool of processes of this machine, which end with this one, however that ends."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _follow_parent)
    try:
        yield pool
    except BaseException:
        for worker in set(multiprocessing.active_children()) - others:
            _kill(worker.pid)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    # Ctrl-C goes to the whole process group, but what happens then is for the driver to say.
    signal.signal(signal.SIGINT, lambda *_: None)

    def watch() -> None:
        wait_for_process([multiprocessing.parent_process().sentinel])
        _kill(os.getpid())  # idle workers would wait for work for ever, and busy ones finish what nobody asked for

    threading.Thread(target=watch, daemon=True).start()


def _kill(pid: int) -> None:
    """Kill a worker after its kernels, so that none is left behind."""
    with suppress(psutil.NoSuchProcess):
        worker = psutil.Process(pid)
        for process in [*worker.children(recursive=True), worker]:
            with suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
                process.kill()


@contextmanager
def cluster(address: str, gpu: bool = False) -> Iterator[Executor]:
    """The workers of a running Dask cluster.

    Args:
        address: of the scheduler, such as tcp://host:8786.
        gpu: give each run a worker that was started with --resources GPU=1, and that worker nothing else meanwhile.

    Raises:
        ValueError: where no scheduler answers, or it has no worker that would do.
    """
    try:
        from dask.distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError("--scheduler needs Dask: pip install 'gan-influence[cluster]'") from error
    try:
        client = Client(address, timeout=5, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {address}: start one with `dask scheduler`, and give the address that it prints") from error
    with client:
        offers = [worker["resources"] for worker in client.scheduler_info()["workers"].values()]
        wanted = " --resources GPU=1" if gpu else ""
        if not any(offer.get("GPU", 0) >= 1 or not gpu for offer in offers):
            raise ValueError(f"{len(offers)} workers are connected to {address}, none that {'offers a GPU' if gpu else 'could run anything'}: start some "
                             f"with `dask worker {address} --nthreads 1{wanted}`")
        yield client.get_executor(pure=False, **({"resources": {"GPU": 1}} if gpu else {}))


@contextmanager
def only_driver(out: str | os.PathLike) -> Iterator[None]:
    """Hold the folder of a grid; a lock whose holder is dead holds nothing.

    Raises:
        BlockingIOError: while another process holds it.
    """
    path = Path(out) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            lock = held.enter_context(_locked(path, patient=False))
        except BlockingIOError:
            raise BlockingIOError(f"{out} is being filled by {path.read_text().strip() or 'another process'}: wait for it, or stop it, "
                                  "because both would do the same work") from None
        lock.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=lock, flush=True)
        yield


def plan(runs: Sequence[Run], out: str | os.PathLike, force: bool = False) -> list[Run]:
    """Note in the folder `out` that these runs belong to it; returns those that are to do.

    Args:
        runs: of one notebook.
        out: the folder, which may hold runs from before.
        force: whether to do all of them again.

    Raises:
        ValueError: when the folder belongs to another notebook.
    """
    path, stem = Path(out) / GRID, runs[0].notebook.stem
    known = _read(path) or {"notebook": stem, "runs": {}}
    if known["notebook"] != stem:
        raise ValueError(f"{out} holds runs of {known['notebook']}, and these are of {stem}: give each notebook a folder of its own")
    _write(path, {"notebook": stem, "runs": known["runs"] | {run.name: run.parameters for run in runs}})
    if force:
        for run in runs:
            (run.folder / DONE).unlink(missing_ok=True)
    return [run for run in runs if run.state != "done"]


# What there is.


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


def gather(folder: str | os.PathLike, target: str | os.PathLike | None = None) -> tuple[list[dict], list[Run]]:
    """Collect the results of all done runs below a folder into one tidy table.

    Args:
        folder: of one grid or several.
        target: the CSV file; `measurements.csv` in the folder by default.

    Returns:
        One row per measurement (notebook, the parameters given, measurement, value), as written; and the runs that are missing.
    """
    runs = planned(folder)
    done = [run for run in runs if run.state == "done"]
    rows = [{"notebook": run.notebook.stem, **run.parameters, "measurement": name, "value": value}
            for run in done for name, value in _measurements(_results(run.folder))]
    last = ("measurement", "value")  # a notebook's own parameters in between, also where another notebook has more of them
    columns = [*dict.fromkeys(name for row in rows for name in row if name not in last), *last]
    lines = io.StringIO()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(target or Path(folder) / "measurements.csv", lines.getvalue())
    return rows, [run for run in runs if run not in done]


def _measurements(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every number or word in nested results, under a dotted name."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _measurements(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _results(folder: Path) -> dict | None:
    return (_read(folder / "results.json") or {}).get("results")


def _read(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # absent or cut short: both mean that it has not been made
        return None
    return content if isinstance(content, dict) else None


def _write(path: Path, content: dict) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def _plain(value: object) -> object:
    return json.loads(json.dumps(value))  # as it will be read back: a tuple is a list


def _letters(text: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII)
    return plain if plain == text else plain.strip("-")


def _os_error(error: OSError) -> str:
    return f"{error.strerror or error}{f': {Path(error.filename).name}' if error.filename else ''}"


@contextmanager
def _locked(path: Path, patient: bool = True) -> Iterator[TextIO]:
    # The system lets go of the lock when its holder dies: none is ever stale.
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
        yield file


def _is_locked(path: Path) -> bool:
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
