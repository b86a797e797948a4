"""Session tokens and where they come from.

A session token is a bank-data credential that lives 30 minutes, sliding
(docs.mx.com/api-reference/nexus/overview). So it shows nothing of itself, and a source hands it out when a
worker is ready to use it, never ahead.
"""

import csv
import inspect
import os
import random
import re
import secrets
import stat
import warnings
from array import array
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from mxlab.errors import ConfigError

_DIGEST_KEY = secrets.token_bytes(16)
_SHOWN = 3
_PRINTABLE = re.compile(r"[!-~]+")
_LONGEST_TOKEN = 512
#: How what MX's documentation shows in a token's place begins.
_SAMPLES = ("<", "CWforZl1Vn2vC_v6H4rn")
_COLUMN_NAMES = frozenset({"token", "tokens", "session", "session_token", "md-session-token", "user"})


class Secret:
    """A text that shows nothing of itself.

    It refuses `pickle`, `copy`, `format` and JSON, and has no `vars`; `reveal` is the one way out.

    Raises
    ------
    ConfigError
        The text is not a run of printable ASCII without spaces; the message gives its length only.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not _PRINTABLE.fullmatch(text):
            length = len(text) if isinstance(text, str) else 0
            raise ConfigError(f"a token is printable ASCII without spaces; this one has {length} characters")
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the header that it was made for."""
        return self._text

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not copied, pickled, formatted or written")

    __reduce__ = __reduce_ex__ = __getstate__ = __copy__ = __deepcopy__ = __format__ = _refuse


class SessionToken(Secret):
    """A user's 30-minute key to Nexus.

    Parameters
    ----------
    text
        What MX gave out.
    user
        Your own name for the user, kept in every frame; None where you have none.
    columns
        What else you know of the user (a cohort, a plan); each becomes ``user_<name>`` on the members.
    """

    __slots__ = ("columns", "user")

    def __init__(
        self, text: str, *, user: str | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.user = user
        self.columns: Mapping[str, str] = dict(columns or {})

    def pseudonym(self, key: bytes) -> str:
        """A keyed hash of the user where there is one, else of the token: 32 hex digits."""
        return pseudonym(key, self.user if self.user is not None else self._text)

    def digest(self) -> int:
        """64 bits that tell in this process whether two tokens are the same."""
        return _digest(self._text)

    def belonging_to(self, user: str) -> "SessionToken":
        """The same token under this user's name."""
        return self if self.user == user else SessionToken(self._text, user=user, columns=self.columns)


def pseudonym(key: bytes, text: str) -> str:
    """A keyed hash (BLAKE2b, 128 bits) that stands for a user in frames, stores and messages."""
    return blake2b(text.encode(), key=key, digest_size=16).hexdigest()


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), key=_DIGEST_KEY, digest_size=8).digest())


Mint = Callable[[str], SessionToken | Awaitable[SessionToken]]


class Turn(NamedTuple):
    """One user's turn: a token at hand, or the user for whom one is to be made."""

    user: str | None
    token: SessionToken | None = None

    def pseudonym(self, key: bytes) -> str:
        """The session's pseudonym, without making a token."""
        if self.token is not None:
            return self.token.pseudonym(key)
        assert self.user is not None
        return pseudonym(key, self.user)


async def made(mint: Mint, user: str) -> SessionToken:
    """A new token of a plain or async `mint`, under the user's name."""
    token = mint(user)
    token = await token if inspect.isawaitable(token) else token
    if not isinstance(token, SessionToken):
        raise ConfigError(f"mint returned {type(token).__name__}; it must return a SessionToken")
    return token.belonging_to(user)


class Source:
    """Users to collect, each with a way to its token.

    Parameters
    ----------
    turns
        ``turns(rng)`` → the turns, in an order that the generator decides where the source can choose.
    size
        How many, or None where nobody knows before the end.
    minting
        ``minting(settings)`` → an async context with the `Mint` of a run; None where tokens are at hand, and
        an expired session cannot be made anew.

    Attributes
    ----------
    order
        ``random`` where turns come in seeded random order, so that a stopped run is a fair sample; else
        ``source``.
    """

    def __init__(
        self,
        turns: Callable[[random.Random], AsyncGenerator[Turn, None]],
        size: int | None,
        minting: Callable[[Any], AbstractAsyncContextManager[Mint]] | None = None,
    ) -> None:
        self._turns = turns
        self.size = size
        self.minting = minting
        self.order = "source" if size is None else "random"

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("this source does not know its length")
        return self.size

    def __repr__(self) -> str:
        return f"<Source: {'?' if self.size is None else self.size} users, {self.order} order>"

    def turns(self, seed: int) -> AsyncGenerator[Turn, None]:
        """Turns, one for each user, in the source's order or in seeded random order."""
        return self._turns(random.Random(seed))


Tokens = (
    Source
    | Iterable[SessionToken]
    | AsyncIterable[SessionToken]
    | Callable[[], SessionToken | Awaitable[SessionToken | None] | None]
    | str
    | os.PathLike[str]
)


def source(tokens: Tokens) -> Source:
    """A `Source` of whatever brings tokens.

    Parameters
    ----------
    tokens
        A list, iterator or async iterator of `SessionToken`; the path of a token file; a callable, asked for
        each next token until it returns None; or a source that mints.

    Returns
    -------
    Source

    Raises
    ------
    ConfigError
        It is none of these, it is empty, or the file is missing, open to others, or malformed.
    """
    if isinstance(tokens, Source):
        return tokens
    if isinstance(tokens, str | os.PathLike):
        return read_token_file(tokens)
    if isinstance(tokens, list | tuple):
        return _listed(tokens)
    if isinstance(tokens, AsyncIterable):
        return Source(lambda _: _each_awaited(tokens), None)
    if isinstance(tokens, Iterable):
        return Source(lambda _: _each(tokens), None)
    if callable(tokens):
        return Source(lambda _: _each_called(tokens), None)
    raise ConfigError(
        f"tokens: {type(tokens).__name__} is no list, iterator, file, callable or minting source"
    )


def minted(users: Iterable[str], mint: Mint) -> Source:
    """A source that makes each token when a worker is ready for it, and again when a session expires.

    Parameters
    ----------
    users
        Your own user ids.
    mint
        ``mint(user)`` → `SessionToken`, plain or async.

    Returns
    -------
    Source
        With a length, in seeded random order.
    """
    return minting(users, lambda _: nullcontext(mint))


def minting(users: Iterable[str], opened: Callable[[Any], AbstractAsyncContextManager[Mint]]) -> Source:
    """As `minted`, for a mint that is opened with the settings of a run and closed after it."""
    listed = users if isinstance(users, Sequence) and not isinstance(users, str) else list(users)
    if not listed:
        raise ConfigError("users: there are none")

    async def turns(rng: random.Random) -> AsyncGenerator[Turn, None]:
        for index in _shuffled(len(listed), rng):
            yield Turn(str(listed[index]))

    return Source(turns, len(listed), opened)


def sampled(whole: Source, size: int) -> Source:
    """The first `size` turns of the source's random order: a simple random sample of its users."""
    if whole.size is None:
        raise ConfigError("sample: needs a source with a length (a list, a file or a minting source)")
    if size < 1:
        raise ConfigError(f"sample: {size} must be 1 or more")

    async def turns(rng: random.Random) -> AsyncGenerator[Turn, None]:
        left = size
        async with aclosing(whole.turns(rng.getrandbits(64))) as all_turns:
            async for turn in all_turns:
                yield turn
                left -= 1
                if not left:
                    return

    return Source(turns, min(size, whole.size), whole.minting)


def _shuffled(size: int, rng: random.Random) -> "array[int]":
    indices = array("Q", range(size))
    rng.shuffle(indices)
    return indices


def _listed(tokens: Sequence[SessionToken]) -> Source:
    if not tokens:
        raise ConfigError("tokens: the list is empty")
    seen = _Seen()
    for token in tokens:
        _at_hand(token)
        seen.add(token)
    chosen = [tokens[index] for index in seen.each_once(lambda index: tokens[index].user)]

    async def turns(rng: random.Random) -> AsyncGenerator[Turn, None]:
        for index in _shuffled(len(chosen), rng):
            yield _at_hand(chosen[index])

    return Source(turns, len(chosen))


class _Seen:
    """Digests of tokens and their users, 16 bytes together, which tell what comes twice."""

    def __init__(self) -> None:
        self._users = array("Q")
        self._tokens = array("Q")

    def add(self, token: SessionToken) -> None:
        """One more, in the source's order."""
        self._users.append(0 if token.user is None else _digest(token.user))
        self._tokens.append(token.digest())

    def each_once(self, name: Callable[[int], str | None]) -> npt.NDArray[np.intp]:
        """Indices of each user's last token, and of each token's last user; warns of the others by their names."""
        users, tokens = (np.frombuffer(each, np.uint64) for each in (self._users, self._tokens))
        is_old = _comes_again(users) & (users != 0)
        left = np.flatnonzero(~is_old)
        is_shared = _comes_again(tokens[left])
        if is_old.any():
            _warn(
                f"{is_old.sum():,} users come again with a later token, which is used",
                (name(int(index)) for index in np.flatnonzero(is_old)),
            )
        if is_shared.any():
            last = {index: np.flatnonzero(tokens == tokens[index])[-1] for index in left[is_shared][:_SHOWN]}
            _warn(
                f"{is_shared.sum():,} tokens come again under another name, under which each is asked once",
                (f"{name(int(first))} and {name(int(again))}" for first, again in last.items()),
            )
        return left[~is_shared]


def _comes_again(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which are not the last of their kind."""
    _, last = np.unique(keys[::-1], return_index=True)
    again = np.ones(len(keys), bool)
    again[len(keys) - 1 - last] = False
    return again


def _warn(what: str, names: Iterable[str | None]) -> None:
    shown = ", ".join(str(name) for name in islice(names, _SHOWN))
    warnings.warn(f"tokens: {what} ({shown}, …)", UserWarning, stacklevel=5)


async def _each(tokens: Iterable[SessionToken]) -> AsyncGenerator[Turn, None]:
    for token in tokens:
        yield _at_hand(token)


async def _each_awaited(tokens: AsyncIterable[SessionToken]) -> AsyncGenerator[Turn, None]:
    async for token in tokens:
        yield _at_hand(token)


async def _each_called(call: Callable[[], Any]) -> AsyncGenerator[Turn, None]:
    while True:
        made = call()
        token = await made if inspect.isawaitable(made) else made
        if token is None:
            return
        yield _at_hand(token)


def _at_hand(token: object) -> Turn:
    if not isinstance(token, SessionToken):
        raise ConfigError(f"tokens: expected SessionToken, found {type(token).__name__}")
    return Turn(token.user, token=token)


def read_private(path: str | os.PathLike[str], what: str) -> Path:
    """The path of a file that only its owner can read.

    Raises
    ------
    ConfigError
        It is missing, no regular file, or readable by others; the message says what to do.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {error.strerror}; give the path of a file") from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{what}: {path} is not a regular file; give the path of one")
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{what}: {path} can be read by others; run: chmod 600 {path}")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{what}: {path} is not yours to read; run: chmod 600 {path}, or ask its owner")
    return path


def read_token_file(path: str | os.PathLike[str]) -> Source:
    """A source of the tokens in a file of mode 0600.

    Parameters
    ----------
    path
        CSV with a header (``token``, optionally ``user``, and further columns), or one token a line. Blank
        lines and lines that begin with ``#`` are passed over. Only the position of each line is kept in
        memory.

    Returns
    -------
    Source
        With a length, in seeded random order.

    Raises
    ------
    ConfigError
        The file or a line of it is malformed. A line is named by number and length, never by content.
    """
    path = read_private(path, "tokens")
    before = _version(path.stat())
    problem = ""
    try:
        header, offsets, seen = _indexed(path)
    except ConfigError as error:
        problem = str(error)
    if problem:
        raise ConfigError(problem)  # anew: the frames that found it hold a line of the file

    def read(file: Any, index: int) -> SessionToken:
        file.seek(offsets[index])
        return _token(file.readline().decode("utf-8-sig").strip(), header, path, index + 1)

    with path.open("rb") as file:
        chosen = seen.each_once(lambda index: read(file, index).user)

    async def turns(rng: random.Random) -> AsyncGenerator[Turn, None]:
        with path.open("rb") as file:
            for index in _shuffled(len(chosen), rng):
                if _version(os.fstat(file.fileno())) != before:
                    raise ConfigError(f"tokens: {path} changed since it was read; start again")
                yield _at_hand(read(file, chosen[index]))

    return Source(turns, len(chosen))


def _version(known: os.stat_result) -> tuple[int, int, int]:
    """What differs when a file has been written or replaced."""
    return known.st_size, known.st_mtime_ns, known.st_ino


def _indexed(path: Path) -> "tuple[list[str] | None, array[int], _Seen]":
    """The header, if there is one, where each line with a token begins, and what was seen; every line is checked."""
    header: list[str] | None = None
    seen = _Seen()
    offsets = array("Q")
    with path.open("rb") as file:
        if file.read(4)[:2] in {b"\xff\xfe", b"\xfe\xff", b"PK", b"\x1f\x8b"}:
            raise ConfigError(f"tokens: {path} is compressed or not UTF-8 text; give plain UTF-8 lines")
        file.seek(0)
        for number, (offset, line) in enumerate(_lines(file), start=1):
            try:
                text = line.decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                raise ConfigError(f"tokens: {path}, line {number}: not UTF-8 text") from None
            if not text or text.startswith("#"):
                continue
            if header is None and not offsets and _is_header(text):
                header = _checked_header(text, path)
                continue
            seen.add(_token(text, header, path, number))
            offsets.append(offset)
    if not offsets:
        raise ConfigError(f"tokens: {path} holds no tokens; give one a line, or CSV with a header")
    return header, offsets, seen


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    offset = 0
    for line in file:
        yield offset, line
        offset += len(line)


def _is_header(text: str) -> bool:
    """Whether a first line names columns, be it by other names or between other marks than commas."""
    return "," in text or not _COLUMN_NAMES.isdisjoint(re.split(r"[;|\t]", text.lower()))


def _checked_header(text: str, path: Path) -> list[str]:
    header = [name.strip() for name in next(csv.reader([text]))]
    if "token" not in header:
        raise ConfigError(
            f"tokens: {path}: the first line of {len(header)} columns has no column named token; "
            "give token, optionally user, and any further columns, with commas between"
        )
    if len(set(header)) != len(header) or not all(name.isidentifier() for name in header):
        raise ConfigError(f"tokens: {path}: column names must be words, each once")
    return header


def _token(text: str, header: list[str] | None, path: Path, number: int) -> SessionToken:
    row = next(csv.reader([text])) if header else [text]
    if header and len(row) != len(header):
        raise ConfigError(
            f"tokens: {path}, line {number}: {len(row)} columns where the header has {len(header)}"
        )
    values = dict(zip(header or ["token"], (cell.strip() for cell in row), strict=True))
    secret = values.pop("token")
    if secret.startswith(_SAMPLES) or len(secret) > _LONGEST_TOKEN:
        raise ConfigError(
            f"tokens: {path}, line {number}: {len(secret)} characters that are no session token"
        )
    try:
        return SessionToken(secret, user=values.pop("user", None) or None, columns=values)
    except ConfigError:
        raise ConfigError(
            f"tokens: {path}, line {number}: {len(secret)} characters, not printable ASCII without spaces"
        ) from None
