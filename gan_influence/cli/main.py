"""The command line: `gan-influence`, or `python -m gan_influence`."""

import argparse
import os
import sys
from collections.abc import Sequence

from ..tools.versions import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: else the next file to be opened gets its number, and what kernels print
            setattr(sys, name, stream := open(os.devnull, "r" if name == "stdin" else "w"))
            os.set_inheritable(stream.fileno(), True)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here, where trouble with it can be told
    except KeyboardInterrupt:
        print("stopped before the end", file=sys.stderr)
        return 130
    except OSError as error:
        read_enough = isinstance(error, BrokenPipeError)  # as of `| head`
        if not read_enough:
            print(f"gan-influence: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try once more, and complain
        return 141 if read_enough else 1
    except ModuleNotFoundError as error:
        print(f"gan-influence: this command needs {error.name}: pip install 'gan-influence[notebooks,images]'", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    from .batch import add_gather, add_run, add_status  # here, where an interrupt is met with a sentence
    from .board import add_board
    from .gossip import add_gossip
    from .notebooks import add_demo, add_links, add_list, add_notebooks
    from .record import add_paper, add_record

    parser = argparse.ArgumentParser(prog="gan-influence", description="Which training images hurt a GAN, and would it be better without them?",
                                     epilog="gan-influence COMMAND --help says what a command needs and what it leaves.")
    parser.add_argument("--version", action="version", version=f"gan-influence {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_demo, add_list, add_run, add_status, add_gather, add_record, add_paper, add_board, add_gossip, add_notebooks, add_links):
        add(commands)
    for command in commands.choices.values():
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.set_defaults(parser=command)
    options = parser.parse_args(arguments)
    try:
        return options.call(options) or 0
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise  # the system's words, and not a sentence of this package
        options.parser.error(str(error))
