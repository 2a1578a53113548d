"""A 9P client that blocks: for command lines and scripts.  The same flows as the trio client, without trio.

    with Blocking("9p://host/path") as remote:
        for entry in remote.ls():
            print(entry.name)

Every wait has a deadline from Limits, except a read, which may be of a stream; Ctrl-C ends that too, and the server is
told (Tflush, then the clunks).  Not for use by two threads at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from ninep.edges import client_checks as checks
from ninep.edges import client_meta as meta
from ninep.edges import client_naming as naming
from ninep.edges import client_ops as ops
from ninep.edges.blocking_run import Driver
from ninep.edges.client_core import Core, negotiate, own_name
from ninep.edges.client_pending import Flow
from ninep.edges.client_stream import DirReader, ReadAhead
from ninep.edges.dial import Address, Link, connect_link, parse
from ninep.limits import DEFAULT, Limits
from ninep.proto import errors as E
from ninep.proto.types import (
    NONUNAME,
    OREAD,
    OTRUNC,
    OWRITE,
    Change,
    Entry,
    Qid,
    Stat,
    StatFs,
)

T = TypeVar("T")

Path = str | Sequence[str]


class Blocking(Driver):
    """One connection, attached.  Paths: "" is the address's own path, a leading "/" begins at the attach point.

    Every method raises the FileError that the server answered, Etimedout, Ehungup or Enotconn.
    """

    def __init__(
        self,
        address: Address | str,
        *,
        uname: str | None = None,
        limits: Limits = DEFAULT,
        link: Link | None = None,
        wants_text: bool = False,
    ) -> None:
        """Connect, agree on a dialect and attach.  A `link` is used instead of dialling, and owned.

        `wants_text` prefers a dialect whose errors have words: a ctl file's answer is worth reading.
        """
        self.address = parse(address) if isinstance(address, str) else address
        self.limits = limits
        link = link or connect_link(self.address, limits)
        name = uname or self.address.uname or own_name()
        core = Core(time.monotonic, limits, uname=name, msize_bytes=self.address.msize_bytes)
        try:
            super().__init__(core, link)
            self.run(negotiate(self.core, self.address.dialect, wants_text=wants_text))
            n_uname = os.getuid() if name == own_name() else NONUNAME
            self.root_fid, self.root_qid = self.run(ops.attach(self.core, self.address.aname, n_uname))
        except E.Ehungup as e:
            told = link.hung_up(e)
            link.close()
            raise told from None
        except BaseException:
            link.close()
            raise

    def __enter__(self) -> Blocking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- files by path

    def walk(self, path: Path = "") -> list[Qid]:
        """The qid of each step."""
        fid, qids = self.run(ops.walk(self.core, self.root_fid, self._names(path)))
        self.core.clunk_soon(fid)
        return qids

    def stat(self, path: Path = "") -> Stat:
        """What the server says of the file, sizes and times clamped to what Linux holds."""
        return self.run(self._with(self._names(path), lambda fid: meta.stat(self.core, fid)))

    def ls(self, path: Path = "", *, stats: bool = False) -> Iterator[Entry]:
        """The entries of a directory, in the server's order, as they come.

        With `stats` each entry carries its Stat where the server gives one: over .L that asks for each, many at once.
        """
        opened = self.run(ops.open_walked(self.core, self.root_fid, self._names(path), OREAD))
        try:
            reader = DirReader(self.core, opened)
            dirfid = self.run(ops.walk(self.core, self.root_fid, self._names(path)))[0] if stats else -1
            try:
                cookie = 0
                while batch := self.run(reader.after(cookie)):
                    cookie = batch[-1].cookie
                    yield from self._with_stats(dirfid, batch) if stats else batch
            finally:
                if dirfid >= 0:
                    self.core.clunk_soon(dirfid)
        finally:
            self.core.clunk_soon(opened.fid)

    def _with_stats(self, dirfid: int, batch: list[Entry]) -> Iterator[Entry]:
        lacking = [e.name for e in batch if e.stat is None]
        found = iter(self.run_many(self._stat_flow(dirfid, name) for name in lacking))
        for entry in batch:
            if entry.stat is None:
                st = next(found)
                yield entry if isinstance(st, E.FileError) else entry._replace(stat=st)
            else:
                yield entry

    def _stat_flow(self, dirfid: int, name: str) -> Flow[Stat]:
        fid, _ = yield from ops.walk(self.core, dirfid, (name,))
        try:
            return (yield from meta.stat(self.core, fid))
        finally:
            self.core.clunk_soon(fid)

    def open(self, path: Path = "", omode: int = OREAD) -> BlockingFile:
        """Open a file; close it, or use it as a context manager."""
        names = self._names(path)
        return BlockingFile(self, self.run(self._open(names, omode)))

    def _open(self, names: Sequence[str], omode: int) -> Flow[tuple[ops.Opened, int]]:
        """The open file, and the size up to which a reader may read ahead (0 where it may not)."""
        fid, _ = yield from ops.walk(self.core, self.root_fid, names)
        try:
            if omode & 3 != OREAD:
                return (yield from ops.open_fid(self.core, fid, omode)), 0
            opened, st = yield from ops.open_stat(self.core, fid, omode)
            return opened, st.size if st else 0
        except BaseException:
            self.core.clunk_soon(fid)
            raise

    def chunks(self, path: Path = "", *, offset: int = 0) -> Iterator[bytes]:
        """The content in pieces, until the server says that it ends; a stream may park between two of them."""
        with self.open(path) as file:
            file.seek(offset)
            while data := file.read():
                yield data

    def read(self, path: Path = "", *, bytes_max: int = 1 << 30) -> bytes:
        """The whole content.  Efbig past bytes_max."""
        parts: list[bytes] = []
        total = 0
        for data in self.chunks(path):
            total += len(data)
            if total > bytes_max:
                raise E.Efbig
            parts.append(data)
        return b"".join(parts)

    def write(self, path: Path, data: bytes | Iterable[bytes], *, offset: int = 0, omode: int = OWRITE | OTRUNC) -> int:
        """Write into an existing file; the bytes taken.  Each item of an iterable is written as it comes."""
        with self.open(path, omode) as file:
            file.seek(offset)
            return sum(file.write(part) for part in ([data] if isinstance(data, bytes) else data))

    def create(self, path: Path, perm: int = 0o666, omode: int = OWRITE) -> BlockingFile:
        """A new file, open.  Eexist if there is one."""
        directory, name = self._split(path)
        return BlockingFile(
            self, (self.run(self._with(directory, lambda fid: naming.create(self.core, fid, name, perm, omode))), 0)
        )

    def mkdir(self, path: Path, perm: int = 0o777) -> Qid:
        """A new directory; its qid.  Eexist if the name is taken."""
        directory, name = self._split(path)
        return self.run(self._with(directory, lambda fid: naming.mkdir(self.core, fid, name, perm)))

    def symlink(self, target: str, path: Path) -> Qid:
        """A symbolic link at `path` that says `target`, which is not looked at.  Eunsupported over 9P2000."""
        directory, name = self._split(path)
        return self.run(self._with(directory, lambda fid: naming.symlink(self.core, fid, name, target)))

    def mknod(self, path: Path, st_mode: int, rdev: int = 0) -> Qid:
        """A FIFO, socket or device, as mknod(2) says it.  Eunsupported over 9P2000."""
        directory, name = self._split(path)
        return self.run(self._with(directory, lambda fid: naming.mknod(self.core, fid, name, st_mode, rdev)))

    def remove(self, path: Path, is_dir: bool | None = None) -> None:
        """Remove a file or an empty directory; with `is_dir`, only one of the two."""
        directory, name = self._split(path)
        self.run(self._with(directory, lambda fid: naming.remove(self.core, fid, name, is_dir)))

    def rename(self, path: Path, to: Path) -> None:
        """rename(2) as far as the dialect goes: 9P2000 and .u only within one directory."""
        (old_dir, old), (new_dir, new) = self._split(path), self._split(to)
        same = old_dir == new_dir
        self.run(
            self._with(
                old_dir,
                lambda fid: self._with(
                    new_dir, lambda to_fid: naming.rename(self.core, fid, old, to_fid, new, same_dir=same)
                ),
            )
        )

    def link(self, path: Path, new: Path) -> None:
        """A further name for an existing file."""
        directory, name = self._split(new)
        old = self._names(path)
        self.run(self._with(old, lambda fid: self._with(directory, lambda d: naming.link(self.core, d, fid, name))))

    def readlink(self, path: Path = "") -> str:
        """A symbolic link's target, verbatim.  Ebadarg for anything else."""
        return self.run(self._with(self._names(path), lambda fid: meta.readlink(self.core, fid)))

    def wstat(self, path: Path, change: Change) -> None:
        """chmod, chown, truncate, utimes: all of the change or none of it."""
        self.run(self._with(self._names(path), lambda fid: meta.wstat(self.core, fid, change, time.time_ns())))

    def statfs(self, path: Path = "") -> StatFs:
        """The file system behind the file; the defaults where the dialect cannot tell."""
        return self.run(self._with(self._names(path), lambda fid: meta.statfs(self.core, fid)))

    def getxattr(self, path: Path, name: str) -> bytes:
        """An extended attribute's value.  Enoattr if there is none; all four need 9P2000.L."""
        return self.run(self._with(self._names(path), lambda fid: meta.getxattr(self.core, fid, name)))

    def listxattr(self, path: Path = "") -> list[str]:
        """The names of the extended attributes."""
        return checks.xattr_names(
            self.run(self._with(self._names(path), lambda fid: meta.getxattr(self.core, fid, "")))
        )

    def setxattr(self, path: Path, name: str, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; `flags` are XATTR_CREATE and XATTR_REPLACE, as setxattr(2) has them."""
        self.run(self._with(self._names(path), lambda fid: meta.setxattr(self.core, fid, name, value, flags)))

    def removexattr(self, path: Path, name: str) -> None:
        """Remove an extended attribute."""
        self.run(self._with(self._names(path), lambda fid: meta.removexattr(self.core, fid, name)))

    # -- paths

    def _names(self, path: Path) -> tuple[str, ...]:
        return self.address.at(path if isinstance(path, str) else "/".join(path)).path

    def _split(self, path: Path) -> tuple[tuple[str, ...], str]:
        names = self._names(path)
        if not names:
            raise E.Ebadarg("the root of a tree is not changed through the tree")
        return names[:-1], names[-1]

    def _with(self, names: Sequence[str], use: Callable[[int], Flow[T]]) -> Flow[T]:
        """A flow on what the names lead to; its fid is clunked, whatever happens."""
        fid, _ = yield from ops.walk(self.core, self.root_fid, names)
        try:
            return (yield from use(fid))
        finally:
            self.core.clunk_soon(fid)


class BlockingFile:
    """One open file, with a position.  `close` waits for the server's last word, which may be an error."""

    def __init__(self, client: Blocking, opened: tuple[ops.Opened, int]) -> None:
        self._client = client
        self._opened, self._size = opened
        self._ahead: ReadAhead | None = None
        self._is_open = True
        self._has_written = False
        self.offset = 0

    @property
    def qid(self) -> Qid:
        return self._opened.qid

    def __enter__(self) -> BlockingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(wait=error is None and self._has_written)

    def seek(self, offset: int) -> None:
        """The next read or write begins here."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self.offset = offset

    def read(self) -> bytes:
        """The next piece, as large as the server gives it; b"" at the end, where a later call may find more."""
        if self._ahead is None:
            self._ahead = ReadAhead(
                self._client.core,
                self._opened.fid,
                offset=self.offset,
                size=self._size,
                iounit=self._opened.iounit,
            )
        data = self._client.run(self._ahead.next())
        self.offset = self._ahead.offset
        return data

    def write(self, data: bytes | memoryview) -> int:
        """The bytes taken: all of them, unless the server refused in the middle."""
        self._has_written = True
        n = self._client.run(ops.write(self._client.core, self._opened.fid, self.offset, data, self._opened.iounit))
        self.offset += n
        return n

    def fsync(self, *, datasync: bool = False) -> None:
        """Return once what was written is durable, as far as the server says so."""
        self._client.run(ops.fsync(self._client.core, self._opened.fid, datasync))

    def stat(self) -> Stat:
        """The open file's Stat, also when its name is gone."""
        return self._client.run(meta.stat(self._client.core, self._opened.fid))

    def close(self, *, wait: bool = True) -> None:
        """Idempotent.  Without `wait`, the clunk is sent later and its answer not looked at."""
        if not self._is_open:
            return
        self._is_open = False
        if self._ahead is not None:
            self._ahead.close()
        if wait:
            self._client.run(ops.clunk(self._client.core, self._opened.fid))
        else:
            self._client.core.clunk_soon(self._opened.fid)
