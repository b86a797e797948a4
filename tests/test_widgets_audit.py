"""Audit: what it counts and shows is what `findings` finds; waiving needs a reason and an end."""

from datetime import date

import pandas as pd
import pytest
from ipywidgets.widgets.widget import _instances
from widgets_sample import HOSTILE, snapshot

import mxlab as mx
from mxlab.analysis import findings

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
