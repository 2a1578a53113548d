"""What a Linux kernel's 9P mount must do on our trees: run inside the guest, one line of JSON for each check.

`guest_checks.py PLAN`: the plan names mounts below /run/m, each with its dialect, cache mode and tree.  Uses only the
standard library.  A check gets a fresh directory of its own and raises if the mount is not what Linux promises.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import mmap
import os
import random
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NO_NUMBER = 526  # what Linux makes of an Rerror whose text is not in its table
V9FS_MAGIC = 0x01021997
MANY = 2000
DOTL, DOTU, P2000 = "9p2000.L", "9p2000.u", "9p2000"
FILES, LIVE = ("ram", "host"), ("live",)


@dataclass
class Mount:
    """One mount; `twin` is another client's mount of the same tree."""

    name: str
    dialect: str
    cache: str
    tree: str
    twin: str = ""
    kept: dict[str, str] = field(default_factory=dict)  # path below the tree's root -> SHA-256, as the guest read it
    directory: str = ""  # of the running check, below the tree's root

    @property
    def root(self) -> Path:
        return Path("/run/m") / self.name

    @property
    def here(self) -> Path:
        return self.root / self.directory

    def keep(self, path: Path) -> None:
        """The host shall find the same content there."""
        self.kept[str(path.relative_to(self.root))] = hashlib.sha256(path.read_bytes()).hexdigest()


Check = Callable[[Mount], None]


@dataclass
class Row:
    """A check, the trees, dialects and cache modes it is for, and the errno that other dialects answer (0: not run)."""

    run: Check
    trees: tuple[str, ...]
    dialects: tuple[str, ...]
    caches: tuple[str, ...]
    refused: int


CHECKS: dict[str, Row] = {}


def check(
    trees: tuple[str, ...] = FILES,
    dialects: tuple[str, ...] = (DOTL, DOTU, P2000),
    caches: tuple[str, ...] = ("none", "loose", "mmap"),
    refused: int = 0,
) -> Callable[[Check], Check]:
    def enter(run: Check) -> Check:
        CHECKS[run.__name__] = Row(run, trees, dialects, caches, refused)
        return run

    return enter


def outcome_wanted(name: str, mount: Mount) -> str | None:
    """ "works", the name of an errno, or None where the check says nothing about this mount."""
    row = CHECKS[name]
    if mount.tree not in row.trees or mount.cache not in row.caches:
        return None
    if mount.dialect in row.dialects:
        return "works"
    return errno.errorcode[row.refused] if row.refused else None


@contextmanager
def raises(*codes: int) -> Any:
    try:
        yield
    except OSError as e:
        if e.errno not in codes:
            raise AssertionError(f"{e} instead of errno {codes}") from e
    else:
        raise AssertionError(f"no error; errno {codes} was due")


def run(*argv: str, cwd: Path | None = None, seconds: float = 60) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, timeout=seconds, check=False, text=True)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


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


# -- programs and loads


def small_tree(top: Path) -> None:
    for i in range(4):
        (top / f"d{i}").mkdir(parents=True)
        for j in range(4):
            (top / f"d{i}/f{j}").write_bytes(b"%d %d\n" % (i, j) * 100)


def listing(top: Path) -> dict[str, bytes]:
    paths = [Path(at, name) for at, _, names in os.walk(top) for name in names]
    return {str(path.relative_to(top)): path.read_bytes() for path in paths}


@check()
def rm_rf(m: Mount) -> None:
    small_tree(m.here / "t")
    os.makedirs(m.here / "t/deep/er/and/deeper")
    run("busybox", "rm", "-rf", str(m.here / "t"))
    assert os.listdir(m.here) == []


@check()
def tar(m: Mount) -> None:
    small_tree(m.here / "in")
    run("busybox", "tar", "-C", str(m.here), "-cf", str(m.here / "t.tar"), "in")
    (m.here / "out").mkdir()
    run("busybox", "tar", "-C", str(m.here / "out"), "-xf", str(m.here / "t.tar"))
    assert listing(m.here / "out/in") == listing(m.here / "in")
    assert len(listing(m.here / "in")) == 16
    m.keep(m.here / "t.tar")


@check(dialects=(DOTL, DOTU))
def cp_a(m: Mount) -> None:
    small_tree(m.here / "in")
    os.symlink("f1", m.here / "in/d0/link")
    os.chmod(m.here / "in/d1/f1", 0o640)
    os.utime(m.here / "in/d1/f1", (1_400_000_000, 1_400_000_000))
    run("cp", "-a", str(m.here / "in"), str(m.here / "out"))
    assert listing(m.here / "out") == listing(m.here / "in")
    assert os.readlink(m.here / "out/d0/link") == "f1"
    st = os.stat(m.here / "out/d1/f1")
    assert (stat.S_IMODE(st.st_mode), int(st.st_mtime)) == (0o640, 1_400_000_000)


@check(dialects=(DOTL,), caches=("loose", "mmap"))
def git_clone_and_fsck(m: Mount) -> None:
    source = os.environ["NINEP_GIT"]
    run("git", "-c", "safe.directory=*", "clone", "-q", "--no-hardlinks", source, str(m.here / "clone"))
    run("git", "-c", "safe.directory=*", "fsck", "--full", "--strict", cwd=m.here / "clone")
    assert run("git", "-c", "safe.directory=*", "status", "--porcelain", cwd=m.here / "clone") == ""
    for path in (m.here / "clone").glob("*.txt"):
        m.keep(path)


@check()
def random_writes(m: Mount) -> None:
    """As fsx does: writes, truncations, reads and mappings at random, compared with a model."""
    dice = random.Random(f"{m.dialect} {m.tree} {m.cache}")
    path = m.here / "fsx"
    model = bytearray()
    size_max = 150_000
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for step in range(250):
            what = dice.choice(("write", "write", "read", "read", "truncate", "append", "map"))
            at = dice.randrange(size_max)
            data = dice.randbytes(dice.randrange(1, 40_000))
            if what == "write":
                data = data[: size_max - at]
                model.extend(bytes(max(0, at - len(model))))
                model[at : at + len(data)] = data
                assert os.pwrite(fd, data, at) == len(data)
            elif what == "append" and len(model) + 100 < size_max:
                assert os.pwrite(fd, data[:100], len(model)) == len(data[:100])
                model.extend(data[:100])
            elif what == "truncate":
                os.ftruncate(fd, at)
                model[at:] = bytes(max(0, at - len(model)))
            elif what == "map" and m.cache != "none" and len(model) > at:
                with mmap.mmap(fd, len(model)) as memory:
                    part = data[: len(model) - at][:5000]
                    memory[at : at + len(part)] = part
                    model[at : at + len(part)] = part
            else:
                assert os.pread(fd, len(data), at) == bytes(model[at : at + len(data)]), f"step {step}: {what} at {at}"
            assert os.fstat(fd).st_size == len(model), f"step {step}: {what}"
        os.fsync(fd)
    finally:
        os.close(fd)
    assert path.read_bytes() == bytes(model)
    m.keep(path)


@check()
def four_busy_clients(m: Mount) -> None:
    """As dbench does: several processes that make, write, read, rename and remove files at once."""

    def work(number: int) -> bool:
        top = m.here / f"client{number}"
        top.mkdir()
        for i in range(12):
            data = b"%d/%d " % (number, i) * 700
            (top / "tmp").write_bytes(data)
            (top / "tmp").rename(top / f"f{i}")
            assert (top / f"f{i}").read_bytes() == data
            assert len(os.listdir(top)) == min(i, 3) + 1
            if i >= 3:
                os.unlink(top / f"f{i - 3}")
        for name in os.listdir(top):
            os.unlink(top / name)
        top.rmdir()
        return True

    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(number)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    assert os.listdir(m.here) == []


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


# -- the run


def result_of(name: str, mount: Mount) -> str:
    """ "works", the name of the errno of a refusal, or a traceback."""
    mount.directory = f"{mount.name}-{name}" if mount.tree in FILES else ""
    try:
        if mount.directory:
            mount.here.mkdir()
        CHECKS[name].run(mount)
    except OSError as e:
        if outcome_wanted(name, mount) != "works":
            return errno.errorcode.get(e.errno or 0, str(e))
        return traceback.format_exc()
    except BaseException:
        return traceback.format_exc()
    return "works"


def main(plan: str) -> None:
    os.umask(0o022)
    for mount in [Mount(**row) for row in json.loads(Path(plan).read_text())]:
        for name in CHECKS:
            if outcome_wanted(name, mount) is None:
                continue
            start = time.monotonic()
            said = result_of(name, mount)
            line = {"mount": mount.name, "check": name, "said": said, "seconds": round(time.monotonic() - start, 3)}
            print(json.dumps(line), flush=True)
        print(json.dumps({"mount": mount.name, "kept": mount.kept}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
