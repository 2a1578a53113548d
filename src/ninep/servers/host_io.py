"""Open host files and directories: positional reads and writes on a descriptor of the handle's own.

A read takes what the page cache has, on the serving thread (RWF_NOWAIT); what it has not is read by a worker.
Knows nothing of names: a handle goes on when its file was renamed or removed.
"""

from __future__ import annotations

import os
import stat as _s
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from ..answer import Answer
from ..file import Call, Handle
from ..proto import errors as E
from ..proto.types import F_UNLCK, F_WRLCK, OFFSET_MAX, OREAD, OSYNC, OWRITE, Entry, Lock, Name, Qid, Stat, qtype_of
from . import host_sys as sys
from .host_cache import Held
from .host_lock import HostLocks, Lockable
from .host_tree import SCRATCH_BYTES, Export, Identity, refusal

READ_BYTES_MAX = 1 << 24  # of one read; the Session's bounds are lower
DIR_COOKIES_KEPT = 16_384  # of one open directory; see HostDirHandle


class Openable(Lockable, Protocol):
    """What a handle needs of its node."""

    opens: tuple[Held, ...]
    locks: HostLocks | None
    identity: Identity

    def drop_setid(self, call: Call, fd: int) -> None: ...


class HostHandle(Handle):
    """One open of a regular file."""

    def __init__(self, node: Openable, held: Held, omode: int) -> None:
        self.node = node
        self.export: Export = node.export
        self.omode = omode
        self._held: Held | None = held
        node.opens = (*node.opens, held)

    @property
    def held(self) -> Held:
        """The open descriptor; keep the reference while using it."""
        if self._held is None:
            raise E.Enotopen
        return self._held

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        held = self._held
        export = self.export
        if held is None or not 0 <= offset <= OFFSET_MAX or count < 0:
            raise E.Enotopen if held is None else E.Ebadoffset
        count = min(count, READ_BYTES_MAX, OFFSET_MAX - offset)
        if export.in_memory:
            try:
                return os.pread(held.fd, count, offset)
            except OSError as e:
                raise refusal(e) from None
        if not export.inline:
            return self._pread(call, offset, count)
        # Reads here are made one at a time, on the serving thread: they share a buffer.
        buffer = export.scratch[:count] if count <= SCRATCH_BYTES else memoryview(bytearray(count))
        done = self._cached(held.fd, offset, buffer)
        if done < 0:
            return self._pread(call, offset, count)
        return bytes(buffer[:done])

    def read_into(self, call: Call, offset: int, buffer: memoryview) -> Answer[int]:
        held = self._held
        if held is None or not 0 <= offset <= OFFSET_MAX:
            raise E.Enotopen if held is None else E.Ebadoffset
        if self.export.inline:
            if len(buffer) > OFFSET_MAX - offset:
                buffer = buffer[: OFFSET_MAX - offset]
            done = self._cached(held.fd, offset, buffer)
            if done >= 0:
                return done
        return self._read_into(call, offset, buffer)

    def _cached(self, fd: int, offset: int, buffer: memoryview) -> int:
        """What can be read without waiting; -1 if that is not all that the file has."""
        nowait = 0 if self.export.in_memory else os.RWF_NOWAIT
        try:
            done = os.preadv(fd, (buffer,), offset, nowait)
            # A short count is the end of the file or the end of what is cached; only another read tells.
            while nowait and 0 < done < len(buffer):
                more = os.preadv(fd, (buffer[done:],), offset + done, nowait)
                if more == 0:
                    break
                done += more
            return done
        except BlockingIOError:
            return -1
        except OSError as e:
            if e.errno == 95:  # EOPNOTSUPP: this file system cannot promise not to wait
                return -1
            raise refusal(e) from None

    async def _pread(self, call: Call, offset: int, count: int) -> bytes:
        held = self.held  # the thread's own reference: an abandoned read may outlive this handle
        return await self.export.slow(call, False, lambda: os.pread(held.fd, count, offset))

    async def _read_into(self, call: Call, offset: int, buffer: memoryview) -> int:
        # By way of fresh bytes: an abandoned thread must never write into a buffer that serves somebody else by then.
        data = await self._pread(call, offset, min(len(buffer), READ_BYTES_MAX, OFFSET_MAX - offset))
        buffer[: len(data)] = data
        return len(data)

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        held = self.held
        export = self.export
        export.gate()
        if not 0 <= offset <= OFFSET_MAX - len(data):
            raise E.Efbig
        if not export.inline or self.omode & OSYNC:  # which waits for the disk
            return export.slow(call, True, self._write, call, held, offset, bytes(data))
        try:
            done = os.pwrite(held.fd, data, offset)
            if export.keeps_setid:
                self.node.drop_setid(call, held.fd)
        except OSError as e:
            raise refusal(e) from None
        return done

    def _write(self, call: Call, held: Held, offset: int, data: bytes) -> int:
        done = os.pwrite(held.fd, data, offset)
        self.node.drop_setid(call, held.fd)
        return done

    def truncate(self, call: Call, size: int) -> Answer[None]:
        if not 0 <= size <= OFFSET_MAX:
            raise E.Efbig
        return self.export.change(call, self._truncate, call, self.held, size)

    def _truncate(self, call: Call, held: Held, size: int) -> None:
        os.ftruncate(held.fd, size)
        self.node.drop_setid(call, held.fd)

    def fsync(self, call: Call, datasync: bool) -> Answer[None]:
        held = self.held
        return self.export.slow(call, True, lambda: os.fdatasync(held.fd) if datasync else os.fsync(held.fd))

    def flush(self, call: Call) -> Answer[None]:
        """What close(2) would say (NFS and quotas tell of failed writes there): a duplicate is closed."""
        if self.export.inline:
            return None
        held = self.held
        return self.export.slow(call, True, lambda: os.close(os.dup(held.fd)))

    def allocate(self, call: Call, mode: int, offset: int, length: int) -> Answer[None]:
        held = self.held
        self.export.gate()
        if offset < 0 or length <= 0 or offset + length > OFFSET_MAX:
            raise E.Ebadarg("fallocate")

        def allocate() -> None:
            sys.fallocate(held.fd, mode, offset, length)
            self.node.drop_setid(call, held.fd)

        return self.export.slow(call, True, allocate)

    def seek(self, call: Call, offset: int, whence: int) -> Answer[int]:
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise E.Ebadarg("whence")
        if not 0 <= offset <= OFFSET_MAX:
            raise E.Enxio
        held = self.held
        return self.export.run(call, lambda: os.lseek(held.fd, offset, whence))

    def copy_range(self, call: Call, offset: int, to: Handle, to_offset: int, count: int) -> Answer[int]:
        if not isinstance(to, HostHandle) or to.export is not self.export:
            raise E.Exdev
        self.export.gate()
        source, target, node = self.held, to.held, to.node
        if offset < 0 or to_offset < 0 or count < 0 or max(offset, to_offset) + count > OFFSET_MAX:
            raise E.Ebadoffset

        def copy() -> int:
            done = os.copy_file_range(source.fd, target.fd, min(count, 1 << 30), offset, to_offset)
            node.drop_setid(call, target.fd)
            return done

        return self.export.slow(call, True, copy)

    def lock(self, call: Call, lock: Lock, wait: bool) -> Answer[bool]:
        """POSIX write locks need a handle that can write, read locks one that can read (fcntl(2)): Enotopen."""
        if lock.type == F_WRLCK:
            self.export.gate()
        access = self.omode & 3
        if not lock.flock and access == (OREAD if lock.type == F_WRLCK else OWRITE) and lock.type != F_UNLCK:
            raise E.Enotopen
        return self._locks().lock(call, lock, wait)

    def getlock(self, call: Call, lock: Lock) -> Answer[Lock | None]:
        return self._locks().getlock(lock)

    def unlock_owner(self, call: Call, owner: object, flock: bool) -> Answer[None]:
        if self.node.locks is not None:
            self.node.locks.unlock_owner(owner, flock)
        return None

    def _locks(self) -> HostLocks:
        locks = self.node.locks
        if locks is None:
            try:
                locks = self.node.locks = HostLocks(self.node)
            except OSError as e:
                raise refusal(e) from None
        return locks

    def backing(self) -> int | None:
        return None if self._held is None else self._held.fd

    def close(self, call: Call) -> Answer[None]:
        return _close(self, call)


class HostDirHandle(Handle):
    """One open of a directory, streamed: at most one getdents64 batch is in memory.

    Cookies are the file system's own positions (d_off).  The last DIR_COOKIES_KEPT given are remembered and any other
    is refused; in a directory that gave more, an older one is left to the file system to judge, which may answer from
    the nearest position but never from outside the directory.
    """

    def __init__(self, node: Openable, held: Held) -> None:
        self.node = node
        self.export: Export = node.export
        self._held: Held | None = held
        self._pending: deque[tuple[bytes, int, int, int]] = deque()
        self._at = 0
        self._given: dict[int, None] = {}
        self._dropped = False
        self._lock = threading.Lock()  # two listings of one handle on two worker threads
        node.opens = (*node.opens, held)

    @property
    def held(self) -> Held:
        if self._held is None:
            raise E.Enotopen
        return self._held

    def entries(self, call: Call, cookie: int, count: int) -> Answer[Sequence[Entry]]:
        if not 0 <= cookie <= OFFSET_MAX:
            raise E.Ediroffset
        return self.export.run(call, self._entries, self.held, cookie, max(1, count))

    def _entries(self, held: Held, cookie: int, count: int) -> Sequence[Entry]:
        with self._lock:
            if cookie == 0 or cookie != self._at:
                self._seek(held.fd, cookie)
            found: list[Entry] = []
            while len(found) < count:
                if not self._pending:
                    self._pending.extend(sys.getdents(held.fd))
                    if not self._pending:
                        break
                raw, ino, kind, after = self._pending.popleft()
                entry = self._entry(held.fd, raw, ino, kind, after)
                self._at = after
                if entry is not None:
                    found.append(entry)
                    self._given[after] = None
                    if len(self._given) > DIR_COOKIES_KEPT:
                        del self._given[next(iter(self._given))]
                        self._dropped = True
            return found

    def names(self, call: Call, cookie: int, count: int) -> Answer[Sequence[Name]]:
        """A cookie of any handle: the file system judges it (see above)."""
        if not 0 <= cookie <= OFFSET_MAX:
            raise E.Ediroffset
        return self.export.run(call, self._names, self.held, cookie, count)

    def _names(self, held: Held, cookie: int, count: int) -> Sequence[Name]:
        with self._lock:
            if cookie == 0 or cookie != self._at or self._pending:
                self._move(held.fd, cookie)
            names = sys.getdents_names(held.fd, count, self.export.ino_key(self.node.identity[0]))
            if names:
                self._at = names[-1][1]
            return names

    def _seek(self, fd: int, cookie: int) -> None:
        if cookie and cookie not in self._given and not self._dropped:
            raise E.Ediroffset
        self._move(fd, cookie)

    def _move(self, fd: int, cookie: int) -> None:
        try:
            os.lseek(fd, cookie, os.SEEK_SET)
        except OSError:
            raise E.Ediroffset from None
        self._pending.clear()
        self._at = cookie

    def _entry(self, fd: int, raw: bytes, ino: int, kind: int, after: int) -> Entry | None:
        # DONT_SYNC: what is mounted on the name must not be asked, it might be a dead server or this very one.
        flags = sys.AT_SYMLINK_NOFOLLOW | sys.AT_NO_AUTOMOUNT | (sys.AT_STATX_DONT_SYNC if self.export.inline else 0)
        export = self.export
        name = os.fsdecode(raw)
        try:
            st = sys.statx(fd, raw, flags)
        except FileNotFoundError:
            return None  # removed since the batch was read
        except OSError:
            st = None
        if st is None or (st.mount != export.mount and not export.cross_mounts):
            # Covered by another mount, or not to be searched: the name is told, nothing of what it leads to.
            qid = Qid(qtype_of(kind << 12), 1, export.qid_path((self.node.identity[0], ino, 0)))
            return Entry(name, qid, kind, after)
        size, ctime_ns = st.size, st.ctime_ns
        qid = Qid(
            qtype_of(st.mode),
            (ctime_ns ^ ctime_ns >> 32 ^ size) & 0xFFFFFFFF or 1,
            export.qid_path((st.dev, st.ino, st.btime_ns)),
        )
        stat = Stat(
            qid, st.mode, size, st.nlink, st.uid, st.gid, st.mtime_ns, st.atime_ns, ctime_ns, st.btime_ns, st.rdev,
            st.blksize, st.blocks,
        )  # fmt: skip
        return Entry(name, qid, _s.S_IFMT(st.mode) >> 12, after, stat)

    def fsync(self, call: Call, datasync: bool) -> Answer[None]:
        held = self.held
        return self.export.slow(call, True, lambda: os.fsync(held.fd))

    def backing(self) -> int | None:
        return None if self._held is None else self._held.fd

    def close(self, call: Call) -> Answer[None]:
        return _close(self, call)


def _close(handle: HostHandle | HostDirHandle, call: Call) -> Answer[None]:
    """Let the descriptor go; a slow file system closes it on a worker, where a late write error is still told."""
    held = handle._held
    if held is None:
        return None
    handle._held = None
    handle.node.opens = tuple(other for other in handle.node.opens if other is not held)
    if handle.export.inline:
        return None
    box = [held]
    del held

    def close() -> None:
        mine = box.pop()  # the last reference ends on this thread
        os.close(os.dup(mine.fd))

    return handle.export.slow(call, True, close)
