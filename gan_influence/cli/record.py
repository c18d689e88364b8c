"""The command line's full-scale experiments: `gan-influence record` and `gan-influence paper`."""

import argparse
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import gan_influence as gi  # whose experiments are imported when a command is at work: that takes longer than a help text may

from ..studies import protocols
from ..studies.published import PUBLISHED_ACCURACY
from ..tools import links


def seeds(text: str) -> range:
    """Read A:B or A."""
    first, colon, last = text.partition(":")
    try:
        found = range(int(first), int(last) if colon else int(first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"seeds are A:B, as in 0:10 for ten of them, but got {text!r}") from None
    if not found or found[0] < 0:
        raise argparse.ArgumentTypeError(f"{text} names no seed: 0:10 is the seeds 0 to 9")
    return found


def check_gpu(options, device: str, option: str) -> None:
    """End with a sentence where a GPU was asked for and is absent."""
    try:
        gi.experiments.check_device(device, f"{option} {device}")
    except RuntimeError as error:
        options.parser.error(str(error))


def add_record(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("record", help="run a published experiment at full scale, piece by piece", description="""\
Run one of the published experiments, once per seed. A seed has several pieces (windows, or rankings); each leaves a file when it is
finished, and the same command again goes on where it stopped. Those named small are what a CPU can do of the experiments on
images. The experiments, with their pieces:
""" + "\n".join(f"  {name:20} {', '.join(protocol.pieces)}" for name, (protocol, _) in protocols.EXPERIMENTS.items()), epilog="""\
examples:
  gan-influence record accuracy_2d --seeds 0:10 --gather notebooks/recorded/accuracy_2d
  gan-influence record accuracy_mnist --seeds 0:10 --pieces k=1,k=5 --device cuda""")
    command.add_argument("experiment", choices=list(protocols.EXPERIMENTS), metavar="EXPERIMENT", help="one of those above")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", type=seeds, metavar="A:B", help="the seeds A, A+1, ... B-1; or a single one")
    which.add_argument("--missing", action="store_true", help="the published seeds, as far as notebooks/recorded lacks them, in order of value")
    command.add_argument("--pieces", metavar="LIST", help="only these, with commas between (default: all)")
    command.add_argument("--out", metavar="DIR", help="where the finished pieces go; a folder per experiment (default: runs/EXPERIMENT)")
    command.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: %(default)s")
    command.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU (default: %(default)s, fastest for small networks)")
    command.add_argument("--no-compile", action="store_true", help="do not compile the training step first, which takes a C++ compiler and pays at full scale")
    command.add_argument("--gather", metavar="TARGET", help="then merge all that DIR holds into TARGET.csv, TARGET_*.csv and TARGET.json")
    command.set_defaults(call=_record)
    return command


def _record(options) -> None:
    check_gpu(options, options.device, "--device")
    import torch
    name, protocol = options.experiment, protocols.EXPERIMENTS[options.experiment][0]
    out, pieces = Path(options.out or Path("runs") / name), options.pieces.split(",") if options.pieces else protocol.pieces
    torch.set_num_threads(options.threads)
    try:
        seeds = outstanding(name, out) if options.missing else [(seed, pieces) for seed in options.seeds]
        gi.experiments.record(protocol, seeds, out, options.device, not options.no_compile)
        if options.gather:
            _gather(name, out, Path(options.gather))
    except (ValueError, OSError, ImportError) as error:
        options.parser.error(str(error))


def _gather(name: str, out: Path, target: Path) -> None:
    gi.experiments.gather(out, target)
    if name == "accuracy_2d":  # README's figure
        import pandas as pd
        table, scores = (pd.read_csv(f"{target}{part}.csv") for part in ("", "_scores"))
        try:
            gi.plots.overview(table, scores, PUBLISHED_ACCURACY[table.metric.iloc[0]]).savefig(target.with_name("readme.png"), dpi=110)
        except ModuleNotFoundError as error:
            print(f"readme.png was not drawn, because {error.name} is not installed: pip install 'gan-influence[notebooks]', then "
                  f"`gan-influence record {name} --seeds 0 --out {out} --gather {target}`", file=sys.stderr)


def add_paper(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("paper", help="make what is outstanding of the full-scale recordings, within a time budget", description="""\
Run the published protocols where notebooks/recorded lacks seeds or pieces, in order of value, until all are there or the time
is over; then renew the recordings. A GPU, where torch sees one, begins with the published experiments on images, which a CPU
takes last. Finished pieces stay in runs/: the same command again continues.""", epilog="""\
example:
  gan-influence paper --budget 25m""")
    command.add_argument("--budget", required=True, type=_budget, metavar="TIME", help="such as 90s, 25m or 2h; a piece that is under way at its end is lost")
    command.add_argument("--list", action="store_true", help="only say what is outstanding")
    command.set_defaults(call=_paper)
    return command


def outstanding(name: str, out: Path) -> list[tuple[int, list[str]]]:
    """What neither notebooks/recorded nor a folder holds of an experiment: (seed, pieces), in order of value."""
    protocol, seeds = protocols.EXPERIMENTS[name]
    there = gi.experiments.recorded_pieces(name, protocol) | gi.experiments.finished(out, protocol)
    waiting = [(seed, [piece for piece in pieces if (seed, piece) not in there]) for pieces in protocol.rounds for seed in seeds]
    return [(seed, pieces) for seed, pieces in waiting if pieces]


def _paper(options) -> int:
    import torch
    end, device, status = time.monotonic() + options.budget, "cuda" if torch.cuda.is_available() else "cpu", 0
    for name in sorted(protocols.EXPERIMENTS, key=lambda name: (name in protocols.FOR_A_GPU) != (device == "cuda")):
        out, (protocol, wanted) = links.ROOT / "runs" / name, protocols.EXPERIMENTS[name]
        command = [sys.executable, "-m", "gan_influence", "record", name, "--missing", "--out", str(out), "--device", device]
        try:
            waiting = outstanding(name, out)
            print(f"{name}: " + (f"{sum(len(pieces) for _, pieces in waiting)} pieces of {len({seed for seed, _ in waiting})} seeds are outstanding"
                                 if waiting else f"all {len(wanted)} seeds are there"), flush=True)
            if options.list:
                continue
            if waiting and (left := end - time.monotonic()) > 0:
                with suppress(subprocess.TimeoutExpired):  # the budget's end is no failure
                    status = subprocess.run(command, timeout=left).returncode or status  # it has said why
            if new := gi.experiments.finished(out, protocol) - gi.experiments.recorded_pieces(name, protocol):
                _gather(name, out, gi.experiments.RECORDED / name)
                print(f"{name}: {len(new)} pieces were added to the recording", flush=True)
        except (ValueError, ImportError) as error:  # a folder of another protocol, or no pandas to gather with: the other experiments go on
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
    return status


def _budget(text: str) -> float:
    found = re.fullmatch(r"([\d.]*\d)([smh])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"a time is a number with s, m or h behind it, as in 25m, but got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
