"""Looks spent by the default schedule against a look every 3 seconds, for the same error of the estimated median."""

import random
from itertools import count

import numpy as np
import pytest
from test_tracking import moment

from mxlab.analysis import _censored, _smooth
from mxlab.exchange import Exchange
from mxlab.fetch.tracking import LookSchedule, Track
from mxlab.nexus.members import Member
from mxlab.nexus.protocol import Reply
from mxlab.settings import Settings

USERS, MEMBERS, SIGMA = 5_000, 3, 0.6
DEFAULT, FIXED = LookSchedule(), LookSchedule(3.0, 3.0, spread=0.0)


def follow(schedule, times, chances):
    """Between which looks each member of each user ends, and how many looks that took.

    `chances` gives the uniform of each gap, for all users at once; the arithmetic is that of `LookSchedule.gap`.
    """
    low, high = np.zeros(times.shape), np.full(times.shape, np.nan)
    now, looks, last = np.zeros(len(times)), np.zeros(len(times), int), times.max(axis=1)
    gap, live = None, np.ones(len(times), bool)
    while live.any():
        chance = next(chances)
        if gap is None:
            first = schedule.first_seconds * (1 + schedule.spread * chance)
            gap = np.minimum(first, schedule.longest_seconds)
        else:
            gap = gap * schedule.growth * (1 - schedule.jitter + 2 * schedule.jitter * chance)
            gap = np.minimum(np.maximum(gap, schedule.first_seconds), schedule.longest_seconds)
        now, looks = now + gap, looks + live
        is_over = times <= now[:, None]
        high = np.where(is_over & np.isnan(high), now[:, None], high)
        low = np.where(is_over, low, now[:, None])
        live = now < last
    return low, high, looks


def spend(schedule, times, rng):
    """The estimated median, and looks a user."""
    chances = (rng.random(len(times)) for _ in count())
    low, high, looks = follow(schedule, times, chances)
    return _smooth.smooth(_censored.intervals(low.ravel(), high.ravel())).quantile(0.5), looks.mean()


class Chances(random.Random):
    """Uniforms that were drawn before."""

    def __init__(self, drawn):
        super().__init__()
        self.drawn = iter(drawn)

    def random(self):
        return next(self.drawn)


def by_track(times, rng):
    """The same as `follow` says, of the state machine that a run drives."""
    settings = Settings(base_url="http://127.0.0.1:1", read_jobs=False)
    track = Track("aggregate", settings, rng, "session", 0.0)
    now, start = 0.0, None
    while track.call is not None:
        now = track.call.due
        if track.call.endpoint.starts_jobs:
            start = now
            track.intent(now)
        members = [
            Member(
                f"MBR-{number}",
                most_recent_job_guid=f"JOB-{start is not None}",
                connection_status="CONNECTED",
                is_being_aggregated=start is not None and now - start < seconds,
                aggregated_at=moment(0.0),
            )
            for number, seconds in enumerate(times)
        ]
        name, attempt = track.call.endpoint.name, track.call.attempt
        track.received(Exchange(name, "session", None, attempt, now, now, True, 0, 0.0, reply=Reply(members)))
    endings = track.ending(None, {}).members
    low = [each.seconds_low for each in endings]
    high = [each.seconds_high for each in endings]
    return low, high, max(each.looks for each in endings) - 1  # look 0 is the reply to the start


@pytest.mark.parametrize("median", [2.0, 10.0, 120.0])
def test_following_is_what_the_state_machine_does(median):
    rng = np.random.default_rng(int(median))
    times = median * np.exp(SIGMA * rng.standard_normal((40, MEMBERS)))
    drawn = rng.random((100, 40))
    low, high, looks = follow(DEFAULT, times, iter(drawn))
    for user in range(40):
        seen = by_track(times[user], Chances(drawn[:, user]))
        assert seen[0] == pytest.approx(low[user], abs=1e-6)
        assert seen[1] == pytest.approx(high[user], abs=1e-6)
        assert seen[2] == looks[user]


@pytest.mark.bench
@pytest.mark.parametrize(("median", "runs"), [(10.0, 2_500), (40.0, 600), (120.0, 400)])
def test_looks_for_the_same_error_of_the_median(median, runs, figures):
    """Looks times the variance of the estimate: what as small an error costs with either schedule."""
    errors, looks = {"default": [], "fixed": []}, {"default": [], "fixed": []}
    for run in range(runs):
        rng = np.random.default_rng([run, 4])
        times = median * np.exp(SIGMA * rng.standard_normal((USERS, MEMBERS)))
        for name, schedule in (("default", DEFAULT), ("fixed", FIXED)):
            found, spent = spend(schedule, times, rng)
            errors[name].append(np.log(found / median))
            looks[name].append(spent)
    spent = {name: float(np.mean(each)) for name, each in looks.items()}
    error = {name: float(np.sqrt(np.mean(np.square(each)))) for name, each in errors.items()}
    ratio = spent["default"] / spent["fixed"] * (error["default"] / error["fixed"]) ** 2
    case = f"looks, median {median:g} s"
    figures[f"{case}: a user, default and fixed 3 s"] = [round(spent[name], 3) for name in spent]
    figures[f"{case}: error of the median, default and fixed 3 s"] = [round(error[name], 5) for name in error]
    figures[f"{case}: ratio at the same error"] = round(ratio, 3)
    assert ratio <= 0.5
