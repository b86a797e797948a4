"""Bad input by number, B-001 to B-033: what the network may bring instead of a reply.

Every case is served to one user of three by the fault server; the other two must not notice. B-009 to B-019 are in
`faults.test_faults_first`, as F-18.
"""

import json

import pytest

from faults.server import MEDIA_TYPE, FaultServer, acting, error, hang, raw, say
from mxlab.nexus.protocol import retry_after

GOOD = b'{"members":[]}'


def replied(*lines, body=GOOD):
    """Raw bytes of a whole reply whose head is not what a well-behaved server writes."""
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *lines, "", ""])
    return raw(head.encode("latin-1") + body, then="stay")


async def flood(call):
    """103 Early Hints without end."""
    while True:
        await call.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")


def status(line):
    return raw(f"HTTP/1.1 {line}\r\nContent-Length: 14\r\n\r\n".encode() + GOOD, then="stay")


HTML = b"<html>log in</html>"
UTF_16 = GOOD.decode().encode("utf-16")
#: number → (what the server does, reason of the user's loss, or None where the user is answered)
CASES = {
    "B-001": (say(200), "bad_reply_empty_body"),
    "B-002": (say(204), "bad_reply_unexpected_204"),
    "B-003": (say(206, GOOD), "bad_reply_unexpected_206"),
    "B-004": (say(200, HTML, kind="text/html"), "bad_reply_content_type"),
    "B-006": (say(200, GOOD, kind="application/json"), None),
    "B-007": (say(200, UTF_16, kind=f"{MEDIA_TYPE}; charset=utf-16"), "bad_reply_charset"),
    "B-008": (say(200, GOOD, kind=f"{MEDIA_TYPE}; charset=klingon"), "bad_reply_charset"),
    "B-020-long": (replied("X-Long: " + "x" * 9000), "bad_reply_headers"),
    "B-020-many": (replied(*(f"X-{n}: x" for n in range(200))), "bad_reply_headers"),
    "B-020-large": (replied(*(f"X-{n}: {'x' * 600}" for n in range(2000))), "bad_reply_headers"),
    "B-021-999": (status("999 Odd"), "bad_reply_unexpected_999"),
    "B-021-0": (status("0 Odd"), "bad_reply_headers"),
    "B-021-text": (status("fine thanks"), "bad_reply_headers"),
    "B-022": (flood, "reply_timeout"),
    **{
        f"B-023-{code}": (say(code, also=["Location: http://127.0.0.1:9/"]), "redirected")
        for code in range(301, 309)
    },
    "B-023-here": (say(302, also=["Location: /members"]), "redirected"),
    "B-023-nowhere": (say(302), "redirected"),
    "B-024": (error(401, 4011), "session_expired"),
    "B-025": (say(401), "session_expired"),
    "B-024-first-401": (error(401, 9999), "session_expired"),
    "B-024-then-4011": (error(400, 4011), "session_expired"),
    "B-027": (error(403, 4030), "forbidden"),
    "B-028": (say(403, b"<html>Request blocked. CloudFront</html>", kind="text/html"), "forbidden_by_cdn"),
    **{f"B-029-{code}": (error(code), f"refused_{code}") for code in (404, 405, 406, 409, 422)},
    **{f"B-031-{code}": (error(code), "server_fault") for code in (500, 502, 504)},
    "B-032": (error(503, also=["Retry-After: 0"]), "unavailable"),
    "B-032-plain": (error(503), "server_fault"),
    "hang": (hang, "reply_timeout"),
}


#: number → (body, content type, what is said of it once)
READ_ALL_THE_SAME = {
    "B-005": (GOOD, None, "without a content type"),
    "B-037": (b"\xef\xbb\xbf" + GOOD, MEDIA_TYPE, "with a byte order mark"),
}


@pytest.mark.parametrize("number", READ_ALL_THE_SAME)
async def test_a_reply_that_is_odd_in_its_wrapping_is_read_and_said_once(run, number):
    body, kind, oddity = READ_ALL_THE_SAME[number]
    with FaultServer(users=4) as server:
        server.fault = lambda a: say(200, body, kind=kind) if a.user != "user-0" else None
        with pytest.warns(UserWarning, match=f"schema_drift: 3 replies came {oddity}, and were read") as said:
            snap = (await run(server, "observe")).snap
    assert len(said) == len(snap.manifest["schema_drift"]) == 1
    assert (snap.coverage.answered, len(snap.rejects)) == (4, 0)
    assert set(snap.members["user"]) == {"user-0"}


#: What arrived and is kept, where it is not the body of a good reply; of a head that is no HTTP there is nothing.
KEPT = {"B-001": b"", "B-002": b"", "B-004": HTML, "B-007": UTF_16}
#: What a reason's advice must name: where to look, or what to change.
ADVICE = {
    "bad_reply": "the body in the rejects frame",
    "reply_timeout": "reply_timeout_seconds",
    "redirected": "base_url",
    "session_expired": "new session token",
    "forbidden": "use_cases",
    "forbidden_by_cdn": "a proxy or a CDN",
    "refused": "status code",
    "server_fault": "MX failed",
    "unavailable": "wait",
}
#: Read again before the user is given up, up to `attempts`.
TRANSIENT = {"reply_timeout", "server_fault", "unavailable"}


@pytest.mark.parametrize("number", CASES)
async def test_a_bad_reply_loses_its_user_with_a_reason_and_no_other(run, number):
    deed, reason = CASES[number]
    with FaultServer(users=3, speed=1000) as server:
        server.fault = lambda a: deed if a.user == "user-1" else None
        snap = (await run(server, "observe", reply_timeout_seconds=0.5, attempts=2)).snap
        times = server.count("list_members")["user-1"]
    assert (snap.coverage.asked, snap.coverage.answered) == (3, 3 - bool(reason))
    assert dict(snap.coverage.reasons) == ({reason: 1} if reason else {})
    assert set(snap.members["user"]) == {"user-0", "user-2"}
    assert times == (2 if reason in TRANSIENT else 1)
    rejects = snap.rejects
    if (reason or "").startswith("bad_reply_"):
        body = b"" if reason == "bad_reply_headers" else KEPT.get(number, GOOD)
        (reject,) = rejects[["user", "endpoint", "reason", "body"]].itertuples(index=False)
        assert tuple(reject) == ("user-1", "list_members", reason.removeprefix("bad_reply_"), body)
    else:
        assert rejects.empty
    if reason:
        (failure,) = snap.failures[["user", "state", "reason"]].itertuples(index=False)
        assert tuple(failure) == ("user-1", "lost", reason)
        kind = next(each for each in sorted(ADVICE, key=len, reverse=True) if reason.startswith(each))
        assert ADVICE[kind] in snap.failures["what_to_do"].iloc[0]


@pytest.mark.parametrize(
    "deed",
    [error(409), error(500), error(502), error(504), say(200, b"<html>"), error(503)],
    ids=["B-029-409", "B-031-500", "B-031-502", "B-031-504", "unreadable", "B-032-plain"],
)
async def test_an_unclear_answer_to_a_start_that_acted_is_cleared_up_by_reading(run, deed):
    with FaultServer(fault=lambda a: acting(deed) if a.endpoint == "aggregate_all" else None) as server:
        snap = (await run(server)).snap
    assert snap.coverage.answered == 1
    assert server.count()["aggregate_all"] == 1
    assert set(snap.members["outcome"]) == {"finished"}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        ("0", 0.0),
        ("-1", 0.0),
        ("2.5", 2.5),
        ("1e9", 300.0),
        ("inf", 300.0),
        ("-inf", 0.0),
        ("nan", None),
        ("abc", None),
        ("", None),
        ("5, 7", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2099 07:28:30 GMT", 300.0),
        ("Wed, 99 Oct 2015 07:28:30 GMT", None),
        (None, None),
    ],
)
def test_b030_retry_after_is_read_in_every_form_and_bounded(value, seconds):
    assert retry_after(value, "Wed, 21 Oct 2015 07:28:00 GMT") == seconds


def test_b030_a_date_without_the_servers_own_date_says_nothing():
    assert retry_after("Wed, 21 Oct 2015 07:28:30 GMT") is None


async def test_b030_of_two_values_the_first_counts(run):
    twice = error(429, also=["Retry-After: 0.5", "Retry-After: 100000"])
    with FaultServer(fault=lambda a: twice if a.nth == 1 else None, speed=10) as server:
        done = await run(server, "observe")
    assert done.coverage.answered == 1
    assert done.seconds < 5


async def test_b026_below_a_hundred_users_expired_tokens_never_stop_a_run(run):
    with FaultServer(users=99, fault=lambda _: error(401, 4011)) as server:
        done = await run(server, "observe")
    assert done.reasons == {"session_expired": 99}


async def test_b033_cookies_are_neither_kept_nor_sent_back(run):
    """By name: of an address aiohttp would keep none anyway."""

    async def with_cookie(call):
        code, value = call.server.outcome(call.arrival)
        await call.say(
            code, json.dumps(value).encode(), also=[f"Set-Cookie: who={call.arrival.user}; Path=/"]
        )

    with FaultServer(users=3, fault=lambda _: with_cookie) as server:
        done = await run(server, "observe", base_url=f"http://localhost:{server.port}")
    assert done.coverage.answered == 3
    assert len(server.arrivals) > 3
    assert not [each for each in server.arrivals if "cookie" in each.headers]


async def test_b028_a_cdn_that_refuses_a_get_with_a_body_is_not_taken_for_mx(run):
    page = say(403, b"<html>Request blocked. CloudFront</html>", kind="text/html; charset=utf-8")
    with FaultServer(users=3) as server:
        server.fault = lambda a: page if a.body else None
        done = await run(server)
    assert done.reasons == {"forbidden_by_cdn": 3}
    assert done.snap.failures["what_to_do"].str.contains("a GET with a body").all()
    assert set(server.count("aggregate_all").values()) == {1}
