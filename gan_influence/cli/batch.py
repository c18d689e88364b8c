"""The command line's batch runs: `gan-influence run`, `status` and `gather`."""

import argparse
import re
import signal
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from ..batch import gathering, grid, notebooks
from ..tools.locks import only_driver
from ..tools.progress import progress
from .record import check_gpu, seeds


def add_run(commands) -> None:
    command = commands.add_parser("run", help="run a notebook over a grid of parameters; again to continue", description="""\
Execute a notebook once for every combination of the values given. Each run leaves, in a folder named by its parameters,
  NOTEBOOK.ipynb              the executed notebook, up to the error if there was one
  results.json, table.csv     its numbers; figure-1.png and so on beside them
  run.json, log.txt           its parameters, and what it printed
  done.json or failed.json    how it ended
The same command again does what is missing and what failed; what is done is never repeated. Ctrl-C stops at once, and
loses only the runs that were under way; on a cluster these go on to their end, and the next call waits for them.
Every run computes on one thread, unless OMP_NUM_THREADS says otherwise.""", epilog="""\
examples:
  gan-influence run 04 --seeds 0:5 --out runs/04 --jobs 2                                   five seeds, two at a time
  gan-influence run 00 -p removed 0.05,0.1 -p epochs 30,60 --seeds 0:3 --out runs/00        a grid of 2 x 2 x 3
  gan-influence run 04 --preset paper -p device cuda --seeds 0:15 --out runs/04 --jobs 3    three processes on one GPU
several GPUs of one machine, one Dask worker each; then run as above, with --scheduler tcp://127.0.0.1:8786 for --jobs:
  dask scheduler --host 127.0.0.1 &
  for gpu in 0 1; do CUDA_VISIBLE_DEVICES=$gpu dask worker tcp://127.0.0.1:8786 --nthreads 1 --resources GPU=1 & done
several machines: the same, with the scheduler's address and one `dask worker` on each. The repository and --out must be
in folders that all of them see under the same path. Only on a network you trust: whoever reaches a scheduler can run code,
and so can other users of this machine while a grid runs, --jobs included, through its port on 127.0.0.1.
Slurm, in Python on the login node (pip install dask-jobqueue); leave it open and run as above with the printed address:
  from dask_jobqueue import SLURMCluster
  cluster = SLURMCluster(cores=1, processes=1, memory="8GB", walltime="02:00:00",
                         job_extra_directives=["--gres=gpu:1"], worker_extra_args=["--resources GPU=1"])
  cluster.scale(4); print(cluster.scheduler_address)""")
    command.add_argument("notebook", metavar="NOTEBOOK", help="a number (04), a name (04_leave_one_out_2d) or a path; see `gan-influence list`")
    command.add_argument("--out", required=True, metavar="DIR", help="where the runs go; one folder per notebook")
    command.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="a value of a parameter, or several with commas between; each NAME multiplies the grid")
    command.add_argument("--seeds", type=seeds, metavar="A:B", help="a run for each of the seeds A, A+1, ... B-1")
    command.add_argument("--preset", help="the notebook's parameter preset")
    command.add_argument("--jobs", type=_positive, default=1, metavar="N", help="how many runs at once on this machine (default: %(default)s)")
    command.add_argument("--scheduler", metavar="ADDRESS", help="run on the Dask cluster of this scheduler instead, as many at once as it has threads")
    command.add_argument("--timeout", type=_positive, metavar="SECONDS", help="how long a single cell may take (default: for ever)")
    command.add_argument("--html", action="store_true", help="leave the executed notebook as an HTML page too")
    command.add_argument("--force", action="store_true", help="do all of these runs again")
    command.set_defaults(call=_run)


def _run(options) -> int:
    for name in ("papermill", "distributed"):
        if find_spec(name) is None:  # before anything is made; and papermill only workers import, where every run would fail
            raise ModuleNotFoundError(name=name)
    notebook = notebooks.find(options.notebook)
    runs = grid.grid(notebook, options.out, _axes(options, notebook), options.timeout, options.html)
    gpu = any(run.parameters.get("device") == "cuda" for run in runs)
    if gpu and options.scheduler is None:
        check_gpu(options, "cuda", "-p device")
    try:
        with only_driver(options.out):
            return _drive(options, runs, gpu)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not error.strerror:  # nobody reads what is printed here; or it is a sentence already
            raise
        options.parser.error(f"{options.out} cannot be written ({error.strerror}): give another --out")


def _axes(options, notebook: Path) -> dict:
    axes: dict[str, list] = {}
    for name, text in options.parameter:
        axes.setdefault(name, []).extend(value.strip() for value in re.split(r",(?![^(\[{]*[)\]}])", text))  # at commas outside of brackets
    if options.preset:
        names = re.findall(r'"(\w+)"', notebooks.declared(notebook).get("preset", {}).get("help", ""))  # those that the comment behind it quotes
        if names and options.preset not in names:
            raise ValueError(f"{notebook.stem} has the presets {', '.join(names)}, but not {options.preset!r}")
        axes = {"preset": [options.preset], **axes}
    if options.seeds:
        by_seed = grid.seed_axes(notebook, options.seeds)
        if twice := by_seed.keys() & axes.keys():
            raise ValueError(f"--seeds sets {', '.join(sorted(twice))}, and so does -p: give one of them")
        axes |= by_seed
    return axes


def _drive(options, runs: list, gpu: bool) -> int:
    from ..batch import executors  # here, because Dask takes a second
    waiting = grid.plan(runs, options.out, options.force)
    print(f"{runs[0].notebook.stem}: {len(runs)} runs in {options.out}, {len(runs) - len(waiting)} done before, {len(waiting)} to do", flush=True)
    if changed := sum(run.state == "done" and run.done_by != run.code for run in runs):
        print(f"the notebook's code has changed since {changed} of them were done, which stay as they are: --force does all of them again", flush=True)
    if not waiting:
        return 0
    width, before, began, ended = max(len(run.name) for run in runs), len(runs) - len(waiting), time.monotonic(), {}
    # A batch system says SIGTERM where a person says Ctrl-C.
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with progress(total=len(waiting), desc="runs", unit="run", smoothing=0) as bar:
        def report(run, error) -> None:
            ended[run.name] = error
            left = _duration((time.monotonic() - began) / len(ended) * (len(waiting) - len(ended)))
            bar.write(f"[{before + len(ended)}/{len(runs)}] {run.name:{width}}  {'failed: ' + _line(error) if error else 'done'}  "
                      f"({sum(map(bool, ended.values()))} failed, {left} left)")
            bar.update()

        try:
            cluster = executors.remote(options.scheduler, gpu) if options.scheduler else executors.local(options.jobs)
            failed = executors.run_all(waiting, cluster, report)
        except KeyboardInterrupt:
            print(f"stopped with {before + list(ended.values()).count(None)} of {len(runs)} runs done: the same command continues", file=sys.stderr)
            return 130
        finally:
            signal.signal(signal.SIGTERM, usual)
    if failed:
        print(f"\n{len(failed)} of {len(runs)} runs failed:", *(f"  {name:{width}}  {_line(why)}" for name, why in failed.items()),
              f"Their notebooks and logs are in {options.out}; the same command tries them again.", sep="\n", file=sys.stderr)
    return 1 if failed else 0


def _line(text: str) -> str:
    first = text.splitlines()[0]
    return first if len(first) <= 160 else first[:157] + "..."


def add_status(commands) -> None:
    command = commands.add_parser("status", help="how far batch runs are", description="""\
Count the runs below a folder that are done, running, failed and waiting; say which failed, and why. Also while they run.""")
    command.add_argument("folder", metavar="DIR", help="what was --out of `gan-influence run`, or a folder above")
    command.set_defaults(call=_status)


def _status(options) -> None:
    runs = gathering.planned(options.folder)
    states = [run.state for run in runs]
    print(f"{len(runs)} runs: " + ", ".join(f"{states.count(state)} {state}" for state in ("done", "running", "failed", "waiting")))
    for run, state in zip(runs, states):
        if state != "done":
            print(f"  {state:7}  {run.name}" + (f"  {_line(run.error)}" if state == "failed" else ""))


def add_gather(commands) -> None:
    command = commands.add_parser("gather", help="the results of batch runs as tables and a figure", description="""\
Collect what every done run below a folder left, with the parameters as columns, say what is missing, and write
  measurements.csv    one row per number or word of results.json
  NOTEBOOK.csv        the notebook's own table, of all runs
  NOTEBOOK.png        its figure, where the notebook defines one: mean and standard deviation over seeds, published values beside
In pandas, then:
  table.groupby(["removed", "measurement"]).value.agg(["mean", "std"])""")
    command.add_argument("folder", metavar="DIR", help="what was --out of `gan-influence run`, or a folder above")
    command.add_argument("--to", metavar="DIR", help="where they go (default: the folder itself)")
    command.set_defaults(call=_gather)


def _gather(options) -> None:
    rows, missing, written = gathering.gather(options.folder, options.to)
    runs = gathering.planned(options.folder)
    print(f"{len(rows)} measurements of {len(runs) - len(missing)} runs in", *written, sep="\n  ")
    if missing:
        print(f"{len(missing)} of {len(runs)} runs are missing:", *(f"  {run.name}  ({run.state})" for run in missing), sep="\n")
    codes = Counter(stem for stem, _ in {(run.notebook.stem, run.done_by) for run in runs if run not in missing})
    for stem in (stem for stem, n in codes.items() if n > 1):
        print(f"the code of {stem} changed between these runs, so their numbers may not belong together: `gan-influence run --force` does all of them again",
              file=sys.stderr)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"this is a whole number above 0, but got {text!r}")
    return int(text)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
