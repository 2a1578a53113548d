"""Records that travel inside data: the stat record of 9P2000 and .u, and the directory entry of .L.

Pure packing: who fills a record, and from what, is the edge's affair.  A record that does not fit is an error, never
a shorter record (stat(5), readdir).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from ninep.proto.errors import Ebadchar, Eproto, Erange, Esmall
from ninep.proto.types import Entry, Qid

STAT_BYTES_MAX: Final = 0xFFFF
DIRENT_HEAD_BYTES: Final = 24

_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF

UNTOUCHED_QID: Final = Qid(0xFF, _U32, _U64)


class BadRecord(ValueError):
    """A stat record or directory entry that does not add up; the text says where."""


class StatRecord(msgspec.Struct, frozen=True, gc=False):
    """One stat record as it travels: seconds, and names of users.  Every default means "don't touch" (stat(5)).

    `perm` is the manual's `mode`.  `extension` and the `n_` numbers exist in 9P2000.u only.
    """

    type: int = _U16
    dev: int = _U32
    qid: Qid = UNTOUCHED_QID
    perm: int = _U32
    atime: int = _U32
    mtime: int = _U32
    length: int = _U64
    name: str = ""
    uid: str = ""
    gid: str = ""
    muid: str = ""
    extension: str = ""
    n_uid: int = _U32
    n_gid: int = _U32
    n_muid: int = _U32

    @property
    def is_untouched(self) -> bool:
        """Whether a Twstat with this record changes nothing, which asks for the file to be made durable."""
        return self == UNTOUCHED

    def touched(self) -> frozenset[str]:
        """The names of the fields that a Twstat with this record would change."""
        return frozenset(f for f in self.__struct_fields__ if getattr(self, f) != getattr(UNTOUCHED, f))


UNTOUCHED: Final = StatRecord()

_HEAD: Final = struct.Struct("<HHIBIQIIIQH")  # up to the length of the name
_U_TAIL: Final = struct.Struct("<III")
_LEN: Final = struct.Struct("<H")


def _text(value: str, field: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    if 0 in raw:
        raise Ebadchar(field)
    if len(raw) > STAT_BYTES_MAX:
        raise Erange(field)
    return _LEN.pack(len(raw)) + raw


def pack_stat(record: StatRecord, dotu: bool = False) -> bytes:
    """The record with its own size[2] in front, as a directory read carries it.

    Raises Erange if it would pass 65535 bytes, Ebadchar for a NUL in a string.
    """
    r = record
    name = _text(r.name, "stat name")
    rest = _text(r.uid, "stat uid") + _text(r.gid, "stat gid") + _text(r.muid, "stat muid")
    if dotu:
        rest += _text(r.extension, "stat extension") + _U_TAIL.pack(r.n_uid, r.n_gid, r.n_muid)
    size = _HEAD.size - 4 + len(name) + len(rest)  # the size field and the name's length are counted elsewhere
    if size + 2 > STAT_BYTES_MAX:
        raise Erange("stat record")
    t, v, path = r.qid
    head = _HEAD.pack(size, r.type, r.dev, t, v, path, r.perm, r.atime, r.mtime, r.length, len(name) - 2)
    return head + name[2:] + rest


def unpack_stat(buf: memoryview, at: int, end: int, dotu: bool = False) -> tuple[StatRecord, int]:
    """The record at `at`, which must end by `end`, and the place after it.  Raises BadRecord."""
    if at + _HEAD.size > end:
        raise BadRecord("stat record cut short")
    size, kind, dev, qtype, vers, path, perm, atime, mtime, length, name_bytes = _HEAD.unpack_from(buf, at)
    stop = at + 2 + size
    if stop > end:
        raise BadRecord("stat record longer than its frame")
    name, p = _get_text(buf, at + _HEAD.size, stop, name_bytes)
    uid, p = _get_string(buf, p, stop)
    gid, p = _get_string(buf, p, stop)
    muid, p = _get_string(buf, p, stop)
    extension, n_uid, n_gid, n_muid = "", _U32, _U32, _U32
    if dotu:
        extension, p = _get_string(buf, p, stop)
        if p + _U_TAIL.size > stop:
            raise BadRecord("stat record cut short")
        n_uid, n_gid, n_muid = _U_TAIL.unpack_from(buf, p)
        p += _U_TAIL.size
    if p != stop:
        raise BadRecord("stat record longer than its fields")
    qid = Qid(qtype, vers, path)
    record = StatRecord(
        kind, dev, qid, perm, atime, mtime, length, name, uid, gid, muid, extension, n_uid, n_gid, n_muid
    )
    return record, stop


def _get_text(buf: memoryview, at: int, stop: int, size: int) -> tuple[str, int]:
    q = at + size
    if q > stop:
        raise BadRecord("string runs past its record")
    text = str(buf[at:q], "utf-8", "surrogateescape")
    if "\0" in text:
        raise BadRecord("NUL in a string")
    return text, q


def _get_string(buf: memoryview, at: int, stop: int) -> tuple[str, int]:
    if at + 2 > stop:
        raise BadRecord("stat record cut short")
    return _get_text(buf, at + 2, stop, buf[at] | buf[at + 1] << 8)


def pack_stats(records: Iterable[StatRecord], count: int, dotu: bool = False) -> tuple[bytes, int]:
    """As many whole records as fit in `count` bytes, and how many those are (a 9P2000 directory read).

    Raises Esmall if there is a record but not even the first fits: an empty reply would mean the end (read(5)).
    """
    out: list[bytes] = []
    left = count
    for record in records:
        raw = pack_stat(record, dotu)
        left -= len(raw)
        if left < 0:
            if not out:
                raise Esmall(f"directory entry of {len(raw)} bytes")
            break
        out.append(raw)
    return b"".join(out), len(out)


def unpack_stats(data: bytes | memoryview, dotu: bool = False) -> list[StatRecord]:
    """The records of a directory read.  Raises Eproto if they do not add up or a name is not a name."""
    buf = memoryview(data)
    records: list[StatRecord] = []
    at, end = 0, len(buf)
    while at < end:
        try:
            record, at = unpack_stat(buf, at, end, dotu)
        except BadRecord as bad:
            raise Eproto(str(bad)) from None
        if not record.name or "/" in record.name:
            raise Eproto("directory entry name")
        records.append(record)
    return records


_DIRENT: Final = struct.Struct("<BIQQBH")


def pack_dirent(qid: Qid, cookie: int, dtype: int, name: str) -> bytes:
    """One .L directory entry: qid[13] offset[8] type[1] name[s].  Raises Ebadchar or Erange for the name."""
    raw = name.encode("utf-8", "surrogateescape")
    if 0 in raw:
        raise Ebadchar("directory entry")
    if len(raw) > _U16:
        raise Erange("directory entry")
    return _DIRENT.pack(qid[0], qid[1], qid[2], cookie, dtype, len(raw)) + raw


def pack_dirents(entries: Iterable[Entry], count: int) -> tuple[bytes, int]:
    """As many whole entries as fit in `count` bytes, and how many those are.

    Raises Esmall if there is an entry but not even the first fits: an empty reply would mean the end (readdir).
    """
    out: list[bytes] = []
    pack = _DIRENT.pack
    left = count
    packed = 0
    for name, qid, dtype, cookie, _ in entries:
        raw = name.encode("utf-8", "surrogateescape")
        size = len(raw)
        left -= DIRENT_HEAD_BYTES + size
        if left < 0:
            if not packed:
                raise Esmall(f"directory entry of {DIRENT_HEAD_BYTES + size} bytes")
            break
        if 0 in raw:
            raise Ebadchar("directory entry")
        if size > _U16:
            raise Erange("directory entry")
        out.append(pack(qid[0], qid[1], qid[2], cookie, dtype, size))
        out.append(raw)
        packed += 1
    return b"".join(out), packed


def unpack_dirents(data: bytes | memoryview) -> list[Entry]:
    """The entries of an Rreaddir, `.` and `..` among them if the server sent them.

    Raises Eproto if they do not add up or a name is not a name: a hostile server must not reach past its own tree.
    """
    buf = memoryview(data)
    entries: list[Entry] = []
    unpack = _DIRENT.unpack_from
    at, end = 0, len(buf)
    while at < end:
        p = at + DIRENT_HEAD_BYTES
        if p > end:
            raise Eproto("directory entry cut short")
        qtype, vers, path, cookie, dtype, size = unpack(buf, at)
        at = p + size
        if at > end:
            raise Eproto("directory entry cut short")
        name = str(buf[p:at], "utf-8", "surrogateescape")
        if not name or "/" in name or "\0" in name:
            raise Eproto("directory entry name")
        entries.append(Entry(name, Qid(qtype, vers, path), dtype, cookie))
    return entries
