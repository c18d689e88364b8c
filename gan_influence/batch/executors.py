"""Where batch runs go: a pool of processes, or a Dask cluster; and what happens when a worker, or the driver, is killed."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from multiprocessing.connection import wait as wait_for_process
from pathlib import Path

import psutil

from .grid import Run, execute, locked

LOCK = ".lock"  # in the folder of a grid
ATTEMPTS = 3  #: a run is given up when its worker process was killed so often


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
    # On Linux, workers are forked from a server that has imported what all of them need: one start-up instead of one for each.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(jobs, context, _follow_parent)
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
            lock = held.enter_context(locked(path, patient=False))
        except BlockingIOError:
            raise BlockingIOError(f"{out} is being filled by {path.read_text().strip() or 'another process'}: wait for it, or stop it, "
                                  "because both would do the same work") from None
        lock.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=lock, flush=True)
        yield
