"""The world over HTTP: the numbered facts of sessions, replies, pages and refusals; the control path; the process."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time

import aiohttp
import pytest

from mxlab.errors import ConfigError
from mxlab.nexus.status import STATUSES
from mxlab.simulator import Parameters, World
from mxlab.simulator.defects import DEFECTS
from mxlab.simulator.parameters import DAY, HOUR, MINUTE
from mxlab.simulator.server import API_KEY, serve

DOCUMENTED = [
    "aggregated_at", "background_aggregation_is_disabled", "connection_status", "external_guid", "guid",
    "institution_code", "institution_guid", "is_being_aggregated", "is_managed_by_user", "is_oauth",
    "is_user_created", "most_recent_job_guid", "metadata", "name", "successfully_aggregated_at", "use_cases",
    "user_guid",
]  # fmt: skip
EPOCH = Parameters().epoch


def small(**figures):
    """A few users, all of whose members can be asked for without a surprise."""
    return Parameters(
        **({"users": 40, "seed": 5, "not_pfm_share": 0.0, "members_per_user": {3: 1.0}} | figures)
    )


async def test_fact_01_an_api_token_is_used_once(served):
    async with served(small()) as api:
        token = await api.api_token(3)
        headers = {"MD-API-TOKEN": token}
        body = {"session": {"skip_aggregation": True}}
        assert (await api.call("POST", "/sessions", headers=headers, json=body))[0] == 200
        assert (await api.call("POST", "/sessions", headers=headers, json=body))[0] == 401


async def test_fact_01_an_api_token_expires_after_ten_minutes(served):
    async with served(small()) as api:
        for age, expected in ((10 * MINUTE - 1, 200), (10 * MINUTE, 401)):
            token = await api.api_token()
            api.now += age
            status, _, _ = await api.call("POST", "/sessions", headers={"MD-API-TOKEN": token}, data=b"{}")
            assert status == expected


async def test_fact_01_a_wrong_key_is_401_and_an_unknown_user_404(served):
    async with served(small()) as api:
        path = "/sim/users/user-0000000/api_token"
        for suffix in ("", ".json"):
            status, body, headers = await api.get(path + suffix, headers={"MD-API-KEY": API_KEY})
            assert status == 200
            assert list(body) == ["api_token"]
            assert headers["Content-Type"] == "application/vnd.moneydesktop.sso.v3+json"
        assert (await api.get(path, headers={"MD-API-KEY": "another"}))[0] == 401
        assert (await api.get(path))[0] == 401
        for unknown in (
            "/sim/users/user-0000040/api_token",
            "/sim/users/nobody/api_token",
            path.replace("sim", "x"),
        ):
            assert (await api.get(unknown, headers={"MD-API-KEY": API_KEY}))[0] == 404


async def test_fact_02_a_session_token_has_86_characters_and_starts_everything_unless_told_not_to(served):
    async with served(small()) as api:
        token = await api.session(1)
        assert re.fullmatch(r"[A-Za-z0-9_-]{86}", token)
        before = (await api.get("/members", token))[1]["members"]
        token = await api.session(1, body=b"")
        after = (await api.get("/members", token))[1]["members"]
        moved = [new["guid"] for old, new in zip(before, after, strict=True) if old != new]
        assert moved
        api.now += HOUR
        token = await api.session(2, body=b'{"session":{"skip_aggregation":false}}')
        assert any(
            member["is_being_aggregated"] for member in (await api.get("/members", token))[1]["members"]
        )


async def test_fact_03_a_session_lives_30_minutes_from_its_last_call_then_4011(served):
    async with served(small()) as api:
        token = await api.session()
        for _ in range(4):
            api.now += 30 * MINUTE - 1
            assert (await api.get("/members", token))[0] == 200
        api.now += 30 * MINUTE
        status, body, _ = await api.get("/members", token)
        assert status == 401
        assert body["error"]["code"] == 4011
        assert isinstance(body["error"]["message"], str)
        assert (await api.get("/members", "never-issued"))[0] == 401
        assert (await api.get("/members"))[0] == 401


async def test_fact_03_the_http_status_of_4011_and_the_envelope_are_switches(served):
    async with served(small(expired_status_code=403, error_envelope="flat")) as api:
        token = await api.session()
        api.now += HOUR
        status, body, _ = await api.get("/members", token)
        assert (status, body["code"]) == (403, 4011)


async def test_fact_04_another_users_guids_are_404(served):
    async with served(small()) as api:
        mine, other = await api.session(1), await api.session(2)
        member = (await api.get("/members", other))[1]["members"][0]
        for path in (
            f"/members/{member['guid']}",
            f"/members/{member['guid']}/aggregate",
            "/members/MBR-1",
            "/jobs/JOB-1",
        ):
            assert (await api.get(path, mine))[0] == 404
        job = member["most_recent_job_guid"]
        assert (await api.get(f"/jobs/{job}", other))[0] == 200
        assert (await api.get(f"/jobs/{job}", mine))[0] == 404
        assert (await api.get(f"/members/{member['guid']}", other))[1]["member"] == member


@pytest.mark.parametrize("path", ["/members/aggregate", "/members/refresh", "/members/refresh.json"])
async def test_fact_06_aggregate_all_answers_200_with_members_in_the_vendors_type(served, path):
    async with served(small()) as api:
        token = await api.session()
        asked = {"include_holdings": False, "include_transactions": False}
        status, body, headers = await api.get(path, token, json=asked)
        assert status == 200
        assert list(body) == ["members"]
        assert headers["Content-Type"] == "application/vnd.mx.nexus.v1+json"
        assert [list(member) for member in body["members"]] == [DOCUMENTED] * 3
        begun = [job for job in api.world.jobs(api.now) if job.requested_at == EPOCH]
        assert begun
        assert not any(job.holdings or job.transactions for job in begun)


async def test_fact_06_flags_come_in_the_body_or_the_query_and_default_to_true(served):
    async with served(small(users=60)) as api:
        cases = [
            ("", None, (True, True)),
            ("", {"include_holdings": False}, (False, True)),
            ("?include_transactions=false", None, (True, False)),
            ("?include_holdings=false", {"include_holdings": True}, (True, True)),
        ]
        for user, (query, body, expected) in enumerate(cases):
            token = await api.session(user)
            options = {} if body is None else {"json": body}
            assert (await api.get(f"/members/refresh{query}", token, **options))[0] == 200
            flags = {
                (j.holdings, j.transactions)
                for j in api.world.jobs(api.now)
                if j.member.user == user and j.requested_at == EPOCH
            }
            assert flags == {expected}


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"include_holdings":1}', b'{"include_transactions":null}', b"\xff"]
)
async def test_fact_06_a_body_that_is_not_two_booleans_is_400_and_starts_nothing(served, body):
    async with served(small()) as api:
        status, error, _ = await api.get("/members/aggregate", await api.session(), data=body)
        assert (status, error["error"]["code"]) == (400, 4001)
        assert not [job for job in api.world.jobs(api.now) if job.requested_at == EPOCH]


async def test_fact_06_one_member_can_be_aggregated_alone(served):
    async with served(small()) as api:
        token = await api.session()
        members = (await api.get("/members", token))[1]["members"]
        startable = next(
            m for m in members if m["connection_status"] == "CONNECTED" and not m["is_being_aggregated"]
        )
        api.now += 3 * HOUR
        token = await api.session()
        for verb in ("aggregate", "refresh"):
            status, body, _ = await api.get(f"/members/{startable['guid']}/{verb}", token)
            assert (status, list(body)) == (200, ["member"])
            assert body["member"]["is_being_aggregated"]
        jobs = {
            m["guid"]: m["most_recent_job_guid"] for m in (await api.get("/members", token))[1]["members"]
        }
        assert sum(jobs[m["guid"]] != m["most_recent_job_guid"] for m in members) >= 1


async def test_fact_07_the_reply_is_the_state_at_kick_off(served):
    async with served(small()) as api:
        for user in range(10):
            token = await api.session(user)
            before = {m["guid"]: m for m in (await api.get("/members", token))[1]["members"]}
            for member in (await api.get("/members/aggregate", token))[1]["members"]:
                old = before[member["guid"]]
                assert member["successfully_aggregated_at"] == old["successfully_aggregated_at"]
                if (
                    member["most_recent_job_guid"] != old["most_recent_job_guid"]
                    and member["is_being_aggregated"]
                ):
                    assert member["aggregated_at"] == "2026-01-01T00:00:00.000Z"


@pytest.mark.parametrize("body", ["listed", "omitted"])
async def test_fact_08_what_a_throttled_member_looks_like_is_a_switch(served, body):
    async with served(small(throttled_body=body)) as api:
        token = await api.session()
        first = (await api.get("/members/aggregate", token))[1]["members"]
        api.now += 5 * MINUTE
        before = (await api.get("/members", token))[1]["members"]
        again = (await api.get("/members/aggregate", token))[1]["members"]
        settled = [
            m for m in before if m["connection_status"] == "CONNECTED" and not m["is_being_aggregated"]
        ]
        assert first
        assert settled
        assert all(m in again for m in settled) == (body == "listed")


async def test_fact_10_a_member_without_pfm_forbids_the_whole_call_or_only_if_all_lack_it(served):
    figures = {"users": 60, "not_pfm_share": 0.3}
    for mode in ("whole_call", "only_if_all"):
        async with served(small(forbidden=mode, **figures)) as api:
            seen = set()
            for user in range(60):
                token = await api.session(user)
                members = (await api.get("/members", token))[1]["members"]
                lack = sum("PFM" not in m["use_cases"] for m in members)
                status, _, _ = await api.get("/members/aggregate", token)
                assert (status == 403) == (lack == 3 or (mode == "whole_call" and lack > 0))
                seen.add((lack, status))
                if status == 200:
                    after = (await api.get("/members", token))[1]["members"]
                    barred = [m["guid"] for m in members if "PFM" not in m["use_cases"]]
                    assert all(m in members for m in after if m["guid"] in barred)
            assert {status for _, status in seen} == {200, 403}


async def test_fact_11_each_get_counts_and_the_second_starts_nothing(served):
    async with served(small()) as api:
        token = await api.session(4)
        first = (await api.get("/members/aggregate", token))[1]
        assert (await api.get("/members/aggregate", token))[1] == first
        _, arrivals, _ = await api.control("GET", "arrivals")
        assert arrivals["aggregate_by_user"] == {"user-0000004": 2}
        assert arrivals["acted_by_user"] == {"user-0000004": 1}


async def test_fact_14_and_17_ids_messages_and_revisions_show_on_demand(served):
    parameters = small(users=1_500, undocumented_fields=True)
    async with served(parameters) as api:
        seen = set()
        for user in range(1_500):
            for record in map(
                json.loads, [api.nexus._records.member(m, EPOCH) for m in api.world.members(user, EPOCH)]
            ):
                status = record["connection_status"]
                assert list(record)[:17] == DOCUMENTED
                assert record["connection_status_id"] == (STATUSES[status].id if status else None)
                assert record["is_manual"] == (status is None)
                assert (record["connection_status_message"] is None) == (status in {None, "PENDING"})
                assert record["revision"] >= 0
                seen.add(status)
        assert seen == {*STATUSES, None}


@pytest.mark.parametrize("kind", sorted(DEFECTS))
async def test_fact_18_odd_and_wrong_records_are_planted_each_in_one_way(served, kind):
    figures = {"users": 60, "defect_share": 0.2, "defect_kinds": (kind,)}
    calm = World(small(users=60, scenarios=("calm",)))
    async with served(small(scenarios=("defects",), **figures)) as api:
        sent = {}
        for user in range(60):
            token = await api.session(user)
            sent[user] = (await api.get("/members", token))[1]["members"]
        _, truth, _ = await api.control("GET", "truth")
        planted = {(one["user_id"], one["member_guid"]) for one in truth["defects"]}
        assert {one["kind"] for one in truth["defects"]} == {kind}
        assert 10 < len(planted) < 70
        for user, records in sent.items():
            clean = [member for member in api.world.members(user, EPOCH) if member.defect is None]
            named = [
                r
                for r in records
                if isinstance(r, dict) and r.get("guid") in {api.world.member_guid(m) for m in clean}
            ]
            assert len(named) == len(clean)
            for record in named:
                assert list(record) == DOCUMENTED
                for name in ("aggregated_at", "successfully_aggregated_at"):
                    assert record[name] is None or re.fullmatch(
                        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z", record[name]
                    )
    assert not any(member.defect for user in range(60) for member in calm.members(user, EPOCH))


async def test_fact_19_a_new_job_is_404_for_half_a_second_then_runs_then_is_done(served):
    async with served(small()) as api:
        token = await api.session()
        old = {m["most_recent_job_guid"] for m in (await api.get("/members", token))[1]["members"]}
        members = (await api.get("/members/aggregate", token))[1]["members"]
        new = next(m for m in members if m["is_being_aggregated"] and m["most_recent_job_guid"] not in old)
        path = f"/jobs/{new['most_recent_job_guid']}"
        assert (await api.get(path, token))[0] == 404
        api.now += 0.5
        job = (await api.get(path, token))[1]["job"]
        assert (job["status"], job["status_name"], job["finished_at"]) == (1, "REQUESTED", None)
        assert (job["member_guid"], job["user_guid"]) == (new["guid"], new["user_guid"])
        api.now += 20 * MINUTE
        job = (await api.get(path, token))[1]["job"]
        true = next(one for one in api.world.truth(api.now)["jobs"] if one["job_guid"] == job["guid"])
        assert job["finished_at"] is not None or true["outcome"] == "CHALLENGED"
        assert job["status_name"] in {"COMPLETED", "CHALLENGED", "DENIED", "HALTED"}
        assert job["started_at"] == job["created_at"] == "2026-01-01T00:00:00.000Z"
        assert set(job) == {
            "guid", "member_guid", "institution_guid", "user_guid", "status", "status_name", "is_authenticated",
            "error_message", "error_message_code", "created_at", "started_at", "finished_at", "updated_at",
        }  # fmt: skip


async def test_fact_20_resume_is_405_unless_the_member_is_challenged(served):
    async with served(small(users=300)) as api:
        for user in range(300):
            members = api.world.members(user, EPOCH)
            challenged = next((m for m in members if m.status == "CHALLENGED"), None)
            other = next((m for m in members if m.status == "CONNECTED"), None)
            if challenged and other:
                break
        token = await api.session(user)
        path = "/members/{}/resume"
        assert (await api.call("PUT", path.format(api.world.member_guid(other)), token=token))[0] == 405
        status, body, _ = await api.call("PUT", path.format(api.world.member_guid(challenged)), token=token)
        assert (status, body["member"]["connection_status"], body["member"]["is_being_aggregated"]) == (
            200,
            "RESUMED",
            True,
        )


async def test_fact_20_every_refusal_has_a_code_and_a_message_and_every_reply_says_that_it_is_simulated(
    served,
):
    async with served(small()) as api:
        token = await api.session()
        for method, path, expected in (
            ("GET", "/nowhere", 404),
            ("POST", "/members", 405),
            ("PUT", "/members/aggregate", 405),
            ("DELETE", "/jobs/JOB-1", 405),
            ("POST", "/sessions", 401),
            ("GET", "/members/MBR-1", 404),
            ("GET", "/_control/truth", 404),
        ):
            status, body, headers = await api.call(method, path, token=token)
            assert status == expected, path
            assert set(body["error"]) == {"code", "message"}
            assert headers["MXLAB-Simulated"] == "true"
        assert (await api.get("/members", token))[2]["MXLAB-Simulated"] == "true"
        reader, writer = await asyncio.open_connection(api.http._base_url.host, api.http._base_url.port)
        writer.write(b"this is not HTTP\r\n\r\n")
        assert b"MXLAB-Simulated: true" in await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_fact_21_pages_hold_25_unless_10_to_1000_are_asked_for(served):
    async with served(small(members_per_user={60: 1.0}, users=2)) as api:
        token = await api.session()
        every = [m["guid"] for m in (await api.get("/members?records_per_page=1000", token))[1]["members"]]
        assert len(set(every)) == 60
        for query, got in {
            "": every[:25],
            "?page=1": every[:25],
            "?page=3": every[50:],
            "?page=4": [],
            "?page=0": every[:25],
            "?page=x": every[:25],
            "?records_per_page=9": every[:25],
            "?records_per_page=1001": every[:25],
            "?records_per_page=-5": every[:25],
            "?records_per_page=10&page=6": every[50:],
            "?records_per_page=10&page=2": every[10:20],
        }.items():
            status, body, _ = await api.get(f"/members{query}", token)
            assert status == 200
            assert list(body) == ["members"]
            assert [m["guid"] for m in body["members"]] == got, query
        assert len((await api.get("/members/aggregate", token))[1]["members"]) == 60


async def test_fact_21_the_block_the_root_and_paging_at_all_are_switches(served):
    sixty = {"members_per_user": {60: 1.0}, "users": 2}
    async with served(small(pagination_block="pagination_data", **sixty)) as api:
        body = (await api.get("/members?page=3", await api.session()))[1]
        assert body["pagination_data"] == {
            "current_page": 3, "records_on_current_page": 10, "total_pages": 3, "total_records_found": 60,
        }  # fmt: skip
    async with served(small(pagination_block="pagination", **sixty)) as api:
        body = (await api.get("/members?records_per_page=40", await api.session()))[1]
        assert body["pagination"] == {
            "current_page": 1,
            "per_page": 40,
            "total_entries": 60,
            "total_pages": 2,
        }
    async with served(small(pages=False, list_root="member", **sixty)) as api:
        body = (await api.get("/members?page=2", await api.session()))[1]
        assert len(body["member"]) == 60


async def test_a_user_without_members_has_an_empty_list(served):
    async with served(small(members_per_user={0: 1.0}, pagination_block="pagination")) as api:
        token = await api.session()
        assert (await api.get("/members/aggregate", token))[1] == {"members": []}
        assert (await api.get("/members", token))[1]["pagination"]["total_pages"] == 0


async def test_whole_seconds_only(served):
    async with served(small()) as api:
        api.now += 12 * HOUR + 0.987
        token = await api.session()
        members = (await api.get("/members/aggregate", token))[1]["members"]
        times = [
            m[name] for m in members for name in ("aggregated_at", "successfully_aggregated_at") if m[name]
        ]
        assert times
        assert all(text.endswith(".000Z") for text in times)


async def test_arrivals_count_what_came_in_by_endpoint_and_user_and_what_was_refused(served):
    async with served(small()) as api:
        token = await api.session(3)
        await asyncio.gather(*(api.get("/members/aggregate", token) for _ in range(5)))
        guid = (await api.get("/members", token))[1]["members"][0]["guid"]
        await api.get(f"/members/{guid}", token)
        await api.get("/members", "expired")
        await api.get("/jobs/JOB-1", token)
        status, arrivals, headers = await api.control("GET", "arrivals")
        assert status == 200
        assert headers["MXLAB-Simulated"] == "true"
        assert {name: n for name, n in arrivals["by_endpoint"].items() if n} == {
            "api_token": 1, "create_session": 1, "aggregate_all": 5, "list_members": 2, "read_member": 1, "read_job": 1,
        }  # fmt: skip
        assert arrivals["aggregate_by_user"] == {"user-0000003": 5}
        assert arrivals["refused_by_endpoint"] == {"list_members": 1, "read_job": 1}
        assert arrivals["total"] == 11
        assert 1 <= arrivals["most_in_flight"] <= 5


async def test_requests_in_flight_are_counted_while_they_wait(served):
    async with served(small()) as api:
        token = await api.session()
        assert (await api.control("POST", "faults", json={"latency_seconds": 0.4, "latency_sigma": 0.0}))[
            0
        ] == 200
        await asyncio.gather(*(api.get("/members", token) for _ in range(30)))
        assert (await api.control("GET", "arrivals"))[1]["most_in_flight"] == 30


async def test_the_control_path_needs_its_key_and_mints_sessions(served):
    async with served(small()) as api:
        for headers in ({}, {"MXLAB-Control-Key": "wrong"}, {"MXLAB-Control-Key": "ä"}):
            assert (await api.get("/_control/arrivals", headers=headers))[0] == 404
        status, body, _ = await api.control("POST", "sessions", json={"user_id": "user-0000002"})
        assert status == 200
        member = (await api.get("/members", body["token"]))[1]["members"][0]
        assert member["user_guid"] == api.world.guids.make("USR", 2)
        for method, what, asked, expected in (
            ("POST", "sessions", {"user_id": "user-9"}, 404),
            ("POST", "sessions", {}, 404),
            ("GET", "nothing", {}, 404),
            ("POST", "faults", {"rates": {"close": -1}}, 400),
            ("POST", "faults", {"rates": {"clos": 0.1}}, 400),
            ("POST", "faults", [], 400),
        ):
            assert (await api.control(method, what, json=asked))[0] == expected
        assert (await api.control("GET", "arrivals"))[1]["total"] == 1


async def test_the_truth_has_every_job_of_a_session_with_its_true_end(served):
    async with served(small(scenarios=("slow_bank",))) as api:
        token = await api.session(6)
        members = (await api.get("/members/aggregate", token))[1]["members"]
        begun = {m["most_recent_job_guid"] for m in members if m["is_being_aggregated"]}
        _, truth, _ = await api.control("GET", "truth")
        running = [job for job in truth["jobs"] if job["job_guid"] in begun]
        assert len(running) == len(begun) > 0
        assert all(job["finished_at"] is None and job["outcome"] is None for job in running)
        api.now += HOUR
        token = await api.session(6)
        after = {m["guid"]: m for m in (await api.get("/members", token))[1]["members"]}
        _, truth, _ = await api.control("GET", "truth")
        for job in truth["jobs"]:
            if job["job_guid"] in begun and not after[job["member_guid"]]["is_being_aggregated"]:
                assert job["user_id"] == "user-0000006"
                assert after[job["member_guid"]]["connection_status"] == job["outcome"]
                assert job["finished_at"] - job["started_at"] == pytest.approx(
                    job["duration_seconds"], abs=1e-5
                )
        assert [event["scenario"] for event in truth["planted"]] == ["slow_bank"]


# The process


def run(*options, **pipes):
    command = [sys.executable, "-m", "mxlab.simulator.server", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **pipes)


async def simulated_time(facts):
    """The simulation's time as a caller computes it and as the truth of a kick-off shows it."""
    real, simulated, speed = map(float, facts["clock"].split("/"))
    control = {"MXLAB-Control-Key": facts["control_key"]}
    async with aiohttp.ClientSession(facts["base_url"]) as http:
        async with http.post(
            "/_control/sessions", headers=control, json={"user_id": "user-0000000"}
        ) as reply:
            token = (await reply.json())["token"]
        low = simulated + (time.time() - real) * speed
        async with http.get("/members/aggregate", headers={"MD-SESSION-TOKEN": token}) as reply:
            assert reply.status == 200
        high = simulated + (time.time() - real) * speed
        async with http.get("/_control/truth", headers=control) as reply:
            jobs = (await reply.json())["jobs"]
    return low, max(job["requested_at"] for job in jobs), high


async def test_the_process_announces_itself_keeps_its_clock_and_ends_with_its_parent():
    figures = [
        '--set=members_per_user={"3": 1}',
        "--set=not_pfm_share=0",
        '--set=status_mix={"CONNECTED": 1}',
    ]
    figures += ["--set=throttle_seconds=0"]
    with run(
        "--users=5", "--seed=3", "--speed=50", "--epoch=1e9", "--until-eof", *figures, stdin=subprocess.PIPE
    ) as process:
        facts = json.loads(process.stdout.readline())
        assert set(facts) == {"base_url", "clock", "client_id", "control_key", "users", "seed"}
        assert facts["base_url"].startswith("http://127.0.0.1:")
        assert (facts["users"], facts["seed"], facts["client_id"]) == (5, 3, "sim")
        assert facts["clock"].split("/")[1:] == ["1000000000.0", "50.0"]
        low, requested, high = await simulated_time(facts)
        assert low <= requested <= high
        process.stdin.close()
        assert process.wait(5) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_process_ends_quietly_on_a_signal(name):
    with run("--users=5") as process:
        process.stdout.readline()
        process.send_signal(getattr(signal, name))
        assert process.wait(5) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scenario=slow_bnak"], ["slow_bnak", "slow_bank"]),
        (["--set=failure_share=-1"], ["failure_share", "negative"]),
        (["--set=failure_shape=1"], ["failure_shape", "failure_share"]),
        (["--set=failure_share=x"], ["failure_share", "not JSON"]),
        (["--faults", '{"rates":{"clsoe":1}}'], ["clsoe", "did you mean 'close'"]),
        (["--faults", "[]"], ["faults", "object"]),
        (["--users=-1"], ["users", "negative"]),
        (["--speed=0"], ["speed", "above 0"]),
        (["--port=70000"], ["port", "70000"]),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(options, words, capsys):
    from mxlab.simulator.server import main

    assert main(options) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert all(word in told.err for word in words), told.err


def test_a_port_in_use_is_one_clear_line_and_exit_status_2():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with run(f"--port={port}") as process:
            assert process.wait(10) == 2
            told = process.stderr.read().decode()
            assert process.stdout.read() == b""
    assert told.count("\n") == 1
    assert str(port) in told
    assert "--port" in told
    assert "Traceback" not in told


async def test_serve_can_be_awaited_in_process_and_stops_when_cancelled():
    facts = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(Parameters(users=3), speed=2.0, announce=facts.set_result))
    base_url = (await facts)["base_url"]
    async with aiohttp.ClientSession(base_url) as http, http.get("/members") as reply:
        assert reply.status == 401
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ConfigError):
        await serve(Parameters(users=3), speed=-1.0, announce=print)


async def test_a_day_of_simulated_time_passes_with_the_clock(served):
    async with served(small()) as api:
        before = (await api.get("/members", await api.session()))[1]["members"]
        api.now += DAY + HOUR
        after = {m["guid"]: m for m in (await api.get("/members", await api.session()))[1]["members"]}
        run_daily = [
            member
            for member in before
            if member["connection_status"] == "CONNECTED" and not member["background_aggregation_is_disabled"]
        ]
        assert run_daily
        for member in run_daily:
            assert after[member["guid"]]["aggregated_at"] > member["aggregated_at"]
