"""How to collect, as one frozen value; and the time that a run is in."""

import math
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from mxlab.errors import ConfigError

_LONGEST_LOOK_SECONDS = 1200.0
#: The ceiling of concurrency is half of the 2,000 that MX documents for an address.
_MOST = {"concurrency": 1000, "attempts": 10}
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Clock:
    """The time that a run is in: the machine's, or a simulation's.

    Parameters
    ----------
    real_epoch, simulated_epoch
        The same moment in both times, in seconds since 1970 UTC.
    speed
        Simulated seconds that pass in a real one.

    Examples
    --------
    >>> Clock.parse("1000/5000/20").time(real=1001.0)
    5020.0
    """

    real_epoch: float = 0.0
    simulated_epoch: float = 0.0
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ConfigError(f"clock: speed must be a positive number, not {self.speed!r}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The clock written as REAL/SIMULATED/SPEED, as `mxlab simulate` prints it."""
        try:
            real, simulated, speed = (float(part) for part in text.split("/"))
        except ValueError:
            raise ConfigError(
                f"clock: {text!r} is not REAL/SIMULATED/SPEED, three numbers as printed by `mxlab simulate`"
            ) from None
        return cls(real, simulated, speed)

    def __str__(self) -> str:
        return f"{self.real_epoch!r}/{self.simulated_epoch!r}/{self.speed!r}"

    def time(self, real: float | None = None) -> float:
        """Seconds since 1970 in the run's time, now or at a real moment."""
        real = time.time() if real is None else real
        return self.simulated_epoch + (real - self.real_epoch) * self.speed

    def steady(self) -> Callable[[], float]:
        """A function that tells the time from now on and never jumps when the wall clock is set."""
        start, since, speed = self.time(), time.monotonic(), self.speed
        return lambda: start + (time.monotonic() - since) * speed

    def real_seconds(self, seconds: float) -> float:
        """How long a duration of the run's time takes on this machine."""
        return seconds / self.speed


def _seconds(default: float, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc, "positive": True})


def _said(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How to collect. Durations are in seconds of the run's clock unless said otherwise; holds no secret.

    Each field but ``allow_aggregate`` is also an environment variable (``MXLAB_FIRST_LOOK_SECONDS``) and a
    command-line option (``--first-look-seconds``).

    Raises
    ------
    ConfigError
        A value is out of range; the message names the field, the value and what is allowed.
    """

    base_url: str = _said("", "where Nexus answers: https, or http to loopback")
    sso_url: str = _said("", "where MX's SSO answers; follows from base_url for MX's own hosts and loopback")
    ca_file: str = _said("", "a PEM file of certificate authorities to trust beside the system's")
    concurrency: int = _said(200, "the most requests in flight; a run starts at 20 and adapts below this")
    requests_per_second: float | None = _said(None, "a hard cap in real time; 20 off loopback, none on it")
    max_users: int | None = _said(None, "the run's ceiling; required to aggregate off loopback")
    reply_timeout_seconds: float = _seconds(60.0, "how long to wait for a reply, in real time")
    deadline_seconds: float = _seconds(
        900.0, "how long one user is followed, or waited for while MX is in trouble"
    )
    first_look_seconds: float = _seconds(3.0, "when to look first; MX asks for at least 3 s")
    longest_look_seconds: float = _seconds(
        30.0, "the longest gap between looks; 1,200 at the most, lest sessions expire"
    )
    attempts: int = _said(
        4,
        "tries of a read, and of a start that MX refused without acting; those that fail while MX is in trouble are not counted",
    )
    read_jobs: bool = _said(
        default=True, doc="read each settled or observed member's last job, for its exact duration"
    )
    include_holdings: bool = _said(default=False, doc="gather holdings too")
    include_transactions: bool = _said(default=False, doc="gather transactions too")
    allow_aggregate: bool = _said(
        default=False, doc="consent to start jobs off loopback; never from the environment"
    )
    seed: int = _said(0, "of the order of users and of every jitter")
    clock: Clock = _said(Clock(), "the time that the run is in: REAL/SIMULATED/SPEED")

    def __post_init__(self) -> None:
        for name in ("base_url", "sso_url"):
            object.__setattr__(self, name, _checked_url(name, getattr(self, name)))
        if self.base_url and not self.sso_url:
            object.__setattr__(self, "sso_url", _sso_url(self.base_url))
        self._check_types()
        self._check_ranges()
        if self.ca_file:
            object.__setattr__(self, "ca_file", os.fspath(self.ca_file))
            _check_certificates(self.ca_file)

    def _check_types(self) -> None:
        for each in fields(self):
            value, default = getattr(self, each.name), each.default
            if isinstance(default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{each.name}: expected True or False, not {value!r}")
            if each.name == "clock" and not isinstance(value, Clock):
                raise ConfigError(f"clock: expected a Clock, not {value!r}")
        if type(self.seed) is not int:
            raise ConfigError(f"seed: expected a whole number, not {self.seed!r}")

    def _check_ranges(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigError(f"{name}: {value!r} is not a whole number from 1 to {most:,}")
        for each in fields(self):
            if each.metadata.get("positive"):
                _check_positive(each.name, getattr(self, each.name))
        if self.requests_per_second is not None:
            _check_positive("requests_per_second", self.requests_per_second)
        if self.max_users is not None and (type(self.max_users) is not int or self.max_users < 1):
            raise ConfigError(f"max_users: {self.max_users!r} must be a whole number, 1 or more")
        if self.longest_look_seconds > _LONGEST_LOOK_SECONDS:
            raise ConfigError(
                f"longest_look_seconds: {self.longest_look_seconds} is above {_LONGEST_LOOK_SECONDS:g}: a session that is not "
                "used for 30 minutes expires, and a pause that MX asks for may come on top"
            )
        if self.longest_look_seconds < self.first_look_seconds:
            raise ConfigError(
                f"longest_look_seconds: {self.longest_look_seconds} is below first_look_seconds "
                f"({self.first_look_seconds})"
            )
        if self.base_url and not self.on_loopback and self.first_look_seconds < 3.0:
            raise ConfigError(
                f"first_look_seconds: {self.first_look_seconds} is below 3, and MX asks for at least 3 s between looks"
            )

    @property
    def on_loopback(self) -> bool:
        """Whether the base_url names this machine."""
        return urlsplit(self.base_url).hostname in _LOOPBACK

    @property
    def hard_rate(self) -> float:
        """The cap of requests a second, real time; infinite where there is none."""
        if self.requests_per_second is not None:
            return self.requests_per_second
        return math.inf if self.on_loopback else 20.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Self:
        """Settings from ``MXLAB_…`` variables, overridden by what is given.

        Parameters
        ----------
        environ
            The variables; those of the process where None.
        **given
            Fields by name; None means not given. Strings are read as the field's type.

        Returns
        -------
        Settings

        Raises
        ------
        ConfigError
            A value cannot be read; the message names the variable or the field.
        """
        environ = os.environ if environ is None else environ
        values = {name: value for name, value in given.items() if value is not None}
        for each in fields(cls):
            variable = f"MXLAB_{each.name.upper()}"
            if variable in environ and each.name not in values:
                if each.name == "allow_aggregate":
                    raise ConfigError(f"{variable}: consent is given in the call, never by the environment")
                values[each.name] = environ[variable]
        return cls(**{name: _read(name, value) for name, value in values.items()})


def _read(name: str, value: Any) -> Any:
    """A field's value from text; anything but text is taken as it is."""
    if not isinstance(value, str) or name in {"base_url", "sso_url", "ca_file"}:
        return value
    kind = next(each for each in fields(Settings) if each.name == name)
    try:
        if name == "clock":
            return Clock.parse(value)
        if isinstance(kind.default, bool):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                value.lower()
            ]
        if name in {"concurrency", "attempts", "seed", "max_users"}:
            return int(value)
        return float(value)
    except (KeyError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        most = f", from 1 to {_MOST[name]:,}" if name in _MOST else ""
        raise ConfigError(f"{name}: cannot read {value!r}; {kind.metadata['doc']}{most}") from None


def _check_positive(name: str, value: object) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and value > 0)
    ):
        raise ConfigError(f"{name}: {value!r} must be a positive number")


def _check_certificates(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ConfigError(
            f"ca_file: {path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"ca_file: cannot read {path}: {error.strerror}; give the path of a PEM file"
        ) from None


def _checked_url(name: str, url: str) -> str:
    """The URL without a trailing slash; https to anywhere, http to loopback only, nothing hidden in it."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or set(url) & set(" \\"):
        raise ConfigError(f"{name}: not a URL in plain ASCII; give https://HOST")
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError(f"{name}: not a URL; give https://HOST") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(f"{name}: must not hold a user, a password, a query or a fragment")
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise ConfigError(f"{name}: {url!r} is http and not loopback; tokens travel over https only")
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigError(f"{name}: {url!r} must begin with https:// and name a host")
    if parts.path not in {"", "/"} or port == 0:
        raise ConfigError(f"{name}: {url!r} must be a scheme and a host, with a port at most")
    if host not in _LOOPBACK and "." not in host:
        raise ConfigError(f"{name}: {url!r} does not name a full host")
    return url.rstrip("/")


def _sso_url(base_url: str) -> str:
    """MX's SSO host that belongs to a Nexus host; loopback serves both."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if host in _LOOPBACK:
        return base_url
    known = {
        "int-data.moneydesktop.com": "https://int-sso.moneydesktop.com",
        "data.moneydesktop.com": "https://sso.moneydesktop.com",
    }
    return known.get(host, "")


def preceded(*variables: str, by: Path) -> dict[str, str]:
    """The environment for another program, with a folder put before those that some of its variables list."""
    listed = {name: (str(by), os.environ.get(name, "")) for name in variables}
    return {**os.environ, **{name: os.pathsep.join(filter(None, each)) for name, each in listed.items()}}
