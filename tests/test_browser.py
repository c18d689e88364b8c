"""Widgets as a reader meets them: JupyterLab in headless Chromium, sliders moved by mouse and by key. Screenshots stay in runs/browser."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import chromium, in_a_browser
from test_exercises import SMALL, names

from conftest import optional

nbformat = optional("nbformat")
ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "runs" / "browser"
TOKEN = "only-for-this-test"
PARAMETERS = {**SMALL, "04": {"n_seeds": 1}, "06": {"n_seeds": 1}}  # what a slider does is the same in seconds
IN_MAKE_TEST = "00_start_here"  # the others take minutes, and are driven by `make test-browser`
SETTINGS = {  # no cell without its output in the page because it is out of sight; no news from elsewhere
    "lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "labconfig/page_config.json": {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
}


def widgets_and_what_they_need(path: Path):
    """A notebook of its widgets and of those cells that they take names from, without outputs; and where its widgets are."""
    content = nbformat.read(path, as_version=4)
    kept = {i for i, cell in enumerate(content.cells) if "widget" in cell.metadata.get("tags", []) or
            any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in cell.get("outputs", []))}
    widgets, before = [content.cells[i].id for i in kept], set()
    usable = {i: names(cell.source) for i, cell in enumerate(content.cells[:max(kept) + 1]) if cell.cell_type == "code" and "google.colab" not in cell.source}
    while kept != before:
        before, wanted = kept, {name for i in kept for name in usable[i][2]}  # by functions, which may be defined before what they take
        for i in reversed(usable):
            binds, takes, _ = usable[i]
            if i in kept or wanted & binds:
                kept, wanted = kept | {i}, (wanted - binds) | takes
    content.cells = [cell for i, cell in enumerate(content.cells) if i in kept]
    for cell in content.cells:
        cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in PARAMETERS.get(path.stem[:2], {}).items())
    return content, [i for i, cell in enumerate(content.cells) if cell.id in widgets]


WITH_WIDGETS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
                if re.search(r'"widget"|jupyter\.widget-view', path.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder and the address of a JupyterLab that knows only this test."""
    home = tmp_path_factory.mktemp("lab")
    for name, content in SETTINGS.items():
        (home / "config" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "config" / name).write_text(json.dumps(content))
    (home / "notebooks").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(home / folder) for name, folder in own.items()}}
    options = ["--no-browser", "--allow-root", f"--ServerApp.root_dir={home / 'notebooks'}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, (home / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}").close()
                break
            except OSError:
                time.sleep(0.1)
        yield home / "notebooks", address
    finally:
        server.terminate()
        server.wait(20)


def pictures(output) -> str:
    """A fingerprint of the pictures that an output shows."""
    return output.evaluate("""async output => (await Promise.all([...output.querySelectorAll('img')].map(
        async image => new Uint8Array(await (await fetch(image.src)).arrayBuffer()))))
        .map(bytes => bytes.reduce((hash, byte) => (hash * 31 + byte) % 4294967291, bytes.length)).join()""")


def follows(page, output, before: str, deadline: float = 60.0) -> tuple[str, float]:
    """The fingerprint of the next pictures, and after how many seconds they came."""
    began = time.monotonic()
    while (now := pictures(output)) == before:
        assert time.monotonic() - began < deadline, "the slider was moved, and its picture stayed"
        page.wait_for_timeout(20)
    return now, time.monotonic() - began


@in_a_browser
@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == IN_MAKE_TEST else pytest.mark.skipif(
    os.environ.get("GAN_INFLUENCE_BROWSER") != "all", reason="make test-browser drives it")) for name in WITH_WIDGETS])
def test_sliders_answer_to_mouse_and_keys(name, lab):
    folder, address = lab
    content, where = widgets_and_what_they_need(WITH_WIDGETS[name])
    nbformat.write(content, folder / f"{name}.ipynb")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{address}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
        page.locator(".jp-NotebookPanel .jp-Notebook-cell").first.wait_for()
        page.get_by_text(re.compile(r"\| Idle$")).wait_for()  # what is run before the kernel is there is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name=re.compile("^Run All Cells")).click()
        outputs = {i: page.locator(".jp-Notebook-cell").nth(i).locator(".jp-Cell-outputWrapper") for i in where}
        errors = page.locator(".jp-OutputArea-output[data-mime-type*=error]")
        outputs[where[-1]].locator(".noUi-handle").or_(errors).first.wait_for(timeout=400_000)
        assert errors.count() == 0, errors.first.inner_text()
        page.get_by_text(re.compile(r"\| Idle$")).wait_for()
        for i, output in outputs.items():
            slider = output.locator(".widget-slider").first
            handle = slider.locator(".noUi-handle").first
            handle.scroll_into_view_if_needed()
            page.wait_for_timeout(500)  # a new layout settles
            first = pictures(output)
            page.screenshot(path=SHOTS / f"{name}-{i}-0-before.png")
            box, track = handle.bounding_box(), slider.locator(".noUi-base").first.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x + 0.6 * (track["x"] + track["width"] - x), y, steps=8)
            page.mouse.up()
            by_mouse, took = follows(page, output, first)
            page.screenshot(path=SHOTS / f"{name}-{i}-1-mouse.png")
            handle.press("ArrowLeft")
            _, also = follows(page, output, by_mouse)
            page.screenshot(path=SHOTS / f"{name}-{i}-2-key.png")
            print(f"{name}, cell {i}: seconds until the picture followed {took:.2f} by mouse, {also:.2f} by key")
    (folder / f"{name}.ipynb").unlink()
