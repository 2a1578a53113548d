"""@clone: opening the file makes a directory N, and the open file then is N/ctl.

The first read gives `N` and a newline.  The directory lives until every handle below it is closed, unless its
`persist` is set; then whoever serves it takes it away with drop_child.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from .answer import Answer, answering
from .file import Call, Handle
from .synth_file import Lease, Owner, SynthFile, check_called
from .synth_text import wants

F = TypeVar("F", bound=Callable[..., Any])


class CloneFile(SynthFile):
    """A file that makes a numbered directory beside itself at each open."""

    def __init__(self, owner: Owner, make: Callable[[Call], Answer[Owner]], perm: int, doc: str = "") -> None:
        super().__init__(owner, perm, doc)
        self._make = make

    @answering
    def open(self, call: Call, omode: int) -> Generator[Answer[Any], Any, Handle]:
        """A new directory, of the lowest number that is free, and its ctl opened.  Raises what the method raises."""
        self.check_alive()
        made: Owner = yield self._make(call)
        number = self._free_number()
        made.take_lease(Lease(lambda: self._idle(number, made)))
        ctl = yield made.walk(call, "ctl")
        self.owner.add_child(str(number), made)
        try:
            inner: Handle = yield ctl.open(call, omode)
        except BaseException:
            self._idle(number, made)
            raise
        return CloneHandle(inner, number)

    def _free_number(self) -> int:
        # Printed numbers are used again, qid paths never are.
        return next(n for n in itertools.count() if not self.owner.has_child(str(n)))

    def _idle(self, number: int, made: Owner) -> None:
        if not made.persist and not made.is_removed:
            self.owner.drop_child(str(number))
            made.gone()


class CloneHandle(Handle):
    """The ctl of the directory that this open made; its first read says which one."""

    direct = True

    def __init__(self, inner: Handle, number: int) -> None:
        self.iounit = inner.iounit
        self._inner = inner
        self._number: bytes | None = b"%d\n" % number
        self._was_read = False

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        """The number and a newline; a read that starts at 0 again, once that was read, gives the ctl's text."""
        number = self._number
        if number is None or (offset == 0 and self._was_read):
            self._number = None
            return self._inner.read(call, offset, count)
        # A shell reads byte by byte, and cat comes back at the end: both are still in the number.
        self._was_read = offset + count >= len(number)
        return number[offset : offset + count]

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        return self._inner.write(call, offset, data)

    def truncate(self, call: Call, size: int) -> Answer[None]:
        return None

    def flush(self, call: Call) -> Answer[None]:
        return self._inner.flush(call)

    def ready(self, call: Call, events: int, notify: Callable[[], None] | None) -> int:
        return self._inner.ready(call, events, notify)

    def close(self, call: Call) -> Answer[None]:
        return self._inner.close(call)


class CloneMark:
    """What @clone leaves on the method."""

    def __init__(self, method: Callable[..., Any], perm: int, name: str) -> None:
        self.perm = perm
        self.name = name
        self.doc = inspect.getdoc(method) or ""

    def make(self, owner: Owner, attribute: str) -> CloneFile:
        method: Callable[..., Any] = getattr(owner, attribute)
        make = method if wants(method, "call") else lambda call: method()
        return CloneFile(owner, make, self.perm, self.doc)


def clone(perm: int = 0o666, name: str = "clone") -> Callable[[F], F]:
    """The method returns the new directory, a synthetic one with a ctl; it is then served as N."""

    check_called(perm, "clone")

    def mark(method: F) -> F:
        method.__ninep_mark__ = CloneMark(method, perm, name)  # type: ignore[attr-defined]  # read by Dir
        return method

    return mark
