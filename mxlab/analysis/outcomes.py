"""How aggregations end, and when: every end in its own right, none a mere loss of sight."""

import numpy as np
import pandas as pd
from scipy import special

from mxlab.analysis import _censored
from mxlab.analysis._censored import Intervals
from mxlab.analysis._inputs import (
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
    table,
    who_column,
)
from mxlab.analysis._intervals import wilson
from mxlab.analysis._smooth import smooth

_COLUMNS = (
    "outcome",
    "who_must_act",
    "session",
    "aggregation_seconds_low",
    "aggregation_seconds_high",
    "job_seconds",
)
#: Ends in the order in which they are stacked.
_ENDS = [("finished", "nobody"), ("waiting_on_user", "user")] + [
    ("failed", str(who)) for who in ("user", "mx", "partner", "over", "manual", "unknown")
]
_POINTS = 160
_RATES = {
    "group": STRING,
    "measure": STRING,
    "count": "int64",
    "n": "int64",
    "share": "float64",
    "low": "float64",
    "high": "float64",
}


def outcomes_over_time(members: pd.DataFrame, *, coverage: Coverage | None = None) -> pd.DataFrame:
    """Where started aggregations are, by time since the kick-off: cumulative incidence of each end.

    Parameters
    ----------
    members
        The `members` frame of an `aggregate`: ``outcome``, ``who_must_act``, ``user_state``, ``session``,
        ``aggregation_seconds_low``, ``aggregation_seconds_high``, ``job_seconds``.
    coverage
        Kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one end at one time.

        ============  ========  ====================================================================
        seconds       float64   time since the kick-off
        outcome       string    ``finished``, ``waiting_on_user`` or ``failed``
        who_must_act  category  who must act then; splits the failures
        share         float64   of started aggregations, ended so by then (smooth)
        low, high     float64   95 % interval
        step          float64   the same, nonparametric
        ============  ========  ====================================================================

        ``attrs``: ``n``, ``n_running``, ``ends`` (a row for each end: its share when following ended),
        ``still_running`` (share), ``coverage``.

    Notes
    -----
    Waiting on the user and failing compete with finishing; to treat them as lost from sight (Kaplan–Meier)
    would claim that they finish later. Only ``running`` is censored. The nonparametric maximum of the
    interval-censored likelihood: M. G. Hudgens, G. A. Satten, I. M. Longini, Biometrics 57 (2001) 74,
    doi:10.1111/j.0006-341X.2001.00074.x; on exact times it is the Aalen–Johansen estimator. The smooth curve
    of an end is its final share times a smooth distribution of its times (M. G. Larson, G. E. Dinse, Appl.
    Stat. 34 (1985) 201, doi:10.2307/2347464).
    """
    rows = answered(members, "outcomes_over_time", *_COLUMNS)
    used, cause, low, high = _ended(rows)
    n = int(used.sum())
    seen = [place for place in range(len(_ENDS)) if (cause[used] == place).any()]
    frames: list[pd.DataFrame] = []
    ends: list[dict[str, object]] = []
    still = 0.0
    if n:
        times = _censored.intervals(low[used], high[used])
        steps, posterior = _incidence(times, cause[used], seen)
        still = float(1 - steps[:, -2].sum())
        seconds = np.geomspace(0.3, max(float(times.bounds[-2]), 1.0), _POINTS)
        for place, end in enumerate(seen):
            curve = _end_curve(times, steps[place], cause[used] == end, posterior[place], seconds)
            outcome, who = _ENDS[end]
            frame = pd.DataFrame({"seconds": seconds, **curve})
            frame.insert(1, "outcome", strings([outcome] * _POINTS))
            frame.insert(2, "who_must_act", pd.Series(who_column([who] * _POINTS)))
            frames.append(frame)
            ends.append({"outcome": outcome, "who_must_act": who, "share": float(steps[place][-2])})
    empty = table(
        [],
        {
            "seconds": "float64",
            "outcome": STRING,
            "who_must_act": STRING,
            **dict.fromkeys(("share", "low", "high", "step"), "float64"),
        },
    )
    empty["who_must_act"] = who_column([])
    found = pd.concat(frames, ignore_index=True) if frames else empty
    running = int((cause[used] < 0).sum())
    found.attrs = {
        "n": n,
        "n_running": running,
        "ends": ends,
        "still_running": still,
        "coverage": described(coverage),
    }
    return found


def success_rates(
    members: pd.DataFrame, *, coverage: Coverage | None = None, by: str | None = None
) -> pd.DataFrame:
    """Success rates of aggregations that came to an end, each named as what it is.

    Parameters
    ----------
    members
        The `members` frame of an `aggregate`: ``outcome``, ``who_must_act``, ``user_state``.
    coverage
        Kept in ``attrs``.
    by
        A column to group by.

    Returns
    -------
    pandas.DataFrame
        One row is one measure of one group: ``group``, ``measure``, ``count``, ``n``, ``share``, ``low``,
        ``high`` (95 % Wilson). Measures: ``finished of all ended`` counts what stops for the user as no
        success; ``finished, user-caused ends left out`` is the rate of MX and the banks alone.

    Notes
    -----
    User-caused are the ends at which MX names the end user as the one to act; running and not triggered are in
    neither denominator.
    """
    rows = answered(members, "success_rates", "outcome", "who_must_act")
    outcome = rows["outcome"]
    good, failed = (outcome == "finished").to_numpy(dtype=bool), (outcome == "failed").to_numpy(dtype=bool)
    waiting = (outcome == "waiting_on_user").to_numpy(dtype=bool)
    users = waiting | (failed & (rows["who_must_act"] == "user").to_numpy(dtype=bool))
    positions, group, names = groups(rows, by, "success_rates")
    measures = {
        "finished of all ended": good | failed | waiting,
        "finished, user-caused ends left out": good | (failed & ~users),
    }
    found = []
    for measure, population in measures.items():
        n = np.bincount(group, population[positions], len(names))
        count = np.bincount(group, (good & population)[positions], len(names))
        low, high = wilson(count, n)
        share = np.where(n > 0, count / np.maximum(n, 1), np.nan)
        found += [
            dict(zip(_RATES, (name, measure, count[i], n[i], share[i], low[i], high[i]), strict=True))
            for i, name in enumerate(names)
            if len(rows)
        ]
    frame = table(found, _RATES)
    frame.attrs = {"by": by, "coverage": described(coverage)}
    return frame


def _ended(rows: pd.DataFrame) -> tuple[Bools, Ints, Floats, Floats]:
    """Which rows started, how each ended (−1 running), and between which times."""
    low, high, job = (rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in _COLUMNS[3:])
    outcome = codes(rows["outcome"])
    who = codes(rows["who_must_act"])
    ends = {end: place for place, end in enumerate(_ENDS)}
    names = [*outcome[1], ""]
    acting = [*who[1], "unknown"]
    cause = np.full(len(rows), -2, dtype=np.int64)
    for code, word in enumerate(names[:-1]):
        mine = outcome[0] == code
        if word == "running":
            cause[mine] = -1
        elif word == "failed":
            split = np.array([ends.get(("failed", act), ends["failed", "mx"]) for act in acting])
            cause[mine] = split[who[0][mine]]
        elif word in ("finished", "waiting_on_user"):
            cause[mine] = ends[word, "nobody" if word == "finished" else "user"]
    exact = (cause >= 0) & (job >= 0)
    low = np.where(exact, job, np.nan_to_num(low))
    high = np.where(exact, job, np.where(cause == -1, np.inf, high))
    return (cause >= -1) & (high >= low), cause, low, high


def _incidence(
    times: Intervals, cause: Ints, seen: list[int], *, tolerance: float = 1e-4, rounds: int = 1_500
) -> tuple[Floats, Floats]:
    """The nonparametric cumulative incidence of each end at each bound, and whose the censored rows will be.

    EM over cells of time and end: a row of known end spreads over the cells of its interval, a censored one
    over all later cells of all ends and what lies beyond the last bound.
    """
    width, n = len(times.bounds), len(cause)
    place = {end: number for number, end in enumerate(seen)}
    number = np.array([place.get(int(end), -1) for end in range(-1, len(_ENDS))])[cause + 1]
    known = number >= 0
    flat, count = np.unique(number[known] * len(times.rows) + times.pair[known], return_counts=True)
    end, pair = flat // len(times.rows), flat % len(times.rows)
    first, last = times.low[pair], times.high[pair]
    lost = np.bincount(times.low[times.pair[~known]], minlength=width).astype(np.float64)
    lows, highs = np.zeros((len(seen), width), bool), np.zeros((len(seen), width), bool)
    lows[end, first], highs[end, last] = True, True
    lows |= lost > 0
    mass = (lows[:, :-1] & highs[:, 1:]).astype(np.float64)
    beyond = 1.0 if lost.any() else 0.0
    total = mass.sum() + beyond
    mass, beyond = mass / total, beyond / total
    rows, size = np.arange(len(seen))[:, None], len(seen) * width
    for _ in range(rounds):
        steps = np.concatenate([np.zeros((len(seen), 1)), np.cumsum(mass, axis=1)], axis=1)
        inside = np.maximum(steps[end, last] - steps[end, first], _censored.TINY)
        ratio = count / inside
        left = np.maximum(steps[:, -1].sum() + beyond - steps.sum(axis=0), _censored.TINY)
        spread = lost / left
        begun = np.bincount(end * width + first, ratio, size) - np.bincount(end * width + last, ratio, size)
        rise = np.cumsum(begun.reshape(-1, width) + spread, axis=1)[:, :-1] / n
        mass, beyond = mass * rise, beyond * spread.sum() / n
        if (np.abs(rise - 1) * (mass > 1e-12)).max(initial=0) < tolerance:
            break
    steps = np.concatenate([np.zeros((len(seen), 1)), np.cumsum(mass, axis=1)], axis=1)
    left = np.maximum(steps[:, -1].sum() + beyond - steps.sum(axis=0), _censored.TINY)
    posterior = (steps[rows, -1] - steps) / left
    return steps, posterior


def _end_curve(
    times: Intervals, step: Floats, mine: Bools, posterior: Floats, seconds: Floats
) -> dict[str, Floats]:
    """The incidence of one end: its final share times a smooth distribution of its times."""
    at = step[np.searchsorted(times.bounds, seconds, side="right") - 1]
    total, n = float(step[-2]), float(len(mine))
    ends = wilson(np.array([total * n]), np.array([n]))
    if mine.sum() < 10:
        low, high = wilson(at * n, np.full(len(at), n))
        return {"share": at, "low": low, "high": high, "step": at}
    censored = np.isinf(times.bounds[times.high])
    rows = np.bincount(times.pair, mine, len(times.rows)) + censored * times.rows * posterior[times.low]
    own = times._replace(rows=rows.astype(np.float64))
    curve = smooth(own)
    share = curve.share(seconds)
    probit = special.ndtri(np.clip(share, 1e-9, 1 - 1e-9))
    upper = special.ndtri(np.clip(curve.share(seconds, 1.0), 1e-9, 1 - 1e-9))
    spread = np.exp(-0.5 * probit**2) / np.sqrt(2 * np.pi) * (upper - probit) * total * 1.96
    low = total * share - np.hypot(spread, share * (total - ends[0][0]))
    high = total * share + np.hypot(spread, share * (ends[1][0] - total))
    return {"share": total * share, "low": np.maximum(low, 0), "high": np.minimum(high, 1), "step": at}
