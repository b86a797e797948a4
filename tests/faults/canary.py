"""Where a token could show: the most talkative form of whatever went wrong."""

import traceback

CANARY = "CANARY"


def everything_of(failure):
    """The error as the most talkative printers show it: with the locals of every frame, and of every context."""
    told, seen = [], failure
    while seen is not None:
        told += traceback.TracebackException.from_exception(seen, capture_locals=True).format()
        told += [repr(seen), repr(seen.args), repr(vars(seen))]
        seen = seen.__context__
    return "".join(told)
