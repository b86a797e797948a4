"""The 22 connection statuses of MX and who must act on each.

Names, ids and meanings: MX's Nexus member reference (docs.mx.com/api-reference/nexus/reference, "members
overview") and Verification Guide. Eight statuses are called actionable by the end user by MX itself: they fire
its connection-status webhook (docs.mx.com/resources/webhooks/connection-status). Who must act on the other
fourteen is mxlab's reading of MX's definitions, marked by ``by_mx=False``.
"""

from typing import Literal, NamedTuple, get_args

WhoMustAct = Literal["nobody", "wait", "user", "mx", "partner", "over", "manual", "unknown"]

#: Who must act, in the order of charts and tables: from "all is well" to "we cannot tell".
WHO_MUST_ACT: tuple[WhoMustAct, ...] = get_args(WhoMustAct)


class Status(NamedTuple):
    """One connection status.

    Attributes
    ----------
    name, id
        MX's word and number.
    who_must_act
        Who can move the member on; ``wait`` where it moves by itself.
    by_mx
        True where MX itself names the end user as the one to act.
    background
        True where MX's background aggregation runs (about every 24 hours).
    meaning
        What it says about the connection, in our words.
    """

    name: str
    id: int
    who_must_act: WhoMustAct
    by_mx: bool
    background: bool
    meaning: str


_TABLE = (
    Status("CONNECTED", 6, "nobody", False, True, "authenticated; data is fresh or being gathered"),
    Status("CREATED", 0, "wait", False, True, "new, never aggregated"),
    Status("UPDATED", 15, "wait", False, True, "credentials were updated, not yet connected"),
    Status("RESUMED", 18, "wait", False, False, "an answer to a challenge came in, outcome open"),
    Status("DELAYED", 13, "wait", False, False, "slower than expected, not yet connected"),
    Status(
        "CHALLENGED", 3, "user", True, False, "waiting for the user's answer to a challenge; not a failure"
    ),
    Status("DENIED", 2, "user", True, False, "the bank does not accept the credentials"),
    Status("PREVENTED", 1, "user", True, False, "three logins failed; blocked until the credentials change"),
    Status("REJECTED", 4, "user", True, False, "the answer to a challenge was wrong"),
    Status("EXPIRED", 19, "user", True, False, "the answer to a challenge came too late"),
    Status("LOCKED", 5, "user", True, False, "the bank has locked the account"),
    Status("IMPEDED", 7, "user", True, False, "the bank's own site wants the user's attention"),
    Status("IMPAIRED", 20, "user", True, False, "credentials are missing or incomplete"),
    Status("IMPORTED", 17, "user", False, False, "moved in without credentials; never tried"),
    Status(
        "RECONNECTED",
        8,
        "user",
        False,
        False,
        "moved to a new data source; must be run with the user present",
    ),
    Status("PENDING", 21, "user", False, False, "OAuth not finished; MX deletes the member after an hour"),
    Status("DEGRADED", 9, "mx", False, False, "failed three times or more in a short time"),
    Status("FAILED", 14, "mx", False, False, "failed without connecting"),
    Status("DISCONNECTED", 10, "mx", False, False, "failing, and no success for two weeks"),
    Status("DISABLED", 16, "partner", False, False, "aggregation is paused although still connected"),
    Status("DISCONTINUED", 11, "over", False, False, "connections to this bank are no longer offered"),
    Status("CLOSED", 12, "over", False, False, "closed by the user, MX or a partner"),
)

#: The 22 statuses by name, in the order of charts: by who must act, then from mild to grave.
STATUSES: dict[str, Status] = {status.name: status for status in _TABLE}

#: Statuses that say a job is under way even before ``is_being_aggregated`` does (MX Connect widget, pollers).
PROCESSING = frozenset({"CREATED", "UPDATED", "RESUMED", "DELAYED"})

#: Statuses whose members MX's background aggregation refreshes; the denominator of freshness.
BACKGROUND = frozenset(status.name for status in _TABLE if status.background)


def who_must_act(status: str | None) -> WhoMustAct:
    """Who can move a member with this connection status on.

    Parameters
    ----------
    status
        MX's word as it came; None for a manual member.

    Returns
    -------
    str
        One of `WHO_MUST_ACT`; ``unknown`` for a word that is not among the 22.

    Examples
    --------
    >>> who_must_act("CHALLENGED"), who_must_act(None), who_must_act("ZOMBIE")
    ('user', 'manual', 'unknown')
    """
    if status is None:
        return "manual"
    known = STATUSES.get(status)
    return known.who_must_act if known else "unknown"
