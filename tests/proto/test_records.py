"""Stat records and directory entries: there and back, whole or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import qids, stats

from ninep.proto.codec import BadMessage, Dialect
from ninep.proto.errors import Ebadchar, Eproto, Erange, Esmall
from ninep.proto.messages import Rstat, Twstat
from ninep.proto.records import (
    UNTOUCHED,
    BadRecord,
    StatRecord,
    pack_dirent,
    pack_dirents,
    pack_stat,
    pack_stats,
    unpack_dirents,
    unpack_stat,
    unpack_stats,
)
from ninep.proto.types import Entry, Qid
from ninep.proto.version import DOTU, P2000

FILE = StatRecord(0, 0, Qid(0, 1, 2), 0o644, 3, 4, 5, "name", "u", "g", "m")
both_forms = pytest.mark.parametrize("dotu", [False, True])

entries = st.lists(
    st.builds(
        Entry,
        st.binary(min_size=1, max_size=255).map(
            lambda b: b.replace(b"\0", b"_").replace(b"/", b"_").decode("utf-8", "surrogateescape")
        ),
        qids,
        st.integers(0, 255),
        st.integers(1, (1 << 63) - 1),
        st.none(),
    ),
    max_size=30,
)


@pytest.mark.conformance(2, 89)
@pytest.mark.feature("codec-property")
@both_forms
@given(data=st.data())
def test_a_stat_record_comes_back(dotu: bool, data: st.DataObject) -> None:
    record = data.draw(stats(dotu=dotu))
    raw = pack_stat(record, dotu)
    assert int.from_bytes(raw[:2], "little") == len(raw) - 2
    assert unpack_stat(memoryview(raw), 0, len(raw), dotu) == (record, len(raw))


@pytest.mark.conformance(89)
def test_the_dotu_tail_is_present_only_in_dotu() -> None:
    assert len(pack_stat(StatRecord())) == 49
    assert len(pack_stat(StatRecord(), True)) == 63


@pytest.mark.conformance(96)
@both_forms
def test_a_record_above_65535_bytes_is_an_error_and_never_shorter(dotu: bool) -> None:
    fixed = 63 if dotu else 49
    assert len(pack_stat(StatRecord(name="n" * (0xFFFF - fixed)), dotu)) == 0xFFFF
    for record in (
        StatRecord(name="n" * (0xFFFF - fixed + 1)),
        StatRecord(name="n" * 0x10000),
        StatRecord(uid="u" * 40_000, gid="g" * 40_000),
    ):
        with pytest.raises(Erange):
            pack_stat(record, dotu)
    room = 0xFFFF - fixed - 2  # nstat counts the size field too
    dialect = DOTU if dotu else P2000
    for size in (room, room + 2):
        frame = dialect.encode(1, Rstat(StatRecord(name="n" * size)))
        assert dialect.decode_reply(memoryview(frame))[1] == Rstat(StatRecord(name="n" * size))


@pytest.mark.hostile(10)
@pytest.mark.parametrize("dialect", [P2000, DOTU], ids=lambda d: d.name)
def test_a_stat_whose_lengths_disagree_is_refused(dialect: Dialect) -> None:
    frame = bytearray(dialect.encode(1, Twstat(1, FILE)))
    outer, inner, name = 11, 13, 13 + 41
    for at in (outer, inner, name):
        right = int.from_bytes(frame[at : at + 2], "little")
        for wrong in {0, 1, right - 1, right + 1, right + 2, 0x7FFF, 0x8000, 0xFFFF} - {right}:
            lying = bytearray(frame)
            lying[at : at + 2] = wrong.to_bytes(2, "little")
            with pytest.raises(BadMessage):
                dialect.decode(memoryview(lying))


@pytest.mark.hostile(10)
@both_forms
def test_a_record_cut_anywhere_is_a_bad_record(dotu: bool) -> None:
    raw = pack_stat(FILE, dotu)
    for size in range(len(raw)):
        with pytest.raises(BadRecord):
            unpack_stat(memoryview(raw), 0, size, dotu)
    for size in range(47, len(raw) - 2):  # with an inner size that agrees
        with pytest.raises(BadRecord):
            unpack_stat(memoryview(size.to_bytes(2, "little") + raw[2:]), 0, size + 2, dotu)
        with pytest.raises(BadRecord):  # and with nothing behind it
            unpack_stat(memoryview(size.to_bytes(2, "little") + raw[2 : size + 2]), 0, size + 2, dotu)


@pytest.mark.hostile(10, 11)
@both_forms
def test_garbage_inside_a_record_is_refused(dotu: bool) -> None:
    raw = pack_stat(FILE, dotu)
    more = (len(raw) - 2 + 3).to_bytes(2, "little") + raw[2:] + b"abc"
    with pytest.raises(BadRecord, match="longer than its fields"):
        unpack_stat(memoryview(more), 0, len(more), dotu)


@pytest.mark.hostile(10)
def test_a_string_that_overruns_its_record_is_refused_before_it_is_read() -> None:
    raw = bytearray(pack_stat(FILE))
    for at in (41, 47, 50, 53):  # the lengths of name, uid, gid and muid
        lying = raw.copy()
        lying[at] += 30
        with pytest.raises(BadRecord, match="runs past its record"):
            unpack_stat(memoryview(lying + b"\0" * 99), 0, len(raw))


@pytest.mark.conformance(9)
def test_a_NUL_in_a_record_is_refused_both_ways() -> None:
    with pytest.raises(Ebadchar):
        pack_stat(StatRecord(name="a\0b"))
    with pytest.raises(BadRecord):
        raw = pack_stat(StatRecord(name="aXb")).replace(b"X", b"\0")
        unpack_stat(memoryview(raw), 0, len(raw))


@pytest.mark.conformance(90, 91)
def test_the_default_record_touches_nothing_and_each_field_shows() -> None:
    assert UNTOUCHED.is_untouched
    assert UNTOUCHED.touched() == frozenset()
    for record, field in (
        (StatRecord(name="n"), "name"),
        (StatRecord(perm=0), "perm"),
        (StatRecord(mtime=0), "mtime"),
        (StatRecord(length=0), "length"),
        (StatRecord(gid="g"), "gid"),
        (StatRecord(n_uid=0), "n_uid"),
    ):
        assert not record.is_untouched
        assert record.touched() == {field}


@pytest.mark.conformance(84)
@both_forms
def test_a_directory_read_has_whole_records_only(dotu: bool) -> None:
    records = [StatRecord(name=f"file{i}", length=i) for i in range(100)]
    size = len(pack_stat(records[0], dotu))
    for count in (size, 2 * size + 1, 1000, 1 << 20):
        raw, n = pack_stats(records, count, dotu)
        assert len(raw) <= count
        assert unpack_stats(raw, dotu) == records[:n]
        assert n == 100 or len(raw) + len(pack_stat(records[n], dotu)) > count
    assert pack_stats([], 0, dotu) == (b"", 0)


@pytest.mark.conformance(85, 113)
def test_a_count_below_the_first_entry_is_an_error_and_not_the_end() -> None:
    with pytest.raises(Esmall) as caught:
        pack_stats([FILE], len(pack_stat(FILE)) - 1)
    assert caught.value.errno == 22
    with pytest.raises(Esmall):
        pack_dirents([Entry("name", Qid(0, 0, 1), 8, 1)], 27)


@pytest.mark.conformance(110)
@pytest.mark.feature("codec-property", "proto-dotl")
@given(entries=entries, count=st.integers(280, 4000))
def test_directory_entries_come_back_in_as_many_reads_as_it_takes(entries: list[Entry], count: int) -> None:
    rest, got = entries, []
    while rest:
        raw, n = pack_dirents(rest, count)
        assert 0 < len(raw) <= count
        assert raw == b"".join(pack_dirent(e.qid, e.cookie, e.dtype, e.name) for e in rest[:n])
        got += unpack_dirents(raw)
        rest = rest[n:]
    assert got == entries


def test_a_name_that_no_entry_can_carry_is_refused() -> None:
    for name, error in (("a\0b", Ebadchar), ("n" * 0x10000, Erange)):
        with pytest.raises(error):
            pack_dirent(Qid(0, 0, 1), 1, 8, name)
        with pytest.raises(error):
            pack_dirents([Entry(name, Qid(0, 0, 1), 8, 1)], 1 << 20)


@pytest.mark.hostile(90)
def test_a_server_cannot_slip_a_path_into_a_directory() -> None:
    for name in ("", "a/b", "/etc/passwd", "../x"):
        with pytest.raises(Eproto):
            unpack_dirents(pack_dirent(Qid(0, 0, 1), 1, 8, name))
        with pytest.raises(Eproto):
            unpack_stats(pack_stat(StatRecord(name=name)))
    nul = pack_dirent(Qid(0, 0, 1), 1, 8, "aXb").replace(b"X", b"\0")
    with pytest.raises(Eproto):
        unpack_dirents(nul)


@pytest.mark.hostile(90)
@given(raw=st.binary(max_size=300), dotu=st.booleans())
def test_any_directory_bytes_give_entries_or_Eproto(raw: bytes, dotu: bool) -> None:
    for unpack in (unpack_dirents, lambda b: unpack_stats(b, dotu)):
        try:
            unpack(raw)
        except Eproto:
            pass


@pytest.mark.hostile(90)
def test_directory_entries_cut_anywhere_are_refused() -> None:
    raw = pack_dirent(Qid(0, 0, 1), 1, 8, "name")
    for size in range(1, len(raw)):
        with pytest.raises(Eproto):
            unpack_dirents(raw[:size])
