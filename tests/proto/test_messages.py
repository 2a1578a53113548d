"""Every message: its bytes, its size, there and back again, cut short, made longer, flipped."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from proto.golden import GOLDEN, QID, Golden
from strategies import messages, tags

from ninep.proto.codec import BadMessage, Dialect, Message, Undecodable, UnknownMessage
from ninep.proto.dotl import Rgetattr, Rreaddir, Rreadlink, Tfsync, Tlcreate
from ninep.proto.errors import Ebadchar, Ebadmsg, Enametoolong, Erange, ProtocolError
from ninep.proto.messages import (
    Rclunk,
    Rread,
    Rwalk,
    Tattach,
    Tclunk,
    Tcreate,
    Tread,
    Tversion,
    Twalk,
    Twrite,
    read_header,
    readdir_header,
    write_header,
)
from ninep.proto.version import DIALECTS, DOTL, DOTU, P2000

SIZES = {  # fixed frame sizes, from the manuals; (without .u's fields, with them)
    "Tversion": 13, "Rversion": 13, "Tauth": (15, 19), "Rauth": 20, "Tattach": (19, 23), "Rattach": 20,
    "Rerror": (9, 13), "Tflush": 9, "Rflush": 7, "Twalk": 17, "Rwalk": 9, "Topen": 12, "Ropen": 24,
    "Tcreate": (18, 20), "Rcreate": 24, "Tread": 23, "Rread": 11, "Twrite": 23, "Rwrite": 11, "Tclunk": 11,
    "Rclunk": 7, "Tremove": 11, "Rremove": 7, "Tstat": 11, "Rstat": (58, 72), "Twstat": (62, 76), "Rwstat": 7,
    "Rlerror": 11, "Tstatfs": 11, "Rstatfs": 67, "Tlopen": 15, "Rlopen": 24, "Tlcreate": 25, "Rlcreate": 24,
    "Tsymlink": 19, "Rsymlink": 20, "Tmknod": 29, "Rmknod": 20, "Trename": 17, "Rrename": 7, "Treadlink": 11,
    "Rreadlink": 9, "Tgetattr": 19, "Rgetattr": 160, "Tsetattr": 67, "Rsetattr": 7, "Txattrwalk": 17,
    "Rxattrwalk": 15, "Txattrcreate": 25, "Rxattrcreate": 7, "Treaddir": 23, "Rreaddir": 11, "Tfsync": 11,
    "Rfsync": 7, "Tlock": 38, "Rlock": 8, "Tgetlock": 34, "Rgetlock": 30, "Tlink": 17, "Rlink": 7, "Tmkdir": 21,
    "Rmkdir": 20, "Trenameat": 19, "Rrenameat": 7, "Tunlinkat": 17, "Runlinkat": 7,
}  # fmt: skip

each_golden = pytest.mark.parametrize("golden", GOLDEN, ids=str)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)


def read(dialect: Dialect, frame: bytes) -> tuple[int, Message]:
    """A frame by the side that would receive it."""
    return (dialect.decode_reply if frame[4] % 2 else dialect.decode)(memoryview(frame))


def resized(frame: bytes) -> bytes:
    """The frame with its size field made true."""
    return len(frame).to_bytes(4, "little") + frame[4:]


@pytest.mark.conformance(1)
@pytest.mark.feature("proto-9p2000", "proto-dotu", "proto-dotl")
@each_golden
def test_a_message_encodes_to_its_golden_bytes(golden: Golden) -> None:
    assert golden.dialect.encode(golden.tag, golden.message) == golden.frame
    assert int.from_bytes(golden.frame[:4], "little") == len(golden.frame)


@pytest.mark.conformance(1)
@each_golden
def test_golden_bytes_decode_to_their_message(golden: Golden) -> None:
    assert read(golden.dialect, golden.frame) == (golden.tag, golden.message)


@pytest.mark.conformance(1)
@each_dialect
def test_every_message_has_a_golden_frame_and_its_listed_size(dialect: Dialect) -> None:
    assert {type(g.message) for g in GOLDEN if g.dialect is dialect} == set(dialect.messages.values())
    for cls in dialect.messages.values():
        listed = SIZES[cls.__name__]
        if isinstance(listed, tuple):
            listed = listed[dialect is not P2000]
        assert dialect.bytes_min(cls) == listed, cls


@pytest.mark.feature("proto-9p2000", "proto-dotu", "proto-dotl")
@each_dialect
def test_a_reply_has_the_number_after_its_request(dialect: Dialect) -> None:
    for number, cls in dialect.messages.items():
        if number % 2 == 0:
            assert dialect.messages[number + 1].__name__[1:] == cls.__name__[1:]


@pytest.mark.conformance(2)
@pytest.mark.feature("codec-property")
@each_dialect
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(data=st.data(), tag=tags)
def test_decoding_undoes_encoding(dialect: Dialect, data: st.DataObject, tag: int) -> None:
    msg = data.draw(messages(dialect))
    frame = dialect.encode(tag, msg)
    assert read(dialect, frame) == (tag, msg)
    padded = b"before!" + frame + b"after"
    inner = dialect.decode_reply if frame[4] % 2 else dialect.decode
    assert inner(memoryview(padded), 7, 7 + len(frame)) == (tag, msg)


@pytest.mark.conformance(2)
@pytest.mark.parametrize("length", [0, 1, 0x7FFF, 0x8000, 0xFFFF])
def test_strings_of_every_length_class_travel(length: int) -> None:
    text = "x" * length
    for msg in (Tversion(1, text), Tattach(1, 2, text, text), Tcreate(1, text, 0, 0)):
        assert read(P2000, P2000.encode(1, msg)) == (1, msg)


@pytest.mark.conformance(3)
@pytest.mark.hostile(6)
@each_golden
def test_a_body_cut_short_anywhere_is_a_decode_error(golden: Golden) -> None:
    for size in range(7, len(golden.frame)):
        if isinstance(golden.message, Tfsync) and size == 11:
            continue
        with pytest.raises(BadMessage) as caught:
            read(golden.dialect, resized(golden.frame[:size]))
        assert caught.value.tag == golden.tag
        assert caught.value.error.errno == 22


@pytest.mark.conformance(4)
@pytest.mark.hostile(11)
@each_golden
def test_a_byte_too_many_is_refused(golden: Golden) -> None:
    for more in (b"\0", b"\xff", b"garbage"):
        with pytest.raises(BadMessage):
            read(golden.dialect, resized(golden.frame + more))


@pytest.mark.conformance(4, 127)
def test_Tfsync_may_have_11_or_15_bytes() -> None:
    whole = DOTL.encode(5, Tfsync(3, 1))
    assert read(DOTL, whole) == (5, Tfsync(3, 1))
    assert read(DOTL, resized(whole[:11])) == (5, Tfsync(3, 0))
    for size in (12, 13, 14):
        with pytest.raises(BadMessage):
            read(DOTL, resized(whole[:size]))


@pytest.mark.conformance(9)
@pytest.mark.hostile(13)
def test_a_NUL_in_a_string_is_EINVAL_and_never_the_shorter_name() -> None:
    for dialect, msg in (
        (P2000, Tversion(1, "9P2000X")),
        (DOTU, Tattach(1, 2, "bobX", "")),
        (DOTU, Tattach(1, 2, "bob", "tmpX")),
        (P2000, Tcreate(1, "nameX", 0, 0)),
        (DOTL, Twalk(1, 2, ("a", "nameX"))),
        (DOTL, Tlcreate(1, "nameX", 0, 0, 0)),
    ):
        for nul in (b"\0", b"\0" + b"Y"):
            frame = dialect.encode(9, msg)
            if len(nul) == 1:
                frame = frame.replace(b"X", nul)
            else:
                frame = frame.replace(b"eX", nul).replace(b"bX", nul).replace(b"pX", nul).replace(b"0X", nul)
            with pytest.raises(BadMessage) as caught:
                dialect.decode(memoryview(frame))
            assert caught.value.error.errno == 22
            assert caught.value.tag == 9


@pytest.mark.conformance(9)
def test_a_NUL_is_not_sent_either() -> None:
    for msg in (Tlcreate(1, "a\0b", 0, 0, 0), Twalk(1, 2, ("a\0b",)), Rreadlink("a\0b")):
        with pytest.raises(Ebadchar):
            DOTL.encode(1, msg)


BAD_UTF8 = (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3")  # overlong, surrogate, too high, cut


@pytest.mark.conformance(10)
@pytest.mark.hostile(13)
@pytest.mark.parametrize("raw", BAD_UTF8)
def test_bad_UTF8_is_refused_in_uname_aname_and_version(raw: bytes) -> None:
    mark = b"M" * len(raw)
    for msg in (Tversion(1, mark.decode()), Tattach(1, 2, mark.decode(), ""), Tattach(1, 2, "", mark.decode())):
        with pytest.raises(BadMessage) as caught:
            DOTL.decode(memoryview(DOTL.encode(1, msg).replace(mark, raw)))
        assert caught.value.error.errno == 22


@pytest.mark.conformance(10)
@pytest.mark.hostile(13)
@pytest.mark.parametrize("raw", [*BAD_UTF8, b"\n\x1b[31m", "\u202e\u0007".encode()])
def test_file_names_carry_any_bytes_through(raw: bytes) -> None:
    mark = b"M" * len(raw)
    for msg in (Twalk(1, 2, (mark.decode(),)), Tlcreate(1, mark.decode(), 0, 0, 0)):
        frame = DOTL.encode(1, msg).replace(mark, raw)
        _, got = DOTL.decode(memoryview(frame))
        assert got != msg
        assert DOTL.encode(1, got) == frame


@pytest.mark.conformance(11)
@each_dialect
def test_an_unknown_even_type_can_be_answered(dialect: Dialect) -> None:
    for number in range(0, 256, 2):
        if number in dialect.decode_t or number in (0, 6, 106):
            continue
        frame = (11).to_bytes(4, "little") + bytes([number]) + b"\x34\x12" + b"body"
        with pytest.raises(UnknownMessage) as caught:
            dialect.decode(memoryview(frame))
        assert (caught.value.tag, caught.value.number, caught.value.error.errno) == (0x1234, number, 95)


@pytest.mark.conformance(12)
@pytest.mark.hostile(15)
@each_dialect
def test_a_reply_type_from_a_client_ends_the_connection(dialect: Dialect) -> None:
    for number in [0, 6, 106, *range(1, 256, 2)]:
        with pytest.raises(ProtocolError):
            dialect.decode(memoryview(b"\x07\0\0\0" + bytes([number]) + b"\1\0"))


@pytest.mark.hostile(90)
@each_dialect
def test_a_request_type_from_a_server_ends_the_connection(dialect: Dialect) -> None:
    for number in set(range(256)) - set(dialect.decode_r):
        with pytest.raises(ProtocolError):
            dialect.decode_reply(memoryview(b"\x07\0\0\0" + bytes([number]) + b"\1\0"))


@pytest.mark.hostile(6)
def test_a_string_longer_than_its_frame_is_a_decode_error() -> None:
    frame = P2000.encode(1, Tattach(1, 2, "u" * 11, ""))
    assert len(frame) == 30
    with pytest.raises(BadMessage, match="runs past the end"):
        P2000.decode(memoryview(frame[:15] + b"\xff\xff" + frame[17:]))


@pytest.mark.hostile(7)
@pytest.mark.conformance(54)
@each_dialect
def test_more_names_than_a_walk_may_have_are_refused_before_a_list_is_made(dialect: Dialect) -> None:
    frame = bytearray(dialect.encode(1, Twalk(1, 2, ("n",) * 16)))
    assert read(dialect, bytes(frame))[1] == Twalk(1, 2, ("n",) * 16)
    for count in (17, 0x8000, 0xFFFF):
        frame[15:17] = count.to_bytes(2, "little")
        with pytest.raises(BadMessage) as caught:
            dialect.decode(memoryview(frame))
        assert isinstance(caught.value.error, Ebadmsg)
        assert "too many" in str(caught.value.error)
    with pytest.raises(Erange):
        dialect.encode(1, Twalk(1, 2, ("n",) * 17))


@pytest.mark.hostile(90)
def test_more_qids_than_a_walk_can_have_are_refused() -> None:
    frame = DOTL.encode(1, Rwalk((QID,) * 16))
    assert len(frame) == 217
    assert read(DOTL, frame)[1] == Rwalk((QID,) * 16)
    more = resized(frame[:7] + b"\x11\0" + frame[9:] + frame[9:22])
    with pytest.raises(BadMessage, match="too many"):
        read(DOTL, more)
    with pytest.raises(Erange):
        DOTL.encode(1, Rwalk((QID,) * 17))


@pytest.mark.hostile(6)
def test_a_walk_name_longer_than_its_frame_is_a_decode_error() -> None:
    frame = bytearray(DOTL.encode(1, Twalk(1, 2, ("abc", "def"))))
    for at in (17, 22):
        lying = frame.copy()
        lying[at] = 200
        with pytest.raises(BadMessage, match="runs past the end"):
            DOTL.decode(memoryview(lying + b"n" * 300), 0, len(frame))


@pytest.mark.hostile(8)
@pytest.mark.conformance(61)
def test_a_name_in_a_walk_has_at_most_255_bytes() -> None:
    assert read(DOTL, DOTL.encode(1, Twalk(1, 2, ("n" * 255,))))
    for size in (256, 0xFFFF):
        head = DOTL.encode(1, Twalk(1, 2))[:15]
        frame = resized(head + (16).to_bytes(2, "little") + (size.to_bytes(2, "little") + b"n" * size) * 16)
        with pytest.raises(BadMessage) as caught:
            DOTL.decode(memoryview(frame))
        assert isinstance(caught.value.error, Enametoolong)
    with pytest.raises(Enametoolong):
        DOTL.encode(1, Twalk(1, 2, ("n" * 256,)))


@pytest.mark.hostile(9)
@pytest.mark.parametrize("count", [0, 4, 6, 100, 0x80000000, 0xFFFFFFFF])
def test_a_write_whose_count_and_bytes_differ_reads_no_neighbours_bytes(count: int) -> None:
    frame = P2000.encode(1, Twrite(1, 0, b"hello"))
    lying = frame[:19] + count.to_bytes(4, "little") + frame[23:]
    buffer = lying + b"the next frame's secret bytes" * 9
    with pytest.raises(BadMessage, match="runs past the end" if count > 5 else "left over"):
        P2000.decode(memoryview(buffer), 0, len(frame))
    if len(b"hello") < count <= len(buffer) - 23:  # the negative control: only `end` keeps the neighbour out
        _, msg = P2000.decode(memoryview(buffer), 0, 23 + count)
        assert isinstance(msg, Twrite)
        assert b"the" in bytes(msg.data) or count == 6


@pytest.mark.hostile(12)
@pytest.mark.parametrize("value", [1 << 63, (1 << 64) - 1])
def test_numbers_with_the_top_bit_set_are_unsigned(value: int) -> None:
    assert read(DOTL, DOTL.encode(1, Tread(0x80000000, value, 0xFFFFFFFF)))[1] == Tread(0x80000000, value, 0xFFFFFFFF)


def test_write_data_is_a_slice_of_the_frame() -> None:
    frame = bytearray(P2000.encode(1, Twrite(1, 0, b"hello")))
    _, msg = P2000.decode(memoryview(frame))
    assert isinstance(msg, Twrite)
    assert isinstance(msg.data, memoryview)
    frame[-5:] = b"HELLO"
    assert bytes(msg.data) == b"HELLO"


def test_headers_put_before_a_payload_make_the_same_frame() -> None:
    data = b"payload"
    assert read_header(7, len(data)) + data == DOTL.encode(7, Rread(data))
    assert readdir_header(7, len(data)) + data == DOTL.encode(7, Rreaddir(data))
    assert write_header(7, 1, 2, len(data)) + data == DOTL.encode(7, Twrite(1, 2, data))


def test_a_string_too_long_for_its_length_field_can_be_answered() -> None:
    with pytest.raises(Erange):
        DOTL.encode(1, Rreadlink("x" * 0x10000))
    with pytest.raises(Ebadchar):
        P2000.encode(1, Tattach(1, 2, "\udcff", ""))


def test_a_number_out_of_range_is_our_mistake() -> None:
    for msg in (Tclunk(-1), Tclunk(1 << 32)):
        with pytest.raises(ValueError, match="Tclunk"):
            P2000.encode(1, msg)


def test_a_message_of_another_dialect_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match="9P2000 has no Tfsync"):
        P2000.encode(1, Tfsync(1))


def outcome(dialect: Dialect, frame: bytes) -> Message | None:
    """What a receiver makes of any bytes; None for a refusal.  Any other exception fails the test."""
    try:
        _, msg = read(dialect, frame) if len(frame) > 4 else dialect.decode(memoryview(frame))
    except (Undecodable, ProtocolError):
        return None
    return msg


@pytest.mark.feature("codec-property")
@each_dialect
@settings(max_examples=300)
@given(raw=st.binary(max_size=200))
@example(raw=b"")
@example(raw=bytes(8))
def test_any_bytes_give_a_message_or_a_refusal(dialect: Dialect, raw: bytes) -> None:
    outcome(dialect, raw)


@pytest.mark.feature("codec-property")
@each_dialect
@settings(max_examples=300)
@given(data=st.data(), body=st.binary(max_size=120))
def test_any_body_under_a_known_type_gives_a_message_or_a_refusal(
    dialect: Dialect, data: st.DataObject, body: bytes
) -> None:
    number = data.draw(st.sampled_from(sorted(dialect.messages)))
    frame = resized(bytes(4) + bytes([number, 1, 0]) + body)
    if (msg := outcome(dialect, frame)) is not None and not isinstance(msg, Tfsync):
        assert dialect.encode(1, msg) == frame


def flip_bits(rng: random.Random, rounds: int) -> int:
    """Golden frames with 1 to 4 bits flipped, each read by the side that would get it; how many still meant something.

    What still means something means exactly its bytes: nothing is read twice, skipped or made up.
    """
    understood = 0
    for _ in range(rounds):
        golden = rng.choice(GOLDEN)
        raw = bytearray(golden.frame)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        msg = outcome(golden.dialect, bytes(raw))
        if msg is not None:
            understood += 1
            assert golden.dialect.encode(1, msg)[7:] == raw[7:] or isinstance(msg, Tfsync)
    return understood


@pytest.mark.hostile(18)
def test_flipped_bits_give_a_message_or_a_refusal() -> None:
    assert flip_bits(random.Random(9), 20_000) > 0


@pytest.mark.slow
@pytest.mark.hostile(18)
@pytest.mark.timeout(900)
def test_flipped_bits_many() -> None:
    seed = int(os.environ.get("NINEP_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    assert flip_bits(random.Random(seed), 10_000_000) > 0


def test_proto_needs_msgspec_and_nothing_else() -> None:
    """The codec is usable by someone who has no trio and no cryptography."""
    code = (
        "import sys; sys.modules['trio'] = sys.modules['cryptography'] = None\n"
        "import ninep.proto.version, ninep.proto.framing, ninep.proto.describe\n"
        "assert not {'socket', 'asyncio', 'logging'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_equal_messages_are_equal_and_have_no_tag() -> None:
    assert Tclunk(1) == Tclunk(1) != Tclunk(2)
    assert Rclunk() == Rclunk()
    assert "tag" not in Rgetattr.__struct_fields__
