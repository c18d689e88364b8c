"""The idea in one picture, the same in every notebook: how an instance reaches the metric, and how the metric is pulled back to it."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from .plots import COLORS

_NODES = {"x": ("$x_j$", "instance", "real"), "D": ("$D$", "discriminator", "discriminator"), "G": ("$G$", "generator", "generated"),
          "V": ("$V$", "metric", "retrained")}
_AT = {"x": 0.0, "D": 1.0, "G": 2.0, "V": 3.0}
_WORDS = {"forward": ("only $D$ sees it", "$G$ answers $D$", "$V$ looks at $G$"),
          "back": ("… of $x_j$: its influence", "… and so of $D$ …", "what $V$ asks of $G$ …")}
_SYMBOLS = {"forward": (r"$\partial_w\,\partial_D L_D$", r"$\partial_D\,\partial_G L_G$", r"$\nabla_G V$"),
            "back": (r"$\Delta V_j$", r"$u_D$", r"$u_G$")}
_OTHERS = {("D", "D"): r"$\partial_D\,\partial_D L_D$", ("G", "G"): r"$\partial_G\,\partial_G L_G$", ("G", "D"): r"$\partial_G\,\partial_D L_D$"}
_SIMULTANEOUS = ((r"$I-\eta_G J_{GG}$", r"$-\eta_G J_{GD}$", "$0$"), (r"$-\eta_D J_{DG}$", r"$I-\eta_D J_{DD}$", r"$-\eta_D\,\beta_j$"))
_ALTERNATING = (("$I-\\eta_G J'_{GG}$\n$+\\,\\eta_G\\eta_D\\,J'_{GD}\\,J_{DG}$", "$-\\eta_G J'_{GD}$\n$\\times\\,(I-\\eta_D J_{DD})$", r"$+\,\eta_G\eta_D\,J'_{GD}\,\beta_j$"),  # noqa: E501
                _SIMULTANEOUS[1])


def influence_path(symbols: bool = True, blocks: bool = False) -> Figure:
    """Draw x_j → D → G → V: tangents forward (solid), cotangents back (dashed), with formulas or in words; with `blocks`, the Jacobian's other three.

    >>> figure = influence_path(blocks=True)
    >>> [text.get_text() for text in figure.axes[0].texts if "L_G" in text.get_text()]
    ['$\\\\partial_D\\\\,\\\\partial_G L_G$', '$\\\\partial_G\\\\,\\\\partial_G L_G$']
    """
    figure, ax = plt.subplots(figsize=(9.2, 3.6 if blocks else 2.5), layout="constrained")
    ax.set(xlim=(-0.3, 3.3), ylim=(-0.95 if blocks else -0.55, 0.8 if blocks else 0.55))
    ax.set_axis_off()
    labels = _SYMBOLS if symbols else _WORDS
    for i, (start, end) in enumerate(zip("xDG", "DGV")):
        door = (start, end) == ("D", "G")
        _arrow(ax, _AT[start] + 0.22, _AT[end] - 0.22, 0.1, labels["forward"][i], -0.25, color=COLORS["removed"] if door else "black",
               linewidth=3 if door else 1.8)
        _arrow(ax, _AT[end] - 0.22, _AT[start] + 0.22, -0.1, labels["back"][i], -0.25, color="black", linewidth=1.5, linestyle=(0, (4, 2)))
    for (start, end), label in _OTHERS.items() if blocks else ():
        _other(ax, start, end, label)
    for name, (letter, word, role) in _NODES.items():
        ax.add_patch(FancyBboxPatch((_AT[name] - 0.17, -0.17), 0.34, 0.34, boxstyle="round,pad=0.03", facecolor="white", edgecolor=COLORS[role], linewidth=2.2))
        ax.text(_AT[name], 0.06, letter, ha="center", va="center", fontsize=18)
        ax.text(_AT[name], -0.12, word, ha="center", va="center", fontsize=8.5)
    ax.text(-0.2, ax.get_ylim()[1], "solid: a tangent is pushed forward, from one instance to everything", fontsize="small", va="top")
    ax.text(-0.2, ax.get_ylim()[0], "dashed: a cotangent is pulled back, from one metric to all instances", fontsize="small", va="bottom")
    return figure


def step_blocks() -> Figure:
    """Draw the derivative of one step, simultaneous beside alternating, cut into its 2 × 2 blocks and the column of one instance.

    J_RC is the block in row R and column C of the Jacobian of the two gradients, primed where the discriminator has already moved; β_j is the
    discriminator's part of the derivative by w_j.

    >>> [ax.get_title() for ax in step_blocks().axes]
    ['simultaneous', 'alternating: D first, then G']
    """
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 3.2), layout="constrained", width_ratios=[3, 4])
    for ax, title, table in zip(axes, ("simultaneous", "alternating: D first, then G"), (_SIMULTANEOUS, _ALTERNATING)):
        ax.set(xlim=(-0.5, 2.5), ylim=(1.5, -0.5), title=title, xticks=range(3), yticks=range(2),
               yticklabels=["generator's\nrow", "discriminator's\nrow"], xticklabels=[r"by $\theta_G$", r"by $\theta_D$", r"by $w_j$"])
        ax.tick_params(length=0)
        ax.xaxis.tick_bottom()
        for (row, column), extra in {(0, 1): "door", **({(0, 0): "extra", (0, 2): "extra"} if table is _ALTERNATING else {})}.items():
            look = {"facecolor": "#f7d9c4", "edgecolor": COLORS["removed"], "linewidth": 3} if extra == "door" else \
                {"facecolor": "#dce9f5", "edgecolor": COLORS["real"], "linewidth": 1.5, "hatch": "//"}
            ax.add_patch(plt.Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, **look))
        for row, column in ((row, column) for row in range(2) for column in range(3)):
            ax.text(column, row, table[row][column], ha="center", va="center", fontsize=11, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
        ax.axvline(1.5, color="black", linewidth=1.2)
    return figure


def _arrow(ax: Axes, start: float, end: float, height: float, label: str, bend: float, **look) -> None:
    """A bent arrow from left to right above the middle, or back below it, with its label outside."""
    ax.add_patch(FancyArrowPatch((start, height), (end, height), connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=16, **look))
    ax.text((start + end) / 2, 2.4 * height, label, ha="center", va="bottom" if height > 0 else "top", fontsize=11)


def _other(ax: Axes, start: str, end: str, label: str) -> None:
    """One of the blocks that neither open nor close the way: thin and grey."""
    if start == end:
        at = _AT[start]
        ax.add_patch(FancyArrowPatch((at - 0.12, 0.21), (at + 0.12, 0.21), connectionstyle="arc3,rad=-1.3", arrowstyle="-|>", mutation_scale=10, color="0.45"))
        ax.text(at, 0.46, label, ha="center", va="bottom", fontsize=9.5, color="0.3")
    else:
        ax.add_patch(FancyArrowPatch((_AT[start], -0.21), (_AT[end], -0.21), connectionstyle="arc3,rad=-0.45", arrowstyle="-|>", mutation_scale=10,
                                     color="0.45"))
        ax.text((_AT[start] + _AT[end]) / 2, -0.7, label, ha="center", va="top", fontsize=9.5, color="0.3")
