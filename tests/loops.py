"""Training loops as practitioners write them, in plain PyTorch: the judge of what a recorder makes of them. Nothing here knows the package.

Each is a function of a world that holds fresh networks, data, and a weight per row. All weights are one in ordinary training; zero drops the row (the loss
still divides by B), 1 ± ε perturbs it. Weights never change what is drawn at random.
"""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

LOOPS: dict[str, "Loop"] = {}

class Loop(NamedTuple):
    function: Callable
    build: Callable  #: () -> generator, discriminator, data
    expected: str  #: "exact", "exact or refused", or "refused"
    latents: Callable  #: () -> what the generator makes the metric's samples of: a tensor, or a tuple of them
    options: dict  #: what a recorder's trajectory() may need to be told: loss="bce", penalty=("R1", {"gamma": 2.0})

class World:
    """What a loop is given: `G, D, x, w = world`, and `world.start(...)`, the one line where a recorder would be made."""

    def __init__(self, name: str, weights: dict[int, float], start: Callable | None, change: Callable):
        self.name, self.hook, self.average, self.recorder, self.dtype = name, start, None, None, torch.get_default_dtype()
        self.G, self.D, self.x = LOOPS[name].build()
        self.x, self.weight = change(self.x), torch.ones(len(self.x[0] if isinstance(self.x, tuple) else self.x))
        for j, weight in weights.items():
            self.weight[j] = weight

    def __iter__(self):
        return iter((self.G, self.D, self.x, self.weight))

    def start(self, G, D, opt_g, opt_d, average=None) -> None:
        self.average, self.recorder = average, self.hook(self, G, D, opt_g, opt_d, average) if self.hook else None

@contextmanager
def real_pass(D: nn.Module, w: Tensor):
    """In it, D's batch normalisation counts row i w[i] times; where all are one, torch's own runs."""
    layers = [] if (w == 1).all() else [m for m in D.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for layer in layers:
        layer.forward = partial(weighted_batch_norm, layer, w)
    yield
    for layer in layers:
        del layer.forward

def weighted_batch_norm(layer: nn.Module, w: Tensor, x: Tensor) -> Tensor:
    rows = x.movedim(1, -1).flatten(0, -2)  # whatever is no channel is a row
    w = w.repeat_interleave(len(rows) // len(x))[:, None]
    m = w.sum()
    mean = (w * rows).sum(0) / m
    variance = (w * (rows - mean) ** 2).sum(0) / m
    with torch.no_grad():
        layer.running_mean += layer.momentum * (mean - layer.running_mean)
        layer.running_var += layer.momentum * (variance * m / (m - 1) - layer.running_var)
        layer.num_batches_tracked += 1
    return (layer.weight * (rows - mean) / (variance + layer.eps).sqrt() + layer.bias).reshape(x.movedim(1, -1).shape).movedim(-1, 1)

@contextmanager
def surroundings(dtype: torch.dtype, seed: int):
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

def run_loop(name: str, dtype: torch.dtype = torch.float64, weights: dict[int, float] = {}, start=None, change=lambda x: x) -> World:  # noqa: B006
    """Train with these rows' weights; `start(world, G, D, opt_g, opt_d, average)` is called before the first iteration, `change(x)` gives other data."""
    with surroundings(dtype, seed=1):
        world = World(name, weights, start, change)
        LOOPS[name].function(world)
    return world

def latents(name: str, dtype: torch.dtype = torch.float64):
    with surroundings(dtype, seed=2):
        return LOOPS[name].latents()

def score(samples: Tensor) -> Tensor:
    """The metric, of samples alone: smooth, and of no symmetry that could hide anything."""
    flat = samples.flatten(1)
    direction = torch.cos(1.3 * torch.arange(flat.shape[1], dtype=torch.float64)).to(flat)
    return torch.tanh(flat @ direction / flat.shape[1] ** 0.5 + 0.3).mean() + 0.2 * flat.square().mean()

@torch.no_grad()
def value(world: World) -> float:
    """The metric of the generator that one would deploy: evaluation mode, the average where there is one."""
    generator, z = copy.deepcopy(world.G if world.average is None else world.average).eval(), latents(world.name, world.dtype)
    return float(score(generator(*z) if isinstance(z, tuple) else generator(z)))

@cache
def value_at(name: str, j: int, weight: float, dtype: torch.dtype = torch.float64) -> float:
    return value(run_loop(name, dtype, {j: weight}))

def left_out(name: str, j: int, dtype: torch.dtype = torch.float64) -> float:
    """V(without j) - V(with)."""
    return value_at(name, j, 0.0, dtype) - value_at(name, 0, 1.0, dtype)

def slope(name: str, j: int, eps: float = 1e-3) -> float:
    """Minus the central difference by row j's weight: what influence predicts."""
    return -(value_at(name, j, 1 + eps) - value_at(name, j, 1 - eps)) / (2 * eps)

def ring(n: int = 32) -> Tensor:
    angle = 2.4 * torch.arange(n)
    return torch.stack([angle.cos(), 0.6 * angle.sin()], 1) + 0.2 * torch.randn(n, 2)

def blobs(n: int = 32) -> Tensor:
    row, column = torch.exp(-3 * (torch.linspace(-1, 1, 8) - 0.8 * torch.rand(2, n, 1) + 0.4) ** 2)
    return (1.6 * row[:, :, None] * column[:, None] - 0.8)[:, None]

def mlp(*sizes: int, act=nn.Tanh, last=(), wrap=lambda layer: layer) -> nn.Sequential:
    return nn.Sequential(*[*chain(*([wrap(nn.Linear(a, b)), act()] for a, b in zip(sizes, sizes[1:])))][:-1], *(kind() for kind in last))

def plain(generator: Callable = lambda: mlp(3, 8, 2), n: int = 32, **options):
    return generator(), mlp(2, 8, 5, 1, **options), ring(n)

def normed(eps: float = 1e-5, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6, bias), nn.BatchNorm1d(6, eps), nn.SiLU(), nn.Linear(6, 6, bias), nn.BatchNorm1d(6, eps), nn.SiLU(), nn.Linear(6, 2))

def both_normed():
    return normed(), nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.SiLU(), nn.Linear(6, 1)), ring()

def convolutions(*last: type[nn.Module]):
    G = nn.Sequential(nn.ConvTranspose2d(4, 3, 4, bias=False), nn.BatchNorm2d(3), nn.SiLU(), nn.ConvTranspose2d(3, 1, 4, 2, 1, bias=False), nn.Tanh())
    D = [nn.Conv2d(1, 2, 4, 2, 1, bias=False), nn.SiLU(), nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 1, 2, bias=False)]
    return G, nn.Sequential(*D, *(kind() for kind in last)), blobs()

class Conditional(nn.Sequential):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self[1](torch.cat([self[0](labels), x], -1))

class SharedDeviation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, (x.var(0) + 1e-8).sqrt().mean().expand(len(x), 1)], 1)

class Noise(nn.PReLU):  # for its one parameter, the strength
    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * torch.randn_like(x) if self.training else x

def loop(build: Callable, expected: str = "exact", latents: Callable = lambda: torch.randn(24, 3), **options):
    def register(function: Callable, name: str = "") -> Callable:
        LOOPS[name or function.__name__] = Loop(function, build, expected, latents, options)
        return function
    return register

def conditional_nets():
    return Conditional(nn.Embedding(3, 2), mlp(5, 8, 2)), Conditional(nn.Embedding(3, 2), mlp(4, 8, 4, 1)), (ring(), torch.arange(32) % 3)

image_loop = partial(loop, latents=lambda: torch.randn(24, 4, 1, 1))
label_loop = partial(loop, conditional_nets, latents=lambda: (torch.randn(24, 3), torch.arange(24) % 3), loss="least_squares")

def epochs(k: int, n: int = 32, batch: int = 8) -> list[Tensor]:
    return [i for _ in range(k) for i in torch.randperm(n).split(batch)]

def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

def adams(world, lr=0.02, betas=(0.5, 0.999), kind=Adam, **options):
    return kind(world.G.parameters(), lr, betas, **options), kind(world.D.parameters(), lr, betas, **options)

# The loops, each in its own hand.

@loop(plain)
def sgd(world):
    G, D, x, w = world
    opt_d, opt_g = SGD(D.parameters(), lr=0.3), SGD(G.parameters(), lr=0.3)
    world.start(G, D, opt_g, opt_d)
    for i in epochs(3):
        descend(opt_d, (w[i] * F.softplus(-D(x[i])[:, 0])).sum() / len(i) + F.softplus(D(G(torch.randn(8, 3)).detach())).mean())
        descend(opt_g, F.softplus(-D(G(torch.randn(8, 3)))).mean())

@image_loop(convolutions)
def dcgan(world, bce=cross_entropy, looks=False):
    netG, netD, x, w = world
    optimizerG, optimizerD = adams(world, lr=0.03)
    world.start(netG, netD, optimizerG, optimizerD)
    for i in epochs(2):
        real_label, fake_label = torch.full((8,), 1.0), torch.full((8,), 0.0)
        netD.zero_grad()
        with real_pass(netD, w[i]):
            output = netD(x[i]).view(-1)
        bce(output, real_label, weight=w[i]).backward()
        fake = netG(torch.randn(8, 4, 1, 1))
        bce(netD(fake.detach()).view(-1), fake_label).backward()
        optimizerD.step()
        descend(optimizerG, bce(netD(fake).view(-1), real_label))
        if looks:
            netG(torch.randn(5, 4, 1, 1)).detach()  # as pytorch/examples does: in training mode, so running statistics move

@loop(partial(plain, partial(normed, 0.8, True), act=nn.SiLU, last=[nn.Sigmoid]), loss="bce")
def generator_first(world):
    generator, discriminator, x, w = world
    adversarial_loss, draw, (optimizer_G, optimizer_D) = nn.BCELoss(), np.random.default_rng(0), adams(world)
    world.start(generator, discriminator, optimizer_G, optimizer_D)
    for i in epochs(3):
        valid, fake = torch.ones(len(i), 1), torch.zeros(len(i), 1)
        gen = generator(torch.tensor(draw.normal(0, 1, (len(i), 3))).to(x))
        descend(optimizer_G, adversarial_loss(discriminator(gen), valid))
        real_loss = F.binary_cross_entropy(discriminator(x[i]), valid, weight=w[i, None])
        descend(optimizer_D, (real_loss + adversarial_loss(discriminator(gen.detach()), fake)) / 2)

@loop(partial(plain, normed, act=lambda: nn.Sequential(nn.SiLU(), nn.Dropout(0.25))), latents=lambda: 2 * torch.rand(24, 3) - 1)
def lsgan(world):
    G, D, x, w = world
    mse, valid, fake, (opt_g, opt_d) = nn.MSELoss(), torch.ones(8, 1), torch.zeros(8, 1), adams(world, lr=0.01)
    world.start(G, D, opt_g, opt_d)
    for i in epochs(3):
        gen = G(torch.empty(8, 3).uniform_(-1, 1))
        descend(opt_g, mse(D(gen), valid))
        descend(opt_d, 0.5 * ((w[i, None] * (D(x[i]) - valid) ** 2).mean() + mse(D(gen.detach()), fake)))

@loop(partial(plain, act=nn.SiLU), loss="wasserstein")
def wgan(world):
    G, D, x, w = world
    opt_g, opt_d = RMSprop(G.parameters(), lr=0.01), RMSprop(D.parameters(), lr=0.01)
    world.start(G, D, opt_g, opt_d)
    for done, i in enumerate(epochs(3)):
        z = torch.randn(8, 3)
        descend(opt_d, -torch.mean(w[i, None] * D(x[i])) + torch.mean(D(G(z).detach())))
        for p in D.parameters():
            p.data.clamp_(-0.3, 0.3)
        if done % 3 == 0:
            descend(opt_g, -torch.mean(D(G(z))))

@loop(partial(plain, partial(normed, 0.8), act=nn.Softplus), loss="wasserstein", penalty=("GradientPenalty", {"weight": 10.0}))
def wgan_gp(world):
    generator, discriminator, x, w = world
    optimizer_G, optimizer_D = adams(world, lr=0.03, betas=(0.0, 0.9))
    world.start(generator, discriminator, optimizer_G, optimizer_D)
    for batch, i in enumerate(epochs(3)):
        z, alpha = torch.randn(8, 3), torch.rand(8, 1)
        fake = generator(z)  # not detached: what arrives at the generator is cleared before its own step
        real_validity, fake_validity = discriminator(x[i]), discriminator(fake)
        between = (alpha * x[i].data + (1 - alpha) * fake.data).requires_grad_(True)
        gradients, = torch.autograd.grad(discriminator(between), between, torch.ones(8, 1), create_graph=True, retain_graph=True, only_inputs=True)
        penalty = 10 * (w[i] * (gradients.norm(2, dim=1) - 1) ** 2).mean()
        descend(optimizer_D, -torch.mean(w[i, None] * real_validity) + torch.mean(fake_validity) + penalty)
        if batch % 3 == 0:
            descend(optimizer_G, -torch.mean(discriminator(generator(z))))

@loop(partial(plain, act=nn.Softplus), penalty=("R1", {"gamma": 2.0, "every": 4}))
def stylegan2(world):
    generator, discriminator, x, w = world
    g_ema = copy.deepcopy(generator).eval()
    g_optim, d_optim = Adam(generator.parameters(), lr=0.02, betas=(0.0, 0.99)), Adam(discriminator.parameters(), lr=0.02 * 4 / 5, betas=(0.0, 0.99 ** (4 / 5)))
    world.start(generator, discriminator, g_optim, d_optim, g_ema)
    for i in range(12):
        index = torch.randint(len(x), (8,))  # with replacement, so a row may come twice
        real = x[index]
        generator.requires_grad_(False), discriminator.requires_grad_(True)
        fake_pred, real_pred = discriminator(generator(torch.randn(8, 3))), discriminator(real)
        descend(d_optim, (w[index, None] * F.softplus(-real_pred)).mean() + F.softplus(fake_pred).mean())
        if i % 4 == 0:
            real.requires_grad = True
            real_pred = discriminator(real)
            grad_real, = torch.autograd.grad(outputs=real_pred.sum(), inputs=real, create_graph=True)
            descend(d_optim, (2.0 / 2 * (w[index] * grad_real.pow(2).reshape(8, -1).sum(1)).mean() * 4 + 0 * real_pred[0]).squeeze())
        generator.requires_grad_(True), discriminator.requires_grad_(False)
        descend(g_optim, F.softplus(-discriminator(generator(torch.randn(8, 3)))).mean())
        for average, p in zip(g_ema.parameters(), generator.parameters()):
            average.data.mul_(0.8).add_(p.data, alpha=1 - 0.8)

@loop(plain, penalty=("R1", {"gamma": 1.0}))
def r1(world, every=1, **options):
    G, D, x, w = world
    optG, optD = adams(world, lr=0.01, **options)
    world.start(G, D, optG, optD)
    for t, i in enumerate(epochs(3)):
        real = x[i].requires_grad_()
        out = D(real).squeeze(1)
        loss = (w[i] * F.softplus(-out)).mean() + F.softplus(D(G(torch.randn(8, 3)).detach())).mean()
        if t % every == 0:
            g, = torch.autograd.grad(out.sum(), real, create_graph=True)
            loss = loss + 0.5 * every * (w[i] * g.square().sum(1)).mean()
        descend(optD, loss)
        descend(optG, F.softplus(-D(G(torch.randn(8, 3)))).mean())

@loop(partial(plain, wrap=spectral_norm), loss="hinge")
def sngan(world):
    G, D, x, w = world
    optG, optD = adams(world, lr=0.01, betas=(0.0, 0.9))
    world.start(G, D, optG, optD)
    for _ in range(6):
        for _ in range(2):
            i = torch.randperm(len(x))[:6]
            d_fake, d_real = D(G(torch.randn(6, 3)).detach()), D(x[i])
            descend(optD, (w[i] * F.relu(1.0 - d_real).squeeze(-1)).mean() + F.relu(1.0 + d_fake).mean())
        descend(optG, -D(G(torch.randn(12, 3))).mean())  # twice as many

@label_loop()
def conditional(world, labels_of=lambda y: torch.randint(0, 3, (8,))):
    generator, discriminator, (x, y), w = world
    optimizer_G, optimizer_D = adams(world, lr=0.01)
    world.start(generator, discriminator, optimizer_G, optimizer_D)
    for i in epochs(3):
        gen_labels = labels_of(y[i])
        gen = generator(torch.randn(8, 3), gen_labels)
        descend(optimizer_G, F.mse_loss(discriminator(gen, gen_labels), torch.ones(8, 1)))
        d_real_loss = F.mse_loss(discriminator(x[i], y[i]), torch.ones(8, 1), reduction="none").squeeze(1).mul(w[i]).mean()
        d_fake_loss = F.mse_loss(discriminator(gen.detach(), gen_labels), torch.zeros(8, 1))
        descend(optimizer_D, (d_real_loss + d_fake_loss) / 2)

@loop(partial(plain, n=30))
def ragged(world):
    G, D, x, w = world
    opt_g, opt_d = SGD(G.parameters(), lr=0.1, momentum=0.6, dampening=0.2), SGD(D.parameters(), lr=0.1, momentum=0.6, weight_decay=0.01)
    world.start(G, D, opt_g, opt_d)
    loader = DataLoader(TensorDataset(x, w), batch_size=7, shuffle=True, drop_last=False)
    for real, weight in chain(loader, loader):
        fake = G(torch.randn(len(real), 3))
        descend(opt_d, F.softplus(-D(real).flatten()) @ weight / len(real) + F.softplus(D(fake.detach())).mean())
        descend(opt_g, F.softplus(-D(fake)).mean())

@loop(plain)
def one_pass(world):
    G, D, x, w = world
    opt_g, opt_d = adams(world, lr=0.01)
    world.start(G, D, opt_g, opt_d)
    for i in epochs(3):
        fake = G(torch.randn(8, 3))
        labels, weight = torch.cat([torch.ones(8, 1), torch.zeros(8, 1)]), torch.cat([w[i], torch.ones(8)])[:, None]
        descend(opt_d, cross_entropy(D(torch.cat([x[i], fake.detach()])), labels, weight))  # the mean over both halves
        descend(opt_g, cross_entropy(D(fake), torch.ones(8, 1)))

@loop(plain, loss="minimax")
def simultaneous(world):
    G, D, x, w = world
    opt_g, opt_d = SGD(G.parameters(), lr=0.3), SGD(D.parameters(), lr=0.3)
    world.start(G, D, opt_g, opt_d)
    for i in epochs(3):
        real, fake = D(x[i]).flatten(), D(G(torch.randn(8, 3))).flatten()
        d_loss, g_loss = -(w[i] * F.logsigmoid(real)).mean() - F.logsigmoid(-fake).mean(), F.logsigmoid(-fake).mean()
        opt_g.zero_grad(), opt_d.zero_grad()
        d_loss.backward(inputs=list(D.parameters()), retain_graph=True)
        g_loss.backward(inputs=list(G.parameters()))
        opt_g.step(), opt_d.step()

# One ordinary loop, with one thing more each time.

def usual(world, opt_g, opt_d, average=None, before=lambda t: None, after=lambda t: None, seen=lambda i, x: x, target=1.0, d_steps=1, g_steps=1):
    G, D, x, w = world
    world.start(G, D, opt_g, opt_d, average)
    for t, i in enumerate(epochs(3)):
        for _ in range(d_steps):
            opt_d.zero_grad()
            with real_pass(D, w[i]):
                real = cross_entropy(D(seen(i, x[i])).flatten(), torch.full((len(i),), target), w[i])
            (real + F.softplus(D(G(torch.randn(8, 3)).detach())).mean()).backward()
            before(t)
            opt_d.step()
        for _ in range(g_steps):
            descend(opt_g, F.softplus(-D(G(torch.randn(8, 3)))).mean())
        after(t)

@loop(both_normed)
def average_buffers_copied(world, d=0.8, keep=0.0):
    ema = copy.deepcopy(world.G)

    @torch.no_grad()
    def update(t):
        for p_avg, p in zip(ema.parameters(), world.G.parameters()):
            p_avg.mul_(d).add_(p, alpha=1 - d)
        for b_avg, b in zip(ema.buffers(), world.G.buffers()):
            b_avg.copy_(keep * b_avg + (1 - keep) * b if keep else b)
    usual(world, *adams(world), ema, after=update)

@loop(both_normed, "exact or refused")
def average_by_torch(world):
    ema = AveragedModel(world.G, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    usual(world, *adams(world), ema, after=lambda t: ema.update_parameters(world.G))

@loop(partial(plain, normed))
def looks_in_between(world):
    G, D, x, _ = world

    def look(t):
        G.eval(), D.eval()
        with torch.no_grad():
            G(torch.randn(9, 3)), D(x), D(x[:8]), D(G(torch.randn(8, 3)))
        G.train(), D.train()
        copy.deepcopy(G)(torch.randn(8, 3))
    usual(world, *adams(world), after=look)

def flip(i: Tensor, x: Tensor) -> Tensor:
    return torch.where(torch.rand(len(x), 1) < 0.5, -x, x)

def ordinary(world):
    usual(world, *adams(world))

@loop(plain)
def adamw_schedules(world):
    opt_g, opt_d = AdamW(world.G.parameters(), lr=0.02, weight_decay=0.1), AdamW(world.D.parameters(), lr=0.02, betas=(0.8, 0.99), weight_decay=0.2)
    falling, stairs = LambdaLR(opt_g, lambda t: 1 - t / 20), StepLR(opt_d, step_size=1, gamma=0.5)
    usual(world, opt_g, opt_d, after=lambda t: (falling.step(), stairs.step() if t % 4 == 3 else None))

@loop(plain)
def two_optimisers(world):
    opt_g, opt_d = Adam(world.G.parameters(), lr=0.01, weight_decay=0.01), SGD(world.D.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    usual(world, opt_g, opt_d, after=lambda t: opt_d.param_groups[0].update(lr=0.05 if t < 6 else 0.02))

@loop(plain)
def frozen(world):
    world.G[0].weight.requires_grad_(False), world.D[2].requires_grad_(False)
    usual(world, Adam([p for p in world.G.parameters() if p.requires_grad], 0.02), SGD(filter(lambda p: p.requires_grad, world.D.parameters()), 0.3))

loop(plain, penalty=("R1", {"gamma": 1.0, "every": 4}))(partial(r1, every=4, kind=AdamW, weight_decay=0.1), "r1_lazy_adamw")
label_loop()(partial(conditional, labels_of=lambda y: y), "conditional_labels_of_the_batch")
image_loop(partial(convolutions, nn.Sigmoid), loss="bce")(partial(dcgan, bce=F.binary_cross_entropy), "dcgan_probabilities")
image_loop(convolutions, "exact or refused")(partial(dcgan, looks=True), "looks_in_training_mode")
loop(both_normed)(partial(average_buffers_copied, keep=0.8), "average_buffers_averaged")
loop(partial(plain, wrap=nn.utils.spectral_norm))(lambda world: usual(world, *adams(world, betas=(0.0, 0.9)), d_steps=3), "old_spectral_norm_same_batch")
loop(lambda: (mlp(3, 8, 2), nn.Sequential(SharedDeviation(), *mlp(3, 8, 1)), ring()), "refused")(ordinary, "minibatch_deviation")
loop(lambda: plain(lambda: mlp(3, 8, 2, act=lambda: nn.Sequential(Noise(init=0.0), nn.Tanh()))), "exact or refused")(ordinary, "injected_noise")
for name, variation in {
    "parameter_groups": lambda world: usual(world, Adam([{"params": p, "lr": 0.01 * p.ndim} for p in world.G.parameters()]), SGD(world.D.parameters(), 0.2)),
    "amsgrad": lambda world: usual(world, *adams(world, betas=(0.5, 0.7), amsgrad=True)),
    "clipped_gradients": lambda world: usual(world, *adams(world), before=lambda t: nn.utils.clip_grad_norm_(world.D.parameters(), 0.1)),
    "flips": lambda world: usual(world, *adams(world), seen=flip),
    "flips_said": lambda world: usual(world, *adams(world), seen=lambda i, x: (world.recorder and world.recorder.drew(i), flip(i, x))[1]),
    "extra_generator_step": lambda world: usual(world, *adams(world), g_steps=2),
    "smoothed_labels": lambda world: usual(world, *adams(world), target=0.9),
    "reset_by_hand": lambda world: usual(world, *adams(world), after=lambda t: world.D[0].reset_parameters() if t == 5 else None),
    "autocast": torch.autocast("cpu", torch.bfloat16)(ordinary),
}.items():
    loop(plain, "exact or refused")(variation, name)
