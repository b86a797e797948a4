"""`Collector`: choose whom to ask and what for, see what it would do, allow it, start, watch, stop; then an Explorer."""

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import replace
from html import escape
from threading import Thread
from typing import Any

from ipywidgets import (
    HTML,
    BoundedIntText,
    Button,
    Checkbox,
    Dropdown,
    FloatProgress,
    HBox,
    Layout,
    Password,
    Text,
    VBox,
)

from mxlab import aio, api
from mxlab.errors import ConfigError, MxlabError
from mxlab.exchange import Progress
from mxlab.exports import displayed
from mxlab.fetch.sso import sso_tokens
from mxlab.frames import Snapshot
from mxlab.plots.style import duration
from mxlab.portal import Job, start
from mxlab.settings import Settings
from mxlab.store import Store
from mxlab.tokens import Secret, Tokens
from mxlab.widgets.explorer import Explorer

_SECONDS_BETWEEN_PAINTS = 0.25
_SIMULATOR, _FILE, _USERS, _GIVEN = (
    "the simulator",
    "a token file",
    "user ids and an API key",
    "the tokens given",
)
_SHOWN = {
    _SIMULATOR: ("count", "speed"),
    _FILE: ("path", "base_url", "max_users"),
    _USERS: ("path", "client_id", "key", "base_url", "max_users"),
    _GIVEN: ("base_url", "max_users"),
}
_DOORS = {"observe: read only": aio.observe, "aggregate: starts jobs at banks": aio.aggregate}


class Collector(VBox):
    """Collect without code: source and verb, preview, consent, start, progress, stop, and then an Explorer.

    The kernel stays free. Stopping keeps what has come; with a store, starting the same run again goes on from
    there. An API key that is typed leaves the page in the moment that it is used.

    Parameters
    ----------
    tokens
        A source of your own, to choose from beside the others.
    settings
        What the fields do not say; the defaults where None.
    store, run
        Where to write, and under what name.

    Attributes
    ----------
    job
        The run under way or the last one; None before the first.
    snapshot
        What the last run saw; None before its end.
    """

    def __init__(
        self,
        tokens: Tokens | None = None,
        settings: Settings | None = None,
        *,
        store: Store | None = None,
        run: str | None = None,
    ) -> None:
        self._tokens, self._settings = tokens, settings or Settings()
        self._store, self._run = store, run
        self._thread: Thread | None = None
        self._under_way: Job[Any] | None = None
        self.job: Job[Snapshot] | None = None
        self.snapshot: Snapshot | None = None
        sources = [_SIMULATOR, _FILE, _USERS] if tokens is None else [_GIVEN, _SIMULATOR, _FILE, _USERS]
        self.source = Dropdown(description="Ask", options=sources)
        self.verb = Dropdown(description="To", options=list(_DOORS))
        self.count = BoundedIntText(500, min=1, max=100_000, description="Users")
        self.speed = BoundedIntText(100, min=1, max=1_000, description="Speed ×")
        self.path = Text(description="File", placeholder="tokens.csv or users.txt")
        self.client_id = Text(description="Client id")
        self.key = Password(description="API key")
        self.base_url = Text(self._settings.base_url, description="Host", placeholder="https://…")
        self.max_users = BoundedIntText(
            self._settings.max_users or 1_000, min=1, max=100_000_000, description="At most"
        )
        self.consent = Checkbox(
            description="I allow jobs to be started at banks; they may prompt people", indent=False
        )
        self.look, self.begin, self.stop = (Button(description=word) for word in ("Preview", "Start", "Stop"))
        self.bar = FloatProgress(max=1.0, layout=Layout(width="100%"))
        self.said, self._fields, self.result = HTML(), VBox(), VBox()
        for each in (self.source, self.verb, self.path, self.base_url, self.client_id):
            each.layout.width = "420px"
        for name in ("source", "verb", "begin", "stop", "look", "said", "consent", "key"):
            getattr(self, name).add_class(f"mxlab-collect-{name}")
        self.source.observe(self._arrange, "value")
        self.verb.observe(self._arrange, "value")
        for asked in (self.source, self.verb, self.path, self.client_id, self.base_url, self.max_users):
            asked.observe(self._withdraw, "value")
        self.look.on_click(lambda _: self._go(self._preview))
        self.begin.on_click(lambda _: self._go(self._collect))
        self.stop.on_click(lambda _: self.cancel())
        self.stop.disabled = True
        self._arrange()
        buttons = HBox([self.look, self.begin, self.stop])
        super().__init__([self.source, self.verb, self._fields, buttons, self.bar, self.said, self.result])
        self.add_class("mxlab-collector")

    def cancel(self) -> None:
        """Stop what is under way; what has come of a run is kept and shown."""
        if self._under_way is not None:
            self._under_way.cancel()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the end of what is under way, and bring the page up to date where it could not be before."""
        if self._thread is not None:
            self._thread.join(seconds)
        for each in (self.bar, self.said, self.result):
            each.send_state()

    @property
    def _starts_jobs(self) -> bool:
        return _DOORS[self.verb.value] is aio.aggregate

    def _arrange(self, _: object = None) -> None:
        """Show the fields that the choices ask for."""
        fields = [getattr(self, name) for name in _SHOWN[self.source.value]]
        if self._starts_jobs and self.source.value != _SIMULATOR:
            fields.append(self.consent)
        self._fields.children = fields

    def _withdraw(self, _: object = None) -> None:
        """Consent was to what was asked then: another host, other users, or more of them need another."""
        self.consent.value = False

    def _go(self, action: Callable[[Tokens, Settings], None]) -> None:
        """Take what is typed, clear the key and the consent, and do the rest in a thread of its own."""
        if self._thread is not None and self._thread.is_alive():
            return  # a second click that was on its way already
        typed, self.key.value = self.key.value, ""
        key = Secret(typed) if typed else None
        allowed = self._starts_jobs and self.consent.value
        if action == self._collect:
            self._withdraw()  # it is for one run
        self.begin.disabled = self.look.disabled = True
        self.stop.disabled = False
        work = (action, key, allowed)
        self._thread = Thread(target=self._work, args=work, name="mxlab-collector", daemon=True)
        self._thread.start()

    def _work(
        self,
        action: Callable[[Tokens, Settings], None],
        key: Secret | None,
        allowed: bool,  # noqa: FBT001 - handed on by a thread
    ) -> None:
        try:
            with ExitStack() as stack:
                tokens, settings = self._opened(key, stack)
                action(tokens, replace(settings, allow_aggregate=allowed))
        except CancelledError:
            self._say("Stopped before anything came.")
        except MxlabError as error:
            self._say(str(error))
        finally:
            self.begin.disabled = self.look.disabled = False
            self.stop.disabled = True

    def _opened(self, key: Secret | None, stack: ExitStack) -> tuple[Tokens, Settings]:
        """Source and settings as the fields say; what needs closing goes on the stack."""
        chosen = self.source.value
        if chosen == _SIMULATOR:
            self._say("The simulator starts …")
            simulation = api.simulate(self.count.value, seed=self._settings.seed, speed=self.speed.value)
            stack.enter_context(simulation)
            return simulation.tokens, simulation.settings
        settings = replace(
            self._settings,
            base_url=self.base_url.value.strip(),
            max_users=self.max_users.value,
        )
        if chosen == _GIVEN:
            assert self._tokens is not None
            return self._tokens, settings
        if not self.path.value.strip():
            raise ConfigError("File: give the path of a file")
        if chosen == _FILE:
            return self.path.value.strip(), settings
        if key is None:
            raise ConfigError("API key: type it; it is used once and kept nowhere")
        return sso_tokens(self.path.value.strip(), self.client_id.value.strip(), key), settings

    def _preview(self, tokens: Tokens, settings: Settings) -> None:
        self._say("One look at every user, which starts nothing …")
        self._under_way = job = start(aio.preview(tokens, settings, store=self._store, look=True))
        self._say(str(job.result()))

    def _collect(self, tokens: Tokens, settings: Settings) -> None:
        door = _DOORS[self.verb.value]
        self._under_way = self.job = job = start(door(tokens, settings, store=self._store, run=self._run))
        begun = time.monotonic()
        while job.state == "running":
            self._paint(job.progress, time.monotonic() - begun)
            time.sleep(_SECONDS_BETWEEN_PAINTS)  # of a thread of ours: the kernel stays free
        try:
            self.snapshot = job.result()
        except CancelledError:
            if not job.progress.requests:
                raise
            self.snapshot = job.partial()
        self._paint(job.progress, time.monotonic() - begun)
        self.result.children = (Explorer(self.snapshot),)

    def _paint(self, progress: Progress, seconds: float) -> None:
        asked, ended = progress.asked, progress.ended
        self.bar.value = ended / asked if asked else 0.0
        rate = ended / seconds if seconds > 0 else 0.0
        parts = [f"{progress.phase}: {ended:,} of {'?' if asked is None else f'{asked:,}'} users"]
        if progress.phase == "collecting":
            parts += [f"{rate:,.0f} a second", f"{progress.in_flight:,} in flight"]
            if asked and rate:
                parts.append(f"{duration((asked - ended) / rate)} left")
        parts += [f"{word} {count:,}" for word, count in progress.statuses.most_common(4)]
        parts += [f"{reason} {count:,}" for reason, count in progress.reasons.most_common(3)]
        self._say(" · ".join(parts))

    def _say(self, text: str) -> None:
        lines = "<br>".join(escape(displayed(line)) for line in text.splitlines())
        self.said.value = f'<p class="mxlab-said" role="status">{lines}</p>'
