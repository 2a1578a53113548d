"""The trio client: every operation in every dialect against our own server, and cancellation against a scripted one."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from fake9p import Fake

from ninep.answer import settle
from ninep.edges.client import Client, connect, on_wire
from ninep.edges.client_tree import RemoteDir, RemoteFile, RemoteHandle, RemoteSymlink
from ninep.edges.policy import Peer, Policy
from ninep.edges.stream import serve_wire
from ninep.edges.wire import MemoryWire, SocketWire
from ninep.file import Call, Dir, File, Handle
from ninep.limits import DEFAULT
from ninep.node import Node
from ninep.principal import local_principal
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto import messages as M
from ninep.proto.types import (
    F_RDLCK,
    F_UNLCK,
    F_WRLCK,
    NOW,
    OFFSET_MAX,
    ORDWR,
    OREAD,
    OTRUNC,
    OWRITE,
    QTDIR,
    XATTR_CREATE,
    Change,
    Lock,
    Qid,
)
from ninep.servers import ram

CALL = Call(local_principal(0, 0, frozenset(), "root", "local"))
DIALECTS = ["9P2000", "9P2000.u", "9P2000.L"]
QUICK = msgspec.structs.replace(DEFAULT, reply_seconds_max=0.5, close_seconds_max=0.2)


@asynccontextmanager
async def served(root: Dir, dialect: str = "9P2000.L", chunk: int = 1 << 30) -> AsyncIterator[Client]:
    """A client of our own server, over memory; `chunk` cuts every transfer."""
    node = Node()
    theirs, ours = MemoryWire.pair()
    theirs.capacity = ours.capacity = 16 << 20
    theirs.chunk = ours.chunk = chunk
    async with trio.open_nursery() as nursery:
        peer = Peer("test", 0, 0, 0, "peercred")
        nursery.start_soon(serve_wire, theirs, node, root, nursery, Policy(trust_uname=True), peer)
        client = await on_wire(nursery, ours, uname="root", dialect=dialect)
        yield client
        client.close()
        with trio.fail_after(5):
            while node.live["connections"]:
                await trio.sleep(0.001)
        assert node.live["fids"] == 0
        nursery.cancel_scope.cancel()


async def make(root: Dir, name: str, content: bytes) -> None:
    _, handle = await settle(root.create(CALL, name, 0o644, OWRITE))
    await settle(handle.write(CALL, 0, content))
    await settle(handle.close(CALL))


async def content_of(file: File) -> bytes:
    handle = await settle(file.open(CALL, OREAD))
    parts: list[bytes] = []
    while data := await settle(handle.read(CALL, sum(map(len, parts)), 1 << 20)):
        parts.append(data)
    await settle(handle.close(CALL))
    return b"".join(parts)


async def names(directory: Dir, count: int = 7) -> list[str]:
    handle = await settle(directory.open(CALL, OREAD))
    found: list[str] = []
    cookie = 0
    while batch := await settle(handle.entries(CALL, cookie, count)):
        found += [entry.name for entry in batch]
        cookie = batch[-1].cookie
    await settle(handle.close(CALL))
    return sorted(found)


# -- every operation, in every dialect


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.feature("client-dialects")
async def test_files_are_made_read_written_renamed_and_removed(dialect: str) -> None:
    async with served(ram.tree(), dialect) as client:
        assert client.core.dialect.name == dialect
        root = client.root
        await make(root, "f", b"hello")
        file = await settle(root.walk(CALL, "f"))
        assert type(file) is RemoteFile
        st = await settle(file.stat(CALL))
        assert (st.size, st.st_mode, st.qid.path) == (5, 0o100644, file.qid.path)
        assert await content_of(file) == b"hello"
        with pytest.raises(E.Eexist):
            await settle(root.create(CALL, "f", 0o600, OWRITE))
        handle = await settle(file.open(CALL, ORDWR))
        assert await settle(handle.write(CALL, 5, b" world")) == 6
        assert await settle(handle.read(CALL, 3, 100)) == b"lo world"
        await settle(handle.truncate(CALL, 4))
        await settle(handle.fsync(CALL, False))
        await settle(handle.close(CALL))
        assert await content_of(file) == b"hell"
        await settle((await settle(file.open(CALL, OWRITE | OTRUNC))).close(CALL))
        assert await content_of(file) == b""
        await settle(root.rename(CALL, "f", root, "g", 0))
        assert await names(root) == ["g"]
        with pytest.raises(E.Enonexist):
            await settle(root.walk(CALL, "f"))
        sub = await settle(root.mkdir(CALL, "d", 0o755))
        assert isinstance(sub, RemoteDir)
        with pytest.raises(E.Enotdir):
            await settle(root.remove(CALL, "g", True))
        with pytest.raises(E.Eisdir):
            await settle(root.remove(CALL, "d", False))
        await settle(root.remove(CALL, "g", None))
        await settle(root.remove(CALL, "d", True, sub))
        assert await names(root) == []


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_metadata_changes_travel(dialect: str) -> None:
    async with served(ram.tree(), dialect) as client:
        await make(client.root, "f", b"12345")
        file = await settle(client.root.walk(CALL, "f"))
        await settle(file.wstat(CALL, Change(perm=0o600, size=3, mtime_ns=10**18)))
        st = await settle(file.stat(CALL))
        assert (st.st_mode & 0o777, st.size, st.mtime_ns) == (0o600, 3, 10**18)
        await settle(file.wstat(CALL, Change(mtime_ns=NOW)))
        assert (await settle(file.stat(CALL))).mtime_ns > 10**18
        await settle(file.wstat(CALL, Change()))
        if dialect == "9P2000":
            with pytest.raises(E.Eunsupported):
                await settle(file.wstat(CALL, Change(gid=7)))
        else:
            await settle(file.wstat(CALL, Change(gid=7)))
            assert (await settle(file.stat(CALL))).gid == 7


@pytest.mark.parametrize("dialect", ["9P2000.u", "9P2000.L"])
async def test_links_and_symlinks(dialect: str) -> None:
    async with served(ram.tree(), dialect) as client:
        root = client.root
        await make(root, "f", b"x")
        link = await settle(root.symlink(CALL, "l", "../f"))
        assert isinstance(link, RemoteSymlink)
        assert await settle(link.readlink(CALL)) == "../f"
        await settle(root.link(CALL, "hard", await settle(root.walk(CALL, "f"))))
        first, second = [await settle(root.walk(CALL, n)) for n in ("f", "hard")]
        assert first.qid.path == second.qid.path
        assert await names(root) == ["f", "hard", "l"]


async def test_9P2000_says_what_it_cannot_do() -> None:
    async with served(ram.tree(), "9P2000") as client:
        root = client.root
        await make(root, "f", b"x")
        file = await settle(root.walk(CALL, "f"))
        sub = await settle(root.mkdir(CALL, "d", 0o755))
        assert isinstance(sub, Dir)
        with pytest.raises(E.Eunsupported):
            await settle(root.symlink(CALL, "l", "f"))
        with pytest.raises(E.Eunsupported):
            await settle(root.link(CALL, "l", file))
        with pytest.raises(E.Eunsupported):
            await settle(file.getxattr(CALL, "user.a"))
        with pytest.raises(E.Exdev):
            await settle(root.rename(CALL, "f", sub, "f", 0))
        with pytest.raises(E.Ebadarg):
            await settle(file.readlink(CALL))


async def test_what_only_dotl_has() -> None:
    async with served(ram.tree()) as client:
        root = client.root
        await make(root, "f", b"x" * 100)
        file = await settle(root.walk(CALL, "f"))
        sub = await settle(root.mkdir(CALL, "d", 0o755))
        assert isinstance(sub, Dir)
        await settle(file.setxattr(CALL, "user.a", b"v" * 1000, XATTR_CREATE))
        await settle(file.setxattr(CALL, "user.b", b"", 0))
        assert await settle(file.getxattr(CALL, "user.a")) == b"v" * 1000
        assert await settle(file.getxattr(CALL, "user.b")) == b""
        assert sorted(await settle(file.listxattr(CALL))) == ["user.a", "user.b"]
        with pytest.raises(E.Eexist):
            await settle(file.setxattr(CALL, "user.a", b"w", XATTR_CREATE))
        await settle(file.removexattr(CALL, "user.a"))
        with pytest.raises(E.Enoattr):
            await settle(file.getxattr(CALL, "user.a"))
        await settle(root.rename(CALL, "f", sub, "g", 0))
        assert await names(sub) == ["g"]
        with pytest.raises(E.Ebadarg):
            await settle(sub.rename(CALL, "g", root, "f", 1))
        assert (await settle(file.statfs(CALL))).namelen == 255
        fifo = await settle(root.mknod(CALL, "p", 0o010644, 0))
        assert (await settle(fifo.stat(CALL))).st_mode & 0o170000 == 0o010000


async def test_locks_between_two_owners_of_one_connection() -> None:
    async with served(ram.tree()) as client:
        await make(client.root, "f", b"x")
        file = await settle(client.root.walk(CALL, "f"))
        one, two = [await settle(file.open(CALL, ORDWR)) for _ in range(2)]
        assert await settle(one.lock(CALL, Lock(F_WRLCK, 0, 9, "a", 1), False))
        assert not await settle(two.lock(CALL, Lock(F_WRLCK, 5, OFFSET_MAX, "b", 2), False))
        found = await settle(two.getlock(CALL, Lock(F_RDLCK, 0, OFFSET_MAX, "b", 2)))
        assert found is not None
        assert (found.type, found.start, found.end, found.pid) == (F_WRLCK, 0, 9, os.getpid())
        got: list[bool] = []

        async def wait() -> None:
            got.append(await settle(two.lock(CALL, Lock(F_WRLCK, 5, OFFSET_MAX, "b", 2), True)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.03)
            assert await settle(one.lock(CALL, Lock(F_UNLCK, 0, 9, "a"), False))  # FUSE names no process
        assert got == [True]
        await settle(two.unlock_owner(CALL, "b", False))
        for handle in (one, two):
            await settle(handle.close(CALL))


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_large_transfers_are_whole_over_a_wire_that_cuts(dialect: str) -> None:
    data = bytes(range(256)) * 12_000
    async with served(ram.tree(), dialect, chunk=65_521) as client:
        await make(client.root, "f", data)
        file = await settle(client.root.walk(CALL, "f"))
        handle = await settle(file.open(CALL, OREAD))
        assert await settle(handle.read(CALL, 1000, len(data))) == data[1000:]
        await settle(handle.close(CALL))


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_directories_are_read_whole_from_any_cookie(dialect: str) -> None:
    async with served(ram.tree(), dialect) as client:
        for i in range(300):
            await make(client.root, f"file{i:04}", b"")
        assert await names(client.root) == [f"file{i:04}" for i in range(300)]
        handle = await settle(client.root.open(CALL, OREAD))
        first = await settle(handle.entries(CALL, 0, 100))
        second = await settle(handle.entries(CALL, first[-1].cookie, 50))
        assert await settle(handle.entries(CALL, first[49].cookie, 50)) == first[50:]
        assert (await settle(handle.entries(CALL, first[-1].cookie, 50))) == second
        assert await settle(handle.entries(CALL, 0, 100)) == first
        entry = first[0]
        file = await settle(client.root.walk(CALL, entry.name))
        assert entry.qid.path == file.qid.path
        await settle(handle.close(CALL))
        assert len(list(await settle(client.root.list(CALL)))) == 300


async def test_walk_refuses_names_that_are_no_names() -> None:
    async with served(ram.tree()) as client:
        for name in ("", ".", "..", "a/b", "a\0b", "n" * 256):
            with pytest.raises(E.FileError):
                await settle(client.root.walk(CALL, name))


# -- fids


async def test_walked_names_do_not_leak_fids() -> None:
    tree = ram.tree()
    await make(tree, "f", b"x")
    async with served(tree) as client:
        for _ in range(3000):
            await settle(client.root.walk(CALL, "f"))
            assert client.core.fids_open < 500
        gc.collect()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert client.core.fids_open == 1


@pytest.mark.slow
async def test_a_hundred_thousand_walked_names_do_not_leak_fids() -> None:
    tree = ram.tree()
    await make(tree, "f", b"x")
    async with served(tree) as client:

        async def walk_many() -> None:
            for _ in range(2000):
                await settle(client.root.walk(CALL, "f"))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(walk_many)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert client.core.fids_open == 1


# -- order, cancellation, the end


class Parked(Handle):
    """A stream whose reads park until released."""

    stream = True
    direct = True

    def __init__(self) -> None:
        self.release = trio.Event()
        self.reads = self.cancelled = 0

    async def read(self, call: Call, offset: int, count: int) -> bytes:
        self.reads += 1
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return b"event\n"


class ParkedFile(File):
    def __init__(self, handle: Parked) -> None:
        super().__init__()
        self.handle = handle

    def open(self, call: Call, omode: int) -> Handle:
        return self.handle


class OneFile(Dir):
    def __init__(self, file: File) -> None:
        super().__init__()
        self.file = file

    def walk(self, call: Call, name: str) -> File:
        return self.file


async def test_a_parked_read_is_cancelled_and_everything_else_goes_on() -> None:
    parked = Parked()
    async with served(OneFile(ParkedFile(parked))) as client:
        file = await settle(client.root.walk(CALL, "event"))
        handle = await settle(file.open(CALL, OREAD))
        with trio.move_on_after(0.05) as scope:
            await settle(handle.read(CALL, 0, 100))
        assert scope.cancelled_caught
        assert parked.cancelled == 1
        assert client.core.in_flight == 0
        await settle(file.stat(CALL))
        parked.release.set()
        assert await settle(handle.read(CALL, 0, 100)) == b"event\n"
        await settle(handle.close(CALL))


async def fake_client(nursery: trio.Nursery, fake: Fake, **options: Any) -> Client:
    return await on_wire(nursery, SocketWire(fake.sock), uname="u", **{"limits": QUICK, **options})


async def seen(fake: Fake, kind: type[Any], count: int = 1) -> list[Any]:
    found: list[Any] = await trio.to_thread.run_sync(fake.wait_for, kind, count)
    return found


@pytest.mark.conformance(30)
async def test_a_reply_that_wins_over_the_flush_is_kept() -> None:
    with Fake() as fake:
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            handle = await settle(file.open(CALL, OREAD))
            tags: list[int] = []
            fake.on[M.Tread] = lambda tag, t: tags.append(tag)
            fake.on[M.Tflush] = lambda tag, t: [fake.dialect.encode(t.oldtag, M.Rread(b"won")), M.Rflush()]
            got: list[bytes] = []

            async def read() -> None:
                got.append(await settle(handle.read(CALL, 0, 10)))

            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(read)
                    await seen(fake, M.Tread)
                    scope.cancel()
            assert got == [b"won"]
            client.close()


async def test_the_tag_of_a_flushed_request_is_not_used_before_the_Rflush() -> None:
    with Fake() as fake:
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            handle = await settle(file.open(CALL, OREAD))
            read_tags: list[int] = []
            flushes: list[tuple[int, int]] = []
            fake.on[M.Tread] = lambda tag, t: read_tags.append(tag)
            fake.on[M.Tflush] = lambda tag, t: flushes.append((tag, t.oldtag))
            with trio.move_on_after(0.02):
                await settle(handle.read(CALL, 0, 10))
            assert [old for _, old in flushes] == read_tags
            for _ in range(50):
                await settle(file.stat(CALL))
            used = {tag for tag, m in fake.seen if type(m) is L.Tgetattr}
            assert not used & set(read_tags)
            fake.send(flushes[0][0], M.Rflush())
            while client.core.in_flight:
                await trio.sleep(0.001)
            client.close()


async def test_a_walk_whose_reply_comes_after_its_task_left_does_not_leak_its_fid() -> None:
    with Fake() as fake:
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            walks: list[tuple[int, Any]] = []
            fake.on[M.Twalk] = lambda tag, t: walks.append((tag, t))
            fake.on[M.Tflush] = lambda tag, t: None
            with trio.move_on_after(0.01):
                await settle(client.root.walk(CALL, "a"))
            tag, walk = walks[0]
            fake.send(tag, M.Rwalk((Qid(0, 0, 100),)))
            clunks = await seen(fake, M.Tclunk)
            assert clunks[0].fid == walk.newfid
            client.close()


async def test_operations_in_flight_share_few_system_calls() -> None:
    with Fake() as fake:
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            sends = 0
            send = client._wire.send

            def counted(buffers: Any) -> int | None:
                nonlocal sends
                sends += 1
                return send(buffers)

            client._wire.send = counted  # type: ignore[method-assign]  # to count
            async with trio.open_nursery() as inner:
                for _ in range(200):
                    inner.start_soon(settle, file.stat(CALL))
            assert sends < 20
            client.close()


async def test_more_operations_than_tags_wait_their_turn_or_say_so() -> None:
    with Fake() as fake:
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            results: list[bool] = []

            async def stat() -> None:
                await settle(file.stat(CALL))
                results.append(True)

            async with trio.open_nursery() as inner:
                for _ in range(3000):
                    inner.start_soon(stat)
            assert len(results) == 3000
            client.close()


async def test_unlinkat_and_renameat_fall_back_once() -> None:
    with Fake({"a": b"", "b": b""}) as fake:
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            fake.on[M.Tremove] = lambda tag, t: M.Rremove()
            fake.on[L.Trename] = lambda tag, t: L.Rrename()
            for _ in range(2):
                await settle(client.root.remove(CALL, "a", False))
                await settle(client.root.rename(CALL, "a", client.root, "c", 0))
            assert len(fake.wait_for(L.Tunlinkat)) == 1
            assert len(fake.wait_for(L.Trenameat)) == 1
            assert len(fake.wait_for(M.Tremove)) == 2
            assert len(fake.wait_for(L.Trename)) == 2
            client.close()


@pytest.mark.parametrize("answer", ["9P2000.u", "9P2000"])
async def test_auto_takes_the_best_that_the_server_has(answer: str) -> None:
    with Fake(dialect=answer) as fake:
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            assert client.core.dialect.name == answer
            assert client.core.msize_bytes == fake.msize
            assert [m.version for m in fake.wait_for(M.Tversion)] == ["9P2000.L"]
            client.close()


async def test_a_server_that_knows_only_exact_names_is_asked_again() -> None:
    with Fake(dialect="9P2000") as fake:
        fake.on[M.Tversion] = lambda tag, t: M.Rversion(t.msize, t.version if t.version == "9P2000" else "unknown")
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            assert client.core.dialect.name == "9P2000"
            client.close()
    with Fake(dialect="9P2000") as fake:
        async with trio.open_nursery() as nursery:
            with pytest.raises(E.Eunsupported):
                await fake_client(nursery, fake, dialect="9P2000.L")


async def test_connect_dials_attaches_and_hangs_up() -> None:
    with Fake() as fake:
        async with connect(f"9p+fd://{fake.sock.detach()}?aname=tree", uname="glenda", limits=QUICK) as client:
            assert client.is_connected
            assert fake.wait_for(M.Tattach)[0].aname == "tree"
            assert fake.wait_for(M.Tattach)[0].uname == "glenda"
            assert client.root.qid.type == QTDIR
        assert not client.is_connected
        with pytest.raises(E.Enotconn):
            await settle(client.root.stat(CALL))


async def test_handles_of_unsized_files_are_direct() -> None:
    with Fake({"stream": b"", "file": b"x"}) as fake:
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            for name, direct in (("stream", True), ("file", False)):
                handle = await settle((await settle(client.root.walk(CALL, name))).open(CALL, OREAD))
                assert isinstance(handle, RemoteHandle)
                assert handle.direct is direct
            client.close()


async def test_a_read_past_one_frame_asks_on_only_after_a_full_reply() -> None:
    with Fake({"a": b"x" * 100}, msize=4096) as fake:
        async with trio.open_nursery() as nursery:
            client = await fake_client(nursery, fake)
            handle = await settle((await settle(client.root.walk(CALL, "a"))).open(CALL, OREAD))
            assert await settle(handle.read(CALL, 0, 1 << 20)) == b"x" * 100
            assert len(fake.wait_for(M.Tread)) == 1
            client.close()
