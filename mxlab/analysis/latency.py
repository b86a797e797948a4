"""Aggregation time: how long from the kick-off until a member's aggregation is through."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import special, stats

from mxlab.analysis import _censored
from mxlab.analysis._censored import Intervals
from mxlab.analysis._inputs import (
    STRING,
    Bools,
    Coverage,
    Floats,
    Ints,
    answered,
    described,
    groups,
    need,
    numbers,
    strings,
    table,
)
from mxlab.analysis._intervals import adjusted
from mxlab.analysis._smooth import DRAWS, Smooth, normal_scores, shifts, smooth, smooth_each

#: Which duration of a row is taken: its job's own where it was read, else the looks'; or only one of them.
Duration = Literal["best", "job", "looks"]

#: Fewer finished aggregations than this have a curve, but no quantile.
FEWEST = 10
#: The looks do not identify a quantile where a span this many times as long as its beginning, around it, has
#: those of fewer than `FEWEST_LOOKS` of the aggregations.
WIDEST_GAP = 1.25
FEWEST_LOOKS = 0.01
#: Nor is one given whose interval ends later than this many times its beginning: few end around it, or few at all.
WIDEST_INTERVAL = 2.0
#: The standard normal's 97.5 % point.
Z95 = 1.959963984540054

_COLUMNS = (
    "outcome",
    "who_must_act",
    "session",
    "aggregation_seconds_low",
    "aggregation_seconds_high",
    "job_seconds",
)
_QUANTILES = {
    "group": STRING,
    "n": "int64",
    "n_exact": "int64",
    "n_interval": "int64",
    "n_censored": "int64",
    "share_censored": "float64",
    **{
        f"{p}{end}": STRING if end == "_why" else "float64"
        for p in ("p50", "p90")
        for end in ("", "_low", "_high", "_why")
    },
}
_SLOW = {
    "n": "int64",
    "n_censored": "int64",
    "ratio": "float64",
    "ratio_low": "float64",
    "ratio_high": "float64",
    "p50": "float64",
    "p_value": "float64",
    "q_value": "float64",
    "is_slower": "bool",
}
_CURVE = ("seconds", "share", "low", "high", "step", "naive")


@dataclass(frozen=True)
class Times:
    """The aggregations that have a time, one element a row.

    Attributes
    ----------
    rows
        Positions in the frame of answered rows.
    low, high
        Seconds; equal where the time is exact, high infinite where following ended first.
    seen
        The first look that saw it done; the exact time where there was none.
    user
        A number for each user.
    left_out
        How many aggregations ended otherwise, by outcome, and how many have no readable time.
    """

    rows: Ints
    low: Floats
    high: Floats
    seen: Floats
    user: Ints
    left_out: dict[str, int]

    def take(self, rows: Ints | Bools) -> "Times":
        """These rows of it."""
        return Times(
            self.rows[rows], self.low[rows], self.high[rows], self.seen[rows], self.user[rows], self.left_out
        )

    @property
    def mix(self) -> dict[str, int]:
        """How many are exact, intervals, censored."""
        exact, censored = int((self.low == self.high).sum()), int(np.isinf(self.high).sum())
        n = len(self.low)
        return {"n": n, "n_exact": exact, "n_interval": n - exact - censored, "n_censored": censored}


def aggregation_times(rows: pd.DataFrame, function: str, duration: Duration = "best") -> Times:
    """The population of every figure on aggregation time, from rows of users who answered."""
    need(rows, _COLUMNS, function)
    outcome = rows["outcome"]
    finished, running = _is(outcome, "finished"), _is(outcome, "running")
    low, high, job = (rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in _COLUMNS[3:])
    observed = outcome.isna().to_numpy() & _is(rows["who_must_act"], "nobody")
    exact = (finished | observed) & (job >= 0) & (duration != "looks")
    looked = finished & (high >= np.nan_to_num(low)) & ~exact & (duration != "job")
    open_ended = running & (low >= 0) & (duration != "job")
    used = exact | looked | open_ended
    start = np.where(exact, job, np.where(looked, np.nan_to_num(low), low))
    end = np.where(exact, job, np.where(looked, high, np.inf))
    seen = np.where(high >= 0, high, end)
    others = ("waiting_on_user", "failed", "not_triggered")
    left_out = {word: int(_is(outcome, word).sum()) for word in others}
    left_out["no_time"] = int(((finished | running) & ~used).sum())
    positions = np.flatnonzero(used)
    user = numbers(rows["session"])[positions]
    return Times(positions, start[used], end[used], np.where(open_ended, np.inf, seen)[used], user, left_out)


def aggregation_latency(
    members: pd.DataFrame,
    *,
    coverage: Coverage | None = None,
    by: str | None = None,
    top: int = 6,
    duration: Duration = "best",
    draws: int | None = None,
) -> pd.DataFrame:
    """The distribution of aggregation time, of aggregations that finish.

    Parameters
    ----------
    members
        The `members` frame of an `aggregate`: ``outcome``, ``who_must_act``, ``user_state``, ``session``,
        ``aggregation_seconds_low``, ``aggregation_seconds_high``, ``job_seconds``, and the column of `by`. Of
        an `observe`, the last job of connected members is taken.
    coverage
        Kept in ``attrs``.
    by, top
        A column, and how many of its largest groups have a curve each.
    duration
        ``best``: the job's own time where it was read, else the interval between looks; ``job`` or ``looks``:
        only that.
    draws
        How often users are drawn anew for the intervals (a bootstrap); 0 for what many draws come to, to first
        order, without drawing: as wide and 20 times as fast. 200 without `by`, 0 with it.

    Returns
    -------
    pandas.DataFrame
        One row is one point of one curve.

        =========  =======  ==========================================================================
        [by]       string   the group, where `by` is given
        seconds    float64  time since the kick-off
        share      float64  finished by then: the smooth maximum of the likelihood; missing below 10 finished
        low, high  float64  95 % band of it, by bootstrap over users (whose members may be alike)
        step       float64  Turnbull's nonparametric maximum
        naive      float64  seen finished by then: what a simple poll reports; late by up to a look
        =========  =======  ==========================================================================

        ``attrs``: ``n``, ``n_exact``, ``n_interval``, ``n_censored``; ``left_out`` (aggregations that ended
        otherwise, by outcome, and ``no_time``); ``still_running`` (the share that following did not see end);
        ``quantiles``, rows of `latency_quantiles`; ``by``, ``coverage``, ``duration``.

    Notes
    -----
    Population: users who answered, aggregations finished or, right-censored, still running.
    ``not_triggered`` has no time. Waiting on the user and failing are other ends: `outcomes_over_time` has
    them all. A time is exact where the job was read (``finished_at − started_at``), else an interval from the
    last look that saw it running to the first that saw it settled.
    """
    draws = DRAWS if draws is None and by is None else draws or 0
    rows = answered(members, "aggregation_latency", *_COLUMNS)
    times = aggregation_times(rows, "aggregation_latency", duration)
    parts = [
        (name, times.take(places)) for name, places in _parts(rows, times, by, "aggregation_latency")[:top]
    ]
    known = [_censored.intervals(part.low, part.high) for _, part in parts]
    steps = [_censored.turnbull(each) for each in known]
    fits = _fits([part for _, part in parts], known, draws)
    curves = [
        (name, _curve(part, each, step, fit))
        for (name, part), each, step, fit in zip(parts, known, steps, fits, strict=True)
    ]
    frame = pd.DataFrame(
        {column: np.concatenate([curve[column] for _, curve in curves] or [np.zeros(0)]) for column in _CURVE}
    )
    frame = frame.astype("float64")
    if by is not None:
        frame.insert(0, by, strings(name for name, curve in curves for _ in curve["seconds"]))
    quantiles = [
        _row(name, part, each, fit) for (name, part), each, fit in zip(parts, known, fits, strict=True)
    ]
    frame.attrs = {
        **_attrs(times, by, duration, coverage),
        "still_running": float(1 - steps[0][-2]) if steps and by is None else None,
        "quantiles": [{k: None if pd.isna(v) else v for k, v in row.items()} for row in quantiles],
    }
    return frame


def latency_quantiles(
    members: pd.DataFrame,
    *,
    coverage: Coverage | None = None,
    by: str | None = None,
    duration: Duration = "best",
    draws: int | None = None,
) -> pd.DataFrame:
    """Median and 90 % point of aggregation time, with 95 % intervals, in all or by group.

    Parameters
    ----------
    members, coverage, by, duration, draws
        As `aggregation_latency` takes them.

    Returns
    -------
    pandas.DataFrame
        One row is one group, the largest first.

        ============================  =======  ========================================================
        group                         string   the value of `by`; ``all`` without it
        n                             int64    aggregations finished or still running
        n_exact, n_interval           int64    of these, timed by the job itself; by looks
        n_censored, share_censored             of these, still running when following ended
        p50, p50_low, p50_high        float64  seconds, and the ends of the interval
        p50_why                       string   why p50 is missing, where it is
        p90, p90_low, p90_high        float64  as p50
        p90_why                       string   as p50_why
        ============================  =======  ========================================================

        Where the looks leave a gap around a quantile it is missing, and its interval holds the whole gap: no
        shape is taken for granted in a span of a quarter of its beginning with looks of fewer than 1 % of the
        aggregations. It is missing, too, where its interval spans more than a factor of 2: few aggregations, or
        a median between two peaks, where hardly any ends. An interval that goes on beyond what was seen to end
        has no high.

    Notes
    -----
    Measured over 100 runs of 10,000 members each, with looks every 5 s or 30 s in random phase, or by the default
    schedule: of nine shapes the intervals cover the truth in 89 to 97 %, but in 84 to 94 % where the density falls
    off a cliff near the quantile (a median at the foot of the first of two peaks). Intervals of fewer than 50
    aggregations are too narrow: those of 20 cover in 70 to 95 %.
    """
    draws = DRAWS if draws is None and by is None else draws or 0
    rows = answered(members, "latency_quantiles", *_COLUMNS)
    times = aggregation_times(rows, "latency_quantiles", duration)
    every = _censored.intervals(times.low, times.high)
    groups = _parts(rows, times, by, "latency_quantiles")
    parts, known = [times.take(places) for _, places in groups], [every.of(places) for _, places in groups]
    each = zip(groups, parts, known, _fits(parts, known, draws), strict=True)
    frame = table([_row(name, part, own, fit) for (name, _), part, own, fit in each], _QUANTILES)
    frame.attrs = _attrs(times, by, duration, coverage)
    return frame


def slow_institutions(
    members: pd.DataFrame,
    *,
    coverage: Coverage | None = None,
    by: str = "institution",
    duration: Duration = "best",
    fdr: float = 0.01,
    least_ratio: float = 1.5,
) -> pd.DataFrame:
    """Which institutions take longer than the rest, by a rank test that knows intervals and censoring.

    Parameters
    ----------
    members, coverage, duration
        As `aggregation_latency` takes them.
    by
        What is compared: ``institution``, ``institution_guid``, or any column.
    fdr
        False-discovery rate over all that are compared.
    least_ratio
        A difference smaller than this is not called slower, however certain.

    Returns
    -------
    pandas.DataFrame
        One row is one institution with at least 10 aggregations, the slowest first.

        =====================  =======  ==============================================================
        [by]                   string   the institution
        n                      int64    aggregations finished or still running
        n_censored             int64    of these, still running when following ended
        ratio                  float64  its median time over that of the institutions not called slower
        ratio_low, ratio_high  float64  95 % interval of it
        p50                    float64  its median, seconds: the others' median times `ratio`
        p_value                float64  of its being no slower than the rest, one-sided
        q_value                float64  the same, adjusted for how many are compared
        is_slower              boolean  q_value ≤ `fdr`, ratio ≥ `least_ratio`, its interval above 1
        =====================  =======  ==============================================================

        ``attrs``: as `latency_quantiles`, and ``fdr``, ``least_ratio``, ``compared``.

    Notes
    -----
    Normal scores of the intervals under the common curve, compared with their variance under permutation:
    M. P. Fay, J. H. Shih, J. Am. Stat. Assoc. 93 (1998) 387, doi:10.1080/01621459.1998.10474113. The ratio
    is the maximum-likelihood shift of the common curve in probits, read back as time.
    """
    rows = answered(members, "slow_institutions", *_COLUMNS)
    times = aggregation_times(rows, "slow_institutions", duration)
    positions, group, names = groups(rows.iloc[times.rows], by, "slow_institutions")
    times = times.take(positions)
    sizes = np.bincount(group, minlength=len(names)).astype(np.float64)
    kept = np.flatnonzero(sizes >= FEWEST)
    found: list[dict[str, Any]] = []
    if len(kept) and np.isfinite(times.high).sum() >= FEWEST:
        p_value, ratio, p50 = _against_the_rest(times, group, sizes, fdr)
        q_value = np.full(len(names), np.nan)
        q_value[kept] = adjusted(p_value[kept])
        slower = (q_value <= fdr) & (ratio[0] >= least_ratio) & (ratio[1] > 1)
        censored = np.bincount(group, np.isinf(times.high), len(names))
        for place in kept:
            number = dict(zip(("ratio", "ratio_low", "ratio_high"), ratio[:, place], strict=True))
            tested = {"p_value": p_value[place], "q_value": q_value[place], "is_slower": slower[place]}
            counted = {by: names[place], "n": sizes[place], "n_censored": censored[place]}
            found.append({**counted, **number, "p50": p50 * ratio[0, place], **tested})
    found.sort(key=lambda row: (not row["is_slower"], -row["ratio_low"]))
    frame = table(found, {by: STRING, **_SLOW})
    frame.attrs = {
        **_attrs(times, by, duration, coverage),
        "fdr": fdr,
        "least_ratio": least_ratio,
        "compared": len(kept),
    }
    return frame


def _against_the_rest(times: Times, group: Ints, sizes: Floats, fdr: float) -> tuple[Floats, Floats, float]:
    """For each group the p-value, the ratio with its interval, and the median that it is a ratio to."""
    known = _censored.intervals(times.low, times.high)
    curve = smooth(known)
    score = normal_scores(known, curve)[known.pair]
    n, width = len(score), len(sizes)
    total = np.bincount(group, score - score.mean(), width)
    variance = score.var() * sizes * (n - sizes) / max(n - 1, 1)
    p_value = stats.norm.sf(total / np.sqrt(np.where(variance > 0, variance, np.nan)))
    slow = np.nan_to_num(adjusted(p_value), nan=1.0) <= fdr
    others = ~slow[group]
    if slow.any() and np.isfinite(times.high[others]).sum() >= FEWEST:
        curve = smooth(known.of(np.flatnonzero(others)))
    shift, error = shifts(known, curve, group, width)
    p50 = curve.quantile(0.5)
    ends = [shift, shift - Z95 * error, shift + Z95 * error]
    ratio = (
        np.array([[curve.quantile(min(float(special.ndtr(z)), curve.reach)) for z in end] for end in ends])
        / p50
    )
    return p_value, ratio, p50


def _fits(parts: Sequence[Times], known: Sequence[Intervals], draws: int) -> list[Smooth | None]:
    """The smooth curve of each group; None where too few finished."""
    enough = [place for place, part in enumerate(parts) if np.isfinite(part.high).sum() >= FEWEST]
    fits = smooth_each(
        [known[place] for place in enough], [parts[place].user for place in enough], draws=draws
    )
    of = dict(zip(enough, fits, strict=True))
    return [of.get(place) for place in range(len(parts))]


def _attrs(
    times: Times, by: str | None, duration: Duration, coverage: Coverage | None
) -> dict[Hashable, Any]:
    kept: dict[Hashable, Any] = {"left_out": times.left_out, "by": by, "duration": duration}
    kept.update(times.mix)
    kept["coverage"] = described(coverage)
    return kept


def _curve(
    times: Times, known: Intervals, step: Floats, fit: Smooth | None, points: int = 240
) -> dict[str, Floats]:
    inner = known.bounds[1:-1]
    first = inner[0] if fit is None else min(fit.quantile(0.01), inner[-1])
    seconds = np.geomspace(max(first / 2, _censored.SHORTEST_SECONDS), max(inner[-1], 1.0), points)
    missing = np.full(points, np.nan)
    bands = (missing,) * 3 if fit is None else (fit.share(seconds, z) for z in (0, -Z95, Z95))
    share, low, high = bands
    step = step[np.searchsorted(known.bounds, seconds, side="right") - 1]
    naive = np.searchsorted(np.sort(times.seen), seconds, side="right") / len(times.seen)
    return dict(zip(_CURVE, (seconds, share, low, high, step, naive), strict=True))


def _row(name: str, times: Times, known: Intervals, fit: Smooth | None) -> dict[str, Any]:
    n = len(times.low)
    row: dict[str, Any] = {
        "group": name,
        **times.mix,
        "share_censored": times.mix["n_censored"] / n if n else np.nan,
    }
    for label, share in (("p50", 0.5), ("p90", 0.9)):
        seconds, low, high, why = _quantile(known, fit, share)
        row |= {label: seconds, f"{label}_low": low, f"{label}_high": high, f"{label}_why": why}
    return row


def _quantile(known: Intervals, fit: Smooth | None, share: float) -> tuple[float, float, float, str]:
    """The quantile with its interval, or why there is none and between what times it lies."""
    nan = float("nan")
    if fit is None:
        return nan, nan, nan, f"fewer than {FEWEST} finished"
    seconds = fit.quantile(share)
    start, end = _around(known, seconds)
    if np.isinf(seconds) or np.isinf(end):
        return nan, float(known.bounds[-2]), nan, "following ended first"
    first, last = fit.quantile(share, Z95), fit.quantile(share, -Z95)
    first = first if first >= _censored.SHORTEST_SECONDS else 0.0
    if end > WIDEST_GAP * start:
        last = max(end, last) if np.isfinite(last) else nan
        return nan, min(start, first), last, f"no look between {start:.3g} and {end:.3g} s"
    if np.isfinite(last) and last > WIDEST_INTERVAL * first:
        return nan, first, last, f"somewhere between {first:.3g} and {last:.3g} s"
    return seconds, first, last if np.isfinite(last) else nan, ""


def _around(known: Intervals, seconds: float) -> tuple[float, float]:
    """The shortest span around a time with looks of `FEWEST_LOOKS` of the rows, as many before as after."""
    bounds, width = known.bounds, len(known.bounds)
    looks = np.cumsum(np.bincount(known.low, known.rows, width) + np.bincount(known.high, known.rows, width))
    before = looks[int(np.searchsorted(bounds, seconds)) - 1]
    some = max(FEWEST_LOOKS * known.rows.sum() / 2, 1)
    start, end = np.searchsorted(looks, [before - some + 1, before + some])
    return float(bounds[start]), float(bounds[min(end, width - 1)])


def _parts(rows: pd.DataFrame, times: Times, by: str | None, function: str) -> list[tuple[str, Ints]]:
    """The places in `times` of each group that has any, the largest first."""
    positions, group, names = groups(rows.loc[:, rows.columns == by].iloc[times.rows], by, function)
    short = group.astype(np.uint16 if len(names) < 65_536 else np.int64)  # is sorted in one pass
    order = np.argsort(short, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(names)))
    parts = np.split(positions[order], ends[:-1]) if len(names) else []
    return [(name, part) for name, part in zip(names, parts, strict=True) if len(part)]


def _is(column: pd.Series, word: str) -> Bools:
    return (column == word).to_numpy(dtype=bool, na_value=False)
