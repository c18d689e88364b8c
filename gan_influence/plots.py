"""Every figure of the notebooks, in one set of colours: real, generated, removed and retrained look the same everywhere."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_PALETTE = sns.color_palette("colorblind").as_hex()
COLORS = {"real": _PALETTE[0], "generated": _PALETTE[1], "removed": _PALETTE[3], "retrained": _PALETTE[2], "discriminator": "0.5"}
MARKERS = {"computed": "o", "recorded": "s", "published": "D"}


def _array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def axes(columns: int = 1, width: float = 4.6, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A row of axes in the notebooks' size and style."""
    figure, row = plt.subplots(1, columns, figsize=(width * columns, height), layout="constrained", squeeze=False)
    for one in row[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(row[0])


def points(ax: Axes, title: str, **sets) -> None:
    """Scatter 2D point sets by their role: `points(ax, "…", real=x, generated=fake, removed=worst)`."""
    sizes = {"removed": 22}
    for role, xy in sets.items():
        xy = _array(xy)
        ax.scatter(*xy.T, s=sizes.get(role, 5), alpha=1 if role == "removed" else 0.5, linewidths=0,
                   marker="X" if role == "removed" else "o", color=COLORS[role], label=f"{role} (n={len(xy)})")
    ax.set(xlabel="first coordinate", ylabel="second coordinate", title=title, aspect="equal")
    ax.legend(markerscale=1.5, frameon=False, fontsize="small")


def predicted_against_true(ax: Axes, predicted, true, title: str, unit: str = "nats per instance") -> None:
    """Influence against leave-one-out on equal axes, with the diagonal that perfect prediction would lie on."""
    predicted, true = _array(predicted), _array(true)
    reach = 1.05 * max(np.abs(predicted).max(), np.abs(true).max()) or 1.0
    ax.axline((0, 0), slope=1, color="0.7", linewidth=1, zorder=0, label="perfect prediction")
    ax.scatter(true, predicted, s=12, alpha=0.7, linewidths=0, color=COLORS["retrained"])
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title,
           xlabel=f"leave-one-out, {unit}", ylabel=f"influence, {unit}")
    ax.ticklabel_format(scilimits=(-2, 3))
    ax.legend(frameon=False, fontsize="small")


def rate(ax: Axes, x, y, slope: float, title: str, xlabel: str, ylabel: str) -> None:
    """Points on log axes beside a line of the slope that theory promises, through the last point."""
    x, y = _array(x), _array(y)
    ax.loglog(x, y, "o", color=COLORS["generated"], label="measured")
    ax.loglog(x, y[-1] * (x / x[-1]) ** slope, "-", color="0.7", zorder=0, label=f"slope {slope:g}")
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False, fontsize="small")


def curves(ax: Axes, series: Mapping[str, tuple[Sequence, Sequence, Sequence | None]], title: str, xlabel: str, ylabel: str) -> None:
    """Lines with error bars: {label: (x, mean, standard deviation or None)}; the first word of a label picks its marker."""
    for i, (label, (x, mean, spread)) in enumerate(series.items()):
        ax.errorbar(range(len(x)), mean, yerr=spread, marker=MARKERS.get(label.split()[0], "o"), linestyle=["-", "--", ":"][i % 3],
                    capsize=3, color=_PALETTE[[1, 0, 4, 2][i % 4]], label=label)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False, fontsize="small")


def matrix(ax: Axes, values, title: str, limit: float, blocks: Sequence[int] = (), labels: Sequence[str] = ()) -> None:
    """A matrix as an image on symmetric colour limits, cut into labelled blocks."""
    values = _array(values)
    image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    edges = np.cumsum([0, *blocks])
    for edge in edges[1:-1]:
        ax.axhline(edge - 0.5, color="black", linewidth=0.8)
        ax.axvline(edge - 0.5, color="black", linewidth=0.8)
    middles = (edges[1:] + edges[:-1]) / 2 - 0.5
    ax.set_xticks(middles, labels)
    ax.set_yticks(middles, labels)
    ax.set_title(title)
    ax.figure.colorbar(image, ax=ax, shrink=0.8)


def over_steps(ax: Axes, players: Mapping[str, Sequence], title: str, ylabel: str, event: tuple[int, str]) -> None:
    """One line per player over the training steps, on a log axis where zeros stay undrawn, with a labelled step marked."""
    for player, values in players.items():
        values = _array(values).astype(float)
        values[values == 0] = np.nan
        ax.plot(values, color=COLORS[{"generator": "generated"}.get(player, player)], label=player)
    ax.axvline(event[0], color="black", linestyle=":", linewidth=1, label=f"{event[1]} (step {event[0]})")
    ax.set(title=title, xlabel="training step", ylabel=ylabel, yscale="log", xlim=(0, len(values) - 1))
    ax.legend(frameon=False, fontsize="small")
