"""The checks that every run against the fault server must pass, whatever was injected."""

import asyncio
import logging
import pickle
import time
from collections import Counter
from dataclasses import asdict

import pytest

from faults.server import CANARY
from mxlab import aio


class Run:
    """A run and the server that it ran against; made by the fixture `run`, which has checked it."""

    def __init__(self, server, snap, seconds):
        self.server, self.snap, self.seconds = server, snap, seconds

    @property
    def coverage(self):
        return self.snap.coverage

    @property
    def reasons(self):
        return dict(self.snap.coverage.reasons)

    @property
    def calls_per_user(self):
        return len(self.server.arrivals) / self.coverage.asked

    @property
    def acts(self):
        return Counter(each.user for each in self.server.arrivals if each.acted)


def accounting_adds_up(run, *, all_arrive):
    """`all_arrive`: every request that left was read by the server, which is so unless the server died in between."""
    coverage = run.coverage
    assert coverage.asked == coverage.answered + coverage.lost + coverage.unknown + coverage.pending
    assert sum(coverage.reasons.values()) == coverage.lost + coverage.unknown == len(run.snap.failures)
    requests = run.snap.requests
    left = requests[requests["left"]]
    sent = Counter(left["endpoint"])
    assert sent == run.server.count() if all_arrive else sent >= run.server.count()
    assert not run.snap.members.duplicated(["session", "guid"]).any()


def starts_are_within_bounds(run, verb):
    starts = [each for each in run.server.arrivals if each.endpoint == "aggregate_all"]
    if verb == "observe":
        assert not starts
    arrived = Counter(each.user for each in starts if not each.refused)
    assert max(arrived.values(), default=0) <= 2, arrived.most_common(3)
    assert max(run.acts.values(), default=0) <= 1, run.acts.most_common(3)


def intervals_hold_the_truth(run):
    """Each settled member's interval contains how long the bank's job took."""
    jobs = run.server.bank.jobs()
    members = run.snap.members
    for row in members[members["aggregation_seconds_high"].notna()].itertuples():
        seconds = jobs[row.guid].seconds
        assert row.aggregation_seconds_low <= seconds <= row.aggregation_seconds_high, (row, seconds)
    for row in members[members["job_seconds"].notna()].itertuples():
        if row.guid in jobs and row.most_recent_job_guid == jobs[row.guid].guid:
            assert row.job_seconds == pytest.approx(jobs[row.guid].seconds, abs=1e-3)


def canary_is_nowhere(run, log):
    snap = run.snap
    said = [repr(snap), snap._repr_html_(), repr(snap.manifest), repr(asdict(snap.coverage)), log]
    said += [
        snap.failures.to_csv(),
        *(getattr(snap, name).to_csv() for name in ("members", "changes", "requests")),
    ]
    assert not [text for text in said if CANARY in text]
    assert CANARY.encode() not in b"".join(snap.rejects["body"]) + pickle.dumps(snap.requests)


async def nothing_is_left(server, seconds=5.0):
    """No task on this loop but the test's own, and no socket still open."""
    assert asyncio.all_tasks() == {asyncio.current_task()}
    until = time.monotonic() + seconds
    while server.open and time.monotonic() < until:  # noqa: ASYNC110 - the server is on another thread
        await asyncio.sleep(0.01)
    assert not server.open


@pytest.fixture
def run(caplog):
    """``await run(server, verb, tokens, **settings)``: a run in memory, checked against the server's own count."""
    caplog.set_level(logging.DEBUG)

    async def ran(server, verb="aggregate", tokens=None, *, all_arrive=True, **known):
        settings = server.settings(**known)
        began = time.perf_counter()
        snap = await getattr(aio, verb)(server.tokens() if tokens is None else tokens, settings)
        done = Run(server, snap, time.perf_counter() - began)
        await nothing_is_left(server)
        accounting_adds_up(done, all_arrive=all_arrive)
        starts_are_within_bounds(done, verb)
        if verb == "aggregate":
            intervals_hold_the_truth(done)
        canary_is_nowhere(done, caplog.text)
        return done

    return ran
