"""Data sets: train, validation and test parts as tensors."""

import io
import json
import os
import socket
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.resources import files
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

STYLES = {"pixel-art": "open-peeps", "open-peeps": "lorelei"}  #: what `faces` draws in, and what it plants there as another style
PLANTED = "noise", "inverted", "another style", "duplicate"  #: the kinds that `faces` can plant
_PICTURES = ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"


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


class Faces(NamedTuple):
    """Three disjoint parts of colour faces, (n, 3, size, size) each, what each face has, and what was planted."""

    train: Tensor
    valid: Tensor
    test: Tensor
    labels: Split  #: (n, attributes) int64 each: the number of the attribute's value, -1 where the picture does not have the attribute
    attributes: dict[str, tuple[str, ...]]  #: the columns' names and values
    planted: np.ndarray  #: for each training face "none" or one of `PLANTED`


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


def faces(train: int = 2_000, valid: int = 500, test: int = 500, seed: int = 0, size: int = 32, shares: Mapping[str, float | Mapping] | None = None,
          plant: Mapping[str, float] | None = None, dtype: torch.dtype = torch.float32, style: str = "pixel-art") -> Faces:
    """Colour faces on white, (n, 3, size, size) in [-1, 1], with known attributes and, where asked for, planted corruptions.

    One part's size changes no other part, one attribute's share no other attribute, planting no face that it leaves alone.

    Args:
        train, valid, test: number of faces of each part; a thousand take a few seconds, the same again almost none.
        seed: of the draw, which also depends on the version of dicebear-styles.
        size: pixels of a side; Pixel Art is made of 16 × 16 squares.
        shares: probabilities by attribute: {"glasses": 0.5} is any glasses, {"mouth": {"sad": 0.05}} any value that begins so. Else "none"
            is as probable as in the style, and other values share the rest.
        plant: shares of the training faces by kind. noise: normal noise, a quarter of the range, is added; inverted: colours become their
            complements; another style: an Open Peeps face (among those, a Lorelei face), labels -1; duplicate: a copy of a face that is left alone.
        dtype: of the images.
        style: "pixel-art", or "open-peeps": outlined heads of one skin and shirt colour each, with attributes of their own.

    Raises:
        ImportError: where what draws them is not installed.
        ValueError: for shares of what there is not, or that do not add up.

    Source: DiceBear's Pixel Art, Open Peeps by Pablo Stanley and Lorelei by Lisa Wischofsky, all CC0 1.0.

    >>> faces(train=20, valid=5, test=5, shares={"glasses": 0.5}, plant={"noise": 0.1}).train.shape  # doctest: +SKIP
    torch.Size([20, 3, 32, 32])
    """
    sizes, size, plant, shares = _sizes(train, valid, test), whole("the number of pixels of a side", size, least=16), plant or {}, shares or {}
    counts = [round(plant.get(kind, 0) * sizes[0]) for kind in PLANTED]
    if not set(plant) <= set(PLANTED) or min(plant.values(), default=0) < 0 or any(counts) and sum(counts) >= sizes[0]:
        raise ValueError(f"plant gives shares to {', '.join(PLANTED)} and leaves some training faces alone, but got {plant} for {sizes[0]} faces")
    if style not in STYLES:
        raise ValueError(f"faces are drawn in the styles {' and '.join(STYLES)}, but {style!r} was asked for")
    artist, draw = _artist(style)
    things, colours, pixels, labels = artist.components(), artist.colors(), [], []
    values = {name: ("none", *thing.variants()) for name, thing in things.items()} | {f"{name} colour": (*ink.values(),) for name, ink in colours.items()}
    if not set(shares) <= set(values):
        raise ValueError(f"faces have {', '.join(values)}, but shares speak of {', '.join(set(shares) - set(values))}")
    ends = [_chances(name, values[name], things.get(name), shares.get(name, {})).cumsum()[:-1] for name in values]
    options, always = [f"{name}Variant" for name in things] + [f"{name}Color" for name in colours], {f"{name}Probability": 100 for name in things}
    for part, n in enumerate(sizes):
        chosen = {name: np.searchsorted(end, u, side="right") for name, end, u in zip(values, ends, stream("faces", seed, part).random((n, len(ends))).T)}
        wanted = [{option: named[i] for option, named, i in zip(options, values.values(), face)} for face in zip(*chosen.values())]
        pixels.append(np.array([draw(size, **always, **face) for face in wanted], np.float32).reshape(n, 3, size, size))
        for name in things.keys() & colours.keys():
            chosen[f"{name} colour"][chosen[name] == 0] = -1
        labels.append(np.stack([*chosen.values()], 1))
    x, random = pixels[0], stream("planted faces", seed)
    planted = random.permutation(np.repeat([*PLANTED, "none"], [*counts, sizes[0] - sum(counts)]))
    noisy, inverted, foreign, twins, alone = [np.flatnonzero(planted == kind) for kind in (*PLANTED, "none")]
    x[noisy] = (x[noisy] + 64 * random.standard_normal(x[noisy].shape)).clip(0, 255)
    x[inverted] = 255 - x[inverted]
    for i in foreign:
        x[i] = _artist(STYLES[style])[1](size, seed=str(random.integers(2**63)))
    originals = random.choice(alone, len(twins))
    x[twins], labels[0][twins], labels[0][foreign] = x[originals], labels[0][originals], -1
    return Faces(*[torch.from_numpy(part.round()).to(dtype) / 127.5 - 1 for part in pixels], Split(*map(torch.from_numpy, labels)), values, planted)


def _chances(name: str, values: tuple[str, ...], thing, share: float | Mapping[str, float]) -> np.ndarray:
    told = ({"none": 1 - thing.probability() / 100} if thing else {}) | (dict(share) if isinstance(share, Mapping) else {"none": 1 - share})
    rest, starts = 1 - sum(told.values()), [next((start for start in told if value.startswith(start)), None) for value in values]
    chances = np.array([told.get(start, rest) / starts.count(start) for start in starts])
    if not set(told) <= set(starts) or chances.min() < -1e-9 or abs(chances.sum() - 1) > 1e-9:
        raise ValueError(f"shares of {name!r} are 0 or more, for different values or beginnings of values, and add up to 1 or leave the rest to others, "
                         f"but with {told} and {rest:.3g} for the rest they do not; the values are {', '.join(values)}")
    return chances


@cache
def _artist(name: str) -> tuple:
    try:
        import resvg_py
        from dicebear import Avatar, Style
        from PIL import Image
        style = Style(json.loads((files("dicebear_styles") / f"{name}.json").read_text("utf-8")))
    except ImportError as error:
        raise ImportError(f"gi.data.faces() takes {error.name}, which is not installed: pip install 'gan-influence[faces]'") from error

    def draw(size: int, **options) -> np.ndarray:
        svg = str(Avatar(style, {"size": size, "backgroundColor": "#ffffff", **options}))
        return np.asarray(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))).convert("RGB")).transpose(2, 0, 1)

    return style, lru_cache(10_000)(draw)


class images:  # noqa: N801, called like the functions beside it
    """A folder's pictures, sorted by path, as tensors (3, size, size) in [-1, 1], each read when it is asked for: the central square, on white.

    Raises:
        FileNotFoundError: for a folder without pictures.
        ImportError: where Pillow is not installed.
        ValueError: for a picture that cannot be read.

    >>> images("photos", size=64)[0].shape  # doctest: +SKIP
    torch.Size([3, 64, 64])
    """

    def __init__(self, folder: str | os.PathLike, size: int = 32):
        self.size, self.paths = whole("the number of pixels of a side", size), sorted(x for x in Path(folder).rglob("*") if x.suffix.lower() in _PICTURES)
        if not self.paths:
            raise FileNotFoundError(f"neither {folder} nor its subfolders hold pictures ({', '.join(_PICTURES)}): pass the folder that they are in")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        try:
            from PIL import Image, ImageOps
            with Image.open(self.paths[i]) as file:
                picture = ImageOps.fit(ImageOps.exif_transpose(file).convert("RGBA"), (self.size, self.size))
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        except ImportError as error:
            raise ImportError("gi.data.images() takes Pillow, which is not installed: pip install pillow") from error
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{self.paths[i]} cannot be read as a picture ({error}): replace it, or take it out of the folder") from error
        return torch.from_numpy(np.array(picture, np.float32).transpose(2, 0, 1)) / 127.5 - 1


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
