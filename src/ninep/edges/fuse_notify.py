"""Telling the kernel what changed, from a thread.

An invalidation takes the lock of a directory or waits for a page, and whoever holds those may be waiting for our
answer; so the loop that answers must never write one.  Knows no file, only what to write.
"""

from __future__ import annotations

import os
from typing import Final

import trio

PENDING_MAX: Final = 65_536  # past it the oldest is dropped: the kernel then believes what it has till its time is up


class Notifier:
    """Writes notifications to one device, each distinct one once, in order of their first mention."""

    def __init__(self, device_fd: int) -> None:
        self._fd = device_fd
        self._pending: dict[bytes, None] = {}
        self._wake = trio.Event()
        self._limiter = trio.CapacityLimiter(1)

    def push(self, frame: bytes) -> None:
        """Never blocks."""
        if len(self._pending) >= PENDING_MAX:
            del self._pending[next(iter(self._pending))]
        self._pending[frame] = None
        self._wake.set()

    async def run(self) -> None:
        """Writes until cancelled; a write that has begun is waited for."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            frames, self._pending = list(self._pending), {}
            await trio.to_thread.run_sync(_write_all, self._fd, frames, limiter=self._limiter)


def _write_all(fd: int, frames: list[bytes]) -> None:
    for frame in frames:
        try:
            os.write(fd, frame)
        except FileNotFoundError:
            pass  # the kernel has no such node or name in its cache
        except OSError:
            return  # unmounted
