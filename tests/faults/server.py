"""A Nexus that fails on demand: raw sockets, seeded, on a loop thread of its own.

It writes down every request that it has read, by user and endpoint: the truth that the client's own bookkeeping is
held against. A fault is a function of an `Arrival` which returns a `Deed`, what to do with the request, or None for
the plain answer. `Bank` is a small model of members and their jobs, in the run's time.
"""

import asyncio
import contextlib
import json
import random
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from faults.canary import CANARY
from mxlab.settings import Clock, Settings
from mxlab.tokens import SessionToken, minted

MEDIA_TYPE = "application/vnd.mx.nexus.v1+json"
_ENDPOINTS = (
    ("aggregate_all", re.compile(r"/members/aggregate$")),
    ("list_members", re.compile(r"/members(\?.*)?$")),
    ("read_member", re.compile(r"/members/[^/]+$")),
    ("read_job", re.compile(r"/jobs/(?P<guid>[^/]+)$")),
)


@dataclass
class Arrival:
    """One request that was read to its end.

    ``nth`` counts this user's requests to this endpoint, from 1; ``at`` is in real seconds since the server began;
    ``is_reused`` tells that its connection had brought a request before.
    """

    user: str | None
    endpoint: str
    nth: int
    at: float
    target: str
    headers: dict[str, str]
    body: bytes
    is_reused: bool = False
    acted: bool = False
    status: int | None = None
    told_when: bool = False

    @property
    def refused(self):
        """Whether the answer says that nothing was done: a 503 says so with a Retry-After, and a 409 does not."""
        is_no = self.status is not None and 400 <= self.status < 500 and self.status != 409
        return (is_no or (self.status == 503 and self.told_when)) and not self.acted


@dataclass
class Job:
    guid: str
    started: float
    ended: float
    status: str = "CONNECTED"

    @property
    def seconds(self):
        return self.ended - self.started


@dataclass
class _Member:
    guid: str
    institution: int
    jobs: list[Job]
    is_throttled: bool


class Bank:
    """What goes on behind the API: members, their jobs, and which sessions are good.

    Parameters
    ----------
    users, members, seed
        How many, how many of each, and which.
    seconds
        ``seconds(rng)`` → how long a job takes, in the run's time.
    throttled
        The share of members whose data is fresh: a start does nothing for them.
    end
        ``end(rng)`` → the status that a job ends with.
    skew
        How far the times that it tells are off, in seconds.
    """

    def __init__(self, users, members, seed, now, *, seconds=None, throttled=0.0, end=None, skew=0.0):
        self.now, self.rng, self.skew = now, random.Random(seed), skew
        self._seconds = seconds or (lambda rng: rng.lognormvariate(2.5, 0.5))
        self._end = end or (lambda _: "CONNECTED")
        self.users = {f"user-{n}": self._made(members, throttled) for n in range(users)}
        self.sessions = {}
        self.lives = Counter()

    def _guid(self, kind):
        digits = f"{self.rng.getrandbits(128):032x}"
        return f"{kind}-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def _made(self, members, throttled):
        before = self.now() - 86_400.0
        return [
            _Member(
                self._guid("MBR"),
                self.rng.randrange(20),
                [Job(self._guid("JOB"), before, before + 30.0)],
                self.rng.random() < throttled,
            )
            for _ in range(members)
        ]

    def session(self, user):
        """The text of a new session of this user; those before it stay good."""
        self.lives[user] += 1
        text = f"{CANARY}-{self.rng.getrandbits(320):080x}"
        self.sessions[text] = user
        return text

    def expire(self, user):
        self.sessions = {text: owner for text, owner in self.sessions.items() if owner != user}

    def start(self, user):
        """Kick off; whether any job began."""
        now, began = self.now(), False
        for member in self.users[user]:
            if not member.is_throttled and member.jobs[-1].ended <= now:
                ended = now + self._seconds(self.rng)
                member.jobs.append(Job(self._guid("JOB"), now, ended, self._end(self.rng)))
                began = True
        return began

    def members(self, user):
        return [self._record(member, user) for member in self.users[user]]

    def _record(self, member, user):
        now, job = self.now(), member.jobs[-1]
        is_running = now < job.ended
        over = [each for each in member.jobs if each.ended <= now]
        succeeded = [each.ended for each in over if each.status == "CONNECTED"]
        return {
            "aggregated_at": self._text(job.started),
            "background_aggregation_is_disabled": False,
            "connection_status": over[-1].status,
            "external_guid": None,
            "guid": member.guid,
            "institution_code": f"bank_{member.institution}",
            "institution_guid": f"INS-{member.institution:08x}-0000-0000-0000-000000000000",
            "is_being_aggregated": is_running,
            "is_managed_by_user": True,
            "is_oauth": False,
            "is_user_created": True,
            "metadata": None,
            "most_recent_job_guid": job.guid,
            "name": f"Bank {member.institution}",
            "successfully_aggregated_at": self._text(max(succeeded)) if succeeded else None,
            "use_cases": ["PFM"],
            "user_guid": f"USR-{user}",
        }

    def job(self, user, guid):
        """The record of a job, or None where this user has no such job."""
        for member in self.users[user]:
            for job in member.jobs:
                if job.guid == guid:
                    finished = self._text(job.ended) if job.ended <= self.now() else None
                    return {
                        "job": {"guid": guid, "started_at": self._text(job.started), "finished_at": finished}
                    }
        return None

    def jobs(self):
        """The last job of every member that was started here, by guid of the member."""
        return {
            member.guid: member.jobs[-1]
            for members in self.users.values()
            for member in members
            if len(member.jobs) > 1
        }

    def _text(self, seconds):
        return datetime.fromtimestamp(seconds + self.skew, UTC).isoformat(timespec="microseconds")


class Call:
    """One request under the server's hands: what a `Deed` works with."""

    def __init__(self, server, arrival, reader, writer):
        self.server, self.arrival, self._reader, self._writer = server, arrival, reader, writer

    async def answer(self):
        """What a healthy Nexus says."""
        status, value = self.server.outcome(self.arrival)
        await self.say(status, json.dumps(value).encode())

    async def say(self, status, body=b"", *, also=(), kind=MEDIA_TYPE):
        """A whole reply; ``also`` are further header lines."""
        self.arrival.status = status
        self.arrival.told_when = any(line.lower().startswith("retry-after:") for line in also)
        lines = [
            f"HTTP/1.1 {status} Status",
            f"Content-Length: {len(body)}",
            f"Date: {_http_date(self.server.skew)}",
            *also,
        ]
        lines += [f"Content-Type: {kind}"] * (kind is not None)
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def send(self, data):
        self._writer.write(data)
        await self._writer.drain()

    def close(self):
        self._writer.close()

    def reset(self):
        """End the connection with RST."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def hang(self):
        """Say nothing until the client hangs up."""
        await self._reader.read(1)


Deed = Callable[[Call], Awaitable[None]]


def _http_date(skew):
    return (datetime.now(UTC) + timedelta(seconds=skew)).strftime("%a, %d %b %Y %H:%M:%S GMT")


def say(status, body=b"", *, also=(), kind=MEDIA_TYPE):
    async def deed(call):
        await call.say(status, body, also=also, kind=kind)

    return deed


def error(status, code=None, *, also=()):
    """A refusal as Nexus words it."""
    body = json.dumps({"error": {"code": code, "message": "no"}}).encode()
    return say(status, body, also=also)


def raw(data, *, then="close"):
    """Any bytes at all as the reply, and then ``close``, ``reset``, ``hang`` or ``stay``."""

    async def deed(call):
        await call.send(data)
        if then == "hang":
            await call.hang()
        elif then != "stay":
            getattr(call, then)()

    return deed


async def close(call):
    call.close()


async def reset(call):
    call.reset()


async def hang(call):
    await call.hang()


async def answer(call):
    await call.answer()


def acting(deed):
    """Do what was asked, then this instead of the answer."""

    async def done(call):
        call.server.outcome(call.arrival)
        await deed(call)

    return done


def cut(part):
    """The true answer, broken off in the middle of its ``head`` or its ``body``."""

    async def deed(call):
        status, value = call.server.outcome(call.arrival)
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} OK\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        await call.send(head[: len(head) // 2] if part == "head" else head + body[: len(body) // 2])
        call.reset()

    return deed


def after(seconds, deed=answer):
    async def late(call):
        await asyncio.sleep(seconds)
        await deed(call)

    return late


def drip(seconds):
    """The true answer, a byte at a time."""

    async def deed(call):
        status, value = call.server.outcome(call.arrival)
        body = json.dumps(value).encode()
        await call.send(f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        for byte in body:
            await call.send(bytes([byte]))
            await asyncio.sleep(seconds)

    return deed


@dataclass
class FaultServer:
    """A Nexus on loopback; a context manager.

    Parameters
    ----------
    users, members, seed
        Of its bank; ``bank`` has what else is to be said of it.
    speed
        Of the run's clock.
    fault
        ``fault(arrival)`` → a `Deed` or None; called on the server's thread, in order of arrival.
    latency
        Real seconds before each answer.
    idle
        Real seconds after which a connection without a request is closed, as balancers do.
    skew
        How far the server's clock is off, in seconds: the ``Date`` of its replies and every time in its records.
    tls
        An `ssl.SSLContext`, to be a server of https.
    """

    users: int = 1
    members: int = 2
    seed: int = 0
    speed: float = 100.0
    fault: Callable[[Arrival], Deed | None] = lambda _: None
    latency: float = 0.0
    idle: float | None = None
    skew: float = 0.0
    tls: ssl.SSLContext | None = None
    bank_options: dict = field(default_factory=dict)

    def __post_init__(self):
        self.clock = Clock(time.time(), time.time(), self.speed)
        self.bank = Bank(
            self.users, self.members, self.seed, self.clock.steady(), skew=self.skew, **self.bank_options
        )
        self.arrivals = []
        self.open = 0
        self.connections = 0
        self.most_at_once = 0
        self._at_once = 0
        self._nth = Counter()
        self._timers = []
        self._began = time.monotonic()

    def __enter__(self):
        ready = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="fault-server", daemon=True)
        self._thread.start()
        ready.result(10)
        return self

    def __exit__(self, *_):
        for timer in self._timers:
            timer.cancel()
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def _run(self, ready):
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._serve(ready))

    async def _serve(self, ready):
        self._over = asyncio.Event()
        self._tasks = set()
        self.port = 0
        await self._listen()
        ready.set_result(None)
        await self._over.wait()
        await self._deafen()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self):
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, limit=2**20, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _deafen(self):
        for each in self._server.sockets:
            self._loop.remove_reader(each.fileno())
        await asyncio.sleep(0)  # asyncio cannot close what it has accepted but not yet attached to its server
        self._server.close()
        for task in self._tasks:
            task.cancel()

    def down(self):
        """Refuse connections and end those there are."""
        asyncio.run_coroutine_threadsafe(self._deafen(), self._loop).result(10)

    def up(self):
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def later(self, seconds, what):
        """Call `what` on a thread of its own, some real seconds after the first request; to be said before it."""
        assert not self.arrivals
        timer = threading.Timer(seconds, what)
        timer.daemon = True
        self._timers.append(timer)

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def elapsed(self):
        return time.monotonic() - self._began

    @property
    def at_once(self):
        """Requests under the server's hands now."""
        return self._at_once

    def settings(self, **known):
        defaults = {
            "base_url": self.url,
            "clock": self.clock,
            "reply_timeout_seconds": 10.0,
            "seed": self.seed,
        }
        return Settings(**defaults | known)

    def tokens(self):
        """A list: sessions that cannot be renewed."""
        return [SessionToken(self.bank.session(user), user=user) for user in self.bank.users]

    def source(self):
        """A source that makes a session for each user when its turn comes, and again."""
        return minted(list(self.bank.users), lambda user: SessionToken(self.bank.session(user)))

    def count(self, endpoint=None):
        """Arrivals by endpoint, or of one endpoint by user."""
        if endpoint is None:
            return Counter(each.endpoint for each in self.arrivals)
        return Counter(each.user for each in self.arrivals if each.endpoint == endpoint)

    def outcome(self, arrival):
        """Status and value of the true answer; a start has its effect here, once."""
        user = arrival.user
        if user is None:
            return 401, {"error": {"code": 4011, "message": "the session has expired"}}
        if arrival.endpoint == "aggregate_all":
            arrival.acted = self.bank.start(user)
            return 200, {"members": self.bank.members(user)}
        if arrival.endpoint == "list_members":
            return 200, {"members": self.bank.members(user)}
        if arrival.endpoint == "read_job":
            job = self.bank.job(user, arrival.target.rpartition("/")[2])
            return (200, job) if job else (404, {"error": {"code": 4040, "message": "no such job"}})
        return 404, {"error": {"code": 4040, "message": "no such thing"}}

    async def _connected(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        self.open += 1
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the client hung up or was idle, or the server is going down
        finally:
            self._tasks.discard(task)
            self.open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _converse(self, reader, writer):
        is_reused = False
        while not writer.is_closing():
            async with asyncio.timeout(self.idle):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")[:-2]
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            arrival = self._arrived(first.split(" ")[1], headers, body, is_reused)
            is_reused = True
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                if self.latency:
                    await asyncio.sleep(self.latency)
                await (self.fault(arrival) or answer)(Call(self, arrival, reader, writer))
            finally:
                self._at_once -= 1

    def _arrived(self, target, headers, body, is_reused):
        user = self.bank.sessions.get(headers.get("md-session-token"))
        endpoint = next((name for name, form in _ENDPOINTS if form.search(target)), "other")
        self._nth[user, endpoint] += 1
        nth = self._nth[user, endpoint]
        arrival = Arrival(user, endpoint, nth, self.elapsed, target, headers, body, is_reused)
        if not self.arrivals:
            for timer in self._timers:
                timer.start()
        self.arrivals.append(arrival)
        return arrival


def some(share, deed, *, endpoint, seed=0, nth=(1,)):
    """A fault for a seeded share of users, at one endpoint, at the nth request of each."""

    def fault(arrival):
        chosen = random.Random(f"{seed}{arrival.user}").random() < share
        return deed if chosen and arrival.endpoint == endpoint and arrival.nth in nth else None

    return fault


def by_chance(share, deed, *, seed=0):
    """A fault for a seeded share of all requests, whatever order they arrive in."""

    def fault(arrival):
        rng = random.Random(f"{seed}{arrival.user}{arrival.endpoint}{arrival.nth}")
        return deed if rng.random() < share else None

    return fault
