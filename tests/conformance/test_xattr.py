"""protocol.md D3, D4: extended attributes in 9P2000.L."""

from __future__ import annotations

import tracemalloc

import pytest
from asks import put, refuses
from raw9p import RawClient, serving

from ninep.limits import Limits
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.types import XATTR_CREATE, XATTR_REPLACE
from ninep.servers import ram


async def setxattr(c: RawClient, name: str, value: bytes, flags: int = 0, fid: int = 1) -> None:
    """As the Linux client does it: on a copy of the fid, committed by its clunk."""
    await c.walk(fid, 900)
    try:
        await c.rpc(l.Txattrcreate(900, name, len(value), flags))
        if value:
            await c.write(900, value)
    finally:
        await c.clunk(900)


async def getxattr(c: RawClient, name: str, fid: int = 1) -> bytes:
    size = (await c.rpc(l.Txattrwalk(fid, 901, name))).size
    value = await c.read(901, 0, 60_000)
    assert len(value) == size
    await c.clunk(901)
    return value


async def listxattr(c: RawClient) -> list[str]:
    return [name.decode() for name in (await getxattr(c, "")).split(b"\0")[:-1]]


async def client(server: object) -> RawClient:
    """A client with fid 1 on the file f."""
    c: RawClient = await server.client()  # type: ignore[attr-defined]  # a Serving
    await put(c, "f", b"content")
    await c.walk(0, 1, "f")
    return c


@pytest.mark.conformance(115)
async def test_an_attribute_fid_tells_the_size_and_reads_the_value() -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        await setxattr(c, "user.a", b"value")
        await setxattr(c, "user.b", b"")
        assert (await c.rpc(l.Txattrwalk(1, 2, "user.a"))).size == 5
        assert await c.read(2, 0, 0xFFFFFFFF) == b"value"
        assert await c.read(2, 3) == b"ue"
        assert await c.read(2, 2, 1) == b"l"
        assert await c.read(2, 5) == await c.read(2, 1 << 62) == b""
        assert await listxattr(c) == ["user.a", "user.b"]
        with refuses(E.Enoattr):
            await c.rpc(l.Txattrwalk(1, 3, "user.missing"))
        with refuses(E.Ebadfid):
            await c.clunk(3)
        for used in (0, 1, 2):
            with refuses(E.Efidinuse):
                await c.rpc(l.Txattrwalk(1, used, "user.a"))
        with refuses(E.Ebadusefid):
            await c.write(2, b"x")
        assert await c.read(2, 0) == b"value"
        assert server.node.live["fids"] == 3


@pytest.mark.conformance(116)
async def test_an_attribute_is_written_whole_at_its_clunk_or_not_at_all() -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        await c.walk(1, 2)
        await c.rpc(l.Txattrcreate(2, "user.a", 10, 0))
        await c.write(2, b"01234", 0)
        await c.write(2, b"56789", 5)
        with refuses(E.Enoattr):
            await getxattr(c, "user.a")
        await c.clunk(2)
        assert await getxattr(c, "user.a") == b"0123456789"
        await c.walk(1, 2)
        await c.rpc(l.Txattrcreate(2, "user.a", 10, 0))
        await c.write(2, b"too", 0)
        with refuses(E.Ebadarg):
            await c.clunk(2)
        assert await getxattr(c, "user.a") == b"0123456789"


@pytest.mark.conformance(116)
@pytest.mark.parametrize("how", ["hang-up", "version"])
async def test_an_attribute_not_yet_clunked_is_discarded_with_its_session(how: str) -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        other = await server.client()
        await other.walk(0, 1, "f")
        await other.rpc(l.Txattrcreate(1, "user.a", 5, 0))
        await other.write(1, b"whole")
        if how == "version":
            await other.version()
        else:
            other.close()
        await c.quiet()
        assert await listxattr(c) == []


@pytest.mark.conformance(117)
async def test_empty_removed_created_and_replaced_are_told_apart() -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        await setxattr(c, "user.a", b"")
        assert (await listxattr(c), await getxattr(c, "user.a")) == (["user.a"], b"")
        with refuses(E.Eexist):
            await setxattr(c, "user.a", b"x", XATTR_CREATE)
        await setxattr(c, "user.a", b"new", XATTR_REPLACE)
        with refuses(E.Enoattr):
            await setxattr(c, "user.b", b"x", XATTR_REPLACE)
        await setxattr(c, "user.b", b"", XATTR_CREATE)
        assert await getxattr(c, "user.a") == b"new"
        await setxattr(c, "user.a", b"", XATTR_REPLACE)  # how Linux says removexattr(2)
        assert await listxattr(c) == ["user.b"]
        with refuses(E.Enoattr):
            await setxattr(c, "user.a", b"", XATTR_REPLACE)
        for flags in (4, 1 << 31):
            with refuses(E.Ebadarg):
                await c.rpc(l.Txattrcreate(1, "user.c", 1, flags))


@pytest.mark.conformance(118)
@pytest.mark.hostile(56)
@pytest.mark.parametrize("size", [65_537, 1 << 40, 1 << 63, (1 << 64) - 1])
async def test_an_absurd_size_is_refused_before_memory_is_taken(size: int) -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        tracemalloc.start()
        try:
            with refuses(E.E2big):
                await c.rpc(l.Txattrcreate(1, "user.a", size, 0))
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        await c.open(1)
        assert await c.read(1) == b"content", "the fid is what it was"


@pytest.mark.hostile(56)
async def test_more_fewer_and_overlapping_bytes_are_refused() -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        await c.rpc(l.Txattrcreate(1, "user.a", 10, 0))
        with refuses(E.Ebadarg):
            await c.write(1, b"x" * 11)
        await c.write(1, b"01234")
        for offset in (0, 4, 6, 1 << 63, (1 << 64) - 1):
            with refuses(E.Ebadarg):
                await c.write(1, b"x", offset)
        with refuses(E.Ebadarg):
            await c.write(1, b"567890", 5)
        await c.write(1, b"56789", 5)
        await c.clunk(1)
        await c.walk(0, 1, "f")
        assert await getxattr(c, "user.a") == b"0123456789"


@pytest.mark.hostile(56)
async def test_attribute_fids_hold_a_bounded_number_of_bytes() -> None:
    limits = Limits(xattr_pending_bytes_max=100_000)
    async with serving(ram.tree(limits), limits=limits) as server:
        c = await client(server)
        await setxattr(c, "user.a", b"x" * 60_000)
        fids = list(range(10, 40))
        opened = []
        for fid in fids:
            await c.walk(1, fid)
            c.send(1, l.Txattrcreate(fid, "user.b", 30_000, 0))
            _, reply = await c.recv()
            assert reply in (l.Rxattrcreate(), l.Rlerror(12))
            if reply == l.Rxattrcreate():
                opened.append(fid)
        assert len(opened) == 3
        with refuses(E.Enomem):
            await c.rpc(l.Txattrwalk(1, 50, "user.a"))
        with refuses(E.Ebadfid):
            await c.clunk(50)
        other = await server.client()
        await other.walk(0, 1, "f")
        assert len(await getxattr(other, "user.a")) == 60_000, "each session has its own share"
        for fid in opened:
            with refuses(E.Ebadarg):
                await c.clunk(fid)
        assert len(await getxattr(c, "user.a")) == 60_000
        for _ in range(100):  # nothing is lost by use
            await getxattr(c, "user.a")
            with refuses(E.Efidinuse):
                await c.rpc(l.Txattrwalk(1, 0, "user.a"))
        await c.version()
        await c.attach()
        await c.walk(0, 1, "f")
        assert len(await getxattr(c, "user.a")) == 60_000


@pytest.mark.hostile(39)
async def test_an_attribute_fid_is_no_file() -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        await c.rpc(l.Txattrcreate(1, "user.a", 5, 0))
        for use in (
            m.Tread(1, 0, 10),
            m.Twalk(1, 5, ()),
            m.Twalk(1, 5, ("x",)),
            m.Twalk(1, 1, ()),
            l.Tlopen(1, 0),
            l.Tlcreate(1, "x", 2, 0o644, 0),
            l.Txattrcreate(1, "user.b", 5, 0),
            l.Tsetattr(1, l.SETATTR_SIZE, size=0),
            l.Tlink(0, 1, "hard"),
            l.Treaddir(1, 0, 1000),
            l.Tlock(1, 1, 0, 0, 0, 1, "me"),
        ):
            with refuses(E.Ebadusefid, E.Enotopen, E.Enotdir):
                await c.rpc(use)
        with refuses(E.Ebadusefid):
            await c.rpc(m.Tremove(1))
        await c.walk(0, 1, "f")
        await c.open(1)
        assert await c.read(1) == b"content"


@pytest.mark.conformance(116)
async def test_a_stranger_writes_no_attribute() -> None:
    async with serving(ram.tree()) as server:
        c = await client(server)
        stranger = await server.client(attach=False)
        await stranger.attach(0, "", 54_321)
        await stranger.walk(0, 1, "f")
        with refuses(E.Eperm):
            await stranger.rpc(l.Txattrcreate(1, "user.a", 5, 0))
        for name in ("", "x" * 256, "system.posix_acl_access", "user."):
            with refuses(E.Ebadarg, E.Erange, E.Eunsupported):
                await setxattr(c, name, b"v")
        assert await listxattr(c) == []
