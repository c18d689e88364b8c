"""How the board's settings are trained: from a setting and a seed, the run and its metrics, always the same."""

import torch
from torch import Tensor, nn

from .. import data
from ..game.gan import GAN
from ..metrics import AverageLogLikelihood, FrechetDistance
from ..tools.noise import dice
from ..training.making import train
from ..training.optimizers import Adam
from . import experiments
from .released import Question
from .settings import SETTINGS, Setting


def ask(setting: str, seed: int, device: str = "cpu") -> Question:
    """Train a setting of the board and ask what its methods are asked: a question with run, metric, last_epochs, held_out and seed.

    Raises:
        ValueError: for a setting that does not exist.

    >>> ask("2d-tanh", seed=0).run  # doctest: +SKIP
    Trajectory(400 steps = 20 epochs of batch 100, n=2000, simultaneous, a state every 10 steps, 2.0 MiB)
    """
    if setting not in SETTINGS:
        raise ValueError(f"the board's settings are {', '.join(SETTINGS)}, but {setting!r} was asked for")
    config = SETTINGS[setting][0]
    return question(config, prepare(config, seed, device), seed)


def question(config: Setting, setup: experiments.Setup, seed: int) -> Question:
    """The question that a setup of a setting stands for."""
    (metric,) = setup.valid.values()
    return Question(setup.run, metric, config.last_epochs, setup.data.valid.to(setup.run.rows.device), seed)


def prepare(config: Setting, seed: int, device: str = "cpu", folder=None) -> experiments.Setup:
    """Train a setting's GAN and build its metric, on validation and on test data; nothing is kept in a folder."""
    if not config.adam:
        setup = experiments.prepare(config, seed, device)
        name = next(iter(setup.valid))
        return setup._replace(valid={name: setup.valid[name]}, test={name: setup.test[name]})
    experiments.check_device(device)
    if config.data == "faces":
        shares = {"glasses": 0.5, "hat": 0.3, "beard": 0.3}
        parts = data.faces(config.n, config.held_out, config.held_out, seed, 16, shares, dtype=torch.float64)
        features, gan = face_features(parts, shares, seed).to(device), face_gan(seed, config.width)
    else:
        parts, features, gan = data.normal_2d(config.n, config.held_out, config.held_out, seed), None, normalised_gan(seed)
    gan.to(device)
    rule = Adam(config.learning_rate, betas=(0.5, 0.999))
    run = train(gan, parts.train.to(device), config.epochs, config.batch_size, rule, config.order, seed)

    def metric(x: Tensor, part: int) -> dict:
        x, latents = x.to(device), gan.sample_latents(config.latents, seed, part)
        return {AverageLogLikelihood.name: AverageLogLikelihood(x, latents)} if features is None else {
            FrechetDistance.name: FrechetDistance(features, x, latents)}

    return experiments.Setup(run, metric(parts.valid, 1), metric(parts.test, 2), parts, None, None)


def normalised_gan(seed: int, hidden: int = 16) -> GAN:
    """A smooth GAN on the plane with batch normalisation in both players."""
    with dice(seed, torch.device("cpu")):
        generator = nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.Tanh(), nn.Linear(hidden, 2))
        discriminator = nn.Sequential(nn.Linear(2, hidden), nn.BatchNorm1d(hidden), nn.Tanh(), nn.Linear(hidden, 1))
    return GAN(generator.double(), discriminator.double(), latent_dim=4)


def face_gan(seed: int, width: int, latent_dim: int = 16) -> GAN:
    """A small smooth DCGAN for 16 × 16 colours with batch normalisation in both players; kernels from N(0, 0.02²), as published for DCGAN."""
    with dice(seed, torch.device("cpu")):
        generator = nn.Sequential(
            nn.Unflatten(1, (latent_dim, 1, 1)), nn.ConvTranspose2d(latent_dim, 2 * width, 4, bias=False), nn.BatchNorm2d(2 * width), nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())
        discriminator = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.SiLU(), nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 1, 4), nn.Flatten())
        for layer in (*generator, *discriminator):
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(layer.weight, 0, 0.02)
    return GAN(generator.double(), discriminator.double(), latent_dim)


def face_features(parts: data.Faces, attributes, seed: int) -> nn.Module:
    """Sixteen features of a classifier of some attributes, trained on held-out faces."""
    present = (parts.labels.valid[:, [list(parts.attributes).index(name) for name in attributes]] > 0).double()
    with dice(seed, torch.device("cpu")):
        layers = nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 16), nn.Sigmoid()
        features, head = nn.Sequential(*layers).double(), nn.Linear(16, present.shape[1]).double()
        adam = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=5e-3)
        for _ in range(400):
            rows = torch.randint(len(present), (100,))
            adam.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(head(features(parts.valid[rows])), present[rows]).backward()
            adam.step()
    return features.requires_grad_(False).eval()
