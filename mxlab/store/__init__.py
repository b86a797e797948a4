"""Snapshots on disk: a SQLite ledger for each run, and the frames of all runs as Delta tables."""

import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
from deltalake import DeltaTable

from mxlab.errors import ConfigError, StoreError
from mxlab.frames import SCHEMAS, Coverage, Snapshot, joined
from mxlab.store.ledger import (
    FORMAT,
    Ledger,
    Recorded,
    User,
    format_of,
    is_held,
    read,
    read_failures,
    read_files,
)
from mxlab.store.tables import Answer, StoredTable, answer, changed, check_reads, files, rows_of

__all__ = ["Ledger", "Store"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_NETWORKED = re.compile(r"nfs4?|cifs|smb3|smbfs|fuse(\..*)?")
_MOUNTS = Path("/proc/self/mountinfo")
_LITTLE = 10**9
_SHOWN = 20
_TEXT = pd.StringDtype("pyarrow")
_HOW = "collect into it with mx.aggregate(…, store=…) or mx.observe(…, store=…), or run `mxlab demo`"


class Store:
    """Snapshots on disk.

    Nothing is made until something is first written.

    Parameters
    ----------
    path
        A folder on a local disk; made when it is first written to.

    Examples
    --------
    >>> Store("snapshots")
    Store('snapshots')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not str(path).strip():
            raise ConfigError("store: give the path of a folder")
        self.path = Path(path).expanduser()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def begin(self, run: str | None, manifest: Mapping[str, Any]) -> Ledger:
        """Open a run for writing: a new one, or one to resume.

        Parameters
        ----------
        run
            Its name; None makes one from the time.
        manifest
            What is known of the run when it begins: verb, host, started_at, settings, …

        Returns
        -------
        Ledger
            The run is this process's until it is closed.

        Raises
        ------
        ConfigError
            The name is none, the run exists with another verb, host or choice of what to gather, or the folder
            cannot hold a store.
        StoreError
            Another process writes the run, or the store is damaged or of a newer version.
        """
        run = _fresh_name(manifest) if run is None else _checked_name(run)
        self._prepare()
        return Ledger(self.path, run, {**manifest, "run": run})

    def append(self, snapshot: Snapshot, run: str | None = None) -> str:
        """Store a whole Snapshot as a run.

        Parameters
        ----------
        snapshot
            One that was collected without a store.
        run
            The run's name here; the Snapshot's own where None.

        Returns
        -------
        str
            The run's name.

        Raises
        ------
        ConfigError
            The store has a run of that name, or the Snapshot is of several runs, or narrowed.
        """
        if {"condition", "runs"} & snapshot.manifest.keys():
            raise ConfigError(
                "append: give the Snapshot of one run as it was collected, not a part or several"
            )
        run = _checked_name(run or str(snapshot.manifest.get("run")))
        manifest = {**snapshot.manifest, "run": run}
        known = self._ledgers().get(run)
        if known and not read(known).is_half_appended:
            raise ConfigError(f"append: {self.path} has a run {run} already; give another name with run=")
        with self.begin(run, {**manifest, "appended": True}) as ledger:
            if ledger.is_new:
                ledger.take(*_contents(snapshot, run))
            ledger.finish(manifest, snapshot.coverage, "complete")
        return run

    def load(self, run: str | None = None, *, runs: Sequence[str] | None = None) -> Snapshot:
        """A Snapshot of the latest run, of a named one, or of several.

        Its frames are read when they are first asked for, and show the store as it was when this returned.

        Parameters
        ----------
        run
            A run's name; the latest run where None.
        runs
            Several names, for history.

        Raises
        ------
        StoreError
            There is no such run or no store, or it is damaged.
        """
        ledgers = self._found()
        if runs is None:
            names = [_latest(ledgers) if run is None else run]
        elif run is not None or isinstance(runs, str) or not runs:
            raise ConfigError("load: give run=, one name, or runs=, a list of names")
        else:
            names = list(dict.fromkeys(runs))
        chosen = {name: self._known(name, ledgers) for name in names}
        sight = self._sight(chosen)
        failures = pd.concat([read_failures(path) for path in chosen.values()], ignore_index=True)
        return Snapshot(_manifest(sight.runs), _coverage(sight.runs), failures, partial(_rows, sight))

    def runs(self) -> pd.DataFrame:
        """A row per run, the latest last: verb, host, times, what became of its users, state.

        ``state`` is ``running`` while a process writes it; else ``complete``, or ``stopped`` where the source
        was not worked through: the same run again resumes it.
        """
        return _runs_frame([read(path) for path in self._found().values()])

    def sql(self, query: str) -> Answer:
        """The answer to a question in SQL over `members`, `changes`, `requests`, `rejects` and `runs`.

        It cannot change anything and reaches no other file. ``.df()`` gives pandas, ``.to_arrow_table()`` Arrow.

        Parameters
        ----------
        query
            One SELECT, in DuckDB's dialect.

        Raises
        ------
        ConfigError
            Not one SELECT, or what DuckDB says is wrong with it.
        """
        check_reads(query)
        self._found()
        sight = self._sight(None)
        runs = pa.Table.from_pandas(_runs_frame(sight.runs), preserve_index=False)
        return answer(
            query, {self.path / name: each for name, each in sight.tables.items()}, sight.staged, runs
        )

    def verify(self, run: str | None = None) -> pd.DataFrame:
        """Damaged files, found by the SHA-256 that was taken of each when it was written.

        Parameters
        ----------
        run
            Of one run; of all where None.

        Returns
        -------
        DataFrame
            run, file, problem, what_to_do; empty when all is well.
        """
        ledgers = self._found()
        chosen = ledgers if run is None else {run: self._known(run, ledgers)}
        found = [(name, *each) for name, path in chosen.items() for each in self._problems(name, path)]
        advice = "restore it from a copy, or collect its users again under another run name"
        columns: dict[str, list[str]] = {
            "run": [name for name, _, _ in found],
            "file": [str(file) for _, file, _ in found],
            "problem": [problem for _, _, problem in found],
            "what_to_do": [advice] * len(found),
        }
        return pd.DataFrame({name: pd.array(values, _TEXT) for name, values in columns.items()})

    def _problems(self, run: str, path: Path) -> Iterator[tuple[Path, str]]:
        """What is damaged in a run."""
        try:
            recorded = read_files(path)
        except StoreError as error:
            yield path, str(error)
            return
        at_rest = not is_held(path.with_suffix(".lock"))
        for name in SCHEMAS:
            table = StoredTable(self.path, name)
            known = {each.path: each for each in recorded if each.name == name}
            for each in known.values():
                if problem := changed(table.path / each.path, each.size, each.sha256):
                    yield table.path / each.path, problem
            try:
                logged = {each.path for each in table.files(run)}
            except StoreError as error:
                yield table.path, str(error)
                continue
            if at_rest:
                yield from (
                    (table.path / each, "lost from the table's log") for each in known.keys() - logged
                )
                yield from ((table.path / each, "unknown to the ledger") for each in logged - known.keys())

    def _prepare(self) -> None:
        """Folders to write to, or the reason why not."""
        if unquote(str(self.path.absolute())) != str(self.path.absolute()):
            raise ConfigError(f"store: {self.path} has a % that Delta Lake would decode; give another folder")
        try:
            _check_local(self.path)
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.path / "runs").mkdir(mode=0o700, exist_ok=True)
            probe = self.path / "runs" / f".{token_hex(8)}"
            probe.touch(mode=0o600)
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"store: cannot write to {self.path}: {error.strerror}; give a folder that you can write to"
            ) from None
        for name, path in self._ledgers().items():
            if (found := format_of(path)) > FORMAT:
                raise StoreError(
                    f"{self.path}: a newer mxlab wrote run {name} (format {found}; this one knows {FORMAT}): "
                    "upgrade mxlab to write here, or write to another folder; reading is fine"
                )
        if (free := shutil.disk_usage(self.path).free) < _LITTLE:
            warnings.warn(
                f"store: only {free:,} bytes are free at {self.path}; free some, or the run may stop before its end",
                UserWarning,
                stacklevel=3,
            )

    def _ledgers(self) -> dict[str, Path]:
        return {path.stem: path for path in sorted((self.path / "runs").glob("*.db"))}

    def _found(self) -> dict[str, Path]:
        if not (ledgers := self._ledgers()):
            raise StoreError(f"{self.path}: there is no store; {_HOW}")
        return ledgers

    def _known(self, run: str, ledgers: Mapping[str, Path]) -> Path:
        if run in ledgers:
            return ledgers[run]
        nearest = get_close_matches(str(run), ledgers, 1)
        meant = f"; did you mean {nearest[0]}?" if nearest else "."
        known = ", ".join([*ledgers][-_SHOWN:]) + (", …" if len(ledgers) > _SHOWN else "")
        raise StoreError(f"{self.path} has no run {run!r}{meant} It has {known}")

    def _sight(self, ledgers: Mapping[str, Path] | None) -> "_Sight":
        """Tables and ledgers as they agree at one moment; runs may be written meanwhile."""
        before = None
        while True:
            tables = {name: StoredTable(self.path, name).opened() for name in SCHEMAS}
            runs = [read(path) for path in (self._found() if ledgers is None else ledgers).values()]
            if ledgers is None:
                _check_owned(self.path, tables, {each.run for each in runs})
            try:
                staged = {
                    name: joined(name, [rows for run in runs for rows in _unpublished(run, name, table)])
                    for name, table in tables.items()
                }
            except StoreError:
                if before == (before := [each.position for each in runs]):
                    raise  # no batch went by: it is no race
            else:
                return _Sight(self.path, runs, tables, staged)


@dataclass(frozen=True, slots=True)
class _Sight:
    """The store at one moment: tables pinned to a version, and rows that were still in a ledger."""

    path: Path
    runs: list[Recorded]
    tables: dict[str, DeltaTable]
    staged: dict[str, pa.Table]


def _unpublished(run: Recorded, name: str, table: DeltaTable) -> list[pa.Table]:
    """Rows of a run that its ledger has and the table has not; an error where the two do not add up."""
    done = table.transaction_version(run.application) or 0
    batches = [each for each in run.batches if each.name == name and each.rows]
    expected = sum(each.rows for each in batches if each.sequence <= done)
    found = sum(each.rows for each in files(table, run.run))
    waiting = [each.staged for each in batches if each.sequence > done]
    if found != expected or any(each is None for each in waiting):
        raise StoreError(
            f"{run.path.parent.parent / name}: run {run.run} has {found:,} rows where its ledger has "
            f"{sum(each.rows for each in batches):,}; restore the folder from a copy"
        )
    return [each for each in waiting if each is not None]


def _check_owned(path: Path, tables: Mapping[str, DeltaTable], runs: Collection[str]) -> None:
    """Refuse rows of a run that has no ledger: whether they are all there cannot be known."""
    for name, table in tables.items():
        if lost := sorted({each.run for each in files(table)} - set(runs)):
            raise StoreError(
                f"{path / name} has rows of run {lost[0]}, whose ledger runs/{lost[0]}.db is missing; restore it from a copy"
            )


def _rows(sight: _Sight, name: str) -> pa.Table:
    """A table's rows of the runs in sight, all of them or an error."""
    runs = [each.run for each in sight.runs]
    columns = {column for each in sight.runs for column in each.columns} if name == "members" else set()
    table, staged = sight.tables[name], sight.staged[name]
    rows = rows_of(sight.path / name, table, runs, sorted(columns))
    expected = sum(each.rows for run in runs for each in files(table, run))
    if rows.num_rows != expected:
        raise StoreError(
            f"{sight.path / name}: {rows.num_rows:,} rows could be read of {expected:,}; "
            "Store.verify() says which files are damaged"
        )
    return joined(name, [rows, staged]) if staged.num_rows else rows


def _contents(snapshot: Snapshot, run: str) -> tuple[dict[str, pa.Table], list[User]]:
    """A Snapshot's tables under a run's name, and its users."""
    tables = {name: snapshot.table(name) for name in SCHEMAS}
    users: dict[str, User] = {}
    count = Counter(tables["members"]["session"].to_pylist())
    for name in ("requests", "members"):
        columns = tables[name].select(["session", "user"]).group_by(["session", "user"]).aggregate([])
        for session, user in zip(*(columns[each].to_pylist() for each in ("session", "user")), strict=True):
            users[session] = (session, user, "answered", None, None, count[session])
    for session, user, state, reason, what_to_do in snapshot.failures.itertuples(index=False):
        users[session] = (session, _text(user), state, _text(reason), _text(what_to_do), count[session])
    named = {
        name: table.set_column(
            table.schema.get_field_index("run_id"),
            SCHEMAS[name].field("run_id"),
            pa.repeat(run, table.num_rows),
        )
        for name, table in tables.items()
    }
    return named, list(users.values())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _latest(ledgers: Mapping[str, Path]) -> str:
    return max((read(path).begun_at, name) for name, path in ledgers.items())[1]


def _manifest(runs: Sequence[Recorded]) -> dict[str, Any]:
    """A run's manifest, or what several have in common."""
    manifests = [each.manifest for each in runs]
    if len(runs) == 1:
        return manifests[0]
    first = manifests[0]
    common = {
        name: value for name, value in first.items() if all(each.get(name) == value for each in manifests)
    }
    names = [each.run for each in runs]
    simulated = any(each.get("simulated") for each in manifests)
    whole = {"run": ", ".join(names), "runs": names, "simulated": simulated}
    for name, end in (("started_at", min), ("ended_at", max)):
        moments = [moment for each in manifests if (moment := _time(each.get(name)))]
        whole[name] = end(moments).isoformat() if moments else None
    return {**common, **whole}


def _coverage(runs: Sequence[Recorded]) -> Coverage:
    """The sums of runs."""
    each = [run.coverage for run in runs]
    reasons = sum((Counter(one.reasons) for one in each), Counter[str]())
    return Coverage(
        asked=sum(one.asked for one in each),
        answered=sum(one.answered for one in each),
        lost=sum(one.lost for one in each),
        unknown=sum(one.unknown for one in each),
        pending=sum(one.pending for one in each),
        reasons=dict(reasons.most_common()),
        order="random" if all(one.order == "random" for one in each) else "source",
        by_run={run.run: run.coverage for run in runs} if len(runs) > 1 else {},
    )


def _runs_frame(runs: Sequence[Recorded]) -> pd.DataFrame:
    runs = sorted(runs, key=lambda each: each.begun_at)
    manifests = [each.manifest for each in runs]

    def told(name: str) -> Any:
        values = (each.get(name) for each in manifests)
        return pd.array([None if value is None else str(value) for value in values], _TEXT)

    def counted(name: str) -> Any:
        return pd.array([getattr(each.coverage, name) for each in runs], pd.Int64Dtype())

    def moment(name: str) -> Any:
        return pd.DatetimeIndex([_time(each.get(name)) for each in manifests], dtype="datetime64[us, UTC]")

    return pd.DataFrame(
        {
            "run": pd.array([each.run for each in runs], _TEXT),
            "verb": told("verb"),
            "host": told("host"),
            "started_at": moment("started_at"),
            "ended_at": moment("ended_at"),
            "simulated": pd.array([bool(each.get("simulated")) for each in manifests], pd.BooleanDtype()),
            **{name: counted(name) for name in ("asked", "answered", "lost", "unknown", "pending")},
            "members": pd.array([each.members for each in runs], pd.Int64Dtype()),
            "state": pd.array([_state(each) for each in runs], _TEXT),
            "seed": pd.array([_seed(each) for each in manifests], pd.Int64Dtype()),
            "version": pd.array([each.version for each in runs], _TEXT),
        }
    )


def _state(run: Recorded) -> str:
    return "running" if is_held(run.path.with_suffix(".lock")) else run.state or "stopped"


def _seed(manifest: Mapping[str, Any]) -> int | None:
    settings = manifest.get("settings")
    seed = manifest.get("seed", settings.get("seed") if isinstance(settings, dict) else None)
    return seed if isinstance(seed, int) else None


def _time(value: object) -> datetime | None:
    """A time of a manifest: ISO text, or seconds since 1970; None where it is neither."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        return datetime.fromisoformat(value).astimezone(UTC) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def _fresh_name(manifest: Mapping[str, Any]) -> str:
    """When the run began, and enough chance to be the only one of that minute."""
    began = _time(manifest.get("started_at")) or datetime.now(UTC)
    return f"{began:%Y-%m-%d-%H%M}-{token_hex(2)}"


def _checked_name(run: str) -> str:
    if not _NAME.fullmatch(run) or ".." in run or _DEVICE.fullmatch(run):
        raise ConfigError(
            f"run: {run[:80]!r} is no run name; give 1 to 64 of a-z, 0-9, dot, dash and underscore, beginning with "
            "a letter or digit, without two dots in a row, and not a name that Windows keeps for itself"
        )
    return run


def _check_local(path: Path) -> None:
    """Refuse a network disk, where SQLite's locks and shared memory do not hold."""
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if (kind := _file_system(existing)) and _NETWORKED.fullmatch(kind):
        raise ConfigError(f"store: {path} is on {kind}, where a ledger is not safe; give a local folder")


def _file_system(path: Path) -> str | None:
    """The kind of file system that a path is on, where the system tells."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        here, _, there = line.partition(" - ")
        if here.split()[2] == wanted:
            return there.split()[0]
    return None
