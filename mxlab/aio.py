"""`aggregate`, `observe` and `preview` as coroutines on the caller's loop.

Here fetching, which knows no tables, meets the store, which knows no network.
"""

import asyncio
import platform
import secrets
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
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
from mxlab.settings import Settings
from mxlab.store import Ledger, Store
from mxlab.tokens import Source, Tokens, sampled, source

_BATCH_ROWS = 10_000
_BATCH_SECONDS = 10.0


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
    return await _collect("observe", _users(tokens, settings, sample), settings, store, run)


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


class _Memory:
    """A run that is kept in memory: journal and tables."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.key = secrets.token_bytes(32)
        self.ended_before = 0
        self._claimed: set[str] = set()
        self._parts: dict[str, list[pa.Table]] = {name: [] for name in frames.TABLES}
        self._failures: list[dict[str, str | None]] = []
        self._counts = {"answered": 0, "lost": 0, "unknown": 0}
        self._reasons: dict[str, int] = {}

    def claim(self, session: str) -> bool:
        new = session not in self._claimed
        self._claimed.add(session)
        return new

    async def intend(self, intent: Intent) -> None:
        """An intent need not outlive the process that holds the results."""

    def write(self, tables: Mapping[str, pa.Table], endings: Sequence[Ending]) -> None:
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
        ended = sum(self._counts.values())
        asked = max(asked or 0, ended)
        reasons = dict(sorted(self._reasons.items(), key=lambda item: -item[1]))
        return Coverage(asked, **self._counts, pending=asked - ended, reasons=reasons, order=order)

    def failures(self) -> pd.DataFrame:
        return frames.failures_frame(self._failures)

    def finish(self, manifest: Mapping[str, Any], coverage: Coverage, state: str) -> None:
        """Nothing is left to be written."""

    def table(self, name: str) -> pa.Table:
        return frames.joined(name, self._parts[name])


class _Writer:
    """Gathers what comes and writes it in batches, off the loop, one at a time."""

    def __init__(self, book: "_Memory | Ledger") -> None:
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
        self.simulated = self.simulated or any(exchange.simulated for exchange in exchanges)
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


async def _collect(
    verb: Verb, users: Source, settings: Settings, store: Store | None, run: str | None
) -> Snapshot:
    manifest = _manifest(verb, users, settings)
    if store is None:
        opened: Any = nullcontext(_Memory(run or _run_name(manifest)))
    else:
        opened = await asyncio.to_thread(store.begin, run, manifest)
    with opened as book:
        manifest["run"] = book.run
        watching = watch()
        progress = watching.progress
        progress.asked = users.size
        progress.phase = "collecting"
        collection = Collection(users, settings, verb, book, progress)
        writer = _Writer(book)

        def snapshot() -> Snapshot:
            asked = users.size
            if collection.exhausted or asked is None:
                asked = book.ended_before + progress.ended + progress.following
            table = book.table if store is None else store.load(book.run).table
            return Snapshot(dict(manifest), book.coverage(asked, users.order), book.failures(), table)

        watching.partial = snapshot
        state = "stopped"
        try:
            async for batch in collection.batches():
                await writer.add(*batch)
            state = "complete"
        finally:
            await writer.add(*collection.rest())
            await writer.flush()
            manifest["ended_at"] = _iso(settings.clock.time())
            manifest["simulated"] = writer.simulated
            progress.phase = state
            await asyncio.to_thread(book.finish, manifest, snapshot().coverage, state)
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
