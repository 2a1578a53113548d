"""Scratch files: what makes editors and `sed -i` work beside a document.

An unknown name created beside a document is a file private to whoever created it: others neither see nor reach it.
Renaming it onto the document is one write of the document, judged as any other; renaming or copying the document away
makes a scratch copy (an editor's backup), and the document stays.  A scratch file that nobody has open is forgotten
after a minute, or when it was renamed onto its document or removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import structs

from .answer import Answer, then
from .file import Call, File, Handle
from .principal import Principal
from .proto import errors as E
from .proto.types import (
    OAPPEND,
    ORDWR,
    OTRUNC,
    OWRITE,
    R_WANT,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    W_WANT,
    Change,
    Stat,
)
from .synth_file import Owner, SynthFile, SynthHandle
from .synth_text import TextFile

LIFETIME_NS: Final = 60 * 10**9  # from the last close

Who = tuple[str, int, str]


def _who(principal: Principal) -> Who:
    return (principal.name, principal.uid, principal.proof)


class Scratch:
    """The scratch files of one directory, by principal and name."""

    def __init__(self, owner: Owner, document: Callable[[str], TextFile | None], taken: Callable[[str], bool]) -> None:
        self._owner = owner
        self._document = document
        self._taken = taken
        self._files: dict[Who, dict[str, ScratchFile]] = {}

    def find(self, call: Call, name: str) -> ScratchFile | None:
        self._expire()
        return self._files.get(_who(call.principal), {}).get(name)

    def of(self, call: Call) -> list[tuple[str, File]]:
        """What the caller sees of it."""
        self._expire()
        return list(self._files.get(_who(call.principal), {}).items())

    def create(self, call: Call, name: str, perm: int, omode: int) -> tuple[File, Handle]:
        """The Dir knows that the name is free.  Edquot past Limits.scratch_files_max."""
        file = self._add(call, name, perm)
        return file, ScratchHandle(file, omode)

    def _add(self, call: Call, name: str, perm: int, data: bytes = b"") -> ScratchFile:
        self._expire()
        mine = self._files.setdefault(_who(call.principal), {})
        if len(mine) >= self._owner.limits.scratch_files_max:
            raise E.Edquot("scratch files")
        file = mine[name] = ScratchFile(self._owner, self._total, call.principal, perm & 0o777)
        file.data[:] = data
        return file

    def remove(self, call: Call, name: str) -> None:
        who = _who(call.principal)
        mine = self._files.get(who, {})
        mine.pop(name, None)
        if not mine:
            self._files.pop(who, None)

    def rename(self, call: Call, name: str, to_name: str, flags: int) -> Answer[None]:
        if flags & RENAME_EXCHANGE:
            raise E.Eunsupported("exchange")
        document = self._document(to_name)
        if flags & RENAME_NOREPLACE and (document or self.find(call, to_name)):
            raise E.Eexist(to_name)
        file = self.find(call, name)
        if file is None:
            return self._back_up(call, name, to_name)
        if document is not None:
            document.access(call, W_WANT)
            return then(document.commit(call, bytes(file.data)), lambda _: self.remove(call, name))
        self._check_free(to_name)
        mine = self._files[_who(call.principal)]
        mine[to_name] = mine.pop(name)
        return None

    def _back_up(self, call: Call, name: str, to_name: str) -> Answer[None]:
        document = self._document(name)
        if document is None or self._document(to_name) is not None:
            raise E.Eperm(name)
        document.access(call, R_WANT | W_WANT)
        self._check_free(to_name)
        return then(document.content(call), lambda data: self._copied(call, to_name, document.perm, data))

    def _copied(self, call: Call, to_name: str, perm: int, data: bytes) -> None:
        self.remove(call, to_name)
        self._add(call, to_name, perm, data)

    def _check_free(self, name: str) -> None:
        # A name of the directory that is no document cannot be replaced, nor hidden from its owner's view.
        if self._taken(name):
            raise E.Eperm(name)

    def _total(self, who: Who) -> int:
        return sum(len(file.data) for file in self._files.get(who, {}).values())

    def _expire(self) -> None:
        now = self._owner.env.now_ns()
        for who, mine in list(self._files.items()):
            for name, file in list(mine.items()):
                if file.opens == 0 and now - file.closed_ns > LIFETIME_NS:
                    del mine[name]
            if not mine:
                del self._files[who]


class ScratchFile(SynthFile):
    """One scratch file.  It belongs to whoever created it, and its permissions bind that one only."""

    def __init__(self, owner: Owner, total: Callable[[Who], int], principal: Principal, perm: int) -> None:
        super().__init__(owner, perm, "a scratch file")
        self.uid = principal.uid
        self.gid = principal.gid
        self.data = bytearray()
        self.opens = 0
        self.closed_ns = owner.env.now_ns()
        self._who = _who(principal)
        self._total = total

    def stat_of_size(self, size: int) -> Stat:
        return structs.replace(super().stat_of_size(size), uid=self.uid, gid=self.gid)

    def stat(self, call: Call) -> Answer[Stat]:
        return self.stat_of_size(len(self.data))

    def access(self, call: Call, want: int) -> Answer[None]:
        if _who(call.principal) != self._who:
            raise E.Eperm
        return None

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        if omode & OTRUNC:
            self.resize(0)
        return ScratchHandle(self, omode)

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        """An editor gives its copy the document's mode, owner and times; only the mode and size mean anything here."""
        if change.size is not None:
            self.resize(change.size)
        if change.perm is not None:
            self.perm = change.perm & 0o777
        return None

    def resize(self, size: int) -> None:
        """Edquot past Limits.text_bytes_max for all scratch files of one principal here."""
        grown = size - len(self.data)
        if grown <= 0:
            del self.data[size:]
            return
        if self._total(self._who) + grown > self.owner.limits.text_bytes_max:
            raise E.Edquot("scratch files")
        self.data += bytes(grown)


class ScratchHandle(SynthHandle):
    """One open of a scratch file."""

    def __init__(self, file: ScratchFile, omode: int) -> None:
        super().__init__(file.owner)
        self._file = file
        self._writes = omode & 3 in (OWRITE, ORDWR)
        self._appends = bool(omode & OAPPEND)
        file.opens += 1

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        return bytes(self._file.data[offset : offset + count])

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        if not self._writes:
            raise E.Eperm
        file = self._file
        if self._appends:
            offset = len(file.data)
        end = offset + len(data)
        if end > len(file.data):
            file.resize(end)
        file.data[offset:end] = data
        file.touch()
        return len(data)

    def truncate(self, call: Call, size: int) -> Answer[None]:
        self._file.resize(size)
        return None

    def closing(self, call: Call) -> Answer[None]:
        self._file.opens -= 1
        self._file.closed_ns = self._file.owner.env.now_ns()
        return None
