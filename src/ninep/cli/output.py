"""What a program prints: data on standard output, everything else on standard error, one line per failure.

Knows no verb.  A closed standard output (`| head`) ends the program without a word; a name never reaches a terminal
with control characters in it (SEC-75).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from typing import BinaryIO

CLOSED_STDOUT = 141  # what a shell shows for a program that SIGPIPE ended
_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0x2028, 0x2029, 0xFEFF}


class StdoutClosed(Exception):
    """Nobody reads our standard output any more."""


def is_control(char: str) -> bool:
    """C0, DEL, C1, line separators, and the characters that turn the direction of text."""
    code = ord(char)
    return code < 0x20 or 0x7F <= code < 0xA0 or code in _BIDI


def escaped(text: str) -> str:
    """The text on one line, without anything that a terminal would obey; other text is unchanged."""
    if text.isascii() and text.isprintable():
        return text
    out = []
    for char in text:
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8 (os.fsdecode)
            out.append(f"\\x{code - 0xDC00:02x}")
        elif is_control(char):
            out.append(f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
        else:
            out.append(char)
    return "".join(out)


def json_line(value: Mapping[str, object]) -> bytes:
    """One object on one line, with the version of our output format in it."""
    import msgspec

    return msgspec.json.encode({"v": 1, **value}) + b"\n"


def json_name(name: str, key: str = "name") -> dict[str, object]:
    """A file name for JSON: text, and the bytes in hex beside it where they are not UTF-8."""
    raw = os.fsencode(name)
    try:
        return {key: raw.decode()}
    except UnicodeDecodeError:
        return {key: raw.decode("utf-8", "replace"), f"{key}_hex": raw.hex()}


class Output:
    """Standard output of one program run.  `is_json`, `raw` and the rest are what the user asked for."""

    def __init__(self, *, is_json: bool = False, raw: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.is_json = is_json
        self.quiet = quiet
        self.verbose = verbose
        self.escapes = not raw and not is_json and os.isatty(1)
        # A caller inside Python may have put something else in the place of standard output; data goes to descriptor 1.
        self._file: BinaryIO = getattr(sys.stdout, "buffer", None) or os.fdopen(1, "wb", closefd=False)

    def write(self, data: bytes | memoryview) -> None:
        """Raises StdoutClosed when nobody reads, OSError when a file cannot take it."""
        try:
            self._file.write(data)
        except OSError as e:
            raise _lost(e) from None

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as e:
            raise _lost(e) from None

    def line(self, text: str) -> None:
        """A line of text; it may hold names, whose bytes come out as they were."""
        self.write(os.fsencode(text) + b"\n")

    def json(self, value: Mapping[str, object]) -> None:
        self.write(json_line(value))

    def name(self, name: str) -> str:
        """A name, fit for where standard output goes."""
        return escaped(name) if self.escapes else name

    def note(self, text: str) -> None:
        """A word for the person, unless they asked for quiet."""
        if not self.quiet:
            complain(f"ninep: {text}")

    def detail(self, text: str, level: int = 1) -> None:
        if self.verbose >= level:
            complain(f"ninep: {text}")


def print_text(text: str, *, is_json: bool = False, fields: Mapping[str, object] | None = None) -> int:
    """A text of the program itself, such as its help, as it is or as an object; 0.  Raises as Output does."""
    output = Output(is_json=is_json)
    output.write(json_line(fields or {"text": text}) if is_json else text.encode())
    output.flush()
    return 0


def _lost(e: OSError) -> Exception:
    """What a failed write to standard output is told as.  What is buffered is let go, or it would fail once more."""
    drop_stdout()
    if isinstance(e, BrokenPipeError):
        return StdoutClosed()
    return OSError(e.errno, "standard output is closed") if e.errno == errno.EBADF else e


def occupy_standard() -> None:
    """Put something on each standard descriptor that was closed (`>&-`): a connection that got its number would be
    given what is printed.  On standard output it refuses every write, on the others it is empty."""
    for fd, flags in ((0, os.O_RDWR), (1, os.O_RDONLY), (2, os.O_RDWR)):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, flags)  # the lowest free number: `fd`
            os.set_inheritable(null, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # open as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)


def complain(text: str) -> None:
    """One line on standard error, escaped.  A closed standard error is nobody's trouble."""
    try:
        os.write(2, escaped(text).encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass


def drop_stdout() -> None:
    """Make the interpreter's last flush go nowhere: its complaint about a closed pipe would be noise."""
    try:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, 1)
        os.close(null)
    except OSError:
        pass


def wants_colour(fd: int) -> bool:
    """True for a terminal whose user did not ask for none (NO_COLOR, TERM=dumb)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb" and os.isatty(fd)
