"""Our client and our FUSE mount on diod, a server in C that others wrote; compared with the directory it exports."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers

from ninep.edges.blocking import Blocking
from ninep.proto import errors as E
from ninep.proto.types import ORDWR, OWRITE, Change

pytestmark = [
    pytest.mark.interop,
    pytest.mark.conformance(129),
    pytest.mark.feature("judge-diod", "client-foreign-server"),
]
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diod")


@pytest.fixture(scope="module")
def url(export: Path) -> Iterator[str]:
    """A diod that exports the directory, without authentication."""
    import shutil

    diod = shutil.which("diod", path=SEARCH)
    if diod is None:
        pytest.skip("needs the program diod")
    if os.geteuid() != 0:
        pytest.skip("needs root, as diod does to serve users")
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    argv = [diod, "-f", "-n", "-l", f"127.0.0.1:{port}", "-e", str(export), "-S", "-U", "root"]
    with servers.start(argv, listen=f"9p://127.0.0.1:{port}") as server:
        yield f"{server.url}?aname={export}"


@pytest.fixture
def here(export: Path, request: pytest.FixtureRequest) -> Path:
    """An empty directory below the export."""
    directory = export / request.node.name.replace("[", "-").strip("]")
    directory.mkdir()
    return directory


@pytest.fixture
def client(url: str) -> Iterator[Blocking]:
    with Blocking(url, uname="root") as client:
        yield client


def test_files_are_written_and_read(client: Blocking, here: Path) -> None:
    data = os.urandom(1_000_003)
    with client.create(f"/{here.name}/file") as file:
        file.write(data)
    assert (here / "file").read_bytes() == data
    assert client.read(f"/{here.name}/file") == data
    client.write(f"/{here.name}/file", b"short")
    assert (here / "file").read_bytes() == b"short"
    with pytest.raises(E.Eexist):
        client.create(f"/{here.name}/file")


def test_names_are_made_moved_and_removed(client: Blocking, here: Path) -> None:
    top = f"/{here.name}"
    client.mkdir(f"{top}/a")
    client.mkdir(f"{top}/b")
    client.create(f"{top}/a/f").close()
    client.rename(f"{top}/a/f", f"{top}/b/g")
    assert os.listdir(here / "b") == ["g"]
    client.symlink("b/g", f"{top}/s")
    assert client.readlink(f"{top}/s") == os.readlink(here / "s") == "b/g"
    client.link(f"{top}/b/g", f"{top}/h")
    assert (here / "h").stat().st_nlink == 2
    client.mknod(f"{top}/p", stat.S_IFIFO | 0o600)
    assert stat.S_ISFIFO((here / "p").lstat().st_mode)
    with pytest.raises(E.Enotempty):
        client.remove(f"{top}/b", is_dir=True)
    for name in ("b/g", "h", "s", "p", "a", "b"):
        client.remove(f"{top}/{name}")
    assert os.listdir(here) == []


def test_metadata_agrees_with_the_hosts(client: Blocking, here: Path) -> None:
    (here / "f").write_bytes(b"12345")
    path = f"/{here.name}/f"
    client.wstat(path, Change(perm=0o640, uid=12, gid=34, mtime_ns=1_500_000_000_000_000_000, size=3))
    mine, its = client.stat(path), (here / "f").stat()
    assert (mine.st_mode, mine.size, mine.uid, mine.gid) == (its.st_mode, its.st_size, its.st_uid, its.st_gid)
    assert (its.st_size, its.st_uid, its.st_gid, stat.S_IMODE(its.st_mode)) == (3, 12, 34, 0o640)
    assert client.statfs(path).namelen == 255


def test_a_large_directory_is_listed_once(client: Blocking, here: Path) -> None:
    for i in range(2000):
        (here / f"{i:04}").touch()
    found = sorted(e.name for e in client.ls(f"/{here.name}") if e.name not in (".", ".."))
    assert found == [f"{i:04}" for i in range(2000)]


def test_attributes_are_kept(client: Blocking, here: Path) -> None:
    (here / "f").touch()
    path = f"/{here.name}/f"
    client.setxattr(path, "user.color", b"green")
    assert os.getxattr(here / "f", "user.color") == client.getxattr(path, "user.color") == b"green"
    assert "user.color" in client.listxattr(path)
    client.removexattr(path, "user.color")
    assert os.listxattr(here / "f") == []


def test_an_open_file_outlives_its_name(client: Blocking, here: Path) -> None:
    (here / "f").write_bytes(b"old")
    with client.open(f"/{here.name}/f", ORDWR) as file:
        client.remove(f"/{here.name}/f")
        assert file.write(b"new") == 3
        file.seek(0)
        assert file.read() == b"new"
    with pytest.raises(E.Enonexist):
        client.open(f"/{here.name}/f", OWRITE)


# -- our FUSE mount of diod


@pytest.fixture
def mounted(url: str, here: Path, tmp_path: Path, needs_fuse: None) -> Iterator[Path]:
    """`ninep mount` of the export, at the test's own directory."""
    point = tmp_path / "mnt"
    point.mkdir()
    with servers.start_ninep("mount", url, str(point), "--foreground", "--state", str(tmp_path / "state")):
        yield point / here.name


def run(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=40, check=True)


@pytest.mark.timeout(90)
def test_the_mount_of_diod_works_as_a_directory(mounted: Path, here: Path, needs_tool: Callable[[str], str]) -> None:
    (mounted / "f").write_bytes(b"hello\n")
    with (mounted / "f").open("ab") as f:
        f.write(b"more\n")
    assert (here / "f").read_bytes() == (mounted / "f").read_bytes() == b"hello\nmore\n"
    os.makedirs(mounted / "d/e")
    (mounted / "f").rename(mounted / "d/e/g")
    (mounted / "over").write_bytes(b"over")
    (mounted / "over").rename(mounted / "d/e/g")
    assert (here / "d/e/g").read_bytes() == b"over"
    os.symlink("d/e/g", mounted / "s")
    assert (mounted / "s").read_bytes() == b"over"
    os.link(mounted / "d/e/g", mounted / "h")
    assert (mounted / "h").stat().st_nlink == 2
    os.setxattr(mounted / "h", "user.k", b"v")
    assert os.getxattr(here / "h", "user.k") == os.getxattr(mounted / "h", "user.k") == b"v"
    os.truncate(mounted / "h", 2)
    os.chmod(mounted / "h", 0o600)
    assert ((here / "h").read_bytes(), stat.S_IMODE((here / "h").stat().st_mode)) == (b"ov", 0o600)
    for i in range(500):
        (here / f"n{i}").touch()
    assert len([name for name in os.listdir(mounted) if name[0] == "n"]) == 500
    run("cp", "-a", str(mounted / "d"), str(mounted / "copy"))
    run("tar", "-cf", "t.tar", "d", "copy", cwd=mounted)
    assert run("diff", "-r", str(here / "d"), str(mounted / "copy")).stdout == ""
    run("rm", "-rf", "d", "copy", "t.tar", "s", cwd=mounted)
    assert not (here / "d").exists()
    with pytest.raises(FileNotFoundError):
        (mounted / "missing").read_bytes()


@pytest.mark.timeout(90)
def test_locks_taken_through_the_mount_are_diods(mounted: Path, here: Path) -> None:
    (here / "lock").touch()
    holder = (mounted / "lock").open("r+b")
    try:
        fcntl.lockf(holder, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        program = (
            "import fcntl, sys\n"
            "f = open(sys.argv[1], 'r+b')\n"
            "try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)\n"
            "except OSError as e: print(e.errno)\n"
            "else: print('taken')\n"
        )
        said = run("python3", "-c", program, str(mounted / "lock")).stdout.strip()
        assert said in (str(errno.EAGAIN), str(errno.EACCES))
    finally:
        holder.close()
    assert run("python3", "-c", program, str(mounted / "lock")).stdout.strip() == "taken"
