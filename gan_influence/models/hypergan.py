"""A GAN whose generator is made from the data: there an instance acts on the generator directly, not only through the discriminator."""

from collections.abc import Callable
from types import SimpleNamespace

from torch import Tensor, nn
from torch.func import functional_call, grad

from ..game.losses import named_loss
from ..game.state import State
from .hypernetwork import Hypernetwork, autophagy


def hypergan_step(hyper: Hypernetwork, discriminator: nn.Module, learning_rate: float | tuple[float, float], loss: str = "non_saturating",
                  penalty: float = 0.0) -> Callable[[State, tuple, Tensor], State]:
    """One simultaneous SGD step of a hypernetwork H and a discriminator D, for `gi.record`; the generator is G with the weights H(batch).

    Args:
        hyper: H, whose target is the generator G.
        discriminator: D, instances (B, ...) to one number each.
        learning_rate: of both, or H's and D's.
        loss: see `gan_influence.GAN`.
        penalty: λ of the autophagy penalty that H pays beside its loss.

    Returns:
        step(state, (x, z), weights) -> state. `state.generator` holds H's parameters and `state.average` the generator's weights. Latents z are
        (1, B, latent), or (1 + resamples, B, latent) with a penalty: the first B for the game, the others for drawing again. With z = None
        nothing is trained: x is what the generator is made from, into `state.average`. An instance of weight 0 is in no mean and no loss.

    Raises:
        ValueError: for a penalty without the latents to draw again.

    >>> import torch
    >>> hyper, discriminator = Hypernetwork(nn.Linear(1, 2), width=2), nn.Linear(2, 1)
    >>> step, x = hypergan_step(hyper, discriminator, 0.1), torch.randn(6, 2)
    >>> state = step(hypergan_state(hyper, discriminator), (x, torch.randn(1, 6, 1)), torch.ones(6))
    >>> hyper.call(step(state, (x, None), torch.ones(6)).average, torch.zeros(5, 1)).shape
    torch.Size([5, 2])
    """
    pays, rates = named_loss(loss), learning_rate if isinstance(learning_rate, tuple) else (learning_rate, learning_rate)

    def step(state: State, batch: tuple, weights: Tensor) -> State:
        x, z = batch
        if z is None:
            return state._replace(average=functional_call(hyper, state.generator, (x, weights)))
        if penalty and len(z) < 2:
            raise ValueError(f"an autophagy penalty draws again from what was made, but the latents have shape {tuple(z.shape)}: "
                             "give (1 + resamples, B, latent)")

        def make(phi: dict, rows: Tensor) -> dict:
            return functional_call(hyper, phi, (rows, weights if rows is x else None))

        def judge(psi: dict, rows: Tensor) -> Tensor:
            return functional_call(discriminator, psi, (rows,)).flatten()

        def hypernetwork_loss(phi: dict) -> Tensor:
            value = pays.generator(judge(state.discriminator, hyper.call(make(phi, x), z[0]))).mean()
            if penalty:
                again = iter(z[1:])
                value = value + penalty * autophagy(lambda rows: make(phi, rows), lambda made: hyper.call(made, next(again)), x, len(z) - 1)
            return value

        def discriminator_loss(psi: dict) -> Tensor:
            fake = hyper.call(make(state.generator, x), z[0])
            return (weights * pays.real(judge(psi, x))).sum() / len(x) + pays.fake(judge(psi, fake)).mean()

        slopes = grad(hypernetwork_loss)(state.generator), grad(discriminator_loss)(state.discriminator)
        moved = ({name: p - rate * g[name] for name, p in player.items()} for player, g, rate in zip(state, slopes, rates))
        return state._replace(generator=next(moved), discriminator=next(moved))

    return step


def hypergan_state(hyper: Hypernetwork, discriminator: nn.Module) -> State:
    """Where such a run starts: H's and D's parameters, and the generator's own weights until one is made from data."""
    return State(*({name: p.detach().clone() for name, p in module.named_parameters()} for module in (hyper, discriminator)),
                 average={name: p.detach().clone() for name, p in hyper.target.named_parameters()})


def through(hyper: Hypernetwork, metric) -> Callable:
    """A metric of `gi.metrics` as such a run is asked for it: on what the generator makes that `state.average` holds.

    >>> import torch
    >>> from gan_influence.metrics import AverageLogLikelihood
    >>> hyper, x = Hypernetwork(nn.Linear(1, 1), width=1), torch.zeros(3, 1)
    >>> through(hyper, AverageLogLikelihood(x, x))(None, hypergan_state(hyper, nn.Linear(1, 1))).shape
    torch.Size([])
    """
    maker = SimpleNamespace(generate=lambda state, latents: hyper.call(state.average, latents))

    def value(gan, state: State) -> Tensor:
        return metric(maker, state)

    value.name, value.higher_is_better = metric.name, metric.higher_is_better
    return value
