"""The man pages, from the table of verbs: one for each program and each verb.  docs/man holds what this writes."""

from __future__ import annotations

import argparse
import os

from . import parse
from .failure import OK
from .output import Output
from .table import CLIENT_ARGS, Arg, Verb
from .verbs import VERBS, shown

_CODES = (
    ("0", "all went well"),
    ("1", "the operation failed"),
    ("2", "the command line makes no sense"),
    ("3", "not found"),
    ("4", "permission denied, or read only"),
    ("5", "the server cannot be reached, or did not answer in time"),
    ("6", "conflict: it is there already, has changed, is busy or not empty"),
    ("78", "refused to start: the configuration, or what it would expose"),
    ("130", "interrupted (Ctrl-C)"),
)
_ENVIRONMENT = (
    ("NINEP_NODE", "URL of the local node"),
    ("NINEP_CONFIG", "the configuration file, instead of $XDG_CONFIG_HOME/ninep/config.toml"),
    ("NINEP_STATE", "the state directory"),
    ("NINEP_TIMEOUT", "as --timeout"),
    ("NINEP_LISTEN", "URLs to listen on, apart by spaces, when there is no --listen"),
    ("NINEP_LOG", "debug, info, warning or error: what servers log"),
    ("NO_COLOR", "no colour, whatever the terminal can do"),
)


def write(args: argparse.Namespace, output: Output) -> int:
    """`ninep _man DIR`: write every page."""
    os.makedirs(args.dir, exist_ok=True)
    for name, text in pages().items():
        with open(os.path.join(args.dir, name), "w") as file:
            file.write(text)
        output.detail(name)
    return OK


def pages() -> dict[str, str]:
    """File name to text, for all of them."""
    found = {"ninep.1": _front()}
    for verb in VERBS:
        if not verb.is_hidden:
            section = "8" if verb.program != "ninep" else "1"
            found[f"{verb.title.replace(' ', '-')}.{section}"] = page(verb, section)
    found["mount.fuse.ninep.8"] = _helper()
    return found


def quote(text: str) -> str:
    """Text for roff: no backslash, hyphen or leading dot means anything but itself."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\\&" + text if text[:1] in (".", "\\") and text[:1] == "." else text


def _title(name: str, section: str) -> list[str]:
    return [f'.TH "{quote(name.upper())}" {section} "" "ninep" "ninep manual"', ".nh", ".ad l"]


def page(verb: Verb, section: str) -> str:
    """The page of one verb."""
    name = verb.title.replace(" ", "-")
    lines = [*_title(name, section), ".SH NAME", f"{quote(name)} \\- {quote(verb.summary)}", ".SH SYNOPSIS"]
    lines += [f".B {quote(parse.usage_line(verb))}", ".SH DESCRIPTION"]
    text = verb.text or f"{verb.summary[:1].upper()}{verb.summary[1:]}."
    for paragraph in text.split("\n\n"):
        lines += [".PP", *(quote(line) for line in paragraph.splitlines())]
    lines += [".SH OPTIONS", *_options(verb.all_args()), ".SH EXAMPLES"]
    for command, what in verb.examples:
        lines += [".TP", f".B {quote(command)}", quote(what)]
    lines += [".SH EXIT STATUS", *_table(_CODES), ".SH ENVIRONMENT", *_table(_ENVIRONMENT)]
    lines += [".SH SEE ALSO", "ninep(1), ninepd(8), mount.fuse.ninep(8)"]
    return "\n".join(lines) + "\n"


def _options(args: tuple[Arg, ...]) -> list[str]:
    lines: list[str] = []
    for arg in args:
        lines += [".TP", f".B {quote(parse.option_words(arg))}", quote(arg.help)]
    return lines


def _table(rows: tuple[tuple[str, str], ...]) -> list[str]:
    return [line for name, what in rows for line in (".TP", f".B {quote(name)}", quote(what))]


def _front() -> str:
    lines = [*_title("ninep", "1"), ".SH NAME", "ninep \\- serve, mount and use trees of files over 9P"]
    lines += [".SH SYNOPSIS", ".B ninep", ".I VERB", "[OPTION]... [ARG]...", ".SH DESCRIPTION"]
    lines += [
        "A server's files are named by URLs: 9p://host[:port]/path, 9p+unix:///socket//path, ssh://host/directory,",
        "with ?aname=, ?uname=, ?dialect= and ?msize= behind; Plan 9 dial strings (tcp!host!port) work too.",
        "A path without a scheme is one of the local node, ninepd(8).",
        ".PP",
        "Data goes to standard output, everything else to standard error.  A failure is one line: what, where, the",
        "name of the errno, what to try.",
        ".SH VERBS",
        *_table(tuple((verb.name, f"{verb.summary}: {verb.title.replace(' ', chr(45))}(1)") for verb in shown())),
        ".SH OPTIONS",
        "These may stand before the verb, or behind it.",
        *_options(tuple(arg for arg in VERBS[0].all_args() if arg not in VERBS[0].args)),
        ".PP",
        "The verbs that talk to a server also take",
        *_options(CLIENT_ARGS),
        ".SH EXIT STATUS",
        *_table(_CODES),
        ".SH ENVIRONMENT",
        *_table(_ENVIRONMENT),
    ]
    return "\n".join(lines) + "\n"


def _helper() -> str:
    from .mountopts import HINT, IGNORED

    lines = [
        *_title("mount.fuse.ninep", "8"),
        ".SH NAME",
        "mount.fuse.ninep \\- mount(8) helper for 9P servers and trees",
    ]
    lines += [".SH SYNOPSIS", ".B mount \\-t fuse.ninep", ".I URL|TREE DIR", "[\\-o OPTS]", ".SH DESCRIPTION"]
    lines += ["What mount(8) runs for the type fuse.ninep, also from fstab(5).  It does what ninep\\-mount(1) does."]
    lines += [".SH OPTIONS", quote(HINT), ".PP", "Taken and ignored, because they are for others:"]
    lines += [quote(" ".join(sorted(IGNORED)) + " x-*"), ".PP", "Anything else is refused.", ".SH EXAMPLES"]
    lines += [".nf", "9p://box:564/src  /mnt/src  fuse.ninep  ro,noauto,x\\-systemd.automount,_netdev  0 0", ".fi"]
    lines += [".SH EXIT STATUS", *_table((("0", "mounted"), ("1", "wrong call"), ("32", "the mount failed")))]
    lines += [".SH SEE ALSO", "ninep\\-mount(1), mount(8), fstab(5)"]
    return "\n".join(lines) + "\n"
