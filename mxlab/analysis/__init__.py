"""Frame → summary frame. Pure: no network, no clock, no drawing."""

from mxlab.analysis.ages import freshness, freshness_shares
from mxlab.analysis.change import flow, member_changes, mix_and_rate, share_changes, transitions
from mxlab.analysis.history import status_history, time_in_status, time_to_recover
from mxlab.analysis.institutions import (
    attributable_share,
    evidence_pack,
    incident,
    institution_families,
    institution_funnel,
    outage_scan,
)
from mxlab.analysis.latency import aggregation_latency, latency_quantiles, slow_institutions
from mxlab.analysis.outcomes import outcomes_over_time, success_rates
from mxlab.analysis.quality import Rule, Waiver, findings, findings_by_institution, rules
from mxlab.analysis.requests import loss_pattern, reply_times, request_failures, run_timeline
from mxlab.analysis.sampling import share_estimate
from mxlab.analysis.status import status_by_institution, status_counts, who_must_act

__all__ = [
    "Rule",
    "Waiver",
    "aggregation_latency",
    "attributable_share",
    "evidence_pack",
    "findings",
    "findings_by_institution",
    "flow",
    "freshness",
    "freshness_shares",
    "incident",
    "institution_families",
    "institution_funnel",
    "latency_quantiles",
    "loss_pattern",
    "member_changes",
    "mix_and_rate",
    "outage_scan",
    "outcomes_over_time",
    "reply_times",
    "request_failures",
    "rules",
    "run_timeline",
    "share_changes",
    "share_estimate",
    "slow_institutions",
    "status_by_institution",
    "status_counts",
    "status_history",
    "success_rates",
    "time_in_status",
    "time_to_recover",
    "transitions",
    "who_must_act",
]
