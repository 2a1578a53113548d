"""protocol.md 3.8: the rest of 9P2000.L."""

from __future__ import annotations

import time

import pytest
from asks import get, getattr_of, mkdir, names, put, readdir, refuses
from raw9p import RawClient, serving

from ninep.file import Call, File, Handle
from ninep.namespace.namespace import Namespace
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.types import OFFSET_MAX
from ninep.servers import ram

BITS = [1 << i for i in range(14)]


async def with_file(c: RawClient) -> None:
    """Fid 1 walked to a file f, not open."""
    await put(c, "f", b"content")
    await c.walk(0, 1, "f")


@pytest.mark.conformance(103)
async def test_getattr_answers_no_more_than_asked_and_all_of_basic() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await with_file(c)
        for fid in (0, 1):
            for bit in BITS:
                assert (await getattr_of(c, fid, bit)).valid & ~bit == 0
            assert (await getattr_of(c, fid, l.GETATTR_BASIC)).valid == l.GETATTR_BASIC
            for mask in (0, l.GETATTR_ALL, 1 << 63 | 1, (1 << 64) - 1):
                assert (await getattr_of(c, fid, mask)).valid & ~(mask & l.GETATTR_ALL) == 0


@pytest.mark.conformance(104)
async def test_a_getattr_reply_is_160_bytes_with_type_bits_and_sane_nanoseconds() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await with_file(c)
        await c.rpc(l.Tsymlink(0, "s", "f", 0))
        await c.walk(0, 2, "s")
        for fid, kind in ((0, 0o040000), (1, 0o100000), (2, 0o120000)):
            reply = await getattr_of(c, fid)
            assert len(c.dialect.encode(1, reply)) == 160
            assert reply.mode & 0o170000 == kind
            for clock in ("atime", "mtime", "ctime", "btime"):
                assert 0 <= getattr(reply, f"{clock}_nsec") < 10**9
                assert abs(getattr(reply, f"{clock}_sec") - time.time()) < 3600


@pytest.mark.conformance(105)
async def test_each_attribute_is_set_alone() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await with_file(c)

        async def change(valid: int, **fields: int) -> set[str]:
            before = await getattr_of(c, 1)
            await c.rpc(l.Tsetattr(1, valid, **fields))
            after = await getattr_of(c, 1)
            return {f for f in before.__struct_fields__ if getattr(before, f) != getattr(after, f)}

        times = {"ctime_sec", "ctime_nsec"}
        assert await change(l.SETATTR_MODE, mode=0o640) - times == {"mode"}
        assert await change(l.SETATTR_UID, uid=7) - times == {"uid"}
        assert await change(l.SETATTR_GID, gid=8) - times == {"gid"}
        moved = await change(l.SETATTR_SIZE, size=3) - times
        assert moved - {"mtime_sec", "mtime_nsec", "qid", "data_version", "blocks"} == {"size"}
        assert await change(l.SETATTR_ATIME | l.SETATTR_ATIME_SET, atime_sec=5, atime_nsec=6) - times == {
            "atime_sec",
            "atime_nsec",
        }
        assert await change(l.SETATTR_MTIME | l.SETATTR_MTIME_SET, mtime_sec=7, mtime_nsec=8) - times == {
            "mtime_sec",
            "mtime_nsec",
        }
        assert (await getattr_of(c, 1)).atime_sec == 5
        await change(l.SETATTR_ATIME, atime_sec=99)
        await change(l.SETATTR_MTIME, mtime_sec=99)
        now = await getattr_of(c, 1)
        for clock in ("atime_sec", "mtime_sec"):
            assert abs(getattr(now, clock) - time.time()) < 3600, "without a time of its own: now"
        assert await change(l.SETATTR_CTIME) <= times
        assert await change(l.SETATTR_CTIME) != set()
        for unknown in (0x200, 1 << 31):
            with refuses(E.Ebadarg):
                await c.rpc(l.Tsetattr(1, unknown))
        assert await change(0) == set()


@pytest.mark.conformance(105)
async def test_who_may_not_write_a_file_touches_none_of_its_times() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await with_file(c)
        stranger = await server.client(attach=False)
        await stranger.attach(0, "", 54_321)
        await stranger.walk(0, 1, "f")
        before = await getattr_of(c, 1)
        for valid in (1 << i for i in range(9)):
            if valid in (l.SETATTR_ATIME_SET, l.SETATTR_MTIME_SET):
                continue  # of their own they say nothing
            with refuses(E.Eperm, E.Enotallowed):
                await stranger.rpc(l.Tsetattr(1, valid, mode=0o777, uid=54_321, gid=54_321))
        assert await getattr_of(c, 1) == before


@pytest.mark.conformance(106)
async def test_type_bits_in_a_mode_are_ignored() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await with_file(c)
        await c.rpc(l.Tsetattr(1, l.SETATTR_MODE, 0o040000 | 0o700))
        assert (await getattr_of(c, 1)).mode == 0o100700
        await c.rpc(l.Tmkdir(0, "d", 0o100000 | 0o711, 0))
        await c.walk(0, 2, "d")
        assert (await getattr_of(c, 2)).mode == 0o040711


@pytest.mark.conformance(107)
async def test_an_open_file_that_was_unlinked_can_be_truncated() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await c.file(1, "f", b"content", perm=0o400)
        await c.rpc(l.Tunlinkat(0, "f", 0))
        await c.rpc(l.Tsetattr(1, l.SETATTR_SIZE, size=3))
        assert await c.read(1) == b"con"


@pytest.mark.conformance(108)
async def test_lopen_drops_what_concerns_the_clients_kernel_alone() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await put(c, "f", b"content")
        dropped = (
            l.L_CREATE, l.L_EXCL, l.L_NOCTTY, l.L_NONBLOCK, l.L_FASYNC, l.L_DIRECT, l.L_LARGEFILE, l.L_NOATIME,
            l.L_CLOEXEC, l.L_NOFOLLOW, l.L_DSYNC, l.L_SYNC,
        )  # fmt: skip
        for flag in dropped:
            await c.walk(0, 1, "f")
            await c.open(1, 2 | flag)
            assert await c.read(1) == b"content"
            await c.clunk(1)
        await c.walk(0, 1, "f")
        with refuses(E.Enotdir):
            await c.open(1, l.L_DIRECTORY)
        with refuses(E.Ebadarg):
            await c.open(1, l.L_NOACCESS)
        await c.rpc(l.Tsymlink(0, "s", "f", 0))
        await c.walk(0, 2, "s")
        with refuses(E.Eloop):
            await c.open(2, 0)
        await c.walk(0, 3)
        await c.open(3, l.L_DIRECTORY)


@pytest.mark.conformance(109)
async def test_lcreate_obeys_excl_and_trunc_and_keeps_twelve_mode_bits() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await put(c, "f", b"content")
        await c.walk(0, 1)
        with refuses(E.Eexist):
            await c.rpc(l.Tlcreate(1, "f", 2 | l.L_CREATE | l.L_EXCL, 0o644, 0))
        await c.rpc(l.Tlcreate(1, "f", 2 | l.L_CREATE, 0o600, 0))
        assert await c.read(1) == b"content"
        assert (await getattr_of(c, 1)).mode == 0o100644, "what exists keeps its mode"
        await c.walk(0, 2)
        await c.rpc(l.Tlcreate(2, "f", 1 | l.L_TRUNC, 0o600, 0))
        assert await c.read(1) == b""
        await c.walk(0, 3)
        await c.rpc(l.Tlcreate(3, "g", 2, 0o170000 | 0o4755, 0))
        assert (await getattr_of(c, 3)).mode == 0o104755
        await mkdir(c, "d")
        await c.rpc(l.Tsymlink(0, "s", "f", 0))
        await c.walk(0, 4)
        with refuses(E.Eisdir):
            await c.rpc(l.Tlcreate(4, "d", 2, 0o644, 0))
        with refuses(E.Eloop):
            await c.rpc(l.Tlcreate(4, "s", 2, 0o644, 0))
        stranger = await server.client(attach=False)
        await stranger.attach(0, "", 54_321)
        await stranger.walk(0, 1)
        for name, flags in (("f", 2), ("f", l.L_TRUNC), ("new", 2)):
            with refuses(E.Eperm):
                await stranger.rpc(l.Tlcreate(1, name, flags, 0o644, 0))
        await stranger.rpc(l.Tlcreate(1, "f", 0, 0o644, 0))


@pytest.mark.conformance(123)
async def test_unlinkat_tells_files_from_directories_and_leaves_the_victims_fids() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await with_file(c)
        await mkdir(c, "d")
        await c.walk(0, 2, "d")
        await c.walk(0, 3)
        await c.open(3)
        with refuses(E.Eisdir):
            await c.rpc(l.Tunlinkat(3, "d", 0))
        with refuses(E.Enotdir):
            await c.rpc(l.Tunlinkat(3, "f", l.L_REMOVEDIR))
        for flags in (1, 0x201, 1 << 31):
            with refuses(E.Ebadarg):
                await c.rpc(l.Tunlinkat(3, "f", flags))
        for name in (".", "..", "", "a/b"):
            with refuses(E.Ebadchar):
                await c.rpc(l.Tunlinkat(3, name, l.L_REMOVEDIR))
        await c.open(1)
        await c.rpc(l.Tunlinkat(3, "f", 0))
        await c.rpc(l.Tunlinkat(3, "d", l.L_REMOVEDIR))
        assert await c.read(1) == b"content"
        assert (await getattr_of(c, 2)).nlink == 0
        with refuses(E.Enonexist):
            await c.rpc(l.Tlcreate(2, "in a removed directory", 2, 0o644, 0))
        assert [e.name for e in await readdir(c, 3)] == [".", ".."]


@pytest.mark.conformance(124)
@pytest.mark.sec(32, 33)
async def test_a_directory_is_not_moved_into_itself_and_nothing_out_of_its_export() -> None:
    space = Namespace(ram.tree())
    space.anames["other"] = ram.tree()
    async with serving(space) as server:
        c = await server.client()
        await mkdir(c, "a")
        await c.walk(0, 1, "a")
        await mkdir(c, "b", fid=1)
        await c.walk(1, 2, "b")
        await put(c, "f", b"content")
        for to in (1, 2):
            with refuses(E.Ebadarg):
                await c.rpc(l.Trenameat(0, "a", to, "x"))
            with refuses(E.Ebadarg):
                await c.walk(0, 5, "a")
                try:
                    await c.rpc(l.Trename(5, to, "x"))
                finally:
                    await c.clunk(5)
        await c.attach(9, aname="other")
        with refuses(E.Exdev):
            await c.rpc(l.Trenameat(0, "f", 9, "f"))
        await c.walk(0, 6, "f")
        with refuses(E.Exdev):
            await c.rpc(l.Trename(6, 9, "f"))
        with refuses(E.Exdev):
            await c.rpc(l.Tlink(9, 6, "f"))
        assert (await names(c), await names(c, 9)) == (["a", "f"], [])
        await c.rpc(l.Trename(6, 1, "g"))
        assert await get(c, "a", "g") == b"content"
        await c.rpc(m.Tremove(6))  # the fid went along
        assert await names(c, 1) == ["b"]


@pytest.mark.conformance(125)
@pytest.mark.hostile(41)
async def test_links_to_directories_are_refused_and_a_links_text_is_kept() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await mkdir(c, "d")
        await c.walk(0, 1, "d")
        with refuses(E.Enotallowed):
            await c.rpc(l.Tlink(0, 1, "hard"))
        with refuses(E.Ebadarg):
            await c.rpc(l.Treadlink(1))
        targets = ["f", "../../../etc/passwd", "/proc/self/root", "//a/./b", "é\udcff", "x" * 4095, " \n\x1b[2J"]
        for i, target in enumerate(targets):
            await c.rpc(l.Tsymlink(0, f"s{i}", target, 0))
            await c.walk(0, 10 + i, f"s{i}")
            assert (await c.rpc(l.Treadlink(10 + i))).target == target
        with refuses(E.Enametoolong):
            await c.rpc(l.Tsymlink(0, "long", "x" * 4096, 0))
        with refuses(E.Enonexist):
            await c.rpc(l.Tsymlink(0, "empty", "", 0))
        for name in ("", ".", "..", "a/b", "x" * 256):
            with refuses(E.Ebadchar, E.Enametoolong):
                await c.rpc(l.Tsymlink(0, name, "f", 0))
            with refuses(E.Ebadchar, E.Enametoolong):
                await c.rpc(l.Tmkdir(0, name, 0o755, 0))
            with refuses(E.Ebadchar, E.Enametoolong):
                await c.rpc(l.Tmknod(0, name, 0o644, 0, 0, 0))
            with refuses(E.Ebadchar, E.Enametoolong):
                await c.rpc(l.Tlink(0, 10, name))
            with refuses(E.Ebadchar, E.Enametoolong):
                await c.rpc(l.Trenameat(0, "d", 0, name))
            with refuses(E.Ebadchar, E.Enametoolong):
                await c.rpc(l.Trenameat(0, name, 0, "e"))
            with refuses(E.Ebadchar, E.Enametoolong):
                await c.rpc(l.Trename(1, 0, name))
        assert len(await names(c)) == 1 + len(targets)


@pytest.mark.conformance(126)
@pytest.mark.hostile(58)
@pytest.mark.sec(35)
async def test_mknod_makes_plain_files_and_no_devices() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        for name, mode in (("plain", 0o100644), ("bare", 0o640), ("pipe", 0o010600), ("sock", 0o140600)):
            await c.rpc(l.Tmknod(0, name, mode, 0, 0, 0))
            await c.walk(0, 1, name)
            assert (await getattr_of(c, 1)).mode == (mode if mode > 0o777 else mode | 0o100000)
            await c.clunk(1)
        for mode in (0o020666, 0o060666):
            with refuses(E.Enotallowed):
                await c.rpc(l.Tmknod(0, "dev", mode, 1, 3, 0))
        for mode in (0o040755, 0o120777, 0o170000):
            with refuses(E.Ebadarg):
                await c.rpc(l.Tmknod(0, "odd", mode, 0, 0, 0))
        await c.walk(0, 2, "plain")
        await c.open(2, 2)
        await c.write(2, b"content")
        await c.walk(0, 3, "pipe")
        with refuses(E.Enxio):
            await c.open(3, 0)
        assert await names(c) == ["plain", "bare", "pipe", "sock"]


class Durable(File):
    """A file that remembers how it was synced."""

    perm = 0o666

    def __init__(self) -> None:
        super().__init__()
        self.synced: list[bool] = []

    def open(self, call: Call, omode: int) -> Handle:
        return DurableHandle(self)


class DurableHandle(Handle):
    def __init__(self, file: Durable) -> None:
        self.file = file

    def fsync(self, call: Call, datasync: bool) -> None:
        self.file.synced.append(datasync)


@pytest.mark.conformance(127)
async def test_fsync_is_understood_in_its_old_form_and_its_new() -> None:
    from trees import Tree

    file = Durable()
    async with serving(Tree(f=file)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1, 2)
        whole = c.dialect.encode(5, l.Tfsync(1, 1))
        assert len(whole) == 15
        c.send_bytes(whole + c.dialect.encode(6, l.Tfsync(1, 0)) + (11).to_bytes(4, "little") + whole[4:11])
        assert [await c.recv() for _ in range(3)] == [(5, l.Rfsync()), (6, l.Rfsync()), (5, l.Rfsync())]
        assert file.synced == [True, False, False]


@pytest.mark.conformance(128)
async def test_statfs_has_67_bytes_the_9p_number_and_the_name_limit() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        reply = await c.rpc(l.Tstatfs(0))
        assert len(c.dialect.encode(1, reply)) == 67
        assert (reply.type, reply.namelen) == (0x01021997, 255)
        assert 0 < reply.bavail <= reply.bfree <= reply.blocks


@pytest.mark.hostile(57)
@pytest.mark.parametrize(
    ("valid", "fields"),
    [
        (l.SETATTR_ATIME | l.SETATTR_ATIME_SET, {"atime_sec": (1 << 64) - 1}),
        (l.SETATTR_MTIME | l.SETATTR_MTIME_SET, {"mtime_sec": 1 << 63}),
        (l.SETATTR_MTIME | l.SETATTR_MTIME_SET, {"mtime_nsec": 10**9}),
        (l.SETATTR_ATIME | l.SETATTR_ATIME_SET, {"atime_nsec": (1 << 64) - 1}),
        (l.SETATTR_UID, {"uid": 0xFFFFFFFF}),
        (l.SETATTR_GID, {"gid": 0xFFFFFFFF}),
        (l.SETATTR_SIZE, {"size": 1 << 63}),
        (l.SETATTR_SIZE, {"size": (1 << 64) - 1}),
    ],
)
async def test_numbers_no_file_can_have_are_refused(valid: int, fields: dict[str, int]) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await with_file(c)
        before = await getattr_of(c, 1)
        with refuses(E.Ebadarg, E.Efbig):
            await c.rpc(l.Tsetattr(1, valid, **fields))
        assert await getattr_of(c, 1) == before


@pytest.mark.hostile(55)
@pytest.mark.sec(45)
async def test_sparse_giants_cost_their_data_and_no_more() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await c.file(1, "f")
        with refuses(E.Efbig, E.Ebadoffset):
            await c.write(1, b"x" * 10, OFFSET_MAX - 5)
        await c.rpc(l.Tsetattr(1, l.SETATTR_SIZE, size=OFFSET_MAX))
        await c.write(1, b"x", 1 << 62)
        got = await getattr_of(c, 1)
        assert (got.size, got.blocks * 512 <= 1 << 17) == (OFFSET_MAX, True)
        assert await c.read(1, (1 << 62) - 2, 4) == b"\0\0x\0"
