"""protocol.md 3.5 and 4.3: walk, and the fids it makes."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from asks import refuses
from raw9p import RawClient, Refused, serving

from ninep.fid import Fid, FidTable
from ninep.file import Call, Dir
from ninep.limits import Limits
from ninep.namespace.namespace import Namespace
from ninep.node import Node
from ninep.observe import Events
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.types import NOFID, QTDIR, QTSYMLINK, Qid
from ninep.servers import ram

DIALECTS = ("9P2000", "9P2000.u", "9P2000.L")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def tree_of(c: RawClient) -> None:
    """/a/b/c/d/e, a file /f and, where the dialect has them, a link /l to /f."""
    for at, name in enumerate("abcde"):
        await c.walk(0, 900, *"abcde"[:at])
        if c.dialect.name == "9P2000.L":
            await c.rpc(l.Tmkdir(900, name, 0o755, 0))
        else:
            await c.rpc(m.Tcreate(900, name, 0x80000000 | 0o755, 0))
        await c.clunk(900)
    await c.file(901, "f", b"content")
    await c.clunk(901)
    if c.dialect.name == "9P2000.L":
        await c.rpc(l.Tsymlink(0, "l", "f", 0))
    elif c.dialect.name == "9P2000.u":
        await c.walk(0, 900)
        await c.rpc(m.Tcreate(900, "l", 0x02000000 | 0o777, 0, "f"))
        await c.clunk(900)


async def qid_of(c: RawClient, fid: int) -> Qid:
    """The qid of what a fid points at."""
    if c.dialect.name == "9P2000.L":
        qid: Qid = (await c.rpc(l.Tgetattr(fid, 1))).qid
    else:
        qid = (await c.rpc(m.Tstat(fid))).stat.qid
    return qid


@pytest.mark.conformance(53)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_walk_of_no_names_clones_any_kind_of_file(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await tree_of(c)
        for fid, name in enumerate(("a", "f") if dialect == "9P2000" else ("a", "f", "l"), 1):
            (qid,) = await c.walk(0, fid, name)
            assert await c.walk(fid, 100 + fid) == ()
            assert await qid_of(c, 100 + fid) == qid


@pytest.mark.conformance(54)
async def test_sixteen_names_are_walked_and_seventeen_refused() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        assert len(await c.walk(0, 1, *(["a", ".."] * 8))) == 16
        seventeen = m.Twalk(0, 2, ("a",) * 16)
        raw = bytearray(c.dialect.encode(7, seventeen))
        raw[15:17] = (17).to_bytes(2, "little")
        raw += b"\x01\0a"
        raw[:4] = len(raw).to_bytes(4, "little")
        c.send_bytes(bytes(raw))
        tag, refused = await c.recv()
        assert (tag, type(refused)) == (7, l.Rlerror)
        await c.walk(0, 2)


@pytest.mark.conformance(55, 64)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_walk_that_stops_on_its_way_makes_no_fid(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await tree_of(c)
        with pytest.raises(Refused) as refused:
            await c.walk(0, 1, "missing", "b")
        assert refused.value.errno == 2 or "does not exist" in refused.value.ename
        assert len(await c.walk(0, 1, "a", "b", "missing", "d", "e")) == 2
        with pytest.raises(Refused):
            await c.clunk(1)
        assert len(await c.walk(0, 1, "a", "b", "c", "d", "e")) == 5


@pytest.mark.conformance(56)
async def test_a_walk_in_place_moves_the_fid_only_when_it_is_whole() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        (here,) = await c.walk(0, 1, "a")
        assert len(await c.walk(1, 1, "b", "missing")) == 1
        assert await qid_of(c, 1) == here
        there = (await c.walk(1, 1, "b", "c"))[-1]
        assert await qid_of(c, 1) == there


@pytest.mark.conformance(57)
@pytest.mark.feature("session-fids")
@pytest.mark.hostile(33, 36)
async def test_a_newfid_in_use_or_nofid_is_refused_and_nothing_changes() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        (a,) = await c.walk(0, 1, "a")
        (f,) = await c.walk(0, 2, "f")
        for newfid in (2, NOFID):
            with pytest.raises(Refused):
                await c.walk(1, newfid, "b")
        assert (await qid_of(c, 1), await qid_of(c, 2)) == (a, f)
        c.send_all((1, m.Twalk(0, 5, ("a",))), (2, m.Twalk(0, 5, ("f",))), (3, l.Tlopen(5, 0)))
        got = [await c.recv() for _ in range(3)]
        assert [type(r) for _, r in got] == [m.Rwalk, l.Rlerror, l.Rlopen]


@pytest.mark.conformance(58)
async def test_a_walk_through_a_file_stops_there() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        assert len(await c.walk(0, 1, "f", "x")) == 1
        await c.walk(0, 2, "f")
        with pytest.raises(Refused) as refused:
            await c.walk(2, 3, "x")
        assert refused.value.errno == 20


@pytest.mark.conformance(59)
@pytest.mark.sec(21)
async def test_dotdot_is_the_parent_and_the_root_is_its_own() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        root = await qid_of(c, 0)
        a, back = await c.walk(0, 1, "a", "..")
        assert (back, a == root) == (root, False)
        for _ in range(64):
            assert set(await c.walk(0, 2, *[".."] * 16)) == {root}
            await c.clunk(2)


@pytest.mark.conformance(60)
@pytest.mark.sec(21)
async def test_dotdot_does_not_leave_an_attached_subtree_even_after_it_was_moved() -> None:
    tree = ram.tree()
    namespace = Namespace(tree)
    async with serving(namespace) as server:
        c = await server.client()
        await tree_of(c)
        inner = tree.walk(Call(), "a")
        assert isinstance(inner, Dir)
        namespace.anames["inner"] = inner
        d = await server.client(attach=False)
        root = (await d.attach(aname="inner")).qid
        await d.walk(0, 1, "b")
        await c.rpc(l.Tmkdir(0, "elsewhere", 0o755, 0))
        await c.walk(0, 5, "elsewhere")
        await c.rpc(l.Trenameat(0, "a", 5, "a"))
        assert set(await d.walk(1, 2, *[".."] * 8)) == {root}


@pytest.mark.conformance(61)
@pytest.mark.feature("session-fids")
@pytest.mark.hostile(8, 41)
@pytest.mark.sec(22, 24)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "name", [".", "", "a/b", "/a", "a/", "a/.", "/", "x" * 256, "é" * 128, "/etc/passwd", "x" * 3000]
)
async def test_a_name_no_directory_can_hold_is_refused(dialect: str, name: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await tree_of(c)
        raw = name.encode()
        body = struct.pack("<IIHH", 0, 1, 1, len(raw)) + raw  # by hand: our own encoder refuses long names
        c.send_bytes(struct.pack("<IBH", 7 + len(body), m.Twalk.number, 7) + body)
        refused = Refused(await c.recv_tag(7))
        assert refused.errno in (22, 36) or "file name" in refused.ename
        await c.walk(0, 1, "a")


@pytest.mark.conformance(9)
@pytest.mark.hostile(13)
@pytest.mark.sec(22)
async def test_a_name_with_a_nul_is_not_the_name_before_it() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        c.send_bytes(c.dialect.encode(7, m.Twalk(0, 1, ("f?x",))).replace(b"f?x", b"f\0x"))
        _, refused = await c.recv()
        assert getattr(refused, "ecode", 0) == 22
        await c.walk(0, 1, "f")


@pytest.mark.conformance(62)
async def test_each_directory_on_the_way_must_be_searchable() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        await c.walk(0, 1, "a", "b")
        await c.rpc(l.Tsetattr(1, l.SETATTR_MODE, 0o700))
        await c.attach(50, "", 54_321)
        assert len(await c.walk(50, 51, "a", "b", "c")) == 2
        await c.walk(50, 52, "a", "b")
        with pytest.raises(Refused) as refused:
            await c.walk(52, 53, "c")
        assert refused.value.errno == 13


@pytest.mark.conformance(63)
async def test_an_open_fid_can_be_cloned_but_not_moved() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        await c.walk(0, 1, "f")
        await c.open(1)
        await c.walk(1, 2)
        with pytest.raises(Refused) as refused:
            await c.read(2)
        assert refused.value.errno == 9, "the clone is not open"
        await c.open(2)
        for names in ((), ("x",)):
            with pytest.raises(Refused):
                await c.walk(1, 1, *names)
        assert await c.read(1) == b"content"


@pytest.mark.conformance(65)
async def test_equal_qids_mean_the_same_file_and_a_new_file_has_a_new_one() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        (first,) = await c.walk(0, 1, "f")
        (again,) = await c.walk(0, 2, "f")
        assert first.path == again.path
        await c.rpc(l.Tlink(0, 1, "hard"))
        assert (await c.walk(0, 3, "hard"))[0].path == first.path
        for name in ("f", "hard"):
            await c.rpc(l.Tunlinkat(0, name, 0))
        await c.file(4, "f")
        assert (await c.walk(0, 5, "f"))[0].path != first.path


@pytest.mark.conformance(67)
@pytest.mark.sec(26)
@pytest.mark.parametrize("dialect", ["9P2000.u", "9P2000.L"])
async def test_a_symlink_is_not_followed(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await tree_of(c)
        (qid,) = await c.walk(0, 1, "l")
        assert qid.type & (QTSYMLINK | QTDIR) == QTSYMLINK
        assert len(await c.walk(0, 2, "l", "x")) == 1
        with pytest.raises(Refused):
            await c.open(1)


@pytest.mark.hostile(32)
@pytest.mark.sec(42)
async def test_fids_past_the_limit_are_refused_and_other_sessions_live() -> None:
    async with serving(ram.tree(), limits=Limits(fids_max=50, fids_node_max=80)) as server:
        c, other, third = await server.client(), await server.client(), await server.client()
        for fid in range(1, 50):
            await c.walk(0, fid)
        with pytest.raises(Refused) as refused:
            await c.walk(0, 50)
        assert refused.value.errno == 23
        for fid in range(1, 29):
            await other.walk(0, fid)
        with pytest.raises(Refused):
            await third.walk(0, 1)
        await c.clunk(7)
        await third.walk(0, 1)


def node_with_a_full_ring() -> Node:
    """One whose ring of events is small and soon full: it fills once in any case, and is not what a client leaves."""
    return Node(events=Events(time.monotonic_ns, slots=256))


@pytest.mark.hostile(37, 50)
@pytest.mark.sec(96)
@pytest.mark.slow
async def test_walk_clunk_and_version_churn_leaves_nothing() -> None:
    async with serving(ram.tree(), node=node_with_a_full_ring()) as server:
        c = await server.client()
        await tree_of(c)
        for _ in range(1000):
            c.send_all(
                *((fid, m.Twalk(0, fid, ("a", "b", ".."))) for fid in range(1, 50)),
                *((100 + fid, m.Tclunk(fid)) for fid in range(1, 50)),
            )
            for _ in range(98):
                await c.recv()
        assert server.node.live["fids"] == 1
        before = resident_bytes()
        for _ in range(2000):
            await c.walk(0, 1)
            await c.version()
            await c.attach()
        assert server.node.live["fids"] == 1
        assert resident_bytes() - before < 4 << 20


@pytest.mark.hostile(50)
@pytest.mark.slow
async def test_a_million_steps_up_and_down_leave_nothing_and_others_are_answered_meanwhile() -> None:
    steps, together = 16, 50
    async with serving(ram.tree(), node=node_with_a_full_ring()) as server:
        c, other = await server.client(), await server.client()
        await tree_of(c)
        walk = m.Twalk(0, 1, ("a", "..") * (steps // 2))
        batch = [pair for tag in range(0, 2 * together, 2) for pair in ((tag, walk), (tag + 1, m.Tclunk(1)))]
        before = resident_bytes()
        for _ in range(1_000_000 // (steps * together)):
            c.send_all(*batch)
            assert (await other.rpc(l.Tgetattr(0, 1))).valid == 1  # before the walks' replies are taken
            for tag in range(2 * together):
                got, reply = await c.recv()
                assert got == tag
                assert len(reply.wqid) == steps if isinstance(reply, m.Rwalk) else isinstance(reply, m.Rclunk)
        assert server.node.live["fids"] == 2
        assert resident_bytes() - before < 8 << 20


@pytest.mark.sec(96)
async def test_without_freeing_what_is_clunked_the_churn_runs_into_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: numbers that are not given back are soon all taken."""

    def forget(self: FidTable, number: int) -> Fid:
        return self._fids.pop(number)  # the number is free, the node's count is not

    monkeypatch.setattr(FidTable, "pop", forget)
    monkeypatch.setattr(FidTable, "clear", lambda self: [])
    node = Node(Limits(fids_node_max=200))
    with pytest.raises(AssertionError, match="left behind"):
        async with serving(ram.tree(), node=node) as server:
            c = await server.client()
            with refuses(E.Enofids):
                for _ in range(1000):
                    await c.walk(0, 1)
                    await c.clunk(1)
            assert node.live["fids"] == 200


@pytest.mark.hostile(35)
async def test_a_fid_is_gone_after_a_remove_that_failed() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await tree_of(c)
        await c.walk(0, 1, "a")
        with pytest.raises(Refused) as refused:
            await c.rpc(m.Tremove(1))
        assert refused.value.errno == 39
        with pytest.raises(Refused) as refused:
            await c.rpc(l.Tgetattr(1, 1))
        assert refused.value.errno == 9
