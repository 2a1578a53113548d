"""protocol.md 4.1: broken, slow and endless frames, on a live connection.  The server answers or hangs up."""

from __future__ import annotations

import logging
import random
import socket
import struct
import sys
import tracemalloc
from pathlib import Path

import pytest
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw9p import RawClient, Refused, serving
from trees import Parking, SlowDir, Tree

from ninep.edges import stream
from ninep.edges.policy import Peer, Policy
from ninep.edges.stream import serve_wire
from ninep.edges.wire import SocketWire
from ninep.file import Call, File, Handle
from ninep.limits import Limits
from ninep.node import Node
from ninep.proto import dotl as l
from ninep.proto import messages as m
from ninep.proto.version import P2000
from ninep.servers import ram

sys.path.append(str(Path(__file__).parents[1] / "proto"))
from golden import GOLDEN  # lies beside the codec's own tests


async def hang_up_seconds(c: RawClient, at_most: float = 300.0) -> float:
    """How long (on trio's clock) until the server closes; nothing may be said until then."""
    start = trio.current_time()
    with trio.fail_after(at_most):
        while (n := await next_bytes(c)) != 0:
            assert n is None, "said something"
    return trio.current_time() - start


async def next_bytes(c: RawClient) -> int | None:
    await c.wire.wait_readable()
    return c.wire.recv_into(memoryview(bytearray(65536)))


# -- frames that do not end


@pytest.mark.hostile(5)
async def test_a_silent_stranger_is_hung_up_after_ten_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(ram.tree()) as server:
        assert await hang_up_seconds(server.connect()) == pytest.approx(10, abs=0.1)


@pytest.mark.hostile(5)
async def test_a_stranger_who_dribbles_is_hung_up_after_ten_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(ram.tree()) as server:
        c = server.connect()
        async with trio.open_nursery() as nursery:

            async def dribble() -> None:
                for byte in P2000.encode(0xFFFF, m.Tversion(8192, "9P2000")):
                    await trio.sleep(3)
                    c.send_bytes(bytes([byte]))

            nursery.start_soon(dribble)
            assert await hang_up_seconds(c) == pytest.approx(10, abs=0.1)
            nursery.cancel_scope.cancel()


@pytest.mark.hostile(3)
@pytest.mark.sec(58)
@pytest.mark.parametrize("sent", [1, 4, 7, 20])
async def test_a_frame_begun_and_never_ended_is_given_thirty_seconds(
    autojump_clock: trio.testing.MockClock, sent: int
) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await trio.sleep(1000)
        c.send_bytes(c.dialect.encode(1, m.Twrite(0, 0, b"x" * 100))[:sent])
        assert await hang_up_seconds(c) == pytest.approx(30, abs=0.1)


@pytest.mark.hostile(4)
@pytest.mark.sec(58)
async def test_a_byte_now_and_then_does_not_move_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        async with trio.open_nursery() as nursery:

            async def dribble() -> None:
                for byte in c.dialect.encode(1, m.Twalk(0, 5, ())):
                    c.send_bytes(bytes([byte]))
                    await trio.sleep(25)

            nursery.start_soon(dribble)
            assert await hang_up_seconds(c) == pytest.approx(30, abs=0.1)
            nursery.cancel_scope.cancel()


@pytest.mark.hostile(3, 4)
@pytest.mark.sec(58)
async def test_without_the_frame_deadline_a_dribbler_stays_for_hours(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: it is the deadline that ends him."""
    async with serving(ram.tree(), limits=Limits(frame_seconds_max=1e9)) as server:
        c = await server.client()
        c.send_bytes(b"\x20")
        with pytest.raises(trio.TooSlowError):
            await hang_up_seconds(c, 7200)


@pytest.mark.conformance(5)
@pytest.mark.sec(58)
async def test_an_honest_dribbler_and_an_idle_client_are_kept(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        for byte in c.dialect.encode(1, l.Tgetattr(0, 1)):
            c.send_bytes(bytes([byte]))
            await trio.sleep(0.5)
        assert (await c.recv())[0] == 1
        await trio.sleep(1_000_000)
        assert (await c.rpc(l.Tgetattr(0, 1))).valid == 1


# -- frames that are none


@pytest.mark.conformance(7)
@pytest.mark.hostile(1)
@pytest.mark.sec(51)
@pytest.mark.parametrize("size", range(7))
async def test_a_size_below_seven_ends_the_connection(size: int) -> None:
    async with serving(ram.tree()) as server:
        c, other = await server.client(), await server.client()
        c.send_bytes(struct.pack("<IBH", size, 120, 1) + bytes(20))
        assert await c.hung_up()
        assert (await other.rpc(l.Tgetattr(0, 1))).valid == 1


@pytest.mark.conformance(8)
@pytest.mark.hostile(2)
@pytest.mark.sec(51)
@pytest.mark.parametrize("size", [0xFFFFFFFF, 65537, 1 << 31])
async def test_a_size_above_msize_ends_the_connection_before_memory_is_taken(size: int) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(msize=65536)
        tracemalloc.start()
        try:
            c.send_bytes(struct.pack("<IBH", size, 118, 1) + bytes(1000))
            assert await c.hung_up()
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.conformance(12)
@pytest.mark.hostile(15)
@pytest.mark.sec(51)
@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_a_reply_type_from_a_client_ends_its_connection_alone(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        other = await server.client(dialect)
        for number in (0, 6, 7, 101, 106, 107, 117, 255):
            c = await server.client(dialect)
            c.send_bytes(struct.pack("<IBH", 7, number, 1))
            assert await c.hung_up(), number
        await other.walk(0, 1)
        assert server.node.live["sessions"] == 1


@pytest.mark.conformance(11, 13)
@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_an_unknown_request_is_an_error_under_its_tag_and_the_next_works(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        unknown = set(range(2, 256, 2)) - {6, 106} - set(c.dialect.decode_t)
        for tag, number in enumerate(sorted(unknown)):
            c.send_bytes(struct.pack("<IBH", 12, number, tag) + b"hello")
            got, reply = await c.recv()
            assert got == tag
            refused = Refused(reply)
            assert refused.errno in (0, 95)
            assert refused.errno or refused.ename.startswith("operation not supported")
        await c.walk(0, 1)


@pytest.mark.conformance(5, 6, 13)
@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_frames_byte_by_byte_and_a_hundred_in_one_segment_are_answered(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        for byte in c.dialect.encode(9, m.Twalk(0, 1, ())):
            c.send_bytes(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert await c.recv() == (9, m.Rwalk(()))
        c.send_all(
            *((tag, m.Twalk(0, 100 + tag, ())) for tag in range(50)), *((50 + tag, m.Tclunk(7)) for tag in range(50))
        )
        got = [await c.recv() for _ in range(100)]
        assert [tag for tag, _ in got] == list(range(100))
        assert sum(isinstance(reply, m.Rwalk) for _, reply in got) == 50


@pytest.mark.hostile(14)
async def test_a_flood_of_unknown_types_is_answered_and_then_hung_up() -> None:
    async with serving(ram.tree(), limits=Limits(bad_messages_max=100)) as server:
        c = await server.client()
        c.send_bytes(struct.pack("<IBH", 7, 200, 5) * 5000)
        refused = 0
        with pytest.raises(EOFError):
            while True:
                assert await c.recv() == (5, l.Rlerror(95))
                refused += 1
        assert refused == 100
        assert Limits().bad_messages_max == 1000


@pytest.mark.hostile(9, 10, 11)
@pytest.mark.sec(51)
async def test_a_body_that_lies_about_itself_is_an_error_and_the_next_works() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await c.file(1, "f", b"content")
        bodies = [
            (118, struct.pack("<IQI", 1, 0, 1000) + b"short"),
            (118, struct.pack("<IQI", 1, 0, 2) + b"longer than told"),
            (118, struct.pack("<IQI", 1, 0, 0xFFFFFFFF) + b"x"),
            (110, struct.pack("<IIH", 0, 5, 0xFFFF) + b"\1\0a"),
            (110, struct.pack("<IIHH", 0, 5, 1, 0xFFFF) + b"a"),
            (116, struct.pack("<IQI", 1, 0, 10) + b"\0"),
            (120, b"\1\0"),
            (120, b""),
        ]
        for number, body in bodies:
            c.send_bytes(struct.pack("<IBH", 7 + len(body), number, 3) + body)
            assert await c.recv() in ((3, l.Rlerror(22)), (3, l.Rlerror(36))), number
        assert await c.read(1) == b"content"


# -- another protocol

STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl/8\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(190),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(8),
    "ones": b"\xff" * 64,
    "smtp": b"EHLO x\r\n",
    "a 9P reply": P2000.encode(0xFFFF, m.Rversion(8192, "9P2000")),
    "a broken version": struct.pack("<IBHIH", 13, 100, 0xFFFF, 8192, 500),
    "no version": P2000.encode(1, m.Tclunk(1)),
    "a long version": P2000.encode(0xFFFF, m.Tversion(8192, "9P2000" + "x" * 300)),
}


@pytest.mark.hostile(16)
@pytest.mark.sec(10)
@pytest.mark.parametrize("name", STRANGERS)
async def test_another_protocol_is_hung_up_quietly(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(ram.tree()) as server:
        c = server.connect()
        c.send_bytes(STRANGERS[name])
        assert await hang_up_seconds(c) < 5
    assert caplog.records == []


@pytest.mark.hostile(1, 2)
@pytest.mark.parametrize("data", [bytes(8), b"\xff\xff\xff\xff" + bytes(40), bytes(1 << 20)])
async def test_over_a_real_socket_too_zeros_do_not_spin_and_four_gigabytes_are_not_allocated(data: bytes) -> None:
    node = Node()
    async with trio.open_nursery() as nursery:
        ours, theirs = socket.socketpair()
        with ours:
            tracemalloc.start()
            try:
                nursery.start_soon(
                    serve_wire, SocketWire(theirs), node, ram.tree(), nursery, Policy(trust_uname=True), Peer()
                )
                ours.setblocking(False)
                ours.send(data)
                with trio.fail_after(5):
                    await trio.lowlevel.wait_readable(ours)
                try:
                    assert ours.recv(100) == b""
                except ConnectionResetError:
                    pass  # it hung up before it had read everything
                assert tracemalloc.get_traced_memory()[1] < 1 << 20
            finally:
                tracemalloc.stop()
    assert node.live["sessions"] == node.live["connections"] == 0


# -- replies that nobody takes


class Pump:
    """A client that sends and never reads."""

    def __init__(self, c: RawClient) -> None:
        self.wire = c.wire
        self.wire._other.capacity = 64 << 10  # what the server has not read
        self.wire.capacity = 64 << 10  # what we have not read
        self.sent = 0

    async def push(self, data: bytes, total: int) -> None:
        """Send `data` again and again until the server stops reading."""
        while self.sent < total:
            with trio.move_on_after(1) as scope:
                await self.wire.wait_writable()
            if scope.cancelled_caught:
                return
            rest = memoryview(data)[self.sent % len(data) :]
            self.sent += self.wire.send([rest]) or 0


@pytest.mark.hostile(17)
@pytest.mark.sec(94, 97)
async def test_who_takes_no_replies_is_not_read_from_and_dropped_after_a_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(msize=65536)
        await c.file(1, "f", b"x" * 60_000)
        pump = Pump(c)
        tracemalloc.start()
        try:
            start = trio.current_time()
            await pump.push(c.dialect.encode(1, m.Tread(1, 0, 60_000)), 50 << 20)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert pump.sent < 1 << 20, "reading stopped"
        (connection,) = server.node.connections
        assert connection.out_bytes < (8 << 20) + 200_000  # type: ignore[attr-defined]  # a Connection
        assert peak < 12 << 20, peak
        other = await server.client()
        assert (await other.rpc(l.Tgetattr(0, 1))).valid == 1, "others are served"
        with trio.fail_after(200):
            while server.node.live["sessions"] > 1:
                await trio.sleep(1)
        assert 55 < trio.current_time() - start < 65


@pytest.mark.hostile(17)
@pytest.mark.sec(94)
async def test_without_the_bound_on_queued_replies_memory_grows_with_the_requests(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The control: it is the bound that stops the reading."""
    async with serving(ram.tree(), limits=Limits(queued_bytes_max=1 << 40)) as server:
        c = await server.client(msize=65536)
        await c.file(1, "f", b"x" * 60_000)
        pump = Pump(c)
        await pump.push(c.dialect.encode(1, m.Tread(1, 0, 4000)), 1 << 18)
        (connection,) = server.node.connections
        assert connection.out_bytes > 32 << 20  # type: ignore[attr-defined]  # a Connection


@pytest.mark.hostile(17)
@pytest.mark.sec(97)
async def test_without_the_deadline_for_taking_replies_he_stays(autojump_clock: trio.testing.MockClock) -> None:
    """The control."""
    async with serving(ram.tree(), limits=Limits(send_seconds_max=1e9, queued_bytes_max=1 << 20)) as server:
        c = await server.client(msize=65536)
        await c.file(1, "f", b"x" * 60_000)
        await Pump(c).push(c.dialect.encode(1, m.Tread(1, 0, 60_000)), 1 << 20)
        await trio.sleep(7200)
        assert server.node.live["sessions"] == 1


@pytest.mark.hostile(17)
@pytest.mark.sec(97)
async def test_a_slow_reader_who_takes_something_is_kept_and_his_flush_is_heard(
    autojump_clock: trio.testing.MockClock,
) -> None:
    parking = Parking()
    async with serving(Tree(f=parking, big=Zeros())) as server:
        c = await server.client(msize=65536)
        await c.walk(0, 1, "f")
        await c.open(1)
        await c.walk(0, 2, "big")
        await c.open(2)
        c.send(7, m.Tread(1, 0, 10))
        await c.quiet()
        pump = Pump(c)
        request = c.dialect.encode(1, m.Tread(2, 0, 60_000))
        await pump.push(request, len(request) * 500)
        # 500 requests are on their way, most of them unread; a flush behind them is heard once replies are taken
        pump.wire._other.capacity = 1 << 20
        c.send(9, m.Tflush(7))
        tags = []
        while len(tags) < pump.sent // len(request) + 1:
            await trio.sleep(0.2)  # far below 300 kB a second
            tags.append((await c.recv(100))[0])
        assert tags[-1] == 9
        assert 7 not in tags


class Zeros(File):
    """As many zeros as anybody asks for."""

    perm = 0o666

    def open(self, call: Call, omode: int) -> Handle:
        return ZerosHandle()


class ZerosHandle(Handle):
    def read(self, call: Call, offset: int, count: int) -> bytes:
        return bytes(count)


class Waiting(File):
    """A file whose reads wait for `gate` and then bring all they may."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.asked = 0

    def open(self, call: Call, omode: int) -> Handle:
        return WaitingHandle(self)


class WaitingHandle(Handle):
    def __init__(self, file: Waiting) -> None:
        self.file = file

    async def read(self, call: Call, offset: int, count: int) -> bytes:  # type: ignore[override]  # an Answer too
        self.file.asked += count
        await self.file.gate.wait()
        return bytes(count)


@pytest.mark.hostile(17)
@pytest.mark.sec(94)
async def test_a_thousand_reads_that_wait_do_not_hold_a_thousand_times_msize() -> None:
    file = Waiting()
    async with serving(Tree(f=file)) as server:
        c = await server.client(msize=1 << 20)
        await c.walk(0, 1, "f")
        await c.open(1)
        c.send_all(*((tag, m.Tread(1, 0, 1 << 20)) for tag in range(1000)))
        await c.quiet()
        assert file.asked < 64 << 20, file.asked
        file.gate.set()
        for _ in range(1000):
            assert len((await c.recv())[1].data) >= 16_383  # type: ignore[attr-defined]  # an Rread
        assert len(await c.read(1, 0, 1 << 20)) > 1_000_000, "what was owed has been paid"


# -- fuzz


async def poke(c: RawClient, frame: bytes) -> bool:
    """Send a frame; whether the connection is still good for more.  It must be quiet or closed afterwards."""
    c.send_bytes(frame)
    await trio.testing.wait_all_tasks_blocked()
    try:
        with trio.fail_after(5):
            while (n := c.wire.recv_into(memoryview(bytearray(1 << 17)))) is not None:
                if n == 0:
                    return False
    except OSError:
        return False
    (connection,) = c.node.connections
    return connection.framer.pending_bytes == 0  # type: ignore[attr-defined]  # a Connection


def fuzz_tree() -> Tree:
    return Tree(f=Parking(), d=ram.tree(), slow=SlowDir())


async def fuzz_client(server: object, dialect: str) -> RawClient:
    """A client whose low fids all point somewhere."""
    c: RawClient = await server.client(dialect)  # type: ignore[attr-defined]  # a Serving
    await c.walk(0, 1, "d")
    await c.file(2, f"file {len(server.clients)}", b"content", root=1)  # type: ignore[attr-defined]  # a Serving
    await c.walk(0, 3, "f")
    await c.open(3, 2)
    await c.walk(1, 4)
    await c.open(4)
    return c


async def fuzz(dialect: str, seed: int, rounds: int) -> None:
    """Flip bits of every golden request on a live connection."""
    rng = random.Random(seed)
    frames = [g.frame for g in GOLDEN if g.dialect.name == dialect and g.frame[4] % 2 == 0]
    async with serving(fuzz_tree()) as server:
        c = await fuzz_client(server, dialect)
        for _ in range(rounds):
            frame = bytearray(rng.choice(frames))
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                bit = rng.randrange(0 if rng.random() < 0.05 else 32, len(frame) * 8)
                frame[bit // 8] ^= 1 << bit % 8
            if rng.random() < 0.7 and len(frame) > 11:
                frame[7:11] = rng.randrange(6).to_bytes(4, "little")
            if not await poke(c, bytes(frame)):
                c.close()
                await trio.testing.wait_all_tasks_blocked()
                c = await fuzz_client(server, dialect)
        c.close()
        await trio.testing.wait_all_tasks_blocked()
        other = await server.client(dialect)
        await other.walk(0, 1)


@pytest.mark.hostile(18)
@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_golden_requests_with_flipped_bits_are_answered_or_hung_up(dialect: str) -> None:
    await fuzz(dialect, 18, 1500)


@pytest.mark.hostile(18)
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_a_hundred_thousand_flipped_requests_are_answered_or_hung_up(dialect: str) -> None:
    await fuzz(dialect, random.randrange(1 << 32), 100_000)


def one_connection(data: bytes) -> None:
    """Serve one connection that says `data` and hangs up."""

    async def main() -> None:
        async with serving(fuzz_tree()) as server:
            c = server.connect()
            c.send_bytes(data)
            await trio.testing.wait_all_tasks_blocked()
            c.close()

    trio.run(main)


VERSIONS = [P2000.encode(0xFFFF, m.Tversion(8192, name)) for name in ("9P2000", "9P2000.u", "9P2000.L", "8P")]
ATTACH = [
    P2000.encode(1, m.Tattach(0, 0xFFFFFFFF, "root", "")),
    *(g.frame for g in GOLDEN if type(g.message) is m.Tattach),
]


@pytest.mark.hostile(18)
@pytest.mark.sec(51)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(VERSIONS + ATTACH) | st.binary(max_size=80), max_size=6).map(b"".join))
def test_any_bytes_at_all_are_answered_or_hung_up(data: bytes) -> None:
    one_connection(data)


@pytest.mark.hostile(18)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(VERSIONS[:3]),
    st.lists(
        st.tuples(st.integers(2, 130).map(lambda n: n & ~1), st.integers(0, 3), st.binary(max_size=60)), max_size=8
    ),
)
def test_any_body_under_any_type_is_answered_or_hung_up(version: bytes, said: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(struct.pack("<IBH", 7 + len(body), number, tag) + body for number, tag, body in said)
    one_connection(version + ATTACH[0] + data)


@pytest.mark.hostile(18)
@pytest.mark.sec(51)
@pytest.mark.logs("internal error")
async def test_an_exception_that_a_decoder_lets_out_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: were the codec to let another exception out, these tests would fail."""

    def broken(view: memoryview, start: int, end: int) -> tuple[int, m.Tclunk]:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setitem(stream.ADAPTERS["9P2000"].dialect.decode_t, m.Tclunk.number, broken)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving(ram.tree()) as server:
            c = await server.client("9P2000")
            c.send_bytes(struct.pack("<IBHI", 11, m.Tclunk.number, 1, 1))
            await trio.sleep(1)
    assert caught.group_contains(struct.error)
