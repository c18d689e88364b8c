"""Self-consumption: each generation of a GAN trains on what the one before it made; what stops the drift, and what theory says of it."""

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.special import psi
from torch import Tensor

from ..game.gan import GAN
from ..game.state import State
from ..metrics import AverageLogLikelihood, FrechetDistance
from ..models import Hypernetwork, hypergan_state, hypergan_step
from ..readings.cleansing import random_scores
from ..readings.influence import harmfulness, influence
from ..readings.retraining import retrain
from ..tools.streams import stream
from ..training.making import train
from ..training.optimizers import SGD
from .minorities import minority_logit, mixture, plane_gan
from .protocols import Consumption


class Start(NamedTuple):
    """What the variants of one seed share."""

    real: Tensor  #: (n, 2), what generation 0 trains on
    valid: Tensor  #: few, real, the same in every generation
    test: Tensor


def prepare(config: Consumption, seed: int, device: str = "cpu", folder=None) -> Start:
    """Draw the real data."""
    return Start(*(mixture(n, seed, part, config.minority)[0] for part, n in enumerate((config.n, config.valid, config.held_out), 10)))


def measure(config: Consumption, start: Start, seed: int, piece: str, compile: bool) -> tuple[dict[str, list[dict]], dict]:
    """One variant: after every generation, what the test data say.

    Generation 0 trains on real data, every other one goes on from there on n instances that the one before it made. The variants:

    * none: nothing is done. random drop: a share of the instances is left out of the last epochs, whichever. cleansed: the share that influence on the
      likelihood of the real validation set calls most harmful. trained on validation: the validation set is among the instances instead. fresh: a tenth of
      the instances is drawn anew from the real distribution.
    * hypernetwork: from then on the generator's weights are made from the data; PLE: with the autophagy penalty.

    Returns:
        {"summary": a row per generation and metric}, and no tensors.
    """
    rows, judge_gan = [], plane_gan(seed)
    latents = judge_gan.sample_latents(config.latents, seed, 1)
    distance, likelihood = FrechetDistance(lambda x: x, start.test, latents), AverageLogLikelihood(start.test, latents, config.bandwidth)
    generations = _hypernetworks if piece in ("hypernetwork", "PLE") else _gans
    for t, (gan, state) in enumerate(generations(config, start, seed, piece)):
        with torch.no_grad():
            share = float((minority_logit(gan.generate(state, latents)) > 0).double().mean())
            found = {"Fréchet distance": float(distance(gan, state)), "likelihood": float(likelihood(gan, state)), "minority's share": share}
        rows += [{"seed": seed, "method": piece, "round": t, "metric": name, "value": value} for name, value in found.items()]
    return {"summary": rows}, {}


def _next(config: Consumption, start: Start, seed: int, piece: str, t: int, make) -> Tensor:
    """The training set of generation t: what make(n) gives, and what of it is real."""
    if not t:
        return start.real
    real = {"trained on validation": start.valid, "fresh": mixture(config.n // 10, seed, 100 + t, config.minority)[0]}.get(piece, start.valid[:0])
    with torch.no_grad():
        return torch.cat([make(config.n - len(real)), real])


def _gans(config: Consumption, start: Start, seed: int, piece: str):
    gan, state = plane_gan(seed), None
    z = gan.sample_latents(config.latents, seed, 2)
    metric = AverageLogLikelihood(start.valid, z, config.bandwidth)
    for t in range(config.generations + 1):
        x = _next(config, start, seed, piece, t, lambda n, t=t, gan=gan, state=state: gan.generate(state, gan.sample_latents(n, seed, 100 + t)))
        run = train(gan, x, config.epochs if t else config.first_epochs, config.batch_size, SGD(config.learning_rate), config.order, 1000 * seed + t)
        state = run.final
        if t and piece in ("cleansed", "random drop"):
            scores = harmfulness(influence(run, metric, config.last_epochs), metric) if piece == "cleansed" else random_scores(run.n, 1000 * seed + t)
            state = retrain(run, scores.topk(round(config.drop * run.n)).indices, config.last_epochs)
        yield gan, state
        gan.load(state)
        gan = GAN(gan.generator, gan.discriminator, gan.latent_dim)  # the next generation goes on from here


def _hypernetworks(config: Consumption, start: Start, seed: int, piece: str):
    gan, state = next(_gans(config, start, seed, "none"))
    yield gan, state
    gan.load(state)  # a hypernetwork that is untrained makes the module it was given, nearly
    random, penalty = stream("self-consumption", seed), config.penalty if piece == "PLE" else 0.0
    hyper = Hypernetwork(gan.generator, 2, (16, 16), (16,), activation=torch.nn.Tanh, seed=seed)
    step, state = hypergan_step(hyper, gan.discriminator, config.learning_rate, penalty=penalty), hypergan_state(hyper, gan.discriminator)
    for t in range(1, config.generations + 1):
        x = _next(config, start, seed, piece, t, lambda n, t=t, state=state: gan.generate(State(state.average, {}), gan.sample_latents(n, seed, 100 + t)))
        ones = torch.ones(len(x), dtype=x.dtype)
        with torch.no_grad():
            for _ in range(config.epochs):
                for batch in torch.from_numpy(random.permutation(len(x))).split(config.batch_size):
                    drawn = torch.from_numpy(random.standard_normal((3 if penalty else 1, len(batch), gan.latent_dim)))
                    state = step(state, (x[batch], drawn), ones[:len(batch)])
            state = step(state, (x, None), ones)
        yield gan, State(state.average, {})


def variance_of_generation(n: int, t, unbiased: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """What becomes of the variance of a Gaussian that is fitted to n samples of the generation before it, from 1 at t = 0.

    Args:
        n: samples a generation.
        t: generations.
        unbiased: divided by n − 1, as the PLE is; else by n, the maximum of the likelihood.

    Returns:
        Its mean, and the exponential of the mean of its logarithm, a typical path.

    Source: a fitted variance is the one before it times χ²(n − 1)/d; E ln χ²(n − 1) = ψ((n − 1)/2) + ln 2.

    >>> [float(v.round(4)) for v in variance_of_generation(20, np.array(40))]
    [0.1285, 0.0151]
    """
    d = n - 1 if unbiased else n
    return ((n - 1) / d) ** np.asarray(t), np.exp(np.asarray(t) * (psi((n - 1) / 2) + np.log(2 / d)))


def extinct(share: float, n: int, t: int) -> tuple[float, float]:
    """What becomes of a minority whose share is re-estimated from n samples a generation: nothing in the mean, and then nothing at all.

    Args:
        share: its share at the start.
        n, t: samples a generation, generations.

    Returns:
        The probability that it is gone after t generations, and E p(1 − p), which falls by 1 − 1/n each.

    Raises:
        ValueError: for n beyond a few thousand: the distribution of n + 1 counts is followed exactly.

    Source: the Wright–Fisher model without selection or mutation.

    >>> round(extinct(0.05, 100, 10)[0], 2)
    0.41
    """
    if n > 3_000:
        raise ValueError(f"the exact distribution takes n² numbers, and n is {n}: take 3000 or fewer, or simulate")
    counts, p = np.arange(n + 1), stats.binom.pmf(np.arange(n + 1), n, share)
    moves = stats.binom.pmf(counts[None, :], n, counts[:, None] / n)
    for _ in range(t - 1):
        p = p @ moves
    return float(p[0]), float(p @ (counts / n * (1 - counts / n)))


Consumption.prepare, Consumption.measure = prepare, measure
