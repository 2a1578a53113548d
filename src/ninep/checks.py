"""The checks that every request passes, whatever wire it came on: names, offsets, modes, rights.

Pure functions over values; each raises the FileError that the client reads.
"""

from __future__ import annotations

from .file import Call, Dir, File
from .principal import CHANGES, Rights
from .proto import errors as E
from .proto.types import NAME_BYTES_MAX, OFFSET_MAX, ORCLOSE, OREAD, OTRUNC, OWRITE

READ, WRITE, EXEC = int(Rights.READ), int(Rights.WRITE), int(Rights.EXEC)
GETATTR, SETATTR, ENUM, TRAVERSE = int(Rights.GETATTR), int(Rights.SETATTR), int(Rights.ENUM), int(Rights.TRAVERSE)
CREATE, REMOVE, RENAME, LINK = int(Rights.CREATE), int(Rights.REMOVE), int(Rights.RENAME), int(Rights.LINK)
LOCK, XATTR = int(Rights.LOCK), int(Rights.XATTR)


def need(call: Call, right: int) -> None:
    """The one gate of rights.  A principal with no right to change anything reads "read only file system"."""
    rights = call.principal.rights
    if rights & right == right:
        return
    if right & CHANGES and not rights & CHANGES:
        raise E.Erofs
    if right == TRAVERSE:
        raise E.Enonexist  # what may not be walked to is not there
    raise E.Eperm


def check_name(name: str) -> None:
    """A name one directory may hold: 1..255 bytes, no `/`, no NUL, not `.` or `..` (protocol.md W6)."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise E.Ebadchar(repr(name[:40]))
    if len(name) > NAME_BYTES_MAX or (
        not name.isascii() and len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX
    ):
        raise E.Enametoolong(repr(name[:20]))


def check_range(offset: int, count: int) -> None:
    """An offset and count whose sum a file can have (protocol.md R4)."""
    if offset < 0 or offset > OFFSET_MAX or offset + count > OFFSET_MAX:
        raise E.Ebadoffset(str(offset))


def as_dir(file: File) -> Dir:
    if isinstance(file, Dir):
        return file
    raise E.Enotdir


def rights_of(omode: int) -> int:
    """The rights that an open mode needs."""
    access = omode & 3
    rights = WRITE if access == OWRITE else READ if access == OREAD else READ | WRITE if access == 2 else EXEC
    return rights | (WRITE if omode & OTRUNC else 0) | (REMOVE if omode & ORCLOSE else 0)
