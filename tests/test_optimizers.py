"""Optimisers: torch.optim's updates, as values."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric
from gan_influence.game.state import stack, unstack
from gan_influence.training.optimizers import Optimizer, both_players, from_torch

SHAPES = {"kernel": (4, 3), "bias": (4,), "scale": ()}


def every(**options) -> list[dict]:
    return [dict(zip(options, values)) for values in product(*options.values())]


CASES = [(kind, options) for kind, cases in (
    ("SGD", [*every(momentum=[0, 0.9], dampening=[0, 0.3], weight_decay=[0, 0.1]), *every(momentum=[0.9], nesterov=[True], weight_decay=[0, 0.1])]),
    ("Adam", every(betas=[(0.9, 0.999), (0.5, 0.99), (0.0, 0.9), (0.0, 0.0)], eps=[1e-8, 1e-2], weight_decay=[0, 0.1])),
    ("AdamW", [{}, *every(betas=[(0.9, 0.999), (0.0, 0.9)], eps=[1e-8, 1e-2], weight_decay=[0, 0.1])]),
    ("RMSprop", every(alpha=[0.99, 0.5, 0.0], eps=[1e-8, 1e-2], weight_decay=[0, 0.1], momentum=[0, 0.7]))) for options in cases]
UPDATES = pytest.mark.parametrize("kind, options", CASES, ids=[f"{kind}({', '.join(f'{key}={value}' for key, value in options.items())})"
                                                               for kind, options in CASES])
MEMORABLE = [(kind, options) for kind, options in CASES if options and all(options.values()) and (kind != "AdamW" or options["eps"] == 1e-2)][:12]


def drawn(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in SHAPES.items()}


def rate(t: int) -> float:
    return 0.1 / (1 + t)


@UPDATES
@pytest.mark.parametrize("differentiable", [False, True])
def test_updates_are_torchs(kind, options, differentiable):
    ours, parameters = getattr(gi, kind)(0.1, **options), drawn()
    theirs = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    reference, memory = getattr(torch.optim, kind)(theirs.values(), lr=0.1, **options), ours.init(parameters)
    for t in range(20):
        gradients = drawn(t + 1)
        reference.param_groups[0]["lr"] = rate(t)
        for name, p in theirs.items():
            p.grad = gradients[name].clone()
        reference.step()
        with torch.set_grad_enabled(differentiable):
            parameters, memory = ours.update(parameters, gradients, memory, rate(t), t)
        for name, p in theirs.items():
            torch.testing.assert_close(parameters[name], p.detach(), rtol=1e-12, atol=1e-12)
    state = {name: reference.state[p] for name, p in theirs.items()}
    for key, value in memory.items():
        of, name = key.split(".")
        torch.testing.assert_close(value, state[name][of], rtol=1e-12, atol=1e-12)


@UPDATES
def test_rates_and_counts_may_be_tensors(kind, options):
    ours, parameters = getattr(gi, kind)(0.1, **options), drawn()
    memory = ours.init(parameters)
    for t in range(3):
        plain, once = ours.update(parameters, drawn(t + 1), memory, rate(t), t)
        parameters, memory = ours.update(parameters, drawn(t + 1), memory, *(torch.tensor(a, dtype=torch.float64) for a in (rate(t), t)))
        for a, b in ((plain, parameters), (once, memory)):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)


@UPDATES
def test_a_stack_of_models_updates_as_each_alone(kind, options):
    ours, models = getattr(gi, kind)(0.1, **options), [drawn(10 + m) for m in range(3)]
    memories = [ours.init(model) for model in models]
    together, memory = ({key: torch.stack([one[key] for one in given]) for key in given[0]} for given in (models, memories))
    for t in range(3):
        gradients = [drawn(100 * m + t) for m in range(3)]
        moved = [ours.update(model, g, own, 0.1, t) for model, g, own in zip(models, gradients, memories)]
        models, memories = ([one[i] for one in moved] for i in (0, 1))
        together, memory = ours.update(together, {name: torch.stack([g[name] for g in gradients]) for name in SHAPES}, memory, 0.1, t)
    for stacked, alone in ((together, models), (memory, memories)):
        for key, value in stacked.items():
            torch.testing.assert_close(value, torch.stack([one[key] for one in alone]), rtol=1e-14, atol=1e-15)


@UPDATES
def test_what_has_no_gradient_is_left_alone(kind, options):
    ours, parameters = getattr(gi, kind)(0.1, **options), drawn()
    theirs = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    reference, memory, before = getattr(torch.optim, kind)(theirs.values(), lr=0.1, **options), ours.init(parameters), parameters["bias"]
    for t in range(3):
        gradients = {name: g for name, g in drawn(t + 1).items() if name != "bias"}
        for name, g in gradients.items():
            theirs[name].grad = g.clone()
        reference.step()
        parameters, memory = ours.update(parameters, gradients, memory, 0.1, t)
    assert torch.equal(parameters["bias"], before) and torch.equal(theirs["bias"], before)
    assert all(not value.any() for key, value in memory.items() if key.endswith(".bias"))
    torch.testing.assert_close(parameters["kernel"], theirs["kernel"].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind, options", MEMORABLE)
def test_an_update_mutates_nothing_and_is_differentiable(kind, options):
    ours = getattr(gi, kind)(0.1, **options)
    parameters, gradients = drawn(1), drawn(2)
    _, memory = ours.update(parameters, drawn(3), ours.init(parameters), 0.1, 0)
    given = [*parameters.values(), *gradients.values(), *memory.values()]
    before = [p.clone() for p in given]

    def update(*flat):
        moved, later = ours.update(dict(zip(parameters, flat)), dict(zip(gradients, flat[3:])), dict(zip(memory, flat[6:])), 0.1, 1)
        return *moved.values(), *later.values()

    assert torch.autograd.gradcheck(update, [p.clone().requires_grad_() for p in given], atol=1e-6)
    assert all(map(torch.equal, before, given))


# Learning rates.


def test_schedules():
    kinds, expected = (gi.SGD, gi.Adam, gi.AdamW, gi.RMSprop), torch.tensor([rate(t) for t in range(4)], dtype=torch.float64)
    for kind in kinds:
        for given in (rate, [rate(t) for t in range(4)], np.array([rate(t) for t in range(4)]), expected):
            torch.testing.assert_close(kind(given).learning_rates(4), expected[:, None].expand(4, 2), rtol=0, atol=0)
        torch.testing.assert_close(kind((0.2, rate)).learning_rates(4), torch.stack([torch.full_like(expected, 0.2), expected], 1), rtol=0, atol=0)
        torch.testing.assert_close(kind(0.3, discriminator=rate).learning_rates(4), torch.stack([torch.full_like(expected, 0.3), expected], 1), rtol=0, atol=0)
        again = kind(**kind((0.2, rate), weight_decay=0.3).describe(4))
        assert again.describe(4) == kind((0.2, rate), weight_decay=0.3).describe(4)
    assert gi.Adam().learning_rates(1).tolist() == [[1e-3, 1e-3]] and gi.RMSprop().learning_rates(1).tolist() == [[1e-2, 1e-2]]


@pytest.mark.parametrize("given", [lambda: gi.Adam(rate), lambda: gi.Adam([rate(t) for t in range(8)]),
                                   lambda: (gi.Adam(rate), gi.Adam([rate(t) for t in range(8)]))])
def test_a_run_takes_its_rates_from_the_schedule(given):
    run = gi.train(tiny_gan(), tiny_data(), 2, 6, given())
    assert [run.batch(t).learning_rate for t in range(8)] == [(rate(t), rate(t)) for t in range(8)]
    expected = gi.train(tiny_gan(), tiny_data(), 2, 6, gi.Adam((rate, rate)))
    assert all(map(torch.equal, run.final.tensors(), expected.final.tensors()))


# torch.optim's objects.


def torchs(kind: str, lr: float = 0.03, **options) -> torch.optim.Optimizer:
    return getattr(torch.optim, kind)([torch.zeros(2, requires_grad=True)], lr=lr, **options)


@UPDATES
def test_torchs_objects_become_values(kind, options):
    ours = from_torch(torchs(kind, **options))
    assert type(ours) is getattr(gi, kind) and ours.describe() == getattr(gi, kind)(0.03, **options).describe()
    assert repr(ours) == repr(getattr(gi, kind)(0.03, **options))


def test_both_players():
    one, other = gi.Adam(1e-3), torchs("RMSprop", momentum=0.5)
    assert both_players(one) == (one, one) == both_players([one])
    generator, discriminator = both_players((one, other))
    assert generator is one and repr(discriminator) == "RMSprop(0.03, alpha=0.99, eps=1e-08, momentum=0.5)"
    run = gi.train(tiny_gan(), tiny_data(), 1, 6, (torchs("Adam", betas=(0.5, 0.9)), torchs("SGD", 0.1, momentum=0.5)))
    expected = gi.train(tiny_gan(), tiny_data(), 1, 6, (gi.Adam(0.03, betas=(0.5, 0.9)), gi.SGD(0.1, momentum=0.5)))
    assert all(map(torch.equal, run.final.tensors(), expected.final.tensors()))
    assert {key.split(".")[0] for key in run.final.generator_memory} == {"exp_avg", "exp_avg_sq"} and {*run.final.discriminator_memory} == {
        f"momentum_buffer.{name}" for name in run.final.discriminator}


def test_adam_with_decoupled_decay_is_adamw():
    assert repr(from_torch(torchs("Adam", weight_decay=0.1, decoupled_weight_decay=True))) == repr(from_torch(torchs("AdamW", weight_decay=0.1)))


class Foreign(torch.optim.Adam):
    pass


@pytest.mark.parametrize("given, sentence", [
    (lambda: torchs("Adam", amsgrad=True), "has amsgrad: its derivative is not known here"),
    (lambda: torchs("SGD", maximize=True), "has maximize"), (lambda: torchs("RMSprop", centered=True), "has centered"),
    (lambda: torchs("NAdam"), "is one of SGD, Adam, AdamW, RMSprop with one setting for all parameters, .* this one is or has NAdam"),
    (lambda: Foreign([torch.zeros(1, requires_grad=True)]), "is or has Foreign"),
    (lambda: torch.optim.Adam([{"params": [torch.zeros(1, requires_grad=True)]}, {"params": [torch.zeros(2, requires_grad=True)], "lr": 0.5}]),
     "parameter groups that differ"),
    (lambda: (gi.SGD(0.1), gi.SGD(0.1), gi.SGD(0.1)), "two players have two optimisers, but 3 were given"),
    (lambda: "adam", "an optimiser is a value such as gi.SGD.*'adam' has no init"), (lambda: (gi.Adam(), 1e-3), "0.001 has no init")])
def test_other_optimisers_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        gi.train(tiny_gan(), tiny_data(), 1, 6, given())


@pytest.mark.parametrize("make, sentence", [
    (lambda: gi.SGD(0.1, momentum=-0.5), "SGD takes momentum as torch.optim does, 0 or more.*got -0.5"),
    (lambda: gi.SGD(0.1, momentum=0.5, dampening=-1), "takes dampening"), (lambda: gi.SGD(0.1, weight_decay=-0.1), "SGD takes weight_decay"),
    (lambda: gi.SGD(0.1, nesterov=True), "Nesterov's momentum takes a momentum and no dampening"),
    (lambda: gi.SGD(0.1, momentum=0.5, dampening=0.1, nesterov=True), "Nesterov's momentum"),
    (lambda: gi.SGD(0.1, momentum="0.5"), "takes momentum.*got '0.5'"), (lambda: gi.Adam(0.1, eps=-1e-8), "Adam takes eps"),
    (lambda: gi.Adam(0.1, betas=(0.9, 1.0)), r"takes betas .*a pair below 1.*got \(0.9, 1.0\)"), (lambda: gi.Adam(0.1, betas=(-0.1, 0.9)), "takes betas"),
    (lambda: gi.AdamW(0.1, weight_decay=-1), "AdamW takes weight_decay"), (lambda: gi.RMSprop(0.1, alpha=-0.5), "RMSprop takes alpha"),
    (lambda: gi.Adam(0.1, betas=(0.9,)), "takes betas .*a pair"), (lambda: gi.Adam(0.1, betas=0.9), "takes betas .*a pair"),
    (lambda: gi.SGD(0.1, momentum=float("nan")), "takes momentum.*got nan"),
    (lambda: gi.SGD(), "both players need a learning rate"), (lambda: gi.SGD((0.1, None)), "both players need a learning rate"),
    (lambda: gi.Adam(generator=0.1, lr=None), "both players need"),
    (lambda: gi.Adam((0.1, 0.2, 0.3)), r"of learning rates is a pair \(generator's, discriminator's\), but has 3 entries: give a list for one per step"),
    (lambda: gi.SGD(-0.1).learning_rates(3), "0 or more, but got -0.1"), (lambda: gi.SGD(lambda t: 0.1 - t).learning_rates(3), "0 or more, but got -1.9"),
    (lambda: gi.SGD(float("nan")).learning_rates(3), "0 or more, but got nan"),
    (lambda: gi.Adam([0.1, 0.2]).learning_rates(3), "given for 2 steps, but the run has 3: give one number, or 3"),
    (lambda: gi.Adam((0.1, [0.1] * 4)).learning_rates(3), "for 4 steps")])
def test_settings_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# Runs.


@pytest.mark.parametrize("kind, options", MEMORABLE)
def test_stacked_steps_with_memory_step_as_each_alone(kind, options):
    run = gi.train(tiny_gan(), tiny_data(), 1, 6, getattr(gi, kind)(0.05, **options))
    states, weights = [run.state(t) for t in (1, 3, 4)], torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for state, w, one in zip(states, weights, unstack(run.dynamics.stacked.step(stack(states), run.batch(2), weights))):
            for a, b in zip(run.dynamics.step(state, run.batch(2), w).tensors(), one.tensors()):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


PAIR = gi.Adam(rate, betas=(0.5, 0.9)), gi.RMSprop([0.01] * 8, momentum=0.3)


@pytest.mark.parametrize("optimizer", [gi.SGD((0.1, 0.2)), gi.SGD(0.05, 0.9, 0, True, 0.01), gi.Adam(rate), gi.AdamW([0.01] * 8),
                                       gi.RMSprop(0.01, momentum=0.5, weight_decay=0.1), PAIR], ids=repr)
def test_runs_are_saved_and_loaded(optimizer, tmp_path):
    run = gi.train(tiny_gan(), tiny_data(), 2, 6, optimizer, stride=4)
    run.save(tmp_path / "run")
    again = gi.Trajectory.load(tmp_path / "run", tiny_gan(), tiny_data())
    assert [one.describe(8) for one in again.dynamics.optimizers] == [one.describe(8) for one in run.dynamics.optimizers]
    assert again.learning_rates == run.learning_rates
    assert all(map(torch.equal, again.replay(1).tensors(), run.final.tensors()))
    assert torch.equal(gi.influence(again, tiny_metric(again.gan)), gi.influence(run, tiny_metric(run.gan)))


# Parameters at rest: a gradient that is zero by construction, whose second moment is rounding noise.


def run_with_rest(where: str, kind: str) -> gi.Trajectory:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = where == "a bias before batch normalisation"
        G = nn.Sequential(nn.Linear(3, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, 2)).double()
        D = nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 5), *([nn.BatchNorm1d(5)] if norm else []), nn.Tanh(), nn.Linear(5, 1)).double()
    optimizer = {"adam": gi.Adam(0.01, betas=(0.5, 0.9)), "slow adam": gi.Adam(0.01), "adamw": gi.AdamW(0.01), "rmsprop": gi.RMSprop(0.01)}[kind]
    return gi.train(gi.GAN(G, D, 3, "non_saturating" if norm else "wasserstein"), tiny_data(), 3, 6, optimizer, seed=7)


@pytest.mark.parametrize("kind", ["adam", "slow adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("where", ["a bias before batch normalisation", "the last bias of a Wasserstein discriminator"])
def test_parameters_at_rest_have_no_derivative_whatever_the_threshold(where, kind, monkeypatch):
    run, floor = run_with_rest(where, kind), Optimizer.floor
    metrics = {"likelihood": tiny_metric(run.gan), "loss": gi.metrics.DiscriminatorLoss(tiny_data(10), run.gan.sample_latents(10, seed=2))}
    scores = gi.influence(run, metrics)
    assert all(one.isfinite().all() and one.abs().max() > 0 for one in scores.values())
    for factor in (1e4, 1e-2):
        monkeypatch.setattr(Optimizer, "floor", staticmethod(lambda gradients, factor=factor: factor * floor(gradients)))
        for name, found in gi.influence(run, metrics).items():
            assert float((found - scores[name]).abs().max()) <= 1e-7 * float(scores[name].abs().max()), (factor, name)


@pytest.mark.parametrize("optimizer", [gi.SGD(0.1), gi.SGD(0.1, momentum=0.9), gi.Adam(0.1)], ids=repr)
def test_a_player_without_gradients_stays_where_it_is(optimizer):
    parameters = {"p": torch.ones(2)}
    with torch.no_grad():
        assert optimizer.update(parameters, {}, optimizer.init(parameters), 0.1)[0] == parameters
