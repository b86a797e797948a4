"""`Member`: one user's connection to one institution, with the API's own field names.

Source: docs.mx.com, Nexus "Aggregate all members", "List members", "Read job".
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A member record as MX documents it; every field but `guid` may be null or absent.

    Attributes
    ----------
    aggregated_at
        When the most recent job of any aggregation type *started*.
    successfully_aggregated_at
        When the most recent successful aggregation *ended*. The difference of the two spans two different
        jobs unless the last one succeeded: it is never a duration.
    connection_status
        One of MX's 22 words, null, or a word that MX has added since.
    metadata
        Opaque text of the partner's; never parsed.
    extra
        Fields that MX has not documented, and times that are the word null or a leap second, as JSON text; None
        where there are none.
    """

    guid: str
    aggregated_at: Time | None = None
    background_aggregation_is_disabled: bool | None = None
    connection_status: str | None = None
    external_guid: str | None = None
    institution_code: str | None = None
    institution_guid: str | None = None
    is_being_aggregated: bool | None = None
    is_managed_by_user: bool | None = None
    is_oauth: bool | None = None
    is_user_created: bool | None = None
    metadata: str | None = None
    most_recent_job_guid: str | None = None
    name: str | None = None
    successfully_aggregated_at: Time | None = None
    use_cases: list[str] | None = None
    user_guid: str | None = None
    extra: str | None = msgspec.field(default=None, name="mxlab:extra")


class Job(msgspec.Struct, frozen=True, gc=False):
    """When a job ran, by MX's own clock; the other fields of a job are not needed."""

    guid: str
    started_at: Time | None = None
    finished_at: Time | None = None


class Reject(msgspec.Struct, frozen=True, gc=False):
    """A body or a record that could not be read.

    Attributes
    ----------
    reason
        One word for what is wrong.
    body
        The bytes, capped.
    length
        How many bytes there were.
    """

    reason: str
    body: bytes
    length: int


class Unreadable(Exception):
    """A record is not what MX documents; `reason` is one word for what is wrong."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


FIELDS = tuple(name for name in Member.__struct_fields__ if name != "extra")
MEMBER_TIMES = ("aggregated_at", "successfully_aggregated_at")
#: The shape of an MX id; nothing else may become a part of an address.
GUID = re.compile(r"[A-Z]{3,4}-[0-9A-Za-z-]{1,64}")
#: The shape of a member's.
MEMBER_GUID = re.compile(r"MBR-[0-9A-Za-z-]{1,64}")
_LEAP_SECOND = re.compile(r":60(\.\d+)?(?=[Zz+-]|$)")


def read_member(record: Any) -> Member:
    """A `Member` from one JSON record, forgiving what MX's replies are known to vary in.

    Parameters
    ----------
    record
        The decoded JSON value.

    Returns
    -------
    Member
        Unknown fields are kept in `extra`; the string ``"null"`` counts as null where a time belongs, a leap
        second as the end of the second before, and both are kept there too; metadata that is no text is kept as
        JSON text.

    Raises
    ------
    Unreadable
        The record has no usable guid, or a field holds what cannot be read without guessing.

    Examples
    --------
    >>> read_member({"guid": "MBR-1", "aggregated_at": "null", "colour": "red"}).extra
    '{"aggregated_at":"null","colour":"red"}'
    """
    if not isinstance(record, dict):
        raise Unreadable("record_is_no_object")
    guid = record.get("guid")
    if not isinstance(guid, str) or not MEMBER_GUID.fullmatch(guid):
        raise Unreadable("guid")
    known = {name: record[name] for name in FIELDS if name in record}
    for name in MEMBER_TIMES:
        known[name] = read_time(known.get(name))
    if not isinstance(known.get("metadata"), str | None):
        known["metadata"] = msgspec.json.encode(known["metadata"]).decode()
    unknown = {
        name: value
        for name, value in record.items()
        if name not in FIELDS or (name in MEMBER_TIMES and _is_no_moment(value))
    }
    if unknown:
        known["mxlab:extra"] = msgspec.json.encode(unknown).decode()
    try:
        return msgspec.convert(known, Member)
    except msgspec.ValidationError as error:
        field = re.search(r"\$\.(\w+)", str(error))
        raise Unreadable(field.group(1) if field else "record") from None


def _is_no_moment(value: Any) -> bool:
    """Whether a time that can be read is not what it says."""
    return value == "null" or (isinstance(value, str) and _LEAP_SECOND.search(value) is not None)


def read_time(value: Any) -> datetime | None:
    """An aware time in UTC from any of MX's text formats; None for null, absent and the string ``"null"``.

    Raises
    ------
    Unreadable
        It is no text, no date, or has no time zone.
    """
    if value is None or value == "null":
        return None
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise Unreadable("time_is_no_text")
    try:
        moment = msgspec.convert(_LEAP_SECOND.sub(":59.999", value), datetime)
        if moment.tzinfo is None:
            raise Unreadable("naive_time")
        return moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        raise Unreadable("time") from None
