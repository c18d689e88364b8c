"""How a notebook is laid out: numbered sections, lines that fit a page, described figures, a marked core path, sliders beside a static twin.

That it is whole, opens as all do and has one title is tested in test_front_door.py.
"""

import base64
import io
import re
from pathlib import Path

import pytest

from conftest import optional

nbformat, image = optional("nbformat"), optional("matplotlib.image")
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CORE = ["00", "02", "03", "04", "06"]
DEEPER = "*Deeper: may be skipped on the core path.*"
CLOSING = {"Where to go from here", "Results"}  #: a last section that needs no number


def each(notebooks=NOTEBOOKS):
    return pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in notebooks])


core = [path for path in NOTEBOOKS if path.stem[:2] in CORE]


def cells(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def headings(path: Path) -> list[tuple[int, str, str]]:
    """Level, text, and what follows of each heading."""
    text = "\n\n".join(re.sub(r"(?s)```.*?```", "", cell.source) for cell in cells(path) if cell.cell_type == "markdown")
    parts = re.split(r"(?m)^(#+) (.*)$", text)[1:]
    return [(len(hashes), title, body) for hashes, title, body in zip(parts[::3], parts[1::3], parts[2::3])]


def drawn(path: Path) -> list[tuple[int, object]]:
    return [(i, cell) for i, cell in enumerate(cells(path)) if any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))]


@each()
def test_sections_are_numbered(path):
    section, part = 0, 0
    for level, title, _ in headings(path)[1:]:
        if level == 2 and title in CLOSING:
            continue
        section, part = (section + 1, 0) if level == 2 else (section, part + 1)
        expected = f"{section}" if level == 2 else f"{section}.{part}"
        assert level <= 3 and title.startswith(expected + " "), f"{title!r} should begin with {expected}"


@each()
def test_code_lines_fit_a_page(path):
    long = {i: max(map(len, cell.source.splitlines())) for i, cell in enumerate(cells(path)) if cell.cell_type == "code" and cell.source}
    assert not {i: n for i, n in long.items() if n > 100}


@each()
def test_no_cell_outgrows_a_screen(path):
    assert not {i: n for i, cell in enumerate(cells(path)) if (n := len(cell.source.splitlines())) > 25}


@each()
def test_folded_answers_open_and_close(path):
    """With blank lines around the text, without which its formulas and words would stand there unrendered."""
    for i, cell in enumerate(cells(path)):
        if "details>" in cell.source or "<summary" in cell.source:
            rest = re.sub(r"(?ms)^<details><summary>[^<\n]+</summary>\n\n(?:(?!</?details>).)+?\n\n</details>$", "", cell.source)
            assert cell.cell_type == "markdown" and "details>" not in rest and "<summary" not in rest, f"cell {i}: {cell.source[:80]!r}"


@each()
def test_figures_are_described(path):
    """For those who do not see them (`metadata.alt`, which nbconvert puts on the image), and in the text for everybody."""
    book = cells(path)
    for i, cell in drawn(path):
        assert len(cell.metadata.get("alt", "")) >= 40 and cell.metadata.alt.endswith("."), f"cell {i} needs metadata.alt: {cell.source[:60]!r}"
        assert any(re.search(r"What to (see|read)", near.source) for near in book[i + 1:i + 5]), f"nothing says what to see in cell {i}"


@each()
def test_figures_can_be_read_on_any_background(path):
    for i, cell in drawn(path):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                pixels = image.imread(io.BytesIO(base64.b64decode(output.data["image/png"])))
                assert pixels.shape[2] == 3 or pixels[..., 3].min() == 1, f"cell {i} has a transparent figure"


@each()
def test_prose_is_no_log_of_work(path):
    """And leaves out who is talking: what is done is done by the reader, or by nobody in particular."""
    prose = "\n".join(cell.source for cell in cells(path) if cell.cell_type == "markdown").replace("\n", " ")
    for word in (r"\b[Ww]e\b", r"\b[Oo]urs?\b", r"\bTODO\b", r"\b0 of \d+", r"\bit turned out\b", r"\bpreviously\b",
                 r"\bamazing", r"\bstate[- ]of[- ]the[- ]art\b"):
        assert not (found := re.search(word, prose)), f"…{prose[max(0, found.start() - 40):found.end() + 40]}…"


def minutes(path: Path, core_only: bool = False) -> float:
    """How long the prose takes to read, at 200 words a minute; on the core path without the sections that may be skipped."""
    words, skipping = 0, None
    for level, title, body in headings(path):
        skipping = None if skipping and level <= skipping else skipping
        if core_only and not skipping and DEEPER in body:
            skipping = level
        words += 0 if skipping else len(f"{title} {body}".split())
    return words / 200


@each(core)
def test_the_core_path_is_marked(path):
    """The first cell names the sections that belong to it, and how long they take to read; all others say that they may be skipped."""
    about, named = re.search(r"\*\*Core path\*\* \(about (\d+) minutes\): ([^;\n]*)", cells(path)[0].source).groups()
    assert abs(int(about) - minutes(path, core_only=True)) <= 1
    known = {title.split()[0]: DEEPER in body for _, title, body in headings(path)[1:] if title not in CLOSING}
    kept = {number for number in known if not known[number] and not known[number.split(".")[0]]}
    if "all of it" in named:
        assert kept == set(known)
        return
    named = re.sub(r"(\d+) to (\d+)", lambda ends: " ".join(map(str, range(int(ends[1]), int(ends[2]) + 1))), named)
    wanted = set(re.findall(r"\d+(?:\.\d+)?", named))
    assert wanted <= kept and {number.split(".")[0] for number in wanted} == {number.split(".")[0] for number in kept}


@each()
def test_the_readme_says_how_long_it_takes(path):
    row = next(line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if f"(notebooks/{path.name})" in line)
    said = re.search(r"\| (\d+) min \+ \d+ s ", row)
    assert said and abs(int(said[1]) - minutes(path)) <= 1, f"README's row of {path.stem} should say {minutes(path):.0f} min + the seconds that it runs"
    assert ("●" in row) == (path in core)


@each([path for path in NOTEBOOKS if path not in core])
def test_only_core_notebooks_mark_what_is_deeper(path):
    assert DEEPER not in path.read_text(encoding="utf-8")


@each()
def test_a_slider_stands_beside_its_filmstrip(path):
    """Who reads a page without a kernel sees the figure before it, drawn by the same function, and the sentence between them."""
    book = cells(path)
    for i, cell in enumerate(book):
        assert ("widgets." in cell.source.replace("import widgets", "") and cell.cell_type == "code") == ("widget" in tags(cell)), f"cell {i}"
        if "widget" in tags(cell):
            before = [j for j, _ in drawn(path) if i - 3 <= j < i]
            assert before and any(book[j].cell_type == "markdown" for j in range(before[-1], i)), f"cell {i} has no figure and sentence before it"
