"""The checks that every run against the fault server must pass, whatever was injected."""

import asyncio
import logging
import pickle
import time
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from faults.canary import CANARY, everything_of
from mxlab import aio
from mxlab.fetch.client import NexusClient


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

    @property
    def silenced(self):
        """Users whose first start was read and had no answer."""
        starts = [each for each in self.server.arrivals if each.endpoint == "aggregate_all"]
        return {each.user for each in starts if each.nth == 1 and each.status is None}


def all_are_collected(run):
    """Every user is answered, every member is there and finished, and one start acted for each user."""
    bank = run.server.bank
    assert run.coverage.answered == len(bank.users)
    assert sorted(run.snap.members["guid"]) == sorted(
        each.guid for members in bank.users.values() for each in members
    )
    assert set(run.snap.members["outcome"]) == {"finished"}
    assert run.acts == Counter(dict.fromkeys(bank.users, 1))


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


def canary_is_nowhere(snap, said, store):
    """Neither in what was said nor in what is kept; a store's tables are compressed, so they are read as frames too."""
    frames = [getattr(snap, name) for name in ("members", "changes", "requests", "failures")]
    said = [*said, repr(snap), snap._repr_html_(), repr(snap.manifest), repr(asdict(snap.coverage))]
    assert not [text for text in said + [frame.to_csv() for frame in frames] if CANARY in text]
    kept = [*snap.rejects["body"], pickle.dumps(frames)]
    if store is not None:
        kept += [path.read_bytes() for path in store.path.rglob("*") if path.is_file()]
        assert len(kept) > len(snap.rejects) + 5, "a ledger, a log and a file of each frame were not found"
    assert not [held for held in kept if CANARY.encode() in held]


async def nothing_is_left(server, seconds=5.0):
    """No task on this loop but the test's own, and no socket still open on either side."""
    assert asyncio.all_tasks() == {asyncio.current_task()}
    until = time.monotonic() + seconds
    while (server.open or held_sockets(server.port)) and time.monotonic() < until:  # noqa: ASYNC110 - the server is on another thread
        await asyncio.sleep(0.01)
    assert (server.open, held_sockets(server.port)) == (0, 0)


def held_sockets(port):
    """Sockets to a port of this machine that some process still holds, also where the other end is gone; told by Linux alone."""
    table = Path("/proc/net/tcp")
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return sum(row[2].endswith(f":{port:04X}") and row[9] != "0" for row in rows)


@pytest.fixture
def store():
    """Where the runs of a test go; None, memory alone, unless its module says otherwise."""
    return


@pytest.fixture
def run(caplog, capsys, monkeypatch, store):
    """``await run(server, verb, tokens, **settings)``: a run, checked against the server's own count."""
    caplog.set_level(logging.DEBUG)
    failed = []
    call = NexusClient.call

    async def kept(*args, **known):
        exchange = await call(*args, **known)
        if exchange.error is not None:
            failed.append(repr(exchange) + everything_of(exchange.error))
        return exchange

    monkeypatch.setattr(NexusClient, "call", kept)

    async def ran(server, verb="aggregate", tokens=None, *, all_arrive=True, **known):
        settings = server.settings(**known)
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            snap = await getattr(aio, verb)(
                server.tokens() if tokens is None else tokens, settings, store=store
            )
        done = Run(server, snap, time.perf_counter() - began)
        await nothing_is_left(server)
        accounting_adds_up(done, all_arrive=all_arrive)
        starts_are_within_bounds(done, verb)
        if verb == "aggregate":
            intervals_hold_the_truth(done)
        printed = capsys.readouterr()
        told = [str(each.message) for each in warned]
        canary_is_nowhere(snap, [caplog.text, printed.out, printed.err, *told, *failed], store)
        for each in warned:  # the test's own filters decide
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        return done

    return ran
