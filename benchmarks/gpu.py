"""For an hour with a GPU: its tests, what the engine costs there, then recordings, as far as the time reaches.

    python benchmarks/gpu.py --budget 25m      # or: make gpu BUDGET=25m PYTHON=python3

Nothing of this repository is installed for it; it needs torch, numpy, scipy, pandas, scikit-learn, safetensors, tqdm and pytest, and no network.
Each row of runs/gpu/tests.csv and costs.csv is there as soon as it is known, with the device, driver, versions and code it is of; a test run that
passed and costs that were measured are not repeated for the same of these. Recordings go where `gan-influence paper` puts them. The exit status is 0
when all went well, and 1 otherwise, as where torch sees no GPU.
"""

import argparse
import csv
import hashlib
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import engine  # noqa: E402
import torch  # noqa: E402

import gan_influence as gi  # noqa: E402
from gan_influence.cli.record import _budget  # noqa: E402
from gan_influence.tools.devices import device_name  # noqa: E402
from gan_influence.tools.files import csv_text, write_atomically  # noqa: E402
from gan_influence.tools.versions import versions  # noqa: E402

SETS, REPEATS = 50, 3
TESTS_SHARE = 0.4  #: of the budget, that the tests may take


class Table:
    """A CSV file whose rows end in what they were measured with, and which is whole after each of them."""

    def __init__(self, path: Path, machine: dict[str, str]):
        self.path, self.machine = path, machine
        self.rows = list(csv.DictReader(path.open())) if path.exists() else []

    def add(self, **row) -> None:
        self.rows.append({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in (row | self.machine).items()})
        write_atomically(self.path, csv_text(self.rows))

    def has(self, **row) -> bool:
        return any(all(str(there[key]) == value for key, value in (row | self.machine).items()) for there in self.rows)


def machine(device: str) -> dict[str, str]:
    try:
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout.split("\n")[0]
    except FileNotFoundError:
        driver = ""
    code = hashlib.sha256(b"".join(path.read_bytes() for folder in ("gan_influence", "tests", "benchmarks") for path in sorted(ROOT.glob(f"{folder}/**/*.py"))))
    return {"device": device_name(device), "driver": driver, "cuda": str(torch.version.cuda), "code": code.hexdigest()[:12], **versions()}


def run_tests(results: Table, limit: float) -> int:
    """The tests that need a GPU, each a row as soon as it has ended; what pytest says goes to tests.txt."""
    began = last = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-v", "-rs", "--tb=short", "-p", "no:cacheprovider"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (watch := threading.Timer(limit, process.kill)).start()
    try:
        with open(results.path.with_suffix(".txt"), "w") as log:
            for line in process.stdout:
                print(line, end="", file=log, flush=True)
                if found := re.match(r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)( \(.*\))?", line):
                    now = time.monotonic()
                    results.add(test=found[1], outcome=found[2], wall_seconds=round(now - last, 2))
                    last = now
        status = process.wait()
    finally:
        watch.cancel()
        process.kill()
    results.add(test="all", outcome="PASSED" if status == 0 else "CUT SHORT" if status < 0 else "FAILED", wall_seconds=round(time.monotonic() - began, 2))
    return status


def ratio(device: str, over: Callable, under: Callable, repeats: int = REPEATS) -> float:
    """How many times as long the first takes, after both have run once."""
    over(), under()
    return statistics.median(one["over"] / one["under"] for one in engine.rounds({"over": over, "under": under}, repeats, device))


def peak(device: str, function: Callable) -> float:
    """MiB that a call needs beyond what is there before it; on a CPU, those of the whole process up to its end."""
    if device == "cpu":
        import resource
        function()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def difference(scores: torch.Tensor, others: torch.Tensor) -> float:
    return float((scores - others).abs().max() / others.abs().max())


def costs(device: str, make: Callable, sets: int, compile: bool) -> dict[str, Callable[[], float]]:
    """What is measured of a game: names, and how to find the number."""
    game, on_the_cpu = cache(partial(make, device)), cache(lambda: gi.influence(*make("cpu"), engine.WINDOW))  # made when first asked for
    removals = [[j, j + sets] for j in range(sets)]  # sets of two

    def training():
        return engine.train(game()[0].gan, game()[0].x)

    def influence(compile: bool = False):
        return gi.influence(*game(), engine.WINDOW, compile=compile)

    def together(compile: bool = False):
        return gi.retrain(game()[0], removals, engine.WINDOW, compile=compile)

    def one_by_one():
        return [gi.retrain(game()[0], one, engine.WINDOW) for one in removals]

    found = {
        "training / reference loop": lambda: ratio(device, training, engine.reference_epoch(game()[0])),
        "influence of all / training": lambda: ratio(device, influence, training),
        f"{sets} removals together / one by one": lambda: ratio(device, together, one_by_one, 1),
        "influences, device against CPU: largest difference / largest": lambda: difference(influence(), on_the_cpu()),
        "influences, device against CPU: Kendall's tau": lambda: gi.agreement(influence(), on_the_cpu()).kendall_tau,
        "training, peak MiB": lambda: peak(device, training),
        "influence of all, peak MiB": lambda: peak(device, influence),
        f"{sets} removals together, peak MiB": lambda: peak(device, together),
        "training, ms a step": lambda: 1e3 * engine.seconds(training, device) / (game()[0].steps - game()[0].window(engine.WINDOW)),
    }
    return found | ({
        "influence of all, compiled / not": lambda: ratio(device, partial(influence, True), influence, 1),
        f"{sets} removals together, compiled / not": lambda: ratio(device, partial(together, True), together, 1),
    } if compile else {})


def measure(results: Table, device: str, games: dict[str, Callable], sets: int, end: float) -> int:
    """Each number a row as soon as it is known; what fails is a row too, and the others go on."""
    status = 0
    for game, make in games.items():
        for what, find in costs(device, make, sets, compile=device != "cpu").items():
            if time.monotonic() > end or results.has(game=game, what=what, trouble=""):
                continue
            began, value, trouble = time.monotonic(), "", ""
            try:
                value = find()
            except Exception as error:  # such as no compiler
                trouble, status = f"{type(error).__name__}: {error}".split("\n")[0][:200], 1
            results.add(game=game, what=what, value=value, trouble=trouble, wall_seconds=round(time.monotonic() - began, 2))
            print(f"{game}, {what}: {trouble or f'{value:.4g}'}", flush=True)
    return status


def record(budget: float) -> int:
    return subprocess.run([sys.executable, "-m", "gan_influence", "paper", "--budget", f"{budget:.0f}s"], cwd=ROOT).returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=_budget, required=True, metavar="TIME", help="such as 25m; the tests take at most two fifths of it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only tries this script out, at tiny sizes and without recordings")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", metavar="DIR", help="where tables go (default: runs/gpu)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"This measures a GPU, but torch {torch.__version__} sees none here: run it on a machine with one, with a torch built for CUDA.", file=sys.stderr)
        return 1
    end, status = time.monotonic() + options.budget, 0
    options.out.mkdir(parents=True, exist_ok=True)
    where = machine(options.device)
    games, sets = {"FCGAN": engine.fcgan, "DCGAN": engine.dcgan}, SETS
    if options.device == "cpu":
        games, sets = {"FCGAN": partial(engine.fcgan, n=300, latents=30), "DCGAN": partial(engine.dcgan, n=200, latents=150, width=2)}, 2
    tests = Table(options.out / "tests.csv", where)
    if not tests.has(test="all", outcome="PASSED"):
        status |= run_tests(tests, TESTS_SHARE * options.budget)
    status |= measure(Table(options.out / "costs.csv", where), options.device, games, sets, end)
    if options.device == "cuda" and (left := end - time.monotonic()) > 0:
        status |= record(left)
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
