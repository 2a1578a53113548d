"""What a program does with files, timed from inside: `filework.py TEST PATH...` prints operations per second, or MB/s.

A process of its own, because a program that serves or times a mount must not be stuck in it.  Knows no file system.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable

MIB = 1 << 20


def timed(work: Callable[[], float]) -> float:
    """Units of work per second."""
    start = time.perf_counter()
    units = work()
    return units / (time.perf_counter() - start)


def stat(directory: str, first: str, count: str) -> float:
    """stat(2) of files that nobody has asked for since the mount."""
    paths = [f"{directory}/f{i:05}" for i in range(int(first), int(first) + int(count))]

    def work() -> float:
        for path in paths:
            os.stat(path)
        return len(paths)

    return timed(work)


def create(directory: str, count: str) -> float:
    """Create, write a byte, close."""
    os.mkdir(directory)
    paths = [f"{directory}/f{i:05}" for i in range(int(count))]

    def work() -> float:
        for path in paths:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(fd, b"x")
            os.close(fd)
        return len(paths)

    return timed(work)


def readdir(directory: str, count: str) -> float:
    """List a directory."""

    def work() -> float:
        found = len(os.listdir(directory))
        assert found == int(count), found
        return found

    return timed(work)


def readdir_stat(directory: str, count: str) -> float:
    """List a directory and look at each entry, as `ls -l` does."""

    def work() -> float:
        with os.scandir(directory) as entries:
            found = sum(1 for entry in entries if entry.stat(follow_symlinks=False).st_size >= 0)
        assert found == int(count), found
        return found

    return timed(work)


def open_read_close(directory: str, first: str, count: str) -> float:
    """Open a small file, read it, close it."""
    paths = [f"{directory}/f{i:05}" for i in range(int(first), int(first) + int(count))]

    def work() -> float:
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            os.read(fd, 4096)
            os.close(fd)
        return len(paths)

    return timed(work)


def random_read(path: str, count: str) -> float:
    """Pages of 4 KiB, each once, in random order."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    offsets = [n * 4096 for n in range(os.fstat(fd).st_size // 4096)]
    random.Random(1).shuffle(offsets)
    del offsets[int(count) :]

    def work() -> float:
        for offset in offsets:
            os.pread(fd, 4096, offset)
        return len(offsets)

    return timed(work)


def read(path: str) -> float:
    """A whole file, from start to end."""
    buffer = bytearray(MIB)

    def work() -> float:
        fd = os.open(path, os.O_RDONLY)
        done = 0
        while got := os.readv(fd, [buffer]):
            done += got
        os.close(fd)
        return done / 1e6

    return timed(work)


def write(path: str, mib: str) -> float:
    """A new file, written from start to end."""
    data = bytes(MIB)

    def work() -> float:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        for _ in range(int(mib)):
            assert os.write(fd, data) == MIB
        os.close(fd)
        return int(mib) * MIB / 1e6

    return timed(work)


def ctl(path: str, line: str, count: str) -> float:
    """What `echo LINE >ctl` does, without the shell."""
    data = f"{line}\n".encode()

    def work() -> float:
        for _ in range(int(count)):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.write(fd, data)
            os.close(fd)
        return int(count)

    return timed(work)


def cat(path: str, count: str) -> float:
    """What cat does with one small file, many times."""

    def work() -> float:
        for _ in range(int(count)):
            fd = os.open(path, os.O_RDONLY)
            while os.read(fd, 131072):
                pass
            os.close(fd)
        return int(count)

    return timed(work)


TESTS: dict[str, Callable[..., float]] = {
    f.__name__: f for f in (stat, create, readdir, readdir_stat, open_read_close, random_read, read, write, ctl, cat)
}

if __name__ == "__main__":
    print(TESTS[sys.argv[1]](*sys.argv[2:]))
