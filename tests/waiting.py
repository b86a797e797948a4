"""Waiting in tests: for what must come to pass, and for what must not."""

import time


def until(condition, seconds=30.0):
    """Return as soon as something is so; fail where it does not come to pass."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)  # between two looks at what another thread or process does


def stay(condition, seconds=0.4):
    """Hold that something is so for some time: what must not happen has no moment to wait for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition()
        time.sleep(0.01)  # between two looks
