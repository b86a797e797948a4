import numpy as np
import pandas as pd
import pytest
from widgets_sample import HOSTILE, snapshot

from mxlab.widgets import PagedTable


@pytest.fixture
def members():
    return snapshot(120, banks=HOSTILE).members


@pytest.fixture
def table(members):
    return PagedTable(members, "Members", columns=["institution", "connection_status", "job_seconds", "guid"])


def test_only_a_page_is_sent(table):
    assert table.body.value.count("<tr>") == 26
    assert "Members: 1 to 25 of 120" in table.body.value
    assert table.previous.disabled
    table.next.click()
    assert "26 to 50 of 120" in table.body.value
    table.page.value = 5
    assert "101 to 120 of 120" in table.body.value
    assert table.next.disabled
    table.previous.click()
    assert table.page.value == 4


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("name", ["job_seconds", "guid", "institution", "connection_status"])
def test_it_sorts_with_what_is_missing_last(table, members, name, descending):
    table.sort_by.value = name
    table.descending.value = descending
    shown = table.rows[name]
    known = shown.dropna()
    order = list(
        known.cat.codes
        if name == "connection_status"
        else known.astype("object").map(lambda value: value.casefold() if isinstance(value, str) else value)
    )
    assert order == sorted(order, reverse=descending)
    assert shown.iloc[len(known) :].isna().all()
    assert sorted(table.rows.index) == list(members.index)


def test_it_finds_text_in_any_shown_column_and_takes_it_literally(table, members):
    table.find.value = "<SCRIPT"
    assert set(table.rows["institution"]) == {HOSTILE[0]}
    table.find.value = "MBR-11"
    assert len(table.rows) == 11
    table.find.value = ".*"
    assert table.rows.empty
    assert "Members: none" in table.body.value
    table.find.value = ""
    assert len(table.rows) == len(members)


def test_it_shows_only_the_rows_it_is_told_to(table, members):
    mask = members["connection_status"].eq("DENIED").to_numpy(dtype=bool, na_value=False)
    table.page.value = 3
    table.restrict(mask)
    assert table.page.value == 1
    assert set(table.rows["connection_status"]) == {"DENIED"}
    table.find.value = "MBR-1"
    assert set(table.rows.index) <= set(np.flatnonzero(mask))
    table.restrict(None)
    table.find.value = ""
    assert len(table.rows) == len(members)


def test_it_is_a_table_to_those_who_do_not_see_it(table):
    assert "<caption>" in table.body.value
    assert 'scope="col"' in table.body.value
    assert 'scope="row"' in table.body.value
    assert 'tabindex="0"' in table.body.value
    assert "<script" not in table.body.value


def test_a_frame_without_rows():
    assert "rows: none" in PagedTable(pd.DataFrame({"a": pd.Series(dtype="float64")})).body.value
