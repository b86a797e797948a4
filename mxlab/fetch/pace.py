"""`Gate`: how many requests at once and how many a second; `Valve`: whether any; `Budget`: how often to try again.

Each is one for the run.

The limit starts low, doubles until the first sign of congestion and then moves by additive increase and
multiplicative decrease (Chiu and Jain 1989, doi:10.1016/0169-7552(89)90019-6). Times here are real seconds: the
gate stands before the machine's own network. The figures of the budget are botocore's (retries/quota.py); its times are
those of the run.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from mxlab.errors import ConnectFailed, NexusError, RateLimited, Unavailable

_DECREASE = 0.7
_INCREASE = 4.0
_NEAR = 0.9
_SLOW_SECONDS = 5.0
_MOST_TOKENS = 500
_COST = 14
_COST_THROTTLED = 5
#: How long a server that has answered before is waited for; Retry-After may ask for as much.
_OUTAGE_SECONDS = 300.0


class Valve:
    """Lets the requests of a run through, or holds back all that have not left yet.

    `is_closed` and `seconds` can be read anywhere; the rest belongs to the loop of the run.
    """

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._closed_at: float | None = None
        self._seconds = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether requests are held back."""
        return self._closed_at is not None

    @property
    def seconds(self) -> float:
        """For how long it has been closed so far, in real seconds."""
        closed_at = self._closed_at
        return self._seconds if closed_at is None else self._seconds + time.monotonic() - closed_at

    def close(self) -> None:
        """Hold requests back."""
        if self._closed_at is None:
            self._closed_at = time.monotonic()
            self._opened.clear()

    def open(self) -> None:
        """Let requests through again."""
        self._seconds, self._closed_at = self.seconds, None
        self._opened.set()

    async def passed(self) -> None:
        """Wait until it is open."""
        if self.is_closed:
            await self._opened.wait()


class Gate:
    """A limit of requests in flight that adapts, and a hard cap of requests a second.

    Parameters
    ----------
    ceiling
        The limit never passes this.
    rate
        Requests a second at the most.
    start
        The limit at first; the ceiling itself holds it there until congestion shows.
    valve
        Nobody passes while it is closed; one that stays open where None.

    Attributes
    ----------
    in_flight
        Requests under way now: places taken, save those that wait for the cap or for a server that asked for a pause.
    most_in_flight
        The most places that were taken at once so far.
    limit
        How many may be under way.
    """

    def __init__(
        self, ceiling: int, rate: float = math.inf, *, start: int = 20, valve: Valve | None = None
    ) -> None:
        self._valve = valve or Valve()
        self._ceiling = float(ceiling)
        self._gap = 1.0 / rate
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next = 0.0
        self._closed_until = 0.0
        self._smooth_seconds: float | None = None
        self._doubling = True
        self._cut_at = -math.inf
        self._congested_at = math.inf
        self.limit = float(min(start, ceiling))
        self._taken = self._queueing = 0
        self.most_in_flight = 0

    @property
    def in_flight(self) -> int:  # noqa: D102 - above
        return self._taken - self._queueing

    async def enter(self) -> None:
        """Wait for a place, then take it."""
        await self._enter()
        while self._valve.is_closed:
            self._give_back()  # who waits here is not in flight
            await self._valve.passed()
            await self._enter()

    async def _enter(self) -> None:
        if self._waiting or self._taken + 1 > self.limit:
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._give_back()  # woken and cancelled at once: the place goes to the next
                raise
        else:
            self._taken += 1
        self.most_in_flight = max(self.most_in_flight, self._taken)
        if not self._gap and not self._closed_until:
            return
        self._queueing += 1
        try:
            await self._until_open()
        except asyncio.CancelledError:
            self._give_back()
            raise
        finally:
            self._queueing -= 1

    async def _until_open(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while (wait := self._closed_until - loop.time()) > 0:  # noqa: ASYNC110 - a pause may be prolonged
                await asyncio.sleep(wait)
            if not self._gap:
                return
            now = loop.time()
            self._next = max(self._next + self._gap, now)
            if self._next > now:
                await asyncio.sleep(self._next - now)
            if loop.time() >= self._closed_until:
                return

    def leave(self, error: NexusError | None, seconds: float) -> None:
        """Give the place back and learn from what came of the request.

        Parameters
        ----------
        error
            What went wrong, if anything did.
        seconds
            How long the reply took.
        """
        usual = self._smooth_seconds
        slow = usual is not None and seconds > max(_SLOW_SECONDS, 3 * usual)
        if slow or isinstance(error, RateLimited | Unavailable | ConnectFailed):
            self._cut(_DECREASE)
        elif error is None:
            self._smooth_seconds = seconds if usual is None else usual + 0.1 * (seconds - usual)
            if self._taken * 2 >= self.limit:
                # There one more a round trip, to probe; well past it, what congested is gone.
                is_near = _NEAR < self.limit / self._congested_at < 1 / _NEAR
                step = 1.0 if self._doubling else (1.0 if is_near else _INCREASE) / self.limit
                self.limit = min(self.limit + step, self._ceiling)
        self._give_back()

    def pause(self, seconds: float) -> None:
        """Close for everybody, and open again at half the limit."""
        until = asyncio.get_running_loop().time() + seconds
        if until > self._closed_until:
            self._closed_until = until
            self._cut(0.5)

    def _cut(self, factor: float) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._cut_at >= (self._smooth_seconds or 0.0) + 0.1:
            self._cut_at = now
            self._congested_at = self.limit
            self._doubling = False
            self.limit = max(1.0, self.limit * factor)

    def _give_back(self) -> None:
        self._taken -= 1
        while self._waiting and self._taken + 1 <= self.limit:
            place = self._waiting.popleft()
            if not place.done():
                self._taken += 1
                place.set_result(None)


class Budget:
    """What all users together may spend on trying one server again, and whether a failure is that server's.

    A retry costs tokens and a success earns one, so that a server in trouble gets few requests more than it would
    get anyway. One user's failures say nothing of the server; it is in trouble where half of the tokens are spent, and out
    where it has answered somebody before and now nobody: not two users in a row, or one that could not connect.

    Parameters
    ----------
    held
        For how many seconds the run has sent nothing of its own will; its server was not silent then.
    """

    def __init__(self, held: Callable[[], float] = float) -> None:
        self._held = held
        self._held_before = 0.0
        self._tokens = _MOST_TOKENS
        self._has_answered = False
        self._silent_since = math.inf
        self._is_unreachable = False
        self._failing: set[str] = set()

    def heard(self, session: str, error: NexusError | None, now: float) -> None:
        """Learn from what came of a user's request."""
        if error is None or not error.transient:  # a plain no is an answer too
            self._tokens = min(self._tokens + (error is None), _MOST_TOKENS)
            self._has_answered = True
            self._silent_since = math.inf
            self._is_unreachable = False
            self._failing.clear()
        else:
            if self._silent_since == math.inf:
                self._silent_since, self._held_before = now, self._held()
            self._is_unreachable |= isinstance(error, ConnectFailed)
            if len(self._failing) < 2:
                self._failing.add(session)

    def pay(self, error: NexusError) -> bool:
        """Spend what a retry after this error costs; False where there is not enough."""
        cost = _COST_THROTTLED if isinstance(error, RateLimited | Unavailable) else _COST
        is_enough = self._tokens >= cost
        self._tokens -= cost * is_enough
        return is_enough

    def is_out(self, now: float) -> bool:
        """Whether the server, which may come back, answers nobody."""
        return (self._is_unreachable or len(self._failing) > 1) and self._may_come_back(now)

    def is_at_fault(self, since: float, now: float) -> bool:
        """Whether the server is to blame that a user fails now who failed before at a moment."""
        is_in_trouble = self._may_come_back(now) and self._tokens < _MOST_TOKENS / 2
        return is_in_trouble or (self.is_out(now) and self._silent_since <= since)

    def _may_come_back(self, now: float) -> bool:
        asked_for = now - self._silent_since - (self._held() - self._held_before)
        return self._has_answered and asked_for < _OUTAGE_SECONDS
