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
from collections.abc import Callable
from copy import deepcopy

import torch
from torch.nn import functional as F

import gan_influence as gi
from gan_influence.readings.influence import _sweep, metric_gradient
from gan_influence.tools.versions import versions

EPOCHS, WINDOW = 3, 1


def reference(generator, discriminator, x, indices, latents, learning_rate: float = 1e-3) -> None:
    """Simultaneous SGD on two modules as one would write it for speed: one generator forward, in place, nothing recorded."""
    players = [list(module.parameters()) for module in (generator, discriminator)]
    for drawn, z in zip(indices, latents):
        fake_logits = discriminator(generator(z))
        loss = F.softplus(-discriminator(x[drawn])).mean() + F.softplus(fake_logits).mean()
        by_discriminator = torch.autograd.grad(loss, players[1], retain_graph=True)
        by_generator = torch.autograd.grad(F.softplus(-fake_logits).mean(), players[0])
        with torch.no_grad():
            for parameters, gradients in zip(players, (by_generator, by_discriminator)):
                torch._foreach_add_(parameters, gradients, alpha=-learning_rate)


def reference_epoch(run: gi.Trajectory) -> Callable[[], None]:
    """The reference loop over what a run's last epoch drew."""
    window, players = range(run.window(WINDOW), run.steps), [deepcopy(module) for module in run.gan.networks]
    indices = [run.schedule.indices(t).to(run.x.device) for t in window]
    latents = [run.schedule.latents(t)[0].to(run.x.device, run.x.dtype) for t in window]
    return lambda: reference(*players, run.x, indices, latents)


def train(gan: gi.GAN, x: torch.Tensor, epochs: int = WINDOW) -> gi.Trajectory:
    return gi.train(gan, x, epochs, 100, gi.SGD(1e-3), "simultaneous")


def fcgan(device: str = "cpu", n: int = 10_000, latents: int = 1_000) -> tuple[gi.Trajectory, gi.metrics.AverageLogLikelihood]:
    """A run on 2D-normal, and what judges it."""
    data, gan = gi.data.normal_2d(n), gi.models.fcgan().to(device)
    return train(gan, data.train.to(device), EPOCHS), gi.metrics.AverageLogLikelihood(data.valid.to(device), gan.sample_latents(latents, seed=1))


def dcgan(device: str = "cpu", n: int = 2_000, latents: int = 300, width: int = 32) -> tuple[gi.Trajectory, gi.metrics.FrechetDistance]:
    """A run on images, and what judges it; random numbers for images, an untrained classifier for features."""
    x = (torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
    gan, network = gi.models.dcgan(width=width).to(device), gi.models.classifier().to(device)
    return train(gan, x, 2), gi.metrics.FrechetDistance(network.features, x[:latents], gan.sample_latents(latents, seed=1))


def seconds(function: Callable, device: str = "cpu") -> float:
    """What a call takes: CPU time, or on a GPU the time until it has done all that it was told."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def rounds(measured: dict[str, Callable], repeats: int, device: str = "cpu") -> list[dict[str, float]]:
    """The seconds of each, one after the other, several times over."""
    return [{name: seconds(function, device) for name, function in measured.items()} for _ in range(repeats)]


def ratios(repeats: int) -> dict[str, float]:
    run, metric = fcgan()
    cotangent, start = metric_gradient(run, metric), run.window(WINDOW)
    singles = [[j] for j in range(200)]
    measured = {
        "reference loop": reference_epoch(run),
        "training of 10 epochs / 10": lambda: train(run.gan, run.x, 10),
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
    shares = {name: int(name.split(" / ")[1].split(",")[0]) if " / " in name else 1 for name in measured}
    found = [{name: value / shares[name] for name, value in one.items()} for one in rounds(measured, repeats)]
    result = {}
    for name in measured:
        base = "one sequential replay" if "/ 200" in name else "reference loop"
        result[f"{name} / {base}" if name != base else f"{name}, ms a step"] = statistics.median(
            one[name] / one[base] if name != base else 1e3 * one[name] / (run.steps - start) for one in found)
    return result


def image_ratios(repeats: int) -> dict[str, float]:
    """Influence through DCGAN's last epoch, as a ratio to that epoch's training."""
    run, metric = dcgan()
    cotangent, start = metric_gradient(run, metric), run.window(WINDOW)
    measured = {"training": lambda: run.replay(start), **{f"{m} metrics": lambda m=m: _sweep(run, [cotangent] * m, start, compile=False) for m in (1, 2, 3)}}
    found = rounds(measured, repeats)
    one = {name: statistics.median(r[name] / r["training"] for r in found) for name in measured}
    return {"DCGAN, ms a step": 1e3 * statistics.median(r["training"] for r in found) / (run.steps - start),
            "DCGAN, influence of all / epoch": one["1 metrics"], "DCGAN, two metrics / one": one["2 metrics"] / one["1 metrics"],
            "DCGAN, three metrics / one": one["3 metrics"] / one["1 metrics"]}


def rule_ratios(repeats: int) -> dict[str, float]:
    """Influence through an epoch of FCGAN under other optimisers and with other layers, as a ratio to that epoch's own training."""
    result = {}
    for name, optimizer, layer, options in (
            ("momentum", gi.SGD(1e-3, momentum=0.9), None, {}), ("Adam", gi.Adam(1e-3), None, {}), ("Adam, average", gi.Adam(1e-3), None, {"average": 0.99}),
            ("Adam, batch norm", gi.Adam(1e-3), "batch", {}), ("Adam, spectral norm", gi.Adam(1e-3), "spectral", {})):
        gan, x = normed(layer), gi.data.normal_2d(4_000).train
        run = gi.train(gan, x, 2, 100, optimizer, "alternating", **options)
        cotangent, start = metric_gradient(run, gi.metrics.AverageLogLikelihood(x[:500], gan.sample_latents(500, seed=1))), run.window(WINDOW)
        found = rounds({"over": lambda: _sweep(run, [cotangent], start, compile=False), "under": lambda: run.replay(start)}, repeats)  # noqa: B023
        result[f"{name}, influence of all / its own epoch"] = statistics.median(one["over"] / one["under"] for one in found)
    return result


def normed(layer: str | None) -> gi.GAN:
    """FCGAN, with a normalisation in both networks, or in the discriminator."""
    gan = gi.models.fcgan()
    generator, discriminator = gan.generator, gan.discriminator
    if layer == "batch":
        generator, discriminator = (torch.nn.Sequential(*(part for one in net for part in (
            [one, torch.nn.BatchNorm1d(one.out_features).double()] if isinstance(one, torch.nn.Linear) and one is not net[-1] else [one])))
            for net in gan.networks)
    if layer == "spectral":
        for one in discriminator:
            if isinstance(one, torch.nn.Linear):
                torch.nn.utils.parametrizations.spectral_norm(one)
    return gi.GAN(generator, discriminator, gan.latent_dim)


def recorder_ratio(repeats: int, steps: int = 1_000) -> dict[str, float]:
    """An ordinary loop of FCGAN with a recorder watching, as a ratio to the loop alone."""
    x = gi.data.normal_2d(10_000).train

    def loop(recorded: bool, kind: type[torch.optim.Optimizer]) -> None:
        generator, discriminator = gi.models.fcgan().networks
        optimizers = [kind(module.parameters(), 1e-3) for module in (generator, discriminator)]
        recorder = gi.Recorder(generator, discriminator, *optimizers, x) if recorded else None
        for _ in range(steps):
            fake = generator(torch.randn(100, 10, dtype=x.dtype))
            optimizers[1].zero_grad()
            (F.softplus(-discriminator(x[torch.randint(len(x), (100,))])).mean() + F.softplus(discriminator(fake.detach())).mean()).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            F.softplus(-discriminator(fake)).mean().backward()
            optimizers[0].step()
        if recorder:
            recorder.stop()

    result = {}
    for kind in (torch.optim.SGD, torch.optim.Adam):
        found = rounds({"over": lambda: loop(True, kind), "under": lambda: loop(False, kind)}, repeats)  # noqa: B023
        result[f"a loop with {kind.__name__}, recorded / alone"] = statistics.median(one["over"] / one["under"] for one in found)
    return result


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
    parser.add_argument("--rules", action="store_true", help="only other optimisers and layers, and the recorder")
    torch.set_num_threads(1)
    options = parser.parse_args()
    if options.images or options.rules:
        for name, value in (image_ratios(options.repeats) if options.images else rule_ratios(options.repeats) | recorder_ratio(options.repeats)).items():
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
