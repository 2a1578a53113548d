"""Wires: what carries bytes under a connection.  Three kinds: a socket, a pair of pipes, and memory with faults.

A wire never blocks and knows no message.  `recv_into` and `send` answer None when the kernel would block; the
connection then waits for readiness, which is the only place where it can be cancelled.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import trio

IOV_MAX = 1000  # sysconf(_SC_IOV_MAX) is 1024 on Linux
Buffer = bytes | bytearray | memoryview


class Wire(Protocol):
    """One byte stream.  `peer` is what /dev/stats shows of the other end."""

    peer: str

    def recv_into(self, buffer: memoryview) -> int | None:
        """Bytes received, 0 at the end, None when there are none yet.  Raises OSError for a broken wire."""
        ...

    def send(self, buffers: Sequence[Buffer]) -> int | None:
        """Bytes taken from the front of `buffers`, None when none can be.  Raises OSError for a broken wire."""
        ...

    async def wait_readable(self) -> None: ...

    async def wait_writable(self) -> None: ...

    def close(self) -> None:
        """Idempotent.  A task that waits here gets trio.ClosedResourceError."""
        ...


class SocketWire:
    """A connected stream socket, made non-blocking; owned, and closed with the wire."""

    def __init__(self, sock: socket.socket, peer: str = "") -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket = sock
        self.peer = peer
        self._recv_into = sock.recv_into
        self._sendmsg = sock.sendmsg

    def recv_into(self, buffer: memoryview) -> int | None:
        try:
            return self._recv_into(buffer)
        except BlockingIOError:
            return None

    def send(self, buffers: Sequence[Buffer]) -> int | None:
        try:
            return self._sendmsg(buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX])
        except BlockingIOError:
            return None

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self.socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    def close(self) -> None:
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()


class PipeWire:
    """Two descriptors, one to read and one to write: stdio, or a child's pipes.  Owned, and closed with the wire."""

    def __init__(self, read_fd: int, write_fd: int, peer: str = "") -> None:
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._fds: tuple[int, ...] = (read_fd, write_fd)
        self._read, self._write = read_fd, write_fd
        self.peer = peer

    def recv_into(self, buffer: memoryview) -> int | None:
        try:
            return os.readv(self._read, [buffer])
        except BlockingIOError:
            return None

    def send(self, buffers: Sequence[Buffer]) -> int | None:
        try:
            return os.writev(self._write, buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX])
        except BlockingIOError:
            return None

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._read)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._write)

    def close(self) -> None:
        fds, self._fds = self._fds, ()
        for fd in set(fds):
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


class MemoryWire:
    """One end of a pair in memory, for tests and simulation.

    `capacity` bounds what the other end has not read; `chunk` cuts every transfer to so many bytes; `broken` makes each
    call raise it.  All three may be changed while the wire is in use.
    """

    def __init__(self, peer: str = "memory") -> None:
        self.peer = peer
        self.capacity = 1 << 20
        self.chunk = 1 << 30
        self.broken: OSError | None = None
        self._in: deque[bytes] = deque()
        self._held = 0
        self._is_closed = False
        self._other: MemoryWire = self
        self._changed = trio.lowlevel.ParkingLot()

    @classmethod
    def pair(cls) -> tuple[MemoryWire, MemoryWire]:
        a, b = cls(), cls()
        a._other, b._other = b, a
        return a, b

    def recv_into(self, buffer: memoryview) -> int | None:
        if self.broken is not None:
            raise self.broken
        if self._is_closed:
            raise OSError("closed")
        if not self._in:
            return 0 if self._other._is_closed else None
        n = min(len(buffer), self.chunk, len(self._in[0]))
        first = self._in.popleft()
        buffer[:n] = first[:n]
        if n < len(first):
            self._in.appendleft(first[n:])
        self._held -= n
        self._other._changed.unpark_all()
        return n

    def send(self, buffers: Sequence[Buffer]) -> int | None:
        if self.broken is not None:
            raise self.broken
        other = self._other
        if self._is_closed or other._is_closed:
            raise BrokenPipeError("the other end is closed")
        room = min(other.capacity - other._held, self.chunk)
        if room <= 0:
            return None
        data = b"".join(bytes(b) for b in buffers)[:room]
        if data:
            other._in.append(data)
            other._held += len(data)
            other._changed.unpark_all()
        return len(data)

    async def wait_readable(self) -> None:
        while not (self._in or self._other._is_closed or self.broken):
            self._check()
            await self._changed.park()
        self._check()

    async def wait_writable(self) -> None:
        while self._other.capacity <= self._other._held and not (self._other._is_closed or self.broken):
            self._check()
            await self._changed.park()
        self._check()

    def _check(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError

    def close(self) -> None:
        self._is_closed = True
        self._changed.unpark_all()
        self._other._changed.unpark_all()
