"""Programs and loads on a guest's mounts: rm, tar, cp, git, random writes against a model, several busy processes."""

from __future__ import annotations

import mmap
import os
import random
import stat
import traceback
from pathlib import Path

from interop.guest_kit import DOTL, DOTU, Mount, check, run


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
