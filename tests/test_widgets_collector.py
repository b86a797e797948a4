import time
from threading import Event

import pytest
from ipywidgets.widgets.widget import _instances

from mxlab.errors import ConfigError
from mxlab.settings import Settings
from mxlab.tokens import SessionToken
from mxlab.widgets import Collector, Explorer

KEY = "CANARY" + "k" * 40


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
    collector = ready(count=400, speed=20, verb="aggregate: starts jobs at banks")
    collector.begin.click()
    end = time.monotonic() + 30
    while time.monotonic() < end and not (collector.job and collector.job.progress.requests > 20):
        time.sleep(0.02)
    collector.stop.click()
    collector.wait(30)
    assert collector.job.state == "cancelled"
    assert collector.snapshot.coverage.asked == 400
    assert collector.snapshot.coverage.pending > 0
    assert "stopped" in collector.said.value
    assert isinstance(collector.result.children[0], Explorer)


def test_preview_says_what_would_happen_and_starts_nothing():
    collector = ready(count=20, speed=200, verb="aggregate: starts jobs at banks")
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


def test_consent_is_asked_for_where_jobs_would_start_at_banks():
    tokens = [SessionToken("t" * 20, user="a")]
    collector = Collector(tokens, Settings(base_url="https://nexus.example.com"))
    assert collector.consent not in collector._fields.children
    collector.verb.value = "aggregate: starts jobs at banks"
    assert collector.consent in collector._fields.children
    collector.begin.click()
    collector.wait(10)
    assert "aggregate starts jobs at banks" in collector.said.value
    assert collector.snapshot is None


def test_consent_is_for_one_run():
    given = []
    collector = ready(source="a token file", verb="aggregate: starts jobs at banks", path="tokens.csv")
    collector.base_url.value = "https://nexus.example.com"
    collector.consent.value = True
    collector._collect = lambda _, settings: given.append(settings.allow_aggregate)
    for _ in range(2):
        collector._go(collector._collect)
        collector.wait(10)
    assert given == [True, False]


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
    collector = ready(source="a token file", verb="aggregate: starts jobs at banks", path="tokens.csv")
    collector.base_url.value = "https://nexus.example.com"
    collector.consent.value = True
    control = getattr(collector, field)
    if field in {"source", "verb"}:
        value = next(each for each in control.options if each != control.value)
    control.value = value
    assert not collector.consent.value


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
