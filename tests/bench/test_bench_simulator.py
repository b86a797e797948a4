"""How fast the simulator is: replies a second on one core, and members aged a second."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from mxlab.simulator import Parameters, World

pytestmark = pytest.mark.bench

USERS = 12_000
THREE_EACH = '--set=members_per_user={"3": 1}'


class Caller(asyncio.Protocol):
    """One kept-alive connection that sends the next request as soon as a reply is whole, and parses nothing."""

    def __init__(self, requests: Iterator[bytes], done: asyncio.Future) -> None:
        self.requests, self.done, self.missing, self.replies = requests, done, 0, 0

    def connection_made(self, transport):
        self.transport = transport
        self.send()

    def send(self):
        request = next(self.requests, None)
        if request is None:
            self.transport.close()
            self.done.set_result(self.replies)
        else:
            self.transport.write(request)

    def data_received(self, data):
        if not self.missing:
            head, _, _ = data.partition(b"\r\n\r\n")
            assert data.startswith(b"HTTP/1.1 200"), data[:200]
            self.missing = len(head) + 4 + int(head.partition(b"Content-Length: ")[2].split(b"\r")[0])
        self.missing -= len(data)
        if not self.missing:
            self.replies += 1
            self.send()


def cpu_seconds(pid: int) -> float:
    """What a process has used of a core so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def replies_a_second(
    port: int, pid: int, requests: list[bytes], connections: int = 32
) -> tuple[float, float]:
    """Replies by the second of the server's core, and by the second on the wall."""
    loop = asyncio.get_running_loop()
    ends, pending = [loop.create_future() for _ in range(connections)], iter(requests)
    begun, used = time.perf_counter(), cpu_seconds(pid)
    for end in ends:
        await loop.create_connection(lambda end=end: Caller(pending, end), "127.0.0.1", port)
    replies = sum(await asyncio.gather(*ends))
    return replies / (cpu_seconds(pid) - used), replies / (time.perf_counter() - begun)


def test_at_least_4000_aggregate_all_a_second_on_one_core_with_3_members_each():
    command = [
        sys.executable,
        "-m",
        "mxlab.simulator.server",
        f"--users={USERS}",
        "--seed=7",
        THREE_EACH,
        "--until-eof",
    ]
    command += ["--set=not_pfm_share=0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        facts = json.loads(server.stdout.readline())
        port = int(facts["base_url"].rpartition(":")[2])

        async def measure():
            async with aiohttp.ClientSession(
                facts["base_url"], headers={"MXLAB-Control-Key": facts["control_key"]}
            ) as control:
                tokens = []
                for user in range(USERS):
                    asked = {"user_id": f"user-{user:07d}"}
                    async with control.post("/_control/sessions", json=asked) as reply:
                        tokens.append((await reply.json())["token"].encode())
            body = b'{"include_holdings":false,"include_transactions":false}'
            requests = [
                b"GET /members/aggregate HTTP/1.1\r\nHost: 127.0.0.1\r\nMD-SESSION-TOKEN: %s\r\n"
                b"Content-Type: application/vnd.mx.nexus.v1+json\r\nAccept: application/vnd.mx.nexus.v1+json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (token, len(body), body)
                for token in tokens
            ]
            first = [await replies_a_second(port, server.pid, requests[part::3]) for part in range(3)]
            return sorted(first)[1], await replies_a_second(port, server.pid, requests)

        first, again = asyncio.Runner().run(measure())
        server.stdin.close()
    print(f"\naggregate-all: {first[0]:.0f} first calls a second of one core ({first[1]:.0f} on the wall)")
    print(f"absorbed calls: {again[0]:.0f} ({again[1]:.0f})")
    assert first[0] >= 4_000


def test_a_world_ages_a_million_members_by_a_day_in_under_20_seconds():
    parameters = Parameters(users=333_334, seed=7, members_per_user={3: 1})
    world = World(parameters)
    begun = time.process_time()
    world.advance(parameters.epoch)
    derived = time.process_time()
    world.advance(parameters.epoch + 86_400)
    aged = time.process_time()
    members = parameters.users * 3
    print(f"\n{members} members: derived in {derived - begun:.1f} s, aged by a day in {aged - derived:.1f} s")
    assert sum(1 for _ in world.jobs(parameters.epoch + 86_400)) > 0.5 * members
    assert aged - begun < 20
