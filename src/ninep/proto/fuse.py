"""The messages that the Linux kernel and a FUSE server exchange on /dev/fuse: layouts, numbers, flags.

One row of OPCODES is one request: its fixed fields, then the names and data that follow them.  Nothing here reads a
device or knows what a request means.  Source: the ABI of include/uapi/linux/fuse.h, minor versions 7.31 to 7.45; all
integers are in the machine's order, every fixed part is a multiple of eight bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from .errors import ProtocolError
from .types import NAME_BYTES_MAX, Name

MAJOR: Final = 7
MINOR: Final = 42  # the newest we speak; FUSE_REQUEST_TIMEOUT and later add nothing that we use
MINOR_MIN: Final = 31  # Linux 5.4: older kernels lack max_pages or explicit directory caching
ROOT_ID: Final = 1
INTERRUPT_BIT: Final = 1  # in the unique of an INTERRUPT; requests have even ones

_LETTERS: Final = {"u16": "H", "i32": "i", "u32": "I", "u64": "Q", "i64": "q", "pad2": "2x", "pad4": "4x",
                   "pad8": "8x"}  # fmt: skip


class Layout:
    """A struct of the ABI: `u32 flags u32 open_flags`.  Padding has no name and no value."""

    __slots__ = ("fields", "name", "pack", "pack_into", "size", "struct", "unpack_from")

    def __init__(self, name: str, spec: str) -> None:
        words = spec.split()
        letters = ""
        fields: list[str] = []
        while words:
            kind = words.pop(0)
            letters += _LETTERS[kind]
            if not kind.startswith("pad"):
                fields.append(words.pop(0))
        self.name = name
        self.fields = tuple(fields)
        self.struct = struct.Struct("=" + letters)
        self.size = self.struct.size
        self.pack = self.struct.pack
        self.pack_into = self.struct.pack_into
        self.unpack_from = self.struct.unpack_from


_ATTR: Final = (
    "u64 ino u64 size u64 blocks u64 atime u64 mtime u64 ctime u32 atimensec u32 mtimensec u32 ctimensec "
    "u32 mode u32 nlink u32 uid u32 gid u32 rdev u32 blksize u32 attr_flags "
)
_LOCK: Final = "u64 start u64 end u32 type u32 pid "

IN_HEADER: Final = Layout(
    "fuse_in_header",
    "u32 len u32 opcode u64 unique u64 nodeid u32 uid u32 gid u32 pid u16 total_extlen pad2",
)
OUT_HEADER: Final = Layout("fuse_out_header", "u32 len i32 error u64 unique")
INIT_IN: Final = Layout("fuse_init_in", "u32 major u32 minor u32 max_readahead u32 flags")
INIT_FLAGS2: Final = Layout("fuse_init_in.flags2", "u32 flags2")
INIT_OUT: Final = Layout(
    "fuse_init_out",
    "u32 major u32 minor u32 max_readahead u32 flags u16 max_background u16 congestion_threshold u32 max_write "
    "u32 time_gran u16 max_pages u16 map_alignment u32 flags2 u32 max_stack_depth pad8 pad8 pad8",
)
ATTR_OUT: Final = Layout("fuse_attr_out", "u64 attr_valid u32 attr_valid_nsec pad4 " + _ATTR)
ENTRY_OUT: Final = Layout(
    "fuse_entry_out",
    "u64 nodeid u64 generation u64 entry_valid u64 attr_valid u32 entry_valid_nsec u32 attr_valid_nsec " + _ATTR,
)
OPEN_OUT: Final = Layout("fuse_open_out", "u64 fh u32 open_flags i32 backing_id")
WRITE_OUT: Final = Layout("fuse_write_out", "u32 size pad4")
STATFS_OUT: Final = Layout(
    "fuse_statfs_out",
    "u64 blocks u64 bfree u64 bavail u64 files u64 ffree u32 bsize u32 namelen u32 frsize pad4 pad8 pad8 pad8",
)
GETXATTR_OUT: Final = Layout("fuse_getxattr_out", "u32 size pad4")
LK_OUT: Final = Layout("fuse_lk_out", _LOCK)
POLL_OUT: Final = Layout("fuse_poll_out", "u32 revents pad4")
LSEEK_OUT: Final = Layout("fuse_lseek_out", "u64 offset")
DIRENT: Final = Layout("fuse_dirent", "u64 ino u64 off u32 namelen u32 type")
FORGET_ONE: Final = Layout("fuse_forget_one", "u64 nodeid u64 nlookup")

NOTIFY_POLL_OUT: Final = Layout("fuse_notify_poll_wakeup_out", "u64 kh")
NOTIFY_INVAL_INODE_OUT: Final = Layout("fuse_notify_inval_inode_out", "u64 ino i64 off i64 len")
NOTIFY_INVAL_ENTRY_OUT: Final = Layout("fuse_notify_inval_entry_out", "u64 parent u32 namelen u32 flags")
BACKING_MAP: Final = Layout("fuse_backing_map", "i32 fd u32 flags pad8")

NOTIFY_POLL, NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY = 1, 2, 3

# ioctl(2) on the device: _IOW(229, 1, struct fuse_backing_map) and _IOW(229, 2, uint32_t).
IOC_BACKING_OPEN: Final = 0x4010E501
IOC_BACKING_CLOSE: Final = 0x4004E502


class Op:
    """One request: fixed fields, `names` strings that end in NUL, then bytes to the end when `data`.

    `replies` is false for what the kernel never waits for; `parks` is true for what may wait for ever.
    """

    __slots__ = ("data", "layout", "name", "names", "number", "parks", "replies")

    def __init__(self, number: int, name: str, spec: str = "", *, names: int = 0, data: bool = False,
                 replies: bool = True, parks: bool = False) -> None:  # fmt: skip
        self.number = number
        self.name = name
        self.layout = Layout(f"fuse_{name}_in", spec)
        self.names = names
        self.data = data
        self.replies = replies
        self.parks = parks

    def parse(self, view: memoryview, end: int) -> tuple[object, ...]:
        """The fields, names (str, odd bytes as surrogates) and data (a slice of `view`) of the request in view[:end].

        Raises ProtocolError when they do not fit.
        """
        at = IN_HEADER.size
        layout = self.layout
        if at + layout.size > end:
            raise ProtocolError(f"{self.name}: {end} bytes")
        fields = layout.unpack_from(view, at)
        if not self.names:
            return (*fields, view[at + layout.size : end]) if self.data else fields
        at += layout.size
        parts = bytes(view[at:end]).split(b"\0", self.names)
        if len(parts) <= self.names:
            raise ProtocolError(f"{self.name}: a name without its end")
        names = [part.decode("utf-8", "surrogateescape") for part in parts[:-1]]
        if self.data:
            return (*fields, *names, view[end - len(parts[-1]) : end])
        return (*fields, *names)


_FH: Final = "u64 fh "
_READ: Final = "u64 fh u64 offset u32 size u32 read_flags u64 lock_owner u32 flags pad4"
_RELEASE: Final = "u64 fh u32 flags u32 release_flags u64 lock_owner"
_FSYNC: Final = "u64 fh u32 fsync_flags pad4"
_LK: Final = "u64 fh u64 owner " + _LOCK + "u32 lk_flags pad4"
_OPEN: Final = "u32 flags u32 open_flags"

OPCODES: Final = {
    op.number: op
    for op in (
        Op(1, "lookup", names=1),
        Op(2, "forget", "u64 nlookup", replies=False),
        Op(3, "getattr", "u32 getattr_flags pad4 u64 fh"),
        Op(4, "setattr", "u32 valid pad4 u64 fh u64 size u64 lock_owner u64 atime u64 mtime u64 ctime u32 atimensec "
           "u32 mtimensec u32 ctimensec u32 mode pad4 u32 uid u32 gid pad4"),
        Op(5, "readlink"),
        Op(6, "symlink", names=2),
        Op(8, "mknod", "u32 mode u32 rdev u32 umask pad4", names=1),
        Op(9, "mkdir", "u32 mode u32 umask", names=1),
        Op(10, "unlink", names=1),
        Op(11, "rmdir", names=1),
        Op(12, "rename", "u64 newdir", names=2),
        Op(13, "link", "u64 oldnodeid", names=1),
        Op(14, "open", _OPEN, parks=True),
        Op(15, "read", _READ, parks=True),
        Op(16, "write", "u64 fh u64 offset u32 size u32 write_flags u64 lock_owner u32 flags pad4", data=True,
           parks=True),
        Op(17, "statfs"),
        Op(18, "release", _RELEASE),
        Op(20, "fsync", _FSYNC),
        Op(21, "setxattr", "u32 size u32 flags", names=1, data=True),
        Op(22, "getxattr", "u32 size pad4", names=1),
        Op(23, "listxattr", "u32 size pad4"),
        Op(24, "removexattr", names=1),
        Op(25, "flush", "u64 fh pad8 u64 lock_owner"),
        Op(27, "opendir", _OPEN, parks=True),
        Op(28, "readdir", _READ),
        Op(29, "releasedir", _RELEASE),
        Op(30, "fsyncdir", _FSYNC),
        Op(31, "getlk", _LK),
        Op(32, "setlk", _LK),
        Op(33, "setlkw", _LK, parks=True),
        Op(34, "access", "u32 mask pad4"),
        Op(35, "create", "u32 flags u32 mode u32 umask u32 open_flags", names=1, parks=True),
        Op(36, "interrupt", "u64 unique", replies=False),
        Op(37, "bmap", "u64 block u32 blocksize pad4"),
        Op(38, "destroy"),
        Op(39, "ioctl", "u64 fh u32 flags u32 cmd u64 arg u32 in_size u32 out_size", data=True),
        Op(40, "poll", "u64 fh u64 kh u32 flags u32 events"),
        Op(42, "batch_forget", "u32 count pad4", data=True, replies=False),
        Op(43, "fallocate", "u64 fh u64 offset u64 length u32 mode pad4"),
        Op(44, "readdirplus", _READ),
        Op(45, "rename2", "u64 newdir u32 flags pad4", names=2),
        Op(46, "lseek", "u64 fh u64 offset u32 whence pad4"),
        Op(47, "copy_file_range",
           "u64 fh_in u64 off_in u64 nodeid_out u64 fh_out u64 off_out u64 len u64 flags"),
        Op(50, "syncfs", "u64 padding"),
    )
}  # fmt: skip
INIT: Final = 26

# What the kernel offers in INIT and we take.  Bits from 32 on travel in flags2.
ASYNC_READ: Final = 1 << 0
POSIX_LOCKS: Final = 1 << 1
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
FLOCK_LOCKS: Final = 1 << 10
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
ASYNC_DIO: Final = 1 << 15
WRITEBACK_CACHE: Final = 1 << 16
PARALLEL_DIROPS: Final = 1 << 18
ABORT_ERROR: Final = 1 << 21
MAX_PAGES: Final = 1 << 22
HANDLE_KILLPRIV_V2: Final = 1 << 28
INIT_EXT: Final = 1 << 30
DIRECT_IO_ALLOW_MMAP: Final = 1 << 36
PASSTHROUGH: Final = 1 << 37

# OPEN and CREATE answer these.
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_STREAM: Final = 1 << 4
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6
FOPEN_PASSTHROUGH: Final = 1 << 7

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME, FATTR_FH = (1 << n for n in range(7))
FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_LOCKOWNER, FATTR_CTIME, FATTR_KILL_SUIDGID = (1 << n for n in range(7, 12))

GETATTR_FH: Final = 1 << 0
LK_FLOCK: Final = 1 << 0
RELEASE_FLUSH: Final = 1 << 0
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
POLL_SCHEDULE_NOTIFY: Final = 1 << 0
FSYNC_FDATASYNC: Final = 1 << 0


def reply(unique: int, body: bytes) -> bytes:
    """A successful answer."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def refusal(unique: int, errno: int) -> bytes:
    """An answer that is an error; errno is positive."""
    return OUT_HEADER.pack(OUT_HEADER.size, -errno, unique)


def notification(code: int, body: bytes) -> bytes:
    """What the server tells the kernel unasked."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body


def inval_inode(nodeid: int) -> bytes:
    """Forget the attributes and all cached content of a file."""
    return notification(NOTIFY_INVAL_INODE, NOTIFY_INVAL_INODE_OUT.pack(nodeid, 0, 0))


def inval_entry(parent: int, name: str) -> bytes:
    """Forget one name of a directory."""
    raw = name.encode("utf-8", "surrogateescape")
    return notification(NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(raw), 0) + raw + b"\0")


def poll_wakeup(kh: int) -> bytes:
    """Whoever polls should ask again."""
    return notification(NOTIFY_POLL, NOTIFY_POLL_OUT.pack(kh))


_PADDING: Final = tuple(bytes(n) for n in range(8))


_DIRENT_PACKERS: Final = tuple(struct.Struct(f"=QQII{n + 7 & ~7}s").pack for n in range(NAME_BYTES_MAX + 1))


def dirents(names: Sequence[Name], shift: int) -> list[bytes]:
    """The records of a READDIR answer, their cookies moved up by `shift`.  A tenth of a microsecond for each."""
    pack = _DIRENT_PACKERS
    return [pack[n := len(name)](ino, at + shift, n, kind, name) for ino, at, kind, name in names]


def dirent(ino: int, offset: int, dtype: int, name: bytes) -> bytes:
    """One record of a READDIR answer; `offset` is where the next record begins."""
    return DIRENT.pack(ino, offset, len(name), dtype) + name + _PADDING[-len(name) & 7]
