"""Drawings of a run's requests."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mxlab.plots import style
from mxlab.plots.style import SMALL, words


def reply_times(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """Median, 90 % and 99 % points of reply time by endpoint and attempt.

    Parameters
    ----------
    summary
        What `mxlab.analysis.reply_times` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    shown = summary.loc[summary["p50"].notna()]
    again = shown["attempt"].to_numpy() > 1
    same = shown["endpoint"].duplicated()
    names = [
        f"attempt {attempt}" if below else f"{endpoint}, attempt {attempt}" if attempt > 1 else str(endpoint)
        for endpoint, attempt, below in zip(shown["endpoint"], shown["attempt"], same, strict=True)
    ]
    headline = "How fast replies come"
    if len(shown):
        slow = shown.loc[~again if (~again).any() else again].sort_values("p90").iloc[-1]
        headline = f"Nine in ten replies of {slow['endpoint']} come within {style.duration(slow['p90'])}"
    subtitle = "Sent to last byte: median (dot, 95 % interval), 90 % (bar's end) and 99 % point (tick)"
    ax, theme = style.rows(
        ax,
        names,
        title or headline,
        subtitle,
        width=width,
        dark=dark,
        beside=[f"{n:,}" for n in shown["n"]],
        over="n",
        empty="no reply",
    )
    if shown.empty:
        return ax
    for place, row in enumerate(shown.to_dict("records")):
        ax.barh(place, row["p90"] - row["p50"], left=row["p50"], height=0.34, color=theme.muted, alpha=0.35)
        ax.plot([row["p50_low"], row["p50_high"]], [place, place], color=theme.ink, linewidth=1.6)
        ax.plot([row["p50"]], [place], "o", color=theme.ink, markersize=5.5)
        ax.plot([row["p99"]] * 2, [place - 0.2, place + 0.2], color=theme.muted, linewidth=1.4)
    first = float(shown["p50"].min())
    least = max(
        float(shown["p50_low"].fillna(first).min()), first / 4
    )  # a few replies have endless intervals
    style.time_axis(ax, least / 1.25, float(shown["p99"].max()) * 1.2)
    style.grid(ax, "x")
    return ax


def request_failures(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
    top: int = 12,
) -> Axes:
    """How many requests failed, by endpoint and reason.

    Parameters
    ----------
    summary
        What `mxlab.analysis.request_failures` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    top
        How many rows are drawn, the commonest.
    """
    shown = summary.head(top)
    n, failed = summary.attrs.get("n", 0), summary.attrs.get("n_failed", 0)
    headline = f"{failed:,} of {style.counted(n, 'request')} failed" if failed else "No request failed"
    rest = len(summary) - len(shown)
    more = f"; {rest} rarer ones not shown" if rest else ""
    ax, theme = style.rows(
        ax,
        [f"{row.endpoint}: {row.reason}" for row in shown.itertuples()],
        title or headline,
        f"Failed requests by endpoint and reason{more}",
        width=width,
        dark=dark,
        part=0.45,
        empty="nothing failed",
    )
    if shown.empty:
        return ax
    most = float(shown["count"].max())
    for place, row in enumerate(shown.to_dict("records")):
        ax.barh(place, row["count"], height=0.66, color=theme.muted)
        text = f"{row['count']:,}  ({style.percent(row['share'])})"
        again = row["sent_again"] and style.inches(ax)[0] >= 6
        text += f", {row['sent_again']:,} sent again" if again else ""
        style.note(ax, text, (row["count"], place), xytext=(6, 0), va="center", size=SMALL, color=theme.ink)
    ax.set_xlim(0, most * 1.6)
    ax.set_xticks([])
    return ax


def run_timeline(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """Three panels over one time: requests sent a second, how many were in flight, and how many failed a second.

    Parameters
    ----------
    summary
        What `mxlab.analysis.run_timeline` gives.
    ax, title, width, dark
        As `status_counts` takes them; the panels are the `child_axes` of the Axes that comes back.
    """
    ax, theme = style.axes(ax, width=width, height=460, dark=dark)
    attrs = summary.attrs
    n, failed = attrs.get("n", 0), attrs.get("n_failed", 0)
    span, length = attrs.get("span_seconds", 1.0), attrs.get("seconds", 0.0)
    went = f"{failed:,} failed" if failed else "none failed"
    headline = (
        f"{style.counted(n, 'request')} in {style.duration(length)}, {went}" if n else "The run's course"
    )
    subtitle = f"By real time since the first request, in spans of {style.duration(span)}"
    top = style.title(ax, title or headline, subtitle)
    style.margins(ax, left=0.68, right=0.3, top=top + 0.15)
    ax.set_xticks([])
    ax.set_yticks([])
    if summary.empty:
        style.nothing(ax, "no request was sent")
        return ax
    edges = np.append(summary["seconds"], summary["seconds"].iloc[-1] + span)
    room, at = 0.26 / style.tall(ax), 1.0  # for the words above a panel
    for name, word, part, colour in (
        ("sent_per_second", "sent a second", 0.42, theme.muted),
        ("in_flight", "in flight", 0.29, theme.ink),
        ("failed_per_second", "failed a second", 0.29, theme.ink),
    ):
        at -= part
        panel = ax.inset_axes((0, at, 1, part - room))
        style.axes(panel, width=width, height=0, dark=dark)
        values = summary[name].to_numpy()
        panel.stairs(values, edges, fill=True, color=theme.grid)
        panel.stairs(values, edges, color=colour, linewidth=1.1, label=name)
        style.time_axis(panel, 0, float(edges[-1]), log=False)
        panel.tick_params(labelbottom=at < 0.01)
        most = max(float(values.max()), 1.0)
        panel.set_ylim(-0.02 * most, 1.05 * most)
        style.count_axis(panel, "y", most=2)
        style.grid(panel, "y")
        said = f"{word}, at most {values.max():,.0f}" if values.any() else f"{word}: none"
        place = {"transform": panel.transAxes, "size": SMALL, "weight": "bold", "color": theme.ink}
        words(panel, 0, 1 + 0.1 / style.tall(panel), said, **place)
    return ax
