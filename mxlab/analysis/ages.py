"""Freshness: how long ago a member's data was last brought in."""

from itertools import pairwise

import numpy as np
import pandas as pd

from mxlab.analysis._inputs import (
    STRING,
    Bools,
    Coverage,
    Floats,
    answered,
    described,
    groups,
    strings,
    table,
)
from mxlab.analysis._intervals import wilson

#: A day, in which MX's background aggregation is to refresh every eligible member.
DAY_SECONDS = 86_400.0

_COLUMNS = ("age_seconds", "eligible", "connection_status")
_SHARES = {
    "group": STRING,
    "n_eligible": "int64",
    "n_fresh": "int64",
    "share": "float64",
    "low": "float64",
    "high": "float64",
    "median_age_seconds": "float64",
    "n_never": "int64",
    "n_ineligible": "int64",
}


def freshness(
    members: pd.DataFrame,
    *,
    coverage: Coverage | None = None,
    by: str | None = None,
    top: int = 6,
    within_seconds: float = DAY_SECONDS,
) -> pd.DataFrame:
    """The share of eligible members whose last success is at most so old.

    Parameters
    ----------
    members
        The `members` frame; uses ``age_seconds``, ``eligible``, ``user_state`` and the column of `by`.
    coverage
        Kept in ``attrs``.
    by, top
        A column, and how many of its largest groups have a curve each.
    within_seconds
        The age that counts as fresh in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one point of one curve.

        =========  =======  ==============================================================
        [by]       string   the group, where `by` is given
        seconds    float64  age since the last success, when the member was looked at
        share      float64  eligible members at most that old; those never successful count, as not
        low, high  float64  95 % Wilson interval
        n          int64    eligible members
        =========  =======  ==============================================================

        ``attrs``: ``n_eligible``, ``n_ineligible``, ``n_never``; ``within_seconds`` and ``within``, a row of
        `freshness_shares`; ``by``, ``coverage``.

    Notes
    -----
    Eligible are members whose status is CONNECTED, UPDATED or CREATED and whose background aggregation is on:
    only they are refreshed by MX's background aggregation (docs.mx.com, background and foreground
    aggregation). The others cannot be fresh by MX's doing and are counted apart.
    """
    rows = answered(members, "freshness", *_COLUMNS)
    eligible, age = _ages(rows)
    positions, group, names = groups(rows.iloc[np.flatnonzero(eligible)], by, "freshness")
    age = age[eligible][positions]
    columns: dict[str, list[Floats]] = {name: [] for name in ("seconds", "share", "low", "high", "n")}
    label: list[str] = []
    for place, name in enumerate(names[:top]):
        mine = np.sort(age[group == place])
        known = mine[np.isfinite(mine)]
        if not len(mine):
            continue
        last = float(known[-1]) if len(known) else DAY_SECONDS
        seconds = np.geomspace(60.0, max(last, 30 * DAY_SECONDS), 240)
        counts = np.searchsorted(known, seconds, side="right").astype(np.float64)
        total = np.full(len(seconds), float(len(mine)))
        low, high = wilson(counts, total)
        for column, values in zip(columns.values(), (seconds, counts / total, low, high, total), strict=True):
            column.append(values)
        label += [name] * len(seconds)
    frame = pd.DataFrame({name: np.concatenate([*parts, np.zeros(0)]) for name, parts in columns.items()})
    frame["n"] = frame["n"].astype("int64")
    if by is not None:
        frame.insert(0, by, strings(label))
    within = freshness_shares(members, within_seconds=within_seconds).to_dict("records")
    frame.attrs = {
        "n_eligible": int(eligible.sum()),
        "n_ineligible": int((~eligible).sum()),
        "n_never": int(np.isnan(age).sum()),
        "within_seconds": within_seconds,
        "within": {str(k): None if pd.isna(v) else v for k, v in within[0].items()} if within else None,
        "by": by,
        "coverage": described(coverage),
    }
    return frame


def freshness_shares(
    members: pd.DataFrame,
    *,
    coverage: Coverage | None = None,
    by: str | None = None,
    within_seconds: float = DAY_SECONDS,
) -> pd.DataFrame:
    """The share of eligible members refreshed within an age, in all or by group.

    Parameters
    ----------
    members, coverage, by, within_seconds
        As `freshness` takes them.

    Returns
    -------
    pandas.DataFrame
        One row is one group, the largest first: ``group``, ``n_eligible``, ``n_fresh``, ``share`` with
        ``low`` and ``high`` (95 % Wilson), ``median_age_seconds`` (of the eligible; missing where half never
        succeeded), ``n_never`` (eligible, never successful), ``n_ineligible``.
    """
    rows = answered(members, "freshness_shares", *_COLUMNS)
    eligible, age = _ages(rows)
    positions, group, names = groups(rows, by, "freshness_shares")
    width = len(names)
    chosen, ages = eligible[positions], np.where(np.isnan(age), np.inf, age)[positions]
    n = np.bincount(group[chosen], minlength=width).astype(np.float64)
    fresh = np.bincount(group[chosen & (ages <= within_seconds)], minlength=width).astype(np.float64)
    never = np.bincount(group[chosen & np.isinf(ages)], minlength=width)
    apart = np.bincount(group[~chosen], minlength=width)
    order = np.lexsort((ages[chosen], group[chosen]))
    starts = np.concatenate([[0], np.cumsum(n)]).astype(int)
    found = ages[chosen][order]
    middle = [float(np.median(found[a:b])) if b > a else np.nan for a, b in pairwise(starts)]
    low, high = wilson(fresh, n)
    share = np.where(n > 0, fresh / np.maximum(n, 1), np.nan)
    values = (names, n, fresh, share, low, high, np.where(np.isinf(middle), np.nan, middle), never, apart)
    kept = [place for place in range(width) if by is not None or len(rows)]
    frame = table([dict(zip(_SHARES, (v[p] for v in values), strict=True)) for p in kept], _SHARES)
    frame.attrs = {"within_seconds": within_seconds, "by": by, "coverage": described(coverage)}
    return frame


def _ages(rows: pd.DataFrame) -> tuple[Bools, Floats]:
    """Which rows are eligible, and how old each is."""
    eligible = rows["eligible"].to_numpy(dtype=bool, na_value=False)
    return eligible, rows["age_seconds"].to_numpy(dtype=np.float64, na_value=np.nan)
