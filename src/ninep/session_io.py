"""The part of Session that deals with open files: reading and writing, order on streams, what parks, what a clunk ends.

Positional I/O ends by itself and is left to end; stream I/O may park for ever, keeps its order, and is cancelled by a
flush, a clunk or the end of the session (docs/adr/0002).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from types import CoroutineType
from typing import Any, Generic, TypeVar, cast

import trio

from . import checks as c
from .answer import Answer, answering, drop, settle, then
from .fid import Fid
from .file import Call, Dir, Handle
from .node import Node
from .proto import errors as E
from .proto.types import OAPPEND, ORCLOSE, OREAD, OWRITE, Entry, Lock, Name
from .requests import Gate
from .session_tree import TreeOps

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]
S_IFDIR = 0o040000


class Parked(Generic[T]):
    """One blocked operation: what it waits for, how a clunk cancels it, and who waits for it."""

    __slots__ = ("answer", "ask", "before", "call", "fid", "gate", "scope")

    def __init__(
        self, call: Call, fid: Fid, before: Gate | None, answer: Answer[T] | None, ask: Callable[[], Answer[T]]
    ) -> None:
        self.call = call
        self.fid = fid
        self.before = before
        self.answer = answer
        self.ask = ask
        self.scope = trio.CancelScope()
        self.gate = Gate()


class IoOps(TreeOps):
    """What Session does with open fids."""

    node: Node
    _live: dict[str, int]

    def opened(self, fid: Fid, handle: Handle, omode: int) -> None:
        """The fid is open from now on.  TypeError for what a tree's open gave that is no handle: its bug."""
        if not isinstance(handle, Handle):
            raise TypeError(f"open gave {type(handle).__name__}, not a Handle")
        fid.handle = handle
        fid.omode = omode
        self._live["handles"] += 1

    # -- reading and writing

    def _reader(self, fid: Fid, offset: int, count: int) -> Handle:
        handle = fid.handle
        if handle is None:
            raise E.Enotopen("open it first")
        if fid.omode & 3 == OWRITE:
            raise E.Ebadusefid("not open for reading")
        c.check_range(offset, count)
        return handle

    def read(self, call: Call, fid: Fid, offset: int, count: int) -> Answer[bytes]:
        """At most count bytes, b"" at the end.  On a stream it may park for ever: a flush or a clunk ends it."""
        if fid.xattr is not None:
            return self.read_xattr(fid, offset, count)
        handle = self._reader(fid, offset, count)
        if handle.stream:
            answer = self._in_order(call, fid, False, lambda: handle.read(call, offset, count))
        else:
            if fid.file.kind == S_IFDIR:
                raise E.Eisdir
            answer = handle.read(call, offset, count)
            if type(answer) is CoroutineType:
                answer = self._bounded(fid, answer)
        if type(answer) is bytes and len(answer) <= count:
            return answer
        return then(answer, lambda data: _is_read(data, count))

    def read_into(self, call: Call, fid: Fid, offset: int, buffer: memoryview) -> Answer[int]:
        """As read, for positional handles, into the edge's buffer.  The edge keeps it until the answer is there."""
        handle = self._reader(fid, offset, len(buffer))
        if fid.file.kind == S_IFDIR:
            raise E.Eisdir
        answer = handle.read_into(call, offset, buffer)
        if type(answer) is CoroutineType:
            answer = self._bounded(fid, answer)
        elif type(answer) is int and 0 <= answer <= len(buffer):
            return answer
        return then(answer, lambda got: _is_count(got, len(buffer), "read_into"))

    def write(self, call: Call, fid: Fid, offset: int, data: bytes | memoryview) -> Answer[int]:
        """The bytes taken.  Append handles ignore the offset; streams and appends keep the order of arrival."""
        handle = fid.handle
        if handle is None:
            if fid.xattr is not None:
                return self.write_xattr(fid, offset, data)
            raise E.Enotopen("open it first")
        if fid.omode & 3 in (OREAD, 3):
            raise E.Ebadusefid("not open for writing")
        size = len(data)
        if handle.stream:
            answer = self._in_order(call, fid, True, lambda: handle.write(call, offset, data))
        else:
            c.check_range(offset, size)
            if fid.omode & OAPPEND:
                answer = self._in_order(call, fid, True, lambda: handle.write(call, offset, data))
            else:
                answer = handle.write(call, offset, data)
                if type(answer) is CoroutineType:
                    answer = self._bounded(fid, answer)
        if type(answer) is int and 0 <= answer <= size:
            return answer
        return then(answer, lambda taken: _is_count(taken, size, "write"))

    def _bounded(self, fid: Fid, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Positional I/O that has to wait: it ends by itself, so a clunk lets it end, and a deadline sees to that.

        Counted from now on, not from when its task first runs: a clunk in the same segment must see it.
        """
        fid.running += 1
        return self._bound(fid, work)

    async def _bound(self, fid: Fid, work: Coroutine[Any, Any, T]) -> T:
        try:
            with trio.move_on_after(self.limits.call_seconds_max):
                return await work
            raise E.Etimedout
        finally:
            await self._io_ended(fid)

    def _in_order(self, call: Call, fid: Fid, writing: bool, ask: Callable[[], Answer[T]]) -> Answer[T]:
        """Stream I/O after what came earlier in its direction (A9b b); at once when nothing did and it can be."""
        before = fid.last_write if writing else fid.last_read
        if before is not None and before.is_open:
            before = None
        answer: Answer[T] | None = None
        if before is None:
            answer = ask()
            if type(answer) is not CoroutineType:
                return answer
        parked = self._park(call, fid, before, answer, ask)
        if writing:
            fid.last_write = parked.gate
        else:
            fid.last_read = parked.gate
        return self._parked(parked)

    def _park(
        self, call: Call, fid: Fid, before: Gate | None, answer: Answer[T] | None, ask: Callable[[], Answer[T]]
    ) -> Parked[T]:
        """Account one blocked operation.  Raises Etoomany past what the principal may block."""
        try:
            self.node.park(call.principal)
        except E.FileError:
            drop(answer)
            raise
        parked = Parked(call, fid, before, answer, ask)
        if fid.parked is None:
            fid.parked = set()
        fid.parked.add(parked.scope)
        fid.running += 1
        return parked

    async def _parked(self, parked: Parked[T]) -> T:
        try:
            with parked.scope:
                if parked.before is not None:
                    await parked.before.wait()
                return await settle(parked.ask() if parked.answer is None else parked.answer)
            raise E.Einterrupted  # the fid was clunked
        finally:
            fid = parked.fid
            self.node.unpark(parked.call.principal)
            if fid.parked is not None:
                fid.parked.discard(parked.scope)
            parked.gate.open()
            await self._io_ended(fid)

    async def _io_ended(self, fid: Fid) -> None:
        """The last I/O of a clunked fid closes it."""
        fid.running -= 1
        if fid.running or not fid.close_on_end:
            return
        fid.close_on_end = False
        with trio.CancelScope(shield=True):
            try:
                await settle(self._close(fid))
            except E.FileError:
                pass  # its clunk has been answered
        if fid.ended is not None:
            fid.ended.open()

    def entries(self, call: Call, fid: Fid, cookie: int, count: int) -> Answer[Sequence[Entry]]:
        """Entries after a cookie, without `.` and `..`; empty at the end."""
        handle = fid.handle
        if handle is None:
            raise E.Enotopen("open it first")
        if not isinstance(fid.file, Dir):
            raise E.Enotdir
        c.need(call, c.ENUM)
        answer = handle.entries(call, cookie, count)
        return self._bounded(fid, answer) if type(answer) is CoroutineType else answer

    def names(self, call: Call, fid: Fid, cookie: int, count: int) -> Answer[Sequence[Name]]:
        """As entries, for an edge that needs no qid; `count` as Handle.names has it."""
        handle = fid.handle
        if handle is None:
            raise E.Enotopen("open it first")
        if not isinstance(fid.file, Dir):
            raise E.Enotdir
        c.need(call, c.ENUM)
        answer = handle.names(call, cookie, count)
        return self._bounded(fid, answer) if type(answer) is CoroutineType else answer

    # -- the rest of an open file

    def _handle(self, fid: Fid) -> Handle:
        if fid.handle is None:
            raise E.Enotopen("open it first")
        return fid.handle

    def _writer(self, call: Call, fid: Fid) -> Handle:
        handle = self._handle(fid)
        if fid.omode & 3 in (OREAD, 3):
            raise E.Ebadusefid("not open for writing")
        c.need(call, c.WRITE)
        return handle

    def fsync(self, call: Call, fid: Fid, datasync: bool) -> Answer[None]:
        handle = fid.handle
        return handle.fsync(call, datasync) if handle is not None else None

    def truncate(self, call: Call, fid: Fid, size: int) -> Answer[None]:
        """ftruncate(2) through an open handle."""
        c.check_range(size, 0)
        return self._writer(call, fid).truncate(call, size)

    def allocate(self, call: Call, fid: Fid, mode: int, offset: int, length: int) -> Answer[None]:
        c.check_range(offset, length)
        return self._writer(call, fid).allocate(call, mode, offset, length)

    def seek(self, call: Call, fid: Fid, offset: int, whence: int) -> Answer[int]:
        c.check_range(offset, 0)
        return self._handle(fid).seek(call, offset, whence)

    def copy_range(self, call: Call, fid: Fid, offset: int, to: Fid, to_offset: int, count: int) -> Answer[int]:
        c.check_range(offset, count)
        c.check_range(to_offset, count)
        source = self._reader(fid, offset, count)
        return source.copy_range(call, offset, self._writer(call, to), to_offset, count)

    def lock(self, call: Call, fid: Fid, lock: Lock, wait: bool) -> Answer[bool]:
        """True: granted.  False: held by somebody else.  With `wait` it may park; a clunk or a flush ends that."""
        handle = self._handle(fid)
        c.need(call, c.LOCK)
        if lock.type == 1 and not lock.flock and fid.omode & 3 == OREAD:
            raise E.Enotopen("a write lock needs a file open for writing")
        if fid.lock_owners is None:
            fid.lock_owners = set()
        fid.lock_owners.add((lock.owner, lock.flock))
        answer = handle.lock(call, lock, wait)
        if type(answer) is not CoroutineType:
            return answer
        return self._parked(self._park(call, fid, None, answer, _never))

    def getlock(self, call: Call, fid: Fid, lock: Lock) -> Answer[Lock | None]:
        c.need(call, c.LOCK)
        return self._handle(fid).getlock(call, lock)

    def ready(self, call: Call, fid: Fid, events: int, notify: Callable[[], None] | None) -> int:
        return self._handle(fid).ready(call, events, notify)

    def flush_handle(self, call: Call, fid: Fid) -> Answer[None]:
        """close(2) of one of the descriptors of an open (FUSE FLUSH)."""
        return self._handle(fid).flush(call)

    # -- clunk

    def clunk(self, fid: Fid) -> Answer[None]:
        """The fid is gone.  Parked stream I/O is cancelled; other I/O may end in its own time, and closes it then."""
        if fid.xattr is not None:
            return self.commit_xattr(fid)
        if fid.handle is None:
            return None
        if not fid.running:
            return self._close(fid)
        fid.close_on_end = True
        if not fid.parked:
            return None
        fid.ended = Gate()
        for scope in list(fid.parked):
            scope.cancel()
        return self._ended(fid.ended)

    async def _ended(self, gate: Gate) -> None:
        with trio.move_on_after(self.limits.close_seconds_max, shield=True):
            await gate.wait()

    @answering
    def _close(self, fid: Fid) -> Steps[None]:
        handle = fid.handle
        if handle is None:
            return
        fid.handle = None
        self._live["handles"] -= 1
        for owner, flock in cast("set[tuple[object, bool]]", fid.lock_owners or ()):
            yield self._closing(handle.unlock_owner(fid.call, owner, flock))
        try:
            yield self._closing(handle.close(fid.call))
        finally:
            if fid.omode & ORCLOSE and fid.way is not None:
                yield self._closing(fid.way.dir.remove(fid.call, fid.way.name, None, fid.file))

    def _closing(self, answer: Answer[None]) -> Answer[None]:
        if type(answer) is CoroutineType:
            return self._close_soon(answer)
        return None

    async def _close_soon(self, work: Answer[None]) -> None:
        with trio.move_on_after(self.limits.close_seconds_max, shield=True):
            return await settle(work)
        raise E.Etimedout("close")


def _is_read(data: bytes | bytearray | memoryview, count: int) -> bytes:
    """What a read of the tree gave, if it is bytes and no more than asked; else the tree's bug."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"read gave {type(data).__name__}, not bytes")
    if len(data) > count:
        raise ValueError(f"read gave {len(data)} bytes, asked for {count}")
    return bytes(data)


def _is_count(count: int, most: int, name: str) -> int:
    if type(count) is not int or not 0 <= count <= most:
        raise ValueError(f"{name} gave {count!r}, of {most} bytes")
    return count


def _never() -> Any:
    raise AssertionError("the answer was already there")
