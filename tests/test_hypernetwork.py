"""Hypernetworks against what they promise: closed forms of the penalised likelihood, any order of the data, influence that reaches the generator."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import gan_influence as gi
from conftest import tiny_data, tiny_run
from gan_influence.models import Hypernetwork, autophagy, hypergan_state, hypergan_step, through
from gan_influence.studies.autophagy import Normals, best_scale, trained_scale

#: c(n − 1) of the one-parameter PLE, by n and λ = 0, .1, 1, 10, 100
TABLE = {5: (0.800, 0.8075, 0.8753, 0.9834, 0.9983), 20: (0.950, 0.9508, 0.9575, 0.9835, 0.9978)}
PENALTIES = 0.0, 0.1, 1.0, 10.0, 100.0


def network(*widths: int) -> nn.Sequential:
    layers = [layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.Tanh())][:-1]
    return nn.Sequential(*layers).double()


@pytest.fixture(autouse=True)
def same_every_time():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_it_makes_any_modules_weights_by_name_and_shape():
    for module, inputs in ((nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(2, 2), nn.Flatten(), nn.Linear(8, 3)), torch.randn(5, 1, 4, 4)),
                           (nn.LSTM(3, 4), torch.randn(6, 2, 3))):
        for options in ({}, {"rank": 2}, {"outer": (7,)}):
            hyper = Hypernetwork(module, width=6, hidden=(5, 4), **options)
            made = hyper(torch.randn(9, 2, 3))
            assert {name: p.shape for name, p in made.items()} == {name: p.shape for name, p in module.named_parameters()}
            called = hyper.call(made, inputs)
            module.load_state_dict(made)
            for a, b in zip(*((out,) if isinstance(out, torch.Tensor) else (out[0],) for out in (called, module(inputs)))):
                torch.testing.assert_close(a, b)


def test_its_target_stays_as_it_was_and_is_where_it_starts():
    module = network(3, 4)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    hyper = Hypernetwork(module, width=2, scale=0.0)
    made = hyper(torch.randn(5, 2))
    assert all(torch.equal(p, before[name]) and torch.equal(p, made[name]) for name, p in module.named_parameters())
    assert not any(name.startswith("target") for name, _ in hyper.named_parameters())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_the_order_of_the_data_does_not_matter(dtype, tolerance):
    hyper, x = Hypernetwork(network(3, 40, 2).to(dtype), width=2, outer=(16,), scale=1.0), torch.randn(200, 2, dtype=dtype)
    there, again = hyper(x), hyper(x[torch.randperm(200)])
    assert max(float((there[name] - again[name]).detach().abs().max()) for name in there) <= tolerance
    assert any((hyper(x + 1)[name] - p).abs().max() > 1e-3 for name, p in there.items())  # but the data do


def test_weight_zero_is_absence_and_without_an_outer_network_it_is_a_mean():
    x, w = torch.randn(7, 2).double(), torch.tensor([1.0, 1, 0, 1, 1, 0, 1]).double()
    for outer in ((), (5,)):
        hyper = Hypernetwork(network(3, 2), width=2, outer=outer, scale=1.0, activation=nn.Tanh)
        gap = max(float((p - hyper(x[w > 0])[name]).detach().abs().max()) for name, p in hyper(x, w).items())
        mean = {name: torch.stack([hyper(row[None])[name] for row in x]).mean(0) for name in hyper.shapes}
        apart = max(float((p - mean[name]).detach().abs().max()) for name, p in hyper(x).items())
        assert gap < 1e-14 and (apart > 1e-6 if outer else apart < 1e-14)


@pytest.mark.parametrize("n", TABLE)
def test_the_ple_with_one_parameter_comes_to_its_closed_form(n):
    for penalty, c in zip(PENALTIES, TABLE[n]):
        assert best_scale(n, penalty) == pytest.approx(c, abs=6e-5)
        assert trained_scale(n, penalty, sets=5_000 // n) == pytest.approx(c, rel=0.01)
    assert best_scale(n, 0.0) == pytest.approx((n - 1) / n, abs=1e-6)


def test_the_plain_square_is_another_penalty():
    assert trained_scale(5, 1.0, resamples=1) < 0.75 < 0.8  # less than with no penalty at all, though the penalty is to raise it


def test_the_penalty_of_the_mean_is_zero_and_its_plain_square_is_not():
    def mean(x):
        return x.mean(0)

    x, n = torch.randn(10, 1).double(), 10
    found = {r: torch.stack([autophagy(mean, lambda m: m + torch.randn(n, 1).double(), x, r) for _ in range(2_000)]) for r in (1, 2)}
    assert abs(float(found[2].mean())) < 4 * float(found[2].std()) / 2_000**0.5
    assert float(found[1].mean()) == pytest.approx(1 / n, rel=0.2)


def test_the_penalty_alone_collapses():
    assert trained_scale(5, 1.0, start=0.4, likelihood=False) < 0.25  # where nothing is made of anything, everything agrees
    assert trained_scale(5, 1.0, start=0.4) == pytest.approx(0.8753, rel=0.02)  # the likelihood forbids it
    hyper = Hypernetwork(Normals(), width=1, hidden=(8, 8), outer=(8,), scale=1.0)

    def spread() -> float:
        sets = [torch.randn(32, 1).double() * scale + shift for scale, shift in ((1, 0), (1, 3), (2, -3))]
        return float(torch.stack([torch.cat([*hyper(x).values()]).detach() for x in sets]).std(0).norm())

    before, adam = spread(), torch.optim.Adam(hyper.parameters(), lr=0.01)
    for _ in range(150):
        x = torch.randn(32, 1).double() * 2 + 3 * torch.randn(1).double()
        adam.zero_grad()
        autophagy(hyper, lambda made: Normals.draw(made, 32), x).backward()
        adam.step()
    assert spread() < before / 4  # a network becomes deaf to its data


def test_shown_one_class_only_it_makes_that_class():
    class Location(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, z):
            return self.mean + z

    hyper = Hypernetwork(Location(), width=1, hidden=(8, 8), scale=1.0)
    adam = torch.optim.Adam(hyper.parameters(), lr=0.01)
    for _ in range(300):  # data sets of every composition of the classes −2 and 2
        x = (4 * (torch.rand(64, 1) < torch.rand(1)) - 2 + 0.3 * torch.randn(64, 1)).double()
        adam.zero_grad()
        (hyper(x)["mean"] - x).square().mean().backward()
        adam.step()
    for centre in (-2.0, 2.0):
        shown = centre + 0.3 * torch.randn(500, 1).double()
        assert float(hyper.call(hyper(shown), torch.zeros(1))) == pytest.approx(centre, abs=0.2)


def test_samples_of_a_mixture_are_differentiable_in_its_weights_too():
    made = {name: p.detach().clone().requires_grad_() for name, p in Normals((0.3, -0.3), (0.0, 2.0), (0.5, 1.0)).named_parameters()}
    y = Normals.draw(made, 200_000)
    slopes = torch.autograd.grad(y.mean(), list(made.values()), allow_unused=True)
    p = made["logits"].softmax(0)
    exact = torch.autograd.grad((p * made["means"]).sum(), list(made.values()), allow_unused=True)
    torch.testing.assert_close(slopes[0], exact[0], atol=0.02, rtol=0)
    torch.testing.assert_close(slopes[1], exact[1], atol=0.02, rtol=0)
    assert slopes[2].abs().max() < 0.02  # a spread moves no mean


def play(penalty: float = 0.0, resamples: int = 0, n: int = 60, batch: int = 20, epochs: int = 3):
    generator, discriminator, x = network(2, 6, 2), network(2, 8, 1), tiny_data(n)
    hyper = Hypernetwork(generator, width=2, hidden=(8, 8), outer=(8,), activation=nn.Tanh)
    batches = [(rows, torch.randn(1 + resamples, batch, 2).double()) for _ in range(epochs) for rows in torch.randperm(n).split(batch)]
    step = hypergan_step(hyper, discriminator, (0.1, 0.2), penalty=penalty)
    run = gi.record(step, hypergan_state(hyper, discriminator), [*batches, (torch.arange(n), None)], x)
    return run, through(hyper, gi.metrics.AverageLogLikelihood(tiny_data(15) + 0.5, torch.randn(30, 2).double())), [*batches, (torch.arange(n), None)], step


@pytest.mark.parametrize("penalty, resamples", [(0.0, 0), (0.3, 2)])
def test_influence_through_a_hypernetwork_is_autograd_through_the_run_and_foretells_removal(penalty, resamples):
    run, metric, batches, step = play(penalty, resamples)
    scores = gi.influence(run, metric)
    weights, state = torch.ones(run.n, dtype=torch.float64, requires_grad=True), run.initial
    for rows, z in batches:
        state = step(state, (run.x[rows], z), weights[rows])
    exact, = torch.autograd.grad(metric(None, state), weights)
    assert float((scores + exact).abs().max() / exact.abs().max()) <= 1e-12
    found = gi.agreement(scores[:15], gi.leave_one_out(run, metric, range(15)))
    assert found.kendall_tau > 0.9 and found.slope == pytest.approx(1, abs=0.1)


def test_there_an_instance_moves_the_generator_in_one_step_as_it_cannot_without():
    plain, (run, metric, *_) = tiny_run("simultaneous"), play()
    assert all(not p.any() for p in gi.parameter_influence(plain, int(plain.schedule.indices(plain.steps - 1)[0]), last_steps=1).generator.values())
    j = int(run.schedule.indices(run.steps - 2)[0])
    moved = gi.parameter_influence(run, j, last_steps=2)
    assert all(p.any() for name, p in moved.generator.items() if name.startswith("each")) and all(p.any() for p in moved.average.values())
    assert gi.influence(run, metric, last_steps=1).abs().min() > 0  # the last step trains nothing: it makes the generator of all that are there


def test_what_a_hypernetwork_cannot_make_gets_a_sentence():
    for module, message in ((nn.Tanh(), "parameters, but Tanh has none"),
                            (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), r"trains the buffer '1.running_mean': take layers without a memory"),
                            (spectral_norm(nn.Linear(2, 2)), "trains the buffer 'parametrizations.weight.0._u'")):
        with pytest.raises(ValueError, match=message):
            Hypernetwork(module, width=2)
    hyper = Hypernetwork(nn.Linear(2, 2), width=2)
    with pytest.raises(ValueError, match=r"reads instances of 2 numbers.*got shape \(4, 3\): make another with width=3"):
        hyper(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"one or more of them, but got shape \(0, 2\)"):
        hyper(torch.zeros(0, 2))
    step = hypergan_step(hyper, nn.Linear(2, 1), 0.1, penalty=1.0)
    with pytest.raises(ValueError, match=r"draws again.*latents have shape \(1, 4, 2\): give \(1 \+ resamples, B, latent\)"):
        step(hypergan_state(hyper, nn.Linear(2, 1)), (torch.zeros(4, 2), torch.zeros(1, 4, 2)), torch.ones(4))
    assert math.isfinite(float(hyper(torch.zeros(1, 2))["bias"].sum()))
