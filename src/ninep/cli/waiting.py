"""A deadline for something that may block for ever, such as a read of a stream."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ninep.proto import errors as E


class _Late(Exception):
    """The time is up.  No FileError, so that the client flushes what it waits for."""


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Raise Etimedout when the block takes longer.  Uses SIGALRM, so one at a time, on the main thread."""
    if seconds is None:
        yield
        return

    def late(signum: int, frame: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Late:
        raise E.Etimedout(f"after {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
