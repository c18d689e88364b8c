"""What readings ask of the instances and the metrics they are given, before they spend an hour on them."""

import math
import reprlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..game.gan import GAN
from ..game.state import State
from ..tools.memory import in_chunks_that_fit
from ..training.dynamics import deterministic
from ..training.gossip import WEIGHT
from ..training.trajectory import Trajectory

Metric = Callable[[GAN, State], Tensor]


def instance_set(run: Trajectory, instances, once: bool = True) -> Tensor:
    """Instances given by index in any flat collection, (m,) int64 on the CPU in the order given; as one set, `once` each.

    Raises:
        TypeError: for a mask, and for anything else that is no flat collection of whole numbers.
        IndexError: for an instance that does not exist.
        ValueError: for one that comes twice.
    """
    if isinstance(instances, tuple) and hasattr(instances, "indices"):
        raise TypeError("instances are given by index, but values came with their indices, as topk and sort return them: pass .indices")
    try:
        given = torch.as_tensor(instances if isinstance(instances, Tensor) else np.asarray(instances).tolist() if hasattr(instances, "__array__")
                                else list(instances)).detach().cpu()
    except (TypeError, ValueError, RuntimeError):  # not a collection; or one of words, of collections, of numbers beyond int64
        given = torch.tensor(math.nan)
    if given.dtype == torch.bool or given.shape == (run.n,) and run.n > 2 and ((given == 0) | (given == 1)).all():
        raise TypeError("instances are given by index, but a mask was passed: use mask.nonzero().flatten()")
    if given.ndim != 1 or len(given) and (given.is_floating_point() or given.is_complex()):
        raise TypeError("instances are whole numbers in a flat collection, such as [3, 5] or scores.topk(2).indices, "
                        f"but {reprlib.repr(instances)} was passed")
    given = given.to(torch.int64)
    for j in given[(given < 0) | (given >= run.n)]:
        raise IndexError(f"instances are 0..{run.n - 1}, but {j} was given")
    values, counts = given.unique(return_counts=True)
    if once and len(values) < len(given):
        raise ValueError(f"a set holds an instance once, but {values[counts.argmax()]} was given {counts.max()} times: leave repetitions out")
    return given


def one_instance(run: Trajectory, j) -> int:
    """An instance given by index; raises what `instance_set` does."""
    return int(instance_set(run, [j]))


def metrics_of(metric) -> dict[str, Metric]:
    """A metric, under its own name if it has one, or a dict of metrics, as a dict; refused where one cannot be called."""
    metrics = dict(metric) if isinstance(metric, Mapping) else {getattr(metric, "name", "metric"): metric}
    if not metrics:
        raise ValueError("a reading takes one metric or more, but the dict of metrics is empty")
    for one in metrics.values():
        if isinstance(one, Trajectory):
            raise TypeError("a reading takes a run first and then a metric, but they came the other way round: exchange them")
        if isinstance(one, type) or not callable(one):
            seen = f"the class {one.__name__}" if isinstance(one, type) else f"a {type(one).__name__}"
            raise TypeError(f"a metric is an object called as metric(gan, state), but {seen} was given: pass for instance "
                            "gi.metrics.AverageLogLikelihood(x, latents), or a dict of metrics")
    return metrics


def value(metric: Metric, gan: GAN, state: State) -> Tensor:
    """A metric at a state, of which it gets a copy: whatever it does with that, the run stays as it is. Its chunks shrink where memory runs out."""
    try:
        with deterministic(state.tensors()[0].device):  # the same convolutions for an influence and for what it predicts
            found = in_chunks_that_fit(metric, lambda: metric(gan, state.map(Tensor.clone)))
    except AttributeError as error:
        if gan is not None or WEIGHT not in state.generator_memory:
            raise
        raise TypeError(f"a run of gossip holds many clients' states at once, of which {name_of(metric)} cannot make sense ({error}): pass "
                        "gi.over_clients(run, metric)") from error
    if not isinstance(found, Tensor) or found.is_complex():
        raise TypeError(f"a metric returns a real number as a tensor, but {name_of(metric)} returned {found!r}: compute it with "
                        "torch, or wrap it in torch.tensor where only retraining is asked for")
    if found.ndim:
        raise FloatingPointError(f"a reading assumes a finite scalar metric, but {name_of(metric)} has shape {tuple(found.shape)}: take its mean or sum")
    return found


@torch.no_grad()
def settled(run: Trajectory, metric: Metric, first: float) -> None:
    """Refuse a metric whose value at the run's final state is not finite, or is another than it was at `first`, by more than rounding."""
    where = f"at the end of the run (step {run.steps})"
    if not math.isfinite(first):
        raise FloatingPointError(f"a reading assumes a finite scalar metric, but {name_of(metric)} is {first} {where}")
    again = value(metric, run.gan, run.final).item()
    if not math.isclose(first, again, rel_tol=1e-5, abs_tol=1e-7):
        raise ValueError(f"a metric is a function of the state alone, but {name_of(metric)} was {first:g} and then {again:g} {where}: give it the same "
                         "latents every time, from gan.sample_latents(n, seed), and its networks no dropout")


def direction(metric: Metric) -> int:
    """1 for a metric of which higher is better, −1 for one of which lower is; one that does not say which is refused."""
    better = getattr(metric, "higher_is_better", None)
    if not isinstance(better, (bool, np.bool_)):
        raise TypeError(f"a metric says by higher_is_better = True or False which way is better, but for {name_of(metric)} it is {better!r}: set it")
    return 1 if better else -1


def name_of(metric) -> str:
    """What to call a metric in a sentence."""
    return getattr(metric, "name", getattr(metric, "__name__", type(metric).__name__))
