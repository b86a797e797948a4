"""Session tokens by MX's single sign-on: API key → one-time API token → session token.

Sources: docs.mx.com, SSO v3 "Get API token"; Nexus "Overview". An API token is good for one session and ten
minutes, so both calls are made when a worker is ready for the user. Opening a session starts an aggregation of
every member unless ``skip_aggregation`` is true: it always is.
"""

import getpass
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec
from yarl import URL

from mxlab.errors import BadReply, ConfigError, Forbidden, SessionExpired
from mxlab.fetch.client import Sent, Wire
from mxlab.nexus.protocol import MEDIA_TYPE, decoded, refusal
from mxlab.settings import Settings
from mxlab.tokens import Mint, Secret, SessionToken, Source, minting, read_private

_SHORTEST_KEY = 12
SSO_MEDIA_TYPE = "application/vnd.moneydesktop.sso.v3+json"


T = TypeVar("T")


class _Token(msgspec.Struct):
    token: str


class _ApiToken(msgspec.Struct):
    api_token: _Token


class _Session(msgspec.Struct):
    session: _Token


def sso_tokens(
    users: str | os.PathLike[str] | Iterable[str],
    client_id: str,
    key: Secret | str | os.PathLike[str] | None = None,
) -> Source:
    """A source that opens a session for each user when its turn comes.

    Parameters
    ----------
    users
        Your own user ids (not MX's ``USR-`` guids), or the path of a file with one a line.
    client_id
        MX's name for you, part of the SSO address.
    key
        The API key: a `Secret`, or the path of a file of mode 0600 that holds it. None: the keyring's entry
        ``mxlab`` / client_id where the keyring package is installed, else a prompt.

    Returns
    -------
    Source
        With a length, in seeded random order; renews an expired session once.

    Raises
    ------
    ConfigError
        There are no users, or no key can be had.
    """
    if isinstance(users, str | os.PathLike):
        users = _read_users(Path(users))
    if not client_id or not client_id.replace("-", "").replace("_", "").isalnum():
        raise ConfigError("client_id: give MX's name for you, letters, digits, - and _")
    secret = _read_key(key, client_id)

    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[Mint]:
        if not settings.sso_url:
            raise ConfigError("sso_url: give the SSO host that belongs to this base_url")
        async with Wire(settings) as wire:
            yield _Sessions(wire, settings, client_id, secret).mint

    return minting(users, opened)


def _read_users(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"users: cannot read {path}: {error}") from None
    return list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))


def _read_key(key: Secret | str | os.PathLike[str] | None, client_id: str) -> Secret:
    if isinstance(key, Secret):
        return key
    if key is not None:
        return _checked_key(read_private(key, "key").read_text("utf-8-sig", "replace").strip(), f"{key}")
    found = _kept_key(client_id)
    if found is None and sys.stdin is not None and sys.stdin.isatty():
        found = getpass.getpass(f"MX API key of {client_id}: ")
    if not found:
        raise ConfigError(
            "key: none in the keyring and nobody to ask; give the path of a file of mode 0600 that holds the API key"
        )
    return _checked_key(found.strip(), "what was given")


def _kept_key(client_id: str) -> str | None:
    """The keyring's entry, where the package is installed and the machine has a keyring."""
    try:
        import keyring  # noqa: PLC0415 - an optional package, asked for when a key is
    except ImportError:
        return None
    try:
        found: str | None = keyring.get_password("mxlab", client_id)
    except keyring.errors.KeyringError:  # none on this machine, or locked: the prompt is next
        return None
    return found


def _checked_key(text: str, where: str) -> Secret:
    """The key, unless it is too short or a placeholder; only its length is told."""
    length, is_sample, secret = len(text), text.startswith("<"), None
    with suppress(ConfigError):
        secret = Secret(text)
    del text  # a traceback may show what is at hand
    if length < _SHORTEST_KEY or is_sample:
        raise ConfigError(
            f"key: {where} holds {length} characters that are no API key; MX's are longer than that"
        )
    if secret is None:
        raise ConfigError(f"key: {where} holds {length} characters; a key is one line of printable ASCII")
    return secret


class _Sessions:
    """Opens sessions, one user at a time, with one API key."""

    def __init__(self, wire: Wire, settings: Settings, client_id: str, key: Secret) -> None:
        self._wire = wire
        self._api_token_url = f"{settings.sso_url}/{client_id}/users/"
        self._sessions_url = URL(f"{settings.base_url}/sessions", encoded=True)
        self._key = key

    async def mint(self, user: str) -> SessionToken:
        """A session token for the user, without starting an aggregation."""
        url = URL(f"{self._api_token_url}{quote(user, safe='')}/api_token", encoded=True)
        try:
            answer = await self._ask("GET", url, "MD-API-KEY", self._key, SSO_MEDIA_TYPE, None)
        except (SessionExpired, Forbidden) as error:
            raise ConfigError(
                f"key: MX's SSO refuses it ({error.status_code}), so the run stopped and gave no user up; it is another "
                "environment's key, or your address is not on MX's list"
            ) from None
        api_token = Secret(_decode(answer, _ApiToken).api_token.token)
        body = b'{"session":{"skip_aggregation":true}}'
        answer = await self._ask("POST", self._sessions_url, "MD-API-TOKEN", api_token, MEDIA_TYPE, body)
        return SessionToken(_decode(answer, _Session).session.token, user=user)

    async def _ask(
        self, method: str, url: URL, header: str, secret: Secret, kind: str, body: bytes | None
    ) -> bytes:
        sent = Sent()
        headers = {"Accept": kind, "Accept-Encoding": "gzip", header: secret.reveal()}
        if body is not None:
            headers["Content-Type"] = kind
        await self._wire.send(sent, method, url, headers, body)
        assert sent.status is not None
        assert sent.headers is not None
        if sent.status not in {200, 201}:
            raise refusal(sent.status, sent.headers, sent.body)
        return decoded(sent.body, sent.headers)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadReply("the reply holds no token", reason="no_token") from None
