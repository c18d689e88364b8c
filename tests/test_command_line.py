"""The command line as a program: what it imports, and how it ends when its surroundings let it down."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import papermill
import pytest
from test_batch import on_a_small_disk
from test_front_door import ROOT, SAVE, each_notebook, write_notebook

from gan_influence.batch import gathering, notebooks
from gan_influence.cli.main import main

COMMANDS = "demo", "list", "run", "status", "gather", "record", "paper", "board", "gossip", "notebooks", "links"


@pytest.mark.parametrize("arguments", ["--help", *(f"{command} --help" for command in COMMANDS), "list", "list 0 4"])
def test_help_and_list_import_nothing_slow(arguments):
    slow = {"torch", "pandas", "matplotlib", "nbformat", "papermill", "nbclient", "nbconvert", "distributed"}
    code = f"import sys, gan_influence.cli.main as c\ntry: c.main({arguments.split()})\nfinally: print(*{slow} & set(sys.modules), file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "" and len(ran.stdout.splitlines()) > 5


@each_notebook
def test_parameters_are_read_as_papermill_reads_them(path):
    assert list(notebooks.declared(path).items()) == list(papermill.inspect_notebook(str(path)).items())


def test_parameters_of_all_kinds(tmp_path):
    lines = ["import math", "%matplotlib inline", "a=1", "b : float = 0.5 # help: why?", "c: tuple[int, ...] = (1, 2)", "d = dict(", "    e=1)",
             'f: str = "#0f0"  # green']
    write_notebook(tmp_path / "x.ipynb", "\n".join(lines))
    assert {name: (one["inferred_type_name"], one["default"], one["help"]) for name, one in notebooks.declared(tmp_path / "x.ipynb").items()} == {
        "a": ("None", "1", ""), "b": ("float", "0.5", "help: why?"), "c": ("tuple[int, ...]", "(1, 2)", ""), "d": ("None", "dict(", ""),
        "f": ("str", '"#0f0"', "green")}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": [{}]}', "\udcff"])
def test_a_file_that_is_no_notebook_is_told(text, tmp_path):
    (tmp_path / "x.ipynb").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match="x.ipynb is not a whole notebook of version 4"):
        notebooks.title(tmp_path / "x.ipynb")


# Surroundings.


@pytest.fixture
def command(tmp_path):
    """The command line, as words for a shell, with a small notebook of its own for the demo."""
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "00_start_here.ipynb", 'seed: int = 0\nrate: float = 0\nout: str = "runs/x"',
                   "import os, time\nos.write(1, b'from ' + b'below')\nopen('begun', 'w').close()\ntime.sleep(rate)", SAVE)
    (tmp_path / "command.py").write_text(f"""
import sys
from pathlib import Path
from gan_influence.batch import gathering, notebooks
from gan_influence.cli.main import main
notebooks.FOLDER = Path({str(tmp_path / "notebooks")!r})
sys.exit(main(sys.argv[1:]))""")
    return f'cd "{tmp_path}" && PYTHONPATH="{ROOT}" "{sys.executable}" command.py'


def shell(text: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, **options)


@pytest.mark.parametrize("arguments, status, words", [
    ("list", 141, ""), ("--help", 141, ""), ("list >&-", 0, ""), ("list >&- 2>&- <&-", 0, ""),
    ("list >/dev/full", 1, "gan-influence: No space left on device")])
def test_output_that_nobody_reads(arguments, status, words, command):
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(["bash", "-c", f"{command} {arguments}"], stdout=writer, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": ""})
    os.close(writer)
    assert (ran.returncode, ran.stderr.strip()) == (status, words)


def test_a_demo_without_standard_streams(command, tmp_path):
    assert shell(f"{command} demo >&- 2>&- <&-").returncode == 0
    assert not [path for path in (tmp_path / "runs" / "demo").iterdir() if "from below" in path.read_text()], "nothing was written into somebody's file"


def test_a_temporary_folder_with_a_long_path(command, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    ran = shell(f"{command} demo", env={**os.environ, "TMPDIR": str(long)})
    assert ran.returncode == 0 and not list(long.iterdir()), ran.stderr


@pytest.mark.skipif(shutil.which("unshare") is None or shell("unshare -U --map-user=54321 true").returncode != 0, reason="nobody may be somebody else here")
def test_a_user_without_a_home(command, tmp_path):
    ran = shell(f"{command.replace(' && ', ' && env -u HOME unshare -U --map-user=54321 env ')} demo")
    assert ran.returncode == 0 and (tmp_path / "runs" / "demo" / "results.json").exists(), ran.stderr


@pytest.mark.parametrize("how, status", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
@pytest.mark.parametrize("begun", [False, True], ids=["at the start", "in a cell"])
def test_a_demo_that_is_ended(how, status, begun, command, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(["bash", "-c", f"{command.replace(' && ', ' && exec env ')} demo -p rate 60"], stderr=subprocess.PIPE, text=True,
                               start_new_session=True, env={**os.environ, "TMPDIR": str(temporary)},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while not (tmp_path / ("notebooks/begun" if begun else "runs/demo/.lock")).exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, how)
    assert process.wait(30) == status and "Traceback" not in (told := process.stderr.read())
    assert how == signal.SIGKILL or told.splitlines()[-1] == "stopped before the end"
    assert not begun or not list(temporary.iterdir()), "something is left in the temporary folder"


# What runs left may be anything.


@pytest.fixture
def runs(tmp_path):
    """A grid of three runs that are done; the last two are whole."""
    folder = tmp_path / "runs"
    notebook = {"cells": []}
    (tmp_path / "07_tiny.ipynb").write_text(json.dumps(notebook))
    grid = {"notebook": "07_tiny", "runs": {f"seed={seed}": {"seed": seed} for seed in range(3)}}
    figure = {"x": "k", "y": "tau", "by": []}
    for name, parameters in grid["runs"].items():
        (folder / name).mkdir(parents=True)
        for file, content in (("run", {"notebook": "07_tiny", "parameters": parameters}), ("done", {"parameters": parameters, "code": ""}),
                              ("results", {"results": {"tau": 0.5, "all": [1, {"b": "c"}]}, "figure": figure})):
            (folder / name / f"{file}.json").write_text(json.dumps(content))
        (folder / name / "table.csv").write_text("k,tau\n1,0.5\n2,0.25\n")
    (folder / "grid.json").write_text(json.dumps(grid))
    return folder


def gathered(folder) -> list[str]:
    with open(folder / "measurements.csv", newline="") as file:
        return [f"{row['seed']} {row['measurement']}={row['value']}" for row in csv.DictReader(file)]


ALL = [f"{seed} {found}" for seed in range(3) for found in ("tau=0.5", "all.0=1", "all.1.b=c")]


def test_whole_runs_are_gathered(runs, capsys):
    assert main(["gather", str(runs)]) == 0 and gathered(runs) == ALL and (runs / "07_tiny.png").exists()
    assert len((runs / "07_tiny.csv").read_text().splitlines()) == 7 and capsys.readouterr().err == ""


@pytest.mark.parametrize("figure", [{"x": "k", "y": "tau", "by": [], "colour": "red"}, {"x": "k"}, {"x": "kappa", "y": "tau", "by": []}, ["k"], "k",
                                    {"x": "k", "y": "tau", "by": [], "published": [1]}], ids=str)
def test_a_figure_that_cannot_be_drawn(figure, runs, capsys):
    (runs / "seed=2" / "results.json").write_text(json.dumps({"results": {"tau": 0.5, "all": [1, {"b": "c"}]}, "figure": figure}))
    assert main(["gather", str(runs)]) == 0 and gathered(runs) == ALL and not (runs / "07_tiny.png").exists()
    assert "07_tiny.png is not drawn, because of the figure in results.json: " in capsys.readouterr().err


@pytest.mark.parametrize("table", [b"\x89PNG\r\n\xff\x00", b"x" * 200_000, None], ids=["binary", "endless", "a folder"])
def test_a_table_that_is_none(table, runs, capsys):
    path = runs / "seed=0" / "table.csv"
    path.unlink()
    path.write_bytes(table) if table else path.mkdir()
    assert main(["gather", str(runs)]) == 0 and gathered(runs) == ALL and len((runs / "07_tiny.csv").read_text().splitlines()) == 5
    assert "seed=0/table.csv is left out, because it is no table: " in capsys.readouterr().err


def test_results_of_any_depth():
    results = 1
    for _ in range(5000):
        results = {"a": results}
    assert list(gathering._measurements(results)) == [(".".join("a" * 5000), 1)]


def test_gathering_onto_a_full_disk(runs, tmp_path):
    ran = on_a_small_disk(tmp_path, "size=4k", f'gather "{runs}" --to "{tmp_path}/disk"')
    assert "status 1" in ran.stdout and ran.stderr.startswith("gan-influence: No space left on device") and len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"notebook": "07_tiny"}', '{"notebook": 7, "runs": {"seed=0": {}}}',
                                  '{"notebook": "07_tiny", "runs": {"seed=0": 1}}'])
def test_a_damaged_grid_is_told_and_its_runs_are_found(text, runs, capsys):
    (runs / "grid.json").write_text(text)
    assert main(["status", str(runs)]) == 0 and main(["gather", str(runs)]) == 0 and gathered(runs) == ALL
    printed = capsys.readouterr()
    assert "3 runs: 3 done" in printed.out and "grid.json is damaged: of its runs, only those are known that have begun" in printed.err
