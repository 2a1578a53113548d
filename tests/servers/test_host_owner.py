"""Who a host export acts as, and a read-only one that nothing can change."""

from __future__ import annotations

import os
import stat as _s
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from ninep.answer import settle
from ninep.file import Call
from ninep.principal import Principal, local_principal
from ninep.proto import errors as E
from ninep.proto.types import (
    F_WRLCK,
    NOW,
    OFFSET_MAX,
    ORCLOSE,
    ORDWR,
    OREAD,
    OTRUNC,
    OWRITE,
    RENAME_EXCHANGE,
    Change,
    Lock,
)
from ninep.servers import host, host_tree
from ninep.servers.host_dir import HostDir
from ninep.servers.host_io import HostHandle

CALL = Call(local_principal(os.getuid(), os.getgid(), frozenset(os.getgroups()), "tester", "local"))


def caller(uid: int, gid: int, *groups: int) -> Call:
    return Call(local_principal(uid, gid, frozenset(groups), f"user{uid}", "peercred"))


def snapshot(directory: Path) -> list[tuple[object, ...]]:
    """Everything a change could touch, times but the access time included."""
    found = []
    for path in sorted([directory, *directory.rglob("*")]):
        st = os.lstat(path)
        names = os.listxattr(path, follow_symlinks=False)
        content = path.read_bytes() if _s.S_ISREG(st.st_mode) else b""
        found.append((path, st.st_mode, st.st_nlink, st.st_mtime_ns, st.st_ctime_ns, st.st_size, names, content))
    return found


CHANGES: dict[str, Callable[[HostDir, HostDir, object, HostHandle], object]] = {
    "create": lambda r, d, f, h: r.create(CALL, "new", 0o644, OREAD),
    "create existing": lambda r, d, f, h: r.create(CALL, "f", 0o644, OWRITE),
    "mkdir": lambda r, d, f, h: r.mkdir(CALL, "new", 0o755),
    "symlink": lambda r, d, f, h: r.symlink(CALL, "new", "f"),
    "link": lambda r, d, f, h: r.link(CALL, "new", f),  # type: ignore[arg-type]  # the fixture's file
    "mknod": lambda r, d, f, h: r.mknod(CALL, "new", _s.S_IFREG | 0o600, 0),
    "mknod fifo": lambda r, d, f, h: r.mknod(CALL, "new", _s.S_IFIFO | 0o600, 0),
    "remove": lambda r, d, f, h: r.remove(CALL, "f", None),
    "remove missing": lambda r, d, f, h: r.remove(CALL, "none", None),
    "remove directory": lambda r, d, f, h: r.remove(CALL, "d", True),
    "rename": lambda r, d, f, h: r.rename(CALL, "f", d, "g", 0),
    "rename exchange": lambda r, d, f, h: r.rename(CALL, "f", r, "d", RENAME_EXCHANGE),
    "open write": lambda r, d, f, h: f.open(CALL, OWRITE),  # type: ignore[attr-defined]
    "open both": lambda r, d, f, h: f.open(CALL, ORDWR),  # type: ignore[attr-defined]
    "open truncating": lambda r, d, f, h: f.open(CALL, OREAD | OTRUNC),  # type: ignore[attr-defined]
    "open remove-on-close": lambda r, d, f, h: f.open(CALL, OREAD | ORCLOSE),  # type: ignore[attr-defined]
    "open directory to write": lambda r, d, f, h: d.open(CALL, OWRITE),
    "open directory remove-on-close": lambda r, d, f, h: d.open(CALL, OREAD | ORCLOSE),
    "chmod": lambda r, d, f, h: f.wstat(CALL, Change(perm=0o777)),  # type: ignore[attr-defined]
    "chmod directory": lambda r, d, f, h: d.wstat(CALL, Change(perm=0o777)),
    "chown": lambda r, d, f, h: f.wstat(CALL, Change(uid=1)),  # type: ignore[attr-defined]
    "chown to the same": lambda r, d, f, h: f.wstat(CALL, Change(uid=os.getuid())),  # type: ignore[attr-defined]
    "utimes": lambda r, d, f, h: f.wstat(CALL, Change(mtime_ns=NOW)),  # type: ignore[attr-defined]
    "atime": lambda r, d, f, h: f.wstat(CALL, Change(atime_ns=1)),  # type: ignore[attr-defined]
    "ctime": lambda r, d, f, h: f.wstat(CALL, Change(touch_ctime=True)),  # type: ignore[attr-defined]
    "size": lambda r, d, f, h: f.wstat(CALL, Change(size=0)),  # type: ignore[attr-defined]
    "setxattr": lambda r, d, f, h: f.setxattr(CALL, "user.x", b"", 0),  # type: ignore[attr-defined]
    "setxattr forbidden": lambda r, d, f, h: f.setxattr(CALL, "trusted.x", b"", 0),  # type: ignore[attr-defined]
    "removexattr": lambda r, d, f, h: f.removexattr(CALL, "user.there"),  # type: ignore[attr-defined]
    "write": lambda r, d, f, h: h.write(CALL, 0, b"x"),
    "write nothing": lambda r, d, f, h: h.write(CALL, 0, b""),
    "truncate": lambda r, d, f, h: h.truncate(CALL, 0),
    "allocate": lambda r, d, f, h: h.allocate(CALL, 0, 0, 4096),
    "copy": lambda r, d, f, h: h.copy_range(CALL, 0, h, 2, 1),
    "write lock": lambda r, d, f, h: h.lock(CALL, Lock(F_WRLCK, 0, OFFSET_MAX, "me"), False),
    "write flock": lambda r, d, f, h: h.lock(CALL, Lock(F_WRLCK, 0, OFFSET_MAX, "me", flock=True), False),
}
# Everything a File, Dir or Handle has that is not in CHANGES reads, or is told here why it needs no gate.
READS = {
    "stat", "access", "may_wstat", "statfs", "listxattr", "getxattr", "readlink", "snapshot", "backing", "subscribe",
    "attach", "walk", "list", "read", "read_into", "getlock", "seek", "ready", "entries", "names", "close", "flush",
    "fsync",  # makes durable what others wrote
    "unlock_owner",  # releases
}  # fmt: skip


def filled(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("content")
    try:
        os.setxattr(tmp_path / "f", "user.there", b"1")
    except OSError:
        pass
    return tmp_path


@pytest.mark.sec(41)
@pytest.mark.feature("host-export-ro")
@pytest.mark.parametrize("what", CHANGES)
async def test_every_change_of_a_read_only_export_is_refused_and_changes_nothing(tmp_path: Path, what: str) -> None:
    directory = filled(tmp_path)
    root = host.tree(directory, readonly=True)
    d, f = await settle(root.walk(CALL, "d")), await settle(root.walk(CALL, "f"))
    assert isinstance(d, HostDir)
    handle = await settle(f.open(CALL, OREAD))
    assert isinstance(handle, HostHandle)
    before = snapshot(directory)
    with pytest.raises(E.Erofs):
        await settle(CHANGES[what](root, d, f, handle))
    assert snapshot(directory) == before
    await settle(handle.close(CALL))


@pytest.mark.sec(41)
@pytest.mark.parametrize("what", ["create", "chmod", "utimes", "open truncating", "remove", "setxattr"])
async def test_without_the_gate_the_same_operation_changes_the_export(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the gate is what refuses, nothing else."""
    directory = filled(tmp_path)
    root = host.tree(directory, readonly=True)
    monkeypatch.setattr(host_tree.Export, "gate", lambda self: None)
    d, f = await settle(root.walk(CALL, "d")), await settle(root.walk(CALL, "f"))
    assert isinstance(d, HostDir)
    handle = await settle(f.open(CALL, ORDWR))
    assert isinstance(handle, HostHandle)
    before = snapshot(directory)
    made = await settle(CHANGES[what](root, d, f, handle))
    assert snapshot(directory) != before
    for opened in made if isinstance(made, tuple) else (made,):
        if isinstance(opened, HostHandle):
            await settle(opened.close(CALL))
    await settle(handle.close(CALL))


@pytest.mark.sec(41)
def test_no_operation_is_missing_from_the_table_of_changes() -> None:
    from ninep.file import Dir, File, Handle

    names = {name for kind in (File, Dir, Handle) for name in vars(kind) if callable(getattr(kind, name))}
    names = {name for name in names if not name.startswith("_")}
    aliases = {
        "wstat": "chmod",
        "open": "open write",
        "setxattr": "setxattr",
        "lock": "write lock",
        "copy_range": "copy",
    }
    changes = {name for name in names - READS if aliases.get(name, name) in CHANGES}
    assert names == READS | changes


# -- squash
@pytest.mark.sec(37)
async def test_squash_never_sets_set_id_bits(tmp_path: Path) -> None:
    root = host.tree(tmp_path)
    file, handle = await settle(root.create(CALL, "f", 0o6777, OREAD))
    await settle(handle.close(CALL))
    made = await settle(root.mkdir(CALL, "d", 0o7777))
    node = await settle(root.mknod(CALL, "n", _s.S_IFREG | 0o6777, 0))
    umask = root.export.umask
    for name in ("f", "d", "n"):
        assert _s.S_IMODE(os.lstat(tmp_path / name).st_mode) == 0o777 & ~umask
    for each in (file, made, node):
        await settle(each.wstat(CALL, Change(perm=0o7777)))
        assert (await settle(each.stat(CALL))).st_mode & 0o7777 == 0o777


@pytest.mark.sec(37)
async def test_without_the_mask_the_set_id_bits_would_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = host.tree(tmp_path)
    file, handle = await settle(root.create(CALL, "f", 0o644, OREAD))
    await settle(handle.close(CALL))
    monkeypatch.setattr(type(file), "mode_of", lambda self, perm: perm)
    await settle(file.wstat(CALL, Change(perm=0o6777)))
    assert os.stat(tmp_path / "f").st_mode & 0o6000


@pytest.mark.sec(38)
@pytest.mark.parametrize("way", ["write", "truncate", "otrunc", "size", "allocate", "copy"])
async def test_a_change_of_content_takes_the_set_id_bits_away(tmp_path: Path, way: str) -> None:
    (tmp_path / "f").write_text("content")
    root = host.tree(tmp_path)
    file = await settle(root.walk(CALL, "f"))
    handle = await settle(file.open(CALL, ORDWR))
    os.chmod(tmp_path / "f", 0o6755)  # after the open: what counts is the moment of the write
    if way == "write":
        await settle(handle.write(CALL, 0, b"x"))
    elif way == "truncate":
        await settle(handle.truncate(CALL, 1))
    elif way == "otrunc":
        await settle((await settle(file.open(CALL, OWRITE | OTRUNC))).close(CALL))
    elif way == "size":
        await settle(file.wstat(CALL, Change(size=3)))
    elif way == "allocate":
        await settle(handle.allocate(CALL, 0, 0, 8192))
    else:
        await settle(handle.copy_range(CALL, 0, handle, 3, 2))
    assert _s.S_IMODE(os.stat(tmp_path / "f").st_mode) == 0o755
    await settle(handle.close(CALL))


@pytest.mark.sec(38)
async def test_a_server_with_all_capabilities_must_take_the_bits_away_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_root: None
) -> None:
    """The control: a server that leaves it to the kernel, which spares whoever has CAP_FSETID, keeps the bits."""
    (tmp_path / "f").write_text("content")
    os.chmod(tmp_path / "f", 0o6755)
    root = host.tree(tmp_path)
    monkeypatch.setattr(root.export, "keeps_setid", False)
    handle = await settle((await settle(root.walk(CALL, "f"))).open(CALL, ORDWR))
    await settle(handle.write(CALL, 0, b"x"))
    assert _s.S_IMODE(os.stat(tmp_path / "f").st_mode) == 0o6755
    await settle(handle.close(CALL))


@pytest.mark.hostile(58)
async def test_squash_refuses_chown_and_devices(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    root = host.tree(tmp_path)
    f = await settle(root.walk(CALL, "f"))
    for change in (Change(uid=os.getuid() + 1), Change(gid=os.getgid() + 1)):
        with pytest.raises(E.Enotallowed):
            await settle(f.wstat(CALL, change))
    for kind in (_s.S_IFCHR, _s.S_IFBLK):
        with pytest.raises(E.Enotallowed):
            await settle(root.mknod(CALL, "dev", kind | 0o666, os.makedev(1, 3)))
    assert os.listdir(tmp_path) == ["f"]


# -- native
@pytest.fixture
def shared(tmp_path: Path, needs_root: None) -> Path:
    """A directory of root's that others may write in, reachable for them."""
    at = tmp_path / "shared"
    at.mkdir()
    at.chmod(0o1777)
    return at


@pytest.mark.feature("host-export-native")
async def test_native_files_belong_to_the_caller_and_the_kernel_judges(shared: Path) -> None:
    root = host.tree(shared, ownership="native")
    alice, bob = caller(1001, 1001, 2000), caller(1002, 1002)
    file, handle = await settle(root.create(alice, "a", 0o660, ORDWR))
    await settle(handle.close(alice))
    st = await settle(file.stat(bob))
    assert (st.uid, st.gid, st.st_mode & 0o7777) == (1001, 1001, 0o660)
    with pytest.raises(E.Eperm):
        await settle(file.open(bob, OREAD))
    with pytest.raises(E.Enotallowed):
        await settle(file.wstat(bob, Change(perm=0o666)))
    with pytest.raises(E.Enotallowed):
        await settle(file.wstat(alice, Change(uid=1002)))
    await settle(file.wstat(alice, Change(gid=2000)))
    assert (await settle(file.stat(bob))).gid == 2000
    await settle((await settle(file.open(caller(1003, 1003, 2000), OREAD))).close(bob))
    with pytest.raises(E.Enotallowed):  # the sticky bit of the directory
        await settle(root.remove(bob, "a", None))
    with pytest.raises(E.Enotallowed):
        await settle(root.mknod(alice, "dev", _s.S_IFCHR | 0o666, os.makedev(1, 3)))
    private = await settle(root.mkdir(alice, "private", 0o700))
    assert isinstance(private, HostDir)
    await settle((await settle(private.create(alice, "x", 0o644, OWRITE)))[1].close(alice))
    with pytest.raises(E.Eperm):
        await settle(private.walk(bob, "x"))
    with pytest.raises(E.Eperm):
        await settle(private.open(bob, OREAD))
    await settle(root.remove(alice, "a", None))
    assert (os.geteuid(), os.getegid()) == (0, 0)
    assert status_ids() == (0, 0)


def status_ids() -> tuple[int, int]:
    """The calling thread's file system uid and gid."""
    with open("/proc/thread-self/status") as f:
        found = {line.split()[0]: line.split() for line in f}
    return int(found["Uid:"][4]), int(found["Gid:"][4])


@pytest.mark.sec(47)
async def test_an_unproven_caller_of_a_native_export_is_nobody_and_never_root(shared: Path) -> None:
    (shared / "secret").write_text("root's")
    (shared / "secret").chmod(0o600)
    root = host.tree(shared, ownership="native")
    for who in (Principal(), Principal("root", 0, 0), Principal("root", 0, 0, frozenset({0}), proof="none")):
        call = Call(who)
        secret = await settle(root.walk(call, "secret"))
        with pytest.raises(E.Eperm):
            await settle(secret.open(call, OREAD))
        file, handle = await settle(root.create(call, "n", 0o644, OREAD))
        await settle(handle.close(call))
        st = await settle(file.stat(call))
        assert (st.uid, st.gid) == (65534, 65534)
        await settle(root.remove(call, "n", False))


@pytest.mark.sec(47)
async def test_without_the_change_of_ids_an_unproven_caller_would_read_as_root(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared / "secret").write_text("root's")
    (shared / "secret").chmod(0o600)
    root = host.tree(shared, ownership="native")
    monkeypatch.setattr(host_tree._As, "__enter__", lambda self: None)
    call = Call(Principal())
    handle = await settle((await settle(root.walk(call, "secret"))).open(call, OREAD))
    assert await settle(handle.read(call, 0, 10)) == b"root's"
    await settle(handle.close(call))


async def test_ids_change_on_one_thread_only_and_come_back_after_an_error(shared: Path) -> None:
    root = host.tree(shared, ownership="native")
    seen: list[tuple[int, int]] = []
    inside = threading.Event()
    looked = threading.Event()

    def look() -> None:
        inside.wait(10)
        seen.append(status_ids())
        looked.set()

    thread = threading.Thread(target=look)
    thread.start()

    def operation() -> None:
        seen.append(status_ids())
        inside.set()
        looked.wait(10)
        raise FileNotFoundError(2, "gone")

    with pytest.raises(E.Enonexist):
        await settle(root.export.run(caller(1001, 1002), operation))
    thread.join()
    assert seen == [(1001, 1002), (0, 0)]
    assert status_ids() == (0, 0)
    groups = os.getgroups()
    # And on a worker thread, which serves others afterwards.
    for _ in range(4):
        ids = await root.export.slow(caller(1001, 1002, 5), False, status_ids)
        assert ids == (1001, 1002)
    assert await trio.to_thread.run_sync(status_ids) == (0, 0)
    assert os.getgroups() == groups


async def test_native_keeps_the_mode_that_was_asked_for(shared: Path) -> None:
    """The caller's umask is applied already; the server's own is nobody's business."""
    root = host.tree(shared, ownership="native")
    alice = caller(1001, 1001)
    _file, handle = await settle(root.create(alice, "f", 0o666, OREAD))
    await settle(handle.close(alice))
    await settle(root.mkdir(alice, "d", 0o777))
    assert _s.S_IMODE(os.stat(shared / "f").st_mode) == 0o666
    assert _s.S_IMODE(os.stat(shared / "d").st_mode) == 0o777
