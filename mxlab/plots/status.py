"""Drawings of connection status."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from mxlab.nexus.status import STATUSES, WHO_MUST_ACT
from mxlab.plots import style
from mxlab.plots.style import LABEL, SMALL, WHO_WORDS, Row, words


def status_counts(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """A bar for each connection status, coloured by who must act.

    Parameters
    ----------
    summary
        What `mxlab.analysis.status_counts` gives without `by`.
    ax
        Where to draw; a new figure without it.
    title
        Instead of the finding.
    width, dark
        Of the new figure: pixels; on dark paper.
    """
    n = int(summary.attrs.get("n", 0))
    said = f"Connection status of {style.counted(n, 'member')}; lines: 95 % intervals"
    return _counts(summary, ax, title, said, width=width, dark=dark)


def who_must_act(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """A bar for each answer to who must act.

    Parameters
    ----------
    summary
        What `mxlab.analysis.who_must_act` gives without `by`.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    n = int(summary.attrs.get("n", 0))
    said = f"Who must act on {style.counted(n, 'member')}; lines: 95 % intervals"
    return _counts(summary, ax, title, said, width=width, dark=dark)


def _counts(
    summary: pd.DataFrame, ax: Axes | None, title: str | None, subtitle: str, *, width: int, dark: bool
) -> Axes:
    rows = summary.to_dict("records")
    ax, _ = style.axes(ax, width=width, height=165 + 23 * max(len(rows), 4), dark=dark)
    top = style.title(ax, title or _headline(rows), subtitle)
    left = max([style.text_width(_name(row), LABEL) for row in rows], default=1.0) + style.EDGE + 0.12
    right = max(style.text_width(word, LABEL, bold=True) for word in WHO_WORDS.values()) + 0.75
    grouped = style.inches(ax)[0] >= 6 and any(row["status"] in STATUSES for row in rows)
    style.margins(ax, left=left, right=right if grouped else style.EDGE, top=top + 0.1, bottom=0.05)
    if not rows:
        style.nothing(ax)
        return ax
    sizes = {who: [row for row in rows if row["who_must_act"] == who] for who in WHO_MUST_ACT}
    longest = max((row["high"] for row in rows if row["share"] == row["share"]), default=1.0)
    for place, row in enumerate(rows):
        _bar(ax, place, row, sizes, longest)
    if grouped:
        _group_words(ax, rows, sizes)
    ax.set_xlim(0, longest * (1.28 if grouped else 1.45))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def _name(row: Row) -> str:
    return WHO_WORDS.get(row["status"], style.cut(row["status"], 1.6, LABEL))


#: Those who must act, and what is said of members on which nobody must.
_ACTORS = {"user": "users", "mx": "MX or the bank", "partner": "partners"}
_STATES = {"wait": "wait", "over": "are over", "manual": "are manual", "unknown": "have an unknown status"}
#: A group at least so large as part of the largest is named beside it.
_RIVAL = 0.8


def _headline(rows: Sequence[Row]) -> str:
    """The share connected, and the largest of the other groups, with a rival where there is one."""
    share = {who: sum(row["share"] for row in rows if row["who_must_act"] == who) for who in WHO_MUST_ACT}
    if not any(share.values()):
        return "Connection status of members"
    connected = style.percent(share.pop("nobody"))
    first, *others = sorted(share, key=share.__getitem__, reverse=True)
    if not share[first]:
        return f"{connected} of members are connected"
    if first in _STATES:
        return f"{connected} of members are connected; {style.percent(share[first])} {_STATES[first]}"
    rivals = [who for who in others if who in _ACTORS and share[who] >= _RIVAL * share[first]]
    found = f"{connected} {'' if rivals else 'of members '}are connected; {_ACTORS[first]} must act on {style.percent(share[first])}"
    return found + "".join(f", {_ACTORS[who]} on {style.percent(share[who])}" for who in rivals)


def _bar(ax: Axes, place: int, row: Row, sizes: Mapping[Any, Sequence[Row]], longest: float) -> None:
    theme = style.theme_of(ax)
    side = ax.get_yaxis_transform()
    reached = row["unit"] == "members"
    colour = theme.ink if reached else theme.muted
    words(ax, -0.012, place, _name(row), transform=side, ha="right", color=colour)
    if not reached:
        words(
            ax, longest * 0.012, place, f"{row['count']:,} user{'s' * (row['count'] != 1)}", color=theme.muted
        )
        return
    who = row["who_must_act"]
    mine = sizes[who]
    hatch = style.HATCHES.get(who)
    fill = style.shade(theme.who[who], mine.index(row), len(mine), theme)
    ax.barh(place, row["share"], height=0.68, color=fill, hatch=hatch, edgecolor=theme.paper, linewidth=0)
    ax.plot([row["low"], row["high"]], [place, place], color=theme.ink, linewidth=0.9, solid_capstyle="butt")
    text = words(ax, row["high"] + longest * 0.014, place, f"{row['count']:,}", color=theme.ink)
    beside = {"xycoords": text, "xytext": (7, 0), "va": "center", "annotation_clip": False}
    style.note(ax, style.percent(row["share"]), (1, 0.5), color=theme.muted, size=SMALL, **beside)


def _group_words(ax: Axes, rows: Sequence[Row], sizes: Mapping[Any, Sequence[Row]]) -> None:
    """Who must act, in its colour, beside the first bar of each group, with the group's share."""
    theme = style.theme_of(ax)
    side = ax.get_yaxis_transform()
    for who, mine in sizes.items():
        if not mine:
            continue
        first, share = rows.index(mine[0]), sum(row["share"] for row in mine)
        ax.plot(
            [1, 1],
            [first - 0.32, first + len(mine) - 0.68],
            transform=side,
            color=theme.who[who],
            linewidth=2,
            clip_on=False,
        )
        text = f"{WHO_WORDS[who]} {style.percent(share)}"
        words(ax, 1.018, first, text, transform=side, color=theme.label[who], weight="bold")


def status_by_institution(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """A bar of shares for each of the largest institutions, in the colours of who must act.

    Parameters
    ----------
    summary
        What `mxlab.analysis.status_by_institution` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    names = list(dict.fromkeys(summary["institution"]))
    finding = summary.attrs.get("finding")
    ax, theme = style.axes(ax, width=width, height=190 + 28 * max(len(names), 3), dark=dark)
    top = style.title(
        ax,
        title or _standing_out(summary, width),
        "Who must act, share of members by institution, largest first",
    )
    room = style.inches(ax)[0] * 0.27
    shown = [style.cut(name, room, LABEL, bold=True) for name in names]
    left = max([style.text_width(name, LABEL, bold=True) for name in shown], default=1.0)
    style.margins(ax, left=left + style.EDGE + 0.1, right=0.78, top=top + 0.42, bottom=0.22)
    if not names:
        style.nothing(ax)
        return ax
    _stacks(ax, summary)
    side = ax.get_yaxis_transform()
    firsts = summary.groupby("institution", sort=False, observed=True)[["n", "share"]].first()
    for place, (name, n, share) in enumerate(firsts.itertuples()):
        bold = "bold" if finding and finding["institution"] == name else "normal"
        words(ax, -0.015, place, shown[place], transform=side, ha="right", color=theme.ink, weight=bold)
        words(ax, 1.014, place, f"{n:,}", transform=side, color=theme.muted, size=SMALL)
        if share > 0.09:
            words(ax, 0.012, place, f"{share * 100:.0f} %", color="#ffffff", weight="bold", size=SMALL)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.set_yticks([])
    style.share_axis(ax, "x")
    _key(ax, summary)
    return ax


def _standing_out(summary: pd.DataFrame, width: int) -> str:
    """What the test found; of a single institution, how many are connected."""
    if finding := summary.attrs.get("finding"):
        share = style.in_words(finding["share"], ("waits", "wait"))
        return f"{style.named(finding['institution'], width)}: {share} for MX or the bank"
    if len(summary) == len(WHO_MUST_ACT):
        share = style.in_words(float(summary["share"].iloc[0]), ("is", "are"))
        return f"{style.named(summary['institution'].iloc[0], width)}: {share} connected"
    return "Who must act, by institution"


def _stacks(ax: Axes, summary: pd.DataFrame) -> None:
    """The shares of each row end to end; all of one colour are one artist, which draws much faster than as many bars."""
    theme = style.theme_of(ax)
    rows, share = pd.factorize(summary["institution"])[0], summary["share"].to_numpy()
    ends = summary["share"].groupby(rows).cumsum().to_numpy()
    low, high = rows - 0.35, rows + 0.35
    corners = [(ends - share, low), (ends, low), (ends, high), (ends - share, high)]
    boxes = np.moveaxis(np.array(corners), -1, 0)
    for who in WHO_MUST_ACT:
        there = (summary["who_must_act"] == who).to_numpy() & (share > 0)
        bars = PolyCollection(
            list(boxes[there]),
            label=who,
            facecolor=theme.who[who],
            edgecolor=theme.paper,
            linewidth=0.9,
            hatch=style.HATCHES.get(who),
        )
        ax.add_collection(bars, autolim=False)


def _key(ax: Axes, summary: pd.DataFrame) -> None:
    """The words of the colours above the first bar, each as near to its part as the others allow."""
    theme, gap = style.theme_of(ax), 0.13
    box, (whole, tall) = ax.get_position(), style.inches(ax)
    width, above = float(box.width) * whole, 1 + 0.15 / (float(box.height) * tall)
    used = summary.groupby("who_must_act", observed=False)["count"].sum()
    shown = [who for who in WHO_MUST_ACT if used[who]]
    size = SMALL
    spans = [style.text_width(WHO_WORDS[who], size, bold=True) for who in shown]
    start = 0.0
    if sum(spans) + gap * (len(spans) - 1) > width:  # begin at the figure's edge, smaller if need be
        start = style.EDGE - float(box.x0) * whole
        fits = (width - start - gap * (len(spans) - 1)) / sum(spans)
        size, spans = size * min(1.0, fits), [span * min(1.0, fits) for span in spans]
    side = ax.get_xaxis_transform()
    first = summary.iloc[: len(WHO_MUST_ACT)].set_index("who_must_act")["share"]
    wish = 0.0
    for place, who in enumerate(shown):
        rest = sum(spans[place:]) + gap * (len(spans) - place - 1)
        at = min(max(start, wish), max(start, width - rest))
        style_of = {"color": theme.label[who], "weight": "bold", "size": size}
        words(ax, at / width, above, WHO_WORDS[who], transform=side, **style_of)
        start, wish = at + spans[place] + gap, wish + float(first[who]) * width
    over = "members" if whole >= 6 else "n"
    words(ax, 1.014, above, over, transform=side, color=theme.muted, size=SMALL)
