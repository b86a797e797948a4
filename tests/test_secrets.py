"""A canary token goes in; nothing that mxlab says, keeps, raises or logs holds it."""

import ast
import asyncio
import copy
import json
import logging
import pickle
from pathlib import Path

import pytest
from faults.canary import CANARY, everything_of
from faults.server import FaultServer, close, error, hang, reset, say
from yarl import URL

import mxlab
from mxlab import aio, errors
from mxlab.fetch.client import NexusClient, Sent, Wire
from mxlab.fetch.sso import sso_tokens
from mxlab.nexus.protocol import AGGREGATE_ALL, LIST_MEMBERS
from mxlab.tokens import Secret, SessionToken, minted, source

TEXT = f"{CANARY}-0123456789"


@pytest.fixture(params=[Secret, SessionToken], ids=["Secret", "SessionToken"])
def secret(request):
    return request.param(TEXT)


def test_what_a_secret_shows_of_itself_is_its_class(secret):
    name = type(secret).__name__
    for said in (repr(secret), str(secret), f"{secret!r}", f"{[secret]}", f"{ {'a': secret} }"):
        assert name in said
        assert CANARY not in said


@pytest.mark.parametrize(
    "how",
    [
        pickle.dumps,
        lambda secret: pickle.dumps(secret, 0),
        copy.copy,
        copy.deepcopy,
        lambda secret: copy.deepcopy({"a": [secret]}),
        "{}".format,
        "{:>10}".format,
        lambda secret: f"{secret}",
        json.dumps,
        vars,
        lambda secret: secret.__dict__,
        lambda secret: secret.__getstate__(),
    ],
)
def test_a_secret_refuses_every_way_out_but_one(secret, how):
    with pytest.raises((TypeError, AttributeError)) as caught:
        how(secret)
    assert CANARY not in str(caught.value)
    assert secret.reveal() == TEXT


def test_percent_and_print_show_the_class_only(secret, capsys):
    print(secret)
    assert CANARY not in capsys.readouterr().out + "%s %r" % (secret, secret)  # noqa: UP031


def calls_of(name):
    """module.function → how many calls of a method of this name, over all of mxlab."""
    root = Path(mxlab.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                calls = [
                    node
                    for node in ast.walk(function)
                    if isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == name
                ]
                if calls:
                    where = f"{path.relative_to(root).with_suffix('').as_posix()}.{function.name}"
                    found[where] = len(calls)
    return found


def test_a_secret_is_revealed_where_a_header_is_made_and_nowhere_else():
    assert calls_of("reveal") == {"fetch/client._send": 1, "fetch/sso._ask": 1}


def test_no_one_reaches_for_the_text_past_reveal():
    root = Path(mxlab.__file__).parent
    reaching = {
        path.name
        for path in root.rglob("*.py")
        if "._text" in path.read_text() and "token" in path.read_text()
    }
    assert reaching <= {"tokens.py"}


@pytest.mark.parametrize("kind", [each for each in vars(errors).values() if isinstance(each, type)])
def test_every_error_survives_pickle_with_what_it_knows(kind):
    if not issubclass(kind, errors.MxlabError):
        pytest.fail(f"{kind} is no error of ours")
    made = kind("what", [ValueError("x")]) if issubclass(kind, ExceptionGroup) else kind("what")
    if isinstance(made, errors.NexusError):
        made = kind("what", session="ab", status_code=409, code="4011", retry_after_seconds=2.0)
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), str(again)) == (type(made), str(made))
    assert {k: v for k, v in vars(again).items() if k != "_exceptions"} == vars(made)


FAULTS = {
    "closed": close,
    "reset": reset,
    "hang": hang,
    "401": error(401, 4011),
    "302": say(302, also=["Location: http://127.0.0.1:9/"]),
    "500": error(500),
    "html": say(200, b"<html>", kind="text/html"),
    "empty": say(200),
    "headers": say(200, also=["X: " + "x" * 9000]),
}


@pytest.mark.parametrize("fate", FAULTS)
@pytest.mark.parametrize("endpoint", [AGGREGATE_ALL, LIST_MEMBERS], ids=lambda e: e.name)
async def test_no_exchange_and_no_error_in_it_holds_the_token(fate, endpoint, caplog):
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    with FaultServer(fault=lambda _: FAULTS[fate]) as server:
        (token,) = server.tokens()
        async with NexusClient(server.settings(reply_timeout_seconds=0.3), server.clock.steady()) as client:
            exchange = await client.call(endpoint, token, "session")
    assert exchange.error is not None
    assert CANARY not in repr(exchange) + everything_of(exchange.error) + caplog.text
    assert CANARY.encode() not in pickle.dumps(exchange.error)


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, RuntimeError, MemoryError])
async def test_what_breaks_through_a_request_shows_no_headers(kind, monkeypatch):
    """A cancellation, an interrupt or a bug of a library's: its traceback has no frame that holds the token."""

    def broken(*_args, headers, **_kwargs):
        kept = dict(headers)
        raise kind(f"{len(kept)} headers")

    with FaultServer() as server:
        (token,) = server.tokens()
        async with NexusClient(server.settings(), server.clock.steady()) as client:
            monkeypatch.setattr(client._wire._http, "request", broken)
            with pytest.raises(kind) as caught:
                await client.call(AGGREGATE_ALL, token, "session")
    assert CANARY not in everything_of(caught.value)
    assert "_send" in everything_of(caught.value)


async def test_the_headers_are_gone_when_a_request_is_over():
    with FaultServer() as server:
        async with Wire(server.settings()) as wire:
            headers = {"MD-SESSION-TOKEN": TEXT}
            await wire.send(Sent(), "GET", URL(server.url + "/members"), headers, None)
    assert headers == {}


async def test_a_cancelled_run_shows_no_token():
    with FaultServer(users=3, fault=lambda _: hang) as server:
        run = asyncio.create_task(aio.aggregate(server.tokens(), server.settings()))
        while len(server.arrivals) < 3:  # noqa: ASYNC110 - the server is on another thread
            await asyncio.sleep(0.01)
        run.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await run
    assert CANARY not in everything_of(caught.value)


async def test_a_mint_that_fails_with_the_token_in_its_message_shows_none(caplog):
    def mint(user):
        raise ValueError(f"cannot use {TEXT}")

    with FaultServer() as server:
        snap = await aio.observe(minted(["u"], mint), server.settings())
    assert dict(snap.coverage.reasons) == {"no_token_bad_reply_mint": 1}
    assert CANARY not in snap.failures.to_csv() + repr(snap) + caplog.text


async def test_a_source_that_breaks_tells_its_error_and_no_token():
    async def tokens():
        yield SessionToken(TEXT)
        raise LookupError("the vault is shut")

    with FaultServer() as server, pytest.raises(LookupError, match="vault") as caught:
        await aio.observe(tokens(), server.settings())
    assert CANARY not in everything_of(caught.value)


def test_sources_and_settings_show_no_token():
    key = Secret(TEXT)
    for each in (source([SessionToken(TEXT)]), minted(["u"], SessionToken), sso_tokens(["u"], "me", key)):
        assert CANARY not in repr(each) + repr(vars(each))


def test_a_planted_token_would_be_found():
    """The test of these tests: the same search finds a text that is in a local of a frame."""

    def leak():
        headers = {"MD-SESSION-TOKEN": TEXT}
        raise ValueError(len(headers))

    with pytest.raises(ValueError, match="1") as caught:
        leak()
    assert CANARY in everything_of(caught.value)
