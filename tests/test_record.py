"""The full-scale recordings: what is outstanding, in which order, within which budget."""

import json
import shutil
import subprocess
from dataclasses import replace

from test_front_door import TINY, refusal

from gan_influence import experiments
from gan_influence.cli import record as commands_record
from gan_influence.cli.main import main
from gan_influence.studies import recording


def test_paper_makes_what_is_outstanding_within_its_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands_record.links, "ROOT", tmp_path)
    for module in (recording, experiments):
        monkeypatch.setattr(module, "RECORDED", tmp_path / "recorded")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"accuracy_2d": (TINY, range(3))})

    def run_in_time(*seeds: int):
        def run(command, timeout, check):
            assert command[1:6] == ["-m", "gan_influence", "record", "accuracy_2d", "--missing"] and 0 < timeout <= 90 and check
            experiments.record(TINY, seeds, command[command.index("--out") + 1], compile=False)  # as far as the time allows
            raise subprocess.TimeoutExpired(command, timeout)
        return run

    header = tmp_path / "recorded" / "accuracy_2d.json"
    monkeypatch.setattr(commands_record.subprocess, "run", run_in_time(0, 1))
    assert main(["paper", "--budget", "90s"]) == 0 and json.loads(header.read_text())["seeds"] == [0, 1]
    shutil.rmtree(tmp_path / "runs")  # a clone has the recording, but not what it was made from
    assert main(["paper", "--budget", "1s", "--list"]) == 0 and "2 pieces of 1 seeds are outstanding" in capsys.readouterr().out
    monkeypatch.setattr(commands_record.subprocess, "run", run_in_time(2))
    assert main(["paper", "--budget", "90s"]) == 0 and json.loads(header.read_text())["seeds"] == [0, 1, 2]
    monkeypatch.setattr(commands_record.subprocess, "run", None)
    assert main(["paper", "--budget", "1.5m"]) == 0 and "all 3 seeds are there" in capsys.readouterr().out
    assert "as in 25m" in refusal(capsys, "paper", "--budget", "soon")


def test_missing_pieces_are_made_in_order_of_value(tmp_path, monkeypatch):
    for module in (recording, experiments):
        monkeypatch.setattr(module, "RECORDED", tmp_path / "recorded")
    monkeypatch.chdir(tmp_path)
    some = replace(TINY, windows=(1, 2), epochs=2)
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"accuracy_2d": (some, range(2)), "removal_2d": (experiments.Removal(n=60), range(2))})
    assert commands_record.outstanding("accuracy_2d", tmp_path) == [(seed, [piece]) for piece in ("k=1", "k=2", "fractions") for seed in (0, 1)]
    pieces = experiments.Removal().pieces
    assert commands_record.outstanding("removal_2d", tmp_path) == [(seed, pieces) for seed in (0, 1)]
    with monkeypatch.context() as patched:
        patched.setattr(experiments, "finished", lambda out: {(0, piece) for piece in pieces[:-1]})
        assert commands_record.outstanding("removal_2d", tmp_path) == [(1, pieces), (0, ["agreement"])]
    assert main(["record", "accuracy_2d", "--missing", "--no-compile"]) == 0
    assert commands_record.outstanding("accuracy_2d", tmp_path / "runs" / "accuracy_2d") == []
