"""Self-consumption: the curves of theory against the numbers published for them and against simulation; the study against itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gan_influence import data
from gan_influence.studies import autophagy  # noqa: F401, which gives its protocol prepare and measure
from gan_influence.studies.consumption import extinct, variance_of_generation
from gan_influence.studies.protocols import AUTOPHAGY, Autophagy, Consumption

TINY = replace(Consumption(), n=60, first_epochs=6, epochs=3, batch_size=20, generations=2, valid=20, held_out=50, latents=40, last_epochs=2)


@pytest.mark.parametrize("unbiased, mean, log", [(False, 0.1285, -4.194), (True, 1.0, -2.142)])
def test_the_variance_of_a_gaussian_that_eats_itself(unbiased, mean, log):
    found = variance_of_generation(20, 40, unbiased)
    assert found[0] == pytest.approx(mean, abs=5e-5) and np.log(found[1]) == pytest.approx(log, abs=1e-3)
    random, paths, t = np.random.default_rng(0), np.ones(20_000), 8
    for _ in range(t):
        paths = (np.sqrt(paths)[:, None] * random.standard_normal((len(paths), 20))).var(1, ddof=int(unbiased))
    expected, typical = variance_of_generation(20, t, unbiased)
    assert paths.mean() == pytest.approx(expected, abs=4 * paths.std() / len(paths)**0.5)
    assert np.log(paths).mean() == pytest.approx(np.log(typical), abs=4 * np.log(paths).std() / len(paths)**0.5)


def test_a_minority_that_is_estimated_again_and_again_dies_out():
    published = {100: (0.006, 0.41, 0.77), 1_000: (0.0, 1e-4, 0.085)}
    for n, values in published.items():
        for t, value in zip((1, 10, 40), values):
            assert extinct(0.05, n, t)[0] == pytest.approx(value, abs=5e-3)
        assert extinct(0.05, n, 10)[1] == pytest.approx(0.05 * 0.95 * (1 - 1 / n) ** 10, rel=1e-9)
    random, share = np.random.default_rng(0), np.full(20_000, 0.05)
    for _ in range(10):
        share = random.binomial(100, share) / 100
    assert (share == 0).mean() == pytest.approx(extinct(0.05, 100, 10)[0], abs=0.015) and share.mean() == pytest.approx(0.05, abs=0.003)
    with pytest.raises(ValueError, match="n is 4000: take 3000 or fewer"):
        extinct(0.05, 4_000, 1)


def values(config: Consumption, piece: str) -> list[float]:
    rows = config.measure(config.prepare(0), 0, piece, False)[0]["summary"]
    assert len(rows) == 3 * (config.generations + 1) and np.isfinite([row["value"] for row in rows]).all()
    return [row["value"] for row in rows]


def test_variants_begin_alike_and_part_by_what_they_are():
    found = [tuple(values(TINY, piece)) for piece in TINY.pieces]
    assert len({one[:3] for one in found}) == 1 and len({one[3:] for one in found}) == len(TINY.variants)


def test_leaving_out_nothing_is_doing_nothing():
    assert values(replace(TINY, drop=0.0), "cleansed") == values(TINY, "none") == values(replace(TINY, drop=0.0), "random drop")


@pytest.mark.parametrize("piece", ["MLE", "hypernetwork", "PLE 10"])
def test_two_normals_are_fitted_generation_by_generation(piece):
    config = Autophagy(n=100, generations=1, batch_size=50, steps=20)
    rows = config.measure(config.prepare(0), 0, piece, False)[0]["summary"]
    assert [row["round"] for row in rows] == [0, 0, 1, 1] and all(0 < row["value"] < 3 for row in rows)


def test_digits_are_generated_by_every_method(monkeypatch):
    monkeypatch.setattr(data, "mnist", lambda train, valid, test, seed: data.digits(900, 400, 400, seed))
    config = replace(AUTOPHAGY["digits"], n=40, ratios=(2,), steps=2, batch_size=10)
    start = config.prepare(0)
    assert [len(part) for part in start.train[2]] == [40, 20] and not torch.equal(start.test[3][:5], start.test[6][:5])
    shown = {piece: {row["metric"]: row["value"] for row in config.measure(start, 0, piece, False)[0]["summary"]} for piece in config.pieces}
    assert all({f"minority's share, shown {what}" for what in ("all", 3, 6)} <= set(found) for found in shown.values())
    assert all(found["judge's accuracy"] > 0.9 and 0 <= found["minority's share, shown all"] <= 1 for found in shown.values())
