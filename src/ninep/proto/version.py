"""Which dialect a connection speaks, and what may be said before it is agreed (version(5)).

The three dialects are made here, once.  Knows no connection: `negotiate` is a function of two offers.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ninep.proto import dotl as _dotl
from ninep.proto import messages as _messages
from ninep.proto.codec import Dialect, In, Message
from ninep.proto.errors import LINUX_TEXTS, FileError

UNKNOWN: Final = "unknown"
MSIZE_BYTES_MIN: Final = 256  # below this not even a Twalk of one name fits; lib9p draws the line here too
MSIZE_BYTES_USUAL: Final = 4096  # what Linux insists on (net/9p/client.c); no server of ours offers less

P2000: Final = Dialect("9P2000", In.P2000)
DOTU: Final = Dialect("9P2000.u", In.DOTU)
DOTL: Final = Dialect("9P2000.L", In.DOTL)
DIALECTS: Final = (P2000, DOTU, DOTL)
BY_NAME: Final[Mapping[str, Dialect]] = {d.name: d for d in DIALECTS}


class Agreed(NamedTuple):
    """What Rversion says.  `dialect` is None when there is none in common: only another Tversion may follow."""

    dialect: Dialect | None
    version: str
    msize: int


def negotiate(version: str, msize: int, msize_max: int, dialects: Sequence[Dialect] = DIALECTS) -> Agreed:
    """The answer to a Tversion, by a server whose largest frame is `msize_max` bytes (at least MSIZE_BYTES_USUAL).

    The longest name wins that is the string, or what is left of it after cutting off `.suffix` parts; else a number
    above 2000 gets 9P2000.  Case counts.  The answer never raises the client's msize, except that 0 is answered by
    MSIZE_BYTES_MIN: Plan 9 clients call a zero nonsense even beside `unknown`.
    """
    assert msize_max >= MSIZE_BYTES_USUAL
    dialect = pick(version, dialects) if msize >= MSIZE_BYTES_MIN else None
    agreed = min(msize, msize_max) or MSIZE_BYTES_MIN
    return Agreed(dialect, dialect.name if dialect else UNKNOWN, agreed)


def pick(version: str, dialects: Sequence[Dialect] = DIALECTS) -> Dialect | None:
    """The dialect that answers this version string, or None."""
    fits = [d for d in dialects if version == d.name or version.startswith(d.name + ".")]
    if not fits and _is_later(version.partition(".")[0]):
        fits = [d for d in dialects if d is P2000]
    return max(fits, key=lambda d: len(d.name), default=None)


def _is_later(base: str) -> bool:
    """Whether this is 9Pnnnn with a number above 2000.  Compared as text: the number may have 60,000 digits."""
    digits = base[2:]
    if not base.startswith("9P") or not (digits.isascii() and digits.isdigit()) or digits[0] == "0":
        return False
    return (len(digits), digits) > (4, "2000")


class Phase(enum.Enum):
    """How far a connection has come."""

    UNVERSIONED = enum.auto()  # nothing agreed yet, or the last offer was answered `unknown`
    VERSIONED = enum.auto()


LEGAL: Final[Mapping[Phase, frozenset[int]]] = {
    Phase.UNVERSIONED: frozenset({_messages.Tversion.number}),
    Phase.VERSIONED: frozenset().union(*(d.decode_t for d in DIALECTS)),
}
"""The requests that may be said in each phase; the dialect then decides which of them it has."""


def error_reply(dialect: Dialect, error: FileError) -> Message:
    """The message that carries a refusal in this dialect: text, text and number, or number.

    Without a number, the Linux client looks the whole text up in its own table: what follows the colon is left out
    where that table has the row.
    """
    if dialect.mark is In.DOTL:
        return _dotl.Rlerror(error.errno)
    if dialect.mark is In.P2000 and error.text in LINUX_TEXTS:
        return _messages.Rerror(error.text, error.errno)
    return _messages.Rerror(error.ename, error.errno)
