"""The requests of a run: how fast replies came, what failed, and whether loss has a pattern."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.compute as pc
from scipy import stats

from mxlab.analysis._inputs import (
    STRING,
    Bools,
    Coverage,
    Floats,
    Ints,
    codes,
    described,
    groups,
    need,
    strings,
    table,
    whole,
)
from mxlab.analysis._intervals import wilson

_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
_REPLY = {
    "endpoint": STRING,
    "attempt": "int64",
    "n": "int64",
    "n_replies": "int64",
    **{f"{name}{end}": "float64" for name, _ in _QUANTILES for end in ("", "_low", "_high")},
    "queued_p50": "float64",
}
_FAILURES = {
    "endpoint": STRING,
    "reason": STRING,
    "count": "int64",
    "n": "int64",
    "share": "float64",
    "low": "float64",
    "high": "float64",
    "may_have_acted": "int64",
    "sent_again": "int64",
}
_TIMELINE = {
    "seconds": "float64",
    "sent": "int64",
    "replied": "int64",
    "failed": "int64",
    "sent_per_second": "float64",
    "failed_per_second": "float64",
    "in_flight": "int64",
}
#: Lengths of a span that read well, in seconds.
_SPANS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600)
_LOSS = {
    "related_to": STRING,
    "test": STRING,
    "n": "int64",
    "n_lost": "int64",
    "statistic": "float64",
    "p_value": "float64",
    "is_related": "bool",
}


def reply_times(requests: pd.DataFrame, *, coverage: Coverage | None = None) -> pd.DataFrame:
    """Quantiles of reply time by endpoint and attempt.

    Parameters
    ----------
    requests
        The `requests` frame; uses ``endpoint``, ``attempt``, ``reply_seconds``, ``queued_seconds``.
    coverage
        Kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one attempt number at one endpoint: ``endpoint``, ``attempt``, ``n`` (requests),
        ``n_replies`` (with a reply time), ``p50``, ``p90``, ``p99`` each with ``_low`` and ``_high`` (95 %, from
        the order of the values alone; missing where there are too few), ``queued_p50``. Seconds.

    Notes
    -----
    Sent to last byte: nothing of the time in our own queue. Intervals: binomial ranks, as in H. A. David,
    H. N. Nagaraja, Order Statistics (2003), 7.1, doi:10.1002/0471722162.
    """
    need(requests, ("endpoint", "attempt", "reply_seconds", "queued_seconds"), "reply_times", "requests")
    names, numbers = codes(requests["endpoint"])[1], codes(requests["endpoint"])[0]
    attempt = requests["attempt"].to_numpy(dtype=np.int64, na_value=0)
    reply = requests["reply_seconds"].to_numpy(dtype=np.float64, na_value=np.nan)
    queued = requests["queued_seconds"].to_numpy(dtype=np.float64, na_value=np.nan)
    found = []
    for number, endpoint in enumerate(names):
        for tried in np.flatnonzero(np.bincount(attempt[numbers == number])):
            mine = (numbers == number) & (attempt == tried)
            known = np.sort(reply[mine][~np.isnan(reply[mine])])
            waited = queued[mine][~np.isnan(queued[mine])]
            row = {"endpoint": endpoint, "attempt": tried, "n": mine.sum(), "n_replies": len(known)}
            for name, share in _QUANTILES:
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), _ranked(known, share), strict=True))
            found.append({**row, "queued_p50": np.median(waited) if len(waited) else np.nan})
    frame = table(found, _REPLY)
    frame.attrs = {"n": len(requests), "coverage": described(coverage)}
    return frame


def request_failures(requests: pd.DataFrame, *, coverage: Coverage | None = None) -> pd.DataFrame:
    """Requests that brought nothing, by endpoint and reason.

    Parameters
    ----------
    requests
        The `requests` frame; uses ``endpoint``, ``status_code``, ``error``, ``may_have_acted``, ``session``,
        ``attempt``.
    coverage
        Kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one reason at one endpoint, the commonest first: ``endpoint``, ``reason`` (the error's name,
        with the HTTP status where there was one), ``count``, ``n`` (requests to it), ``share``, ``low``,
        ``high`` (95 % Wilson), ``may_have_acted`` (of these, how many the server may have acted on),
        ``sent_again`` (of these, followed by another attempt). ``attrs``: ``n``, ``n_failed``, ``coverage``.
    """
    columns = ("endpoint", "status_code", "error", "may_have_acted", "session", "attempt")
    need(requests, columns, "request_failures", "requests")
    bad = requests["error"].notna().to_numpy()
    failed = requests.loc[bad]
    status = failed["status_code"].astype("Int64").astype(STRING).fillna("")
    reason = (failed["error"].astype(STRING) + " " + status).str.strip()
    endpoint, names = codes(requests["endpoint"])
    part = pd.DataFrame(
        {
            "endpoint": endpoint[bad],
            "reason": reason.to_numpy(),
            "may_have_acted": failed["may_have_acted"].to_numpy(dtype=bool, na_value=False),
            "sent_again": _sent_again(requests, bad, endpoint),
        }
    ).astype({"reason": STRING})
    grouped = part.groupby(["endpoint", "reason"], observed=True, sort=False)
    frame = grouped.agg(
        count=("reason", "size"), may_have_acted=("may_have_acted", "sum"), sent_again=("sent_again", "sum")
    ).reset_index()
    place = frame["endpoint"].to_numpy(dtype=np.int64)
    n = np.append(np.bincount(endpoint[endpoint >= 0], minlength=len(names)), 0)[place].astype(np.float64)
    count = frame["count"].to_numpy(dtype=np.float64)
    frame["endpoint"] = strings(names[i] if i >= 0 else None for i in place)
    frame["n"], frame["share"] = n, count / np.maximum(n, 1)
    frame["low"], frame["high"] = wilson(count, n)
    frame = (
        frame[list(_FAILURES)].astype(_FAILURES).sort_values("count", ascending=False).reset_index(drop=True)
    )
    frame.attrs = {"n": len(requests), "n_failed": int(bad.sum()), "coverage": described(coverage)}
    return frame


def _sent_again(requests: pd.DataFrame, bad: Bools, endpoint: Ints) -> Bools:
    """Which failed requests were followed by a further attempt of the same user at the same endpoint."""
    attempt = requests["attempt"].to_numpy(dtype=np.int64, na_value=0)
    later = np.flatnonzero(attempt > 1)
    rows = np.concatenate([np.flatnonzero(bad), later])
    session = codes(requests["session"].iloc[rows])[0]
    wide = int(attempt.max(initial=0)) + 2
    key = (session * (int(endpoint.max(initial=0)) + 2) + endpoint[rows] + 1) * wide + attempt[rows]
    n = len(rows) - len(later)
    return np.isin(key[:n] + 1, key[n:])


def run_timeline(
    requests: pd.DataFrame, *, coverage: Coverage | None = None, speed: float = 1.0, points: int = 120
) -> pd.DataFrame:
    """A run's own course in real seconds: requests sent, ended, failed, in flight.

    Parameters
    ----------
    requests
        The `requests` frame of one run; uses ``sent_at``, ``reply_seconds``, ``error``.
    coverage
        Kept in ``attrs``.
    speed
        Seconds of the run's clock in a real one: ``snap.manifest["clock"]["speed"]``. ``sent_at`` is in the run's
        time and ``reply_seconds`` in real time; this brings them together. 1 off a simulation.
    points
        The most spans that the run is cut into.

    Returns
    -------
    pandas.DataFrame
        One row is one span of the run, without gaps.

        ==================================  =======  =======================================================
        seconds                             float64  its beginning: real seconds since the first request
        sent, replied, failed               int64    requests sent in it; ended in it; sent in it and failed
        sent_per_second, failed_per_second  float64  the same by real second
        in_flight                           int64    most requests under way at once within it
        ==================================  =======  =======================================================

        ``attrs``: ``started_at`` (the run's time), ``span_seconds``, ``seconds`` (the run's length), ``speed``,
        ``n``, ``n_failed``, ``coverage``; seconds are real. Requests that were never sent are not in it.
    """
    need(requests, ("sent_at", "reply_seconds", "error"), "run_timeline", "requests")
    rows = requests.loc[requests["sent_at"].notna().to_numpy()]
    started = rows["sent_at"].min()
    sent = ((rows["sent_at"] - started).dt.total_seconds() / speed).to_numpy(dtype=np.float64)
    ended = sent + np.nan_to_num(rows["reply_seconds"].to_numpy(dtype=np.float64, na_value=np.nan))
    length = float(ended.max(initial=0))
    span = next((float(span) for span in _SPANS if length < points * span), length / (points - 1))
    width = int(length // span) + 1 if len(rows) else 0
    failed = rows["error"].notna().to_numpy()
    begun, over = ((times // span).astype(np.int64) for times in (sent, ended))
    bad = np.bincount(begun, failed, width)
    counts = np.bincount(begun, minlength=width), np.bincount(over, minlength=width), bad
    starts = np.arange(width) * span
    values = (starts, *counts, counts[0] / span, bad / span, _most_at_once(sent, ended, starts))
    frame = pd.DataFrame(dict(zip(_TIMELINE, values, strict=True))).astype(_TIMELINE)
    frame.attrs = {
        "started_at": started.isoformat() if len(rows) else None,
        "span_seconds": span,
        "seconds": length,
        "speed": speed,
        "n": len(rows),
        "n_failed": int(failed.sum()),
        "coverage": described(coverage),
    }
    return frame


def _most_at_once(sent: Floats, ended: Floats, starts: npt.NDArray[Any]) -> Ints:
    """The most requests under way at once in each span, one that ends at a moment being over at it."""
    at = np.concatenate([starts, sent, ended])
    change = np.repeat([0, 1, -1], [len(starts), len(sent), len(ended)])
    order = np.lexsort((change, at))
    flying = np.cumsum(change[order])
    first = np.flatnonzero(order < len(starts))
    found: Ints = np.maximum.reduceat(flying, first) if len(first) else flying
    return found


def loss_pattern(
    members: pd.DataFrame, requests: pd.DataFrame, *, coverage: Coverage | None = None, level: float = 0.05
) -> pd.DataFrame:
    """Whether being lost goes with the order of the run or with an institution.

    Parameters
    ----------
    members
        The `members` frame with the rows of lost users too; ``user_state``, ``institution``, ``session``.
    requests
        The `requests` frame; ``sent_at``, ``session``, ``error``.
    coverage
        Kept in ``attrs``.
    level
        Below which p-value, after Bonferroni over both, loss is called related.

    Returns
    -------
    pandas.DataFrame
        Two rows: ``related_to`` (``order``, ``institution``), ``test``, ``n`` (users; members), ``n_lost``,
        ``statistic``, ``p_value``, ``is_related``. Where nothing is lost the p-value is missing.

    Notes
    -----
    Order: Mann–Whitney test of the times of users' first requests. Institution: χ² of lost members by
    institution with at least five expected, the rest pooled. Rates leave lost users out: if loss has a
    pattern, rates have a bias.
    """
    need(members, ("user_state", "institution", "session"), "loss_pattern")
    need(requests, ("sent_at", "session"), "loss_pattern", "requests")
    moments, answering = _users(members, requests)
    missed = members["user_state"].isin(["lost", "unknown"]).to_numpy(dtype=bool)
    lost_users = ~answering
    order = (np.nan, np.nan)
    if lost_users.any() and not lost_users.all():
        test = stats.mannwhitneyu(moments[lost_users], moments[~lost_users])
        order = (float(test.statistic), float(test.pvalue))
    positions, group, names = groups(members, "institution", "loss_pattern")
    bank = _uneven(missed[positions], group, len(names))
    found = [
        ("order", "Mann–Whitney", len(moments), lost_users.sum(), *order),
        ("institution", "χ²", len(members), missed.sum(), *bank),
    ]
    rows = [dict(zip(_LOSS, (*row, bool(row[-1] <= level / 2)), strict=True)) for row in found]
    frame = table(rows, _LOSS)
    frame.attrs = {"coverage": described(coverage)}
    return frame


def _users(members: pd.DataFrame, requests: pd.DataFrame) -> tuple[Ints, Bools]:
    """Of each user that a request was sent for: when the first was, and whether members of it were read."""
    session = whole(requests["session"].astype(STRING)).dictionary_encode()
    number = pc.fill_null(session.indices, -1).to_numpy().astype(np.int64)
    known = (number >= 0) & requests["sent_at"].notna().to_numpy()
    moments = np.full(len(session.dictionary), np.iinfo(np.int64).max)
    np.minimum.at(moments, number[known], requests["sent_at"].astype("int64").to_numpy()[known])
    there = ~members["user_state"].isin(["lost", "unknown"]).to_numpy(dtype=bool)
    read = pc.unique(whole(members.loc[there, "session"].astype(STRING)))
    return moments, pc.is_in(session.dictionary, value_set=read.cast(session.dictionary.type)).to_numpy(
        zero_copy_only=False
    )


def _uneven(lost: Bools, group: Ints, width: int) -> tuple[float, float]:
    """χ² and p-value of lost rows being spread over groups unlike the others."""
    share = lost.mean() if len(lost) else 0.0
    n, k = np.bincount(group, minlength=width).astype(np.float64), np.bincount(group, lost, width)
    big = n * min(share, 1 - share) >= 5
    n, k = (np.append(counts[big], counts[~big].sum()) for counts in (n, k))
    n, k = n[n > 0], k[n > 0]
    if len(n) < 2 or not 0 < share < 1:
        return float("nan"), float("nan")
    test = stats.chi2_contingency(np.stack([k, n - k]), correction=False)
    return float(test.statistic), float(test.pvalue)


def _ranked(values: Floats, share: float) -> tuple[float, float, float]:
    """A quantile of sorted values with its 95 % interval by ranks; missing ends where there are too few."""
    n = len(values)
    if not n:
        return float("nan"), float("nan"), float("nan")
    low, high = int(stats.binom.ppf(0.025, n, share)), int(stats.binom.ppf(0.975, n, share)) + 1
    start = float(values[low - 1]) if low >= 1 else float("nan")
    end = float(values[high - 1]) if high <= n else float("nan")
    return float(np.quantile(values, share)), start, end
