"""The driver of flows that blocks: one poll moves the bytes of one connection, and a flow runs until it has its result.

Every wait has the deadline of its request.  An interrupt flushes what was waited for before it goes on its way, and a
peer that takes nothing cannot stop us from reading.  Knows nothing of paths and files: blocking.py.
"""

from __future__ import annotations

import functools
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from ninep.edges.client_core import Core, State
from ninep.edges.client_pending import Flow, Pending
from ninep.edges.dial import Link
from ninep.proto import errors as E
from ninep.proto.codec import Message

T = TypeVar("T")

LEAVE_SECONDS: Final = 0.5  # on the way out: for an Rflush, and for the last clunks to be taken
TOGETHER_MAX: Final = 64  # flows that `run_many` has under way at once


class Driver:
    """One connection's core and link, brought together.  Owns the link.  Not for use by two threads at once."""

    def __init__(self, core: Core, link: Link) -> None:
        self.core = core
        self._link = link
        self._line = _Line(link)
        self._is_torn = False  # bytes may be on their way that the core does not know of

    def close(self) -> None:
        """Send what is still to be said, at most LEAVE_SECONDS, and hang up.  Idempotent."""
        if self.core.state is State.READY:
            try:
                until = time.monotonic() + LEAVE_SECONDS
                while self.core.has_output and self._turn(until):
                    pass
            except E.FileError:
                pass  # the connection went first, and took every fid with it
        self.core.close("closed by the client")
        self._link.close()

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
        """The result, or the refusal, once done."""
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
        """Bytes taken, None if the peer takes none now."""
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
