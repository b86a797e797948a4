"""From SSO to a finished aggregation with nothing but aiohttp: base URL in, the statuses of the members out."""

import asyncio
import json
import sys
from http import HTTPStatus

import aiohttp

TYPE = "application/vnd.mx.nexus.v1+json"


async def play(base_url, user_id, look_every):
    async with aiohttp.ClientSession(base_url, headers={"Accept": TYPE, "Content-Type": TYPE}) as http:

        async def ask(method, path, header, value, body=None):
            data = None if body is None else json.dumps(body)
            async with http.request(method, path, headers={header: value}, data=data) as reply:
                assert reply.status == HTTPStatus.OK, await reply.text()
                return await reply.json(content_type=None)

        found = await ask("GET", f"/sim/users/{user_id}/api_token", "MD-API-KEY", "simulated-api-key")
        skip = {"session": {"skip_aggregation": True}}
        made = await ask("POST", "/sessions", "MD-API-TOKEN", found["api_token"]["token"], skip)
        session = ("MD-SESSION-TOKEN", made["session"]["token"])
        before = (await ask("GET", "/members", *session))["members"]
        flags = {"include_holdings": False, "include_transactions": False}
        members = (await ask("GET", "/members/aggregate", *session, flags))["members"]
        assert [member["guid"] for member in members] == [member["guid"] for member in before]
        while any(member["is_being_aggregated"] for member in members):
            await asyncio.sleep(look_every)
            members = [
                (await ask("GET", f"/members/{member['guid']}", *session))["member"] for member in members
            ]
        jobs = [await ask("GET", f"/jobs/{member['most_recent_job_guid']}", *session) for member in members]
        return [
            [member["connection_status"], one["job"]["status_name"]]
            for member, one in zip(members, jobs, strict=True)
        ]


if __name__ == "__main__":
    print(json.dumps(asyncio.Runner().run(play(sys.argv[1], sys.argv[2], float(sys.argv[3])))))
