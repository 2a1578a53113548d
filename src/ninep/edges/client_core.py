"""The client's half of one 9P connection, sans-IO: tags, fids, frames, flushes, and no trust in the server.

Bytes come in through `space` and `received`, bytes go out through `outgoing` and `sent`; a driver moves them
(blocking_run.py, client_mux.py).  Operations are flows (client_pending.py), written once in client_ops.py,
client_naming.py and client_meta.py for both drivers.

What a server may not do ends the session with ProtocolError, and every request in flight with Eproto: a reply to a tag
that was never sent, or twice; a reply of another type; a frame past msize; and whatever client_pending.checked refuses.
No clock, no socket and no trio here.
"""

from __future__ import annotations

import enum
import math
import os
from collections import deque
from collections.abc import Callable
from typing import Final

from ninep.edges.client_pending import ERRORS, Flow, Pending, checked, error_of
from ninep.limits import DEFAULT, Limits
from ninep.proto import errors as E
from ninep.proto.codec import Dialect, In, Message, Undecodable
from ninep.proto.framing import Framer
from ninep.proto.messages import (
    Rversion,
    Tclunk,
    Tflush,
    Tread,
    Tversion,
    Twrite,
    write_header,
)
from ninep.proto.types import IOHDRSZ, NOFID, NOTAG
from ninep.proto.version import BY_NAME, MSIZE_BYTES_MIN, UNKNOWN

COPY_BYTES_MAX: Final = 16 << 10  # a payload up to this size joins its header; a larger one goes from its place
BUFFERS_MAX: Final = 512  # buffers of one sendmsg; IOV_MAX is 1024
FIRST_REPLY_BYTES_MAX: Final = 512  # an Rversion, or the error that a confused server sends instead
REQUESTS_MAX: Final = 960  # in flight at once; a server of ours refuses past Limits.requests_max, 1024
CLUNKS_MAX: Final = 64  # of them, clunks that nobody waits for


class State(enum.Enum):
    """What the connection can be asked for."""

    NEW = enum.auto()  # only Tversion
    READY = enum.auto()
    CLOSED = enum.auto()


class Core:
    """One connection's bookkeeping.  Not thread-safe; `drop_fid_later` alone may be called from anywhere."""

    def __init__(
        self, clock: Callable[[], float], limits: Limits = DEFAULT, *, uname: str = "none", msize_bytes: int = 0
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.uname = uname
        self.state = State.NEW
        self.dialect: Dialect = BY_NAME["9P2000"]
        self.msize_bytes = max(MSIZE_BYTES_MIN, min(msize_bytes or limits.msize_bytes_max, limits.msize_bytes_max))
        self.names_dropped = 0  # names of the server's that are no names (SEC-61)
        self.why_closed = ""
        self.bounded = 0  # tags in use by requests that the server must answer in time: all but reads
        self.first_deadline = math.inf  # no request's deadline is earlier; `deadline` makes it exact
        self.replied = 0  # replies taken in all
        self._pending: dict[int, Pending] = {}
        self._tags: list[int] = []
        self._tag_next = 0
        self._fids: list[int] = []
        self._fid_next = 0
        self.fids_open = 0
        self._dropped: deque[int] = deque()
        self._clunks = 0
        self._out: deque[bytes | memoryview] = deque()
        self._out_at = 0  # bytes of the first that are sent
        self._framer = Framer(FIRST_REPLY_BYTES_MAX)
        self._finished: list[Pending] = []
        self._lacks: set[type[Message]] = set()  # requests that this server answered with EOPNOTSUPP

    # -- what flows use

    @property
    def mark(self) -> In:
        return self.dialect.mark

    @property
    def io_bytes_max(self) -> int:
        """The most data that one read or write carries."""
        return self.msize_bytes - IOHDRSZ

    @property
    def in_flight(self) -> int:
        """Requests that a flow may be waiting for; clunks that nobody waits for are not counted."""
        return len(self._pending) - self._clunks

    def new_fid(self) -> int:
        """A fid that the server does not know.  Raises Enofids past Limits.fids_max."""
        if self.fids_open >= self.limits.fids_max:
            raise E.Enofids
        self.fids_open += 1
        if self._fids:
            return self._fids.pop()
        self._fid_next += 1
        return self._fid_next - 1

    def free_fid(self, fid: int) -> None:
        """The server no longer knows fid, or never did."""
        self.fids_open -= 1
        self._fids.append(fid)

    def submit(self, request: Message, *, makes: int = NOFID, frees: int = NOFID) -> Pending:
        """Queue a request; the Pending to yield.  `makes` and `frees` are the fids whose life depends on the answer.

        Raises Enotconn once the session is closed, and Etoomany if REQUESTS_MAX are in flight.
        """
        try:
            if self.state is not State.READY:
                raise self.gone()
            if len(self._pending) >= REQUESTS_MAX and type(request) is not Tclunk:
                raise E.Etoomany
            return self._submit(request, makes, frees)
        except BaseException:
            if makes != NOFID:
                self.free_fid(makes)
            raise

    def lacks(self, request: type[Message]) -> bool:
        """Whether this server has said that it does not have this request: it is not asked again."""
        return request in self._lacks

    def note_lack(self, request: type[Message]) -> None:
        self._lacks.add(request)

    def clunk_soon(self, fid: int) -> None:
        """Clunk a fid that nobody uses any more, without waiting for the answer."""
        self._dropped.append(fid)
        self._clunk_dropped()

    def drop_fid_later(self, fid: int) -> None:
        """As clunk_soon, from a finaliser: any thread, any moment.  Sent with the next request or reply."""
        self._dropped.append(fid)

    def abandon(self, pending: Pending) -> Pending | None:
        """Nobody waits for this request any more: send Tflush.  The Pending of the Tflush; None if there is no need.

        A reply that still wins is taken: a fid that it made is clunked (flush(5)).
        """
        if pending.is_done or self.state is not State.READY:
            return None
        if type(pending.request) is Tclunk:  # it happens whatever anybody says
            if pending.waiter is not _CLUNKER:
                pending.waiter = _NOBODY
            pending.deadline = None
            return None
        if pending.flush is None:
            pending.deadline = None  # the Tflush has one
            pending.flush = self._submit(Tflush(pending.tag), NOFID, NOFID)
        return pending.flush

    def discard(self, pending: Pending) -> None:
        """Abandon, and undo what it may have made."""
        if pending.is_done:
            self._undo(pending)
        else:
            pending.waiter = _NOBODY
            self.abandon(pending)

    def gone(self) -> E.FileError:
        """Why nothing can be asked any more."""
        return E.Enotconn(self.why_closed)

    # -- what drivers use

    def version(self, name: str) -> Pending:
        """Queue a Tversion: first of all, and again only after an answer of `unknown`."""
        assert self.state is State.NEW
        assert not self._pending
        pending = Pending(NOTAG, Tversion(self.msize_bytes, name), self.clock() + self.limits.connect_seconds_max)
        self._pending[NOTAG] = pending
        self.first_deadline = self.deadline()
        self._out.append(self.dialect.encode(NOTAG, pending.request))
        return pending

    def agreed(self, msize_bytes: int) -> None:
        """The version is settled: no frame of either side may be larger than this."""
        self.msize_bytes = self._framer.limit = msize_bytes
        self.state = State.READY

    def outgoing(self) -> list[bytes | memoryview]:
        """The bytes to send now, in order.  Report with `sent` how many went out."""
        if self._dropped:
            self._clunk_dropped()
        if not self._out:
            return []
        out = self._out
        buffers = [out[i] for i in range(min(len(out), BUFFERS_MAX))] if len(out) > 1 else [out[0]]
        if self._out_at:
            buffers[0] = memoryview(buffers[0])[self._out_at :]
        return buffers

    def sent(self, count: int) -> None:
        out = self._out
        count += self._out_at
        while out and count >= len(out[0]):
            count -= len(out.popleft())
        self._out_at = count

    @property
    def has_output(self) -> bool:
        return bool(self._out or self._dropped)

    def space(self) -> memoryview:
        """Where the next received bytes belong.  Never empty."""
        return self._framer.writable()

    def received(self, count: int) -> list[Pending]:
        """Take `count` bytes that are now in `space`; the requests that they finish, in order.

        Raises ProtocolError: the driver answers it with `close`.
        """
        done: list[Pending] = []
        self._framer.received(count)
        view = self._framer.view
        try:
            for start, end in self._framer.frames():
                self._take(view, start, end, done)
        except E.ProtocolError:
            self._finished = done  # answered before the server went wrong: `close` reports them
            raise
        if self._dropped:
            self._clunk_dropped()
        return done

    def close(self, why: str, error: Callable[[str], E.FileError] = E.Ehungup) -> list[Pending]:
        """End the session: every request in flight fails with `error`, every later one with Enotconn.  Idempotent.

        The requests that are done now, for the driver to wake whoever waits.
        """
        if self.state is State.CLOSED:
            return []
        self.state = State.CLOSED
        self.why_closed = why
        failed = [p for p in self._pending.values() if not p.is_done]
        for pending in failed:
            pending.error = error(why)
            pending.is_done = True
        failed = self._finished + failed
        self._finished = []
        self._pending.clear()
        self.bounded = self._clunks = 0
        self._out.clear()
        self._dropped.clear()
        self._out_at = 0
        return failed

    def expired(self) -> list[Pending]:
        """The requests whose deadline has passed."""
        now = self.clock()
        return [p for p in self._pending.values() if p.deadline is not None and p.deadline <= now and not p.is_done]

    def deadline(self) -> float:
        """The first deadline of all; infinity if no request has one."""
        all_of_them = (p.deadline for p in self._pending.values() if p.deadline is not None)
        self.first_deadline = min(all_of_them, default=math.inf)
        return self.first_deadline

    # -- inside

    def _submit(self, request: Message, makes: int, frees: int) -> Pending:
        kind = type(request)
        deadline = None if kind is Tread else self.clock() + self.limits.reply_seconds_max
        tag = self._new_tag()
        pending = Pending(tag, request, deadline)
        pending.fid_made = makes
        pending.fid_freed = frees
        if kind is Twrite and len(request.data) > COPY_BYTES_MAX:  # type: ignore[attr-defined]  # kind is its type
            self._queue_write(tag, request)  # type: ignore[arg-type]  # likewise
        else:
            try:
                frame = self.dialect.encode(tag, request)
            except BaseException:
                self._tags.append(tag)
                raise
            if len(frame) > self.msize_bytes:
                self._tags.append(tag)
                raise E.Elarge(f"{kind.__name__} of {len(frame)} bytes")
            self._out.append(frame)
        self._pending[tag] = pending
        if deadline is not None:
            self.bounded += 1
            if deadline < self.first_deadline:
                self.first_deadline = deadline
        return pending

    def _queue_write(self, tag: int, request: Twrite) -> None:
        data = memoryview(request.data)
        assert len(data) <= self.io_bytes_max
        self._out.append(write_header(tag, request.fid, request.offset, len(data)))
        self._out.append(data)

    def _new_tag(self) -> int:
        if self._tags:
            return self._tags.pop()
        assert self._tag_next < NOTAG  # REQUESTS_MAX and CLUNKS_MAX keep far away from it
        self._tag_next += 1
        return self._tag_next - 1

    def _clunk_dropped(self) -> None:
        while self._dropped and self._clunks < CLUNKS_MAX and self.state is State.READY:
            fid = self._dropped.popleft()
            self._clunks += 1
            self._submit(Tclunk(fid), NOFID, fid).waiter = _CLUNKER

    def _take(self, view: memoryview, at: int, end: int, done: list[Pending]) -> None:
        number = view[at + 4]
        tag = view[at + 5] | view[at + 6] << 8
        pending = self._pending.get(tag)
        if pending is None or pending.is_done:
            raise E.ProtocolError(f"reply to tag {tag}, which nothing waits for")
        decoder = self.dialect.decode_r.get(number)
        if decoder is None or (number != pending.request.number + 1 and number not in ERRORS):
            raise E.ProtocolError(f"reply of type {number} to {type(pending.request).__name__}")
        try:
            _, reply = decoder(view, at, end)
        except Undecodable as e:
            raise E.ProtocolError(str(e.error))
        self.replied += 1
        if number in ERRORS:
            pending.error = error_of(reply)
        else:
            pending.reply = checked(pending.request, reply)
        self._finish(pending, done)

    def _finish(self, pending: Pending, done: list[Pending]) -> None:
        """The answer is here: settle fids and tags, and whatever a Tflush was for."""
        pending.is_done = True
        if pending.fid_freed != NOFID:
            self.free_fid(pending.fid_freed)
        if pending.error is not None and pending.fid_made != NOFID:
            self.free_fid(pending.fid_made)
            pending.fid_made = NOFID
        if pending.flush is None:
            self._release(pending)  # else the tag stays taken until the Rflush (flush(5))
        if pending.waiter is not _NOBODY and pending.waiter is not _CLUNKER:
            done.append(pending)
        elif type(pending.request) is not Tflush:
            self._undo(pending)
        if type(pending.request) is Tflush:
            self._flushed(pending, done)

    def _release(self, pending: Pending) -> None:
        self._pending.pop(pending.tag, None)
        if pending.tag != NOTAG:
            self._tags.append(pending.tag)
            self.bounded -= type(pending.request) is not Tread
        if pending.waiter is _CLUNKER:
            self._clunks -= 1

    def _flushed(self, flush: Pending, done: list[Pending]) -> None:
        """Rflush (an error in its place is a known mistake of servers, and means the same)."""
        assert isinstance(flush.request, Tflush)
        old = self._pending.get(flush.request.oldtag)
        if old is None or old.flush is not flush:
            return
        if not old.is_done:
            old.is_done = True
            old.error = E.Einterrupted()
            if old.fid_made != NOFID:
                # The server must not have made it (flush(5)); one that did is told to forget it.
                self._dropped.append(old.fid_made)
                old.fid_made = NOFID
            if old.fid_freed != NOFID:
                self.free_fid(old.fid_freed)
            if old.waiter is not _NOBODY:
                done.append(old)
        self._release(old)

    def _undo(self, pending: Pending) -> None:
        """A reply came for a request that nobody wants any more: forget the fid that it made."""
        if pending.fid_made != NOFID and pending.error is None:
            self._dropped.append(pending.fid_made)
            pending.fid_made = NOFID


_NOBODY: Final = object()  # the waiter of a request that nobody waits for
_CLUNKER: Final = object()  # and of a clunk that only frees a fid


# -- how a session begins


def own_name() -> str:
    """The caller's login name, from its real uid; the number in digits if it has no name."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


OFFERS = ("9P2000.L", "9P2000.u", "9P2000")
OFFERS_FOR_TEXT = ("9P2000.u", "9P2000.L", "9P2000")  # .L has numbers for errors, .u has the words too


def negotiate(core: Core, dialect: str = "auto", *, wants_text: bool = False) -> Flow[None]:
    """Agree on a dialect, the best first; msize may only shrink (version(5)).

    With `wants_text`, one whose errors have words is better than one that can do more.
    Raises Eunsupported if the server does not speak what was asked for, ProtocolError if it breaks the rules.
    """
    offers = (OFFERS_FOR_TEXT if wants_text else OFFERS) if dialect == "auto" else (dialect,)
    refused: E.FileError | None = None
    answer = ""
    for offer in offers:
        pending = core.version(offer)
        try:
            reply = yield pending
        except E.FileError as e:
            if core.state is State.CLOSED or not pending.is_done:
                raise
            refused = e  # a known mistake: an error instead of `unknown`
            continue
        assert isinstance(reply, Rversion)
        if not MSIZE_BYTES_MIN <= reply.msize <= core.msize_bytes and reply.version != UNKNOWN:
            raise E.ProtocolError(f"msize {reply.msize}, offered {core.msize_bytes}")
        answer = reply.version
        if answer in BY_NAME and (answer == offer or dialect == "auto"):
            core.dialect = BY_NAME[answer]
            core.agreed(reply.msize)
            return
        if answer not in BY_NAME and answer != UNKNOWN:
            raise E.ProtocolError(f"version {answer[:20]!r} for {offer}")
    if refused is not None:
        raise refused
    raise E.Eunsupported(f"dialect {dialect}: the server answers {answer!r}")
