"""protocol.md 3.7: stat, wstat, clunk, remove."""

from __future__ import annotations

import re

import pytest
from asks import ALL, OLD, chmod, get, getattr_of, is_linux, mkdir, names, put, refuses, size_of, stat
from raw9p import RawClient, Refused, serving
from trees import Tree

from ninep.answer import Answer
from ninep.file import Call, Dir, File, Handle, Symlink
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.records import UNTOUCHED, StatRecord
from ninep.proto.types import DMAPPEND, DMDIR, QTAPPEND, QTDIR, Change, Qid
from ninep.servers import ram

STRANGER = 54_321
FIELDS = StatRecord.__struct_fields__


async def raw_stat(c: RawClient, fid: int) -> bytes:
    """An Rstat's body as it came."""
    c.send(7, m.Tstat(fid))
    await c.wire.wait_readable()
    into = memoryview(bytearray(65536))
    n = c.wire.recv_into(into)
    assert n
    return bytes(into[7:n])


@pytest.mark.conformance(89)
@pytest.mark.parametrize("dialect", OLD)
async def test_the_lengths_of_a_stat_agree_and_only_u_has_a_tail(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await c.file(1, "some file", b"content")
        body = await raw_stat(c, 1)
        outer, inner = int.from_bytes(body[:2], "little"), int.from_bytes(body[2:4], "little")
        assert (outer, inner) == (len(body) - 2, len(body) - 4)
        strings = sum(len(s) for s in ("some file", "root", "root", "root"))
        assert inner == (61 if dialect == "9P2000.u" else 47) + strings
        root = await stat(c, 0)
        assert (root.name, root.length, root.perm & DMDIR, root.qid.type) == ("/", 0, DMDIR, QTDIR)
        assert (await stat(c, 1)).length == 7
        assert (root.n_uid == 0) == (dialect == "9P2000.u")
        await c.file(2, "log", perm=DMAPPEND | 0o600)
        assert (await stat(c, 2)).qid.type == QTAPPEND


class Synced(File):
    """A file that counts how often it is made durable, and changed."""

    perm = 0o666

    def __init__(self) -> None:
        super().__init__()
        self.synced = 0
        self.changes: list[Change] = []

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        return SyncedHandle(self)

    def wstat(self, call: Call, change: Change) -> None:
        self.changes.append(change)


class SyncedHandle(Handle):
    def __init__(self, file: Synced) -> None:
        self.file = file

    def fsync(self, call: Call, datasync: bool) -> None:
        self.file.synced += 1


@pytest.mark.conformance(90)
@pytest.mark.parametrize("dialect", OLD)
async def test_a_wstat_of_nothing_makes_the_file_durable_and_changes_nothing(dialect: str) -> None:
    file = Synced()
    async with serving(Tree(f=file)) as server:
        c = await server.client(dialect)
        await c.walk(0, 1, "f")
        await c.rpc(m.Twstat(1, UNTOUCHED))
        await c.open(1, 1)
        await c.rpc(m.Twstat(1, UNTOUCHED))
        assert (file.synced, file.changes) == (1, [])


@pytest.mark.conformance(91)
@pytest.mark.parametrize("dialect", OLD)
async def test_each_field_that_may_change_changes_alone(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await put(c, "f", b"content")
        await c.walk(0, 1, "f")
        changes: list[tuple[str, object]] = [
            ("name", "g"),
            ("perm", 0o640),
            ("mtime", 1_000_000),
            ("length", 3),
            ("gid", "daemon"),
        ]
        for field, value in changes:
            before = await stat(c, 1)
            await c.rpc(m.Twstat(1, StatRecord(**{field: value})))  # type: ignore[arg-type]  # one field of its kind
            after = await stat(c, 1)
            assert getattr(after, field) == value
            moved = {f for f in FIELDS if getattr(before, f) != getattr(after, f)}
            assert moved - {"qid", "n_gid"} <= {field, "mtime"} if field == "length" else {field}, moved
            assert after.qid.path == before.qid.path
        assert await names(c) == ["g"]
        assert await get(c, "g") == b"con"


PAIRS = [
    ("name", {"name": "taken", "perm": 0o600}),
    ("name", {"name": "taken", "mtime": 5}),
    ("name", {"name": "taken", "length": 0}),
    ("name", {"name": "a/b", "perm": 0o600}),
    ("perm", {"name": "new", "perm": DMDIR | 0o700}),
    ("length", {"name": "new", "length": 1 << 63}),
    ("uid", {"perm": 0o600, "uid": "daemon"}),
    ("gid", {"perm": 0o600, "mtime": 5, "gid": "no such group"}),
]


@pytest.mark.conformance(92)
@pytest.mark.hostile(61)
@pytest.mark.parametrize("dialect", OLD)
@pytest.mark.parametrize(("bad", "fields"), PAIRS)
async def test_a_wstat_that_fails_in_one_field_changes_no_other(
    dialect: str, bad: str, fields: dict[str, object]
) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await put(c, "f", b"content")
        await put(c, "taken", b"other")
        await c.walk(0, 1, "f")
        before = await stat(c, 1)
        with pytest.raises(Refused):
            await c.rpc(m.Twstat(1, StatRecord(**fields)))  # type: ignore[arg-type]  # fields of their kinds
        assert await stat(c, 1) == before
        assert sorted(await names(c)) == ["f", "taken"]
        assert (await get(c, "f"), await get(c, "taken")) == (b"content", b"other")


class Stubborn(File):
    """A file whose attributes cannot change, as only the change itself finds out."""

    perm = 0o666

    def wstat(self, call: Call, change: Change) -> None:
        raise E.Eio("the disk is gone")


class Renaming(Dir):
    """A directory of one file, whose name can change."""

    perm = 0o777

    def __init__(self, file: File) -> None:
        super().__init__()
        self.children = {"f": file}
        self.renamed: list[tuple[str, str]] = []

    def walk(self, call: Call, name: str) -> File:
        if name not in self.children:
            raise E.Enonexist(name)
        return self.children[name]

    def rename(self, call: Call, name: str, to: Dir, to_name: str, flags: int) -> None:
        self.children[to_name] = self.children.pop(name)
        self.renamed.append((name, to_name))


@pytest.mark.conformance(92)
@pytest.mark.hostile(61)
@pytest.mark.parametrize("dialect", OLD)
async def test_a_wstat_that_fails_after_its_rename_takes_the_rename_back(dialect: str) -> None:
    root = Renaming(Stubborn())
    async with serving(root) as server:
        c = await server.client(dialect)
        await c.walk(0, 1, "f")
        with refuses(E.Eio):
            await c.rpc(m.Twstat(1, StatRecord(name="g", mtime=5)))
        assert root.renamed == [("f", "g"), ("g", "f")]
        assert (await stat(c, 1)).name == "f"


@pytest.mark.hostile(61)
@pytest.mark.parametrize("dialect", OLD)
async def test_every_mix_of_touched_fields_is_done_whole_or_not_at_all(dialect: str) -> None:
    values: dict[str, object] = {
        "type": 7, "dev": 7, "qid": Qid(0, 7, 7), "perm": 0o640, "atime": 77, "mtime": 99, "length": 2, "name": "g",
        "uid": "daemon", "gid": "daemon", "muid": "daemon",
    }  # fmt: skip
    allowed = {"perm", "mtime", "length", "name", "gid"}
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        for mix in range(1, 1 << len(values), 7):
            fields = {name: value for i, (name, value) in enumerate(values.items()) if mix >> i & 1}
            await put(c, "f", b"content")
            await c.walk(0, 1, "f")
            before = await stat(c, 1)
            ok = set(fields) <= allowed or (
                set(fields) <= allowed | {"atime"} and ("mtime" in fields or dialect == "9P2000.u")
            )
            try:
                await c.rpc(m.Twstat(1, StatRecord(**fields)))  # type: ignore[arg-type]  # fields of their kinds
            except Refused:
                assert not ok, fields
                assert await stat(c, 1) == before, fields
            else:
                assert ok, fields
                after = await stat(c, 1)
                assert {f: getattr(after, f) for f in fields} == fields
            await c.rpc(m.Tremove(1))


@pytest.mark.conformance(93)
@pytest.mark.parametrize("dialect", OLD)
async def test_what_nobody_may_change_is_refused_and_its_present_value_is_not(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await put(c, "f", b"content")
        await c.walk(0, 1, "f")
        before = await stat(c, 1)
        fixed: dict[str, object] = {
            "uid": "daemon", "muid": "daemon", "type": 3, "dev": 3, "qid": Qid(0, 1, 99), "perm": DMDIR | 0o644,
        }  # fmt: skip
        if dialect == "9P2000":
            fixed["atime"] = 5
        for field, value in fixed.items():
            with refuses(E.Enotallowed):
                await c.rpc(m.Twstat(1, StatRecord(**{field: value})))  # type: ignore[arg-type]  # of its kind
            present = getattr(before, field)
            await c.rpc(m.Twstat(1, StatRecord(**{field: present})))
        after = await stat(c, 1)
        assert after == before


@pytest.mark.conformance(94)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_rename_replaces_in_9p2000_l_alone(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await put(c, "a", b"from")
        await put(c, "b", b"over")
        await c.walk(0, 1, "a")
        if is_linux(c):
            await c.walk(0, 2, "b")
            await c.open(2)
            await c.rpc(l.Trenameat(0, "a", 0, "b"))
            assert (await names(c), await get(c, "b")) == (["b"], b"from")
            assert await c.read(2) == b"over", "what was replaced lives on for who has it open"
        else:
            with refuses(E.Eexist):
                await c.rpc(m.Twstat(1, StatRecord(name="b")))
            assert (await get(c, "a"), await get(c, "b")) == (b"from", b"over")


@pytest.mark.conformance(95)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_file_is_cut_and_grown_and_a_directory_is_not(dialect: str) -> None:
    async def resize(fid: int, size: int) -> None:
        if is_linux(c):
            await c.rpc(l.Tsetattr(fid, l.SETATTR_SIZE, size=size))
        else:
            await c.rpc(m.Twstat(fid, StatRecord(length=size)))

    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await put(c, "f", b"content")
        await mkdir(c, "d")
        await c.walk(0, 1, "f")
        await c.walk(0, 2, "d")
        await resize(1, 3)
        await resize(1, 6)
        assert await get(c, "f") == b"con\0\0\0"
        with refuses(E.Eisdir):
            await resize(2, 5)
        if not is_linux(c):
            await resize(2, 0)
        assert await size_of(c, 2) == 0
        with refuses(E.Efbig):
            await resize(1, 1 << 63)


@pytest.mark.conformance(96)
@pytest.mark.parametrize("dialect", OLD)
async def test_a_stat_record_that_does_not_fit_is_refused_and_never_cut(dialect: str) -> None:
    class Wordy(Symlink):
        def readlink(self, call: Call) -> str:
            return "x" * 4095

    async with serving(Tree(**{"n" * 255: File(), "link": Wordy()})) as server:
        c = await server.client(dialect, 256)
        await c.walk(0, 1, "link")
        if dialect == "9P2000.u":
            with refuses(E.Erange):
                await c.rpc(m.Tstat(1))
        assert (await stat(c, 0)).name == "/"


@pytest.mark.conformance(97)
async def test_a_clunk_frees_its_fid_whether_it_succeeds_or_not() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await put(c, "f")
        await c.walk(0, 1, "f")
        await c.rpc(l.Txattrcreate(1, "user.x", 5, 0))
        with refuses(E.Ebadarg):  # five bytes were promised, and none came
            await c.clunk(1)
        for _ in range(2):
            with refuses(E.Ebadfid):
                await c.clunk(1)
        await c.walk(0, 1, "f")
        await c.clunk(1)
        with refuses(E.Ebadfid):
            await c.clunk(1)


@pytest.mark.conformance(97)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_close_that_fails_frees_the_fid(dialect: str) -> None:
    class Failing(File):
        def open(self, call: Call, omode: int) -> Handle:
            return FailingHandle()

    class FailingHandle(Handle):
        def close(self, call: Call) -> None:
            raise E.Enospc("at close")

    async with serving(Tree(f=Failing())) as server:
        c = await server.client(dialect)
        await c.walk(0, 1, "f")
        await c.open(1)
        with refuses(E.Enospc):
            await c.clunk(1)
        await c.walk(0, 1, "f")


@pytest.mark.conformance(98)
@pytest.mark.hostile(35)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_refused_remove_frees_its_fid(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await mkdir(c, "full")
        await c.walk(0, 9, "full")
        await put(c, "inside", fid=9)
        await put(c, "f", b"content")
        stranger = await server.client(dialect, attach=False)
        await stranger.attach(0, str(STRANGER), STRANGER)
        for client, way, row in (
            (c, ("full",), E.Enotempty),
            (c, (), E.Eperm),
            (stranger, ("f",), E.Eperm),
            (stranger, (), E.Eperm),
        ):
            await client.walk(0, 1, *way)
            with refuses(row):
                await client.rpc(m.Tremove(1))
            with refuses(E.Ebadfid):
                await client.clunk(1)
        assert sorted(await names(c)) == ["f", "full"]
        assert await get(c, "f") == b"content"


@pytest.mark.conformance(98)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_remove_takes_the_file_it_was_walked_to_and_no_other(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await put(c, "f", b"old")
        await c.walk(0, 1, "f")
        await c.walk(0, 2, "f")
        await c.rpc(m.Tremove(2))
        await put(c, "f", b"new")
        with refuses(E.Estale):
            await c.rpc(m.Tremove(1))
        assert await get(c, "f") == b"new"


@pytest.mark.conformance(99)
async def test_a_removed_file_is_used_on_through_fids_that_hold_it() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await c.file(1, "f", b"content")
        await c.walk(0, 2, "f")
        await c.rpc(l.Tunlinkat(0, "f", 0))
        assert (await getattr_of(c, 1)).nlink == 0
        assert await c.read(1) == b"content"
        await c.write(1, b"CON")
        await c.rpc(l.Tsetattr(1, l.SETATTR_SIZE, size=3))
        await c.rpc(l.Tsetattr(1, l.SETATTR_MODE, 0o600))
        assert await c.read(1) == b"CON"
        assert (await getattr_of(c, 2)).size == 3
        with refuses(E.Enonexist, E.Estale):
            await c.walk(0, 3, "f")


@pytest.mark.conformance(100)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_renamed_directory_carries_the_fids_below_it(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        await mkdir(c, "d")
        await c.walk(0, 1, "d")
        await put(c, "f", b"content", fid=1)
        await c.walk(1, 2, "f")
        await c.walk(1, 3, "f")
        await c.open(3)
        if is_linux(c):
            await c.rpc(l.Trenameat(0, "d", 0, "e"))
        else:
            await c.walk(0, 4, "d")
            await c.rpc(m.Twstat(4, StatRecord(name="e")))
        assert await c.read(3) == b"content"
        await c.open(2, 1)
        await c.write(2, b"CON")
        assert await get(c, "e", "f") == b"CONtent"
        await put(c, "g", fid=1)
        assert sorted(await names(c, 1)) == ["f", "g"]


class Refusing(Dir):
    """Walking to a row's name is answered with that row."""

    def walk(self, call: Call, name: str) -> File:
        row = next(row for row in E.TABLE if row.__name__ == name)
        raise row("a file with a long name, " + "é" * 300)


@pytest.mark.conformance(101)
@pytest.mark.parametrize("dialect", OLD)
async def test_every_error_has_a_text_the_linux_client_has_room_for(dialect: str) -> None:
    async with serving(Refusing()) as server:
        c = await server.client(dialect)
        for row in E.TABLE:
            if row is E.Eerrno:
                continue
            with pytest.raises(Refused) as refused:
                await c.walk(0, 1, row.__name__)
            assert refused.value.ename.startswith(row.text)
            assert len(refused.value.ename.encode()) <= 126
            assert re.fullmatch("[ -~é]+", refused.value.ename)
            assert refused.value.errno == (row.errno if dialect == "9P2000.u" else 0)
            assert refused.value.errno < 512


@pytest.mark.conformance(102)
@pytest.mark.hostile(38)
async def test_u_makes_links_pipes_and_symlinks_and_devices_by_policy() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client("9P2000.u")
        await c.file(1, "f", b"content")

        async def special(name: str, bits: int, extension: str) -> StatRecord:
            await c.walk(0, 5)
            try:
                await c.rpc(m.Tcreate(5, name, bits | 0o644, 0, extension))
                return await stat(c, 5)
            finally:
                await c.clunk(5)

        link = await special("sym", 0x02000000, "../any/where")
        assert (link.perm & 0x02000000, link.extension) == (0x02000000, "../any/where")
        pipe = await special("pipe", 0x00200000, "")
        assert pipe.perm & 0x00200000
        assert (await special("sock", 0x00100000, "")).perm & 0x00100000
        await special("hard", 0x01000000, "1\n")
        assert (await c.walk(0, 6, "hard"))[0].path == (await stat(c, 1)).qid.path
        for name, extension in (("b", "b 8 0"), ("c", "c 1 3")):
            with refuses(E.Enotallowed):
                await special(name, 0x00800000, extension)
        for extension in ("", "c", "c 1", "x 1 3", "c -1 3", "c 1 3 5", "c 99999 0", "c 1 " + "9" * 60_000):
            with refuses(E.Ebadarg):
                await special("dev", 0x00800000, extension)
        for extension in ("", "99", "-1", " 1", "1 ", "1\n\n", "+1", "0x1", "²", "9" * 10, "9" * 60_000):
            with refuses(E.Ebadarg, E.Ebadfid):
                await special("hard2", 0x01000000, extension)
        other = await server.client("9P2000.u")
        await other.walk(0, 77, "f")
        with refuses(E.Ebadfid):
            await special("theirs", 0x01000000, "77\n")
        assert sorted(await names(c)) == ["f", "hard", "pipe", "sock", "sym"]


@pytest.mark.conformance(102)
@pytest.mark.sec(37)
async def test_special_files_are_refused_where_the_dialect_has_none() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client("9P2000")
        for bits in (0x02000000, 0x01000000, 0x00800000, 0x00200000, 0x00100000, 0x00080000, 0x08000000):
            await c.walk(0, 1)
            with refuses(E.Ebadarg):
                await c.rpc(m.Tcreate(1, "x", bits | 0o644, 0))
            await c.clunk(1)
        assert await names(c) == []
        await put(c, "f")
        await c.walk(0, 1, "f")
        await chmod(c, 1, 0o600)
