"""Streams: order, boundaries, loss, cancellation, polling and the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ninep import Dir
from ninep.answer import settle
from ninep.file import Call, Handle
from ninep.limits import Limits
from ninep.proto import errors as E
from ninep.proto.types import ONONBLOCK, OREAD, OWRITE
from ninep.synth import Stream, events
from ninep.testing import check_tree

pytestmark = pytest.mark.feature("synth-events")

CALL = Call()
POLLIN, POLLHUP = 0x41, 0x10


class Bell(Dir):
    """A bell."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__()
        if limits is not None:
            self.limits = limits
        self.rings = Stream(self.limits)
        self.steps: list[str] = []

    @events()
    def event(self) -> Stream:
        """rings"""
        return self.rings

    @events(name="count")
    async def counting(self, call: Call) -> AsyncGenerator[str, None]:
        try:
            for n in range(3):
                self.steps.append(f"make {n}")
                yield f"{n}"
                await trio.lowlevel.checkpoint()
        finally:
            self.steps.append("ended")

    @events()
    async def broken(self) -> AsyncGenerator[str, None]:
        yield "one"
        raise ZeroDivisionError

    @events()
    async def forever(self) -> AsyncGenerator[str, None]:
        try:
            await trio.Event().wait()
            yield ""
        finally:
            self.steps.append("cancelled")


def opened(bell: Bell, name: str = "event", omode: int = OREAD) -> Handle:
    handle = bell.walk(CALL, name).open(CALL, omode)  # type: ignore[union-attr]  # declared files are here at once
    assert isinstance(handle, Handle)
    return handle


async def read(handle: Handle, count: int = 999) -> bytes:
    return await settle(handle.read(CALL, 0, count))


async def test_a_read_waits_for_a_message_and_messages_keep_their_boundaries() -> None:
    bell = Bell()
    handle = opened(bell)
    got: list[bytes] = []

    async def reader() -> None:
        got.append(await read(handle))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await wait_all_tasks_blocked()
        assert len(got) == 0
        bell.rings.put("one")
        bell.rings.put(b"two, raw")
    assert got == [b"one\n"]
    assert handle.read(CALL, 0, 999) == b"two, raw"  # there already, so at once


async def test_a_short_read_leaves_the_rest_of_that_message_to_the_same_handle() -> None:
    bell = Bell()
    first, second = opened(bell), opened(bell)
    bell.rings.put("abc")
    bell.rings.put("d")
    assert [await read(first, 1) for _ in range(4)] == [b"a", b"b", b"c", b"\n"]
    assert await read(first) == b"d\n"
    assert await read(second, 2) == b"ab"
    assert await read(second) == b"c\n"


async def test_messages_before_the_open_are_not_seen_and_each_open_sees_all_after() -> None:
    bell = Bell()
    bell.rings.put("before")
    handles = [opened(bell) for _ in range(3)]
    bell.rings.put("after")
    assert [await read(handle) for handle in handles] == [b"after\n"] * 3
    assert bell.rings.readers == 3
    for handle in handles:
        handle.close(CALL)
    assert bell.rings.readers == 0


async def test_parked_reads_are_served_in_the_order_in_which_they_came() -> None:
    # trio starts tasks that become ready together in random order: without a line this fails within a few rounds.
    for _ in range(50):
        bell = Bell()
        handle = opened(bell)
        got: dict[int, bytes] = {}

        async def reader(at: int, handle: Handle = handle, got: dict[int, bytes] = got) -> None:
            got[at] = await read(handle)

        async with trio.open_nursery() as nursery:
            for at in range(5):
                nursery.start_soon(reader, at)
                await wait_all_tasks_blocked()
            for at in range(5):
                bell.rings.put(str(at))
            late = handle.read(CALL, 0, 99)  # does not overtake those that wait
            bell.rings.put("late")
            assert await settle(late) == b"late\n"
        assert got == {at: b"%d\n" % at for at in range(5)}


async def test_a_cancelled_read_consumes_nothing() -> None:
    bell = Bell()
    handle = opened(bell)
    for _ in range(20):
        outcome: list[bytes] = []
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def reader(outcome: list[bytes] = outcome) -> None:
                    outcome.append(await read(handle))

                nursery.start_soon(reader)
                await wait_all_tasks_blocked()
                # Both in one step: the message may win or the cancellation, but nothing may be lost.
                bell.rings.put("kept")
                scope.cancel()
        if not outcome:
            assert handle.read(CALL, 0, 99) == b"kept\n"
        else:
            assert outcome == [b"kept\n"]


async def test_a_cancelled_reader_leaves_its_place_to_the_next() -> None:
    bell = Bell()
    handle = opened(bell)
    got: list[bytes] = []

    async def reader() -> None:
        got.append(await read(handle))

    first = trio.CancelScope()

    async def doomed() -> None:
        with first:
            await reader()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(doomed)
        await wait_all_tasks_blocked()
        nursery.start_soon(reader)
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        bell.rings.put("x")
    assert got == [b"x\n"]


async def test_a_slow_reader_is_told_how_much_it_lost_where_it_was() -> None:
    bell = Bell(Limits(stream_queue_max=3))
    slow, fast = opened(bell), opened(bell)
    for n in range(10):
        bell.rings.put(str(n))
        assert await read(fast) == b"%d\n" % n
    assert [await read(slow) for _ in range(4)] == [b"lost 7\n", b"7\n", b"8\n", b"9\n"]


async def test_without_blocking_an_empty_stream_says_so() -> None:
    bell = Bell()
    handle = opened(bell, omode=OREAD | ONONBLOCK)
    with pytest.raises(E.Ewouldblock):
        handle.read(CALL, 0, 9)
    bell.rings.put("x")
    assert handle.read(CALL, 0, 9) == b"x\n"


async def test_poll_says_readable_now_or_calls_once_when_it_may_be() -> None:
    bell = Bell()
    handle = opened(bell)
    calls: list[str] = []

    def notify() -> None:
        calls.append("ready")

    assert handle.ready(CALL, POLLIN, None) == 0
    assert handle.ready(CALL, POLLIN, notify) == 0
    assert handle.ready(CALL, POLLIN, notify) == 0
    bell.rings.put("a")
    bell.rings.put("b")
    assert calls == ["ready"]
    assert handle.ready(CALL, POLLIN, notify) == POLLIN
    await read(handle)
    await read(handle)
    assert handle.ready(CALL, POLLIN, None) == 0
    bell.rings.close()
    assert handle.ready(CALL, POLLIN, None) == POLLIN | POLLHUP


async def test_a_closed_stream_is_read_to_its_end_and_then_is_at_end_of_file() -> None:
    bell = Bell()
    handle, waiting = opened(bell), opened(bell)
    bell.rings.put("last")
    assert await read(waiting) == b"last\n"
    async with trio.open_nursery() as nursery:

        async def reader() -> None:
            assert await read(waiting) == b""

        nursery.start_soon(reader)
        await wait_all_tasks_blocked()
        bell.rings.close()
    assert [await read(handle), await read(handle)] == [b"last\n", b""]
    assert await read(opened(bell)) == b""


async def test_a_stream_has_no_size_is_not_cached_and_is_not_written() -> None:
    bell = Bell()
    handle = opened(bell)
    assert handle.stream
    assert handle.direct
    assert bell.walk(CALL, "event").stat(CALL).size == 0  # type: ignore[union-attr]  # as above
    with pytest.raises(E.Eperm):
        opened(bell, omode=OWRITE)
    assert handle.read(CALL, 0, 0) == b""


# -- generators


async def test_a_generator_runs_only_as_far_as_it_is_read() -> None:
    bell = Bell()
    handle = opened(bell, "count")
    await wait_all_tasks_blocked()
    assert bell.steps == []
    assert await read(handle) == b"0\n"
    await wait_all_tasks_blocked()
    assert bell.steps == ["make 0"]
    assert [await read(handle) for _ in range(3)] == [b"1\n", b"2\n", b""]
    assert bell.steps == ["make 0", "make 1", "make 2", "ended"]
    await settle(handle.close(CALL))


async def test_two_parked_reads_get_two_messages_of_a_generator() -> None:
    handle = opened(Bell(), "count")
    got: list[bytes] = []

    async def reader() -> None:
        got.append(await read(handle))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await wait_all_tasks_blocked()
        nursery.start_soon(reader)
    assert sorted(got) == [b"0\n", b"1\n"]
    await settle(handle.close(CALL))


async def test_a_cancelled_read_does_not_end_the_generator() -> None:
    bell = Bell()
    handle = opened(bell, "forever")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, handle)
            await wait_all_tasks_blocked()
            scope.cancel()
    await wait_all_tasks_blocked()
    assert bell.steps == []
    with trio.fail_after(5):
        await settle(handle.close(CALL))
    assert bell.steps == ["cancelled"]


async def test_a_generators_exception_reaches_the_reader_once_after_its_messages() -> None:
    handle = opened(Bell(), "broken")
    assert await read(handle) == b"one\n"
    with pytest.raises(ZeroDivisionError):
        await read(handle)
    assert await read(handle) == b""
    await settle(handle.close(CALL))


async def test_a_generator_that_was_never_read_needs_no_task() -> None:
    bell = Bell()
    handle = opened(bell, "count")
    assert handle.close(CALL) is None
    assert bell.steps == []


async def test_streams_keep_the_promises_of_the_file_contract() -> None:
    class Sound(Bell):
        broken = None  # type: ignore[assignment]  # takes away the file that is meant to fail

    await check_tree(Sound, blocks=True)
