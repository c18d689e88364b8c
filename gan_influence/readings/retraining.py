"""Counterfactual runs: the same schedule again, without some instances. The ground truth that influence predicts."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import Executor, as_completed

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..game.state import State, stack, unstack
from ..tools.checks import whole
from ..tools.memory import out_of_memory
from ..tools.progress import progress
from ..training.trajectory import Trajectory, last
from .judging import instance_set, metrics_of, settled, value

MODELS_AT_ONCE = {"cpu": 32, "cuda": 256}
CACHED = 32 * 2**20  # bytes of their steps' graphs up to which models on a CPU gain from company; convolutions are alone beyond it


def retrain(run: Trajectory, remove: Iterable, last_epochs: int | None = None, models_at_once: int | None = None,
            compile: bool = False, last_steps: int | None = None) -> State | list[State]:
    """Run the last epochs again without some training instances.

    The counterfactual starts from the recorded state at the window's start and meets the same instances, latents and
    learning rates in the same order; removed instances have weight 0 and the loss still divides by B.

    Args:
        run: a recorded run.
        remove: instances to remove together, in any collection; or a list of such sets, trained many at once.
        last_epochs, last_steps: the window, in epochs or in steps; None retrains from the first step.
        models_at_once: how many models are trained together; halved by itself when memory runs out.
        compile: compile the step of so many models first (half a minute; needs a C++ compiler), for long windows.

    Returns:
        The final state, or a list of final states for a list of sets.

    Raises:
        TypeError: for instances that are not whole numbers, such as scores or a mask.
        IndexError: for an instance that does not exist.
        ValueError: for an instance that is in a set twice.

    Source: Terashita et al., ICLR 2021, section 5 (data cleansing).

    >>> import gan_influence as gi
    >>> data = gi.data.normal_2d(train=200, valid=50, test=50, seed=0)
    >>> run = gi.train(gi.models.fcgan(), data.train, epochs=2, seed=0)
    >>> one, other = gi.retrain(run, remove=[[3], [5, 7]], last_epochs=1)
    """
    if isinstance(remove, Iterator) or type(remove) is tuple:  # but not what topk returns, which is refused below
        remove = list(remove)
    many = any(isinstance(one, Iterable) and getattr(one, "ndim", 1) for one in remove) if isinstance(remove, (list, Set)) else getattr(remove, "ndim", 1) == 2
    sets = [instance_set(run, one) for one in (remove if many else [remove])]
    states = [run.final for _ in sets]
    for which, stacked in counterfactuals(run, sets, run.window(last_epochs, last_steps), models_at_once, compile):
        for i, state in zip(which, unstack(stacked)):
            states[i] = state.map(Tensor.clone)
    return states if many else states[0]


def leave_one_out(run: Trajectory, metric, instances: Iterable[int], last_epochs: int | None = None,
                  models_at_once: int | None = None, compile: bool = False, executor: Executor | None = None,
                  folder: str | os.PathLike | None = None, last_steps: int | None = None) -> Tensor | dict[str, Tensor]:
    """Measure, by actually retraining without it, how a metric changes when one instance is absent.

    Args:
        run: a recorded run.
        metric: a callable metric(gan, state) -> scalar, or a dict of them.
        instances: which ones, each removed alone.
        last_epochs, last_steps: the window, in epochs or in steps; None retrains from the first step.
        models_at_once: how many models are trained together; halved by itself when memory runs out.
        compile: compile the step of so many models first (half a minute; needs a C++ compiler), for long windows.
        executor: spreads the models over the workers of any `concurrent.futures.Executor`, such as a process pool, or
            `Client(address).get_executor()` of a Dask cluster. They compute with as many threads as this process.
        folder: where the run is saved for the workers, one that all of them see; by default a temporary one of this machine.

    Returns:
        (len(instances),) float64 on the CPU: metric(without j) − metric(with j), exactly 0 for an instance that the window
        never drew. A dict for a dict.

    Source: Terashita et al., ICLR 2021, section 5.1.

    >>> import gan_influence as gi
    >>> data, gan = gi.data.normal_2d(train=200, valid=50, test=50, seed=0), gi.models.fcgan()
    >>> run = gi.train(gan, data.train, epochs=2, seed=0)
    >>> metric = gi.metrics.AverageLogLikelihood(data.valid, gan.sample_latents(50, seed=1))
    >>> gi.leave_one_out(run, metric, instances=range(3), last_epochs=1).shape
    torch.Size([3])
    """
    metrics = metrics_of(metric)
    sets = list(instance_set(run, instances, once=False)[:, None])
    truth = {name: torch.zeros(len(sets), dtype=torch.float64) for name in metrics}
    task = run, metrics, sets, run.window(last_epochs, last_steps), models_at_once, compile
    measured = _here(*task) if executor is None else _spread(*task, executor, folder)
    with progress(total=len(sets), desc="leave-one-out", unit="model") as bar:
        for which, changes in measured:
            for name, values in changes.items():
                truth[name][which] = values
            bar.update(len(which))
    return truth if isinstance(metric, Mapping) else truth.popitem()[1]


Measured = Iterator[tuple[list[int], dict[str, Tensor]]]  # positions in `sets`, and each metric's changes there


@torch.no_grad()
def _here(run: Trajectory, metrics: Mapping, sets: list[Tensor], start: int, models_at_once: int | None, compile: bool) -> Measured:
    before = {name: value(m, run.gan, run.final) for name, m in metrics.items()}
    for name, m in metrics.items():
        settled(run, m, before[name].item())
    for which, stacked in counterfactuals(run, sets, start, models_at_once, compile):
        states = unstack(stacked)
        yield which, {name: torch.stack([value(m, run.gan, state) - before[name] for state in states[:len(which)]]).to("cpu", torch.float64)
                      for name, m in metrics.items()}


def _spread(run: Trajectory, metrics: Mapping, sets: list[Tensor], start: int, models_at_once: int | None, compile: bool,
            executor: Executor, folder: str | os.PathLike | None) -> Measured:
    # One task per group of models, so that no worker trains fewer at once than a single process would. A task that a cluster
    # runs twice gives the same numbers twice, of which one is kept.
    if folder is None:
        with tempfile.TemporaryDirectory() as folder:
            yield from _spread(run, metrics, sets, start, models_at_once, compile, executor, folder)
        return
    folder, device = os.path.abspath(folder), run.rows.device
    run.save(folder)
    save_file({f"{i:02}": column.cpu().contiguous() for i, column in enumerate(run.rows.columns)}, os.path.join(folder, "data.safetensors"))
    gan = run.gan.copy()
    gan.to("cpu")  # a GPU's memory does not travel
    waiting, size = _order(run, sets, start, models_at_once)
    shards = [[i for i, _ in waiting[first:first + size]] for first in range(0, len(waiting), size)]
    tasks = {executor.submit(leave_one_out_shard, folder, gan, run.rows.read, run.dynamics.optimizers, str(device), metrics, [int(sets[i]) for i in which],
                             run.steps - start, size, compile, torch.get_num_threads()): which for which in shards}
    for task in as_completed(tasks):
        yield tasks[task], task.result()


def leave_one_out_shard(folder: str, gan, read, optimizer, device: str, metrics: Mapping, instances: list[int], last_steps: int,
                        models_at_once: int, compile: bool, threads: int) -> dict[str, Tensor]:
    """Leave-one-out of some instances from the run saved in a folder: what `leave_one_out` asks its executor's workers to do."""
    torch.set_num_threads(threads)  # the last digits depend on it
    gan = gan.copy()  # threads share what they are given, and a network computes for one at a time
    gan.to(device)
    columns = load_file(os.path.join(folder, "data.safetensors"), device)
    x = read if read is not None else columns["00"] if len(columns) == 1 else tuple(columns[name] for name in sorted(columns))
    return leave_one_out(Trajectory.load(folder, gan, x, optimizer), metrics, instances, None, models_at_once, compile, last_steps=last_steps or None)


def fractional_leave_one_out(run: Trajectory, metric, instances: Iterable[int], fraction: float, last_epochs: int | None = None) -> Tensor:
    """Measure as `leave_one_out` does, but with a fraction ε of each instance absent: (metric(weight 1 − ε) − metric(weight 1)) / ε.

    For ε = 1 it is leave-one-out; for ε → 0 it tends to the influence.
    """
    sets = list(instance_set(run, instances, once=False)[:, None])
    changes = torch.zeros(len(sets), dtype=torch.float64)
    with torch.no_grad():
        before = value(metric, run.gan, run.final)
        for which, stacked in counterfactuals(run, sets, run.window(last_epochs), weight=1 - fraction):
            for i, state in zip(which, unstack(stacked)):
                changes[i] = (value(metric, run.gan, state) - before).item() / fraction
    return changes


def counterfactuals(run: Trajectory, sets: list[Tensor], start: int, models_at_once: int | None = None,
                    compile: bool = False, weight: float = 0.0) -> Iterator[tuple[list[int], State]]:
    """Yield (positions in `sets`, their final states stacked), for every set that the window draws from; its instances have `weight`.

    Until its first removal a counterfactual is the recorded run. So models are sorted by that step and each group starts
    there; half of a one-epoch window, on average, is never run.
    """
    waiting, size = _order(run, sets, start, models_at_once)
    while waiting:
        group = [i for i, _ in waiting[:size]]
        try:
            final = _run_group(run, [sets[i] for i in group], waiting[0][1], size, compile, weight)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not out_of_memory(error):
                raise
            size //= 2
            continue
        waiting = waiting[size:]
        yield group, final


def _order(run: Trajectory, sets: list[Tensor], start: int, models_at_once: int | None) -> tuple[list[tuple[int, int]], int]:
    """The sets that the window draws from, as (position in `sets`, step of the first removal) in the order of that step; and how many at once."""
    first = np.full(run.n, run.steps)
    np.minimum.at(first, *run.draws(start))
    joins = [int(first[one.numpy()].min()) if len(one) else run.steps for one in sets]
    waiting = sorted(((i, join) for i, join in enumerate(joins) if join < run.steps), key=lambda one: one[1])
    if run.dynamics.stacked is None:
        models_at_once = 1
    elif models_at_once is None:
        models_at_once = MODELS_AT_ONCE.get(run.rows.device.type, 32)
        if run.rows.device.type == "cpu" and waiting:
            models_at_once = max(1, min(models_at_once, CACHED // run.graph_bytes))
    size = min(whole("models_at_once", models_at_once), max(1, len(waiting)))
    return waiting, -(-len(waiting) // -(-len(waiting) // size)) if waiting else size  # groups of one size


def _run_group(run: Trajectory, sets: list[Tensor], start: int, size: int, compile: bool, weight: float) -> State:
    keep = run.present.repeat(size, 1)  # a last, smaller group is filled up with the recorded run
    for row, one in zip(keep, sets):
        row[one.to(keep.device)] = weight
    state = run.state(start)
    if size == 1:  # a stack of one costs twice as much as none
        return stack([last(run.walk(state, start, run.steps, keep[0]))])
    return last(run.walk(stack([state] * size), start, run.steps, keep, run.stepper(models=True, compile=compile)))
