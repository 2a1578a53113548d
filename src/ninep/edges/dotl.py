"""9P2000.L: the Linux dialect's own messages as Session calls.

Numbers and flags are Linux's generic ones (protocol.md 1.3, 1.15).  Only translation here: what a request may do is
the Session's to say.
"""

from __future__ import annotations

import os
import stat as _s

from ninep.answer import Answer, answering, then
from ninep.edges.dialects import Adapter, handles
from ninep.file import Dir, File
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto.codec import Message
from ninep.proto.records import pack_dirents
from ninep.proto.types import (
    DT_DIR,
    F_UNLCK,
    F_WRLCK,
    NOW,
    OAPPEND,
    OFFSET_MAX,
    OSYNC,
    OTRUNC,
    UNKNOWN_ID,
    Change,
    Entry,
    Lock,
    Qid,
    Stat,
)
from ninep.proto.version import DOTL
from ninep.session import Steps

# `.` and `..` come first, under cookies that no tree gives: trees keep below them (ext4 ends at 2**63 - 1 exactly).
DOT_COOKIE = OFFSET_MAX - 2
DOTDOT_COOKIE = OFFSET_MAX - 1
ENTRY_BYTES = 32  # a short entry: how many to ask a tree for
CLIENT_ID_BYTES_MAX = 1024
SECONDS_MAX = OFFSET_MAX // 1_000_000_000
SUPPLIED = l.GETATTR_BASIC | l.GETATTR_BTIME | l.GETATTR_DATA_VERSION


class DotL(Adapter):
    dialect = DOTL

    # -- metadata

    @handles(l.Tgetattr)
    def getattr(self, t: l.Tgetattr) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        st = self.session.stat(fid.call, fid)
        if type(st) is Stat:
            return rgetattr(st, t.request_mask)
        return then(st, lambda st: rgetattr(st, t.request_mask))

    @handles(l.Tsetattr)
    def setattr(self, t: l.Tsetattr) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        return then(self.session.wstat(fid.call, fid, change_of(t)), lambda _: l.Rsetattr())

    @handles(l.Tstatfs)
    def statfs(self, t: l.Tstatfs) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        return then(self.session.statfs(fid.call, fid), lambda s: l.Rstatfs(l.STATFS_TYPE, *s))

    @handles(l.Treadlink)
    def readlink(self, t: l.Treadlink) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        return then(self.session.readlink(fid.call, fid), l.Rreadlink)

    # -- opening and making

    @handles(l.Tlopen, changes="fid", parks=True)
    def open(self, t: l.Tlopen) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        if t.flags & l.L_DIRECTORY and not isinstance(fid.file, Dir):
            raise E.Enotdir
        return then(self.session.open(fid.call, fid, omode_of(t.flags)), lambda got: l.Rlopen(*got))

    @handles(l.Tlcreate, changes="fid")
    def create(self, t: l.Tlcreate) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        made = self.session.create(
            fid.call,
            fid,
            t.name,
            t.mode & 0o7777,
            omode_of(t.flags),
            inherit=False,
            exclusive=bool(t.flags & l.L_EXCL),
        )
        return then(made, lambda got: l.Rlcreate(*got))

    @handles(l.Tmkdir)
    def mkdir(self, t: l.Tmkdir) -> Answer[Message]:
        fid = self.fids.get(t.dfid)
        return then(self.session.mkdir(fid.call, fid, t.name, t.mode & 0o7777), lambda f: l.Rmkdir(f.qid))

    @handles(l.Tsymlink)
    def symlink(self, t: l.Tsymlink) -> Answer[Message]:
        fid = self.fids.get(t.dfid)
        return then(self.session.symlink(fid.call, fid, t.name, t.symtgt), lambda f: l.Rsymlink(f.qid))

    @handles(l.Tmknod)
    def mknod(self, t: l.Tmknod) -> Answer[Message]:
        fid = self.fids.get(t.dfid)
        mode = t.mode if t.mode & 0o170000 else t.mode | _s.S_IFREG
        made: Answer[File] = self.session.mknod(
            fid.call, fid, t.name, mode & 0o177777, os.makedev(t.major & 0xFFF, t.minor & 0xFFFFF)
        )
        return then(made, lambda f: l.Rmknod(f.qid))

    @handles(l.Tlink)
    def link(self, t: l.Tlink) -> Answer[Message]:
        fid = self.fids.get(t.dfid)
        return then(self.session.link(fid.call, fid, t.name, self.fids.get(t.fid)), lambda _: l.Rlink())

    # -- renaming and removing

    @handles(l.Trename)
    def rename(self, t: l.Trename) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        return then(self.session.rename_fid(fid.call, fid, self.fids.get(t.dfid), t.name), lambda _: l.Rrename())

    @handles(l.Trenameat)
    def renameat(self, t: l.Trenameat) -> Answer[Message]:
        fid = self.fids.get(t.olddirfid)
        done = self.session.rename(fid.call, fid, t.oldname, self.fids.get(t.newdirfid), t.newname)
        return then(done, lambda _: l.Rrenameat())

    @handles(l.Tunlinkat)
    def unlinkat(self, t: l.Tunlinkat) -> Answer[Message]:
        if t.flags & ~l.L_REMOVEDIR:
            raise E.Ebadarg(f"unlinkat flags {t.flags:#x}")
        fid = self.fids.get(t.dirfid)
        is_dir = bool(t.flags & l.L_REMOVEDIR)
        return then(self.session.unlink(fid.call, fid, t.name, is_dir), lambda _: l.Runlinkat())

    # -- open files

    @handles(l.Treaddir)
    def readdir(self, t: l.Treaddir) -> Answer[Message]:
        return self._readdir(t)

    @answering
    def _readdir(self, t: l.Treaddir) -> Steps[Message]:
        fid = self.fids.get(t.fid)
        count = min(t.count, self.count_max)
        if t.offset > OFFSET_MAX:
            raise E.Ediroffset(str(t.offset))
        dots: list[Entry] = []
        cookie = t.offset
        if cookie in (0, DOT_COOKIE, DOTDOT_COOKIE):
            here = fid.file.qid
            above: Qid = fid.way.dir.qid if fid.way is not None else here
            dots = [Entry(".", here, DT_DIR, DOT_COOKIE), Entry("..", above, DT_DIR, DOTDOT_COOKIE)]
            dots = dots[0 if cookie == 0 else 1 if cookie == DOT_COOKIE else 2 :]
            cookie = 0
        entries = yield self.session.entries(fid.call, fid, cookie, count // ENTRY_BYTES + 1)
        data, _ = pack_dirents([*dots, *entries] if dots else entries, count)
        return l.Rreaddir(data)

    @handles(l.Tfsync)
    def fsync(self, t: l.Tfsync) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        return then(self.session.fsync(fid.call, fid, bool(t.datasync)), lambda _: l.Rfsync())

    @handles(l.Tlock)
    def lock(self, t: l.Tlock) -> Answer[Message]:
        """Never parks: a client that asked to wait is told BLOCKED and asks again (protocol.md D5)."""
        if t.type > F_UNLCK or t.flags & ~(l.LOCK_BLOCK | l.LOCK_RECLAIM):
            raise E.Ebadarg(f"lock type {t.type}, flags {t.flags}")
        fid = self.fids.get(t.fid)
        lock = self._lock(t, t.type)
        return then(
            self.session.lock(fid.call, fid, lock, False),
            lambda granted: l.Rlock(l.LOCK_SUCCESS if granted else l.LOCK_BLOCKED),
        )

    @handles(l.Tgetlock)
    def getlock(self, t: l.Tgetlock) -> Answer[Message]:
        """Linux asks with type UNLCK; it means "as a writer" (protocol.md D5)."""
        if t.type > F_UNLCK:
            raise E.Ebadarg(f"lock type {t.type}")
        fid = self.fids.get(t.fid)
        lock = self._lock(t, F_WRLCK if t.type == F_UNLCK else t.type)
        return then(self.session.getlock(fid.call, fid, lock), lambda found: self._rgetlock(t, found))

    def _lock(self, t: l.Tlock | l.Tgetlock, kind: int) -> Lock:
        end = OFFSET_MAX if t.length == 0 else t.start + t.length - 1
        if t.start > OFFSET_MAX or end > OFFSET_MAX:
            raise E.Ebadarg("lock range")
        if len(t.client_id) > CLIENT_ID_BYTES_MAX:
            raise E.Ebadarg(f"client id of {len(t.client_id)} characters")
        return Lock(kind, t.start, end, (self.session.id, t.client_id, t.proc_id), t.proc_id, t.client_id)

    def _rgetlock(self, t: l.Tgetlock, found: Lock | None) -> Message:
        if found is None:
            return l.Rgetlock(F_UNLCK, t.start, t.length, t.proc_id, t.client_id)
        length = 0 if found.end >= OFFSET_MAX else found.end - found.start + 1
        return l.Rgetlock(found.type, found.start, length, found.pid & 0xFFFFFFFF, found.client_id)

    # -- extended attributes

    @handles(l.Txattrwalk, changes="newfid")
    def xattrwalk(self, t: l.Txattrwalk) -> Answer[Message]:
        return self._xattrwalk(t)

    @answering
    def _xattrwalk(self, t: l.Txattrwalk) -> Steps[Message]:
        fid = self.fids.get(t.fid)
        self.fids.check_free(t.newfid)
        new, size = yield self.session.xattr_walk(fid.call, fid, t.name)
        try:
            self.fids.put(t.newfid, new)
        except E.FileError:
            self.session.discard_xattr(new)
            raise
        return l.Rxattrwalk(size)

    @handles(l.Txattrcreate, changes="fid")
    def xattrcreate(self, t: l.Txattrcreate) -> Answer[Message]:
        fid = self.fids.get(t.fid)
        return then(self.session.xattr_create(fid.call, fid, t.name, t.attr_size, t.flags), lambda _: l.Rxattrcreate())


def omode_of(flags: int) -> int:
    """Our open mode for Linux open flags; what makes no sense on a server is dropped (protocol.md O9)."""
    access = flags & 3
    if access == l.L_NOACCESS:
        raise E.Ebadarg("open flags 3")
    omode = access
    if flags & l.L_TRUNC:
        omode |= OTRUNC
    if flags & l.L_APPEND:
        omode |= OAPPEND
    if flags & (l.L_DSYNC | l.L_SYNC):
        omode |= OSYNC
    return omode


def rgetattr(st: Stat, mask: int) -> Message:
    """Every BASIC field is filled, asked for or not; `valid` tells what was asked and is known (protocol.md D1)."""
    rdev = st.rdev
    if rdev:
        major, minor = os.major(rdev), os.minor(rdev)
        rdev = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    atime, mtime, ctime, btime = st.atime_ns, st.mtime_ns, st.ctime_ns, st.btime_ns
    valid = SUPPLIED if btime else SUPPLIED & ~l.GETATTR_BTIME
    return l.Rgetattr(
        mask & valid,
        st.qid,
        st.st_mode,
        st.uid,
        st.gid,
        st.nlink,
        rdev,
        st.size,
        st.blksize,
        st.blocks,
        max(atime, 0) // 1_000_000_000,
        max(atime, 0) % 1_000_000_000,
        max(mtime, 0) // 1_000_000_000,
        max(mtime, 0) % 1_000_000_000,
        max(ctime, 0) // 1_000_000_000,
        max(ctime, 0) % 1_000_000_000,
        max(btime, 0) // 1_000_000_000,
        max(btime, 0) % 1_000_000_000,
        0,
        st.qid[1],
    )


def change_of(t: l.Tsetattr) -> Change:
    """What a Tsetattr asks.  Ebadarg for a number no file can have, or a bit this dialect does not define."""
    valid = t.valid
    if valid & ~l.SETATTR_ALL:
        raise E.Ebadarg(f"setattr valid {valid:#x}")
    if (valid & l.SETATTR_UID and t.uid == UNKNOWN_ID) or (valid & l.SETATTR_GID and t.gid == UNKNOWN_ID):
        raise E.Ebadarg("uid or gid 4294967295")
    if valid & l.SETATTR_SIZE and t.size > OFFSET_MAX:
        raise E.Efbig(str(t.size))
    return Change(
        perm=t.mode & 0o7777 if valid & l.SETATTR_MODE else None,
        uid=t.uid if valid & l.SETATTR_UID else None,
        gid=t.gid if valid & l.SETATTR_GID else None,
        size=t.size if valid & l.SETATTR_SIZE else None,
        atime_ns=_time(valid, l.SETATTR_ATIME, l.SETATTR_ATIME_SET, t.atime_sec, t.atime_nsec),
        mtime_ns=_time(valid, l.SETATTR_MTIME, l.SETATTR_MTIME_SET, t.mtime_sec, t.mtime_nsec),
        touch_ctime=bool(valid & l.SETATTR_CTIME),
    )


def _time(valid: int, bit: int, set_bit: int, sec: int, nsec: int) -> int | None:
    if not valid & bit:
        return None
    if not valid & set_bit:
        return NOW
    if nsec >= 1_000_000_000 or sec > SECONDS_MAX:
        raise E.Ebadarg("time out of range")
    return sec * 1_000_000_000 + nsec
