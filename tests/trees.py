"""Trees that tests serve: ones whose files park, wait, fail or count what is done to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import trio

from ninep.answer import Answer
from ninep.file import Call, Dir, File, Handle
from ninep.proto import errors as E
from ninep.proto.types import Stat


class Parking(File):
    """A stream: every read parks until `say` gives it bytes.  `reads` counts the reads that began."""

    perm = 0o666

    def __init__(self) -> None:
        super().__init__()
        self.send, self.receive = trio.open_memory_channel[bytes](1000)
        self.reads = 0
        self.cancelled = 0
        self.closed = 0
        self.written: list[bytes] = []

    def say(self, data: bytes) -> None:
        self.send.send_nowait(data)

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        return ParkingHandle(self)


class ParkingHandle(Handle):
    stream = True

    def __init__(self, file: Parking) -> None:
        self.file = file

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        self.file.reads += 1
        try:
            return self.file.receive.receive_nowait()[:count]
        except trio.WouldBlock:
            return self._wait(count)

    async def _wait(self, count: int) -> bytes:
        try:
            return (await self.file.receive.receive())[:count]
        except trio.Cancelled:
            self.file.cancelled += 1
            raise

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        return self._write(bytes(data))

    async def _write(self, data: bytes) -> int:
        await trio.lowlevel.checkpoint()  # the scheduler shuffles: order must come from the Session
        self.file.written.append(data)
        return len(data)

    def close(self, call: Call) -> Answer[None]:
        self.file.closed += 1
        return None


class SlowDir(Dir):
    """Every walk of it waits for `gate`; what it finds is `child`."""

    def __init__(self, child: File | None = None) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.child = child or Dir()
        self.walks = 0

    def walk(self, call: Call, name: str) -> Answer[File]:
        self.walks += 1
        return self._walk(name)

    async def _walk(self, name: str) -> File:
        await self.gate.wait()
        if name == "missing":
            raise E.Enonexist(name)
        return self.child


class Broken(File):
    """An author's bug, at open: `fault` is raised, from a coroutine if `later`."""

    perm = 0o666

    def __init__(self, fault: BaseException | None = None, *, later: bool = False) -> None:
        super().__init__()
        self.fault = fault or ZeroDivisionError("the author's fault")
        self.later = later

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        if self.later:
            return self._open()
        raise self.fault

    async def _open(self) -> Handle:
        async with trio.open_nursery():
            await trio.lowlevel.checkpoint()
            raise self.fault


class Tree(Dir):
    """Fixed children by name."""

    def __init__(self, **children: File) -> None:
        super().__init__()
        self.children = children

    def walk(self, call: Call, name: str) -> Answer[File]:
        try:
            return self.children[name]
        except KeyError:
            raise E.Enonexist(name) from None

    def list(self, call: Call) -> Answer[Iterable[tuple[str, File]]]:
        return self.children.items()


class Nonsense(Dir):
    """A tree whose author got the types wrong: every operation named in `wrong` answers what stands there.

    `later`: it answers from a coroutine.
    """

    def __init__(self, later: bool = False, **wrong: object) -> None:
        super().__init__()
        self.wrong = wrong
        self.later = later

    def answer(self, operation: str, right: object) -> Any:
        value = self.wrong.get(operation, right)
        return self._later(value) if self.later else value

    async def _later(self, value: object) -> object:
        await trio.lowlevel.checkpoint()
        return value

    def walk(self, call: Call, name: str) -> Answer[File]:
        return cast(Answer[File], self.answer("walk", NonsenseFile(self)))


class NonsenseFile(File):
    perm = 0o666

    def __init__(self, tree: Nonsense) -> None:
        super().__init__()
        self.tree = tree

    def stat(self, call: Call) -> Answer[Stat]:
        return cast(Answer[Stat], self.tree.answer("stat", File.stat(self, call)))

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        return cast(Answer[Handle], self.tree.answer("open", NonsenseHandle(self.tree)))

    def readlink(self, call: Call) -> Answer[str]:
        return cast(Answer[str], self.tree.answer("readlink", "x"))


class NonsenseHandle(Handle):
    def __init__(self, tree: Nonsense) -> None:
        self.tree = tree

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        return cast(Answer[bytes], self.tree.answer("read", b"x"))

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        return cast(Answer[int], self.tree.answer("write", len(data)))
