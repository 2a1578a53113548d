"""protocol.md 3.3 and 4.2: tags and flush."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest
import trio.testing
from raw9p import RawClient, Refused, serving
from trees import Parking, SlowDir, Tree

from ninep.limits import Limits
from ninep.proto import dotl as l
from ninep.proto import messages as m
from ninep.requests import Requests
from ninep.servers import ram


async def parked(c: RawClient, parking: Parking, *tags: int) -> None:
    """Fid 1 open on the stream, and a read parked under each tag."""
    await c.walk(0, 1, "f")
    await c.open(1)
    for tag in tags:
        c.send(tag, m.Tread(1, 0, 10))
    await c.quiet()


@pytest.mark.conformance(27)
@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_a_blocked_read_does_not_delay_a_stat(dialect: str) -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client(dialect)
        await parked(c, parking, 1)
        await c.rpc(l.Tgetattr(1, 1) if dialect == "9P2000.L" else m.Tstat(1))
        parking.say(b"now")
        assert bytes((await c.recv_tag(1)).data) == b"now"  # type: ignore[attr-defined]  # an Rread


@pytest.mark.conformance(28)
@pytest.mark.hostile(19, 23)
@pytest.mark.sec(53)
async def test_a_duplicate_live_tag_is_refused_and_the_first_is_unaffected() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await parked(c, parking, 1)
        c.send(1, l.Tgetattr(0, 1))
        tag, refused = await c.recv()
        assert (tag, type(refused)) == (1, l.Rlerror)
        c.send(2, m.Tflush(7))  # a tag that is flushing is live too
        c.send(3, m.Tread(1, 0, 10))
        await c.recv_tag(2)
        parking.say(b"first")
        assert bytes((await c.recv_tag(1)).data) == b"first"  # type: ignore[attr-defined]  # an Rread
        c.send(4, m.Tflush(3))
        await c.recv_tag(4)


@pytest.mark.conformance(29)
@pytest.mark.slow
async def test_all_65535_tags_work_one_after_the_other() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        for first in range(0, 0xFFFF, 500):
            tags = range(first, min(first + 500, 0xFFFF))
            c.send_all(*((tag, l.Tgetattr(0, 1)) for tag in tags))
            assert [(await c.recv())[0] for _ in tags] == list(tags)


@pytest.mark.conformance(29)
@pytest.mark.hostile(20)
@pytest.mark.sec(53)
@pytest.mark.parametrize("tag", [0, 1, 0xFFFE, 0xFFFF])
async def test_the_edges_of_the_tag_space_are_ordinary_tags(tag: int) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        assert (await c.rpc(l.Tgetattr(0, 1), tag)).valid == 1


@pytest.mark.conformance(30)
async def test_a_flush_of_a_blocked_read_is_answered_alone_and_soon() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await parked(c, parking, 1)
        start = time.monotonic()
        c.send(2, m.Tflush(1))
        assert await c.recv() == (2, m.Rflush())
        assert time.monotonic() - start < 4 * 0.1
        parking.say(b"nobody asked")
        await c.quiet()


@pytest.mark.conformance(31)
@pytest.mark.sec(54)
async def test_a_flush_of_an_unknown_an_own_or_a_finished_tag_is_answered_at_once() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await c.rpc(l.Tgetattr(0, 1), 9)
        for oldtag in (1234, 5, 9):
            assert await c.rpc(m.Tflush(oldtag), 5) == m.Rflush()


@pytest.mark.conformance(32)
async def test_a_flush_never_yields_an_error() -> None:
    parking = Parking()
    rng = random.Random(9)
    async with serving(Tree(f=parking), limits=Limits(requests_max=8)) as server:
        c = await server.client()
        await parked(c, parking)
        for _ in range(10_000):
            reads = [rng.randrange(20) for _ in range(rng.randrange(3))]
            tag = rng.randrange(20)
            c.send_all(*((t, m.Tread(1, 0, 1)) for t in reads), (tag, m.Tflush(rng.randrange(25))))
            while True:
                got, reply = await c.recv()
                if isinstance(reply, m.Rflush):
                    assert got == tag
                    break
                assert got in range(20), "only the reads may be refused"
            if rng.random() < 0.2:
                for t in range(20):
                    c.send(100 + t, m.Tflush(t))
                for t in range(20):
                    await c.recv_tag(100 + t)
                c.got.clear()


@pytest.mark.conformance(34, 35)
async def test_a_flushed_walk_leaves_newfid_free() -> None:
    slow = SlowDir()
    async with serving(Tree(slow=slow, f=Parking())) as server:
        c = await server.client()
        c.send(1, m.Twalk(0, 5, ("slow", "x")))
        await c.quiet()
        c.send(2, m.Tflush(1))
        assert await c.recv() == (2, m.Rflush())
        slow.gate.set()
        assert len(await c.walk(0, 5, "f")) == 1


@pytest.mark.conformance(35)
async def test_a_flushed_create_write_or_remove_has_no_effect_or_was_answered_before() -> None:
    tree = ram.tree()
    async with serving(tree) as server:
        c = await server.client()
        await c.file(1, "f", b"old")
        c.send_all((1, m.Twrite(1, 0, b"new")), (2, m.Tflush(1)), (3, m.Tclunk(1)), (4, m.Tflush(3)))
        assert [(await c.recv())[0] for _ in range(4)] == [1, 2, 3, 4]
        await c.walk(0, 2)
        c.send_all((5, l.Tlcreate(2, "made", 0o102, 0o644, 0)), (6, m.Tflush(5)), (7, m.Tremove(2)), (8, m.Tflush(7)))
        assert [(await c.recv())[0] for _ in range(4)] == [5, 6, 7, 8]
        with pytest.raises(Refused):
            await c.walk(0, 3, "made")


@pytest.mark.conformance(36, 39)
async def test_three_flushes_of_one_tag_are_answered_in_order_and_the_tag_is_free_again() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await parked(c, parking, 1)
        c.send_all((2, m.Tflush(1)), (3, m.Tflush(1)), (4, m.Tflush(1)))
        assert [await c.recv() for _ in range(3)] == [(2, m.Rflush()), (3, m.Rflush()), (4, m.Rflush())]
        assert (await c.rpc(l.Tgetattr(0, 1), 1)).valid == 1
        assert (await c.rpc(l.Tgetattr(0, 1), 1)).valid == 1, "free after a reply too"


@pytest.mark.conformance(37)
@pytest.mark.hostile(22)
@pytest.mark.sec(54)
async def test_a_flush_of_a_flush_is_answered_after_it_and_cycles_end() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await parked(c, parking, 1)
        c.send_all((2, m.Tflush(1)), (3, m.Tflush(2)), (4, m.Tflush(3)), (5, m.Tflush(6)), (6, m.Tflush(5)))
        got = [await c.recv() for _ in range(5)]
        assert all(reply == m.Rflush() for _, reply in got)
        order = [tag for tag, _ in got]
        assert sorted(order) == [2, 3, 4, 5, 6]
        assert [tag for tag in order if tag < 5] == [2, 3, 4]
        await c.quiet()


@pytest.mark.conformance(38)
async def test_a_flush_is_heard_with_the_most_blocked_reads_outstanding() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        most = server.node.limits.requests_max
        await parked(c, parking, *range(most))
        c.send(60_000, m.Tflush(most - 1))
        assert await c.recv() == (60_000, m.Rflush())


@pytest.mark.conformance(41)
async def test_a_flush_before_its_target_does_not_touch_a_later_request() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await parked(c, parking)
        c.send_all((2, m.Tflush(1)), (1, m.Tread(1, 0, 10)))
        assert await c.recv() == (2, m.Rflush())
        await c.quiet()
        parking.say(b"still wanted")
        assert bytes((await c.recv_tag(1)).data) == b"still want"  # type: ignore[attr-defined]  # an Rread


@pytest.mark.hostile(21)
@pytest.mark.sec(95)
@pytest.mark.slow
async def test_a_flush_storm_keeps_nothing_and_leaves_others_served() -> None:
    slow = SlowDir()
    async with serving(Tree(slow=slow)) as server:
        c, other = await server.client(), await server.client()
        for _ in range(2_000):
            c.send_all(
                *((tag, m.Twalk(0, 1000 + tag, ("slow", "x"))) for tag in range(25)),
                *((100 + tag, m.Tflush(tag)) for tag in range(25)),
            )
            flushed = 0
            while flushed < 25:
                flushed += isinstance((await c.recv())[1], m.Rflush)
            assert server.node.live["requests"] <= server.node.limits.requests_max
        assert (await other.rpc(l.Tgetattr(0, 1))).valid == 1
        await c.quiet()
        assert server.node.live["requests"] == 0
        assert server.node.live["fids"] == 2
        slow.gate.set()


async def bytes_received(c: RawClient, count: int) -> bytes:
    """So many bytes of replies, not decoded: a million messages would measure this client."""
    buffer = bytearray()
    scratch = memoryview(bytearray(65_536))
    with trio.fail_after(20):
        while len(buffer) < count:
            await c.wire.wait_readable()
            if n := c.wire.recv_into(scratch):
                buffer += scratch[:n]
            assert n != 0, "hung up"
    return bytes(buffer)


@pytest.mark.hostile(21)
@pytest.mark.sec(95)
@pytest.mark.slow
async def test_a_million_flushes_of_unknown_tags_cost_the_same_each_and_leave_nothing() -> None:
    together, rounds = 1_000, 1_000
    asked = b"".join(struct.pack("<IBHH", 9, m.Tflush.number, tag, 30_000 + tag) for tag in range(together))
    answered = b"".join(struct.pack("<IBH", 7, m.Rflush.number, tag) for tag in range(together))
    async with serving(ram.tree()) as server:
        c, other = await server.client(), await server.client()
        quarters: list[float] = []
        resident: list[int] = []
        for _ in range(4):
            start = time.process_time()
            for i in range(rounds // 4):
                c.send_bytes(asked)
                assert await bytes_received(c, len(answered)) == answered
                if i % 50 == 0:
                    assert (await other.rpc(l.Tgetattr(0, 1))).valid == 1
                    assert server.node.live["requests"] == 0
            quarters.append(time.process_time() - start)
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
        print(f"CPU seconds {[round(q, 2) for q in quarters]}, resident MiB {[r >> 20 for r in resident]}")
        assert quarters[3] < 3 * quarters[0] + 1  # linear: what came before makes none dearer
        assert resident[3] - resident[0] < 8 << 20
        assert server.node.live["fids"] == 2


@pytest.mark.sec(95)
async def test_without_cancelling_what_is_flushed_a_storm_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what a flush does not cancel stays, until the limit refuses everything."""
    monkeypatch.setattr(Requests, "_cancel", lambda self, request: None)
    slow = SlowDir()
    async with serving(Tree(slow=slow)) as server:
        c = await server.client()
        for tag in range(25):
            c.send_all((tag, m.Twalk(0, 1000 + tag, ("slow", "x"))), (100 + tag, m.Tflush(tag)))
        await c.quiet()  # no Rflush
        assert server.node.live["requests"] == 25
        slow.gate.set()
        assert {type(reply) for _, reply in [await c.recv() for _ in range(50)]} == {m.Rwalk, m.Rflush}
        for tag in range(25):
            await c.clunk(1000 + tag)


@pytest.mark.hostile(24)
async def test_a_flush_does_not_reach_another_connections_tag() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c, other = await server.client(), await server.client()
        await parked(c, parking, 1)
        assert await other.rpc(m.Tflush(1)) == m.Rflush()
        await trio.testing.wait_all_tasks_blocked(0.005)
        parking.say(b"mine")
        assert bytes((await c.recv_tag(1)).data) == b"mine"  # type: ignore[attr-defined]  # an Rread
