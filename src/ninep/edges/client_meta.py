"""Flows on what is known of a file beside its content, in each dialect: stat, wstat, statfs, readlink, attributes.

What a server says is checked and clamped (client_checks.py) before anybody sees it.  Knows nothing of names in
directories (client_naming.py).
"""

from __future__ import annotations

from typing import Final

from ninep.edges import client_checks as checks
from ninep.edges.client_core import Core
from ninep.edges.client_ops import DOTL, DOTU, as_reply, clunk, read, walk, write
from ninep.edges.client_pending import Flow
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto import messages as M
from ninep.proto.records import UNTOUCHED_QID, StatRecord
from ninep.proto.types import (
    DMSETGID,
    DMSETUID,
    DMSETVTX,
    DMSYMLINK,
    NOW,
    UNKNOWN_ID,
    XATTR_REPLACE,
    Change,
    Stat,
    StatFs,
    perm_of,
)

# 9P2000 owners are unknown here, and Linux shows that as 65534: who gives a copy the owner it has (cp -p, tar) asks so.
_NOBODY: Final = frozenset({None, UNKNOWN_ID, 65534})

# -- metadata


def stat(core: Core, fid: int) -> Flow[Stat]:
    """The Stat of fid, clamped (client_checks); set-id bits as the server has them."""
    if core.mark is DOTL:
        reply = yield core.submit(L.Tgetattr(fid, L.GETATTR_ALL))
        return checks.stat_of_getattr(as_reply(reply, L.Rgetattr))
    return checks.stat_of_record((yield from record(core, fid)), core.mark is DOTU)


def record(core: Core, fid: int) -> Flow[StatRecord]:
    """The stat record of fid, for the dialects that have one."""
    reply = yield core.submit(M.Tstat(fid))
    return as_reply(reply, M.Rstat).stat


def readlink(core: Core, fid: int) -> Flow[str]:
    """A symlink's target, verbatim.  Ebadarg for anything else."""
    bytes_max = core.limits.symlink_bytes_max
    if core.mark is DOTL:
        reply = yield core.submit(L.Treadlink(fid))
        return checks.link_target(as_reply(reply, L.Rreadlink).target, bytes_max)
    r = yield from record(core, fid)
    if core.mark is not DOTU or not r.perm & DMSYMLINK:
        raise E.Ebadarg("not a symbolic link")
    return checks.link_target(r.extension, bytes_max)


def wstat(core: Core, fid: int, change: Change, now_ns: int) -> Flow[None]:
    """Make the change.  `now_ns` is what NOW becomes where the dialect cannot say "the server's clock"."""
    if core.mark is DOTL:
        request = _setattr(fid, change)
        if request.valid:
            yield core.submit(request)
        return
    dotu = core.mark is DOTU
    if not dotu and not {change.uid, change.gid} <= _NOBODY:
        raise E.Eunsupported("numeric owner over 9P2000")
    word = 0xFFFFFFFF
    if change.perm is not None:
        old = yield from record(core, fid)
        word = _perm_word(old.perm, change.perm, dotu)
    wanted = StatRecord(
        qid=UNTOUCHED_QID,
        perm=word,
        # 9P2000 has no way to set atime (stat(5)); .u servers take it, because Linux sends it.
        atime=_seconds(change.atime_ns, now_ns) if dotu else 0xFFFFFFFF,
        mtime=_seconds(change.mtime_ns, now_ns),
        length=0xFFFFFFFFFFFFFFFF if change.size is None else change.size,
        n_uid=UNKNOWN_ID if change.uid is None or not dotu else change.uid,
        n_gid=UNKNOWN_ID if change.gid is None or not dotu else change.gid,
    )
    if not wanted.is_untouched:  # else it would ask for an fsync
        yield core.submit(M.Twstat(fid, wanted))


def _perm_word(old: int, perm: int, dotu: bool) -> int:
    set_bits = DMSETUID | DMSETGID | DMSETVTX if dotu else 0
    return old & ~(0o777 | set_bits) | perm & 0o777 | (perm_of(perm & 0o7000, 0, dotu=True) if dotu else 0)


def _seconds(time_ns: int | None, now_ns: int) -> int:
    if time_ns is None:
        return 0xFFFFFFFF
    return min(max((now_ns if time_ns == NOW else time_ns) // 10**9, 0), 0xFFFFFFFE)


def _setattr(fid: int, change: Change) -> L.Tsetattr:
    valid = 0
    seconds = {"atime": (0, 0), "mtime": (0, 0)}
    for value, bit in (
        (change.perm, L.SETATTR_MODE),
        (change.uid, L.SETATTR_UID),
        (change.gid, L.SETATTR_GID),
        (change.size, L.SETATTR_SIZE),
    ):
        if value is not None:
            valid |= bit
    for name, time, bit, set_bit in (
        ("atime", change.atime_ns, L.SETATTR_ATIME, L.SETATTR_ATIME_SET),
        ("mtime", change.mtime_ns, L.SETATTR_MTIME, L.SETATTR_MTIME_SET),
    ):
        if time is not None:
            valid |= bit
            if time != NOW:
                valid |= set_bit
                seconds[name] = divmod(max(time, 0), 10**9)
    if change.touch_ctime:
        valid |= L.SETATTR_CTIME
    return L.Tsetattr(
        fid,
        valid,
        change.perm or 0,
        change.uid or 0,
        change.gid or 0,
        change.size or 0,
        *seconds["atime"],
        *seconds["mtime"],
    )


def statfs(core: Core, fid: int) -> Flow[StatFs]:
    """The file system behind fid; the older dialects do not tell, and get the defaults."""
    if core.mark is not DOTL:
        return StatFs()
    r = as_reply((yield core.submit(L.Tstatfs(fid))), L.Rstatfs)
    return StatFs(r.bsize, r.blocks, r.bfree, r.bavail, r.files, r.ffree, r.fsid, min(r.namelen, 255))


# -- extended attributes


def getxattr(core: Core, fid: int, name: str) -> Flow[bytes]:
    """An attribute's value; with the empty name, the NUL-terminated list of names.  E2big past Limits."""
    _needs_dotl(core, "xattr")
    new = core.new_fid()
    pending = core.submit(L.Txattrwalk(fid, new, name), makes=new)
    try:
        reply = yield pending
    except BaseException:
        core.discard(pending)
        raise
    try:
        size = as_reply(reply, L.Rxattrwalk).size
        if size > core.limits.xattr_bytes_max:
            raise E.E2big(f"{size} bytes")
        value = b""
        while len(value) < size:
            more = yield from read(core, new, len(value), size - len(value))
            if not more:
                break
            value += more
        return value
    finally:
        core.clunk_soon(new)


def setxattr(core: Core, fid: int, name: str, value: bytes, flags: int) -> Flow[None]:
    """Create or replace an attribute; the refusal may come as late as the clunk."""
    _needs_dotl(core, "xattr")
    if len(value) > core.limits.xattr_bytes_max:
        raise E.E2big(name)
    new, _ = yield from walk(core, fid, ())
    try:
        yield core.submit(L.Txattrcreate(new, name, len(value), flags))
        if value:
            taken = yield from write(core, new, 0, value)
            if taken < len(value):
                raise E.Eio(f"xattr cut short: {name}")
    except BaseException:
        core.clunk_soon(new)
        raise
    yield from clunk(core, new)


def removexattr(core: Core, fid: int, name: str) -> Flow[None]:
    """As Linux says it: a replacement by nothing."""
    yield from setxattr(core, fid, name, b"", XATTR_REPLACE)


def _needs_dotl(core: Core, what: str) -> None:
    if core.mark is not DOTL:
        raise E.Eunsupported(f"{what} over {core.dialect.name}")
