"""Which dialect answers which version string, with which msize, and what may be said before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ninep.proto.codec import Dialect
from ninep.proto.dotl import Rlerror
from ninep.proto.errors import Ebadctl, Enonexist, Eperm
from ninep.proto.messages import Rerror, Tversion
from ninep.proto.version import (
    DIALECTS,
    DOTL,
    DOTU,
    LEGAL,
    MSIZE_BYTES_MIN,
    P2000,
    UNKNOWN,
    Phase,
    error_reply,
    negotiate,
    pick,
)

MAX = 1 << 20

pytestmark = pytest.mark.feature("version-negotiation")


@pytest.mark.conformance(16)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_an_exact_name_is_echoed(dialect: Dialect) -> None:
    assert negotiate(dialect.name, 8192, MAX) == (dialect, dialect.name, 8192)


@pytest.mark.conformance(17)
@pytest.mark.parametrize(
    ("version", "answer"),
    [
        ("9P2000.foo", P2000), ("9P2000.L.foo", DOTL), ("9P2000.L.ng1", DOTL), ("9P2000.u.x.y", DOTU),
        ("9P2000.", P2000), ("9P2000.LL", P2000), ("9P2001", P2000), ("9P2001.L", P2000), ("9P20000", P2000),
        ("9P" + "9" * 60_000, P2000), ("9P2000.l", P2000), ("9P2000" + ".x" * 30_000, P2000),
    ],
    ids=lambda v: v[:14] if isinstance(v, str) else "",
)  # fmt: skip
def test_suffixes_and_later_years_fall_back(version: str, answer: Dialect) -> None:
    assert negotiate(version, 8192, MAX) == (answer, answer.name, 8192)


@pytest.mark.conformance(18)
@pytest.mark.parametrize(
    "version",
    ["9P1999", "8P2000", "", "9p2000.L", "9P", "9P.L", ".L", "9P20x0", "9P-2001", "9P2000L", "unknown", "9P\u0662000",
     "9P1999.9P2000", " 9P2000", "9P02000", "9P02001"],
)  # fmt: skip
def test_other_strings_are_answered_unknown_with_a_sane_msize(version: str) -> None:
    assert negotiate(version, 8192, MAX) == (None, UNKNOWN, 8192)
    assert negotiate(version, 0, MAX).msize > 0


def test_a_dialect_that_is_not_offered_falls_back_too() -> None:
    assert pick("9P2000.L", (P2000,)) is P2000
    assert pick("9P2000", (DOTL,)) is None


@pytest.mark.conformance(19, 20)
@pytest.mark.parametrize("offer", [4096, 8192, 65536, 1 << 20, 0xFFFFFFFF])
@pytest.mark.parametrize("most", [4096, 65536, 1 << 20])
def test_the_agreed_msize_is_at_most_either_offer_and_never_below_4096(offer: int, most: int) -> None:
    agreed = negotiate("9P2000.L", offer, most)
    assert agreed.msize == min(offer, most) >= 4096


@pytest.mark.conformance(21)
@pytest.mark.parametrize("offer", [0, 7, 24, 255])
def test_a_tiny_msize_is_answered_unknown(offer: int) -> None:
    assert negotiate("9P2000", offer, MAX) == (None, UNKNOWN, offer or MSIZE_BYTES_MIN)


@pytest.mark.conformance(21)
def test_a_small_msize_is_kept_to() -> None:
    assert negotiate("9P2000", 256, MAX) == (P2000, "9P2000", 256)
    assert negotiate("9P2000", 4095, MAX).msize == 4095


@given(version=st.text(max_size=30) | st.from_regex(r"9P[0-9]{3,5}(\.[uLx]{0,2}){0,3}", fullmatch=True))
def test_any_string_gets_a_dialect_it_begins_with_or_unknown(version: str) -> None:
    agreed = negotiate(version, 8192, MAX)
    if agreed.dialect is None:
        assert agreed.version == UNKNOWN
    else:
        later_year = agreed.dialect is P2000 and int(version[2:].partition(".")[0]) > 2000
        assert later_year or version.startswith(agreed.version)
        assert agreed.version == agreed.dialect.name


@pytest.mark.conformance(22)
def test_before_the_version_is_agreed_only_Tversion_may_be_said() -> None:
    assert LEGAL[Phase.UNVERSIONED] == {Tversion.number}
    for dialect in DIALECTS:
        assert set(dialect.decode_t) <= LEGAL[Phase.VERSIONED]
        assert dialect.messages[100] is Tversion


@pytest.mark.conformance(23)
def test_Tversion_reads_the_same_in_every_dialect() -> None:
    frame = P2000.encode(9, Tversion(8192, "9P2000.L"))
    assert {dialect.decode(memoryview(frame)) for dialect in DIALECTS} == {(9, Tversion(8192, "9P2000.L"))}


@pytest.mark.feature("error-table")
def test_a_refusal_has_the_form_of_its_dialect() -> None:
    assert P2000.encode(1, error_reply(P2000, Eperm("bob")))[9:] == b"permission denied"  # in the table of Linux
    assert P2000.encode(1, error_reply(P2000, Ebadctl("bob")))[9:] == b"bad process or channel control request: bob"
    assert error_reply(DOTU, Enonexist("bob")) == Rerror("file does not exist: bob", 2)
    assert error_reply(DOTL, Enonexist("bob")) == Rlerror(2)
