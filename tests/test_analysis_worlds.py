"""Invented frames with a known truth, typed as the real ones are."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

from mxlab.nexus.status import BACKGROUND, STATUSES, WHO_MUST_ACT, who_must_act

TEXT = "string[pyarrow]"
SEEN = pd.Timestamp("2026-11-23 09:00", tz="UTC").as_unit("us")
WHO = np.array([who_must_act(name) for name in STATUSES])
#: An invented mix of statuses, in chart order; the rare ones that break rules of the record are left out.
MIX = np.array([70, 0, 2, 1, 2, 4, 4, 2, 1, 1, 2, 1, 1, 1, 1, 0, 3, 2, 1, 0.5, 0.5, 0.5], dtype=float)


@dataclass(frozen=True)
class Coverage:
    asked: int = 2_000
    answered: int = 1_982
    lost: int = 16
    unknown: int = 2
    pending: int = 0
    reasons: dict = field(default_factory=lambda: {"SessionExpired": 12, "ReplyTimeout": 6})
    order: str = "random"
    by_run: dict = field(default_factory=dict)


def looks(rng, times, schedule="default", step=5.0, limit=900.0):
    """Last look that saw each job running and first that saw it settled (NaN: none) under a schedule."""
    n = len(times)
    low, high, now, gap = np.zeros(n), np.full(n, np.nan), np.zeros(n), np.zeros(n)
    live, first = np.ones(n, bool), True
    while live.any():
        if schedule == "default":
            gap = rng.uniform(3, 12, n) if first else np.clip(gap * 2 * rng.uniform(0.8, 1.2, n), 3, 30)
        elif schedule == "phase":
            gap = rng.uniform(0, step, n) if first else np.full(n, step)
        else:
            gap = np.full(n, step)
        first, now = False, now + gap
        live &= now <= limit
        done = live & (now >= times)
        high[done] = now[done]
        running = live & ~done
        low[running] = now[running]
        live &= ~done
    return low, high


def strings(values):
    return pd.array(values, dtype=TEXT)


def world(
    n=5_000,
    *,
    seed=0,
    banks=40,
    slow=None,
    factor=3.0,
    median=40.0,
    sigma=0.8,
    exact=0.0,
    limit=900.0,
    **schedule,
):
    """A `members` frame of log-normal times; `slow` is the number of a bank that takes `factor` times as long."""
    rng = np.random.default_rng(seed)
    size = 1 / np.arange(1, banks + 1)
    bank = rng.choice(banks, n, p=size / size.sum())
    user = rng.integers(0, max(1, n * 2 // 5), n)
    times = median * np.exp(sigma * rng.standard_normal(n)) * np.where(bank == slow, factor, 1.0)
    low, high = looks(rng, times, limit=limit, **schedule)
    status = rng.choice(len(STATUSES), n, p=MIX / MIX.sum())
    null = rng.random(n) < 0.01
    who = np.where(null, "manual", WHO[status])
    outcome = np.select(
        [np.isin(who, ["over", "manual"]), who == "user", np.isin(who, ["mx", "partner"]), np.isnan(high)],
        ["not_triggered", "waiting_on_user", "failed", "running"],
        "finished",
    )
    untimed = outcome == "not_triggered"
    low, high = np.where(untimed, np.nan, low), np.where(untimed, np.nan, high)
    read = (rng.random(n) < exact) & ~np.isnan(high)
    names = [f"Bank {number:03d}" for number in range(banks)]
    age = np.minimum(rng.exponential(20 * 3600.0, n), 6 * 86_400.0)
    seen = pd.Series(np.full(n, SEEN.to_datetime64()), dtype="datetime64[us]").dt.tz_localize("UTC")
    succeeded = seen - pd.to_timedelta(age, unit="s").astype("timedelta64[us]")
    kinds = ("finished", "waiting_on_user", "failed", "running", "not_triggered")
    number, owner = (np.char.zfill(values.astype(str), 36) for values in (np.arange(n), user))
    return pd.DataFrame(
        {
            "run_id": pd.Categorical(["r1"] * n),
            "session": pd.Categorical(np.char.add("s", user.astype(str))),
            "user": strings([None] * n),
            "guid": strings(np.char.add("MBR-", number)),
            "user_guid": strings(np.char.add("USR-", owner)),
            "institution": pd.Categorical.from_codes(bank, categories=names),
            "institution_guid": strings(np.char.add("INS-", bank.astype(str))),
            "institution_code": pd.Categorical(np.char.add("bank", bank.astype(str))),
            "name": strings(np.array(names)[bank]),
            "connection_status": pd.Categorical.from_codes(
                np.where(null, -1, status), categories=list(STATUSES)
            ),
            "who_must_act": pd.Categorical(who, categories=list(WHO_MUST_ACT), ordered=True),
            "eligible": pd.array(
                np.isin(np.array(list(STATUSES))[status], [*BACKGROUND]) & ~null, dtype="boolean"
            ),
            "is_being_aggregated": pd.array(np.zeros(n, bool), dtype="boolean"),
            "aggregated_at": succeeded - pd.Timedelta(seconds=20),
            "successfully_aggregated_at": succeeded,
            "age_seconds": age,
            "outcome": pd.Categorical(outcome, categories=kinds),
            "aggregation_seconds_low": low,
            "aggregation_seconds_high": high,
            "job_seconds": np.where(read, times, np.nan),
            "duration_source": pd.Categorical(np.where(read, "job", "looks"), categories=["job", "looks"]),
            "looks": pd.array(np.ones(n, int), dtype="Int64"),
            "seen_at": seen,
            "user_state": pd.Categorical(
                ["answered"] * n, categories=["answered", "lost", "unknown", "pending"]
            ),
            "most_recent_job_guid": strings(np.char.add("JOB-", number)),
            "background_aggregation_is_disabled": pd.array(np.zeros(n, bool), dtype="boolean"),
            "external_guid": strings([None] * n),
            "is_managed_by_user": pd.array(np.ones(n, bool), dtype="boolean"),
            "is_oauth": pd.array(bank % 2 == 0, dtype="boolean"),
            "is_user_created": pd.array(np.ones(n, bool), dtype="boolean"),
            "metadata": strings([None] * n),
            "use_cases": pd.Series([["PFM"]] * n, dtype=pd.ArrowDtype(pa.list_(pa.string()))),
            "extra": strings([None] * n),
        }
    )


def log(n=2_000, *, seed=0, failing=0.03):
    """A `requests` frame."""
    rng = np.random.default_rng(seed)
    bad = rng.random(n) < failing
    error = rng.choice(["SessionExpired", "Unavailable"], n)
    endpoint = rng.choice(["list_members", "aggregate_all", "read_job"], n, p=[0.5, 0.2, 0.3])
    sent = pd.to_timedelta(np.sort(rng.uniform(0, 60, n)), unit="s").astype("timedelta64[us]")
    return pd.DataFrame(
        {
            "session": strings(np.char.add("s", rng.integers(0, n // 4 + 1, n).astype(str))),
            "endpoint": pd.Categorical(endpoint),
            "attempt": pd.array(np.ones(n, int), dtype="Int64"),
            "sent_at": pd.Series(SEEN + sent).astype("datetime64[us, UTC]"),
            "queued_seconds": rng.exponential(0.01, n),
            "reply_seconds": np.where(bad, np.nan, 0.05 * np.exp(0.5 * rng.standard_normal(n))),
            "status_code": pd.array(
                np.where(bad, np.where(error == "Unavailable", 503, 401), 200), dtype="Int64"
            ),
            "error": pd.Categorical(np.where(bad, error, None)),
            "may_have_acted": pd.array(bad & (endpoint == "aggregate_all"), dtype="boolean"),
        }
    )


def with_status(members, rows, status):
    """The frame with another status, and what follows from it, in these rows."""
    changed = members.copy()
    changed.loc[rows, "connection_status"] = status
    changed.loc[rows, "who_must_act"] = who_must_act(status)
    return changed


def no_objects(frame):
    """Whether every column has a type of its own."""
    return [name for name in frame if frame[name].dtype == object] == []


def test_invented_frames_are_typed():
    assert no_objects(world(50))
    assert no_objects(log(50))
