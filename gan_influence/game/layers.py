"""Layers as pure functions: a module of one's own for the engine, called with parameters and buffers from outside."""

import inspect
import threading
from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .group_norm import GroupNorm

BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
OLD_SPECTRAL_NORM = torch.nn.utils.spectral_norm.__globals__["SpectralNorm"]
OLD_WEIGHT_NORM = torch.nn.utils.weight_norm.__globals__["WeightNorm"]


class Pure:
    """A private copy of a module as a pure function of (parameters, buffers, inputs).

    It does what torch.func.functional_call does at a third of the cost: tensors are put into the module's own slots for the
    length of one call, which a second thread waits for. Layers with a memory write it into those slots, differentiably.
    """

    def __init__(self, player: str, module: nn.Module, random: bool | None = None):
        _refuse(player, module)
        # What a layer computed from its parameters and keeps beside them (old weight normalisation) would not be copied.
        derived = {id(value): value.detach() for sub in module.modules() for value in vars(sub).values() if isinstance(value, Tensor) and not value.is_leaf}
        self.module, self.turn = deepcopy(module, derived), threading.RLock()
        self.random = random  #: whether it draws random numbers; None until `check_game` finds out
        for layer in list(self.module.modules()):
            _make_pure(layer)
        self.norms, self.spectral, self.kept = [], [], []
        for name, layer in self.module.named_modules():
            if layer.training:
                if isinstance(layer, _BatchNorm):
                    self.norms.append(layer)
                if isinstance(layer, _SpectralNorm) and name.endswith(".0"):
                    self.spectral.append((layer, f"{name.removesuffix('.0')}.original"))
                self.spectral += [(hook, _join(name, f"{hook.name}_orig")) for hook in layer._forward_pre_hooks.values() if isinstance(hook, OLD_SPECTRAL_NORM)]
                self.kept += [(layer._buffers, key, _join(name, key)) for key in _memory_of(layer) if layer._buffers.get(key) is not None]
        names = {id(p): name for name, p in self.module.named_parameters() if p.requires_grad}  # tied weights have one name, frozen ones are no parameters
        self.slots = [(sub._parameters, key, names[id(p)]) for sub in self.module.modules() for key, p in sub._parameters.items() if id(p) in names]
        # What an older hook computes from parameters is left in the layer: it is put back, too.
        self.derived = [(layer.__dict__, hook.name) for layer in self.module.modules() for hook in layer._forward_pre_hooks.values()
                        if isinstance(hook, (OLD_SPECTRAL_NORM, OLD_WEIGHT_NORM))]
        self.training = [layer for layer in self.module.modules() if layer.training]
        wanted = inspect.signature(self.module.forward).parameters.values()
        needed = sum(p.default is p.empty for p in wanted if p.kind is not p.VAR_KEYWORD)
        #: how many inputs it takes: of a tuple of data or latents the first so many
        self.takes = None if any(p.kind is p.VAR_POSITIONAL for p in wanted) else max(1, needed)

    def __call__(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], *inputs, source: dict[str, Tensor] | None = None,
                 weights: Tensor | None = None, training: bool = True):
        """The module's output and its buffers afterwards.

        Args:
            parameters, buffers: by name.
            inputs: what it is called with, of which it takes the first `takes`.
            source: the parameters as the state holds them, where `parameters` are an alias that a player's gradient is taken by.
            weights: (B,), how much each row counts in batch statistics; None is 1.
            training: whether layers that train do; else all of them evaluate.
        """
        with self.turn:
            own, derived = [slot[key] for slot, key, _ in (*self.slots, *self.kept)], [slot.get(key) for slot, key in self.derived]
            try:
                for slot, key, name in self.slots:
                    slot[key] = parameters[name]
                for slot, key, name in self.kept:
                    slot[key] = buffers[name]
                for layer, name in self.spectral:
                    layer.source = (source or parameters).get(name)
                for layer in self.norms:
                    layer.row_weights = weights
                if not training:
                    self._mode(False)
                return self.module(*inputs[:self.takes]), {name: slot[key] for slot, key, name in self.kept}
            finally:
                if not training:
                    self._mode(True)
                for (slot, key, _), tensor in zip((*self.slots, *self.kept), own):
                    slot[key] = tensor
                for (slot, key), tensor in zip(self.derived, derived):
                    slot[key] = tensor
                for layer, _ in self.spectral:
                    layer.source = None
                for layer in self.norms:
                    layer.row_weights = None

    def _mode(self, training: bool) -> None:
        for layer in self.training:
            layer.__dict__["training"] = training  # what nn.Module's own setter does, at a tenth of its cost

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the parameters that train, by name."""
        with self.turn:
            return {name: p.detach().clone() for name, p in self.module.named_parameters() if p.requires_grad}

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers that training changes, by name."""
        with self.turn:
            return {name: slot[key].detach().clone() for slot, key, name in self.kept}

    def copy(self) -> "Pure":
        """Another one, of the same module."""
        with self.turn:
            return Pure("network", self.module, self.random)

    def memory(self) -> dict[tuple[str, str], object]:
        """What a forward pass could leave behind: buffers and plain attributes, by layer and name."""
        with self.turn:
            return {(f"{name!r} ({type(sub).__name__.lstrip('_')})", key): value.clone() if isinstance(value, Tensor) else value
                    for name, sub in self.module.named_modules()
                    for key, value in (*sub._buffers.items(), *((key, value) for key, value in vars(sub).items() if isinstance(value, (int, float, str))))}


def changed(before: dict, after: dict) -> Iterator[tuple[str, str]]:
    """The entries of `Pure.memory()` that differ."""
    for key, value in after.items():
        known = before.get(key)
        if not (torch.equal(known, value) if isinstance(known, Tensor) and isinstance(value, Tensor) else known == value):
            yield key


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with a weight per row, whose running statistics are differentiable: mean Σwx/Σw, and m/(m − 1) with m = Σw."""

    row_weights = None

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # one class serves all dimensions

    def forward(self, x: Tensor) -> Tensor:
        dims, shape, w = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2), self.row_weights
        if not self.training and self.running_mean is not None:
            mean, variance = self.running_mean, self.running_var
            centred = x - mean.view(shape)
        elif w is None:
            total = x.numel() / x.shape[1]
            mean = x.mean(dims)
            centred = x - mean.view(shape)
            variance = centred.square().mean(dims)
        else:
            if len(w) != len(x):
                raise ValueError(f"batch normalisation assumes that its rows are the batch's {len(w)} instances, but it was given {len(x)} rows: an instance "
                                 "that is spread over several cannot be removed from its statistics")
            w = w.view(-1, *[1] * (x.ndim - 1))
            total = w.sum() * (x.numel() / (x.shape[0] * x.shape[1]))
            mean = (w * x).sum(dims) / total
            centred = x - mean.view(shape)
            variance = (w * centred.square()).sum(dims) / total
        if self.training and self.running_mean is not None:
            for key, new in (("running_mean", mean), ("running_var", variance * (total / (total - 1)))):
                self._buffers[key] = torch.lerp(self._buffers[key], new, self.momentum)
        scale = (variance + self.eps).rsqrt() if self.weight is None else self.weight * (variance + self.eps).rsqrt()
        centred = centred * scale.view(shape)
        return centred if self.bias is None else centred + self.bias.view(shape)


class _SpectralNorm(nn.Module):
    """weight/σ with σ = u·Wv: u and v come from the state's own weights, the weight may be an alias of them."""

    source = None

    def __init__(self, like: nn.Module):
        super().__init__()
        self.dim, self.iterations, self.eps = like.dim, like.n_power_iterations, like.eps
        for name, buffer in like.named_buffers():
            self.register_buffer(name, buffer)
        self.train(like.training)

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        u, v, matrix = self._u, self._v, _matrix(weight, self.dim)
        if self.training:
            own = _matrix(weight.detach() if self.source is None else self.source, self.dim)
            for _ in range(self.iterations):
                u = F.normalize(own @ v, dim=0, eps=self.eps)
                v = F.normalize(own.mT @ u, dim=0, eps=self.eps)
            self._buffers["_u"], self._buffers["_v"] = u, v
        return weight / (u @ (matrix @ v))


def _old_spectral_norm(hook, layer: nn.Module, do_power_iteration: bool) -> Tensor:
    """What the older hook computes: its iteration begins with v."""
    weight, u, v = (getattr(layer, hook.name + end) for end in ("_orig", "_u", "_v"))
    matrix = _matrix(weight, hook.dim)
    if do_power_iteration:
        own = _matrix(weight.detach() if hook.source is None else hook.source, hook.dim)
        for _ in range(hook.n_power_iterations):
            v = F.normalize(own.mT @ u, dim=0, eps=hook.eps)
            u = F.normalize(own @ v, dim=0, eps=hook.eps)
        layer._buffers[hook.name + "_u"], layer._buffers[hook.name + "_v"] = u, v
    return weight / (u @ (matrix @ v))


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def _matrix(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


class _WeightNorm(nn.Module):
    """g·v/‖v‖ of plain operations: the double backward of torch's fused kernel is wrong for v."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / (v.norm() if self.dim == -1 else v.norm(dim=[d for d in range(v.ndim) if d != self.dim], keepdim=True))


def _old_weight_norm(hook, layer: nn.Module) -> Tensor:
    return _WeightNorm(hook.dim)(getattr(layer, hook.name + "_g"), getattr(layer, hook.name + "_v"))


def _make_pure(layer: nn.Module) -> None:
    """Give a layer of a private copy its pure form, in place."""
    if type(layer) in BATCH_NORMS:
        layer.__class__ = _BatchNorm
    if type(layer) is nn.GroupNorm:
        layer.__class__ = GroupNorm
    for chain in getattr(layer, "parametrizations", {}).values():
        for i, one in enumerate(chain):
            if isinstance(one, parametrizations._WeightNorm):
                chain[i] = _WeightNorm(one.dim)
            elif isinstance(one, parametrizations._SpectralNorm):
                chain[i] = _SpectralNorm(one)
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, OLD_WEIGHT_NORM):
            hook.compute_weight = partial(_old_weight_norm, hook)
        elif isinstance(hook, OLD_SPECTRAL_NORM):
            hook.compute_weight = partial(_old_spectral_norm, hook)


def _memory_of(layer: nn.Module) -> list[str]:
    if isinstance(layer, _BatchNorm):
        return ["running_mean", "running_var"]
    if isinstance(layer, _SpectralNorm):
        return ["_u", "_v"]
    return [hook.name + end for hook in layer._forward_pre_hooks.values() if isinstance(hook, OLD_SPECTRAL_NORM) for end in ("_u", "_v")]


def _refuse(player: str, module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in layer._parameters.values()):
            raise ValueError(f"a GAN assumes networks with all their parameters, but layer {name!r} of the {player} is {type(layer).__name__}, whose shape "
                             "is not known yet: put a batch through the network first")
        if layer.training and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if type(layer) not in (*BATCH_NORMS, _BatchNorm) or layer.momentum is None:
                seen = "averages its statistics over all batches (momentum=None)" if type(layer) in BATCH_NORMS else "is not torch's own BatchNorm"
                raise ValueError(f"influence assumes layers that it has a pure form of, but layer {name!r} of the {player}, {type(layer).__name__}, {seen}: "
                                 "use nn.BatchNorm1d, 2d or 3d with a momentum, or group normalisation")
