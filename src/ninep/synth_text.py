"""@text: a state file.  Rendered whole, once per open and once per snapshot, so that no reader ever sees two moments.

A writable one is a document (what one open wrote is judged as a whole, when it is closed) or takes each write(2) as
one message.  Reading never has side effects.

A document is judged at the close(2) of any descriptor that wrote (FLUSH), and at the last one: cp and tee then report
a refusal.  The shell's `echo > file` does not look at close, so the last verdict can also be read as `NAME.err`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Generator, Mapping
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from .answer import Answer, answering, then
from .file import Call, File, Handle
from .proto import errors as E
from .proto.types import OAPPEND, ORDWR, OTRUNC, OWRITE, W_WANT, Change, Stat
from .synth_file import BytesHandle, Frozen, Owner, SynthFile, SynthHandle, check_called, to_bytes

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")
P2 = ParamSpec("P2")
R2 = TypeVar("R2")

Render = Callable[[Call], Answer[str | bytes]]
Writer = Callable[[Call, bytes], Answer[object]]


class TextFile(SynthFile):
    """A state file of any directory, made by @text or by hand.

    `render(call)` gives the content; `write(call, data)` takes a document or, with `each`, one write.  A `dear` one is
    not rendered for a stat: its size is then that of its last rendering.  `edit` lets editors put scratch files beside
    a document; without it a mistyped name beside it stays an error.
    """

    def __init__(
        self,
        owner: Owner,
        render: Render,
        write: Writer | None = None,
        *,
        perm: int = 0o444,
        dear: bool = False,
        each: bool = False,
        edit: bool = True,
        doc: str = "",
    ) -> None:
        super().__init__(owner, perm, doc)
        self._render = render
        self._write = write
        self.dear = dear
        self.each = each
        self.edit = edit and write is not None and not each
        self.verdict = ""  # of the last write of a document; empty for accepted
        self._last: Frozen | None = None
        self._last_size = 0

    @property
    def is_document(self) -> bool:
        return self._write is not None and not self.each

    def may_write(self, call: Call) -> bool:
        """Whether the caller's permission bits let it write."""
        try:
            self.access(call, W_WANT)
        except E.Eperm:
            return False
        return True

    def content(self, call: Call) -> Answer[bytes]:
        """This moment's content.  Efbig past Limits.text_bytes_max."""
        return then(self._render(call), self._taken)

    def _taken(self, content: object) -> bytes:
        if not isinstance(content, str | bytes | bytearray):
            raise TypeError(f"a text is str or bytes, not {type(content).__name__}")
        data = to_bytes(content)
        if len(data) > self.owner.limits.text_bytes_max:
            raise E.Efbig(f"{len(data)} > {self.owner.limits.text_bytes_max}")
        self._last_size = len(data)
        return data

    def stat(self, call: Call) -> Answer[Stat]:
        if self.dear:
            return self.stat_of_size(self._last_size)
        return then(self.content(call), lambda data: self.stat_of_size(len(data)))

    def snapshot(self, call: Call) -> Answer[File]:
        return then(self.content(call), self._frozen)

    def _frozen(self, data: bytes) -> File:
        # The same content again is the same file: an edge then keeps its node, and the kernel its cache.
        if self._last is None or self._last.data != data or self._last.perm != self.perm:
            self.mtime_ns = self.owner.env.time_ns()
            self._last = Frozen(self, data)
        return self._last

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        self.check_alive()
        writes = omode & 3 in (OWRITE, ORDWR)
        if not writes:
            return then(self.content(call), lambda data: BytesHandle(self.owner, data))
        if self._write is None:
            raise E.Eperm
        if self.each:
            return EachHandle(self, readable=omode & 3 == ORDWR)
        if omode & OTRUNC:
            return DocumentHandle(self, b"", omode)
        return then(self.content(call), lambda data: DocumentHandle(self, data, omode))

    @answering
    def commit(self, call: Call, data: bytes) -> Generator[Answer[Any], Any, object]:
        """Hand written content to the author; what the writer returned.  The refusal is also kept as the verdict."""
        assert self._write is not None
        if len(data) > self.owner.limits.text_bytes_max:
            raise E.Efbig
        try:
            answer = yield self._write(call, data)
        except E.FileError as e:
            self.verdict = str(e)
            raise
        self.verdict = ""
        self.touch()
        return answer

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        """truncate(2) of a document is a write of it; O_TRUNC on anything that takes messages is ignored."""
        if self._write is None or change.perm is not None or change.uid is not None or change.gid is not None:
            raise E.Eperm
        size = change.size
        if self.each or size is None:
            return None
        self._check_size(size)
        return then(
            then(self.content(call), lambda data: self.commit(call, data[:size].ljust(size, b"\0"))), lambda _: None
        )

    def _check_size(self, size: int) -> None:
        if size > self.owner.limits.text_bytes_max:
            raise E.Efbig


class DocumentHandle(SynthHandle):
    """One open of a document for writing: its own draft, judged as a whole.

    Direct: the kernel must neither merge nor cache what is still a draft.
    """

    direct = True

    def __init__(self, file: TextFile, data: bytes, omode: int) -> None:
        super().__init__(file.owner)
        self._file = file
        self._draft = bytearray(data)
        self._appends = bool(omode & OAPPEND)
        # A shell dups and closes the descriptor before it writes: only close may judge an empty draft.
        self._truncated = bool(omode & OTRUNC)
        self._written = False

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        return bytes(self._draft[offset : offset + count])

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        if self._appends:
            offset = len(self._draft)
        self._file._check_size(offset + len(data))
        if offset > len(self._draft):
            self._draft += bytes(offset - len(self._draft))
        self._draft[offset : offset + len(data)] = data
        self._written = True
        return len(data)

    def truncate(self, call: Call, size: int) -> Answer[None]:
        self._file._check_size(size)
        self._truncated = True
        if size < len(self._draft):
            del self._draft[size:]
        else:
            self._draft += bytes(size - len(self._draft))
        return None

    def fsync(self, call: Call, datasync: bool) -> Answer[None]:
        return self.flush(call)

    def flush(self, call: Call) -> Answer[None]:
        if not self._written:
            return None
        self._written = self._truncated = False
        return then(self._file.commit(call, bytes(self._draft)), lambda _: None)

    def closing(self, call: Call) -> Answer[None]:
        self._written |= self._truncated
        return self.flush(call)


class EachHandle(SynthHandle):
    """One open of a file that takes each write as one message, and whose writer may answer.

    The answer is this open's; the first read after a write starts it, whatever offset a shell's descriptor is at.
    Before any write the file's own content is read.
    """

    direct = True

    def __init__(self, file: TextFile, *, readable: bool) -> None:
        super().__init__(file.owner)
        self.iounit = file.owner.limits.ctl_bytes_max
        self._file = file
        self._readable = readable
        self._answer: bytes | None = None
        self._from = -1

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        if len(data) > self.iounit:
            raise E.Elarge
        count = len(data)
        return then(self._file.commit(call, bytes(data)), lambda answer: self._answered(answer, count))

    def _answered(self, answer: object, count: int) -> int:
        self._answer = to_bytes(answer) if isinstance(answer, str | bytes) else b""
        self._from = -1
        return count

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        if not self._readable:
            raise E.Eperm
        if self._answer is None:
            return then(self._file.content(call), lambda data: self._first(data, offset, count))
        if self._from < 0:
            self._from = offset
        at = offset - self._from
        return self._answer[at : at + count] if at >= 0 else b""

    def _first(self, data: bytes, offset: int, count: int) -> bytes:
        self._answer, self._from = data, 0
        return data[offset : offset + count]

    def truncate(self, call: Call, size: int) -> Answer[None]:
        return None


@functools.lru_cache(maxsize=4096)
def _parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def wants(method: Callable[..., object], name: str) -> bool:
    """Whether a method has a parameter of this name."""
    # The signature belongs to the function and costs 20 us; a directory of a thousand files has one function.
    return name in _parameters(getattr(method, "__func__", method))


class Text(Generic[P, R]):
    """What @text leaves in the class: still callable as the method, and a place for @name.writer."""

    def __init__(
        self,
        method: Callable[Concatenate[Any, P], R],
        perm: int | None,
        name: str | None,
        cost: Literal["cheap", "dear"],
        write: Literal["whole", "each"],
        edit: bool,
    ) -> None:
        self.method = method
        self._perm = perm
        self.name = name or method.__name__
        self.dear = cost == "dear"
        self.each = write == "each"
        self.edit = edit
        self.writer_name: str | None = None
        self.doc = inspect.getdoc(method) or ""

    @property
    def perm(self) -> int:
        if self._perm is not None:
            return self._perm
        return 0o644 if self.writer_name else 0o444

    def writer(self, method: Callable[P2, R2]) -> Callable[P2, R2]:
        """Mark the method that takes what is written: (self, text: str) or (self, data: bytes), and `call` if named.

        It may be async and may refuse with any FileError.  With write="each" the str or bytes it returns is what the
        same open reads next.
        """
        self.writer_name = method.__name__
        return method

    @overload
    def __get__(self, owner: None, cls: type) -> Text[P, R]: ...
    @overload
    def __get__(self, owner: object, cls: type) -> Callable[P, R]: ...
    def __get__(self, owner: object | None, cls: type) -> Text[P, R] | Callable[P, R]:
        if owner is None:
            return self
        bound: Callable[P, R] = types.MethodType(self.method, owner)
        return bound

    def make(self, owner: Owner, attribute: str) -> TextFile:
        """The file of one directory."""
        method: Callable[..., Any] = getattr(owner, attribute)
        render: Render = method if wants(method, "call") else lambda call: method()
        write = _writer_of(getattr(owner, self.writer_name)) if self.writer_name else None
        return TextFile(
            owner, render, write, perm=self.perm, dear=self.dear, each=self.each, edit=self.edit, doc=self.doc
        )


def _writer_of(method: Callable[..., Any]) -> Writer:
    parameters = _parameters(getattr(method, "__func__", method))
    with_call = "call" in parameters
    name = next(n for n in parameters if n not in ("self", "call"))
    binary = parameters[name].annotation in (bytes, "bytes")

    def write(call: Call, data: bytes) -> Answer[object]:
        content = data if binary else data.decode("utf-8", "surrogateescape")
        arguments = {name: content, "call": call} if with_call else {name: content}
        answer: Answer[object] = method(**arguments)
        return answer

    return write


def text(
    perm: int | None = None,
    name: str | None = None,
    cost: Literal["cheap", "dear"] = "cheap",
    write: Literal["whole", "each"] = "whole",
    edit: bool = True,
) -> Callable[[Callable[Concatenate[D, P], R]], Text[P, R]]:
    """A state file whose content the method returns: str or bytes, def or async def, with `call` if it names it.

    `perm` is 0o444 unless given, 0o644 with a writer.
    `cost="dear"` says that it is not to be rendered for a stat.  What is written goes to the method marked
    @NAME.writer (Text.writer): `write="whole"` judges what one open wrote when it is closed, `write="each"` each
    write(2).  `edit` says whether editors may put scratch files beside it.
    """
    check_called(perm, "text")
    return lambda method: Text(method, perm, name, cost, write, edit)
