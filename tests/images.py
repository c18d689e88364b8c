"""Images for tests: where MNIST lies, if it does, and a convolutional GAN small enough for float64."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import gan_influence as gi


def mnist_root() -> str:
    """The folder that holds MNIST/raw; skips the test where there is none."""
    for root in filter(None, (os.environ.get("GAN_INFLUENCE_DATA"), Path(__file__).parents[2] / "shared" / "data")):
        if (Path(root) / "MNIST" / "raw").is_dir():
            return str(root)
    pytest.skip("MNIST is not here: set GAN_INFLUENCE_DATA to the folder that holds MNIST/raw")


def tiny_images(n: int = 20, seed: int = 0) -> torch.Tensor:
    """Blobs at random places, (n, 1, 6, 6) float64 in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    centre, at = 5 * torch.rand(n, 2, 1, 1, generator=random, dtype=torch.float64), torch.arange(6, dtype=torch.float64)
    return (2 * torch.exp(-0.5 * ((at[:, None] - centre[:, 0]) ** 2 + (at - centre[:, 1]) ** 2)) - 1)[:, None]


def tiny_image_gan(device: str = "cpu", **options) -> gi.GAN:
    """Transposed convolutions against convolutions on images (1, 6, 6), built like `dcgan`, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.ConvTranspose2d(3, 4, 3), nn.Sigmoid(), nn.GroupNorm(1, 4),
                                  nn.ConvTranspose2d(4, 3, 2, 2), nn.Sigmoid(), nn.GroupNorm(1, 3), nn.Conv2d(3, 1, 1), nn.Tanh())
        discriminator = nn.Sequential(nn.Conv2d(1, 3, 2, 2), nn.Sigmoid(), nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.GroupNorm(1, 4),
                                      nn.Flatten(), nn.Linear(4, 1))
    return gi.GAN(generator.to(device, torch.float64), discriminator.to(device, torch.float64), latent_dim=3, **options)
