"""The package's version, and those that a recorded number may depend on."""

import platform

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions that a recorded number may depend on."""
    import numpy  # here, because the command line asks for the package's own alone
    import torch
    return {"gan_influence": __version__, "torch": torch.__version__, "numpy": numpy.__version__, "python": platform.python_version()}
