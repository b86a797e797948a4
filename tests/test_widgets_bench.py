"""How fast the Explorer is with many members; issue 6 says how fast it must be."""

import gc
import resource
import statistics
import time
from pathlib import Path

import pyarrow as pa
import pytest
from widgets_sample import snapshot

from mxlab.frames import Snapshot
from mxlab.widgets import Explorer

pytestmark = pytest.mark.bench
BANKS = [f"Bank {number}" for number in range(400)]


def many(rows):
    """A Snapshot of so many members, of repeated ones."""
    part = snapshot(20_000, banks=BANKS)
    table = pa.concat_tables([part.table("members")] * (rows // 20_000))
    return Snapshot(part.manifest, part.coverage, part.failures, {"members": table}.__getitem__)


def median(actions):
    """Median milliseconds of actions, after one of each to warm up."""
    taken = []
    for action in actions:
        begun = time.perf_counter()
        action()
        taken.append((time.perf_counter() - begun) * 1000)
    return round(statistics.median(taken[len(taken) // 4 :]), 1)


def choosing(explorer, rounds=12):
    """Actions that change the filter, each to another view."""
    bank = explorer.filters.institution.options[3][1]
    controls = [
        (explorer.filters.who, ("user", "mx")),
        (explorer.filters.oauth, True),
        (explorer.filters.institution, (bank,)),
    ]
    for number in range(rounds):
        control, value = controls[number % 3]
        empty = "" if control is explorer.filters.oauth else ()
        yield lambda control=control, value=value, empty=empty: setattr(
            control, "value", empty if control.value == value else value
        )


@pytest.mark.parametrize(
    ("rows", "share_ms", "curve_ms", "table_ms"), [(100_000, 100, 1000, 300), (1_000_000, 150, 1000, 300)]
)
def test_filter_change_to_picture(rows, share_ms, curve_ms, table_ms, figures):
    snap = many(rows)
    begun = time.perf_counter()
    assert len(snap.members) == rows
    frame = time.perf_counter() - begun
    begun = time.perf_counter()
    explorer = Explorer(snap)
    found = {"opening": round((time.perf_counter() - begun) * 1000), "members frame": round(frame * 1000)}
    for name in ("status_counts", "status_by_institution", "aggregation_latency"):
        explorer.filters.clear()
        explorer.chart.value = name
        found[name] = median(choosing(explorer))
    explorer.filters.clear()
    explorer.view.value = "members"
    found["table filter"] = median(choosing(explorer))
    explorer.filters.clear()
    sorts = ["job_seconds", "institution", "guid", ""]
    found["table sort first"] = median(
        lambda name=name: setattr(explorer.table.sort_by, "value", name) for name in sorts
    )
    found["table sort again"] = median(
        lambda name=name: setattr(explorer.table.sort_by, "value", name) for name in sorts
    )
    found["table find"] = median(
        lambda text=text: setattr(explorer.table.find, "value", text)
        for text in ("bank 1", "MBR-99", "x", "")
    )
    figures[f"explorer at {rows:,} members, ms"] = found
    print(rows, found)
    assert max(found["status_counts"], found["status_by_institution"]) < share_ms
    assert found["aggregation_latency"] < curve_ms
    assert found["table filter"] < table_ms


def test_memory_is_flat_over_500_redraws(figures):
    explorer = Explorer(many(100_000))
    actions = list(choosing(explorer, 550))
    for action in actions[:50]:
        action()
    before = resident()
    for action in actions[50:]:
        action()
    figures["explorer: MB more after 500 redraws"] = grown = round(resident() - before, 1)
    assert grown < 40


def resident():
    """Megabytes of this process in memory, after what is dropped has gone."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
