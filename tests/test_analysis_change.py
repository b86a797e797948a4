"""Change between two snapshots; estimates from a part of the users."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_analysis_worlds import Coverage, no_objects, with_status, world

from mxlab import analysis


def two_groups(n, connected):
    """Two institutions of so many members, so many of them connected."""
    rows = [
        (bank, place < good)
        for bank, (size, good) in enumerate(zip(n, connected, strict=True))
        for place in range(size)
    ]
    bank, good = map(np.array, zip(*rows, strict=True))
    members = world(len(rows))
    members["institution"] = pd.Categorical(np.where(bank == 0, "A", "B"))
    members["who_must_act"] = pd.Categorical(np.where(good, "nobody", "mx"))
    return members


def test_mix_and_rate_equals_kitagawas_formula_by_hand():
    before, after = two_groups((600, 400), (540, 200)), two_groups((300, 700), (255, 420))
    found = analysis.mix_and_rate(before, after).set_index("group")
    rates = {"A": (0.9, 0.85), "B": (0.5, 0.6)}
    weights = {"A": (0.6, 0.3), "B": (0.4, 0.7)}
    mix = sum((weights[g][1] - weights[g][0]) * sum(rates[g]) / 2 for g in "AB")
    rate = sum((rates[g][1] - rates[g][0]) * sum(weights[g]) / 2 for g in "AB")
    assert found["mix"].sum() == pytest.approx(mix, abs=1e-12)
    assert found["rate"].sum() == pytest.approx(rate, abs=1e-12)
    assert found["total"].sum() == pytest.approx(0.675 - 0.74, abs=1e-12)
    assert found.attrs["total"] == pytest.approx(0.675 - 0.74, abs=1e-12)


def test_mix_and_rate_adds_up_with_groups_that_come_and_go():
    before, after = world(2_000, banks=20), world(1_500, seed=1, banks=30)
    found = analysis.mix_and_rate(before, after)
    connected = [(frame["who_must_act"] == "nobody").mean() for frame in (before, after)]
    assert found["total"].sum() == pytest.approx(connected[1] - connected[0], abs=1e-12)


def test_mix_and_rate_equals_the_shapley_value_over_both_orders_of_change():
    """No library at hand has Kitagawa's split; that of two factors is their Shapley value (Das Gupta 1993, ch. 2)."""
    before, after = world(3_000, banks=12), world(2_500, seed=8, banks=12)
    tables = []
    for frame in (before, after):
        good = (frame["who_must_act"] == "nobody").groupby(frame["institution"].astype(str))
        tables.append((good.size() / len(frame), good.mean()))
    (w0, r0), (w1, r1) = tables
    mix = (((w1 @ r0) - (w0 @ r0)) + ((w1 @ r1) - (w0 @ r1))) / 2
    rate = (((w0 @ r1) - (w0 @ r0)) + ((w1 @ r1) - (w1 @ r0))) / 2
    found = analysis.mix_and_rate(before, after).attrs
    assert found["mix"] == pytest.approx(mix, abs=1e-12)
    assert found["rate"] == pytest.approx(rate, abs=1e-12)


def told_apart(runs):
    mix, rate = 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        before = two_groups((2_000, 1_000), (rng.binomial(2_000, 0.85), rng.binomial(1_000, 0.5)))
        mixed = two_groups((1_000, 2_000), (rng.binomial(1_000, 0.85), rng.binomial(2_000, 0.5)))
        rated = two_groups((2_000, 1_000), (rng.binomial(2_000, 0.75), rng.binomial(1_000, 0.4)))
        one, two = analysis.mix_and_rate(before, mixed).attrs, analysis.mix_and_rate(before, rated).attrs
        mix += one["mix_is_change"] and not one["rate_is_change"]
        rate += two["rate_is_change"] and not two["mix_is_change"]
    return mix / runs, rate / runs


def test_mix_and_rate_are_told_apart():
    assert min(told_apart(10)) >= 0.8


@pytest.mark.slow
def test_mix_and_rate_are_told_apart_in_95_of_100(figures):
    shares = told_apart(400)
    figures["mix and rate told apart, share of 400 worlds"] = list(shares)
    assert min(shares) >= 0.93  # a 95 % interval of the part that did not move misses in 5 % of runs


def test_moves_are_counted_and_tested_against_moves_back():
    before = world(4_000)
    connected = np.flatnonzero(before["connection_status"] == "CONNECTED")
    after = with_status(before, before.index[connected[:60]], "DENIED").iloc[5:]
    found = analysis.transitions(before, after)
    move = found[(found["from_status"] == "CONNECTED") & (found["to_status"] == "DENIED")].iloc[0]
    gone = (before.iloc[:5]["connection_status"] == "CONNECTED").sum()
    assert move["count"] == 60 - gone
    assert move["p_value"] == pytest.approx(
        stats.binomtest(int(move["count"]), int(move["count"]), alternative="greater").pvalue
    )
    assert found.loc[found["is_change"], "to_status"].tolist() == ["DENIED"]
    assert found["count"].sum() == found.attrs["n"] == 3_995
    changes = analysis.member_changes(before, after)
    assert changes["change"].value_counts().to_dict() == {"moved": 60 - gone, "vanished": 5}
    assert no_objects(changes)


def test_balance_over_two_statuses_is_mcnemars_test():
    before = world(400).assign(connection_status=pd.Categorical(["CONNECTED"] * 200 + ["DENIED"] * 200))
    after = before.copy()
    after["connection_status"] = pd.Categorical(
        ["DENIED"] * 30 + ["CONNECTED"] * 170 + ["CONNECTED"] * 12 + ["DENIED"] * 188
    )
    found = analysis.transitions(before, after)
    assert found.attrs["p_value"] == pytest.approx(stats.chi2.sf((30 - 12) ** 2 / 42, 1))


def test_nothing_changed_is_an_answer():
    members = world(2_000)
    assert not analysis.transitions(members, members)["is_change"].any()
    assert analysis.member_changes(members, members).empty
    assert not analysis.mix_and_rate(members, members).attrs["total_is_change"]
    for before, after in ((members.iloc[:0], members.iloc[:0]), (members.iloc[:1], members.iloc[:0])):
        assert list(analysis.transitions(before, after).columns) == list(
            analysis.transitions(members, members).columns
        )
        analysis.member_changes(before, after)
        analysis.mix_and_rate(before, after)
        analysis.share_changes(before, after, by="institution")


def twice(seed, n=3_000, banks=60, moving=0.06):
    """The same members twice, so many of whom were drawn anew in between, as they were drawn before."""
    rng = np.random.default_rng([seed, 1])  # not the world's own
    before = world(n, seed=seed, banks=banks)
    place = np.arange(n)
    moved = np.flatnonzero(rng.random(n) < moving)
    place[moved] = rng.integers(n, size=len(moved))
    drawn = before[["connection_status", "who_must_act"]].iloc[place].set_axis(before.index)
    return before, before.assign(
        connection_status=drawn["connection_status"], who_must_act=drawn["who_must_act"]
    )


def test_share_changes_of_the_same_members_is_mcnemars_exact_test():
    before = world(400).assign(who_must_act=pd.Categorical(["nobody"] * 300 + ["mx"] * 100))
    after = before.assign(who_must_act=pd.Categorical(["mx"] * 30 + ["nobody"] * 282 + ["mx"] * 88))
    found = analysis.share_changes(before, after).set_index("value")
    assert found.attrs["is_paired"]
    assert found.loc["mx", ["n_before", "share_before", "share_after"]].tolist() == [400, 0.25, 118 / 400]
    assert found["p_value"].to_numpy() == pytest.approx(stats.binomtest(12, 42).pvalue)
    assert found.loc["mx", "change"] == pytest.approx(18 / 400)
    assert no_objects(found)


def test_the_interval_of_paired_shares_is_newcombes_by_hand():
    pairs = [("A", "A")] * 36 + [("A", "B")] * 12 + [("B", "A")] * 2
    members = world(50)
    before, after = (members.assign(who_must_act=pd.Categorical(side)) for side in zip(*pairs, strict=True))
    row = analysis.share_changes(after, before).set_index("value").loc["A"]
    b, c, n = 12, 2, 50
    p, q = 38 / n, 48 / n
    (l1, u1), (l2, u2) = (stats.binomtest(k, n).proportion_ci(method="wilson") for k in (38, 48))
    alike = (36 * 0 - b * c) / np.sqrt(38 * 12 * 48 * 2)
    low = q - p - np.sqrt((q - l2) ** 2 - 2 * alike * (q - l2) * (u1 - p) + (u1 - p) ** 2)
    high = q - p + np.sqrt((u2 - q) ** 2 - 2 * alike * (u2 - q) * (p - l1) + (p - l1) ** 2)
    assert row[["change", "low", "high"]].tolist() == pytest.approx([0.2, low, high])


def test_share_changes_of_two_samples_compares_independent_shares():
    before, after = world(2_000, banks=3), world(3_000, seed=5, banks=3)
    after["guid"] = "other-" + after["guid"]
    found = analysis.share_changes(before, after, by="institution")
    assert not found.attrs["is_paired"]
    row = found[(found["group"] == "Bank 000") & (found["value"] == "mx")].iloc[0]
    n = [int((side["institution"] == "Bank 000").sum()) for side in (before, after)]
    k = [
        int(((side["institution"] == "Bank 000") & (side["who_must_act"] == "mx")).sum())
        for side in (before, after)
    ]
    assert row[["n_before", "n_after"]].tolist() == n
    tails = [
        stats.fisher_exact([[k[1], n[1] - k[1]], [k[0], n[0] - k[0]]], alternative=side).pvalue
        for side in ("less", "greater")
    ]
    assert row["p_value"] == pytest.approx(min(1, 2 * min(tails)))
    same = stats.binomtest
    (l1, u1), (l2, u2) = (same(a, b).proportion_ci(method="wilson") for a, b in zip(k, n, strict=True))
    p, q = k[0] / n[0], k[1] / n[1]
    assert row["low"] == pytest.approx(q - p - np.hypot(q - l2, u1 - p))
    assert row["high"] == pytest.approx(q - p + np.hypot(u2 - q, p - l1))


def test_only_the_bank_that_changed_is_called_changed():
    before, after = twice(3)
    connected = before.index[(before["institution"] == "Bank 004") & (after["who_must_act"] == "nobody")]
    hit = with_status(after, connected[:25], "DENIED")
    found = analysis.share_changes(before, hit, by="institution")
    changed = found[found["is_change"]]
    assert set(changed["group"]) == {"Bank 004"}
    assert set(changed["value"]) == {"nobody", "user"}
    assert not analysis.share_changes(before, after, by="institution")["is_change"].any()


def test_chance_among_many_banks_is_allowed_for():
    found = analysis.share_changes(*twice(6, n=20_000, moving=0.2), by="institution")
    tested = found["p_value"].dropna()
    assert (tested <= 0.05).sum() >= 3, "some look changed by themselves"
    assert not found["is_change"].any()
    adjusted = stats.false_discovery_control(tested)
    assert found.loc[tested.index, "q_value"].to_numpy() == pytest.approx(adjusted)


def test_a_bank_that_was_renamed_is_the_same_bank():
    before, after = twice(2)
    names = {"Bank 000": "Bank 000 (new name)"}
    renamed = after.assign(institution=after["institution"].cat.rename_categories(names))
    found = analysis.share_changes(before, renamed, by="institution")
    assert "Bank 000" not in set(found["group"])
    row = found[(found["group"] == names["Bank 000"]) & (found["value"] == "nobody")].iloc[0]
    assert row["n_before"] == row["n_after"] == (before["institution"] == "Bank 000").sum()


def test_who_comes_and_goes_changes_no_share_of_those_who_stay():
    members = world(3_000, banks=20)
    poor = members["who_must_act"] == "user"
    after = members[~poor | (np.arange(3_000) < 1_500)]
    assert not analysis.share_changes(members, after, by="institution")["is_change"].any()


@pytest.mark.slow
def test_a_calm_pair_seldom_shows_a_change(figures):
    pairs = (twice(seed, n=10_000, moving=0.2) for seed in range(300))
    found = [analysis.share_changes(*pair, by="institution") for pair in pairs]
    false = float(np.mean([each["is_change"].any() for each in found]))
    figures["share_changes: calm pairs of 60 banks with a change, share of 300"] = false
    assert false <= 0.075
    low = pd.concat([each["p_value"].dropna() for each in found]) <= 0.05
    assert 0.01 < low.mean() <= 0.05, "exact tests of few moves are on the safe side, but not asleep"


def sampled(seed, users=20_000, taken=400):
    """A population of users with alike members, a sample of it, and the truth."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 5, users)
    lean = rng.beta(4, 2, users)
    chosen = rng.choice(users, taken, replace=False)
    good = [rng.random(size[user]) < lean[user] for user in range(users)]
    truth = np.concatenate(good).mean()
    flat = np.concatenate([good[user] for user in chosen])
    frame = pd.DataFrame(
        {
            "user_state": pd.Categorical(["answered"] * len(flat)),
            "who_must_act": pd.Categorical(np.where(flat, "nobody", "user"), categories=["nobody", "user"]),
            "session": pd.Categorical(np.repeat(chosen, size[chosen]).astype(str)),
        }
    )
    return frame, truth


def test_estimate_from_a_sample_of_users():
    frame, truth = sampled(2)
    found = analysis.share_estimate(frame, Coverage(asked=20_000, answered=400)).iloc[0]
    assert found["low"] < truth < found["high"]
    assert found["effective_n"] < found["n"]
    more = analysis.share_estimate(frame, Coverage(asked=20_000, answered=400), reach=0.01).iloc[0]
    assert 400 < more["users_for_reach"] < 20_000
    census = analysis.share_estimate(frame, Coverage(asked=400, answered=400)).iloc[0]
    assert census["low"] == census["high"] == census["share"]
    ordered = analysis.share_estimate(frame, Coverage(asked=20_000, answered=400, order="source")).iloc[0]
    assert not ordered["is_sample"]
    assert np.isnan(ordered["low"])
    assert analysis.share_estimate(frame.iloc[:0], Coverage()).empty


@pytest.mark.slow
def test_sample_intervals_cover_the_truth(figures):
    hits = []
    for seed in range(2_000):
        frame, truth = sampled(seed, users=2_000, taken=400)
        found = analysis.share_estimate(frame, Coverage(asked=2_000, answered=400)).iloc[0]
        hits.append(found["low"] <= truth <= found["high"])
    figures["sample interval covers the truth, share of 2000 runs"] = float(np.mean(hits))
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)
