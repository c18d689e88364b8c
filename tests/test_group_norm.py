"""Group normalisation's closed forms against torch's own operations."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradgradcheck

import gan_influence as gi
from conftest import tiny_data
from gan_influence.game.group_norm import GroupNorm, _Forward

SHAPES = {"images": (5, 6, 4, 3), "a column": (5, 6), "one number a channel": (3, 6, 1, 1), "no rows": (0, 6, 4, 3)}


def pair(groups: int, **options) -> tuple[nn.GroupNorm, GroupNorm]:
    torch.manual_seed(0)
    layers = [kind(groups, 6, eps=1e-2, dtype=torch.float64, **options) for kind in (nn.GroupNorm, GroupNorm)]
    with torch.no_grad():
        for p, same in zip(*(layer.parameters() for layer in layers)):
            same.copy_(p.normal_())
    return layers


def drawn(shape: tuple[int, ...], count: int) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(count)]


def thrice(layer: nn.Module, x, t, u) -> list[torch.Tensor]:
    """Its value, and one derivative of each order by everything there is."""
    at = [x, t, *layer.parameters()]
    first = torch.autograd.grad((layer(x).sin() * t).sum(), at, create_graph=True)
    second = torch.autograd.grad((first[0] * u).sum() + sum(g.sin().sum() for g in first[1:]), at, create_graph=True)
    third = torch.autograd.grad(sum(g.cos().sum() for g in second), at, allow_unused=True, materialize_grads=True)
    return [layer(x).detach(), *first, *second, *third]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("groups", [1, 3])
def test_three_derivatives_are_those_of_torchs_operations(groups, shape):
    reference, layer = pair(groups)
    given = drawn(shape, 3)
    for mine, wanted in zip(thrice(layer, *given), thrice(reference, *given), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_second_derivative_is_that_of_differences(groups):
    weight, bias = drawn((6,), 2)
    assert gradgradcheck(lambda *given: _Forward.apply(*given, groups, 1e-2), (*drawn((2, 6, 2, 2), 1), weight, bias))


def test_tangents_and_stacked_models_pass_through():
    reference, layer = pair(3)
    x, tangent = (a.detach() for a in drawn((4, 6, 3), 2))
    with forward_ad.dual_level():
        ahead = [forward_ad.unpack_dual(one(forward_ad.make_dual(x, tangent))).tangent for one in (reference, layer)]
    stacked = [torch.func.vmap(one)(torch.stack([x, tangent])) for one in (reference, layer)]
    assert torch.equal(*ahead) and torch.equal(*stacked)


def test_without_gain_it_is_torchs():
    reference, layer = pair(3, affine=False)
    x, = drawn((4, 6, 3), 1)
    assert torch.equal(reference(x), layer(x))


def test_a_gan_has_it_and_its_own_module_has_not():
    given = nn.Sequential(nn.Linear(2, 6), nn.GroupNorm(2, 6), nn.Linear(6, 1)).double()
    gan = gi.GAN(nn.Linear(2, 2).double(), given, latent_dim=2)
    assert type(gan.networks[1][1]) is GroupNorm and type(given[1]) is nn.GroupNorm
    x = tiny_data()[:3]
    assert torch.equal(gan.discriminate(gan.state(), x), given(x).flatten())
