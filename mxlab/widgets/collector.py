"""`Collector`: choose whom to ask and what for, see what it would do, allow it, start, watch, pause, stop; then an Explorer."""

import re
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from html import escape
from threading import Thread
from typing import Any, TypeVar

from ipywidgets import (
    HTML,
    BoundedIntText,
    Button,
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
from mxlab.widgets.explorer import LOOK, Explorer
from mxlab.widgets.picture import Picture

T = TypeVar("T")
#: What is typed to start jobs at banks, here as on the command line.
_WORD = "aggregate"
#: Long enough to be a token: never shown of a message that is not ours.
_MAY_BE_SECRET = re.compile(r"[!-~]{20,}")
_SECONDS_BETWEEN_PAINTS = 0.25
#: Until so many have ended, the time left is a guess: the first are not like the others.
_KNOWS_RATE = 0.05
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
    """Collect without code: source and verb, preview, consent, start, progress, pause, stop, and then an Explorer.

    The kernel stays free. Pausing is that of `Job`; stopping keeps what has come, and with a store, starting the same
    run again goes on from there. Where jobs would start at banks the word ``aggregate`` is typed, for each run anew. An
    API key that is typed leaves the page in the moment that it is used. Displayed while a run goes on or after it, a
    picture of what has come stands beside the widget, for where there are no widgets.

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
    source, verb, count, speed, path, client_id, key, base_url, max_users, consent
        The fields; setting their values is typing.
    look, begin, pause, stop
        The buttons.
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
        self._is_stopped = False
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
        self.consent = Text(
            description=f"Type {_WORD} to allow it",
            style={"description_width": "initial"},
            layout=Layout(width="420px"),
        )
        self.look, self.begin, self.pause, self.stop = (
            Button(description=word) for word in ("Preview", "Start", "Pause", "Stop")
        )
        self.bar = FloatProgress(max=1.0, layout=Layout(width="100%"))
        self._warned, self.said, self._fields, self.result = HTML(), HTML(), VBox(), VBox()
        for each in (self.source, self.verb, self.path, self.base_url, self.client_id):
            each.layout.width = "420px"
        for name in ("source", "verb", "begin", "pause", "stop", "look", "said", "consent", "key"):
            getattr(self, name).add_class(f"mxlab-collect-{name}")
        self.source.observe(self._arrange, "value")
        self.verb.observe(self._arrange, "value")
        self.base_url.observe(self._arrange, "value")
        for asked in (self.source, self.verb, self.path, self.client_id, self.base_url, self.max_users):
            asked.observe(self._withdraw, "value")
        self.look.on_click(lambda _: self._go(self._preview))
        self.begin.on_click(lambda _: self._go(self._collect))
        self.pause.on_click(lambda _: self._pause())
        self.stop.on_click(lambda _: self.cancel())
        self.pause.disabled = self.stop.disabled = True
        self._arrange()
        buttons = HBox([self.look, self.begin, self.pause, self.stop], layout=Layout(flex_flow="row wrap"))
        super().__init__(
            [HTML(LOOK), self.source, self.verb, self._fields, buttons, self.bar, self.said, self.result]
        )
        self.add_class("mxlab-collector")

    def cancel(self) -> None:
        """Stop what is under way; what has come of a run is kept and shown."""
        self._is_stopped = True  # whoever is about to start a job looks here after it, if this is too early
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

    @property
    def _needs_consent(self) -> bool:
        """Whether Start would start jobs at banks; an address that is none counts as one of a bank."""
        if not self._starts_jobs or self.source.value == _SIMULATOR:
            return False
        try:
            return not self._chosen.on_loopback
        except ConfigError:
            return True

    @property
    def _chosen(self) -> Settings:
        """The settings that the fields say."""
        host, most = self.base_url.value.strip(), self.max_users.value
        return replace(self._settings, base_url=host, max_users=most)

    def _arrange(self, _: object = None) -> None:
        """Show the fields that the choices ask for."""
        fields = [getattr(self, name) for name in _SHOWN[self.source.value]]
        if self._needs_consent:
            host = displayed(self.base_url.value.strip()) or "the host"
            self._warned.value = _paragraph(
                f"aggregate starts jobs at banks through {host} and may prompt people."
            )
            fields += [self._warned, self.consent]
        self._fields.children = fields

    def _pause(self) -> None:
        job = self._under_way
        if job is None or job.state != "running":
            return
        if job.is_paused:
            job.resume()
        else:
            job.pause()
        self.pause.description = "Go on" if job.is_paused else "Pause"

    def _withdraw(self, _: object = None) -> None:
        """Consent was to what was asked then: another host, other users, or more of them need another."""
        self.consent.value = ""

    def _go(self, action: Callable[[Tokens, Settings], None]) -> None:
        """Take what is typed, clear the key and the consent, and do the rest in a thread of its own."""
        if self._thread is not None and self._thread.is_alive():
            return  # a second click that was on its way already
        typed, self.key.value = self.key.value, ""
        allowed = self._needs_consent and self.consent.value.strip() == _WORD
        if action == self._collect:
            self._withdraw()  # it is for one run
            if self._needs_consent and not allowed:
                self._say(
                    f"Nothing was sent: type {_WORD} below the host to allow it, after a look at Preview."
                )
                return
        key = Secret(typed) if typed else None
        self._is_stopped, self._under_way = False, None
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
        except Exception as error:  # a bug, or one of a source of the user's: the page must not fall silent
            self._say(_told(error))
        finally:
            self.begin.disabled = self.look.disabled = False
            self.pause.disabled = self.stop.disabled = True
            self.pause.description = "Pause"

    def _started(self, coroutine: Coroutine[Any, Any, T]) -> Job[T]:
        """The job of a coroutine, which is stopped already if Stop was faster."""
        self._under_way = job = start(coroutine)
        if self._is_stopped:
            job.cancel()
        self.pause.disabled = False
        return job

    def _opened(self, key: Secret | None, stack: ExitStack) -> tuple[Tokens, Settings]:
        """Source and settings as the fields say; what needs closing goes on the stack."""
        chosen = self.source.value
        if chosen == _SIMULATOR:
            self._say("The simulator starts …")
            simulation = api.simulate(self.count.value, seed=self._settings.seed, speed=self.speed.value)
            stack.enter_context(simulation)
            return simulation.tokens, simulation.settings
        settings = self._chosen
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
        job = self._started(aio.preview(tokens, settings, store=self._store, look=True))
        self._say(str(job.result()))

    def _collect(self, tokens: Tokens, settings: Settings) -> None:
        door = _DOORS[self.verb.value]
        self.snapshot = None
        self.job = job = self._started(door(tokens, settings, store=self._store, run=self._run))
        worked, painted_at = 0.0, time.monotonic()

        def paint() -> None:
            nonlocal worked, painted_at
            now = time.monotonic()
            worked, painted_at = worked + (now - painted_at) * (not job.is_paused), now
            self._paint(job, worked)

        def tick(_: Progress) -> None:
            if time.monotonic() - painted_at >= _SECONDS_BETWEEN_PAINTS:
                paint()

        paint()
        try:
            self.snapshot = job.result(tick=tick)
        except CancelledError:
            if not job.progress.requests:
                raise
            self.snapshot = job.partial()
        paint()
        self.result.children = (Explorer(self.snapshot),)

    def _paint(self, job: Job[Snapshot], seconds: float) -> None:
        progress = job.progress
        self.bar.value = progress.share
        parts = [progress.words(seconds)]
        if self._is_stopped and job.state == "running":
            parts.insert(0, "stopping")
        elif progress.left and progress.ended > _KNOWS_RATE * (progress.ended + progress.left):
            parts.append(f"{duration(seconds * progress.left / progress.ended)} left")
        parts += [f"{word} {count:,}" for word, count in progress.statuses.most_common(4)]
        parts += [f"{reason} {count:,}" for reason, count in progress.reasons.most_common(3)]
        self._say(" · ".join(parts))

    def _say(self, text: str) -> None:
        self.said.value = _paragraph(text)

    @cached_property
    def _picture(self) -> Picture:
        return Picture()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget, and beside it a picture of what has come so far for where there are no widgets."""
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs) or {}
        snap = self.snapshot
        if snap is None and self.job is not None:
            with suppress(RuntimeError):  # nothing yet
                snap = self.job.partial()
        if snap is None:
            return {**bundle, "text/plain": "Collector: nothing has been collected so far"}
        self._picture.draw("status_counts", snap)
        return {**bundle, **self._picture.bundle}


def _paragraph(text: str) -> str:
    """Lines of a widget, read out when they change."""
    lines = "<br>".join(escape(displayed(line)) for line in text.splitlines())
    return f'<p class="mxlab-said" role="status">{lines}</p>'


def _told(error: Exception) -> str:
    """Type and message of an error that is not mxlab's own, without what may be a token."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    return f"{type(error).__name__}: {_MAY_BE_SECRET.sub('…', message)}{where}"
