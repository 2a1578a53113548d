"""What each file operation is in each dialect, as flows over a client core.  Written once for both drivers.

A flow that fails or is abandoned leaves no fid behind: what it made it clunks on its way out, without waiting.
The names here are the manual's: walk, open, create, remove, stat, wstat.  No tree, no qid renumbering: remote.py.
"""

from __future__ import annotations

import os
import stat as _s
from collections.abc import Sequence
from typing import Final, TypeVar

from ninep.edges import client_checks as checks
from ninep.edges.client_core import Core, Flow, Pending
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto import messages as M
from ninep.proto.codec import In, Message
from ninep.proto.records import UNTOUCHED_QID, StatRecord
from ninep.proto.types import (
    DMAPPEND,
    DMDEVICE,
    DMDIR,
    DMEXCL,
    DMLINK,
    DMNAMEDPIPE,
    DMSETGID,
    DMSETUID,
    DMSETVTX,
    DMSOCKET,
    DMSYMLINK,
    DMTMP,
    MAXWELEM,
    NOFID,
    NONUNAME,
    NOW,
    OAPPEND,
    OCEXEC,
    OEXCL,
    OEXEC,
    ONONBLOCK,
    OREAD,
    OSYNC,
    OTRUNC,
    QTDIR,
    QTSYMLINK,
    UNKNOWN_ID,
    XATTR_REPLACE,
    Change,
    Qid,
    Stat,
    StatFs,
    perm_of,
)

R = TypeVar("R", bound=Message)

DOTL: Final = In.DOTL
DOTU: Final = In.DOTU
GID_NONE: Final = 0xFFFFFFFF
_P2000_OMODE: Final = 0x03 | OTRUNC | 0x40  # what fits the mode byte of open(5), ORCLOSE included


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
        raise _about(e, names[len(qids)] if names else "")


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


def _about(e: BaseException, name: str) -> BaseException:
    """An error that names its object, if the server's did not."""
    if isinstance(e, E.FileError) and not e.about and name and type(e) is not E.Eerrno:
        return type(e)(name)
    return e


def clunk(core: Core, fid: int) -> Flow[None]:
    """Forget fid; an error is what the server had to say at the close, the fid is gone all the same."""
    yield core.submit(M.Tclunk(fid), frees=fid)


# -- open and create


def open_fid(core: Core, fid: int, omode: int) -> Flow[Opened]:
    """Open fid itself.  A fid that cannot be opened stays as it was."""
    if core.mark is DOTL:
        reply = yield core.submit(L.Tlopen(fid, l_flags(omode)))
        opened = as_reply(reply, L.Rlopen)
        return Opened(fid, opened.qid, opened.iounit)
    reply = yield core.submit(M.Topen(fid, omode & _P2000_OMODE))
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


def create(core: Core, dirfid: int, name: str, perm: int, omode: int, gid: int = GID_NONE) -> Flow[Opened]:
    """A new regular file in the directory, open on a new fid.  Eexist if the name is taken, whatever the omode."""
    new, _ = yield from walk(core, dirfid, ())
    try:
        if core.mark is DOTL:
            flags = l_flags(omode & ~OTRUNC) | L.L_CREATE | L.L_EXCL
            reply = yield core.submit(L.Tlcreate(new, name, flags, perm & 0o7777, gid))
            made = as_reply(reply, L.Rlcreate)
            return Opened(new, made.qid, made.iounit)
        word = perm & 0o777 | perm & (DMAPPEND | DMEXCL | DMTMP)
        if core.mark is DOTU:
            word |= perm_of(perm & 0o7000, 0, dotu=True)
        reply = yield core.submit(M.Tcreate(new, name, word, omode & _P2000_OMODE))
        rcreate = as_reply(reply, M.Rcreate)
        return Opened(new, rcreate.qid, rcreate.iounit)
    except BaseException as e:
        core.clunk_soon(new)
        raise _about(e, name)


def _create_special(core: Core, dirfid: int, name: str, perm: int, extension: str = "") -> Flow[Qid]:
    """Tcreate of something that is not a file to be written: the fid is only a by-product."""
    new, _ = yield from walk(core, dirfid, ())
    try:
        reply = yield core.submit(M.Tcreate(new, name, perm, OREAD, extension))
    except BaseException as e:
        raise _about(e, name)
    finally:
        core.clunk_soon(new)
    return as_reply(reply, M.Rcreate).qid


def mkdir(core: Core, dirfid: int, name: str, perm: int, gid: int = GID_NONE) -> Flow[Qid]:
    if core.mark is DOTL:
        reply = yield from _named(core, L.Tmkdir(dirfid, name, perm & 0o7777, gid), name)
        return as_reply(reply, L.Rmkdir).qid
    return (yield from _create_special(core, dirfid, name, DMDIR | perm & 0o777))


def symlink(core: Core, dirfid: int, name: str, target: str, gid: int = GID_NONE) -> Flow[Qid]:
    """A symbolic link; 9P2000 has none: Eunsupported."""
    if core.mark is DOTL:
        reply = yield from _named(core, L.Tsymlink(dirfid, name, target, gid), name)
        return as_reply(reply, L.Rsymlink).qid
    _needs_dotu(core, "symlink")
    return (yield from _create_special(core, dirfid, name, DMSYMLINK | 0o777, target))


def link(core: Core, dirfid: int, fid: int, name: str) -> Flow[None]:
    """A further name for the file of fid."""
    if core.mark is DOTL:
        yield from _named(core, L.Tlink(dirfid, fid, name), name)
        return
    _needs_dotu(core, "link")
    yield from _create_special(core, dirfid, name, DMLINK | 0o777, f"{fid}\n")  # as Linux has it (v9fs_vfs_link)


def mknod(core: Core, dirfid: int, name: str, st_mode: int, rdev: int, gid: int = GID_NONE) -> Flow[Qid]:
    major, minor = os.major(rdev), os.minor(rdev)
    if core.mark is DOTL:
        reply = yield from _named(core, L.Tmknod(dirfid, name, st_mode, major, minor, gid), name)
        return as_reply(reply, L.Rmknod).qid
    _needs_dotu(core, "mknod")
    extension = ""
    kind = st_mode & 0o170000
    word = st_mode & 0o777
    if kind == _s.S_IFIFO:
        word |= DMNAMEDPIPE
    elif kind == _s.S_IFSOCK:
        word |= DMSOCKET
    elif kind in (_s.S_IFCHR, _s.S_IFBLK):
        word |= DMDEVICE
        extension = f"{'b' if kind == _s.S_IFBLK else 'c'} {major} {minor}"
    return (yield from _create_special(core, dirfid, name, word, extension))


def _needs_dotu(core: Core, what: str) -> None:
    if core.mark is not DOTU:
        raise E.Eunsupported(f"{what} over {core.dialect.name}")


def _named(core: Core, request: Message, name: str) -> Flow[Message]:
    try:
        return (yield core.submit(request))
    except E.FileError as e:
        raise _about(e, name)


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
    if core.mark is DOTL:
        yield core.submit(L.Tfsync(fid, int(datasync)))
    else:
        yield core.submit(M.Twstat(fid, StatRecord()))  # all "don't touch": make it durable (stat(5))


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
    if not dotu and (change.uid is not None or change.gid is not None):
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
        n_uid=UNKNOWN_ID if change.uid is None else change.uid,
        n_gid=UNKNOWN_ID if change.gid is None else change.gid,
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


# -- names


def remove(core: Core, dirfid: int, name: str, is_dir: bool | None, expect: Qid | None = None) -> Flow[None]:
    """Unlink a name.  With `expect`, only while it still is that file: Estale."""
    if core.mark is DOTL and expect is None and not core.lacks(L.Tunlinkat):
        try:
            yield from _unlinkat(core, dirfid, name, is_dir)
        except E.Eunsupported:
            core.note_lack(L.Tunlinkat)
        else:
            return
    fid, qids = yield from walk(core, dirfid, (name,))
    try:
        qid = qids[-1]
        if expect is not None and (qid.path != expect.path or (qid.type ^ expect.type) & (QTDIR | QTSYMLINK)):
            raise E.Estale(name)
        if is_dir is True and not qid.type & QTDIR:
            raise E.Enotdir(name)
        if is_dir is False and qid.type & QTDIR:
            raise E.Eisdir(name)
    except E.FileError:
        core.clunk_soon(fid)
        raise
    try:
        yield core.submit(M.Tremove(fid), frees=fid)
    except E.FileError as e:
        raise _about(e, name)


def _unlinkat(core: Core, dirfid: int, name: str, is_dir: bool | None) -> Flow[None]:
    try:
        yield core.submit(L.Tunlinkat(dirfid, name, L.L_REMOVEDIR if is_dir else 0))
    except (E.Eisdir, E.Enotallowed) as e:  # unlink(2) of a directory is EISDIR on Linux, EPERM by POSIX
        if is_dir is not None:
            raise _about(e, name)
        try:
            yield core.submit(L.Tunlinkat(dirfid, name, L.L_REMOVEDIR))
        except E.Enotdir:
            raise _about(e, name)
    except E.FileError as e:
        raise _about(e, name)


def rename(core: Core, dirfid: int, name: str, to_dirfid: int, to_name: str, *, same_dir: bool) -> Flow[None]:
    """rename(2), as far as the dialect goes: the older ones rename within one directory only, and never replace."""
    if core.mark is DOTL:
        if not core.lacks(L.Trenameat):
            try:
                yield core.submit(L.Trenameat(dirfid, name, to_dirfid, to_name))
            except E.Eunsupported:
                core.note_lack(L.Trenameat)
            except E.FileError as e:
                raise _about(e, name)
            else:
                return
        fid, _ = yield from walk(core, dirfid, (name,))
        request: Message = L.Trename(fid, to_dirfid, to_name)
    else:
        if not same_dir:
            raise E.Exdev(f"{core.dialect.name} renames within one directory")
        fid, _ = yield from walk(core, dirfid, (name,))
        request = M.Twstat(fid, StatRecord(name=to_name))
    try:
        yield core.submit(request)
    except E.FileError as e:
        raise _about(e, name)
    finally:
        core.clunk_soon(fid)


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
