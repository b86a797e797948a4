"""The API seen from outside: a plain script plays the flow, the documented samples come out, the description holds."""

import json
import subprocess
import sys
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import pytest

from mxlab.nexus.status import STATUSES
from mxlab.simulator import Parameters, World
from mxlab.simulator.defects import DEFECTS
from mxlab.simulator.records import Records

SCRIPT = Path(__file__).with_name("plain_flow.py")
RESUME = "/members/{member_guid}/resume"
DESCRIPTION = json.loads(files("mxlab.simulator").joinpath("openapi.json").read_text())


@pytest.fixture
def process():
    """A simulator in a process of its own: what it announced."""
    options = [
        "--users=50",
        "--seed=3",
        "--speed=200",
        "--until-eof",
        "--set=not_pfm_share=0",
        "--set=stuck_share=0",
    ]
    options += ['--set=status_mix={"CONNECTED": 1}', '--set=members_per_user={"3": 1}']
    command = [sys.executable, "-m", "mxlab.simulator.server", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        yield json.loads(running.stdout.readline())
        running.stdin.close()


def test_an_independent_script_of_40_lines_plays_the_whole_flow(process):
    lines = [line for line in SCRIPT.read_text().splitlines() if line.strip()]
    assert len(lines) <= 40
    assert not [line for line in lines if "mxlab" in line]
    played = subprocess.run(
        [sys.executable, str(SCRIPT), process["base_url"], "user-0000007", "0.02"],
        capture_output=True,
        check=True,
    )
    ends = json.loads(played.stdout)
    assert len(ends) == 3
    assert any(end == ["CONNECTED", "COMPLETED"] for end in ends)
    assert {status for status, _ in ends} <= set(STATUSES)


def at(text):
    return None if text is None else datetime.fromisoformat(text).timestamp()


#: Status, running, aggregated_at, successfully_aggregated_at, seconds between: the pairs of the documented samples.
SAMPLES = {
    "the endpoint's page": (
        "CONNECTED",
        False,
        "2016-10-13T18:07:57+00:00",
        "2016-10-13T17:57:38+00:00",
        -619,
    ),
    "a real client's fixture": (
        "CONNECTED",
        False,
        "2021-10-26T19:43:53+00:00",
        "2021-10-26T19:43:57+00:00",
        4,
    ),
    "guide, create": ("CREATED", False, None, None, None),
    "guide, verify": ("CREATED", True, None, None, None),
    "guide, read": ("CONNECTED", False, "2015-04-13T12:01:23-06:00", "2015-04-13T12:01:23-06:00", 0),
    "guide, aggregation": ("CONNECTED", False, "2020-05-07T22:01:00+00:00", "2020-05-07T22:01:25+00:00", 25),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_documented_samples_come_out_in_the_documented_form(sample):
    status, running, aggregated_at, succeeded_at, seconds = SAMPLES[sample]
    world = World(Parameters(users=1, seed=1, members_per_user={1: 1.0}, status_mix={"CREATED": 1.0}))
    (member,) = world.members(0, world.parameters.epoch)
    member.status, member.running = status, running
    member.aggregated_at, member.succeeded_at = at(aggregated_at), at(succeeded_at)
    record = json.loads(Records(world).member(member, world.parameters.epoch))
    assert record["connection_status"] == status
    assert record["is_being_aggregated"] is running
    assert record["most_recent_job_guid"].startswith("JOB-")
    if seconds is None:
        assert record["aggregated_at"] is record["successfully_aggregated_at"] is None
    else:
        assert at(record["aggregated_at"]) == at(aggregated_at)
        assert at(record["successfully_aggregated_at"]) - at(record["aggregated_at"]) == seconds


def test_the_page_s_record_is_reproduced_field_by_field_in_its_order_and_types():
    page = {
        "aggregated_at": str, "background_aggregation_is_disabled": bool, "connection_status": str,
        "external_guid": None, "guid": "MBR-", "institution_code": str, "institution_guid": "INS-",
        "is_being_aggregated": bool, "is_managed_by_user": bool, "is_oauth": bool, "is_user_created": bool,
        "most_recent_job_guid": "JOB-", "metadata": None, "name": str, "successfully_aggregated_at": str,
        "use_cases": list, "user_guid": "USR-",
    }  # fmt: skip
    world = World(Parameters(users=50, seed=1, status_mix={"CONNECTED": 1.0}))
    for user in range(50):
        for member in world.members(user, world.parameters.epoch):
            record = json.loads(Records(world).member(member, world.parameters.epoch))
            assert list(record) == list(page)
            for name, kind in page.items():
                value = record[name]
                if isinstance(kind, str):
                    assert len(value) == 40
                    assert value.startswith(kind)
                elif kind is None:
                    assert value is None or isinstance(value, str)
                else:
                    assert isinstance(value, kind)


def test_history_is_read_off_a_world_without_http_on_any_schedule():
    world = World(Parameters(users=30, seed=4))
    records, epoch = Records(world), world.parameters.epoch
    snapshots = [
        [json.loads(records.reply(user, epoch + day * 86_400))["members"] for user in range(30)]
        for day in range(60)
    ]
    latest = [max(m["aggregated_at"] or "" for members in day for m in members) for day in snapshots]
    assert latest == sorted(latest)
    assert len(set(latest)) == 60
    assert latest[-1] > "2026-02-28"


def test_the_samples_odd_forms_are_planted_on_demand():
    plain = {
        "aggregated_at": "2015-04-13T18:01:23.000Z",
        "successfully_aggregated_at": None,
        "metadata": None,
    }
    assert DEFECTS["time_with_offset"](plain, 0.0)[0]["aggregated_at"] == "2015-04-13T12:01:23-06:00"
    assert DEFECTS["time_with_utc_offset"](plain, 0.0)[0]["aggregated_at"] == "2015-04-13T18:01:23+00:00"
    assert DEFECTS["time_without_fraction"](plain, 0.0)[0]["aggregated_at"] == "2015-04-13T18:01:23Z"
    assert DEFECTS["time_text_null"](plain, 0.0)[0]["successfully_aggregated_at"] == "null"
    (unreadable,) = DEFECTS["metadata_unreadable"](plain, 0.0)
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(unreadable["metadata"])


def test_the_description_is_in_the_package_and_names_all_22_statuses():
    member = DESCRIPTION["components"]["schemas"]["Member"]
    assert set(member["properties"]["connection_status"]["enum"]) == {*STATUSES, None}
    assert len(member["properties"]) == 17


def conformance(process, description):
    """Run schemathesis' checks on every operation, with made-up and with real arguments; how many replies were 200."""
    schemathesis = pytest.importorskip("schemathesis")
    import hypothesis
    import requests
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    base_url, http = process["base_url"], requests.Session()
    control = {"MXLAB-Control-Key": process["control_key"]}
    key = {"MD-API-KEY": "simulated-api-key"}

    def session():
        """A new one, since at this speed a session lives nine seconds."""
        made = http.post(
            f"{base_url}/_control/sessions", headers=control, json={"user_id": "user-0000001"}, timeout=5
        )
        return {"MD-SESSION-TOKEN": made.json()["token"]}

    member = http.get(f"{base_url}/members", headers=session(), timeout=5).json()["members"][0]
    real = {
        "client_id": "sim", "user_id": "user-0000001", "member_guid": member["guid"],
        "job_guid": member["most_recent_job_guid"],
    }  # fmt: skip
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=base_url)
    answered = dict.fromkeys(description["paths"], 0)

    def api_token():
        got = http.get(f"{base_url}/sim/users/user-0000002/api_token", headers=key, timeout=5)
        return {"MD-API-TOKEN": got.json()["api_token"]["token"]}

    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(
            max_examples=40, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy(), truly=hypothesis.strategies.booleans())
        def conforms(case, truly):
            if truly:
                case.path_parameters = {name: real[name] for name in case.path_parameters or {}}
            headers = session() | key | (api_token() if truly and case.path == "/sessions" else {})
            by_state = (
                [positive_data_acceptance] if case.path == RESUME else []
            )  # a 405 of the member's, not the data's
            reply = case.call_and_validate(headers=headers, excluded_checks=by_state)
            answered[case.path] += reply.status_code == 200

        conforms()
    return answered


@pytest.mark.slow
def test_schemathesis_finds_nothing_against_the_description_and_finds_a_planted_lie(process):
    answered = conformance(process, DESCRIPTION)
    assert len(answered) == 11
    assert {path for path, count in answered.items() if not count} <= {RESUME}
    lie = json.loads(json.dumps(DESCRIPTION))
    lie["components"]["schemas"]["Member"]["properties"]["name"] = {"type": "integer"}
    with pytest.raises(BaseException, match=r"[Rr]esponse violates schema"):
        conformance(process, lie)
