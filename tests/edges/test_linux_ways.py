"""What the Linux kernel's 9P client does beside the letter of the protocol, and gets its answer to (net/9p, fs/9p)."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw9p import Refused, serving

from ninep.file import Call, File
from ninep.proto import messages as m
from ninep.proto.records import unpack_stats
from ninep.proto.types import OAPPEND, OWRITE, Change
from ninep.servers import host, ram


@pytest.mark.conformance(84, 85)
@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u"])
async def test_the_rest_of_a_buffer_may_be_too_small_for_a_record_once(dialect: str) -> None:
    root = ram.tree()
    for i in range(100):
        root.create(Call(), f"file{i:03}", 0o644, 0)[1].close(Call())  # type: ignore[index,union-attr]  # at once
    async with serving(root) as server:
        client = await server.client(dialect)
        await client.walk(0, 1)
        await client.open(1)
        listing, offset = b"", 0
        while True:
            count, got = 1000, 0
            while got < count:  # as p9_client_read does: one buffer, several reads
                data = await client.read(1, offset, count - got)
                if not data:
                    break
                listing += data
                offset += len(data)
                got += len(data)
            if not got:
                break
        names = [record.name for record in unpack_stats(listing, dialect == "9P2000.u")]
        assert names == [f"file{i:03}" for i in range(100)]
        for count in (20, 20):  # of a fresh buffer: an error, and again
            with pytest.raises(Refused):
                await client.read(1, 0, count)
        data = await client.read(1, 0, 1000)
        assert await client.read(1, len(data), 1000 - len(data)) == b""
        with pytest.raises(Refused):  # asked twice, it is no rest any more
            await client.read(1, len(data), 1000 - len(data))


@pytest.mark.conformance(101)
async def test_without_a_number_the_text_is_one_that_linux_knows() -> None:
    async with serving(ram.tree()) as server:
        plain, dotu = await server.client("9P2000"), await server.client("9P2000.u")
        for client, text in ((plain, "file does not exist"), (dotu, "file does not exist: missing")):
            with pytest.raises(Refused) as refused:
                await client.walk(0, 1, "missing")
            assert refused.value.ename == text
        with pytest.raises(Refused, match=": "):  # a text that is in no table keeps its object
            await plain.rpc(m.Topen(0, 0x20))


async def test_dotu_takes_linux_word_for_append() -> None:
    async with serving(ram.tree()) as server:
        client = await server.client("9P2000.u")
        await client.file(1, "log", b"one ")
        await client.walk(0, 2, "log")
        await client.open(2, OWRITE | OAPPEND)
        assert await client.write(2, b"two", offset=0) == 3
        assert await client.read(1) == b"one two"
        plain = await server.client("9P2000")
        await plain.walk(0, 3, "log")
        with pytest.raises(Refused):
            await plain.open(3, OWRITE | OAPPEND)


def test_a_symlink_of_the_host_may_be_touched(tmp_path: Path) -> None:
    """lchown(2) to the present owner, as `cp -a` does: Tsetattr with the owner and CTIME."""
    (tmp_path / "link").symlink_to("nowhere")
    before = (tmp_path / "link").lstat()
    link = host.tree(tmp_path).walk(Call(), "link")
    assert isinstance(link, File)
    assert link.wstat(Call(), Change(uid=before.st_uid, gid=before.st_gid, touch_ctime=True)) is None
    assert (tmp_path / "link").lstat().st_ctime_ns > before.st_ctime_ns
