"""Bad configuration by number, B-092, B-100, B-103, B-106 and B-107; B-097 to B-099, B-104 and B-105 are the store's."""

import asyncio
import resource
import time
import traceback
from contextlib import suppress

import pytest
from faults.server import FaultServer, error
from waiting import until

from mxlab import aio
from mxlab.cli import main
from mxlab.errors import ConfigError
from mxlab.fetch import client
from mxlab.fetch.sso import sso_tokens
from mxlab.settings import Settings
from mxlab.store import Store


async def test_b092_users_that_a_resumed_run_does_not_bring_stay_and_further_ones_are_added(tmp_path):
    store = Store(tmp_path / "store")
    with FaultServer(users=30, members=1) as server:
        tokens = server.tokens()
        first = await aio.observe(tokens[:20], server.settings(), store=store, run="r")
        second = await aio.observe(tokens[10:], server.settings(), store=store, run="r")
        assert set(server.count("list_members").values()) == {1}
    assert (first.coverage.asked, first.coverage.answered) == (20, 20)
    assert (second.coverage.asked, second.coverage.answered, second.coverage.pending) == (30, 30, 0)
    assert second.members["user"].nunique() == 30
    assert (first.manifest["added"], second.manifest["added"]) == (0, 10)


async def test_b092_users_whose_start_is_open_stay_pending_until_a_call_brings_them(tmp_path):
    """Twenty are started and the call is stopped; the next brings ten of them and ten others, the third all."""
    store = Store(tmp_path / "store")
    with FaultServer(users=30, members=1, speed=20, bank_options={"seconds": lambda _: 20.0}) as server:
        tokens = server.tokens()
        run = asyncio.create_task(aio.aggregate(tokens[:20], server.settings(), store=store, run="r"))
        await asyncio.to_thread(until, lambda: sum(each.status == 200 for each in server.arrivals) >= 40)
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        assert set(server.count("aggregate_all").values()) == {1}
        with pytest.warns(UserWarning, match="run r: 10 users whose aggregation .* run again with them"):
            second = await aio.aggregate(tokens[10:], server.settings(), store=store, run="r")
        third = await aio.aggregate(tokens, server.settings(), store=store, run="r")
        assert set(server.count("aggregate_all").values()) == {1}
    assert (second.coverage.asked, second.coverage.answered, second.coverage.pending) == (30, 20, 10)
    assert store.load("r").coverage == third.coverage
    assert (third.coverage.asked, third.coverage.answered) == (30, 30)
    assert [each.manifest["added"] for each in (second, third)] == [10, 0]


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["observe", "--concurency", "5"], "--concurrency"),
        (["observe", "--tokns=x"], "--tokens"),
        (["demo", "--user", "5", "--sed", "1"], "--seed"),
        (["preview", "--base_url", "x"], "--base-url"),
    ],
)
def test_b100_an_unknown_option_is_refused_with_the_nearest(capsys, tmp_path, arguments, nearest):
    required = [] if arguments[0] == "demo" else ["--store", str(tmp_path / "s")]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, *required])
    assert stopped.value.code == 2
    assert f"did you mean {nearest}?" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 characters that are no API key"),
        (b"\n", "0 characters that are no API key"),
        (b"CANARY", "6 characters that are no API key"),
        (b"<CANARY-of-yours>", "17 characters that are no API key"),
        (b"CANARY words in a key", "21 characters; a key is one line of printable ASCII"),
        (b"CANARY-and\nCANARY-again", "23 characters; a key is one line"),
        ("CANARY-caf\u00e9".encode() * 5, "55 characters; a key is one line"),
        (b"CANARY-caf\xe9-of-yours", "20 characters; a key is one line"),
        ("CANARY-of-yours".encode("utf-16"), "32 characters; a key is one line"),
    ],
)
def test_b103_a_key_file_that_holds_no_key_is_refused_by_its_length(tmp_path, content, says):
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        sso_tokens(["ann"], "me", path)
    assert str(caught.value).startswith(f"key: {path} holds {says}")
    seen = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    ours = seen.partition("in sso_tokens")[2]
    assert ours
    assert "CANARY" not in ours


def test_b103_a_key_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text("a-key-that-is-long-enough")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=f"^key: {path} can be read by others; run: chmod 600 {path}"):
        sso_tokens(["ann"], "me", path)


async def test_b106_a_clock_of_before_2025_is_said(monkeypatch):
    with FaultServer() as server:
        settings = Settings(base_url=server.url)
        wrong = time.time() - 1_700_000_000 + 3600
        monkeypatch.setattr("mxlab.settings.time.time", lambda: wrong)
        with pytest.warns(UserWarning, match="clock: this machine says that it is 197"):
            await aio.observe(server.tokens(), settings)


@pytest.fixture
def limits(monkeypatch):
    """``limits(soft, hard)`` → what is set later: the machine's limits as the client sees them."""

    def made(soft, hard):
        is_set = []
        monkeypatch.setattr(client.resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(client.resource, "setrlimit", lambda _, both: is_set.append(both))
        return is_set

    return made


async def test_b107_too_few_open_files_are_made_more_where_the_machine_allows_it(limits):
    for soft, hard, is_set in (
        (64, 4096, [(300, 4096)]),
        (300, 4096, []),
        (64, resource.RLIM_INFINITY, [(300, resource.RLIM_INFINITY)]),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, []),
    ):
        asked = limits(soft, hard)
        client._make_room(300)
        assert asked == is_set


async def test_b107_and_are_refused_before_anything_is_sent_where_it_does_not(limits):
    limits(64, 128)
    with FaultServer() as server:
        with pytest.raises(ConfigError, match=r"concurrency: 200 connections need 300 open files.*128"):
            await aio.observe(server.tokens(), server.settings(concurrency=200))
        assert server.connections == 0


async def test_a_session_that_is_followed_for_long_is_used_before_it_expires():
    """Looks as rare as the settings allow, a pause of 300 s on top, and sessions that live 30 minutes after each use."""
    used = {}

    with FaultServer(users=5, members=1, speed=5000, bank_options={"seconds": lambda _: 9000.0}) as server:

        def fault(arrival):
            now = server.clock.time()
            before, used[arrival.user] = used.get(arrival.user, now), now
            if now - before > 1800:
                return expired
            return pause if arrival.nth == 3 and arrival.endpoint == "list_members" else None

        expired = error(401, 4011)
        pause = error(429, also=["Retry-After: 300"])
        server.fault = fault
        rare = {"first_look_seconds": 1200.0, "longest_look_seconds": 1200.0, "deadline_seconds": 20_000.0}
        snap = await aio.aggregate(server.tokens(), server.settings(**rare))
    assert snap.coverage.answered == 5
    assert set(snap.members["outcome"]) == {"finished"}
