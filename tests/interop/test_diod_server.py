"""Our clients against diod, a 9P2000.L server of others (C, Lawrence Livermore): every operation that it has."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from ninep.answer import settle
from ninep.edges.blocking import Blocking
from ninep.edges.client import connect
from ninep.edges.client_tree import RemoteSymlink
from ninep.file import Call, Dir
from ninep.principal import local_principal
from ninep.proto import errors as E
from ninep.proto.types import (
    F_UNLCK,
    F_WRLCK,
    NOW,
    OFFSET_MAX,
    ORDWR,
    OREAD,
    OWRITE,
    Change,
    Lock,
)

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("needs_root")]
CALL = Call(local_principal(0, 0, frozenset(), "root", "local"))
ENTRIES = 2000


@pytest.fixture
def diod(tmp_path: Path, needs_tool: Callable[[str], str]) -> Iterator[tuple[str, Path]]:
    """The address of a diod that exports a directory, and the directory."""
    program = needs_tool("diod")
    export = tmp_path / "export"
    export.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "diod.log").open("wb")
    process = subprocess.Popen(
        [program, "-f", "-n", "-l", f"127.0.0.1:{port}", "-e", str(export), "-S", "-U", "root"],
        stdout=log,
        stderr=log,
    )
    try:
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "diod.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.02)
        yield f"9p://127.0.0.1:{port}/?aname={export}&uname=root", export
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.mark.feature("client-foreign-server")
def test_the_blocking_client_works_in_a_tree_of_diods(diod: tuple[str, Path]) -> None:
    address, export = diod
    data = os.urandom(3_000_000)
    (export / "in").write_bytes(data)
    with Blocking(address) as client:
        assert client.core.dialect.name == "9P2000.L"
        assert client.read("in") == data
        with client.create("out", 0o640) as file:
            assert file.write(data) == len(data)
            file.fsync()
        assert (export / "out").read_bytes() == data
        assert (export / "out").stat().st_mode & 0o777 == 0o640
        client.mkdir("d", 0o750)
        client.rename("out", "d/moved")
        client.symlink("moved", "d/l")
        client.link("d/moved", "d/hard")
        assert os.readlink(export / "d" / "l") == client.readlink("d/l") == "moved"
        st = client.stat("d/hard")
        host = (export / "d" / "moved").stat()
        assert (st.size, st.nlink, st.mtime_ns, st.uid) == (host.st_size, 2, host.st_mtime_ns, host.st_uid)
        client.wstat("d/moved", Change(perm=0o600, size=10, mtime_ns=123_456_789, atime_ns=NOW))
        host = (export / "d" / "moved").stat()
        assert (host.st_mode & 0o777, host.st_size, host.st_mtime_ns) == (0o600, 10, 123_456_789)
        assert client.statfs().namelen == 255
        for name in ("d/l", "d/hard", "d/moved"):
            client.remove(name, is_dir=False)
        with pytest.raises(E.Enotdir):
            client.remove("in", is_dir=True)
        client.remove("d", is_dir=True)
        assert sorted(os.listdir(export)) == ["in"]
        with pytest.raises(E.Enonexist):
            client.read("no/such/file")
        with pytest.raises(E.Enotdir):
            client.read("in/x")


def test_a_directory_of_2000_entries_comes_whole_with_stats(diod: tuple[str, Path]) -> None:
    address, export = diod
    for i in range(ENTRIES):
        (export / f"file{i:05}").write_bytes(b"x" * (i % 7))
    with Blocking(address) as client:
        entries = list(client.ls(stats=True))
        assert sorted(e.name for e in entries) == [f"file{i:05}" for i in range(ENTRIES)]
        assert all(e.stat is not None and e.stat.size == int(e.name[4:]) % 7 for e in entries)


def test_walks_of_more_than_sixteen_names_and_their_errors(diod: tuple[str, Path]) -> None:
    address, export = diod
    deep = export.joinpath(*(f"d{i}" for i in range(40)))
    deep.mkdir(parents=True)
    names = [f"d{i}" for i in range(40)]
    with Blocking(address) as client:
        assert len(client.walk("/".join(names))) == 40
        for at in (0, 1, 15, 16, 17, 39):
            with pytest.raises(E.Enonexist, match="missing"):
                client.walk("/".join([*names[:at], "missing", *names[at + 1 :]]))


def test_extended_attributes_travel_where_the_file_system_has_them(diod: tuple[str, Path]) -> None:
    address, export = diod
    (export / "f").write_bytes(b"x")
    try:
        os.setxattr(export / "f", "user.a", b"one")
    except OSError as e:
        pytest.skip(f"the file system has no user xattrs: {e.strerror}")
    with Blocking(address) as client:
        assert client.getxattr("f", "user.a") == b"one"
        client.setxattr("f", "user.b", b"two" * 500)
        assert os.getxattr(export / "f", "user.b") == b"two" * 500
        assert sorted(n for n in client.listxattr("f") if n.startswith("user.")) == ["user.a", "user.b"]
        client.removexattr("f", "user.a")
        with pytest.raises(E.Enoattr):
            client.getxattr("f", "user.a")


async def test_the_trio_client_works_in_a_tree_of_diods(diod: tuple[str, Path]) -> None:
    address, export = diod
    (export / "in").write_bytes(b"0123456789" * 100_000)
    for i in range(50):
        (export / f"n{i}").touch()
    async with connect(address) as client:
        root = client.root
        file = await settle(root.walk(CALL, "in"))
        handle = await settle(file.open(CALL, OREAD))
        assert await settle(handle.read(CALL, 5, 1 << 20)) == (export / "in").read_bytes()[5:]
        await settle(handle.close(CALL))
        made, writer = await settle(root.create(CALL, "new", 0o644, OWRITE))
        assert await settle(writer.write(CALL, 0, b"y" * 200_000)) == 200_000
        await settle(writer.close(CALL))
        assert (await settle(made.stat(CALL))).size == 200_000
        sub = await settle(root.mkdir(CALL, "d", 0o755))
        assert isinstance(sub, Dir)
        await settle(root.rename(CALL, "new", sub, "old", 0))
        link = await settle(sub.symlink(CALL, "l", "old"))
        assert isinstance(link, RemoteSymlink)
        assert await settle(link.readlink(CALL)) == "old"
        found = [name for name, _ in await settle(sub.list(CALL))]
        assert sorted(found) == ["l", "old"]
        await settle(sub.remove(CALL, "l", None, link))
        await settle(sub.remove(CALL, "old", False))
        await settle(root.remove(CALL, "d", True))
        async with trio.open_nursery() as nursery:
            for i in range(50):
                nursery.start_soon(_touch_and_remove, root, f"n{i}")
        assert sorted(os.listdir(export)) == ["in"]


async def _touch_and_remove(root: Dir, name: str) -> None:
    file = await settle(root.walk(CALL, name))
    await settle(file.wstat(CALL, Change(mtime_ns=0)))
    assert (await settle(file.stat(CALL))).mtime_ns == 0
    await settle(root.remove(CALL, name, False, file))


async def test_two_connections_see_each_others_locks(diod: tuple[str, Path]) -> None:
    address, export = diod
    (export / "f").write_bytes(b"x" * 100)
    async with connect(address) as one, connect(address) as two:
        handles = []
        for client in (one, two):
            file = await settle(client.root.walk(CALL, "f"))
            handles.append(await settle(file.open(CALL, ORDWR)))
        whole = Lock(F_WRLCK, 0, OFFSET_MAX, "a", os.getpid())
        assert await settle(handles[0].lock(CALL, whole, False))
        assert not await settle(handles[1].lock(CALL, whole, False))
        assert await settle(handles[0].lock(CALL, whole._replace(type=F_UNLCK), False))
        assert await settle(handles[1].lock(CALL, whole, False))
        for handle in handles:
            await settle(handle.close(CALL))
