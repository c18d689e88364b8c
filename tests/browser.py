"""Headless Chromium for tests: the machine's own package (Debian: apt install chromium), driven by playwright."""

import functools
import http.server
import shutil
import threading
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # as root, without a screen, and asking nobody by itself


def in_a_browser(test):
    """A mark for tests that need one."""
    for absent, reason in ((CHROMIUM is None, "Chromium is not installed (Debian: apt install chromium)"),
                           (find_spec("playwright") is None, "playwright is not installed (make test-browser does it)")):
        test = pytest.mark.skipif(absent, reason=reason)(test)
    return test


@contextmanager
def chromium():
    """A browser of its own, with an empty profile."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(folder: Path):
    """The address of a server of a folder's files on this machine."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
