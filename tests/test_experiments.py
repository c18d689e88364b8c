"""The experiments that notebooks and the command line run: small ones, their files, their resumption."""

import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

import gan_influence as gi
from conftest import needs, tiny_metric, tiny_run
from gan_influence import experiments
from gan_influence.studies import recording
from gan_influence.studies.experiments import ACCURACY, PUBLISHED_ACCURACY, PUBLISHED_REMOVAL, REMOVAL, Accuracy, Removal
from gan_influence.tools.locks import only_driver
from gan_influence.tools.streams import STREAMS
from gan_influence.training import compiled

SMALL = Accuracy(n=60, epochs=3, batch_size=20, held_out=20, latents=20, instances=12, windows=(1, 3))
SMALL_REMOVAL = Removal(n=60, epochs=3, batch_size=20, held_out=20, latents=20, fractions=(0.1, 0.3))
ALL = "average log-likelihood"


def test_the_presets_are_the_published_protocols():
    assert ACCURACY["paper"] == Accuracy(data="normal_2d", n=10_000, epochs=50, batch_size=100, learning_rate=1e-3, order="simultaneous",
                                         activation="relu", instances=200, windows=(1, 5, 10, 20, 50), held_out=1_000, latents=1_000)
    assert ACCURACY["mnist paper"] == Accuracy(data="mnist", width=8, held_out=10_000, latents=2_000)
    removal = REMOVAL["paper"]
    assert (removal.n, removal.epochs, removal.last_epochs, removal.batch_size, removal.learning_rate) == (50_000, 70, 1, 100, 1e-3)
    assert tuple(round(50_000 * part) for part in removal.fractions) == PUBLISHED_REMOVAL[ALL]["n_removed"]
    images = REMOVAL["mnist paper"]
    assert (images.data, images.n, images.epochs, images.width) == ("mnist", 50_000, 20, 32)
    assert tuple(round(50_000 * part) for part in images.fractions) == PUBLISHED_REMOVAL["Fréchet distance"]["n_removed"]
    setup = SMALL.prepare(seed=1)
    run, metric = setup.run, setup.valid[ALL]
    assert run.order == "simultaneous" and run.schedule.batch_size == 20 and run.learning_rates[0] == [1e-3, 1e-3] and run.x.dtype == torch.float64
    assert metric.x.shape == (20, 2) and metric.latents.shape == (20, 10)
    assert not torch.equal(metric.latents, setup.test[ALL].latents) and not torch.equal(metric.x, setup.test[ALL].x)


@pytest.mark.parametrize("published", [*PUBLISHED_ACCURACY.values(), *PUBLISHED_REMOVAL.values()])
def test_published_numbers_have_their_places(published):
    assert len({len(values) for values in published.values()}) == 1


def test_one_seed_compares_the_same_instances():
    summary, scores = experiments.accuracy_experiment(SMALL, seed=2)
    setup = SMALL.prepare(seed=2)
    run, metric = setup.run, setup.valid[ALL]
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


@pytest.fixture
def measured(monkeypatch):
    """Which (seed, piece) were measured."""
    calls = []
    for protocol in (Accuracy, Removal):
        original = protocol.measure
        monkeypatch.setattr(protocol, "measure", lambda self, setup, seed, piece, compile, original=original:
                            (calls.append((seed, piece)), original(self, setup, seed, piece, compile))[1])
    return calls


def test_recording_resumes_and_gathers(tmp_path, measured):
    out, target = tmp_path / "runs", tmp_path / "recorded" / "small"
    experiments.record(SMALL, [3, 1], out, compile=False)
    assert measured == [(seed, piece) for seed in (3, 1) for piece in ("k=1", "k=3", "fractions")]
    measured.clear()
    (out / "seed-3_k=3.json").unlink()
    experiments.record(SMALL, [(seed, ["k=1", "k=3"]) for seed in (1, 2, 3)], out, compile=False)
    assert measured == [(2, "k=1"), (2, "k=3"), (3, "k=3")]  # only what was missing
    measured.clear()
    with pytest.raises(ValueError, match="seed-1_fractions.json was run with another protocol.*a folder of its own"):
        experiments.record(replace(SMALL, n=80), [4], out, compile=False)
    with pytest.raises(ValueError, match="has the pieces k=1, k=3, fractions, but not k=2"):
        experiments.record(SMALL, [(4, ["k=2"])], out, compile=False)
    assert not measured and not list(out.glob("seed-4*"))

    experiments.gather(out, target)
    rows = list(csv.DictReader(target.with_suffix(".csv").open()))
    assert sorted((row["seed"], row["last_epochs"]) for row in rows) == [(s, k) for s in "123" for k in "13"]
    header = json.loads(target.with_suffix(".json").read_text())
    assert header["seeds"] == [1, 2, 3] and header["config"]["n"] == 60 and header["versions"]["torch"] and header["threads"] == [1]
    assert set(header["pieces"]["2"]) == {"k=1", "k=3"} and all(seconds >= 0 for pieces in header["pieces"].values() for seconds in pieces.values())
    for part, rows in (("scores", 3 * 24), ("fractions", 2 * 4)):
        assert len(list(csv.DictReader((tmp_path / "recorded" / f"small_{part}.csv").open()))) == rows
    with pytest.raises(FileNotFoundError, match="holds no finished piece.*run the experiment there first"):
        experiments.gather(tmp_path / "nowhere", target)


def test_gathering_adds_to_a_recording_and_never_doubles(tmp_path):
    target = tmp_path / "recorded" / "small"
    for folder, seeds, pieces in (("a", [0, 1], ["k=1"]), ("b", [1], ["k=3"]), ("a", [0], ["k=1"])):
        experiments.record(SMALL, [(seed, pieces) for seed in seeds], tmp_path / folder, compile=False)
        experiments.gather(tmp_path / folder, target)
    rows = list(csv.DictReader(target.with_suffix(".csv").open()))
    assert [(row["seed"], row["last_epochs"]) for row in rows] == [("0", "1"), ("1", "1"), ("1", "3")]
    assert len(list(csv.DictReader(target.with_name("small_scores.csv").open()))) == 3 * 12
    header = json.loads(target.with_suffix(".json").read_text())
    assert {seed: set(pieces) for seed, pieces in header["pieces"].items()} == {"0": {"k=1"}, "1": {"k=1", "k=3"}}
    experiments.record(replace(SMALL, n=80), [(0, ["k=1"])], tmp_path / "c", compile=False)
    with pytest.raises(ValueError, match="records another protocol"):
        experiments.gather(tmp_path / "c", target)


def test_a_resumed_recording_equals_an_undisturbed_one(tmp_path, measured):
    pieces = SMALL_REMOVAL.pieces
    experiments.record(SMALL_REMOVAL, [5], tmp_path / "one", compile=False)
    for piece in pieces:
        experiments.record(SMALL_REMOVAL, [(5, [piece])], tmp_path / "two", compile=False)  # the kept run is read again each time
    assert measured == [(5, piece) for piece in pieces] * 2
    rows = len(SMALL_REMOVAL.methods) * len(SMALL_REMOVAL.fractions)
    for part in ("", "_picked", "_extremes", "_agreement"):
        for folder in ("one", "two"):
            experiments.gather(tmp_path / folder, tmp_path / "recorded" / folder)
        assert (tmp_path / "recorded" / f"one{part}.csv").read_text() == (tmp_path / "recorded" / f"two{part}.csv").read_text()
    assert len(pd.read_csv(tmp_path / "recorded" / "one.csv")) == rows


def test_a_kept_run_is_used_for_what_it_was_made_for(tmp_path, measured, monkeypatch):
    other, folder = replace(SMALL, learning_rate=0.1), tmp_path / "seed-0"
    other.prepare(seed=0, folder=folder)  # no piece is finished yet
    with pytest.raises(ValueError, match="seed-0 was made for something else .learning_rate 0.1, not 0.001.*a folder of its own"):
        experiments.record(SMALL, [0], tmp_path, compile=False)
    with pytest.raises(ValueError, match="seed 0, not 1"):
        other.prepare(seed=1, folder=folder)
    with monkeypatch.context() as patched:
        patched.setattr(recording, "STREAMS", STREAMS + 1)
        with pytest.raises(ValueError, match="streams"):
            other.prepare(seed=0, folder=folder)
    monkeypatch.setattr(experiments, "train", None)
    assert other.prepare(seed=0, folder=folder).run.learning_rates[0] == [0.1, 0.1]
    (folder / "made_for.json").write_text("")
    with pytest.raises(ValueError, match="does not say for what"):
        other.prepare(seed=0, folder=folder)
    assert not measured


@pytest.mark.parametrize("damage", [None, b"", b"none"])
def test_kept_scores_are_used_for_what_they_were_computed_for(damage, tmp_path):
    setup = SMALL_REMOVAL.prepare(seed=3, folder=tmp_path)
    first, longer = (experiments.removal_scores(replace(SMALL_REMOVAL, last_epochs=k), setup, 3)[f"influence on {ALL}"] for k in (1, 3))
    torch.testing.assert_close(longer, gi.influence(setup.run, setup.valid[ALL], last_epochs=3))
    if damage is not None:
        (tmp_path / "scores.safetensors").write_bytes(damage)
    torch.testing.assert_close(experiments.removal_scores(SMALL_REMOVAL, setup, 3)[f"influence on {ALL}"], first)


def test_a_piece_that_is_cut_short_is_made_again_alone(tmp_path, measured, capsys):
    experiments.record(SMALL, [(0, ["k=1", "k=3"])], tmp_path, compile=False)
    whole, damaged = (tmp_path / f"seed-0_k={k}.json" for k in (1, 3))
    damaged.write_text(damaged.read_text()[:-9])
    experiments.gather(tmp_path, tmp_path / "recorded")
    assert set(json.loads((tmp_path / "recorded.json").read_text())["pieces"]["0"]) == {"k=1"}
    measured.clear()
    before = whole.stat().st_mtime_ns
    capsys.readouterr()
    experiments.record(SMALL, [(0, ["k=1", "k=3"])], tmp_path, compile=False)
    assert measured == [(0, "k=3")] and json.loads(damaged.read_text())["parts"]["scores"] and whole.stat().st_mtime_ns == before
    assert "seed-0_k=3.json is cut short" in capsys.readouterr().out


def test_one_process_at_a_time_fills_a_folder(tmp_path, measured):
    with only_driver(tmp_path), pytest.raises(BlockingIOError, match="is being filled by process.*wait for it"):
        experiments.record(SMALL, [0], tmp_path, compile=False)
    assert not measured


def test_what_cannot_be_compiled_is_made_without(tmp_path, monkeypatch, capsys):
    def no_compiler(*_):
        raise RuntimeError("none was found\nat length")

    monkeypatch.setattr(compiled, "_compile", no_compiler)
    experiments.record(SMALL, [0, 1], tmp_path / "a")
    assert capsys.readouterr().out.count("k=1 failed when compiled (none was found): going on uncompiled, which takes longer\n") == 1
    experiments.record(SMALL, [0, 1], tmp_path / "b", compile=False)
    first, second = (json.loads((tmp_path / folder / "seed-1_k=3.json").read_text())["parts"]["scores"] for folder in "ab")
    assert first == second
    monkeypatch.setattr(Accuracy, "measure", no_compiler)
    with pytest.raises(RuntimeError, match="none was found"):  # that was not the compiler's
        experiments.record(SMALL, [2], tmp_path / "b", compile=False)


def test_another_number_of_threads_is_told(tmp_path, capsys):
    for threads in (1, 2):
        experiments.record(SMALL, [(0, ["k=1"])], tmp_path, compile=False)
        told = "were made with 2 threads, and now it is 1" in capsys.readouterr().out
        assert told == (threads == 2)
        path = tmp_path / "seed-0_k=1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": 2}))


def older(path, streams):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"streams": streams}))


def test_newer_random_streams_replace_a_recording_whole(tmp_path):
    target, neighbour = tmp_path / "recorded" / "small", tmp_path / "recorded" / "small_every.csv"
    experiments.record(SMALL_REMOVAL, [(0, ["random", "agreement"]), (1, ["random"])], tmp_path / "old", compile=False)
    experiments.gather(tmp_path / "old", target)
    neighbour.write_text("another recording's")
    experiments.record(replace(SMALL_REMOVAL, n=80), [(1, ["isolation forest"])], tmp_path / "new", compile=False)
    with pytest.raises(ValueError, match="records another protocol.*n 60, not 80"):
        experiments.gather(tmp_path / "new", target)
    older(target.with_suffix(".json"), STREAMS + 1)
    with pytest.raises(ValueError, match="newer random streams"):
        experiments.gather(tmp_path / "old", target)
    older(target.with_suffix(".json"), STREAMS - 1)
    experiments.gather(tmp_path / "new", target)
    experiments.gather(tmp_path / "new", tmp_path / "recorded" / "fresh")
    names = {path.name.removeprefix("small") for path in target.parent.glob("small*")} - {"_every.csv"}
    assert names == {path.name.removeprefix("fresh") for path in target.parent.glob("fresh*")} and "_agreement.csv" not in names
    assert all((target.parent / f"small{name}").read_bytes() == (target.parent / f"fresh{name}").read_bytes() for name in names)
    assert neighbour.read_text() == "another recording's"


def test_recorded_tensors_are_of_one_seed(tmp_path):
    for seed, piece in ((1, "isolation forest"), (0, "random")):
        experiments.record(SMALL_REMOVAL, [(seed, [piece])], tmp_path / str(seed), compile=False)
        experiments.gather(tmp_path / str(seed), tmp_path / "recorded")
    assert {name.partition("|")[0] for name in load_file(tmp_path / "recorded.safetensors")} == {"before", f"random {ALL}"}


def test_removal_measures_what_it_says(tmp_path, monkeypatch):
    setup = SMALL_REMOVAL.prepare(seed=3, folder=tmp_path)
    scores = experiments.removal_scores(SMALL_REMOVAL, setup, 3)
    assert list(scores) == SMALL_REMOVAL.methods == [f"influence on {ALL}", "random", "isolation forest", "discriminator loss"]
    torch.testing.assert_close(scores[f"influence on {ALL}"], gi.influence(setup.run, setup.valid[ALL], last_epochs=1))  # higher is better: as it is
    loss = gi.metrics.DiscriminatorLoss(setup.data.valid, setup.valid[ALL].latents)
    torch.testing.assert_close(scores["discriminator loss"], -gi.influence(setup.run, loss, last_epochs=1))  # lower is better
    with monkeypatch.context() as patched:  # neither trained nor swept again
        patched.setattr(experiments, "train", None)
        patched.setattr(experiments, "influence", None)
        kept = experiments.removal_scores(SMALL_REMOVAL, SMALL_REMOVAL.prepare(seed=3, folder=tmp_path), 3)
    assert all(torch.equal(kept[method], scores[method]) for method in scores)
    (checked,) = experiments.removal_agreement(SMALL_REMOVAL, setup, scores, 3)
    found = gi.verify(setup.run, setup.valid[ALL], scores[f"influence on {ALL}"], last_epochs=1, seed=3)
    random = found.frame().query("group == 'random'")
    assert checked["kendall_tau"] == pytest.approx(stats.kendalltau(random.influence, random.leave_one_out).statistic) and checked["instances"] == len(random)
    assert checked["precision_worst"] == found.precision_worst and checked["trustworthy"] == found.trustworthy
    row = experiments.removal_experiment(SMALL_REMOVAL, setup, {"random": scores["random"]}).rows[1]
    without = gi.retrain(setup.run, scores["random"].topk(18).indices, last_epochs=1)
    assert row["n_removed"] == 18 and row["test_after"] == pytest.approx(float(setup.test[ALL](setup.run.gan, without)), abs=1e-12)


def test_recorded_extremes_and_generators_are_the_run_s(tmp_path):
    experiments.record(SMALL_REMOVAL, [(2, ["random"])], tmp_path / "runs", compile=False)
    experiments.gather(tmp_path / "runs", tmp_path / "recorded")
    setup = SMALL_REMOVAL.prepare(seed=2, folder=tmp_path / "runs" / "seed-2")
    scores, rows = experiments.removal_scores(SMALL_REMOVAL, setup, 2)["random"], list(csv.DictReader((tmp_path / "recorded_extremes.csv").open()))
    assert int(rows[0]["instance"]) == int(scores.argmax()) and int(rows[36]["instance"]) == int(scores.argmin())
    kept = load_file(tmp_path / "recorded.safetensors")
    assert all(torch.equal(kept[f"before|{name}"], tensor) for name, tensor in setup.run.final.generator.items())


def test_changes_over_seeds_are_tested_as_published():
    rows = [{"seed": seed, "metric": "m", "method": method, "n_removed": 5, "test_before": 1.0, "test_after": 1.0 + shift + 0.01 * (seed % 3)}
            for seed in range(8) for method, shift in (("good", 0.1), ("idle", -0.01))]
    found = experiments.over_seeds(pd.DataFrame(rows))
    good, idle = found.loc[("m", "good", 5)], found.loc[("m", "idle", 5)]
    assert good.seeds == 8 and good["mean"] == pytest.approx(0.1 + 0.01 * (0 + 1 + 2 + 0 + 1 + 2 + 0 + 1) / 8) and good.p_t < 1e-6
    assert good.p_wilcoxon == pytest.approx(2 / 2**8, rel=0.5) and idle.p_t > 0.1
    alone = experiments.over_seeds(pd.DataFrame(rows[:1])).iloc[0]
    assert alone.seeds == 1 and np.isnan(alone.p_t) and np.isnan(alone.p_wilcoxon)


@pytest.mark.parametrize("metric, sign", [("Inception score", 1), ("Fréchet distance", -1)])
def test_an_advantage_is_paired_by_seed_and_signed_by_the_metric(metric, sign):
    noise, rows = np.random.default_rng(0).normal(size=6), []
    for seed in range(6):  # what all rankings share in a seed is large, and must cancel
        changes = {"a": 5 * noise[seed] + 0.1 * seed, "b": 5 * noise[seed], "c": 5 * noise[seed] + 1}
        rows += [{"seed": seed, "metric": metric, "method": method, "n_removed": 5, "test_before": 3.0, "test_after": 3.0 + sign * change}
                 for method, change in changes.items() if (seed, method) != (5, "c")]
    found = experiments.advantage(pd.DataFrame(rows), metric, "a").loc[5]
    assert found["b", "gain"] == pytest.approx(0.25) and found["b", "p"] == pytest.approx(stats.ttest_1samp(0.1 * np.arange(6), 0).pvalue)
    assert found["c", "gain"] == pytest.approx(0.2 - 1), "the seed without c does not count"
    alone = experiments.advantage(pd.DataFrame(rows[:2]), metric, "a").loc[5]
    assert np.isnan(alone["b", "p"])


def test_experiments_on_images(monkeypatch):
    """One epoch of each protocol on the digits that come with scikit-learn, judged by a classifier that has hardly learned."""
    train = gi.models.train_classifier
    monkeypatch.setattr(gi.models, "train_classifier", lambda *images, **options: train(*images, **options | {"steps": 50}))
    small = {"data": "digits", "n": 40, "epochs": 1, "batch_size": 20, "width": 2, "held_out": 130, "latents": 130}
    summary, scores = experiments.accuracy_experiment(Accuracy(**small, instances=3, windows=(1,)), seed=0)
    assert [row["metric"] for row in summary] == ["Fréchet distance", "log Inception score"] and len(scores) == 6
    protocol = Removal(**small, fractions=(0.2,))
    setup = protocol.prepare(seed=0)
    scores = experiments.removal_scores(protocol, setup, 0)
    assert list(scores) == ["influence on Fréchet distance", "influence on Inception score", "random", "isolation forest", "discriminator loss"]
    fid = setup.valid["Fréchet distance"]
    torch.testing.assert_close(scores["influence on Fréchet distance"], -gi.influence(setup.run, fid, last_epochs=1), rtol=1e-3, atol=1e-9)
    for name, row in zip(setup.valid, experiments.removal_agreement(protocol, setup, scores, 0)):
        estimate = gi.influence(setup.run, setup.valid[name], last_epochs=1)  # lower is better for one of the two metrics: its sign must come back
        found = gi.verify(setup.run, setup.valid[name], estimate, last_epochs=1, seed=0)
        assert row["metric"] == name and row["slope"] == pytest.approx(found.slope, rel=1e-2)
        np.testing.assert_equal(row["precision_worst"], found.precision_worst)  # NaN where none is predicted to be harmful
    rows = experiments.removal_experiment(protocol, setup, scores).rows
    assert {(row["metric"], row["n_removed"]) for row in rows} == {("Fréchet distance", 8), ("Inception score", 8)}


def test_removing_a_fraction_tends_to_the_influence():
    run = tiny_run("simultaneous")
    metric, some = tiny_metric(run.gan), [0, 3, 5, 7]
    whole = experiments.fractional_leave_one_out(run, metric, some, 1.0, last_epochs=2)
    torch.testing.assert_close(whole, gi.leave_one_out(run, metric, some, last_epochs=2), rtol=1e-9, atol=1e-14)
    scores = gi.influence(run, metric, last_epochs=2)[some]
    gaps = [float((experiments.fractional_leave_one_out(run, metric, some, eps, last_epochs=2) - scores).abs().max()) for eps in (1e-2, 1e-3)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)


def test_kinks_are_what_a_smooth_network_does_not_have():
    smooth = replace(SMALL, activation="silu")
    assert min(row["kendall_tau"] for row in experiments.kink_experiment(smooth, seed=0)) > 0.95


@pytest.mark.parametrize("name", sorted({path.stem for path in experiments.RECORDED.glob("*.json")} - set(experiments.EXPERIMENTS) - {"board"}))
def test_other_recorded_tables_say_how_they_were_made(name):
    table, header = experiments.recorded(name)
    assert header["config"] and header["versions"]["torch"] and header["device"] and header["streams"] == STREAMS and len(table)


@pytest.mark.parametrize("name", sorted({path.stem for path in experiments.RECORDED.glob("*.json")} & set(experiments.EXPERIMENTS)))
def test_recorded_tables_are_whole(name):
    table, header = experiments.recorded(name)
    protocol, _ = experiments.EXPERIMENTS[name]
    assert header["streams"] < STREAMS or header["config"] == json.loads(json.dumps(asdict(protocol)))
    assert header["seeds"] == sorted(map(int, header["pieces"])) and header["versions"]["torch"] and header["device"] and header["threads"]
    assert all(piece in protocol.pieces for pieces in header["pieces"].values() for piece in pieces)
    there = {(seed, piece) for seed, pieces in header["pieces"].items() for piece in pieces if piece not in ("fractions", "agreement")}
    assert set(table.seed.astype(str)) == {seed for seed, _ in there} and not table.duplicated().any()
    if name in ("adapters_faces", "gossip", "stylegan_faces"):
        return  # their pieces are neither windows nor rankings
    told = table.last_epochs.map("k={}".format) if "last_epochs" in table else table.method
    told += table.metric.str.extract("( bandwidth .*)")[0].fillna("")
    assert set(zip(table.seed.astype(str), told)) == there
    per_piece = table.groupby(["seed", told]).size()
    assert per_piece.nunique() == 1, "every piece has as many rows as any other"


def test_the_recorded_faces_are_whole_and_follow_from_their_scores():
    (table, header), (scores, _), (fractions, _) = (experiments.recorded("adam_faces", part) for part in ("summary", "scores", "fractions"))
    config = header["config"]
    assert header["versions"]["torch"] and header["device"] and header["threads"] and len(header["seeds"]) >= 5
    assert set(header["pieces"]) == set(map(str, header["seeds"])) and all(set(pieces) == set(config["activations"]) for pieces in header["pieces"].values())
    assert set(fractions.activation) == set(config["activations"]) and set(table.last_epochs) == set(config["windows"])
    stored, key = table.set_index(["seed", "activation", "last_epochs", "estimate"]).kendall_tau, ["seed", "activation", "last_epochs"]
    names = list(dict.fromkeys(table.estimate))
    assert len(table) == len(header["seeds"]) * len(config["activations"]) * len(config["windows"]) * len(names)
    for which, part in scores.groupby(key):
        assert len(part) == config["instances"]
        for name in names:
            assert gi.agreement(part[name], part.leave_one_out).kendall_tau == pytest.approx(stored[(*which, name)], abs=5e-3)  # six digits were kept


def test_a_recording_that_is_absent_is_named():
    with pytest.raises(FileNotFoundError, match="start from a clone"):
        experiments.recorded("nothing")


@pytest.mark.parametrize("name", [path.stem for path in sorted(experiments.RECORDED.glob("accuracy_*.json"))])
def test_the_recorded_summary_follows_from_the_recorded_scores(name):
    (table, _), (scores, _) = experiments.recorded(name), experiments.recorded(name, "scores")
    key = ["seed", "metric", "last_epochs"]
    stored = table.set_index(key).kendall_tau
    for which, part in scores.groupby(key):
        assert gi.agreement(part.influence, part.leave_one_out).kendall_tau == pytest.approx(stored[which], abs=2e-3)  # six digits were kept


def test_rounds_are_recorded_beside_the_one_round_they_must_beat(tmp_path):
    protocol = experiments.InRounds(n=120, epochs=4, batch_size=20, held_out=40, latents=40, fractions=(0.1, 0.3), windows=(1, 2), most=3, learning_rate=1e-2)
    assert protocol.pieces == ["k=1", "k=2", "k=1 bandwidth 0.25", "k=2 bandwidth 0.25"]
    experiments.record(protocol, [(0, ["k=2"]), (1, ["k=2", "k=2 bandwidth 0.25"])], tmp_path / "runs", compile=False)
    experiments.gather(tmp_path / "runs", tmp_path / "rounds")
    summary, table = pd.read_csv(tmp_path / "rounds.csv"), pd.read_csv(tmp_path / "rounds_rounds.csv")
    assert len(summary) == 3 * 2 * 4 and set(summary.judge) == {"validation", "test", "bandwidth 1", "bandwidth 0.25", "sliced Wasserstein distance"}
    one = summary[(summary.seed == 1) & (summary.metric == ALL)].set_index(["method", "judge"])
    last = table[(table.seed == 1) & (table.metric == ALL) & (table.better == 1)].iloc[-1]
    assert one.after["in rounds", "test"] == last.test and one.n_removed["in rounds", "test"] == last.n_removed
    assert one.before["one round", "test"] == one.before["in rounds", "test"] == table[table.seed == 1].iloc[0].test
    setup = protocol.prepare(1)
    scores = gi.harmfulness(gi.influence(setup.run, setup.valid[ALL], last_epochs=2), setup.valid[ALL])
    picked, = gi.cleanse(setup.run, {"": scores}, protocol.fractions, setup.valid[ALL], setup.test[ALL], 2).picked
    assert one.after["one round", "test"] == pytest.approx(picked["test_after"], rel=1e-5) and one.n_removed["one round", "test"] == picked["n_removed"]


@needs("sklearn")
def test_rounds_on_images_are_judged_by_what_was_not_pulled_back():
    protocol = experiments.InRounds("digits", n=200, epochs=2, batch_size=50, learning_rate=2e-3, width=2, held_out=150, latents=150, fractions=(0.1,),
                                    windows=(1,), most=1)
    setup = protocol.prepare(0)
    rows = pd.DataFrame(protocol.measure(setup, 0, "k=1", compile=False)[0]["summary"]).set_index(["method", "judge"])
    assert set(rows.index.get_level_values("judge")) == {"validation", "test", "Inception score", "kernel distance", "precision", "recall"}
    features, x = torch.no_grad()(setup.classifier.features), setup.data.test[:150]
    near = torch.cdist(features(x), features(x)).kthvalue(1 + experiments.NEIGHBOURS).values  # each is its own nearest
    far = torch.cdist(features(setup.run.gan.generate(setup.run.final, setup.test["Fréchet distance"].latents)), features(x))
    assert rows.before["in rounds", "precision"] == pytest.approx(float((far <= near).any(1).double().mean()), abs=0.01)
