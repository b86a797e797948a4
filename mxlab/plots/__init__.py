"""Summary frame → matplotlib Axes. Pure; a drawing has the name of the summary it draws."""

from mxlab.plots.ages import freshness
from mxlab.plots.change import flow, mix_and_rate, transitions
from mxlab.plots.history import status_history, time_in_status, time_to_recover
from mxlab.plots.institutions import attributable_share, institution_funnel, outage_scan
from mxlab.plots.latency import aggregation_latency, latency_quantiles, slow_institutions
from mxlab.plots.outcomes import outcomes_over_time
from mxlab.plots.quality import findings_by_institution
from mxlab.plots.requests import reply_times, request_failures, run_timeline
from mxlab.plots.status import status_by_institution, status_counts, who_must_act

__all__ = [
    "aggregation_latency",
    "attributable_share",
    "findings_by_institution",
    "flow",
    "freshness",
    "institution_funnel",
    "latency_quantiles",
    "mix_and_rate",
    "outage_scan",
    "outcomes_over_time",
    "reply_times",
    "request_failures",
    "run_timeline",
    "slow_institutions",
    "status_by_institution",
    "status_counts",
    "status_history",
    "time_in_status",
    "time_to_recover",
    "transitions",
    "who_must_act",
]
