"""Server faults F-16, F-17, F-19 to F-26, F-28 and F-29: the second tier. F-15 is in `test_collection`.

The run's clock is fast, and users are as many as on the page where it says how many. What must hold of every run is
checked by the fixture `run`, as in the first tier.
"""

import json
import shutil
import socket
import ssl
import subprocess
from collections import Counter

import aiohttp
import pytest

from faults.conftest import all_are_collected
from faults.server import FaultServer, acting, drip, error, hang, reset, say, some
from mxlab.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


async def test_f16_replies_that_drip_end_at_the_timeout_and_slow_nobody_else(run):
    """50 users at a byte each 200 ms, beside 250 who are well; the timeout is 2 s."""
    p99 = {}
    for name, drips in {"calm": 0, "dripping": 50}.items():
        with FaultServer(users=300, latency=0.2) as server:
            server.fault = lambda a, n=drips: drip(0.2) if int(a.user.removeprefix("user-")) < n else None
            done = await run(server, "observe", attempts=1, reply_timeout_seconds=2.0)
        requests = done.snap.requests
        well = requests[requests["error"].isna()]
        assert done.coverage.answered == well["user"].nunique() == 300 - drips
        p99[name] = well["reply_seconds"].quantile(0.99)
    slow = requests[requests["error"].notna()]
    assert done.reasons == {"reply_timeout": 50}
    assert len(slow) == 50
    assert slow["reply_seconds"].between(1.0, 3.0).all()
    assert p99["dripping"] <= 1.2 * p99["calm"]


@pytest.mark.parametrize("acts", [False, True])
async def test_f17_a_server_that_never_answers_some_starves_nobody(run, acts):
    """200 sockets at once; as many users are well, and end before the silence of the others does."""
    silent = acting(hang) if acts else hang
    with FaultServer(users=400, speed=400) as server:
        server.fault = some(0.5, silent, endpoint="aggregate_all", nth=(1, 2))
        done = await run(server, reply_timeout_seconds=3.0)
    assert 170 < len(done.silenced) < 230
    assert server.most_at_once >= 150
    twice = {user for user, count in server.count("aggregate_all").items() if count == 2}
    if acts:
        assert twice == set()
        all_are_collected(done)
    else:
        assert twice == done.silenced == set(done.snap.failures["user"])
        assert done.reasons == {"start_not_cleared_up": len(twice)}
        assert done.coverage.answered == 400 - len(twice)
    ended = Counter()
    for each in server.arrivals:
        ended[each.user] = each.at
    assert sum(ended[user] < 3.0 for user in server.bank.users if user not in done.silenced) > 0.9 * (
        400 - len(done.silenced)
    )


PORTALS = {
    "portal": say(200, b"<html><form action=/login></html>", kind="text/html"),
    "no_type": say(200, b"<html>", kind="text/html; charset=utf-8"),
    "wrong_type": say(200, b'{"members": []}', kind="text/plain"),
}


@pytest.mark.parametrize("kind", PORTALS)
@pytest.mark.parametrize("endpoint", ["list_members", "aggregate_all"])
async def test_f19_what_is_not_of_nexus_is_kept_and_the_rest_is_collected(run, kind, endpoint):
    """5 % of users, at the first look, which is final, or at the start, which did nothing and is cleared up."""
    with FaultServer(users=400) as server:
        server.fault = some(0.05, PORTALS[kind], endpoint=endpoint)
        done = await run(server)
    met = done.snap.rejects["user"]
    assert 8 <= len(met) == met.nunique() <= 35
    assert set(done.snap.rejects["reason"]) == {"content_type"}
    if endpoint == "list_members":
        assert done.reasons == {"bad_reply_content_type": len(met)}
        assert set(done.snap.failures["user"]) == set(met)
        assert done.coverage.answered == 400 - len(met)
    else:
        all_are_collected(done)


ROTTEN = {
    "utf8": (b'{"guid": "MBR-bad", "name": "caf\xe9"}', "utf8"),
    "nan": (b'{"guid": "MBR-bad", "x": NaN}', "json"),
    "huge": (b'{"guid": "MBR-bad", "name": ' + b"9" * 40 + b"}", None),
    "deep": (b'{"guid": "MBR-bad", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "depth"),
    "surrogate": (b'{"guid": "MBR-bad", "name": "\\ud800"}', None),
    "time": (b'{"guid": "MBR-bad", "aggregated_at": "soon"}', None),
    "twice": (b'{"guid": "MBR-1", "guid": "MBR-bad", "name": 5}', None),  # the last counts
}


@pytest.mark.filterwarnings("ignore:schema_drift")
@pytest.mark.parametrize("kind", ROTTEN)
async def test_f20_one_rotten_record_costs_its_row_or_its_reply_and_no_other_users(run, kind):
    """×50 of 100: where the reply is JSON, only the record is lost; else its user, and what arrived is kept."""
    record, reason = ROTTEN[kind]

    async def rotten(call):
        _, value = call.server.outcome(call.arrival)
        good = json.dumps(value["members"]).encode()
        await call.say(200, b'{"members": [' + record + b", " + good[1:-1] + b"]}")

    with FaultServer(users=100, members=2) as server:
        bad = {f"user-{n}" for n in range(50)}
        server.fault = lambda a: rotten if a.endpoint == "list_members" and a.user in bad else None
        done = await run(server, "observe")
    assert sorted(done.snap.rejects["user"]) == sorted(bad)
    assert all(b"MBR-bad" in body for body in done.snap.rejects["body"])
    well = set(server.bank.users) - (set() if reason is None else bad)
    assert set(done.snap.members["user"]) == well
    assert sorted(done.snap.members["guid"]) == sorted(
        each.guid for user in well for each in server.bank.users[user]
    )
    assert done.coverage.answered == len(well)
    assert done.reasons == ({} if reason is None else {f"bad_reply_{reason}": 50})


async def test_f21_jobs_that_never_end_are_running_at_the_deadline(run):
    """3 % of members; 15 minutes of the run's clock in 4.5 s."""
    endless = {"seconds": lambda rng: 1e6 if rng.random() < 0.03 else rng.uniform(5, 60)}
    with FaultServer(users=150, members=2, speed=200, bank_options=endless) as server:
        done = await run(server)
    running = done.snap.members[done.snap.members["outcome"] == "running"]
    assert done.coverage.answered == 150
    assert set(running["guid"]) == {guid for guid, job in server.bank.jobs().items() if job.seconds > 1e5}
    assert 0 < len(running) < 0.1 * len(done.snap.members) == 30
    assert running["aggregation_seconds_high"].isna().all()
    assert running["aggregation_seconds_low"].between(860, 960).all()


async def test_f22_a_start_that_does_nothing_is_not_triggered_and_not_followed(run):
    """20 % of users have one member, and a start does nothing for it."""
    with FaultServer(users=400, members=1, bank_options={"throttled": 0.2}) as server:
        done = await run(server)
    idle = done.snap.members[done.snap.members["outcome"] == "not_triggered"]
    assert done.coverage.answered == 400
    assert 50 < len(idle) < 110
    assert set(done.snap.members["guid"]) - set(idle["guid"]) == set(server.bank.jobs())
    assert idle[["aggregation_seconds_low", "aggregation_seconds_high", "job_seconds"]].isna().all(axis=None)
    looks = server.count("list_members")
    assert {looks[user] for user in idle["user"]} == {
        2
    }  # before the start, and one that agrees with its reply


async def test_f23_members_that_come_and_go_while_followed_are_kept(run):
    """A third of users, of whom one member goes and another comes at the second look."""
    with FaultServer(users=100, members=3) as server:
        gone, come = {}, {}

        def fault(arrival):
            if arrival.endpoint == "list_members" and arrival.nth == 2 and server.bank.rng.random() < 0.3:
                members = server.bank.users[arrival.user]
                members.append(server.bank._made(1, 0.0)[0])
                gone[arrival.user], come[arrival.user] = members.pop(0).guid, members[-1].guid

        server.fault = fault
        done = await run(server)
    members = done.snap.members.astype({"user": str}).set_index("guid")
    counts = members["user"].value_counts()
    assert done.coverage.answered == 100
    assert len(gone) > 10
    assert {user for user, count in counts.items() if count == 4} == set(gone)
    assert (members.loc[list(gone.values()), "user"] == list(gone)).all()
    assert (members.loc[list(come.values()), "user"] == list(come)).all()
    assert set(members.loc[list(come.values()), "outcome"]) == {"not_triggered"}
    seen_at = members["seen_at"]
    assert (seen_at[list(gone.values())].array < seen_at[list(come.values())].array).all()


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
@pytest.mark.parametrize("acts", [False, True])
async def test_f24_a_servers_clock_that_is_wrong_changes_no_verdict(run, skew, acts):
    """The ``Date`` of its replies and the times of its records; a fifth of the starts are to be cleared up by reading."""
    lost = acting(reset) if acts else reset
    with FaultServer(users=100, skew=skew, fault=some(0.2, lost, endpoint="aggregate_all")) as server:
        done = await run(server)
    all_are_collected(done)
    assert len(done.silenced) > 10
    again = {user for user, count in server.count("aggregate_all").items() if count > 1}
    assert again == (set() if acts else done.silenced)


async def test_f25_a_name_that_cannot_be_resolved_for_a_while_loses_nobody(run, monkeypatch):
    """30 s of the run's clock; as it begins the server is out for 2 s, so that connections end and the name is asked for."""
    failed, back = [], []
    resolve = aiohttp.ThreadedResolver.resolve

    async def broken(self, host, *args, **known):
        if server.at_fault:
            failed.append(host)
            raise OSError("no such name")
        return await resolve(self, host, *args, **known)

    def begin():
        server.at_fault = True
        server.down()

    def end():
        server.at_fault = False
        back.append(server.elapsed)

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", broken)
    with FaultServer(users=50, speed=20) as server:
        server.at_fault = False
        server.later(0.4, begin)
        server.later(0.5, server.up)
        server.later(0.4 + 30 / 20, end)
        done = await run(server, base_url=server.url.replace("127.0.0.1", "localhost"), all_arrive=False)
    all_are_collected(done)
    assert failed
    assert "ConnectFailed" in set(done.snap.requests["error"].astype(str))
    assert (min(each.at for each in server.arrivals if each.at > back[0]) - back[0]) * 20 <= 10


async def test_f25_where_the_address_of_a_name_changes_the_run_follows_within_ten_seconds(run, monkeypatch):
    """The server moves to another port, which here is a part of the address that the name stands for."""
    looked_up = []

    async def resolved(_resolver, host, _port=0, family=socket.AF_INET):
        looked_up.append(server.elapsed)
        return [
            {
                "hostname": host,
                "host": "127.0.0.1",
                "port": server.port,
                "family": family,
                "proto": 0,
                "flags": 0,
            }
        ]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolved)

    moved = []

    def move():
        server.down()
        server.port = 0
        server.up()
        moved.append(server.elapsed)

    with FaultServer(users=50, speed=5) as server:
        server.later(0.5, move)
        url = server.url.replace("127.0.0.1", "localhost")
        done = await run(server, base_url=url, all_arrive=False)
    all_are_collected(done)
    assert (min(each.at for each in server.arrivals if each.at > moved[0]) - moved[0]) * 5 <= 10
    assert 1 < len(looked_up) < 30  # once for all that wait for it, not for each


@pytest.fixture
def certified(tmp_path):
    """``certified(name, from, until, digest)`` → a server's context, and the path of the authority that signed it."""
    tool = shutil.which("openssl")
    assert tool, "F-26 makes its certificates with the openssl command: install it"

    def openssl(*arguments):
        subprocess.run([tool, *map(str, arguments)], check=True, capture_output=True, cwd=tmp_path)

    def made(name, begins="20200101000000Z", ends="20491231000000Z", digest="sha256"):
        (tmp_path / "authority").mkdir()
        (tmp_path / "index.txt").touch()
        (tmp_path / "ca.cnf").write_text(
            "[ca]\ndefault_ca = own\n[own]\nnew_certs_dir = authority\ndatabase = index.txt\npolicy = any\n"
            f"rand_serial = yes\n[any]\ncommonName = supplied\n[host]\nsubjectAltName = {name}\n"
            "basicConstraints = critical,CA:false\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"
        )
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=authority", "-days", "9000",
                "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
        openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=bank",
            "-keyout",
            "key.pem",
            "-out",
            "asked.pem",
        )
        openssl("ca", "-batch", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-extensions", "host",
                "-startdate", begins, "-enddate", ends, "-md", digest, "-in", "asked.pem", "-out", "bank.pem")  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if digest == "sha1":
            context.set_ciphers("ALL:@SECLEVEL=0")  # for this server to offer it at all
        context.load_cert_chain(tmp_path / "bank.pem", tmp_path / "key.pem")
        return context, tmp_path / "ca.pem"

    return made


HERE = "IP:127.0.0.1"
UNTRUSTED = {
    "self_signed": ((HERE,), False),
    "wrong_host": (("DNS:example.com",), True),
    "expired": ((HERE, "20200101000000Z", "20200201000000Z"), True),
    "not_yet": ((HERE, "20480101000000Z"), True),
    "sha1": ((HERE, "20200101000000Z", "20491231000000Z", "sha1"), True),
}


@pytest.mark.parametrize("why", UNTRUSTED)
async def test_f26_a_server_that_is_not_who_it_should_be_gets_no_request(certified, run, why):
    """``self_signed`` is signed by an authority that nobody was told to trust."""
    given, is_trusted = UNTRUSTED[why]
    context, authority = certified(*given)
    with FaultServer(users=3, tls=context, speed=1000) as server:
        done = await run(server, ca_file=authority if is_trusted else "")
        assert server.arrivals == []
    assert done.reasons == {"connect_failed": 3}
    assert not done.snap.requests["left"].any()
    assert len(done.snap.requests) == 3 * 4


async def test_f26_b102_a_server_of_an_authority_that_is_named_is_asked(certified, run):
    context, authority = certified(HERE)
    with FaultServer(users=3, tls=context) as server:
        done = await run(server, ca_file=authority)
    assert done.coverage.answered == 3


@pytest.mark.parametrize(("allowed", "users", "speed"), [(40, 800, 20), (100, 4000, 20)])
async def test_f28_a_limit_of_requests_at_once_is_found_and_kept_to(run, allowed, users, speed):
    """100 an address against 1,000 asked, and 40 against 400. It settles within a tenth above."""
    most = Counter()

    def fault(arrival):
        second = int(arrival.at)
        most[second] = max(most[second], server.at_once)
        return error(429) if server.at_once > allowed else None

    with FaultServer(users=users, latency=0.05, speed=speed) as server:
        server.fault = fault
        done = await run(server, concurrency=10 * allowed)
    all_are_collected(done)
    refused = sum(each.status == 429 for each in server.arrivals)
    assert refused > 0
    assert len(server.arrivals) / (len(server.arrivals) - refused) <= 1.3
    assert allowed / 2 < max(count for second, count in most.items() if second >= 2) <= 1.1 * allowed, most


@pytest.mark.parametrize("idle", [10.0, 60.0])
async def test_f29_a_balancer_that_closes_idle_connections_costs_no_user_and_no_second_start(run, idle):
    """The page's own times, on a clock that runs true: polls every 15 to 120 s."""
    looks = {"first_look_seconds": 15.0, "longest_look_seconds": 120.0}
    jobs = {"seconds": lambda rng: rng.uniform(20, 100)}
    with FaultServer(users=200, speed=1, idle=idle, bank_options=jobs) as server:
        done = await run(server, all_arrive=False, **looks)
    sent_at = done.snap.requests.sort_values("sent_at").groupby("session")["sent_at"]
    all_are_collected(done)
    assert set(server.count("aggregate_all").values()) == {1}
    assert sent_at.diff().dt.total_seconds().max() > idle
    assert server.connections > server.most_at_once  # some were closed, and made anew
