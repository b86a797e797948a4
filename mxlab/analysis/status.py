"""Connection status: how many, what share, and who must act."""

import numpy as np
import pandas as pd
from scipy import stats

from mxlab.analysis._inputs import (
    Coverage,
    Floats,
    Ints,
    answered,
    codes,
    described,
    groups,
    strings,
    who_column,
)
from mxlab.analysis._intervals import adjusted, wilson
from mxlab.nexus import status as nexus_status
from mxlab.nexus.status import STATUSES, WHO_MUST_ACT

#: The row of members whose connection status is null.
NO_STATUS = "no status"
#: The row of users whose members are not in the frame.
NOT_REACHED = "not reached"

_WHO_ORDER = {str(who): place for place, who in enumerate(WHO_MUST_ACT)}
_CHART_ORDER = {name: place for place, name in enumerate(STATUSES)}


def status_counts(
    members: pd.DataFrame, *, coverage: Coverage | None = None, by: str | None = None
) -> pd.DataFrame:
    """Members by connection status, with shares and 95 % Wilson intervals.

    Parameters
    ----------
    members
        The `members` frame; uses ``connection_status``, ``user_state`` and the column of `by`. Only rows of
        users who answered count.
    coverage
        Adds a row ``not reached``: the *users* whose members are not here; they have no share.
    by
        A column to group by; members of a column of lists count in each of its groups.

    Returns
    -------
    pandas.DataFrame
        One row is one status (of one group), in the order of charts; groups from the largest to the smallest.

        ===========  ===========  =====================================================================
        [by]         string       the group, where `by` is given
        status       string       MX's word; ``no status`` for null; ``not reached``
        who_must_act category     one of `mxlab.nexus.status.WHO_MUST_ACT`; missing for ``not reached``
        unit         string       ``members`` or ``users``
        count        int64        members (users)
        n            int64        members of the group: the denominator
        share        float64      count / n, 0…1
        low, high    float64      95 % interval of the share
        ===========  ===========  =====================================================================

        ``attrs``: ``n``, ``by``, ``coverage``.

    Notes
    -----
    Statuses: MX Nexus reference, members overview. A word that MX adds tomorrow is kept and counted, with
    ``who_must_act`` ``unknown``. The interval takes members as independent.

    Examples
    --------
    >>> members = pd.DataFrame({"connection_status": pd.Categorical(["CONNECTED", None]),
    ...                         "user_state": pd.Categorical(["answered"] * 2)})
    >>> status_counts(members)[["status", "count", "share"]].to_dict("list")
    {'status': ['CONNECTED', 'no status'], 'count': [1, 1], 'share': [0.5, 0.5]}
    """
    rows = answered(members, "status_counts", "connection_status")
    found, words = codes(rows["connection_status"])
    words = [*words, NO_STATUS]
    acting: list[str] = [*map(nexus_status.who_must_act, words[:-1]), "manual"]
    return _table("status_counts", rows, (found % len(words), words, acting), by, coverage)


def who_must_act(
    members: pd.DataFrame, *, coverage: Coverage | None = None, by: str | None = None
) -> pd.DataFrame:
    """Members by who can move them on, with shares and 95 % Wilson intervals.

    Parameters
    ----------
    members
        The `members` frame; uses ``connection_status``, ``user_state`` and the column of `by`.
    coverage
        Adds a row ``not reached``: the *users* whose members are not here; they have no share.
    by
        A column to group by.

    Returns
    -------
    pandas.DataFrame
        One row is one answer to "who must act" (of one group); columns as those of `status_counts`, where
        ``status`` holds the answer.

    Notes
    -----
    MX names eight statuses as the end user's to resolve (docs.mx.com/resources/webhooks/connection-status);
    the other fourteen are our reading of MX's definitions.
    """
    rows = answered(members, "who_must_act", "connection_status")
    every = [str(who) for who in WHO_MUST_ACT]
    return _table("who_must_act", rows, (_acting(rows), every, every), by, coverage)


def _acting(rows: pd.DataFrame) -> Ints:
    """For each row the place of its answer among `WHO_MUST_ACT`."""
    found, words = codes(rows["connection_status"])
    acting = [*map(nexus_status.who_must_act, words), "manual"]
    return np.array([WHO_MUST_ACT.index(who) for who in acting])[found]


def status_by_institution(
    members: pd.DataFrame, *, coverage: Coverage | None = None, top: int = 9, fdr: float = 0.05
) -> pd.DataFrame:
    """Who must act at each of the largest institutions, and at all others together.

    Parameters
    ----------
    members
        The `members` frame; uses ``institution``, ``connection_status``, ``user_state``.
    coverage
        Kept in ``attrs``; lost users have no institution.
    top
        How many institutions are named; the rest are one row, ``all other (…)``.
    fdr
        False-discovery rate at which one institution's share of MX-or-bank failures is called higher than
        that of the rest (one-sided hypergeometric test, Benjamini–Hochberg over all institutions).

    Returns
    -------
    pandas.DataFrame
        One row is one answer to "who must act" at one institution: ``institution``, ``who_must_act``,
        ``count``, ``n``, ``share``, ``low``, ``high``; institutions from the largest, the rest last.
        ``attrs["finding"]``: None, or ``institution``, ``share``, ``rest_share`` of the clearest excess at
        one of the named institutions.
    """
    rows = answered(members, "status_by_institution", "institution", "connection_status")
    positions, group, names = groups(rows, "institution", "status_by_institution")
    counts = _counted(group, _acting(rows)[positions], len(names), len(WHO_MUST_ACT)).astype(np.float64)
    finding = _excess(names[:top], counts, fdr)
    if len(names) > top + 1:
        counts = np.vstack([counts[:top], counts[top:].sum(axis=0)])
        names = [*names[:top], f"all other ({len(names) - top})"]
    totals = np.repeat(counts.sum(axis=1), len(WHO_MUST_ACT))
    low, high = wilson(counts.ravel(), totals)
    frame = pd.DataFrame(
        {
            "institution": strings(np.repeat(np.array(names, dtype=str), len(WHO_MUST_ACT)).tolist()),
            "who_must_act": who_column(list(WHO_MUST_ACT) * len(names)),
            "count": counts.ravel().astype(np.int64),
            "n": totals.astype(np.int64),
            "share": counts.ravel() / np.maximum(totals, 1),
            "low": low,
            "high": high,
        }
    )
    frame.attrs = {"n": int(counts.sum()), "coverage": described(coverage), "finding": finding}
    return frame


def _excess(names: list[str], counts: Floats, fdr: float) -> dict[str, object] | None:
    """The named institution whose share waiting for MX or the bank is most clearly above the rest's."""
    totals, mine = counts.sum(axis=1), counts[:, WHO_MUST_ACT.index("mx")]
    n, k = totals.sum(), mine.sum()
    if len(totals) < 2:
        return None
    rest = (k - mine) / np.maximum(n - totals, 1)
    share = mine / totals
    above = mine * n > k * totals
    large = above & (share >= 1.5 * rest) & (np.arange(len(totals)) < len(names))
    # The test takes most of the time: of the large ones alone where the number of all times theirs settles it,
    # else of all but those at or below the whole's share, whose p-values are half or more.
    p_values = np.ones(len(totals))
    for tested in (large, above):
        p_values[tested] = stats.hypergeom.sf(mine[tested] - 1, n, k, totals[tested])
        if (p_values[large] * len(totals) <= fdr).all():
            break
    passed = large & (adjusted(p_values) <= fdr)
    if not passed.any():
        return None
    best = int(np.argmax(np.where(passed, share - rest, -np.inf)))
    return {"institution": names[best], "share": float(share[best]), "rest_share": float(rest[best])}


def _counted(group: Ints, found: Ints, groups: int, width: int) -> Ints:
    """How many rows are in each group with each answer."""
    return np.bincount(group * width + found, minlength=groups * width).reshape(groups, width)


def _table(
    function: str,
    rows: pd.DataFrame,
    status: tuple[Ints, list[str], list[str]],
    by: str | None,
    coverage: Coverage | None,
) -> pd.DataFrame:
    """Count statuses, given as codes into words with who must act on each, in groups."""
    found, words, acting = status
    positions, group, names = groups(rows, by, function)
    width = len(words)
    counts = _counted(group, found[positions], len(names), width)
    order = sorted(
        range(width),
        key=lambda i: (_WHO_ORDER[acting[i]], _CHART_ORDER.get(words[i], len(words)), words[i]),
    )
    cells = [(g, s) for g in range(len(names)) for s in order if counts[g, s]]
    count = np.array([counts[cell] for cell in cells], dtype=np.float64)
    total = np.array([counts[g].sum() for g, _ in cells], dtype=np.float64)
    low, high = wilson(count, total)
    share = count / np.maximum(total, 1)
    label: list[str | None] = [names[g] for g, _ in cells]
    word = [words[s] for _, s in cells]
    who: list[str | None] = [acting[s] for _, s in cells]
    unit = ["members"] * len(cells)
    if coverage is not None and coverage.asked > coverage.answered:
        label, word, who, unit = [*label, None], [*word, NOT_REACHED], [*who, None], [*unit, "users"]
        count, total = np.append(count, coverage.asked - coverage.answered), np.append(total, 0)
        share, low, high = (np.append(column, np.nan) for column in (share, low, high))
    frame = pd.DataFrame(
        {
            **({} if by is None else {by: strings(label)}),
            "status": strings(word),
            "who_must_act": who_column(who),
            "unit": strings(unit),
            "count": count.astype(np.int64),
            "n": total.astype(np.int64),
            "share": share,
            "low": low,
            "high": high,
        }
    )
    frame.attrs = {"n": len(rows), "by": by, "coverage": described(coverage)}
    return frame
