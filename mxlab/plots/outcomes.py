"""Drawings of how aggregations end."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mxlab.plots import style

#: The words of the ends, by outcome and who must act.
_WORDS = {
    ("finished", "nobody"): "finished",
    ("waiting_on_user", "user"): "waits for user",
    ("failed", "user"): "failed: user",
    ("failed", "mx"): "failed: MX / bank",
    ("failed", "partner"): "failed: partner",
    ("failed", "over"): "failed: over",
    ("failed", "manual"): "failed: manual",
    ("failed", "unknown"): "failed: unknown",
}


def outcomes_over_time(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """Where started aggregations are, by time since the kick-off, one area for each end.

    Parameters
    ----------
    summary
        What `mxlab.analysis.outcomes_over_time` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    ax, theme = style.axes(ax, width=width, height=430, dark=dark)
    n = summary.attrs.get("n", 0)
    ends = _ends(summary, theme)
    subtitle = f"Where started aggregations are, by time since the kick-off (cumulative incidence, {style.counted(n, 'member')})"
    top = style.title(ax, title or _headline(ends), subtitle)
    labels = [f"{end['word']} {style.percent(end['share'][-1])}" for end in ends]
    room = style.end_room([*labels, "still running 99 %"])
    style.margins(ax, left=0.68, right=room, top=top + 0.2)
    if not ends:
        style.nothing(ax, "no aggregation was started")
        return ax
    seconds = np.concatenate([[0.0], ends[0]["seconds"]])
    done = sum(end["share"] for end in ends)
    last = float(seconds[1:][np.searchsorted(done, 0.985 * done[-1])]) * 1.5
    style.time_axis(ax, 0, min(last, float(seconds[-1])), log=False)
    style.share_axis(ax, "y")
    ax.set_ylim(0, 1)
    ax.set_facecolor(theme.nothing)
    floor = np.zeros(len(seconds))
    for end in ends:
        ceiling = floor + np.concatenate([[0.0], end["share"]])
        area = ax.fill_between(seconds, floor, ceiling, color=end["colour"], linewidth=0, hatch=end["hatch"])
        area.set_label(end["word"])
        ax.plot(seconds, ceiling, color=theme.paper, linewidth=1.1)
        floor = ceiling
    style.end_words(ax, _ends_in_words(ax, ends, labels, seconds))
    return ax


def _ends(summary: pd.DataFrame, theme: style.Theme) -> list[dict[str, Any]]:
    """Each end with its curve, word and colours; a second end of one colour is a shade of it."""
    found: list[dict[str, Any]] = []
    for key, part in summary.groupby(["outcome", "who_must_act"], sort=False, observed=True):
        outcome, who = (str(word) for word in key)
        again = sum(end["who"] == who for end in found)
        found.append(
            {
                "outcome": outcome,
                "who": who,
                "word": _WORDS[outcome, who],
                "seconds": part["seconds"].to_numpy(),
                "share": part["share"].to_numpy(),
                "colour": style.shade(theme.who[who], again, 2, theme),
                "label": theme.label[who],
                "hatch": style.HATCHES.get(who),
            }
        )
    return found


def _headline(ends: list[dict[str, Any]]) -> str:
    shares = {(end["outcome"], end["who"]): float(end["share"][-1]) for end in ends}
    done, waits = shares.get(("finished", "nobody"), 0.0), shares.get(("waiting_on_user", "user"), 0.0)
    if not done:
        return "How started aggregations end"
    return f"{style.percent(done)} of started aggregations finish" + (
        f", {style.percent(waits)} stop for their user" if waits else ""
    )


def _ends_in_words(
    ax: Axes, ends: list[dict[str, Any]], labels: list[str], seconds: np.ndarray[Any, Any]
) -> list[tuple[float, str, str]]:
    """The middle of each area at its right edge, its word and its colour; the last is what still runs."""
    at = [float(np.interp(ax.get_xlim()[1], seconds[1:], end["share"])) for end in ends]
    tops = np.cumsum(at)
    found = [
        (float(top - share / 2), text, end["label"])
        for top, share, text, end in zip(tops, at, labels, ends, strict=True)
    ]
    running = 1 - float(tops[-1])
    if running >= 0.0005:
        found.append((1 - running / 2, f"still running {style.percent(running)}", style.theme_of(ax).muted))
    return found
