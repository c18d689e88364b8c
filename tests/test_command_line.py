"""The command line as a program: what it imports, and how it ends when its surroundings let it down."""

import subprocess
import sys

import pytest

@pytest.mark.parametrize("arguments", [["--help"], ["record", "--help"], ["run", "--help"]], ids=" ".join)
def test_help_imports_nothing_slow(arguments):
    slow = {"torch", "pandas", "matplotlib", "nbformat", "papermill", "nbclient", "nbconvert", "distributed"}
    code = f"import sys, gan_influence.cli.main as c\ntry: c.main({arguments})\nfinally: print(*{slow} & set(sys.modules), file=sys.stderr)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.strip() == ""
