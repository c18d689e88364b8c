"""Image data sets: shapes, range, disjoint parts, and what happens where there is no data."""

import importlib
import sys

import numpy as np
import pytest
import torch
from images import mnist_root

import gan_influence as gi
from conftest import needs
from gan_influence.tools.vision import torchvision


def test_mnist_is_scaled_labelled_and_disjoint():
    whole = gi.data.mnist(mnist_root())
    assert [len(part) for part in whole[:3]] == [50_000, 10_000, 10_000] == [len(labels) for labels in whole.labels]
    assert whole.train.shape[1:] == (1, 28, 28) and whole.train.min() == -1 and whole.train.max() == 1 and whole.labels.train.dtype == torch.int64
    raw = torchvision().datasets.MNIST(mnist_root(), train=True)
    assert torch.equal(torch.cat([whole.labels.train, whole.labels.valid]).bincount(), raw.targets.bincount())  # every image once
    first = (raw.data[0].float() / 127.5 - 1 - torch.cat([whole.train, whole.valid])[:, 0]).abs().amax((1, 2))
    at = int(first.argmin())
    assert first[at] < 1e-6 and torch.cat([whole.labels.train, whole.labels.valid])[at] == raw.targets[0]


def test_mnist_parts_do_not_change_with_each_others_size(monkeypatch):
    monkeypatch.setenv("GAN_INFLUENCE_DATA", mnist_root())
    one, other = gi.data.mnist(train=30, valid=20, test=10), gi.data.mnist(train=40, valid=20, test=5)
    assert torch.equal(one.train, other.train[:30]) and torch.equal(one.valid, other.valid) and torch.equal(one.test[:5], other.test)
    assert not torch.equal(one.train, gi.data.mnist(train=30, seed=1).train)


def test_digits_are_scaled_labelled_and_disjoint():
    parts = gi.data.digits(seed=2)
    assert [len(part) for part in parts[:3]] == [1_197, 300, 300] == [len(labels) for labels in parts.labels] and parts.train.shape[1:] == (1, 28, 28)
    assert -1 <= parts.train.min() < -0.99 and 0.99 < parts.train.max() <= 1
    from sklearn.datasets import load_digits
    assert np.array_equal(torch.cat(parts.labels).bincount(), np.bincount(load_digits().target))
    assert torch.equal(parts.valid, gi.data.digits(seed=2).valid) and not torch.equal(parts.valid, gi.data.digits(seed=3).valid)
    ones, zeros = parts.train[parts.labels.train == 1].mean(0)[0], parts.train[parts.labels.train == 0].mean(0)[0]
    assert ones[14, 14] > 0 > zeros[14, 14]  # upright and centred: a one has ink in the middle, a zero has a hole


def test_asking_for_more_than_there_is():
    with pytest.raises(ValueError, match=r"60000 images.*but 60000 \+ 10000 and 10000"):
        gi.data.mnist(train=60_000)
    with pytest.raises(ValueError, match=r"has 1797 digits, but 1797 \+ 300 \+ 300"):
        gi.data.digits(train=1_797)


@pytest.mark.parametrize("make", [gi.data.normal_2d, gi.data.digits, gi.data.mnist])
def test_sizes_are_whole_numbers(make):
    for size in (-1, 2.5, True):
        with pytest.raises(ValueError, match=f"the number of valid instances is a whole number, 0 or more, but got {size}"):
            make(train=10, valid=size)


def offline(*arguments, **options):
    raise OSError("no route\nto host")


@needs("torchvision")
def test_no_network_and_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", offline)
    message = rf"MNIST is not in {tmp_path / 'MNIST' / 'raw'} and could not be downloaded.*set GAN_INFLUENCE_DATA.*gi.data.digits\(\)"
    with pytest.raises(FileNotFoundError, match=message):
        gi.data.mnist(tmp_path)
    monkeypatch.setenv("GAN_INFLUENCE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=message):
        gi.data.mnist()
    monkeypatch.delenv("GAN_INFLUENCE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=f"not in {tmp_path / 'cache' / 'gan_influence' / 'MNIST' / 'raw'}"):
        gi.data.mnist()


@needs("torchvision")
def test_mnist_is_read_as_torchvision_reads_it():
    datasets, root = torchvision().datasets, mnist_root()
    parts, kept = gi.data.mnist(root, train=7, valid=5, test=6), [datasets.MNIST(root, train=train) for train in (True, False)]
    whole = [(source.data[:, None] / 127.5 - 1, source.targets) for source in kept]
    for images, labels, (all_images, all_labels) in zip(parts[:3], parts.labels, (whole[0], whole[0], whole[1])):
        for image, label in zip(images, labels):
            assert label in all_labels[(all_images == image).flatten(1).all(1)]


def test_a_truncated_file_is_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, size in gi.data._MNIST_BYTES.items():
        (raw / name).write_bytes(bytes(size if "labels" in name else 1000))
    with pytest.raises(ValueError, match=rf"{raw / 'train-images-idx3-ubyte'} has 1000 of MNIST's 47040016 bytes: it is truncated or foreign; delete it"):
        gi.data.mnist(tmp_path)


@needs("torchvision")
def test_a_torchvision_that_imports_is_left_alone():
    package = torchvision()
    assert torchvision() is package and sys.modules["torchvision"] is package
    assert package.transforms.functional.to_pil_image(torch.zeros(1, 4, 4)).size == (4, 4)


@needs("torchvision")
def test_torchvision_is_repaired_only_for_the_failure_it_is_known_for(monkeypatch):
    package = torchvision()

    def failing(name):
        raise RuntimeError("something else")

    monkeypatch.setattr(importlib, "import_module", failing)
    with pytest.raises(RuntimeError, match="something else"):
        torchvision()
    assert sys.modules["torchvision"] is package

    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match="pip install torchvision, or use gi.data.digits"):
        gi.data.mnist("anywhere")
