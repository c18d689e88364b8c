"""The package's rooms, over the imports themselves: arrows point down, no circle, no room outgrows its size."""

import ast
import graphlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted(ROOT.glob("gan_influence/**/*.py"))}
TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}

ENGINE = ("game", "training", "readings", "metrics", "models", "data")
BELOW = {  # a room, and those that it may import from besides itself
    "tools": (), "game": ("tools",), "training": ("game", "tools"), "readings": ("training", "game", "tools"),
    "metrics": ("game", "tools"), "models": ("game", "tools"), "data": ("tools",), "studies": (*ENGINE, "tools"),
    "batch": ("studies", *ENGINE, "tools"), "cli": ("batch", "studies", *ENGINE, "tools", ""), "__main__": ("cli",), "": ("tools",)}
NOTEBOOKS = {"IPython", "dask", "distributed", "ipykernel", "ipywidgets", "jupyter_client", "matplotlib", "nbclient", "nbconvert", "nbformat", "papermill",
             "seaborn", "traitlets"}


def room(module: str) -> str:
    return (module + ".").split(".")[1]


def imports(module: str) -> set[str]:
    """What a module imports anywhere in it, inside functions too; of this package the files, not the names in them."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if FILES[module].name == "__init__.py" else module.split(".")[:-1]
            source = ".".join([*package[:len(package) - node.level + 1], *filter(None, [node.module])]) if node.level else node.module
            found |= {inner if (inner := f"{source}.{alias.name}") in FILES else source for alias in node.names}
    return found - {module}


ARROWS = {module: {other for other in imports(module) if other in FILES} for module in FILES}


def lines(*rooms: str) -> int:
    return sum(len(path.read_text().splitlines()) for module, path in FILES.items() if room(module) in rooms)


def test_arrows_point_down():
    up = [f"{module} imports {other}" for module, others in ARROWS.items() for other in others if room(other) not in (room(module), *BELOW[room(module)])]
    assert not up


def test_no_circle():
    graphlib.TopologicalSorter(ARROWS).prepare()  # raises CycleError, which names the circle


def reached(name: str) -> set[str]:
    """A reading and all readings that it imports, or that those do."""
    found, waiting = set(), [f"gan_influence.readings.{name}"]
    while waiting:
        found.add(module := waiting.pop())
        waiting += [other for other in ARROWS[module] - found if room(other) == "readings"]
    return {module.rpartition(".")[2] for module in found}


def test_influence_and_retraining_never_know_each_other():
    assert "implicit" in reached("influence")  # else this test looks at nothing
    assert "retraining" not in reached("influence") | reached("implicit")
    assert not {"influence", "implicit"} & reached("retraining")


@pytest.mark.parametrize("name", [*ENGINE, "tools"])
def test_the_engine_knows_nothing_of_notebooks(name):
    assert not {other for module in FILES if room(module) == name for other in imports(module) if other.partition(".")[0] in NOTEBOOKS}


def test_imports_are_of_modules_that_exist():
    """So that the arrows above are all of them: nothing is imported by an absolute name, or by one that is made up at run time."""
    absolute = [module for module in FILES for other in imports(module) if other.startswith("gan_influence") and other not in FILES]
    made_up = {module for module, tree in TREES.items() for node in ast.walk(tree)
               if {getattr(node, "id", None), getattr(node, "attr", None)} & {"__import__", "import_module"}}
    assert not absolute and made_up <= {"gan_influence.tools.lazily", "gan_influence.tools.vision", "gan_influence.cli.batch"}


@pytest.mark.parametrize("module", [module for module, path in FILES.items() if path.name == "__init__.py"])
def test_the_face_of_a_room_holds_no_code(module):
    for node in TREES[module].body:
        if isinstance(node, ast.Assign):
            ast.literal_eval(node.value)  # raises for what is no constant
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom) or isinstance(node, ast.Expr) and isinstance(node.value.value, str), ast.unparse(node)


def test_no_file_holds_two_ideas():
    assert not {module: n for module, path in FILES.items() if (n := len(path.read_text().splitlines())) > 420}


@pytest.mark.parametrize("rooms, size", [(ENGINE, 7_440), (("training",), 3_010), (("studies", "batch", "cli"), 4_390)],
                         ids=["engine", "training", "around it"])
def test_rooms_stay_small(rooms, size):
    assert lines(*rooms) <= size


def test_the_built_package_has_every_room():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(module for module, path in FILES.items() if path.name == "__init__.py")
    assert {path.parent for path in FILES.values()} == {FILES[module].parent for module in listed}  # no folder without its __init__
