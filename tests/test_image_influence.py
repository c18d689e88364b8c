"""Influence on Fréchet distance and Inception score through convolutions, against differentiation of the whole unrolled run."""

from functools import partial

import pytest
import torch
from images import tiny_image_gan, tiny_images
from textbook import textbook_run
from torch import nn

import gan_influence as gi
from gan_influence.studies.experiments import fractional_leave_one_out


def networks(device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """A classifier of 3 classes and its 4 features, as a user would bring them: ReLU, max pooling, dropout and batch statistics in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 4), nn.Sigmoid(), nn.Dropout())
        features.to(device, torch.float64)(tiny_images(40, seed=2).to(device))  # gives batch normalisation its statistics
        head = nn.Linear(4, 3, device=device, dtype=torch.float64)
    head.weight.data.mul_(30)  # sure enough of its classes for the score to move
    return features.eval(), nn.Sequential(features, head).eval()


def image_metrics(gan: gi.GAN, device: str = "cpu") -> dict:
    features, classifier = networks(device)
    return {"FID": gi.metrics.FrechetDistance(features, tiny_images(30, seed=3).to(device), gan.sample_latents(20, seed=4), chunk=7),
            "IS": gi.metrics.InceptionScore(classifier, gan.sample_latents(20, seed=5), chunk=7),
            "log IS": gi.metrics.LogInceptionScore(classifier, gan.sample_latents(20, seed=6), chunk=7)}


def image_run(order: str, device: str = "cpu") -> gi.Trajectory:
    return gi.train(tiny_image_gan(device, weight_decay=1e-2), tiny_images(20).to(device), epochs=3, batch_size=5, optimizer=gi.SGD(0.3), order=order)


def plain_value(name: str, metric, gan: gi.GAN, state: gi.State) -> torch.Tensor:
    """The same metric written down without chunks, with matrix roots by eigenvectors."""
    images = gan.generate(state, metric.latents)
    if name == "FID":
        real, fake = metric.features(tiny_images(30, seed=3).to(images)), metric.features(images)
        a, b = real.T.cov(), fake.T.cov()
        values, vectors = torch.linalg.eigh(a)
        root = vectors * values.sqrt() @ vectors.T
        return ((real.mean(0) - fake.mean(0)) ** 2).sum() + (a + b).trace() - 2 * torch.linalg.eigvalsh(root @ b @ root).sqrt().sum()
    p = metric.classifier(images).softmax(1)
    log = (p * (p / p.mean(0)).log()).sum(1).mean()
    return log if name == "log IS" else log.exp()


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_equals_differentiation_through_the_unrolled_run(order, device):
    run = image_run(order, device)
    metrics = image_metrics(run.gan, device)
    scores = gi.influence(run, metrics)
    weights = torch.ones(run.n, dtype=torch.float64, device=device, requires_grad=True)
    final = gi.State(*textbook_run(run, weights))
    for name, metric in metrics.items():
        value = plain_value(name, metric, run.gan, final)
        expected = -torch.autograd.grad(value, weights, retain_graph=True)[0].cpu()
        assert float(metric(run.gan, run.final).detach()) == pytest.approx(value.item(), rel=1e-10)
        assert float((scores[name] - expected).abs().max() / expected.abs().max()) < 1e-8


def test_one_sweep_of_several_metrics_equals_one_sweep_each():
    run = image_run("alternating")
    metrics = image_metrics(run.gan)
    together = gi.influence(run, metrics, last_epochs=2)
    for name, metric in metrics.items():
        alone = gi.influence(run, metric, last_epochs=2)
        torch.testing.assert_close(together[name], alone, rtol=1e-10, atol=0)
        assert alone.abs().min() > 0
    assert not torch.allclose(together["FID"] / together["FID"].norm(), together["IS"] / together["IS"].norm(), atol=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slope_of_removing_a_little(seed):
    run = gi.train(tiny_image_gan(weight_decay=1e-2), tiny_images(20), epochs=3, batch_size=5, optimizer=gi.SGD(0.03), order="simultaneous", seed=seed)
    for metric in image_metrics(run.gan).values():
        scores = gi.influence(run, metric)
        slopes = sum(fractional_leave_one_out(run, metric, range(run.n), fraction) for fraction in (1e-4, -1e-4)) / 2
        assert float((scores - slopes).abs().max() / scores.abs().max()) < 1e-3, metric.name


def test_convolutions_compile():
    """Their gradients come in another memory layout than their parameters, which a compiled function does not forgive."""
    gan, x = tiny_image_gan(), tiny_images()
    run = gi.train(gan, x, epochs=2, batch_size=5, optimizer=gi.SGD(0.1), order="simultaneous", seed=0)
    metric = gi.metrics.AverageLogLikelihood(x, gan.sample_latents(10, seed=1))
    eager, fast = gi.influence(run, metric), gi.influence(run, metric, compile=True)
    torch.testing.assert_close(fast, eager, rtol=1e-9, atol=1e-15)


class Crowded(gi.metrics.DiscriminatorLoss):
    """Memory for three instances at once: in the gradient's case, found out only on the way back."""

    def __init__(self, x, latents, chunk, backwards):
        super().__init__(x, latents, chunk)
        self.backwards, self.asked = backwards, []

    def __call__(self, gan, state):
        self.asked.append(self.chunk)
        value = super().__call__(gan, state)
        if self.chunk > 3 and self.backwards:
            value.register_hook(self.run_out)
        elif self.chunk > 3:
            self.run_out()
        return value

    def run_out(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_metrics_take_smaller_chunks_when_memory_runs_out():
    gan, x = tiny_image_gan(), tiny_images()
    run = gi.train(gan, x, epochs=1, batch_size=5, optimizer=gi.SGD(0.1), seed=0)
    latents = gan.sample_latents(10, seed=1)
    plain, crowded = gi.metrics.DiscriminatorLoss(x, latents), partial(Crowded, x, latents, 12)
    torch.testing.assert_close(gi.influence(run, metric := crowded(True)), gi.influence(run, plain), rtol=1e-9, atol=1e-15)
    assert metric.asked == [12, 6, 3, 3]
    torch.testing.assert_close(gi.leave_one_out(run, metric := crowded(False), [0, 7]), gi.leave_one_out(run, plain, [0, 7]), rtol=1e-6, atol=1e-15)
    assert metric.asked[:3] == [12, 6, 3] and set(metric.asked[3:]) == {3}
    scores = {"random": gi.random_scores(run.n)}
    first, second = (gi.cleanse(run, scores, [0.2], m, m).rows[0]["test_after"] for m in (crowded(False), plain))
    assert first == pytest.approx(second, rel=1e-12)
    with pytest.raises(torch.OutOfMemoryError):  # one instance alone does not fit
        gi.influence(run, lambda gan, state: crowded(False).run_out())
