"""What the engine costs, as ratios to a plain hand-written torch loop, measured within one process on one thread.

    python benchmarks/engine.py            # everything; a few minutes
    python benchmarks/engine.py --repeats 3

Variants are interleaved and medians reported, so that a noisy machine disturbs all of them alike.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

import gan_influence as gi
from gan_influence.readings.influence import _gradient, _sweep
from gan_influence.tools.versions import versions

EPOCHS, WINDOW = 3, 1


def reference(generator: list, discriminator: list, x, indices, latents, learning_rate: float = 1e-3) -> None:
    """Simultaneous SGD for FCGAN as one would write it for speed: plain functions, one generator forward, nothing recorded."""
    def network(parameters, h):
        for p in parameters[:-1]:
            h = torch.relu(F.linear(h, p))
        return F.linear(h, parameters[-1])

    for drawn, z in zip(indices, latents):
        generator = [p.detach().requires_grad_() for p in generator]
        discriminator = [p.detach().requires_grad_() for p in discriminator]
        fake_logits = network(discriminator, network(generator, z))
        loss = F.softplus(-network(discriminator, x[drawn])).mean() + F.softplus(fake_logits).mean()
        by_discriminator = torch.autograd.grad(loss, discriminator, retain_graph=True)
        by_generator = torch.autograd.grad(F.softplus(-fake_logits).mean(), generator)
        with torch.no_grad():
            generator = torch._foreach_add(generator, by_generator, alpha=-learning_rate)
            discriminator = torch._foreach_add(discriminator, by_discriminator, alpha=-learning_rate)


def seconds(function) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def ratios(repeats: int) -> dict[str, float]:
    data, gan = gi.data.normal_2d(10_000), gi.models.fcgan()
    run = gi.train(gan, data.train, EPOCHS, 100, gi.SGD(1e-3), "simultaneous")
    metric = gi.metrics.AverageLogLikelihood(data.valid, gan.sample_latents(1_000, seed=1))
    cotangent, start = _gradient(run, metric), run.window(WINDOW)
    window = range(start, run.steps)
    recorded = [run.schedule.indices(t) for t in window], [run.schedule.latents(t)[0] for t in window]
    players = [list(p.values()) for p in run.state(start)[:2]]
    singles = [[j] for j in range(200)]

    measured = {
        "reference loop": lambda: reference(*players, data.train, *recorded),
        "training, recorded": lambda: gi.train(gan, data.train, WINDOW, 100, gi.SGD(1e-3), "simultaneous"),
        "influence of all": lambda: _sweep(run, [cotangent], start, compile=False),
        "influence of all, two metrics": lambda: _sweep(run, [cotangent] * 2, start, compile=False),
        "influence of all, compiled": lambda: _sweep(run, [cotangent], start, compile=True),
        "one sequential replay": lambda: run.replay(start),
        "200 leave-one-out runs / 200": lambda: gi.retrain(run, singles, WINDOW),
        "200 leave-one-out runs / 200, compiled": lambda: gi.retrain(run, singles, WINDOW, compile=True),
    }
    for name, function in measured.items():
        if "compiled" in name:
            function()  # compile outside the measurement
    rounds = [{name: seconds(function) / (200 if "/ 200" in name else 1) for name, function in measured.items()} for _ in range(repeats)]
    result = {}
    for name in measured:
        base = "one sequential replay" if "/ 200" in name else "reference loop"
        result[f"{name} / {base}" if name != base else f"{name}, ms a step"] = statistics.median(
            one[name] / one[base] if name != base else 1e3 * one[name] / len(window) for one in rounds)
    return result


def image_ratios(repeats: int, width: int = 32, steps: int = 20) -> dict[str, float]:
    """Influence through DCGAN's last epoch, as a ratio to that epoch's training; random numbers for images, an untrained classifier for features."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(100 * steps, 1, 28, 28, generator=random) * 2 - 1
    gan, network = gi.models.dcgan(width=width), gi.models.classifier()
    run = gi.train(gan, x, 2, 100, gi.SGD(1e-3), "simultaneous")
    latents, start = gan.sample_latents(300, seed=1), run.window(1)
    cotangent = _gradient(run, gi.metrics.FrechetDistance(network.features, x[:300], latents))
    measured = {"training": lambda: run.replay(start), **{f"{m} metrics": lambda m=m: _sweep(run, [cotangent] * m, start, compile=False) for m in (1, 2, 3)}}
    rounds = [{name: seconds(function) for name, function in measured.items()} for _ in range(repeats)]
    one = {name: statistics.median(r[name] / r["training"] for r in rounds) for name in measured}
    return {"DCGAN, ms a step": 1e3 * statistics.median(r["training"] for r in rounds) / steps, "DCGAN, influence of all / epoch": one["1 metrics"],
            "DCGAN, two metrics / one": one["2 metrics"] / one["1 metrics"], "DCGAN, three metrics / one": one["3 metrics"] / one["1 metrics"]}


def in_a_fresh_process(script: str) -> float:
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


MEMORY = """
import gan_influence as gi, torch
torch.set_num_threads(1)
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 2**10
before = peak()
data, gan = gi.data.normal_2d(10_000), gi.models.fcgan()
run = gi.train(gan, data.train, 50, 100, gi.SGD(1e-3), "simultaneous")
metric = gi.metrics.AverageLogLikelihood(data.valid, gan.sample_latents(1_000, seed=1))
{measure}
"""
IMPORT = "import time, torch; began = time.perf_counter(); import gan_influence; print(time.perf_counter() - began)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="rounds over all variants (default 7)")
    parser.add_argument("--images", action="store_true", help="only DCGAN's ratios, which take minutes")
    torch.set_num_threads(1)
    options = parser.parse_args()
    if options.images:
        for name, value in image_ratios(options.repeats).items():
            print(f"{value:8.2f}  {name}")
        return
    result = ratios(options.repeats)
    result["50-epoch trajectory, MB"] = in_a_fresh_process(MEMORY.format(measure="print(run.nbytes / 1e6)"))
    result["peak of training and sweep over it, MiB above import"] = in_a_fresh_process(
        MEMORY.format(measure="gi.influence(run, metric); print(peak() - before)"))
    result["import after torch, s"] = min(in_a_fresh_process(IMPORT) for _ in range(3))
    for name, value in result.items():
        print(f"{value:8.2f}  {name}")
    print(json.dumps({"cpu": torch.backends.cpu.get_cpu_capability(), "threads": 1, **versions()}))


if __name__ == "__main__":
    main()
