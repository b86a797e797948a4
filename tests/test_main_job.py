"""The main job against the simulated world: what mxlab says is what the world knows."""

import numpy as np
import pandas as pd
import pytest

import mxlab as mx


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of 300 users into a store, with the world's truth and the server's own counts."""
    store = mx.Store(tmp_path_factory.mktemp("main") / "store")
    settings = mx.Settings(seed=3, deadline_seconds=300)
    world = {"seed": 3, "speed": 60, "scenarios": ("slow_bank",), "faults": {"latency_seconds": 0.02}}
    with mx.simulate(300, settings=settings, **world) as simulation:
        snap = mx.aggregate(simulation.tokens, simulation.settings, store=store, run="first")
        return snap, store, simulation.truth(), simulation.arrivals()


def test_every_user_is_accounted_for(ran):
    snap, *_ = ran
    coverage = snap.coverage
    assert coverage.asked == 300
    assert coverage.asked == coverage.answered + coverage.lost + coverage.unknown + coverage.pending
    assert sum(coverage.reasons.values()) == coverage.lost + coverage.unknown == len(snap.failures)
    assert coverage.order == "random"


def test_the_server_received_what_the_requests_frame_says_and_one_start_a_user(ran):
    snap, _, _, arrivals = ran
    ours = snap.requests[snap.requests["left"]].groupby("endpoint", observed=True).size().to_dict()
    theirs = {name: count for name, count in arrivals["by_endpoint"].items() if name in ours}
    assert ours == theirs
    assert max(arrivals["aggregate_by_user"].values()) == 1
    assert 1 < arrivals["most_in_flight"] <= 200


def test_true_durations_lie_inside_the_intervals_and_equal_the_jobs(ran):
    snap, _, truth, _ = ran
    jobs = truth["jobs"].set_index("job_guid")
    seen = snap.members[snap.members["outcome"].isin(["finished", "waiting_on_user", "failed"])]
    assert len(seen) > 400
    mine = jobs.loc[seen["most_recent_job_guid"]]
    true = (mine["finished_at"] - mine["requested_at"]).to_numpy()
    low, high = seen["aggregation_seconds_low"].to_numpy(), seen["aggregation_seconds_high"].to_numpy()
    assert (low <= true).all()
    assert (true <= high).all()
    exact = seen["job_seconds"].to_numpy()
    ran_for = (mine["finished_at"] - mine["started_at"]).to_numpy()
    assert np.nanmax(np.abs(exact - ran_for)) <= 1.0  # MX's times are whole seconds


def test_what_was_not_triggered_has_no_duration(ran):
    snap, *_ = ran
    idle = snap.members[snap.members["outcome"] == "not_triggered"]
    assert len(idle) > 20
    assert idle[["aggregation_seconds_low", "aggregation_seconds_high", "job_seconds"]].isna().all(axis=None)


def test_the_planted_slow_bank_is_found_from_the_store_alone(ran):
    _, store, truth, _ = ran
    ranked = mx.analysis.slow_institutions(store.load("first").members)
    found = ranked.loc[ranked["is_slower"].astype(bool), "institution"].tolist()
    planted = truth["planted"]
    assert found == planted.loc[planted["scenario"] == "slow_bank", "institution"].tolist()


def test_the_store_gives_back_what_memory_had(ran):
    snap, store, *_ = ran
    again = store.load("first")
    assert again.simulated
    assert again.coverage == snap.coverage
    for name in ("members", "changes", "requests", "rejects"):
        frame = getattr(again, name)
        assert "object" not in set(map(str, frame.dtypes))
        assert len(frame) == len(getattr(snap, name))
    counted = store.sql(
        "select connection_status, count(*) n from members where connection_status is not null group by 1"
    )
    by_hand = snap.members["connection_status"].value_counts()
    assert dict(counted.fetchall()) == {word: count for word, count in by_hand.items() if count}


def test_a_finished_run_run_again_starts_nothing(ran):
    _, store, *_ = ran
    before = store.load("first")
    with mx.simulate(300, seed=3, speed=60) as simulation:
        again = mx.aggregate(simulation.tokens, simulation.settings, store=store, run="first")
        assert simulation.arrivals()["total"] == 0
        with pytest.raises(mx.errors.ConfigError, match="verb"):
            mx.observe(simulation.tokens, simulation.settings, store=store, run="first")
    assert again.coverage == before.coverage
    assert len(again.members) == len(before.members)


def test_observe_starts_nothing_by_the_servers_own_count():
    with mx.simulate(40, seed=1, speed=60) as simulation:
        snap = mx.observe(simulation.tokens, simulation.settings)
        arrivals = simulation.arrivals()
    assert snap.coverage.answered == 40
    assert arrivals["by_endpoint"]["aggregate_all"] == 0
    assert arrivals["aggregate_by_user"] == {}
    assert snap.members["outcome"].isna().all()
    assert snap.members["job_seconds"].notna().any()


@pytest.mark.parametrize(
    ("slowly", "quickly"), [pytest.param(1.0, 20.0, marks=pytest.mark.slow), pytest.param(10.0, 40.0)]
)
def test_median_aggregation_time_does_not_hang_on_the_speed(slowly, quickly):
    found = {}
    for speed in (slowly, quickly):
        settings = mx.Settings(seed=5, deadline_seconds=60)
        with mx.simulate(300, seed=5, speed=speed, settings=settings) as simulation:
            members = mx.aggregate(simulation.tokens, simulation.settings).members
        for duration in ("job", "looks"):
            found[speed, duration] = mx.analysis.latency_quantiles(members, duration=duration).to_dict(
                "records"
            )[0]
    for duration in ("job", "looks"):
        slow, fast = found[slowly, duration], found[quickly, duration]
        assert slow["n"] > 500
        assert max(slow["p50_low"], fast["p50_low"]) <= min(slow["p50_high"], fast["p50_high"]), duration
    exact = found[slowly, "job"]
    assert exact["p50_low"] <= found[quickly, "job"]["p50"] <= exact["p50_high"]


def test_skipped_time_goes_by_for_members_and_for_the_run():
    with mx.simulate(60, seed=4, parameters={"epoch": 1_790_000_000.0}) as simulation:
        first = mx.observe(simulation.tokens, simulation.settings).members
        simulation.skip(3 * 86_400)
        later = mx.observe(simulation.tokens, simulation.settings).members
        with pytest.raises(mx.errors.ConfigError, match="seconds is -1: must be a number, and not negative"):
            simulation.skip(-1)
        jobs = simulation.truth()["jobs"]
    passed = (later["seen_at"].min() - first["seen_at"].max()).total_seconds()
    assert 3 * 86_400 <= passed < 3 * 86_400 + 60
    both = first.merge(later, on="guid", suffixes=("", "_later"))
    steady = both[both["eligible"].fillna(False)]
    assert len(steady) > 50
    assert (steady["aggregated_at_later"] > steady["aggregated_at"]).mean() > 0.95, "MX's nightly jobs ran"
    assert jobs["started_at"].max() > 1_790_000_000 + 2 * 86_400


def test_reading_saved_replies_gives_a_snapshot(tmp_path):
    sample = """{"members": [{"guid": "MBR-1", "connection_status": "ZOMBIE", "aggregated_at": "null"}]}"""
    (tmp_path / "a.json").write_text(sample)
    (tmp_path / "b.json").write_text("<html>")
    snap = mx.read_members(tmp_path / "*.json")
    assert snap.members["who_must_act"].tolist() == ["unknown"]
    assert pd.isna(snap.members["aggregated_at"].iloc[0])
    assert snap.coverage.reasons == {"bad_reply_json": 1}
    assert snap.rejects["body"].tolist() == [b"<html>"]
