"""The site: what its pages are made of; that they build without a warning; that opening one asks nobody for anything."""

import html
import importlib
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import chromium, in_a_browser, served

from conftest import optional

nbformat = optional("nbformat")
ROOT = Path(__file__).parents[1]
VENDOR = ROOT / "build" / "site" / "vendor"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GLOSSARY = (ROOT / "site" / "glossary.md").read_text(encoding="utf-8")
needs_sphinx = pytest.mark.skipif(any(find_spec(name) is None for name in ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_exercise", "sphinx_togglebutton"))
                                  or not (VENDOR / "mathjax").is_dir(), reason="what builds the site is not installed (make site does it)")

EXERCISE = """\
Here is the recursion.

**Exercise 2.1** · Write the block $J_{GD}$: one line.

$$a=b$$"""


@pytest.fixture
def sources(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "site")
    return importlib.import_module("sources")


def sample():
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [
        markdown("# 02 · Sample\n\n[![Colab](https://a.org/b.svg)](https://colab.org/x) [![Binder](https://c.org/d.svg)](https://binder.org/x)", id="c00"),
        code('if "google.colab" in sys.modules:\n    !git clone', id="c01"),
        markdown("## Words\n\n| paper | code | meaning |\n|---|---|---|\n| x | `x` | y |\n\n$$1=1$$\n\nand\n\n$$2\n=2$$\n\nand $3$.", id="c02"),
        markdown(EXERCISE, id="c03"),
        code("block = ...  # your line", id="c04", metadata={"tags": ["exercise"]}),
        code("if block is ...:\n    block = 1", id="c05", metadata={"tags": ["solution", "hide-input"], "jupyter": {"source_hidden": True}}),
        code("assert block is not ...", id="c06", metadata={"alt": "Two lines that cross."}),
        code("slider", id="c07", metadata={"tags": ["widget"]}, outputs=[nbformat.v4.new_output(
            "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "0", "version_major": 2, "version_minor": 0}, "text/plain": "VBox()"})]),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def test_exercises_stand_between_gates_and_their_solutions_are_folded(sources):
    cells = {cell.id: cell for cell in sources.notebook(sample(), "02_sample").cells}
    assert list(cells) == ["c00", "c01", "c02", "c03-before", "exercise-2-1", "c03", "c04", "exercise-2-1-end", "solution-2-1", "c05", "solution-2-1-end",
                           "c06", "c07", "c07-live"]
    assert cells["c03-before"].source == "Here is the recursion." and cells["c03"].source.startswith("Write the block")
    assert cells["exercise-2-1"].source == "```{exercise-start} 2.1\n:label: ex-2-1\n:nonumber:\n```"
    assert cells["solution-2-1"].source == "```{solution-start} ex-2-1\n:label: sol-2-1\n:class: dropdown\n```"
    assert cells["exercise-2-1-end"].source == "```{exercise-end}\n```" and cells["solution-2-1-end"].source == "```{solution-end}\n```"
    assert "hide-input" not in cells["c05"].metadata.tags, "the solution is folded as a whole"


def test_equations_words_links_and_controls_are_put_in_the_sites_form(sources):
    cells = {cell.id: cell for cell in sources.notebook(sample(), "02_sample").cells}
    assert cells["c00"].source.endswith("[Colab](https://colab.org/x) [Binder](https://binder.org/x)"), "no image from elsewhere"
    assert cells["c01"].metadata.tags == ["hide-input"]
    assert re.findall(r"\$\$ \((.*)\)", cells["c02"].source) == ["eq-02-c02", "eq-02-c02-2"] and "$$a=b$$ (eq-02-c03)" in cells["c03"].source
    assert "| paper |" not in cells["c02"].source and "(../glossary.md)" in cells["c02"].source
    assert cells["c06"].metadata.mystnb == {"image": {"alt": "Two lines that cross."}}
    assert cells["c07"].outputs == [] and "live notebook" in cells["c07-live"].source
    assert sources.page("[a](Makefile), [b](notebooks/00_start_here.ipynb), [c](https://d.org), [e](site/results.md)") == \
        f"[a](https://github.com/{sources.links.repository()}/blob/main/Makefile), [b](notebooks/00_start_here.ipynb), [c](https://d.org), [e](results.md)"


def test_the_glossary_has_every_letter_and_name_of_the_notebooks_tables(sources):
    for path in NOTEBOOKS:
        for table in sources.NOTATION.findall("\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)):
            names = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[2])]
            assert [name for name in names if not re.search(rf"[`.]{re.escape(name)}`", GLOSSARY)] == [], f"{path.name} has words that the glossary lacks"


def test_every_notebook_has_its_paragraph_for_lecturers(sources):
    sections = re.split(r"(?m)^### ", (ROOT / "site" / "lecturers.md").read_text(encoding="utf-8"))[1:]
    numbers = [section[:2] for section in sections]
    assert numbers == sorted(numbers)
    assert {path.stem[:2] for path in NOTEBOOKS} <= set(numbers), "site/lecturers.md wants minutes, what to show and what to ask of each notebook"
    assert "\n\n[The notebook](notebooks/00_start_here.ipynb): " in sources.with_times("### 00 · Start here\n"), "with the README's times"
    assert all(re.search(r"(?s)minutes.*\*\*Show\*\*.*\*\*Ask\*\*", section) for section in sections)


def test_the_results_page_is_made_from_the_recordings(sources, tmp_path, monkeypatch):
    import results
    table, header = results.recorded("accuracy_2d")
    before, first = results.TABLES["accuracy 2d"](), table[table.last_epochs == 1].kendall_tau
    assert f"| 1 | {first.mean():.2f}\u00a0±\u00a0{first.std():.2f} | 0.87 |" in before
    (tmp_path / "recorded").mkdir()
    table.assign(kendall_tau=0.123).to_csv(tmp_path / "recorded" / "accuracy_2d.csv")
    (tmp_path / "recorded" / "accuracy_2d.json").write_text(json.dumps(header))
    monkeypatch.chdir(tmp_path)
    assert "| 1 | 0.12\u00a0±\u00a00.00 | 0.87 |" in results.TABLES["accuracy 2d"]()
    names = re.findall(r"(?m)^\| `(\w+)`", results.recordings())
    assert names == sorted(path.stem for path in results.RECORDED.glob("*.json"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site, every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    sphinx = ["-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "site"]
    for command in ([ROOT / "site" / "sources.py", folder / "source"], [*sphinx, folder / "source", folder / "html"]):
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
    return folder / "html"


@needs_sphinx
def test_pages_lead_on_and_to_each_other(site):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {path.stem for path in NOTEBOOKS} <= set(pages)
    order = ["index", *(path.stem for path in NOTEBOOKS), "results", "glossary", "lecturers", "README", "CONTRIBUTING"]
    for before, after in zip(order, order[1:]):
        assert re.search(rf'<a class="right-next"\s+href="[^"]*{after}\.html"', pages[before])
        assert re.search(rf'<a class="left-prev"\s+href="[^"]*{before}\.html"', pages[after])
    for path in (path for path in site.rglob("*.html") if "_static" not in path.parts):
        inside = {target for target in re.findall(r'href="([^":#?]+)[^":]*"', path.read_text(encoding="utf-8"))}
        assert [target for target in inside if not (path.parent / target).exists()] == [], f"{path.name} leads to nothing"
    assert ".ipynb" not in "".join(re.findall(r'href="(?!https)[^"]*"', pages["04_leave_one_out_2d"])), "a link to a notebook leads to its page"
    described = [cell.metadata.get("alt") for cell in nbformat.read(NOTEBOOKS[2], as_version=4).cells if "alt" in cell.metadata]
    assert described and set(described) <= set(re.findall(r'<img alt="(.*?)"', html.unescape(pages[NOTEBOOKS[2].stem])))
    assert 'id="equation-eq-02-c05"' in pages["02_jacobian_terms"] and '<span class="eqno">(02.1)' in pages["02_jacobian_terms"]


@needs_sphinx
@in_a_browser
def test_opening_pages_asks_nobody_else_and_formulas_are_set(site):
    asked, formulas = [], {}
    with served(site) as here, chromium() as browser:
        context = browser.new_context()
        context.on("request", lambda request: asked.append(request.url))
        context.route(lambda url: not url.startswith(here), lambda route: route.abort())
        page = context.new_page()
        for name in ("index", "notebooks/00_start_here", "notebooks/02_jacobian_terms", "notebooks/06_cleansing_2d", "results", "glossary", "README"):
            page.goto(f"{here}{name}.html", wait_until="networkidle")
            formulas[name] = page.locator("mjx-container").count()
        page.goto(f"{here}search.html?q=leave-one-out", wait_until="networkidle")
        page.wait_for_selector("#search-results li a")
    assert len(asked) > 50 and [url for url in asked if not url.startswith((here, "data:", "blob:"))] == []
    assert formulas["notebooks/02_jacobian_terms"] > 50 and formulas["glossary"] > 5 and formulas["notebooks/00_start_here"] > 0
