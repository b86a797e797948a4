"""When to look again, when to send again, when it is over. Pure: no I/O, and no time but what it is told.

A `Track` is one user's run as a state machine: an `Exchange` goes in, the next `Call` comes out. The rules are
those that the endpoint forces: ``GET /members/aggregate`` is a GET by name only, so a start that may have acted
is cleared up by reading before it is sent again, and a failed-looking first look is not proof of failure
(MX Connect widget, pollers: two that agree).
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from mxlab.errors import BadReply, ConnectFailed, Forbidden, NexusError, Refused, SessionExpired
from mxlab.exchange import Change, Ending, Exchange, Intent, MemberEnding, Outcome, UserState, Verb
from mxlab.fetch.pace import Budget
from mxlab.nexus.members import GUID, Member
from mxlab.nexus.protocol import AGGREGATE_ALL, LIST_MEMBERS, READ_JOB, Endpoint, Reply
from mxlab.nexus.status import PROCESSING, who_must_act
from mxlab.settings import Settings

_CLEARING_SECONDS = 5.0
_JOB_AGAIN_SECONDS = 1.0
_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 10.0

_ASKS_AGAIN = "Then run again: the same run name asks this user again."
_ASKS_NO_MORE = (
    "Then run again under another run name: this run has rows of this user and does not ask again."
)

_OUTCOME: Mapping[str, Outcome] = {
    "nobody": "finished",
    "user": "waiting_on_user",
    "mx": "failed",
    "partner": "failed",
    "over": "failed",
}


@dataclass(frozen=True, slots=True)
class LookSchedule:
    """When to look at a member, as a value that can be compared with others.

    Parameters
    ----------
    first_seconds
        The shortest gap; the first look falls uniformly in [1, 1 + spread) times this.
    longest_seconds
        The longest gap.
    growth, jitter
        Each gap is the one before × growth × a uniform of [1 − jitter, 1 + jitter).
    """

    first_seconds: float = 3.0
    longest_seconds: float = 30.0
    growth: float = 2.0
    jitter: float = 0.2
    spread: float = 3.0

    def gap(self, before: float | None, rng: random.Random) -> float:
        """Seconds to the next look, after a gap of `before`, or None for the first."""
        if before is None:
            return min(self.first_seconds * (1 + self.spread * rng.random()), self.longest_seconds)
        gap = before * self.growth * (1 - self.jitter + 2 * self.jitter * rng.random())
        return min(max(gap, self.first_seconds), self.longest_seconds)


class Call(NamedTuple):
    """The next request of a user: what, when it is due, and which attempt it is."""

    endpoint: Endpoint
    due: float
    guid: str = ""
    page: int = 1
    attempt: int = 1


class Followed:
    """One member from the kick-off on: what each look says of its aggregation time and outcome."""

    __slots__ = (
        "_baseline",
        "_candidate",
        "_last_sent",
        "_missed",
        "high",
        "job_seconds",
        "looks",
        "low",
        "member",
        "outcome",
        "seen_at",
    )

    def __init__(self, member: Member, seen_at: float, baseline: Member | None) -> None:
        self.member = member
        self.seen_at = seen_at
        self.outcome: Outcome | None = None
        self.low = 0.0
        self.high: float | None = None
        self.looks = 0
        self.job_seconds: float | None = None
        self._baseline = baseline
        self._candidate: tuple[Outcome, datetime | None, float] | None = None
        self._last_sent = 0.0
        self._missed = 0

    def see(self, member: Member, exchange: Exchange, kick: "Kick") -> Change | None:
        """Take in one look; the change that it showed, if any."""
        # The job began between the kick-off's sending and its reply, and the look was answered between its own
        # sending and reply: the bounds that hold whichever moment it was.
        low = max(0.0, exchange.sent_at - kick.replied_at)
        high = max(0.0, exchange.replied_at - kick.sent_at)
        before, self.member, self.seen_at = self.member, member, exchange.replied_at
        self.looks += 1
        self._missed = 0
        if self.outcome is None:
            self._judge(low, high)
        since, self._last_sent = self._last_sent, low
        was, flag = before.connection_status, member.is_being_aggregated
        if was == member.connection_status and before.is_being_aggregated == flag:
            return None
        return Change(member.guid, was, member.connection_status, since, high, flag)

    def miss(self) -> None:
        """A look did not show the member; after two it is taken as gone, its time as censored."""
        self._missed += 1
        if self._missed == 2 and self.outcome is None:
            self.outcome = "running"

    def _judge(self, low: float, high: float) -> None:
        verdict, certain = self._verdict()
        first = None
        if self._candidate is not None and self._candidate[:2] == (verdict, self.member.aggregated_at):
            first = self._candidate[
                2
            ]  # they agree: a status from before the job was taken up has another start
        if verdict == "running":
            self.low, self._candidate = low, None
        elif certain or first is not None:
            self.outcome = verdict
            self.high = high if first is None else first
        elif self.looks > 1 or verdict == "not_triggered":  # the reply to the kick-off never shows a failure
            self._candidate = verdict, self.member.aggregated_at, high

    def _verdict(self) -> tuple[Outcome, bool]:
        """What this look says, and whether one look is enough to say it."""
        member, baseline = self.member, self._baseline
        if baseline is None or not moved(member, baseline):
            return "not_triggered", False
        # A job that waits for the user may still count as running; the status of before does not say that it does.
        challenged = member.connection_status == "CHALLENGED" != baseline.connection_status
        if member.is_being_aggregated and not challenged:
            return "running", True
        if member.is_being_aggregated is None and member.connection_status == "CONNECTED":
            return ("finished", True) if _succeeded(member) else ("running", True)
        if member.connection_status in PROCESSING:
            return "running", True
        if member.connection_status == "CONNECTED":
            return "finished", True
        unknown: Outcome = "finished" if _succeeded(member) else "failed"
        return _OUTCOME.get(who_must_act(member.connection_status), unknown), False

    def ending(self) -> MemberEnding:
        """What is known in the end; following that ended first leaves the time right-censored."""
        if self.outcome is None and not self.looks:
            return self.observed()  # the user was lost before any look could tell
        outcome = self.outcome or "running"
        if outcome == "not_triggered":
            return MemberEnding(self.member, self.seen_at, outcome, looks=self.looks)
        high = self.high if outcome != "running" else None
        return MemberEnding(self.member, self.seen_at, outcome, self.low, high, self.looks, self.job_seconds)

    def observed(self) -> MemberEnding:
        """What is known of a member that was only looked at."""
        return MemberEnding(self.member, self.seen_at, job_seconds=self.job_seconds)


def moved(member: Member, baseline: Member) -> bool:
    """Whether a job began since the baseline look."""
    return (member.most_recent_job_guid, member.aggregated_at) != (
        baseline.most_recent_job_guid,
        baseline.aggregated_at,
    )


def _succeeded(member: Member) -> bool:
    """Whether the last job was a success: the last success ended after the last job began."""
    began, succeeded = member.aggregated_at, member.successfully_aggregated_at
    return began is not None and succeeded is not None and succeeded >= began


class Kick(NamedTuple):
    """When the start was sent, and by when it had certainly arrived."""

    sent_at: float
    replied_at: float


class Track:
    """One user's run: exchanges in, calls out.

    Parameters
    ----------
    verb
        ``aggregate`` or ``observe``; under the latter no call that starts jobs is ever made.
    settings
        Deadline, attempts, looks, whether jobs are read.
    rng
        Of the jitter.
    session
        The user's pseudonym.
    now
        The run's time.
    renews
        Whether an expired session can be made anew, once.
    intent
        Of an earlier life of this run: a start may have acted, and is cleared up by reading.
    budget, mint_budget
        Of the run, for Nexus and for where tokens come from.
    held
        For how many seconds the run has been paused so far, which do not count against the deadline.

    Attributes
    ----------
    call
        The next call; None when it is over.
    must_renew
        The session expired: the next call wants a new token.
    """

    def __init__(
        self,
        verb: Verb,
        settings: Settings,
        rng: random.Random,
        session: str,
        now: float,
        *,
        renews: bool = False,
        intent: Intent | None = None,
        budget: Budget | None = None,
        mint_budget: Budget | None = None,
        held: Callable[[], float] = float,
    ) -> None:
        self._held = held
        self._verb = verb
        self._settings = settings
        self._rng = rng
        self._session = session
        self._renews = renews
        self._gap: float | None = None
        self._deadline = now + settings.deadline_seconds
        self._budget = budget or Budget()
        self._mint_budget = mint_budget or Budget()
        self._failures = 0
        self._failed_at = -math.inf
        self._pages: dict[str, Member] = {}
        self._owners: set[str] = set()
        self._baseline: dict[str, Member] = {}
        self._followed: dict[str, Followed] = {}
        self._jobs: list[Followed] = []
        self._still_reads = 0
        self._is_other = False
        self._sends = 0
        self._kick = Kick(now, now)
        self._state: UserState = "answered"
        self._reason: str | None = None
        self._what_to_do: str | None = None
        self.must_renew = False
        self._receive: Callable[[Track, Exchange], None] = Track._looked  # not bound: that would be a cycle
        self.call: Call | None = Call(LIST_MEMBERS, now)
        if intent is not None:
            self._resume(intent)

    def _resume(self, intent: Intent) -> None:
        self._sends = intent.sends
        self._kick = Kick(intent.sent_at, intent.sent_at)
        self._baseline = {
            guid: Member(
                guid,
                most_recent_job_guid=job,
                aggregated_at=datetime.fromisoformat(at) if at else None,
                connection_status=status,
            )
            for guid, (job, at, status) in intent.baseline.items()
        }
        if intent.replied_at is None:
            self._receive = Track._cleared
        else:
            self._kick = Kick(intent.sent_at, intent.replied_at)
            self._receive = Track._resumed

    @property
    def _deadline(self) -> float:
        return self._deadline_unheld + self._held()

    @_deadline.setter
    def _deadline(self, at: float) -> None:
        self._deadline_unheld = at - self._held()

    @property
    def is_unstarted(self) -> bool:
        """Whether no start has been sent that may have acted."""
        return self._sends == 0

    def intent(self, now: float) -> Intent:
        """What must be durable before the start that is next is sent."""
        if self._sends == 0:
            self._kick = Kick(now, now)
        self._sends += 1
        baseline = {
            guid: (
                each.most_recent_job_guid,
                each.aggregated_at.isoformat() if each.aggregated_at else None,
                each.connection_status,
            )
            for guid, each in self._baseline.items()
        }
        return Intent(self._session, self._kick.sent_at, self._sends, baseline)

    def received(self, exchange: Exchange) -> None:
        """Take in what came of the call that was next."""
        self._budget.heard(self._session, exchange.error, exchange.replied_at)
        if exchange.reply is not None and self._is_another(exchange.reply):
            self._state, self._reason, self.call = "lost", "token_user_mismatch", None
            self._what_to_do = (
                "Replies to one token name two users: check the list of tokens and users, and tell MX."
            )
            return
        if isinstance(exchange.error, SessionExpired) and self._renews:
            self._renews = False
            self.must_renew = True
            assert self.call is not None
            self._sends -= self.call.endpoint.starts_jobs
            self.call = self.call._replace(due=exchange.replied_at, attempt=self.call.attempt + 1)
            return
        self._receive(self, exchange)

    def _is_another(self, reply: Reply) -> bool:
        """Whether the members are not all of the user that this token has shown so far."""
        self._owners |= {each.user_guid for each in reply.members if each.user_guid is not None}
        return len(self._owners) > 1

    def no_token(self, error: NexusError, now: float) -> None:
        """A token could not be made; try again or give the user up."""
        assert self.call is not None
        self._mint_budget.heard(self._session, error, now)
        if self._again(error, now, self._mint_budget):
            return
        if self.call.endpoint is READ_JOB:
            self.call = None
        else:
            self._lose(error, "no_token_" + _reason(error))

    def _again(self, error: NexusError, now: float, budget: Budget | None = None) -> bool:
        """Set the same call up once more, if that may help."""
        assert self.call is not None
        budget = budget or self._budget
        if not error.transient or self._is_spent(error, now, budget):
            return False
        pause = self._rng.random() * min(_BACKOFF_SECONDS * 2**self.call.attempt, _LONGEST_BACKOFF_SECONDS)
        if not budget.pay(error):
            pause = _LONGEST_BACKOFF_SECONDS * (0.5 + 0.5 * self._rng.random())
        due = min(now + (error.retry_after_seconds or 0.0) + pause, self._deadline)
        self.call = self.call._replace(due=due, attempt=self.call.attempt + 1)
        return True

    def _is_spent(self, error: NexusError, now: float, budget: Budget) -> bool:
        """Count a failure; whether there have been too many, or it is too late for another.

        What is the server's fault is not counted, so that trouble on its side costs nobody anything before the
        deadline; neither is a pause that it asked for.
        """
        before, self._failed_at = self._failed_at, now
        self._failures += not (error.retry_after_seconds or budget.is_at_fault(before, now))
        most = self._settings.attempts
        return (
            self._failures >= most or now >= self._deadline or (most == 1 and not error.retry_after_seconds)
        )

    def _lose(self, error: NexusError, reason: str | None = None, state: UserState = "lost") -> None:
        self._state, self._reason, self._what_to_do = state, reason or _reason(error), error.advice
        if self._failed_at >= self._deadline:
            self._what_to_do = (
                f"Tried until deadline_seconds ({self._settings.deadline_seconds:g}): {error.advice}"
            )
        self.call = None

    def _listed(self, exchange: Exchange) -> dict[str, Member] | None:
        """The user's members once all pages are read; until then None, and the next page is asked for."""
        reply = exchange.reply
        assert reply is not None
        assert self.call is not None
        before = len(self._pages)
        self._pages |= {member.guid: member for member in reply.members}
        # A list that does not say how long it is ends with a page that brings nothing new.
        if reply.has_more and (reply.pages is not None or len(self._pages) > before):
            self.call = Call(LIST_MEMBERS, exchange.replied_at, page=self.call.page + 1)
            return None
        members, self._pages = self._pages, {}
        self._failures = 0
        return members

    def _looked(self, exchange: Exchange) -> None:
        """The first look: all there is for `observe`, the baseline for `aggregate`."""
        if exchange.error is not None:
            if not self._again(exchange.error, exchange.replied_at):
                self._lose(exchange.error)
            return
        members = self._listed(exchange)
        if members is None:
            return
        self._followed = {guid: Followed(each, exchange.replied_at, each) for guid, each in members.items()}
        if self._verb == "observe":
            self._read_jobs(exchange.replied_at)
        else:
            self._baseline = members
            self._start(exchange.replied_at)

    def _start(self, due: float) -> None:
        self.call = Call(AGGREGATE_ALL, due)
        self._receive = Track._started

    def _started(self, exchange: Exchange) -> None:
        """The reply to the kick-off is look 0."""
        error = exchange.error
        sent_at = (
            exchange.sent_at if self._sends == 1 else self._kick.sent_at
        )  # the gate came after the intent
        self._kick = Kick(sent_at, exchange.replied_at)
        if error is None:
            assert exchange.reply is not None
            self._deadline = exchange.replied_at + self._settings.deadline_seconds
            self._follow({each.guid: each for each in exchange.reply.members}, exchange)
        elif error.may_have_acted:
            self._failures = 0
            self._still_reads, self._is_other = 0, False
            self.call = Call(LIST_MEMBERS, exchange.replied_at)
            self._receive = Track._cleared
        else:
            self._sends -= 1
            if not self._again(error, exchange.replied_at):
                self._lose(error)

    def _cleared(self, exchange: Exchange) -> None:
        """A read after a start that may have acted: did anything move?"""
        now = exchange.replied_at
        if exchange.error is not None:
            if not self._again(exchange.error, now):
                self._lose(exchange.error, "start_not_cleared_up", "unknown")
            return
        members = self._listed(exchange)
        if members is None:
            return
        if any(moved(each, self._baseline[guid]) for guid, each in members.items() if guid in self._baseline):
            self._kick = Kick(self._kick.sent_at, now)
            self._deadline = now + self._settings.deadline_seconds
            self._follow(members, exchange)
            return
        if not members and not self._baseline:
            self._follow(members, exchange)  # there was nothing to start
            return
        self._still_reads += 1
        # Who is not listed, or was not listed before, cannot be seen to have moved.
        self._is_other |= self._baseline.keys() != members.keys()
        self._followed = {guid: Followed(each, now, each) for guid, each in members.items()}
        if self._still_reads < 2:
            self.call = Call(LIST_MEMBERS, now + _CLEARING_SECONDS)
        elif self._sends < 2 and not self._is_other:
            self._start(now)
        else:
            self._state, self._reason = "unknown", "start_not_cleared_up"
            what = (
                "A start was sent and the members listed since are not those of before"
                if self._is_other
                else "Two starts were sent and nothing moved"
            )
            self._what_to_do = f"{what}; ask MX before aggregating this user again."
            self.call = None

    def _resumed(self, exchange: Exchange) -> None:
        """The first look in a later life of the run, after a start that was answered."""
        if exchange.error is not None:
            if not self._again(exchange.error, exchange.replied_at):
                self._lose(exchange.error)
        elif (members := self._listed(exchange)) is not None:
            self._follow(members, exchange)

    def _follow(self, members: dict[str, Member], exchange: Exchange) -> None:
        # Of an earlier life of the run only the baseline's jobs are known: changes count from here.
        seen = {guid: each.member for guid, each in self._followed.items()} or members
        self._followed = {
            guid: Followed(seen.get(guid, each), exchange.replied_at, each)
            for guid, each in self._baseline.items()
        }
        self._receive = Track._followed_look
        self._see(members, exchange)

    def _followed_look(self, exchange: Exchange) -> None:
        error = exchange.error
        if error is not None:
            is_final = not error.transient and not isinstance(error, BadReply)
            if is_final or self._is_spent(error, exchange.replied_at, self._budget):
                self._lose(error)
            else:
                self._budget.pay(error)
                # What never arrived was no look: the next need not keep its distance.
                most = _LONGEST_BACKOFF_SECONDS if isinstance(error, ConnectFailed) else math.inf
                self._look_again(exchange.replied_at, most)
            return
        members = self._listed(exchange)
        if members is not None:
            self._see(members, exchange)

    def _see(self, members: dict[str, Member], exchange: Exchange) -> None:
        for guid, member in members.items():
            followed = self._followed.get(guid)
            if followed is None:
                followed = self._followed[guid] = Followed(member, exchange.replied_at, None)
            change = followed.see(member, exchange, self._kick)
            if change is not None:
                exchange.changes = [*exchange.changes, change]
        for guid in self._followed.keys() - members.keys():
            self._followed[guid].miss()
        over = exchange.replied_at >= self._deadline
        if over or all(each.outcome is not None for each in self._followed.values()):
            self._read_jobs(exchange.replied_at)
        else:
            self._look_again(exchange.replied_at)

    def _look_again(self, now: float, most_seconds: float = math.inf) -> None:
        self._pages = {}
        schedule = LookSchedule(self._settings.first_look_seconds, self._settings.longest_look_seconds)
        self._gap = schedule.gap(self._gap, self._rng)
        attempt = 1 + self._failures
        due = now + min(self._gap, most_seconds)
        self.call = Call(LIST_MEMBERS, max(now, min(due, self._deadline)), attempt=attempt)

    def _read_jobs(self, now: float) -> None:
        if self._settings.read_jobs:
            self._jobs = [each for each in self._followed.values() if self._has_job(each)]
        self._failures = 0
        self._receive = Track._job_read
        self._next_job(now)

    def _has_job(self, each: Followed) -> bool:
        settled = each.outcome in {"finished", "waiting_on_user", "failed"}
        observed = self._verb == "observe" and not each.member.is_being_aggregated
        guid = each.member.most_recent_job_guid
        return guid is not None and GUID.fullmatch(guid) is not None and (settled or observed)

    def _next_job(self, now: float) -> None:
        guid = self._jobs[-1].member.most_recent_job_guid if self._jobs else None
        self.call = None if guid is None else Call(READ_JOB, now, guid=guid)

    def _job_read(self, exchange: Exchange) -> None:
        """A job's times; whatever goes wrong here leaves the user answered and the duration unknown."""
        assert self.call is not None
        now, error = exchange.replied_at, exchange.error
        if isinstance(error, SessionExpired):
            self.call = None
            return
        if isinstance(error, Refused) and error.status_code == 404 and self.call.attempt == 1:
            self.call = self.call._replace(due=now + _JOB_AGAIN_SECONDS, attempt=2)
            return
        if error is not None and self._again(error, now):
            return
        followed = self._jobs.pop()
        job = exchange.reply.job if exchange.reply else None
        if job and job.started_at and job.finished_at:
            followed.job_seconds = (job.finished_at - job.started_at).total_seconds()
        self._failures = 0
        self._next_job(now)

    def ending(self, user: str | None, columns: Mapping[str, str]) -> Ending:
        """How it ended, once there is no next call."""
        if self._verb == "observe":
            members = [each.observed() for each in self._followed.values()]
        else:
            members = [each.ending() for each in self._followed.values()]
        what_to_do = self._what_to_do
        if self._state == "lost":
            is_new = self.is_unstarted and not members
            what_to_do = f"{what_to_do} {_ASKS_AGAIN if is_new else _ASKS_NO_MORE}"
        return Ending(self._session, user, columns, self._state, members, self._reason, what_to_do)


def _reason(error: NexusError) -> str:
    """The loss in a word or two, as coverage shows it."""
    if isinstance(error, BadReply):
        return f"bad_reply_{error.reason}"
    if isinstance(error, Forbidden) and error.by_cdn:
        return "forbidden_by_cdn"
    if type(error) is Refused:
        return f"refused_{error.status_code}"
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
