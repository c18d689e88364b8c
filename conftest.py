"""For all tests, doctests and notebooks, and whatever they start."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent

os.environ["TQDM_DISABLE"] = "1"  # notebooks under test draw no progress bars: their stored outputs have none
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers share the cores, and digits must not depend on how many
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # for a checkout that is not installed
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
beside = ROOT.parent / "shared" / "data"
if (beside / "MNIST").is_dir():  # MNIST is taken from where it lies beside the repository, if it does
    os.environ.setdefault("GAN_INFLUENCE_DATA", str(beside))
