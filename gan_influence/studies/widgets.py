"""Interactive views. Each draws with the very function that a static figure beside it uses."""

import io
from collections.abc import Callable, Sequence
from functools import cache

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def slider(draw: Callable[[object], Figure], values: Sequence, label: str) -> ipywidgets.VBox:
    """A slider over `values`, to be moved by mouse or arrow keys, above the figure that `draw(value)` returns and its titles as text.

    Every figure is drawn once. `draw` should only draw: what it shows is computed beforehand, so that the picture follows the hand.

    >>> def draw(j):
    ...     figure = plt.figure(figsize=(1, 1))
    ...     figure.suptitle(f"without {j}")
    ...     return figure
    >>> view = slider(draw, [3, 5], "instance")
    >>> view.children[0].value = 5
    >>> bytes(view.children[1].value[1:4]), view.children[2].value
    (b'PNG', 'without 5')
    """
    @cache
    def shown(value: object) -> tuple[bytes, str]:
        figure, buffer = draw(value), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        plt.close(figure)
        titles = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
        return buffer.getvalue(), "; ".join(title.replace("\n", ", ") for title in titles if title)

    def follow(change: dict) -> None:
        image.value, text.value = shown(change["new"])

    chooser = ipywidgets.SelectionSlider(options=list(values), description=label, continuous_update=False,
                                         readout=not isinstance(next(iter(values)), str), style={"description_width": "initial"})
    image, text = ipywidgets.Image(format="png"), ipywidgets.Label()
    follow({"new": chooser.value})
    chooser.observe(follow, names="value")
    return ipywidgets.VBox([chooser, image, text], layout={"align_items": "flex-start"})  # or the image is stretched
