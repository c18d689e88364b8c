"""Runs on disk: `trajectory.json` and `states.safetensors`."""

import os
import warnings

import torch
from torch import Tensor

from ..game.gan import GAN
from ..game.state import State
from ..tools.storage import read_tensors, write_tensors
from ..tools.versions import versions
from .conditions import try_networks
from .dynamics import Dynamics
from .optimizers import OPTIMIZERS
from .rows import Rows
from .schedule import restore_schedule

FORMAT = 3
HEADER = {"format": int, "threads": int, "data": dict, "gan": dict, "optimizers": list, "rules": dict, "stride": int, "schedule": dict,
          "steps": int, "report": str}  # what a saved run must say about itself


def write(path: str | os.PathLike, run) -> None:
    """What `Trajectory.save` does."""
    if run.gan is None or not all(hasattr(one, "describe") and getattr(one, "name", "") for one in run.dynamics.optimizers):
        raise ValueError("a saved run says what trained it, but this one's step or optimiser is of your own and has no name: give an optimiser a name and "
                         "describe(steps), or keep the run in memory")
    header = {
        "format": FORMAT, "versions": versions(), "threads": torch.get_num_threads(), "device": str(run.rows.device), "gan": run.gan.describe(),
        "optimizers": [{"name": one.name, **one.describe(run.steps)} for one in run.dynamics.optimizers], "rules": run.dynamics.rules(),
        "rates": run.rates, "stride": run.stride, "schedule": run.schedule.describe(), "steps": run.steps, "report": run.report, "data": _described(run.rows),
    }
    tensors = {f"{t}/{name}": p.cpu().clone(memory_format=torch.contiguous_format) for t, state in run.states.items() for name, p in state.named().items()}
    write_tensors(path, "trajectory.json", header, tensors | run.schedule.tensors())


def read(path: str | os.PathLike, gan: GAN, x, optimizer=None) -> tuple:
    """What `Trajectory.load` makes a run of: dynamics, rows, schedule, stride, states, rates; and the report."""
    header, tensors = read_tensors(path, "trajectory.json", str(gan.device), needs=HEADER)
    if header["format"] != FORMAT:
        raise ValueError(f"{path} has trajectory format {header['format']!r}, this version reads {FORMAT}: use the version {header.get('versions')}")
    shape = header["data"].get("seen")
    rows = Rows(x, gan.device, gan.dtype, tuple(shape) if shape else None, anywhere=bool(header["report"]))
    for what, recorded, given in ("training set", header["data"], _described(rows)), ("GAN", header["gan"], gan.describe()):
        if recorded != given:
            raise ValueError(f"{path} was recorded with another {what}: the file says {_difference(recorded, given)}; pass the one that was trained")
    schedule = restore_schedule(header["schedule"], tensors)
    if optimizer is None:
        optimizer = tuple(_optimizer(path, dict(arguments)) for arguments in header["optimizers"])
    dynamics = Dynamics(gan, optimizer, **header["rules"])
    template = dynamics.initial().named()
    steps = sorted({int(name.split("/")[0]) for name in tensors if "/" in name})
    if not steps or steps[0] != 0 or steps[-1] != schedule.steps or schedule.steps != header["steps"]:
        raise ValueError(f"{path} should hold states 0..{schedule.steps} but holds {steps}: it may be truncated; record the run again")
    states = {t: _state(path, t, template, tensors) for t in steps}
    if header["threads"] != torch.get_num_threads():
        warnings.warn(f"{path} was recorded with {header['threads']} threads and is read with {torch.get_num_threads()}: the last digits of a replay "
                      f"may differ; torch.set_num_threads({header['threads']}) makes them equal", stacklevel=3)
    rates = header["rates"] and [tuple(tuple(rate) if isinstance(rate, list) else rate for rate in pair) for pair in header["rates"]]
    try_networks(gan, rows, schedule, confirmed=bool(header["report"]))
    return dynamics, rows, schedule, header["stride"], states, rates, header["report"]


def _described(rows: Rows) -> dict:
    return {"n": len(rows), "shape": [list(column.shape[1:]) for column in rows.columns], "fingerprint": rows.fingerprint,
            "seen": rows.shape and list(rows.shape)}


def _optimizer(path: str | os.PathLike, arguments: dict):
    name = arguments.pop("name")
    if name not in OPTIMIZERS:
        raise ValueError(f"{path} was trained with the optimiser {name!r}, which this package does not have: pass optimizer=")
    return OPTIMIZERS[name](**arguments)


def _state(path: str | os.PathLike, t: int, template: dict[str, Tensor], tensors: dict[str, Tensor]) -> State:
    fields = {field: {} for field in State._fields}
    for name, like in template.items():
        found = tensors.get(f"{t}/{name}")
        if found is None or found.shape != like.shape or found.dtype != like.dtype:
            seen = "nothing" if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise ValueError(f"{path}: state {t} should hold {name} as {tuple(like.shape)} {like.dtype}, found {seen}: the file is damaged or foreign")
        field, key = name.split(".", 1)
        fields[field][key] = found
    return State(**fields)


def _difference(recorded: dict, given: dict) -> str:
    return "; ".join(f"{key} {recorded.get(key)!r}, given was {given.get(key)!r}" for key in recorded | given if recorded.get(key) != given.get(key))
