"""mount.fuse.ninep, as mount(8) calls it: SRC DIR [-sfnvN] [-t TYPE] [-o OPTS].  It mounts as `ninep mount` does."""

from __future__ import annotations

from collections.abc import Sequence

from .failure import USAGE, Failure, UsageError, tell
from .mountopts import parse_options

PROGRAM = "mount.fuse.ninep"
_FLAGS = set("sfnvN")  # sloppy, fake, no mtab, verbose, namespace: mount(8), "external helpers"


def helper(argv: Sequence[str]) -> int:
    """The exit code, in mount(8)'s sense: 0, 1 for a wrong call, 32 for a mount that failed."""
    try:
        source, directory, options, flags = _parse(list(argv))
        parse_options([options])
        if "f" in flags:
            return 0  # a dry run
    except Failure as e:
        tell(e, PROGRAM, "", is_json=False)
        return 1
    from .main import front

    words = ["mount", *(["-v"] if "v" in flags else []), *(["-o", options] if options else []), "--", source, directory]
    code = front(words)
    return {0: 0, USAGE: 1}.get(code, 32)


def _parse(words: list[str]) -> tuple[str, str, str, set[str]]:
    """(source, directory, options, single-letter flags).  Raises UsageError."""
    operands: list[str] = []
    options: list[str] = []
    flags: set[str] = set()
    hint = f"{PROGRAM} URL|TREE DIR [-o OPTS]"
    while words:
        word = words.pop(0)
        if word in ("-o", "-t"):
            if not words:
                raise UsageError(f"{word} wants a value", hint=hint)
            value = words.pop(0)
            if word == "-o":
                options.append(value)
        elif word.startswith("-o"):
            options.append(word[2:])
        elif word.startswith("-") and len(word) > 1:
            if unknown := set(word[1:]) - _FLAGS:
                raise UsageError(f"unknown option -{sorted(unknown)[0]}", hint=hint)
            flags |= set(word[1:])
        else:
            operands.append(word)
    if len(operands) != 2:
        raise UsageError("a source and a directory are wanted", hint=hint)
    # libmount writes the type's own prefix before a source that has none, as in fuse.ninep#SRC of old mount(8).
    return operands[0].removeprefix("ninep#"), operands[1], ",".join(options), flags
