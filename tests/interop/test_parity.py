"""The file calls of an agent's kernel, one row each, done through files only: over 9P and on a FUSE mount of it.

The same steps run on both doors: our blocking client on a server process, and `ninep mount` of that server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import servers

from ninep.edges.blocking import Blocking
from ninep.proto import errors as E
from ninep.proto.types import ORDWR, Change

pytestmark = [pytest.mark.interop]
SERVER = Path(__file__).resolve().parent / "serve_tree.py"


class Door(Protocol):
    """The calls, as one kind of client makes them.  Refusals are OSError with the errno, whatever the door."""

    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None: ...
    def create(self, path: str) -> None: ...
    def delete(self, path: str) -> None: ...
    def list(self, path: str) -> list[str]: ...
    def stat(self, path: str) -> tuple[int, int]: ...
    def move(self, path: str, to: str) -> None: ...
    def copy(self, path: str, to: str) -> None: ...
    def mkdir(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def truncate(self, path: str, size: int) -> None: ...
    def exists(self, path: str) -> bool: ...
    def still_open(self, path: str) -> contextlib.AbstractContextManager[object]: ...


@contextlib.contextmanager
def as_oserror() -> Iterator[None]:
    try:
        yield
    except E.FileError as e:
        raise OSError(e.errno, e.ename) from e


class Over9P:
    """By messages."""

    def __init__(self, client: Blocking) -> None:
        self.client = client

    def read(self, path: str) -> bytes:
        with as_oserror():
            return self.client.read(path)

    def write(self, path: str, data: bytes) -> None:
        with as_oserror():
            self.client.write(path, data)

    def create(self, path: str) -> None:
        with as_oserror():
            self.client.create(path).close()

    def delete(self, path: str) -> None:
        with as_oserror():
            self.client.remove(path, is_dir=False)

    def list(self, path: str) -> list[str]:
        with as_oserror():
            return sorted(e.name for e in self.client.ls(path) if e.name not in (".", ".."))

    def stat(self, path: str) -> tuple[int, int]:
        with as_oserror():
            st = self.client.stat(path)
        return st.st_mode, st.size

    def move(self, path: str, to: str) -> None:
        with as_oserror():
            self.client.rename(path, to)

    def copy(self, path: str, to: str) -> None:
        with as_oserror(), self.client.create(to) as file:
            for data in self.client.chunks(path):
                file.write(data)

    def mkdir(self, path: str) -> None:
        with as_oserror():
            self.client.mkdir(path)

    def rmdir(self, path: str) -> None:
        with as_oserror():
            self.client.remove(path, is_dir=True)

    def truncate(self, path: str, size: int) -> None:
        with as_oserror():
            self.client.wstat(path, Change(size=size))

    def exists(self, path: str) -> bool:
        try:
            self.client.walk(path)
        except E.Enonexist:
            return False
        return True

    @contextlib.contextmanager
    def still_open(self, path: str) -> Iterator[None]:
        with self.client.open(path, ORDWR) as file:
            yield
            assert file.read() == b"content"


class OverFuse:
    """By the system calls of a program that knows nothing of 9P."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def at(self, path: str) -> Path:
        return self.top / path.lstrip("/")

    def read(self, path: str) -> bytes:
        return self.at(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        with self.at(path).open("r+b") as f:
            f.truncate()
            f.write(data)

    def create(self, path: str) -> None:
        self.at(path).open("xb").close()

    def delete(self, path: str) -> None:
        os.unlink(self.at(path))

    def list(self, path: str) -> list[str]:
        return sorted(os.listdir(self.at(path)))

    def stat(self, path: str) -> tuple[int, int]:
        st = self.at(path).stat()
        return st.st_mode, st.st_size

    def move(self, path: str, to: str) -> None:
        self.at(path).rename(self.at(to))

    def copy(self, path: str, to: str) -> None:
        shutil.copyfile(self.at(path), self.at(to))

    def mkdir(self, path: str) -> None:
        self.at(path).mkdir()

    def rmdir(self, path: str) -> None:
        self.at(path).rmdir()

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def exists(self, path: str) -> bool:
        return self.at(path).exists()

    @contextlib.contextmanager
    def still_open(self, path: str) -> Iterator[None]:
        with self.at(path).open("r+b") as f:
            yield
            assert f.read() == b"content"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    argv = [sys.executable, str(SERVER), str(tmp_path_factory.mktemp("export"))]
    with servers.start(argv, listen="9p://127.0.0.1:0") as server:
        yield server.url
        assert "Traceback" not in server.stderr()


@pytest.fixture(scope="module", params=["9p-ram", "9p-host", "fuse-ram", "fuse-host"])
def top(request: pytest.FixtureRequest, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """One door to one tree."""
    kind, _, tree = request.param.partition("-")
    address = f"{url}?aname={tree}"
    if kind == "9p":
        with Blocking(address, uname="root") as client:
            yield Over9P(client)
        return
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/fuse")
    point, state = tmp_path_factory.mktemp("mnt"), tmp_path_factory.mktemp("state")
    with servers.start_ninep("mount", f"{address}&uname=root", str(point), "--foreground", "--state", str(state)):
        yield OverFuse(point)


@pytest.fixture
def door(top: Door, request: pytest.FixtureRequest) -> tuple[Door, str]:
    """The door, and a directory of this test's own."""
    kind = "9p" if isinstance(top, Over9P) else "fuse"
    directory = f"/{kind}-{request.node.originalname}"
    top.mkdir(directory)
    return top, directory


Case = tuple[Door, str]


@pytest.mark.feature("parity-row-1")
def test_row_1_a_file_is_read(door: Case) -> None:
    fs, top = door
    fs.create(f"{top}/f")
    fs.write(f"{top}/f", bytes(range(256)) * 1000)
    assert fs.read(f"{top}/f") == bytes(range(256)) * 1000
    with pytest.raises(FileNotFoundError):
        fs.read(f"{top}/missing")


@pytest.mark.feature("parity-row-2")
def test_row_2_a_write_replaces_the_content(door: Case) -> None:
    fs, top = door
    fs.create(f"{top}/f")
    fs.write(f"{top}/f", b"a long first text")
    fs.write(f"{top}/f", b"short")
    assert fs.read(f"{top}/f") == b"short"


@pytest.mark.feature("parity-row-3")
def test_row_3_creating_what_is_there_fails(door: Case) -> None:
    fs, top = door
    fs.create(f"{top}/f")
    assert fs.stat(f"{top}/f")[1] == 0
    with pytest.raises(FileExistsError):
        fs.create(f"{top}/f")


@pytest.mark.feature("parity-row-4")
def test_row_4_a_deleted_file_stays_good_for_who_has_it_open(door: Case) -> None:
    fs, top = door
    fs.create(f"{top}/f")
    fs.write(f"{top}/f", b"content")
    with fs.still_open(f"{top}/f"):
        fs.delete(f"{top}/f")
        assert fs.list(top) == []
    with pytest.raises(FileNotFoundError):
        fs.delete(f"{top}/f")


@pytest.mark.feature("parity-row-5")
def test_row_5_a_directory_is_listed(door: Case) -> None:
    fs, top = door
    names = [f"f{i:03}" for i in range(150)]
    for name in names:
        fs.create(f"{top}/{name}")
    assert fs.list(top) == names
    with pytest.raises(NotADirectoryError):
        fs.list(f"{top}/f000/below")


@pytest.mark.feature("parity-row-6")
def test_row_6_stat_tells_kind_and_size(door: Case) -> None:
    fs, top = door
    fs.create(f"{top}/f")
    fs.write(f"{top}/f", b"12345")
    mode, size = fs.stat(f"{top}/f")
    assert (stat.S_ISREG(mode), size) == (True, 5)
    assert stat.S_ISDIR(fs.stat(top)[0])


@pytest.mark.feature("parity-row-7")
def test_row_7_a_file_is_moved_and_replaces_another(door: Case) -> None:
    fs, top = door
    fs.mkdir(f"{top}/d")
    for name in ("a", "b"):
        fs.create(f"{top}/{name}")
        fs.write(f"{top}/{name}", name.encode())
    fs.move(f"{top}/a", f"{top}/d/c")
    fs.move(f"{top}/b", f"{top}/d/c")
    assert (fs.list(top), fs.list(f"{top}/d"), fs.read(f"{top}/d/c")) == (["d"], ["c"], b"b")


@pytest.mark.feature("parity-row-8")
def test_row_8_a_file_is_copied(door: Case) -> None:
    fs, top = door
    data = os.urandom(300_001)
    fs.create(f"{top}/a")
    fs.write(f"{top}/a", data)
    fs.copy(f"{top}/a", f"{top}/b")
    assert fs.read(f"{top}/b") == fs.read(f"{top}/a") == data


@pytest.mark.feature("parity-row-9")
def test_row_9_a_directory_is_made_once(door: Case) -> None:
    fs, top = door
    fs.mkdir(f"{top}/d")
    assert fs.list(f"{top}/d") == []
    with pytest.raises(FileExistsError):
        fs.mkdir(f"{top}/d")


@pytest.mark.feature("parity-row-10")
def test_row_10_only_an_empty_directory_is_removed(door: Case) -> None:
    fs, top = door
    fs.mkdir(f"{top}/d")
    fs.create(f"{top}/d/f")
    with pytest.raises(OSError, match="not empty") as refused:
        fs.rmdir(f"{top}/d")
    assert refused.value.errno == 39
    fs.delete(f"{top}/d/f")
    fs.rmdir(f"{top}/d")
    assert fs.list(top) == []


@pytest.mark.feature("parity-row-13")
def test_row_13_a_file_is_cut_and_grown(door: Case) -> None:
    fs, top = door
    fs.create(f"{top}/f")
    fs.write(f"{top}/f", b"0123456789")
    fs.truncate(f"{top}/f", 4)
    assert fs.read(f"{top}/f") == b"0123"
    fs.truncate(f"{top}/f", 6)
    assert fs.read(f"{top}/f") == b"0123\0\0"


@pytest.mark.feature("parity-row-14")
def test_row_14_whether_a_file_exists(door: Case) -> None:
    fs, top = door
    assert not fs.exists(f"{top}/f")
    fs.create(f"{top}/f")
    assert fs.exists(f"{top}/f")
    assert not fs.exists(f"{top}/no/such/path")
