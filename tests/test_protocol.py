"""What is sent to Nexus, and which error a refusal is: the table that decides what may be sent again."""

import gzip
import json

import pytest

from mxlab import errors
from mxlab.errors import BadReply
from mxlab.nexus import protocol
from mxlab.nexus.protocol import (
    AGGREGATE_ALL,
    LIST_MEMBERS,
    READ_JOB,
    READ_MEMBER,
    Endpoint,
    decoded,
    read_reply,
    refusal,
    rejected,
    request_body,
)

ENDPOINTS = [each for each in vars(protocol).values() if isinstance(each, Endpoint)]


def test_aggregate_all_alone_starts_jobs_and_alone_has_a_body():
    assert [each for each in ENDPOINTS if each.starts_jobs] == [AGGREGATE_ALL]
    bodies = {each.name: request_body(each, holdings=False, transactions=True) for each in ENDPOINTS}
    assert json.loads(bodies.pop("aggregate_all")) == {
        "include_holdings": False,
        "include_transactions": True,
    }
    assert set(bodies) == {"list_members", "read_member", "read_job"}
    assert set(bodies.values()) == {None}


#: status, headers, class, may the server have acted, may the same call succeed later
REFUSALS = [
    (301, {}, errors.Redirected, False, False),
    (308, {}, errors.Redirected, False, False),
    (400, {}, errors.Refused, False, False),
    (401, {}, errors.SessionExpired, False, False),
    (403, {}, errors.Forbidden, False, False),
    (404, {}, errors.Refused, False, False),
    (409, {}, errors.Refused, True, False),
    (422, {}, errors.Refused, False, False),
    (429, {}, errors.RateLimited, False, True),
    (429, {"Retry-After": "5"}, errors.RateLimited, False, True),
    (500, {}, errors.ServerFault, True, True),
    (500, {"Retry-After": "5"}, errors.ServerFault, True, True),
    (502, {}, errors.ServerFault, True, True),
    (503, {}, errors.ServerFault, True, True),
    (503, {"Retry-After": "5"}, errors.Unavailable, False, True),
    (503, {"Retry-After": "nonsense"}, errors.Unavailable, False, True),
    (504, {}, errors.ServerFault, True, True),
    (204, {}, errors.BadReply, True, False),
    (206, {}, errors.BadReply, True, False),
]


@pytest.mark.parametrize(("status", "headers", "kind", "acted", "transient"), REFUSALS)
def test_the_status_decides_what_an_error_is_and_what_may_follow(status, headers, kind, acted, transient):
    for body in (b"", b"<html>", b'{"error": {"code": 1234}}', b"\xff", gzip.compress(b"{}"), b"[" * 10_000):
        error = refusal(status, headers, body)
        assert (type(error), error.may_have_acted, error.transient) == (kind, acted, transient)
        assert error.status_code == status


@pytest.mark.parametrize("body", [b'{"error": {"code": 4011}}', b'{"code": "4011"}', b'{"error_code": 4011}'])
def test_code_4011_says_expired_where_the_status_leaves_it_open(body):
    assert type(refusal(400, {}, body)) is errors.SessionExpired
    assert type(refusal(403, {}, body)) is errors.SessionExpired
    assert type(refusal(500, {}, body)) is errors.ServerFault
    assert refusal(401, {}, body).code == "4011"


def test_the_first_four_errors_never_reach_the_table_and_have_their_own_policy():
    policy = {
        kind.__name__: (kind.may_have_acted, kind.transient) for kind in errors.NexusError.__subclasses__()
    }
    assert policy == {
        "ConnectFailed": (False, True),
        "ReplyTimeout": (True, True),
        "ConnectionLost": (True, True),
        "BadReply": (True, False),
        "Refused": (False, False),
    }


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", " gzip "])
def test_gzip_is_undone_whatever_its_spelling(encoding):
    text = json.dumps({"members": [{"guid": "MBR-1", "name": "x" * 3_000_000}]}).encode()
    assert decoded(gzip.compress(text), {"Content-Encoding": encoding}) == text
    assert decoded(text, {"Content-Encoding": "identity"}) == decoded(text, {}) == text


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 32 * 2**20])
def test_a_body_up_to_the_bound_is_read_whole_and_one_byte_more_is_not(size):
    headers = {"Content-Encoding": "gzip"}
    assert len(decoded(gzip.compress(bytes(size), 1), headers)) == size
    if size == protocol.MOST_BODY_BYTES:
        with pytest.raises(BadReply) as caught:
            decoded(gzip.compress(bytes(size + 1), 1), headers)
        assert caught.value.reason == "too_large"


def test_a_reject_keeps_the_first_64_kib_and_the_length():
    reject = rejected("json", b"x" * 100_000)
    assert (len(reject.body), reject.length) == (65_536, 100_000)


def test_a_job_is_read_under_its_name_or_bare_with_its_times():
    record = {"guid": "JOB-1", "started_at": "2020-05-07T22:01:00Z", "finished_at": "null", "status": 6}
    for body in ({"job": record}, record):
        job = read_reply(READ_JOB, 200, {}, json.dumps(body).encode()).job
        assert (job.guid, job.started_at.hour, job.finished_at) == ("JOB-1", 22, None)


def test_a_read_of_one_member_is_read_like_a_list_of_one():
    body = b'{"member": {"guid": "MBR-1", "connection_status": "CONNECTED"}}'
    assert [each.guid for each in read_reply(READ_MEMBER, 200, {}, body).members] == ["MBR-1"]
    assert not read_reply(LIST_MEMBERS, 200, {}, body).has_more
