"""The step and its pull-back, traced once and handed to torch's compiler."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from ..game.state import State
from .dynamics import Dynamics, Pull
from .plan import Batch


class CompiledDynamics:
    """What `Dynamics` offers, compiled once for every new set of shapes.

    A pull-back recomputes its step inside one compiled function: cheaper than keeping the step's intermediates.

    Raises:
        RuntimeError: on the first call, where there is no C++ compiler, or where the compiled numbers are wrong.
    """

    def __init__(self, dynamics: Dynamics):
        self.dynamics = dynamics
        self._ready = {}

    def step(self, state: State, batch: Batch, weights: Tensor) -> State:
        """`Dynamics.step`, without a graph."""
        arguments = _arguments(state, batch, weights)
        step = self._get("step", batch, arguments, lambda *flat: self.dynamics.step(*_unflatten(state, batch, flat)).tensors())
        return state.rebuild(step(*arguments))

    def linearize(self, state: State, batch: Batch, weights: Tensor, reusable: bool = True) -> tuple[State, Pull]:
        """`Dynamics.linearize`; it does not take the step, and returns the state it was given."""
        def pull(cotangent: State) -> tuple[State, Tensor]:
            arguments = [*(c.contiguous() for c in cotangent.tensors()), *_arguments(state, batch, weights)]  # convolutions return other layouts
            *pulled, row = self._get("pull", batch, arguments, flat_pull)(*arguments)
            return state.rebuild(pulled), row

        def flat_pull(*flat: Tensor) -> list[Tensor]:
            n = len(state.tensors())
            _, pull = self.dynamics.linearize(*_unflatten(state, batch, flat[n:]))
            cotangent, row = pull(state.rebuild(flat[:n]))
            return [*cotangent.tensors(), row]

        return state, pull

    def _get(self, what: str, batch: Batch, arguments: list[Tensor], function: Callable) -> Callable:
        key = what, batch.plan, *(a.shape for a in arguments)
        if key not in self._ready:
            self._ready[key] = _compile(function, arguments)
        return self._ready[key]


def _arguments(state: State, batch: Batch, weights: Tensor) -> list[Tensor]:
    like = {"dtype": weights.dtype, "device": weights.device}
    # Rates and counts as tensors, or every one of them would be compiled anew.
    return [*(p.contiguous() for p in state.tensors()), weights,
            *(a if isinstance(a, Tensor) else torch.tensor(float(a), **like) for a in tree_leaves(_drawn(batch)))]


def _unflatten(state: State, batch: Batch, flat: tuple[Tensor, ...]) -> tuple[State, Batch, Tensor]:
    n = len(state.tensors())
    weights, *drawn = flat[n:]
    return state.rebuild(flat[:n]), Batch(**tree_unflatten(drawn, tree_structure(_drawn(batch))), plan=batch.plan), weights


def _drawn(batch: Batch) -> dict:
    return {name: part for name, part in batch._asdict().items() if name not in ("plan", "dice") and part is not None} | ({} if batch.generator_z is not None
                                                                                                                      else {"generator_z": ()})


def _compile(function: Callable, arguments: list[Tensor]) -> Callable:
    graph: GraphModule = make_fx(function)(*arguments)
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.detach.default:  # would be copied at run time
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    # One compiled function serves one set of shapes, so the compiler need not check them again at every call.
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    fast = torch.no_grad()(torch.compile(graph, dynamic=False, options=options))
    try:
        seen = fast(*arguments)
    except torch._inductor.exc.InvalidCxxCompiler as error:
        raise RuntimeError("compile=True assumes a working C++ compiler, and none was found: install g++, or leave compile out") from error
    # Compilers err: torch 2.13 drops the alpha of an addition that it fuses with a matrix product.
    for compiled, plain in zip(seen, function(*arguments)):
        tolerance = 1e4 * torch.finfo(plain.dtype).eps * max(1.0, float(plain.abs().max()))
        gap = float((compiled - plain).abs().max())
        if not gap <= tolerance:
            raise RuntimeError(f"compile=True assumes that the compiled step equals the plain one, but they differ by {gap:.1e}: leave compile out")
    return fast
