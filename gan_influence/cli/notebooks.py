"""The command line's notebooks: `gan-influence demo`, `list`, `notebooks`, and the `links` in them."""

import json
import sys
from pathlib import Path

from ..batch import notebooks
from ..tools import links
from ..tools.locks import LOCK, only_driver


def add_demo(commands) -> None:
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


def _demo(options) -> int:
    from papermill import PapermillExecutionError

    parameters, out = dict(options.parameter), Path(options.out)
    if "out" in parameters:
        options.parser.error("the notebook's parameter out is this command's --out: give that instead")
    try:
        notebook = notebooks.find("00_start_here")
        notebooks.check_parameters(notebook, parameters)
        there = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if there - {LOCK} and not {LOCK, notebook.name} <= there:
            options.parser.error(f"{out.resolve()} holds {min(there)}, and no demo made that folder, whose files it would replace: give --out a new one")
        with only_driver(out):
            _report(notebooks.run(notebook, out, parameters))
    except PapermillExecutionError as error:
        print(f"cell {error.cell_index} failed, {error.ename}: {error.evalue}\nThe notebook up to there: {out / notebook.name}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"the notebook's process died ({error}): it ran out of memory, or somebody ended it", file=sys.stderr)
        return 1
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


def add_list(commands) -> None:
    command = commands.add_parser("list", help="the notebooks and their parameters", description="""\
Show every notebook with the parameters that `run` and `demo` can change: name, type, value, meaning.""")
    command.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="only these: a number, a name or a path")
    command.set_defaults(call=_list)


def _list(options) -> None:
    for path in [notebooks.find(name) for name in options.notebooks] or notebooks.every():
        print(notebooks.title(path), f"({path.name})")
        for name, one in notebooks.declared(path).items():
            if name != "out":  # that is --out
                print(f"  {name:15} {one['inferred_type_name']:6} {one['default']:12} {one['help']}".rstrip())
        print()


def add_notebooks(commands) -> None:
    command = commands.add_parser("notebooks", help="execute the notebooks again, each in its place", description="""\
Execute notebooks with their own parameters and store them, cleaned, in their place. One that fails stays as it was.""")
    command.add_argument("paths", nargs="*", type=Path, metavar="NOTEBOOK", help="which ones (default: all in notebooks/)")
    command.set_defaults(call=_notebooks)


def _notebooks(options) -> int:
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


def add_links(commands) -> None:
    command = commands.add_parser("links", help="make the Colab, Binder and GitHub links follow pyproject.toml", description="""\
The repository's address is written once, in pyproject.toml. Rewrite every link to it in README.md and notebooks/*.ipynb.""",
                                  epilog="""\
example: after forking
  gan-influence links --repository ada/gan_influence""")
    command.add_argument("--check", action="store_true", help="change nothing; list the links that disagree, with exit status 1 if there are any")
    command.add_argument("--repository", metavar="OWNER/NAME", help="write this address into pyproject.toml first")
    command.set_defaults(call=_links)


def _links(options) -> int:
    if options.check and options.repository:
        options.parser.error("--check changes nothing and --repository does: give one of them")
    root = links.ROOT
    if options.repository:
        links.rename(options.repository, root)
    if options.check:
        wrong = links.disagreements(root)
        print("\n".join(wrong) if wrong else f"every link leads to {links.repository(root)}")
        return 1 if wrong else 0
    print("\n".join(links.rewrite(root)) or "nothing to change")
    return 0
