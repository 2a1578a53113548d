"""What every check of a tree is given: the tree, who asks, and words for failures.  Knows no check.

Not a public name of its own: ninep.testing is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import CoroutineType
from typing import Any, NamedTuple, TypeVar, cast

from .answer import Answer, settle
from .file import Call, Dir, File, Handle
from .principal import Principal, local_principal
from .proto import errors as E
from .proto.types import ORDWR, OREAD, Entry, Stat

T = TypeVar("T")

STRANGER = Call(Principal("stranger", 54321, 54321, frozenset(), proof="local"))
FILES_MAX = 200  # looked at in one tree
DEPTH_MAX = 4
BYTES_MAX = 4 << 20  # of one file: what is larger is read in part


class Wrong(AssertionError):
    """A tree broke a promise; the text says which, at what file."""


class Found(NamedTuple):
    """A file of the tree and how it was reached."""

    path: str
    file: File
    stat: Stat


class Tree:
    """A fresh tree and what its author declared about it."""

    def __init__(self, root: Dir, call: Call, *, writable: bool, creates: bool, blocks: bool, judges: bool) -> None:
        self.root = root
        self.call = call
        self.writable = writable
        self.creates = creates
        self.blocks = blocks
        self.judges = judges

    async def walk(self, directory: Dir, name: str) -> File:
        return await settle(directory.walk(self.call, name))

    async def stat(self, file: File) -> Stat:
        return await settle(file.stat(self.call))

    async def entries(self, directory: Dir, cookie: int = 0, count: int = 100) -> list[Entry]:
        """All entries after a cookie, from a handle of its own, at most FILES_MAX * 5."""
        handle = await settle(directory.open(self.call, OREAD))
        try:
            return await self.entries_of(handle, cookie, count)
        finally:
            await settle(handle.close(self.call))

    async def entries_of(self, handle: Handle, cookie: int = 0, count: int = 100) -> list[Entry]:
        found: list[Entry] = []
        while len(found) < FILES_MAX * 5:
            batch = await settle(handle.entries(self.call, cookie, count))
            if not batch:
                break
            found += batch
            cookie = batch[-1].cookie
        return found

    async def files(self) -> list[Found]:
        """The root and what lies below it, breadth first, within FILES_MAX and DEPTH_MAX."""
        found = [Found("/", self.root, await self.stat(self.root))]
        level: list[tuple[str, Dir]] = [("", self.root)]
        for _ in range(DEPTH_MAX):
            below: list[tuple[str, Dir]] = []
            for path, directory in level:
                for entry in await self.listing(directory):
                    if len(found) >= FILES_MAX:
                        return found
                    file = await self.walk(directory, entry.name)
                    found.append(Found(f"{path}/{entry.name}", file, await self.stat(file)))
                    if isinstance(file, Dir):
                        below.append((found[-1].path, file))
            level = below
        return found

    async def listing(self, directory: Dir) -> list[Entry]:
        """As entries; nothing where the tree does not let anybody list."""
        try:
            return await self.entries(directory)
        except (E.Eperm, E.Enotallowed):
            return []

    async def dirs(self) -> list[tuple[str, Dir]]:
        return [(found.path, found.file) for found in await self.files() if isinstance(found.file, Dir)]

    async def readable(self) -> list[tuple[Found, Handle]]:
        """Each file that opens for reading and is neither a directory nor a stream, and that handle.

        The snapshot is taken first, as an edge does: stat and content belong together from there on.
        """
        opened = []
        for found in await self.files():
            if isinstance(found.file, Dir) or found.stat.st_mode & 0o170000 != 0o100000:
                continue
            file = await settle(found.file.snapshot(self.call))
            try:
                handle = await settle(file.open(self.call, OREAD))
            except E.FileError:
                continue
            if handle.stream:
                await settle(handle.close(self.call))
                continue
            opened.append((Found(found.path, file, await self.stat(file)), handle))
        return opened

    async def streams(self) -> list[tuple[Found, Handle]]:
        """Each stream that opens for reading."""
        opened = []
        for found in await self.files():
            if isinstance(found.file, Dir):
                continue
            try:
                handle = await settle(found.file.open(self.call, OREAD))
            except E.FileError:
                continue
            if handle.stream:
                opened.append((found, handle))
            else:
                await settle(handle.close(self.call))
        return opened

    async def whole(self, handle: Handle, piece: int = 65_536, limit: int = BYTES_MAX) -> bytes:
        """The content in pieces of at most `piece`, until b""."""
        data = bytearray()
        while len(data) < limit:
            part = await settle(handle.read(self.call, len(data), piece))
            require(type(part) is bytes, f"read answers {type(part).__name__}, not bytes")
            require(len(part) <= piece, f"read of {piece} bytes answered {len(part)}")
            if not part:
                break
            data += part
        return bytes(data)

    async def make_file(self, name: str, data: bytes = b"", directory: Dir | None = None) -> tuple[File, Handle]:
        """A new file with this content, open for both."""
        where = self.root if directory is None else directory
        file, handle = await settle(where.create(self.call, name, 0o644, ORDWR))
        done = 0
        while done < len(data):
            n = await settle(handle.write(self.call, done, data[done:]))
            require(n > 0, "write took nothing and did not refuse")
            done += n
        return file, handle

    async def populate(self) -> None:
        """Something to look at, for the checks that only look."""
        for name, data in (("kit-empty", b""), ("kit-text", b"some text\n" * 50), ("kit-large", bytes(200_000))):
            await self.close((await self.make_file(name, data))[1])
        with optional():
            directory = await settle(self.root.mkdir(self.call, "kit-dir", 0o700))
            assert isinstance(directory, Dir)
            for at in range(30):
                await self.close((await self.make_file(f"file{at}", b"x", directory))[1])
        with optional():
            await settle(self.root.symlink(self.call, "kit-symlink", "kit-text"))

    async def close(self, *handles: Handle) -> None:
        for handle in handles:
            await settle(handle.close(self.call))


Check = Callable[[Tree], Awaitable[None]]


class Row(NamedTuple):
    name: str
    run: Check
    needs: str  # "", "creates", "writable", "blocks" or "judges": what the tree must have declared


ROWS: list[Row] = []


def check(name: str, needs: str = "") -> Callable[[Check], Check]:
    """Enter a check in the kit's table."""

    def enter(run: Check) -> Check:
        ROWS.append(Row(name, run, needs))
        return run

    return enter


def require(holds: object, otherwise: str) -> None:
    """Raise Wrong with the sentence unless the condition holds."""
    if not holds:
        raise Wrong(otherwise)


async def refused(
    what: str, rows: tuple[type[E.FileError], ...], operation: Callable[..., Answer[Any]], *args: object
) -> None:
    """Require that an operation is refused with one of the rows."""
    names = ", ".join(row.__name__ for row in rows)
    try:
        answer = await settle(operation(*args))
    except rows:
        return
    except Exception as e:
        raise Wrong(f"{what}: answered {e!r}, not {names}") from e
    raise Wrong(f"{what}: was done ({answer!r:.60}), and should answer {names}")


async def harmless(what: str, operation: Callable[..., Answer[Any]], *args: object) -> None:
    """Require that an operation gives a value or a FileError, and nothing else escapes."""
    try:
        await settle(operation(*args))
    except E.FileError:
        return
    except Exception as e:
        raise Wrong(f"{what}: {type(e).__name__} escaped ({e}); only FileError may") from e


@contextmanager
def optional() -> Iterator[None]:
    """What a tree may not offer: its refusal ends the block and is no failure."""
    try:
        yield
    except (E.Eunsupported, E.Ehost, E.Enotallowed, E.Eperm):
        return


def superuser() -> Call:
    return Call(local_principal(0, 0, frozenset(), "root", "local"))


async def awaited(made: T | Coroutine[Any, Any, T]) -> T:
    return await made if isinstance(made, CoroutineType) else cast(T, made)
