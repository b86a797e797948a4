"""Institutions against their own past and against each other: outages, excess, what they cost the fleet."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import special, stats

from mxlab.analysis._inputs import (
    NOT_KNOWN,
    STRING,
    Bools,
    Coverage,
    Floats,
    Ints,
    answered,
    described,
    groups,
    table,
)
from mxlab.analysis._intervals import adjusted, wilson

#: The variance of standard normal values that are clipped at their tenths.
CLIPPED_VARIANCE = 0.678

_COLUMNS = ("institution", "who_must_act", "aggregated_at", "seen_at")
_SCAN = {
    "window_hours": "float64",
    "n": "int64",
    "failures": "int64",
    "share": "float64",
    "low": "float64",
    "high": "float64",
    "baseline_n": "int64",
    "baseline_share": "float64",
    "expected": "float64",
    "p_value": "float64",
    "q_value": "float64",
    "is_alarm": "bool",
}
_FUNNEL = {
    "n": "int64",
    "failures": "int64",
    "share": "float64",
    "low_95": "float64",
    "high_95": "float64",
    "low_998": "float64",
    "high_998": "float64",
    "p_value": "float64",
    "q_value": "float64",
    "is_outside": "bool",
}
_SHARE = {
    "n": "int64",
    "failures": "int64",
    "share": "float64",
    "rest_share": "float64",
    "excess": "float64",
    "excess_low": "float64",
    "excess_high": "float64",
    "fleet_share": "float64",
    "fleet_share_without": "float64",
}
#: What MX support asks for, of each member.
_EVIDENCE = (
    "guid",
    "user_guid",
    "institution",
    "institution_guid",
    "institution_code",
    "connection_status",
    "is_oauth",
    "aggregated_at",
    "successfully_aggregated_at",
    "most_recent_job_guid",
    "seen_at",
)


def outage_scan(
    members: pd.DataFrame,
    *,
    baseline: pd.DataFrame | None = None,
    by: str = "institution",
    families: Mapping[str, str] | None = None,
    windows_hours: Sequence[float] = (1.0, 6.0, 24.0),
    dispersion: float = 0.01,
    fdr: float = 0.05,
    coverage: Coverage | None = None,
) -> pd.DataFrame:
    """Institutions whose jobs of the last hours fail more than their own past explains.

    Parameters
    ----------
    members
        The `members` frame; uses ``aggregated_at`` (the start of a member's last job), ``seen_at``,
        ``who_must_act`` (a job failed where MX or the bank must act), ``user_state`` and the column of `by`.
    baseline
        A `members` frame of an earlier run. Without one the past is the jobs of this frame from before the
        longest window; where there are none, as after an `aggregate`, each is held against all, now.
    by
        What is scanned: ``institution``, ``institution_guid``, …
    families
        From a value of `by` to the family that it is pooled in: MX has several institutions for one bank.
    windows_hours
        Each is tested; more hours win power at small institutions.
    dispersion
        How alike the jobs of one window are even in calm times (intra-class correlation).
    fdr
        False-discovery rate over all institutions and windows.
    coverage
        Kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one institution in one window with at least one job, the least explicable first.

        =========================  =======  =============================================================
        [by]                       string   the institution, or its family
        window_hours               float64  the window's length; it ends at the last ``seen_at``
        n, failures                int64    jobs begun in it, and how many ended with MX or the bank to act
        share, low, high           float64  failures / n with its 95 % Wilson interval
        baseline_n                 int64    jobs of the past
        baseline_share             float64  its own past share, shrunken to all institutions' by its size
        expected                   float64  failures that the past explains
        p_value, q_value           float64  of so many failures or more; adjusted for all that is scanned
        is_alarm                   bool     q_value ≤ `fdr`
        =========================  =======  =============================================================

    Notes
    -----
    The past share of each institution has a beta posterior under a beta prior fitted to all (empirical Bayes),
    so failures in the window are beta-binomial; Benjamini–Hochberg over everything. Fixed thresholds and
    z-scores raise tens of false alarms a scan over 600 institutions.
    """
    rows = answered(members, "outage_scan", *{*_COLUMNS, by})
    past = rows if baseline is None else answered(baseline, "outage_scan", *{*_COLUMNS, by})
    until = rows["seen_at"].max()
    age = _hours_before(rows, until)
    label, failed = _labels(rows, by, families), _failed(rows)
    old = age > max(windows_hours) if baseline is None else np.ones(len(past), bool)
    past_label, past_failed = (
        (label, failed) if baseline is None else (_labels(past, by, families), _failed(past))
    )
    history = _counts(past_label[old], past_failed[old])
    names = sorted(set(label[age <= max(windows_hours)].tolist()) - {NOT_KNOWN})
    known = history if history["n"].sum() else _counts(label[np.isfinite(age)], failed[np.isfinite(age)])
    prior = _beta_prior(known["n"].to_numpy(dtype=np.float64), known["failures"].to_numpy(dtype=np.float64))
    parts = []
    for hours in windows_hours:
        inside = (age <= hours) & (age >= 0)
        part = _counts(label[inside], failed[inside]).reindex(names).dropna()
        parts.append(part.assign(window_hours=float(hours)))
    found = (
        pd.concat(parts)
        if names
        else pd.DataFrame(columns=["n", "failures", "window_hours"], dtype="float64")
    )
    own = history.reindex(found.index).fillna(0.0)
    a, b = prior[0] + own["failures"].to_numpy(), prior[1] + (own["n"] - own["failures"]).to_numpy()
    trust = np.minimum(1.0, (1 / dispersion - 1) / (a + b)) if dispersion > 0 else 1.0
    n, k = found["n"].to_numpy(dtype=np.float64), found["failures"].to_numpy(dtype=np.float64)
    p_value = _at_least(k, n, a * trust, b * trust)
    q_value = adjusted(p_value)
    low, high = wilson(k, n)
    values = (
        found["window_hours"],
        n,
        k,
        k / np.maximum(n, 1),
        low,
        high,
        own["n"],
        a / (a + b),
        n * a / (a + b),
    )
    frame = pd.DataFrame(
        dict(zip(_SCAN, (*values, p_value, q_value, q_value <= fdr), strict=True)), index=found.index
    )
    frame.insert(0, by, frame.index.to_numpy())
    frame = frame.astype({by: STRING, **_SCAN}).sort_values(["is_alarm", "p_value"], ascending=[False, True])
    frame = frame.reset_index(drop=True)
    moment = None if pd.isna(until) else until.isoformat()
    frame.attrs = {
        "until": moment,
        "scanned": len(names),
        "has_past": bool(history["n"].sum()),
        "fdr": fdr,
        "by": by,
        "coverage": described(coverage),
    }
    return frame


def institution_funnel(
    members: pd.DataFrame, *, by: str = "institution", fdr: float = 0.05, coverage: Coverage | None = None
) -> pd.DataFrame:
    """The share waiting for MX or the bank at each institution against its size, with funnel limits.

    Parameters
    ----------
    members
        The `members` frame; uses ``who_must_act``, ``user_state`` and the column of `by`.
    by, fdr, coverage
        As `outage_scan` takes them.

    Returns
    -------
    pandas.DataFrame
        One row is one institution, the largest first: ``[by]``, ``n``, ``failures``, ``share``; ``low_95``,
        ``high_95``, ``low_998``, ``high_998``, where 95 % and 99.8 % of institutions of that size would lie
        around the middle one's share; ``p_value`` (two-sided), ``q_value``,
        ``is_outside``. ``attrs["fleet_share"]``: the share in the middle, weighted by size.

    Notes
    -----
    D. J. Spiegelhalter, Stat. Med. 24 (2005) 1185, doi:10.1002/sim.1970; limits are binomial, widened by the
    spread that institutions have between them anyway (his additive random effect, winsorised).
    """
    rows = answered(members, "institution_funnel", "who_must_act", by)
    counts = _by_size(rows, by)
    n, k = counts["n"].to_numpy(dtype=np.float64), counts["failures"].to_numpy(dtype=np.float64)
    angle = np.arcsin(np.sqrt((k + 0.375) / (n + 0.75)))
    within = 1 / (4 * n + 2)
    centre, between = _middle(angle, within) if len(n) else (0.0, 0.0)
    fleet = float(np.sin(centre) ** 2) if len(n) else np.nan
    spread = np.sqrt(within + between)
    z = (angle - centre) / spread
    p_value = 2 * stats.norm.sf(np.abs(z))
    q_value = adjusted(p_value)

    def limit(points: float) -> Floats:
        found: Floats = np.sin(np.clip(centre + points * spread, 0, np.pi / 2)) ** 2
        return found

    values = (
        n,
        k,
        k / np.maximum(n, 1),
        limit(-1.96),
        limit(1.96),
        limit(-3.09),
        limit(3.09),
        p_value,
        q_value,
    )
    frame = pd.DataFrame(dict(zip(_FUNNEL, (*values, q_value <= fdr), strict=True)))
    frame.insert(0, by, counts.index.to_numpy())
    frame = frame.astype({by: STRING, **_FUNNEL})
    frame.attrs = {
        "fleet_share": None if np.isnan(fleet) else fleet,
        "fdr": fdr,
        "by": by,
        "coverage": described(coverage),
    }
    return frame


def attributable_share(
    members: pd.DataFrame, *, by: str = "institution", coverage: Coverage | None = None
) -> pd.DataFrame:
    """What the fleet's share waiting for MX or the bank would be, were each institution like the rest.

    Parameters
    ----------
    members, by, coverage
        As `institution_funnel` takes them.

    Returns
    -------
    pandas.DataFrame
        One row is one institution, the costliest first.

        ==============================  =======  =====================================================
        [by]                            string   the institution
        n, failures, share                       its members, and those waiting for MX or the bank
        rest_share                      float64  the share at all others
        excess, excess_low, excess_high float64  members more than at the others' share; 95 % interval
        fleet_share                     float64  the share of all
        fleet_share_without             float64  the same, were this institution at the others' share
        ==============================  =======  =====================================================
    """
    rows = answered(members, "attributable_share", "who_must_act", by)
    counts = _by_size(rows, by)
    n, k = counts["n"].to_numpy(dtype=np.float64), counts["failures"].to_numpy(dtype=np.float64)
    total, failures = n.sum(), k.sum()
    rest_n = total - n
    rest = np.where(rest_n > 0, (failures - k) / np.maximum(rest_n, 1), np.nan)
    low, high = wilson(k, n)
    fleet = failures / max(total, 1)
    without = (failures - k + n * rest) / max(total, 1)
    values = (
        n,
        k,
        k / np.maximum(n, 1),
        rest,
        k - n * rest,
        n * (low - rest),
        n * (high - rest),
        np.full(len(n), fleet),
        without,
    )
    frame = pd.DataFrame(dict(zip(_SHARE, values, strict=True)))
    frame.insert(0, by, counts.index.to_numpy())
    frame = frame.astype({by: STRING, **_SHARE}).sort_values("excess", ascending=False).reset_index(drop=True)
    frame.attrs = {"by": by, "coverage": described(coverage)}
    return frame


def incident(
    members: pd.DataFrame,
    institution: str,
    *,
    by: str = "institution",
    since_hours: float = 48.0,
    later: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One institution's failures of the last days: is it real, since when, whom did it hit, what kind.

    Parameters
    ----------
    members
        The `members` frame; uses ``aggregated_at``, ``seen_at``, ``who_must_act``, ``connection_status``,
        ``is_oauth``, ``guid``, ``session``, ``user_state`` and the column of `by`.
    institution, by
        Which one: a value of the column.
    since_hours
        How far back jobs are looked at.
    later
        A `members` frame of a later run, for the recovery.

    Returns
    -------
    pandas.DataFrame
        One row, or none where the institution has no job in that time.

        =============================  ==================  ============================================
        institution                    string
        n, failures                    int64               jobs in that time; failed ones
        share_before, share_after      float64             failures / jobs before and after the onset
        onset, onset_low, onset_high   datetime64[us, UTC] median time of the change; 95 % interval
        evidence                       float64             log10 of the Bayes factor of a rise
        is_real                        bool                the factor is at least 20
        members_hit, users_hit         int64               failing since the onset
        excess                         float64             failures more than before the onset
        oauth_share, other_share       float64             failures after the onset, by kind of login
        statuses                       string              the failing statuses with their counts
        recovered, recovered_share                         of the members hit, no more failing in `later`
        =============================  ==================  ============================================

    Notes
    -----
    One change of a Bernoulli rate, at a time of uniform prior, rates of uniform prior: A. F. M. Smith,
    Biometrika 62 (1975) 407, doi:10.1093/biomet/62.2.407. The interval is as narrow as jobs are frequent. A
    member's last job replaces its earlier ones, so failures that were repaired since are not seen.
    """
    columns = (*_COLUMNS, "connection_status", "is_oauth", "guid", "session", by)
    rows = answered(members, "incident", *dict.fromkeys(columns))
    age = _hours_before(rows, rows["seen_at"].max())
    mine = (rows[by] == institution).to_numpy(dtype=bool, na_value=False) & (age <= since_hours)
    rows = rows.loc[mine].sort_values("aggregated_at")
    if rows.empty:
        return table([], _incident_columns()).pipe(_dated)
    failed = _failed(rows)
    moments = rows["aggregated_at"].astype("int64").to_numpy() / 1e6
    start, end = float(moments[0]), float(rows["seen_at"].max().timestamp())
    log_odds, low, best, high = _onset(moments, failed, end)
    after = moments >= best
    hit = rows.loc[after & failed]
    before_share = float((failed[~after].sum() + 0.5) / ((~after).sum() + 1))
    oauth = rows["is_oauth"].to_numpy(dtype=bool, na_value=False)
    words = hit["connection_status"].astype(STRING).value_counts()
    recovered = _recovered(hit, later)
    row = {
        "institution": institution,
        "n": len(rows),
        "failures": int(failed.sum()),
        "share_before": float(failed[~after].mean()) if (~after).any() else np.nan,
        "share_after": float(failed[after].mean()) if after.any() else np.nan,
        "onset": best,
        "onset_low": max(low, start - 1),
        "onset_high": high,
        "evidence": float(log_odds / np.log(10)),
        "is_real": bool(log_odds >= np.log(20)),
        "members_hit": len(hit),
        "users_hit": int(hit["session"].nunique()),
        "excess": float(failed[after].sum() - before_share * after.sum()),
        "oauth_share": float(failed[after & oauth].mean()) if (after & oauth).any() else np.nan,
        "other_share": float(failed[after & ~oauth].mean()) if (after & ~oauth).any() else np.nan,
        "statuses": ", ".join(f"{word} {count:,}" for word, count in words.items()),
        "recovered": recovered,
        "recovered_share": recovered / len(hit) if len(hit) and later is not None else np.nan,
    }
    return table([row], _incident_columns()).pipe(_dated)


def evidence_pack(
    members: pd.DataFrame, institution: str, *, by: str = "institution", since: pd.Timestamp | None = None
) -> pd.DataFrame:
    """The failing members of an institution, with what MX support asks for.

    Parameters
    ----------
    members, institution, by
        As `incident` takes them.
    since
        Only jobs begun then or later; the ``onset_low`` of `incident`.

    Returns
    -------
    pandas.DataFrame
        One row is one member waiting for MX or the bank: guids, status, times and the last job's guid, the
        latest job first.

    Notes
    -----
    MX asks for member guids by status (academy.mx.com, article 4708854368525).
    """
    rows = answered(members, "evidence_pack", *_EVIDENCE, "who_must_act", by)
    mine = (rows[by] == institution).to_numpy(dtype=bool, na_value=False) & _failed(rows)
    if since is not None:
        mine &= (rows["aggregated_at"] >= since).to_numpy(dtype=bool, na_value=False)
    return (
        rows.loc[mine, list(_EVIDENCE)].sort_values("aggregated_at", ascending=False).reset_index(drop=True)
    )


def _onset(moments: Floats, failed: Bools, end: float) -> tuple[float, float, float, float]:
    """Log Bayes factor of a rise at some time against none; its 2.5 %, median and 97.5 % time."""
    n = len(moments)
    fails = np.concatenate([[0], np.cumsum(failed)])
    split = np.arange(1, n)  # the change lies between the jobs before and at the split
    a, b = fails[split], fails[n] - fails[split]
    marginal = special.betaln(a + 1, split - a + 1) + special.betaln(b + 1, n - split - b + 1)
    rising = special.log_ndtr(_rise(a, split, b, n - split))
    flat = special.betaln(fails[n] + 1, n - fails[n] + 1)
    gaps = np.maximum(np.diff(moments), 1e-3)
    if not len(gaps):
        return 0.0, float(moments[0]), float(moments[0]), end
    log_mass = marginal + rising + np.log(2) + np.log(gaps / gaps.sum())
    whole = special.logsumexp(log_mass)
    mass = np.exp(log_mass - whole)
    ladder = np.concatenate([[0], np.cumsum(mass)])
    low, middle, high = (float(np.interp(q, ladder, moments)) for q in (0.025, 0.5, 0.975))
    return float(whole - flat), low, middle, high


def _rise(a: Floats, n: Ints, b: Floats, m: Ints) -> Floats:
    """How many standard deviations the posterior rate after is above that before."""
    p, q = (a + 1) / (n + 2), (b + 1) / (m + 2)
    found: Floats = (q - p) / np.sqrt(p * (1 - p) / (n + 3) + q * (1 - q) / (m + 3))
    return found


def _recovered(hit: pd.DataFrame, later: pd.DataFrame | None) -> int:
    if later is None:
        return 0
    now = answered(later, "incident", "guid", "who_must_act")
    fine = now.loc[~_failed(now), "guid"]
    return int(hit["guid"].isin(fine).sum())


def _incident_columns() -> dict[str, str]:
    whole = dict.fromkeys(("n", "failures", "members_hit", "users_hit", "recovered"), "int64")
    order = [
        "institution",
        "n",
        "failures",
        "share_before",
        "share_after",
        "onset",
        "onset_low",
        "onset_high",
        "evidence",
        "is_real",
        "members_hit",
        "users_hit",
        "excess",
        "oauth_share",
        "other_share",
        "statuses",
        "recovered",
        "recovered_share",
    ]
    special_ones = {"institution": STRING, "statuses": STRING, "is_real": "bool", **whole}
    return {name: special_ones.get(name, "float64") for name in order}


def _dated(frame: pd.DataFrame) -> pd.DataFrame:
    for name in ("onset", "onset_low", "onset_high"):
        frame[name] = pd.to_datetime(frame[name] * 1e6, unit="us", utc=True).dt.as_unit("us")
    return frame


def _failed(rows: pd.DataFrame) -> Bools:
    """Where MX or the bank must act."""
    return (rows["who_must_act"] == "mx").to_numpy(dtype=bool, na_value=False)


def _hours_before(rows: pd.DataFrame, until: pd.Timestamp) -> Floats:
    """How long before the last look each row's last job began; infinite where it is not known."""
    hours = ((until - rows["aggregated_at"]).dt.total_seconds() / 3600).to_numpy(
        dtype=np.float64, na_value=np.nan
    )
    return np.where(np.isnan(hours), np.inf, hours)


def _labels(
    rows: pd.DataFrame, by: str, families: Mapping[str, str] | None
) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    positions, group, names = groups(rows, by, "outage_scan")
    pooled = [(families or {}).get(name, name) for name in names]
    return (
        np.array(pooled, dtype=object)[group[np.argsort(positions, kind="stable")]]
        if len(rows)
        else np.zeros(0, object)
    )


def _counts(label: np.ndarray[tuple[int], np.dtype[np.object_]], failed: Bools) -> pd.DataFrame:
    """Jobs and failures of each label."""
    code, names = pd.factorize(label)
    n = np.bincount(code, minlength=len(names))
    k = np.bincount(code, failed, len(names))
    return pd.DataFrame({"n": n.astype(np.float64), "failures": k}, index=pd.Index(names))


def _middle(angle: Floats, within: Floats) -> tuple[float, float]:
    """The common value and the variance between institutions, neither moved by the outermost tenths."""
    order = np.argsort(angle)
    weight = np.cumsum(1 / within[order])
    centre = float(angle[order][np.searchsorted(weight, weight[-1] / 2)])
    z = (angle - centre) / np.sqrt(within)
    z = np.clip(z, *np.quantile(z, (0.1, 0.9)))
    excess = max(float((z**2).mean()) / CLIPPED_VARIANCE - 1, 0.0)
    return centre, excess * float(np.median(within))


def _by_size(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Members and failures of each group, the largest first, the unknown left out."""
    positions, group, names = groups(rows, by, "institution_funnel")
    n = np.bincount(group, minlength=len(names)).astype(np.float64)
    k = np.bincount(group, _failed(rows)[positions], len(names))
    frame = pd.DataFrame({"n": n, "failures": k}, index=pd.Index(names, dtype=STRING))
    return frame.loc[frame.index != NOT_KNOWN]


def _beta_prior(n: Floats, k: Floats) -> tuple[float, float]:
    """A beta distribution of the institutions' shares, by moments of those with ten jobs or more."""
    big = n >= 10
    if big.sum() < 3 or not k[big].sum():
        share = (k.sum() + 0.5) / (n.sum() + 5)
        return 5 * share, 5 * (1 - share)
    total, p = n[big].sum(), k[big].sum() / n[big].sum()
    spread = float((n[big] * (k[big] / n[big] - p) ** 2).sum())
    degrees = big.sum() - 1
    scale = total - (n[big] ** 2).sum() / total
    between = (spread - degrees * p * (1 - p)) / scale
    alike = float(np.clip(between / (p * (1 - p)), 1e-3, 0.5))
    strength = 1 / alike - 1
    return p * strength, (1 - p) * strength


def _at_least(k: Floats, n: Floats, a: Floats, b: Floats) -> Floats:
    """P(K ≥ k) of beta-binomial counts, many at once."""
    reach = (n - k + 1).astype(np.int64)
    owner = np.repeat(np.arange(len(k)), reach)
    first = np.cumsum(reach) - reach
    at = k[owner] + (np.arange(len(owner)) - first[owner])
    size, x, y = n[owner], a[owner], b[owner]
    choose = -np.log(size + 1) - special.betaln(size - at + 1, at + 1)
    term = np.exp(choose + special.betaln(at + x, size - at + y) - special.betaln(x, y))
    return np.minimum(np.bincount(owner, term, len(k)), 1.0)
