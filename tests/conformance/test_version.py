"""protocol.md 3.2: version negotiation, over a whole connection."""

from __future__ import annotations

import pytest
import trio.testing
from raw9p import Refused, serving
from trees import Parking, Tree

from ninep.proto import dotl as l
from ninep.proto import messages as m
from ninep.proto.types import NOFID, NOTAG, ORCLOSE
from ninep.proto.version import P2000
from ninep.servers import ram
from ninep.session import Session


@pytest.mark.conformance(16)
@pytest.mark.parametrize("name", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_each_dialect_is_echoed_exactly_and_works(name: str) -> None:
    async with serving(ram.tree()) as server:
        c = server.connect()
        assert (await c.version(name)).version == name
        await c.attach()
        await c.file(1, "f", b"x")


@pytest.mark.conformance(17)
@pytest.mark.parametrize(
    ("asked", "given"),
    [("9P2000.foo", "9P2000"), ("9P2000.L.foo", "9P2000.L"), ("9P2001", "9P2000"), ("9P2000.u.x.y", "9P2000.u")],
)
async def test_a_suffix_or_a_later_number_gets_what_is_known(asked: str, given: str) -> None:
    async with serving(ram.tree()) as server:
        c = server.connect()
        assert (await c.version(asked)).version == given
        await c.attach()


@pytest.mark.conformance(18)
@pytest.mark.parametrize("name", ["9P1999", "8P2000", "", "9p2000.L"])
async def test_an_unknown_version_is_answered_unknown_and_a_second_try_succeeds(name: str) -> None:
    async with serving(ram.tree()) as server:
        c = server.connect()
        refused = await c.version(name)
        assert refused.version == "unknown"
        assert refused.msize > 0
        assert (await c.version()).version == "9P2000.L"
        await c.attach()


@pytest.mark.conformance(19, 20)
@pytest.mark.parametrize("msize", [4096, 8192, 65536, 1 << 20, 0xFFFFFFFF])
async def test_the_msize_given_is_at_most_the_one_asked_and_at_least_4096(msize: int) -> None:
    async with serving(ram.tree()) as server:
        c = server.connect()
        given = (await c.version(msize=msize)).msize
        assert 4096 <= given <= min(msize, server.node.limits.msize_bytes_max)


@pytest.mark.conformance(21)
@pytest.mark.parametrize("msize", [0, 7, 24, 255])
async def test_an_msize_in_which_nothing_fits_is_refused_and_the_connection_lives(msize: int) -> None:
    async with serving(ram.tree()) as server:
        c = server.connect()
        refused = await c.version(msize=msize)
        assert (refused.version, refused.msize > 0) == ("unknown", True)
        await c.version()
        await c.attach()


@pytest.mark.conformance(22)
async def test_a_request_before_version_is_not_executed_and_ends_the_connection() -> None:
    async with serving(ram.tree()) as server:
        c = server.connect()
        c.send(1, m.Tattach(0, NOFID, "root", ""))
        assert await c.hung_up()
        assert server.node.live["fids"] == 0


@pytest.mark.conformance(23)
async def test_a_version_with_another_tag_is_answered_with_that_tag() -> None:
    async with serving(ram.tree()) as server:
        c = server.connect()
        assert (await c.version(tag=77)).version == "9P2000.L"


@pytest.mark.conformance(24)
@pytest.mark.sec(52)
async def test_a_version_in_mid_session_ends_reads_locks_and_fids_without_a_reply() -> None:
    tree = ram.tree()
    parking = Parking()
    async with serving(Tree(p=parking, ram=tree)) as server:
        c = await server.client()
        other = await server.client()
        await c.walk(0, 1, "p")
        await c.open(1)
        await c.walk(0, 9, "ram")
        await c.file(2, "locked", b"x", root=9)
        assert (await c.rpc(l.Tlock(2, 1, 0, 0, 0, 7, "me"))).status == 0
        for tag in (1, 2, 3):
            c.send(tag, m.Tread(1, 0, 10))
        await c.quiet()
        assert (await c.version("9P2000.u")).version == "9P2000.u"
        await c.quiet()
        assert server.node.live["parked"] == 0
        assert (parking.reads, parking.cancelled) == (1, 1), "the others waited for their turn"
        with pytest.raises(Refused):
            await c.rpc(m.Tstat(1))
        await other.walk(0, 1, "ram", "locked")
        await other.open(1, 2)
        assert (await other.rpc(l.Tlock(1, 1, 0, 0, 0, 8, "other"))).status == 0


@pytest.mark.sec(52)
async def test_without_the_reset_a_version_leaves_locks_and_fids_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(ram.tree()) as server:
        c, other = await server.client(), await server.client()
        await c.file(1, "locked", b"x")
        assert (await c.rpc(l.Tlock(1, 1, 0, 0, 0, 7, "me"))).status == 0
        await other.walk(0, 1, "locked")
        await other.open(1, 2)
        with monkeypatch.context() as unguarded:
            unguarded.setattr(Session, "reset", lambda session: None)
            await c.version()
        assert (await c.rpc(l.Tgetattr(1, l.GETATTR_BASIC))).size == 1  # a fid of the session before
        assert (await other.rpc(l.Tlock(1, 1, 0, 0, 0, 8, "other"))).status == 1
        await c.version()
        with pytest.raises(Refused):
            await c.rpc(l.Tgetattr(1, l.GETATTR_BASIC))
        assert (await other.rpc(l.Tlock(1, 1, 0, 0, 0, 8, "other"))).status == 0


@pytest.mark.conformance(24)
@pytest.mark.parametrize("ending", ["version", "hang-up"])
async def test_an_orclose_fid_removes_its_file_when_the_session_ends(ending: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client("9P2000")
        other = await server.client()
        await c.walk(0, 1)
        await c.create(1, "gone", 0o644, 2 | ORCLOSE)
        await other.walk(0, 1, "gone")
        if ending == "version":
            await c.version("9P2000")
        else:
            c.close()
            await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(Refused):
            await other.walk(0, 2, "gone")


@pytest.mark.conformance(25)
async def test_another_dialect_after_a_second_version_is_obeyed() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client("9P2000.L")
        await c.version("9P2000")
        await c.attach()
        assert (await c.rpc(m.Tstat(0))).stat.name == "/"
        c.send_bytes(b"\x13\0\0\0\x18\x05\0" + b"\0" * 12)  # a Tgetattr, which 9P2000 does not have
        tag, refused = await c.recv()
        assert (tag, type(refused)) == (5, m.Rerror)


@pytest.mark.conformance(26)
async def test_an_attach_pipelined_behind_version_is_executed_after_it() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        c.send_bytes(
            P2000.encode(NOTAG, m.Tversion(8192, "9P2000")) + P2000.encode(1, m.Tattach(5, NOFID, "root", ""))
        )  # fmt: skip
        c.dialect = P2000
        assert isinstance(await c.recv_tag(NOTAG), m.Rversion)
        assert isinstance(await c.recv_tag(1), m.Rattach)
        assert server.node.live["fids"] == 1
