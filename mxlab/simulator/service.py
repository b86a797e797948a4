"""The API over a world: what each request gets, and what was received.

Paths, headers, roots and refusals are those of MX's SSO, Nexus and session pages; what they leave open is a switch of
`Parameters`.
"""

import asyncio
import contextlib
import email.utils
import json
import os
import secrets
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import msgspec
from aiohttp import web

from mxlab.errors import ConfigError
from mxlab.simulator.faults import Dice, Fault, Faults, Shape
from mxlab.simulator.records import Records
from mxlab.simulator.world import Member, World

#: The one partner key that the simulator accepts; it is no secret.
API_KEY = "simulated-api-key"

#: The header that every reply carries, so that no figure of a simulation passes for a real one.
SIMULATED = "MXLAB-Simulated"

NEXUS_TYPE = "application/vnd.mx.nexus.v1+json"
SSO_TYPE = "application/vnd.moneydesktop.sso.v3+json"

_ENDPOINTS = (
    "api_token", "create_session", "aggregate_all", "aggregate_one", "list_members", "read_member", "read_job",
    "verify_member", "resume_member",
)  # fmt: skip
_FLAGS = ("include_holdings", "include_transactions")


class Refusal(Exception):
    """A request that the API refuses: HTTP status, error code, message."""

    def __init__(self, status: int, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        # 4001, 4011 and 4220 are documented; the other codes are a guess in their manner
        self.code = code or status * 10


class Call(NamedTuple):
    """What a request asks for: endpoint, its argument (a guid), query and body as they came."""

    endpoint: str
    argument: str
    query: str
    body: bytes


class Session:
    """One user's session: its user's index and when it ends (Unix time of the simulation)."""

    __slots__ = ("ends_at", "user")

    def __init__(self, user: int, ends_at: float) -> None:
        self.user = user
        self.ends_at = ends_at


class Arrivals:
    """What the server received, counted before any fault acts."""

    def __init__(self) -> None:
        self.by_endpoint: Counter[str] = Counter(dict.fromkeys(_ENDPOINTS, 0))
        self.aggregate_by_user: Counter[int] = Counter()
        self.acted_by_user: Counter[int] = Counter()
        self.refused_by_endpoint: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0


class Nexus:
    """A world behind HTTP: the answer to each request.

    Parameters
    ----------
    world
        The world to serve.
    now
        Gives the simulation's Unix time.
    client_id
        The partner's name in the SSO path.
    control_key
        The word that opens the control path; random by default.
    """

    def __init__(
        self,
        world: World,
        now: Callable[[], float],
        *,
        client_id: str = "sim",
        control_key: str | None = None,
    ) -> None:
        self.world = world
        self._clock, self._skipped = now, 0.0
        self.client_id = client_id
        self.control_key = control_key or secrets.token_urlsafe(18)
        self.arrivals = Arrivals()
        self._records = Records(world)
        self._sessions: dict[str, Session] = {}
        self._api_tokens: dict[str, tuple[int, float]] = {}
        self._dice: Dice | None = None
        self._faults_end_at = 0.0
        self._calls: dict[str, Callable[[Session, Call], bytes]] = {
            "aggregate_all": self._aggregate_all,
            "aggregate_one": self._aggregate_one,
            "list_members": self._list_members,
            "read_member": self._read_member,
            "read_job": self._read_job,
            "verify_member": self._verify_member,
            "resume_member": self._resume_member,
        }

    def now(self) -> float:
        """The Unix time of the simulation, all that was skipped included."""
        return self._clock() + self._skipped

    def skip(self, seconds: Any) -> None:
        """Let this much simulated time go by at once."""
        if not isinstance(seconds, int | float) or not seconds >= 0:
            raise ConfigError(f"skip: seconds is {seconds!r}: must be a number, and not negative")
        self._skipped += seconds

    def set_faults(self, faults: Faults) -> None:
        """Let these faults strike from now on, in place of all earlier ones."""
        idle = not faults.rates and not (
            faults.latency_seconds or faults.in_flight_limit or faults.date_offset_seconds
        )
        self._dice = None if idle else Dice(faults)
        self._faults_end_at = time.monotonic() + faults.for_seconds

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The reply to one request."""
        path, _, query = request.raw_path.partition("?")
        if path.startswith("/_control/"):
            return await self._control(request, path)
        arrivals = self.arrivals
        arrivals.in_flight += 1
        arrivals.most_in_flight = max(arrivals.most_in_flight, arrivals.in_flight)
        try:
            body = await request.read() if request.can_read_body else b""
            call = Call(*_route(request.method, path), query, body)
            arrivals.by_endpoint[call.endpoint] += 1
            session = self._sessions.get(request.headers.get("MD-SESSION-TOKEN", ""))
            if session is not None and call.endpoint == "aggregate_all":
                arrivals.aggregate_by_user[session.user] += 1
            if self._dice is None:
                return self._answer(request, session, call)
            return await self._answer_with_faults(self._dice, request, session, call)
        finally:
            arrivals.in_flight -= 1

    async def _answer_with_faults(
        self, dice: Dice, request: web.BaseRequest, session: Session | None, call: Call
    ) -> web.StreamResponse:
        """The reply to a request after limit, delay and fault."""
        faults, refused = dice.faults, self.arrivals.refused_by_endpoint
        if time.monotonic() >= self._faults_end_at:
            self._dice = None
            return self._answer(request, session, call)
        if faults.in_flight_limit and self.arrivals.in_flight > faults.in_flight_limit:
            refused[call.endpoint] += 1
            return self._refuse(Refusal(429, "Too many requests at once."))
        fault, name, uniform, delay = dice.throw(-1 if session is None else session.user, call.endpoint)
        if delay:
            await asyncio.sleep(delay)
        if name == "session_expired":
            fault = None
            if session is not None:
                session.ends_at = 0.0
        true = b""
        if fault is None or fault.acts:
            reply = self._answer(request, session, call)
            if faults.date_offset_seconds:
                date = time.time() + faults.date_offset_seconds
                reply.headers["Date"] = email.utils.formatdate(date, usegmt=True)
            if fault is None or reply.status >= 400:
                return reply
            assert isinstance(reply.body, bytes)
            true = reply.body
        if fault.refuses:
            refused[call.endpoint] += 1
        await _misbehave(request, fault, fault.write(Shape(true, uniform, faults)))
        return web.Response()  # to a connection that is gone

    def _answer(self, request: web.BaseRequest, session: Session | None, call: Call) -> web.Response:
        """The API's own reply."""
        try:
            match call.endpoint:
                case "unknown":
                    raise Refusal(404, "There is nothing at this path.")
                case "wrong_method":
                    raise Refusal(405, "This path does not take this method.")
                case "api_token":
                    return _reply(self._api_token(request, call), type_=SSO_TYPE)
                case "create_session":
                    made = self._create_session(request, call)
                    return _reply(made, status=self.world.parameters.session_status_code)
            return _reply(self._calls[call.endpoint](self._renewed(session), call))
        except Refusal as refusal:
            self.arrivals.refused_by_endpoint[call.endpoint] += 1
            return self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> web.Response:
        body = {"code": refusal.code, "message": str(refusal)}
        flat = self.world.parameters.error_envelope == "flat"
        return _reply(json.dumps(body if flat else {"error": body}).encode(), status=refusal.status)

    # SSO and sessions

    def _api_token(self, request: web.BaseRequest, call: Call) -> bytes:
        client_id, _, user_id = call.argument.partition("/")
        if request.headers.get("MD-API-KEY") != API_KEY:
            raise Refusal(401, "The API key is not valid.")
        user = self.world.user_ids().find(unquote(user_id))
        if client_id != self.client_id or user is None:
            raise Refusal(404, "There is no such user.")
        token = secrets.token_urlsafe(64)
        self._api_tokens[token] = user, self.now() + self.world.parameters.api_token_seconds
        return b'{"api_token":{"token":"%s"}}' % token.encode()

    def _create_session(self, request: web.BaseRequest, call: Call) -> bytes:
        token = request.headers.get("MD-API-TOKEN")
        if not token:
            raise Refusal(401, "The MD-API-TOKEN header is missing.")
        asked = _json_object(call.body).get("session", {})
        if not isinstance(asked, dict) or not isinstance(asked.get("skip_aggregation", False), bool):
            raise Refusal(400, "session.skip_aggregation must be true or false.", code=4001)
        user, ends_at = self._api_tokens.pop(token, (-1, 0.0))
        now = self.now()
        if now >= ends_at:
            raise Refusal(
                self.world.parameters.spent_token_status_code, "The API token was used or is too old."
            )
        if not asked.get("skip_aggregation", False):
            self.world.aggregate(self.world.members(user, now), now)
        return b'{"session":{"token":"%s"}}' % self.open_session(user).encode()

    def open_session(self, user: int) -> str:
        """A session token for the user at an index, minted without SSO and without starting anything."""
        token = secrets.token_urlsafe(64)
        self._sessions[token] = Session(user, self.now() + self.world.parameters.session_seconds)
        return token

    def _renewed(self, session: Session | None) -> Session:
        """The session that a request came with, good for another 30 minutes."""
        if session is None:
            raise Refusal(401, "The session token is missing or not valid.")
        now = self.now()
        if now >= session.ends_at:
            raise Refusal(
                self.world.parameters.expired_status_code, "The session token has expired.", code=4011
            )
        session.ends_at = now + self.world.parameters.session_seconds
        return session

    # Members and jobs

    def _aggregate_all(self, session: Session, call: Call) -> bytes:
        now, world = self.now(), self.world
        members = world.members(session.user, now)
        flags = _flags(call.query, call.body)
        barred = sum(not member.pfm for member in members)
        if barred and (world.parameters.forbidden == "whole_call" or barred == len(members)):
            raise Refusal(403, "The use case of a member is not PFM.")
        begun = world.aggregate(members, now, holdings=flags[0], transactions=flags[1])
        if begun:
            self.arrivals.acted_by_user[session.user] += 1
        if world.parameters.throttled_body == "omitted":
            members = [job.member for job in begun]
        return b'{"members":[%s]}' % self._records.members(members, now)

    def _aggregate_one(self, session: Session, call: Call) -> bytes:
        now, member = self.now(), self._own(session, call.argument)
        flags = _flags(call.query, call.body)
        if not member.pfm:
            raise Refusal(403, "The use case of the member is not PFM.")
        self.world.aggregate([member], now, holdings=flags[0], transactions=flags[1])
        return b'{"member":%s}' % self._records.member(member, now)

    def _list_members(self, session: Session, call: Call) -> bytes:
        p, now = self.world.parameters, self.now()
        members = self.world.members(session.user, now)
        found, page, size = len(members), 1, max(1, len(members))
        if p.pages:
            page, size = _page(call.query)
            members = members[(page - 1) * size : page * size]
        pages = -(-found // size)
        block = b""
        if p.pagination_block == "pagination_data":
            block = b',"pagination_data":{"current_page":%d,"records_on_current_page":%d,"total_pages":%d,"total_records_found":%d}'
            block %= (page, len(members), pages, found)
        elif p.pagination_block == "pagination":
            block = b',"pagination":{"current_page":%d,"per_page":%d,"total_entries":%d,"total_pages":%d}'
            block %= (page, size, found, pages)
        return b'{"%s":[%s]%s}' % (p.list_root.encode(), self._records.members(members, now), block)

    def _read_member(self, session: Session, call: Call) -> bytes:
        member = self._own(session, call.argument)
        return b'{"member":%s}' % self._records.member(member, self.now())

    def _read_job(self, session: Session, call: Call) -> bytes:
        job = self.world.job(call.argument, self.now())
        if job is None or job.member.user != session.user:
            raise Refusal(self.world.parameters.foreign_status_code, "There is no such job.")
        return json.dumps({"job": self._records.job(job)}).encode()

    def _verify_member(self, session: Session, call: Call) -> bytes:
        member, now = self._own(session, call.argument), self.now()
        self.world.verify(member, now)
        return b'{"member":%s}' % self._records.member(member, now)

    def _resume_member(self, session: Session, call: Call) -> bytes:
        member, now = self._own(session, call.argument), self.now()
        if not self.world.answer(member, now):
            raise Refusal(405, "Only a CHALLENGED member can be resumed.")
        return b'{"member":%s}' % self._records.member(member, now)

    def _own(self, session: Session, guid: str) -> Member:
        member = self.world.member(guid, self.now())
        if member is None or member.user != session.user:
            raise Refusal(self.world.parameters.foreign_status_code, "There is no such member.")
        return member

    # Control

    async def _control(self, request: web.BaseRequest, path: str) -> web.Response:
        """The reply on the path that no API has."""
        given = request.headers.get("MXLAB-Control-Key", "").encode()
        if not secrets.compare_digest(given, self.control_key.encode()):
            return self._refuse(Refusal(404, "There is nothing at this path."))
        body = await request.read()
        try:
            known = self._controlled(request.method, path.removeprefix("/_control/"), _json_object(body))
        except Refusal as refusal:
            return self._refuse(refusal)
        except ConfigError as error:
            return self._refuse(Refusal(400, str(error)))
        return _reply(msgspec.json.encode(known), type_="application/json")

    def _controlled(self, method: str, what: str, asked: dict[str, Any]) -> object:
        match method, what:
            case "GET", "truth":
                return self.world.truth(self.now())
            case "GET", "arrivals":
                return self.received()
            case "POST", "faults":
                self.set_faults(Faults.of(asked))
                return {}
            case "POST", "skip":
                self.skip(asked.get("seconds"))
                return {}
            case "POST", "sessions":
                user = self.world.user_ids().find(str(asked.get("user_id")))
                if user is None:
                    raise Refusal(404, "There is no such user.")
                return {"token": self.open_session(user)}
        raise Refusal(404, "There is nothing at this path.")

    def received(self) -> dict[str, Any]:
        """What arrived, by endpoint and user; what of it was refused; the most requests handled at once."""
        got, ids = self.arrivals, self.world.user_ids()
        return {
            "by_endpoint": {name: count for name, count in got.by_endpoint.items() if name in _ENDPOINTS},
            "aggregate_by_user": {ids[user]: count for user, count in got.aggregate_by_user.items()},
            "acted_by_user": {ids[user]: count for user, count in got.acted_by_user.items()},
            "refused_by_endpoint": dict(got.refused_by_endpoint),
            "most_in_flight": got.most_in_flight,
            "total": got.by_endpoint.total(),
        }


_MEMBER_VERBS = {
    ("GET", "aggregate"): "aggregate_one",
    ("GET", "refresh"): "aggregate_one",
    ("POST", "verify"): "verify_member",
    ("PUT", "resume"): "resume_member",
}
_PLAIN = {
    "/members/aggregate": "aggregate_all",
    "/members/refresh": "aggregate_all",
    "/members": "list_members",
}


def _route(method: str, path: str) -> tuple[str, str]:
    """Endpoint and argument of a request; ``unknown`` for another path, ``wrong_method`` for another verb."""
    path = path.removesuffix(".json")
    if path in _PLAIN:
        return (_PLAIN[path] if method == "GET" else "wrong_method"), ""
    if path == "/sessions":
        return ("create_session" if method == "POST" else "wrong_method"), ""
    parts = path[1:].split("/")
    match parts:
        case ["members", guid]:
            return ("read_member" if method == "GET" else "wrong_method"), guid
        case ["jobs", guid]:
            return ("read_job" if method == "GET" else "wrong_method"), guid
        case ["members", guid, verb] if any(verb == known for _, known in _MEMBER_VERBS):
            return _MEMBER_VERBS.get((method, verb), "wrong_method"), guid
        case [client_id, "users", user_id, "api_token"]:
            return ("api_token" if method == "GET" else "wrong_method"), f"{client_id}/{user_id}"
    return "unknown", ""


def _json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body; an empty body is an empty object."""
    try:
        parsed = json.loads(body or b"{}")
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise Refusal(400, "The body is not a JSON object.", code=4001)
    return parsed


def _flags(query: str, body: bytes) -> tuple[bool, bool]:
    """``include_holdings`` and ``include_transactions`` from the body, else the query; both default to true."""
    if not query and not body:
        return True, True
    asked = _json_object(body)
    words = {name: values[-1].lower() for name, values in parse_qs(query).items() if name in _FLAGS}
    flags = []
    for name in _FLAGS:
        flag = asked.get(name, {"true": True, "false": False}.get(words.get(name, "true")))
        if not isinstance(flag, bool):
            raise Refusal(400, f"{name} must be true or false.", code=4001)
        flags.append(flag)
    return flags[0], flags[1]


def _page(query: str) -> tuple[int, int]:
    """Page number and size: 1 and 25 unless asked for 10 to 1,000 records; anything else counts as not asked."""
    asked = parse_qs(query)

    def number(name: str, least: int, most: int, default: int) -> int:
        text = asked.get(name, [""])[-1]
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default
        return value if least <= value <= most else default

    return number("page", 1, 10**9, 1), number("records_per_page", 10, 1_000, 25)


def _reply(body: bytes, *, status: int = 200, type_: str = NEXUS_TYPE) -> web.Response:
    return web.Response(body=body, status=status, headers={SIMULATED: "true", "Content-Type": type_})


async def _misbehave(request: web.BaseRequest, fault: Fault, payload: bytes) -> None:
    """Write a fault's bytes to the socket and end the connection as it says."""
    transport = request.transport
    if transport is None:
        return
    slices = [payload] if fault.ending != "drip" else [bytes([byte]) for byte in payload]
    for piece in slices:
        transport.write(piece)
        await asyncio.sleep(0.2 if fault.ending == "drip" else 0)
        if transport.is_closing():
            return
    if fault.ending == "silence":
        await _closed(transport)
    if fault.ending == "reset":
        connection = transport.get_extra_info("socket")
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


async def _closed(transport: asyncio.Transport) -> None:
    while not transport.is_closing():  # noqa: ASYNC110 - a transport tells nobody that its peer has left
        await asyncio.sleep(0.1)
