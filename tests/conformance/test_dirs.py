"""protocol.md R5-R8: directories read as records (9P2000, .u) and as entries (.L)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio
from asks import ALL, OLD, all_entries, is_linux, mkdir, names, put, readdir, records, refuses
from raw9p import serving
from trees import Tree

from ninep.answer import Answer
from ninep.file import Call, Dir, Handle, ListHandle
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.records import pack_stat, unpack_dirents, unpack_stats
from ninep.proto.types import DT_DIR, DT_FIFO, DT_LNK, DT_REG, DT_SOCK, QTDIR, QTSYMLINK, Entry
from ninep.servers import ram


def ram_of(count: int, prefix: str = "file ") -> Dir:
    """A ram tree of empty files, made without a wire."""
    root = ram.tree()
    for i in range(count):
        root.create(Call(), f"{prefix}{i:05}", 0o644, 1)
    return root


@pytest.mark.conformance(84)
@pytest.mark.parametrize("dialect", OLD)
@pytest.mark.parametrize("count", [100, 137, 500, 4096, 60_000])
async def test_a_listing_is_whole_records_whatever_the_count(dialect: str, count: int) -> None:
    dotu = dialect == "9P2000.u"
    async with serving(ram_of(300)) as server:
        c = await server.client(dialect)
        await c.walk(0, 1)
        await c.open(1)
        found: list[str] = []
        at = 0
        while data := await c.read(1, at, count):
            assert len(data) <= count
            got = unpack_stats(data, dotu)  # raises unless the records fill it exactly
            assert b"".join(pack_stat(r, dotu) for r in got) == data
            found += [r.name for r in got]
            at += len(data)
        assert found == [f"file {i:05}" for i in range(300)]
        assert await c.read(1, at, count) == b"", "the end stays the end"


@pytest.mark.conformance(84)
@pytest.mark.sec(56)
@pytest.mark.hostile(52)
@pytest.mark.parametrize("dialect", OLD)
async def test_a_read_goes_on_where_the_last_ended_or_starts_again(dialect: str) -> None:
    async with serving(ram_of(50)) as server:
        c = await server.client(dialect)
        await c.walk(0, 1)
        await c.open(1)
        for offset in (1, 5, 1 << 62, (1 << 64) - 1):
            with refuses(E.Ediroffset):
                await c.read(1, offset, 500)
        first = await c.read(1, 0, 500)
        second = await c.read(1, len(first), 500)
        for offset in (len(first), len(first) + 1, len(first) + len(second) - 1, len(first) + len(second) + 1):
            with refuses(E.Ediroffset):
                await c.read(1, offset, 500)
        third = await c.read(1, len(first) + len(second), 500)
        assert await c.read(1, 0, 500) == first
        assert await c.read(1, len(first), 500) == second
        assert await c.read(1, len(first) + len(second), 500) == third
        assert len({first, second, third}) == 3
        await c.walk(0, 2)
        await c.open(2)
        with refuses(E.Ediroffset):  # another fid's place
            await c.read(2, len(first), 500)


@pytest.mark.sec(56)
async def test_without_the_memory_of_where_a_read_ended_any_offset_is_believed() -> None:
    """The control: with the place of the last read made equal to whatever is asked, nothing is refused."""

    class Anywhere:
        def __ne__(self, other: object) -> bool:
            return False

    async with serving(ram_of(50)) as server:
        c = await server.client("9P2000")
        await c.walk(0, 1)
        await c.open(1)
        first = await c.read(1, 0, 500)
        for fid in server.node.sessions:
            fid.fids.get(1).dir_read.offset = Anywhere()  # type: ignore[attr-defined]  # a Session
        assert await c.read(1, len(first) + 7, 500) != b"", "records for an offset that nobody was given"


@pytest.mark.conformance(85)
@pytest.mark.parametrize("dialect", OLD)
async def test_a_count_below_the_next_record_is_an_error_and_loses_nothing(dialect: str) -> None:
    async with serving(ram_of(3)) as server:
        c = await server.client(dialect)
        await c.walk(0, 1)
        await c.open(1)
        for count in (0, 1, 2, 60):
            with refuses(E.Esmall):
                await c.read(1, 0, count)
        first = await c.read(1, 0, 100)
        with refuses(E.Esmall):
            await c.read(1, len(first), 10)
        rest = await c.read(1, len(first), 8000)
        dotu = dialect == "9P2000.u"
        assert [r.name[-1] for r in unpack_stats(first + rest, dotu)] == ["0", "1", "2"]
        assert await c.read(1, len(first) + len(rest), 1) == b""


@pytest.mark.conformance(86)
@pytest.mark.parametrize("dialect", OLD)
async def test_there_are_no_dots_in_a_record_listing(dialect: str) -> None:
    async with serving(ram_of(3)) as server:
        c = await server.client(dialect)
        await mkdir(c, "d")
        await c.walk(0, 1, "d")
        await c.open(1)
        assert await records(c, 1) == []
        await c.walk(0, 2)
        await c.open(2)
        assert [r.name for r in await records(c, 2)] == ["file 00000", "file 00001", "file 00002", "d"]


@pytest.mark.conformance(87)
@pytest.mark.hostile(54)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_directory_changed_while_listed_shows_each_lasting_entry_once(dialect: str) -> None:
    rng = random.Random(87)
    async with serving(ram_of(400)) as server:
        c = await server.client(dialect)
        await c.walk(0, 1)
        await c.open(1)
        found: list[str] = []
        lasting = {f"file {i:05}" for i in range(0, 400, 2)}
        passing = [f"file {i:05}" for i in range(1, 400, 2)]
        rng.shuffle(passing)
        at, turns = 0, 0
        while True:
            if is_linux(c):
                entries = await readdir(c, 1, at, 400)
                got = [e.name for e in entries]
                at = entries[-1].cookie if entries else at
            else:
                data = await c.read(1, at, 600)
                got = [r.name for r in unpack_stats(data, dialect == "9P2000.u")]
                at += len(data)
            if not got:
                break
            found += got
            turns += 1
            for _ in range(6):
                if passing:
                    await c.walk(0, 2, passing.pop())
                    await c.rpc(m.Tremove(2))
            if turns < 200:  # or it would never end: what is made comes last
                await put(c, f"new {turns}")
        assert {name for name in found if name in lasting} == lasting
        assert len(found) == len(set(found))


class SlowListing(Dir):
    """A directory whose entries come when `gate` opens."""

    def __init__(self, **children: Dir) -> None:
        super().__init__()
        self.children = children
        self.gate = trio.Event()

    def walk(self, call: Call, name: str) -> Dir:
        return self.children[name]

    def list(self, call: Call) -> Answer[list[tuple[str, Dir]]]:  # type: ignore[override]  # a list is iterable
        return self._list()

    async def _list(self) -> list[tuple[str, Dir]]:
        await self.gate.wait()
        return list(self.children.items())


@pytest.mark.hostile(52)
@pytest.mark.parametrize("dialect", OLD)
async def test_reads_of_one_directory_at_once_do_not_share_their_place(dialect: str) -> None:
    slow = SlowListing(a=Dir(), b=Dir())
    async with serving(slow) as server:
        c = await server.client(dialect)
        await c.walk(0, 1)
        await c.open(1)
        c.send_all(*((tag, m.Tread(1, 0, 8000)) for tag in range(5)))
        await c.quiet()
        slow.gate.set()
        replies = [(await c.recv())[1] for _ in range(5)]
        whole = [r for r in replies if isinstance(r, m.Rread)]
        assert whole
        for reply in whole:
            assert [r.name for r in unpack_stats(reply.data, dialect == "9P2000.u")] == ["a", "b"]
        first = await c.read(1, 0, 100)
        slow.gate = trio.Event()
        c.send_all(*((tag, m.Tread(1, len(first), 8000)) for tag in range(5)))
        slow.gate.set()
        assert len([await c.recv() for _ in range(5)]) == 5
        assert [r.name for r in await records(c, 1)] == ["a", "b"]


# -- 9P2000.L


@pytest.mark.conformance(110)
@pytest.mark.parametrize("count", [512, 4096, 65536 - 24])
async def test_ten_thousand_entries_come_once_each(count: int) -> None:
    async with serving(ram_of(10_000)) as server:
        c = await server.client()
        await c.walk(0, 1)
        await c.open(1)
        found = [e.name for e in await all_entries(c, 1, count=count)]
        assert found == [".", "..", *(f"file {i:05}" for i in range(10_000))]


@pytest.mark.conformance(110, 111)
async def test_a_listing_goes_on_after_any_of_its_ten_thousand_cookies() -> None:
    async with serving(ram_of(10_000)) as server:
        c = await server.client()
        await c.walk(0, 1)
        await c.open(1)
        entries = await all_entries(c, 1)
        cookies = [e.cookie for e in entries]
        assert len(set(cookies)) == len(cookies)
        assert all(0 < cookie < 1 << 63 for cookie in cookies)
        for first in range(0, len(entries), 100):
            some = range(first, min(first + 100, len(entries)))
            c.send_all(*((i - first, l.Treaddir(1, cookies[i], 60)) for i in some))
            for i in some:
                _, reply = await c.recv()
                assert isinstance(reply, l.Rreaddir)
                following = [e.name for e in unpack_dirents(reply.data)][:1]
                assert following == [e.name for e in entries[i + 1 : i + 2]]
        assert await all_entries(c, 1) == entries, "stable while nothing changes"


@pytest.mark.conformance(111)
async def test_cookies_tell_hard_links_to_one_file_apart() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await put(c, "f")
        await c.walk(0, 1, "f")
        for i in range(20):
            await c.rpc(l.Tlink(0, 1, f"link {i}"))
        await c.walk(0, 2)
        await c.open(2)
        entries = await all_entries(c, 2, count=64)
        assert len({e.qid.path for e in entries[2:]}) == 1
        assert len({e.cookie for e in entries}) == len(entries) == 23


@pytest.mark.conformance(112)
async def test_dots_are_listed_and_types_agree_with_qids() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await mkdir(c, "d")
        await put(c, "f")
        await c.rpc(l.Tsymlink(0, "s", "f", 0))
        await c.rpc(l.Tmknod(0, "p", 0o010644, 0, 0, 0))
        await c.rpc(l.Tmknod(0, "u", 0o140644, 0, 0, 0))
        root = (await c.attach(50)).qid
        (d,) = await c.walk(0, 1, "d")
        await c.open(1)
        dot, dotdot = await all_entries(c, 1)
        assert (dot.name, dot.qid, dot.dtype) == (".", d, DT_DIR)
        assert (dotdot.name, dotdot.qid.path, dotdot.dtype) == ("..", root.path, DT_DIR)
        await c.walk(0, 2)
        await c.open(2)
        entries = {e.name: e for e in await all_entries(c, 2)}
        types = {".": DT_DIR, "..": DT_DIR, "d": DT_DIR, "f": DT_REG, "s": DT_LNK, "p": DT_FIFO, "u": DT_SOCK}
        assert {name: e.dtype for name, e in entries.items()} == types
        for name, e in entries.items():
            assert bool(e.qid.type & QTDIR) == (e.dtype == DT_DIR), name
            assert bool(e.qid.type & QTSYMLINK) == (e.dtype == DT_LNK), name


@pytest.mark.conformance(113)
async def test_a_count_below_one_entry_is_an_error_and_the_end_stays_the_end() -> None:
    async with serving(ram_of(2)) as server:
        c = await server.client()
        await c.walk(0, 1)
        await c.open(1)
        for count in (0, 1, 24):
            with refuses(E.Esmall):
                await readdir(c, 1, 0, count)
        assert [e.name for e in await readdir(c, 1, 0, 25)] == ["."]
        entries = await all_entries(c, 1)
        with refuses(E.Esmall):
            await readdir(c, 1, entries[1].cookie, 24 + 9)
        for _ in range(3):
            assert await readdir(c, 1, entries[-1].cookie) == []


@pytest.mark.conformance(114)
@pytest.mark.sec(57)
async def test_read_wants_a_file_and_readdir_a_directory_both_open() -> None:
    async with serving(ram_of(1)) as server:
        c = await server.client()
        await c.walk(0, 1)
        with refuses(E.Enotopen):
            await readdir(c, 1)
        await c.open(1)
        with refuses(E.Eisdir):
            await c.read(1)
        with refuses(E.Ebadusefid):
            await c.write(1, b"x")
        await c.walk(0, 2, "file 00000")
        with refuses(E.Enotopen):
            await readdir(c, 2)
        await c.open(2)
        with refuses(E.Enotdir):
            await readdir(c, 2)


@pytest.mark.hostile(52)
@pytest.mark.sec(56)
async def test_cookies_nobody_gave_end_or_are_refused_and_never_loop() -> None:
    rng = random.Random(52)
    async with serving(ram_of(100)) as server:
        c = await server.client()
        await mkdir(c, "other")
        await c.walk(0, 1)
        await c.open(1)
        await c.walk(0, 2, "other")
        await c.open(2)
        good = [e.cookie for e in await all_entries(c, 1)]
        bad = [c + d for c in good for d in (-1, 1)] + [rng.randrange(1 << 64) for _ in range(200)]
        for cookie in [*bad, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 100]:
            for fid in (1, 2):
                seen = 0
                at = cookie % (1 << 64)
                while True:
                    c.send(1, l.Treaddir(fid, at, 8000))
                    _, reply = await c.recv()
                    if reply == l.Rlerror(22) or reply == l.Rreaddir(b""):
                        break
                    assert isinstance(reply, l.Rreaddir)
                    more = unpack_dirents(reply.data)
                    assert more[-1].cookie != at, "it goes on"
                    at = more[-1].cookie
                    seen += len(more)
                    assert seen <= 103


@pytest.mark.sec(56)
async def test_a_tree_that_takes_any_cookie_for_the_start_is_listed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it is the tree's check of its cookies that ends a listing, and the test above would see it gone."""
    entries = ram.RamDir.entries
    last = 100  # of 100 files: what comes after it begins again

    def wrapping(self: ram.RamDir, cookie: int, count: int) -> Sequence[Entry]:
        return entries(self, cookie if cookie < last else 0, count)

    monkeypatch.setattr(ram.RamDir, "entries", wrapping)
    async with serving(ram_of(100)) as server:
        c = await server.client()
        await c.walk(0, 1)
        await c.open(1)
        seen, at = 0, 1 << 62
        while seen <= 1000:
            more = await readdir(c, 1, at)
            assert more, "it ended"
            seen, at = seen + len(more), more[-1].cookie


class Endless(Dir):
    """A million entries, made as they are asked for.  `asked` is the most that one request made."""

    perm = 0o777
    total = 1_000_000

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def open(self, call: Call, omode: int) -> Handle:
        return EndlessHandle(self)


class EndlessHandle(ListHandle):
    def __init__(self, directory: Endless) -> None:
        super().__init__(directory)
        self.of = directory

    def entries(self, call: Call, cookie: int, count: int) -> list[Entry]:
        self.of.asked = max(self.of.asked, count)
        stop = min(cookie + count, self.of.total)
        return [Entry(f"entry {i}", self.of.qid, DT_REG, i + 1) for i in range(cookie, stop)]


@pytest.mark.hostile(53)
@pytest.mark.sec(100)
@pytest.mark.slow
async def test_an_endless_directory_listed_by_32_clients_is_streamed() -> None:
    import tracemalloc

    root = Endless()
    async with serving(root) as server:
        clients = [await server.client() for _ in range(32)]
        places = dict.fromkeys(range(32), 0)
        for c in clients:
            await c.walk(0, 1)
            await c.open(1)
        tracemalloc.start()
        try:
            for turn in range(10):
                for i, c in enumerate(clients):
                    places[i] = (await readdir(c, 1, places[i], 65_000))[-1].cookie
                if turn == 4:
                    settled = tracemalloc.get_traced_memory()[0]
            now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert min(places.values()) > 10 * 1000
        assert root.asked <= 65_536 // 32 + 1, "no more than one reply holds"
        assert now < settled + (1 << 20), f"{settled} bytes, then {now}"
        assert peak < 64 << 20


@pytest.mark.sec(100)
async def test_a_handle_that_makes_the_whole_list_is_seen_by_the_measure() -> None:
    """The control: a list per reader instead of a stream."""
    import tracemalloc

    class Listed(EndlessHandle):
        def entries(self, call: Call, cookie: int, count: int) -> list[Entry]:
            if cookie == 0:
                self.all = super().entries(call, 0, 20_000)
            return self.all[cookie : cookie + count]

    class Directory(Endless):
        def open(self, call: Call, omode: int) -> Handle:
            return Listed(self)

    root = Directory()
    async with serving(root) as server:
        c = await server.client()
        tracemalloc.start()
        try:
            for fid in (1, 2, 3):
                await c.walk(0, fid)
                await c.open(fid)
                await readdir(c, fid, 0, 65_000)
            now, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert root.asked > 65_536 // 32 + 1
        assert now > 3 << 20


@pytest.mark.conformance(110)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_directory_of_fixed_children_is_listed_as_any_other(dialect: str) -> None:
    async with serving(Tree(**{f"c{i}": Dir() for i in range(100)})) as server:
        c = await server.client(dialect)
        assert await names(c) == [f"c{i}" for i in range(100)]
