"""Drawings of what several runs tell together."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

from mxlab.nexus.status import WHO_MUST_ACT, who_must_act
from mxlab.plots import style
from mxlab.plots.style import SMALL, WHO_WORDS


def status_history(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """The share of members on each answer to who must act, run by run, with its band.

    Parameters
    ----------
    summary
        What `mxlab.analysis.status_history` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    ax, theme = style.axes(ax, width=width, height=430, dark=dark)
    runs = summary.attrs.get("runs", 0)
    sizes = summary.drop_duplicates("run_id")["n"]
    span = dict.fromkeys(f"{size:,}" for size in (sizes.min(), sizes.max())) if len(sizes) else ["no"]
    members = f"{' to '.join(span)} members each"
    subtitle = f"Who must act, share of members in {style.counted(runs, 'run')}, {members}; bands: 95 %"
    top = style.title(ax, title or _headline(summary), subtitle)
    shown = [who for who in WHO_MUST_ACT if summary.loc[summary["who_must_act"] == who, "count"].sum()]
    last = summary.drop_duplicates("who_must_act", keep="last").set_index("who_must_act")["share"]
    labels = {who: f"{WHO_WORDS[who]} {style.percent(float(last[who]))}" for who in shown}
    style.margins(ax, left=0.68, right=style.end_room(list(labels.values())), top=top + 0.2)
    if not shown:
        style.nothing(ax, "no run with a member")
        return ax
    for who in shown:
        part = summary.loc[summary["who_must_act"] == who]
        at = part["seen_at"].dt.tz_localize(None)
        ax.fill_between(at, part["low"], part["high"], color=theme.who[who], alpha=0.18, linewidth=0)
        look: dict[str, Any] = {"linewidth": 2.2, "markersize": 4, "clip_on": False}
        ax.plot(at, part["share"], "o-", color=theme.who[who], label=who, **look)
    if at.iloc[0] < at.iloc[-1]:
        ax.set_xlim(at.iloc[0], at.iloc[-1])
    ax.set_ylim(0, min(1.0, float(summary["high"].max()) * 1.04))
    style.share_axis(ax, "y", ax.get_ylim()[1])
    style.grid(ax, "y")
    _date_axis(ax)
    style.end_words(ax, [(float(last[who]), text, theme.label[who]) for who, text in labels.items()])
    return ax


class _Dates(ConciseDateFormatter):
    """Dates as people write them, 3 Nov and not 03 Nov, by means that every platform has."""

    def format_ticks(self, values: list[float]) -> list[str]:
        """The words of all ticks."""
        texts: list[str] = super().format_ticks(values)  # type: ignore[no-untyped-call]
        return [text.removeprefix("0") if " " in text else text for text in texts]


def _date_axis(ax: Axes) -> None:
    # With fewer than five, matplotlib finds no step for some ranges (a minute and a half, two years) and says so.
    locator = AutoDateLocator(minticks=2, maxticks=max(5, int(1.6 * style.wide(ax))))  # type: ignore[no-untyped-call]
    formatter = _Dates(  # type: ignore[no-untyped-call]
        locator,
        formats=["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S s"],
        zero_formats=["", "%Y", "%d %b", "%d %b", "%H:%M", "%H:%M"],
        show_offset=False,
    )
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(formatter)


def _headline(summary: pd.DataFrame) -> str:
    """The change from the first run to the last, where intervals are apart: of the share connected, else the largest."""
    if summary["run_id"].nunique() < 2:
        return "Who must act, over time"
    ends = {}
    for who, part in summary.groupby("who_must_act", observed=True, sort=False):
        first, last = part.iloc[0], part.iloc[-1]
        if first["low"] > last["high"] or last["low"] > first["high"]:
            ends[str(who)] = first["share"], last["share"]
    share = summary.loc[summary["who_must_act"] == "nobody", "share"]
    connected = f"{style.percent(float(share.iloc[-1]) if len(share) else 0.0)} of members are connected"
    if "nobody" in ends:
        return f"{connected}, {style.percent(ends['nobody'][0])} were in the first run"
    if not ends:
        return f"{connected} in the last run"
    most = max(ends, key=lambda who: abs(ends[who][1] - ends[who][0]))
    before, after = map(style.percent, ends[most])
    return f"“{WHO_WORDS[most]}”: {after} of members, {before} in the first run"


def time_in_status(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """For each status a bar from its median length to its 90 % point, with the median's interval.

    Parameters
    ----------
    summary
        What `mxlab.analysis.time_in_status` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    known = summary.loc[summary["p50"].notna()]
    subtitle = "Median (dot, 95 % interval) to 90 % point (bar's end) of episodes seen to begin, where 20 or more ended"
    ax, theme = style.rows(
        ax,
        [WHO_WORDS.get(status, status) for status in known["status"]],
        title or "How long a member stays in a status",
        subtitle,
        width=width,
        dark=dark,
        beside=[f"{n:,}" for n in known["n"]],
        over="episodes",
        empty="no status with a median: it takes several runs and 20 ended episodes",
    )
    if known.empty:
        return ax
    rows = known.to_dict("records")
    acts = [status if status in WHO_WORDS else who_must_act(status) for status in known["status"]]
    style.spans(ax, rows, [theme.who[who] for who in acts])
    return ax


def time_to_recover(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """The share of troubled members that are connected again by a time since they left it, a curve for each group.

    Parameters
    ----------
    summary
        What `mxlab.analysis.time_to_recover` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    ax, theme = style.axes(ax, width=width, height=430, dark=dark)
    quantiles = {row["group"]: row for row in summary.attrs.get("quantiles", [])}
    whole = quantiles.get("all", {})
    median = whole.get("p50")
    headline = "How long members take to be connected again"
    if median is not None and not np.isnan(median):
        headline = f"Half of the troubled are connected again within {style.duration(median)}"
    gap = summary.attrs.get("gap_seconds")
    looks = f"; looks {style.duration(gap)} apart" if gap and not np.isnan(gap) else ""
    subtitle = f"Share connected again, by time since CONNECTED was left ({style.counted(whole.get('n', 0), 'episode')}); band: 95 %; dashed: of seen episodes alone{looks}"
    top = style.title(ax, title or headline, subtitle)
    groups = list(dict.fromkeys(summary.loc[summary["share"].notna(), "group"]))
    labels = {
        name: f"{WHO_WORDS.get(name, style.cut(name, 1.2, SMALL))}, n {quantiles.get(name, {}).get('n', 0):,}"
        for name in groups
    }
    style.margins(ax, left=0.68, right=style.end_room(list(labels.values())), top=top + 0.2)
    if not groups:
        style.nothing(ax, "no curve: it takes several runs and 20 episodes seen to begin and to end")
        return ax
    ends = []
    for name in groups:
        part = summary.loc[summary["group"] == name]
        colour = theme.who.get(name, theme.ink)
        seconds = part["seconds"]
        if name == "all":
            ax.fill_between(seconds, part["low"], part["high"], color=colour, alpha=0.12, linewidth=0)
            ax.plot(seconds, part["naive"], color=theme.muted, linewidth=1.1, dashes=(4, 3), label="naive")
        thick = 2.6 if name == "all" else 1.6
        ax.plot(seconds, part["share"], color=colour, linewidth=thick, label=name)
        ends.append((float(part["share"].iloc[-1]), labels[name], theme.label.get(name, theme.ink)))
    style.time_axis(ax, max(float(summary["seconds"].min()), 60.0), float(summary["seconds"].max()))
    ax.set_ylim(0, 1.02)
    style.share_axis(ax, "y")
    style.grid(ax, "y")
    style.end_words(ax, ends)
    return ax
