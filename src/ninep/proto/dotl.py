"""The messages that 9P2000.L has of its own, as Linux and diod speak them; and the numbers they carry.

Declarations only.  Sources: diod's protocol.md; Linux include/net/9p/9p.h and net/9p/client.c.
"""

from __future__ import annotations

from typing import Annotated, Final

from ninep.proto.codec import TAIL, In, Message, message
from ninep.proto.fields import DATA, NAME, QID, U8, U32, U64
from ninep.proto.types import Qid

# Tlopen and Tlcreate flags: Linux's generic numbers, whatever the machine (net/9p/client.c).
L_RDONLY: Final = 0
L_WRONLY: Final = 1
L_RDWR: Final = 2
L_NOACCESS: Final = 3
L_CREATE: Final = 0o100
L_EXCL: Final = 0o200
L_NOCTTY: Final = 0o400
L_TRUNC: Final = 0o1000
L_APPEND: Final = 0o2000
L_NONBLOCK: Final = 0o4000
L_DSYNC: Final = 0o10000
L_FASYNC: Final = 0o20000
L_DIRECT: Final = 0o40000
L_LARGEFILE: Final = 0o100000
L_DIRECTORY: Final = 0o200000
L_NOFOLLOW: Final = 0o400000
L_NOATIME: Final = 0o1000000
L_CLOEXEC: Final = 0o2000000
L_SYNC: Final = 0o4000000

L_REMOVEDIR: Final = 0x200  # Tunlinkat

# Tgetattr request_mask and Rgetattr valid.
GETATTR_MODE: Final = 0x1
GETATTR_NLINK: Final = 0x2
GETATTR_UID: Final = 0x4
GETATTR_GID: Final = 0x8
GETATTR_RDEV: Final = 0x10
GETATTR_ATIME: Final = 0x20
GETATTR_MTIME: Final = 0x40
GETATTR_CTIME: Final = 0x80
GETATTR_INO: Final = 0x100
GETATTR_SIZE: Final = 0x200
GETATTR_BLOCKS: Final = 0x400
GETATTR_BTIME: Final = 0x800
GETATTR_GEN: Final = 0x1000
GETATTR_DATA_VERSION: Final = 0x2000
GETATTR_BASIC: Final = 0x7FF
GETATTR_ALL: Final = 0x3FFF

# Tsetattr valid.
SETATTR_MODE: Final = 0x1
SETATTR_UID: Final = 0x2
SETATTR_GID: Final = 0x4
SETATTR_SIZE: Final = 0x8
SETATTR_ATIME: Final = 0x10
SETATTR_MTIME: Final = 0x20
SETATTR_CTIME: Final = 0x40
SETATTR_ATIME_SET: Final = 0x80
SETATTR_MTIME_SET: Final = 0x100
SETATTR_ALL: Final = 0x1FF

LOCK_BLOCK: Final = 1  # Tlock flags
LOCK_RECLAIM: Final = 2
LOCK_SUCCESS: Final = 0  # Rlock status
LOCK_BLOCKED: Final = 1
LOCK_ERROR: Final = 2
LOCK_GRACE: Final = 3

STATFS_TYPE: Final = 0x01021997  # V9FS_MAGIC

_L: Final = In.DOTL

Fid = Annotated[int, U32]
Small = Annotated[int, U32]
Large = Annotated[int, U64]
AQid = Annotated[Qid, QID]
Name = Annotated[str, NAME]
Bytes = Annotated[bytes | memoryview, DATA]


@message(7, _L)
class Rlerror(Message, frozen=True):
    """Why the request did not happen: a Linux errno, 1 to 4095."""

    ecode: Small


@message(8, _L)
class Tstatfs(Message, frozen=True):
    """Ask about the file system that holds fid."""

    fid: Fid


@message(9, _L)
class Rstatfs(Message, frozen=True):
    """statfs(2), the fields that travel."""

    type: Small
    bsize: Small
    blocks: Large
    bfree: Large
    bavail: Large
    files: Large
    ffree: Large
    fsid: Large
    namelen: Small


@message(12, _L)
class Tlopen(Message, frozen=True):
    """Prepare fid for reading or writing."""

    fid: Fid
    flags: Small


@message(13, _L)
class Rlopen(Message, frozen=True):
    """The file opened, and the most bytes one read or write carries whole (0: msize - 24)."""

    qid: AQid
    iounit: Small


@message(14, _L)
class Tlcreate(Message, frozen=True):
    """Make a regular file in the directory fid and open it as fid."""

    fid: Fid
    name: Name
    flags: Small
    mode: Small
    gid: Small


@message(15, _L)
class Rlcreate(Message, frozen=True):
    """The file made, open."""

    qid: AQid
    iounit: Small


@message(16, _L)
class Tsymlink(Message, frozen=True):
    """Make a symbolic link in the directory dfid."""

    dfid: Fid
    name: Name
    symtgt: Name
    gid: Small


@message(17, _L)
class Rsymlink(Message, frozen=True):
    """The link made."""

    qid: AQid


@message(18, _L)
class Tmknod(Message, frozen=True):
    """Make a device, a pipe, a socket or a plain file in the directory dfid."""

    dfid: Fid
    name: Name
    mode: Small
    major: Small
    minor: Small
    gid: Small


@message(19, _L)
class Rmknod(Message, frozen=True):
    """The node made."""

    qid: AQid


@message(20, _L)
class Trename(Message, frozen=True):
    """Move fid into the directory dfid under a name."""

    fid: Fid
    dfid: Fid
    name: Name


@message(21, _L)
class Rrename(Message, frozen=True):
    """Done."""


@message(22, _L)
class Treadlink(Message, frozen=True):
    """Ask where a symbolic link points."""

    fid: Fid


@message(23, _L)
class Rreadlink(Message, frozen=True):
    """The link's text, verbatim."""

    target: Name


@message(24, _L)
class Tgetattr(Message, frozen=True):
    """Ask for the attributes in request_mask."""

    fid: Fid
    request_mask: Large


@message(25, _L)
class Rgetattr(Message, frozen=True):
    """The attributes; `valid` says which of them mean something."""

    valid: Large
    qid: AQid
    mode: Small
    uid: Small
    gid: Small
    nlink: Large
    rdev: Large
    size: Large
    blksize: Large
    blocks: Large
    atime_sec: Large
    atime_nsec: Large
    mtime_sec: Large
    mtime_nsec: Large
    ctime_sec: Large
    ctime_nsec: Large
    btime_sec: Large = 0
    btime_nsec: Large = 0
    gen: Large = 0
    data_version: Large = 0


@message(26, _L)
class Tsetattr(Message, frozen=True):
    """Change the attributes in `valid`: all of it or nothing."""

    fid: Fid
    valid: Small
    mode: Small = 0
    uid: Small = 0
    gid: Small = 0
    size: Large = 0
    atime_sec: Large = 0
    atime_nsec: Large = 0
    mtime_sec: Large = 0
    mtime_nsec: Large = 0


@message(27, _L)
class Rsetattr(Message, frozen=True):
    """Done."""


@message(30, _L)
class Txattrwalk(Message, frozen=True):
    """Make newfid a file that reads as an extended attribute of fid; an empty name reads as the list of names."""

    fid: Fid
    newfid: Fid
    name: Name


@message(31, _L)
class Rxattrwalk(Message, frozen=True):
    """How many bytes newfid will read."""

    size: Large


@message(32, _L)
class Txattrcreate(Message, frozen=True):
    """Turn fid into a file whose next attr_size written bytes become the attribute when it is clunked."""

    fid: Fid
    name: Name
    attr_size: Large
    flags: Small


@message(33, _L)
class Rxattrcreate(Message, frozen=True):
    """Done."""


@message(40, _L)
class Treaddir(Message, frozen=True):
    """Read entries after the one whose cookie is offset; 0 is the start."""

    fid: Fid
    offset: Large
    count: Small


@message(41, _L)
class Rreaddir(Message, frozen=True):
    """Whole entries, each qid[13] offset[8] type[1] name[s]; none means the end."""

    data: Bytes


@message(50, _L)
class Tfsync(Message, frozen=True):
    """Make the file durable; datasync leaves out what is not needed to read it back.  Old clients omit datasync."""

    fid: Fid
    datasync: Annotated[int, U32, TAIL] = 0


@message(51, _L)
class Rfsync(Message, frozen=True):
    """Done."""


@message(52, _L)
class Tlock(Message, frozen=True):
    """Take or drop a lock on a byte range; length 0 reaches to the end of the file, wherever that comes to be."""

    fid: Fid
    type: Annotated[int, U8]
    flags: Small
    start: Large
    length: Large
    proc_id: Small
    client_id: Name


@message(53, _L)
class Rlock(Message, frozen=True):
    """Whether the lock was given."""

    status: Annotated[int, U8]


@message(54, _L)
class Tgetlock(Message, frozen=True):
    """Ask who would be in the way of a lock."""

    fid: Fid
    type: Annotated[int, U8]
    start: Large
    length: Large
    proc_id: Small
    client_id: Name


@message(55, _L)
class Rgetlock(Message, frozen=True):
    """The lock in the way, or the question with type UNLCK (2)."""

    type: Annotated[int, U8]
    start: Large
    length: Large
    proc_id: Small
    client_id: Name


@message(70, _L)
class Tlink(Message, frozen=True):
    """Give the file fid a further name in the directory dfid."""

    dfid: Fid
    fid: Fid
    name: Name


@message(71, _L)
class Rlink(Message, frozen=True):
    """Done."""


@message(72, _L)
class Tmkdir(Message, frozen=True):
    """Make a directory in the directory dfid."""

    dfid: Fid
    name: Name
    mode: Small
    gid: Small


@message(73, _L)
class Rmkdir(Message, frozen=True):
    """The directory made."""

    qid: AQid


@message(74, _L)
class Trenameat(Message, frozen=True):
    """Move a name from one directory to another, replacing what was there."""

    olddirfid: Fid
    oldname: Name
    newdirfid: Fid
    newname: Name


@message(75, _L)
class Rrenameat(Message, frozen=True):
    """Done."""


@message(76, _L)
class Tunlinkat(Message, frozen=True):
    """Remove a name from a directory; flags 0x200 for a directory."""

    dirfid: Fid
    name: Name
    flags: Small


@message(77, _L)
class Runlinkat(Message, frozen=True):
    """Done."""
