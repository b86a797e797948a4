"""What goes into a store comes out of it: frames, history, SQL, checksums."""

import random
import shutil
import sqlite3
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake

from mxlab import frames
from mxlab.errors import BadReply, ConfigError, StoreError
from mxlab.exchange import Change, Ending, Exchange, MemberEnding
from mxlab.nexus.members import Member, Reject
from mxlab.nexus.status import STATUSES
from mxlab.store import Store

MANIFEST = {
    "verb": "aggregate",
    "host": "https://int-data.moneydesktop.com",
    "started_at": "2026-11-23T09:00:00+00:00",
    "settings": {"include_holdings": False, "seed": 7},
    "seed": 7,
}
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
WORDS = [*STATUSES, None, "BRAND_NEW"]


def users(first: int, count: int, *, columns: bool = True) -> tuple[list[Exchange], list[Ending]]:
    """Invented users; every tenth is lost, and something of every table comes of each."""
    exchanges, endings = [], []
    for number in range(first, first + count):
        session, user = f"{number:032x}", None if number % 7 == 0 else f"user-{number}"
        members = [_member(number, each) for each in range(3)]
        lost = number % 10 == 9
        endings.append(
            Ending(
                session,
                user,
                {"plan": "gold" if number % 2 else "=cmd()"} if columns else {},
                "lost" if lost else "answered",
                [] if lost else members,
                "reply_timeout" if lost else None,
                "Run again." if lost else None,
            )
        )
        sent = NOON.timestamp() + number
        change = Change(f"MBR-{number}", "CREATED", "CONNECTED", 3.0, 4.5, False)
        reject = Reject("guid", b"\x00{", 2)
        exchanges.append(
            Exchange(
                "aggregate_all",
                session,
                user,
                1,
                sent,
                sent + 1,
                True,
                0.1,
                0.2,
                200,
                None,
                9,
                changes=[change],
            )
        )
        error = BadReply("?", status_code=200, code="4000")
        exchanges.append(
            Exchange(
                "list_members",
                session,
                user,
                2,
                sent,
                sent + 1,
                True,
                0.1,
                0.2,
                200,
                error,
                9,
                rejects=[reject],
            )
        )
    return exchanges, endings


def _member(number: int, each: int) -> MemberEnding:
    bank = (number + each) % 5
    member = Member(
        guid=f"MBR-{number}-{each}",
        aggregated_at=NOON,
        connection_status=WORDS[(number + each) % len(WORDS)],
        institution_guid=f"INS-{bank}" if bank else None,
        institution_code=None,
        name=f"Bank {bank}" if number % 4 else "My bank é",
        use_cases=["PFM"] if each else None,
        metadata="x",
        extra='{"colour":"red"}' if each == 1 else None,
        successfully_aggregated_at=NOON - timedelta(minutes=number),
    )
    return MemberEnding(member, NOON.timestamp() + number, "finished", 3.0, 4.5 if each else None, 2, None)


def batch(
    run: str, first: int, count: int, *, columns: bool = True
) -> tuple[dict[str, pa.Table], list[Ending]]:
    exchanges, endings = users(first, count, columns=columns)
    return frames.tables(exchanges, endings, run), endings


def written(
    store: Store, run: str, batches: int = 1, size: int = 20, *, first: int = 0, **facts: object
) -> None:
    with store.begin(run, {**MANIFEST, **facts}) as ledger:
        for number in range(batches):
            ledger.write(*batch(run, first + number * size, size))
        ledger.finish({**MANIFEST, **facts, "run": run}, ledger.coverage(None, "random"), "complete")


def in_memory(run: str, count: int) -> frames.Snapshot:
    tables, endings = batch(run, 0, count)
    lost = [each for each in endings if each.state == "lost"]
    rows = [
        {name: getattr(each, name) for name in ("session", "user", "state", "reason", "what_to_do")}
        for each in lost
    ]
    coverage = frames.Coverage(
        count, count - len(lost), len(lost), reasons={"reply_timeout": len(lost)}, order="random"
    )
    return frames.Snapshot(
        {**MANIFEST, "run": run}, coverage, frames.failures_frame(rows), tables.__getitem__
    )


def untyped(frame: pd.DataFrame) -> list[str]:
    return [name for name, dtype in frame.dtypes.items() if dtype == "object"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "snapshots")


def test_a_store_is_made_by_the_first_write_only(store: Store) -> None:
    for read in (store.load, store.runs, store.verify, lambda: store.sql("SELECT 1")):
        with pytest.raises(StoreError, match=r"there is no store; collect into it with mx\.aggregate"):
            read()
    assert not store.path.exists()


@pytest.mark.parametrize("way", ["written", "appended"])
def test_frames_come_back_as_they_were(store: Store, way: str) -> None:
    before = in_memory("r1", 40)
    if way == "written":
        written(store, "r1", 1, 40)
    else:
        assert store.append(before) == "r1"
    after = store.load("r1")
    for name in frames.TABLES:
        pd.testing.assert_frame_equal(getattr(after, name), getattr(before, name))
        assert not untyped(getattr(after, name))
    assert after.coverage == before.coverage
    pd.testing.assert_frame_equal(after.failures, before.failures)
    assert after.manifest == before.manifest
    assert "user_plan" in after.members


def test_many_batches_come_back_whatever_their_order(store: Store) -> None:
    written(store, "r1", 9, 10)
    before, after = in_memory("r1", 90), store.load()
    for name, by in {
        "members": ["guid"],
        "changes": ["guid"],
        "requests": ["session", "attempt"],
        "rejects": ["sent_at"],
    }.items():
        left, right = (getattr(each, name).sort_values(by, ignore_index=True) for each in (after, before))
        assert left.map(str).equals(right.map(str))
        assert [str(each) for each in left.dtypes] == [str(each) for each in right.dtypes]
    assert len(DeltaTable(store.path / "members").file_uris()) == 1
    assert store.verify().empty


def test_a_run_knows_only_its_own_columns(store: Store) -> None:
    with store.begin("plain", MANIFEST) as ledger:
        ledger.write(*batch("plain", 0, 5, columns=False))
    written(store, "with-plan")
    assert "user_plan" not in store.load("plain").members
    both = store.load(runs=["plain", "with-plan"])
    assert both.members["user_plan"].isna().sum() == len(store.load("plain").members)


def test_history_is_one_snapshot_of_several_runs(store: Store) -> None:
    written(store, "monday", 1, 20)
    written(store, "tuesday", 2, 20, simulated=True)
    both = store.load(runs=["monday", "tuesday", "monday"])
    assert both.members["run_id"].value_counts().to_dict() == {"monday": 54, "tuesday": 108}
    assert (both.coverage.asked, both.coverage.lost, both.coverage.order) == (60, 6, "random")
    assert both.coverage.reasons == {"reply_timeout": 6}
    assert len(both.failures) == 6
    assert both.simulated
    assert both.manifest["runs"] == ["monday", "tuesday"]
    assert both.manifest["verb"] == "aggregate"
    assert store.load().manifest["run"] == "tuesday"


def test_one_run_is_read_without_opening_the_files_of_another(store: Store) -> None:
    written(store, "monday")
    written(store, "tuesday")
    for path in (store.path / "members" / "run_id=monday").iterdir():
        path.write_bytes(b"")
    assert len(store.load("tuesday").members) == 54
    with pytest.raises(StoreError, match=r"members: cannot read the table"):
        _ = store.load("monday").members


def test_runs_has_a_row_for_each(store: Store) -> None:
    written(store, "monday", simulated=True, ended_at="2026-11-23T10:00:00+01:00")
    with store.begin("tuesday", {**MANIFEST, "verb": "observe", "users": 100}) as ledger:
        ledger.write(*batch("tuesday", 0, 20))
        table = store.runs().set_index("run")
        assert table.loc["tuesday", "state"] == "running"
        assert pd.isna(table.loc["tuesday", "ended_at"])
    table = store.runs()
    assert list(table["run"]) == ["monday", "tuesday"]
    assert list(table["state"]) == ["complete", "stopped"]
    assert list(table["asked"]) == [20, 100]
    assert list(table["pending"]) == [0, 80]
    assert list(table["members"]) == [54, 54]
    assert list(table["seed"]) == [7, 7]
    assert table["ended_at"][0] == pd.Timestamp("2026-11-23T09:00:00Z")
    assert str(table["started_at"].dtype) == "datetime64[us, UTC]"
    assert list(table["simulated"]) == [True, False]
    assert not untyped(table)


def test_unknown_runs_are_named_with_the_nearest(store: Store) -> None:
    written(store, "monday")
    with pytest.raises(StoreError, match=r"has no run 'mondy'; did you mean monday\?.*It has monday"):
        store.load("mondy")
    with pytest.raises(ConfigError, match="give run=, one name, or runs="):
        store.load("monday", runs=["monday"])
    with pytest.raises(ConfigError, match="a list of names"):
        store.load(runs="monday")


def test_appending_is_once(store: Store) -> None:
    snap = in_memory("r1", 20)
    store.append(snap)
    with pytest.raises(ConfigError, match="has a run r1 already"):
        store.append(snap)
    assert store.append(snap, "r2") == "r2"
    assert set(store.load("r2").members["run_id"]) == {"r2"}
    with pytest.raises(ConfigError, match="not a part or several"):
        store.append(store.load(runs=["r1", "r2"]), "r3")
    with pytest.raises(ConfigError, match="not a part or several"):
        store.append(snap.narrowed(snap.members.head(), "a few"), "r3")


def test_a_frame_shows_the_store_as_it_was_when_it_was_loaded(store: Store) -> None:
    with store.begin("r1", MANIFEST) as ledger:
        ledger.write(*batch("r1", 0, 20))
        early = store.load()
        for number in range(1, 10):
            ledger.write(*batch("r1", number * 20, 20))
        ledger.finish(MANIFEST, ledger.coverage(None, "random"), "complete")
        assert len(early.members) == 54
        assert early.coverage.answered == 18
        assert len(store.load().members) == 540


def test_naming_a_snapshot_reads_no_rows(store: Store) -> None:
    """Python formats a task's result when it sets up or takes down a signal handler."""
    store.append(in_memory("r1", 20))
    snap = store.load("r1")
    asked = []
    read, snap.table = snap.table, lambda name: asked.append(name) or read(name)
    assert "18 of 20 users answered" in repr(snap)
    assert not asked
    assert len(snap.members) == 54
    assert "54 members" in repr(snap)


def test_readers_see_whole_batches_while_a_run_is_written(store: Store) -> None:
    seen: list[tuple[int, int, int]] = []
    with store.begin("r1", MANIFEST) as ledger:
        ledger.write(*batch("r1", 0, 20))
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                snap = store.load("r1")
                ((rows,),) = store.sql("SELECT count(*) FROM members").fetchall()
                seen.append((snap.coverage.answered, len(snap.members), rows))

        reader = threading.Thread(target=look)
        reader.start()
        try:
            for number in range(1, 9):
                ledger.write(*batch("r1", number * 20, 20))
            ledger.finish(MANIFEST, ledger.coverage(None, "random"), "complete")
        finally:
            done.set()
            reader.join()
    assert seen
    assert all(members == answered * 3 for answered, members, _ in seen)
    assert all(rows % 54 == 0 for _, _, rows in seen)
    assert seen == sorted(seen)


def test_a_run_that_was_cut_short_is_read_with_what_its_ledger_still_holds(store: Store, monkeypatch) -> None:
    with store.begin("r1", MANIFEST) as ledger:
        ledger.write(*batch("r1", 0, 20))
        monkeypatch.setattr(ledger, "_publish", lambda: None)
        ledger.write(*batch("r1", 20, 20))
    assert len(store.load("r1").members) == 108
    assert store.load("r1").coverage.answered == 36
    assert store.sql("SELECT count(*) FROM members").fetchall() == [(108,)]
    assert store.sql("SELECT count(*), count(DISTINCT session) FROM requests").fetchall() == [(80, 40)]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("sql") / "snapshots")
    written(store, "monday", 1, 40)
    written(store, "tuesday", 1, 20)
    return store


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("three") / "snapshots")
    for number in range(3):
        written(store, f"r{number}", 1, 20)
    return store


class TestSql:
    def test_institution_is_that_of_the_frames(self, two_runs: Store) -> None:
        for run in ("monday", "tuesday"):
            table = two_runs.sql(
                f"SELECT guid, institution FROM members WHERE run_id = '{run}' ORDER BY guid"
            ).df()
            frame = two_runs.load(run).members.sort_values("guid", ignore_index=True)
            assert list(table["institution"]) == list(frame["institution"].astype(str))

    def test_answers_are_arrow_and_typed(self, two_runs: Store) -> None:
        answer = two_runs.sql(
            "SELECT session, seen_at, is_being_aggregated, use_cases, count(*) OVER () AS n, 1.5::DECIMAL(4, 1) AS d FROM members"
        )
        table = pa.table(answer)
        assert table.num_rows == 162
        assert table.schema.field("seen_at").type == pa.timestamp("us", tz="UTC")
        assert [str(each) for each in answer.df().dtypes[:3]] == ["string", "datetime64[us, UTC]", "boolean"]
        assert not untyped(answer.df())
        assert answer.fetchall()[0][1].tzinfo is not None
        assert answer.filter("n > 162").to_arrow_table().num_rows == 0
        assert "use_cases" in repr(answer)

    @pytest.mark.parametrize(
        "query",
        [
            "SELECT run, state FROM runs",
            "FROM changes LIMIT 1",
            "WITH a AS (SELECT * FROM rejects) SELECT count(*) FROM a",
            "DESCRIBE members",
            "SUMMARIZE requests",
            "SHOW TABLES",
            "EXPLAIN SELECT 1",
            "VALUES (1)",
        ],
    )
    def test_whatever_reads_is_allowed(self, two_runs: Store, query: str) -> None:
        assert len(two_runs.sql(query).df())

    @pytest.mark.parametrize(
        "query",
        [
            "COPY members TO 'x.csv'",
            "COPY (SELECT 1) TO '/tmp/x.csv'",
            "EXPORT DATABASE 'x'",
            "ATTACH 'x.db'",
            "INSERT INTO members SELECT * FROM members",
            "UPDATE members SET name = ''",
            "DELETE FROM members",
            "CREATE TABLE x (a INT)",
            "CREATE VIEW x AS SELECT 1",
            "DROP VIEW members",
            "SELECT * FROM read_csv('/etc/passwd')",
            "SELECT * FROM '/etc/passwd'",
            "SELECT * FROM read_text('/etc/passwd')",
            "SELECT * FROM glob('/etc/*')",
            "SELECT getenv('HOME')",
            "SET enable_external_access = true",
            "SET threads = 1",
            "RESET lock_configuration",
            "PRAGMA database_list",
            "INSTALL httpfs",
            "LOAD httpfs",
            "EXPLAIN ANALYZE DELETE FROM members",
            "EXPLAIN ANALYZE COPY (SELECT 1) TO '/tmp/x.csv'",
            "SELECT 1; DROP VIEW members",
            "SELECT 1; SELECT 2",
            "CALL pragma_version()",
            "USE memory",
            "",
            ";",
            "-- nothing",
        ],
    )
    def test_whatever_does_more_is_refused(
        self, two_runs: Store, query: str, tmp_path: Path, monkeypatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match="sql: "):
            two_runs.sql(query)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("SELEC 1", "syntax error"),
            ("SELECT nope FROM members", "nope"),
            ("SELECT * FROM nope", "nope"),
            ("SELECT CAST(session AS INTEGER) FROM members", "Conversion Error"),
        ],
    )
    def test_mistakes_are_told_in_duckdbs_words(self, two_runs: Store, query: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            two_runs.sql(query)

    def test_local_variables_of_the_caller_are_not_tables(self, two_runs: Store) -> None:
        hidden = pa.table({"a": [1]})
        with pytest.raises(ConfigError, match="hidden"):
            two_runs.sql("SELECT * FROM hidden")
        assert hidden.num_rows

    def test_the_time_zone_is_utc(self, two_runs: Store) -> None:
        assert two_runs.sql("SELECT CAST(min(started_at) AS VARCHAR) FROM runs").fetchall() == [
            ("2026-11-23 09:00:00+00",)
        ]


def _read_all(store: Store) -> None:
    for run in ("r0", "r1", "r2"):
        assert len(store.load(run).members) == 54


class TestDamage:
    def test_every_flipped_bit_is_found(self, store: Store) -> None:
        written(store, "r1", 3, 20)
        generator = random.Random(11)
        data = sorted(store.path.glob("*/run_id=r1/*.parquet"))
        for _ in range(15):
            path = generator.choice(data)
            whole = path.read_bytes()
            flipped = bytearray(whole)
            flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
            path.write_bytes(flipped)
            found = store.verify("r1")
            assert list(found["file"]) == [str(path)]
            assert found["problem"][0] == "its bytes have changed"
            assert found["run"][0] == "r1"
            path.write_bytes(whole)
        assert store.verify().empty

    @pytest.mark.parametrize("harm", ["deleted", "truncated", "zeroed"])
    @pytest.mark.parametrize(
        "part", ["data", "first entry", "last entry", "middle entry", "ledger", "whole log"]
    )
    def test_no_shorter_table_is_ever_returned(
        self, three_runs: Store, store: Store, part: str, harm: str
    ) -> None:
        shutil.copytree(three_runs.path, store.path)
        log = sorted((store.path / "members" / "_delta_log").glob("*.json"))
        for path in (store.path / "members" / "_delta_log").glob("*checkpoint*"):
            path.unlink()
        harmed = {
            "data": sorted(store.path.glob("members/run_id=r1/*.parquet")),
            "first entry": log[:1],
            "middle entry": log[2:3],
            "last entry": log[-1:],
            "ledger": [store.path / "runs" / "r1.db"],
            "whole log": log,
        }[part]
        for path in harmed:
            size = path.stat().st_size
            if harm == "deleted":
                path.unlink()
            else:
                path.write_bytes(bytes(size) if harm == "zeroed" else path.read_bytes()[: size // 2])
        with pytest.raises(StoreError, match=r"members|r1\.db|no run 'r1'") as caught:
            _read_all(store)
        assert (
            "restore" in str(caught.value).lower()
            or "verify" in str(caught.value)
            or "It has" in str(caught.value)
        )
        if (part, harm) != ("ledger", "deleted"):
            assert len(store.verify())
        with pytest.raises(StoreError):
            store.sql("SELECT count(DISTINCT members) FROM members")

    def test_a_stored_type_that_differs_is_refused_with_both(self, store: Store) -> None:
        store.path.mkdir()
        schema = pa.schema(
            [
                pa.field(each.name, pa.string() if each.name == "looks" else each.type)
                for each in frames.SCHEMAS["members"]
            ]
        )
        DeltaTable.create(store.path / "members", schema, partition_by=["run_id"])
        with pytest.raises(StoreError, match="column looks is string in the store and int64 in this version"):
            store.begin("r1", MANIFEST)

    def test_columns_that_an_older_version_did_not_write_are_null(self, store: Store) -> None:
        written(store, "r1")
        older = frames.SCHEMAS["members"].remove(frames.SCHEMAS["members"].get_field_index("extra"))
        whole = store.load("r1").table("members").drop_columns(["extra"])
        write_deltalake(
            store.path / "members", whole, mode="overwrite", schema_mode="overwrite", partition_by=["run_id"]
        )
        assert "extra" not in pa.schema(DeltaTable(store.path / "members").schema()).names
        with sqlite3.connect(store.path / "runs" / "r1.db") as ledger:
            ledger.execute("UPDATE facts SET value = 'other' WHERE name = 'application'")
            ledger.execute("UPDATE batches SET rows = 0 WHERE name <> 'members'")
            ledger.execute("UPDATE batches SET sequence = 0")
        ledger.close()
        for name in ("changes", "requests", "rejects"):
            write_deltalake(
                store.path / name,
                frames.SCHEMAS[name].empty_table(),
                mode="overwrite",
                partition_by=["run_id"],
            )
        assert older.names == [each for each in frames.SCHEMAS["members"].names if each != "extra"]
        assert store.load("r1").members["extra"].isna().all()
        assert store.sql("SELECT count(extra) FROM members").fetchall() == [(0,)]


def test_a_path_may_hold_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("snap shots é 100% #1?")
    written(store, "r1")
    assert len(store.load().members) == 54
    assert store.sql("SELECT count(*) FROM members").fetchall() == [(54,)]
    assert store.verify().empty
    assert [each.name for each in tmp_path.iterdir()] == ["snap shots é 100% #1?"]


def test_only_the_owner_may_read(store: Store) -> None:
    written(store, "r1")
    for path in (store.path, store.path / "runs", store.path / "members"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (store.path / "runs").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_everything_stored_is_compressed_with_zstd(store: Store) -> None:
    written(store, "r1")
    (path,) = store.path.glob("requests/run_id=r1/*.parquet")
    rows = duckdb.sql(f"SELECT DISTINCT compression FROM parquet_metadata('{path}')").fetchall()
    assert rows == [("ZSTD",)]


def test_the_sums_of_a_frame_are_those_of_its_table(store: Store) -> None:
    written(store, "r1", 2, 20)
    table = store.load().table("members")
    assert pc.sum(table["looks"]).as_py() == store.load().members["looks"].sum()
