"""Frames out of bytes: in any portions, never larger than allowed, never copied more than promised."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proto.golden import GOLDEN

from ninep.proto.errors import ProtocolError
from ninep.proto.framing import BUSY_BYTES, FIRST_BYTES, QUIET_TURNS, Framer
from ninep.proto.messages import Tclunk, Tread, Twrite
from ninep.proto.version import DOTL

MIB = 1 << 20


def write(size: int) -> bytes:
    """A Twrite frame of `size` bytes."""
    return DOTL.encode(1, Twrite(1, 0, bytes([size % 251]) * (size - 23)))


def receive(framer: Framer, stream: bytes, portion: int) -> list[bytes]:
    """The frames, copied, when at most `portion` bytes arrive at a time."""
    got: list[bytes] = []
    rest = memoryview(stream)
    while rest:
        room = framer.writable()
        n = min(len(room), portion, len(rest))
        room[:n] = rest[:n]
        framer.received(n)
        rest = rest[n:]
        got += [bytes(framer.view[start:end]) for start, end in framer.frames()]
    return got


@pytest.mark.conformance(5)
@pytest.mark.feature("framing")
def test_frames_arrive_one_byte_at_a_time() -> None:
    frames = [g.frame for g in GOLDEN]
    assert receive(Framer(), b"".join(frames), 1) == frames


@pytest.mark.conformance(6)
@pytest.mark.feature("framing")
def test_100_frames_in_one_segment() -> None:
    frames = [DOTL.encode(tag, Tread(tag, 0, 4096)) for tag in range(100)]
    framer = Framer()
    room = framer.writable()
    room[: 100 * 23] = b"".join(frames)
    framer.received(100 * 23)
    places = list(framer.frames())
    assert [bytes(framer.view[a:b]) for a, b in places] == frames
    assert framer.pending_bytes == 0


@pytest.mark.feature("framing")
@settings(max_examples=150)
@given(
    sizes=st.lists(st.sampled_from([7, 11, 23, 4096, 8191, 8192, 8193, 65536, 65537, 200_000, MIB]), max_size=12),
    portions=st.lists(st.sampled_from([1, 3, 7, 1000, 8192, 70_000, 2 * MIB]), min_size=1, max_size=6),
    seed=st.integers(0, 1 << 32),
)
def test_any_portions_give_the_same_frames_and_held_views_stay_true(
    sizes: list[int], portions: list[int], seed: int
) -> None:
    rng = random.Random(seed)
    frames = [write(size) if size >= 23 else DOTL.encode(1, Tclunk(1))[:11] for size in sizes]
    rest = memoryview(b"".join(frames))
    framer = Framer(MIB)
    got: list[bytes] = []
    held: list[tuple[memoryview, bytes]] = []
    turn = 0
    while rest:
        room = framer.writable()
        n = min(len(room), max(portions[turn % len(portions)], len(rest) // 2000), len(rest))
        turn += 1
        room[:n] = rest[:n]
        framer.received(n)
        rest = rest[n:]
        keeps = False
        for start, end in framer.frames():
            got.append(bytes(framer.view[start:end]))
            if rng.random() < 0.3:
                held.append((framer.view[start:end], got[-1]))
                keeps = True
        if keeps:
            framer.detach()
        if rng.random() < 0.1:
            framer.shrink()
    assert got == frames
    assert all(bytes(view) == copy for view, copy in held)
    assert framer.buffer_bytes <= MIB


def test_without_detach_the_memory_of_a_view_is_used_again() -> None:
    """The negative control of the test above: detach is what keeps a view true."""
    framer = Framer(MIB)
    kept = {}
    for held in (False, True):
        list(framer.feed(write(100)))
        view = framer.view[0:100]
        before = bytes(view)
        if held:
            framer.detach()
        list(framer.feed(DOTL.encode(1, Tclunk(7)) * 20))
        kept[held] = bytes(view) == before
    assert kept == {False: False, True: True}


@pytest.mark.conformance(7)
@pytest.mark.hostile(1)
@pytest.mark.parametrize("size", range(7))
def test_a_size_below_7_ends_the_connection(size: int) -> None:
    framer = Framer()
    with pytest.raises(ProtocolError):
        list(framer.feed(size.to_bytes(4, "little")))
    with pytest.raises(ProtocolError):
        list(framer.frames())


@pytest.mark.hostile(1)
def test_eight_zero_bytes_do_not_spin() -> None:
    with pytest.raises(ProtocolError):
        list(Framer().feed(bytes(8)))


@pytest.mark.conformance(8)
@pytest.mark.hostile(2)
@pytest.mark.parametrize("size", [MIB + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_size_above_msize_is_refused_before_a_byte_is_allocated(size: int) -> None:
    framer = Framer(MIB)
    room = framer.writable()
    room[:4] = size.to_bytes(4, "little")
    framer.received(4)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            list(framer.frames())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024
    assert framer.buffer_bytes == FIRST_BYTES


@pytest.mark.hostile(2)
def test_with_a_larger_limit_the_same_frame_is_waited_for() -> None:
    """The negative control: it is the limit that refuses, not the number."""
    framer = Framer(MIB + 1)
    assert list(framer.feed((MIB + 1).to_bytes(4, "little"))) == []
    assert framer.pending_bytes == 4


def test_a_frame_of_exactly_msize_is_taken() -> None:
    framer = Framer(MIB)
    assert receive(framer, write(MIB), 1 << 30) == [write(MIB)]
    assert framer.buffer_bytes == MIB


@pytest.mark.conformance(26)
def test_the_limit_may_change_between_two_frames() -> None:
    framer = Framer(FIRST_BYTES)
    stream = write(100) + write(9000)
    room = framer.writable()
    room[: len(room)] = stream[: len(room)]
    framer.received(len(room))
    frames = framer.frames()
    assert next(frames) == (0, 100)
    framer.limit = 10_000
    assert list(frames) == []
    assert framer.pending_bytes == FIRST_BYTES - 100
    assert len(list(framer.feed(stream[FIRST_BYTES:]))) == 1


def test_a_begun_frame_shows_as_pending() -> None:
    framer = Framer()
    assert framer.pending_bytes == 0
    assert list(framer.feed(write(100)[:3])) == []
    assert framer.pending_bytes == 3
    assert len(list(framer.feed(write(100)[3:]))) == 1
    assert framer.pending_bytes == 0


def test_an_idle_connection_costs_less_than_64_KiB() -> None:
    tracemalloc.start()
    try:
        framers = [Framer() for _ in range(16)]
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(framers) == 16
    assert current / 16 < 16 * 1024


def test_a_large_buffer_is_given_back_after_quiet_turns_or_when_told() -> None:
    framer = Framer(MIB)
    receive(framer, write(MIB), 1 << 30)
    for _ in range(2 * (QUIET_TURNS + 2)):
        receive(framer, write(100), 1 << 30)
    assert framer.buffer_bytes == FIRST_BYTES
    receive(framer, write(MIB), 1 << 30)
    assert framer.buffer_bytes == MIB
    framer.shrink()
    assert framer.buffer_bytes == FIRST_BYTES


def test_shrink_keeps_what_is_pending() -> None:
    framer = Framer(MIB)
    list(framer.feed(write(MIB)[:500_000]))
    framer.shrink()
    assert framer.pending_bytes == 500_000
    assert len(list(framer.feed(write(MIB)[500_000:]))) == 1


def test_large_writes_are_received_without_being_copied_again() -> None:
    """Sixteen 1 MiB frames in portions as a socket gives them: each starts at the front and never moves."""
    framer = Framer(MIB)
    receive(framer, write(MIB), 1 << 30)
    one = write(MIB)
    for _ in range(16):
        filled = 0
        while filled < MIB:
            room = framer.writable()
            assert framer.pending_bytes == filled
            n = min(len(room), 100_000, MIB - filled)
            room[:n] = one[filled : filled + n]
            framer.received(n)
            filled += n
            places = list(framer.frames())
        assert places == [(0, MIB)]
        assert bytes(framer.view[0:MIB]) == one
    assert framer.buffer_bytes == MIB


def test_a_busy_stream_of_small_frames_gets_a_larger_buffer() -> None:
    framer = Framer(MIB)
    frame = DOTL.encode(1, Tread(1, 0, 4096))
    assert len(receive(framer, frame * 10_000, 1 << 30)) == 10_000
    assert framer.buffer_bytes == BUSY_BYTES
    for _ in range(3 * QUIET_TURNS):  # half full is not quiet
        receive(framer, frame * 1000, 1 << 30)
    assert framer.buffer_bytes == BUSY_BYTES


def test_taking_room_while_whole_frames_wait_is_a_mistake_of_ours() -> None:
    framer = Framer()
    room = framer.writable()
    room[: len(room)] = DOTL.encode(1, Tclunk(1)) * (len(room) // 11) + b"\x0b" * (len(room) % 11)
    framer.received(len(room))
    framer.writable()  # grows once
    with pytest.raises(AssertionError):
        for _ in range(3):
            framer.received(len(framer.writable()))
