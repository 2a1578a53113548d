"""Reading, writing and everything else on an open file: bytes, directories, locks, readiness.

Large reads are made into a pooled buffer with room for the reply's header, large writes are taken from the buffer they
were read into; a slow one keeps its buffer, and the mount goes on with another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Generator, Sequence
from types import CoroutineType
from typing import Any, Final, TypeVar, cast

from ninep.answer import Answer, answering, drop, then
from ninep.fid import Fid
from ninep.file import Call
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.proto.types import DT_DIR, F_UNLCK, OFFSET_MAX, Entry, Lock

from .fuse_device import HEADER, Asked, Body, Filled, FuseMount
from .fuse_nodes import Known, Opened
from .fuse_open import Opens

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]

SMALL: Final = 65_536  # up to here a copy is cheaper than keeping a large buffer from others
DOT_COOKIES: Final = 2  # `.` and `..` come first; the tree's own cookies are moved up by as much
DIRENT_BYTES: Final = 40  # of a typical name, to guess how many entries fit
PLUS: Final = p.ENTRY_OUT.size


class FileIO:
    """The operations of one mount on file handles."""

    def __init__(self, mount: FuseMount, opens: Opens, found: Callable[[Call, Known, Fid], Answer[bytes]]) -> None:
        """`found` gives the entry of a file just walked to."""
        self._mount = mount
        self._session = mount.session
        self._opens = opens
        self._found = found

    # -- bytes

    def do_read(self, asked: Asked) -> Answer[Body]:
        fh, offset, size, _, _, _ = asked.args
        fid = self._opens.get(fh).fid
        handle = fid.handle
        if size <= SMALL or handle is None or handle.stream:
            answer = self._session.read(asked.call, fid, offset, size)
            if type(answer) is bytes and len(answer) <= size:
                return answer
            return then(answer, lambda data: _at_most(size, data))
        buffer = self._mount.buffers.take()
        into = memoryview(buffer)[HEADER : HEADER + min(size, self._mount.max_write)]
        count = self._session.read_into(asked.call, fid, offset, into)
        if type(count) is CoroutineType:
            return self._slow_read(count, buffer)
        return Filled(buffer, cast(int, count))

    async def _slow_read(self, count: Coroutine[Any, Any, int], buffer: bytearray) -> Body:
        return Filled(buffer, await count)

    def do_write(self, asked: Asked) -> Answer[Body]:
        fh, offset, size, _, _, _, data = asked.args
        if len(data) < size:
            raise E.Ebadmsg("write")
        opened = self._opens.get(fh)
        fid, known = opened.fid, opened.known
        vers = fid.file.qid.vers
        small = size <= SMALL
        payload = bytes(data[:size]) if small else data[:size]
        answer = self._session.write(asked.call, fid, offset, payload)
        if type(answer) is not CoroutineType:
            if known.vers and known.vers == vers:
                known.vers = fid.file.qid.vers  # what the kernel has cached is what it wrote
            return _written(size, answer)
        if small:
            return then(answer, lambda count: _written(size, count))
        return self._slow_write(answer, size, self._mount.keep_buffer())

    async def _slow_write(self, answer: Coroutine[Any, Any, int], size: int, buffer: bytearray) -> Body:
        try:
            return _written(size, await answer)
        finally:
            self._mount.buffers.give(buffer)

    def do_fsync(self, asked: Asked) -> Answer[Body]:
        fh, flags = asked.args
        fid = self._opens.get(fh).fid
        return then(self._session.fsync(asked.call, fid, bool(flags & p.FSYNC_FDATASYNC)), _empty)

    do_fsyncdir = do_fsync

    @answering
    def do_flush(self, asked: Asked) -> Steps[Body]:
        """close(2) of a descriptor: POSIX locks of its owner go, whatever the flush says."""
        fh, number = asked.args
        fid = self._opens.get(fh).fid
        owner = self._opens.owner(number)
        try:
            yield self._session.flush_handle(asked.call, fid)
        finally:
            if fid.handle is not None and fid.lock_owners and (owner, False) in fid.lock_owners:
                yield fid.handle.unlock_owner(asked.call, owner, False)
        return b""

    def do_fallocate(self, asked: Asked) -> Answer[Body]:
        fh, offset, length, mode = asked.args
        fid = self._opens.get(fh).fid
        return then(self._session.allocate(asked.call, fid, mode, offset, length), _empty)

    def do_lseek(self, asked: Asked) -> Answer[Body]:
        fh, offset, whence = asked.args
        fid = self._opens.get(fh).fid
        return then(self._session.seek(asked.call, fid, offset, whence), p.LSEEK_OUT.pack)

    def do_copy_file_range(self, asked: Asked) -> Answer[Body]:
        fh, offset, _, to_fh, to_offset, count, flags = asked.args
        if flags:
            raise E.Ebadarg("copy_file_range flags")
        fid, to = self._opens.get(fh).fid, self._opens.get(to_fh).fid
        count = min(count, 0x7FFFF000)  # the reply has 32 bits
        return then(self._session.copy_range(asked.call, fid, offset, to, to_offset, count), p.WRITE_OUT.pack)

    # -- readiness

    def do_poll(self, asked: Asked) -> Answer[Body]:
        fh, kh, flags, events = asked.args
        fid = self._opens.get(fh).fid
        notify = None
        if flags & p.POLL_SCHEDULE_NOTIFY:
            device = self._mount.device
            notify = lambda: device.write(p.poll_wakeup(kh))  # it takes no lock that a request could hold
        return p.POLL_OUT.pack(self._session.ready(asked.call, fid, events, notify) & 0xFFFFFFFF)

    # -- locks

    def _lock(self, asked: Asked, *, wait: bool) -> Answer[Body]:
        fh, number, start, end, kind, pid, flags = asked.args
        fid = self._opens.get(fh).fid
        lock = Lock(kind, start, min(end, OFFSET_MAX), self._opens.owner(number), pid, flock=bool(flags & p.LK_FLOCK))
        return then(self._session.lock(asked.call, fid, lock, wait), _granted)

    def do_setlk(self, asked: Asked) -> Answer[Body]:
        return self._lock(asked, wait=False)

    def do_setlkw(self, asked: Asked) -> Answer[Body]:
        return self._lock(asked, wait=True)

    def do_getlk(self, asked: Asked) -> Answer[Body]:
        fh, number, start, end, kind, pid, flags = asked.args
        fid = self._opens.get(fh).fid
        lock = Lock(kind, start, min(end, OFFSET_MAX), self._opens.owner(number), pid, flock=bool(flags & p.LK_FLOCK))
        return then(self._session.getlock(asked.call, fid, lock), lambda found: _told(lock, found))

    # -- directories

    @answering
    def do_readdir(self, asked: Asked) -> Steps[Body]:
        fh, offset, size, _, _, _ = asked.args
        opened = self._opens.get(fh)
        out = bytearray()
        entries: Sequence[Entry] = yield self._entries(asked, opened, offset, size)
        left = _dots(out, opened.known, offset, size, 0)
        used = 0
        for entry in entries if left else ():
            record = p.dirent(entry.qid.path, entry.cookie + DOT_COOKIES, entry.dtype, os.fsencode(entry.name))
            if len(out) + len(record) > size:
                break
            out += record
            used += 1
            offset = entry.cookie + DOT_COOKIES
        _keep_rest(opened, offset, entries, used)
        return bytes(out)

    @answering
    def do_readdirplus(self, asked: Asked) -> Steps[Body]:
        fh, offset, size, _, _, _ = asked.args
        opened = self._opens.get(fh)
        out = bytearray()
        entries: Sequence[Entry] = yield self._entries(asked, opened, offset, size)
        left = _dots(out, opened.known, offset, size, PLUS)
        used = 0
        for entry in entries if left else ():
            record = p.dirent(entry.qid.path, entry.cookie + DOT_COOKIES, entry.dtype, os.fsencode(entry.name))
            if len(out) + PLUS + len(record) > size:
                break
            out += self._plus(asked, opened.known, entry)
            out += record
            used += 1
            offset = entry.cookie + DOT_COOKIES
        _keep_rest(opened, offset, entries, used)
        return bytes(out)

    def _entries(self, asked: Asked, opened: Opened, offset: int, size: int) -> Answer[Sequence[Entry]]:
        if opened.rest and opened.at == offset:
            return opened.rest
        return self._session.entries(asked.call, opened.fid, max(0, offset - DOT_COOKIES), size // DIRENT_BYTES + 1)

    def _plus(self, asked: Asked, parent: Known, entry: Entry) -> bytes:
        """What LOOKUP would have said, if that costs nothing: node 0 tells the kernel to ask when it wants to know.

        So does a file with no timeout: the kernel would look it up again at once, and a state file would be rendered
        for nothing.
        """
        try:
            walked = self._session.walk(asked.call, parent.fid, (entry.name,))
            if type(walked) is CoroutineType:
                drop(walked)
                return _NO_ENTRY
            assert isinstance(walked, tuple)
            fid = walked[1]
            if fid is None or not fid.file.entry_seconds or not self._mount.options.cache:
                return _NO_ENTRY
            found = self._found(asked.call, parent, fid)
            if type(found) is bytes:
                return found
            drop(found)
        except E.FileError:
            pass  # not the caller's to see, or gone by now: its own LOOKUP will say
        return _NO_ENTRY


_NO_ENTRY: Final = bytes(PLUS)


def _dots(out: bytearray, known: Known, offset: int, size: int, plus: int) -> bool:
    """`.` and `..`; False when not even they fit."""
    way = known.fid.way
    above = way.dir.qid.path if way is not None else known.fid.file.qid.path
    for at, (ino, name) in enumerate(((known.fid.file.qid.path, b"."), (above, b"..")), 1):
        if offset < at:
            record = bytes(plus) + p.dirent(ino, at, DT_DIR, name)
            if len(out) + len(record) > size:
                return False
            out += record
    return True


def _keep_rest(opened: Opened, offset: int, entries: Sequence[Entry], used: int) -> None:
    opened.at = max(offset, DOT_COOKIES)
    opened.rest = entries[used:]


def _at_most(size: int, data: bytes) -> bytes:
    if len(data) > size:
        raise E.Eproto(f"{len(data)} bytes for a read of {size}")
    return bytes(data)


def _written(size: int, count: object) -> bytes:
    assert isinstance(count, int)
    if not 0 <= count <= size:
        raise E.Eproto(f"{count} bytes taken of {size}")
    return p.WRITE_OUT.pack(count)


def _granted(ok: bool) -> bytes:
    if not ok:
        raise E.Ewouldblock
    return b""


def _told(asked: Lock, found: Lock | None) -> bytes:
    if found is None:
        return p.LK_OUT.pack(asked.start, asked.end, F_UNLCK, asked.pid)
    return p.LK_OUT.pack(found.start, found.end, found.type, found.pid)


def _empty(_: object) -> bytes:
    return b""
