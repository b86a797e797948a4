"""What needs consent, what is said beforehand, and that `observe` starts nothing by any path."""

import asyncio
import io
import re
import signal
import subprocess
import sys
import time

import pytest
from faults.server import FaultServer
from test_resume import STILL, begun_by_itself
from waiting import until

import mxlab as mx
from mxlab import aio, cli
from mxlab.errors import ConfigError, ConsentRequired
from mxlab.fetch.sso import sso_tokens
from mxlab.settings import Settings
from mxlab.simulator.server import API_KEY
from mxlab.simulator.world import UserIds
from mxlab.tokens import Secret, SessionToken, minted

REAL = "https://data.example.com"
TOKENS = [SessionToken("aaaa", user="ann")]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A host that is not loopback is never so much as looked up here."""
    import socket

    resolve = socket.getaddrinfo

    def guarded(host, *args, **known):
        assert host in {"127.0.0.1", "localhost", "::1", None}, f"looked up {host}"
        return resolve(host, *args, **known)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({}, "allow_aggregate=True"),
        ({"max_users": 5}, "allow_aggregate=True"),
        ({"allow_aggregate": True}, "max_users"),
    ],
)
async def test_aggregate_off_loopback_needs_consent_in_the_call_and_a_ceiling(known, says, tmp_path):
    store = mx.Store(tmp_path / "store")
    with pytest.raises(ConsentRequired, match=says):
        await aio.aggregate(TOKENS, Settings(base_url=REAL, **known), store=store)
    assert not store.path.exists()


async def test_more_users_than_the_ceiling_are_refused_before_anything_is_sent():
    with FaultServer(users=3) as server:
        with pytest.raises(ConfigError, match="max_users: the source has 3 users, the ceiling is 2"):
            await aio.aggregate(server.tokens(), server.settings(max_users=2))
        assert server.connections == 0


@pytest.mark.parametrize(
    ("typed", "options", "goes_on"),
    [("aggregate\n", [], True), ("yes\n", [], False), ("\n", [], False), ("", ["--yes"], True)],
)
def test_on_the_command_line_the_word_is_typed_or_yes_is_given(
    monkeypatch, capsys, tmp_path, typed, options, goes_on
):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    asked = []
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text("aaaa\n")
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    monkeypatch.setattr(cli, "_collect", lambda _options, _door, settings: asked.append(settings) or 0)
    given = [
        "aggregate",
        "--tokens",
        str(tokens),
        "--base-url",
        REAL,
        "--store",
        str(tmp_path / "s"),
        "--max-users",
        "1",
    ]
    assert cli.main([*given, *options]) == (0 if goes_on else 2)
    assert [each.allow_aggregate for each in asked] == [True] * goes_on


def test_observe_starts_no_job_by_any_path_by_the_servers_own_count():
    """Sessions are opened, members listed and jobs read; jobs that there are were begun by the world itself."""
    with mx.simulate(300, seed=11, speed=200, parameters=STILL) as simulation:
        snap = mx.observe(simulation.tokens, simulation.settings)
        arrivals, jobs = simulation.arrivals(), simulation.truth()["jobs"]
    assert snap.coverage.answered == 300
    assert arrivals["by_endpoint"].get("aggregate_all", 0) == 0
    assert not arrivals["acted_by_user"]
    assert set(jobs["member_guid"]) <= begun_by_itself(300)


def test_a_session_opened_without_the_flag_would_have_started_jobs():
    """The test of the test above: the same world counts what a session starts that does not say skip_aggregation."""
    import json
    import urllib.request

    with mx.simulate(3, seed=11, parameters=STILL) as simulation:
        base = simulation.settings.base_url

        def ask(url, headers, body=None):
            request = urllib.request.Request(url, body, headers)
            with urllib.request.urlopen(request) as reply:
                return json.load(reply)

        for user in UserIds(3):
            token = ask(f"{base}/sim/users/{user}/api_token", {"MD-API-KEY": API_KEY})["api_token"]["token"]
            kind = "application/vnd.mx.nexus.v1+json"
            ask(f"{base}/sessions", {"MD-API-TOKEN": token, "Content-Type": kind, "Accept": kind}, b"{}")
        jobs = simulation.truth()["jobs"]
    assert set(jobs["member_guid"]) - begun_by_itself(3)


async def test_tokens_at_hand_that_will_not_last_are_said_before_the_start():
    """Two calls and five looks a user, at 20 requests a second for 30 minutes: 5,142 users."""
    settings = Settings(base_url="http://127.0.0.1:9", requests_per_second=20.0, attempts=1)
    few = [SessionToken(f"t{n}") for n in range(50)]
    many = [SessionToken(f"t{n}") for n in range(5_143)]
    assert (await aio.preview(few, settings)).fresh_users == int(20 * 1800 / 7)
    assert (await aio.preview(minted(["ann"], SessionToken), settings)).fresh_users is None
    run = asyncio.create_task(aio.observe(many, settings))
    with pytest.warns(
        UserWarning, match="5,143 session tokens .*: at 20 requests a second about 5,142 users"
    ):
        await asyncio.sleep(0.05)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


def test_a_preview_counts_what_the_world_holds():
    """Against the records themselves: members, those within three hours of a success, those that would prompt, those that cannot."""
    with mx.simulate(400, seed=5) as simulation:
        seen = mx.preview(simulation.tokens, simulation.settings, look=True)
        members = mx.observe(simulation.tokens, simulation.settings).members
        assert simulation.arrivals()["by_endpoint"].get("aggregate_all", 0) == 0
    status = members["connection_status"].astype("string").fillna("none")
    cannot = status.isin(["none", "PREVENTED", "IMPORTED", "IMPAIRED", "CLOSED", "DISCONTINUED", "DISABLED"])
    inside = ~cannot & (members["age_seconds"] < 3 * 3600)
    prompting = (
        ~cannot & ~inside & status.isin(["CHALLENGED", "REJECTED", "EXPIRED", "RECONNECTED", "PENDING"])
    )
    assert seen.users == 400
    assert abs(seen.members - len(members)) <= 2
    for count, there in (
        (seen.cannot, cannot),
        (seen.inside_window, inside),
        (seen.likely_prompts, prompting),
    ):
        assert abs(count - there.sum()) <= 3  # the world goes on between the two looks
        assert count > 0
    assert "one observe pass" in seen.basis
    assert seen.calls == pytest.approx(400 * 9 + (~cannot & ~inside).sum(), abs=8)


def test_a_key_that_mx_refuses_stops_the_run_and_gives_no_user_up(tmp_path):
    store = mx.Store(tmp_path / "store")
    with mx.simulate(20, seed=1) as simulation:
        wrong = sso_tokens(UserIds(20), "sim", Secret("another-environments-key"))
        with pytest.raises(ConfigError, match="key: MX's SSO refuses it"):
            mx.observe(wrong, simulation.settings, store=store, run="r")
        right = sso_tokens(UserIds(20), "sim", Secret(API_KEY))
        snap = mx.observe(right, simulation.settings, store=store, run="r")
    assert (snap.coverage.asked, snap.coverage.answered) == (20, 20)


@pytest.fixture
def sigint_is_heard():
    """A shell starts what it runs in the background with SIGINT ignored, and so does what that starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_is_heard")
def test_ctrl_c_stops_the_command_within_two_seconds_says_what_was_done_and_it_goes_on(tmp_path):
    users, key, store = tmp_path / "users", tmp_path / "key", tmp_path / "store"
    users.write_text("\n".join(UserIds(3_000)))
    key.touch(mode=0o600)
    key.write_text(API_KEY)
    with mx.simulate(3_000, seed=1, speed=5) as simulation:
        settings = simulation.settings
        command = [sys.executable, "-m", "mxlab", "aggregate", "--users", users, "--client-id", "sim", "--key-file", key,
                   "--base-url", settings.base_url, "--clock", settings.clock, "--store", store]  # fmt: skip
        process = subprocess.Popen([str(each) for each in command], stderr=subprocess.PIPE, text=True)
        until(lambda: simulation.arrivals()["by_endpoint"].get("aggregate_all", 0) >= 50, 60)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        seconds = time.monotonic() - began
        found = re.search(r"run (\S+): ([\d,]+) of 3,000 users answered.*go on with --run \1", said)
        assert found, said
        kept = mx.Store(store).load(found[1])
        assert process.returncode == 1
        assert "Traceback" not in said
        assert kept.coverage.pending > 0
        assert seconds < 2.0 + 1.0  # the interpreter's own end among them
