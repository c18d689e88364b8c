"""Low-rank adapters: nothing changes before the first step, nothing else trains, and their influences are exact."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_faces import skipped_unless_here
from test_stylegan import MeanSquare, through_the_unrolled_run, tiny_images, tiny_run, tiny_style_gan
from torch import nn

import gan_influence as gi
from gan_influence.studies import adapted, pretrained
from gan_influence.studies.protocols import Adaptation, Pretraining
from gan_influence.studies.released import Question, released_2025, released_aid


def noisy_gan() -> gi.GAN:
    """A style-based GAN, float32, whose noise has some strength."""
    gan = gi.models.stylegan(size=8, width=3, seed=1)
    nn.init.constant_(gan.generator.noise, 0.3)
    return pretrained.holding(gan, gan.state().named() | {"generator.noise": gan.generator.noise.detach()})


GANS = {"style-based": noisy_gan, "transposed convolutions": lambda: gi.models.dcgan(width=6),
        "fully connected": gi.models.fcgan}


@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_until_the_first_step_nothing_has_changed_bit_for_bit(make):
    gan = make()
    other, z = gi.models.adapted(gan, rank=4), gan.sample_latents(3, seed=2)
    fake = gan.generate(gan.state(), z)
    assert torch.equal(other.generate(other.state(), z), fake) and torch.equal(gan.generate(gan.state(), z), fake)
    assert torch.equal(other.discriminate(other.state(), fake), gan.discriminate(gan.state(), fake))
    assert any(p.any() for name, p in other.state().generator.items() if name.endswith(".A")) and other.penalty == gan.penalty


@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_every_linear_layer_and_convolution_has_an_adapter_and_nothing_else_trains(make):
    gan = make()
    other = gi.models.adapted(gan, rank=2)
    for module, own in zip((gan.generator, gan.discriminator), other.state()[:2]):
        layers = [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
        assert layers and set(own) == {f"{name}.parametrizations.weight.0.{factor}" for name in layers for factor in "AB"}
    assert all(p.requires_grad for p in gan.generator.parameters())  # what was given is as it was


def test_training_moves_weights_within_the_adapters_rank_alone():
    gan = tiny_style_gan()
    run = tiny_run(gi.models.adapted(gan, rank=2))
    run.gan.load(run.final)
    before, moved = gan.generator.state_dict(), []
    for name, layer in run.gan.generator.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        assert torch.equal(layer.parametrizations.weight.original, before[f"{name}.weight"]) and torch.equal(layer.bias, before[f"{name}.bias"])
        moved.append((layer.weight - before[f"{name}.weight"]).flatten(1))
    assert all(0 < torch.linalg.matrix_rank(change, rtol=1e-10) <= 2 for change in moved)
    assert torch.equal(run.gan.generator.noise, gan.generator.noise) and torch.equal(run.gan.generator.start, gan.generator.start)


def test_influence_is_autograd_through_the_whole_run():
    gan = gi.models.adapted(tiny_style_gan(), rank=2)
    run, metric = tiny_run(gan), MeanSquare(gan)
    scores, expected = gi.influence(run, metric), through_the_unrolled_run(run, metric)
    assert scores.abs().min() > 0 and (scores - expected).norm() <= 1e-12 * expected.norm()


def test_scores_predict_leave_one_out_of_the_last_epoch():
    gan = gi.models.adapted(tiny_style_gan(), rank=2)
    run, metric = gi.train(gan, tiny_images(24), 6, 4, gi.SGD(0.05), average=0.9), MeanSquare(gan)
    truth = gi.leave_one_out(run, metric, range(24), last_epochs=1)
    assert gi.agreement(gi.influence(run, metric, last_epochs=1), truth).kendall_tau > 0.95


def test_normalised_layers_keep_their_normalisation():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)))
    discriminator = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, 6)), nn.Tanh(), nn.Linear(6, 1))
    gan = gi.models.adapted(gi.GAN(generator.double(), discriminator.double(), latent_dim=3), rank=1)
    assert {"3.parametrizations.weight.1.A", "0.parametrizations.weight.1.B"} <= set(gan.state().generator) | set(gan.state().discriminator)
    run = gi.train(gan, torch.randn(12, 2, dtype=torch.float64), 2, 4, gi.SGD(0.1))
    metric = MeanSquare(gan)
    assert torch.allclose(gi.influence(run, metric), through_the_unrolled_run(run, metric), rtol=1e-10)


def test_the_released_estimators_see_the_recorded_noise():
    gan = gi.models.adapted(tiny_style_gan(), rank=2)
    question = Question(tiny_run(gan), MeanSquare(gan), 1, tiny_images())
    for method in (released_2025, lambda question: released_aid(question, iterations=3)):
        torch.manual_seed(0)
        scores = method(question)
        torch.manual_seed(1)
        assert scores.any() and torch.equal(scores, method(question))


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(2))

    def forward(self, z):
        return self.p + z


@pytest.mark.parametrize("generator, discriminator, rank, sentence", [
    (Constant(), nn.Linear(2, 1), 1, r"linear layers and convolutions, but the generator \(Constant\) has none: train it as it is"),
    (nn.Linear(2, 2), Constant(), 1, r"but the discriminator \(Constant\) has none"),
    (nn.Linear(2, 2), torch.nn.utils.spectral_norm(nn.Linear(2, 1)), 1, "an older hook computes that of layer '' of the discriminator"),
    (nn.Linear(2, 2), nn.Linear(2, 1), 2, r"rank is at most its layer's, but 2 is more than any of the discriminator's admits \(1 at most\): take less"),
    (nn.Linear(2, 2), nn.Linear(2, 1), 0, "an adapter's rank is a whole number, 1 or more, but got 0")])
def test_what_cannot_be_adapted_is_refused(generator, discriminator, rank, sentence):
    with pytest.raises(ValueError, match=sentence):
        gi.models.adapted(gi.GAN(generator, discriminator, latent_dim=2), rank)


def test_pretraining_leaves_the_average_and_the_discriminator():
    skipped_unless_here()
    config = replace(Pretraining(), n=16, epochs=2, batch_size=8, width=3, discriminator_width=2, held_out=4, latents=4)
    (piece,), setup = config.pieces, config.prepare(0)
    parts, weights = config.measure(setup, 0, piece, False)
    gan = pretrained.holding(pretrained.fresh(config, 5, None), weights)
    assert {name: p.shape for name, p in gan.state().named().items()} == {name: p.shape for name, p in weights.items()}
    assert all(torch.equal(p, weights[name]) for name, p in gan.state().named().items())
    assert parts["summary"][0]["after"] == float(setup.judge(gan, gan.state())) != parts["summary"][0]["before"]


def test_the_recorded_network_makes_different_faces():
    gan = pretrained.pretrained()
    assert gi.experiments.recorded_pieces("stylegan_faces", Pretraining()) == {(0, "weights")}
    fake = gan.generate(gan.state(), gan.sample_latents(50, seed=0))
    assert fake.std(0).mean() > 0.1 and gan.penalty == gi.R1(10.0)


def test_an_adaptation_is_measured_piece_by_piece(monkeypatch):
    skipped_unless_here()
    monkeypatch.setattr(adapted, "face_judge", lambda style: adapted.Halved(nn.Sequential(nn.AvgPool2d(8), nn.Flatten())).eval())
    config = replace(Adaptation(), n=40, epochs=2, batch_size=4, planted=.1, held_out=20, latents=20, fractions=(.05, .2), full=(.2,), probes=8,
                     estimators=("exact", "released 2025"))
    found = config.prepare(0)
    assert {kind: int((found.data.planted == kind).sum()) for kind in config.kinds} == dict.fromkeys(config.kinds, 4)
    assert set(found.scores) == set(config.methods) and all(one.shape == (40,) and one.isfinite().all() for one in found.scores.values())
    parts, tensors = config.measure(found, 0, "one epoch", False)
    assert [len(parts[part]) for part in ("summary", "picked", "planted")] == [6, 3, 9] and {row["last_epochs"] for row in parts["summary"]} == {1}
    assert all(torch.equal(tensors[f"before|{name}"], p) for name, p in found.run.final.average.items())
    parts, _ = config.measure(found, 0, "full", False)
    assert {(row["last_epochs"], row["n_removed"]) for row in parts["summary"]} == {(2, 8)}
    exact, released = config.measure(found, 0, "agreement", False)[0]["agreement"]
    assert exact["kendall_tau"] > released["kendall_tau"] and abs(exact["slope"] - 1) < abs(released["slope"] - 1)


def test_what_is_planted_is_found_by_its_rank():
    planted = np.array(["none", "none", "noise", "inverted", "none"])
    found = SimpleNamespace(data=SimpleNamespace(planted=planted), scores={"best": torch.tensor([0, 1, 3, 3, 2]), "middling": torch.tensor([0, 2, 1, -1, 1])})
    assert {(row["method"], row["judge"]): row["auc"] for row in adapted.detected(found)} == {
        ("best", "noise"): 1.0, ("best", "inverted"): 1.0, ("middling", "noise"): 0.5, ("middling", "inverted"): 0.0}
