"""Interactive views. Each draws with the very function that a static figure beside it uses."""

import io
from collections.abc import Callable, Sequence
from functools import cache

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def slider(draw: Callable[[int], Figure], values: Sequence[int], label: str) -> ipywidgets.VBox:
    """A slider over `values` above the figure that `draw(value)` returns; every figure is drawn once.

    >>> view = slider(lambda j: plt.figure(figsize=(1, 1)), [3, 5], "instance")
    >>> view.children[0].value = 5
    >>> bytes(view.children[1].value[1:4])
    b'PNG'
    """
    @cache
    def png(value: int) -> bytes:
        figure, buffer = draw(value), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        plt.close(figure)
        return buffer.getvalue()

    chooser = ipywidgets.SelectionSlider(options=list(values), description=label, continuous_update=False)
    image = ipywidgets.Image(value=png(values[0]), format="png")
    chooser.observe(lambda change: setattr(image, "value", png(change["new"])), names="value")
    return ipywidgets.VBox([chooser, image], layout={"align_items": "flex-start"})  # or the image is stretched
