"""A served world whose clock stands still until a test moves it."""

import contextlib
import json

import aiohttp
import pytest

from mxlab.simulator import World
from mxlab.simulator.server import API_KEY, Nexus, listening

NEXUS = "application/vnd.mx.nexus.v1+json"


class Api:
    """A caller of one served world; ``now`` is the simulation's time."""

    def __init__(self, world):
        self.world = world
        self.now = world.parameters.epoch
        self.nexus = Nexus(world, lambda: self.now)

    async def call(self, method, path, *, token=None, **options):
        """Status, parsed body and headers of one request."""
        headers = {"Content-Type": NEXUS, "Accept": NEXUS} | options.pop("headers", {})
        if token is not None:
            headers["MD-SESSION-TOKEN"] = token
        if "json" in options:
            options["data"] = json.dumps(options.pop("json")).encode()
        async with self.http.request(method, path, headers=headers, **options) as reply:
            body = await reply.read()
            return reply.status, json.loads(body) if body else None, reply.headers

    async def get(self, path, token=None, **options):
        return await self.call("GET", path, token=token, **options)

    async def api_token(self, user=0):
        _, body, _ = await self.get(
            f"/sim/users/{self.world.user_ids()[user]}/api_token", headers={"MD-API-KEY": API_KEY}
        )
        return body["api_token"]["token"]

    async def session(self, user=0, body=b'{"session":{"skip_aggregation":true}}'):
        """A session token, by the documented way."""
        token = await self.api_token(user)
        status, made, _ = await self.call("POST", "/sessions", headers={"MD-API-TOKEN": token}, data=body)
        assert status == 200, made
        return made["session"]["token"]

    async def control(self, method, what, **options):
        headers = {"MXLAB-Control-Key": self.nexus.control_key}
        return await self.call(method, f"/_control/{what}", headers=headers, **options)


@pytest.fixture
def served():
    """``async with served(Parameters(...)) as api``: the world over HTTP in this process."""

    @contextlib.asynccontextmanager
    async def serving(parameters):
        api = Api(World(parameters))
        async with (
            listening(api.nexus) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", auto_decompress=False) as http,
        ):
            api.http = http
            yield api

    return serving
