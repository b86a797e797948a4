"""Audit: what it counts and shows is what `findings` finds; waiving needs a reason and an end."""

from datetime import date

import pandas as pd
import pytest
from ipywidgets.widgets.widget import _instances
from widgets_sample import HOSTILE, snapshot

import mxlab as mx
from mxlab import charts
from mxlab.analysis import findings
from mxlab.plots import style

TOMORROW = date(2026, 11, 24)


def defective(banks=None):
    """A sample in which some members are CONNECTED yet stale, and one was seen before it was aggregated."""
    snap = snapshot(300, banks=banks)
    members = snap.members
    late = members.index[:5]
    members.loc[late, "aggregated_at"] = members["seen_at"].max() + pd.Timedelta(days=3)
    return snap


@pytest.fixture(scope="module")
def snap():
    return defective()


@pytest.fixture
def audit(snap):
    return mx.Audit(snap)


def test_it_opens_with_every_finding_and_a_picture(audit, snap):
    found = findings(snap.members)
    assert len(audit.rows) == len(found) > 0
    assert audit.rule.value == ""
    assert audit.institution.label == "all"
    assert f"{len(found):,} of {len(found):,} findings in 300 records" in audit.said.value
    assert bytes(audit.picture.value).startswith(b"\x89PNG")
    bundle = audit._repr_mimebundle_()
    assert {"image/png", "text/plain"} <= bundle.keys()
    assert "Findings by rule" in bundle["text/plain"]


def test_rules_are_offered_gravest_first_with_their_counts(audit, snap):
    found = findings(snap.members)
    severity = found.drop_duplicates("rule").set_index("rule")["severity"]
    offered = [rule for _, rule in audit.rule.options[1:]]
    assert set(offered) == set(found["rule"])
    ranks = [("error", "warning", "notice").index(severity[rule]) for rule in offered]
    assert ranks == sorted(ranks)
    for label, rule in audit.rule.options[1:]:
        assert label.endswith(f"{(found['rule'] == rule).sum():,}")


def test_a_rule_and_an_institution_lead_to_the_very_rows(audit, snap):
    found = findings(snap.members)
    audit.rule.value = "time-in-future"
    assert audit.rows["guid"].tolist() == found.loc[found["rule"] == "time-in-future", "guid"].tolist()
    assert len(audit.table.rows) == 5
    assert "Source:" in audit.about.value
    bank = audit.rows["institution"].iloc[0]
    audit.institution.value = bank
    assert audit.rows["institution"].eq(bank).all()
    assert 0 < len(audit.rows) < 5


def test_the_picture_is_of_what_is_chosen(audit, snap):
    every = bytes(audit.picture.value)
    found = findings(snap.members)
    audit.rule.value = "time-in-future"
    one = bytes(audit.picture.value)
    bank = audit.rows["institution"].iloc[0]
    audit.institution.value = bank
    here = bytes(audit.picture.value)
    assert len({every, one, here}) == 3
    said = f"findings of time-in-future at {bank}"
    assert f"shown: {said}" in audit.picture.tooltip
    rows = found[found["rule"].eq("time-in-future") & found["institution"].eq(bank)]
    axes = mx.draw("findings_by_institution", snap.narrowed(rows, said))
    assert str(len(rows)) in [text.get_text() for text in axes.texts]
    assert here == charts.png(style.root(axes))
    audit.rule.value, audit.institution.value = "", audit.institution.options[0][1]
    assert bytes(audit.picture.value) == every


def test_the_gravest_come_first_and_sort_by_what_they_mean(audit):
    rank = ["error", "warning", "notice"]
    for rows in (audit.rows, audit.table.rows):
        order = [rank.index(each) for each in rows["severity"]]
        assert order == sorted(order)
        assert len(set(order)) > 1
    audit.table.sort_by.value, audit.table.descending.value = "severity", True
    assert audit.table.rows["severity"].iloc[0] == "notice"


def test_what_was_waived_elsewhere_can_be_given(snap):
    first = mx.Audit(snap)
    first.rule.value, first.reason.value, first.until.value = "time-in-future", "ticket 4711", TOMORROW
    first.waive.click()
    again = mx.Audit(snap, waivers=first.waivers)
    assert again.waivers == first.waivers
    assert "5 waived" in again.said.value
    assert len(again.rows) == len(first.rows)


def test_waiving_draws_once(audit, monkeypatch):
    drawn = []
    monkeypatch.setattr(audit.picture, "draw", lambda *known: drawn.append(known))
    audit.rule.value, audit.reason.value, audit.until.value = "time-in-future", "known", TOMORROW
    drawn.clear()
    audit.waive.click()
    assert len(drawn) == 1


def test_waiving_needs_a_rule_a_reason_and_a_day_to_come(audit):
    audit.waive.click()
    assert "Choose the rule" in audit.done.value
    audit.rule.value = "time-in-future"
    audit.waive.click()
    assert "Say why" in audit.done.value
    audit.reason.value = "ticket 4711"
    audit.waive.click()
    assert "Choose the day" in audit.done.value
    audit.until.value = date(2026, 11, 22)
    audit.waive.click()
    assert "must end after" in audit.done.value
    assert audit.waivers == ()


def test_what_is_waived_is_counted_no_more_and_findings_takes_it_again(audit, snap):
    before = len(audit.rows)
    audit.rule.value, audit.reason.value, audit.until.value = "time-in-future", "ticket 4711", TOMORROW
    audit.waive.click()
    assert "is waived until 2026-11-24: ticket 4711" in audit.done.value
    assert "time-in-future" not in [rule for _, rule in audit.rule.options]
    assert audit.rule.value == ""
    assert len(audit.rows) == before - 5
    assert "5 waived" in audit.said.value
    again = findings(snap.members, waivers=audit.waivers)
    assert again.loc[again["is_waived"], "rule"].tolist() == ["time-in-future"] * 5


def test_a_waiver_at_one_institution_leaves_the_others(audit):
    audit.rule.value = "time-in-future"
    bank = audit.rows["institution"].iloc[0]
    here = int(audit.rows["institution"].eq(bank).sum())
    audit.institution.value, audit.reason.value, audit.until.value = bank, "known", TOMORROW
    audit.waive.click()
    audit.rule.value = "time-in-future"
    assert len(audit.rows) == 5 - here
    assert bank not in set(audit.rows["institution"])


def test_saved_rows_are_those_in_view_and_name_nobody(audit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audit.rule.value = "time-in-future"
    audit.save.click()
    file = tmp_path / "mxlab-sample-time-in-future.csv"
    assert len(pd.read_csv(file)) == 5
    text = file.read_text()
    assert not any(guid in text for guid in audit.rows["guid"])
    assert "MBR-" not in text
    audit.identities.value = True
    audit.save.click()
    assert pd.read_csv(file)["guid"].tolist() == audit.rows["guid"].tolist()
    audit.institution.value = bank = audit.rows["institution"].iloc[0]
    audit.save.click()
    there = tmp_path / f"mxlab-sample-time-in-future-{bank.replace(' ', '-')}.csv"
    assert len(pd.read_csv(there)) == len(audit.rows) < 5


@pytest.mark.parametrize("bank", ["../../etc/passwd", "N" * 300, "a\x00b/c\\d", "", "مصرف", ". ."])
def test_a_name_of_a_bank_leads_to_no_other_folder(bank, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audit = mx.Audit(defective([bank]))
    audit.institution.value = bank
    audit.save.click()
    assert "Saved" in audit.done.value
    (file,) = tmp_path.rglob("*.*")
    assert file.parent == tmp_path
    assert len(file.name) < 80


def test_names_do_no_harm():
    audit = mx.Audit(defective(HOSTILE))
    audit.rule.value = "time-in-future"
    shown = audit.table.body.value + audit.said.value + audit.about.value
    assert "<script>" not in shown
    assert "<img" not in shown
    for _, bank in audit.institution.options[1:]:
        audit.institution.value = bank
        assert "<script>" not in audit.table.body.value


def test_a_field_that_vanished_is_found_against_the_snapshot_before(snap):
    before = snapshot(300)
    before.members["external_guid"] = "EXT-1"
    audit = mx.Audit(snap, against=before)
    assert any("external_guid" in str(reason) for reason in audit.found["reason"])


def test_without_members_nothing_is_found():
    empty = snapshot(300)
    audit = mx.Audit(empty.narrowed(empty.members.iloc[:0], "none"))
    assert audit.rows.empty
    assert audit.rule.options == (("every rule  0", ""),)
    assert bytes(audit.picture.value).startswith(b"\x89PNG")


def test_waiving_keeps_no_widgets_and_the_table_follows(snap):
    audit = mx.Audit(snap)
    widgets = len(_instances)
    for rule in [rule for _, rule in audit.rule.options[1:]][:3]:
        audit.rule.value, audit.reason.value, audit.until.value = rule, "known", TOMORROW
        audit.waive.click()
        assert audit.table.rows["guid"].tolist() == audit.rows["guid"].tolist()
    assert len(audit.waivers) == 3
    assert len(_instances) == widgets


def test_institutions_without_a_name_can_be_chosen_and_are_never_waived_as_all():
    snap = defective(["", "Bank 1", "Bank 2"])
    snap.members.loc[snap.members.index[:7], "institution"] = None
    audit = mx.Audit(snap)
    every = len(audit.rows)
    parts = {}
    for label, bank in audit.institution.options[1:]:
        audit.institution.value = bank
        parts[label] = len(audit.rows)
        assert label.endswith(f"{len(audit.rows):,}")
    assert len(parts) == 4
    assert sum(parts.values()) == every
    for bank in ("", audit.institution.options[-1][1]):
        audit.institution.value = bank
        audit.rule.value = audit.rows["rule"].iloc[0]
        audit.reason.value, audit.until.value = "known", TOMORROW
        audit.waive.click()
        assert "has a name, or all" in audit.done.value
    assert audit.waivers == ()
