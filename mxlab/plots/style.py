"""How every picture looks: colours, letters, margins, axes.

Colour has one meaning, who must act; nothing else uses these eight. Figures are made here, never by pyplot,
and everything written into one goes through `words`, so that a bank's name is never read as markup.
"""

import unicodedata
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mxlab.plots.letters import Canvas

#: A row of a summary, or its attrs.
Row = Mapping[Any, Any]

#: The letters that matplotlib brings along: the same picture on every machine.
FAMILY = "DejaVu Sans"
#: Points.
TITLE, SUBTITLE, LABEL, SMALL, FOOT = 12.5, 9.0, 9.0, 8.0, 7.0
#: Inches between the figure's edge and what is written.
EDGE = 0.16
#: Small letters are drawn on whole pixels, which makes lines longer than their outlines.
HINTED = 1.06
#: Inches kept free below the axes' labels for the foot.
FOOT_ROOM = 0.42

#: What the eight are called in a picture.
WHO_WORDS = {
    "nobody": "connected",
    "wait": "wait",
    "user": "user must act",
    "mx": "MX / bank",
    "partner": "partner",
    "over": "over",
    "manual": "manual",
    "unknown": "unknown status",
}
#: The two that have a hatch besides their colour.
HATCHES = {"manual": "////", "unknown": "xxxx"}


@dataclass(frozen=True)
class Theme:
    """The colours of a picture on light or dark paper.

    Attributes
    ----------
    paper, ink, muted, grid, nothing
        Background, text, text of second rank, grid lines, where nothing is known.
    who, label
        By who must act: the colour of an area, and of a word.
    """

    paper: str
    ink: str
    muted: str
    grid: str
    nothing: str
    who: dict[str, str]
    label: dict[str, str]


_WHO = {
    "nobody": "#1f9583",
    "wait": "#62b0e0",
    "user": "#ef9234",
    "mx": "#c8352b",
    "partner": "#8f63b8",
    "over": "#454e59",
    "manual": "#d9d6d0",
    "unknown": "#111111",
}
LIGHT = Theme(
    "#ffffff",
    "#1d2329",
    "#6a737d",
    "#e6e8eb",
    "#f1f2f4",
    _WHO,
    {**_WHO, "wait": "#2f7fb3", "user": "#b5620f", "manual": "#6a737d"},
)
DARK = Theme(
    "#14181d",
    "#e8eaed",
    "#9aa3ad",
    "#2b323a",
    "#20262d",
    {**_WHO, "over": "#8b96a3", "unknown": "#ffffff"},
    {
        **_WHO,
        "nobody": "#2fb5a0",
        "mx": "#ef6a60",
        "partner": "#b08ad6",
        "over": "#8b96a3",
        "unknown": "#ffffff",
    },
)


def figure(width: int = 800, height: int = 460, *, dark: bool = False) -> Figure:
    """An empty figure, never known to pyplot.

    Parameters
    ----------
    width, height
        In pixels of a notebook's size. Above 800 the same layout is drawn larger, as for a slide.
    dark
        On dark paper.
    """
    scale = max(1.0, width / 800)
    made = Figure(figsize=(width / scale / 100, height / 100), dpi=100 * scale)
    Canvas(made)
    made.set_gid("mxlab")
    made.set_facecolor((DARK if dark else LIGHT).paper)
    return made


def axes(ax: Axes | None, *, width: int, height: float, dark: bool) -> tuple[Axes, Theme]:
    """The axes to draw on, emptied of ornament, and the theme of the paper they are on."""
    if ax is None:
        ax = figure(width, int(height), dark=dark).add_subplot()
    theme = DARK if np.mean(to_rgb(ax.figure.get_facecolor()[:3])) < 0.5 else LIGHT
    ax.set_facecolor("none")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0, labelsize=SMALL, labelcolor=theme.muted, labelfontfamily=FAMILY, pad=5)
    ax.tick_params(which="minor", length=0, labelsize=0)
    ax.set_axisbelow(True)
    return ax, theme


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes' figure."""
    size = root(ax).get_size_inches()
    return float(size[0]), float(size[1])


def wide(ax: Axes) -> float:
    """Inches that the axes are wide."""
    return float(ax.get_position().width) * inches(ax)[0]


def tall(ax: Axes) -> float:
    """Inches that the axes are tall."""
    return float(ax.get_position().height) * inches(ax)[1]


def root(ax: Axes) -> Figure:
    """The figure at the top, also of axes in a part of one."""
    found = ax.figure
    return found if isinstance(found, Figure) else found.figure


def _is_ours(ax: Axes) -> bool:
    """Whether the axes fill a figure that was made here; else a caller has placed them."""
    fig = root(ax)
    return fig.get_gid() == "mxlab" and len(fig.axes) == 1


def margins(ax: Axes, *, left: float, right: float, top: float = 0.95, bottom: float = 0.3) -> None:
    """Place the axes in a figure of ours, in inches; axes that a caller placed stay where they are."""
    if not _is_ours(ax):
        return
    width, height = inches(ax)
    low = bottom + FOOT_ROOM
    ax.set_position((left / width, low / height, 1 - (left + right) / width, 1 - (low + top) / height))


def title(ax: Axes, finding: str, subtitle: str, *, above: float = 0.0) -> float:
    """Write the finding and what is drawn above the axes; gives the inches that they take from the top.

    ``above`` has the inches between the axes and the title that are written on, where a caller placed the axes.
    """
    fig = root(ax)
    theme = theme_of(ax)
    if not _is_ours(ax):
        lines = wrapped(finding, wide(ax) * 1.1, 10.5, bold=True)
        look: dict[str, Any] = {"size": 10.5, "weight": "bold", "color": theme.ink, "parse_math": False}
        ax.set_title("\n".join(lines), loc="left", pad=6 + 72 * above, **look)
        return 0.5
    width, height = inches(ax)
    lines, smaller, taken = _set_title(finding, subtitle, width)
    at = height - EDGE
    for line in lines:
        words(fig, EDGE / width, at / height, line, size=TITLE, weight="bold", color=theme.ink, va="top")
        at -= _TITLE_LINE
    at = height - taken + _SUBTITLE_LINE * len(smaller)
    for line in smaller:
        words(fig, EDGE / width, at / height, line, size=SUBTITLE, color=theme.muted, va="top")
        at -= _SUBTITLE_LINE
    return taken


#: Inches from line to line.
_TITLE_LINE, _SUBTITLE_LINE = 0.24, 0.165


def _set_title(finding: str, subtitle: str, width: float) -> tuple[list[str], list[str], float]:
    """Lines of the finding and of the subtitle in a figure of so many inches, and the inches that they take."""
    lines = balanced(finding, width - 2 * EDGE, TITLE, bold=True)[:4]
    smaller = balanced(subtitle, width - 2 * EDGE, SUBTITLE)[:3]
    return lines, smaller, EDGE + _TITLE_LINE * len(lines) + 0.05 + _SUBTITLE_LINE * len(smaller)


def foot(fig: Figure, left_text: str, stamp: str = "") -> None:
    """Write provenance at the foot's left and a stamp, such as SIMULATED, at its right."""
    theme = DARK if np.mean(to_rgb(fig.get_facecolor()[:3])) < 0.5 else LIGHT
    width, height = (float(size) for size in fig.get_size_inches())
    taken = text_width(stamp, FOOT + 0.5, bold=True) + 0.2 if stamp else 0.0
    lines = wrapped(left_text, width - 2 * EDGE - taken, FOOT)
    if len(lines) > 3:
        lines = [*lines[:2], cut(" ".join(lines[2:]), width - 2 * EDGE - taken, FOOT)]
    lowest = 0.12 if len(lines) < 3 else 0.07
    for place, line in enumerate(lines, start=1):  # in the order of reading: `caption` is made of it
        words(
            fig,
            EDGE / width,
            (lowest + 0.12 * (len(lines) - place)) / height,
            line,
            size=FOOT,
            color=theme.muted,
            va="bottom",
        )
    if stamp:
        at = 1 - EDGE / width
        style = {"size": FOOT + 0.5, "weight": "bold", "color": theme.label["mx"]}
        words(fig, at, lowest / height, stamp, ha="right", va="bottom", **style)


def theme_of(ax: Axes) -> Theme:
    """The theme of the paper that the axes are on."""
    return DARK if np.mean(to_rgb(root(ax).get_facecolor()[:3])) < 0.5 else LIGHT


def words(where: Axes | Figure, x: float, y: float, text: str, **style: Any) -> Text:
    """Write plain text: never markup, no control or direction marks, no letter that the font lacks."""
    style = {"size": LABEL, "family": FAMILY, "va": "center", **style}
    return where.text(x, y, "\n".join(map(clean, text.split("\n"))), parse_math=False, **style)


def note(ax: Axes, text: str, at: tuple[float, float], **style: Any) -> Annotation:
    """Write plain text at some points from a place in the data."""
    style = {"size": LABEL, "family": FAMILY, "textcoords": "offset points", "zorder": 6, **style}
    made = ax.annotate("\n".join(map(clean, text.split("\n"))), at, **style)
    made.set_parse_math(False)
    return made


@cache
def _font(bold: bool) -> FT2Font:  # noqa: FBT001
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    font = FT2Font(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name))
    font.set_size(100, 72)
    return font


@cache
def _letters() -> frozenset[int]:
    return frozenset(_font(bold=False).get_charmap())


@cache
def _advance(letter: str, bold: bool) -> float:  # noqa: FBT001
    """How far a letter moves the pen, in inches for each point of size."""
    glyph = _font(bold).load_char(ord(letter))
    return float(glyph.linearHoriAdvance) / 65_536 / 100 / 72


def clean(text: str) -> str:
    """Text that is safe to draw: one line, no control or direction marks, ▯ for letters the font lacks and for no letter at all."""
    line = " ".join(str(text).split())
    kept = (
        letter for letter in line if unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Co", "Mn", "Me"}
    )
    shown = "".join(letter if ord(letter) in _letters() else "▯" for letter in kept)
    return shown if shown.strip() or not text else "▯"


@lru_cache(4_096)
def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Inches that a line takes."""
    return size * HINTED * sum(_advance(letter, bold) for letter in clean(text))


def cut(text: str, room: float, size: float, *, bold: bool = False) -> str:
    """Text that fits into so many inches, with an ellipsis where it was longer: Hazel Commun…, Hazel C… (OAuth)."""
    text = clean(text[:400])
    if text_width(text, size, bold=bold) <= room:
        return text
    body, bracket, kind = text.rpartition(" (")
    tail = f" ({kind}" if bracket and kind.endswith(")") else ""
    if text_width(tail, size, bold=bold) > room / 2 or not tail:
        body, tail = text, ""
    keep, over = 0, len(body)
    while over - keep > 1:
        middle = (keep + over) // 2
        fits = text_width(body[:middle].rstrip() + "…" + tail, size, bold=bold) <= room
        keep, over = (middle, over) if fits else (keep, middle)
    return body[:keep].rstrip() + "…" + tail


def named(name: str, width: int) -> str:
    """A name that leaves room for the rest of its title in a figure of so many pixels."""
    return cut(name, 0.56 * (min(width, 800) / 100 - 2 * EDGE), TITLE, bold=True)


def wrapped(text: str, room: float, size: float, *, bold: bool = False) -> list[str]:
    """Lines of whole words that fit into so many inches."""
    lines: list[str] = []
    used, space = 0.0, size * HINTED * _advance(" ", bold)
    for word in clean(text[:400]).split(" "):
        more = space + text_width(word, size, bold=bold)
        if lines and used + more <= room:
            lines[-1], used = f"{lines[-1]} {word}", used + more
        else:
            lines.append(cut(word, room, size, bold=bold))
            used = more - space
    return lines


def balanced(text: str, room: float, size: float, *, bold: bool = False) -> list[str]:
    """As `wrapped`, in as many lines but of more equal lengths: no last word stands alone."""
    lines = wrapped(text, room, size, bold=bold)
    for part in (0.9, 0.8, 0.7, 0.6) if len(lines) > 1 else ():
        narrower = wrapped(text, room * part, size, bold=bold)
        if len(narrower) > len(lines) or " ".join(narrower) != " ".join(lines):
            break
        lines = narrower
    return lines


def shade(colour: str, place: int, of: int, theme: Theme) -> str:
    """The shade of one status among those of its group: the first is the group's own colour."""
    part = 0.5 * place / max(of - 1, 1) if of > 1 else 0.0
    red, green, blue = (
        (1 - part) * a + part * b for a, b in zip(to_rgb(colour), to_rgb(theme.paper), strict=True)
    )
    return to_hex((red, green, blue))


def percent(share: float) -> str:
    """A share as people read it: 0.6 %, 7.2 %, 93 %; never 0 or 100 where it is not."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0 < share < 0.0995:
        return f"{share * 100:.1f} %"
    return ">99 %" if 0.995 <= share < 1 else f"{share * 100:.0f} %"


_UNITS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


def duration(seconds: float, *, like: float | None = None, unit: bool = True) -> str:
    """A time as people say it: 40 ms, 21 s, 1.5 min, 3 h, 2 days; in the unit that another would have, if asked."""
    by = seconds if like is None else like
    size, word = next(((s, w) for s, w in _UNITS if by >= s * (1.995 if w == "days" else 0.995)), _UNITS[-1])
    if by < 0.995:
        return f"{float(f'{seconds * 1000:.2g}'):g}" + " ms" * unit
    number = float(f"{seconds / size:.2g}") if seconds < 100 * size else round(seconds / size)
    return f"{number:g}" + f" {word}" * unit


def between(low: float | None, high: float | None, like: float) -> str:
    """An interval of times in brackets, in the unit of what it is of: (19–22 s), (1.4–1.9 min), (from 58 s)."""
    if low is None or np.isnan(low):
        return ""
    if high is None or np.isnan(high):
        return f"(from {duration(low, like=like)})"
    return f"({duration(low, like=like, unit=False)}–{duration(high, like=like)})"


_ROUND_SECONDS = np.array(
    [0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 10_800, 21_600, 43_200]
    + [86_400 * days for days in (1, 2, 4, 7, 14, 30, 90, 365)]
)


_FINE_SECONDS = np.unique(
    np.concatenate([np.outer([0.001, 0.01, 0.1, 1], [1, 2, 5, 10, 20]).ravel(), _ROUND_SECONDS])
)
_STEP_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 43_200, 86_400, 172_800)


def time_axis(ax: Axes, first: float, last: float, *, log: bool = True) -> None:
    """A time axis along the foot in words that people say, with as many ticks as there is room for."""
    ax.set_xlim(first, last)
    width = wide(ax)
    if log:
        ax.set_xscale("log")
        ticks, dense = (
            some[(first <= some) & (last * 1.001 >= some)] for some in (_ROUND_SECONDS, _FINE_SECONDS)
        )
        ticks = ticks if len(ticks) >= 3 else dense
        spread = np.log(ticks / first) / np.log(last / first) * width
    else:
        step = next((s for s in _STEP_SECONDS if s * 6 >= last - first), _ROUND_SECONDS[-1])
        ticks = np.arange(0, last * 1.001, step)
        spread = (ticks - first) / (last - first) * width
    _ticks(ax, ticks, spread, lambda seconds: duration(seconds) if seconds else "0")


def _ticks(
    ax: Axes, ticks: np.ndarray[Any, Any], spread: np.ndarray[Any, Any], said: Callable[[float], str]
) -> None:
    """Ticks along the foot, of those at so many inches as many as there is room for."""
    kept: list[int] = []
    for place in range(len(ticks)):
        if not kept or spread[place] - spread[kept[-1]] >= 0.55:
            kept.append(place)
    ax.xaxis.set_major_locator(FixedLocator([float(ticks[place]) for place in kept]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda at, _: said(at)))


def share_axis(ax: Axes, which: Literal["x", "y"], last: float = 1.0) -> None:
    """An axis of shares in whole per cent, the sign on the last tick."""
    steps = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25)
    step = next(step for step in steps if last / step <= 5.001 or step == 0.25)
    ticks = np.arange(0, last * 1.001, step)
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(FixedLocator(ticks.tolist()))
    last = float(ticks[-1])
    axis.set_major_formatter(
        FuncFormatter(lambda at, _: f"{at * 100:.3g}" + (" %" if abs(at - last) < 1e-9 else ""))
    )


def grid(ax: Axes, which: Literal["x", "y"]) -> None:
    """Lines that a value is read against."""
    ax.grid(axis=which, color=theme_of(ax).grid, linewidth=0.9)


def apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places of labels, moved as little as keeps them `least` apart and within the bounds; order is kept."""
    order = np.argsort(places, kind="stable")
    moved = np.maximum(np.array(places, dtype=float)[order], low)
    for place in range(1, len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + least)
    if len(moved) and moved[-1] > high:
        moved[-1] = high
        for place in range(len(moved) - 2, -1, -1):
            moved[place] = min(moved[place], moved[place + 1] - least)
    found = np.empty(len(moved))
    found[order] = np.maximum(moved, low) if len(moved) and moved[0] < low else moved
    return found.tolist()


#: Inches between the axes and the words right of them.
_BESIDE = 0.12


def end_room(texts: Sequence[str]) -> float:
    """Inches that words right of the axes need."""
    return max([text_width(text, SMALL, bold=True) for text in texts], default=0.5) + _BESIDE + EDGE


def end_words(ax: Axes, ends: Sequence[tuple[float, str, str]], *, on_left: bool = False) -> None:
    """A word for each curve or area, beside the axes where it ends, none over another.

    Parameters
    ----------
    ends
        Where it ends, its word, its colour. A thin line leads to a word that had to move.
    on_left
        Left of the axes.
    """
    theme, side = theme_of(ax), ax.get_yaxis_transform()
    low, high = sorted(ax.get_ylim())
    least = (high - low) * 0.17 / tall(ax)
    places = apart([end for end, _, _ in ends], least, low + least / 3, high)
    edge, step, align = (0, -1, "right") if on_left else (1, 1, "left")
    beside = step * _BESIDE / wide(ax)
    look: dict[str, Any] = {"ha": align, "va": "center", "size": SMALL, "annotation_clip": False}
    for (end, text, colour), place in zip(ends, places, strict=True):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (int(on_left), 0.5)}
        note(
            ax,
            text,
            (edge + 0.1 * beside, end),
            xytext=(edge + beside, place),
            xycoords=side,
            textcoords=side,
            color=colour,
            weight="normal" if colour == theme.muted else "bold",
            arrowprops={**line, "shrinkA": 1, "shrinkB": 0} if abs(place - end) > least / 2 else None,
            **look,
        )


def spans(ax: Axes, rows: Sequence[Row], colours: Sequence[str]) -> None:
    """In each row a median as a dot with its interval, a bar to the 90 % point, and both in words; a time axis.

    Parameters
    ----------
    rows
        With ``p50``, ``p50_low``, ``p50_high`` and ``p90``, which may be missing.
    """
    theme, roomy = theme_of(ax), wide(ax) > 3.5
    ends = [float(np.nanmax([row["p90"], row["p50_high"], row["p50"]])) for row in rows]
    first = min(float(np.nanmin([row["p50_low"], row["p50"]])) for row in rows)
    for place, (row, end, colour) in enumerate(zip(rows, ends, colours, strict=True)):
        median, late = row["p50"], row["p90"]
        said = duration(median)
        if not np.isnan(late):
            ax.barh(place, late - median, left=median, height=0.34, color=colour, alpha=0.32)
            said += f" to {duration(late)}" if roomy else ""
        ax.plot([row["p50_low"], row["p50_high"]], [place, place], color=colour, linewidth=1.8)
        ax.plot([median], [place], "o", color=colour, markersize=6)
        note(ax, said, (end, place), xytext=(6, 0), va="center", size=SMALL, color=theme.ink)
    room = 1.25 if roomy else 0.6  # inches for the words beside the longest bar
    span = max(float(np.log(max(ends) / first)), 0.1) / max(1 - room / wide(ax), 0.2)
    time_axis(ax, first / 1.15, first * float(np.exp(span)))
    grid(ax, "x")


def nothing(ax: Axes, text: str = "nothing to draw") -> None:
    """Say in the middle of empty axes that there is nothing."""
    ax.set_xticks([])
    ax.set_yticks([])
    words(ax, 0.5, 0.5, text, transform=ax.transAxes, ha="center", color=theme_of(ax).muted)


def in_words(share: float, verb: tuple[str, str]) -> str:
    """A share of members as a sentence begins, with its verb for one and for many."""
    said = {
        2: "one member in two",
        3: "one member in three",
        4: "one member in four",
        5: "one member in five",
    }
    near = next((text for of, text in said.items() if abs(share * of - 1) <= 0.06), None)
    return f"{near} {verb[0]}" if near else f"{percent(share)} of members {verb[1]}"


def rows(
    ax: Axes | None,
    names: Sequence[str],
    finding: str,
    subtitle: str,
    *,
    width: int,
    dark: bool,
    bold: Container[str] = (),
    beside: Sequence[str] = (),
    over: str = "",
    part: float = 0.3,
    empty: str = "nothing to draw",
) -> tuple[Axes, Theme]:
    """Axes with a title and one row for each name, the first at the top; without names they say that they are empty.

    Parameters
    ----------
    ax, width, dark
        As every drawing takes them.
    names
        Of the rows; those in `bold` are emphasized.
    finding, subtitle
        Above the axes.
    beside, over
        A column right of the axes, such as n, and the word above it.
    part
        Of the width, that names may take; somewhat more on a phone.
    empty
        What is said where there are no names.
    """
    _, _, above = _set_title(finding, subtitle, min(width, 800) / 100)
    ax, theme = axes(ax, width=width, height=122 + 100 * above + 27 * max(len(names), 3), dark=dark)
    taken = title(ax, finding, subtitle, above=0.12 if over else 0.0)
    column = max([text_width(text, SMALL) for text in (*beside, over)], default=0.0)
    part = part if inches(ax)[0] >= 6 else max(part, 0.36)
    name_rows(ax, names, bold=bold, top=taken + 0.3, right=column + EDGE + 0.2, part=part)
    if not names:
        nothing(ax, empty)
        return ax, theme
    at = 1 + (column + 0.2) / wide(ax)
    look = {"transform": ax.get_yaxis_transform(), "ha": "right", "size": SMALL, "color": theme.muted}
    for place, text in enumerate(beside):
        words(ax, at, place, text, **look)
    words(ax, at, -0.85, over, **look)
    return ax, theme


def name_rows(
    ax: Axes,
    names: Sequence[str],
    *,
    bold: Container[str] = (),
    top: float = 0.95,
    right: float = 0.78,
    part: float = 0.3,
) -> None:
    """One row for each name, the first at the top; places the axes so that names up to a part of the width have room."""
    theme = theme_of(ax)
    room = inches(ax)[0] * part if _is_ours(ax) else _room_on_the_left(ax)
    shown = [cut(name, room, LABEL, bold=name in bold) for name in names]
    taken = max(
        [text_width(text, LABEL, bold=name in bold) for text, name in zip(shown, names, strict=True)],
        default=1.0,
    )
    margins(ax, left=taken + EDGE + 0.12, right=right, top=top, bottom=0.26)
    side = ax.get_yaxis_transform()
    for place, (text, name) in enumerate(zip(shown, names, strict=True)):
        weight = "bold" if name in bold else "normal"
        words(ax, -0.015, place, text, transform=side, ha="right", color=theme.ink, weight=weight)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks([])


def _room_on_the_left(ax: Axes) -> float:
    """Inches between axes that a caller placed and what is left of them."""
    start = float(ax.get_position().x0)
    ends = [float(other.get_position().x1) for other in root(ax).axes if other is not ax]
    return (start - max([end for end in ends if end <= start], default=0.0)) * inches(ax)[0] - 0.1


def counted(n: int, thing: str) -> str:
    """A count with its noun: 1 member, 5,214 members."""
    return f"{n:,} {thing}" + ("" if n == 1 else "s")


def ratio_axis(ax: Axes) -> None:
    """A logarithmic axis of ratios: 0.5, 1, 2 times."""
    steps = np.array([0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50])
    low, high = ax.get_xlim()
    steps = steps[(steps >= low) & (steps <= high)]
    _ticks(ax, steps, np.log(steps / low) / np.log(high / low) * wide(ax), lambda ratio: f"{ratio:g} ×")


def count_axis(ax: Axes, which: Literal["x", "y"], *, most: int = 5, unit: str = "") -> None:
    """An axis of counts with few ticks, the unit on the last: 1, 100, 10,000 where it is logarithmic."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    log = (ax.get_xscale() if which == "x" else ax.get_yscale()) == "log"
    low, high = sorted(axis.get_view_interval())
    decades = log and high >= 100 * low
    locator = LogLocator(10, (1,) if decades else (1, 2, 5)) if log else MaxNLocator(most, integer=True)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
    last = ticks[-1] if unit and ticks else np.nan
    axis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:,.0f}" + (f" {unit}" if at == last else "")))
