"""Reading, writing and everything else on an open file: bytes, directories, locks, readiness.

Large reads are made into a pooled buffer with room for the reply's header, large writes are taken from the buffer they
were read into; a slow one keeps its buffer, and the mount goes on with another.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from types import CoroutineType
from typing import Any, Final, TypeVar, cast

from ninep.answer import Answer, answering, drop, then
from ninep.fid import Fid
from ninep.file import Call
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.proto.types import DT_DIR, F_UNLCK, OFFSET_MAX, Lock, Name

from .fuse_device import HEADER, Asked, Body, Filled, FuseMount
from .fuse_nodes import Known, Opened
from .fuse_open import Opens

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]

SMALL: Final = 65_536  # up to here a copy is cheaper than keeping a large buffer from others
DOT_COOKIES: Final = 2  # `.` and `..` come first; the tree's own cookies are moved up by as much
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
        names: Sequence[Name] = yield self._names(asked, opened, offset, size)
        records = _dots(opened.known, offset) + p.dirents(names, DOT_COOKIES)
        fit = _fitting(records, size)
        _keep_rest(opened, offset, names, len(records) - len(names), fit)
        return b"".join(records[:fit])

    @answering
    def do_readdirplus(self, asked: Asked) -> Steps[Body]:
        """The kernel tries this at the start of every listing, and goes on with it once somebody asks for attributes.

        So the start of what does not fit into one reply is names alone: most who list a large directory want no more.
        """
        fh, offset, size, _, _, _ = asked.args
        opened = self._opens.get(fh)
        names: Sequence[Name] = yield self._names(asked, opened, offset, size // 3)
        dots = _dots(opened.known, offset)
        records = [_NO_ENTRY + record for record in dots + p.dirents(names, DOT_COOKIES)]
        fit = _fitting(records, size)
        _keep_rest(opened, offset, names, len(dots), fit)
        if dots and fit < len(records):
            return b"".join(records[:fit])
        for at in range(len(dots), fit):
            name = names[at - len(dots)][3].decode("utf-8", "surrogateescape")
            records[at] = self._plus(asked, opened.known, name) + records[at][PLUS:]
        return b"".join(records[:fit])

    def _names(self, asked: Asked, opened: Opened, offset: int, size: int) -> Answer[Sequence[Name]]:
        if opened.rest and opened.at == offset:
            return opened.rest
        # Names take at most a third more here than in getdents64(2), whose measure `count` is.
        return self._session.names(asked.call, opened.fid, max(0, offset - DOT_COOKIES), size * 3 // 4)

    def _plus(self, asked: Asked, parent: Known, name: str) -> bytes:
        """What LOOKUP would have said, if that costs nothing: node 0 tells the kernel to ask when it wants to know.

        So does a file with no timeout: the kernel would look it up again at once, and a state file would be rendered
        for nothing.
        """
        try:
            walked = self._session.walk(asked.call, parent.fid, (name,))
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


def _dots(known: Known, offset: int) -> list[bytes]:
    """The records of `.` and `..` that come after an offset."""
    if offset >= DOT_COOKIES:
        return []
    file, way = known.fid.file, known.fid.way
    above = way.dir if way is not None else file
    return [p.dirent(file.ino, 1, DT_DIR, b"."), p.dirent(above.ino, 2, DT_DIR, b"..")][offset:]


def _fitting(records: Sequence[bytes], size: int) -> int:
    """How many of them fit."""
    fit = len(records)
    total = sum(map(len, records))
    while total > size:
        fit -= 1
        total -= len(records[fit])
    return fit


def _keep_rest(opened: Opened, offset: int, names: Sequence[Name], dots: int, fit: int) -> None:
    """What did not fit is the answer to the next question, if that continues this one."""
    used = max(0, fit - dots)
    opened.rest = names[used:]
    opened.at = names[used - 1][1] + DOT_COOKIES if used else max(offset, DOT_COOKIES)


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
