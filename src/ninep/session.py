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
from .answer import Answer, answering, settle, then
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
    X_WANT,
    Qid,
    Stat,
)
from .requests import FAILURES, Requests, Sink, answer_for
from .session_io import IoOps

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


class Session(IoOps, Generic[M]):
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
        except FAILURES as e:
            self._refused(key, op, start_ns, e)
            return
        if type(answer) is CoroutineType:
            self._live["requests"] += 1
            requests.start(key, op, self.who, start_ns, answer, seconds)
            return
        self._op(op, self._now_ns() - start_ns, False)
        requests.sink.reply(key, cast(M, answer))

    def _refused(self, key: int, op: int, start_ns: int, e: BaseException) -> None:
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
        self.node.events.emit(SESSION_END, self.id, 0, 0, {"user": self.who.name})

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
                except FAILURES as e:
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


async def _allowed(allowed: Coroutine[Any, Any, None], call: Call, here: Dir, name: str) -> File:
    await allowed
    return await settle(here.walk(call, name))


PARKS = math.inf

__all__ = ["PARKS", "File", "Session", "SessionStatistics"]
