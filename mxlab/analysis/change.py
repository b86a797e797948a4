"""What moved between two snapshots, and what only seems to have."""

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from mxlab.analysis._inputs import (
    NOT_KNOWN,
    STRING,
    Bools,
    Coverage,
    Floats,
    Ints,
    answered,
    codes,
    described,
    groups,
    strings,
    who_column,
    whole,
)
from mxlab.analysis._intervals import adjusted, wilson
from mxlab.analysis.status import NO_STATUS
from mxlab.nexus.status import STATUSES, WHO_MUST_ACT

_COLUMNS = ("guid", "connection_status", "who_must_act")
_TRANSITIONS = {
    "from_status": STRING,
    "to_status": STRING,
    "count": "int64",
    "n": "int64",
    "share": "float64",
    "low": "float64",
    "high": "float64",
    "expected": "float64",
    "p_value": "float64",
    "q_value": "float64",
    "is_change": "bool",
}
_SHARES = {
    "group": STRING,
    "value": STRING,
    "n_before": "int64",
    "n_after": "int64",
    "share_before": "float64",
    "share_after": "float64",
    "change": "float64",
    "low": "float64",
    "high": "float64",
    "p_value": "float64",
    "q_value": "float64",
    "is_change": "bool",
}
_MIX = {
    "group": STRING,
    "n_before": "int64",
    "n_after": "int64",
    "rate_before": "float64",
    "rate_after": "float64",
    "mix": "float64",
    "rate": "float64",
    "total": "float64",
}


def member_changes(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The members that appeared, vanished or moved to another connection status.

    Parameters
    ----------
    before, after
        Two `members` frames; ``guid``, ``connection_status``, ``who_must_act``, ``institution``, ``user_state``.

    Returns
    -------
    pandas.DataFrame
        One row is one member: ``guid``, ``institution``, ``change`` (``appeared``, ``vanished``, ``moved``),
        ``from_status``, ``to_status``, ``from_who``, ``to_who``. ``attrs``: ``n_before``, ``n_after``,
        ``n_both``, ``n_moved``.

    Notes
    -----
    MX deletes PENDING members after an hour, so some vanish without anyone's doing. Members of users who
    answered in only one of the two appear and vanish too: compare the coverage.
    """
    sides = _sides(before, after, "member_changes", "institution")
    at = _matched(*sides)
    words, status = _words(sides, at, "connection_status", NO_STATUS)
    acting, who = _words(sides, at, "who_must_act", "")
    banks, bank = _words(sides, at, "institution", "")
    present = (at >= 0).all(axis=0)
    moved = present & (status[0] != status[1])
    kept = np.flatnonzero(moved | ~present)
    change = np.select([at[0, kept] < 0, at[1, kept] < 0], ["appeared", "vanished"], "moved")
    every = pd.concat([side["guid"] for side in sides], ignore_index=True)
    guid = every.take(np.where(at[0] >= 0, at[0], at[1] + len(sides[0]))[kept])

    def named(numbers: Ints, of: list[str]) -> list[str | None]:
        return [of[number] or None if number >= 0 else None for number in numbers]

    found = pd.DataFrame(
        {
            "guid": guid.astype(STRING).reset_index(drop=True),
            "institution": strings(named(np.where(bank[1] >= 0, bank[1], bank[0])[kept], banks)),
            "change": strings(change.tolist()),
            "from_status": strings(named(status[0][kept], words)),
            "to_status": strings(named(status[1][kept], words)),
            "from_who": who_column(named(who[0][kept], acting)),
            "to_who": who_column(named(who[1][kept], acting)),
        }
    )
    sizes: dict[Hashable, Any] = {"n_before": int((at[0] >= 0).sum()), "n_after": int((at[1] >= 0).sum())}
    found.attrs = {**sizes, "n_both": int(present.sum()), "n_moved": int(moved.sum())}
    return found


def transitions(
    before: pd.DataFrame,
    after: pd.DataFrame,
    *,
    fdr: float = 0.05,
    coverage: Coverage | None = None,
) -> pd.DataFrame:
    """How many members moved from each status to each other, against as many moving back.

    Parameters
    ----------
    before, after
        As `member_changes` takes them; only members in both count.
    fdr
        False-discovery rate over all pairs.
    coverage
        Of `after`; kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one pair that occurs, in the order of charts.

        ===================  =======  ==================================================================
        from_status          string   before
        to_status            string   after
        count                int64    members
        n                    int64    members with `from_status` before
        share, low, high     float64  count / n with its 95 % Wilson interval
        expected             float64  the mean of both directions: what a fleet in balance would show
        p_value, q_value     float64  of so many more one way than back (sign test); adjusted
        is_change            bool     more go this way than come back, and q_value ≤ `fdr`
        ===================  =======  ==================================================================

        ``attrs``: ``n``, ``n_moved``, ``p_value`` (Bowker's test of balance over all pairs), ``is_change``.

    Notes
    -----
    A. H. Bowker, J. Am. Stat. Assoc. 43 (1948) 572, doi:10.1080/01621459.1948.10483284. Statuses come and go
    in a fleet where nothing happens; a change is what does not balance.
    """
    return _moves(_sides(before, after, "transitions"), "connection_status", STATUSES, fdr, coverage)


def flow(
    before: pd.DataFrame,
    after: pd.DataFrame,
    *,
    fdr: float = 0.05,
    coverage: Coverage | None = None,
) -> pd.DataFrame:
    """How many members moved from each answer to "who must act" to each other, against as many moving back.

    Parameters
    ----------
    before, after, fdr, coverage
        As `transitions` takes them.

    Returns
    -------
    pandas.DataFrame
        As `transitions`, with ``from_who`` and ``to_who`` in the place of the statuses; the same ``attrs``.
    """
    frame = _moves(_sides(before, after, "flow"), "who_must_act", WHO_MUST_ACT, fdr, coverage)
    return frame.rename(columns={"from_status": "from_who", "to_status": "to_who"})


def _moves(
    sides: list[pd.DataFrame],
    column: str,
    known: Iterable[str],
    fdr: float,
    coverage: Coverage | None,
) -> pd.DataFrame:
    """How many members in both sides moved from each word of a column to each other."""
    at = _matched(*sides)
    at = at[:, (at >= 0).all(axis=0)]
    found, number = _words(sides, at, column, NO_STATUS)
    order = {str(name): place for place, name in enumerate(known)}
    used = np.flatnonzero(np.bincount(number.ravel(), minlength=len(found)))
    words = sorted((found[i] for i in used), key=lambda word: (order.get(word, len(order)), word))
    place = np.zeros(len(found), np.int64)
    place[[found.index(word) for word in words]] = np.arange(len(words))
    width = len(words)
    flat = place[number[0]] * width + place[number[1]]
    matrix = np.bincount(flat, minlength=width * width).reshape(width, width).astype(np.float64)
    start, end = np.nonzero(matrix)
    count, back = matrix[start, end], matrix[end, start]
    n = matrix.sum(axis=1)[start] if width else count
    p_value = np.where(start == end, np.nan, stats.binom.sf(count - 1, count + back, 0.5))
    q_value = adjusted(p_value)
    low, high = wilson(count, n)
    values = (
        [words[i] for i in start],
        [words[j] for j in end],
        count,
        n,
        count / np.maximum(n, 1),
        low,
        high,
        (count + back) / 2,
        p_value,
        q_value,
        (q_value <= fdr) & (count > back),
    )
    frame = pd.DataFrame(dict(zip(_TRANSITIONS, values, strict=True))).astype(_TRANSITIONS)
    statistic, degrees = _bowker(matrix)
    whole = float(stats.chi2.sf(statistic, degrees)) if degrees else 1.0
    moved = int(count[start != end].sum())
    frame.attrs = {
        "n": at.shape[1],
        "n_moved": moved,
        "p_value": whole,
        "is_change": whole <= fdr,
        "coverage": described(coverage),
    }
    return frame


def share_changes(
    before: pd.DataFrame,
    after: pd.DataFrame,
    *,
    of: str = "who_must_act",
    by: str | None = None,
    fdr: float = 0.05,
    coverage: Coverage | None = None,
) -> pd.DataFrame:
    """Whether the share of members with each value has changed, in all or group by group.

    Parameters
    ----------
    before, after
        Two `members` frames; ``guid``, ``user_state``, and the columns of `of` and `by`.
    of
        The column whose values are counted: ``who_must_act``, ``connection_status``, …
    by
        A column of groups; of a member that is in both, its group is that of `after`.
    fdr
        False-discovery rate over all values of all groups.
    coverage
        Of `after`; kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one value that occurs in one group, the clearest change first.

        =========================  =======  ================================================================
        group, value               string   the group (``all`` without `by`); the value of `of`
        n_before, n_after          int64    members that are compared
        share_before, share_after  float64  of them with the value
        change, low, high          float64  share_after − share_before with its 95 % interval
        p_value, q_value           float64  of a change so clear by chance; adjusted. Missing where so few moved
                                            that none could be told from chance
        is_change                  bool     q_value ≤ `fdr`
        =========================  =======  ================================================================

        ``attrs``: ``is_paired``, ``n_both`` (members in both), ``of``, ``by``, ``fdr``, ``coverage``.

    Notes
    -----
    Where at least half of the members of the smaller frame are in both, those are compared with themselves, so
    that who comes and goes moves nothing: as many should leave a value as come to it (Q. McNemar, Psychometrika
    12 (1947) 153, doi:10.1007/BF02295996; exact). Else, as between two samples of users, all are compared by the
    hypergeometric distribution. Both tests are two-sided, twice the smaller tail, and take members as
    independent. Intervals: R. G. Newcombe, Stat. Med. 17 (1998) 2635,
    doi:10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C; without pairs its correlation is 0.
    """
    columns = list(dict.fromkeys(("guid", of, *([] if by is None else [by]))))
    sides = [answered(frame, "share_changes", *columns)[columns] for frame in (before, after)]
    at = _matched(*sides)
    both = (at >= 0).all(axis=0)
    is_paired = bool(2 * both.sum() >= max(1, (at >= 0).sum(axis=1).min()))
    words, value = _words(sides, at, of, NO_STATUS)
    names, group = (["all"], np.zeros_like(at)) if by is None else _words(sides, at, by, NOT_KNOWN)
    width, size = len(words), len(names) * len(words)
    if is_paired:
        at, value, group = at[:, both], value[:, both], np.stack([group[1, both]] * 2)
    cell = group * width + value
    counted = [np.bincount(own[there >= 0], minlength=size) for own, there in zip(cell, at, strict=True)]
    k: Floats = np.stack(counted).astype(np.float64)
    n: Floats = k.reshape(2, -1, width).sum(axis=2).repeat(width, axis=1)
    used = np.flatnonzero(k.sum(axis=0))
    k, n, stayed = k[:, used], n[:, used], None
    if is_paired:
        stayed = np.bincount(cell[0][cell[0] == cell[1]], minlength=size)[used]
    p_value = _differ_by_chance(k, n) if stayed is None else _moved_by_chance(k - stayed, fdr)
    q_value = adjusted(p_value)
    share = k / np.maximum(n, 1)
    low, high = _newcombe(k, n, stayed)
    values = (
        [names[place // width] for place in used],
        [words[place % width] for place in used],
        *n,
        *share,
        share[1] - share[0],
        low,
        high,
        p_value,
        q_value,
        q_value <= fdr,
    )
    frame = pd.DataFrame(dict(zip(_SHARES, values, strict=True))).astype(_SHARES)
    order = np.lexsort((-np.abs(frame["change"]) * n[1], np.nan_to_num(p_value, nan=2.0)))
    frame = frame.iloc[order].reset_index(drop=True)
    facts: dict[Hashable, Any] = {"is_paired": is_paired, "n_both": int(both.sum()), "of": of, "by": by}
    frame.attrs = {**facts, "fdr": fdr, "coverage": described(coverage)}
    return frame


def mix_and_rate(
    before: pd.DataFrame,
    after: pd.DataFrame,
    *,
    by: str = "institution",
    who: str = "nobody",
    coverage: Coverage | None = None,
) -> pd.DataFrame:
    """A change of the fleet's rate, split into another mix of members and other rates; it adds up exactly.

    Parameters
    ----------
    before, after
        Two `members` frames; ``who_must_act``, ``user_state`` and the column of `by`.
    by
        The groups whose mix may change.
    who
        Whose share is the rate: ``nobody`` is the share connected.
    coverage
        Of `after`; kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one group, the largest effect first: ``group``, ``n_before``, ``n_after``, ``rate_before``,
        ``rate_after`` (missing where it has no member), ``mix``, ``rate``, ``total`` = mix + rate, in shares
        of the fleet. ``attrs``: ``before``, ``after``, ``total``, ``mix``, ``rate`` with ``…_low`` and
        ``…_high`` (95 %) and ``mix_is_change``, ``rate_is_change``.

    Notes
    -----
    E. M. Kitagawa, J. Am. Stat. Assoc. 50 (1955) 1168, doi:10.1080/01621459.1955.10501299, about the rate
    before, so that a group's mix effect is whether its growth helped. A group that is in one snapshot only has
    the same rate in both: it changes the mix. The intervals take the two snapshots as independent samples,
    which is wide for the same members seen twice.
    """
    names, n, k = _rates(before, after, by, who)
    total = n.sum(axis=1, keepdims=True)
    weight = n / np.maximum(total, 1)
    with np.errstate(invalid="ignore"):
        rate = np.where(n > 0, k / np.maximum(n, 1), np.nan)
    filled = np.where(np.isnan(rate), rate[::-1], rate)
    fleet = k.sum(axis=1) / np.maximum(total[:, 0], 1)
    middle = filled.mean(axis=0) if len(names) else np.zeros(0)
    mix = (weight[1] - weight[0]) * (middle - fleet.mean())
    rates = (filled[1] - filled[0]) * weight.mean(axis=0)
    values = (names, n[0], n[1], rate[0], rate[1], mix, rates, mix + rates)
    frame = pd.DataFrame(dict(zip(_MIX, values, strict=True))).astype(_MIX)
    frame = frame.iloc[np.argsort(-np.abs(mix + rates), kind="stable")].reset_index(drop=True)
    usual = filled * (1 - filled)
    error_rate = np.sqrt((weight.mean(axis=0) ** 2 * (usual / np.maximum(n, 1) * (n > 0)).sum(axis=0)).sum())
    spread = (weight * (middle - (weight * middle).sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    error_mix = np.sqrt((spread / np.maximum(total[:, 0], 1)).sum())
    error_total = np.sqrt((fleet * (1 - fleet) / np.maximum(total[:, 0], 1)).sum())
    found: dict[Hashable, Any] = {"before": float(fleet[0]), "after": float(fleet[1])}
    parts = (
        ("total", mix.sum() + rates.sum(), error_total),
        ("mix", mix.sum(), error_mix),
        ("rate", rates.sum(), error_rate),
    )
    for word, value, error in parts:
        low, high = float(value - 1.96 * error), float(value + 1.96 * error)
        found |= {word: float(value), f"{word}_low": low, f"{word}_high": high}
        found[f"{word}_is_change"] = bool(error > 0 and (low > 0 or high < 0))
    frame.attrs = {**found, "by": by, "who": who, "coverage": described(coverage)}
    return frame


def _sides(before: pd.DataFrame, after: pd.DataFrame, function: str, *more: str) -> list[pd.DataFrame]:
    """The columns of both that are compared, of users who answered."""
    columns = [*_COLUMNS, *more]
    return [answered(frame, function, *columns)[columns] for frame in (before, after)]


def _matched(before: pd.DataFrame, after: pd.DataFrame) -> Ints:
    """Positions in both of each member that has a guid, −1 where it is not; of a guid that comes twice, the first."""
    guids = [whole(rows["guid"].astype(STRING)) for rows in (before, after)]
    every = pa.chunked_array([guid.cast(pa.large_string()) for guid in guids]).combine_chunks()
    encoded = every.dictionary_encode()
    number = pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64)
    found = np.full((2, len(encoded.dictionary)), -1)
    for side, own in enumerate((number[: len(before)], number[len(before) :])):
        rows = np.flatnonzero(own >= 0)[::-1]  # the first is written last
        found[side, own[rows]] = rows
    return found


def _words(sides: list[pd.DataFrame], at: Ints, column: str, missing: str) -> tuple[list[str], Ints]:
    """The words of a column in both, and for each matched member their numbers; −1 where it is not there."""
    words: list[str] = [missing]
    numbers = []
    for rows, places in zip(sides, at, strict=True):
        found, own = codes(rows[column])
        words += [word for word in own if word not in words]
        mapped = np.array([*(words.index(word) for word in own), 0], dtype=np.int64)[found]
        numbers.append(np.append(mapped, -1)[places])
    return words, np.stack(numbers)


def _moved_by_chance(moved: Floats, fdr: float) -> Floats:
    """p-values of as many leaving (first row) and coming (second) where either is as likely."""
    count = moved.sum(axis=0)
    p_value = np.minimum(2 * stats.binom.cdf(moved.min(axis=0), count, 0.5), 1.0)
    return np.where(2.0 ** (1 - count) <= fdr, p_value, np.nan)


def _differ_by_chance(k: Floats, n: Floats) -> Floats:
    """p-values of two independent counts k of n where both shares are the same."""
    draw = stats.hypergeom(n.sum(axis=0), k.sum(axis=0), n[1])
    p_value = np.minimum(2 * np.minimum(draw.cdf(k[1]), draw.sf(k[1] - 1)), 1.0)
    comparable = (n > 0).all(axis=0) & (k.sum(axis=0) < n.sum(axis=0))
    return np.where(comparable, p_value, np.nan)


def _newcombe(k: Floats, n: Floats, stayed: Ints | None) -> tuple[Floats, Floats]:
    """95 % interval of the second share minus the first; of pairs, given how many have the value both times."""
    share = k / np.maximum(n, 1)
    low, high = wilson(k, n)
    alike = np.zeros(k.shape[1])
    if stayed is not None:
        neither = n[0] - k.sum(axis=0) + stayed
        spread = np.sqrt((k * (n - k)).prod(axis=0))
        alike = (stayed * neither - (k - stayed).prod(axis=0)) / np.maximum(spread, 1)
    change, below, above = share[1] - share[0], share - low, high - share

    def reach(one: Floats, other: Floats) -> Floats:
        found: Floats = np.sqrt(np.maximum(one**2 - 2 * alike * one * other + other**2, 0))
        return found

    return change - reach(below[1], above[0]), change + reach(above[1], below[0])


def _bowker(matrix: Floats) -> tuple[float, int]:
    upper = np.triu_indices(len(matrix), 1)
    there, back = matrix[upper], matrix.T[upper]
    some = there + back > 0
    return float(((there - back)[some] ** 2 / (there + back)[some]).sum()), int(some.sum())


def _rates(before: pd.DataFrame, after: pd.DataFrame, by: str, who: str) -> tuple[list[str], Floats, Floats]:
    """Groups, and members and those who count by snapshot and group."""
    sides = [answered(frame, "mix_and_rate", "who_must_act", by) for frame in (before, after)]
    parts = [groups(rows, by, "mix_and_rate") for rows in sides]
    names = list(dict.fromkeys([*parts[0][2], *parts[1][2]]))
    place = {name: number for number, name in enumerate(names)}
    n, k = np.zeros((2, len(names))), np.zeros((2, len(names)))
    for side, (rows, (positions, group, own)) in enumerate(zip(sides, parts, strict=True)):
        mapped = np.array([place[name] for name in own], dtype=np.int64)[group]
        counts: Bools = (rows["who_must_act"] == who).to_numpy(dtype=bool, na_value=False)[positions]
        n[side] = np.bincount(mapped, minlength=len(names))
        k[side] = np.bincount(mapped, counts, len(names))
    return names, n, k
