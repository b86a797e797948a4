"""SQLite: the state of a run, user by user, durable before each start; resume, lock, checksums."""

import asyncio
import fcntl
import json
import os
import socket
import sqlite3
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from secrets import token_bytes, token_hex
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

import msgspec
import pandas as pd
import pyarrow as pa
from deltalake.exceptions import DeltaError

from mxlab.errors import ConfigError, StoreError
from mxlab.exchange import Ending, Intent
from mxlab.frames import SCHEMAS, Coverage, failures_frame
from mxlab.store.departures import Departures
from mxlab.store.tables import StoredTable, changed, digest

#: Of the ledger's tables; a newer one is read, never written.
FORMAT = 1
#: What a run must keep when it is resumed.
DECIDING = ("verb", "host", "include_holdings", "include_transactions")

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE users (
    session TEXT PRIMARY KEY, user TEXT, state TEXT NOT NULL, reason TEXT, what_to_do TEXT, members INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE intents (
    session TEXT PRIMARY KEY, sent_at REAL NOT NULL, sends INTEGER NOT NULL, baseline TEXT NOT NULL, replied_at REAL
) WITHOUT ROWID;
CREATE TABLE batches (
    sequence INTEGER, name TEXT, rows INTEGER NOT NULL, columns TEXT NOT NULL, staged BLOB,
    PRIMARY KEY (sequence, name)
);
CREATE TABLE files (
    name TEXT, path TEXT, size INTEGER NOT NULL, rows INTEGER NOT NULL, sha256 TEXT NOT NULL,
    PRIMARY KEY (name, path)
) WITHOUT ROWID;
"""
_LOST = """
SELECT session FROM users WHERE state = 'lost' AND members = 0 AND session NOT IN (SELECT session FROM intents)
"""
_GIVEN_UP = "SELECT count(*) FROM intents WHERE session IN (SELECT session FROM users)"
_LOCK_SECONDS = 0.5
_FULL = "Free some space there, then run again with the same run name."
_DAMAGED = "Restore it from a copy, or collect again under another run name."
#: session, user, state, reason, what_to_do, number of members
User = tuple[str, str | None, str, str | None, str | None, int]
_Settled = tuple[Intent, asyncio.AbstractEventLoop, "asyncio.Future[None]"]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch's part of one table, and its rows while they are not published."""

    sequence: int
    name: str
    rows: int
    columns: tuple[str, ...]
    staged: pa.Table | None


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A data file of a table as it was written."""

    name: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a ledger says of its run, all at one moment."""

    run: str
    path: Path
    application: str
    begun_at: str
    version: str
    state: str | None
    manifest: dict[str, Any]
    coverage: Coverage
    batches: tuple[Batch, ...]

    @property
    def is_half_appended(self) -> bool:
        """Whether storing a whole Snapshot was cut short."""
        return self.state is None and "appended" in self.manifest

    @property
    def position(self) -> tuple[int, int]:
        """How many parts of batches it has, and how many of them are published."""
        return len(self.batches), sum(each.staged is None for each in self.batches)

    @property
    def members(self) -> int:
        """Rows of the members table."""
        return sum(each.rows for each in self.batches if each.name == "members")

    @property
    def columns(self) -> list[str]:
        """Columns of members beside the declared ones."""
        return sorted({name for each in self.batches for name in each.columns})


class Ledger:
    """The journal of one run, held by one process.

    Parameters
    ----------
    folder
        Of the store; exists.
    run
        Name of the run, checked.
    manifest
        What is known of the run when it begins.

    Attributes
    ----------
    run : str
    key : bytes
        32 random bytes made with the run: the key of its sessions' pseudonyms.
    ended_before : int
        Users that had ended when this ledger was opened, and are not asked again.
    asked_before : int
        Users that the calls before were given, as far as the last of them wrote it down.
    asked_again : int
        Users that were lost before and are asked again.
    is_new : bool
        Whether nothing had been written when this ledger was opened.
    manifest : dict
        What is stored of the run.

    Raises
    ------
    ConfigError
        The run exists with another verb, host, or choice of what to gather.
    StoreError
        The run is being written, the ledger is damaged, or of a newer version.
    """

    def __init__(self, folder: Path, run: str, manifest: Mapping[str, Any]) -> None:
        self.run = run
        self.path = folder / "runs" / f"{run}.db"
        self._tables = {name: StoredTable(folder, name) for name in SCHEMAS}
        self._under_way: set[str] = set()
        self._waiting: list[_Settled] = []
        self._answers: dict[str, float | None] = {}
        self._again: set[str] = set()
        self.asked_again = 0
        self._mutex = threading.Lock()
        self._publishing = threading.Lock()
        self._staged: Mapping[str, pa.Table] | None = None
        with ExitStack() as stack:
            stack.enter_context(_locked(self.path.with_suffix(".lock"), run))
            self._open(stack, manifest)
            self._exit = stack.pop_all()

    def _open(self, stack: ExitStack, manifest: Mapping[str, Any]) -> None:
        for table in self._tables.values():
            table.create()
            table.check_types()
        fresh = not self.path.exists()
        if fresh:
            self._check_no_rows()
            _make(self.path, self.run, manifest)
        with _explained(self.path, "open the ledger"):
            self._connection = stack.enter_context(closing(_connected(self.path)))
            stack.callback(self._to_one_file)
            if not fresh:
                _check(self.path, self._connection, manifest)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._reader = stack.enter_context(closing(_connected(self.path)))
            self._claims = stack.enter_context(closing(_connected(self.path)))
            facts = _facts(self._reader)
            self.key: bytes = facts["key"]
            self.manifest: dict[str, Any] = json.loads(facts["manifest"])
            self._application: str = facts["application"]
            (self.ended_before,) = self._reader.execute("SELECT count(*) FROM users").fetchone()
            coverage = facts.get("coverage")
            self.asked_before = msgspec.json.decode(coverage, type=Coverage).asked if coverage else 0
            (batches,) = self._reader.execute("SELECT count(*) FROM batches").fetchone()
            self.is_new = not batches
        self._writer = stack.enter_context(ThreadPoolExecutor(1, f"ledger of {self.run}"))
        with _explained(self.path, "see which starts have left"):
            self._departures = Departures(self.path.with_suffix(".left"))
            self._take_back_unsent()
            self._lost = {session for (session,) in self._reader.execute(_LOST)}
            self._earlier = {each.session: each for each in _intents(self._reader)}
            self._given_up: int = self._reader.execute(_GIVEN_UP).fetchone()[0]
            self._departures.begin([each for each in self._earlier.values() if each.replied_at is None])
            stack.callback(self._end_departures)
        self._publish()
        for name in self._tables:
            self._record(name)
            self._check_rows(name)
        self._write(
            lambda connection: connection.execute("DELETE FROM facts WHERE name IN ('state', 'coverage')")
        )

    def _take_back_unsent(self) -> None:
        """Starts that never left need no clearing up: as if they had not been intended."""
        still_open = [each for each in _intents(self._reader) if each.replied_at is None]
        unsent = [(each.session,) for each in self._departures.unsent(still_open)]

        def take_back(connection: sqlite3.Connection) -> None:
            connection.executemany("UPDATE intents SET sends = sends - 1 WHERE session = ?", unsent)
            connection.execute("DELETE FROM intents WHERE sends = 0")

        if unsent:
            self._write(take_back)

    def _end_departures(self) -> None:
        with suppress(StoreError, OSError, sqlite3.Error):  # then the file stays, as after a kill
            self._take_back_unsent()
            self._departures.end()

    def claim(self, session: str) -> bool | Intent:
        """Whether a user is this run's to collect, here and now.

        Returns
        -------
        bool or Intent
            True: a new user, or one that was lost in an earlier life of the run with no row stored and no start
            that may have acted. False: the user has ended in this run, or is under way in this process. An Intent: a start of this user may have acted in an earlier life of the run; clear it up by reading.
        """
        if session in self._under_way:
            return False
        with _explained(self.path, "read the ledger"):
            if session in self._lost:
                self._lost.remove(session)
                self._again.add(session)
                self.asked_again += 1
                self.ended_before -= 1
            elif self._claims.execute("SELECT 1 FROM users WHERE session = ?", (session,)).fetchone():
                return False
        self._under_way.add(session)
        return self._earlier.pop(session, None) or True

    @property
    def waiting(self) -> int:
        """Users whose start an earlier life of the run sent, and who have not been brought to this one."""
        return len(self._earlier) - self._given_up

    async def intend(self, intent: Intent) -> None:
        """Write an intent down; it is on the disk when this returns. Intents that wait together share a commit.

        Raises
        ------
        StoreError
            It could not be written: the start must not be sent.
        """
        loop = asyncio.get_running_loop()
        settled = loop.create_future()
        with self._mutex:
            self._answers.pop(intent.session, None)
            self._waiting.append((intent, loop, settled))
            if len(self._waiting) + len(self._answers) == 1:
                self._submit(self._commit_intents)
        await settled

    def leaving(self, intent: Intent) -> None:
        """Note that a start leaves now: what was intended and did not leave needs no clearing up after a kill."""
        with _explained(self.path.with_suffix(".left"), "note that a start leaves"):
            self._departures.note(intent)

    def answered(self, session: str, replied_at: float | None) -> None:
        """Note when a start was answered; with None, that it was refused before acting and its intent is void.

        Returns at once: a kill before it is written leaves the intent open, to be cleared up by reading.
        """
        with self._mutex:
            self._answers[session] = replied_at
            if len(self._waiting) + len(self._answers) == 1:
                self._submit(self._commit_intents)

    def _commit_intents(self) -> None:
        with self._mutex:
            waiting, self._waiting = self._waiting, []
            answers, self._answers = self._answers, {}
        failure: BaseException | None = None
        try:
            with _explained(self.path, "write down an intent"), _transaction(self._connection):
                self._connection.executemany(
                    "INSERT OR REPLACE INTO intents VALUES (?, ?, ?, ?, NULL)",
                    [
                        (each.session, each.sent_at, each.sends, msgspec.json.encode(each.baseline).decode())
                        for each, _, _ in waiting
                    ],
                )
                self._connection.executemany(
                    "UPDATE intents SET replied_at = ? WHERE session = ?",
                    [(at, session) for session, at in answers.items() if at is not None],
                )
                self._connection.executemany(
                    "DELETE FROM intents WHERE session = ?",
                    [(session,) for session, at in answers.items() if at is None],
                )
        except Exception as error:
            failure = error
        by_loop = defaultdict(list)
        for _, loop, settled in waiting:
            by_loop[loop].append(settled)
        for loop, futures in by_loop.items():
            with suppress(RuntimeError):  # the loop has been closed: nobody waits
                loop.call_soon_threadsafe(_settle, futures, failure)

    def write(self, tables: Mapping[str, pa.Table], endings: Sequence[Ending]) -> None:
        """Take a batch: users' ends and rows, exactly once. Blocks; for a thread.

        Parameters
        ----------
        tables
            Of `frames.tables`. After an error, the same object may be given again, or the next batch.
        endings
            Users that ended; one that is still ``pending`` stays open for the next life of the run.

        Raises
        ------
        StoreError
            The disk or a table refused.
        """
        ended = [each for each in endings if each.state != "pending"]
        self.take(
            tables,
            [
                (each.session, each.user, each.state, each.reason, each.what_to_do, len(each.members))
                for each in ended
            ],
        )

    def take(self, tables: Mapping[str, pa.Table], users: Sequence[User]) -> None:
        """Take a batch of rows and of users that ended; `write` in plainer words."""
        with self._publishing:
            if tables is not self._staged:
                self._stage(tables, users)
                self._staged = tables
                ended = [user[0] for user in users]
                self._under_way.difference_update(ended)
                self._again.difference_update(ended)
            self._publish()
            self._staged = None

    def _stage(self, tables: Mapping[str, pa.Table], users: Sequence[User]) -> None:
        batch = [
            (name, rows.num_rows, json.dumps(rows.column_names[len(SCHEMAS[name]) :]), _packed(rows))
            for name, rows in tables.items()
        ]

        def stage(connection: sqlite3.Connection) -> None:
            (last,) = connection.execute("SELECT coalesce(max(sequence), 0) FROM batches").fetchone()
            connection.executemany(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?)", [(last + 1, *part) for part in batch]
            )
            connection.executemany("INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?, ?, ?)", users)
            connection.executemany(  # of a lost user it stays: the start may have acted, so nobody asks again
                "DELETE FROM intents WHERE session = ?", [(user[0],) for user in users if user[2] != "lost"]
            )

        self._write(stage)

    def _publish(self) -> None:
        """Bring staged batches, the oldest first, to the tables; a table that has one already passes it over."""
        while parts := self._oldest_staged():
            for part in parts:
                if part.rows and part.staged is not None:
                    self._tables[part.name].append(self._application, part.sequence, part.staged)
                    self._record(part.name)
            self._mark(parts[0].sequence)

    def _oldest_staged(self) -> list[Batch]:
        rows = self._read(
            "SELECT * FROM batches WHERE sequence = (SELECT min(sequence) FROM batches WHERE staged IS NOT NULL)"
        )
        return [_batch(*row) for row in rows]

    def _mark(self, sequence: int) -> None:
        self._write(
            lambda connection: connection.execute(
                "UPDATE batches SET staged = NULL WHERE sequence = ?", (sequence,)
            )
        )

    def _record(self, name: str) -> None:
        """Bring the run's new files of a table to the disk and write down their checksums."""
        table = self._tables[name]
        now = {each.path: each for each in table.files(self.run)}
        known = {path for (path,) in self._read("SELECT path FROM files WHERE name = ?", name)}
        new = [now[path] for path in now.keys() - known]
        if not new and known <= now.keys():
            return
        table.sync([each.path for each in new])
        rows = [(name, each.path, each.size, each.rows, digest(table.path / each.path)) for each in new]

        def record(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?)", rows)
            connection.executemany(
                "DELETE FROM files WHERE name = ? AND path = ?", [(name, path) for path in known - now.keys()]
            )

        self._write(record)

    def _check_no_rows(self) -> None:
        """A run without a ledger must have no rows: else the ledger is gone, and with it who was started."""
        for table in self._tables.values():
            if table.files(self.run):
                raise StoreError(
                    f"{self.path}: the ledger is missing and {table.path} has rows of its run. {_DAMAGED}"
                )

    def _check_rows(self, name: str) -> None:
        ((expected,),) = self._read("SELECT coalesce(sum(rows), 0) FROM batches WHERE name = ?", name)
        found = sum(each.rows for each in self._tables[name].files(self.run))
        if found != expected:
            raise StoreError(
                f"{self._tables[name].path}: run {self.run} has {found:,} rows where its ledger has {expected:,}. "
                + _DAMAGED
            )

    def coverage(self, asked: int | None, order: str) -> Coverage:
        """What became of the users so far.

        Parameters
        ----------
        asked
            Users in all; None while the source does not say: then as many as are known.
        order
            ``random`` or ``source``.
        """
        with _explained(self.path, "read the ledger"), closing(_connected(self.path)) as connection:
            return _coverage(connection, asked, order, len(self._under_way) - len(self._again))

    def failures(self) -> pd.DataFrame:
        """A row for each lost or unknown user."""
        with _explained(self.path, "read the ledger"), closing(_connected(self.path)) as connection:
            return _failures(connection)

    def note(self, **facts: object) -> None:
        """Add to the stored manifest what became known while the run goes on: that it is simulated, say."""
        self.manifest = {**self.manifest, **_plain(facts)}
        self._save(manifest=json.dumps(self.manifest))

    def finish(
        self, manifest: Mapping[str, Any], coverage: Coverage, state: Literal["complete", "stopped"]
    ) -> None:
        """Store what the run came to, and make its many small files a few large ones.

        Parameters
        ----------
        manifest
            The final one; a resumed run keeps the start of its first life.
        coverage
            The final one.
        state
            Whether the source was worked through.
        """
        with self._publishing:
            self._publish()
            for name in self._tables:
                self._tidy(name)
            started = self.manifest.get("started_at")
            self.manifest = {**_plain(manifest), **({"started_at": started} if started else {})}
            self._save(manifest=json.dumps(self.manifest), coverage=json.dumps(asdict(coverage)), state=state)

    def _save(self, **facts: str) -> None:
        self._write(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items()
            )
        )

    def _tidy(self, name: str) -> None:
        """Compact, unless a file has changed since it was written: damage must stay in sight."""
        table = self._tables[name]
        known = self._read("SELECT path, size, sha256 FROM files WHERE name = ?", name)
        if not any(changed(table.path / path, size, sha256) for path, size, sha256 in known):
            with suppress(DeltaError, OSError):  # many small files are slower, not wrong
                table.tidy(self.run)
            self._record(name)
            self._check_rows(name)

    def close(self) -> None:
        """Let the run go; what was written stays."""
        self._exit.close()

    def _to_one_file(self) -> None:
        with suppress(sqlite3.Error):  # a reader may hold it; then the log stays beside it
            self._connection.execute("PRAGMA journal_mode = DELETE")

    def _read(self, query: str, *values: object) -> list[Any]:
        with _explained(self.path, "read the ledger"):
            return self._reader.execute(query, values).fetchall()

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do work in one transaction, in the ledger's one writer thread."""

        def transact() -> None:
            with _explained(self.path, "write to the ledger"), _transaction(self._connection):
                work(self._connection)

        self._submit(transact).result()

    def _submit(self, work: Callable[[], None]) -> "Future[None]":
        try:
            return self._writer.submit(work)
        except RuntimeError:
            self._waiting.clear()
            raise StoreError(f"{self.path}: this ledger is closed; Store.begin opens the run again") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> Recorded:
    """What a ledger says of its run; the run may go on meanwhile."""
    with _explained(path, "read the ledger"), _read_only(path) as connection:
        connection.execute("BEGIN")
        facts = _facts(connection)
        manifest = json.loads(facts["manifest"])
        if "coverage" in facts:
            coverage = msgspec.json.decode(facts["coverage"], type=Coverage)
        else:
            coverage = _coverage(connection, manifest.get("users"), manifest.get("order", "source"))
        batches = connection.execute("SELECT * FROM batches ORDER BY sequence").fetchall()
        return Recorded(
            run=facts["run"],
            path=path,
            application=facts["application"],
            begun_at=facts["begun_at"],
            version=facts["version"],
            state=facts.get("state"),
            manifest=manifest,
            coverage=coverage,
            batches=tuple(_batch(*row) for row in batches),
        )


def read_failures(path: Path) -> pd.DataFrame:
    """Lost and unknown users of a run."""
    with _explained(path, "read the ledger"), _read_only(path) as connection:
        return _failures(connection)


def read_files(path: Path) -> list[RecordedFile]:
    """The data files of a run, once the ledger itself is found sound."""
    with _explained(path, "read the ledger"), _read_only(path) as connection:
        _check_pages(connection)
        return [
            RecordedFile(*row) for row in connection.execute("SELECT name, path, size, sha256 FROM files")
        ]


def format_of(path: Path) -> int:
    """Which version of the ledger's tables a file has, by its header; 0 where it is no ledger."""
    with _explained(path, "read the ledger"), path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"SQLite format 3\0"):
        return 0
    (found,) = struct.unpack(">i", header[60:])
    return int(found)


def is_held(path: Path) -> bool:
    """Whether a process writes the run of this lock file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def _locked(path: Path, run: str) -> Iterator[None]:
    """Hold a run's lock; its owner's death frees it.

    Raises
    ------
    StoreError
        Another holds it; the message says who.
    """
    with _explained(path, "make the lock"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _HELD.add(handle)
    try:
        _take(handle, path, run)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
        yield
    finally:
        _HELD.discard(handle)
        os.close(handle)


def _take(handle: int, path: Path, run: str) -> None:
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() < until:  # who only looks whether it is held holds it for a moment
                time.sleep(0.02)  # flock cannot wait for a limited time
                continue
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise StoreError(
                f"run {run} is being written by {owner} ({path}); wait for it, stop it, or choose another run name"
            ) from None
        else:
            return


_HELD: set[int] = set()


def _let_go() -> None:
    """A forked child must not keep its parent's lock alive."""
    for handle in _HELD:
        with suppress(OSError):
            os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def _make(path: Path, run: str, manifest: Mapping[str, Any]) -> None:
    """A new ledger, there as a whole or not at all."""
    draft = path.with_suffix(".new")
    facts = {
        "run": run,
        "key": token_bytes(32),
        "application": f"{run}/{token_hex(8)}",
        "begun_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "version": version("mxlab"),
        "manifest": json.dumps(_plain(manifest)),
    }
    with _explained(path, "make the ledger"):
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL, 0o600))
        with closing(_connected(draft)) as connection:
            connection.executescript(f"PRAGMA user_version = {FORMAT}; {_SCHEMA}")
            with _transaction(connection):
                connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        draft.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _check(path: Path, connection: sqlite3.Connection, manifest: Mapping[str, Any]) -> None:
    """Refuse a damaged ledger, and a run that was begun otherwise."""
    _check_pages(connection)
    then, now = _deciding(json.loads(_facts(connection)["manifest"])), _deciding(_plain(manifest))
    differing = [f"{name} {then[name]!r}, now {now[name]!r}" for name in DECIDING if then[name] != now[name]]
    if differing:
        raise ConfigError(
            f"run {path.stem} was begun with {'; '.join(differing)}: "
            "resume it as it was begun, or choose another run name"
        )


def _check_pages(connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _deciding(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run must keep. A simulator on loopback may come back on another port."""
    settings = manifest.get("settings")
    known = {**(settings if isinstance(settings, dict) else {}), **manifest}
    url = str(known.get("base_url") or known.get("host") or "")
    parts = urlsplit(url if "//" in url else f"//{url}")
    loopback = parts.hostname in {"127.0.0.1", "localhost", "::1"}
    return {
        "verb": known.get("verb"),
        "host": "loopback" if loopback else url.rstrip("/").lower(),
        "include_holdings": bool(known.get("include_holdings")),
        "include_transactions": bool(known.get("include_transactions")),
    }


def _plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest as JSON can hold it."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(manifest), default=str))
    return plain


def _connected(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=5,
    )


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing; a ledger at rest can be read on a read-only disk too."""
    resting = not path.with_name(f"{path.name}-wal").exists() and not os.access(path.parent, os.W_OK)
    uri = f"file:{quote(str(path.absolute()))}?mode=ro{'&immutable=1' if resting else ''}"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5)) as connection:
        yield connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _explained(path: Path, doing: str) -> Iterator[None]:
    """Errors of SQLite and of the disk as a `StoreError` that names the file and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        advice = {
            sqlite3.SQLITE_FULL: _FULL,
            sqlite3.SQLITE_IOERR: "Look after the disk, then run again with the same run name.",
            sqlite3.SQLITE_READONLY: "Make it writable, then run again with the same run name.",
            sqlite3.SQLITE_CANTOPEN: "Check that it is there and that you may read and write it.",
            sqlite3.SQLITE_BUSY: "Another program holds it; close that one.",
        }.get(code, _DAMAGED)
        raise StoreError(f"{path}: cannot {doing}: {error}. {advice}") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot {doing}: {error.strerror or error}. {_FULL}") from error
    except (json.JSONDecodeError, msgspec.DecodeError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot {doing}: {error}. {_DAMAGED}") from error


def _facts(connection: sqlite3.Connection) -> dict[str, Any]:
    facts = dict(connection.execute("SELECT name, value FROM facts"))
    if missing := {"run", "key", "application", "begun_at", "version", "manifest"} - facts.keys():
        raise sqlite3.DatabaseError(f"it lacks {', '.join(sorted(missing))}")
    return facts


def _intents(connection: sqlite3.Connection) -> Iterator[Intent]:
    for session, sent_at, sends, baseline, replied_at in connection.execute("SELECT * FROM intents"):
        yield msgspec.convert(
            {
                "session": session,
                "sent_at": sent_at,
                "sends": sends,
                "baseline": msgspec.json.decode(baseline),
                "replied_at": replied_at,
            },
            Intent,
        )


def _coverage(
    connection: sqlite3.Connection, asked: int | None, order: str, under_way: int | None = None
) -> Coverage:
    if under_way is None:
        (under_way,) = connection.execute(
            "SELECT count(*) FROM intents WHERE session NOT IN (SELECT session FROM users)"
        ).fetchone()
    states: defaultdict[str, int] = defaultdict(int)
    reasons: defaultdict[str, int] = defaultdict(int)
    for state, reason, count in connection.execute(
        "SELECT state, reason, count(*) FROM users GROUP BY state, reason"
    ):
        states[state] += count
        if state != "answered":
            reasons[reason or "no_reason"] += count
    ended = sum(states.values())
    asked = ended + (under_way or 0) if asked is None else max(asked, ended)
    return Coverage(
        asked=asked,
        answered=states["answered"],
        lost=states["lost"],
        unknown=states["unknown"],
        pending=asked - ended,
        reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        order=order,
    )


def _failures(connection: sqlite3.Connection) -> pd.DataFrame:
    columns = ("session", "user", "state", "reason", "what_to_do")
    rows = connection.execute(
        f"SELECT {', '.join(columns)} FROM users WHERE state IN ('lost', 'unknown')"  # noqa: S608 - names above
    )
    return failures_frame(dict(zip(columns, row, strict=True)) for row in rows)


def _packed(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(rows)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _batch(sequence: int, name: str, rows: int, columns: str, staged: bytes | None) -> Batch:
    unpacked = None if staged is None else pa.ipc.open_stream(staged).read_all()
    return Batch(sequence, name, rows, tuple(json.loads(columns)), unpacked)


def _settle(futures: Sequence["asyncio.Future[None]"], failure: BaseException | None) -> None:
    for each in futures:
        if each.done():
            continue
        if failure is None:
            each.set_result(None)
        else:
            each.set_exception(failure)
