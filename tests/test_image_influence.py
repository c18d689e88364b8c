"""Influence on Fréchet distance and Inception score through convolutions, against differentiation of the whole unrolled run."""

import pytest
import torch
from images import tiny_image_gan, tiny_images
from textbook import textbook_run
from torch import nn

import gan_influence as gi
from gan_influence.experiments import fractional_leave_one_out


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


def test_equals_the_slope_of_removing_a_little():
    run = image_run("simultaneous")
    for metric in image_metrics(run.gan).values():
        scores = gi.influence(run, metric)
        slopes = fractional_leave_one_out(run, metric, range(run.n), fraction=1e-5)
        assert float((scores - slopes).abs().max() / scores.abs().max()) < 1e-3, metric.name
