"""protocol.md D5: byte-range locks in 9P2000.L."""

from __future__ import annotations

import random
import time

import pytest
from asks import put, refuses
from raw9p import RawClient, Serving, serving

from ninep.limits import Limits
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto.types import F_RDLCK, F_UNLCK, F_WRLCK, OFFSET_MAX
from ninep.servers import ram

HELD, BLOCKED = l.LOCK_SUCCESS, l.LOCK_BLOCKED


async def client(server: Serving) -> RawClient:
    """A client with fid 1 open on the file f, to read and write."""
    c = await server.client()
    if not (await c.rpc(l.Tgetattr(0, 1))).qid.vers > 1:
        await put(c, "f", b"content")
    await c.walk(0, 1, "f")
    await c.open(1, 2)
    return c


async def lock(
    c: RawClient,
    kind: int,
    start: int = 0,
    length: int = 0,
    who: str = "a",
    pid: int = 1,
    *,
    flags: int = 0,
    fid: int = 1,
) -> int:
    return int((await c.rpc(l.Tlock(fid, kind, flags, start, length, pid, who))).status)


async def inspect(
    c: RawClient, kind: int, start: int = 0, length: int = 0, who: str = "b", pid: int = 9
) -> tuple[int, ...]:
    """Type, start, length and process of what is in the way."""
    reply = await c.rpc(l.Tgetlock(1, kind, start, length, pid, who))
    return reply.type, reply.start, reply.length, reply.proc_id


RANGES = [(0, 10), (5, 10), (10, 10), (0, 0), (9, 1), (15, 0), (3, 2)]


def last(start: int, length: int) -> int:
    return OFFSET_MAX if length == 0 else start + length - 1


@pytest.mark.conformance(119)
@pytest.mark.parametrize("first", [F_RDLCK, F_WRLCK])
@pytest.mark.parametrize("second", [F_RDLCK, F_WRLCK])
@pytest.mark.parametrize("other", [("a", 2), ("b", 1), ("a", 1)])
async def test_ranges_conflict_where_they_overlap_between_owners(
    first: int, second: int, other: tuple[str, int]
) -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        for start, length in RANGES:
            for start2, length2 in RANGES:
                assert await lock(c, first, start, length) == HELD
                overlap = start <= last(start2, length2) and start2 <= last(start, length)
                clash = overlap and other != ("a", 1) and F_WRLCK in (first, second)
                got = await lock(c, second, start2, length2, *other)
                assert got == (BLOCKED if clash else HELD), (start, length, start2, length2)
                for owner in (("a", 1), other):
                    assert await lock(c, F_UNLCK, 0, 0, *owner) == HELD


@pytest.mark.conformance(119)
async def test_two_connections_are_two_owners_whatever_they_call_themselves() -> None:
    async with serving(ram.tree()) as server:
        c, other = await client(server), await client(server)
        assert await lock(c, F_WRLCK, 0, 10) == HELD
        assert await lock(other, F_WRLCK, 0, 10) == BLOCKED
        assert await lock(other, F_UNLCK) == HELD
        assert await lock(other, F_WRLCK, 0, 10) == BLOCKED, "nobody unlocks for another"


@pytest.mark.conformance(119)
async def test_an_owners_ranges_split_join_and_change_their_kind() -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        await lock(c, F_WRLCK, 0, 100)
        await lock(c, F_UNLCK, 40, 20)
        assert await inspect(c, F_WRLCK, 0, 0) == (F_WRLCK, 0, 40, 1)
        assert await inspect(c, F_WRLCK, 40, 20) == (F_UNLCK, 40, 20, 9)
        assert await inspect(c, F_WRLCK, 50, 0) == (F_WRLCK, 60, 40, 1)
        await lock(c, F_RDLCK, 0, 40)
        assert await inspect(c, F_RDLCK, 0, 50) == (F_UNLCK, 0, 50, 9)
        assert await inspect(c, F_WRLCK, 0, 50) == (F_RDLCK, 0, 40, 1)
        await lock(c, F_RDLCK, 40, 0)
        assert await inspect(c, F_WRLCK, 7, 1) == (F_RDLCK, 0, 0, 1), "joined, and to the end of the file"
        assert await lock(c, F_RDLCK, 0, 5, "b", 2) == HELD
        assert await lock(c, F_WRLCK, 0, 5) == BLOCKED, "an upgrade waits for other readers"
        await lock(c, F_UNLCK, 0, 0, "b", 2)
        assert await lock(c, F_WRLCK, 0, 5) == HELD


@pytest.mark.conformance(120)
async def test_a_lock_that_would_wait_is_told_so_at_once() -> None:
    async with serving(ram.tree()) as server:
        c, other = await client(server), await client(server)
        await lock(c, F_WRLCK)
        start = time.monotonic()
        assert await lock(other, F_WRLCK, flags=l.LOCK_BLOCK) == BLOCKED
        assert time.monotonic() - start < 4 * 0.05
        assert server.node.live["parked"] == 0
        await lock(c, F_UNLCK)
        assert await lock(other, F_WRLCK, flags=l.LOCK_BLOCK) == HELD
        assert await lock(other, F_WRLCK, flags=l.LOCK_RECLAIM) == HELD
        for kind, flags in ((3, 0), (255, 0), (F_WRLCK, 4), (F_WRLCK, 1 << 31)):
            with refuses(E.Ebadarg):
                await lock(other, kind, flags=flags)


@pytest.mark.conformance(121)
async def test_getlock_tells_who_is_in_the_way_or_that_nobody_is() -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        for kind in (F_RDLCK, F_WRLCK, F_UNLCK):
            assert await inspect(c, kind, 5, 10) == (F_UNLCK, 5, 10, 9)
        await lock(c, F_RDLCK, 7, 3, "holder", 77)
        reply = await c.rpc(l.Tgetlock(1, F_UNLCK, 0, 0, 9, "me"))  # what Linux sends
        assert reply == l.Rgetlock(F_RDLCK, 7, 3, 77, "holder")
        assert await inspect(c, F_RDLCK) == (F_UNLCK, 0, 0, 9)
        assert await inspect(c, F_WRLCK, 0, 0, "holder", 77) == (F_UNLCK, 0, 0, 77), "one's own are not in the way"
        with refuses(E.Ebadarg):
            await inspect(c, 3)


@pytest.mark.conformance(122)
@pytest.mark.sec(59)
@pytest.mark.parametrize("how", ["clunk", "version", "hang-up", "remove"])
async def test_locks_end_with_their_fid_their_session_and_their_connection(how: str) -> None:
    async with serving(ram.tree()) as server:
        c, other = await client(server), await client(server)
        await lock(other, F_WRLCK)
        assert await lock(c, F_WRLCK) == BLOCKED
        if how == "clunk":
            await other.clunk(1)
        elif how == "version":
            await other.version()
        elif how == "remove":
            from ninep.proto import messages as m

            await other.rpc(m.Tremove(1))
        else:
            other.close()
            await c.quiet()
        assert await lock(c, F_WRLCK) == HELD


@pytest.mark.conformance(119)
async def test_a_lock_needs_a_file_open_the_same_way() -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        await c.walk(0, 2, "f")
        with refuses(E.Enotopen):
            await lock(c, F_RDLCK, fid=2)
        await c.open(2, 0)
        with refuses(E.Enotopen):
            await lock(c, F_WRLCK, fid=2)
        assert await lock(c, F_RDLCK, fid=2) == HELD


@pytest.mark.hostile(59)
async def test_lock_bombs_meet_a_limit_and_leave_others_their_locks() -> None:
    limits = Limits(locks_max=100)
    async with serving(ram.tree(limits), limits=limits) as server:
        c, other = await client(server), await client(server)
        taken = 0
        with refuses(E.Enolck):
            for i in range(1000):
                taken += await lock(c, F_WRLCK, 2 * i, 1, f"owner {i}") == HELD
        assert taken == 100
        assert await lock(other, F_WRLCK, 1, 1) == HELD
        for start, length in ((1 << 63, 1), (OFFSET_MAX, 2), ((1 << 64) - 1, (1 << 64) - 1), (1, (1 << 64) - 1)):
            with refuses(E.Ebadarg):
                await lock(other, F_WRLCK, start, length)
            with refuses(E.Ebadarg):
                await inspect(other, F_WRLCK, start, length)
        with refuses(E.Ebadarg):
            await lock(other, F_RDLCK, 5000, 1, "x" * 60_000)
        await c.clunk(1)
        await c.walk(0, 1, "f")
        await c.open(1, 2)
        assert await lock(c, F_WRLCK, 500, 0) == HELD


@pytest.mark.hostile(60)
async def test_patterns_that_would_deadlock_never_park() -> None:
    rng = random.Random(60)
    async with serving(ram.tree()) as server:
        clients = [await client(server) for _ in range(4)]
        for _ in range(300):
            c = rng.choice(clients)
            kind = rng.choice((F_RDLCK, F_WRLCK, F_WRLCK, F_UNLCK))
            assert await lock(c, kind, rng.randrange(4), 1, flags=l.LOCK_BLOCK) in (HELD, BLOCKED)
            assert server.node.live["parked"] == server.node.live["requests"] == 0
