"""Words of a command line: quoting as rc(1) has it, and the converters that turn words into values.

Knows nothing of files.  A converter is any function of a str that raises ValueError, whose text completes
"WORD: ...".  Annotate a parameter `Annotated[type, converter]` to use one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Final

_TOKEN: Final = re.compile(r"[ \t]+|[^ \t']+|'[^']*(?:''[^']*)*'")
_PLAIN: Final = re.compile(r"[^\s'#\0=^`;&|(){}<>$*?\[\]\\\"]+")


def split(line: str) -> list[str]:
    """The words of one line, unquoted as tokenize(2) does: 'it''s' is one word.  ValueError for an open quote.

    Takes time proportional to the line: every character is looked at twice at most.
    """
    words: list[str] = []
    word: list[str] | None = None
    at = 0
    while at < len(line):
        found = _TOKEN.match(line, at)
        if found is None:
            raise ValueError("unclosed quote")
        piece = found.group()
        at = found.end()
        if piece[0] in " \t":
            if word is not None:
                words.append("".join(word))
                word = None
            continue
        if word is None:
            word = []
        word.append(piece[1:-1].replace("''", "'") if piece[0] == "'" else piece)
    if word is not None:
        words.append("".join(word))
    return words


def quote(word: str) -> str:
    """The word as split() reads it back, quoted only if it has to be.  ValueError for a newline: no line holds it."""
    if "\n" in word or "\0" in word:
        raise ValueError("a word holds no newline and no NUL")
    if _PLAIN.fullmatch(word):
        return word
    return "'" + word.replace("'", "''") + "'"


def join(words: Iterable[str]) -> str:
    """One line of quoted words; what a setting is written as."""
    return " ".join(map(quote, words))


_NUMBER: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)([a-zA-Z]*)")
_INTEGER: Final = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]{1,32}|[0-9]{1,40})")
_FLOAT: Final = re.compile(r"[+-]?(?:[0-9]{1,300}\.?[0-9]{0,300}|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,3})?")
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_int(word: str) -> int:
    """A decimal number, or a hexadecimal one after 0x."""
    if not _INTEGER.fullmatch(word):
        raise ValueError("not an int")
    return int(word, 16 if "x" in word.lower() else 10)


def parse_float(word: str) -> float:
    if not _FLOAT.fullmatch(word):
        raise ValueError("not a number")
    return float(word)


def parse_bytes(word: str) -> int:
    """A size: bytes, or with k, m, g, t (powers of 1024)."""
    found = _NUMBER.fullmatch(word)
    if found is None:
        raise ValueError("not a size, as 4096 or 64k")
    number, unit = found.groups()
    factor = _BYTES.get(unit.lower())
    if factor is None:
        raise ValueError("unit is one of k m g t")
    if "." in number:
        raise ValueError("not a whole number")
    return int(number) * factor


def parse_duration(word: str) -> float:
    """Seconds.  The unit is required: Plan 9's manual and sources disagree about a bare number."""
    found = _NUMBER.fullmatch(word)
    if found is None:
        raise ValueError("not a duration, as 5s or 20ms")
    number, unit = found.groups()
    if not unit:
        raise ValueError("missing unit, as 5s or 20ms")
    if unit not in _SECONDS:
        raise ValueError("unit is one of " + " ".join(_SECONDS))
    return float(number) * _SECONDS[unit]


def parse_onoff(word: str) -> bool:
    if word not in ("on", "off"):
        raise ValueError("on or off")
    return word == "on"


_LABELS: Final[dict[object, str]] = {
    parse_int: "int",
    parse_float: "float",
    parse_bytes: "bytes",
    parse_duration: "duration",
    parse_onoff: "on|off",
}


def label_of(converter: Callable[[str], object]) -> str:
    """What usage lines call the words of a converter: its own name for one that is not of this module."""
    return _LABELS.get(converter) or getattr(converter, "__name__", "word").removeprefix("parse_")


Bytes = Annotated[int, parse_bytes]
Duration = Annotated[float, parse_duration]
OnOff = Annotated[bool, parse_onoff]


def show_duration(seconds: float) -> str:
    """A duration that parse_duration reads back."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def show_onoff(value: bool) -> str:
    return "on" if value else "off"
