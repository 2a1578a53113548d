"""A remote tree as a Dir: RemoteDir, RemoteFile, RemoteSymlink and RemoteHandle (ninep.file) over a Mux.

The server judges permissions, so `access` and `may_wstat` say nothing.  What it says of its files is checked
(client_checks); qid paths become our own; set-id bits and devices do not come through.  A file holds one unopened fid
and every open another one; both are clunked when nobody uses them any more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec
import trio

from ninep.edges import client_checks as checks
from ninep.edges import client_lock as locking
from ninep.edges import client_meta as meta
from ninep.edges import client_naming as naming
from ninep.edges import client_ops as ops
from ninep.edges.client_mux import Mux
from ninep.edges.client_pending import Flow
from ninep.edges.client_stream import DirReader
from ninep.file import Call, Dir, File, Handle, Symlink
from ninep.proto import errors as E
from ninep.proto.types import (
    OREAD,
    QTDIR,
    QTSYMLINK,
    UNKNOWN_ID,
    Change,
    Entry,
    Lock,
    Qid,
    Stat,
    StatFs,
)

LOCK_POLL_SECONDS_FIRST = 0.02  # 9P has no waiting lock: it is asked for again, ever less often
LOCK_POLL_SECONDS_MAX = 1.0
WALKS_TOGETHER = 64


class _Fid:
    """A fid that is clunked when nobody holds this object any more."""

    __slots__ = ("mux", "number")

    def __init__(self, mux: Mux, number: int) -> None:
        self.mux = mux
        self.number = number

    def __del__(self) -> None:
        if self.number >= 0:
            self.mux.drop_fid(self.number)


class RemoteFile(File):
    """A file of the server's.  Every method may block until the server answers, and raises what it answers."""

    def __init__(self, mux: Mux, fid: int, qid: Qid) -> None:
        self.mux = mux
        self.remote_qid = qid
        self.qid = mux.local_qid(qid)
        self._fid = _Fid(mux, fid)

    @property
    def fid(self) -> int:
        return self._fid.number

    async def stat(self, call: Call) -> Stat:
        st = checks.masked(await self.mux.run(meta.stat(self.mux.core, self.fid)))
        checks.same_kind(self.remote_qid, st.qid)
        self.qid = Qid(self.qid.type, st.qid.vers, self.qid.path)
        return msgspec.structs.replace(st, qid=self.qid)

    def access(self, call: Call, want: int) -> None:
        return None

    def may_wstat(self, call: Call, change: Change) -> None:
        return None

    async def wstat(self, call: Call, change: Change) -> None:
        if change.perm is not None:
            change = msgspec.structs.replace(change, perm=change.perm & 0o777)
        await self.mux.run(meta.wstat(self.mux.core, self.fid, change, time.time_ns()))

    async def statfs(self, call: Call) -> StatFs:
        return await self.mux.run(meta.statfs(self.mux.core, self.fid))

    async def listxattr(self, call: Call) -> Sequence[str]:
        return checks.xattr_names(await self.mux.run(meta.getxattr(self.mux.core, self.fid, "")))

    async def getxattr(self, call: Call, name: str) -> bytes:
        if not name:
            raise E.Enoattr
        return await self.mux.run(meta.getxattr(self.mux.core, self.fid, name))

    async def setxattr(self, call: Call, name: str, value: bytes, flags: int) -> None:
        await self.mux.run(meta.setxattr(self.mux.core, self.fid, name, value, flags))

    async def removexattr(self, call: Call, name: str) -> None:
        await self.mux.run(meta.removexattr(self.mux.core, self.fid, name))

    async def open(self, call: Call, omode: int) -> Handle:
        return await self.mux.run(self._open(omode))

    def _open(self, omode: int) -> Flow[RemoteHandle]:
        core = self.mux.core
        fid, _ = yield from ops.walk(core, self.fid, ())
        try:
            opened, st = yield from ops.open_stat(core, fid, omode)
            checks.same_kind(self.remote_qid, opened.qid)
        except BaseException:
            core.clunk_soon(fid)
            raise
        return RemoteHandle(self.mux, opened, omode, st)

    async def readlink(self, call: Call) -> str:
        return await self.mux.run(meta.readlink(self.mux.core, self.fid))


class RemoteSymlink(RemoteFile, Symlink):
    """A symbolic link of the server's; its target is text, and whoever follows it decides where it may lead."""


class RemoteDir(RemoteFile, Dir):
    """A directory of the server's."""

    async def walk(self, call: Call, name: str) -> File:
        return await self.mux.run(self._walk(name))

    def _walk(self, name: str) -> Flow[RemoteFile]:
        if not checks.is_name(name):
            raise E.Ebadchar(name[:40])
        fid, qids = yield from ops.walk(self.mux.core, self.fid, (name,))
        return file_of(self.mux, fid, qids[-1])

    async def list(self, call: Call) -> Iterable[tuple[str, File]]:
        """Every child walked to: one fid each.  Edges use the handle's entries, which need none."""
        handle = await self.mux.run(self._open(OREAD))
        found: list[tuple[str, File]] = []
        try:
            cookie = 0
            while batch := await handle.entries(call, cookie, WALKS_TOGETHER):
                cookie = batch[-1].cookie
                found += await self._walk_some([entry.name for entry in batch])
        finally:
            await handle.close(call)  # opened for reading: it does not wait
        return found

    async def _walk_some(self, names: Sequence[str]) -> Sequence[tuple[str, File]]:
        found: dict[str, File] = {}

        async def walk_one(name: str) -> None:
            try:
                found[name] = await self.mux.run(self._walk(name))
            except E.FileError:
                pass  # gone between the two looks

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(walk_one, name)
        return [(name, found[name]) for name in names if name in found]

    async def open(self, call: Call, omode: int) -> Handle:
        return await self.mux.run(self._open(omode))

    async def create(self, call: Call, name: str, perm: int, omode: int) -> tuple[File, Handle]:
        return await self.mux.run(self._create(call, name, perm, omode))

    def _create(self, call: Call, name: str, perm: int, omode: int) -> Flow[tuple[File, Handle]]:
        core = self.mux.core
        opened = yield from naming.create(core, self.fid, name, perm & ~0o7000, omode, _gid(call))
        try:
            file = yield from self._walk(name)
            if file.remote_qid.path != opened.qid.path:
                raise E.Estale(name)
        except BaseException:
            core.clunk_soon(opened.fid)
            raise
        return file, RemoteHandle(self.mux, opened, omode, None)

    async def mkdir(self, call: Call, name: str, perm: int) -> File:
        return await self._made(naming.mkdir(self.mux.core, self.fid, name, perm & 0o777, _gid(call)), name)

    async def symlink(self, call: Call, name: str, target: str) -> File:
        return await self._made(naming.symlink(self.mux.core, self.fid, name, target, _gid(call)), name)

    async def mknod(self, call: Call, name: str, st_mode: int, rdev: int) -> File:
        return await self._made(naming.mknod(self.mux.core, self.fid, name, st_mode & ~0o7000, rdev, _gid(call)), name)

    async def _made(self, making: Flow[Qid], name: str) -> File:
        def flow() -> Flow[RemoteFile]:
            yield from making
            return (yield from self._walk(name))

        return await self.mux.run(flow())

    async def link(self, call: Call, name: str, file: File) -> None:
        await self.mux.run(naming.link(self.mux.core, self.fid, self._mine(file).fid, name))

    async def remove(self, call: Call, name: str, is_dir: bool | None, expect: File | None = None) -> None:
        qid = None
        if expect is not None:
            if not isinstance(expect, RemoteFile) or expect.mux is not self.mux:
                raise E.Estale(name)
            qid = expect.remote_qid
        await self.mux.run(naming.remove(self.mux.core, self.fid, name, is_dir, qid))

    async def rename(self, call: Call, name: str, to: Dir, to_name: str, flags: int) -> None:
        if flags:
            raise E.Ebadarg("9P has no rename flags")
        to_fid = self._mine(to).fid
        same = to is self or to.qid.path == self.qid.path
        await self.mux.run(naming.rename(self.mux.core, self.fid, name, to_fid, to_name, same_dir=same))

    def _mine(self, file: File) -> RemoteFile:
        if not isinstance(file, RemoteFile) or file.mux is not self.mux:
            raise E.Exdev
        return file


class RemoteHandle(Handle):
    """One open fid.  `direct` where the stated size says nothing: no bytes, and no version to cache by."""

    def __init__(self, mux: Mux, opened: ops.Opened, omode: int, st: Stat | None) -> None:
        self.mux = mux
        self.omode = omode
        self.iounit = min(opened.iounit, mux.core.io_bytes_max)
        self.direct = st is not None and st.size == 0 and st.qid.vers == 0
        self._size = 0 if st is None else st.size  # bytes that were promised: to read them is bounded in time
        self._fid = _Fid(mux, opened.fid)
        self._is_open = True
        self._has_locked = False
        self._reader = DirReader(mux.core, opened) if opened.qid.type & QTDIR else None
        self._batch: Sequence[Entry] = ()
        self._places: dict[int, int] = {}  # cookie -> place after it in the batch

    @property
    def fid(self) -> int:
        if not self._is_open:
            raise E.Enotopen
        return self._fid.number

    async def read(self, call: Call, offset: int, count: int) -> bytes:
        reading = self.mux.run(ops.read(self.mux.core, self.fid, offset, count), parks=True)
        if offset >= self._size:
            return await reading  # of a stream, perhaps
        with trio.move_on_after(self.mux.limits.reply_seconds_max):
            return await reading
        raise E.Etimedout("Tread")

    async def write(self, call: Call, offset: int, data: bytes | memoryview) -> int:
        return await self.mux.run(ops.write(self.mux.core, self.fid, offset, data, self.iounit))

    async def truncate(self, call: Call, size: int) -> None:
        await self.mux.run(meta.wstat(self.mux.core, self.fid, Change(size=size), 0))

    async def fsync(self, call: Call, datasync: bool) -> None:
        await self.mux.run(ops.fsync(self.mux.core, self.fid, datasync))

    async def lock(self, call: Call, lock: Lock, wait: bool) -> bool:
        had_locked, self._has_locked = self._has_locked, True
        pause = LOCK_POLL_SECONDS_FIRST
        while not await self._lock(lock, had_locked):
            if not wait:
                return False
            await trio.sleep(pause)
            pause = min(2 * pause, LOCK_POLL_SECONDS_MAX)
        return True

    async def _lock(self, lock: Lock, had_locked: bool) -> bool:
        try:
            return await self.mux.run(locking.lock(self.mux.core, self.fid, lock))
        except E.Eunsupported:
            self._has_locked = had_locked  # else the close would try to unlock, and fail
            raise

    async def getlock(self, call: Call, lock: Lock) -> Lock | None:
        return await self.mux.run(locking.getlock(self.mux.core, self.fid, lock))

    async def unlock_owner(self, call: Call, owner: object, flock: bool) -> None:
        if self._has_locked:
            await self.mux.run(locking.unlock_owner(self.mux.core, self.fid, owner, flock))

    async def entries(self, call: Call, cookie: int, count: int) -> Sequence[Entry]:
        if self._reader is None:
            raise E.Enotdir
        at = self._places.get(cookie)
        if at is None or (at == len(self._batch)) or cookie == 0:
            at = 0
            self._batch = await self.mux.run(self._reader.after(cookie))
            self._places = {entry.cookie: i for i, entry in enumerate(self._batch, 1)}
        return [self._local(entry) for entry in self._batch[at : at + count]]

    def _local(self, entry: Entry) -> Entry:
        qid = self.mux.local_qid(entry.qid)
        if entry.stat is None:
            return entry._replace(qid=qid)
        st = msgspec.structs.replace(checks.masked(entry.stat), qid=qid)
        return entry._replace(qid=qid, dtype=st.st_mode >> 12, stat=st)

    async def close(self, call: Call) -> None:
        """Waits for the clunk where it may carry an error: after writing."""
        if not self._is_open:
            return
        self._is_open = False
        fid, self._fid.number = self._fid.number, -1
        if self.omode & 3 == OREAD:
            self.mux.clunk_soon(fid)
        else:
            await self.mux.run(ops.clunk(self.mux.core, fid))


def file_of(mux: Mux, fid: int, qid: Qid) -> RemoteFile:
    """The File for a fid: a directory, a symlink or anything else, as its qid says."""
    if qid.type & QTDIR:
        return RemoteDir(mux, fid, qid)
    if qid.type & QTSYMLINK:
        return RemoteSymlink(mux, fid, qid)
    return RemoteFile(mux, fid, qid)


def _gid(call: Call) -> int:
    """The group for a new file: the caller's own, if it is proven."""
    who = call.principal
    return who.gid if who.proof != "none" and who.gid != UNKNOWN_ID else naming.GID_NONE
