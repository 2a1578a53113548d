"""Fid: a client's place in a tree, and the way it came.  FidTable: the numbers a 9P client gives them.

The way back is what makes `..` the server's answer and not the host's: a fid remembers each directory it walked
through, so it can never leave its attach point (protocol.md A8, H41).
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from .file import Call, Dir, File, Handle
from .proto import errors as E
from .proto.types import NOFID
from .requests import Gate


class Way:
    """One step from an attach point: `name` in `dir`, reached by `up` (None: `dir` is the attach point)."""

    __slots__ = ("depth", "dir", "name", "up")

    def __init__(self, up: Way | None, directory: Dir, name: str) -> None:
        self.up = up
        self.dir = directory
        self.name = name
        self.depth: int = up.depth + 1 if up is not None else 1


class Xattr:
    """What Txattrwalk and Txattrcreate turn a fid into: bytes to read, or bytes that a clunk commits."""

    __slots__ = ("data", "file", "flags", "name", "size", "writing")

    def __init__(self, file: File, name: str, data: bytes | bytearray, size: int, flags: int, writing: bool) -> None:
        self.file = file
        self.name = name
        self.data = data
        self.size = size
        self.flags = flags
        self.writing = writing


class Fid:
    """A file somebody points at; open when `handle` is set.

    `way` is None at the attach point.  `running` counts reads and writes that are under way, `parked` holds the scopes
    of those that a clunk cancels (stream I/O).  `lanes` are the stream's order: the last read's and write's gates.
    """

    __slots__ = (
        "call",
        "close_on_end",
        "dir_read",
        "ended",
        "file",
        "handle",
        "is_auth",
        "last_read",
        "last_write",
        "lock_owners",
        "omode",
        "parked",
        "root",
        "running",
        "way",
        "xattr",
    )

    def __init__(self, file: File, way: Way | None, call: Call, root: object) -> None:
        self.file = file
        self.way = way
        self.call = call
        self.root = root
        self.handle: Handle | None = None
        self.omode = 0
        self.running = 0
        self.parked: set[trio.CancelScope] | None = None
        self.last_read: Gate | None = None
        self.last_write: Gate | None = None
        self.close_on_end = False
        self.xattr: Xattr | None = None
        self.lock_owners: set[object] | None = None
        self.is_auth = False
        self.ended: Gate | None = None
        self.dir_read: object = None  # where a 9P2000 directory read stands; the stream edge's

    @property
    def is_open(self) -> bool:
        return self.handle is not None


class FidTable:
    """Fids by number.  A number is the client's; whether it is free, and how many there may be, is ours to say."""

    __slots__ = ("_fids", "_max", "_take")

    def __init__(self, fids_max: int, take: Callable[[int], None]) -> None:
        """`take(+1 or -1)` accounts the node's total, and raises Enofids when it is spent."""
        self._fids: dict[int, Fid] = {}
        self._max = fids_max
        self._take = take

    def __len__(self) -> int:
        return len(self._fids)

    def get(self, number: int) -> Fid:
        """Raises Ebadfid."""
        try:
            return self._fids[number]
        except KeyError:
            raise E.Ebadfid(str(number)) from None

    def check_free(self, number: int) -> None:
        """Raises Efidinuse, Ebadfid for NOFID, Enofids when the table is full."""
        if number in self._fids:
            raise E.Efidinuse(str(number))
        if number == NOFID:
            raise E.Ebadfid("NOFID")
        if len(self._fids) >= self._max:
            raise E.Enofids(f"{self._max} in this session")

    def put(self, number: int, fid: Fid) -> None:
        self.check_free(number)
        self._take(1)
        self._fids[number] = fid

    def replace(self, number: int, fid: Fid) -> None:
        """An in-place walk: the number now points at another file."""
        self._fids[number] = fid

    def pop(self, number: int) -> Fid:
        """The number is free from here on, whatever becomes of the fid.  Raises Ebadfid."""
        fid = self.get(number)
        del self._fids[number]
        self._take(-1)
        return fid

    def clear(self) -> list[Fid]:
        fids = list(self._fids.values())
        self._fids.clear()
        self._take(-len(fids))
        return fids
