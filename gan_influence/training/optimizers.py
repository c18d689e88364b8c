"""Optimisers as values: what they remember goes in and comes out. Their updates are torch.optim's, made of differentiable operations."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Optimizer:
    """What the optimisers share: a learning rate, and memory kept as "<kind>.<parameter>".

    An optimiser is three methods. `init(parameters)` returns its memory; `update(parameters, gradients, memory, learning_rate, number)`
    returns new parameters and memory, is made of differentiable operations and leaves alone what has no gradient; `learning_rates(steps)`
    returns both players' rates, (steps, 2) float64, generator first. `number` counts the player's updates before this one. For `save`
    it also has a `name`, and `describe(steps)` for the arguments that build it again.

    Args of all:
        lr: η of both players; a number, a pair (generator's, discriminator's) of what follows, a list with one number per step, or a
            function of the step.
        generator, discriminator: one player's own η, by name.
        weight_decay: as torch.optim has it, of all parameters; `GAN`'s is of kernels alone.
    """

    name, kinds, options, elementwise = "", (), (), True

    def __init__(self, lr=None, *, generator=None, discriminator=None, **options):
        pair = lr if isinstance(lr, tuple) else (lr, lr)
        if len(pair) != 2:
            raise ValueError(f"a tuple of learning rates is a pair (generator's, discriminator's), but has {len(pair)} entries: give a list for one per step")
        self.generator, self.discriminator = (own if given is None else given for own, given in zip(pair, (generator, discriminator)))
        if self.generator is None or self.discriminator is None:
            name = type(self).__name__
            raise ValueError(f"both players need a learning rate: {name}(1e-3), or {name}((1e-3, 4e-3)) for generator and discriminator")
        for option, value in options.items():
            numbers = value if isinstance(value, (tuple, list)) else (value,)
            good = all(isinstance(one, (bool, int, float)) and 0 <= one < (1 if option == "betas" else float("inf")) for one in numbers)
            if not good or isinstance(value, (tuple, list)) != (option == "betas") or option == "betas" and len(value) != 2:
                raise ValueError(f"{type(self).__name__} takes {option} as torch.optim does, 0 or more (betas: a pair below 1), but got {value!r}")
            setattr(self, option, tuple(value) if option == "betas" else value)

    def init(self, parameters: Tensors) -> Tensors:
        """The memory before the first step: zeros."""
        return {f"{kind}.{name}": torch.zeros_like(p) for kind in self.kinds for name, p in parameters.items()}

    def update(self, parameters: Tensors, gradients: Tensors, memory: Tensors, learning_rate: float | Tensor,
               number: int | Tensor = 0) -> tuple[Tensors, Tensors]:
        """New parameters and memory; rate and number are numbers or 0-d tensors."""
        floor = self.floor(gradients) if self.kinds and torch.is_grad_enabled() else None
        parameters, memory = dict(parameters), dict(memory)
        for name, g in gradients.items():
            own = [memory[f"{kind}.{name}"] for kind in self.kinds]
            parameters[name], *own = self.one(parameters[name], g, own, learning_rate, number, floor)
            memory |= zip((f"{kind}.{name}" for kind in self.kinds), own)
        return parameters, memory

    @staticmethod
    def floor(gradients: Tensors) -> Tensor:
        """A second moment at or below this is rounding noise of gradients that are zero by construction, such as of a bias before batch
        normalisation. Steps along it are of the size of the learning rate whatever the gradient's, so they have no derivative worth the name
        (the root's is 5e17): none is taken."""
        largest = torch.stack([g.detach().abs().max() for g in gradients.values()]).max()
        return 1e3 * (largest * torch.finfo(largest.dtype).eps).square()

    def learning_rates(self, steps: int) -> Tensor:
        """Both players' rates at every step, (steps, 2) float64, generator first."""
        return torch.stack([_per_step(rate, steps) for rate in (self.generator, self.discriminator)], dim=1)

    def describe(self, steps: int = 1) -> dict:
        """The arguments that build this optimiser again, as JSON can hold them."""
        rates = {player: _plain(rate, steps) for player, rate in (("generator", self.generator), ("discriminator", self.discriminator))}
        return rates | {option: getattr(self, option) for option in self.options}

    def __repr__(self) -> str:
        own, other = (rate if isinstance(rate, (int, float)) else "a rate per step" for rate in (self.generator, self.discriminator))
        options = [f"{option}={getattr(self, option)}" for option in self.options if getattr(self, option)]
        return f"{type(self).__name__}({', '.join([str(own if own == other else (own, other)), *options])})"


class SGD(Optimizer):
    """Stochastic gradient descent as torch.optim.SGD: p ← p − η·gradient, with momentum where asked for.

    Source: the optimiser of both experiments in Terashita et al., ICLR 2021, is the plain one.

    >>> SGD(0.1, generator=[0.1, 0.05]).learning_rates(2)
    tensor([[0.1000, 0.1000],
            [0.0500, 0.1000]], dtype=torch.float64)
    """

    name, options = "sgd", ("momentum", "dampening", "nesterov", "weight_decay")

    def __init__(self, lr=None, momentum: float = 0, dampening: float = 0, nesterov: bool = False, weight_decay: float = 0, *,
                 generator=None, discriminator=None):
        super().__init__(lr, generator=generator, discriminator=discriminator, momentum=momentum, dampening=dampening, nesterov=nesterov,
                         weight_decay=weight_decay)
        if nesterov and (not momentum or dampening):
            raise ValueError("Nesterov's momentum takes a momentum and no dampening, as in torch.optim.SGD")
        self.kinds = ("momentum_buffer",) if momentum else ()

    def update(self, parameters: Tensors, gradients: Tensors, memory: Tensors, learning_rate, number=0) -> tuple[Tensors, Tensors]:
        if self.kinds or self.weight_decay or not gradients:
            return super().update(parameters, gradients, memory, learning_rate, number)
        moved = torch._foreach_add([parameters[name] for name in gradients], torch._foreach_mul(list(gradients.values()), -learning_rate))
        return parameters | dict(zip(gradients, moved)), memory

    def one(self, p: Tensor, g: Tensor, own: list[Tensor], rate, number, floor) -> tuple[Tensor, ...]:
        g = g + self.weight_decay * p if self.weight_decay else g
        if self.momentum:
            later = (number > 0).to(number.dtype) if isinstance(number, Tensor) else float(number > 0)  # the buffer starts as the first gradient
            buffer = (self.momentum * later) * own[0] + (1 - self.dampening * later) * g
            own, g = [buffer], g + self.momentum * buffer if self.nesterov else buffer
        return p + g * -rate, *own


class Adam(Optimizer):
    """Adam as torch.optim.Adam; weight decay is added to the gradient.

    Source: Kingma and Ba, ICLR 2015, algorithm 1.

    >>> Adam(2e-4, betas=(0.5, 0.999))
    Adam(0.0002, betas=(0.5, 0.999), eps=1e-08)
    """

    name, kinds, options, decoupled = "adam", ("exp_avg", "exp_avg_sq"), ("betas", "eps", "weight_decay"), False

    def __init__(self, lr=1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0, *, generator=None, discriminator=None):
        super().__init__(lr, generator=generator, discriminator=discriminator, betas=betas, eps=eps, weight_decay=weight_decay)

    def one(self, p: Tensor, g: Tensor, own: list[Tensor], rate, number, floor) -> tuple[Tensor, ...]:
        if self.weight_decay and self.decoupled:
            p = p * (1 - rate * self.weight_decay)
        elif self.weight_decay:
            g = g + self.weight_decay * p
        b1, b2 = self.betas
        mean, square = own[0] + (1 - b1) * (g - own[0]), b2 * own[1] + (1 - b2) * g * g
        correction = (1 - b2 ** (number + 1)) ** 0.5
        return p - (rate / (1 - b1 ** (number + 1))) * _divided(mean, square, lambda root: root / correction + self.eps,
                                                                                    floor if floor is None else floor * correction**2), mean, square


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameters beside the gradient's step, as torch.optim.AdamW.

    Source: Loshchilov and Hutter, ICLR 2019, algorithm 2.

    >>> AdamW(1e-3).weight_decay
    0.01
    """

    name, decoupled = "adamw", True

    def __init__(self, lr=1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2, *,
                 generator=None, discriminator=None):
        super().__init__(lr, betas, eps, weight_decay, generator=generator, discriminator=discriminator)


class RMSprop(Optimizer):
    """RMSprop as torch.optim.RMSprop, not centred.

    Source: Hinton, Neural Networks for Machine Learning, lecture 6e, 2012.

    >>> RMSprop(5e-5)
    RMSprop(5e-05, alpha=0.99, eps=1e-08)
    """

    name, options = "rmsprop", ("alpha", "eps", "weight_decay", "momentum")

    def __init__(self, lr=1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0, momentum: float = 0, *, generator=None, discriminator=None):
        super().__init__(lr, generator=generator, discriminator=discriminator, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)
        self.kinds = ("square_avg", "momentum_buffer") if momentum else ("square_avg",)

    def one(self, p: Tensor, g: Tensor, own: list[Tensor], rate, number, floor) -> tuple[Tensor, ...]:
        g = g + self.weight_decay * p if self.weight_decay else g
        square = self.alpha * own[0] + (1 - self.alpha) * g * g
        g = _divided(g, square, lambda root: root + self.eps, floor)
        if not self.momentum:
            return p - rate * g, square
        buffer = self.momentum * own[1] + g
        return p - rate * buffer, square, buffer


SECOND_MOMENTS = "exp_avg_sq", "square_avg"


def resting(memory: Tensors, share: float) -> dict[str, Tensor]:
    """Where second moments are at most this share of their player's largest: by parameter, as masks."""
    squares = {key.partition(".")[2]: v for key, v in memory.items() if key.partition(".")[0] in SECOND_MOMENTS}
    largest = max((float(v.max()) for v in squares.values()), default=0.0)
    return {name: v <= share * largest for name, v in squares.items()}


OPTIMIZERS = {kind.name: kind for kind in (SGD, Adam, AdamW, RMSprop)}
UNKNOWN = ("amsgrad", "maximize", "centered")  #: torch's options that have no counterpart here


def both_players(optimizer) -> tuple:
    """The generator's and the discriminator's optimiser, of one for both or of a pair; torch.optim's become values.

    Raises:
        ValueError: for what is no optimiser, or one of torch's that has no counterpart here.
    """
    pair = tuple(from_torch(one) for one in (optimizer if isinstance(optimizer, (tuple, list)) else [optimizer]))
    if len(pair) > 2:
        raise ValueError(f"two players have two optimisers, but {len(pair)} were given")
    for one in pair:
        if isinstance(one, type):
            raise ValueError(f"an optimiser is a value such as gi.SGD(1e-3), but the class {one.__name__} was given: call it with a learning rate")
        if missing := [method for method in ("init", "update", "learning_rates") if not hasattr(one, method)]:
            raise ValueError(f"an optimiser is a value such as gi.SGD(1e-3) or gi.Adam(2e-4), or one of torch.optim's, but {one!r} has no {missing[0]}")
    return pair[0], pair[-1]


def from_torch(optimizer):
    """The value that updates as a torch.optim optimiser does; anything else comes back as it is."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    decoupled = isinstance(optimizer, torch.optim.Adam) and optimizer.defaults.get("decoupled_weight_decay")
    kind = AdamW if decoupled else next((kind for kind in OPTIMIZERS.values() if kind.__name__ == type(optimizer).__name__), None)
    settings = [{key: value for key, value in group.items() if key not in ("params", "initial_lr", "foreach", "fused", "capturable", "differentiable")}
                for group in optimizer.param_groups]
    if kind is None or any(settings[0].get(option) for option in UNKNOWN) or any(one != settings[0] for one in settings):
        seen = type(optimizer).__name__ if kind is None else next((option for option in UNKNOWN if settings[0].get(option)), "parameter groups that differ")
        raise ValueError(f"an optimiser of torch's is one of {', '.join(kind.__name__ for kind in OPTIMIZERS.values())} with one setting for all parameters, "
                         f"without {', '.join(UNKNOWN)}, but this one is or has {seen}: its derivative is not known here")
    return kind(float(settings[0]["lr"]), **{option: settings[0][option] for option in kind.options})


def _divided(g: Tensor, square: Tensor, by: Callable[[Tensor], Tensor], floor: Tensor | None) -> Tensor:
    if floor is None:
        return g / by(square.sqrt())
    noise = square <= floor
    return torch.where(noise, (g / by(square.sqrt())).detach(), g / by(torch.where(noise, 1.0, square).sqrt()))


def _per_step(rate, steps: int) -> Tensor:
    rates = torch.as_tensor(_plain(rate, steps), dtype=torch.float64)
    if rates.ndim > 1 or rates.ndim and len(rates) != steps:
        raise ValueError(f"a learning rate per step was given for {len(rates)} steps, but the run has {steps}: give one number, or {steps}")
    if not (rates >= 0).all():
        raise ValueError(f"a learning rate is 0 or more, but got {float(rates.min())}: turn the sign of the loss instead")
    return rates.expand(steps)


def _plain(rate: float | Sequence[float] | Callable[[int], float], steps: int) -> float | list[float]:
    if callable(rate):
        rate = [float(rate(t)) for t in range(steps)]
    return rate if isinstance(rate, float) else torch.as_tensor(rate, dtype=torch.float64).tolist()
