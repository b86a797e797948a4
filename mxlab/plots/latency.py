"""Drawings of aggregation time."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mxlab.plots import style
from mxlab.plots.style import LABEL, SMALL, Row, words


def aggregation_latency(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """The share of aggregations finished by a time since the kick-off, with its band and the naive curve.

    Parameters
    ----------
    summary
        What `mxlab.analysis.aggregation_latency` gives without `by`.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    ax, theme = style.axes(ax, width=width, height=430 if width >= 600 else 400, dark=dark)
    top = style.title(ax, title or _headline(summary.attrs), _subtitle(summary.attrs))
    style.margins(ax, left=0.68, right=0.85, top=top + 0.2)
    if summary.empty:
        style.nothing(ax, "no aggregation with a time")
        return ax
    seconds, share = summary["seconds"].to_numpy(), summary["share"].to_numpy()
    best = np.where(np.isnan(share), summary["step"], share)
    shown = seconds[best >= min(0.001, best.max() / 4)]
    late = seconds[np.searchsorted(best, 0.995 * best.max())]
    late = max(late, 1.15 * max([q["seconds"] or 0 for q in _marks(summary.attrs)], default=0))
    style.time_axis(ax, shown[0], min(1.6 * late, seconds[-1]) if late > shown[0] else shown[0] * 10)
    style.share_axis(ax, "y")
    style.grid(ax, "y")
    ax.set_ylim(0, 1.02)
    if np.isnan(share).all():
        ax.step(seconds, summary["step"], where="post", color=theme.who["nobody"], linewidth=2, label="step")
    else:
        ax.fill_between(
            seconds, summary["low"], summary["high"], color=theme.who["nobody"], alpha=0.18, linewidth=0
        )
        ax.plot(
            seconds, share, color=theme.who["nobody"], linewidth=2.6, solid_capstyle="round", label="share"
        )
    ax.plot(seconds, summary["naive"], color=theme.muted, linewidth=1.1, dashes=(4, 3), label="naive")
    for mark in _marks(summary.attrs):
        _mark(ax, mark)
    _naive_words(ax, summary)
    _end_words(ax, summary)
    return ax


def _marks(attrs: Row) -> list[dict[str, Any]]:
    """The quantiles that are known."""
    found = []
    for row in attrs.get("quantiles", [])[:1]:
        for key, share, word in (("p50", 0.5, "median"), ("p90", 0.9, "p90")):
            if row[key] is not None:
                ends = {"low": row[f"{key}_low"], "high": row[f"{key}_high"]}
                found.append({"share": share, "word": word, "seconds": row[key], **ends})
    return found


def _headline(attrs: Row) -> str:
    marks = {mark["word"]: mark for mark in _marks(attrs)}
    if "median" in marks:
        return (
            f"Half of the aggregations that finish do so within {style.duration(marks['median']['seconds'])}"
        )
    return "How long aggregations take"


def _subtitle(attrs: Row) -> str:
    kinds = [
        ("n_exact", "timed by the job"),
        ("n_interval", "between two looks"),
        ("n_censored", "still running"),
    ]
    parts = [f"{attrs[key]:,} {word}" for key, word in kinds if attrs.get(key)]
    out = attrs.get("left_out", {})
    other = [
        f"{out[key]:,} {word}"
        for key, word in (("waiting_on_user", "stopped for the user"), ("failed", "failed"))
        if out.get(key)
    ]
    text = f"Share finished, by time since the kick-off; {attrs.get('n', 0):,} aggregations ({', '.join(parts) or 'none'}); band: 95 %"
    return text + (f". Not in it: {' and '.join(other)}" if other else "")


def _mark(ax: Axes, mark: Row) -> None:
    """A quantile with its interval: left of the curve, where nothing else is."""
    theme = style.theme_of(ax)
    ax.plot([mark["seconds"]], [mark["share"]], "o", color=theme.who["nobody"], markersize=6.5, zorder=5)
    plain = f"{mark['word']} {style.duration(mark['seconds'])}"
    whole = f"{plain} {style.between(mark['low'], mark['high'], mark['seconds'])}".strip()
    room = _x(ax, mark["seconds"]) * style.wide(ax) - 0.15
    tries = ((whole, LABEL), (whole, SMALL), (plain, LABEL))
    fits = [(text, size) for text, size in tries if style.text_width(text, size, bold=True) <= room]
    text, size = fits[0] if fits else (whole, SMALL)
    place = {"xytext": (-9, 4) if fits else (9, -10), "ha": "right" if fits else "left", "va": "center"}
    style.note(ax, text, (mark["seconds"], mark["share"]), size=size, weight="bold", color=theme.ink, **place)


def _naive_words(ax: Axes, summary: pd.DataFrame) -> None:
    """What the dashed line is, right of it."""
    theme = style.theme_of(ax)
    naive = summary["naive"].to_numpy()
    place = int(np.searchsorted(naive, 0.5))
    text = "first look that saw it done\n(what a simple poll reports)"
    if place >= len(naive):
        return
    at = (float(summary["seconds"].iloc[place]), float(naive[place]))
    looks = {"size": SMALL, "color": theme.muted, "linespacing": 1.3}
    room = (1 - _x(ax, at[0])) * style.wide(ax) - 0.45
    if room >= style.text_width("(what a simple poll reports)", SMALL):
        line = {"arrowstyle": "-", "color": theme.muted, "linewidth": 0.7, "relpos": (0, 0.75)}
        style.note(ax, text, at, xytext=(26, -16), va="center", arrowprops=line, **looks)
    else:
        words(ax, 1, 0.1, "dashed: first look\nthat saw it done", transform=ax.transAxes, ha="right", **looks)


def _end_words(ax: Axes, summary: pd.DataFrame) -> None:
    """How many were never seen to finish, at the curve's end."""
    still = summary.attrs.get("still_running")
    if still and still >= 0.005:
        theme = style.theme_of(ax)
        text = f"{style.percent(still)} still\nrunning"
        words(
            ax,
            1.015,
            1 - still / 2 - 0.02,
            text,
            transform=ax.get_yaxis_transform(),
            color=theme.label["wait"],
            weight="bold",
            size=SMALL,
            linespacing=1.2,
        )


def _x(ax: Axes, seconds: float) -> float:
    low, high = np.log(ax.get_xlim())
    return float((np.log(seconds) - low) / (high - low))


def latency_quantiles(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
    top: int = 15,
) -> Axes:
    """For each group a bar from its median to its 90 % point, with the median's interval.

    Parameters
    ----------
    summary
        What `mxlab.analysis.latency_quantiles` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    top
        How many groups are drawn, the largest; they are ordered by their median.
    """
    known = summary.loc[summary["p50"].notna()].head(top).sort_values("p50", ascending=False)
    by = summary.attrs.get("by") or "all"
    rest = len(summary) - len(known)
    more = f"; {rest:,} smaller ones or without a median left out" if rest else ""
    subtitle = f"Median (dot, 95 % interval) to 90 % point (bar's end) by {by}{more}"
    ax, theme = style.rows(
        ax,
        known["group"].tolist(),
        title or "How long aggregations take, slowest first",
        subtitle,
        width=width,
        dark=dark,
        beside=[f"{n:,}" for n in known["n"]],
        over="n",
        empty="no group with a median",
    )
    if known.empty:
        return ax
    style.spans(ax, known.to_dict("records"), [theme.who["nobody"]] * len(known))
    return ax


def slow_institutions(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
    top: int = 12,
) -> Axes:
    """How many times longer each institution takes than the rest, with intervals; those that pass in bold.

    Parameters
    ----------
    summary
        What `mxlab.analysis.slow_institutions` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    top
        How many institutions are drawn, the slowest.
    """
    shown, by = summary.head(top), summary.attrs.get("by") or "institution"
    slow = summary.loc[summary["is_slower"]]
    plain = f"No {by} is slower than the rest" if len(summary) else "Which institutions are slower"
    headline = plain
    if len(slow):
        first = slow.iloc[0]
        headline = f"{style.named(first[by], width)} takes {first['ratio']:.2g} times as long as the rest"
        headline += f", {len(slow) - 1} more are slower too" if len(slow) > 1 else ""
    subtitle = f"Median time over that of the rest; lines: 95 % intervals; {len(summary):,} compared, bold where the test holds"
    ax, theme = style.rows(
        ax,
        shown[by].tolist(),
        title or headline,
        subtitle,
        width=width,
        dark=dark,
        bold=set(slow[by]),
        beside=[f"{n:,}" for n in shown["n"]],
        over="n",
        empty="too few aggregations to compare",
    )
    if shown.empty:
        return ax
    low, high = shown["ratio_low"].fillna(shown["ratio"]), shown["ratio_high"].fillna(shown["ratio"])
    for place, row in enumerate(shown.to_dict("records")):
        colour = theme.ink if row["is_slower"] else theme.muted
        ax.plot([low.iloc[place], high.iloc[place]], [place, place], color=colour, linewidth=1.5)
        ax.plot([row["ratio"]], [place], "o", color=colour, markersize=6)
    ax.axvline(1, color=theme.muted, linewidth=0.9)
    ax.set_xscale("log")
    ax.set_xlim(min(float(low.min()), 0.8) / 1.08, max(float(high.max()), 1.5) * 1.1)
    style.ratio_axis(ax)
    style.grid(ax, "x")
    return ax
