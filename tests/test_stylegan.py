"""The style-based GAN: modulation by its formula, noise that is recorded, derivatives that are exact."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gan_influence as gi
from gan_influence.models.stylegan import ModulatedConv2d
from gan_influence.readings.retraining import fractional_leave_one_out


def tiny_style_gan(activation: type[nn.Module] = nn.SiLU, **options) -> gi.GAN:
    """Images (3, 8, 8), float64; noise of some strength, which training starts without."""
    gan = gi.models.stylegan(size=8, width=2, latent_dim=3, activation=activation, dtype=torch.float64, **options)
    nn.init.constant_(gan.generator.noise, 0.3)
    return gi.GAN(gan.generator, gan.discriminator, gan.latent_dim, penalty=gan.penalty)


def tiny_images(n: int = 12) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def tiny_run(gan: gi.GAN, n: int = 12, epochs: int = 2) -> gi.Trajectory:
    return gi.train(gan, tiny_images(n), epochs, 4, gi.Adam(2e-3, betas=(0, 0.99)), average=0.9, seed=3)


class MeanSquare:
    """How far generated images are from grey, of the average where there is one."""

    name, higher_is_better = "mean square", True

    def __init__(self, gan: gi.GAN):
        self.latents = gan.sample_latents(6, seed=9)

    def __call__(self, gan: gi.GAN, state: gi.State) -> torch.Tensor:
        return gan.generate(state, self.latents).square().mean()


def through_the_unrolled_run(run: gi.Trajectory, metric) -> torch.Tensor:
    """Minus the metric's derivative by every instance's weight, by autograd through all steps at once."""
    weights, state = torch.ones(run.n, dtype=torch.float64, requires_grad=True), run.state(0)
    with torch.enable_grad():
        for t in range(run.steps):
            state = run.dynamics.step(state, run.batch(t), weights[run.schedule.indices(t)])
        return -torch.autograd.grad(metric(run.gan, state), weights)[0]


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulation_is_its_formula(upsample, demodulate):
    torch.manual_seed(0)
    layer = ModulatedConv2d(3, 5, 3, style=4, upsample=upsample, demodulate=demodulate).double()
    nn.init.normal_(layer.bias)
    x, w = torch.randn(6, 3, 4, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    expected = []
    for one, s in zip(x, layer.style(w)):  # a kernel of its own for every instance
        kernel = s[None, :, None, None] * layer.weight
        if demodulate:
            kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        large = F.interpolate(one[None], scale_factor=2, mode="bilinear") if upsample else one[None]
        expected.append(F.conv2d(large, kernel, layer.bias, padding=1))
    assert torch.allclose(layer(x, w), torch.cat(expected), rtol=1e-12, atol=1e-12)


def test_demodulated_outputs_have_the_variance_of_the_inputs_whatever_the_style():
    layer = ModulatedConv2d(32, 16, 3, style=4)
    x, w = torch.randn(20, 32, 16, 16, generator=torch.Generator().manual_seed(0)), torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        inside = (layer(x, 100 * w) - layer.bias[:, None, None])[..., 1:-1, 1:-1]  # padding takes some away
    assert abs(inside.var() - 1) < 0.05


def test_a_seed_decides_the_networks_and_nothing_else_changes():
    before = torch.get_rng_state()
    one, again, other = (gi.models.stylegan(seed, size=8, width=2) for seed in (4, 4, 5))
    assert torch.equal(before, torch.get_rng_state())
    assert all(map(torch.equal, one.state().tensors(), again.state().tensors()))
    assert not torch.equal(one.state().generator["layers.0.weight"], other.state().generator["layers.0.weight"])
    assert one.state().is_finite() and not one.generator.noise.any() and (one.generator.colours.style.bias == 1).all()


@pytest.mark.parametrize("size, channels", [(8, [8, 4]), (16, [16, 8, 4]), (64, [16, 16, 16, 8, 4])])
def test_every_size_has_its_channels(size, channels):
    gan = gi.models.stylegan(size=size, width=4, latent_dim=5)
    assert gan.generate(gan.state(), gan.sample_latents(2, seed=0)).shape == (2, 3, size, size)
    assert [layer.out_channels for layer in gan.generator.layers] == channels
    assert gan.discriminate(gan.state(), torch.zeros(2, 3, size, size)).shape == (2,)


def test_noise_is_recorded_and_the_same_in_every_counterfactual():
    gan = tiny_style_gan()
    run = tiny_run(gan)
    assert run.gan.apply_generator.random and not run.gan.apply_discriminator.random
    assert not torch.equal(run.final.generator["noise"], run.state(0).generator["noise"])
    assert all(map(torch.equal, gi.retrain(run, remove=[]).tensors(), run.final.tensors()))
    z = gan.sample_latents(4, seed=0)
    assert torch.equal(gan.generate(run.final, z), gan.generate(run.final, z)) and not torch.equal(gan.generator(z), gan.generator(z))
    single = gi.leave_one_out(run, MeanSquare(gan), range(3), models_at_once=1)
    assert single.all() and torch.allclose(single, gi.leave_one_out(run, MeanSquare(gan), range(3), models_at_once=3), rtol=1e-9)  # stacked, by vmap


def test_noise_is_the_same_in_both_precisions():
    gan = gi.models.stylegan(size=8, width=2)
    nn.init.constant_(gan.generator.noise, 0.3)
    gan = gi.GAN(gan.generator, gan.discriminator, gan.latent_dim)
    run = gi.train(gan, tiny_images().float(), 1, 4, gi.SGD(1e-2))
    twin, t = run.double(), run.steps - 1
    once, double = run.final, twin.step(run.state(t).map(torch.Tensor.double), run.batch(t).double(), run.weights(t).double())
    assert all(torch.allclose(a.double(), b, rtol=1e-4, atol=1e-6) for a, b in zip(once.tensors(), double.tensors()))


@pytest.mark.parametrize("activation", [nn.SiLU, nn.LeakyReLU])
def test_influence_is_autograd_through_the_whole_run(activation):
    gan = tiny_style_gan(activation)
    run, metric = tiny_run(gan), MeanSquare(gan)
    scores, expected = gi.influence(run, metric), through_the_unrolled_run(run, metric)
    assert scores.abs().min() > 0 and (scores - expected).norm() <= 1e-12 * expected.norm()


def test_influence_is_the_slope_of_removal():
    gan = tiny_style_gan()
    run, metric = tiny_run(gan, epochs=1), MeanSquare(gan)
    scores, errors = gi.influence(run, metric)[:4], []
    for fraction in (1e-3, 1e-4):
        errors.append(float((fractional_leave_one_out(run, metric, range(4), fraction) - scores).norm() / scores.norm()))
    assert errors[1] < 1e-4 and 9 < errors[0] / errors[1] < 11  # the error of a forward difference falls like the fraction


@pytest.mark.parametrize("activation", [nn.SiLU, nn.LeakyReLU])
def test_float32_networks_pass_the_check_of_the_derivative(activation):
    gan = gi.models.stylegan(size=8, width=2, activation=activation)
    run = gi.train(gan, tiny_images().float(), 1, 4, gi.Adam(2e-3, betas=(0, 0.99)), average=0.9)
    assert gi.influence(run, MeanSquare(gan)).isfinite().all()


@pytest.mark.parametrize("size", [4, 0, 12, 33, 32.0, "32"])
def test_a_size_that_doubling_does_not_reach_is_refused(size):
    with pytest.raises(ValueError, match="doubles 4 × 4 until it has an image, so size is 8, 16, 32, ..., but got"):
        gi.models.stylegan(size=size)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"makes instances of shape \(3, 16, 16\), but the data has \(3, 8, 8\): make the two agree"):
        gi.train(gi.models.stylegan(size=16, width=2), tiny_images().float(), 1, 4)
