"""TREE on the command line: ram:, host:DIR[:ro], kernel:, py:module:attr.  From the text to a Dir."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from ninep.limits import DEFAULT, Limits
from ninep.proto import errors as E

from . import logs
from .failure import FAILED, NOT_FOUND, REFUSED, Failure, Refusal, UsageError, from_error

if TYPE_CHECKING:
    from ninep.file import Dir
    from ninep.node import Node

SCHEMES = ("ram:", "host:", "kernel:", "py:")
HINT = "ram: | host:DIR[:ro] | kernel: | py:module:attr"


class HostSpec(NamedTuple):
    """A host directory and how it is served."""

    directory: str
    readonly: bool = False
    ownership: Literal["squash", "native"] = "squash"


def is_tree(text: str) -> bool:
    """True for what the grammar of trees covers; anything else may be a URL."""
    return text.startswith(SCHEMES) or text in ("ram", "kernel")


def host_spec(text: str) -> HostSpec:
    """DIR[:ro|rw|squash|native]...; a colon that is part of the directory's name is written before `:rw`."""
    readonly = False
    ownership: Literal["squash", "native"] = "squash"
    while True:
        head, colon, word = text.rpartition(":")
        if not colon or word not in ("ro", "rw", "squash", "native"):
            break
        text = head
        if word in ("squash", "native"):
            ownership = "native" if word == "native" else "squash"
        else:
            readonly = word == "ro"
    if not text:
        raise UsageError("no directory after host:", hint="host:DIR or host:DIR:ro")
    return HostSpec(text, readonly, ownership)


def tree_of(text: str, node: Node, key: Callable[[], bytes], limits: Limits = DEFAULT) -> Dir:
    """The tree that the text means.  `key` gives the secret for qids, asked only by trees that need it.

    Raises Failure, told as it should be.
    """
    scheme, colon, rest = text.partition(":")
    match scheme:
        case "ram" if not rest:
            from ninep.servers import ram

            return ram.tree(limits, uid=os.geteuid(), gid=os.getegid())
        case "host" if colon:
            return host_tree(host_spec(rest), key, limits)
        case "kernel" if not rest:
            return kernel_tree(node)
        case "py" if rest:
            return _python_tree(rest)
    raise UsageError(f"not a tree: {text[:80]}", hint=HINT)


def host_tree(spec: HostSpec, key: Callable[[], bytes], limits: Limits = DEFAULT) -> Dir:
    """A host directory as a tree.  Raises Failure: what must not be exported is refused with code 78."""
    from ninep.servers import host

    try:
        return host.tree(spec.directory, readonly=spec.readonly, ownership=spec.ownership, key=key(), limits=limits)
    except E.Enotallowed as e:
        raise Refusal(e.about, "a directory below it") from None
    except E.Ehost as e:
        raise Failure(str(e), where=spec.directory, code=FAILED) from None
    except OSError as e:
        raise from_error(e, spec.directory, "a directory that is there" if e.errno in (2, 20) else "") from None


def kernel_tree(node: Node) -> Dir:
    """The synthetic kernel's trees, under their names: what exists of them today."""
    from ninep import synth
    from ninep.kernelfs import dev

    root = synth.Dir()
    root.uid, root.gid = os.geteuid(), os.getegid()
    errors = dev.ErrorLog(node.env, node.limits)
    node.on_error = errors.record
    lines = dev.Log(node.env, node.limits)
    logs.also_to(lines.add)
    root.add_child(
        "dev",
        dev.tree(
            node.events,
            sysname=os.uname().nodename,
            uid=os.geteuid(),
            gid=os.getegid(),
            log=lines,
            errors=errors,
            sessions=node.statistics,
            env=node.env,
            limits=node.limits,
        ),
    )
    return root


def _python_tree(spec: str) -> Dir:
    from ninep import reload

    try:
        return reload.tree(spec)
    except E.Enonexist as e:
        raise Failure(f"no such {e.about}", errno_name="ENOENT", code=NOT_FOUND) from None
    except E.FileError as e:
        raise Failure(e.about or e.text, where=f"py:{spec}", hint="py:module:attr or py:./file.py:attr") from None
    except Exception as e:
        from traceback import extract_tb

        frames = extract_tb(e.__traceback__)
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else spec
        if isinstance(e, SyntaxError):
            where = f"{e.filename}:{e.lineno}"
        raise Failure(f"{type(e).__name__}: {e}", where=where, hint="again when it loads") from None


__all__ = ["HINT", "REFUSED", "HostSpec", "host_spec", "host_tree", "is_tree", "kernel_tree", "tree_of"]
