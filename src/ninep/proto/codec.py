"""One message, declared once: a frozen struct with annotated fields and a number; the codec comes from the table.

`@message(110, ALL)` enters a class in the tables of its dialects.  A `Dialect` then holds, per message type, one
encoder and one decoder, generated from the field kinds when the dialect is made.  Knows no session: a message that
decodes is well formed, and that is all that can be said of it.

What a decoder may raise, for any bytes at all:

    ProtocolError    hang up: a type that this side must never be sent
    BadMessage       answer `tag` with `error`, then go on: the frame was whole, its body was not
    UnknownMessage   likewise: an even type that this dialect does not have
"""

from __future__ import annotations

import enum
import functools
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import msgspec

from ninep.proto import records
from ninep.proto.errors import Ebadchar, Ebadmsg, Enametoolong, Erange, Eunsupported, FileError, ProtocolError
from ninep.proto.fields import Kind
from ninep.proto.types import Qid

HEADER_BYTES: Final = 7  # size[4] type[1] tag[2]


class In(enum.Flag):
    """The dialects a message or a field belongs to."""

    P2000 = enum.auto()
    DOTU = enum.auto()
    DOTL = enum.auto()


ALL: Final = In.P2000 | In.DOTU | In.DOTL
OLD: Final = In.P2000 | In.DOTU


class Undecodable(Exception):
    """A whole frame that cannot be a request: answer `tag` with `error` and keep the connection."""

    def __init__(self, tag: int, error: FileError) -> None:
        super().__init__(f"tag {tag}: {error}")
        self.tag = tag
        self.error = error


class BadMessage(Undecodable):
    """The body is not what its type says: cut short, too long, a count that lies, a NUL in a string."""


class UnknownMessage(Undecodable):
    """An even type that this dialect does not have.  The error is Eunsupported: v9fs falls back on that errno only."""

    def __init__(self, tag: int, number: int) -> None:
        super().__init__(tag, Eunsupported(f"message type {number}"))
        self.number = number


class Optional(enum.Enum):
    """Marks a last field that old clients leave out."""

    TAIL = enum.auto()


TAIL: Final = Optional.TAIL


class Field(NamedTuple):
    """One field of a message: its name, its kind, the dialects that have it, whether it may be missing at the end."""

    name: str
    kind: Kind
    dialects: In
    may_lack: bool


class Message(msgspec.Struct, frozen=True, gc=False):
    """The base of every message.  Equality is by value; there is no tag here, it belongs to the exchange."""

    number: ClassVar[int]
    dialects: ClassVar[In]
    fields: ClassVar[tuple[Field, ...]]


M = TypeVar("M", bound=type[Message])
Decoder = Callable[[memoryview, int, int], tuple[int, Message]]
Encoder = Callable[[int, Any], bytes]

_DECLARED: Final[list[type[Message]]] = []


def message(number: int, dialects: In) -> Callable[[M], M]:
    """Enter a class under its wire number.  Even numbers are requests, odd ones replies (intro(5))."""

    def enter(cls: M) -> M:
        assert cls.__name__[0] == "TR"[number % 2], cls
        for other in _DECLARED:
            assert other.number != number or not other.dialects & dialects, (cls, other)
        hints = _hints_of(cls)
        cls.number = number
        cls.dialects = dialects
        cls.fields = tuple(_field(name, hints[name], dialects) for name in cls.__struct_fields__)
        _DECLARED.append(cls)
        return cls

    return enter


_hints: dict[tuple[str, str], Any] = {}  # by module and annotation: typing.get_type_hints() took 8 ms of every start


def _hints_of(cls: type[Message]) -> dict[str, Any]:
    """The evaluated annotations of a message class, those of the classes it inherits from included."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(Message)]):
        names = vars(sys.modules[base.__module__])
        for name, text in base.__annotations__.items():
            key = (base.__module__, text)
            if key not in _hints:
                _hints[key] = eval(text, names)  # noqa: S307  # our own source, as the compiler would have read it
            found[name] = _hints[key]
    return found


def _field(name: str, hint: Any, dialects: In) -> Field:  # a type hint can be anything
    kind: Kind | None = None
    only = dialects
    may_lack = False
    for mark in hint.__metadata__:
        if isinstance(mark, Kind):
            kind = mark
        elif isinstance(mark, In):
            only = mark & dialects
        elif mark is TAIL:
            may_lack = True
    assert kind is not None, name
    return Field(name, kind, only, may_lack)


class Dialect:
    """The messages of one dialect, and how to read and write them.  Immutable once made."""

    def __init__(self, name: str, mark: In) -> None:
        self.name = name
        self.mark = mark
        self.messages: dict[int, type[Message]] = {
            cls.number: cls for cls in sorted(_DECLARED, key=lambda c: c.number) if mark in cls.dialects
        }
        self.decode_t: dict[int, Decoder] = {}
        self.decode_r: dict[int, Decoder] = {}
        self._encoders: dict[type[Message], Encoder] = {}
        for cls in self.messages.values():
            self._enter(cls)

    def __repr__(self) -> str:
        return f"<Dialect {self.name}>"

    def _enter(self, cls: type[Message]) -> None:
        """Enter stand-ins that generate the codec at its first use: a client that says eight messages pays for eight.

        Making all of them took 14 ms of every start.  Whoever kept a stand-in is served by it for ever, only slower.
        """
        decoders = self.decode_r if cls.number % 2 else self.decode_t

        @functools.cache
        def made() -> tuple[Decoder, Encoder]:
            decoders[cls.number], self._encoders[cls] = both = _generate(cls, self.fields_of(cls))
            return both

        def decode(buf: memoryview, at: int, end: int) -> tuple[int, Message]:
            return made()[0](buf, at, end)

        def encode(tag: int, m: Message) -> bytes:
            return made()[1](tag, m)

        decoders[cls.number], self._encoders[cls] = decode, encode

    def fields_of(self, cls: type[Message]) -> tuple[Field, ...]:
        """The fields that travel in this dialect, in order."""
        present = [f for f in cls.fields if self.mark in f.dialects]
        return tuple(f._replace(kind=f.kind.in_dotu()) if self.mark is In.DOTU else f for f in present)

    def bytes_min(self, cls: type[Message]) -> int:
        """The smallest frame of this message, header included."""
        return HEADER_BYTES + sum(f.kind.bytes_min for f in self.fields_of(cls) if not f.may_lack)

    def bytes_max(self, cls: type[Message]) -> int:
        """The largest frame that the fields alone allow; msize is the real bound."""
        return HEADER_BYTES + sum(f.kind.bytes_max for f in self.fields_of(cls))

    def encode(self, tag: int, msg: Message) -> bytes:
        """One whole frame.

        Raises Erange for a string, list or record that its length field cannot count and Ebadchar for a NUL: both can
        be answered.  Raises ValueError for a number that does not fit its field and TypeError for a message of another
        dialect: those are mistakes of ours.
        """
        encoder = self._encoders.get(type(msg))
        if encoder is None:
            raise TypeError(f"{self.name} has no {type(msg).__name__}")
        return encoder(tag, msg)

    def decode(self, frame: memoryview, start: int = 0, end: int | None = None) -> tuple[int, Message]:
        """The tag and message of one whole request, as a server reads it.

        `data` in the message is a slice of `frame`: it is valid as long as the frame is (framing.py).
        """
        if end is None:
            end = len(frame)
        if end - start < HEADER_BYTES:
            raise ProtocolError(f"frame of {end - start} bytes")
        number = frame[start + 4]
        decoder = self.decode_t.get(number)
        if decoder is None:
            raise not_a_request(number, frame[start + 5] | frame[start + 6] << 8)
        return decoder(frame, start, end)

    def decode_reply(self, frame: memoryview, start: int = 0, end: int | None = None) -> tuple[int, Message]:
        """The tag and message of one whole reply, as a client reads it.  ProtocolError for a type that is no reply."""
        if end is None:
            end = len(frame)
        if end - start < HEADER_BYTES:
            raise ProtocolError(f"frame of {end - start} bytes")
        decoder = self.decode_r.get(frame[start + 4])
        if decoder is None:
            raise ProtocolError(f"not a reply: type {frame[start + 4]}")
        return decoder(frame, start, end)


def not_a_request(number: int, tag: int) -> Exception:
    """Why a server has no decoder for this type: UnknownMessage for a plausible request, else ProtocolError.

    6 and 106 would be the requests of the error replies and never exist; 0 is what an empty buffer says.
    """
    if number % 2 or number in (0, 6, 106):
        return ProtocolError(f"not a request: type {number}")
    return UnknownMessage(tag, number)


# What generated code raises.  `buf` and `at` give the tag; the label names the message and field.


def _tag(buf: memoryview, at: int) -> int:
    return buf[at + 5] | buf[at + 6] << 8


def _short(buf: memoryview, at: int, label: str) -> Exception:
    return BadMessage(_tag(buf, at), Ebadmsg(f"{label} cut short"))


def _trailing(buf: memoryview, at: int, label: str) -> Exception:
    return BadMessage(_tag(buf, at), Ebadmsg(f"{label} has bytes left over"))


def _overrun(buf: memoryview, at: int, label: str) -> Exception:
    return BadMessage(_tag(buf, at), Ebadmsg(f"{label} runs past the end"))


def _too_many(buf: memoryview, at: int, label: str) -> Exception:
    return BadMessage(_tag(buf, at), Ebadmsg(f"{label} has too many elements"))


def _name_too_long(buf: memoryview, at: int, label: str) -> Exception:
    return BadMessage(_tag(buf, at), Enametoolong(label))


def _nul(buf: memoryview, at: int, label: str) -> Exception:
    return BadMessage(_tag(buf, at), Ebadchar(f"NUL in {label}"))


def _not_utf8(buf: memoryview, at: int, label: str) -> Exception:
    return BadMessage(_tag(buf, at), Ebadmsg(f"{label} has a string that is not UTF-8"))


def _bad_record(buf: memoryview, at: int, bad: records.BadRecord) -> Exception:
    return BadMessage(_tag(buf, at), Ebadmsg(str(bad)))


def _unfit(m: Message, why: Exception) -> Exception:
    """An encoder's failure, told by what does not fit: a string can be answered, a number is our mistake."""
    name = type(m).__name__
    if isinstance(why, UnicodeEncodeError):
        return Ebadchar(name)
    for field in m.fields:
        value = getattr(m, field.name)
        if isinstance(value, str) and len(value.encode("utf-8", "surrogateescape")) > 0xFFFF:
            return Erange(f"{name}.{field.name}")
    return ValueError(f"{name} has a number out of range: {why}")


_NAMES_IN_GENERATED_CODE: Final[dict[str, object]] = {
    "new_tuple": tuple.__new__,
    "Qid": Qid,
    "Ebadchar": Ebadchar,
    "Enametoolong": Enametoolong,
    "Erange": Erange,
    "BadRecord": records.BadRecord,
    "pack_stat": records.pack_stat,
    "unpack_stat": records.unpack_stat,
    "pack_qid": struct.Struct("<BIQ").pack,
    "each_qid": struct.Struct("<BIQ").iter_unpack,
    "struct_error": struct.error,
    "short": _short,
    "trailing": _trailing,
    "overrun": _overrun,
    "too_many": _too_many,
    "name_too_long": _name_too_long,
    "nul": _nul,
    "not_utf8": _not_utf8,
    "bad_record": _bad_record,
    "unfit": _unfit,
}


class _Run(NamedTuple):
    """Adjacent parts of known size, fused: at most the last field varies, and its length is the last part."""

    fields: list[Field]
    layout: struct.Struct


def _runs(fields: tuple[Field, ...]) -> Iterator[_Run]:
    held: list[Field] = []
    for field in fields:
        held.append(field)
        if not field.kind.is_fixed:
            yield _Run(held, struct.Struct("<" + "".join(f.kind.letters for f in held)))
            held = []
    if held:
        yield _Run(held, struct.Struct("<" + "".join(f.kind.letters for f in held)))


def _generate(cls: type[Message], fields: tuple[Field, ...]) -> tuple[Decoder, Encoder]:
    """The decoder and encoder of one message in one dialect."""
    names = dict(_NAMES_IN_GENERATED_CODE, cls=cls)
    label = cls.__name__
    body = [*_decoder_lines(cls, fields, names), "", *_encoder_lines(cls, fields, names)]
    exec(compile("\n".join(body), f"<codec of {label}>", "exec"), names)  # noqa: S102  # the field tables wrote it
    decoder: Decoder = names["decode"]  # type: ignore[assignment]  # exec made it
    encoder: Encoder = names["encode"]  # type: ignore[assignment]  # likewise
    return decoder, encoder


def _decoder_lines(cls: type[Message], fields: tuple[Field, ...], names: dict[str, object]) -> list[str]:
    label = cls.__name__
    if fields and fields[-1].may_lack:
        return _decoder_lines_with_tail(cls, fields, names)
    runs = list(_runs(fields))
    head = struct.Struct("<H" + (runs[0].layout.format[1:] if runs else ""))
    names["unpack0"] = head.unpack_from
    smallest = HEADER_BYTES - 2 + head.size
    first = ["tag"] + [v for f in (runs[0].fields if runs else []) for v in f.kind.unpacked(f.name)]
    is_fixed = len(runs) <= 1 and all(f.kind.is_fixed for f in fields)
    if is_fixed:
        lines = [f"if end - at != {smallest}: raise (short if end - at < {smallest} else trailing)(buf, at, {label!r})"]
    else:
        lines = [f"if end - at < {smallest}: raise short(buf, at, {label!r})"]
    lines += [f"{', '.join(first)}{',' if len(first) == 1 else ''} = unpack0(buf, at + 5)"]
    if not is_fixed:
        lines += [f"p = at + {smallest}"]
    for i, run in enumerate(runs):
        if i:
            names[f"unpack{i}"] = run.layout.unpack_from
            got = [v for f in run.fields for v in f.kind.unpacked(f.name)]
            lines += [
                f"if p + {run.layout.size} > end: raise short(buf, at, {label!r})",
                f"{', '.join(got)}{',' if len(got) == 1 else ''} = unpack{i}(buf, p)",
                f"p += {run.layout.size}",
            ]
        for field in run.fields:
            lines += field.kind.decode_lines(field.name, f"{label}.{field.name}")
    if not is_fixed:
        lines += [f"if p != end: raise trailing(buf, at, {label!r})"]
    lines += [f"return tag, cls({_arguments(cls, fields)})"]
    if any(getattr(f.kind, "strict", False) for f in fields):
        lines = ["try:", *_indented(lines), f"except UnicodeDecodeError: raise not_utf8(buf, at, {label!r}) from None"]
    return ["def decode(buf, at, end):", *_indented(lines)]


def _decoder_lines_with_tail(cls: type[Message], fields: tuple[Field, ...], names: dict[str, object]) -> list[str]:
    """Tfsync: the short old form has its own decoder, chosen by the size of the frame."""
    assert all(f.kind.is_fixed for f in fields)
    short = HEADER_BYTES + sum(f.kind.bytes_min for f in fields[:-1])
    whole = tuple(f._replace(may_lack=False) for f in fields)
    for name, some in (("whole", whole), ("old", whole[:-1])):
        inner = dict(names)
        exec("\n".join(_decoder_lines(cls, some, inner)), inner)  # noqa: S102  # likewise
        names[name] = inner["decode"]
    return ["def decode(buf, at, end):", f"    return (old if end - at == {short} else whole)(buf, at, end)"]


def _arguments(cls: type[Message], fields: tuple[Field, ...]) -> str:
    """The constructor's arguments: by position while no field is left out, which is the faster way."""
    present = [f.name for f in fields]
    in_order = list(cls.__struct_fields__)[: len(present)] == present
    return ", ".join(present if in_order else [f"{name}={name}" for name in present])


def _encoder_lines(cls: type[Message], fields: tuple[Field, ...], names: dict[str, object]) -> list[str]:
    runs = list(_runs(fields))
    lines: list[str] = []
    for field in fields:
        lines += field.kind.encode_lines(field.name, f"{cls.__name__}.{field.name}")
    tails = [f.kind.tail_bytes(f.name) for f in fields if not f.kind.is_fixed]
    known = HEADER_BYTES + sum(run.layout.size for run in runs)
    size = " + ".join([str(known), *tails])
    parts: list[str] = []
    for i, run in enumerate(runs or [_Run([], struct.Struct("<"))]):
        layout = run.layout if i else struct.Struct("<IBH" + run.layout.format[1:])
        names[f"pack{i}"] = layout.pack
        values = [v for f in run.fields for v in f.kind.packed(f.name)]
        parts += [f"pack{i}({', '.join(([] if i else [size, str(cls.number), 'tag']) + values)})"]
        parts += [tail for f in run.fields if (tail := f.kind.tail(f.name))]
    lines += [f"return {' + '.join(parts)}"]
    return [
        "def encode(tag, m):",
        "    try:",
        *_indented(_indented(lines)),
        "    except (struct_error, UnicodeEncodeError) as why: raise unfit(m, why) from None",
    ]


def _indented(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]
