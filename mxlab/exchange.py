"""What happened: `Exchange`, one attempt at a request; `Ending`, how one user's run ended.

Times are seconds since 1970 in the run's clock; durations are seconds.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from mxlab.errors import NexusError
from mxlab.nexus.members import Member, Reject
from mxlab.nexus.protocol import Reply

Verb = Literal["aggregate", "observe"]
Outcome = Literal["finished", "waiting_on_user", "failed", "running", "not_triggered"]
UserState = Literal["answered", "lost", "unknown", "pending"]

#: Outcomes of a member, in the order of charts.
OUTCOMES: tuple[Outcome, ...] = ("finished", "waiting_on_user", "failed", "running", "not_triggered")


class Change(msgspec.Struct, frozen=True, gc=False):
    """A member's status or aggregation flag was seen to differ from the look before.

    Attributes
    ----------
    seconds_low, seconds_high
        Since the kick-off: the change fell between the two.
    """

    guid: str
    from_status: str | None
    to_status: str | None
    seconds_low: float
    seconds_high: float
    is_being_aggregated: bool | None


class Exchange(msgspec.Struct, gc=False):
    """One attempt at a request and what came of it; a retry is an Exchange of its own.

    Attributes
    ----------
    endpoint
        Name of the `Endpoint`.
    session, user
        The user's pseudonym and, where there is one, name.
    attempt
        1 for the first.
    sent_at, replied_at
        When it was handed to the network and when the last byte, or the failure, came; the run's time.
    left
        Whether its headers left this machine.
    queued_seconds, reply_seconds
        Ready to send → sent → last byte of the reply; real time.
    status_code, error
        What came back, or what went wrong.
    reply_bytes
        Length of the body on the wire.
    reply
        What a readable 200 said.
    rejects
        Bodies and records that could not be read.
    changes
        What this exchange showed to have changed.
    simulated
        Whether the reply says that it comes from a simulator.
    """

    endpoint: str
    session: str
    user: str | None
    attempt: int
    sent_at: float
    replied_at: float
    left: bool
    queued_seconds: float
    reply_seconds: float
    status_code: int | None = None
    error: NexusError | None = None
    reply_bytes: int = 0
    reply: Reply | None = None
    rejects: list[Reject] = []
    changes: list[Change] = []
    simulated: bool = False


class MemberEnding(msgspec.Struct, gc=False):
    """How one member's run ended.

    Attributes
    ----------
    member
        The last record seen.
    seen_at
        When.
    outcome
        None under `observe`.
    seconds_low, seconds_high
        The aggregation time lies between the two; ``seconds_high`` is None where following ended first.
    looks
        How often it was looked at since the kick-off.
    job_seconds
        The exact duration, where the job could be read.
    """

    member: Member
    seen_at: float
    outcome: Outcome | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    looks: int = 0
    job_seconds: float | None = None


class Ending(msgspec.Struct, gc=False):
    """How one user's run ended.

    Attributes
    ----------
    state
        ``answered``: the last call that the verb needs was read. ``lost``: with a reason. ``unknown``: a start
        was sent and never cleared up.
    reason, what_to_do
        Of a user who is not answered.
    """

    session: str
    user: str | None
    columns: Mapping[str, str]
    state: UserState
    members: list[MemberEnding]
    reason: str | None = None
    what_to_do: str | None = None


class Intent(msgspec.Struct, frozen=True):
    """What is written down before a start is sent, so that it can be cleared up by reading.

    Attributes
    ----------
    session
        The user's pseudonym.
    sent_at
        When the first start of this user that may have acted was about to be sent.
    sends
        How many starts may have acted, this one included.
    baseline
        Of the look before, for each member: job guid, ``aggregated_at`` (ISO text), connection status.
    replied_at
        When the start was answered; None while it is open.
    """

    session: str
    sent_at: float
    sends: int
    baseline: dict[str, tuple[str | None, str | None, str | None]]
    replied_at: float | None = None


@dataclass(slots=True)
class Progress:
    """The sums of a run while it goes on.

    Attributes
    ----------
    asked
        Users in all; None while the source does not say.
    answered, lost, unknown
        Users that ended.
    ended_before
        Users passed over: an earlier life of this run has asked them.
    requests, in_flight
        Attempts so far, and under way.
    following
        Users begun and not ended.
    statuses
        Members by connection status, of the users that ended.
    reasons
        Users lost or unknown, by reason.
    phase
        What the run is doing, in a word.
    """

    asked: int | None = None
    answered: int = 0
    lost: int = 0
    unknown: int = 0
    ended_before: int = 0
    requests: int = 0
    in_flight: int = 0
    following: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    phase: str = "starting"

    @property
    def ended(self) -> int:
        """Users that ended, in whatever state."""
        return self.answered + self.lost + self.unknown

    @property
    def left(self) -> int | None:
        """Users that have not ended; None while the source does not say how many there are."""
        return None if self.asked is None else max(self.asked - self.ended_before - self.ended, 0)

    @property
    def share(self) -> float:
        """The part of all users that has ended; 0 while nobody knows how many there are."""
        return 1 - self.left / self.asked if self.asked and self.left is not None else 0.0

    def words(self, seconds: float) -> str:
        """How far it is after so many seconds of work, in a line."""
        asked = "?" if self.asked is None else f"{self.asked:,}"
        parts = [f"{self.phase}: {self.ended_before + self.ended:,} of {asked} users"]
        if seconds > 0:
            parts.append(f"{self.ended / seconds:,.0f} a second")
        if self.phase not in {"complete", "stopped"}:
            parts += [f"{self.following:,} under way", f"{self.in_flight:,} in flight"]
        return " · ".join(parts)

    def count(self, ending: Ending) -> None:
        """Add one user's end."""
        setattr(self, ending.state, getattr(self, ending.state) + 1)
        if ending.reason:
            self.reasons[ending.reason] += 1
        for each in ending.members:
            self.statuses[each.member.connection_status or "no status"] += 1
