"""Clock and randomness, so that a whole server can run under simulation with a seed.

Everything below the edges asks an Env, never the time or os modules.  Simulated twins live in ninep.testing.
"""

from __future__ import annotations

import os
import time


class Env:
    """The real world.  Subclass it to simulate one: a test that fails prints its seed and is replayed."""

    def __init__(self) -> None:
        if type(self) is Env:
            # Asked four times for each request: the builtin itself is a quarter of a microsecond less each time.
            self.now_ns = time.monotonic_ns  # type: ignore[method-assign]  # what the method gives

    def now_ns(self) -> int:
        """Monotonic nanoseconds: for durations and deadlines."""
        return time.monotonic_ns()

    def time_ns(self) -> int:
        """Nanoseconds since the epoch: for file times only."""
        return time.time_ns()

    def random(self, count: int) -> bytes:
        """Cryptographic random bytes."""
        return os.urandom(count)


REAL = Env()
