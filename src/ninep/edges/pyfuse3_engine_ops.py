"""What pyfuse3 calls, turned into the requests that our own engine handles: the same handlers behind another library.

A request is put as the kernel put it, goes through Session.serve to the handler of fuse_ops, fuse_open or fuse_io, and
the body of the reply is taken apart again into pyfuse3's objects.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, cast

import pyfuse3
import trio

from ninep.answer import settle
from ninep.file import Call
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.proto.types import W_WANT, Entry

from .fuse_device import HEADER, Asked, Filled, FuseMount, Row
from .fuse_io import DOT_COOKIES
from .fuse_nodes import Known
from .pyfuse3_engine_attr import attributes_of, dot, entry_of, wake
from .pyfuse3_engine_tree import InodeOperations
from .pyfuse3_engine_watch import Waiter, Watch, group_of

NOW_NS: Final = 1_000_000  # a time so little ago is the "now" that libfuse has made a number of
U64: Final = (1 << 64) - 1
POLLIN: Final = 0x1 | 0x40  # with POLLRDNORM: pyfuse3 does not say what was asked, and streams are read
NAMELESS: Final = 0  # the caller of what pyfuse3 names no caller for


class Replies:
    """The sink of the Session: hands each answer to the task of pyfuse3's that waits for it.  An int is an errno."""

    def __init__(self) -> None:
        self._done: dict[int, object] = {}
        self._waiting: dict[int, trio.Event] = {}

    def reply(self, key: int, message: object) -> None:
        self._done[key] = message
        if (event := self._waiting.get(key)) is not None:
            event.set()

    def refuse(self, key: int, error: E.FileError) -> None:
        self.reply(key, error.errno)

    def cancelled(self, key: int) -> None:
        self.reply(key, errno.EINTR)

    def take(self, key: int) -> object:
        """The answer, if it is there already, else None."""
        return self._done.pop(key, None)

    async def wait(self, key: int) -> object:
        """Blocks until the answer is there; may be cancelled."""
        event = self._waiting[key] = trio.Event()
        try:
            await event.wait()
        finally:
            del self._waiting[key]
            answer = self._done.pop(key, None)
        return answer


class Adapter(pyfuse3.Operations):
    """pyfuse3's idea of a file system.  Raises FUSEError and nothing else: anything else would end the mount."""

    supports_dot_lookup = False

    def __init__(self, mount: FuseMount, operations: InodeOperations, rows: dict[str, Row], replies: Replies,
                 is_gone: Callable[[], bool]) -> None:  # fmt: skip
        self._mount = mount
        self._operations = operations
        self._rows = rows
        self._replies = replies
        self._keys = itertools.count(1)
        self._groups: dict[int, int] = {}  # of the openers, by file handle
        self.watch = Watch(mount.session.requests.cancel, is_gone)
        self.served = trio.Event()  # the kernel's first message is being answered
        self.is_ending = False

    def init(self) -> None:
        self.served.set()

    # -- the way through the Session

    async def _ask(self, name: str, nodeid: int, call: Call, waiter: tuple[int, int, int], *args: object) -> object:
        """The body of the reply to a request.  Raises FUSEError.  Blocks as long as the tree does."""
        if self.is_ending:
            raise pyfuse3.FUSEError(errno.ESHUTDOWN)
        key = next(self._keys)
        row = self._rows[name]
        session = self._mount.session
        session.who = call.principal
        session.serve(key, row.index, row.handler, Asked(key, nodeid, call, args), row.seconds)
        answer = self._replies.take(key)
        if answer is None:
            self.watch.add(Waiter(key, *waiter))
            try:
                answer = await self._replies.wait(key)
            finally:
                self.watch.drop(key)
        if isinstance(answer, int):
            raise pyfuse3.FUSEError(answer)
        return answer

    async def _by(self, name: str, nodeid: int, ctx: pyfuse3.RequestContext, *args: object) -> bytes:
        """A request of a known caller."""
        call = self._mount.callers.call(ctx.uid, ctx.gid, ctx.pid)
        return cast(bytes, await self._ask(name, nodeid, call, (ctx.pid, call.pid, 0), *args))

    async def _on(self, name: str, fh: int, *args: object) -> object:
        """A request on an open file, whose caller pyfuse3 does not tell: it is taken for the opener."""
        try:
            call = self._operations.opens.get(fh).fid.call
        except E.FileError as e:
            raise pyfuse3.FUSEError(e.errno) from None
        return await self._ask(name, 0, call, (NAMELESS, call.pid, self._groups.get(fh, 0)), fh, *args)

    def _opened(self, body: bytes, at: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        fh, flags, _ = p.OPEN_OUT.unpack_from(body, at)
        self._groups[fh] = group_of(ctx.pid)
        return pyfuse3.FileInfo(
            fh=fh,
            direct_io=bool(flags & p.FOPEN_DIRECT_IO),
            keep_cache=bool(flags & p.FOPEN_KEEP_CACHE),
            nonseekable=bool(flags & p.FOPEN_NONSEEKABLE),
        )

    # -- names and attributes

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return entry_of(await self._by("lookup", parent_inode, ctx, os.fsdecode(name)))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, lookups in inode_list:
            self._operations.nodes.forget(inode, lookups)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return attributes_of(await self._by("getattr", inode, ctx, 0, 0))

    async def setattr(self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None,
                      ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:  # fmt: skip
        valid = 0
        for bit, on in ((p.FATTR_MODE, fields.update_mode), (p.FATTR_UID, fields.update_uid),
                        (p.FATTR_GID, fields.update_gid), (p.FATTR_SIZE, fields.update_size),
                        (p.FATTR_FH, fh is not None)):  # fmt: skip
            valid |= bit if on else 0
        times = 0
        if not fields.update_size:  # a truncation says "and now" for the times: that is what truncating means
            times |= p.FATTR_ATIME if fields.update_atime else 0
            times |= p.FATTR_MTIME if fields.update_mtime else 0
        atime, atime_ns = divmod(attr.st_atime_ns, 1_000_000_000)
        mtime, mtime_ns = divmod(attr.st_mtime_ns, 1_000_000_000)
        rest = (fh or 0, attr.st_size, 0, atime & U64, mtime & U64, 0, atime_ns, mtime_ns, 0,
                attr.st_mode & 0o7777, attr.st_uid, attr.st_gid)  # fmt: skip
        try:
            return attributes_of(await self._by("setattr", inode, ctx, valid | times, *rest))
        except pyfuse3.FUSEError as e:
            if e.errno != errno.EPERM:
                raise
        if valid | times == p.FATTR_MODE:
            return await self._without_set_id(inode, attr.st_mode & 0o7777, ctx)
        said = attr.st_atime_ns if times & p.FATTR_ATIME else attr.st_mtime_ns
        if not times or not 0 <= time.time_ns() - said < NOW_NS:
            raise pyfuse3.FUSEError(errno.EPERM)
        # libfuse turned "now" into a number, which only the owner may set; "now" every writer may.
        times |= p.FATTR_ATIME_NOW if times & p.FATTR_ATIME else 0
        times |= p.FATTR_MTIME_NOW if times & p.FATTR_MTIME else 0
        return attributes_of(await self._by("setattr", inode, ctx, valid | times, *rest))

    async def _without_set_id(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """What the kernel asks before another's write to a set-id file, in the writer's name: libfuse wants it so.

        Whoever may write may have that, as the write would do it.  Raises EPERM for any other change of mode.
        """
        call = self._mount.callers.call(ctx.uid, ctx.gid, ctx.pid)
        try:
            file = self._operations.nodes.get(inode).fid.file
            st = await settle(file.stat(call))
            if mode & ~st.st_mode or (st.st_mode & 0o7777 ^ mode) & ~0o6000:
                raise E.Eperm
            await settle(file.access(call, W_WANT))
        except E.FileError:
            raise pyfuse3.FUSEError(errno.EPERM) from None
        own = self._mount.callers.call(os.geteuid(), os.getegid(), os.getpid())
        fields = (p.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, mode, 0, 0)
        body = await self._ask("setattr", inode, own, (ctx.pid, call.pid, 0), *fields)
        return attributes_of(cast(bytes, body))

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._by("readlink", inode, ctx)

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int,
                    ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:  # fmt: skip
        return entry_of(await self._by("mknod", parent_inode, ctx, mode, rdev, 0, os.fsdecode(name)))

    async def mkdir(self, parent_inode: int, name: bytes, mode: int,
                    ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:  # fmt: skip
        return entry_of(await self._by("mkdir", parent_inode, ctx, mode, 0, os.fsdecode(name)))

    async def symlink(self, parent_inode: int, name: bytes, target: bytes,
                      ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:  # fmt: skip
        return entry_of(await self._by("symlink", parent_inode, ctx, os.fsdecode(name), os.fsdecode(target)))

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes,
                   ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:  # fmt: skip
        return entry_of(await self._by("link", new_parent_inode, ctx, inode, os.fsdecode(new_name)))

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._by("unlink", parent_inode, ctx, os.fsdecode(name))

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._by("rmdir", parent_inode, ctx, os.fsdecode(name))

    async def rename(self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes,
                     flags: int, ctx: pyfuse3.RequestContext) -> None:  # fmt: skip
        names = os.fsdecode(name_old), os.fsdecode(name_new)
        await self._by("rename2", parent_inode_old, ctx, parent_inode_new, flags, *names)

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        await self._by("access", inode, ctx, mode)
        return True

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        body = await self._by("statfs", p.ROOT_ID, ctx)
        st = pyfuse3.StatvfsData()
        (st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_namemax, st.f_frsize,
         *_) = p.STATFS_OUT.unpack_from(body)  # fmt: skip
        st.f_favail = st.f_ffree
        return st

    # -- extended attributes

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._by("setxattr", inode, ctx, len(value), 0, os.fsdecode(name), value)

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._by("getxattr", inode, ctx, 1 << 31, os.fsdecode(name))

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return (await self._by("listxattr", inode, ctx, 1 << 31)).split(b"\0")[:-1]

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._by("removexattr", inode, ctx, os.fsdecode(name))

    # -- open files

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return self._opened(await self._by("open", inode, ctx, flags, 0), 0, ctx)

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int,
                     ctx: pyfuse3.RequestContext) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:  # fmt: skip
        body = await self._by("create", parent_inode, ctx, flags, mode, 0, 0, os.fsdecode(name))
        return self._opened(body, p.ENTRY_OUT.size, ctx), entry_of(body)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        body = await self._on("read", fh, off, size, 0, 0, 0)
        if isinstance(body, Filled):
            data = bytes(memoryview(body.buffer)[HEADER : HEADER + body.count])
            self._mount.buffers.give(body.buffer)
            return data
        return cast(bytes, body)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        body = await self._on("write", fh, off, len(buf), 0, 0, 0, memoryview(buf))
        return int(p.WRITE_OUT.unpack_from(cast(bytes, body))[0])

    async def flush(self, fh: int) -> None:
        await self._on("flush", fh, 0)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._on("fsync", fh, p.FSYNC_FDATASYNC if datasync else 0)

    async def release(self, fh: int) -> None:
        self._groups.pop(fh, None)
        await self._on("release", fh, 0, 0, 0)

    async def poll(self, inode: int, fh: int, poll_handle: pyfuse3.PollHandle | None,
                   ctx: pyfuse3.RequestContext) -> int:  # fmt: skip
        """Readiness has no number that could be told to a handler: this goes to the Session directly."""
        notify = None
        if poll_handle is not None:
            handle = poll_handle
            notify = lambda: wake(handle)
        try:
            opened = self._operations.opens.get(fh)
            call = self._mount.callers.call(ctx.uid, ctx.gid, ctx.pid)
            return self._mount.session.ready(call, opened.fid, POLLIN, notify) & 0xFFFFFFFF
        except E.FileError as e:
            raise pyfuse3.FUSEError(e.errno) from None
        except Exception as e:
            raise pyfuse3.FUSEError(self._mount.node.bug(e).errno) from None

    # -- directories

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return self._opened(await self._by("opendir", inode, ctx, 0, 0), 0, ctx).fh

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        start_id %= 1 << 64  # an off_t here, and a disk's last cookie is its largest
        entries = cast("Sequence[Entry]", await self._on("readdirplus", fh, start_id))
        opened = self._operations.opens.get(fh)
        known, nodes = opened.known, self._operations.nodes
        above = known.fid.way.dir if known.fid.way is not None else known.fid.file
        for at, (file, name) in enumerate(((known.fid.file, b"."), (above, b"..")), 1):
            if start_id < at:
                pyfuse3.readdir_reply(token, name, dot(file), at)
        at, used = max(start_id, DOT_COOKIES), 0
        for entry in entries:
            attr = await self._plus(opened.fid.call, known, entry)
            after = entry.cookie + DOT_COOKIES
            off_t = after - (1 << 64) if after >> 63 else after
            if not pyfuse3.readdir_reply(token, os.fsencode(entry.name), attr, off_t):
                nodes.forget(attr.st_ino, 1)
                break
            at = after
            used += 1
        opened.at = at
        opened.rest = entries[used:]

    async def _plus(self, call: Call, parent: Known, entry: Entry) -> pyfuse3.EntryAttributes:
        try:
            with trio.fail_after(self._mount.node.limits.call_seconds_max):
                return entry_of(await settle(self._operations.io.plus(call, parent, entry)))
        except trio.TooSlowError:
            raise pyfuse3.FUSEError(errno.ETIMEDOUT) from None
        except Exception as e:
            raise pyfuse3.FUSEError(self._mount.node.bug(e).errno) from None

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._on("fsyncdir", fh, p.FSYNC_FDATASYNC if datasync else 0)

    async def releasedir(self, fh: int) -> None:
        self._groups.pop(fh, None)
        await self._on("releasedir", fh, 0, 0, 0)
