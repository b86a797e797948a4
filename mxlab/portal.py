"""One private loop thread, and `Job`: a run under way on it.

Whose thread and loop a notebook cell or a widget callback runs on is not ours to know, so everything that waits
runs here, and others only start, cancel and read. Waiting is done in slices, so that the stop button and Ctrl-C
are heard; an awaited Job has a heartbeat for the same reason (ipykernel issue 881).
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from functools import cache
from typing import Any, Generic, TypeVar

from mxlab.exchange import Progress
from mxlab.fetch.pace import Valve
from mxlab.frames import Snapshot

T = TypeVar("T")
_SLICE_SECONDS = 0.1
_WIND_UP_SECONDS = 10.0


class Watch:
    """What others may see of a run while it goes on.

    Attributes
    ----------
    progress
        Its sums.
    partial
        Makes a `Snapshot` of what has come so far; None until there is a run.
    valve
        Holds the run's requests back while it is closed.
    """

    def __init__(self) -> None:
        self.progress = Progress()
        self.valve = Valve()
        self.partial: Callable[[], Snapshot] | None = None


_watch: ContextVar[Watch] = ContextVar("mxlab_watch")


def watch() -> Watch:
    """The `Watch` of the Job that this coroutine runs in; a new one outside of any."""
    return _watch.get(None) or Watch()


class Job(Generic[T]):
    """A run under way on the private loop; made by `mxlab.start`.

    Awaiting it, from any loop, gives its result; cancelling what awaits it cancels it. All else can be called from any
    thread, a widget's callback included, and returns at once.

    A run that is paused sends nothing new: what is in flight is read to its end and kept, whoever is due waits, and no
    token is taken from the source. Nobody is lost to the pause itself: its time does not count against
    ``deadline_seconds``. But the world goes on: an aggregation that ends meanwhile has an interval as wide as the pause,
    and a session that is not used for 30 minutes expires; it is renewed once where the source can make tokens, and else
    its user is lost as ``session_expired``.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._watch = Watch()
        self._done: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop = _loop()
        self._task: asyncio.Task[T] | None = None
        self._is_paused = False
        self._loop.call_soon_threadsafe(self._begin, coroutine)

    def _begin(self, coroutine: Coroutine[Any, Any, T]) -> None:
        token = _watch.set(self._watch)
        try:
            self._task = self._loop.create_task(coroutine)
        finally:
            _watch.reset(token)
        self._task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._done.cancel()
            self._done.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self._done.set_exception(error)
        else:
            self._done.set_result(task.result())

    @property
    def progress(self) -> Progress:
        """The sums so far; read them as often as you like."""
        return self._watch.progress

    @property
    def state(self) -> str:
        """``running``, ``done``, ``failed`` or ``cancelled``."""
        if not self._done.done():
            return "running"
        if self._done.cancelled():
            return "cancelled"
        return "failed" if self._done.exception() else "done"

    @property
    def is_paused(self) -> bool:
        """Whether the run has been asked to pause, and not yet to go on."""
        return self._is_paused and not self._done.done()

    def pause(self) -> None:
        """Send no new request until `resume`; what is in flight ends and is kept. Returns at once."""
        self._is_paused = True
        self._loop.call_soon_threadsafe(self._turn_valve)

    def resume(self) -> None:
        """Go on after `pause`. Returns at once."""
        self._is_paused = False
        self._loop.call_soon_threadsafe(self._turn_valve)

    def _turn_valve(self) -> None:
        if self._is_paused:
            self._watch.valve.close()
        else:
            self._watch.valve.open()

    def partial(self) -> Snapshot:
        """A Snapshot of what has come so far.

        Raises
        ------
        RuntimeError
            Nothing has come yet.
        """
        if self._watch.partial is None:
            raise RuntimeError("nothing has come yet")
        return self._watch.partial()

    def cancel(self) -> None:
        """Ask the run to stop; what it has is kept. Returns at once."""
        self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())

    def result(self, timeout: float | None = None, *, tick: Callable[[Progress], None] | None = None) -> T:
        """Wait for the result.

        Parameters
        ----------
        timeout
            Real seconds; None waits for ever.
        tick
            Called with the progress about ten times a second while waiting.

        Raises
        ------
        KeyboardInterrupt
            The wait was interrupted: the run has been stopped, and what it has is kept.
        concurrent.futures.CancelledError
            The run was cancelled.
        TimeoutError
            The run is still going on.
        """
        if threading.current_thread() is _thread():
            raise RuntimeError("result() on mxlab's own loop would wait for itself; use await")
        left = timeout
        try:
            while True:
                wait = _SLICE_SECONDS if left is None else min(_SLICE_SECONDS, left)
                try:
                    return self._done.result(wait)
                except TimeoutError:
                    if self._done.done():
                        raise
                left = None if left is None else left - wait
                if left is not None and left <= 0:
                    raise TimeoutError(f"the run is still going on after {timeout} s")
                if tick is not None:
                    tick(self.progress)
        except KeyboardInterrupt:
            self.cancel()
            concurrent.futures.wait([self._done], _WIND_UP_SECONDS)
            raise

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        try:
            while not self._done.done():  # noqa: ASYNC110 - the heartbeat that lets an interrupt in
                await asyncio.sleep(_SLICE_SECONDS)
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._done.result()

    def __repr__(self) -> str:
        progress = self.progress
        asked = "?" if progress.asked is None else f"{progress.asked:,}"
        state = "paused" if self.is_paused else self.state
        return f"<Job {state}: {progress.ended:,} of {asked} users>"


def start(coroutine: Coroutine[Any, Any, T]) -> Job[T]:
    """Start a coroutine of `mxlab.aio` on the private loop; returns at once.

    Parameters
    ----------
    coroutine
        As ``mxlab.aio.aggregate(tokens, settings)``.

    Returns
    -------
    Job
    """
    return Job(coroutine)


@cache
def _portal() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    try:
        import uvloop  # noqa: PLC0415 - not installed on every platform
    except ImportError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="mxlab-loop", daemon=True)
    thread.start()
    return loop, thread


def _loop() -> asyncio.AbstractEventLoop:
    return _portal()[0]


def _thread() -> threading.Thread:
    return _portal()[1]
