"""Regular files of a ram tree and their handles: content, set-id bits, append-only and exclusive use, locks.

Locks, sizes and times follow tmpfs.  Which omode may read or write is the Session's to say, not this module's.
"""

from __future__ import annotations

from ..answer import Answer
from ..file import Call, Handle
from ..locks import Locks
from ..proto import errors as E
from ..proto.types import DMAPPEND, DMEXCL, F_UNLCK, OAPPEND, OFFSET_MAX, OTRUNC, SEEK_DATA, SEEK_HOLE, Lock
from .ram_data import Sparse
from .ram_node import NOBODYS, SETGID, SETUID, Node

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 0x10
COPY_BYTES_MAX = 8 << 20  # one copy_range: the loop is not kept longer than a few milliseconds


class RamFile(Node):
    """A regular file."""

    locks: Locks | None = None
    _exclusive: bool = False

    def open(self, call: Call, omode: int) -> RamHandle:
        if self.flags & DMEXCL:
            if self._exclusive:
                raise E.Eexclusive
            self._exclusive = True
        # An append-only file is opened and not truncated (open(5)).
        if omode & OTRUNC and not self.flags & DMAPPEND:
            self.resize(call, 0)
        return RamHandle(self, bool(omode & OAPPEND or self.flags & DMAPPEND))

    def _may_resize(self, size: int) -> None:
        if self.flags & DMAPPEND:
            raise E.Enotallowed("append-only file")
        if size < 0:
            raise E.Ebadarg("size")
        if size > OFFSET_MAX:
            raise E.Efbig

    def resize(self, call: Call, size: int) -> None:
        if size or self.data is not NOBODYS:
            self.own_data().truncate(size)
        self.modified(call)

    def own_data(self) -> Sparse:
        """The content, of its own from now on."""
        if self.data is NOBODYS:
            self.data = Sparse(self.ram.budget)
        return self.data

    def modified(self, call: Call) -> None:
        """As changed, by somebody whose change may cost the file its set-id bits (write(2))."""
        if self.perm & (SETUID | SETGID) and not call.principal.is_superuser:
            self.perm &= ~self._set_ids_lost(call)
        self.changed()

    def closed(self) -> None:
        self._exclusive = False


class RamHandle(Handle):
    """One open of a regular file.  Holds the file: an unlinked one lives until the last handle goes."""

    def __init__(self, file: RamFile, append: bool) -> None:
        self.file = file
        self.append = append

    def read(self, call: Call, offset: int, count: int) -> bytes:
        file = self.file
        file.accessed()
        return file.data.read(offset, count)

    def read_into(self, call: Call, offset: int, buffer: memoryview) -> int:
        file = self.file
        file.accessed()
        return file.data.read_into(offset, buffer)

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> int:
        if not data:
            return 0
        file = self.file
        content = file.data
        if content is NOBODYS:
            content = file.own_data()
        content.write(content.size if self.append else offset, data)
        file.modified(call)
        return len(data)

    def truncate(self, call: Call, size: int) -> None:
        self.file._may_resize(size)
        self.file.resize(call, size)

    def allocate(self, call: Call, mode: int, offset: int, length: int) -> None:
        """fallocate(2): plain, KEEP_SIZE, PUNCH_HOLE with KEEP_SIZE, ZERO_RANGE; Eunsupported for the rest."""
        if offset < 0 or length <= 0:
            raise E.Ebadarg("fallocate")
        if offset + length > OFFSET_MAX:
            raise E.Efbig
        if self.file.flags & DMAPPEND and mode & ~FALLOC_KEEP_SIZE:
            raise E.Enotallowed("append-only file")
        keep_size = bool(mode & FALLOC_KEEP_SIZE)
        what = mode & ~FALLOC_KEEP_SIZE
        if what == 0:
            self.file.own_data().reserve(offset, length, keep_size)
        elif what == FALLOC_ZERO_RANGE:
            self.file.own_data().zero(offset, length, keep_size)
        elif what == FALLOC_PUNCH_HOLE and keep_size:
            self.file.own_data().punch(offset, length)
        else:
            raise E.Eunsupported("fallocate mode")
        self.file.modified(call)

    def seek(self, call: Call, offset: int, whence: int) -> int:
        if whence not in (SEEK_DATA, SEEK_HOLE):
            raise E.Ebadarg("whence")
        if offset < 0:
            raise E.Enxio
        data = self.file.data
        return data.seek_data(offset) if whence == SEEK_DATA else data.seek_hole(offset)

    def copy_range(self, call: Call, offset: int, to: Handle, to_offset: int, count: int) -> int:
        """At most 8 MiB at once.  Overlapping ranges of one file: Ebadarg, as copy_file_range(2)."""
        if not isinstance(to, RamHandle) or to.file.ram is not self.file.ram:
            raise E.Exdev
        if to.append:
            raise E.Enotopen("append-only handle")
        count = max(min(count, self.file.data.size - offset), 0)
        if to.file is self.file and abs(offset - to_offset) < count:
            raise E.Ebadarg("ranges overlap")
        if not count:
            return 0
        data = self.file.data.read(offset, min(count, COPY_BYTES_MAX))
        self.file.accessed()
        return to.write(call, to_offset, data)

    def lock(self, call: Call, lock: Lock, wait: bool) -> Answer[bool]:
        locks = self.file.locks
        if locks is None:
            if lock.type == F_UNLCK:
                return True
            locks = self.file.locks = Locks(self.file.ram.limits.locks_max)
        return locks.lock(lock, wait)

    def getlock(self, call: Call, lock: Lock) -> Lock | None:
        locks = self.file.locks
        return None if locks is None else locks.getlock(lock)

    def unlock_owner(self, call: Call, owner: object, flock: bool) -> None:
        locks = self.file.locks
        if locks is not None:
            locks.unlock_owner(owner, flock)

    def close(self, call: Call) -> None:
        self.file.closed()
