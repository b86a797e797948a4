"""A chart as a picture."""

import base64
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import traitlets
from ipywidgets import Image, Layout
from matplotlib.figure import Figure

from mxlab import charts
from mxlab.frames import Snapshot
from mxlab.plots import style


class Picture(Image):
    """A chart as a picture, with what it says as its text for those who do not see it.

    Parameters
    ----------
    width, dark
        In pixels; on dark paper.
    """

    #: Empty: the page puts `tooltip` where readers of pictures look for it only beside a description.
    description = traitlets.Unicode("").tag(sync=True)

    def __init__(self, *, width: int = 800, dark: bool = False) -> None:
        layout = Layout(width=f"{width}px", max_width="100%", height="auto", object_fit="contain")
        super().__init__(format="png", layout=layout)
        self.add_class("mxlab-picture")
        self._pixels, self._dark = width, dark

    def draw(self, name: str, snap: Snapshot) -> None:
        """Show the chart of this name.

        Parameters
        ----------
        name
            One of `mxlab.CHARTS`.
        snap
            What to draw.
        """
        with charts.LOCK, _uncollected():
            figure = self.figure(name, snap)
            value, text = charts.png(figure), charts.caption(figure.axes[0])
        with self.hold_sync():
            self.value, self.tooltip = value, text

    def figure(self, name: str, snap: Snapshot) -> Figure:
        """What is shown, as a figure."""
        return style.root(charts.draw(name, snap, width=self._pixels, dark=self._dark))

    @property
    def bundle(self) -> dict[str, str]:
        """What is shown where there are no widgets, by media type."""
        return {"image/png": base64.b64encode(self.value).decode(), "text/plain": self.tooltip}


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from running in between, which would take longer than many a picture."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
