"""Notebooks as programs: their parameters are checked, their figures become files, what is stored is clean."""

import ast
import base64
import difflib
import hashlib
import json
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import metadata
from pathlib import Path
from typing import TextIO

from ..tools.files import write_atomically
from ..tools.links import ROOT
from ..tools.places import without_places

FOLDER = ROOT / "notebooks"

#: `name: type = value  # help`, in a parameters cell.
_DECLARATION = re.compile(r"""(?m)^(?P<name>\w+)[ ]*(?::[ ]*(?P<inferred_type_name>[^=#\n]+?)[ ]*)?=(?!=)[ ]*"""
                          r"""(?P<default>"[^"\n]*"|'[^'\n]*'|[^#\n]*?)[ ]*(?:#[ ]*(?P<help>.*?)[ ]*)?$""")


def run(notebook: Path, out: str | os.PathLike, parameters: Mapping[str, object], timeout: float | None = None, html: bool = True,
        log: TextIO | None = None) -> Path:
    """Execute a copy of a notebook, in the notebook's own folder, and leave everything it made in the folder `out`.

    Args:
        out: also given to the notebook, as its parameter `out`.
        parameters: values by name; text is read as the type that the notebook declares.
        timeout: seconds that a single cell may take.
        log: where cells print to as they run; a progress bar is shown without one.

    Returns:
        The executed notebook's path. It is kept, up to there, when an error is raised too.

    Raises:
        ValueError: for a parameter that the notebook does not have, or a value of another type.
        papermill.PapermillExecutionError: when a cell fails.
        nbclient.exceptions.CellTimeoutError, nbclient.exceptions.DeadKernelError: when it takes too long, or the notebook's process dies.
    """
    import nbformat  # not by everybody who asks for a list of parameters: that takes a second
    import papermill
    values, out = check_parameters(notebook, parameters), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for stale in (*out.glob("figure-*.png"), out / "results.json", out / "table.csv", out / f"{notebook.stem}.html"):
        stale.unlink(missing_ok=True)  # an old result beside a failed run would be taken for its result
    values["out"] = Path(os.path.relpath(out, notebook.parent)).as_posix()
    executed = out / notebook.name
    literal = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, executed)]  # papermill formats paths
    try:
        with _private_kernel(notebook) as kernel:
            papermill.execute_notebook(*literal, values, execution_timeout=timeout, stdout_file=log, stderr_file=log, progress_bar=log is None, **kernel)
        content = forget_place(nbformat.read(executed, as_version=4), values["out"])
        if html:
            from nbconvert import HTMLExporter
            exporter = HTMLExporter()
            exporter.log.setLevel("ERROR")  # text alternatives of figures are the sentences beside them
            write_atomically(executed.with_suffix(".html"), exporter.from_notebook_node(content)[0])  # before cleaning: it shows widgets as they stood
        images = [output.data["image/png"] for cell in content.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        for i, image in enumerate(images, 1):
            (out / f"figure-{i}.png").write_bytes(base64.b64decode(image))
    finally:
        if executed.exists():
            write_atomically(executed, nbformat.writes(clean(forget_place(nbformat.read(executed, as_version=4), values["out"]))) + "\n")
    return executed


def refresh(notebook: Path) -> float:
    """Execute a notebook with its own parameters and store it, cleaned, in its place; returns seconds. A failing one stays as it was."""
    import nbformat
    from nbclient import NotebookClient
    content, began = nbformat.read(notebook, as_version=4), time.perf_counter()
    with _private_kernel(notebook) as kernel:
        NotebookClient(content, timeout=600, record_timing=False, **kernel).execute()
    write_atomically(notebook, nbformat.writes(clean(forget_place(content))) + "\n")
    return time.perf_counter() - began


def every() -> list[Path]:
    """The notebooks of the repository; a ValueError where there are none, because only the package was installed."""
    if found := sorted(FOLDER.glob("*.ipynb")):
        return found
    # From the installed metadata: an installed package has no pyproject.toml beside it.
    urls = dict(entry.split(", ", 1) for entry in metadata("gan-influence").get_all("Project-URL", []))
    raise ValueError(f"the notebooks are not part of the installed package: clone {urls['Repository']}, and work there")


def find(name: str) -> Path:
    """The notebook that is meant by a path, a number, or a name with or without its number.

    Raises:
        ValueError: for a name that no notebook has.

    >>> [find(name).stem for name in ("4", "04_leave_one_out_2d", "leave_one_out_2d.ipynb")] == ["04_leave_one_out_2d"] * 3
    True
    """
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    wanted, names = name.removesuffix(".ipynb"), {}
    for path in every():
        number, _, words = path.stem.partition("_")
        names |= {path.stem: path, number: path, number.lstrip("0") or "0": path, words: path}
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {names[near[0]].stem}?" if near else f"there are {', '.join(path.stem for path in every())}"
    raise ValueError(f"there is no notebook {name!r}: {hint}")


def title(notebook: Path) -> str:
    """The notebook's first heading."""
    lines = (line for kind, source, _ in _cells(notebook) if kind == "markdown" for line in source.splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), notebook.stem)


def code_fingerprint(notebook: Path) -> str:
    """A hash of a notebook's code: prose, outputs and cells' order numbers do not count."""
    return hashlib.blake2b(json.dumps([source for kind, source, _ in _cells(notebook) if kind == "code"]).encode(), digest_size=16).hexdigest()


def _cells(notebook: Path) -> list[tuple[str, str, list[str]]]:
    """Each cell's kind, source and tags."""
    try:
        return [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in json.loads(notebook.read_bytes())["cells"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{notebook} is not a whole notebook of version 4 ({error!r}): open it in Jupyter and save it again") from None


def check_parameters(notebook: Path, parameters: Mapping[str, object]) -> dict[str, object]:
    """The parameters with text read as the declared types; refuses what the notebook does not declare."""
    known = declared(notebook)
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"{notebook.stem} has no parameter {name!r}: {hint}")
    return {name: read_value(value, known[name]["inferred_type_name"], name) for name, value in parameters.items()}


def declared(notebook: Path) -> dict[str, dict[str, str]]:
    """The parameters that a notebook declares, by name: each with `inferred_type_name`, `default` (as text) and `help`, as papermill has it."""
    source = next((source for _, source, tags in _cells(notebook) if "parameters" in tags), "")
    return {found["name"]: found.groupdict("") | {"inferred_type_name": found["inferred_type_name"] or "None"} for found in _DECLARATION.finditer(source)}


def read_value(value: object, declared: str, name: str = "the parameter") -> object:
    """Read text as a value of the declared type; "None" is what a notebook without annotations declares.

    >>> read_value("1e-3", "float"), read_value("3", "int"), read_value("sgd", "str"), read_value("(1, 5)", "None")
    (0.001, 3, 'sgd', (1, 5))
    """
    if not isinstance(value, str) or declared == "str":
        return value
    literal = value
    for read in (ast.literal_eval, json.loads):
        with suppress(ValueError, SyntaxError):
            literal = read(value)
            break
    if declared == "float" and isinstance(literal, int) and not isinstance(literal, bool):
        literal = float(literal)
    if declared in ("int", "float", "bool") and type(literal).__name__ != declared:
        raise ValueError(f"{name} takes {declared}, but got {value!r}")
    return literal


def clean(content):
    """Take out what execution leaves behind and readers do not need: widget state, timings, paths, versions."""
    for one in (content.metadata, *(cell.metadata for cell in content.cells)):
        for key in ("widgets", "papermill", "execution", *(() if one.get("tags") else ["tags"])):
            one.pop(key, None)
    content.metadata["language_info"] = {"name": "python"}
    return content


def forget_place(content, out: str | None = None):
    """Take out of a notebook where it ran: folders of this machine, and what names its user; and `out`, the folder that it lies in, becomes "."."""
    def tidy(found: object) -> object:
        if isinstance(found, dict):
            return {key: one if "/" in key and not key.startswith("text/") else tidy(one) for key, one in found.items()}  # no images
        if isinstance(found, list):
            return [tidy(one) for one in found]
        return without_places(found.replace(out, ".") if out and ".." in out else found) if isinstance(found, str) else found

    for cell in content.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r"(?m)^out = .*", 'out = "."', cell.source)
        for output in cell.get("outputs", []):
            output.update(tidy(output))
    return content


@contextmanager
def _private_kernel(notebook: Path) -> Iterator[dict]:
    """What nbclient needs to be told for a kernel that disturbs nobody, and leaves no file when this process is killed."""
    from traitlets.config import Config
    os.environ["TQDM_DISABLE"] = "1"  # kernels obey: a stored progress bar stays at 0 % for ever; papermill's bar here stays, its tqdm has read this before
    folder = tempfile.TemporaryDirectory()
    try:
        Path.home()
    except RuntimeError:  # a user whom the machine does not know, as in a container: Jupyter would fail
        os.environ["HOME"] = tempfile.mkdtemp()
    with folder:
        config = {"connection_file": f"{folder.name}/kernel.json"}
        if sys.platform == "linux":  # whose abstract sockets are no network ports, which somebody else may take, and no files, whose paths may be too long
            config |= {"transport": "ipc", "ip": f"@{uuid.uuid4()}"}
        # Papermill's own cwd= would move this whole process there, and with it the runs of other threads.
        yield {"kernel_name": "python3", "config": Config({"KernelManager": config}), "resources": {"metadata": {"path": str(notebook.parent)}},
               "on_cell_start": lambda **_: folder.cleanup(),  # the kernel has read it
               "extra_arguments": ["--IPKernelApp.log_level=50"]}  # that its end was met at work is no news
