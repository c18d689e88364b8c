"""Influence taken in a counterfactual, and cleansing in rounds, against slower and simpler computations."""

import json

import pytest
import torch
from test_plans import normed_gan
from torch import Tensor

import gan_influence as gi
from conftest import tiny_gan, tiny_metric, tiny_run
from gan_influence.readings import rounds

GONE = [3, 4, 11]


class Mean:
    """What is simple enough to be wrong nowhere: the average of all generated numbers, squared."""

    name, higher_is_better = "mean", False

    def __init__(self, gan: gi.GAN):
        self.z = gan.sample_latents(20, seed=5)

    def __call__(self, gan: gi.GAN, state: gi.State) -> Tensor:
        return gan.generate(state, self.z).square().mean()


def data(n: int = 24) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


CASES = {
    "SGD": lambda: gi.train(tiny_gan(), data(), 3, 6, gi.SGD(0.1), seed=0),
    "simultaneous, momentum": lambda: gi.train(tiny_gan(), data(), 3, 6, gi.SGD(0.1, momentum=0.5), "simultaneous", seed=0),
    "Adam, batch norm, average": lambda: gi.train(normed_gan(), data(), 3, 6, gi.Adam(0.02, eps=1e-3), seed=0, average=0.9),
    "penalty": lambda: gi.train(tiny_gan(penalty=gi.R1(2.0)), data(), 3, 6, gi.SGD(0.1), seed=0),
}


@pytest.mark.parametrize("k", [2, None])
@pytest.mark.parametrize("case", CASES)
def test_influence_without_some_equals_the_unrolled_counterfactual(case, k):
    run = CASES[case]()
    metric, start = Mean(run.gan), run.window(k)
    weights = torch.ones(run.n, dtype=torch.float64)
    weights[GONE] = 0
    weights.requires_grad_()
    state = run.state(start)
    for t in range(start, run.steps):
        state = run.dynamics.step(state, run.batch(t), weights[run.schedule.indices(t)])
    expected = -torch.autograd.grad(metric(run.gan, state), weights)[0]
    found = gi.influence(run, metric, last_epochs=k, remove=GONE)
    assert float((found - expected).abs().max()) <= 1e-10 * float(expected.abs().max())
    assert expected[GONE].abs().min() > 0 and not torch.allclose(found, gi.influence(run, metric, last_epochs=k), rtol=1e-3)


def test_a_counterfactual_is_what_retraining_gives_and_reads_like_a_run():
    run, metric = tiny_run(), None
    metric = tiny_metric(run.gan)
    start, gone = run.window(2), torch.tensor(GONE)
    there = run.without(gone, start)
    assert all(map(torch.equal, there.final.tensors(), gi.retrain(run, gone, 2).tensors()))
    assert all(map(torch.equal, run.without(gone[:0], start).final.tensors(), run.final.tensors()))
    alone = gi.leave_one_out(there, metric, [7])
    both, one = (metric(run.gan, gi.retrain(run, remove, 2)) for remove in ([*GONE, 7], GONE))
    assert float(alone) == pytest.approx(float(both - one), abs=1e-12)
    twice = run.without(gone[:2], start).without(gone[2:], start)
    assert all(map(torch.equal, twice.final.tensors(), there.final.tensors()))
    with pytest.raises(IndexError, match="this counterfactual begins with step"):
        there.state(start - 1)


def test_what_a_counterfactual_refuses(tmp_path):
    run = tiny_run()
    with pytest.raises(ValueError, match="a counterfactual is not saved: save the run"):
        run.without(torch.tensor([1]), 0).save(tmp_path)
    with pytest.raises(ValueError, match='a counterfactual follows its steps, so method is "itd"'):
        gi.influence(run, tiny_metric(run.gan), remove=[1], method="aid")
    with pytest.raises(TypeError, match="a mask was passed"):
        gi.influence(run, tiny_metric(run.gan), remove=torch.zeros(run.n, dtype=torch.bool))


def test_a_return_through_a_penalty_by_way_of_batch_statistics_is_refused_before_anything_is_computed():
    run = gi.train(normed_gan(penalty=gi.R1(2.0)), data(), 2, 6, gi.SGD(0.1), seed=0)
    for reading in (lambda: gi.influence(run, Mean(run.gan), remove=GONE), lambda: gi.cleanse_in_rounds(run, Mean(run.gan), Mean(run.gan))):
        with pytest.raises(ValueError, match="has no derivative through a gradient penalty taken by way of batch statistics"):
            reading()


@pytest.fixture(scope="module")
def cleansed():
    data = gi.data.normal_2d(train=300, valid=150, test=150, seed=0)
    gan = gi.models.fcgan(seed=0)
    run = gi.train(gan, data.train, 4, 20, gi.SGD(2e-2), seed=0)
    valid, test = (gi.metrics.AverageLogLikelihood(x, gan.sample_latents(150, seed)) for seed, x in enumerate(data[1:], 1))
    return run, valid, test, gi.cleanse_in_rounds(run, valid, test, last_epochs=2, rounds=16, step=0.12)


def test_the_first_round_is_the_published_method(cleansed):
    run, valid, test, found = cleansed
    scores = gi.harmfulness(gi.influence(run, valid, last_epochs=2), valid)
    (row,) = gi.cleanse(run, {"influence": scores}, [0.12], valid, test, last_epochs=2).rows
    first = found.rows[1]
    assert [first["n_removed"], first["valid"], first["test"]] == pytest.approx([row["n_removed"], row["valid_after"], row["test_after"]], rel=1e-12)
    assert [found.rows[0]["valid"], found.rows[0]["test"]] == pytest.approx([row["valid_before"], row["test_before"]], rel=1e-12)


@pytest.fixture(scope="module")
def restless():
    """Large steps through the whole of a wild run: changes fail, and what was removed comes back."""
    run = gi.train(tiny_gan(), data(60), 4, 6, gi.SGD(0.5), seed=0)
    return run, gi.cleanse_in_rounds(run, Mean(run.gan), Mean(run.gan), last_epochs=None, rounds=40, step=0.3)


def test_values_improve_from_kept_round_to_kept_round_and_the_step_is_halved_after_others(restless):
    run, found = restless
    kept = [row for row in found.rows if row["better"]]
    assert all(a["valid"] > b["valid"] for a, b in zip(kept, kept[1:])) and kept[-1]["valid"] == min(row["valid"] for row in found.rows)
    assert len(kept) < len(found.rows), "no change was undone: the test sees nothing"
    size = 18
    for row in found.rows[1:]:
        assert row["changed"] <= size
        size = row["changed"] if row["better"] else row["changed"] // 2
    assert len(found.removed) == kept[-1]["n_removed"] and torch.equal(found.removed, found.removed.unique())
    again = gi.retrain(run, found.removed)
    assert all(map(torch.equal, again.tensors(), found.state.tensors()))
    assert float(Mean(run.gan)(run.gan, again)) == pytest.approx(kept[-1]["test"], rel=1e-12)
    assert "not even" in str(found) or "rounds were made" in str(found)
    assert list(found.frame().loc[:, "round"]) == list(range(len(found.rows)))


def test_what_was_removed_may_come_back(restless):
    kept = [row for row in restless[1].rows if row["better"]]
    assert any(abs(b["n_removed"] - a["n_removed"]) < b["changed"] for a, b in zip(kept, kept[1:])), "nothing was taken back"


def test_metrics_of_which_lower_is_better_fall(cleansed):
    run = cleansed[0]
    found = gi.cleanse_in_rounds(run, Mean(run.gan), Mean(run.gan), rounds=3)
    assert found.rows[1]["better"] and found.rows[1]["valid"] < found.rows[0]["valid"]


def test_an_interrupted_call_goes_on_where_it_was(cleansed, tmp_path, monkeypatch):
    run, valid, test, _ = cleansed
    whole = gi.cleanse_in_rounds(run, valid, test, rounds=5, judges={"again": test})
    pulled, sweep = [], rounds.pull_back

    def interrupted(*arguments, **options):
        if len(pulled) == 2:
            raise KeyboardInterrupt
        pulled.append(1)
        return sweep(*arguments, **options)

    monkeypatch.setattr(rounds, "pull_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gi.cleanse_in_rounds(run, valid, test, rounds=5, judges={"again": test}, folder=tmp_path)
    before = json.loads((tmp_path / "rounds.json").read_text())["rows"]
    assert 2 <= len(before) < 6
    monkeypatch.setattr(rounds, "pull_back", sweep)
    resumed = gi.cleanse_in_rounds(run, valid, test, rounds=5, judges={"again": test}, folder=tmp_path)
    assert resumed.rows == whole.rows and torch.equal(resumed.removed, whole.removed) and resumed.rows[:len(before)] == before
    with pytest.raises(ValueError, match=r"holds the rounds of another run or other settings \(step differ\)"):
        gi.cleanse_in_rounds(run, valid, test, rounds=5, step=0.1, judges={"again": test}, folder=tmp_path)


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5, 7])
def test_more_rounds_go_on_from_fewer(restless, first, tmp_path):
    run, whole = restless
    settings = {"metric_valid": Mean(run.gan), "metric_test": Mean(run.gan), "last_epochs": None, "step": 0.3, "folder": tmp_path}
    gi.cleanse_in_rounds(run, rounds=first, **settings)
    found = gi.cleanse_in_rounds(run, rounds=40, **settings)
    assert found.rows == whole.rows and torch.equal(found.removed, whole.removed)


def test_a_round_sweeps_only_after_a_change_that_was_kept(cleansed, monkeypatch):
    run, valid, test, found = cleansed
    pulled, sweep = [], rounds.pull_back
    monkeypatch.setattr(rounds, "pull_back", lambda *a, **k: pulled.append(1) or sweep(*a, **k))
    gi.cleanse_in_rounds(run, valid, test, last_epochs=2, rounds=16, step=0.12)
    assert len(pulled) <= sum(row["better"] for row in found.rows)


@pytest.mark.parametrize("change, problem", [
    ({"step": 0.0}, "a round changes a share of the training set, between 0 and 1, but step=0.0 of 300"),
    ({"rounds": 0}, "rounds is a whole number, 1 or more, but got 0"),
    ({"judges": {"valid": Mean(tiny_gan())}}, "a judge's name heads a column of the table, but valid stands there already"),
    ({"metric_test": Mean(tiny_gan())}, "the same metric judges validation and test data, but of average log-likelihood higher is better, of mean not"),
    ({"last_epochs": 9}, "last_epochs must be a whole number between 1 and"),
])
def test_what_it_refuses(cleansed, change, problem):
    run, valid, test, _ = cleansed
    with pytest.raises(ValueError, match=problem):
        gi.cleanse_in_rounds(run, **{"metric_valid": valid, "metric_test": test} | change)


def test_a_removal_that_derails_training_is_undone(cleansed, monkeypatch):
    run, valid, test, _ = cleansed
    without = type(run).without

    def derailed(self, removed, start, compile=False):
        there = without(self, removed, start, compile)
        there.states[there.steps] = there.final.map(lambda p: p * float("nan"))
        return there

    monkeypatch.setattr(type(run), "without", derailed)
    found = gi.cleanse_in_rounds(run, valid, test, rounds=2)
    assert not len(found.removed) and [row["better"] for row in found.rows] == [True, False, False]
