"""A namespace is a directory like any other: served, attached to by name, and as sound as the tree mounted in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from asks import get, mkdir, names, put, refuses
from raw9p import serving

from ninep.answer import settle
from ninep.edges.client import on_wire
from ninep.edges.policy import Peer, Policy
from ninep.edges.stream import serve_wire
from ninep.edges.wire import MemoryWire
from ninep.file import Call
from ninep.namespace.namespace import Namespace
from ninep.node import Node
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.types import NOFID
from ninep.servers import host, ram
from ninep.testing import check_tree

pytestmark = pytest.mark.feature("namespace-root")


async def test_a_namespace_keeps_what_every_tree_promises() -> None:
    await check_tree(lambda: Namespace(ram.tree()), creates=True)
    await check_tree(lambda: Namespace(Namespace(ram.tree())), creates=True)


async def test_a_host_directory_in_a_namespace_does_too(tmp_path: Path) -> None:
    counted = iter(range(1000))

    def make() -> Namespace:
        directory = tmp_path / str(next(counted))
        directory.mkdir()
        return Namespace(host.tree(directory))

    await check_tree(make, creates=True, judges=False)


@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_it_is_served_and_trees_are_attached_by_name(dialect: str) -> None:
    notes, root = ram.tree(), ram.tree()
    async with serving(Namespace(root, "group", {"notes": notes})) as server:
        c = await server.client(dialect, attach=False)
        await c.attach(0)
        await c.attach(1, aname="/")
        await c.attach(2, aname="notes")
        await put(c, "f", b"in the root")
        await put(c, "f", b"in the notes", fid=2)
        assert (await get(c, "f"), await get(c, "f", fid=1)) == (b"in the root", b"in the root")
        assert await get(c, "f", fid=2) == b"in the notes"
        for aname in ("Notes", "notes/", "/notes", "../notes", "group", "f"):
            with refuses(E.Enonexist):
                await c.attach(9, aname=aname)
        await c.walk(2, 3, "..", "..")
        assert await get(c, "f", fid=3) == b"in the notes", "above a tree is the tree"


async def test_what_is_made_renamed_and_removed_through_it_happens_in_the_mounted_tree() -> None:
    root = ram.tree()
    space = Namespace(root)
    assert space.qid == root.qid
    async with serving(space) as server:
        c = await server.client()
        await mkdir(c, "d")
        await put(c, "f", b"1")
        await c.walk(0, 1, "d")
        await c.rpc(l.Trenameat(0, "f", 1, "g"))
        await c.rpc(l.Tsymlink(0, "s", "d/g", 0))
        assert await names(c) == ["d", "s"]
        await c.rpc(l.Tunlinkat(0, "s", 0))
        await c.rpc(m.Tattach(5, NOFID, "root", "", 0))
        await c.rpc(l.Trenameat(1, "g", 5, "back"))
        assert sorted(await names(c)) == ["back", "d"]
    assert [name for name, _ in await settle(root.list(Call()))] == ["d", "back"]


async def test_a_served_namespace_is_mounted_in_another_and_served_again() -> None:
    """A tree behind a client is a tree like any other."""
    inner = ram.tree()
    ours, theirs = MemoryWire.pair()
    node = Node()
    async with trio.open_nursery() as nursery:
        policy = Policy(trust_uname=True)
        nursery.start_soon(serve_wire, theirs, node, Namespace(inner), nursery, policy, Peer("far"))
        far = await on_wire(nursery, ours, uname="root")
        async with serving(Namespace(far.root)) as server:
            c = await server.client()
            await put(c, "f", b"across two servers")
            assert await get(c, "f") == b"across two servers"
            assert await names(c) == ["f"]
        far.close()
    assert [name for name, _ in await settle(inner.list(Call()))] == ["f"]
