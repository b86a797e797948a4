"""What is wrong with the records themselves: rules for a member, each with its reason and its source."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mxlab.analysis._inputs import (
    STRING,
    Bools,
    Coverage,
    Ints,
    described,
    need,
    table,
    whole,
)
from mxlab.nexus.members import FIELDS
from mxlab.nexus.status import STATUSES

#: error: the record contradicts itself or MX's documentation; warning: likely wrong; notice: worth knowing.
Severity = Literal["error", "warning", "notice"]
#: The column: the gravest first.
SEVERITY = pd.CategoricalDtype(list(get_args(Severity)), ordered=True)
Test = Callable[["Records"], Bools]

#: Clocks may differ by this much.
CLOCK_SECONDS = 60.0
HOUR_SECONDS = 3_600.0
DAY_SECONDS = 86_400.0
#: No aggregation is older: MX was founded in 2010.
FIRST_DAY = pd.Timestamp("2010-01-01", tz="UTC")
USE_CASES = ("PFM", "MONEY_MOVEMENT")
GUID_LENGTH = 40
PREFIXES = {"guid": "MBR-", "user_guid": "USR-", "institution_guid": "INS", "most_recent_job_guid": "JOB-"}

_NULL_WORDS = pa.array(["null", "NULL", "None", "undefined", "nan"])
#: How a time that is a word instead of null, or is no moment, is kept in `extra`.
_TIME_SAYS_NULL = '"(successfully_)?aggregated_at":"null",?'
_TIME_KEPT = '"(successfully_)?aggregated_at":"[^"]*",?'
_CONTROL = "[\\x00-\\x1f\\x7f\\x{200e}\\x{200f}\\x{202a}-\\x{202e}\\x{2066}-\\x{2069}]"

_TEXT = ("guid", "user_guid", "institution_guid", "institution_code", "name", "most_recent_job_guid")
_TIMES = ("aggregated_at", "successfully_aggregated_at", "seen_at")
_COLUMNS = (
    *_TEXT,
    *_TIMES,
    "session",
    "institution",
    "external_guid",
    "metadata",
    "connection_status",
    "eligible",
    "is_being_aggregated",
    "is_oauth",
    "background_aggregation_is_disabled",
    "age_seconds",
    "aggregation_seconds_low",
    "aggregation_seconds_high",
    "job_seconds",
    "outcome",
    "extra",
)
_MEMBER = "MX Nexus reference, members overview"
_OURS = "mxlab's own reading"


class Records:
    """A `members` frame as the rules see it: what several of them need is worked out once.

    Parameters
    ----------
    members
        The frame; ``records[name]`` is its column.
    """

    def __init__(self, members: pd.DataFrame) -> None:
        self.members = members
        self._numbers: dict[str, Ints] = {}

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, name: str) -> pd.Series:
        return self.members[name]

    def text(self, name: str) -> pa.Array:
        """A column as Arrow strings, which are several times faster than pandas' own."""
        found = whole(self.members[name])
        return found if pa.types.is_string(found.type) else found.cast(pa.string())

    def numbers(self, name: str) -> Ints:
        """A number for each row: the same for the same value, hardly ever for another; −1 where it is missing."""
        if name not in self._numbers:
            self._numbers[name] = _numbers(self.members[name])
        return self._numbers[name]

    @cached_property
    def use_cases(self) -> tuple[Ints, list[frozenset[str]]]:
        """For each row a number, and the sets of use cases that it stands for; the last number is for none at all."""
        if "use_cases" not in self.members.columns:
            return np.zeros(len(self), np.int64), []
        joined = pc.binary_join(whole(self.members["use_cases"]), "\x1f").dictionary_encode()
        cases = [frozenset(filter(None, text.split("\x1f"))) for text in joined.dictionary.to_pylist()]
        return pc.fill_null(joined.indices, len(cases)).to_numpy().astype(np.int64), cases


def _numbers(column: pd.Series) -> Ints:
    """As `Records.numbers`: of texts of one length by their fingerprints, in a third of a hash table's time."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy().astype(np.int64)
    text = whole(column.astype(STRING))
    lengths = pc.fill_null(pc.binary_length(text), 0).to_numpy()
    usual = int(np.median(lengths[lengths > 0])) if (lengths > 0).any() else 0
    like, odd = np.flatnonzero((lengths == usual) & (usual > 0)), np.flatnonzero(lengths != usual)
    found = np.full(len(column), -1)
    if len(like):
        found[like] = pd.factorize(_fingerprints(text.take(like), usual))[0]
    others = pd.factorize(column.iloc[odd])[0]
    found[odd] = np.where(others >= 0, others + len(column), -1)
    return found


def _fingerprints(text: pa.Array, length: int) -> npt.NDArray[np.uint64]:
    """A number for each text of this many bytes: the same for the same, hardly ever for another."""
    fixed = text.cast(pa.large_binary()).cast(pa.binary(length))
    flat = np.frombuffer(fixed.buffers()[1], np.uint8, len(text) * length, fixed.offset * length)
    words = np.zeros((len(text), -(-length // 8) * 8), np.uint8)
    words[:, :length] = flat.reshape(len(text), length)
    found = np.zeros(len(text), np.uint64)
    for column in words.view(np.uint64).T:
        found = (found ^ column) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return found


class Rule(NamedTuple):
    """One rule for a member record.

    Attributes
    ----------
    id, severity
        Its name, and how bad it is.
    reason
        Why a failing record matters.
    source
        Where the rule comes from.
    test
        From `Records` of a `members` frame to True where one fails.
    """

    id: str
    severity: Severity
    reason: str
    source: str
    test: Test


class Waiver(NamedTuple):
    """A finding that is known and accepted until a day.

    Attributes
    ----------
    rule
        The rule's id.
    until
        The first moment at which it counts again.
    why
        The reason, for the next reader.
    institution
        Only there; everywhere where it is None.
    """

    rule: str
    until: pd.Timestamp
    why: str
    institution: str | None = None


def findings(
    members: pd.DataFrame, *, previous: pd.DataFrame | None = None, waivers: Sequence[Waiver] = ()
) -> pd.DataFrame:
    """Every record that fails a rule, complete, once for each rule that it fails.

    Parameters
    ----------
    members
        The `members` frame, of all users, with MX's fields and mxlab's.
    previous
        The `members` frame of an earlier run: fields that had values then and have none now are found.
    waivers
        What is known and accepted; it is marked, not left out. Waivers end by the last ``seen_at``.

    Returns
    -------
    pandas.DataFrame
        One row is one failing of one rule: ``rule``, ``severity``, ``reason``, ``source``, ``is_waived``, then
        all columns of the record. A rule about the whole frame has a row without a record. ``severity`` is a
        categorical, the gravest first; ``attrs``: ``n`` (records), ``n_rules``, ``counts`` by rule.
    """
    need(members, _COLUMNS, "findings")
    now = members["seen_at"].max()
    parts, counts = [], {}
    records = Records(members)
    for rule in RULES:
        failing = rule.test(records)
        counts[rule.id] = int(failing.sum())
        if counts[rule.id]:
            parts.append(_failing(rule, members.loc[failing], waivers, now))
    vanished = _vanished(members, previous)
    counts[VANISHED.id] = len(vanished)
    for column in vanished:
        before = 0.0 if previous is None else float(previous[column].notna().mean())
        named = VANISHED._replace(reason=f"{VANISHED.reason}: {column}, before in {before:.0%}")
        parts.append(_failing(named, members.iloc[:1].reindex([-1]), waivers, now))
    found = pd.concat(parts, ignore_index=True) if parts else _failing(VANISHED, members.iloc[:0], (), now)
    found.attrs = {"n": len(members), "n_rules": len(RULES) + 1, "counts": counts}
    return found


def findings_by_institution(
    members: pd.DataFrame, *, coverage: Coverage | None = None, top: int = 12
) -> pd.DataFrame:
    """How many records fail each rule at each institution.

    Parameters
    ----------
    members
        The `members` frame, or what `findings` gave of it; waived findings are left out.
    coverage
        Kept in ``attrs``.
    top
        How many institutions, those with most findings, are named; the rest are ``all other``.

    Returns
    -------
    pandas.DataFrame
        One row is one rule at one institution where it fails: ``rule``, ``severity``, ``institution``,
        ``count``; the gravest rules first, within them the commonest.
    """
    found = members if "rule" in members.columns else findings(members)
    need(found, ("rule", "severity", "institution", "is_waived"), "findings_by_institution")
    rows = found.loc[~found["is_waived"].to_numpy(dtype=bool)]
    bank = rows["institution"].astype(STRING).fillna("not known")
    named = bank.value_counts().index[:top]
    part = pd.DataFrame(
        {
            "rule": rows["rule"],
            "severity": rows["severity"],
            "institution": bank.where(bank.isin(named), "all other"),
        }
    )
    count = (
        part.groupby(["rule", "severity", "institution"], observed=True, sort=False)
        .size()
        .rename("count")
        .reset_index()
    )
    count["severity"] = count["severity"].astype(SEVERITY)
    count["total"] = count.groupby("rule", observed=True)["count"].transform("sum")
    count = count.sort_values(["severity", "total", "rule", "count"], ascending=[True, False, True, False])
    kept = count.drop(columns="total").astype({"rule": STRING, "institution": STRING, "count": "int64"})
    kept = kept.reset_index(drop=True)
    kept.attrs = {"coverage": described(coverage)}
    return kept


def rules() -> pd.DataFrame:
    """All rules: ``rule``, ``severity``, ``reason``, ``source``, as strings; one row is one rule."""
    every = [rule._asdict() | {"rule": rule.id} for rule in (*RULES, VANISHED)]
    return table(every, dict.fromkeys(("rule", "severity", "reason", "source"), STRING))


def _failing(rule: Rule, rows: pd.DataFrame, waivers: Sequence[Waiver], now: pd.Timestamp) -> pd.DataFrame:
    waived = np.zeros(len(rows), bool)
    for waiver in waivers:
        if waiver.rule == rule.id and now < waiver.until:
            here = rows["institution"].astype(STRING) == waiver.institution
            waived |= here.to_numpy(dtype=bool, na_value=False) if waiver.institution else True
    words = {"rule": rule.id, "severity": rule.severity, "reason": rule.reason, "source": rule.source}
    head = pd.DataFrame(
        {name: pd.Series(pa.repeat(word, len(rows)), dtype=STRING) for name, word in words.items()}
    )
    head["severity"] = head["severity"].astype(SEVERITY)
    head["is_waived"] = waived
    return pd.concat([head, rows.reset_index(drop=True)], axis=1)


def _vanished(members: pd.DataFrame, previous: pd.DataFrame | None) -> list[str]:
    """Fields that half of the members had before and none has now."""
    if previous is None or previous.empty or members.empty:
        return []
    fields = [name for name in FIELDS if name in previous.columns and name in members.columns]
    return [
        name for name in fields if previous[name].notna().mean() >= 0.5 and not members[name].notna().any()
    ]


def _true(column: pd.Series) -> Bools:
    return column.to_numpy(dtype=bool, na_value=False)


def _missing(column: pd.Series) -> Bools:
    return column.isna().to_numpy()


def _seconds(later: pd.Series, earlier: pd.Series) -> pd.Series:
    return (later - earlier).dt.total_seconds()


def _status(m: Records, *words: str) -> Bools:
    return _true(m["connection_status"].isin(words))


def _over(values: pd.Series, limit: float) -> Bools:
    return _true(values > limit)


def _rows(m: Records, at: Ints) -> Bools:
    """True at these positions."""
    found = np.zeros(len(m), bool)
    found[at] = True
    return found


def _several(m: Records, key: str, value: str) -> Bools:
    """Rows whose key comes with more than one value."""
    keys, values = m.numbers(key), m.numbers(value)
    known = np.flatnonzero((keys >= 0) & (values >= 0))
    width = int(keys.max(initial=0)) + 2
    first = np.full(width, -1)
    first[keys[known]] = values[known]
    many = np.zeros(width, bool)
    many[keys[known[values[known] != first[keys[known]]]]] = True
    suspect = np.flatnonzero(many[keys])  # a missing key is −1: the last place, which no key has
    kinds = m.members[[key, value]].iloc[suspect].drop_duplicates().dropna()
    bad = kinds.loc[kinds[key].duplicated(keep=False), key]
    return _rows(m, suspect[_true(m[key].iloc[suspect].isin(bad))])


def _repeated(m: Records, *key: str) -> Bools:
    number = m.numbers(key[0])
    at = np.flatnonzero(pd.Series(number).duplicated(keep=False).to_numpy() & (number >= 0))
    part = m.members[list(key)].iloc[at]
    again = part.duplicated(keep=False).to_numpy() & part.notna().all(axis=1).to_numpy()
    return _rows(m, at[again])


def _any_text(m: Records, test: Callable[[pa.Array], pa.Array]) -> Bools:
    found = np.zeros(len(m), bool)
    for name in _TEXT:
        found |= _arrow(test(m.text(name)))
    return found


def _arrow(flags: pa.Array) -> Bools:
    """Flags as an array, a missing one False."""
    found: Bools = pc.fill_null(flags, False).to_numpy(zero_copy_only=False)
    return found


def _says_null(text: pa.Array) -> pa.Array:
    return pc.is_in(text, value_set=_NULL_WORDS.cast(text.type))


def _fields_beside(m: Records) -> Bools:
    """Rows with more in `extra` than times that are none."""
    rest = pc.replace_substring_regex(m.text("extra"), pattern=_TIME_KEPT, replacement="")
    return _arrow(pc.not_equal(rest, "{}"))


def _hidden(text: pa.Array) -> pa.Array:
    """Where a text holds characters that do not show, or turn the direction."""
    return pc.match_substring_regex(text, _CONTROL)


def _blank(text: pa.Array) -> pa.Array:
    return pc.or_(pc.equal(text, ""), pc.not_equal(pc.utf8_trim_whitespace(text), text))


def _unreadable(m: Records) -> Bools:
    def broken(text: str) -> bool:
        try:
            json.loads(text)
        except ValueError:
            return True
        return False

    found = m.text("metadata").dictionary_encode()
    bad = np.array([*(broken(text) for text in found.dictionary.to_pylist()), False], dtype=bool)
    wrong: Bools = bad[pc.fill_null(found.indices, len(bad) - 1).to_numpy()]
    return wrong


def _use_cases(m: Records, test: Callable[[frozenset[str] | None], bool]) -> Bools:
    """Rows whose set of use cases passes a test; each distinct list is tested once."""
    number, cases = m.use_cases
    passed: Bools = np.array([*(test(each) for each in cases), test(None)], dtype=bool)
    return passed[number]


def _differs(m: Records) -> Bools:
    """Rows with a name that is neither its institution's nor itself a defect of text."""
    found = np.flatnonzero(_arrow(pc.not_equal(m.text("name"), m.text("institution"))))
    name = m.text("name").take(found)
    odd = pc.or_(pc.or_(_says_null(name), _blank(name)), _hidden(name))
    return _rows(m, found[~_arrow(odd)])


def _wrong_format(m: Records) -> Bools:
    found = np.zeros(len(m), bool)
    for name, prefix in PREFIXES.items():
        text = m.text(name)
        found |= ~_arrow(pc.starts_with(text, prefix)) & _arrow(pc.is_valid(text))
        if len(prefix) == 4:  # an institution's prefix has three letters or four
            found |= _arrow(pc.not_equal(pc.binary_length(text), GUID_LENGTH))
    return found


#: Fields about the whole frame, not one record.
VANISHED = Rule(
    "field-vanished",
    "warning",
    "half of the members or more had this field in the last snapshot, none has it now",
    _OURS,
    lambda m: np.zeros(len(m), bool),
)

RULES: tuple[Rule, ...] = (
    Rule(
        "guid-missing",
        "error",
        "a member without a guid cannot be followed",
        _MEMBER,
        lambda m: _missing(m["guid"]),
    ),
    Rule(
        "guid-of-two-users",
        "error",
        "one member guid came with two users: one of them sees another's account",
        _MEMBER,
        lambda m: _several(m, "guid", "user_guid"),
    ),
    Rule(
        "guid-repeated",
        "error",
        "the same member twice for one user: every count of it is doubled",
        _MEMBER,
        lambda m: _repeated(m, "guid", "user_guid"),
    ),
    Rule(
        "user-of-another",
        "error",
        "one reply came with members of two users: the token opens more than its own",
        _MEMBER,
        lambda m: _several(m, "session", "user_guid"),
    ),
    Rule(
        "user-missing", "error", "a member must belong to a user", _MEMBER, lambda m: _missing(m["user_guid"])
    ),
    Rule(
        "institution-missing",
        "error",
        "neither guid nor code says which institution this is",
        _MEMBER,
        lambda m: _missing(m["institution_guid"]) & _missing(m["institution_code"]),
    ),
    Rule(
        "fields-absent",
        "notice",
        "institution code or is_oauth is absent, as in replies of 2021",
        _MEMBER,
        lambda m: (
            _missing(m["is_oauth"]) | (_missing(m["institution_code"]) & ~_missing(m["institution_guid"]))
        ),
    ),
    Rule(
        "institution-two-codes",
        "warning",
        "one institution guid comes with two codes",
        _OURS,
        lambda m: _several(m, "institution_guid", "institution_code"),
    ),
    Rule(
        "institution-two-guids",
        "warning",
        "one institution code comes with two guids",
        _OURS,
        lambda m: _several(m, "institution_code", "institution_guid"),
    ),
    Rule(
        "name-differs",
        "notice",
        "the member's name is not the one that its institution mostly has; the user may have chosen it",
        _MEMBER,
        _differs,
    ),
    Rule(
        "name-missing",
        "warning",
        "the member cannot be shown to its user",
        _MEMBER,
        lambda m: _missing(m["name"]),
    ),
    Rule(
        "text-says-null",
        "warning",
        "a text or a time holds the word null instead of being null",
        "MX Verification Guide",
        lambda m: (
            _any_text(m, _says_null)
            | _arrow(pc.match_substring_regex(m.text("extra"), pattern=_TIME_SAYS_NULL))
        ),
    ),
    Rule(
        "text-blank",
        "warning",
        "a text field is empty or padded with blanks",
        _OURS,
        lambda m: _any_text(m, _blank),
    ),
    Rule(
        "text-control-characters",
        "warning",
        "a name holds control or direction characters, which can fake what is shown",
        _OURS,
        lambda m: _arrow(_hidden(m.text("name"))),
    ),
    Rule(
        "guid-format",
        "notice",
        "a guid is not like MX's documented ones, a prefix and 36 characters: formats are mixed",
        _MEMBER,
        _wrong_format,
    ),
    Rule(
        "metadata-unreadable",
        "notice",
        "metadata is not JSON; it is opaque text to MX, but its writer may have meant JSON",
        _MEMBER,
        _unreadable,
    ),
    Rule(
        "time-in-future",
        "error",
        "a job began or succeeded after it was looked at",
        _OURS,
        lambda m: (
            _over(_seconds(m["aggregated_at"], m["seen_at"]), CLOCK_SECONDS)
            | _over(_seconds(m["successfully_aggregated_at"], m["seen_at"]), CLOCK_SECONDS)
        ),
    ),
    Rule(
        "time-before-mx",
        "error",
        "a time before 2010, such as 1970, is a number that was never set",
        _OURS,
        lambda m: _true((m["aggregated_at"] < FIRST_DAY) | (m["successfully_aggregated_at"] < FIRST_DAY)),
    ),
    Rule(
        "success-without-start",
        "error",
        "an aggregation succeeded that never began",
        _MEMBER,
        lambda m: _missing(m["aggregated_at"]) & ~_missing(m["successfully_aggregated_at"]),
    ),
    Rule(
        "success-a-day-after-start",
        "warning",
        "success a day or more after the last start; shortly after it is how a job ends, but none lasts a day",
        _MEMBER,
        lambda m: (
            _over(_seconds(m["successfully_aggregated_at"], m["aggregated_at"]), DAY_SECONDS)
            & _true(m["aggregated_at"] >= FIRST_DAY)
            & ~_true(m["is_being_aggregated"])
        ),
    ),
    Rule(
        "aggregation-stuck",
        "error",
        "said to be aggregating, six hours and more after the job began",
        _OURS,
        lambda m: (
            _true(m["is_being_aggregated"])
            & _over(_seconds(m["seen_at"], m["aggregated_at"]), 6 * HOUR_SECONDS)
        ),
    ),
    Rule(
        "aggregating-never-started",
        "error",
        "said to be aggregating, but no job has begun",
        _MEMBER,
        lambda m: _true(m["is_being_aggregated"]) & _missing(m["aggregated_at"]),
    ),
    Rule(
        "manual-aggregating",
        "error",
        "a manual member (no status) never aggregates",
        _MEMBER,
        lambda m: _true(m["is_being_aggregated"]) & _missing(m["connection_status"]),
    ),
    Rule(
        "connected-stale",
        "warning",
        "CONNECTED and eligible, but its last success is over a week old",
        "MX docs, background and foreground aggregation",
        lambda m: _status(m, "CONNECTED") & _true(m["eligible"]) & _over(m["age_seconds"], 7 * DAY_SECONDS),
    ),
    Rule(
        "connected-never-succeeded",
        "warning",
        "CONNECTED and idle, begun over a day ago, but never once successful",
        _MEMBER,
        lambda m: (
            _status(m, "CONNECTED")
            & _missing(m["successfully_aggregated_at"])
            & ~_true(m["is_being_aggregated"])
            & _over(_seconds(m["seen_at"], m["aggregated_at"]), DAY_SECONDS)
        ),
    ),
    Rule(
        "created-yet-aggregated",
        "warning",
        "CREATED means never aggregated, but a success has a time",
        _MEMBER,
        lambda m: _status(m, "CREATED") & ~_missing(m["successfully_aggregated_at"]),
    ),
    Rule(
        "pending-without-oauth",
        "error",
        "PENDING is for OAuth members only",
        "MX Verification Guide",
        lambda m: _status(m, "PENDING") & ~_true(m["is_oauth"]) & ~_missing(m["is_oauth"]),
    ),
    Rule(
        "pending-over-an-hour",
        "warning",
        "PENDING members are deleted after an hour, this one was not",
        "MX Verification Guide",
        lambda m: (
            _status(m, "PENDING")
            & _over(_seconds(m["seen_at"], m["aggregated_at"]), HOUR_SECONDS + CLOCK_SECONDS)
        ),
    ),
    Rule(
        "status-unknown",
        "warning",
        "a connection status that is not among the 22: MX has added one",
        _MEMBER,
        lambda m: ~_missing(m["connection_status"]) & ~_status(m, *STATUSES),
    ),
    Rule(
        "fields-undocumented",
        "notice",
        "fields that MX has not documented came along",
        _MEMBER,
        _fields_beside,
    ),
    Rule(
        "job-missing",
        "warning",
        "a job has begun, but there is no job guid to ask about it",
        _MEMBER,
        lambda m: ~_missing(m["aggregated_at"]) & _missing(m["most_recent_job_guid"]),
    ),
    Rule(
        "job-of-two-members",
        "error",
        "one job guid at two members",
        _MEMBER,
        lambda m: _several(m, "most_recent_job_guid", "guid"),
    ),
    Rule(
        "background-off-yet-fresh",
        "warning",
        "background aggregation is off and nobody asked, but the data is of the last 20 hours",
        "MX docs, background and foreground aggregation",
        lambda m: (
            _true(m["background_aggregation_is_disabled"])
            & _missing(m["outcome"])
            & _true(m["age_seconds"] < 20 * HOUR_SECONDS)
        ),
    ),
    Rule(
        "use-cases-empty",
        "notice",
        "no use case: what the member is for is not known",
        _MEMBER,
        lambda m: _use_cases(m, lambda cases: not cases),
    ),
    Rule(
        "use-cases-unknown",
        "warning",
        "a use case that MX has not documented",
        _MEMBER,
        lambda m: _use_cases(m, lambda cases: bool(cases and cases - {*USE_CASES})),
    ),
    Rule(
        "use-cases-without-pfm",
        "notice",
        "without PFM among its use cases an aggregate of its user answers 403",
        "MX Nexus reference, aggregate",
        lambda m: _use_cases(m, lambda cases: bool(cases and "PFM" not in cases)),
    ),
    Rule(
        "looks-reversed",
        "error",
        "seen settled before it was seen running",
        _OURS,
        lambda m: _true(m["aggregation_seconds_high"] < m["aggregation_seconds_low"]),
    ),
    Rule(
        "job-contradicts-looks",
        "notice",
        "the job says that it took longer than the looks allow",
        _OURS,
        lambda m: _true(m["job_seconds"] > m["aggregation_seconds_high"] + CLOCK_SECONDS),
    ),
)
