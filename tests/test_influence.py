"""Influence against slower and simpler computations: unrolled autograd, dense Jacobians, finite weights, closed forms."""

import sys

import numpy as np
import pytest
import torch
from textbook import textbook_run, textbook_step
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run
from gan_influence.readings.influence import metric_gradient
from gan_influence.training.trajectory import last

INFLUENCE = sys.modules["gan_influence.readings.influence"]  # the name is the function's too


def relative_error(a, b):
    return float((a - b).abs().max() / b.abs().max())


def unrolled_influence(run, metric):
    """Minus the gradient of the metric by all instances' weights, through the textbook's whole run at once."""
    weights = torch.ones(run.n, dtype=run.x.dtype, device=run.x.device, requires_grad=True)
    value = metric(run.gan, gi.State(*textbook_run(run, weights)))
    return -torch.autograd.grad(value, weights)[0].cpu()


def data_dependent_run(order, activation, device, decay):
    """A recording whose batches follow the data: sorted by a coordinate, the extremes in every batch, some twice in one."""
    gan, x = tiny_gan(activation, device, weight_decay=decay), tiny_data(device=device)
    by_first = x[:, 0].argsort().cpu().view(4, 6).tolist()
    by_second = x[:, 1].argsort().cpu().view(6, 4).T.tolist()
    indices = torch.tensor([*by_first, *by_second, *by_first])
    indices[:, 0], indices[5, 1] = indices[0, 0], indices[5, 2]
    latents, generator_latents = torch.from_numpy(np.random.default_rng(1).standard_normal((2, *indices.shape, 3)))
    optimizer = gi.SGD(generator=0.05, discriminator=np.linspace(0.2, 0.1, len(indices)))
    return gi.Trajectory.from_recording(gan, x, indices, latents, optimizer, order, generator_latents, verify=False)


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("source", ["train", "recording"])
def test_equals_differentiation_through_the_unrolled_run(order, decay, activation, source, device):
    make = {"train": lambda: tiny_run(order, activation=activation, device=device, weight_decay=decay),
            "recording": lambda: data_dependent_run(order, activation, device, decay)}
    run = make[source]()
    metric = tiny_metric(run.gan)
    assert relative_error(gi.influence(run, metric), unrolled_influence(run, metric)) < 1e-10


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_equals_the_product_of_dense_jacobians(order):
    run = tiny_run(order, weight_decay=0.05)
    metric = tiny_metric(run.gan)
    u = torch.cat([g.flatten() for g in metric_gradient(run, metric).tensors()])
    expected = torch.zeros(run.n, dtype=torch.float64)
    sizes = [p.numel() for p in run.final.tensors()]

    for t in reversed(range(run.steps)):
        drawn, (z, generator_z) = run.schedule.indices(t), run.schedule.latents(t)

        def flat_step(theta, weights, t=t, drawn=drawn, z=z, generator_z=generator_z):
            parts = [p.view_as(like) for p, like in zip(theta.split(sizes), run.final.tensors())]
            generator, discriminator, *_ = run.final.rebuild(parts)
            after = textbook_step(run.gan, generator, discriminator, run.x[drawn], weights, z, z if generator_z is None else generator_z,
                                  *run.learning_rates[t], order, 0.05)
            return torch.cat([p.flatten() for player in after for p in player.values()])

        theta = torch.cat([p.flatten() for p in run.state(t).tensors()])
        by_state, by_weights = torch.func.jacrev(flat_step, (0, 1))(theta, torch.ones(len(drawn), dtype=torch.float64))
        expected[drawn] -= u @ by_weights
        u = u @ by_state
    assert relative_error(gi.influence(run, metric), expected) < 1e-10


@pytest.mark.parametrize("loss", ["non_saturating", "minimax", "wasserstein", "hinge", "least_squares"])
@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_error_of_a_fractional_removal_falls_like_its_square(order, loss, device):
    run = tiny_run(order, device=device, loss=loss)
    metric, j = tiny_metric(run.gan), int(run.schedule.indices(0)[0])
    predicted = gi.influence(run, metric)[j]
    fractions = np.logspace(-2, -3, 5)

    def measured(eps):
        keep = torch.ones(run.n, dtype=torch.float64, device=device)
        keep[j] = 1 - eps
        return metric(run.gan, last(run.walk(run.initial, 0, run.steps, keep))) - metric(run.gan, run.final)

    errors = [abs(float(measured(eps).detach() - eps * predicted)) for eps in fractions]
    assert 1.95 < np.polyfit(np.log(fractions), np.log(errors), 1)[0] < 2.05


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("last_epochs", [1, 2, None])
def test_pushing_forward_and_pulling_back_are_one_linear_map(order, last_epochs, device):
    run = tiny_run(order, device=device)
    metric = tiny_metric(run.gan)
    scores, gradient = gi.influence(run, metric, last_epochs), metric_gradient(run, metric).tensors()
    for j in (0, 5, run.n - 1):
        pushed = gi.parameter_influence(run, j, last_epochs).tensors()
        assert float(sum((g * p).sum() for g, p in zip(gradient, pushed))) == pytest.approx(float(scores[j]), rel=1e-10)


def test_an_instance_acts_on_the_generator_only_through_the_discriminator(monkeypatch):
    run = tiny_run("alternating")
    apply, passes = run.dynamics._apply, []

    def without_cross_block(player, parameters, *others):  # the generator's loss no longer sees the discriminator's parameters
        passes.append(player)
        if passes[-5:] == [0, 1, 1, 0, 1]:  # fakes, real and fake judged; the generator's own fakes, and these judged
            parameters = {name: p.detach() for name, p in parameters.items()}
            passes.clear()
        return apply(player, parameters, *others)

    metric = tiny_metric(run.gan)
    assert gi.influence(run, metric).abs().max() > 0
    run.dynamics._apply = without_cross_block
    with pytest.raises(ValueError, match="differs from a central difference in .*discriminator.0.weight"):
        gi.influence(run, metric)
    monkeypatch.setattr(INFLUENCE, "check_derivative", lambda run: None)
    assert torch.equal(gi.influence(run, metric), torch.zeros(run.n, dtype=torch.float64))


def test_a_window_of_one_step_is_zero_exactly_when_updates_are_simultaneous():
    x = tiny_data(6)
    for order, zero in (("simultaneous", True), ("alternating", False)):
        run = gi.train(tiny_gan(), x, epochs=1, batch_size=6, optimizer=gi.SGD(0.1), order=order)
        assert bool((gi.influence(run, tiny_metric(run.gan)) == 0).all()) is zero


def test_an_instance_outside_the_window_has_no_influence():
    run = tiny_run(n=27)  # 27 = 4·6 + 3: three sit out every epoch
    scores = gi.influence(run, tiny_metric(run.gan), last_epochs=1)
    rows, steps = run.draws(run.window(1))
    drawn = np.unique(rows)
    assert all(rows[steps == t].tolist() == run.schedule.indices(t).tolist() for t in range(run.window(1), run.steps)) and len(rows) == 24
    absent = np.setdiff1d(np.arange(27), drawn)
    assert len(absent) == 3 and bool((scores[absent] == 0).all()) and bool((scores[drawn] != 0).all())


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_many_metrics_share_one_sweep(order):
    run = tiny_run(order)
    metrics = {"all": tiny_metric(run.gan), "loss": gi.metrics.DiscriminatorLoss(tiny_data(10), run.gan.sample_latents(10, seed=2))}
    together = gi.influence(run, metrics, last_epochs=2)
    assert list(together) == ["all", "loss"]
    for name, metric in metrics.items():
        torch.testing.assert_close(together[name], gi.influence(run, metric, last_epochs=2), rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("stride", [1, 3, 12])
@pytest.mark.parametrize("graph_bytes", [1, 10**5, 10**9])
def test_memory_settings_do_not_change_the_result(stride, graph_bytes, monkeypatch):
    run = tiny_run(stride=stride, epochs=4)
    metric = tiny_metric(run.gan)
    expected = unrolled_influence(run, metric)
    monkeypatch.setattr(sys.modules["gan_influence.training.trajectory"], "GRAPH_BYTES", graph_bytes)
    assert relative_error(gi.influence(run, metric), expected) < 1e-10


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_compiled_equals_eager(order):
    run = tiny_run(order, epochs=2, activation=nn.ReLU, weight_decay=0.05)
    metrics = {"all": tiny_metric(run.gan), "loss": gi.metrics.DiscriminatorLoss(tiny_data(10), run.gan.sample_latents(10, seed=2))}
    eager, fast = gi.influence(run, metrics), gi.influence(run, metrics, compile=True)
    assert max(relative_error(fast[name], eager[name]) for name in metrics) < 1e-12


def test_single_precision_agrees_with_double():
    double, single = (tiny_run("simultaneous", dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert relative_error(gi.influence(single, tiny_metric(single.gan)), gi.influence(double, tiny_metric(double.gan))) < 1e-3
    assert gi.influence(single, tiny_metric(single.gan)).dtype == torch.float64


class Momentum:
    """Heavy-ball momentum, of nobody's: shows that an optimiser's memory is differentiated too."""

    name = "momentum"

    def __init__(self, rate):
        self.rate = rate

    def init(self, parameters):
        return {name: torch.zeros_like(p) for name, p in reversed(parameters.items())}  # in an order of its own

    def update(self, parameters, gradients, memory, learning_rate, number):
        memory = {name: 0.9 * memory[name] + g for name, g in gradients.items()}
        return {name: p - learning_rate * memory[name] for name, p in parameters.items()}, memory

    def learning_rates(self, steps):
        return torch.full((steps, 2), self.rate, dtype=torch.float64)

    def describe(self, steps):
        return {"rate": self.rate}


class Normalised(Momentum):
    """Gradients over their running length, a single number; a second number counts; and the rate falls with the steps before."""

    name = "normalised"

    def init(self, parameters):
        return {"length": torch.zeros((), dtype=torch.float64), "count": torch.zeros((), dtype=torch.float64)}

    def update(self, parameters, gradients, memory, learning_rate, number):
        length = 0.5 * memory["length"] + torch.stack([g.square().sum() for g in gradients.values()]).sum()
        step = learning_rate / (1 + 0.1 * number) / (0.1 + length).sqrt() * (1 + 0.01 * memory["count"])
        return {name: p - step * gradients[name] for name, p in parameters.items()}, {"length": length, "count": memory["count"] + 1}


@pytest.mark.parametrize("kind", [Momentum, Normalised])
def test_an_optimiser_with_memory_needs_nothing_else(kind, tmp_path):
    gan, x = tiny_gan(), tiny_data()
    run = gi.train(gan, x, epochs=2, batch_size=6, optimizer=kind(0.02), order="alternating")
    metric, j, eps = tiny_metric(gan), 4, 1e-5
    keep = torch.ones(run.n, dtype=torch.float64)
    keep[j] = 1 - eps
    measured = float(metric(gan, last(run.walk(run.initial, 0, run.steps, keep))).detach() - metric(gan, run.final).detach()) / eps
    assert float(gi.influence(run, metric)[j]) == pytest.approx(measured, rel=1e-3)
    one_by_one = [float(metric(gan, gi.retrain(run, [j])).detach() - metric(gan, run.final).detach()) for j in range(6)]
    for models_at_once in (1, 6):  # a stacked memory has a model in front, also where one model's is a single number
        assert gi.leave_one_out(run, metric, range(6), models_at_once=models_at_once).tolist() == pytest.approx(one_by_one, rel=1e-9)
    indices, latents, own = zip(*((run.schedule.indices(t), *run.schedule.latents(t)) for t in range(run.steps)))
    same = gi.Trajectory.from_recording(gan, x, indices, latents, kind(0.02), generator_latents=own, final=run.final)
    assert all(map(torch.equal, same.final.tensors(), run.final.tensors()))
    run.save(tmp_path / "run")
    again = gi.Trajectory.load(tmp_path / "run", gan, x, optimizer=kind(0.02))
    assert all(torch.equal(p, run.final.named()[name]) for name, p in again.final.named().items())
    assert torch.equal(gi.influence(again, metric), gi.influence(run, metric)), "in whatever order a memory is named"
    pushed = sum(float((g * p).sum()) for g, p in zip(metric_gradient(run, metric).generator.values(), gi.parameter_influence(run, j).generator.values()))
    assert pushed == pytest.approx(float(gi.influence(run, metric)[j]), rel=1e-9)
    with pytest.raises(ValueError, match=f"optimiser '{kind.name}'.*optimizer="):
        gi.Trajectory.load(tmp_path / "run", gan, x)


class Nameless(Momentum):
    name = ""


def test_an_optimiser_without_a_name_is_kept_in_memory(tmp_path):
    run = gi.train(tiny_gan(), tiny_data(), 1, 6, Nameless(0.02))
    assert gi.influence(run, tiny_metric(run.gan)).any()
    with pytest.raises(ValueError, match=r"of your own and has no name: give an optimiser a name and describe\(steps\)"):
        run.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


#: torch's own optimisers, and the values that they are.
OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.1), gi.SGD(0.1)),
    "nesterov": (lambda p: torch.optim.SGD(p, 0.05, 0.9, 0, 0.1, True), gi.SGD(0.05, 0.9, weight_decay=0.1, nesterov=True)),
    "adam": (lambda p: torch.optim.Adam(p, 0.02, (0.5, 0.99), weight_decay=0.1), gi.Adam(0.02, (0.5, 0.99), weight_decay=0.1)),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.02), gi.AdamW(0.02)),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, 0.01, weight_decay=0.1, momentum=0.5), gi.RMSprop(0.01, weight_decay=0.1, momentum=0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_optimisers_are_understood_and_followed(name):
    """The updates are torch's own, which the players' gradients are handed to; parameters without a gradient stay, their weight decay left out."""
    make, value = OPTIMIZERS[name]

    class Idle(nn.Linear):
        def __init__(self):
            super().__init__(5, 1)
            self.unused = nn.Parameter(torch.ones(3, 3))

    gan = tiny_gan()
    gan.discriminator[4] = Idle().double()
    gan = gi.GAN(gan.generator, gan.discriminator, latent_dim=3)
    pair = [make(module.parameters()) for module in (gan.generator, gan.discriminator)]
    run = gi.train(gan, tiny_data(), 2, 6, tuple(pair), seed=7, stride=1)
    assert repr(run.dynamics.optimizers[0]) == repr(value) and not any(optimizer.state for optimizer in pair)
    same = gi.train(gan, tiny_data(), 2, 6, value, seed=7)
    assert all(map(torch.equal, run.final.tensors(), same.final.tensors()))
    assert torch.equal(run.final.discriminator["4.unused"], torch.ones(3, 3, dtype=torch.float64))
    gradients, own = {0: [], 1: []}, [dict(module.named_parameters()) for module in (gan.generator, gan.discriminator)]
    last(run.walk(run.initial, 0, run.steps, watch=lambda t, player, found: gradients[player].append(found)))
    for player, optimizer in enumerate(pair):
        for found in gradients[player]:
            for key, p in own[player].items():
                p.grad = found.get(key)
            optimizer.step()
        for key, p in run.final[player].items():
            torch.testing.assert_close(own[player][key].detach(), p, rtol=1e-11, atol=1e-13)


# The linear-quadratic GAN has a closed form; latents with exact moments make it exact for a finite batch too.

class Quadratic:
    """V(a, b) = a² + 3b, through the generator's samples at the latents ±1."""

    name, higher_is_better = "a² + 3b", True

    def __call__(self, gan, state):
        high, low = gan.generate(state, torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
        return (((high - low) / 2) ** 2 + 3 * (high + low) / 2).sum()


def settled_lqgan(variant, steps, rate, n=40):
    x = torch.from_numpy(np.random.default_rng(0).normal(1.0, 2.0, (n, 1)))
    z = torch.from_numpy(np.random.default_rng(1).standard_normal((n, 1)))
    z = (z - z.mean()) / z.std(unbiased=False)
    gan = gi.models.lqgan(variant)
    a, b = x.std(unbiased=False).reshape(1), x.mean().reshape(1)
    optimum = gi.State({"a": a, "b": b}, {"w": torch.zeros(1, 2, dtype=torch.float64)})
    return gi.Trajectory.from_recording(gan, x, torch.arange(n).repeat(steps, 1), z.repeat(steps, 1, 1), gi.SGD(rate), "simultaneous",
                                        initial=optimum, final=optimum if variant == "non_saturating" else None,
                                        verify=variant == "non_saturating"), 2 * float(a), 3.0


@pytest.mark.parametrize("variant, rate, steps", [("non_saturating", 0.1, 4000), ("wasserstein", 0.05, 4000)])
@pytest.mark.parametrize("method", ["itd", "aid"])
def test_lqgan_at_its_optimum_has_the_closed_form(variant, rate, steps, method):
    run, v_a, v_b = settled_lqgan(variant, steps if method == "itd" else 1, rate)
    expected = gi.models.lqgan_influence(run.x, v_a, v_b)
    estimate = gi.influence(run, Quadratic(), method=method, iterations=100_000, tolerance=1e-15)
    assert relative_error(estimate, expected) < 1e-10


def test_aid_averages_over_the_batches_of_an_epoch():
    half = torch.from_numpy(np.random.default_rng(0).normal(1.0, 2.0, (20, 1)))
    z = torch.from_numpy(np.random.default_rng(1).standard_normal((20, 1)))
    z = (z - z.mean()) / z.std(unbiased=False)
    x, gan = torch.cat([half, half]), gi.models.lqgan()  # both batches of an epoch hold the same values: the optimum is a fixed point of each
    optimum = gi.State({"a": x.std(unbiased=False).reshape(1), "b": x.mean().reshape(1)}, {"w": torch.zeros(1, 2, dtype=torch.float64)})
    run = gi.Trajectory.from_recording(gan, x, torch.arange(40).view(2, 20), z.repeat(2, 1, 1), gi.SGD(0.1), "simultaneous", initial=optimum, final=optimum)
    expected = gi.models.lqgan_influence(x, 2 * float(optimum.generator["a"]), 3.0)
    assert relative_error(gi.influence(run, Quadratic(), method="aid", tolerance=1e-15), expected) < 1e-10


def test_aid_does_not_depend_on_the_step_size():
    scores = [gi.influence(settled_lqgan("non_saturating", 1, rate)[0], Quadratic(), method="aid") for rate in (0.05, 0.1)]
    assert relative_error(scores[0], scores[1]) < 1e-9


def test_aid_says_where_training_would_not_stay():
    run, *_ = settled_lqgan("non_saturating", 1, 20.0)
    with pytest.warns(UserWarning, match="spectral radius .*, above 1: lower the learning rate"):
        gi.influence(run, Quadratic(), method="aid")


@pytest.mark.parametrize("seed", range(3))
def test_planted_outliers_are_harmful_and_their_removal_helps(seed):
    data = gi.data.normal_2d(train=300, valid=200, test=200, seed=seed)
    x = data.train.clone()
    x[:15] = torch.tensor([-6.0, 6.0], dtype=torch.float64)
    gan = gi.models.fcgan(seed)
    run = gi.train(gan, x, epochs=100, batch_size=50, optimizer=gi.SGD(0.05), seed=seed)
    metric = gi.metrics.AverageLogLikelihood(data.valid, gan.sample_latents(200, seed=1))
    harmful = gi.harmfulness(gi.influence(run, metric, last_epochs=5), metric)
    assert (harmful[:15] > 0).all()
    for removed in gi.retrain(run, [range(15), harmful.topk(15).indices], last_epochs=5):  # inliers may be worse still, which is no mistake
        assert metric(gan, removed) > metric(gan, run.final)


def test_little_memory_costs_time_and_no_digit(monkeypatch):
    run = gi.train(tiny_gan(), tiny_data(24), 5, 2, gi.Adam(0.05), stride=60)
    expected = gi.influence(run, tiny_metric(run.gan))
    monkeypatch.setattr(sys.modules["gan_influence.training.trajectory"], "GRAPH_BYTES", 1)
    monkeypatch.setattr(sys.modules["gan_influence.readings.influence"], "STATES_BYTES", 1)
    kept = []
    monkeypatch.setattr(gi.Trajectory, "walk", lambda self, *arguments, walk=gi.Trajectory.walk, **options: kept.append(arguments[1:3]) or walk(
        self, *arguments, **options))
    assert torch.equal(gi.influence(run, tiny_metric(run.gan)), expected)
    assert any(0 < start < 60 and stop - start > 1 for start, stop in kept)  # parts of the segment were walked again
