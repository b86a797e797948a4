"""Drawings of institutions against each other and against their past."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from mxlab.plots import style
from mxlab.plots.style import SMALL


def institution_funnel(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """A dot for each institution: its share waiting for MX or the bank against its size, with limits.

    Parameters
    ----------
    summary
        What `mxlab.analysis.institution_funnel` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    ax, theme = style.axes(ax, width=width, height=430, dark=dark)
    by = summary.attrs.get("by", "institution")
    outside = summary.loc[summary["is_outside"]]
    worse = outside.loc[outside["share"] > (summary.attrs.get("fleet_share") or 0)]
    headline = "No institution stands out from the others"
    if len(worse):
        who = (
            f"{style.named(worse[by].iloc[0], width)} waits"
            if len(worse) == 1
            else f"{len(worse)} institutions wait"
        )
        headline = f"{who} for MX or the bank beyond chance"
    subtitle = "Share of members waiting for MX or the bank by size of institution; dashed: where 95 % would lie by chance, dotted: 99.8 %; line: all"
    top = style.title(ax, title or headline, subtitle)
    style.margins(ax, left=0.68, right=0.4, top=top + 0.2)
    if summary.empty:
        style.nothing(ax, "no institution")
        return ax
    limits = summary.sort_values("n")
    for name, dashes in (("95", (4, 3)), ("998", (1, 1.5))):
        for side in ("low", "high"):
            ax.plot(limits["n"], limits[f"{side}_{name}"], color=theme.muted, linewidth=1, dashes=dashes)
    ax.axhline(summary.attrs["fleet_share"], color=theme.muted, linewidth=0.9)
    look: dict[str, Any] = {"linewidth": 0, "clip_on": False}
    inside = summary.loc[~summary["is_outside"]]
    ax.plot(
        inside["n"], inside["share"], "o", color=theme.muted, markersize=4, alpha=0.5, label="inside", **look
    )
    ax.plot(outside["n"], outside["share"], "o", color=theme.who["mx"], markersize=6, label="outside", **look)
    far = [summary["share"].quantile(0.995), outside["share"].max() if len(outside) else 0, 0.02]
    last = min(1.15 * float(max(far)), 1.0)
    ax.set_xscale("log")
    ax.set_xlim(max(float(summary["n"].min()) * 0.9, 0.9), float(summary["n"].max()) * 1.6)
    ax.set_ylim(0, last)
    style.share_axis(ax, "y", last)
    style.count_axis(ax, "x", unit="members")
    style.grid(ax, "y")
    _outside_names(ax, outside.head(8).rename(columns={by: "name"}))
    return ax


def _outside_names(ax: Axes, outside: pd.DataFrame) -> None:
    """The names of what lies outside, each beside its dot; none where an earlier one is in the way."""
    width, height = style.wide(ax), style.tall(ax)
    taken: list[tuple[float, float, float]] = []
    for row in outside.to_dict("records"):
        x, y = ax.transAxes.inverted().transform(ax.transData.transform((row["n"], row["share"])))
        name = style.cut(row["name"], min(1.8, width / 2 - 0.2), SMALL, bold=True)
        long = style.text_width(name, SMALL, bold=True) + 0.1
        fits = x * width + long < width + 0.3
        left, side = (x * width, "left") if fits else (x * width - long, "right")
        if any(
            abs(y * height - at) < 0.16 and left < end and begin < left + long for begin, end, at in taken
        ):
            continue
        taken.append((left, left + long, y * height))
        style.note(
            ax,
            name,
            (row["n"], row["share"]),
            xytext=(-6 if side == "right" else 6, 7),
            ha=side,
            va="center",
            size=SMALL,
            weight="bold",
            color=style.theme_of(ax).label["mx"],
        )


def outage_scan(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
    top: int = 10,
) -> Axes:
    """The least explicable institutions of a scan: failures of the window against the baseline.

    Parameters
    ----------
    summary
        What `mxlab.analysis.outage_scan` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    top
        How many are drawn, each in its most telling window.
    """
    by = summary.attrs.get("by", "institution")
    shown = summary.drop_duplicates(by).head(top)
    alarms = shown.loc[shown["is_alarm"], by].tolist()
    scanned = summary.attrs.get("scanned", 0)
    plain = f"No outage among {style.counted(scanned, 'institution')}"
    one = f"{style.named(alarms[0], width)} fails far more than its past explains" if alarms else plain
    headline = (
        one if len(alarms) < 2 else f"{len(alarms)} institutions fail far more than their past explains"
    )
    subtitle = "Failed share of the last hours' jobs (dot, 95 % interval) against the institution's baseline (bar); bold: alarm"
    ax, theme = style.rows(
        ax,
        shown[by].tolist(),
        title or headline,
        subtitle,
        width=width,
        dark=dark,
        bold=set(alarms),
        beside=[f"{row.failures:,} of {row.n:,} in {row.window_hours:g} h" for row in shown.itertuples()],
        over="failed",
        empty="no job in the window",
    )
    if shown.empty:
        return ax
    for place, row in enumerate(shown.to_dict("records")):
        colour = theme.who["mx"] if row["is_alarm"] else theme.muted
        ax.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.5)
        ax.plot([row["share"]], [place], "o", color=colour, markersize=6, clip_on=False)
        ax.plot([row["baseline_share"]] * 2, [place - 0.3, place + 0.3], color=theme.ink, linewidth=1.6)
    ax.set_xlim(0, 1)
    style.share_axis(ax, "x")
    style.grid(ax, "x")
    return ax


def attributable_share(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
    top: int = 10,
) -> Axes:
    """How many members more than at the others' rate wait for MX or the bank, by institution.

    Parameters
    ----------
    summary
        What `mxlab.analysis.attributable_share` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    top
        How many are drawn, the costliest.
    """
    by = summary.attrs.get("by", "institution")
    above = summary.loc[summary["excess"] > 0]
    shown = above.loc[above["excess"] >= min(1.5, above["excess"].max())].head(top)
    sure = shown.loc[(shown["excess_low"] > 0) & (shown["excess"] >= 1.5)]
    headline = "What each institution adds to members waiting for MX or the bank"
    if len(sure):
        first = sure.iloc[0]
        fleet, without = (style.percent(first[name]) for name in ("fleet_share", "fleet_share_without"))
        headline = f"With {style.named(first[by], width)} like the rest, {without} would wait for MX or the bank, not {fleet}"
    rest = len(above) - len(shown)
    more = f"; {rest:,} more add less than two" if rest else ""
    subtitle = f"Members waiting for MX or the bank beyond what the others' share explains; lines: 95 % intervals{more}"
    ax, theme = style.rows(
        ax,
        shown[by].tolist(),
        title or headline,
        subtitle,
        width=width,
        dark=dark,
        bold=set(sure[by].head(1)),
        beside=[f"{n:,}" for n in shown["n"]],
        over="members",
        empty="no institution is above the others",
    )
    if shown.empty:
        return ax
    for place, row in enumerate(shown.to_dict("records")):
        colour = theme.who["mx"] if row["excess_low"] > 0 else theme.muted
        ax.barh(place, row["excess"], height=0.66, color=colour)
        ax.plot([row["excess_low"], row["excess_high"]], [place, place], color=theme.ink, linewidth=0.9)
        style.note(
            ax,
            f"{row['excess']:,.0f}",
            (row["excess_high"], place),
            xytext=(6, 0),
            va="center",
            color=theme.ink,
        )
    ax.set_xlim(min(0.0, float(shown["excess_low"].min())), float(shown["excess_high"].max()) * 1.12)
    ax.axvline(0, color=theme.muted, linewidth=0.9)
    style.count_axis(ax, "x")
    return ax
