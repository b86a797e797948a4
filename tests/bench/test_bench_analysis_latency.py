"""Processor seconds of the summaries of status, freshness, aggregation time, outcomes and samples at a million."""

import time

import pytest
from test_analysis_worlds import Coverage, no_objects, world

from mxlab import analysis

pytestmark = pytest.mark.bench

MEMBERS = 1_000_000
SEEN = Coverage(asked=MEMBERS, answered=400_000)
#: Each summary in every way it is asked for; those with intervals by bootstrap have 5 s.
SUMMARIES = [
    ("status_counts", {}, 1.0),
    ("status_counts", {"by": "institution"}, 1.0),
    ("status_counts", {"by": "is_oauth"}, 1.0),
    ("status_counts", {"by": "use_cases"}, 1.0),
    ("who_must_act", {"by": "institution"}, 1.0),
    ("who_must_act", {"by": "is_managed_by_user"}, 1.0),
    ("status_by_institution", {}, 1.0),
    ("success_rates", {}, 1.0),
    ("success_rates", {"by": "institution"}, 1.0),
    ("success_rates", {"by": "use_cases"}, 1.0),
    ("freshness", {}, 1.0),
    ("freshness", {"by": "institution"}, 1.0),
    ("freshness_shares", {}, 1.0),
    ("freshness_shares", {"by": "institution"}, 1.0),
    ("outcomes_over_time", {}, 1.0),
    ("slow_institutions", {}, 1.0),
    ("share_estimate", {"coverage": SEEN}, 1.0),
    ("aggregation_latency", {"draws": 0}, 1.0),
    ("aggregation_latency", {"by": "institution"}, 1.0),
    ("latency_quantiles", {"draws": 0}, 1.0),
    ("latency_quantiles", {"by": "is_oauth"}, 1.0),
    ("latency_quantiles", {"by": "institution"}, 1.0),
    ("aggregation_latency", {}, 5.0),
    ("latency_quantiles", {}, 5.0),
]


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["looks", "half of the jobs read"])
def members(request):
    return world(MEMBERS, banks=600, exact=request.param), request.param


@pytest.mark.parametrize(("name", "options", "limit"), SUMMARIES)
def test_a_million_members(name, options, limit, members, figures):
    frame, exact = members
    summary, spent = getattr(analysis, name), []
    for _ in range(3):
        begun = time.process_time()
        found = summary(frame, **options)
        spent.append(time.process_time() - begun)
    said = ", ".join(f"{key} {value}" for key, value in options.items() if key != "coverage")
    figures[f"{name} of 1,000,000 ({said or 'all'}; job read {exact:g}): s"] = round(min(spent), 3)
    assert no_objects(found)
    assert min(spent) <= limit
