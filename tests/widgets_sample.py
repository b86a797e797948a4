"""Small Snapshots for the tests of what people look at: seeded, without a network."""

import numpy as np
import pyarrow as pa

from mxlab.frames import SCHEMAS, Coverage, Snapshot, failures_frame
from mxlab.nexus.status import BACKGROUND, who_must_act

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "Ba$$in $\\undefined$ Trust",
    "_hidden",
    '=HYPERLINK("http://127.0.0.1","x")',
    "\u202egnorw\u202c Bank",
    "مصرف الاختبار",
    "Bank \U0001f3e6 \ud800"[:-1],
    "N" * 300,
    "a\x00b\x1fc\nd\te",
    "' OR 1=1 --",
    "{braces} %s %(x)s",
)
_STATUSES = (
    "CONNECTED",
    "CONNECTED",
    "CONNECTED",
    "CONNECTED",
    "CHALLENGED",
    "DENIED",
    "FAILED",
    "DISABLED",
    None,
)


def snapshot(rows=600, *, seed=1, banks=None, verb="aggregate", simulated=True, slow=0):
    """A Snapshot of so many members of an ``aggregate`` or an ``observe``; bank number `slow` is slow."""
    rng = np.random.default_rng(seed)
    banks = list(banks or [f"Bank {number}" for number in range(8)])
    bank = rng.integers(len(banks), size=rows)
    status = [_STATUSES[each] for each in rng.integers(len(_STATUSES), size=rows)]
    seconds = rng.lognormal(2.7, 0.7, size=rows) * np.where(bank == slow, 4.0, 1.0)
    age = rng.exponential(3 * 86_400.0, size=rows)
    seen = np.datetime64("2026-11-23T12:00:00", "us")
    aggregating = verb == "aggregate"
    connected = np.array([word == "CONNECTED" for word in status], dtype=bool)
    outcome = [("finished" if each else "waiting_on_user") if aggregating else None for each in connected]
    uses = [["PFM"], ["PFM", "MONEY_MOVEMENT"], None, []]
    columns = {
        "session": [f"{number // 3:032x}" for number in range(rows)],
        "user": [f"user-{number // 3}" for number in range(rows)],
        "guid": [f"MBR-{number}" for number in range(rows)],
        "user_guid": [f"USR-{number // 3}" for number in range(rows)],
        "institution_guid": [f"INS-{each}" for each in bank],
        "name": [banks[each] for each in bank],
        "connection_status": status,
        "who_must_act": [who_must_act(word) for word in status],
        "eligible": [word in BACKGROUND for word in status],
        "age_seconds": np.where(rng.random(rows) < 0.1, np.nan, age),
        "outcome": outcome,
        "aggregation_seconds_low": np.where(connected & aggregating, seconds * 0.8, np.nan),
        "aggregation_seconds_high": np.where(connected & aggregating, seconds * 1.2, np.nan),
        "job_seconds": np.where(connected, seconds, np.nan),
        "looks": [4] * rows,
        "aggregated_at": seen - (age / 4 * 1e6).astype("timedelta64[us]"),
        "successfully_aggregated_at": seen - (age * 1e6).astype("timedelta64[us]"),
        "seen_at": np.full(rows, seen),
        "user_state": ["lost" if number % 97 == 96 else "answered" for number in range(rows)],
        "is_oauth": [None if each < 0.05 else bool(each < 0.5) for each in rng.random(rows)],
        "use_cases": [uses[each] for each in rng.integers(4, size=rows)],
    }
    table = pa.table(
        {
            field.name: pa.array(columns[field.name], field.type, from_pandas=True)
            if field.name in columns
            else pa.nulls(rows, field.type)
            for field in SCHEMAS["members"]
        }
    )
    tables = {name: schema.empty_table() for name, schema in SCHEMAS.items()} | {"members": table}
    failures = [
        {
            "session": f"{number:032x}",
            "user": f"user-{number}",
            "state": "lost",
            "reason": "forbidden",
            "what_to_do": "Ask.",
        }
        for number in range(2)
    ]
    coverage = Coverage(rows // 3 + 2, rows // 3, 2, reasons={"forbidden": 2}, order="random")
    manifest = {
        "run": "sample",
        "verb": verb,
        "host": "http://127.0.0.1:1",
        "started_at": "2026-11-23T12:00:00+00:00",
        "settings": {"seed": seed, "concurrency": 200},
        "seed": seed,
        "simulated": simulated,
        "versions": {"mxlab": "0"},
    }
    return Snapshot(manifest, coverage, failures_frame(failures), tables.__getitem__)
