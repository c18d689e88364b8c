"""The style-based network that adapters sit on: how its recorded weights were made, and how they are read."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .. import data
from ..game.gan import GAN
from ..game.penalties import R1
from ..metrics import SlicedWasserstein
from ..models.stylegan import stylegan
from ..tools.devices import check_device
from ..tools.noise import dice
from .protocols import Pretraining
from .recording import recorded_tensors

WEIGHTS = "stylegan_faces"  #: the recorded pretrained weights
BETAS = 0.0, 0.99


class Workshop(NamedTuple):
    """A network that is pretrained, on what, and what judges it."""

    gan: GAN
    x: Tensor
    judge: SlicedWasserstein


def fresh(config: Pretraining, seed: int, penalty: R1 | None) -> GAN:
    """A network with random parameters, whose discriminator is the narrower player."""
    wide, narrow = (stylegan(seed, width=width) for width in (config.width, config.discriminator_width))
    return GAN(wide.generator, narrow.discriminator, wide.latent_dim, penalty=penalty)


def prepare(config: Pretraining, seed: int, device: str = "cpu", folder=None) -> Workshop:
    """Faces in the style that is pretrained on, and a fresh network for them; nothing is kept in a folder."""
    check_device(device)
    gan = fresh(config, seed, R1(config.gamma)).to(device)
    parts = data.faces(config.n, config.held_out, 0, seed, style=config.style)
    return Workshop(gan, parts.train.to(device), SlicedWasserstein(parts.valid.to(device), gan.sample_latents(config.held_out, seed, 1), seed=seed))


def measure(config: Pretraining, workshop: Workshop, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict[str, Tensor]]:
    """The training: rows with the distance to held-out faces before and after it, and the weights, of the generator its moving average."""
    gan, judge = workshop.gan, workshop.judge
    row = {"seed": seed, "metric": judge.name, "before": float(judge(gan, gan.state()))}
    with dice(seed + 1, gan.device):
        average = pretrain(config, gan, workshop.x)
    after = gan.state()._replace(generator=average)
    return {"summary": [row | {"after": float(judge(gan, after))}]}, after.named()


def pretrain(config: Pretraining, gan: GAN, x: Tensor) -> dict[str, Tensor]:
    """Train a game's networks by an ordinary loop, as nobody will trace it; returns the generator's moving average.

    Source of the term that seeks variety: Mao et al., CVPR 2019, equation 3.
    """
    G, D = gan.networks
    average = {name: p.detach().clone() for name, p in G.named_parameters()}
    players = [torch.optim.Adam(module.parameters(), config.learning_rate, BETAS) for module in (G, D)]
    falling = [torch.optim.lr_scheduler.LambdaLR(adam, lambda epoch: min(1, 2 * (1 - epoch / config.epochs))) for adam in players]
    for _ in range(config.epochs):
        for rows in torch.randperm(len(x)).split(config.batch_size):
            real, z = x[rows].requires_grad_(), torch.randn(len(rows), gan.latent_dim, device=x.device)
            fake, judged = G(z), D(real)
            slope, = torch.autograd.grad(judged.sum(), real, create_graph=True)
            players[1].zero_grad()
            (softplus(-judged).mean() + softplus(D(fake.detach())).mean() + gan.penalty(slope.flatten(1)).mean()).backward()
            players[1].step()
            half = len(rows) // 2
            near, far = ((a[:half] - a[half:2 * half]).abs().flatten(1).mean(1) for a in (fake, z))
            players[0].zero_grad()
            (softplus(-D(fake)).mean() + config.seeking * (far / (near + 1e-3)).mean()).backward()
            players[0].step()
            with torch.no_grad():
                for name, p in G.named_parameters():
                    average[name].lerp_(p, 1 - config.average)
        for schedule in falling:
            schedule.step()
    return average


Pretraining.prepare, Pretraining.measure = prepare, measure  # here, because plain values are known without torch


def holding(gan: GAN, tensors: dict[str, Tensor]) -> GAN:
    """The same game, whose networks hold the tensors named "generator.…" and "discriminator.…"."""
    for player, module in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        module.load_state_dict({name.removeprefix(f"{player}."): p for name, p in tensors.items() if name.startswith(f"{player}.")})
    return GAN(gan.generator, gan.discriminator, gan.latent_dim, gan.loss_name, penalty=gan.penalty)


def pretrained(penalty: R1 | None = R1(10.0)) -> GAN:
    """The recorded network, pretrained on Pixel Art faces by `gan-influence record stylegan_faces`; FileNotFoundError without the repository's recordings."""
    return holding(fresh(Pretraining(), 0, penalty), recorded_tensors(WEIGHTS))
