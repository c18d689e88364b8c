"""Inception score and Fréchet distance against scipy, finite differences, closed forms, themselves in other chunks."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from scipy import linalg, special
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan
from gan_influence.metrics import FrechetDistance, InceptionScore, LogInceptionScore
from gan_influence.tools.vision import torchvision


def network(outputs: int, inputs: int = 2, dtype=torch.float64, scale: float = 1.0) -> nn.Module:
    """A smooth random network; `scale` multiplies its output."""
    with torch.random.fork_rng():
        torch.manual_seed(8)
        layers = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs)).to(dtype).eval().requires_grad_(False)
    layers[2].weight.data.mul_(scale)
    return layers


def spread(gan: gi.GAN, scale: float = 3.0) -> gi.State:
    """The GAN's state with a generator whose points differ more."""
    state = gan.state()
    return state._replace(generator={name: scale * p for name, p in state.generator.items()})


def value_and_gradient(metric, gan, state):
    state = state.map(lambda p: p.detach().requires_grad_())
    value = metric(gan, state)
    return value.detach(), torch.autograd.grad(value, list(state.generator.values()))


def scipy_frechet(real: np.ndarray, fake: np.ndarray) -> float:
    a, b = np.cov(real.T), np.cov(fake.T)
    return ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)


def frechet(gan, features=None, n: int = 40, **options) -> FrechetDistance:
    return FrechetDistance(features or network(5), 2 * tiny_data(30).to(gan.device), gan.sample_latents(n, seed=1), **options)


MAKES = {
    "Inception score": lambda gan, **options: InceptionScore(network(4, scale=3).to(gan.device), gan.sample_latents(40, seed=1), **options),
    "log Inception score": lambda gan, **options: LogInceptionScore(network(4, scale=3).to(gan.device), gan.sample_latents(40, seed=1), **options),
    "Fréchet distance": lambda gan, **options: frechet(gan, network(5).to(gan.device), **options),
}


@pytest.mark.parametrize("name", MAKES)
def test_gradients_equal_finite_differences(name, device):
    gan = tiny_gan(device=device)
    metric, state = MAKES[name](gan), spread(gan)
    assert metric.name == name
    _, gradient = value_and_gradient(metric, gan, state)
    for key, found in zip(state.generator, gradient):
        direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)

        def at(h, key=key, direction=direction):
            with torch.no_grad():
                return float(metric(gan, state._replace(generator=state.generator | {key: state.generator[key] + h * direction})))

        # Richardson's extrapolation of central differences: error h⁴, so that rounding stays below 1e-6
        coarse, fine = ((at(h) - at(-h)) / (2 * h) for h in (1e-3, 5e-4))
        assert float((found * direction).sum()) == pytest.approx((4 * fine - coarse) / 3, rel=1e-6)


@pytest.mark.parametrize("name", MAKES)
def test_chunks_do_not_change_value_or_gradient(name, device):
    gan = tiny_gan(device=device)
    whole, *others = [value_and_gradient(MAKES[name](gan, chunk=chunk), gan, spread(gan)) for chunk in (1000, 7, 1)]
    for value, gradient in others:
        torch.testing.assert_close(value, whole[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, whole[1], rtol=1e-10, atol=1e-12)


def test_inception_score_is_its_definition():
    gan, classifier = tiny_gan(), network(4, scale=3)
    state, z = spread(gan), gan.sample_latents(50, seed=1)
    p = special.softmax(classifier(gan.generate(state, z)).detach().numpy(), axis=1)
    expected = special.rel_entr(p, p.mean(0)).sum(1).mean()
    assert float(LogInceptionScore(classifier, z, chunk=9)(gan, state)) == pytest.approx(expected, rel=1e-12)
    assert float(InceptionScore(classifier, z, chunk=9)(gan, state)) == pytest.approx(np.exp(expected), rel=1e-12)
    assert InceptionScore.higher_is_better and LogInceptionScore.higher_is_better and not FrechetDistance.higher_is_better


class Shown(nn.Module):
    """A generator that makes of latent number i (a one-hot vector) its parameter's row i."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.as_tensor(rows, dtype=torch.float64))

    def forward(self, z):
        return z @ self.rows


def showing(rows) -> tuple[gi.GAN, torch.Tensor]:
    gan = gi.GAN(Shown(rows), nn.Linear(len(rows[0]), 1).double(), latent_dim=len(rows))
    return gan, torch.eye(len(rows), dtype=torch.float64)


def test_inception_score_lies_between_one_and_the_number_of_classes():
    for rows, expected in ((50 * np.eye(6), 6), (np.zeros((6, 6)), 1), (50 * np.eye(6)[[0] * 6], 1), (50 * np.eye(6)[[0, 0, 0, 1, 1, 1]], 2)):
        gan, z = showing(rows)
        assert float(InceptionScore(nn.Identity(), z)(gan, gan.state())) == pytest.approx(expected, rel=1e-12)
    for seed in range(20):
        gan, z = showing(np.random.default_rng(seed).standard_normal((9, 4)) * 10.0 ** (seed % 5 - 1))
        assert 1 <= float(InceptionScore(nn.Identity(), z)(gan, gan.state())) <= 4


def test_inception_score_survives_underflowing_probabilities():
    rows = 2e3 * np.eye(4)[:3]  # class 3 has probability exp(−2000) everywhere
    gan, z = showing(rows)
    value, (gradient,) = value_and_gradient(LogInceptionScore(nn.Identity(), z), gan, gan.state())
    assert float(value) == pytest.approx(np.log(3)) and gradient.isfinite().all()
    float32 = gi.GAN(nn.Linear(3, 4), nn.Linear(4, 1), latent_dim=3)
    state = float32.state()._replace(generator={"weight": torch.from_numpy(rows.T).float(), "bias": torch.zeros(4)})
    assert float(LogInceptionScore(nn.Identity(), torch.eye(3))(float32, state)) == pytest.approx(np.log(3))


def test_frechet_distance_is_the_textbook_formula(device):
    gan, features = tiny_gan(device=device), network(5).to(device)
    state, z, real = spread(gan), gan.sample_latents(40, seed=1), 2 * tiny_data(30).to(device)
    seen = [features(images).detach().cpu().numpy() for images in (real, gan.generate(state, z))]
    assert float(FrechetDistance(features, real, z, chunk=11)(gan, state)) == pytest.approx(scipy_frechet(*seen), rel=1e-9)


def test_frechet_distance_of_two_gaussians_in_closed_form():
    # points whose mean and unbiased covariance are exactly those asked for
    points = np.random.default_rng(0).standard_normal((30, 3))
    points = (points - points.mean(0)) @ linalg.inv(linalg.cholesky(np.cov(points.T)))
    a, b, gap = np.array([1.0, 2.0, 3.0]), np.array([4.0, 0.5, 3.0]), np.array([1.0, -2.0, 0.5])
    gan, z = showing(points * b + gap)
    value, (gradient,) = value_and_gradient(FrechetDistance(nn.Identity(), torch.from_numpy(points * a), z), gan, gan.state())
    assert float(value) == pytest.approx((gap**2).sum() + ((a - b) ** 2).sum(), rel=1e-12)
    # moving point i by h: the mean by h/n, and standard deviation k towards its own (1 − a/b of the way back)
    expected = 2 * gap / 30 + 2 * (1 - a / b) * points * b / 29
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("a, b", [((1, 1, 1, 1), (1, 1, 1, 1)), ((2, 2, 2, 2), (3, 3, 3, 3)), ((1, 1, 2, 2), (3, 3, 3, 3))])
def test_frechet_gradient_where_eigenvalues_coincide(a, b):
    points = np.random.default_rng(0).standard_normal((30, 4))
    points = (points - points.mean(0)) @ linalg.inv(linalg.cholesky(np.cov(points.T)))
    turned = points @ linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]  # spherical either way
    gan, z = showing((turned if len(set(b)) == 1 else points) * b)
    metric = FrechetDistance(nn.Identity(), torch.from_numpy(points * a), z)
    value, (gradient,) = value_and_gradient(metric, gan, gan.state())
    assert float(value) == pytest.approx(sum((np.array(a) - b) ** 2), abs=1e-12)
    direction = torch.from_numpy(np.random.default_rng(2).standard_normal((30, 4)))
    sides = [float(metric(gan, gi.State({"rows": gan.state().generator["rows"] + h * direction}, {}))) for h in (1e-4, -1e-4)]
    assert float((gradient * direction).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-6, abs=2e-8)
    assert gradient.isfinite().all()


def test_frechet_distance_with_dead_features_and_a_collapsed_generator():
    real = np.random.default_rng(0).standard_normal((40, 4))
    fake = 2 * np.random.default_rng(1).standard_normal((40, 4)) + 1
    real[:, 1], real[:, 2], fake[:, 2] = 0.5, 0, 0  # one that only varies in generated images, one that varies nowhere
    gan, z = showing(fake)
    metric = FrechetDistance(nn.Identity(), torch.from_numpy(real), z)
    value, (gradient,) = value_and_gradient(metric, gan, gan.state())
    alive = FrechetDistance(nn.Identity(), torch.from_numpy(real[:, [0, 3]]), z)
    gan_alive, _ = showing(fake[:, [0, 3]])
    expected, (expected_gradient,) = value_and_gradient(alive, gan_alive, gan_alive.state())
    assert float(value) == pytest.approx(float(expected) + (fake[:, 1].mean() - 0.5) ** 2 + fake[:, 1].var(ddof=1), rel=1e-12)
    torch.testing.assert_close(gradient[:, [0, 3]], expected_gradient, rtol=1e-9, atol=1e-12)
    collapsed, z = showing(np.ones((40, 4)))
    value, (gradient,) = value_and_gradient(metric, collapsed, collapsed.state())
    assert float(value) == pytest.approx(((1 - real.mean(0)) ** 2).sum() + np.trace(np.cov(real.T))) and gradient.isfinite().all()


def test_frechet_distance_far_from_the_origin_loses_no_digits():
    points = np.random.default_rng(0).standard_normal((60, 3))
    gan, z = showing(2 * points)
    shifted, _ = showing(2 * points + 1e6)
    near = FrechetDistance(nn.Identity(), torch.from_numpy(points), z, chunk=7)(gan, gan.state())
    far = FrechetDistance(nn.Identity(), torch.from_numpy(points + 1e6), z, chunk=7)(shifted, shifted.state())
    assert float(far) == pytest.approx(float(near), rel=1e-8)


def test_agrees_with_torch_fidelity():
    try:
        torchvision()  # which torch-fidelity imports, without repairing it
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_isc import isc_features_to_metric
    except ImportError as error:
        pytest.skip(str(error))
    gan = tiny_gan()
    state, z, real = spread(gan), gan.sample_latents(40, seed=1), 2 * tiny_data(30)
    seen = [network(5)(images).detach() for images in (gan.generate(state, z), real)]
    expected = fid_statistics_to_metric(*map(fid_features_to_statistics, seen), verbose=False)["frechet_inception_distance"]
    assert float(FrechetDistance(network(5), real, z)(gan, state)) == pytest.approx(expected, rel=1e-6)
    expected = isc_features_to_metric(seen[0], splits=1)["inception_score_mean"]
    assert float(InceptionScore(network(5), z)(gan, state)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(5), nn.Dropout(0.3)])
def test_a_network_in_training_mode_is_refused(layer):
    gan, trained = tiny_gan(), nn.Sequential(network(5), layer.double())
    for make in (lambda: frechet(gan, trained.train()), lambda: InceptionScore(trained.train(), gan.sample_latents(9, seed=0))):
        with pytest.raises(ValueError, match=rf"layer '1' of Sequential is {type(layer).__name__} in training mode: call .eval\(\)"):
            make()
    metric = frechet(gan, trained.eval())
    trained.train()
    with pytest.raises(ValueError, match="training mode"):  # not only when the metric is made
        metric(gan, gan.state())


def test_networks_may_be_functions_and_methods():
    gan, module = tiny_gan(), network(5)
    expected = float(frechet(gan, module)(gan, gan.state()))
    assert float(frechet(gan, lambda images: module(images))(gan, gan.state())) == expected
    assert float(frechet(gan, module.forward)(gan, gan.state())) == expected
    dropping = nn.Sequential(module, nn.Dropout())
    with pytest.raises(ValueError, match="layer '1' of Sequential is Dropout in training mode"):
        frechet(gan, dropping.forward)


def test_what_metrics_refuse():
    gan = tiny_gan()
    for n, m, what in ((5, 30, "there are 5 latents"), (30, 5, "there are 5 real images")):
        with pytest.raises(ValueError, match=f"covariance of 5 features takes at least 6 samples, but {what}: take more"):
            FrechetDistance(network(5), tiny_data(m), gan.sample_latents(n, seed=0))
    FrechetDistance(network(5), tiny_data(6), gan.sample_latents(6, seed=0))
    real = tiny_data(30)
    real[[4, 9], 0] = float("nan")
    with pytest.raises(ValueError, match=r"2 of 30 real images have a NaN or infinite one \(the first: number 4"):
        FrechetDistance(network(5), real, gan.sample_latents(40, seed=0))
    broken = gan.state().map(lambda p: p * float("nan"))
    for metric in (frechet(gan), LogInceptionScore(network(4), gan.sample_latents(40, seed=0))):
        with pytest.raises(ValueError, match="40 of 40 generated images have a NaN or infinite one"):
            metric(gan, broken)
    with pytest.raises(ValueError, match=r"logits of two or more classes.*\(40, 1\)"):
        InceptionScore(network(1), gan.sample_latents(40, seed=0))(gan, gan.state())
    with pytest.raises(ValueError, match=r"one row per image.*shape \(30, 2, 1\)"):
        FrechetDistance(nn.Unflatten(1, (2, 1)), tiny_data(30), gan.sample_latents(40, seed=0))
    with pytest.raises(TypeError, match="torch.nn.Module or a function of images, got str"):
        InceptionScore("inception", gan.sample_latents(4, seed=0))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads peak memory from /proc")
def test_memory_does_not_grow_with_the_sample():
    script = textwrap.dedent("""
        import sys, torch, gan_influence as gi
        from torch import nn
        torch.set_num_threads(1)
        def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 2**10
        gan = gi.GAN(nn.Sequential(nn.Linear(8, 784), nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 1, 3)),
                     nn.Sequential(nn.Flatten(), nn.Linear(576, 1)), latent_dim=8)
        features = nn.Sequential(nn.Flatten(), nn.Linear(576, 32), nn.Sigmoid())
        def measure(n):
            z = gan.sample_latents(n, seed=0)
            state = gan.state().map(lambda p: p.requires_grad_())
            for metric in (gi.metrics.FrechetDistance(features, torch.randn(500, 1, 24, 24), z), gi.metrics.InceptionScore(features, z)):
                torch.autograd.grad(metric(gan, state), list(state.generator.values()))
            return peak()
        few = measure(500)
        print(measure(4_000) - few)
    """)
    grown = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert grown < 25, f"{grown:.0f} MiB more for 3500 more images"  # keeping one layer's activations would take 72
