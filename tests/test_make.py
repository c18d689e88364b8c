"""The Makefile's commands, and the script behind `make gpu`, whose hour with a GPU must leave what it has measured."""

import csv
import importlib
import math
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
MADE = "import os, pytest\npytestmark = pytest.mark.gpu\ndef test_right(): pass\ndef test_wrong(): assert False\n@pytest.mark.skip\ndef test_not(): pass\n"
HERE = {"device": "a GPU", "code": "1"}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


def rows(path: Path) -> list[dict]:
    return list(csv.DictReader(path.open()))


def commands(*arguments: str) -> str:
    """What make would run, also when this test is run by make."""
    return subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True,
                          env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}).stdout


def test_the_readmes_test_command_is_what_is_run_on_a_bare_machine():
    assert "\nmake test " in (ROOT / "README.md").read_text() and (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"


def test_quick_names_what_is_there():
    named = [word for word in commands("quick").splitlines()[-1].split() if word.startswith(("tests/", "gan_influence/"))]
    assert len(named) > 5 and [path for path in named if not (ROOT / path).exists()] == []


def test_gpu_installs_nothing():
    assert commands("gpu", "BUDGET=9m", "PYTHON=any/python").split() == ["any/python", "benchmarks/gpu.py", "--budget", "9m"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_without_a_gpu_it_says_so_and_leaves_nothing(gpu, tmp_path, capsys):
    assert gpu.main(["--budget", "25m", "--out", str(tmp_path / "new")]) == 1
    assert "sees none here: run it on a machine with one" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_tests_then_costs_then_recordings_each_row_at_once(gpu, tmp_path, monkeypatch):
    seen, costs = [], tmp_path / "costs.csv"

    def run_tests(results, limit):
        seen.append("tests")
        results.add(test="all", outcome="PASSED", wall_seconds=1)
        return 0

    def find(name: str, value: float) -> float:
        seen.append(name)
        assert [row["what"] for row in rows(costs)] == seen[1:-1] if len(seen) > 2 else not costs.exists()
        return 1 / value

    def record(budget: float) -> int:
        assert 0 < budget <= 60
        seen.append("recordings")
        return 0

    def costs_of(device, make, sets, compile):
        return {f"{make.__name__} {i}": partial(find, f"{make.__name__} {i}", i) for i in (2, 0)}

    for stand_in in (run_tests, record, costs_of):
        monkeypatch.setattr(gpu, stand_in.__name__.removesuffix("_of"), stand_in)
    monkeypatch.setattr(gpu, "machine", lambda device: HERE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.main(["--budget", "1m", "--out", str(tmp_path)]) == 1  # for what failed
    assert seen == ["tests", "fcgan 2", "fcgan 0", "dcgan 2", "dcgan 0", "recordings"]
    right, wrong = rows(costs)[:2]
    assert (right["game"], right["value"], right["trouble"]) == ("FCGAN", "0.5", "")
    assert (wrong["game"], wrong["value"], wrong["trouble"]) == ("FCGAN", "", "ZeroDivisionError: division by zero")
    assert all(row["device"] == "a GPU" and row["wall_seconds"] for row in rows(costs))
    monkeypatch.setattr(gpu, "costs", lambda device, make, sets, compile: {f"{make.__name__} 2": seen.append})
    assert gpu.main(["--budget", "1m", "--out", str(tmp_path)]) == 0
    assert seen[6:] == ["recordings"], "what was measured is not measured again"


def test_a_table_keeps_what_other_machines_measured(gpu, tmp_path):
    gpu.Table(tmp_path / "costs.csv", HERE).add(what="peak", value=0.25)
    other = gpu.Table(tmp_path / "costs.csv", HERE | {"code": "2"})
    assert not other.has(what="peak")
    other.add(what="peak", value=0.5)
    assert [(row["value"], row["code"]) for row in rows(tmp_path / "costs.csv")] == [("0.25", "1"), ("0.5", "2")]
    assert gpu.Table(tmp_path / "costs.csv", HERE).has(what="peak") and other.has(what="peak")


@pytest.mark.parametrize("last, status, ends", [("", 1, "FAILED"), ("def test_killed(): os.kill(os.getpid(), 9)\n", -9, "CUT SHORT")])
def test_gpu_tests_are_rows_even_if_they_end_early(last, status, ends, gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_any.py").write_text(MADE + last)
    results = gpu.Table(tmp_path / "tests.csv", HERE)
    assert gpu.run_tests(results, limit=600) == status
    found = {row["test"].rpartition("::")[2]: row["outcome"] for row in rows(results.path)}
    assert found == {"test_right": "PASSED", "test_wrong": "FAILED", "test_not": "SKIPPED", "all": ends}


def test_gpu_tests_end_with_their_time(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert gpu.run_tests(gpu.Table(tmp_path / "tests.csv", HERE), limit=0) == -9
    assert [row["outcome"] for row in rows(tmp_path / "tests.csv")] == ["CUT SHORT"]


def test_costs_are_found(gpu):
    found = {what: find() for what, find in gpu.costs("cpu", partial(gpu.engine.fcgan, n=300, latents=30), 2, compile=False).items()}
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    assert {what: value for what, value in found.items() if "against CPU" in what} == {
        "influences, device against CPU: largest difference / largest": 0, "influences, device against CPU: Kendall's tau": 1}
