"""The world alone: what is derived, how it ages, and the numbered facts that need no HTTP."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mxlab.errors import ConfigError
from mxlab.nexus.status import STATUSES
from mxlab.simulator import Parameters, World
from mxlab.simulator.guids import Guids, mix, unmix
from mxlab.simulator.parameters import DAY, HOUR, MINUTE

NOTHING_BUT_SUCCESS = {"failure_share": 0.0, "trouble_shares": {}, "stuck_share": 0.0, "not_pfm_share": 0.0}


def everyone(world, now):
    return [member for user in range(world.parameters.users) for member in world.members(user, now)]


def all_in(status, **figures):
    """A world in which every member starts in one status (but for OAuth banks, which some statuses avoid)."""
    figures = {
        "users": 200,
        "seed": 5,
        "status_mix": {status: 1.0},
        "background_disabled_share": 0.0,
    } | figures
    return World(Parameters(**figures))


def starters(world, now):
    return [member for member in everyone(world, now) if world.aggregate([member], now)]


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    def portrait(seed, users):
        world = World(Parameters(users=users, seed=seed))
        now = world.parameters.epoch + 3 * DAY
        return [
            (world.member_guid(m), m.institution.guid, m.status, m.aggregated_at, m.succeeded_at, m.revision)
            for m in everyone(world, now)
        ]

    few, many = portrait(7, 20), portrait(7, 60)
    assert few == many[: len(few)]  # a user is the same in a world of any size
    assert portrait(8, 20) != few


def test_a_world_of_a_million_users_costs_nothing_until_it_is_asked():
    world = World(Parameters(users=1_000_000, seed=1))
    ids = world.user_ids()
    assert len(ids) == 1_000_000
    assert (ids[0], ids[999_999], ids[-1]) == ("user-0000000", "user-0999999", "user-0999999")
    assert ids.find("user-0999999") == 999_999
    assert [ids.find(text) for text in ("user-1000000", "user-1", "user-x", "0000001", "user-²")] == [
        None
    ] * 5
    assert ids[2:4] == ["user-0000002", "user-0000003"]
    assert "user-0000004" in ids
    assert not world.truth(world.parameters.epoch)["jobs"]
    world.members(999_999, world.parameters.epoch)
    assert len(world._users) == 1


@given(word=st.integers(0, 2**64 - 1))
def test_guids_are_a_bijection(word):
    assert unmix(mix(word)) == word


@given(user=st.integers(0, 2**32 - 1), slot=st.integers(0, 255), number=st.integers(0, 2**24 - 1))
def test_a_guid_is_read_back_and_any_other_text_is_not(user, slot, number):
    guids, other = Guids(3), Guids(4)
    guid = guids.make("JOB", user, slot, number)
    assert guids.read("JOB", guid) == (user, slot, number)
    assert other.read("JOB", guid) is None
    assert guids.read("MBR", "MBR" + guid[3:]) is None
    assert guids.read("JOB", guid.upper()) is None
    assert guids.read("JOB", guid[:-1] + ("0" if guid[-1] != "0" else "1")) is None


@settings(max_examples=15, deadline=None)
@given(looks=st.lists(st.floats(0, 20 * DAY), max_size=20))
def test_observing_changes_nothing(looks):
    parameters = Parameters(users=15, seed=11, scenarios=("password_reset", "migration", "outage"))
    watched, alone = World(parameters), World(parameters)
    end = parameters.epoch + 20 * DAY
    for after in sorted(looks):
        everyone(watched, parameters.epoch + after)
    everyone(watched, end)
    assert watched.truth(end) == {**alone.truth(end), "jobs": watched.truth(end)["jobs"]}
    everyone(alone, end)
    assert watched.truth(end) == alone.truth(end)


def test_a_world_never_grows_younger():
    world = World(Parameters(users=20, seed=2))
    epoch = world.parameters.epoch
    later = [(m.status, m.aggregated_at) for m in everyone(world, epoch + 5 * DAY)]
    assert [(m.status, m.aggregated_at) for m in everyone(world, epoch)] == later


def test_the_starting_population_is_mostly_connected_has_every_status_and_few_inside_the_throttle():
    world = World(Parameters(users=6_000, seed=7))
    epoch = world.parameters.epoch
    members = everyone(world, epoch)
    counts = Counter(member.status for member in members)
    assert set(counts) == {*STATUSES, None}
    assert 0.72 < counts["CONNECTED"] / len(members) < 0.85
    fresh = sum(m.succeeded_at is not None and epoch - m.succeeded_at < 3 * HOUR for m in members) / len(
        members
    )
    assert 0.03 < fresh < 0.2
    assert all(m.aggregated_at is None or m.aggregated_at <= epoch for m in members)
    assert all(m.succeeded_at is None or m.succeeded_at <= epoch for m in members)


def test_a_calm_fleet_stays_about_as_it_is_for_a_month():
    world = World(Parameters(users=1_500, seed=7))
    epoch = world.parameters.epoch
    before, after = world.census(epoch + 3 * DAY), world.census(epoch + 30 * DAY)
    total = after.total()
    assert abs(before["CONNECTED"] - after["CONNECTED"]) / total < 0.02
    assert all(abs(before[status] - after[status]) / total < 0.025 for status in STATUSES)


def test_banks_have_zipf_sizes_and_members_fall_by_share():
    world = World(Parameters(users=4_000, seed=9))
    counts = Counter(member.institution.guid for member in everyone(world, world.parameters.epoch))
    total = counts.total()
    expected = np.array([one.share for one in world.institutions]) * total
    observed = np.array([counts[one.guid] for one in world.institutions])
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4
    banks = Counter()
    for one in world.institutions[:-1]:
        banks[one.bank] += one.share
    ranked = [share for _, share in banks.most_common(10)]
    assert ranked[0] / ranked[1] == pytest.approx(2, rel=1e-6)
    assert ranked[0] / ranked[9] == pytest.approx(10, rel=1e-6)
    assert {one.oauth for one in world.institutions if one.bank == banks.most_common(1)[0][0]} == {
        True,
        False,
    }
    assert (
        len({one.code for one in world.institutions}) == len({one.guid for one in world.institutions}) == 120
    )
    assert sum(one.share for one in world.institutions) == pytest.approx(1)


@pytest.mark.parametrize("institutions", [2, 5, 61, 600])
def test_any_number_of_institutions(institutions):
    world = World(Parameters(institutions=institutions, scenarios=("slow_bank", "outage", "onboarding_wave")))
    assert len({one.name for one in world.institutions}) == len(world.institutions) == institutions
    assert world.institutions[-1].code == "mxbank"


def test_fact_07_a_kick_off_shows_new_jobs_with_the_old_success():
    world = all_in("CONNECTED", **NOTHING_BUT_SUCCESS)
    now = world.parameters.epoch
    before = {m.key: (m.succeeded_at, m.job) for m in everyone(world, now)}
    begun = starters(world, now)
    assert len(begun) > 300
    for member in begun:
        assert member.running
        assert member.aggregated_at == now
        assert member.succeeded_at == before[member.key][0]
        assert member.job is not before[member.key][1]
        assert member.status == "CONNECTED"


def test_fact_08_a_throttled_member_comes_back_unchanged():
    world = all_in("CONNECTED", **NOTHING_BUT_SUCCESS)
    now, throttle = world.parameters.epoch, world.parameters.throttle_seconds
    for member in everyone(world, now):
        state = (member.aggregated_at, member.job, member.revision, member.running)
        inside = now < member.succeeded_at + throttle and member.institution.throttled
        begun = world.aggregate([member], now)
        assert bool(begun) == (not inside and not state[3])
        if not begun:
            assert (member.aggregated_at, member.job, member.revision, member.running) == state
    done = now + DAY / 2
    member = next(m for m in everyone(world, done) if m.succeeded_at > now and m.institution.throttled)
    edge = member.succeeded_at + throttle
    assert not world.aggregate([member], edge - 0.001)
    assert world.aggregate([member], edge)


def test_fact_08_mx_bank_is_exempt_from_the_throttle():
    world = all_in("CONNECTED", users=4_000, institutions=3, **NOTHING_BUT_SUCCESS)
    now = world.parameters.epoch
    ours = [m for m in everyone(world, now) if m.institution.code == "mxbank" and not m.running]
    assert len(world.aggregate(ours, now)) == len(ours) > 0
    later = max(member.due for member in ours)
    everyone(world, later)
    assert len(world.aggregate(ours, later)) == len(ours)


def test_fact_08_a_running_job_is_not_duplicated():
    world = all_in("CONNECTED", **NOTHING_BUT_SUCCESS)
    now = world.parameters.epoch
    begun = starters(world, now)
    assert not world.aggregate(begun, now)
    assert not world.aggregate(begun, now + 0.5)


@pytest.mark.parametrize(
    "status", [None, "PREVENTED", "IMPORTED", "IMPAIRED", "CLOSED", "DISCONTINUED", "DISABLED", "PENDING"]
)
def test_fact_09_members_that_never_start_appear_and_start_nothing(status):
    world = all_in(status)
    now = world.parameters.epoch
    shown = [member for member in everyone(world, now) if member.status == status]
    assert shown
    assert not world.aggregate(shown, now)
    assert all(member in world.aggregate_all(member.user, now) for member in shown[:5])


def test_fact_11_a_second_kick_off_is_absorbed_by_the_first():
    world = World(Parameters(users=300, seed=4))
    now = world.parameters.epoch
    for user in range(300):
        first = [(m.job, m.aggregated_at) for m in world.aggregate_all(user, now)]
        assert [(m.job, m.aggregated_at) for m in world.aggregate_all(user, now + 0.2)] == first


def test_fact_12_aggregated_at_is_the_start_and_successfully_aggregated_at_the_end_of_the_last_success():
    world = all_in("CONNECTED", **NOTHING_BUT_SUCCESS)
    now = world.parameters.epoch
    for member in starters(world, now):
        end = member.job.ends_at
        world.members(member.user, end)
        assert (member.aggregated_at, member.succeeded_at, member.running) == (now, end, False)
        assert end - now == pytest.approx(member.job.duration)


def test_fact_12_a_premium_job_ignores_the_throttle_and_moves_only_aggregated_at():
    world = all_in("CONNECTED", **NOTHING_BUT_SUCCESS)
    now = world.parameters.epoch
    member = next(m for m in everyone(world, now) if not m.running and now - m.succeeded_at < HOUR)
    success = member.succeeded_at
    assert not world.aggregate([member], now)
    job = world.verify(member, now)
    assert member.job is job
    assert member.aggregated_at == now
    world.members(member.user, job.ends_at)
    assert not member.running
    assert member.succeeded_at == success


def test_fact_12_both_times_are_null_when_new_and_come_in_any_order_later():
    world = World(Parameters(users=3_000, seed=7))
    members = everyone(world, world.parameters.epoch)
    assert all(m.aggregated_at is None and m.succeeded_at is None for m in members if m.status == "CREATED")
    both = [m for m in members if m.aggregated_at is not None and m.succeeded_at is not None]
    later = sum(m.aggregated_at > m.succeeded_at for m in both if m.status == "CONNECTED")
    assert 0 < later < 0.1 * len(both)


def test_fact_13_connected_shows_while_the_job_still_runs_and_the_flag_drops_at_the_end():
    world = all_in("UPDATED", **NOTHING_BUT_SUCCESS)
    now = world.parameters.epoch
    member = starters(world, now)[0]
    assert (member.status, member.running) == ("UPDATED", True)
    world.members(member.user, member.due)
    assert (member.status, member.running) == ("CONNECTED", True)
    world.members(member.user, member.due)
    assert (member.status, member.running) == ("CONNECTED", False)


def test_fact_14_a_challenge_that_nobody_answers_expires():
    world = all_in("CHALLENGED", answer_share=0.0)
    members = [m for m in everyone(world, world.parameters.epoch) if m.status == "CHALLENGED"]
    end = world.parameters.epoch + world.parameters.challenge_seconds
    everyone(world, end - 1)
    assert {m.status for m in members} == {"CHALLENGED"}
    everyone(world, end)
    assert {m.status for m in members} == {"EXPIRED"}


def test_fact_14_an_answered_challenge_is_resumed_and_then_settles():
    world = all_in("CHALLENGED", answer_share=0.0, failure_share=0.0, stuck_share=0.0)
    now = world.parameters.epoch
    members = [m for m in everyone(world, now) if m.status == "CHALLENGED"]
    assert all(world.answer(member, now) for member in members)
    assert {(m.status, m.running) for m in members} == {("RESUMED", True)}
    assert not world.answer(members[0], now)
    ends = {m.job.outcome for m in members}
    everyone(world, now + HOUR)
    assert {"CONNECTED", "CHALLENGED", "REJECTED"} == ends == {m.status for m in members}


def test_fact_14_three_refused_logins_prevent_the_member():
    world = all_in(
        "DENIED", persistence={"DENIED": 1.0}, failure_share=0.0, stuck_share=0.0, late_pickup_share=0.0
    )
    now = world.parameters.epoch
    members = [m for m in everyone(world, now) if m.due > now + 3 * MINUTE * 10]
    for again in range(2):
        now += 10 * MINUTE
        everyone(world, now)
        begun = world.aggregate([m for m in members if m.status == "DENIED"], now)
        assert begun, again
    everyone(world, now + 10 * MINUTE)
    assert {m.status for m in members if m.denials == 3} == {"PREVENTED"}
    assert not world.aggregate([m for m in members if m.status == "PREVENTED"], now + 11 * MINUTE)


def test_fact_14_three_failures_in_a_short_time_degrade_and_two_weeks_disconnect():
    world = all_in(
        "CONNECTED", failure_share=0.5, failure_spread=0.0, stuck_share=0.0, trouble_shares={},
        persistence={"FAILED": 1.0, "DEGRADED": 1.0}, repair_seconds={}, late_pickup_share=0.0,
    )  # fmt: skip
    now = world.parameters.epoch + HOUR
    members = [m for m in starters(world, now) if m.failures == 0]
    seen = []
    for _ in range(3):
        now += 10 * MINUTE
        everyone(world, now)
        failed = [m for m in members if m.job.outcome in {"FAILED", "DEGRADED"}]
        seen.append({m.status for m in failed})
        members = failed
        world.aggregate(failed, now)
    assert seen == [{"FAILED"}, {"FAILED"}, {"DEGRADED"}]
    quiet = [m for m in members if not m.running]
    everyone(world, now + HOUR)
    quiet = [m for m in members if m.status == "DEGRADED"]
    assert quiet
    everyone(world, max(m.succeeded_at for m in quiet) + 14 * DAY + 1)
    assert {m.status for m in quiet} == {"DISCONNECTED"}


def test_fact_14_reconnected_is_not_run_in_the_background():
    world = all_in("RECONNECTED", repair_seconds={})
    end = world.parameters.epoch + 10 * DAY
    assert {(m.status, len(m.jobs)) for m in everyone(world, end)} == {("RECONNECTED", 1)}


def test_fact_14_an_unfinished_oauth_member_is_deleted_after_an_hour():
    world = all_in("PENDING")
    epoch = world.parameters.epoch
    pending = [m for m in everyone(world, epoch) if m.status == "PENDING"]
    assert pending
    assert all(member.institution.oauth for member in pending)
    guid = world.member_guid(pending[0])
    assert world.member(guid, epoch) is pending[0]
    left = [m for m in everyone(world, epoch + HOUR) if m.status == "PENDING"]
    assert not left
    assert world.member(guid, epoch + HOUR) is None


def test_fact_15_an_error_status_can_show_before_the_job_is_picked_up():
    world = all_in("EXPIRED", persistence={}, failure_share=0.0, stuck_share=0.0)
    now = world.parameters.epoch
    members = [m for m in everyone(world, now) if m.status == "EXPIRED"]
    jobs = {m.key: m.job for m in members}
    members = [job.member for job in world.aggregate(members, now)]
    late = [m for m in members if not m.running]
    assert 0.15 < len(late) / len(members) < 0.45
    for member in late:
        assert member.status == "EXPIRED"
        assert member.job is not jobs[member.key]
        assert member.aggregated_at < now
        assert not world.aggregate([member], now + 0.1)
    now += world.parameters.late_pickup_seconds
    everyone(world, now)
    assert all(member.job.started_at is not None for member in late)
    assert all(member.aggregated_at > world.parameters.epoch for member in late)


def test_fact_16_background_runs_about_daily_only_for_three_statuses_and_never_within_20_hours():
    world = World(Parameters(users=800, seed=6))
    epoch = world.parameters.epoch
    everyone(world, epoch + 6 * DAY)
    gaps = []
    for members in world._users.values():
        for member in members:
            for job, following in zip(member.jobs, member.jobs[1:], strict=False):
                if following.background:
                    assert job.outcome in {"CONNECTED", "UPDATED", "CREATED", None}
                    assert not member.background_disabled
                    if job.started_at is not None and following.started_at > epoch:
                        gaps.append(following.started_at - job.started_at)
    assert min(gaps) >= 20 * HOUR
    assert np.median(gaps) == pytest.approx(24 * HOUR, rel=0.05)
    disabled = [m for m in everyone(world, epoch + 6 * DAY) if m.background_disabled]
    assert disabled
    assert not any(job.background for member in disabled for job in member.jobs)


def test_fact_17_each_change_raises_the_revision_and_a_job_guid_comes_before_any_time():
    world = all_in("CREATED", **NOTHING_BUT_SUCCESS)
    now = world.parameters.epoch
    member = world.members(1, now)[0]
    assert (member.aggregated_at, member.succeeded_at, member.revision) == (None, None, 0)
    assert world.job_guid(member.job).startswith("JOB-")
    revisions = [member.revision]
    world.aggregate([member], now)
    while member.running:
        revisions.append(member.revision)
        world.members(member.user, member.due)
    assert revisions == sorted(set(revisions))
    assert member.revision > revisions[-1]


def test_fact_23_durations_are_log_normal_about_the_banks_median():
    world = all_in("CONNECTED", users=3_000, duration_sigma=0.8, **NOTHING_BUT_SUCCESS)
    now = world.parameters.epoch
    jobs = [member.job for member in starters(world, now)]
    scaled = [math.log(job.duration / job.member.institution.median_seconds) / 0.8 for job in jobs]
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    medians = [one.median_seconds for one in world.institutions]
    assert np.median(medians) == pytest.approx(15, rel=0.1)


def test_a_few_jobs_do_not_end_until_mx_gives_up():
    world = all_in("CONNECTED", stuck_share=1.0, failure_share=0.0, trouble_shares={})
    now = world.parameters.epoch + 13 * HOUR  # those stuck at the start are over
    begun = starters(world, now)
    everyone(world, now + 11 * HOUR)
    assert all(member.running for member in begun)
    everyone(world, now + 12 * HOUR)
    assert {member.status for member in begun if not member.running} <= {"FAILED", "DEGRADED"}


def test_weeks_pass_in_a_second_and_the_truth_tells_each_job():
    world = World(Parameters(users=300, seed=12))
    epoch = world.parameters.epoch
    for day in range(0, 29, 7):
        everyone(world, epoch + day * DAY)
    jobs = world.truth(epoch + 28 * DAY)["jobs"]
    assert len(jobs) > 300 * 28
    for job in jobs:
        if job["finished_at"] is not None and job["started_at"] >= epoch:
            assert job["finished_at"] - job["started_at"] == pytest.approx(job["duration_seconds"], abs=1e-3)
        else:
            assert job["outcome"] is None or job["started_at"] < epoch
    assert len({job["job_guid"] for job in jobs}) == len(jobs)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"scenarios": ("slow_bnak",)}, ["slow_bnak", "did you mean 'slow_bank'", "outage"]),
        ({"failure_share": -0.1}, ["failure_share", "-0.1", "not negative"]),
        ({"failure_share": 1.1}, ["failure_share", "at most 1"]),
        ({"persistence": {"DENIED": 2.0}}, ["persistence", "at most 1"]),
        ({"users": -1}, ["users", "-1"]),
        ({"users": 1.5}, ["users", "type int"]),
        ({"users": True}, ["users", "type int"]),
        ({"duration_median_seconds": "15"}, ["duration_median_seconds", "type float"]),
        ({"duration_sigma": math.nan}, ["duration_sigma", "nan"]),
        ({"status_mix": {"CONECTED": 1.0}}, ["CONECTED", "did you mean 'CONNECTED'"]),
        ({"status_mix": {"CONNECTED": 0.0}}, ["status_mix", "no weight"]),
        ({"forbidden": "never"}, ["forbidden", "'whole_call'"]),
        ({"institutions": 1}, ["institutions", "2 or more"]),
        ({"members_per_user": {300: 1.0}}, ["members_per_user", "250"]),
        ({"scenario_from_seconds": 10.0, "scenario_until_seconds": 5.0}, ["before"]),
    ],
)
def test_bad_figures_are_refused_with_what_to_do(figures, words):
    with pytest.raises(ConfigError) as caught:
        Parameters(**figures)
    for word in words:
        assert word in str(caught.value)
