"""Drawings of freshness."""

import pandas as pd
from matplotlib.axes import Axes

from mxlab.plots import style
from mxlab.plots.style import LABEL, SMALL, words


def freshness(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """The share of eligible members whose data is at most so old.

    Parameters
    ----------
    summary
        What `mxlab.analysis.freshness` gives without `by`.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    ax, theme = style.axes(ax, width=width, height=420, dark=dark)
    attrs = summary.attrs
    within, known = attrs.get("within") or {}, attrs.get("n_eligible", 0)
    span = style.duration(attrs.get("within_seconds", 86_400.0))
    plain = "How old the data of eligible members is"
    headline = (
        f"{style.percent(within['share'])} of eligible members are fresh within {span}" if known else plain
    )
    apart = f". Not in it: {attrs.get('n_ineligible', 0):,} that MX does not refresh"
    subtitle = (
        f"Share of {style.counted(known, 'eligible member')} by age of the last success; band: 95 %{apart}"
    )
    top = style.title(ax, title or headline, subtitle)
    style.margins(ax, left=0.68, right=0.6, top=top + 0.2)
    if summary.empty:
        style.nothing(ax, "no eligible member")
        return ax
    seconds = summary["seconds"]
    first = float(seconds[summary["share"] >= 0.005].min()) if (summary["share"] >= 0.005).any() else 60.0
    style.time_axis(ax, max(first, 60.0), float(seconds.iloc[-1]))
    style.share_axis(ax, "y")
    style.grid(ax, "y")
    ax.set_ylim(0, 1.02)
    ax.fill_between(
        seconds, summary["low"], summary["high"], color=theme.who["nobody"], alpha=0.18, linewidth=0
    )
    ax.plot(seconds, summary["share"], color=theme.who["nobody"], linewidth=2.6, label="share")
    limit = attrs["within_seconds"]
    ax.axvline(limit, color=theme.muted, linewidth=0.9, dashes=(4, 3))
    style.note(ax, span, (limit, 0), xytext=(4, 7), va="center", color=theme.muted, size=SMALL)
    ax.plot([limit], [within["share"]], "o", color=theme.who["nobody"], markersize=6.5, zorder=5)
    text = f"{style.percent(within['share'])} ({within['low'] * 100:.0f}–{within['high'] * 100:.0f} %)"
    beside = (8, -20 if within["share"] > 0.2 else 14)  # below, where a curve that only rises is not
    look = {"size": LABEL, "weight": "bold", "color": theme.ink, "va": "center"}
    style.note(ax, text, (limit, within["share"]), xytext=beside, **look)
    never = attrs["n_never"]
    if never:
        text = f"{style.percent(never / known)}\nnever"
        words(
            ax,
            1.012,
            1 - never / known / 2,
            text,
            transform=ax.get_yaxis_transform(),
            color=theme.muted,
            size=SMALL,
        )
    return ax
