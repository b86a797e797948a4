"""F-30: a seeded schedule of all faults at once. What must hold of every run is checked by the fixture `run`."""

import random

import pytest

from faults.server import FaultServer, acting, after, close, cut, error, hang, reset, say

DEEDS = {
    "close": close,
    "reset": reset,
    "hang": hang,
    "acted, then closed": acting(close),
    "acted, then reset": acting(reset),
    "acted, then silent": acting(hang),
    "acted, then 500": acting(error(500)),
    "cut head": cut("head"),
    "cut body": cut("body"),
    "late": after(0.15),
    "429": error(429),
    "429 and when": error(429, also=["Retry-After: 4"]),
    "429 and nonsense": error(429, also=["Retry-After: soon"]),
    "503 and when": error(503, also=["Retry-After: 2"]),
    "500": error(500),
    "502": say(502, b"<html>bad gateway</html>", kind="text/html"),
    "401": error(401, 4011),
    "403": error(403, 4030),
    "409": error(409),
    "302": say(302, also=["Location: http://127.0.0.1:9/"]),
    "html": say(200, b"<html>log in</html>", kind="text/html"),
    "empty": say(200),
    "half a reply": say(200, b'{"members": [{"guid"'),
    "no members": say(200, b'{"members": []}'),
}


def scheduled(server, seed):
    """Each fault strikes in a window of its own, with a chance of its own, at one endpoint or any."""
    rng = random.Random(seed)
    storms = []
    for name in rng.sample(sorted(DEEDS), rng.randint(3, 8)):
        begins = rng.uniform(0, 0.5)
        endpoint = rng.choice([None, "aggregate_all", "list_members", "read_job"])
        storms.append(
            (begins, begins + rng.uniform(0.05, 0.6), rng.choice([0.05, 0.3, 0.9]), endpoint, DEEDS[name])
        )
    if rng.random() < 0.3:
        server.later(rng.uniform(0.1, 0.5), server.down)
        server.later(rng.uniform(0.6, 1.0), server.up)

    def fault(arrival):
        for begins, ends, chance, endpoint, deed in storms:
            if begins <= arrival.at < ends and endpoint in {None, arrival.endpoint} and rng.random() < chance:
                return deed
        return None

    return fault


async def survives(run, seed, users):
    with FaultServer(users=users, members=2, seed=seed, speed=60, bank_options={"throttled": 0.2}) as server:
        server.fault = scheduled(server, seed)
        source = server.source() if seed % 2 else None
        verb = "observe" if seed % 5 == 0 else "aggregate"
        done = await run(
            server,
            verb,
            source,
            all_arrive=False,
            reply_timeout_seconds=0.5,
            deadline_seconds=300.0,
            seed=seed,
        )
    coverage = done.coverage
    assert coverage.asked == users
    assert coverage.pending == 0


@pytest.mark.parametrize("seed", range(4))
async def test_f30_a_few_schedules_of_all_faults(run, seed):
    await survives(run, seed, 30)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
async def test_f30_many_schedules_of_all_faults(run, seed):
    """1,000 seeds of 100 users on the page; 99 here, since of 100 whose sessions have expired a run rightly stops."""
    await survives(run, seed, 99)
