"""What each FUSE request means, in terms of the Session: names, attributes, opens.  I/O is in fuse_io.py.

A handler takes an Asked and gives the body of the reply, now or in a coroutine; errors are raised.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TypeVar

from ninep import checks
from ninep.answer import Answer, answering, then
from ninep.fid import Fid, Way
from ninep.file import Call, Dir, File
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.proto.types import NOW, RENAME_EXCHANGE, UNKNOWN_ID, Change, Stat, StatFs

from .fuse_contain import PlacedNodes, check_target
from .fuse_device import Asked, Body, FuseMount
from .fuse_io import FileIO
from .fuse_nodes import Known, Nodes
from .fuse_open import Opens

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]

SECOND_NS: Final = 1_000_000_000
S_IFMT, S_IFREG, S_IFDIR = 0o170000, 0o100000, 0o040000
OVERFLOW_ID: Final = 65534  # what Linux shows for an id it has no number for
_ENTRY, _ATTR = p.ENTRY_OUT.pack, p.ATTR_OUT.pack


def split_seconds(seconds: float) -> tuple[int, int]:
    """(whole seconds, nanoseconds)."""
    whole = int(seconds)
    return whole, int((seconds - whole) * SECOND_NS)


class Operations:
    """The operations of one mount on names and attributes, and the table of what the kernel knows."""

    plain: type[Nodes] = Nodes
    placed: type[PlacedNodes] = PlacedNodes

    def __init__(self, mount: FuseMount) -> None:
        self.mount = mount
        self.session = mount.session
        self._cache = mount.options.cache
        self._shared = mount.options.mount.allow_other
        self._times: dict[float, tuple[int, int]] = {0.0: (0, 0)}
        self.nodes: Nodes
        self.opens: Opens
        self.io: FileIO

    @answering
    def start(self) -> Steps[None]:
        """Attach, and take requests from now on."""
        call = self.mount.callers.call(os.geteuid(), os.getegid(), os.getpid())
        root: Fid = yield self.session.attach(call, self.mount.options.aname)
        st: Stat = yield root.file.stat(call)
        table = self.placed if self.mount.options.symlinks == "contain" else self.plain
        self.nodes = table(root, st.st_mode, self.mount.node.live)
        self.opens = Opens(self.mount, self.nodes, self.made)
        if self._cache and (root.file.entry_seconds or root.file.attr_seconds):
            self.subscribe(self.nodes.get(p.ROOT_ID))
        self.io = self.new_io()
        self.mount.set_operations(
            self.handlers(), {"forget": self.forget, "batch_forget": self.batch_forget, "interrupt": self.interrupt}
        )

    def new_io(self) -> FileIO:
        """What reads and writes, and lists directories."""
        return FileIO(self.mount, self.opens, self.found)

    def handlers(self) -> dict[str, Callable[[Asked], Answer[Body]]]:
        """What answers each operation, by the operation's name."""
        handlers: dict[str, Callable[[Asked], Answer[Body]]] = {}
        for part in (self, self.opens, self.io):
            handlers |= {op.name: getattr(part, "do_" + op.name) for op in p.OPCODES.values()
                         if hasattr(part, "do_" + op.name)}  # fmt: skip
        return handlers

    def end(self) -> None:
        """The mount is gone."""
        if hasattr(self, "nodes"):
            self.opens.end()
            self.nodes.clear()

    # -- what is never answered

    def forget(self, asked: Asked) -> None:
        self.nodes.forget(asked.nodeid, asked.args[0])

    def batch_forget(self, asked: Asked) -> None:
        count, data = asked.args
        for nodeid, lookups in p.FORGET_ONE.struct.iter_unpack(data[: count * p.FORGET_ONE.size]):
            self.nodes.forget(nodeid, lookups)

    def interrupt(self, asked: Asked) -> None:
        # A request that is unknown was answered already, or another reader of the device has not handed it over: for
        # that the ABI has EAGAIN, and in the first case nobody listens.
        if not self.session.requests.cancel(asked.args[0]):
            self.mount.device.write(p.refusal(asked.unique, errno.EAGAIN))

    # -- attributes

    def seconds(self, seconds: float) -> tuple[int, int]:
        """A time the kernel may believe us, as it wants it."""
        if not self._cache:
            return 0, 0
        times = self._times.get(seconds)
        if times is None:
            times = split_seconds(seconds)
            if len(self._times) < 1024:
                self._times[seconds] = times
        return times

    def attr_seconds(self, file: File, st: Stat) -> tuple[int, int]:
        # A write may take a set-id bit away, and the kernel would not notice.
        return (0, 0) if st.st_mode & 0o6000 and not st.is_dir else self.seconds(file.attr_seconds)

    def entry_seconds(self, parent: Known, file: File) -> tuple[int, int]:
        # A cached name is walked without asking us: when others may come in, only where everybody may search.
        if self._shared and parent.mode & 0o111 != 0o111:
            return 0, 0
        return self.seconds(file.entry_seconds)

    def entry(self, parent: Known, fid: Fid, st: Stat, *, frozen: bool = False) -> bytes:
        """The reply to what found or made a name; the kernel knows the file from here on."""
        known = self.nodes.look_up(fid, st, frozen=frozen, parent=parent)
        file = fid.file
        entry_s, entry_ns = self.entry_seconds(parent, file)
        attr_s, attr_ns = self.attr_seconds(file, st)
        if known.forget is None and (entry_s or entry_ns or attr_s or attr_ns):
            self.subscribe(known)
        return _ENTRY(known.id, 0, entry_s, attr_s, entry_ns, attr_ns, self.st_ino(file), *attributes(st)[1:])

    def st_ino(self, file: File) -> int:
        """What stat(2) shows."""
        return file.ino

    def subscribe(self, known: Known) -> None:
        """Take care that the kernel hears of changes to a file whose attributes or names it keeps."""
        notifier, mount, number = self.mount.notifier, self.mount, known.id

        def changed(name: str | None) -> None:
            if not mount.is_own():
                notifier.push(p.inval_inode(number) if name is None else p.inval_entry(number, name))

        known.forget = known.fid.file.subscribe(changed) or _nothing

    def attr(self, known: Known, st: Stat) -> bytes:
        """The reply to GETATTR and SETATTR.  A node's type never changes: Estale."""
        if (known.mode ^ st.st_mode) & S_IFMT:
            raise E.Estale("another file by now")
        known.mode = st.st_mode
        file = known.fid.file
        seconds, ns = self.attr_seconds(file, st)
        return _ATTR(seconds, ns, self.st_ino(file), *attributes(st)[1:])

    def do_getattr(self, asked: Asked) -> Answer[Body]:
        known = self.nodes.get(asked.nodeid)
        return then(self.session.stat(asked.call, known.fid), lambda st: self.attr(known, st))

    @answering
    def do_setattr(self, asked: Asked) -> Steps[Body]:
        (valid, fh, size, _owner, atime, mtime, _ctime, atimensec, mtimensec, _ctimensec, mode, uid, gid) = asked.args
        known = self.nodes.get(asked.nodeid)
        change = Change(
            perm=mode & 0o7777 if valid & p.FATTR_MODE else None,
            uid=uid if valid & p.FATTR_UID else None,
            gid=gid if valid & p.FATTR_GID else None,
            size=size if valid & p.FATTR_SIZE else None,
            atime_ns=_time(valid, p.FATTR_ATIME, p.FATTR_ATIME_NOW, atime, atimensec),
            # A truncation says "and now" for the time: that is what truncating means.
            mtime_ns=None if valid & p.FATTR_SIZE and valid & p.FATTR_MTIME_NOW
            else _time(valid, p.FATTR_MTIME, p.FATTR_MTIME_NOW, mtime, mtimensec),
        )  # fmt: skip
        fid = known.fid
        if valid & p.FATTR_FH and valid & p.FATTR_SIZE:
            fid = self.opens.get(fh).fid
        if not change.is_empty:
            yield self.session.wstat(asked.call, fid, change)
            if known.frozen:
                self.nodes.retire(known)
        st: Stat = yield self.session.stat(asked.call, known.fid)
        return self.attr(known, st)

    def do_access(self, asked: Asked) -> Answer[Body]:
        mask = asked.args[0]
        file = self.nodes.get(asked.nodeid).fid.file
        if mask & 2:
            checks.need(asked.call, checks.WRITE)
        return then(file.access(asked.call, mask & 7), _empty) if mask & 7 else b""

    def do_statfs(self, asked: Asked) -> Answer[Body]:
        known = self.nodes.get(asked.nodeid)
        return then(self.session.statfs(asked.call, known.fid), _statfs)

    # -- names

    def do_lookup(self, asked: Asked) -> Answer[Body]:
        parent = self.nodes.get(asked.nodeid)
        walked = self.session.walk(asked.call, parent.fid, asked.args)
        if type(walked) is tuple:
            return self.found(asked.call, parent, walked[1])
        return then(walked, lambda walked: self.found(asked.call, parent, walked[1]))

    def found(self, call: Call, parent: Known, fid: Fid | None) -> Answer[bytes]:
        """The entry of a file just walked to: of a state file, this moment's snapshot."""
        assert fid is not None  # one name is found or refused
        if type(fid.file).snapshot is File.snapshot:
            st = self.session.stat(call, fid)
            if type(st) is Stat:
                return self.entry(parent, fid, st)
            return then(st, lambda st: self.entry(parent, fid, st))
        return self._found(call, parent, fid)

    @answering
    def _found(self, call: Call, parent: Known, fid: Fid) -> Steps[bytes]:
        file = fid.file
        fid.file = yield file.snapshot(call)
        st: Stat = yield self.session.stat(call, fid)
        return self.entry(parent, fid, st, frozen=fid.file is not file)

    def made(self, call: Call, parent: Known, name: str, file: File) -> Answer[bytes]:
        directory = parent.fid.file
        assert isinstance(directory, Dir)
        fid = Fid(file, Way(parent.fid.way, directory, name), parent.fid.call, parent.fid.root)
        return self.found(call, parent, fid)

    def do_readlink(self, asked: Asked) -> Answer[Body]:
        known = self.nodes.get(asked.nodeid)
        rule = self.mount.options.symlinks
        if rule == "deny":
            raise E.Enotallowed("symbolic link")
        target = self.session.readlink(asked.call, known.fid)
        if rule == "contain":
            return then(target, lambda text: os.fsencode(check_target(text, self.nodes.depth_above(known))))
        return then(target, os.fsencode)

    def do_mkdir(self, asked: Asked) -> Answer[Body]:
        mode, _umask, name = asked.args
        parent = self.nodes.get(asked.nodeid)
        return then(
            self.session.mkdir(asked.call, parent.fid, name, mode & 0o7777),
            lambda file: self.made(asked.call, parent, name, file),
        )

    def do_symlink(self, asked: Asked) -> Answer[Body]:
        name, target = asked.args
        parent = self.nodes.get(asked.nodeid)
        return then(
            self.session.symlink(asked.call, parent.fid, name, target),
            lambda file: self.made(asked.call, parent, name, file),
        )

    def do_mknod(self, asked: Asked) -> Answer[Body]:
        mode, rdev, _umask, name = asked.args
        parent = self.nodes.get(asked.nodeid)
        return then(
            self.session.mknod(asked.call, parent.fid, name, mode, rdev),
            lambda file: self.made(asked.call, parent, name, file),
        )

    def do_link(self, asked: Asked) -> Answer[Body]:
        old, name = asked.args
        parent, known = self.nodes.get(asked.nodeid), self.nodes.get(old)
        return then(
            self.session.link(asked.call, parent.fid, name, known.fid),
            lambda _: self.made(asked.call, parent, name, known.fid.file),
        )

    def do_unlink(self, asked: Asked) -> Answer[Body]:
        parent = self.nodes.get(asked.nodeid)
        return then(self.session.unlink(asked.call, parent.fid, asked.args[0], False), _empty)

    def do_rmdir(self, asked: Asked) -> Answer[Body]:
        parent = self.nodes.get(asked.nodeid)
        return then(self.session.unlink(asked.call, parent.fid, asked.args[0], True), _empty)

    def do_rename(self, asked: Asked) -> Answer[Body]:
        newdir, name, to_name = asked.args
        return self._rename(asked, newdir, 0, name, to_name)

    def do_rename2(self, asked: Asked) -> Answer[Body]:
        return self._rename(asked, *asked.args)

    def _rename(self, asked: Asked, newdir: int, flags: int, name: str, to_name: str) -> Answer[Body]:
        nodes, parent, to = self.nodes, self.nodes.get(asked.nodeid), self.nodes.get(newdir)
        exchange = bool(flags & RENAME_EXCHANGE)
        nodes.moving(parent, name, to)
        if exchange:
            nodes.moving(to, to_name, parent)

        def moved(_: None) -> bytes:
            nodes.moved(parent, name, to, to_name, exchange=exchange)
            return b""

        return then(self.session.rename(asked.call, parent.fid, name, to.fid, to_name, flags), moved)

    # -- extended attributes

    def do_setxattr(self, asked: Asked) -> Answer[Body]:
        size, flags, name, value = asked.args
        if len(value) < size:
            raise E.Ebadmsg("setxattr")
        known = self.nodes.get(asked.nodeid)
        return then(self.session.setxattr(asked.call, known.fid, name, bytes(value[:size]), flags), _empty)

    def do_getxattr(self, asked: Asked) -> Answer[Body]:
        size, name = asked.args
        known = self.nodes.get(asked.nodeid)
        return then(self.session.getxattr(asked.call, known.fid, name), lambda value: _sized(size, value))

    def do_listxattr(self, asked: Asked) -> Answer[Body]:
        size = asked.args[0]
        known = self.nodes.get(asked.nodeid)
        return then(self.session.listxattr(asked.call, known.fid), lambda names: _sized(size, _joined(names)))

    def do_removexattr(self, asked: Asked) -> Answer[Body]:
        known = self.nodes.get(asked.nodeid)
        return then(self.session.removexattr(asked.call, known.fid, asked.args[0]), _empty)

    # -- the rest

    def do_destroy(self, asked: Asked) -> Answer[Body]:
        return b""

    def do_syncfs(self, asked: Asked) -> Answer[Body]:
        """Nothing is kept here that the tree has not got; what a host keeps is synced by its own machine."""
        return b""

    def do_ioctl(self, asked: Asked) -> Answer[Body]:
        raise E.from_errno(errno.ENOTTY)


def attributes(st: Stat) -> tuple[int, ...]:
    """struct fuse_attr.  Times before 1970 are two's complement, as the kernel has them."""
    atime, atime_ns = divmod(st.atime_ns, SECOND_NS)
    mtime, mtime_ns = divmod(st.mtime_ns, SECOND_NS)
    ctime, ctime_ns = divmod(st.ctime_ns, SECOND_NS)
    uid, gid = st.uid, st.gid
    return (
        st.qid.path,
        st.size if 0 <= st.size < 1 << 63 else (1 << 63) - 1,
        st.blocks or -(-st.size // 512),
        atime & 0xFFFFFFFFFFFFFFFF,
        mtime & 0xFFFFFFFFFFFFFFFF,
        ctime & 0xFFFFFFFFFFFFFFFF,
        atime_ns,
        mtime_ns,
        ctime_ns,
        st.st_mode,
        min(st.nlink, 0xFFFFFFFF),
        uid if uid != UNKNOWN_ID else OVERFLOW_ID,
        gid if gid != UNKNOWN_ID else OVERFLOW_ID,
        st.rdev & 0xFFFFFFFF,
        st.blksize,
        0,
    )


def _time(valid: int, bit: int, now: int, seconds: int, ns: int) -> int | None:
    if not valid & bit:
        return None
    if valid & now:
        return NOW
    if seconds >= 1 << 63:
        seconds -= 1 << 64
    time = seconds * SECOND_NS + ns
    return time if time != NOW else 0  # a nanosecond before 1970 is the one time that cannot be said


def _statfs(st: StatFs) -> bytes:
    return p.STATFS_OUT.pack(
        st.blocks, st.bfree, st.bavail, st.files, st.ffree, st.bsize, st.namelen, st.bsize
    )  # fmt: skip


def _sized(size: int, value: bytes) -> bytes:
    """The two answers of getxattr(2): how long, or the bytes."""
    if not size:
        return p.GETXATTR_OUT.pack(len(value))
    if len(value) > size:
        raise E.Erange(f"{len(value)} bytes")
    return bytes(value)


def _joined(names: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)


def _empty(_: object) -> bytes:
    return b""


def _nothing() -> None:
    return None


__all__ = ["Operations", "attributes"]
