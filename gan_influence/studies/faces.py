"""Small networks for faces of 16 × 16 pixels: a GAN, and what sees attributes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import data
from ..game.gan import GAN
from ..tools.noise import dice


def face_gan(seed: int, width: int, latent_dim: int = 16, bend: Callable[[], nn.Module] = nn.SiLU) -> GAN:
    """A small DCGAN for 16 × 16 colours with batch normalisation in both players; kernels from N(0, 0.02²), as published for DCGAN."""
    with dice(seed, torch.device("cpu")):
        generator = nn.Sequential(
            nn.Unflatten(1, (latent_dim, 1, 1)), nn.ConvTranspose2d(latent_dim, 2 * width, 4, bias=False), nn.BatchNorm2d(2 * width), bend(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), bend(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())
        discriminator = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), bend(), nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), bend(),
            nn.Conv2d(2 * width, 1, 4), nn.Flatten())
        for layer in (*generator, *discriminator):
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(layer.weight, 0, 0.02)
    return GAN(generator.double(), discriminator.double(), latent_dim)


def face_features(parts: data.Faces, attributes, seed: int) -> nn.Module:
    """Sixteen features of a classifier of some attributes, trained on held-out faces."""
    present = (parts.labels.valid[:, [list(parts.attributes).index(name) for name in attributes]] > 0).double()
    return face_classifier(parts.valid, present, seed)[0]


def face_classifier(x: Tensor, present: Tensor, seed: int) -> nn.Sequential:
    """A classifier of 16 × 16 faces as two modules, sixteen features of a face and the logits of what is present, (n, attributes) 0 or 1."""
    with dice(seed, torch.device("cpu")):
        layers = nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 16), nn.Sigmoid()
        features, head = nn.Sequential(*layers).double(), nn.Linear(16, present.shape[1]).double()
        return taught(nn.Sequential(features, head), x, present, 400)


def taught(classifier: nn.Sequential, x: Tensor, present: Tensor, steps: int) -> nn.Sequential:
    """A classifier of what is present, (n, attributes) 0 or 1, trained by Adam on batches of 100 drawn from torch's generator; then constant."""
    adam = torch.optim.Adam(classifier.parameters(), lr=5e-3)
    for _ in range(steps):
        rows = torch.randint(len(present), (100,))
        adam.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(classifier(x[rows]), present[rows]).backward()
        adam.step()
    return classifier.requires_grad_(False).eval()
