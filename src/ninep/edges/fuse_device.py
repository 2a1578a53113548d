"""One FUSE mount: its device, its read loop, its life from INIT to unmount.

One task per mount reads requests into a pooled buffer and hands each to the Session; what a tree answers at once is
written back before the next is read, the rest runs in tasks of its own.  The kernel orders what needs order.  Any
number of mounts may live in one process; the process must never use a mount of its own.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

import msgspec
import trio

from ninep.answer import Answer, settle
from ninep.file import Call
from ninep.node import Node
from ninep.observe import register_op
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.session import Session

from . import fuse_mount
from .fuse_callers import Callers
from .fuse_notify import Notifier

log = logging.getLogger(__name__)

HEADER: Final = p.OUT_HEADER.size
IN_BYTES: Final = 4096  # room beside the data of a WRITE; the kernel asks for at least a page
REQUESTS_MAX: Final = 64  # answered in a row before other tasks have their turn
TURN_NS: Final = 1_000_000  # likewise
INIT_SECONDS_MAX: Final = 10.0
UNMOUNT_SECONDS_MAX: Final = 5.0
GONE: Final = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF, errno.EPERM)

_own: ContextVar[object] = ContextVar("the mount whose request is running", default=None)


class FuseOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How one mount behaves.

    `cache` off sets every timeout to 0.  `passthrough` lets the kernel read and write host files by itself, where the
    tree allows it and we are privileged.  `writeback` is only for trees with no synthetic file.  `locks` "local" keeps
    locks inside this machine's kernel, "tree" asks the tree.  `group` names the namespace group of all callers;
    `map_uid` and `map_gid` turn the numbers of the mount's user namespace into ours.  `symlinks` "contain" shows only
    links that cannot lead out of the mount, "deny" none, "all" is for trees that are trusted.
    """

    mount: fuse_mount.MountOptions = fuse_mount.MountOptions()
    aname: str = ""
    cache: bool = True
    passthrough: bool = True
    writeback: bool = False
    locks: str = "tree"
    symlinks: str = "all"
    group: str = ""
    map_uid: Callable[[int], int] | None = None
    map_gid: Callable[[int], int] | None = None


class Asked(msgspec.Struct, gc=False):
    """One request as a handler gets it: the node it names, who asks, and the fields of its row in proto.fuse."""

    unique: int
    nodeid: int
    call: Call
    args: tuple[Any, ...]  # as the row says


class Filled:
    """An answer that lies in a pooled buffer, after room for its header."""

    __slots__ = ("buffer", "count")

    def __init__(self, buffer: bytearray, count: int) -> None:
        self.buffer = buffer
        self.count = count


Body = bytes | Filled


class Row(msgspec.Struct, frozen=True, gc=False):
    """What the read loop needs to know of an operation."""

    op: p.Op
    index: int  # of its statistics
    handler: Callable[[Asked], Answer[Body]]
    seconds: float


class Buffers:
    """Large buffers, used again.  A slow request keeps its own, and gives it back when it ends."""

    def __init__(self, size: int, keep: int = 8) -> None:
        self.size = size
        self._keep = keep
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(self.size)

    def give(self, buffer: bytearray) -> None:
        if len(self._free) < self._keep:
            self._free.append(buffer)


class Device:
    """The sink of a Session: one write(2) per answer, which never blocks.  Raises nothing."""

    def __init__(self, fd: int, buffers: Buffers) -> None:
        self.fd = fd
        self._buffers = buffers

    def reply(self, key: int, message: Body) -> None:
        if type(message) is bytes:
            self.write(p.OUT_HEADER.pack(HEADER + len(message), 0, key) + message)
            return
        assert isinstance(message, Filled)
        buffer, end = message.buffer, HEADER + message.count
        p.OUT_HEADER.pack_into(buffer, 0, end, 0, key)
        with memoryview(buffer) as view:
            self.write(view[:end])
        self._buffers.give(buffer)

    def refuse(self, key: int, error: E.FileError) -> None:
        self.write(p.refusal(key, error.errno))

    def cancelled(self, key: int) -> None:
        self.write(p.refusal(key, errno.EINTR))

    def write(self, frame: bytes | memoryview) -> None:
        """ENOENT: the kernel gave the request up.  Anything but that and a mount that is gone is a bug of ours."""
        try:
            os.write(self.fd, frame)
        except OSError as e:
            if e.errno != errno.ENOENT and e.errno not in GONE:
                log.error("answer refused by the kernel: %s", e)


class FuseMount:
    """One mount being served."""

    def __init__(self, node: Node, mounted: fuse_mount.Mounted, options: FuseOptions) -> None:
        self.node = node
        self.options = options
        self.mountpoint = mounted.mountpoint
        self.fd = mounted.device_fd
        self.flags = 0  # what was agreed on in INIT
        limits = node.limits
        self.max_write = min(limits.fuse_write_bytes_max, 1 << 20)
        self.buffers = Buffers(self.max_write + IN_BYTES)
        self.callers = Callers(node.env.now_ns, options.group, options.map_uid, options.map_gid)
        self.notifier = Notifier(self.fd)
        self.device = Device(self.fd, self.buffers)
        self.buffer = self.buffers.take()
        self._mounted = mounted
        self._rows: dict[int, Row] = {}
        self._no_reply: dict[int, Callable[[Asked], None]] = {}
        self._scope = trio.CancelScope()
        self._closed = trio.Event()
        self._ending = False
        node.live["mounts"] += 1
        self.session: Session[Body]  # set by whoever made us, before `run`

    # -- what the operations need

    def set_operations(self, handlers: dict[str, Callable[[Asked], Answer[Body]]],
                       no_reply: dict[str, Callable[[Asked], None]]) -> None:  # fmt: skip
        bounded = self.node.limits.call_seconds_max
        for number, op in p.OPCODES.items():
            if op.name in no_reply:
                self._no_reply[number] = no_reply[op.name]
            elif op.name in handlers:
                seconds = math.inf if op.parks else bounded
                self._rows[number] = Row(op, register_op(f"fuse.{op.name}"), handlers[op.name], seconds)

    def keep_buffer(self) -> bytearray:
        """The buffer of the request in hand, which a slow answer still needs; the next is read into another."""
        buffer = self.buffer
        self.buffer = self.buffers.take()
        return buffer

    def is_own(self) -> bool:
        """Whether the code that asks runs for a request of this mount: the kernel knows what it asked for itself."""
        return _own.get() is self

    # -- the life of a mount

    async def close(self) -> None:
        """Unmount and stop; blocked callers get an error.  Idempotent.  Blocks for at most a few seconds."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._closed.wait()

    async def init(self) -> None:
        """Answer the kernel's first message.  Raises Eproto when we have no version in common."""
        with trio.fail_after(INIT_SECONDS_MAX):
            count = await self._read()
        view = memoryview(self.buffer)
        _, opcode, unique, *_ = p.IN_HEADER.unpack_from(view)
        at = p.IN_HEADER.size
        if count < at + p.INIT_IN.size or opcode != p.INIT:
            raise E.Eproto("no FUSE_INIT")
        major, minor, readahead, flags = p.INIT_IN.unpack_from(view, at)
        if flags & p.INIT_EXT and count >= at + p.INIT_IN.size + 4:
            flags |= p.INIT_FLAGS2.unpack_from(view, at + p.INIT_IN.size)[0] << 32
        if major != p.MAJOR or minor < p.MINOR_MIN:
            self.device.write(p.refusal(unique, errno.EPROTO))
            raise E.Eproto(f"FUSE {major}.{minor}, at least {p.MAJOR}.{p.MINOR_MIN} is needed")
        self.flags = agreed = flags & self._wanted()
        background = self.node.limits.fuse_background_max
        body = p.INIT_OUT.pack(
            p.MAJOR, min(minor, p.MINOR), max(readahead, self.max_write), agreed & 0xFFFFFFFF,
            background, background * 3 // 4, self.max_write, 1, self.max_write >> 12, 0, agreed >> 32,
            1 if agreed & p.PASSTHROUGH else 0,
        )  # fmt: skip
        self.device.write(p.reply(unique, body))

    def _wanted(self) -> int:
        options = self.options
        wanted = (
            p.ASYNC_READ | p.ATOMIC_O_TRUNC | p.BIG_WRITES | p.AUTO_INVAL_DATA | p.DO_READDIRPLUS | p.READDIRPLUS_AUTO
            | p.ASYNC_DIO | p.PARALLEL_DIROPS | p.ABORT_ERROR | p.MAX_PAGES | p.HANDLE_KILLPRIV_V2 | p.INIT_EXT
            | p.DIRECT_IO_ALLOW_MMAP
        )  # fmt: skip
        if options.locks == "tree":
            wanted |= p.POSIX_LOCKS | p.FLOCK_LOCKS
        if options.writeback:
            wanted |= p.WRITEBACK_CACHE
        elif options.passthrough:
            wanted |= p.PASSTHROUGH
        return wanted

    async def _read(self) -> int:
        """One message into the buffer.  Blocks until there is one; OSError when the mount is gone."""
        while True:
            try:
                return os.readv(self.fd, (self.buffer,))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.fd)
            except OSError as e:
                if e.errno not in (errno.EINTR, errno.ENOENT):
                    raise

    async def serve(self) -> None:
        """Answer requests until the mount is gone.  May be cancelled between two of them."""
        _own.set(self)
        now_ns = self.node.env.now_ns
        turn_ends = now_ns() + TURN_NS
        in_turn = 0
        fd = self.fd
        while True:
            try:
                try:
                    count = os.readv(fd, (self.buffer,))
                except BlockingIOError:
                    # Whoever got our answer often has the next question, once he has run: that is 20 us less than to
                    # wait in trio.
                    os.sched_yield()
                    count = os.readv(fd, (self.buffer,))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(fd)
                in_turn, turn_ends = 0, now_ns() + TURN_NS
                continue
            except OSError as e:
                if e.errno in (errno.EINTR, errno.ENOENT):
                    continue
                if e.errno in GONE:
                    return
                raise
            self._dispatch(count)
            in_turn += 1
            if in_turn >= REQUESTS_MAX or (not in_turn & 7 and now_ns() > turn_ends):
                await trio.lowlevel.checkpoint()
                in_turn, turn_ends = 0, now_ns() + TURN_NS

    def _dispatch(self, count: int) -> None:
        view = memoryview(self.buffer)
        _, opcode, unique, nodeid, uid, gid, pid, extensions = p.IN_HEADER.unpack_from(view)
        end = count - extensions * 8
        row = self._rows.get(opcode)
        try:
            if row is None:
                self._unanswered(opcode, unique, nodeid, view, end)
                return
            args = row.op.parse(view, end)
        except E.ProtocolError as e:
            self.device.refuse(unique, E.Ebadmsg(str(e)))
            return
        if self._ending:
            self.device.refuse(unique, E.Eshutdown())
            return
        call = self.callers.call(uid, gid, pid)
        self.session.who = call.principal
        asked = Asked(unique, nodeid, call, args)
        self.session.serve(unique, row.index, row.handler, asked, row.seconds)

    def _unanswered(self, opcode: int, unique: int, nodeid: int, view: memoryview, end: int) -> None:
        handler = self._no_reply.get(opcode)
        if handler is not None:
            handler(Asked(unique, nodeid, Call(), p.OPCODES[opcode].parse(view, end)))
        else:
            self.device.write(p.refusal(unique, errno.ENOSYS))

    async def run(self, task_status: trio.TaskStatus[FuseMount], serve_root: Callable[[], Answer[None]]) -> None:
        """The whole life: INIT, requests, the end.  `serve_root` prepares the operations once INIT is agreed."""
        try:
            with self._scope:
                await self.init()
                await settle(serve_root())
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.notifier.run)
                    task_status.started(self)
                    await self.serve()
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._end()

    async def _end(self) -> None:
        # Requests are answered for as long as the unmount may cause some; then each gets an error, and at last the
        # device is closed, which ends the connection for whoever still has a file open.
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.serve)
                with trio.move_on_after(UNMOUNT_SECONDS_MAX):
                    await trio.to_thread.run_sync(self._unmount, abandon_on_cancel=True)
                self._ending = True
                running = self.session.requests.keys()
                await self.session.end()
                for unique in running:
                    self.device.refuse(unique, E.Eshutdown())
                nursery.cancel_scope.cancel()
        finally:
            fd, self.fd, self.device.fd = self.fd, -1, -1
            os.close(fd)
            self.node.live["mounts"] -= 1
            self._closed.set()

    def _unmount(self) -> None:
        try:
            self._mounted.unmount()
        except (OSError, E.FileError) as e:
            log.warning("cannot unmount %s: %s", self.mountpoint, e)


__all__ = ["Asked", "Body", "Buffers", "Device", "Filled", "FuseMount", "FuseOptions"]
