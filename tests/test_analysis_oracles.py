"""The estimators against another library or a published table, each named where it stands."""

import numpy as np
import pandas as pd
import pytest
import surpyval
from test_analysis_outcomes import ended

from mxlab import analysis
from mxlab.analysis import _censored
from mxlab.analysis._intervals import adjusted, wilson
from mxlab.analysis.outcomes import _ENDS, _ended, _incidence


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_table_of_newcombe_1998(count, n, low, high):
    """R. G. Newcombe, Stat. Med. 17 (1998) 857, table I, method 3."""
    assert np.concatenate(wilson([count], [n])) == pytest.approx([low, high], abs=5e-5)


def test_adjusted_p_values_equal_those_of_statsmodels():
    """The p-values of Benjamini and Hochberg (1995); adjusted by ``multipletests`` of statsmodels 0.15.0."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    expected = [0.0015, 0.003, 0.0095, 0.035625, 0.0603, 0.063857143, 0.063857143, 0.0645]
    expected += [0.0765, 0.486, 0.581181818, 0.714875, 0.753230769, 0.813214286, 1.0]
    assert adjusted(np.array(p)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("exact", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_turnbull_equals_that_of_surpyval(seed, exact):
    """Intervals of random phase and width, some exact, some that never end; F where it is known: at their ends."""
    rng = np.random.default_rng(seed)
    times = 40 * np.exp(0.8 * rng.standard_normal(150))
    phase, step = rng.uniform(0, 10, 150), rng.uniform(8, 25, 150)
    before = phase + np.floor((times - phase) / step) * step
    low, high = np.where(times < phase, 0, before), np.where(times < phase, phase, before + step)
    never = rng.random(150) < 0.15
    high[never] = np.inf
    known = ~never & (rng.random(150) < exact)
    low[known] = high[known] = times[known]
    own = _censored.intervals(low, high)
    steps = _censored.turnbull(own, tolerance=1e-11, rounds=1_000_000)
    # an exact time is an interval of a millionth of itself here, so it is one there
    theirs = surpyval.Turnbull.fit(
        xl=own.bounds[own.low],
        xr=own.bounds[own.high],
        n=own.rows.astype(int),
        turnbull_estimator="Kaplan-Meier",
        tol=1e-13,
        max_iter=1_000_000,
    )
    inner = own.bounds[1:-1]
    assert steps[1:-1] == pytest.approx(theirs.ff(inner * (1 + 1e-9)), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_cumulative_incidence_equals_that_of_surpyval(seed):
    """Aalen and Johansen's estimator, on exact times and such that were not seen to end."""
    rng = np.random.default_rng(seed)
    times = rng.exponential(20, 200).round(1) + 0.1
    outcomes = rng.choice(["finished", "waiting_on_user", "failed", "running"], 200, p=[0.6, 0.15, 0.1, 0.15])
    _, cause, low, high = _ended(ended(outcomes, times))
    seen = sorted(set(cause[cause >= 0].tolist()))
    known = _censored.intervals(low, high)
    steps, _ = _incidence(known, cause, seen, tolerance=1e-12, rounds=100_000)
    theirs = surpyval.CompetingRisks.fit(times, np.where(outcomes == "running", None, outcomes))
    at = known.bounds[1:-1]
    for row, end in enumerate(seen):
        expected = theirs.cif(at * (1 + 1e-9), _ENDS[end][0])
        assert steps[row, 1:-1] == pytest.approx(np.asarray(expected), abs=1e-6)


#: Household headship in the United States by age, 1970 and 1985: P. Das Gupta, Standardization and
#: Decomposition of Rates: A User's Manual, U.S. Bureau of the Census P23-186 (1993), example 5.1.
#: Percentages of the people in each of 13 age groups, and heads of households among a hundred of each.
PEOPLE = (
    [12.9, 10.9, 9.5, 8.0, 7.8, 8.4, 8.6, 7.8, 7.0, 5.9, 4.7, 3.6, 4.9],
    [10.1, 11.2, 11.6, 10.9, 9.4, 7.7, 6.3, 6.0, 6.3, 5.9, 5.1, 4.0, 5.5],
)
HEADS = (
    [1.9, 25.8, 45.7, 49.6, 51.2, 51.6, 51.8, 54.9, 58.7, 60.4, 62.8, 66.6, 66.8],
    [2.2, 24.3, 45.8, 52.5, 56.1, 55.6, 56.0, 57.4, 57.2, 61.2, 63.9, 68.6, 72.2],
)


def headship(year):
    """A member for each millionth of the people, connected where the head of a household."""
    people = [round(10_000 * share) for share in PEOPLE[year]]
    heads = [round(100 * share * rate) for share, rate in zip(PEOPLE[year], HEADS[year], strict=True)]
    n, group = sum(people), np.repeat(np.arange(len(people)), people)
    place = np.concatenate([np.arange(size) for size in people])
    return pd.DataFrame(
        {
            "user_state": pd.Categorical.from_codes(np.zeros(n, int), ["answered"]),
            "session": np.arange(n),
            "institution": pd.Categorical.from_codes(group, [str(each) for each in range(len(people))]),
            "who_must_act": pd.Categorical.from_codes(
                (place >= np.array(heads)[group]).astype(int), ["nobody", "user"]
            ),
        }
    )


def test_mix_and_rate_equal_the_table_of_das_gupta_1993():
    """A hundred times the shares: 44.7268 to 47.6940, of which 1.2269 by age and 1.7403 by the rates."""
    found = analysis.mix_and_rate(headship(0), headship(1)).attrs
    assert 100 * found["mix"] == pytest.approx(1.2269, abs=5e-5)
    assert 100 * found["rate"] == pytest.approx(1.7403, abs=5e-5)
    assert 100 * found["total"] == pytest.approx(2.9672, abs=5e-5)
