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
from .faces import face_features, face_gan
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
