"""Cleansing: planted noise is found and its removal helps; the table against retraining by hand; what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_metric, tiny_run
from gan_influence.readings.judging import direction


def noisy_run(n: int = 400, planted: int = 20, seed: int = 0):
    """A run on 2D-normal whose first instances are noise, and metrics on held-out data."""
    data = gi.data.normal_2d(n, 300, 300, seed)
    x = data.train.clone()
    x[:planted] = torch.from_numpy(np.random.default_rng([seed, 9]).uniform([-4, 2], [0, 6], (planted, 2)))
    gan = gi.models.fcgan(seed, activation=nn.SiLU)
    run = gi.train(gan, x, epochs=80, batch_size=50, optimizer=gi.SGD(0.1), seed=seed)
    return run, *(gi.metrics.AverageLogLikelihood(part, gan.sample_latents(300, seed=k)) for k, part in enumerate(data[1:], 1))


def area_under_curve(scores: torch.Tensor, planted: int) -> float:
    """The chance that a planted instance scores higher than another one."""
    return float((scores[:planted, None] > scores[None, planted:]).double().mean())


def test_planted_noise_is_found_and_its_removal_helps():
    run, valid, test = noisy_run()
    harm = gi.harmfulness(gi.influence(run, valid, last_epochs=5), valid)
    assert area_under_curve(harm, 20) > 0.9 and area_under_curve(gi.isolation_forest(run.x), 20) > 0.9
    scores = {"influence": harm, "random": gi.random_scores(run.n), "noise": torch.arange(run.n).lt(20).double(), "opposite": -harm}
    found = gi.cleanse(run, scores, [0.025, 0.05], valid, test, last_epochs=5)
    gain = {(row["method"], row["n_removed"]): row["test_after"] - row["test_before"] for row in found.rows}
    assert gain["influence", 20] > 0.01 > gain["random", 20] and gain["influence", 20] > gain["influence", 10] > 0 > gain["opposite", 20]
    assert gain["noise", 20] > 0
    assert {row["method"]: row["n_removed"] for row in found.picked}["influence"] == 20


def test_the_table_is_what_retraining_by_hand_gives():
    run = tiny_run()
    valid, test = tiny_metric(run.gan), tiny_metric(run.gan, 9)
    harm = gi.harmfulness(gi.influence(run, valid), valid)
    found = gi.cleanse(run, {"influence": harm, "other": gi.random_scores(24, 3)}, [0.25, 0.1, 0.1], valid, test, last_epochs=2)
    assert [(row["method"], row["n_removed"]) for row in found.rows] == [("influence", 2), ("influence", 6), ("other", 2), ("other", 6)]
    row = found.rows[1]
    state = gi.retrain(run, harm.topk(6).indices, last_epochs=2)
    assert row["valid_after"] == pytest.approx(float(valid(run.gan, state)), rel=1e-12)
    assert row["test_after"] == pytest.approx(float(test(run.gan, state)), rel=1e-12)
    assert (row["valid_before"], row["test_before"]) == (float(valid(run.gan, run.final)), float(test(run.gan, run.final)))
    for chosen in found.picked:  # on validation data, and whatever the test data say
        values = {row["n_removed"]: row["valid_after"] for row in found.rows if row["method"] == chosen["method"]}
        assert chosen["valid_after"] == max([*values.values(), chosen["valid_before"]]) and chosen["test_after"] == \
            pytest.approx(float(test(run.gan, found.states[chosen["method"], chosen["n_removed"]])), rel=1e-12)
    assert str(found).count("influence") == 2 and "best on validation data" in str(found)
    assert list(found.frame().columns) == ["method", "metric", "n_removed", "valid_before", "valid_after", "test_before", "test_after", "picked"]


class Length:
    """How long the generator's first bias is: a metric of which `higher_is_better` may be anything."""

    name = "length"

    def __init__(self, higher_is_better: bool):
        self.higher_is_better = higher_is_better

    def __call__(self, gan, state):
        return state.generator["0.bias"].norm()


def test_each_metric_picks_in_its_own_direction():
    run = tiny_run()
    metrics = {"long": Length(True), "short": Length(False)}
    found = gi.cleanse(run, {"random": gi.random_scores(24)}, [0.1, 0.2, 0.3], metrics, metrics, last_epochs=None)
    values = [row["valid_after"] for row in found.rows if row["metric"] == "long"] + [found.rows[0]["valid_before"]]
    assert {row["metric"]: row["valid_after"] for row in found.picked} == {"long": max(values), "short": min(values)}
    assert len(found.rows) == 6 and len(found.picked) == 2

    class Shortness(Length):
        def __call__(self, gan, state):
            return -super().__call__(gan, state)

    found = gi.cleanse(run, {"random": gi.random_scores(24)}, [0.1, 0.2, 0.3], Length(True), Shortness(True), last_epochs=None)
    assert found.picked[0]["valid_after"] == max(values) == -found.picked[0]["test_after"]  # test data have no say


def test_nothing_removed_is_what_is_picked_when_nothing_helps():
    run = tiny_run()

    class Distance(Length):
        def __call__(self, gan, state):
            return sum(((p - q) ** 2).sum() for p, q in zip(state.tensors(), run.final.tensors()))

    found = gi.cleanse(run, {"random": gi.random_scores(24)}, [0.1, 0.2], Distance(False), Distance(False))
    assert found.picked[0]["n_removed"] == 0 and found.picked[0]["valid_after"] == 0.0 == found.picked[0]["test_after"]
    assert all(row["valid_after"] > 0 for row in found.rows)
    assert all(torch.equal(a, b) for a, b in zip(found.states["random", 0].tensors(), run.final.tensors()))
    assert all(torch.equal(a, b) for a, b in zip(gi.retrain(run, remove=[]).tensors(), run.final.tensors()))  # replayed, nothing is removed


def test_a_removal_that_derails_training_costs_only_its_own_row(monkeypatch):
    run = tiny_run()
    good = gi.retrain(run, [0])
    metric = gi.metrics.FrechetDistance(nn.Identity(), tiny_data(), run.gan.sample_latents(9, seed=0))  # which refuses NaN
    monkeypatch.setattr("gan_influence.readings.cleansing.retrain", lambda *_: [good.map(lambda p: p * float("nan")), good])
    found = gi.cleanse(run, {"random": gi.random_scores(24)}, [0.1, 0.2], metric, metric)
    assert np.isnan(found.rows[0]["valid_after"]) and np.isfinite(found.rows[1]["valid_after"]) and found.picked[0]["n_removed"] != 2


def test_isolation_forest_is_scikit_learns():
    from sklearn.ensemble import IsolationForest
    images = gi.data.digits().valid[:50]
    expected = -IsolationForest(random_state=4).fit(images.flatten(1).double().numpy()).score_samples(images.flatten(1).double().numpy())
    assert torch.equal(gi.isolation_forest(images, seed=4), torch.from_numpy(expected))
    features = gi.models.classifier().features
    with torch.no_grad():
        assert torch.equal(gi.isolation_forest(images, seed=4, features=features), gi.isolation_forest(features(images), seed=4))
    images[3, 0, 5, 5] = float("inf")
    with pytest.raises(ValueError, match="1 of 50 instances hold a NaN or an infinity"):
        gi.isolation_forest(images)


def test_random_scores_know_nothing_but_their_seed():
    assert torch.equal(gi.random_scores(100, 1), gi.random_scores(100, 1)) and not torch.equal(gi.random_scores(100, 1), gi.random_scores(100, 2))
    assert gi.random_scores(100).unique().numel() == 100


def test_what_cleansing_refuses():
    run = tiny_run()
    metric, scores = tiny_metric(run.gan), gi.random_scores(24)
    for fraction, seen in ((0, "0 of 24 instances is 0"), (1, "1 of 24 instances is 24"), (0.99, "0.99 of 24 instances is 24"), (0.01, "0.01 of 24 "),
                           (1.5, "1.5 of 24 instances was asked for"), (-0.1, "-0.1 of 24 instances was asked for"), (float("nan"), "nan of 24")):
        with pytest.raises(ValueError, match=f"removes some instances and keeps some.*{seen}"):
            gi.cleanse(run, {"random": scores}, [0.1, fraction], metric, metric)
    with pytest.raises(ValueError, match="no fractions"):
        gi.cleanse(run, {"random": scores}, [], metric, metric)
    with pytest.raises(ValueError, match=r"24 training instances.*'random' has shape \(20,\)"):
        gi.cleanse(run, {"random": scores[:20]}, [0.1], metric, metric)
    with pytest.raises(ValueError, match="'random' has 1 that are NaN"):
        gi.cleanse(run, {"random": scores.where(scores < scores.max(), torch.nan)}, [0.1], metric, metric)
    with pytest.raises(ValueError, match=r"same metrics.*\['average log-likelihood'\] and \['discriminator loss'\]"):
        gi.cleanse(run, {"random": scores}, [0.1], metric, gi.metrics.DiscriminatorLoss(tiny_data(9), run.gan.sample_latents(9, seed=0)))


@pytest.mark.parametrize("answer", ["lower", None, 1])
def test_a_direction_is_true_or_false(answer):
    run, metric = tiny_run(), Length(answer)
    with pytest.raises(TypeError, match=f"higher_is_better = True or False which way is better, but for length it is {answer!r}"):
        gi.cleanse(run, {"random": gi.random_scores(24)}, [0.1], metric, metric)
    with pytest.raises(TypeError, match="but for <lambda> it is None"):
        direction(lambda gan, state: torch.zeros(()))
    assert direction(Length(np.bool_(True))) == 1 == -direction(Length(False))


def test_metrics_without_a_name():
    def mean(gan, state):
        return state.generator["0.bias"].mean()

    mean.higher_is_better = True
    found = gi.cleanse(run := tiny_run(), {"random": gi.random_scores(24)}, [0.1], mean, mean)
    assert found.rows[0]["metric"] == "metric" and found.rows[0]["valid_before"] == float(mean(run.gan, run.final))


def test_a_batch_left_without_real_instances_is_pointed_out(recwarn):
    run = tiny_run()
    metric, batch = tiny_metric(run.gan), torch.zeros(24)
    batch[run.schedule.indices(9)] = 1
    gi.cleanse(run, {"random": gi.random_scores(24)}, [0.25], metric, metric)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"6 most harmful by 'batch' are all real instances of 1 of 4 batches \(first: step 9\).*remove fewer"):
        found = gi.cleanse(run, {"batch": batch}, [0.25], metric, metric)
    assert np.isfinite(found.rows[0]["valid_after"])
