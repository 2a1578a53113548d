"""What a request means, on any wire: fids, rights, modes, offsets, limits, order on streams, cancellation.

No bytes are packed here, no tag is known here but as a key, and no tree is special.  Edges turn their requests into the
methods below and their errors back; every reply leaves through `serve`.  Operations take the Call of whoever asks and
the Fid they name, and give an Answer: a value, or a coroutine when the tree has to wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Generator, Sequence
from types import CoroutineType
from typing import Any, Generic, TypeVar, cast

import msgspec
import trio

from . import checks as c
from .answer import Answer, answering, drop, settle, then
from .fid import Fid, FidTable, Way
from .file import Call, Dir, File, Handle, want_of
from .node import Node
from .observe import SESSION_ATTACH, SESSION_END
from .principal import NOBODY, Principal
from .proto import errors as E
from .proto.types import (
    DMAPPEND,
    OAPPEND,
    ORCLOSE,
    OREAD,
    OTRUNC,
    OWRITE,
    X_WANT,
    Entry,
    Lock,
    Qid,
    Stat,
)
from .requests import Gate, Requests, Sink, answer_for
from .session_tree import TreeOps

M = TypeVar("M")
N = TypeVar("N")
T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]

S_IFLNK = 0o120000
S_IFDIR = 0o040000


class SessionStatistics(msgspec.Struct, frozen=True):
    """One session, as /dev/stats/sessions shows it."""

    id: int
    edge: str
    peer: str
    fids: int
    requests: int


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


class Session(TreeOps, Generic[M]):
    """One client's conversation.  It outlives its connection: `sink` may be swapped under a running request.

    `nursery` is where requests run; `end` must be awaited before that nursery is closed.
    """

    def __init__(self, node: Node, root: Dir, nursery: trio.Nursery, sink: Sink[M], *, edge: str = "", peer: str = "",
                 requests_max: int | None = None) -> None:  # fmt: skip
        self.node = node
        self.limits = node.limits
        self.root = root
        self.id = node.new_session_id()
        self.edge = edge
        self.peer = peer
        self.who = NOBODY
        self.fids = FidTable(self.limits.fids_max, node.take_fids)
        self.requests: Requests[M] = Requests(
            nursery, sink, node.bug, self._finished, requests_max or self.limits.requests_max
        )
        self.xattr_bytes = 0
        self._nursery = nursery
        self._now_ns = node.env.now_ns
        self._op = node.events.op
        self._live = node.live
        self._live["sessions"] += 1
        node.sessions.add(self)
        node.events.emit(SESSION_ATTACH, self.id, 0, 0, {"edge": edge, "peer": peer})

    # -- the one way in and the one way out

    def serve(self, key: int, op: int, handler: Callable[[N], Answer[M]], message: N, seconds: float) -> None:
        """Run one request and queue its reply on the sink: now if the tree answers now, else when its task ends.

        `seconds` bounds the slow case; math.inf for what may park.  Never blocks, never raises.  Errors are told to
        `node.on_error` under the name in `who`, which the edge keeps true.
        """
        start_ns = self._now_ns()
        requests = self.requests
        try:
            answer = handler(message)
        except Exception as e:
            self._refused(key, op, start_ns, e)
            return
        if type(answer) is CoroutineType:
            self._live["requests"] += 1
            requests.start(key, op, self.who, start_ns, answer, seconds)
            return
        self._op(op, self._now_ns() - start_ns, False)
        requests.sink.reply(key, cast(M, answer))

    def _refused(self, key: int, op: int, start_ns: int, e: Exception) -> None:
        # A frame of its own: an error kept by a frame of its own traceback would keep files and handles alive.
        error = answer_for(e) or self.node.bug(e)
        self.requests.sink.refuse(key, error)
        self._op(op, self._now_ns() - start_ns, True)
        self.node.refused(self.who, op, error)

    def _finished(self, op: int, who: Principal, start_ns: int, failed: bool, error: E.FileError | None) -> None:
        self._live["requests"] -= 1
        self._op(op, self._now_ns() - start_ns, failed)
        if error is not None:
            self.node.refused(who, op, error)

    def statistics(self) -> SessionStatistics:
        return SessionStatistics(self.id, self.edge, self.peer, len(self.fids), len(self.requests))

    def reset(self) -> Answer[None]:
        """Tversion in mid session: everything stops without a reply, every fid is clunked with its side effects."""
        running = len(self.requests)
        self._live["requests"] -= running
        self.requests.abandon()
        fids = self.fids.clear()
        if not fids and not running:
            return None
        return self._clunk_all(fids)

    async def end(self) -> None:
        """Hang-up.  Shielded: handles are closed and locks dropped whatever cancelled us."""
        with trio.CancelScope(shield=True):
            await settle(self.reset())
        self._live["sessions"] -= 1
        self.node.sessions.discard(self)
        self.node.events.emit(SESSION_END, self.id)

    async def _clunk_all(self, fids: list[Fid]) -> None:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self.limits.close_seconds_max):
                await self.requests.drain()
            for fid in fids:
                self.discard_xattr(fid)  # only a clunk that the client asked for commits one
                try:
                    await settle(self.clunk(fid))
                except E.FileError:
                    pass  # nobody is left to read it
                except Exception as e:
                    self.node.bug(e)

    # -- attach, walk, open

    def attach(self, call: Call, aname: str) -> Answer[Fid]:
        """The fid of the tree that `aname` selects."""
        c.need(call, c.TRAVERSE)
        return then(self.root.attach(call, aname), lambda root: Fid(root, None, call, root))

    def clone(self, fid: Fid) -> Fid:
        """Another fid on the same file, not open (walk(5) with no names)."""
        if fid.xattr is not None or fid.is_auth:
            raise E.Ebadusefid("not a file")
        return Fid(fid.file, fid.way, fid.call, fid.root)

    def walk(self, call: Call, fid: Fid, names: Sequence[str]) -> Answer[tuple[list[Qid], Fid | None]]:
        """The qids walked to, and the new fid if every name was found; raises if the first was not (walk(5))."""
        if not names:
            return [], self.clone(fid)
        if len(names) == 1 and names[0] != "..":
            return self._step(call, fid, names[0])
        return self._walk(call, fid, names)

    def _step(self, call: Call, fid: Fid, name: str) -> Answer[tuple[list[Qid], Fid | None]]:
        """_walk of one name, which nearly all walks of a FUSE mount are, without its generator."""
        if fid.xattr is not None or fid.is_auth:
            raise E.Ebadusefid("not a file")
        c.need(call, c.TRAVERSE)
        here = c.as_dir(fid.file)
        c.check_name(name)
        way = fid.way
        if way is not None and way.depth >= self.limits.path_depth_max:
            raise E.Enametoolong(f"more than {self.limits.path_depth_max} levels")
        allowed = here.access(call, X_WANT)
        found = here.walk(call, name) if type(allowed) is not CoroutineType else _allowed(allowed, call, here, name)
        if type(found) is CoroutineType:
            later = cast(Answer[File], found)
            return then(later, lambda file: ([file.qid], Fid(file, Way(way, here, name), fid.call, fid.root)))
        file = cast(File, found)
        return [file.qid], Fid(file, Way(way, here, name), fid.call, fid.root)

    @answering
    def _walk(self, call: Call, fid: Fid, names: Sequence[str]) -> Steps[tuple[list[Qid], Fid | None]]:
        if fid.xattr is not None or fid.is_auth:
            raise E.Ebadusefid("not a file")
        c.need(call, c.TRAVERSE)
        file, way = fid.file, fid.way
        qids: list[Qid] = []
        try:
            for name in names:
                here = c.as_dir(file)
                if name == "..":
                    yield here.access(call, X_WANT)
                    if way is not None:
                        file, way = way.dir, way.up
                else:
                    c.check_name(name)
                    if way is not None and way.depth >= self.limits.path_depth_max:
                        raise E.Enametoolong(f"more than {self.limits.path_depth_max} levels")
                    yield here.access(call, X_WANT)
                    file = yield here.walk(call, name)
                    way = Way(way, here, name)
                qids.append(file.qid)
        except E.FileError:
            if not qids:
                raise
            return qids, None
        return qids, Fid(file, way, fid.call, fid.root)

    @answering
    def open(self, call: Call, fid: Fid, omode: int) -> Steps[tuple[Qid, int]]:
        """(qid, iounit).  All checks are made here, once; what changes later does not close it (open(5))."""
        if fid.handle is not None:
            raise E.Ebadusefid("already open")
        if fid.xattr is not None or fid.is_auth:
            raise E.Ebadusefid("not a file")
        file = fid.file
        c.need(call, c.rights_of(omode))
        if isinstance(file, Dir):
            if omode & 3 != OREAD or omode & OTRUNC:
                raise E.Eisdir
        elif file.kind == S_IFLNK:
            raise E.Eloop("a symbolic link cannot be opened")
        if omode & ORCLOSE:
            yield self._may_rclose(call, fid)
        yield file.access(call, want_of(omode))
        if file.flags & DMAPPEND:
            omode = omode & ~OTRUNC | OAPPEND
        handle: Handle = yield file.open(call, omode)
        self.opened(fid, handle, omode)
        return file.qid, handle.iounit

    def _may_rclose(self, call: Call, fid: Fid) -> Answer[None]:
        if fid.way is None:
            raise E.Eperm("cannot remove the attach point")
        return self.taking(call, fid.way.dir, fid.way.name, c.REMOVE)

    def opened(self, fid: Fid, handle: Handle, omode: int) -> None:
        """The fid is open from now on."""
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
            return self._in_order(call, fid, False, lambda: handle.read(call, offset, count))
        if fid.file.kind == S_IFDIR:
            raise E.Eisdir
        answer = handle.read(call, offset, count)
        return self._bounded(fid, answer) if type(answer) is CoroutineType else answer

    def read_into(self, call: Call, fid: Fid, offset: int, buffer: memoryview) -> Answer[int]:
        """As read, for positional handles, into the edge's buffer.  The edge keeps it until the answer is there."""
        handle = self._reader(fid, offset, len(buffer))
        if fid.file.kind == S_IFDIR:
            raise E.Eisdir
        answer = handle.read_into(call, offset, buffer)
        return self._bounded(fid, answer) if type(answer) is CoroutineType else answer

    def write(self, call: Call, fid: Fid, offset: int, data: bytes | memoryview) -> Answer[int]:
        """The bytes taken.  Append handles ignore the offset; streams and appends keep the order of arrival."""
        handle = fid.handle
        if handle is None:
            if fid.xattr is not None:
                return self.write_xattr(fid, offset, data)
            raise E.Enotopen("open it first")
        if fid.omode & 3 in (OREAD, 3):
            raise E.Ebadusefid("not open for writing")
        if handle.stream:
            return self._in_order(call, fid, True, lambda: handle.write(call, offset, data))
        c.check_range(offset, len(data))
        if fid.omode & OAPPEND:
            return self._in_order(call, fid, True, lambda: handle.write(call, offset, data))
        answer = handle.write(call, offset, data)
        return self._bounded(fid, answer) if type(answer) is CoroutineType else answer

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

    # -- metadata

    def stat(self, call: Call, fid: Fid) -> Answer[Stat]:
        if fid.is_auth:
            raise E.Ebadusefid("an auth fid")
        if not call.principal.rights & c.GETATTR:
            raise E.Eperm
        return fid.file.stat(call)

    def readlink(self, call: Call, fid: Fid) -> Answer[str]:
        c.need(call, c.READ)
        return fid.file.readlink(call)


def _never() -> Any:
    raise AssertionError("the answer was already there")


async def _allowed(allowed: Coroutine[Any, Any, None], call: Call, here: Dir, name: str) -> File:
    await allowed
    return await settle(here.walk(call, name))


PARKS = math.inf

__all__ = ["PARKS", "File", "Session", "SessionStatistics"]
