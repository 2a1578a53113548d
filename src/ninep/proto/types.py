"""The vocabulary of every dialect: qids, stats, modes and the numbers the manuals give them.

Immutable values only.  Nothing here packs bytes, and nothing here knows who serves what.
Sources: intro(5), stat(5), open(5); the Linux kernel's include/net/9p/9p.h.
"""

from __future__ import annotations

import stat as _s
from typing import Final, NamedTuple, TypeAlias

import msgspec

NOTAG: Final = 0xFFFF
NOFID: Final = 0xFFFFFFFF
NONUNAME: Final = 0xFFFFFFFF
MAXWELEM: Final = 16
NAME_BYTES_MAX: Final = 255
IOHDRSZ: Final = 24

# Open modes (open(5)); the low two bits are the access.
OREAD: Final = 0
OWRITE: Final = 1
ORDWR: Final = 2
OEXEC: Final = 3
OTRUNC: Final = 0x10
OCEXEC: Final = 0x20
ORCLOSE: Final = 0x40
OAPPEND: Final = 0x80
OEXCL: Final = 0x1000
OSYNC: Final = 0x2000  # ours, never on the 9P2000 wire: each write is durable before its reply
ONONBLOCK: Final = 0x4000  # ours: a read that would park answers Ewouldblock

# Qid types, and the high byte of a permission word (stat(5)).
QTDIR: Final = 0x80
QTAPPEND: Final = 0x40
QTEXCL: Final = 0x20
QTMOUNT: Final = 0x10
QTAUTH: Final = 0x08
QTTMP: Final = 0x04
QTSYMLINK: Final = 0x02
QTLINK: Final = 0x01
QTFILE: Final = 0x00

DMDIR: Final = 0x80000000
DMAPPEND: Final = 0x40000000
DMEXCL: Final = 0x20000000
DMMOUNT: Final = 0x10000000
DMAUTH: Final = 0x08000000
DMTMP: Final = 0x04000000
DMSYMLINK: Final = 0x02000000
DMLINK: Final = 0x01000000
DMDEVICE: Final = 0x00800000
DMNAMEDPIPE: Final = 0x00200000
DMSOCKET: Final = 0x00100000
DMSETUID: Final = 0x00080000
DMSETGID: Final = 0x00040000
DMSETVTX: Final = 0x00010000

# What access(2) and the permission bits call read, write and search.
R_WANT: Final = 4
W_WANT: Final = 2
X_WANT: Final = 1

# Directory entry types (readdir(3)): st_mode >> 12.
DT_UNKNOWN: Final = 0
DT_FIFO: Final = 1
DT_CHR: Final = 2
DT_DIR: Final = 4
DT_BLK: Final = 6
DT_REG: Final = 8
DT_LNK: Final = 10
DT_SOCK: Final = 12

# rename flags, as renameat2(2) has them.
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

# xattr flags, as setxattr(2) has them.
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2

# Lock types, as 9P2000.L and fcntl(2) order them.
F_RDLCK: Final = 0
F_WRLCK: Final = 1
F_UNLCK: Final = 2

# lseek(2)'s two searching words.
SEEK_DATA: Final = 3
SEEK_HOLE: Final = 4

NOW: Final = -1  # a time in a Change: the server's clock, at the moment of the change
UNKNOWN_ID: Final = 0xFFFFFFFF  # a uid or gid nobody knows the number of (also "don't touch" on the wire)
OFFSET_MAX: Final = (1 << 63) - 1  # offsets are u64 on the wire; past this nothing on Linux can follow


class Qid(NamedTuple):
    """The server's identity of a file.  `path` is unique in the tree and never reused; `vers` grows on change.

    `vers` 0 means "never cache this" (the Linux client reads it so): synthetic files keep it 0.
    """

    type: int
    vers: int
    path: int


class Stat(msgspec.Struct, frozen=True, gc=False):
    """Everything about a file but its name.  Times are nanoseconds since the epoch, sizes are bytes.

    `st_mode` is stat(2)'s word, type bits included.  `flags` holds DMAPPEND, DMEXCL and DMTMP, which Linux has no
    bits for.  `uname` and `gname` stay empty when only the numbers are known: the edge resolves them when its dialect
    needs names.  UNKNOWN_ID says that only the name is known.
    """

    qid: Qid
    st_mode: int
    size: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    atime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    rdev: int = 0
    blksize: int = 4096
    blocks: int = 0  # of 512 bytes
    flags: int = 0
    uname: str = ""
    gname: str = ""
    muname: str = ""

    @property
    def is_dir(self) -> bool:
        return self.st_mode & 0o170000 == 0o040000


class Change(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a wstat or setattr asks for; None is "don't touch".  All of it happens or none of it (stat(5)).

    `perm` is the low twelve permission bits.  Times may be NOW.  A rename within the directory is not here: the
    Session does it through Dir.rename, together with the rest.
    """

    perm: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    touch_ctime: bool = False

    @property
    def is_empty(self) -> bool:
        return self == NOTHING


NOTHING: Final = Change()


class Entry(NamedTuple):
    """One name in a directory.  `cookie` resumes after it: distinct, above zero, below 2**63."""

    name: str
    qid: Qid
    dtype: int
    cookie: int
    stat: Stat | None = None  # filled where it costs nothing; readdirplus asks the file otherwise


# One name for who needs no qid: (st_ino, cookie, dtype, name).  A plain tuple, because 10,000 are made for one ls(1).
Name: TypeAlias = tuple[int, int, int, bytes]


class StatFs(NamedTuple):
    """statfs(2), the fields that travel."""

    bsize: int = 4096
    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    fsid: int = 0
    namelen: int = NAME_BYTES_MAX


class Lock(NamedTuple):
    """A byte range and who wants it.  `end` is the last byte, OFFSET_MAX for "to the end, wherever that comes to be".

    `owner` is any hashable value that the edge makes from (session, client, process); `pid` is only told to others.
    `flock` marks BSD locks, which live apart from POSIX ones (flock(2)).
    """

    type: int
    start: int
    end: int
    owner: object
    pid: int = 0
    client_id: str = ""
    flock: bool = False


def dtype_of(st_mode: int) -> int:
    """readdir(3)'s type of a file with this st_mode."""
    return (st_mode & 0o170000) >> 12


_QT_OF_FORMAT: Final = {_s.S_IFDIR: QTDIR, _s.S_IFLNK: QTSYMLINK}


def qtype_of(st_mode: int, flags: int = 0) -> int:
    """The qid type byte that agrees with a mode (stat(5): the two must agree)."""
    return _QT_OF_FORMAT.get(st_mode & 0o170000, QTFILE) | (flags >> 24 & (QTAPPEND | QTEXCL | QTTMP))


_DM_OF_FORMAT: Final = {
    _s.S_IFDIR: DMDIR,
    _s.S_IFLNK: DMSYMLINK,
    _s.S_IFCHR: DMDEVICE,
    _s.S_IFBLK: DMDEVICE,
    _s.S_IFIFO: DMNAMEDPIPE,
    _s.S_IFSOCK: DMSOCKET,
}
_DM_OF_SETBITS: Final = ((0o4000, DMSETUID), (0o2000, DMSETGID), (0o1000, DMSETVTX))


def perm_of(st_mode: int, flags: int = 0, *, dotu: bool = False) -> int:
    """The permission word of stat(5); with `dotu` the Unix types and set-id bits of 9P2000.u too."""
    word = st_mode & 0o777 | flags & (DMAPPEND | DMEXCL | DMTMP)
    kind = _DM_OF_FORMAT.get(st_mode & 0o170000, 0)
    if not dotu:
        return word | kind & DMDIR
    for bit, dm in _DM_OF_SETBITS:
        if st_mode & bit:
            word |= dm
    return word | kind


def perm_bits(perm: int) -> int:
    """The twelve low bits of st_mode that a permission word asks for."""
    bits = perm & 0o777
    for bit, dm in _DM_OF_SETBITS:
        if perm & dm:
            bits |= bit
    return bits
