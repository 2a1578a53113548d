"""One host file that was walked to: metadata, attributes, its kind.  One object per file, shared by all who know it.

How it is found again is host_place.py.  Knows nothing of fids, and of directories only that its parent is one.
"""

from __future__ import annotations

import os
import stat as _s
import weakref
from collections.abc import Sequence

from ..answer import Answer
from ..file import Call, File, Handle, Symlink, permit
from ..proto import errors as E
from ..proto.types import (
    NOW,
    OAPPEND,
    OEXEC,
    ORCLOSE,
    ORDWR,
    OREAD,
    OSYNC,
    OTRUNC,
    OWRITE,
    UNKNOWN_ID,
    X_WANT,
    Change,
    Qid,
    Stat,
    StatFs,
    qtype_of,
)
from . import host_sys as sys
from .host_cache import Held
from .host_io import HostHandle
from .host_lock import HostLocks
from .host_place import Place
from .host_tree import Export, Identity

SETID = 0o6000
ACCESS = {OREAD: os.O_RDONLY, OWRITE: os.O_WRONLY, ORDWR: os.O_RDWR, OEXEC: os.O_RDONLY}
ACL_XATTRS = ("system.posix_acl_access", "system.posix_acl_default")


def version(ctime_ns: int, size: int) -> int:
    """A qid version that content and metadata changes change; never 0, which would forbid caching."""
    return (ctime_ns ^ ctime_ns >> 32 ^ size) & 0xFFFFFFFF or 1


class NodeExport(Export):
    """An export and the nodes that somebody knows at the moment."""

    nodes: weakref.WeakValueDictionary[Identity, Node]


class Node(Place, File):
    """What regular files, directories, symlinks and special files have in common."""

    entry_seconds = 1.0
    attr_seconds = 1.0
    export: NodeExport
    parent: Node | None

    def __init__(self, export: NodeExport, parent: Node | None, name: str, identity: Identity, qid: Qid) -> None:
        # No super().__init__: the qid is the file's own, not a counted one.
        self.export = export
        self.parent = parent
        self.name = name
        self.identity = identity
        self.qid = qid
        self.held = None
        self.recent = False
        self.locks: HostLocks | None = None
        self.opens = ()

    @property
    def ino(self) -> int:
        device, inode, _born = self.identity
        return inode ^ self.export.ino_key(device)

    # -- metadata
    def stat(self, call: Call) -> Answer[Stat]:
        held = self.held
        if held is None and self.opens:
            held = self.opens[0]  # as good, and just after a create all there is
        if held is not None and self.export.inline:
            self.recent = True
            st = os.stat(held.fd)
            kind, _vers, path = self.qid
            ctime_ns = st.st_ctime_ns
            size = st.st_size
            # The arguments by position: a third of this method's time would be the keywords.
            return Stat(
                Qid(kind, (ctime_ns ^ ctime_ns >> 32 ^ size) & 0xFFFFFFFF or 1, path), st.st_mode, size, st.st_nlink,
                st.st_uid, st.st_gid, st.st_mtime_ns, st.st_atime_ns, ctime_ns, self.identity[2], st.st_rdev,
                st.st_blksize, st.st_blocks,
            )  # fmt: skip
        return self.export.run(call, self._stat)

    def _stat(self) -> Stat:
        held = self.here()
        return self.stat_of(os.stat(held.fd))

    def stat_of(self, st: os.stat_result) -> Stat:
        """The record of this file from a fresh stat(2) of it."""
        qid = Qid(self.qid.type, version(st.st_ctime_ns, st.st_size), self.qid.path)
        return Stat(
            qid, st.st_mode, st.st_size, st.st_nlink, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_atime_ns,
            st.st_ctime_ns, self.identity[2], st.st_rdev, st.st_blksize, st.st_blocks,
        )  # fmt: skip

    def access(self, call: Call, want: int) -> Answer[None]:
        """Under squash, nobody gets more of the server's authority than the file's own bits give him as another user.

        The server's own user and root may all that the server may; native asks the kernel, as the caller.
        """
        return None if self._acts_as_asked(call) else super().access(call, want)

    def may_wstat(self, call: Call, change: Change) -> Answer[None]:
        """As access; wstat itself judges the rest, all of it before any of it."""
        return None if self._acts_as_asked(call) else super().may_wstat(call, change)

    def _acts_as_asked(self, call: Call) -> bool:
        who = call.principal
        return self.export.native or who.owns(self.export.uid) or who.is_superuser

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        if change.is_empty:
            return None  # stat(5): "make it durable" at most; nothing changes, so a read-only tree agrees
        for time in (change.atime_ns, change.mtime_ns):
            if time is not None and time != NOW and not 0 <= time < 1 << 63:
                raise E.Ebadarg("time")
        if UNKNOWN_ID in (change.uid, change.gid):
            raise E.Ebadarg("uid or gid")
        if change.size is not None and not 0 <= change.size < 1 << 63:
            raise E.Efbig
        return self.export.change(call, self._wstat, call, change)

    def _wstat(self, call: Call, change: Change) -> None:
        held = self.contained()
        path = b"/proc/self/fd/%d" % held.fd
        old = os.stat(held.fd)
        uid = change.uid if change.uid not in (None, old.st_uid) else -1
        gid = change.gid if change.gid not in (None, old.st_gid) else -1
        if (uid != -1 or gid != -1) and not self.export.native:
            raise E.Enotallowed("chown")
        if change.size is not None and self.kind != _s.S_IFREG:
            raise E.Eisdir if self.kind == _s.S_IFDIR else E.Enotallowed("truncate")
        if change.perm is not None and self.kind == _s.S_IFLNK:
            raise E.Eunsupported("chmod of a symbolic link")
        undo: list[tuple[str, int, int]] = []
        times = change.atime_ns is not None or change.mtime_ns is not None
        try:
            if uid != -1 or gid != -1:
                os.chown(path, uid, gid)
                undo.append(("chown", old.st_uid, old.st_gid))
            if change.perm is not None:
                os.chmod(path, self.mode_of(change.perm))
                undo.append(("chmod", _s.S_IMODE(old.st_mode), 0))
            if times:
                sys.utimens(held.fd, change.atime_ns, change.mtime_ns)
                undo.append(("utime", old.st_atime_ns, old.st_mtime_ns))
            if change.size is not None:
                os.truncate(path, change.size)
                self.drop_setid(call, held.fd)
        except OSError:
            for what, first, second in reversed(undo):
                if what == "chown":
                    os.chown(path, first, second)
                elif what == "chmod":
                    os.chmod(path, first)
                else:
                    sys.utimens(held.fd, first, second)
            raise
        if times and change.size is not None and change.mtime_ns is not None:
            sys.utimens(held.fd, None, change.mtime_ns)  # the truncation moved it again
        if change.touch_ctime and not undo and change.size is None:
            if self.kind == _s.S_IFLNK:  # has no mode to set
                os.chown(path, -1, -1)
            else:
                os.chmod(path, _s.S_IMODE(old.st_mode))

    def mode_of(self, perm: int) -> int:
        """The mode that a request for `perm` may set: set-id and sticky bits are the kernel's matter in native only."""
        return perm & (0o7777 if self.export.native else 0o777)

    def drop_setid(self, call: Call, fd: int) -> None:
        """After a change of content: take the set-id bits away if the kernel did not (the server has CAP_FSETID)."""
        if not self.export.keeps_setid or (self.export.native and call.principal.is_superuser):
            return
        mode = os.stat(fd).st_mode
        if mode & SETID:
            os.chmod(b"/proc/self/fd/%d" % fd, _s.S_IMODE(mode) & ~SETID)

    def statfs(self, call: Call) -> Answer[StatFs]:
        return self.export.run(call, self._statfs)

    def _statfs(self) -> StatFs:
        held = self.here()
        st = os.fstatvfs(held.fd)
        return StatFs(
            st.f_frsize, st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree,
            self.export.qid_path((self.identity[0], 0, 0)) & (1 << 63) - 1, st.f_namemax,
        )  # fmt: skip

    # -- extended attributes: `user.` alone, and in native the access lists, which the kernel guards by fsuid.
    # trusted.* and security.* hang on capabilities that a thread keeps whatever its fsuid is.
    def _is_xattr_shown(self, name: str) -> bool:
        return name.startswith("user.") or (self.export.native and name in ACL_XATTRS)

    def _check_xattr(self, name: str) -> None:
        if name in ACL_XATTRS and not self.export.native:
            raise E.Eunsupported(f"attribute {name}")  # with EPERM, cp -p and install fail instead of using the mode
        if not self._is_xattr_shown(name):
            raise E.Enotallowed(f"attribute {name[:40]!r}")
        if len(os.fsencode(name)) > 255 or "\0" in name:
            raise E.Ebadarg("attribute name")

    def listxattr(self, call: Call) -> Answer[Sequence[str]]:
        return self.export.run(call, self._listxattr)

    def _listxattr(self) -> Sequence[str]:
        held = self.here()
        return [name for name in os.listxattr(b"/proc/self/fd/%d" % held.fd) if self._is_xattr_shown(name)]

    def getxattr(self, call: Call, name: str) -> Answer[bytes]:
        if not self._is_xattr_shown(name) or "\0" in name:
            raise E.Enoattr
        return self.export.run(call, self._getxattr, name)

    def _getxattr(self, name: str) -> bytes:
        held = self.here()
        return os.getxattr(b"/proc/self/fd/%d" % held.fd, os.fsencode(name))

    def setxattr(self, call: Call, name: str, value: bytes, flags: int) -> Answer[None]:
        self.export.gate()
        self._check_xattr(name)
        if len(value) > self.export.limits.xattr_bytes_max:
            raise E.E2big
        return self.export.change(call, self._setxattr, name, value, flags)

    def _setxattr(self, name: str, value: bytes, flags: int) -> None:
        held = self.contained()
        path = b"/proc/self/fd/%d" % held.fd
        names = os.listxattr(path)
        if name not in names and len(names) >= self.export.limits.xattr_names_max:
            raise E.E2big("attributes of one file")
        os.setxattr(path, os.fsencode(name), value, flags)

    def removexattr(self, call: Call, name: str) -> Answer[None]:
        self.export.gate()
        self._check_xattr(name)
        return self.export.change(call, self._removexattr, name)

    def _removexattr(self, name: str) -> None:
        held = self.contained()
        os.removexattr(b"/proc/self/fd/%d" % held.fd, os.fsencode(name))

    # -- content
    def open(self, call: Call, omode: int) -> Answer[Handle]:
        """FIFOs, sockets and devices are metadata only: no open(2) ever reaches them."""
        raise E.Enotallowed("special file")

    def backing(self) -> int | None:
        """The node's own descriptor: good until the caller's next call into this tree, so duplicate it at once."""
        try:
            held = self.contained()
            return held.fd
        except (OSError, E.FileError):
            return None


class HostFile(Node):
    """A regular file."""

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        if omode & 3 in (OWRITE, ORDWR) or omode & (OTRUNC | ORCLOSE):
            return self.export.change(call, self._open, call, omode)
        return self.export.run(call, self._open, call, omode)

    def _open(self, call: Call, omode: int) -> Handle:
        held = self.contained()
        flags = open_flags(omode)
        if omode & 3 == OEXEC:
            permit_exec(call, self.export, os.stat(held.fd))
        opened = self.export.reopen(held.fd, flags)
        if omode & OTRUNC:
            self.drop_setid(call, opened.fd)
        return HostHandle(self, opened, omode)


class HostSymlink(Node, Symlink):
    kind = _s.S_IFLNK

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        raise E.Enotallowed("symbolic link")

    def readlink(self, call: Call) -> Answer[str]:
        return self.export.run(call, self._readlink)

    def _readlink(self) -> str:
        held = self.here()
        return os.fsdecode(os.readlink(b"", dir_fd=held.fd))  # readlinkat(2): the empty path is the link itself


class HostFifo(Node):
    kind = _s.S_IFIFO


class HostSocket(Node):
    kind = _s.S_IFSOCK


class HostCharDevice(Node):
    kind = _s.S_IFCHR


class HostBlockDevice(Node):
    kind = _s.S_IFBLK


CLASSES: dict[int, type[Node]] = {
    kind.kind: kind for kind in (HostFile, HostSymlink, HostFifo, HostSocket, HostCharDevice, HostBlockDevice)
}  # and S_IFDIR, which host_dir adds


def intern(export: NodeExport, parent: Node | None, name: str, held: Held, warm: bool = True) -> Node:
    """The one node of the file that `held` is, found at this name now.  `warm`: an O_PATH descriptor, to be kept."""
    mode, identity = sys.identify(held.fd)
    kind = mode & 0o170000
    with export.lock:
        node = export.nodes.get(identity)
        if node is None or node.kind != kind:  # without birth times an inode number may come back as another thing
            qid = Qid(qtype_of(kind), 1, export.qid_path(identity))
            node = CLASSES[kind](export, parent, name, identity, qid)
            export.nodes[identity] = node
        elif node.parent is not None and parent is not node:
            node.parent = parent
            node.name = name
        if warm and node.held is None:
            export.warm.keep(node, held)
    return node


def open_flags(omode: int) -> int:
    """open(2)'s flags for an open mode; what may create is added by create alone."""
    flags = ACCESS[omode & 3]
    if omode & OTRUNC:
        flags |= os.O_TRUNC
    if omode & OAPPEND:
        flags |= os.O_APPEND
    if omode & OSYNC:
        flags |= os.O_SYNC
    return flags


def permit_exec(call: Call, export: Export, st: os.stat_result) -> None:
    """OEXEC is a read that needs x (open(5)): anybody's x under squash, the caller's own in native."""
    if not st.st_mode & 0o111:
        raise E.Eperm
    if export.native:
        permit(call.principal, Stat(Qid(0, 0, 0), st.st_mode, uid=st.st_uid, gid=st.st_gid), X_WANT)
