"""Server faults F-16, F-17, F-19 to F-26, F-28 and F-29: the second tier. F-15 is in `test_collection`.

Users are fewer than on the page where it gives a number, and the run's clock is fast. What must hold of every run is
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

from faults.server import FaultServer, acting, drip, error, hang, reset, say, some
from mxlab import aio

pytestmark = pytest.mark.slow


async def test_f16_replies_that_drip_end_at_the_timeout_and_slow_nobody_else(run):
    """50 users at a byte each 200 ms on the page; 50 of 300 here, with a timeout of 2 s."""
    with FaultServer(users=300) as server:
        server.fault = lambda a: drip(0.2) if int(a.user.removeprefix("user-")) < 50 else None
        done = await run(server, "observe", attempts=1, reply_timeout_seconds=2.0)
    requests = done.snap.requests
    slow = requests[requests["error"].notna()]
    assert done.reasons == {"reply_timeout": 50}
    assert slow["reply_seconds"].between(1.9, 3.0).all()
    assert done.coverage.answered == 250
    assert requests.loc[requests["error"].isna(), "reply_seconds"].quantile(0.99) < 1.0


@pytest.mark.parametrize("acts", [False, True])
async def test_f17_a_server_that_never_answers_some_starves_nobody(run, acts):
    """200 sockets on the page; 100 here, half of the users."""
    silent = acting(hang) if acts else hang
    with FaultServer(users=200) as server:
        server.fault = some(0.5, silent, endpoint="aggregate_all", nth=(1, 2))
        done = await run(server, reply_timeout_seconds=1.0)
    twice = sum(count == 2 for count in server.count("aggregate_all").values())
    if acts:
        assert (done.coverage.answered, twice) == (200, 0)
    else:
        assert 70 < twice < 130
        assert done.reasons == {"start_not_cleared_up": twice}
        assert done.coverage.answered == 200 - twice


async def test_f19_a_captive_portal_in_between_is_kept_and_the_rest_is_collected(run):
    portal = say(200, b"<html><form action=/login></html>", kind="text/html")
    with FaultServer(users=400) as server:
        server.fault = some(0.05, portal, endpoint="list_members", nth=range(1, 100))
        done = await run(server)
    lost = done.reasons["bad_reply_content_type"]
    assert 8 <= lost <= 35
    assert done.coverage.answered == 400 - lost
    assert len(done.snap.rejects) == lost


ROTTEN = {
    "utf8": (b'{"guid": "MBR-bad", "name": "caf\xe9"}', "utf8"),
    "nan": (b'{"guid": "MBR-bad", "x": NaN}', "json"),
    "huge": (b'{"guid": "MBR-bad", "name": ' + b"9" * 40 + b"}", None),
    "deep": (b'{"guid": "MBR-bad", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "depth"),
    "surrogate": (b'{"guid": "MBR-bad", "name": "\\ud800"}', None),
    "time": (b'{"guid": "MBR-bad", "aggregated_at": "soon"}', None),
}


@pytest.mark.filterwarnings("ignore:schema_drift")
@pytest.mark.parametrize("kind", ROTTEN)
async def test_f20_one_rotten_record_costs_its_row_or_its_reply_and_no_other_users(run, kind):
    """×50 among users who are well: where the reply is JSON, only the record is lost."""
    record, reason = ROTTEN[kind]

    async def rotten(call):
        _, value = call.server.outcome(call.arrival)
        good = json.dumps(value["members"]).encode()
        await call.say(200, b'{"members": [' + record + b", " + good[1:-1] + b"]}")

    with FaultServer(users=150, members=2) as server:
        server.fault = lambda a: (
            rotten if a.endpoint == "list_members" and int(a.user.removeprefix("user-")) < 50 else None
        )
        done = await run(server, "observe")
    assert len(done.snap.rejects) == 50
    if reason is None:
        assert done.coverage.answered == 150
        assert len(done.snap.members) == 300
    else:
        assert done.reasons == {f"bad_reply_{reason}": 50}
        assert len(done.snap.members) == 200


async def test_f21_jobs_that_never_end_are_running_at_the_deadline(run):
    """3 % of members; 15 minutes of the run's clock in 4.5 s."""
    endless = {"seconds": lambda rng: 1e6 if rng.random() < 0.03 else rng.uniform(5, 60)}
    with FaultServer(users=150, members=2, speed=200, bank_options=endless) as server:
        done = await run(server)
    outcomes = Counter(done.snap.members["outcome"])
    running = done.snap.members[done.snap.members["outcome"] == "running"]
    assert done.coverage.answered == 150
    assert outcomes["running"] == sum(job.seconds > 1e5 for job in server.bank.jobs().values()) > 0
    assert running["aggregation_seconds_high"].isna().all()
    assert running["aggregation_seconds_low"].between(860, 960).all()


async def test_f22_a_start_that_does_nothing_is_not_triggered_and_not_followed(run):
    with FaultServer(users=200, members=2, bank_options={"throttled": 0.2}) as server:
        done = await run(server)
    outcomes = Counter(done.snap.members["outcome"])
    idle = done.snap.members[done.snap.members["outcome"] == "not_triggered"]
    assert outcomes["not_triggered"] == 400 - len(server.bank.jobs())
    assert idle[["aggregation_seconds_low", "aggregation_seconds_high", "job_seconds"]].isna().all(axis=None)
    assert done.calls_per_user < 12


async def test_f23_members_that_come_and_go_while_followed_are_kept(run):
    with FaultServer(users=100, members=3) as server:
        changed = set()

        def fault(arrival):
            if arrival.endpoint == "list_members" and arrival.nth == 2 and server.bank.rng.random() < 0.3:
                members = server.bank.users[arrival.user]
                changed.add(arrival.user)
                members.append(server.bank._made(1, 0.0)[0])
                del members[0]

        server.fault = fault
        done = await run(server)
    counts = done.snap.members["user"].value_counts()
    assert done.coverage.answered == 100
    assert len(changed) > 10
    assert {user for user, count in counts.items() if count == 4} == changed


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
async def test_f24_a_servers_clock_that_is_wrong_changes_no_verdict(run, skew):
    with FaultServer(users=100, skew=skew, fault=some(0.2, reset, endpoint="aggregate_all")) as server:
        done = await run(server)
    assert done.coverage.answered == 100
    assert set(done.acts.values()) == {1}


async def test_f25_a_name_that_cannot_be_resolved_for_a_while_loses_nobody(run, monkeypatch):
    """30 s on the page; the first ten lookups here."""
    failed = []
    resolve = aiohttp.ThreadedResolver.resolve

    async def broken(self, host, *args, **known):
        if len(failed) < 10:
            failed.append(host)
            raise OSError("no such name")
        return await resolve(self, host, *args, **known)

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", broken)
    with FaultServer(users=50, speed=20) as server:
        done = await run(server, base_url=server.url.replace("127.0.0.1", "localhost"), attempts=8)
    assert done.coverage.answered == 50
    assert len(failed) == 10
    assert "ConnectFailed" in set(done.snap.requests["error"].astype(str))


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

    def move():
        server.down()
        server.port = 0
        server.up()

    with FaultServer(users=50, speed=5) as server:
        server.later(0.5, move)
        url = server.url.replace("127.0.0.1", "localhost")
        done = await run(server, base_url=url, all_arrive=False)
    assert done.coverage.answered == 50
    assert set(done.acts.values()) == {1}
    assert min(each.at for each in server.arrivals if each.at > 0.6) < 0.5 + 10
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
async def test_f26_a_server_that_is_not_who_it_should_be_gets_no_request(certified, why):
    """``self_signed`` is signed by an authority that nobody was told to trust."""
    given, is_trusted = UNTRUSTED[why]
    context, authority = certified(*given)
    with FaultServer(users=3, tls=context, speed=1000) as server:
        settings = server.settings(ca_file=authority if is_trusted else "")
        snap = await aio.observe(server.tokens(), settings)
        assert server.arrivals == []
    assert dict(snap.coverage.reasons) == {"connect_failed": 3}
    assert not snap.requests["left"].any()


async def test_f26_b102_a_server_of_an_authority_that_is_named_is_asked(certified, run):
    context, authority = certified(HERE)
    with FaultServer(users=3, tls=context) as server:
        done = await run(server, ca_file=authority)
    assert done.coverage.answered == 3


async def test_f28_a_limit_of_requests_at_once_is_found_and_kept_to(run):
    """100 an address against 1,000 asked on the page; 40 against 400 here. It settles within a tenth above."""
    most = Counter()

    def fault(arrival):
        second = int(arrival.at)
        most[second] = max(most[second], server.at_once)
        return error(429) if server.at_once > 40 else None

    with FaultServer(users=800, latency=0.02, speed=20) as server:
        server.fault = fault
        done = await run(server, concurrency=400, attempts=8)
    refused = sum(each.status == 429 for each in server.arrivals)
    assert done.coverage.answered == 800
    assert len(server.arrivals) / (len(server.arrivals) - refused) <= 1.3
    assert max(count for second, count in most.items() if second >= 2) <= 44, most


@pytest.mark.parametrize("idle", [0.15, 0.5])
async def test_f29_a_balancer_that_closes_idle_connections_costs_no_user_and_no_second_start(run, idle):
    with FaultServer(users=300, speed=20, idle=idle) as server:
        done = await run(server, all_arrive=False)
    assert done.coverage.answered == 300
    assert set(done.acts.values()) == {1}
    assert server.connections > 20
