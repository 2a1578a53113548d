"""A client that says exactly what a test tells it to: raw frames over a wire in memory, against our own server.

`serving(...)` starts one connection; `RawClient` sends messages or bytes and reads replies by tag or in order.  It
checks what conformance 14 asks of every reply: no frame is larger than msize.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from ninep.edges.policy import Peer, Policy
from ninep.edges.stream import serve_wire
from ninep.edges.wire import MemoryWire
from ninep.file import Dir
from ninep.limits import Limits
from ninep.node import Node
from ninep.proto import dotl as l
from ninep.proto import messages as m
from ninep.proto.codec import Dialect, Message
from ninep.proto.types import NOFID, NOTAG
from ninep.proto.version import BY_NAME, P2000

M = TypeVar("M", bound=Message)
ERRORS = (m.Rerror, l.Rlerror)


class Refused(Exception):
    """The server's error reply."""

    def __init__(self, message: Any) -> None:
        self.errno: int = getattr(message, "ecode", 0) or getattr(message, "errno", 0)
        self.ename: str = getattr(message, "ename", "")
        super().__init__(f"errno {self.errno} {self.ename}")


class RawClient:
    """One end of a wire.  Tags and fids are the test's own; `rpc` picks a tag that nothing else uses."""

    def __init__(self, wire: MemoryWire, node: Node) -> None:
        self.wire = wire
        self.node = node
        self.dialect: Dialect = P2000
        self.msize = 0
        self.buffer = bytearray()
        self.got: deque[tuple[int, Message]] = deque()
        self._scratch = memoryview(bytearray(1 << 16))
        self._tag = 40_000

    # -- sending

    def send(self, tag: int, message: Message) -> None:
        self.send_bytes(self.dialect.encode(tag, message))

    def send_all(self, *pairs: tuple[int, Message]) -> None:
        """Several requests in one segment."""
        self.send_bytes(b"".join(self.dialect.encode(tag, message) for tag, message in pairs))

    def send_bytes(self, data: bytes) -> None:
        sent = self.wire.send([data])
        assert sent == len(data), "raise wire.capacity in this test"

    # -- receiving

    async def recv(self, seconds: float = 5.0) -> tuple[int, Message]:
        """The next reply.  EOFError when the server has hung up; trio.TooSlowError after `seconds`."""
        with trio.fail_after(seconds):
            while not self.got:
                await self.wire.wait_readable()
                n = self.wire.recv_into(self._scratch)
                if n == 0:
                    raise EOFError
                if n:
                    self.buffer += self._scratch[:n]
                    self._split()
        return self.got.popleft()

    def _split(self) -> None:
        while len(self.buffer) >= 4:
            size = int.from_bytes(self.buffer[:4], "little")
            assert 7 <= size <= max(self.msize, 8192), f"reply of {size} bytes, msize {self.msize}"
            if size > len(self.buffer):
                return
            frame = memoryview(bytes(self.buffer[:size]))
            del self.buffer[:size]
            self.got.append(self.dialect.decode_reply(frame))

    async def recv_tag(self, tag: int) -> Message:
        """The reply with this tag; others are kept in order."""
        kept: list[tuple[int, Message]] = []
        while True:
            got, message = await self.recv()
            if got == tag:
                self.got.extendleft(reversed(kept))
                return message
            kept.append((got, message))

    async def quiet(self) -> None:
        """Nothing is in flight: every task of server and client is parked, and no reply is here."""
        await trio.testing.wait_all_tasks_blocked(0.005)
        n = self.wire.recv_into(self._scratch)
        if n:
            self.buffer += self._scratch[:n]
            self._split()
        assert not self.got, f"unexpected: {list(self.got)}"

    async def hung_up(self) -> bool:
        """Whether the server closes; replies on the way are dropped."""
        try:
            while True:
                await self.recv()
        except EOFError:
            return True
        except trio.TooSlowError:
            return False

    # -- whole exchanges

    async def rpc(self, message: Message, tag: int | None = None) -> Any:
        """The reply's message; raises Refused for an error reply."""
        if tag is None:
            self._tag = tag = self._tag + 1 if self._tag < 60_000 else 40_000
        self.send(tag, message)
        reply = await self.recv_tag(tag)
        if isinstance(reply, ERRORS):
            raise Refused(reply)
        return reply

    async def version(self, name: str = "9P2000.L", msize: int = 65536, tag: int = NOTAG) -> m.Rversion:
        """Negotiate; afterwards this client speaks what was agreed."""
        self.send_bytes(P2000.encode(tag, m.Tversion(msize, name)))
        self.msize = max(self.msize, msize)
        reply = await self.recv_tag(tag)
        assert isinstance(reply, m.Rversion), reply
        self.msize = reply.msize
        self.dialect = BY_NAME.get(reply.version, P2000)
        return reply

    async def attach(self, fid: int = 0, uname: str = "root", n_uname: int = 0, aname: str = "") -> m.Rattach:
        reply: m.Rattach = await self.rpc(m.Tattach(fid, NOFID, uname, aname, n_uname))
        return reply

    async def walk(self, fid: int, newfid: int, *names: str) -> tuple[Any, ...]:
        reply: m.Rwalk = await self.rpc(m.Twalk(fid, newfid, names))
        return reply.wqid

    async def open(self, fid: int, mode: int = 0) -> Any:
        """mode: 0 read, 1 write, 2 both, as both families number them; further bits are the dialect's."""
        return await self.rpc(l.Tlopen(fid, mode) if self.dialect.name == "9P2000.L" else m.Topen(fid, mode))

    async def create(self, fid: int, name: str, perm: int = 0o644, mode: int = 2) -> Any:
        if self.dialect.name == "9P2000.L":
            return await self.rpc(l.Tlcreate(fid, name, mode | l.L_CREATE | l.L_EXCL, perm, 0))
        return await self.rpc(m.Tcreate(fid, name, perm, mode))

    async def file(self, newfid: int, name: str, content: bytes = b"", *, root: int = 0, perm: int = 0o644) -> None:
        """Make a file below `root` and leave `newfid` open on it for reading and writing."""
        await self.walk(root, newfid)
        await self.create(newfid, name, perm)
        if content:
            assert (await self.write(newfid, content)) == len(content)

    async def read(self, fid: int, offset: int = 0, count: int = 8192) -> bytes:
        return bytes((await self.rpc(m.Tread(fid, offset, count))).data)

    async def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        count: int = (await self.rpc(m.Twrite(fid, offset, data))).count
        return count

    async def clunk(self, fid: int) -> None:
        await self.rpc(m.Tclunk(fid))

    def close(self) -> None:
        self.wire.close()


class Serving:
    """A node and its connections.  `connect` makes further ones to the same node and tree."""

    def __init__(self, node: Node, root: Dir, nursery: trio.Nursery, policy: Policy) -> None:
        self.node = node
        self.root = root
        self.nursery = nursery
        self.policy = policy
        self.clients: list[RawClient] = []

    def connect(self, peer: Peer | None = None, policy: Policy | None = None) -> RawClient:
        """A client on a new connection; nothing is said yet."""
        ours, theirs = MemoryWire.pair()
        ours.capacity = theirs.capacity = 8 << 20
        self.nursery.start_soon(
            serve_wire, theirs, self.node, self.root, self.nursery, policy or self.policy, peer or Peer("test")
        )
        client = RawClient(ours, self.node)
        self.clients.append(client)
        return client

    async def client(self, dialect: str = "9P2000.L", msize: int = 65536, attach: bool = True) -> RawClient:
        """A client that has negotiated and attached fid 0 as root."""
        client = self.connect()
        await client.version(dialect, msize)
        if attach:
            await client.attach()
        return client


@asynccontextmanager
async def serving(
    root: Dir, *, limits: Limits | None = None, policy: Policy | None = None, node: Node | None = None
) -> AsyncIterator[Serving]:
    """A server over memory wires.  At the end every gauge of the node must be back at zero."""
    node = node or Node(limits or Limits())
    async with trio.open_nursery() as nursery:
        server = Serving(node, root, nursery, policy or Policy(trust_uname=True))
        try:
            yield server
        finally:
            for client in server.clients:
                client.close()
            with trio.CancelScope(shield=True):
                with trio.move_on_after(5):
                    while node.live["sessions"] or node.live["requests"] or node.live["parked"]:
                        await trio.testing.wait_all_tasks_blocked(0.002)
            nursery.cancel_scope.cancel()
    left = {name: n for name, n in node.live.items() if n and name != "fds"}
    assert not left, f"left behind: {left}"


async def replies(client: RawClient, count: int) -> Sequence[tuple[int, Message]]:
    return [await client.recv() for _ in range(count)]
