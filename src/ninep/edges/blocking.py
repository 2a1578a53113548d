"""A 9P client that blocks: for command lines and scripts.  The same flows as the trio client, without trio.

    with Blocking("9p://host/path") as remote:
        for entry in remote.ls():
            print(entry.name)

Every wait has a deadline from Limits, except a read, which may be of a stream; Ctrl-C ends that too, and the server is
told (Tflush, then the clunks).  Not for use by two threads at once.
"""

from __future__ import annotations

import functools
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final, Generic, TypeVar

from ninep.edges import client_checks as checks
from ninep.edges import client_meta as meta
from ninep.edges import client_naming as naming
from ninep.edges import client_ops as ops
from ninep.edges.client_core import Core, Flow, Pending, State, negotiate, own_name
from ninep.edges.client_stream import DirReader, ReadAhead
from ninep.edges.dial import Address, Link, connect_link, parse
from ninep.limits import DEFAULT, Limits
from ninep.proto import errors as E
from ninep.proto.codec import Message
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

LEAVE_SECONDS: Final = 0.5  # on the way out: for an Rflush, and for the last clunks to be taken
TOGETHER_MAX: Final = 64  # flows that `run_many` has under way at once

Path = str | Sequence[str]


class Blocking:
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
        self._link = link or connect_link(self.address, limits)
        name = uname or self.address.uname or own_name()
        self.core = Core(time.monotonic, limits, uname=name, msize_bytes=self.address.msize_bytes)
        try:
            self._line = _Line(self._link)
            self._is_torn = False  # bytes may be on their way that the core does not know of
            self.run(negotiate(self.core, self.address.dialect, wants_text=wants_text))
            n_uname = os.getuid() if name == own_name() else NONUNAME
            self.root_fid, self.root_qid = self.run(ops.attach(self.core, self.address.aname, n_uname))
        except BaseException:
            self._link.close()
            raise

    def __enter__(self) -> Blocking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send what is still to be said, at most LEAVE_SECONDS, and hang up.  Idempotent."""
        if self.core.state is State.READY:
            try:
                until = time.monotonic() + LEAVE_SECONDS
                while self.core.has_output and self._turn(until):
                    pass
            except E.FileError:
                pass
        self.core.close("closed by the client")
        self._link.close()

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
        directory, name = self._split(path)
        return self.run(self._with(directory, lambda fid: naming.mkdir(self.core, fid, name, perm)))

    def symlink(self, target: str, path: Path) -> Qid:
        directory, name = self._split(path)
        return self.run(self._with(directory, lambda fid: naming.symlink(self.core, fid, name, target)))

    def mknod(self, path: Path, st_mode: int, rdev: int = 0) -> Qid:
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
        return self.run(self._with(self._names(path), lambda fid: meta.readlink(self.core, fid)))

    def wstat(self, path: Path, change: Change) -> None:
        """chmod, chown, truncate, utimes: all of the change or none of it."""
        self.run(self._with(self._names(path), lambda fid: meta.wstat(self.core, fid, change, time.time_ns())))

    def statfs(self, path: Path = "") -> StatFs:
        return self.run(self._with(self._names(path), lambda fid: meta.statfs(self.core, fid)))

    def getxattr(self, path: Path, name: str) -> bytes:
        return self.run(self._with(self._names(path), lambda fid: meta.getxattr(self.core, fid, name)))

    def listxattr(self, path: Path = "") -> list[str]:
        return checks.xattr_names(
            self.run(self._with(self._names(path), lambda fid: meta.getxattr(self.core, fid, "")))
        )

    def setxattr(self, path: Path, name: str, value: bytes, flags: int = 0) -> None:
        self.run(self._with(self._names(path), lambda fid: meta.setxattr(self.core, fid, name, value, flags)))

    def removexattr(self, path: Path, name: str) -> None:
        self.run(self._with(self._names(path), lambda fid: meta.removexattr(self.core, fid, name)))

    # -- flows

    def run(self, flow: Flow[T]) -> T:
        """The result of a flow.  Blocks as long as the server does, within the deadlines."""
        try:
            pending = next(flow)
            while True:
                try:
                    reply = self._wait(pending)
                except BaseException as e:
                    pending = flow.throw(e)
                else:
                    pending = flow.send(reply)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic
        except E.ProtocolError as e:
            self.core.close(str(e), E.Eproto)
            raise E.Eproto(str(e))

    def run_many(self, flows: Iterable[Flow[T]]) -> Iterator[T | E.FileError]:
        """The results in order, refusals among them, with up to TOGETHER_MAX flows under way at once."""
        waiting: list[_Running[T]] = []
        try:
            yield from self._run_many(iter(flows), waiting)
        finally:
            for running in waiting:
                running.stop()

    def _run_many(self, source: Iterator[Flow[T]], waiting: list[_Running[T]]) -> Iterator[T | E.FileError]:
        is_more = True
        while True:
            while is_more and len(waiting) < TOGETHER_MAX:
                flow = next(source, None)
                if flow is None:
                    is_more = False
                else:
                    waiting.append(_Running(flow))
            if not waiting:
                return
            first = waiting[0]
            while not first.is_done:
                assert first.pending is not None
                try:
                    self._wait(first.pending)
                except E.FileError as e:
                    first.go_on(e)
                for running in waiting:
                    running.go_on()
            waiting.pop(0)
            yield first.outcome()

    def _wait(self, pending: Pending) -> Message:
        try:
            while not pending.is_done:
                if not self._turn(pending.deadline):
                    self.core.abandon(pending)
                    raise E.Etimedout(type(pending.request).__name__)
        except E.FileError:
            raise
        except BaseException:
            self._flush(pending)
            raise
        return pending.result()

    def _flush(self, pending: Pending) -> None:
        """Interrupted: tell the server, and give it LEAVE_SECONDS to agree.

        In the middle of a send or receive nobody knows how far it came: then to hang up is the only honest flush.
        """
        if self._is_torn:
            self.core.close("interrupted")
        flush = self.core.abandon(pending)
        until = time.monotonic() + LEAVE_SECONDS
        while flush is not None and not flush.is_done and self._turn(until):
            pass

    def _turn(self, until: float | None) -> bool:
        """Send what there is, take what has come; False once `until` has passed."""
        core, line = self.core, self._line
        try:
            while core.has_output and (buffers := core.outgoing()):
                self._is_torn = True
                n = line.send(buffers)
                core.sent(n or 0)
                self._is_torn = False
                if n is None:
                    break
            if not line.wait(bool(core.has_output), until):
                return False
            self._is_torn = True
            n = line.recv_into(core.space())
            if n == 0:
                core.close("the server hung up")
            elif n is not None:
                core.received(n)
            self._is_torn = False
        except OSError as e:
            core.close(e.strerror or str(e))
        except E.ProtocolError as e:
            core.close(str(e), E.Eproto)
        return True

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
        self._client.run(ops.fsync(self._client.core, self._opened.fid, datasync))

    def stat(self) -> Stat:
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


class _Running(Generic[T]):
    """A flow of `run_many`, and how far it has come."""

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self._error: E.FileError | None = None
        self._value: list[T] = []
        self.pending: Pending | None = None
        self._step(functools.partial(next, flow))

    @property
    def is_done(self) -> bool:
        return self.pending is None

    def go_on(self, error: E.FileError | None = None) -> None:
        """Hand over every answer that has come; or `error`, in place of the one that has not."""
        while self.pending is not None and (self.pending.is_done or error is not None):
            failure = error or self.pending.error
            error = None
            reply = self.pending.reply
            if failure is not None:
                self._step(functools.partial(self._flow.throw, failure))
            else:
                assert reply is not None
                self._step(functools.partial(self._flow.send, reply))

    def _step(self, step: Callable[[], Pending]) -> None:
        try:
            self.pending = step()
        except StopIteration as stop:
            self.pending = None
            self._value.append(stop.value)
        except E.FileError as e:
            self.pending = None
            self._error = e

    def outcome(self) -> T | E.FileError:
        return self._error if self._error is not None else self._value[0]

    def stop(self) -> None:
        """Nobody wants it any more."""
        if self.pending is not None:
            self._flow.close()


class _Line:
    """A Link without blocking calls, and one poll for both directions: a peer that takes nothing must not stop us."""

    def __init__(self, link: Link) -> None:
        sock = link.sock
        self._poll = select.poll()
        if sock is not None:
            sock.setblocking(False)
            self._read = self._write = sock.fileno()
            self._recv: Callable[[memoryview], int] = sock.recv_into
            self._send: Callable[[Sequence[bytes | memoryview]], int] = sock.sendmsg
        else:
            self._read, self._write = link.fds
            for fd in link.fds:
                os.set_blocking(fd, False)
            self._recv = lambda buffer: os.readv(self._read, [buffer])
            self._send = lambda buffers: os.writev(self._write, buffers)
        self._is_watching_write = False
        self._poll.register(self._read, select.POLLIN)

    def recv_into(self, buffer: memoryview) -> int | None:
        """Bytes received, 0 at the end, None if there are none now."""
        try:
            return self._recv(buffer)
        except BlockingIOError:
            return None

    def send(self, buffers: Sequence[bytes | memoryview]) -> int | None:
        try:
            return self._send(buffers)
        except BlockingIOError:
            return None

    def wait(self, for_write: bool, until: float | None) -> bool:
        """Wait until bytes have come or can go; False once `until` has passed, on time.monotonic's clock."""
        if for_write != self._is_watching_write:
            self._is_watching_write = for_write
            if self._write != self._read:
                if for_write:
                    self._poll.register(self._write, select.POLLOUT)
                else:
                    self._poll.unregister(self._write)
            else:
                self._poll.modify(self._read, select.POLLIN | (select.POLLOUT if for_write else 0))
        if until is None:
            return bool(self._poll.poll())
        return bool(self._poll.poll(max(0.0, (until - time.monotonic()) * 1000)))
