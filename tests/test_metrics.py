"""Metrics and agreement against direct formulas, finite differences and scipy."""

import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from scipy import stats

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric


@pytest.mark.parametrize("bandwidth", [1.0, 0.3])
def test_average_log_likelihood_is_its_definition(bandwidth, device):
    gan = tiny_gan(device=device)
    x, z, state = tiny_data(30).to(device), gan.sample_latents(20, seed=0), gan.state()
    centres = gan.generate(state, z).cpu().numpy()
    densities = [np.mean([stats.multivariate_normal(c, bandwidth**2 * np.eye(2)).pdf(p) for c in centres]) for p in x.cpu().numpy()]
    value = gi.metrics.AverageLogLikelihood(x, z, bandwidth)(gan, state)
    assert float(value) == pytest.approx(np.log(densities).mean(), rel=1e-12)


def test_average_log_likelihood_far_away_does_not_underflow():
    gan = tiny_gan()
    x = torch.full((3, 2), 1e3, dtype=torch.float64)
    centre = gan.generate(gan.state(), gan.sample_latents(1, seed=0))
    expected = -0.5 * ((x - centre) ** 2).sum(1).mean() - math.log(2 * math.pi)
    assert float(gi.metrics.AverageLogLikelihood(x, gan.sample_latents(1, seed=0))(gan, gan.state())) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("make", [tiny_metric, lambda gan: gi.metrics.DiscriminatorLoss(tiny_data(9), gan.sample_latents(7, seed=1))])
def test_gradients_equal_finite_differences(make):
    gan = tiny_gan()
    metric = make(gan)
    state = gan.state().map(lambda p: p.requires_grad_())
    gradient = torch.autograd.grad(metric(gan, state), state.tensors(), allow_unused=True)
    for player, name in (("generator", "0.weight"), ("generator", "2.bias"), ("discriminator", "2.weight")):
        position = list(state.named()).index(f"{player}.{name}")
        found = 0.0 if gradient[position] is None else float(gradient[position].flatten()[1])
        sides = []
        for h in (1e-5, -1e-5):
            moved = gan.state()
            moved.named()[f"{player}.{name}"].view(-1)[1] += h
            sides.append(float(metric(gan, moved)))
        assert found == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("bandwidth", [0, -1.0, math.nan, math.inf])
def test_a_bandwidth_is_positive(bandwidth):
    with pytest.raises(ValueError, match=f"a positive number, but {bandwidth} was given"):
        gi.metrics.AverageLogLikelihood(tiny_data(3), tiny_gan().sample_latents(3, seed=0), bandwidth)


def test_chunks_do_not_change_value_or_gradient():
    gan = tiny_gan()
    results = []
    for chunk_bytes in (1, 1000, 2**25):
        metric = gi.metrics.AverageLogLikelihood(tiny_data(30), gan.sample_latents(20, seed=0), chunk_bytes=chunk_bytes)
        state = gan.state().map(lambda p: p.requires_grad_())
        value = metric(gan, state)
        results.append([value.detach(), *torch.autograd.grad(value, list(state.generator.values()))])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads peak memory from /proc")
def test_ten_thousand_squared_fits_in_one_gigabyte():
    script = textwrap.dedent("""
        import torch, gan_influence as gi
        def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 2**20
        before = peak()
        gan = gi.models.fcgan()
        metric = gi.metrics.AverageLogLikelihood(gi.data.normal_2d(valid=10_000).valid, gan.sample_latents(10_000, seed=0))
        state = gan.state().map(lambda p: p.requires_grad_())
        torch.autograd.grad(metric(gan, state), list(state.generator.values()))
        print(peak() - before)
    """)
    assert float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout) < 1.0


def test_discriminator_loss_is_the_loss_of_the_game():
    gan, x = tiny_gan(), tiny_data(9)
    z = gan.sample_latents(7, seed=1)
    real, fake = gan.discriminator(x)[:, 0], gan.discriminator(gan.generator(z))[:, 0]
    expected = torch.log1p(torch.exp(-real)).mean() + torch.log1p(torch.exp(fake)).mean()
    torch.testing.assert_close(gi.metrics.DiscriminatorLoss(x, z)(gan, gan.state()), expected.detach())
    assert not gi.metrics.DiscriminatorLoss.higher_is_better and gi.metrics.AverageLogLikelihood.higher_is_better


def test_agreement_counts_what_it_says():
    estimate = np.arange(200.0)
    truth = estimate.copy()
    truth[[0, 150]] = truth[[150, 0]]  # one of the ten lowest leaves
    found = gi.agreement(estimate, truth)
    assert found.jaccard_lowest == pytest.approx(9 / 11) and found.jaccard_highest == 1.0 and found.jaccard == pytest.approx(19 / 21)
    assert found.kendall_tau == pytest.approx(stats.kendalltau(estimate, truth).statistic)
    assert gi.agreement(3 * truth + 1, truth).slope == pytest.approx(3) and gi.agreement(-truth, truth).pearson == pytest.approx(-1)
    assert (found.n, found.k) == (200, 10)


def test_jaccard_by_chance_is_the_average_of_random_estimates():
    random = np.random.default_rng(0)
    truth = random.standard_normal(60)
    measured = [gi.agreement(random.standard_normal(60), truth, k=5).jaccard for _ in range(1500)]
    expected = gi.agreement(truth, truth, k=5).jaccard_by_chance
    assert np.mean(measured) == pytest.approx(expected, abs=4 * np.std(measured) / 1500**0.5)
    assert gi.agreement(np.arange(200.0), np.arange(200.0)).jaccard_by_chance == pytest.approx(0.053, abs=1e-3)  # as published


def test_agreement_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="same two or more instances, got 10 and 5"):
        gi.agreement(np.arange(10.0), np.arange(5.0))
    with pytest.raises(ValueError, match="NaN or infinite"):
        gi.agreement([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="k is a whole number, 1 or more, but got 0"):
        gi.agreement([1.0, 2.0], [1.0, 2.0], k=0)


def test_agreement_with_what_has_no_order_is_no_number():
    for found in (gi.agreement(np.arange(9.0), np.zeros(9)), gi.agreement(np.zeros(9), np.arange(9.0))):
        assert np.isnan([found.kendall_tau, found.jaccard, found.jaccard_lowest, found.jaccard_highest, found.pearson, found.slope]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_agreement_of_tensors_of_any_precision(dtype):
    scores = torch.arange(9.0, dtype=dtype).requires_grad_()
    assert gi.agreement(scores, list(range(9))).slope == pytest.approx(1)


def test_harmful_means_that_removal_improves():
    scores = torch.tensor([1.0, -2.0])
    gan = tiny_gan()
    assert torch.equal(gi.harmfulness(scores, tiny_metric(gan)), scores)
    assert torch.equal(gi.harmfulness(scores, gi.metrics.DiscriminatorLoss(tiny_data(2), gan.sample_latents(2, seed=0))), -scores)


def test_data_are_drawn_as_published():
    parts = gi.data.normal_2d(train=200_000, valid=10, test=10, seed=1)
    torch.testing.assert_close(parts.train.mean(0), torch.ones(2, dtype=torch.float64), atol=0.01, rtol=0)
    torch.testing.assert_close(parts.train.T.cov(), torch.tensor([[1, 0.8], [0.8, 1]], dtype=torch.float64), atol=0.02, rtol=0)
    assert torch.equal(parts.valid, gi.data.normal_2d(train=5, valid=10, test=3, seed=1).valid)
    assert not torch.equal(parts.valid, parts.test)


def test_the_sliced_distance_is_scipys_in_one_dimension_and_turns_with_the_plane():
    from scipy.stats import wasserstein_distance
    gan = tiny_gan()
    z, x = gan.sample_latents(50, seed=1), tiny_data(50)
    made = gan.generate(gan.state(), z)
    metric = gi.metrics.SlicedWasserstein(x, z, directions=400)
    by_scipy = np.mean([wasserstein_distance((x @ e).numpy(), (made @ e).numpy()) for e in metric.directions])
    assert float(metric(gan, gan.state())) == pytest.approx(by_scipy, rel=1e-10)
    assert torch.allclose(metric.directions.norm(dim=1), torch.ones(400, dtype=torch.float64)) and abs(metric.directions.mean()) < .1
    with pytest.raises(ValueError, match="pairs instances with generated ones, but there are 50 and 49"):
        gi.metrics.SlicedWasserstein(x, z[1:])


def test_the_kernel_distance_is_the_unbiased_estimator_pair_by_pair():
    gan = tiny_gan()
    z, x = gan.sample_latents(6, seed=1), tiny_data(8)
    made = gan.generate(gan.state(), z)

    def kernel(a, b):
        return (float(a @ b) / 2 + 1) ** 3

    within = [np.mean([kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, made)]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in made])
    metric = gi.metrics.KernelDistance(torch.nn.Identity(), x, z, chunk=4)
    state = gan.state().map(torch.Tensor.requires_grad_)
    found = metric(gan, state)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(found, list(state.generator.values())))
    with pytest.raises(ValueError, match="takes pairs of images, but there are 8 real ones and 1 latents"):
        gi.metrics.KernelDistance(torch.nn.Identity(), x, z[:1])
