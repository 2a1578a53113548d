"""What does it cost to read or write one 9P message?  Nanoseconds, the best of seven rounds, call included."""

from __future__ import annotations

import socket
import threading
import time
import timeit

from bench.measure import Bench, Row
from ninep.proto.codec import Message
from ninep.proto.dotl import Rgetattr, Tgetattr, Tlopen
from ninep.proto.framing import Framer
from ninep.proto.messages import Rclunk, Rwalk, Tclunk, Tread, Twalk, Twrite, read_header
from ninep.proto.records import pack_dirents, unpack_dirents
from ninep.proto.types import Entry, Qid
from ninep.proto.version import DOTL

ROUNDS = 7
CALLS = 50_000
MIB = 1 << 20
QID = Qid(0x80, 1, 2)
MESSAGES: list[Message] = [
    Tread(1, 1 << 40, 4096), Twalk(1, 2), Twalk(1, 2, ("hello",)), Twalk(1, 2, ("usr", "local", "lib", "x.so")),
    Tgetattr(1, 0x7FF), Tlopen(1, 0), Tclunk(1), Twrite(1, 0, bytes(4096)), Rclunk(), Rwalk((QID,)),
    Rgetattr(0x7FF, QID, 0o100644, 0, 0, 1, 0, 5, 4096, 8, 9, 9, 9, 9, 9, 9),
]  # fmt: skip


def nanoseconds(call: object, calls: int = CALLS) -> float:
    """The best time of one call."""
    return min(timeit.repeat(call, number=calls, repeat=ROUNDS)) / calls * 1e9  # type: ignore[arg-type]  # a callable


def messages(bench: Bench) -> None:
    for msg in MESSAGES:
        frame = memoryview(DOTL.encode(1, msg))
        decode = DOTL.decode_reply if msg.number % 2 else DOTL.decode
        reading = nanoseconds(lambda decode=decode, frame=frame: decode(frame, 0, len(frame)))
        writing = nanoseconds(lambda msg=msg: DOTL.encode(1, msg))
        names = getattr(msg, "wname", ())
        label = type(msg).__name__ + (f" {len(names)} names" if isinstance(msg, Twalk) else "")
        bench.add(Row(f"codec: decode {label}", reading, "ns"))
        bench.add(Row(f"codec: encode {label}", writing, "ns"))
    bench.add(Row("codec: encode header of an Rread", nanoseconds(lambda: read_header(1, 4096)), "ns"))
    entries = [Entry(f"file{i}", QID, 8, i + 1) for i in range(100)]
    raw, _ = pack_dirents(entries, MIB)
    unpacking = nanoseconds(lambda: unpack_dirents(raw), 500) / 100
    packing = nanoseconds(lambda: pack_dirents(entries, MIB), 500) / 100
    bench.add(Row("codec: decode a directory entry", unpacking, "ns"))
    bench.add(Row("codec: encode a directory entry", packing, "ns"))


def frames(bench: Bench) -> None:
    """Small frames out of one buffer, and large ones out of a socket."""
    stream = DOTL.encode(1, Tread(1, 0, 4096)) * 2800
    framer = Framer(MIB)
    for _ in framer.feed(stream):
        pass

    def turn() -> None:
        room = framer.writable()
        room[: len(stream)] = stream
        framer.received(len(stream))
        for start, end in framer.frames():
            DOTL.decode(framer.view, start, end)

    bench.add(Row("codec: frame and decode a Tread, 2800 in a segment", nanoseconds(turn, 20) / 2800, "ns"))
    for size in (65_536, 524_288, MIB):
        used = receive_writes(DOTL.encode(1, Twrite(1, 0, bytes(size - 23))), 256 * MIB // size)
        bench.add(Row(f"codec: receive and decode Twrites of {size >> 10} KiB", used / 256 * 1e6, "us/MiB"))


def receive_writes(frame: bytes, count: int) -> float:
    """CPU seconds to receive `count` frames from a socket."""
    near, far = socket.socketpair()

    def send() -> None:
        for _ in range(count):
            far.sendall(frame)

    sender = threading.Thread(target=send)
    sender.start()
    framer = Framer(MIB)
    before = time.thread_time()
    got = 0
    while got < count:
        framer.received(near.recv_into(framer.writable()))
        for start, end in framer.frames():
            DOTL.decode(framer.view, start, end)
            got += 1
    used = time.thread_time() - before
    sender.join()
    near.close()
    far.close()
    return used


def measure(bench: Bench) -> None:
    messages(bench)
    frames(bench)
