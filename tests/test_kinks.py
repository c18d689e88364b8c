"""Kinks given back as bumps, against integrals, smooth counterparts and torch's own derivative."""

import pytest
import torch
from test_influence import relative_error
from torch import Tensor, nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run
from gan_influence.game.kinks import WIDTH, _Bumped, with_bumps


@pytest.mark.parametrize("slope, mass", [(0.0, 1.0), (0.2, 1.0), (0.2, 0.3)])
def test_a_bump_holds_its_share_of_the_jump_and_nothing_else_changes(slope, mass):
    a = torch.linspace(-2, 2, 40_001, dtype=torch.float64, requires_grad=True)
    torch_own = nn.functional.leaky_relu(a, slope)
    value = _Bumped(slope, mass)(a)
    first, = torch.autograd.grad(value.sum(), a, create_graph=True)
    second, = torch.autograd.grad(first.sum(), a)
    assert torch.equal(value, torch_own) and torch.equal(first, torch.autograd.grad(torch_own.sum(), a)[0])
    assert float(torch.trapezoid(second, a.detach())) == pytest.approx(mass * (1 - slope), rel=1e-6)
    width = WIDTH * float(a.detach().square().mean().sqrt())
    assert second[a.abs() > width].abs().max() == 0 and float(second.max()) == pytest.approx(mass * (1 - slope) / width, rel=1e-3)


class Smooth(nn.Module):
    """The smooth layer whose second derivative the bump is: ReLU convolved with a triangle of a given width."""

    def __init__(self, width: Tensor):
        super().__init__()
        self.width = width

    def forward(self, a: Tensor) -> Tensor:
        t = (a / self.width).clamp(-1, 1)
        inside = torch.where(t < 0, (1 + t) ** 3 / 6, t + (1 - t) ** 3 / 6)
        return self.width * torch.where(a.abs() < self.width, inside, a.clamp(min=0) / self.width)


def test_it_is_the_smooth_layers_second_derivative():
    torch.manual_seed(0)
    a = torch.randn(500, dtype=torch.float64, requires_grad=True)
    width = WIDTH * a.detach().square().mean().sqrt()
    second = []
    for layer in (_Bumped(0.0, 1.0), Smooth(width)):
        first, = torch.autograd.grad(layer(a).sum(), a, create_graph=True)
        second.append(torch.autograd.grad(first.sum(), a)[0])
    torch.testing.assert_close(*second, rtol=1e-9, atol=1e-9)


def test_influence_changes_with_the_share_and_is_torchs_without():
    run = tiny_run(activation=nn.ReLU)
    metric = tiny_metric(run.gan)
    own, none, half, whole = (gi.influence(run, metric), *(gi.influence(run, metric, kinks=share) for share in (1e-12, 0.5, 1.0)))
    assert relative_error(none, own) < 1e-8 and relative_error(half, own) > 1e-3 and relative_error(whole, half) > 1e-3
    assert torch.equal(gi.influence(run, metric), own), "the run is as it was"


def test_a_layer_that_is_used_twice_is_replaced_twice():
    act = nn.ReLU()
    network = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 2)).double()
    gan = gi.GAN(network, nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), 3)
    assert [type(one) for one in with_bumps(gan, 1.0).apply_generator.module][1:4:2] == [_Bumped, _Bumped]


@pytest.mark.parametrize("activation, options, problem", [
    (nn.ReLU, {"kinks": 1.5}, r"between 0 and 1, but 1\.5 was given"),
    (nn.Tanh, {"kinks": 0.5}, r"nn\.ReLU and nn\.LeakyReLU layers, but these networks have none"),
    (nn.ReLU, {"kinks": 0.5, "method": "aid"}, 'leave out method="aid" and compile, or kinks'),
    (nn.ReLU, {"kinks": 0.5, "compile": True}, 'leave out method="aid" and compile, or kinks'),
])
def test_what_it_refuses(activation, options, problem):
    run = gi.train(tiny_gan(activation), tiny_data(), 1, 6, seed=0)
    with pytest.raises(ValueError, match=problem):
        gi.influence(run, tiny_metric(run.gan), **options)
