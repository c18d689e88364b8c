"""Full-scale experiments on disk, computed piece by piece, so that an interruption costs one piece."""

import io
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from ..tools.devices import device_name
from ..tools.files import csv_text, read_json, write_atomically
from ..tools.locks import only_driver
from ..tools.results import six_digits
from ..tools.streams import STREAMS
from ..tools.versions import versions

RECORDED = Path(__file__).parents[2] / "notebooks" / "recorded"
PARTS = "summary", "scores", "fractions", "picked", "extremes", "agreement", "rounds"  #: the tables that a recording may have
KEYS = "seed", "metric", "method", "judge", "end", "rank", "last_epochs", "round", "n_removed", "fraction", "learning_rate", "group", "instance"  #: of a row
WORDS = "metric", "method", "judge", "end", "group"  #: those of them that are no numbers


def record(protocol, seeds: Iterable[int | tuple[int, list[str]]], out: str | os.PathLike, device: str = "cpu", compile: bool = True) -> None:
    """Run an experiment for several seeds into the folder `out`, one file a piece; pieces that are already there are not run again.

    Args:
        protocol: a dataclass with `pieces`, their names; `prepare(seed, device, folder)`, the trained run, kept in a folder;
            and `measure(setup, seed, piece, compile)`, which returns {part: rows} and named tensors.
        seeds: of everything random; or pairs of a seed and those of its pieces that are wanted.
        out, device: one folder per protocol, filled by one process at a time; and "cpu" or "cuda".
        compile: compile the training step first, where the protocol and the machine can.

    Raises:
        ValueError: before anything runs, when `out` holds another protocol's results, or for a piece that does not exist.
        BlockingIOError: while another process fills the folder.
    """
    out, work = Path(out), [one if isinstance(one, tuple) else (one, protocol.pieces) for one in seeds]
    if unknown := {piece: None for _, pieces in work for piece in pieces if piece not in protocol.pieces}:
        raise ValueError(f"this experiment has the pieces {', '.join(protocol.pieces)}, but not {', '.join(unknown)}")
    with only_driver(out):
        runs, threads = _runs(out, protocol), torch.get_num_threads()
        if others := {run["threads"] for run in runs} - {threads}:
            print(f"pieces in {out} were made with {', '.join(map(str, sorted(others)))} threads, and now it is {threads}: last digits may differ", flush=True)
        there = {(run["seed"], run["piece"]) for run in runs}
        for seed, pieces in work:
            waiting = [piece for piece in pieces if (seed, piece) not in there]
            began, setup = time.perf_counter(), protocol.prepare(seed, device, out / f"seed-{seed}") if waiting else None
            for piece in waiting:
                try:
                    parts, tensors = protocol.measure(setup, seed, piece, compile)
                except RuntimeError as error:  # no compiler, no Triton, or one that errs
                    if not compile:
                        raise
                    print(f"{piece} failed when compiled ({str(error).partition(chr(10))[0]}): going on uncompiled, which takes longer", flush=True)
                    compile = False
                    parts, tensors = protocol.measure(setup, seed, piece, compile)
                path = out / f"seed-{seed}_{piece.replace(' ', '-')}.json"
                if tensors:
                    write_atomically(path.with_suffix(".safetensors"), save({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}))
                header = {**made_for(protocol, seed), "piece": piece, "device": device_name(device), "threads": threads, "versions": versions(),
                          "wall_seconds": round(time.perf_counter() - began, 1)}
                write_atomically(path, json.dumps({**header, "parts": parts}))
                there.add((seed, piece))
                print(f"seed {seed}, {piece}: {header['wall_seconds']:.0f} s", flush=True)
                began = time.perf_counter()


def finished(out: str | os.PathLike, protocol) -> set[tuple[int, str]]:
    """What `record` has finished of a protocol in a folder: (seed, piece); ValueError for another protocol's folder."""
    return {(run["seed"], run["piece"]) for run in _runs(Path(out), protocol)}


def _runs(out: Path, protocol=None) -> list[dict]:
    """The whole pieces in a folder, which must be of one protocol."""
    runs, asked = [], protocol and made_for(protocol)
    for path in sorted(out.glob("seed-*.json")):
        if (run := read_json(path)) is None:
            print(f"{path} is cut short and does not count: recording its piece again replaces it", flush=True)
            continue
        asked = asked or {key: run[key] for key in ("config", "streams") if key in run}
        if differ := differences(run, asked):
            raise ValueError(f"{path} was run with another protocol or random streams ({differ}): give each protocol a folder of its own")
        runs.append({**run, "path": path})
    return runs


def made_for(protocol, seed: int | None = None) -> dict:
    """What a file's numbers depend on, as JSON holds it: the protocol, the version of the random streams, the seed."""
    return {"config": json.loads(json.dumps(asdict(protocol))), "streams": STREAMS} | ({} if seed is None else {"seed": seed})


def differences(header: dict, asked: dict) -> str:
    """Where a header tells of something else than the one asked for, in words."""
    there, here = ({**one.get("config", {}), "streams": one.get("streams", 1), "seed": one.get("seed")} for one in (header, asked))
    return ", ".join(f"{key} {there.get(key)}, not {value}" for key, value in here.items() if value not in (None, there.get(key)))


def claim(folder: Path, protocol, seed: int) -> None:
    """Write into an empty folder what it is used for from now on; ValueError where it is used for something else already."""
    path, asked = folder / "made_for.json", made_for(protocol, seed)
    if not folder.exists() or not any(folder.iterdir()):
        return write_atomically(path, json.dumps(asked))
    there = read_json(path)
    if differ := "it does not say for what" if there is None else differences(there, asked):
        raise ValueError(f"{folder} was made for something else ({differ}): remove it, or give each protocol a folder of its own")


def gather(out: str | os.PathLike, target: str | os.PathLike) -> None:
    """Merge what `record` left in `out` into one table a part, `<target>.csv` and `<target>_<part>.csv`, and their header `<target>.json`.

    What is recorded there already stays, unless `out` has the same piece of the same seed, or newer random streams, which
    replace the whole recording; ValueError for another protocol. Tensors of the first seed go to `<target>.safetensors`.
    """
    runs = _runs(Path(out))
    if not runs:
        raise FileNotFoundError(f"{out} holds no finished piece (seed-*.json): run the experiment there first")
    made, path = {"config": runs[0]["config"], "streams": runs[0].get("streams", 1)}, Path(f"{target}.json")
    header = old = json.loads(path.read_text()) if path.exists() else {}
    if not old or old.get("streams", 1) < made["streams"]:
        header = {**made, "versions": {}, "device": [], "threads": [], "pieces": {}, "seeds": []}
    elif differ := differences(old, made):
        raise ValueError(f"{path} records another protocol or newer random streams than {out} ({differ}): remove that recording, or choose another target")
    kept = header["seeds"]
    for run in runs:
        header["pieces"].setdefault(str(run["seed"]), {})[run["piece"]] = run["wall_seconds"]
        for key in ("device", "threads"):
            header[key] = list(dict.fromkeys([*header[key], run[key]]))
    header |= {"versions": runs[0]["versions"], "seeds": sorted(map(int, header["pieces"]))}
    for part in dict.fromkeys([*PARTS, *(part for run in runs for part in run["parts"])]):
        table = Path(f"{target}{_csv(part)}")
        if not kept:
            table.unlink(missing_ok=True)
        if rows := [row for run in runs for row in run["parts"].get(part, [])]:
            _merge(table, rows)
    first, kept_tensors = header["seeds"][0], Path(f"{target}.safetensors")
    tensors = load_file(kept_tensors) if kept[:1] == [first] and kept_tensors.exists() else {}
    for run in runs:
        file = run["path"].with_suffix(".safetensors")
        tensors |= load_file(file) if run["seed"] == first and file.exists() else {}
    if tensors:
        write_atomically(kept_tensors, save(tensors))
    else:
        kept_tensors.unlink(missing_ok=True)
    write_atomically(path, json.dumps(header, indent=1) + "\n")


def _merge(path: Path, rows: list[dict]) -> None:
    """Write a table, with those rows of the one that is there which tell of something else."""
    import pandas as pd
    tables = [pd.read_csv(source, dtype=str) for source in ([path] if path.exists() else []) + [io.StringIO(csv_text(six_digits(rows)))]]
    key = [column for column in KEYS if column in tables[-1]]
    table = pd.concat(tables).drop_duplicates(key, keep="last").sort_values(key, key=lambda one: one if one.name in WORDS else pd.to_numeric(one))
    write_atomically(path, table.to_csv(index=False, lineterminator="\n"))


def recorded(name: str, part: str = "summary"):
    """A recorded run, such as "accuracy_2d": one of its tables as a DataFrame, and its header; FileNotFoundError without the repository's recordings."""
    import pandas as pd
    table = _recorded(name, _csv(part))
    return pd.read_csv(table), json.loads(table.with_name(f"{name}.json").read_text())


def recorded_pieces(name: str, protocol) -> set[tuple[int, str]]:
    """What is recorded of a protocol as it is now and with the present random streams: (seed, piece)."""
    try:
        header = json.loads(_recorded(name, ".json").read_text())  # without pandas, which a GPU's machine may lack
    except FileNotFoundError:
        return set()
    return set() if differences(header, made_for(protocol)) else {(int(seed), piece) for seed, pieces in header["pieces"].items() for piece in pieces}


def recorded_tensors(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a recorded run, such as its generators before and after cleansing; FileNotFoundError as for `recorded`."""
    return load_file(_recorded(name, ".safetensors"))


def _csv(part: str) -> str:
    return ".csv" if part == "summary" else f"_{part}.csv"


def _recorded(name: str, suffix: str) -> Path:
    for folder in (Path("recorded"), RECORDED):
        if (path := folder / f"{name}{suffix}").exists():
            return path
    raise FileNotFoundError(f"the recorded run {name!r} lies in the repository's notebooks/recorded, which is not here: start from a clone of it")
