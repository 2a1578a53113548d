"""NAME
    ram - a POSIX file tree in memory

SYNOPSIS
    from ninep.servers import ram
    root = ram.tree()
    root = ram.tree(limits, env, uid=1000, gid=1000, perm=0o755)

DESCRIPTION
    Files, directories, symbolic and hard links, FIFOs and sockets, with the rules of Linux's tmpfs: permission bits,
    set-id and sticky directories, link counts, times (relatime), extended attributes (user., trusted., security.),
    byte-range and whole-file locks, sparse files with fallocate(2) and SEEK_DATA/SEEK_HOLE, renameat2(2)'s flags.
    Append-only and exclusive-use files behave as stat(5) and open(5) say.  An unlinked file lives on while it is open.

    Every operation answers at once; only a lock that waits parks.  Content is charged in pages of 4 KiB against
    Limits.ram_bytes_max, names against Limits.ram_files_max; past either the answer is `file system is full`.

FILES
    Whatever its users create.  The root belongs to uid and gid.

BUGS
    Device nodes are refused: a tree cannot know which machine they would speak for.
    FIFOs and sockets are names only; a local kernel that mounts the tree makes them work among its own processes.
    SEEK_DATA and SEEK_HOLE know where chunks of 64 KiB end, not pages.
    Directories have length 0 (stat(5)), where tmpfs counts entries.
    No ACLs; nothing survives the process.
"""

from __future__ import annotations

import stat as _s
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter

from ..env import REAL, Env
from ..file import Call, Dir, File, Handle, permit
from ..limits import DEFAULT, Limits
from ..proto import errors as E
from ..proto.types import DMAPPEND, DMEXCL, DMTMP, OAPPEND, RENAME_EXCHANGE, RENAME_NOREPLACE, W_WANT, Entry
from .ram_file import RamFile, RamHandle
from .ram_node import SETGID, STICKY, Node, Ram, RamFifo, RamSocket, RamSymlink

LINKS_MAX = 65_000  # as ext4; a link costs memory that is not the file's
_DEAD_MIN = 32  # removed names that a directory carries before it thinks of compaction


def tree(limits: Limits = DEFAULT, env: Env = REAL, uid: int = 0, gid: int = 0, perm: int = 0o755) -> Dir:
    """An empty tree's root."""
    ram = Ram(limits, env)
    ram.budget.files_used = 1
    return RamDir(ram, perm, uid, gid)


class _Name:
    """One name in a directory; `node` is None once it is removed."""

    __slots__ = ("cookie", "name", "node")

    def __init__(self, name: str, node: Node, cookie: int) -> None:
        self.name = name
        self.node: Node | None = node
        self.cookie = cookie


_cookie_of = attrgetter("cookie")


class RamDir(Node, Dir):
    """A directory.  Names keep the order in which they came, and each has a cookie above all earlier ones.

    Removed names stay in the order until they are half of it, so that removal costs O(1) and a listing can go on from
    any cookie it was given.
    """

    nlink = 2
    parent: RamDir | None = None
    _removed = False

    def __init__(self, ram: Ram, perm: int, uid: int, gid: int) -> None:
        super().__init__(ram, perm, uid, gid)
        self._names: dict[str, _Name] = {}
        self._order: list[_Name] = []
        self._next_cookie = 1

    # -- looking
    def walk(self, call: Call, name: str) -> File:
        entry = self._names.get(name)
        if entry is None or entry.node is None:
            raise E.Enonexist(name)
        return entry.node

    def list(self, call: Call) -> Iterator[tuple[str, File]]:
        self.accessed()
        return iter([(entry.name, entry.node) for entry in self._names.values() if entry.node is not None])

    def open(self, call: Call, omode: int) -> Handle:
        if omode & 3 not in (0, 3):
            raise E.Eisdir
        return RamDirHandle(self)

    def entries(self, cookie: int, count: int) -> Sequence[Entry]:
        """Up to count names after the cookie."""
        order = self._order
        if not 0 <= cookie < self._next_cookie:
            raise E.Ediroffset
        at = bisect_right(order, cookie, key=_cookie_of) if cookie else 0
        found: list[Entry] = []
        while at < len(order) and len(found) < count:
            entry = order[at]
            node = entry.node
            if node is not None:
                found.append(Entry(entry.name, node.qid, node.kind >> 12, entry.cookie))
            at += 1
        return found

    # -- making
    def create(self, call: Call, name: str, perm: int, omode: int) -> tuple[File, RamHandle]:
        self._may_add(name)
        flags = perm & (DMAPPEND | DMEXCL | DMTMP)
        file = RamFile(self.ram, self._perm_below(call, perm), call.principal.uid, self._gid_below(call), flags)
        handle = file.open(call, omode & (3 | OAPPEND))
        self._add_new(name, file)
        return file, handle

    def mkdir(self, call: Call, name: str, perm: int) -> RamDir:
        self._may_add(name)
        perm = perm & 0o1777 | self.perm & SETGID
        made = RamDir(self.ram, perm, call.principal.uid, self._gid_below(call))
        made.parent = self
        self._add_new(name, made)
        self.nlink += 1
        return made

    def symlink(self, call: Call, name: str, target: str) -> RamSymlink:
        self._may_add(name)
        if not target:
            raise E.Enonexist("empty symbolic link")
        if "\0" in target:
            raise E.Ebadarg("symbolic link")
        if len(target.encode("utf-8", "surrogateescape")) > self.ram.limits.symlink_bytes_max:
            raise E.Enametoolong("symbolic link")
        made = RamSymlink(self.ram, target, call.principal.uid, self._gid_below(call))
        self._add_new(name, made)
        return made

    def mknod(self, call: Call, name: str, st_mode: int, rdev: int) -> File:
        self._may_add(name)
        kinds: dict[int, type[Node]] = {0: RamFile, _s.S_IFREG: RamFile, _s.S_IFIFO: RamFifo, _s.S_IFSOCK: RamSocket}
        kind = kinds.get(_s.S_IFMT(st_mode))
        if kind is None:
            raise (
                E.Enotallowed("device files") if _s.S_IFMT(st_mode) in (_s.S_IFCHR, _s.S_IFBLK) else E.Ebadarg("mknod")
            )
        perm = self._perm_below(call, st_mode & 0o7777)
        made = kind(self.ram, perm, call.principal.uid, self._gid_below(call))
        self._add_new(name, made)
        return made

    def link(self, call: Call, name: str, file: File) -> None:
        self._may_add(name)
        if not isinstance(file, Node) or file.ram is not self.ram:
            raise E.Exdev
        if isinstance(file, RamDir):
            raise E.Enotallowed("link to a directory")
        if file.nlink == 0:
            raise E.Enonexist("file was removed")
        if file.nlink >= LINKS_MAX:
            raise E.Emlink
        file.nlink += 1
        file.touch_ctime()
        self._add(name, file)

    # -- unmaking
    def remove(self, call: Call, name: str, is_dir: bool | None, expect: File | None = None) -> None:
        entry = self._names.get(name)
        if entry is None or entry.node is None:
            raise E.Enonexist(name)
        node = entry.node
        if expect is not None and expect.qid.path != node.qid.path:
            raise E.Estale(name)
        self._may_remove(call, node)
        if isinstance(node, RamDir):
            if is_dir is False:
                raise E.Eisdir(name)
            if node._names:
                raise E.Enotempty(name)
        elif is_dir:
            raise E.Enotdir(name)
        self._take_out(entry)
        self._unlinked(node)
        self._name_changed(name)

    def rename(self, call: Call, name: str, to: Dir, to_name: str, flags: int) -> None:
        """rename(2); the checks stand in the order in which Linux makes them (fs/namei.c)."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise E.Ebadarg("rename flags")
        if not isinstance(to, RamDir) or to.ram is not self.ram:
            raise E.Exdev
        entry = self._names.get(name)
        if entry is None or entry.node is None:
            raise E.Enonexist(name)
        over = to._names.get(to_name)
        if over is None:
            if flags & RENAME_EXCHANGE:
                raise E.Enonexist(to_name)
            to._check_name(to_name)
        elif flags & RENAME_NOREPLACE:
            raise E.Eexist(to_name)
        node, target = entry.node, over.node if over is not None else None
        if isinstance(node, RamDir) and node._holds(to):
            raise E.Ebadarg("into its own subtree")
        if isinstance(target, RamDir) and target._holds(self):
            raise E.Ebadarg("into its own subtree") if flags & RENAME_EXCHANGE else E.Enotempty(to_name)
        if node is target:
            return
        self._may_remove(call, node)
        if target is None:
            if to._removed:
                raise E.Enonexist(to_name)
        else:
            to._may_remove(call, target)
        if to is not self:
            _may_move(call, node)
        if flags & RENAME_EXCHANGE and target is not None and over is not None:
            if to is not self:
                _may_move(call, target)
            self._exchange(entry, to, over)
        else:
            if target is not None:
                _may_replace(node, target, to_name)
            self._move(entry, to, to_name, over)
        self._name_changed(name)
        to._name_changed(to_name)

    # -- the pieces
    def _move(self, entry: _Name, to: RamDir, to_name: str, over: _Name | None) -> None:
        node = entry.node
        assert node is not None
        self._take_out(entry)
        if over is None:
            to._append(to_name, node)
        else:
            replaced = over.node
            assert replaced is not None
            over.node = node  # the name was there throughout: it keeps its place in a listing
            to._unlinked(replaced)
        if isinstance(node, RamDir):
            self.nlink -= 1
            to.nlink += 1
            node.parent = to
        node.touch_ctime()

    def _exchange(self, entry: _Name, to: RamDir, over: _Name) -> None:
        node, target = entry.node, over.node
        assert node is not None
        assert target is not None
        entry.node, over.node = target, node
        for moved, source, goal in ((node, self, to), (target, to, self)):
            if isinstance(moved, RamDir):
                source.nlink -= 1
                goal.nlink += 1
                moved.parent = goal
            moved.touch_ctime()

    def _may_add(self, name: str) -> None:
        if name in self._names:
            raise E.Eexist(name)
        self._check_name(name)
        if self._removed:
            raise E.Enonexist("directory was removed")
        budget = self.ram.budget
        if budget.files_used >= budget.files_max:
            raise E.Enospc("too many files")

    def _check_name(self, name: str) -> None:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise E.Ebadchar(name)
        limit = self.ram.limits.name_bytes_max
        if len(name) * 4 > limit and len(name.encode("utf-8", "surrogateescape")) > limit:
            raise E.Enametoolong

    def _may_remove(self, call: Call, node: Node) -> None:
        """In a sticky directory only the file's owner, the directory's or root takes a name away (unlink(2))."""
        who = call.principal
        if self.perm & STICKY and not who.is_superuser:
            if who.proof == "none" or who.uid not in (node.uid, self.uid):
                raise E.Enotallowed("sticky directory")

    def _holds(self, below: RamDir) -> bool:
        """Whether `below` is this directory or lies beneath it."""
        at: RamDir | None = below
        while at is not None:
            if at is self:
                return True
            at = at.parent
        return False

    def _gid_below(self, call: Call) -> int:
        return self.gid if self.perm & SETGID else call.principal.gid

    def _perm_below(self, call: Call, perm: int) -> int:
        """A set-gid directory does not hand its group to a program of somebody outside it (mode_strip_sgid)."""
        perm &= 0o7777
        if self.perm & SETGID and perm & SETGID and perm & _s.S_IXGRP:
            who = call.principal
            if not (who.is_superuser or who.in_group(self.gid)):
                perm &= ~SETGID
        return perm

    def _add_new(self, name: str, node: Node) -> None:
        self.ram.budget.files_used += 1
        self._add(name, node)

    def _add(self, name: str, node: Node) -> None:
        self._append(name, node)
        self._name_changed(name)

    def _append(self, name: str, node: Node) -> None:
        entry = self._names[name] = _Name(name, node, self._next_cookie)
        self._next_cookie += 1
        self._order.append(entry)

    def _take_out(self, entry: _Name) -> None:
        del self._names[entry.name]
        entry.node = None
        dead = len(self._order) - len(self._names)
        if dead > _DEAD_MIN and dead * 2 > len(self._order):
            self._order = [kept for kept in self._order if kept.node is not None]

    def _unlinked(self, node: Node) -> None:
        """A name of the node is gone, and with the last one its place in the budget."""
        if isinstance(node, RamDir):
            node.nlink = 0
            node._removed = True
            node.parent = None
            self.nlink -= 1
        else:
            node.nlink -= 1
        if node.nlink == 0:
            node.freed()
        node.touch_ctime()

    def _name_changed(self, name: str) -> None:
        watchers, self._watchers = self._watchers, None
        self.changed()
        if watchers:
            self._watchers = watchers
            self.tell(name)


def _may_move(call: Call, node: Node) -> None:
    """A directory's `..` is content of its own: to move it elsewhere takes write permission on it (rename(2))."""
    if isinstance(node, RamDir):
        permit(call.principal, node.stat(call), W_WANT)


def _may_replace(node: Node, target: Node, to_name: str) -> None:
    if isinstance(node, RamDir):
        if not isinstance(target, RamDir):
            raise E.Enotdir(to_name)
        if target._names:
            raise E.Enotempty(to_name)
    elif isinstance(target, RamDir):
        raise E.Eisdir(to_name)


class RamDirHandle(Handle):
    """A directory opened for reading.  It keeps nothing: the directory's cookies say everything."""

    def __init__(self, directory: RamDir) -> None:
        self._dir = directory

    def entries(self, call: Call, cookie: int, count: int) -> Sequence[Entry]:
        self._dir.accessed()
        return self._dir.entries(cookie, count)
