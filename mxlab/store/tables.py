"""Delta Lake: the frames on disk, appended in exactly-once batches, and DuckDB as the lens over them."""

import os
import random
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from mxlab.errors import ConfigError, StoreError
from mxlab.frames import SCHEMAS

_CHECKPOINT_INTERVAL = 20
#: A run is found by its partition: bounds of each column would only make the log long.
_CONFIGURATION = {
    "delta.checkpointInterval": str(_CHECKPOINT_INTERVAL),
    "delta.dataSkippingNumIndexedCols": "0",
}
_MANY_FILES = 8
_TRIES = 40
_TIDY_TRIES = 4
#: A row group is held in memory while it is written: of a run of any size, no more than this at once.
_TIDY_ROWS = 100_000
_LOG = "_delta_log"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file as the log of its table has it."""

    path: str
    run: str
    size: int
    rows: int


class StoredTable:
    """One Delta table of a store, partitioned by run.

    Parameters
    ----------
    folder
        Of the store.
    name
        ``members``, ``changes``, ``requests`` or ``rejects``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / name
        self._handle: DeltaTable | None = None

    def create(self) -> None:
        """Make the table where there is none."""
        with _explained(self.path, "make the table"):
            self.path.mkdir(mode=0o700, exist_ok=True)
            for _ in range(_TRIES):
                if DeltaTable.is_deltatable(str(self.path)):
                    return
                try:
                    self._handle = DeltaTable.create(
                        self.path,
                        SCHEMAS[self.name],
                        partition_by=["run_id"],
                        configuration=_CONFIGURATION,
                    )
                    self._sync_log()
                except DeltaError:  # another process makes it at this moment
                    if not DeltaTable.is_deltatable(str(self.path)):
                        raise
                else:
                    return

    def opened(self) -> DeltaTable:
        """The table as it is now."""
        with _explained(self.path, "read the table"):
            try:
                if self._handle is None:
                    self._handle = DeltaTable(self.path)
                else:
                    self._handle.update_incremental()
            except BaseException:
                self._handle = None
                raise
            return self._handle

    def files(self, run: str) -> list["DataFile"]:
        """The data files of a run, as the table was when it was last opened or written to."""
        return files(self._handle or self.opened(), run)

    def check_types(self) -> None:
        """Refuse a stored column of another type than the declared one, naming both."""
        stored = pa.schema(self.opened().schema())
        for field in SCHEMAS[self.name]:
            index = stored.get_field_index(field.name)
            if index >= 0 and not _same_type(stored.field(index).type, field.type):
                raise StoreError(
                    f"{self.path}: column {field.name} is {stored.field(index).type} in the store and {field.type} "
                    "in this version of mxlab; write to another folder"
                )

    def append(self, application: str, sequence: int, rows: pa.Table) -> None:
        """Append a batch unless this very batch is there already.

        Parameters
        ----------
        application, sequence
            Identity of the batch; sequences of an application only grow.
        rows
            At least one.
        """
        for attempt in range(_TRIES):
            table = self.opened()
            if (table.transaction_version(application) or 0) >= sequence:
                return
            with _explained(self.path, "append to the table"):
                try:
                    write_deltalake(
                        table,
                        rows,
                        mode="append",
                        schema_mode="merge",
                        writer_properties=WriterProperties(compression="ZSTD"),
                        commit_properties=CommitProperties(
                            app_transactions=[Transaction(application, sequence)]
                        ),
                    )
                except CommitFailedError:  # another writer was first
                    self._handle = None
                    time.sleep(random.uniform(0, 0.01 * 2 ** min(attempt, 5)))  # lest the two meet again
                except BaseException:
                    self._handle = None
                    raise
                else:
                    return
        raise StoreError(
            f"{self.path}: other writers were first {_TRIES} times; run again with the same run name"
        )

    def tidy(self, run: str) -> None:
        """Make a few large files of a run's many small ones, and a checkpoint of the log."""
        table = self.opened()
        if len(self.files(run)) >= _MANY_FILES:
            for _ in range(_TIDY_TRIES):
                try:
                    table.optimize.compact(
                        partition_filters=[("run_id", "=", run)],
                        max_concurrent_tasks=1,
                        writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=_TIDY_ROWS),
                    )
                    table.vacuum(dry_run=False)
                    break
                except CommitFailedError:
                    table = self.opened()
        table.create_checkpoint()

    def sync(self, paths: Collection[str]) -> None:
        """Bring data files, the newest entries of the log, and their directories to the disk."""
        with _explained(self.path, "bring the table to the disk"):
            for path in paths:
                _fsync(self.path / path)
            for folder in {(self.path / path).parent for path in paths}:
                _fsync(folder)
            self._sync_log()
            _fsync(self.path)

    def _sync_log(self) -> None:
        log = self.path / _LOG
        for path in sorted(log.iterdir())[-_CHECKPOINT_INTERVAL - 8 :]:
            with suppress(FileNotFoundError):  # another writer's passing file
                _fsync(path)
        _fsync(log)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with _explained(path, "read the file"), path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def changed(path: Path, size: int, sha256: str) -> str | None:
    """What has happened to a file since it was written; None where nothing has."""
    if not path.exists():
        return "missing"
    if (now := path.stat().st_size) != size:
        return f"{now:,} bytes, written with {size:,}"
    return None if digest(path) == sha256 else "its bytes have changed"


def files(table: DeltaTable, run: str | None = None) -> list[DataFile]:
    """The data files of a table, or of one run in it."""
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = ("path", "partition.run_id", "size_bytes", "num_records")
    listed = (DataFile(*row) for row in zip(*(actions[each].to_pylist() for each in columns), strict=True))
    return [each for each in listed if run is None or each.run == run]


def dataset(path: Path, table: DeltaTable) -> ds.Dataset:
    """The table in a folder as an Arrow dataset; declared columns that an older version did not write are null."""
    with _explained(path, "read the table"):
        local = pafs.SubTreeFileSystem(str(path.absolute()), pafs.LocalFileSystem())
        found = table.to_pyarrow_dataset(filesystem=local)
        return found.replace_schema(pa.unify_schemas([SCHEMAS[path.name], found.schema]))


def rows_of(path: Path, table: DeltaTable, runs: Sequence[str], columns: Iterable[str]) -> pa.Table:
    """The rows of runs; files of other runs are not opened.

    Parameters
    ----------
    path, table
        The table and its folder.
    runs
        Names.
    columns
        Further columns than the declared ones.
    """
    found = dataset(path, table)
    wanted = [*SCHEMAS[path.name].names, *(each for each in columns if each in found.schema.names)]
    with _explained(path, "read the table"):
        return found.to_table(columns=wanted, filter=ds.field("run_id").isin(list(runs)))


class Answer:
    """What a question in SQL brought: a DuckDB relation whose rows are read already.

    It has all that a relation has (``fetchall``, ``filter``, ``to_arrow_table``, …) and is an Arrow stream itself.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
        self._rows = rows
        self._relation = connection.from_arrow(rows)

    def df(self) -> pd.DataFrame:
        """The rows in the dtypes of the frames: no column has dtype object."""
        frame: pd.DataFrame = self._rows.to_pandas(types_mapper=_dtype)
        return frame

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows as tuples."""
        return list(zip(*(column.to_pylist() for column in self._rows.columns), strict=True))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._rows.__arrow_c_stream__(requested_schema)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._relation, name)

    def __repr__(self) -> str:
        return repr(self._relation)


def _dtype(kind: pa.DataType) -> Any:
    """How pandas holds an Arrow type; None where its own way is typed already."""
    if pa.types.is_string(kind):
        return pd.StringDtype("pyarrow")
    if pa.types.is_boolean(kind):
        return pd.BooleanDtype()
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_timestamp(kind)
    return None if plain else pd.ArrowDtype(kind)


_INSTITUTIONS = """
CREATE VIEW members AS
WITH counted AS (
    SELECT run_id, institution_guid, name, count(*) AS times FROM stored_members
    WHERE institution_guid IS NOT NULL AND name IS NOT NULL GROUP BY ALL
), commonest AS (
    SELECT run_id, institution_guid, first(name ORDER BY times DESC, name) AS institution FROM counted GROUP BY ALL
)
SELECT stored_members.*, coalesce(commonest.institution, stored_members.name) AS institution
FROM stored_members LEFT JOIN commonest USING (run_id, institution_guid)
"""


def answer(
    text: str, tables: Mapping[Path, DeltaTable], staged: Mapping[str, pa.Table], runs: pa.Table
) -> Answer:
    """The answer to a question in SQL that can read these tables and nothing else.

    Parameters
    ----------
    text
        One SELECT (or WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN).
    tables, staged
        The tables by their folders, and rows of them that are still in a ledger.
    runs
        A row per run.
    """
    datasets = {path: dataset(path, table) for path, table in tables.items()}
    connection = duckdb.connect(
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
    )
    connection.register("runs", runs)
    for path, each in datasets.items():
        _register(connection, path.name, each, staged[path.name])
    connection.execute(_INSTITUTIONS)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET lock_configuration = true")
    try:
        relation = connection.sql(text)
    except duckdb.Error as error:
        raise ConfigError(f"sql: {error}") from None
    try:
        return Answer(connection, relation.to_arrow_table())
    except duckdb.Error as error:
        for path, each in datasets.items():
            _check_readable(path, each)
        raise ConfigError(f"sql: {error}") from None


def _register(connection: duckdb.DuckDBPyConnection, name: str, stored: ds.Dataset, staged: pa.Table) -> None:
    """Make a view of a table and of its rows that are still in a ledger."""
    connection.register(f"delta_{name}", stored)
    parts = [f"FROM delta_{name}"]
    if staged.num_rows:
        connection.register(f"staged_{name}", staged)
        parts.append(f"FROM staged_{name}")
    view = "stored_members" if name == "members" else name
    connection.execute(f"CREATE VIEW {view} AS {' UNION ALL BY NAME '.join(parts)}")


def _check_readable(path: Path, stored: ds.Dataset) -> None:
    """Read a table to its end: is it the question that is wrong, or a file?"""
    with _explained(path, "read the table"):
        for _ in stored.to_batches():
            pass


def check_reads(text: str) -> None:
    """Refuse whatever is not one statement that reads."""
    try:
        kinds = [each.type for each in duckdb.extract_statements(text)]
    except duckdb.Error as error:
        raise ConfigError(f"sql: {error}") from None
    if len(kinds) != 1 or kinds[0] not in {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}:
        named = ", ".join(each.name for each in kinds) or "nothing"
        raise ConfigError(f"sql: give one SELECT, not {named}; a store is read, never changed, by sql")


def _same_type(stored: pa.DataType, declared: pa.DataType) -> bool:
    if pa.types.is_list(declared) or pa.types.is_large_list(stored):
        return _is_list(stored) and _same_type(stored.value_type, declared.value_type)
    plain = {
        pa.large_string(): pa.string(),
        pa.string_view(): pa.string(),
        pa.large_binary(): pa.binary(),
        pa.binary_view(): pa.binary(),
    }
    return bool(plain.get(stored, stored) == declared)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path, doing: str) -> Iterator[None]:
    """Errors of the disk and of Delta Lake as a `StoreError` that names the path and what to do."""
    try:
        yield
    except TableNotFoundError:
        raise StoreError(
            f"{path}: cannot {doing}: it is missing or its log is damaged; restore the folder from a copy"
        ) from None
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot {doing}: {error}. {_advice(path, doing, error)}") from error


def _advice(path: Path, doing: str, error: BaseException) -> str:
    if "No space left" in str(error) or "os error 28" in str(error):
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        return f"{free:,} bytes are free there; free some, then run again with the same run name."
    if doing.startswith("read"):
        return "Store.verify() says which files are damaged; restore them from a copy."
    return "Look after the disk, then run again with the same run name."
