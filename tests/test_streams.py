"""Random streams: what is held out is held out, so no two streams may share their numbers."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan
from gan_influence.tools.streams import PURPOSES, stream, torch_stream
from gan_influence.training import Schedule

SEEDS = [*range(100), 2**31, 2**32, 2**32 + 1, 2**64, 2**64 + 1, 2**128 - 1]
WITH_NUMBERS = "normal_2d", "mnist", "order", "discriminator latents", "generator latents", "latents", "faces"


def test_no_two_streams_share_their_first_numbers():
    streams = [(purpose, seed, *numbers) for purpose, seed in product(PURPOSES, SEEDS)
               for numbers in ([(0,), (1,), (2,), (3,)] if purpose in WITH_NUMBERS else [()])]
    first = {tuple(stream(*which).integers(2**63, size=2)) for which in streams}
    assert len(first) == len(streams)


def test_no_two_torch_streams_share_their_first_numbers():
    streams = list(product(("fcgan", "dcgan", "lqgan", "classifier", "classifier order"), SEEDS))
    assert len({float(torch.rand(1, generator=torch_stream(*which), dtype=torch.float64)) for which in streams}) == len(streams)


def test_what_is_drawn_for_one_purpose_is_drawn_for_no_other():
    """The numbers themselves, as the package's own functions draw them; each pair here coincided once."""
    gan, root = gi.models.fcgan(), np.linalg.cholesky(gi.data.COVARIANCE)
    drawn = []
    for seed in (0, 1, 2, 3, 2**32):
        drawn += [np.linalg.solve(root, (part.numpy() - gi.data.MEAN).T).T.ravel()[:8] for part in gi.data.normal_2d(20, 20, 20, seed=seed)]
        drawn += [gan.sample_latents(2, seed, part).numpy().ravel()[:8] for part in range(4)]
        schedule = Schedule(n=20, batch_size=2, epochs=2, latent_dim=10, shared=False, seed=seed)
        drawn += [z.numpy().ravel()[:8] for t in (0, 10) for z in schedule.latents(t)]
    drawn = np.round(np.array(drawn), 9)
    assert len(np.unique(drawn)) == drawn.size


def test_everything_is_drawn_from_a_named_stream():
    sources = {path: path.read_text() for path in Path(gi.__file__).parent.rglob("*.py") if path.name not in ("streams.py", "noise.py")}
    assert not [path for path, text in sources.items() if re.search(r"default_rng|manual_seed|np\.random\.\w+\(", text)]
    run = gi.train(tiny_gan(lambda: nn.Dropout(0.2)), tiny_data(), 1, 6, seed=3)  # what networks draw they draw under seeds (noise.py) that are drawn from one
    assert [run.batch(t).dice for t in range(2)] == [tuple(stream("noise", 3, t).integers(2**62, size=7).tolist()) for t in range(2)]


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, [0, 1], 2**128, None])
def test_a_seed_is_one_integer(seed):
    with pytest.raises(ValueError, match="a seed is an integer"):
        gi.models.fcgan().sample_latents(3, seed=seed)
    with pytest.raises(ValueError, match="a seed is an integer"):
        gi.data.normal_2d(2, 2, 2, seed=seed)
