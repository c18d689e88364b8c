"""The experiments that notebooks and the command line run: small ones, their files, their resumption."""

import csv
import json

import numpy as np
import pytest
import torch

import gan_influence as gi
from conftest import tiny_metric, tiny_run
from gan_influence import experiments
from gan_influence.experiments import ACCURACY, Accuracy

SMALL = Accuracy(n=60, epochs=3, batch_size=20, held_out=20, latents=20, instances=12, windows=(1, 3))


def test_the_presets_are_the_published_protocol():
    assert ACCURACY["paper"] == Accuracy(n=10_000, epochs=50, batch_size=100, learning_rate=1e-3, order="simultaneous", activation="relu",
                                         instances=200, windows=(1, 5, 10, 20, 50), held_out=1_000, latents=1_000)
    run, metric = experiments.accuracy_run(SMALL, seed=1)
    assert run.order == "simultaneous" and run.schedule.batch_size == 20 and run.learning_rates[0] == [1e-3, 1e-3] and run.x.dtype == torch.float64
    assert metric.x.shape == (20, 2) and metric.latents.shape == (20, 10)


def test_one_seed_compares_the_same_instances():
    summary, scores = experiments.accuracy_experiment(SMALL, seed=2)
    run, metric = experiments.accuracy_run(SMALL, seed=2)
    assert [row["last_epochs"] for row in summary] == [1, 3] and len(scores) == 24
    for k in (1, 3):
        rows = [row for row in scores if row["last_epochs"] == k]
        chosen = [row["instance"] for row in rows]
        assert len(set(chosen)) == 12
        np.testing.assert_allclose([row["influence"] for row in rows], gi.influence(run, metric, last_epochs=k)[chosen], rtol=1e-12)
        np.testing.assert_allclose([row["leave_one_out"] for row in rows], gi.leave_one_out(run, metric, chosen, last_epochs=k), atol=1e-15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_absent_is_named():
    with pytest.raises(RuntimeError, match="a GPU was asked for.*torch sees none: use the device 'cpu'"):
        experiments.accuracy_experiment(SMALL, 0, device="cuda")


def test_recording_resumes_and_gathers(tmp_path, monkeypatch):
    out, target = tmp_path / "runs", tmp_path / "recorded" / "small"
    experiments.record_accuracy(SMALL, [3, 1], out, compile=False)
    calls, original = [], experiments.accuracy_experiment
    monkeypatch.setattr(experiments, "accuracy_experiment", lambda config, seed, *rest: (calls.append(seed), original(config, seed, *rest))[1])
    experiments.record_accuracy(SMALL, [1, 2, 3], out, compile=False)
    assert calls == [2]  # only what was missing
    with pytest.raises(ValueError, match="seed-1.json was run with another protocol.*a folder of its own"):
        experiments.record_accuracy(Accuracy(**{**vars(SMALL), "n": 80}), [4], out, compile=False)
    assert calls == [2] and not (out / "seed-4.json").exists()
    experiments.gather_accuracy(out, target)
    rows = list(csv.DictReader(target.with_suffix(".csv").open()))
    assert [(row["seed"], row["last_epochs"]) for row in rows] == [(s, k) for s in "123" for k in "13"]
    header = json.loads(target.with_suffix(".json").read_text())
    assert header["seeds"] == [1, 2, 3] and header["config"]["n"] == 60 and len(header["wall_seconds"]) == 3 and header["versions"]["torch"]
    for part, rows in (("scores", 24), ("fractions", 4)):
        assert len(list(csv.DictReader((tmp_path / "recorded" / f"small_{part}.csv").open()))) == 3 * rows
    with pytest.raises(FileNotFoundError, match="holds no finished seed.*run the experiment there first"):
        experiments.gather_accuracy(tmp_path / "nowhere", target)


def test_removing_a_fraction_tends_to_the_influence():
    run = tiny_run("simultaneous")
    metric, some = tiny_metric(run.gan), [0, 3, 5, 7]
    whole = experiments.fractional_leave_one_out(run, metric, some, 1.0, last_epochs=2)
    torch.testing.assert_close(whole, gi.leave_one_out(run, metric, some, last_epochs=2), rtol=1e-9, atol=1e-14)
    scores = gi.influence(run, metric, last_epochs=2)[some]
    gaps = [float((experiments.fractional_leave_one_out(run, metric, some, eps, last_epochs=2) - scores).abs().max()) for eps in (1e-2, 1e-3)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)


def test_kinks_are_what_a_smooth_network_does_not_have():
    smooth = Accuracy(**{**vars(SMALL), "activation": "silu"})
    assert min(row["kendall_tau"] for row in experiments.kink_experiment(smooth, seed=0)) > 0.95


def test_recorded_tables_are_whole():
    table, header = experiments.recorded("accuracy_2d")
    windows = list(ACCURACY["paper"].windows)
    assert header["config"] == json.loads(json.dumps(vars(ACCURACY["paper"])))
    assert sorted(zip(table.seed, table.last_epochs)) == [(s, k) for s in header["seeds"] for k in windows]
    assert header["versions"]["torch"] and all(second > 0 for second in header["wall_seconds"])
    with pytest.raises(FileNotFoundError, match="start from a clone"):
        experiments.recorded("nothing")


def test_the_recorded_summary_follows_from_the_recorded_scores():
    (table, _), (scores, _) = experiments.recorded("accuracy_2d"), experiments.recorded("accuracy_2d", "scores")
    stored = table.set_index(["seed", "last_epochs"]).kendall_tau
    for key, part in scores.groupby(["seed", "last_epochs"]):
        assert gi.agreement(part.influence, part.leave_one_out).kendall_tau == pytest.approx(stored[key], abs=2e-3)  # six digits were kept
