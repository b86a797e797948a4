import numpy as np
import pytest
from widgets_sample import snapshot

from mxlab.widgets.filters import Filters, has_use_case, is_oauth, last_success, one_of

CONDITIONS = [
    one_of("bank", "institution", ["Bank 1", 'it\'s "quoted"']),
    one_of("status", "connection_status", ["CONNECTED", None]),
    is_oauth(True),
    is_oauth(False),
    has_use_case("MONEY_MOVEMENT"),
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
