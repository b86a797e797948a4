"""How fast the Explorer is with many members, how little the Collector paints; issue 6 says what they must reach.

Times are milliseconds, the median of a round, of three rounds the lowest. What is asked is held against the time of
the processor, all threads together: the wall's is no longer where nobody else uses the machine, and is kept beside it.
"""

import gc
import resource
import statistics
import time
from pathlib import Path

import pyarrow as pa
import pytest
from widgets_sample import snapshot

from mxlab.frames import Snapshot
from mxlab.widgets import Collector, Explorer

pytestmark = pytest.mark.bench
BANKS = [f"Bank {number}" for number in range(400)]
SHARES = ("status_counts", "who_must_act", "status_by_institution")
CURVES = ("freshness", "aggregation_latency")


def many(rows):
    """A Snapshot of so many members, of repeated ones."""
    part = snapshot(20_000, banks=BANKS)
    table = pa.concat_tables([part.table("members")] * (rows // 20_000))
    return Snapshot(part.manifest, part.coverage, part.failures, {"members": table}.__getitem__)


def timed(action):
    """Milliseconds of an action: that pass, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return (time.perf_counter() - wall) * 1000, (time.process_time() - processor) * 1000


def figure(wall, processor):
    return {"wall": round(wall, 1), "processor": round(processor, 1)}


def median(actions, rounds=3):
    """Median times of a round of actions, after one round to warm up."""
    found = []
    for _ in range(rounds + 1):
        taken = [timed(action) for action in actions]
        found.append([statistics.median(times) for times in zip(*taken, strict=True)])
    return figure(*map(min, zip(*found[1:], strict=True)))


def choosing(explorer, bank=None):
    """Actions that change the filter, each to another view: of all banks, or of one."""
    filters = explorer.filters
    filters.clear()
    if bank is not None:
        filters.institution.value = (bank,)
    changes = [
        (filters.who, ("user", "mx")),
        (filters.oauth, True),
        (filters.success, "within a day"),
        (filters.who, ()),
        (filters.oauth, ""),
        (filters.success, ""),
    ]
    return [lambda each=each, value=value: setattr(each, "value", value) for each, value in changes]


@pytest.mark.parametrize(
    ("rows", "share_ms", "curve_ms", "table_ms", "opening_ms"),
    [(100_000, 100, 1000, 300, 1500), (1_000_000, 150, 1000, 300, 1500)],
)
def test_filter_change_to_picture(rows, share_ms, curve_ms, table_ms, opening_ms, figures):
    snap, opened = many(rows), []
    found = {"the frame of members, before": figure(*timed(lambda: snap.members))}
    found["opening"] = figure(*timed(lambda: opened.append(Explorer(snap))))
    explorer = opened[0]
    bank = explorer.filters.institution.options[3][1]
    for name in (*SHARES, *CURVES):
        explorer.filters.clear()
        explorer.chart.value = name
        found[f"{name}, all banks"] = median(choosing(explorer))
        found[f"{name}, one bank"] = median(choosing(explorer, bank))
    explorer.filters.clear()
    explorer.view.value = "members"
    table = explorer.table
    found["table, filter"] = median(choosing(explorer))
    explorer.filters.clear()
    sorts = [
        lambda name=name: setattr(table.sort_by, "value", name)
        for name in ("job_seconds", "institution", "guid", "")
    ]
    found["table, sort for the first time, the slowest"] = figure(*max(timed(action) for action in sorts))
    found["table, sort"] = median(sorts)
    found["table, find"] = median(
        [lambda text=text: setattr(table.find, "value", text) for text in ("bank 1", "MBR-99", "x", "")]
    )
    figures[f"explorer at {rows:,} members, ms"] = found
    print(rows, *found.items(), sep="\n")
    limits = {"table": table_ms, "opening": opening_ms}
    limits |= dict.fromkeys(SHARES, share_ms) | dict.fromkeys(CURVES, curve_ms)
    over = {
        name: times
        for name, times in found.items()
        if times["processor"] >= limits.get(name.partition(",")[0], float("inf"))
    }
    assert not over


def test_memory_is_flat_over_500_redraws(figures):
    explorer = Explorer(many(100_000))
    for name in (*SHARES, *CURVES):
        explorer.chart.value = name
        for action in choosing(explorer):
            action()
    before, drawn = resident(), 0
    while drawn < 500:
        for name in SHARES:
            explorer.chart.value = name
            banks = explorer.filters.institution.options
            for action in choosing(explorer, banks[drawn % len(banks)][1]):
                action()
                drawn += 1
    figures["explorer: MB more after 500 redraws"] = grown = round(resident() - before, 1)
    print(drawn, "redraws:", grown, "MB more")
    assert grown < 40


def test_progress_is_painted_seldom_and_cheaply(figures):
    paints = []

    class Watched(Collector):
        def _paint(self, *args):
            begun = time.thread_time()
            Collector._paint(self, *args)
            paints.append(time.thread_time() - begun)

    collector = Watched()
    collector.count.value, collector.speed.value = 1_000, 20
    collector.verb.value = "aggregate: starts jobs at banks"
    updates = []
    collector.said.observe(lambda _: updates.append(time.monotonic()), "value")
    collector.begin.click()
    collector.wait(300)
    assert collector.snapshot.coverage.answered > 900
    seconds = updates[-1] - updates[1]  # from the first paint to the last
    share = sum(paints) / seconds
    figures["collector: progress"] = {
        "seconds": round(seconds, 1),
        "updates a second": round((len(updates) - 2) / seconds, 2),
        "per cent of a core": round(100 * share, 3),
    }
    print(figures["collector: progress"])
    assert len(paints) > 10
    assert (len(updates) - 2) / seconds <= 4
    assert share < 0.02


def resident():
    """Megabytes of this process in memory, after what is dropped has gone."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
