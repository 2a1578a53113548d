"""Locks on one host file: a table among our clients, and one kernel lock on behalf of them all for local programs.

The kernel side is an open file description lock (fcntl(2)) and a flock(2) on one descriptor of the node, holding at
each moment the strongest of what the table holds.  Only on file systems that are called inline: elsewhere (NFS, FUSE)
a lock call may block for ever, and our clients are kept apart by the table alone.  A local program that waits for one
of our clients and is waited for by it is not detected as a deadlock.  Knows no fid and no wire.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Protocol

import trio

from ..answer import Answer, settle
from ..file import Call
from ..locks import Locks
from ..proto import errors as E
from ..proto.types import F_RDLCK, F_UNLCK, F_WRLCK, OFFSET_MAX, Lock
from .host_cache import Held
from .host_tree import Export, refusal

F_OFD_GETLK = 36
F_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")  # struct flock; type, whence, start, length (0: to the end), pid
POLL_SECONDS = 0.05  # a local program's lock tells nobody that it went
BUSY = (errno.EAGAIN, errno.EACCES)


class Lockable(Protocol):
    """What a lock needs of its node."""

    @property
    def export(self) -> Export: ...

    def here(self) -> Held: ...


class HostLocks:
    """The locks of one node; made with the first lock that is asked for."""

    def __init__(self, node: Lockable) -> None:
        # Not the node itself: it owns this object, and a cycle would keep its descriptors until a collection.
        self._export = node.export
        self._table = Locks(node.export.limits.locks_max)
        self._held: Held | None = None
        if node.export.inline:
            own = node.here()
            try:
                flags = os.O_RDONLY if node.export.readonly else os.O_RDWR
                self._held = node.export.reopen(own.fd, flags)
            except OSError:
                self._held = node.export.reopen(own.fd, os.O_RDONLY)

    def lock(self, call: Call, lock: Lock, wait: bool) -> Answer[bool]:
        """As Handle.lock.  Parks with `wait`, and a cancelled wait leaves nothing behind."""
        if lock.type == F_UNLCK:
            self._table.lock(lock, False)
            self._release(lock.flock)
            return True
        if not 0 <= lock.start <= lock.end <= OFFSET_MAX or lock.type not in (F_RDLCK, F_WRLCK):
            raise E.Ebadarg("lock")
        if self._table.getlock(lock) is None and self._ask_host(lock):
            try:
                taken = self._table.lock(lock, False)
            except E.FileError:
                self._release(lock.flock)
                raise
            assert taken is True
            return True
        return self._wait(lock) if wait else False

    async def _wait(self, lock: Lock) -> bool:
        await settle(self._table.lock(lock, True))
        try:
            while not self._ask_host(lock):
                await trio.sleep(POLL_SECONDS)
        except BaseException:
            self._table.lock(lock._replace(type=F_UNLCK), False)
            self._release(lock.flock)
            raise
        return True

    def getlock(self, lock: Lock) -> Lock | None:
        """As Handle.getlock; a local program's lock has the owner "host"."""
        found = self._table.getlock(lock)
        if found is not None or lock.flock or self._held is None:
            return found
        kind = F_WRLCK if lock.type == F_UNLCK else lock.type
        asked = _FLOCK.pack(kind, os.SEEK_SET, lock.start, _length(lock.start, lock.end), 0)
        try:
            kind, _whence, start, length, pid = _FLOCK.unpack(fcntl.fcntl(self._held.fd, F_OFD_GETLK, asked))
        except OSError as e:
            raise refusal(e) from None
        if kind == F_UNLCK:
            return None
        return Lock(kind, start, start + length - 1 if length else OFFSET_MAX, "host", max(pid, 0))

    def unlock_owner(self, owner: object, flock: bool) -> None:
        """Drop what an owner holds or waits for."""
        self._table.unlock_owner(owner, flock)
        self._release(flock)

    # -- the kernel's side
    def _ask_host(self, lock: Lock) -> bool:
        """Make the kernel's lock at least this strong; False if a local program is in the way."""
        if self._held is None:
            return True
        try:
            if lock.flock:
                others = any(held.type == F_WRLCK for held in self._table.held(flock=True) if held.owner != lock.owner)
                kind = fcntl.LOCK_EX if lock.type == F_WRLCK or others else fcntl.LOCK_SH
                fcntl.flock(self._held.fd, kind | fcntl.LOCK_NB)
            else:
                self._set(lock.type, lock.start, lock.end)
        except OSError as e:
            if e.errno in BUSY:
                return False
            raise refusal(e) from None
        return True

    def _release(self, flock: bool) -> None:
        """Give the kernel back what the table no longer holds, never opening a gap in what it still does."""
        if self._held is None:
            return
        held = self._table.held(flock)
        if flock:
            if not held:
                fcntl.flock(self._held.fd, fcntl.LOCK_UN)
            elif all(lock.type == F_RDLCK for lock in held):
                fcntl.flock(self._held.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        free = 0
        for lock in held:  # in order of start
            if lock.start > free:
                self._set(F_UNLCK, free, lock.start - 1)
            free = max(free, lock.end + 1)
        if free <= OFFSET_MAX:
            self._set(F_UNLCK, free, OFFSET_MAX)

    def _set(self, kind: int, start: int, end: int) -> None:
        assert self._held is not None
        asked = _FLOCK.pack(kind, os.SEEK_SET, start, _length(start, end), 0)
        fcntl.fcntl(self._held.fd, F_OFD_SETLK, asked)


def _length(start: int, end: int) -> int:
    return 0 if end == OFFSET_MAX else end - start + 1
