"""The game: two networks, their losses, and the latent sampler."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..tools.noise import dice
from ..tools.streams import stream
from .layers import Pure
from .losses import Loss, named_loss
from .penalties import R1, GradientPenalty
from .state import State


class GAN:
    """Two networks that play against each other.

    It works on private copies of the two modules: what is done to `generator` and `discriminator` afterwards changes nothing here.
    Layers that are in training mode train: batch normalisation normalises by its batch, dropout drops. Parameters that do not require
    a gradient are constants.

    Args:
        generator: module mapping latents (B, ...) to instances (B, ...).
        discriminator: module mapping instances (B, ...) to one number each, (B,) or (B, 1).
        latent_dim: length of a latent vector, or the shape of one latent, such as (100, 1, 1).
        loss: a name in `gan_influence.losses.LOSSES`, the discriminator's and the generator's with a slash between them, or a `Loss` of your own.
        weight_decay: both players pay ½·weight_decay·‖kernels‖², kernels being parameters of two or more dimensions.
        penalty: an `R1` or a `GradientPenalty` that the discriminator pays.
        latents: "normal", or "uniform" in [−1, 1].

    Where the data are tuples, of images and labels say, the discriminator is called with as many of a tuple's tensors as its forward
    takes, and so is the generator with tuples of latents; with a generated instance it is given the other latents (the labels) too.
    For losses that need more (auxiliary classifiers), override `discriminator_losses` and `generator_losses`; of several outputs a penalty takes the first.

    Raises:
        ValueError: for layers without a pure form; for players that share parameters, or are not both of float32 or both of float64.

    Source: Goodfellow et al. 2014 (the game); Terashita et al., ICLR 2021 (per-instance weights).

    >>> gan = GAN(nn.Linear(2, 3), nn.Linear(3, 1), latent_dim=2)
    >>> gan.generate(gan.state(), gan.sample_latents(5, seed=0)).shape
    torch.Size([5, 3])
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent_dim: int | Sequence[int], loss: str | Loss = "non_saturating",
                 weight_decay: float = 0.0, penalty: R1 | GradientPenalty | None = None, latents: str = "normal"):
        if latents not in ("normal", "uniform"):
            raise ValueError(f"latents are 'normal' or 'uniform' in [-1, 1], but got {latents!r}: for others, bring your own loop and gi.Recorder")
        self.loss_name = loss if isinstance(loss, str) else "custom"
        self.loss = named_loss(loss) if isinstance(loss, str) else loss
        self.generator, self.discriminator = generator, discriminator
        self.apply_generator, self.apply_discriminator = Pure("generator", generator), Pure("discriminator", discriminator)
        _check_parameters(generator, discriminator)
        self.latent_dim = latent_dim if isinstance(latent_dim, int) else tuple(latent_dim)
        self.weight_decay, self.penalty, self.latents = weight_decay, penalty, latents

    def __reduce__(self):
        # For other processes. A named loss travels by its name, because its functions have none.
        players = self.apply_generator.copy(), self.apply_discriminator.copy()
        modules = dict(zip(("generator", "discriminator"), (player.module for player in players)))
        attributes = self.__dict__ | modules | {"loss": self.loss if self.loss_name == "custom" else None}
        return _rebuild, (type(self), {key: value for key, value in attributes.items() if not isinstance(value, Pure)}, [player.random for player in players])

    @property
    def networks(self) -> tuple[nn.Module, nn.Module]:
        """The private copies of generator and discriminator, which are what is trained."""
        return self.apply_generator.module, self.apply_discriminator.module

    def copy(self) -> "GAN":
        """The same game with private copies of its own."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__
        other.apply_generator, other.apply_discriminator = self.apply_generator.copy(), self.apply_discriminator.copy()
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

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one latent."""
        return (self.latent_dim,) if isinstance(self.latent_dim, int) else self.latent_dim

    def state(self) -> State:
        """A copy of the parameters and buffers that the private copies hold, as a `State`."""
        players = self.apply_generator, self.apply_discriminator
        return State(*(player.parameters() for player in players), {}, {}, *(player.buffers() for player in players))

    def load(self, state: State) -> None:
        """Put a state's parameters and buffers into the two modules that were given, for sampling or for `torch.save`."""
        with torch.no_grad():
            for module, values in ((self.generator, state.generator | state.generator_buffers),
                                   (self.discriminator, state.discriminator | state.discriminator_buffers)):
                own = dict(module.named_parameters()) | dict(module.named_buffers())
                for name, value in values.items():
                    own[name].copy_(value)

    def sample_latents(self, n: int, seed: int, part: int = 0) -> Tensor:
        """Draw n latents, (n, latent_dim), a pure function of seed and part on every device; training never draws them.

        >>> gan = GAN(nn.Linear(2, 3), nn.Linear(3, 1), latent_dim=2)
        >>> bool((gan.sample_latents(4, seed=1) == gan.sample_latents(4, seed=1)).all())
        True
        """
        return torch.from_numpy(draw_latents(stream("latents", seed, part), (n, *self.latent_shape), self.latents)).to(self.device, self.dtype)

    def generate(self, state: State, latents: Tensor | tuple) -> Tensor:
        """Instances (n, ...) as one would deploy them: all layers evaluate, by the moving average where `state` has one; differentiable in the state."""
        values = state.average or state.generator | state.generator_buffers
        with dice(None if self.apply_generator.random is False else 0, self.device):  # noise that is drawn even then is the same at every call
            return self.apply_generator(values, values, *columns(latents), training=False)[0]

    def discriminate(self, state: State, x: Tensor | tuple) -> Tensor:
        """What `state`'s discriminator says of instances (n, ...) when all of its layers evaluate, (n,); differentiable in the state."""
        return self.apply_discriminator(state.discriminator, state.discriminator_buffers, *columns(x), training=False)[0].flatten()

    def discriminator_losses(self, real, fake, x: tuple, z: tuple) -> tuple[Tensor | None, Tensor | None]:
        """The discriminator's loss of every real and of every generated instance, (B,) each.

        Args:
            real, fake: its output for the real batch, and for the generated one; None where a pass does not have it.
            x, z: the real batch and the latents, tuples of tensors.
        """
        return real if real is None else self.loss.real(real.flatten()), fake if fake is None else self.loss.fake(fake.flatten())

    def generator_losses(self, fake, z: tuple) -> Tensor:
        """The generator's loss of every generated instance, (B,), of the discriminator's output for them."""
        return self.loss.generator(fake.flatten())

    @property
    def own_losses(self) -> bool:
        """Whether a subclass overrides the losses."""
        return type(self).discriminator_losses is not GAN.discriminator_losses or type(self).generator_losses is not GAN.generator_losses

    def describe(self) -> dict:
        """What a saved run must find again: parameter names and shapes, loss, penalty, weight decay."""
        return {
            "generator": {name: list(p.shape) for name, p in self.networks[0].named_parameters()},
            "discriminator": {name: list(p.shape) for name, p in self.networks[1].named_parameters()},
            "latent_dim": self.latent_dim if isinstance(self.latent_dim, int) else list(self.latent_dim), "latents": self.latents,
            "loss": type(self).__name__ if self.own_losses else self.loss_name, "penalty": repr(self.penalty), "weight_decay": self.weight_decay,
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def draw_latents(stream, shape: tuple[int, ...], latents: str):
    """Latents of a NumPy generator, float64."""
    return stream.standard_normal(shape) if latents == "normal" else stream.uniform(-1, 1, shape)


def columns(x: Tensor | tuple | None) -> tuple:
    """Data or latents as a tuple of their columns."""
    return () if x is None else tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _rebuild(kind: type[GAN], attributes: dict, random: list[bool | None]) -> GAN:
    gan = object.__new__(kind)
    gan.__dict__ |= attributes
    gan.loss = named_loss(gan.loss_name) if gan.loss is None else gan.loss
    gan.apply_generator, gan.apply_discriminator = Pure("generator", gan.generator, random[0]), Pure("discriminator", gan.discriminator, random[1])
    return gan


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
