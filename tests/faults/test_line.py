"""The whole line against one server: what issue 2 asks of it, line by line."""

import asyncio
import json
from collections import Counter
from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest

from faults.server import MEDIA_TYPE, FaultServer, close, error, say
from mxlab import aio
from mxlab.fetch.client import NexusClient
from mxlab.nexus.protocol import AGGREGATE_ALL, LIST_MEMBERS

DOCUMENTED = (Path(__file__).parent.parent / "samples" / "aggregate_all.200.json").read_bytes()


async def test_a_healthy_run_answers_every_user(run):
    with FaultServer(users=20, members=3) as server:
        done = await run(server)
    assert done.coverage.answered == 20
    assert Counter(done.snap.members["outcome"]) == {"finished": 60}
    assert done.snap.members["job_seconds"].notna().all()


def test_the_sample_is_the_documented_record_byte_for_byte():
    """As the page of aggregate-all shows it, from the opening to the closing brace."""
    assert (
        sha256(DOCUMENTED).hexdigest() == "b49a7e0b459150c15db94c00c0b965bb5699ce1d7f77d7f9bef4cd4e63582e04"
    )


@pytest.mark.parametrize("verb", ["observe", "aggregate"])
async def test_the_documented_record_comes_out_as_one_typed_row(verb):
    with FaultServer(
        fault=lambda a: say(200, DOCUMENTED) if "members" in a.endpoint + a.target else None
    ) as server:
        snap = await getattr(aio, verb)(server.tokens(), server.settings())
    (row,) = snap.members.itertuples()
    assert row.aggregated_at > row.successfully_aggregated_at
    assert (row.aggregated_at - row.successfully_aggregated_at).total_seconds() == 619
    assert str(row.aggregated_at) == "2016-10-13 18:07:57+00:00"
    assert (row.guid, row.institution_code) == ("MBR-7c6f361b-e582-15b6-60c0-358f12466b4b", "chase")
    assert row.metadata == json.loads(DOCUMENTED)["members"][0]["metadata"]
    assert list(row.use_cases) == ["PFM"]
    assert (row.is_user_created, row.is_managed_by_user) == (True, False)
    numbers = snap.members[["aggregation_seconds_low", "aggregation_seconds_high", "job_seconds"]]
    assert numbers.isna().all(axis=None), "a latency was made of times that belong to two jobs"
    assert row.outcome == "not_triggered" if verb == "aggregate" else snap.members["outcome"].isna().all()
    assert not snap.members.dtypes.astype(str).eq("object").any()


async def test_one_aggregate_call_to_a_server_that_closes_is_one_arrival():
    with FaultServer(fault=lambda _: close) as server:
        (token,) = server.tokens()
        async with NexusClient(server.settings(), server.clock.steady()) as client:
            exchange = await client.call(AGGREGATE_ALL, token, "session")
        assert (type(exchange.error).__name__, exchange.left) == ("ConnectionLost", True)
        assert exchange.error.may_have_acted
        assert server.count() == {"aggregate_all": 1}


async def test_one_call_on_a_reused_connection_that_closes_is_one_arrival():
    with FaultServer(fault=lambda a: close if a.endpoint == "aggregate_all" else None) as server:
        (token,) = server.tokens()
        async with NexusClient(server.settings(), server.clock.steady()) as client:
            await client.call(LIST_MEMBERS, token, "session")
            exchange = await client.call(AGGREGATE_ALL, token, "session")
        assert type(exchange.error).__name__ == "ConnectionLost"
        assert server.count() == {"list_members": 1, "aggregate_all": 1}
        assert server.connections == 1


async def test_plain_aiohttp_would_have_sent_it_twice():
    """The guard guards something: without our middleware the same call arrives two times."""
    with FaultServer(fault=lambda _: close) as server:
        (token,) = server.tokens()
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.get(
                    f"{server.url}/members/aggregate", headers={"MD-SESSION-TOKEN": token.reveal()}
                )
        assert server.count() == {"aggregate_all": 2}


async def test_an_aggregate_is_a_get_with_a_json_body_and_the_vendor_media_type():
    with FaultServer() as server:
        await aio.aggregate(server.tokens(), server.settings(include_holdings=True))
        arrival = next(each for each in server.arrivals if each.endpoint == "aggregate_all")
    assert json.loads(arrival.body) == {"include_holdings": True, "include_transactions": False}
    assert arrival.headers["content-type"] == arrival.headers["accept"] == MEDIA_TYPE
    assert "cookie" not in arrival.headers


FATES = {
    "user-1": (error(401, 4010), "SessionExpired", "session_expired"),
    "user-2": (error(401, 4011), "SessionExpired", "session_expired"),
    "user-3": (error(403, 4030), "Forbidden", "forbidden"),
    "user-4": (error(429), "RateLimited", "rate_limited"),
    "user-5": (error(500), "ServerFault", "server_fault"),
    "user-6": (say(200, b"<html>log in</html>", kind="text/html"), "BadReply", "bad_reply_content_type"),
    "user-7": (say(200, b'{"members": [{"guid"'), "BadReply", "bad_reply_json_truncated"),
    "user-8": (say(200, b"\x00\xff\xfe"), "BadReply", "bad_reply_json"),
    "user-9": (say(502, b"<html>bad gateway</html>", kind="text/html"), "ServerFault", "server_fault"),
}


@pytest.mark.parametrize("verb", ["observe", "aggregate"])
async def test_each_failure_has_its_row_and_its_reason_and_fells_no_other_user(run, verb):
    def fault(arrival):
        return FATES[arrival.user][0] if arrival.user in FATES else None

    with FaultServer(users=30, members=2, fault=fault) as server:
        done = await run(server, verb)
    assert (done.coverage.answered, done.coverage.lost) == (21, 9)
    assert done.reasons == Counter(reason for _, _, reason in FATES.values())
    requests = done.snap.requests.set_index("user")
    for user, (_, name, _) in FATES.items():
        assert name in set(requests.loc[[user], "error"].astype(str)), user
    assert done.snap.members["user"].nunique() == 21
    assert len(done.snap.members) == 42
    assert set(done.snap.rejects["user"]) == {"user-6", "user-7", "user-8"}
    assert b"<html>log in</html>" in list(done.snap.rejects["body"])
    assert done.snap.failures["what_to_do"].str.len().gt(20).all()


async def test_the_status_of_a_failed_start_decides_what_happens_next(run):
    """The same failures, at the start: what cannot have acted is final; what may have is cleared up by reading."""

    def fault(arrival):
        return (
            FATES[arrival.user][0] if arrival.user in FATES and arrival.endpoint == "aggregate_all" else None
        )

    with FaultServer(users=12, members=2, fault=fault) as server:
        done = await run(server)
    starts = server.count("aggregate_all")
    assert {user: starts[user] for user in FATES} == {
        **dict.fromkeys(("user-1", "user-2", "user-3"), 1),
        "user-4": 4,
        **dict.fromkeys(("user-5", "user-6", "user-7", "user-8", "user-9"), 2),
    }
    assert dict(done.reasons) == {
        "session_expired": 2,
        "forbidden": 1,
        "rate_limited": 1,
        "start_not_cleared_up": 5,
    }
    assert done.coverage.unknown == 5


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(run, status):
    with FaultServer() as elsewhere:
        to = f"Location: {elsewhere.url}/members"
        with FaultServer(users=3, fault=lambda _: say(status, also=[to])) as server:
            done = await run(server)
        assert done.reasons == {"redirected": 3}
        assert elsewhere.connections == len(elsewhere.arrivals) == 0


async def test_the_requests_that_left_are_the_arrivals(run):
    """Held in every run by the fixture; here in one with refused connections, so that some never left."""
    with FaultServer(users=5, members=1, speed=1) as server:
        server.down()
        asyncio.get_running_loop().call_later(0.3, server.up)
        done = await run(server, "observe")
        left = done.snap.requests["left"]
        assert not left.all()
        assert left.sum() == len(server.arrivals)
    assert done.coverage.answered == 5
