"""protocol.md 3.6: open, create, read, write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from asks import ALL, OLD, chmod, get, getattr_of, is_linux, mkdir, mode_of, names, put, refuses, size_of, stat
from raw9p import RawClient, Refused, Serving, serving

from ninep import synth
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.records import StatRecord
from ninep.proto.types import DMAPPEND, DMDIR, DMEXCL, ORCLOSE, OTRUNC
from ninep.servers import ram

STRANGER = 54_321


@asynccontextmanager
async def one(dialect: str) -> AsyncIterator[tuple[Serving, RawClient]]:
    """A ram tree and one client on it."""
    async with serving(ram.tree()) as server:
        yield server, await server.client(dialect)


async def stranger(server: Serving, dialect: str) -> RawClient:
    """A client that owns nothing."""
    c = await server.client(dialect, attach=False)
    await c.attach(0, str(STRANGER), STRANGER)
    return c


def trunc(c: RawClient) -> int:
    return l.L_TRUNC if is_linux(c) else OTRUNC


@pytest.mark.conformance(68)
@pytest.mark.sec(57)
@pytest.mark.feature("session-fids")
@pytest.mark.parametrize("dialect", ALL)
async def test_a_second_open_io_on_an_unopened_fid_and_the_wrong_direction_are_refused(dialect: str) -> None:
    async with one(dialect) as (_, c):
        await put(c, "f", b"content")
        await c.walk(0, 1, "f")
        with refuses(E.Enotopen):
            await c.read(1)
        with refuses(E.Enotopen):
            await c.write(1, b"x")
        await c.open(1, 0)
        with refuses(E.Ebadusefid):
            await c.open(1, 0)
        with refuses(E.Ebadusefid):
            await c.write(1, b"x")
        await c.walk(0, 2, "f")
        await c.open(2, 1)
        with refuses(E.Ebadusefid):
            await c.read(2)
        assert await c.read(1) == b"content"
        await c.walk(0, 3)
        await c.open(3, 0)
        with refuses(E.Ebadusefid):
            await c.write(3, b"x")
        with refuses(E.Ebadfid):
            await c.read(77)


@pytest.mark.conformance(69)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_directory_is_opened_for_reading_alone(dialect: str) -> None:
    async with one(dialect) as (_, c):
        await mkdir(c, "d")
        await c.walk(0, 1, "d")
        for mode in (1, 2, trunc(c), 1 | trunc(c)):
            with refuses(E.Eisdir):
                await c.open(1, mode)
        await c.open(1, 0)


@pytest.mark.conformance(70)
@pytest.mark.parametrize("dialect", OLD)
async def test_unknown_bits_in_an_open_mode_are_refused(dialect: str) -> None:
    async with one(dialect) as (_, c):
        await put(c, "f", b"content")
        await c.walk(0, 1, "f")
        # The Linux client says O_APPEND to a .u server as 0x80.
        for bit in (0x04, 0x08, 0x20) if dialect == "9P2000.u" else (0x04, 0x08, 0x20, 0x80):
            with refuses(E.Ebadarg):
                await c.open(1, bit)
            await c.walk(0, 2)
            with refuses(E.Ebadarg):
                await c.rpc(m.Tcreate(2, "new", 0o644, bit))
            await c.clunk(2)
        assert await names(c) == ["f"]


@pytest.mark.conformance(71)
@pytest.mark.parametrize("dialect", ALL)
async def test_truncation_at_open_needs_the_right_to_write(dialect: str) -> None:
    async with one(dialect) as (server, c):
        await put(c, "f", b"content")
        other = await stranger(server, dialect)
        await other.walk(0, 1, "f")
        for mode in (0, 1):
            with refuses(E.Eperm):
                await other.open(1, mode | trunc(c))
        assert await get(c, "f") == b"content"
        await c.walk(0, 1, "f")
        await c.open(1, 1 | trunc(c))
        assert await get(c, "f") == b""


@pytest.mark.conformance(71, 80)
@pytest.mark.parametrize("dialect", OLD)
async def test_an_append_only_file_opens_for_truncation_and_stays_whole(dialect: str) -> None:
    async with one(dialect) as (_, c):
        await put(c, "log", b"first ", DMAPPEND | 0o644)
        await c.walk(0, 1, "log")
        await c.open(1, 1 | OTRUNC)
        assert await get(c, "log") == b"first "
        await c.write(1, b"second", 0)
        assert await get(c, "log") == b"first second"
        assert (await stat(c, 1)).perm & DMAPPEND


@pytest.mark.conformance(72)
@pytest.mark.parametrize("dialect", OLD)
async def test_an_exclusive_file_has_one_opener_until_he_clunks_or_hangs_up(dialect: str) -> None:
    async with one(dialect) as (server, c):
        await c.file(1, "lock", perm=DMEXCL | 0o666)
        other = await server.client(dialect)
        for client in (c, other):
            await client.walk(0, 2, "lock")
            with refuses(E.Eexclusive):
                await client.open(2, 0)
        await c.clunk(1)
        await other.open(2, 0)
        with refuses(E.Eexclusive):
            await c.open(2, 0)
        other.close()
        await c.quiet()
        await c.open(2, 0)


@pytest.mark.conformance(73)
@pytest.mark.parametrize("dialect", OLD)
async def test_remove_on_close_acts_at_clunk_and_at_hang_up(dialect: str) -> None:
    async with one(dialect) as (server, c):
        for how in ("clunk", "hang-up", "version"):
            await put(c, how, b"content")
            other = await server.client(dialect)
            await other.walk(0, 1, how)
            await other.open(1, ORCLOSE)
            assert await names(c) == [how]
            if how == "clunk":
                await other.clunk(1)
            elif how == "version":
                await other.version(dialect)
            else:
                other.close()
            await c.quiet()
            assert await names(c) == [], how


@pytest.mark.conformance(73)
@pytest.mark.parametrize("dialect", OLD)
async def test_remove_on_close_needs_the_right_to_remove_at_open(dialect: str) -> None:
    async with one(dialect) as (server, c):
        await chmod(c, 0, 0o777)
        await put(c, "f", b"content", 0o666)
        await mkdir(c, "tmp", 0o777)
        await chmod(c, 0, 0o755)
        await c.walk(0, 5, "tmp")
        await put(c, "mine", fid=5)
        other = await stranger(server, dialect)
        await other.walk(0, 1, "f")
        with refuses(E.Eperm):
            await other.open(1, ORCLOSE)
        await other.open(1, 0)
        await other.clunk(1)
        assert await get(c, "f") == b"content"
        with refuses(E.Eperm):
            await c.open(0, ORCLOSE)
        if dialect == "9P2000.u":
            word = (await stat(c, 5)).perm
            await c.rpc(m.Twstat(5, StatRecord(perm=word | 0x00010000)))  # sticky: others' files stay
            await other.walk(0, 2, "tmp", "mine")
            with refuses(E.Enotallowed):
                await other.open(2, ORCLOSE)
            assert await names(c, 5) == ["mine"]


PERMS = [(perm, above) for perm in (0o777, 0o666, 0o644, 0o600, 0o000) for above in (0o777, 0o755, 0o700, 0o555)]


@pytest.mark.conformance(74)
@pytest.mark.parametrize("dialect", OLD)
@pytest.mark.parametrize(("perm", "above"), PERMS)
async def test_permissions_of_a_new_file_follow_the_formula_of_its_directory(
    dialect: str, perm: int, above: int
) -> None:
    async with one(dialect) as (_, c):
        await mkdir(c, "d")
        await c.walk(0, 1, "d")
        await chmod(c, 1, above)
        await c.rpc(m.Twstat(1, StatRecord(gid="daemon")))
        await c.file(2, "f", root=1, perm=perm)
        assert await mode_of(c, 2) == perm & (~0o666 | (above & 0o666))
        await mkdir(c, "sub", perm, 1)
        await c.walk(1, 3, "sub")
        assert await mode_of(c, 3) == perm & (~0o777 | (above & 0o777))
        assert [(await stat(c, fid)).gid for fid in (2, 3)] == ["daemon", "daemon"], "the group is inherited"


@pytest.mark.conformance(75)
@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.hostile(41)
@pytest.mark.sec(23)
async def test_a_refused_create_leaves_the_fid_the_directory_it_was(dialect: str) -> None:
    async with one(dialect) as (_, c):
        await put(c, "f", b"content")
        await mkdir(c, "d")
        await c.walk(0, 1)
        for name, row in (("f", E.Eexist), ("d", E.Eexist), (".", E.Ebadchar), ("..", E.Ebadchar), ("", E.Ebadchar)):
            with refuses(row):
                await c.create(1, name)
        for name in ("a/b", "/etc/passwd", "x" * 256):
            with refuses(E.Ebadchar, E.Enametoolong):
                await c.create(1, name)
        await c.create(1, "new")
        assert sorted(await names(c)) == ["d", "f", "new"]
        assert await get(c, "f") == b"content"


@pytest.mark.conformance(76)
@pytest.mark.parametrize("dialect", ALL)
async def test_after_a_create_the_fid_is_the_open_file(dialect: str) -> None:
    async with one(dialect) as (_, c):
        await c.walk(0, 1)
        made = (await c.create(1, "f")).qid
        await c.write(1, b"content")
        assert await c.read(1) == b"content"
        with refuses(E.Enotdir):
            await c.walk(1, 2, "f")
        with refuses(E.Ebadusefid):
            await c.create(1, "g")
        assert (await c.walk(0, 2, "f"))[0].path == made.path


@pytest.mark.conformance(77)
@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize("perm", [0o444, 0o000])
async def test_who_creates_a_file_may_write_it_whatever_its_permissions(dialect: str, perm: int) -> None:
    async with one(dialect) as (server, root):
        await chmod(root, 0, 0o777)
        c = await stranger(server, dialect)
        await c.walk(0, 1)
        await c.create(1, "f", perm, 2)
        await c.write(1, b"content")
        assert await c.read(1) == b"content"
        await c.walk(0, 2, "f")
        with refuses(E.Eperm):
            await c.open(2, 1)


@pytest.mark.conformance(78)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_read_at_or_past_the_end_or_of_nothing_is_empty(dialect: str) -> None:
    async with one(dialect) as (_, c):
        await c.file(1, "f", b"content")
        for offset in (7, 8, 1 << 40, (1 << 63) - 100_000):
            assert await c.read(1, offset) == b""
        assert await c.read(1, 0, 0) == b""
        assert await c.read(1, 6) == b"t"


@pytest.mark.feature("session-fids")
@pytest.mark.conformance(79)
@pytest.mark.hostile(12, 51)
@pytest.mark.sec(44)
@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1, (1 << 63) - 1, (1 << 63) - 3])
async def test_offsets_no_file_can_have_are_refused_and_never_wrap(dialect: str, offset: int) -> None:
    async with one(dialect) as (_, c):
        await c.file(1, "f", b"content")
        with refuses(E.Ebadoffset):
            await c.read(1, offset, 100)
        with refuses(E.Ebadoffset, E.Efbig):
            await c.write(1, b"12345", offset)
        with refuses(E.Ebadoffset):
            await c.read(1, offset, 0xFFFFFFFF)
        assert await get(c, "f") == b"content"


@pytest.mark.conformance(14, 15)
@pytest.mark.hostile(51)
@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize("msize", [256, 4096, 8192, 1 << 20])
async def test_reads_of_four_gigabytes_stay_below_msize(dialect: str, msize: int) -> None:
    async with serving(ram.tree()) as server:
        maker = await server.client("9P2000.L")
        await maker.file(1, "f")
        for at in range(0, 2 << 20, 60_000):
            await maker.write(1, bytes(60_000), at)
        for i in range(200):
            await put(maker, f"file with a long name {i}")
        c = await server.client(dialect, msize)
        await c.walk(0, 1, "f")
        await c.open(1)
        assert len(await c.read(1, 0, 0xFFFFFFFF)) == msize - 24
        await c.walk(0, 2)
        await c.open(2)
        if is_linux(c):
            assert 0 < len((await c.rpc(l.Treaddir(2, 0, 0xFFFFFFFF))).data) <= msize - 24
        else:
            assert 0 < len(await c.read(2, 0, 0xFFFFFFFF)) <= msize - 24


@pytest.mark.conformance(14)
async def test_an_answer_too_long_for_the_agreed_msize_is_an_error_and_not_a_longer_frame() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(msize=65536)
        await c.rpc(l.Tsymlink(0, "long", "x" * 4095, 0))
        small = await server.client(msize=4096)
        await small.walk(0, 1, "long")
        with refuses(E.Erange):
            await small.rpc(l.Treadlink(1))
        tiny = await server.client(msize=256)
        await c.file(1, "f")
        await c.rpc(l.Tlock(1, 1, 0, 0, 0, 7, "c" * 1000))
        await tiny.walk(0, 1, "f")
        await tiny.open(1, 2)
        with refuses(E.Erange):
            await tiny.rpc(l.Tgetlock(1, 1, 0, 0, 7, "me"))
        assert (await getattr_of(tiny, 1)).size == 0


@pytest.mark.conformance(80)
@pytest.mark.parametrize("dialect", ALL)
async def test_two_appenders_lose_nothing(dialect: str) -> None:
    async with one(dialect) as (server, c):
        other = await server.client(dialect)
        flag = l.L_APPEND if is_linux(c) else 0
        await put(c, "log", perm=0o666 if is_linux(c) else DMAPPEND | 0o666)
        for client in (c, other):
            await client.walk(0, 1, "log")
            await client.open(1, 1 | flag)
        lines = 50
        for i in range(lines):
            c.send(i, m.Twrite(1, 0, f"a{i:03}\n".encode()))
            other.send(i, m.Twrite(1, 3, f"b{i:03}\n".encode()))
        for client in (c, other):
            for _ in range(lines):
                assert (await client.recv())[1] == m.Rwrite(5)
        found = (await get(c, "log")).split()
        assert [w for w in found if w[:1] == b"a"] == [f"a{i:03}".encode() for i in range(lines)]
        assert [w for w in found if w[:1] == b"b"] == [f"b{i:03}".encode() for i in range(lines)]


@pytest.mark.conformance(81)
@pytest.mark.parametrize("dialect", ALL)
async def test_what_a_write_acknowledges_is_what_the_file_holds(dialect: str) -> None:
    async with one(dialect) as (_, c):
        await c.file(1, "f")
        want = bytearray()
        for size, at in ((0, 0), (1, 0), (8000, 1), (40_000, 5000), (3, 100_000)):
            data = bytes(i * 7 & 0xFF for i in range(size))
            taken = await c.write(1, data, at)
            assert taken <= size
            if taken:
                want.extend(bytes(max(0, at + taken - len(want))))
                want[at : at + taken] = data[:taken]
        assert await get(c, "f") == bytes(want)


@pytest.mark.conformance(82)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_right_taken_away_after_the_open_does_not_stop_the_io(dialect: str) -> None:
    async with one(dialect) as (server, c):
        await chmod(c, 0, 0o777)
        await put(c, "f", b"content", 0o666)
        other = await stranger(server, dialect)
        await other.walk(0, 1, "f")
        await other.open(1, 2)
        await c.walk(0, 1, "f")
        await chmod(c, 1, 0)
        assert await other.read(1) == b"content"
        await other.write(1, b"CON")
        if is_linux(c):
            # ftruncate(2) as the Linux client says it: size, and both times by the server's clock
            bits = l.SETATTR_SIZE | l.SETATTR_MTIME | l.SETATTR_CTIME
            await other.rpc(l.Tsetattr(1, bits, size=3))
            assert await other.read(1) == b"CON"
        await other.walk(0, 2, "f")
        with refuses(E.Eperm):
            await other.open(2, 0)


@pytest.mark.conformance(83)
@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize("msize", [256, 4096, 65536, 1 << 20])
async def test_iounit_fits_msize_and_a_read_of_it_is_full(dialect: str, msize: int) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect, msize)
        await c.walk(0, 1)
        made = await c.create(1, "f")
        unit = made.iounit or c.msize - 24
        assert unit <= c.msize - 24
        for at in range(3):
            assert await c.write(1, bytes([at]) * unit, at * unit) == unit
        await c.walk(0, 2, "f")
        opened = await c.open(2)
        assert (opened.iounit or c.msize - 24) == unit
        assert await c.read(2, unit, unit) == b"\1" * unit


class Machine(synth.Dir):
    """A ctl whose commands leave a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    @synth.ctl
    def say(self, word: str) -> None:
        """Remember a word."""
        self.said.append(word)


@pytest.mark.conformance(88)
@pytest.mark.parametrize("dialect", ALL)
async def test_ctl_commands_run_in_order_and_a_bad_one_is_named(dialect: str) -> None:
    machine = Machine()
    async with serving(machine) as server:
        c = await server.client(dialect)
        await c.walk(0, 1, "ctl")
        await c.open(1, 1)
        for i in range(100):
            c.send(i, m.Twrite(1, 0, f"say {i}\n".encode()))
        for _ in range(100):
            await c.recv()
        assert machine.said == [str(i) for i in range(100)]
        with pytest.raises(Refused) as refused:
            await c.write(1, b"say a\nshout b\n")
        assert refused.value.errno in (0, 22)
        if not is_linux(c):
            assert "shout" in refused.value.ename
        assert machine.said[-1] == "99", "nothing of a message that has a fault is run"


@pytest.mark.conformance(69)
@pytest.mark.parametrize("dialect", OLD)
async def test_a_directory_is_created_open_for_reading(dialect: str) -> None:
    async with one(dialect) as (_, c):
        await c.walk(0, 1)
        for mode in (1, 2, OTRUNC):
            with refuses(E.Eisdir):
                await c.rpc(m.Tcreate(1, "d", DMDIR | 0o755, mode))
        assert await names(c) == []
        await c.rpc(m.Tcreate(1, "d", DMDIR | 0o755, 0))
        assert await c.read(1) == b""
        assert await size_of(c, 1) == 0
