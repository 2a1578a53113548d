"""pyfuse3's attribute objects out of the replies that our own engine would have written.  Knows no file but `.`."""

from __future__ import annotations

from collections.abc import Sequence

import pyfuse3

from ninep.file import File
from ninep.proto import fuse as p


def entry_of(body: bytes) -> pyfuse3.EntryAttributes:
    """The reply to a LOOKUP.

    pyfuse3 says one number for the node and for st_ino.  Where they differ the kernel is told to ask for the
    attributes, because GETATTR can say another.
    """
    nodeid, _, entry_s, attr_s, entry_ns, attr_ns, *fields = p.ENTRY_OUT.unpack_from(body)
    attr = _filled(fields)
    attr.entry_timeout = entry_s + entry_ns / 1e9
    attr.attr_timeout = attr_s + attr_ns / 1e9 if nodeid == attr.st_ino else 0
    attr.st_ino = nodeid
    return attr


def attributes_of(body: bytes) -> pyfuse3.EntryAttributes:
    """The reply to a GETATTR; st_ino is the qid path."""
    seconds, ns, *fields = p.ATTR_OUT.unpack_from(body)
    attr = _filled(fields)
    attr.attr_timeout = seconds + ns / 1e9
    return attr


def dot(file: File) -> pyfuse3.EntryAttributes:
    """What `.` and `..` need; the kernel makes no node of them."""
    attr = pyfuse3.EntryAttributes()
    attr.st_ino = file.qid.path
    attr.st_mode = file.kind
    attr.entry_timeout = attr.attr_timeout = 0
    return attr


def wake(handle: pyfuse3.PollHandle) -> None:
    """Tell the kernel that a file may be ready; raises nothing, for nobody may be left to hear it."""
    try:
        handle.notify()
    except (OSError, RuntimeError):
        pass


def _filled(fields: Sequence[int]) -> pyfuse3.EntryAttributes:
    ino, size, blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, nlink, uid, gid, rdev, blksize, _ = (
        fields
    )
    attr = pyfuse3.EntryAttributes()
    attr.st_ino = ino
    attr.st_size = size
    attr.st_blocks = blocks
    attr.st_atime_ns = _signed(atime) * 1_000_000_000 + atime_ns
    attr.st_mtime_ns = _signed(mtime) * 1_000_000_000 + mtime_ns
    attr.st_ctime_ns = _signed(ctime) * 1_000_000_000 + ctime_ns
    attr.st_mode = mode
    attr.st_nlink = nlink
    attr.st_uid = uid
    attr.st_gid = gid
    attr.st_rdev = rdev
    attr.st_blksize = blksize
    return attr


def _signed(seconds: int) -> int:
    return seconds - (1 << 64) if seconds >= 1 << 63 else seconds
