"""What every summary of banks, change, history, quality and requests does with little, odd or missing input."""

import numpy as np
import pandas as pd
import pytest
from test_analysis_worlds import SEEN, log, no_objects, world

from mxlab import analysis
from mxlab.errors import SchemaError


def _against_itself(summary):
    return lambda members: summary(members, members)


MEMBERS = {
    "attributable_share": analysis.attributable_share,
    "evidence_pack": lambda members: analysis.evidence_pack(members, "Bank 001"),
    "findings": analysis.findings,
    "findings_by_institution": analysis.findings_by_institution,
    "incident": lambda members: analysis.incident(members, "Bank 001"),
    "institution_families": analysis.institution_families,
    "institution_funnel": analysis.institution_funnel,
    "member_changes": _against_itself(analysis.member_changes),
    "mix_and_rate": _against_itself(analysis.mix_and_rate),
    "outage_scan": analysis.outage_scan,
    "share_changes": _against_itself(analysis.share_changes),
    "status_history": analysis.status_history,
    "time_in_status": analysis.time_in_status,
    "time_to_recover": analysis.time_to_recover,
    "transitions": _against_itself(analysis.transitions),
}
REQUESTS = {
    "loss_pattern": lambda requests: analysis.loss_pattern(world(200), requests),
    "reply_times": analysis.reply_times,
    "request_failures": analysis.request_failures,
    "run_timeline": analysis.run_timeline,
}
#: A column without which each cannot do.
NEEDED = {
    **dict.fromkeys(MEMBERS, "who_must_act"),
    "findings": "connection_status",
    "findings_by_institution": "connection_status",
    "evidence_pack": "guid",
    "institution_families": "institution",
    "time_in_status": "connection_status",
    "loss_pattern": "session",
    "reply_times": "reply_seconds",
    "request_failures": "error",
    "run_timeline": "sent_at",
}


def nulled(frame):
    """The frame with nothing in it but who answered."""
    blank = frame.drop(columns="user_state", errors="ignore").iloc[:0].reindex(range(len(frame)))
    return frame.assign(
        **{name: blank[name].astype(frame[name].dtype) for name in blank if blank[name].dtype != "int64"}
    )


@pytest.mark.parametrize("name", [*MEMBERS, *REQUESTS])
def test_little_odd_and_missing_input(name):
    summary = (MEMBERS | REQUESTS)[name]
    frame = world(300, banks=3) if name in MEMBERS else log(300)
    assert nulled(frame).drop(columns="user_state", errors="ignore").isna().all(axis=None)
    full, empty = summary(frame), summary(frame.iloc[:0])
    assert no_objects(full)
    assert list(empty.columns) == list(full.columns)
    assert (empty.dtypes == full.dtypes).all()
    one_bank = frame[frame["institution"] == "Bank 001"] if name in MEMBERS else frame.iloc[:5]
    for few in (frame.iloc[:1], one_bank.iloc[:20], nulled(frame)):
        found = summary(few.reset_index(drop=True))
        assert no_objects(found)
        certain = ("is_alarm", "is_outside", "is_real", "is_change", "is_related")
        for flag in [flag for flag in certain if flag in found]:
            assert not found[flag].any()
        if "low" in found and "n" in found:
            lone = found[found["n"] == 1]
            assert ((lone["high"] - lone["low"]).dropna() > 0.5).all()
    needed = NEEDED[name]
    with pytest.raises(SchemaError, match=rf"'{needed}'.*Snapshot\."):
        summary(frame.drop(columns=needed))


def test_an_alarm_needs_more_than_one_failed_job():
    one = world(1).assign(who_must_act=pd.Categorical(["mx"]), aggregated_at=SEEN - pd.Timedelta(minutes=5))
    scan = analysis.outage_scan(one)
    assert not scan["is_alarm"].any()
    assert (scan["p_value"] > 0.01).all()
    assert np.isfinite(scan[["low", "high", "expected"]]).all().all()
