"""Flows on fids and content in each dialect: attach, walk, clunk, open, read, write.  Written once for both drivers.

A flow that fails or is abandoned leaves no fid behind: what it made it clunks on its way out, without waiting.
client_naming.py and client_meta.py stand on this module.  No tree, no renumbering of qids: that is client_tree.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from ninep.edges import client_checks as checks
from ninep.edges.client_core import Core
from ninep.edges.client_pending import Flow, Pending
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto import messages as M
from ninep.proto.codec import In, Message
from ninep.proto.records import StatRecord
from ninep.proto.types import (
    MAXWELEM,
    NOFID,
    NONUNAME,
    OAPPEND,
    OCEXEC,
    OEXCL,
    OEXEC,
    ONONBLOCK,
    OSYNC,
    OTRUNC,
    Qid,
    Stat,
)

R = TypeVar("R", bound=Message)

DOTL: Final = In.DOTL
DOTU: Final = In.DOTU
P2000_OMODE: Final = 0x03 | OTRUNC | 0x40  # what fits the mode byte of open(5), ORCLOSE included


class Opened:
    """An open fid and what the server said of it."""

    __slots__ = ("fid", "iounit", "qid")

    def __init__(self, fid: int, qid: Qid, iounit: int) -> None:
        self.fid = fid
        self.qid = qid
        self.iounit = iounit


def as_reply(reply: Message, kind: type[R]) -> R:
    """The reply as its class: the core has checked its number."""
    assert isinstance(reply, kind)
    return reply


# -- fids


def attach(core: Core, aname: str, n_uname: int = NONUNAME) -> Flow[tuple[int, Qid]]:
    """The root of the tree that aname selects, as the core's uname."""
    fid = core.new_fid()
    reply = yield core.submit(M.Tattach(fid, NOFID, core.uname, aname, n_uname), makes=fid)
    return fid, as_reply(reply, M.Rattach).qid


def walk(core: Core, fid: int, names: Sequence[str]) -> Flow[tuple[int, list[Qid]]]:
    """A new fid for what is found down the names, and the qid of each; no names: a copy of fid.

    More than MAXWELEM names travel in several Twalks.  The error is the one of the name that failed: when a walk stops
    short, the server is asked again for the names that exist, and then for the next one alone.
    """
    at = fid
    qids: list[Qid] = []
    plan: list[int] = []
    try:
        while True:
            leg = names[len(qids) : len(qids) + (plan.pop(0) if plan else MAXWELEM)]
            new, found = yield from _walk_leg(core, at, leg)
            if len(found) < len(leg):
                if not found:
                    raise E.Enonexist(leg[0])
                plan = [len(found), 1]
                continue
            if at != fid:
                core.clunk_soon(at)
            at = new
            qids += found
            if len(qids) == len(names):
                return at, qids
    except BaseException as e:
        if at != fid:
            core.clunk_soon(at)
        raise about(e, names[len(qids)] if names else "")


def _walk_leg(core: Core, fid: int, names: Sequence[str]) -> Flow[tuple[int, Sequence[Qid]]]:
    """One Twalk, always to a new fid: in place, servers disagree about where a walk that stops short leaves it."""
    new = core.new_fid()
    pending = core.submit(M.Twalk(fid, new, tuple(names)), makes=new)
    try:
        found = as_reply((yield pending), M.Rwalk).wqid
    except BaseException:
        core.discard(pending)
        raise
    if len(found) < len(names):
        core.clunk_soon(new)  # nothing was made (walk(5)), but diod keeps the fid; Linux clunks it too
    return new, found


def about(e: BaseException, name: str) -> BaseException:
    """An error that names its object, if the server's did not."""
    if isinstance(e, E.FileError) and not e.about and name and type(e) is not E.Eerrno:
        return type(e)(name)
    return e


def clunk(core: Core, fid: int) -> Flow[None]:
    """Forget fid; an error is what the server had to say at the close, the fid is gone all the same."""
    yield core.submit(M.Tclunk(fid), frees=fid)


# -- open


def open_fid(core: Core, fid: int, omode: int) -> Flow[Opened]:
    """Open fid itself.  A fid that cannot be opened stays as it was."""
    if core.mark is DOTL:
        reply = yield core.submit(L.Tlopen(fid, l_flags(omode)))
        opened = as_reply(reply, L.Rlopen)
        return Opened(fid, opened.qid, opened.iounit)
    reply = yield core.submit(M.Topen(fid, omode & P2000_OMODE))
    ropen = as_reply(reply, M.Ropen)
    return Opened(fid, ropen.qid, ropen.iounit)


def open_stat(core: Core, fid: int, omode: int) -> Flow[tuple[Opened, Stat | None]]:
    """As open_fid, with the file's Stat asked for in the same flight; None if the server refuses that."""
    asked = core.submit(L.Tgetattr(fid, L.GETATTR_BASIC) if core.mark is DOTL else M.Tstat(fid))
    try:
        opened = yield from open_fid(core, fid, omode)
        try:
            reply = yield asked
            if isinstance(reply, M.Rstat):
                return opened, checks.stat_of_record(reply.stat, core.mark is DOTU)
            return opened, checks.stat_of_getattr(as_reply(reply, L.Rgetattr))
        except E.FileError:
            return opened, None
    finally:
        drop(core, (asked,))


def open_walked(core: Core, fid: int, names: Sequence[str], omode: int) -> Flow[Opened]:
    """Walk to a new fid and open that one: fid itself stays unopened."""
    new, _ = yield from walk(core, fid, names)
    try:
        return (yield from open_fid(core, new, omode))
    except BaseException:
        core.clunk_soon(new)
        raise


def l_flags(omode: int) -> int:
    """Tlopen's flags for an open mode; execution is a read that the server cannot tell from another."""
    flags = L.L_RDONLY if omode & 3 == OEXEC else omode & 3
    for bit, flag in (
        (OTRUNC, L.L_TRUNC),
        (OAPPEND, L.L_APPEND),
        (OEXCL, L.L_EXCL),
        (OSYNC, L.L_SYNC),
        (ONONBLOCK, L.L_NONBLOCK),
        (OCEXEC, 0),
    ):
        if omode & bit:
            flags |= flag
    return flags | L.L_LARGEFILE


# -- read and write


def read(core: Core, fid: int, offset: int, count: int) -> Flow[bytes]:
    """At most count bytes; shorter only where the server stopped short.

    The first request goes alone: only once it came back full are the others sent, all at once, so that a read of a
    stream never asks for more than one message.
    """
    most = core.io_bytes_max
    first = min(count, most)
    reply = yield core.submit(M.Tread(fid, offset, first))
    data = as_reply(reply, M.Rread).data
    if count <= most or len(data) < first:
        return bytes(data)
    parts = [bytes(data)]
    asked = [
        core.submit(M.Tread(fid, offset + at, min(most, count - at))) for at in range(most, count, most)
    ]  # fmt: skip
    try:
        for i, pending in enumerate(asked):
            reply = yield pending
            data = as_reply(reply, M.Rread).data
            parts.append(bytes(data))
            if len(data) < min(most, count - most * (i + 1)):
                break
    finally:
        drop(core, asked)
    return b"".join(parts)


def drop(core: Core, asked: Sequence[Pending]) -> None:
    """Flush what is still in flight of these; nobody waits for it."""
    for pending in asked:
        if not pending.is_done:
            core.discard(pending)


def write(core: Core, fid: int, offset: int, data: bytes | memoryview, iounit: int = 0) -> Flow[int]:
    """The bytes taken: all, unless the server took less and then refused.  Split at the iounit, sent one by one.

    One by one because a write may be a message (a ctl file), and messages keep their order.
    """
    view = memoryview(data)
    most = min(iounit, core.io_bytes_max) if iounit else core.io_bytes_max
    done = 0
    while True:
        part = view[done : done + most]
        try:
            reply = yield core.submit(M.Twrite(fid, offset + done, part))
        except E.FileError:
            if done:
                return done
            raise
        done += as_reply(reply, M.Rwrite).count
        if done >= len(view):
            return done


def fsync(core: Core, fid: int, datasync: bool) -> Flow[None]:
    """Make the content durable; `datasync` spares the metadata where the dialect can say so."""
    if core.mark is DOTL:
        yield core.submit(L.Tfsync(fid, int(datasync)))
    else:
        yield core.submit(M.Twstat(fid, StatRecord()))  # all "don't touch": make it durable (stat(5))
