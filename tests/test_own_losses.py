"""Losses of one's own: an auxiliary classifier GAN, recorded from an ordinary loop, against that loop with a lighter instance."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gan_influence as gi

N, BATCH, STEPS, CLASSES = 12, 4, 9, 3


class Labelled(nn.Module):
    """A generator of points for labels."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layers = nn.Embedding(CLASSES, 4), nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.layers(z * self.embedding(labels))


class TwoHeaded(nn.Module):
    """A discriminator that says how real a point is, and which label it has."""

    def __init__(self):
        super().__init__()
        self.body, self.real, self.label = nn.Sequential(nn.Linear(2, 8), nn.SiLU()), nn.Linear(8, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.real(h), self.label(h)


class Auxiliary(gi.GAN):
    """Odena et al., ICML 2017: both players pay for labels that the discriminator does not recognise."""

    def discriminator_losses(self, real, fake, x, z):
        return (real if real is None else F.softplus(-real[0].flatten()) + F.cross_entropy(real[1], x[1], reduction="none"),
                fake if fake is None else F.softplus(fake[0].flatten()) + F.cross_entropy(fake[1], z[1], reduction="none"))

    def generator_losses(self, fake, z):
        return F.softplus(-fake[0].flatten()) + F.cross_entropy(fake[1], z[1], reduction="none")


def faces(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(N, 2, dtype=torch.float64), torch.arange(N) % CLASSES


def loop(weights: Tensor, gamma: float, recorded: bool = False):
    """An ordinary loop, instance j's terms times weights[j]; returns the generator, or a recorder."""
    x, y = faces()
    torch.manual_seed(1)
    G, D = Labelled().double(), TwoHeaded().double()
    opt_g, opt_d = (torch.optim.Adam(module.parameters(), 1e-2, (0.5, 0.9), eps=1e-4) for module in (G, D))
    recorder = gi.Recorder(G, D, opt_g, opt_d, (x, y)) if recorded else None
    for t in range(STEPS):
        rows = torch.arange(t * BATCH, (t + 1) * BATCH) % N
        real, w = x[rows].requires_grad_(gamma > 0), weights[rows]
        labels = torch.randint(CLASSES, (BATCH,))
        fake = G(torch.randn(BATCH, 4, dtype=torch.float64), labels)
        judged, label = D(real)
        each = F.softplus(-judged.flatten()) + F.cross_entropy(label, y[rows], reduction="none")
        if gamma:
            slope, = torch.autograd.grad(judged.sum(), real, create_graph=True)
            each = each + gamma / 2 * slope.square().sum(1)
        on_fake, label = D(fake.detach())
        opt_d.zero_grad()
        ((w * each).mean() + F.softplus(on_fake).mean() + F.cross_entropy(label, labels)).backward()
        opt_d.step()
        on_fake, label = D(fake)
        opt_g.zero_grad()
        (F.softplus(-on_fake).mean() + F.cross_entropy(label, labels)).backward()
        opt_g.step()
    return recorder or G


def metric(gan: gi.GAN, state: gi.State) -> Tensor:
    return gan.generate(state, (gan.sample_latents(12, 1), torch.arange(12) % CLASSES)).square().mean()


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_an_auxiliary_classifier_gan_is_recorded_and_traced(gamma):
    run = loop(torch.ones(N, dtype=torch.float64), gamma, recorded=True).trajectory(gan=Auxiliary, penalty=gi.R1(gamma) if gamma else None)
    found, j, small = gi.influence(run, metric), 5, 1e-4
    values = []
    for sign in (-1, 1):
        weights = torch.ones(N, dtype=torch.float64)
        weights[j] += sign * small
        G = loop(weights, gamma)
        with torch.no_grad():
            values.append(float(G(run.gan.sample_latents(12, 1), torch.arange(12) % CLASSES).square().mean()))
    assert float(found[j]) == pytest.approx(-(values[1] - values[0]) / (2 * small), rel=1e-5)  # what rounding leaves of a difference


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_many_leave_outs_are_one_after_another(gamma):
    gan = Auxiliary(Labelled().double(), TwoHeaded().double(), 4, penalty=gi.R1(gamma) if gamma else None)
    run = gi.train(gan, faces(), 2, BATCH, gi.Adam(1e-2))
    assert torch.allclose(gi.leave_one_out(run, metric, [1, 5, 8]), torch.stack([
        metric(gan, next(iter(gi.retrain(run, [[j]])))) for j in (1, 5, 8)]) - metric(gan, run.final), atol=1e-12)
