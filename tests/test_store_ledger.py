"""The ledger: who may write, what is claimed, what is durable, what a full disk does, what is refused."""

import asyncio
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake.exceptions import DeltaError
from msgspec import structs
from test_store_tables import MANIFEST, batch, in_memory, written

import mxlab.store
from mxlab.errors import ConfigError, StoreError
from mxlab.exchange import Ending, Intent
from mxlab.store import Ledger, Store, departures
from mxlab.store import ledger as ledgers
from mxlab.store.tables import StoredTable

INTENT = Intent(
    "a" * 32,
    1.5,
    1,
    {"MBR-1": ("JOB-1", "2026-11-23T09:00:00+00:00", "CONNECTED"), "MBR-2": (None, None, None)},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "snapshots")


@pytest.fixture
def ledger(store: Store) -> Iterator[Ledger]:
    with store.begin("r1", MANIFEST) as ledger:
        yield ledger


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "../x",
            "a/b",
            "CON",
            "con",
            "nul.txt",
            "com1",
            "x" * 300,
            "",
            ".hidden",
            "x\n",
            "a..b",
            "Monday",
            "é",
            "a b",
            "-a",
        ],
    )
    def test_b097_what_is_no_run_name_is_refused(self, store: Store, name: str) -> None:
        with pytest.raises(ConfigError, match=r"is no run name; give 1 to 64 of a-z") as caught:
            store.begin(name, MANIFEST)
        assert str(caught.value).startswith(f"run: {name[:80]!r} ")
        assert not store.path.exists()

    def test_a_run_without_a_name_is_named_by_its_start(self, store: Store) -> None:
        with store.begin(None, MANIFEST) as one, store.begin(None, MANIFEST) as two:
            assert one.run.startswith("2026-11-23-0900-")
            assert len(one.run) == len("2026-11-23-0900-1a2b")
            assert one.run != two.run

    def test_a_dotted_name_keeps_its_files_apart(self, store: Store) -> None:
        with store.begin("a.b", MANIFEST), store.begin("a.c", MANIFEST), store.begin("a", MANIFEST):
            assert sorted(each.name for each in (store.path / "runs").glob("*.lock")) == [
                "a.b.lock",
                "a.c.lock",
                "a.lock",
            ]


class TestResuming:
    def test_b098_what_was_begun_otherwise_is_refused_with_the_difference(self, store: Store) -> None:
        written(store, "r1")
        for name, value, message in (
            ("verb", "observe", "verb 'aggregate', now 'observe'"),
            ("host", "https://data.moneydesktop.com", "now 'https://data.moneydesktop.com'"),
            ("settings", {"include_holdings": True}, "include_holdings False, now True"),
            ("settings", {"include_transactions": True}, "include_transactions False, now True"),
        ):
            with pytest.raises(ConfigError, match=f"{message}.*another run name"):
                store.begin("r1", {**MANIFEST, name: value})

    def test_seed_rate_clock_and_the_port_of_a_simulator_may_change(self, store: Store) -> None:
        written(store, "r1", host="http://127.0.0.1:1234")
        later = {
            **MANIFEST,
            "host": "http://localhost:99",
            "seed": 8,
            "settings": {"concurrency": 9},
            "clock": {"speed": 2},
        }
        with store.begin("r1", later) as ledger:
            assert ledger.ended_before == 20

    def test_the_key_and_the_start_stay_those_of_the_first_life(self, store: Store) -> None:
        with store.begin("r1", MANIFEST) as ledger:
            key = ledger.key
            assert len(key) == 32
        with store.begin("r1", {**MANIFEST, "started_at": "2027-01-01T00:00:00+00:00"}) as ledger:
            assert ledger.key == key
            ledger.finish(
                {**MANIFEST, "started_at": "2027-01-01T00:00:00+00:00"},
                ledger.coverage(None, "random"),
                "stopped",
            )
        assert store.load().manifest["started_at"] == MANIFEST["started_at"]
        assert list(store.runs()["state"]) == ["stopped"]

    def test_a_complete_run_takes_further_users(self, store: Store) -> None:
        written(store, "r1")
        with store.begin("r1", MANIFEST) as ledger:
            assert ledger.ended_before == 20
            assert not ledger.claim(f"{5:032x}")
            assert ledger.claim(f"{25:032x}") is True
            ledger.write(*batch("r1", 20, 20))
            assert ledger.coverage(20, "source").asked == 40
        assert len(store.load().members) == 108
        assert store.load().coverage.answered == 36

    def test_what_became_known_on_the_way_is_kept(self, store: Store) -> None:
        with store.begin("r1", MANIFEST) as ledger:
            ledger.note(simulated=True)
        assert store.load().simulated


async def start(ledger: Ledger, intent: Intent) -> None:
    """What a collector does: intend, then send."""
    await ledger.intend(intent)
    ledger.leaving(intent)


class TestClaims:
    def test_a_user_is_claimed_once(self, ledger: Ledger) -> None:
        tables, endings = batch("r1", 0, 3)
        sessions = [each.session for each in endings]
        assert [ledger.claim(each) for each in (*sessions, *sessions)] == [True] * 3 + [False] * 3
        ledger.write(tables, endings)
        assert not [each for each in sessions if ledger.claim(each)]
        assert not ledger._under_way

    async def test_an_intent_of_an_earlier_life_is_handed_out_once(self, store: Store) -> None:
        with store.begin("r1", MANIFEST) as ledger:
            assert ledger.claim(INTENT.session) is True
            await start(ledger, INTENT)
            assert ledger.claim(INTENT.session) is False
        with store.begin("r1", MANIFEST) as ledger:
            assert ledger.claim(INTENT.session) == INTENT
            assert ledger.claim(INTENT.session) is False
            assert ledger.claim("b" * 32) is True

    async def test_a_second_intent_replaces_the_first_and_an_end_removes_it(self, store: Store) -> None:
        again = Intent(INTENT.session, 9.0, 2, {})
        with store.begin("r1", MANIFEST) as ledger:
            await start(ledger, INTENT)
            await start(ledger, again)
        with store.begin("r1", MANIFEST) as ledger:
            assert ledger.claim(INTENT.session) == again
            ledger.write(
                batch("r1", 0, 1)[0], [Ending(INTENT.session, None, {}, "unknown", [], "unclear", "Look.")]
            )
        with store.begin("r1", MANIFEST) as ledger:
            assert ledger.claim(INTENT.session) is False
            assert ledger.failures().to_dict("records")[0]["what_to_do"] == "Look."

    async def test_a_pending_user_keeps_its_intent(self, store: Store) -> None:
        with store.begin("r1", MANIFEST) as ledger:
            ledger.claim(INTENT.session)
            await start(ledger, INTENT)
            ledger.write(batch("r1", 0, 1)[0], [Ending(INTENT.session, None, {}, "pending", [])])
            assert ledger.claim(INTENT.session) is False
            assert ledger.coverage(None, "source").pending == 1
        assert store.load().coverage.pending == 1
        with store.begin("r1", MANIFEST) as ledger:
            assert ledger.claim(INTENT.session) == INTENT

    async def test_a_start_that_never_left_is_taken_back(self, store: Store) -> None:
        other = Intent("b" * 32, 9.0, 2, {})
        with store.begin("r1", MANIFEST) as ledger:
            await ledger.intend(INTENT)
            await start(ledger, structs.replace(other, sends=1))
            await ledger.intend(other)
        for _ in range(2):
            with store.begin("r1", MANIFEST) as ledger:
                assert ledger.claim(INTENT.session) is True
                assert ledger.claim(other.session) == structs.replace(other, sends=1)

    async def test_a_full_disk_cuts_a_line_short_and_spoils_no_other(self, store: Store) -> None:
        cut = Intent("b" * 32, 9.0, 1, {})
        with store.begin("r1", MANIFEST) as ledger:
            await start(ledger, INTENT)
            await ledger.intend(cut)
            os.write(ledger._departures._file, b"\nbbbb")
            await start(ledger, Intent("c" * 32, 9.0, 1, {}))
        with store.begin("r1", MANIFEST) as ledger:
            assert ledger.claim(INTENT.session) == INTENT
            assert ledger.claim(cut.session) is True
            assert ledger.claim("c" * 32) == Intent("c" * 32, 9.0, 1, {})

    @pytest.mark.parametrize("boot", ["another", ""])
    async def test_after_the_machine_has_started_anew_every_start_may_have_left(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, boot: str
    ) -> None:
        with store.begin("r1", MANIFEST) as ledger:
            await ledger.intend(INTENT)
            power_cut = tmp_path / "cut"
            shutil.copytree(store.path, power_cut)
        (tmp_path / "boot").write_text(boot)
        monkeypatch.setattr(departures, "_BOOT", tmp_path / "boot")
        for _ in range(2):  # and it stays so in the life after
            with Store(power_cut).begin("r1", MANIFEST) as ledger:
                assert ledger.claim(INTENT.session) == INTENT

    def test_the_sums_add_up(self, ledger: Ledger) -> None:
        ledger.write(*batch("r1", 0, 20))
        ledger.claim("x")
        coverage = ledger.coverage(None, "random")
        assert (coverage.asked, coverage.answered, coverage.lost, coverage.pending) == (21, 18, 2, 1)
        assert coverage.reasons == {"reply_timeout": 2}
        assert coverage.order == "random"
        assert ledger.coverage(100, "source").pending == 80
        assert len(ledger.failures()) == 2


class TestIntents:
    async def test_many_that_wait_together_share_a_commit(self, ledger: Ledger) -> None:
        statements: list[str] = []
        ledger._connection.set_trace_callback(statements.append)
        await asyncio.gather(*(ledger.intend(Intent(f"{each:032x}", 1.0, 1, {})) for each in range(300)))
        commits = statements.count("COMMIT")
        assert 1 <= commits <= 10
        with sqlite3.connect(ledger.path) as other:
            assert other.execute("SELECT count(*) FROM intents").fetchone() == (300,)
        other.close()

    async def test_an_intent_is_on_the_disk_when_it_returns(self, ledger: Ledger) -> None:
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        await ledger.intend(INTENT)
        copy = ledger.path.parent / "copy"
        copy.mkdir()
        for path in ledger.path.parent.glob("r1.db*"):  # as a power cut would leave it
            shutil.copy(path, copy)
        with sqlite3.connect(copy / "r1.db") as other:
            assert other.execute("SELECT session, sends FROM intents").fetchall() == [(INTENT.session, 1)]
        other.close()

    async def test_the_loop_goes_on_while_intents_are_written(self, ledger: Ledger) -> None:
        held = threading.Event()
        ledger._writer.submit(held.wait)
        waiting = asyncio.create_task(ledger.intend(INTENT))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        assert ledger.claim("b" * 32) is True
        held.set()
        await waiting

    async def test_whoever_stops_waiting_does_not_stop_the_others(self, ledger: Ledger) -> None:
        held = threading.Event()
        ledger._writer.submit(held.wait)
        tasks = [asyncio.create_task(ledger.intend(Intent(f"{each}", 1.0, 1, {}))) for each in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        held.set()
        await asyncio.wait(tasks)
        assert [each.cancelled() for each in tasks] == [False, True, False]

    async def test_a_closed_ledger_says_so(self, store: Store) -> None:
        with store.begin("r1", MANIFEST) as ledger:
            pass
        for _ in range(2):
            with pytest.raises(StoreError, match="this ledger is closed"):
                await ledger.intend(INTENT)
        with pytest.raises(StoreError, match="this ledger is closed"):
            ledger.write(*batch("r1", 0, 1))
        ledger.close()


class TestFullDisk:
    async def test_no_intent_is_taken_when_the_ledger_is_full_and_it_goes_on_after(
        self, ledger: Ledger
    ) -> None:
        (pages,) = ledger._connection.execute("PRAGMA page_count").fetchone()
        ledger._connection.execute(f"PRAGMA max_page_count = {pages + 4}")
        with pytest.raises(
            StoreError, match=r"r1\.db: cannot write down an intent: database or disk is full. Free some"
        ):
            await asyncio.gather(*(ledger.intend(Intent(f"{each:0500}", 1.0, 1, {})) for each in range(100)))
        tables, endings = batch("r1", 0, 20)
        with pytest.raises(StoreError, match=r"cannot write to the ledger: database or disk is full"):
            ledger.write(tables, endings)
        ledger._connection.execute("PRAGMA max_page_count = 1000000")
        await ledger.intend(INTENT)
        ledger.write(tables, endings)
        ledger._check_rows("members")

    async def test_a_read_only_ledger_refuses_intents(self, ledger: Ledger) -> None:
        ledger._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(
            StoreError,
            match=r"cannot write down an intent: attempt to write a readonly database\. Make it writable",
        ):
            await ledger.intend(INTENT)
        ledger._connection.execute("PRAGMA query_only = OFF")
        await ledger.intend(INTENT)

    @pytest.mark.parametrize("then", ["the same batch", "the next batch", "another life"])
    @pytest.mark.parametrize(
        "failure", [DeltaError("No space left on device (os error 28)"), OSError(5, "Input/output error")]
    )
    def test_a_batch_that_could_not_be_published_is_kept(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, then: str, failure: Exception
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise failure

        first, second = batch("r1", 0, 20), batch("r1", 20, 20)
        with store.begin("r1", MANIFEST) as ledger:
            with monkeypatch.context() as patch:
                patch.setattr("mxlab.store.tables.write_deltalake", full)
                for _ in range(3):
                    with pytest.raises(
                        StoreError,
                        match=r"\w+: cannot append to the table: .*(28\). [\d,]+ bytes are free|Input/output)",
                    ):
                        ledger.write(*first)
            if then == "the same batch":
                ledger.write(*first)
            if then != "another life":
                ledger.write(*second)
        with store.begin("r1", MANIFEST) as ledger:
            if then == "another life":
                ledger.write(*second)
        assert store.load().members["guid"].nunique() == len(store.load().members) == 108
        assert len(store.load().requests) == 80

    @pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("mount"),
        reason="NOT ROOT: no small disk can be mounted, so a full one is not tried",
    )
    def test_a_disk_of_a_few_megabytes_fills_and_empties(self, tmp_path: Path) -> None:
        small = tmp_path / "small"
        small.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=False, capture_output=True
        )
        if mounted.returncode:
            pytest.skip(
                "NO MOUNT: this machine does not let a small disk be mounted, so a full one is not tried"
            )
        try:
            _fill_and_empty(small)
        finally:
            subprocess.run(["umount", str(small)], check=True)


def _fill_and_empty(small: Path) -> None:
    store = Store(small / "snapshots")
    with pytest.warns(UserWarning, match=r"store: only [\d,]+ bytes are free"):
        ledger = store.begin("r1", MANIFEST)
    with ledger:
        number = 0

        def fill() -> None:
            nonlocal number
            while True:
                ledger.write(*batch("r1", number * 1000, 1000))
                number += 1

        with pytest.raises(StoreError, match=r"snapshots/.*(free some|Free some)"):
            fill()
        subprocess.run(["mount", "-o", "remount,size=60m", str(small)], check=True)
        ledger.write(*batch("r1", (number + 1) * 1000, 1000))
        if ledger.claim(f"{number * 1000:032x}"):
            ledger.write(*batch("r1", number * 1000, 1000))
    assert store.load().members["guid"].nunique() == len(store.load().members) == (number + 2) * 2700
    assert store.verify().empty


class TestFolders:
    def test_a_file_where_the_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for path in (tmp_path / "file", tmp_path / "file" / "store"):
            with pytest.raises(ConfigError, match="give a folder that you can write to"):
                Store(path).begin("r1", MANIFEST)
        assert [each.name for each in tmp_path.iterdir()] == ["file"]

    def test_a_folder_that_cannot_be_written(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        store.path.mkdir()
        monkeypatch.setattr(Path, "touch", refuse)
        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(
            ConfigError, match=r"cannot write to .*: Permission denied; give a folder that you can write to"
        ):
            store.begin("r1", MANIFEST)
        assert not list(store.path.iterdir())

    @pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse", "fuse.sshfs"])
    def test_b104_a_network_disk(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        device = tmp_path.stat().st_dev
        mounts = tmp_path / "mountinfo"
        mounts.write_text(
            f"1 0 99:99 / / rw - ext4 x rw\n2 1 {os.major(device)}:{os.minor(device)} / /x rw shared:1 - {kind} host:/x rw\n"
        )
        monkeypatch.setattr(mxlab.store, "_MOUNTS", mounts)
        with pytest.raises(
            ConfigError, match=f"is on {kind}, where a ledger is not safe; give a local folder"
        ):
            store.begin("r1", MANIFEST)
        assert not store.path.exists()

    def test_b105_little_space_is_a_warning(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            mxlab.store.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 999_999_999)
        )
        with pytest.warns(UserWarning, match=f"only 999,999,999 bytes are free at {store.path}; free some"):
            store.begin("r1", MANIFEST).close()

    def test_a_percent_sign(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="give another folder"):
            Store(tmp_path / "a%20b").begin("r1", MANIFEST)

    def test_no_path(self) -> None:
        with pytest.raises(ConfigError, match="give the path of a folder"):
            Store("")


class TestVersions:
    def test_b099_a_newer_store_is_read_and_not_written(self, store: Store) -> None:
        written(store, "r1")
        with sqlite3.connect(store.path / "runs" / "r1.db") as other:
            other.execute(f"PRAGMA user_version = {ledgers.FORMAT + 1}")
        other.close()
        before = {each: each.read_bytes() for each in store.path.rglob("*") if each.is_file()}
        for run in ("r1", "r2"):
            with pytest.raises(
                StoreError, match=r"a newer mxlab wrote run r1 .* upgrade mxlab to write here"
            ):
                store.begin(run, MANIFEST)
        assert len(store.load("r1").members) == 54
        assert {each: each.read_bytes() for each in store.path.rglob("*") if each.is_file()} == before

    def test_a_lost_ledger_is_not_begun_anew(self, store: Store) -> None:
        written(store, "r1")
        (store.path / "runs" / "r1.db").unlink()
        with pytest.raises(StoreError, match=r"the ledger is missing and .*members has rows of its run"):
            store.begin("r1", MANIFEST)

    @pytest.mark.parametrize("content", [b"", b"x" * 5000, b"SQLite format 3\0" + bytes(8000)])
    def test_a_damaged_ledger_is_named(self, store: Store, content: bytes) -> None:
        written(store, "r1")
        path = store.path / "runs" / "r1.db"
        path.write_bytes(content)
        for use in (lambda: store.begin("r1", MANIFEST), store.load, store.runs):
            with pytest.raises(StoreError, match=r"runs/r1\.db: .*another run name"):
                use()
        assert list(store.verify()["file"]) == [str(path)]

    @pytest.mark.parametrize(
        "harm",
        [
            "UPDATE facts SET value = '{' WHERE name = 'manifest'",
            "UPDATE facts SET value = '{}' WHERE name = 'coverage'",
            "DELETE FROM facts WHERE name = 'key'",
            "UPDATE batches SET columns = '['",
            "UPDATE batches SET staged = x'00'",
        ],
    )
    def test_a_ledger_that_makes_no_sense_is_named(self, store: Store, harm: str) -> None:
        written(store, "r1")
        with sqlite3.connect(store.path / "runs" / "r1.db") as other:
            other.execute(harm)
        other.close()
        with pytest.raises(StoreError, match=r"runs/r1\.db: cannot read the ledger: .*another run name"):
            store.load()

    def test_a_table_that_lost_rows_is_not_gone_on_with(self, store: Store) -> None:
        written(store, "r1")
        shutil.rmtree(store.path / "changes")
        with pytest.raises(StoreError, match="changes: run r1 has 0 rows where its ledger has 20"):
            store.begin("r1", MANIFEST)

    def test_a_ledger_at_rest_is_one_file(self, store: Store) -> None:
        written(store, "r1")
        assert sorted(each.name for each in (store.path / "runs").iterdir()) == ["r1.db", "r1.lock"]


class TestLock:
    def test_a_second_ledger_in_this_process_is_refused_with_the_owner(self, store: Store) -> None:
        with store.begin("r1", MANIFEST):
            began = time.monotonic()
            with pytest.raises(StoreError) as caught:
                store.begin("r1", MANIFEST)
            assert time.monotonic() - began < 1
            assert f"being written by process {os.getpid()} on {socket.gethostname()} since 20" in str(
                caught.value
            )
            store.begin("r2", MANIFEST).close()
        store.begin("r1", MANIFEST).close()

    def test_looking_at_runs_does_not_keep_a_writer_out(self, store: Store) -> None:
        written(store, "r1")
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                ledgers.is_held(store.path / "runs" / "r1.lock")

        looker = threading.Thread(target=look)
        looker.start()
        try:
            for _ in range(3):
                store.begin("r1", MANIFEST).close()
        finally:
            done.set()
            looker.join()

    def test_a_refused_beginning_lets_the_run_go(self, store: Store) -> None:
        written(store, "r1")
        with pytest.raises(ConfigError):
            store.begin("r1", {**MANIFEST, "verb": "observe"})
        store.begin("r1", MANIFEST).close()

    def test_an_interrupted_append_is_done_again_and_an_interrupted_run_is_not_overwritten(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(StoredTable, "append", lambda *_: Path("/nowhere/at/all").stat())
            with pytest.raises(FileNotFoundError):
                store.append(in_memory("r1", 20))
        store.append(in_memory("r1", 20))
        assert len(store.load("r1").members) == 54
        with store.begin("r2", MANIFEST) as ledger:
            ledger.write(*batch("r2", 0, 20))
        with pytest.raises(ConfigError, match="has a run r2 already"):
            store.append(in_memory("r2", 20))


def test_what_is_published_has_reached_the_disk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").resolve())
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    ledger.write(*batch("r1", 0, 20))
    for name in ("members", "changes", "requests", "rejects"):
        table = ledger.path.parent.parent / name
        (data,) = (table / "run_id=r1").iterdir()
        for path in (data, data.parent, table / "_delta_log" / f"{1:020}.json", table / "_delta_log", table):
            assert path in synced


def test_secrets_of_a_ledger_are_its_owners(ledger: Ledger) -> None:
    ledger.write(*batch("r1", 0, 20))
    for path in ledger.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
