"""Batch runs: grids, what is refused, what fails, what is killed, and that nothing done is lost or done twice."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from test_front_door import ABSOLUTE, refusal, words, write_notebook

from gan_influence import experiments, plots
from gan_influence.batch import executors, gathering
from gan_influence.batch import grid as batch
from gan_influence.cli.main import main
from gan_influence.tools.locks import only_driver

PARAMETERS = 'seed: int = 0  # of everything\nrate: float = 0.5\npreset: str = "quick"  # "quick": fast; "paper": slow\nout: str = "runs/x"'
# A file beside the notebook tells a run what to do, so that the same command can fail and then succeed.
WORK = """
import os, time
from pathlib import Path
with open("started", "a") as file:
    file.write(f"{seed}\\n")
trouble = Path(f"trouble-{seed}").read_text() if Path(f"trouble-{seed}").exists() else ""
print("at work in", Path.cwd(), out)
exec(trouble)
"""
SAVE = """
import json
Path(out, "results.partial").write_text(json.dumps({"results": {"product": seed * rate, "all": {"first": [seed, 0.1 + 0.2]}}}))
os.replace(Path(out, "results.partial"), Path(out, "results.json"))
"""


class Threads(ThreadPoolExecutor):
    """A stand-in for Dask, whose processes take seconds to import what they need."""

    def submit(self, function, run, pure):
        return super().submit(function, run)

    def scheduler_info(self):
        return {"workers": self._threads}


@contextlib.contextmanager
def threads(jobs: int = 2):
    with Threads(jobs) as pool:
        yield pool, {}


@pytest.fixture
def light(monkeypatch):
    """The command line with threads for processes."""
    monkeypatch.setattr(executors, "local", threads)


@pytest.fixture
def notebook(tmp_path) -> Path:
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / "07_tiny.ipynb"
    write_notebook(path, PARAMETERS, WORK, SAVE)
    return path


def trouble(notebook: Path, seed: int, code: str) -> Path:
    path = notebook.with_name(f"trouble-{seed}")
    path.write_text(code)
    return path


def started(notebook: Path) -> Counter:
    """How often each seed's work began."""
    path = notebook.with_name("started")
    return Counter(path.read_text().split()) if path.exists() else Counter()


def products(out: Path) -> dict[str, float]:
    gathering.gather(out)
    with open(out / "measurements.csv") as file:
        return {row["seed"]: float(row["value"]) for row in csv.DictReader(file) if row["measurement"] == "product"}


def until(condition, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


# What to run.


def test_a_grid_in_full(notebook, tmp_path, capsys, light):
    out = tmp_path / "runs"
    command = ["run", str(notebook), "-p", "rate", "1,2.5", "--seeds", "3:5", "--preset", "paper", "--out", str(out), "--html", "--jobs", "2"]
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [f"preset=paper,rate={r},seed={s}" for r in (1.0, 2.5) for s in (3, 4)]
    one = out / "preset=paper,rate=2.5,seed=4"
    assert sorted(path.name for path in one.iterdir()) == ["07_tiny.html", "07_tiny.ipynb", "done.json", "log.txt", "results.json", "run.json"]
    assert json.loads((one / "run.json").read_text()) == {"notebook": "07_tiny", "parameters": {"preset": "paper", "rate": 2.5, "seed": 4}}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("0 done before, 4 to do") and len([line for line in lines[1:] if " done" in line]) == 4

    assert main(["gather", str(out)]) == 0
    with open(out / "measurements.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["notebook", "preset", "rate", "seed", "measurement", "value"] and len(rows) == 4 * 3
    assert rows[0] == {"notebook": "07_tiny", "preset": "paper", "rate": "1.0", "seed": "3", "measurement": "product", "value": "3.0"}
    assert {row["value"] for row in rows if row["measurement"] == "all.first.1"} == {str(0.1 + 0.2)}, "digits must not be lost"
    for path in (path for path in out.rglob("*") if path.is_file()):
        text = words(nbformat.read(path, as_version=4)) if path.suffix == ".ipynb" else path.read_text()
        assert str(tmp_path) not in text and (path.suffix == ".html" or not ABSOLUTE.search(text)), f"{path.name} tells where it was made"

    before = {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
    assert main([*command, "-p", "rate", "4"]) == 0, "a larger grid does only what is new"
    assert {path: path.stat().st_mtime_ns for path in before} == before and started(notebook) == {"3": 3, "4": 3}
    assert main([*command, "--force"]) == 0
    assert started(notebook) == {"3": 5, "4": 5}


def test_seeds_where_a_notebook_counts_them(notebook, tmp_path):
    write_notebook(notebook, "first_seed: int = 0\nn_seeds: int = 10")
    runs = batch.grid(notebook, tmp_path, batch.seed_axes(notebook, range(2, 4)))
    assert [run.parameters for run in runs] == [{"first_seed": 2, "n_seeds": 1}, {"first_seed": 3, "n_seeds": 1}]
    write_notebook(notebook, "n: int = 0")
    with pytest.raises(ValueError, match="no parameter seed, nor first_seed .* it has n"):
        batch.seed_axes(notebook, range(2))


def test_names_are_readable_and_never_shared(notebook, tmp_path):
    values = ["a b", "a-b", "a/b", "x" * 300, "x" * 301, "../..", "-"]
    names = [batch.run_name({"mode": value}) for value in values]
    assert len(set(names)) == len(values) and names[1] == "mode=a-b" and all(len(name) < 140 and "/" not in name for name in names)


@pytest.mark.parametrize("arguments, sentence", [
    (["-p", "sede", "1"], "did you mean seed?"),
    (["-p", "seed", "1,two"], "seed takes int, but got 'two'"),
    (["-p", "rate", "fast"], "rate takes float"),
    (["-p", "out", "x"], "leave it out"),
    (["--preset", "papers"], "presets quick, paper"),
    (["-p", "seed", "1", "--seeds", "0:2"], "--seeds sets seed"),
    (["--jobs", "0"], "above 0"),
    *((["--timeout", text], f"a whole number above 0, but got '{text}'") for text in ("soon", "2.5", "inf", "-1")),
    (["--seeds", "0:100000000"], "these are 100000000 runs, and a folder takes 10000"),
    (["--scheduler", "tcp://127.0.0.1:1"], "no Dask scheduler answers"),
])
def test_refused_before_anything_starts(arguments, sentence, notebook, tmp_path, capsys):
    assert sentence in refusal(capsys, "run", str(notebook), "--out", str(tmp_path / "runs"), *arguments)
    assert not started(notebook) and not list(tmp_path.glob("runs/*/"))


def test_commas_within_brackets_do_not_count(notebook, tmp_path, monkeypatch):
    write_notebook(notebook, "windows: tuple = (1,)\nn: int = 0")
    monkeypatch.setattr(executors, "run_all", lambda *_: {})
    assert main(["run", str(notebook), "--out", str(tmp_path / "runs"), "-p", "windows", "(1, 5),[1, 10]", "-p", "n", "1, 2"]) == 0
    assert [tuple(run.parameters.values()) for run in gathering.planned(tmp_path / "runs")] == [([1, k], n) for k in (5, 10) for n in (1, 2)]


def test_without_papermill_nothing_starts(notebook, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)  # as if it were not installed
    assert main(["run", str(notebook), "--out", str(tmp_path / "runs")]) == 1
    assert "this command needs papermill: pip install" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_what_is_not_there(notebook, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch.notebooks, "FOLDER", notebook.parent)
    assert "did you mean 07_tiny?" in refusal(capsys, "run", "07_tniy", "--out", "x")
    assert "no batch runs" in refusal(capsys, "gather", str(tmp_path)) and "no batch runs" in refusal(capsys, "status", str(tmp_path))
    blocked = tmp_path / "file" / "runs"
    blocked.parent.write_text("not a folder")
    assert "cannot be written" in refusal(capsys, "run", "7", "--out", str(blocked))


def test_list_shows_what_can_be_set(notebook, capsys, monkeypatch):
    monkeypatch.setattr(batch.notebooks, "FOLDER", notebook.parent)
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "07_tiny (07_tiny.ipynb)" and lines[1].split() == ["seed", "int", "0", "of", "everything"] and len(lines) == 5


def on_a_small_disk(tmp_path: Path, options: str, *commands: str) -> subprocess.CompletedProcess:
    """Run `gan-influence` commands with a disk of their own mounted at tmp_path/disk; skips the test where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = "".join(f'; "{sys.executable}" -m gan_influence {command}; echo status $?' for command in commands)
    try:
        ran = subprocess.run(["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o {options} tmpfs "{disk}" || exit 77{script}'], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare here to mount a small disk with")
    if ran.returncode in (1, 77) and "status" not in ran.stdout:
        pytest.skip("a small disk may not be mounted here")
    return ran


def test_a_read_only_folder(notebook, tmp_path):
    ran = on_a_small_disk(tmp_path, "ro", f'run "{notebook}" --out "{tmp_path}/disk/runs"')
    assert "status 2" in ran.stdout and "cannot be written (Read-only file system): give another --out" in ran.stderr and not started(notebook)


def test_a_folder_of_another_notebook_is_left_alone(notebook, tmp_path, capsys):
    other = notebook.with_name("08_other.ipynb")
    other.write_text(notebook.read_text())
    batch.plan(batch.grid(notebook, tmp_path, {}), tmp_path)
    before = (tmp_path / "grid.json").read_text()
    assert "holds runs of 07_tiny" in refusal(capsys, "run", str(other), "--out", str(tmp_path))
    assert (tmp_path / "grid.json").read_text() == before


@pytest.mark.parametrize("text", ['{"notebook": "07_tiny", "runs": {"se', "[1]", '{"runs": {}}'])
def test_a_damaged_list_of_runs_is_not_replaced(text, notebook, tmp_path, capsys):
    (tmp_path / "grid.json").write_text(text)
    assert "grid.json lists the runs of its folder, and it is damaged" in refusal(capsys, "run", str(notebook), "--out", str(tmp_path))
    assert (tmp_path / "grid.json").read_text() == text and not started(notebook)


def test_whoever_drives_and_works_needs_no_torch():
    code = "import sys, papermill, gan_influence.batch.executors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_two_drivers(notebook, tmp_path, capsys):
    with only_driver(tmp_path):
        sentence = refusal(capsys, "run", str(notebook), "--out", str(tmp_path))
    assert f"is being filled by process {os.getpid()} on" in sentence and not started(notebook)
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    with only_driver(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text(), "a lock that nobody holds is taken over"


# What goes wrong inside a run.


def test_each_failure_says_why_and_the_others_go_on(notebook, tmp_path, capsys, light):
    trouble(notebook, 1, "1 / 0")
    trouble(notebook, 2, "print('hanging', flush=True); time.sleep(60)")
    trouble(notebook, 3, "os._exit(1)")
    trouble(notebook, 4, "os.makedirs(Path(out, 'results.json'))")
    out = tmp_path / "runs"
    command = ["run", str(notebook), "--seeds", "0:6", "--out", str(out), "--timeout", "2", "--jobs", "2"]
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert "4 of 6 runs failed" in printed, printed
    reasons = {int(path.parent.name[5:]): json.loads(path.read_text())["error"] for path in out.rglob("failed.json")}
    assert reasons == {1: "cell 2, ZeroDivisionError: division by zero", 2: "a cell took longer than 2 s (--timeout)",
                       3: "the notebook's process died: it ran out of memory, or ended itself", 4: reasons[4]}
    assert "IsADirectoryError" in reasons[4] and all(reason.splitlines()[0][:100] in printed for reason in reasons.values())
    assert any(output.output_type == "error" for cell in nbformat.read(out / "seed=1" / "07_tiny.ipynb", as_version=4).cells
               for output in cell.get("outputs", []))
    assert "hanging" in (out / "seed=2" / "log.txt").read_text()
    assert products(out) == {"0": 0.0, "5": 2.5}

    capsys.readouterr()
    main(["status", str(out)])
    assert capsys.readouterr().out.splitlines()[0] == "6 runs: 2 done, 0 running, 4 failed, 0 waiting"
    for seed in range(1, 5):
        notebook.with_name(f"trouble-{seed}").unlink()
    (out / "seed=4" / "results.json").rmdir()
    assert main(command) == 0
    assert products(out) == {str(seed): seed * 0.5 for seed in range(6)}
    assert started(notebook) == {"0": 1, "5": 1} | {str(seed): 2 for seed in range(1, 5)}, "only what failed is done again"


def test_a_full_disk(notebook, tmp_path):
    write_notebook(notebook, PARAMETERS, WORK, "print('x' * 60_000)", SAVE)
    runs = tmp_path / "disk" / "runs"
    ran = on_a_small_disk(tmp_path, "size=200k", f'run "{notebook}" --seeds 0:3 --out "{runs}"', f'status "{runs}"')
    assert "status 1" in ran.stdout and "No space left on device" in ran.stderr and "Traceback" not in ran.stderr
    assert re.search(r"3 runs: [01] done", ran.stdout)


def test_done_needs_an_end_and_whole_results(notebook, tmp_path):
    trouble(notebook, 1, "os.environ['NO_RESULTS'] = '1'")
    write_notebook(notebook, PARAMETERS, WORK, "if 'NO_RESULTS' not in os.environ:\n    " + SAVE.replace("\n", "\n    "))
    runs = batch.grid(notebook, tmp_path, {"seed": [0, 1]})
    failed = executors.run_all(batch.plan(runs, tmp_path), threads())
    assert list(failed) == ["seed=1"] and "results.json" in failed["seed=1"] and [run.state for run in runs] == ["done", "failed"]
    good = (runs[0].folder / "results.json").read_text()
    for part, text in (("results.json", good[:-9]), ("done.json", json.dumps({"parameters": {"seed": 7}})), ("done.json", "{"), ("done.json", '{"code": ""}')):
        path = runs[0].folder / part
        before = path.read_text()
        path.write_text(text)
        assert runs[0].state != "done" and len(batch.plan(runs, tmp_path)) == 2
        path.write_text(before)
    assert runs[0].state == "done"


def test_gather_says_what_is_missing(notebook, tmp_path, capsys):
    runs = batch.grid(notebook, tmp_path / "runs", {"seed": [0, 1]})
    (tmp_path / "runs").mkdir()
    batch.plan(runs, tmp_path / "runs")
    assert batch.execute(runs[0]) is None
    assert main(["gather", str(tmp_path), "--to", str(tmp_path / "all")]) == 0
    printed = capsys.readouterr().out
    assert "3 measurements of 1 runs" in printed and "1 of 2 runs are missing:\n  seed=1  (waiting)" in printed
    assert (tmp_path / "all" / "measurements.csv").read_text().startswith("notebook,seed,measurement,value\n07_tiny,0,product,0.0\n")


def test_gather_draws_what_the_notebook_defines(notebook, tmp_path, monkeypatch, capsys):
    save = """
from gan_influence.studies.experiments import save_results
rows = [{"seed": seed, "k": k, "tau": 1 / k + 0.1 * seed, "metric": metric} for k in (1, 2) for metric in ("a", "b")]
save_results(out, {"tau": 1}, rows, figure={"x": "k", "y": "tau", "by": ["metric"], "published": {"a": [[1, 2], [0.9, 0.4]]}})
"""
    write_notebook(notebook, PARAMETERS, save)
    drawn, original = [], plots.gathered
    monkeypatch.setattr(plots, "gathered", lambda *args, **options: drawn.append(original(*args, **options)) or drawn[-1])
    runs = batch.grid(notebook, tmp_path / "runs", {"seed": [0, 1, 2], "rate": [1, 2]})
    (tmp_path / "runs").mkdir()
    batch.plan(runs, tmp_path / "runs")
    for run in runs:
        assert batch.execute(run) is None
    assert main(["gather", str(tmp_path / "runs")]) == 0
    assert "07_tiny.png" in capsys.readouterr().out and (tmp_path / "runs" / "07_tiny.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / "runs" / "07_tiny.csv")
    assert len(table) == 6 * 4 and set(table.columns) == {"seed", "rate", "k", "tau", "metric"}
    (ax,) = drawn[0].axes
    lines = {text.get_text(): handle for text, handle in zip(ax.get_legend().get_texts(), ax.get_legend().legend_handles)}
    assert set(lines) == {*(f"{metric}, rate = {rate} (n=3)" for metric in "ab" for rate in (1, 2)), "a, published"}  # one line per value of the grid
    means = sorted(tuple(np.round(np.asarray(line.get_ydata(), float), 6).tolist()) for line in ax.get_lines() if len(line.get_ydata()) == 2)
    assert (0.9, 0.4) in means and means.count((1.1, 0.6)) == 4


def test_a_figure_of_columns_that_are_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="which are k, tau; it has no kappa"):
        experiments.save_results(tmp_path, {}, [{"k": 1, "tau": 2}], figure={"x": "kappa", "y": "tau", "by": []})
    assert not (tmp_path / "results.json").exists()


def test_code_that_changed_since_is_told_and_not_mixed_silently(notebook, tmp_path, capsys, light):
    command = ["run", str(notebook), "--seeds", "0:2", "--out", str(tmp_path / "runs")]
    assert main(command) == 0 and main(command) == 0 and "has changed" not in capsys.readouterr().out
    content = nbformat.read(notebook, as_version=4)
    content.cells.append(nbformat.v4.new_markdown_cell("More prose is no other code.", id="prose"))
    nbformat.write(content, notebook)
    assert main(command) == 0 and "has changed" not in capsys.readouterr().out
    content.cells[1].source += "\n1 + 1"
    nbformat.write(content, notebook)
    assert main(command) == 0 and "code has changed since 2 of them were done" in capsys.readouterr().out
    assert main([*command, "--force"]) == 0 and main(command) == 0
    assert "has changed" not in capsys.readouterr().out.splitlines()[-1] and started(notebook) == {"0": 2, "1": 2}


def test_code_that_changes_meanwhile(notebook, tmp_path, capsys, light):
    out = tmp_path / "runs"
    command = ["run", str(notebook), "--seeds", "0:3", "--out", str(out)]
    trouble(notebook, 1, "import nbformat\nbook = nbformat.read('07_tiny.ipynb', 4)\nbook.cells[1].source += '\\n1 + 1'\nnbformat.write(book, '07_tiny.ipynb')")
    old = batch.notebooks.code_fingerprint(notebook)
    assert main(command) == 1 and "code has changed since this grid was started" in capsys.readouterr().err
    runs = gathering.planned(out)
    assert [run.state for run in runs] == ["done", "done", "failed"] and {run.done_by for run in runs[:2]} == {old}, "stamped with what ran"
    assert main(command) == 0 and "has changed since 2 of them were done" in capsys.readouterr().out and started(notebook) == {"0": 1, "1": 1, "2": 1}
    assert main(["gather", str(out)]) == 0 and "the code of 07_tiny changed between these runs" in capsys.readouterr().err
    assert main([*command, "--force"]) == 1 and main(command) == 0 and main(["gather", str(out)]) == 0
    notebook.with_name("trouble-1").unlink()
    assert main([*command, "--force"]) == 0 and capsys.readouterr() and main(["gather", str(out)]) == 0 and capsys.readouterr().err == ""


def test_a_notebook_removed_meanwhile_spoils_nothing_done(notebook, tmp_path, capsys, light):
    trouble(notebook, 0, "os.remove('07_tiny.ipynb')")
    assert main(["run", str(notebook), "--seeds", "0:2", "--out", str(tmp_path / "runs")]) == 1
    assert [run.state for run in gathering.planned(tmp_path / "runs")] == ["done", "failed"] and "No such file" in capsys.readouterr().err


def test_a_run_does_not_move_its_process(notebook, tmp_path):
    trouble(notebook, 0, "time.sleep(1)")
    (run,) = batch.grid(notebook, tmp_path, {"seed": [0]})
    with ThreadPoolExecutor(1) as pool:
        future, seen = pool.submit(batch.execute, run), set()
        while not future.done():
            seen.add(Path.cwd())  # which all threads of a worker share
            time.sleep(0.02)
    assert future.result() is None and started(notebook) == {"0": 1}, "the notebook works in its own folder"
    assert seen == {Path.cwd()}


def test_a_run_that_goes_on_elsewhere_is_waited_for(notebook, tmp_path):
    trouble(notebook, 0, "time.sleep(2)")
    (run,) = batch.grid(notebook, tmp_path, {"seed": [0]})
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batch.execute, run)
        until(lambda: run.state == "running")
        assert pool.submit(batch.execute, run).result() is None and first.result() is None
    assert started(notebook) == {"0": 1}


# What is killed.


@contextlib.contextmanager
def driver(notebook: Path, out: Path, *more: str):
    """`gan-influence run` over four seeds as a process, its descendants killed at the end in any case."""
    command = [sys.executable, "-m", "gan_influence", "run", str(notebook), "--seeds", "0:4", "--out", str(out), "--jobs", "2", *more]
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                           preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))  # a shell's background jobs ignore it
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [*process.children(recursive=True), process]:
                one.kill()
        process.stdout.close()


def done(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("*/done.json")}


def check_resumed(notebook: Path, out: Path, before: dict[Path, int]):
    assert products(out) == {str(seed): seed * 0.5 for seed in range(4)}, "equal to an undisturbed grid"
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was done is not touched"
    assert all(started(notebook)[path.parent.name.removeprefix("seed=")] == 1 for path in before)


@pytest.mark.parametrize("how, status", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_driver_leaves_no_process_and_loses_nothing(how, status, notebook, tmp_path, light):
    hurdle = trouble(notebook, 2, "time.sleep(60)")
    out = tmp_path / "runs"
    with driver(notebook, out) as process:
        until(lambda: len(done(out)) >= 2 and started(notebook)["2"])
        descendants = process.children(recursive=True)
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)  # Ctrl-C goes to workers too
        assert process.wait(20) == status
        printed = process.stdout.read()
        gone, alive = psutil.wait_procs(descendants, timeout=5)
        assert not alive and len(gone) >= 3
    assert how == signal.SIGKILL or ("the same command continues" in printed and "Traceback" not in printed), printed
    hurdle.unlink()
    before = done(out)
    assert 2 <= len(before) < 4
    assert main(["run", str(notebook), "--seeds", "0:4", "--out", str(out), "--jobs", "2"]) == 0
    check_resumed(notebook, out, before)


def test_interrupted_before_workers_are_there(notebook, tmp_path):
    with driver(notebook, tmp_path / "runs") as process:
        until(lambda: len(process.children()) > 1)  # they are on their way, and may be interrupted as they import
        os.killpg(process.pid, signal.SIGINT)
        printed = process.stdout.read()
        assert process.wait(20) == 130 and "the same command continues" in printed and "Traceback" not in printed, printed
    assert not started(notebook)


def test_nobody_reads_what_is_printed(notebook, tmp_path):
    with driver(notebook, tmp_path / "runs") as process:
        process.stdout.close()
        assert process.wait(60) == 141


def test_killed_three_times_at_random(notebook, tmp_path, light):
    for seed in range(4):
        trouble(notebook, seed, "time.sleep(0.5)")
    out, random, killed = tmp_path / "runs", Random(), []
    for whom in random.sample(["driver", "worker", random.choice(["driver", "worker"])], 3):
        with nothing_done_is_repeated(notebook, out), driver(notebook, out) as process:
            until(lambda: process.poll() is not None or at_work(process))
            time.sleep(random.uniform(0, 2))
            victims = [process] if whom == "driver" else at_work(process)
            for victim in random.sample(victims, min(1, len(victims))):  # all may be done by now
                killed.append((whom, victim.pid))
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
            assert process.wait(60) in ((-9, 0) if whom == "driver" else (0,)), killed
    with nothing_done_is_repeated(notebook, out):
        assert main(["run", str(notebook), "--seeds", "0:4", "--out", str(out), "--jobs", "2"]) == 0
    assert products(out) == {str(seed): seed * 0.5 for seed in range(4)} and killed, killed


@contextlib.contextmanager
def nothing_done_is_repeated(notebook: Path, out: Path):
    before, counts = done(out), started(notebook)
    yield
    assert before.items() <= done(out).items()
    assert all(started(notebook)[seed] == counts[seed] for seed in (path.parent.name.removeprefix("seed=") for path in before))


def at_work(process: psutil.Process) -> list[psutil.Process]:
    """The descendants that have a notebook under way."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in process.children(recursive=True):
            if "ipykernel_launcher" in " ".join(one.cmdline()) and one.parent():
                found.append(one.parent())
    return found


@pytest.mark.parametrize("jobs, seeds", [(1, 2), (2, 4)])
def test_a_killed_worker_is_replaced_and_its_run_given_up(jobs, seeds, notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "ATTEMPTS", 2)
    trouble(notebook, 0, "import psutil; psutil.Process().parent().kill()")
    trouble(notebook, 1, "time.sleep(3)")
    runs = batch.grid(notebook, tmp_path, {"seed": range(seeds)})
    failed = executors.run_all(batch.plan(runs, tmp_path), executors.local(jobs))
    assert list(failed) == ["seed=0"] and "killed 2 times" in failed["seed=0"], "whoever ran or waited beside it must not pay for it"
    until(lambda: runs[0].state != "running")  # the kernel outlives its worker for a moment
    assert [run.state for run in runs] == ["waiting", *["done"] * (seeds - 1)]
    assert started(notebook) <= Counter({"0": 2, "1": 2, "2": 2, "3": 2})


# On a cluster.


@pytest.fixture
def dask(tmp_path, request):
    """A scheduler and two workers as processes, talking over loopback: (address, workers, scheduler). A parameter says what the first offers."""
    environment = os.environ | {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical"}
    file, processes = tmp_path / "scheduler.json", []

    def start(*arguments: str) -> psutil.Popen:
        processes.append(psutil.Popen([sys.executable, "-m", "dask", *arguments], cwd=tmp_path, env=environment,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return processes[-1]

    scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    workers = [start("worker", "--scheduler-file", str(file), "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard", *offer)
               for offer in (getattr(request, "param", ()), ())]
    until(lambda: file.exists() and file.read_text().endswith("}"))
    address = json.loads(file.read_text())["address"]
    from dask.distributed import Client
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    yield address, workers, scheduler
    for process in reversed(processes):
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [*process.children(recursive=True), process]:
                one.kill()
        process.wait(10)


def test_a_cluster_survives_its_driver_and_a_worker(dask, notebook, tmp_path, capsys):
    address, workers, _ = dask
    out, hurdle = tmp_path / "runs", trouble(notebook, 1, "time.sleep(60)")
    on_gpu = ["run", str(write_gpu_notebook(notebook)), "-p", "device", "cuda", "--out", str(tmp_path / "gpu")]
    assert "none that offers a GPU" in refusal(capsys, *on_gpu, "--scheduler", address)
    with driver(notebook, out, "--scheduler", address) as process:
        until(lambda: started(notebook)["1"] and len(done(out)) >= 2)
        process.kill()
        process.wait(10)
    before = done(out)
    hurdle.unlink()
    runs = batch.grid(notebook, out, {"seed": range(4)})
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(executors.run_all, batch.plan(runs, out), executors.remote(address))
        next(worker for worker in workers if worker.children()).kill()  # the one whose kernel sleeps for the driver that is gone
        assert rest.result() == {}
    check_resumed(notebook, out, before)


def test_a_cluster_without_workers_or_scheduler_is_told_of(dask, notebook, tmp_path, monkeypatch, capsys):
    address, workers, scheduler = dask
    monkeypatch.setattr(executors, "PATIENCE", 0.2)
    for seed in range(2):
        trouble(notebook, seed, "time.sleep(60)")
    runs, told = batch.grid(notebook, tmp_path, {"seed": [0, 1]}), []
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(executors.run_all, batch.plan(runs, tmp_path), executors.remote(address))
        until(lambda: len(started(notebook)) == 2)
        for worker in workers:
            worker.kill()
        until(lambda: told.append(capsys.readouterr().err) or f"no worker is connected to {address}: waiting for one" in told[-1])
        scheduler.kill()
        assert set(rest.result()) == {"seed=0", "seed=1"} and all("the Dask scheduler is gone" in why for why in rest.result().values())


@pytest.mark.parametrize("dask", [("--resources", "GPU=1")], indirect=True)
def test_runs_that_want_a_gpu_go_where_one_is_and_one_at_a_time(dask, notebook, tmp_path):
    address, (with_gpu, _), _ = dask
    out, path = tmp_path / "gpu", write_gpu_notebook(notebook)
    assert main(["run", str(path), "-p", "device", "cuda", "--seeds", "0:4", "--out", str(out), "--scheduler", address]) == 0
    found = [json.loads(file.read_text())["results"] for file in out.glob("*/results.json")]
    assert len(found) == 4 and {one["worker"] for one in found} == {with_gpu.pid}
    times = sorted((one["began"], one["ended"]) for one in found)
    assert all(before[1] <= after[0] for before, after in zip(times, times[1:]))


def write_gpu_notebook(notebook: Path) -> Path:
    path = notebook.with_name("09_gpu.ipynb")
    write_notebook(path, 'device: str = "cpu"\nseed: int = 0\nout: str = "runs/x"', "import os, time\nbegan = time.time()\ntime.sleep(0.5)",
                   "from gan_influence import experiments\n"
                   "experiments.save_results(out, {'worker': os.getppid(), 'began': began, 'ended': time.time()}, [{'seed': seed}])")
    return path
