"""What a hand browses: the mass that a cleansing moves, and both ends of a ranking with what is generated before and after."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .plots import _array, axes, images


class Mass(NamedTuple):
    """Densities of clouds of points in the plane, on one grid."""

    x: np.ndarray  #: (cells,)
    y: np.ndarray  #: (cells,)
    densities: np.ndarray  #: (m, cells, cells), 1 / unit²; the first is the one to compare with

    @property
    def largest(self) -> float:
        """Of all changes: so that one scale of colours serves every picture."""
        return float(np.abs(self.densities - self.densities[0]).max())


def masses(clouds: Sequence[Tensor], cells: int = 50) -> Mass:
    """Kernel density estimates of clouds of points, (n, 2) each, on a grid around the first of them.

    >>> import gan_influence as gi
    >>> points = gi.data.normal_2d(train=200, seed=0).train
    >>> mass = masses([points, points + 0.5], cells=40)
    >>> area = (mass.x[1] - mass.x[0]) * (mass.y[1] - mass.y[0])
    >>> [round(float(one.sum() * area), 1) for one in mass.densities], mass.largest > 0
    ([1.0, 1.0], True)
    """
    from scipy import stats
    clouds = [_array(cloud) for cloud in clouds]
    low, high = np.quantile(clouds[0], [0.001, 0.999], axis=0) + [[-1], [1]]
    x, y = (np.linspace(*span, cells) for span in zip(low, high))
    places = np.stack([axis.ravel() for axis in np.meshgrid(x, y)])
    return Mass(x, y, np.stack([stats.gaussian_kde(cloud.T)(places).reshape(cells, cells) for cloud in clouds]))


def moved_mass(ax: Axes, mass: Mass, i: int, title: str) -> None:
    """Where cloud i has more mass than the first (red, solid lines) and where less (blue, dashed lines); grey: the first one's density.

    >>> import torch
    >>> figure, (ax,) = axes()
    >>> moved_mass(ax, masses([torch.randn(50, 2), torch.randn(50, 2)], cells=9), 1, "after")
    >>> ax.get_title()
    'after'
    """
    change, limit = mass.densities[i] - mass.densities[0], mass.largest or 1.0
    ax.pcolormesh(mass.x, mass.y, change, cmap="RdBu_r", vmin=-limit, vmax=limit, shading="nearest", rasterized=True)
    ax.contour(mass.x, mass.y, mass.densities[0], levels=mass.densities[0].max() * np.array([0.1, 0.3, 0.5, 0.7, 0.9]), colors="0.6", linewidths=0.7)
    if np.abs(change).max() > limit / 4:
        ax.contour(mass.x, mass.y, change, levels=[-limit / 2, -limit / 4, limit / 4, limit / 2], colors="black", linewidths=1.1)  # negative ones dashed
    ax.set(title=title, xlabel="first coordinate", ylabel="second coordinate", aspect="equal")


def ranking(x: Tensor, scores: Tensor, before: Tensor, after: Tensor, title: str, removed: str, framed: Sequence[bool] = (), shown: int = 36) -> Figure:
    """Both ends of a ranking by harmfulness, and the same latents before and after its first were removed; framed: what changed most.

    Args:
        x: (n, 1 or 3, h, w), in [-1, 1]. scores: (n,), the largest are removed first.
        before, after: (m, 1 or 3, h, w), what is generated. removed: the title of `after`.
        framed: (n,), whether an instance is framed at the ends of the ranking. shown: so many at either end.

    >>> import torch
    >>> x = torch.zeros(8, 1, 4, 4)
    >>> figure = ranking(x, torch.arange(8.0), x, x + 1, "by size", "without 3", shown=2)
    >>> figure.get_suptitle(), [ax.get_title() for ax in figure.axes]
    ('by size', ['most harmful', 'most helpful', 'generated, before', 'without 3'])
    """
    figure, row = axes(4, width=2.9, height=0.6 + 2.9 * np.ceil(shown / 6) / 6)
    marked, change = np.asarray(framed, bool), _array(after) - _array(before)
    for ax, name, end in zip(row, ("most harmful", "most helpful"), (scores.argsort(descending=True)[:shown], scores.argsort()[:shown])):
        images(ax, x[end], name, np.flatnonzero(marked[end]) if len(marked) else ())
    most = np.argsort((change**2).reshape(len(change), -1).mean(1))[::-1][:6] if np.abs(change).max() else ()
    for ax, name, sheet in zip(row[2:], ("generated, before", removed), (before, after)):
        images(ax, sheet, name, most)
    figure.suptitle(title)
    return figure
