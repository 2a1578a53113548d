"""Abuse of a host export through names, links, mounts and special files.  Each guard is also shown missing."""

# ruff: noqa: B023  # the lambdas in loops are called at once, in the same turn

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import stat as _s
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ninep.answer import settle
from ninep.file import HASHED_PATH, Call, File
from ninep.principal import local_principal
from ninep.proto import errors as E
from ninep.proto.types import F_UNLCK, NOW, OFFSET_MAX, ORDWR, OREAD, OTRUNC, OWRITE, Change, Lock
from ninep.servers import host, host_dir, host_node, host_place, host_sys, host_tree
from ninep.servers.host_cache import Held
from ninep.servers.host_dir import HostDir

CALL = Call(local_principal(os.getuid(), os.getgid(), frozenset(os.getgroups()), "tester", "local"))

# What an attacker with a shell does: swap two names as fast as it can, for ever.
FLIPPER = """
import ctypes, sys
renameat2 = ctypes.CDLL(None).renameat2
pairs = [(a.encode(), b.encode()) for a, b in zip(sys.argv[1::2], sys.argv[2::2])]
print("flipping", flush=True)
while True:
    for a, b in pairs:
        renameat2(-100, a, -100, b, 2)
"""


@contextlib.contextmanager
def flipping(*names: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", FLIPPER, *map(str, names)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"flipping\n"
        yield
    finally:
        process.kill()
        process.communicate(timeout=10)


@contextlib.contextmanager
def arena(base: str | None) -> Iterator[tuple[Path, Path]]:
    """An export with real things beside links that lead out, and the outside."""
    with tempfile.TemporaryDirectory(dir=base) as made:
        top = Path(made)
        export, outside = top / "export", top / "outside"
        for directory in (export / "dir", outside):
            directory.mkdir(parents=True)
        (export / "dir/f").write_text("inside")
        (export / "file").write_text("inside")
        (outside / "f").write_text("outside")
        (outside / "sub").mkdir()
        (export / "dirlink").symlink_to(outside)
        (export / "filelink").symlink_to(outside / "f")
        os.utime(outside, (1, 1))
        os.utime(outside / "f", (1, 1))
        yield export, outside


def seen_of(outside: Path) -> list[tuple[object, ...]]:
    found = []
    for path in sorted([outside, *outside.rglob("*")]):
        info = os.lstat(path)
        names = os.listxattr(path, follow_symlinks=False)
        content = path.read_bytes() if path.is_file() else b""
        found.append((path, info.st_mode, info.st_nlink, info.st_mtime_ns, info.st_ctime_ns, names, content))
    return found


async def refused_or(operation: Callable[[], object]) -> object:
    """The operation's result, or None if it was refused: both are fine while names are being swapped."""
    try:
        return await settle(operation())
    except E.FileError:
        return None


async def race(export: Path, seconds: float) -> tuple[int, int, int]:
    """Every operation against swapped names: (tries, those that were done, contents read from outside)."""
    root = host.tree(export)
    until = time.monotonic() + seconds
    tries = done = escaped = 0
    while time.monotonic() < until:
        tries += 1
        if tries % 50 == 0:
            root.export.warm.shrink()
        d = await refused_or(lambda: root.walk(CALL, "dir"))
        if isinstance(d, HostDir):
            done += 1
            name = f"n{tries % 7}"
            for operation in (
                lambda: d.mkdir(CALL, name, 0o755),
                lambda: d.rename(CALL, name, root, name, 0),
                lambda: root.rename(CALL, name, d, "sub", 0),
                lambda: d.remove(CALL, "sub", True),
                lambda: d.remove(CALL, name, None),
                lambda: root.remove(CALL, name, None),
                lambda: d.symlink(CALL, name, "/etc/passwd"),
                lambda: d.remove(CALL, name, False),
                lambda: d.wstat(CALL, Change(perm=0o700 | tries % 2, mtime_ns=NOW)),
                lambda: d.setxattr(CALL, "user.raced", b"1", 0),
            ):
                await refused_or(operation)
            made = await refused_or(lambda: d.create(CALL, "made", 0o644, OWRITE))
            if isinstance(made, tuple):
                await settle(made[1].write(CALL, 0, b"raced"))
                await settle(made[1].close(CALL))
                await refused_or(lambda: d.remove(CALL, "made", False, made[0]))
            handle = await refused_or(lambda: d.open(CALL, OREAD))
            if handle is not None:
                names = {e.name for e in await settle(handle.entries(CALL, 0, 100))}  # type: ignore[attr-defined]
                escaped += "f" not in names
                await settle(handle.close(CALL))  # type: ignore[attr-defined]
            f = await refused_or(lambda: d.walk(CALL, "f"))
            if f is not None:
                escaped += await reads_outside(f)
        elif isinstance(d, File):
            for operation in (
                lambda: d.wstat(CALL, Change(mtime_ns=NOW)),
                lambda: d.wstat(CALL, Change(perm=0o777)),
                lambda: d.wstat(CALL, Change(size=0)),
                lambda: d.setxattr(CALL, "user.raced", b"1", 0),
                lambda: d.open(CALL, OREAD),
            ):
                await refused_or(operation)
        x = await refused_or(lambda: root.walk(CALL, "file"))
        if isinstance(x, File):
            escaped += await reads_outside(x)
            for operation in (
                lambda: x.wstat(CALL, Change(perm=0o600 | tries % 2, mtime_ns=NOW)),
                lambda: x.setxattr(CALL, "user.raced", b"1", 0),
                lambda: root.link(CALL, f"l{tries}", x),
                lambda: root.remove(CALL, f"l{tries}", False),
            ):
                await refused_or(operation)
            handle = await refused_or(lambda: x.open(CALL, ORDWR))
            if handle is not None:
                await settle(handle.write(CALL, 0, b"inside"))  # type: ignore[attr-defined]
                await settle(handle.close(CALL))  # type: ignore[attr-defined]
    return tries, done, escaped


async def reads_outside(file: object) -> bool:
    handle = await refused_or(lambda: file.open(CALL, OREAD))  # type: ignore[attr-defined]
    if handle is None:
        return False
    data = await settle(handle.read(CALL, 0, 100))  # type: ignore[attr-defined]
    await settle(handle.close(CALL))  # type: ignore[attr-defined]
    return bool(data == b"outside")


async def run_race(base: str | None, seconds: float) -> None:
    with arena(base) as (export, outside):
        before = seen_of(outside)
        names = (export / "dir", export / "dirlink", export / "file", export / "filelink")
        with flipping(*names):
            tries, done, escaped = await race(export, seconds)
        print(f"{tries} rounds, {done} on the directory, {escaped} escaped")
        assert escaped == 0
        assert seen_of(outside) == before
        assert done > 10
        assert tries > done  # the links were met, too


@pytest.mark.sec(27)
@pytest.mark.hostile(42)
@pytest.mark.feature("host-race")
@pytest.mark.parametrize("way", ["openat2", "steps"])
async def test_names_swapped_under_every_operation_lead_nowhere_outside(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "steps":
        monkeypatch.setattr(host_sys, "have_openat2", lambda: False)
    await run_race("/dev/shm", 2)


@pytest.mark.sec(27)
@pytest.mark.hostile(42)
@pytest.mark.slow
@pytest.mark.parametrize("base", ["/dev/shm", None])
@pytest.mark.parametrize("way", ["openat2", "steps"])
async def test_ten_seconds_of_swapping_lead_nowhere_outside(
    way: str, base: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "steps":
        monkeypatch.setattr(host_sys, "have_openat2", lambda: False)
    await run_race(base, 10)


@pytest.mark.sec(27)
def test_a_server_that_checks_paths_and_then_opens_them_is_led_outside() -> None:
    """The negative control: the same attacker against realpath, check, open."""
    with arena("/dev/shm") as (export, _outside):
        with flipping(export / "dir", export / "dirlink"):
            until = time.monotonic() + 20
            escaped = 0
            while not escaped and time.monotonic() < until:
                path = f"{export}/dir/f"
                with contextlib.suppress(OSError):
                    if os.path.realpath(path).startswith(f"{export}/"):
                        with open(path) as f:
                            escaped += f.read() == "outside"
        assert escaped


BAD_NAMES = ["", ".", "..", "/", "/etc", "a/b", "a/..", "../x", "f/", "f/.", "link/", "link/.", "a\0b", "\0", "//"]
WITH_A_NAME: dict[str, Callable[[HostDir, str, File], object]] = {
    "walk": lambda d, n, f: d.walk(CALL, n),
    "create": lambda d, n, f: d.create(CALL, n, 0o644, OWRITE),
    "mkdir": lambda d, n, f: d.mkdir(CALL, n, 0o755),
    "symlink": lambda d, n, f: d.symlink(CALL, n, "x"),
    "link": lambda d, n, f: d.link(CALL, n, f),
    "mknod": lambda d, n, f: d.mknod(CALL, n, _s.S_IFREG | 0o644, 0),
    "remove": lambda d, n, f: d.remove(CALL, n, None),
    "rename from": lambda d, n, f: d.rename(CALL, n, d, "y", 0),
    "rename to": lambda d, n, f: d.rename(CALL, "f", d, n, 0),
}


@pytest.mark.sec(21, 22, 23, 24)
@pytest.mark.hostile(41)
@pytest.mark.parametrize("what", WITH_A_NAME)
async def test_a_name_that_is_no_name_reaches_no_system_call(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "link").symlink_to("/etc")
    root = host.tree(tmp_path)
    f = await settle(root.walk(CALL, "f"))

    def reached(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a system call was made")

    for method in ("run", "change", "slow", "beneath", "hold"):
        monkeypatch.setattr(host_tree.Export, method, reached)
    for name in BAD_NAMES:
        with pytest.raises(E.Ebadchar):
            await settle(WITH_A_NAME[what](root, name, f))
    for name in ("x" * 256, "é" * 128, "x" * 65535):
        with pytest.raises(E.Enametoolong):
            await settle(WITH_A_NAME[what](root, name, f))
    with pytest.raises(E.Ebadchar):
        await settle(WITH_A_NAME[what](root, "\ud800", f))


@pytest.mark.sec(22, 23)
@pytest.mark.hostile(41)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.sampled_from("./\0a.. \udcff"), max_size=8) | st.text(max_size=300))
def test_any_text_is_one_element_or_refused(name: str) -> None:
    try:
        raw = host_tree.check_name(name)
    except (E.Ebadchar, E.Enametoolong):
        return
    assert 1 <= len(raw) <= 255
    assert b"/" not in raw
    assert b"\0" not in raw
    assert raw not in (b".", b"..")
    assert os.fsdecode(raw) == name


@pytest.mark.sec(21, 22, 23)
async def test_without_the_check_names_lead_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "secret").write_text("outside")
    monkeypatch.setattr(host_dir, "check_name", os.fsencode)
    monkeypatch.setattr(host_sys, "have_openat2", lambda: False)
    root = host.tree(tmp_path / "export")
    _file, handle = await settle(root.create(CALL, "../planted", 0o644, OWRITE))
    await settle(handle.close(CALL))
    assert (tmp_path / "planted").exists()
    up = await settle(root.walk(CALL, ".."))
    assert (await settle(up.stat(CALL))).qid.path != root.qid.path


@pytest.mark.sec(24)
async def test_without_the_check_a_trailing_slash_follows_a_symlink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O_NOFOLLOW alone does not help: a slash after the name asks for what the link leads to."""
    monkeypatch.setattr(host_dir, "check_name", os.fsencode)
    monkeypatch.setattr(host_sys, "have_openat2", lambda: False)
    monkeypatch.setattr(
        host_tree.Export, "beneath", lambda self, fd, path: Held(os.open(path, host_sys.PATH_FLAGS, dir_fd=fd))
    )
    monkeypatch.setattr(host_tree.Export, "inside", lambda self, fd: None)
    with arena(str(tmp_path)) as (export, _outside):
        root = host.tree(export)
        assert not isinstance(await settle(root.walk(CALL, "dirlink")), HostDir)
        for name in ("dirlink/", "dirlink/."):
            target = await settle(root.walk(CALL, name))
            assert isinstance(target, HostDir)
            assert await reads_outside(await settle(target.walk(CALL, "f")))


@pytest.mark.sec(25)
@pytest.mark.parametrize("aname", ["../x", "/etc", "//", "./", "sub", "/sub", "ｅxport", " ", "\0"])
async def test_only_the_exact_aname_is_attached(tmp_path: Path, aname: str) -> None:
    (tmp_path / "sub").mkdir()
    root = host.tree(tmp_path)
    with pytest.raises(E.Enonexist):
        await settle(root.attach(CALL, aname))
    assert await settle(root.attach(CALL, "")) is root


@pytest.mark.sec(25)
async def test_without_the_exact_match_an_aname_leads_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(root: HostDir, call: Call, aname: str) -> HostDir:
        return host.tree(os.path.join(os.readlink(f"/proc/self/fd/{root.export.root.fd}"), aname))

    with arena(str(tmp_path)) as (export, _outside):
        root = host.tree(export)
        monkeypatch.setattr(HostDir, "attach", joined)
        led_out = await settle(root.attach(CALL, "../outside"))
        assert await reads_outside(await settle(led_out.walk(CALL, "f")))


@pytest.mark.sec(26)
async def test_without_the_refusal_of_symlinks_a_walk_through_one_leads_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_sys, "have_openat2", lambda: False)
    with arena(str(tmp_path)) as (export, _outside):
        root = host.tree(export)
        monkeypatch.setattr(host_sys, "PATH_FLAGS", host_sys.PATH_FLAGS & ~os.O_NOFOLLOW)
        target = await settle(root.walk(CALL, "dirlink"))
        assert isinstance(target, HostDir)
        with pytest.raises(E.Estale):  # the second guard: what is not inside is not opened
            await settle(target.walk(CALL, "f"))
        monkeypatch.setattr(host_tree.Export, "inside", lambda self, fd: None)
        assert await reads_outside(await settle(target.walk(CALL, "f")))


@pytest.mark.sec(26)
@pytest.mark.hostile(42, 48)
async def test_symlinks_are_text_and_no_way_through(tmp_path: Path) -> None:
    with arena(str(tmp_path)) as (export, outside):
        (export / "loop").symlink_to("loop")
        (export / "up").symlink_to("..")
        root = host.tree(export)
        before = seen_of(outside)
        for name in ("dirlink", "filelink", "loop", "up"):
            link = await settle(root.walk(CALL, name))
            assert not isinstance(link, HostDir)
            assert await settle(link.readlink(CALL)) == os.readlink(export / name)
            for omode in (OREAD, OWRITE, ORDWR | OTRUNC):
                with pytest.raises(E.Enotallowed):
                    await settle(link.open(CALL, omode))
            with pytest.raises(E.FileError):
                await settle(link.wstat(CALL, Change(perm=0o777)))
            with pytest.raises(E.FileError):
                await settle(link.wstat(CALL, Change(size=0)))
            with pytest.raises(E.FileError):
                await settle(root.create(CALL, name, 0o644, OWRITE | OTRUNC))
            for ways in (host_sys.HOW, host_sys.HOW_CROSSING):
                with pytest.raises(OSError, match=r"(?i)symbolic|directory"):
                    host_sys.openat2(root.export.root.fd, f"{name}/f".encode(), ways)
        await settle(root.remove(CALL, "dirlink", False))
        assert seen_of(outside) == before
        assert os.stat(outside / "f").st_size == 7


@pytest.mark.hostile(43)
async def test_magic_links_of_proc_are_text(needs_root: None) -> None:
    root = host.tree("/proc/self", force=True)
    for name in ("root", "cwd", "exe"):
        link = await settle(root.walk(CALL, name))
        assert not isinstance(link, HostDir)
        with pytest.raises(E.Enotallowed):
            await settle(link.open(CALL, OREAD))
        with pytest.raises(OSError, match=r"(?i)symbolic"):
            root.export.beneath(root.export.root.fd, f"{name}/etc".encode())


@pytest.mark.sec(28)
@pytest.mark.hostile(44)
@pytest.mark.parametrize("cold", [False, True])
async def test_a_directory_moved_out_is_refused_until_it_is_back(tmp_path: Path, cold: bool) -> None:
    with arena(str(tmp_path)) as (export, outside):
        (export / "dir/below").mkdir()
        root = host.tree(export)
        d = await settle(root.walk(CALL, "dir"))
        assert isinstance(d, HostDir)
        below = await settle(d.walk(CALL, "below"))
        assert isinstance(below, HostDir)
        f = await settle(d.walk(CALL, "f"))
        shutil.move(export / "dir", outside / "dir")
        while cold and root.export.warm.shrink():
            pass
        before = seen_of(outside)
        operations: list[Callable[[], object]] = [
            lambda: d.walk(CALL, "f"), lambda: d.open(CALL, OREAD), lambda: d.mkdir(CALL, "x", 0o755),
            lambda: d.create(CALL, "x", 0o644, OWRITE), lambda: d.symlink(CALL, "x", "y"),
            lambda: d.mknod(CALL, "x", _s.S_IFREG | 0o600, 0), lambda: d.remove(CALL, "f", False),
            lambda: d.rename(CALL, "f", root, "stolen", 0), lambda: root.rename(CALL, "file", d, "given", 0),
            lambda: d.link(CALL, "x", f), lambda: root.link(CALL, "x", f), lambda: d.wstat(CALL, Change(perm=0o777)),
            lambda: d.setxattr(CALL, "user.x", b"", 0), lambda: below.mkdir(CALL, "x", 0o755),
            lambda: below.walk(CALL, "none"), lambda: f.open(CALL, OREAD), lambda: f.open(CALL, ORDWR | OTRUNC),
            lambda: f.wstat(CALL, Change(size=0)),
        ]  # fmt: skip
        for operation in operations:
            with pytest.raises((E.Estale, E.Enonexist)):
                await settle(operation())
        assert seen_of(outside) == before
        shutil.move(outside / "dir", export / "dir")
        assert isinstance(await settle(d.walk(CALL, "below")), HostDir)
        await settle((await settle(f.open(CALL, OREAD))).close(CALL))


@pytest.mark.sec(28)
async def test_without_the_containment_check_a_moved_directory_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with arena(str(tmp_path)) as (export, outside):
        root = host.tree(export)
        d = await settle(root.walk(CALL, "dir"))
        assert isinstance(d, HostDir)
        shutil.move(export / "dir", outside / "dir")
        monkeypatch.setattr(host_tree.Export, "inside", lambda self, fd: None)
        _file, handle = await settle(d.create(CALL, "planted", 0o644, OWRITE))
        await settle(handle.close(CALL))
        assert (outside / "dir/planted").exists()


@contextlib.contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(str(source).encode(), str(target).encode(), None, 4096, None):
        pytest.skip(f"needs the right to mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True, timeout=10)


@pytest.mark.sec(29)
@pytest.mark.hostile(45)
@pytest.mark.parametrize("way", ["openat2", "steps"])
async def test_mounts_inside_an_export_are_not_entered_unless_asked(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch, needs_root: None
) -> None:
    """The control is the option that takes the guard away: with cross_mounts the other file system is served."""
    if way == "steps":
        monkeypatch.setattr(host_sys, "have_openat2", lambda: False)
    with arena(str(tmp_path)) as (export, outside):
        root = host.tree(export)
        d = await settle(root.walk(CALL, "dir"))
        assert isinstance(d, HostDir)
        f = await settle(d.walk(CALL, "f"))
        with bound(outside, export / "dir"), bound(outside / "f", export / "file"):
            for name in ("dir", "file"):
                with pytest.raises(E.Exdev):
                    await settle(root.walk(CALL, name))
                with pytest.raises(E.FileError):
                    await settle(root.remove(CALL, name, None))
            # The fid from before goes on below the mount, as an open directory does.
            assert (await settle((await settle(d.walk(CALL, "f"))).stat(CALL))).size == 6
            while root.export.warm.shrink():
                pass
            with pytest.raises(E.Estale):
                await settle(f.stat(CALL))
            crossing = host.tree(export, cross_mounts=True)
            other = await settle(crossing.walk(CALL, "dir"))
            assert isinstance(other, HostDir)
            assert await reads_outside(await settle(other.walk(CALL, "f")))
        assert (await settle(f.stat(CALL))).size == 6


@pytest.mark.sec(30)
async def test_an_unlinked_directory_takes_nothing_and_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    root = host.tree(tmp_path)
    d = await settle(root.walk(CALL, "d"))
    assert isinstance(d, HostDir)
    (tmp_path / "d").rmdir()
    for operation in (
        lambda: d.walk(CALL, "x"),
        lambda: d.create(CALL, "x", 0o644, OWRITE),
        lambda: d.mkdir(CALL, "x", 0o755),
        lambda: root.rename(CALL, "x", d, "y", 0),
    ):
        with pytest.raises((E.Enonexist, E.Estale)):
            await settle(operation())  # type: ignore[arg-type]  # four kinds of answer


@pytest.mark.sec(30)
async def test_without_the_identity_check_a_removed_directory_becomes_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusting(place: host_place.Place) -> Held:
        return place._descend(place.export.root, place._names(lambda node: node.parent is None))

    (tmp_path / "d").mkdir()
    root = host.tree(tmp_path)
    d = await settle(root.walk(CALL, "d"))
    assert isinstance(d, HostDir)
    os.rename(tmp_path / "d", tmp_path / "aside")  # else its inode number may come back at once
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("outside")
    while root.export.warm.shrink():
        pass
    with pytest.raises(E.Estale):
        await settle(d.walk(CALL, "f"))
    monkeypatch.setattr(host_place.Place, "_walk_again", trusting)
    assert await reads_outside(await settle(d.walk(CALL, "f")))


@pytest.mark.sec(31)
async def test_a_hard_link_to_an_outside_file_is_what_the_kernel_lets_the_server_open(tmp_path: Path) -> None:
    """Made by a local user who may: an export cannot know of the other name, so the kernel's permission decides.

    No control: there is no guard of ours that could be removed."""
    with arena(str(tmp_path)) as (export, outside):
        os.link(outside / "f", export / "hard")
        root = host.tree(export)
        hard = await settle(root.walk(CALL, "hard"))
        assert (await settle(hard.stat(CALL))).nlink == 2
        assert await reads_outside(hard)


@pytest.mark.sec(32)
async def test_links_and_renames_stay_in_their_export(tmp_path: Path) -> None:
    with arena(str(tmp_path)) as (export, outside):
        here, there = host.tree(export), host.tree(outside)
        foreign = await settle(there.walk(CALL, "f"))
        with pytest.raises(E.Exdev):
            await settle(here.link(CALL, "x", foreign))
        with pytest.raises(E.Exdev):
            await settle(here.rename(CALL, "file", there, "x", 0))
        with pytest.raises(E.Exdev):
            await settle(there.rename(CALL, "f", here, "x", 0))
        with pytest.raises(E.Estale):
            await settle(here.remove(CALL, "file", None, foreign))


@pytest.mark.sec(32, 33)
async def test_without_the_check_of_exports_a_link_and_a_rename_reach_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(to: HostDir, call: Call, name: str, file: host_node.Node) -> object:
        return to.export.change(call, to._link, os.fsencode(name), file)

    def rename(old: HostDir, call: Call, name: str, to: HostDir, to_name: str, flags: int) -> object:
        return old.export.change(call, old._rename, os.fsencode(name), to, os.fsencode(to_name), flags)

    with arena(str(tmp_path)) as (export, outside):
        here, there = host.tree(export), host.tree(outside)
        foreign = await settle(there.walk(CALL, "f"))
        monkeypatch.setattr(HostDir, "link", link)
        monkeypatch.setattr(HostDir, "rename", rename)
        await settle(here.link(CALL, "x", foreign))
        assert (export / "x").read_text() == "outside"
        await settle(here.rename(CALL, "file", there, "moved", 0))
        assert (outside / "moved").read_text() == "inside"


@contextlib.contextmanager
def opens_of(path: Path) -> Iterator[Callable[[], int]]:
    """How often a file was opened: inotify tells of every open(2) but O_PATH."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(fd, str(path).encode(), 0x20) >= 0

    def count() -> int:
        try:
            return len(os.read(fd, 65536)) // 16
        except BlockingIOError:
            return 0

    try:
        yield count
    finally:
        os.close(fd)


@pytest.mark.sec(34, 36)
@pytest.mark.hostile(46)
async def test_special_files_are_never_opened_not_even_tried(tmp_path: Path, needs_root: None) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "tty", _s.S_IFCHR | 0o666, os.makedev(5, 0))
    os.mknod(tmp_path / "block", _s.S_IFBLK | 0o666, os.makedev(7, 200))
    root = host.tree(tmp_path)
    for name in ("fifo", "tty", "block"):
        with opens_of(tmp_path / name) as opens:
            node = await settle(root.walk(CALL, name))
            for omode in (OREAD, OWRITE, ORDWR, OREAD | OTRUNC):
                with pytest.raises(E.Enotallowed):
                    await settle(node.open(CALL, omode))
            with pytest.raises(E.FileError):
                await settle(node.wstat(CALL, Change(size=0)))
            await settle(node.wstat(CALL, Change(perm=0o600)))
            await settle(node.statfs(CALL))
            assert opens() == 0
    with opens_of(tmp_path / "fifo") as opens:  # the control: what an open would have shown
        os.close(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK))
        assert opens() == 1


@pytest.mark.sec(34)
async def test_a_fifo_swapped_in_after_the_walk_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("regular")
    os.mkfifo(tmp_path / "fifo")
    root = host.tree(tmp_path)
    f = await settle(root.walk(CALL, "f"))
    os.rename(tmp_path / "f", tmp_path / "aside")
    os.rename(tmp_path / "fifo", tmp_path / "f")
    with opens_of(tmp_path / "f") as opens:
        handle = await settle(f.open(CALL, OREAD))
        assert await settle(handle.read(CALL, 0, 10)) == b"regular"  # warm: the very file that was walked to
        await settle(handle.close(CALL))
        while root.export.warm.shrink():
            pass
        with pytest.raises(E.Estale):
            await settle(f.open(CALL, OREAD))
        assert opens() == 0


@pytest.mark.sec(35)
async def test_no_device_is_ever_made(tmp_path: Path) -> None:
    root = host.tree(tmp_path)
    for kind in (_s.S_IFCHR, _s.S_IFBLK, _s.S_IFDIR, _s.S_IFLNK, 0o170000):
        with pytest.raises((E.Enotallowed, E.Ebadarg)):
            await settle(root.mknod(CALL, "x", kind | 0o666, os.makedev(1, 3)))
    _file, handle = await settle(root.create(CALL, "f", _s.S_IFCHR | 0o666, OWRITE))
    await settle(handle.close(CALL))
    assert _s.S_ISREG(os.lstat(tmp_path / "f").st_mode)
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.sec(35)
async def test_without_the_check_of_kinds_a_device_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_root: None
) -> None:
    def mknod(d: HostDir, call: Call, name: str, st_mode: int, rdev: int) -> object:
        return d.export.change(call, d._mknod, os.fsencode(name), name, _s.S_IFMT(st_mode), st_mode, rdev)

    monkeypatch.setattr(HostDir, "mknod", mknod)
    await settle(host.tree(tmp_path).mknod(CALL, "x", _s.S_IFCHR | 0o666, os.makedev(1, 3)))
    assert os.lstat(tmp_path / "x").st_rdev == os.makedev(1, 3)


@pytest.mark.sec(39)
async def test_attributes_outside_user_are_refused_and_the_rest_is_bounded(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        root = host.tree(memory)
        (Path(memory) / "f").touch()
        f = await settle(root.walk(CALL, "f"))
        privileged = dict.fromkeys(("security.capability", "trusted.x", "security.selinux", "", "user"), E.Enotallowed)
        lists = dict.fromkeys(("system.posix_acl_access", "system.posix_acl_default"), E.Eunsupported)
        for name, refusal in (privileged | lists).items():
            with pytest.raises(refusal):
                await settle(f.setxattr(CALL, name, b"\1" * 20, 0))
            with pytest.raises(refusal):
                await settle(f.removexattr(CALL, name))
            with pytest.raises(E.Enoattr):
                await settle(f.getxattr(CALL, name))
        with pytest.raises(E.E2big):
            await settle(f.setxattr(CALL, "user.big", bytes(65_537), 0))
        try:
            for i in range(64):
                await settle(f.setxattr(CALL, f"user.{i}", b"x", 0))
        except (E.Eunsupported, E.Enospc):
            pytest.skip("no user attributes in memory here")
        with pytest.raises(E.E2big):
            await settle(f.setxattr(CALL, "user.64", b"x", 0))
        await settle(f.setxattr(CALL, "user.63", b"again", 0))
        if os.geteuid() == 0:
            os.setxattr(f"{memory}/f", "trusted.hidden", b"x")
            assert len(await settle(f.listxattr(CALL))) == 64


@pytest.mark.sec(39)
async def test_without_the_rule_of_names_a_privileged_attribute_is_set(
    monkeypatch: pytest.MonkeyPatch, needs_root: None
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        (Path(memory) / "f").touch()
        f = await settle(host.tree(memory).walk(CALL, "f"))
        monkeypatch.setattr(host_node.Node, "_check_xattr", lambda self, name: None)
        await settle(f.setxattr(CALL, "trusted.x", b"planted", 0))
        assert os.getxattr(f"{memory}/f", "trusted.x") == b"planted"


@pytest.mark.sec(40)
async def test_keys_in_an_exported_home_cannot_be_reached_planted_or_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / ".config/ninep").mkdir(parents=True)
    (tmp_path / ".config/other").mkdir()
    (tmp_path / "plain").mkdir()
    for exported in (tmp_path, tmp_path.parent):
        top = host.tree(exported)
        root = await settle(top.walk(CALL, tmp_path.name)) if exported != tmp_path else top
        assert isinstance(root, HostDir)
        config = await settle(root.walk(CALL, ".config"))
        assert isinstance(config, HostDir)
        assert isinstance(await settle(config.walk(CALL, "other")), HostDir)
        operations: list[Callable[[], object]] = [
            lambda: root.walk(CALL, ".ssh"), lambda: root.mkdir(CALL, ".ssh", 0o700),
            lambda: root.rename(CALL, "plain", root, ".ssh", 0), lambda: root.symlink(CALL, ".ssh", "plain"),
            lambda: config.walk(CALL, "ninep"), lambda: config.remove(CALL, "ninep", None),
            lambda: config.rename(CALL, "ninep", root, "seen", 0), lambda: root.rename(CALL, ".config", root, "c", 0),
        ]  # fmt: skip
        for operation in operations:
            with pytest.raises(E.Eperm):
                await settle(operation())
    forced = host.tree(tmp_path, force=True)  # the control
    config = await settle(forced.walk(CALL, ".config"))
    assert isinstance(config, HostDir)
    assert isinstance(await settle(config.walk(CALL, "ninep")), HostDir)


@pytest.mark.sec(43)
async def test_qids_tell_nothing_of_inodes(tmp_path: Path) -> None:
    for i in range(64):
        (tmp_path / str(i)).touch()
    root = host.tree(tmp_path, key=b"secret")
    other = host.tree(tmp_path, key=b"another")
    paths = []
    for i in range(64):
        path = (await settle(root.walk(CALL, str(i)))).qid.path
        assert path != (await settle(other.walk(CALL, str(i)))).qid.path
        assert path & (1 << 62) - 1 != os.stat(tmp_path / str(i)).st_ino
        paths.append(path)
    ones = sum(bin(a ^ b).count("1") for a, b in itertools.pairwise(paths)) / 63
    assert 24 < ones < 40  # neighbours differ in half of their bits


@pytest.mark.sec(43)
async def test_without_the_keyed_hash_a_qid_tells_the_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").touch()
    monkeypatch.setattr(host_tree.Export, "qid_path", lambda self, identity: identity[1] | HASHED_PATH)
    path = (await settle(host.tree(tmp_path).walk(CALL, "f"))).qid.path
    assert path & (1 << 62) - 1 == os.stat(tmp_path / "f").st_ino


@pytest.mark.sec(44)
@pytest.mark.hostile(51)
async def test_impossible_offsets_and_counts_are_refused_or_short(tmp_path: Path) -> None:
    for base in (tmp_path, Path(tempfile.mkdtemp(dir="/dev/shm"))):
        (base / "f").write_text("content")
        root = host.tree(base)
        handle = await settle((await settle(root.walk(CALL, "f"))).open(CALL, ORDWR))
        buffer = memoryview(bytearray(16))
        for offset in (1 << 63, (1 << 64) - 1, -1):
            with pytest.raises(E.FileError):
                await settle(handle.read(CALL, offset, 10))
            with pytest.raises(E.FileError):
                await settle(handle.read_into(CALL, offset, buffer))
            with pytest.raises(E.FileError):
                await settle(handle.write(CALL, offset, b"x"))
            with pytest.raises(E.FileError):
                await settle(handle.truncate(CALL, offset))
            with pytest.raises(E.FileError):
                await settle(handle.allocate(CALL, 0, offset, 10))
            with pytest.raises(E.FileError):
                await settle(handle.seek(CALL, offset, os.SEEK_DATA))
            with pytest.raises(E.FileError):
                await settle(handle.copy_range(CALL, offset, handle, 0, 10))
            with pytest.raises(E.FileError):
                await settle(handle.lock(CALL, Lock(F_UNLCK, offset, offset, "x"), False))
        with pytest.raises(E.FileError):
            await settle(handle.write(CALL, OFFSET_MAX, b"xy"))
        assert await settle(handle.read(CALL, 0, (1 << 32) - 1)) == b"content"
        assert await settle(handle.read(CALL, OFFSET_MAX - 1, 100)) in (b"",)
        assert await settle(handle.read_into(CALL, OFFSET_MAX - 1, buffer)) == 0
        assert (base / "f").read_text() == "content"
        await settle(handle.close(CALL))
    shutil.rmtree(base)


@pytest.mark.sec(45)
@pytest.mark.hostile(55)
async def test_a_sparse_giant_takes_no_memory_or_is_refused(tmp_path: Path) -> None:
    """How large a file may be is the file system's to say; the control shows that the measure sees blocks."""
    root = host.tree(tmp_path)
    _file, handle = await settle(root.create(CALL, "f", 0o644, ORDWR))
    for operation in (lambda: handle.truncate(CALL, OFFSET_MAX), lambda: handle.write(CALL, 1 << 62, b"x")):
        await refused_or(operation)
    await settle(handle.fsync(CALL, False))
    assert (tmp_path / "f").stat().st_blocks * 512 < 1 << 20
    await settle(handle.truncate(CALL, 0))
    for at in range(0, 8 << 20, 1 << 20):
        await settle(handle.write(CALL, at, os.urandom(1 << 20)))
    await settle(handle.fsync(CALL, False))
    assert (tmp_path / "f").stat().st_blocks * 512 >= 8 << 20
    await settle(handle.close(CALL))


@pytest.mark.sec(49)
@pytest.mark.hostile(47, 49)
async def test_twins_in_case_or_unicode_form_are_two_files_and_no_name_is_magic(tmp_path: Path) -> None:
    names = ["name", "NAME", "caf\u00e9", "cafe\u0301", "\u212b", "\u00c5", ".describe", ".help", "x.tmp", "~"]
    for name in names:
        (tmp_path / name).write_text(name)
    root = host.tree(tmp_path)
    seen = set()
    for name in names:
        file = await settle(root.walk(CALL, name))
        handle = await settle(file.open(CALL, OREAD))
        assert (await settle(handle.read(CALL, 0, 100))).decode() == name
        await settle(handle.close(CALL))
        seen.add(file.qid.path)
    assert len(seen) == len(names)


@pytest.mark.sec(49)
async def test_without_names_as_they_are_twins_are_mixed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a server that normalises what it is asked for."""
    for name in ("name", "NAME", "caf\u00e9", "cafe\u0301"):
        (tmp_path / name).write_text(name)
    root = host.tree(tmp_path)
    monkeypatch.setattr(host_dir, "check_name", lambda name: unicodedata.normalize("NFC", name.casefold()).encode())
    for one, other in (("name", "NAME"), ("caf\u00e9", "cafe\u0301")):
        assert (await settle(root.walk(CALL, one))).qid.path == (await settle(root.walk(CALL, other))).qid.path


@pytest.mark.sec(50)
async def test_what_the_export_path_means_later_is_of_no_importance(tmp_path: Path) -> None:
    with arena(str(tmp_path)) as (export, outside):
        root = host.tree(export)
        d = await settle(root.walk(CALL, "dir"))
        assert isinstance(d, HostDir)
        os.rename(export, export.parent / "moved")
        export.symlink_to(outside)
        while root.export.warm.shrink():
            pass
        assert not await reads_outside(await settle(d.walk(CALL, "f")))
        await settle(d.mkdir(CALL, "made", 0o755))
        assert (export.parent / "moved/dir/made").is_dir()
        with pytest.raises(E.Enonexist):
            await settle(root.walk(CALL, "sub"))


@pytest.mark.sec(50)
async def test_without_the_descriptor_of_the_root_its_successor_is_served(tmp_path: Path) -> None:
    """The control: a server that looks its path up again."""
    with arena(str(tmp_path)) as (export, outside):
        root = host.tree(export)
        os.rename(export, export.parent / "moved")
        export.symlink_to(outside)
        root.held = root.export.root = Held(os.open(export, os.O_PATH))
        assert await reads_outside(await settle(root.walk(CALL, "f")))
