"""The nodes of a ram tree that are not directories, and what every node has: attributes, xattrs, watchers.

The rules for times, set-id bits and xattrs are those of Linux's VFS on tmpfs (fs/attr.c, fs/xattr.c, mm/shmem.c);
tests/servers/test_ram_model.py runs both side by side.  Permission to open and walk is the Session's to judge; what
only the tree can know (sticky directories, xattr classes, set-id bits) is judged here.
"""

from __future__ import annotations

import stat as _s
from collections.abc import Callable, Sequence

import msgspec

from ..answer import Answer
from ..env import Env
from ..file import Call, File, Handle, Symlink, new_path, permit
from ..limits import Limits
from ..locks import Locks
from ..proto import errors as E
from ..proto.types import (
    DMAPPEND,
    DMEXCL,
    F_UNLCK,
    NOW,
    OAPPEND,
    OFFSET_MAX,
    OTRUNC,
    R_WANT,
    SEEK_DATA,
    SEEK_HOLE,
    W_WANT,
    XATTR_CREATE,
    XATTR_REPLACE,
    Change,
    Lock,
    Qid,
    Stat,
    StatFs,
    qtype_of,
)
from .ram_data import PAGE, Budget, Sparse

SETUID, SETGID, STICKY = 0o4000, 0o2000, 0o1000
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 0x10
COPY_BYTES_MAX = 8 << 20  # one copy_range: the loop is not kept longer than a few milliseconds
DAY_NS = 86_400 * 10**9
NOBODYS = Sparse(Budget(0, 0))  # what every file holds until it is written to; never changed


class Ram:
    """What the nodes of one tree share."""

    __slots__ = ("budget", "env", "limits")

    def __init__(self, limits: Limits, env: Env) -> None:
        self.limits = limits
        self.env = env
        self.budget = Budget(limits.ram_bytes_max, limits.ram_files_max)


class Node(File):
    """A file of a ram tree.  Rare fields live in the class until they are needed: an empty file must stay small."""

    entry_seconds = 1.0
    attr_seconds = 1.0
    nlink: int = 1
    data: Sparse = NOBODYS
    _xattrs: dict[str, bytes] | None = None
    _watchers: list[Callable[[str | None], None]] | None = None

    def __init__(self, ram: Ram, perm: int, uid: int, gid: int, flags: int = 0) -> None:
        self.ram = ram
        self.perm = perm
        self.uid = uid
        self.gid = gid
        if flags:
            self.flags = flags
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.btime_ns = ram.env.time_ns()
        self.qid = Qid(qtype_of(self.kind, flags), 1, new_path())

    # -- attributes
    def stat(self, call: Call) -> Stat:
        data = self.data
        return Stat(
            self.qid,
            self.kind | self.perm,
            data.size,
            self.nlink,
            self.uid,
            self.gid,
            self.mtime_ns,
            self.atime_ns,
            self.ctime_ns,
            self.btime_ns,
            0,
            PAGE,
            data.charged >> 9,
            self.flags,
        )

    def wstat(self, call: Call, change: Change) -> None:
        """As chmod(2), chown(2), truncate(2) and utimensat(2) on tmpfs."""
        cuts = change.size is not None and change.size != self.data.size
        if change.size is not None:
            self._may_resize(change.size)
        if change.perm is not None and change.perm & ~0o7777:
            raise E.Ebadarg("perm")
        if not cuts and change.size is not None and change == Change(size=change.size):
            return
        if change.uid is not None or change.gid is not None:
            if self.kind != _s.S_IFDIR:
                self.perm &= ~self._set_ids_lost(call)
            if change.uid is not None:
                self.uid = change.uid
            if change.gid is not None:
                self.gid = change.gid
        if cuts and change.size is not None:
            self.resize(call, change.size)
        now = self.ram.env.time_ns()
        if change.perm is not None:
            keeps = call.principal.is_superuser or call.principal.in_group(self.gid)
            self.perm = change.perm if keeps else change.perm & ~SETGID
        if change.atime_ns is not None:
            self.atime_ns = now if change.atime_ns == NOW else change.atime_ns
        if change.mtime_ns is not None:
            self.mtime_ns = now if change.mtime_ns == NOW else change.mtime_ns
        if change.is_empty:
            return
        self.ctime_ns = now
        self.tell(None)

    def _may_resize(self, size: int) -> None:
        raise E.Eisdir if self.kind == _s.S_IFDIR else E.Ebadarg("size: not a regular file")

    def resize(self, call: Call, size: int) -> None:
        """Only regular files have a size to change, and _may_resize has said so."""
        raise E.Ebadarg("size: not a regular file")

    def _set_ids_lost(self, call: Call) -> int:
        """Which set-id bits a change of owner or content takes away (setattr_should_drop_suidgid in fs/attr.c)."""
        lost = self.perm & SETUID
        if self.perm & SETGID:
            who = call.principal
            if self.perm & _s.S_IXGRP or not (who.is_superuser or who.in_group(self.gid)):
                lost |= SETGID
        return lost

    def changed(self) -> None:
        """The content is another now."""
        self.mtime_ns = self.ctime_ns = self.ram.env.time_ns()
        kind, vers, path = self.qid
        self.qid = Qid(kind, vers % 0xFFFFFFFF + 1, path)  # 32 bits on the wire, and 0 would forbid caching
        if self._watchers:
            self.tell(None)

    def touch_ctime(self) -> None:
        self.ctime_ns = self.ram.env.time_ns()
        if self._watchers:
            self.tell(None)

    def accessed(self) -> None:
        """relatime, as every Linux mount has it: at most one update per change, or per day."""
        atime = self.atime_ns
        if atime <= self.mtime_ns or atime <= self.ctime_ns:
            self.atime_ns = self.ram.env.time_ns()
            return
        now = self.ram.env.time_ns()
        if now - atime >= DAY_NS:
            self.atime_ns = now

    def statfs(self, call: Call) -> StatFs:
        budget = self.ram.budget
        free = max(budget.bytes_max - budget.bytes_used, 0) // PAGE
        left = max(budget.files_max - budget.files_used, 0)
        return StatFs(
            PAGE, budget.bytes_max // PAGE, free, free, budget.files_max, left, 0, self.ram.limits.name_bytes_max
        )

    # -- watchers
    def subscribe(self, changed: Callable[[str | None], None]) -> Callable[[], None]:
        if self._watchers is None:
            self._watchers = []
        watchers = self._watchers
        watchers.append(changed)

        def end() -> None:
            if changed in watchers:
                watchers.remove(changed)

        return end

    def tell(self, name: str | None) -> None:
        for changed in tuple(self._watchers or ()):
            changed(name)

    # -- extended attributes (xattr(7))
    def listxattr(self, call: Call) -> Sequence[str]:
        names = self._xattrs or ()
        if call.principal.is_superuser:
            return tuple(names)
        return tuple(name for name in names if not name.startswith("trusted."))

    def getxattr(self, call: Call, name: str) -> bytes:
        self._may_xattr(call, name, R_WANT)
        if self._xattrs is None or name not in self._xattrs:
            raise E.Enoattr(name)
        return self._xattrs[name]

    def setxattr(self, call: Call, name: str, value: bytes, flags: int) -> None:
        """Enospc when the file has Limits.xattr_names_max of them or the tree's budget is spent."""
        if flags & ~(XATTR_CREATE | XATTR_REPLACE):
            raise E.Ebadarg("xattr flags")
        if len(value) > self.ram.limits.xattr_bytes_max:
            raise E.E2big(name)
        self._may_xattr(call, name, W_WANT)
        have = self._xattrs or {}
        if name in have:
            if flags & XATTR_CREATE:
                raise E.Eexist(name)
        elif flags & XATTR_REPLACE:
            raise E.Enoattr(name)
        elif len(have) >= self.ram.limits.xattr_names_max:
            raise E.Enospc("too many attributes")
        self.ram.budget.take(_xattr_cost(name, value) - (_xattr_cost(name, have[name]) if name in have else 0))
        if self._xattrs is None:
            self._xattrs = have
        have[name] = bytes(value)
        self.touch_ctime()

    def removexattr(self, call: Call, name: str) -> None:
        self._may_xattr(call, name, W_WANT)
        if self._xattrs is None or name not in self._xattrs:
            raise E.Enoattr(name)
        self.ram.budget.give(_xattr_cost(name, self._xattrs.pop(name)))
        self.touch_ctime()

    def _may_xattr(self, call: Call, name: str, want: int) -> None:
        """Who may do what with a class of names (xattr_permission in fs/xattr.c)."""
        head, _, tail = name.partition(".")
        if len(name.encode("utf-8", "surrogateescape")) > 255:
            raise E.Erange("attribute name too long")
        if head not in ("user", "trusted", "security"):
            raise E.Eunsupported(name)
        if not tail or "\0" in name:
            raise E.Ebadarg(name)
        who = call.principal
        if head == "user":
            if self.kind not in (_s.S_IFREG, _s.S_IFDIR):
                raise E.Enotallowed(name) if want == W_WANT else E.Enoattr(name)
            owns = who.is_superuser or (who.uid == self.uid and who.proof != "none")
            if want == W_WANT and self.kind == _s.S_IFDIR and self.perm & STICKY and not owns:
                raise E.Enotallowed(name)
            permit(who, self.stat(call), want)
        elif not who.is_superuser:
            if want == W_WANT:
                raise E.Enotallowed(name)
            if head == "trusted":
                raise E.Enoattr(name)

    def freed(self) -> None:
        """The last name is gone."""
        self.ram.budget.files_used -= 1
        if self._xattrs:
            self.ram.budget.give(sum(_xattr_cost(name, value) for name, value in self._xattrs.items()))
            self._xattrs = None


def _xattr_cost(name: str, value: bytes) -> int:
    return 128 + len(name) + len(value)


class RamFile(Node):
    """A regular file."""

    locks: Locks | None = None
    _exclusive: bool = False

    def open(self, call: Call, omode: int) -> RamHandle:
        if self.flags & DMEXCL:
            if self._exclusive:
                raise E.Eexclusive
            self._exclusive = True
        # An append-only file is opened and not truncated (open(5)).
        if omode & OTRUNC and not self.flags & DMAPPEND:
            self.resize(call, 0)
        return RamHandle(self, bool(omode & OAPPEND or self.flags & DMAPPEND))

    def _may_resize(self, size: int) -> None:
        if self.flags & DMAPPEND:
            raise E.Enotallowed("append-only file")
        if size < 0:
            raise E.Ebadarg("size")
        if size > OFFSET_MAX:
            raise E.Efbig

    def resize(self, call: Call, size: int) -> None:
        if size or self.data is not NOBODYS:
            self.own_data().truncate(size)
        self.modified(call)

    def own_data(self) -> Sparse:
        """The content, of its own from now on."""
        if self.data is NOBODYS:
            self.data = Sparse(self.ram.budget)
        return self.data

    def modified(self, call: Call) -> None:
        """As changed, by somebody whose change may cost the file its set-id bits (write(2))."""
        if self.perm & (SETUID | SETGID) and not call.principal.is_superuser:
            self.perm &= ~self._set_ids_lost(call)
        self.changed()

    def closed(self) -> None:
        self._exclusive = False


class RamHandle(Handle):
    """One open of a regular file.  Holds the file: an unlinked one lives until the last handle goes."""

    def __init__(self, file: RamFile, append: bool) -> None:
        self.file = file
        self.append = append

    def read(self, call: Call, offset: int, count: int) -> bytes:
        file = self.file
        file.accessed()
        return file.data.read(offset, count)

    def read_into(self, call: Call, offset: int, buffer: memoryview) -> int:
        file = self.file
        file.accessed()
        return file.data.read_into(offset, buffer)

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> int:
        if not data:
            return 0
        file = self.file
        content = file.data
        if content is NOBODYS:
            content = file.own_data()
        content.write(content.size if self.append else offset, data)
        file.modified(call)
        return len(data)

    def truncate(self, call: Call, size: int) -> None:
        self.file._may_resize(size)
        self.file.resize(call, size)

    def allocate(self, call: Call, mode: int, offset: int, length: int) -> None:
        """fallocate(2): plain, KEEP_SIZE, PUNCH_HOLE with KEEP_SIZE, ZERO_RANGE; Eunsupported for the rest."""
        if offset < 0 or length <= 0:
            raise E.Ebadarg("fallocate")
        if offset + length > OFFSET_MAX:
            raise E.Efbig
        if self.file.flags & DMAPPEND and mode & ~FALLOC_KEEP_SIZE:
            raise E.Enotallowed("append-only file")
        keep_size = bool(mode & FALLOC_KEEP_SIZE)
        match mode & ~FALLOC_KEEP_SIZE:
            case 0:
                self.file.own_data().reserve(offset, length, keep_size)
            case 0x02 if keep_size:
                self.file.own_data().punch(offset, length)
            case 0x10:
                self.file.own_data().zero(offset, length, keep_size)
            case _:
                raise E.Eunsupported("fallocate mode")
        self.file.modified(call)

    def seek(self, call: Call, offset: int, whence: int) -> int:
        if whence not in (SEEK_DATA, SEEK_HOLE):
            raise E.Ebadarg("whence")
        if offset < 0:
            raise E.Enxio
        data = self.file.data
        return data.seek_data(offset) if whence == SEEK_DATA else data.seek_hole(offset)

    def copy_range(self, call: Call, offset: int, to: Handle, to_offset: int, count: int) -> int:
        """At most 8 MiB at once.  Overlapping ranges of one file: Ebadarg, as copy_file_range(2)."""
        if not isinstance(to, RamHandle) or to.file.ram is not self.file.ram:
            raise E.Exdev
        if to.append:
            raise E.Enotopen("append-only handle")
        if to.file is self.file and abs(offset - to_offset) < count:
            raise E.Ebadarg("ranges overlap")
        data = self.file.data.read(offset, min(count, COPY_BYTES_MAX))
        self.file.accessed()
        return to.write(call, to_offset, data)

    def lock(self, call: Call, lock: Lock, wait: bool) -> Answer[bool]:
        locks = self.file.locks
        if locks is None:
            if lock.type == F_UNLCK:
                return True
            locks = self.file.locks = Locks(self.file.ram.limits.locks_max)
        return locks.lock(lock, wait)

    def getlock(self, call: Call, lock: Lock) -> Lock | None:
        locks = self.file.locks
        return None if locks is None else locks.getlock(lock)

    def unlock_owner(self, call: Call, owner: object, flock: bool) -> None:
        locks = self.file.locks
        if locks is not None:
            locks.unlock_owner(owner, flock)

    def close(self, call: Call) -> None:
        self.file.closed()


class RamSymlink(Node, Symlink):
    """A symbolic link; nobody here follows it."""

    def __init__(self, ram: Ram, target: str, uid: int, gid: int) -> None:
        super().__init__(ram, 0o777, uid, gid)
        self.target = target

    def stat(self, call: Call) -> Stat:
        size = len(self.target.encode("utf-8", "surrogateescape"))
        return msgspec.structs.replace(super().stat(call), size=size)

    def readlink(self, call: Call) -> str:
        self.accessed()
        return self.target

    def open(self, call: Call, omode: int) -> Handle:
        raise E.Eloop("symbolic link")


class RamSpecial(Node):
    """A FIFO or a socket: a name for local processes to meet at.  Their kernel does the talking: no opening here."""

    def open(self, call: Call, omode: int) -> Handle:
        raise E.Enxio


class RamFifo(RamSpecial):
    kind = _s.S_IFIFO


class RamSocket(RamSpecial):
    kind = _s.S_IFSOCK
