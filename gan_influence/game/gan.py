"""The game: two networks, their losses, and the latent sampler."""

import math

import torch
from torch import Tensor, nn

from ..tools.streams import stream
from .layers import Pure, changed
from .losses import LOSSES, Loss
from .state import State

RANGES = {nn.Tanh: (-1, 1), nn.Sigmoid: (0, 1)}  #: what a generator that ends in such a layer can make


class GAN:
    """Two networks that play against each other.

    It works on private copies of the two modules: what is done to `generator` and `discriminator` afterwards changes nothing here.

    Args:
        generator: module mapping latents (B, latent_dim) to instances (B, ...).
        discriminator: module mapping instances (B, ...) to one logit each, (B,) or (B, 1).
        latent_dim: length of a latent vector; latents are standard normal.
        loss: a name in `gan_influence.losses.LOSSES`, or a `Loss` of your own.
        weight_decay: both players pay ½·weight_decay·‖kernels‖², kernels being parameters of two or more dimensions.

    Raises:
        ValueError: for layers that couple the instances of a batch (batch normalisation), draw random numbers (dropout) or keep a memory
            (spectral normalisation) while training; for players that share parameters, or are not both of float32 or both of float64.

    Source: Goodfellow et al. 2014 (the game); Terashita et al., ICLR 2021 (per-instance weights).

    >>> gan = GAN(nn.Linear(2, 3), nn.Linear(3, 1), latent_dim=2)
    >>> gan.generate(gan.state(), gan.sample_latents(5, seed=0)).shape
    torch.Size([5, 3])
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent_dim: int,
                 loss: str | Loss = "non_saturating", weight_decay: float = 0.0):
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}: choose one of {', '.join(LOSSES)}, or pass a gan_influence.losses.Loss")
        self.generator, self.discriminator = generator, discriminator
        self.apply_generator, self.apply_discriminator = Pure("generator", generator), Pure("discriminator", discriminator)
        _check_parameters(generator, discriminator)
        self.latent_dim = latent_dim
        self.loss_name = loss if isinstance(loss, str) else "custom"
        self.loss = LOSSES[loss] if isinstance(loss, str) else loss
        self.weight_decay = weight_decay

    def __reduce__(self):
        # For other processes. A named loss travels by its name, because its functions have none.
        loss = self.loss if self.loss_name == "custom" else self.loss_name
        return type(self), (*self.networks, self.latent_dim, loss, self.weight_decay)

    @property
    def networks(self) -> tuple[nn.Module, nn.Module]:
        """The private copies of generator and discriminator, which are what is trained."""
        return self.apply_generator.module, self.apply_discriminator.module

    def copy(self) -> "GAN":
        """The same game with private copies of its own."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__
        other.apply_generator, other.apply_discriminator = map(Pure, ("generator", "discriminator"), self.networks)
        return other

    def to(self, device: str | torch.device) -> "GAN":
        """Move the private copies to a device, in place."""
        for module in self.networks:
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the generator's parameters are now."""
        return next(self.networks[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the generator's parameters; latents and instances follow it."""
        return next(self.networks[0].parameters()).dtype

    def state(self) -> State:
        """A copy of the parameters that the private copies hold, as a `State`."""
        return State(self.apply_generator.parameters(), self.apply_discriminator.parameters())

    def load(self, state: State) -> None:
        """Put a state's parameters into the two modules that were given, for sampling or for `torch.save`."""
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
            "generator": {name: list(p.shape) for name, p in self.networks[0].named_parameters()},
            "discriminator": {name: list(p.shape) for name, p in self.networks[1].named_parameters()},
            "latent_dim": self.latent_dim, "loss": self.loss_name, "weight_decay": self.weight_decay,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def check(self, x: Tensor, batch_size: int = 2) -> None:
        """Refuse networks whose output is not one pure function per instance, by trying a batch of real instances.

        Raises:
            ValueError: when shapes do not fit, when data lies outside a last tanh's or sigmoid's range, when a forward pass draws random
                numbers or leaves something behind, when two calls differ, or when an instance's logit depends on its neighbours.
        """
        last = type([*self.networks[0].modules()][-1])
        low, high = RANGES.get(last, (-math.inf, math.inf))
        if not low <= x.min() <= x.max() <= high:
            raise ValueError(f"the generator ends in {last.__name__} and makes numbers within [{low}, {high}], but the "
                             f"data lies in [{x.min():g}, {x.max():g}]: rescale the data to what can be generated")
        state, z, x = self.state(), self.sample_latents(batch_size, seed=0), x.split(batch_size)[0]
        with torch.no_grad():
            try:
                fake = self.generate(state, z)
            except RuntimeError as error:
                raise ValueError(f"the generator must take latents of shape (B, {self.latent_dim}), as latent_dim={self.latent_dim} says, but refuses "
                                 f"them ({error}): make the two agree") from error
            if fake.shape[1:] != x.shape[1:]:
                raise ValueError(f"the generator makes instances of shape {tuple(fake.shape[1:])}, "
                                 f"but the data has {tuple(x.shape[1:])}: make the two agree")
            self._check_network("generator", self.apply_generator, state.generator, z)
            self._check_network("discriminator", self.apply_discriminator, state.discriminator, x)

    def _check_network(self, player: str, network: Pure, parameters: dict[str, Tensor], inputs: Tensor) -> None:
        before, random = network.memory(), torch.get_rng_state()
        together = network(parameters, inputs)
        drew, again = not torch.equal(random, torch.get_rng_state()), network(parameters, inputs)
        if player == "discriminator" and together.numel() != len(inputs):
            raise ValueError("the discriminator must return one logit per instance, (B,) or (B, 1); "
                             f"for {len(inputs)} instances it returned shape {tuple(together.shape)}")
        for layer, key in changed(before, network.memory()):
            raise ValueError(f"the {player} must be a function of its arguments alone, but a forward pass changed {key!r} of its layer {layer}: take out "
                             "what counts or remembers")
        if drew or not torch.equal(together, again):
            raise ValueError(f"the {player} must be a function of its arguments alone, but {'it draws random numbers, so ' if drew else ''}two calls on the "
                             "same input differ: take out dropout, noise and power iterations, or call .eval() on it")
        alone = torch.cat([network(parameters, one[None]) for one in inputs[:2]]).reshape(together[:2].shape)
        if not torch.allclose(together[:2], alone, rtol=1e-3, atol=1e-5):
            raise ValueError(f"the {player}'s output for one instance must not depend on the others of its batch, but it "
                             "changed when they were taken away: replace batch statistics by layer or group normalisation")


def _check_parameters(generator: nn.Module, discriminator: nn.Module) -> None:
    seen = [" and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters()})) or "none" for module in (generator, discriminator)]
    if seen[0] != seen[1] or seen[0] not in ("float32", "float64"):
        raise ValueError(f"a GAN assumes parameters that are all of float32 or all of float64, but the generator's are of {seen[0]} and the discriminator's "
                         f"of {seen[1]}: convert them, e.g. by .float()")
    names = {id(p): name for name, p in generator.named_parameters()}
    for name, p in discriminator.named_parameters():
        if id(p) in names:
            raise ValueError(f"a GAN assumes two players with parameters of their own, but the generator's {names[id(p)]!r} is the discriminator's "
                             f"{name!r}: give each a copy")
