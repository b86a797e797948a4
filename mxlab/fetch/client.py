"""`NexusClient`: one call in, one `Exchange` out; `Wire`: the rules that every request here obeys.

A GET that starts work must not be sent twice by accident, and a session token must not travel. So: aiohttp's own
re-sending of a GET is stopped (client_reqrep "retry_persistent_connection" repeats a GET when the connection
drops, even a fresh one), whether a request left is told by the request and not by the exception, redirects
are never followed, cookies are not kept, bodies are read bounded and undecoded, and no exception of aiohttp,
which would hold the headers, leaves this module.
"""

import asyncio
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import NoReturn, Self

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from mxlab.errors import BadReply, ConfigError, ConnectFailed, ConnectionLost, NexusError, ReplyTimeout
from mxlab.exchange import Exchange
from mxlab.nexus.members import Reject
from mxlab.nexus.protocol import (
    LIST_MEMBERS,
    MEDIA_TYPE,
    MOST_WIRE_BYTES,
    RECORDS_PER_PAGE,
    SIMULATED_HEADER,
    Endpoint,
    read_reply,
    rejected,
    request_body,
)
from mxlab.settings import Settings
from mxlab.tokens import SessionToken

if sys.platform != "win32":
    import resource

_OTHER_FILES = 100
_LARGE_BYTES = (
    128 * 2**10
)  # reading more would hold up the loop; one at a time, or memory would not be bounded


class _DroppedError(Exception):
    """The connection ended; not one of aiohttp's errors, so that aiohttp does not send again."""


_DROPS = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@dataclass(slots=True)
class Sent:
    """What is known of a request that was handed to the network."""

    left: bool = False
    seconds: float = 0.0
    status: int | None = None
    headers: Mapping[str, str] | None = None
    body: bytes = b""


#: What this task sends. A trace and a middleware could tell it too, and take a fifth of a request's time.
_sending: ContextVar[Sent] = ContextVar("_sending")


class _Request(aiohttp.ClientRequest):
    """Says that it leaves."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        _sending.get().left = True
        try:
            return await super().send(conn)
        except _DROPS:
            raise _DroppedError from None


class _Response(aiohttp.ClientResponse):
    """Says that its connection ended before its head came."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        try:
            return await super().start(connection)
        except _DROPS:
            raise _DroppedError from None


class Wire:
    """An open HTTP session that obeys the rules above; an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> Self:
        _make_room(self._settings.concurrency + _OTHER_FILES)
        trusted: ssl.SSLContext | bool = True
        if self._settings.ca_file:
            trusted = ssl.create_default_context()
            trusted.load_verify_locations(self._settings.ca_file)
        self._connector = aiohttp.TCPConnector(
            limit=self._settings.concurrency + 10,  # the gate comes first: the pool never queues
            ttl_dns_cache=300,
            keepalive_timeout=50,
            resolver=aiohttp.ThreadedResolver(),
            ssl=trusted,
        )
        self._http = aiohttp.ClientSession(
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=self._settings.reply_timeout_seconds, sock_connect=10),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            request_class=_Request,
            response_class=_Response,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def send(
        self, sent: Sent, method: str, url: URL, headers: dict[str, str], body: bytes | None
    ) -> None:
        """Send a request once and fill in `sent`.

        Raises
        ------
        NexusError
            Why there is no reply: `ConnectFailed`, `ReplyTimeout`, `ConnectionLost` or `BadReply`.
        """
        started = time.perf_counter()
        failure: NexusError | None = None
        _sending.set(sent)
        try:
            async with self._http.request(
                method, url, headers=headers, data=body, allow_redirects=False
            ) as response:
                sent.status, sent.headers = response.status, response.headers
                await _read_bounded(response, sent)
        except (aiohttp.ClientError, _DroppedError, BadReply, OSError, ValueError) as error:
            failure = _failure(error, sent)
        except BaseException as error:
            raise error.with_traceback(None) from None  # frames of aiohttp hold the headers
        finally:
            headers.clear()  # and so do the frames from here up
        sent.seconds = time.perf_counter() - started
        if failure is not None:
            if isinstance(failure, ConnectFailed):  # the name may stand for another address by now
                self._connector.clear_dns_cache()
            raise failure


def _make_room(files: int) -> None:
    """Let this process open so many files, within what the machine allows it."""
    if sys.platform == "win32":  # no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= files or soft == resource.RLIM_INFINITY:
        return
    if hard < files and hard != resource.RLIM_INFINITY:
        raise ConfigError(
            f"concurrency: {files - _OTHER_FILES} connections need {files} open files, and this machine allows the process "
            f"{hard}: lower concurrency, or raise the limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


async def _read_bounded(response: aiohttp.ClientResponse, sent: Sent) -> None:
    if (response.content_length or 0) > MOST_WIRE_BYTES:
        _too_large(response)
    content = response.content
    chunks = []
    size = 0
    try:
        while not content.at_eof():
            chunk = await content.readany()
            chunks.append(chunk)
            size += len(chunk)
            if size > MOST_WIRE_BYTES:
                _too_large(response)
    finally:
        sent.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(response: aiohttp.ClientResponse) -> NoReturn:
    response.close()
    raise BadReply(f"the reply is larger than {MOST_WIRE_BYTES} bytes", reason="too_large")


def _failure(error: Exception, sent: Sent) -> NexusError:
    """Our error for one of the network's: what counts is whether the request left."""
    if isinstance(error, BadReply):
        return error
    if not sent.left:
        return ConnectFailed(f"could not connect: {type(error).__name__}")
    if isinstance(error, TimeoutError):
        return ReplyTimeout("no reply in time")
    if isinstance(error, aiohttp.ClientResponseError):
        return BadReply("the head of the reply is not HTTP", reason="headers")
    return ConnectionLost("the connection ended before the reply did")


class NexusClient:
    """Calls of Nexus for any user; an async context manager.

    Parameters
    ----------
    settings
        Its base_url, timeouts and flags.
    now
        Tells the run's time.
    """

    def __init__(self, settings: Settings, now: Callable[[], float]) -> None:
        self._settings = settings
        self._now = now
        self._wire = Wire(settings)
        self._reading = asyncio.Lock()
        self._list_url = self._url(f"/members?records_per_page={RECORDS_PER_PAGE}")

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wire.__aexit__(kind, error, trace)

    def _url(self, path: str) -> URL:
        return URL(self._settings.base_url + path, encoded=True)

    async def call(
        self,
        endpoint: Endpoint,
        token: SessionToken,
        session: str,
        *,
        guid: str = "",
        page: int = 1,
        attempt: int = 1,
        queued_seconds: float = 0.0,
    ) -> Exchange:
        """One attempt at a request. Whatever comes of it is in the Exchange; only bugs are raised."""
        sent = Sent()
        sent_at = self._now()
        error: NexusError | None = None
        reply = None
        rejects: list[Reject] = []
        try:
            await self._send(sent, endpoint, token, guid, page)
            assert sent.status is not None
            assert sent.headers is not None
            read = partial(read_reply, endpoint, sent.status, sent.headers, sent.body, page=page)
            if len(sent.body) < _LARGE_BYTES:
                reply = read()
            else:
                async with self._reading:
                    reply = await asyncio.to_thread(read)
            rejects = reply.rejects
        except NexusError as failure:
            failure.session = session
            error = failure.with_traceback(None)
            error.__context__ = None  # its frames would hold the body for as long as the Exchange is kept
            if isinstance(failure, BadReply):
                rejects = [rejected(failure.reason, sent.body)]
            elif isinstance(failure, ConnectionLost) and sent.body:
                rejects = [rejected("short_body", sent.body)]
        return Exchange(
            endpoint.name,
            session,
            token.user,
            attempt,
            sent_at,
            self._now(),
            sent.left,
            queued_seconds,
            sent.seconds,
            sent.status,
            error,
            len(sent.body),
            reply,
            rejects,
            [],
            sent.headers is not None and SIMULATED_HEADER in sent.headers,
        )

    async def _send(self, sent: Sent, endpoint: Endpoint, token: SessionToken, guid: str, page: int) -> None:
        if endpoint is LIST_MEMBERS:
            url = self._list_url if page == 1 else self._list_url.update_query(page=page)
        else:
            url = self._url(endpoint.path.format(guid=guid))
        body = request_body(
            endpoint,
            holdings=self._settings.include_holdings,
            transactions=self._settings.include_transactions,
        )
        headers = {"Accept": MEDIA_TYPE, "Accept-Encoding": "gzip", "MD-SESSION-TOKEN": token.reveal()}
        if body is not None:
            headers["Content-Type"] = MEDIA_TYPE
        await self._wire.send(sent, "GET", url, headers, body)
