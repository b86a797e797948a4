"""`Gate`: one limit for all, with times of a loop whose clock the test moves; `Budget`: one account for all."""

import asyncio
import random
from itertools import pairwise

import pytest

from mxlab.errors import ConnectFailed, Forbidden, RateLimited, ServerFault, Unavailable
from mxlab.fetch.pace import Budget, Gate


class Clock:
    """The loop's time, moved by sleeping tasks only: a wait of minutes takes none."""

    def __init__(self, loop):
        self.now = 0.0
        self._loop = loop
        self._select = loop._selector.select

    def time(self):
        return self.now

    def select(self, timeout):
        if timeout:
            self.now += timeout
        return self._select(0)


@pytest.fixture
async def clock(monkeypatch):
    loop = asyncio.get_running_loop()
    made = Clock(loop)
    monkeypatch.setattr(loop, "time", made.time)
    monkeypatch.setattr(loop._selector, "select", made.select)
    return made


async def run(gate, jobs, *, workers=50, reply=lambda _: (None, 0.1)):
    """So many requests through the gate; returns when each was let in."""
    loop, let_in, todo = asyncio.get_running_loop(), [], iter(range(jobs))

    async def work():
        for number in todo:
            await gate.enter()
            assert gate.in_flight <= max(gate.limit, gate.most_in_flight)
            let_in.append(loop.time())
            error, seconds = reply(number)
            await asyncio.sleep(seconds)
            gate.leave(error, seconds)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    assert gate.in_flight == 0
    return let_in


async def test_the_limit_doubles_from_20_until_the_ceiling(clock):
    gate = Gate(200)
    await run(gate, 2000, workers=300)
    assert gate.limit == gate.most_in_flight == 200


async def test_never_more_in_flight_than_the_limit_allows_at_the_moment_of_entry(clock):
    gate, rng = Gate(100), random.Random(1)
    at_once = []
    enter = Gate.enter

    async def watched(self):
        await enter(self)
        at_once.append((self.in_flight, self.limit, self.most_in_flight))

    errors = [None] * 20 + [RateLimited("x"), Unavailable("x"), ConnectFailed("x"), ServerFault("x")]
    gate.enter = watched.__get__(gate)
    await run(gate, 5000, workers=150, reply=lambda _: (rng.choice(errors), rng.random()))
    assert gate.most_in_flight <= 100


async def test_a_limit_with_a_fraction_lets_in_no_more_than_its_whole_part():
    gate = Gate(10)
    gate.limit = 2.9
    await gate.enter()
    await gate.enter()
    third = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    assert not third.done()
    gate.leave(None, 0.1)
    await third
    assert gate.in_flight == 2


async def test_the_first_congestion_ends_the_doubling_and_cuts_by_three_tenths(clock):
    gate = Gate(1000, start=100)
    await gate.enter()
    gate.leave(RateLimited("x"), 0.1)
    assert gate.limit == pytest.approx(70)
    await run(gate, 200, workers=100)
    assert 70 < gate.limit < 90


async def test_f09_a_storm_brings_the_limit_from_20_to_4_within_five_seconds(clock):
    gate = Gate(200)
    reached = []

    def refused(_):
        reached.append((gate.limit <= 4, clock.now))
        return RateLimited("x"), 0.2

    await run(gate, 400, reply=refused)
    assert min(at for is_low, at in reached if is_low) <= 5
    assert gate.limit >= 1


async def test_a_burst_of_refusals_at_one_moment_is_one_cut(clock):
    gate = Gate(100, start=100)
    for _ in range(50):
        await gate.enter()
    for _ in range(50):
        gate.leave(RateLimited("x"), 0.1)
    assert gate.limit == pytest.approx(70)


async def test_a_slow_reply_is_a_sign_of_congestion_and_an_error_of_the_server_is_none(clock):
    gate = Gate(100, start=100)
    await gate.enter()
    gate.leave(None, 0.2)
    await gate.enter()
    gate.leave(ServerFault("x"), 0.2)
    assert gate.limit == 100
    await gate.enter()
    gate.leave(None, 6.0)
    assert gate.limit == pytest.approx(70)


async def test_a_pause_holds_everybody_and_opens_at_half_the_limit(clock):
    gate = Gate(100, start=100)
    await gate.enter()
    gate.pause(30.0)
    gate.leave(RateLimited("x", retry_after_seconds=30.0), 0.1)
    assert gate.limit == 50
    let_in = await run(gate, 60)
    assert min(let_in) >= 30


async def test_a_pause_can_be_prolonged_and_not_shortened(clock):
    gate = Gate(100)
    gate.pause(10.0)
    gate.pause(30.0)
    gate.pause(1.0)
    assert min(await run(gate, 5)) >= 30


async def test_the_hard_rate_holds_from_the_first_request_on(clock):
    let_in = await run(Gate(100, rate=20.0), 100)
    assert all(late - early >= 1 / 20 - 1e-9 for early, late in pairwise(let_in))
    assert let_in[-1] == pytest.approx(100 / 20, abs=0.5)


async def test_who_waits_for_the_rate_is_held_by_a_pause_that_begins_meanwhile(clock):
    gate = Gate(100, rate=10.0, start=100)
    clock_loop = asyncio.get_running_loop()
    clock_loop.call_later(0.55, gate.pause, 60.0)
    let_in = await run(gate, 30)
    during = [at for at in let_in if 0.56 < at < 60.5]
    assert not during
    assert all(late - early >= 0.1 - 1e-9 for early, late in pairwise(let_in))


@pytest.mark.parametrize("seed", range(20))
async def test_cancelling_those_who_wait_or_have_just_been_let_in_loses_no_place(clock, seed):
    """No wake-up is lost: after any cancellations the rest still gets through, and no place stays taken."""
    gate, rng = Gate(3, rate=rng_rate(seed), start=1), random.Random(seed)
    done = []

    async def work(number):
        await gate.enter()
        try:
            await asyncio.sleep(rng.random())
        finally:
            gate.leave(None, 0.1)
        done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(60)]
    for _ in range(40):
        await asyncio.sleep(rng.random() * 0.2)
        rng.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert gate.in_flight == 0
    assert len(done) == sum(not task.cancelled() for task in tasks) > 10
    await run(gate, 10)


def rng_rate(seed):
    return [float("inf"), 30.0][seed % 2]


async def test_a_place_given_to_one_who_is_cancelled_at_once_goes_to_the_next():
    gate = Gate(1, start=1)
    await gate.enter()
    first, second = asyncio.create_task(gate.enter()), asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    gate.leave(None, 0.1)  # gives the place to the first …
    first.cancel()  # … which is cancelled before it runs
    await asyncio.wait_for(second, 1)
    assert gate.in_flight == 1


def answered(budget, times=1, now=0.0):
    for _ in range(times):
        budget.heard("well", None, now)


def test_the_budget_pays_35_retries_or_100_throttled_ones_and_one_more_for_14_or_5_successes():
    """reliability.md 1.5: 500 tokens, 14 a retry, 5 a throttled one, 1 earned by a success and by nothing else."""
    for error, retries, cost in ((ServerFault("x"), 35, 14), (RateLimited("x"), 100, 5)):
        budget = Budget()
        assert sum(budget.pay(error) for _ in range(200)) == retries
        answered(budget, cost - 1 - (500 - retries * cost))
        budget.heard("well", Forbidden("x"), 0.0)
        assert not budget.pay(error)
        answered(budget)
        assert budget.pay(error)
    budget = Budget()
    answered(budget, 10_000)
    assert sum(budget.pay(ServerFault("x")) for _ in range(200)) == 35


def test_one_users_failures_are_not_the_servers_and_two_users_are():
    budget = Budget()
    answered(budget)
    for _ in range(5):
        budget.heard("a", ServerFault("x"), 1.0)
    assert not budget.is_out(1.0)
    budget.heard("b", ServerFault("x"), 2.0)
    assert budget.is_out(2.0)
    assert budget.is_at_fault(1.5, 2.0)
    answered(budget)
    assert not budget.is_out(2.0)


def test_a_server_that_answers_some_is_not_out_for_one_who_failed_before_that():
    budget = Budget()
    answered(budget)
    budget.heard("a", ConnectFailed("x"), 1.0)
    answered(budget)
    budget.heard("a", ConnectFailed("x"), 3.0)
    assert budget.is_out(3.0)
    assert not budget.is_at_fault(1.0, 3.0)
    assert budget.is_at_fault(3.0, 4.0)


def test_a_server_that_never_answered_or_is_silent_for_five_minutes_is_not_waited_for():
    budget = Budget()
    for session in "abc":
        budget.heard(session, ConnectFailed("x"), 1.0)
    assert not budget.is_out(1.0)
    answered(budget)
    budget.heard("a", ConnectFailed("x"), 10.0)
    assert budget.is_out(309.9)
    assert not budget.is_out(310.0)


def test_a_server_that_has_cost_half_the_budget_is_in_trouble_whoever_it_answers():
    budget = Budget()
    answered(budget)
    while not budget.is_at_fault(0.0, 1.0):
        assert budget.pay(ServerFault("x"))
        budget.heard("a", ServerFault("x"), 1.0)
        answered(budget, now=1.0)
    answered(budget, 20)
    assert not budget.is_at_fault(0.0, 1.0)
