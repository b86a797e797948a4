"""Bad input by number, B-034 to B-052 and B-110: what may stand where a list of members belongs."""

import json
from collections import Counter
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults.server import MEDIA_TYPE, FaultServer, acting, say
from mxlab import aio
from mxlab.errors import BadReply, NexusError
from mxlab.nexus.protocol import AGGREGATE_ALL, LIST_MEMBERS, READ_JOB, read_reply

HEADERS = {"Content-Type": MEDIA_TYPE}
MEMBER = {"guid": "MBR-1"}


def members(*records, **further):
    return json.dumps({"members": list(records), **further}).encode()


def many(count):
    return members(*({"guid": f"MBR-{n}"} for n in range(count)))


#: number → (body, reason)
UNREADABLE = {
    "B-034": (b"it works!", "json"),
    "B-035": (b'{"members": [{"guid": "MBR-1"', "json_truncated"),
    "B-036": (b'{"members": []} trailing', "json_trailing"),
    "B-038": (b'{"members": [{"guid": "MBR-1", "name": "caf\xe9"}]}', "utf8"),
    "B-039-nan": (b'{"members": NaN}', "json"),
    "B-039-infinity": (b'{"members": [{"guid": "MBR-1", "x": Infinity}]}', "json"),
    "B-039-minus": (b'{"members": [{"guid": "MBR-1", "x": -Infinity}]}', "json"),
    "B-040": (b'{"members": [{"guid": "MBR-1", "x": 1e400}]}', "json"),
    "B-041": (b'{"members": [{"guid": "MBR-1", "x": ' + b"1" * 5000 + b"}]}", "json"),
    "B-042": (b'{"members":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "depth"),
    "B-043-null": (b"null", "shape"),
    "B-043-list": (b"[]", "shape"),
    "B-043-text": (b'"x"', "shape"),
    "B-043-number": (b"5", "shape"),
    "B-044": (b"{}", "no_members"),
    "B-045": (b'{"members": null}', "members_shape"),
    "B-046": (b'{"members": {}}', "members_shape"),
    "B-051": (many(10_001), "too_many"),
    "B-110-endless": (members(MEMBER, pagination={"total_pages": 401}), "paging"),
    "B-052": (b'{"error": {"code": 5000, "message": "oops"}}', "error_in_200"),
}


@pytest.mark.parametrize("endpoint", [LIST_MEMBERS, AGGREGATE_ALL], ids=lambda e: e.name)
@pytest.mark.parametrize("number", UNREADABLE)
def test_a_body_that_is_no_list_of_members_is_a_bad_reply_with_its_reason(number, endpoint):
    body, reason = UNREADABLE[number]
    with pytest.raises(BadReply) as caught:
        read_reply(endpoint, 200, HEADERS, body)
    assert caught.value.reason == reason
    assert caught.value.may_have_acted
    assert not caught.value.transient


async def test_each_of_them_loses_its_own_user_and_is_kept_as_a_reject(run):
    """One user a number, and two who are well; what is longer than 64 KiB is kept to there, with its length."""
    numbers = dict(zip((f"user-{n}" for n in range(len(UNREADABLE))), UNREADABLE.values(), strict=True))
    with FaultServer(users=len(numbers) + 2) as server:
        server.fault = lambda a: say(200, numbers[a.user][0]) if a.user in numbers else None
        snap = (await run(server, "observe")).snap
        assert set(server.count("list_members").values()) == {1}, "a reply that cannot be read is read again"
    assert (snap.coverage.answered, snap.coverage.lost) == (2, len(numbers))
    failures, rejects = snap.failures.set_index("user"), snap.rejects.set_index("user")
    assert set(snap.members["user"]) == set(server.bank.users) - set(numbers)
    assert sorted(rejects.index) == sorted(numbers)
    for user, (body, reason) in numbers.items():
        assert failures.loc[user, "reason"] == f"bad_reply_{reason}"
        assert tuple(rejects.loc[user, ["reason", "body", "length"]]) == (reason, body[: 2**16], len(body))
    assert failures["what_to_do"].str.contains("the body in the rejects frame").all()


async def test_a_reply_to_a_start_that_cannot_be_read_is_cleared_up_by_reading(run):
    """Each of them came instead of the answer to a start that acted: nobody is lost, nothing is started twice."""
    numbers = dict(zip((f"user-{n}" for n in range(len(UNREADABLE))), UNREADABLE.values(), strict=True))

    def fault(arrival):
        return acting(say(200, numbers[arrival.user][0])) if arrival.endpoint == "aggregate_all" else None

    with FaultServer(users=len(numbers), fault=fault) as server:
        done = await run(server)
    assert done.coverage.answered == len(numbers)
    assert set(server.count("aggregate_all").values()) == {1}
    assert Counter(done.snap.rejects["reason"]) == Counter(reason for _, reason in numbers.values())
    assert set(done.snap.members["outcome"]) == {"finished"}


@pytest.mark.parametrize(
    ("body", "guids"),
    [
        pytest.param(b"\xef\xbb\xbf" + members(MEMBER), ["MBR-1"], id="B-037"),
        pytest.param(members(), [], id="B-047"),
        pytest.param(b'{"members": [], "members": [{"guid": "MBR-2"}]}', ["MBR-2"], id="B-048-last-wins"),
        pytest.param(b'{"members": [{"guid": "MBR-1", "guid": "MBR-2"}]}', ["MBR-2"], id="B-049-last-wins"),
        pytest.param(members(MEMBER, colour="red"), ["MBR-1"], id="B-050"),
        pytest.param(b'{"member": [{"guid": "MBR-1"}]}', ["MBR-1"], id="rooted-member"),
        pytest.param(b'{"members": {"guid": "MBR-1"}}', ["MBR-1"], id="one-object"),
        pytest.param(many(10_000), [f"MBR-{n}" for n in range(10_000)], id="B-051-just-not"),
    ],
)
def test_a_body_in_another_known_shape_is_read(body, guids):
    reply = read_reply(LIST_MEMBERS, 200, HEADERS, body)
    assert [member.guid for member in reply.members] == guids
    assert not reply.rejects


@pytest.mark.parametrize(
    ("body", "page", "more"),
    [
        (members(MEMBER, pagination={"total_pages": 2}), 1, True),
        (members(MEMBER, pagination={"total_pages": 2}), 2, False),
        (members(MEMBER, pagination={"total_pages": 0}), 1, False),
        (members(MEMBER, pagination={"total_pages": "2"}), 1, False),
        (members(MEMBER, pagination=None), 1, False),
        (many(25), 1, True),
        (many(24), 1, False),
        (many(26), 1, False),
        (many(1000), 3, True),
        (members(*({"guid": f"MBR-{n}"} for n in range(25)), pagination={"total_pages": 1}), 1, False),
    ],
)
def test_b050_a_pagination_block_decides_and_else_a_full_page_may_have_a_successor(body, page, more):
    assert read_reply(LIST_MEMBERS, 200, HEADERS, body, page=page).has_more is more


#: number → the pages that the server gives, each a range of members; the last is repeated
PAGES = {
    "B-110": ([range(25), range(25, 26)], 26),
    "B-110-repeats": ([range(25), range(25)], 25),
    "B-110-empty": ([range(25), range(0), range(25, 30)], 25),
    "B-110-overlaps": ([range(25), range(20, 45), range(45, 50)], 50),
    "B-110-ignores-the-page": ([range(25)], 25),
}


@pytest.mark.parametrize("number", PAGES)
async def test_all_pages_of_list_members_are_read_each_member_once(run, number):
    pages, count = PAGES[number]

    def fault(arrival):
        if arrival.endpoint != "list_members":
            return None
        page = pages[min(arrival.nth, len(pages)) - 1]
        return say(200, members(*({"guid": f"MBR-{n}"} for n in page)))

    with FaultServer(fault=fault) as server:
        snap = (await run(server, "observe")).snap
    assert snap.coverage.answered == 1
    assert sorted(snap.members["guid"]) == sorted(f"MBR-{n}" for n in range(count))
    assert all("records_per_page=1000" in each.target for each in server.arrivals)


@pytest.mark.parametrize(
    ("totals", "pages_read"), [((3, 2, 2), 2), ((1, 3, 3), 1), ((3, 3, 3), 3)], ids=["shrinks", "one", "all"]
)
async def test_b110_the_pagination_block_of_the_page_at_hand_decides(run, totals, pages_read):
    """Where the list grew shorter between two pages, what is left is read and nothing is asked for twice."""

    def fault(arrival):
        first = (arrival.nth - 1) * 10
        records = [{"guid": f"MBR-{n}"} for n in range(first, first + 10)]
        return say(200, members(*records, pagination={"total_pages": totals[arrival.nth - 1]}))

    with FaultServer(fault=fault) as server:
        done = await run(server, "observe")
    assert server.count() == {"list_members": pages_read}
    assert len(done.snap.members) == 10 * pages_read


@pytest.mark.parametrize("second", [[], [{"guid": "MBR-0"}]], ids=["empty", "repeats"])
async def test_b110_a_list_that_says_how_long_it_is_is_read_to_there(run, second):
    """Whatever its pages hold: what is on the last one counts too."""
    pages = [[{"guid": "MBR-0"}], second, [{"guid": "MBR-1"}]]
    with FaultServer() as server:
        server.fault = lambda a: say(200, members(*pages[a.nth - 1], pagination={"total_pages": 3}))
        done = await run(server, "observe")
    assert server.count() == {"list_members": 3}
    assert [each.target.rpartition("page=")[2] for each in server.arrivals[1:]] == ["2", "3"]
    assert sorted(done.snap.members["guid"]) == ["MBR-0", "MBR-1"]


async def test_a_page_that_fails_in_a_later_look_does_not_hide_the_members_of_the_last():
    """The next look begins anew: what one page brought before is not taken for this look's first page."""
    records = [{"guid": f"MBR-{n}", "most_recent_job_guid": "JOB-1"} for n in range(30)]
    moved = [
        {
            **each,
            "most_recent_job_guid": "JOB-2",
            "connection_status": "CONNECTED",
            "is_being_aggregated": False,
        }
        for each in records
    ]
    looks = []

    def fault(arrival):
        if arrival.endpoint == "aggregate_all":
            return say(200, members(*records))
        if arrival.endpoint != "list_members":
            return None
        page = int(arrival.target.rpartition("page=")[2]) if "&page=" in arrival.target else 1
        looks.append(page)
        shown = records if arrival.nth <= 2 else moved
        if arrival.nth == 4:
            return say(500)
        return say(200, members(*(shown[:25] if page == 1 else shown[25:])))

    with FaultServer(fault=fault) as server:
        snap = await aio.aggregate(server.tokens(), server.settings())
    assert looks[:6] == [1, 2, 1, 2, 1, 2]
    assert dict(snap.members["outcome"].value_counts())["finished"] == 30


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"job": null}',
        b'{"job": {"guid": 5}}',
        b'{"job": {"guid": "JOB-1", "started_at": "soon"}}',
    ],
)
def test_a_job_that_cannot_be_read_is_a_bad_reply(body):
    with pytest.raises(BadReply):
        read_reply(READ_JOB, 200, HEADERS, body)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)
FIELDS = [
    "guid",
    "aggregated_at",
    "connection_status",
    "is_being_aggregated",
    "metadata",
    "use_cases",
    "name",
    "x",
]
GUID = st.integers(0, 3).map("MBR-{}".format)
RECORD = (
    JSON
    | st.dictionaries(st.sampled_from(FIELDS), JSON)
    | st.fixed_dictionaries({"guid": GUID}, optional=dict.fromkeys(FIELDS[1:], JSON))
)
HALF = st.sampled_from([r"\ud800", r"\udfff", r"\ud83d"])


@given(JSON, st.sampled_from([LIST_MEMBERS, AGGREGATE_ALL, READ_JOB]))
def test_any_json_is_read_or_refused_as_a_nexus_error(value, endpoint):
    with suppress(NexusError):
        read_reply(endpoint, 200, HEADERS, json.dumps(value).encode())


@given(st.binary(), st.sampled_from([200, 204, 301, 401, 403, 429, 500, 503, 999]), st.text())
def test_any_bytes_are_read_or_refused_as_a_nexus_error(body, status, told):
    for headers in (HEADERS, {"Content-Encoding": "gzip", "Retry-After": told, "Date": told}, {}):
        with suppress(NexusError):
            read_reply(LIST_MEMBERS, status, headers, body)


@given(st.lists(RECORD, max_size=8), st.booleans(), HALF)
def test_records_in_are_members_and_rejects_out(records, is_halved, half):
    body = json.dumps({"members": records, "x": None})
    if is_halved:
        body = (
            body.replace('"', f'"{half}', 2)
            if not records
            else body.replace('"members": [', '"members": ["' + half + '", ', 1)
        )
    try:
        reply = read_reply(LIST_MEMBERS, 200, HEADERS, body.encode())
    except BadReply:
        assert is_halved
        return
    assert len(reply.members) + len(reply.rejects) == len(records) + is_halved
    assert len({member.guid for member in reply.members}) == len(reply.members)
    for member in reply.members:
        msgspec.json.encode(member)
    for reject in reply.rejects:
        assert reject.reason
        json.loads(reject.body)
