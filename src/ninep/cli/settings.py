"""Which value holds: a flag before the environment, the environment before the file, the file before the default.

Also the verb `config`, which checks a file and shows what holds and why.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from ninep.config import Config, ConfigError, load, mistakes

from .failure import FAILED, OK, REFUSED, Failure, UsageError
from .output import Output
from .places import config_file

CHECK_HINT = "'ninep config check' until it is right"


def read_config(path: str | None) -> tuple[Config, str]:
    """(configuration, the file it came from, "" if none).  A file that was named must be there; the usual one need not.

    Raises Failure with code 78.
    """
    where, named = _where(path)
    try:
        return load(where), where
    except ConfigError as e:
        raise Failure(f"configuration: {e.text}" if not e.line else str(e), where="" if e.line else e.path,
                      hint=CHECK_HINT, code=REFUSED) from None  # fmt: skip
    except FileNotFoundError:
        if named:
            raise Failure("configuration: no such file", where=where, errno_name="ENOENT", code=REFUSED) from None
        return Config(), ""
    except OSError as e:
        if not named and isinstance(e, PermissionError | NotADirectoryError):
            return Config(), ""
        raise Failure(f"configuration: {(e.strerror or '').lower()}", where=where, code=REFUSED) from None


def _where(path: str | None) -> tuple[str, bool]:
    """(the file that is read, whether somebody named it)."""
    named = path or os.environ.get("NINEP_CONFIG")
    return named or config_file(), bool(named)


def wrong_of(path: str | None) -> list[str]:
    """Every mistake of the file, as `config check` tells it; none where it cannot be read."""
    try:
        return [str(e) for e in mistakes(_where(path)[0])]
    except OSError:
        return []


def pick(flag: str | None, variable: str, from_file: str, default: str, env: Mapping[str, str] = os.environ) -> str:
    """The value that holds of one setting that is a text."""
    return flag or env.get(variable, "") or from_file or default


VARIABLES = {
    "client.node": "NINEP_NODE",
    "client.timeout_seconds": "NINEP_TIMEOUT",
    "listen.urls": "NINEP_LISTEN",
    "log.level": "NINEP_LOG",
    "node.mount": "NINEP_MOUNT",
    "node.state": "NINEP_STATE",
}


def config(args: argparse.Namespace, output: Output) -> int:
    """`ninep config check|show [FILE]`."""
    path: str = args.file or config_file()
    return _check(path, output) if args.action == "check" else _show(args.file, output)


def _check(path: str, output: Output) -> int:
    """Every mistake of the file on its own line."""
    wrong = mistakes(path)
    for e in wrong:
        if output.is_json:
            output.json({"ok": False, "file": path, "line": e.line, "key": e.key, "error": e.text})
        else:
            output.line(str(e))
    if wrong:
        return FAILED
    if output.is_json:
        output.json({"ok": True, "file": path})
    else:
        output.line(f"{path}: ok")
    return OK


def _show(path: str | None, output: Output) -> int:
    import msgspec

    held, where = read_config(path)
    plain: dict[str, object] = msgspec.to_builtins(held)
    default: dict[str, object] = msgspec.to_builtins(Config())
    for table, values in plain.items():
        if not isinstance(values, dict):
            raise UsageError(f"not a table: {table}")
        known = default[table]
        assert isinstance(known, dict)
        for key, value in values.items():
            name = f"{table}.{key}"
            origin = "default" if key in known and value == known[key] else where
            variable = VARIABLES.get(name, "")
            if variable and os.environ.get(variable):
                value, origin = os.environ[variable], variable
            if output.is_json:
                output.json({"key": name, "value": value, "from": origin})
            elif origin != "default" or output.verbose or table != "limits":
                shown = value if not isinstance(value, list | tuple) else " ".join(map(str, value))
                output.line(f"{name} = {shown}   # {origin}")
    return OK
