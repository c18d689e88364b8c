"""The game: two networks, their losses, and the latent sampler."""

import math

import torch
from torch import Tensor, nn

from ..tools.streams import stream
from .losses import LOSSES, Loss
from .state import State

_COUPLING = (nn.modules.batchnorm._BatchNorm,)
RANGES = {nn.Tanh: (-1, 1), nn.Sigmoid: (0, 1)}  #: what a generator that ends in such a layer can make
_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)


class GAN:
    """Two networks that play against each other.

    Args:
        generator: module mapping latents (B, latent_dim) to instances (B, ...).
        discriminator: module mapping instances (B, ...) to one logit each, (B,) or (B, 1).
        latent_dim: length of a latent vector; latents are standard normal.
        loss: a name in `gan_influence.losses.LOSSES`, or a `Loss` of your own.
        weight_decay: both players pay ½·weight_decay·‖kernels‖², kernels being parameters of two or more dimensions.

    Raises:
        ValueError: for layers that couple the instances of a batch (batch normalisation) or draw random numbers
            (dropout) while training; removing one instance would then not be removing one term of a sum.

    Source: Goodfellow et al. 2014 (the game); Terashita et al., ICLR 2021 (per-instance weights).

    >>> gan = GAN(nn.Linear(2, 3), nn.Linear(3, 1), latent_dim=2)
    >>> gan.generate(gan.state(), gan.sample_latents(5, seed=0)).shape
    torch.Size([5, 3])
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent_dim: int,
                 loss: str | Loss = "non_saturating", weight_decay: float = 0.0):
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}: choose one of {', '.join(LOSSES)}, or pass a gan_influence.losses.Loss")
        for player, module in (("generator", generator), ("discriminator", discriminator)):
            _refuse_coupled_layers(player, module)
        self.generator, self.discriminator = generator, discriminator
        self.latent_dim = latent_dim
        self.loss_name = loss if isinstance(loss, str) else "custom"
        self.loss = LOSSES[loss] if isinstance(loss, str) else loss
        self.weight_decay = weight_decay
        self.apply_generator = _Pure(generator)
        self.apply_discriminator = _Pure(discriminator)

    def __reduce__(self):
        # For other processes. A named loss travels by its name, because its functions have none.
        loss = self.loss if self.loss_name == "custom" else self.loss_name
        return type(self), (self.generator, self.discriminator, self.latent_dim, loss, self.weight_decay)

    @property
    def device(self) -> torch.device:
        """Where the generator's parameters are now."""
        return next(self.generator.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the generator's parameters; latents and instances follow it."""
        return next(self.generator.parameters()).dtype

    def state(self) -> State:
        """A copy of the parameters that the two modules hold now, as a `State`."""
        return State(self.apply_generator.parameters(), self.apply_discriminator.parameters())

    def load(self, state: State) -> None:
        """Put a state's parameters into the two modules, for sampling or for `torch.save`."""
        with torch.no_grad():
            for module, parameters in ((self.generator, state.generator), (self.discriminator, state.discriminator)):
                for name, parameter in module.named_parameters():
                    parameter.copy_(parameters[name])

    def sample_latents(self, n: int, seed: int, part: int = 0) -> Tensor:
        """Draw n standard normal latents, (n, latent_dim), a pure function of seed and part on every device; training never draws them.

        >>> gan = GAN(nn.Linear(2, 3), nn.Linear(3, 1), latent_dim=2)
        >>> bool((gan.sample_latents(4, seed=1) == gan.sample_latents(4, seed=1)).all())
        True
        """
        draw = stream("latents", seed, part).standard_normal((n, self.latent_dim))
        return torch.from_numpy(draw).to(self.device, self.dtype)

    def generate(self, state: State, latents: Tensor) -> Tensor:
        """Instances (n, ...) that `state`'s generator makes of latents (n, latent_dim); differentiable in the state."""
        return self.apply_generator(state.generator, latents)

    def discriminate(self, state: State, x: Tensor) -> Tensor:
        """Logits (n,) that `state`'s discriminator gives to instances (n, ...); differentiable in the state."""
        return self.apply_discriminator(state.discriminator, x).flatten()

    def describe(self) -> dict:
        """What a saved run must find again: parameter names and shapes, loss, weight decay."""
        return {
            "generator": {name: list(p.shape) for name, p in self.generator.named_parameters()},
            "discriminator": {name: list(p.shape) for name, p in self.discriminator.named_parameters()},
            "latent_dim": self.latent_dim, "loss": self.loss_name, "weight_decay": self.weight_decay,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def check(self, x: Tensor) -> None:
        """Refuse networks whose output is not one pure function per instance, by trying two real instances.

        Raises:
            ValueError: when shapes do not fit, when data lies outside a last tanh's or sigmoid's range, when two calls differ, or
                when an instance's logit depends on its neighbours.
        """
        state, z = self.state(), self.sample_latents(2, seed=0)
        with torch.no_grad():
            fake, pair = self.generate(state, z), x[:2]
            if fake.shape[1:] != x.shape[1:]:
                raise ValueError(f"the generator makes instances of shape {tuple(fake.shape[1:])}, "
                                 f"but the data has {tuple(x.shape[1:])}: make the two agree")
            last = type([*self.generator.modules()][-1])
            low, high = RANGES.get(last, (-math.inf, math.inf))
            if not low <= x.min() <= x.max() <= high:
                raise ValueError(f"the generator ends in {last.__name__} and makes numbers within [{low}, {high}], but the "
                                 f"data lies in [{x.min():g}, {x.max():g}]: rescale the data to what can be generated")
            for player, network, inputs in (("generator", self.apply_generator, (state.generator, z)),
                                            ("discriminator", self.apply_discriminator, (state.discriminator, pair))):
                together = network(*inputs)
                if player == "discriminator" and together.numel() != len(pair):
                    raise ValueError("the discriminator must return one logit per instance, (B,) or (B, 1); "
                                     f"for {len(pair)} instances it returned shape {tuple(together.shape)}")
                if not torch.equal(together, network(*inputs)):
                    raise ValueError(f"the {player} must be a function of its arguments alone, but two calls on the same "
                                     "input differ: take out dropout, noise and power iterations, or call .eval() on it")
                alone = torch.cat([network(inputs[0], one[None]) for one in inputs[1]]).reshape(together.shape)
                if not torch.allclose(together, alone, rtol=1e-3, atol=1e-5):
                    raise ValueError(f"the {player}'s output for one instance must not depend on the others of its batch, but it "
                                     "changed when they were taken away: replace batch statistics by layer or group normalisation")


class _Pure:
    """A module as a pure function of (parameters, input).

    It does what torch.func.functional_call does at a third of the cost: parameters are put into the module's own
    slots for the length of one call. Not for use from several threads at once.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.slots = [(sub._parameters, key, f"{prefix}.{key}" if prefix else key)
                      for prefix, sub in module.named_modules(remove_duplicate=False) for key, p in sub._parameters.items() if p is not None]
        canonical = {id(p): name for name, p in module.named_parameters()}  # tied weights have one name
        self.slots = [(slot, key, canonical[id(slot[key])]) for slot, key, _ in self.slots]

    def __call__(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        own = [slot[key] for slot, key, _ in self.slots]
        try:
            for slot, key, name in self.slots:
                slot[key] = parameters[name]
            return self.module(x)
        finally:
            for (slot, key, _), parameter in zip(self.slots, own):
                slot[key] = parameter

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}


def _refuse_coupled_layers(player: str, module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if layer.training and isinstance(layer, _COUPLING):
            raise ValueError(f"influence assumes that instances meet only in a sum, but layer {name!r} of the {player} is "
                             f"{type(layer).__name__}, which mixes the instances of a batch: use GroupNorm, or call .eval() on it")
        if layer.training and isinstance(layer, _RANDOM) and getattr(layer, "p", 1):
            raise ValueError(f"influence assumes that a training step can be replayed, but layer {name!r} of the {player} is "
                             f"{type(layer).__name__}, which draws random numbers: remove it, or call .eval() on it")
