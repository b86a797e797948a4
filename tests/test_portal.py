"""The private loop and `Job`: waited for from anywhere, stopped, interrupted, read twice."""

import asyncio
import concurrent.futures
import re
import threading
import time
from itertools import pairwise

import pytest
from faults.server import FaultServer, error, hang
from waiting import stay, until

import mxlab as mx
from mxlab import aio, portal
from mxlab.errors import ConnectFailed
from mxlab.fetch.pace import Budget
from mxlab.portal import start, watch
from mxlab.tokens import SessionToken, minted


async def slow(seconds=30.0):
    watch().progress.answered += 1
    await asyncio.sleep(seconds)


async def give(value):
    return value


async def fail():
    raise LookupError("no such thing")


def tasks_on_the_portal():
    return asyncio.run_coroutine_threadsafe(_tasks(), portal._loop()).result(5)


async def _tasks():
    return asyncio.all_tasks() - {asyncio.current_task()}


@pytest.fixture(autouse=True)
def nothing_stays_on_the_loop():
    yield
    until(lambda: not tasks_on_the_portal())


def test_a_result_can_be_had_twice_and_from_any_thread():
    job = start(give(5))
    assert (job.result(), job.result(1.0), job.state) == (5, 5, "done")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert [future.result() for future in [pool.submit(job.result) for _ in range(8)]] == [5] * 8


def test_an_error_comes_to_whoever_asks_each_time():
    job = start(fail())
    for _ in range(2):
        with pytest.raises(LookupError, match="no such thing"):
            job.result()
    assert job.state == "failed"


def test_a_time_out_of_the_wait_is_not_one_of_the_run():
    async def late():
        raise TimeoutError("of the run itself")

    with pytest.raises(TimeoutError, match="of the run itself"):
        start(late()).result()
    job = start(slow())
    with pytest.raises(TimeoutError, match="still going on"):
        job.result(0.25)
    assert job.state == "running"
    job.cancel()


def test_a_cancelled_job_ends_at_once_and_says_so_twice():
    job = start(slow())
    until(lambda: job.progress.answered)
    began = time.monotonic()
    job.cancel()
    job.cancel()
    for _ in range(2):
        with pytest.raises(concurrent.futures.CancelledError):
            job.result()
    assert time.monotonic() - began < 2
    assert job.state == "cancelled"
    assert "cancelled" in repr(job)


def test_a_job_cancelled_before_it_could_begin_is_cancelled():
    job = start(slow())
    job.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        job.result(5)


def test_a_job_that_is_over_cannot_be_cancelled():
    job = start(give(5))
    job.result()
    job.cancel()
    assert (job.result(), job.state) == (5, "done")


def test_an_interrupt_of_the_wait_stops_the_run():
    """As ■ in a notebook: the wait is in slices, so the interrupt is heard between two of them."""
    job = start(slow())
    ticks = []

    def interrupted(progress):
        ticks.append(progress)
        if len(ticks) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.result(tick=interrupted)
    assert job.state == "cancelled"


def test_a_wait_on_the_loop_for_itself_is_refused():
    async def inside():
        return job.result()

    job = start(slow())
    with pytest.raises(RuntimeError, match="await"):
        start(inside()).result(5)
    job.cancel()


async def test_a_job_is_awaited_from_another_loop_any_number_of_times():
    job = start(give(5))
    assert await asyncio.gather(*(_awaited(job) for _ in range(5))) == [5] * 5


async def _awaited(job):
    return await job


async def test_cancelling_what_awaits_a_job_cancels_it():
    job = start(slow())
    waiting = asyncio.create_task(_awaited(job))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.to_thread(until, lambda: job.state == "cancelled")


async def test_an_awaited_job_leaves_the_callers_loop_alive():
    job, beats = start(slow(0.4)), 0
    waiting = asyncio.create_task(_awaited(job))
    while not waiting.done():
        beats += 1
        await asyncio.sleep(0.01)
    assert beats > 10


def test_jobs_run_side_by_side_each_with_a_progress_of_its_own():
    jobs = [start(slow(0.2)) for _ in range(5)]
    assert len({id(job.progress) for job in jobs}) == 5
    for job in jobs:
        job.result()
        assert job.progress.answered == 1


def test_all_jobs_share_one_thread():
    async def thread():
        return threading.get_ident()

    assert len({start(thread()).result() for _ in range(5)}) == 1


def test_a_run_that_is_cancelled_stops_within_two_seconds_and_shows_what_it_has():
    with FaultServer(users=100, fault=lambda a: hang if a.user > "user-5" else None) as server:
        job = start(aio.observe(server.tokens(), server.settings(reply_timeout_seconds=60)))
        until(lambda: job.progress.answered > 10)
        partial = job.partial()
        assert partial.coverage.asked == 100
        began = time.monotonic()
        job.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            job.result()
        assert time.monotonic() - began < 2
        assert job.partial().coverage.answered > 10
        assert job.partial().coverage.pending == 100 - job.partial().coverage.answered
        until(lambda: server.open == 0)


def test_a_door_that_waits_in_a_notebook_says_how_far_it_is(monkeypatch):
    """At most four times a second, and at the end what it came to; a short run says nothing, the next run no new line."""
    said, lines = [], []

    class Handle:
        def update(self, shown, **_):
            said.append((time.monotonic(), shown["text/plain"]))

    def display(shown, **_):
        lines.append(shown)
        Handle().update(shown)
        return Handle()

    monkeypatch.setattr("mxlab.api._cell", lambda: 7)
    monkeypatch.setattr("IPython.display.display", display)
    with FaultServer(users=20, latency=0.08) as server:
        mx.observe(server.tokens(), server.settings(read_jobs=False))
        assert said == []
        mx.observe(server.tokens(), server.settings(read_jobs=False, concurrency=1))
        times, texts = zip(*said, strict=True)
        mx.observe(server.tokens(), server.settings(read_jobs=False))
    assert re.fullmatch(r"collecting: \d+ of 20 users · \d+ a second · \d under way · 1 in flight", texts[0])
    assert re.fullmatch(r"complete: 20 of 20 users · \d+ a second", texts[-1])
    assert len(said) > len(texts)
    assert len(lines) == 1
    assert min(after - before for before, after in pairwise(times[:-1])) > 0.2


@pytest.mark.parametrize("rate", [None, 300.0])
def test_a_paused_run_sends_nothing_and_goes_on_and_starts_each_user_once(rate):
    with FaultServer(users=60, speed=50, latency=0.03) as server:
        job = start(aio.aggregate(server.tokens(), server.settings(requests_per_second=rate)))
        until(lambda: server.count()["aggregate_all"] > 10)
        job.pause()
        paused_at = server.elapsed
        until(lambda: not job.progress.in_flight, seconds=0.5)
        so_far = len(server.arrivals)
        stay(lambda: len(server.arrivals) == so_far)
        assert max(each.at for each in server.arrivals) < paused_at + 0.1
        assert (job.state, job.is_paused) == ("running", True)
        assert "paused" in repr(job)
        job.resume()
        snap = job.result(60)
        assert not job.is_paused
        assert (snap.coverage.asked, snap.coverage.answered) == (60, 60)
        assert set(server.count("aggregate_all").values()) == {1}
        assert len(server.arrivals) == len(snap.requests)
        assert 0.4 < snap.manifest["paused_seconds"] < 2


def test_a_pause_before_the_run_has_begun_holds_it_and_the_last_word_counts():
    with FaultServer(users=20, speed=50) as server:
        job = start(aio.observe(server.tokens(), server.settings()))
        job.pause()
        stay(lambda: not server.arrivals, 0.3)
        for _ in range(5):
            job.resume()
            job.pause()
        stay(lambda: not server.arrivals, 0.3)
        job.resume()
        assert job.result(30).coverage.answered == 20


def test_a_pause_costs_no_user_its_deadline():
    """Jobs of 90 s, followed for 60 s and paused for longer; what fails first when it goes on is tried again."""
    failed, is_over = set(), False

    def once(arrival):
        if is_over and arrival.user not in failed:
            failed.add(arrival.user)
            return error(500)
        return None

    bank = {"seconds": lambda _: 90.0}
    with FaultServer(users=20, speed=50, fault=once, bank_options=bank) as server:
        job = start(aio.aggregate(server.tokens(), server.settings(deadline_seconds=60.0)))
        until(lambda: server.count()["aggregate_all"] == 20)
        job.pause()
        stay(lambda: job.state == "running", 1.4)
        is_over = True
        job.resume()
        snap = job.result(30)
    assert len(failed) == 20
    assert snap.coverage.answered == 20
    assert set(snap.members["outcome"]) == {"finished"}
    assert (snap.members["aggregation_seconds_high"] > 90).all()


def test_a_paused_run_is_stopped_within_two_seconds_and_shows_what_it_has():
    with FaultServer(users=100, speed=20, latency=0.01) as server:
        job = start(aio.aggregate(server.tokens(), server.settings()))
        until(lambda: job.progress.ended > 5)
        job.pause()
        until(lambda: not job.progress.in_flight)
        began = time.monotonic()
        job.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            job.result()
        assert time.monotonic() - began < 2
        assert (job.state, job.is_paused) == ("cancelled", False)
        coverage = job.partial().coverage
        assert coverage.answered > 5
        assert coverage.answered + coverage.pending == 100


def test_no_token_is_taken_or_used_in_a_pause():
    """Neither of a callable, whose tokens grow old, nor one that was under way when the pause came."""
    with FaultServer(users=60, speed=50, latency=0.05) as server:
        tokens, taken = iter(server.tokens()), []

        def following():
            taken.append(next(tokens, None))
            return taken[-1]

        job = start(aio.observe(following, server.settings(concurrency=10, read_jobs=False)))
        until(lambda: len(server.arrivals) > 4)
        there = len(taken)
        job.pause()
        until(lambda: not job.progress.in_flight)
        stay(lambda: len(taken) <= there + 1 < 60, 0.1)
        job.resume()
        assert job.result(30).coverage.answered == 60

    with FaultServer(users=5, speed=50) as server:
        asked = []

        async def mint(user):
            asked.append(user)
            await asyncio.sleep(0.2)
            return SessionToken(server.bank.session(user))

        job = start(aio.observe(minted(list(server.bank.users), mint), server.settings()))
        until(lambda: len(asked) == 5)
        job.pause()
        stay(lambda: not server.arrivals, 0.5)
        job.resume()
        assert job.result(30).coverage.answered == 5
        assert len(asked) == 5


def test_the_time_of_a_pause_is_not_one_of_the_servers_silence():
    held = 0.0
    budget = Budget(lambda: held)
    budget.heard("a", None, 0.0)
    budget.heard("b", ConnectFailed("x"), 10.0)
    held = 1_000.0
    assert budget.is_out(1_309.9)
    assert not budget.is_out(1_310.0)
