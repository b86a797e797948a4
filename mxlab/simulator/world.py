"""A world of users, members and aggregation jobs: pure, seeded, aged by the time it is told.

No I/O and no clock: each method takes ``now``, a Unix time of the simulation, and a world never grows younger. A user
is derived from the seed and its index when it is first asked for, so one that nobody asks about costs nothing.

What moves a member on is one event at a time: `Member.due` says when, `Member.then` what. The transitions are those
that MX documents (Verification Guide, members overview, "background and foreground aggregation"); the rates at
which they happen are invented (`Parameters`).
"""

import bisect
import contextlib
import gc
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from random import Random
from statistics import NormalDist
from typing import Any, TypeVar, overload

from mxlab.errors import ConfigError
from mxlab.nexus.status import BACKGROUND
from mxlab.simulator.defects import DEFECTS
from mxlab.simulator.guids import Guids, key, mix
from mxlab.simulator.institutions import Institution, Market, plant
from mxlab.simulator.parameters import DAY, HOUR, MINUTE, Parameters, nearest

#: Members in these statuses appear in every reply and start nothing: MX holds no usable credentials, blocks them,
#: or has ended the connection (Verification Guide; that Nexus lists them all the same is a guess).
NEVER_START = frozenset(
    {None, "PREVENTED", "IMPORTED", "IMPAIRED", "CLOSED", "DISCONTINUED", "DISABLED", "PENDING"}
)

#: MX does not aggregate these until the user has given credentials (``needs_updated_credentials``).
NEEDS_CREDENTIALS = frozenset({"PREVENTED", "IMPORTED", "IMPAIRED"})

_ERROR = frozenset(
    {"DENIED", "REJECTED", "LOCKED", "IMPEDED", "EXPIRED", "FAILED", "DEGRADED", "DISCONNECTED", "CHALLENGED"}
)
_NOT_YET_CONNECTED = frozenset({"CREATED", "UPDATED", "RESUMED"})
_CREDENTIALS_GIVEN = frozenset({"DENIED", "PREVENTED", "IMPAIRED", "IMPORTED"})
_AGAIN = {
    "EXPIRED": "CHALLENGED", "REJECTED": "CHALLENGED", "RECONNECTED": "CHALLENGED",
    "DEGRADED": "FAILED", "DISCONNECTED": "FAILED",
}  # fmt: skip

_NOT_THE_USERS = frozenset({"FAILED", "DEGRADED", "DISCONNECTED"})
_NOT_AT_OAUTH_BANKS = frozenset({"CHALLENGED", "EXPIRED", "REJECTED", "PREVENTED"})
_MOVED = frozenset({"CONNECTED", "FAILED", "DEGRADED", "UPDATED", "CREATED"})

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_THIRD = (1 << 21) - 1
_normal = NormalDist().inv_cdf
_NEVER = math.inf
_T = TypeVar("_T")


class Job:
    """One aggregation job of a member.

    Attributes
    ----------
    member, number
        Whose job it is, and the how-manieth.
    requested_at, started_at, finished_at
        Unix times; start and end are None until they have happened.
    ends_at
        When it will end; infinite until it is picked up.
    duration
        Seconds from pick-up to end.
    outcome
        The connection status that it ends in.
    background, premium
        Whether MX began it by itself; whether it is a job of another kind (verification), which ignores the
        throttle and brings no success.
    holdings, transactions
        What the caller asked to be gathered.
    """

    __slots__ = (
        "background", "duration", "ends_at", "finished_at", "holdings", "member", "number", "outcome",
        "premium", "requested_at", "started_at", "transactions",
    )  # fmt: skip

    def __init__(self, member: "Member", requested_at: float, duration: float, outcome: str | None) -> None:
        self.member = member
        self.number = len(member.jobs) + 1
        self.requested_at = requested_at
        self.duration = duration
        self.outcome = outcome
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.ends_at = _NEVER
        self.background = False
        self.premium = False
        self.holdings = True
        self.transactions = True


class Member:
    """One user's link to one institution, as the world knows it.

    Attributes
    ----------
    user, slot, key
        The index of its user, its place among that user's members, and what its random numbers are derived from.
    institution
        The `Institution`.
    status
        Connection status; None for a manual member.
    running
        Whether a job is under way (``is_being_aggregated``).
    visible
        False before it is created and after MX has deleted it.
    aggregated_at, succeeded_at
        Unix times: start of the last job, end of the last successful one; None where there was none.
    credentials_at
        Unix time of the last update of its credentials.
    jobs
        All its jobs, oldest first; the first may be from before the epoch.
    revision
        Counts its changes.
    failures, first_failure_at, denials
        Failures in a row since a time, and refused logins in a row.
    due, then
        When the next thing happens by itself, and what.
    background_disabled, pfm, defect
        Whether background aggregation is off; whether its use cases have PFM; the kind of its planted defect.
    rendered, wrapping
        Its record as last rendered, None after each change; and the parts of it that never change.
    """

    __slots__ = (
        "aggregated_at", "background_disabled", "credentials_at", "defect", "denials", "due", "failures",
        "first_failure_at", "institution", "jobs", "key", "pfm", "rendered", "revision", "running", "slot",
        "status", "succeeded_at", "then", "user", "visible", "wrapping",
    )  # fmt: skip

    def __init__(self, user: int, slot: int, word: int, institution: Institution) -> None:
        self.user = user
        self.slot = slot
        self.key = word
        self.institution = institution
        self.status: str | None = "CREATED"
        self.running = False
        self.visible = True
        self.aggregated_at: float | None = None
        self.succeeded_at: float | None = None
        self.credentials_at = -_NEVER
        self.jobs: list[Job] = []
        self.revision = 0
        self.failures = 0
        self.first_failure_at = 0.0
        self.denials = 0
        self.due = _NEVER
        self.then: Callable[[World, Member, float], None] = World._rest  # noqa: SLF001 - a world's own
        self.background_disabled = False
        self.pfm = True
        self.defect: str | None = None
        self.rendered: bytes | None = None
        self.wrapping: tuple[str, str, str, str, str] | None = None

    @property
    def job(self) -> Job | None:
        """The most recent job."""
        return self.jobs[-1] if self.jobs else None

    def trait(self, number: int) -> float:
        """A lasting uniform number of this member, 0…1, one for each ``number``."""
        return mix((self.key ^ number * _GOLDEN) & _MASK) / (_MASK + 1)


class UserIds(Sequence[str]):
    """The partner's own user ids of a world, made as they are asked for."""

    def __init__(self, users: int) -> None:
        self._range = range(users)

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [f"user-{one:07d}" for one in self._range[index]]
        return f"user-{self._range[index]:07d}"

    def __iter__(self) -> Iterator[str]:
        return (f"user-{one:07d}" for one in self._range)

    def find(self, user_id: str) -> int | None:
        """The index of a user id; None for one that this world does not have."""
        head, _, digits = user_id.partition("-")
        if head != "user" or not (digits.isascii() and digits.isdigit()):
            return None
        index = int(digits) if len(digits) < 12 else -1
        return index if index in self._range and self[index] == user_id else None


class World:
    """Users, members and jobs of a seed, at the time that each method is told.

    Parameters
    ----------
    parameters
        All figures, scenarios and switches.

    Attributes
    ----------
    institutions
        All `Institution` objects, MX Bank last.
    planted
        One record for each thing that the scenarios planted at an institution.

    Examples
    --------
    >>> world = World(Parameters(users=10, seed=7))
    >>> now = world.parameters.epoch
    >>> members = world.aggregate_all(0, now)
    >>> any(member.running for member in world.members(0, now + 86_400))
    False
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.guids = Guids(parameters.seed)
        self._market = Market(parameters, self.guids)
        self.institutions = self._market.institutions
        self.planted = plant(parameters, self._market)
        self._users: dict[int, list[Member]] = {}
        self._user_ids = UserIds(parameters.users)
        self._counts, self._count_weights = _cumulate(parameters.members_per_user)
        self._statuses, self._status_weights = _cumulate(parameters.status_mix)
        self._troubles = list(parameters.trouble_shares)
        self._trouble_sums = list(accumulate(parameters.trouble_shares.values()))
        self._poor = self._planted_institution("onboarding_wave")
        self._defects = _defect_kinds(parameters)
        self._new_status = parameters.new_status if "new_status" in parameters.scenarios else None

    # What is asked

    def user_ids(self) -> UserIds:
        """The partner's own ids of all users, ``user-0000000`` and on."""
        return self._user_ids

    def members(self, user: int, now: float) -> list[Member]:
        """The members of the user at an index, as they are at ``now``."""
        members = self._users.get(user)
        if members is None:
            members = self._users[user] = list(self._derive(user))
        shown = []
        for member in members:
            while member.due <= now:
                member.then(self, member, member.due)
            if member.visible:
                shown.append(member)
        return shown

    def member(self, guid: str, now: float) -> Member | None:
        """The member that a guid stands for, at ``now``; None where there is none."""
        found = self.guids.read("MBR", guid)
        if found is None or found[0] >= len(self._user_ids) or found[2]:
            return None
        return next((one for one in self.members(found[0], now) if one.slot == found[1]), None)

    def job(self, guid: str, now: float) -> Job | None:
        """The job that a guid stands for, at ``now``; None where there is none (yet)."""
        found = self.guids.read("JOB", guid)
        if found is None or found[0] >= len(self._user_ids):
            return None
        for member in self.members(found[0], now):
            if member.slot == found[1] and 0 < found[2] <= len(member.jobs):
                job = member.jobs[found[2] - 1]
                return None if now < job.requested_at + self.parameters.fresh_guid_404_seconds else job
        return None

    def member_guid(self, member: Member) -> str:
        """MX's guid of a member."""
        return self.guids.make("MBR", member.user, member.slot)

    def job_guid(self, job: Job) -> str:
        """MX's guid of a job."""
        return self.guids.make("JOB", job.member.user, job.member.slot, job.number)

    # What is done

    def aggregate(
        self, members: Sequence[Member], now: float, *, holdings: bool = True, transactions: bool = True
    ) -> list[Job]:
        """The jobs begun for those of some members that may start one now.

        A member starts nothing while a job is under way or waits for pick-up, within the throttle of its last
        success (not at MX Bank), and in the statuses of `NEVER_START`.
        """
        begun = []
        for member in members:
            if self._may_start(member, now):
                job = self._begin(member, now)
                job.holdings, job.transactions = holdings, transactions
                begun.append(job)
        return begun

    def _may_start(self, member: Member, now: float) -> bool:
        if member.running or member.then is World._pick_up or member.status in NEVER_START or not member.pfm:
            return False
        since = member.succeeded_at if member.institution.throttled else None
        return since is None or now >= since + self.parameters.throttle_seconds

    def aggregate_all(self, user: int, now: float) -> list[Member]:
        """All members of a user after a kick-off at ``now``."""
        members = self.members(user, now)
        self.aggregate(members, now)
        return members

    def verify(self, member: Member, now: float) -> Job | None:
        """A premium job begun for a connected member: it ignores the throttle and moves only ``aggregated_at``."""
        if member.running or member.status != "CONNECTED":
            return None
        return self._begin(member, now, premium=True)

    def answer(self, member: Member, now: float) -> bool:
        """Whether the answer to a challenge was taken: only a CHALLENGED member can be resumed."""
        if member.status != "CHALLENGED" or member.running:
            return False
        self._answer(member, now)
        return True

    def advance(self, now: float) -> None:
        """Age every user of the world to ``now``."""
        with _not_collecting():
            for user in range(self.parameters.users):
                self.members(user, now)

    # What is true

    def jobs(self, now: float) -> Iterator[Job]:
        """Every job that ran since the epoch, of the users that were asked about."""
        epoch = self.parameters.epoch
        for user, members in list(self._users.items()):
            self.members(user, now)
            for member in members:
                for job in member.jobs:
                    if job.requested_at >= epoch or (job.started_at is not None and job.ends_at > epoch):
                        yield job

    def census(self, now: float) -> Counter[str | None]:
        """How many members are in each connection status, over all users."""
        self.advance(now)
        return Counter(one.status for user in range(self.parameters.users) for one in self.members(user, now))

    def truth(self, now: float) -> dict[str, list[dict[str, Any]]]:
        """What no API call tells, as records: ``jobs``, ``planted``, ``institutions``, ``defects``, ``status_mix``.

        Jobs and defects are those of the users that were asked about. Times are Unix times with fractions,
        durations simulated seconds; ``finished_at``, ``duration_seconds`` and ``outcome`` of a job that has not
        ended are None.
        """
        jobs = [self._job_truth(job) for job in self.jobs(now)]
        defects = [
            {
                "member_guid": self.member_guid(member),
                "user_id": self._user_ids[member.user],
                "kind": member.defect,
            }
            for members in self._users.values()
            for member in members
            if member.defect is not None
        ]
        institutions = [
            {"institution_guid": one.guid, "institution_code": one.code, "institution": one.name, "bank": one.bank,
             "is_oauth": one.oauth, "share": one.share, "median_seconds": one.median_seconds,
             "sigma": self.parameters.duration_sigma, "failure_share": one.failure_share}
            for one in self.institutions
        ]  # fmt: skip
        mix_at_epoch = self.parameters.status_mix.items()
        return {
            "jobs": jobs,
            "planted": list(self.planted),
            "institutions": institutions,
            "defects": defects,
            "status_mix": [
                {"connection_status": status, "weight": weight} for status, weight in mix_at_epoch
            ],
        }

    def _job_truth(self, job: Job) -> dict[str, Any]:
        member, ended = job.member, job.finished_at is not None
        return {
            "job_guid": self.job_guid(job),
            "member_guid": self.member_guid(member),
            "user_id": self._user_ids[member.user],
            "institution_guid": member.institution.guid,
            "institution_code": member.institution.code,
            "institution": member.institution.name,
            "requested_at": job.requested_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
            "duration_seconds": job.duration if ended else None,
            "outcome": job.outcome if ended else None,
            "is_background": job.background,
            "is_premium": job.premium,
        }

    # How a user is derived

    def _derive(self, user: int) -> Iterator[Member]:
        """The members of a user at the epoch."""
        word = key(self.parameters.seed, user)
        uniform = Random(word).random
        count = self._counts[bisect.bisect(self._count_weights, uniform() * self._count_weights[-1])]
        for slot in range(count):
            member = Member(user, slot, mix((word + slot * _GOLDEN) & _MASK), self._market.draw(uniform()))
            self._settle_in(member, uniform)
            yield member
        if self._poor is not None:
            newcomer = Member(user, count, mix((word + count * _GOLDEN) & _MASK), self._poor)
            if newcomer.trait(1) < self.parameters.wave_share:
                yield self._announce(newcomer)

    def _announce(self, member: Member) -> Member:
        """A member of the poor bank that its user will add in the onboarding wave."""
        p = self.parameters
        member.visible = False
        wave = p.scenario_until_seconds - p.scenario_from_seconds
        member.due = p.epoch + p.scenario_from_seconds + member.trait(2) * wave
        member.then = World._create
        return member

    def _settle_in(self, member: Member, uniform: Callable[[], float]) -> None:
        """Give a member its state at the epoch: status, ages, last job, and what comes next."""
        p, epoch, bank = self.parameters, self.parameters.epoch, member.institution
        status = self._statuses[bisect.bisect(self._status_weights, uniform() * self._status_weights[-1])]
        if bank.oauth and status in _NOT_AT_OAUTH_BANKS:
            status = "CONNECTED"  # an OAuth bank asks no questions of MX and hands it no password
        if status == "PENDING" and not bank.oauth:
            status = "CREATED"
        if self._new_status is not None and uniform() < p.new_status_share:
            status = self._new_status
        member.status = status
        member.background_disabled = uniform() < p.background_disabled_share
        member.pfm = uniform() >= p.not_pfm_share
        if self._defects and uniform() < p.defect_share:
            member.defect = self._defects[int(uniform() * len(self._defects))]
        age, duration = uniform(), self._duration(member, uniform())
        if status is None:
            return
        if status == "PENDING":
            member.due, member.then = epoch + age * p.pending_seconds, World._vanish
            return
        if status == "CREATED":
            member.jobs.append(Job(member, epoch - age * HOUR, duration, None))
        elif status in {"RESUMED", "DELAYED"}:
            self._found_running(member, age, duration * (10 if status == "DELAYED" else 1), "CONNECTED")
        elif status == "CONNECTED" and uniform() < p.stuck_share:
            self._found_running(member, age, p.stuck_seconds, "FAILED")
            member.succeeded_at = epoch - p.stuck_seconds - DAY
        else:
            self._found_at_rest(member, age, duration, uniform())
        if not member.running:
            self._rest(member, epoch)

    def _found_running(self, member: Member, age: float, duration: float, outcome: str) -> None:
        """At the epoch a job of this member is under way, ``age`` of its duration old."""
        job = Job(member, self.parameters.epoch - age * duration, duration, outcome)
        member.jobs.append(job)
        self._run(member, job, job.requested_at)

    def _found_at_rest(self, member: Member, age: float, duration: float, spare: float) -> None:
        """At the epoch the last job of this member is over: how long, and how long before it the last success was."""
        p, status = self.parameters, member.status
        assert status is not None
        if status == "CONNECTED" and not member.background_disabled:
            since = age * 0.98 * p.background_seconds
        else:
            since = _waiting(p.repair_seconds.get(status, 4 * DAY), age)
        job = Job(member, p.epoch - since - duration - 1.0, duration, status)
        job.started_at = member.aggregated_at = job.requested_at
        job.finished_at = job.ends_at = job.started_at + duration
        member.jobs.append(job)
        member.revision = 2 + int(spare * 120)
        if status == "CONNECTED":
            verified_since = spare < 0.03  # then aggregated_at is later than the last success
            member.succeeded_at = job.started_at - 10 * MINUTE if verified_since else job.finished_at
        elif status not in {"IMPORTED", "UPDATED"} or spare < 0.5:
            lost = p.disconnected_seconds if status == "DISCONNECTED" else 0.0
            member.succeeded_at = job.started_at - lost - _waiting(6 * DAY, spare)
        if status in _NOT_THE_USERS:
            member.failures = 1 if status == "FAILED" else p.degraded_failures
            member.first_failure_at = job.started_at
        member.denials = int(status == "DENIED")

    # What happens to a member, one event each: called with the time at which it is due

    def _rest(self, member: Member, at: float) -> None:
        """Nothing runs: say what happens next if nobody does anything."""
        p, status = self.parameters, member.status
        uniform = member.trait(100 + member.revision)
        due, then = _NEVER, World._rest
        if status in BACKGROUND and not member.background_disabled:
            last = member.aggregated_at
            if last is None:
                last = at - p.background_rest_seconds * uniform
            gap = p.background_seconds * (0.93 + 0.14 * uniform)
            due, then = max(at, last + max(p.background_rest_seconds, gap)), World._background
        elif status == "CHALLENGED":
            due, then = at + p.challenge_seconds, World._expire
            if uniform < p.answer_share:
                due = min(due, at + _waiting(p.answer_seconds, uniform / p.answer_share))
                then = World._answer
        elif status == "CONNECTED":
            due, then = at + _waiting(4 * DAY, uniform), World._repair
        elif status is not None and status in p.repair_seconds:
            due, then = at + _waiting(p.repair_seconds[status], uniform), World._repair
        if (
            member.failures >= p.degraded_failures
            and status != "DISCONNECTED"
            and member.succeeded_at is not None
        ):
            lost = max(at, member.succeeded_at + p.disconnected_seconds)
            if lost < due:
                due, then = lost, World._disconnect
        moves = member.institution.migrates_at
        if at < moves < due and status in _MOVED:
            due, then = moves, World._migrate
        member.due, member.then = due, then

    def _begin(
        self,
        member: Member,
        at: float,
        *,
        background: bool = False,
        premium: bool = False,
        repaired_from: str | None = None,
    ) -> Job:
        """A new job for a member, picked up at once unless the member shows an error and the job is late."""
        p = self.parameters
        word = mix((member.key + (len(member.jobs) + 1) * _GOLDEN) & _MASK)
        decides, lasts, sticks = word >> 42 & _THIRD, word >> 21 & _THIRD, word & _THIRD
        duration = self._duration(member, (lasts + 0.5) / (_THIRD + 1))
        outcome = "CONNECTED"
        if not premium:
            outcome = self._outcome(member, at, decides / (_THIRD + 1), repaired_from)
            if sticks < p.stuck_share * _THIRD:
                outcome, duration = "FAILED", p.stuck_seconds
        job = Job(member, at, duration, outcome)
        job.background, job.premium = background, premium
        member.jobs.append(job)
        self._changed(member, member.status)
        late = mix(word) / _MASK if member.status in _ERROR and not background else 1.0
        if late < p.late_pickup_share:
            lag = p.late_pickup_seconds * (0.2 + 0.8 * late / p.late_pickup_share)
            member.due, member.then = at + lag, World._pick_up
        else:
            self._run(member, job, at)
        return job

    def _pick_up(self, member: Member, at: float) -> None:
        self._run(member, member.jobs[-1], at)

    def _run(self, member: Member, job: Job, at: float) -> None:
        """The job is under way from now on."""
        job.started_at = member.aggregated_at = at
        job.ends_at = at + job.duration
        member.running = True
        self._changed(member, member.status)
        member.due, member.then = job.ends_at, World._finish
        if member.status != "CONNECTED":
            if job.outcome == "CONNECTED":
                member.due, member.then = at + 0.4 * job.duration, World._log_in
            late = at + self.parameters.delayed_after_seconds
            if member.status in _NOT_YET_CONNECTED and late < member.due:
                member.due, member.then = late, World._delay

    def _delay(self, member: Member, at: float) -> None:
        """The bank still has not let us in."""
        self._changed(member, "DELAYED")
        job = member.jobs[-1]
        member.due, member.then = job.ends_at, World._finish
        if job.outcome == "CONNECTED":
            member.due, member.then = max(at, job.ends_at - 0.6 * job.duration), World._log_in

    def _log_in(self, member: Member, _at: float) -> None:
        """The bank lets us in: CONNECTED, and the data still being gathered."""
        self._changed(member, "CONNECTED")
        member.due, member.then = member.jobs[-1].ends_at, World._finish

    def _finish(self, member: Member, at: float) -> None:
        """The job ends, the flag drops, the status is the job's outcome."""
        job = member.jobs[-1]
        job.finished_at = at
        member.running = False
        if job.outcome == "CONNECTED":
            member.failures = member.denials = 0
            if not job.premium:
                member.succeeded_at = at
        elif job.outcome == "DENIED":
            member.denials += 1
            if member.denials >= 3:
                job.outcome = "PREVENTED"
        elif job.outcome == "FAILED":
            job.outcome = self._failed(member, at)
        self._changed(member, job.outcome)
        self._rest(member, at)

    def _failed(self, member: Member, at: float) -> str:
        """FAILED, or what several failures make of it."""
        p = self.parameters
        if member.status == "DISCONNECTED":
            return "DISCONNECTED"
        if not member.failures or at - member.first_failure_at > p.degraded_seconds:
            member.failures, member.first_failure_at = 0, at
        member.failures += 1
        if member.failures < p.degraded_failures:
            return "FAILED"
        lost = member.succeeded_at is not None and at - member.succeeded_at >= p.disconnected_seconds
        return "DISCONNECTED" if lost else "DEGRADED"

    def _background(self, member: Member, at: float) -> None:
        self._begin(member, at, background=True)

    def _repair(self, member: Member, at: float) -> None:
        """The user comes back: repairs what is theirs to repair, and aggregates."""
        before = member.status
        if before in _CREDENTIALS_GIVEN:
            member.credentials_at = at
            if before == "PREVENTED":
                member.denials = 0
            self._changed(member, "UPDATED")
        self._begin(member, at, repaired_from=before)

    def _answer(self, member: Member, at: float) -> None:
        """The user answers the challenge; that a job of its own carries the answer is a guess."""
        self._changed(member, "RESUMED")
        self._begin(member, at)

    def _expire(self, member: Member, at: float) -> None:
        self._changed(member, "EXPIRED")
        self._rest(member, at)

    def _disconnect(self, member: Member, at: float) -> None:
        self._changed(member, "DISCONNECTED")
        self._rest(member, at)

    def _migrate(self, member: Member, at: float) -> None:
        self._changed(member, "RECONNECTED")
        self._rest(member, at)

    def _create(self, member: Member, at: float) -> None:
        member.visible = True
        self._begin(member, at)

    def _vanish(self, member: Member, _at: float) -> None:
        """MX deletes an OAuth member that was not finished within the hour."""
        member.visible = False
        member.due = _NEVER

    def _changed(self, member: Member, status: str | None) -> None:
        member.status = status
        member.revision += 1
        member.rendered = None

    def _duration(self, member: Member, uniform: float) -> float:
        """Seconds of a job: log-normal about the institution's median."""
        return member.institution.median_seconds * math.exp(
            self.parameters.duration_sigma * _normal(max(uniform, 1e-9))
        )

    def _outcome(self, member: Member, at: float, uniform: float, repaired_from: str | None) -> str:
        """The status that a job begun now will end in; FAILED and DENIED may still grow worse by counting."""
        bank, status = member.institution, repaired_from or member.status or ""
        failing = bank.failing_share(at)
        if uniform < failing:
            return "FAILED"
        uniform = (uniform - failing) / (1 - failing) if failing < 1 else 0.0
        if bank.reset_at <= at and member.credentials_at < bank.reset_at:
            return "DENIED"
        if status == "RESUMED":
            return "CHALLENGED" if uniform < 0.15 else "REJECTED" if uniform < 0.25 else "CONNECTED"
        again = 1.0 if status == self._new_status else self.parameters.persistence.get(status, 0.0)
        if repaired_from is not None and status not in _NOT_THE_USERS:
            again *= 0.3  # what the user repairs is repaired mostly
        if uniform < again:
            return _AGAIN.get(status, status)
        uniform = (uniform - again) / (1 - again) if again < 1 else 0.0
        place = bisect.bisect(self._trouble_sums, uniform * (3 if bank.oauth else 1))
        trouble = self._troubles[place] if place < len(self._troubles) else "CONNECTED"
        return "CONNECTED" if bank.oauth and trouble in _NOT_AT_OAUTH_BANKS else trouble

    def _planted_institution(self, scenario: str) -> Institution | None:
        guids = {event["institution_guid"] for event in self.planted if event["scenario"] == scenario}
        return next((one for one in self.institutions if one.guid in guids), None)


@contextlib.contextmanager
def _not_collecting() -> Iterator[None]:
    """No garbage collection inside: millions of objects are made and none is dropped, and it would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _waiting(mean: float, uniform: float) -> float:
    """An exponential time with this mean, in its unit."""
    return -mean * math.log(1.0 - uniform)


def _cumulate(weights: Mapping[_T, float]) -> tuple[list[_T], list[float]]:
    """Values with weight, and the running sums of their weights."""
    chosen = {value: weight for value, weight in weights.items() if weight > 0}
    return list(chosen), list(accumulate(chosen.values()))


def _defect_kinds(parameters: Parameters) -> tuple[str, ...]:
    """The kinds of defect that the scenarios ask for."""
    for kind in parameters.defect_kinds:
        if kind not in DEFECTS:
            raise ConfigError(f"unknown defect {kind!r}: {nearest(kind, DEFECTS)}")
    if "defects" not in parameters.scenarios:
        return ()
    return parameters.defect_kinds or tuple(DEFECTS)
