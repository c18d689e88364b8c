"""The published protocols as plain values, and the functions that notebooks and the command line run them with."""

import csv
import io
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import data
from .agreement import agreement
from .influence import influence
from .metrics import AverageLogLikelihood
from .models import fcgan
from .optimizers import SGD
from .retraining import counterfactuals, leave_one_out
from .state import unstack
from .storage import versions, write_atomically
from .trajectory import Trajectory, train

RECORDED = Path(__file__).parents[1] / "notebooks" / "recorded"
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Accuracy:
    """Experiment 1 on 2D-normal: does the influence on ALL rank instances as leave-one-out retraining does?

    The defaults are the published protocol: Terashita et al., ICLR 2021, section 5.1.
    """

    n: int = 10_000  #: training instances
    epochs: int = 50
    batch_size: int = 100
    learning_rate: float = 1e-3
    order: str = "simultaneous"
    activation: str = "relu"
    held_out: int = 1_000  #: validation instances that ALL is measured on
    latents: int = 1_000  #: generated points that ALL is measured with
    instances: int = 200  #: how many are left out, one at a time
    windows: tuple[int, ...] = (1, 5, 10, 20, 50)  #: k, in epochs


ACCURACY = {
    "paper": Accuracy(),
    "quick": Accuracy(n=1_000, epochs=10, held_out=300, latents=300, instances=60, windows=(1, 2, 5, 10)),
}

#: Published means over 10 seeds, read off figure 1 by eye (±.02); ALL is the green curve.
PUBLISHED_ACCURACY = {"k": (1, 5, 10, 20, 50), "kendall_tau": (.87, .83, .86, .84, .67), "jaccard": (.57, .46, .53, .43, .30)}


def accuracy_run(config: Accuracy, seed: int, device: str = "cpu") -> tuple[Trajectory, AverageLogLikelihood]:
    """Train the experiment's GAN, and build its metric.

    >>> run, metric = accuracy_run(Accuracy(n=200, epochs=1, held_out=20, latents=20), seed=0)
    >>> run.steps, metric.name
    (2, 'average log-likelihood')
    """
    check_device(device)
    parts = data.normal_2d(config.n, config.held_out, seed=seed)
    gan = fcgan(seed=seed, activation=ACTIVATIONS[config.activation])
    gan.generator.to(device), gan.discriminator.to(device)
    run = train(gan, parts.train.to(device), config.epochs, config.batch_size, SGD(config.learning_rate), config.order, seed)
    return run, AverageLogLikelihood(parts.valid.to(device), gan.sample_latents(config.latents, seed=[seed, 1]))


def chosen_instances(config: Accuracy, seed: int) -> np.ndarray:
    """Which instances Experiment 1 leaves out: a random draw without replacement."""
    return np.random.default_rng([seed, 2]).choice(config.n, config.instances, replace=False)


def accuracy_experiment(config: Accuracy, seed: int, device: str = "cpu", compile: bool = False) -> tuple[list[dict], list[dict]]:
    """Run Experiment 1 for one seed.

    Args:
        config: the protocol.
        seed: of the data, the initialisation, the schedule and the choice of instances.
        device: "cpu" or "cuda".
        compile: compile first, worth it at the published size.

    Returns:
        One row per window (k, agreement, seconds), and one row per window and instance (influence, leave-one-out), both in
        nats per held-out instance.
    """
    run, metric = accuracy_run(config, seed, device)
    chosen, summary, scores = chosen_instances(config, seed), [], []
    for k in config.windows:
        began = time.perf_counter()
        estimate = influence(run, metric, last_epochs=k, compile=compile)[chosen]
        estimated = time.perf_counter()
        truth = leave_one_out(run, metric, chosen, last_epochs=k, compile=compile)
        seconds = {"seconds_influence": estimated - began, "seconds_leave_one_out": time.perf_counter() - estimated}
        agreed = {name: value for name, value in asdict(agreement(estimate, truth)).items() if name not in ("n", "k")}
        summary.append({"seed": seed, "last_epochs": k, **agreed, **seconds})
        scores += [{"seed": seed, "last_epochs": k, "instance": int(j), "influence": float(a), "leave_one_out": float(b)}
                   for j, a, b in zip(chosen, estimate, truth)]
    return summary, scores


def fractional_leave_one_out(run: Trajectory, metric, instances: Iterable[int], fraction: float, last_epochs: int | None = None) -> torch.Tensor:
    """Measure how the metric changes when a fraction of each instance is absent, per unit removed.

    Args:
        run, metric, last_epochs: as in `leave_one_out`.
        instances: which ones, each alone.
        fraction: ε; the instance's weight is 1 − ε. 1 is leave-one-out; for ε → 0 the result tends to the influence.

    Returns:
        (len(instances),) float64 on the CPU: (metric(weight 1 − ε) − metric(weight 1)) / ε.
    """
    sets = list(torch.as_tensor(instances).view(-1, 1))
    changes = torch.zeros(len(sets), dtype=torch.float64)
    with torch.no_grad():
        before = metric(run.gan, run.final)
        for which, stacked in counterfactuals(run, sets, run.window(last_epochs), weight=1 - fraction):
            for i, state in zip(which, unstack(stacked)):
                changes[i] = (metric(run.gan, state) - before).item() / fraction
    return changes


def kink_experiment(config: Accuracy, seed: int, device: str = "cpu", last_epochs: int = 1, fractions: Iterable[float] = (1, 0.1, 0.01, 0.001)) -> list[dict]:
    """Rank agreement of the influence with the removal of ever smaller fractions of each instance, one row per fraction.

    It separates two suspects. A wrong derivative would disagree at every fraction; kinks of the activations, which a whole
    instance's removal crosses, stop mattering for small ones.
    """
    run, metric, chosen = *accuracy_run(config, seed, device), chosen_instances(config, seed)
    estimate = influence(run, metric, last_epochs=last_epochs)[chosen]
    rows = []
    for fraction in fractions:
        found = agreement(estimate, fractional_leave_one_out(run, metric, chosen, fraction, last_epochs))
        rows.append({"seed": seed, "last_epochs": last_epochs, "fraction": float(fraction), "kendall_tau": found.kendall_tau, "slope": found.slope})
    return rows


def record_accuracy(config: Accuracy, seeds: Iterable[int], out: str | os.PathLike, device: str = "cpu", compile: bool = True) -> None:
    """Run Experiment 1 and the kink experiment for several seeds into the folder `out`, one file a seed; seeds already there are not run again.

    Raises:
        ValueError: before anything runs, when `out` holds seeds of another protocol.
    """
    out = Path(out)
    for path, run in _finished(out):
        if run["config"] != _plain(config):
            raise ValueError(f"{path} was run with another protocol than the one asked for: give each protocol a folder of its own")
    for seed in seeds:
        done = out / f"seed-{seed}.json"
        if done.exists():
            continue
        began = time.perf_counter()
        summary, scores = accuracy_experiment(config, seed, device, compile)
        header = {"config": _plain(config), "seed": seed, "device": device_name(device), "threads": torch.get_num_threads(),
                  "versions": versions(), "wall_seconds": round(time.perf_counter() - began, 1)}
        write_atomically(done, json.dumps({**header, "summary": summary, "scores": scores, "fractions": kink_experiment(config, seed, device)}))
        print(f"seed {seed}: {header['wall_seconds']:.0f} s, tau " + " ".join(f"k={r['last_epochs']}:{r['kendall_tau']:.2f}" for r in summary), flush=True)


def gather_accuracy(out: str | os.PathLike, target: str | os.PathLike) -> None:
    """Merge what `record_accuracy` left in `out` into `<target>.csv`, `<target>_scores.csv`, `<target>_fractions.csv` and their header `<target>.json`."""
    runs = sorted((run for _, run in _finished(out)), key=lambda run: run["seed"])
    if not runs:
        raise FileNotFoundError(f"{out} holds no finished seed (seed-*.json): run the experiment there first")
    target = Path(target)
    for part in ("summary", "scores", "fractions"):
        write_atomically(_part(target, part), _csv([row for run in runs for row in run[part]]))
    header = {key: runs[0][key] for key in ("config", "device", "threads", "versions")}
    header |= {"seeds": [run["seed"] for run in runs], "wall_seconds": [run["wall_seconds"] for run in runs],
               "units": {"influence": "nats per held-out instance", "leave_one_out": "nats per held-out instance", "seconds": "s"}}
    write_atomically(target.with_suffix(".json"), json.dumps(header, indent=1) + "\n")


def recorded(name: str, part: str = "summary"):
    """A recorded full-scale run of this repository: one of its tables as a pandas DataFrame, and its header.

    Args:
        name: such as "accuracy_2d".
        part: which of the run's tables: "summary", or such as "scores" and "fractions".

    Raises:
        FileNotFoundError: where the repository's notebooks/recorded is not at hand.
    """
    import pandas as pd
    for folder in (Path("recorded"), RECORDED):
        if _part(folder / name, part).exists():
            return pd.read_csv(_part(folder / name, part)), json.loads((folder / f"{name}.json").read_text())
    raise FileNotFoundError(f"the recorded run {name!r} lies in the repository's notebooks/recorded, which is not here: start from a clone of it")


def save_results(out: str | os.PathLike, results: dict, rows: list[dict]) -> None:
    """Write a notebook's numbers to `<out>/results.json` (with versions) and its table to `<out>/table.csv`, each whole or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     save_results(out, {"tau": 0.9}, [{"k": 1, "tau": 0.9}])
    ...     print((Path(out) / "table.csv").read_text().split())
    ['k,tau', '1,0.9']
    """
    write_atomically(Path(out) / "table.csv", _csv(rows))
    write_atomically(Path(out) / "results.json", json.dumps({"results": results, "versions": versions()}, indent=1) + "\n")


def check_device(device: str, asked: str | None = None) -> None:
    """Refuse a GPU that is not there; `asked` says how it was asked for.

    Raises:
        RuntimeError: for "cuda" where torch sees no GPU.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"a GPU was asked for ({asked or f'device {device!r}'}) but torch sees none: use the device 'cpu', or install the torch "
                           f"build for your driver (this is torch {torch.__version__})")


def device_name(device: str) -> str:
    """The device in words, for a table's header."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _finished(out: str | os.PathLike) -> list[tuple[Path, dict]]:
    return [(path, json.loads(path.read_text())) for path in sorted(Path(out).glob("seed-*.json"))]


def _part(target: Path, part: str) -> Path:
    return target.with_name(f"{target.name}.csv" if part == "summary" else f"{target.name}_{part}.csv")


def _plain(config) -> dict:
    return json.loads(json.dumps(asdict(config)))


def _csv(rows: list[dict]) -> str:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    return lines.getvalue()
