"""What a server says, made safe to believe: names, directory entries, attributes (SEC-61, 64, 73, 74).

Pure functions.  A value outside what Linux can hold is clamped, a name that is no name is dropped and counted, bytes
that do not add up are Eproto.
"""

from __future__ import annotations

import stat as _s
import struct
from typing import Final

import msgspec

from ninep.proto import errors as E
from ninep.proto.dotl import GETATTR_BTIME, GETATTR_CTIME, GETATTR_SIZE, Rgetattr
from ninep.proto.records import DIRENT_HEAD_BYTES, BadRecord, StatRecord, unpack_stat
from ninep.proto.types import (
    DMAPPEND,
    DMDEVICE,
    DMDIR,
    DMEXCL,
    DMNAMEDPIPE,
    DMSOCKET,
    DMSYMLINK,
    DMTMP,
    NAME_BYTES_MAX,
    OFFSET_MAX,
    QTDIR,
    QTSYMLINK,
    UNKNOWN_ID,
    Entry,
    Qid,
    Stat,
    perm_bits,
)

QT_KINDS: Final = QTDIR | QTSYMLINK  # what a file is: never changes while it is the same file
BLKSIZE_BYTES_MAX: Final = 1 << 20
_SECONDS_MAX: Final = OFFSET_MAX // 10**9
_U32: Final = 0xFFFFFFFF
_DIRENT: Final = struct.Struct("<BIQQBH")
_KINDS: Final = frozenset((_s.S_IFREG, _s.S_IFDIR, _s.S_IFLNK, _s.S_IFCHR, _s.S_IFBLK, _s.S_IFIFO, _s.S_IFSOCK))


def is_name(name: str) -> bool:
    """Whether a directory may hold this name.  Anything else from a server could reach past its own tree."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name) > NAME_BYTES_MAX:
        return False
    return len(name) * 4 <= NAME_BYTES_MAX or len(name.encode("utf-8", "surrogateescape")) <= NAME_BYTES_MAX


def dirents(data: bytes) -> tuple[list[Entry], int, int]:
    """The entries of an Rreaddir, `.` and `..` left out; how many others were dropped; the last cookie of all.

    Raises Eproto if the bytes do not add up.
    """
    out: list[Entry] = []
    seen: set[str] = set()
    dropped = at = cookie = 0
    end = len(data)
    while at < end:
        head = at + DIRENT_HEAD_BYTES
        if head > end:
            raise E.Eproto("directory entry cut short")
        qtype, vers, qpath, cookie, dtype, size = _DIRENT.unpack_from(data, at)
        at = head + size
        if at > end:
            raise E.Eproto("directory entry cut short")
        name = str(data[head:at], "utf-8", "surrogateescape")
        if name in (".", ".."):
            continue
        if not is_name(name) or name in seen or not 0 < cookie <= OFFSET_MAX:
            dropped += 1
            continue
        seen.add(name)
        out.append(Entry(name, Qid(qtype, vers, qpath), dtype if dtype <= 14 else 0, cookie))
    return out, dropped, cookie


def stat_records(data: bytes, dotu: bool) -> tuple[list[StatRecord], int]:
    """The records of a 9P2000 directory read whose names are names, and how many were dropped.

    Raises Eproto if the bytes do not add up.
    """
    out: list[StatRecord] = []
    dropped = at = 0
    view = memoryview(data)
    seen: set[str] = set()
    while at < len(data):
        stop = at + 2 + int.from_bytes(data[at : at + 2], "little")
        try:
            record, at = unpack_stat(view, at, len(data), dotu)
        except BadRecord as bad:
            if "NUL" not in str(bad) or not at < stop <= len(data):
                raise E.Eproto(str(bad))
            dropped += 1  # the record is whole, a string of it is not
            at = stop
            continue
        if record.name in (".", ".."):
            continue
        if is_name(record.name) and record.name not in seen:
            seen.add(record.name)
            out.append(record)
        else:
            dropped += 1
    return out, dropped


def stat_of_getattr(r: Rgetattr) -> Stat:
    """Attributes of a .L server, clamped to what Linux holds."""
    mode = r.mode & 0o177777
    if mode & 0o170000 not in _KINDS:
        mode = mode & 0o7777 | _kind_of_qid(r.qid)
    if (mode & 0o170000 == _s.S_IFDIR) != bool(r.qid.type & QTDIR):
        raise E.Eio("mode and qid disagree about a directory")
    return Stat(
        r.qid,
        mode,
        min(r.size, OFFSET_MAX) if r.valid & GETATTR_SIZE else 0,
        min(r.nlink, _U32) or 1,
        r.uid,
        r.gid,
        _ns(r.mtime_sec, r.mtime_nsec),
        _ns(r.atime_sec, r.atime_nsec),
        _ns(r.ctime_sec, r.ctime_nsec) if r.valid & GETATTR_CTIME else 0,
        _ns(r.btime_sec, r.btime_nsec) if r.valid & GETATTR_BTIME else 0,
        r.rdev & _U32,
        min(max(r.blksize, 512), BLKSIZE_BYTES_MAX),
        min(r.blocks, OFFSET_MAX >> 9),
    )


def stat_of_record(r: StatRecord, dotu: bool) -> Stat:
    """A 9P2000 or .u stat record as a Stat.  Raises Eio if its mode and qid disagree (stat(5))."""
    kind = _s.S_IFREG
    rdev = 0
    if r.perm & DMDIR:
        kind = _s.S_IFDIR
    elif dotu:
        kind, rdev = _dotu_kind(r)
    if bool(r.perm & DMDIR) != bool(r.qid.type & QTDIR):
        raise E.Eio("mode and qid disagree about a directory")
    mtime, atime = _ns(r.mtime, 0), _ns(r.atime, 0)
    length = 0 if kind == _s.S_IFDIR else min(r.length, OFFSET_MAX)
    return Stat(
        r.qid,
        kind | (perm_bits(r.perm) if dotu else r.perm & 0o777),
        length,
        uid=r.n_uid if dotu else UNKNOWN_ID,
        gid=r.n_gid if dotu else UNKNOWN_ID,
        mtime_ns=mtime,
        atime_ns=atime,
        ctime_ns=mtime,
        rdev=rdev,
        blocks=(length + 511) >> 9,
        flags=r.perm & (DMAPPEND | DMEXCL | DMTMP),
        uname=r.uid,
        gname=r.gid,
        muname=r.muid,
    )


def stat_of_record_lenient(r: StatRecord, dotu: bool) -> Stat | None:
    """As stat_of_record, but None for a record that contradicts itself: one bad entry does not hide a directory."""
    try:
        return stat_of_record(r, dotu)
    except E.Eio:
        return None


def masked(st: Stat) -> Stat:
    """A Stat for a tree that others will mount: no set-id or sticky bits, and no devices (SEC-66)."""
    kind = st.st_mode & 0o170000
    if kind in (_s.S_IFCHR, _s.S_IFBLK):
        return _replaced(st, _s.S_IFREG, 0)
    if st.st_mode & 0o7000:
        return _replaced(st, st.st_mode & ~0o7000, st.rdev)
    return st


def xattr_names(data: bytes) -> list[str]:
    """The names of a listxattr: NUL-terminated; empty ones and repeats are dropped."""
    names = (str(raw, "utf-8", "surrogateescape") for raw in data.split(b"\0") if 0 < len(raw) <= NAME_BYTES_MAX)
    return list(dict.fromkeys(names))


def link_target(target: str, bytes_max: int) -> str:
    """A symlink's text.  Raises Eproto for one that no Linux link can hold."""
    if not target or "\0" in target or len(target.encode("utf-8", "surrogateescape")) > bytes_max:
        raise E.Eproto("symbolic link")
    return target


def same_kind(was: Qid, now: Qid) -> Qid:
    """`now`, if it can be the file that was `was`.  Raises Estale: a file does not turn into a directory (SEC-63)."""
    if (was.type ^ now.type) & QT_KINDS:
        raise E.Estale(f"qid type {was.type:#x}, now {now.type:#x}")
    return now


def _kind_of_qid(qid: Qid) -> int:
    if qid.type & QTDIR:
        return _s.S_IFDIR
    return _s.S_IFLNK if qid.type & QTSYMLINK else _s.S_IFREG


def _dotu_kind(r: StatRecord) -> tuple[int, int]:
    """The file type of a .u record that is no directory, and its device number: `b MAJ MIN` or `c MAJ MIN`."""
    if r.perm & DMSYMLINK:
        return _s.S_IFLNK, 0
    if r.perm & DMNAMEDPIPE:
        return _s.S_IFIFO, 0
    if r.perm & DMSOCKET:
        return _s.S_IFSOCK, 0
    if r.perm & DMDEVICE:
        words = r.extension.split()
        if len(words) == 3 and words[0] in ("b", "c") and all(w.isascii() and w.isdigit() for w in words[1:]):
            kind = _s.S_IFBLK if words[0] == "b" else _s.S_IFCHR
            return kind, (int(words[1][:6]) & 0xFFF) << 8 | int(words[2][:6]) & 0xFF
        return _s.S_IFCHR, 0
    return _s.S_IFREG, 0


def _ns(seconds: int, nanoseconds: int) -> int:
    """Seconds and nanoseconds of a server's, as nanoseconds that fit 63 bits."""
    return min(seconds, _SECONDS_MAX - 1) * 10**9 + min(nanoseconds, 999_999_999)


def _replaced(st: Stat, st_mode: int, rdev: int) -> Stat:
    return msgspec.structs.replace(st, st_mode=st_mode, rdev=rdev)
