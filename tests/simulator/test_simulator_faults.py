"""Each fault does on the wire what its name says, acts or does not, and is counted."""

# ruff: noqa: ARG005 - each look takes the head and the body, and most need one
import asyncio
import contextlib
import email.utils
import gzip
import json
import time

import pytest

from mxlab.errors import ConfigError
from mxlab.simulator import Parameters, World
from mxlab.simulator.faults import FAULTS, ODD_RETRY_AFTER, Dice, Faults
from mxlab.simulator.server import Nexus, listening

FIGURES = Parameters(users=300, seed=5, not_pfm_share=0.0, members_per_user={3: 1.0}, throttle_seconds=0.0)


async def kick_off(api, token, *, within=0.4):
    """All bytes of the reply to one aggregate-all, and how the connection ended."""
    base = api.http._base_url
    reader, writer = await asyncio.open_connection(base.host, base.port)
    writer.write(
        f"GET /members/aggregate HTTP/1.1\r\nHost: {base.host}\r\nMD-SESSION-TOKEN: {token}\r\n\r\n".encode()
    )
    got, ending = b"", "eof"
    try:
        async with asyncio.timeout(within):
            while piece := await reader.read(1 << 20):
                got += piece
    except TimeoutError:
        ending = "silence"
    except ConnectionResetError:
        ending = "reset"
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return got, ending


def status_is(code):
    return lambda head, body: head.startswith(f"HTTP/1.1 {code} ".encode())


def unzips(head, body):
    return b"Content-Encoding: gzip" in head and gzip.decompress(body) is not None


def breaks(head, body):
    with pytest.raises((gzip.BadGzipFile, EOFError, OSError)):
        gzip.decompress(body)
    return b"Content-Encoding: gzip" in head


def parses(head, body):
    return "members" in json.loads(body)


def unreadable(head, body):
    with pytest.raises(ValueError):  # noqa: PT011 - of JSON or of UTF-8
        json.loads(body)
    return True


#: What each fault must look like to one who reads the socket.
LOOKS = {
    "close": lambda head, body: head == b"",
    "reset": lambda head, body: head == b"",
    "silence": lambda head, body: head == b"",
    "lose_reply": lambda head, body: head == b"",
    "lose_reply_reset": lambda head, body: head == b"",
    "cut_headers": lambda head, body: (
        head.startswith(b"HTTP/1.1 200") and b"\r\n\r\n" not in head and not body
    ),
    "cut_body": lambda head, body: (
        0 < len(body) < int(head.partition(b"Content-Length: ")[2].split(b"\r")[0])
    ),
    "drip": lambda head, body: head.startswith(b"H"),
    "rate_limited": lambda head, body: status_is(429)(head, body) and b"Retry-After: 5\r\n" in head,
    "rate_limited_bare": lambda head, body: status_is(429)(head, body) and b"Retry-After" not in head,
    "rate_limited_odd": lambda head, body: status_is(429)(head, body) and b"Retry-After:" in head,
    "unavailable": lambda head, body: status_is(503)(head, body) and b"Retry-After: 5\r\n" in head,
    "conflict": status_is(409),
    "address_forbidden": status_is(403),
    "server_error": lambda head, body: (
        head[9:12] in {b"500", b"502", b"504"} and json.loads(body)["error"]["code"]
    ),
    "server_error_after_acting": lambda head, body: head[9:12] in {b"500", b"502", b"504"},
    "html_error": lambda head, body: head[9:12] in {b"502", b"503"} and body.startswith(b"<!doctype html>"),
    "html_forbidden": lambda head, body: status_is(403)(head, body) and b"text/html" in head,
    "redirect": lambda head, body: (
        status_is(302)(head, body) and b"Location: https://example.invalid/" in head
    ),
    "session_expired": lambda head, body: status_is(401)(head, body) and b"4011" in body,
    "html_page": lambda head, body: status_is(200)(head, body) and b"text/html" in head,
    "empty_body": lambda head, body: status_is(200)(head, body) and body == b"",
    "no_content": lambda head, body: status_is(204)(head, body) and body == b"",
    "partial_content": lambda head, body: status_is(206)(head, body) and parses(head, body),
    "type_absent": lambda head, body: b"Content-Type" not in head and parses(head, body),
    "type_json": lambda head, body: b"Content-Type: application/json\r\n" in head and parses(head, body),
    "charset_utf16": lambda head, body: (
        b"charset=utf-16" in head and "members" in json.loads(body.decode("utf-16"))
    ),
    "charset_unknown": lambda head, body: b"charset=klingon" in head and parses(head, body),
    "length_too_long": lambda head, body: (
        int(head.partition(b"Content-Length: ")[2].split(b"\r")[0]) == len(body) + 100
    ),
    "length_too_short": lambda head, body: (
        int(head.partition(b"Content-Length: ")[2].split(b"\r")[0]) == len(body) - 10
    ),
    "gzip_cut": breaks,
    "gzip_bad_crc": breaks,
    "gzip_trailing": breaks,
    "gzip_twice": lambda head, body: unzips(head, body) and gzip.decompress(body).count(b'{"members"') == 2,
    "encoding_unknown": lambda head, body: b"Content-Encoding: rot13" in head and parses(head, body),
    "bomb": lambda head, body: b"Content-Encoding: gzip" in head and 400_000 < len(body) < 1_000_000,
    "oversized": lambda head, body: len(body) > 9_000_000,
    "endless": lambda head, body: b"chunked" in head and not body.endswith(b"0\r\n\r\n"),
    "chunk_size_huge": lambda head, body: body.startswith(b"ffffffffffff\r\n"),
    "headers_huge": lambda head, body: len(head) > 9_000 and parses(head, body),
    "status_odd": lambda head, body: status_is(999)(head, body) and parses(head, body),
    "not_json": unreadable,
    "json_cut": unreadable,
    "json_trailing": unreadable,
    "byte_order_mark": lambda head, body: (
        body.startswith(b"\xef\xbb\xbf") and parses(head, body.decode("utf-8-sig"))
    ),
    "utf8_invalid": unreadable,
    "surrogate": lambda head, body: json.loads(body)["members"][0]["name"].startswith("\ud800"),
    "not_a_number": lambda head, body: b"NaN" in body,
    "number_infinite": lambda head, body: b"1e400" in body,
    "integer_huge": lambda head, body: b"9" * 5_000 in body,
    "deep": lambda head, body: b"[" * 100_000 in body,
    "top_level_null": lambda head, body: json.loads(body) is None,
    "members_absent": lambda head, body: json.loads(body) == {},
    "members_null": lambda head, body: json.loads(body) == {"members": None},
    "members_object": lambda head, body: json.loads(body) == {"members": {}},
    "members_twice": lambda head, body: body.count(b'"members":') == 2,
    "error_in_200": lambda head, body: status_is(200)(head, body) and "error" in json.loads(body),
}


@pytest.mark.parametrize("name", list(FAULTS))
async def test_a_fault_acts_or_not_ends_as_it_says_and_is_counted(served, name):
    fault = FAULTS[name]
    async with served(FIGURES) as api:
        user = next(
            user
            for user in range(300)
            if all(m.status == "CONNECTED" and not m.running for m in api.world.members(user, api.now))
        )
        token = await api.session(user)
        stays_open = fault.ending in {"silence", "drip"} or name == "session_expired"
        within = 0.4 if stays_open else 20.0
        asked = {"rates": {name: 1.0}, "endpoints": ["aggregate_all"]}
        assert (await api.control("POST", "faults", json=asked))[0] == 200
        got, ending = await kick_off(api, token, within=within)
        head, separator, body = got.partition(b"\r\n\r\n")
        assert LOOKS[name](head + separator[:2], body)
        if head and name not in {"drip", "cut_headers"}:
            assert b"MXLAB-Simulated: true" in head
        assert ending == ("silence" if stays_open else "reset" if fault.ending == "reset" else "eof")
        acted = any(job.requested_at == api.now for job in api.world.jobs(api.now) if job.member.user == user)
        assert acted == fault.acts
        arrivals = api.nexus.received()
        assert arrivals["by_endpoint"]["aggregate_all"] == 1
        assert list(arrivals["aggregate_by_user"].values()) == [1]
        assert bool(arrivals["acted_by_user"]) == fault.acts
        assert arrivals["refused_by_endpoint"] == ({"aggregate_all": 1} if fault.refuses else {})
        assert (await api.get("/members", await api.session(user)))[0] == 200


def test_every_fault_has_its_look_and_every_odd_retry_after_comes():
    assert set(LOOKS) == set(FAULTS)
    dice = Dice(Faults(rates={"rate_limited_odd": 1.0}))
    seen = {int(dice.throw(user, "read_job")[2] * len(ODD_RETRY_AFTER)) for user in range(300)}
    assert seen == set(range(len(ODD_RETRY_AFTER)))


def test_rates_are_kept_draws_are_seeded_and_do_not_hang_on_the_order_of_arrival():
    faults = Faults(rates={"close": 0.05, "server_error": 0.2}, endpoints=("aggregate_all",), seed=3)

    def drawn(order):
        dice = Dice(faults)
        return {user: dice.throw(user, "aggregate_all")[1] for user in order}

    forwards = drawn(range(20_000))
    assert forwards == drawn(reversed(range(20_000)))
    names = list(forwards.values())
    assert names.count("close") / 20_000 == pytest.approx(0.05, abs=0.006)
    assert names.count("server_error") / 20_000 == pytest.approx(0.2, abs=0.012)
    assert {Dice(faults).throw(user, "list_members")[1] for user in range(500)} == {""}


def test_latency_is_log_normal_in_real_seconds():
    dice = Dice(Faults(latency_seconds=0.2, latency_sigma=0.5))
    delays = sorted(dice.throw(user, "read_member")[3] for user in range(20_001))
    assert delays[10_000] == pytest.approx(0.2, rel=0.02)
    assert delays[16_827] / delays[10_000] == pytest.approx(1.6487, rel=0.04)  # e^0.5 at one sigma


async def test_faults_end_after_their_time_and_a_new_set_replaces_the_old(served):
    async with served(FIGURES) as api:
        token = await api.session()
        await api.control("POST", "faults", json={"rates": {"unavailable": 1.0}, "for_seconds": 0.6})
        ends = time.monotonic() + 0.6
        assert (await api.get("/members", token))[0] == 503
        await asyncio.sleep(ends - time.monotonic() + 0.02)
        assert (await api.get("/members", token))[0] == 200
        await api.control("POST", "faults", json={"rates": {"conflict": 1.0}})
        assert (await api.get("/members", token))[0] == 409
        await api.control("POST", "faults", json={})
        assert (await api.get("/members", token))[0] == 200


async def test_too_many_at_once_are_429_and_the_date_can_be_off(served):
    async with served(FIGURES) as api:
        token = await api.session()
        await api.control(
            "POST", "faults", json={"in_flight_limit": 4, "latency_seconds": 0.4, "latency_sigma": 0.0}
        )
        replies = await asyncio.gather(*(api.get("/members", token) for _ in range(10)))
        assert sorted(status for status, _, _ in replies) == [200] * 4 + [429] * 6
        await api.control("POST", "faults", json={"date_offset_seconds": -3_600})
        date = (await api.get("/members", token))[2]["Date"]
        off = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
        assert off == pytest.approx(3_600, abs=3)


async def test_an_idle_connection_is_closed():
    nexus = Nexus(World(FIGURES), lambda: FIGURES.epoch)
    async with listening(nexus, idle_seconds=0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /members HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 401 ")  # and then the end
        writer.close()
        await writer.wait_closed()


async def test_fact_20_a_connection_that_drops_shows_each_silent_retry_as_an_arrival(served):
    async with served(FIGURES) as api:
        token = await api.session()
        await api.control("POST", "faults", json={"rates": {"close": 1.0}, "endpoints": ["aggregate_all"]})
        with pytest.raises(Exception, match=r"[Dd]isconnected|[Rr]eset"):
            await api.get("/members/aggregate", token)
        assert (
            api.nexus.received()["aggregate_by_user"]["user-0000000"] == 2
        )  # aiohttp has sent the GET again


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"rates": {"clsoe": 0.1}}, ["clsoe", "did you mean 'close'"]),
        ({"rates": {"close": -0.1}}, ["close", "-0.1"]),
        ({"rates": {"close": 1.5}}, ["close", "1.5"]),
        ({"rates": {"close": "often"}}, ["close", "often"]),
        ({"rates": {"close": 0.6, "reset": 0.6}}, ["together"]),
        ({"rates": []}, ["wrong type"]),
        ({"latency_seconds": -1}, ["latency_seconds"]),
        ({"latency_seconds": "long"}, ["wrong type"]),
        ({"latncy_seconds": 1}, ["latency_seconds"]),
    ],
)
def test_bad_faults_are_refused_with_what_to_do(figures, words):
    with pytest.raises(ConfigError) as caught:
        Faults.of(figures)
    for word in words:
        assert word in str(caught.value)
