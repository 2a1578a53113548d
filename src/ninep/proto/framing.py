"""Bytes in, whole frames out, without copying them.  Refuses a size before buffering it.  Knows no message.

Theory of operation.  An edge turns this loop:

    n = sock.recv_into(framer.writable())       # EAGAIN: call framer.shrink() if the wait may be long, wait, try again
    framer.received(n)
    for start, end in framer.frames():
        tag, msg = dialect.decode(framer.view, start, end)

`frames` yields places in `framer.view`, and stops by itself when what is left is not a whole frame.

How long memory stays.  A frame, and every memoryview cut from it (the data of a Twrite), stays as it is until the next
call of `writable`; after that the bytes under it are someone else's.  A request that is not finished by then has two
ways out: copy its data (right when it is small), or call `framer.detach()` before the next `writable`: the framer then
leaves the whole buffer to whoever holds a view of it and goes on with a new one, copying only what it has not yet
yielded.  The last view that is dropped frees the memory.

How large the buffer is.  FIRST_BYTES until a frame or a busy stream needs more; BUSY_BYTES while small frames come
thick; the frame limit once a frame larger than that has begun.  A begun large frame is read up to exactly its end, and
a new one starts at the front, so a stream of 1 MiB writes copies at most BUSY_BYTES per frame and mostly nothing.
Every QUIET_TURNS turns it becomes as small as they would have needed, and at `shrink` it is small at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ninep.proto.errors import ProtocolError

SIZE_BYTES_MIN: Final = 7
FIRST_BYTES: Final = 8 * 1024  # an idle connection costs this and no more
BUSY_BYTES: Final = 64 * 1024  # several thousand small requests in one recv
QUIET_TURNS: Final = 64

_SIZE: Final = struct.Struct("<I").unpack_from


class Framer:
    """The receiving half of one connection.

    `limit` is the largest frame accepted: the session's msize once it is agreed, and before that what a Tversion may
    need.  It may be changed between two frames, also from inside the loop over `frames`.
    """

    __slots__ = ("_at", "_buffer", "_filled", "_is_detached", "_need", "_peak", "_turns", "_window", "limit", "view")

    def __init__(self, limit: int = FIRST_BYTES) -> None:
        self.limit = limit
        self._take_buffer(FIRST_BYTES)
        self._at = 0  # where the first byte not yet yielded lies
        self._filled = 0
        self._need = 0  # the size of the begun frame, once its four bytes are here
        self._window = 0  # bytes last offered to the receiver
        self._turns = 0  # turns since it was last asked whether the buffer has to be so large
        self._peak = 0  # the most bytes held in any of them
        self._is_detached = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has begun but not ended: nonzero means that the frame's deadline runs."""
        return self._filled - self._at

    @property
    def buffer_bytes(self) -> int:
        """The size of the buffer now."""
        return len(self._buffer)

    def writable(self) -> memoryview:
        """Where the next bytes go; never empty.  Ends the life of the views given out before, unless detached.

        All frames must have been taken: a consumer that pauses goes on with `frames`, not with this.
        """
        at, filled = self._at, self._filled
        size = len(self._buffer)
        was_full = filled == size and self._window != 0
        wanted = self._wanted(size, was_full)
        if self._is_detached or wanted != size:
            self._move(wanted)
        elif at == filled:
            self._at = self._filled = 0
        elif at and (self._need > size - at or self._need == 0):  # no room for the frame, or not even its size known
            self._buffer[: filled - at] = self._buffer[at:filled]
            self._at, self._filled = 0, filled - at
        at, filled, size = self._at, self._filled, len(self._buffer)
        stop = size
        if at == filled:
            stop = min(size, BUSY_BYTES)
        elif self._need > BUSY_BYTES:
            stop = at + self._need
        elif size > BUSY_BYTES:
            stop = max(at + BUSY_BYTES, filled + FIRST_BYTES)
            stop = min(stop, size)
        assert stop > filled, "take all frames first"
        self._window = stop - filled
        return self.view[filled:stop]

    def _wanted(self, size: int, was_full: bool) -> int:
        """The buffer size for the next turn."""
        need = self._need
        self._peak = max(self._peak, self._filled)
        if need > size:
            return BUSY_BYTES if need <= BUSY_BYTES else max(self.limit, need)
        if was_full:
            return max(size, BUSY_BYTES)
        if size > FIRST_BYTES and self._at == self._filled:
            self._turns += 1
            if self._turns > QUIET_TURNS:
                size = FIRST_BYTES if self._peak <= FIRST_BYTES else BUSY_BYTES if self._peak <= BUSY_BYTES else size
                self._turns = self._peak = 0
        return size

    def _move(self, size: int) -> None:
        """Go on in a new buffer with what is not yet yielded."""
        rest = self.view[self._at : self._filled]
        self._take_buffer(max(size, len(rest)))
        self._filled = len(rest)
        self.view[: self._filled] = rest
        self._at = 0
        self._is_detached = False

    def _take_buffer(self, size: int) -> None:
        self._buffer = bytearray(size)
        self.view = memoryview(self._buffer)

    def received(self, count: int) -> None:
        """Account for `count` bytes put at the front of what `writable` gave."""
        assert 0 <= count <= self._window, count
        self._filled += count

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[int, int]]:
        """For tests and drivers that have bytes already: copy them in, as often as it takes, and yield the frames."""
        rest = memoryview(data)
        while rest:
            room = self.writable()
            n = min(len(room), len(rest))
            room[:n] = rest[:n]
            self.received(n)
            rest = rest[n:]
            yield from self.frames()

    def frames(self) -> Iterator[tuple[int, int]]:
        """The (start, end) of each whole frame in `view`, in order; a frame counts as consumed once it is yielded.

        Raises ProtocolError for a size below 7 or above `limit`, as soon as its four bytes are here and before any
        memory is found for the frame.  Nothing after that can be believed: hang up.
        """
        view = self.view
        while True:
            at = self._at
            have = self._filled - at
            if have < 4:
                self._need = 0
                return
            (size,) = _SIZE(view, at)
            if size < SIZE_BYTES_MIN or size > self.limit:
                raise ProtocolError(f"frame of {size} bytes, limit {self.limit}")
            if size > have:
                self._need = size
                return
            self._need = 0
            self._at = at + size
            yield at, at + size

    def detach(self) -> None:
        """Leave the present buffer to those who hold views of it: the next `writable` starts a new one."""
        self._is_detached = True

    def shrink(self) -> None:
        """Give a large buffer back, if nothing is pending.  For a connection that has been idle for a while.

        Call it between turns, never between `writable` and `received`.
        """
        if self._at == self._filled and len(self._buffer) > FIRST_BYTES:
            self._take_buffer(FIRST_BYTES)
            self._at = self._filled = self._need = self._turns = self._peak = 0
            self._is_detached = False
