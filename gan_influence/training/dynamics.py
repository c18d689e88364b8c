"""The one pure function: a training step of the two players."""

import contextlib
from collections.abc import Callable
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..game.gan import GAN
from ..game.state import State

Pull = Callable[[State], tuple[State, Tensor]]
Order = Literal["alternating", "simultaneous"]


def deterministic(device: torch.device):
    """On CUDA, convolutions that repeat bit for bit; elsewhere nothing needs doing."""
    if device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return contextlib.nullcontext()


class Batch(NamedTuple):
    """What one step drew: everything random about it."""

    x: Tensor  #: real instances, (B, ...)
    z: Tensor  #: the discriminator's latents, (B, latent_dim)
    generator_z: Tensor | None  #: the generator's own latents; None when both players use `z`
    learning_rate: tuple[float, float]  #: the generator's and the discriminator's (0-d tensors serve as well)


class Dynamics:
    """The training step of a GAN under an optimiser, as a pure function `step(state, batch, weights) -> state`.

    Args:
        gan: the two networks and their losses.
        optimizer: an object with `init` and `update`, such as `SGD`.
        order: "alternating" updates the discriminator, then the generator against the updated discriminator;
            "simultaneous" takes both gradients at the same parameters.
        models: the states hold many models at once, see `stacked`.

    Source: Terashita et al., ICLR 2021, section 2 (simultaneous); Goodfellow et al. 2014 (alternating).
    """

    def __init__(self, gan: GAN, optimizer, order: Order = "alternating", models: bool = False):
        if order not in ("alternating", "simultaneous"):
            raise ValueError(f"unknown order {order!r}: choose 'alternating' or 'simultaneous'")
        self.gan, self.optimizer, self.order, self.models = gan, optimizer, order, models
        networks = gan.apply_generator, gan.apply_discriminator
        self.generator, self.discriminator = map(torch.func.vmap, networks) if models else networks
        self.kernels = [{name for name, p in module.named_parameters() if p.ndim >= 2 and gan.weight_decay}
                        for module in gan.networks]

    def initial(self) -> State:
        """The state that training starts from: the modules' parameters and a fresh optimiser memory."""
        return self.with_memory(self.gan.state())

    def with_memory(self, state: State) -> State:
        """The same parameters with a fresh optimiser memory."""
        return State(state.generator, state.discriminator,
                     self.optimizer.init(state.generator), self.optimizer.init(state.discriminator))

    def step(self, state: State, batch: Batch, weights: Tensor) -> State:
        """One update of both players; mutates nothing, draws nothing.

        Args:
            state: both players before the step.
            batch: what the step drew.
            weights: (B,), one per real instance: 1 present, 0 removed. The loss divides by B whatever the weights are.

        Returns:
            The state after the step. With grad mode enabled it is differentiable in `state` and `weights`.

        >>> import gan_influence as gi
        >>> gan = gi.models.fcgan()
        >>> dynamics = Dynamics(gan, gi.SGD(0.1), order="simultaneous")
        >>> batch = Batch(gi.data.normal_2d(train=5).train, gan.sample_latents(5, seed=0), None, (0.1, 0.1))
        >>> after = dynamics.step(dynamics.initial(), batch, torch.ones(5, dtype=torch.float64))
        >>> torch.equal(after.generator["0.weight"], dynamics.initial().generator["0.weight"])
        False
        """
        x, z, generator_z = batch.x, batch.z, batch.generator_z
        if self.models:
            x, z, generator_z = (None if a is None else a.expand(len(weights), *a.shape) for a in (x, z, generator_z))
        rate_g, rate_d = batch.learning_rate
        generator, discriminator = _leaves(state.generator), _leaves(state.discriminator)

        with torch.enable_grad():
            fake_logits = self._logits(discriminator, self.generator(generator, z))
            real_logits = self._logits(discriminator, x)
            loss = weights * self.gan.loss.real(real_logits) + self.gan.loss.fake(fake_logits)
        gradient = self._gradient(loss, discriminator, 1, retain=True)
        after_d, memory_d = self.optimizer.update(state.discriminator, gradient, state.discriminator_memory, rate_d)

        with torch.enable_grad():
            if self.order == "alternating" or generator_z is not None:
                opponent = after_d if self.order == "alternating" else discriminator
                # The gradient that a player takes is partial: the updated discriminator depends on the generator's old
                # parameters, so the generator's own loss is differentiated by an alias of them.
                generator = _leaves(state.generator, alias=True)
                fake_logits = self._logits(opponent, self.generator(generator, z if generator_z is None else generator_z))
            loss = self.gan.loss.generator(fake_logits)
        gradient = self._gradient(loss, generator, 0)
        after_g, memory_g = self.optimizer.update(state.generator, gradient, state.generator_memory, rate_g)
        return State(after_g, after_d, memory_g, memory_d)

    def linearize(self, state: State, batch: Batch, weights: Tensor, reusable: bool = False) -> tuple[State, Pull]:
        """One step, and the function that pulls a cotangent back through it.

        Returns:
            The state after the step, and pull(cotangent) -> (cotangent before the step, (B,) its product with the derivative
            by the weights). The pull-back holds the step's graph and may be called once, or as often as wanted if `reusable`.
        """
        state, weights = state.map(lambda p: p.detach().requires_grad_()), weights.detach().requires_grad_()
        with torch.enable_grad(), deterministic(weights.device):
            after = self.step(state, batch, weights)
        outputs, inputs = after.tensors(), [*state.tensors(), weights]

        def pull(cotangent: State) -> tuple[State, Tensor]:
            with deterministic(weights.device):
                *pulled, row = torch.autograd.grad(outputs, inputs, cotangent.tensors(), retain_graph=reusable, allow_unused=True, materialize_grads=True)
            return state.rebuild(pulled), row

        return after.map(Tensor.detach), pull

    @cached_property
    def stacked(self) -> "Dynamics":
        """The same dynamics for many models at once: states carry a leading model dimension M, weights are (M, B)."""
        return Dynamics(self.gan, self.optimizer, self.order, models=True)

    def _logits(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return self.discriminator(parameters, x).flatten(1 if self.models else 0)

    def _gradient(self, loss: Tensor, parameters: dict[str, Tensor], player: int, retain: bool = False) -> dict[str, Tensor]:
        differentiable = torch.is_grad_enabled()
        # Each instance's loss has derivative 1/B in the average. Stacked models are independent: each one's gradient is its own block.
        share = torch.full_like(loss, 1 / loss.shape[-1])
        gradients = torch.autograd.grad(loss, list(parameters.values()), share, create_graph=differentiable, retain_graph=retain or differentiable,
                                        allow_unused=True, materialize_grads=True)
        decay, kernels = self.gan.weight_decay, self.kernels[player]
        return {name: g + decay * p if name in kernels else g for (name, p), g in zip(parameters.items(), gradients)}


def _leaves(parameters: dict[str, Tensor], alias: bool = False) -> dict[str, Tensor]:
    """Parameters that a player's loss can be differentiated by, and that nothing else in the graph depends on.

    A state that came out of an earlier step needs aliases: there the generator was computed from the discriminator.
    """
    if not torch.is_grad_enabled():
        return {name: p.detach().requires_grad_() for name, p in parameters.items()}
    return {name: p if p.requires_grad and p.is_leaf and not alias else _alias(p) for name, p in parameters.items()}


def _alias(p: Tensor) -> Tensor:
    view = p.view_as(p)  # unlike detach, a view carries a forward-mode tangent along
    return view if view.requires_grad else view.requires_grad_()
