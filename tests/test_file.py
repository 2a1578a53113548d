"""File, Dir and Handle: each operation is there, and refuses with an error of the table until a tree overrides it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from raw9p import Refused, serving
from trees import Tree

from ninep.answer import settle
from ninep.file import Call, Dir, File, Handle, ListHandle, Symlink
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.types import F_RDLCK, OREAD, Change, Lock, Stat, StatFs

pytestmark = pytest.mark.feature("file-abstraction")

CALL = Call()
LOCK = Lock(F_RDLCK, 0, 0, "me")
FILE = File()
HANDLE = Handle()
BUFFER = memoryview(bytearray(8))

# Every public operation: what it is asked with, and what it does by default: the row that it refuses with, or a value.
Default = tuple[tuple[Any, ...], Any]
OF_HANDLE: dict[str, Default] = {
    "read": ((CALL, 0, 8), E.Eperm),
    "read_into": ((CALL, 0, BUFFER), E.Eperm),
    "write": ((CALL, 0, b"x"), E.Eperm),
    "truncate": ((CALL, 0), E.Eunsupported),
    "fsync": ((CALL, False), None),
    "flush": ((CALL,), None),
    "lock": ((CALL, LOCK, False), E.Eunsupported),
    "getlock": ((CALL, LOCK), E.Eunsupported),
    "unlock_owner": ((CALL, "me", False), None),
    "allocate": ((CALL, 0, 0, 1), E.Eunsupported),
    "seek": ((CALL, 0, 3), E.Eunsupported),
    "copy_range": ((CALL, 0, HANDLE, 0, 1), E.Exdev),
    "ready": ((CALL, 1, None), 0x145),
    "entries": ((CALL, 0, 10), E.Enotdir),
    "names": ((CALL, 0, 1000), E.Enotdir),
    "backing": ((), None),
    "close": ((CALL,), None),
}
OF_FILE: dict[str, Default] = {
    "stat": ((CALL,), Stat),
    "access": ((CALL, 4), None),
    "may_wstat": ((CALL, Change(perm=0o600)), E.Enotallowed),
    "wstat": ((CALL, Change(perm=0o600)), E.Eperm),
    "statfs": ((CALL,), StatFs),
    "listxattr": ((CALL,), E.Eunsupported),
    "getxattr": ((CALL, "user.a"), E.Eunsupported),
    "setxattr": ((CALL, "user.a", b"", 0), E.Eunsupported),
    "removexattr": ((CALL, "user.a"), E.Eunsupported),
    "open": ((CALL, OREAD), E.Eperm),
    "readlink": ((CALL,), E.Ebadarg),
    "snapshot": ((CALL,), File),
    "backing": ((), None),
    "subscribe": ((lambda name: None,), None),
}
OF_DIR: dict[str, Default] = {
    **OF_FILE,
    "attach": ((CALL, "other"), E.Enonexist),
    "walk": ((CALL, "a"), E.Enonexist),
    "list": ((CALL,), E.Eperm),
    "open": ((CALL, OREAD), ListHandle),
    "create": ((CALL, "a", 0o644, OREAD), E.Eperm),
    "mkdir": ((CALL, "a", 0o755), E.Eperm),
    "symlink": ((CALL, "a", "b"), E.Eunsupported),
    "link": ((CALL, "a", FILE), E.Eunsupported),
    "mknod": ((CALL, "a", 0o100644, 0), E.Eunsupported),
    "remove": ((CALL, "a", None), E.Eperm),
    "rename": ((CALL, "a", Dir(), "b", 0), E.Eperm),
}
KINDS: dict[type[Any], dict[str, Default]] = {Handle: OF_HANDLE, File: OF_FILE, Symlink: OF_FILE, Dir: OF_DIR}


def operations(kind: type[Any]) -> set[str]:
    return {name for name, member in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_every_operation_has_its_default_and_the_list_is_whole(kind: type[Any]) -> None:
    assert operations(kind) == set(KINDS[kind]), "a new operation says here what it does by default"
    for name, (arguments, expected) in KINDS[kind].items():
        operation: Callable[..., Any] = getattr(kind(), name)
        if isinstance(expected, type) and issubclass(expected, E.FileError):
            with pytest.raises(expected) as caught:
                await settle(operation(*arguments))
            assert type(caught.value) is expected, name
        elif isinstance(expected, type):
            assert isinstance(await settle(operation(*arguments)), expected), name
        else:
            assert await settle(operation(*arguments)) == expected, name


@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_what_nothing_overrides_is_served_and_refused_on_every_wire(dialect: str) -> None:
    async with serving(Tree(f=File(), d=Dir())) as server:
        c = await server.client(dialect)
        for name in ("f", "d"):
            await c.walk(0, 1, name)
            ask = l.Tgetattr(1, l.GETATTR_ALL) if dialect == "9P2000.L" else m.Tstat(1)
            await c.rpc(ask)
            await c.clunk(1)
        await c.walk(0, 1, "f")
        with pytest.raises(Refused):
            await c.open(1)
        await c.walk(0, 2, "d")
        with pytest.raises(Refused):
            await c.create(2, "new")
        with pytest.raises(Refused):
            await c.rpc(m.Tremove(1))
        assert server.node.live["handles"] == 0


def test_each_file_has_an_identity_of_its_own() -> None:
    files = [File(), File(), Dir(), Symlink()]
    assert len({file.qid.path for file in files}) == 4
    assert [file.qid.type for file in files] == [0, 0, 0x80, 0x02]
