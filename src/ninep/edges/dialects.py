"""The messages that all 9P dialects share, turned into Session calls.  Subclasses add a dialect's own.

One adapter serves one connection in one agreed dialect.  A handler takes a message and gives an Answer of the reply;
the table OF says, per message, which fids it names and which it makes or changes (architecture A9b), and how long a
slow answer may take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

from ninep.answer import Answer, answering, settle, then
from ninep.edges.policy import AuthFile, Peer, Policy
from ninep.fid import Fid
from ninep.file import Call, Handle
from ninep.observe import register_op
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.codec import Dialect, Message
from ninep.proto.types import IOHDRSZ, MAXWELEM, NOFID, ORCLOSE, ORDWR, Qid
from ninep.session import PARKS, Session, Steps

Handler = Callable[[Any], Answer[Message]]
H = TypeVar("H", bound=Callable[..., Any])

# Reads longer than this go straight into a pooled buffer: below it, one more copy is cheaper than the bookkeeping.
INTO_BYTES_MIN = 16 * 1024


class Lent(Message, frozen=True):
    """An Rread whose payload already lies at byte 11 of a buffer of the connection's."""

    buffer: bytearray
    count: int


class Row(NamedTuple):
    """One message of an adapter.  `names`: the fids it uses.  `changes`: the one that it makes, changes or frees."""

    op: int
    handler: Handler
    names: tuple[str, ...]
    changes: str
    parks: bool


def handles(message: type[Message], *, changes: str = "", parks: bool = False) -> Callable[[H], H]:
    """Mark a method as the handler of one message.  Fields whose name ends in `fid` are the fids that it names."""

    def mark(method: H) -> H:
        names = tuple(f.name for f in message.fields if f.name.endswith("fid") and f.name != "afid")
        method.__dict__["row"] = (message, names, changes, parks)
        return method

    return mark


class Adapter:
    """What one connection's requests mean.  `lend` gives a buffer of at least so many bytes, back after sending."""

    dialect: ClassVar[Dialect]

    def __init__(
        self, session: Session[Message], policy: Policy, peer: Peer, msize: int, lend: Callable[[int], bytearray]
    ) -> None:
        self.session = session
        self.fids = session.fids
        self.policy = policy
        self.peer = peer
        self.count_max = msize - IOHDRSZ
        self.lend = lend
        self.owed_bytes = 0  # what positional reads that have to wait may still bring
        self.rows: dict[int, Row] = {}
        for name in dir(type(self)):
            row = getattr(getattr(type(self), name), "__dict__", {}).get("row")
            if row is not None:
                message, names, changes, parks = row
                if message in self.dialect.messages.values():
                    self.rows[message.number] = Row(
                        register_op(message.__name__), getattr(self, name), names, changes, parks
                    )

    def seconds(self, row: Row) -> float:
        return PARKS if row.parks else self.session.limits.call_seconds_max

    # -- identity

    @handles(m.Tauth, changes="afid")
    def auth(self, t: m.Tauth) -> Answer[Message]:
        authenticator = self.policy.authenticator
        if authenticator is None:
            raise E.Enoauth
        self.fids.check_free(t.afid)
        handle = authenticator.start(self.peer, t.uname, t.aname)
        fid = Fid(AuthFile(), None, Call(edge="9p"), (t.uname, t.aname, t.n_uname))
        fid.is_auth = True
        self.fids.put(t.afid, fid)
        self.session.opened(fid, handle, ORDWR)
        return m.Rauth(fid.file.qid)

    @handles(m.Tattach, changes="fid")
    def attach(self, t: m.Tattach) -> Answer[Message]:
        self.fids.check_free(t.fid)
        if t.afid == NOFID:
            who = self.policy.principal(self.peer, t.uname, t.n_uname)
        else:
            who = self._proven(self.fids.get(t.afid), t)
        self.session.who = who
        call = Call(who, self.peer.pid, group=getattr(self.session.root, "group", ""), edge="9p")
        return then(self.session.attach(call, t.aname), lambda fid: self._attached(t.fid, fid))

    def _proven(self, afid: Fid, t: m.Tattach) -> Any:
        """The identity that an afid has proven: complete, and for this very uname and aname (protocol.md A1)."""
        if not afid.is_auth:
            raise E.Ebadusefid("not an auth fid")
        if afid.root != (t.uname, t.aname, t.n_uname):
            raise E.Eperm("authenticated as another user or for another tree")
        who = getattr(afid.handle, "principal", None)
        if who is None:
            raise E.Eperm("authentication is not finished")
        return who

    def _attached(self, number: int, fid: Fid) -> Message:
        self.fids.put(number, fid)
        return m.Rattach(fid.file.qid)

    # -- walking

    @handles(m.Twalk, changes="newfid")
    def walk(self, t: m.Twalk) -> Answer[Message]:
        fids = self.fids
        fid = fids.get(t.fid)
        if t.newfid == t.fid:
            if fid.is_open:
                raise E.Ebadusefid("walk of an open fid onto itself")
        else:
            fids.check_free(t.newfid)
        if len(t.wname) > MAXWELEM:
            raise E.Ebadarg(f"{len(t.wname)} names, at most {MAXWELEM}")
        answer = self.session.walk(fid.call, fid, t.wname)
        if type(answer) is tuple:
            return self._walked(t, answer)
        return then(answer, lambda found: self._walked(t, found))

    def _walked(self, t: m.Twalk, found: tuple[list[Qid], Fid | None]) -> Message:
        qids, new = found
        if new is not None:
            if t.newfid == t.fid:
                self.fids.replace(t.fid, new)
            else:
                self.fids.put(t.newfid, new)
        return m.Rwalk(tuple(qids))

    # -- input and output

    @handles(m.Tread, parks=True)
    def read(self, t: m.Tread) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        count = t.count if t.count < self.count_max else self.count_max
        handle = fid.handle
        if handle is None or handle.stream:
            data = self.session.read(fid.call, fid, t.offset, count)
            return m.Rread(data) if type(data) is bytes else then(data, m.Rread)
        if count >= INTO_BYTES_MIN:
            if self.owed_bytes > self.session.limits.queued_bytes_max:
                count = INTO_BYTES_MIN - 1  # a short read: a thousand that wait must not hold a thousand times msize
            elif type(handle).read_into is not Handle.read_into:
                buffer = self.lend(count + m.READ_HEADER_BYTES)
                view = memoryview(buffer)[m.READ_HEADER_BYTES : m.READ_HEADER_BYTES + count]
                got = self.session.read_into(fid.call, fid, t.offset, view)
                if type(got) is int:
                    return Lent(buffer, got)
                return self._owed(count, then(got, lambda n: Lent(buffer, n)))
        data = self.session.read(fid.call, fid, t.offset, count)
        if type(data) is bytes:
            return m.Rread(data)
        return self._owed(count, then(data, m.Rread))

    def _owed(self, count: int, answer: Answer[Message]) -> Answer[Message]:
        """A read that waits, and until it ends counts against what may be queued for the peer."""
        self.owed_bytes += count
        return self._paid(count, answer)

    async def _paid(self, count: int, answer: Answer[Message]) -> Message:
        try:
            return await settle(answer)
        finally:
            self.owed_bytes -= count

    @handles(m.Twrite, parks=True)
    def write(self, t: m.Twrite) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        taken = self.session.write(fid.call, fid, t.offset, t.data)
        if type(taken) is int:
            return m.Rwrite(taken)
        return then(taken, m.Rwrite)

    # -- ending

    @handles(m.Tclunk, changes="fid", parks=True)
    def clunk(self, t: m.Tclunk) -> Answer[Message]:
        return then(self.session.clunk(self.fids.pop(t.fid)), lambda _: m.Rclunk())

    @handles(m.Tremove, changes="fid")
    def remove(self, t: m.Tremove) -> Answer[Message]:
        return self._remove(self.fids.pop(t.fid))

    @answering
    def _remove(self, fid: Fid) -> Steps[Message]:
        fid.omode &= ~ORCLOSE
        try:
            yield self.session.remove(fid.call, fid)
        finally:
            self.session.discard_xattr(fid)  # an attribute is committed by a clunk alone
            yield self.session.clunk(fid)
        return m.Rremove()
