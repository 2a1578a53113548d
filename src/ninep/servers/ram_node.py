"""What every node of a ram tree has: attributes, extended attributes, watchers; and the nodes without content.

The rules for times, set-id bits and xattrs are those of Linux's VFS on tmpfs (fs/attr.c, fs/xattr.c, mm/shmem.c);
tests/servers/test_ram_model.py runs both side by side.  Permission to open and walk is the Session's to judge; what
only the tree can know (sticky directories, xattr classes, set-id bits) is judged here.
"""

from __future__ import annotations

import stat as _s
from collections.abc import Callable, Sequence

import msgspec

from ..env import Env
from ..file import Call, File, Handle, Symlink, new_path, permit
from ..limits import Limits
from ..proto import errors as E
from ..proto.types import (
    NOW,
    R_WANT,
    W_WANT,
    XATTR_CREATE,
    XATTR_REPLACE,
    Change,
    Qid,
    Stat,
    StatFs,
    qtype_of,
)
from .ram_data import PAGE, Budget, Sparse

SETUID, SETGID, STICKY = 0o4000, 0o2000, 0o1000
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
            if not call.principal.is_superuser:
                self.perm &= ~self._set_ids_lost(call)
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
        have = {} if self._xattrs is None else self._xattrs
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
        if not tail or "\0" in name:
            raise E.Ebadarg(name)

    def freed(self) -> None:
        """The last name is gone."""
        self.ram.budget.files_used -= 1
        if self._xattrs:
            self.ram.budget.give(sum(_xattr_cost(name, value) for name, value in self._xattrs.items()))
            self._xattrs = None


def _xattr_cost(name: str, value: bytes) -> int:
    return 128 + len(name) + len(value)


class RamSymlink(Node, Symlink):
    """A symbolic link; nobody here follows it."""

    def __init__(self, ram: Ram, target: str, uid: int, gid: int) -> None:
        super().__init__(ram, 0o777, uid, gid)
        self.target = target

    def stat(self, call: Call) -> Stat:
        size = len(self.target.encode("utf-8", "surrogateescape"))
        return msgspec.structs.replace(super().stat(call), size=size)

    def wstat(self, call: Call, change: Change) -> None:
        if change.perm is not None:
            raise E.Eunsupported("mode of a symbolic link")  # as fchmodat2(2)
        super().wstat(call, change)

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
