"""Metrics that see a minority against their definitions, several aims in one sweep, and the study of whom cleansing removes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_run
from gan_influence.metrics import AverageLogLikelihood, BalancedLikelihood, SoftShare, WeightedSum, enrichment, recall
from gan_influence.studies import minorities
from gan_influence.studies.protocols import MINORITY


def logit(x: torch.Tensor) -> torch.Tensor:
    return 2 * x[:, :1] - x[:, 1:] ** 2


def several(gan: gi.GAN, n: int = 12) -> dict:
    x, z, labels = tiny_data(n), gan.sample_latents(9, seed=1), torch.arange(n) % 3 == 0
    return {"likelihood": AverageLogLikelihood(x, z, 0.5), "share": SoftShare(logit, z, 0.7, chunk=4), "balanced": BalancedLikelihood(x, labels, z, 0.5)}


def test_a_soft_share_is_a_mean_of_probabilities():
    gan = tiny_gan()
    z = gan.sample_latents(9, seed=1)
    made = gan.generate(gan.state(), z)
    found = {t: float(SoftShare(logit, z, t, chunk=4)(gan, gan.state())) for t in (0.7, 1e-9)}
    assert found[0.7] == pytest.approx(float(torch.sigmoid(logit(made) / 0.7).mean()), rel=1e-12)
    assert found[1e-9] == pytest.approx(float((logit(made) > 0).double().mean()), abs=1e-6)  # a count, where nothing is soft


def test_balanced_likelihood_is_the_mean_over_classes():
    gan = tiny_gan()
    x, z, labels = tiny_data(12), gan.sample_latents(9, seed=1), torch.tensor([0] * 9 + [5] * 3)
    by_class = [float(AverageLogLikelihood(part, z, 0.5)(gan, gan.state())) for part in (x[:9], x[9:])]
    assert float(BalancedLikelihood(x, labels, z, 0.5)(gan, gan.state())) == pytest.approx(np.mean(by_class), rel=1e-12)
    assert float(AverageLogLikelihood(x, z, 0.5)(gan, gan.state())) == pytest.approx(0.75 * by_class[0] + 0.25 * by_class[1], rel=1e-12)


@pytest.mark.parametrize("name", ["share", "balanced"])
def test_their_gradients_equal_finite_differences(name):
    gan = tiny_gan()
    metric, state, sides = several(gan)[name], gan.state().map(lambda p: p.requires_grad_()), []
    slope = torch.autograd.grad(metric(gan, state), state.generator["0.weight"])[0][1, 2]
    for h in (1e-5, -1e-5):
        moved = gan.state()
        moved.generator["0.weight"][1, 2] += h
        sides.append(float(metric(gan, moved)))
    assert float(slope) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6) and slope != 0


def test_one_sweep_with_the_sum_is_the_sum_of_the_sweeps():
    run = tiny_run()
    metrics, weights = several(run.gan), {"likelihood": 1.0, "share": 5.0, "balanced": -0.3}
    total = WeightedSum({metrics[name]: weight for name, weight in weights.items()})
    parts, whole = gi.influence(run, metrics), gi.influence(run, total)
    expected = sum(weight * parts[name] for name, weight in weights.items())
    assert float((whole - expected).abs().max() / expected.abs().max()) < 1e-12
    assert total.name == "1 × average log-likelihood + 5 × soft share + -0.3 × balanced log-likelihood" and total.higher_is_better


def test_enrichment_is_one_for_all_and_by_chance():
    minority = torch.arange(100) < 10
    assert enrichment(torch.arange(100), minority) == pytest.approx(1) and enrichment([3, 50, 60, 70], minority) == pytest.approx(2.5)
    assert enrichment(torch.arange(50, 90), minority) == 0
    random = np.random.default_rng(0)
    assert np.mean([enrichment(random.permutation(100)[:20], minority) for _ in range(400)]) == pytest.approx(1, abs=0.1)
    for removed, of in (([], minority), ([1], minority & False)):
        with pytest.raises(ValueError, match="takes one of each, at least"):
            enrichment(removed, of)


def test_recall_is_what_a_look_at_all_pairs_finds():
    random = np.random.default_rng(0)
    real, made = torch.from_numpy(random.standard_normal((40, 2))), torch.from_numpy(0.6 * random.standard_normal((25, 2)) + 0.5)
    for k in (1, 3, 5):
        radii = np.sort(cdist(made, made), 1)[:, k]
        assert recall(real, made, k) == pytest.approx((cdist(real, made) <= radii).any(1).mean()) and 0 < recall(real, made, k) < 1
    assert recall(made, made, 1) == 1 and recall(made + 100, made, 3) == 0
    with pytest.raises(ValueError, match="takes 6 generated instances or more, but there are 5"):
        recall(real, made[:5], k=5)


def test_what_they_cannot_take_gets_a_sentence():
    gan = tiny_gan()
    z = gan.sample_latents(5, seed=0)
    with pytest.raises(ValueError, match=r"one logit each, \(n, 1\), but it returned shape \(5, 2\): take the class's logit minus"):
        SoftShare(lambda x: x, z)(gan, gan.state())
    with pytest.raises(ValueError, match="a positive number of logits, but 0 was given"):
        SoftShare(logit, z, temperature=0)
    with pytest.raises(ValueError, match=r"there are 4 instances and labels of shape \(3,\)"):
        BalancedLikelihood(tiny_data(4), torch.zeros(3), z)


def test_two_clusters_are_told_apart_by_their_own_logit():
    x, kind = minorities.mixture(5_000, seed=1, noise=0.1)
    shares = kind.bincount() / len(kind)
    assert shares.tolist() == pytest.approx([0.81, 0.09, 0.10], abs=0.015)
    clean = kind < 2
    assert float(((minorities.minority_logit(x[clean])[:, 0] > 0) == (kind[clean] == 1)).double().mean()) > 0.999
    assert not torch.equal(x[:100], minorities.mixture(100, seed=1, part=1)[0])


def test_the_study_measures_every_method_before_and_after():
    config = replace(MINORITY["2d"], n=200, epochs=4, batch_size=50, held_out=60, latents=50, windows=(1,), fractions=(0.1,), instances=10)
    question = config.prepare(seed=0)
    parts, _ = config.measure(question, 0, "k=1", False)
    methods = {row["method"] for row in parts["summary"]}
    assert methods == {*question.valid, *question.sums, "discriminator loss", "isolation forest", "random"} == {row["method"] for row in parts["groups"]}
    for metric, before in question.judge(question.run.final).items():
        rows = [row for row in parts["summary"] if row["metric"] == metric]
        assert len(rows) == len(methods) and {row["before"] for row in rows} == {before}
    likelihood = {row["method"]: row for row in parts["summary"] if row["metric"] == "likelihood"}
    assert all(row["after"] != row["before"] and row["after"] != row["renormalised"] for row in likelihood.values())
    assert {row["metric"] for row in parts["agreement"]} == set(question.valid) and min(row["kendall_tau"] for row in parts["agreement"]) > 0.9
    # renormalising is weighting the rest up: with nothing but that, the random control's real term keeps its size
    removed = gi.random_scores(200, 0).argsort(descending=True, stable=True)[:20]
    keep = torch.ones(200, dtype=torch.float64)
    keep[removed] = 0
    start = question.run.window(1)
    *_, end = question.run.walk(question.run.state(start), start, question.run.steps, keep * 200 / 180)
    assert likelihood["random"]["renormalised"] == question.judge(end)["likelihood"]
    assert likelihood["random"]["after"] == pytest.approx(question.judge(gi.retrain(question.run, removed, last_epochs=1))["likelihood"], rel=1e-12)
