"""Wireshark's 9P dissector, written by others, agrees about every golden frame."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from proto.golden import GOLDEN, Golden

from ninep.proto.codec import Dialect
from ninep.proto.dotl import Rgetattr, Rgetlock, Tgetlock
from ninep.proto.messages import Rversion, Rwalk, Tattach, Tread, Tversion, Twalk, Twrite
from ninep.proto.version import DIALECTS

PORT = 564
# Wireshark 4.0 looks for Tlock's flags in these too; the kernel's own Tgetlock is in the corpus and has none.
MISREAD = (Tgetlock, Rgetlock)


def packet(payload: bytes, to_server: bool, seq: int, ack: int) -> bytes:
    """An IPv4 and TCP packet between 10.0.0.1 and 10.0.0.2, checksums left out."""
    ports = (40000, PORT) if to_server else (PORT, 40000)
    tcp = struct.pack(">HHIIBBHHH", *ports, seq, ack, 0x50, 0x18, 0xFFFF, 0, 0) + payload
    hosts = b"\x0a\0\0\1\x0a\0\0\2" if to_server else b"\x0a\0\0\2\x0a\0\0\1"
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + hosts + tcp


def pcap(frames: list[tuple[bool, bytes]]) -> bytes:
    """One TCP connection as a capture file of raw IP packets."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0x40000, 101)
    at = {True: 1, False: 1}
    for to_server, frame in frames:
        raw = packet(frame, to_server, at[to_server], at[not to_server])
        at[to_server] += len(frame)
        out += struct.pack("<IIII", 0, 0, len(raw), len(raw)) + raw
    return out


def dissect(frames: list[tuple[bool, bytes]], path: Path) -> list[dict[str, Any]]:
    """What tshark says of each frame."""
    path.write_bytes(pcap(frames))
    command = ["tshark", "-r", str(path), "-T", "json", "--no-duplicate-keys", "-d", f"tcp.port=={PORT},9p"]
    done = subprocess.run(command, capture_output=True, timeout=50, check=True)
    return [p["_source"]["layers"] for p in json.loads(done.stdout)]


def number(value: str) -> int:
    return int(value, 0)


@pytest.mark.interop
@pytest.mark.conformance(1)
@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_the_dissector_reads_every_golden_frame(dialect: Dialect, tmp_path: Path) -> None:
    hello = [Tversion(8192, dialect.name), Rversion(8192, dialect.name)]
    start = [Golden(dialect, msg, dialect.encode(0xFFFF, msg)) for msg in hello]
    golden = [*start, *(g for g in GOLDEN if g.dialect is dialect and g.message.number not in (100, 101))]
    layers = dissect([(g.message.number % 2 == 0, g.frame) for g in golden], tmp_path / "golden.pcap")
    assert len(layers) == len(golden)
    for said, g in zip(layers, golden, strict=True):
        assert ("_ws.malformed" in said) == (type(g.message) in MISREAD), g
        ninep = said["9p"]
        assert number(ninep["9p.msglen"]) == len(g.frame), g
        assert number(ninep["9p.msgtype"]) == g.message.number, g
        assert number(ninep["9p.tag"]) == g.tag, g
        match g.message:
            case Tattach(fid=fid, uname=uname):
                assert (number(ninep["9p.fid"]), ninep["9p.uname"]) == (fid, uname)
            case Tread(offset=offset, count=count):
                assert (number(ninep["9p.offset"]), number(ninep["9p.count"])) == (offset, count)
            case Twrite(offset=offset, data=data):
                assert (number(ninep["9p.offset"]), number(ninep["9p.count"])) == (offset, len(data))
            case Twalk(newfid=newfid, wname=wname):
                assert (number(ninep["9p.newfid"]), number(ninep["9p.nwalk"])) == (newfid, len(wname))
            case Rwalk(wqid=wqid):
                assert number(ninep["9p.nqid"]) == len(wqid)
            case Rgetattr(size=size, data_version=version):
                assert number(ninep["9p.size"]) == size
                assert number(ninep["9p.dataversion"]) == version
