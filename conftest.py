"""Notebooks under test draw no progress bars: their stored outputs have none. MNIST is taken from where it lies beside the repository, if it does."""

import os
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # kernels inherit it
beside = Path(__file__).resolve().parents[1] / "shared" / "data"
if (beside / "MNIST").is_dir():
    os.environ.setdefault("GAN_INFLUENCE_DATA", str(beside))
