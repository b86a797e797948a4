"""What can go wrong, drawn.

::

    MxlabError
    ├── ConfigError(ValueError)     a setting or token source is missing or malformed
    ├── ConsentRequired             aggregate against a real host, not allowed
    ├── NexusError                  a call brought no members back
    │   ├── ConnectFailed           never reached the server
    │   ├── ReplyTimeout            sent, no reply in time
    │   ├── ConnectionLost          sent, the connection ended
    │   ├── BadReply                a reply we cannot read
    │   └── Refused                 the server said no
    │       ├── SessionExpired      401, or code 4011
    │       ├── Forbidden           403: a member's use case is not PFM, or the caller's address
    │       ├── Redirected          3xx: never followed
    │       ├── RateLimited         429
    │       ├── Unavailable         503 with Retry-After
    │       └── ServerFault         any other 5xx
    ├── SchemaError(ValueError)     a frame lacks columns that a function needs
    ├── StoreError                  a store is absent, damaged, locked, or of another version
    └── CollectionFailed            users were lost and the caller asked to hear

A `NexusError` is put *into* an `Exchange`, so one dead session never fells the rest. Its two attributes are
the retry policy: `may_have_acted` (may the server have done what was asked?) and `transient` (may the same
call succeed later?). No error carries a token, and all of them pickle.
"""


class MxlabError(Exception):
    """Base of everything that mxlab raises on purpose."""


class ConfigError(MxlabError, ValueError):
    """A setting or a token source is missing or malformed. Nothing was sent."""


class ConsentRequired(MxlabError):
    """`aggregate` starts work at banks; against a real host it must be allowed in the call."""


class NexusError(MxlabError):
    """A call brought no members back.

    Parameters
    ----------
    message
        What happened and what to do, without any secret.
    session
        The pseudonym of the user's session, where it is known.
    status_code, code
        The HTTP status and the code in the error body, where there were any.
    retry_after_seconds
        How long the server asked to wait, where it did.
    """

    #: May the server have acted on the request?
    may_have_acted: bool = True
    #: May the same request succeed later?
    transient: bool = False
    #: What an analyst can do about it.
    advice: str = "Look at the requests frame for this session."

    def __init__(
        self,
        message: str = "",
        *,
        session: str | None = None,
        status_code: int | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.session = session
        self.status_code = status_code
        self.code = code
        self.retry_after_seconds = retry_after_seconds


class ConnectFailed(NexusError):
    """The request never reached the server."""

    may_have_acted = False
    transient = True
    advice = "Check the network and the base_url."


class ReplyTimeout(NexusError):
    """The request was sent and no reply came in time."""

    transient = True
    advice = "Raise reply_timeout_seconds if replies are slow."


class ConnectionLost(NexusError):
    """The request was sent and the connection ended before the reply did."""

    transient = True
    advice = "MX or something on the way hung up: the requests frame says when and how often."


class BadReply(NexusError):
    """A reply that cannot be read; its body is in the rejects frame."""

    advice = "Look at the body in the rejects frame: a login page or a proxy may have answered instead of MX."

    def __init__(self, message: str = "", *, reason: str = "unreadable", **known: object) -> None:
        super().__init__(message, **known)  # type: ignore[arg-type]
        self.reason = reason


class Refused(NexusError):
    """The server said no. A 409 to a call that starts jobs may have acted; the others have not."""

    may_have_acted = False
    advice = "The status code and the error code of the requests frame say why MX refused."

    def __init__(self, message: str = "", **known: object) -> None:
        super().__init__(message, **known)  # type: ignore[arg-type]
        if self.status_code == 409:
            self.may_have_acted = True


class SessionExpired(Refused):
    """401, or error code 4011: the session's 30 minutes are over."""

    advice = "Make a new session token for this user, or use a source that mints them."


class Forbidden(Refused):
    """403: a member's use case is not PFM, or the caller's address is not on MX's list."""

    advice = "Check the member's use_cases (PFM is needed) and that MX has your address on its list."

    def __init__(self, message: str = "", *, by_cdn: bool = False, **known: object) -> None:
        super().__init__(message, **known)
        self.by_cdn = by_cdn
        if by_cdn:
            self.advice = (
                "A web page came instead of MX's JSON, so a proxy or a CDN refused before MX saw the call: some refuse a GET "
                "with a body, as aggregate is, some your address. Ask MX, or whoever runs the proxy, to let it pass."
            )


class Redirected(Refused):
    """A 3xx reply. Never followed: the session token would travel to the other host."""

    advice = "Give the base_url that MX documents; redirects are never followed, for the token's sake."


class RateLimited(Refused):
    """429: too many requests."""

    transient = True
    advice = "Lower requests_per_second or concurrency."


class Unavailable(Refused):
    """503 with Retry-After. That the server did not act is our guess: MX does not say."""

    transient = True
    advice = "MX was unavailable: wait a while."


class ServerFault(Refused):
    """Any other 5xx: the server failed, perhaps after it acted."""

    may_have_acted = True
    transient = True
    advice = "MX failed to answer: wait a while."


class SchemaError(MxlabError, ValueError):
    """A frame lacks columns that a function needs."""


class StoreError(MxlabError):
    """A store is absent, damaged, locked, or of another version."""


class CollectionFailed(MxlabError, ExceptionGroup):
    """Users were lost and the caller asked to hear of it; holds one `NexusError` a user."""
