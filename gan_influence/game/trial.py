"""A trial of two networks on a few rows: what the engine could not follow is refused before a run begins, by name."""

import torch
from torch import Tensor

from ..tools.noise import DICE, dice, generator_state
from ..tools.streams import torch_stream
from .gan import GAN
from .layers import Pure, changed
from .losses import LOSSES


@torch.no_grad()
def check_game(gan: GAN, x: tuple[Tensor, ...], z: tuple[Tensor, ...], between: tuple[float, float], confirmed: bool = False) -> None:
    """Try both networks on a few real rows and latents; notes which of them draw random numbers.

    Args:
        x, z: rows as the discriminator and the generator take them; more than one row of each.
        between: the smallest and the largest number of all instances.
        confirmed: the loss was seen at work, so what it assumes of the discriminator need not be guessed.

    Raises:
        ValueError: when shapes do not fit, when data lies outside what the generator can make, when a logit loss meets probabilities or
            the other way round, when a forward pass leaves something behind that no pure form accounts for or draws random numbers that
            torch's seed does not decide, or when an instance's output depends on its neighbours other than through batch normalisation.
    """
    state = gan.state()
    players = (gan.apply_generator, state.generator, state.generator_buffers), (gan.apply_discriminator, state.discriminator, state.discriminator_buffers)
    (generator, *g), (discriminator, *d) = players
    try:
        fake, _ = generator(*g, *z)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the generator must take latents of shape {tuple(z[0].shape)}, as latent_dim={gan.latent_dim} says, but refuses "
                         f"them ({error}): make the two agree") from error
    if fake.shape[1:] != x[0].shape[1:] and not (confirmed and fake[0].numel() == x[0][0].numel()):  # a loop may reshape them
        raise ValueError(f"the generator makes instances of shape {tuple(fake.shape[1:])}, but the data has {tuple(x[0].shape[1:])}: make the two agree")
    low, high = _range(generator, g, z)
    if not low <= between[0] <= between[1] <= high:
        raise ValueError(f"whatever its parameters are, the generator makes numbers within [{low:g}, {high:g}], but the data lies in "
                         f"[{between[0]:g}, {between[1]:g}]: rescale the data to what can be generated")
    for name, network, own, inputs in (("generator", generator, g, z), ("discriminator", discriminator, d, x)):
        _check_memory(name, network, own, inputs)
    output, _ = discriminator(*d, *x)
    if not gan.own_losses:
        if not isinstance(output, Tensor) or output.numel() != len(x[0]):
            seen = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(f"the discriminator must return one number per instance, (B,) or (B, 1); for {len(x[0])} instances it returned {seen}: minibatch "
                             "packing has no instance to remove; for several outputs override GAN.discriminator_losses and generator_losses")
        probabilities = returns_probabilities(gan, x)
        if not confirmed and probabilities != (gan.loss_name == "bce") and gan.loss_name in LOSSES:
            raise ValueError(f"the discriminator ends in a sigmoid and returns probabilities, but the loss {gan.loss_name!r} takes logits: take the sigmoid "
                             "out, or use loss='bce'" if probabilities else "the loss 'bce' takes probabilities, but the discriminator returns logits, "
                             "whatever number they are: use loss='non_saturating', or end it in a sigmoid")
    _check_coupling(discriminator, d, x)


def returns_probabilities(gan: GAN, x: tuple[Tensor, ...]) -> bool:
    """Whether the discriminator's outputs lie between 0 and 1, whatever its parameters are."""
    with torch.no_grad():
        return _range(gan.apply_discriminator, [gan.apply_discriminator.parameters(), gan.apply_discriminator.buffers()], x) == (0, 1)


def _range(network: Pure, own: list[dict[str, Tensor]], inputs: tuple) -> tuple[float, float]:
    """What a network can make, judged by what it makes under large random parameters, not by its layers' names."""
    random, seen = torch_stream("derivative", 1), []
    for _ in range(3):
        wild = {name: p + 10 * torch.randn(p.shape, generator=random).to(p) for name, p in own[0].items()}
        out, _ = network(wild, *own[1:], 3 * torch.randn(inputs[0].shape, generator=random).to(inputs[0]), *inputs[1:])
        seen.append((float(out.min()), float(out.max())) if isinstance(out, Tensor) else (-torch.inf, torch.inf))
    low, high = min(a for a, _ in seen), max(b for _, b in seen)
    return (0, 1) if 0 <= low <= high <= 1 else (-1, 1) if -1 <= low <= high <= 1 else (-torch.inf, torch.inf)


def _check_memory(player: str, network: Pure, own: list[dict[str, Tensor]], inputs: tuple) -> None:
    before = network.memory()
    with dice(0, inputs[0].device):
        start = generator_state(inputs[0].device)
        together, _ = network(*own, *inputs)
        network.random = not torch.equal(start, generator_state(inputs[0].device))
    with dice(0, inputs[0].device):
        again, _ = network(*own, *inputs)
    for layer, key in changed(before, network.memory()):
        raise ValueError(f"the {player} must be a function of its arguments alone, but a forward pass changed {key!r} of its layer {layer}: take out "
                         "what counts or remembers; batch and spectral normalisation may stay")
    parts = [torch.utils._pytree.tree_leaves(out) for out in (together, again)]
    if not all(map(torch.equal, *parts)):
        raise ValueError(f"the {player} must be a function of its arguments and of torch's seed, but two calls on the same input under one seed differ: take "
                         "out what draws from numpy, from random or from a generator of its own, and what remembers")


def _check_coupling(network: Pure, own: list[dict[str, Tensor]], x: tuple) -> None:
    """Weight 0 must be absence: compare with a forward pass over the other rows, and name the layer where they part."""
    weights = torch.ones(len(x[0]), dtype=x[0].dtype, device=x[0].device)
    weights[-1] = 0
    outputs, hooks, evaluate = [], [], network.random  # dropout has another mask for fewer rows
    names = {layer: name for name, layer in network.module.named_modules()}
    with DICE, network.turn:  # the hooks are to see no other thread's passes
        for layer in names:
            hooks.append(layer.register_forward_hook(lambda layer, _, out: outputs[-1].append((layer, out))))
        try:
            for rows, w in ((len(weights) - 1, None), (len(weights), weights)):
                outputs.append([])
                with dice(0, x[0].device):
                    start = generator_state(x[0].device)
                    network(*own, *(part[:rows] for part in x), weights=w, training=not evaluate)
                    moved = not torch.equal(start, generator_state(x[0].device))
        finally:
            for hook in hooks:
                hook.remove()
    if evaluate and moved:
        return  # it is noisy even then, so rows cannot be compared
    for (layer, alone), (_, together) in zip(*outputs[-2:]):
        alone, together = (torch.utils._pytree.tree_leaves(out) for out in (alone, together))
        for a, b in zip(alone, together):
            if isinstance(a, Tensor) and a.ndim and len(a) == len(weights) - 1 and len(b) == len(weights) and not torch.allclose(
                    a, b[:-1], rtol=1e-3, atol=1e-5):
                name = f"its layer {names[layer]!r} ({type(layer).__name__.lstrip('_')})" if names[layer] else "its forward"
                raise ValueError(f"the discriminator's output for one instance may depend on the others of its batch through batch normalisation alone, but "
                                 f"{name} "
                                 "gave another when one of them was taken away: a minibatch standard deviation, or packing, has no pure form; take it out")
