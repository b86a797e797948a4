"""The door of real analysts: user ids and an API key, from keyring, file or prompt."""

import sys
import types

import pytest
from faults.server import FaultServer, error, say

from mxlab import aio
from mxlab.errors import ConfigError
from mxlab.fetch import sso
from mxlab.fetch.sso import sso_tokens
from mxlab.tokens import Secret

KEY = "CANARY-api-key-0123"


@pytest.fixture
def keyring(monkeypatch):
    """``keyring(entry)`` → a keyring module with this one entry, or one that raises it."""

    def made(entry):
        module = types.ModuleType("keyring")
        module.errors = types.SimpleNamespace(KeyringError=RuntimeError)

        def get_password(service, name):
            assert (service, name) == ("mxlab", "me")
            if isinstance(entry, Exception):
                raise entry
            return entry

        module.get_password = get_password
        monkeypatch.setitem(sys.modules, "keyring", module)

    return made


def opened(server, arrival_log):
    """A fault that is MX's SSO: it gives out one-time API tokens and sessions, and writes down the headers it got."""

    def fault(arrival):
        if arrival.target.endswith("/api_token"):
            user = arrival.target.split("/")[-2]
            arrival_log.append((user, arrival.headers.get("md-api-key")))
            return say(200, b'{"api_token":{"token":"once-%s"}}' % user.encode(), kind=sso.SSO_MEDIA_TYPE)
        if arrival.target == "/sessions":
            user = arrival.headers["md-api-token"].removeprefix("once-")
            arrival_log.append((user, arrival.body))
            return say(201, b'{"session":{"token":"%s"}}' % server.bank.session(user).encode())
        return None

    return fault


async def served(tokens, users=4, **known):
    log = []
    with FaultServer(users=users, members=1) as server:
        server.fault = opened(server, log)
        snap = await aio.observe(tokens, server.settings(**known))
    return snap, log


def users(count=4):
    return [f"user-{n}" for n in range(count)]


@pytest.mark.parametrize("origin", ["secret", "file", "keyring", "prompt"])
async def test_the_key_is_had_from_wherever_it_is_and_goes_to_the_sso_alone(
    origin, keyring, monkeypatch, tmp_path
):
    keyring(KEY if origin == "keyring" else None)
    key = None
    if origin == "secret":
        key = Secret(KEY)
    elif origin == "file":
        key = tmp_path / "key"
        key.touch(mode=0o600)
        key.write_text(f"{KEY}\n")
    elif origin == "prompt":
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr(sso.getpass, "getpass", lambda asked: KEY if "me" in asked else "")
    snap, log = await served(sso_tokens(users(), "me", key))
    assert snap.coverage.answered == 4
    assert sorted(log, key=str) == sorted(
        [(user, KEY) for user in users()]
        + [(user, b'{"session":{"skip_aggregation":true}}') for user in users()],
        key=str,
    )
    assert KEY not in repr(snap) + snap.requests.to_csv() + repr(snap.manifest)


@pytest.mark.parametrize("entry", [None, RuntimeError("no backend")])
def test_without_a_key_and_with_nobody_to_ask_it_is_said_what_to_give(keyring, monkeypatch, entry):
    keyring(entry)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False))
    with pytest.raises(
        ConfigError, match="key: none in the keyring and nobody to ask; give the path of a file of mode 0600"
    ):
        sso_tokens(users(), "me")


@pytest.mark.parametrize("client_id", ["", "a/b", "me?x", "../x"])
def test_a_client_id_that_would_change_the_address_is_refused(client_id):
    with pytest.raises(ConfigError, match="client_id"):
        sso_tokens(users(), client_id, Secret(KEY))


def test_a_file_of_users_is_read_each_once_without_comments(tmp_path):
    path = tmp_path / "users.txt"
    path.write_text("\ufeffann\n\n# gone\nbob \r\nann\n", "utf-8")
    assert len(sso_tokens(path, "me", Secret(KEY))) == 2
    path.write_text("\n# nobody\n")
    with pytest.raises(ConfigError, match="users: there are none"):
        sso_tokens(path, "me", Secret(KEY))
    with pytest.raises(ConfigError, match="users: cannot read"):
        sso_tokens(tmp_path / "absent", "me", Secret(KEY))


async def test_a_user_that_the_sso_does_not_know_is_lost_alone():
    log = []
    with FaultServer(users=4, members=1) as server:
        known = opened(server, log)
        server.fault = lambda a: error(404) if "/user-2/" in a.target else known(a)
        snap = await aio.observe(sso_tokens(users(), "me", Secret(KEY)), server.settings())
    assert dict(snap.coverage.reasons) == {"no_token_refused_404": 1}
    assert snap.coverage.answered == 3


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_or_address_that_the_sso_refuses_stops_the_run(status):
    with FaultServer(users=4, fault=lambda _: error(status)) as server:
        with pytest.raises(ConfigError, match=rf"key: MX's SSO refuses it \({status}\)"):
            await aio.observe(sso_tokens(users(), "me", Secret(KEY)), server.settings())
        assert not server.count("aggregate_all")


async def test_sessions_are_opened_when_a_worker_is_ready_and_not_ahead():
    """Two at a time: no more sessions are open and unused than workers could use."""
    log, unused, most = [], set(), [0]
    with FaultServer(users=30, members=1, latency=0.002) as server:
        known = opened(server, log)

        def fault(arrival):
            if arrival.target == "/sessions":
                unused.add(arrival.headers["md-api-token"].removeprefix("once-"))
            unused.discard(arrival.user)
            most[0] = max(most[0], len(unused))
            return known(arrival)

        server.fault = fault
        snap = await aio.observe(sso_tokens(users(30), "me", Secret(KEY)), server.settings(concurrency=2))
    assert snap.coverage.answered == 30
    assert most[0] <= 2
