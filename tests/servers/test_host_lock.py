"""Locks of a host file: among our clients, and between them and programs of this machine."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from ninep.answer import settle
from ninep.file import Call, Handle
from ninep.limits import DEFAULT
from ninep.proto import errors as E
from ninep.proto.types import F_RDLCK, F_UNLCK, F_WRLCK, OFFSET_MAX, ORDWR, OREAD, Lock
from ninep.servers import host

CALL = Call()


def local(fd: int, kind: int, start: int = 0, length: int = 0) -> bool:
    """What a program of this machine gets from an open file description lock."""
    try:
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", kind, 0, start, length, 0))
    except OSError:
        return False
    return True


async def opened(tmp_path: Path, omode: int = ORDWR) -> tuple[Handle, Handle, int]:
    (tmp_path / "f").write_text("content")
    root = host.tree(tmp_path)
    file = await settle(root.walk(CALL, "f"))
    return (
        await settle(file.open(CALL, omode)),
        await settle(file.open(CALL, ORDWR)),
        os.open(tmp_path / "f", os.O_RDWR | os.O_CLOEXEC),
    )


async def close(a: Handle, b: Handle, fd: int) -> None:
    await settle(a.close(CALL))
    await settle(b.close(CALL))
    os.close(fd)


def ask(kind: int, start: int, end: int, owner: str, flock: bool = False) -> Lock:
    return Lock(kind, start, end, owner, flock=flock)


@pytest.mark.feature("host-locks")
async def test_a_clients_lock_keeps_a_local_program_out_for_exactly_its_range(tmp_path: Path) -> None:
    a, b, fd = await opened(tmp_path)
    assert await settle(a.lock(CALL, ask(F_WRLCK, 10, 19, "a"), False))
    assert not await settle(b.lock(CALL, ask(F_RDLCK, 15, 15, "b"), False))
    assert not local(fd, F_RDLCK, 10, 1)
    assert not local(fd, F_RDLCK, 19, 1)
    assert local(fd, F_WRLCK, 0, 10)
    assert local(fd, F_WRLCK, 20, 0)
    local(fd, F_UNLCK)
    assert await settle(a.lock(CALL, ask(F_UNLCK, 12, 13, "a"), False))
    assert local(fd, F_WRLCK, 12, 2)
    assert not local(fd, F_WRLCK, 14, 1)
    found = await settle(b.getlock(CALL, ask(F_WRLCK, 14, 14, "b")))
    assert found is not None
    assert (found.start, found.end, found.owner) == (14, 19, "a")
    await close(a, b, fd)


async def test_a_local_programs_lock_keeps_clients_out_and_is_told(tmp_path: Path) -> None:
    a, b, fd = await opened(tmp_path)
    assert local(fd, F_WRLCK, 5, 5)
    assert not await settle(a.lock(CALL, ask(F_RDLCK, 0, OFFSET_MAX, "a"), False))
    assert await settle(a.lock(CALL, ask(F_RDLCK, 0, 4, "a"), False))
    found = await settle(b.getlock(CALL, ask(F_UNLCK, 5, OFFSET_MAX, "b")))
    assert found is not None
    assert (found.type, found.start, found.end, found.owner) == (F_WRLCK, 5, 9, "host")
    await close(a, b, fd)


async def test_one_of_two_readers_leaving_opens_no_gap_for_a_local_writer(tmp_path: Path) -> None:
    a, b, fd = await opened(tmp_path)
    assert await settle(a.lock(CALL, ask(F_RDLCK, 0, 99, "a"), False))
    assert await settle(b.lock(CALL, ask(F_RDLCK, 50, 149, "b"), False))
    await settle(a.unlock_owner(CALL, "a", False))
    assert local(fd, F_WRLCK, 0, 50)
    assert not local(fd, F_WRLCK, 50, 1)
    assert not local(fd, F_WRLCK, 149, 1)
    await settle(b.unlock_owner(CALL, "b", False))
    assert local(fd, F_WRLCK)
    await close(a, b, fd)


async def test_a_waiting_client_gets_the_lock_when_a_local_program_lets_go(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    a, b, fd = await opened(tmp_path)
    assert local(fd, F_WRLCK)
    got: list[str] = []

    async def wait(handle: Handle, owner: str) -> None:
        assert await settle(handle.lock(CALL, ask(F_WRLCK, 0, 9, owner), True))
        got.append(owner)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, a, "a")
        await trio.sleep(1)
        nursery.start_soon(wait, b, "b")
        await trio.sleep(1)
        assert got == []
        local(fd, F_UNLCK)
        await trio.sleep(1)
        assert got == ["a"]
        await settle(a.unlock_owner(CALL, "a", False))
        await trio.sleep(1)
        assert got == ["a", "b"]
        assert not local(fd, F_RDLCK, 0, 1)
    await settle(b.unlock_owner(CALL, "b", False))
    await close(a, b, fd)


async def test_a_cancelled_wait_leaves_nothing_behind(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    a, b, fd = await opened(tmp_path)
    assert local(fd, F_WRLCK)
    with trio.move_on_after(1) as scope:
        await settle(a.lock(CALL, ask(F_WRLCK, 0, 9, "a"), True))
    assert scope.cancelled_caught
    assert await settle(b.getlock(CALL, ask(F_WRLCK, 0, 9, "b")))  # the local one alone
    local(fd, F_UNLCK)
    assert await settle(b.getlock(CALL, ask(F_WRLCK, 0, 9, "b"))) is None
    assert local(fd, F_WRLCK)
    await close(a, b, fd)


async def test_flock_is_kept_apart_and_seen_by_local_programs(tmp_path: Path) -> None:
    a, b, fd = await opened(tmp_path)
    assert await settle(a.lock(CALL, ask(F_RDLCK, 0, OFFSET_MAX, "a", True), False))
    assert await settle(b.lock(CALL, ask(F_RDLCK, 0, OFFSET_MAX, "b", True), False))
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_UN)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    await settle(a.unlock_owner(CALL, "a", True))
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    await settle(b.lock(CALL, ask(F_UNLCK, 0, OFFSET_MAX, "b", True), False))
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not await settle(a.lock(CALL, ask(F_RDLCK, 0, OFFSET_MAX, "a", True), False))
    await close(a, b, fd)


async def test_a_lock_needs_the_access_that_its_kind_has(tmp_path: Path) -> None:
    a, b, fd = await opened(tmp_path, OREAD)
    with pytest.raises(E.Enotopen):
        await settle(a.lock(CALL, ask(F_WRLCK, 0, 1, "a"), False))
    assert await settle(a.lock(CALL, ask(F_RDLCK, 0, 1, "a"), False))
    with pytest.raises(E.Ebadarg):
        await settle(a.lock(CALL, ask(F_RDLCK, 5, 1, "a"), False))
    await settle(a.unlock_owner(CALL, "a", False))
    await close(a, b, fd)


@pytest.mark.hostile(59)
async def test_a_thousand_locks_are_the_most_and_no_kernel_lock_is_left_over(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("content")
    root = host.tree(tmp_path, limits=msgspec.structs.replace(DEFAULT, locks_max=20))
    handle = await settle((await settle(root.walk(CALL, "f"))).open(CALL, ORDWR))
    for i in range(20):
        assert await settle(handle.lock(CALL, ask(F_WRLCK, 2 * i, 2 * i, "bomb"), False))
    with pytest.raises(E.Enolck):
        await settle(handle.lock(CALL, ask(F_WRLCK, 1000, 1000, "bomb"), False))
    fd = os.open(tmp_path / "f", os.O_RDWR)
    assert local(fd, F_WRLCK, 1000, 1)
    assert not local(fd, F_WRLCK, 38, 1)
    await settle(handle.unlock_owner(CALL, "bomb", False))
    assert local(fd, F_WRLCK)
    await settle(handle.close(CALL))
    os.close(fd)
