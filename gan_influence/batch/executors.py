"""Where batch runs go: the workers of a Dask cluster, made here or running elsewhere; and what happens when one is killed."""

import asyncio
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue

import dask
from distributed import Client, KilledWorker, LocalCluster, Nanny

from .grid import Run, execute

ATTEMPTS = 3  #: a run is given up when its worker process was killed so often
PATIENCE = 5.0  # seconds without news, after which to see whether there are workers at all


def run_all(runs: Sequence[Run], cluster: AbstractContextManager[tuple[Client, dict]],
            report: Callable[[Run, str | None], None] = lambda run, error: None) -> dict[str, str]:
    """Execute runs on a cluster; failures do not stop the others, and done ones among them are not repeated.

    Args:
        cluster: a client of it, and what its runs are submitted with.
        report: called after each run with why it failed (None: it is done).

    Returns:
        {name: reason} of the runs that failed.
    """
    ended, failed, lost = SimpleQueue(), {}, False
    with cluster as (client, options):
        for run in runs:
            client.submit(execute, run, pure=False, **options).add_done_callback(lambda future, run=run: ended.put((run, future)))
        left = len(runs)
        while left:
            try:
                run, future = ended.get(timeout=PATIENCE)
            except Empty:
                before, lost = lost, not client.scheduler_info()["workers"]
                if lost and not before:
                    print(f"no worker is connected to {client.scheduler.address}: waiting for one", file=sys.stderr, flush=True)
                continue
            try:
                error = future.result()
            except KilledWorker as problem:
                error = f"its worker process was killed {problem.allowed_failures + 1} times: it may need more memory than there is"
            except CancelledError:
                error = "the Dask scheduler is gone: start it again, and give its address to the same command"
            except Exception as problem:  # whatever it is, the other runs go on
                error = f"{type(problem).__name__}: {problem}"
            left -= 1
            if error:
                failed[run.name] = error
            report(run, error)
    return failed


@contextmanager
def local(jobs: int) -> Iterator[tuple[Client, dict]]:
    """Processes of this machine, which end with this one, however that ends."""
    settings = {"distributed.scheduler.allowed-failures": ATTEMPTS - 1,
                "distributed.scheduler.worker-saturation": 1.0,  # what waits, waits with the scheduler, and does not die with a worker
                "distributed.nanny.pre-spawn-environ": {}}  # kernels would inherit it
    # Ctrl-C goes to the whole process group, but what happens then is for this process to say: workers inherit what the thread that
    # starts them blocks. The resource tracker, when it starts, would unblock it.
    resource_tracker.ensure_running()
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with (dask.config.set(settings),
              LocalCluster(n_workers=jobs, threads_per_worker=1, memory_limit=None, silence_logs="CRITICAL",
                           dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False}) as cluster,
              Client(cluster, set_as_default=False) as client):
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, usual)
                yield client, {}
            except BaseException:
                cluster.sync(_stop, cluster.workers.values())  # at once; by itself it gives the runs four seconds
                raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


async def _stop(nannies: Iterable[Nanny]) -> None:
    await asyncio.gather(*(nanny.close(timeout=0.1) for nanny in nannies), return_exceptions=True)  # a slow end must not hide why


@contextmanager
def remote(address: str, gpu: bool = False) -> Iterator[tuple[Client, dict]]:
    """The workers of a running Dask cluster; with `gpu` a run gets one that was started with --resources GPU=1, which does nothing else meanwhile.

    Raises:
        ValueError: where no scheduler answers, or it has no worker that would do.
    """
    try:
        client = Client(address, timeout=5, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {address}: start one with `dask scheduler`, and give the address that it prints") from error
    with client:
        offers = [worker["resources"] for worker in client.scheduler_info()["workers"].values()]
        if not any(offer.get("GPU", 0) >= 1 or not gpu for offer in offers):
            raise ValueError(f"{len(offers)} workers are connected to {address}, none that {'offers a GPU' if gpu else 'could run anything'}: start some "
                             f"with `dask worker {address} --nthreads 1{' --resources GPU=1' if gpu else ''}`")
        yield client, {"resources": {"GPU": 1}} if gpu else {}
