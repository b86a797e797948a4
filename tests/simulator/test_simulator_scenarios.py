"""Each scenario does what its truth says, and nothing else."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from mxlab.simulator import SCENARIOS, Parameters, World
from mxlab.simulator.parameters import DAY, HOUR

EPOCH = Parameters().epoch


def aged(*scenarios, users=1_200, days=6, **figures):
    world = World(Parameters(users=users, seed=21, scenarios=scenarios, **figures))
    world.advance(EPOCH + days * DAY)
    return world


def failing(jobs):
    ended = [job for job in jobs if job.finished_at is not None and job.started_at >= EPOCH]
    return sum(job.outcome in {"FAILED", "DEGRADED", "DISCONNECTED"} for job in ended) / len(ended), len(
        ended
    )


def jobs_at(world, guids, begins=EPOCH, ends=EPOCH + 100 * DAY):
    return [
        job
        for job in world.jobs(0.0)
        if job.member.institution.guid in guids
        and job.started_at is not None
        and begins <= job.started_at < ends
    ]


def test_calm_plants_nothing():
    world = aged("calm", days=1, users=50)
    assert world.planted == []
    assert world.truth(EPOCH)["defects"] == []


@pytest.mark.parametrize("seed", range(12))
def test_slow_bank_is_exactly_one_of_the_larger_institutions_and_three_to_four_times_slower(seed):
    world = World(Parameters(users=1_500, seed=seed, scenarios=("slow_bank",)))
    (event,) = world.planted
    (bank,) = [one for one in world.institutions if one.guid == event["institution_guid"]]
    assert bank.share >= 0.04
    durations = defaultdict(list)
    for user in range(1_500):
        for job in world.aggregate(world.members(user, EPOCH), EPOCH):
            if job.duration < 12 * HOUR:
                durations[job.member.institution is bank].append(job.duration)
    assert len(durations[True]) > 100
    assert 2.8 < np.median(durations[True]) / np.median(durations[False]) < 4.6
    others = [one.median_seconds for one in world.institutions if one is not bank]
    assert max(others) < 0.6 * bank.median_seconds


@pytest.mark.parametrize("scenario", ["outage", "outage_credentials", "outage_oauth"])
def test_an_outage_fails_its_institutions_between_its_times_and_no_others(scenario):
    world = aged(scenario, scenario_from_seconds=2 * DAY, scenario_until_seconds=3 * DAY)
    hit = {event["institution_guid"] for event in world.planted}
    begins, ends = world.planted[0]["begins"], world.planted[0]["ends"]
    assert (begins, ends) == (EPOCH + 2 * DAY, EPOCH + 3 * DAY)
    (bank,) = {event["bank"] for event in world.planted}
    family = [one for one in world.institutions if one.bank == bank]
    wanted = {"outage": {True, False}, "outage_oauth": {True}, "outage_credentials": {False}}[scenario]
    assert {one.guid for one in family if one.oauth in wanted} == hit
    share, count = failing(jobs_at(world, hit, begins, ends))
    assert count > 30
    assert share == pytest.approx(0.9, abs=0.1)
    assert failing(jobs_at(world, hit, EPOCH, begins))[0] < 0.15
    spared = {one.guid for one in world.institutions} - hit
    assert failing(jobs_at(world, spared, begins, ends))[0] < 0.06


def test_a_password_reset_denies_credential_members_until_their_user_comes_back():
    world = aged("password_reset", days=1, scenario_from_seconds=1 * DAY, scenario_until_seconds=1 * DAY)
    (event,) = world.planted
    assert not event["is_oauth"]
    members = [
        m
        for user in range(1_200)
        for m in world.members(user, EPOCH + DAY)
        if m.institution.guid == event["institution_guid"]
    ]
    sound = [m for m in members if m.status == "CONNECTED" and not m.background_disabled and not m.running]
    world.advance(EPOCH + 2.2 * DAY)
    hit = [m for m in sound if any(j.outcome == "DENIED" and j.started_at >= event["begins"] for j in m.jobs)]
    assert len(hit) > 0.9 * len(sound) > 10
    world.advance(EPOCH + 16 * DAY)
    recovered = [m for m in hit if m.status == "CONNECTED"]
    assert len(recovered) > 0.6 * len(hit)
    assert all(m.credentials_at > event["begins"] for m in recovered)
    others = Counter(m.status for user in range(1_200) for m in world.members(user, 0.0) if m not in members)
    assert others["DENIED"] / others.total() < 0.06


def test_a_migration_reconnects_a_whole_bank_and_background_runs_leave_it_alone():
    world = aged("migration", days=2, scenario_from_seconds=2 * DAY, scenario_until_seconds=2 * DAY)
    (event,) = world.planted
    members = [
        m
        for user in range(1_200)
        for m in world.members(user, 0.0)
        if m.institution.guid == event["institution_guid"]
    ]
    moved = [m for m in members if m.status == "RECONNECTED"]
    assert len(moved) > 0.7 * len(members) > 10
    jobs = {m.key: len(m.jobs) for m in moved}
    world.advance(EPOCH + 5 * DAY)
    assert not any(
        job.background for m in moved if m.status == "RECONNECTED" for job in m.jobs[jobs[m.key] :]
    )
    world.advance(EPOCH + 30 * DAY)
    assert sum(m.status == "RECONNECTED" for m in members) < 0.2 * len(members)


def test_an_onboarding_wave_changes_the_mix_and_no_rate():
    world = World(
        Parameters(users=3_000, seed=21, scenarios=("onboarding_wave",), repair_seconds={"FAILED": HOUR})
    )
    (event,) = world.planted
    poor = event["institution_guid"]
    counts = []
    for day in (1.9, 2.3, 8.0):
        census = Counter(
            m.institution.guid == poor
            for user in range(3_000)
            for m in world.members(user, EPOCH + day * DAY)
        )
        counts.append(census[True] / census.total())
    assert counts[0] < 0.02
    assert counts[1] == pytest.approx(counts[0] + 0.15 / 3.2, rel=0.25)
    assert counts[2] == pytest.approx(counts[1], rel=0.05)
    healthy = ("CONNECTED", "CREATED")

    def rate(before):
        ended = [
            job.outcome
            for m in (m for members in world._users.values() for m in members if m.institution.guid == poor)
            for earlier, job in zip([None, *m.jobs], m.jobs, strict=False)
            if job.finished_at is not None and job.started_at >= EPOCH and (job.started_at < event["begins"]) == before
            and (earlier is None or earlier.outcome in healthy)
        ]  # fmt: skip
        return sum(outcome in {"FAILED", "DEGRADED"} for outcome in ended) / len(ended)

    assert rate(before=True) == pytest.approx(0.35, abs=0.1)
    assert rate(before=False) == pytest.approx(0.35, abs=0.04)


def test_a_status_that_mx_has_not_invented_is_carried_as_the_truth_says():
    world = aged("new_status", days=0, users=3_000, new_status_share=0.05)
    statuses = Counter(m.status for user in range(3_000) for m in world.members(user, EPOCH))
    assert statuses["AWAITING_CONSENT"] / statuses.total() == pytest.approx(0.05, abs=0.01)
    assert world.planted == [{"scenario": "new_status", "status": "AWAITING_CONSENT", "member_share": 0.05}]
    begun = [
        job
        for user in range(3_000)
        for job in world.aggregate(
            [m for m in world.members(user, EPOCH) if m.status == "AWAITING_CONSENT"], EPOCH
        )
    ]
    world.advance(EPOCH + DAY / 2)
    assert Counter(job.outcome for job in begun).most_common(1)[0][0] == "AWAITING_CONSENT"


def test_all_scenarios_can_be_composed():
    world = aged(*SCENARIOS, users=200, days=8)
    assert {event["scenario"] for event in world.planted} == set(SCENARIOS) - {"calm"}
    assert world.truth(EPOCH + 8 * DAY)["defects"]
