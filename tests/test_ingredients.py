"""Influence through every pair of ingredients, against the whole run written a second time, unrolled, and left to autograd.

The second version shares nothing with the engine but what a run says that it drew (`run.batch(t)`): networks are evaluated layer by layer from
their parameters, a player's gradient is torch.func.grad by one argument, which is partial by construction, and optimisers are as torch documents them.
"""

import warnings
from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import gan_influence as gi
from conftest import tiny_data, tiny_metric
from gan_influence.readings.influence import metric_gradient
from gan_influence.readings.retraining import fractional_leave_one_out
from gan_influence.training import compiled
from gan_influence.training.plan import Judge, Make

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")

#: By the name of a choice, what it is. The shared latents of "alternating, shared" come by `from_recording`.
OPTIMIZERS = {"sgd": gi.SGD((0.1, 0.2)), "momentum": gi.SGD(0.08, momentum=0.6, dampening=0.2),
              "nesterov": gi.SGD(0.05, momentum=0.7, nesterov=True, weight_decay=0.02),
              "adam": gi.Adam(0.03, betas=(0.5, 0.9), weight_decay=0.01), "adamw": gi.AdamW(0.03, betas=(0.0, 0.9), eps=1e-3, weight_decay=0.1),
              "rmsprop": gi.RMSprop(0.02, alpha=0.8, eps=1e-4, momentum=0.4), "adam, sgd": (gi.Adam(0.02, eps=1e-5), gi.SGD(0.2))}
ORDERS = "alternating", "simultaneous", "generator first", "alternating, shared"
LAYERS = "plain", "batch norm", "spectral norm", "old spectral norm", "dropout", "weight norm"
PENALTIES = {"no penalty": None, "R1": gi.R1(1.0), "lazy R1": gi.R1(0.7, every=2), "gradient penalty": gi.GradientPenalty(0.5)}
AVERAGES = {"no average": None, "average": 0.8}
STEPS = {"1 step": 1, "2 steps": 2}
CLIPS = {"unclipped": None, "clipped": 0.5}
LOSSES = "non_saturating", "bce", "least_squares", "hinge", "minimax"
FACTORS = (*OPTIMIZERS,), ORDERS, LAYERS, (*PENALTIES,), (*AVERAGES,), (*STEPS,), (*CLIPS,), LOSSES
IMPOSSIBLE = {("alternating, shared", "2 steps"), ("alternating, shared", "gradient penalty")}  # a recording holds neither


def pairs_of(choice: tuple) -> set:
    return {pair for pair in combinations(((i, value) for i, value in enumerate(choice) if value is not None), 2)}


def possible(choice: tuple) -> bool:
    return not any(set(pair) <= set(choice) for pair in IMPOSSIBLE)


def covering() -> list[tuple]:
    """Combinations in which any two factors meet in all of their values: each starts with a pair that is missing and takes on what helps most."""
    wanted = {((i, a), (j, b)) for i, j in combinations(range(len(FACTORS)), 2) for a, b in product(FACTORS[i], FACTORS[j]) if (a, b) not in IMPOSSIBLE}
    found, missing = [], sorted(wanted)
    while missing:
        open_pairs, choice = set(missing), [None] * len(FACTORS)
        for i, value in missing[0]:
            choice[i] = value
        for i in sorted((i for i, value in enumerate(choice) if value is None), key=lambda i: -len(FACTORS[i])):
            tried = [(*choice[:i], value, *choice[i + 1:]) for value in FACTORS[i]]
            choice[i] = max(filter(possible, tried), key=lambda one: (len(pairs_of(one) & open_pairs), -sum(one[i] == old[i] for old in found)))[i]
        found.append(tuple(choice))
        missing = [pair for pair in missing if pair not in pairs_of(found[-1])]
    return found


CHOICES = covering()
COMBINATIONS = pytest.mark.parametrize("choice", CHOICES, ids=" | ".join)


def networks(layer: str, loss: str) -> tuple[nn.Sequential, nn.Sequential]:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        norm = layer == "batch norm"  # no bias before it: nothing would depend on that but rounding
        after = {"batch norm": lambda d: [nn.BatchNorm1d(d, momentum=0.3)], "dropout": lambda d: [nn.Dropout(0.3)]}.get(layer, lambda d: [])
        wrap = {"spectral norm": parametrizations.spectral_norm, "old spectral norm": spectral_norm,
                "weight norm": parametrizations.weight_norm}.get(layer, lambda one: one)
        own = weight_norm if layer == "weight norm" else lambda one: one
        generator = nn.Sequential(own(nn.Linear(3, 6, bias=not norm)), *(after(6) if norm else []), nn.Tanh(), own(nn.Linear(6, 2)))
        discriminator = nn.Sequential(wrap(nn.Linear(2, 6)), nn.Tanh(), wrap(nn.Linear(6, 5, bias=not norm)), *after(5), nn.Tanh(), wrap(nn.Linear(5, 1)),
                                      *([nn.Sigmoid()] if loss == "bce" else []))
        return generator.double(), discriminator.double()


def train(optimizer: str, order: str, layer: str, penalty: str, average: str, steps: str, clip: str, loss: str, **other) -> gi.Trajectory:
    gan = gi.GAN(*networks(layer, loss), latent_dim=3, loss=loss, penalty=PENALTIES[penalty])
    rules = {"average": AVERAGES[average], "clip_weights": CLIPS[clip]}
    if order == "alternating, shared":
        order, (indices, z) = "alternating", (torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(2)) for _ in range(2)]).view(6, 4),
                                              torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
        return gi.Trajectory.from_recording(gan, tiny_data(12), indices, z, OPTIMIZERS[optimizer], order, verify=False, **rules)
    epochs = 2 * STEPS[steps]
    return gi.train(gan, tiny_data(12), epochs, 4, OPTIMIZERS[optimizer], order, 3, discriminator_steps=STEPS[steps], **rules, **other)


def metrics_of(run: gi.Trajectory) -> dict:
    return {"likelihood": tiny_metric(run.gan), "loss": gi.metrics.DiscriminatorLoss(tiny_data(10), run.gan.sample_latents(10, seed=2))}


@cache
def made(choice: tuple) -> tuple[gi.Trajectory, dict, dict]:
    run = train(*choice)
    return run, metrics_of(run), gi.influence(run, metrics_of(run))


# The same, written a second time.


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


#: Per loss what the discriminator pays on real and on generated instances, and what the generator pays.
PAID = {"non_saturating": (lambda d: softplus(-d), softplus, lambda d: softplus(-d)), "minimax": (lambda d: softplus(-d), softplus, lambda d: -softplus(d)),
        "bce": (lambda p: -p.log(), lambda p: -(1 - p).log(), lambda p: -p.log()),
        "hinge": (lambda d: (1 - d).clamp(min=0), lambda d: (1 + d).clamp(min=0), lambda d: -d),
        "least_squares": (lambda d: (d - 1) ** 2 / 2, lambda d: d**2 / 2, lambda d: (d - 1) ** 2 / 2)}


def weight_of(i: int, p: dict, own: dict, later: dict, training: bool) -> Tensor:
    """The weight that layer i multiplies by; u and v are renewed by `own`, of which p may be an alias, in torch's order and in the older hook's."""
    if f"{i}.weight" in p:
        return p[f"{i}.weight"]
    for g, v in ((f"{i}.weight_g", f"{i}.weight_v"), (f"{i}.parametrizations.weight.original0", f"{i}.parametrizations.weight.original1")):
        if g in p:
            return p[g] * p[v] / (p[v] ** 2).sum(1, keepdim=True).sqrt()
    older = f"{i}.weight_orig" in p
    name, u, v = (f"{i}.{part}" for part in (("weight_orig", "weight_u", "weight_v") if older else
                                             [f"parametrizations.weight.{end}" for end in ("original", "0._u", "0._v")]))
    for which_one in (v, u) if training and older else (u, v) if training else ():
        found = own[name] @ later[v] if which_one == u else later[u] @ own[name]
        later[which_one] = found / (found**2).sum().sqrt()
    return p[name] / (later[u] @ p[name] @ later[v])


def forward(net: nn.Sequential, p: dict, buffers: dict, x: Tensor, w: Tensor | None = None, seed: int | None = None, training: bool = True,
            own: dict | None = None) -> tuple[Tensor, dict]:
    """A network's output, and its buffers afterwards."""
    later, w = dict(buffers), torch.ones(len(x), dtype=x.dtype) if w is None else w
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for i, layer in enumerate(net):
            if isinstance(layer, nn.Linear):
                x = x @ weight_of(i, p, own or p, later, training).T + p.get(f"{i}.bias", 0)
            elif isinstance(layer, nn.BatchNorm1d):
                mean, variance = later[f"{i}.running_mean"], later[f"{i}.running_var"]
                if training:
                    m, before = w.sum(), (mean, variance)
                    mean = w @ x / m
                    variance = w @ (x - mean) ** 2 / m
                    for key, old, new in (("mean", before[0], mean), ("var", before[1], variance * m / (m - 1))):
                        later[f"{i}.running_{key}"] = (1 - layer.momentum) * old + layer.momentum * new
                x = (x - mean) / (variance + layer.eps).sqrt() * p[f"{i}.weight"] + p[f"{i}.bias"]
            elif isinstance(layer, nn.Dropout):
                x = x * F.dropout(torch.ones(x.shape, dtype=x.dtype), layer.p, training)
            else:
                x = layer(x)
    return x, later


class Passed(NamedTuple):
    """A pass of a network: what was put in and came out, the parameters then, how much its rows weigh, and the same pass by other parameters."""

    given: Tensor
    out: Tensor
    own: dict
    weights: Tensor
    again: Callable
    fake: int | None = None


def held(net: nn.Module) -> tuple[dict, dict]:
    """A module's parameters and the buffers that matter, by name."""
    return tuple({name: p.detach().clone() for name, p in named() if "tracked" not in name} for named in (net.named_parameters, net.named_buffers))


def rest(square: Tensor, largest: Tensor) -> Tensor:
    return square.detach() <= (1e-14 * largest) ** 2  # the gradient is zero by construction, its root has no derivative


def updated(optimizer, p: Tensor, g: Tensor, memory: dict, rate: float, number: int, largest: Tensor) -> Tensor:
    """One parameter after update `number`; its memory is written into the dictionary."""
    kind, decay = type(optimizer), optimizer.weight_decay
    p, g = (p * (1 - rate * decay), g) if kind is gi.AdamW else (p, g + decay * p)
    if kind is gi.SGD:
        if optimizer.momentum:
            memory["m"] = g if number == 0 else optimizer.momentum * memory["m"] + (1 - optimizer.dampening) * g
            g = g + optimizer.momentum * memory["m"] if optimizer.nesterov else memory["m"]
        return p - rate * g
    b1, b2 = (0.0, optimizer.alpha) if kind is gi.RMSprop else optimizer.betas
    square = memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
    mean = memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    c1, c2 = (1, 1) if kind is gi.RMSprop else (1 - b1 ** (number + 1), 1 - b2 ** (number + 1))
    still = rest(square, largest)
    roots = [(v / c2).sqrt() + optimizer.eps for v in (square, torch.where(still, 1, square))]
    step = torch.where(still, (mean / c1 / roots[0]).detach(), mean / c1 / roots[1])
    if kind is gi.RMSprop and optimizer.momentum:
        step = memory["b"] = optimizer.momentum * memory.get("b", 0) + step
    return p - rate * step


def unrolled(run: gi.Trajectory, weights: Tensor) -> tuple[list[dict], list[dict], dict | None]:
    """Both players' parameters and buffers at the end of a run, and the moving average, differentiable in the weights (n,) of all instances."""
    nets, paid, decay, penalty = (run.gan.generator, run.gan.discriminator), PAID[run.gan.loss_name], run.dynamics.average, run.gan.penalty
    players, buffers = map(list, zip(*(held(net) for net in nets)))
    average = None if decay is None else players[0] | buffers[0]
    memories = [{name: {} for name in player} for player in players]

    for t in range(run.steps):
        batch, w, number = run.batch(t), weights[run.schedule.indices(t)], list(run.batch(t).number)
        throws, fakes, judged = iter(batch.dice), [], []

        def passed(player: int, x: Tensor, w: Tensor | None = None, fake: int | None = None, throws=throws) -> Passed:
            own, before = players[player], buffers[player]
            seed = next(throws) if any(isinstance(layer, nn.Dropout) for layer in nets[player]) else None
            out, buffers[player] = forward(nets[player], own, before, x, w, seed)
            return Passed(x, out, own, torch.ones(len(x)).double() if w is None else w,
                          lambda by, x: forward(nets[player], by, before, x, w, seed, own=own)[0].squeeze(-1 if player else ()), fake)

        for event in batch.plan:
            if isinstance(event, Make):
                fakes.append(passed(0, (batch.generator_z if event.own else batch.z)[slice(*event.rows)]))
                continue
            if isinstance(event, Judge):
                [(kind, *where)] = event.parts
                if kind == "fake":
                    judged.append(passed(1, fakes[where[0]].out, fake=where[0]))
                else:
                    part = slice(*where[:2])
                    a = batch.mix[part, None] if kind == "mix" else 1
                    judged.append(passed(1, batch.x[part] * a + ((1 - a) * fakes[where[2]].out if kind == "mix" else 0), w[part]))
                continue

            def discriminator_loss(d: dict, event=event, judged=judged) -> Tensor:
                real, fake = judged[event.real[0]], judged[event.fake[0]]
                total = (real.weights * paid[0](real.again(d, real.given))).sum() / len(real.given) + paid[1](fake.again(d, fake.given)).mean()
                if event.penalty is not None:
                    at = judged[event.penalty]
                    # Of the sum over the rows that are there, by row j: batch statistics make every output depend on it, as often as it is there.
                    slopes = torch.einsum("i,ijk->jk", at.weights, jacrev(lambda x: at.again(d, x))(at.given))
                    square = ((slopes / torch.where(at.weights == 0, 1, at.weights)[:, None]) ** 2).sum(1)
                    norm = torch.where(square > 0, square, 1).sqrt()
                    fine = penalty.weight * (norm - 1) ** 2 if penalty.between else penalty.gamma * penalty.every / 2 * square
                    total = total + (at.weights * fine).sum() / len(at.given)
                return total

            def generator_loss(g: dict, event=event, judged=judged, fakes=fakes) -> Tensor:
                judgement = judged[event.fake[0]]
                made = fakes[judgement.fake]
                return paid[2](judgement.again(judgement.own, made.again(g, made.given))).mean()

            k, rate, optimizer = event.player, batch.learning_rate[event.player], run.dynamics.optimizers[event.player]
            gradient = grad(discriminator_loss if k else generator_loss)(players[k])
            largest = max(g.detach().abs().max() for g in gradient.values())
            players[k] = {name: updated(optimizer, p, gradient[name], memories[k][name], rate, number[k], largest) for name, p in players[k].items()}
            number[k] += 1
            if k and (c := run.dynamics.clip_weights) is not None:
                players[1] = {name: torch.where(p > c, c, torch.where(p < -c, -c, p)) for name, p in players[1].items()}
            if not k and average is not None:
                average = {name: decay * average[name] + (1 - decay) * p for name, p in players[0].items()} | buffers[0]
    return players, buffers, average


def values(run: gi.Trajectory, metrics: dict, weights: Tensor) -> dict[str, Tensor]:
    """Both metrics at the end of the run that `weights` make."""
    (g, d), (g_buffers, d_buffers), average = unrolled(run, weights)
    served, paid = average or g | g_buffers, PAID[run.gan.loss_name]
    made, fakes = (forward(run.gan.generator, served, served, metrics[name].latents, training=False)[0] for name in metrics)
    real, fake = (forward(run.gan.discriminator, d, d_buffers, x, training=False)[0] for x in (metrics["loss"].x, fakes))
    apart = ((metrics["likelihood"].x[:, None] - made) ** 2).sum(2)
    density = (-apart / 2).exp().mean(1) / (2 * torch.pi)
    return {"likelihood": density.log().mean(), "loss": paid[0](real).mean() + paid[1](fake).mean()}


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# The second version by itself.


def test_every_two_choices_meet():
    assert len(CHOICES) <= 50 and all(possible(choice) for choice in CHOICES)
    met = set().union(*(pairs_of(choice) for choice in CHOICES))
    assert len(met) == sum(len(a) * len(b) for a, b in combinations(FACTORS, 2)) - len(IMPOSSIBLE)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_second_versions_layers_are_torchs(layer):
    for net, d in zip(networks(layer, "bce"), (3, 2)):
        x = torch.randn(4, d, dtype=torch.float64)
        own, buffers = held(net)
        with torch.random.fork_rng():
            for seed in (3, 4):
                torch.manual_seed(seed)
                out = net(x)
                ours, buffers = forward(net, own, buffers, x, seed=seed)
                torch.testing.assert_close(ours, out, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(buffers, held(net)[1], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(forward(net, own, buffers, x, training=False)[0], net.eval()(x), rtol=1e-12, atol=1e-13)


# The engine against it.


@COMBINATIONS
def test_influence_is_the_derivative_of_the_unrolled_run(choice):
    run, metrics, scores = made(choice)
    weights = torch.ones(run.n, dtype=torch.float64, requires_grad=True)
    found = values(run, metrics, weights)
    for name, value in found.items():
        assert value.item() == pytest.approx(metrics[name](run.gan, run.final).item(), rel=1e-11)
        derivative, = torch.autograd.grad(value, weights, retain_graph=True)
        assert relative_error(scores[name], -derivative) < 1e-9, name


@pytest.mark.parametrize("choice", CHOICES[::2], ids=" | ".join)
def test_leave_one_out_is_the_run_without_it(choice):
    run, metrics, _ = made(choice)
    with torch.no_grad():
        present = torch.ones(run.n, dtype=torch.float64)
        before, without = values(run, metrics, present), [values(run, metrics, present.index_fill(0, torch.tensor([j]), 0.0)) for j in (0, 5, 11)]
    for name, truth in gi.leave_one_out(run, metrics, [0, 5, 11]).items():
        expected = torch.stack([one[name] - before[name] for one in without])
        assert relative_error(truth, expected) < 1e-10, name


SMOOTH = [choice for choice in CHOICES if "clipped" not in choice and "hinge" not in choice and not {"adam", "adam, sgd"} & {*choice}]
SOME = CHOICES[::5]


@pytest.mark.parametrize("choice", SMOOTH[::2], ids=" | ".join)
def test_a_fraction_of_a_removal_tends_to_the_influence_in_first_order(choice):
    run, metrics, scores = made(choice)
    for name, metric in metrics.items():
        errors = [float((fractional_leave_one_out(run, metric, [0, 5, 11], eps) - scores[name][[0, 5, 11]]).norm()) for eps in (1e-2, 5e-3)]
        assert errors[1] < 0.05 * float(scores[name].norm()) and 1.9 < errors[0] / errors[1] < 2.1


@pytest.mark.parametrize("choice", SOME, ids=" | ".join)
def test_pushing_forward_gives_what_pulling_back_gives(choice):
    run, metrics, scores = made(choice)
    pushed = gi.parameter_influence(run, 5).tensors()
    for name, metric in metrics.items():
        product = sum((g * p).sum() for g, p in zip(metric_gradient(run, metric).tensors(), pushed))
        assert float(product) == pytest.approx(float(scores[name][5]), rel=1e-9, abs=1e-9 * float(scores[name].abs().max()))


@pytest.mark.parametrize("choice", SOME, ids=" | ".join)
def test_a_saved_run_has_the_same_influence(choice, tmp_path):
    run, metrics, scores = made(choice)
    run.save(tmp_path / "run")
    gan = gi.GAN(*networks(choice[2], choice[-1]), latent_dim=3, loss=choice[-1], penalty=PENALTIES[choice[3]])
    again = gi.Trajectory.load(tmp_path / "run", gan, tiny_data(12))
    for name, found in gi.influence(again, metrics).items():
        assert torch.equal(found, scores[name])


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("choice", [CHOICES[5], CHOICES[15]], ids=" | ".join)
def test_where_states_are_kept_does_not_matter(choice, stride):
    _, metrics, scores = made(choice)
    for name, found in gi.influence(train(*choice, stride=stride), metrics).items():
        assert relative_error(found, scores[name]) < 1e-12


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if "dropout" not in choice][::2], ids=" | ".join)
def test_what_is_given_to_the_compiler_is_the_same_influence(choice, monkeypatch):
    """Rates and counts are tensors there; the compiler itself, which takes half a minute, stays out."""
    run, metrics, scores = made(choice)
    monkeypatch.setattr(compiled, "_compile", lambda function, arguments: function)
    monkeypatch.setattr(run, "_compiled", {})
    for name, found in gi.influence(run, metrics, compile=True).items():
        assert relative_error(found, scores[name]) < 1e-9


def test_dropout_is_not_compiled():
    run, metrics, _ = made(next(choice for choice in CHOICES if "dropout" in choice))
    with pytest.raises(ValueError, match="compile=True assumes that all random numbers are drawn before a step.*leave compile out"):
        gi.influence(run, metrics, compile=True)
