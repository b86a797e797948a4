"""Drawings of a run's requests."""

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
    ax
        Where to draw; a new figure without it.
    title
        Instead of the finding.
    width, dark
        Of the new figure: pixels; on dark paper.
    """
    shown = summary.loc[summary["p50"].notna()]
    again = shown["attempt"].to_numpy() > 1
    names = [
        f"{endpoint}, attempt {attempt}" if attempt > 1 else str(endpoint)
        for endpoint, attempt in zip(shown["endpoint"], shown["attempt"], strict=True)
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
    style.time_axis(ax, float(shown["p50"].min()) / 1.6, float(shown["p99"].max()) * 1.2)
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
        As `reply_times` takes them.
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
        text += f", {row['sent_again']:,} sent again" if style.inches(ax)[0] >= 6 else ""
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
    """Requests a second, how many were in flight, and how many failed, over the run.

    Parameters
    ----------
    summary
        What `mxlab.analysis.run_timeline` gives.
    ax, title, width, dark
        As `reply_times` takes them.
    """
    ax, theme = style.axes(ax, width=width, height=380, dark=dark)
    attrs = summary.attrs
    n, failed = attrs.get("n", 0), attrs.get("n_failed", 0)
    span, length = attrs.get("span_seconds", 1.0), attrs.get("seconds", 0.0)
    most = int(summary["in_flight"].max()) if len(summary) else 0
    went = f"{failed:,} failed" if failed else "none failed"
    headline = (
        f"{style.counted(n, 'request')} in {style.duration(length)}, {went}" if n else "The run's course"
    )
    subtitle = f"By real time since the first request, in spans of {style.duration(span)}; at most {most:,} in flight at once"
    top = style.title(ax, title or headline, subtitle)
    style.margins(ax, left=0.68, right=1.2, top=top + 0.2)
    if summary.empty:
        style.nothing(ax, "no request was sent")
        return ax
    middle = summary["seconds"] + span / 2
    rate, bad = summary["sent_per_second"], summary["failed_per_second"]
    ax.fill_between(middle, 0, rate, step="mid", color=theme.grid, linewidth=0, label="sent")
    ax.plot(middle, summary["in_flight"], color=theme.ink, linewidth=1.6, label="in flight")
    ax.fill_between(middle, 0, bad, step="mid", color=theme.muted, linewidth=0, label="failed")
    style.time_axis(ax, 0, float(middle.iloc[-1] + span / 2), log=False)
    ax.set_ylim(0, max(float(rate.max()), most, 1) * 1.08)
    style.count_axis(ax, "y")
    style.grid(ax, "y")
    last = 8  # spans: labels stand where the lines end, not where the last one happened to be
    ends = [
        (float(rate.tail(last).median()), "sent a second", theme.muted),
        (float(summary["in_flight"].tail(last).median()), "in flight", theme.ink),
        (float(bad.tail(last).median()), "failed a second", theme.muted),
    ]
    least = ax.get_ylim()[1] * 0.17 / (float(ax.get_position().height) * style.inches(ax)[1])
    places = style.apart([end[0] for end in ends], least, 0, ax.get_ylim()[1])
    for place, (_, text, colour) in zip(places, ends, strict=True):
        words(ax, 1.012, place, text, transform=ax.get_yaxis_transform(), size=SMALL, color=colour)
    return ax
