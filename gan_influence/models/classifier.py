"""The small classifier whose features and class probabilities define Fréchet distance and Inception score on MNIST."""

import os
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tools.progress import progress
from ..tools.storage import fingerprint, read_tensors, write_tensors
from ..tools.streams import torch_stream
from ..tools.versions import versions
from .dcgan import glorot

VERSION = 2  # of architecture and training: raise it when either changes, and kept classifiers are trained again
READABLE = "classifier.json"


class Classifier(nn.Module):
    """Two convolutions and a layer of 128 sigmoid features, for images (n, 1, 28, 28).

    Attributes:
        features: the module images → (n, 128), each feature between 0 and 1: what `FrechetDistance` takes.
        accuracy: fraction of test images classified rightly, {"train": ..., "test": ...} as far as known; empty before training.

    Calling it gives logits (n, classes): what `InceptionScore` takes.
    """

    def __init__(self, classes: int, dtype: torch.dtype):
        super().__init__()
        self.features = nn.Sequential(
            nn.utils.skip_init(nn.Conv2d, 1, 8, 5, padding=2, dtype=dtype), nn.Sigmoid(), nn.MaxPool2d(2),
            nn.utils.skip_init(nn.Conv2d, 8, 8, 5, padding=2, dtype=dtype), nn.Sigmoid(), nn.MaxPool2d(2),
            nn.Flatten(), nn.utils.skip_init(nn.Linear, 8 * 7 * 7, 128, dtype=dtype), nn.Sigmoid())
        self.head = nn.utils.skip_init(nn.Linear, 128, classes, dtype=dtype)
        self.accuracy: dict[str, float] = {}

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def classifier(seed: int = 0, classes: int = 10, dtype: torch.dtype = torch.float32) -> Classifier:
    """The published MNIST classifier, untrained: 5 × 5 convolutions of 8 channels, sigmoids, max pooling, 128 features.

    Args:
        seed: initialises the parameters without touching torch's global generator.
        classes: number of logits.
        dtype: of parameters and images.

    Source: Terashita et al., ICLR 2021, appendix on experimental settings (MNIST).

    >>> classifier().features(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 128])
    """
    module = Classifier(classes, dtype).eval()
    glorot(module, torch_stream("classifier", seed))
    return module


def train_classifier(images: Tensor, labels: Tensor, seed: int = 0, steps: int = 1_500, test: tuple[Tensor, Tensor] | None = None,
                     cache: str | os.PathLike | None = None) -> Classifier:
    """Train the classifier: Adam, batches of 100, a learning rate that rises to 0.01 and falls to zero.

    Train it on images that the GAN does not train on, so that a metric does not know the GAN's training set.

    Args:
        images: (n, 1, 28, 28) in [-1, 1].
        labels: (n,) integers from 0.
        seed: of the initialisation and of the order of the images.
        steps: length of the training; with 10 000 MNIST images the default gives 98 % on the test images, in 20 seconds.
        test: images and labels to measure the accuracy on.
        cache: a folder to keep the classifier in. One that is there, of this version and trained on these images, is read
            instead of trained; any other is trained again, with a warning that says why.

    Returns:
        The classifier, in eval mode, its parameters fixed, on the images' device.

    Raises:
        ValueError: for images outside [-1, 1] or of another shape, and for labels that do not fit them.

    >>> images = torch.cat([torch.full((20, 1, 28, 28), -1.0), torch.full((20, 1, 28, 28), 1.0)])
    >>> labels = torch.arange(40) // 20
    >>> train_classifier(images, labels, steps=50).accuracy
    {'train': 1.0}
    """
    for part, (x, y) in {"training": (images, labels), "test": test or (images, labels)}.items():
        _check(part, x, y)
    labels, classes = labels.to(images.device), int(labels.max()) + 1
    made_from = {"classifier": VERSION, "images": fingerprint(images), "labels": fingerprint(labels), "shape": list(images.shape), "seed": seed, "steps": steps}
    if cache is not None and os.path.exists(os.path.join(cache, READABLE)):
        try:
            return load_classifier(cache, made_from).to(images.device)
        except ValueError as error:
            warnings.warn(f"{error}; it is trained again", stacklevel=2)

    module = classifier(seed, classes).to(images.device)
    order, waiting = torch_stream("classifier order", seed), []
    adam = torch.optim.Adam(module.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=0.01, total_steps=steps)
    for _ in progress(range(steps), desc="classifier", unit="step"):
        waiting = waiting or list(torch.randperm(len(images), generator=order).to(images.device).split(100))
        batch = waiting.pop()
        with torch.enable_grad():
            loss = F.cross_entropy(module(images[batch].float()), labels[batch])
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    module.requires_grad_(False)
    module.accuracy = {name: accuracy(module, *part) for name, part in (("train", (images, labels)), ("test", test)) if part}
    if cache is not None:
        header = {**made_from, "classes": classes, "accuracy": module.accuracy, "device": str(images.device), "versions": versions()}
        write_tensors(cache, READABLE, header, {name: p.cpu().contiguous() for name, p in module.state_dict().items()})
    return module


def load_classifier(cache: str | os.PathLike, made_from: dict | None = None) -> Classifier:
    """Read a classifier that `train_classifier` kept in a folder.

    Args:
        cache: the folder.
        made_from: what its header must say besides the version; nothing by default.

    Raises:
        ValueError: for a file that is truncated or foreign, of another version, or made from something else.
    """
    try:
        header, tensors = read_tensors(cache, READABLE, "cpu", {"classifier": int, "classes": int, "accuracy": dict})
    except ValueError as error:
        raise ValueError(f"{cache} does not hold a whole classifier: it may be truncated or foreign; remove it, and train again") from error
    for key, value in {"classifier": VERSION, **(made_from or {})}.items():
        if header.get(key) != value:
            what = "version" if key == "classifier" else key
            raise ValueError(f"{cache} holds a classifier of another {what}: the file says {header.get(key)}, wanted is {value}")
    module = classifier(classes=header["classes"])
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{cache} does not hold this classifier's parameters ({error}): remove it, and train again") from error
    module.accuracy = header["accuracy"]
    return module.requires_grad_(False)


def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of images whose largest logit is their label's.

    >>> accuracy(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 2]))
    0.75
    """
    with torch.no_grad():
        return float(torch.cat([module(part.float()).argmax(1) for part in images.split(1000)]).eq(labels.to(images.device)).double().mean())


def _check(part: str, images: Tensor, labels: Tensor | None) -> None:
    if labels is None or labels.shape != images.shape[:1] or labels.is_floating_point() or int(labels.min()) < 0:
        seen = "None" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"a classifier needs a label for every {part} image, ({len(images)},) integers from 0, got {seen}: "
                         "gi.data.mnist() and gi.data.digits() have labels")
    if images.shape[1:] != (1, 28, 28):
        raise ValueError(f"this classifier takes images (n, 1, 28, 28), but the {part} images are {tuple(images.shape)}: "
                         "resize them, or bring a network of your own")
    low, high = float(images.min()), float(images.max())
    if not -1 <= low <= high <= 1:
        raise ValueError(f"{part} images must lie in [-1, 1], as the generator makes them, but they lie in [{low:g}, {high:g}]: rescale them")
