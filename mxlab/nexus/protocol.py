"""What to send to Nexus and how to read what comes back. No I/O.

Sources: docs.mx.com, Nexus "Overview", "Errors", "Aggregate all members", "List members", "Read member",
"Read job". The endpoint pages differ in how a list is rooted and MX's samples differ in which fields there are,
so reading is tolerant; what cannot be read without guessing is kept as a `Reject`.
"""

import email.utils
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from mxlab.errors import (
    BadReply,
    Forbidden,
    NexusError,
    RateLimited,
    Redirected,
    Refused,
    ServerFault,
    SessionExpired,
    Unavailable,
)
from mxlab.nexus.members import MEMBER_GUID, Job, Member, Reject, Unreadable, read_member, read_time

MEDIA_TYPE = "application/vnd.mx.nexus.v1+json"
#: Replies of the simulator carry this header, so that every figure made of them can be stamped.
SIMULATED_HEADER = "MXLAB-Simulated"
RECORDS_PER_PAGE = 1000
MOST_MEMBERS = 10_000
_MOST_PAGES = MOST_MEMBERS // 25
MOST_WIRE_BYTES = 8 * 2**20
MOST_BODY_BYTES = 32 * 2**20
_PIECE_BYTES = 2**20
_MARK = b"\xef\xbb\xbf"
_KEPT_BYTES = 64 * 2**10
_LONGEST_WAIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One API operation.

    Attributes
    ----------
    name
        As in the requests frame.
    path
        With ``{guid}`` where one belongs.
    starts_jobs
        Whether a call makes banks and users act: such a call is never re-sent blindly.
    """

    name: str
    path: str
    starts_jobs: bool = False


AGGREGATE_ALL = Endpoint("aggregate_all", "/members/aggregate", starts_jobs=True)
LIST_MEMBERS = Endpoint("list_members", "/members")
READ_MEMBER = Endpoint("read_member", "/members/{guid}")
READ_JOB = Endpoint("read_job", "/jobs/{guid}")


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What a 200 said.

    Attributes
    ----------
    members
        The members that could be read, each guid once.
    rejects
        The records that could not.
    job
        Of `READ_JOB`.
    has_more
        Whether a further page must be asked for.
    pages
        How many pages the list has, where the reply says so.
    oddities
        What about it is not as documented, though it could be read.
    """

    members: list[Member] = []
    rejects: list[Reject] = []
    job: Job | None = None
    has_more: bool = False
    pages: int | None = None
    oddities: tuple[str, ...] = ()


class _Documented(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    members: list[Member]


_documented = msgspec.json.Decoder(_Documented)
_anything = msgspec.json.Decoder()


def request_body(endpoint: Endpoint, *, holdings: bool, transactions: bool) -> bytes | None:
    """The JSON body of a call: aggregate-all has one although it is a GET."""
    if not endpoint.starts_jobs:
        return None
    return msgspec.json.encode({"include_holdings": holdings, "include_transactions": transactions})


def decoded(body: bytes, headers: Mapping[str, str]) -> bytes:
    """The body as text bytes: gunzipped and bounded.

    Raises
    ------
    BadReply
        Another encoding, a truncated or damaged stream, or more than 32 MiB.
    """
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding != "gzip":
        raise BadReply(
            f"the reply has encoding {encoding[:40]!r}, which was not asked for", reason="encoding"
        )
    stream = zlib.decompressobj(wbits=31)
    pieces, size = [], 0
    try:
        while body:
            pieces.append(stream.decompress(body, _PIECE_BYTES))
            size += len(pieces[-1])
            if size > MOST_BODY_BYTES:
                raise BadReply(f"the reply is larger than {MOST_BODY_BYTES} bytes", reason="too_large")
            body = stream.unconsumed_tail
    except zlib.error:
        raise BadReply("the gzip stream of the reply is damaged", reason="gzip") from None
    if not stream.eof:
        raise BadReply("the gzip stream of the reply ends early", reason="gzip_truncated")
    if stream.unused_data:
        raise BadReply("bytes follow the gzip stream of the reply", reason="gzip_trailing")
    return b"".join(pieces)


def read_reply(
    endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes, *, page: int = 1
) -> Reply:
    """What the server said.

    Parameters
    ----------
    endpoint
        What was asked.
    status, headers, body
        What came back; the body as it was on the wire.
    page
        Which page of the list was asked for.

    Returns
    -------
    Reply

    Raises
    ------
    Refused
        The server said no (any status but 200), by its subclass.
    BadReply
        A 200 that cannot be read; ``reason`` says in a word why.
    """
    if status != 200:
        raise refusal(status, headers, body)
    text = decoded(body, headers) if "Content-Encoding" in headers else body
    if not text:
        raise BadReply("the reply is empty", reason="empty_body")
    content_type = headers.get("Content-Type", "")
    if content_type != MEDIA_TYPE:
        _check_content_type(content_type)
    oddities = () if content_type and not text.startswith(_MARK) else _oddities(content_type, text)
    if endpoint is READ_JOB:
        return Reply(job=_job(_parsed(text)), oddities=oddities)
    try:
        members = _documented.decode(text).members
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _tolerant(text, page, oddities)
    if len(members) > MOST_MEMBERS:
        raise BadReply(f"the reply has {len(members)} members", reason="too_many")
    guids = {member.guid for member in members}
    if len(guids) != len(members) or not all(map(MEMBER_GUID.fullmatch, guids)):
        return _tolerant(text, page, oddities)
    return Reply(members, has_more=_full_page(len(members)), oddities=oddities)


def _oddities(content_type: str, text: bytes) -> tuple[str, ...]:
    found = ("without a content type",) * (not content_type)
    return (*found, "with a byte order mark") if text.startswith(_MARK) else found


def _check_content_type(content_type: str) -> None:
    kind, _, parameters = content_type.lower().partition(";")
    if kind and "json" not in kind:
        raise BadReply(f"the reply is {kind[:60]!r}, not JSON", reason="content_type")
    if "charset" in parameters and "utf-8" not in parameters:
        raise BadReply("the reply's character set is not UTF-8", reason="charset")


def _parsed(text: bytes) -> Any:
    try:
        return _anything.decode(text.removeprefix(_MARK))
    except UnicodeDecodeError:
        raise BadReply("the reply is not UTF-8", reason="utf8") from None
    except RecursionError:
        raise BadReply("the reply is nested too deeply", reason="depth") from None
    except msgspec.DecodeError as error:
        if b"\\ud" in text.lower():
            return _parsed_with_surrogates(text)
        reason = (
            "json_trailing"
            if "trailing" in str(error)
            else "json_truncated"
            if "truncated" in str(error)
            else "json"
        )
        raise BadReply("the reply is not JSON", reason=reason) from None


def _parsed_with_surrogates(text: bytes) -> Any:
    """JSON in which half a character may stand, so that the records around it can be read."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise BadReply("the reply is not JSON", reason="json") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _tolerant(text: bytes, page: int, oddities: tuple[str, ...]) -> Reply:
    """A list in any of the shapes that MX has used: rooted members or member, a list or one object."""
    value = _parsed(text)
    if not isinstance(value, dict):
        raise BadReply("the reply is JSON but no object", reason="shape")
    if "members" not in value and "member" not in value:
        reason = "error_in_200" if "error" in value else "no_members"
        raise BadReply("the reply names no members", reason=reason)
    records = value["members"] if "members" in value else value["member"]
    if isinstance(records, dict) and records:
        records = [records]
    if not isinstance(records, list):
        raise BadReply("the reply's members are no list", reason="members_shape")
    if len(records) > MOST_MEMBERS:
        raise BadReply(f"the reply has {len(records)} members", reason="too_many")
    members: dict[str, Member] = {}
    rejects = []
    for record in records:
        try:
            msgspec.json.encode(record)  # what no UTF-8 can hold, no table can
            member = read_member(record)
            if member.guid in members:
                raise Unreadable("guid_twice")
            members[member.guid] = member
        except Unreadable as error:
            rejects.append(rejected(error.reason, json.dumps(record).encode()))
        except UnicodeEncodeError:
            rejects.append(rejected("surrogate", json.dumps(record).encode()))
    pages = _pages(value)
    has_more = _full_page(len(records)) if pages is None else page < pages
    return Reply(list(members.values()), rejects, has_more=has_more, pages=pages, oddities=oddities)


def _pages(value: dict[str, Any]) -> int | None:
    """How many pages the list has by its pagination block; None where there is none."""
    for name in ("pagination", "pagination_data"):
        block = value.get(name)
        if isinstance(block, dict) and isinstance(pages := block.get("total_pages"), int):
            if pages > _MOST_PAGES:
                raise BadReply(f"the reply says that the list has {pages} pages", reason="paging")
            return pages
    return None


def _full_page(records: int) -> bool:
    """Without a pagination block, a page of exactly 25 or 1,000 may have a successor."""
    return records in {25, RECORDS_PER_PAGE}


def _job(value: Any) -> Job:
    record = value.get("job", value) if isinstance(value, dict) else None
    if not isinstance(record, dict) or not isinstance(record.get("guid"), str):
        raise BadReply("the reply holds no job", reason="no_job")
    try:
        return Job(record["guid"], read_time(record.get("started_at")), read_time(record.get("finished_at")))
    except Unreadable as error:
        raise BadReply("a time of the job cannot be read", reason=error.reason) from None


def rejected(reason: str, body: bytes) -> Reject:
    """A `Reject` with the body capped at 64 KiB."""
    return Reject(reason, body[:_KEPT_BYTES], len(body))


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> NexusError:
    """The error class of a status that is not 200; the status decides first, code 4011 second.

    MX asks not to branch on codes (docs.mx.com Nexus errors), so the code of the body is kept for the reader
    and decides only where it says that the session expired.
    """
    code = _error_code(body, headers)
    known: dict[str, Any] = {"status_code": status, "code": code}
    if status == 401 or (code == "4011" and 400 <= status < 500):
        return SessionExpired("MX says that the session has expired", **known)
    if status == 403 and "html" in headers.get("Content-Type", "").lower():
        return Forbidden("a web page refuses: a proxy or a CDN, not MX", by_cdn=True, **known)
    if status == 403:
        return Forbidden(
            "MX refuses: a member's use case is not PFM, or your address is not on its list", **known
        )
    if 300 <= status < 400:
        return Redirected(f"the server redirects ({status}); that is never followed", **known)
    wait = retry_after(headers.get("Retry-After"), headers.get("Date"))
    if status == 429:
        return RateLimited("too many requests", retry_after_seconds=wait, **known)
    if status == 503 and "Retry-After" in headers:
        return Unavailable("MX is not available", retry_after_seconds=wait, **known)
    if 500 <= status < 600:
        return ServerFault(f"MX failed ({status})", **known)
    if 400 <= status < 500:
        return Refused(f"MX refuses ({status})", **known)
    return BadReply(f"a reply with status {status}", reason=f"unexpected_{status}", status_code=status)


def _error_code(body: bytes, headers: Mapping[str, str]) -> str | None:
    """The error code of a body, flat or under ``error``; MX documents no envelope for Nexus."""
    try:
        value = _anything.decode(decoded(body, headers))
    except (BadReply, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    inner = value.get("error", value) if isinstance(value, dict) else None
    code = (
        next((inner[key] for key in ("code", "error_code") if key in inner), None)
        if isinstance(inner, dict)
        else None
    )
    return str(code)[:40] if isinstance(code, int | str) else None


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds to wait of a Retry-After header: seconds, decimals or a date; None where it makes no sense.

    A date counts from the reply's own ``Date``, so that it does not matter whose clock is wrong.

    Examples
    --------
    >>> retry_after("2.5"), retry_after("-1"), retry_after("1e9"), retry_after("soon")
    (2.5, 0.0, 300.0, None)
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _epoch(value) - _epoch(date)
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS)


def _epoch(date: str | None) -> float:
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return math.nan
