"""Approximate implicit differentiation against closed forms, dense matrices and the unrolled run; and what it refuses."""

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import gan_influence as gi
from gan_influence.models.lqgan import Affine
from gan_influence.models.lqgan import Quadratic as Linear
from gan_influence.readings.influence import metric_gradient

IMPLICIT = sys.modules["gan_influence.readings.implicit"]


class Quadratic:
    """V(a, b) = a² + 3b, through the generator's samples at the latents ±1."""

    name, higher_is_better = "a² + 3b", True

    def __call__(self, gan, state):
        high, low = gan.generate(state, torch.tensor([[1.0], [-1.0]], dtype=gan.dtype))
        return (((high - low) / 2) ** 2 + 3 * (high + low) / 2).sum()


class Mean:
    """The mean of what is generated, plus its mean square."""

    name, higher_is_better = "mean", True

    def __call__(self, gan, state):
        made = gan.generate(state, gan.sample_latents(20, seed=1))
        return (made + made**2).mean()


def relative_error(a, b):
    return float((a - b).abs().max() / b.abs().max())


def standard(a):
    return (a - a.mean()) / a.std(unbiased=False)


def lqgan_run(optimizer, steps=1, order="simultaneous", variant="wasserstein", rho=5.0, batches=1, first=0, gan=None, b=1.0, **rules):
    """A recording at the optimum (b = 1): every epoch goes round `batches` of equal mean and variance, beginning with the `first`."""
    random = np.random.default_rng(0)
    x = torch.cat([1 + 2 * standard(torch.from_numpy(random.normal(size=(12, 1)))) for _ in range(batches)])
    z = torch.stack([standard(torch.from_numpy(random.standard_normal((12, 1)))) for _ in range(batches)])
    gan = gan or gi.models.lqgan(variant, rho=rho)
    d = {name: torch.zeros_like(p) for name, p in gan.state().discriminator.items()}
    optimum = gi.State({"a": torch.tensor([2.0]).double(), "b": torch.tensor([b]).double()}, d)
    which = (torch.arange(steps) + first) % batches
    return gi.Trajectory.from_recording(gan, x, torch.arange(12 * batches).view(batches, 12)[which], z[which], optimizer, order, initial=optimum,
                                        verify=False, **rules)


def closed_form(run):
    return gi.models.lqgan_influence(run.x, 2 * 2.0, 3.0)


def settled_run(optimizer, epochs=1, batch_size=12, order="alternating", loss="non_saturating", **rules):
    """A GAN of 19 parameters that decay holds: small enough for dense matrices."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gan = gi.GAN(nn.Linear(2, 2).double(), nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), latent_dim=2, loss=loss)
    return gi.train(gan, gi.data.normal_2d(train=12, valid=1, test=1, seed=3).train, epochs, batch_size, optimizer, order, seed=7, **rules)


def dense(run):
    """(I − mean Z, mean movement, minus the mean derivative by every instance's weight), by double backward over flat vectors."""
    like, epoch = run.final.tensors(), range(run.schedule.epoch_starts()[-1], run.steps)
    here = torch.cat([p.flatten() for p in like])
    z, moved, by_weight = 0, 0, torch.zeros(len(here), run.n, dtype=torch.float64)
    for t in epoch:
        def step(flat, weights, t=t):
            state = run.final.rebuild(part.view_as(p) for part, p in zip(flat.split([p.numel() for p in like]), like))
            return torch.cat([p.flatten() for p in run.dynamics.step(state, run.batch(t), weights).tensors()])

        by_state, by_row = torch.autograd.functional.jacobian(step, (here, run.weights(t)))
        z, moved = z + by_state / len(epoch), moved + (step(here, run.weights(t)).detach() - here) / len(epoch)
        by_weight[:, run.schedule.indices(t)] -= by_row / len(epoch)
    return torch.eye(len(here), dtype=torch.float64) - z, moved, by_weight


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("optimizer", [gi.SGD(0.1), gi.SGD(0.02, momentum=0.5), gi.SGD(0.02, momentum=0.5, nesterov=True)], ids=repr)
@pytest.mark.parametrize("variant", ["wasserstein", "non_saturating"])
@pytest.mark.filterwarnings("ignore:AID assumes that training stays")
def test_the_lqgan_has_its_closed_form(variant, optimizer, order):
    run = lqgan_run(optimizer, 2, order, variant)
    scores = gi.influence(run, Quadratic(), method="aid", tolerance=1e-11)
    assert relative_error(scores, closed_form(run)) < 1e-8
    assert scores.diagnostics.residual <= 1e-11 and scores.diagnostics.gradient_norm < 1e-13 and abs(scores.diagnostics.drift) < 1e-13


def test_single_precision_is_solved_in_double():
    run = lqgan_run(gi.SGD(1e-3), gan=gi.models.lqgan("wasserstein", rho=5.0, dtype=torch.float32))
    assert run.final.generator["a"].dtype == torch.float32
    assert relative_error(gi.influence(run, Quadratic(), method="aid", tolerance=1e-9), closed_form(run).double()) < 1e-6


@pytest.mark.parametrize("optimizer, order, batches, steps", [(gi.SGD(0.05), "simultaneous", 2, 800), (gi.SGD(0.05), "alternating", 1, 800),
                                                              (gi.SGD(0.02, momentum=0.5), "alternating", 1, 1500)])
def test_it_is_what_a_long_unrolled_run_comes_to(optimizer, order, batches, steps):
    """In a repeated epoch a later batch counts a little more; on average over where in the epoch it comes, nothing is left of that."""
    runs = [lqgan_run(optimizer, steps, order, rho=2.0, batches=batches, first=first) for first in range(batches)]
    unrolled = sum(gi.influence(run, Quadratic()) for run in runs) / batches
    assert relative_error(gi.influence(runs[0], Quadratic(), method="aid", tolerance=1e-9), unrolled) < 1e-6


def test_a_moving_average_comes_to_the_same():
    run = lqgan_run(gi.SGD(0.1), average=0.9)
    assert relative_error(gi.influence(run, Quadratic(), method="aid", tolerance=1e-10), closed_form(run)) < 1e-8


def test_a_rotating_game_is_damped_where_training_itself_would_spiral_out():
    run = lqgan_run(gi.SGD(0.1), rho=1.5)
    with pytest.warns(UserWarning, match="has spectral radius 1.0.*above 1: lower the learning rate"):
        scores = gi.influence(run, Quadratic(), method="aid", tolerance=1e-10)
    values = np.linalg.eigvals(dense(run)[0])
    assert np.abs(values.imag).max() > np.abs(values.real).max() and np.abs(1 - values).max() > 1  # the undamped series diverges
    assert np.abs(1 - scores.diagnostics.alpha * values).max() < 1
    assert relative_error(scores, closed_form(run)) < 1e-8


def test_a_tiny_learning_rate_needs_no_more_terms():
    seen = {rate: gi.influence(run := lqgan_run(gi.SGD(rate)), Quadratic(), method="aid", tolerance=1e-8) for rate in (1e-2, 1e-6)}
    small, tiny = seen[1e-2].diagnostics, seen[1e-6].diagnostics
    assert tiny.iterations <= 1.1 * small.iterations < 1000 and tiny.alpha == pytest.approx(1e4 * small.alpha, rel=1e-3) and tiny.alpha > 1e3
    assert relative_error(seen[1e-6], closed_form(run)) < 1e-7


@pytest.mark.parametrize("optimizer, rho", [(gi.SGD(0.1), 0.0), (gi.SGD(0.1), -0.5), (gi.SGD(0.02, momentum=0.9), 1.0), (gi.Adam(0.01), 5.0)])
def test_refused_where_no_damping_helps(optimizer, rho):
    """Purely imaginary eigenvalues; repelling ones, of the game or by momentum; Adam where gradients vanish and it divides by nothing."""
    run = lqgan_run(optimizer, 3, rho=rho)
    assert np.linalg.eigvals(dense(run)[0]).real.min() < 1e-12
    with pytest.raises(FloatingPointError, match="settled where it attracts, but I − Zᵀ.* eigenvalue .*diverges under any damping: train until it settles"):
        gi.influence(run, Quadratic(), method="aid")


def test_refused_where_the_estimate_missed_what_repels(monkeypatch):
    monkeypatch.setattr(IMPLICIT, "DIRECTIONS", 1)
    with pytest.raises(FloatingPointError, match="AID assumes that training has settled where it attracts, but .*diverges"):
        gi.influence(lqgan_run(gi.SGD(0.1), rho=-0.5), Quadratic(), method="aid", iterations=3000)


def test_a_direction_that_nothing_reaches_is_no_reason_to_refuse():
    class WithBias(Linear):
        def __init__(self):
            super().__init__(torch.zeros(1, 2).double())
            self.bias = nn.Parameter(torch.zeros(1).double())

        def forward(self, x):
            return super().forward(x) + self.bias

    run = lqgan_run(gi.SGD(0.1), gan=gi.GAN(Affine(1.0, 0.0, torch.float64), WithBias(), 1, loss="wasserstein", weight_decay=5.0))
    assert np.abs(np.linalg.eigvals(dense(run)[0])).min() < 1e-15
    scores = gi.influence(run, Quadratic(), method="aid", tolerance=1e-11)
    assert relative_error(scores, closed_form(run)) < 1e-8 and scores.diagnostics.smallest_real_part > 0.01


@pytest.mark.parametrize("optimizer, epochs, batch_size", [
    (gi.SGD(0.2, weight_decay=0.2), 60, 12), (gi.SGD(0.2, weight_decay=0.2), 60, 4), (gi.SGD(0.1, momentum=0.5, weight_decay=0.2), 60, 4),
    (gi.Adam(1e-2, betas=(0.5, 0.9), weight_decay=1.0), 60, 12), (gi.Adam(1e-2, betas=(0.5, 0.9), weight_decay=1.0), 20, 4)])
@pytest.mark.filterwarnings("ignore:AID assumes")
def test_scores_and_diagnostics_are_those_of_the_dense_matrix(optimizer, epochs, batch_size):
    run = settled_run(optimizer, epochs, batch_size)
    matrix, moved, by_weight = dense(run)
    g = torch.cat([p.flatten() for p in metric_gradient(run, Mean()).tensors()])
    w, values = torch.linalg.solve(matrix.T, g), np.linalg.eigvals(matrix)
    assert values.real.min() > 1e-4
    scores = gi.influence(run, Mean(), method="aid", tolerance=1e-9)
    seen = scores.diagnostics
    assert relative_error(scores, by_weight.T @ w) < 1e-6
    assert seen.smallest_real_part == pytest.approx(values.real.min(), rel=1e-5)
    assert seen.spectral_radius == pytest.approx(np.abs(values).max(), rel=1e-6)
    assert seen.step_radius == pytest.approx(np.abs(1 - values).max(), rel=1e-6)
    assert seen.drift == pytest.approx(float(w @ moved), rel=1e-5)
    assert seen.gradient_norm == pytest.approx(float(moved[:19].norm()) / run.learning_rates[0][0], rel=1e-9)
    assert np.abs(1 - seen.alpha * values).max() < 1 and seen.residual < 1e-9 and seen.iterations % (12 // batch_size) == 0


@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.filterwarnings("ignore:AID assumes")
def test_an_estimate_that_missed_the_largest_eigenvalues_is_repeated(directions, monkeypatch):
    run = settled_run(gi.SGD(0.2, weight_decay=0.2), 60)
    expected = gi.influence(run, Mean(), method="aid", tolerance=1e-10)
    monkeypatch.setattr(IMPLICIT, "DIRECTIONS", directions)
    assert relative_error(gi.influence(run, Mean(), method="aid", tolerance=1e-10), expected) < 1e-7


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_the_drift_is_what_training_has_yet_to_do(order):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = lqgan_run(gi.SGD(0.02), order=order, b=1.001)
        seen = gi.influence(run, Quadratic(), method="aid", tolerance=1e-9).diagnostics
    assert seen.drift == pytest.approx(2.0**2 + 3 - float(Quadratic()(run.gan, run.final)), rel=1e-2)
    with pytest.warns(UserWarning, match="settling would still change the metric by -.*, more than the removal of any instance .*train longer"):
        gi.influence(lqgan_run(gi.SGD(0.02), order=order, b=3.0), Quadratic(), method="aid", tolerance=1e-9)


def test_every_metric_has_its_own_diagnostics():
    run = lqgan_run(gi.SGD(0.1))
    both = gi.influence(run, {"quadratic": Quadratic(), "mean": Mean()}, method="aid", tolerance=1e-9)
    alone = gi.influence(run, Mean(), method="aid", tolerance=1e-9)
    assert torch.equal(both["mean"], alone) and both["mean"].diagnostics == alone.diagnostics
    assert isinstance(both["quadratic"].diagnostics, tuple) and both["quadratic"].diagnostics._fields == alone.diagnostics._fields
