"""All figures of a simulated world in one frozen value.

None of the mixes, rates and durations comes from MX: it publishes neither base rates of connection statuses nor a
distribution of aggregation times. They are invented, and labelled so wherever they show.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from mxlab.errors import ConfigError
from mxlab.nexus.status import STATUSES

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0

#: What a world can be told to plant, by name, with what it does.
SCENARIOS: Mapping[str, str] = {
    "calm": "nothing is planted",
    "slow_bank": "one institution among the larger ones aggregates several times slower than the rest",
    "outage": "every institution object of one bank fails from t1 to t2",
    "outage_credentials": "the credential institution of one bank fails from t1 to t2, its OAuth sibling does not",
    "outage_oauth": "the OAuth institution of one bank fails from t1 to t2, its credential sibling does not",
    "password_reset": "one bank voids its customers' passwords: jobs end DENIED until the user updates them",
    "migration": "MX moves one bank to a new data source: its members become RECONNECTED",
    "onboarding_wave": "many users add a member of a poor bank: the mix changes, no rate does",
    "new_status": "some members carry a status that MX has not invented",
    "defects": "some member records are wrong or odd, each in one known way",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """The part of an error message that names the known words and the one most like ``word``."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? Known: {', '.join(known)}" if close else f"known: {', '.join(known)}"


def _invented_mix() -> Mapping[str | None, float]:
    return {
        "CONNECTED": 0.745, "EXPIRED": 0.038, "CHALLENGED": 0.036, "FAILED": 0.034, "DENIED": 0.024,
        "DISCONNECTED": 0.014, "DEGRADED": 0.012, "CREATED": 0.010, None: 0.010, "IMPEDED": 0.010,
        "PREVENTED": 0.008, "LOCKED": 0.008, "CLOSED": 0.008, "IMPAIRED": 0.007, "RECONNECTED": 0.006,
        "DISCONTINUED": 0.005, "REJECTED": 0.005, "UPDATED": 0.004, "DISABLED": 0.004, "IMPORTED": 0.004,
        "DELAYED": 0.004, "PENDING": 0.003, "RESUMED": 0.001,
    }  # fmt: skip


def _invented_troubles() -> Mapping[str, float]:
    return {"CHALLENGED": 0.018, "DENIED": 0.010, "IMPEDED": 0.002, "LOCKED": 0.002, "IMPAIRED": 0.001}


def _invented_persistence() -> Mapping[str, float]:
    return {
        "CHALLENGED": 0.60, "EXPIRED": 0.45, "REJECTED": 0.50, "DENIED": 0.85, "LOCKED": 0.90, "IMPEDED": 0.85,
        "RECONNECTED": 0.40, "FAILED": 0.35, "DEGRADED": 0.55, "DISCONNECTED": 0.80,
    }  # fmt: skip


def _invented_repairs() -> Mapping[str, float]:
    return {
        "DENIED": 3 * DAY, "PREVENTED": 9 * DAY, "REJECTED": 4 * DAY, "EXPIRED": 3 * DAY, "LOCKED": 5 * DAY,
        "IMPEDED": 6 * DAY, "IMPAIRED": 9 * DAY, "RECONNECTED": 7 * DAY, "FAILED": 1 * DAY, "DEGRADED": 2 * DAY,
        "DISCONNECTED": 8 * DAY,
    }  # fmt: skip


def _invented_members_per_user() -> Mapping[int, float]:
    return {0: 0.005, 1: 0.20, 2: 0.25, 3: 0.22, 4: 0.15, 5: 0.09, 6: 0.05, 8: 0.03, 30: 0.001}


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Figures, scenarios and switches of a world.

    Shares and probabilities lie in 0…1, durations are simulated seconds, times are seconds after the epoch. Every
    mix, rate and duration is invented unless a source is given (sections of MX's own pages).

    Parameters
    ----------
    users
        How many users there are.
    seed
        What everything is derived from: the same seed gives the same world.
    epoch
        Unix time at which the starting population is as it is.
    scenarios
        Names of `SCENARIOS`; several can be planted in one world.
    members_per_user
        Number of members → weight. The rare 30 needs a second page at MX's default of 25 records.
    institutions
        How many institution objects there are, MX Bank among them.
    zipf
        Exponent of the sizes of banks.
    oauth_share
        Share of a bank's members that are on its OAuth institution, where it has both.
    status_mix
        Starting status (None: manual) → weight. About where the rates below keep it; what nothing feeds (CREATED,
        PENDING, RECONNECTED, ...) drains within days.
    duration_median_seconds, duration_sigma
        The log-normal time from pick-up to end of a job. MX's samples show 4, 13 and 25 s and nothing official.
    duration_spread
        Sigma of the institutions' own medians about the fleet's.
    failure_share, failure_spread
        Median share of jobs that fail at the institution or at MX (FAILED), and sigma of its logarithm over
        institutions.
    trouble_shares
        Status that needs the user → share of the jobs of a healthy credential member that end in it; OAuth members
        have a third of each and no challenges.
    persistence
        Status → share of jobs that end in the same trouble again while nobody has repaired it.
    repair_seconds
        Status → mean time until the user comes back and repairs it.
    stuck_share, stuck_seconds
        Share of jobs that do not end by themselves, and when MX gives up on them.
    late_pickup_share, late_pickup_seconds
        For members in an error status: share of jobs that are picked up late, and the longest lag (fact 15).
    delayed_after_seconds
        When the job of a member not yet connected shows DELAYED.
    challenge_seconds, answer_share, answer_seconds
        How long a challenge may wait (each institution's own figure in truth), the share that users answer in time,
        and their mean time to do so.
    throttle_seconds
        No new standard aggregation this soon after a success: three hours ("background and foreground
        aggregation"; members overview). MX Bank is exempt (test platform).
    background_seconds, background_rest_seconds
        Background aggregation about every 24 hours, never within 20 hours of the last aggregation (same page).
    background_disabled_share
        Share of members whose background aggregation is off.
    degraded_failures, degraded_seconds
        Failures in a row, and within what time, that make DEGRADED: three (Verification Guide) in a guessed time.
    disconnected_seconds
        A failing member without a success for this long is DISCONNECTED: two weeks (Verification Guide).
    pending_seconds
        An unfinished OAuth member is deleted after an hour (Verification Guide).
    not_pfm_share
        Share of members whose use cases lack PFM.
    renamed_share, hostile_share
        Share of members that their user has renamed, and that bear a name which breaks careless programs.
    defect_share
        With the scenario ``defects``: share of members whose record has a defect.
    defect_kinds
        Which kinds of `mxlab.simulator.records.DEFECTS`; empty for all.
    slow_factor
        With ``slow_bank``: how many times slower.
    scenario_from_seconds, scenario_until_seconds
        When the outage, wave, reset or migration begins, and when an outage or a wave ends.
    outage_share
        Share of jobs that fail in an outage.
    wave_share, poor_failure_share
        With ``onboarding_wave``: share of users that add a member of the poor bank, and the share of its jobs that
        fail, before the wave as after it.
    new_status, new_status_share
        With ``new_status``: the word and the share of members that carry it.
    forbidden
        Guess. ``whole_call``: one member without PFM makes aggregate-all a 403; ``only_if_all``: only if all lack
        it, others are started.
    throttled_body
        Guess. ``listed``: a member that is not started comes back unchanged in the list; ``omitted``: it is left
        out of the reply.
    expired_status_code
        Guess: HTTP status beside code 4011.
    foreign_status_code
        Guess: HTTP status for a guid of another user or of none.
    spent_token_status_code
        Guess: HTTP status for an API token that was used or is over ten minutes old.
    session_status_code
        Guess: HTTP status of a session made (200 or 201).
    pages
        Guess: whether ``GET /members`` pages at all; False gives all members at once.
    pagination_block
        Guess: ``none``, ``pagination_data`` (the 2021 institution search) or ``pagination`` (Platform API).
    list_root
        ``members`` as real clients read it, or ``member`` as in the page's sample.
    error_envelope
        Guess: ``error`` for ``{"error": {"code", "message"}}``, ``flat`` for ``{"code", "message"}``.
    undocumented_fields
        Whether member records have the fields seen in real replies but not documented for the endpoint (status id
        and message, revision, ...).
    fresh_guid_404_seconds
        Guess: how long a new job's guid answers 404 (half a second in the Platform API's error page).
    session_seconds, api_token_seconds
        30 minutes, renewed by each call (endpoint's page); 10 minutes (Verification Guide).

    Raises
    ------
    ConfigError
        For an unknown scenario, status or switch, and for a figure outside its range.
    """

    users: int = 2_000
    seed: int = 0
    epoch: float = 1_767_225_600.0
    scenarios: tuple[str, ...] = ()

    members_per_user: Mapping[int, float] = field(default_factory=_invented_members_per_user)
    institutions: int = 120
    zipf: float = 1.0
    oauth_share: float = 0.55
    status_mix: Mapping[str | None, float] = field(default_factory=_invented_mix)

    duration_median_seconds: float = 15.0
    duration_sigma: float = 0.7
    duration_spread: float = 0.15
    failure_share: float = 0.02
    failure_spread: float = 0.4
    trouble_shares: Mapping[str, float] = field(default_factory=_invented_troubles)
    persistence: Mapping[str, float] = field(default_factory=_invented_persistence)
    repair_seconds: Mapping[str, float] = field(default_factory=_invented_repairs)
    stuck_share: float = 0.002
    stuck_seconds: float = 12 * HOUR
    late_pickup_share: float = 0.3
    late_pickup_seconds: float = 5.0
    delayed_after_seconds: float = 60.0
    challenge_seconds: float = 3 * DAY
    answer_share: float = 0.4
    answer_seconds: float = 4 * HOUR

    throttle_seconds: float = 3 * HOUR
    background_seconds: float = 24 * HOUR
    background_rest_seconds: float = 20 * HOUR
    background_disabled_share: float = 0.03
    degraded_failures: int = 3
    degraded_seconds: float = 7 * DAY
    disconnected_seconds: float = 14 * DAY
    pending_seconds: float = 1 * HOUR

    not_pfm_share: float = 0.001
    renamed_share: float = 0.02
    hostile_share: float = 0.002
    defect_share: float = 0.02
    defect_kinds: tuple[str, ...] = ()

    slow_factor: float = 3.5
    scenario_from_seconds: float = 2 * DAY
    scenario_until_seconds: float = 2 * DAY + 6 * HOUR
    outage_share: float = 0.9
    wave_share: float = 0.15
    poor_failure_share: float = 0.35
    new_status: str = "AWAITING_CONSENT"
    new_status_share: float = 0.01

    forbidden: Literal["whole_call", "only_if_all"] = "whole_call"
    throttled_body: Literal["listed", "omitted"] = "listed"
    expired_status_code: int = 401
    foreign_status_code: int = 404
    spent_token_status_code: int = 401
    session_status_code: int = 200
    pages: bool = True
    pagination_block: Literal["none", "pagination_data", "pagination"] = "none"
    list_root: Literal["members", "member"] = "members"
    error_envelope: Literal["error", "flat"] = "error"
    undocumented_fields: bool = False
    fresh_guid_404_seconds: float = 0.5
    session_seconds: float = 30 * MINUTE
    api_token_seconds: float = 10 * MINUTE

    def __post_init__(self) -> None:
        for scenario in self.scenarios:
            if scenario not in SCENARIOS:
                raise ConfigError(f"unknown scenario {scenario!r}: {nearest(scenario, SCENARIOS)}")
        for mapping in (self.status_mix, self.trouble_shares, self.persistence, self.repair_seconds):
            for status in mapping:
                if status is not None and status not in STATUSES:
                    raise ConfigError(
                        f"unknown connection status {status!r}: {nearest(str(status), STATUSES)}"
                    )
        for declared in fields(self):
            _check_figure(declared.name, getattr(self, declared.name), declared.type)
        if self.scenario_until_seconds < self.scenario_from_seconds:
            raise ConfigError("scenario_until_seconds is before scenario_from_seconds")
        if self.institutions < 2:
            raise ConfigError("institutions must be 2 or more: MX Bank and one other")
        if max(self.members_per_user, default=0) > 250:
            raise ConfigError("members_per_user goes up to 250")


def _check_figure(name: str, value: Any, kind: Any) -> None:
    """Refuse a figure of the wrong type or outside its range, with what it must be in the message."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{name} is {value!r}: must be one of {', '.join(map(repr, get_args(kind)))}")
        return
    plain: Any = get_origin(kind) or kind
    wanted: Any = (int, float) if plain is float else plain
    if not isinstance(value, wanted) or (isinstance(value, bool) and plain is not bool):
        raise ConfigError(f"{name} is {value!r}: must be of type {plain.__name__}")
    if plain in (bool, str, tuple):
        return
    figures: Iterable[object] = value.values() if isinstance(value, Mapping) else (value,)
    for figure in figures:
        if not isinstance(figure, int | float) or (name != "seed" and not figure >= 0):
            raise ConfigError(f"{name} is {figure!r}: must be a number, and not negative")
        if figure > 1 and (name.endswith(("_share", "_shares")) or name == "persistence"):
            raise ConfigError(f"{name} is {figure!r}: a share is at most 1")
    if name in {"status_mix", "members_per_user"} and not sum(value.values()) > 0:
        raise ConfigError(f"{name} has no weight above 0")
