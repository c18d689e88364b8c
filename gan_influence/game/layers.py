"""Layers as pure functions: a module of one's own for the engine, called with parameters from outside; layers it has no pure form of are refused."""

import threading
from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

COUPLING = (nn.modules.batchnorm._BatchNorm,)
RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)
POWER_ITERATION = (parametrizations._SpectralNorm, torch.nn.utils.spectral_norm.__globals__["SpectralNorm"])
OLD_WEIGHT_NORM = torch.nn.utils.weight_norm.__globals__["WeightNorm"]


class Pure:
    """A private copy of a module as a pure function of (parameters, input).

    It does what torch.func.functional_call does at a third of the cost: parameters are put into the module's own slots for the
    length of one call, which a second thread waits for.
    """

    def __init__(self, player: str, module: nn.Module):
        _refuse(player, module)
        # What a layer computed from its parameters and keeps beside them (old weight normalisation) would not be copied.
        derived = {id(value): value.detach() for sub in module.modules() for value in vars(sub).values() if isinstance(value, Tensor) and not value.is_leaf}
        self.module, self.turn = deepcopy(module, derived), threading.RLock()
        _plain_weight_norm(self.module)
        slots = [(sub._parameters, key) for sub in self.module.modules() for key, p in sub._parameters.items() if p is not None]
        names = {id(p): name for name, p in self.module.named_parameters()}  # tied weights have one name
        self.slots = [(slot, key, names[id(slot[key])]) for slot, key in slots]

    def __call__(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        with self.turn:
            own = [slot[key] for slot, key, _ in self.slots]
            try:
                for slot, key, name in self.slots:
                    slot[key] = parameters[name]
                return self.module(x)
            finally:
                for (slot, key, _), parameter in zip(self.slots, own):
                    slot[key] = parameter

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the module's parameters, by name."""
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    def memory(self) -> dict[tuple[str, str], object]:
        """What a forward pass could leave behind: buffers and plain attributes, by layer and name."""
        return {(f"{name!r} ({type(sub).__name__})", key): value.clone() if isinstance(value, Tensor) else value
                for name, sub in self.module.named_modules()
                for key, value in (*sub._buffers.items(), *((key, value) for key, value in vars(sub).items() if isinstance(value, (int, float, str))))}


def changed(before: dict, after: dict) -> Iterator[tuple[str, str]]:
    """The entries of `Pure.memory()` that differ."""
    for key, value in after.items():
        known = before.get(key)
        if not (torch.equal(known, value) if isinstance(known, Tensor) and isinstance(value, Tensor) else known == value):
            yield key


class _WeightNorm(nn.Module):
    """g·v/‖v‖ of plain operations: the double backward of torch's fused kernel is wrong for v."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / (v.norm() if self.dim == -1 else v.norm(dim=[d for d in range(v.ndim) if d != self.dim], keepdim=True))


def _plain_weight_norm(module: nn.Module) -> None:
    for sub in module.modules():
        for chain in getattr(sub, "parametrizations", {}).values():
            for i, one in enumerate(chain):
                if isinstance(one, parametrizations._WeightNorm):
                    chain[i] = _WeightNorm(one.dim)
        for hook in sub._forward_pre_hooks.values():
            if isinstance(hook, OLD_WEIGHT_NORM):
                hook.compute_weight = partial(lambda layer, name, plain: plain(getattr(layer, name + "_g"), getattr(layer, name + "_v")),
                                              name=hook.name, plain=_WeightNorm(hook.dim))


def _refuse(player: str, module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in layer._parameters.values()):
            raise ValueError(f"a GAN assumes networks with all their parameters, but layer {name!r} of the {player} is {type(layer).__name__}, whose shape "
                             "is not known yet: put a batch through the network first")
        if layer.training and isinstance(layer, COUPLING):
            raise ValueError(f"influence assumes that instances meet only in a sum, but layer {name!r} of the {player} is "
                             f"{type(layer).__name__}, which mixes the instances of a batch: use GroupNorm, or call .eval() on it")
        if layer.training and isinstance(layer, RANDOM) and getattr(layer, "p", 1):
            raise ValueError(f"influence assumes that a training step can be replayed, but layer {name!r} of the {player} is "
                             f"{type(layer).__name__}, which draws random numbers: remove it, or call .eval() on it")
        if layer.training and any(isinstance(one, POWER_ITERATION) for one in (layer, *layer._forward_pre_hooks.values())):
            raise ValueError(f"influence assumes that a training step can be replayed, but layer {name.partition('.parametrizations')[0]!r} of the {player} "
                             "has spectral normalisation, which keeps a memory of its own: use weight normalisation")
