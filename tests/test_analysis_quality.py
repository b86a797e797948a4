"""Each rule finds the defect that is planted for it, and nothing in a clean world."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from test_analysis_worlds import SEEN, no_objects, with_status, world

from mxlab import analysis, read_members
from mxlab.simulator.defects import DEFECTS as DEFECTS_OF_RECORDS
from mxlab.simulator.parameters import Parameters
from mxlab.simulator.records import Records
from mxlab.simulator.world import World

HOUR, DAY = pd.Timedelta(hours=1), pd.Timedelta(days=1)
LISTS = pd.ArrowDtype(pa.list_(pa.string()))


def put(**values):
    """Plant values in the first row, which is CONNECTED."""

    def plant(members):
        for name, value in values.items():
            members.loc[0, name] = value
        return members

    return plant


def status(word, **values):
    return lambda members: put(**values)(with_status(members, [0], word))


def twin(**values):
    """Make the first row like the second in some columns."""
    return lambda members: put(**{name: members.loc[1, name] for name in values["same"]})(members)


def unknown_status(members):
    members["connection_status"] = members["connection_status"].cat.add_categories("ZOMBIE")
    return put(connection_status="ZOMBIE")(members)


def use_cases(*cases):
    def plant(members):
        every = [list(cases), *[["PFM"]] * (len(members) - 1)]
        return members.assign(use_cases=pd.Series(every, dtype=LISTS))

    return plant


def observed(members):
    none = pd.Categorical([None] * len(members), categories=members["outcome"].cat.categories)
    return put(background_aggregation_is_disabled=True, age_seconds=3_600.0)(members.assign(outcome=none))


DEFECTS = {
    "guid-missing": put(guid=pd.NA),
    "guid-of-two-users": twin(same=["guid"]),
    "guid-repeated": twin(same=["guid", "user_guid", "session"]),
    "user-of-another": put(user_guid="USR-" + "9" * 36),
    "fields-absent": put(is_oauth=pd.NA),
    "user-missing": put(user_guid=pd.NA),
    "institution-missing": put(institution_guid=pd.NA, institution_code=np.nan),
    "institution-two-codes": lambda members: put(institution_code="other")(
        members.astype({"institution_code": "string"})
    ),
    "institution-two-guids": put(institution_guid="INS-other"),
    "name-differs": put(name="my bank"),
    "name-missing": put(name=pd.NA),
    "text-says-null": put(name="null"),
    "text-blank": put(name=" padded"),
    "text-control-characters": put(name="bank\u202eknab"),
    "guid-format": put(guid="12345"),
    "metadata-unreadable": put(metadata='\\"fragment'),
    "time-in-future": put(aggregated_at=SEEN + DAY, successfully_aggregated_at=SEEN + DAY),
    "time-before-mx": put(
        aggregated_at=pd.Timestamp(0, tz="UTC"), successfully_aggregated_at=pd.Timestamp(0, tz="UTC")
    ),
    "success-without-start": put(aggregated_at=pd.NaT),
    "success-a-day-after-start": put(aggregated_at=SEEN - 5 * DAY, successfully_aggregated_at=SEEN - DAY),
    "aggregation-stuck": put(
        is_being_aggregated=True, aggregated_at=SEEN - 7 * HOUR, successfully_aggregated_at=SEEN - 8 * HOUR
    ),
    "aggregating-never-started": put(
        is_being_aggregated=True, aggregated_at=pd.NaT, successfully_aggregated_at=pd.NaT
    ),
    "manual-aggregating": put(is_being_aggregated=True, connection_status=np.nan, aggregated_at=SEEN - HOUR),
    "connected-stale": put(age_seconds=8 * 86_400.0, eligible=True),
    "connected-never-succeeded": put(successfully_aggregated_at=pd.NaT, aggregated_at=SEEN - 2 * DAY),
    "created-yet-aggregated": status("CREATED"),
    "pending-without-oauth": status("PENDING", is_oauth=False, aggregated_at=SEEN - HOUR / 2),
    "pending-over-an-hour": status("PENDING", is_oauth=True, aggregated_at=SEEN - 2 * HOUR),
    "status-unknown": unknown_status,
    "fields-undocumented": put(extra='{"new": 1}'),
    "job-missing": put(most_recent_job_guid=pd.NA),
    "job-of-two-members": twin(same=["most_recent_job_guid"]),
    "background-off-yet-fresh": observed,
    "use-cases-empty": use_cases(),
    "use-cases-unknown": use_cases("PFM", "GAMBLING"),
    "use-cases-without-pfm": use_cases("MONEY_MOVEMENT"),
    "looks-reversed": put(aggregation_seconds_low=30.0, aggregation_seconds_high=10.0),
    "job-contradicts-looks": put(
        job_seconds=500.0, aggregation_seconds_high=20.0, aggregation_seconds_low=10.0
    ),
}


@pytest.fixture(scope="module")
def clean():
    """Clean members, of which the first two are CONNECTED and at different banks and users."""
    members = world(600, seed=3)
    connected = members[members["connection_status"] == "CONNECTED"]
    second = connected[(connected["institution"] != connected["institution"].iloc[0])].index[0]
    first = [connected.index[0], second]
    return pd.concat([members.loc[first], members.drop(index=first)], ignore_index=True)


def test_there_are_at_least_25_rules_each_with_a_defect_here():
    rules = analysis.rules()
    assert len(rules) >= 25
    assert set(rules["rule"]) == {*DEFECTS, "field-vanished"}
    assert rules.notna().all().all()
    assert set(rules["severity"]) == {"error", "warning", "notice"}


def test_a_clean_world_has_no_findings(clean):
    found = analysis.findings(clean)
    assert found.empty
    assert list(found.columns[:5]) == ["rule", "severity", "reason", "source", "is_waived"]
    assert sum(found.attrs["counts"].values()) == 0
    assert analysis.findings(clean.iloc[:0]).empty


@pytest.mark.parametrize("rule", DEFECTS)
def test_a_planted_defect_is_found_by_exactly_its_rule(clean, rule):
    found = analysis.findings(DEFECTS[rule](clean.copy()))
    assert set(found["rule"]) == {rule}
    assert {"guid", "institution", "connection_status"} <= set(found.columns)


def test_fields_that_vanished_since_the_last_snapshot(clean):
    now = clean.assign(is_managed_by_user=pd.array([pd.NA] * len(clean), dtype="boolean"))
    found = analysis.findings(now, previous=clean)
    assert found["rule"].tolist() == ["field-vanished"]
    assert found["reason"].iloc[0].endswith("is_managed_by_user, before in 100%")


def test_waivers_mark_until_their_day_and_only_there(clean):
    members = put(name="my bank")(clean.copy())
    bank = members["institution"].iloc[0]
    for waiver, waived in (
        (analysis.Waiver("name-differs", SEEN + DAY, "known"), True),
        (analysis.Waiver("name-differs", SEEN - DAY, "over"), False),
        (analysis.Waiver("name-differs", SEEN + DAY, "there", institution=bank), True),
        (analysis.Waiver("name-differs", SEEN + DAY, "elsewhere", institution="other"), False),
    ):
        found = analysis.findings(members, waivers=[waiver])
        assert found["is_waived"].tolist() == [waived]
    assert analysis.findings_by_institution(analysis.findings(members)).iloc[0].to_dict() == {
        "rule": "name-differs",
        "severity": "notice",
        "institution": bank,
        "count": 1,
    }
    assert no_objects(analysis.findings_by_institution(found))


#: Kind of a defect of the simulator → the rules that find it. Empty: harmless, and read as what it means. None: the
#: record cannot be read and is kept among the rejects.
PLANTED = {
    "absent_institution_code": {"fields-absent"},
    "absent_is_oauth": {"fields-absent"},
    "absent_use_cases": {"use-cases-empty"},
    "time_without_fraction": set(),
    "time_with_utc_offset": set(),
    "time_with_offset": set(),
    "metadata_unreadable": {"metadata-unreadable"},
    "metadata_object": set(),
    "undocumented_field": {"fields-undocumented"},
    "unknown_status": {"status-unknown"},
    "time_without_zone": None,
    "time_impossible": None,
    "time_1970": {"time-before-mx"},
    "time_in_future": {"time-in-future"},
    "connected_but_stale": {"connected-stale"},
    "stuck_running": {"aggregation-stuck"},
    "flag_as_text": None,
    "flag_null": set(),
    "guid_absent": None,
    "guid_null": None,
    "guid_malformed": {"guid-format"},
    "guid_twice_in_reply": None,
    "guid_shared_by_users": {"guid-of-two-users"},
    "job_guid_absent": {"job-missing"},
    "job_guid_of_no_job": {"job-of-two-members"},
    "institution_guid_malformed": {"institution-two-guids"},
    "institution_code_of_another": {"institution-two-codes", "institution-two-guids"},
    "user_guid_of_another": {"user-of-another"},
    "use_cases_empty": {"use-cases-empty"},
    "use_cases_unknown": {"use-cases-unknown"},
    "use_cases_text": None,
    "record_is_text": None,
}


def read(folder, kind, users=120):
    """The Snapshot of a simulated world's replies with one kind of defect, and how many were planted."""
    clean = {"renamed_share": 0.0, "hostile_share": 0.0, "not_pfm_share": 0.0, "stuck_share": 0.0}
    clean |= {"background_disabled_share": 0.0}
    planted = {"scenarios": ("defects",), "defect_kinds": (kind,), "defect_share": 0.05} if kind else {}
    world_ = World(Parameters(users=users, seed=3, **clean, **planted))
    records, now = Records(world_), world_.parameters.epoch + 3_600
    for user in range(users):
        path = folder / f"{user}.json"
        path.write_bytes(records.reply(user, now))
        os.utime(path, (now, now))
    return read_members(folder / "*.json"), len(world_.truth(now)["defects"])


@pytest.mark.parametrize("kind", [None, *PLANTED])
def test_a_defect_of_the_simulator_is_found_by_exactly_its_rules(tmp_path, kind):
    snap, planted = read(tmp_path, kind)
    counts = analysis.findings(snap.members).attrs["counts"]
    usual = {"metadata-unreadable"} - (
        PLANTED.get(kind) or set()
    )  # some of the world's own is MX's own fragment
    found = {rule for rule, count in counts.items() if count} - usual
    assert found == (PLANTED.get(kind) or set())
    assert (planted > 0) == (kind is not None)
    assert len(snap.rejects) == (planted if kind in PLANTED and PLANTED[kind] is None else 0)


def test_a_time_that_says_null_is_missing_and_found(tmp_path):
    snap, planted = read(tmp_path, "time_text_null")
    found = analysis.findings(snap.members)
    counts = found.attrs["counts"]
    assert counts["text-says-null"] == planted > 0
    assert counts["fields-undocumented"] == 0
    bad = found.loc[found["rule"] == "text-says-null"]
    assert bad["successfully_aggregated_at"].isna().all()
    assert (bad["extra"] == '{"successfully_aggregated_at":"null"}').all()


def test_a_time_that_says_null_does_not_hide_an_undocumented_field():
    members = world(3)
    members["extra"] = pd.array(
        ['{"aggregated_at":"null","new":1}', '{"new":1,"successfully_aggregated_at":"null"}', None],
        dtype="string[pyarrow]",
    )
    counts = analysis.findings(members).attrs["counts"]
    assert counts["text-says-null"] == counts["fields-undocumented"] == 2


def test_every_defect_of_the_simulator_has_its_line():
    assert set(PLANTED) | {"time_text_null", "connected_without_success"} == set(DEFECTS_OF_RECORDS)
