"""Sparse bytes in memory, charged to a budget: what the regular files of servers.ram hold.

Content is kept in chunks of 64 KiB; a chunk that was never written is a hole and costs nothing, so a file of 2**63-1
bytes is free until somebody writes to it.  A chunk may be shorter than 64 KiB: what follows it is a hole too.
Knows no file, no name, no caller and no clock.

The budget counts pages of 4 KiB, as tmpfs does, because a one-byte chunk costs more than one byte.  It follows the
memory: what an unlinked file holds is given back when its last holder lets go of the content, not before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from ..proto import errors as E
from ..proto.types import OFFSET_MAX

SHIFT = 16
CHUNK = 1 << SHIFT
MASK = CHUNK - 1
PAGE = 4096
_ZEROS = memoryview(bytes(CHUNK))


class Budget:
    """How many bytes and files one tree may hold."""

    __slots__ = ("bytes_max", "bytes_used", "files_max", "files_used")

    def __init__(self, bytes_max: int, files_max: int) -> None:
        self.bytes_max = bytes_max
        self.files_max = files_max
        self.bytes_used = 0
        self.files_used = 0

    def take(self, count: int) -> None:
        """Charge count bytes, or raise Enospc and charge nothing."""
        if count > 0 and self.bytes_used + count > self.bytes_max:
            raise E.Enospc
        self.bytes_used += count

    def give(self, count: int) -> None:
        self.bytes_used -= count
        assert self.bytes_used >= 0


def _pages(count: int) -> int:
    return (count + PAGE - 1) & -PAGE


class Sparse:
    """The content of one file.  Offsets and counts are bytes and never negative; every change is whole or not at all.

    `charged` is what the budget was asked for: the whole chunk where fallocate(2) reserved it, else whole pages.
    """

    __slots__ = ("_budget", "_chunks", "_order", "_reserved", "charged", "size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._chunks: dict[int, bytearray] = {}
        self._order: list[int] | None = None  # the chunks' numbers in order, until one comes or goes
        self._reserved: set[int] | None = None
        self.size = 0
        self.charged = 0

    def __del__(self) -> None:
        if self.charged:
            self._budget.give(self.charged)

    # -- reading
    def read(self, offset: int, count: int) -> bytes:
        """At most count bytes from offset; holes read as zeros; b"" at and past the end."""
        if offset + count > self.size:
            count = self.size - offset
            if count <= 0:
                return b""
        at = offset & MASK
        if at + count > CHUNK:
            return b"".join(self._parts(offset, count))
        chunk = self._chunks.get(offset >> SHIFT)
        if chunk is None:
            return bytes(count)
        data = bytes(memoryview(chunk)[at : at + count])
        return data if len(data) == count else data.ljust(count, b"\0")

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """As read, straight into the buffer: one copy in all."""
        count = min(len(buffer), self.size - offset)
        if count <= 0:
            return 0
        at = offset & MASK
        chunk = self._chunks.get(offset >> SHIFT)
        if chunk is not None and at + count <= len(chunk):
            buffer[:count] = memoryview(chunk)[at : at + count]
            return count
        done = 0
        for part in self._parts(offset, count):
            n = len(part)
            buffer[done : done + n] = part
            done += n
        return count

    def _parts(self, offset: int, count: int) -> Iterator[memoryview]:
        """Views that follow each other and make up the range, which lies below the size."""
        chunks = self._chunks
        end = offset + count
        while offset < end:
            at = offset & MASK
            want = min(CHUNK - at, end - offset)
            chunk = chunks.get(offset >> SHIFT)
            have = 0 if chunk is None else min(len(chunk) - at, want)
            if chunk is not None and have > 0:
                yield memoryview(chunk)[at : at + have]
            else:
                have = 0
            if have < want:
                yield _ZEROS[: want - have]
            offset += want

    # -- writing
    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put data at offset.  Efbig past OFFSET_MAX, Enospc past the budget; then nothing was written."""
        count = len(data)
        end = offset + count
        at = offset & MASK
        if at + count <= CHUNK:
            number = offset >> SHIFT
            chunk = self._chunks.get(number)
            if chunk is not None and at + count <= len(chunk):
                memoryview(chunk)[at : at + count] = data
            else:
                if end > OFFSET_MAX:
                    raise E.Efbig
                self._charge(self._growth(number, at + count))
                self._put(number, at, data)
        else:
            if end > OFFSET_MAX:
                raise E.Efbig
            self._write_across(offset, memoryview(data))
        if end > self.size:
            self.size = end

    def _write_across(self, offset: int, data: memoryview) -> None:
        first, last, at, end = offset >> SHIFT, (offset + len(data) - 1) >> SHIFT, offset & MASK, offset + len(data)
        growth = self._growth(last, end - (last << SHIFT))
        for number in range(first, last):
            growth += self._growth(number, CHUNK)
        self._charge(growth)
        done = 0
        for number in range(first, last + 1):
            n = min(CHUNK - at, len(data) - done)
            self._put(number, at, data[done : done + n])
            done += n
            at = 0

    def _growth(self, number: int, length: int) -> int:
        """What it costs to make a chunk at least so long."""
        if self._reserved is not None and number in self._reserved:
            return 0
        chunk = self._chunks.get(number)
        have = 0 if chunk is None else len(chunk)
        return _pages(length) - _pages(have) if length > have else 0

    def _charge(self, count: int) -> None:
        if count:
            self._budget.take(count)
            self.charged += count

    def _refund(self, count: int) -> None:
        if count:
            self._budget.give(count)
            self.charged -= count

    def _put(self, number: int, at: int, data: bytes | memoryview) -> None:
        chunk = self._chunks.get(number)
        if chunk is None:
            # bytearray(data) is the one copy of a whole-chunk write.
            self._chunks[number] = bytearray(at) + data if at else bytearray(data)
            self._order = None
            return
        have = len(chunk)
        if at >= have:
            if at > have:
                chunk.extend(bytes(at - have))
            chunk += data
        else:
            end = at + len(data)
            if end > have:
                chunk.extend(bytes(end - have))
            memoryview(chunk)[at:end] = data

    # -- length and holes
    def truncate(self, size: int) -> None:
        """Cut or lengthen; lengthening makes a hole."""
        if size < self.size:
            self._clear(size, OFFSET_MAX + 1, keep_reserved=False)
        self.size = size

    def punch(self, offset: int, length: int) -> None:
        """A hole in the range; the size stays."""
        self._clear(offset, offset + length, keep_reserved=False)

    def zero(self, offset: int, length: int, keep_size: bool) -> None:
        """Zeros in the range, reserved as `reserve` does."""
        self.reserve(offset, length, keep_size)
        self._clear(offset, offset + length, keep_reserved=True)

    def reserve(self, offset: int, length: int, keep_size: bool) -> None:
        """Promise room for the range, in whole chunks: later writes there meet no Enospc.  Enospc if there is none."""
        end = offset + length
        first, last = offset >> SHIFT, (end - 1) >> SHIFT
        budget = self._budget
        if (last - first + 1) * CHUNK > budget.bytes_max - budget.bytes_used + self.charged + 2 * CHUNK:
            raise E.Enospc  # before walking a range of 2**47 chunks
        reserved = self._reserved or set()
        fresh = [number for number in range(first, last + 1) if number not in reserved]
        self._charge(sum(CHUNK - _pages(len(self._chunks.get(number, b""))) for number in fresh))
        reserved.update(fresh)
        self._reserved = reserved
        if not keep_size and end > self.size:
            self.size = end

    def _clear(self, start: int, end: int, keep_reserved: bool) -> None:
        first, last = start >> SHIFT, (end - 1) >> SHIFT
        for number in [n for n in self._chunks if first <= n <= last]:
            base = number << SHIFT
            self._clear_chunk(number, max(start - base, 0), min(end - base, CHUNK))
        if self._reserved and not keep_reserved:
            # Only whole chunks give their reservation back.
            whole = {n for n in self._reserved if start <= n << SHIFT and (n + 1) << SHIFT <= end}
            self._reserved -= whole
            self._refund(sum(CHUNK - _pages(len(self._chunks.get(n, b""))) for n in whole))

    def _clear_chunk(self, number: int, at: int, end: int) -> None:
        chunk = self._chunks[number]
        have = len(chunk)
        if at >= have:
            return
        if end < have:
            memoryview(chunk)[at:end] = _ZEROS[: end - at]
            return
        if at == 0:
            del self._chunks[number]
            self._order = None
        else:
            del chunk[at:]
        if self._reserved is None or number not in self._reserved:
            self._refund(_pages(have) - _pages(at))

    def seek_data(self, offset: int) -> int:
        """The first byte at or after offset that is no hole; Enxio if there is none (lseek(2))."""
        order = self._sorted()
        for at in range(bisect_left(order, offset >> SHIFT), len(order)):
            number = order[at]
            start = max(offset, number << SHIFT)
            if start - (number << SHIFT) < len(self._chunks[number]):
                return start
        raise E.Enxio

    def seek_hole(self, offset: int) -> int:
        """The first byte at or after offset that is in a hole; the end of the file is one.  Enxio past it."""
        if offset >= self.size:
            raise E.Enxio
        while (chunk := self._chunks.get(offset >> SHIFT)) is not None:
            if len(chunk) < CHUNK:
                offset = max(offset, (offset & ~MASK) + len(chunk))
                break
            offset = (offset | MASK) + 1
        return min(offset, self.size)

    def _sorted(self) -> list[int]:
        if self._order is None:
            self._order = sorted(self._chunks)
        return self._order
