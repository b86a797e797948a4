"""A world over real HTTP, on loopback: MX's SSO, sessions, members and jobs, and a control path for the truth.

``python -m mxlab.simulator.server --users 2000 --seed 7 --port 0 --speed 20`` serves one in a process of its own. The
simulated time is ``SIMULATED + (time.time() − REAL) × SPEED``, the three numbers of the announced clock.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from aiohttp import web

from mxlab.errors import ConfigError
from mxlab.simulator.faults import Faults
from mxlab.simulator.parameters import SCENARIOS, Parameters
from mxlab.simulator.service import API_KEY, SIMULATED, Nexus
from mxlab.simulator.world import World

__all__ = ["API_KEY", "SIMULATED", "Nexus", "listening", "main", "serve"]


class _Connection(web.RequestHandler):
    """A connection whose every reply says that it is simulated, those to unreadable requests too."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        response = super().handle_error(request, status, exc, message)
        response.headers[SIMULATED] = "true"
        return response


class _Server(web.Server):
    """aiohttp's low-level server with connections of our own: no router, no middleware."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


@contextlib.asynccontextmanager
async def listening(nexus: Nexus, port: int = 0, *, idle_seconds: float = 75.0) -> AsyncIterator[int]:
    """The port on 127.0.0.1 at which an API listens inside the ``async with``.

    A connection that is idle for ``idle_seconds`` (real ones) is closed, as a balancer does.

    Raises
    ------
    ConfigError
        If the port is in use.
    """
    server = _Server(nexus.handle, access_log=None, keepalive_timeout=idle_seconds)
    runner = web.ServerRunner(server, shutdown_timeout=0.5)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", port, backlog=1_024).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConfigError(
                f"port {port} on 127.0.0.1 is in use: choose another with --port, or --port 0 for any free one"
            ) from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def serve(
    parameters: Parameters,
    *,
    port: int = 0,
    speed: float = 1.0,
    faults: Faults | None = None,
    idle_seconds: float = 75.0,
    announce: Callable[[dict[str, Any]], None],
    until: asyncio.Event | None = None,
) -> None:
    """Serve a world on 127.0.0.1 until ``until`` is set, or until cancelled.

    Parameters
    ----------
    parameters
        The world's figures; its epoch is the simulated time at which serving begins.
    port
        0 for any free one.
    speed
        Simulated seconds a real second.
    faults
        What goes wrong from the start; none by default.
    idle_seconds
        Real seconds after which an idle connection is closed.
    announce
        Called once the server listens, with ``base_url``, ``clock`` (REAL/SIMULATED/SPEED), ``client_id``,
        ``control_key``, ``users``, ``seed``.
    until
        The event that ends it; none for never.

    Raises
    ------
    ConfigError
        If the port is in use or is none, or the speed is not above 0.
    """
    if not speed > 0:
        raise ConfigError(f"speed is {speed!r}: must be above 0")
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port is {port}: must be from 1 to 65535, or 0 for any free one")
    real = time.time()
    nexus = Nexus(World(parameters), lambda: parameters.epoch + (time.time() - real) * speed)
    nexus.set_faults(faults or Faults())
    async with listening(nexus, port, idle_seconds=idle_seconds) as bound:
        announce(
            {
                "base_url": f"http://127.0.0.1:{bound}",
                "clock": f"{real!r}/{parameters.epoch!r}/{speed!r}",
                "client_id": nexus.client_id,
                "control_key": nexus.control_key,
                "users": parameters.users,
                "seed": parameters.seed,
            }
        )
        await (until or asyncio.Event()).wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mxlab.simulator.server", description="Serve a simulated Nexus on loopback."
    )
    parser.add_argument("--users", type=int, default=2_000, help="how many users (2000)")
    parser.add_argument("--seed", type=int, default=0, help="what the world is derived from (0)")
    parser.add_argument("--port", type=int, default=0, help="0 for any free one (0)")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds a real second (1)")
    parser.add_argument(
        "--epoch", type=float, help="Unix time at which the simulation starts (the real time)"
    )
    parser.add_argument(
        "--scenario", action="append", default=[], metavar="NAME", help=f"any of {', '.join(SCENARIOS)}"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIGURE=JSON",
        help="any other figure of Parameters, as JSON",
    )
    parser.add_argument("--faults", default="{}", metavar="JSON", help="figures of Faults, as a JSON object")
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=75.0,
        help="real seconds until an idle connection is closed (75)",
    )
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends")
    return parser


def _parameters(options: argparse.Namespace) -> Parameters:
    """The figures that a command line asks for."""
    figures: dict[str, Any] = {}
    known = {declared.name for declared in dataclasses.fields(Parameters)}
    for setting in options.set:
        name, _, text = setting.partition("=")
        if name not in known:
            raise ConfigError(f"unknown figure {name!r}; known: {', '.join(sorted(known))}")
        figures[name] = _native(_parsed(f"--set {name}", text))
    epoch = time.time() if options.epoch is None else options.epoch
    named = {
        "users": options.users,
        "seed": options.seed,
        "epoch": epoch,
        "scenarios": tuple(options.scenario),
    }
    return Parameters(**(named | figures))


def _parsed(option: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is not JSON") from None


def _native(value: Any) -> Any:
    """A JSON value as `Parameters` has it: tuples, and numbers and None as keys."""
    if isinstance(value, Mapping):
        return {
            None if name == "null" else int(name) if name.isdigit() else name: one
            for name, one in value.items()
        }
    return tuple(value) if isinstance(value, list) else value


def _announce(facts: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def _run(options: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        # Windows has no such handlers: a signal ends the process by itself there.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(name, stopped.set)

    def read_to_the_end() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4_096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(stopped.set)

    if options.until_eof:
        threading.Thread(target=read_to_the_end, daemon=True).start()
    parameters, faults = _parameters(options), Faults.of(_parsed("--faults", options.faults))
    await serve(
        parameters,
        port=options.port,
        speed=options.speed,
        faults=faults,
        idle_seconds=options.idle_seconds,
        announce=_announce,
        until=stopped,
    )


def main(arguments: list[str] | None = None) -> int:
    """Serve as a command line says; 0 when stopped, 2 when it cannot be done as asked."""
    options = _parser().parse_args(arguments)
    gc.set_threshold(
        100_000
    )  # members live as long as the process: looking through them again and again is idle
    try:
        import uvloop  # noqa: PLC0415 - not on every platform

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_run(options))
    except ConfigError as error:
        sys.stderr.write(f"mxlab simulator: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
