"""Outage scan, funnel, attributable share, incident."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_analysis_worlds import SEEN, no_objects, with_status, world

from mxlab import analysis
from mxlab.analysis import institutions
from mxlab.nexus.status import who_must_act
from mxlab.simulator.parameters import Parameters
from mxlab.simulator.world import World


def fleet(seed, *, banks=600, n=60_000, outage=None, onset_hours=6.0, alike=0.01):
    """Jobs of two days, 8 % of them failing, more at one bank since some hours ago; banks and days differ."""
    rng = np.random.default_rng([seed, 1])
    members = world(n, seed=seed, banks=banks)
    hours = rng.uniform(0, 48, n)
    bank = members["institution"].cat.codes.to_numpy()
    share = rng.beta(0.08 * 60, 0.92 * 60, banks)
    strength = 1 / alike - 1
    now = rng.beta(share * strength, (1 - share) * strength)
    failing = rng.random(n) < np.where(hours < 24, now[bank], share[bank])
    if outage is not None:
        failing = np.where((bank == outage) & (hours < onset_hours), rng.random(n) < 0.4, failing)
    members["who_must_act"] = pd.Categorical(np.where(failing, "mx", "nobody"))
    members["connection_status"] = pd.Categorical(np.where(failing, "FAILED", "CONNECTED"))
    members["aggregated_at"] = (SEEN - pd.to_timedelta(hours, unit="h")).astype("datetime64[us, UTC]")
    return members


@pytest.mark.parametrize(
    ("k", "n", "a", "b"), [(0, 5, 1.0, 9.0), (3, 10, 2.5, 20.0), (40, 100, 8.0, 92.0), (100, 100, 3.0, 5.0)]
)
def test_tail_of_beta_binomial_equals_scipy(k, n, a, b):
    found = institutions._at_least(*(np.array([value], float) for value in (k, n, a, b)))
    assert found[0] == pytest.approx(stats.betabinom.sf(k - 1, n, a, b), abs=1e-9)


def test_scan_finds_a_planted_outage_and_nothing_else():
    scan = analysis.outage_scan(fleet(1, outage=4))
    assert set(scan.loc[scan["is_alarm"], "institution"]) == {"Bank 004"}
    calm = analysis.outage_scan(fleet(1))
    assert not calm["is_alarm"].any()
    assert calm["p_value"].is_monotonic_increasing


def test_scan_takes_families_and_a_baseline():
    members = fleet(7, outage=4)
    family = dict.fromkeys(("Bank 004", "Bank 005"), "Family")
    scan = analysis.outage_scan(members, families=family)
    pooled = scan[scan["is_family"]].set_index("window_hours")
    assert set(pooled["institution"]) == {"Family"}
    for name in ("n", "failures"):
        parts = scan[scan["institution"].isin(list(family))].groupby("window_hours")[name].sum()
        assert pooled[name].sort_index().tolist() == parts.tolist()
    assert set(scan.loc[scan["is_alarm"], "institution"]) == {"Bank 004", "Family"}
    against = analysis.outage_scan(members, baseline=fleet(7))
    assert set(against.loc[against["is_alarm"], "institution"]) == {"Bank 004"}
    now = members.assign(aggregated_at=SEEN - pd.Timedelta(minutes=1))
    assert not analysis.outage_scan(now).attrs["has_past"]


@pytest.mark.parametrize("alike", [0.0005, 0.01, 0.03])
def test_dispersion_is_read_off_the_fleet(alike):
    scans = [analysis.outage_scan(fleet(seed, alike=alike, outage=2)) for seed in range(4)]
    found = [scan.loc[scan["window_hours"] == 24, "dispersion"].iloc[0] for scan in scans]
    assert np.mean(found) == pytest.approx(alike, rel=0.5, abs=0.006)


def test_jobs_older_than_the_window_are_mostly_failures_and_do_not_hide_an_outage():
    members = fleet(7, outage=4)
    hours = (SEEN - members["aggregated_at"]).dt.total_seconds() / 3600
    old = (hours > 24).to_numpy()
    stuck = np.random.default_rng(0).random(len(members)) < 0.5
    bad = np.where(old, stuck, members["who_must_act"] == "mx")
    scan = analysis.outage_scan(members.assign(who_must_act=pd.Categorical(np.where(bad, "mx", "nobody"))))
    assert set(scan.loc[scan["is_alarm"], "institution"]) == {"Bank 004"}
    assert scan["baseline_share"].median() == pytest.approx(0.08, abs=0.02)


@pytest.mark.slow
def test_scan_over_200_calm_and_200_troubled_worlds(figures):
    calm, rows, found, covered = 0, 0, 0, 0
    for seed in range(200):
        alarms = analysis.outage_scan(fleet(seed)).query("is_alarm")
        calm, rows = calm + alarms["institution"].nunique(), rows + len(alarms)
        members = fleet(10_000 + seed, outage=2, onset_hours=6.0)
        scan = analysis.outage_scan(members)
        found += "Bank 002" in set(scan.loc[scan["is_alarm"], "institution"])
        onset = analysis.incident(members, "Bank 002").iloc[0]
        covered += onset["onset_low"] <= SEEN - pd.Timedelta(hours=6) <= onset["onset_high"]
    figures["outage scan: false alarms a calm scan"] = float(calm / 200)
    figures["outage scan: false alarms a calm scan, windows counted apart"] = float(rows / 200)
    figures["outage scan: planted outages found, share"] = found / 200
    figures["outage onset covered, share"] = float(covered / 200)
    assert calm / 200 <= rows / 200 <= 0.10
    assert found / 200 >= 0.95
    assert covered / 200 >= 0.90


def test_incident_says_since_when_whom_and_what():
    members = fleet(5, outage=3, onset_hours=6.0)
    row = analysis.incident(members, "Bank 003").iloc[0]
    assert row["is_real"]
    assert row["onset_low"] < SEEN - pd.Timedelta(hours=6) < row["onset_high"]
    assert row["share_after"] == pytest.approx(0.4, abs=0.1)
    assert row["statuses"] == f"FAILED {row['members_hit']}"
    pack = analysis.evidence_pack(members, "Bank 003", since=row["onset_low"])
    assert len(pack) >= row["members_hit"]
    assert pack["most_recent_job_guid"].notna().all()
    assert row["share_before"] == pytest.approx(0.08, abs=0.05)
    later = with_status(members, np.ones(len(members), bool), "CONNECTED")
    assert analysis.incident(members, "Bank 003", later=later).iloc[0]["recovered_share"] == 1.0
    assert not analysis.incident(fleet(5), "Bank 003").iloc[0]["is_real"]


def test_old_last_jobs_which_are_mostly_failures_do_not_raise_the_share_before_an_incident():
    members = fleet(5, outage=3, onset_hours=6.0)
    hours = (SEEN - members["aggregated_at"]).dt.total_seconds().to_numpy() / 3_600
    stuck = (hours > 24) & (np.random.default_rng(0).random(len(members)) < 0.5)
    members["who_must_act"] = members["who_must_act"].where(~stuck, "mx")
    row = analysis.incident(members, "Bank 003").iloc[0]
    assert row["is_real"]
    assert row["share_before"] == pytest.approx(0.08, abs=0.05)
    assert row["onset_low"] < SEEN - pd.Timedelta(hours=6) < row["onset_high"]


def test_an_incident_of_a_family_in_a_simulated_world():
    world_ = World(Parameters(users=1_500, seed=4, scenarios=("outage",), institutions=60))
    now = world_.parameters.epoch + 2 * 86_400 + 4 * 3_600
    family = [event["institution"] for event in world_.planted]
    members = pd.DataFrame(
        [
            (
                one.institution.name,
                who_must_act(one.status),
                one.status,
                one.institution.oauth,
                one.aggregated_at,
            )
            for user in range(1_500)
            for one in world_.members(user, now)
        ],
        columns=["institution", "who_must_act", "connection_status", "is_oauth", "aggregated_at"],
    )
    members = members.assign(
        aggregated_at=pd.to_datetime(members["aggregated_at"], unit="s", utc=True).astype(
            "datetime64[us, UTC]"
        ),
        seen_at=pd.Timestamp(now, unit="s", tz="UTC").as_unit("us"),
        guid=pd.array(np.arange(len(members)).astype(str), dtype="string[pyarrow]"),
        session=pd.array(np.arange(len(members)).astype(str), dtype="string[pyarrow]"),
        user_state=pd.Categorical(["answered"] * len(members)),
    )
    row = analysis.incident(members, family).iloc[0]
    begun = pd.Timestamp(world_.planted[0]["begins"], unit="s", tz="UTC")
    assert row["is_real"]
    assert abs(row["onset"] - begun) < pd.Timedelta("20min")
    assert row["share_after"] == pytest.approx(0.9, abs=0.06)
    assert {row["oauth_share"] > 0.7, row["other_share"] > 0.7} == {True}


def test_attributable_share_is_what_the_others_would_make():
    members = fleet(1, outage=0, onset_hours=48.0, banks=20, n=5_000)
    row = analysis.attributable_share(members).iloc[0]
    bad = (members["who_must_act"] == "mx").to_numpy()
    first = (members["institution"] == row["institution"]).to_numpy()
    rest = bad[~first].mean()
    assert row["excess"] == pytest.approx(bad[first].sum() - first.sum() * rest)
    assert row["fleet_share_without"] == pytest.approx(rest)
    assert row["fleet_share"] == pytest.approx(bad.mean())


def test_funnel_limits_hold_a_calm_fleet_and_show_an_outlier():
    calm = analysis.institution_funnel(fleet(1))
    big = calm[calm["n"] >= 50]
    assert ((big["share"] >= big["low_95"]) & (big["share"] <= big["high_95"])).mean() == pytest.approx(
        0.95, abs=0.04
    )
    assert calm["is_outside"].sum() <= 1
    bad = analysis.institution_funnel(fleet(1, outage=0, onset_hours=48.0))
    assert bad.loc[bad["is_outside"], "institution"].iloc[0] == "Bank 000"


@pytest.mark.parametrize(
    "summary", [analysis.outage_scan, analysis.institution_funnel, analysis.attributable_share]
)
def test_little_or_nothing(summary):
    members = fleet(1, n=500, banks=10)
    full, empty = summary(members), summary(members.iloc[:0])
    assert list(full.columns) == list(empty.columns)
    assert (full.dtypes == empty.dtypes).all()
    assert no_objects(full)
    for few in (members.iloc[:1], members[members["institution"] == "Bank 001"]):
        found = summary(few)
        flags = [name for name in found if name.startswith("is_")]
        assert not found[flags].any().any()
    never = members.assign(aggregated_at=pd.Series(pd.NaT, index=members.index, dtype="datetime64[us, UTC]"))
    summary(never)


def test_families_of_a_simulated_market_are_its_banks():
    banks = World(Parameters(users=1, seed=5, institutions=200, hostile_share=0.0)).institutions
    members = pd.DataFrame(
        {
            "institution": pd.Categorical([one.name for one in banks]),
            "user_state": pd.Categorical(["answered"] * len(banks)),
        }
    )
    found = analysis.institution_families(members)
    truth = {one.name: one.bank for one in banks}
    kin = pd.Series(truth).value_counts()
    pairs = {name for name, bank in truth.items() if kin[bank] > 1}
    assert pairs <= set(found["institution"])
    assert (
        found.groupby("family")["institution"].agg(lambda names: len({truth[n] for n in names})).mean() < 1.3
    )
    assert no_objects(found)
    empty = analysis.institution_families(members.iloc[:0])
    assert (empty.dtypes == found.dtypes).all()
