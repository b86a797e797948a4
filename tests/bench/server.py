"""A server that answers every request with the documented three-member reply, as fast as it can.

``python server.py`` prints its port and serves until standard input ends. ``--delay MEAN SIGMA`` makes replies
log-normal in time.
"""

import asyncio
import json
import math
import random
import sys

import uvloop

MEMBER = {
    "aggregated_at": "2016-10-13T18:07:57.000Z",
    "background_aggregation_is_disabled": False,
    "connection_status": "CONNECTED",
    "external_guid": None,
    "guid": "MBR-7c6f361b-e582-15b6-60c0-358f12466b4b",
    "institution_code": "chase",
    "institution_guid": "INS-1572a04c-912b-59bf-5841-332c7dfafaef",
    "is_being_aggregated": False,
    "is_managed_by_user": False,
    "is_oauth": False,
    "is_user_created": True,
    "most_recent_job_guid": "JOB-d6bb804b-6d12-44f1-b0ad-403441c03372",
    "metadata": '\\"credentials_last_refreshed_at\\": \\"2015-10-15\\"',
    "name": "Chase Bank",
    "successfully_aggregated_at": "2016-10-13T17:57:38.000Z",
    "use_cases": ["PFM"],
    "user_guid": "USR-fa7537f3-48aa-a683-a02a-b18940482f54",
}
BODY = json.dumps({"members": [{**MEMBER, "guid": MEMBER["guid"][:-1] + str(i)} for i in range(3)]}).encode()
REPLY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.mx.nexus.v1+json\r\nContent-Length: %d\r\n\r\n"
    % len(BODY)
) + BODY


class Fast(asyncio.Protocol):
    """Counts blank lines, not requests' sense: a GET of the benchmark ends with one, its body has none."""

    mean = sigma = 0.0
    rng = random.Random(1)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        for _ in range(data.count(b"\r\n\r\n")):
            if self.mean:
                mu = math.log(self.mean) - self.sigma**2 / 2
                asyncio.get_running_loop().call_later(self.rng.lognormvariate(mu, self.sigma), self.answer)
            else:
                self.transport.write(REPLY)

    def answer(self):
        if not self.transport.is_closing():
            self.transport.write(REPLY)


async def main():
    if "--delay" in sys.argv:
        Fast.mean, Fast.sigma = (float(text) for text in sys.argv[-2:])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Fast, "127.0.0.1", 0, backlog=2048)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(main())
