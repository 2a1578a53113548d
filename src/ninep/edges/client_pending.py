"""A request of the client's that is in flight, the flows that wait for it, and what an answer to it may be.

An operation is a generator, a `Flow`: it submits requests to the core and yields each `Pending` that it must wait for.
`yield` gives the reply or raises the FileError; several requests may be submitted before the first is waited for.
Knows one request and its answer at a time: the table of them is client_core.py.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeVar

from ninep.proto import errors as E
from ninep.proto.codec import Message
from ninep.proto.dotl import Rlerror, Rreaddir, Treaddir
from ninep.proto.messages import Rerror, Rread, Rwalk, Rwrite, Tread, Twalk, Twrite
from ninep.proto.types import NOFID

T = TypeVar("T")

ERRORS: Final = (Rlerror.number, Rerror.number)  # the answers that any request may have


class Pending:
    """One request in flight.  `is_done` once the reply, the error, or the Rflush that replaces both has come.

    `deadline` is on the core's clock, None where the server may take for ever (a read may be of a stream).
    `waiter` is the driver's.
    """

    __slots__ = ("deadline", "error", "fid_freed", "fid_made", "flush", "is_done", "reply", "request", "tag", "waiter")

    def __init__(self, tag: int, request: Message, deadline: float | None) -> None:
        self.tag = tag
        self.request = request
        self.deadline = deadline
        self.reply: Message | None = None
        self.error: E.FileError | None = None
        self.is_done = False
        self.flush: Pending | None = None
        self.fid_made = NOFID  # the fid that exists if this succeeds
        self.fid_freed = NOFID  # the fid that is gone whatever the answer is
        self.waiter: object | None = None

    def result(self) -> Message:
        """The reply, once done.  Raises the FileError that came instead."""
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        return self.reply


Flow = Generator[Pending, Message, T]


def error_of(reply: Message) -> E.FileError:
    """The FileError that one of ERRORS carries."""
    if isinstance(reply, Rlerror):
        return E.from_errno(reply.ecode)
    assert isinstance(reply, Rerror)
    return E.from_ename(reply.ename, reply.errno)


def checked(request: Message, reply: Message) -> Message:
    """The reply, its data copied out of the buffer, if it is one that the request allows (SEC-62)."""
    match reply:
        case Rread(data):
            assert isinstance(request, Tread)
            if len(data) > request.count:
                raise E.ProtocolError(f"{len(data)} bytes for a read of {request.count}")
            return Rread(bytes(data))
        case Rwrite(count):
            assert isinstance(request, Twrite)
            if count > len(request.data) or (count == 0 and len(request.data)):
                raise E.ProtocolError(f"{count} bytes taken of a write of {len(request.data)}")
        case Rwalk(wqid):
            assert isinstance(request, Twalk)
            if len(wqid) > len(request.wname):
                raise E.ProtocolError(f"{len(wqid)} qids for {len(request.wname)} names")
        case Rreaddir(data):
            assert isinstance(request, Treaddir)
            if len(data) > request.count:
                raise E.ProtocolError(f"{len(data)} bytes for a readdir of {request.count}")
            return Rreaddir(bytes(data))
    return reply
