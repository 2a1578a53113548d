"""A conversation with our server, as it went over TCP, that holds every message of a dialect; read by tshark.

tests/proto/test_dissector.py shows the same of frames that were made one by one.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from proto.test_dissector import MISREAD, dissect, number

from ninep.proto import dotl as l
from ninep.proto import messages as m
from ninep.proto.codec import Dialect, Message
from ninep.proto.records import StatRecord
from ninep.proto.types import DMDIR, NOTAG
from ninep.proto.version import DIALECTS, DOTL, DOTU, P2000

SERVER = Path(__file__).resolve().parent / "serve_tree.py"
AFID, ROOT, LIVE, LIVE_AFID = 1000, 0, 1, 1001
EVENT_TAG = 500


class Conversation:
    """One connection; every frame is kept in the order in which it was sent or read."""

    def __init__(self, port: int, dialect: Dialect) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.dialect = dialect
        self.frames: list[tuple[bool, bytes]] = []
        self._tag = 0

    def send(self, message: Message, tag: int, dialect: Dialect | None = None) -> None:
        frame = (dialect or self.dialect).encode(tag, message)
        self.frames.append((True, frame))
        self.socket.sendall(frame)

    def receive(self) -> tuple[int, Any]:
        size = self._bytes(4)
        frame = size + self._bytes(int.from_bytes(size, "little") - 4)
        self.frames.append((False, frame))
        return self.dialect.decode_reply(memoryview(frame))

    def _bytes(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, "the server hung up"
            data += more
        return data

    def say(self, message: Message, tag: int | None = None) -> Any:
        """The reply; an error reply only if an error was due."""
        self._tag += 1
        tag = self._tag if tag is None else tag
        self.send(message, tag)
        got, reply = self.receive()
        assert got == tag
        return reply

    def ok(self, message: Message) -> Any:
        reply = self.say(message)
        assert reply.number == message.number + 1, f"{message} was answered {reply}"
        return reply


def begin(c: Conversation) -> None:
    """Version, authentication, two trees; and a walk that fails."""
    c.send(m.Tversion(8192, c.dialect.name), NOTAG, P2000)
    assert c.receive()[1] == m.Rversion(8192, c.dialect.name)
    for afid, fid, aname in ((AFID, ROOT, "ram"), (LIVE_AFID, LIVE, "live")):
        c.ok(m.Tauth(afid, "root", aname, 0))
        assert c.ok(m.Tread(afid, 0, 100)).data == b"say something"
        c.ok(m.Twrite(afid, 0, b"friend"))
        c.ok(m.Tattach(fid, afid, "root", aname, 0))
    assert len(c.ok(m.Twalk(LIVE, 2, ("state",))).wqid) == 1
    c.ok(m.Tclunk(2))
    error = c.say(m.Twalk(ROOT, 2, ("missing",)))
    assert type(error) is (l.Rlerror if c.dialect is DOTL else m.Rerror)


def flush_a_read(c: Conversation, opening: Message) -> None:
    """A read of a stream waits; a Tflush ends it."""
    c.ok(m.Twalk(LIVE, 3, ("event",)))
    c.ok(opening)
    c.send(m.Tread(3, 0, 100), EVENT_TAG)
    assert c.say(m.Tflush(EVENT_TAG)) == m.Rflush()
    c.ok(m.Tclunk(3))


def older(c: Conversation) -> None:
    """9P2000 and .u."""
    flush_a_read(c, m.Topen(3, 0))
    c.ok(m.Twalk(ROOT, 10))
    c.ok(m.Tcreate(10, "directory", DMDIR | 0o755, 0))
    c.ok(m.Tclunk(10))
    c.ok(m.Twalk(ROOT, 10, ("directory",)))
    c.ok(m.Tcreate(10, "file", 0o644, 2))
    assert c.ok(m.Twrite(10, 3, b"content")).count == 7
    assert c.ok(m.Tread(10, 0, 100)).data == b"\0\0\0content"
    assert c.ok(m.Tstat(10)).stat.length == 10
    c.ok(m.Twstat(10, StatRecord(perm=0o600, name="renamed")))
    c.ok(m.Tremove(10))
    c.ok(m.Twalk(ROOT, 11))
    c.ok(m.Topen(11, 0))
    assert len(c.ok(m.Tread(11, 0, 8000)).data) > 60
    c.ok(m.Tclunk(11))


def dotl(c: Conversation) -> None:
    """9P2000.L."""
    flush_a_read(c, l.Tlopen(3, 0))
    c.ok(l.Tmkdir(ROOT, "directory", 0o755, 0))
    c.ok(m.Twalk(ROOT, 10, ("directory",)))
    c.ok(m.Twalk(10, 11))
    c.ok(l.Tlcreate(11, "file", l.L_RDWR, 0o644, 0))
    assert c.ok(m.Twrite(11, 3, b"content")).count == 7
    assert c.ok(m.Tread(11, 0, 100)).data == b"\0\0\0content"
    c.ok(l.Tfsync(11))
    assert c.ok(l.Tgetattr(11, l.GETATTR_ALL)).size == 10
    c.ok(l.Tsetattr(11, l.SETATTR_MODE | l.SETATTR_SIZE, mode=0o600, size=5))
    assert c.ok(l.Tlock(11, 1, 0, 0, 3, 77, "client")).status == 0
    c.ok(l.Tgetlock(11, 1, 0, 3, 77, "client"))
    c.ok(l.Tlink(10, 11, "other"))
    c.ok(l.Tsymlink(10, "link", "file", 0))
    c.ok(m.Twalk(10, 12, ("link",)))
    assert c.ok(l.Treadlink(12)).target == "file"
    c.ok(l.Tmknod(10, "pipe", 0o010600, 0, 0, 0))
    c.ok(m.Twalk(11, 13))
    c.ok(l.Txattrcreate(13, "user.key", 5, 0))
    c.ok(m.Twrite(13, 0, b"value"))
    c.ok(m.Tclunk(13))
    assert c.ok(l.Txattrwalk(11, 13, "user.key")).size == 5
    assert c.ok(m.Tread(13, 0, 5)).data == b"value"
    c.ok(l.Trename(12, ROOT, "moved"))
    c.ok(l.Trenameat(10, "other", 10, "another"))
    c.ok(l.Tunlinkat(10, "another", 0))
    c.ok(m.Tremove(12))
    c.ok(m.Twalk(10, 14))
    c.ok(l.Tlopen(14, 0))
    assert len(c.ok(l.Treaddir(14, 0, 4000)).data) > 60
    c.ok(l.Tstatfs(ROOT))
    for fid in (11, 13, 14):
        c.ok(m.Tclunk(fid))


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server that asks for authentication."""
    argv = [sys.executable, str(SERVER), str(tmp_path), "auth"]
    with servers.start(argv, listen="9p://127.0.0.1:0") as server:
        yield int(server.url.rpartition(":")[2])
        assert "Traceback" not in server.stderr()


@pytest.mark.interop
@pytest.mark.conformance(1, 129)
@pytest.mark.feature("judge-tshark")
@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_the_dissector_reads_a_conversation_of_every_message(dialect: Dialect, port: int, tmp_path: Path) -> None:
    talk = Conversation(port, dialect)
    with talk.socket:
        begin(talk)
        dotl(talk) if dialect is DOTL else older(talk)
    assert {frame[4] for _, frame in talk.frames} == set(dialect.decode_t) | set(dialect.decode_r)
    layers = dissect(talk.frames, tmp_path / "conversation.pcap")
    assert len(layers) == len(talk.frames)
    for said, (to_server, frame) in zip(layers, talk.frames, strict=True):
        view = memoryview(frame)
        tag, message = dialect.decode(view) if to_server else dialect.decode_reply(view)
        assert ("_ws.malformed" in said) == is_misread(dialect, message), message
        ninep = said["9p"]
        assert (number(ninep["9p.msglen"]), number(ninep["9p.msgtype"])) == (len(frame), message.number)
        assert number(ninep["9p.tag"]) == tag
        agree(message, ninep)


def is_misread(dialect: Dialect, message: Message) -> bool:
    """Frames that Wireshark 4.0 calls malformed and real peers send: see MISREAD; and a .u Tcreate whose extension is
    the empty string at the frame's end, as the Linux client sends it for every plain file."""
    return type(message) in MISREAD or (dialect is DOTU and isinstance(message, m.Tcreate) and not message.extension)


def agree(message: Message, said: dict[str, Any]) -> None:
    """The main fields are the same."""
    match message:
        case m.Tversion(msize=msize, version=version) | m.Rversion(msize=msize, version=version):
            assert (number(said["9p.maxsize"]), said["9p.version"]) == (msize, version)
        case m.Tattach(fid=fid, uname=uname, aname=aname):
            assert (number(said["9p.fid"]), said["9p.uname"], said["9p.aname"]) == (fid, uname, aname)
        case m.Twalk(fid=fid, newfid=newfid, wname=wname):
            assert (number(said["9p.fid"]), number(said["9p.newfid"])) == (fid, newfid)
            assert number(said["9p.nwalk"]) == len(wname)
        case m.Rwalk(wqid=wqid):
            assert number(said["9p.nqid"]) == len(wqid)
        case m.Tread(fid=fid, offset=offset, count=count):
            found = tuple(number(said[key]) for key in ("9p.fid", "9p.offset", "9p.count"))
            assert found == (fid, offset, count)
        case m.Twrite(fid=fid, offset=offset, data=data):
            found = tuple(number(said[key]) for key in ("9p.fid", "9p.offset", "9p.count"))
            assert found == (fid, offset, len(data))
        case m.Rread(data=data):
            assert number(said["9p.count"]) == len(data)
        case m.Tflush(oldtag=oldtag):
            assert number(said["9p.oldtag"]) == oldtag
        case m.Rerror(ename=ename):
            assert said["9p.ename"] == ename
        case l.Rgetattr(size=size, data_version=version):
            assert (number(said["9p.size"]), number(said["9p.dataversion"])) == (size, version)
        case _ if hasattr(message, "fid"):
            assert number(said["9p.fid"]) == message.fid
