"""What a host export may use: descriptors, memory, threads and time, whoever walks and whatever does not answer."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CoroutineType

import msgspec
import pytest
import trio
from servers import wait_until

from ninep.answer import settle
from ninep.file import Call, File
from ninep.limits import DEFAULT
from ninep.principal import local_principal
from ninep.proto import errors as E
from ninep.proto.types import ORDWR, OREAD, Change
from ninep.servers import host, host_cache, host_io, host_sys, host_tree
from ninep.servers.host_dir import HostDir

CALL = Call(local_principal(os.getuid(), os.getgid(), frozenset(os.getgroups()), "tester", "local"))

WALKS = """
import gc, os, resource, sys, trio
from ninep.answer import settle
from ninep.file import Call, File
from ninep.servers import host
from ninep.proto.types import OREAD

def fds(): return len(os.listdir("/proc/self/fd"))
def rss(): return int(open("/proc/self/statm").read().split()[1]) * 4096

async def main():
    directory, count = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    root = host.tree(directory)
    nodes = [await settle(root.walk(Call(), f"{i:06}")) for i in range(200)]
    del nodes
    gc.collect()
    fds0, rss0, most = fds(), rss(), 0
    dirs = []
    for i in range(count):
        dirs.append(await settle(root.walk(Call(), f"{i:06}")))
        if i % 5000 == 0:
            most = max(most, fds())
    for node in dirs[:: max(1, count // 500)]:  # cold by now, and found again
        assert (await settle(node.stat(Call()))).nlink == 1
    most = max(most, fds())
    assert most <= 512 + 32, most
    rss1 = rss()
    del dirs, node
    gc.collect()
    assert fds() <= fds0, (fds(), fds0)
    assert len(root.export.nodes) == 1, len(root.export.nodes)
    print("fds", fds0, most, fds(), "rss", rss0 >> 20, rss1 >> 20, rss() >> 20)
    # A second round needs no more memory than the first left behind.
    for round in range(2):
        again = [await settle(root.walk(Call(), f"{i:06}")) for i in range(count)]
        peak = rss()
        del again
        assert peak < rss1 + (8 << 20), (peak >> 20, rss1 >> 20)
trio.run(main)
"""


def walk_many(directory: Path, count: int) -> str:
    for i in range(count):
        os.close(os.open(directory / f"{i:06}", os.O_CREAT | os.O_WRONLY))
    done = subprocess.run(
        [sys.executable, "-c", WALKS, str(directory), str(count)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.sec(42)
@pytest.mark.hostile(32)
@pytest.mark.feature("host-fd-budget")
def test_walked_files_are_forgotten_without_a_trace_at_1024_descriptors(tmp_path: Path) -> None:
    walk_many(tmp_path, 5000)


@pytest.mark.sec(42)
@pytest.mark.hostile(32)
@pytest.mark.feature("host-fd-budget")
@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_hundred_thousand_walked_files_are_forgotten_without_a_trace(tmp_path: Path) -> None:
    print(walk_many(tmp_path, 100_000))


@pytest.mark.sec(42)
@pytest.mark.feature("host-fd-budget")
async def test_without_the_bound_the_same_walks_run_out_of_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a cache that lets nothing go."""
    for i in range(300):
        (tmp_path / str(i)).touch()
    monkeypatch.setattr(host_cache.Warm, "_cool", lambda *_: None)
    root = host.tree(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        with pytest.raises((E.Emfile, OSError)):
            kept = [await settle(root.walk(CALL, str(i))) for i in range(300)]
        kept = []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert kept == []


async def test_open_files_take_descriptors_from_the_cache_before_they_are_refused(tmp_path: Path) -> None:
    for i in range(150):
        (tmp_path / str(i)).touch()
    root = host.tree(tmp_path)
    nodes = [await settle(root.walk(CALL, str(i))) for i in range(150)]
    used = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(used, highest) + 4, hard))
    try:
        handles = [await settle(node.open(CALL, OREAD)) for node in nodes[:60]]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for handle in handles:
        await settle(handle.close(CALL))
    for node in nodes:
        assert (await settle(node.stat(CALL))).size == 0


@pytest.mark.sec(101)
async def test_a_path_longer_than_any_system_call_takes_is_found_again_when_cold(tmp_path: Path) -> None:
    name = "directory" * 25
    depth = 40
    at = os.open(tmp_path, os.O_PATH)
    for _ in range(depth):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_PATH, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    root: HostDir = host.tree(tmp_path)
    node = root
    for _ in range(depth):
        child = await settle(node.walk(CALL, name))
        assert isinstance(child, HostDir)
        node = child
    while root.export.warm.shrink():
        pass
    # Its path is longer than any system call takes or /proc prints.
    assert (await settle(node.stat(CALL))).is_dir
    _file, handle = await settle(node.create(CALL, "bottom", 0o600, ORDWR))
    await settle(handle.close(CALL))
    assert (await settle((await settle(node.walk(CALL, "bottom"))).stat(CALL))).size == 0
    os.rename(tmp_path / name, tmp_path / "other")
    with pytest.raises(E.Estale):
        await settle(node.mkdir(CALL, "x", 0o700))


# -- a file system that never answers

FUSE_SERVER = """
import ctypes, os, struct, sys, time
mountpoint = sys.argv[1]
fd = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
if libc.mount(b"dead", mountpoint.encode(), b"fuse.dead", 0, options):
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
print("mounted", flush=True)
def answer(unique, payload=b"", error=0):
    os.write(fd, struct.pack("=IiQ", 16 + len(payload), error, unique) + payload)
def attr(ino, mode):
    return struct.pack("=QQQQQQIIIIIIIIII", ino, 0, 0, 1, 1, 1, 0, 0, 0, mode, 2, 0, 0, 0, 4096, 0)
while True:
    request = os.read(fd, 1 << 20)
    length, opcode, unique, node = struct.unpack_from("=IIQQ", request)
    if opcode == 26:  # INIT
        answer(unique, struct.pack("=IIIIHHIIHH", 7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0) + bytes(32))
    elif opcode == 3 and node == 1:  # GETATTR of the root
        answer(unique, struct.pack("=QII", 3600, 0, 0) + attr(1, 0o40755))
    elif opcode == 1:
        name = request[40:].rstrip(b"\\0")
        if name == b"known":
            answer(unique, struct.pack("=QQQQII", 2, 0, 3600, 3600, 0, 0) + attr(2, 0o100644))
        # any other name: never answered, like everything else
    elif opcode == 52:
        answer(unique, error=-38)  # STATX: not known here
"""


@contextmanager
def dead_file_system(mountpoint: Path) -> Iterator[subprocess.Popen[str]]:
    """A FUSE mount whose server answers INIT, the root and one name, and nothing else."""
    server = subprocess.Popen(
        [sys.executable, "-c", FUSE_SERVER, str(mountpoint)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        if server.stdout.readline() != "mounted\n":
            assert server.stderr is not None
            pytest.skip(f"needs a FUSE mount: {server.stderr.read()}")
        yield server
    finally:
        server.send_signal(signal.SIGKILL)  # closes /dev/fuse: whoever waits gets ENOTCONN
        server.communicate(timeout=10)
        subprocess.run(["umount", "-l", str(mountpoint)], check=False, timeout=10, capture_output=True)


@pytest.mark.sec(98)
@pytest.mark.feature("host-export-threads")
async def test_a_file_system_that_never_answers_stops_only_its_own_export(
    tmp_path: Path, needs_root: None, needs_fuse: None
) -> None:
    dead_dir, live_dir = tmp_path / "dead", tmp_path / "live"
    dead_dir.mkdir()
    live_dir.mkdir()
    (live_dir / "f").write_text("alive")
    with dead_file_system(dead_dir):
        limits = msgspec.structs.replace(DEFAULT, host_seconds_max=0.5, host_threads_max=2)
        dead = await trio.to_thread.run_sync(lambda: host.tree(dead_dir, limits=limits))
        live = host.tree(live_dir)
        assert not dead.export.inline
        with trio.fail_after(20):
            known = await settle(dead.walk(CALL, "known"))
            outcomes: list[str] = []

            async def expect_timeout(what: str, operation: object) -> None:
                try:
                    await settle(operation)
                except E.Etimedout:
                    outcomes.append(what)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_timeout, "walk", dead.walk(CALL, "anything"))
                nursery.start_soon(expect_timeout, "open", known.open(CALL, OREAD))
                nursery.start_soon(expect_timeout, "mkdir", dead.mkdir(CALL, "d", 0o755))
                nursery.start_soon(expect_timeout, "wstat", known.wstat(CALL, Change(perm=0o600)))
                started = time.monotonic()
                answers = 0
                while len(outcomes) < 4 and time.monotonic() < started + 10:
                    f = await settle(live.walk(CALL, "f"))
                    handle = await settle(f.open(CALL, ORDWR))
                    assert await settle(handle.read(CALL, 0, 10)) == b"alive"
                    await settle(handle.close(CALL))
                    answers += 1
                    await trio.sleep(0)
            assert sorted(outcomes) == ["mkdir", "open", "walk", "wstat"]
            assert answers > 100
            # A cancelled read is given up at once.
            with trio.move_on_after(0.05) as scope:
                await settle(dead.walk(CALL, "more"))
            assert scope.cancelled_caught


@pytest.mark.sec(29)
async def test_a_dead_mount_inside_an_export_is_named_but_never_asked(
    tmp_path: Path, needs_root: None, needs_fuse: None
) -> None:
    """Listing and walking beside it neither hangs nor enters it: it might be this very server's own mount."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "f").touch()
    with dead_file_system(tmp_path / "mnt") as server:
        root = host.tree(tmp_path)
        ended = []
        server_pid = server.pid
        # Were it asked, this thread would hang; then the alarm kills the FUSE server, which sets it free.
        alarm = subprocess.Popen(["sh", "-c", f"sleep 15; kill -9 {server_pid}"], start_new_session=True)
        try:
            started = time.monotonic()
            handle = await settle(root.open(CALL, OREAD))
            entries = {e.name: e for e in await settle(handle.entries(CALL, 0, 10))}
            assert set(entries) == {"mnt", "f"}
            assert entries["mnt"].stat is None
            await settle(handle.close(CALL))
            with pytest.raises(E.Exdev):
                await settle(root.walk(CALL, "mnt"))
            with pytest.raises((E.Exdev, E.Einuse)):
                await settle(root.remove(CALL, "mnt", True))
            with pytest.raises((E.Exdev, E.Einuse)):
                await settle(root.rename(CALL, "mnt", root, "other", 0))
            ended.append(time.monotonic() - started)
        finally:
            os.killpg(alarm.pid, signal.SIGKILL)
            alarm.wait()
        assert ended[0] < 10


async def test_reads_that_the_page_cache_cannot_answer_go_to_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(bytes(range(256)) * 64)
    root = host.tree(tmp_path)
    if root.export.in_memory:
        pytest.skip("the temporary directory is memory")
    handle = await settle((await settle(root.walk(CALL, "f"))).open(CALL, OREAD))
    real = os.preadv
    asked = []

    def cold(fd: int, buffers: tuple[memoryview, ...], offset: int, flags: int = 0) -> int:
        asked.append(flags)
        if offset >= 8192:
            raise BlockingIOError(errno.EAGAIN, "cold")
        return real(fd, (buffers[0][: 8192 - offset],), offset, flags)

    monkeypatch.setattr(host_io.os, "preadv", cold)
    buffer = memoryview(bytearray(16384))
    answer = handle.read_into(CALL, 0, buffer)
    assert not isinstance(answer, int)  # half of it is cached: a short count would look like the end of the file
    assert await settle(answer) == 16384
    assert bytes(buffer) == bytes(range(256)) * 64
    assert await settle(handle.read(CALL, 8192, 100)) == bytes(range(100))
    assert all(flag == os.RWF_NOWAIT for flag in asked)
    await settle(handle.close(CALL))


async def test_names_that_the_kernel_has_not_cached_are_looked_up_by_workers_once_the_disk_made_one_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").touch()
    root = host.tree(tmp_path)
    if root.export.in_memory or not root.export.openat2:
        pytest.skip("needs openat2 and a temporary directory on a disk")
    real = host_sys.openat2

    def cold(dirfd: int, path: bytes, how: bytes) -> int:
        if how == host_sys.HOW_CACHED:
            raise BlockingIOError(errno.EAGAIN, "cold")
        return real(dirfd, path, how)

    assert not isinstance(root.walk(CALL, "f"), CoroutineType)
    monkeypatch.setattr(host_sys, "openat2", cold)
    assert not isinstance(root.walk(CALL, "f"), CoroutineType)  # a quick disk: a thread would cost more than it
    monkeypatch.setattr(host_tree, "DISK_NS_MAX", -1)  # now each one is too long
    assert not isinstance(root.walk(CALL, "f"), CoroutineType)
    answer = root.walk(CALL, "f")
    assert isinstance(answer, CoroutineType)
    assert (await settle((await answer).stat(CALL))).size == 0


async def test_workers_that_share_few_descriptors_never_use_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen threads walk, stat and read through a cache of eight: each name still gives its own file."""
    for i in range(12):
        (tmp_path / str(i)).mkdir()
        for j in range(12):
            (tmp_path / str(i) / str(j)).write_text(f"{i}/{j}")
    monkeypatch.setattr(host_sys, "INLINE", frozenset())
    monkeypatch.setattr(host_tree, "share_of_descriptors", lambda share: 8)
    root = host.tree(tmp_path)
    kept: dict[str, File] = {}

    async def walker(seed: int) -> None:
        for n in range(60):
            i, j = (seed * 7 + n * 5) % 12, (seed * 3 + n * 11) % 12
            d = await settle(root.walk(CALL, str(i)))
            assert isinstance(d, HostDir)
            f = await settle(d.walk(CALL, str(j)))
            assert kept.setdefault(f"{i}/{j}", f) is f
            assert (await settle(f.stat(CALL))).size == len(f"{i}/{j}")
            handle = await settle(f.open(CALL, OREAD))
            assert await settle(handle.read(CALL, 0, 100)) == f"{i}/{j}".encode()
            await settle(handle.close(CALL))

    async with trio.open_nursery() as nursery:
        for seed in range(16):
            nursery.start_soon(walker, seed)
    assert len(root.export.warm) <= 8


async def test_an_abandoned_read_leaves_its_descriptor_open_until_the_thread_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_text("content")
    monkeypatch.setattr(host_sys, "INLINE", frozenset())
    root = host.tree(tmp_path)
    handle = await settle((await settle(root.walk(CALL, "f"))).open(CALL, OREAD))
    fd = handle.backing()
    assert fd is not None
    started, go, seen = threading.Event(), threading.Event(), []
    real = os.pread

    def late(number: int, count: int, offset: int) -> bytes:
        started.set()
        go.wait(10)
        seen.append(os.readlink(f"/proc/self/fd/{number}"))
        return real(number, count, offset)

    monkeypatch.setattr(host_io.os, "pread", late)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                await settle(handle.read(CALL, 0, 10))

            nursery.start_soon(read)
            await trio.to_thread.run_sync(started.wait)
            scope.cancel()
    await settle(handle.close(CALL))
    assert os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path / "f")
    go.set()
    wait_until(lambda: bool(seen) and not _is_open(fd, tmp_path / "f"), "the thread to finish")
    assert seen == [str(tmp_path / "f")]


def _is_open(fd: int, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except FileNotFoundError:
        return False
