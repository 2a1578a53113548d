"""How a verb is described: plain data, from which the parser, --help, man pages and completions are all made.

Knows no verb and imports nothing that costs time: the front program reads the table at every start.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["flag", "count", "str", "int", "seconds", "mode", "list"]
Shape = Literal["", "?", "*", "+", "..."]
Completes = Literal["", "url", "file", "dir", "verb", "tree", "shell"]


class Arg(NamedTuple):
    """One option or operand.  `names` begin with `-` for an option; an operand has one name and a `shape`.

    `kind` says what the value is: a flag has none, a list may be given many times, seconds are a float above zero,
    a mode is octal.  `completes` says what a shell may offer for it.
    """

    names: tuple[str, ...]
    help: str
    kind: Kind = "flag"
    meta: str = ""
    shape: Shape = ""
    default: object = None
    choices: tuple[str, ...] = ()
    completes: Completes = ""

    @property
    def is_option(self) -> bool:
        return self.names[0].startswith("-")

    @property
    def dest(self) -> str:
        """The attribute that holds the value after parsing: the long name, with underscores."""
        return self.names[-1].lstrip("-").replace("-", "_")

    @property
    def takes_value(self) -> bool:
        return self.kind not in ("flag", "count")


class Verb(NamedTuple):
    """One verb.  `run` is "module:function", imported only when the verb is used.

    `examples` are three lines of (command, what it does); `text` is the man page's description, paragraphs apart by
    an empty line.  `is_client` verbs take the options for talking to a server.
    """

    name: str
    summary: str
    examples: tuple[tuple[str, str], ...]
    args: tuple[Arg, ...]
    run: str
    text: str = ""
    is_client: bool = False
    is_hidden: bool = False
    program: str = "ninep"

    @property
    def title(self) -> str:
        """What a user types to run it: `ninep cat`, `ninepd`."""
        return self.program if self.program != "ninep" else f"ninep {self.name}"

    def all_args(self) -> tuple[Arg, ...]:
        """Its own arguments, then the ones that every verb takes."""
        return self.args + (CLIENT_ARGS if self.is_client else ()) + COMMON_ARGS


COMMON_ARGS: tuple[Arg, ...] = (
    Arg(("--json",), "machine-readable output: one object, or one per line for lists"),
    Arg(("-q", "--quiet"), "say less on standard error"),
    Arg(("-v", "--verbose"), "say more on standard error; twice for the wire", "count", default=0),
    Arg(("-h", "--help"), "this help"),
)

CLIENT_ARGS: tuple[Arg, ...] = (
    Arg(("-n", "--node"), "the node that paths without a scheme mean", "str", "URL", completes="url"),
    Arg(("--timeout",), "longest wait for an answer that is not a stream's", "seconds", "SECONDS"),
    Arg(("--raw",), "print names as they are, control characters too"),
)
