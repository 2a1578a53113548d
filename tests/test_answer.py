"""An answer at once costs no task, a coroutine is continued in one, and nothing is ever called twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from raw9p import RawClient, serving
from trees import Tree

from ninep.answer import Answer, answering, drop, settle, then
from ninep.file import Call, File, Handle
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.types import Stat
from ninep.servers import ram

pytestmark = pytest.mark.feature("answer-inline")


class Started(trio.abc.Instrument):
    """Counts the tasks that begin while it is installed."""

    def __init__(self) -> None:
        self.count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.count += 1

    def __enter__(self) -> Started:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)


class Told(File):
    """A file that answers at once or from a coroutine, and counts how often it is asked."""

    perm = 0o666

    def __init__(self, later: bool) -> None:
        super().__init__()
        self.later = later
        self.asked: list[str] = []

    def stat(self, call: Call) -> Answer[Stat]:
        self.asked.append("stat")
        return self._later(File.stat(self, call)) if self.later else File.stat(self, call)

    async def _later(self, answer: Answer[Stat]) -> Stat:
        await trio.lowlevel.checkpoint()
        return await settle(answer)

    def open(self, call: Call, omode: int) -> Handle:
        self.asked.append("open")
        return ToldHandle(self)


class ToldHandle(Handle):
    def __init__(self, of: Told) -> None:
        self.of = of

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        self.of.asked.append("read")
        return self._read() if self.of.later else b"now"

    async def _read(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"later"

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        self.of.asked.append("write")
        return self._write(len(data)) if self.of.later else len(data)

    async def _write(self, count: int) -> int:
        return count


OPERATIONS: dict[str, Callable[[RawClient], Awaitable[object]]] = {
    "walk": lambda c: c.walk(0, 50, "a", "b"),
    "open": lambda c: c.open(50, 2),
    "write": lambda c: c.write(50, b"x" * 1000),
    "read": lambda c: c.read(50),
    "getattr": lambda c: c.rpc(l.Tgetattr(50, l.GETATTR_ALL)),
    "setattr": lambda c: c.rpc(l.Tsetattr(50, l.SETATTR_MODE, 0o600)),
    "statfs": lambda c: c.rpc(l.Tstatfs(50)),
    "fsync": lambda c: c.rpc(l.Tfsync(50, 0)),
    "create": lambda c: c.file(51, "made"),
    "mkdir": lambda c: c.rpc(l.Tmkdir(0, "dir", 0o755, 0)),
    "rename": lambda c: c.rpc(l.Trenameat(0, "dir", 0, "other")),
    "unlink": lambda c: c.rpc(l.Tunlinkat(0, "made", 0)),
    "clunk": lambda c: c.clunk(50),
    "flush": lambda c: c.rpc(m.Tflush(9)),
    "clone": lambda c: c.walk(0, 52),
}


async def test_no_operation_of_a_tree_that_answers_at_once_makes_a_task() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await c.rpc(l.Tmkdir(0, "a", 0o755, 0))
        await c.walk(0, 1, "a")
        await c.file(2, "b", b"content", root=1)
        made = {}
        for name, operation in OPERATIONS.items():
            with Started() as started:
                await operation(c)
            made[name] = started.count
        assert made == dict.fromkeys(OPERATIONS, 0)


@pytest.mark.parametrize("later", [False, True], ids=["now", "later"])
async def test_a_coroutine_costs_one_task_and_each_operation_is_called_once(later: bool) -> None:
    told = Told(later)
    async with serving(Tree(f=told)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1, 2)
        for ask, name in ((c.read(1), "read"), (c.write(1, b"xyz"), "write"), (c.rpc(l.Tgetattr(1, 1)), "stat")):
            told.asked.clear()
            with Started() as started:
                await ask
            assert told.asked == [name], "once, whichever way it answers"
            assert started.count == later


def test_then_and_answering_run_through_without_a_coroutine_while_answers_are_values() -> None:
    calls = []

    @answering
    def steps(n: int) -> object:  # type: ignore[misc]  # a generator that returns its sum
        total = 0
        for i in range(n):
            calls.append(i)
            total += yield i
        return total

    assert steps(4) == 6
    assert calls == [0, 1, 2, 3]
    assert then(3, lambda v: v + 1) == 4


async def test_an_answer_that_waits_in_the_middle_goes_on_where_it_was() -> None:
    calls = []

    async def slow(value: int) -> int:
        await trio.lowlevel.checkpoint()
        if value == 2:
            raise E.Eio("two")
        return value

    @answering
    def steps() -> object:  # type: ignore[misc]  # a generator
        calls.append("first")
        first = yield 10
        calls.append("second")
        second = yield slow(1)
        calls.append("third")
        try:
            yield slow(2)
        except E.Eio as e:
            calls.append(e.about)
        return first + second

    answer = steps()
    assert calls == ["first", "second"], "as far as it goes at once"
    assert await settle(answer) == 11
    assert calls == ["first", "second", "third", "two"], "and no step twice"
    assert await settle(then(slow(1), lambda v: slow(v + 2))) == 3
    drop(slow(1))  # and no warning that it was never awaited
