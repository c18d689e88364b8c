"""The style-based network that adapters sit on: how its recorded weights were made, and how they are read."""

from typing import NamedTuple

from torch import Tensor

from .. import data
from ..game.gan import GAN
from ..game.penalties import R1
from ..metrics import SlicedWasserstein
from ..models.stylegan import stylegan
from ..tools.devices import check_device
from ..training.making import train
from ..training.optimizers import Adam
from .protocols import Pretraining
from .recording import recorded_tensors

WEIGHTS = "stylegan_faces"  #: the recorded pretrained weights
BETAS = 0.0, 0.99


class Workshop(NamedTuple):
    """A network that is pretrained, on what, and what judges it."""

    gan: GAN
    x: Tensor
    judge: SlicedWasserstein


def prepare(config: Pretraining, seed: int, device: str = "cpu", folder=None) -> Workshop:
    """Faces in the style that is pretrained on, and a fresh network for them; nothing is kept in a folder."""
    check_device(device)
    gan = stylegan(seed, width=config.width, penalty=R1(config.gamma)).to(device)
    parts = data.faces(config.n, config.held_out, 0, seed, style=config.style)
    return Workshop(gan, parts.train.to(device), SlicedWasserstein(parts.valid.to(device), gan.sample_latents(config.held_out, seed, 1), seed=seed))


def measure(config: Pretraining, workshop: Workshop, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict[str, Tensor]]:
    """The training: rows with the distance to held-out faces before and after it, and the weights, of the generator its moving average."""
    gan, judge = workshop.gan, workshop.judge
    run = train(gan, workshop.x, config.epochs, config.batch_size, Adam(config.learning_rate, betas=BETAS), config.order, seed + 1,
                stride=10**9, average=config.average)  # nobody traces it
    row = {"seed": seed, "metric": judge.name, "before": float(judge(gan, run.state(0))), "after": float(judge(gan, run.final))}
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
