"""Byte-range locks: who holds which bytes of one file, who waits for them, and whom a wait would deadlock.

POSIX rules (fcntl(2)): an owner's new lock replaces its old ones where they overlap: ranges upgrade, split and merge,
and owners never conflict with themselves.  BSD locks (flock(2)) are the same algebra on a table of their own.
Advisory only.  Knows no file and no wire: a tree keeps one Locks per file, an edge makes the owners.

Theory of operation.  A LockSpace is what the files of one process share: how many ranges each session holds, how many
POSIX ranges each owner holds, and which owner waits where.  A new wait follows the owners in its way, the owners that
those wait for, and so on; meeting itself it is refused with Edeadlk, so a cycle never comes to be.
Waiters are served in order of arrival.  A newcomer that asks to wait queues behind earlier waiters that it conflicts
with, so readers cannot starve a writer; but only while it holds no lock anywhere.  Nobody can wait for such an owner,
so queueing adds no edge that a cycle could need.  Whoever does not wait (F_SETLK) only looks at what is held.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

import trio

from .answer import Answer
from .proto import errors as E
from .proto.types import F_RDLCK, F_UNLCK, F_WRLCK, OFFSET_MAX, Lock

LOCKS_MAX = 1024


class LockSpace:
    """What all files of one process share, so that a deadlock across files is seen."""

    def __init__(self) -> None:
        self.by_session: dict[object, int] = {}
        self.by_owner: dict[object, int] = {}
        self.waits: dict[object, list[_Waiter]] = {}

    def count(self, owner: object, flock: bool, change: int) -> None:
        _add(self.by_session, session_of(owner), change)
        if not flock:
            _add(self.by_owner, owner, change)


SPACE = LockSpace()


def session_of(owner: object) -> object:
    """Who answers for the number of an owner's locks: the first part of a tuple, else the owner itself."""
    return owner[0] if isinstance(owner, tuple) and owner else owner


def _add(counts: dict[object, int], key: object, change: int) -> None:
    total = counts.get(key, 0) + change
    assert total >= 0
    if total:
        counts[key] = total
    else:
        counts.pop(key, None)


class _Waiter:
    """A request in a queue; the task parked for it is woken once, with `refusal` set or not."""

    __slots__ = ("is_done", "lock", "refusal", "table", "task")

    def __init__(self, table: _Table, lock: Lock, task: trio.lowlevel.Task) -> None:
        self.table = table
        self.lock = lock
        self.task = task
        self.is_done = False
        self.refusal: E.FileError | None = None


class Locks:
    """The locks of one file.  `limit`: most ranges that the owners of one session hold or wait for, over all files."""

    __slots__ = ("_flock", "_posix")

    def __init__(self, limit: int = LOCKS_MAX, space: LockSpace | None = None) -> None:
        space = SPACE if space is None else space
        self._posix = _Table(space, limit)
        self._flock = _Table(space, limit)

    def lock(self, lock: Lock, wait: bool) -> Answer[bool]:
        """Take, change or drop a lock; False if somebody else holds it and `wait` was not asked.

        Parks with `wait`; a cancelled wait leaves no trace.  Edeadlk (POSIX only), Enolck past the limit, Ebadarg for a
        range or type that is none.
        """
        if not 0 <= lock.start <= lock.end <= OFFSET_MAX:
            raise E.Ebadarg("lock range")
        if lock.type not in (F_RDLCK, F_WRLCK, F_UNLCK):
            raise E.Ebadarg("lock type")
        return self._table(lock.flock).lock(lock, wait)

    def getlock(self, lock: Lock) -> Lock | None:
        """The lowest lock of another owner that would refuse this one (F_GETLK); an F_UNLCK query asks as a writer."""
        if lock.type == F_UNLCK:
            lock = lock._replace(type=F_WRLCK)  # what Linux's 9P client sends
        return min(self._table(lock.flock).conflicts(lock), key=_by_start, default=None)

    def unlock_owner(self, owner: object, flock: bool) -> None:
        """Drop what the owner holds in one of the two tables; its parked requests there end with Einterrupted."""
        self._table(flock).drop(owner)

    def held(self, flock: bool = False) -> tuple[Lock, ...]:
        """Every lock, ordered by start."""
        table = self._table(flock)
        return tuple(sorted(table.reads + table.writes, key=_by_start))

    def _table(self, flock: bool) -> _Table:
        return self._flock if flock else self._posix


class _Table:
    """The held locks and the queue.  One owner's ranges never overlap, and equal neighbours are merged.

    Write locks overlap with nothing, so in order of start their ends are in order too: a search finds who is in the
    way.  Only a writer has to look through the read locks.
    """

    __slots__ = ("by_owner", "limit", "queue", "reads", "space", "writes")

    def __init__(self, space: LockSpace, limit: int) -> None:
        self.space = space
        self.limit = limit
        self.by_owner: dict[object, list[Lock]] = {}
        self.reads: list[Lock] = []
        self.writes: list[Lock] = []
        self.queue: list[_Waiter] = []

    def lock(self, lock: Lock, wait: bool) -> Answer[bool]:
        if lock.type == F_UNLCK:
            self._apply(lock)
            self._serve()
            return True
        if not self._blocked(lock, self.queue if wait else []):
            self._grant(lock)
            return True
        if not wait:
            return False
        if not lock.flock and self._would_deadlock(lock):
            raise E.Edeadlk
        return self._wait(lock)

    def conflicts(self, lock: Lock) -> Iterator[Lock]:
        """What others hold that this lock cannot be beside."""
        writes = self.writes
        for at in range(bisect_left(writes, lock.start, key=_end_of), len(writes)):
            if writes[at].start > lock.end:
                break
            if writes[at].owner != lock.owner:
                yield writes[at]
        if lock.type == F_WRLCK:
            for held in self.reads:
                if held.start > lock.end:
                    break
                if held.end >= lock.start and held.owner != lock.owner:
                    yield held

    def drop(self, owner: object) -> None:
        """Forget an owner: what it holds and what it waits for."""
        mine = self.by_owner.pop(owner, ())
        for lock in mine:
            self._out(lock)
        if mine:
            self.space.count(owner, mine[0].flock, -len(mine))
        for waiter in [w for w in self.queue if w.lock.owner == owner]:
            self._end(waiter, E.Einterrupted("lock owner is gone"))
        self._serve()

    # -- the algebra
    def _apply(self, new: Lock) -> None:
        """Make it so: cut the new range out of the owner's others, then join what touches and is equal."""
        mine = self.by_owner.get(new.owner, [])
        kept: list[Lock] = []
        gone: list[Lock] = []
        fresh: list[Lock] = []
        start, end = new.start, new.end
        for old in mine:
            if old.type == new.type and old.start <= new.end + 1 and new.start <= old.end + 1:
                start, end = min(start, old.start), max(end, old.end)
                gone.append(old)
            elif old.end < new.start or old.start > new.end:
                kept.append(old)
            else:
                gone.append(old)
                if old.start < new.start:
                    fresh.append(old._replace(end=new.start - 1))
                if old.end > new.end:
                    fresh.append(old._replace(start=new.end + 1))
        if new.type != F_UNLCK:
            fresh.append(new._replace(start=start, end=end))
        change = len(fresh) - len(gone)
        if change > 0 and self.space.by_session.get(session_of(new.owner), 0) + change > self.limit:
            raise E.Enolck
        for lock in gone:
            self._out(lock)
        for lock in fresh:
            insort(self.writes if lock.type == F_WRLCK else self.reads, lock, key=_by_start)
        if kept or fresh:
            self.by_owner[new.owner] = kept + fresh
        else:
            self.by_owner.pop(new.owner, None)
        if change:
            self.space.count(new.owner, new.flock, change)

    def _out(self, lock: Lock) -> None:
        """Take one lock out of its list."""
        held = self.writes if lock.type == F_WRLCK else self.reads
        at = bisect_left(held, _by_start(lock), key=_by_start)
        while held[at].owner != lock.owner:
            at += 1
        del held[at]

    # -- waiting
    def _blocked(self, lock: Lock, ahead: list[_Waiter]) -> bool:
        if next(self.conflicts(lock), None) is not None:
            return True
        if self.space.by_owner.get(lock.owner):
            return False
        if lock.flock and lock.owner in self.by_owner:
            return False
        return any(not w.is_done and w.lock.owner != lock.owner and _clash(w.lock, lock) for w in ahead)

    def _would_deadlock(self, lock: Lock) -> bool:
        """Whether somebody in the way waits, over any number of others, for the owner who asks."""
        seen: set[object] = set()
        todo: list[object] = [held.owner for held in self.conflicts(lock)]
        while todo:
            owner = todo.pop()
            if owner == lock.owner:
                return True
            if owner in seen:
                continue
            seen.add(owner)
            for waiter in self.space.waits.get(owner, ()):
                todo.extend(held.owner for held in waiter.table.conflicts(waiter.lock))
        return False

    async def _wait(self, lock: Lock) -> bool:
        if not self._blocked(lock, self.queue):  # the coroutine may be run long after it was made
            self._grant(lock)
            return True
        if not lock.flock and self._would_deadlock(lock):
            raise E.Edeadlk
        if self.space.by_session.get(session_of(lock.owner), 0) >= self.limit:
            raise E.Enolck  # who waits is counted too, or the queue would have no bound
        waiter = _Waiter(self, lock, trio.lowlevel.current_task())
        self.queue.append(waiter)
        _add(self.space.by_session, session_of(lock.owner), 1)
        if not lock.flock:
            self.space.waits.setdefault(lock.owner, []).append(waiter)

        def abort(_: object) -> trio.lowlevel.Abort:
            # Within the cancellation itself, so that no grant can slip in between and be lost.
            self._leave(waiter)
            self._serve()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if waiter.refusal is not None:
            raise waiter.refusal
        return True

    def _leave(self, waiter: _Waiter) -> None:
        waiter.is_done = True
        self.queue.remove(waiter)
        owner = waiter.lock.owner
        _add(self.space.by_session, session_of(owner), -1)
        if not waiter.lock.flock:
            waits = self.space.waits[owner]
            waits.remove(waiter)
            if not waits:
                del self.space.waits[owner]

    def _end(self, waiter: _Waiter, refusal: E.FileError | None) -> None:
        self._leave(waiter)
        waiter.refusal = refusal
        trio.lowlevel.reschedule(waiter.task)

    def _grant(self, lock: Lock) -> None:
        self._apply(lock)
        self._serve()  # a downgrade lets others in
        self._serve_own(lock.owner)

    def _serve(self) -> None:
        """Grant what can be granted, oldest first, until a pass over the queue grants nothing."""
        granted = bool(self.queue)
        while granted:
            granted = False
            ahead: list[_Waiter] = []
            for waiter in tuple(self.queue):
                if waiter.is_done:
                    continue  # by a pass that this one caused in another table
                if self._blocked(waiter.lock, ahead):
                    ahead.append(waiter)
                    continue
                granted = True
                try:
                    self._apply(waiter.lock)
                except E.Enolck as refusal:
                    self._end(waiter, refusal)
                else:
                    self._end(waiter, None)
                    self._serve_own(waiter.lock.owner)

    def _serve_own(self, owner: object) -> None:
        """An owner that holds something now no longer queues out of courtesy: others may come to wait for it."""
        for waiter in tuple(self.space.waits.get(owner, ())):
            if waiter.table is not self and waiter in waiter.table.queue:
                waiter.table._serve()


def _clash(a: Lock, b: Lock) -> bool:
    return a.start <= b.end and b.start <= a.end and F_WRLCK in (a.type, b.type)


def _by_start(lock: Lock) -> tuple[int, int]:
    return lock.start, lock.end


def _end_of(lock: Lock) -> int:
    return lock.end
