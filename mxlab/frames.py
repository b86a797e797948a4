"""Column declarations, and Exchanges and Endings as the frames of a `Snapshot`.

Each table is declared once: the declaration gives the Arrow schema of the store, the dtypes of the frames and
the data dictionary of the README.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from html import escape
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mxlab.errors import SchemaError
from mxlab.exchange import OUTCOMES, Change, Ending, Exchange, MemberEnding
from mxlab.nexus.members import MEMBER_TIMES, Member, Reject
from mxlab.nexus.status import BACKGROUND, STATUSES, WHO_MUST_ACT, who_must_act

Kind = Literal["text", "category", "time", "seconds", "flag", "count", "texts", "bytes"]

_ARROW: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "category": pa.string(),
    "time": pa.timestamp("us", tz="UTC"),
    "seconds": pa.float64(),
    "flag": pa.bool_(),
    "count": pa.int64(),
    "texts": pa.list_(pa.string()),
    "bytes": pa.binary(),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PANDAS: dict[pa.DataType, Any] = {
    pa.string(): pd.StringDtype("pyarrow"),
    pa.bool_(): pd.BooleanDtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.list_(pa.string()): pd.ArrowDtype(pa.list_(pa.string())),
    pa.binary(): pd.ArrowDtype(pa.binary()),
}
_CATEGORIES: dict[str, Sequence[str]] = {
    "connection_status": tuple(STATUSES),
    "from_status": tuple(STATUSES),
    "to_status": tuple(STATUSES),
    "who_must_act": WHO_MUST_ACT,
    "outcome": OUTCOMES,
    "duration_source": ("job", "looks"),
    "user_state": ("answered", "lost", "unknown", "pending"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a frame: its name, what kind of value it holds, what it means."""

    name: str
    kind: Kind
    meaning: str


def _columns(declaration: str) -> tuple[Column, ...]:
    """Columns of lines ``name kind meaning…``."""
    rows = (line.split(maxsplit=2) for line in declaration.splitlines() if line)
    return tuple(Column(name, kind, meaning) for name, kind, meaning in rows)  # type: ignore[arg-type]


_WHO = """
run_id           category  the run that saw it
session          text      keyed hash of the user, or of the token where there is no user
user             text      your own name for the user
"""

TABLES: dict[str, tuple[Column, ...]] = {
    "members": _columns(
        _WHO
        + """
guid                                text      MX: the member
user_guid                           text      MX: the user
institution                         category  commonest name of the institution's guid in the run
institution_guid                    text      MX: the institution
institution_code                    category  MX: the institution's code; absent in old payloads
name                                text      MX: the institution's name, unless the user has renamed the member
connection_status                   category  MX: one of 22 words, null, or a word MX has added since
who_must_act                        category  who can move the member on: nobody wait user mx partner over manual unknown
eligible                            flag      whether MX's background aggregation runs for it
is_being_aggregated                 flag      MX: a job runs
aggregated_at                       time      MX: when the most recent job started
successfully_aggregated_at          time      MX: when the most recent successful aggregation ended
age_seconds                         seconds   seen_at less successfully_aggregated_at
outcome                             category  finished waiting_on_user failed running not_triggered; null under observe
aggregation_seconds_low             seconds   the aggregation took at least this long since the kick-off
aggregation_seconds_high            seconds   … and at most this long; missing where following ended first
job_seconds                         seconds   exact duration of the job by MX's clock
duration_source                     category  job or looks: which of the two is known
looks                               count     looks since the kick-off that saw it
seen_at                             time      when the record was read
user_state                          category  answered lost unknown pending; only answered users count in rates
most_recent_job_guid                text      MX: the job
background_aggregation_is_disabled  flag      MX: background aggregation is off
external_guid                       text      MX: the partner's id
is_managed_by_user                  flag      MX: managed by the user
is_oauth                            flag      MX: connected by OAuth
is_user_created                     flag      MX: created by the user
metadata                            text      MX: opaque text of the partner's
use_cases                           texts     MX: PFM, MONEY_MOVEMENT
extra                               text      JSON of fields that MX has not documented, and of times that say null
"""
    ),
    "changes": _columns(
        _WHO
        + """
guid                 text      MX: the member
from_status          category  connection status before
to_status            category  connection status after
seconds_low          seconds   since the kick-off: the last look before the change
seconds_high         seconds   since the kick-off: the look that saw it
is_being_aggregated  flag      after the change
"""
    ),
    "requests": _columns(
        _WHO
        + """
endpoint         category  aggregate_all, list_members, read_member, read_job
attempt          count     1 for the first
sent_at          time      when it was sent
left             flag      whether its headers left this machine
queued_seconds   seconds   ready to send → sent; real time
reply_seconds    seconds   sent → last byte; real time
status_code      count     HTTP status
error            category  name of the error class; null where the reply was read
error_code       category  code in the error body
may_have_acted   flag      whether the server may have done what was asked, for a call without a readable reply
reply_bytes      count     length of the body on the wire
"""
    ),
    "rejects": _columns(
        _WHO
        + """
endpoint  category  which call brought it
sent_at   time      when that call was sent
reason    category  what is wrong, in a word
body      bytes     the bytes, at most 64 KiB
length    count     how many bytes there were
"""
    ),
}

#: What the store keeps: `institution` needs the whole run and is added on the way out.
SCHEMAS: dict[str, pa.Schema] = {
    name: pa.schema([(c.name, _ARROW[c.kind]) for c in columns if c.name != "institution"])
    for name, columns in TABLES.items()
}


def _micros(seconds: Iterable[float | None]) -> pa.Array:
    """Seconds since 1970 as timestamps."""
    floats = pa.array(list(seconds), pa.float64())
    return pc.cast(pc.round(pc.multiply(floats, 1e6)), pa.int64()).cast(_ARROW["time"])


def _times(moments: Iterable[datetime | None]) -> pa.Array:
    """Aware datetimes as timestamps, by way of durations: several times as fast as directly."""
    since = [None if moment is None else moment - _EPOCH for moment in moments]
    return pa.array(since, pa.duration("us")).cast(pa.int64()).cast(_ARROW["time"])


def _fields(records: Sequence[msgspec.Struct], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The records' fields, each as a sequence over the records."""
    names = kind.__struct_fields__
    values = zip(*map(msgspec.structs.astuple, records), strict=True) if records else [()] * len(names)
    return dict(zip(names, values, strict=True))


def _table(name: str, columns: Mapping[str, Any], rows: int, run: str) -> pa.Table:
    """A table in the declared order and types."""
    schema = SCHEMAS[name]
    columns = {"run_id": pa.repeat(pa.scalar(run), rows), **columns}
    arrays = [
        value
        if isinstance(value := columns[each.name], pa.Array | pa.ChunkedArray)
        else pa.array(value, each.type)
        for each in schema
    ]
    return pa.table(arrays, schema=schema)


def tables(exchanges: Sequence[Exchange], endings: Sequence[Ending], run: str) -> dict[str, pa.Table]:
    """Exchanges and Endings as the four tables that a store keeps.

    Returns
    -------
    dict
        ``members`` (of Endings), ``changes``, ``requests``, ``rejects`` (of Exchanges): Arrow tables with the
        declared schemas; ``members`` has a further ``user_<name>`` column for each column of the source.
    """
    return {
        "members": _members(endings, run),
        "changes": _changes(exchanges, run),
        "requests": _requests(exchanges, run),
        "rejects": _rejects(exchanges, run),
    }


def _members(endings: Sequence[Ending], run: str) -> pa.Table:
    flat = [each for ending in endings for each in ending.members]
    columns = _fields(flat, MemberEnding)
    columns |= _fields(columns.pop("member"), Member)
    columns |= {name: _times(columns[name]) for name in MEMBER_TIMES}
    ending_of = pa.array(np.repeat(np.arange(len(endings)), [len(ending.members) for ending in endings]))

    def of_user(values: Iterable[str | None]) -> pa.Array:
        return pa.array(values, pa.string()).take(ending_of)

    status = pa.array(columns["connection_status"], pa.string())
    disabled = pa.array(columns["background_aggregation_is_disabled"], pa.bool_())
    seen = _micros(columns["seen_at"])
    low = pa.array(columns["seconds_low"], pa.float64())
    exact = pa.array(columns["job_seconds"], pa.float64())
    columns |= {
        "session": of_user(ending.session for ending in endings),
        "user": of_user(ending.user for ending in endings),
        "user_state": of_user(ending.state for ending in endings),
        "connection_status": status,
        "background_aggregation_is_disabled": disabled,
        "who_must_act": _mapped(status, who_must_act),
        "eligible": pc.and_(
            pc.is_in(status, pa.array(sorted(BACKGROUND))), pc.invert(pc.fill_null(disabled, False))
        ),
        "seen_at": seen,
        "age_seconds": pc.divide(
            pc.cast(pc.subtract(seen, columns["successfully_aggregated_at"]), pa.int64()), 1e6
        ),
        "aggregation_seconds_low": low,
        "aggregation_seconds_high": columns["seconds_high"],
        "job_seconds": exact,
        "duration_source": pc.if_else(
            pc.is_valid(exact), "job", pc.if_else(pc.is_valid(low), "looks", pa.scalar(None, pa.string()))
        ),
    }
    table = _table("members", columns, len(flat), run)
    for name in sorted({name for ending in endings for name in ending.columns}):
        table = table.append_column(f"user_{name}", of_user(ending.columns.get(name) for ending in endings))
    return table


def _mapped(values: pa.Array, function: Callable[[str | None], str]) -> pa.Array:
    """A function of each value, called once for each distinct one."""
    encoded = values.dictionary_encode(null_encoding="encode")
    return pa.array([function(value.as_py()) for value in encoded.dictionary], pa.string()).take(
        encoded.indices
    )


def _changes(exchanges: Sequence[Exchange], run: str) -> pa.Table:
    flat = [(exchange, change) for exchange in exchanges for change in exchange.changes]
    columns = _fields([change for _, change in flat], Change)
    return _table("changes", columns | _who([exchange for exchange, _ in flat]), len(flat), run)


def _requests(exchanges: Sequence[Exchange], run: str) -> pa.Table:
    columns = _fields(exchanges, Exchange)
    errors = columns.pop("error")
    columns |= {
        "sent_at": _micros(columns["sent_at"]),
        "error": [type(error).__name__ if error else None for error in errors],
        "error_code": [error.code if error else None for error in errors],
        "may_have_acted": [error.may_have_acted if error else None for error in errors],
    }
    return _table("requests", columns, len(exchanges), run)


def _rejects(exchanges: Sequence[Exchange], run: str) -> pa.Table:
    flat = [(exchange, reject) for exchange in exchanges for reject in exchange.rejects]
    asked = [exchange for exchange, _ in flat]
    columns = _fields([reject for _, reject in flat], Reject) | {
        "endpoint": [exchange.endpoint for exchange in asked],
        "sent_at": _micros(exchange.sent_at for exchange in asked),
    }
    return _table("rejects", columns | _who(asked), len(flat), run)


def _who(exchanges: Sequence[Exchange]) -> dict[str, list[str | None]]:
    return {
        "session": [exchange.session for exchange in exchanges],
        "user": [exchange.user for exchange in exchanges],
    }


def joined(name: str, parts: Sequence[pa.Table]) -> pa.Table:
    """Tables of one name, one below the other; columns that only some have are null in the others."""
    if not parts:
        return SCHEMAS[name].empty_table()
    return pa.concat_tables(parts, promote_options="default")


def frame(name: str, table: pa.Table) -> pd.DataFrame:
    """A table of the store as the frame that analysts see.

    Parameters
    ----------
    name
        ``members``, ``changes``, ``requests`` or ``rejects``.
    table
        With at least the declared columns but `institution`.

    Returns
    -------
    DataFrame
        Declared columns first and in order, then ``user_…``; no column has dtype object.
    """
    declared = {column.name: column for column in TABLES[name]}
    if missing := [each for each in SCHEMAS[name].names if each not in table.column_names]:
        raise SchemaError(
            f"{name}: the stored table lacks {', '.join(missing)}; was it made by another version?"
        )
    if name == "members":
        table = table.append_column("institution", _institutions(table))
    further = [each for each in table.column_names if each not in declared]
    table = table.select([*declared, *further])
    for column in declared.values():
        if column.kind == "category":
            index = table.column_names.index(column.name)
            table = table.set_column(index, column.name, table[column.name].dictionary_encode())
    result: pd.DataFrame = table.to_pandas(types_mapper=_PANDAS.get)
    for name_, known in _CATEGORIES.items():
        if name_ in result.columns:
            seen = [each for each in result[name_].cat.categories if each not in known]
            result[name_] = result[name_].cat.set_categories([*known, *sorted(seen)])
    return result


def _institutions(table: pa.Table) -> pa.ChunkedArray:
    """The commonest name of each row's institution guid; its own name where it has no guid."""
    pairs = pa.table({"guid": table["institution_guid"], "name": table["name"]}).group_by(["guid", "name"])
    counts = pairs.aggregate([([], "count_all")]).filter(pc.is_valid(pc.field("name")))
    counts = counts.sort_by([("guid", "ascending"), ("count_all", "descending"), ("name", "ascending")])
    commonest: dict[str | None, str] = {}
    for guid, name in zip(counts["guid"].to_pylist(), counts["name"].to_pylist(), strict=True):
        commonest.setdefault(guid, name)
    commonest.pop(None, None)
    encoded = table["institution_guid"].combine_chunks().dictionary_encode()
    names = pa.array([commonest.get(guid) for guid in encoded.dictionary.to_pylist()], pa.string())
    return pc.coalesce(names.take(encoded.indices), table["name"])


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many users a run asked for and what became of them; ``asked`` is always the sum of the others.

    Attributes
    ----------
    reasons
        Users lost or unknown, by reason, most first.
    order
        ``random`` where users came in seeded random order, so that what a stopped run saw is a fair sample;
        else ``source``.
    by_run
        The coverage of each run, where it is of several.
    """

    asked: int
    answered: int
    lost: int = 0
    unknown: int = 0
    pending: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    order: str = "source"
    by_run: Mapping[str, "Coverage"] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.answered:,} of {self.asked:,} users answered"
        parts = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in self.reasons.items()]
        if self.pending:
            parts.append(f"{self.pending:,} pending")
        return f"{text} ({', '.join(parts)})" if parts else text


class Snapshot:
    """What a run saw.

    Parameters
    ----------
    manifest
        Run, verb, host, start, end, settings, seed, clock, versions, and whether it is simulated.
    coverage
        Users asked, answered, lost, unknown, pending.
    failures
        A row for each lost or unknown user: session, user, state, reason, what_to_do.
    table
        ``table(name)`` → the Arrow table; called when a frame is first asked for.

    Attributes
    ----------
    members, changes, requests, rejects
        The frames; their columns are declared in `mxlab.frames.TABLES`.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        coverage: Coverage,
        failures: pd.DataFrame,
        table: Callable[[str], pa.Table],
    ) -> None:
        self.manifest = dict(manifest)
        self.coverage = coverage
        self.failures = failures
        self.table = table

    @cached_property
    def members(self) -> pd.DataFrame:
        """A row per member."""
        return frame("members", self.table("members"))

    @cached_property
    def changes(self) -> pd.DataFrame:
        """A row per observed change of a member's status or aggregation flag."""
        return frame("changes", self.table("changes"))

    @cached_property
    def requests(self) -> pd.DataFrame:
        """A row per attempt at a request."""
        return frame("requests", self.table("requests"))

    @cached_property
    def rejects(self) -> pd.DataFrame:
        """A row per body or record that could not be read."""
        return frame("rejects", self.table("rejects"))

    @property
    def simulated(self) -> bool:
        """Whether the replies came from a simulator."""
        return bool(self.manifest.get("simulated"))

    def narrowed(self, members: pd.DataFrame, condition: str) -> "Snapshot":
        """The same run with fewer members; its coverage stays that of all users.

        Parameters
        ----------
        members
            Rows of `members`.
        condition
            What they have in common, in words; charts say it.
        """
        narrowed = Snapshot(
            {**self.manifest, "condition": condition}, self.coverage, self.failures, self.table
        )
        narrowed.__dict__["members"] = members
        return narrowed

    def __repr__(self) -> str:
        stamp = "SIMULATED " if self.simulated else ""
        run, verb = self.manifest.get("run"), self.manifest.get("verb")
        # Whoever formats a task or a traceback asks for this: it must not read a store.
        members = f", {len(self.members):,} members" if "members" in self.__dict__ else ""
        return f"<Snapshot {stamp}{run} {verb}: {self.coverage}{members}>"

    def _repr_html_(self) -> str:
        rows = {
            "run": self.manifest.get("run"),
            "verb": self.manifest.get("verb"),
            "host": self.manifest.get("host"),
            "started": self.manifest.get("started_at"),
            "users": str(self.coverage),
            "members": f"{len(self.members):,}",
        }
        counts = (
            self.members["connection_status"]
            .cat.add_categories("no status")
            .fillna("no status")
            .value_counts()
        )
        statuses = ", ".join(f"{word} {count:,}" for word, count in counts.items() if count)
        body = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
            for name, value in {**rows, "connection statuses": statuses}.items()
        )
        stamp = " <b style='color:#c8352b'>SIMULATED</b>" if self.simulated else ""
        return f"<table><caption style='text-align:left'><b>Snapshot</b>{stamp}</caption>{body}</table>"


def failures_frame(rows: Iterable[Mapping[str, str | None]]) -> pd.DataFrame:
    """Lost and unknown users: session, user, state, reason, what_to_do, each a string."""
    columns = ("session", "user", "state", "reason", "what_to_do")
    listed = list(rows)
    return pd.DataFrame(
        {name: pd.array([row[name] for row in listed], dtype=pd.StringDtype("pyarrow")) for name in columns}
    )
