"""The front of every program: find the verb, parse, run, and turn whatever happens into one line and an exit code.

Imports only what finding a verb takes: the verb's own module comes last, so that `ninep cat` stays quick.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from . import failure, verbs
from .output import CLOSED_STDOUT, Output, StdoutClosed, complain, drop_stdout, occupy_standard, print_text
from .table import Verb

Runner = Callable[[argparse.Namespace, Output], int]
_FRONT_HELP = ("-h", "--help", "help")
_ANYWHERE = ("--json", "-q", "--quiet", "-v", "-vv", "--verbose")  # before the verb, too


class _Ended(KeyboardInterrupt):
    """A signal that asks for the end: it takes the way of Ctrl-C, so that whatever is open is closed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def front(argv: Sequence[str]) -> int:
    """`ninep ARGV`: the exit code."""
    verb = verbs.find(next((word for word in argv if not word.startswith("-")), ""))
    is_client = verb is not None and verb.is_client and _is_whole_process("ninep")
    if is_client:
        _end_in_order()
    code = _guarded("ninep", "", list(argv), _front)
    if is_client:
        # Everything is written and hung up: taking the interpreter apart piece by piece would only cost time.
        _flush_last()
        os._exit(code)
    return code


def _end_in_order() -> None:
    """SIGTERM and SIGHUP hang up before they end a client: a program that is its connection would outlive it.  A second
    one ends at once; what is ignored (nohup) stays so."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise _Ended(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def _is_whole_process(name: str) -> bool:
    """Whether Python was started for this program alone, and not for one that calls it."""
    main = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    return os.path.basename(main) == name


def _flush_last() -> None:
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except (OSError, ValueError):
            pass


def program(name: str, argv: Sequence[str]) -> int:
    """A program that is a verb of its own, such as ninepd: the exit code."""
    verb = verbs.BY_NAME[name]
    return _guarded(name, name, list(argv), lambda args: run(verb, args))


def _front(argv: list[str]) -> int:
    # Options that every verb takes may stand before the verb too.
    first: list[str] = []
    while argv and argv[0] in _ANYWHERE:
        first.append(argv.pop(0))
    if not argv:
        raise failure.UsageError("no verb", hint="'ninep --help'")
    name, rest = argv[0], argv[1:]
    is_json = "--json" in first or "--json" in rest
    if name in _FRONT_HELP and not [word for word in rest if word not in _ANYWHERE]:
        from .parse import help_front

        return print_text(help_front(), is_json=is_json)
    if name == "help":
        name, rest = next(word for word in rest if word not in _ANYWHERE), ["--help"]
        first += ["--json"] * is_json
    if name in ("-V", "--version", "version"):
        return print_text(f"ninep {version()}\n", is_json=is_json, fields={"version": version()})
    verb = verbs.find(name)
    if verb is None:
        import difflib

        near = difflib.get_close_matches(name, [v.name for v in verbs.shown()], 1)
        hint = f"'ninep {near[0]}'" if near else "'ninep --help'"
        kind = "option" if name.startswith("-") else "verb"
        raise failure.UsageError(f"no such {kind}: {name[:60]}", hint=hint)
    return run(verb, first + rest)


def run(verb: Verb, argv: list[str]) -> int:
    """Parse and run one verb.  Raises Failure, FileError, OSError, StdoutClosed."""
    from .parse import help_of, parse

    words = argv[: argv.index("--")] if "--" in argv else argv
    if "--help" in words or "-h" in words:
        return print_text(help_of(verb), is_json="--json" in words)
    args = parse(verb, argv)
    output = Output(is_json=args.json, raw=getattr(args, "raw", False), quiet=args.quiet, verbose=args.verbose)
    runner = _runner(verb)
    try:
        return runner(args, output)
    finally:
        output.flush()


def _runner(verb: Verb) -> Runner:
    """The verb's function, imported now.  Half of what a client verb takes is importing, so two things are put off for
    these short-lived processes: collecting garbage among what is imported, and typing_extensions, which msgspec would
    take if it were installed, and does without where it is not."""
    module, _, function = verb.run.partition(":")
    if not verb.is_client:
        runner: Runner = getattr(importlib.import_module(module), function)
        return runner
    gc.disable()
    is_absent = "typing_extensions" not in sys.modules
    if is_absent:
        sys.modules["typing_extensions"] = None  # type: ignore[assignment]  # "not there" (importlib)
    try:
        runner = getattr(importlib.import_module(module), function)
        importlib.import_module("ninep.edges.blocking")
    finally:
        if is_absent:
            del sys.modules["typing_extensions"]
        gc.freeze()
        gc.enable()
    return runner


def _guarded(name: str, verb: str, argv: list[str], body: Callable[[list[str]], int]) -> int:
    is_json = "--json" in argv
    if not verb:
        verb = next((word for word in argv if not word.startswith("-")), "")
        verb = verb if verbs.find(verb) else ""
    occupy_standard()
    try:
        return body(argv)
    except StdoutClosed:
        drop_stdout()
        return CLOSED_STDOUT
    except _Ended as e:
        drop_stdout()
        os.kill(os.getpid(), e.number)  # whoever waits for us reads which signal it was
        return 128 + e.number
    except KeyboardInterrupt:
        drop_stdout()
        return failure.INTERRUPTED
    except failure.Failure as e:
        failure.tell(e, name, verb, is_json=is_json)
        return e.code
    except Exception as e:
        told = failure.from_error(e)
        if not told.errno_name:
            if "-vv" in argv:
                raise
            told.what = f"internal error: {told.what}"
            told.hint = "again with -vv, and report what it prints"
        failure.tell(told, name, verb, is_json=is_json)
        return told.code


def version() -> str:
    """The installed version, or what a checkout that is not installed says."""
    from importlib import metadata

    try:
        return metadata.version("ninep")
    except metadata.PackageNotFoundError:
        complain("ninep: not installed; running from a checkout")
        return "0"
