"""Listeners: sockets that accept 9P connections, and the server around them.

Who may listen where is decided by the command line; here a Unix socket is made so that nobody else's file is ever
replaced or followed, and accepting never stops: a failed accept backs off, a full house refuses the newest.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import stat
import struct
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import trio

from ninep.edges.dial import Address, parse
from ninep.edges.policy import Peer, Policy
from ninep.edges.stream import serve_wire
from ninep.edges.wire import PipeWire, SocketWire, Wire
from ninep.file import Dir
from ninep.node import Node
from ninep.proto import errors as E
from ninep.proto.types import UNKNOWN_ID

log = logging.getLogger(__name__)

BACKLOG = 512
SWEEP_SECONDS = 5.0  # how long an idle connection may keep large buffers
RETRY_SECONDS = 0.1  # after an accept that failed for want of descriptors or memory
OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
LISTEN_FDS_START = 3  # sd_listen_fds(3)
# Sockets whose names we made, and take away again; a service manager's stay for the next start.
_named_by_us: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def is_loopback(address: Address) -> bool:
    """Whether only this machine can reach the address."""
    if address.transport != "tcp":
        return True
    if address.host in ("localhost", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def bind(address: Address, *, socket_mode: int = 0o600) -> list[socket.socket]:
    """Listening sockets for a tcp or unix address.  OSError or Ebadarg with the address in the text."""
    if address.transport == "unix":
        return [bind_unix(address.socket_path, socket_mode)]
    if address.transport != "tcp":
        raise E.Ebadarg(f"cannot listen on {address.text}")
    bound: list[socket.socket] = []
    try:
        for family, kind, proto, _, place in socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, proto)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(place)
            sock.listen(BACKLOG)
    except OSError:
        for sock in bound:
            sock.close()
        raise
    return bound


def bind_unix(path: str, socket_mode: int = 0o600) -> socket.socket:
    """A listening Unix socket at `path`, with that mode from its first moment.

    The directory is made 0700 if it is missing.  Refuses (Eperm) a directory that another ordinary user owns or that
    others may write to without the sticky bit: whoever can rename there can put his own socket in our place (SEC-141).
    A socket that nobody answers is replaced; anything else at that name is left alone: Eexist.
    """
    if path.startswith("@"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind("\0" + path[1:])
        sock.listen(BACKLOG)
        return sock
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        os.makedirs(parent, 0o700)
    _check_directory(parent)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o777 & ~socket_mode)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(old)
    _named_by_us.add(sock)
    sock.listen(BACKLOG)
    return sock


def _check_directory(parent: str) -> None:
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        st = os.fstat(fd)
    finally:
        os.close(fd)
    if st.st_uid not in (0, os.geteuid()):
        raise E.Eperm(f"socket directory {parent} belongs to uid {st.st_uid}")
    if st.st_mode & 0o022 and not st.st_mode & stat.S_ISVTX:
        raise E.Eperm(f"socket directory {parent} is writable by others: chmod go-w")


def _remove_stale(path: str) -> None:
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(st.st_mode):
        raise E.Eexist(f"{path} is not a socket")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as e:
        raise E.Eexist(f"{path}: {e.strerror}") from None
    else:
        raise E.Einuse(f"a server answers at {path}")
    finally:
        probe.close()


def inherited() -> list[socket.socket]:
    """The listening sockets that a service manager passed (sd_listen_fds(3)); empty if none.  Unsets the variables."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for fd in range(LISTEN_FDS_START, LISTEN_FDS_START + int(count)):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    return sockets


def peer_of(sock: socket.socket, name: object) -> Peer:
    """What the transport proves of the other end: SO_PEERCRED on a Unix socket, nothing on TCP."""
    if sock.family == socket.AF_UNIX:
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(f"unix pid {pid} uid {uid}", uid & UNKNOWN_ID, gid & UNKNOWN_ID, pid, "peercred")
    if isinstance(name, tuple) and len(name) >= 2:
        return Peer(f"tcp {name[0]} port {name[1]}")
    return Peer("stream")


def stdio_peer() -> Peer:
    """Whoever started us owns our stdin: ssh, inetd, a parent process.  He is this process's user."""
    return Peer("stdio", os.getuid(), os.getgid(), os.getppid(), "local")


class Server:
    """Listeners of one node serving one tree.  `connections` counts what is accepted, per peer and in all."""

    def __init__(self, node: Node, root: Dir, policy: Policy) -> None:
        self.node = node
        self.root = root
        self.policy = policy
        self._peers: Counter[int] = Counter()
        self._accepting = trio.CancelScope()

    async def serve(
        self,
        sockets: Sequence[socket.socket],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve until cancelled, or until `drain` was called and everything has ended.  Owns the sockets."""
        try:
            async with trio.open_nursery() as requests:
                async with trio.open_nursery() as connections:
                    requests.start_soon(self._sweep)
                    with self._accepting:
                        async with trio.open_nursery() as accepting:
                            for sock in sockets:
                                sock.setblocking(False)
                                accepting.start_soon(self._accept, sock, connections, requests)
                            task_status.started()
                    for sock in sockets:
                        _close_listener(sock)
                    await self._let_finish(connections)
                requests.cancel_scope.cancel()
        finally:
            for sock in sockets:
                _close_listener(sock)

    def drain(self) -> None:
        """Accept nothing more; running requests may finish for drain_seconds_max, idle connections are closed."""
        self._accepting.cancel()

    async def _let_finish(self, connections: trio.Nursery) -> None:
        live = self.node.live
        with trio.move_on_after(self.node.limits.drain_seconds_max):
            while live["requests"] - live["parked"] > 0:
                await trio.sleep(0.02)
        connections.cancel_scope.cancel()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self.node.sweep()

    async def _accept(self, listener: socket.socket, connections: trio.Nursery, requests: trio.Nursery) -> None:
        while True:
            try:
                sock, name = listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener)
                continue
            except OSError as e:
                if e.errno in OUT_OF:
                    log.warning("accept: %s", e)
                    await trio.sleep(RETRY_SECONDS)
                    continue
                if e.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                    raise
                continue  # the peer went away before it was accepted (accept(2))
            peer = peer_of(sock, name)
            try:
                self._admit(peer)
            except E.FileError as e:
                log.info("%s: refused: %s", peer.text, e)
                sock.close()
                await trio.lowlevel.checkpoint()  # a flood of them must not keep the loop
                continue
            self._peers[peer.uid] += 1  # from now on, not from when its task first runs: the next accept must see it
            connections.start_soon(self._accepted, SocketWire(sock, peer.text), peer, requests)

    def _admit(self, peer: Peer) -> None:
        limits = self.node.limits
        self.policy.admit(peer)
        if self._peers.total() >= limits.connections_max:
            raise E.Etoomany(f"{limits.connections_max} connections")
        if peer.uid not in (UNKNOWN_ID, 0, os.geteuid()) and self._peers[peer.uid] >= limits.connections_peer_max:
            raise E.Etoomany(f"{limits.connections_peer_max} connections of uid {peer.uid}")

    async def connection(self, wire: Wire, peer: Peer, requests: trio.Nursery) -> None:
        """As if the wire had been accepted, whatever the limits say."""
        self._peers[peer.uid] += 1
        await self._accepted(wire, peer, requests)

    async def _accepted(self, wire: Wire, peer: Peer, requests: trio.Nursery) -> None:
        """One connection to its end; what goes wrong in it ends nothing else."""
        try:
            await serve_wire(wire, self.node, self.root, requests, self.policy, peer)
        except Exception as e:
            self.node.bug(e)
        finally:
            self._peers[peer.uid] -= 1
            if not self._peers[peer.uid]:
                del self._peers[peer.uid]


def _close_listener(sock: socket.socket) -> None:
    """Close, and remove the name of a Unix socket if bind_unix made it."""
    if sock.fileno() < 0:
        return
    name = sock.getsockname() if sock in _named_by_us else ""
    sock.close()
    if isinstance(name, str) and name:
        with contextlib.suppress(OSError):
            Path(name).unlink()


async def serve_stdio(node: Node, root: Dir, policy: Policy, fds: tuple[int, int] = (0, 1)) -> None:
    """Serve the one connection on two inherited descriptors, until it ends."""
    async with trio.open_nursery() as requests:
        await serve_wire(PipeWire(*fds, "stdio"), node, root, requests, policy, stdio_peer())
        requests.cancel_scope.cancel()


async def run_server(
    server: Server, sockets: Sequence[socket.socket], *, ready: Callable[[], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT: the first drains, the second ends at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signals, server, nursery, signals)
            async with trio.open_nursery() as serving:
                await serving.start(server.serve, sockets)
                if ready is not None:
                    ready()
            nursery.cancel_scope.cancel()


async def _stop_on_signals(server: Server, nursery: trio.Nursery, signals: AsyncIterator[int]) -> None:
    await anext(signals)
    server.drain()
    await anext(signals)
    nursery.cancel_scope.cancel()


def serve(root: Dir, *addresses: str, policy: Policy | None = None, node: Node | None = None) -> None:
    """Serve a tree at these addresses until interrupted.  Blocks; runs its own trio loop (style.md's one-liner)."""
    node = node or Node()
    sockets = [sock for text in addresses for sock in bind(parse(text))]
    server = Server(node, root, policy or Policy())
    trio.run(run_server, server, sockets)
