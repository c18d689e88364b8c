"""The command line: `gan-influence`, or `python -m gan_influence`."""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path

from ..tools import links
from ..tools.versions import __version__
from .batch import add_gather, add_list, add_run, add_status, notebook_tools
from .record import add_paper, add_record


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gan-influence", description="Which training images hurt a GAN, and would it be better without them?",
                                     epilog="gan-influence COMMAND --help says what a command needs and what it leaves.")
    parser.add_argument("--version", action="version", version=f"gan-influence {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_demo, add_list, add_run, add_status, add_gather, add_record, add_paper, _add_notebooks, _add_links):
        command = add(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.set_defaults(parser=command)
    options = parser.parse_args(arguments)
    return options.call(options) or 0


def _add_demo(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("demo", help="train a small GAN, find its harmful instances, train again without them", description="""\
Run notebooks/00_start_here.ipynb from top to bottom, in about a minute on a CPU, and leave in a folder
  00_start_here.html    the executed notebook, to read in a browser
  00_start_here.ipynb   the same, to continue in Jupyter
  figure-1.png ...      its figures
  results.json          its key numbers, also printed""", epilog="""\
example:
  gan-influence demo -p seed 3 --out runs/seed-3""")
    command.add_argument("--out", default="runs/demo", metavar="DIR", help="where everything goes (default: %(default)s)")
    command.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="another value for a name in the notebook's parameters cell; may be given several times")
    command.set_defaults(call=_demo)
    return command


def _demo(options) -> int:
    notebooks = notebook_tools(options)
    parameters, notebook = dict(options.parameter), notebooks.FOLDER / "00_start_here.ipynb"
    if "out" in parameters:
        options.parser.error("the notebook's parameter out is this command's --out: give that instead")
    if not notebook.exists():
        options.parser.error(f"the notebooks are not part of the installed package: clone {_home_page()} and run this there")
    try:
        executed = notebooks.run(notebook, options.out, parameters)
    except ValueError as error:
        options.parser.error(str(error))
    except notebooks.papermill.PapermillExecutionError as error:
        print(f"cell {error.cell_index} failed, {error.ename}: {error.evalue}\nThe notebook up to there: {Path(options.out) / notebook.name}", file=sys.stderr)
        return 1
    _report(executed)
    return 0


def _report(executed: Path) -> None:
    out = executed.parent
    results = out / "results.json"
    if results.exists():
        numbers = {name: value for name, value in json.loads(results.read_text())["results"].items() if isinstance(value, (int, float, str))}
        width = max(map(len, numbers), default=0)
        print("\nKey numbers")
        for name, value in numbers.items():
            print(f"  {name:{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
    figures = len(list(out.glob("figure-*.png")))
    print(f"\nRead {executed.with_suffix('.html')} in a browser, or continue in {executed};\n{figures} figures and results.json are beside it.")


def _add_notebooks(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("notebooks", help="execute the notebooks again, each in its place", description="""\
Execute notebooks with their own parameters and store them, cleaned, in their place. One that fails stays as it was.""")
    command.add_argument("paths", nargs="*", type=Path, metavar="NOTEBOOK", help="which ones (default: all in notebooks/)")
    command.set_defaults(call=_notebooks)
    return command


def _notebooks(options) -> int:
    notebooks = notebook_tools(options)
    from nbclient.exceptions import CellExecutionError

    paths = options.paths or sorted(notebooks.FOLDER.glob("*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        options.parser.error(f"no such notebook: {', '.join(missing)}")
    failed = 0
    for path in paths:
        try:
            print(f"{path.name}: {notebooks.refresh(path):.0f} s", flush=True)
        except CellExecutionError as error:
            failed += 1
            print(f"{path.name} stays as it was, because a cell failed:\n{error}", file=sys.stderr)
    return 1 if failed else 0


def _add_links(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("links", help="make the Colab, Binder and GitHub links follow pyproject.toml", description="""\
The repository's address is written once, in pyproject.toml. Rewrite every link to it in README.md and notebooks/*.ipynb.""",
                                  epilog="""\
example: after forking
  gan-influence links --repository ada/gan_influence""")
    command.add_argument("--check", action="store_true", help="change nothing; list the links that disagree, with exit status 1 if there are any")
    command.add_argument("--repository", metavar="OWNER/NAME", help="write this address into pyproject.toml first")
    command.set_defaults(call=_links)
    return command


def _links(options) -> int:
    if options.check and options.repository:
        options.parser.error("--check changes nothing and --repository does: give one of them")
    root = links.ROOT
    try:
        if options.repository:
            links.rename(options.repository, root)
        if options.check:
            wrong = links.disagreements(root)
            print("\n".join(wrong) if wrong else f"every link leads to {links.repository(root)}")
            return 1 if wrong else 0
        print("\n".join(links.rewrite(root)) or "nothing to change")
        return 0
    except (ValueError, FileNotFoundError) as error:
        options.parser.error(str(error))


def _home_page() -> str:
    # From the installed metadata: an installed package has no pyproject.toml beside it.
    return dict(entry.split(", ", 1) for entry in metadata("gan-influence").get_all("Project-URL", []))["Repository"]
