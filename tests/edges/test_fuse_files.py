"""The FUSE edge on a ram tree: what a file system must do, asked by real programs and system calls."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuse_mounts import Mount, run, serving, shell

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def ram_mount(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Mount]:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        pytest.skip(f"needs /dev/fuse: {e.strerror}")
    with serving("ram", tmp_path_factory.mktemp("ram")) as mount:
        yield mount


@pytest.fixture
def place(ram_mount: Mount, request: pytest.FixtureRequest, needs_fuse: None) -> Path:
    """A directory of this test's own inside the mount."""
    path = ram_mount.dir / request.node.name.replace("/", "_")
    path.mkdir()
    return path


def renameat2(old: Path, new: Path, flags: int) -> None:
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.feature("fuse-engine")
def test_bytes_come_back_as_they_were_written(place: Path) -> None:
    data = os.urandom(5_000_000)
    (place / "f").write_bytes(data)
    assert (place / "f").read_bytes() == data
    assert run("cmp", place / "f", "-", input=data).returncode == 0
    assert (place / "f").stat().st_size == len(data)


def test_every_size_around_the_edges_of_a_message_survives(place: Path) -> None:
    for size in (0, 1, 4095, 4096, 4097, 65535, 65536, 65537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1):
        data = os.urandom(size)
        fd = os.open(place / "f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            assert os.write(fd, data) == size
            os.fsync(fd)
            assert os.pread(fd, size + 10, 0) == data
        finally:
            os.close(fd)
        assert (place / "f").read_bytes() == data


@pytest.mark.feature("fuse-rename2")
def test_rename_exchange_and_noreplace(place: Path) -> None:
    (place / "a").write_text("A")
    (place / "b").write_text("B")
    renameat2(place / "a", place / "b", 2)
    assert ((place / "a").read_text(), (place / "b").read_text()) == ("B", "A")
    with pytest.raises(FileExistsError):
        renameat2(place / "a", place / "b", 1)
    renameat2(place / "a", place / "c", 1)
    assert sorted(os.listdir(place)) == ["b", "c"]
    (place / "d").mkdir()
    (place / "c").rename(place / "d" / "e")
    assert (place / "d" / "e").read_text() == "B"


@pytest.mark.feature("fuse-links")
def test_hard_links_share_one_inode_and_symbolic_links_are_followed_by_the_kernel(place: Path) -> None:
    (place / "a").write_text("one")
    os.link(place / "a", place / "b")
    assert os.stat(place / "a").st_ino == os.stat(place / "b").st_ino
    assert os.stat(place / "a").st_nlink == 2
    (place / "b").write_text("two!")
    assert (place / "a").read_text() == "two!"
    (place / "a").unlink()
    assert os.stat(place / "b").st_nlink == 1
    os.symlink("b", place / "s")
    assert os.readlink(place / "s") == "b"
    assert (place / "s").read_text() == "two!"
    assert stat.S_ISLNK(os.lstat(place / "s").st_mode)
    os.symlink("nowhere", place / "dangling")
    with pytest.raises(FileNotFoundError):
        (place / "dangling").read_text()


@pytest.mark.feature("fuse-xattr")
def test_extended_attributes_can_be_set_listed_read_and_removed(place: Path) -> None:
    f = place / "f"
    f.touch()
    os.setxattr(f, "user.one", b"1" * 300)
    os.setxattr(f, "user.two", b"")
    assert sorted(os.listxattr(f)) == ["user.one", "user.two"]
    assert os.getxattr(f, "user.one") == b"1" * 300
    with pytest.raises(FileExistsError):
        os.setxattr(f, "user.one", b"", os.XATTR_CREATE)
    os.removexattr(f, "user.one")
    with pytest.raises(OSError, match="No data") as e:
        os.getxattr(f, "user.one")
    assert e.value.errno == errno.ENODATA


@pytest.mark.feature("fuse-readdirplus")
def test_ten_thousand_names_are_listed_once_each_with_their_attributes(place: Path) -> None:
    for n in range(10_000):
        os.close(os.open(place / f"file{n}", os.O_CREAT | os.O_WRONLY))
    names = os.listdir(place)
    assert len(names) == 10_000
    assert set(names) == {f"file{n}" for n in range(10_000)}
    with os.scandir(place) as entries:
        assert all(entry.is_file() and entry.stat().st_size == 0 for entry in entries)
    listed = run("ls", "-a", place).stdout.split()
    assert listed[:2] == [b".", b".."]
    assert len(listed) == 10_002


def test_a_directory_read_in_parts_survives_changes_between_them(place: Path) -> None:
    for n in range(500):
        (place / f"f{n}").touch()
    with os.scandir(place) as entries:
        seen = [next(entries).name for _ in range(50)]
        for n in range(500, 600):
            (place / f"f{n}").touch()
        (place / "f499").unlink(missing_ok=True)
        seen += [entry.name for entry in entries]
    stayed = {f"f{n}" for n in range(499)}
    assert stayed <= set(seen)
    assert len(seen) == len(set(seen))


@pytest.mark.feature("fuse-sparse")
def test_holes_are_found_punched_and_allocated(place: Path) -> None:
    fd = os.open(place / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, b"x" * 65536, 1 << 20)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 65536
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(fd, 1 << 30, os.SEEK_DATA)
        os.posix_fallocate(fd, 0, 4 << 20)
        assert os.fstat(fd).st_size == 4 << 20
        assert libc.fallocate(fd, 3, ctypes.c_long(1 << 20), ctypes.c_long(65536)) == 0  # PUNCH_HOLE | KEEP_SIZE
        assert os.pread(fd, 10, 1 << 20) == bytes(10)
    finally:
        os.close(fd)


def test_copy_file_range_copies_inside_the_tree(place: Path) -> None:
    data = os.urandom(300_000)
    (place / "a").write_bytes(data)
    with open(place / "a", "rb") as a, open(place / "b", "wb") as b:
        done = 0
        while n := os.copy_file_range(a.fileno(), b.fileno(), len(data) - done):
            done += n
    assert (place / "b").read_bytes() == data


def test_a_file_can_be_mapped_for_reading_and_writing(place: Path) -> None:
    (place / "f").write_bytes(b"a" * 10_000)
    with open(place / "f", "r+b") as f:
        with mmap.mmap(f.fileno(), 0) as m:
            m[5000:5005] = b"hello"
            m.flush()
    data = (place / "f").read_bytes()
    assert data[4999:5006] == b"ahelloa"
    assert len(data) == 10_000


def test_an_unlinked_file_lives_while_it_is_open(place: Path) -> None:
    fd = os.open(place / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"still here")
        os.unlink(place / "f")
        assert os.listdir(place) == []
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 100, 0) == b"still here"
        os.ftruncate(fd, 5)
        os.fchmod(fd, 0o600)
        assert os.fstat(fd).st_size == 5
    finally:
        os.close(fd)


def test_truncate_append_and_exclusive_creation(place: Path) -> None:
    f = place / "f"
    shell(f"echo one > {f}; echo two >> {f}; echo three >> {f}")
    assert f.read_text() == "one\ntwo\nthree\n"
    shell(f"echo new > {f}")
    assert f.read_text() == "new\n"
    with pytest.raises(FileExistsError):
        os.open(f, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.truncate(f, 100)
    assert f.stat().st_size == 100
    a = os.open(f, os.O_WRONLY | os.O_APPEND)
    b = os.open(f, os.O_WRONLY | os.O_APPEND)
    try:
        for n in range(10):
            os.write(a if n & 1 else b, b"%d" % n)
    finally:
        os.close(a)
        os.close(b)
    assert f.read_bytes()[100:] == b"0123456789"


def test_modes_owners_and_times_are_kept(place: Path) -> None:
    f = place / "f"
    f.touch()
    os.chmod(f, 0o640)
    os.utime(f, ns=(1_000_000_001, -5_000_000_003))
    st = f.stat()
    assert (stat.S_IMODE(st.st_mode), st.st_atime_ns, st.st_mtime_ns) == (0o640, 1_000_000_001, -5_000_000_003)
    before = time.time()
    os.utime(f)
    assert f.stat().st_mtime >= before - 1
    os.chown(f, 1234, 5678)
    assert (f.stat().st_uid, f.stat().st_gid) == (1234, 5678)
    shell(f"umask 027; mkdir {place}/d; touch {place}/g")
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((place / "g").stat().st_mode) == 0o640


def test_names_are_bytes(place: Path) -> None:
    odd = os.fsencode(place) + b"/\xff\xfe odd\x01"
    with open(odd, "wb") as f:
        f.write(b"1")
    assert os.listdir(os.fsencode(place)) == [b"\xff\xfe odd\x01"]
    with pytest.raises(OSError, match="File name too long"):
        (place / ("n" * 256)).touch()
    (place / ("n" * 255)).touch()


def test_a_fifo_works_among_local_processes(place: Path) -> None:
    os.mkfifo(place / "p")
    assert stat.S_ISFIFO((place / "p").stat().st_mode)
    assert shell(f"echo through > {place}/p & cat {place}/p") == "through\n"


def test_statfs_access_and_unknown_ioctls(place: Path) -> None:
    st = os.statvfs(place)
    assert st.f_namemax == 255
    assert st.f_bfree <= st.f_blocks
    (place / "f").touch()
    assert os.access(place / "f", os.R_OK | os.W_OK)
    assert not os.access(place / "f", os.X_OK)
    with open(place / "f") as f, pytest.raises(OSError, match="Inappropriate ioctl"):
        fcntl.ioctl(f, 0x5401, bytes(64))
    assert run("sync", "-f", place / "f").returncode == 0


def test_errors_have_their_numbers(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d" / "f").touch()
    for act, number in (
        (lambda: os.rmdir(place / "d"), errno.ENOTEMPTY),
        (lambda: os.unlink(place / "d"), errno.EISDIR),
        (lambda: os.rmdir(place / "d" / "f"), errno.ENOTDIR),
        (lambda: os.mkdir(place / "d"), errno.EEXIST),
        (lambda: os.open(place / "none", os.O_RDONLY), errno.ENOENT),
        (lambda: os.open(place / "d", os.O_WRONLY), errno.EISDIR),
        (lambda: os.link(place / "d", place / "e"), errno.EPERM),
        (lambda: os.rename(place / "d", place / "d" / "inside"), errno.EINVAL),
    ):
        with pytest.raises(OSError) as e:
            act()
        assert e.value.errno == number


LOCKER = """
import fcntl, os, sys, struct
fd = os.open(sys.argv[1], os.O_RDWR)
how = fcntl.flock if sys.argv[2] == "flock" else fcntl.lockf
try:
    how(fd, fcntl.LOCK_EX | (0 if sys.argv[3] == "wait" else fcntl.LOCK_NB))
except BlockingIOError:
    print("busy", flush=True)
    sys.exit()
print("held", flush=True)
sys.stdin.readline()
"""


def locker(path: Path, kind: str, wait: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(path), kind, wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.feature("fuse-locks")
@pytest.mark.parametrize("kind", ["posix", "flock"])
def test_locks_hold_between_processes_and_a_waiter_gets_its_turn(place: Path, kind: str) -> None:
    f = place / "f"
    f.touch()
    first = second = third = None
    try:
        first = locker(f, kind, "now")
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "held\n"
        second = locker(f, kind, "now")
        assert second.communicate(timeout=20)[0] == "busy\n"
        third = locker(f, kind, "wait")
        assert third.stdout is not None
        if kind == "posix":
            with open(f, "r+b") as mine:
                asked = fcntl.fcntl(mine, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
                assert struct.unpack("hhqqi4x", asked)[4] == first.pid
        first.stdin.write("\n")
        first.stdin.flush()
        assert third.stdout.readline() == "held\n"
        third.communicate("\n", timeout=20)
    finally:
        for process in (first, second, third):
            if process is not None:
                process.kill()
                process.communicate()


@pytest.mark.feature("fuse-locks", "fuse-interrupt")
@pytest.mark.parametrize("kind", ["posix", "flock"])
def test_a_process_that_waits_for_a_lock_can_be_killed_and_leaves_no_lock(place: Path, kind: str) -> None:
    f = place / "f"
    f.touch()
    first, second = locker(f, kind, "now"), None
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        second = locker(f, kind, "wait")
        wait_for_sleep(second.pid)
        second.terminate()
        assert second.wait(20) == -15
        first.kill()
        first.wait()
        third = locker(f, kind, "now")
        assert third.communicate("\n", timeout=20)[0] == "held\n"
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.communicate()


def wait_for_sleep(pid: int) -> None:
    """Until a process sits in a FUSE request, or waits for a lock that the kernel keeps by itself."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/wchan") as f:
            where = f.read() + Path(f"/proc/{pid}/stack").read_text()
        if any(word in where for word in ("request_wait", "fuse", "setlk", "lock_file", "posix_lock", "flock")):
            return
        time.sleep(0.01)
    raise AssertionError("it never waited")


@pytest.mark.feature("fuse-invalidate")
def test_a_change_made_behind_the_kernels_back_is_seen(ram_mount: Mount, needs_fuse: None) -> None:
    f = ram_mount.dir / "shared"
    f.write_text("old")
    os.chmod(f, 0o666)
    ram_mount.dir.chmod(0o777)
    assert f.read_text() == "old"
    with open(f) as held:
        assert held.read() == "old"
        assert ram_mount.ask("write shared replaced") == "written"
        deadline = time.monotonic() + 5
        while (text := f.read_text()) != "replaced" and time.monotonic() < deadline:
            pass
        assert text == "replaced"
        assert f.stat().st_size == len("replaced")
        held.seek(0)
        assert held.read() == "replaced"
    assert ram_mount.ask("remove shared") == "removed"
    deadline = time.monotonic() + 0.5  # less than the time that a name may be believed
    while f.exists() and time.monotonic() < deadline:
        pass
    assert not f.exists()


def test_what_the_kernel_forgets_is_forgotten_here(ram_mount: Mount, place: Path) -> None:
    for n in range(200):
        (place / f"f{n}").touch()
    before = int(ram_mount.ask("live nodeids"))
    assert before > 200
    for n in range(200):
        (place / f"f{n}").unlink()
    deadline = time.monotonic() + 10
    while int(ram_mount.ask("live nodeids")) > before - 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert int(ram_mount.ask("live nodeids")) <= before - 200
