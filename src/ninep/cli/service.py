"""One running server: listeners, connections and mounts of one tree, from ready to drained.

SIGTERM and SIGINT drain; a second one ends at once.  SIGHUP calls `reload`.  The service manager hears of both.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from ninep.edges.listen import Server, peer_of, serve_stdio
from ninep.edges.wire import SocketWire
from ninep.file import Dir
from ninep.node import Node

from .listeners import Opened, Rules
from .notify import notify
from .output import Output, complain, json_line

log = logging.getLogger(__name__)

Extra = Callable[..., Awaitable[None]]  # takes task_status, as trio's start wants it


class Service:
    """Runs until a signal, or until everything that was asked for has ended by itself.

    `extra` is started before the server says that it is ready: a mount, for one.
    """

    def __init__(
        self,
        node: Node,
        root: Dir,
        opened: Opened,
        held: Rules,
        output: Output,
        *,
        reload: Callable[[], object] | None = None,
        extra: Extra | None = None,
    ) -> None:
        self.node = node
        self._root = root
        self._opened = opened
        self._output = output
        self._reload = reload
        self._extra = extra
        self._held = held
        self._servers = [
            (Server(node, root, policy), sockets)
            for policy, sockets in ((held.unix_policy, opened.unix), (held.tcp_policy, opened.tcp))
            if sockets
        ]
        self._direct = trio.CancelScope()  # connections that no listener accepted
        self._extra_scope = trio.CancelScope()

    async def run(self) -> None:
        """Serve.  Returns when drained; cancelled by the second signal."""
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with trio.open_signal_receiver(*wanted) as signals:
            async with trio.open_nursery() as around:
                around.start_soon(self._on_signals, signals, around.cancel_scope)
                async with trio.open_nursery() as requests:
                    async with trio.open_nursery() as serving:
                        for server, sockets in self._servers:
                            await serving.start(server.serve, sockets)
                        serving.start_soon(self._serve_direct, requests)
                        if self._extra is not None:
                            await serving.start(self._run_extra, self._extra)
                        self._ready()
                    requests.cancel_scope.cancel()
                around.cancel_scope.cancel()
        notify("STOPPING=1")

    async def _run_extra(self, extra: Extra, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED) -> None:
        with self._extra_scope:
            await extra(task_status=task_status)

    async def _serve_direct(self, requests: trio.Nursery) -> None:
        with self._direct:
            async with trio.open_nursery() as connections:
                for sock in self._opened.connected:
                    connections.start_soon(self._connection, sock, requests)
                for sock, pid in self._opened.children:
                    connections.start_soon(self._child, sock, pid, requests)
                if fds := self._opened.stdio:
                    connections.start_soon(serve_stdio, self.node, self._root, self._held.unix_policy, fds)

    async def _connection(self, sock: socket.socket, requests: trio.Nursery) -> None:
        is_unix = sock.family == socket.AF_UNIX
        policy = self._held.unix_policy if is_unix else self._held.tcp_policy
        server = Server(self.node, self._root, policy)
        peer = peer_of(sock, None if is_unix else sock.getpeername())
        await server.connection(SocketWire(sock, peer.text), peer, requests)

    async def _child(self, sock: socket.socket, pid: int, requests: trio.Nursery) -> None:
        try:
            await self._connection(sock, requests)
        finally:
            with trio.CancelScope(shield=True):
                await _reap(pid)

    def _ready(self) -> None:
        output = self._output
        for text in self._opened.texts:
            if output.is_json:
                line = json_line({"listening": text, "pid": os.getpid()})
                os.write(2 if self._opened.stdio else 1, line)
            elif not output.quiet:
                complain(f"ninep: listening on {text}")
        notify(f"READY=1\nSTATUS=serving {' '.join(self._opened.texts)[:200]}")

    async def _on_signals(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        is_draining = False
        async for number in signals:
            if number == signal.SIGHUP:
                self._hang_up()
            elif is_draining:
                log.warning("a second signal: ending at once")
                scope.cancel()
            else:
                is_draining = True
                notify("STOPPING=1")
                log.info("draining: running requests may finish for %g s", self.node.limits.drain_seconds_max)
                for server, _ in self._servers:
                    server.drain()
                self._direct.cancel()
                self._extra_scope.cancel()

    def _hang_up(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        if self._reload is not None:
            self._reload()
        notify("READY=1")


async def _reap(pid: int) -> None:
    """A started program may end by itself when its connection does; then it is ended."""
    for sig in (signal.SIGTERM, signal.SIGKILL, 0):
        for _ in range(40):
            if _is_reaped(pid):
                return
            await trio.sleep(0.05)
        if sig:
            os.kill(pid, sig)


def _is_reaped(pid: int) -> bool:
    """Whether our child has ended; its status is then taken, so that no zombie stays."""
    try:
        return bool(os.waitpid(pid, os.WNOHANG)[0])
    except ChildProcessError:
        return True
