"""Ways in which a member record can be wrong or odd, each planted apart and told in the truth.

A defect takes a member's record as the API would give it, and the time, and gives the records to send instead:
usually one. The harmless oddities among them are those of real replies (absent fields, other time formats, the
string "null", unreadable metadata); the rest are wrong in exactly one way.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

Record = dict[str, Any]
Defect = Callable[[Record, float], list[Record]]

_DAY = 86_400.0
_SHARED_GUID = "MBR-00000000-0000-4000-8000-000000000000"


def stamp(at: float | None) -> str | None:
    """A Unix time in the form of the endpoint's page: whole seconds, ``.000Z``."""
    return None if at is None else f"{datetime.fromtimestamp(int(at), UTC).isoformat()[:19]}.000Z"


def _put(**fields: Any) -> Defect:
    return lambda record, _now: [record | fields]


def _drop(name: str) -> Defect:
    return lambda record, _now: [{key: value for key, value in record.items() if key != name}]


def _respell(zone: str, hours: int) -> Defect:
    """The same times at another offset and without fractions."""

    def respell(record: Record, _now: float) -> list[Record]:
        changed = dict(record)
        for name in ("aggregated_at", "successfully_aggregated_at"):
            if record[name]:
                at = datetime.fromisoformat(record[name]).timestamp() + hours * 3_600
                changed[name] = f"{datetime.fromtimestamp(at, UTC).isoformat()[:19]}{zone}"
        return [changed]

    return respell


def _ago(name: str, seconds: float, **fields: Any) -> Defect:
    return lambda record, now: [record | {name: stamp(now - seconds)} | fields]


#: Kind → what it does. Harmless oddities first, then what is wrong.
DEFECTS: Mapping[str, Defect] = {
    "absent_institution_code": _drop("institution_code"),
    "absent_is_oauth": _drop("is_oauth"),
    "absent_use_cases": _drop("use_cases"),
    "time_without_fraction": _respell("Z", 0),
    "time_with_utc_offset": _respell("+00:00", 0),
    "time_with_offset": _respell("-06:00", -6),
    "time_text_null": _put(successfully_aggregated_at="null"),
    "metadata_unreadable": _put(metadata='\\"credentials_last_refreshed_at\\": \\"2015-10-15\\"'),
    "metadata_object": _put(metadata={"plan": "gold"}),
    "undocumented_field": _put(error={"error_code": 2005, "error_type": "MEMBER", "locale": "en"}),
    "unknown_status": _put(connection_status="ZOMBIE"),
    "time_without_zone": _respell("", 0),
    "time_impossible": _put(aggregated_at="2016-02-30T18:07:57.000Z"),
    "time_1970": _put(aggregated_at="1970-01-01T00:00:00.000Z"),
    "time_in_future": _ago("aggregated_at", -3 * _DAY),
    "connected_without_success": _put(connection_status="CONNECTED", successfully_aggregated_at=None),
    "connected_but_stale": _ago("successfully_aggregated_at", 60 * _DAY, connection_status="CONNECTED"),
    "stuck_running": _ago("aggregated_at", 3 * _DAY, is_being_aggregated=True),
    "flag_as_text": _put(is_being_aggregated="true"),
    "flag_null": _put(is_being_aggregated=None),
    "guid_absent": _drop("guid"),
    "guid_null": _put(guid=None),
    "guid_malformed": lambda record, _now: [record | {"guid": record["guid"][:20]}],
    "guid_twice_in_reply": lambda record, _now: [record, dict(record)],
    "guid_shared_by_users": _put(guid=_SHARED_GUID),
    "job_guid_absent": _put(most_recent_job_guid=None),
    "job_guid_of_no_job": _put(most_recent_job_guid="JOB-00000000-0000-4000-8000-000000000000"),
    "institution_guid_malformed": lambda record, _now: [
        record | {"institution_guid": record["institution_guid"].replace("INS-", "INST-")}
    ],
    "institution_code_of_another": _put(institution_code="mxbank"),
    "user_guid_of_another": _put(user_guid="USR-00000000-0000-4000-8000-000000000000"),
    "use_cases_empty": _put(use_cases=[]),
    "use_cases_unknown": _put(use_cases=["PFM", "IAV"]),
    "use_cases_text": _put(use_cases="PFM"),
    "record_is_text": lambda record, _now: [record["guid"]],
}
