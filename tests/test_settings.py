"""Settings and the Clock; bad values by number, B-093 to B-096, B-101 and B-102."""

import math
import time
from pathlib import Path

import pytest

from mxlab import settings as settings_module
from mxlab.errors import ConfigError
from mxlab.settings import Clock, Settings

#: number → (field, value, what the message must name)
REFUSED = {
    "B-093-http": ("base_url", "http://int-data.moneydesktop.com", "loopback"),
    "B-093-userinfo": ("base_url", "https://me:secret@int-data.moneydesktop.com", "password"),
    "B-093-port-0": ("base_url", "https://int-data.moneydesktop.com:0", "port"),
    "B-093-no-port": ("base_url", "https://int-data.moneydesktop.com:x", "URL"),
    "B-093-path": ("base_url", "https://int-data.moneydesktop.com/members", "host"),
    "B-093-query": ("base_url", "https://int-data.moneydesktop.com?a=b", "query"),
    "B-093-idn": ("base_url", "https://int-data.mоneydesktop.com", "ASCII"),
    "B-093-short-address": ("base_url", "http://127.1", "loopback"),
    "B-093-no-host": ("base_url", "https://", "host"),
    "B-093-no-dot": ("base_url", "https://intranet", "host"),
    "B-093-no-scheme": ("base_url", "int-data.moneydesktop.com", "https"),
    "B-093-ftp": ("base_url", "ftp://int-data.moneydesktop.com", "https"),
    "B-093-newline": ("base_url", "https://int-data.money\ndesktop.com", "ASCII"),
    "B-093-space": ("base_url", "https://int-data. moneydesktop.com", "ASCII"),
    "B-093-backslash": ("base_url", "https://good.com\\@evil.com", "ASCII"),
    "B-093-number": ("base_url", 5, "URL"),
    "B-093-sso": ("sso_url", "http://sso.moneydesktop.com", "sso_url"),
    "B-094-0": ("concurrency", 0, "is not a whole number from 1 to 1,000"),
    "B-094-minus": ("concurrency", -1, "is not a whole number from 1 to 1,000"),
    "B-094-many": ("concurrency", "many", "whole number from 1 to 1,000"),
    "B-094-1e9": ("concurrency", 10**9, "is not a whole number from 1 to 1,000"),
    "B-094-nan": ("concurrency", math.nan, "whole number from 1 to 1,000"),
    "B-094-true": ("concurrency", True, "whole number from 1 to 1,000"),
    "B-094-attempts": ("attempts", 0, "0 is not a whole number from 1 to 10"),
    "B-094-seed": ("seed", 1.5, "whole number"),
    "B-094-max-users": ("max_users", 0, "1 or more"),
    "B-094-max-users-text": ("max_users", "5", "whole number"),
    "B-094-max-users-true": ("max_users", True, "whole number"),
    "B-094-max-users-part": ("max_users", 2.5, "whole number"),
    "B-095-0": ("reply_timeout_seconds", 0, "positive"),
    "B-095-minus": ("deadline_seconds", -1.0, "positive"),
    "B-095-inf": ("deadline_seconds", math.inf, "positive"),
    "B-095-nan": ("first_look_seconds", math.nan, "positive"),
    "B-095-text": ("reply_timeout_seconds", "60", "positive"),
    "B-095-order": ("longest_look_seconds", 1.0, "first_look_seconds"),
    "longest-look": ("longest_look_seconds", 1201.0, "expires"),
    "B-096": ("include_holdings", "false", "True or False"),
    "B-096-one": ("include_transactions", 1, "True or False"),
    "B-096-none": ("allow_aggregate", None, "True or False"),
    "B-101": ("requests_per_second", 0, "positive"),
    "B-101-minus": ("requests_per_second", -5.0, "positive"),
    "B-101-inf": ("requests_per_second", math.inf, "positive"),
    "clock": ("clock", "1/2/3", "Clock"),
}


@pytest.mark.parametrize("number", REFUSED)
def test_a_value_out_of_range_is_refused_with_its_field_and_what_is_allowed(number):
    name, value, says = REFUSED[number]
    with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
        Settings(**{name: value})
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("MXLAB_CONCURRENCY", "many", "cannot read 'many'; .*from 1 to 1,000$"),
        ("MXLAB_CONCURRENCY", "1e9", "cannot read '1e9'; .*from 1 to 1,000$"),
        ("MXLAB_CONCURRENCY", "nan", "cannot read 'nan'; .*from 1 to 1,000$"),
        ("MXLAB_CONCURRENCY", "0", "0 is not a whole number from 1 to 1,000"),
        ("MXLAB_INCLUDE_HOLDINGS", "maybe", "cannot read 'maybe'; gather holdings too"),
        ("MXLAB_DEADLINE_SECONDS", "soon", "cannot read 'soon'; how long one user is followed"),
        ("MXLAB_REQUESTS_PER_SECOND", "0", "0.0 must be a positive number"),
        ("MXLAB_CLOCK", "now", "REAL/SIMULATED/SPEED"),
        ("MXLAB_CLOCK", "1/2/0", "speed must be a positive number"),
        ("MXLAB_CLOCK", "1/2/nan", "speed must be a positive number"),
        ("MXLAB_ALLOW_AGGREGATE", "true", "given in the call"),
    ],
)
def test_a_bad_variable_is_refused_by_name(variable, text, says):
    name = variable if "ALLOW" in variable else variable.removeprefix("MXLAB_").lower()
    with pytest.raises(ConfigError, match=f"^{name}: .*{says}"):
        Settings.from_environment({variable: text})


def test_b096_a_word_in_the_environment_is_read_as_what_it_says():
    for text, value in {
        "false": False,
        "0": False,
        "NO": False,
        "true": True,
        "1": True,
        "Yes": True,
    }.items():
        assert Settings.from_environment({"MXLAB_INCLUDE_HOLDINGS": text}).include_holdings is value


def test_what_is_given_wins_over_the_environment():
    environ = {"MXLAB_CONCURRENCY": "5", "MXLAB_SEED": "3"}
    settings = Settings.from_environment(environ, concurrency=7, max_users=None)
    assert (settings.concurrency, settings.seed, settings.max_users) == (7, 3, None)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:1", "[::1]:8080"])
def test_http_is_for_loopback_only_and_has_no_cap(host):
    settings = Settings(base_url=f"http://{host}/")
    assert settings.on_loopback
    assert settings.hard_rate == math.inf
    assert settings.base_url == settings.sso_url == f"http://{host}"


def test_off_loopback_there_is_a_cap_and_looks_are_three_seconds_apart():
    mx = "https://int-data.moneydesktop.com"
    assert Settings(base_url=mx).hard_rate == 20
    assert Settings(base_url=mx).sso_url == "https://int-sso.moneydesktop.com"
    with pytest.raises(ConfigError, match="first_look_seconds"):
        Settings(base_url=mx, first_look_seconds=2.9)


def test_a_clock_survives_its_text_and_tells_one_time():
    clock = Clock(time.time(), 5000.0, 20.0)
    assert Clock.parse(str(clock)) == clock
    assert clock.time(clock.real_epoch + 3) == pytest.approx(5060)
    assert clock.real_seconds(60) == 3
    assert clock.steady()() == pytest.approx(clock.time(), abs=1)


def test_a_steady_clock_does_not_jump_with_the_wall_clock(monkeypatch):
    now = Clock().steady()
    before = now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= now() - before < 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nx\n", "no certificate"),
    ],
)
def test_b102_a_ca_file_that_is_missing_or_not_pem_is_refused(tmp_path, content, says):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    for known in ({"ca_file": path}, {"ca_file": str(path)}):
        with pytest.raises(ConfigError, match=f"ca_file.*{says}"):
            Settings(**known)
    with pytest.raises(ConfigError, match=f"ca_file.*{says}"):
        Settings.from_environment({"MXLAB_CA_FILE": str(path)})


def test_b102_a_folder_is_no_ca_file(tmp_path):
    with pytest.raises(ConfigError, match="ca_file"):
        Settings(ca_file=str(tmp_path))


def test_certificates_are_always_checked():
    """No setting and no line of the code switches that off."""
    fetch = Path(settings_module.__file__).parent / "fetch"
    text = "".join(path.read_text() for path in fetch.glob("*.py"))
    assert "ssl=False" not in text
    assert "CERT_NONE" not in text
    assert "check_hostname" not in text
