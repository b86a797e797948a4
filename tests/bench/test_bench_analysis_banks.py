"""Processor time of the summaries of institutions, change, history, quality and requests at 1,000,000 members."""

import time

import numpy as np
import pandas as pd
import pytest
from test_analysis_history import LENGTHS, renewal
from test_analysis_institutions import fleet
from test_analysis_worlds import log, no_objects, with_status, world

from mxlab import analysis
from mxlab.nexus.status import STATUSES, WHO_MUST_ACT, who_must_act

pytestmark = pytest.mark.bench
MEMBERS = 1_000_000


@pytest.fixture(scope="module")
def frames():
    """Members, the same a little later, jobs of two days at 600 banks, 25 runs of 40,000 members, requests."""
    members = world(MEMBERS, banks=600)
    rng = np.random.default_rng(0)
    history = renewal(1, LENGTHS["exponential"][0], members=MEMBERS // 25, days=25)
    words = np.array(list(STATUSES))
    own = words[rng.integers(0, len(words), MEMBERS // 25)].repeat(25)
    status = pd.Categorical(np.where(history["connection_status"] == "DENIED", own, "CONNECTED"))
    who = np.array([who_must_act(word) for word in status.categories])[status.codes]
    return {
        "members": members,
        "later": with_status(members, members.index[rng.random(MEMBERS) < 0.02], "DENIED"),
        "jobs": fleet(1, n=MEMBERS),
        "history": history.assign(
            connection_status=status, who_must_act=pd.Categorical(who, categories=WHO_MUST_ACT)
        ),
        "requests": log(MEMBERS),
    }


SUMMARIES = {
    "findings": (1.0, lambda f: analysis.findings(f["members"])),
    "findings_by_institution": (1.0, lambda f: analysis.findings_by_institution(f["members"])),
    "outage_scan": (5.0, lambda f: analysis.outage_scan(f["jobs"])),
    "institution_families": (1.0, lambda f: analysis.institution_families(f["jobs"])),
    "institution_funnel": (1.0, lambda f: analysis.institution_funnel(f["jobs"])),
    "attributable_share": (1.0, lambda f: analysis.attributable_share(f["jobs"])),
    "incident": (1.0, lambda f: analysis.incident(f["jobs"], "Bank 000")),
    "evidence_pack": (1.0, lambda f: analysis.evidence_pack(f["jobs"], "Bank 000")),
    "member_changes": (1.0, lambda f: analysis.member_changes(f["members"], f["later"])),
    "transitions": (1.0, lambda f: analysis.transitions(f["members"], f["later"])),
    "flow": (1.0, lambda f: analysis.flow(f["members"], f["later"])),
    "mix_and_rate": (1.0, lambda f: analysis.mix_and_rate(f["members"], f["later"])),
    "share_changes": (
        1.0,
        lambda f: analysis.share_changes(f["members"], f["later"], by="institution"),
    ),
    "status_history": (1.0, lambda f: analysis.status_history(f["history"])),
    "time_in_status": (1.0, lambda f: analysis.time_in_status(f["history"])),
    "time_to_recover": (1.0, lambda f: analysis.time_to_recover(f["history"])),
    "reply_times": (1.0, lambda f: analysis.reply_times(f["requests"])),
    "request_failures": (1.0, lambda f: analysis.request_failures(f["requests"])),
    "run_timeline": (1.0, lambda f: analysis.run_timeline(f["requests"])),
    "loss_pattern": (1.0, lambda f: analysis.loss_pattern(f["members"], f["requests"])),
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_million_rows_in_the_time_asked(frames, figures, name):
    limit, summary = SUMMARIES[name]
    times = []
    for _ in range(3):
        started = time.process_time()
        found = summary(frames)
        times.append(time.process_time() - started)
    figures[f"{name}: processor seconds at 1,000,000 rows"] = round(min(times), 3)
    assert no_objects(found)
    assert min(times) < limit
