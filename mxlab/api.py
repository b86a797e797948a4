"""The blocking doors: each waits for its coroutine of `mxlab.aio` on the private loop."""

import glob
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pandas as pd

from mxlab import aio, frames
from mxlab.errors import BadReply, ConfigError
from mxlab.exchange import Ending, Exchange, MemberEnding, Progress
from mxlab.fetch.sso import sso_tokens
from mxlab.frames import Coverage, Snapshot
from mxlab.nexus.protocol import LIST_MEMBERS, MEDIA_TYPE, read_reply, rejected
from mxlab.portal import start
from mxlab.settings import Clock, Settings
from mxlab.simulator.server import API_KEY
from mxlab.simulator.world import UserIds
from mxlab.store import Store
from mxlab.tokens import Secret, Source, Tokens

Tick = Callable[[Progress], None]
T = TypeVar("T")
_QUIET_SECONDS = 1.0
_SECONDS_BETWEEN_LINES = 0.25


def aggregate(
    tokens: Tokens,
    settings: Settings,
    *,
    store: Store | None = None,
    run: str | None = None,
    sample: int | None = None,
    tick: Tick | None = None,
) -> Snapshot:
    """As `mxlab.aio.aggregate`, waiting for the result; works in Jupyter, and ■ or Ctrl-C stops the run.

    ``tick`` is called with the progress while waiting; in a notebook, where there is none, a line under the cell shows it.
    """
    return _waited(aio.aggregate(tokens, settings, store=store, run=run, sample=sample), tick)


def observe(
    tokens: Tokens,
    settings: Settings,
    *,
    store: Store | None = None,
    run: str | None = None,
    sample: int | None = None,
    tick: Tick | None = None,
) -> Snapshot:
    """As `mxlab.aio.observe`, waiting for the result."""
    return _waited(aio.observe(tokens, settings, store=store, run=run, sample=sample), tick)


def _waited(coroutine: Coroutine[Any, Any, T], tick: Tick | None = None) -> T:
    job = start(coroutine)
    cell = _cell()
    if tick is not None or cell is None:
        return job.result(tick=tick)
    line = _Line(cell)
    try:
        return job.result(tick=line)
    finally:
        line.end(job.progress)


def _cell() -> int | None:
    """The number of the cell that runs, in a notebook."""
    python: Any = sys.modules.get("IPython")
    shell = python and python.get_ipython()
    return shell.execution_count if hasattr(shell, "kernel") else None


class _Line:
    """The progress of a run that takes its time, as a line under the cell that waits for it; one for all its runs."""

    _last: tuple[int, Any] = 0, None

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self._begun = self._painted = time.monotonic()
        self._handle = self._last[1] if self._last[0] == cell else None

    def __call__(self, progress: Progress) -> None:
        """Paint it, if the last time is long enough ago."""
        pause = _QUIET_SECONDS if self._handle is None else _SECONDS_BETWEEN_LINES
        if time.monotonic() - self._painted >= pause:
            self._paint(progress)

    def end(self, progress: Progress) -> None:
        """Leave what it came to, if anything was said at all."""
        if self._handle is not None:
            self._paint(progress)

    def _paint(self, progress: Progress) -> None:
        self._painted = time.monotonic()
        shown = {"text/plain": progress.words(self._painted - self._begun)}
        if self._handle is None:
            self._handle = import_module("IPython.display").display(shown, raw=True, display_id=True)
            _Line._last = self._cell, self._handle
        else:
            self._handle.update(shown, raw=True)


def preview(
    tokens: Tokens,
    settings: Settings,
    *,
    store: Store | None = None,
    look: bool = False,
    sample: int | None = None,
) -> aio.Preview:
    """As `mxlab.aio.preview`, waiting for the result."""
    return _waited(aio.preview(tokens, settings, store=store, look=look, sample=sample))


def read_members(pattern: str | os.PathLike[str]) -> Snapshot:
    """A Snapshot of saved replies of aggregate-all, list members or read member.

    Parameters
    ----------
    pattern
        Path of JSON files, with ``*`` and ``?``; each file counts as one user's reply, named after the file.

    Returns
    -------
    Snapshot
        Verb ``observe``; a file that cannot be read is a lost user, with its bytes in `rejects`.

    Raises
    ------
    ConfigError
        No file matches.
    """
    paths = sorted(Path(name) for name in glob.glob(os.fspath(pattern)))  # noqa: PTH207 - absolute patterns too
    if not paths:
        raise ConfigError(f"read_members: no file matches {os.fspath(pattern)!r}")
    read = [_saved(path) for path in paths]
    exchanges, endings = [exchange for exchange, _ in read], [ending for _, ending in read]
    run = f"saved-{paths[0].parent.resolve().name}"
    tables = frames.tables(exchanges, endings, run)
    lost = [ending for ending in endings if ending.state == "lost"]
    failures = [
        {name: getattr(ending, name) for name in ("session", "user", "state", "reason", "what_to_do")}
        for ending in lost
    ]
    reasons: dict[str, int] = {}
    for ending in lost:
        reasons[ending.reason or ""] = reasons.get(ending.reason or "", 0) + 1
    coverage = Coverage(len(paths), len(paths) - len(lost), len(lost), reasons=reasons)
    manifest = {"run": run, "verb": "observe", "host": None, "order": "source", "simulated": False}
    return Snapshot(manifest, coverage, frames.failures_frame(failures), tables.__getitem__)


def _saved(path: Path) -> tuple[Exchange, Ending]:
    body = path.read_bytes()
    name, at = path.stem, path.stat().st_mtime
    exchange = Exchange(
        LIST_MEMBERS.name, name, name, 1, at, at, left=False, queued_seconds=0.0, reply_seconds=0.0
    )
    exchange.reply_bytes = len(body)
    try:
        reply = read_reply(LIST_MEMBERS, 200, {"Content-Type": MEDIA_TYPE}, body)
    except BadReply as error:
        exchange.error, exchange.rejects = error, [rejected(error.reason, body)]
        return exchange, Ending(name, name, {}, "lost", [], f"bad_reply_{error.reason}", error.advice)
    exchange.reply, exchange.rejects = reply, reply.rejects
    return exchange, Ending(name, name, {}, "answered", [MemberEnding(each, at) for each in reply.members])


class Simulation:
    """An embedded Nexus on loopback, in a process of its own; made by `simulate`, ended by ``close`` or ``with``.

    Attributes
    ----------
    tokens
        A source that opens a session for each simulated user when its turn comes, so it never goes stale.
    settings
        Where and in which time it runs.
    """

    def __init__(self, process: subprocess.Popen[str], announced: dict[str, Any], settings: Settings) -> None:
        self._process = process
        self._control_key = announced["control_key"]
        self.settings = replace(
            settings, base_url=announced["base_url"], sso_url="", clock=Clock.parse(announced["clock"])
        )
        users = UserIds(announced["users"])
        self.tokens: Source = sso_tokens(users, announced["client_id"], Secret(API_KEY))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Simulation SIMULATED {len(self.tokens):,} users at {self.settings.base_url}>"

    def truth(self) -> dict[str, pd.DataFrame]:
        """What the simulated world knows.

        Returns
        -------
        dict
            ``jobs``: a row per job of the users that were asked about, with ``requested_at``, ``started_at``,
            ``finished_at`` (seconds since 1970 of the simulation; missing while it runs), ``duration_seconds``
            and ``outcome``, the connection status it ends in. ``planted``: a row per planted event.
            ``defects``, ``institutions``, ``status_mix``: what was derived.
        """
        return {name: pd.DataFrame(rows) for name, rows in self._control("truth").items()}

    def arrivals(self) -> dict[str, Any]:
        """What the server has received, by endpoint and by user, and the most at once."""
        return self._control("arrivals")

    def skip(self, seconds: float) -> None:
        """Let this much simulated time go by at once: members age, jobs run, scenarios begin and end.

        For between two runs; `settings` has the new time from then on.

        Raises
        ------
        ConfigError
            `seconds` is negative or no number.
        """
        self._control("skip", {"seconds": seconds})
        clock = self.settings.clock
        later = replace(clock, simulated_epoch=clock.simulated_epoch + seconds)
        self.settings = replace(self.settings, clock=later)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _control(self, path: str, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - the address is loopback http, announced by our own child
            f"{self.settings.base_url}/_control/{path}",
            data=None if asked is None else json.dumps(asked).encode(),
            headers={"MXLAB-Control-Key": self._control_key},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 - as above
                answer: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                raise ConfigError(json.load(error)["error"]["message"]) from None
        return answer


def simulate(
    users: int = 2_000,
    *,
    seed: int = 0,
    speed: float = 1.0,
    scenarios: Sequence[str] = (),
    faults: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    port: int = 0,
    settings: Settings | None = None,
) -> Simulation:
    """Start an embedded Nexus on loopback, in a process of its own.

    Parameters
    ----------
    users, seed
        How many users, and which of the possible worlds.
    speed
        Simulated seconds in a real one.
    scenarios
        What is planted, by name, as ``("slow_bank",)``.
    faults
        What goes wrong on the way, as figures of `mxlab.simulator.faults.Faults`:
        ``{"latency_seconds": 0.02, "rates": {"close": 0.01}}``.
    parameters
        Any other figure of `mxlab.simulator.Parameters`, as ``{"not_pfm_share": 0.0}``.
    port
        0 takes a free one.
    settings
        How to collect from it; the address and the clock are filled in.

    Returns
    -------
    Simulation

    Raises
    ------
    ConfigError
        The port is in use, or a parameter is out of range.
    """
    options = ["--users", str(users), "--seed", str(seed), "--port", str(port), "--speed", repr(float(speed))]
    if faults:
        options += ["--faults", json.dumps(faults)]
    for name, value in (parameters or {}).items():
        options += ["--set", f"{name}={json.dumps(value)}"]
    for scenario in scenarios:
        options += ["--scenario", scenario]
    command = [sys.executable, "-m", "mxlab.simulator.server", "--until-eof", *options]
    with tempfile.TemporaryFile("w+") as said:  # never a pipe that fills up while nobody reads it
        process = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.communicate(timeout=10)
            said.seek(0)
            raise ConfigError(f"simulate: {said.read().strip() or 'the simulator did not start'}")
    return Simulation(process, json.loads(line), settings or Settings(seed=seed))
