"""Status counts, shares and their intervals."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats
from test_analysis_worlds import Coverage, no_objects, strings, with_status, world

from mxlab import analysis
from mxlab.analysis._intervals import adjusted, wilson
from mxlab.errors import SchemaError


@pytest.mark.parametrize(("count", "n"), [(0, 10), (1, 10), (10, 10), (3, 7), (669, 1000), (1, 1_000_000)])
def test_wilson_equals_scipy(count, n):
    expected = stats.binomtest(count, n).proportion_ci(method="wilson")
    low, high = wilson([count], [n])
    assert low[0] == pytest.approx(expected.low, abs=1e-12)
    assert high[0] == pytest.approx(expected.high, abs=1e-12)


def test_wilson_of_nothing_is_everything():
    low, high = wilson([0], [0])
    assert (low[0], high[0]) == (0.0, 1.0)


def test_adjusted_equals_the_table_of_benjamini_and_hochberg_1995():
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1.0,
    ]
    q = adjusted(np.array([*p, np.nan]))
    assert (q <= 0.05).sum() == 4  # their four rejections
    assert q[3] == pytest.approx(0.0095 * 15 / 4)
    assert np.isnan(q[-1])


def test_counts_are_in_chart_order_and_add_up():
    members = world(4_000)
    members["connection_status"] = members["connection_status"].cat.add_categories("ZOMBIE")
    members.loc[:2, "connection_status"] = "ZOMBIE"
    counts = analysis.status_counts(members, coverage=Coverage())
    known = counts.iloc[:-1]
    assert known["count"].sum() == 4_000
    assert known["share"].sum() == pytest.approx(1)
    assert known["who_must_act"].cat.codes.is_monotonic_increasing
    assert known["status"].iloc[0] == "CONNECTED"
    assert known["status"].iloc[-2:].tolist() == ["no status", "ZOMBIE"]
    assert known["who_must_act"].iloc[-2:].tolist() == ["manual", "unknown"]
    missed = counts.iloc[-1]
    assert (missed["status"], missed["unit"], missed["count"]) == ("not reached", "users", 18)
    assert np.isnan(missed["share"])
    assert counts.attrs["coverage"]["reasons"] == {"SessionExpired": 12, "ReplyTimeout": 6}


def test_users_who_did_not_answer_are_in_no_rate():
    members = world(1_000)
    members.loc[:399, "user_state"] = "lost"
    assert analysis.status_counts(members)["n"].iloc[0] == 600


@pytest.mark.slow
def test_intervals_of_shares_cover_the_truth(figures):
    """Each status's share among 800 members of 2,000 fleets drawn from one; rare ones and common ones."""
    words = np.array(["CONNECTED", "CHALLENGED", "DEGRADED", "FAILED", "DELAYED"])
    truth = np.array([0.7, 0.15, 0.1, 0.04, 0.01])
    covered = []
    for seed in range(2_000):
        drawn = np.random.default_rng([seed, 4]).choice(words, 800, p=truth)
        members = pd.DataFrame(
            {
                "connection_status": pd.Categorical(drawn, categories=words),
                "user_state": pd.Categorical(["answered"] * 800),
            }
        )
        found = analysis.status_counts(members).set_index("status").reindex(words)
        covered.append((found["low"].fillna(0) <= truth) & (truth <= found["high"].fillna(1)))
    shares = np.mean(covered, axis=0)
    figures["95 % intervals of status shares cover the truth"] = dict(
        zip(words.tolist(), shares.round(4).tolist(), strict=True)
    )
    assert ((shares >= 0.93) & (shares <= 0.97)).all()


def test_groups_by_institution_flag_and_list():
    members = world(2_000)
    banks = analysis.who_must_act(members, by="institution")
    sizes = banks.drop_duplicates("institution")["n"]
    assert sizes.is_monotonic_decreasing
    assert sizes.sum() == 2_000
    flags = analysis.status_counts(members, by="is_oauth")
    assert set(flags["is_oauth"]) == {"yes", "no"}
    members["use_cases"] = pd.Series(
        [["PFM", "MONEY_MOVEMENT"], [], None, *[["PFM"]] * 1_997], dtype=pd.ArrowDtype(pa.list_(pa.string()))
    )
    cases = analysis.who_must_act(members, by="use_cases").groupby("use_cases")["count"].sum()
    assert cases.to_dict() == {"PFM": 1_998, "MONEY_MOVEMENT": 1, "not known": 2}


def test_by_institution_names_the_largest_and_what_stands_out():
    members = world(6_000)
    assert analysis.status_by_institution(members).attrs["finding"] is None
    bank = (members["institution"] == "Bank 002").to_numpy()
    bad = with_status(members, bank & (np.arange(6_000) % 3 == 0), "FAILED")
    shares = analysis.status_by_institution(bad, top=5)
    assert shares["institution"].drop_duplicates().tolist()[-1] == "all other (35)"
    assert shares.groupby("institution")["share"].sum().to_numpy() == pytest.approx(np.ones(6))
    assert shares["count"].sum() == 6_000
    assert shares.attrs["finding"]["institution"] == "Bank 002"
    assert shares.attrs["finding"]["share"] == pytest.approx(0.37, abs=0.05)


def test_what_stands_out_is_what_all_tests_together_say():
    members = world(3_000)
    rng, found = np.random.default_rng(3), []
    for bad in (0, 4, 8, 10, 12, 14, 16, 30) * 3:
        spoiled = np.zeros(3_000, bool)
        for bank in ("Bank 001", "Bank 003", "Bank 030"):
            mine = np.flatnonzero(members["institution"] == bank)
            spoiled[rng.choice(mine, min(bad, len(mine)), replace=False)] = True
        frame = with_status(members, spoiled, "FAILED")
        counts = frame.groupby("institution", observed=True)["who_must_act"].agg(
            [lambda who: (who == "mx").sum(), "size"]
        )
        (k, n), (mine, total) = counts.sum(), counts.to_numpy().T
        q = stats.false_discovery_control(stats.hypergeom.sf(mine - 1, n, k, total))
        above = mine / total - (k - mine) / (n - total)
        named = counts.index.isin(counts["size"].nlargest(9).index)
        passed = (q <= 0.05) & (mine / total >= 1.5 * (k - mine) / (n - total)) & named
        expected = counts.index[np.where(passed, above, -1).argmax()] if passed.any() else None
        finding = analysis.status_by_institution(frame).attrs["finding"]
        assert (finding and finding["institution"]) == expected
        found.append(expected)
    assert 4 < sum(map(bool, found)) < 20


@pytest.mark.parametrize(
    "summary", [analysis.status_counts, analysis.who_must_act, analysis.status_by_institution]
)
def test_little_or_nothing(summary):
    members = world(500)
    full = summary(members)
    empty = summary(members.iloc[:0])
    assert list(empty.columns) == list(full.columns)
    assert len(empty) == 0
    assert no_objects(full)
    assert no_objects(empty)
    one = summary(members.iloc[:1])
    assert one["high"].max() == 1.0
    assert one.loc[one["count"] == 1, "low"].iloc[0] < 0.21
    null = members.assign(connection_status=pd.Categorical([None] * 500), who_must_act="manual")
    assert summary(null).groupby("who_must_act", observed=True)["count"].sum()["manual"] == 500


def test_missing_column_names_column_function_and_source():
    with pytest.raises(
        SchemaError, match=r"status_counts needs the column 'connection_status'; it is in Snapshot"
    ):
        analysis.status_counts(world(5).drop(columns="connection_status"))


@pytest.mark.parametrize(
    ("summary", "column"),
    [
        (analysis.who_must_act, "connection_status"),
        (analysis.status_by_institution, "institution"),
        (analysis.success_rates, "outcome"),
        (analysis.freshness, "eligible"),
        (analysis.freshness_shares, "age_seconds"),
        (analysis.aggregation_latency, "job_seconds"),
        (analysis.latency_quantiles, "aggregation_seconds_low"),
        (analysis.slow_institutions, "institution"),
        (analysis.outcomes_over_time, "aggregation_seconds_high"),
    ],
)
def test_every_summary_names_the_column_itself_and_the_source(summary, column):
    with pytest.raises(SchemaError, match=rf"{summary.__name__} needs the column '{column}'; it is in Snap"):
        summary(world(5).drop(columns=column))


def test_success_rates_with_and_without_the_users_part():
    members = world(3)
    members["outcome"] = pd.Categorical(["finished", "failed", "waiting_on_user"])
    members["who_must_act"] = strings(["nobody", "mx", "user"])
    rates = analysis.success_rates(members).set_index("measure")
    assert rates["share"].to_dict() == {
        "finished of all ended": pytest.approx(1 / 3),
        "finished, user-caused ends left out": pytest.approx(1 / 2),
    }


@pytest.mark.parametrize("n", [30, 150, 1_000])
def test_wilson_covers_the_truth(n):
    """Exactly, over all counts: no simulation is needed."""
    counts, shares = np.arange(n + 1), np.linspace(0.05, 0.95, 181)
    low, high = wilson(counts, np.full(n + 1, n))
    covered = [stats.binom.pmf(counts, n, p)[(low <= p) & (p <= high)].sum() for p in shares]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.006)
    assert np.min(covered) > 0.90
