"""Requests under way: started, flushed, ended.  Knows tags only as keys, and no message.

A request that was answered at once is never here.  The rest run in the nursery that the Session was given, each with
its cancel scope; the connection is only a sink, which may be swapped under a parked request (architecture A2).
Exact flush (flush(5)): a flush waits until the old request has really ended; its own reply follows the old one's, if
that one won the race, on the same sink.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

import trio

from .principal import Principal
from .proto import errors as E

M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)


# What a handler may raise and cost its own request alone.  A tree's author who calls sys.exit has a bug like any other;
# a real Ctrl-C comes to a server as a signal that it has asked for (edges/listen), never as an exception in a request.
FAILURES = (Exception, SystemExit, KeyboardInterrupt)


class Sink(Protocol[M_contra]):
    """Where replies go.  All three only queue: they never block and never raise.

    `cancelled` tells of a request that was flushed and had no effect: 9P says nothing, FUSE must say EINTR.
    """

    def reply(self, key: int, message: M_contra) -> None: ...

    def refuse(self, key: int, error: E.FileError) -> None: ...

    def cancelled(self, key: int) -> None: ...


class Gate:
    """Opens once.  A request that must come after another waits for that one's gate."""

    __slots__ = ("_tasks", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._tasks: list[trio.lowlevel.Task] = []

    def open(self) -> None:
        self.is_open = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Blocks until the gate is open; may be cancelled."""
        if self.is_open:
            return
        task = trio.lowlevel.current_task()
        self._tasks.append(task)

        def leave(_: object) -> trio.lowlevel.Abort:
            self._tasks.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)


class Request(Generic[M]):
    """One request under way.  `why` is what a cancellation of its scope means; None: that it was flushed."""

    __slots__ = ("flushes", "key", "op", "scope", "start_ns", "who", "why")

    def __init__(self, key: int, op: int, who: Principal, start_ns: int, seconds: float) -> None:
        self.key = key
        self.op = op
        self.who = who
        self.start_ns = start_ns
        self.scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        self.why: type[E.FileError] | None = E.Etimedout
        self.flushes: list[tuple[int, M]] | None = None


class Requests(Generic[M]):
    """The table of one session.  `bug` turns an unexpected exception into the FileError that the client reads;
    `finished(op, who, start_ns, failed, error)` hears of each end; failed without an error means cancelled.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        sink: Sink[M],
        bug: Callable[[BaseException], E.FileError],
        finished: Callable[[int, Principal, int, bool, E.FileError | None], None],
        requests_max: int,
    ) -> None:
        self._nursery = nursery
        self._running: dict[int, Request[M]] = {}
        self._flushing: dict[int, Request[M]] = {}  # by the Tflush's own key: it is pending as long as what it flushes
        self._bug = bug
        self._finished = finished
        self._max = requests_max
        self._idle: Gate | None = None
        self._tasks = 0
        self.sink = sink

    def __len__(self) -> int:
        return len(self._running)

    def keys(self) -> list[int]:
        """Of the requests that run now."""
        return list(self._running)

    def __contains__(self, key: int) -> bool:
        return key in self._running or key in self._flushing

    def start(
        self, key: int, op: int, who: Principal, start_ns: int, work: Coroutine[Any, Any, M], seconds: float
    ) -> None:
        """Run `work` as a task; its result goes to the sink.

        Past the limit it runs with its scope cancelled: it ends at its first checkpoint, answered Etoomany, or it never
        needed one and is answered as usual.  Never blocks.
        """
        request = self._running[key] = Request[M](key, op, who, start_ns, seconds)
        if len(self._running) > self._max:
            request.why = E.Etoomany
            request.scope.cancel()
        self._tasks += 1
        self._nursery.start_soon(self._run, request, work)

    async def _run(self, request: Request[M], work: Coroutine[Any, Any, M]) -> None:
        message: M | None = None
        error: E.FileError | None = None
        try:
            with request.scope:
                message = await work
        except FAILURES as e:
            error = answer_for(e) or self._bug(e)
        except BaseExceptionGroup as e:
            mine, rest = e.split(FAILURES)
            if rest is not None or mine is None:
                raise  # a cancellation is among them: trio's to end
            error = answer_for(mine) or self._bug(mine)
        finally:
            self._tasks -= 1
            self._end(request, message, error)
            error = None  # kept by a frame of its own traceback it would keep files and handles alive

    def _end(self, request: Request[M], message: M | None, error: E.FileError | None) -> None:
        # One synchronous step: the tag is free before its reply can leave, and every Rflush is queued behind it.
        if self._idle is not None and not self._tasks:
            self._idle.open()
        if self._running.get(request.key) is not request:
            return  # abandoned: nobody is owed a reply
        del self._running[request.key]
        if message is None and error is None and request.why is not None:
            error = request.why()
        self._finished(request.op, request.who, request.start_ns, message is None, error)
        if error is not None:
            self.sink.refuse(request.key, error)
        elif message is not None:
            self.sink.reply(request.key, message)
        else:
            self.sink.cancelled(request.key)
        for key, done in request.flushes or ():
            del self._flushing[key]
            self.sink.reply(key, done)

    def flush(self, key: int, oldkey: int, done: M) -> None:
        """Queue `done` under `key` once `oldkey` has ended: at once when it is not running (flush(5)).

        A flush of a pending flush waits for the same request, and is answered after it.
        """
        request = self._running.get(oldkey) or self._flushing.get(oldkey)
        if request is None:
            self.sink.reply(key, done)
            return
        if request.flushes is None:
            request.flushes = []
        request.flushes.append((key, done))
        self._flushing[key] = request
        self._cancel(request)

    def cancel(self, key: int) -> bool:
        """Cancel without a flush message (FUSE's interrupt).  False when it is not running."""
        request = self._running.get(key)
        if request is None:
            return False
        self._cancel(request)
        return True

    def _cancel(self, request: Request[M]) -> None:
        request.why = None
        request.scope.cancel()

    def abandon(self) -> None:
        """Tversion or hang-up: everything running is cancelled, and no reply leaves."""
        running, self._running = self._running, {}
        self._flushing = {}
        for request in running.values():
            request.scope.cancel()

    async def drain(self) -> None:
        """Blocks until no task runs, abandoned ones included.  May be cancelled."""
        while self._tasks:
            self._idle = self._idle or Gate()
            await self._idle.wait()
            self._idle = None


def answer_for(e: BaseException) -> E.FileError | None:
    """The FileError that a client reads for an exception; None for a bug.

    A group that holds nothing but answers is unwrapped: a nursery in a tree's code wraps its one refusal so.  An
    OSError is the host's own refusal on its way through a tree, and keeps its number.
    """
    if isinstance(e, E.FileError):
        return e
    if isinstance(e, BaseExceptionGroup):
        answers = [answer_for(inner) for inner in e.exceptions]
        if all(answer is not None for answer in answers):
            return answers[0]
    if isinstance(e, OSError):
        return E.from_oserror(e)
    return None
