"""The configuration file: TOML, read strictly.  What it may say, and where a mistake in it is.

Knows no program.  An unknown key, a wrong type or a senseless value is an error that names the file, the line and the
key; nothing is ignored, and nothing is half applied.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat as _s
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

import msgspec

from .limits import DEFAULT, Limits
from .proto.version import MSIZE_BYTES_USUAL

BYTES_MAX = 1 << 20


class ConfigError(ValueError):
    """A file that cannot be used.  `line` is 0 where no line is to blame, `key` "" where no key is."""

    def __init__(self, path: str, line: int, key: str, text: str) -> None:
        super().__init__(f"{path}:{line}: {key + ': ' if key else ''}{text}" if line else f"{path}: {text}")
        self.path, self.line, self.key, self.text = path, line, key, text


class ExportTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[exports.NAME]: a host directory of the node.  `ownership`: squash (as the server) or native (as the caller)."""

    dir: str
    ro: bool = False
    ownership: Literal["squash", "native"] = "squash"


class ListenTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[listen]: where to listen and whom to believe, as the options of the same names."""

    urls: tuple[str, ...] = ()
    plaintext_off_host: bool = False
    trust_uname: bool = False
    allow_uids: tuple[int, ...] = ()
    allow_gids: tuple[int, ...] = ()
    socket_mode: str = "600"
    as_root: bool = False


class NodeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[node]: the daemon.  `socket` is its own socket, where programs look for paths without a scheme."""

    mount: str = ""
    state: str = ""
    socket: bool = True


class ClientTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[client]: the client verbs."""

    node: str = ""
    timeout_seconds: float = DEFAULT.reply_seconds_max


class LogTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[log]: what servers write to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class LimitsTable(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[limits]: any bound of ninep.limits, under its own name."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole file.  `exports` are keyed by name."""

    listen: ListenTable = ListenTable()
    node: NodeTable = NodeTable()
    exports: dict[str, ExportTable] = {}
    client: ClientTable = ClientTable()
    log: LogTable = LogTable()
    limits: LimitsTable = LimitsTable()


def load(path: str) -> Config:
    """The file at path.  Raises ConfigError, the first mistake in it, and OSError when it cannot be read.

    A file that others may write is refused: whoever writes it decides what is served.
    """
    return parse(_text(path), path)


def mistakes(path: str) -> list[ConfigError]:
    """Everything that is wrong with the file at path, or `absent`, in the order of its lines.  Raises OSError as load
    does."""
    try:
        text = _text(path)
        config, wrong = _judge(text, path)
    except ConfigError as e:
        return [e]
    known = {e.key for e in wrong}
    return _placed([*wrong, *((k, t) for k, t in absent(config) if k not in known)], text, path)


def absent(config: Config) -> Iterator[tuple[str, str]]:
    """(key, complaint) for each directory that is named and is not there: the file is right, and a daemon refuses it
    all the same.  What may not be looked at is taken to be there.  Looks at the file system, so it may block."""
    named = [(f"exports.{name}.dir", export.dir) for name, export in config.exports.items()]
    for key, path in [*named, ("node.mount", config.node.mount)]:
        try:
            if path and not _s.S_ISDIR(os.stat(path, follow_symlinks=key != "node.mount").st_mode):
                yield key, f"not a directory: {path}"
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                yield key, f"{os.strerror(e.errno).lower()}: {path}"


def parse(text: str, path: str = "config") -> Config:
    """A configuration from its text.  Raises ConfigError, the first mistake in it."""
    config, wrong = _judge(text, path)
    if wrong:
        raise wrong[0]
    return config


def _text(path: str) -> str:
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno())
        if mode.st_mode & 0o022 and _s.S_ISREG(mode.st_mode):
            raise ConfigError(path, 0, "", f"others may write it (mode {mode.st_mode & 0o777:o}): chmod go-w {path}")
        raw = file.read(BYTES_MAX + 1)
    if len(raw) > BYTES_MAX:
        raise ConfigError(path, 0, "", f"longer than {BYTES_MAX} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise ConfigError(path, raw.count(b"\n", 0, e.start) + 1, "", "not UTF-8") from None


def _judge(text: str, path: str) -> tuple[Config, list[ConfigError]]:
    """What the text says as far as it is right, and every mistake in it by line.

    Raises ConfigError for what is not TOML: nobody knows what the rest of it means.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        found = re.search(r"line (\d+)", str(e))
        message = re.sub(r" \(at .*\)", "", str(e))
        raise ConfigError(path, int(found[1]) if found else text.count("\n") + 1, "", message.lower()) from None
    wrong: list[tuple[str, str]] = []
    config = msgspec.convert(_sound(table, Config, "", wrong), Config)
    wrong += _senseless(config)
    return config, _placed(wrong, text, path)


def _placed(wrong: Iterable[ConfigError | tuple[str, str]], text: str, path: str) -> list[ConfigError]:
    """The mistakes with their lines, in the order of these."""
    lines = dict(_lines(text))
    told = (e if isinstance(e, ConfigError) else ConfigError(path, _line(lines, e[0]), *e) for e in wrong)
    return sorted(told, key=lambda e: e.line)


def _sound(table: dict[str, Any], kind: type[msgspec.Struct], where: str, wrong: list[tuple[str, str]]) -> Any:
    """The part of the table that `kind` can hold; the rest goes to `wrong` as (dotted key, complaint)."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    sound: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{where}{name}"
        if name not in fields:
            wrong.append((key, f"unknown key{_meant(name, fields)}"))
            continue
        of = fields[name].type
        is_tables = get_origin(of) is dict
        if (is_tables or _is_struct(of)) and not isinstance(value, dict):
            wrong.append((key, f"expected a table, as [{key}{'.NAME' if is_tables else ''}]: {value!r:.60}"))
        elif is_tables:
            sound[name] = _sound_tables(value, get_args(of)[1], key, wrong)
        elif _is_struct(of):
            sound[name] = _sound(value, of, f"{key}.", wrong)
        else:
            try:
                msgspec.convert(value, of)
                sound[name] = value
            except msgspec.ValidationError as e:
                wrong.append((key, _complaint(str(e), of)))
    return sound


def _sound_tables(tables: dict[str, Any], kind: type[msgspec.Struct], where: str, wrong: list[tuple[str, str]]) -> Any:
    """The same of tables whose names are free, such as [exports.NAME]."""
    sound: dict[str, Any] = {}
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    for name, value in tables.items():
        key = f"{where}.{name}"
        if not isinstance(value, dict):
            wrong.append((key, f"expected a table, as [{key}]: {value!r:.60}"))
            continue
        missing = [one for one in required if one not in value]
        wrong.extend((key, f"missing: {one}") for one in missing)
        of_this = _sound(value, kind, f"{key}.", wrong)
        if all(one in of_this for one in required):
            sound[name] = of_this
    return sound


def _is_struct(of: object) -> bool:
    return isinstance(of, type) and issubclass(of, msgspec.Struct)


def _meant(name: str, known: Iterable[str]) -> str:
    """What an unknown key should have been."""
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f": did you mean {near[0]}?"
    return f": one of {' '.join(known)}" if len(list(known)) < 12 else ""


def _complaint(message: str, of: object) -> str:
    """msgspec's words about one value, with what would have been right."""
    message = message.partition(" - at `$")[0].replace("`", "")
    choices = get_args(of) if get_origin(of) is Literal else ()
    said = message[:1].lower() + message[1:]
    return f"{said}: one of {' '.join(map(str, choices))}" if choices else said


_TABLE_LINE = re.compile(r"\s*\[+\s*([^\]#]+?)\s*\]")
_KEY_LINE = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_PART = re.compile(r"[\w-]+|\"[^\"]*\"|'[^']*'")


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """(dotted key, line) of each table header and key.  TOML's parser keeps no places, so this reads the text again."""
    table: list[str] = []
    inside = ""  # the quotes of a string over several lines
    for number, line in enumerate(text.splitlines(), 1):
        if inside:
            if inside in line:
                inside = ""
            continue
        if found := _TABLE_LINE.match(line):
            table = _parts(found[1])
            yield ".".join(table), number
        elif found := _KEY_LINE.match(line):
            yield ".".join([*table, *_parts(found[1])]), number
            for quotes in ('"""', "'''"):
                if line.count(quotes) == 1:
                    inside = quotes


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]


def _line(lines: dict[str, int], key: str) -> int:
    """The line of the key, or of the nearest table around it."""
    while key:
        if key in lines:
            return lines[key]
        key = key.rpartition(".")[0]
    return 1


def _senseless(config: Config) -> Iterator[tuple[str, str]]:
    """(key, complaint) for values of the right type that mean nothing."""
    for name in config.limits.__struct_fields__:
        value = getattr(config.limits, name)
        if not value > 0 or (name.endswith("_share") and value > 1):
            yield f"limits.{name}", f"must be above zero{' and at most 1' * name.endswith('_share')}: {value}"
    if config.limits.msize_bytes_max < MSIZE_BYTES_USUAL:
        yield "limits.msize_bytes_max", f"below {MSIZE_BYTES_USUAL}"
    if not re.fullmatch("0?[0-7]{3}", config.listen.socket_mode):
        yield "listen.socket_mode", f"not an octal mode, as '660': {config.listen.socket_mode!r}"
    if not 0 < config.client.timeout_seconds < 1e9:
        yield "client.timeout_seconds", f"must be above zero: {config.client.timeout_seconds}"
    for name, export in config.exports.items():
        if problem := export_name_problem(name):
            yield f"exports.{name}", problem
        if not os.path.isabs(export.dir):
            yield f"exports.{name}.dir", f"not an absolute path: {export.dir!r}"
    for key, path in (("node.mount", config.node.mount), ("node.state", config.node.state)):
        if path and not os.path.isabs(path):
            yield key, f"not an absolute path: {path!r}"


def export_name_problem(name: str) -> str:
    """Why an export cannot be called so; "" if it can.  The name is a file name, and an aname."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}", name):
        return f"not a name for an export (letters, digits and ._+-): {name[:70]!r}"
    return ""
