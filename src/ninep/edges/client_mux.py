"""Flows under trio: one connection, any number of operations in flight, each of them cancellable.

Theory of operation.  One task reads, one writes, one watches the clock.  Whoever runs a flow (client_core) parks its
own task on the Pending; the reader reschedules it.  Requests submitted in one turn of trio leave in one sendmsg; a
request that is alone in flight is sent at once.

Cancelling an operation sends Tflush and stays until the Rflush, so that a cancelled operation has either happened,
and then its result is returned, or has not (flush(5)).  A server that does not answer the Tflush within
Limits.close_seconds_max is not waited for, and not believed any more after Limits.reply_seconds_max.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import trio

from ninep.edges.client_checks import QT_KINDS
from ninep.edges.client_core import REQUESTS_MAX, Core, State
from ninep.edges.client_pending import Flow, Pending
from ninep.edges.dial import Link
from ninep.edges.wire import Wire
from ninep.file import HASHED_PATH
from ninep.proto import errors as E
from ninep.proto.codec import Message
from ninep.proto.messages import Tflush
from ninep.proto.types import Qid

T = TypeVar("T")

BOUNDED_MAX: Final = 512  # operations on their way at once; the next ones wait for their turn
READS_TOGETHER_MAX: Final = REQUESTS_MAX - 128  # with reads, which may park: past it a read waits
TURNS_MAX: Final = 16  # receives in a row before others run
_PATH: Final = struct.Struct("<BQ")


class Mux:
    """One connection and the three tasks that `serve` runs for it.  Knows no file: that is client_tree.py."""

    def __init__(self, wire: Wire, core: Core, link: Link | None = None) -> None:
        self.core = core
        self.limits = core.limits
        self.peer = wire.peer
        self._wire = wire
        self._link = link
        self._key = os.urandom(16)
        self._token = trio.lowlevel.current_trio_token()
        self._writer: trio.lowlevel.Task | None = None  # while it is parked
        self._watch_until = math.inf
        self._watch_wake = trio.Event()
        self._leaving: dict[Pending, tuple[float, Callable[[], None]]] = {}
        self._scope = trio.CancelScope()
        self._turns = trio.lowlevel.ParkingLot()
        self._read_turns = trio.lowlevel.ParkingLot()

    @property
    def is_connected(self) -> bool:
        return self.core.state is State.READY

    # -- flows

    async def run(self, flow: Flow[T], *, parks: bool = False) -> T:
        """The result of a flow.  Blocks as long as the server may take; cancelling it sends Tflush.

        `parks` marks a read, which may take for ever: reads do not use up the turns of everything else.
        """
        if (self.core.in_flight >= READS_TOGETHER_MAX) if parks else (self.core.bounded >= BOUNDED_MAX):
            await self._wait_turn(parks)
        try:
            pending = next(flow)
            while True:
                try:
                    reply = await self._wait(pending)
                except BaseException as e:
                    pending = flow.throw(e)
                else:
                    pending = flow.send(reply)
        except StopIteration as stop:
            self._kick()  # what the flow has left behind: clunks
            return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic
        except E.ProtocolError as e:
            self._end(str(e), E.Eproto)
            raise E.Eproto(str(e))
        except BaseException:
            self._kick()
            raise

    async def _wait_turn(self, parks: bool) -> None:
        """Raises Etoomany if nothing ended for Limits.reply_seconds_max."""
        core = self.core
        lot = self._read_turns if parks else self._turns
        with trio.move_on_after(self.limits.reply_seconds_max):
            while (core.in_flight >= READS_TOGETHER_MAX) if parks else (core.bounded >= BOUNDED_MAX):
                await lot.park()
            return
        raise E.Etoomany

    def _give_turns(self) -> None:
        if self._turns and (room := BOUNDED_MAX - self.core.bounded) > 0:
            self._turns.unpark(count=room)
        if self._read_turns and (room := READS_TOGETHER_MAX - self.core.in_flight) > 0:
            self._read_turns.unpark(count=room)

    async def _wait(self, pending: Pending) -> Message:
        if not pending.is_done:
            await self._park(pending)
        if not pending.is_done:
            self.core.discard(pending)
            raise E.Etimedout(type(pending.request).__name__)
        return pending.result()

    async def _park(self, pending: Pending) -> None:
        """Until the answer, the deadline, or a cancellation that the server has agreed to."""
        pending.waiter = trio.lowlevel.current_task()
        self._kick()
        if _is_woken(pending):  # the wire broke while it was sent, and `_end` has rescheduled this task already
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
            return
        cancelled: list[Callable[[], None]] = []

        def abort(raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
            cancelled.append(raise_cancel)
            return self._leave(pending)

        await trio.lowlevel.wait_task_rescheduled(abort)
        if cancelled:
            self._leaving.pop(pending, None)
            if not pending.is_done or type(pending.error) is E.Einterrupted:
                self.core.discard(pending)
                cancelled[0]()

    def _leave(self, pending: Pending) -> trio.lowlevel.Abort:
        """Cancelled: ask the server to forget the request, and stay parked until it agrees."""
        if self.core.abandon(pending) is None:
            return trio.lowlevel.Abort.SUCCEEDED
        until = trio.current_time() + self.limits.close_seconds_max
        task = pending.waiter
        assert isinstance(task, trio.lowlevel.Task)
        self._leaving[pending] = (until, lambda: trio.lowlevel.reschedule(task))
        self._kick()
        return trio.lowlevel.Abort.FAILED

    # -- sending

    def _kick(self) -> None:
        """See that what is queued goes out, and that deadlines are watched."""
        core = self.core
        if self._writer is not None and core.has_output:
            if core.in_flight <= 1:
                self._send_now()
            if core.has_output:
                self._wake_writer()
        if self._leaving or core.first_deadline < self._watch_until:
            self._watch_wake.set()

    def _wake_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            trio.lowlevel.reschedule(writer)

    def _send_now(self) -> None:
        try:
            n = self._wire.send(self.core.outgoing())
        except OSError as e:
            self._end(e.strerror or str(e))
        else:
            if n is not None:
                self.core.sent(n)

    async def _write(self) -> None:
        core, wire = self.core, self._wire
        while core.state is not State.CLOSED:
            buffers = core.outgoing()
            if not buffers:
                self._writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._unpark_writer)
                continue
            n = wire.send(buffers)
            if n is None:
                with trio.move_on_after(self.limits.send_seconds_max) as scope:
                    await wire.wait_writable()
                if scope.cancelled_caught:
                    self._end("the server takes no bytes")
            else:
                core.sent(n)
                await trio.lowlevel.checkpoint_if_cancelled()

    def _unpark_writer(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    # -- receiving

    async def _read(self) -> None:
        core, wire = self.core, self._wire
        turns = 0
        while core.state is not State.CLOSED:
            n = wire.recv_into(core.space())
            if n is None:
                turns = 0
                await wire.wait_readable()
                continue
            if n == 0:
                self._end("the server hung up")
                return
            self._wake(core.received(n))
            if core.has_output:
                self._kick()
            turns += 1
            if turns >= TURNS_MAX:
                turns = 0
                await trio.lowlevel.checkpoint()

    def _wake(self, done: list[Pending]) -> None:
        for pending in done:
            task = pending.waiter
            if isinstance(task, trio.lowlevel.Task):
                pending.waiter = None
                self._leaving.pop(pending, None)
                trio.lowlevel.reschedule(task)
        if self._turns or self._read_turns:
            self._give_turns()

    # -- the clock

    async def _watch(self) -> None:
        """Deadlines: an overdue request fails, an overdue Tflush ends the session."""
        while self.core.state is not State.CLOSED:
            self._watch_wake = trio.Event()
            leaving = min((until for until, _ in self._leaving.values()), default=math.inf)
            self._watch_until = min(self.core.deadline(), leaving)
            with trio.move_on_at(self._watch_until):
                await self._watch_wake.wait()
            self._expire()

    def _expire(self) -> None:
        now = trio.current_time()
        for pending in [p for p, (until, _) in self._leaving.items() if until <= now]:
            _, wake = self._leaving.pop(pending)
            pending.waiter = None
            wake()
        overdue = self.core.expired()
        for pending in overdue:
            if type(pending.request) is Tflush:
                self._end("the server does not answer a Tflush", E.Etimedout)
                return
        for pending in overdue:
            task = pending.waiter
            self.core.abandon(pending)
            if isinstance(task, trio.lowlevel.Task):
                pending.waiter = None
                trio.lowlevel.reschedule(task)
        self._kick()

    # -- the end

    def _end(self, why: str, error: Callable[[str], E.FileError] = E.Ehungup) -> None:
        """Every operation fails now, and every later one at once.  Idempotent."""
        self._wake(self.core.close(why, error))
        self._turns.unpark_all()
        self._read_turns.unpark_all()
        self._scope.cancel()

    def close(self) -> None:
        """Hang up: the server clunks everything."""
        self._end("closed by the client", E.Enotconn)

    async def serve(self) -> None:
        """The connection's own tasks, until it ends; then the wire is closed, and the program behind it ended."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for task in (self._read, self._write, self._watch):
                        nursery.start_soon(self._guard, task)
        finally:
            self._end("closed by the client", E.Enotconn)
            self._wire.close()
            if self._link is not None and self._link.process is not None:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._link.close)

    async def _guard(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await task()
        except E.ProtocolError as e:
            self._end(str(e), E.Eproto)
        except OSError as e:
            self._end(e.strerror or str(e))
        except trio.ClosedResourceError:
            self._end("closed by the client", E.Enotconn)

    # -- what the remote tree uses

    def local_qid(self, qid: Qid) -> Qid:
        """The server's qid with a path of ours: keyed, so that trees of several servers never meet (SEC-63).

        The kind of file goes into it: a path that comes back as another kind is another file.
        """
        raw = hashlib.blake2b(_PATH.pack(qid.type & QT_KINDS, qid.path), digest_size=8, key=self._key).digest()
        return Qid(qid.type, qid.vers, int.from_bytes(raw, "little") | HASHED_PATH)

    def drop_fid(self, fid: int) -> None:
        """A file object died, on whatever thread: its fid is clunked soon."""
        self.core.drop_fid_later(fid)
        try:
            self._token.run_sync_soon(self._kick, idempotent=True)
        except trio.RunFinishedError:
            pass

    def clunk_soon(self, fid: int) -> None:
        """Clunk a fid without waiting for the answer."""
        self.core.clunk_soon(fid)
        self._kick()


def _is_woken(pending: Pending) -> bool:
    return pending.waiter is None
