"""What a newcomer meets first: the README, the links, the command line, the shape of the notebooks."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import gan_influence
from conftest import needs, optional
from gan_influence import experiments
from gan_influence.batch import notebooks
from gan_influence.cli.main import main
from gan_influence.tools import links
from gan_influence.tools.locks import only_driver

nbformat = optional("nbformat")
ROOT = links.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXAMPLES = re.findall(r"(?ms)^```python\n(.*?)^```", README)
ABSOLUTE = re.compile("/(" + "|".join(["home", "root", "tmp", "work", "Users"]) + ")/|[A-Z]:\\\\Users")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def refusal(capsys, *arguments: str) -> str:
    """The sentence that a refused command ends with."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def write_notebook(path, *cells: str) -> None:
    """A notebook whose first cell has the parameters."""
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell, id=f"c{i}") for i, cell in enumerate(cells)],
                                       metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    content.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(content, path)


# The README.


@pytest.mark.parametrize("example", EXAMPLES, ids=["in ten lines", "your own GAN"])
def test_the_readmes_examples_run_and_print(example, tmp_path):
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "the example prints nothing"


@needs("nbclient")
def test_contributings_examples_run_and_print(tmp_path):
    """One after the other in one process, whose imports are most of the cost."""
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    code = "import json, sys\nfor i, block in enumerate(json.load(sys.stdin), 1): exec(compile(block, f'<example {i}>', 'exec'), {'__name__': '__main__'})"
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(blocks), cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    printed = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert printed == ["a metric", "a model", "an optimiser", "a layer, refused", "a layer", "a notebook"] and len(blocks) == 5


def test_the_readme_leads_to_files_that_exist():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(targets) > 1
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_readme_lists_every_notebook_with_both_badges():
    for path in NOTEBOOKS:
        row = next((line for line in README.splitlines() if f"(notebooks/{path.name})" in line), "")
        assert badges(row) == [path.name, path.name], f"README.md has no row with a Colab and a Binder badge of its own for {path.name}"


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)):
        assert re.search(rf"(?m)^{target}:.*## ", makefile), f"README.md or CONTRIBUTING.md speaks of `make {target}`, which the Makefile does not have"


# Links.


def badges(text: str) -> list[str]:
    """The notebooks that the Colab badge and the Binder badge of a text open."""
    return re.findall(r"colab-badge\.svg\)\]\(https://colab\.[^)]*/blob/[^/)]+/notebooks/([^)]+)\)", text) + \
           re.findall(r"badge_logo\.svg\)\]\(https://mybinder\.[^)]*labpath=notebooks%2F([^)]+)\)", text)


def test_every_link_leads_to_the_repository_of_pyproject():
    assert links.disagreements() == []


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    address = links.repository()
    write_notebook(tmp_path / "notebooks" / "00_any.ipynb", f"%pip install git+https://github.com/{address}@main",
                   f"# https://colab.research.google.com/github/{address}/blob/main/notebooks/00_any.ipynb\n# https://mybinder.org/v2/gh/{address}/main?labpath=x")
    return tmp_path


def test_links_follow_a_change_of_address(copy):
    before = {path: path.read_text() for path in copy.rglob("*.*") if path.is_file()}
    links.rename("ada/other.name", copy)
    stale = links.disagreements(copy)
    assert len([line for line in stale if line.startswith("notebooks/00_any.ipynb")]) == 3
    assert links.rewrite(copy) == ["README.md", "notebooks/00_any.ipynb"]
    assert links.disagreements(copy) == []
    assert links.rewrite(copy) == []
    links.rename(links.repository(), copy)
    links.rewrite(copy)
    assert {path: path.read_text() for path in before} == before, "going back must restore every byte"


def test_only_our_links_are_rewritten(copy):
    other = "https://github.com/somebody/else and https://github.com/gan-influence/another.\n"
    (copy / "README.md").write_text(other + "pip install git+https://github.com/fork/old.git@main, from https://github.com/fork/old.\n")
    links.rewrite(copy)
    right = links.repository()
    assert (copy / "README.md").read_text() == other + f"pip install git+https://github.com/{right}.git@main, from https://github.com/{right}.\n"


@pytest.mark.parametrize("wrong", ["no-slash", "a/b/c", "https://github.com/a/b", ""])
def test_an_address_that_is_none_is_refused(wrong, copy):
    before = (copy / "pyproject.toml").read_text()
    with pytest.raises(ValueError, match="owner/name"):
        links.rename(wrong, copy)
    assert (copy / "pyproject.toml").read_text() == before


def test_links_on_the_command_line(copy, monkeypatch, capsys):
    monkeypatch.setattr(links, "ROOT", copy)
    assert "owner/name" in refusal(capsys, "links", "--repository", "nonsense")
    assert main(["links", "--check"]) == 0
    assert main(["links", "--repository", "ada/other"]) == 0
    assert links.repository(copy) == "ada/other" and main(["links", "--check"]) == 0
    links.rename("somebody/else", copy)
    capsys.readouterr()
    assert main(["links", "--check"]) == 1
    assert "README.md: https://github.com/ada/other" in capsys.readouterr().out.splitlines()


# The command line.


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"(?m)^ +{command}\b", text) for command in ("demo", "list", "run", "status", "gather", "record", "paper", "notebooks", "links"))


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert gan_influence.__version__ in capsys.readouterr().out


def test_import_stays_light():
    code = "import gan_influence, sys; print(*{'matplotlib', 'pandas', 'seaborn', 'papermill', 'nbformat', 'IPython'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


TINY = experiments.Accuracy(n=60, epochs=1, batch_size=20, held_out=10, latents=10, instances=4, windows=(1,))


@needs("matplotlib")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")])])
def test_record_leaves_what_it_measured(device, tmp_path, monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "accuracy_2d", (TINY, range(2)))
    target = tmp_path / "recorded" / "accuracy"
    command = ["record", "accuracy_2d", "--seeds", "1:3", "--out", str(tmp_path), "--device", device, "--no-compile", "--gather", str(target)]
    assert main(command) == 0
    header = json.loads(target.with_suffix(".json").read_text())
    assert header["seeds"] == [1, 2] and header["config"]["n"] == TINY.n and header["device"] == [experiments.device_name(device)]
    assert len(target.with_name("accuracy_scores.csv").read_text().splitlines()) == 1 + 2 * TINY.instances
    assert target.with_name("readme.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "seed-1_k=1.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "seed-1_k=1.json").stat().st_mtime_ns == first, "a finished piece must not run again"


def test_a_folder_of_another_protocol_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(experiments.EXPERIMENTS, "accuracy_2d", (TINY, range(2)))
    monkeypatch.setitem(experiments.EXPERIMENTS, "accuracy_mnist", (replace(TINY, instances=5), range(2)))
    main(["record", "accuracy_2d", "--seeds", "0", "--pieces", "k=1", "--out", str(tmp_path), "--no-compile"])
    before = (tmp_path / "seed-0_k=1.json").read_text()
    assert "a folder of its own" in refusal(capsys, "record", "accuracy_mnist", "--seeds", "0", "--out", str(tmp_path), "--no-compile")
    assert (tmp_path / "seed-0_k=1.json").read_text() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_a_gpu_asked_for_and_absent(capsys, tmp_path):
    sentence = refusal(capsys, "record", "accuracy_2d", "--seeds", "0", "--out", str(tmp_path / "new"), "--device", "cuda")
    assert "a GPU was asked for (--device cuda) but torch sees none: " in sentence
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments, words", [
    (["record", "accuracy_3d", "--seeds", "0"], "choose from"),
    (["record", "accuracy_2d", "--seeds", "ten"], "0:10"),
    (["record", "accuracy_2d", "--seeds", "3:3"], "names no seed"),
    (["record", "accuracy_2d"], "--missing"),
    (["record", "accuracy_2d", "--seeds", "0", "--pieces", "k=3", "--out", "nowhere"], "but not k=3"),
    (["links", "--check", "--repository", "a/b"], "changes nothing"),
    pytest.param(["demo", "-p", "out", "x"], "--out", marks=needs("papermill")),
    pytest.param(["notebooks", "missing.ipynb"], "no such notebook: missing.ipynb", marks=needs("nbclient")),
    ([], "COMMAND"),
])
def test_bad_arguments_end_with_a_sentence(arguments, words, capsys):
    assert words in refusal(capsys, *arguments)


# Running notebooks.


SAVE = "from gan_influence import experiments\nexperiments.save_results(out, {'seed': seed, 'rate': rate}, [{'seed': seed}])"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([0, 1])\nplt.show()"


DEMO = ["00_start_here.html", "00_start_here.ipynb", "figure-1.png", "results.json", "table.csv"]


@pytest.fixture
def demo(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "00_start_here.ipynb", 'seed: int = 0  # of everything\nrate: float = 0.1\nout: str = "runs/x"', PLOT, SAVE)
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    return tmp_path


def test_demo_leaves_everything_and_no_path(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    assert main(["demo", "-p", "seed", "3", "-p", "rate", "1"]) == 0
    out = demo / "runs" / "demo"
    assert sorted(path.name for path in out.iterdir()) == [".lock", *DEMO]
    assert json.loads((out / "results.json").read_text())["results"] == {"seed": 3, "rate": 1.0}
    assert (out / "figure-1.png").read_bytes().startswith(b"\x89PNG")
    stored = (out / "00_start_here.ipynb").read_text()
    assert 'out = \\".\\"' in stored and str(demo) not in stored and "papermill" not in json.loads(stored)["metadata"]
    assert str(demo) not in (out / "00_start_here.html").read_text()
    printed = capsys.readouterr().out
    assert "seed  3" in printed and "00_start_here.html" in printed


@pytest.mark.parametrize("name, value, words", [("sede", "3", "did you mean seed?"), ("seed", "three", "seed takes int"), ("rate", "fast", "rate takes float")])
def test_demo_refuses_parameters_that_the_notebook_does_not_take(name, value, words, demo, capsys):
    assert words in refusal(capsys, "demo", "--out", str(demo / "runs"), "-p", name, value)
    assert not (demo / "runs").exists()


def test_a_failing_demo_keeps_no_earlier_result(demo, capsys):
    out, notebook = demo / "runs", demo / "notebooks" / "00_start_here.ipynb"
    assert main(["demo", "--out", str(out)]) == 0
    write_notebook(notebook, 'seed = 0\nout = "runs/x"', "1 / 0")
    assert main(["demo", "--out", str(out)]) == 1
    assert sorted(path.name for path in out.iterdir()) == [".lock", "00_start_here.ipynb"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert str(demo) not in (out / notebook.name).read_text()


@pytest.mark.parametrize("theirs", [["figure-1.png"], DEMO, [".lock", "table.csv"]], ids=" ".join)
def test_a_demo_replaces_only_what_a_demo_made(theirs, demo, capsys, monkeypatch):
    monkeypatch.chdir(demo / "notebooks")
    folder = demo / "theirs"
    folder.mkdir()
    for name in theirs:
        (folder / name).write_text("mine")
    assert "no demo made that folder" in refusal(capsys, "demo", "--out", str(folder)) and "give --out a new one" in refusal(capsys, "demo", "--out", "")
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(theirs, "mine")


def test_two_demos_do_not_share_a_folder(demo, capsys):
    with only_driver(demo / "runs"):
        assert "is being filled by process" in refusal(capsys, "demo", "--out", str(demo / "runs"))
    assert [path.name for path in (demo / "runs").iterdir()] == [".lock"]


def test_paths_mean_what_they_say(demo, monkeypatch):
    braces = demo / "{seed}" / "a{b}"
    shutil.copytree(demo / "notebooks", braces / "notebooks")
    monkeypatch.setattr(notebooks, "FOLDER", braces / "notebooks")
    (demo / "a0").mkdir()
    assert main(["demo", "--out", str(demo / "a{seed}")]) == 0 == main(["demo", "--out", str(demo / "a{seed}")]), "and once more into the folder it made"
    assert sorted(path.name for path in (demo / "a{seed}").iterdir()) == [".lock", *DEMO] and not list((demo / "a0").iterdir())


def test_notebooks_are_executed_in_place_or_left(demo, capsys):
    notebook = demo / "notebooks" / "00_start_here.ipynb"
    assert main(["notebooks"]) == 0
    done = nbformat.read(notebook, as_version=4)
    assert [cell.execution_count for cell in done.cells] == [1, 2, 3] and "image/png" in done.cells[1].outputs[-1].data
    assert notebooks.clean(nbformat.read(notebook, as_version=4)) == done
    write_notebook(notebook, "seed = 0", "1 / 0")
    before = notebook.read_text()
    assert main(["notebooks", str(notebook)]) == 1
    assert notebook.read_text() == before and "ZeroDivisionError" in capsys.readouterr().err


# The notebooks as they are stored.


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_notebook_is_stored_clean_and_whole(path):
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    assert "widgets" not in content.metadata and "papermill" not in content.metadata
    for i, cell in enumerate(content.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        assert cell.execution_count, f"cell {i} was not executed: {cell.source[:60]!r}"
        assert len(cell.source.splitlines()) <= 25, f"cell {i} is longer than 25 lines"
        assert "raises-exception" not in cell.metadata.get("tags", [])
        for output in cell.outputs:
            assert output.output_type != "error", f"cell {i} ends in an error"
    assert (found := ABSOLUTE.search(words(content))) is None, f"{path.name} tells where it was made: {found[0]}"


def words(content) -> str:
    """Everything in a notebook that is read: no images, whose base64 text may spell anything."""
    parts = [cell.source for cell in content.cells]
    for output in (output for cell in content.cells for output in cell.get("outputs", [])):
        parts += [output.get("text", ""), *(str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))]
    return "\n".join([*parts, json.dumps(content.metadata)])


@each_notebook
def test_notebook_has_one_title_and_ordered_headings(path):
    levels = [len(hashes) for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
              for hashes in re.findall(r"(?m)^(#+) ", re.sub(r"(?s)```.*?```", "", cell.source))]
    assert levels[:1] == [1] and levels.count(1) == 1, "a notebook has one title, at its top"
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:])), f"a heading skips a level: {levels}"


@each_notebook
def test_notebook_opens_as_all_do(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown" and re.match(rf"# {path.stem[:2]} · ", cells[0].source)
    assert badges(cells[0].source) == [path.name, path.name], "the Colab and the Binder badge open this very notebook"
    assert all(lead in cells[0].source for lead in ("**What you will do", "**What you will learn", "**What you need"))
    assert cells[1].source == nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source, f"the first code cell differs from {NOTEBOOKS[0].name}'s"
    assert "google.colab" in cells[1].source
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is cells[2], "the third cell, and no other, has the parameters"
    assert re.search(rf'(?m)^out: str = "runs/{path.stem}"', tagged[0].source)


def test_the_readme_quotes_what_is_recorded():
    from gan_influence import experiments

    def dotted(*values: float) -> list[str]:
        return [f"{value:.2f}".removeprefix("0") for value in values]

    def gains(name: str, factor: float):
        picked = experiments.recorded(name, "picked")[0]
        return (factor * (picked.test_after - picked.test_before)).groupby([picked.metric, picked.method]).mean()

    tau = experiments.recorded("accuracy_2d")[0].groupby("last_epochs").kendall_tau
    first, more = (experiments.recorded(name)[0] for name in ("accuracy_mnist", "accuracy_mnist_small"))
    images = {metric: [part[(part.metric == metric) & (part.last_epochs == k)].kendall_tau.mean() for part, k in ((first, 1), (more, 5), (more, 10))]
              for metric in first.metric.unique()}
    published = {metric: dotted(*known["kendall_tau"]) for metric, known in experiments.PUBLISHED_ACCURACY.items()}
    plane = gains("removal_2d", 100)["average log-likelihood"]
    small, other = map(gains("removal_mnist_small", -1).get, ("Fréchet distance", "Inception score"))
    rounds = experiments.recorded("rounds_2d")[0].assign(change=lambda rows: rows.after - rows.before)
    rounds = rounds.pivot_table(index=["metric", "last_epochs", "judge"], columns="method", values="change")
    in_images = experiments.recorded("rounds_mnist_small")[0].query("judge == 'test'").assign(change=lambda rows: rows.after - rows.before)
    in_images = in_images.groupby("method").change.mean()
    sets = experiments.recorded("lds_2d")[0].query("fraction == .01 and last_epochs == 1").groupby("activation").spearman
    board = experiments.recorded("board")[0].set_index(["setting", "method"]).tau["2d-adam"]
    verdicts = experiments.recorded("verdicts_2d")[0]
    right, helped = ((verdicts.trustworthy == (verdicts.test_gain > 0)).sum(), (verdicts.test_gain > 0).sum())
    quoted = [
        f"| {', '.join(dotted(*tau.mean()))} | {', '.join(published['average log-likelihood'])} |",
        *(f"| {', '.join(dotted(*images[metric]))} | {', '.join(published[metric][:3])} |" for metric in images),
        "influence / random | {} / {} | |".format(*dotted(plane["influence on average log-likelihood"], plane["random"])),
        *("in rounds, k = {} | {} / {} |".format(k, *dotted(*100 * rounds.loc["average log-likelihood", k, "test"][["one round", "in rounds"]]))
          for k in (1, 5)),
        "FID falls by, influence / random | {} / {} | |".format(*dotted(small["influence on Fréchet distance"], small["random"])),
        "in rounds, k = 1: FID falls by | {} / {} |".format(*dotted(*-in_images[["one round", "in rounds"]])),
        "falls to {} in one recorded seed at k = 20, and with ReLU networks to {} at k = 1".format(*dotted(tau.min()[20], tau.min()[1])),
        "{} on average, {} in the worst of ten runs".format(*dotted(sets.mean()["relu"], sets.min()["relu"])),
        "τ over 50 epochs is {},".format(*dotted(tau.mean()[50])),
        "FID by {} also raises the Inception score by {}".format(*dotted(small["influence on Fréchet distance"], -other["influence on Fréchet distance"])),
        "has τ {} with leave-one-out; with Adam's moments held constant {}; as the 2025 code was released {}".format(
            *dotted(board["exact"], board["moments constant"], board["released 2025"])),
        f"right in {right} of {len(verdicts)} recorded removals, and acting always would have been right in {helped}",
    ]
    assert not [text for text in quoted if text not in README]
    assert sets.min()["tanh"] >= .999 and sets.size()["relu"] == 10
    assert (rounds.xs("sliced Wasserstein distance", level="judge") > 0).all(axis=None) and len(rounds.xs("test", level="judge")) == 4
