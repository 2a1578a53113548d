"""The verb cp: files between servers and the local file system.  Here a path without a scheme is a local file."""

from __future__ import annotations

import argparse
import os
import stat as _s
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from ninep.proto import errors as E
from ninep.proto.types import OTRUNC, OWRITE

from . import failure
from .failure import OK, Failure, UsageError
from .output import Output
from .target import Connections, Target, failing_at, is_remote, target

if TYPE_CHECKING:
    from ninep.edges.blocking import Blocking

CHUNK_BYTES = 1 << 20
PROGRESS_AFTER_SECONDS = 1.0
PROGRESS_EVERY_SECONDS = 0.2


class Side(Protocol):
    """One end of a copy: a place in a tree, here or there."""

    text: str

    def kind(self) -> str:
        """file, dir, symlink or other; "" if there is nothing."""
        ...

    def size(self) -> int: ...

    def perm(self) -> int: ...

    def names(self) -> list[str]: ...

    def child(self, name: str) -> Side: ...

    def name(self) -> str: ...

    def pieces(self) -> Iterator[bytes]: ...

    def target(self) -> str: ...

    def make_dir(self, perm: int) -> None: ...

    def make_link(self, target: str) -> None: ...

    @contextmanager
    def writer(self, perm: int) -> Iterator[Callable[[bytes], object]]: ...


class Local:
    """A path of this machine; `-` is standard input or output."""

    def __init__(self, path: str) -> None:
        self.text = path

    def kind(self) -> str:
        if self.text == "-":
            return "file"
        try:
            mode = os.lstat(self.text).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return ""
        kinds = {_s.S_IFREG: "file", _s.S_IFDIR: "dir", _s.S_IFLNK: "symlink"}
        return kinds.get(_s.S_IFMT(mode), "other")

    def size(self) -> int:
        return os.stat(self.text).st_size if self.text != "-" else 0

    def perm(self) -> int:
        return os.stat(self.text).st_mode & 0o777 if self.text != "-" else 0o644

    def names(self) -> list[str]:
        return sorted(os.listdir(self.text))

    def child(self, name: str) -> Side:
        return Local(os.path.join(self.text, name))

    def name(self) -> str:
        return os.path.basename(os.path.abspath(self.text))

    def pieces(self) -> Iterator[bytes]:
        if self.text == "-":
            while data := os.read(0, CHUNK_BYTES):
                yield data
            return
        with open(self.text, "rb", buffering=0) as file:
            while data := file.read(CHUNK_BYTES):
                yield data

    def target(self) -> str:
        return os.readlink(self.text)

    def make_dir(self, perm: int) -> None:
        if self.kind() != "dir":
            os.mkdir(self.text, perm | 0o700)

    def make_link(self, target: str) -> None:
        os.symlink(target, self.text)

    @contextmanager
    def writer(self, perm: int) -> Iterator[Callable[[bytes], object]]:
        if self.text == "-":
            yield lambda data: _write_all(1, data)
            return
        # A server must not make a set-id program here, and a link that is in the way is not followed.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.text, flags, perm & 0o777)
        try:
            yield lambda data: _write_all(fd, data)
        finally:
            os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Remote:
    """A file of a server."""

    def __init__(self, remote: Blocking, where: Target) -> None:
        self._remote = remote
        self._where = where
        self.text = where.text

    def kind(self) -> str:
        try:
            mode = self._remote.stat(self._where.path).st_mode
        except E.Enonexist:
            return ""
        kinds = {_s.S_IFREG: "file", _s.S_IFDIR: "dir", _s.S_IFLNK: "symlink"}
        return kinds.get(_s.S_IFMT(mode), "file")

    def size(self) -> int:
        return self._remote.stat(self._where.path).size

    def perm(self) -> int:
        return self._remote.stat(self._where.path).st_mode & 0o777

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self._remote.ls(self._where.path))

    def child(self, name: str) -> Side:
        return Remote(self._remote, self._where.child(name))

    def name(self) -> str:
        return self._where.name

    def pieces(self) -> Iterator[bytes]:
        return self._remote.chunks(self._where.path)

    def target(self) -> str:
        return self._remote.readlink(self._where.path)

    def make_dir(self, perm: int) -> None:
        if self.kind() != "dir":
            self._remote.mkdir(self._where.path, perm | 0o700)

    def make_link(self, target: str) -> None:
        self._remote.symlink(target, self._where.path)

    @contextmanager
    def writer(self, perm: int) -> Iterator[Callable[[bytes], object]]:
        try:
            file = self._remote.create(self._where.path, perm & 0o777)
        except E.Eexist:
            file = self._remote.open(self._where.path, OWRITE | OTRUNC)
        with file:
            yield file.write


def cp(args: argparse.Namespace, output: Output) -> int:
    sides = [getattr(args, "from"), args.to]
    if not any(is_remote(side) for side in sides):
        raise UsageError("both sides are local files", hint="cp(1), or node:/path for a file of the local node")
    with Connections(args) as connections:
        source, to = (_side(text, args, connections) for text in sides)
        with _told(source):
            kind = source.kind()
            if not kind:
                raise E.Enonexist
            if kind == "dir" and not args.recursive:
                raise E.Eisdir
        with _told(to):
            there = to.kind()
            if there == "dir" and not (args.recursive and kind == "dir" and args.no_replace):
                to = to.child(_safe(source.name()))
                there = to.kind()
            if there and args.no_replace:
                raise E.Eexist
        progress = Progress(output, source.size() if kind == "file" else 0)
        copied = _copy(source, to, progress, output)
        progress.end()
    if output.is_json:
        output.json({"from": source.text, "to": to.text, "files": copied, "bytes": progress.done})
    return OK


def _side(text: str, args: argparse.Namespace, connections: Connections) -> Side:
    if not is_remote(text):
        return Local(text.removeprefix("file:"))
    where = target(text, args)
    return Remote(connections.to(where), where)


def _safe(name: str) -> str:
    """A name that a server gave, fit to be made in a directory of ours."""
    if name in ("", ".", "..", "/") or "/" in name or "\0" in name:
        raise UsageError("the copy needs a name", hint="a target that is not a directory")
    return name


@contextmanager
def _told(side: Side) -> Iterator[None]:
    """What is refused inside is told with this side's name."""
    try:
        if isinstance(side, Remote):
            with failing_at(side._where):
                yield
        else:
            yield
    except OSError as e:
        hint = "node:PATH if you meant the local node's" if e.errno == 2 else ""
        raise failure.from_error(e, side.text, hint) from None
    except E.FileError as e:
        raise failure.from_error(e, side.text) from None


def _copy(source: Side, to: Side, progress: Progress, output: Output) -> int:
    """The number of files made.  Breadth first over a list, so that no depth of a server's tree is our stack's."""
    work: list[tuple[Side, Side]] = [(source, to)]
    made = 0
    while work:
        one, two = work.pop()
        with _told(one):
            kind, perm = one.kind(), 0
            if kind in ("dir", "file"):
                perm = one.perm()
        if kind == "dir":
            with _told(one):
                names = one.names()
            with _told(two):
                two.make_dir(perm)
            work += [(one.child(name), two.child(_safe(name))) for name in reversed(names)]
        elif kind == "symlink":
            with _told(two):
                two.make_link(one.target())
        elif kind == "file":
            _copy_file(one, two, perm, progress)
        else:
            output.note(f"cp: not copied, neither file nor directory: {one.text}")
            continue
        made += kind != "dir"
        output.detail(f"cp: {one.text} -> {two.text}")
    return made


def _copy_file(one: Side, two: Side, perm: int, progress: Progress) -> None:
    pieces = one.pieces()
    with _told(one):
        first = next(pieces, b"")  # what cannot be read must not leave an empty file behind
    with _told(two), two.writer(perm) as write:
        while first:
            write(first)
            progress.add(len(first))
            with _told(one):
                first = next(pieces, b"")


class Progress:
    """Rate and time left on a terminal's standard error, from the second second on."""

    def __init__(self, output: Output, total: int) -> None:
        self.done = 0
        self._total = total
        self._begun = self._shown = time.monotonic()
        self._is_wanted = not output.quiet and not output.is_json and os.isatty(2)
        self._is_on = False

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if not self._is_wanted or now - self._begun < PROGRESS_AFTER_SECONDS:
            return
        if now - self._shown >= PROGRESS_EVERY_SECONDS:
            self._shown = now
            self._is_on = True
            os.write(2, f"\r\x1b[K{self.line(now)}".encode())

    def line(self, now: float) -> str:
        """What is shown: amount, rate, and the time left where the whole is known."""
        rate = self.done / max(now - self._begun, 1e-9)
        text = f"{human(self.done)}  {human(rate)}/s"
        if self._total > self.done and rate:
            left = int((self._total - self.done) / rate)
            text += f"  {100 * self.done // self._total} %  {left // 60}:{left % 60:02d} left"
        return text

    def end(self) -> None:
        if self._is_on:
            os.write(2, b"\r\x1b[K")


def human(count: float) -> str:
    """Bytes in the unit that keeps the number short."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


__all__ = ["Failure", "cp"]
