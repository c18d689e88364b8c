"""The command line: `gan-influence`, or `python -m gan_influence`."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import metadata
from pathlib import Path

from . import __version__, links
from .commands_record import add_paper, add_record, check_gpu, seeds
from .progress import progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gan-influence", description="Which training images hurt a GAN, and would it be better without them?",
                                     epilog="gan-influence COMMAND --help says what a command needs and what it leaves.")
    parser.add_argument("--version", action="version", version=f"gan-influence {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_demo, _add_list, _add_run, _add_status, _add_gather, add_record, add_paper, _add_notebooks, _add_links):
        command = add(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.set_defaults(parser=command)
    options = parser.parse_args(arguments)
    return options.call(options) or 0


def _add_demo(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("demo", help="train a small GAN, find its harmful instances, train again without them", description="""\
Run notebooks/00_start_here.ipynb from top to bottom, in about a minute on a CPU, and leave in a folder
  00_start_here.html    the executed notebook, to read in a browser
  00_start_here.ipynb   the same, to continue in Jupyter
  figure-1.png ...      its figures
  results.json          its key numbers, also printed""", epilog="""\
example:
  gan-influence demo -p seed 3 --out runs/seed-3""")
    command.add_argument("--out", default="runs/demo", metavar="DIR", help="where everything goes (default: %(default)s)")
    command.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="another value for a name in the notebook's parameters cell; may be given several times")
    command.set_defaults(call=_demo)
    return command


def _demo(options) -> int:
    notebooks = _notebook_tools(options)
    parameters, notebook = dict(options.parameter), notebooks.FOLDER / "00_start_here.ipynb"
    if "out" in parameters:
        options.parser.error("the notebook's parameter out is this command's --out: give that instead")
    if not notebook.exists():
        options.parser.error(f"the notebooks are not part of the installed package: clone {_home_page()} and run this there")
    try:
        executed = notebooks.run(notebook, options.out, parameters)
    except ValueError as error:
        options.parser.error(str(error))
    except notebooks.papermill.PapermillExecutionError as error:
        print(f"cell {error.cell_index} failed, {error.ename}: {error.evalue}\nThe notebook up to there: {Path(options.out) / notebook.name}", file=sys.stderr)
        return 1
    _report(executed)
    return 0


def _report(executed: Path) -> None:
    out = executed.parent
    results = out / "results.json"
    if results.exists():
        numbers = {name: value for name, value in json.loads(results.read_text())["results"].items() if isinstance(value, (int, float, str))}
        width = max(map(len, numbers), default=0)
        print("\nKey numbers")
        for name, value in numbers.items():
            print(f"  {name:{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
    figures = len(list(out.glob("figure-*.png")))
    print(f"\nRead {executed.with_suffix('.html')} in a browser, or continue in {executed};\n{figures} figures and results.json are beside it.")


def _add_list(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("list", help="the notebooks and their parameters", description="""\
Show every notebook with the parameters that `run` and `demo` can change: name, type, value, meaning.""")
    command.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="only these: a number, a name or a path")
    command.set_defaults(call=_list)
    return command


def _list(options) -> None:
    notebooks = _notebook_tools(options)
    try:
        paths = [notebooks.find(name) for name in options.notebooks] or notebooks.every()
    except ValueError as error:
        options.parser.error(str(error))
    for path in paths:
        print(notebooks.title(path), f"({path.name})")
        for name, one in notebooks.declared(path).items():
            if name != "out":  # that is --out
                print(f"  {name:15} {one['inferred_type_name']:6} {one['default']:12} {one['help']}".rstrip())
        print()


def _add_run(commands) -> argparse.ArgumentParser:
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
  gan-influence run 04 --seeds 0:5 --out runs/04 --jobs 2                     five seeds, two at a time
  gan-influence run 00 -p removed 0.05,0.1 -p epochs 30,60 --seeds 0:3 --out runs/00    a grid of 2 x 2 x 3
one GPU, several processes on it:
  gan-influence run 04 --preset paper -p device cuda --seeds 0:15 --out runs/04 --jobs 3
several GPUs of one machine, one Dask worker each (pip install 'gan-influence[cluster]'):
  dask scheduler --host 127.0.0.1 &
  for gpu in 0 1; do CUDA_VISIBLE_DEVICES=$gpu dask worker tcp://127.0.0.1:8786 --nthreads 1 --resources GPU=1 & done
  gan-influence run 04 --preset paper -p device cuda --seeds 0:15 --out runs/04 --scheduler tcp://127.0.0.1:8786
several machines: the same, with the scheduler's address and one `dask worker` on each. The repository and --out must be
in folders that all of them see under the same path. Only on a network you trust: whoever reaches a scheduler can run code.
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
    command.add_argument("--jobs", type=_positive(int), default=1, metavar="N", help="how many runs at once on this machine (default: %(default)s)")
    command.add_argument("--scheduler", metavar="ADDRESS", help="run on the Dask cluster of this scheduler instead, as many at once as it has threads")
    command.add_argument("--timeout", type=_positive(float), metavar="SECONDS", help="how long a single cell may take (default: for ever)")
    command.add_argument("--html", action="store_true", help="leave the executed notebook as an HTML page too")
    command.add_argument("--force", action="store_true", help="do all of these runs again")
    command.set_defaults(call=_run)
    return command


def _run(options) -> int:
    batch = _batch_tools(options)
    try:
        notebook = batch.notebooks.find(options.notebook)
        runs = batch.grid(notebook, options.out, _axes(options, batch, notebook), options.timeout, options.html)
        gpu = any(run.parameters.get("device") == "cuda" for run in runs)
        if options.scheduler is None:
            check_gpu(options, "cuda" if gpu else "cpu", "-p device")
        with batch.only_driver(options.out):
            return _drive(options, batch, runs, gpu)
    except (ValueError, BlockingIOError) as error:
        options.parser.error(str(error))
    except OSError as error:
        options.parser.error(f"{options.out} cannot be written ({error.strerror}): give another --out")


def _axes(options, batch, notebook: Path) -> dict:
    axes: dict[str, list] = {}
    for name, text in options.parameter:
        axes.setdefault(name, []).extend(batch.split_values(text))
    if options.preset:
        names = batch.presets(notebook)
        if names and options.preset not in names:
            raise ValueError(f"{notebook.stem} has the presets {', '.join(names)}, but not {options.preset!r}")
        axes = {"preset": [options.preset], **axes}
    if options.seeds:
        by_seed = batch.seed_axes(notebook, options.seeds)
        if twice := by_seed.keys() & axes.keys():
            raise ValueError(f"--seeds sets {', '.join(sorted(twice))}, and so does -p: give one of them")
        axes |= by_seed
    return axes


def _drive(options, batch, runs: list, gpu: bool) -> int:
    waiting = batch.plan(runs, options.out, options.force)
    print(f"{runs[0].notebook.stem}: {len(runs)} runs in {options.out}, {len(runs) - len(waiting)} done before, {len(waiting)} to do", flush=True)
    if not waiting:
        return 0
    make_pool = partial(batch.cluster, options.scheduler, gpu) if options.scheduler else partial(batch.processes, options.jobs)
    width, before, ended = max(len(run.name) for run in runs), len(runs) - len(waiting), 0
    began, failed = time.monotonic(), {}
    with progress(total=len(waiting), desc="runs", unit="run", smoothing=0) as bar:
        def report(run, error, running) -> None:
            nonlocal ended
            ended += 1
            if error:
                failed[run.name] = error
            left = _duration((time.monotonic() - began) / ended * (len(waiting) - ended))
            bar.write(f"[{before + ended}/{len(runs)}] {run.name:{width}}  {'failed: ' + _line(error) if error else 'done'}  "
                      f"({len(failed)} failed, {left} left)")
            bar.set_postfix(running=running, failed=len(failed))
            bar.update()

        # A batch system says SIGTERM where a person says Ctrl-C.
        usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            batch.run_all(waiting, make_pool, len(runs) if options.scheduler else options.jobs, report)
        except KeyboardInterrupt:
            print(f"stopped with {before + ended - len(failed)} of {len(runs)} runs done: the same command continues", file=sys.stderr)
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


def _add_status(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("status", help="how far batch runs are", description="""\
Count the runs below a folder that are done, running, failed and waiting; say which failed, and why. Also while they run.""")
    command.add_argument("folder", metavar="DIR", help="what was --out of `gan-influence run`, or a folder above")
    command.set_defaults(call=_status)
    return command


def _status(options) -> None:
    batch = _batch_tools(options)
    try:
        runs = batch.planned(options.folder)
    except FileNotFoundError as error:
        options.parser.error(str(error))
    states = [run.state for run in runs]
    print(f"{len(runs)} runs: " + ", ".join(f"{states.count(state)} {state}" for state in ("done", "running", "failed", "waiting")))
    for run, state in zip(runs, states):
        if state != "done":
            print(f"  {state:7}  {run.name}" + (f"  {_line(run.error)}" if state == "failed" else ""))


def _add_gather(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("gather", help="the results of batch runs as one table", description="""\
Read the results.json of every done run below a folder into one CSV table: one row per measurement, with the parameters
as columns; and say what is missing. In pandas, then:
  table.groupby(["removed", "measurement"]).value.agg(["mean", "std"])""")
    command.add_argument("folder", metavar="DIR", help="what was --out of `gan-influence run`, or a folder above")
    command.add_argument("--to", metavar="FILE", help="the table (default: DIR/measurements.csv)")
    command.set_defaults(call=_gather)
    return command


def _gather(options) -> None:
    batch = _batch_tools(options)
    target = options.to or Path(options.folder) / "measurements.csv"
    try:
        rows, missing, total = *batch.gather(options.folder, target), len(batch.planned(options.folder))
    except FileNotFoundError as error:
        options.parser.error(str(error))
    print(f"{len(rows)} measurements of {total - len(missing)} runs in {target}")
    if missing:
        print(f"{len(missing)} of {total} runs are missing:", *(f"  {run.name}  ({run.state})" for run in missing), sep="\n")


def _positive(kind: type):
    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not value > 0:
            raise argparse.ArgumentTypeError(f"this is a number above 0, but got {text!r}")
        return value
    return read


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _add_notebooks(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("notebooks", help="execute the notebooks again, each in its place", description="""\
Execute notebooks with their own parameters and store them, cleaned, in their place. One that fails stays as it was.""")
    command.add_argument("paths", nargs="*", type=Path, metavar="NOTEBOOK", help="which ones (default: all in notebooks/)")
    command.set_defaults(call=_notebooks)
    return command


def _notebooks(options) -> int:
    notebooks = _notebook_tools(options)
    from nbclient.exceptions import CellExecutionError

    paths = options.paths or sorted(notebooks.FOLDER.glob("*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        options.parser.error(f"no such notebook: {', '.join(missing)}")
    failed = 0
    for path in paths:
        try:
            print(f"{path.name}: {notebooks.refresh(path):.0f} s", flush=True)
        except CellExecutionError as error:
            failed += 1
            print(f"{path.name} stays as it was, because a cell failed:\n{error}", file=sys.stderr)
    return 1 if failed else 0


def _add_links(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("links", help="make the Colab, Binder and GitHub links follow pyproject.toml", description="""\
The repository's address is written once, in pyproject.toml. Rewrite every link to it in README.md and notebooks/*.ipynb.""",
                                  epilog="""\
example: after forking
  gan-influence links --repository ada/gan_influence""")
    command.add_argument("--check", action="store_true", help="change nothing; list the links that disagree, with exit status 1 if there are any")
    command.add_argument("--repository", metavar="OWNER/NAME", help="write this address into pyproject.toml first")
    command.set_defaults(call=_links)
    return command


def _links(options) -> int:
    if options.check and options.repository:
        options.parser.error("--check changes nothing and --repository does: give one of them")
    root = links.ROOT
    try:
        if options.repository:
            links.rename(options.repository, root)
        if options.check:
            wrong = links.disagreements(root)
            print("\n".join(wrong) if wrong else f"every link leads to {links.repository(root)}")
            return 1 if wrong else 0
        print("\n".join(links.rewrite(root)) or "nothing to change")
        return 0
    except (ValueError, FileNotFoundError) as error:
        options.parser.error(str(error))


def _notebook_tools(options):
    # Imported here, because scoring a GAN needs none of it.
    try:
        from . import notebooks
    except ModuleNotFoundError as error:
        options.parser.error(f"this command runs notebooks, which needs {error.name}: pip install 'gan-influence[notebooks]'")
    return notebooks


def _batch_tools(options):
    _notebook_tools(options)
    from . import batch
    return batch


def _home_page() -> str:
    # From the installed metadata: an installed package has no pyproject.toml beside it.
    return dict(entry.split(", ", 1) for entry in metadata("gan-influence").get_all("Project-URL", []))["Repository"]


if __name__ == "__main__":
    sys.exit(main())
