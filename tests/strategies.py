"""Hypothesis strategies made from the field tables: a new message needs no strategy of its own."""

from __future__ import annotations

from hypothesis import strategies as st

from ninep.proto.codec import Dialect, Message
from ninep.proto.fields import Data, Kind, Names, QidKind, Qids, StatKind, Text, UInt
from ninep.proto.records import StatRecord
from ninep.proto.types import MAXWELEM, NAME_BYTES_MAX, Qid

tags = st.integers(0, 0xFFFF)
small = st.integers(0, 0xFFFFFFFF)
large = st.integers(0, 0xFFFFFFFFFFFFFFFF)
qids = st.builds(Qid, st.integers(0, 0xFF), small, large)

_utf8 = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
_long = st.sampled_from(["", "x" * 0xFFFF, "\u00e9" * 0x7FFF])


def _no_nul(raw: bytes) -> str:
    """Any bytes but NUL as a name.  Made by decoding: not every string with lone surrogates can come from bytes."""
    return raw.replace(b"\0", b"\1").decode("utf-8", "surrogateescape")


texts = _utf8 | _long
names = _utf8 | _long | st.binary(max_size=40).map(_no_nul) | st.binary(min_size=0xFFFF, max_size=0xFFFF).map(_no_nul)
wnames = st.binary(max_size=NAME_BYTES_MAX).map(_no_nul)

_stat_names = _utf8 | st.binary(max_size=40).map(_no_nul) | st.just("n" * 8000)


def stats(*, dotu: bool) -> st.SearchStrategy[StatRecord]:
    """Stat records, those with `don't touch` among them; the .u fields only where they travel."""
    tail = {"extension": _stat_names, "n_uid": small, "n_gid": small, "n_muid": small} if dotu else {}
    return st.just(StatRecord()) | st.builds(
        StatRecord,
        type=st.integers(0, 0xFFFF),
        dev=small,
        qid=qids,
        perm=small,
        atime=small,
        mtime=small,
        length=large,
        name=_stat_names,
        uid=_stat_names,
        gid=_stat_names,
        muid=_stat_names,
        **tail,
    )


def field_values(kind: Kind) -> st.SearchStrategy[object]:
    """Values that one field can carry."""
    match kind:
        case UInt():
            return st.integers(0, kind.value_max) | st.sampled_from([0, kind.value_max, (kind.value_max >> 1) + 1])
        case QidKind():
            return qids
        case Text():
            return texts if kind.strict else names
        case Data():
            return st.binary(max_size=200) | st.just(b"d" * 70_000)
        case Names():
            return st.lists(wnames, max_size=MAXWELEM).map(tuple)
        case Qids():
            return st.lists(qids, max_size=MAXWELEM).map(tuple)
        case StatKind():
            return stats(dotu=kind.dotu)
    raise AssertionError(f"no strategy for {kind!r}")


def message_of(dialect: Dialect, cls: type[Message]) -> st.SearchStrategy[Message]:
    """Messages of one class, with the fields that travel in this dialect."""
    return st.builds(cls, **{f.name: field_values(f.kind) for f in dialect.fields_of(cls)})


def messages(dialect: Dialect, *, requests: bool = True, replies: bool = True) -> st.SearchStrategy[Message]:
    """Any message of the dialect."""
    wanted = [cls for number, cls in dialect.messages.items() if (replies if number % 2 else requests)]
    return st.one_of([message_of(dialect, cls) for cls in wanted])
