"""The command line: each command a few lines over the blocking doors.

Exit status: 0 all users answered; 1 any user lost, unknown or pending (the rest is kept); 2 usage or
configuration.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pandas as pd
from matplotlib.axes import Axes

from mxlab import analysis, api, charts
from mxlab.errors import ConfigError, ConsentRequired, MxlabError, StoreError
from mxlab.exchange import Progress
from mxlab.exports import export
from mxlab.fetch.sso import sso_tokens
from mxlab.frames import Snapshot
from mxlab.plots import style
from mxlab.plots.style import duration, percent
from mxlab.reporting import report
from mxlab.settings import Settings, preceded
from mxlab.simulator import SCENARIOS, Parameters
from mxlab.simulator.server import API_KEY, serve
from mxlab.simulator.world import UserIds
from mxlab.store import Store
from mxlab.tokens import Source, source

_PAINT_SECONDS = 0.25
_LINE_SECONDS = 5.0
#: A folder of Jupyter's: a template for Voila and settings for JupyterLab that ask no other host for anything.
_JUPYTER = Path(__file__).with_name("jupyter")
_JUPYTERLAB = (
    "--ServerApp.ip=127.0.0.1",
    "--LabApp.default_url=/lab/tree/01_quickstart.ipynb",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.news_url=",
    "--LabApp.extension_manager=readonly",
)
_VOILA = (
    "--Voila.ip=127.0.0.1",
    "--token",
    "--template=mxlab",
    "--classic-tree",
    "--show_tracebacks=False",
    "--progressive_rendering=True",
    "--MappingKernelManager.cull_interval=60",
    "--MappingKernelManager.cull_idle_timeout=600",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except (ConfigError, ConsentRequired, StoreError) as error:
        print(f"mxlab: {error}", file=sys.stderr)
        return 2
    except MxlabError as error:
        print(f"mxlab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mxlab: stopped; what was collected is kept", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has enough
        return 0
    return status


class _Parser(argparse.ArgumentParser):
    """One that names the nearest option to one that it does not know."""

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """As its parent's, but that an option left over is an error here, where the others are known."""
        options, rest = super().parse_known_args(*given, **named)
        for word in rest:
            name = word.partition("=")[0]
            if name.startswith("--"):
                near = get_close_matches(name, self._option_string_actions, 1, cutoff=0.0)
                self.error(f"there is no option {name}; did you mean {near[0]}?")
        return options, rest


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mxlab", description="Connection health of MX members, for many users.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=run)
        return sub

    demo = command("demo", _demo, "the main job on the simulator: collect, store, report")
    demo.add_argument("--users", type=int, default=2_000, help="how many users (2000)")
    demo.add_argument("--seed", type=int, default=7, help="which of the possible worlds (7)")
    demo.add_argument(
        "--out", type=Path, default=Path("mxlab-demo"), help="the folder to write to (mxlab-demo)"
    )
    demo.add_argument("--speed", type=float, default=40.0, help="simulated seconds in a real one (40)")
    _scenarios(demo, "what is planted (slow_bank); calm plants nothing")

    for name, run in (("observe", _observe), ("aggregate", _aggregate)):
        sub = command(name, run, f"{name} many users; writes a store as it goes")
        _collecting(sub)
    sub.add_argument("--yes", action="store_true", help="start jobs at a real host without asking")

    preview = command("preview", _preview, "what an aggregate would do, before it does it; starts nothing")
    _collecting(preview)
    preview.add_argument("--look", action="store_true", help="one observe pass now tells of the members")

    for name, run, about in (
        ("runs", _runs, "the runs of a store"),
        ("draw", _draw, "a chart of a run as PNG"),
        ("sql", _sql, "ask a store in SQL: tables members, changes, requests, rejects, runs"),
        ("report", _report, "one self-contained HTML page of a run, or of what has changed since another"),
        ("audit", _audit, "which rules the records of a run fail; with --out the records that fail"),
        ("export", _export, "a frame of a run as csv, xlsx, parquet or json"),
    ):
        sub = command(name, run, about)
        sub.add_argument("--store", type=Path, required=True, help="the store's folder")
        if name == "draw":
            sub.add_argument("chart", help=", ".join(charts.CHARTS))
            _looking(sub)
        if name == "sql":
            sub.add_argument("query")
        if name == "export":
            sub.add_argument(
                "--frame", default="members", choices=("members", "changes", "requests", "rejects")
            )
        if name in {"audit", "export"}:
            sub.add_argument(
                "--identities", action="store_true", help="keep MX's ids and free text as they are"
            )
        if name in {"draw", "report"}:
            sub.add_argument(
                "--against",
                metavar="RUN",
                help="an earlier run to compare with; 7d for the latest of 7 days before or earlier",
            )
        if name in {"draw", "report", "audit", "export"}:
            sub.add_argument("--run", help="a run of the store (the latest)")
            sub.add_argument("--out", type=Path, required=name == "export", help="the file to write")
        if name in {"runs", "sql", "audit"}:
            sub.add_argument("--json", action="store_true", help="for machines")

    gallery = command("gallery", _gallery, "every chart, of a store or of a simulation, a PNG each")
    gallery.add_argument("--store", type=Path, help="the store's folder (two weeks of a simulation)")
    gallery.add_argument("--out", type=Path, default=Path("gallery"), help="the folder to write to (gallery)")
    gallery.add_argument("--users", type=int, default=1_000, help="of the simulation (1000)")
    _looking(gallery)

    simulate = command("simulate", _simulate, "serve a simulated Nexus on loopback until stopped")
    simulate.add_argument("--users", type=int, default=2_000)
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--port", type=int, default=0, help="0 for any free one")
    simulate.add_argument("--speed", type=float, default=1.0, help="simulated seconds in a real one")
    simulate.add_argument(
        "--credentials", type=Path, help="a folder for users.txt and the key that it accepts"
    )
    _scenarios(simulate, "what is planted")

    lab = command("lab", _lab, "the notebooks in JupyterLab")
    lab.add_argument("--voila", action="store_true", help="as pages without code, one kernel for each reader")
    lab.add_argument("--no-browser", action="store_true", help="print the address only")
    lab.add_argument("--port", type=int, help="of the server; another where it is taken")
    return parser


def _looking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=800, help="in pixels: 480, 800, 1600 (800)")
    parser.add_argument("--dark", action="store_true", help="on dark paper")


def _scenarios(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument(
        "--scenario", action="append", metavar="NAME", help=f"{about}; of {', '.join(SCENARIOS)}"
    )


def _collecting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", type=Path, metavar="FILE", help="session tokens: CSV or one a line, mode 0600"
    )
    parser.add_argument(
        "--users", type=Path, metavar="FILE", help="your user ids, one a line; with --client-id"
    )
    parser.add_argument("--client-id", help="MX's name for you")
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="the API key, mode 0600 (keyring or a prompt)"
    )
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--run", help="the run's name; the same again resumes it")
    parser.add_argument("--sample", type=int, metavar="N", help="N users at random")
    parser.add_argument("--json", action="store_true", help="the outcome for machines")
    for each in fields(Settings):
        if each.name != "allow_aggregate":
            parser.add_argument(
                f"--{each.name.replace('_', '-')}",
                metavar=each.name.split("_")[-1].upper(),
                help=each.metadata["doc"],
            )


def _demo(options: argparse.Namespace) -> int:
    out: Path = options.out
    _make_folder(out / "charts")
    store = Store(out / "store")
    world: dict[str, Any] = {
        "seed": options.seed,
        "speed": options.speed,
        "scenarios": options.scenario or ["slow_bank"],
        "faults": {"latency_seconds": 0.02},  # as of a server that is not on the same machine
    }
    with api.simulate(options.users, **world) as simulation:
        with _Bar() as bar:
            run = api.aggregate(simulation.tokens, simulation.settings, store=store, tick=bar).manifest["run"]
        arrivals = simulation.arrivals()
    snap = store.load(run)
    _print_outcome(snap)
    print(f"  {'server’s count':<22}{arrivals['by_endpoint']['aggregate_all']:,} arrivals of aggregate, "
          f"{arrivals['most_in_flight']:,} requests in flight at the most")  # fmt: skip
    for name in charts.OVERVIEW:
        (out / "charts" / f"{name}.png").write_bytes(charts.png(style.root(charts.draw(name, snap))))
    page = report(snap, out / "report.html")
    print(f"\nReport    {page}\nCharts    {out / 'charts'}\nStore     {out / 'store'}, run {run}")
    print(f"Notebooks {_notebooks_line()}")
    return 0


def _notebooks_line() -> str:
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return f"{python} -m pip install -q -c constraints.txt -e '.[lab]' && {python} -m mxlab lab"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".mxlab-writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot write to {path}: {error.strerror}; give another folder with --out"
        ) from None


def _observe(options: argparse.Namespace) -> int:
    return _collect(options, api.observe, Settings.from_environment(**_given(options)))


def _aggregate(options: argparse.Namespace) -> int:
    settings = Settings.from_environment(**_given(options))
    if settings.base_url and not settings.on_loopback:
        _ask_consent(options, settings)
        settings = Settings.from_environment(**_given(options), allow_aggregate=True)
    return _collect(options, api.aggregate, settings)


def _preview(options: argparse.Namespace) -> int:
    settings = Settings.from_environment(**_given(options))
    store = Store(options.store) if options.store.exists() else None
    seen = api.preview(_tokens(options), settings, store=store, look=options.look, sample=options.sample)
    print(json.dumps(asdict(seen)) if options.json else seen)
    return 0


def _ask_consent(options: argparse.Namespace, settings: Settings) -> None:
    if options.yes:
        return
    print(
        f"aggregate starts jobs at banks through {settings.base_url} and may prompt people.", file=sys.stderr
    )
    if not sys.stdin.isatty() or input("Type aggregate to go on: ").strip() != "aggregate":
        raise ConsentRequired("nothing was sent: aggregate off loopback needs the typed word, or --yes")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    names = [each.name for each in fields(Settings) if each.name != "allow_aggregate"]
    return {name: getattr(options, name) for name in names}


def _tokens(options: argparse.Namespace) -> Source:
    if (options.tokens is None) == (options.users is None):
        raise ConfigError("give --tokens FILE, or --users FILE with --client-id ID")
    if options.tokens is not None:
        return source(options.tokens)
    if options.client_id is None:
        raise ConfigError("--users needs --client-id, MX's name for you")
    return sso_tokens(options.users, options.client_id, options.key_file)


def _collect(options: argparse.Namespace, door: Callable[..., Snapshot], settings: Settings) -> int:
    store = Store(options.store)
    try:
        with _Bar() as bar:
            snap = door(
                _tokens(options), settings, store=store, run=options.run, sample=options.sample, tick=bar
            )
    except KeyboardInterrupt:
        _say_what_was_done(store, options.run)
        raise
    if options.json:
        coverage = snap.coverage
        facts = {
            name: getattr(coverage, name) for name in ("asked", "answered", "lost", "unknown", "pending")
        }
        print(json.dumps({"run": snap.manifest["run"], "simulated": snap.simulated, **facts,
                          "reasons": dict(coverage.reasons)}))  # fmt: skip
    else:
        _print_outcome(snap)
    return 0 if snap.coverage.answered == snap.coverage.asked else 1


def _say_what_was_done(store: Store, run: str | None) -> None:
    """How far a run came that was stopped, and how it goes on."""
    with suppress(StoreError):  # stopped before there was any
        snap = store.load(run)
        print(
            f"mxlab: run {snap.manifest['run']}: {snap.coverage}; go on with --run {snap.manifest['run']}",
            file=sys.stderr,
        )


def _print_outcome(snap: Snapshot) -> None:
    """The run as a table that a person can read, made of the Snapshot alone."""
    members, coverage = snap.members, snap.coverage

    def line(name: str, text: str) -> None:
        print(f"  {name:<22}{text}")

    stamp = "SIMULATED  " if snap.simulated else ""
    print(f"\n{stamp}{snap.manifest['verb']} of run {snap.manifest['run']}")
    line("users", str(coverage))
    if added := snap.manifest.get("added"):
        line("added", f"{added:,} users that this run had not been given before")
    if again := snap.manifest.get("asked_again"):
        line("asked again", f"{again:,} users that this run had lost before")
    counts = analysis.status_counts(members, coverage=coverage)
    counts = counts[counts["unit"] == "members"]
    line("members", f"{int(counts['count'].sum()):,}")
    for row in counts.sort_values("count", ascending=False).to_dict("records"):
        line(f"  {row['status']}", f"{row['count']:>7,}  {percent(row['share']):>6}")
    line("who must act", "")
    acting = analysis.who_must_act(members, coverage=coverage)
    for row in acting[(acting["unit"] == "members") & (acting["count"] > 0)].to_dict("records"):
        interval = f"({percent(row['low'])}–{percent(row['high'])})"
        line(f"  {row['who_must_act']}", f"{row['count']:>7,}  {percent(row['share']):>6}  {interval}")
    quantiles = analysis.latency_quantiles(members).to_dict("records")
    for name in ("p50", "p90"):
        line(
            f"aggregation time {name}",
            _quantile(quantiles[0], name) if quantiles else "no aggregation finished",
        )
    line("slow banks", _slow(members))


def _quantile(row: dict[Any, Any], name: str) -> str:
    if pd.isna(row[name]):
        return f"not known: {row[f'{name}_why']}"
    low, high = duration(row[f"{name}_low"]), duration(row[f"{name}_high"])
    return f"{duration(row[name])}  (95 % interval {low} to {high}; {row['n']:,} aggregations, {row['n_censored']:,} still running)"


def _slow(members: pd.DataFrame) -> str:
    ranked = analysis.slow_institutions(members)
    slow = ranked[ranked["is_slower"].astype(bool)]
    if slow.empty:
        return "nothing found: no bank is slower than the rest"
    return "; ".join(
        f"{row['institution']}: {row['ratio']:.1f} times the time of the rest "
        f"({row['ratio_low']:.1f}–{row['ratio_high']:.1f}, {row['n']:,} aggregations)"
        for row in slow.to_dict("records")
    )


def _runs(options: argparse.Namespace) -> int:
    return _print_frame(Store(options.store).runs(), as_json=options.json)


def _sql(options: argparse.Namespace) -> int:
    return _print_frame(Store(options.store).sql(options.query).df(), as_json=options.json)


def _print_frame(frame: pd.DataFrame, *, as_json: bool) -> int:
    if as_json:
        print(frame.to_json(orient="records", date_format="iso"))
    else:
        print(frame.to_string(index=False, na_rep="–"))
    return 0


def _draw(options: argparse.Namespace) -> int:
    store, chart = Store(options.store), charts.CHARTS.get(options.chart)
    every = chart is not None and chart.of_many and options.run is None
    snap = store.load(runs=store.runs()["run"].tolist()) if every else store.load(options.run)
    against = _earlier(store, snap, options.against)
    axes = charts.draw(options.chart, snap, against, width=options.width, dark=options.dark)
    _write_picture(axes, options.out or Path(f"{options.chart}.png"))
    return 0


def _gallery(options: argparse.Namespace) -> int:
    _make_folder(options.out)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(options.store or folder)
        if options.store is None:
            _two_weeks(store, options.users)
        runs = store.runs()["run"].tolist()
        snap, history = store.load(runs[-1]), store.load(runs=runs)
        before = store.load(runs[-2]) if len(runs) > 1 else None
        for name, chart in charts.CHARTS.items():
            if chart.of_two and before is None:
                print(f"{name} is left out: it compares two runs, and the store has one")
                continue
            shown = history if chart.of_many else snap
            axes = charts.draw(name, shown, before, width=options.width, dark=options.dark)
            _write_picture(axes, options.out / f"{name}.png")
    return 0


#: Defects of records that the simulated weeks have: such as can be read.
_DEFECTS = (
    "connected_but_stale",
    "connected_without_success",
    "guid_shared_by_users",
    "stuck_running",
    "time_in_future",
    "unknown_status",
    "use_cases_empty",
)


def _two_weeks(store: Store, users: int) -> None:
    """A simulation with something in it for every chart: a look each day, then an aggregate during an outage."""
    day = 86_400.0
    world: dict[str, Any] = {
        "seed": 7,
        "speed": 40,
        "scenarios": ("slow_bank", "outage_oauth", "defects"),
        "faults": {"latency_seconds": 0.02, "rates": {"close": 0.002, "rate_limited": 0.002}},
        "parameters": {
            "epoch": datetime(2026, 11, 10, 9, tzinfo=UTC).timestamp(),  # the same dates each time
            "scenario_from_seconds": 12.7 * day,
            "scenario_until_seconds": 14.0 * day,
            "defect_kinds": _DEFECTS,
        },
    }
    with api.simulate(users, **world) as simulation:
        for number in range(1, 14):
            looking = replace(simulation.settings, read_jobs=False)
            with _Bar() as bar:
                api.observe(simulation.tokens, looking, store=store, run=f"day-{number:02}", tick=bar)
            simulation.skip(day)
        with _Bar() as bar:
            api.aggregate(simulation.tokens, simulation.settings, store=store, run="day-14", tick=bar)


def _write_picture(axes: Axes, path: Path) -> None:
    try:
        path.write_bytes(charts.png(style.root(axes)))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give another file with --out") from None
    print(path)


def _earlier(store: Store, snap: Snapshot, against: str | None) -> Snapshot | None:
    """The run to compare with: a run's name, or a number of days, counted by date, so that a run may be early or late."""
    if against is None:
        return None
    runs = store.runs()
    days = re.fullmatch(r"(\d+)d", against)
    if days is None or against in set(runs["run"]):
        return store.load(against)
    last = pd.Timestamp(snap.manifest["started_at"]).normalize() - pd.Timedelta(days=int(days[1]))
    old = runs[runs["started_at"].dt.normalize() <= last]
    if old.empty:
        raise ConfigError(
            f"--against {against}: no run is from {last:%Y-%m-%d} or earlier; mxlab runs --store {store.path} lists them"
        )
    return store.load(old["run"].iloc[-1])


def _report(options: argparse.Namespace) -> int:
    store = Store(options.store)
    snap = store.load(options.run)
    page = report(snap, options.out or Path("report.html"), against=_earlier(store, snap, options.against))
    print(page)
    return 0


def _audit(options: argparse.Namespace) -> int:
    found = analysis.findings(Store(options.store).load(options.run).members)
    if options.out is not None:
        export(found, options.out, identities=options.identities)
    counts = (
        found.groupby(["severity", "rule", "reason"], observed=True).size().rename("records").reset_index()
    )
    return _print_frame(
        counts.sort_values(["severity", "records"], ascending=[True, False]), as_json=options.json
    )


def _export(options: argparse.Namespace) -> int:
    frame = getattr(Store(options.store).load(options.run), options.frame)
    print(export(frame, options.out, identities=options.identities))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    parameters = Parameters(
        users=options.users, seed=options.seed, epoch=time.time(), scenarios=tuple(options.scenario or ())
    )
    if options.credentials is not None:
        _make_folder(options.credentials)
        (options.credentials / "users.txt").write_text("\n".join(UserIds(options.users)) + "\n")
        key = options.credentials / "key"
        key.touch(mode=0o600)
        key.write_text(API_KEY + "\n")

    def announce(facts: dict[str, Any]) -> None:
        print(f"SIMULATED Nexus of {facts['users']:,} users, until stopped\n"
              f"  --base-url {facts['base_url']} --clock {facts['clock']} --client-id {facts['client_id']}", flush=True)  # fmt: skip

    async def until_stopped() -> None:
        stopped = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stopped.set)
        await serve(parameters, port=options.port, speed=options.speed, announce=announce, until=stopped)

    with asyncio.Runner() as runner:
        runner.run(until_stopped())
    return 0


def _lab(options: argparse.Namespace) -> int:
    module, name = ("voila", "Voila") if options.voila else ("jupyterlab", "JupyterLab")
    notebooks = Path(__file__).parent.parent / "notebooks"
    if find_spec(module) is None:
        raise ConfigError(f"{name} is not installed: pip install 'mxlab[lab]'")
    if not notebooks.is_dir():
        raise ConfigError(
            f"the notebooks are not at {notebooks}: run from a clone, installed with pip install -e"
        )
    command = [sys.executable, "-m", module, str(notebooks), *(_VOILA if options.voila else _JUPYTERLAB)]
    if options.no_browser:
        command.append("--no-browser")
    if options.port is not None:
        command.append(f"--port={options.port}")
    environment = preceded("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", by=_JUPYTER)
    os.execvpe(sys.executable, command, environment)  # noqa: S606 - so that Ctrl-C is the server's


class _Bar:
    """Progress on stderr: count, rate, time left; painted four times a second on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began = self._painted = time.monotonic()
        self._last: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._paint(self._last)
            if self._terminal:
                print(file=sys.stderr)

    def __call__(self, progress: Progress) -> None:
        self._last = progress
        if time.monotonic() - self._painted >= (_PAINT_SECONDS if self._terminal else _LINE_SECONDS):
            self._paint(progress)

    def _paint(self, progress: Progress) -> None:
        self._painted = time.monotonic()
        seconds = max(self._painted - self._began, 1e-9)
        ended, asked = progress.ended, progress.asked
        rate = ended / seconds
        text = f"{ended:,} users, {rate:,.0f}/s, {progress.requests:,} requests, {progress.following:,} under way"
        if asked:
            part, open_yet = progress.share, progress.left or 0
            left = f", about {duration(max(open_yet / rate, 1))} left" if rate and part < 1 else ""
            if open_yet <= progress.following:
                left = ", following the last of them" if progress.following else ""
            filled = round(24 * part)
            text = f"[{'█' * filled}{'·' * (24 - filled)}] {part:4.0%}  {text}{left}"
        print(
            f"\r\x1b[K{text}" if self._terminal else text,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
