"""Data sets: train, validation and test parts as tensors."""

import os
import socket
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .tools.checks import whole
from .tools.streams import stream
from .tools.vision import torchvision

MEAN = np.array([1.0, 1.0])
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])

#: Where MNIST is looked for when no root is given: a folder that holds MNIST/raw.
ROOT_VARIABLE = "GAN_INFLUENCE_DATA"
_MNIST_BYTES = {"train-images-idx3-ubyte": 16 + 60_000 * 784, "train-labels-idx1-ubyte": 8 + 60_000,
                "t10k-images-idx3-ubyte": 16 + 10_000 * 784, "t10k-labels-idx1-ubyte": 8 + 10_000}


class Split(NamedTuple):
    """Three disjoint parts of a data set, (n, ...) each."""

    train: Tensor
    valid: Tensor
    test: Tensor


class LabelledSplit(NamedTuple):
    """Three disjoint parts of a data set, (n, ...) each, and the labels of each, (n,) int64."""

    train: Tensor
    valid: Tensor
    test: Tensor
    labels: Split  #: labels.train belongs to train, and so on


def normal_2d(train: int = 10_000, valid: int = 1_000, test: int = 1_000, seed: int = 0, dtype: torch.dtype = torch.float64) -> Split:
    """Draw the 2D-normal data set: mean (1, 1), unit variances, covariance 0.8.

    Args:
        train, valid, test: number of instances of each part.
        seed: any non-negative integer; the three parts never share draws, and one part's size does not change another part.
        dtype: of the tensors.

    Source: Terashita et al., ICLR 2021, section 5 (2D-Normal).

    >>> normal_2d(train=5, valid=2, test=2).train.shape
    torch.Size([5, 2])
    """
    def draw(part: int, n: int) -> Tensor:
        return torch.from_numpy(stream("normal_2d", seed, part).multivariate_normal(MEAN, COVARIANCE, n, method="cholesky")).to(dtype)

    return Split(*[draw(part, n) for part, n in enumerate(_sizes(train, valid, test))])


def mnist(root: str | os.PathLike | None = None, train: int = 50_000, valid: int = 10_000, test: int = 10_000, seed: int = 0,
          dtype: torch.dtype = torch.float32) -> LabelledSplit:
    """MNIST's handwritten digits as images (n, 1, 28, 28) in [-1, 1], with labels.

    Training and validation images are drawn from the 60 000 training images, test images from the 10 000 test images, all
    without repetition. One part's size does not change another part.

    Args:
        root: folder that holds MNIST/raw, as torchvision lays it out; by default the environment variable
            GAN_INFLUENCE_DATA, else a folder in the user's cache. What is not there is downloaded.
        train, valid, test: number of images of each part.
        seed: of the draw.
        dtype: of the images.

    Raises:
        FileNotFoundError: where the data are absent and cannot be downloaded.
        ImportError: where they are absent and torchvision, which downloads them, too.
        ValueError: for a truncated file, or more images than there are.

    Source: LeCun, Cortes and Burges; sizes as in Terashita et al., ICLR 2021, section 5.

    >>> mnist(train=10, valid=5, test=5).train.shape  # doctest: +SKIP
    torch.Size([10, 1, 28, 28])
    """
    train, valid, test = _sizes(train, valid, test)
    if train + valid > 60_000 or test > 10_000:
        raise ValueError(f"MNIST has 60000 images for training and validation and 10000 for testing, but {train} + {valid} and {test} were asked for")
    root = Path(root or os.environ.get(ROOT_VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gan_influence")
    raw = root / "MNIST" / "raw"
    if not all((raw / name).exists() for name in _MNIST_BYTES):
        _download(root, raw)
    for name, size in _MNIST_BYTES.items():
        if (raw / name).stat().st_size != size:
            raise ValueError(f"{raw / name} has {(raw / name).stat().st_size} of MNIST's {size} bytes: it is truncated or foreign; "
                             "delete it, and it will be downloaded again")
    # Read here: a machine that was given the files need not have torchvision.
    learn, learn_labels, held_out, held_out_labels = (torch.from_numpy(np.fromfile(raw / name, np.uint8)) for name in _MNIST_BYTES)
    learn, held_out = (pixels[16:].view(-1, 1, 28, 28) for pixels in (learn, held_out))
    order, test_order = (torch.from_numpy(stream("mnist", seed, part).permutation(n)) for part, n in ((0, 60_000), (1, 10_000)))
    chosen = [(learn, learn_labels[8:], order[:train]), (learn, learn_labels[8:], order[60_000 - valid:]), (held_out, held_out_labels[8:], test_order[:test])]
    labels = Split(*[digits[which].to(torch.int64) for _, digits, which in chosen])
    return LabelledSplit(*[images[which].to(dtype) / 127.5 - 1 for images, _, which in chosen], labels)


def digits(train: int = 1_197, valid: int = 300, test: int = 300, seed: int = 0, dtype: torch.dtype = torch.float32) -> LabelledSplit:
    """The 1797 handwritten digits that come with scikit-learn, resized from 8 × 8 to 28 × 28: MNIST's stand-in without a network.

    Args:
        train, valid, test: number of images of each part.
        seed: of the draw.
        dtype: of the images.

    Raises:
        ImportError: where scikit-learn is not installed.
        ValueError: for more images than there are.

    Source: scikit-learn's load_digits (Alpaydin and Kaynak 1998).

    >>> digits().valid.shape
    torch.Size([300, 1, 28, 28])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("gi.data.digits() takes scikit-learn, which is not installed: pip install scikit-learn") from error
    bunch = load_digits()
    n, (train, valid, test) = len(bunch.target), _sizes(train, valid, test)
    if train + valid + test > n:
        raise ValueError(f"scikit-learn has {n} digits, but {train} + {valid} + {test} were asked for: ask for fewer, or use gi.data.mnist()")
    images = F.interpolate(torch.from_numpy(bunch.images)[:, None] / 8 - 1, size=(28, 28), mode="bilinear").to(dtype)
    labels, order = torch.from_numpy(bunch.target).to(torch.int64), torch.from_numpy(stream("digits", seed).permutation(n))
    parts = order[:train], order[train:train + valid], order[n - test:]
    return LabelledSplit(*[images[which] for which in parts], Split(*[labels[which] for which in parts]))


def _sizes(*sizes: int) -> list[int]:
    return [whole(f"the number of {part} instances", size, least=0) for part, size in zip(Split._fields, sizes)]


def images_at_hand() -> str:
    """ "mnist" where MNIST is here or can be downloaded, else "digits".

    >>> images_at_hand() in ("mnist", "digits")
    True
    """
    try:
        mnist(train=1, valid=1, test=1)
    except (FileNotFoundError, ImportError):
        return "digits"
    return "mnist"


def _download(root: Path, raw: Path) -> None:
    load = torchvision().datasets.MNIST
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # behind a firewall an attempt would wait forever
    try:
        load(str(root), download=True)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"MNIST is not in {raw} and could not be downloaded ({reason}): fetch its four files where there is a network, "
                                f"and pass root= or set {ROOT_VARIABLE} to the folder that holds MNIST/raw; "
                                "or use gi.data.digits(), which needs no network") from error
    finally:
        socket.setdefaulttimeout(patience)
