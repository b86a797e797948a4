"""The command line: exit status, messages that say what to do, nothing half-written."""

import io
import json
import re
import socket
import struct

import pandas as pd
import pytest

import mxlab as mx
from mxlab.charts import OVERVIEW, provenance
from mxlab.cli import main
from mxlab.simulator.server import API_KEY


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    try:
        status = main([str(each) for each in arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def simulation():
    with mx.simulate(30, seed=2, speed=100) as running:
        yield running


@pytest.fixture
def reach(simulation, tmp_path):
    """Options that reach the simulation with a key file and a user file."""
    users = tmp_path / "users.txt"
    users.write_text("\n".join(f"user-{index:07d}" for index in range(30)) + "\n")
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text(API_KEY)
    settings = simulation.settings
    return ["--users", users, "--client-id", "sim", "--key-file", key, "--base-url", settings.base_url,
            "--clock", settings.clock, "--deadline-seconds", 120]  # fmt: skip


def test_observe_then_ask_the_store(capsys, reach, tmp_path):
    store = tmp_path / "store"
    status, out, _ = run(capsys, "observe", *reach, "--store", store, "--run", "a", "--json")
    told = json.loads(out)
    assert status == 0
    assert told["asked"] == told["answered"] == 30
    assert told["simulated"] is True

    status, out, _ = run(capsys, "runs", "--store", store, "--json")
    assert status == 0
    assert [row["run"] for row in json.loads(out)] == ["a"]

    status, out, _ = run(
        capsys, "sql", "select count(distinct user) as users from members", "--store", store, "--json"
    )
    assert status == 0
    assert 20 < json.loads(out)[0]["users"] <= 30  # some users have no members

    picture = tmp_path / "picture.png"
    status, out, _ = run(capsys, "draw", "status_counts", "--store", store, "--out", picture)
    assert status == 0
    assert picture.read_bytes().startswith(b"\x89PNG")

    page = tmp_path / "page.html"
    status, out, _ = run(capsys, "report", "--store", store, "--out", page)
    assert status == 0
    assert "SIMULATED" in page.read_text()

    rows = tmp_path / "findings.csv"
    status, out, _ = run(capsys, "audit", "--store", store, "--json", "--out", rows)
    told = json.loads(out)
    assert status == 0
    assert sum(rule["records"] for rule in told) == len(pd.read_csv(rows)) > 0
    assert "MBR-" not in rows.read_text()

    members = tmp_path / "members.parquet"
    for more in ([], ["--identities"]):
        assert run(capsys, "export", "--store", store, "--out", members, *more)[0] == 0
        kept = pd.read_parquet(members)["guid"].str.startswith("MBR-")
        assert kept.all() if more else not kept.any()
    status, _, err = run(capsys, "export", "--store", store, "--out", tmp_path / "members.doc")
    assert status == 2
    assert "ends in none of" in err


def sizes(folder):
    """Pixels of the PNG files of a folder, by their names."""
    return {path.stem: struct.unpack(">II", path.read_bytes()[16:24]) for path in folder.iterdir()}


def test_a_gallery_and_a_drawing_of_a_store(capsys, reach, tmp_path):
    store, out = tmp_path / "store", tmp_path / "pictures"
    assert run(capsys, "observe", *reach, "--store", store, "--run", "a")[0] == 0
    two = {name for name, chart in mx.CHARTS.items() if chart.of_two}
    status, said, _ = run(capsys, "gallery", "--store", store, "--out", out, "--dark")
    assert status == 0
    assert set(sizes(out)) == set(mx.CHARTS) - two
    for name in two:
        assert f"{name} is left out: it compares two runs" in said

    assert run(capsys, "observe", *reach, "--store", store, "--run", "b")[0] == 0
    status, said, _ = run(capsys, "gallery", "--store", store, "--out", out, "--width", 480)
    assert status == 0
    assert set(sizes(out)) == set(mx.CHARTS)
    assert {width for width, _ in sizes(out).values()} == {480}
    assert said.splitlines() == [str(out / f"{name}.png") for name in mx.CHARTS]

    picture = tmp_path / "flow.png"
    drawing = ("draw", "flow", "--store", store, "--out", picture)
    status, _, err = run(capsys, *drawing)
    assert status == 2
    assert "give the earlier one" in err
    assert run(capsys, *drawing, "--against", "a", "--width", 1600)[0] == 0
    assert struct.unpack(">I", picture.read_bytes()[16:20]) == (1600,)
    status, _, err = run(capsys, *drawing, "--against", "a", "--width", -5)
    assert status == 2
    assert "480 to 8,000 pixels wide, not -5" in err
    assert run(capsys, "draw", "status_history", "--store", store, "--out", picture)[0] == 0
    history = mx.Store(store).load(runs=["a", "b"])
    assert re.match(r"2 runs, from \d{4}-\d\d-\d\d \d\d:\d\d to .* UTC · seed", provenance(history))


@pytest.mark.slow
def test_the_gallery_of_a_simulation_has_every_chart(capsys, tmp_path):
    status, said, _ = run(capsys, "gallery", "--users", 300, "--out", tmp_path)
    assert status == 0
    assert set(sizes(tmp_path)) == set(mx.CHARTS)
    assert all(width == 800 and height > 200 for width, height in sizes(tmp_path).values())
    assert len(said.splitlines()) == len(mx.CHARTS)


def test_aggregate_prints_a_table_a_person_can_read(capsys, reach, tmp_path):
    status, out, err = run(capsys, "aggregate", *reach, "--store", tmp_path / "store")
    assert status in {0, 1}  # 1 where the world has a user who is refused
    for words in ("SIMULATED", "users", "who must act", "aggregation time p50", "slow banks"):
        assert words in out
    assert "under way" in err


def test_preview_says_what_would_happen_and_starts_nothing(capsys, reach, simulation, tmp_path):
    before = simulation.arrivals()["by_endpoint"]["aggregate_all"]
    status, out, _ = run(capsys, "preview", *reach, "--store", tmp_path / "none", "--look")
    assert status == 0
    assert "one observe pass" in out
    assert simulation.arrivals()["by_endpoint"]["aggregate_all"] == before
    assert not (tmp_path / "none").exists()


def test_a_canary_token_is_in_no_output_and_no_file(capsys, tmp_path):
    canary = "CANARY-" + "x9Z" * 20
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text(f"token,user\n{canary},alice\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        base_url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        given = ("--tokens", tokens, "--base-url", base_url, "--reply-timeout-seconds", 0.1, "--attempts", 1)
        status, out, err = run(capsys, "observe", *given, "--store", tmp_path / "store")
    assert status == 1
    assert canary not in out + err
    for path in (tmp_path / "store").rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["observe", "--tokens", "{tmp}/absent", "--base-url", "http://127.0.0.1:9", "--store", "{tmp}/s"], "absent"),
        (["observe", "--tokens", "{tmp}/open", "--base-url", "http://127.0.0.1:9", "--store", "{tmp}/s"], "chmod 600"),
        (["observe", "--tokens", "{tmp}/bad", "--base-url", "http://127.0.0.1:9", "--store", "{tmp}/s"], "line 2"),
        (["observe", "--tokens", "{tmp}/good", "--base-url", "http://example.com", "--store", "{tmp}/s"], "https only"),
        (["observe", "--tokens", "{tmp}/good", "--store", "{tmp}/s"], "base_url"),
        (["observe", "--base-url", "http://127.0.0.1:9", "--store", "{tmp}/s"], "--tokens FILE"),
        (["observe", "--tokens", "{tmp}/good", "--base-url", "http://127.0.0.1:9", "--store", "{tmp}/good"], "good"),
        (["observe", "--tokens", "{tmp}/good", "--base-url", "http://127.0.0.1:9", "--store", "{tmp}/s", "--run", "../x"],
         "run"),
        (["observe", "--tokens", "{tmp}/good", "--base-url", "http://127.0.0.1:9", "--store", "{tmp}/s",
          "--concurrency", "0"], "concurrency"),
        (["aggregate", "--tokens", "{tmp}/good", "--base-url", "https://data.example.com", "--store", "{tmp}/s"],
         "nothing was sent"),
        (["runs", "--store", "{tmp}/s"], "store"),
        (["draw", "no_such_chart", "--store", "{tmp}/s"], "store"),
        (["demo", "--out", "{tmp}/good"], "--out"),
        (["demo", "--users", "5", "--out", "{tmp}/d", "--scenario", "slow_bnk"], "slow_bank"),
        (["simulate", "--port", "{taken}"], "in use"),
        (["simulate", "--users", "-1"], "users"),
        (["no-such-command"], "invalid choice"),
    ],
)  # fmt: skip
def test_bad_input_is_a_clear_message_and_status_2(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for name, text, mode in (
        ("open", "abc\n", 0o644),
        ("bad", "abcdefgh\nab cd\n", 0o600),
        ("good", "abcdefgh\n", 0o600),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, err = run(capsys, *(each.format(tmp=tmp_path, taken=port) for each in arguments))
    assert status == 2, (out, err)
    assert says in err
    assert "Traceback" not in err
    assert "ab cd" not in err
    assert not (tmp_path / "s").exists()


def test_the_demo_says_what_a_newcomer_wants_to_know(capsys, tmp_path):
    out_folder = tmp_path / "demo"
    status, out, err = run(capsys, "demo", "--users", 300, "--speed", 150, "--out", out_folder)
    assert status == 0
    for words in ("SIMULATED", "users answered", "aggregation time p50", "aggregation time p90", "arrivals of aggregate",
                  "in flight at the most", "report.html", "mxlab lab"):  # fmt: skip
        assert words in out
    assert "[" in err
    most = int(re.search(r"([\d,]+) requests in flight at the most", out)[1].replace(",", ""))
    assert 1 < most <= 200
    assert "SIMULATED" in (out_folder / "report.html").read_text()
    assert {path.stem for path in (out_folder / "charts").glob("*.png")} == set(OVERVIEW)


def test_with_nothing_planted_the_demo_says_that_nothing_was_found(capsys, tmp_path):
    status, out, _ = run(
        capsys, "demo", "--users", 200, "--speed", 150, "--out", tmp_path / "d", "--scenario", "calm"
    )
    assert status == 0
    assert "nothing found" in out
