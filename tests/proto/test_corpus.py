"""What other people's clients and servers said to each other reads, and writes again, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ninep.proto.codec import Dialect
from ninep.proto.dotl import Rlerror, Rreaddir
from ninep.proto.framing import Framer
from ninep.proto.messages import Rversion, Tversion
from ninep.proto.records import pack_dirents, unpack_dirents
from ninep.proto.version import BY_NAME, P2000

CORPUS = Path(__file__).parents[1] / "corpus"
CONVERSATIONS = sorted(CORPUS.glob("*.9p"))


def frames(path: Path) -> Iterator[tuple[bool, bytes]]:
    """Each frame, and whether it went to the server."""
    raw = path.read_bytes()
    at = 0
    while at < len(raw):
        size = int.from_bytes(raw[at + 1 : at + 5], "little")
        yield raw[at : at + 1] == b">", raw[at + 1 : at + 1 + size]
        at += 1 + size


@pytest.mark.conformance(1, 13)
@pytest.mark.feature("proto-dotl", "codec-property")
@pytest.mark.parametrize("path", CONVERSATIONS, ids=lambda p: p.stem)
def test_a_captured_conversation_reads_and_writes_again_to_the_byte(path: Path) -> None:
    dialect: Dialect = P2000
    asked: dict[int, int] = {}
    seen: set[str] = set()
    framers = {True: Framer(65536), False: Framer(65536)}
    for to_server, frame in frames(path):
        framer = framers[to_server]
        [(start, end)] = framer.feed(frame)
        tag, msg = (dialect.decode if to_server else dialect.decode_reply)(framer.view, start, end)
        assert dialect.encode(tag, msg) == frame
        seen.add(type(msg).__name__)
        match msg:
            case Tversion():
                asked.clear()
            case Rversion(version=name):
                dialect = BY_NAME[name]
            case Rreaddir(data=data):
                entries = unpack_dirents(data)
                assert pack_dirents(entries, len(data)) == (bytes(data), len(entries))
        if to_server:
            assert tag not in asked
            asked[tag] = msg.number
        else:
            assert isinstance(msg, Rlerror) or asked[tag] + 1 == msg.number
            del asked[tag]
    assert not asked
    assert {"Rversion", "Rattach", "Rwalk", "Rclunk"} <= seen


def test_the_kernel_conversation_covers_the_dialect() -> None:
    numbers = {frame[4] for _, frame in frames(CORPUS / "v9fs-diod.9p")}
    assert len(numbers) >= 40
