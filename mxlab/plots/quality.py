"""Drawings of findings."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from mxlab.plots import style
from mxlab.plots.style import SMALL, words

#: Room for so many, if there are fewer: a lone finding is a cell and not a wall.
_ROWS, _COLUMNS = 3, 6


def findings_by_institution(
    summary: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """A matrix of rules and institutions; the darker a cell, the more records fail there.

    Parameters
    ----------
    summary
        What `mxlab.analysis.findings_by_institution` gives.
    ax, title, width, dark
        As `status_counts` takes them.
    """
    rules = list(dict.fromkeys(summary["rule"]))
    totals = summary.groupby("institution", observed=True)["count"].sum().sort_values(ascending=False)
    banks = [name for name in totals.index if name != "all other"][: 5 if width < 600 else 12]
    banks += ["all other"] if len(totals) > len(banks) else []
    shown = [style.cut(bank, 1.9, SMALL) for bank in banks]
    room = max([style.text_width(bank, SMALL) for bank in shown], default=0.7) * 0.72 + 0.1
    height = 150 + 100 * room + 24 * max(len(rules), _ROWS)
    ax, theme = style.axes(ax, width=width, height=height, dark=dark)
    headline = "No record fails a rule"
    if rules:
        broken = int(summary.loc[summary["severity"] == "error", "count"].sum())
        headline = (
            f"{style.counted(broken, 'error')} in the records"
            if broken
            else "No errors in the records, some oddities"
        )
    bold = set(summary.loc[summary["severity"] == "error", "rule"])
    subtitle = "Findings by rule, gravest first, and institution; bold: errors"
    top = style.title(ax, title or headline, subtitle, above=room)
    style.name_rows(ax, rules, bold=bold, top=top + room + 0.15, right=0.8, part=0.4)
    if not rules:
        style.nothing(ax, "no findings")
        return ax
    shades = LinearSegmentedColormap.from_list("findings", [theme.nothing, theme.muted])
    table = summary.assign(
        institution=summary["institution"].where(summary["institution"].isin(banks), "all other")
    )
    cells = table.groupby(["rule", "institution"], observed=True)["count"].sum().reset_index()
    most = float(np.log1p(cells["count"].max()))
    for rule, bank, count in zip(cells["rule"], cells["institution"], cells["count"], strict=True):
        x, y, part = banks.index(bank), rules.index(rule), float(np.log1p(count)) / most
        ax.barh(y, 0.94, left=x - 0.47, height=0.9, color=shades(part), edgecolor=theme.paper)
        words(
            ax,
            x,
            y,
            f"{count:,}",
            ha="center",
            size=SMALL - 0.5,
            color=theme.paper if part > 0.75 else theme.ink,
        )
    above = {"transform": ax.get_xaxis_transform(), "size": SMALL, "color": theme.ink}
    slanted = {"va": "bottom", "rotation": 45, "rotation_mode": "anchor"}
    for x, bank in enumerate(shown):
        words(ax, x - 0.2, 1.01, bank, **above, **slanted)
    whole = summary.groupby("rule", observed=True)["count"].sum()
    beside = {"transform": ax.get_yaxis_transform(), "ha": "right", "size": SMALL, "color": theme.muted}
    at = 1 + 0.6 / style.wide(ax)
    for y, rule in enumerate(rules):
        words(ax, at, y, f"{whole[rule]:,}", **beside)
    words(ax, at, -0.85, "records", **beside)
    ax.set_xlim(-0.55, max(len(banks), _COLUMNS) - 0.45)
    ax.set_ylim(max(len(rules), _ROWS) - 0.4, -0.6)
    ax.set_xticks([])
    return ax
