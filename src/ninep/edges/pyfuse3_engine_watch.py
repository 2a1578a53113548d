"""Which parked operations have a caller that a signal wants: the interrupts that pyfuse3 does not pass on.

The kernel tells a FUSE server when a signal interrupts a caller; libfuse hears it, pyfuse3 has no hook for it, and the
caller then sleeps uninterruptibly, SIGKILL or not.  So while operations are parked, the status of the threads that
wait for them is read: one in state D with a signal pending that it does not block is such a caller.

Many operations are asked about together, and at most LOOKS_MAX threads each PERIOD_SECONDS: up to so many a signal
ends a read within two periods, past it within as many more as it takes to go around.  Knows no file and no message.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

import trio

PERIOD_SECONDS: Final = 0.05
LOOKS_MAX: Final = 400  # 6 ms of CPU
FAR_SECONDS: Final = 1.0  # between two looks at every process of the machine


class Party:
    """Threads that wait, and the parked operations that they may be waiting for; `process`: all of that process."""

    __slots__ = ("keys", "process", "seen", "threads")

    def __init__(self, threads: list[int], process: int = 0) -> None:
        self.threads = threads
        self.process = process
        self.seen = trio.current_time()  # when they were seen to wait
        self.keys: set[int] = set()


class Waiter:
    """One parked operation, and what is known of its caller: the very thread, or the process that opened the file.

    A descriptor may have been passed on, so the opener's process group counts as well, as it was at the open.
    """

    __slots__ = ("group", "key", "party", "process", "thread")

    def __init__(self, key: int, thread: int, process: int, group: int) -> None:
        self.key = key
        self.thread = thread
        self.process = process
        self.group = group
        self.party: Party | None = None


class Watch:
    """The watchdog of one mount.  `cancel(key)` ends a parked operation with EINTR.

    Once `is_gone`, all of them end: the mount was taken away, and pyfuse3 would wait for them.
    """

    def __init__(self, cancel: Callable[[int], object], is_gone: Callable[[], bool]) -> None:
        self._cancel = cancel
        self._is_gone = is_gone
        self._parked: dict[int, Waiter] = {}
        self._lost: dict[int, Waiter] = {}  # whose threads are not known, or no more
        self._parties: dict[Party, None] = {}
        self._of_process: dict[int, Party] = {}
        self._turn: Iterator[tuple[Party, int]] = iter(())
        self._far_time = -FAR_SECONDS
        self._wake = trio.Event()

    def __len__(self) -> int:
        return len(self._parked)

    def add(self, waiter: Waiter) -> None:
        self._parked[waiter.key] = self._lost[waiter.key] = waiter
        self._wake.set()

    def drop(self, key: int) -> None:
        """It was answered.  Idempotent."""
        waiter = self._parked.pop(key, None)
        self._lost.pop(key, None)
        if waiter is None or waiter.party is None:
            return
        waiter.party.keys.discard(key)
        if not waiter.party.keys:
            self._end(waiter.party)

    async def run(self) -> None:
        """Watches until cancelled; costs nothing while nothing is parked."""
        while True:
            await self._wake.wait()
            while self._parked:
                await trio.sleep(PERIOD_SECONDS)
                self.look()
            self._wake = trio.Event()

    def look(self) -> None:
        """One period's work."""
        if self._is_gone():
            for key in list(self._parked):
                self._cancel(key)
            return
        if self._lost:
            self._find(list(islice(self._lost.values(), LOOKS_MAX)))
        looks = 0
        now = trio.current_time()
        ended: set[Party] = set()
        for party, thread in self._round():
            if party in ended:
                continue
            if now >= party.seen + FAR_SECONDS:
                self._check(party, now)
                looks += len(party.threads)
            wanted = is_wanted(thread)
            if wanted:
                ended.add(party)
                for key in list(party.keys):
                    self._cancel(key)
            elif wanted is None and thread in party.threads:
                party.threads.remove(thread)
                if not party.threads:
                    self._lose(party)
            looks += 1
            if looks >= LOOKS_MAX:
                return

    def _round(self) -> Iterator[tuple[Party, int]]:
        """The next threads in turn; ends when each was looked at once."""
        begins_anew = False
        while True:
            for party, thread in self._turn:
                if party.keys:
                    yield party, thread
            if begins_anew:
                return
            begins_anew = True
            self._turn = ((party, thread) for party in list(self._parties) for thread in list(party.threads))

    def _check(self, party: Party, now: float) -> None:
        """A thread that was taken for the one that waits may have been there for another file."""
        party.seen = now
        party.threads = [thread for thread in party.threads if may_wait(f"/proc/{thread}/wchan")]
        if not party.threads:
            self._lose(party)

    def _lose(self, party: Party) -> None:
        self._end(party)
        keys, party.keys = party.keys, set()  # the round may still hold it
        for key in keys:
            waiter = self._parked[key]
            waiter.party = None
            self._lost[key] = waiter

    def _end(self, party: Party) -> None:
        self._parties.pop(party, None)
        if self._of_process.get(party.process) is party:
            del self._of_process[party.process]

    def _find(self, waiters: list[Waiter]) -> None:
        """Who waits for each of these: the thread that asked, else a thread of the opener, else one of its group.

        What nobody is seen to wait for is looked for in the whole machine: descriptors pass through sockets as well.
        """
        found: dict[tuple[str, int], Party] = {}
        missed: list[Waiter] = []
        for waiter in waiters:
            if waiter.thread:
                self._join(waiter, found, ("thread", waiter.thread), lambda w=waiter: [w.thread])  # type: ignore[misc]  # mypy infers no defaults
            elif not self._join(waiter, found, ("process", process_of(waiter.process)),
                                lambda w=waiter: waiting_threads((w.process,))):  # type: ignore[misc]  # likewise  # fmt: skip
                missed.append(waiter)
        if not missed:
            return
        claimed = {thread for party in self._parties for thread in party.threads}
        far: list[Waiter] = []
        for waiter in missed:
            if not self._join(waiter, found, ("group", waiter.group),
                              lambda w=waiter: unclaimed(members(w.group), claimed)):  # type: ignore[misc]  # likewise  # fmt: skip
                far.append(waiter)
        if far and trio.current_time() >= self._far_time + FAR_SECONDS:
            self._far_time = trio.current_time()
            for waiter in far:
                self._join(waiter, found, ("all", 0), lambda: unclaimed(processes(), claimed))

    def _join(self, waiter: Waiter, found: dict[tuple[str, int], Party], key: tuple[str, int],
              threads: Callable[[], list[int]]) -> bool:  # fmt: skip
        party = found.get(key)
        if party is None:
            party = found[key] = self._party(key, threads())
        if not party.threads:
            return False
        self._parties[party] = None
        if party.process:
            self._of_process[party.process] = party
        party.keys.add(waiter.key)
        waiter.party = party
        del self._lost[waiter.key]
        return True

    def _party(self, key: tuple[str, int], threads: list[int]) -> Party:
        """A process has one party, whenever its reads were parked: so each of its threads is looked at once a round."""
        kind, process = key
        if kind != "process":
            return Party(threads)
        party = self._of_process.get(process)
        if party is None or not threads:
            return Party(threads, process)
        party.threads = threads
        party.seen = trio.current_time()
        return party


def processes() -> list[int]:
    """All that can be seen, without this one."""
    own = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]


def members(group: int) -> list[int]:
    """The processes of a process group."""
    return [process for process in processes() if group and group_of(process) == group]


def group_of(process: int) -> int:
    """The process group of a process; 0 when it is gone or not ours to see."""
    try:
        return os.getpgid(process) if process else 0
    except OSError:
        return 0


def process_of(thread: int) -> int:
    """The process of a thread, which is what opened the file; the thread itself when it is gone."""
    try:
        with open(f"/proc/{thread}/status", "rb") as f:
            text = f.read(1024)
    except OSError:
        return thread
    return int(text.partition(b"Tgid:")[2].split(maxsplit=1)[0])


def waiting_threads(which: Iterable[int]) -> list[int]:
    """The threads of these processes that wait for a FUSE server."""
    found: list[int] = []
    for process in which:
        try:
            threads = os.listdir(f"/proc/{process}/task") if process else []
        except OSError:
            continue
        found.extend(int(thread) for thread in threads if may_wait(f"/proc/{process}/task/{thread}/wchan"))
    return found


def unclaimed(which: Iterable[int], claimed: set[int]) -> list[int]:
    """The same, without those that are known to wait for an open of their own."""
    return [thread for thread in waiting_threads(which) if thread not in claimed]


def may_wait(wchan: str) -> bool:
    """Whether a thread waits for a FUSE server, or may: not every kernel tells everybody."""
    try:
        with open(wchan, "rb") as f:
            where = f.read(64)
    except OSError:
        return False
    return where in (b"0", b"") or b"request_wait" in where or b"fuse" in where


def is_wanted(thread: int) -> bool | None:
    """Whether a signal wants a thread that cannot take it, because it waits for us; None when it is gone."""
    try:
        with open(f"/proc/{thread}/status", "rb") as f:
            text = f.read(4096)
    except OSError:
        return None
    pending = blocked = 0
    for line in text.split(b"\n"):
        if line.startswith(b"State:") and line[7:8] != b"D":
            return False
        if line.startswith((b"SigPnd:", b"ShdPnd:")):
            pending |= int(line[7:], 16)
        elif line.startswith(b"SigBlk:"):
            blocked = int(line[7:], 16)
            break
    return bool(pending & ~blocked)
