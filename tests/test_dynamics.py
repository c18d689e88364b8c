"""The step against a textbook version of it, and the purity that everything else rests on."""

import pytest
import torch
from textbook import textbook_run
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run
from gan_influence.game.losses import LOSSES
from gan_influence.game.state import stack, unstack


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_a_run_equals_the_textbooks(order, decay, device):
    run = tiny_run(order, device=device, weight_decay=decay, learning_rate=0.05)
    generator, discriminator = textbook_run(run, torch.ones(run.n, dtype=torch.float64, device=device))
    for mine, theirs in ((run.final.generator, generator), (run.final.discriminator, discriminator)):
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_steps_compose_under_autograd(order):
    """A state that carries a graph is a state like any other: its players' gradients stay partial."""
    run = tiny_run(order)
    weights = torch.ones(run.n, dtype=torch.float64, requires_grad=True)
    state = run.initial
    for t in range(run.steps):
        state = run.dynamics.step(state, run.batch(t), weights[run.schedule.indices(t)])
    assert all(torch.equal(a, b) for a, b in zip(state.tensors(), run.final.tensors()))
    metric = tiny_metric(run.gan)
    by_weights, = torch.autograd.grad(metric(run.gan, state), weights)
    torch.testing.assert_close(-by_weights, gi.influence(run, metric), rtol=1e-10, atol=1e-16)


def test_alternating_is_not_simultaneous():
    ends = [tiny_run(order).final.generator["0.weight"] for order in ("simultaneous", "alternating")]
    assert not torch.allclose(*ends)


def test_a_step_mutates_nothing_and_repeats():
    run = tiny_run()
    state, batch, weights = run.initial, run.batch(0), run.weights()
    before = [p.clone() for p in [*state.tensors(), *batch[:3], weights]]
    once, twice = run.dynamics.step(state, batch, weights), run.dynamics.step(state, batch, weights)
    assert all(torch.equal(a, b) for a, b in zip(before, [*state.tensors(), *batch[:3], weights]))
    assert all(torch.equal(a, b) for a, b in zip(once.tensors(), twice.tensors()))


def test_removal_keeps_the_denominator():
    """With weight 0 the instance's share of the gradient vanishes; nothing is divided by fewer instances."""
    run = tiny_run("simultaneous", learning_rate=1.0)
    state, batch = run.initial, run.batch(0)
    gradients = []
    for j in range(6):
        weights = torch.zeros(6, dtype=torch.float64)
        weights[j] = 1
        gradients.append(run.dynamics.step(state, batch, weights).discriminator["0.weight"])
    nothing = run.dynamics.step(state, batch, torch.zeros(6, dtype=torch.float64)).discriminator["0.weight"]
    everything = run.dynamics.step(state, batch, torch.ones(6, dtype=torch.float64)).discriminator["0.weight"]
    torch.testing.assert_close(sum(g - nothing for g in gradients), everything - nothing)


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_stacked_models_step_as_each_alone(order, activation, device):
    run = tiny_run(order, activation=activation, device=device, weight_decay=0.05)
    states = [run.state(t) for t in (0, 4, 9)]
    weights = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        together = unstack(run.dynamics.stacked.step(stack(states), run.batch(2), weights))
        for state, w, one in zip(states, weights, together):
            for a, b in zip(run.dynamics.step(state, run.batch(2), w).tensors(), one.tensors()):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_learning_rates_per_player_and_per_step():
    gan, x = tiny_gan(), tiny_data()
    still = gi.train(gan, x, 1, 6, gi.SGD(generator=0.0, discriminator=0.1), seed=0)
    assert torch.equal(still.final.generator["0.weight"], still.initial.generator["0.weight"])
    assert not torch.equal(still.final.discriminator["0.weight"], still.initial.discriminator["0.weight"])
    only_first = gi.train(gan, x, 1, 6, gi.SGD([0.1, 0, 0, 0]), seed=0, stride=1)
    assert torch.equal(only_first.state(1).discriminator["0.weight"], only_first.final.discriminator["0.weight"])
    with pytest.raises(ValueError, match="2 steps, but the run has 4"):
        gi.train(gan, x, 1, 6, gi.SGD([0.1, 0.1]))
    with pytest.raises(ValueError, match="both players need a learning rate"):
        gi.SGD(generator=0.1)


def test_losses_have_their_textbook_values():
    d = torch.tensor([-1.5, 0.0, 2.0, 50.0], dtype=torch.float64)
    log_sigmoid = -torch.log1p(torch.exp(-d))
    expected = {
        "non_saturating": (-log_sigmoid, torch.log1p(torch.exp(d)), -log_sigmoid),
        "minimax": (-log_sigmoid, torch.log1p(torch.exp(d)), -torch.log1p(torch.exp(d))),
        "wasserstein": (-d, d, -d), "hinge": ((1 - d).clamp(min=0), (1 + d).clamp(min=0), -d),
        "least_squares": ((d - 1) ** 2 / 2, d**2 / 2, (d - 1) ** 2 / 2),
    }
    p = torch.tensor([0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    bce = LOSSES["bce"]
    for loss, expected_bce in ((bce.real, -p.log()), (bce.fake, -(1 - p).log()), (bce.generator, -p.log())):
        assert torch.allclose(loss(p), expected_bce, rtol=1e-12)
    assert {*expected, "bce"} == set(LOSSES)
    for name, values in expected.items():
        for function, value in zip(LOSSES[name], values):
            torch.testing.assert_close(function(d), value, rtol=1e-12, atol=1e-15)


def test_training_leaves_the_modules_and_the_global_generator_alone():
    gan, x = tiny_gan(), tiny_data()
    before = gan.state()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run = gi.train(gan, x, 2, 6, gi.SGD(0.1))
    gi.influence(run, gi.metrics.DiscriminatorLoss(x, gan.sample_latents(5, seed=0)))
    gi.models.fcgan(seed=3), gi.models.lqgan(seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(before.tensors(), gan.state().tensors()))
    gan.load(run.final)
    z = gan.sample_latents(4, seed=0)
    assert torch.equal(gan.generator(z), gan.generate(run.final, z))


def test_tied_weights_are_one_parameter():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    gan = gi.GAN(Tied().double(), nn.Linear(2, 1).double(), latent_dim=2)
    state = gan.state()
    assert list(state.generator) == ["first.weight"]
    w, z = torch.randn(2, 2, dtype=torch.float64), gan.sample_latents(3, seed=0)
    torch.testing.assert_close(gan.generate(state._replace(generator={"first.weight": w}), z), torch.tanh(z @ w.T) @ w.T)


def test_published_networks():
    gan = gi.models.fcgan(seed=1)
    shapes = [tuple(p.shape) for p in [*gan.generator.parameters(), *gan.discriminator.parameters()]]
    assert shapes == [(32, 10), (32, 32), (2, 32), (64, 2), (64, 64), (1, 64)]
    assert all(p.dtype == torch.float64 for p in gan.generator.parameters())
    for p in gan.generator.parameters():  # Glorot uniform: bounded by √(6 / (fan in + fan out)), and filling that range
        bound = (6 / sum(p.shape)) ** 0.5
        assert 0.9 * bound < float(p.detach().abs().max()) <= bound
    assert all(torch.equal(a, b) for a, b in zip(gi.models.fcgan(seed=1).state().tensors(), gan.state().tensors()))
    with pytest.raises(ValueError, match="unknown variant"):
        gi.models.lqgan("hinge")
