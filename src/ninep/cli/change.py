"""The verbs that change things: write create rm mkdir mv chmod."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ninep.proto import errors as E
from ninep.proto.types import OAPPEND, OTRUNC, OWRITE, Change

from .failure import OK, UsageError
from .output import Output
from .target import Connections, Target, each, failing_at, is_remote, target

if TYPE_CHECKING:
    from ninep.edges.blocking import Blocking, BlockingFile

CHUNK_BYTES = 1 << 20
LINE_BYTES_MAX = 1 << 20
DEPTH_MAX = 4096


def write(args: argparse.Namespace, output: Output) -> int:
    """Words in one write, standard input in pieces as they come, or --lines."""
    if args.append and args.offset is not None:
        raise UsageError("--append and --offset exclude each other", hint="one of them")
    if args.text and args.lines:
        raise UsageError("--lines is for standard input", hint="no TEXT")
    where = target(args.url, args)
    with Connections(args) as connections:
        remote = connections.to(where, wants_text=True)
        with failing_at(where, hint="--create" if not args.create else ""), _opened(remote, where, args) as file:
            total = 0
            for data in _input(args):
                total += file.write(data)
    if output.is_json:
        output.json({"url": where.text, "written": total})
    output.detail(f"write: {total} bytes: {where.text}")
    return OK


def _opened(remote: Blocking, where: Target, args: argparse.Namespace) -> BlockingFile:
    omode = OWRITE
    if args.append:
        omode |= OAPPEND
    elif args.offset is None:
        omode |= OTRUNC
    try:
        file = remote.open(where.path, omode)
    except E.Enonexist:
        if not args.create:
            raise
        try:
            file = remote.create(where.path, 0o666 & ~umask())
        except E.Eexist:  # somebody made it meanwhile: then it is there
            file = remote.open(where.path, omode)
    if args.append:
        # The dialects without an append flag need the place; with it the server decides, and this is only a hint.
        file.seek(file.stat().size)
    elif args.offset is not None:
        file.seek(args.offset)
    return file


def _input(args: argparse.Namespace) -> Iterator[bytes]:
    if args.text:
        yield os.fsencode(" ".join(args.text)) + (b"" if args.no_newline else b"\n")
    elif args.lines:
        while line := sys.stdin.buffer.readline(LINE_BYTES_MAX):
            yield line
    else:
        while data := os.read(0, CHUNK_BYTES):
            yield data


def umask() -> int:
    """This process's file mode mask."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def create(args: argparse.Namespace, output: Output) -> int:
    perm = 0o666 & ~umask() if args.mode is None else args.mode

    def one(remote: Blocking, where: Target) -> None:
        remote.create(where.path, perm).close()
        _done("create", where, output)

    return each(args.url, args, one, "create")


def _done(verb: str, where: Target, output: Output) -> None:
    if output.is_json:
        output.json({"url": where.text, "done": verb})
    output.detail(f"{verb}: {where.text}")


def rm(args: argparse.Namespace, output: Output) -> int:
    def one(remote: Blocking, where: Target) -> None:
        try:
            if args.recursive:
                _remove_tree(remote, where, output)
            else:
                remote.remove(where.path)
        except E.Enonexist:
            if not args.force:
                raise
            return
        _done("rm", where, output)

    return each(args.url, args, one, "rm")


def _remove_tree(remote: Blocking, where: Target, output: Output) -> None:
    """Depth first, without recursion: a tree may be deeper than Python's stack."""
    if not where.address.path:
        raise E.Ebadarg("the root of a tree is not removed through the tree")
    if not remote.stat(where.path).is_dir:
        remote.remove(where.path)
        return
    stack = [(where.path, list(remote.ls(where.path)))]
    while stack:
        path, entries = stack[-1]
        if not entries:
            remote.remove(path, True)
            output.detail(f"rm: {path}")
            stack.pop()
            continue
        entry = entries.pop()
        child = f"{path}/{entry.name}"
        if entry.qid.type & 0x80:
            if len(stack) >= DEPTH_MAX:
                raise E.Enametoolong(child[:60])
            stack.append((child, list(remote.ls(child))))
        else:
            remote.remove(child, False)
            output.detail(f"rm: {child}")


def mkdir(args: argparse.Namespace, output: Output) -> int:
    perm = 0o777 & ~umask() if args.mode is None else args.mode

    def one(remote: Blocking, where: Target) -> None:
        if args.parents:
            _make_parents(remote, where, perm)
        else:
            remote.mkdir(where.path, perm)
        _done("mkdir", where, output)

    return each(args.url, args, one, "mkdir")


def _make_parents(remote: Blocking, where: Target, perm: int) -> None:
    names = where.address.path
    for count in range(1, len(names) + 1):
        path = "/" + "/".join(names[:count])
        try:
            remote.mkdir(path, perm if count == len(names) else 0o777 & ~umask())
        except E.Eexist:
            if not remote.stat(path).is_dir:
                raise
        except E.FileError:
            # A read-only parent refuses before it looks whether the name is there.
            if not remote.stat(path).is_dir:
                raise


def mv(args: argparse.Namespace, output: Output) -> int:
    where = target(args.url, args)
    if is_remote(args.to):
        to = target(args.to, args)
        if to.server != where.server:
            raise UsageError("mv works within one server", hint="'ninep cp', then 'ninep rm'")
        path = to.path
    else:
        path = "/" + "/".join(where.address.at("..").at(args.to).path)
    with Connections(args) as connections:
        remote = connections.to(where)
        with failing_at(where):
            if args.no_replace and _exists(remote, path):
                raise E.Eexist(path)
            remote.rename(where.path, path)
    _done("mv", where, output)
    return OK


def _exists(remote: Blocking, path: str) -> bool:
    try:
        remote.walk(path)
    except E.Enonexist:
        return False
    return True


def chmod(args: argparse.Namespace, output: Output) -> int:
    spec: str = args.mode
    changed_mode(spec, 0o644, False)  # a mistake in it is told before anything is changed

    def one(remote: Blocking, where: Target) -> None:
        st = remote.stat(where.path)
        remote.wstat(where.path, Change(perm=changed_mode(spec, st.st_mode & 0o7777, st.is_dir)))
        _done("chmod", where, output)

    return each(args.url, args, one, "chmod")


_CLASSES = {"u": 0o700, "g": 0o070, "o": 0o007}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111}


def changed_mode(spec: str, perm: int, is_dir: bool) -> int:
    """The permission bits after chmod(1)'s `spec`: octal, or clauses of [ugoa]*[+-=][rwxX]*.  Raises UsageError."""
    if spec and all(c in "01234567" for c in spec) and len(spec) <= 5 and int(spec, 8) <= 0o7777:
        return int(spec, 8)
    for clause in spec.split(","):
        at = next((i for i, c in enumerate(clause) if c in "+-="), -1)
        classes, letters = clause[: max(at, 0)], clause[at + 1 :]
        if at < 0 or set(classes) - set("ugoa") or set(letters) - set("rwxX"):
            raise UsageError(f"not a mode: {spec[:40]!r}", hint="640, or u+x,go-w")
        mask = 0
        for c in classes if classes and "a" not in classes else "ugo":
            mask |= _CLASSES[c]
        bits = 0
        for c in letters:
            if c == "X":
                bits |= 0o111 if is_dir or perm & 0o111 else 0
            else:
                bits |= _BITS[c]
        if not classes:
            bits &= ~umask()
        match clause[at]:
            case "+":
                perm |= bits & mask
            case "-":
                perm &= ~(bits & mask)
            case _:
                perm = perm & ~mask | bits & mask
    return perm
