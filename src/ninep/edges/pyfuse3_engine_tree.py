"""What the kernel knows, for an engine that has one number for a node and its file, and lists names with attributes.

Everything else about names and open files is that of our own engine; pyfuse3 itself is not known here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TypeVar, cast

from ninep.answer import Answer, answering
from ninep.fid import Fid
from ninep.file import Call, File
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.proto.types import Entry, Stat

from .fuse_device import Asked, Body
from .fuse_io import FileIO
from .fuse_nodes import Known, Nodes
from .fuse_open import Opens
from .fuse_ops import Operations, attributes

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]

READDIR_BYTES: Final = 4096  # what the kernel's first buffer holds; pyfuse3 does not say how large it is
FRESH: Final = 1 << 63  # node ids from here on are ours; below they are qid paths


class InodeNodes(Nodes):
    """Node ids that are qid paths, as pyfuse3 tells one number for both; snapshots have numbers of their own."""

    def __init__(self, root: Fid, mode: int, live: dict[str, int]) -> None:
        super().__init__(root, mode, live)
        self._fresh = itertools.count(FRESH)

    def _number(self, key: int) -> int:
        if p.ROOT_ID < key < FRESH and key not in self._by_id:
            return key
        return next(number for number in self._fresh if number not in self._by_id)


class Listing(FileIO):
    """Directory entries with their attributes."""

    nodes: Nodes

    @answering
    def plus(self, call: Call, parent: Known, entry: Entry) -> Steps[bytes]:
        """The entry of one name, which the kernel knows from here on; raises nothing that a file says.

        What the kernel may not keep is not rendered for a listing: it is told the file and not the snapshot, and will
        look the name up before it uses it.
        """
        st: Stat | None = None
        try:
            fid: Fid | None
            _, fid = yield self._session.walk(call, parent.fid, (entry.name,))
            if fid is None:
                raise E.Enonexist(entry.name)
            if fid.file.entry_seconds and self._mount.options.cache:
                found: bytes = yield self._found(call, parent, fid)
                return found
            st = yield self._session.stat(call, fid)
        except E.FileError:
            # Not the caller's to see, or gone by now: the name is told, and its own LOOKUP says why.
            fid = Fid(Refused(entry), None, call, parent.fid.root)
        if st is None or st.qid.path != entry.qid.path:
            st = Stat(entry.qid, entry.dtype << 12)
        known = self.nodes.find(st.qid.path)
        known = self.nodes.look_up(known.fid if known is not None else fid, st, frozen=False)
        return p.ENTRY_OUT.pack(known.id, 0, 0, 0, 0, 0, *attributes(st))


class Refused(File):
    """A name that was listed and may not be walked to: it refuses everything."""

    def __init__(self, entry: Entry) -> None:
        self.qid = entry.qid
        self.perm = 0


class InodeOperations(Operations):
    """The operations of a mount that pyfuse3 serves."""

    io: Listing

    @answering
    def start(self) -> Steps[None]:
        """Attach, and take requests from now on."""
        mount = self.mount
        call = mount.callers.call(os.geteuid(), os.getegid(), os.getpid())
        root: Fid = yield self.session.attach(call, mount.options.aname)
        st: Stat = yield root.file.stat(call)
        self.nodes = InodeNodes(root, st.st_mode, mount.node.live)
        self.opens = Opens(mount, self.nodes, self.made)
        if mount.options.cache and (root.file.entry_seconds or root.file.attr_seconds):
            self.subscribe(self.nodes.get(p.ROOT_ID))
        self.io = Listing(mount, self.opens, self.found)
        self.io.nodes = self.nodes
        handlers: dict[str, Callable[[Asked], Answer[Body]]] = {}
        for part in (self, self.opens, self.io):
            handlers |= {op.name: getattr(part, "do_" + op.name) for op in p.OPCODES.values()
                         if hasattr(part, "do_" + op.name)}  # fmt: skip
        handlers["readdirplus"] = cast("Callable[[Asked], Answer[Body]]", self.do_entries)
        mount.set_operations(handlers, {})

    def do_entries(self, asked: Asked) -> Answer[Sequence[Entry]]:
        """The entries that follow an offset; their attributes are asked for one by one."""
        fh, offset = asked.args
        opened = self.opens.get(fh)
        return self.io._entries(asked, opened, offset, READDIR_BYTES)
