"""A hostile or dying 9P server, mounted by FUSE: what ordinary programs see, and what they never reach."""

from __future__ import annotations

import os
import re
import signal
import stat as _s
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake9p import Fake, Reply
from fuse_mounts import run, shell
from servers import Server, is_mounted, program, start, unmount

from ninep.edges import fuse_contain
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto import messages as M
from ninep.proto.records import pack_dirent
from ninep.proto.types import QTDIR, QTSYMLINK, Qid

pytestmark = [pytest.mark.usefixtures("needs_fuse"), pytest.mark.timeout(90), pytest.mark.slow]

HANG_SECONDS = 1.0
END_SECONDS_MAX = 12.0  # a liveness bound, on a busy machine; the default reply timeout is 30


class Tree(Fake):
    """A hostile tree: directories, links and files by path; `on` lies beyond that."""

    def __init__(
        self, files: dict[str, bytes], links: dict[str, str] | None = None, dirs: tuple[str, ...] = ()
    ) -> None:
        self.links = links or {}
        self.dirs = dirs
        self.attributes: dict[str, dict[str, int]] = {}
        self.qids: dict[str, Qid] = {}
        super().__init__(files, msize=65_536)

    def __enter__(self) -> Tree:
        super().__enter__()
        return self

    def kind(self, path: str) -> int:
        return QTDIR if not path or path in self.dirs else QTSYMLINK if path in self.links else 0

    def qid(self, name: str) -> Qid:
        every = ["", *self.dirs, *self.links, *self.files]
        return self.qids.get(name) or Qid(self.kind(name), 0, 1 + every.index(name))

    def _walk(self, t: M.Twalk) -> Reply:
        path, qids = self.fids[t.fid], []
        for name in t.wname:
            path = f"{path}/{name}" if path else name
            if path not in (*self.dirs, *self.links, *self.files):
                return self.error(2)
            qids.append(self.qid(path))
        self.fids[t.newfid] = path
        return M.Rwalk(tuple(qids))

    def children(self, path: str) -> list[str]:
        return [p for p in (*self.dirs, *self.links, *self.files) if p.rpartition("/")[0] == path]

    def getattr(self, name: str, **changes: int) -> L.Rgetattr:
        mode = {QTDIR: _s.S_IFDIR | 0o755, QTSYMLINK: _s.S_IFLNK | 0o777, 0: _s.S_IFREG | 0o644}[self.kind(name)]
        plain = L.Rgetattr(L.GETATTR_BASIC, self.qid(name), mode, os.getuid(), os.getgid(), 1, 0,
                           len(self.files.get(name, b"")), 4096, 0, 1, 0, 2, 3, 4, 5)  # fmt: skip
        return msgspec.structs.replace(plain, **{**self.attributes.get(name, {}), **changes})

    def answer(self, tag: int, t: Any) -> Reply:
        match t:
            case L.Treaddir():
                all_of_them = self.children(self.fids[t.fid])
                return L.Rreaddir(b"".join(
                    pack_dirent(self.qid(p), i, 0, p.rpartition("/")[2])
                    for i, p in enumerate(all_of_them, 1) if i > t.offset
                ))  # fmt: skip
            case L.Treadlink():
                return L.Rreadlink(self.links.get(self.fids[t.fid], "f"))
            case L.Trenameat():
                return self._rename(t)
            case L.Tstatfs():
                return L.Rstatfs(1, 4096, 1, 1, 1, 1, 1, 1, 255)
            case L.Tsetattr():
                return L.Rsetattr()
        return super().answer(tag, t)

    def _rename(self, t: L.Trenameat) -> Reply:
        old, new = (f"{self.fids[d]}/{n}".lstrip("/") for d, n in ((t.olddirfid, t.oldname), (t.newdirfid, t.newname)))

        def moved(path: str) -> str:
            return new + path[len(old) :] if path == old or path.startswith(old + "/") else path

        every = ["", *self.dirs, *self.links, *self.files]
        self.qids = {moved(p): self.qid(p) for p in every}
        self.dirs = tuple(map(moved, self.dirs))
        self.links = {moved(p): text for p, text in self.links.items()}
        self.files = {moved(p): data for p, data in self.files.items()}
        self.fids = {fid: moved(p) for fid, p in self.fids.items()}
        return L.Rrenameat()


@contextmanager
def mounted(fake: Fake, point: Path, *options: str, **popen: Any) -> Iterator[Server]:
    """`ninep mount` of the fake on a directory, in a process of its own."""
    point.mkdir(exist_ok=True)
    fd = fake.sock.fileno()
    words = ["-o", ",".join(options)] if options else []
    argv = [program("ninep"), "mount", "--foreground", f"9p+fd://{fd}", str(point), *words]
    env = {"NINEP_STATE": str(point.parent / "state")}
    try:
        with start(argv, mountpoint=str(point), env=env, pass_fds=(fd,), **popen) as server:
            run("stat", point)  # it is in the mount table a little before it answers
            yield server
    finally:
        unmount(str(point))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("local secret\n")
    return path


# -- SEC-60: links


@pytest.mark.sec(60)
@pytest.mark.parametrize(
    ("target", "depth", "passes"),
    [
        ("a", 0, True), ("a/b/./c", 0, True), ("./a", 0, True), ("../a", 1, True), ("../../a", 2, True),
        ("..", 1, True), ("..", 0, False), ("../a", 0, False), ("../../a", 1, False), ("./../a", 0, False),
        ("..//../a", 1, False),
        ("/", 9, False), ("/etc/passwd", 9, False), ("//a", 9, False), ("a/..", 5, False), ("a/../../b", 5, False),
        ("../a/../b", 5, False), ("...", 0, True), ("..a", 0, True),
    ],
)  # fmt: skip
def test_which_targets_stay_inside(target: str, depth: int, passes: bool) -> None:
    if passes:
        assert fuse_contain.check_target(target, depth) == target
    else:
        with pytest.raises(E.Enotallowed):
            fuse_contain.check_target(target, depth)


def hostile_links(secret: Path) -> dict[str, str]:
    """Each leads to the secret, from a mount that is beside it."""
    return {
        "absolute": str(secret),
        "up": "../secret",
        "proc": f"/proc/self/root{secret}",
        "d/up": "../../secret",
        "d/e/up": "../../../secret",
        "d/e/dots": "./.././..//../secret",
        "d/e/top": "../..",  # stays inside, and
        "d/e/chain": "top/../secret",  # .. of where it leads does not
        "d/e/again": "chain",
        "d/e/good": "../../inside",
        "good": "inside",
    }


@pytest.mark.sec(60)
def test_no_link_of_the_servers_reads_or_writes_a_local_file(tmp_path: Path, secret: Path) -> None:
    links = hostile_links(secret)
    with Tree({"inside": b"inside\n"}, links, ("d", "d/e")) as fake, mounted(fake, tmp_path / "m"):
        for name in links:
            path = tmp_path / "m" / name
            good = name in ("good", "d/e/good")
            read = run("cat", path)
            assert read.stdout == (b"inside\n" if good else b""), name
            if not good and name != "d/e/top":
                assert run("sh", "-c", f"echo owned >{path}").returncode != 0, name
            assert (read.returncode == 0) == good, (name, read.stderr)
        assert "Operation not permitted" in run("cat", tmp_path / "m/absolute").stderr.decode()
    assert secret.read_text() == "local secret\n"


@pytest.mark.sec(60)
def test_with_symlinks_all_the_same_links_read_the_local_file(tmp_path: Path, secret: Path) -> None:
    """The control: without the guard every one of them works."""
    links = hostile_links(secret)
    with Tree({"inside": b"inside\n"}, links, ("d", "d/e")) as fake:
        with mounted(fake, tmp_path / "m", "symlinks=all"):
            for name in links:
                if name not in ("good", "d/e/good", "d/e/top"):
                    assert run("cat", tmp_path / "m" / name).stdout == b"local secret\n", name


@pytest.mark.sec(60)
def test_symlinks_deny_follows_none(tmp_path: Path) -> None:
    with Tree({"inside": b"inside\n"}, {"good": "inside"}) as fake, mounted(fake, tmp_path / "m", "symlinks=deny"):
        assert b"not permitted" in run("cat", tmp_path / "m/good").stderr
        assert run("cat", tmp_path / "m/inside").stdout == b"inside\n"


@pytest.mark.sec(60, 63)
def test_a_directory_shown_at_two_depths_does_not_lend_its_depth(tmp_path: Path, secret: Path) -> None:
    """One qid for /x and /d/e/x: the link in it may go up twice below /d/e, and not at all far below /x."""
    with Tree({}, {"d/e/x/l": "../../../secret", "x/l": "../../../secret"}, ("d", "d/e", "d/e/x", "x")) as fake:
        fake.qids = {"x": Qid(QTDIR, 0, 77), "d/e/x": Qid(QTDIR, 0, 77),
                     "x/l": Qid(QTSYMLINK, 0, 78), "d/e/x/l": Qid(QTSYMLINK, 0, 78)}  # fmt: skip
        (tmp_path.parent / "secret").write_text("above\n")
        with mounted(fake, tmp_path / "m"):
            deep, shallow = tmp_path / "m/d/e/x", tmp_path / "m/x"
            # Walked deep first, held open there, then shallow: the kernel must not move the one to the other.
            done = run("sh", "-c", f"cd {deep}; readlink l; cat {shallow}/l; cat l; cd {shallow}; readlink l; cat l")
            assert done.stdout == b"../../../secret\n", done.stdout
            assert done.stderr.count(b"Operation not permitted") == 2, done.stderr
            inodes = shell(f"cd {deep} && stat -c %N .. && stat -c %i {shallow} >/dev/null && ls -d {deep}/..")
            assert inodes
    assert secret.read_text() == "local secret\n"


@pytest.mark.sec(60)
@pytest.mark.parametrize("rule", ["contain", "all"])
def test_a_directory_moved_nearer_the_root_takes_its_links_along(tmp_path: Path, secret: Path, rule: str) -> None:
    with Tree({"secret": b"inside\n"}, {"d/e/f/l": "../../../secret"}, ("d", "d/e", "d/e/f")) as fake:
        with mounted(fake, tmp_path / "m", f"symlinks={rule}"):
            m = tmp_path / "m"
            assert run("cat", m / "d/e/f/l").stdout == b"inside\n"
            shell(f"mv {m}/d/e/f {m}/f")
            fake.links["f/l"] = "../../secret"
            read = run("cat", m / "f/l").stdout
            assert read == (b"" if rule == "contain" else b"local secret\n")
            # Back again: the place counts as no deeper than it has been, for a text may be on its way.
            shell(f"mv {m}/f {m}/d/e/f")
            fake.links["d/e/f/l"] = "../../../secret"
            assert run("cat", m / "d/e/f/l").returncode == (1 if rule == "contain" else 0)
            fake.links["d/e/f/l"] = "../e/f/x"
            assert run("readlink", m / "d/e/f/l").returncode == 0
    assert secret.read_text() == "local secret\n"


# -- SEC-63, 66, 68, 74: what the server says of its files


@pytest.mark.sec(63)
def test_a_file_that_changes_its_type_is_never_the_old_one(tmp_path: Path) -> None:
    with Tree({"f": b"file\n", "g": b"g\n"}) as fake, mounted(fake, tmp_path / "m"):
        f = tmp_path / "m/f"
        assert run("cat", f).stdout == b"file\n"
        fake.attributes["f"] = {"mode": _s.S_IFDIR | 0o755}
        assert b"Input/output error" in run("stat", f).stderr
        fake.attributes["f"] = {"mode": _s.S_IFLNK | 0o777}
        holder = run("sh", "-c", f"exec 3<{f}; cat <&3")
        assert holder.returncode != 0
        del fake.attributes["f"]
        fake.on[L.Tlopen] = lambda tag, t: L.Rlopen(Qid(QTDIR, 0, 2), 0)
        assert re.search(rb"Stale|Input/output", run("cat", f).stderr)
        fake.on.clear()
        assert run("cat", f).stdout == b"file\n"
        fake.qids = {"g": fake.qid("f")}
        assert shell(f"cat {f} {tmp_path}/m/g").startswith("file\n")


@pytest.mark.sec(66, 68)
def test_set_id_bits_and_devices_are_masked_and_the_mount_is_nosuid(tmp_path: Path) -> None:
    with Tree({"suid": b"#!/bin/sh\n", "disk": b""}) as fake:
        fake.attributes = {"suid": {"mode": _s.S_IFREG | 0o6755, "uid": 0},
                           "disk": {"mode": _s.S_IFBLK | 0o666, "rdev": 0x800}}  # fmt: skip
        with mounted(fake, tmp_path / "m"):
            assert shell(f"stat -c %a:%u {tmp_path}/m/suid") == "755:0\n"
            assert shell(f"stat -c %F:%t {tmp_path}/m/disk") == "regular empty file:0\n"
            line = next(x for x in Path("/proc/mounts").read_text().splitlines() if f"{tmp_path}/m " in x)
            assert {"nosuid", "nodev"} <= set(line.split()[3].split(","))


@pytest.mark.sec(74)
def test_garbage_attributes_break_no_program(tmp_path: Path) -> None:
    huge = (1 << 64) - 1
    with Tree({"f": b"x", "g": b"y"}) as fake:
        fake.attributes["f"] = {
            "mode": 0xFFFF, "uid": 0xFFFFFFFF, "gid": 0xFFFFFFFF, "nlink": huge, "rdev": huge, "size": huge,
            "blksize": huge, "blocks": huge, "atime_sec": huge, "atime_nsec": huge, "mtime_sec": huge,
            "mtime_nsec": huge, "ctime_sec": huge, "ctime_nsec": huge,
        }  # fmt: skip
        with mounted(fake, tmp_path / "m"):
            assert run("ls", "-l", tmp_path / "m").stdout.count(b"\n") == 3
            assert run("stat", tmp_path / "m/f").returncode == 0
            assert shell(f"stat -c %u:%s {tmp_path}/m/f") == f"65534:{(1 << 63) - 1}\n"
            assert shell(f"cat {tmp_path}/m/g") == "y"


# -- SEC-61, 64: directories


def dirent(name: bytes, cookie: int) -> bytes:
    head = bytes(5) + (100 + cookie).to_bytes(8, "little") + cookie.to_bytes(8, "little")
    return head + bytes([8]) + len(name).to_bytes(2, "little") + name


@pytest.mark.sec(61, 75)
def test_names_that_are_none_never_reach_the_kernel(tmp_path: Path) -> None:
    bad = [b"", b"a/b", b"../up", b"x\0y", b"n" * 300, b"/etc/passwd"]
    odd = [b"-rf", b"a\nb", b"\x1b]0;x", b"\xff"]
    raw = b"".join(dirent(name, i) for i, name in enumerate([*bad, b"good", *odd, b"good"], 1))
    with Tree({"good": b""}) as fake:
        fake.on[L.Treaddir] = lambda tag, t: L.Rreaddir(raw if t.offset == 0 else b"")
        with mounted(fake, tmp_path / "m"):
            listed = run(sys.executable, "-c", f"import os; print(sorted(os.listdir(b'{tmp_path}/m')))").stdout
            assert listed.decode().strip() == str(sorted([b"good", *odd]))
            assert run("find", tmp_path / "m", "-maxdepth", "1").stdout.count(b"good") == 1


@pytest.mark.sec(64)
@pytest.mark.parametrize("way", ["repeats", "rewinds", "nothing"])
def test_ls_of_a_directory_that_does_not_advance_ends(tmp_path: Path, way: str) -> None:
    answers: dict[str, Callable[[int, Any], Reply]] = {
        "repeats": lambda tag, t: L.Rreaddir(dirent(b"a", 5)),
        "rewinds": lambda tag, t: L.Rreaddir(dirent(b"a", 7) + dirent(b"b", 1 << 63)),
        "nothing": lambda tag, t: L.Rreaddir(dirent(b"", 0)),
    }
    with Tree({}) as fake:
        fake.on[L.Treaddir] = answers[way]
        with mounted(fake, tmp_path / "m"):
            assert b"Input/output error" in run("ls", "-U", tmp_path / "m").stderr
            assert run("stat", tmp_path / "m").returncode == 0


# -- SEC-73, 79: content


@pytest.mark.sec(73)
@pytest.mark.parametrize("size", [0, 3, 20_000, (1 << 64) - 1])
def test_a_size_that_is_a_lie_makes_no_program_spin(tmp_path: Path, size: int) -> None:
    content = b"x" * 10_000
    with Tree({"f": content}) as fake:
        fake.attributes["f"] = {"size": size}
        with mounted(fake, tmp_path / "m"):
            f = tmp_path / "m/f"
            assert set(run("head", "-c", "30000", f).stdout) <= {0, ord("x")}
            if size < 1 << 40:  # what claims to be 8 EiB fills any disk with zeros
                assert run("cp", "--sparse=never", f, tmp_path / "copy").returncode in (0, 1)
            assert run("tail", "-c", "5", f).returncode in (0, 1)
            read = "import mmap,sys; m=mmap.mmap(open(sys.argv[1],'rb').fileno(),4096,prot=1); print(m[:3])"
            assert run(sys.executable, "-c", read, f).returncode in (0, 1)  # an error, and no signal
            assert run("stat", f).returncode == 0


@pytest.mark.sec(79)
def test_a_program_that_grows_while_it_runs_crashes_nothing_else(tmp_path: Path) -> None:
    """No control: nothing of ours guards the program, whose text is its server's to change.  The claim is that the
    mount and everybody else live on, and that is what is looked at."""
    script = b"#!/bin/sh\nread x\necho ran\n"
    with Tree({"p": script}) as fake:
        fake.attributes["p"] = {"mode": _s.S_IFREG | 0o755}
        with mounted(fake, tmp_path / "m"):
            with subprocess.Popen([tmp_path / "m/p"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
                fake.wait_for(M.Tread)
                fake.files["p"] = script + b"echo grown\n" * 1000
                try:
                    running.communicate(b"\n", timeout=20)
                finally:
                    running.kill()
            assert shell(f"tail -n 1 {tmp_path}/m/p") == "echo grown\n"


# -- SEC-65: servers that hang or die

HANGS: dict[str, tuple[type[Any], str]] = {
    "walk": (M.Twalk, "cat {m}/f"),
    "getattr": (L.Tgetattr, "stat {m}/f"),
    "open": (L.Tlopen, "cat {m}/f"),
    "read": (M.Tread, "cat {m}/f"),
    "mmap": (M.Tread, "cp {m}/f /dev/null"),
    "readdir": (L.Treaddir, "ls {m}"),
    "readlink": (L.Treadlink, "readlink {m}/l && cat {m}/l"),
    "write": (M.Twrite, "echo x >>{m}/f"),
    "statfs": (L.Tstatfs, "stat -f {m}"),
    "exec": (M.Tread, "{m}/f"),
}


@pytest.mark.sec(65)
@pytest.mark.parametrize("what", HANGS)
def test_a_program_ends_with_an_error_when_the_server_hangs(tmp_path: Path, what: str) -> None:
    silent, command = HANGS[what]
    with Tree({"f": b"content\n"}, {"l": "f"}) as fake:
        fake.attributes["f"] = {"mode": _s.S_IFREG | 0o755}
        with mounted(fake, tmp_path / "m", f"timeout={HANG_SECONDS}"):
            fake.on[silent] = lambda tag, t: None
            done = run("sh", "-c", command.format(m=tmp_path / "m"), seconds=END_SECONDS_MAX)
            assert done.returncode != 0, done
            fake.on.clear()
            again = run("cat", tmp_path / "m/f")
            assert again.stdout == b"content\n", again  # it answered the Tflush, and is believed


@pytest.mark.sec(65)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("what", ["getattr", "read", "readdir"])
def test_a_signal_ends_a_program_that_waits_for_a_hung_server(
    tmp_path: Path, what: str, number: signal.Signals
) -> None:
    silent, command = HANGS[what]
    with Tree({"f": b"content\n"}) as fake, mounted(fake, tmp_path / "m"):
        fake.on[silent] = fake.on[M.Tflush] = lambda tag, t: None
        before = len([1 for _, m in fake.seen if type(m) is silent])
        argv = command.format(m=tmp_path / "m").split()
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as waiting:
            try:
                fake.wait_for(silent, before + 1)
                waiting.send_signal(number)
                assert waiting.wait(END_SECONDS_MAX) == -number
            finally:
                waiting.kill()


@pytest.mark.sec(65)
def test_umount_returns_while_the_server_hangs(tmp_path: Path) -> None:
    with Tree({"f": b"content\n"}) as fake, Tree({"f": b"other\n"}) as other:
        with mounted(fake, tmp_path / "m", f"timeout={HANG_SECONDS}"), mounted(other, tmp_path / "o"):
            fake.on = {kind: lambda tag, t: None for kind in (L.Tgetattr, M.Twalk, M.Tread, M.Tflush, M.Tclunk)}
            with subprocess.Popen(["stat", tmp_path / "m/f"], stdout=-3, stderr=-3) as waiting:
                try:
                    fake.wait_for(M.Twalk)
                    assert run("cat", tmp_path / "o/f").stdout == b"other\n"
                    assert run(program("ninep"), "umount", tmp_path / "m").returncode == 0
                    assert not is_mounted(str(tmp_path / "m"))
                    assert waiting.wait(END_SECONDS_MAX) != 0
                finally:
                    waiting.kill()
            assert run("cat", tmp_path / "o/f").stdout == b"other\n"


@pytest.mark.sec(65)
def test_a_server_that_dies_fails_everything_at_once_and_for_good(tmp_path: Path) -> None:
    """No operation waits for its timeout, and nothing is dialled again: a mount of a dead server is to be unmounted."""
    with Tree({"f": b"content\n"}) as fake, mounted(fake, tmp_path / "m"):
        m = tmp_path / "m"
        fake.on[M.Tread] = lambda tag, t: None
        with subprocess.Popen(["cat", m / "f"], stdout=-3, stderr=-3) as waiting:
            try:
                fake.wait_for(M.Tread)
                threading.Thread(target=fake.hang_up).start()
                assert waiting.wait(END_SECONDS_MAX) != 0
            finally:
                waiting.kill()
        began = time.monotonic()
        for command in ("stat {m}/f", "ls {m}", "cat {m}/f", "echo x >{m}/f", "stat -f {m}"):
            done = run("sh", "-c", command.format(m=m), seconds=END_SECONDS_MAX)
            assert done.returncode != 0
            assert re.search(rb"not connected|Input/output|Broken pipe", done.stderr), done.stderr
        assert time.monotonic() - began < END_SECONDS_MAX
        assert run(program("ninep"), "umount", m).returncode == 0
        assert not is_mounted(str(m))


@pytest.mark.sec(65)
def test_a_server_that_accepts_and_never_answers_is_not_mounted(tmp_path: Path) -> None:
    with Tree({}) as fake:
        fake.on[M.Tversion] = lambda tag, t: None
        (tmp_path / "m").mkdir()
        fd = fake.sock.fileno()
        argv = [program("ninep"), "mount", "-o", f"timeout={HANG_SECONDS}", f"9p+fd://{fd}", str(tmp_path / "m")]
        done = run(*argv, seconds=END_SECONDS_MAX, pass_fds=(fd,))
        assert done.returncode == 5
        assert b"ETIMEDOUT" in done.stderr
        assert not is_mounted(str(tmp_path / "m"))
