"""Synthetic directories: a marked method is a file.  `ninep.Dir` is this Dir.

    class Counter(Dir):
        "A counter: read value, write ctl."
        n = 0

        @text()
        def value(self) -> str:
            return f"{self.n}\n"

        @ctl
        def add(self, amount: int = 1) -> None:
            "add amount to the counter"
            self.n += amount

Children are, in this order: what methods declare; what add_child() put there; scratch files of the caller's editor;
what child() and children() find.  Every directory has a `.help` that can be walked to and is not listed, and every
document NAME a `NAME.err` with the last verdict.  Knows no wire and no session.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from functools import reduce
from operator import or_
from stat import S_ISVTX
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from . import file
from .answer import Answer, settle, then
from .file import Call, File, Handle
from .proto import errors as E
from .synth_clone import CloneFile, CloneMark, clone
from .synth_ctl import Command, CtlFile, CtlMark, SettingMark, command_of, ctl, setting
from .synth_file import DirHandle, Owner, SynthFile, check_name
from .synth_scratch import Scratch
from .synth_stream import EventsMark, Stream, StreamFile, events
from .synth_text import Text, TextFile, text
from .synth_words import Bytes, Duration, OnOff, join, quote, split

HELP = ".help"
ERR = ".err"
RESERVED = frozenset({"qid", "mtime_ns"})  # of each instance, so the class does not show them

K = TypeVar("K", bound=Hashable)
C = TypeVar("C", bound=File)


class CommandDoc(msgspec.Struct, frozen=True):
    word: str
    usage: str
    doc: str


class FileDoc(msgspec.Struct, frozen=True):
    name: str
    kind: str  # text, document, message, ctl, events, clone, dir, file
    perm: int
    doc: str
    commands: tuple[CommandDoc, ...] = ()


class DirDoc(msgspec.Struct, frozen=True):
    """What a directory says about itself: the source of .help and of a describe message."""

    name: str
    doc: str
    files: tuple[FileDoc, ...]


class Declared(msgspec.Struct, frozen=True):
    """What the marks of one class add up to."""

    files: dict[str, tuple[str, Text[..., Any] | EventsMark | CloneMark]] = {}  # by file name: attribute, mark
    commands: dict[str, Command] = {}
    settings: tuple[str, ...] = ()


class Dir(Owner):
    """A directory whose files are marked methods, added children, and what child() and children() find."""

    ctl_perm: int = 0o666
    _declared: ClassVar[Declared] = Declared()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._declared = _collect(cls)

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, File] | None = None
        self._write_bits: int | None = None  # known until a child comes or goes
        self._scratch: Scratch | None = None
        self._hidden_files: dict[str, File] = {}

    # -- for authors
    def children(self, call: Call) -> Answer[Iterable[tuple[str, File]]]:
        """Override: children that are found rather than declared.  The same thing must be the same File: see Kept."""
        return ()

    def child(self, call: Call, name: str) -> Answer[File | None]:
        """Override where looking one up is cheaper than listing all.  None: there is no such child."""
        return then(self.children(call), lambda found: dict(found).get(name))

    def describe(self) -> DirDoc:
        """What this directory is, from the docstrings and signatures of its class."""
        files = [_describe(name, file) for name, file in [*self._own().items(), *self._children.items()]]
        return DirDoc(type(self).__name__, _doc_of(self), tuple(files))

    # -- the File contract
    def _st_mode(self) -> int:
        # Whoever may write a document may have scratch files beside it; create, remove and rename see to the rest.
        if self._write_bits is None:
            writes = self._document_bits()
            self._write_bits = writes | S_ISVTX if writes else 0
        return self.kind | self.perm | self._write_bits

    def changed(self, name: str) -> None:
        self._write_bits = None
        super().changed(name)

    def walk(self, call: Call, name: str) -> Answer[File]:
        if self.is_removed:
            raise E.Enonexist(name)
        known = self._own().get(name) or self._children.get(name) or self._scratch_of(call, name)
        if known is not None:
            return known
        if name == HELP:
            return self._hidden(HELP, lambda: help_text(self.describe()))
        return then(self.child(call, name), lambda found: found or self._verdict(name))

    def list(self, call: Call) -> Answer[Iterable[tuple[str, File]]]:
        if self.is_removed:
            return ()
        mine = [*self._own().items(), *self._children.items()]
        if self._scratch is not None:
            mine += self._scratch.of(call)
        return then(self.children(call), lambda found: [*mine, *found])

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        if self.is_removed:
            raise E.Ehungup
        return DirHandle(self)

    def create(self, call: Call, name: str, perm: int, omode: int) -> Answer[tuple[File, Handle]]:
        """Beside a document: a scratch file for an editor.  Otherwise refused."""
        self._scratching(call)  # refused before anything is asked of the tree
        return self._create(call, name, perm, omode)

    def remove(self, call: Call, name: str, is_dir: bool | None, expect: File | None = None) -> Answer[None]:
        """Only the caller's own scratch files can be removed."""
        found = self._scratch_of(call, name)
        if found is None:
            raise E.Eperm(name)
        if is_dir:
            raise E.Enotdir(name)
        if expect is not None and expect.qid.path != found.qid.path:
            raise E.Estale(name)
        self._scratching(call).remove(call, name)
        return None

    def rename(self, call: Call, name: str, to: file.Dir, to_name: str, flags: int) -> Answer[None]:
        """A scratch file onto a document is one write of the document; a document onto a new name is a backup."""
        if to is not self:
            raise E.Exdev(name)
        return self._scratching(call).rename(call, name, to_name, flags)

    # -- what the contract is made of
    def _own(self) -> dict[str, File]:
        """The declared files, made at the first walk."""
        if self._files is None:
            declared = self._declared
            self._files = {name: mark.make(self, attribute) for name, (attribute, mark) in declared.files.items()}
            if declared.commands or declared.settings:
                self._files["ctl"] = CtlFile(self, declared.commands, declared.settings, self.ctl_perm, "commands")
        return self._files

    def _document(self, name: str) -> TextFile | None:
        found = self._own().get(name) or self._children.get(name)
        return found if isinstance(found, TextFile) and found.is_document else None

    def _has_documents(self, call: Call) -> bool:
        for name in (*self._own(), *self._children):
            document = self._document(name)
            if document is not None and document.edit and document.may_write(call):
                return True
        return False

    def _document_bits(self) -> int:
        documents = (self._document(name) for name in (*self._own(), *self._children))
        return reduce(or_, (document.perm & 0o222 for document in documents if document and document.edit), 0)

    def _scratching(self, call: Call) -> Scratch:
        """The scratch files here.  Eperm for a caller who may write no document: there is nothing to edit."""
        if not self._has_documents(call):
            raise E.Eperm
        if self._scratch is None:
            self._scratch = Scratch(self, self._document, self.has_child)
        return self._scratch

    def _scratch_of(self, call: Call, name: str) -> File | None:
        return None if self._scratch is None else self._scratch.find(call, name)

    async def _create(self, call: Call, name: str, perm: int, omode: int) -> tuple[File, Handle]:
        try:
            await settle(self.walk(call, name))
        except E.Enonexist:
            return self._scratching(call).create(call, name, perm, omode)
        raise E.Eexist(name)

    def _hidden(self, name: str, render: Callable[[], str]) -> File:
        if name not in self._hidden_files:
            self._hidden_files[name] = TextFile(self, lambda call: render())
        return self._hidden_files[name]

    def _verdict(self, name: str) -> File:
        document = self._document(name.removesuffix(ERR)) if name.endswith(ERR) else None
        if document is None:
            raise E.Enonexist(name)
        return self._hidden(name, lambda: f"{document.verdict}\n" if document.verdict else "")


class Kept(Generic[K, C]):
    """The File of each thing found: made once, the same one while the thing is there, so that its qid stays.

    `only(keys)` forgets what is not there any more, and gives the files of what is.
    """

    def __init__(self, make: Callable[[K], C]) -> None:
        self._make = make
        self._files: dict[K, C] = {}

    def get(self, key: K) -> C:
        """The file of a thing that is known to be there."""
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = self._make(key)
        return file

    def forget(self, key: K) -> None:
        self._files.pop(key, None)

    def only(self, keys: Iterable[K]) -> dict[K, C]:
        """The files of exactly these things, in this order."""
        self._files = {key: self.get(key) for key in keys}
        return dict(self._files)


def _marks_of(cls: type) -> dict[str, Any]:
    """Each marked attribute with its mark, in the order of definition, a subclass's instead of its base's."""
    marks: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            mark = value if isinstance(value, Text) else getattr(value, "__ninep_mark__", None)
            if mark is not None:
                marks[attribute] = mark
            elif value is None:
                marks.pop(attribute, None)  # `value = None` in a subclass takes the file away
    return marks


def _collect(cls: type[Dir]) -> Declared:
    """What the marks of a class declare.  TypeError for a mark that hides a File's or Dir's own method."""
    files: dict[str, tuple[str, Any]] = {}
    commands: dict[str, Command] = {}
    settings: list[str] = []
    for attribute, mark in _marks_of(cls).items():
        if hasattr(Dir, attribute) or attribute in RESERVED:
            raise TypeError(
                f'{cls.__name__}.{attribute} would hide Dir.{attribute}: rename it and give name="{attribute}"'
            )
        if isinstance(mark, CtlMark):
            commands[mark.word] = command_of(mark.word, attribute, getattr(cls, attribute))
        elif isinstance(mark, SettingMark):
            settings.append(attribute)
        else:
            check_name(mark.name)
            if mark.name in files:
                raise TypeError(f"{cls.__name__}: two files called {mark.name}")
            files[mark.name] = (attribute, mark)
    if (commands or settings) and "ctl" in files:
        raise TypeError(f"{cls.__name__}: two files called ctl")
    return Declared(files, commands, tuple(settings))


def _doc_of(thing: object) -> str:
    return inspect.cleandoc(type(thing).__doc__ or "")


def _describe(name: str, found: File) -> FileDoc:
    if isinstance(found, CtlFile):
        commands = tuple(CommandDoc(c.word, c.usage, c.doc) for c in found.commands.values())
        return FileDoc(name, "ctl", found.perm, found.doc, commands)
    if isinstance(found, TextFile):
        kind = "document" if found.is_document else "message" if found.each else "text"
        return FileDoc(name, kind, found.perm, found.doc)
    if isinstance(found, file.Dir):
        return FileDoc(name, "dir", found.perm, _doc_of(found).partition("\n")[0] if isinstance(found, Owner) else "")
    kind = {StreamFile: "events", CloneFile: "clone"}.get(type(found), "file")
    return FileDoc(name, kind, found.perm, found.doc if isinstance(found, SynthFile) else "")


def help_text(about: DirDoc) -> str:
    """A .help: the directory's text, then one line per file and per command."""
    lines = [about.doc, ""] if about.doc else []
    for each in about.files:
        first = each.doc.partition("\n")[0]
        shown = each.name + ("/" if each.kind == "dir" else "")
        lines.append(f"{shown}\t{each.kind}\t{each.perm:04o}\t{first}".rstrip())
        lines += [f"\t{c.usage}\t{c.doc}".rstrip() for c in each.commands]
    return "\n".join(lines) + "\n"


__all__ = [
    "Bytes",
    "CommandDoc",
    "Dir",
    "DirDoc",
    "Duration",
    "FileDoc",
    "Kept",
    "OnOff",
    "Stream",
    "StreamFile",
    "TextFile",
    "clone",
    "ctl",
    "events",
    "help_text",
    "join",
    "quote",
    "setting",
    "split",
    "text",
]
