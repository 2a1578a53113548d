"""What all synthetic files share: an owner directory, an honest stat, frozen content, and leases that count opens.

Knows nothing of decorators, commands or streams; ninep.synth puts the parts together.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CoroutineType
from typing import TypeVar

from . import file
from .answer import Answer
from .env import REAL, Env
from .file import Call, File, Handle, ListHandle, permit, permit_change
from .limits import DEFAULT, Limits
from .proto import errors as E
from .proto.types import ORDWR, OWRITE, Change, Qid, Stat

C = TypeVar("C", bound=File)


def to_bytes(content: str | bytes | bytearray) -> bytes:
    """Content as it is read: UTF-8, with surrogate escapes back as the bytes they stand for."""
    return content.encode("utf-8", "surrogateescape") if isinstance(content, str) else bytes(content)


class Lease:
    """Counts the handles below a directory, and tells when the last one is closed."""

    __slots__ = ("count", "idle")

    def __init__(self, idle: Callable[[], None]) -> None:
        self.count = 0
        self.idle = idle

    def take(self) -> None:
        self.count += 1

    def drop(self) -> None:
        self.count -= 1
        if self.count == 0:
            self.idle()


def check_name(name: str) -> None:
    """ValueError unless this can be the name of a file."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"not a file name: {name!r}")


class Owner(file.Dir):
    """A directory that owns synthetic files: their bounds and clock, the children added to it, and its lease."""

    limits: Limits = DEFAULT
    env: Env = REAL
    persist: bool = False  # of a clone's directory: it outlives its last handle
    lease: Lease | None = None
    is_removed: bool = False  # its name is gone: nothing can be opened in it any more

    def __init__(self) -> None:
        super().__init__()
        self.mtime_ns = self.env.time_ns()
        self._children: dict[str, File] = {}
        self._watchers: list[Callable[[str | None], None]] = []

    def _own(self) -> dict[str, File]:
        """The children that the class declares."""
        return {}

    def add_child(self, name: str, child: C) -> C:
        """Put a file under a name, for good or until drop_child.  ValueError if the name is taken or no name."""
        check_name(name)
        if self.has_child(name):
            raise ValueError(f"name taken: {name}")
        self._children[name] = child
        if self.lease is not None and isinstance(child, Owner):
            child.take_lease(self.lease)
        self.changed(name)
        return child

    def has_child(self, name: str) -> bool:
        """Whether the name is added or declared."""
        return name in self._children or name in self._own()

    def drop_child(self, name: str) -> None:
        """Take an added child away; what is open stays open, nothing more can be opened in it.  KeyError if absent."""
        child = self._children.pop(name)
        if isinstance(child, Owner):
            child.mark_removed()
        self.changed(name)

    def mark_removed(self) -> None:
        """The name of this directory is gone: nothing below it can be found or opened any more."""
        self.is_removed = True
        for child in self._children.values():
            if isinstance(child, Owner):
                child.mark_removed()

    def take_lease(self, lease: Lease) -> None:
        """Count every handle opened below this directory from now on."""
        self.lease = lease
        for child in self._children.values():
            if isinstance(child, Owner) and child.lease is None:
                child.take_lease(lease)

    def changed(self, name: str) -> None:
        """A name came or went: readers of the directory and those who watch it are told."""
        self.qid = Qid(self.qid.type, self.qid.vers + 1 & 0xFFFFFFFF, self.qid.path)
        self.mtime_ns = self.env.time_ns()
        for tell in tuple(self._watchers):
            tell(name)

    def gone(self) -> None:
        """Override: the last handle of a clone's directory was closed, and its name is taken away."""

    def _st_mode(self) -> int:
        """The st_mode of this directory."""
        return self.kind | self.perm

    def stat(self, call: Call) -> Answer[Stat]:
        at = self.mtime_ns
        mode = self._st_mode()
        return Stat(self.qid, mode, uid=self.uid, gid=self.gid, mtime_ns=at, atime_ns=at, ctime_ns=at, flags=self.flags)

    def subscribe(self, changed: Callable[[str | None], None]) -> Callable[[], None] | None:
        return watch(self._watchers, changed)


class SynthFile(File):
    """A file that its directory owns.  stat() may render; access checks never do."""

    def __init__(self, owner: Owner, perm: int, doc: str = "") -> None:
        super().__init__()
        self.owner = owner
        self.perm = perm
        self.doc = doc
        self.mtime_ns = owner.env.time_ns()
        self._watchers: list[Callable[[str | None], None]] = []

    def stat_of_size(self, size: int) -> Stat:
        """The stat with this size, without asking what the content is."""
        at = self.mtime_ns
        owner = self.owner
        return Stat(
            self.qid,
            self.kind | self.perm,
            size=size,
            uid=owner.uid,
            gid=owner.gid,
            mtime_ns=at,
            atime_ns=at,
            ctime_ns=at,
            blocks=-(-size // 512),
            flags=self.flags,
        )

    def stat(self, call: Call) -> Answer[Stat]:
        return self.stat_of_size(0)

    def access(self, call: Call, want: int) -> Answer[None]:
        permit(call.principal, self.stat_of_size(0), want)
        return None

    def may_wstat(self, call: Call, change: Change) -> Answer[None]:
        permit_change(call.principal, self.stat_of_size(0), change)
        return None

    def subscribe(self, changed: Callable[[str | None], None]) -> Callable[[], None] | None:
        return watch(self._watchers, changed)

    def touch(self) -> None:
        """The content changed: the time moves and subscribers hear of it."""
        self.mtime_ns = self.owner.env.time_ns()
        for changed in tuple(self._watchers):
            changed(None)

    def check_alive(self) -> None:
        if self.owner.is_removed:
            raise E.Ehungup


def watch(watchers: list[Callable[[str | None], None]], changed: Callable[[str | None], None]) -> Callable[[], None]:
    """Add a subscriber; what takes it away again, once or more often."""
    watchers.append(changed)

    def end() -> None:
        if changed in watchers:
            watchers.remove(changed)

    return end


class SynthHandle(Handle):
    """One open of a synthetic file.  Subclasses override `closing`; the lease is given back whatever it does."""

    def __init__(self, owner: Owner) -> None:
        self._lease = owner.lease
        if self._lease is not None:
            self._lease.take()

    def closing(self, call: Call) -> Answer[None]:
        """What close does, before the lease is given back."""
        return None

    def close(self, call: Call) -> Answer[None]:
        try:
            answer = self.closing(call)
        except BaseException:
            self._give_back()
            raise
        if type(answer) is CoroutineType:
            return self._close_slowly(answer)
        self._give_back()
        return None

    async def _close_slowly(self, answer: Answer[None]) -> None:
        try:
            if type(answer) is CoroutineType:
                await answer
        finally:
            self._give_back()

    def _give_back(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.drop()


class DirHandle(ListHandle, SynthHandle):
    """One open of a synthetic directory: it counts, as every handle below a clone's directory does."""

    def __init__(self, owner: Owner) -> None:
        ListHandle.__init__(self, owner)
        SynthHandle.__init__(self, owner)


class BytesHandle(SynthHandle):
    """One open for reading of content that does not change any more."""

    def __init__(self, owner: Owner, data: bytes) -> None:
        super().__init__(owner)
        self._data = data

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        return self._data[offset : offset + count]


class Frozen(File):
    """One rendering of a state file: its size is its content's, for ever.  Writes go to the file that it shows."""

    def __init__(self, origin: SynthFile, data: bytes) -> None:
        # Not File.__init__: a snapshot is the same file to its readers, so it has the origin's qid.
        self.qid = origin.qid
        self.origin = origin
        self.data = data
        self.perm = origin.perm
        self._stat = origin.stat_of_size(len(data))

    def stat(self, call: Call) -> Answer[Stat]:
        return self._stat

    def access(self, call: Call, want: int) -> Answer[None]:
        return self.origin.access(call, want)

    def may_wstat(self, call: Call, change: Change) -> Answer[None]:
        return self.origin.may_wstat(call, change)

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        return self.origin.wstat(call, change)

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        if omode & 3 in (OWRITE, ORDWR):
            return self.origin.open(call, omode)
        self.origin.check_alive()
        return BytesHandle(self.origin.owner, self.data)

    def snapshot(self, call: Call) -> Answer[File]:
        return self.origin.snapshot(call)

    def subscribe(self, changed: Callable[[str | None], None]) -> Callable[[], None] | None:
        return self.origin.subscribe(changed)


def check_called(first: object, word: str) -> None:
    """A decorator used without its parentheses would silently make no file: TypeError at the class, not at a reader."""
    if callable(first):
        raise TypeError(f"write @{word}(), with parentheses")
