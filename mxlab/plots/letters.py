"""A canvas that sets each line of text once: letters are most of the time that a picture takes."""

from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.font_manager import FontProperties

_Shades = npt.NDArray[np.uint8]
#: Pixels around a line, for letters that reach beyond their box.
_ROOM = 3
#: Places of a line within a pixel that are told apart.
_STEPS = 4


class Canvas(FigureCanvasAgg):
    """Of a figure of ours; files of curves, such as SVG, know nothing of it."""

    def get_renderer(self) -> RendererAgg:
        """Of the figure's size; the one before where that is the same."""
        size = (*self.get_width_height(physical=True), self.figure.dpi)
        found: RendererAgg | None = getattr(self, "renderer", None)
        if found is None or (found.width, found.height, found.dpi) != size:
            found = self.renderer = _Renderer(*size)
        return found


class _Renderer(RendererAgg):
    """Draws a line of text from memory where it was in this or another picture before."""

    def get_text_width_height_descent(
        self, s: str, prop: FontProperties, ismath: Any
    ) -> tuple[float, float, float]:
        if ismath:
            return super().get_text_width_height_descent(s, prop, ismath)
        return _measured(s, prop.copy(), self.dpi)

    def draw_text(
        self,
        gc: Any,
        x: float,
        y: float,
        s: str,
        prop: FontProperties,
        angle: float,
        ismath: Any = False,  # noqa: FBT002 - matplotlib's
        mtext: Any = None,
    ) -> None:
        if angle or ismath or not gc.get_antialiased():
            super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)
            return
        left, low = round(x * _STEPS), round((self.height - y) * _STEPS)
        shades, below = _line(s, prop.copy(), self.dpi, left % _STEPS, low % _STEPS)
        ink = np.array(gc.get_rgb())
        picture = np.empty((*shades.shape, 4), np.uint8)
        picture[..., :3] = np.round(ink[:3] * 255)
        picture[..., 3] = np.round(shades * ink[3])
        self.draw_image(gc, left // _STEPS - _ROOM, low // _STEPS - below, picture)


@lru_cache(4_096)
def _measured(text: str, font: FontProperties, dpi: float) -> tuple[float, float, float]:
    """Width, height and descent in pixels."""
    return RendererAgg(1, 1, dpi).get_text_width_height_descent(text, font, False)


@lru_cache(2_048)
def _line(text: str, font: FontProperties, dpi: float, right: int, up: int) -> tuple[_Shades, int]:
    """How dark each pixel of a line is, from the lowest row up, and how many rows are below its foot.

    The line is so many steps right and up of whole pixels.
    """
    width, height, descent = _measured(text, font, dpi)
    below, above = ceil(descent) + _ROOM, ceil(height - descent) + _ROOM
    paper = RendererAgg(ceil(width) + 2 * _ROOM, below + above, dpi)
    paper.draw_text(paper.new_gc(), _ROOM + right / _STEPS, above - up / _STEPS, text, font, 0)
    return np.asarray(paper.buffer_rgba())[::-1, :, 3].copy(), below
