"""One progress bar for everything: shown to people, silent in batch."""

import os
import sys

from tqdm.auto import tqdm


def progress(steps=None, **options) -> tqdm:
    """A tqdm bar that appears after a second; silent where nobody watches, or where TQDM_DISABLE is set.

    >>> list(progress(range(3), desc="counting"))
    [0, 1, 2]
    """
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)  # its bars ignore TQDM_DISABLE
    silent = bool(os.environ.get("TQDM_DISABLE")) or not (in_notebook or sys.stderr.isatty())
    return tqdm(steps, delay=1, leave=False, disable=silent, **options)
