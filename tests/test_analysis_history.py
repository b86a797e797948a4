"""History of a store: shares run by run, time in a status, time to recover, held against known episodes."""

from collections import defaultdict
from functools import cache
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
from test_analysis_worlds import SEEN, Coverage, no_objects, strings, world

import mxlab as mx
from mxlab import analysis
from mxlab.nexus.status import WHO_MUST_ACT, who_must_act
from mxlab.simulator.parameters import Parameters
from mxlab.simulator.world import World

HOUR, DAY = 3_600.0, 86_400.0
SEEN_DTYPE = "datetime64[us, UTC]"


def looked(run, guid, user, seconds, status):
    """A `members` frame of looks: one element of each array is one look, its time in Unix seconds."""
    word = pd.Series(pd.Categorical(status))
    acting = pd.Series(pd.Categorical([who_must_act(name) for name in [*word.cat.categories, None]]))
    return pd.DataFrame(
        {
            "run_id": pd.Categorical(run),
            "guid": strings(guid),
            "user_guid": strings(user),
            "seen_at": pd.to_datetime(np.round(seconds * 1e6), unit="us", utc=True).astype(SEEN_DTYPE),
            "connection_status": word,
            "who_must_act": pd.Categorical(
                acting.astype(str).to_numpy()[word.cat.codes], categories=WHO_MUST_ACT
            ),
            "user_state": pd.Categorical(["answered"] * len(word)),
        }
    )


def renewal(seed, draw, *, members=2_000, days=30, gap=1.0, well=7.0, rest=1.3):
    """Members that go to and fro between CONNECTED (`rest` days at least) and DENIED, looked at every `gap` days."""
    rng = np.random.default_rng(seed)
    runs = np.arange(0, days, gap) * DAY
    when = runs + rng.uniform(0, 0.2 * gap * DAY, (members, 1)) + rng.uniform(0, 600, (members, len(runs)))
    up = (rest + rng.exponential(well - rest, (members, 60))) * DAY
    edges = (
        np.cumsum(np.stack([up, draw(rng, (members, 60))], axis=2).reshape(members, -1), axis=1) - 40 * DAY
    )
    bad = np.array([np.searchsorted(edge, at) % 2 for edge, at in zip(edges, when, strict=True)])
    number = np.repeat(np.arange(members), len(runs))
    return looked(
        np.tile(np.char.add("r", np.arange(len(runs)).astype(str)), members),
        np.char.add("MBR-", number.astype(str)),
        np.char.add("USR-", (number // 2).astype(str)),
        SEEN.timestamp() + when.ravel(),
        np.where(bad.ravel(), "DENIED", "CONNECTED"),
    )


LENGTHS = {
    "exponential": (lambda rng, shape: rng.exponential(3 * DAY, shape), lambda share: -3 * np.log(1 - share)),
    "Weibull 0.7": (
        lambda rng, shape: 3 * DAY * rng.weibull(0.7, shape),
        lambda share: 3 * (-np.log(1 - share)) ** (1 / 0.7),
    ),
    "log-normal": (
        lambda rng, shape: 2 * DAY * np.exp(0.8 * rng.standard_normal(shape)),
        lambda share: 2 * np.exp(0.8 * {0.5: 0.0, 0.9: 1.2816}[share]),
    ),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_quantiles_of_known_episodes(kind):
    draw, truth = LENGTHS[kind]
    row = analysis.time_in_status(renewal(1, draw)).set_index("status").loc["DENIED"]
    assert row["p50"] == pytest.approx(
        truth(0.5) * DAY, rel=0.15
    )  # what is shorter than a gap is a guess: measured
    assert row["p90"] == pytest.approx(truth(0.9) * DAY, rel=0.08)
    assert row["gap_seconds"] == pytest.approx(DAY, rel=0.01)
    lengths = draw(np.random.default_rng(9), 100_000)
    missed = np.maximum(1 - lengths / DAY, 0).mean()
    assert row["share_unseen"] == pytest.approx(missed, abs=0.1)


class Recorded(World):
    """A world that notes every change of status as it happens: what no look can see."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.moves = defaultdict(list)

    def _changed(self, member, status):
        if status != member.status:
            self.moves[self.member_guid(member)].append((member.due, status))
        super()._changed(member, status)


@cache
def aged(gap_hours=12.0, days=30, users=500):
    """Looks at a simulated world, and the true lengths of its troubles in seconds, by the first who must act."""
    seen = Recorded(Parameters(users=users, seed=3))
    epoch, looks, first = seen.parameters.epoch, [], {}
    for number, at in enumerate(np.arange(0, days * DAY, gap_hours * HOUR) + epoch):
        for user in range(users):
            for member in seen.members(user, at + user):
                guid = seen.member_guid(member)
                first.setdefault(guid, member.status)
                looks.append((f"r{number:03d}", guid, f"USR-{user}", at + user, member.status))
    seen.advance(epoch + (days + 90) * DAY)
    lengths = defaultdict(list)
    for guid, moves in seen.moves.items():
        left, was = None, first.get(guid)
        for at, status in moves:
            if was == "CONNECTED" and status != "CONNECTED" and at < epoch + days * DAY:
                left = (at, who_must_act(status))
            elif status == "CONNECTED" and left is not None:
                lengths[left[1]].append(at - left[0])
                left = None
            was = status
    return looked(*map(np.array, zip(*looks, strict=True))), dict(lengths)


def test_recovery_in_a_simulated_world_against_its_truth():
    members, lengths = aged()
    curve = analysis.time_to_recover(members)
    found = {row["group"]: row for row in curve.attrs["quantiles"]}
    every = np.concatenate(list(lengths.values()))
    for group, truth in {**lengths, "all": every}.items():
        if len(truth) < 100:
            continue
        true_median, true_p90 = np.quantile(truth, [0.5, 0.9])
        assert found[group]["p50"] == pytest.approx(true_median, rel=0.15)
        assert found[group]["p90"] == pytest.approx(true_p90, rel=0.08)
        missed = np.maximum(1 - np.asarray(truth) / (12 * HOUR), 0).mean()
        assert found[group]["share_unseen"] == pytest.approx(missed, abs=0.1)
        mine = curve[curve["group"] == group]
        at = np.searchsorted(np.sort(truth), mine["seconds"], side="right") / len(truth)
        late = mine["seconds"] > DAY
        assert np.abs(mine["share"] - at)[late].max() < 0.12
        assert np.abs(mine["share"] - at)[late].mean() < np.abs(mine["naive"] - at)[late].mean()


def test_shares_run_by_run_are_those_of_each_run():
    parts = [
        world(700, seed=seed).assign(
            run_id=pd.Categorical([f"r{seed}"] * 700),
            seen_at=lambda rows, seed=seed: rows["seen_at"] + seed * pd.Timedelta("6h"),
        )
        for seed in (2, 0, 1)
    ]
    by_run = {"r0": Coverage(asked=400, answered=390), "r2": Coverage(asked=400, answered=250)}
    found = analysis.status_history(pd.concat(parts, ignore_index=True), coverage=Coverage(by_run=by_run))
    assert found["run_id"].drop_duplicates().tolist() == ["r0", "r1", "r2"]
    assert found.attrs["gap_seconds"] == 6 * HOUR
    for part in parts:
        alone = analysis.who_must_act(part).set_index("status")
        mine = found[found["run_id"] == part["run_id"].iloc[0]].set_index("who_must_act")
        for name in ("count", "n", "share", "low", "high"):
            assert mine.loc[alone.index, name].tolist() == alone[name].tolist()
    assert found.groupby("run_id")["asked"].first().tolist() == [400, pd.NA, 400]
    assert found.groupby("run_id")["share"].sum().tolist() == pytest.approx([1.0] * 3)


def test_history_of_a_store(tmp_path):
    """Three days of a simulated world, one of them of a third of its users; each run alone is what the whole says."""
    names, store = ["mon", "tue", "wed"], mx.Store(tmp_path / "store")
    with mx.simulate(60, seed=6, parameters={"epoch": 1_790_000_000.0}) as simulation:
        for name in names:
            sample = 20 if name == "tue" else None
            mx.observe(simulation.tokens, simulation.settings, store=store, run=name, sample=sample)
            simulation.skip(86_400)
    snap = store.load(runs=names[::-1])
    each = {name: store.load(name) for name in names}
    assert snap.coverage.by_run == {name: each[name].coverage for name in names}
    assert [each[name].coverage.answered for name in names] == [60, 20, 60]
    assert snap.coverage.answered == 140

    shares = analysis.status_history(snap.members, coverage=snap.coverage)
    assert shares["run_id"].drop_duplicates().tolist() == names
    assert shares.attrs["gap_seconds"] == pytest.approx(DAY, rel=0.01)
    for name, rows in shares.groupby("run_id", sort=False):
        alone = each[name].members["who_must_act"].value_counts()
        assert rows.set_index("who_must_act")["count"].to_dict() == {
            word: alone[word] for word in rows["who_must_act"]
        }
        assert set(rows["answered"]) == {each[name].coverage.answered}

    looks = pd.concat([each[name].members for name in names]).sort_values(["guid", "seen_at"])
    words = looks["connection_status"].astype(object).where(looks["connection_status"].notna(), "no status")
    stretches = [word for _, own in words.groupby(looks["guid"].to_numpy()) for word, _ in groupby(own)]
    stays = analysis.time_in_status(snap.members, coverage=snap.coverage)
    assert stays.set_index("status")["episodes"].to_dict() == pd.Series(stretches).value_counts().to_dict()
    assert stays.attrs["coverage"]["answered"] == 140
    assert not analysis.time_to_recover(snap.members, coverage=snap.coverage).empty


def three_looks(*statuses):
    """One member at each of as many runs."""
    n = len(statuses)
    return looked(
        [f"r{i}" for i in range(n)],
        ["MBR-1"] * n,
        ["USR-1"] * n,
        SEEN.timestamp() + np.arange(n) * DAY,
        np.array(statuses, dtype=object),
    )


def test_each_kind_of_episode_is_counted_as_what_it_is():
    found = analysis.time_in_status(three_looks("CONNECTED", "DENIED", "DENIED", "CONNECTED", None, None))
    found = found.set_index("status")
    kinds = ["episodes", "n", "n_ended", "n_censored", "n_begun_before"]
    assert found.loc["DENIED", kinds].tolist() == [1, 1, 1, 0, 0]
    assert found.loc["CONNECTED", kinds].tolist() == [2, 1, 1, 0, 1]
    assert found.loc["no status", kinds].tolist() == [1, 1, 0, 1, 0]
    assert found["p50"].isna().all()
    assert found["p50_why"].str.startswith("fewer than").all()
    assert found["gap_seconds"].tolist() == [DAY] * 3


def test_runs_too_far_apart_say_so_and_give_no_quantile():
    short = renewal(3, lambda rng, shape: rng.exponential(6 * HOUR, shape), rest=4.0)
    row = analysis.time_in_status(short).set_index("status").loc["DENIED"]
    assert np.isnan(row["p50"])
    assert row["p50_why"] == "shorter than the gap between looks"
    assert row["p50_low"] == 0.0
    assert row["p50_high"] == pytest.approx(DAY, rel=0.01)
    assert row["share_unseen"] > 0.5


def test_one_run_or_one_member_or_nothing_has_no_false_certainty():
    members = renewal(1, LENGTHS["exponential"][0], members=40, days=3)
    for summary in (analysis.status_history, analysis.time_in_status, analysis.time_to_recover):
        full = summary(members)
        assert no_objects(full)
        for few in (
            members.iloc[:0],
            members.iloc[:1],
            members[members["run_id"] == "r0"],
            members.assign(guid=strings([None] * len(members))),
        ):
            found = summary(few)
            assert (found.dtypes == full.dtypes).all()
            assert not found.filter(like="p50").select_dtypes("number").notna().any().any()
