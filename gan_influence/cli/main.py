"""The command line: `gan-influence`, or `python -m gan_influence`."""

import argparse
from collections.abc import Sequence

from ..tools.versions import __version__
from .batch import add_gather, add_run, add_status
from .notebooks import add_demo, add_links, add_list, add_notebooks
from .record import add_paper, add_record


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gan-influence", description="Which training images hurt a GAN, and would it be better without them?",
                                     epilog="gan-influence COMMAND --help says what a command needs and what it leaves.")
    parser.add_argument("--version", action="version", version=f"gan-influence {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_demo, add_list, add_run, add_status, add_gather, add_record, add_paper, add_notebooks, add_links):
        command = add(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.set_defaults(parser=command)
    options = parser.parse_args(arguments)
    return options.call(options) or 0
