"""Institutions against their own past and against each other: outages, excess, what they cost the fleet."""

import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

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
    strings,
    table,
)
from mxlab.analysis._intervals import adjusted, wilson

#: The variance of standard normal values that are clipped at their tenths.
CLIPPED_VARIANCE = 0.678
#: A deviation beyond so many standard deviations is an outage rather than a sign of restless times.
CUT = 2.5
#: How alike the jobs of a window are taken to be before the data speak, and how many institutions' word that has.
USUAL_DISPERSION, PRIOR_INSTITUTIONS = 0.01, 5.0

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
    "dispersion": "float64",
    "p_value": "float64",
    "q_value": "float64",
    "is_alarm": "bool",
    "is_family": "bool",
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
#: Words of a name that stand for a product or a kind of login, not for a bank.
_PRODUCTS = frozenset(
    [
        "the",
        "na",
        "inc",
        "online",
        "banking",
        "oauth",
        "personal",
        "business",
        "commercial",
        "card",
        "cards",
        "mortgage",
        "investments",
        "us",
        "usa",
    ]
)
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
    dispersion: float | None = None,
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
        A `members` frame of an earlier run, the better past. Without one the past is the jobs of this frame from
        before the longest window, and what all institutions share, now, cannot show; where there are none, as
        after an `aggregate`, each is held against all.
    by
        What is scanned: ``institution``, ``institution_guid``, …
    families
        From a value of `by` to its family: MX has several institutions for one bank. A family is scanned beside
        its members; `institution_families` suggests some.
    windows_hours
        Each is tested; more hours win power at small institutions.
    dispersion
        How alike the jobs of one window are even in calm times (intra-class correlation). Estimated where None.
    fdr
        False-discovery rate over everything that is scanned.
    coverage
        Kept in ``attrs``.

    Returns
    -------
    pandas.DataFrame
        One row is one institution (or family) in one window with at least one job, the least explicable first.

        =========================  =======  =============================================================
        [by]                       string   the institution, or the family
        window_hours               float64  the window's length; it ends at the last ``seen_at``
        n, failures                int64    jobs begun in it, and how many ended with MX or the bank to act
        share, low, high           float64  failures / n with its 95 % Wilson interval
        baseline_n                 int64    jobs of its past
        baseline_share             float64  its usual share at jobs of this age, shrunken to all institutions'
        expected                   float64  failures that the past explains
        dispersion                 float64  intra-class correlation that the test allows for in calm times
        p_value, q_value           float64  of so many failures or more; adjusted for all windows and institutions
        is_alarm                   bool     q_value ≤ `fdr`
        is_family                  bool     a family, not one institution
        =========================  =======  =============================================================

        ``attrs``: ``until``, ``scanned``, ``has_past``, ``fdr``, ``by``, ``coverage``.

    Notes
    -----
    A member shows its last job only, and those that failed are repeated later: old last jobs are mostly failures.
    So the past of an institution is its failures over those that jobs of the same ages have elsewhere, under a
    gamma prior fitted to all (empirical Bayes: D. B. Clayton, J. Kaldor, Biometrics 43 (1987) 671,
    doi:10.2307/2532003); times the share of its window's ages. Failures in the window are then beta-binomial; how
    far calm institutions stray from their past is read off all of them, large deviations cut (an empirical null: B.
    Efron, J. Am. Stat. Assoc. 99 (2004) 96, doi:10.1198/016214504000000089; the cut: P. J. Huber, Ann. Math. Stat. 35
    (1964) 73, doi:10.1214/aoms/1177703732). Benjamini–Hochberg over institutions, their windows brought together by
    Simes' test: everything is ranked, only what passes is an alarm. Fixed thresholds and z-scores raise tens of
    false alarms a scan over 600 institutions.

    Measured on 600 institutions, 8 % failing, one bank at 40 % with 100 jobs and more in the window: found in 99 % at
    an intra-class correlation of 0.01 in calm times, in about 70 % at 0.03, where a calm bank's own ups and downs come near
    that. What is ranked first without an alarm is then worth a look.
    """
    rows = answered(members, "outage_scan", *{*_COLUMNS, by})
    windows = np.sort(np.asarray(windows_hours, dtype=np.float64))
    edges = np.concatenate([[0.0], windows, windows[-1] * np.array([2.0, 4.0, 8.0]), [np.inf]])
    until = rows["seen_at"].max()
    frames = [rows] if baseline is None else [rows, answered(baseline, "outage_scan", *{*_COLUMNS, by})]
    units = _Units(frames, by, families or {})
    n, k = units.counts(0, edges)
    past_n, past_k = units.counts(len(frames) - 1, edges)
    if baseline is None:
        past_n[:, : len(windows)] = past_k[:, : len(windows)] = 0
    usual = _share(past_k[units.single].sum(axis=0), past_n[units.single].sum(axis=0))
    observed, expected = past_k.sum(axis=1), past_n @ usual
    factor, strength = _own_factor(observed, expected, units.single)
    parts = []
    for place, hours in enumerate(windows):
        jobs, failures = (counts[:, : place + 1].sum(axis=1) for counts in (n, k))
        all_jobs, all_failures = jobs[units.single].sum(), failures[units.single].sum()
        others = _share(all_failures - failures, all_jobs - jobs)
        then = (
            others
            if baseline is None
            else _share(*(part[units.single, : place + 1].sum() for part in (past_k, past_n)))
        )
        alike = _dispersion(jobs, failures, np.clip(factor * others, 1e-6, 0.95), strength, units.single)
        alike = alike if dispersion is None else dispersion
        share = np.clip(factor * then, 1e-6, 0.95)
        spread = _spread(share, strength, alike)
        there = np.flatnonzero(jobs)
        part = pd.DataFrame(
            {"unit": there, "window_hours": hours, "n": jobs[there], "failures": failures[there]}
        )
        part["baseline_n"], part["baseline_share"] = past_n.sum(axis=1)[there], share[there]
        part["dispersion"], part["a"] = alike, (share * (1 / spread - 1))[there]
        part["b"] = ((1 - share) * (1 / spread - 1))[there]
        parts.append(part)
    found = pd.concat(parts, ignore_index=True)
    jobs, failures, share = (
        found[name].to_numpy(dtype=np.float64) for name in ("n", "failures", "baseline_share")
    )
    found["share"], found["expected"] = failures / np.maximum(jobs, 1), jobs * share
    found["low"], found["high"] = wilson(failures, jobs)
    found["p_value"] = _at_least(failures, jobs, found["a"].to_numpy(), found["b"].to_numpy())
    found["q_value"] = _by_unit(
        found["p_value"].to_numpy(dtype=np.float64), found["unit"].to_numpy(dtype=np.int64)
    )
    found["is_alarm"] = found["q_value"] <= fdr
    found["is_family"] = ~units.single[found["unit"].to_numpy(dtype=np.int64)]
    names = pd.Series(strings(units.names[unit] for unit in found["unit"]))
    frame = found.assign(**{by: names})[[by, *_SCAN]].astype({by: STRING, **_SCAN})
    frame = frame.sort_values(["is_alarm", "p_value"], ascending=[False, True]).reset_index(drop=True)
    frame.attrs = {
        "until": None if pd.isna(until) else until.isoformat(),
        "scanned": int(frame[by].nunique()),
        "has_past": bool(expected.sum() > 0),
        "fdr": fdr,
        "by": by,
        "coverage": described(coverage),
    }
    return frame


def institution_families(
    members: pd.DataFrame, *, by: str = "institution", least: float = 0.9
) -> pd.DataFrame:
    """Institutions that may be one bank, by their names: suggestions to look through, nothing is merged.

    Parameters
    ----------
    members
        The `members` frame; uses ``user_state`` and the column of `by`.
    by
        A column of names.
    least
        How alike the names of two must be, 0…1, once what tells products apart is left out.

    Returns
    -------
    pandas.DataFrame
        One row is one institution of a suggested family of two or more, the largest family first: ``family`` (the
        name of its largest), ``[by]``, ``n`` (members), ``likeness`` (of its name to the family's, 0…1).

    Notes
    -----
    One real bank may be several institutions on MX, by region, product or kind of login
    (docs.mx.com/api-reference/platform-api/reference/institutions). Names that differ by more than a word are other
    banks as often as not: look before ``outage_scan(families=dict(zip(found[by], found["family"])))``.
    """
    rows = answered(members, "institution_families", by)
    _, group, names = groups(rows, by, "institution_families")
    sizes = np.bincount(group, minlength=len(names))
    heads: dict[str, dict[str, str]] = {}
    found: dict[str, list[dict[str, object]]] = {}
    for name, size in zip(names, sizes, strict=True):  # the largest come first
        core = _core(name)
        if name == NOT_KNOWN or not core:
            continue
        known = heads.setdefault(core.split()[0], {})
        alike = [core] if core in known else difflib.get_close_matches(core, known, n=1, cutoff=least)
        head = known[alike[0]] if alike else known.setdefault(core, name)
        likeness = difflib.SequenceMatcher(None, core, alike[0] if alike else core).ratio()
        found.setdefault(head, []).append({"family": head, by: name, "n": size, "likeness": likeness})
    families = [family for family in found.values() if len(family) > 1]
    families.sort(key=lambda family: -sum(int(str(row["n"])) for row in family))
    columns = {"family": STRING, by: STRING, "n": "int64", "likeness": "float64"}
    return table([row for family in families for row in family], columns)


def _core(name: str) -> str:
    """A name without what tells one bank's products apart."""
    plain = re.sub(r"\([^)]*\)|[^\w\s]", " ", name.casefold())
    return " ".join(word for word in plain.split() if word not in _PRODUCTS)


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
    institution: str | Sequence[str],
    *,
    by: str = "institution",
    since_hours: float = 24.0,
    later: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One institution's failures of the last days: is it real, since when, whom did it hit, what kind.

    Parameters
    ----------
    members
        The `members` frame; uses ``aggregated_at``, ``seen_at``, ``who_must_act``, ``connection_status``,
        ``is_oauth``, ``guid``, ``session``, ``user_state`` and the column of `by`.
    institution, by
        Which one: a value of the column; or several, the members of a family, taken as one.
    since_hours
        How far back jobs are looked at. Farther than a day, last jobs are mostly failures, since what succeeds is
        repeated daily: the share before the onset is then too high.
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
    mine = rows[by].isin(_listed(institution)).to_numpy(dtype=bool) & (age <= since_hours)
    rows = rows.loc[mine].sort_values("aggregated_at")
    if rows.empty:
        return table([], _incident_columns()).pipe(_dated)
    failed = _failed(rows)
    moments = rows["aggregated_at"].dt.as_unit("us").astype("int64").to_numpy() / 1e6
    start, end = float(moments[0]), float(rows["seen_at"].max().timestamp())
    log_odds, low, best, high = _onset(moments, failed, end)
    after = moments >= best
    hit = rows.loc[after & failed]
    before_share = float((failed[~after].sum() + 0.5) / ((~after).sum() + 1))
    oauth = rows["is_oauth"].to_numpy(dtype=bool, na_value=False)
    words = hit["connection_status"].astype(STRING).value_counts()
    recovered = _recovered(hit, later)
    row = {
        "institution": ", ".join(_listed(institution)),
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
    members: pd.DataFrame,
    institution: str | Sequence[str],
    *,
    by: str = "institution",
    since: pd.Timestamp | None = None,
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
    mine = rows[by].isin(_listed(institution)).to_numpy(dtype=bool) & _failed(rows)
    if since is not None:
        mine &= (rows["aggregated_at"] >= since).to_numpy(dtype=bool, na_value=False)
    return (
        rows.loc[mine, list(_EVIDENCE)].sort_values("aggregated_at", ascending=False).reset_index(drop=True)
    )


def _listed(institution: str | Sequence[str]) -> list[str]:
    return [institution] if isinstance(institution, str) else list(institution)


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


class _Units:
    """What is scanned: the values of a column in some frames, and the families that some of them are pooled in.

    Attributes
    ----------
    names
        Of all, the families last.
    single
        Whether each is one value, not a family.
    """

    def __init__(self, frames: Sequence[pd.DataFrame], by: str, families: Mapping[str, str]) -> None:
        self._frames = frames
        parts = [groups(rows, by, "outage_scan") for rows in frames]
        values = list(dict.fromkeys(name for _, _, names in parts for name in names if name != NOT_KNOWN))
        pooled = list(dict.fromkeys(families[name] for name in values if name in families))
        self.names = [*values, *pooled]
        self.single = np.arange(len(self.names)) < len(values)
        self._family = np.array(
            [
                len(values) + pooled.index(families[name]) if name in families else -1
                for name in [*values, NOT_KNOWN]
            ]
        )
        place = {name: number for number, name in enumerate(values)}
        self._rows = [
            (positions, np.array([place.get(name, -1) for name in names], dtype=np.int64)[group])
            for positions, group, names in parts
        ]

    def counts(self, frame: int, edges: Floats) -> tuple[Floats, Floats]:
        """Jobs and failures of each unit by how old they were at the last look of their frame."""
        rows, (positions, unit) = self._frames[frame], self._rows[frame]
        age = _hours_before(rows, rows["seen_at"].max())[positions]
        bad = _failed(rows)[positions]
        width = len(edges) - 1
        at = np.searchsorted(edges[1:-1], age)
        shape = (len(self.names), width)
        n, k = np.zeros(shape), np.zeros(shape)
        for owner in (unit, self._family[unit]):
            used = (owner >= 0) & (age >= 0) & np.isfinite(age)
            flat = owner[used] * width + at[used]
            n += np.bincount(flat, minlength=n.size).reshape(shape)
            k += np.bincount(flat, bad[used], n.size).reshape(shape)
        return n, k


def _share(failures: Floats, jobs: Floats) -> Floats:
    """A share that is defined for none of none."""
    found: Floats = (np.asarray(failures) + 0.5) / (np.asarray(jobs) + 2)
    return found


def _own_factor(observed: Floats, expected: Floats, single: Bools) -> tuple[Floats, Floats]:
    """By what factor each fails more than jobs of the same ages elsewhere, and how many failures say so."""
    o, e = observed[single], expected[single]
    known = e > 0
    if known.sum() < 3:
        return np.ones(len(observed)), np.full(len(observed), 1e6)
    spread = float(((o - e)[known] ** 2 - e[known]).sum() / (e[known] ** 2).sum())
    prior = 1 / float(np.clip(spread, 1e-3, 4.0))
    return (prior + observed) / (prior + expected), prior + observed


def _by_unit(p_values: Floats, unit: Ints) -> Floats:
    """Adjusted p-values of windows, such that one outage seen in several windows does not let others pass.

    The windows of an institution count as one test of it (R. J. Simes, Biometrika 73 (1986) 751,
    doi:10.1093/biomet/73.3.751); Benjamini–Hochberg over institutions; within one, Bonferroni over its windows.
    """
    order = np.lexsort((p_values, unit))
    _, first, sizes = np.unique(unit[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, sizes) + 1
    size = np.repeat(sizes, sizes)
    simes = np.minimum.reduceat(p_values[order] * size / rank, first) if len(order) else p_values
    found = np.empty(len(order))
    found[order] = np.maximum(np.repeat(adjusted(simes), sizes), np.minimum(p_values[order] * size, 1.0))
    return found


def _spread(share: Floats, strength: Floats, alike: float) -> Floats:
    """The intra-class correlation of a window's jobs: of not knowing the share, and of calm times' own."""
    unknown = 1 / np.maximum((1 - share) * strength / share, 1.5)
    return 1 - (1 - unknown) * (1 - alike)


def _dispersion(jobs: Floats, failures: Floats, share: Floats, strength: Floats, single: Bools) -> float:
    """How alike the jobs of one window are, such that deviations from the past have the size they should.

    Each squared deviation is divided by what it is in calm times, and cut; where their weighted mean is 1 is the
    answer. Few institutions say little: it is drawn to `USUAL_DISPERSION` as by `PRIOR_INSTITUTIONS` more of them.
    """
    used = single & (jobs >= 2)
    n, p, s = jobs[used], share[used], strength[used]
    square = (failures[used] - n * p) ** 2 / np.maximum(n * p * (1 - p), 1e-9)
    weight = (n - 1) / (1 + (n - 1) * _spread(p, s, USUAL_DISPERSION))
    if not weight.sum() > 0:
        return USUAL_DISPERSION
    below = stats.norm.cdf(CUT) - stats.norm.cdf(-CUT)
    mean = below - 2 * CUT * stats.norm.pdf(CUT) + CUT**2 * (1 - below)

    def excess(alike: float) -> float:
        ratio = square / (1 + (n - 1) * _spread(p, s, alike))
        return float(weight @ (np.minimum(ratio, CUT**2) / mean - 1) / weight.sum())

    low, high = 1e-5, 0.5
    if excess(low) <= 0:
        found = low
    elif excess(high) >= 0:
        found = high
    else:
        found = float(optimize.brentq(excess, low, high, xtol=1e-5))
    size = float(weight.sum() ** 2 / (weight**2).sum())
    return (size * found + PRIOR_INSTITUTIONS * USUAL_DISPERSION) / (size + PRIOR_INSTITUTIONS)


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
