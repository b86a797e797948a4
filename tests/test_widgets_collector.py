import base64
import io
import time
from threading import Event

import pytest
from faults.server import FaultServer
from ipywidgets.widgets.widget import _instances
from PIL import Image
from waiting import stay, until

import mxlab as mx
from mxlab.errors import ConfigError
from mxlab.settings import Settings
from mxlab.tokens import SessionToken
from mxlab.widgets import Collector, Explorer

KEY = "CANARY" + "k" * 40
AGGREGATE = "aggregate: starts jobs at banks"
BANK = "https://nexus.example.com"


def ready(**fields):
    """A Collector with these values in its fields."""
    collector = Collector()
    for name, value in fields.items():
        getattr(collector, name).value = value
    return collector


def test_the_simulator_is_observed_and_explored():
    collector = ready(count=40, speed=200)
    said = []
    collector.said.observe(lambda change: said.append((time.monotonic(), change["new"])), "value")
    collector.begin.click()
    collector.wait(60)
    assert collector.job.state == "done"
    assert isinstance(collector.result.children[0], Explorer)
    assert collector.snapshot.manifest["verb"] == "observe"
    assert collector.snapshot.coverage.asked == 40
    assert collector.bar.value == 1.0
    assert "complete: 40 of 40 users" in said[-1][1]
    assert not collector.begin.disabled
    assert collector.stop.disabled
    assert len(said) <= 5 + 4 * (said[-1][0] - said[0][0])


def test_a_run_that_is_stopped_keeps_what_has_come():
    collector = ready(count=400, speed=20, verb=AGGREGATE)
    collector.begin.click()
    until(lambda: collector.job and collector.job.progress.requests > 20)
    collector.stop.click()
    collector.wait(30)
    assert collector.job.state == "cancelled"
    assert collector.snapshot.coverage.asked == 400
    assert collector.snapshot.coverage.pending > 0
    assert "stopped" in collector.said.value
    assert isinstance(collector.result.children[0], Explorer)


def test_preview_says_what_would_happen_and_starts_nothing():
    collector = ready(count=20, speed=200, verb=AGGREGATE)
    collector.look.click()
    collector.wait(60)
    assert "20" in collector.said.value
    assert "3-hour window" in collector.said.value
    assert collector.job is None


def test_a_typed_key_is_gone_in_the_callback_that_uses_it(tmp_path):
    users = tmp_path / "users.txt"
    users.write_text("a\nb\n")
    collector = Collector(settings=Settings(base_url="http://127.0.0.1:1", attempts=1))
    collector.source.value = "user ids and an API key"
    collector.path.value, collector.client_id.value, collector.key.value = str(users), "client", KEY
    collector.begin.click()
    assert collector.key.value == ""
    collector.wait(60)
    assert not [each for each in _instances.values() if KEY in repr(each.get_state())]


def test_consent_is_the_typed_word_where_jobs_would_start_at_banks():
    """Not only a click, as on the command line; without it not even a thread is begun."""
    tokens = [SessionToken("t" * 20, user="a")]
    collector = Collector(tokens, Settings(base_url=BANK))
    shown = collector._fields
    assert collector.consent not in shown.children
    collector.verb.value = AGGREGATE
    assert collector.consent in shown.children
    assert BANK in shown.children[-2].value
    for typed in ("", "yes", "Aggregate!"):
        collector.consent.value = typed
        collector.begin.click()
        assert "Nothing was sent: type aggregate" in collector.said.value
        assert collector._thread is None
        assert collector.consent.value == ""
    collector.base_url.value = "http://127.0.0.1:1"
    assert collector.consent not in shown.children
    collector.base_url.value = "https://"
    assert collector.consent in shown.children


def given_to(collector):
    """What each click on Start would have run with; nothing is run."""
    given = []
    collector._collect = lambda _, settings: given.append(settings)
    return given


def clicked(collector):
    """As the button does it, for a Collector whose collecting was replaced."""
    collector._go(collector._collect)
    collector.wait(10)


def test_consent_is_for_one_run():
    collector = ready(source="a token file", verb=AGGREGATE, path="tokens.csv", base_url=BANK)
    given = given_to(collector)
    collector.consent.value = " aggregate "
    clicked(collector)
    clicked(collector)
    assert [each.allow_aggregate for each in given] == [True]
    assert [each.max_users for each in given] == [1_000]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_url", "https://other.example.com"),
        ("path", "others.csv"),
        ("client_id", "another"),
        ("max_users", 2_000),
        ("source", None),
        ("verb", None),
    ],
)
def test_consent_is_withdrawn_where_something_else_is_asked(field, value):
    collector = ready(source="a token file", verb=AGGREGATE, path="tokens.csv", base_url=BANK)
    collector.consent.value = "aggregate"
    control = getattr(collector, field)
    if field in {"source", "verb"}:
        value = next(each for each in control.options if each != control.value)
    control.value = value
    assert collector.consent.value == ""


def test_pausing_holds_the_run_and_says_so_and_it_goes_on():
    with FaultServer(users=60, speed=50, latency=0.03) as server:
        collector = Collector(server.source(), server.settings())
        collector.verb.value = AGGREGATE
        collector.begin.click()
        until(lambda: server.count()["aggregate_all"] > 10)
        assert not collector.pause.disabled
        collector.pause.click()
        assert collector.pause.description == "Go on"
        until(lambda: "paused: " in collector.said.value and " 0 in flight" in collector.said.value)
        there = len(server.arrivals)
        stay(lambda: len(server.arrivals) == there)
        collector.pause.click()
        assert collector.pause.description == "Pause"
        collector.wait(60)
        assert set(server.count("aggregate_all").values()) == {1}
    assert collector.snapshot.coverage.answered == 60
    assert collector.pause.disabled


def test_stopping_a_paused_run_keeps_what_has_come_and_the_next_is_not_paused():
    with FaultServer(users=40, speed=50, latency=0.03) as server:
        collector = Collector(server.source(), server.settings())
        collector.begin.click()
        until(lambda: collector.job and collector.job.progress.requests > 10)
        collector.pause.click()
        collector.stop.click()
        collector.wait(5)
        assert collector.job.state == "cancelled"
        assert collector.snapshot.coverage.asked == 40
        assert collector.pause.description == "Pause"
        collector.begin.click()
        collector.wait(30)
    assert collector.snapshot.coverage.answered == 40


def test_a_stop_before_the_job_has_begun_is_heard(monkeypatch):
    """Between the click on Start and the job lies the start of the simulator, which takes a second."""
    reached, go_on = Event(), Event()
    with FaultServer(users=5) as server:
        collector = Collector(server.source(), server.settings())
        opened = collector._opened

        def slowly(*known):
            reached.set()
            go_on.wait(10)
            return opened(*known)

        monkeypatch.setattr(collector, "_opened", slowly)
        collector.begin.click()
        assert reached.wait(10)
        collector.stop.click()
        go_on.set()
        collector.wait(10)
        assert server.arrivals == []
    assert "Stopped before anything came" in collector.said.value
    assert not collector.begin.disabled
    monkeypatch.undo()
    collector.begin.click()
    collector.wait(20)
    assert "Stopped" not in collector.said.value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("of a source"), "ZeroDivisionError: of a source"),
        (LookupError(f"no <user> for {KEY}"), "LookupError: no &lt;user&gt; for …"),
        (PermissionError(13, "Permission denied", "/store"), "PermissionError: Permission denied (/store)"),
        (KeyError(), "KeyError:"),
    ],
)
def test_an_error_of_a_source_is_shown_without_its_token_and_the_buttons_come_back(error, said):
    def failing():
        raise error

    collector = Collector(failing, Settings(base_url="http://127.0.0.1:1"))
    collector.begin.click()
    collector.wait(10)
    assert said in collector.said.value
    assert KEY not in collector.said.value
    assert not collector.begin.disabled
    assert collector.stop.disabled


def test_a_picture_of_what_has_come_stands_beside_the_widget():
    collector = ready(count=40, speed=200)
    bundle = collector._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "image/png" not in bundle
    assert bundle["text/plain"] == "Collector: nothing has been collected so far"
    collector.begin.click()
    collector.wait(60)
    bundle = collector._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).width >= 800
    assert "40 of 40 users" in bundle["text/plain"]
    assert "SIMULATED" in bundle["text/plain"]
    widgets = len(_instances)
    collector._repr_mimebundle_()
    assert len(_instances) == widgets


def test_a_picture_of_a_run_under_way_is_of_what_has_come_so_far():
    with FaultServer(users=40, speed=50, latency=0.03) as server:
        collector = Collector(server.source(), server.settings(concurrency=2))
        collector.begin.click()
        until(lambda: collector.job and collector.job.progress.ended > 5)
        bundle = collector._repr_mimebundle_()
        collector.cancel()
        collector.wait(10)
    assert "of 40 users" in bundle["text/plain"]
    assert "pending" in bundle["text/plain"]


def test_clicking_start_twice_starts_one_run():
    begun, end = [], Event()
    collector = ready(source="a token file", path="tokens.csv", base_url="http://127.0.0.1:1")

    def action(*_):
        begun.append(1)
        end.wait(10)

    collector._go(action)
    collector._go(action)
    end.set()
    collector.wait(10)
    assert begun == [1]
    assert not collector.begin.disabled
    collector._go(action)
    collector.wait(10)
    assert begun == [1, 1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"source": "a token file"}, "give the path of a file"),
        (
            {"source": "a token file", "path": "<b>none.csv", "base_url": "http://127.0.0.1:1"},
            "&lt;b&gt;none.csv",
        ),
        ({"source": "user ids and an API key", "path": "users.txt"}, "API key: type it"),
        ({"source": "a token file", "path": "x", "base_url": "http://example.com"}, "https only"),
    ],
)
def test_what_is_missing_is_said(fields, said):
    collector = ready(**fields)
    collector.begin.click()
    collector.wait(10)
    assert said in collector.said.value
    assert not collector.begin.disabled


def test_settings_are_checked_as_ever():
    with pytest.raises(ConfigError):
        Collector(settings=Settings(base_url="nonsense"))


def test_a_run_that_goes_on_counts_those_who_ended_before(tmp_path):
    """The bar is of all users, in the second life as in the first."""
    store = mx.Store(tmp_path / "store")
    with FaultServer(users=60, speed=50, latency=0.03) as server:
        collector = Collector(server.source(), server.settings(concurrency=2), store=store, run="r")
        collector.begin.click()
        until(lambda: collector.job and collector.job.progress.ended > 20)
        collector.stop.click()
        collector.wait(10)
        there = collector.snapshot.coverage.answered
        assert 20 < there < 60
        collector.begin.click()
        collector.wait(30)
    assert collector.snapshot.coverage.answered == 60
    assert collector.bar.value == 1.0
    assert "complete: 60 of 60 users" in collector.said.value
    progress = collector.job.progress
    assert progress.ended_before + progress.ended == 60
    assert progress.ended_before == there
