"""What a part of the users says about all: the interval, and the rule by which a run may stop."""

import numpy as np
import pandas as pd
import pytest
from test_analysis_worlds import Coverage, strings

from mxlab import analysis

USERS = 4_000


def population(seed):
    """Members of users, some of whom are alike, and the share of all that is connected."""
    rng = np.random.default_rng([seed, 9])
    size = rng.integers(1, 6, USERS)
    user = np.repeat(np.arange(USERS), size)
    holds = rng.random(len(user)) < rng.beta(6, 2, USERS)[user]
    return user, holds, rng.permutation(USERS)


def part(user, holds, order, taken):
    """The members of the first users of a random order, and the coverage of such a run."""
    mine = np.isin(user, order[:taken])
    n = int(mine.sum())
    frame = pd.DataFrame(
        {
            "user_state": pd.Categorical(["answered"] * n),
            "session": strings(user[mine].astype(str)),
            "who_must_act": pd.Categorical(np.where(holds[mine], "nobody", "user")),
        }
    )
    return frame, Coverage(asked=USERS, answered=taken, lost=0, unknown=0, pending=USERS - taken, reasons={})


def until_reached(seed, reach):
    """The first estimate, looked at every 200 users, that says that a run may stop."""
    user, holds, order = population(seed)
    for taken in range(200, USERS + 1, 200):
        found = analysis.share_estimate(*part(user, holds, order, taken), reach=reach).iloc[0]
        if found["is_reached"]:
            return found, holds.mean()
    raise AssertionError("the whole population is not enough")


def test_a_run_stops_once_the_interval_is_as_narrow_as_asked():
    found, _ = until_reached(0, 0.02)
    assert found["high"] - found["low"] <= 0.04
    assert found["users"] < USERS / 2
    assert found["users_for_reach"] == pytest.approx(found["users"], abs=250)


def test_a_run_in_the_source_s_order_may_not_stop():
    frame, coverage = part(*population(0), 1_000)
    ordered = Coverage(**{**vars(coverage), "order": "source"})
    assert not analysis.share_estimate(frame, ordered, reach=0.5).iloc[0]["is_reached"]


def test_one_outcome_is_no_certainty():
    frame, coverage = part(*population(0), 50)
    frame["who_must_act"] = "nobody"
    found = analysis.share_estimate(frame, coverage, reach=0.005).iloc[0]
    assert found["share"] == 1
    assert found["low"] < 0.98
    assert not found["is_reached"]


@pytest.mark.slow
def test_intervals_of_runs_that_stop_cover_the_truth(figures):
    """Stopped by the look, every 200 users, at which the interval is ± 2 points."""
    covered = []
    for seed in range(2_000):
        found, truth = until_reached(seed, 0.02)
        covered.append(found["low"] <= truth <= found["high"])
    figures["sample estimates cover the truth, stopped at ± 2 points"] = float(np.mean(covered))
    assert 0.93 <= np.mean(covered) <= 0.97
