"""A host directory: finding, making, naming and removing what is in it, one name at a time beneath its descriptor.

Knows no path: every name is checked, every system call takes this directory's descriptor and one name.
"""

from __future__ import annotations

import errno
import os
import stat as _s
import weakref
from typing import ClassVar

from ..answer import Answer
from ..file import Call, Dir, File, Handle
from ..proto import errors as E
from ..proto.types import DMAPPEND, DMEXCL, OEXEC, ORCLOSE, OREAD, OTRUNC, RENAME_EXCHANGE, RENAME_NOREPLACE, Qid
from . import host_sys as sys
from .host_cache import Held
from .host_io import HostDirHandle, HostHandle
from .host_node import CLASSES, Node, NodeExport, intern, open_flags, permit_exec
from .host_tree import Identity, check_name

CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
TARGET_BYTES_MAX = 4095


class HostDir(Node, Dir):
    """A directory of the export."""

    kind: ClassVar[int] = _s.S_IFDIR

    def __init__(self, export: NodeExport, parent: Node | None, name: str, identity: Identity, qid: Qid) -> None:
        super().__init__(export, parent, name, identity, qid)
        # Ways from here to directories of secrets, name by name: nearly always none.
        self.guarded: tuple[tuple[str, ...], ...] = ()
        if isinstance(parent, HostDir) and parent.guarded:
            self.guarded = tuple(way[1:] for way in parent.guarded if way[0] == name and len(way) > 1)

    def _name(self, name: str, *, moving: bool = False) -> bytes:
        """The checked name as bytes.  Eperm for a directory of secrets, and for moving what leads to one."""
        raw = check_name(name)
        if self.guarded:
            for way in self.guarded:
                if way[0] == name and (len(way) == 1 or moving):
                    raise E.Eperm
        return raw

    # -- finding
    def walk(self, call: Call, name: str) -> Answer[File]:
        export = self.export
        raw = self._name(name)
        held = self.held
        if held is None or not export.inline or export.native or not export.openat2:
            return export.run(call, self._walk, raw, name)
        # On a disk that made a lookup wait lately, one that the kernel's caches cannot answer is made by a worker.
        # Else all are made here: each create() asks for a name that no cache has, and a thread costs ten such calls.
        is_slow = not export.in_memory and export.is_disk_slow()
        start_ns = 0 if export.in_memory else export.env.now_ns()
        try:
            child = Held(sys.openat2(held.fd, raw, sys.HOW_CACHED if is_slow else sys.HOW))
            if self.parent is not None:  # beneath the root itself is inside
                self.inside(child.fd)
            node = intern(export, self, name, child)
        except FileNotFoundError:
            raise E.Enonexist from None
        except (OSError, E.Estale):
            if is_slow:
                return export.slow(call, False, self._walk, raw, name)
            return export.run(call, self._walk, raw, name)
        finally:
            if start_ns:
                export.note_wait(start_ns)
        return node

    def _walk(self, raw: bytes, name: str) -> Node:
        export = self.export
        own = self.here()  # kept: another thread may let the node's go meanwhile
        held = export.beneath(own.fd, raw)
        if self.parent is not None:  # beneath the root itself is inside
            try:
                self.inside(held.fd)
            except E.Estale:
                own = self.contained()
                held = export.beneath(own.fd, raw)
                self.inside(held.fd)
        return intern(export, self, name, held)

    # -- content
    def open(self, call: Call, omode: int) -> Answer[Handle]:
        if omode & 3 not in (OREAD, OEXEC) or omode & OTRUNC:
            self.export.gate()
            raise E.Eisdir
        if omode & ORCLOSE:
            return self.export.change(call, self._opendir, call, omode)
        return self.export.run(call, self._opendir, call, omode)

    def _opendir(self, call: Call, omode: int) -> Handle:
        held = self.contained()
        if omode & 3 == OEXEC:
            permit_exec(call, self.export, os.stat(held.fd))
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return HostDirHandle(self, self.export.hold(lambda: os.open(b".", flags, dir_fd=held.fd)))

    # -- making
    def create(self, call: Call, name: str, perm: int, omode: int) -> Answer[tuple[File, Handle]]:
        self.export.gate()
        if perm & (DMAPPEND | DMEXCL):
            raise E.Enotallowed("append-only or exclusive file on a host")
        return self.export.change(call, self._create, self._name(name), name, perm, omode)

    def _create(self, raw: bytes, name: str, perm: int, omode: int) -> tuple[File, Handle]:
        held = self.contained()
        export = self.export
        mode = self.mode_of(perm)
        flags = open_flags(omode) & ~os.O_TRUNC | CREATE
        opened = export.hold(lambda: os.open(raw, flags, mode, dir_fd=held.fd))
        if export.native and mode & export.umask:
            os.fchmod(opened.fd, mode)  # the caller's umask is in `perm` already; the server's is nobody's business
        node = intern(export, self, name, opened, warm=False)
        return node, HostHandle(node, opened, omode)

    def mkdir(self, call: Call, name: str, perm: int) -> Answer[File]:
        self.export.gate()
        return self.export.change(call, self._mkdir, self._name(name), name, perm)

    def _mkdir(self, raw: bytes, name: str, perm: int) -> File:
        held = self.contained()
        mode = self.mode_of(perm)
        os.mkdir(raw, mode, dir_fd=held.fd)
        made = self._made(held, raw, name, _s.S_IFDIR)
        if self.export.native and mode & (self.export.umask | 0o7000):
            own = made.here()
            old = os.stat(own.fd).st_mode & 0o2000  # inherited from this directory
            os.chmod(b"/proc/self/fd/%d" % own.fd, mode | old)
        return made

    def _made(self, held: Held, raw: bytes, name: str, kind: int) -> Node:
        """The node of what was just made.  Estale if somebody has put another kind of thing there since."""
        node = intern(self.export, self, name, self.export.beneath(held.fd, raw))
        if node.kind != kind:
            raise E.Estale
        return node

    def symlink(self, call: Call, name: str, target: str) -> Answer[File]:
        self.export.gate()
        text = os.fsencode(target)
        if not text or b"\0" in text:
            raise E.Ebadarg("symbolic link")
        if len(text) > TARGET_BYTES_MAX:
            raise E.Enametoolong
        return self.export.change(call, self._symlink, self._name(name), name, text)

    def _symlink(self, raw: bytes, name: str, target: bytes) -> File:
        held = self.contained()
        os.symlink(target, raw, dir_fd=held.fd)
        return self._made(held, raw, name, _s.S_IFLNK)

    def link(self, call: Call, name: str, file: File) -> Answer[None]:
        self.export.gate()
        if not isinstance(file, Node) or file.export is not self.export:
            raise E.Exdev
        if isinstance(file, HostDir):
            raise E.Enotallowed("link to a directory")
        return self.export.change(call, self._link, self._name(name), file)

    def _link(self, raw: bytes, file: Node) -> None:
        own, other = self.contained(), file.contained()
        os.link(b"/proc/self/fd/%d" % other.fd, raw, dst_dir_fd=own.fd, follow_symlinks=True)

    def mknod(self, call: Call, name: str, st_mode: int, rdev: int) -> Answer[File]:
        """S_IFREG, S_IFIFO, S_IFSOCK; a device only in native and only if the kernel lets the caller."""
        self.export.gate()
        kind = _s.S_IFMT(st_mode) or _s.S_IFREG
        if kind not in (_s.S_IFREG, _s.S_IFIFO, _s.S_IFSOCK, _s.S_IFCHR, _s.S_IFBLK):
            raise E.Ebadarg("file type")
        if kind in (_s.S_IFCHR, _s.S_IFBLK) and not self.export.native:
            raise E.Enotallowed("device")
        return self.export.change(call, self._mknod, self._name(name), name, kind, st_mode, rdev)

    def _mknod(self, raw: bytes, name: str, kind: int, st_mode: int, rdev: int) -> File:
        held = self.contained()
        mode = self.mode_of(_s.S_IMODE(st_mode))
        os.mknod(raw, kind | mode, rdev if kind in (_s.S_IFCHR, _s.S_IFBLK) else 0, dir_fd=held.fd)
        made = self._made(held, raw, name, kind)
        if self.export.native and mode & self.export.umask:
            own = made.here()
            os.chmod(b"/proc/self/fd/%d" % own.fd, mode)
        return made

    # -- removing and renaming
    def remove(self, call: Call, name: str, is_dir: bool | None, expect: File | None = None) -> Answer[None]:
        """RACE: another program can put another file at the name between the comparison with `expect` and unlinkat(2),
        which has no form that takes an identity; what can be lost then is a file of this name in this directory."""
        self.export.gate()
        return self.export.change(call, self._remove, self._name(name, moving=True), is_dir, expect)

    def _remove(self, raw: bytes, is_dir: bool | None, expect: File | None) -> None:
        held = self.contained()
        found = self._look(held, raw)
        if expect is not None and (not isinstance(expect, Node) or found[:3] != expect.identity):
            raise E.Estale
        is_found_dir = _s.S_ISDIR(found[3])
        if is_dir is not None and is_dir != is_found_dir:
            raise E.Eisdir if is_found_dir else E.Enotdir
        node = self.export.nodes.get(found[:3])
        if node is not None:
            node.here()  # warm, so that those who know the file can go on asking after it
        if is_found_dir:
            os.rmdir(raw, dir_fd=held.fd)
        else:
            os.unlink(raw, dir_fd=held.fd)

    def _look(self, held: Held, raw: bytes) -> tuple[int, int, int, int]:
        """What the name is now: identity and mode."""
        sync = sys.AT_STATX_DONT_SYNC if self.export.inline else 0
        st = sys.statx(held.fd, raw, sys.AT_SYMLINK_NOFOLLOW | sys.AT_NO_AUTOMOUNT | sync)
        if st.mount != self.export.mount and not self.export.cross_mounts:
            raise E.Exdev
        return st.dev, st.ino, st.btime_ns, st.mode

    def rename(self, call: Call, name: str, to: Dir, to_name: str, flags: int) -> Answer[None]:
        self.export.gate()
        if not isinstance(to, HostDir) or to.export is not self.export:
            raise E.Exdev
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise E.Ebadarg("rename flags")
        raw, to_raw = self._name(name, moving=True), to._name(to_name, moving=True)
        return self.export.change(call, self._rename, raw, to, to_raw, flags)

    def _rename(self, raw: bytes, to: HostDir, to_raw: bytes, flags: int) -> None:
        old, new = self.contained(), to.contained()
        moved = self.export.nodes.get(self._look(old, raw)[:3])
        other: Node | None = None
        try:
            other = self.export.nodes.get(to._look(new, to_raw)[:3])
        except FileNotFoundError:
            pass
        for node in (moved, other):
            if node is not None and node.parent is not None:
                try:
                    node.here()  # replaced or renamed, those who know it go on
                except E.Estale:
                    pass
        if flags:
            sys.renameat2(old.fd, raw, new.fd, to_raw, flags)
        else:
            os.rename(raw, to_raw, src_dir_fd=old.fd, dst_dir_fd=new.fd)
        with self.export.lock:
            if moved is not None and moved is not other and moved.parent is not None:
                moved.parent, moved.name = to, os.fsdecode(to_raw)
            if other is not None and flags & RENAME_EXCHANGE and other is not moved and other.parent is not None:
                other.parent, other.name = self, os.fsdecode(raw)


CLASSES[_s.S_IFDIR] = HostDir


def root_of(export: NodeExport) -> HostDir:
    """The node of the export's root; its descriptor is never let go."""
    st = sys.statx(export.root.fd)
    if not _s.S_ISDIR(st.mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    identity = (st.dev, st.ino, st.btime_ns)
    node = HostDir(export, None, "", identity, Qid(0x80, 1, export.qid_path(identity)))
    node.held = export.root
    export.nodes = weakref.WeakValueDictionary({identity: node})
    return node
