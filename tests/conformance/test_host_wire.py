"""Statements that a directory of this host has to keep too, over a whole connection."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from asks import ALL, OLD, all_entries, get, getattr_of, is_linux, mkdir, names, put, readdir, records, refuses
from raw9p import RawClient, serving

from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.records import StatRecord, unpack_stats
from ninep.proto.types import DMDIR, F_WRLCK, ORCLOSE, OTRUNC
from ninep.servers import host


@pytest.mark.conformance(68, 76, 81, 91, 97)
@pytest.mark.parametrize("dialect", ALL)
async def test_files_are_made_written_read_changed_and_removed(dialect: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client(dialect)
        await c.file(1, "f", b"content", perm=0o640)
        assert (tmp_path / "f").read_bytes() == b"content"
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
        assert await c.read(1, 3) == b"tent"
        with refuses(E.Ebadusefid):
            await c.open(1)
        await mkdir(c, "d")
        if is_linux(c):
            await c.rpc(l.Tsetattr(1, l.SETATTR_SIZE | l.SETATTR_MODE, 0o600, size=3))
            await c.rpc(l.Trenameat(0, "f", 0, "g"))
        else:
            await c.rpc(m.Twstat(1, StatRecord(name="g", perm=0o600, length=3, mtime=1_000_000)))
            assert (tmp_path / "g").stat().st_mtime == 1_000_000
        assert (tmp_path / "g").read_bytes() == b"con"
        assert (tmp_path / "g").stat().st_mode & 0o777 == 0o600
        assert await get(c, "g") == b"con"
        await c.walk(0, 2, "d")
        await c.rpc(m.Tremove(2))
        assert os.listdir(tmp_path) == ["g"]


@pytest.mark.conformance(69, 71)
@pytest.mark.parametrize("dialect", ALL)
async def test_truncation_and_directories_at_open(dialect: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client(dialect)
        trunc = l.L_TRUNC if is_linux(c) else OTRUNC
        await c.walk(0, 1)
        for mode in (1, 2, trunc):
            with refuses(E.Eisdir):
                await c.open(1, mode)
        await c.walk(0, 2, "f")
        await c.open(2, 1 | trunc)
        assert (tmp_path / "f").read_bytes() == b""


@pytest.mark.conformance(73)
@pytest.mark.parametrize("how", ["clunk", "hang-up"])
async def test_remove_on_close_removes_from_the_disk(how: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client("9P2000")
        await c.walk(0, 1, "f")
        await c.open(1, ORCLOSE)
        assert os.listdir(tmp_path) == ["f"]
        if how == "clunk":
            await c.clunk(1)
    assert os.listdir(tmp_path) == []


@pytest.mark.conformance(84, 85, 86)
@pytest.mark.parametrize("dialect", OLD)
@pytest.mark.parametrize("count", [200, 1000, 60_000])
async def test_directories_are_read_as_whole_records(dialect: str, count: int, tmp_path: Path) -> None:
    want = {f"file {i}" for i in range(300)}
    for name in want:
        (tmp_path / name).touch()
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client(dialect)
        await c.walk(0, 1)
        await c.open(1)
        found = [r.name for r in await records(c, 1, count)]
        assert (len(found), set(found)) == (300, want)
        assert [r.name for r in await records(c, 1, count)] == found, "rewound"
        first = await c.read(1, 0, count)
        with refuses(E.Ediroffset):
            await c.read(1, len(first) - 1, count)
        with refuses(E.Esmall):
            await c.read(1, 0, 20)
        assert await c.read(1, 0, count) == first


@pytest.mark.conformance(87)
@pytest.mark.parametrize("dialect", ALL)
async def test_what_stays_while_listed_is_listed_once(dialect: str, tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / f"{'stay' if i % 2 else 'go'} {i}").touch()
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client(dialect)
        await c.walk(0, 1)
        await c.open(1)
        found: list[str] = []
        at, turn = 0, 0
        while True:
            if is_linux(c):
                entries = await readdir(c, 1, at, 500)
                got = [e.name for e in entries]
                at = entries[-1].cookie if entries else at
            else:
                data = await c.read(1, at, 800)
                got = [r.name for r in unpack_stats(data, dialect == "9P2000.u")]
                at += len(data)
            if not got:
                break
            found += got
            for i in range(turn * 10, turn * 10 + 10, 2):
                (tmp_path / f"go {i}").unlink(missing_ok=True)
            if turn < 50:
                (tmp_path / f"new {turn}").touch()
            turn += 1
        assert len(found) == len(set(found))
        assert {f for f in found if f.startswith("stay")} == {f"stay {i}" for i in range(1, 300, 2)}


@pytest.mark.conformance(110, 111, 112)
async def test_a_listing_goes_on_after_any_of_its_cookies(tmp_path: Path) -> None:
    for i in range(500):
        (tmp_path / f"file {i}").touch()
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client()
        await c.walk(0, 1)
        await c.open(1)
        entries = await all_entries(c, 1, count=512)
        assert sorted(e.name for e in entries) == sorted([".", "..", *os.listdir(tmp_path)])
        assert len({e.cookie for e in entries}) == 502
        assert all(0 < e.cookie < 1 << 63 for e in entries)
        for i, entry in enumerate(entries):
            following = (await readdir(c, 1, entry.cookie, 60))[:1]
            assert [e.name for e in following] == [e.name for e in entries[i + 1 : i + 2]]


@pytest.mark.conformance(99, 107)
async def test_a_removed_file_is_used_on(tmp_path: Path) -> None:
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client()
        await c.file(1, "f", b"content")
        await c.walk(0, 2, "f")
        await c.rpc(l.Tunlinkat(0, "f", 0))
        assert os.listdir(tmp_path) == []
        await c.rpc(l.Tsetattr(1, l.SETATTR_SIZE, size=3))
        assert await c.read(1) == b"con"
        assert (await getattr_of(c, 1)).nlink == 0
        assert (await getattr_of(c, 2)).size == 3
        await c.rpc(l.Tsetattr(1, l.SETATTR_MODE, 0o600))
        assert (await getattr_of(c, 1)).mode == 0o100600


@pytest.mark.conformance(82)
async def test_an_open_file_is_truncated_whatever_its_mode_says_by_now(tmp_path: Path) -> None:
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client()
        await c.file(1, "f", b"content", perm=0o400)
        (tmp_path / "f").chmod(0)
        bits = l.SETATTR_SIZE | l.SETATTR_MTIME | l.SETATTR_CTIME
        await c.rpc(l.Tsetattr(1, bits, size=3))
        assert await c.read(1) == b"con"


@pytest.mark.conformance(100)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_renamed_directory_carries_the_fids_below_it(dialect: str, tmp_path: Path) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/sub/f").write_bytes(b"content")
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client(dialect)
        await c.walk(0, 1, "d", "sub", "f")
        await c.walk(0, 2, "d", "sub")
        (tmp_path / "d").rename(tmp_path / "e")
        await c.open(1, 2)
        await c.write(1, b"CON")
        await put(c, "new", fid=2)
        assert (tmp_path / "e/sub/f").read_bytes() == b"CONtent"
        assert sorted(await names(c, 2)) == ["f", "new"]
        assert len(await c.walk(2, 3, "..", "..", "..")) == 3
        assert (await c.walk(0, 4, "e", "sub"))[1].path == (await c.walk(2, 5, "..", "sub"))[1].path


@pytest.mark.conformance(94, 123, 124, 125)
async def test_names_are_linked_moved_and_taken_away(tmp_path: Path) -> None:
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client()
        await put(c, "a", b"from")
        await put(c, "b", b"over")
        await mkdir(c, "d")
        await c.walk(0, 1, "a")
        await c.walk(0, 2, "d")
        await c.rpc(l.Tlink(2, 1, "hard"))
        assert (tmp_path / "d/hard").stat().st_nlink == 2
        with refuses(E.Enotallowed):
            await c.rpc(l.Tlink(0, 2, "dir"))
        with refuses(E.Ebadarg):
            await c.rpc(l.Trenameat(0, "d", 2, "in itself"))
        await c.rpc(l.Trenameat(0, "a", 0, "b"))
        assert (tmp_path / "b").read_bytes() == b"from"
        with refuses(E.Eisdir):
            await c.rpc(l.Tunlinkat(0, "d", 0))
        with refuses(E.Enotdir):
            await c.rpc(l.Tunlinkat(0, "b", l.L_REMOVEDIR))
        with refuses(E.Enotempty):
            await c.rpc(l.Tunlinkat(0, "d", l.L_REMOVEDIR))
        for target in ("../../etc/passwd", "x" * 4000):
            await c.rpc(l.Tsymlink(0, "s", target, 0))
            await c.walk(0, 3, "s")
            assert (await c.rpc(l.Treadlink(3))).target == target
            with refuses(E.Eloop):
                await c.open(3)
            await c.rpc(m.Tremove(3))


async def has_xattrs(path: Path) -> bool:
    try:
        os.setxattr(path, "user.probe", b"x")
        os.removexattr(path, "user.probe")
    except OSError:
        return False
    return True


@pytest.mark.conformance(115, 116, 117)
async def test_attributes_are_kept_by_the_file_system(tmp_path: Path) -> None:
    if not await has_xattrs(tmp_path):
        pytest.skip(f"no user attributes on the file system of {tmp_path}")
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client()
        await put(c, "f")
        await c.walk(0, 1, "f")
        for value, flags, left in ((b"value", 0, b"value"), (b"", 0, b""), (b"more", 2, b"more"), (b"", 2, None)):
            await c.walk(1, 2)
            await c.rpc(l.Txattrcreate(2, "user.a", len(value), flags))
            if value:
                await c.write(2, value)
            await c.clunk(2)
            if left is None:
                assert os.listxattr(tmp_path / "f") == []
            else:
                assert os.getxattr(tmp_path / "f", "user.a") == left
                assert (await c.rpc(l.Txattrwalk(1, 3, "user.a"))).size == len(left)
                assert await c.read(3) == left
                await c.clunk(3)
        with refuses(E.Enoattr):
            await c.rpc(l.Txattrwalk(1, 3, "user.a"))


@pytest.mark.conformance(122)
@pytest.mark.sec(59)
async def test_a_lock_ends_with_its_connection(tmp_path: Path) -> None:
    (tmp_path / "f").touch()

    async def ask(c: RawClient) -> int:
        return int((await c.rpc(l.Tlock(1, F_WRLCK, 0, 0, 0, 1, "me"))).status)

    async with serving(host.tree(tmp_path)) as server:
        c, other = await server.client(), await server.client()
        for client in (c, other):
            await client.walk(0, 1, "f")
            await client.open(1, 2)
        assert [await ask(other), await ask(c)] == [l.LOCK_SUCCESS, l.LOCK_BLOCKED]
        other.close()
        await c.quiet()
        assert await ask(c) == l.LOCK_SUCCESS


# -- qids


@pytest.fixture
def two_devices(tmp_path: Path, needs_root: None) -> Iterator[Path]:
    """A directory with two file systems in it, whose files have the same inode numbers."""
    mounted = []
    try:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "ninep-test", str(tmp_path / name)], check=True, timeout=20)
            mounted.append(tmp_path / name)
            (tmp_path / name / "f").touch()
        yield tmp_path
    finally:
        for point in mounted:
            subprocess.run(["umount", "-l", str(point)], check=True, timeout=20)


@pytest.mark.conformance(66)
async def test_one_inode_number_on_two_devices_is_two_qids(two_devices: Path) -> None:
    inodes = {(two_devices / name / "f").stat().st_ino for name in ("one", "two")}
    assert len(inodes) == 1, "or this shows nothing"
    async with serving(host.tree(two_devices, cross_mounts=True)) as server:
        c = await server.client()
        one, two = [(await c.walk(0, fid, name, "f")) for fid, name in ((1, "one"), (2, "two"))]
        assert len({q.path for q in (*one, *two)}) == 4


@pytest.mark.conformance(65, 66)
async def test_a_restart_keeps_every_qid(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"d{i % 10}").mkdir(exist_ok=True)
        (tmp_path / f"d{i % 10}" / f"f{i}").touch()
    seen = []
    for _ in range(2):
        async with serving(host.tree(tmp_path, key=b"the server's own")) as server:
            c = await server.client()
            seen.append([await c.walk(0, 1 + i, f"d{i % 10}", f"f{i}") for i in range(100)])
    assert seen[0] == seen[1]
    assert len({q.path for walk in seen[0] for q in walk}) == 110


# -- what walking costs

WALKER = """
import gc, os, resource, sys
sys.path[:0] = [sys.argv[1]]
import trio, trio.testing
from raw9p import serving
from ninep.limits import Limits
from ninep.proto import messages as m
from ninep.servers import host

def fds(): return len(os.listdir("/proc/self/fd"))
def rss(): return int(open("/proc/self/statm").read().split()[1]) * 4096

async def main():
    directory, count, files = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    limits = Limits(fids_max=count + 10, fids_node_max=count + 10)
    async with serving(host.tree(directory, limits=limits), limits=limits) as server:
        c = await server.client()
        await c.walk(0, 1, "000000")
        await c.clunk(1)
        fds0 = fds()

        async def round():
            most = 0
            for make in (lambda i: m.Twalk(0, i + 1, (f"{i:06}",)), lambda i: m.Tclunk(i + 1)):
                for first in range(0, count, 500):
                    some = range(first, min(first + 500, count))
                    c.send_all(*((i - first, make(i)) for i in some))
                    for i in some:
                        tag, reply = await c.recv()
                        assert type(reply) in (m.Rwalk, m.Rclunk), reply
                    most = max(most, fds())
            return most

        most = await round()
        gc.collect()
        rss1 = rss()
        most = max(most, await round())
        gc.collect()
        assert server.node.live["fids"] == 1
        assert most < files - 16, most
        assert fds() <= fds0 + 2, (fds(), fds0)
        assert rss() < rss1 + (4 << 20), (rss1, rss())
        print("fds", fds0, most, fds(), "rss", rss1 >> 20, rss() >> 20)

trio.run(main)
"""


def walk_all(directory: Path, count: int, files: int, repository: Path) -> None:
    for i in range(count):
        (directory / f"{i:06}").touch()
    argv = [sys.executable, "-c", WALKER, str(repository / "tests"), str(directory), str(count), str(files)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


@pytest.mark.hostile(32)
@pytest.mark.sec(42)
async def test_more_fids_than_descriptors_are_walked_and_clunked_without_a_trace(
    tmp_path: Path, repository: Path
) -> None:
    walk_all(tmp_path, 2000, 256, repository)


@pytest.mark.hostile(32)
@pytest.mark.sec(42)
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_hundred_thousand_files_are_walked_with_a_thousand_descriptors(
    tmp_path: Path, repository: Path
) -> None:
    walk_all(tmp_path, 100_000, 1024, repository)


@pytest.mark.conformance(74)
@pytest.mark.parametrize("dialect", OLD)
async def test_permissions_below_a_directory_of_this_host_follow_its_own(dialect: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    async with serving(host.tree(tmp_path)) as server:
        c = await server.client(dialect)
        for above, perm in ((0o750, 0o777), (0o700, 0o666), (0o755, 0o600)):
            (tmp_path / "d").chmod(above)
            await c.walk(0, 1, "d")
            await c.file(2, "f", root=1, perm=perm)
            await c.rpc(m.Tcreate(1, "sub", DMDIR | perm, 0))
            assert (tmp_path / "d/f").stat().st_mode & 0o777 == perm & (~0o666 | (above & 0o666))
            assert (tmp_path / "d/sub").stat().st_mode & 0o777 == perm & (~0o777 | (above & 0o777))
            await c.rpc(m.Tremove(2))
            await c.rpc(m.Tremove(1))
