from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from widgets_sample import snapshot

from mxlab.widgets.filters import Filters, between, has_use_case, is_oauth, last_success, one_of

CONDITIONS = [
    one_of("bank", "institution", ["Bank 1", 'it\'s "quoted"']),
    one_of("status", "connection_status", ["CONNECTED", None]),
    is_oauth(True),
    is_oauth(False),
    has_use_case("MONEY_MOVEMENT"),
    between(
        "aggregated_at",
        datetime.fromisoformat("2026-11-22 12:30"),
        datetime.fromisoformat("2026-11-23 09:00"),
    ),
    between("successfully_aggregated_at", None, datetime.fromisoformat("2026-11-22")),
    between("aggregated_at", datetime.fromisoformat("2026-11-23"), None),
    *(last_success(words) for words in ("within a day", "1 to 7 days ago", "more than 7 days ago", "never")),
]


@pytest.fixture(scope="module")
def members():
    return snapshot(300).members


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.words)
def test_the_code_of_a_condition_selects_what_its_mask_selects(members, condition):
    by_code = eval(condition.code, {"m": members})
    mask = condition.mask(members)
    assert mask.dtype == np.bool_
    assert 0 < mask.sum() < len(members)
    assert np.array_equal(np.asarray(by_code, dtype=bool), mask)


def test_the_times_of_success_are_a_partition(members):
    parts = [
        last_success(each).mask(members)
        for each in ("within a day", "1 to 7 days ago", "more than 7 days ago", "never")
    ]
    assert np.array_equal(np.sum(parts, axis=0), np.ones(len(members)))


def test_a_range_has_its_first_moment_and_not_its_last(members):
    at = pd.to_datetime(members["seen_at"].iloc[0]).tz_localize(None).to_pydatetime()
    hour = pd.Timedelta(hours=1)
    assert between("seen_at", at, at + hour).mask(members).all()
    assert not between("seen_at", at - hour, at).mask(members).any()
    words = "looked at from 2026-11-23 12:00 until 2026-11-23 13:00 UTC"
    assert between("seen_at", at, at + hour).words == words


def test_a_range_is_of_the_chosen_time_and_show_all_opens_it(members):
    filters = Filters(members)
    filters.moment.value = "successfully_aggregated_at"
    assert filters.conditions == ()
    filters.since.value, filters.until.value = (
        datetime.fromisoformat("2026-11-20"),
        datetime.fromisoformat("2026-11-22"),
    )
    times = members["successfully_aggregated_at"].dt.tz_localize(None).to_numpy()
    inside = (times >= np.datetime64("2026-11-20")) & (times < np.datetime64("2026-11-22"))
    assert 0 < inside.sum() < len(members)
    assert np.array_equal(filters.mask(members), inside)
    filters.moment.value = "seen_at"
    assert not filters.mask(members).any()
    filters.clear()
    assert (filters.moment.value, filters.since.value) == ("aggregated_at", None)
    assert filters.mask(members) is None


def test_options_are_what_occurs_with_how_often(members):
    filters = Filters(members)
    assert len(filters.institution.options) == 8
    counts = [int(label.rpartition("(")[2].rstrip(")")) for label, _ in filters.institution.options]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == 300
    assert [value for _, value in filters.status.options] == [
        "CONNECTED",
        "CHALLENGED",
        "DENIED",
        "FAILED",
        "DISABLED",
        None,
    ]


def test_searching_keeps_what_is_chosen_and_changes_nothing(members):
    filters = Filters(members)
    filters.institution.value = ("Bank 3",)
    before, seen = filters.conditions, []
    filters.observe(seen.append, "conditions")
    filters.search.value = "bank 5"
    assert [value for _, value in filters.institution.options] == ["Bank 3", "Bank 5"]
    assert filters.institution.value == ("Bank 3",)
    assert filters.conditions == before
    assert seen == []


def test_one_change_is_one_event(members):
    filters, seen = Filters(members), []
    filters.observe(seen.append, "conditions")
    filters.who.value = ("mx",)
    filters.oauth.value = True
    assert len(seen) == 2
    filters.clear()
    assert len(seen) == 3
    filters.clear()
    assert len(seen) == 3
    assert filters.mask(members) is None
