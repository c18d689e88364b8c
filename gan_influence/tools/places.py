"""Where something ran, taken out of what it said."""

import re
import sys
import tempfile
from pathlib import Path

from .links import ROOT


def without_places(text: str) -> str:
    """The text with paths below the repository, Python, home and temporary folders cut to what follows these.

    >>> without_places(f"File {ROOT}/gan_influence/gan.py:3, {Path.home()}/x, https://host/tmp")
    'File gan_influence/gan.py:3, x, https://host/tmp'
    """
    folders = {str(path) for place in (ROOT, Path.cwd(), Path.home(), sys.prefix, sys.base_prefix, tempfile.gettempdir())
               for path in (Path(place), Path(place).resolve()) if len(path.parts) > 1}
    longest_first = "|".join(map(re.escape, sorted(folders, key=len, reverse=True)))
    text = re.sub(rf"(^|[^\w.:/]|\x1b\[[\d;]*m)(?:{longest_first})(/|(?![\w.-]))", lambda found: found[1] + ("" if found[2] else "."), text, flags=re.M)
    return re.sub(r"\bipykernel_\d+/\d+\.py", "cell.py", text)  # a cell's source, named by process
