"""Notebooks under test draw no progress bars: their stored outputs have none."""

import os

os.environ["TQDM_DISABLE"] = "1"  # kernels inherit it
