"""What a Linux kernel's 9P mount must do on our trees, call by call: files, names, metadata, locks, mappings, streams.

Entered in guest_kit's table and run inside the guest by guest_run.py.  Uses only the standard library.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import mmap
import os
import random
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

from interop.guest_kit import DOTL, DOTU, LIVE, MANY, P2000, Mount, check, raises, run

NO_NUMBER = 526  # what Linux makes of an Rerror whose text is not in its table
V9FS_MAGIC = 0x01021997


# -- files


@check()
def content(m: Mount) -> None:
    path = m.here / "file"
    with path.open("xb") as f:
        assert f.write(b"hello\n") == 6
    with raises(errno.EEXIST):
        path.open("xb")
    with path.open("ab") as f:
        f.write(b"world\n")
    assert path.read_bytes() == b"hello\nworld\n"
    assert path.stat().st_size == 12
    with path.open("r+b") as f:
        f.seek(6)
        f.write(b"W")
    assert path.read_bytes() == b"hello\nWorld\n"
    m.keep(path)


@check()
def large_file(m: Mount) -> None:
    data = random.Random(1).randbytes(3_000_001)
    path = m.here / "large"
    path.write_bytes(data)
    assert path.read_bytes() == data
    m.keep(path)


@check()
def truncate(m: Mount) -> None:
    path = m.here / "file"
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    assert path.read_bytes() == b"0123"
    os.truncate(path, 8)
    assert path.read_bytes() == b"0123\0\0\0\0"
    with path.open("r+b") as f:
        f.truncate(1)
        assert os.fstat(f.fileno()).st_size == 1
    with path.open("wb"):
        pass
    assert path.stat().st_size == 0


@check()
def sparse_write(m: Mount) -> None:
    fd = os.open(m.here / "sparse", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(fd, b"end", 1_000_000)
    assert os.pread(fd, 10, 0) == b"\0" * 10
    assert os.pread(fd, 10, 1_000_000) == b"end"
    os.fsync(fd)
    os.close(fd)
    assert (m.here / "sparse").stat().st_size == 1_000_003


@check()
def errors(m: Mount) -> None:
    (m.here / "file").touch()
    (m.here / "dir").mkdir()
    with raises(errno.ENOENT):
        os.stat(m.here / "missing")
    with raises(errno.ENOTDIR):
        os.stat(m.here / "file" / "below")
    with raises(errno.EISDIR):
        os.open(m.here / "dir", os.O_WRONLY)
    with raises(errno.EEXIST):
        os.mkdir(m.here / "dir")
    with raises(errno.ENAMETOOLONG):
        os.stat(m.here / ("x" * 256))


# -- names


@check()
def rename(m: Mount) -> None:
    (m.here / "a").write_bytes(b"a")
    (m.here / "a").rename(m.here / "b")
    assert sorted(os.listdir(m.here)) == ["b"]
    assert (m.here / "b").read_bytes() == b"a"
    (m.here / "d").mkdir()
    (m.here / "d").rename(m.here / "e")
    assert sorted(os.listdir(m.here)) == ["b", "e"]


@check(dialects=(DOTL,), refused=errno.EEXIST)
def rename_over(m: Mount) -> None:
    (m.here / "a").write_bytes(b"new")
    (m.here / "b").write_bytes(b"old")
    (m.here / "a").rename(m.here / "b")
    assert os.listdir(m.here) == ["b"]
    assert (m.here / "b").read_bytes() == b"new"


@check(dialects=(DOTL,), refused=errno.EXDEV)
def rename_across(m: Mount) -> None:
    (m.here / "x").mkdir()
    (m.here / "y").mkdir()
    (m.here / "x/f").write_bytes(b"moved")
    (m.here / "x/f").rename(m.here / "y/g")
    assert (os.listdir(m.here / "x"), os.listdir(m.here / "y")) == ([], ["g"])
    assert (m.here / "y/g").read_bytes() == b"moved"


@check()
def directories(m: Mount) -> None:
    os.makedirs(m.here / "a/b/c")
    with raises(errno.ENOTEMPTY):
        os.rmdir(m.here / "a/b")
    os.rmdir(m.here / "a/b/c")
    os.rmdir(m.here / "a/b")
    assert os.listdir(m.here / "a") == []


@check(dialects=(DOTL, DOTU), refused=errno.EPERM)
def symbolic_link(m: Mount) -> None:
    (m.here / "file").write_bytes(b"seen")
    os.symlink("file", m.here / "link")
    assert os.readlink(m.here / "link") == "file"
    assert stat.S_ISLNK(os.lstat(m.here / "link").st_mode)
    assert (m.here / "link").read_bytes() == b"seen"
    os.unlink(m.here / "link")
    assert os.listdir(m.here) == ["file"]


@check(dialects=(DOTL, DOTU), refused=errno.EPERM)
def hard_link(m: Mount) -> None:
    (m.here / "one").write_bytes(b"shared")
    os.link(m.here / "one", m.here / "two")
    assert (m.here / "two").read_bytes() == b"shared"
    one, two = os.stat(m.here / "one"), os.stat(m.here / "two")
    assert (one.st_ino, one.st_dev) == (two.st_ino, two.st_dev)
    if m.dialect == DOTL:  # a .u stat has no link count
        assert one.st_nlink == 2
    os.unlink(m.here / "one")
    assert (m.here / "two").read_bytes() == b"shared"


@check(dialects=(DOTL, DOTU), refused=errno.EPERM)
def fifo(m: Mount) -> None:
    os.mkfifo(m.here / "pipe", 0o600)
    assert stat.S_ISFIFO(os.lstat(m.here / "pipe").st_mode)
    fd = os.open(m.here / "pipe", os.O_RDWR)  # the guest's kernel carries the bytes
    os.write(fd, b"through")
    assert os.read(fd, 10) == b"through"
    os.close(fd)


@check()
def readdir_2000(m: Mount) -> None:
    assert sorted(os.listdir(m.root / "many")) == [f"f{i:04}" for i in range(MANY)]


@check()
def open_unlinked(m: Mount) -> None:
    fd = os.open(m.here / "gone", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"still here")
    os.unlink(m.here / "gone")
    assert os.listdir(m.here) == []
    assert os.fstat(fd).st_size == 10
    assert os.pread(fd, 20, 0) == b"still here"
    os.pwrite(fd, b"!", 10)
    os.close(fd)


# -- metadata


@check()
def change_mode(m: Mount) -> None:
    path = m.here / "file"
    path.touch(0o644)
    for mode in (0o600, 0o444, 0o755):
        path.chmod(mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode


@check(dialects=(DOTL, DOTU))
def change_owner(m: Mount) -> None:
    path = m.here / "file"
    path.touch()
    os.chown(path, 1234, 4321)
    st = path.stat()
    assert (st.st_uid, st.st_gid) == (1234, 4321)


@check(dialects=(P2000,))
def chown_says_nothing(m: Mount) -> None:
    """The record has no numbers of users; the client reports success, and the host finds the owner unchanged."""
    path = m.here / "file"
    path.touch()
    os.chown(path, 1234, 4321)


@check()
def change_times(m: Mount) -> None:
    path = m.here / "file"
    path.touch()
    when = 1_500_000_000_000_000_000  # the client itself cuts to seconds: its super block has no finer s_time_gran
    os.utime(path, ns=(when, when))
    assert path.stat().st_mtime_ns == when


@check(dialects=(DOTL,), refused=errno.EOPNOTSUPP)
def extended_attributes(m: Mount) -> None:
    path = m.here / "file"
    path.touch()
    os.setxattr(path, "user.color", b"green")
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.color") == b"green"
    assert {"user.color", "user.empty"} <= set(os.listxattr(path))
    with raises(errno.EEXIST):
        os.setxattr(path, "user.color", b"red", os.XATTR_CREATE)
    os.removexattr(path, "user.color")
    with raises(errno.ENODATA):
        os.getxattr(path, "user.color")


@check(dialects=(DOTL,))
def file_system_statistics(m: Mount) -> None:
    st = os.statvfs(m.root)
    assert st.f_blocks > 0
    assert st.f_namemax == 255
    kind = int(run("busybox", "stat", "-f", "-c", "%t", str(m.root)), 16)
    assert kind == V9FS_MAGIC, hex(kind)


# -- locks, seen by another client


def other(m: Mount, path: Path) -> Path:
    """The same file through the other client's mount."""
    return Path("/run/m") / m.twin / path.relative_to(m.root)


def in_child(use: Callable[[], bool]) -> bool:
    """What a process of its own says."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if use() else 1
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 1), f"the child failed: {status}"
    return status == 0


def takes(path: Path, how: Callable[[int], None]) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        how(fd)
    except (BlockingIOError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


@check(dialects=(DOTL,), caches=("none",))
def flock_between_clients(m: Mount) -> None:
    path = m.here / "lock"
    path.touch()
    twin = other(m, path)
    fd = os.open(path, os.O_RDWR)

    def whole(f: int) -> None:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)

    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not in_child(lambda: takes(twin, whole))
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert in_child(lambda: takes(twin, whole))
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert in_child(lambda: takes(twin, lambda f: fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)))
    assert not in_child(lambda: takes(twin, whole))
    os.close(fd)
    assert in_child(lambda: takes(twin, whole))


@check(dialects=(DOTL,), caches=("none",))
def record_locks_between_clients(m: Mount) -> None:
    path = m.here / "lock"
    path.write_bytes(b"x" * 100)
    twin = other(m, path)
    fd = os.open(path, os.O_RDWR)

    def part(start: int, length: int) -> Callable[[int], None]:
        return lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)

    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)
    assert not in_child(lambda: takes(twin, part(25, 1)))
    assert in_child(lambda: takes(twin, part(30, 0)))
    fcntl.lockf(fd, fcntl.LOCK_UN, 5, 20)
    assert in_child(lambda: takes(twin, part(20, 5)))
    assert not in_child(lambda: takes(twin, part(20, 6)))
    os.close(fd)
    assert in_child(lambda: takes(twin, part(0, 0)))


# -- mapped files


@check(caches=("loose", "mmap"))
def shared_mapping(m: Mount) -> None:
    path = m.here / "mapped"
    path.write_bytes(b"." * 10_000)
    with path.open("r+b") as f, mmap.mmap(f.fileno(), 10_000) as memory:
        memory[5000:5005] = b"hello"
        memory.flush()
    assert path.read_bytes()[4999:5006] == b".hello."
    m.keep(path)


@check(caches=("none",))
def private_mapping(m: Mount) -> None:
    path = m.here / "mapped"
    path.write_bytes(b"abc" * 5000)
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as memory:
        assert memory[:] == b"abc" * 5000


# -- synthetic files


@check(trees=LIVE)
def state_files(m: Mount) -> None:
    for _ in range(20):
        words = (m.root / "state").read_text().split()
        assert words[0] == words[-1], "torn"


@check(trees=LIVE)
def ctl_file(m: Mount) -> None:
    word = f"hello from {m.name}"
    with (m.root / "ctl").open("w") as f:
        f.write(f"say {word}\n")
    assert word in (m.root / "log").read_text().splitlines()
    with raises(NO_NUMBER if m.dialect == P2000 else errno.EINVAL):
        fd = os.open(m.root / "ctl", os.O_WRONLY)
        try:
            os.write(fd, b"no such command\n")
        finally:
            os.close(fd)


@check(trees=LIVE)
def killed_reader(m: Mount) -> None:
    """A process that waits in a read dies of a signal, and the server no longer waits for it."""
    parked = m.root / "parked"
    before = int(parked.read_text())
    for sig in (signal.SIGTERM, signal.SIGKILL):
        pid = os.fork()
        if pid == 0:
            try:
                os.read(os.open(m.root / "event", os.O_RDONLY), 100)
            finally:
                os._exit(3)
        until(lambda: int(parked.read_text()) == before + 1, "the read to park")
        os.kill(pid, sig)
        until(functools.partial(has_died_of, pid, sig), f"the reader to die of {sig}")
        until(lambda: int(parked.read_text()) == before, "the server to forget the read")


def has_died_of(pid: int, sig: int) -> bool:
    found, status = os.waitpid(pid, os.WNOHANG)
    if found:
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == sig
    return bool(found)


def until(done: Callable[[], bool], what: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)
