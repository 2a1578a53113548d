"""Byte-range locks over 9P2000.L.  The older dialects have none: Eunsupported.

The server knows an owner by (client_id, proc_id).  Ours are made from the owner that the edge names, with a prefix that
no other client of the server has, so that two processes behind one connection never share a lock.  The proc_id is that
of this process, always: an unlock need not come from the process that locked, nor say which it was (FUSE does not).
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

from ninep.edges.client_core import Core
from ninep.edges.client_ops import DOTL, as_reply
from ninep.edges.client_pending import Flow
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto.types import F_RDLCK, F_UNLCK, F_WRLCK, OFFSET_MAX, Lock

_PREFIX: Final = f"ninep-{os.urandom(8).hex()}"


def lock(core: Core, fid: int, wanted: Lock) -> Flow[bool]:
    """Take, change or drop a lock; False if somebody else holds it.  Enolck if the server cannot."""
    _needs_dotl(core)
    start, length = _range(wanted)
    reply = yield core.submit(
        L.Tlock(fid, wanted.type, 0, start, length, os.getpid(), _client_id(wanted.owner, wanted.flock))
    )
    match as_reply(reply, L.Rlock).status:
        case L.LOCK_SUCCESS:
            return True
        case L.LOCK_BLOCKED | L.LOCK_GRACE:
            return False
    raise E.Enolck


def getlock(core: Core, fid: int, wanted: Lock) -> Flow[Lock | None]:
    """A lock that would refuse this one, or None."""
    _needs_dotl(core)
    start, length = _range(wanted)
    client_id = _client_id(wanted.owner, wanted.flock)
    reply = yield core.submit(L.Tgetlock(fid, wanted.type, start, length, os.getpid(), client_id))
    r = as_reply(reply, L.Rgetlock)
    if r.type == F_UNLCK:
        return None
    if r.type not in (F_RDLCK, F_WRLCK) or r.start > OFFSET_MAX:
        raise E.Eproto("lock")
    end = min(r.start + r.length - 1, OFFSET_MAX) if r.length else OFFSET_MAX
    return Lock(r.type, r.start, end, (r.client_id, r.proc_id), r.proc_id, r.client_id, wanted.flock)


def unlock_owner(core: Core, fid: int, owner: object, flock: bool) -> Flow[None]:
    """Drop every lock of an owner on this file."""
    yield from lock(core, fid, Lock(F_UNLCK, 0, OFFSET_MAX, owner, flock=flock))


def _range(wanted: Lock) -> tuple[int, int]:
    return wanted.start, 0 if wanted.end >= OFFSET_MAX else wanted.end - wanted.start + 1


def _client_id(owner: object, flock: bool) -> str:
    digest = hashlib.blake2b(repr(owner).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return f"{_PREFIX}-{digest}{'f' if flock else ''}"


def _needs_dotl(core: Core) -> None:
    if core.mark is not DOTL:
        raise E.Eunsupported(f"lock over {core.dialect.name}")
