"""From the table to a parser and to --help.  The words of a usage error are ours; the parsing is argparse's."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from .failure import UsageError
from .table import Arg, Verb
from .verbs import shown

HELP_LINES_MAX = 25
_COLUMN = 22


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing and leaving."""

    title = ""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"'{self.title} --help'")


def _formatter(prog: str) -> argparse.HelpFormatter:
    # argparse makes one for every argument added, only to check its metavar; without a width each start would import
    # shutil, bz2 and lzma to ask the terminal.
    return argparse.HelpFormatter(prog, width=80)


def parser_of(verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb.  Abbreviated options are refused: a script must not break when an option is added."""
    parser = _Parser(prog=verb.title, add_help=False, allow_abbrev=False, formatter_class=_formatter)
    parser.title = verb.title
    for arg in verb.all_args():
        _add(parser, arg)
    return parser


def parse(verb: Verb, argv: list[str]) -> argparse.Namespace:
    """The values of one command line.  Raises UsageError.  Options may stand among operands, except after a command
    that is to be run, whose own options they would be."""
    parser = parser_of(verb)
    if any(arg.shape == "..." for arg in verb.args):
        return parser.parse_args(argv)
    return parser.parse_intermixed_args(argv)


def _add(parser: argparse.ArgumentParser, arg: Arg) -> None:
    names = arg.names
    match arg.kind:
        case "flag":
            parser.add_argument(*names, action="store_true")
        case "count":
            parser.add_argument(*names, action="count", default=0)
        case "list":
            parser.add_argument(*names, action="append", default=[], metavar=arg.meta)
        case kind:
            convert = _CONVERT[kind]
            shape = {"...": argparse.REMAINDER}.get(arg.shape, arg.shape) or None
            if arg.is_option:
                parser.add_argument(
                    *names, type=convert, default=arg.default, metavar=arg.meta or None, choices=arg.choices or None
                )
            else:
                parser.add_argument(
                    names[0], type=convert, nargs=shape, metavar=arg.meta or None, choices=arg.choices or None
                )


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise argparse.ArgumentTypeError(f"not a whole number: {text[:40]!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text[:40]!r}")
    return value


def _mode(text: str) -> int:
    if not 0 < len(text) <= 5 or any(c not in "01234567" for c in text) or int(text, 8) > 0o7777:
        raise argparse.ArgumentTypeError(f"not an octal mode: {text[:40]!r}")
    return int(text, 8)


_CONVERT: dict[str, Callable[[str], object]] = {"str": str, "int": _whole, "seconds": _seconds, "mode": _mode}


# -- help


def usage_line(verb: Verb) -> str:
    """One line: the operands, with their shapes."""
    words = [verb.title]
    if any(arg.is_option for arg in verb.args) or verb.is_client:
        words.append("[OPTION]...")
    for arg in verb.args:
        if not arg.is_option:
            words.append(
                {"": arg.meta, "?": f"[{arg.meta}]", "*": f"[{arg.meta}]...", "+": f"{arg.meta}...",
                 "...": f"{arg.meta}..."}[arg.shape]
            )  # fmt: skip
    return " ".join(words)


def option_words(arg: Arg) -> str:
    """`-o, --offset BYTES`, or an operand's name."""
    if not arg.is_option:
        return arg.meta
    words = ", ".join(arg.names)
    if arg.takes_value:
        words += f" {'|'.join(arg.choices) if arg.choices else arg.meta}"
    return words


def help_of(verb: Verb) -> str:
    """At most HELP_LINES_MAX lines that begin with three examples and end with where to read more."""
    lines = _examples(verb.examples)
    lines += ["", f"{usage_line(verb)}: {verb.summary}"]
    lines += [_row(option_words(arg), arg.help) for arg in verb.args]
    room = HELP_LINES_MAX - len(lines) - 1
    rest = verb.all_args()[len(verb.args) :]
    if len(rest) <= room:
        lines += [_row(option_words(arg), arg.help) for arg in rest]
    else:
        lines.append("and " + " ".join(arg.names[-1] for arg in rest))
    lines.append(f"man {verb.title.replace(' ', '-')}")
    return "\n".join(lines) + "\n"


def _examples(examples: tuple[tuple[str, str], ...]) -> list[str]:
    width = max(len(command) for command, _ in examples)
    if width + 3 + max(len(what) for _, what in examples) > 110:
        return [f"{command}   # {what}" for command, what in examples]
    return [f"{command:<{width}}   # {what}" for command, what in examples]


def _row(words: str, text: str) -> str:
    return f"  {words:<{_COLUMN}}  {text}"


def help_front() -> str:
    """The help of `ninep` itself: every verb on one line, three real examples first."""
    lines = _examples(
        (
            ("ninep serve host:$HOME/src:ro --listen 9p://127.0.0.1:5640", "serve a directory"),
            ("ninep cat 9p://127.0.0.1:5640/README.md", "read a file of it"),
            ("ninep mount 9p://127.0.0.1:5640 /mnt/src", "mount it"),
        )
    )
    lines += ["", "ninep VERB [OPTION]... [ARG]...   (ninep VERB --help says more)"]
    lines += [f"  {verb.name:<11} {verb.summary}" for verb in shown()]
    lines.append("man ninep")
    return "\n".join(lines) + "\n"
