"""Questions that the conformance tests ask in whatever dialect a client speaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from raw9p import RawClient, Refused

from ninep.proto import dotl as l
from ninep.proto import messages as m
from ninep.proto.errors import FileError
from ninep.proto.records import StatRecord, unpack_dirents, unpack_stats
from ninep.proto.types import DMDIR, Entry

ALL = ("9P2000", "9P2000.u", "9P2000.L")
OLD = ("9P2000", "9P2000.u")


@contextmanager
def refuses(*rows: type[FileError]) -> Iterator[None]:
    """The block is answered with one of these rows: by its number, its text, or both, as the dialect has them."""
    with pytest.raises(Refused) as caught:
        yield
    refused = caught.value
    numbers, texts = [row.errno for row in rows], [row.text for row in rows]
    assert not refused.errno or refused.errno in numbers, f"{refused}, wanted {numbers}"
    assert not refused.ename or refused.ename.startswith(tuple(texts)), f"{refused}, wanted {texts}"


def is_linux(c: RawClient) -> bool:
    return c.dialect.name == "9P2000.L"


async def mkdir(c: RawClient, name: str, perm: int = 0o755, fid: int = 0) -> None:
    """A directory below the fid."""
    if is_linux(c):
        await c.rpc(l.Tmkdir(fid, name, perm, 0))
        return
    await c.walk(fid, 999)
    await c.rpc(m.Tcreate(999, name, DMDIR | perm, 0))
    await c.clunk(999)


async def put(c: RawClient, name: str, content: bytes = b"", perm: int = 0o644, fid: int = 0) -> None:
    """A closed file below the fid."""
    await c.file(998, name, content, root=fid, perm=perm)
    await c.clunk(998)


async def get(c: RawClient, *names: str, fid: int = 0) -> bytes:
    """The content of a file."""
    await c.walk(fid, 997, *names)
    await c.open(997)
    data = b""
    while more := await c.read(997, len(data)):
        data += more
    await c.clunk(997)
    return data


async def mode_of(c: RawClient, fid: int) -> int:
    """The nine permission bits."""
    if is_linux(c):
        return int((await c.rpc(l.Tgetattr(fid, 1))).mode) & 0o777
    return int((await c.rpc(m.Tstat(fid))).stat.perm) & 0o777


async def size_of(c: RawClient, fid: int) -> int:
    if is_linux(c):
        return int((await c.rpc(l.Tgetattr(fid, l.GETATTR_SIZE))).size)
    return int((await c.rpc(m.Tstat(fid))).stat.length)


async def chmod(c: RawClient, fid: int, perm: int) -> None:
    if is_linux(c):
        await c.rpc(l.Tsetattr(fid, l.SETATTR_MODE, perm))
    else:
        kept = int((await c.rpc(m.Tstat(fid))).stat.perm) & ~0o777
        await c.rpc(m.Twstat(fid, StatRecord(perm=kept | perm)))


async def stat(c: RawClient, fid: int) -> StatRecord:
    record: StatRecord = (await c.rpc(m.Tstat(fid))).stat
    return record


async def getattr_of(c: RawClient, fid: int, mask: int = l.GETATTR_ALL) -> Any:
    return await c.rpc(l.Tgetattr(fid, mask))


async def records(c: RawClient, fid: int, count: int = 8000) -> list[StatRecord]:
    """All records of an open directory of the old dialects, from the start."""
    found: list[StatRecord] = []
    at = 0
    while data := await c.read(fid, at, count):
        found += unpack_stats(data, c.dialect.name == "9P2000.u")
        at += len(data)
    return found


async def readdir(c: RawClient, fid: int, cookie: int = 0, count: int = 8000) -> list[Entry]:
    """One Treaddir."""
    return unpack_dirents((await c.rpc(l.Treaddir(fid, cookie, count))).data)


async def all_entries(c: RawClient, fid: int, cookie: int = 0, count: int = 8000) -> list[Entry]:
    found: list[Entry] = []
    while more := await readdir(c, fid, found[-1].cookie if found else cookie, count):
        found += more
    return found


async def names(c: RawClient, fid: int = 0) -> list[str]:
    """What the directory of a fid holds, without the dots."""
    await c.walk(fid, 996)
    await c.open(996)
    found = await all_entries(c, 996) if is_linux(c) else await records(c, 996)
    await c.clunk(996)
    return [entry.name for entry in found if entry.name not in (".", "..")]
