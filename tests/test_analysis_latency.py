"""Aggregation time: against scipy, a published table, and a known truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from test_analysis_worlds import looks, no_objects, world

from mxlab import analysis
from mxlab.analysis import _censored, _smooth

SCHEDULES = [
    pytest.param({"schedule": "phase", "step": 5.0}, id="5s"),
    pytest.param({"schedule": "phase", "step": 30.0}, id="30s"),
    pytest.param({"schedule": "default"}, id="default"),
]


def turnbull(low, high):
    times = _censored.intervals(np.asarray(low, float), np.asarray(high, float))
    return times, _censored.turnbull(times, tolerance=1e-9, rounds=100_000)


def test_turnbull_equals_kaplan_meier_of_scipy_where_times_are_exact_or_censored():
    rng = np.random.default_rng(1)
    exact, censored = rng.exponential(10, 60).round(1) + 0.1, rng.exponential(8, 40).round(1) + 0.05
    times, step = turnbull(np.concatenate([exact, censored]), np.concatenate([exact, np.full(40, np.inf)]))
    expected = stats.ecdf(stats.CensoredData(uncensored=exact, right=censored)).cdf
    found = np.interp(expected.quantiles * (1 + 1e-9), times.bounds[:-1], step[:-1])
    inner = expected.quantiles <= exact.max()
    assert found[inner] == pytest.approx(expected.probabilities[inner], abs=1e-6)


def test_turnbull_equals_the_published_table_of_fay_and_shaw():
    """Breast cosmesis, radiation only: M. P. Fay, P. A. Shaw, J. Stat. Softw. 36 (2010) 2, doi:10.18637/jss.v036.i02."""
    open_ended = [
        45,
        46,
        46,
        17,
        15,
        22,
        46,
        46,
        46,
        46,
        46,
        37,
        40,
        46,
        38,
        37,
        18,
        24,
        36,
        24,
        32,
        33,
        37,
        34,
        36,
    ]
    closed = [
        (6, 10),
        (0, 7),
        (7, 16),
        (7, 14),
        (37, 44),
        (0, 8),
        (4, 11),
        (11, 15),
        (25, 37),
        (26, 40),
        (27, 34),
    ]
    closed += [(36, 44), (36, 48), (17, 25), (11, 18), (5, 12), (0, 5), (5, 11), (19, 35), (17, 25), (19, 26)]
    low = [*open_ended, *(a for a, _ in closed)]
    high = [*[np.inf] * len(open_ended), *(b for _, b in closed)]
    assert len(low) == 46
    times, step = turnbull(low, high)
    mass = {end: m for end, m in zip(times.bounds[1:], np.diff(step), strict=True) if m > 1e-4}
    expected = {5: 0.0463, 7: 0.0334, 8: 0.0887, 12: 0.0708, 25: 0.0926, 34: 0.0818, 40: 0.1209, 48: 0.4656}
    assert mass == {end: pytest.approx(m, abs=6e-5) for end, m in expected.items()}


@pytest.mark.parametrize("seed", range(4))
def test_turnbull_reaches_the_maximum_that_scipy_finds(seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 12, 40).astype(float)
    high = np.where(rng.random(40) < 0.2, np.inf, low + rng.integers(1, 8, 40))
    times, step = turnbull(low, high)

    def loss(mass):
        total = np.concatenate([[0.0], np.cumsum(mass)])
        return -(times.rows @ np.log(np.maximum(total[times.high] - total[times.low], 1e-12)))

    cells = len(times.bounds) - 1
    whole = {"type": "eq", "fun": lambda mass: mass.sum() - 1}
    start, limits = np.full(cells, 1 / cells), [(0, 1)] * cells
    best = optimize.minimize(
        loss,
        start,
        bounds=limits,
        constraints=[whole],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert loss(np.diff(step)) <= best.fun + 1e-6


def test_smooth_fit_of_exact_times_equals_the_normal_fit_of_their_logarithms():
    """What the penalty costs nothing is the log-normal distribution, and that is what is chosen here."""
    times = np.exp(np.random.default_rng(3).normal(3, 0.6, 2_000))
    known = _censored.intervals(times, times)
    curve = _smooth.smooth(known)
    logs = np.log(times)
    expected = stats.lognorm(logs.std(), scale=np.exp(logs.mean())).ppf([0.1, 0.5, 0.9])
    assert 3 <= curve.bends < 4
    assert [curve.quantile(p) for p in (0.1, 0.5, 0.9)] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("median", [10.0, 40.0, 120.0])
def test_quantiles_are_near_the_truth_and_the_naive_ones_are_not(schedule, median):
    errors, naive = truth_errors(median, schedule, runs=8)
    assert abs(errors.mean(axis=0)) == pytest.approx([0, 0], abs=0.025)
    assert np.abs(errors).max() < 0.08
    assert naive[:, 0].mean() > max(0.008, 4 * abs(errors[:, 0].mean()) if median < 100 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("median", [10.0, 40.0, 120.0])
def test_quantiles_over_100_runs(schedule, median, figures):
    errors, naive = truth_errors(median, schedule, runs=100)
    case = f"aggregation time, median {median:g} s, {schedule['schedule']} {schedule.get('step', '')}".strip()
    figures[f"{case}: mean error of p50, p90"] = errors.mean(axis=0).round(4).tolist()
    figures[f"{case}: error within which 95 % of runs are"] = (
        np.quantile(np.abs(errors), 0.95, axis=0).round(4).tolist()
    )
    figures[f"{case}: mean error of the naive p50, p90"] = naive.mean(axis=0).round(4).tolist()
    assert (np.abs(errors.mean(axis=0)) <= 0.01).all()
    assert (np.quantile(np.abs(errors), 0.95, axis=0) <= 0.04).all()


def truth_errors(median, schedule, runs, n=10_000):
    truth = median * np.exp(0.8 * stats.norm.ppf([0.5, 0.9]))
    errors, naive = [], []
    for run in range(runs):
        rng = np.random.default_rng([run, int(median)])
        low, high = looks(rng, median * np.exp(0.8 * rng.standard_normal(n)), **schedule)
        found = analysis.latency_quantiles(minimal(low, high), draws=0).iloc[0]
        errors.append(np.array([found["p50"], found["p90"]]) / truth - 1)
        naive.append(np.nanquantile(high, [0.5, 0.9]) / truth - 1)
    return np.array(errors), np.array(naive)


def minimal(low, high, users=None):
    """The columns that aggregation time needs, and no more."""
    n = len(low)
    users = np.arange(n) if users is None else users
    return pd.DataFrame(
        {
            "user_state": pd.Categorical(["answered"] * n),
            "outcome": pd.Categorical(np.where(np.isnan(high), "running", "finished")),
            "who_must_act": pd.Categorical(["nobody"] * n),
            "session": pd.Categorical(users.astype(str)),
            "aggregation_seconds_low": low,
            "aggregation_seconds_high": high,
            "job_seconds": np.full(n, np.nan),
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("alike", [0.0, 0.5])
def test_intervals_cover_the_truth(alike, figures):
    """Also where the members of one user are alike."""
    truth = 40 * np.exp(0.8 * stats.norm.ppf([0.5, 0.9]))
    hits = []
    for run in range(2_000):
        rng = np.random.default_rng([run, 7])
        users = np.repeat(np.arange(250), 4)
        z = np.sqrt(alike) * rng.standard_normal(250)[users] + np.sqrt(1 - alike) * rng.standard_normal(1_000)
        found = analysis.latency_quantiles(minimal(*looks(rng, 40 * np.exp(0.8 * z)), users)).iloc[0]
        hits.append(
            [found[f"{p}_low"] <= t <= found[f"{p}_high"] for p, t in zip(("p50", "p90"), truth, strict=True)]
        )
    figures[f"intervals of p50, p90 cover the truth, users alike {alike:g}"] = np.mean(hits, axis=0).tolist()
    assert np.mean(hits, axis=0) == pytest.approx([0.95, 0.95], abs=0.02)


def test_intervals_are_as_wide_as_a_bootstrap_over_users():
    rng = np.random.default_rng(5)
    users = np.repeat(np.arange(300), 3)
    z = np.sqrt(0.5) * rng.standard_normal(300)[users] + np.sqrt(0.5) * rng.standard_normal(900)
    low, high = looks(rng, 40 * np.exp(0.8 * z))
    found = analysis.latency_quantiles(minimal(low, high, users)).iloc[0]
    medians = []
    for _ in range(120):
        rows = (rng.integers(0, 300, 300)[:, None] * 3 + np.arange(3)).ravel()
        medians.append(analysis.latency_quantiles(minimal(low[rows], high[rows]), draws=0).iloc[0]["p50"])
    width = np.log(found["p50_high"] / found["p50_low"]) / (2 * 1.96)
    assert width == pytest.approx(np.std(np.log(medians)), rel=0.25)


def test_exact_and_interval_are_never_mixed_unsaid():
    members = world(3_000, exact=0.5)
    curve = analysis.aggregation_latency(members)
    attrs = curve.attrs
    finished = (members["outcome"] == "finished").sum()
    assert attrs["n_exact"] + attrs["n_interval"] == finished
    assert attrs["n"] == finished + attrs["n_censored"]
    assert attrs["left_out"]["not_triggered"] == (members["outcome"] == "not_triggered").sum()
    assert analysis.latency_quantiles(members, duration="looks")["n_exact"].iloc[0] == 0
    assert analysis.latency_quantiles(members, duration="job")["n_interval"].iloc[0] == 0
    assert curve["share"].is_monotonic_increasing
    assert ((curve["low"] <= curve["share"]) & (curve["share"] <= curve["high"])).all()
    assert (curve["naive"] <= curve["high"] + 0.001).all()
    assert attrs["quantiles"][0]["p50"] == pytest.approx(40, rel=0.1)


def test_observe_knows_only_jobs_of_connected_members():
    members = world(2_000, exact=1.0).assign(outcome=pd.Categorical([None] * 2_000))
    found = analysis.latency_quantiles(members).iloc[0]
    connected = (members["who_must_act"] == "nobody") & members["job_seconds"].notna()
    assert (found["n"], found["n_exact"]) == (connected.sum(), connected.sum())


@pytest.mark.parametrize(
    ("settings", "why", "low", "high"),
    [
        ({"schedule": "fixed", "step": 30.0, "median": 10.0}, "no look between 0 and 30 s", 0.0, 30.0),
        ({"limit": 30.0, "median": 100.0}, "following ended first", None, None),
        ({"limit": 30.0, "median": 31.0}, "following ended first", None, None),
    ],
)
def test_a_quantile_that_the_looks_do_not_identify_is_not_given(settings, why, low, high):
    found = analysis.latency_quantiles(world(2_000, **settings)).iloc[0]
    assert np.isnan(found["p50"])
    assert found["p50_why"] == why
    if high is not None:
        assert (found["p50_low"], found["p50_high"]) == (low, high)


@pytest.mark.parametrize("others", [5, 50, 1_000])
def test_a_few_looks_between_two_of_all_others_do_not_identify_a_quantile(others):
    """10,000 members seen every 30 s exactly, so many of them at times of their own."""
    rng = np.random.default_rng(3)
    times = 40 * np.exp(0.8 * rng.standard_normal(10_000))
    low, high = looks(rng, times, schedule="fixed", step=30.0)
    low[:others], high[:others] = looks(rng, times[:others])
    found = analysis.latency_quantiles(minimal(low, high), draws=0).iloc[0]
    if others < 100:
        assert np.isnan(found["p50"])
        assert found["p50_low"] <= 31
        assert found["p50_high"] >= 40
        assert "no look between" in found["p50_why"]
    else:
        assert found["p50"] == pytest.approx(40, rel=0.1)


def between_two_peaks(schedule, run):
    """What is said of the median where half end before 20 s and half after 45 s: any time between is one."""
    rng = np.random.default_rng([run, 5])
    center = np.where(rng.random(10_000) < 0.5, 10.0, 90.0)
    low, high = looks(rng, center * np.exp(0.3 * rng.standard_normal(10_000)), **schedule)
    return analysis.latency_quantiles(minimal(low, high), draws=0).iloc[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_median_is_given_between_two_peaks(schedule):
    found = between_two_peaks(schedule, 2)
    assert np.isnan(found["p50"])
    assert found["p50_low"] < 26
    assert found["p50_high"] > 34
    assert found["p50_why"].startswith("somewhere between")
    assert found["p90"] == pytest.approx(90 * np.exp(0.3 * stats.norm.ppf(0.8)), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_median_is_given_between_two_peaks_over_100_runs(schedule, figures):
    """But where, by chance, more than half are of one peak; and then very nearly half do end by the time given."""
    found = [between_two_peaks(schedule, run) for run in range(100)]
    share = np.mean([np.isnan(each["p50"]) for each in found])
    case = f"{schedule['schedule']} {schedule.get('step', '')}".strip()
    figures[f"median between two peaks, {case}: not given, share of 100 runs"] = float(share)
    given = np.array([each["p50"] for each in found if not np.isnan(each["p50"])])
    true = sum(stats.lognorm(0.3, scale=peak).cdf(given) / 2 for peak in (10, 90))
    assert share >= 0.85
    assert np.abs(true - 0.5).max(initial=0) <= 0.02
    assert all(each["p50_low"] < 26 or each["p50_high"] > 34 for each in found)


@pytest.mark.parametrize("seed", range(6))
def test_too_few_for_a_quantile_have_an_interval_but_none(seed):
    times = 40 * np.exp(0.8 * stats.norm.ppf(np.arange(0.5, 16) / 16))
    found = analysis.latency_quantiles(minimal(*looks(np.random.default_rng(seed), times))).iloc[0]
    for name, truth in (("p50", 40), ("p90", 40 * np.exp(0.8 * stats.norm.ppf(0.9)))):
        assert np.isnan(found[name])
        assert found[f"{name}_low"] < truth < found[f"{name}_high"]
        assert found[f"{name}_high"] > 2 * found[f"{name}_low"]
        assert found[f"{name}_why"].split()[0] in ("somewhere", "no")


def test_little_or_nothing():
    members = world(400)
    for summary in (analysis.aggregation_latency, analysis.latency_quantiles, analysis.slow_institutions):
        full, empty = summary(members), summary(members.iloc[:0])
        assert list(empty.columns) == list(full.columns)
        assert empty.empty
        assert no_objects(full)
        assert no_objects(empty)
        assert (full.dtypes == empty.dtypes).all()
        for few in (
            members.iloc[:1],
            members.iloc[:12],
            members.assign(outcome=pd.Categorical([None] * 400)),
        ):
            summary(few)
    one = analysis.latency_quantiles(members[members["outcome"] == "finished"].iloc[:1]).iloc[0]
    assert np.isnan(one["p50"])
    assert one["p50_why"]


def test_a_slow_bank_is_found_alone():
    members = world(6_000, slow=5, median=20.0, banks=60)
    ranked = analysis.slow_institutions(members)
    assert ranked.loc[ranked["is_slower"], "institution"].tolist() == ["Bank 005"]
    first = ranked.iloc[0]
    assert first["ratio_low"] < 3.0 < first["ratio_high"]
    assert first["p50"] == pytest.approx(60, rel=0.15)


def test_one_institution_is_compared_with_nothing():
    members = world(500, banks=1)
    ranked = analysis.slow_institutions(members)
    assert not ranked["is_slower"].any()
    assert ranked["p_value"].isna().all()


@pytest.mark.slow
def test_slow_banks_over_200_worlds(figures):
    calm, found, alone = 0, 0, 0
    for seed in range(200):
        calm += analysis.slow_institutions(world(5_000, seed=seed, banks=60, median=20.0))["is_slower"].sum()
        ranked = analysis.slow_institutions(world(5_000, seed=1_000 + seed, banks=60, median=20.0, slow=5))
        flagged = ranked.loc[ranked["is_slower"], "institution"].tolist()
        found, alone = found + ("Bank 005" in flagged), alone + (flagged == ["Bank 005"])
    figures["slow banks: false alarms a calm scan"] = float(calm / 200)
    figures["slow banks: found, share"] = found / 200
    assert calm / 200 <= 0.05
    assert found == 200
    assert alone >= 190
