"""What Sphinx reads: the repository's texts and notebooks, with what only GitHub or a live notebook can show put in another form."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]
from results import TABLES  # noqa: E402

from gan_influence.tools import links  # noqa: E402

LIVE = "*Here stands a control that answers in a live notebook: open it by one of the links at the top.*"
NOTATION = re.compile(r"(?m)^\| *paper *\| *code *\|.*\n(?:\|.*(?:\n|\Z))+")
EXERCISE = re.compile(r"(?m)^\*\*Exercise ([\w.]+)\*\*[ ·:.]*")


def collect(out: Path) -> None:
    """Everything into an emptied folder, laid out as the repository is."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "notebooks" / "recorded").mkdir(parents=True)
    for picture in (ROOT / "notebooks" / "recorded").glob("*.png"):
        shutil.copy(picture, out / "notebooks" / "recorded")
    for path in HERE.glob("*.md"):
        text = re.sub(r"<<([\w ]+)>>", lambda found: TABLES[found[1]](), path.read_text(encoding="utf-8"))
        (out / path.name).write_text(with_times(text), encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md"):
        (out / name).write_text(page((ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        nbformat.write(notebook(nbformat.read(path, as_version=4), path.stem), out / "notebooks" / path.name)


def with_times(text: str) -> str:
    """Under the headings of the lecturer's page: a link to the notebook, and what the README's table says that it takes."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| [● ]*\[[^]]*\]\((notebooks/(\d\d)_[^)]*)\) \|[^|]*\| *(\d+ min \+ \d+ s) *\|", readme)
    taken = {number: f"[The notebook]({target}): {time.replace(' + ', ' to read, ')} to run." for target, number, time in rows}
    return re.sub(r"(?m)^### (\d\d) · .*$", lambda found: f"{found[0]}\n\n{taken.get(found[1], '')}", text)


def page(text: str) -> str:
    """A Markdown text: no image from elsewhere, and what is no page of the site is linked to in the repository."""
    def outside(link: re.Match) -> str:
        target = link[1].partition("#")[0]
        there = target and not re.match(r"\w+:|#", target) and (ROOT / target).exists() and not target.endswith((".ipynb", ".md", ".png"))
        return f"](https://github.com/{links.repository()}/blob/main/{link[1]})" if there else link[0]

    text = re.sub(r"\[!\[([^\]]*)\]\([^)]*\)\](?=\()", r"[\1]", text).replace("](site/", "](")  # badges; pages that lie elsewhere in the repository
    return re.sub(r"\]\(([^)\s]+)\)", outside, text)


def notebook(content: NotebookNode, name: str) -> NotebookNode:
    """A notebook as the site shows it: equations labelled, one glossary, figures described, controls and Colab's cell folded, exercises
    as directives."""
    cells = []
    for cell in content.cells:
        tags = cell.metadata.setdefault("tags", [])
        if cell.cell_type == "markdown":
            cell.source = equations(NOTATION.sub("The words and letters are those of the [glossary](../glossary.md).\n", page(cell.source)), name, cell.id)
        else:
            shown = cell.metadata.setdefault("mystnb", {})  # myst-nb's own keys
            if "alt" in cell.metadata:
                shown["image"] = {"alt": cell.metadata["alt"]}
            if "google.colab" in cell.source or "widget" in tags:
                tags.append("hide-input")
                shown["code_prompt_show"] = f"Code {'of the control' if 'widget' in tags else 'for Colab'}"
        cells.append(cell)
        if any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in cell.get("outputs", [])):
            cell.outputs = []
            cells.append(new_markdown_cell(LIVE, id=f"{cell.id}-live"))
    return NotebookNode({**content, "cells": list(exercises(cells))})


def equations(text: str, name: str, cell: str) -> str:
    """Label every displayed equation by its notebook and cell, as in eq-03-c05, and eq-03-c05-2 for the second there: cells keep their names."""
    count = iter(range(1, 1_000))
    return re.sub(r"(?ms)^\$\$(.+?)\$\$$", lambda found: f"{found[0]} (eq-{name[:2]}-{cell}{'' if (i := next(count)) == 1 else f'-{i}'})", text)


def exercises(cells: list[NotebookNode]) -> Iterator[NotebookNode]:
    """Put sphinx-exercise's gates around what is an exercise, from its paragraph to its hole, and around the cells tagged `solution`."""
    number, gate = None, None  # of the last exercise; and whether one is open

    def close():
        nonlocal gate
        if gate:
            yield new_markdown_cell(f"```{{{gate}-end}}\n```", id=f"{gate}-{number.replace('.', '-')}-end")
        gate = None

    for cell in cells:
        tags = cell.metadata.get("tags", [])
        asked = EXERCISE.search(cell.source) if cell.cell_type == "markdown" else None
        if "solution" in tags and number:
            cell.metadata["tags"] = [tag for tag in tags if tag != "hide-input"]  # folded as a whole
            if gate != "solution":
                yield from close()
                gate, label = "solution", number.replace(".", "-")
                yield new_markdown_cell(f"```{{solution-start}} ex-{label}\n:label: sol-{label}\n:class: dropdown\n```", id=f"solution-{label}")
        elif asked:
            yield from close()
            gate, number = "exercise", asked[1]
            if before := cell.source[:asked.start()].strip():
                yield new_markdown_cell(before, id=f"{cell.id}-before")
            label = number.replace(".", "-")
            yield new_markdown_cell(f"```{{exercise-start}} {number}\n:label: ex-{label}\n:nonumber:\n```", id=f"exercise-{label}")
            cell.source = cell.source[asked.end():].strip()
        elif "exercise" not in tags:
            yield from close()
        yield cell
    yield from close()


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
