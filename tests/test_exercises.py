"""The notebooks' exercises: a hole left open is told what it asks for, its solution fills it, and what a reader wrote stays.

An exercise is four cells: its text, the hole (`...  # your line`, tagged exercise), the folded solution (one `if`, whose body is what was asked for),
and the judge, whose first assert asks whether the hole was filled. The notebooks themselves, run as they are stored, use the solutions.
"""

import ast
import re
import symtable
import textwrap
from pathlib import Path

import pytest
import torch

from conftest import optional

nbformat = optional("nbformat")
ROOT = Path(__file__).parents[1]

#: Parameters with which a notebook's exercises are judged in seconds.
SMALL = {"00": {"n": 200, "epochs": 5}, "01": {"n": 400, "epochs": 4}, "02": {"epochs": 2}, "03": {"epochs": 4, "n": 400, "lqgan_steps": 10},
         "09": {"n": 160, "epochs": 3, "checked": 8, "judge_steps": 20}}

HOLE = re.compile(r"(?m)^.*\.\.\.  # your lines?\b.*$")


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def places(cells: list) -> list[int]:
    return [i for i, cell in enumerate(cells) if "exercise" in tags(cell)]


BOOKS = {path.stem: json_cells for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
         if '"exercise"' in path.read_text(encoding="utf-8") and (json_cells := nbformat.read(path, as_version=4).cells)}
EXERCISES = [pytest.param(stem, i, n, id=f"{int(stem[:2])}.{n}") for stem, cells in BOOKS.items() for n, i in enumerate(places(cells), 1)]

each_book = pytest.mark.parametrize("stem", BOOKS)
each_exercise = pytest.mark.parametrize("stem, i, n", EXERCISES)


def written(solution) -> str:
    """What a reader should have written: the body of the solution's `if`."""
    return textwrap.dedent("\n".join(solution.source.splitlines()[ast.parse(solution.source).body[0].lineno:]))


def judging(judge) -> ast.Assert:
    """The assert that asks whether the hole was filled."""
    return next(node for node in ast.parse(judge.source).body if isinstance(node, ast.Assert))


def message(judge) -> str:
    return ast.literal_eval(judging(judge).msg)


def test_there_are_exercises():
    assert {"01_adversarial_sgd", "02_jacobian_terms", "03_linearised_influence"} <= set(BOOKS) and len(EXERCISES) >= 11


@each_exercise
def test_an_exercise_is_four_cells(stem, i, n):
    text, hole, solution, judge = BOOKS[stem][i - 1:i + 3]
    number = f"{int(stem[:2])}.{n}"
    assert text.cell_type == "markdown" and text.source.startswith(f"**Exercise {number}** · ")
    assert len(HOLE.findall(hole.source)) == 1 == hole.source.count("...") and not hole.outputs
    assert tags(solution) == ["solution", "hide-input"] and solution.metadata.jupyter.source_hidden and not solution.outputs
    assert solution.source.startswith(f"# Solution {number} (unfold to read)\nif ")
    assert [type(node) for node in ast.parse(solution.source).body] == [ast.If]
    assert ast.unparse(judging(judge).test).endswith(" is not ...") and message(judge).startswith(f"Exercise {number} asks") and message(judge).endswith(".")


@pytest.mark.parametrize("stem", [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))])
def test_no_solution_without_its_exercise(stem):
    cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    assert [i for i, cell in enumerate(cells) if "solution" in tags(cell)] == [i + 1 for i in places(cells)]


COMPREHENSIONS = {"listcomp", "setcomp", "dictcomp", "genexpr"}  # run where they stand, unlike functions


def names(source: str) -> tuple[set[str], set[str], set[str]]:
    """What a cell binds or changes in place, what it takes from other cells at once, and what its functions take when they are called."""
    bound, taken, later = set(), set(), set()
    for statement in ast.parse(source).body:
        table, now = symtable.symtable(ast.unparse(statement), "cell", "exec"), set()
        waiting = [(table, now)]
        while waiting:
            scope, takes = waiting.pop()
            takes |= {one.get_name() for one in scope.get_symbols() if one.is_referenced() and (scope is table or one.is_global())}
            waiting += [(child, takes if child.get_name() in COMPREHENSIONS else later) for child in scope.get_children()]
        binds = {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported() or one.is_namespace()}
        first = isinstance(statement, ast.For | ast.With | ast.FunctionDef | ast.ClassDef)  # binds its names before it takes any
        taken |= now - bound - (binds if first else set())
        bound |= binds
    changes = {ast.unparse(node.value) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)}
    return bound | changes, taken, later


def needed(cells: list, always: set[int]) -> list[int]:
    """The cells without which these cannot be run, by the names that they take: no figures, no long runs behind the last of them."""
    usable = {i: names(cells[i].source) for i in range(max(always), -1, -1) if cells[i].cell_type == "code" and "google.colab" not in cells[i].source}
    kept, before = always, set()
    while kept != before:
        before, wanted = kept, {name for i in kept for name in usable[i][2]}  # which may be bound after the function that takes it
        kept = set()
        for i, (binds, takes, later) in usable.items():
            if i in before or wanted & binds:
                wanted = (wanted - binds) | takes | later
                kept.add(i)
    return sorted(kept)


def run(cell, space: dict) -> None:
    exec(compile(cell if isinstance(cell, str) else cell.source, "<cell>", "exec"), space)


def running(stem: str, cells: list, always: set[int], space: dict):
    """Run what these cells need, with the small parameters, and them; yields the number of each cell before it is run."""
    for i in needed(cells, always):
        yield i
        run(cells[i], space)
        if "parameters" in tags(cells[i]):
            assert SMALL.get(stem[:2], {}).keys() <= space.keys()
            space |= SMALL.get(stem[:2], {})


@pytest.fixture(autouse=True)
def single_precision_again():
    """A notebook may compute in float64 throughout, other tests do not."""
    yield
    torch.set_default_dtype(torch.float32)


@each_book
def test_holes_and_their_solutions(stem, monkeypatch):
    """Open, with the solution cell taken out: refused with a sentence. Filled: judged right, and left alone by the solution cell."""
    monkeypatch.chdir(ROOT / "notebooks")
    cells, space, judged = BOOKS[stem], {}, set()
    holes = places(cells)
    with torch.random.fork_rng():
        for i in running(stem, cells, {j for i in holes for j in (i, i + 1, i + 2)}, space):  # noqa: B020
            if i - 1 in holes:  # the hole has been run, its solution is about to be
                with pytest.raises(AssertionError) as refused:
                    run(cells[i + 1], dict(space))
                assert str(refused.value) == message(cells[i + 1])
                run(written(cells[i]), space)
                filled = dict(space)
            if i - 2 in holes:  # the solution has been run, the judge is about to be
                assert all(space[name] is filled[name] for name in filled), "the solution overwrites what a reader wrote"
                judged.add(i - 2)
    assert judged == set(holes)


WITH_SLIDERS = [path.stem for path in sorted((ROOT / "notebooks").glob("0[0-4]_*.ipynb")) if '"widget"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("stem", WITH_SLIDERS)
def test_a_slider_changes_the_figure_and_its_sentence(stem, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    cells, space = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells, {}
    sliders = [i for i, cell in enumerate(cells) if "widget" in tags(cell)]
    with torch.random.fork_rng():
        for _ in running(stem, cells, set(sliders), space):
            pass
        for i in sliders:
            chooser, picture, text = eval(cells[i].source, space).children
            seen = set()
            for value in (chooser.options[0], chooser.options[1], chooser.options[-1]):
                chooser.value = value
                seen.add((bytes(picture.value), text.value))
            assert len(seen) == 3 == len({text for _, text in seen})
