"""Listing names alone: what a kernel asks for when nobody wants more, and without a question for each file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ninep.answer import settle
from ninep.file import Call, Handle
from ninep.principal import local_principal
from ninep.proto import errors as E
from ninep.proto import fuse
from ninep.proto.types import DT_DIR, OREAD, Name
from ninep.servers import host, host_sys

CALL = Call(local_principal(os.getuid(), os.getgid(), frozenset(os.getgroups()), "tester", "local"))
NAMES = {os.fsencode(f"{'n' * (i % 200)}{i}") for i in range(700)} | {b"odd\xff\n"}


@pytest.fixture(params=["inline", "worker"])
def full(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose names fill many batches, on a quick file system and on one that may be slow."""
    if request.param == "worker":
        monkeypatch.setattr(host_sys, "INLINE", frozenset())
    for name in NAMES:
        os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT))
    (tmp_path / "sub").mkdir()
    return tmp_path


async def listed(handle: Handle, cookie: int = 0, count: int = 4096) -> list[Name]:
    found: list[Name] = []
    while batch := await settle(handle.names(CALL, found[-1][1] if found else cookie, count)):
        found += batch
    return found


async def test_names_are_the_entries_and_the_inode_numbers_are_those_of_stat(full: Path) -> None:
    tree = host.tree(str(full))
    handle = await settle(tree.open(CALL, OREAD))
    names = await listed(handle)
    assert sorted(name for *_, name in names) == sorted(NAMES | {b"sub"})
    entries = {os.fsencode(e.name): e for e in await settle(handle.entries(CALL, 0, 1000))}
    for ino, cookie, kind, name in names:
        assert (cookie, kind) == (entries[name].cookie, entries[name].dtype)
        file = await settle(tree.walk(CALL, os.fsdecode(name)))
        assert ino == file.ino
    await settle(handle.close(CALL))


async def test_a_cookie_is_good_in_a_later_handle_because_a_kernel_keeps_listings(full: Path) -> None:
    tree = host.tree(str(full))
    first = await settle(tree.open(CALL, OREAD))
    names = await listed(first)
    await settle(first.close(CALL))
    for at in (0, 100, len(names) - 1):
        later = await settle(tree.open(CALL, OREAD))
        assert await listed(later, names[at][1]) == names[at + 1 :]
        await settle(later.close(CALL))


async def test_entries_and_names_of_one_handle_do_not_disturb_each_other(full: Path) -> None:
    tree = host.tree(str(full))
    handle = await settle(tree.open(CALL, OREAD))
    names = await listed(handle)
    at = 0
    for turn in range(40):
        if turn % 2:
            batch = [os.fsencode(e.name) for e in await settle(handle.entries(CALL, names[at - 1][1] if at else 0, 5))]
        else:
            batch = [name for *_, name in await settle(handle.names(CALL, names[at - 1][1] if at else 0, 1024))]
        assert batch == [name for *_, name in names[at : at + len(batch)]]
        assert batch
        at += len(batch)
        if at >= len(names):
            break
        if turn == 0:
            await settle(handle.entries(CALL, 0, 10))  # gives the cookies that entries will be asked for
            await settle(handle.entries(CALL, 0, 1000))
    await settle(handle.close(CALL))


async def test_cookies_that_no_directory_has_are_refused(full: Path) -> None:
    tree = host.tree(str(full))
    handle = await settle(tree.open(CALL, OREAD))
    for cookie in (-1, 1 << 63, 1 << 64):
        with pytest.raises(E.Ediroffset):
            await settle(handle.names(CALL, cookie, 4096))
    await settle(handle.close(CALL))


async def test_inode_numbers_of_two_exports_differ(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    numbers = set()
    for _ in range(2):
        file = await settle(host.tree(str(tmp_path)).walk(CALL, "f"))
        numbers.add(file.ino)
    assert len(numbers) == 2
    assert os.stat(tmp_path / "f").st_ino not in numbers


def test_packed_records_are_those_made_one_by_one() -> None:
    names: list[Name] = [(1 << 63 | n, n + 1, DT_DIR, b"x" * n) for n in range(1, 256)]
    assert fuse.dirents(names, 2) == [fuse.dirent(ino, at + 2, kind, name) for ino, at, kind, name in names]
