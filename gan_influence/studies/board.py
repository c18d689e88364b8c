"""The leaderboard: attribution methods before judges, from a bank of true leave-one-outs, so that a new method is judged without training."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..readings.cleansing import cleanse
from ..readings.judging import direction, name_of, value
from ..readings.retraining import leave_one_out, retrain
from ..readings.sets import random_subsets
from ..tools.checks import counted
from ..tools.files import csv_text, read_json, write_atomically
from ..tools.results import six_digits
from ..tools.streams import STREAMS
from . import recording, trained
from .experiments import Setup, chosen_instances
from .judges import ENDS, FRACTIONS, JUDGES, judge
from .methods import METHODS
from .released import Question
from .settings import SETTINGS, Setting

SUBSETS = 32  #: random ones, of each of FRACTIONS, whose removal the bank holds
CLEANSED = 0.01, 0.05, 0.1, 0.2  #: of the training set that cleansing removes; validation data pick one
TOO_LONG = {"mnist": ("released 2025, AID", "AID, summed")}  #: left out, because a thousand pull-backs through its convolutions take an hour
COLUMNS = "setting", "seed", "instance", "score"


def cleansed(config: Setting, setup: Setup, seed: int, scores: Mapping[str, Tensor]) -> list[dict]:
    """What removing each method's most harmful brings on test data, at the fraction that validation data pick: rows; positive gains are better."""
    (valid,), (test,) = setup.valid.values(), setup.test.values()
    picked = cleanse(setup.run, scores, CLEANSED, valid, test, config.last_epochs).picked
    return [{"seed": seed, "method": row["method"], "n_removed": row["n_removed"], "test_before": row["test_before"],
             **{f"{part}_gain": direction(valid) * (row[f"{part}_after"] - row[f"{part}_before"]) for part in ("valid", "test")}} for row in picked]


@torch.no_grad()
def truths(question: Question, left_out: np.ndarray) -> dict[str, Tensor]:
    """The bank's entry of a run: true gains, signed as harmfulness, of leaving out each of some instances, and of removing each of random subsets.

    The subsets are those of `gi.linear_datamodelling_score` with the same seed.
    """
    run, metric, k, _, seed = question
    sign, before = direction(metric), value(metric, run.gan, run.final).item()
    found = {"left out": torch.from_numpy(left_out).int(), "leave-one-out": sign * leave_one_out(run, metric, left_out, k)}
    for fraction in FRACTIONS:
        sets = random_subsets(run.n, round(fraction * run.n), SUBSETS, seed)
        found[f"subsets {fraction:g}"] = torch.stack(sets).int()
        found[f"changes {fraction:g}"] = torch.tensor([sign * (value(metric, run.gan, state).item() - before) for state in retrain(run, sets, k)],
                                                      dtype=torch.float64)
    return found


def measure(config: Setting, setup: Setup, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict[str, Tensor]]:
    """One seed of a setting; see `recording.record`."""
    question = trained.question(config, setup, seed)
    scores = {name: method(question) for name, method in METHODS.items() if name not in TOO_LONG.get(config.data, ())}
    rows = cleansed(config, setup, seed, scores)
    tensors = truths(question, chosen_instances(config, seed)) | {f"scores|{name}": one.float() for name, one in scores.items()}
    metric = {"metric": name_of(question.metric), "higher_is_better": bool(question.metric.higher_is_better)}
    return {"cleansing": rows, "metric": [metric]}, tensors


Setting.prepare, Setting.measure = trained.prepare, measure  # here, because plain values are known without torch


def gather(out: str | os.PathLike, target: str | os.PathLike) -> None:
    """Merge what `record` left in the folders <out>/<setting> into the bank `target`: .safetensors, .json, .csv (the table), _cleansing.csv.

    What the bank has of other settings and seeds stays, if its random streams are the same; FileNotFoundError where nothing is recorded.
    """
    found = [(name, Path(out) / name / f"seed-{seed}_{piece}.json") for name, (config, _) in SETTINGS.items()
             for seed, piece in sorted(recording.finished(Path(out) / name, config))]
    runs = [(name, path, read_json(path)) for name, path in found]
    if not runs:
        raise FileNotFoundError(f"{out} holds no recorded seed of {', '.join(SETTINGS)}: run gan-influence board --record first")
    header, tensors, cleansing = read_bank(target) if Path(f"{target}.json").exists() else ({"settings": {}, "streams": STREAMS}, {}, [])
    if header["streams"] != STREAMS:
        header, tensors, cleansing = {"settings": {}, "streams": STREAMS}, {}, []
    for name, path, run in runs:
        made, seed = header["settings"].setdefault(name, {"config": run["config"], "seeds": {}}), str(run["seed"])
        if made["config"] != run["config"]:
            raise ValueError(f"{target}.json has another {name} than {out} ({recording.differences(made, run)}): remove that bank, or choose another")
        made |= run["parts"]["metric"][0]
        made["seeds"][seed] = {key: run[key] for key in ("device", "threads", "versions", "wall_seconds")}
        tensors |= {f"{name}|{seed}|{key}": one for key, one in load_file(path.with_suffix(".safetensors")).items()}
        cleansing = [row for row in cleansing if (row["setting"], row["seed"]) != (name, seed)]
        new = six_digits([{"setting": name, **row} for row in run["parts"]["cleansing"]])
        cleansing += [{key: str(one) for key, one in row.items()} for row in new]
    write_atomically(f"{target}.safetensors", save(tensors))
    write_atomically(f"{target}_cleansing.csv", csv_text(cleansing))
    write_atomically(f"{target}.json", json.dumps(header, indent=1) + "\n")
    write_atomically(f"{target}.csv", csv_text(six_digits(table(header, tensors, cleansing))))


def read_bank(target: str | os.PathLike | None = None) -> tuple[dict, dict[str, Tensor], list[dict]]:
    """The bank's header, tensors, and rows of cleansing; by default the repository's, with FileNotFoundError where that is not here."""
    base = target or recording.RECORDED / "board"
    if not Path(f"{base}.json").exists():
        raise FileNotFoundError(f"the board's bank, {base}.json, is not here: start from a clone of the repository, or record one with --record")
    with open(f"{base}_cleansing.csv", newline="") as file:
        return read_json(Path(f"{base}.json")), load_file(f"{base}.safetensors"), list(csv.DictReader(file))


def table(header: dict, tensors: Mapping[str, Tensor], cleansing: list[dict], own: Mapping[tuple[str, int], Tensor] | None = None,
          name: str = "") -> list[dict]:
    """A row per setting and method of what the judges say, and of what cleansing gained on test data: mean, lowest and highest of the seeds.

    Args:
        header, tensors, cleansing: a bank.
        own: another method's harmfulness, {(setting, seed): (n,)}; only its settings and seeds are then shown, of the recorded methods too.
        name: of that method.
    """
    rows = []
    for setting, made in header["settings"].items():
        seeds = [int(seed) for seed in made["seeds"] if own is None or (setting, int(seed)) in own]
        scores = {name: {seed: own[setting, seed] for seed in seeds}} if own and seeds else {}
        for method in METHODS:
            if seeds and all(f"{setting}|{seed}|scores|{method}" in tensors for seed in seeds):
                scores[method] = {seed: tensors[f"{setting}|{seed}|scores|{method}"] for seed in seeds}
        for method, of_seed in scores.items():
            measured = [row for row in cleansing if (row["setting"], row["method"]) == (setting, method) and int(row["seed"]) in seeds]
            gains = [float(row["test_gain"]) for row in measured]
            of_gain = {"gain": np.mean(gains), "gain low": min(gains), "gain high": max(gains)} if gains else {}
            rows.append({"setting": setting, "method": method, "seeds": len(seeds), **judge(tensors, setting, of_seed), **of_gain})
    return rows


def read_scores(path: str | os.PathLike, header: dict) -> dict[tuple[str, int], Tensor]:
    """A method's harmfulness from a CSV with the columns setting, seed, instance, score: {(setting, seed): (n,)}.

    Raises:
        ValueError: for other columns, settings or seeds that the bank does not have, scores that are no finite numbers, and instances that
            do not exist, come twice or are missing.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
            raise ValueError(f"scores are a CSV with the columns {', '.join(COLUMNS)}, but {path} has "
                             f"{', '.join(reader.fieldnames or []) or 'none'}: add {', '.join(missing)}")
        found: dict[tuple[str, int], Tensor] = {}
        for line, row in enumerate(reader, 2):
            where, made = f"line {line} of {path}", header["settings"].get(row["setting"])
            if made is None or row["seed"] not in made["seeds"]:
                there = "; ".join(f"{name}: {', '.join(one['seeds'])}" for name, one in header["settings"].items())
                raise ValueError(f"scores are of a setting and seed that the bank has ({there}), but {where} says {row['setting']!r}, "
                                 f"{row['seed']!r}: score one of those")
            key, n = (row["setting"], int(row["seed"])), made["config"]["n"]
            own = found.setdefault(key, torch.full((n,), torch.nan, dtype=torch.float64))
            try:
                instance, score = int(row["instance"]), float(row["score"])
            except (TypeError, ValueError):
                raise ValueError(f"a score is a number for an instance, but {where} says {row['instance']!r}, {row['score']!r}: mend it") from None
            if not 0 <= instance < n or not np.isfinite(score) or not own[instance].isnan():
                seen = f"no instance of 0..{n - 1}" if not 0 <= instance < n else "the second of its instance" if np.isfinite(score) else "not finite"
                raise ValueError(f"a method gives each instance one finite score, but {where}, instance {instance}, score {score:g}, is {seen}: "
                                 "mend it")
            own[instance] = score
    for (setting, seed), own in found.items():
        if lacking := own.isnan().nonzero().flatten().tolist():
            raise ValueError(f"a method scores every instance, but {path} lacks {len(lacking)} of {len(own)} of {setting}, seed {seed} (first: "
                             f"{lacking[0]}): add them")
    if not found:
        raise ValueError(f"{path} holds no score: write a line for every instance of a setting and seed")
    return found


def retrained(own: Mapping[tuple[str, int], Tensor], name: str, header: dict, device: str = "cpu") -> list[dict]:
    """What cleansing by a method gains, as rows of a bank's: its settings are trained, and trained again without its most harmful."""
    rows = []
    for (setting, seed), scores in own.items():
        config = Setting(**header["settings"][setting]["config"])
        rows += [{"setting": setting, **row} for row in cleansed(config, config.prepare(seed, device), seed, {name: scores})]
    return rows


def shown(rows: list[dict], header: dict) -> str:
    """A table for people: one block a setting."""
    lines = [f"95 % intervals of tau and lds by bootstrap within seeds; worst and best are shares of {ENDS}; gain: mean (lowest to highest seed)."]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        made, block = header["settings"][setting], [row for row in rows if row["setting"] == setting]
        config = made["config"]
        lines += ["", f"{setting}: {made['metric']}, n = {config['n']}, last {counted(config['last_epochs'], 'epoch')}, {counted(block[0]['seeds'], 'seed')}, "
                      f"{config['instances']} left out; by chance worst and best are {min(1, ENDS / config['instances']):.2f}"]
        cells = [[row["method"], *(_cell(row, name, ".2f") for name in JUDGES), _cell(row, "gain", ".2g")] for row in block]
        cells.insert(0, ["", *JUDGES, "gain on test"])
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join(lines)


def _cell(row: dict, name: str, form: str) -> str:
    found = [f"{float(row[key]) + 0.0:{form}}" for key in (name, f"{name} low", f"{name} high") if key in row]
    return f"{found[0]} ({found[1]} to {found[2]})" if found else "-"
