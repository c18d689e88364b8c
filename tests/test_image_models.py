"""The convolutional networks, and the classifier with its cache."""

import json
import sys

import pytest
import torch
from images import mnist_root
from torch import nn

import gan_influence as gi
from gan_influence.models import classifier, load_classifier, train_classifier
from gan_influence.models.dcgan import KERNELS, STRIDES


def test_dcgan_is_the_published_architecture():
    gan = gi.models.dcgan()
    x = gan.generate(gan.state(), gan.sample_latents(3, seed=0))
    assert x.shape == (3, 1, 28, 28) and x.abs().max() <= 1 and gan.discriminator(x).shape == (3, 1)
    assert (KERNELS, STRIDES) == ((4, 3, 3, 2, 3, 3, 2), (1, 2, 1, 1, 2, 1, 1))
    for module, convolution, order in ((gan.generator, nn.ConvTranspose2d, -1), (gan.discriminator, nn.Conv2d, 1)):
        layers = [layer for layer in module if isinstance(layer, convolution) and layer.out_channels == 32]
        assert [(layer.kernel_size[0], layer.stride[0], layer.padding) for layer in layers] == [(k, s, (0, 0)) for k, s in zip(KERNELS, STRIDES)][::order]
        after = [(module[i + 1], module[i + 2]) for i, layer in enumerate(module) if layer in layers]
        assert all(isinstance(a, nn.Sigmoid) and isinstance(b, nn.GroupNorm) and b.num_groups == 1 for a, b in after) and len(after) == 7
    assert gan.weight_decay == 1e-3 and gan.latent_dim == 32 and gan.dtype == torch.float32


def test_dcgan_normalises_each_image_over_channels_and_space():
    gan = gi.models.dcgan(width=4)
    seen = []
    for layer in [one for network in gan.networks for one in network]:
        if isinstance(layer, nn.GroupNorm):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0], output)))
    gan.discriminate(gan.state(), gan.generate(gan.state(), gan.sample_latents(3, seed=0)))
    assert len(seen) == 14
    for h, output in seen:
        mean, variance = h.mean((1, 2, 3), keepdim=True), h.var((1, 2, 3), keepdim=True, unbiased=False)
        torch.testing.assert_close(output, (h - mean) / variance.sqrt(), rtol=1e-4, atol=1e-4)


def test_dcgan_is_a_function_of_its_seed_and_trains():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        one, again, other = (gi.models.dcgan(seed, width=2).state() for seed in (1, 1, 2))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), again.tensors()))
    assert not torch.equal(one.generator["1.weight"], other.generator["1.weight"])
    gan = gi.models.dcgan(width=2)
    run = gi.train(gan, gi.data.digits(train=20).train, epochs=2, batch_size=10, order="simultaneous")
    assert run.final.is_finite() and not torch.equal(run.final.generator["1.weight"], run.initial.generator["1.weight"])
    alone = gi.retrain(run, [3, 4], last_epochs=1)
    together = gi.retrain(run, [[3, 4], [5]], last_epochs=1)[0]
    torch.testing.assert_close(together.generator, alone.generator, rtol=1e-4, atol=1e-6)


def two_classes(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(n) % 2
    return (2 * labels - 1).float()[:, None, None, None].expand(n, 1, 28, 28).contiguous(), labels


def test_features_are_what_the_logits_are_made_of():
    module, images = classifier(seed=3), gi.data.digits().valid[:9]
    features = module.features(images)
    assert features.shape == (9, 128) and (0 < features).all() and (features < 1).all() and not module.training
    torch.testing.assert_close(module(images), features @ module.head.weight.T + module.head.bias)
    assert isinstance(module.features, nn.Module)


def test_classifier_learns_digits_and_metrics_take_it():
    parts = gi.data.digits()
    trained = train_classifier(parts.valid, parts.labels.valid, steps=300, test=(parts.test, parts.labels.test))
    assert trained.accuracy["test"] > 0.85 and not any(p.requires_grad for p in trained.parameters()) and not trained.training
    gan = gi.models.dcgan(width=2)
    metrics = {"FID": gi.metrics.FrechetDistance(trained.features, parts.valid, gan.sample_latents(130, seed=0)),
               "IS": gi.metrics.InceptionScore(trained, gan.sample_latents(50, seed=0))}
    run = gi.train(gan, parts.train[:40], epochs=1, batch_size=20, order="simultaneous")
    assert all(scores.isfinite().all() and scores.any() for scores in gi.influence(run, metrics).values())


def test_classifier_reaches_97_percent_on_mnist():
    parts = gi.data.mnist(mnist_root(), train=1)
    assert len(parts.valid) == 10_000
    assert train_classifier(parts.valid, parts.labels.valid, test=(parts.test, parts.labels.test)).accuracy["test"] >= 0.97


def test_cache_returns_the_classifier_that_was_trained(tmp_path, recwarn):
    images, labels = two_classes()
    trained = train_classifier(images, labels, steps=20, test=(images, labels), cache=tmp_path / "cache")
    header = json.loads((tmp_path / "cache" / "classifier.json").read_text())
    assert header["accuracy"] == trained.accuracy and header["classifier"] == 2 and header["classes"] == 2 and header["images"]
    written = (tmp_path / "cache" / "states.safetensors").stat().st_mtime_ns
    kept = train_classifier(images, labels, steps=20, cache=tmp_path / "cache")
    assert torch.equal(kept(images), trained(images)) and kept.accuracy == trained.accuracy
    assert torch.equal(load_classifier(tmp_path / "cache")(images), trained(images))
    assert (tmp_path / "cache" / "states.safetensors").stat().st_mtime_ns == written and not recwarn.list


def test_a_cache_from_elsewhere_is_trained_again_and_said_so(tmp_path, monkeypatch):
    images, labels = two_classes()
    train_classifier(images, labels, steps=5, cache=tmp_path)
    for changed, reason in (({"images": -images}, "another images"), ({"labels": 1 - labels}, "another labels"),
                            ({"seed": 1}, "another seed: the file says 0, wanted is 1")):
        with pytest.warns(UserWarning, match=f"{reason}.*trained again"):
            train_classifier(**{"images": images, "labels": labels, "steps": 5, "cache": tmp_path, **changed})
        with pytest.warns(UserWarning, match="trained again"):
            train_classifier(images, labels, steps=5, cache=tmp_path)
    monkeypatch.setattr(sys.modules["gan_influence.models.classifier"], "VERSION", 3)
    with pytest.raises(ValueError, match="classifier of another version: the file says 2, wanted is 3"):
        load_classifier(tmp_path)
    with pytest.warns(UserWarning, match="another version"):
        train_classifier(images, labels, steps=5, cache=tmp_path)
    assert load_classifier(tmp_path).accuracy
    whole = (tmp_path / "states.safetensors").read_bytes()
    (tmp_path / "states.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="does not hold a whole classifier: it may be truncated"):
        load_classifier(tmp_path)
    with pytest.warns(UserWarning, match="truncated"):
        train_classifier(images, labels, steps=5, cache=tmp_path)
    assert (tmp_path / "states.safetensors").read_bytes()[-100:] == whole[-100:]


@pytest.mark.parametrize("spoil, message", [
    (lambda x, y: (x * 127.5 + 127.5, y), r"must lie in \[-1, 1\].*lie in \[0, 255\]: rescale"),
    (lambda x, y: (x, y[:5]), r"a label for every training image, \(40,\).*shape \(5,\)"),
    (lambda x, y: (x, None), "got None"),
    (lambda x, y: (x, y.float()), "got torch.float32"),
    (lambda x, y: (x[..., :20, :20], y), r"takes images \(n, 1, 28, 28\).*\(40, 1, 20, 20\)"),
    (lambda x, y: (x * float("nan"), y), r"must lie in \[-1, 1\]"),
])
def test_what_the_classifier_refuses(spoil, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(*spoil(*two_classes()))
