"""What pyfuse3 calls, turned into the requests that our own engine handles: the same handlers behind another library.

A request is put as the kernel put it, goes through Session.serve to the handler of fuse_ops, fuse_open or fuse_io, and
the body of the reply is taken apart again into pyfuse3's objects.  Only directory reads are written here, because
pyfuse3 wants an entry's attributes with each name, and the node ids, because it has one number for node and file.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TypeVar, cast

import pyfuse3
import trio

from ninep.answer import Answer, answering, settle
from ninep.fid import Fid
from ninep.file import Call, File
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.proto.types import Entry, Stat

from .fuse_device import HEADER, Asked, Body, Filled, FuseMount, Row
from .fuse_io import DOT_COOKIES, FileIO
from .fuse_nodes import Known, Nodes
from .fuse_open import Opens
from .fuse_ops import Operations, attributes
from .pyfuse3_engine_watch import Waiter, Watch, group_of

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]

READDIR_BYTES: Final = 4096  # what the kernel's first buffer holds; pyfuse3 does not say how large it is
FRESH: Final = 1 << 63  # node ids from here on are ours; below they are qid paths
NOW_NS: Final = 1_000_000  # a time so little ago is the "now" that libfuse has made a number of
NAMELESS: Final = 0  # the caller of what pyfuse3 names no caller for


class InodeNodes(Nodes):
    """Node ids that are qid paths, as pyfuse3 tells one number for both; snapshots have numbers of their own."""

    def __init__(self, root: Fid, mode: int, live: dict[str, int]) -> None:
        super().__init__(root, mode, live)
        self._fresh = itertools.count(FRESH)

    def _number(self, key: int) -> int:
        if p.ROOT_ID < key < FRESH and key not in self._by_id:
            return key
        return next(number for number in self._fresh if number not in self._by_id)


class Listing(FileIO):
    """Directory entries with their attributes."""

    nodes: Nodes

    @answering
    def plus(self, call: Call, parent: Known, entry: Entry) -> Steps[bytes]:
        """The entry of one name, which the kernel knows from here on; raises nothing that a file says.

        What the kernel may not keep is not rendered for a listing: it is told the file and not the snapshot, and will
        look the name up before it uses it.
        """
        st: Stat | None = None
        try:
            fid: Fid | None
            _, fid = yield self._session.walk(call, parent.fid, (entry.name,))
            if fid is None:
                raise E.Enonexist(entry.name)
            if fid.file.entry_seconds and self._mount.options.cache:
                found: bytes = yield self._found(call, parent, fid)
                return found
            st = yield self._session.stat(call, fid)
        except E.FileError:
            # Not the caller's to see, or gone by now: the name is told, and its own LOOKUP says why.
            fid = Fid(Refused(entry), None, call, parent.fid.root)
        if st is None or st.qid.path != entry.qid.path:
            st = Stat(entry.qid, entry.dtype << 12)
        known = self.nodes.find(st.qid.path)
        known = self.nodes.look_up(known.fid if known is not None else fid, st, frozen=False)
        return p.ENTRY_OUT.pack(known.id, 0, 0, 0, 0, 0, *attributes(st))


class Refused(File):
    """A name that was listed and may not be walked to: it refuses everything."""

    def __init__(self, entry: Entry) -> None:
        self.qid = entry.qid
        self.perm = 0


class InodeOperations(Operations):
    """The operations of a mount that pyfuse3 serves."""

    io: Listing

    @answering
    def start(self) -> Steps[None]:
        """Attach, and take requests from now on."""
        mount = self.mount
        call = mount.callers.call(os.geteuid(), os.getegid(), os.getpid())
        root: Fid = yield self.session.attach(call, mount.options.aname)
        st: Stat = yield root.file.stat(call)
        self.nodes = InodeNodes(root, st.st_mode, mount.node.live)
        self.opens = Opens(mount, self.nodes, self.made)
        if mount.options.cache and (root.file.entry_seconds or root.file.attr_seconds):
            self.subscribe(self.nodes.get(p.ROOT_ID))
        self.io = Listing(mount, self.opens, self.found)
        self.io.nodes = self.nodes
        handlers: dict[str, Callable[[Asked], Answer[Body]]] = {}
        for part in (self, self.opens, self.io):
            handlers |= {op.name: getattr(part, "do_" + op.name) for op in p.OPCODES.values()
                         if hasattr(part, "do_" + op.name)}  # fmt: skip
        handlers["readdirplus"] = cast("Callable[[Asked], Answer[Body]]", self.do_entries)
        mount.set_operations(handlers, {})

    def do_entries(self, asked: Asked) -> Answer[Sequence[Entry]]:
        """The entries that follow an offset; their attributes are asked for one by one."""
        fh, offset = asked.args
        opened = self.opens.get(fh)
        return self.io._entries(asked, opened, offset, READDIR_BYTES)


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
        rest = (fh or 0, attr.st_size, 0, atime & FRESH * 2 - 1, mtime & FRESH * 2 - 1, 0, atime_ns, mtime_ns, 0,
                attr.st_mode & 0o7777, attr.st_uid, attr.st_gid)  # fmt: skip
        try:
            return attributes_of(await self._by("setattr", inode, ctx, valid | times, *rest))
        except pyfuse3.FUSEError as e:
            now = p.FATTR_ATIME_NOW * bool(times & p.FATTR_ATIME) | p.FATTR_MTIME_NOW * bool(times & p.FATTR_MTIME)
            said = attr.st_atime_ns if times & p.FATTR_ATIME else attr.st_mtime_ns
            if e.errno != errno.EPERM or not times or not 0 <= time.time_ns() - said < NOW_NS:
                raise
        # libfuse turned "now" into a number, which only the owner may set; "now" every writer may.
        return attributes_of(await self._by("setattr", inode, ctx, valid | times | now, *rest))

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
            return self._mount.session.ready(call, opened.fid, notify) & 0xFFFFFFFF
        except E.FileError as e:
            raise pyfuse3.FUSEError(e.errno) from None
        except Exception as e:
            raise pyfuse3.FUSEError(self._mount.node.bug(e).errno) from None

    # -- directories

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return self._opened(await self._by("opendir", inode, ctx, 0, 0), 0, ctx).fh

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
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
            if not pyfuse3.readdir_reply(token, os.fsencode(entry.name), attr, entry.cookie + DOT_COOKIES):
                nodes.forget(attr.st_ino, 1)
                break
            at = entry.cookie + DOT_COOKIES
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


def entry_of(body: bytes) -> pyfuse3.EntryAttributes:
    """The reply to a LOOKUP.

    pyfuse3 says one number for the node and for st_ino.  Where they differ the kernel is told to ask for the
    attributes, because GETATTR can say another.
    """
    nodeid, _, entry_s, attr_s, entry_ns, attr_ns, *fields = p.ENTRY_OUT.unpack_from(body)
    attr = _filled(fields)
    attr.entry_timeout = entry_s + entry_ns / 1e9
    attr.attr_timeout = attr_s + attr_ns / 1e9 if nodeid == attr.st_ino else 0
    attr.st_ino = nodeid
    return attr


def attributes_of(body: bytes) -> pyfuse3.EntryAttributes:
    """The reply to a GETATTR; st_ino is the qid path."""
    seconds, ns, *fields = p.ATTR_OUT.unpack_from(body)
    attr = _filled(fields)
    attr.attr_timeout = seconds + ns / 1e9
    return attr


def dot(file: File) -> pyfuse3.EntryAttributes:
    """What `.` and `..` need; the kernel makes no node of them."""
    attr = pyfuse3.EntryAttributes()
    attr.st_ino = file.qid.path
    attr.st_mode = file.kind
    attr.entry_timeout = attr.attr_timeout = 0
    return attr


def wake(handle: pyfuse3.PollHandle) -> None:
    """Tell the kernel that a file may be ready; raises nothing, for nobody may be left to hear it."""
    try:
        handle.notify()
    except (OSError, RuntimeError):
        pass


def _filled(fields: Sequence[int]) -> pyfuse3.EntryAttributes:
    ino, size, blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, nlink, uid, gid, rdev, blksize, _ = (
        fields
    )
    attr = pyfuse3.EntryAttributes()
    attr.st_ino = ino
    attr.st_size = size
    attr.st_blocks = blocks
    attr.st_atime_ns = _signed(atime) * 1_000_000_000 + atime_ns
    attr.st_mtime_ns = _signed(mtime) * 1_000_000_000 + mtime_ns
    attr.st_ctime_ns = _signed(ctime) * 1_000_000_000 + ctime_ns
    attr.st_mode = mode
    attr.st_nlink = nlink
    attr.st_uid = uid
    attr.st_gid = gid
    attr.st_rdev = rdev
    attr.st_blksize = blksize
    return attr


def _signed(seconds: int) -> int:
    return seconds - (1 << 64) if seconds >= 1 << 63 else seconds
