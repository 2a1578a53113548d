"""One connection of any 9P dialect: bytes in, Session calls, bytes out.

The Connection is sans-IO and is its Session's sink; `serve_wire` drives it over a Wire in one task (architecture A9):
receive into the framer's buffer, dispatch every frame that is there, send all replies with one call.  Requests that
wait run in the nursery, and wake a second, small task that sends what they queue.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Coroutine
from types import CoroutineType
from typing import Any

import trio

from ninep.answer import Answer, settle
from ninep.edges.dialects import Adapter, Handler, Lent
from ninep.edges.dotl import DotL
from ninep.edges.p2000 import P2000, DotU
from ninep.edges.policy import Peer, Policy
from ninep.edges.wire import Buffer, Wire
from ninep.file import Dir
from ninep.node import Node
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.codec import BadMessage, Message, UnknownMessage, not_a_request
from ninep.proto.framing import Framer
from ninep.proto.version import error_reply, negotiate
from ninep.requests import Gate
from ninep.session import Session

log = logging.getLogger(__name__)

ADAPTERS: dict[str, type[Adapter]] = {a.dialect.name: a for a in (P2000, DotU, DotL)}
TVERSION = m.Tversion.number
TFLUSH = m.Tflush.number
FRAMES_PER_TURN = 64  # then others get the processor
POOLED_MAX = 4  # reply buffers kept between turns
SMALL_BYTES = 4096  # header and payload in one piece up to here: one buffer fewer for the kernel to look at


class Connection:
    """One stream's protocol state.  `out` is what has to be sent; `wake` is called when a task queued something."""

    def __init__(self, node: Node, root: Dir, nursery: trio.Nursery, policy: Policy, peer: Peer) -> None:
        self.node = node
        self.root = root
        self.policy = policy
        self.peer = peer
        self.framer = Framer(node.limits.first_message_bytes_max)
        self.out: list[Buffer] = []
        self.out_bytes = 0
        self.is_dispatching = False  # then replies wait for the end of the turn, and leave together
        self.is_active = False  # since the last sweep
        self.wake: Gate | None = None
        self._room: Gate | None = None
        self.session: Session[Message] = Session(node, root, nursery, self, edge="9p", peer=peer.text)
        self._adapter: Adapter | None = None
        self._encode = ADAPTERS["9P2000"].dialect.encode
        self._msize = node.limits.msize_bytes_max
        self._pending: dict[int, Gate] = {}  # fids whose maker or changer has not ended
        self._pool: list[bytearray] = []
        self._lent: list[bytearray] = []
        self._bad = 0

    # -- the sink

    def reply(self, key: int, message: Message) -> None:
        """Queue a reply.  Never blocks, never raises for a message of ours."""
        kind = type(message)
        if kind is m.Rread:
            data: Any = message.data  # type: ignore[attr-defined]  # an Rread
            if len(data) <= SMALL_BYTES:
                self._queue(m.read_header(key, len(data)) + data)
            else:
                self._queue(m.read_header(key, len(data)))
                self._queue(data)
        elif kind is Lent:
            buffer, count = message.buffer, message.count  # type: ignore[attr-defined]  # a Lent
            buffer[: m.READ_HEADER_BYTES] = m.read_header(key, count)
            self._lent.append(buffer)
            self._queue(memoryview(buffer)[: m.READ_HEADER_BYTES + count])
        else:
            try:
                frame = self._encode(key, message)
            except E.FileError as e:  # a name or record that this dialect cannot carry
                self.refuse(key, e)
                return
            except Exception as e:  # what no field can hold came from a tree: its bug
                self.refuse(key, self.node.bug(e))
                return
            if len(frame) > self._msize:
                self.refuse(key, E.Erange(f"{len(frame)} bytes, msize {self._msize}"))
            else:
                self._queue(frame)

    def refuse(self, key: int, error: E.FileError) -> None:
        adapter = self._adapter
        dialect = adapter.dialect if adapter is not None else ADAPTERS["9P2000"].dialect
        self._queue(dialect.encode(key, error_reply(dialect, error)))

    def cancelled(self, key: int) -> None:
        """A flushed request is answered by its Rflush alone."""

    def _queue(self, data: Buffer) -> None:
        self.out.append(data)
        self.out_bytes += len(data)
        if self.wake is not None and not self.is_dispatching:
            self.wake.open()
            self.wake = None

    def lend(self, count: int) -> bytearray:
        """A buffer for one reply's payload; it comes back when all that is queued has been sent."""
        for i, buffer in enumerate(self._pool):
            if len(buffer) >= count:
                return self._pool.pop(i)
        return bytearray(count)

    def send_some(self, wire: Wire) -> bool:
        """Send what the wire takes now; True if that was all.  Raises OSError for a broken wire."""
        out = self.out
        while out:
            n = wire.send(out)
            if n is None:
                if self.wake is not None:
                    self.wake.open()
                    self.wake = None
                break
            self.out_bytes -= n
            if not self.out_bytes:
                out.clear()
                break
            taken = 0
            while n >= len(out[taken]):
                n -= len(out[taken])
                taken += 1
            if n:
                out[taken] = memoryview(out[taken])[n:]
            del out[:taken]
        if not out and self._lent:
            self._pool = (self._pool + self._lent)[:POOLED_MAX]
            self._lent.clear()
        if self._room is not None and self.out_bytes <= self.node.limits.queued_bytes_max // 2:
            self._room.open()
            self._room = None
        return not out

    async def wait_queued(self) -> None:
        """Blocks until there is something to send that nobody else is about to send."""
        while not self.out or self.is_dispatching:
            self.wake = Gate()
            await self.wake.wait()

    async def room(self) -> None:
        """Backpressure: blocks until the peer has taken half of what may be queued.

        Nothing is read meanwhile, a Tflush neither: its Rflush would wait behind the replies that are not taken.
        """
        self._room = Gate()
        await self._room.wait()

    def sweep(self) -> None:
        """Called now and then: a connection that did nothing since the last time keeps no large buffer."""
        if not self.is_active:
            self.framer.shrink()
            self._pool.clear()
        self.is_active = False

    # -- frames

    def dispatch(self, start: int, end: int) -> Coroutine[Any, Any, None] | None:
        """Handle one frame.  A coroutine has to be awaited before the next (a Tversion that ends requests).

        Raises ProtocolError: hang up.
        """
        view = self.framer.view
        number = view[start + 4]
        adapter = self._adapter
        if number == TVERSION:
            return self._version(start, end)
        if adapter is None:
            raise E.ProtocolError(f"type {number} before Tversion")
        decoder = adapter.dialect.decode_t.get(number)
        try:
            if decoder is None:
                raise not_a_request(number, view[start + 5] | view[start + 6] << 8)
            tag, message = decoder(view, start, end)
        except (BadMessage, UnknownMessage) as bad:
            self._refuse_bad(bad)
            return None
        session = self.session
        requests = session.requests
        if number == TFLUSH:
            if tag in requests:
                self.reply(tag, m.Rflush())
            else:
                requests.flush(tag, message.oldtag, m.Rflush())  # type: ignore[attr-defined]  # a Tflush
            return None
        if tag in requests:
            self.refuse(tag, E.Edupreq(str(tag)))
            return None
        row = adapter.rows[number]
        handler = row.handler
        if self._pending:
            handler = self._ordered(handler, row.names, message)
        if row.changes:
            handler = self._changing(handler, getattr(message, row.changes))
        session.serve(tag, row.op, handler, message, adapter.seconds(row))
        if number == m.Twrite.number and tag in requests:
            self.framer.detach()  # the request keeps its data for as long as it runs
        return None

    def _refuse_bad(self, bad: BadMessage | UnknownMessage) -> None:
        self._bad += 1
        if self._bad > self.node.limits.bad_messages_max:
            raise E.ProtocolError(f"{self._bad} bad messages") from None
        self.refuse(bad.tag, bad.error)

    def _ordered(self, handler: Handler, names: tuple[str, ...], message: Message) -> Handler:
        """The handler, after every unfinished request that makes or changes a fid that the message names."""
        pending = self._pending
        gates = [gate for name in names if (gate := pending.get(getattr(message, name))) is not None]
        if not gates:
            return handler

        async def later(message: Message) -> Message:
            for gate in gates:
                await gate.wait()
            return await settle(handler(message))

        return later

    def _changing(self, handler: Handler, number: int) -> Handler:
        """The handler; if it has to wait, later requests on this fid wait for its end."""

        def first(message: Message) -> Answer[Message]:
            answer = handler(message)
            if type(answer) is not CoroutineType:
                return answer
            gate = self._pending[number] = Gate()
            return self._changed(number, gate, answer)

        return first

    async def _changed(self, number: int, gate: Gate, answer: Answer[Message]) -> Message:
        try:
            return await settle(answer)
        finally:
            if self._pending.get(number) is gate:
                del self._pending[number]
            gate.open()

    def _version(self, start: int, end: int) -> Coroutine[Any, Any, None] | None:
        dialect = ADAPTERS["9P2000"].dialect
        try:
            tag, t = dialect.decode_t[TVERSION](self.framer.view, start, end)
        except BadMessage as bad:
            if self._adapter is None:
                raise E.ProtocolError(f"not a Tversion: {bad.error}") from None
            self._refuse_bad(bad)
            return None
        assert isinstance(t, m.Tversion)
        answer = self.session.reset()
        self._pending.clear()
        if type(answer) is CoroutineType:
            return self._version_later(answer, tag, t)
        self._agree(tag, t)
        return None

    async def _version_later(self, reset: Coroutine[Any, Any, None], tag: int, t: m.Tversion) -> None:
        await reset
        self._agree(tag, t)

    def _agree(self, tag: int, t: m.Tversion) -> None:
        limits = self.node.limits
        agreed = negotiate(t.version, t.msize, limits.msize_bytes_max)
        if agreed.dialect is None:
            self._adapter = None
            self.framer.limit = self._msize = limits.first_message_bytes_max
        else:
            kind = ADAPTERS[agreed.dialect.name]
            self._adapter = kind(self.session, self.policy, self.peer, agreed.msize, self.lend)
            self._encode = kind.dialect.encode
            self.framer.limit = self._msize = agreed.msize
        self.reply(tag, m.Rversion(agreed.msize, agreed.version))

    @property
    def is_agreed(self) -> bool:
        return self._adapter is not None


async def serve_wire(wire: Wire, node: Node, root: Dir, nursery: trio.Nursery, policy: Policy, peer: Peer) -> None:
    """Serve one connection until either end hangs up.  Owns `wire`.  Cancelling it ends the session in order.

    Requests run in `nursery`, which must outlive this call.
    """
    connection = Connection(node, root, nursery, policy, peer)
    node.live["connections"] += 1
    node.connections.add(connection)
    try:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(_send_queued, connection, wire)
            await _receive(connection, wire)
            tasks.cancel_scope.cancel()
    except* (E.ProtocolError, OSError, trio.TooSlowError, trio.ClosedResourceError) as group:
        log.debug("%s: hung up: %s", peer.text, group.exceptions[0])
    finally:
        node.live["connections"] -= 1
        node.connections.discard(connection)
        connection.wake = None
        await connection.session.end()
        wire.close()


async def _receive(connection: Connection, wire: Wire) -> None:
    """Frames in, until the peer hangs up (return) or breaks the protocol, the wire or a deadline (raise)."""
    framer = connection.framer
    limits = connection.node.limits
    recv_into = wire.recv_into
    in_turn = 0
    deadline = trio.current_time() + limits.first_message_seconds_max
    while True:
        n = recv_into(framer.writable())
        if n is None:
            in_turn = 0
            await _wait_readable(wire, deadline)
            continue
        if n == 0:
            return
        framer.received(n)
        connection.is_active = connection.is_dispatching = True
        try:
            for start, end in framer.frames():
                later = connection.dispatch(start, end)
                if later is not None:
                    await later
                in_turn += 1
                if in_turn >= FRAMES_PER_TURN or connection.out_bytes > limits.queued_bytes_max:
                    in_turn = 0
                    connection.is_dispatching = False
                    connection.send_some(wire)
                    if connection.out_bytes > limits.queued_bytes_max:
                        await connection.room()
                    else:
                        await trio.lowlevel.checkpoint()
                    connection.is_dispatching = True
        except E.ProtocolError:
            connection.send_some(wire)  # what came before the offence has been answered
            raise
        connection.is_dispatching = False
        if connection.out:
            connection.send_some(wire)
        if framer.pending_bytes:
            if deadline == math.inf:
                deadline = trio.current_time() + limits.frame_seconds_max
        elif connection.is_agreed:
            deadline = math.inf


async def _wait_readable(wire: Wire, deadline: float) -> None:
    if deadline == math.inf:
        await wire.wait_readable()
        return
    with trio.CancelScope(deadline=deadline):
        await wire.wait_readable()
        return
    raise trio.TooSlowError("the frame did not end in time")


async def _send_queued(connection: Connection, wire: Wire) -> None:
    """Send what requests queue when nobody is dispatching, and what the peer did not take at once.

    Raises trio.TooSlowError when the peer takes nothing for send_seconds_max.
    """
    limits = connection.node.limits
    while True:
        await connection.wait_queued()
        while not connection.send_some(wire):
            with trio.CancelScope(deadline=trio.current_time() + limits.send_seconds_max) as scope:
                await wire.wait_writable()
            if scope.cancelled_caught:
                raise trio.TooSlowError("the peer takes no replies")
