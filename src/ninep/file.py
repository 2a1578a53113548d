"""File, Dir, Handle: the one abstraction.  Walk a Dir to a File, open the File to get a Handle, use it, close it.

A File is a name, shared by everybody who walked to it: it keeps the thing's state, never a reader's.  A Handle is one
open of it and holds all per-open state.  Everything refuses by default: a tree is the list of what it can do.
Trees never see fids, tags, msize, dialects or `..`; the Session keeps each fid's way back and makes the checks.

Rules for authors, three lines.  Do the last `await` before you change what others can see; after the change, do not
await until you return.  Side effects happen at open or write, never at read.  `close` runs shielded and cannot refuse
for longer than Limits.close_seconds_max.

Every method returns its value or a coroutine (ninep.answer) and may raise any FileError.
"""

from __future__ import annotations

import itertools
import stat as _s
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import msgspec

from .answer import Answer, then
from .principal import NOBODY, Principal
from .proto import errors as E
from .proto.types import (
    DT_REG,
    NOW,
    ORCLOSE,
    OTRUNC,
    R_WANT,
    W_WANT,
    X_WANT,
    Change,
    Entry,
    Lock,
    Name,
    Qid,
    Stat,
    StatFs,
    qtype_of,
)

_paths = itertools.count(1)
HASHED_PATH = 1 << 63  # qid paths made by a keyed hash carry the top bit; counted ones never do


def new_path() -> int:
    """A qid path no other file of this process ever had.  Below 2**63, so that it never meets a hashed one."""
    return next(_paths)


class Call(msgspec.Struct, frozen=True, gc=False):
    """Who asks, through what, until when.  Made by the edge: per request over FUSE, per attach over 9P.

    `pid` is 0 where unknown; `pid_start` tells a recycled pid apart.  `group` names the namespace group.
    `deadline_ns` is on Env.now_ns's clock, 0 for none.
    """

    principal: Principal = NOBODY
    pid: int = 0
    pid_start: int = 0
    group: str = ""
    chain: int = 0
    span: int = 0
    deadline_ns: int = 0
    edge: str = ""


class Handle:
    """One open file, owned by one fid or descriptor.

    `stream`: no offsets; reads may park for ever, keep message boundaries and keep their order.
    `direct`: an edge must not cache the content or believe Stat.size for it.
    `iounit`: most bytes that one read or write moves atomically; 0 for "as much as the wire carries".
    """

    stream: bool = False
    direct: bool = False
    iounit: int = 0

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        """At most count bytes; b"" is end of file.  May park on a stream; a cancelled read consumes nothing."""
        raise E.Eperm

    def read_into(self, call: Call, offset: int, buffer: memoryview) -> Answer[int]:
        """As read, into a buffer of the edge's; the bytes read.  Override where a copy can be saved (host files).

        A tree that cannot answer at once must not keep the buffer: it returns a coroutine of `read` through this
        default, or fills the buffer inside its own coroutine (the edge keeps it alive until then).
        """
        return then(self.read(call, offset, len(buffer)), lambda data: _fill(buffer, data))

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        """The bytes taken.  `data` is only valid until the value (or the coroutine's result) is returned."""
        raise E.Eperm

    def truncate(self, call: Call, size: int) -> Answer[None]:
        """ftruncate(2): allowed by this handle's omode, whatever the file's mode says by now."""
        raise E.Eunsupported("truncate")

    def fsync(self, call: Call, datasync: bool) -> Answer[None]:
        return None

    def flush(self, call: Call) -> Answer[None]:
        """A descriptor of this open was closed (FUSE FLUSH, close(2)); errors reach that close(2)."""
        return None

    def lock(self, call: Call, lock: Lock, wait: bool) -> Answer[bool]:
        """Take, change or drop (F_UNLCK) a lock.  False: somebody else holds it and `wait` was not asked.  May park."""
        raise E.Eunsupported("lock")

    def getlock(self, call: Call, lock: Lock) -> Answer[Lock | None]:
        """A lock that would refuse this one, or None."""
        raise E.Eunsupported("lock")

    def unlock_owner(self, call: Call, owner: object, flock: bool) -> Answer[None]:
        """Drop every lock of an owner on this file: a clunk, a hang-up, a close(2)."""
        return None

    def allocate(self, call: Call, mode: int, offset: int, length: int) -> Answer[None]:
        """fallocate(2)."""
        raise E.Eunsupported("allocate")

    def seek(self, call: Call, offset: int, whence: int) -> Answer[int]:
        """lseek(2) with SEEK_DATA or SEEK_HOLE; Enxio past the end."""
        raise E.Eunsupported("seek")

    def copy_range(self, call: Call, offset: int, to: Handle, to_offset: int, count: int) -> Answer[int]:
        """copy_file_range(2) to another handle of the same tree; the bytes copied."""
        raise E.Exdev

    def ready(self, call: Call, events: int, notify: Callable[[], None] | None) -> int:
        """poll(2) bits that hold now.  With `notify`, and none of `events` among them: call it once when one may.

        POLLHUP and POLLERR always count as asked for (poll(2)).
        """
        return 0x145  # POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM, as a regular file answers

    def entries(self, call: Call, cookie: int, count: int) -> Answer[Sequence[Entry]]:
        """Up to about `count` entries after `cookie` (0: from the start); empty is the end.  Without `.` and `..`.

        A cookie stays good while the handle is open, whatever is created or removed meanwhile; an entry present
        throughout appears exactly once.  Ediroffset for a cookie this handle never gave.
        """
        raise E.Enotdir

    def names(self, call: Call, cookie: int, count: int) -> Answer[Sequence[Name]]:
        """As entries, for who needs no qid: a kernel that lists.  `count` is in bytes of names and 24 for each.

        A kernel keeps listings, so the cookie may come from an earlier handle of the same directory.  Override where an
        entry costs more than its name (host directories).
        """
        return then(self.entries(call, cookie, count // NAME_BYTES + 1), _names_of)

    def backing(self) -> int | None:
        """A host descriptor that an edge may hand to the kernel for passthrough, opened as this handle is; or None."""
        return None

    def close(self, call: Call) -> Answer[None]:
        """Release what open made.  Called exactly once.  An error reaches the clunk, but the handle is gone."""
        return None


NAME_BYTES = 40  # of a typical name and what comes with it


def _names_of(entries: Sequence[Entry]) -> Sequence[Name]:
    return [(e.qid.path, e.cookie, e.dtype, e.name.encode("utf-8", "surrogateescape")) for e in entries]


def _fill(buffer: memoryview, data: bytes) -> int:
    n = len(data)
    buffer[:n] = data
    return n


class File:
    """A name that can be walked to.

    Plain trees set the attributes below; others override stat().  `perm` is the twelve Unix permission bits.
    `entry_seconds` and `attr_seconds` say how long the kernel may believe a name and its attributes without asking.
    """

    kind: ClassVar[int] = _s.S_IFREG
    perm: int = 0o444
    flags: int = 0  # DMAPPEND, DMEXCL, DMTMP
    uid: int = 0
    gid: int = 0
    entry_seconds: float = 0.0
    attr_seconds: float = 0.0
    qid: Qid

    def __init__(self) -> None:
        self.qid = Qid(qtype_of(self.kind, self.flags), 0, new_path())

    @property
    def ino(self) -> int:
        """st_ino on a local mount, as the names() of the directory tell it.  A tree whose names() knows no qid paths
        overrides both."""
        return self.qid.path

    # -- metadata
    def stat(self, call: Call) -> Answer[Stat]:
        """Needs no permission on the file itself (stat(5))."""
        return Stat(self.qid, self.kind | self.perm, uid=self.uid, gid=self.gid, flags=self.flags)

    def access(self, call: Call, want: int) -> Answer[None]:
        """Raise Eperm unless the caller may R_WANT, W_WANT, X_WANT this file by its permission bits.

        The Session asks this at each walk, open, create and remove.  A tree whose server judges for itself (a host
        export, a remote tree) overrides it to say nothing.
        """
        return then(self.stat(call), lambda st: permit(call.principal, st, want))

    def may_wstat(self, call: Call, change: Change) -> Answer[None]:
        """Raise unless the caller may make this change (stat(5), chmod(2), utimensat(2)).  Overridden as access is."""
        return then(self.stat(call), lambda st: permit_change(call.principal, st, change))

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        """Make the change, all of it or none.  The Session has asked may_wstat."""
        raise E.Eperm

    def statfs(self, call: Call) -> Answer[StatFs]:
        return StatFs()

    def listxattr(self, call: Call) -> Answer[Sequence[str]]:
        raise E.Eunsupported("xattr")

    def getxattr(self, call: Call, name: str) -> Answer[bytes]:
        raise E.Eunsupported("xattr")

    def setxattr(self, call: Call, name: str, value: bytes, flags: int) -> Answer[None]:
        raise E.Eunsupported("xattr")

    def removexattr(self, call: Call, name: str) -> Answer[None]:
        raise E.Eunsupported("xattr")

    # -- content
    def open(self, call: Call, omode: int) -> Answer[Handle]:
        """One open of the file.  omode is O* of proto.types; OTRUNC is the tree's to do, permission is checked."""
        raise E.Eperm

    def readlink(self, call: Call) -> Answer[str]:
        """A symlink's target, verbatim."""
        raise E.Ebadarg("not a symbolic link")

    # -- hooks that keep edges honest
    def snapshot(self, call: Call) -> Answer[File]:
        """For a state file: a File with this moment's rendering, whose stat and opens all answer it.  Else itself.

        The FUSE edge binds it to a nodeid at LOOKUP, so that no reader ever sees a size that is not the content's.
        """
        return self

    def backing(self) -> int | None:
        """A host O_PATH descriptor of this very file (for a real bind mount), or None."""
        return None

    def subscribe(self, changed: Callable[[str | None], None]) -> Callable[[], None] | None:
        """Tell `changed(None)` when content or metadata change, `changed(name)` when a directory's name does.

        Called on the trio thread, must not block.  Returns what ends it; None if the tree cannot tell.
        """
        return None


class Symlink(File):
    kind = _s.S_IFLNK
    perm = 0o777


class Dir(File):
    """A directory.  Names are str; bytes that are not UTF-8 travel as surrogate escapes (os.fsdecode)."""

    kind = _s.S_IFDIR
    perm = 0o555

    def attach(self, call: Call, aname: str) -> Answer[Dir]:
        """The tree that an aname selects, exactly matched.  Empty and "/" are this one."""
        if aname in ("", "/"):
            return self
        raise E.Enonexist(aname)

    def walk(self, call: Call, name: str) -> Answer[File]:
        """The child called name; never "", "." or ".." (the Session keeps the way back)."""
        raise E.Enonexist(name)

    def list(self, call: Call) -> Answer[Iterable[tuple[str, File]]]:
        """Every child.  For directories that fit in memory; others override open() with a Handle that streams."""
        raise E.Eperm

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        """Open for reading; the default handle takes `list` once, at the first entry asked."""
        return ListHandle(self)

    def create(self, call: Call, name: str, perm: int, omode: int) -> Answer[tuple[File, Handle]]:
        """A new regular file, created and opened at once.  Eexist if the name is taken, whatever omode says.

        `perm` is the twelve permission bits, final (the Session has applied the dialect's rule).  The omode is not
        checked against perm (open(5)).  `call.principal` owns it.  DMAPPEND and DMEXCL may be set above bit 12.
        """
        raise E.Eperm

    def mkdir(self, call: Call, name: str, perm: int) -> Answer[File]:
        raise E.Eperm

    def symlink(self, call: Call, name: str, target: str) -> Answer[File]:
        raise E.Eunsupported("symlink")

    def link(self, call: Call, name: str, file: File) -> Answer[None]:
        """A further name for `file`, which the Session knows to be in the same tree or refuses: Exdev."""
        raise E.Eunsupported("link")

    def mknod(self, call: Call, name: str, st_mode: int, rdev: int) -> Answer[File]:
        """S_IFREG, S_IFIFO and S_IFSOCK; devices by policy of the tree: Enotallowed."""
        raise E.Eunsupported("mknod")

    def remove(self, call: Call, name: str, is_dir: bool | None, expect: File | None = None) -> Answer[None]:
        """Unlink a name.  is_dir True: only a directory (Enotdir), False: only another file (Eisdir), None: either.

        With `expect`, the name must still be that file (by qid path), else Estale: a stale fid removes nothing.
        Directories must be empty.  Open handles of the file stay good.
        """
        raise E.Eperm

    def rename(self, call: Call, name: str, to: Dir, to_name: str, flags: int) -> Answer[None]:
        """rename(2) and renameat2(2)'s flags; `to` is a Dir of the same tree, else Exdev."""
        raise E.Eperm


class ListHandle(Handle):
    """A directory opened for reading, from one `list`.  The cookie is the position, so it stays good."""

    def __init__(self, directory: Dir) -> None:
        self._dir = directory
        self._entries: list[Entry] | None = None

    def entries(self, call: Call, cookie: int, count: int) -> Answer[Sequence[Entry]]:
        if cookie == 0 or self._entries is None:
            return then(self._dir.list(call), lambda children: self._take(children)[cookie : cookie + count])
        if cookie > len(self._entries):
            raise E.Ediroffset
        return self._entries[cookie : cookie + count]

    def _take(self, children: Iterable[tuple[str, File]]) -> Sequence[Entry]:
        self._entries = [
            Entry(name, file.qid, file.kind >> 12 or DT_REG, at) for at, (name, file) in enumerate(children, 1)
        ]
        return self._entries


def permit(who: Principal, st: Stat, want: int) -> None:
    """The Unix rule: owner, then group, then others; one class decides (path_resolution(7)).  Raises Eperm."""
    if who.is_superuser:
        # As CAP_DAC_OVERRIDE: anything but executing a file nobody may execute.
        if want & X_WANT and not st.is_dir and not st.st_mode & 0o111:
            raise E.Eperm
        return
    mode = st.st_mode
    if who.owns(st.uid):
        bits = mode >> 6
    elif who.in_group(st.gid):
        bits = mode >> 3
    else:
        bits = mode
    if want & ~bits & 7:
        raise E.Eperm


def permit_change(who: Principal, st: Stat, change: Change) -> None:
    """Who may change what: the owner permissions and times, root owners, writers the size and "now"."""
    if who.is_superuser:
        return
    owns = who.owns(st.uid)
    if change.uid is not None and change.uid != st.uid:
        raise E.Enotallowed("chown")
    if change.gid is not None and change.gid != st.gid and not (owns and who.in_group(change.gid)):
        raise E.Enotallowed("chgrp")
    if change.perm is not None and not owns:
        raise E.Enotallowed("chmod: not the owner")
    for time in (change.atime_ns, change.mtime_ns):
        if time is None or owns:
            continue
        if time != NOW:
            raise E.Enotallowed("utimes: not the owner")
        permit(who, st, W_WANT)
    if change.size is not None or (change.touch_ctime and not owns):
        permit(who, st, W_WANT)


_WANT_OF_OMODE = (R_WANT, W_WANT, R_WANT | W_WANT, X_WANT)


def want_of(omode: int) -> int:
    """The access that an open mode asks for (open(5)): OTRUNC asks for writing too, OEXEC for x alone."""
    want = _WANT_OF_OMODE[omode & 3]
    return want | W_WANT if omode & OTRUNC else want


__all__ = [
    "HASHED_PATH",
    "ORCLOSE",
    "Answer",
    "Call",
    "Dir",
    "File",
    "Handle",
    "ListHandle",
    "Symlink",
    "new_path",
    "permit",
    "permit_change",
    "want_of",
]
