"""Drawings of change between two snapshots."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from mxlab.nexus.status import STATUSES, WHO_MUST_ACT, who_must_act
from mxlab.plots import style
from mxlab.plots.style import LABEL, SMALL, WHO_WORDS, words


def transitions(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """Moves from status to status as a matrix, what does not balance framed; as bars where a matrix has no room.

    Parameters
    ----------
    summary
        What `mxlab.analysis.transitions` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    names = _seen(summary, "status", STATUSES)
    ax, theme = style.axes(ax, width=width, height=230 + 25 * max(len(names), 4), dark=dark)
    cell = style.inches(ax)[0] / max(len(names), 1), style.tall(ax) / max(len(names), 1)
    matrix = cell[0] >= 0.28 and cell[1] >= 0.15
    what = (
        "Members by status before (row) and after (column); framed"
        if matrix
        else "Members by status before → after; bold"
    )
    left = max([style.text_width(_word(name), LABEL) for name in names], default=1.0)
    room = left * 0.72 + 0.1 if matrix else 0.0
    subtitle = f"{what}: more than come back. {_sizes(summary)}"
    top = style.title(ax, title or _moved(summary, "status"), subtitle, above=room)
    if not matrix:
        _moves(ax, summary, top)
        return ax
    style.margins(ax, left=left + style.EDGE + 0.12, right=0.3, top=top + room + 0.15, bottom=0.05)
    if not names:
        style.nothing(ax, "no member in both")
        return ax
    place = {name: number for number, name in enumerate(names)}
    off = summary.loc[summary["from_status"] != summary["to_status"], "count"]
    most = float(off.max()) if len(off) else 1.0
    shades = LinearSegmentedColormap.from_list("moves", [theme.nothing, theme.muted])
    for row in summary.to_dict("records"):
        x, y = place[row["to_status"]], place[row["from_status"]]
        same = x == y
        part = 0.0 if same else float(np.sqrt(row["count"] / most))
        edge: dict[str, Any] = (
            {"edgecolor": theme.ink, "linewidth": 1.6, "zorder": 3}
            if row["is_change"]
            else {"edgecolor": theme.paper, "linewidth": 1.0}
        )
        ax.barh(y, 0.94, left=x - 0.47, height=0.9, color="none" if same else shades(part), **edge)
        dark_cell = part > 0.6
        colour = theme.muted if same else (theme.paper if dark_cell else theme.ink)
        weight = "bold" if row["is_change"] else "normal"
        fits = style.text_width(f"{row['count']:,}", SMALL) < 0.98 * style.wide(ax) / len(names)
        words(
            ax,
            x,
            y,
            f"{row['count']:,}" if fits else _short(row["count"]),
            ha="center",
            size=SMALL,
            color=colour,
            weight=weight,
            zorder=4,
        )
    side, above = ax.get_yaxis_transform(), ax.get_xaxis_transform()
    for name, number in place.items():
        colour = theme.label[_who(name)]
        words(ax, -0.015, number, _word(name), transform=side, ha="right", color=colour)
        words(
            ax,
            number - 0.2,
            1.015,
            _word(name),
            transform=above,
            ha="left",
            va="bottom",
            rotation=45,
            rotation_mode="anchor",
            color=colour,
        )
    ax.set_xlim(-0.55, len(names) - 0.45)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def flow(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """A ribbon from who had to act before to who must act now, as wide as the members in it; those who stayed are pale.

    Parameters
    ----------
    summary
        What `mxlab.analysis.flow` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    names = _seen(summary, "who", [str(who) for who in WHO_MUST_ACT])
    ax, theme = style.axes(ax, width=width, height=430, dark=dark)
    subtitle = f"Who had to act before (left) and who must now (right); pale: no change. {_sizes(summary)}"
    top = style.title(ax, title or _moved(summary, "who"), subtitle)
    labels = [f"{_word(name)} 100 %" for name in names]
    room = style.end_room(labels)
    style.margins(ax, left=room, right=room, top=top + 0.15, bottom=0.2)
    if not names:
        style.nothing(ax, "no member in both")
        return ax
    share = np.zeros((len(names), len(names)))
    for row in summary.to_dict("records"):
        share[names.index(row["from_who"]), names.index(row["to_who"])] = row["count"]
    share /= share.sum()
    gap = 0.015
    ends = [share.sum(axis=1), share.sum(axis=0)]
    starts = [np.cumsum(part + gap) - part - gap for part in ends]
    cursor = [start.copy() for start in starts]
    x = np.linspace(0, 1, 60)
    bend = x * x * (3 - 2 * x)
    for i, name in enumerate(names):
        for j in np.flatnonzero(share[i]):
            left, right, wide = cursor[0][i], cursor[1][j], share[i, j]
            low = left + (right - left) * bend
            alpha = 0.22 if i == j else 0.75
            ax.fill_between(x, low, low + wide, color=theme.who[_who(name)], alpha=alpha, linewidth=0)
            cursor[0][i], cursor[1][j] = left + wide, right + wide
    tall = 1 + gap * len(names)
    ax.set_xlim(0, 1)
    ax.set_ylim(tall, 0)
    ax.set_xticks([])
    ax.set_yticks([])
    for on_left, start, part in ((True, starts[0], ends[0]), (False, starts[1], ends[1])):
        middles = zip(names, start + part / 2, part, strict=True)
        said = [
            (float(middle), f"{_word(name)} {style.percent(float(size))}", theme.label[_who(name)])
            for name, middle, size in middles
            if size
        ]
        style.end_words(ax, said, on_left=on_left)
    return ax


def _seen(summary: pd.DataFrame, kind: str, known: Collection[str]) -> list[str]:
    """The words of a summary of moves, in the order of charts, unknown ones last."""
    seen = set(summary[f"from_{kind}"]) | set(summary[f"to_{kind}"])
    return [word for word in known if word in seen] + sorted(seen - {*known})


def _moved(summary: pd.DataFrame, kind: str) -> str:
    """The largest move that does not balance, as a sentence."""
    changes = summary.loc[summary["is_change"]].sort_values("count", ascending=False)
    if changes.empty:
        return "Nothing moved beyond the usual coming and going"
    first = changes.iloc[0]
    ends = " to ".join(
        f"“{_word(word)}”" if kind == "who" else word for word in (first[f"from_{kind}"], first[f"to_{kind}"])
    )
    return f"{style.counted(int(first['count']), 'member')} moved from {ends}"


def _sizes(summary: pd.DataFrame) -> str:
    """How many moved, as a sentence."""
    return (
        f"{summary.attrs.get('n_moved', 0):,} of {style.counted(summary.attrs.get('n', 0), 'member')} moved"
    )


def mix_and_rate(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
    top: int = 6,
) -> Axes:
    """The change of the fleet's rate: what the mix did, what the rates did, and which groups did it.

    Parameters
    ----------
    summary
        What `mxlab.analysis.mix_and_rate` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    top
        How many groups are named; the others are one row.
    """
    attrs = summary.attrs
    rows: list[dict[str, Any]] = [
        {"name": word, "value": attrs[key], "low": attrs[f"{key}_low"], "high": attrs[f"{key}_high"]}
        for key, word in (
            ("total", "change in all"),
            ("mix", "of it, other mix"),
            ("rate", "of it, other rates"),
        )
    ]
    named = [{"name": row["group"], "value": row["total"]} for row in summary.head(top).to_dict("records")]
    rest = summary.iloc[top:]
    if len(rest):
        named.append({"name": f"all other ({len(rest)})", "value": float(rest["total"].sum())})
    what = WHO_WORDS[attrs["who"]]
    subtitle = f"Share of members “{what}”, {style.percent(attrs['before'])} before, {style.percent(attrs['after'])} after, in points; lines: 95 % intervals; below: by {attrs['by']}"
    every = rows + named
    ax, theme = style.rows(
        ax,
        [row["name"] for row in every],
        title or _headline(attrs, what),
        subtitle,
        width=width,
        dark=dark,
        bold={"change in all"},
    )
    for place, row in enumerate(every):
        colour = theme.ink if place < len(rows) else theme.muted
        ax.barh(place, row["value"], height=0.62, color=colour, alpha=1.0 if place == 0 else 0.75)
        end = row["value"]
        if "low" in row:
            ax.plot([row["low"], row["high"]], [place, place], color=theme.muted, linewidth=1.2)
            end = row["high"] if row["value"] >= 0 else row["low"]
        side = 6 if row["value"] >= 0 else -6
        style.note(
            ax,
            _points(row["value"]),
            (end, place),
            xytext=(side, 0),
            ha="left" if side > 0 else "right",
            va="center",
            size=SMALL,
            color=theme.ink,
        )
    ends = np.array([[row.get("low", row["value"]), row.get("high", row["value"]), 0.0] for row in every])
    room = 0.5 / style.wide(ax)
    pad = max(float(np.ptp(ends)), 1e-3) * room / (1 - 2 * room)
    ax.set_xlim(float(ends.min()) - pad, float(ends.max()) + pad)
    ax.axvline(0, color=theme.muted, linewidth=0.9)
    ax.axhline(len(rows) - 0.5, color=theme.grid, linewidth=0.9)
    ax.set_xticks([])
    return ax


def _moves(ax: Axes, summary: pd.DataFrame, top: float, most: int = 15) -> None:
    """The commonest moves as bars, where a matrix has no room."""
    theme = style.theme_of(ax)
    moved = summary.loc[summary["from_status"] != summary["to_status"]].sort_values("count", ascending=False)
    rows = moved.head(most).to_dict("records")
    names = [f"{_word(row['from_status'])} → {_word(row['to_status'])}" for row in rows]
    bold = {name for name, row in zip(names, rows, strict=True) if row["is_change"]}
    style.name_rows(ax, names, bold=bold, top=top + 0.1, part=0.6)
    if not rows:
        style.nothing(ax, "nothing moved")
        return
    for place, row in enumerate(rows):
        ax.barh(place, row["count"], height=0.66, color=theme.ink if row["is_change"] else theme.muted)
        style.note(
            ax,
            f"{row['count']:,}",
            (row["count"], place),
            xytext=(5, 0),
            va="center",
            size=SMALL,
            color=theme.ink,
        )
    ax.set_xlim(0, rows[0]["count"] * 1.35)
    ax.set_xticks([])


def _headline(attrs: Any, what: str) -> str:
    causes = {
        word: attrs[key]
        for key, word in (("mix", "another mix of members"), ("rate", "other rates"))
        if attrs[f"{key}_is_change"]
    }
    if attrs["total_is_change"]:
        way = "rose" if attrs["total"] > 0 else "fell"
        moved = f"The share “{what}” {way} by {abs(attrs['total']) * 100:.1f} points"
        return f"{moved}: {' and '.join(causes)}" if causes else moved
    if causes:
        parts = " and ".join(f"{word} {_points(value)}" for word, value in causes.items())
        return f"The share “{what}” is much the same, in spite of {parts} points"
    return f"The share “{what}” has not changed beyond chance"


def _points(share: float) -> str:
    """A change in points, with its sign: +1.2, −4.7, 0.0."""
    text = f"{abs(share) * 100:.1f}"
    return text if float(text) == 0 else f"{'+' if share > 0 else '−'}{text}"


def _word(name: str) -> str:
    return WHO_WORDS.get(name, name)


def _who(name: str) -> str:
    if name in WHO_WORDS:
        return name
    return who_must_act(None if name == "no status" else name)


def _short(count: int) -> str:
    return (
        f"{count / 1e6:.1f}M" if count >= 999_500 else f"{count / 1000:.0f}k" if count >= 1000 else str(count)
    )
