"""`aggregate`, `observe` and `preview` as coroutines on the caller's loop.

Here fetching, which knows no tables, meets the store, which knows no network.
"""

import asyncio
import gc
import math
import platform
import secrets
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pandas as pd
import pyarrow as pa

from mxlab import frames
from mxlab.errors import ConfigError, ConsentRequired
from mxlab.exchange import Ending, Exchange, Intent, Verb
from mxlab.fetch.collect import Collection
from mxlab.frames import Coverage, Snapshot
from mxlab.portal import watch
from mxlab.settings import Clock, Settings
from mxlab.store import Ledger, Store
from mxlab.tokens import Source, Tokens, sampled, source

_BATCH_ROWS = 10_000
_BATCH_SECONDS = 10.0
_RELEASED = datetime(2025, 1, 1, tzinfo=UTC).timestamp()


async def aggregate(
    tokens: Tokens,
    settings: Settings,
    *,
    store: Store | None = None,
    run: str | None = None,
    sample: int | None = None,
) -> Snapshot:
    """Look at every user's members, kick off their aggregation, and follow each to its end.

    This **starts work at banks** and may prompt users.

    Parameters
    ----------
    tokens
        Whatever `mxlab.tokens.source` takes.
    settings
        How to collect.
    store, run
        Where to write while it goes on, and under what name; the same run again resumes it: no user is lost and
        none is started twice.
    sample
        Take this many users at random.

    Returns
    -------
    Snapshot
        With a store, its frames are read from there as they are asked for.

    Raises
    ------
    ConsentRequired
        The host is not loopback and the settings lack ``allow_aggregate`` or ``max_users``.
    ConfigError, StoreError
        Before anything is sent.
    """
    users = _users(tokens, settings, sample)
    if not settings.on_loopback:
        if not settings.allow_aggregate:
            raise ConsentRequired(
                "aggregate starts jobs at banks and may prompt people: set allow_aggregate=True in the call's settings, "
                "after a look at preview()"
            )
        if settings.max_users is None:
            raise ConsentRequired(
                "aggregate off loopback needs max_users, the run's ceiling, in its settings"
            )
    _warn_of_age(users, settings)
    _warn_of_clock(settings)
    return await _collect("aggregate", users, settings, store, run)


async def observe(
    tokens: Tokens,
    settings: Settings,
    *,
    store: Store | None = None,
    run: str | None = None,
    sample: int | None = None,
) -> Snapshot:
    """Read every user's members; sends nothing that starts a job.

    Parameters, returns and errors are those of `aggregate`, but that it needs no consent; ``outcome`` and the
    aggregation interval of its members are null.
    """
    users = _users(tokens, settings, sample)
    _warn_of_age(users, settings)
    _warn_of_clock(settings)
    return await _collect("observe", users, settings, store, run)


def _warn_of_age(users: Source, settings: Settings) -> None:
    """Say before the start that tokens at hand will not last for all."""
    fresh = _preview(users, settings, None, "").fresh_users
    if fresh is not None and users.size is not None and users.size > fresh:
        warnings.warn(
            f"{users.size:,} session tokens at hand: at {settings.hard_rate:g} requests a second about {fresh:,} users "
            "can be served before the tokens are 30 minutes old; use sso_tokens or minted for more",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_clock(settings: Settings) -> None:
    """Say that the machine's clock is wrong: certificates and ages hang on it."""
    if settings.clock == Clock() and (now := settings.clock.time()) < _RELEASED:
        warnings.warn(
            f"clock: this machine says that it is {_iso(now)}; set it, or certificates fail and ages are wrong",
            UserWarning,
            stacklevel=3,
        )


@dataclass(frozen=True, slots=True)
class Preview:
    """What an `aggregate` would do, before it does it.

    Attributes
    ----------
    users
        How many; None where the source does not know.
    basis
        Where the figures of members come from: a stored run, one observe pass, or nothing.
    members
        Members of these users; this and what follows is None without a basis.
    inside_window
        Members whose last success is less than three hours ago: MX starts nothing for them.
    likely_prompts
        Members whose user would likely be asked for something.
    cannot
        Members that MX does not aggregate: manual, closed, discontinued, without credentials, blocked.
    calls
        Requests, about: looks, starts, reads of jobs, sessions.
    minutes
        At the hard cap of requests a second, about; None where there is no cap.
    fresh_users
        For tokens that cannot be renewed: how many users can be started before the last token is 30 minutes old.
    """

    users: int | None
    basis: str
    members: int | None
    inside_window: int | None
    likely_prompts: int | None
    cannot: int | None
    calls: int | None
    minutes: float | None
    fresh_users: int | None

    def __str__(self) -> str:
        rows = [
            ("users", self.users),
            ("members", self.members),
            ("inside the 3-hour window", self.inside_window),
            ("would likely prompt their user", self.likely_prompts),
            ("cannot be aggregated", self.cannot),
            ("requests, about", self.calls),
            ("minutes, about", self.minutes and round(self.minutes, 1)),
            ("users within the tokens' 30 minutes", self.fresh_users),
        ]
        shown = [f"  {name:<38}{'not known' if value is None else f'{value:>10,}'}" for name, value in rows]
        return "\n".join([f"an aggregate would do this (members from {self.basis}):", *shown])


_WINDOW_SECONDS = 3 * 3600.0
_SESSION_SECONDS = 1800.0
_LOOKS = 5.0
_PROMPTING = ("CHALLENGED", "REJECTED", "EXPIRED", "RECONNECTED", "PENDING")
_NEVER = ("PREVENTED", "IMPORTED", "IMPAIRED", "CLOSED", "DISCONTINUED", "DISABLED")


async def preview(
    tokens: Tokens,
    settings: Settings,
    *,
    store: Store | None = None,
    look: bool = False,
    sample: int | None = None,
) -> Preview:
    """What an `aggregate` of these users would do; starts nothing.

    Parameters
    ----------
    tokens, settings, sample
        As `aggregate` takes them.
    store
        Its latest run of the same host tells of the members.
    look
        Make one observe pass now, which tells of them better.

    Returns
    -------
    Preview
        The 3-hour window and who is never aggregated follow MX's Platform pages; for Nexus they are our reading.
    """
    users = _users(tokens, settings, sample)
    snap, basis = None, "nothing: give a store with a run of this host, or look=True"
    if look:
        snap = await _collect("observe", users, replace(settings, read_jobs=False), None, None)
        basis = f"one observe pass, {snap.coverage}"
    elif store is not None:
        runs = await asyncio.to_thread(store.runs)
        runs = runs[runs["host"] == settings.base_url]
        if len(runs):
            snap = await asyncio.to_thread(store.load, runs["run"].iloc[-1])
            basis = f"stored run {snap.manifest['run']} of {snap.manifest['started_at']}"
    return _preview(users, settings, snap, basis)


def _preview(users: Source, settings: Settings, snap: Snapshot | None, basis: str) -> Preview:
    counts: dict[str, int | None] = dict.fromkeys(("members", "inside_window", "likely_prompts", "cannot"))
    settled = 0.0
    if snap is not None and snap.coverage.answered:
        members = snap.members[snap.members["user_state"] == "answered"]
        status = members["connection_status"]
        age = (
            pd.Timestamp(settings.clock.time(), unit="s", tz="UTC") - members["successfully_aggregated_at"]
        ).dt
        never = status.isna() | status.isin(_NEVER)
        inside = ~never & (age.total_seconds() < _WINDOW_SECONDS)
        prompting = ~never & ~inside & status.isin(_PROMPTING)
        scale = 1.0 if users.size is None else users.size / snap.coverage.answered
        sums = (len(members), int(inside.sum()), int(prompting.sum()), int(never.sum()))
        counts = {name: round(value * scale) for name, value in zip(counts, sums, strict=True)}
        settled = float((~never & ~inside).sum()) / snap.coverage.answered
    before = 2 if users.minting else 0
    each = before + 2 + _LOOKS + settled * settings.read_jobs
    calls = None if users.size is None else round(users.size * each)
    rate = settings.hard_rate
    minutes = None if calls is None or math.isinf(rate) else calls / rate / 60
    fresh = None if users.minting or math.isinf(rate) else int(rate * _SESSION_SECONDS / (each - before))
    return Preview(users.size, basis, **counts, calls=calls, minutes=minutes, fresh_users=fresh)


def _users(tokens: Tokens, settings: Settings, sample: int | None) -> Source:
    if not settings.base_url:
        raise ConfigError("base_url: give the Nexus host, as https://int-data.moneydesktop.com")
    users = source(tokens)
    if sample is not None:
        users = sampled(users, sample)
    if settings.max_users is not None and users.size is not None and users.size > settings.max_users:
        raise ConfigError(
            f"max_users: the source has {users.size} users, the ceiling is {settings.max_users}"
        )
    return users


class Memory:
    """A run that is kept in memory: journal and tables."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.key = secrets.token_bytes(32)
        self.manifest: dict[str, Any] = {}
        self.ended_before = self.asked_before = self.asked_again = self.waiting = 0
        self._claimed: set[str] = set()
        self._parts: dict[str, list[pa.Table]] = {name: [] for name in frames.TABLES}
        self._failures: list[dict[str, str | None]] = []
        self._counts = {"answered": 0, "lost": 0, "unknown": 0}
        self._reasons: dict[str, int] = {}

    def claim(self, session: str) -> bool:
        """True for a user's first turn."""
        new = session not in self._claimed
        self._claimed.add(session)
        return new

    async def intend(self, intent: Intent) -> None:
        """An intent need not outlive the process that holds the results."""

    def leaving(self, intent: Intent) -> None:
        """As `intend`."""

    def answered(self, session: str, replied_at: float | None) -> None:
        """As `intend`."""

    def write(self, tables: Mapping[str, pa.Table], endings: Sequence[Ending]) -> None:
        """Keep a batch."""
        for name, table in tables.items():
            self._parts[name].append(table)
        for ending in endings:
            self._counts[ending.state] += 1
            if ending.state != "answered":
                self._reasons[ending.reason or ""] = self._reasons.get(ending.reason or "", 0) + 1
                self._failures.append(
                    {
                        name: getattr(ending, name)
                        for name in ("session", "user", "state", "reason", "what_to_do")
                    }
                )

    def coverage(self, asked: int | None, order: str) -> Coverage:
        """The sums so far."""
        counts = self._counts
        ended = sum(counts.values())
        asked = max(asked or 0, ended)
        reasons = dict(sorted(self._reasons.items(), key=lambda item: -item[1]))
        return Coverage(
            asked, counts["answered"], counts["lost"], counts["unknown"], asked - ended, reasons, order
        )

    def failures(self) -> pd.DataFrame:
        """A row for each lost or unknown user."""
        return frames.failures_frame(self._failures)

    def note(self, **facts: object) -> None:
        """Add to what is known of the run."""
        self.manifest |= facts

    def finish(self, manifest: Mapping[str, Any], coverage: Coverage, state: str) -> None:
        """Nothing is left to be written."""

    def table(self, name: str) -> pa.Table:
        """The rows of a table so far."""
        return frames.joined(name, self._parts[name])


class _Writer:
    """Gathers what comes and writes it in batches, off the loop, one at a time."""

    def __init__(self, book: "Memory | Ledger") -> None:
        self._book = book
        self._exchanges: list[Exchange] = []
        self._endings: list[Ending] = []
        self._begun_at = asyncio.get_running_loop().time()
        self._under_way: asyncio.Task[None] | None = None
        self.simulated = False

    async def add(self, exchanges: list[Exchange], endings: list[Ending]) -> None:
        """Take in a batch; waits only where the write before is not done when the next is due."""
        self._exchanges += exchanges
        self._endings += endings
        if not self.simulated and any(exchange.simulated for exchange in exchanges):
            self.simulated = True
            await asyncio.to_thread(self._book.note, simulated=True)
        late = asyncio.get_running_loop().time() - self._begun_at > _BATCH_SECONDS
        if late or len(self._exchanges) + len(self._endings) >= _BATCH_ROWS:
            await self._done()
            self._begin()

    async def flush(self) -> None:
        """Write all there is."""
        await self._done()
        self._begin()
        await self._done()

    def _begin(self) -> None:
        exchanges, self._exchanges = self._exchanges, []
        endings, self._endings = self._endings, []
        self._begun_at = asyncio.get_running_loop().time()
        self._under_way = asyncio.create_task(asyncio.to_thread(self._write, exchanges, endings))

    async def _done(self) -> None:
        if self._under_way is not None:
            await asyncio.shield(self._under_way)
            self._under_way = None

    def _write(self, exchanges: list[Exchange], endings: list[Ending]) -> None:
        if exchanges or endings:
            self._book.write(frames.tables(exchanges, endings, self._book.run), endings)


_sweeping = threading.Lock()
_thresholds: list[tuple[int, int, int]] = []


@contextmanager
def seldom_swept() -> Iterator[None]:
    """Passes of the cycle collector are rare while a run goes on, and as before when the last run has ended.

    A run keeps much and makes hardly a cycle, and each pass walks all that is kept: it took a third of the time.
    """
    with _sweeping:
        _thresholds.append(gc.get_threshold())
        gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        with _sweeping:
            before = _thresholds.pop()
            if not _thresholds:
                gc.set_threshold(*before)


async def _collect(
    verb: Verb, users: Source, settings: Settings, store: Store | None, run: str | None
) -> Snapshot:
    manifest = _manifest(verb, users, settings)
    if store is None:
        opened: Any = nullcontext(Memory(run or _run_name(manifest)))
    else:
        opened = await asyncio.to_thread(store.begin, run, manifest)
    with seldom_swept(), opened as book:
        manifest["run"] = book.run
        watching = watch()
        progress = watching.progress
        progress.asked = users.size
        progress.phase = "collecting"
        collection = Collection(users, settings, verb, book, progress, valve=watching.valve)
        writer = _Writer(book)

        def snapshot() -> Snapshot:
            asked = book.ended_before + progress.ended + progress.following + book.waiting
            if not collection.exhausted and users.size is not None:
                asked = max(asked, users.size)
            table = book.table if store is None else store.load(book.run).table
            return Snapshot(dict(manifest), book.coverage(asked, users.order), book.failures(), table)

        watching.partial = snapshot
        state = "stopped"
        try:
            async with aclosing(collection.batches()) as batches:
                async for batch in batches:
                    await writer.add(*batch)
            state = "complete"
        finally:
            await writer.add(*collection.rest())
            await writer.flush()
            manifest["schema_drift"] = collection.drift()
            manifest["asked_again"] = book.asked_again
            manifest["paused_seconds"] = round(watching.valve.seconds, 1)
            manifest["ended_at"] = _iso(settings.clock.time())
            manifest["simulated"] = writer.simulated or bool(book.manifest.get("simulated"))
            progress.phase = state
            coverage = snapshot().coverage
            manifest["added"] = max(coverage.asked - book.asked_before, 0) if book.asked_before else 0
            await asyncio.to_thread(book.finish, manifest, coverage, state)
        for drift in collection.drift():
            warnings.warn(drift, UserWarning, stacklevel=3)
        if book.waiting:
            warnings.warn(
                f"run {book.run}: {book.waiting:,} users whose aggregation an earlier call had started are not among the "
                "tokens of this one; they stay pending: run again with them, under the same run name",
                UserWarning,
                stacklevel=3,
            )
        return snapshot()


def _manifest(verb: Verb, users: Source, settings: Settings) -> dict[str, Any]:
    """What a run is: enough to do it again, and to read its figures rightly."""
    started_at = _iso(settings.clock.time())
    shown = {each.name: getattr(settings, each.name) for each in fields(settings)}
    shown["clock"] = str(settings.clock)
    packages = ("mxlab", "pandas", "pyarrow", "aiohttp", "deltalake", "duckdb", "matplotlib")
    return {
        "run": None,
        "verb": verb,
        "host": settings.base_url,
        "started_at": started_at,
        "ended_at": None,
        "settings": shown,
        "seed": settings.seed,
        "clock": asdict(settings.clock),
        "order": users.order,
        "users": users.size,
        "simulated": False,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _run_name(manifest: Mapping[str, Any]) -> str:
    return str(manifest["started_at"])[:16].replace("T", "-").replace(":", "") + "-" + secrets.token_hex(2)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
