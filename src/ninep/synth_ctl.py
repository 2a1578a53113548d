"""@ctl: a file of commands.  The method is the command: its name is the word, its parameters the grammar.

Reading a ctl gives its settings, as lines that may be written back, and then its commands as comments; so writing
back what was read changes nothing.  One write is one message: all its lines are parsed before any is run, and a
refusal says which line and word it is about and what would have been right.  Offsets and O_TRUNC mean nothing here.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Generator, Iterable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, overload

from .answer import Answer, answering, then
from .file import Call, Handle
from .limits import Limits
from .proto import errors as E
from .proto.types import ORDWR, OWRITE, Change, Stat
from .synth_file import Owner, SynthFile, SynthHandle, to_bytes
from .synth_text import wants
from .synth_words import label_of, parse_float, parse_int, split

F = TypeVar("F", bound=Callable[..., Any])

_SHOWN_MAX = 24  # of the client's own line, in an error that has 126 bytes in all


class Argument(NamedTuple):
    """One parameter of a command."""

    name: str
    label: str
    convert: Callable[[str], object]
    is_optional: bool
    repeats: bool

    @property
    def usage(self) -> str:
        """`size<bytes>` must be given, `size[bytes]` may be left out, `words[str]...` is any number."""
        if self.repeats:
            return f"{self.name}[{self.label}]..."
        return f"{self.name}[{self.label}]" if self.is_optional else f"{self.name}<{self.label}>"


class Command(NamedTuple):
    """One command of a ctl, as its class declares it."""

    word: str
    attribute: str
    arguments: tuple[Argument, ...]
    wants_call: bool
    doc: str

    @property
    def usage(self) -> str:
        return " ".join([self.word, *(argument.usage for argument in self.arguments)])

    def bind(self, words: list[str]) -> list[object]:
        """The values of a line's words.  ValueError with the reason, in the words of whoever wrote the line."""
        arguments = self.arguments
        values: list[object] = []
        for at, word in enumerate(words):
            if at < len(arguments):
                argument = arguments[at]
            elif arguments and arguments[-1].repeats:
                argument = arguments[-1]
            else:
                raise ValueError(f"usage: {self.usage}")
            try:
                values.append(argument.convert(word))
            except ValueError as e:
                raise ValueError(f'{argument.name} "{_shown(word)}": {e}') from None
        if len(words) < len(arguments) and not (arguments[len(words)].is_optional or arguments[len(words)].repeats):
            raise ValueError(f"usage: {self.usage}")
        return values


def command_of(word: str, attribute: str, function: Callable[..., Any]) -> Command:
    """The command that a method declares.  TypeError, at class creation, for a parameter that no word can fill."""
    arguments = []
    wants_call = False
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.name == "call":
            wants_call = True
            continue
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            raise TypeError(f"{function.__qualname__}: {parameter.name}: commands have positional arguments")
        hint = _hint_of(function, parameter)
        label, convert = converter_of(hint, f"{function.__qualname__}: {parameter.name}")
        repeats = parameter.kind is parameter.VAR_POSITIONAL
        arguments.append(Argument(parameter.name, label, convert, parameter.default is not parameter.empty, repeats))
    doc = (inspect.getdoc(function) or "").strip().partition("\n")[0]
    return Command(word, attribute, tuple(arguments), wants_call, doc)


class _Annotated:
    """Something whose one annotation typing.get_type_hints can evaluate."""

    def __init__(self, hint: object) -> None:
        self.__annotations__ = {"hint": hint}


def _hint_of(function: Callable[..., Any], parameter: inspect.Parameter) -> object:
    # One at a time: `call: Call` may be imported for the type checker only.
    if parameter.annotation is parameter.empty:
        return str
    space = getattr(function, "__globals__", {})
    try:
        return typing.get_type_hints(_Annotated(parameter.annotation), space, include_extras=True)["hint"]
    except NameError as e:
        raise TypeError(f"{function.__qualname__}: {parameter.name}: {e}") from None


def converter_of(hint: object, where: str) -> tuple[str, Callable[[str], object]]:
    """What fills a parameter of this type, and what usage lines call it."""
    if hint is str:
        return "str", str
    if hint is int:
        return "int", parse_int
    if hint is float:
        return "float", parse_float
    origin = get_origin(hint)
    if origin is Annotated:
        for extra in get_args(hint)[1:]:
            if callable(extra):
                return label_of(extra), extra
    if origin is Literal:
        return "|".join(map(str, get_args(hint))), _chooser(get_args(hint))
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        if len(kinds) == 1:
            return converter_of(kinds[0], where)
    raise TypeError(f"{where}: no converter for {hint}: annotate it Annotated[type, function of a str]")


def _chooser(choices: tuple[object, ...]) -> Callable[[str], object]:
    by_word = {str(choice): choice for choice in choices}

    def choose(word: str) -> object:
        if word not in by_word:
            raise ValueError("one of " + " ".join(by_word))
        return by_word[word]

    return choose


class Step(NamedTuple):
    """One parsed line."""

    line: int
    command: Command
    values: list[object]


def parse(commands: dict[str, Command], message: bytes, limits: Limits) -> list[Step]:
    """Every line of one write, before any is run.  Elarge past the limits, Ebadctl for what no command takes."""
    if len(message) > limits.ctl_bytes_max:
        raise E.Elarge(f"{len(message)} > {limits.ctl_bytes_max}")
    steps = []
    for number, raw in enumerate(message.split(b"\n"), 1):
        if len(raw) > limits.ctl_line_bytes_max:
            raise E.Elarge(f"line {number}: {len(raw)} > {limits.ctl_line_bytes_max}")
        line = raw.decode("utf-8", "surrogateescape").strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        try:
            steps.append(_parse_line(commands, number, line, limits))
        except ValueError as e:
            raise E.Ebadctl(f'line {number}: "{_shown(line)}": {e}') from None
    return steps


def _parse_line(commands: dict[str, Command], number: int, line: str, limits: Limits) -> Step:
    if "\0" in line:
        raise ValueError("bad character in command")
    words = split(line)
    if len(words) > limits.ctl_words_max:
        raise E.Elarge(f"line {number}: {len(words)} words > {limits.ctl_words_max}")
    command = commands.get(words[0])
    if command is None:
        raise ValueError(f"commands are {' '.join(commands)}")
    return Step(number, command, command.bind(words[1:]))


def _shown(line: str) -> str:
    return line if len(line) <= _SHOWN_MAX else line[: _SHOWN_MAX - 3] + "..."


class CtlFile(SynthFile):
    """The ctl of one directory."""

    def __init__(
        self, owner: Owner, commands: dict[str, Command], settings: tuple[str, ...], perm: int, doc: str = ""
    ) -> None:
        super().__init__(owner, perm, doc)
        self.commands = commands
        self._settings = settings

    @answering
    def content(self, call: Call) -> Generator[Answer[Any], Any, bytes]:
        """The settings, then the commands."""
        lines: list[str] = []
        for attribute in self._settings:
            method: Callable[..., Any] = getattr(self.owner, attribute)
            found = yield (method(call) if wants(method, "call") else method())
            # Not splitlines(): a form feed, say, is part of a word and ends no line of ours.
            lines += found.removesuffix("\n").split("\n") if isinstance(found, str) else found
        return to_bytes("".join(f"{line}\n" for line in [*lines, *usage_lines(self.commands.values())]))

    def stat(self, call: Call) -> Answer[Stat]:
        return then(self.content(call), lambda data: self.stat_of_size(len(data)))

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        """O_TRUNC may come as a size: it is ignored, and nothing else can be changed."""
        if change.perm is not None or change.uid is not None or change.gid is not None:
            raise E.Eperm
        return None

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        self.check_alive()
        return CtlHandle(self, omode)

    def run(self, call: Call, message: bytes) -> Answer[None]:
        """One write: parse all of it, then run it line by line.  An error of several lines names its line."""
        steps = parse(self.commands, message, self.owner.limits)
        return self._run(call, steps)

    @answering
    def _run(self, call: Call, steps: list[Step]) -> Generator[Answer[Any], Any, None]:
        for step in steps:
            method: Callable[..., Any] = getattr(self.owner, step.command.attribute)
            try:
                yield (method(*step.values, call=call) if step.command.wants_call else method(*step.values))
            except E.FileError as e:
                if len(steps) > 1:
                    e.about = f"line {step.line}: {e.about}" if e.about else f"line {step.line}"
                raise


def usage_lines(commands: Iterable[Command]) -> list[str]:
    """How a ctl explains its commands: comments, so that they may be written back."""
    return [f"# {command.usage}  # {command.doc}" if command.doc else f"# {command.usage}" for command in commands]


class CtlHandle(SynthHandle):
    """One open of a ctl.  Direct, so that one write(2) is one message."""

    direct = True

    def __init__(self, file: CtlFile, omode: int) -> None:
        super().__init__(file.owner)
        self.iounit = file.owner.limits.ctl_bytes_max
        self._file = file
        self._writes = omode & 3 in (OWRITE, ORDWR)
        self._content: bytes | None = None

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        if self._content is None or offset == 0:
            return then(self._file.content(call), lambda data: self._first(data, offset, count))
        return self._content[offset : offset + count]

    def _first(self, data: bytes, offset: int, count: int) -> bytes:
        self._content = data
        return data[offset : offset + count]

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        if not self._writes:
            raise E.Eperm
        count = len(data)
        return then(self._file.run(call, bytes(data)), lambda _: count)

    def truncate(self, call: Call, size: int) -> Answer[None]:
        return None


class CtlMark(NamedTuple):
    """What @ctl leaves on the method."""

    word: str


class SettingMark(NamedTuple):
    """What @setting leaves on the method."""


@overload
def ctl(method: F) -> F: ...
@overload
def ctl(*, name: str) -> Callable[[F], F]: ...
def ctl(method: F | None = None, *, name: str | None = None) -> F | Callable[[F], F]:
    """A command of the directory's `ctl`: `@ctl`, or `@ctl(name="open")` where the method must be called otherwise.

    Parameters are str, int, float, Literal, Bytes, Duration, OnOff, Annotated[type, converter], `*args` of one of
    them, and `call`.  The method may be async, and may refuse with any FileError.
    """

    def mark(method: F) -> F:
        method.__ninep_mark__ = CtlMark(name or method.__name__)  # type: ignore[attr-defined]  # read by Dir
        return method

    return mark if method is None else mark(method)


def setting(method: F) -> F:
    """Lines for the reader of the directory's ctl, each of which may be written back: a str or an iterable of them."""
    method.__ninep_mark__ = SettingMark()  # type: ignore[attr-defined]  # read by Dir
    return method
