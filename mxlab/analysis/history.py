"""What several runs of a store tell together: who must act over time, how long a status lasts, who recovers when.

A run sees a member at one moment, so an episode is never seen to begin or to end. It begins between two looks and
ends between two, may go on when the last run ends, may have begun before the first, and is not seen at all where it
fits between two looks. Each episode whose beginning was seen adds to the likelihood

    ∫ F(u + seen + after) − F(u + seen) du  /  ∫ 1 − F(u) du ,  u from 0 to `before`

`before` and `after` being the gaps around its first and last look, `seen` the time between those: it began anywhere in
the gap before, and is here only because it lasted until a look. The divisor is what undoes the length bias.

Sources: V. De Gruttola, S. W. Lagakos, Biometrics 45 (1989) 1, doi:10.2307/2532030 (both ends in intervals); B. W.
Turnbull, J. R. Stat. Soc. B 38 (1976) 290, doi:10.1111/j.2517-6161.1976.tb01597.x (truncation); for the curve and its
variance see `mxlab.analysis._censored`.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from mxlab.analysis import _censored
from mxlab.analysis._inputs import (
    STRING,
    Bools,
    Coverage,
    Floats,
    Ints,
    answered,
    codes,
    described,
    need,
    strings,
    table,
    who_column,
)
from mxlab.analysis._intervals import wilson
from mxlab.analysis.status import NO_STATUS
from mxlab.nexus.status import STATUSES, WHO_MUST_ACT

#: Fewer ended episodes than this have no curve.
FEWEST = 20
#: Knots of the curve: snapshots are too far apart for more.
KNOTS = 5
#: The standard deviation, before the data speak, of a bend of the curve, and of its slope below the gap between looks
#: from 1, that of a constant hazard. Looks cannot tell how many episodes are shorter than a gap, so this decides it.
BEND, SLOPE = 0.05, 0.1
#: Gaps and spans that differ by less than this are one in the likelihood.
CELL = 0.04
#: The most distinct episodes in a likelihood.
DISTINCT = 600
#: Points of a curve.
POINTS = 200
#: Where in its gap an episode began: nodes of Gauss and Legendre, and their weights.
_NODES = (np.polynomial.legendre.leggauss(4)[0] + 1) / 2
_WEIGHTS = np.polynomial.legendre.leggauss(4)[1] / 2
_Z95 = 1.959963984540054

_COLUMNS = ("run_id", "guid", "user_guid", "seen_at")
_HISTORY = {
    "count": "int64",
    "n": "int64",
    "share": "float64",
    "low": "float64",
    "high": "float64",
    "asked": "Int64",
    "answered": "Int64",
}
_QUANTILES = {
    f"{p}{end}": STRING if end == "_why" else "float64"
    for p in ("p50", "p90")
    for end in ("", "_low", "_high", "_why")
}
_EPISODES = {
    **dict.fromkeys(("episodes", "n", "n_ended", "n_censored", "n_begun_before"), "int64"),
    **_QUANTILES,
    "gap_seconds": "float64",
    "share_unseen": "float64",
}
_CURVE = {"group": STRING, **dict.fromkeys(("seconds", "share", "low", "high", "naive"), "float64")}


class Looks(NamedTuple):
    """Every look at every member, by member and time.

    Attributes
    ----------
    rows
        Positions in the frame of answered rows.
    member, seconds
        A number for each member; when it was seen, since the first look of all.
    again
        Whether the look before was at the same member.
    """

    rows: Ints
    member: Ints
    seconds: Floats
    again: Bools


class Episodes(NamedTuple):
    """Unbroken stretches of looks that found a member in the same state.

    Attributes
    ----------
    first
        The place in `Looks` of the first look that found it so.
    before, seen, after
        Seconds: from the last look that did not (NaN without one) to the first that did, from that to the last
        that did, and from there to the next look (infinite without one).
    """

    first: Ints
    before: Floats
    seen: Floats
    after: Floats

    def take(self, rows: Ints | Bools) -> "Episodes":
        """These of them."""
        return Episodes(self.first[rows], self.before[rows], self.seen[rows], self.after[rows])


def status_history(members: pd.DataFrame, *, coverage: Coverage | None = None) -> pd.DataFrame:
    """Who must act, run by run, with 95 % Wilson intervals and each run's coverage.

    Parameters
    ----------
    members
        The `members` frame of several runs (``store.load(runs=[…]).members``); uses ``run_id``, ``seen_at``,
        ``who_must_act``, ``user_state``.
    coverage
        Of the same runs; its ``by_run`` has that of each.

    Returns
    -------
    pandas.DataFrame
        One row is one answer to "who must act" in one run, the runs by time. An answer of any run has a row in
        every run.

        =================  ===================  =======================================================
        run_id             string               the run
        seen_at            datetime64[us, UTC]  median of its looks
        who_must_act       category             one of `mxlab.nexus.status.WHO_MUST_ACT`
        count              int64                members
        n                  int64                members of the run: the denominator
        share, low, high   float64              count / n with its 95 % interval
        asked, answered    Int64                users of the run; missing where coverage does not have it
        =================  ===================  =======================================================

        ``attrs``: ``runs``, ``gap_seconds`` (median between runs), ``span_seconds``, ``coverage``.

    Notes
    -----
    Only users who answered count, so two runs compare where their coverage does. The intervals take members as
    independent; the same members are in every run, so that neighbours differ by less than the intervals say.
    """
    rows = answered(members, "status_history", "run_id", "seen_at", "who_must_act")
    run, names = codes(rows["run_id"])
    seconds = _seconds(rows["seen_at"])
    who, words = codes(rows["who_must_act"])
    place = np.array([WHO_MUST_ACT.index(word) for word in words] + [WHO_MUST_ACT.index("unknown")])
    known = (run >= 0) & np.isfinite(seconds)
    run, seconds, who = run[known], seconds[known], place[who][known]
    middle = pd.Series(seconds).groupby(run).median().sort_values(kind="stable")
    order, times = middle.index.to_numpy(), middle.to_numpy(dtype=np.float64)
    width = len(WHO_MUST_ACT)
    counts = np.bincount(run * width + who, minlength=len(names) * width).reshape(-1, width)[order]
    used = np.flatnonzero(counts.sum(axis=0)) if len(order) else np.zeros(0, np.int64)
    count = counts[:, used].ravel().astype(np.float64)
    n = np.repeat(counts.sum(axis=1), len(used)).astype(np.float64)
    low, high = wilson(count, n)
    by_run = {} if coverage is None else coverage.by_run
    users = {
        part: [getattr(by_run.get(names[number]), part, pd.NA) for number in order for _ in used]
        for part in ("asked", "answered")
    }
    values = (count, n, count / np.maximum(n, 1), low, high, users["asked"], users["answered"])
    frame = pd.DataFrame(dict(zip(_HISTORY, values, strict=True))).astype(_HISTORY)
    frame.insert(0, "run_id", strings(names[number] for number in order for _ in used))
    frame.insert(1, "seen_at", _moments(np.repeat(times, len(used))))
    frame.insert(
        2, "who_must_act", pd.Series(who_column([str(WHO_MUST_ACT[i]) for _ in order for i in used]))
    )
    frame.attrs = {**_schedule(times), "coverage": described(coverage)}
    return frame


def time_in_status(
    members: pd.DataFrame, *, by: str = "connection_status", coverage: Coverage | None = None
) -> pd.DataFrame:
    """How long members stay in a status, from the looks of several runs.

    Parameters
    ----------
    members
        The `members` frame of several runs (``store.load(runs=[…]).members``); uses ``run_id``, ``guid``,
        ``user_guid``, ``seen_at``, ``user_state`` and the column of `by`.
    by
        ``connection_status`` or ``who_must_act``.
    coverage
        Kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one status in which a member was seen, in the order of charts. Times are in seconds.

        =====================  =======  =================================================================
        status                 string   MX's word, ``no status`` for null; or who must act
        episodes               int64    unbroken stretches of looks that found a member so
        n                      int64    of these, begun between two looks: what is estimated from
        n_ended, n_censored    int64    of `n`, seen to have ended; not
        n_begun_before         int64    episodes that had begun before the first look at the member
        p50, p50_low, p50_high float64  median time in the status, 95 % interval
        p50_why                string   why p50 is missing, where it is
        p90, …                          as p50
        gap_seconds            float64  median gap between two looks around these episodes
        share_unseen           float64  of all episodes, those that fall between two looks: estimated
        =====================  =======  =================================================================

        ``attrs``: ``runs``, ``gap_seconds``, ``span_seconds``, ``by``, ``coverage``.

    Notes
    -----
    Episodes shorter than the gap between two runs are mostly missed, and those seen are the longer ones (length
    bias). The likelihood undoes it (see the module), as far as the curve can be carried on below the gap:
    ``share_unseen`` is a reading of that curve, and a quantile below the gap is not given. What the looks cannot
    tell: a member that left and came back between two looks counts as having stayed, and how many episodes are
    shorter than a gap; there the hazard is taken as constant. Held against episodes of known length (exponential,
    Weibull, log-normal, the simulated world) with runs 12 and 24 hours apart, medians of two gaps and more were off by
    up to 14 %, 90 % points by up to 8 %; the intervals do not hold that. An episode ends unseen where the member
    vanishes.
    """
    words, place, order = _states(members, by, "time_in_status")
    looks, rows = _looks(members, "time_in_status", by)
    state = place[codes(rows[by])[0][looks.rows]]
    episodes = _episodes(looks, state)
    of, user = state[episodes.first], _users(rows, looks, episodes)
    found = []
    for number in order:
        mine = of == number
        if mine.any():
            found.append({"status": words[number], **_row(_fitted(episodes.take(mine), user[mine]))})
    frame = table(found, {"status": STRING, **_EPISODES})
    frame.attrs = {**_schedule(_run_times(rows)), "by": by, "coverage": described(coverage)}
    return frame


def time_to_recover(
    members: pd.DataFrame, *, by: str = "who_must_act", coverage: Coverage | None = None
) -> pd.DataFrame:
    """How long members that left CONNECTED take to be CONNECTED again: the share recovered by time.

    Parameters
    ----------
    members
        As `time_in_status` takes them; uses ``who_must_act`` too.
    by
        A column that splits the curves, by its value at the first look that found the member not connected.
    coverage
        Kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one point of one curve.

        =========  =======  ==============================================================================
        group      string   ``all``, then the values of `by`, the commonest first
        seconds    float64  since the member left CONNECTED
        share      float64  recovered by then
        low, high  float64  95 % band, robust to members of one user being alike
        naive      float64  of the episodes that looks saw, each begun in the middle of its gap: late, since short
                            episodes are missed
        =========  =======  ==============================================================================

        ``attrs``: ``quantiles`` (a dict for each group: ``group`` and the columns of `time_in_status` from
        ``episodes`` on), ``runs``, ``gap_seconds``, ``span_seconds``, ``by``, ``coverage``.

    Notes
    -----
    A member that stays in trouble until the last run, or vanishes, is censored. Members found closed,
    discontinued or manual are left out: nothing recovers from there. Bias and estimator: `time_in_status`.
    """
    looks, rows = _looks(members, "time_to_recover", *dict.fromkeys(("who_must_act", by)))
    found, words = codes(rows["who_must_act"])
    acting = np.array([*words, "unknown"])[found[looks.rows]] if len(rows) else np.zeros(0, str)
    well = acting == "nobody"
    episodes = _episodes(looks, well.astype(np.int64))
    troubled = ~well[episodes.first] & ~np.isin(acting[episodes.first], ["over", "manual"])
    episodes = episodes.take(troubled)
    number, names = codes(rows[by])
    of, user = number[looks.rows[episodes.first]], _users(rows, looks, episodes)
    sizes = np.bincount(of[of >= 0], minlength=len(names))
    groups = [("all", np.ones(len(of), bool))] if len(of) else []
    groups += [(names[i], of == i) for i in np.argsort(-sizes, kind="stable") if sizes[i]]
    curves, quantiles = [], []
    for name, mine in groups:
        fit = _fitted(episodes.take(mine), user[mine])
        row = _row(fit).items()
        quantiles.append({"group": name, **{key: None if pd.isna(value) else value for key, value in row}})
        curves.append(_curve(name, fit))
    every = {column: np.concatenate([curve[column] for curve in curves] or [[]]) for column in _CURVE}
    frame = pd.DataFrame(every).astype(_CURVE)
    frame.attrs = {
        **_schedule(_run_times(rows)),
        "quantiles": quantiles,
        "by": by,
        "coverage": described(coverage),
    }
    return frame


@dataclass(frozen=True)
class Curve:
    """A smooth distribution function of time: the log of its cumulative hazard is a spline of log time.

    Straight beyond the knots, as Weibull's is. Below the first look nothing but this carries the curve on: a hazard
    there like that beyond is the natural guess, where the log-normal's would fall to nothing.

    Attributes
    ----------
    knots
        Places in log seconds.
    levels
        The log of the cumulative hazard at each knot.
    covariance
        Of `levels`, robust to the episodes of one user being alike.
    """

    knots: Floats
    levels: Floats
    covariance: Floats

    def share(self, seconds: Floats, errors: float = 0.0) -> Floats:
        """F at these rising times, moved by so many standard errors of the log of its cumulative hazard."""
        basis = _censored.spline(self.knots, np.log(np.maximum(seconds, 1.0)))
        spread = np.sqrt(np.maximum(((basis @ self.covariance) * basis).sum(axis=1), 0))
        found: Floats = -np.expm1(-np.exp(np.maximum.accumulate(basis @ self.levels + errors * spread)))
        return found

    def quantile(self, share: float, errors: float = 0.0) -> float:
        """The time at which F, so moved, reaches this share; NaN where it does not within reach."""
        seconds = np.exp(np.linspace(self.knots[0] - 3, self.knots[-1] + 3, 1_000))
        curve = self.share(seconds, errors)
        after = int(np.searchsorted(curve, share))
        if after in (0, len(curve)):
            return float("nan")
        return float(np.interp(share, curve[after - 1 : after + 1], seconds[after - 1 : after + 1]))


class Fit(NamedTuple):
    """Episodes of one kind, and the curve of their length.

    Attributes
    ----------
    episodes
        All of them.
    begun
        Those whose beginning was seen.
    curve
        Of these; None where too few ended.
    """

    episodes: Episodes
    begun: Episodes
    curve: Curve | None


def _looks(members: pd.DataFrame, function: str, *columns: str) -> tuple[Looks, pd.DataFrame]:
    """Every look in order, and the frame of answered rows that it points into; of two in one run, the first."""
    rows = answered(members, function, *_COLUMNS, *columns)
    member, run = codes(rows["guid"])[0], codes(rows["run_id"])[0]
    seconds = _seconds(rows["seen_at"])
    known = np.flatnonzero((member >= 0) & np.isfinite(seconds))
    micros = (seconds[known] * 1e6).astype(np.int64)
    micros -= micros.min(initial=0)
    order = known[np.lexsort((micros, member[known]))]
    member, run = member[order], run[order]
    again = np.append(False, member[1:] == member[:-1])[: len(order)]
    once = ~(again & (run == np.roll(run, 1)))
    return Looks(order[once], member[once], seconds[order[once]], again[once]), rows


def _episodes(looks: Looks, state: Ints) -> Episodes:
    """Unbroken stretches of looks at the same member in the same state."""
    begins = ~looks.again | (state != np.roll(state, 1))
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(state))[: len(first)] - 1
    following = np.minimum(last + 1, len(state) - 1)
    at = looks.seconds
    more = looks.again[following] & (last + 1 < len(state))
    return Episodes(
        first,
        np.where(looks.again[first], at[first] - at[first - 1], np.nan),
        at[last] - at[first],
        np.where(more, at[following] - at[last], np.inf),
    )


def _fitted(episodes: Episodes, user: Ints) -> Fit:
    """The curve of the length of episodes, from those whose beginning was seen."""
    seen = ~np.isnan(episodes.before)
    begun, user = episodes.take(seen), user[seen]
    middle = (begun.before / 2 + begun.seen + begun.after / 2)[np.isfinite(begun.after)]
    if len(middle) < FEWEST:
        return Fit(episodes, begun, None)
    first = float(np.log(np.median(begun.before)))
    knots = np.linspace(first, max(np.log(np.quantile(middle, 0.99)), first + 0.5), KNOTS)
    pair, patterns = _distinct(begun)
    rows = np.bincount(pair).astype(np.float64)
    basis = _points(patterns, knots)
    bends = np.diff(np.eye(KNOTS), 2, axis=0) / BEND
    rise = np.diff(np.eye(KNOTS), axis=0)[0] / SLOPE
    penalty = bends.T @ bends + np.outer(rise, rise) + 1e-6 * np.eye(KNOTS)
    centre = knots - knots.mean() - 0.5

    def value(at: Floats) -> tuple[float, Floats]:
        logs, scores = _likelihood(basis, np.isfinite(patterns.after), at)
        return float(rows @ logs - 0.5 * (at - centre) @ penalty @ (at - centre)), scores

    levels = centre
    now, scores = value(levels)
    for _ in range(100):
        spread = (scores * rows[:, None]).T @ scores + penalty
        step = np.linalg.solve(spread, rows @ scores - penalty @ (levels - centre))
        stride = 1.0
        while (then := value(levels + stride * step))[0] < now and stride > 1e-4:
            stride /= 2
        if then[0] < now:
            break
        levels, gained, (now, scores) = levels + stride * step, then[0] - now, then
        if gained < 1e-6:
            break
    bread = np.linalg.inv((scores * rows[:, None]).T @ scores + penalty)
    shape = (int(user.max()) + 1, len(rows))
    each = sparse.csr_array((np.ones(len(user)), (user, pair)), shape=shape) @ scores
    return Fit(episodes, begun, Curve(knots, levels, bread @ (each.T @ each + penalty) @ bread))


def _distinct(begun: Episodes) -> tuple[Ints, Episodes]:
    """For each episode the number of its pattern, and the patterns: episodes that differ little are one."""
    cell = CELL
    while True:
        pair = np.zeros(len(begun.first), np.int64)
        for column in (begun.before, begun.seen, begun.after):
            place = np.round(np.log(np.clip(column, 1.0, 1e12)) / cell).astype(np.int64)
            pair = np.unique(pair * (int(place.max(initial=0)) + 1) + place, return_inverse=True)[1]
        count = np.bincount(pair)
        if len(count) <= DISTINCT:
            means = (np.bincount(pair, column) / count for column in begun[1:])
            return pair, Episodes(np.arange(len(count)), *means)
        cell *= 1.5


def _points(patterns: Episodes, knots: Floats) -> Floats:
    """The spline's basis where F is needed: at the end, at the last look, at the first; at each node of the gap."""
    into = patterns.before[:, None] * _NODES
    last = into + patterns.seen[:, None]
    end = np.where(np.isfinite(patterns.after), patterns.after, 0.0)[:, None] + last
    places = np.log(np.stack([end, last, into]))
    return _censored.spline(knots, places.ravel()).reshape(*places.shape, len(knots))


def _likelihood(basis: Floats, ended: Bools, levels: Floats) -> tuple[Floats, Floats]:
    """The log-likelihood of each pattern, and its slope in the levels at the knots."""
    hazard = np.exp(np.clip(basis @ levels, -40, 6))
    later = np.exp(-hazard) * _WEIGHTS
    falls = -hazard * later
    later[0] *= ended[:, None]
    falls[0] *= ended[:, None]
    end, last, first = later.sum(axis=2)
    slope = np.einsum("apq,apqk->apk", falls, basis)
    inside = last - end
    if inside.min(initial=1) <= _censored.TINY or first.min(initial=1) <= _censored.TINY:
        return np.full(len(end), -np.inf), slope[0]
    scores = (slope[1] - slope[0]) / inside[:, None] - slope[2] / first[:, None]
    return np.log(inside) - np.log(first), scores


def _row(fit: Fit) -> dict[str, Any]:
    """What `_EPISODES` has of one kind of episode."""
    ended = int(np.isfinite(fit.begun.after).sum())
    n, episodes = len(fit.begun.first), len(fit.episodes.first)
    gaps = np.concatenate([fit.episodes.before, fit.episodes.after])
    gaps = gaps[np.isfinite(gaps)]
    gap = float(np.median(gaps)) if len(gaps) else np.nan
    counts = {"n": n, "n_ended": ended, "n_censored": n - ended, "n_begun_before": episodes - n}
    row: dict[str, Any] = {"episodes": episodes, **counts}
    for label, share in (("p50", 0.5), ("p90", 0.9)):
        seconds, low, high, why = _quantile(fit, share, gap)
        row |= {label: seconds, f"{label}_low": low, f"{label}_high": high, f"{label}_why": why}
    return {**row, "gap_seconds": gap, "share_unseen": _unseen(fit)}


def _quantile(fit: Fit, share: float, gap: float) -> tuple[float, float, float, str]:
    """The quantile with its interval, or why there is none and between what times it lies."""
    nan = float("nan")
    if fit.curve is None:
        return nan, nan, nan, f"fewer than {FEWEST} seen to begin and to end"
    seconds, low, high = (fit.curve.quantile(share, z) for z in (0.0, _Z95, -_Z95))
    longest = float((fit.begun.before / 2 + fit.begun.seen).max())
    if seconds < gap:
        return nan, 0.0, gap, "shorter than the gap between looks"
    if not seconds <= longest:
        return nan, longest, nan, "longer than any was followed"
    return seconds, low, high, ""


def _unseen(fit: Fit) -> float:
    """The share of episodes that begin and end between two looks, read off the curve."""
    if fit.curve is None:
        return float("nan")
    gaps = np.quantile(fit.begun.before, np.linspace(0.025, 0.975, 20))
    return float(np.mean([fit.curve.share(gap * _NODES) @ _WEIGHTS for gap in gaps]))


def _curve(name: str, fit: Fit) -> dict[str, Any]:
    """The points of one curve of `time_to_recover`."""
    begun = fit.begun
    if not len(begun.first):
        return {column: np.zeros(0) for column in _CURVE} | {"group": strings([])}
    low = begun.before / 2 + begun.seen
    known = _censored.intervals(low, low + begun.after)
    step = _censored.turnbull(known)
    seconds = np.linspace(0, float(low.max()), POINTS + 1)[1:]
    share, less, more = np.full((3, POINTS), np.nan)
    if fit.curve is not None:
        share, less, more = (fit.curve.share(seconds, z) for z in (0.0, -_Z95, _Z95))
    naive = step[np.searchsorted(known.bounds, seconds, side="right") - 1]
    return {
        "group": strings([name] * POINTS),
        "seconds": seconds,
        "share": share,
        "low": less,
        "high": more,
        "naive": naive,
    }


def _states(members: pd.DataFrame, by: str, function: str) -> tuple[list[str], Ints, list[int]]:
    """The words of a column of states, where each code of it lies among them, and their order in charts."""
    need(members, (by,), function)
    words = codes(members[by])[1]
    every: dict[str, None] = dict.fromkeys([*(WHO_MUST_ACT if by == "who_must_act" else STATUSES), *words])
    listed = [str(word) for word in every]
    return (
        [*listed, NO_STATUS],
        np.array([*(listed.index(word) for word in words), len(listed)]),
        list(range(len(listed) + 1)),
    )


def _users(rows: pd.DataFrame, looks: Looks, episodes: Episodes) -> Ints:
    """A number for the user of each episode."""
    number = codes(rows["user_guid"].iloc[looks.rows[episodes.first]])[0]
    return np.unique(number, return_inverse=True)[1]


def _seconds(times: pd.Series) -> Floats:
    """Unix times; NaN where there is none."""
    since = (times - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    found: Floats = since.to_numpy(na_value=np.nan).astype(np.float64)
    return found


def _moments(seconds: Floats) -> pd.Series:
    return pd.Series(pd.to_datetime(np.round(seconds * 1e6), unit="us", utc=True)).dt.as_unit("us")


def _run_times(rows: pd.DataFrame) -> npt.NDArray[Any]:
    """The median look of each run, in order."""
    run = codes(rows["run_id"])[0]
    middle = pd.Series(_seconds(rows["seen_at"])).groupby(run).median().dropna()
    return np.sort(middle.to_numpy(dtype=np.float64))


def _schedule(times: npt.NDArray[Any]) -> dict[Hashable, Any]:
    """How many runs, how far apart, how long in all."""
    gaps = np.diff(times)
    gap = float(np.median(gaps)) if len(gaps) else None
    return {"runs": len(times), "gap_seconds": gap, "span_seconds": float(gaps.sum())}
