"""What can go wrong between a request and its reply, at settable rates.

A fault acts after the request was read and counted. Some faults keep the API from acting, others let it act and
spoil or lose its reply: `Fault.acts` says which. Spoiled replies are written to the socket as raw bytes, since no
HTTP library agrees to send them.
"""

import functools
import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from statistics import NormalDist
from typing import Literal, NamedTuple

from mxlab.errors import ConfigError
from mxlab.simulator.guids import key
from mxlab.simulator.parameters import nearest

_TYPE = "application/vnd.mx.nexus.v1+json"
_PAGE = b"<!doctype html><html><title>Sign in</title><body><form>Please sign in to the network</form></body></html>"
_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 302: "Found", 403: "Forbidden", 409: "Conflict",
            429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable",
            504: "Gateway Timeout"}  # fmt: skip

#: Values of Retry-After that a client must survive.
ODD_RETRY_AFTER = (
    "5",
    "0",
    "-1",
    "1e9",
    "abc",
    "",
    "2.5",
    "Wed, 21 Oct 2015 07:28:00 GMT",
    "5, 10",
    "0x10",
    "∞",
    " 7 ",
)

#: How a connection ends after a fault: an orderly close, an RST, nothing at all until the caller leaves, or an
#: orderly close after a byte every 200 ms.
Ending = Literal["close", "reset", "silence", "drip"]


class Shape(NamedTuple):
    """What a fault makes its bytes from.

    Attributes
    ----------
    body
        The reply's true body; empty where the API did not act.
    uniform
        A random number of this fault, 0…1.
    faults
        The figures in force.
    """

    body: bytes
    uniform: float
    faults: "Faults"


class Fault(NamedTuple):
    """One way to go wrong.

    Attributes
    ----------
    acts
        Whether the API acts on the request before.
    write
        The bytes to write to the socket before the connection ends.
    ending
        How it ends.
    refuses
        Whether this is an answer that says no.
    """

    acts: bool
    write: Callable[[Shape], bytes]
    ending: Ending = "close"
    refuses: bool = False


def raw(
    body: bytes, *, status: int = 200, length: int | None = -1, type_: str | None = _TYPE, more: str = ""
) -> bytes:
    """A whole HTTP reply as bytes; ``length`` None leaves Content-Length out, −1 makes it the true one."""
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Odd')}\r\nMXLAB-Simulated: true\r\nConnection: close\r\n"
    )
    if type_ is not None:
        head += f"Content-Type: {type_}\r\n"
    if length is not None:
        head += f"Content-Length: {len(body) if length < 0 else length}\r\n"
    return f"{head}{more}\r\n".encode() + body


def _nothing(_: Shape) -> bytes:
    return b""


def _no(status: int, *, retry: bool = False) -> Fault:
    """A refusal in the API's own form."""

    def write(shape: Shape) -> bytes:
        body = json.dumps({"error": {"code": status * 10, "message": "Not now."}}).encode()
        return raw(body, status=status, more=f"Retry-After: {shape.faults.retry_after}\r\n" if retry else "")

    return Fault(acts=False, write=write, refuses=True)


def _spoiled(write: Callable[[bytes], bytes]) -> Fault:
    """The API acts and its reply is spoiled."""
    return Fault(acts=True, write=lambda shape: write(shape.body))


def _odd_retry_after(shape: Shape) -> bytes:
    value = ODD_RETRY_AFTER[int(shape.uniform * len(ODD_RETRY_AFTER))]
    return raw(b"{}", status=429, more=f"Retry-After: {value}\r\n")


def _some_server_error(shape: Shape) -> bytes:
    status = (500, 502, 504)[int(shape.uniform * 3)]
    return raw(b'{"error":{"code":%d,"message":"Something went wrong."}}' % (status * 10), status=status)


def _some_html_error(shape: Shape) -> bytes:
    return raw(_PAGE, status=502 if shape.uniform < 0.5 else 503, type_="text/html; charset=utf-8")


def _zipped(body: bytes, more: bytes = b"") -> bytes:
    return raw(gzip.compress(body, 1) + more, more="Content-Encoding: gzip\r\n")


def _zipped_badly(body: bytes) -> bytes:
    packed = bytearray(gzip.compress(body, 1))
    packed[-8] ^= 0xFF
    return raw(bytes(packed), more="Content-Encoding: gzip\r\n")


@functools.cache
def _bomb() -> bytes:
    """512 MB of spaces in half a megabyte."""
    packer = zlib.compressobj(6, wbits=31)
    million = b" " * (1 << 20)
    packed = b"".join([packer.compress(million) for _ in range(512)]) + packer.flush()
    return raw(packed, more="Content-Encoding: gzip\r\n")


def _in_member(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """The reply with one thing replaced inside, once."""
    return lambda body: raw(body.replace(old, new, 1))


def _chunked(chunks: bytes) -> bytes:
    return raw(chunks, length=None, more="Transfer-Encoding: chunked\r\n")


#: Every fault by name (reliability page 7.2 and section 6 have the numbers in brackets).
FAULTS: Mapping[str, Fault] = {
    # the connection
    "close": Fault(acts=False, write=_nothing),  # F-03
    "reset": Fault(acts=False, write=_nothing, ending="reset"),  # F-04
    "silence": Fault(acts=False, write=_nothing, ending="silence"),  # F-17
    "lose_reply": Fault(acts=True, write=_nothing),  # F-05
    "lose_reply_reset": Fault(acts=True, write=_nothing, ending="reset"),
    "cut_headers": Fault(acts=True, write=lambda shape: raw(shape.body)[:40]),  # F-07
    "cut_body": Fault(acts=True, write=lambda shape: raw(shape.body)[: -max(1, len(shape.body) // 2)]),
    "drip": Fault(acts=True, write=lambda shape: raw(shape.body), ending="drip"),  # F-16
    # refusals
    "rate_limited": _no(429, retry=True),  # F-08
    "rate_limited_bare": _no(429),  # F-09
    "rate_limited_odd": Fault(acts=False, write=_odd_retry_after, refuses=True),  # F-10
    "unavailable": _no(503, retry=True),  # F-12
    "conflict": _no(409),
    "address_forbidden": _no(403),  # the caller's address is not on MX's list
    "server_error": Fault(acts=False, write=_some_server_error, refuses=True),  # F-11
    "server_error_after_acting": Fault(acts=True, write=_some_server_error),
    "html_error": Fault(acts=False, write=_some_html_error, refuses=True),  # F-19
    "html_forbidden": Fault(
        acts=False, write=lambda _: raw(_PAGE, status=403, type_="text/html"), refuses=True
    ),
    "redirect": Fault(
        acts=False,
        write=lambda shape: raw(b"", status=302, more=f"Location: {shape.faults.location}\r\n"),
        refuses=True,
    ),  # F-27
    "session_expired": Fault(
        acts=False, write=_nothing, refuses=True
    ),  # F-13: the session ends, then is refused
    # bodies (B-001 and on)
    "html_page": _spoiled(lambda _: raw(_PAGE, type_="text/html; charset=utf-8")),
    "empty_body": _spoiled(lambda _: raw(b"")),
    "no_content": _spoiled(lambda _: raw(b"", status=204, length=None)),
    "partial_content": _spoiled(lambda body: raw(body, status=206)),
    "type_absent": _spoiled(lambda body: raw(body, type_=None)),
    "type_json": _spoiled(lambda body: raw(body, type_="application/json")),
    "charset_utf16": _spoiled(
        lambda body: raw(body.decode().encode("utf-16"), type_=f"{_TYPE}; charset=utf-16")
    ),
    "charset_unknown": _spoiled(lambda body: raw(body, type_=f"{_TYPE}; charset=klingon")),
    "length_too_long": _spoiled(lambda body: raw(body, length=len(body) + 100)),
    "length_too_short": _spoiled(lambda body: raw(body, length=max(1, len(body) - 10))),
    "gzip_cut": _spoiled(lambda body: raw(gzip.compress(body, 1)[:-12], more="Content-Encoding: gzip\r\n")),
    "gzip_bad_crc": _spoiled(_zipped_badly),
    "gzip_trailing": _spoiled(lambda body: _zipped(body, b"junk after the end")),
    "gzip_twice": _spoiled(lambda body: _zipped(body, gzip.compress(body, 1))),
    "encoding_unknown": _spoiled(lambda body: raw(body, more="Content-Encoding: rot13\r\n")),
    "bomb": _spoiled(lambda _: _bomb()),
    "oversized": _spoiled(lambda body: raw(body + b" " * 9_000_000)),
    "endless": Fault(acts=True, write=lambda _: _chunked(b'5\r\n{"mem\r\n'), ending="silence"),
    "chunk_size_huge": _spoiled(lambda body: _chunked(b"ffffffffffff\r\n" + body)),
    "headers_huge": _spoiled(lambda body: raw(body, more=f"X-Long: {'x' * 9_000}\r\n")),
    "status_odd": _spoiled(lambda body: raw(body, status=999)),
    "not_json": _spoiled(lambda _: raw(b"OK")),
    "json_cut": _spoiled(lambda body: raw(body[: len(body) // 2])),
    "json_trailing": _spoiled(lambda body: raw(body + b"}]")),
    "byte_order_mark": _spoiled(lambda body: raw(b"\xef\xbb\xbf" + body)),
    "utf8_invalid": _spoiled(_in_member(b'"name":"', b'"name":"caf\xe9')),
    "surrogate": _spoiled(_in_member(b'"name":"', b'"name":"\\ud800')),
    "not_a_number": _spoiled(_in_member(b'"metadata":', b'"odd":NaN,"metadata":')),
    "number_infinite": _spoiled(_in_member(b'"metadata":', b'"odd":1e400,"metadata":')),
    "integer_huge": _spoiled(_in_member(b'"metadata":', b'"odd":' + b"9" * 5_000 + b',"metadata":')),
    "deep": _spoiled(lambda _: raw(b'{"members":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    "top_level_null": _spoiled(lambda _: raw(b"null")),
    "members_absent": _spoiled(lambda _: raw(b"{}")),
    "members_null": _spoiled(lambda _: raw(b'{"members":null}')),
    "members_object": _spoiled(lambda _: raw(b'{"members":{}}')),
    "members_twice": _spoiled(lambda body: raw(body[:-1] + b',"members":[]}')),
    "error_in_200": _spoiled(lambda _: raw(b'{"error":{"code":5000,"message":"Something went wrong."}}')),
}


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Which faults strike, how often, where and how long.

    Parameters
    ----------
    rates
        Name of `FAULTS` → share of the requests, 0…1; together at most 1.
    endpoints
        Names of the endpoints that they strike, as `arrivals` names them; empty for all.
    seed
        What the draws are derived from, with the user and the how-manieth request of that user, so that they do not
        hang on the order of arrival.
    for_seconds
        Real seconds from being set until all this ends.
    latency_seconds, latency_sigma
        Median and log-normal sigma of a reply's delay, real seconds; 0 for none. It strikes all endpoints.
    in_flight_limit
        More requests than this at once get a 429 without Retry-After; 0 for no limit.
    date_offset_seconds
        Added to the time in the header Date.
    retry_after
        The value of Retry-After.
    location
        Where a redirect points.

    Raises
    ------
    ConfigError
        For an unknown fault and for a figure outside its range.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    endpoints: tuple[str, ...] = ()
    seed: int = 0
    for_seconds: float = math.inf
    latency_seconds: float = 0.0
    latency_sigma: float = 0.5
    in_flight_limit: int = 0
    date_offset_seconds: float = 0.0
    retry_after: str = "5"
    location: str = "https://example.invalid/members"

    def __post_init__(self) -> None:
        for name, rate in self.rates.items():
            if name not in FAULTS:
                raise ConfigError(f"unknown fault {name!r}: {nearest(name, FAULTS)}")
            if not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise ConfigError(f"the rate of {name} is {rate!r}: must be a share from 0 to 1")
        if sum(self.rates.values()) > 1 + 1e-9:
            raise ConfigError("the rates of all faults together are above 1")
        for name in ("for_seconds", "latency_seconds", "latency_sigma", "in_flight_limit"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: must not be negative")

    @classmethod
    def of(cls, figures: object) -> "Faults":
        """Faults from the figures of a JSON object."""
        if not isinstance(figures, Mapping):
            raise ConfigError(f"the figures of faults are {figures!r}: must be an object")
        known = {declared.name for declared in fields(cls)}
        for name in figures:
            if name not in known:
                raise ConfigError(f"unknown figure of faults {name!r}: {nearest(name, known)}")
        named = {name: tuple(value) if isinstance(value, list) else value for name, value in figures.items()}
        try:
            return cls(**named)  # type: ignore[arg-type]
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"a figure of faults is of the wrong type: {error}") from None


class Dice:
    """The draws of some faults, one for each request of each user.

    Parameters
    ----------
    faults
        The figures.
    """

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._requests: Counter[int] = Counter()
        self._normal = NormalDist().inv_cdf

    def throw(self, user: int, endpoint: str) -> tuple[Fault | None, str, float, float]:
        """Fault and its name, its own uniform number, and the reply's delay in real seconds."""
        faults = self.faults
        self._requests[user] += 1
        word = key(faults.seed, user + 1, self._requests[user])
        place, uniform = (word >> 32) / (1 << 32), ((word & 0xFFFFFFFF) + 0.5) / (1 << 32)
        delay = 0.0
        if faults.latency_seconds:
            delay = faults.latency_seconds * math.exp(faults.latency_sigma * self._normal(uniform))
        if not faults.endpoints or endpoint in faults.endpoints:
            for name, rate in faults.rates.items():
                place -= rate
                if place < 0:
                    return FAULTS[name], name, uniform, delay
        return None, "", uniform, delay
