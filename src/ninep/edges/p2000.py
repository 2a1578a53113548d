"""9P2000 and 9P2000.u: stat records, string errors, directory reads as records, Plan 9's create and wstat.

Only translation here.  9P2000.u is the same adapter with Unix types, numbers and the `extension` field.
"""

from __future__ import annotations

import os
import stat as _s
from collections import deque
from collections.abc import Sequence

from ninep.answer import Answer, answering, then
from ninep.edges import users
from ninep.edges.dialects import Adapter, handles
from ninep.fid import Fid, Way
from ninep.file import Dir, File
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.codec import Message
from ninep.proto.records import UNTOUCHED, StatRecord, pack_stat
from ninep.proto.types import (
    DMAPPEND,
    DMAUTH,
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
    OAPPEND,
    OFFSET_MAX,
    OTRUNC,
    UNKNOWN_ID,
    Change,
    Entry,
    Stat,
    perm_bits,
    perm_of,
)
from ninep.proto.types import ORCLOSE as RCLOSE
from ninep.proto.version import DOTU
from ninep.proto.version import P2000 as P2000_DIALECT
from ninep.session import Steps

MODE_BITS = 3 | OTRUNC | RCLOSE
MODE_BITS_DOTU = MODE_BITS | OAPPEND  # the Linux client says O_APPEND with Plan 9's number for it
DM_2000 = DMDIR | DMAPPEND | DMEXCL | DMAUTH | DMTMP | 0o777
DM_SPECIAL = DMSYMLINK | DMLINK | DMDEVICE | DMNAMEDPIPE | DMSOCKET
DM_DOTU = DM_2000 | DM_SPECIAL | DMSETUID | DMSETGID | DMSETVTX
ENTRIES_ASKED = 64
RSTAT_BYTES_MAX = 8192  # what the Linux client has room for (protocol.md Z4)


class DirRead:
    """Where a directory read stands: the offset that may come next, and entries not yet sent."""

    __slots__ = ("cookie", "is_busy", "left", "offset", "packed", "waiting")

    def __init__(self) -> None:
        self.offset = 0
        self.left = 0  # what the last reply left free of the count that was asked for
        self.cookie = 0
        self.waiting: deque[Entry] = deque()
        self.packed: bytes | None = None  # the record of waiting[0], if it did not fit
        self.is_busy = False  # a read is under way, and the tree has to wait for something


class P2000(Adapter):
    dialect = P2000_DIALECT
    dotu = False

    # -- opening and making

    @handles(m.Topen, changes="fid", parks=True)
    def open(self, t: m.Topen) -> Answer[Message]:
        _check_mode(t.mode, dotu=self.dotu)
        fid = self.fids.get(t.fid)
        return then(self.session.open(fid.call, fid, t.mode), lambda got: m.Ropen(*got))

    @handles(m.Tcreate, changes="fid")
    def create(self, t: m.Tcreate) -> Answer[Message]:
        _check_mode(t.mode, dotu=self.dotu)
        if t.perm & ~(DM_DOTU if self.dotu else DM_2000) or t.perm & DMAUTH:
            raise E.Ebadarg(f"permission word {t.perm:#o}")
        fid = self.fids.get(t.fid)
        if t.perm & DM_SPECIAL:
            return self._special(t, fid)
        perm = perm_bits(t.perm)
        if t.perm & DMDIR:
            made = self.session.create_dir(fid.call, fid, t.name, perm, t.mode)
        else:
            made = self.session.create(
                fid.call, fid, t.name, perm | t.perm & (DMAPPEND | DMEXCL), t.mode, inherit=True, exclusive=True
            )
        return then(made, lambda got: m.Rcreate(*got))

    @answering
    def _special(self, t: m.Tcreate, fid: Fid) -> Steps[Message]:
        """.u's symlinks, links, pipes, sockets and devices: the fid becomes the new file, not open."""
        if fid.is_open:
            raise E.Ebadusefid("already open")
        session, call = self.session, fid.call
        mode = perm_bits(t.perm)
        rdev = 0
        file: File
        if t.perm & DMSYMLINK:
            file = yield session.symlink(call, fid, t.name, t.extension)
        elif t.perm & DMLINK:
            target = self.fids.get(_fid_number(t.extension))
            yield session.link(call, fid, t.name, target)
            file = target.file
        else:
            if t.perm & DMDEVICE:
                kind, rdev = _device(t.extension)
            else:
                kind = _s.S_IFIFO if t.perm & DMNAMEDPIPE else _s.S_IFSOCK
            file = yield session.mknod(call, fid, t.name, kind | mode, rdev)
        assert isinstance(fid.file, Dir)
        fid.way = Way(fid.way, fid.file, t.name)
        fid.file = file
        return m.Rcreate(file.qid, 0)

    # -- directories read as stat records

    @handles(m.Tread, parks=True)
    def read(self, t: m.Tread) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        if fid.handle is not None and isinstance(fid.file, Dir) and not fid.is_auth:
            return self._read_dir(fid, t.offset, min(t.count, self.count_max))
        return super().read(t)

    @answering
    def _read_dir(self, fid: Fid, offset: int, count: int) -> Steps[Message]:
        """Whole records only; the offset is 0 or where the last read ended (read(5)).

        A count too small for the next record is an error, since an empty reply means the end.  But the Linux client
        fills one buffer with several reads (p9_client_read): when it asks for what the last reply left free, empty is
        the answer that it takes for a full buffer, and it comes back with a fresh one.
        """
        at = fid.dir_read
        if offset == 0 or not isinstance(at, DirRead):
            if offset:
                raise E.Ediroffset(str(offset))
            at = fid.dir_read = DirRead()
        elif offset != at.offset:
            raise E.Ediroffset(f"{offset}, expected {at.offset}")
        elif at.is_busy:
            raise E.Ebadusefid("another read of this directory is under way")
        at.is_busy = True
        is_rest = offset != 0 and 0 < count == at.left
        try:
            data: bytes = yield self._next_records(fid, at, count, is_rest)
        finally:
            at.is_busy = False
        at.offset = offset + len(data)
        at.left = count - len(data) if data else 0
        return m.Rread(data)

    @answering
    def _next_records(self, fid: Fid, at: DirRead, count: int, may_be_empty: bool) -> Steps[bytes]:
        out: list[bytes] = []
        room = count
        while True:
            if not at.waiting:
                entries: Sequence[Entry] = yield self.session.entries(fid.call, fid, at.cookie, ENTRIES_ASKED)
                if not entries:
                    break
                at.waiting.extend(entries)
                at.cookie = entries[-1].cookie
            if at.packed is None:
                at.packed = yield self._record(fid, at.waiting[0])
            record = at.packed
            if len(record) > room:
                if not out and not may_be_empty:
                    raise E.Esmall(f"directory entry of {len(record)} bytes")
                break
            if record:
                out.append(record)
                room -= len(record)
            at.packed = None
            at.waiting.popleft()
        return b"".join(out)

    @answering
    def _record(self, fid: Fid, entry: Entry) -> Steps[bytes]:
        """One entry's stat record; empty if the file is gone by now."""
        st = entry.stat
        extension = ""
        try:
            if st is None or (self.dotu and _s.S_ISLNK(st.st_mode)):
                assert isinstance(fid.file, Dir)
                file: File = yield fid.file.walk(fid.call, entry.name)
                st = yield file.stat(fid.call)
                extension = yield self._extension(fid, file, st)
        except (E.Enonexist, E.Estale):
            return b""
        return pack_stat(self.record_of(st, entry.name, extension), self.dotu)

    # -- stat

    @handles(m.Tstat)
    def stat(self, t: m.Tstat) -> Answer[Message]:
        return self._stat(self.fids.get(t.fid))

    @answering
    def _stat(self, fid: Fid) -> Steps[Message]:
        st: Stat = yield self.session.stat(fid.call, fid)
        extension = yield self._extension(fid, fid.file, st)
        record = self.record_of(st, fid.way.name if fid.way is not None else "/", extension)
        if len(pack_stat(record, self.dotu)) > min(RSTAT_BYTES_MAX - 32, self.count_max):
            raise E.Erange("stat record")
        return m.Rstat(record)

    def _extension(self, fid: Fid, file: File, st: Stat) -> Answer[str]:
        if not self.dotu:
            return ""
        kind = st.st_mode & 0o170000
        if kind == _s.S_IFLNK:
            return file.readlink(fid.call)
        if kind in (_s.S_IFCHR, _s.S_IFBLK):
            return f"{'c' if kind == _s.S_IFCHR else 'b'} {os.major(st.rdev)} {os.minor(st.rdev)}"
        return ""

    def record_of(self, st: Stat, name: str, extension: str) -> StatRecord:
        """The record that tells this Stat; a directory's length is 0 (stat(5))."""
        uname = st.uname or users.user_name(st.uid)
        return StatRecord(
            0,
            0,
            st.qid,
            perm_of(st.st_mode, st.flags, dotu=self.dotu),
            _seconds(st.atime_ns),
            _seconds(st.mtime_ns),
            0 if st.is_dir else st.size,
            name,
            uname,
            st.gname or users.group_name(st.gid),
            st.muname or uname,
            extension,
            st.uid,
            st.gid,
            st.uid,
        )

    @handles(m.Twstat)
    def wstat(self, t: m.Twstat) -> Answer[Message]:
        return self._wstat(self.fids.get(t.fid), t.stat)

    @answering
    def _wstat(self, fid: Fid, want: StatRecord) -> Steps[Message]:
        touched = want.touched()
        name: str | None = None
        change = Change()
        if touched:
            st: Stat = yield self.session.stat(fid.call, fid)
            change, name = self._change(fid, want, touched, st)
        yield self.session.wstat(fid.call, fid, change, name)
        return m.Rwstat()

    def _change(self, fid: Fid, want: StatRecord, touched: frozenset[str], st: Stat) -> tuple[Change, str | None]:
        """What the record changes.  Supplying the present value is no change; what wstat(5) forbids is refused.

        The access time may come along with the modification time: that is how the Linux client says utimes(2).
        """
        extension = want.extension if "extension" in touched else ""
        now = self.record_of(st, fid.way.name if fid.way is not None else "/", extension)
        fixed = {"type", "dev", "qid", "muid", "uid", "n_muid", "extension"}
        if "mtime" not in touched and not self.dotu:
            fixed.add("atime")
        for field in sorted(touched & fixed):
            if getattr(want, field) != getattr(now, field):
                raise E.Enotallowed(f"wstat of {field}")
        perm = None
        if "perm" in touched:
            mine = DM_DOTU if self.dotu else DM_2000
            kinds = ~(0o777 | DMSETUID | DMSETGID | DMSETVTX) & 0xFFFFFFFF
            if want.perm & ~mine or (want.perm ^ now.perm) & kinds:
                raise E.Enotallowed(f"wstat of the file type: {want.perm:#o}")
            perm = perm_bits(want.perm)
            if not self.dotu:
                perm |= st.st_mode & 0o7000  # 9P2000 has no words for these: they stay
        if "length" in touched and (want.length > OFFSET_MAX or (st.is_dir and want.length)):
            raise E.Eisdir if st.is_dir else E.Efbig(str(want.length))
        change = Change(
            perm=perm if perm != st.st_mode & 0o7777 else None,
            uid=want.n_uid if self.dotu and want.n_uid not in (UNKNOWN_ID, st.uid) else None,
            gid=self._group(want, touched, st),
            size=want.length if "length" in touched and not st.is_dir else None,
            atime_ns=want.atime * 1_000_000_000 if "atime" in touched and want.atime != now.atime else None,
            mtime_ns=want.mtime * 1_000_000_000 if "mtime" in touched else None,
        )
        return change, want.name if "name" in touched and want.name != now.name else None

    def _group(self, want: StatRecord, touched: frozenset[str], st: Stat) -> int | None:
        gid = UNKNOWN_ID
        if self.dotu and want.n_gid != UNKNOWN_ID:
            gid = want.n_gid
        elif "gid" in touched:
            gid = users.group_number(want.gid)
            if gid == UNKNOWN_ID and want.gid != (st.gname or users.group_name(st.gid)):
                raise E.Ebadarg(f"no such group: {want.gid[:40]}")
        return None if gid in (UNKNOWN_ID, st.gid) else gid


class DotU(P2000):
    dialect = DOTU
    dotu = True


def _seconds(ns: int) -> int:
    """A time in a record's 32 bits; what lies outside is clamped, never wrapped."""
    return min(max(ns // 1_000_000_000, 0), 0xFFFFFFFE)


def _check_mode(mode: int, *, dotu: bool) -> None:
    if mode & ~(MODE_BITS_DOTU if dotu else MODE_BITS):
        raise E.Ebadarg(f"open mode {mode:#x}")


def _fid_number(extension: str) -> int:
    """The fid in a DMLINK extension: decimal, perhaps with the newline that Linux adds."""
    digits = extension.removesuffix("\n")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
        raise E.Ebadarg("link extension is not a fid")
    return int(digits)


def _device(extension: str) -> tuple[int, int]:
    """`b MAJ MIN` or `c MAJ MIN`."""
    words = extension.split(" ")
    if len(words) != 3 or words[0] not in ("b", "c") or not all(w.isascii() and w.isdigit() for w in words[1:]):
        raise E.Ebadarg("device extension is not `c MAJ MIN`")
    major, minor = int(words[1][:8]), int(words[2][:8])
    if major > 0xFFF or minor > 0xFFFFF:
        raise E.Ebadarg("device number")
    return _s.S_IFCHR if words[0] == "c" else _s.S_IFBLK, os.makedev(major, minor)


__all__ = ["UNTOUCHED", "DirRead", "DotU", "P2000"]
