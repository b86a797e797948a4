"""The requests of a run: reply times, failures, course, and whether loss has a pattern."""

import numpy as np
import pandas as pd
import pytest
from test_analysis_worlds import log, world

from mxlab import analysis


def test_requests_quantiles_failures_and_timeline():
    requests = log(4_000)
    times = analysis.reply_times(requests).set_index("endpoint")
    mine = requests.loc[requests["endpoint"] == "read_job", "reply_seconds"].dropna()
    assert times.loc["read_job", "p90"] == pytest.approx(mine.quantile(0.9))
    inside = ((mine >= times.loc["read_job", "p50_low"]) & (mine <= times.loc["read_job", "p50_high"])).mean()
    assert inside == pytest.approx(1.96 / np.sqrt(len(mine)), rel=0.15)
    failures = analysis.request_failures(requests)
    assert failures["count"].sum() == requests["error"].notna().sum()
    assert set(failures["reason"]) == {"SessionExpired 401", "Unavailable 503"}
    course = analysis.run_timeline(requests)
    assert course["sent"].sum() == 4_000
    assert course["failed"].sum() == requests["error"].notna().sum()
    for summary in (analysis.reply_times, analysis.request_failures, analysis.run_timeline):
        empty = summary(requests.iloc[:0])
        assert (empty.dtypes == summary(requests).dtypes).all()
        summary(requests.iloc[:1])


def test_loss_that_goes_with_the_order_is_found():
    requests, members = log(4_000), world(1_000)
    sessions = requests["session"].drop_duplicates()
    members = members.iloc[: len(sessions)].assign(session=sessions.iloc[:1_000].to_numpy())
    calm = analysis.loss_pattern(members, requests.loc[requests["session"].isin(members["session"])])
    assert not calm["is_related"].any()
    late = members.assign(user_state=np.where(np.arange(len(members)) > 800, "lost", "answered"))
    found = analysis.loss_pattern(late, requests).set_index("related_to")
    assert found.loc["order", "is_related"]
    assert not found.loc["institution", "is_related"]


def test_timeline_is_in_real_seconds_whatever_the_clock():
    requests = log(4_000)
    real = analysis.run_timeline(requests)
    started = requests["sent_at"].min()
    fast = requests.assign(sent_at=started + 50 * (requests["sent_at"] - started))
    pd.testing.assert_frame_equal(analysis.run_timeline(fast, speed=50.0), real)
    assert real.attrs["seconds"] == pytest.approx(60, abs=2)
    assert real["sent_per_second"].mean() == pytest.approx(4_000 / 60, rel=0.02)


def test_in_flight_is_the_most_at_once_counted_one_by_one():
    requests = log(600, seed=2)
    found = analysis.run_timeline(requests, points=10)
    start = (requests["sent_at"] - requests["sent_at"].min()).dt.total_seconds().to_numpy()
    end = start + requests["reply_seconds"].fillna(0).to_numpy()
    span = found.attrs["span_seconds"]
    for row in found.itertuples():
        moments = [row.seconds, *start[(start >= row.seconds) & (start < row.seconds + span)]]
        most = max(((start <= moment) & (end > moment)).sum() for moment in moments)
        assert row.in_flight == most
    assert found["sent"].sum() == found["replied"].sum() == 600
