"""The collection itself: slow and broken sources, stopping, resuming, stale tokens."""

import asyncio
import logging
import time
from collections import Counter

import pytest
from msgspec import structs

from faults.canary import CANARY, everything_of
from faults.conftest import canary_is_nowhere, nothing_is_left
from faults.server import FaultServer, error, hang, say
from mxlab import aio
from mxlab.errors import ConfigError
from mxlab.exchange import Progress
from mxlab.fetch.collect import Collection
from mxlab.store import Store
from mxlab.tokens import SessionToken, source


class Book:
    """A journal in memory that a next life of the run can be given."""

    key = bytes(32)

    def __init__(self):
        self.intents, self.ended = {}, set()

    def claim(self, session):
        return False if session in self.ended else self.intents.get(session, True)

    async def intend(self, intent):
        self.intents[intent.session] = intent

    def leaving(self, intent):
        """What was intended counts as sent."""

    def answered(self, session, replied_at):
        """As the ledger: an answered start is followed in the next life, one that was refused never was."""
        if replied_at is None:
            del self.intents[session]
        else:
            self.intents[session] = structs.replace(self.intents[session], replied_at=replied_at)


async def collected(server, tokens, book=None, verb="aggregate", **known):
    """Endings of a run by user; those of earlier lives are passed over."""
    book = book or Book()
    collection = Collection(source(tokens), server.settings(**known), verb, book, Progress())
    endings = []
    async for batch in collection.batches():
        endings += batch.endings
        book.ended |= {ending.session for ending in batch.endings}
    return endings, collection


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_a_source_that_is_slow_starves_nobody_who_is_due(concurrency):
    """The first user ends long before the source brings its second."""
    with FaultServer(users=2) as server:
        first, second = server.tokens()
        gave = []

        async def tokens():
            yield first
            await asyncio.sleep(1.5)
            gave.append(time.monotonic())
            yield second

        collection = Collection(
            source(tokens()), server.settings(concurrency=concurrency), "aggregate", Book(), Progress()
        )
        ended_at = {}
        async for batch in collection.batches():
            ended_at |= {ending.user: time.monotonic() for ending in batch.endings}
        assert ended_at["user-0"] < gave[0] < ended_at["user-1"]


@pytest.mark.parametrize("kind", ["plain", "async", "callable"])
async def test_an_error_in_a_source_reaches_the_caller_and_leaves_nothing_behind(kind):
    with FaultServer(users=5) as server:
        left = iter(server.tokens())

        def call():
            for token in left:
                if token.user == "user-3":
                    raise LookupError("the vault is shut")
                return token
            return None

        def plain():
            while (token := call()) is not None:
                yield token

        async def later():
            for token in plain():
                yield token

        tokens = {"plain": plain(), "async": later(), "callable": call}[kind]
        with pytest.raises(LookupError, match="vault"):
            await aio.aggregate(tokens, server.settings())
        await nothing_is_left(server)


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("fate", [None, hang], ids=["answering", "hanging"])
async def test_a_cancelled_run_stops_within_two_seconds_and_leaves_nothing_behind(delay, fate):
    with FaultServer(users=300, speed=5, latency=0.01, fault=lambda _: fate) as server:
        run = asyncio.create_task(aio.aggregate(server.tokens(), server.settings(reply_timeout_seconds=60)))
        await asyncio.sleep(delay)
        began = time.monotonic()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert time.monotonic() - began < 2
        await nothing_is_left(server)


@pytest.mark.parametrize("seed", range(6))
async def test_a_run_that_is_stopped_at_any_moment_and_resumed_starts_nobody_twice(seed):
    """Each life knows what the one before wrote down, as with a ledger."""
    book, endings = Book(), []
    with FaultServer(users=60, speed=50, latency=0.005, seed=seed) as server:
        tokens = server.tokens()
        for life in range(4):
            run = asyncio.create_task(collected(server, tokens, book))
            if life < 3:
                await asyncio.sleep(0.05 + 0.1 * server.bank.rng.random())
                run.cancel()
            try:
                found, _ = await run
                endings += found
            except asyncio.CancelledError:
                await nothing_is_left(server)
        acts = Counter(each.user for each in server.arrivals if each.acted)
        assert set(acts.values()) == {1}
        assert max(server.count("aggregate_all").values()) <= 2
        assert len(book.ended) == len(acts) == 60
        jobs = server.bank.jobs()
    for ending in endings:
        for each in ending.members:
            assert each.outcome == "finished"
            assert each.seconds_low <= jobs[each.member.guid].seconds <= each.seconds_high


@pytest.mark.parametrize("verb", ["observe", "aggregate"])
async def test_f15_of_a_stale_source_the_first_users_stop_the_run_and_nobody_is_given_up(verb):
    """B-026 too: more than a fifth of the first hundred."""
    with FaultServer(users=1000, fault=lambda _: error(401, 4011)) as server:
        book = Book()
        with pytest.raises(
            ConfigError,
            match=r"^tokens: .*of the first \d\d sessions have expired .*; make new tokens and run again",
        ):
            await collected(server, server.tokens(), book, verb)
        assert len(server.arrivals) <= 100
        assert not book.ended
        await nothing_is_left(server)


async def test_f15_a_source_of_unknown_length_is_judged_by_its_hundredth_user():
    with FaultServer(users=1000, fault=lambda _: error(401, 4011)) as server:
        book = Book()
        with pytest.raises(ConfigError, match="100 of the first 100"):
            await collected(server, iter(server.tokens()), book)
        assert not book.ended
        assert len(server.arrivals) <= 160


async def test_f15_the_run_that_stopped_shows_no_token_and_is_taken_up_again_with_new_ones(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    store = Store(tmp_path / "store")
    with FaultServer(users=200, fault=lambda _: error(401, 4011)) as server:
        with pytest.raises(ConfigError, match="same run name") as caught:
            await aio.aggregate(server.tokens(), server.settings(), store=store, run="r")
        await nothing_is_left(server)
        assert len(server.arrivals) <= 100
        stopped = store.load("r").coverage
        assert (stopped.answered, stopped.lost, stopped.unknown) == (0, 0, 0)
        assert stopped.asked == stopped.pending
        assert CANARY not in everything_of(caught.value) + caplog.text
        server.fault = lambda _: None
        done = await aio.aggregate(server.tokens(), server.settings(), store=store, run="r")
    assert done.coverage.asked == done.coverage.answered == 200
    canary_is_nowhere(done, [caplog.text], store)


@pytest.mark.parametrize(("stale", "users"), [(20, 150), (20, 100), (60, 60), (99, 99)])
async def test_fewer_stale_tokens_or_users_stop_nothing_and_all_are_accounted_for(stale, users):
    with FaultServer(users=users, members=1) as server:
        server.fault = lambda a: error(401, 4011) if int(a.user.removeprefix("user-")) < stale else None
        endings, _ = await collected(server, server.tokens())
        assert Counter(ending.state for ending in endings) == +Counter(lost=stale, answered=users - stale)


@pytest.mark.parametrize(
    "expired", [error(401, 4011), say(401), error(400, 4011)], ids=["B-024", "B-025", "B-024-then-4011"]
)
async def test_tokens_that_can_be_renewed_are_never_called_stale(run, expired):
    with FaultServer(users=120, members=1) as server:
        server.fault = lambda a: expired if a.endpoint == "list_members" and a.nth == 1 else None
        done = await run(server, tokens=server.source())
    assert done.coverage.answered == 120
    assert set(server.bank.lives.values()) == {2}


async def test_a_token_that_comes_twice_is_one_user(run):
    """B-086, B-087: of a user with two tokens the first that comes is used."""
    with FaultServer(users=3, members=1) as server:
        tokens = server.tokens()
        again = [SessionToken(server.bank.session("user-0"), user="user-0")]
        done = await run(server, tokens=iter([*tokens, *tokens, *again]))
    assert done.coverage.asked == done.coverage.answered == 3
    assert set(server.count("aggregate_all").values()) == {1}


async def test_more_users_than_max_users_stops_a_source_that_did_not_say():
    with FaultServer(users=5) as server:
        with pytest.raises(ConfigError, match="max_users"):
            await aio.aggregate(iter(server.tokens()), server.settings(max_users=3))
        assert len(server.count("aggregate_all")) <= 3
        await nothing_is_left(server)


async def test_a_lost_user_is_asked_again_under_the_same_name_where_no_start_may_have_acted(tmp_path):
    """Lost at the first look: asked again. Lost after a start, or with rows stored: not, and the advice says so."""
    fates = {
        "user-1": ("list_members", error(500)),
        "user-2": ("aggregate_all", error(403)),
        "user-3": ("read_nothing", None),
    }

    def fault(arrival):
        endpoint, deed = fates.get(arrival.user, ("", None))
        if arrival.user == "user-3" and arrival.endpoint == "list_members" and arrival.nth > 1:
            return error(404)
        return deed if arrival.endpoint == endpoint else None

    store = Store(tmp_path / "store")
    with FaultServer(users=6, fault=fault) as server:
        tokens = server.tokens()
        first = await aio.aggregate(tokens, server.settings(), store=store, run="r")
        said = first.failures.set_index("user")["what_to_do"]
        assert set(said.index) == set(fates)
        assert said["user-1"].endswith("the same run name asks this user again.")
        assert said[["user-2", "user-3"]].str.contains("under another run name").all()
        server.fault = lambda _: None
        seen = len(server.arrivals)
        again = await aio.aggregate(tokens, server.settings(), store=store, run="r")
        asked = {each.user for each in server.arrivals[seen:]}
        third = await aio.aggregate(tokens, server.settings(), store=store, run="r")
    assert asked == {"user-1"}
    assert (first.coverage.asked, first.coverage.answered, first.coverage.lost) == (6, 3, 3)
    assert (again.coverage.asked, again.coverage.answered, again.coverage.lost) == (6, 4, 2)
    assert (again.coverage.pending, again.manifest["asked_again"]) == (0, 1)
    assert (third.coverage.asked, third.coverage.answered, third.manifest["asked_again"]) == (6, 4, 0)
    assert not again.members.duplicated("guid").any()
    assert set(again.failures["user"]) == {"user-2", "user-3"}
    acts = Counter(each.user for each in server.arrivals if each.acted)
    assert set(acts.values()) == {1}


async def test_users_of_an_outage_that_lasted_too_long_are_answered_by_the_next_call(tmp_path):
    store = Store(tmp_path / "store")
    with FaultServer(users=40, members=1, speed=200, latency=0.05) as server:
        tokens = server.tokens()
        settings = server.settings(deadline_seconds=30.0, concurrency=2)
        server.later(0.2, server.down)
        first = await aio.observe(tokens, settings, store=store, run="r")
        await asyncio.to_thread(server.up)
        second = await aio.observe(tokens, settings, store=store, run="r")
    assert first.coverage.asked == second.coverage.asked == 40
    assert first.coverage.answered + first.coverage.lost == 40
    assert first.coverage.lost > 0
    assert second.coverage.answered == 40
    assert second.failures.empty
