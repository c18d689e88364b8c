"""torchvision, imported also beside a CPU build of torch that it was not built for."""

import importlib
import sys
from types import ModuleType

import torch

_repair = None  # operator definitions live as long as this library object


def torchvision() -> ModuleType:
    """The torchvision package with its data sets, transforms and models.

    The default wheel of torchvision beside a CPU wheel of torch finds no compiled operators and fails at import. Only then
    are the two names that it trips over declared, without an implementation, and the import tried again: everything but
    box operations works. A build that imports is never touched.

    Raises:
        ImportError: where torchvision is not installed.

    >>> torchvision().datasets.MNIST.__name__
    'MNIST'
    """
    global _repair
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise ImportError("reading MNIST takes torchvision, which is not installed: pip install torchvision, or use gi.data.digits()") from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _repair is not None:
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _repair = torch.library.Library("torchvision", "FRAGMENT")
    _repair.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _repair.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return importlib.import_module("torchvision")
