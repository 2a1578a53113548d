"""A 9P server that says exactly what a test tells it to say, on a thread and a socket pair.

It serves one directory of plain files correctly, unless `on` has another answer for a message class: a function of
(tag, message) that returns a Message, raw bytes, a list of either, or None for silence.
"""

from __future__ import annotations

import socket
import stat as _s
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec

from ninep.edges.dial import Link
from ninep.proto import dotl as L
from ninep.proto import messages as M
from ninep.proto.codec import Message
from ninep.proto.framing import Framer
from ninep.proto.records import StatRecord, pack_dirent, pack_stat
from ninep.proto.types import DMDIR, QTDIR, Qid
from ninep.proto.version import BY_NAME, error_reply

Reply = Message | bytes | list[Any] | None
ROOT = Qid(QTDIR, 0, 1)


class Fake:
    """One session.  `seen` is every request in order; `wait_for` blocks until one of a class has come."""

    def __init__(self, files: dict[str, bytes] | None = None, *, dialect: str = "9P2000.L", msize: int = 8192) -> None:
        self.files = {"a": b"hello\n"} if files is None else files
        self.dialect = BY_NAME[dialect]
        self.msize = msize
        self.on: dict[type[Message], Callable[[int, Any], Reply]] = {}
        self.seen: list[tuple[int, Message]] = []
        self.fids: dict[int, str] = {}  # the name; "" is the root
        self._came = threading.Condition()
        self._ours, self.sock = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="fake server")
        self._thread.start()

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.hang_up()
        self.sock.close()
        self._thread.join(5)
        self._ours.close()

    @property
    def link(self) -> Link:
        return Link(self.sock)

    def hang_up(self) -> None:
        try:
            self._ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def wait_for(self, kind: type[Message], count: int = 1) -> list[Any]:
        with self._came:
            assert self._came.wait_for(lambda: self._count(kind) >= count, 5), [type(m).__name__ for _, m in self.seen]
        return [m for _, m in self.seen if type(m) is kind]

    def _count(self, kind: type[Message]) -> int:
        return sum(type(m) is kind for _, m in self.seen)

    def send(self, tag: int, reply: Reply) -> None:
        """Say something unasked, from any thread."""
        if isinstance(reply, list):
            for one in reply:
                self.send(tag, one)
        elif reply is not None:
            self._ours.sendall(reply if isinstance(reply, bytes) else self.dialect.encode(tag, reply))

    def _run(self) -> None:
        framer = Framer(1 << 20)
        try:
            while n := self._ours.recv_into(framer.writable()):
                framer.received(n)
                for start, end in framer.frames():
                    tag, message = self.dialect.decode(framer.view, start, end)
                    message = type(message)(*(bytes(v) if isinstance(v, memoryview) else v for v in _values(message)))
                    answer = self.on.get(type(message), self.answer)
                    reply = answer(tag, message)
                    with self._came:
                        self.seen.append((tag, message))
                        self._came.notify_all()
                    self.send(tag, reply)
        except OSError:
            pass

    def error(self, errno: int, ename: str = "") -> Message:
        if self.dialect.name == "9P2000.L":
            return L.Rlerror(errno)
        return M.Rerror(ename, errno)

    def qid(self, name: str) -> Qid:
        return Qid(0, 0, 100 + list(self.files).index(name)) if name else ROOT

    def answer(self, tag: int, t: Any) -> Reply:
        """The correct answer."""
        match t:
            case M.Tversion():
                return M.Rversion(min(t.msize, self.msize), self.dialect.name)
            case M.Tattach():
                self.fids[t.fid] = ""
                return M.Rattach(ROOT)
            case M.Twalk():
                return self._walk(t)
            case L.Tlopen():
                return L.Rlopen(self.qid(self.fids[t.fid]), 0)
            case M.Topen():
                return M.Ropen(self.qid(self.fids[t.fid]), 0)
            case M.Tread():
                if not self.fids[t.fid]:
                    return M.Rread(self._records() if t.offset == 0 else b"")
                return M.Rread(self.files[self.fids[t.fid]][t.offset : t.offset + t.count])
            case M.Twrite():
                name = self.fids[t.fid]
                self.files[name] = self.files[name][: t.offset] + bytes(t.data)
                return M.Rwrite(len(t.data))
            case L.Treaddir():
                names = list(self.files)[t.offset :]
                return L.Rreaddir(
                    b"".join(pack_dirent(self.qid(n), i, 8, n) for i, n in enumerate(names, int(t.offset) + 1))
                )
            case L.Tgetattr():
                return self.getattr(self.fids[t.fid])
            case M.Tstat():
                return M.Rstat(self._record(self.fids[t.fid]))
            case M.Tclunk():
                self.fids.pop(t.fid, None)
                return M.Rclunk()
            case M.Tflush():
                return M.Rflush()
        return error_reply(self.dialect, L_UNSUPPORTED)

    def _walk(self, t: M.Twalk) -> Reply:
        if len(t.wname) > 1 or (t.wname and t.wname[0] not in self.files):
            return self.error(2, "file does not exist")
        self.fids[t.newfid] = t.wname[0] if t.wname else self.fids[t.fid]
        return M.Rwalk(tuple(self.qid(name) for name in t.wname))

    def getattr(self, name: str, **changes: int) -> L.Rgetattr:
        mode = _s.S_IFREG | 0o644 if name else _s.S_IFDIR | 0o755
        plain = L.Rgetattr(
            L.GETATTR_BASIC, self.qid(name), mode, 0, 0, 1, 0, len(self.files.get(name, b"")), 4096, 0, 1, 0, 2, 3, 4, 5
        )  # fmt: skip
        return msgspec.structs.replace(plain, **changes)

    def _record(self, name: str) -> StatRecord:
        perm = 0o644 if name else DMDIR | 0o755
        length = len(self.files[name]) if name else 0
        return StatRecord(0, 0, self.qid(name), perm, 1, 2, length, name or "/", "u", "g", "m")

    def _records(self) -> bytes:
        return b"".join(pack_stat(self._record(n), self.dialect.name == "9P2000.u") for n in self.files)


def _values(message: Message) -> list[Any]:
    return [getattr(message, f) for f in message.__struct_fields__]


class _Unsupported:
    errno = 95
    ename = "operation not supported"


L_UNSUPPORTED: Any = _Unsupported()
