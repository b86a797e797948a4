"""Freshness, and how aggregations end over time."""

import numpy as np
import pandas as pd
import pytest
from test_analysis_worlds import Coverage, no_objects, world

from mxlab import analysis
from mxlab.analysis import _censored
from mxlab.analysis.outcomes import _ENDS, _ended, _incidence

ENDS = {"finished": "nobody", "waiting_on_user": "user", "failed": "mx", "running": "nobody"}


def ended(outcomes, times):
    """Exactly timed ends of as many users."""
    n = len(times)
    running = np.array(outcomes) == "running"
    return pd.DataFrame(
        {
            "user_state": pd.Categorical(["answered"] * n),
            "outcome": pd.Categorical(outcomes),
            "who_must_act": pd.Categorical([ENDS[outcome] for outcome in outcomes]),
            "session": pd.Categorical(np.arange(n).astype(str)),
            "aggregation_seconds_low": np.where(running, times, 0.0),
            "aggregation_seconds_high": np.where(running, np.nan, times),
            "job_seconds": np.where(running, np.nan, times),
        }
    )


def aalen_johansen(outcomes, times, at):
    """The textbook estimator for exact times, one after the other: J. D. Kalbfleisch, R. L. Prentice (2002), 8.2."""
    alive, found = 1.0, dict.fromkeys(ENDS, 0.0)
    for time in np.unique(times):
        if time > at:
            break
        risk = (times >= time).sum()
        here = {end: ((times == time) & (outcomes == end)).sum() for end in ENDS if end != "running"}
        for end, count in here.items():
            found[end] += alive * count / risk
        alive *= 1 - sum(here.values()) / risk
    return found


@pytest.mark.parametrize("seed", range(3))
def test_steps_equal_aalen_johansen_to_a_millionth(seed):
    rng = np.random.default_rng(seed)
    times = rng.exponential(20, 120).round(1) + 0.1
    outcomes = rng.choice(list(ENDS), 120, p=[0.6, 0.15, 0.1, 0.15])
    used, cause, low, high = _ended(ended(outcomes, times))
    assert used.all()
    seen = sorted(set(cause[cause >= 0].tolist()))
    known = _censored.intervals(low, high)
    steps, _ = _incidence(known, cause, seen, tolerance=1e-12, rounds=100_000)
    for at in known.bounds[1:-1:7]:
        expected = aalen_johansen(outcomes, times, at)
        place = np.searchsorted(known.bounds, at)
        found = {_ENDS[end][0]: steps[row, place] for row, end in enumerate(seen)}
        assert found == {end: pytest.approx(expected[end], abs=1e-6) for end in found}


@pytest.mark.parametrize("seed", range(3))
def test_incidence_equals_aalen_johansen_where_times_are_exact(seed):
    rng = np.random.default_rng(seed)
    times = rng.exponential(20, 120).round(1) + 0.1
    outcomes = rng.choice(list(ENDS), 120, p=[0.6, 0.15, 0.1, 0.15])
    summary = analysis.outcomes_over_time(ended(outcomes, times))
    for at in (5.0, 20.0, 40.0):
        part = summary[summary["seconds"] <= at].groupby("outcome")["step"].last()
        last = summary.loc[summary["seconds"] <= at, "seconds"].max()
        expected = aalen_johansen(outcomes, times, last)
        assert part.to_dict() == {end: pytest.approx(expected[end], abs=2e-4) for end in part.index}


def test_waiting_on_the_user_is_an_end_and_not_lost_from_sight():
    members = world(5_000)
    summary = analysis.outcomes_over_time(members)
    started = members.loc[members["outcome"] != "not_triggered", "outcome"].value_counts(normalize=True)
    final = {(end["outcome"], end["who_must_act"]): end["share"] for end in summary.attrs["ends"]}
    assert final["finished", "nobody"] == pytest.approx(started["finished"], abs=0.002)
    assert final["waiting_on_user", "user"] == pytest.approx(started["waiting_on_user"], abs=0.002)
    assert sum(final.values()) + summary.attrs["still_running"] == pytest.approx(1, abs=1e-6)
    wide = summary.pivot_table(
        index="seconds", columns=["outcome", "who_must_act"], values="share", observed=True
    )
    assert (wide.diff().dropna() > -1e-9).all().all()
    assert wide.sum(axis=1).max() <= 1 + 1e-6


def test_smooth_incidence_follows_the_steps_where_looks_are_dense():
    summary = analysis.outcomes_over_time(world(20_000, schedule="phase", step=2.0))
    assert (summary["share"] - summary["step"]).abs().max() < 0.01


def test_freshness_counts_eligible_members_only():
    members = world(4_000)
    members.loc[:9, "age_seconds"] = np.nan
    curve = analysis.freshness(members, coverage=Coverage())
    eligible = members["eligible"].to_numpy(dtype=bool)
    age = members["age_seconds"].to_numpy()
    assert curve.attrs["n_eligible"] == eligible.sum()
    assert curve.attrs["n_ineligible"] == (~eligible).sum()
    assert curve.attrs["n_never"] == np.isnan(age[eligible]).sum()
    at = curve.iloc[150]
    assert at["share"] == pytest.approx((age[eligible] <= at["seconds"]).mean())
    assert curve.attrs["within"]["share"] == pytest.approx((age[eligible] <= 86_400).mean())


def test_freshness_by_institution_adds_up():
    members = world(4_000)
    shares = analysis.freshness_shares(members, by="institution")
    whole = analysis.freshness_shares(members).iloc[0]
    assert shares["n_eligible"].sum() == whole["n_eligible"]
    assert shares["n_fresh"].sum() == whole["n_fresh"]
    first = members[(members["institution"] == shares["group"].iloc[0]) & members["eligible"]]
    assert shares["median_age_seconds"].iloc[0] == pytest.approx(first["age_seconds"].median())


@pytest.mark.parametrize(
    "summary", [analysis.freshness, analysis.freshness_shares, analysis.outcomes_over_time]
)
def test_little_or_nothing(summary):
    members = world(300)
    full, empty = summary(members), summary(members.iloc[:0])
    assert list(full.columns) == list(empty.columns)
    assert (full.dtypes == empty.dtypes).all()
    assert no_objects(full)
    summary(members.iloc[:1])
    summary(members.assign(age_seconds=np.nan, outcome=pd.Categorical([None] * 300)))
