"""How a program fails: its exit code, and the one line that says what, where, why and what to try."""

from __future__ import annotations

import errno as _e
from typing import TYPE_CHECKING, Final

from ninep.proto import errors as E

from .output import complain, escaped, json_line

if TYPE_CHECKING:
    from ninep.edges.dial import Address

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
DENIED: Final = 4
UNREACHABLE: Final = 5
CONFLICT: Final = 6
REFUSED: Final = 78  # EX_CONFIG of sysexits.h: a server that must not start so
INTERRUPTED: Final = 130
TEXT_CHARS_MAX: Final = 256  # of a server's own words in our line

_CODES: Final = {
    **dict.fromkeys((_e.ENOENT,), NOT_FOUND),
    **dict.fromkeys((_e.EACCES, _e.EPERM, _e.EROFS), DENIED),
    **dict.fromkeys(
        (_e.ECONNREFUSED, _e.ETIMEDOUT, _e.EHOSTUNREACH, _e.ENETUNREACH, _e.ECONNRESET, _e.ENOTCONN, _e.EPIPE,
         _e.ESHUTDOWN, _e.ENXIO, _e.ENETDOWN),
        UNREACHABLE,
    ),
    **dict.fromkeys((_e.EEXIST, _e.ESTALE, _e.EBUSY, _e.ENOTEMPTY), CONFLICT),
}  # fmt: skip

_TRY: Final = {
    _e.EACCES: "a user whom the server proves and allows (ninep stat shows owner and mode)",
    _e.EROFS: "a tree that is served without :ro",
    _e.EISDIR: "'ninep ls', or -r with cp and rm",
    _e.ENOTEMPTY: "'ninep rm -r'",
    _e.EEXIST: "another name, or 'ninep rm' first",
    _e.ETIMEDOUT: "a longer --timeout",
    _e.ESTALE: "again: the file was replaced meanwhile",
    _e.EBUSY: "again when it is free",
    _e.EPIPE: "again: the server hung up",
    _e.ENAMETOOLONG: "a name of at most 255 bytes",
    _e.EOPNOTSUPP: "another dialect, as in URL?dialect=9P2000.L",
}


class Failure(Exception):
    """A failure that is ready to be told.  `code` is the exit code, `errno_name` "" where no errno belongs to it."""

    def __init__(self, what: str, *, where: str = "", errno_name: str = "", hint: str = "", code: int = FAILED) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.errno_name = errno_name
        self.hint = hint
        self.code = code


class UsageError(Failure):
    """The command line makes no sense."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint=hint, code=USAGE)


class Refusal(Failure):
    """A server that must not start as it was asked to; `hint` is the remedy."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what, hint=hint, code=REFUSED)


def from_error(e: Exception, where: str = "", hint: str = "") -> Failure:
    """A refusal of a server (FileError) or of this machine (OSError) as a Failure."""
    if isinstance(e, E.FileError):
        number, name = e.errno, _e.errorcode.get(e.errno, f"errno {e.errno}")
        text, about = e.text, e.about
        if about and about not in where and where not in about:
            text = f"{text}: {about}"
        if isinstance(e, E.Ehost) and not hint:
            return Failure(text[:TEXT_CHARS_MAX], where=where, errno_name=name)  # no dialect changes what a host can do
    elif isinstance(e, OSError):
        number = e.errno or _e.EIO
        name = _e.errorcode.get(number, f"errno {number}")
        text = (e.strerror or str(e)).lower()
        where = where or (e.filename if isinstance(e.filename, str) else "")
    else:
        return Failure(f"{type(e).__name__}: {e}", where=where)
    return Failure(
        text[:TEXT_CHARS_MAX], where=where, errno_name=name, hint=hint or _TRY.get(number, ""),
        code=_CODES.get(number, FAILED),
    )  # fmt: skip


def from_dialling(e: E.FileError, address: Address, where: str) -> Failure:
    """As from_error, for a connection that did not come about."""
    told = from_error(e, where)
    if address.transport == "tls":
        told.what = "this version has no encrypted transport yet"
        told.hint = "9p+unix:// on the same machine, or ssh://HOST/DIR"
    elif address.transport == "exec" and isinstance(e, E.Ehungup) and e.about:
        told.what, told.errno_name = e.about[:TEXT_CHARS_MAX], ""
        told.hint = f"{address.argv[0]!r} by itself"
        if address.text.startswith("ssh://"):
            told.hint = f"'ssh {address.argv[-2]} ninep --version', which must work by itself"
    return told


def tell(failure: Failure, program: str, verb: str, *, is_json: bool) -> None:
    """The failure on standard error: one line, or one object."""
    if is_json:
        record: dict[str, object] = {"error": escaped(failure.what), "verb": verb, "code": failure.code}
        for key, value in (("where", failure.where), ("errno", failure.errno_name), ("try", failure.hint)):
            if value:
                record[key] = escaped(value)
        line = json_line(record)
        try:
            import os

            os.write(2, line)
        except OSError:
            pass
        return
    parts = [program]
    if verb and verb != program:
        parts.append(verb)
    parts += [failure.what, failure.where, failure.errno_name, f"try {failure.hint}" if failure.hint else ""]
    complain(": ".join(part for part in parts if part))
