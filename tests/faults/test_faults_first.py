"""Server faults F-01 to F-14, F-18 and F-27, on every run of the tests.

The run's clock is fast and users are fewer than on the page; where its figures need more than some seconds, the same
test with the page's own figures is in the second tier. What must hold of every run (accounting, starts a user,
intervals, tasks, sockets, canary) is checked by the fixture `run`, which keeps each run in a store here.
"""

import asyncio
import errno
import gc
import gzip
import random
import resource
import time
import zlib
from collections import Counter
from pathlib import Path

import aiohappyeyeballs
import pandas as pd
import pytest

from faults.conftest import all_are_collected
from faults.server import (
    FaultServer,
    acting,
    after,
    by_chance,
    close,
    cut,
    error,
    hang,
    raw,
    reset,
    say,
    some,
)
from mxlab.errors import ConnectFailed
from mxlab.fetch import pace
from mxlab.store import Store
from mxlab.tokens import SessionToken, minted


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def full(*figures):
    """The figures of the page: the second tier."""
    return pytest.param(*figures, marks=pytest.mark.slow)


#: what the server says → the seconds that this asks for; None where it asks for nothing
RETRY_AFTER = {
    "5": 5.0,
    "0": 0.0,
    "-1": 0.0,
    "1e9": 300.0,
    "abc": None,
    "nan": None,
    "inf": 300.0,
    "": None,
    "2.5": 2.5,
    "Wed, 21 Oct 2015 07:28:00 GMT": 0.0,
    "5, 7": None,
    "１": None,
}


class Storm:
    """A fault of every request to an endpoint, or any, from the one that comes after so many, for some real seconds."""

    def __init__(self, after, seconds, deed, endpoint=None):
        self.after, self.seconds, self.deed, self.endpoint = after, seconds, deed, endpoint
        self.seen, self.began, self.struck = 0, None, []

    def __call__(self, arrival):
        if self.endpoint not in {None, arrival.endpoint}:
            return None
        self.seen += 1
        if self.seen <= self.after:
            return None
        self.began = self.began or arrival.at
        if arrival.at >= self.began + self.seconds:
            return None
        self.struck.append(arrival)
        return self.deed

    @property
    def ended(self):
        return self.began + self.seconds


@pytest.fixture
def limits(monkeypatch):
    """The gate's limit after each request, by moment: a list of (monotonic seconds, limit)."""
    seen = []
    leave = pace.Gate.leave

    def left(gate, *known):
        leave(gate, *known)
        seen.append((time.monotonic(), gate.limit))

    monkeypatch.setattr(pace.Gate, "leave", left)
    return seen


def between(limits, server, begins, ends):
    """The limits between two moments of the server."""
    return [limit for at, limit in limits if begins <= at - server._began < ends]


STATM = Path("/proc/self/statm")
IS_MEMORY_KNOWN = STATM.exists()  # on Linux


class Strain:
    """While in the block: the longest that one round of the loop computed, how late its beats came, and the most memory beyond that at the start.

    The loop's time is its thread's own on the processor: what else the machine does is not counted. What pytest holds
    is kept from the collector, which would go through all of it.
    """

    def __enter__(self):
        gc.collect()
        gc.freeze()
        self._loop = asyncio.get_running_loop()
        self.held_up, self.bytes, self.late = 0.0, 0, []
        self._before = _resident()
        self._beat(time.thread_time(), self._loop.time())
        return self

    def _beat(self, since, due):
        now = time.thread_time()
        self.held_up = max(self.held_up, now - since)
        self.late.append(self._loop.time() - due)
        self.bytes = max(self.bytes, _resident() - self._before)
        self._timer = self._loop.call_later(0.005, self._beat, now, self._loop.time() + 0.005)

    def __exit__(self, *_):
        self._timer.cancel()
        gc.unfreeze()


def _resident():
    return int(STATM.read_text().split()[1]) * resource.getpagesize() if IS_MEMORY_KNOWN else 0


@pytest.mark.parametrize(("users", "latency", "speed"), [(600, 0.02, 50), full(10_000, 0.2, 10)])
async def test_f01_without_a_fault_everything_is_collected(run, users, latency, speed):
    with FaultServer(users=users, members=3, speed=speed, latency=latency) as server, Strain() as strain:
        done = await run(server)
    all_are_collected(done)
    looks = done.snap.members.astype({"user": str}).groupby("user")["looks"].max()
    assert server.count("aggregate_all") == Counter(dict.fromkeys(server.bank.users, 1))
    assert server.count("list_members") == Counter(
        looks.to_dict()
    )  # one before the start, whose reply is a look
    assert server.count("read_job") == Counter(dict.fromkeys(server.bank.users, 3))
    assert pd.Series(strain.late).quantile(0.99) <= 0.2


@pytest.mark.parametrize(
    ("users", "speed", "concurrency", "latency", "seconds", "slow_seconds"),
    [(500, 50, 100, 0.05, 3.0, 0.5), full(2000, 1, 200, 0.3, 30.0, 5.0)],
)
async def test_f02_a_latency_spike_loses_nobody_and_the_limit_falls_and_recovers(
    run, limits, monkeypatch, users, speed, concurrency, latency, seconds, slow_seconds
):
    """×20 for 30 s; in the first tier a tenth of that, the gate's 5 s of slowness too, and 100 in flight, not 200."""
    monkeypatch.setattr(pace, "_SLOW_SECONDS", slow_seconds)
    spike = Storm(600, seconds, after(19 * latency))
    with FaultServer(users=users, latency=latency, fault=spike, speed=speed) as server:
        done = await run(server, concurrency=concurrency)
        before = max(between(limits, server, 0, spike.began))
        during = between(limits, server, spike.began, spike.ended)
        afterwards = between(limits, server, spike.ended, spike.ended + seconds)
    all_are_collected(done)
    assert min(during) <= 0.7 * before
    assert max(afterwards) >= 0.8 * before


@pytest.mark.parametrize("deed", [close, reset], ids=["f03_close_after_reading", "f04_reset_after_reading"])
@pytest.mark.parametrize("begins", [False, True], ids=["did_nothing", "f05_acted"])
@pytest.mark.parametrize(("users", "share"), [(200, 0.25), full(5000, 0.05)])
async def test_a_start_whose_answer_is_lost_is_cleared_up_by_reading(run, deed, begins, users, share):
    lost = acting(deed) if begins else deed
    with FaultServer(
        users=users, fault=some(share, lost, endpoint="aggregate_all"), speed=20_000 / users
    ) as server:
        done = await run(server)
    all_are_collected(done)
    starts = server.count("aggregate_all")
    assert 0.7 * share * users < len(done.silenced) < 1.3 * share * users
    assert {user for user, count in starts.items() if count > 1} == (set() if begins else done.silenced)
    assert max(starts.values()) == (1 if begins else 2)
    first = [each for each in server.arrivals if each.endpoint == "aggregate_all" and each.nth == 1]
    assert any(each.is_reused for each in first if each.user in done.silenced)  # F-04


def refused(_monkeypatch, server):
    """How an outage begins and ends in which connections are refused, and those there were are over."""
    return server.down, server.up


def no_route(monkeypatch, server):
    """The same where nothing gets through: on a connection nothing is heard, and there is no route for a new one."""
    connect = aiohappyeyeballs.start_connection
    is_out = []

    async def connected(*args, **known):
        if is_out:
            raise OSError(errno.EHOSTUNREACH, "no route to host")
        return await connect(*args, **known)

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", connected)
    server.fault = lambda _: hang if is_out else None
    return lambda: is_out.append(True), is_out.clear


@pytest.mark.parametrize(
    ("how", "seen_as", "users", "seconds", "speed"),
    [
        (refused, "ConnectFailed", 150, 10, 20),
        (refused, "ConnectFailed", 3, 60, 20),
        (no_route, "ReplyTimeout", 150, 10, 20),
        full(refused, "ConnectFailed", 150, 10, 1),
        full(no_route, "ReplyTimeout", 150, 10, 1),
    ],
)
async def test_f06_an_outage_loses_nobody_and_doubles_nothing(
    run, monkeypatch, how, seen_as, users, seconds, speed
):
    """10 s, as on the page, and a minute, of the run's clock, while users are followed."""
    with FaultServer(users=users, speed=speed) as server:
        begin, end = how(monkeypatch, server)
        back = []
        server.later(6 / speed, begin)
        server.later((6 + seconds) / speed, lambda: (end(), back.append(server.elapsed)))
        done = await run(server, all_arrive=False, reply_timeout_seconds=3 / speed)
    all_are_collected(done)
    assert seen_as in set(done.snap.requests["error"].astype(str))
    resumed = min(each.at for each in server.arrivals if each.at > back[0])
    assert (resumed - back[0]) * speed <= 10


async def test_f06_in_an_outage_no_new_user_is_begun(run):
    with FaultServer(users=2000, members=1, speed=20) as server:
        server.later(0.3, server.down)
        server.later(1.3, server.up)
        done = await run(server, "observe", concurrency=20, all_arrive=False)
    refused = done.snap.requests[~done.snap.requests["left"]]
    assert done.coverage.answered == 2000
    assert 0 < refused["user"].nunique() <= 2 * 20  # those in flight, and those who wait for the gate


async def test_an_outage_that_outlasts_the_deadline_ends_the_users_with_a_reason_that_says_so(run):
    with FaultServer(users=5, members=1, speed=50, bank_options={"seconds": lambda _: 1000.0}) as server:
        server.later(0.3, server.down)
        done = await run(server, all_arrive=False, deadline_seconds=60.0)
    assert done.reasons == {"connect_failed": 5}
    assert done.snap.failures["what_to_do"].str.startswith("Tried until deadline_seconds (60)").all()


async def test_where_tokens_come_from_may_be_out_too(run):
    """A minute, while Nexus answers those who have their sessions."""
    with FaultServer(users=100, members=1, speed=20) as server:
        failed = []

        def mint(user):
            if server.bank.lives.total() >= 30 and server.elapsed < 4:
                failed.append(user)
                raise ConnectFailed("no route")
            return SessionToken(server.bank.session(user), user=user)

        done = await run(server, "observe", minted([*server.bank.users], mint), concurrency=5)
    assert done.coverage.answered == 100
    assert 0 < len(set(failed)) <= 10


@pytest.mark.parametrize("deed", [error(500), close], ids=["500", "closed"])
async def test_a_user_who_alone_fails_is_given_up_after_the_attempts_and_holds_nobody_up(run, deed):
    """The last one under way, so that no other user's answer tells that the server is well."""
    with FaultServer(users=3, speed=20) as server:
        server.fault = lambda a: deed if a.user == "user-1" else None
        done = await run(server, "observe", attempts=4)
    assert done.coverage.answered == 2
    assert server.count("list_members")["user-1"] == 4
    assert done.seconds * 20 < 30


async def test_a_server_that_never_answered_is_given_up_after_the_attempts(run):
    with FaultServer(users=100, speed=20) as server:
        server.down()
        done = await run(server, "observe")
    assert done.reasons == {"connect_failed": 100}
    assert done.snap.requests["user"].value_counts().eq(4).all()
    assert done.seconds * 20 < 120


@pytest.mark.parametrize("part", ["head", "body"])
@pytest.mark.parametrize("users", [300, full(5000)])
async def test_f07_a_reset_in_the_middle_of_a_reply_fails_nobody(run, part, users):
    """5 % of all requests."""
    with FaultServer(users=users, fault=by_chance(0.05, cut(part)), speed=20_000 / users) as server:
        done = await run(server)
    all_are_collected(done)
    broken = sum(each.status is None for each in server.arrivals)
    assert 0.03 < broken / len(server.arrivals) < 0.07
    assert Counter(done.snap.requests["error"].dropna().astype(str)) == {"ConnectionLost": broken}
    assert Counter(done.snap.rejects["reason"]) == ({"short_body": broken} if part == "body" else {})


def pauses(storm, seconds):
    """From when to when nothing should arrive: after the first refusal of each burst, and what was under way by then."""
    begun = []
    for each in storm.struck:
        if not begun or each.at > begun[-1] + seconds:
            begun.append(each.at)
    return [(at + 0.05, at + seconds) for at in begun]


@pytest.mark.parametrize(
    ("users", "seconds", "speed", "concurrency"), [(300, 1.5, 20, 50), full(2000, 60.0, 1, 200)]
)
async def test_f08_a_storm_of_429_with_retry_after_is_sat_out(run, users, seconds, speed, concurrency):
    """60 s of Retry-After 5; in the first tier 30 s of the run's clock, and 50 in flight instead of 200."""
    storm = Storm(400, seconds, error(429, also=["Retry-After: 5"]))
    with FaultServer(users=users, speed=speed, fault=storm, latency=0.01) as server:
        done = await run(server, concurrency=concurrency)
    all_are_collected(done)
    assert len(server.arrivals) / (len(server.arrivals) - len(storm.struck)) <= 1.25
    quiet = pauses(storm, 5 / speed)
    assert len(quiet) >= 4
    normal = storm.after / (storm.began - server.arrivals[0].at)
    came = sum(begins < each.at < ends for begins, ends in quiet for each in server.arrivals)
    assert came <= 0.01 * normal * sum(ends - begins for begins, ends in quiet)


@pytest.mark.parametrize(
    ("users", "seconds", "speed", "concurrency"), [(300, 2.0, 20, 40), full(2000, 60.0, 1, 200)]
)
async def test_f09_a_storm_of_429_without_a_hint_brings_the_limit_down(
    run, limits, users, seconds, speed, concurrency
):
    """60 s; in the first tier 40 s of the run's clock, and 40 in flight instead of 200."""
    storm = Storm(400, seconds, error(429))
    with FaultServer(users=users, speed=speed, latency=0.05, fault=storm) as server:
        done = await run(server, concurrency=concurrency)
        during = between(limits, server, storm.began, storm.began + min(seconds, 5.0))
    all_are_collected(done)
    assert min(during) <= 4
    assert len(server.arrivals) / (len(server.arrivals) - len(storm.struck)) <= 1.5


@pytest.mark.parametrize("told", RETRY_AFTER)
async def test_f10_no_form_of_retry_after_makes_a_wait_that_is_negative_or_endless(run, monkeypatch, told):
    """What is asked for is waited, up to 300 s and a tenth more, and the user's own back-off beside it."""
    paused = []
    pause = pace.Gate.pause
    monkeypatch.setattr(pace.Gate, "pause", lambda gate, s: (paused.append(s), pause(gate, s)))
    deed = error(429, also=[f"Retry-After: {told}".encode().decode("latin-1")])
    with FaultServer(users=3, speed=400, fault=some(1.0, deed, endpoint="list_members")) as server:
        done = await run(server)
    all_are_collected(done)
    asked = RETRY_AFTER[told] or 0.0
    looks = done.snap.requests[done.snap.requests["endpoint"] == "list_members"].sort_values("sent_at")
    waited = looks["sent_at"].groupby(looks["session"]).diff().groupby(looks["session"]).nth(1)
    assert len(waited) == 3
    assert (
        waited.dt.total_seconds().between(asked, asked * 1.1 + 10 + 60).all()
    )  # 60: 0.15 s of a busy machine
    assert len(paused) == (3 if asked else 0)
    assert all(asked <= seconds * 400 <= asked * 1.1 for seconds in paused)


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_f11_a_burst_of_5xx_is_outlived_within_the_budget(run, status):
    """50 % for 120 s, of 150 users' requests, all settings the default; a start that two 5xx left unclear ends unknown.

    What goes beyond the budget rests for 5 to 10 s.
    """
    with FaultServer(users=150, speed=40) as server:
        server.fault = lambda a: error(status) if a.at < 3 and server.bank.rng.random() < 0.5 else None
        done = await run(server)
    requests = done.snap.requests
    reads = requests[requests["endpoint"] == "list_members"].sort_values("sent_at")
    # 500 tokens are 35 failures by chance before the budget is spent: few are one user's four in a row.
    assert done.coverage.lost <= 0.02 * 150
    assert done.coverage.answered + done.coverage.unknown + done.coverage.lost == 150
    assert set(done.reasons) <= {"start_not_cleared_up", "server_fault"}
    after = reads["sent_at"].groupby(reads["session"]).diff().dt.total_seconds()
    again = (reads["attempt"] > 1) & (after < 4.9)
    assert 0 < again.sum() <= 500 / 14 + requests["error"].isna().sum() / 14
    calm = requests[requests["sent_at"] > requests["sent_at"].min() + pd.Timedelta(seconds=130)]
    assert calm["error"].isna().mean() >= 0.999


async def test_f12_every_start_that_503_turned_away_is_sent_again(run):
    """100 % of starts for 20 s of the run's clock."""
    storm = Storm(0, 0.5, error(503, also=["Retry-After: 3"]), "aggregate_all")
    with FaultServer(users=150, speed=40, fault=storm) as server:
        done = await run(server)
    all_are_collected(done)
    assert len({each.user for each in storm.struck}) >= 20  # from then on the gate is closed
    taken = Counter(
        each.user for each in server.arrivals if each.endpoint == "aggregate_all" and each.status == 200
    )
    assert taken == Counter(dict.fromkeys(server.bank.users, 1))


def expiring(server, share, of):
    """A fault: the session of a seeded share of users ends at a random one of their requests; → it, and those users.

    `of` tells for an arrival whether it counts.
    """
    seen, expired = Counter(), set()

    def fault(arrival):
        rng = random.Random(arrival.user)
        seen[arrival.user] += of(arrival)
        if rng.random() < share and arrival.user not in expired and seen[arrival.user] == rng.randint(1, 6):
            expired.add(arrival.user)
            server.bank.expire(arrival.user)
            return error(401, 4011)
        return None

    return fault, expired


async def test_f13_a_session_that_expires_is_renewed_once_where_the_source_mints(run):
    """30 % of users, each at a random one of its first six requests, the start among them."""
    with FaultServer(users=150, members=3) as server:
        server.fault, expired = expiring(server, 0.3, lambda _: True)
        done = await run(server, tokens=server.source())
    all_are_collected(done)
    assert 30 < len(expired) < 60
    assert server.bank.lives == Counter([*server.bank.users, *expired])
    turned_away = {each.endpoint for each in server.arrivals if each.status == 401}
    assert turned_away >= {"list_members", "aggregate_all"}


async def test_f14_of_a_static_source_exactly_those_that_expired_are_lost(run, tmp_path):
    """A file; 30 % of users, at the start or a later look, and they are refused from then on."""
    with FaultServer(users=150) as server:
        tokens = tmp_path / "tokens.csv"
        tokens.touch(mode=0o600)
        lines = [f"{each.reveal()},{each.user}" for each in server.tokens()]
        tokens.write_text("\n".join(["token,user", *lines]))
        is_counted = lambda a: a.endpoint == "aggregate_all" or (a.endpoint == "list_members" and a.nth > 1)  # noqa: E731
        server.fault, expired = expiring(server, 0.5, is_counted)
        done = await run(server, tokens=tokens)
    assert 20 < len(expired) < 75
    assert done.reasons == {"session_expired": len(expired)}
    assert set(done.snap.failures["user"]) == expired
    assert done.coverage.answered == 150 - len(expired)
    assert {each.endpoint for each in server.arrivals if each.status == 401} >= {
        "list_members",
        "aggregate_all",
    }


GOOD = b'{"members":[]}'
ZIPPED = gzip.compress(GOOD)


def _bomb():
    stream = zlib.compressobj(9, wbits=31)
    return b"".join(stream.compress(bytes(2**20)) for _ in range(512)) + stream.flush()


def headed(body, *lines, length=None):
    lines = ["HTTP/1.1 200 OK", *lines] + [f"Content-Length: {length}"] * (length is not None)
    return "\r\n".join([*lines, "", ""]).encode() + body


GZIP = "Content-Encoding: gzip"
CHUNKED = "Transfer-Encoding: chunked"
#: number → (what the server does, error class, reason of the reject); None: nothing arrived that could be kept
BODIES = {
    "B-009": (raw(headed(GOOD, length=99)), "ConnectionLost", "short_body"),
    "B-010": (raw(headed(GOOD, length=5)), "BadReply", "headers"),
    "B-011": (say(200, ZIPPED[:-12], also=[GZIP]), "BadReply", "gzip_truncated"),
    "B-011b": (say(200, ZIPPED[:-8], also=[GZIP]), "BadReply", "gzip_truncated"),
    "B-012": (say(200, ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], also=[GZIP]), "BadReply", "gzip"),
    "B-013": (say(200, ZIPPED + b"junk", also=[GZIP]), "BadReply", "gzip_trailing"),
    "B-014": (say(200, ZIPPED * 2, also=[GZIP]), "BadReply", "gzip_trailing"),
    "B-015": (say(200, GOOD, also=["Content-Encoding: br"]), "BadReply", "encoding"),
    "B-015b": (say(200, GOOD, also=["Content-Encoding: zstd"]), "BadReply", "encoding"),
    "B-015c": (say(200, ZIPPED, also=["Content-Encoding: gzip, gzip"]), "BadReply", "encoding"),
    "B-016": (say(200, _bomb(), also=[GZIP]), "BadReply", "too_large"),
    "B-017": (raw(headed(b"x" * 1000, length=9 * 2**20), then="hang"), "BadReply", "too_large"),
    "B-018": (raw(headed(b"e\r\n" + GOOD + b"\r\n", CHUNKED), then="hang"), "ReplyTimeout", None),
    "B-018b": (raw(headed(b"e\r\n" + GOOD + b"\r\n", CHUNKED)), "ConnectionLost", "short_body"),
    "B-019": (raw(headed(b"ffffffffffff\r\n" + GOOD, CHUNKED)), "ConnectionLost", "short_body"),
}


@pytest.mark.parametrize("number", BODIES)
async def test_f18_a_body_that_breaks_off_or_grows_is_kept_as_a_reject_within_bounds(run, number):
    """Each ×20 among 20 users who are well. Memory: 50 MB more at the most; the loop: 150 ms."""
    deed, error_name, reason = BODIES[number]
    with FaultServer(users=2) as server:
        await run(server, "observe")  # what a process's first run loads is not of these bodies
    with FaultServer(users=40) as server:
        server.fault = lambda a: deed if int(a.user.removeprefix("user-")) % 2 else None
        with Strain() as strain:
            done = await run(server, "observe", attempts=1, reply_timeout_seconds=1.0)
    assert (done.coverage.answered, done.coverage.lost) == (20, 20)
    requests = done.snap.requests
    assert Counter(requests["error"].dropna().astype(str)) == {error_name: 20}
    assert Counter(done.snap.rejects["reason"]) == ({reason: 20} if reason else {})
    assert done.snap.rejects["body"].map(len).le(64 * 2**10).all()
    assert strain.held_up <= 0.15
    assert strain.bytes <= 50 * 2**20
    if not IS_MEMORY_KNOWN:
        pytest.skip("NO /proc: memory was not measured; all else held")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("scheme", "endpoint"), [("http", "list_members"), ("https", "aggregate_all"), ("http", "read_job")]
)
async def test_f27_a_redirect_to_another_host_gets_no_request(run, status, scheme, endpoint):
    """A read of a job never changes a user's state."""
    with FaultServer() as elsewhere:
        to = f"Location: {scheme}://localhost:{elsewhere.port}/members"
        deed = say(status, also=[to])
        with FaultServer(users=3, fault=some(1.0, deed, endpoint=endpoint, nth=range(1, 9))) as server:
            done = await run(server)
        assert done.reasons == ({} if endpoint == "read_job" else {"redirected": 3})
        assert "Redirected" in set(done.snap.requests["error"].astype(str))
        assert elsewhere.connections == len(elsewhere.arrivals) == 0
