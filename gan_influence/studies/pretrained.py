"""The style-based network that adapters sit on: how its recorded weights were made, and how they are read."""

import os
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save
from torch import Tensor

from .. import data
from ..game.gan import GAN
from ..game.penalties import R1
from ..metrics import SlicedWasserstein
from ..models.stylegan import stylegan
from ..tools.devices import check_device
from ..tools.files import write_atomically
from ..training.making import train
from ..training.optimizers import Adam
from .protocols import Pretraining
from .recording import recorded_tensors

WEIGHTS = "stylegan_faces"  #: the recorded pretrained weights
BETAS = 0.0, 0.99


class Workshop(NamedTuple):
    """A network that is pretrained, on what, what judges it, and where its last finished round is kept."""

    gan: GAN
    x: Tensor
    judge: SlicedWasserstein
    kept: Path


def prepare(config: Pretraining, seed: int, device: str = "cpu", folder: str | os.PathLike | None = None) -> Workshop:
    """Faces in the style that is pretrained on, and a fresh network for them."""
    check_device(device)
    gan = stylegan(seed, width=config.width, penalty=R1(config.gamma)).to(device)
    parts = data.faces(config.n, config.held_out, 0, seed, style=config.style)
    judge = SlicedWasserstein(parts.valid.to(device), gan.sample_latents(config.held_out, seed, 1), seed=seed)
    return Workshop(gan, parts.train.to(device), judge, Path(folder or ".") / "pretrained.safetensors")


def measure(config: Pretraining, workshop: Workshop, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict[str, Tensor]]:
    """One round, from where the last ended: a row with the distance to held-out faces, and the weights, of the generator its moving average."""
    number = int(piece.removeprefix("round "))
    gan = workshop.gan if number == 1 else holding(workshop.gan, load_file(workshop.kept))  # the networks go on, and not their average
    run = train(gan, workshop.x, config.epochs, config.batch_size, Adam(config.learning_rate, betas=BETAS), config.order, seed + number,
                stride=10**9, average=config.average)  # nobody traces it
    write_atomically(workshop.kept, save(run.final.named()))
    row = {"seed": seed, "round": number, "metric": workshop.judge.name, "value": float(workshop.judge(gan, run.final))}
    return {"summary": [row]}, run.final._replace(generator=run.final.average, average={}, generator_memory={}, discriminator_memory={}).named()


Pretraining.prepare, Pretraining.measure = prepare, measure  # here, because plain values are known without torch


def holding(gan: GAN, tensors: dict[str, Tensor]) -> GAN:
    """The same game, whose networks hold the tensors named "generator.…" and "discriminator.…"."""
    for player, module in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        module.load_state_dict({name.removeprefix(f"{player}."): p for name, p in tensors.items() if name.startswith(f"{player}.")})
    return GAN(gan.generator, gan.discriminator, gan.latent_dim, gan.loss_name, penalty=gan.penalty)


def pretrained(penalty: R1 | None = R1(10.0)) -> GAN:
    """The recorded network, pretrained on Pixel Art faces by `gan-influence record stylegan_faces`; FileNotFoundError without the repository's recordings."""
    return holding(stylegan(width=Pretraining().width, penalty=penalty), recorded_tensors(WEIGHTS))
