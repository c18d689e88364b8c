"""Approximate implicit differentiation: influence at a fixed point of training, without the trajectory."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ..game.state import State
from ..training.trajectory import Trajectory

DIRECTIONS = 64  #: at most so many for an estimate of the spectrum
RESTARTS = 10  #: of a series that grows, each with a new estimate and at most half the damping
EPS = torch.finfo(torch.float64).eps
REMEDY = "train until it settles, lower the learning rate, add weight decay, or use method='itd'"


class Diagnostics(NamedTuple):
    """What AID saw at the final state. Z is the derivative of a step by the state, averaged over the last epoch; eigenvalues are those of
    I − Zᵀ which the metric's gradient reaches, estimated in at most 64 directions, so exact where the state has no more numbers than that."""

    gradient_norm: float  #: of a step's mean movement of both players' parameters, each per its learning rate: under SGD the gradient; 0 at a fixed point
    drift: float  #: what the metric would still change by, to first order, were training to settle; 0 at a fixed point
    smallest_real_part: float  #: of the eigenvalues; positive where some damping makes the series converge
    spectral_radius: float  #: largest modulus of the eigenvalues
    step_radius: float  #: largest modulus of Z's eigenvalues; below 1 where training itself is drawn to the fixed point
    alpha: float  #: the damping
    iterations: int  #: terms that were summed, each with one batch
    residual: float  #: ‖(I − Zᵀ)w − g‖ / ‖g‖ of the solution w that the scores are read from


def implicit(run: Trajectory, gradients: list[State], iterations: int, tolerance: float) -> list[Tensor]:
    """Influence at a fixed point of training, per gradient, each with its `diagnostics`.

    Every step of the last epoch is linearised at the final state, in float64; a full batch makes them one.

    Source: Terashita et al., TNNLS 2025 (AID); Saad, Iterative Methods for Sparse Linear Systems, 2003, 4.2.1 (damping), 6.3 (Arnoldi).
    """
    epoch, final, dynamics, scores = range(run.schedule.epoch_starts()[-1], run.steps), run.final.map(Tensor.double), run.double(), []
    # Second moments are measured by their own size, or their cotangents would drown the rest.
    sizes = [float(p.abs().mean()) or 1.0 if "_memory.exp_avg_sq." in name or "_memory.square_avg." in name else 1.0 for name, p in final.named().items()]

    @lru_cache(run.graphs_at_once)
    def linearized(t: int) -> tuple[State, Callable]:
        batch = run.batch(t)
        if run.gan is not None:
            batch = batch.double()
        return dynamics.linearize(final, batch, run.weights(t).double(), reusable=True)

    def flat(state: State) -> Tensor:
        return torch.cat([(p.double() * size).flatten() for p, size in zip(state.tensors(), sizes)])

    def pull(t: int, w: Tensor) -> tuple[Tensor, Tensor]:
        parts = w.split([p.numel() for p in final.tensors()])
        before, row = linearized(t)[1](final.rebuild(part.view_as(p) / size for part, p, size in zip(parts, final.tensors(), sizes)))
        return flat(before), row

    moved, slope = 0, 0
    for t in epoch:
        rates = [rate if isinstance(rate, float) else sum(rate) for rate in run.learning_rates[t]] if run.learning_rates else [1.0, 1.0]
        change = final.rebuild((p - q) / len(epoch) for p, q in zip(linearized(t)[0].tensors(), final.tensors()))
        moved = moved + torch.cat([(p / size).flatten() for p, size in zip(change.tensors(), sizes)])
        slope = slope + torch.cat([p.flatten() / (rate or 1.0) for own, rate in zip(change[:2], rates) for p in own.values()])
    for gradient in gradients:
        w, seen = _solve(flat(gradient), lambda t, w: pull(t, w)[0], epoch, iterations, tolerance)
        score = torch.zeros(run.n, dtype=torch.float64)
        for t in epoch:
            # A removal at the fixed point is felt in every epoch, by the batch that holds the instance: on average in 1/len(epoch) of the steps.
            score.index_add_(0, run.schedule.indices(t), -pull(t, w)[1].to("cpu", torch.float64) / len(epoch))
        score.diagnostics = found = Diagnostics(float(slope.norm()), float(w @ moved), *seen)
        if abs(found.drift) > (largest := float(score.abs().max())):
            warnings.warn(f"AID assumes that training has settled, but settling would still change the metric by {found.drift:.1e}, more than the removal of "
                          f"any instance ({largest:.1e}; gradient norm {found.gradient_norm:.1e}): train longer, or use method='itd'", stacklevel=3)
        if found.step_radius > 1 + 1e-9:
            warnings.warn(f"AID assumes that training stays where it has settled, but a step's derivative has spectral radius {found.step_radius:.6g}, "
                          "above 1: lower the learning rate, or use method='itd'", stacklevel=3)
        scores.append(score)
    return scores


def _solve(g: Tensor, pull: Callable[[int, Tensor], Tensor], epoch: range, iterations: int, tolerance: float) -> tuple[Tensor, tuple]:
    """w with (I − Zᵀ)w = g, Z the epoch's mean, by a damped Neumann series; and what was seen on the way.

    A pass over the epoch sums d ← d − α((I − Z_tᵀ)d − r), a fresh batch for each term, for what remains, r = g − (I − Zᵀ)w, to be added to w:
    so the noise of batches falls with r, and the end is that of the mean.
    """
    def operator(w: Tensor) -> Tensor:
        return w - sum(pull(t, w) for t in epoch) / len(epoch)

    size, directions = float(g.norm()) or 1.0, min(len(g), DIRECTIONS, max(1, iterations // len(epoch)))
    values = _eigenvalues(operator, g, directions) if g.any() else np.ones(1)
    w, r, alpha, residual, least, terms, restarts = torch.zeros_like(g), g, _damping(values), float(g.norm()) / size, 1.0, 0, 0
    while not residual <= max(tolerance, 4 * EPS * float(w.norm()) / size):
        if terms >= iterations or restarts > RESTARTS or not np.isfinite(residual):
            raise FloatingPointError(
                f"AID assumes a Neumann series that comes to rest, but after {terms} terms the last is still {residual:.1e} of the first "
                f"({tolerance:.1e} was wanted): allow more iterations, train until it settles, or use method='itd'" if residual <= 1 else
                f"AID assumes that training has settled where it attracts, but its Neumann series diverges (term {terms}, damping {alpha:.1e}): {REMEDY}")
        d = alpha * r
        for t in epoch[1:]:
            d = d - alpha * (d - pull(t, d) - r)
        w, terms = w + d, terms + len(epoch)
        r = g - operator(w)
        residual = float(r.norm()) / size
        least = min(least, residual)
        if residual >= 1e3 * least and np.isfinite(residual):
            values, restarts, least = np.concatenate([values, _eigenvalues(operator, r, directions)]), restarts + 1, residual  # what has grown was missed
            alpha = min(alpha / 2, _damping(values))
    return w, (float(values.real.min()), float(np.abs(values).max()), float(np.abs(1 - values).max()), alpha, terms, residual)


def _eigenvalues(operator: Callable[[Tensor], Tensor], start: Tensor, most: int) -> np.ndarray:
    """Eigenvalues that `start` reaches, of a Hessenberg matrix by Arnoldi's iteration; refuses those that no damping can serve."""
    basis, h = [start / start.norm()], np.zeros((most + 1, most))
    for k in range(most):
        q, known = operator(basis[k]), torch.stack(basis)
        for _ in range(2):
            overlaps = known @ q
            q, h[:k + 1, k] = q - overlaps @ known, h[:k + 1, k] + overlaps.cpu().numpy()
        h[k + 1, k] = float(q.norm())
        noise = 100 * EPS * max(1.0, np.abs(h).max())  # a step is the identity and a little: its rounding is that of 1
        if not h[k + 1, k] > noise:
            break
        basis.append(q / q.norm())
    if not np.isfinite(h).all():
        raise FloatingPointError("AID assumes a finite derivative at the end of the run, but pulling back through the last epoch gave a NaN or an infinity")
    values, left, right = scipy.linalg.eig(h[:k + 1, :k + 1], left=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        condition = 1 / np.abs((left.conj() * right).sum(0))  # by how much an eigenvalue's error exceeds the residual's
        bad = (values.real + condition * h[k + 1, k] * np.abs(right[-1]) <= 2 * condition * noise) & (condition < 1e8)
    if bad.any():
        raise FloatingPointError(f"AID assumes that training has settled where it attracts, but I − Zᵀ, Z being a step's derivative, has an eigenvalue "
                                 f"{values[bad][values[bad].real.argmin()]:.1e}, whose real part is not positive beyond rounding, so that its Neumann series "
                                 f"diverges under any damping: {REMEDY}")
    return values


def _damping(values: np.ndarray) -> float:
    """The α that makes the largest |1 − αλ| smallest, and a tenth less, for what the estimate missed."""
    values = values[values.real > 0] if (values.real > 0).any() else np.array([np.abs(values).max() or 1.0])
    real, square = values.real, np.abs(values) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        meet = 2 * np.subtract.outer(real, real) / np.subtract.outer(square, square)  # where two are equally large
    tried = np.concatenate([real / square, meet[np.isfinite(meet) & (meet > 0)]])
    return 0.9 * float(tried[np.abs(1 - np.outer(tried, values)).max(1).argmin()])
