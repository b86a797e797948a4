"""Killed at any point, a run that is begun again has every row exactly once."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_store_tables import MANIFEST, batch
from waiting import until

from mxlab.errors import StoreError
from mxlab.exchange import Intent
from mxlab.store import Ledger, Store
from mxlab.store import tables as stored
from mxlab.store.tables import StoredTable

REACHED = 42
SIZE = 20
POINTS = {
    "before the stage": (Ledger, "_stage", "before", 1),
    "after the stage": (Ledger, "_stage", "after", 1),
    "after the commit of the first table": (StoredTable, "append", "after", 1),
    "after the commit of the second table": (StoredTable, "append", "after", 2),
    "after the commit of the third table": (StoredTable, "append", "after", 3),
    "after the commit of the fourth table": (StoredTable, "append", "after", 4),
    "before the files are recorded": (Ledger, "_record", "before", 5),
    "before the mark": (Ledger, "_mark", "before", 1),
    "after the mark": (Ledger, "_mark", "after", 1),
    "before the compaction": (StoredTable, "tidy", "before", 1),
    "after the compaction": (StoredTable, "tidy", "after", 1),
    "before the run's end is stored": (Ledger, "_save", "before", 1),
}


def die_at(owner: type, name: str, when: str, count: int) -> None:
    """Let this process die when a method is called for the count-th time."""
    real, calls = getattr(owner, name), 0

    def method(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if when == "before" and calls == count:
            os._exit(REACHED)
        result = real(*given, **named)
        if calls == count:
            os._exit(REACHED)
        return result

    setattr(owner, name, method)


def collect(path: str, run: str, batches: int) -> None:
    """What a collector does: pass over who has ended, write the others."""
    with Store(path).begin(run, MANIFEST) as ledger:
        for number in range(batches):
            tables, endings = batch(run, number * SIZE, SIZE)
            claims = [ledger.claim(each.session) for each in endings]
            if all(claims):  # of a batch that was written, only lost users may be asked again
                ledger.write(tables, endings)
        ledger.finish(MANIFEST, ledger.coverage(None, "random"), "complete")


def collect_until(path: str, run: str, batches: int, point: str) -> None:
    stored._MANY_FILES = 2
    die_at(*POINTS[point])
    collect(path, run, batches)


def hold(path: str, run: str) -> None:
    with Store(path).begin(run, MANIFEST):
        time.sleep(60)  # the nursery kills it long before


def intend_and_die(path: str, run: str) -> None:
    ledger = Store(path).begin(run, MANIFEST)

    async def intend() -> None:
        await asyncio.gather(*(ledger.intend(intent(number)) for number in range(100)))
        for number in range(50):
            ledger.leaving(intent(number))
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(intend())  # noqa: TID251 - a process of its own


def intent(number: int) -> Intent:
    return Intent(f"{number:032x}", 1.0 + number, 1, {"MBR-1": ("JOB-1", None, "CONNECTED")})


class Nursery:
    """Processes that are forked from one that has imported everything: a start costs milliseconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, *words: Any) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, work: Any, *given: Any) -> int:
        return self._ask("start", work.__name__, *map(_plain, given))

    def wait(self, child: int) -> int:
        return self._ask("wait", child)

    def run(self, work: Any, *given: Any) -> int:
        return self.wait(self.start(work, *given))

    def close(self) -> None:
        self._process.communicate("")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def serve() -> None:
    """Fork a child for each line that asks for one."""
    for line in sys.stdin:
        word, *rest = json.loads(line)
        if word == "start":
            child = os.fork()
            if not child:
                sys.stdout = sys.stderr
                globals()[rest[0]](*rest[1:])
                os._exit(0)
            answer = child
        else:
            _, status = os.waitpid(rest[0], 0)
            answer = os.waitstatus_to_exitcode(status)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def assert_each_once(store: Store, run: str, batches: int) -> None:
    users = batches * SIZE
    snap = store.load(run)
    assert snap.coverage.answered + snap.coverage.lost == users
    assert len(snap.failures) == users // 10
    counts = {
        "members": (len(snap.members), snap.members["guid"].nunique()),
        "changes": (len(snap.changes), snap.changes["guid"].nunique()),
        "requests": (len(snap.requests), len(snap.requests.drop_duplicates(["session", "attempt"]))),
        "rejects": (len(snap.rejects), snap.rejects["session"].nunique()),
    }
    each = {"members": users * 27 // 10, "changes": users, "requests": users * 2, "rejects": users}
    assert counts == {name: (count, count) for name, count in each.items()}
    assert store.sql(f"SELECT count(*) FROM members WHERE run_id = '{run}'").fetchall() == [
        (each["members"],)
    ]


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_this_point_loses_and_doubles_nothing(
    tmp_path: Path, nursery: Nursery, point: str
) -> None:
    store = Store(tmp_path / "s")
    assert nursery.run(collect_until, store.path, "r1", 2, point) == REACHED
    snap = store.load("r1")
    assert len(snap.members) == len(snap.members["session"].unique()) * 3 == snap.coverage.answered * 3
    assert list(store.runs()["state"]) == ["stopped"]
    collect(str(store.path), "r1", 2)
    assert_each_once(store, "r1", 2)
    assert store.verify().empty
    assert list(store.runs()["state"]) == ["complete"]


def kill_at_random(store: Store, nursery: Nursery, kills: int, batches: int, seed: int) -> int:
    """Kill a collector again and again, then let it come to its end."""
    generator, killed = random.Random(seed), 0
    for _ in range(kills):
        child = nursery.start(collect, store.path, "r1", batches)
        time.sleep(generator.uniform(0.02, 0.4))  # the moment of the kill is what is drawn
        os.kill(child, signal.SIGKILL)
        killed += nursery.wait(child) == -signal.SIGKILL
    collect(str(store.path), "r1", batches)
    assert_each_once(store, "r1", batches)
    assert store.verify().empty
    return killed


def test_kills_at_random_times_lose_and_double_nothing(tmp_path: Path, nursery: Nursery) -> None:
    assert kill_at_random(Store(tmp_path / "s"), nursery, 3, 20, seed=1)


@pytest.mark.slow
def test_many_kills_at_random_times_lose_and_double_nothing(tmp_path: Path, nursery: Nursery) -> None:
    for seed in range(5):
        assert kill_at_random(Store(tmp_path / f"s{seed}"), nursery, 25, 150, seed) >= 20


def test_starts_that_left_outlive_a_kill_and_those_that_did_not_are_new(
    tmp_path: Path, nursery: Nursery
) -> None:
    assert nursery.run(intend_and_die, tmp_path / "s", "r1") == -signal.SIGKILL
    with Store(tmp_path / "s").begin("r1", MANIFEST) as ledger:
        left = [intent(number) for number in range(50)]
        assert [ledger.claim(f"{number:032x}") for number in range(100)] == left + [True] * 50


def test_another_process_is_named_and_taken_over_from_at_once(tmp_path: Path, nursery: Nursery) -> None:
    store = Store(tmp_path / "s")
    child = nursery.start(hold, store.path, "r1")
    lock = store.path / "runs" / "r1.lock"
    until(lambda: lock.exists() and lock.read_text() and (store.path / "runs" / "r1.db-wal").exists())
    began = time.monotonic()
    with pytest.raises(
        StoreError, match=f"being written by process {child} on {socket.gethostname()} since 20"
    ):
        store.begin("r1", MANIFEST)
    assert time.monotonic() - began < 1
    assert list(store.runs()["state"]) == ["running"]
    os.kill(child, signal.SIGKILL)
    nursery.wait(child)
    began = time.monotonic()
    store.begin("r1", MANIFEST).close()
    assert time.monotonic() - began < 1


def test_runs_of_several_processes_share_the_tables(tmp_path: Path, nursery: Nursery) -> None:
    store = Store(tmp_path / "s")
    children = [nursery.start(collect, store.path, run, 6) for run in ("r1", "r2", "r3")]
    assert [nursery.wait(child) for child in children] == [0, 0, 0]
    for run in ("r1", "r2", "r3"):
        assert_each_once(store, run, 6)
    assert store.verify().empty


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path, nursery: Nursery) -> None:
    assert nursery.run(hold_fork_and_die, tmp_path / "s", "r1", tmp_path / "child") == REACHED
    child = int((tmp_path / "child").read_text())
    try:
        Store(tmp_path / "s").begin("r1", MANIFEST).close()
    finally:
        os.kill(child, signal.SIGKILL)  # an error where it no longer lives: then nothing is proved


def hold_fork_and_die(path: str, run: str, told: str) -> None:
    Store(path).begin(run, MANIFEST)
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        os.write(tell, b"x")
        while True:  # outlives its parent, with the parent's lock among its open files
            signal.pause()
    os.read(ready, 1)
    Path(told).write_text(str(child))
    os._exit(REACHED)


if __name__ == "__main__":
    serve()
