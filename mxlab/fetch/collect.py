"""Many users at once: exchanges as they come, and for each user one Ending.

N workers share one iterator of users, one queue of users that are due, and one gate. A user who waits (for the
next look, for a back-off) holds no worker and no task: a timer of the loop puts the user's `Track` back into the
queue, ahead of new users, so that looks fall when they should.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mxlab.errors import BadReply, ConfigError, MxlabError, NexusError, SessionExpired
from mxlab.exchange import Ending, Exchange, Intent, Progress, Verb
from mxlab.fetch.client import NexusClient
from mxlab.fetch.pace import Budget, Gate, Valve
from mxlab.fetch.tracking import Call, Track
from mxlab.nexus.members import FIELDS
from mxlab.settings import Settings
from mxlab.tokens import Mint, SessionToken, Source, Turn, made

_BATCH_SECONDS = 0.2
_MOST_UNTAKEN = 5_000
_FIRST_USERS = 100
_MOST_EXPIRED = 20
_ENOUGH_MEMBERS = 100
_SHARE_UNREAD = 0.01
_OFTEN_NULL = {"external_guid", "metadata"}


class Journal(Protocol):
    """Where intents are written before a start is sent: a store's ledger, or memory."""

    @property
    def key(self) -> bytes:
        """The key of the sessions' pseudonyms."""

    def claim(self, session: str) -> bool | Intent:
        """True for a new user, False for one who has had a turn, an Intent for one whose start is open."""

    async def intend(self, intent: Intent) -> None:
        """Write the intent; when it returns, it is durable."""

    def leaving(self, intent: Intent) -> None:
        """Note that this start is handed to the network now; outlives the process, if not the machine."""

    def answered(self, session: str, replied_at: float | None) -> None:
        """Note that the start was answered, or, with None, refused before acting; soon durable, not waited for."""


class Batch(NamedTuple):
    """What came since the batch before."""

    exchanges: list[Exchange]
    endings: list[Ending]


@dataclass(slots=True)
class _User:
    """A user under way."""

    turn: Turn
    track: Track
    session: str
    token: SessionToken | None
    ready_at: float = 0.0
    is_heard: bool = False


class _Trial:
    """Whether the tokens of a source that cannot make new ones are stale, told by its first users.

    Until that is known, users whose session has expired are held back: a run that stops loses none of them.
    """

    def __init__(self, source: Source) -> None:
        self.is_open = source.minting is None and (source.size is None or source.size >= _FIRST_USERS)
        self.held: list[Ending] = []
        self._knows_size = source.size is not None
        self._heard = self._expired = 0

    def hear(self, error: NexusError | None) -> bool:
        """Take in a user's first reply; whether it is known now that the tokens are good."""
        self._heard += 1
        self._expired += isinstance(error, SessionExpired)
        if self._expired > _MOST_EXPIRED and (self._knows_size or self._heard == _FIRST_USERS):
            raise ConfigError(
                f"tokens: {self._expired} of the first {self._heard} sessions have expired (they live 30 minutes), "
                "so the run stopped and gave no user up; make new tokens and run again, with the same run name if it had one"
            )
        self.is_open = self._heard < _FIRST_USERS
        return not self.is_open

    def holds(self, ending: Ending) -> bool:
        """Hold an ending back, if it is one of those in question."""
        is_held = self.is_open and ending.reason == "session_expired"
        if is_held:
            self.held.append(ending)
        return is_held


class _Drift:
    """Whether the members still look as MX documents them, told by a run of enough of them."""

    def __init__(self) -> None:
        self._unseen = set(FIELDS) - _OFTEN_NULL
        self._members = self._records = 0
        self._unread: Counter[str] = Counter()
        self._odd: Counter[str] = Counter()

    def hear(self, exchange: Exchange) -> None:
        """Take in what of a reply could not be read, or is odd."""
        if exchange.reply is not None:
            self._records += len(exchange.reply.members) + len(exchange.rejects)
            if exchange.reply.oddities:
                self._odd.update(exchange.reply.oddities)
            self._unread.update(reject.reason for reject in exchange.rejects if reject.reason != "guid_twice")

    def see(self, ending: Ending) -> None:
        """Take in which fields a user's members have."""
        self._members += len(ending.members)
        if self._unseen:
            for each in ending.members:
                self._unseen -= {name for name in self._unseen if getattr(each.member, name) is not None}

    def found(self) -> list[str]:
        """A sentence for each way in which they do not."""
        said = [
            f"schema_drift: {count:,} replies came {oddity}, and were read all the same"
            for oddity, count in self._odd.items()
        ]
        if self._members >= _ENOUGH_MEMBERS and self._unseen:
            said.append(
                f"schema_drift: 0 of {self._members:,} members have {', '.join(sorted(self._unseen))}"
            )
        share = self._unread.total() / self._records if self._records else 0.0
        if self._records >= _ENOUGH_MEMBERS and share > _SHARE_UNREAD:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self._unread.most_common(5))
            said.append(
                f"schema_drift: {share:.1%} of {self._records:,} records cannot be read ({reasons}); they are in the "
                "rejects frame"
            )
        return said


class Collection:
    """One run over a source.

    Parameters
    ----------
    source, settings, verb
        Whom, how, and whether to start jobs.
    journal
        Has intents durable before each start.
    progress
        Updated as it goes.
    gate
        Of all requests; made from the settings where None.
    valve
        Closed, no new request leaves; what time that takes is no user's.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        verb: Verb,
        journal: Journal,
        progress: Progress,
        gate: Gate | None = None,
        valve: Valve | None = None,
    ) -> None:
        self._source = source
        self._settings = settings
        self._verb = verb
        self._journal = journal
        self._progress = progress
        self._valve = valve or Valve()
        self._gate = gate or Gate(settings.concurrency, settings.hard_rate, valve=self._valve)
        self._budget, self._mint_budget = Budget(self._held), Budget(self._held)
        self._rng = random.Random(settings.seed)
        self._now = settings.clock.steady()
        self._trial = _Trial(source)
        self._drift = _Drift()
        self._turn_lock = asyncio.Lock()
        self._due: deque[_User] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._timers: set[asyncio.TimerHandle] = set()
        self._room = asyncio.Event()
        self._exchanges: list[Exchange] = []
        self._endings: list[Ending] = []
        self.exhausted = False
        self.taken = 0

    async def batches(self) -> AsyncGenerator[Batch]:
        """What comes, several times a second, until every user has ended."""
        async with AsyncExitStack() as stack:
            self._turns = await stack.enter_async_context(aclosing(self._source.turns(self._settings.seed)))
            self._client = await stack.enter_async_context(NexusClient(self._settings, self._now))
            minting = self._source.minting
            self._mint: Mint | None = (
                await stack.enter_async_context(minting(self._settings)) if minting else None
            )
            self._room.set()
            # One more than can be in flight: it may be the one that waits for the source.
            workers = {asyncio.create_task(self._work()) for _ in range(self._settings.concurrency + 1)}
            try:
                running = workers
                while running:
                    done, running = await asyncio.wait(
                        running, timeout=_BATCH_SECONDS, return_when=asyncio.FIRST_EXCEPTION
                    )
                    for worker in done:
                        worker.result()
                    self._progress.phase, self._progress.in_flight = self._phase, self._gate.in_flight
                    if self._exchanges or self._endings:
                        yield self.rest()
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                for timer in self._timers:
                    timer.cancel()

    def drift(self) -> list[str]:
        """Ways in which the members do not look as MX documents them; a sentence each."""
        return self._drift.found()

    def rest(self) -> Batch:
        """What came since the last batch; after a stop, the last there is."""
        batch = Batch(self._exchanges, self._endings)
        self._exchanges, self._endings = [], []
        self._room.set()
        return batch

    async def _work(self) -> None:
        while (user := await self._next_user()) is not None:
            await self._advance(user)

    async def _next_user(self) -> _User | None:
        """A user who is due, else a new one, else wait; None when all is over."""
        while True:
            await self._room.wait()
            if self._due:
                return self._due.popleft()
            if self._is_over():
                return None
            if not self.exhausted and not self._turn_lock.locked() and not self._holds():
                user = await self._fresh()
                if user is not None:
                    return user
                continue
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    def _holds(self) -> bool:
        """Whether new users wait until a server that is out comes back for those who are under way."""
        return self._is_out() and self._progress.following > len(self._trial.held)

    def _held(self) -> float:
        """For how long this run has been paused so far, in its own time."""
        return self._valve.seconds * self._settings.clock.speed

    @property
    def _phase(self) -> str:
        if self._valve.is_closed:
            return "paused"
        return "waiting for the server to answer" if self._is_out() else "collecting"

    def _is_out(self) -> bool:
        now = self._now()
        return self._budget.is_out(now) or self._mint_budget.is_out(now)

    async def _fresh(self) -> _User | None:
        """The next new user of the source, or None where there is none to be had now."""
        async with self._turn_lock:  # a slow source holds one worker, never all
            await self._valve.passed()  # tokens age: none is taken that cannot be used
            turn = await anext(self._turns, None)
            self._wake(1)
            if turn is None:
                self.exhausted = True
                return None
            self.taken += 1
            if self._settings.max_users is not None and self.taken > self._settings.max_users:
                raise ConfigError(
                    f"max_users: the source brings more than {self._settings.max_users} users; "
                    "nothing was sent for the others. Raise max_users or use sample="
                )
        session = turn.pseudonym(self._journal.key)
        claim = self._journal.claim(session)
        if claim is False:
            self._progress.ended_before += 1
            return None
        now = self._now()
        track = Track(
            self._verb,
            self._settings,
            self._rng,
            session,
            now,
            renews=turn.token is None,
            intent=claim if isinstance(claim, Intent) else None,
            budget=self._budget,
            mint_budget=self._mint_budget,
            held=self._held,
        )
        self._progress.following += 1
        return _User(turn, track, session, turn.token, time.perf_counter())

    async def _advance(self, user: _User) -> None:
        """Make calls for this user until one lies in the future or there is none left."""
        while (call := user.track.call) is not None:
            wait = self._settings.clock.real_seconds(call.due - self._now())
            if wait > 0:
                self._put_off(user, wait)
                return
            await self._perform(user, call)
            user.ready_at = time.perf_counter()
        columns = user.token.columns if user.token else {}
        ending = user.track.ending(user.turn.user, columns)
        if not self._trial.holds(ending):
            self._end(ending)
        self._is_over()

    def _end(self, ending: Ending) -> None:
        self._endings.append(ending)
        self._progress.count(ending)
        self._drift.see(ending)
        self._progress.following -= 1

    def _release(self) -> None:
        held, self._trial.held = self._trial.held, []
        for ending in held:
            self._end(ending)

    def _is_over(self) -> bool:
        """Whether every user has ended; if so, those held back end too, and every worker hears of it."""
        if not self.exhausted or self._progress.following > len(self._trial.held):
            return False
        self._release()
        self._wake(len(self._idle))
        return True

    def _put_off(self, user: _User, wait: float) -> None:
        def due() -> None:
            self._timers.discard(timer)
            user.ready_at = time.perf_counter()
            self._due.append(user)
            self._wake(1)

        timer = asyncio.get_running_loop().call_later(wait, due)
        self._timers.add(timer)

    def _wake(self, workers: int) -> None:
        while workers and self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                workers -= 1

    async def _perform(self, user: _User, call: Call) -> None:
        """One call, with what it needs beforehand: a place at the gate, a token, an intent."""
        await self._gate.enter()
        error: NexusError | None = None
        seconds = 0.0
        try:
            self._progress.in_flight = self._gate.in_flight
            if user.token is None or user.track.must_renew:
                user.token = await self._minted(user)
                user.track.must_renew = False
                if self._valve.is_closed:
                    return  # to the gate again
            if (
                call.endpoint.starts_jobs
            ):  # as late as can be: a kill before the sending leaves few of them open
                intent = user.track.intent(self._now())
                await self._journal.intend(intent)
                self._journal.leaving(intent)
            exchange = await self._client.call(
                call.endpoint,
                user.token,
                user.session,
                guid=call.guid,
                page=call.page,
                attempt=call.attempt,
                queued_seconds=time.perf_counter() - user.ready_at,
            )
            error, seconds = exchange.error, exchange.reply_seconds
        except NexusError as failure:
            error = failure
            user.track.no_token(failure, self._now())
        else:
            user.track.received(exchange)
            if call.endpoint.starts_jobs and (error is None or user.track.is_unstarted):
                self._journal.answered(user.session, exchange.replied_at if error is None else None)
            self._hear(user, exchange)
            self._drift.hear(exchange)
            self._exchanges.append(exchange)
            self._progress.requests += 1
            if len(self._exchanges) >= _MOST_UNTAKEN:
                self._room.clear()
        finally:
            if error is not None and error.retry_after_seconds:
                told = error.retry_after_seconds * (1 + 0.1 * self._rng.random())
                self._gate.pause(self._settings.clock.real_seconds(told))
            self._gate.leave(error, seconds)

    def _hear(self, user: _User, exchange: Exchange) -> None:
        if self._trial.is_open and not user.is_heard:
            user.is_heard = True
            if self._trial.hear(exchange.error):
                self._release()

    async def _minted(self, user: _User) -> SessionToken:
        assert self._mint is not None
        assert user.turn.user is not None
        try:
            token = await made(self._mint, user.turn.user)
        except MxlabError:
            raise
        except Exception as error:  # a callable of the user's: its message may hold a token
            raise BadReply(f"the minting callable raised {type(error).__name__}", reason="mint") from None
        self._mint_budget.heard(user.session, None, self._now())
        return token
