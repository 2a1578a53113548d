"""Reads tests/corpus/golden.txt: frames written by hand, and the messages they are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from ninep.proto import dotl, messages
from ninep.proto.codec import Dialect, Message
from ninep.proto.records import StatRecord, pack_dirent
from ninep.proto.types import NOFID, NONUNAME, Qid
from ninep.proto.version import DOTL, DOTU, P2000

QID = Qid(0x80, 2, 0x1122334455667788)
STAT = StatRecord(0x4D, 1, Qid(0, 2, 3), 0o644, 4, 5, 6, "f", "bob", "sys", "eve")
STAT_U = StatRecord(0x4D, 1, Qid(0, 2, 3), 0o644, 4, 5, 6, "f", "bob", "sys", "eve", "", 1000, 100, 0xFFFFFFFF)
DIALECTS = {"2000": P2000, "u": DOTU, "L": DOTL}


class Golden(NamedTuple):
    """One frame in one dialect."""

    dialect: Dialect
    message: Message
    frame: bytes

    @property
    def tag(self) -> int:
        return int.from_bytes(self.frame[5:7], "little")

    def __str__(self) -> str:
        return f"{self.dialect.name}-{type(self.message).__name__}"


def _frame(notation: str) -> bytes:
    out = b""
    for word in shlex.split(notation, posix=False):
        out += word[1:-1].encode() if word[0] == "'" else bytes.fromhex(word)
    return out


def _load() -> list[Golden]:
    names = {**vars(messages), **vars(dotl)}
    names.update(QID=QID, Qid=Qid, STAT=STAT, STAT_U=STAT_U, StatRecord=StatRecord, NOFID=NOFID, NONUNAME=NONUNAME)
    names["DIRENT"] = pack_dirent(QID, 9, 4, "a")
    found: list[Golden] = []
    for line in (Path(__file__).parents[1] / "corpus" / "golden.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        dialects, expression, notation = line.split("|")
        for name in dialects.split():
            found.append(Golden(DIALECTS[name], eval(expression.strip(), names), _frame(notation)))
    return found


GOLDEN = _load()
