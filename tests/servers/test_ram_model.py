"""A ram tree and a real tmpfs are given the same operations and must answer alike: errno, stat and times.

The judge of path and permission order here is a few lines that do what a Session does: search every directory on the
way, ask `access` before a change.  Seeded; a failure prints the seed, the step and the operation.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import stat as _s
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ninep.file import Call, Dir, File, Handle, permit, want_of
from ninep.principal import local_principal
from ninep.proto import errors as E
from ninep.proto.types import NOW, OAPPEND, ORDWR, OREAD, OTRUNC, OWRITE, W_WANT, X_WANT, Change
from ninep.servers import ram

_libc = ctypes.CDLL(None, use_errno=True)
WHO = {
    0: Call(local_principal(0, 0, frozenset(), "root", "local")),
    1000: Call(local_principal(1000, 1000, frozenset(), "one", "local")),
    1001: Call(local_principal(1001, 1001, frozenset({1000}), "two", "local")),
}
NAMES = ("a", "b", "c", "d")
SHM = "/dev/shm"
TICK_SECONDS = time.clock_getres(6)  # CLOCK_MONOTONIC_COARSE: the grain of the kernel's file times


def _is_tmpfs(path: str) -> bool:
    with open("/proc/mounts") as mounts:
        return any(line.split()[1:3] == [path, "tmpfs"] for line in mounts)


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it acts as several users"),
    pytest.mark.skipif(not _is_tmpfs(SHM), reason="needs a tmpfs at /dev/shm"),
    pytest.mark.feature("ram-posix"),
]


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    principal = WHO[uid].principal
    groups = os.getgroups()
    os.setgroups(sorted(principal.groups))
    os.setegid(principal.gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Real:
    """The kernel's side."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.open_fds: list[int] = []

    def run(self, uid: int, op: str, *args: Any) -> Any:
        with acting_as(uid):
            try:
                return getattr(self, op)(*args)
            except OSError as e:
                return errno.errorcode[e.errno or 0]

    def at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def is_special(self, path: str) -> bool:
        try:
            mode = os.lstat(self.at(path)).st_mode
        except OSError:
            return False
        return _s.S_ISFIFO(mode) or _s.S_ISSOCK(mode)

    def create(self, path: str, mode: int) -> None:
        os.close(os.open(self.at(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, mode))

    def hold(self, path: str) -> None:
        fd = os.open(self.at(path), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        self.open_fds.append(fd)

    def held_write(self, which: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.open_fds[which], data, offset)

    def held_read(self, which: int, offset: int, count: int) -> bytes:
        return os.pread(self.open_fds[which], count, offset)

    def held_truncate(self, which: int, size: int) -> None:
        os.ftruncate(self.open_fds[which], size)

    def held_allocate(self, which: int, mode: int, offset: int, length: int) -> None:
        off = ctypes.c_long
        _checked(_libc.fallocate(self.open_fds[which], mode, off(offset), off(length)))

    def held_copy(self, which: int, offset: int, to: int, to_offset: int, count: int) -> int:
        return os.copy_file_range(self.open_fds[which], self.open_fds[to], count, offset, to_offset)

    def held_stat(self, which: int) -> tuple[int, ...]:
        st = os.fstat(self.open_fds[which])
        return st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_size

    def drop(self, which: int) -> None:
        os.close(self.open_fds.pop(which))

    def write(self, path: str, offset: int, data: bytes, flags: int) -> int:
        fd = os.open(self.at(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def read(self, path: str, offset: int, count: int) -> bytes:
        fd = os.open(self.at(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.pread(fd, count, offset)
        finally:
            os.close(fd)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: str, times: tuple[int, int] | None) -> None:
        if times is None:
            os.utime(self.at(path), follow_symlinks=False)
        else:
            os.utime(self.at(path), ns=times, follow_symlinks=False)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def symlink(self, path: str, target: str) -> None:
        os.symlink(target, self.at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self.at(path))

    def link(self, path: str, to: str) -> None:
        os.link(self.at(path), self.at(to), follow_symlinks=False)

    def mknod(self, path: str, mode: int) -> None:
        os.mknod(self.at(path), mode)

    def rename(self, path: str, to: str, flags: int) -> None:
        _checked(_libc.renameat2(-100, self.at(path).encode(), -100, self.at(to).encode(), flags))

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.at(path), name, value, flags, follow_symlinks=False)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self.at(path), name, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.at(path), name, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(self.at(path), follow_symlinks=False))

    def look(self, path: str = "") -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        names = sorted(os.listdir(self.at(path)))
        yield path, *self.stat_of(self.at(path))
        for name in names:
            below = os.path.join(path, name)
            if _s.S_ISDIR(os.lstat(self.at(below)).st_mode):
                yield from self.look(below)
            else:
                yield below, *self.stat_of(self.at(below))

    @staticmethod
    def stat_of(path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        st = os.lstat(path)
        size = 0 if _s.S_ISDIR(st.st_mode) else st.st_size
        return (st.st_mode, st.st_nlink, st.st_uid, st.st_gid, size), (
            st.st_ino, st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)  # fmt: skip


class Ours:
    """The ram tree's side, with what a Session adds: search on the way, access before the act."""

    def __init__(self, root: Dir) -> None:
        self.root = root
        self.call = WHO[0]
        self.held: list[Handle] = []
        self.held_files: list[Any] = []

    def run(self, uid: int, op: str, *args: Any) -> Any:
        self.call = WHO[uid]
        try:
            return getattr(self, op)(*args)
        except E.FileError as e:
            return errno.errorcode[e.errno]

    def parent(self, path: str) -> tuple[Any, str]:
        at: Any = self.root
        *dirs, last = path.split("/")
        for name in dirs:
            self.search(at)
            at = at.walk(self.call, name)
            if at.kind == _s.S_IFLNK:
                at.readlink(self.call)  # the kernel follows it, and atime tells
                raise E.Enonexist("dangling on purpose")
            if not isinstance(at, Dir):
                raise E.Enotdir(name)
        self.search(at)
        return at, last

    def search(self, directory: Any) -> None:
        permit(self.call.principal, directory.stat(self.call), X_WANT)

    def file(self, path: str) -> Any:
        if not path:
            return self.root
        directory, name = self.parent(path)
        return directory.walk(self.call, name)

    def followed(self, path: str) -> Any:
        file = self.file(path)
        if file.kind == _s.S_IFLNK:
            file.readlink(self.call)
            raise E.Enonexist("dangling on purpose")
        return file

    def room(self, path: str) -> tuple[Any, str]:
        directory, name = self.parent(path)
        if name in directory._names:
            raise E.Eexist(name)
        directory.access(self.call, W_WANT | X_WANT)
        return directory, name

    def opened(self, path: str, omode: int) -> tuple[Any, Any]:
        file = self.file(path)
        if file.kind == _s.S_IFDIR and omode & 3:
            raise E.Eisdir
        if file.kind == _s.S_IFLNK:
            raise E.Eloop
        file.access(self.call, want_of(omode))
        return file, file.open(self.call, omode)

    def create(self, path: str, mode: int) -> None:
        directory, name = self.room(path)
        directory.create(self.call, name, mode, ORDWR)[1].close(self.call)

    def hold(self, path: str) -> None:
        file, handle = self.opened(path, ORDWR)
        self.held.append(handle)
        self.held_files.append(file)

    def held_write(self, which: int, offset: int, data: bytes) -> Any:
        return self.held[which].write(self.call, offset, data)

    def held_read(self, which: int, offset: int, count: int) -> Any:
        return self.held[which].read(self.call, offset, count)

    def held_truncate(self, which: int, size: int) -> None:
        self.held[which].truncate(self.call, size)

    def held_allocate(self, which: int, mode: int, offset: int, length: int) -> None:
        self.held[which].allocate(self.call, mode, offset, length)

    def held_copy(self, which: int, offset: int, to: int, to_offset: int, count: int) -> Any:
        return self.held[which].copy_range(self.call, offset, self.held[to], to_offset, count)

    def held_stat(self, which: int) -> tuple[int, ...]:
        st = self.held_files[which].stat(self.call)
        return st.st_mode, st.nlink, st.uid, st.gid, st.size

    def drop(self, which: int) -> None:
        self.held.pop(which).close(self.call)
        self.held_files.pop(which)

    def write(self, path: str, offset: int, data: bytes, flags: int) -> Any:
        omode = OWRITE | (OTRUNC if flags & os.O_TRUNC else 0) | (OAPPEND if flags & os.O_APPEND else 0)
        handle = self.opened(path, omode)[1]
        try:
            return handle.write(self.call, offset, data)
        finally:
            handle.close(self.call)

    def read(self, path: str, offset: int, count: int) -> Any:
        file, handle = self.opened(path, OREAD)
        if file.kind == _s.S_IFDIR:
            raise E.Eisdir
        data = handle.read(self.call, offset, count)
        handle.close(self.call)
        return data

    def truncate(self, path: str, size: int) -> None:
        file = self.followed(path)
        if file.kind == _s.S_IFDIR:
            raise E.Eisdir
        if file.kind != _s.S_IFREG:
            raise E.Ebadarg
        self.wstat(file, Change(size=size))

    def wstat(self, file: File, change: Change) -> None:
        file.may_wstat(self.call, change)
        file.wstat(self.call, change)

    def chmod(self, path: str, mode: int) -> None:
        self.wstat(self.followed(path), Change(perm=mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        file = self.file(path)
        st = file.stat(self.call)
        if self.call.principal.uid not in (0, st.uid):
            raise E.Enotallowed
        self.wstat(file, Change(uid=uid, gid=gid))

    def utime(self, path: str, times: tuple[int, int] | None) -> None:
        atime, mtime = times or (NOW, NOW)
        self.wstat(self.file(path), Change(atime_ns=atime, mtime_ns=mtime))

    def mkdir(self, path: str, mode: int) -> None:
        directory, name = self.room(path)
        directory.mkdir(self.call, name, mode)

    def gone(self, path: str, is_dir: bool) -> None:
        directory, name = self.parent(path)
        directory.walk(self.call, name)
        directory.access(self.call, W_WANT | X_WANT)
        directory.remove(self.call, name, is_dir)

    def rmdir(self, path: str) -> None:
        self.gone(path, True)

    def unlink(self, path: str) -> None:
        self.gone(path, False)

    def symlink(self, path: str, target: str) -> None:
        directory, name = self.room(path)
        directory.symlink(self.call, name, target)

    def readlink(self, path: str) -> str:
        return self.file(path).readlink(self.call)  # type: ignore[no-any-return]  # of a file found by path

    def link(self, path: str, to: str) -> None:
        file = self.file(path)
        directory, name = self.room(to)
        directory.link(self.call, name, file)

    def mknod(self, path: str, mode: int) -> None:
        directory, name = self.room(path)
        directory.mknod(self.call, name, mode, 0)

    def rename(self, path: str, to: str, flags: int) -> None:
        if flags == 3:  # refused before the paths are looked at
            self.root.rename(self.call, "", self.root, "", flags)
        directory, name = self.parent(path)
        goal, to_name = self.parent(to)
        node = directory.walk(self.call, name)
        if to_name in goal._names and not flags & 1 and goal.walk(self.call, to_name) is node:
            return
        directory.access(self.call, W_WANT | X_WANT)
        goal.access(self.call, W_WANT | X_WANT)
        directory.rename(self.call, name, goal, to_name, flags)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        self.file(path).setxattr(self.call, name, value, flags)

    def getxattr(self, path: str, name: str) -> Any:
        return self.file(path).getxattr(self.call, name)

    def removexattr(self, path: str, name: str) -> None:
        self.file(path).removexattr(self.call, name)

    def listxattr(self, path: str) -> list[str]:
        return sorted(self.file(path).listxattr(self.call))

    def look(self, path: str = "", file: Any = None) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        file = file or self.root
        call = WHO[0]
        entries = file.open(call, OREAD).entries(call, 0, 10_000)
        yield path, *self.stat_of(file)
        for name in sorted(e.name for e in entries):
            below, child = os.path.join(path, name), file.walk(call, name)
            if isinstance(child, Dir):
                yield from self.look(below, child)
            else:
                yield below, *self.stat_of(child)

    @staticmethod
    def stat_of(file: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        st = file.stat(WHO[0])
        return (st.st_mode, st.nlink, st.uid, st.gid, st.size), (st.qid.path, st.atime_ns, st.mtime_ns, st.ctime_ns)


class Script:
    """Random operations; both sides get the same."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def path(self) -> str:
        return "/".join(self.rng.choice(NAMES) for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3))))

    def mode(self) -> int:
        r = self.rng
        return r.choice((0o777, 0o755, 0o700, 0o644, 0o666, 0o640, 0o000)) | r.choice((0, 0, 0, 0o4000, 0o2000, 0o1000))

    def data(self) -> bytes:
        return bytes([self.rng.randrange(256)]) * self.rng.choice((0, 1, 10, 4096, 70_000))

    def offset(self) -> int:
        return self.rng.choice((0, 0, 5, 4095, 65_530, 65_536, 140_000))

    def step(self, held: int) -> tuple[int, tuple[Any, ...]]:
        r = self.rng
        uid = r.choice((0, 0, 1000, 1000, 1001))
        name = r.choice(("user.x", "user.y", "trusted.t", "security.s", "bad", "user."))
        ops: list[Callable[[], tuple[Any, ...]]] = [
            lambda: ("create", self.path(), self.mode()),
            lambda: ("create", self.path(), self.mode()),
            lambda: ("hold", self.path()),
            lambda: ("write", self.path(), self.offset(), self.data(), r.choice((0, 0, os.O_TRUNC, os.O_APPEND))),
            lambda: ("read", self.path(), self.offset(), 100_000),
            lambda: ("truncate", self.path(), r.choice((0, 3, 65_536, 200_000, 1 << 40))),
            lambda: ("chmod", self.path(), self.mode()),
            lambda: ("chown", self.path(), r.choice((0, 1000, 1001)), r.choice((0, 1000, 1001))),
            lambda: ("utime", self.path(), r.choice((None, (10**9, 2 * 10**9)))),
            lambda: ("mkdir", self.path(), self.mode() & ~0o6000),
            lambda: ("mkdir", self.path(), 0o777),
            lambda: ("rmdir", self.path()),
            lambda: ("unlink", self.path()),
            lambda: ("symlink", self.path(), "nowhere/at/all"),
            lambda: ("readlink", self.path()),
            lambda: ("link", self.path(), self.path()),
            lambda: ("mknod", self.path(), r.choice((_s.S_IFREG, _s.S_IFIFO, _s.S_IFSOCK)) | self.mode()),
            lambda: ("rename", self.path(), self.path(), r.choice((0, 0, 0, 1, 2, 3))),
            lambda: ("rename", self.path(), self.path(), 0),
            lambda: ("setxattr", self.path(), name, b"v", r.choice((0, 0, 1, 2))),
            lambda: ("getxattr", self.path(), name),
            lambda: ("removexattr", self.path(), name),
            lambda: ("listxattr", self.path()),
        ]
        if held:
            which = r.randrange(held)
            ops += [
                lambda: ("held_write", which, self.offset(), self.data()),
                lambda: ("held_read", which, self.offset(), 100_000),
                lambda: ("held_truncate", which, r.choice((0, 7, 100_000))),
                lambda: ("held_allocate", which, r.choice((0, 1, 3)), self.offset(), r.choice((0, 1, 70_000))),
                lambda: ("held_copy", which, self.offset(), r.randrange(held), self.offset(), r.choice((1, 9000))),
                lambda: ("held_stat", which),
                lambda: ("drop", which),
            ]
        op = r.choice(ops)()
        if op[0] == "link":
            uid = 0  # fs.protected_hardlinks is the kernel's policy for its own users
        return uid, op


def moved(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> dict[str, tuple[bool, ...]]:
    """Per path that names the same file as before: which of atime, mtime, ctime are others now."""
    return {
        path: tuple(a != b for a, b in zip(times[1:], before[path][1:]))
        for path, times in after.items()
        if path in before and before[path][0] == times[0]
    }


def run_both(seed: int, steps: int, pause: float) -> int:
    script = Script(seed)
    root = tempfile.mkdtemp(dir=SHM)
    perm = 0o777 if seed % 2 else 0o1777
    os.chmod(root, perm)
    real, ours = Real(root), Ours(ram.tree(perm=perm))
    done = 0
    old_umask = os.umask(0)
    try:
        times: tuple[dict[str, Any], dict[str, Any]] | None = None
        for step in range(steps):
            uid, op = script.step(len(real.open_fds))
            where = f"seed {seed} step {step} uid {uid} {op!r:.200}"
            if pause:
                time.sleep(pause)
            if op[0] in ("hold", "read", "write") and real.is_special(op[1]):
                continue  # the kernel's FIFO is not ours to compare
            theirs, mine = real.run(uid, *op), ours.run(uid, *op)
            if pause:
                time.sleep(pause)
            if theirs != mine:
                refused = [r for r in (theirs, mine) if isinstance(r, str) and r.startswith("E")]
                # Of two reasons to refuse either may be told first, when one is the permission.
                assert len(refused) == 2, f"{where}: kernel {theirs!r:.80}, ram {mine!r:.80}"
                assert {"EACCES", "EPERM"} & set(refused), f"{where}: kernel {theirs!r:.80}, ram {mine!r:.80}"
            elif not (isinstance(theirs, str) and theirs.startswith("E")):
                done += 1
            seen_real, seen_ours = list(real.look()), list(ours.look())
            assert [s[:2] for s in seen_ours] == [s[:2] for s in seen_real], where
            if pause:
                now = {p: t for p, _, t in seen_real}, {p: t for p, _, t in seen_ours}
                if times is not None:
                    assert moved(times[1], now[1]) == moved(times[0], now[0]), where
                times = now
            if len(real.open_fds) > 4:
                real.run(0, "drop", 0)
                ours.run(0, "drop", 0)
    finally:
        os.umask(old_umask)
        for fd in real.open_fds:
            os.close(fd)
        shutil.rmtree(root)
    return done


@pytest.mark.parametrize("seed", range(6))
def test_same_operations_give_the_same_errnos_and_stats_as_tmpfs(seed: int) -> None:
    assert run_both(seed, 700, 0.0) > 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 102))
def test_same_operations_change_the_same_times_as_tmpfs(seed: int) -> None:
    assert run_both(seed, 250, TICK_SECONDS * 1.5) > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_more_operations_agree_with_tmpfs() -> None:
    for seed in range(1000, 1040):
        run_both(seed, 1500, 0.0)


def test_the_model_notices_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from ninep.servers.ram import RamDir

    monkeypatch.setattr(RamDir, "_may_remove", lambda self, call, node: None)
    with pytest.raises(AssertionError, match="seed"):
        for seed in range(40):
            run_both(seed, 700, 0.0)
