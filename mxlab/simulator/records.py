"""Members and jobs of a world as the JSON that the API would send.

Field names, their order and their formats are those of the endpoint's page, of "members overview" and of "read
job". Whole seconds only: no sample has finer ones.
"""

import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

from mxlab.nexus.status import STATUSES
from mxlab.simulator.defects import DEFECTS, Record, stamp
from mxlab.simulator.institutions import HOSTILE_NAMES
from mxlab.simulator.world import NEEDS_CREDENTIALS, Job, Member, World

_PLAIN_RENAMES = ("My checking", "Joint account", "Savings for the house", "Old bank", "Card")
_METADATA = '\\"credentials_last_refreshed_at\\": \\"2025-10-15\\"'
_BOOL = {True: "true", False: "false"}


class JobStatus(NamedTuple):
    """The older state machine of jobs: MX's int and name."""

    id: int
    name: str


#: Outcome of a job → job status. 0 to 2 and 6 are documented, 7 to 9 a guess from the order of names in a
#: third party's client.
JOB_STATUSES = {
    "CONNECTED": JobStatus(6, "COMPLETED"),
    "CHALLENGED": JobStatus(2, "CHALLENGED"),
    "PREVENTED": JobStatus(7, "PREVENTED"),
    "DENIED": JobStatus(8, "DENIED"),
}
_INITIATED, _REQUESTED, _HALTED = JobStatus(0, "INITIATED"), JobStatus(1, "REQUESTED"), JobStatus(9, "HALTED")

#: What the API says of a status to the end user; {} is the institution's name. Never to be parsed.
_MESSAGES = {
    "CONNECTED": "Connected to {}.", "CREATED": "Connecting to {}...", "UPDATED": "Connecting to {}...",
    "RESUMED": "Connecting to {}...", "RECONNECTED": "Reconnecting to {}...",
    "CHALLENGED": "{} asks for more before we can go on.", "DENIED": "{} did not accept these credentials.",
    "PENDING": None, None: None,
}  # fmt: skip


def _time(at: float | None) -> str:
    return "null" if at is None else f'"{datetime.fromtimestamp(int(at), UTC).isoformat()[:19]}.000Z"'


class Records:
    """Renders the members and jobs of a world, each member once for each of its states.

    Parameters
    ----------
    world
        The world.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._undocumented = world.parameters.undocumented_fields

    def member(self, member: Member, now: float) -> bytes:
        """A member's record as JSON; with a planted defect, one or two records with a comma between."""
        if member.rendered is None or member.defect is not None:
            text = self._render(member)
            if member.defect is not None:
                wrong = DEFECTS[member.defect](json.loads(text), now)
                text = ",".join(json.dumps(record, ensure_ascii=False) for record in wrong)
            member.rendered = text.encode()
        return member.rendered

    def members(self, members: list[Member], now: float) -> bytes:
        """The records of several members with commas between."""
        return b",".join([self.member(member, now) for member in members])

    def reply(self, user: int, now: float) -> bytes:
        """The body of a list of all members of the user at an index, as of ``now``: a page of history without HTTP."""
        return b'{"members":[%s]}' % self.members(self._world.members(user, now), now)

    def _render(self, member: Member) -> str:
        """One f-string in the order of the endpoint's page: thousands of these are made a second."""
        one = member.wrapping or self._wrap(member)
        job = member.jobs[-1] if member.jobs else None
        status = "null" if member.status is None else f'"{member.status}"'
        job_guid = "null" if job is None else f'"{self._world.job_guid(job)}"'
        return (
            f'{{"aggregated_at":{_time(member.aggregated_at)}{one[0]}{status}{one[1]}{_BOOL[member.running]}'
            f"{one[2]}{job_guid}{one[3]}{_time(member.succeeded_at)}{one[4]}{self._observed(member)}}}"
        )

    def _wrap(self, member: Member) -> tuple[str, str, str, str, str]:
        """The parts of a member's record that never change, between those that do."""
        bank = member.institution
        external = f'"ext-{member.user}-{member.slot}"' if member.trait(11) < 0.05 else "null"
        metadata = json.dumps(_METADATA) if member.trait(12) < 0.03 else "null"
        managed = _BOOL[member.trait(13) < 0.97]
        cases = '["PFM"]' if member.trait(14) < 0.9 else '["MONEY_MOVEMENT","PFM"]'
        cases = cases if member.pfm else '["MONEY_MOVEMENT"]'
        user_guid = self._world.guids.make("USR", member.user)
        member.wrapping = (
            f',"background_aggregation_is_disabled":{_BOOL[member.background_disabled]},"connection_status":',
            (
                f',"external_guid":{external},"guid":"{self._world.member_guid(member)}"'
                f',"institution_code":"{bank.code}","institution_guid":"{bank.guid}","is_being_aggregated":'
            ),
            (
                f',"is_managed_by_user":{managed},"is_oauth":{_BOOL[bank.oauth]},"is_user_created":{managed}'
                ',"most_recent_job_guid":'
            ),
            (
                f',"metadata":{metadata},"name":{json.dumps(self._name(member), ensure_ascii=False)}'
                ',"successfully_aggregated_at":'
            ),
            f',"use_cases":{cases},"user_guid":"{user_guid}"',
        )
        return member.wrapping

    def _name(self, member: Member) -> str:
        p, place = self._world.parameters, member.trait(15)
        if place < p.hostile_share:
            return HOSTILE_NAMES[int(member.trait(16) * len(HOSTILE_NAMES))]
        if place < p.hostile_share + p.renamed_share:
            return _PLAIN_RENAMES[int(member.trait(16) * len(_PLAIN_RENAMES))]
        return member.institution.name

    def _observed(self, member: Member) -> str:
        """Fields seen in real replies, which the endpoint's page does not have."""
        if not self._undocumented:
            return ""
        status, name = member.status, member.institution.name
        known = STATUSES.get(status) if status else None
        message = _MESSAGES.get(status, "There is a problem with the connection to {}.")
        fields: Record = {
            "connection_status_id": known.id if known else None,
            "connection_status_message": message.format(name) if message else None,
            "is_manual": status is None,
            "needs_updated_credentials": status in NEEDS_CREDENTIALS,
            "revision": member.revision,
        }
        return "," + json.dumps(fields)[1:-1]

    def job(self, job: Job) -> dict[str, Any]:
        """The job object of "read job"."""
        member, guids = job.member, self._world.guids
        ended = job.finished_at is not None
        if ended:
            status = JOB_STATUSES.get(job.outcome or "", _HALTED)
        else:
            status = _INITIATED if job.started_at is None else _REQUESTED
        failed = ended and status.name not in {"COMPLETED", "CHALLENGED"}
        return {
            "guid": self._world.job_guid(job),
            "member_guid": self._world.member_guid(member),
            "institution_guid": member.institution.guid,
            "user_guid": guids.make("USR", member.user),
            "status": status.id,
            "status_name": status.name,
            "is_authenticated": status.name == "COMPLETED",
            "error_message": f"The job ended {job.outcome}." if failed else None,
            "error_message_code": None,
            "created_at": stamp(job.requested_at),
            "started_at": stamp(job.started_at),
            "finished_at": stamp(job.finished_at) if status.name != "CHALLENGED" else None,
            "updated_at": stamp(job.finished_at or job.started_at or job.requested_at),
        }
