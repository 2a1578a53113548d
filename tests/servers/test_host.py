"""A host directory as a tree: what a local program does and what a client does are the same files."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat as _s
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ninep.answer import settle
from ninep.file import HASHED_PATH, Call
from ninep.principal import local_principal
from ninep.proto import errors as E
from ninep.proto.types import (
    NOW,
    OAPPEND,
    OEXEC,
    ORDWR,
    OREAD,
    OTRUNC,
    OWRITE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    SEEK_DATA,
    SEEK_HOLE,
    XATTR_CREATE,
    Change,
    Entry,
)
from ninep.servers import host, host_sys, host_tree
from ninep.servers.host_dir import HostDir
from ninep.testing import check_tree

CALL = Call(local_principal(os.getuid(), os.getgid(), frozenset(os.getgroups()), "tester", "local"))


@pytest.fixture(params=["memory", "disk", "worker"])
def directory(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in memory, one where the temporary files are, and one of a file system that may be slow."""
    if request.param == "worker":
        monkeypatch.setattr(host_sys, "INLINE", frozenset())
    if request.param != "memory":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)


@pytest.fixture(params=["openat2", "steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With openat2, and as on a kernel that has none."""
    if request.param == "steps":
        monkeypatch.setattr(host_sys, "have_openat2", lambda: False)
    return str(request.param)


async def listing(root: HostDir, count: int = 100) -> list[Entry]:
    handle = await settle(root.open(CALL, OREAD))
    found: list[Entry] = []
    while batch := await settle(handle.entries(CALL, found[-1].cookie if found else 0, count)):
        found += batch
    await settle(handle.close(CALL))
    return found


@pytest.mark.feature("host-export-rw")
async def test_what_is_written_here_is_read_there_and_back(directory: Path, way: str) -> None:
    root = host.tree(directory)
    file, handle = await settle(root.create(CALL, "new", 0o640, ORDWR))
    assert await settle(handle.write(CALL, 0, b"hello")) == 5
    assert (directory / "new").read_bytes() == b"hello"
    (directory / "new").write_bytes(b"other words")
    assert await settle(handle.read(CALL, 6, 100)) == b"words"
    buffer = memoryview(bytearray(64))
    assert await settle(handle.read_into(CALL, 0, buffer)) == 11
    assert bytes(buffer[:11]) == b"other words"
    assert await settle(handle.read(CALL, 11, 10)) == b""
    st = await settle(file.stat(CALL))
    assert (st.size, st.st_mode & 0o777 | _s.S_IFREG) == (11, st.st_mode)
    await settle(handle.close(CALL))
    assert await settle(root.walk(CALL, "new")) is file


async def test_walk_through_directories_and_errors_name_the_reason(directory: Path, way: str) -> None:
    (directory / "a/b").mkdir(parents=True)
    (directory / "a/b/c").write_text("deep")
    root = host.tree(directory)
    a = await settle(root.walk(CALL, "a"))
    assert isinstance(a, HostDir)
    b = await settle(a.walk(CALL, "b"))
    assert isinstance(b, HostDir)
    c = await settle(b.walk(CALL, "c"))
    assert (await settle(c.stat(CALL))).size == 4
    with pytest.raises(E.Enonexist):
        await settle(b.walk(CALL, "none"))
    with pytest.raises(E.Enotempty):
        await settle(a.remove(CALL, "b", True))
    with pytest.raises(E.Eexist):
        await settle(a.mkdir(CALL, "b", 0o755))
    with pytest.raises(E.Eexist):
        await settle(b.create(CALL, "c", 0o644, OWRITE))
    with pytest.raises(E.Eisdir):
        await settle(b.open(CALL, OWRITE))


async def test_listing_agrees_with_walk_and_resumes_after_any_entry(directory: Path) -> None:
    for i in range(300):
        (directory / f"file{i}").write_text(str(i))
    (directory / "sub").mkdir()
    (directory / "to").symlink_to("sub")
    root = host.tree(directory)
    found = await listing(root, 7)
    assert sorted(e.name for e in found) == sorted(os.listdir(directory))
    assert len({e.cookie for e in found}) == len(found)
    assert all(0 < e.cookie < 1 << 63 for e in found)
    for entry in found[::50]:
        child = await settle(root.walk(CALL, entry.name))
        st = await settle(child.stat(CALL))
        assert entry.qid == st.qid
        assert entry.stat == st
        assert entry.dtype == st.st_mode >> 12
    handle = await settle(root.open(CALL, OREAD))
    everything = await settle(handle.entries(CALL, 0, 1000))
    for at in (0, 10, 200, len(everything) - 1):
        rest = await settle(handle.entries(CALL, everything[at].cookie, 1000))
        assert [e.name for e in rest] == [e.name for e in everything[at + 1 :]]
    await settle(handle.close(CALL))


@pytest.mark.hostile(52)
async def test_a_cookie_never_given_is_refused(directory: Path) -> None:
    for name in "abc":
        (directory / name).touch()
    handle = await settle(host.tree(directory).open(CALL, OREAD))
    given = {e.cookie for e in await settle(handle.entries(CALL, 0, 10))}
    for cookie in (1 << 63, -1, 12345678901, max(given) - 1):
        assert cookie not in given
        with pytest.raises(E.Ediroffset):
            await settle(handle.entries(CALL, cookie, 10))
    await settle(handle.close(CALL))


@pytest.mark.hostile(54)
async def test_a_listing_ends_though_the_directory_grows_with_each_read(directory: Path) -> None:
    for i in range(50):
        (directory / f"old{i}").touch()
    root = host.tree(directory)
    handle = await settle(root.open(CALL, OREAD))
    names: list[str] = []
    cookie = 0
    for step in range(5000):
        batch = await settle(handle.entries(CALL, cookie, 1))
        if not batch:
            break
        names.append(batch[0].name)
        cookie = batch[0].cookie
        if step < 2000:
            (directory / f"new{step}").touch()
            os.unlink(directory / f"new{step}")
    assert sorted(n for n in names if n.startswith("old")) == sorted(f"old{i}" for i in range(50))
    await settle(handle.close(CALL))


@pytest.mark.hostile(53)
@pytest.mark.slow
async def test_a_large_directory_is_streamed_without_a_list(tmp_path: Path) -> None:
    for i in range(100_000):
        os.close(os.open(tmp_path / f"{i:07}", os.O_CREAT | os.O_WRONLY))
    root = host.tree(tmp_path)
    handles = [await settle(root.open(CALL, OREAD)) for _ in range(8)]
    before = resident()
    seen = [0] * len(handles)
    cookies = [0] * len(handles)
    while any(c >= 0 for c in cookies):
        for at, handle in enumerate(handles):
            if cookies[at] < 0:
                continue
            batch = await settle(handle.entries(CALL, cookies[at], 500))
            seen[at] += len(batch)
            cookies[at] = batch[-1].cookie if batch else -1
    assert seen == [100_000] * len(handles)
    assert resident() - before < 32 << 20
    for handle in handles:
        await settle(handle.close(CALL))


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


async def test_rename_moves_the_node_and_keeps_every_fid_good(directory: Path, way: str) -> None:
    root = host.tree(directory)
    d1 = await settle(root.mkdir(CALL, "d1", 0o755))
    d2 = await settle(root.mkdir(CALL, "d2", 0o755))
    assert isinstance(d1, HostDir)
    assert isinstance(d2, HostDir)
    file, handle = await settle(d1.create(CALL, "f", 0o644, OWRITE))
    await settle(d1.rename(CALL, "f", d2, "g", 0))
    while root.export.warm.shrink():
        pass
    assert (await settle(file.stat(CALL))).qid.path == file.qid.path
    await settle(handle.close(CALL))
    while root.export.warm.shrink():
        pass
    assert (await settle(file.stat(CALL))).qid.path == file.qid.path  # walked again, by its new name
    (directory / "d1/other").write_text("x")
    other = await settle(d1.walk(CALL, "other"))
    with pytest.raises(E.Eexist):
        await settle(d1.rename(CALL, "other", d2, "g", RENAME_NOREPLACE))
    await settle(d1.rename(CALL, "other", d2, "g", RENAME_EXCHANGE))
    while root.export.warm.shrink():
        pass
    assert (await settle(other.stat(CALL))).size == 1
    assert (await settle(file.stat(CALL))).size == 0
    assert (directory / "d2/g").read_text() == "x"


@pytest.mark.sec(33)
async def test_rename_over_directories_into_itself_and_onto_itself_obeys_posix(directory: Path) -> None:
    root = host.tree(directory)
    other = host.tree(directory)
    a = await settle(root.mkdir(CALL, "a", 0o755))
    assert isinstance(a, HostDir)
    b = await settle(a.mkdir(CALL, "b", 0o755))
    assert isinstance(b, HostDir)
    (directory / "f").touch()
    cases: list[tuple[str, HostDir, str, type[E.FileError]]] = [
        ("a", b, "x", E.Ebadarg),
        ("a", a, "x", E.Ebadarg),
        ("f", root, "a", E.Eisdir),
        ("a", root, "f", E.Enotdir),
        ("none", root, "x", E.Enonexist),
        ("f", other, "x", E.Exdev),
    ]
    for name, to, to_name, error in cases:
        with pytest.raises(error):
            await settle(root.rename(CALL, name, to, to_name, 0))
    await settle(root.rename(CALL, "f", root, "f", 0))
    assert sorted(os.listdir(directory)) == ["a", "f"]


@pytest.mark.sec(33)
async def test_two_clients_that_swap_directories_leave_a_tree(directory: Path) -> None:
    root = host.tree(directory)
    p = await settle(root.mkdir(CALL, "p", 0o755))
    q = await settle(root.mkdir(CALL, "q", 0o755))
    assert isinstance(p, HostDir)
    assert isinstance(q, HostDir)
    for _ in range(200):
        await settle(root.rename(CALL, "p", q, "p", 0))  # q/p
        with pytest.raises(E.Ebadarg):
            await settle(root.rename(CALL, "q", p, "q", 0))
        await settle(q.rename(CALL, "p", root, "p", 0))
        await settle(root.rename(CALL, "q", p, "q", 0))  # p/q
        await settle(p.rename(CALL, "q", root, "q", 0))
    assert p.parent is root
    assert q.parent is root


async def test_remove_expects_the_very_file_and_the_right_kind(directory: Path, way: str) -> None:
    root = host.tree(directory)
    (directory / "f").touch()
    (directory / "d").mkdir()
    old = await settle(root.walk(CALL, "f"))
    with pytest.raises(E.Enotdir):
        await settle(root.remove(CALL, "f", True))
    with pytest.raises(E.Eisdir):
        await settle(root.remove(CALL, "d", False))
    (directory / "g").write_text("new")
    os.rename(directory / "g", directory / "f")
    with pytest.raises(E.Estale):
        await settle(root.remove(CALL, "f", False, old))
    assert (directory / "f").read_text() == "new"
    await settle(root.remove(CALL, "f", None, await settle(root.walk(CALL, "f"))))
    await settle(root.remove(CALL, "d", True))
    assert os.listdir(directory) == []


async def test_an_open_file_outlives_its_name_and_its_node_is_found_through_the_handle(directory: Path) -> None:
    root = host.tree(directory)
    file, handle = await settle(root.create(CALL, "f", 0o644, ORDWR))
    await settle(handle.write(CALL, 0, b"still here"))
    await settle(root.remove(CALL, "f", False))
    while root.export.warm.shrink():
        pass
    st = await settle(file.stat(CALL))
    assert (st.nlink, st.size) == (0, 10)
    await settle(file.wstat(CALL, Change(perm=0o600)))
    assert await settle(handle.read(CALL, 0, 20)) == b"still here"
    await settle(handle.truncate(CALL, 5))
    assert (await settle(file.stat(CALL))).size == 5
    await settle(handle.close(CALL))
    while root.export.warm.shrink():
        pass
    with pytest.raises(E.Estale):
        await settle(file.stat(CALL))


async def test_a_file_replaced_behind_a_cold_fid_is_stale_and_never_the_new_one(directory: Path, way: str) -> None:
    (directory / "d").mkdir()
    (directory / "d/f").write_text("old")
    root = host.tree(directory)
    d = await settle(root.walk(CALL, "d"))
    assert isinstance(d, HostDir)
    f = await settle(d.walk(CALL, "f"))
    os.rename(directory / "d", directory / "moved")
    (directory / "d").mkdir()
    (directory / "d/f").write_text("new")
    assert (await settle(f.stat(CALL))).size == 3  # warm: still that file
    while root.export.warm.shrink():
        pass
    for operation in (
        lambda: f.stat(CALL),
        lambda: f.open(CALL, OREAD),
        lambda: d.walk(CALL, "f"),
        lambda: d.mkdir(CALL, "x", 0o755),
    ):
        with pytest.raises(E.Estale):
            await settle(operation())  # type: ignore[arg-type]  # four kinds of answer
    again = await settle(root.walk(CALL, "moved"))
    assert again is d  # found under its new name, for every fid that holds it
    assert (await settle(f.stat(CALL))).size == 3


@pytest.mark.feature("host-qid-stable")
async def test_qids_survive_a_restart_with_the_same_key_and_only_with_it(directory: Path) -> None:
    (directory / "f").touch()
    paths = [(await settle(host.tree(directory, key=key).walk(CALL, "f"))).qid.path for key in (b"k", b"k", b"l", b"")]
    assert paths[0] == paths[1]
    assert len(set(paths)) == 3
    assert all(path & HASHED_PATH for path in paths)


async def test_the_qid_version_moves_with_content_and_is_never_zero(directory: Path) -> None:
    root = host.tree(directory)
    file, handle = await settle(root.create(CALL, "f", 0o644, OWRITE))
    versions = set()
    for i in range(20):
        versions.add((await settle(file.stat(CALL))).qid.vers)
        await settle(handle.write(CALL, i, b"x"))
    assert len(versions) == 20
    assert 0 not in versions
    await settle(handle.close(CALL))


async def test_wstat_changes_all_or_nothing(directory: Path) -> None:
    root = host.tree(directory)
    file, handle = await settle(root.create(CALL, "f", 0o644, OWRITE))
    await settle(handle.close(CALL))
    await settle(file.wstat(CALL, Change(perm=0o600, size=100, mtime_ns=5_000_000_007, atime_ns=9)))
    st = await settle(file.stat(CALL))
    assert (st.st_mode & 0o7777, st.size, st.mtime_ns, st.atime_ns) == (0o600, 100, 5_000_000_007, 9)
    await settle(file.wstat(CALL, Change(mtime_ns=NOW)))
    now = await settle(file.stat(CALL))
    assert now.mtime_ns > st.mtime_ns
    assert now.atime_ns == 9
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(E.Efbig):  # the size is the last step: the ones before it are taken back
            await settle(file.wstat(CALL, Change(perm=0o777, mtime_ns=77, size=2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(E.Enotallowed):
        await settle(file.wstat(CALL, Change(perm=0o777, uid=st.uid + 1)))
    after = await settle(file.stat(CALL))
    assert (after.st_mode, after.mtime_ns, after.size) == (now.st_mode, now.mtime_ns, now.size)
    await settle(file.wstat(CALL, Change(uid=st.uid, gid=st.gid)))  # no change: no refusal
    before = (await settle(file.stat(CALL))).ctime_ns
    while (await settle(file.stat(CALL))).ctime_ns == before:
        await settle(file.wstat(CALL, Change(touch_ctime=True)))


@pytest.mark.hostile(57)
async def test_impossible_times_and_owners_are_refused(directory: Path) -> None:
    root = host.tree(directory)
    for change in (Change(mtime_ns=1 << 63), Change(atime_ns=-2), Change(uid=0xFFFFFFFF), Change(gid=0xFFFFFFFF)):
        with pytest.raises(E.Ebadarg):
            await settle(root.wstat(CALL, change))


async def test_links_symlinks_and_nodes_are_made_as_asked(directory: Path, way: str) -> None:
    root = host.tree(directory)
    (directory / "f").write_text("one")
    f = await settle(root.walk(CALL, "f"))
    await settle(root.link(CALL, "hard", f))
    assert os.stat(directory / "hard").st_nlink == 2
    assert await settle(root.walk(CALL, "hard")) is f
    link = await settle(root.symlink(CALL, "soft", "../where/ever"))
    assert await settle(link.readlink(CALL)) == "../where/ever"
    assert (await settle(link.stat(CALL))).st_mode >> 12 == 10
    for kind in (_s.S_IFREG, _s.S_IFIFO, _s.S_IFSOCK):
        made = await settle(root.mknod(CALL, f"node{kind}", kind | 0o600, 0))
        assert _s.S_IFMT((await settle(made.stat(CALL))).st_mode) == kind == made.kind
    with pytest.raises(E.Enotallowed):
        await settle(root.link(CALL, "dir", root))
    with pytest.raises(E.Ebadarg):
        await settle(f.readlink(CALL))


async def test_append_truncate_exec_and_sparse_files_behave_as_on_linux(directory: Path) -> None:
    root = host.tree(directory)
    file, handle = await settle(root.create(CALL, "f", 0o644, OWRITE | OAPPEND))
    await settle(handle.write(CALL, 0, b"ab"))
    await settle(handle.write(CALL, 0, b"cd"))
    assert (directory / "f").read_bytes() == b"abcd"
    await settle(handle.close(CALL))
    with pytest.raises(E.Eperm):
        await settle(file.open(CALL, OEXEC))
    os.chmod(directory / "f", 0o755)
    await settle((await settle(file.open(CALL, OEXEC))).close(CALL))
    handle = await settle(file.open(CALL, ORDWR | OTRUNC))
    assert (directory / "f").read_bytes() == b""
    await settle(handle.write(CALL, 1 << 20, b"end"))
    assert await settle(handle.seek(CALL, 0, SEEK_DATA)) == 1 << 20
    assert await settle(handle.seek(CALL, 0, SEEK_HOLE)) == 0
    with pytest.raises(E.Enxio):
        await settle(handle.seek(CALL, 1 << 30, SEEK_DATA))
    await settle(handle.allocate(CALL, 0, 0, 4096))
    await settle(handle.fsync(CALL, True))
    await settle(handle.fsync(CALL, False))
    _copy, to = await settle(root.create(CALL, "copy", 0o644, ORDWR))
    assert await settle(handle.copy_range(CALL, 1 << 20, to, 1, 3)) == 3
    assert await settle(to.read(CALL, 0, 10)) == b"\0end"
    stats = await settle(root.statfs(CALL))
    assert stats.blocks >= stats.bfree >= stats.bavail
    backing = handle.backing()
    assert backing is not None
    assert os.pread(backing, 3, 1 << 20) == b"end"
    await settle(handle.close(CALL))
    await settle(to.close(CALL))


async def test_user_attributes_round_trip(directory: Path) -> None:
    root = host.tree(directory)
    (directory / "f").touch()
    f = await settle(root.walk(CALL, "f"))
    try:
        await settle(f.setxattr(CALL, "user.colour", b"red", 0))
    except E.Eunsupported:
        pytest.skip("no user attributes on this file system")
    assert await settle(f.getxattr(CALL, "user.colour")) == b"red" == os.getxattr(directory / "f", "user.colour")
    assert await settle(f.listxattr(CALL)) == ["user.colour"]
    with pytest.raises(E.Eexist):
        await settle(f.setxattr(CALL, "user.colour", b"blue", XATTR_CREATE))
    await settle(f.removexattr(CALL, "user.colour"))
    with pytest.raises(E.Enoattr):
        await settle(f.getxattr(CALL, "user.colour"))


async def test_names_that_are_not_utf8_round_trip(directory: Path) -> None:
    raw = b"caf\xe9\xff"
    os.close(os.open(os.path.join(os.fsencode(directory), raw), os.O_CREAT | os.O_WRONLY))
    root = host.tree(directory)
    [entry] = await listing(root)
    assert entry.name.encode("utf-8", "surrogateescape") == raw
    assert (await settle(root.walk(CALL, entry.name))).qid.path == entry.qid.path


def test_what_holds_keys_or_belongs_to_the_kernel_is_not_exported_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (".ssh", ".config/ninep/keys"):
        (tmp_path / name).mkdir(parents=True)
    refused = ["/", "/proc", "/proc/self", "/sys", "/dev", tmp_path / ".ssh", tmp_path / ".config/ninep/keys"]
    (tmp_path / "link").symlink_to(".ssh")
    for path in [*refused, tmp_path / "link"]:
        with pytest.raises(E.Enotallowed, match="export refused"):
            host.tree(path)
    host.tree(tmp_path / ".ssh", force=True)
    host.tree("/", force=True)


@pytest.mark.feature("host-export")
async def test_the_host_tree_keeps_what_every_tree_promises(directory: Path, way: str) -> None:
    made = iter(range(1000))

    def make() -> HostDir:
        at = directory / str(next(made))
        at.mkdir()
        return host.tree(at)

    await check_tree(make, creates=True, judges=False, call=CALL)


def test_the_manual_page_runs() -> None:
    import doctest

    failed, tried = doctest.testmod(host)
    assert tried
    assert not failed


def test_host_errors_keep_their_number_and_no_path() -> None:
    assert isinstance(host_tree.refusal(OSError(errno.ELOOP, "x", "/secret")), E.Enotdir)
    assert host_tree.refusal(OSError(errno.EUCLEAN, "x", "/secret")).errno == errno.EUCLEAN
    assert "/secret" not in str(host_tree.refusal(OSError(errno.EACCES, "x", "/secret")))


async def test_sockets_and_fifos_are_seen_but_never_opened(directory: Path) -> None:
    os.mkfifo(directory / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "sock"))
        root = host.tree(directory)
        assert {e.name: e.dtype for e in await listing(root)} == {"fifo": 1, "sock": 12}
        for name in ("fifo", "sock"):
            with pytest.raises(E.Enotallowed):
                await settle((await settle(root.walk(CALL, name))).open(CALL, OREAD))
