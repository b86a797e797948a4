"""`Track`: one user's run, against a model of the bank that knows what is true.

The machine performs whatever call the track asks for, and a rule chooses what comes of it: an answer, or any error,
with the start acted upon or not; members appear and vanish, time passes, and the process dies and resumes from the
last intent.
"""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import Phase
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from mxlab import errors
from mxlab.exchange import Exchange
from mxlab.fetch.pace import Budget
from mxlab.fetch.tracking import LookSchedule, Track
from mxlab.nexus.members import Job, Member
from mxlab.nexus.protocol import Reply
from mxlab.settings import Settings

SETTINGS = Settings(base_url="http://127.0.0.1:1", deadline_seconds=100.0)
FINAL = {
    "CONNECTED": "finished",
    "DENIED": "waiting_on_user",
    "FAILED": "failed",
    "CLOSED": "failed",
    "NEW": "failed",
}

#: name → (error, whether the request left, whether it may have been acted upon)
FAILURES = {
    "not sent": (lambda: errors.ConnectFailed("x"), False, False),
    "timeout": (lambda: errors.ReplyTimeout("x"), True, True),
    "lost": (lambda: errors.ConnectionLost("x"), True, True),
    "unreadable": (lambda: errors.BadReply("x"), True, True),
    "500": (lambda: errors.ServerFault("x", status_code=500), True, True),
    "409": (lambda: errors.Refused("x", status_code=409), True, True),
    "401": (lambda: errors.SessionExpired("x", status_code=401), True, False),
    "403": (lambda: errors.Forbidden("x", status_code=403), True, False),
    "404": (lambda: errors.Refused("x", status_code=404), True, False),
    "302": (lambda: errors.Redirected("x", status_code=302), True, False),
    "429": (lambda: errors.RateLimited("x", status_code=429), True, False),
    "429 told 0": (lambda: errors.RateLimited("x", status_code=429, retry_after_seconds=0.0), True, False),
    "429 told": (lambda: errors.RateLimited("x", status_code=429, retry_after_seconds=7.0), True, False),
    "503": (lambda: errors.Unavailable("x", status_code=503, retry_after_seconds=3.0), True, False),
}
UNCLEAR = [name for name, (_, _, is_unclear) in FAILURES.items() if is_unclear]
RTT = st.sampled_from([0.01, 0.2, 1.0])


def moment(seconds):
    return datetime.fromtimestamp(seconds, UTC)


class BankMember:
    """One member and its job; what the API shows lags behind what is so.

    For `unseen` seconds after a job began the one before is shown; if it is picked up late, its guid is shown then, with the
    start and the error status of the one before; then until `early` seconds an error status that means nothing: all shorter than what the rules of looking and clearing up allow for. (Not where the job truly ends in
    an error: two looks that agree for different reasons are what the rule of two cannot tell apart.)
    """

    def __init__(self, number, seconds, final, *, is_throttled=False, unseen=0.0, early=0.0, is_late=False):
        self.guid, self.seconds, self.final, self.is_throttled = f"MBR-{number}", seconds, final, is_throttled
        self.unseen, self.early = unseen, early if final == "CONNECTED" else 0.0
        is_late = is_late and final != "CONNECTED"
        self.picked_up = unseen + 2.5 if is_late else 0.0
        self.status = final if is_late else "CONNECTED"
        self.job, self.started, self.ended, self.is_there = f"JOB-{number}", 10.0, 20.0, True
        self.before = (self.job, self.started)

    @property
    def began(self):
        return self.started > 10.0

    def start(self, now):
        if self.is_throttled or now < self.ended:
            return False
        self.before = self.job, self.started
        self.job, self.started = f"{self.job}0", now
        self.ended = now + max(self.seconds, self.picked_up + 0.1)
        self.seconds = self.ended - now
        return True

    def record(self, now):
        age = now - self.started
        job, started = self.before if self.began and age < self.unseen else (self.job, self.started)
        is_early = self.began and self.unseen <= age < min(self.early, self.seconds)
        is_waiting = self.began and age < self.picked_up
        is_over = now >= self.ended
        status = "DENIED" if is_early else self.final if self.began and is_over else self.status
        return Member(
            self.guid,
            aggregated_at=moment(self.before[1] if is_waiting else started + self.picked_up * self.began),
            connection_status=status,
            is_being_aggregated=not (is_over or is_early or is_waiting or job != self.job),
            most_recent_job_guid=job,
        )


class Life(RuleBasedStateMachine):
    """A user's run, with whatever may come between."""

    verb = "aggregate"

    @initialize(
        members=st.lists(
            st.builds(
                dict,
                seconds=st.sampled_from([0.5, 2.0, 7.0]) | st.floats(0.5, 150),
                final=st.sampled_from(["CONNECTED", "CONNECTED", *sorted(FINAL)]),
                is_throttled=st.sampled_from([False, False, True]),
                unseen=st.sampled_from([0.0, 2.5]),
                early=st.sampled_from([0.0, 4.9]),
                is_late=st.booleans(),
            ),
            min_size=1,
            max_size=3,
        ),
        renews=st.booleans(),
        seed=st.integers(0, 5),
    )
    def begin(self, members, renews, seed):
        self.now, self.renews, self.rng = 1000.0, renews, random.Random(seed)
        self.bank = [BankMember(n, **known) for n, known in enumerate(members)]
        self.may_have_acted = self.acted = self.looks_too_late = 0
        self.budget = Budget()
        self.intent, self.cleared_at, self.clearing, self.left_alone = None, self.now, 0, True
        self.track = self.reborn()

    def reborn(self):
        known = {"renews": self.renews, "intent": self.intent, "budget": self.budget}
        return Track(self.verb, SETTINGS, self.rng, "session", self.now, **known)

    @property
    def is_over(self):
        return self.track.call is None

    def start(self):
        began = [member.start(self.now) for member in self.bank if member.is_there]
        self.acted += any(began)

    @precondition(lambda self: not self.is_over)
    @rule(before=RTT, behind=RTT, late=st.sampled_from([0.0, 0.0, 20.0]))
    def answer(self, before, behind, late):
        """The next call is made, perhaps late, and answered."""
        self.now += late
        self.perform("answer", acts=True, before=before, behind=behind)

    @precondition(lambda self: not self.is_over)
    @rule(
        fate=st.sampled_from([*sorted(FAILURES), *UNCLEAR, *UNCLEAR]),
        acts=st.booleans(),
        before=RTT,
        behind=RTT,
    )
    def fail(self, fate, acts, before, behind):
        """The next call fails; a read mostly in ways that pass."""
        if not self.track.call.endpoint.starts_jobs and self.rng.random() < 0.8:
            fate = "timeout"
        self.perform(fate, acts=acts, before=before, behind=behind)

    def perform(self, fate, *, acts, before, behind):
        call = self.track.call
        sent_at = self.now = max(self.now, call.due)
        error, left, unclear = FAILURES.get(fate, (lambda: None, True, True))
        self.now += before
        if call.endpoint.starts_jobs:
            self.intent = self.track.intent(sent_at)
            self.may_have_acted += unclear
            if unclear and acts:
                self.start()
        exchange = Exchange(
            call.endpoint.name,
            "session",
            None,
            call.attempt,
            sent_at,
            self.now + behind,
            left,
            0.0,
            before + behind,
        )
        exchange.error = error()
        exchange.reply = self.reply(call) if exchange.error is None else None
        self.now += behind
        self.track.received(exchange)
        self.track.must_renew = False
        if call.endpoint.starts_jobs and (exchange.error is None or self.track.is_unstarted):
            is_answered = exchange.error is None
            self.intent = structs.replace(self.intent, replied_at=self.now) if is_answered else None
        self.judge_the_looks(call, sent_at, exchange)

    def reply(self, call):
        if call.endpoint.name == "read_job":
            (member,) = [each for each in self.bank if each.job == call.guid] or [None]
            return Reply(job=member and Job(call.guid, moment(member.started), moment(member.ended)))
        return Reply([member.record(self.now) for member in self.bank if member.is_there])

    def judge_the_looks(self, call, sent_at, exchange):
        """Following ends with the first readable look after the deadline.

        That counts from the kick-off's reply, or from the read that cleared it up, which is one of the next two.
        """
        if call.endpoint.starts_jobs:
            self.cleared_at, self.clearing = exchange.replied_at, 2 * (exchange.error is not None)
        elif call.endpoint.name == "list_members" and exchange.error is None and self.may_have_acted:
            if self.clearing:
                self.cleared_at, self.clearing = exchange.replied_at, self.clearing - 1
            is_late = sent_at > self.cleared_at + SETTINGS.deadline_seconds
            next_one = self.track.call
            self.looks_too_late += bool(is_late and next_one and next_one.endpoint.name == "list_members")

    @rule(is_spent=st.booleans())
    def trouble(self, is_spent):
        """The server answers nobody, or fails so many that the budget is spent: failures count no more."""
        self.budget.heard("other", None, self.now)
        for other in ("a", "b"):
            self.budget.heard(other, errors.ServerFault("x"), self.now)
        while is_spent and self.budget.pay(errors.ServerFault("x")):
            pass

    @rule(which=st.integers(0, 20))
    def stir(self, which):
        """A member appears, or now and then one vanishes."""
        if which > 15 and len(self.bank) < 5:
            self.bank.append(BankMember(len(self.bank), 20.0, "CONNECTED"))
        elif which < len(self.bank) and self.bank[which].is_there:
            self.bank[which].is_there = False

    @precondition(lambda self: not self.is_over)
    @rule(point=st.sampled_from(["before the intent", "after the intent", "after the send"]))
    def crash(self, point):
        """The process dies; the next life knows only the last intent, and that may be newer than the last send."""
        if self.track.call.endpoint.starts_jobs and point != "before the intent":
            self.now = max(self.now, self.track.call.due)
            self.intent = self.track.intent(self.now)
            if point == "after the send":
                self.may_have_acted += 1
                self.start()
        self.cleared_at = self.now
        self.left_alone = False
        self.track = self.reborn()

    @invariant()
    def at_most_two_starts_may_have_acted(self):
        if hasattr(self, "track"):
            assert self.may_have_acted <= 2
            assert self.acted <= 1

    @invariant()
    def following_ends_with_the_deadline(self):
        if hasattr(self, "track") and self.left_alone:
            assert not self.looks_too_late

    def teardown(self):
        if not hasattr(self, "track"):
            return
        calls = 0
        while not self.is_over:
            calls += 1
            assert calls < 100, "it does not end"
            self.perform("answer", acts=True, before=0.1, behind=0.1)
            self.at_most_two_starts_may_have_acted()
        self.check(self.track.ending("user", {}))

    def check(self, ending):
        assert ending.state in {"answered", "lost", "unknown"}
        assert (ending.state == "answered") == (ending.reason is None)
        known = {member.guid: member for member in self.bank}
        for each in ending.members:
            member = known[each.member.guid]
            if each.seconds_high is not None:
                assert member.began
                assert each.seconds_low <= member.seconds + 1e-6
                assert member.seconds <= each.seconds_high + 1e-6
                assert each.outcome == FINAL[member.final]
            if each.outcome == "not_triggered":
                assert (each.seconds_low, each.seconds_high, each.job_seconds) == (None, None, None)
            if each.job_seconds is not None and member.began:
                assert each.job_seconds == pytest.approx(member.seconds, abs=1e-4)


class ReadOnlyLife(Life):
    """The same under `observe`: no start, ever."""

    verb = "observe"

    @invariant()
    def nothing_is_started(self):
        if hasattr(self, "track"):
            assert self.may_have_acted == self.acted == 0
            assert self.intent is None
            assert self.is_over or not self.track.call.endpoint.starts_jobs


TestLife = Life.TestCase
TestLife.settings = effort(max_examples=400, stateful_step_count=15, deadline=None)
TestReadOnlyLife = ReadOnlyLife.TestCase
TestReadOnlyLife.settings = effort(max_examples=50, stateful_step_count=15, deadline=None)


class TestManyLives(Life.TestCase):
    """The same, longer: the second tier."""

    pytestmark = pytest.mark.slow
    settings = effort(max_examples=3000, stateful_step_count=40, deadline=None)


def restart_blindly(monkeypatch):
    """After a lost response the start is sent again without a look."""
    started = Track._started

    def blind(track, exchange):
        started(track, exchange)
        if exchange.error is not None and exchange.error.may_have_acted:
            track._start(exchange.replied_at)

    monkeypatch.setattr(Track, "_started", blind)


def look_once(monkeypatch):
    """One read that shows nothing is enough: a job that shows late is started twice."""
    cleared = Track._cleared

    def hasty(track, exchange):
        track._still_reads = 1
        cleared(track, exchange)

    monkeypatch.setattr(Track, "_cleared", hasty)


def forget_the_sends(monkeypatch):
    """A later life of the run does not know how often a start was sent."""
    resume = Track._resume
    monkeypatch.setattr(
        Track, "_resume", lambda track, intent: resume(track, structs.replace(intent, sends=0))
    )


def forget_the_intent(monkeypatch):
    """A later life begins anew."""
    monkeypatch.setattr(Track, "_resume", lambda *_: None)


def take_a_lost_connection_for_a_refusal(monkeypatch):
    """It is sent again as if it could not have acted."""
    monkeypatch.setattr(errors.ConnectionLost, "may_have_acted", False)


MUTANTS = [
    restart_blindly,
    look_once,
    forget_the_sends,
    forget_the_intent,
    take_a_lost_connection_for_a_refusal,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_finds_a_track_that_starts_too_often(mutant, monkeypatch):
    """The test of the test: each of these breaks the rule of one start that acts and two that arrive."""
    mutant(monkeypatch)
    found = effort(
        max_examples=50_000, stateful_step_count=15, deadline=None, database=None, phases=[Phase.generate],
        report_multiple_bugs=False, derandomize=True,
    )  # fmt: skip
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Life, settings=found)


def a_track(verb="aggregate", **known):
    return Track(verb, SETTINGS, random.Random(0), "session", 1000.0, **known)


def an_exchange(track, at, reply=None, error=None):
    call = track.call
    return Exchange(
        call.endpoint.name,
        "session",
        None,
        call.attempt,
        at,
        at + 0.1,
        True,
        0,
        0.1,
        error=error,
        reply=reply,
    )


def a_member(job="JOB-0", status="CONNECTED", *, running=False, at=100.0):
    return Member(
        "MBR-1",
        most_recent_job_guid=job,
        connection_status=status,
        is_being_aggregated=running,
        aggregated_at=moment(at),
    )


def followed(*looks):
    """The ending of one member that showed these records: the first look, the kick-off's reply, and so on."""
    track = a_track()
    now = 1000.0
    for record in looks:
        now = max(now, track.call.due)
        if track.call.endpoint.starts_jobs:
            track.intent(now)
        track.received(an_exchange(track, now, Reply([record])))
        now += 0.1
    (ending,) = track.ending(None, {}).members
    return ending, track


BEFORE = a_member()


def test_an_error_status_seen_once_and_then_a_success_is_a_success_at_the_second_look():
    """The error was of before the bank took the job up: the interval must not end with it."""
    failed, ended = a_member("JOB-1", "DENIED"), a_member("JOB-1")
    ending, _ = followed(BEFORE, a_member("JOB-1", running=True), failed, ended)
    assert ending.outcome == "finished"
    assert ending.looks == 3
    assert ending.seconds_high > 6


def test_a_job_that_the_kick_off_does_not_show_yet_ends_when_it_is_seen_to_end():
    ending, _ = followed(BEFORE, BEFORE, a_member("JOB-1"))
    assert ending.outcome == "finished"
    assert ending.seconds_high > 3


def test_two_error_looks_that_agree_are_a_failure_as_of_the_first():
    failed = a_member("JOB-1", "FAILED")
    ending, _ = followed(BEFORE, a_member("JOB-1", running=True), failed, failed)
    assert ending.outcome == "failed"
    assert ending.looks == 3
    assert ending.seconds_high < 12.2


def test_an_old_error_seen_before_the_job_is_taken_up_does_not_agree_with_the_new_one():
    """Its guid is new and its start is the old one: the interval must end with the first look at the new failure."""
    before = a_member("JOB-0", "FAILED", at=100.0)
    waiting, failed = a_member("JOB-1", "FAILED", at=100.0), a_member("JOB-1", "FAILED", at=1004.0)
    ending, _ = followed(before, waiting, waiting, failed, failed)
    assert (ending.outcome, ending.looks) == ("failed", 4)
    assert ending.seconds_high > 6


def test_an_error_of_a_job_whose_start_is_never_told_is_taken_after_two_looks():
    failed = a_member("JOB-1", "FAILED", at=100.0)
    ending, _ = followed(a_member("JOB-0", "FAILED", at=100.0), failed, failed, failed)
    assert (ending.outcome, ending.looks) == ("failed", 3)


def test_a_user_without_members_has_nothing_to_clear_up():
    track = a_track()
    track.received(an_exchange(track, 1000.0, Reply([])))
    track.intent(1001.0)
    track.received(an_exchange(track, 1001.0, error=errors.ConnectionLost("x")))
    track.received(an_exchange(track, 1002.0, Reply([])))
    assert track.call is None
    assert track.ending(None, {}).state == "answered"


@pytest.mark.parametrize(
    ("before", "since"), [([BEFORE], []), ([], [BEFORE])], ids=["not_any_more", "not_before"]
)
def test_a_start_is_not_sent_again_where_a_member_is_not_listed_before_and_since(before, since):
    """That nothing moved is shown by who is there on both sides: an empty list shows nothing."""
    track = a_track()
    track.received(an_exchange(track, 1000.0, Reply(before)))
    track.intent(1001.0)
    track.received(an_exchange(track, 1001.0, error=errors.ConnectionLost("x")))
    for at in (1002.0, 1008.0):
        track.received(an_exchange(track, at, Reply(since)))
    assert track.call is None
    assert track.ending(None, {}).state == "unknown"


def test_an_interval_counts_from_the_sending_and_not_from_the_intent():
    """The gate may hold a start back for a minute after its intent is written."""
    track = a_track()
    track.received(an_exchange(track, 1000.0, Reply([BEFORE])))
    track.intent(1001.0)
    track.received(an_exchange(track, 1061.0, Reply([a_member("JOB-1", running=True)])))
    due = track.call.due
    track.received(an_exchange(track, due, Reply([a_member("JOB-1")])))
    (ending,) = track.ending(None, {}).members
    assert ending.seconds_high == pytest.approx(due + 0.1 - 1061.0)


def test_a_user_lost_before_any_look_could_tell_has_members_without_outcome():
    track = a_track()
    track.received(an_exchange(track, 1000.0, Reply([BEFORE])))
    track.intent(1001.0)
    track.received(an_exchange(track, 1001.0, error=errors.Forbidden("x", status_code=403)))
    ending = track.ending(None, {})
    assert (ending.state, ending.members[0].outcome, ending.members[0].seconds_low) == ("lost", None, None)


def test_a_resumed_run_shows_no_change_from_a_status_that_it_never_saw():
    track = a_track()
    track.received(an_exchange(track, 1000.0, Reply([BEFORE])))
    again = a_track(intent=track.intent(1001.0))
    exchange = an_exchange(again, 1002.0, Reply([a_member("JOB-1", running=True)]))
    again.received(exchange)
    assert exchange.changes == []
    exchange = an_exchange(again, again.call.due, Reply([a_member("JOB-1")]))
    again.received(exchange)
    assert [(each.from_status, each.to_status) for each in exchange.changes] == [("CONNECTED", "CONNECTED")]


def test_a_job_that_cannot_be_asked_for_leaves_the_user_answered():
    track = a_track("observe", renews=True)
    track.received(an_exchange(track, 1000.0, Reply([BEFORE])))
    track.received(an_exchange(track, 1001.0, error=errors.SessionExpired("x", status_code=401)))
    assert track.must_renew
    track.no_token(errors.Forbidden("x", status_code=403), 1002.0)
    assert track.call is None
    assert track.ending(None, {}).state == "answered"


def test_a_server_that_says_wait_zero_seconds_is_not_asked_for_ever():
    track = a_track("observe")
    attempts = 0
    while track.call is not None:
        attempts += 1
        error = errors.RateLimited("x", status_code=429, retry_after_seconds=0.0)
        track.received(an_exchange(track, track.call.due, error=error))
    assert attempts == SETTINGS.attempts


def test_the_gaps_between_looks_grow_within_their_bounds():
    schedule, rng = LookSchedule(3.0, 30.0), random.Random(1)
    first = [schedule.gap(None, rng) for _ in range(500)]
    assert 3 <= min(first) < 3.2
    assert 11.8 < max(first) < 12
    gap = first[0]
    for _ in range(50):
        before, gap = gap, schedule.gap(gap, rng)
        assert 3 <= gap <= 30
        assert gap == 30 or before * 2 * 0.8 - 1e-9 <= gap <= before * 2 * 1.2


def test_a_start_is_sent_again_only_after_two_reads_five_seconds_apart_and_never_a_third_time():
    track = a_track()
    now, asked = 1000.0, []
    while track.call is not None:
        call = track.call
        now = max(now, call.due)
        asked.append((call.endpoint.name, round(now, 1)))
        if call.endpoint.starts_jobs:
            track.intent(now)
            track.received(an_exchange(track, now, error=errors.ConnectionLost("x")))
        else:
            track.received(an_exchange(track, now, Reply([BEFORE])))
        now += 0.1
    assert [name for name, _ in asked] == [
        "list_members",
        *["aggregate_all", "list_members", "list_members"] * 2,
    ]
    for first in (2, 5):
        assert asked[first + 1][1] - asked[first][1] >= 5
    assert track.ending(None, {}).state == "unknown"
