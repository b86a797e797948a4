"""Bad input by number, B-053 to B-077, B-108, B-109 and B-111: what may stand in a member's record."""

import json
from datetime import UTC, datetime

import pandas as pd
import pytest
from matplotlib.figure import Figure

from faults.server import FaultServer, say
from mxlab import aio
from mxlab.analysis import findings
from mxlab.charts import CHARTS, draw
from mxlab.exports import export
from mxlab.nexus.protocol import LIST_MEMBERS, read_reply
from mxlab.nexus.status import who_must_act
from mxlab.reporting import report
from mxlab.store import Store

GOOD = {"guid": "MBR-2", "connection_status": "CONNECTED"}


def read(record):
    """The record among a good one, as the whole line reads it: (member or None, reason or None)."""
    body = json.dumps({"members": [record, GOOD]}).encode()
    reply = read_reply(LIST_MEMBERS, 200, {}, body)
    assert reply.members[-1].guid == "MBR-2", "a good record went with a bad one"
    assert len(reply.members) + len(reply.rejects) == 2
    (reason,) = [reject.reason for reject in reply.rejects] or [None]
    return (reply.members[0] if reason is None else None), reason


def with_field(name, value):
    return {"guid": "MBR-1", name: value}


#: number → (record, reason of its reject)
REJECTED = {
    "B-053-null": (None, "record_is_no_object"),
    "B-053-text": ("MBR-1", "record_is_no_object"),
    "B-053-list": ([{"guid": "MBR-1"}], "record_is_no_object"),
    "B-054-missing": ({"name": "Chase"}, "guid"),
    "B-054-null": ({"guid": None}, "guid"),
    "B-055-other": ({"guid": "abc"}, "guid"),
    "B-055-another-kind": ({"guid": "USR-7c6f361b-e582-15b6-60c0-358f12466b4b"}, "guid"),
    "B-055-path": ({"guid": "MBR-../members/aggregate"}, "guid"),
    "B-055-empty": ({"guid": ""}, "guid"),
    "B-061-text": (with_field("is_being_aggregated", "true"), "is_being_aggregated"),
    "B-061-number": (with_field("is_being_aggregated", 1), "is_being_aggregated"),
    "B-063-zero": (with_field("aggregated_at", "0000-00-00"), "time"),
    "B-063-month": (with_field("aggregated_at", "2016-13-45T00:00:00Z"), "time"),
    "B-063-day": (with_field("successfully_aggregated_at", "2016-02-30T00:00:00Z"), "time"),
    "B-065-naive": (with_field("aggregated_at", "2016-10-13T18:07:57"), "naive_time"),
    "B-071": (with_field("name", "half \ud83d"), "surrogate"),
    "B-072-mixed": (with_field("use_cases", ["PFM", None, 5]), "use_cases"),
    "B-072-text": (with_field("use_cases", "PFM"), "use_cases"),
    "B-073": (with_field("is_oauth", "yes"), "is_oauth"),
    "B-074": (with_field("name", 2**70), "name"),
    "B-108-unix": (with_field("aggregated_at", 1476382077), "time_is_no_text"),
}


@pytest.mark.parametrize("number", REJECTED)
def test_a_record_that_cannot_be_read_without_guessing_is_rejected_alone(number):
    record, reason = REJECTED[number]
    assert read(record) == (None, reason)


T = datetime(2016, 10, 13, 18, 7, 57, tzinfo=UTC)
#: number → (field, value as it came, value as it is kept)
KEPT = {
    "B-059": ("connection_status", "FOO", "FOO"),
    "B-060": ("connection_status", None, None),
    "B-061-null": ("is_being_aggregated", None, None),
    "B-062": ("aggregated_at", None, None),
    "B-064-9999": ("aggregated_at", "9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    "B-064-0001": ("aggregated_at", "0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    "B-065-offset": ("aggregated_at", "2016-10-13T23:37:57+05:30", T),
    "B-065-small-z": ("aggregated_at", "2016-10-13t18:07:57z", T),
    "B-065-leap": (
        "aggregated_at",
        "2016-12-31T23:59:60Z",
        datetime(2016, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
    ),
    "B-066": ("aggregated_at", "2093-01-01T00:00:00Z", datetime(2093, 1, 1, tzinfo=UTC)),
    "B-068": ("metadata", '\\"a\\": \\"b\\"', '\\"a\\": \\"b\\"'),
    "B-069": ("metadata", {"a": [1, None]}, '{"a":[1,null]}'),
    "B-070-html": ("name", "<script>alert(1)</script>", "<script>alert(1)</script>"),
    "B-070-formula": ("name", "=cmd|' /C calc'!A0", "=cmd|' /C calc'!A0"),
    "B-070-math": ("name", "Ba$$in $\\undefined$", "Ba$$in $\\undefined$"),
    "B-070-nul": ("name", "a\x00b", "a\x00b"),
    "B-070-bidi": ("name", "\u202eknab", "\u202eknab"),
    "B-070-emoji": ("name", "🏦", "🏦"),
    "B-070-long": ("name", "x" * 40_000, "x" * 40_000),
    "B-072-null": ("use_cases", None, None),
    "B-072-empty": ("use_cases", [], []),
    "B-108-null": ("aggregated_at", "null", None),
    "B-108-offset": ("successfully_aggregated_at", "2016-10-13T12:07:57-06:00", T),
}


@pytest.mark.parametrize("number", KEPT)
def test_an_odd_value_is_kept_as_it_came_or_as_what_it_says(number):
    name, came, kept = KEPT[number]
    member, reason = read(with_field(name, came))
    assert (getattr(member, name), reason) == (kept, None)


def test_b056_of_a_guid_twice_in_one_answer_the_first_is_kept():
    first, second = {"guid": "MBR-1", "name": "first"}, {"guid": "MBR-1", "name": "second"}
    reply = read_reply(LIST_MEMBERS, 200, {}, json.dumps({"members": [first, second]}).encode())
    assert [member.name for member in reply.members] == ["first"]
    assert [(reject.reason, json.loads(reject.body)) for reject in reply.rejects] == [("guid_twice", second)]


@pytest.mark.parametrize("came", ["null", "2016-12-31T23:59:60Z", "2016-12-31T18:59:60.25-05:00"])
def test_b065_b108_what_a_time_said_that_is_none_is_kept_beside_it(came):
    member, _ = read(with_field("successfully_aggregated_at", came))
    assert json.loads(member.extra) == {"successfully_aggregated_at": came}
    plain, _ = read(with_field("successfully_aggregated_at", "2016-12-31T23:59:59Z"))
    assert plain.extra is None


def test_b059_an_unknown_status_is_counted_as_unknown_and_null_as_manual():
    assert (who_must_act("FOO"), who_must_act(None)) == ("unknown", "manual")


def test_b067_a_success_later_than_the_last_start_is_kept():
    at = {
        "aggregated_at": "2021-10-26T19:43:53+00:00",
        "successfully_aggregated_at": "2021-10-26T19:43:57+00:00",
    }
    member, _ = read({"guid": "MBR-1", **at})
    assert (member.successfully_aggregated_at - member.aggregated_at).total_seconds() == 4


def test_b074_an_integer_beyond_64_bits_in_an_unknown_field_is_kept_digit_by_digit():
    member, _ = read(with_field("x", 2**70))
    assert json.loads(member.extra) == {"x": 2**70}


def test_b075_a_new_field_is_kept_as_json_text():
    member, _ = read(with_field("colour", {"r": 1}))
    assert member.extra == '{"colour":{"r":1}}'


def test_b076_b111_fields_that_are_gone_are_null():
    member, reason = read({"guid": "MBR-1", "connection_status": "CONNECTED"})
    assert reason is None
    assert (member.is_oauth, member.institution_code, member.use_cases, member.name) == (
        None,
        None,
        None,
        None,
    )


def test_b109_a_job_without_times_is_valid():
    member, reason = read({"guid": "MBR-1", "connection_status": "CREATED", "most_recent_job_guid": "JOB-1"})
    assert (reason, member.most_recent_job_guid, member.aggregated_at) == (None, "JOB-1", None)


@pytest.fixture
def whole_line(run):
    """``await whole_line(users, fault)``: the Snapshot of a checked run."""

    async def observed(users, fault):
        with FaultServer(users=users, fault=fault) as server:
            return (await run(server, "observe", read_jobs=False)).snap

    return observed


def same_values(members):
    """Each of the odd values is in its row, in the order of the numbers."""
    for n, (name, _, kept) in enumerate(KEPT.values()):
        row = members.iloc[n]
        assert row["guid"] == f"MBR-{n}"
        if kept is None:
            assert pd.isna(row[name]), name
        else:
            assert (list(row[name]) if name == "use_cases" else row[name]) == kept


async def test_every_odd_value_comes_through_the_whole_line_into_typed_frames(whole_line):
    """One user's reply holds them all; the good rows of the same reply and of the other user are there."""
    records = [{"guid": f"MBR-{n}", name: value} for n, (name, value, _) in enumerate(KEPT.values())]
    bad = [record for record, _ in REJECTED.values()]
    body = json.dumps({"members": [*bad, *records]}).encode()
    snap = await whole_line(2, lambda a: say(200, body) if a.user == "user-0" else None)
    assert snap.coverage.answered == 2
    assert len(snap.members) == len(KEPT) + 2
    assert set(snap.rejects["user"]) == {"user-0"}
    assert sorted(snap.rejects["reason"]) == sorted(reason for _, reason in REJECTED.values())
    kept_bodies = [json.loads(each) for each in snap.rejects["body"]]
    assert sorted(kept_bodies, key=json.dumps) == sorted(bad, key=json.dumps)
    same_values(snap.members[snap.members["user"] == "user-0"])
    by_guid = snap.members.set_index("guid")
    assert not snap.members.dtypes.astype(str).eq("object").any()
    assert set(by_guid.loc[["MBR-0", "MBR-1"], "who_must_act"]) == {"unknown", "manual"}
    repr(snap)
    snap._repr_html_()


#: number → the rule of `mxlab.analysis.quality` that marks its record; other numbers' records it does not mark
MARKED = {
    "status-unknown": {"B-059"},
    "time-in-future": {"B-064-9999", "B-066"},
    "time-before-mx": {"B-064-0001"},
    "metadata-unreadable": {"B-068"},
    "text-control-characters": {"B-070-nul", "B-070-bidi"},
    "text-says-null": {"B-108-null"},
}


async def test_every_odd_value_is_stored_marked_exported_and_drawn(tmp_path):
    """The same values through the store, the rules of quality, every kind of file, every chart and the report."""
    records = [{"guid": f"MBR-{n}", name: value} for n, (name, value, _) in enumerate(KEPT.values())]
    store = Store(tmp_path / "store")
    with FaultServer(fault=lambda _: say(200, json.dumps({"members": records}).encode())) as server:
        settings = server.settings(read_jobs=False)
        fresh = await aio.observe(server.tokens(), settings, store=store, run="r")
    snap = Store(tmp_path / "store").load("r")
    assert snap.members["guid"].tolist() == [record["guid"] for record in records]
    same_values(snap.members)
    numbers = dict(zip(snap.members["guid"], KEPT, strict=True))
    found = findings(snap.members)
    assert {rule: set(found.loc[found["rule"] == rule, "guid"].map(numbers)) for rule in MARKED} == MARKED
    for kind in ("csv", "xlsx", "parquet", "json"):
        assert export(snap.members, tmp_path / f"members.{kind}", identities=True).stat().st_size > 1000
    rows = json.loads((tmp_path / "members.json").read_bytes())
    assert [row["name"] for row in rows] == [None if pd.isna(each) else each for each in snap.members["name"]]
    page = report(fresh, tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    for name, chart in CHARTS.items():
        if not chart.of_two:
            draw(name, snap, ax=Figure().subplots())


async def test_b057_a_guid_under_two_users_is_kept_for_both(whole_line):
    def fault(arrival):
        record = {"guid": "MBR-1", "user_guid": f"USR-{arrival.user}"}
        return say(200, json.dumps({"members": [record]}).encode())

    snap = await whole_line(2, fault)
    assert sorted(snap.members["user"]) == ["user-0", "user-1"]
    assert set(snap.members["guid"]) == {"MBR-1"}
    found = findings(snap.members)
    assert sorted(found.loc[found["rule"] == "guid-of-two-users", "user"]) == ["user-0", "user-1"]


@pytest.mark.parametrize("verb", ["observe", "aggregate"])
async def test_b058_a_token_whose_replies_name_two_users_is_lost(run, verb):
    ours, theirs = ({"guid": f"MBR-{n}", "user_guid": f"USR-{n}"} for n in range(2))

    def fault(arrival):
        shown = (
            [ours, theirs]
            if verb == "observe"
            else [ours if arrival.nth == 1 and "?" in arrival.target else theirs]
        )
        return say(200, json.dumps({"members": shown}).encode()) if arrival.user == "user-0" else None

    with FaultServer(users=2, fault=fault) as server:
        done = await run(server, verb)
    assert done.reasons == {"token_user_mismatch": 1}
    assert done.coverage.answered == 1
    assert list(done.snap.failures["user"]) == ["user-0"]
    assert done.snap.failures["what_to_do"].str.contains("two users").all()


@pytest.mark.parametrize(
    "job", ["../members/aggregate", "JOB-1/../../members/aggregate", "JOB-1?x", "JOB 1\r\nX: y", ""]
)
async def test_a_job_guid_that_is_none_never_becomes_part_of_an_address(run, job):
    """`observe` cannot be talked into a start by what a reply holds."""
    record = {"guid": "MBR-1", "most_recent_job_guid": job}
    with FaultServer(fault=lambda _: say(200, json.dumps({"members": [record]}).encode())) as server:
        done = await run(server, "observe")
    assert server.count() == {"list_members": 1}
    assert done.coverage.answered == 1
    assert list(done.snap.members["most_recent_job_guid"]) == [job]


def of_many(change, share=1.0):
    """A fault: every reply's members, of a share of the users, as `change` makes them."""

    async def changed(call):
        status, value = call.server.outcome(call.arrival)
        value["members"] = [change(record) for record in value["members"]]
        await call.say(status, json.dumps(value).encode())

    def fault(arrival):
        chosen = int(arrival.user.removeprefix("user-")) < share * 100
        return changed if arrival.endpoint == "list_members" and chosen else None

    return fault


@pytest.mark.parametrize(
    ("number", "gone"),
    [("B-076", {"connection_status"}), ("B-111", {"is_oauth", "institution_code", "use_cases"})],
)
async def test_a_field_that_no_member_has_any_more_is_said_and_nothing_is_lost(whole_line, number, gone):
    fault = of_many(lambda record: {name: value for name, value in record.items() if name not in gone})
    with pytest.warns(UserWarning, match=f"schema_drift: 0 of 200 members have {', '.join(sorted(gone))}$"):
        snap = await whole_line(100, fault)
    assert len(snap.members) == 200
    assert len(snap.rejects) == 0
    assert len(snap.manifest["schema_drift"]) == 1


async def test_b077_a_field_that_changes_its_type_is_said_and_its_records_are_kept_as_rejects(whole_line):
    fault = of_many(lambda record: record | {"is_oauth": "yes"}, share=0.02)
    with pytest.warns(UserWarning, match=r"schema_drift: 2\.0% of 200 records cannot be read \(is_oauth 4\)"):
        snap = await whole_line(100, fault)
    assert snap.coverage.answered == 100
    assert (len(snap.members), len(snap.rejects)) == (196, 4)
    assert all(json.loads(body)["is_oauth"] == "yes" for body in snap.rejects["body"])


async def test_b077_one_record_in_a_hundred_is_no_drift(whole_line):
    snap = await whole_line(100, of_many(lambda record: record | {"is_oauth": "yes"}, share=0.01))
    assert len(snap.rejects) == 2
    assert snap.manifest["schema_drift"] == []
