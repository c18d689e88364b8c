"""The command line's leaderboard of attribution methods: `gan-influence board`."""

import argparse
import sys
from pathlib import Path

import gan_influence as gi  # whose parts are imported when the command is at work: that takes longer than a help text may

from ..studies.settings import SETTINGS
from ..tools import links
from .record import check_gpu

EXAMPLE = """\
A method of your own, scored in each setting and seed that you like, all instances of it:

  from gan_influence.studies.trained import ask
  question = ask("2d-tanh", seed=0)  # question.run, question.metric, question.last_epochs, question.held_out

  gan-influence board mine.csv

where mine.csv has the columns setting, seed, instance (0..n-1) and score; larger scores mean that the metric improves more when the
instance is removed (what gi.harmfulness returns of an influence)."""


def add_board(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("board", help="attribution methods before judges, yours among them", description="""\
Show how well attribution methods predict what the removal of training instances does to a GAN's metric: Kendall's tau with true
leave-one-outs (tau), the share of the predicted most harmful and most helpful that are so (worst, best), Spearman's correlation with the removal
of random subsets of 1 % and 10 % (lds), and what cleansing gained on test data at a fraction picked on validation data. All but
the last come from a bank in notebooks/recorded, without training. The settings, with the seeds that are meant to be recorded:
""" + "\n".join(f"  {name:12} {', '.join(map(str, seeds))}" for name, (_, seeds) in SETTINGS.items()), epilog=EXAMPLE)
    command.add_argument("scores", nargs="?", metavar="CSV", help="scores of a method of your own, shown beside the others of its settings and seeds")
    command.add_argument("--name", help="of that method (default: the file's)")
    command.add_argument("--retrain", action="store_true", help="also train its settings, to measure what cleansing by it gains: minutes")
    command.add_argument("--bank", metavar="TARGET", help="another bank, TARGET.json and so on (default: the repository's)")
    command.add_argument("--record", nargs="?", const=",".join(SETTINGS), metavar="LIST",
                         help="build the bank, of all settings or of these, commas between: an hour; finished seeds stay in runs/board")
    command.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="for what is trained (default: %(default)s)")
    command.set_defaults(call=_board)
    return command


def _board(options) -> None:
    check_gpu(options, options.device, "--device")
    import torch

    from ..studies import board
    torch.set_num_threads(1)  # fastest for small networks; the bank's last digits depend on it
    target = options.bank or gi.experiments.RECORDED / "board"
    if options.record:
        if unknown := [name for name in options.record.split(",") if name not in SETTINGS]:
            raise ValueError(f"the board's settings are {', '.join(SETTINGS)}, but --record names {', '.join(unknown)}")
        out = links.ROOT / "runs" / "board"
        for name in options.record.split(","):
            gi.experiments.record(SETTINGS[name][0], SETTINGS[name][1], out / name, options.device, compile=False)
            board.gather(out, target)
    header, tensors, cleansing = board.read_bank(target)
    own, name = None, options.name or Path(options.scores or "").stem
    name += " (yours)" if name in board.METHODS else ""
    if options.scores:
        own = board.read_scores(options.scores, header)
        cleansing += board.retrained(own, name, header, options.device) if options.retrain else []
    elif options.retrain or options.name:
        raise ValueError("--retrain and --name are of a method of your own, but no CSV of scores was given: gan-influence board mine.csv")
    print(board.shown(board.table(header, tensors, cleansing, own, name), header))
    if own and not options.retrain:
        print(f"\n{name} has no gain on test: that takes training, --retrain", file=sys.stderr)
