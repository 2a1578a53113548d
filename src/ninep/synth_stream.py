"""@events: a stream.  Reads park until there is a message, keep its boundary, and a cancelled read consumes nothing.

A Stream is put into by its owner and read through any number of opens; each open has its own queue, from its open on.
A reader that is too slow loses the oldest messages and reads `lost n` where they were.  An async generator method is a
stream per open instead: it runs only as far as its reader reads.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Final, TypeVar

import trio

from .answer import Answer
from .file import Call, Handle
from .limits import DEFAULT, Limits
from .proto import errors as E
from .proto.types import ONONBLOCK, ORDWR, OWRITE
from .synth_file import Owner, SynthFile, SynthHandle, check_called, to_bytes
from .synth_text import wants

F = TypeVar("F", bound=Callable[..., Any])

POLLIN: Final = 0x1 | 0x40  # POLLIN | POLLRDNORM
POLLHUP: Final = 0x10
POLLERS_MAX: Final = 16  # a poll that timed out leaves its callback behind; the last ones are kept


def message(item: str | bytes) -> bytes:
    """A str is a line and gets its newline; bytes travel as they are."""
    if isinstance(item, str) and not item.endswith("\n"):
        item += "\n"
    return to_bytes(item)


class Stream:
    """Messages for whoever has it open.  put() never blocks: a slow reader loses messages, never the writer's time."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self.limits = limits
        self.is_closed = False
        self._queues: set[Queue] = set()

    @property
    def readers(self) -> int:
        return len(self._queues)

    def put(self, item: str | bytes) -> None:
        """One message to every reader.  On the trio thread only."""
        data = message(item)
        for queue in tuple(self._queues):
            queue.put(data)

    def close(self) -> None:
        """End of file for every reader, once it has read what was put before."""
        self.is_closed = True
        for queue in tuple(self._queues):
            queue.finish()

    def subscribe(self, start: Iterable[str | bytes] = ()) -> Queue:
        """A new reader's queue, with `start` in it; close() it when done."""
        queue = Queue(self.limits.stream_queue_max, self._queues.discard)
        for item in start:
            queue.put(message(item))
        if self.is_closed:
            queue.finish()
        self._queues.add(queue)
        return queue


class Queue:
    """What one reader has not read yet.  Readers are served in the order in which they came."""

    __slots__ = (
        "_items",
        "_leave",
        "_line",
        "_lost",
        "_lot",
        "_most",
        "_notify",
        "_rest",
        "_taken",
        "error",
        "is_done",
    )

    def __init__(self, most: int, leave: Callable[[Queue], None] = lambda queue: None) -> None:
        self._items: deque[bytes] = deque()
        self._rest = b""  # of the message that was read in part
        self._lost = 0
        self._most = most
        self._leave = leave
        self._lot = trio.lowlevel.ParkingLot()
        self._line: deque[object] = deque()  # parked readers, first come first
        self._notify: list[Callable[[], None]] = []
        self._taken: Callable[[], None] | None = None
        self.is_done = False
        self.error: BaseException | None = None

    def put(self, data: bytes) -> None:
        if not data:
            return  # an empty message would read as end of file
        if len(self._items) >= self._most:
            self._items.popleft()
            self._lost += 1
        self._items.append(data)
        self._wake()

    def finish(self, error: BaseException | None = None) -> None:
        """Nothing comes any more.  With an error, the reader that comes to the end is told it, once."""
        self.is_done = True
        self.error = error
        self._wake()

    def close(self) -> None:
        """The reader is gone."""
        self._leave(self)
        self._items.clear()
        self._rest = b""
        self.finish()

    def on_empty(self, callback: Callable[[], None]) -> None:
        """Call when a read finds or leaves nothing: what feeds a generator."""
        self._taken = callback

    @property
    def is_ready(self) -> bool:
        return bool(self._rest or self._items or self._lost or self.is_done)

    def read(self, count: int, *, park: bool) -> Answer[bytes]:
        """The next message, or what fits of it.  b"" at the end; Ewouldblock instead of parking, unless `park`."""
        if count <= 0:
            return b""
        if self.is_ready and not self._line:
            return self._take(count)
        if not park:
            self._feed()
            raise E.Ewouldblock
        return self._wait(count)

    def ready(self, events: int, notify: Callable[[], None] | None) -> int:
        now = POLLIN | (POLLHUP if self.is_done else 0) if self.is_ready else 0
        if now & (events | POLLHUP):
            return now
        if notify is not None and notify not in self._notify:
            self._notify.append(notify)
            del self._notify[:-POLLERS_MAX]
        self._feed()
        return now

    async def _wait(self, count: int) -> bytes:
        ticket = object()
        self._line.append(ticket)
        try:
            while self._line[0] is not ticket or not self.is_ready:
                if self._line[0] is ticket:
                    self._feed()
                await self._lot.park()
            # From here to the return there is no await: cancelled readers have not taken, others have.
            return self._take(count)
        finally:
            self._line.remove(ticket)
            self._lot.unpark_all()

    def _take(self, count: int) -> bytes:
        data = self._rest
        if data:
            pass
        elif self._lost:
            data = b"lost %d\n" % self._lost
            self._lost = 0
        elif self._items:
            data = self._items.popleft()
        else:
            error, self.error = self.error, None
            if error is not None:
                raise error
            return b""
        self._rest = data[count:]
        return data[:count]

    def _feed(self) -> None:
        if self._taken is not None:
            self._taken()

    def _wake(self) -> None:
        self._lot.unpark_all()
        notify, self._notify = self._notify, []
        for callback in notify:
            callback()


class StreamFile(SynthFile):
    """A file that is a stream: size 0, never cached, each open a reader of its own."""

    def __init__(
        self,
        owner: Owner,
        start: Callable[[Call], Stream | AsyncGenerator[str | bytes, None]],
        perm: int = 0o444,
        doc: str = "",
    ) -> None:
        super().__init__(owner, perm, doc)
        self._start = start

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        self.check_alive()
        if omode & 3 in (OWRITE, ORDWR):
            raise E.Eperm
        source = self._start(call)
        park = not omode & ONONBLOCK
        if isinstance(source, Stream):
            return StreamHandle(self.owner, source.subscribe(), park=park)
        return GeneratorHandle(self.owner, source, park=park)


class StreamHandle(SynthHandle):
    """One open of a stream."""

    stream = True
    direct = True

    def __init__(self, owner: Owner, queue: Queue, *, park: bool) -> None:
        super().__init__(owner)
        self._queue = queue
        self._park = park

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        return self._queue.read(count, park=self._park)

    def ready(self, call: Call, events: int, notify: Callable[[], None] | None) -> int:
        return self._queue.ready(events, notify)

    def closing(self, call: Call) -> Answer[None]:
        self._queue.close()
        return None


class GeneratorHandle(StreamHandle):
    """One open of an async generator.

    A read that is cancelled must not end the generator, so the generator runs in a task of its own, which this handle
    owns: started by the first read, at most one message ahead, cancelled and awaited by close.
    """

    def __init__(self, owner: Owner, source: AsyncGenerator[str | bytes, None], *, park: bool) -> None:
        super().__init__(owner, Queue(owner.limits.stream_queue_max), park=park)
        self._source = source
        self._close_seconds_max = owner.limits.close_seconds_max
        self._scope: trio.CancelScope | None = None
        self._wanted = trio.Event()
        self._ended = trio.Event()
        self._queue.on_empty(self._go_on)

    def _go_on(self) -> None:
        if self._scope is None:
            self._scope = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._run, self._scope, name="ninep stream generator")
        self._wanted.set()

    async def _run(self, scope: trio.CancelScope) -> None:
        error: BaseException | None = None
        with scope:
            try:
                while True:
                    await self._wanted.wait()
                    self._wanted = trio.Event()
                    self._queue.put(message(await anext(self._source)))
            except StopAsyncIteration:
                pass
            except Exception as e:  # told to the reader, whose Session judges it: it must not end the whole loop
                error = e
            finally:
                with trio.move_on_after(self._close_seconds_max, shield=True):
                    await self._source.aclose()
                self._queue.finish(error)
                self._ended.set()

    def closing(self, call: Call) -> Answer[None]:
        self._queue.close()
        if self._scope is None:
            return None  # never started, so there is nothing to end
        self._scope.cancel()
        return self._ended.wait()


class EventsMark:
    """What @events leaves on the method."""

    def __init__(self, method: Callable[..., Any], perm: int, name: str | None) -> None:
        self.perm = perm
        self.name = name or method.__name__
        self.doc = inspect.getdoc(method) or ""

    def make(self, owner: Owner, attribute: str) -> StreamFile:
        method: Callable[..., Any] = getattr(owner, attribute)
        start = method if wants(method, "call") else lambda call: method()
        return StreamFile(owner, start, self.perm, self.doc)


def events(perm: int = 0o444, name: str | None = None) -> Callable[[F], F]:
    """A stream: the method is an async generator of messages, or returns the Stream that each open subscribes to."""

    check_called(perm, "events")

    def mark(method: F) -> F:
        method.__ninep_mark__ = EventsMark(method, perm, name)  # type: ignore[attr-defined]  # read by Dir
        return method

    return mark
