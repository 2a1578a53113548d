"""The messages of 9P2000, and what 9P2000.u adds to them: one class each, section 5's names and order.

Declarations only: what a request means is the Session's affair.  A field marked IN_U or IN_UL travels in those
dialects only and has its default elsewhere.  The messages that 9P2000.L shares are marked ALL or SHARED; its own are
in dotl.py.  Sources: intro(5) and the pages named after each message; ericvh's 9p-rfc for .u.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

from ninep.proto.codec import ALL, OLD, In, Message, message
from ninep.proto.fields import DATA, NAME, QID, STAT, STR, U8, U16, U32, U64, WNAMES, WQIDS
from ninep.proto.records import StatRecord
from ninep.proto.types import NONUNAME, Qid

IN_U: Final = In.DOTU
IN_UL: Final = In.DOTU | In.DOTL

Fid = Annotated[int, U32]
Count = Annotated[int, U32]
Offset = Annotated[int, U64]
AQid = Annotated[Qid, QID]
Text = Annotated[str, STR]
Name = Annotated[str, NAME]
Bytes = Annotated[bytes | memoryview, DATA]


@message(100, ALL)
class Tversion(Message, frozen=True):
    """Begin a session: the largest frame the client will handle and the dialect it wants."""

    msize: Count
    version: Text


@message(101, ALL)
class Rversion(Message, frozen=True):
    """The frame size and dialect that both sides keep to; `unknown` if there is none in common."""

    msize: Count
    version: Text


@message(102, ALL)
class Tauth(Message, frozen=True):
    """Make afid a file on which the client may prove that it is uname, for the tree aname."""

    afid: Fid
    uname: Text
    aname: Text
    n_uname: Annotated[int, U32, IN_UL] = NONUNAME


@message(103, ALL)
class Rauth(Message, frozen=True):
    """The authentication file, to be read and written as its protocol asks."""

    aqid: AQid


@message(104, ALL)
class Tattach(Message, frozen=True):
    """Make fid the root of the tree aname, as the user that afid has proven, or NOFID."""

    fid: Fid
    afid: Fid
    uname: Text
    aname: Text
    n_uname: Annotated[int, U32, IN_UL] = NONUNAME


@message(105, ALL)
class Rattach(Message, frozen=True):
    """The root."""

    qid: AQid


@message(107, OLD)
class Rerror(Message, frozen=True):
    """Why the request did not happen."""

    ename: Name
    errno: Annotated[int, U32, IN_U] = 0


@message(108, ALL)
class Tflush(Message, frozen=True):
    """Forget the request with this tag."""

    oldtag: Annotated[int, U16]


@message(109, ALL)
class Rflush(Message, frozen=True):
    """The tag is free: no reply to it will follow."""


@message(110, ALL)
class Twalk(Message, frozen=True):
    """Walk from fid down the names; newfid is the result.  No names: newfid is a copy of fid."""

    fid: Fid
    newfid: Fid
    wname: Annotated[tuple[str, ...], WNAMES] = ()


@message(111, ALL)
class Rwalk(Message, frozen=True):
    """The qids of the names that exist; fewer than asked means that newfid was not made."""

    wqid: Annotated[tuple[Qid, ...], WQIDS] = ()


@message(112, OLD)
class Topen(Message, frozen=True):
    """Prepare fid for reading or writing."""

    fid: Fid
    mode: Annotated[int, U8]


@message(113, OLD)
class Ropen(Message, frozen=True):
    """The file opened, and the most bytes one read or write carries whole (0: msize - 24)."""

    qid: AQid
    iounit: Count


@message(114, OLD)
class Tcreate(Message, frozen=True):
    """Make a file in the directory fid and open it as fid."""

    fid: Fid
    name: Name
    perm: Annotated[int, U32]
    mode: Annotated[int, U8]
    extension: Annotated[str, NAME, IN_U] = ""


@message(115, OLD)
class Rcreate(Message, frozen=True):
    """The file made, open."""

    qid: AQid
    iounit: Count


@message(116, ALL)
class Tread(Message, frozen=True):
    """Read at most count bytes at offset."""

    fid: Fid
    offset: Offset
    count: Count


@message(117, ALL)
class Rread(Message, frozen=True):
    """The bytes; none means the end of the file."""

    data: Bytes


@message(118, ALL)
class Twrite(Message, frozen=True):
    """Write data at offset."""

    fid: Fid
    offset: Offset
    data: Bytes


@message(119, ALL)
class Rwrite(Message, frozen=True):
    """How many bytes were taken."""

    count: Count


@message(120, ALL)
class Tclunk(Message, frozen=True):
    """Forget fid.  It is gone whatever the reply says."""

    fid: Fid


@message(121, ALL)
class Rclunk(Message, frozen=True):
    """Done."""


@message(122, ALL)
class Tremove(Message, frozen=True):
    """Remove the file and forget fid.  The fid is gone whatever the reply says."""

    fid: Fid


@message(123, ALL)
class Rremove(Message, frozen=True):
    """Done."""


@message(124, OLD)
class Tstat(Message, frozen=True):
    """Ask for the file's stat record."""

    fid: Fid


@message(125, OLD)
class Rstat(Message, frozen=True):
    """The stat record."""

    stat: Annotated[StatRecord, STAT]


@message(126, OLD)
class Twstat(Message, frozen=True):
    """Change what the record does not mark as untouched: all of it or nothing."""

    fid: Fid
    stat: Annotated[StatRecord, STAT]


@message(127, OLD)
class Rwstat(Message, frozen=True):
    """Done."""


READ_HEADER_BYTES: Final = 11
WRITE_HEADER_BYTES: Final = 23

_DATA_HEADER: Final = struct.Struct("<IBHI")
_WRITE_HEADER: Final = struct.Struct("<IBHIQI")


def read_header(tag: int, count: int) -> bytes:
    """An Rread up to its data, so that a payload of `count` bytes is sent from where it lies."""
    return _DATA_HEADER.pack(READ_HEADER_BYTES + count, 117, tag, count)


def readdir_header(tag: int, count: int) -> bytes:
    """An Rreaddir up to its data."""
    return _DATA_HEADER.pack(READ_HEADER_BYTES + count, 41, tag, count)


def write_header(tag: int, fid: int, offset: int, count: int) -> bytes:
    """A Twrite up to its data."""
    return _WRITE_HEADER.pack(WRITE_HEADER_BYTES + count, 118, tag, fid, offset, count)
