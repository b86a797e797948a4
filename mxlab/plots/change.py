"""Drawings of change between two snapshots."""

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
    """Moves from status to status as a matrix, what does not balance framed; of who must act, as a flow.

    Parameters
    ----------
    summary
        What `mxlab.analysis.transitions` gives.
    ax
        Where to draw; a new figure without it.
    title
        Instead of the finding.
    width, dark
        Of the new figure: pixels; on dark paper.
    """
    order = [str(word) for word in (WHO_MUST_ACT if summary.attrs.get("by_who") else STATUSES)]
    seen = set(summary["from_status"]) | set(summary["to_status"])
    names = [word for word in order if word in seen] + sorted(seen - {*order})
    flow = bool(summary.attrs.get("by_who"))
    height = 420 if flow else 230 + 25 * max(len(names), 4)
    ax, theme = style.axes(ax, width=width, height=height, dark=dark)
    changes = summary.loc[summary["is_change"]].sort_values("count", ascending=False)
    headline = "Nothing moved beyond the usual coming and going"
    if len(changes):
        first = changes.iloc[0]
        headline = f"{style.counted(int(first['count']), 'member')} moved from {_word(first['from_status'])} to {_word(first['to_status'])}"
    n, moved = summary.attrs.get("n", 0), summary.attrs.get("n_moved", 0)
    sizes = f"{n:,} in both, {moved:,} moved"
    subtitle = (
        f"Members by status before (row) and after (column), {sizes}; framed or bold: more than come back"
    )
    if flow:
        subtitle = f"Who had to act before (left) and after (right), {sizes}"
    top = style.title(ax, title or headline, subtitle)
    if names and flow:
        _flow(ax, summary, names, top)
        return ax
    if names and style.inches(ax)[0] / len(names) < 0.28:
        _moves(ax, summary, top)
        return ax
    left = max([style.text_width(_word(name), LABEL) for name in names], default=1.0)
    style.margins(ax, left=left + style.EDGE + 0.12, right=0.3, top=top + left * 0.72 + 0.25, bottom=0.05)
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
        fits = style.text_width(f"{row['count']:,}", SMALL) < _cell(ax, len(names)) * 0.98
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
        As `transitions` takes them.
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
    room = 0.5 / (float(ax.get_position().width) * style.inches(ax)[0])
    pad = max(float(np.ptp(ends)), 1e-3) * room / (1 - 2 * room)
    ax.set_xlim(float(ends.min()) - pad, float(ends.max()) + pad)
    ax.axvline(0, color=theme.muted, linewidth=0.9)
    ax.axhline(len(rows) - 0.5, color=theme.grid, linewidth=0.9)
    ax.set_xticks([])
    return ax


def _flow(ax: Axes, summary: pd.DataFrame, names: list[str], top: float) -> None:
    """Ribbons from before to after, as wide as the members in them; those who stayed are pale."""
    theme = style.theme_of(ax)
    matrix = summary.pivot_table(index="from_status", columns="to_status", values="count", aggfunc="sum")
    counts = matrix.reindex(index=names, columns=names).fillna(0).to_numpy(dtype=np.float64)
    share, gap = counts / max(counts.sum(), 1), 0.015
    ends = [share.sum(axis=1), share.sum(axis=0)]
    starts = [np.cumsum(part + gap) - part - gap for part in ends]
    cursor = [start.copy() for start in starts]
    x = np.linspace(0, 1, 60)
    bend = x * x * (3 - 2 * x)
    for i, name in enumerate(names):
        for j in np.flatnonzero(share[i]):
            left, right, wide = cursor[0][i], cursor[1][j], share[i, j]
            low = left + (right - left) * bend
            colour = theme.who[_who(name)]
            ax.fill_between(x, low, low + wide, color=colour, alpha=0.22 if i == j else 0.75, linewidth=0)
            cursor[0][i], cursor[1][j] = left + wide, right + wide
    room = (
        max(style.text_width(f"{_word(name)} 100 %", SMALL, bold=True) for name in names) + style.EDGE + 0.12
    )
    style.margins(ax, left=room, right=room, top=top + 0.15, bottom=0.05)
    tall = 1 + gap * len(names)
    least = tall * 0.16 / (float(ax.get_position().height) * style.inches(ax)[1])
    for side, (start, part) in enumerate(zip(starts, ends, strict=True)):
        places = style.apart((start + part / 2).tolist(), least, 0.0, tall)
        for name, place, size in zip(names, places, part, strict=True):
            if not size:
                continue
            text = f"{_word(name)} {style.percent(float(size))}"
            look = {"size": SMALL, "weight": "bold", "color": theme.label[_who(name)]}
            words(ax, (-0.012, 1.012)[side], place, text, ha=("right", "left")[side], **look)
    ax.set_xlim(0, 1)
    ax.set_ylim(tall, 0)
    ax.set_xticks([])
    ax.set_yticks([])


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
    if not attrs["total_is_change"]:
        return f"The share “{what}” has not changed beyond chance"
    moved = f"The share “{what}” {'rose' if attrs['total'] > 0 else 'fell'} by {abs(attrs['total']) * 100:.1f} points"
    causes = [
        word
        for key, word in (("mix", "another mix of members"), ("rate", "other rates"))
        if attrs[f"{key}_is_change"]
    ]
    return f"{moved}: {' and '.join(causes)}" if causes else moved


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


def _cell(ax: Axes, n: int) -> float:
    return float(ax.get_position().width) * style.inches(ax)[0] / max(n, 1)


def _short(count: int) -> str:
    return (
        f"{count / 1e6:.1f}M" if count >= 999_500 else f"{count / 1000:.0f}k" if count >= 1000 else str(count)
    )
