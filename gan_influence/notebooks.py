"""Notebooks as programs: their parameters are checked, their figures become files, what is stored is clean."""

import ast
import base64
import difflib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from traitlets.config import Config

from .links import ROOT
from .storage import write_atomically

FOLDER = ROOT / "notebooks"


def run(notebook: Path, out: str | os.PathLike, parameters: Mapping[str, object]) -> Path:
    """Execute a copy of a notebook with other parameters, and leave everything it made in the folder `out`.

    Args:
        notebook: the .ipynb file, which is not changed; it runs in its own folder.
        out: for the executed notebook, the same as HTML, figure-1.png and so on; also given to the notebook as its parameter `out`.
        parameters: values by name; text is read as the type that the notebook declares.

    Returns:
        The executed notebook's path.

    Raises:
        ValueError: for a parameter that the notebook does not have, or a value of another type.
        papermill.PapermillExecutionError: when a cell fails; the notebook up to there is kept.
    """
    values = check_parameters(notebook, parameters)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for stale in (*out.glob("figure-*.png"), out / "results.json", out / "table.csv", out / f"{notebook.stem}.html"):
        stale.unlink(missing_ok=True)  # an old result beside a failed run would be taken for its result
    # Relative, because the value is stored in the executed notebook, which must not tell where it ran.
    values["out"] = Path(os.path.relpath(out, notebook.parent)).as_posix()
    _silence_bars()
    executed = out / notebook.name
    try:
        with _private_kernel() as config:
            papermill.execute_notebook(str(notebook), str(executed), values, kernel_name="python3", cwd=str(notebook.parent), config=config)
        content = nbformat.read(executed, as_version=4)
        write_atomically(executed.with_suffix(".html"), _html(content))  # before cleaning: it shows widgets as they stood
        _export_figures(content, out)
    finally:
        if executed.exists():
            _store(clean(nbformat.read(executed, as_version=4)), executed)
    return executed


def refresh(notebook: Path) -> float:
    """Execute a notebook with its own parameters and store it, cleaned, in its place; returns seconds. A failing one stays as it was."""
    content = nbformat.read(notebook, as_version=4)
    _silence_bars()
    began = time.perf_counter()
    with _private_kernel() as config:
        NotebookClient(content, timeout=600, kernel_name="python3", record_timing=False, config=config,
                       resources={"metadata": {"path": str(notebook.parent)}}).execute()
    _store(clean(content), notebook)
    return time.perf_counter() - began


def check_parameters(notebook: Path, parameters: Mapping[str, object]) -> dict[str, object]:
    """The parameters with text read as the declared types; refuses what the notebook does not declare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without a parameters cell is told below, in one sentence
        known = papermill.inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"{notebook.stem} has no parameter {name!r}: {hint}")
    return {name: read_value(value, known[name]["inferred_type_name"], name) for name, value in parameters.items()}


def read_value(value: object, declared: str, name: str = "the parameter") -> object:
    """Read text as a value of the declared type; "None" is what a notebook without annotations declares.

    >>> read_value("1e-3", "float"), read_value("3", "int"), read_value("sgd", "str"), read_value("(1, 5)", "None")
    (0.001, 3, 'sgd', (1, 5))
    """
    if not isinstance(value, str) or declared == "str":
        return value
    literal = value
    for read in (ast.literal_eval, json.loads):
        try:
            literal = read(value)
            break
        except (ValueError, SyntaxError):
            continue
    if declared == "float" and isinstance(literal, int) and not isinstance(literal, bool):
        literal = float(literal)
    if declared in ("int", "float", "bool") and type(literal).__name__ != declared:
        raise ValueError(f"{name} takes {declared}, but got {value!r}")
    return literal


def clean(content: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what execution leaves behind and readers do not need: widget state, timings, paths, versions."""
    for key in ("widgets", "papermill"):
        content.metadata.pop(key, None)
    content.metadata["language_info"] = {"name": "python"}
    for cell in content.cells:
        for key in ("execution", "papermill"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
    return content


def _export_figures(content: nbformat.NotebookNode, out: Path) -> None:
    images = [output.data["image/png"] for cell in content.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    for i, image in enumerate(images, 1):
        (out / f"figure-{i}.png").write_bytes(base64.b64decode(image))


def _html(content: nbformat.NotebookNode) -> str:
    exporter = HTMLExporter()
    exporter.log.setLevel("ERROR")  # text alternatives of figures are the sentences beside them
    return exporter.from_notebook_node(content)[0]


def _store(content: nbformat.NotebookNode, path: Path) -> None:
    write_atomically(path, nbformat.writes(content) + "\n")


@contextmanager
def _private_kernel() -> Iterator[Config]:
    # Through socket files instead of network ports: no warning about unencrypted traffic, no port taken by somebody else. The
    # files need a folder of their own, or two kernels of one working directory would answer each other's messages.
    with tempfile.TemporaryDirectory() as folder:
        yield Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


def _silence_bars() -> None:
    # A stored progress bar stays at 0 % for ever. Read when tqdm is imported: kernels obey, papermill's bar in this process stays.
    os.environ["TQDM_DISABLE"] = "1"
