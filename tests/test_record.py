"""The full-scale recordings: what is outstanding, in which order, within which budget."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from test_front_door import TINY, refusal

import gan_influence as gi
from gan_influence.cli import record as commands_record
from gan_influence.cli.main import main
from gan_influence.studies import protocols, recording
from gan_influence.tools.locks import only_driver


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """An empty notebooks/recorded, and a folder of its own to work in."""
    monkeypatch.setattr(commands_record.links, "ROOT", tmp_path)
    for module in (recording, gi.experiments):
        monkeypatch.setattr(module, "RECORDED", tmp_path / "recorded")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "recorded"


def experiments(monkeypatch, **some):
    monkeypatch.setattr(protocols, "EXPERIMENTS", some)


def test_paper_makes_what_is_outstanding_within_its_budget(recorded, monkeypatch, capsys):
    experiments(monkeypatch, accuracy_2d=(TINY, range(3)))

    def run_in_time(*seeds: int):
        def run(command, timeout):
            assert command[1:6] == ["-m", "gan_influence", "record", "accuracy_2d", "--missing"] and 0 < timeout <= 90
            recording.record(TINY, seeds, command[command.index("--out") + 1], compile=False)  # as far as the time allows
            raise subprocess.TimeoutExpired(command, timeout)
        return run

    header = recorded / "accuracy_2d.json"
    monkeypatch.setattr(commands_record.subprocess, "run", run_in_time(0, 1))
    assert main(["paper", "--budget", "90s"]) == 0 and json.loads(header.read_text())["seeds"] == [0, 1]
    shutil.rmtree("runs")  # a clone has the recording, but not what it was made from
    assert main(["paper", "--budget", "1s", "--list"]) == 0 and "2 pieces of 1 seeds are outstanding" in capsys.readouterr().out
    monkeypatch.setattr(commands_record.subprocess, "run", run_in_time(2))
    assert main(["paper", "--budget", "90s"]) == 0 and json.loads(header.read_text())["seeds"] == [0, 1, 2]
    monkeypatch.setattr(commands_record.subprocess, "run", None)
    assert main(["paper", "--budget", "1.5m"]) == 0 and "all 3 seeds are there" in capsys.readouterr().out
    assert "as in 25m" in refusal(capsys, "paper", "--budget", "soon")


def test_paper_goes_on_where_one_experiment_cannot(recorded, monkeypatch, capsys):
    experiments(monkeypatch, accuracy_2d=(TINY, range(1)), accuracy_2d_every=(replace(TINY, instances=5), range(1)), removal_2d=(TINY, range(0)))
    recording.record(replace(TINY, n=80), [(0, ["k=1"])], "runs/accuracy_2d", compile=False)
    monkeypatch.setattr(commands_record.subprocess, "run", lambda command, timeout: subprocess.CompletedProcess(command, 2))
    assert main(["paper", "--budget", "90s"]) == 2
    seen = capsys.readouterr()
    assert "accuracy_2d: " in seen.err and "n 80, not 60" in seen.err and "removal_2d: all 0 seeds are there" in seen.out


@pytest.mark.parametrize("library, told", [("seaborn", "readme.png was not drawn, because "),
                                           ("pandas", "accuracy_2d: import of pandas halted")])
def test_paper_goes_on_where_a_bare_machine_lacks_a_library(library, told, recorded, monkeypatch, capsys):
    experiments(monkeypatch, accuracy_2d=(TINY, range(1)), accuracy_2d_every=(replace(TINY, instances=5), range(0)))
    recording.record(TINY, [0], "runs/accuracy_2d", compile=False)
    for loaded, name in ((vars(gi), "plots"), (vars(gi.studies), "plots"), (sys.modules, "gan_influence.studies.plots")):
        monkeypatch.delitem(loaded, name, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    main(["paper", "--budget", "90s"])
    seen = capsys.readouterr()
    assert told in seen.err and "accuracy_2d_every: all 0 seeds are there" in seen.out
    assert (recorded / "accuracy_2d.json").exists() == (library != "pandas") and not (recorded / "readme.png").exists()


def test_missing_pieces_are_made_in_order_of_value(recorded, monkeypatch):
    some, removal = replace(TINY, windows=(1, 2), epochs=2), protocols.REMOVAL["mnist paper"]
    experiments(monkeypatch, accuracy_2d=(some, range(2)), removal_mnist=(removal, range(2)))
    assert commands_record.outstanding("accuracy_2d", recorded) == [(seed, [piece]) for piece in ("k=1", "k=2", "fractions") for seed in (0, 1)]
    first, others = ["influence on Fréchet distance", "random"], ["influence on Inception score", "isolation forest", "discriminator loss"]
    rounds = first, others, ["agreement"]
    assert commands_record.outstanding("removal_mnist", recorded) == [(seed, pieces) for pieces in rounds for seed in (0, 1)]
    assert sorted(removal.pieces) == sorted([*removal.methods, "agreement"])
    with monkeypatch.context() as patched:
        patched.setattr(gi.experiments, "finished", lambda out, protocol: {(0, piece) for piece in [first[0], *others]})
        assert commands_record.outstanding("removal_mnist", recorded) == [(0, ["random"]), (1, first), (1, others), (0, ["agreement"]), (1, ["agreement"])]
    assert main(["record", "accuracy_2d", "--missing", "--no-compile"]) == 0
    assert commands_record.outstanding("accuracy_2d", recorded.with_name("runs") / "accuracy_2d") == []


def test_what_a_little_time_buys_comes_first():
    assert list(protocols.EXPERIMENTS)[:5] == ["accuracy_2d", "removal_2d", "rounds_2d", "accuracy_2d_every", "removal_mnist_small"]
    assert tuple(protocols.EXPERIMENTS)[-2:] == protocols.FOR_A_GPU


@pytest.mark.parametrize("other", [{"streams": 1}, {"config": {}}], ids=["streams", "protocol"])
def test_a_recording_of_something_else_counts_for_nothing(other, recorded, monkeypatch):
    experiments(monkeypatch, accuracy_2d=(TINY, range(1)))
    header, path = recording.made_for(TINY) | {"pieces": {"0": dict.fromkeys(TINY.pieces, 1.0)}}, recorded / "accuracy_2d.json"
    recorded.mkdir()
    path.with_suffix(".csv").write_text("seed\n")
    path.write_text(json.dumps(header))
    assert commands_record.outstanding("accuracy_2d", recorded) == []
    path.write_text(json.dumps(header | other))
    assert commands_record.outstanding("accuracy_2d", recorded) == [(0, [piece]) for piece in TINY.pieces]


def test_a_folder_that_is_being_filled_is_left_alone(recorded, monkeypatch, capsys):
    experiments(monkeypatch, accuracy_2d=(TINY, range(1)))
    with only_driver("runs"):
        assert "runs is being filled by process" in refusal(capsys, "record", "accuracy_2d", "--missing", "--no-compile", "--out", "runs")
