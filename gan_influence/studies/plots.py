"""Every figure of the notebooks, in one set of colours: real, generated, removed and retrained look the same everywhere."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_PALETTE = sns.color_palette("colorblind").as_hex()
COLORS = {"real": _PALETTE[0], "generated": _PALETTE[1], "removed": _PALETTE[3], "retrained": _PALETTE[2], "discriminator": "0.5"}
TASKS = {"training": "0.3", "influence": _PALETTE[2], "leave_one_out": _PALETTE[3]}  #: of what costs are measured
_METHODS = {"influence on average log-likelihood": _PALETTE[2], "influence on Fréchet distance": _PALETTE[2], "influence on Inception score": _PALETTE[4],
            "discriminator loss": _PALETTE[1], "isolation forest": _PALETTE[0], "random": _PALETTE[7],
            "exact": _PALETTE[2], "released 2025, damped": _PALETTE[5]}


def _array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _plane(ax: Axes, title: str) -> None:
    ax.set(xlabel="first coordinate", ylabel="second coordinate", title=title, aspect="equal")


def _legend(ax: Axes, **where) -> None:
    """A legend whose dots can be seen, however small and faint the many of the plot are."""
    for handle in ax.legend(frameon=False, fontsize="small", **where).legend_handles:
        handle.set_alpha(1)
        if hasattr(handle, "get_sizes"):
            handle.set_sizes(np.maximum(handle.get_sizes(), 25))


def _label(ax: Axes, loc: str = "best", **labels) -> None:
    ax.set(**labels)
    _legend(ax, loc=loc)


def axes(columns: int = 1, width: float = 4.6, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A row of axes in the notebooks' size and style."""
    figure, row = plt.subplots(1, columns, figsize=(width * columns, height), layout="constrained", squeeze=False)
    for one in row[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(row[0])


def filmstrip(panel: Callable[[Axes, object], None], values: Sequence, width: float = 3.4, height: float = 3.4) -> Figure:
    """What a slider shows, as a row: `panel(ax, value)` draws each; of one value it is what the slider itself draws.

    >>> figure = filmstrip(lambda ax, k: ax.set_title(f"k = {k}"), [1, 5])
    >>> [ax.get_title() for ax in figure.axes]
    ['k = 1', 'k = 5']
    """
    figure, row = axes(len(values), width, height)
    for ax, value in zip(row, values):
        panel(ax, value)
    return figure


def points(ax: Axes, title: str, **sets) -> None:
    """Scatter 2D point sets by their role: `points(ax, "…", real=x, generated=fake, removed=worst)`."""
    for role, xy in sets.items():
        xy = _array(xy)
        look = {"s": 22, "alpha": 1, "marker": "X"} if role == "removed" else {"s": 7, "alpha": 0.5, "marker": "^" if role == "generated" else "o"}
        ax.scatter(*xy.T, linewidths=0, color=COLORS[role], label=f"{role} (n={len(xy)})", **look)
    _plane(ax, title)
    _legend(ax, markerscale=2)


def images(ax: Axes, batch, title: str, marked: Sequence[int] = (), columns: int = 6) -> None:
    """Grey or colour images (n, 1 or 3, h, w) in [-1, 1] as a grid, row by row; the `marked` ones are framed."""
    framed = np.pad(_array(batch).transpose(0, 2, 3, 1), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
    n, height, width, channels = framed.shape
    sheet = np.ones((-(-n // columns) * height, columns * width, channels))
    for i, image in enumerate(framed):
        y, x = i // columns * height, i % columns * width
        sheet[y:y + height, x:x + width] = image
        if i in set(map(int, marked)):
            ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=COLORS["removed"], linewidth=2))
    ax.imshow(sheet[..., 0] if channels == 1 else (sheet.clip(-1, 1) + 1) / 2, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    ax.set(title=title, xticks=[], yticks=[])  # even of axes that are off, ticks would be laid out: half of the drawing
    ax.set_axis_off()


def predicted_against_true(ax: Axes, predicted, true, title: str, unit: str = "nats per instance") -> None:
    """Influence against leave-one-out on equal axes around zero, with the diagonal that perfect prediction would lie on."""
    predicted, true = _array(predicted), _array(true)
    largest = max(np.abs(predicted).max(), np.abs(true).max()) or 1.0
    power = int(np.floor(np.log10(largest)))
    unit, both = f"$10^{{{power}}}$ {unit}", np.concatenate([predicted, true, [0]]) / 10.0**power
    margin = 0.08 * (np.ptp(both) or 1.0)
    limits = both.min() - margin, both.max() + margin
    ax.axline((0, 0), slope=1, color="0.7", linewidth=1, zorder=0, label="perfect prediction")
    ax.scatter(true / 10.0**power, predicted / 10.0**power, s=12, alpha=0.7, linewidths=0, color=COLORS["retrained"])
    _label(ax, xlim=limits, ylim=limits, aspect="equal", title=title, xlabel=f"leave-one-out, {unit}", ylabel=f"influence, {unit}")


def rate(ax: Axes, x, y, slope: float, title: str, xlabel: str, ylabel: str) -> None:
    """Points on log axes beside a line of the slope that theory promises, through the last point."""
    x, y = _array(x), _array(y)
    ax.loglog(x, y, "o", color=COLORS["generated"], label="measured")
    ax.loglog(x, y[-1] * (x / x[-1]) ** slope, "-", color="0.7", zorder=0, label=f"slope {slope:g}")
    _label(ax, title=title, xlabel=xlabel, ylabel=ylabel)


def growth(ax: Axes, x, series: Mapping[str, Sequence], promised: Mapping[str, float], xlabel: str, prefix: str) -> dict[str, float]:
    """CPU seconds of `TASKS` on log axes, each beside a line of the slope that counting promises; returns the fitted slopes, {prefix: name}."""
    x, slopes = _array(x), {}
    for name, seconds in series.items():
        seconds, color, marker = _array(seconds), TASKS[name], dict(zip(TASKS, "Dos"))[name]
        slopes[f"{prefix}: {name}"] = np.polyfit(np.log(x), np.log(seconds), 1)[0]
        ax.loglog(x, seconds, marker, color=color, label=name.replace("_", "-"))
        ax.loglog(x, seconds[-1] * (x / x[-1]) ** promised[name], "-", color="0.7", zorder=0)
    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.minorticks_off()
    _label(ax, xlabel=xlabel, ylabel="CPU seconds")
    return slopes


def curves(ax: Axes, series: Mapping[str, tuple[Sequence, Sequence, Sequence | None]], title: str, xlabel: str, ylabel: str) -> None:
    """Lines with error bars: {label: (x, mean, standard deviation or None)}."""
    for i, (label, (x, mean, spread)) in enumerate(series.items()):
        look = {"marker": "osD^"[i % 4], "linestyle": ["-", "--", ":"][i % 3], "color": _PALETTE[[1, 0, 4, 2][i % 4]]}
        ax.errorbar(range(len(x)), mean, yerr=spread, capsize=3, label=label, **look)
    _label(ax, title=title, xlabel=xlabel, ylabel=ylabel)


def matrix(ax: Axes, values, title: str, limit: float, blocks: Sequence[int] = (), labels: Sequence[str] = ()) -> None:
    """A matrix as an image on symmetric colour limits, cut into labelled blocks."""
    values = _array(values)
    image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    edges = np.cumsum([0, *blocks])
    for line, edge in product((ax.axhline, ax.axvline), edges[1:-1]):
        line(edge - 0.5, color="black", linewidth=0.8)
    for ticks in (ax.set_xticks, ax.set_yticks):
        ticks((edges[1:] + edges[:-1]) / 2 - 0.5, labels)
    ax.set_title(title)
    ax.figure.colorbar(image, ax=ax, shrink=0.8)


def over_steps(ax: Axes, players: Mapping[str, Sequence], title: str, ylabel: str, event: tuple[int, str]) -> None:
    """One line per player over the training steps, on a log axis where zeros stay undrawn, with a labelled step marked."""
    for player, values in players.items():
        values = _array(values).astype(float)
        values[values == 0] = np.nan
        ax.plot(values, color=COLORS[{"generator": "generated"}.get(player, player)], linestyle="-" if player == "generator" else "--", label=player)
    ax.axvline(event[0], color="black", linestyle=":", linewidth=1, label=f"{event[1]} (step {event[0]})")
    _label(ax, title=title, xlabel="training step", ylabel=ylabel, yscale="log", xlim=(0, len(values) - 1))


def spectrum(ax: Axes, sets: Mapping[str, Sequence], title: str, learning_rate: float) -> None:
    """Eigenvalues λ of up to two Jacobians in the complex plane, with the circle |1 − ηλ| = 1 inside which a step contracts."""
    style = [{"marker": "o", "s": 36, "color": _PALETTE[4], "alpha": 0.7, "linewidths": 0}, {"marker": "x", "s": 36, "color": "0.4"}]
    for (label, values), look in zip(sets.items(), style):
        ax.scatter(_array(values).real, _array(values).imag, label=label, **look)
    frame = ax.axis()
    angle = np.linspace(-np.pi, np.pi, 2001)
    ax.plot((1 - np.cos(angle)) / learning_rate, np.sin(angle) / learning_rate, ":", color="black", linewidth=1, label="|1 − ηλ| = 1")
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.axis(frame)
    _label(ax, title=title, xlabel="real part of λ", ylabel="imaginary part of λ")


def scores(ax: Axes, xy, values, title: str, label: str) -> None:
    """Points coloured by a signed score on symmetric limits; the largest scores are drawn last, on top."""
    xy, values = _array(xy), _array(values)
    order, limit = np.argsort(np.abs(values)), np.quantile(np.abs(values), 0.98)
    drawn = ax.scatter(*xy[order].T, c=values[order], s=9, cmap="RdBu_r", vmin=-limit, vmax=limit, linewidths=0)
    _plane(ax, title)
    bar = ax.figure.colorbar(drawn, ax=ax, label=label, shrink=0.85)
    bar.formatter.set_powerlimits((-2, 3))  # one power of ten above the bar, not one a tick


def movement(ax: Axes, real, instance, samples, shifts, title: str, length: float = 0.6) -> None:
    """Where generated samples would move if one real instance were absent; the longest arrow is drawn `length` long."""
    real, instance, samples, shifts = (_array(a) for a in (real, instance, samples, shifts))
    longest = np.linalg.norm(shifts, axis=1).max()
    ax.scatter(*real.T, s=4, alpha=0.25, linewidths=0, color=COLORS["real"], label="real")
    ax.scatter(*instance, s=90, marker="X", color=COLORS["removed"], edgecolor="white", zorder=3, label="removed")
    ax.quiver(*samples.T, *(shifts * (length / longest if longest else 0)).T, angles="xy", scale_units="xy", scale=1, width=0.004,
              color=COLORS["generated"], label="generated, and where it would move")
    _plane(ax, f"{title}\nlongest arrow: {longest:.1e} in truth")
    _label(ax, "lower right")


def by_window(ax: Axes, series: Mapping[str, tuple[Sequence, Sequence, Sequence | None]], ylabel: str) -> None:
    """Scores of at most 1 against the window k on a log axis: {label: (k, mean, standard deviation or None)}; error bars end at 1."""
    looks = {"computed": ("o", "-", COLORS["generated"]), "recorded": ("s", "-", COLORS["retrained"]), "published": ("D", "--", "black")}
    for label, (k, mean, spread) in series.items():
        marker, line, color = looks[label.split()[0]]
        spread = None if spread is None else [spread, np.minimum(spread, 1 - _array(mean))]
        ax.errorbar(k, mean, yerr=spread, marker=marker, linestyle=line, capsize=3, color=color, label=label)
    ks = sorted({k for points, *_ in series.values() for k in points})
    _label(ax, "lower left", xscale="log", xlabel="window k, epochs", ylabel=ylabel, ylim=(0, 1.05))
    ax.set_xticks(ks, ks)
    ax.minorticks_off()


def by_fraction(ax: Axes, series: Mapping[str, tuple[Sequence, Sequence]]) -> None:
    """Kendall's tau against the removed fraction of an instance: {label: (fractions, tau)}."""
    for (label, (fractions, tau)), marker, color in zip(series.items(), "os", [COLORS["generated"], COLORS["retrained"]]):
        ax.semilogx(fractions, tau, marker=marker, color=color, label=label)
    _label(ax, "lower left", xlabel="removed fraction ε of each instance", ylabel="Kendall's τ with the influence", title="smaller removals, k = 1",
           ylim=(0, 1.05))


def by_removed(ax: Axes, series: Mapping[str, object], n: int, title: str, ylabel: str, published: Mapping[str, Sequence] | None = None,
               spread: bool = True) -> None:
    """Change of a metric against the removed fraction of `n` instances: {method: a DataFrame by n_removed with mean and std}.

    `published` holds "n_removed" and published means by method, drawn dashed in their method's colour, for the methods in `series`.
    """
    for i, (method, rows) in enumerate(series.items()):
        at, color = np.asarray(rows.index) / n, _METHODS[method]
        ax.errorbar(at, rows["mean"], yerr=rows["std"].fillna(0) if spread else None, marker="os^Dv"[i % 5], markersize=4, capsize=2, linewidth=1.2,
                    color=color, label=method)
        if published and method in published:
            ax.plot(np.asarray(published["n_removed"]) / n, published[method], "D--", markersize=3.5, linewidth=1, color=color)
    if published:
        ax.plot([], [], "D--", markersize=3.5, linewidth=1, color="0.3", label="published, in the same colours")
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    _label(ax, xlabel="removed fraction of the training set", ylabel=ylabel, title=title)


def removals(summary, metrics: Sequence[str], n: int, title: str, published: Mapping[str, Mapping] | None = None, limit: float | None = None) -> Figure:
    """A panel per metric as `by_removed` draws it, up to 70 % of `n`, with one legend below.

    `summary` is a DataFrame by (metric, method, n_removed), such as `over_seeds` returns; `published` has what `by_removed` takes, by metric.

    >>> import pandas as pd
    >>> index = pd.MultiIndex.from_product([["Fréchet distance"], ["random"], [1, 2]])
    >>> figure = removals(pd.DataFrame({"mean": [0.0, 0.1], "std": [0.1, 0.1]}, index), ["Fréchet distance"], 10, "a title")
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['random']
    """
    figure, row = axes(len(metrics), width=5.6, height=4.6)
    for ax, name in zip(row, metrics):
        rows = summary.loc[name]
        by_removed(ax, {method: part.droplevel(0) for method, part in rows[rows.index.get_level_values(1) <= 0.7 * n].groupby(level=0, sort=False)}, n,
                   title, f"change of the {name} on test data", (published or {}).get(name))
        ax.get_legend().remove()
        ax.set(xlim=(-0.02, 0.72), ylim=None if limit is None else (-limit, limit))
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def density_change(before, after, mean, covariance, title: str) -> Figure:
    """Contours of a normal density and of generated points before and after; and beside them, where mass came and went."""
    from scipy import stats
    before, after = _array(before), _array(after)
    figure, (left, right) = axes(2, width=5, height=4.2)
    low, high = np.quantile(np.vstack([before, after]), [0.001, 0.999], axis=0) + [[-1], [1]]
    grid = np.meshgrid(*(np.linspace(*span, 80) for span in zip(low, high)))
    places = np.stack([axis.ravel() for axis in grid])
    densities = {"true": stats.multivariate_normal(mean, covariance).pdf(places.T), "before": stats.gaussian_kde(before.T)(places),
                 "after": stats.gaussian_kde(after.T)(places)}
    for (label, values), role, style in zip(densities.items(), ("real", "generated", "retrained"), ("-", "--", ":")):
        ordered = np.sort(values)[::-1]
        levels = sorted(ordered[np.searchsorted(ordered.cumsum() / ordered.sum(), mass)] for mass in (0.3, 0.6, 0.9))
        left.contour(*grid, values.reshape(grid[0].shape), levels=levels, colors=[COLORS[role]], linestyles=style, linewidths=1.3)
        left.plot([], [], color=COLORS[role], linestyle=style, label=label)
    _label(left, "upper left")  # where the data, correlated, leave room
    change = (densities["after"] - densities["before"]).reshape(grid[0].shape)
    limit = np.abs(change).max()
    drawn = right.pcolormesh(*grid, change, cmap="RdBu_r", vmin=-limit, vmax=limit, shading="gouraud")
    figure.colorbar(drawn, ax=right, label="after − before, 1 / unit²", shrink=0.85)
    _plane(left, "contours around 30, 60 and 90 % of the mass")
    _plane(right, "change of the generated density")
    figure.suptitle(title)
    return figure


def gathered(table, x: str, y: str, by: Sequence[str] = (), published: Mapping[str, tuple[Sequence, Sequence]] | None = None, log: bool = False) -> Figure:
    """The figure of many runs: mean and standard deviation of `y` over all rows of one `x`, a line for each combination of `by`.

    `published` holds {label: (x values, y values)}, drawn dashed, in a line's colour where it has that line's label; `log` is for the x axis.
    """
    figure, (ax,) = axes(width=7, height=4.5)
    parts = dict(list(table.groupby(list(by), sort=False))) if by else {(): table}
    labels = {", ".join(value if isinstance(value, str) else f"{name} = {value}" for name, value in zip(by, key)) or y: part for key, part in parts.items()}
    colors = dict(zip([*labels, *(label for label in published or {} if label not in labels)], _PALETTE * 3))
    for label, part in labels.items():
        of_x = part.groupby(x)[y]
        ax.errorbar(of_x.mean().index, of_x.mean(), yerr=of_x.std(), marker="o", capsize=3, color=colors[label], label=f"{label} (n={of_x.size().max()})")
    for label, (at, values) in (published or {}).items():
        ax.plot(at, values, "D--", markersize=4, color=colors[label], label=f"{label}, published")
    _label(ax, xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), xscale="log" if log else "linear", title="mean ± standard deviation over seeds")
    return figure


def overview(table, scores, published: Mapping[str, Sequence]) -> Figure:
    """README's figure: influence against leave-one-out for one recorded run, and rank agreement against the window."""
    figure, (left, right) = axes(2, width=5, height=4)
    k = table.last_epochs.iloc[0]
    part = scores[(scores.seed == table.seed.iloc[0]) & (scores.last_epochs == k)]
    predicted_against_true(left, part.influence, part.leave_one_out, f"{len(part)} training points of a ReLU GAN, k = {k}")
    by_k = table.groupby("last_epochs").kendall_tau
    by_window(right, {f"recorded ({table.seed.nunique()} seeds)": (by_k.mean().index, by_k.mean().values, by_k.std().values),
                      "published (10 seeds)": (published["k"], published["kendall_tau"], None)}, "Kendall's τ")
    right.set_title("rank agreement with leave-one-out retraining")
    return figure
