"""What the kernel knows, for an engine that has one number for a node and its file, and lists names with attributes.

Everything else about names and open files is that of our own engine; pyfuse3 itself is not known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TypeVar, cast

from ninep.answer import Answer, answering
from ninep.fid import Fid, Way
from ninep.file import Call, Dir, File
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.proto.types import Entry, Stat

from .fuse_contain import PlacedNodes
from .fuse_device import Asked, Body, FuseMount
from .fuse_io import DOT_COOKIES, FileIO
from .fuse_nodes import Known, Nodes
from .fuse_open import Opens
from .fuse_ops import Operations, attributes

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]

READDIR_ENTRIES: Final = 103  # what the kernel's first buffer holds; pyfuse3 does not say how large it is
FRESH: Final = 1 << 63  # node ids from here on are ours; below they are qid paths


class InodeNodes(Nodes):
    """Node ids that are qid paths, as pyfuse3 tells one number for both.

    Snapshots have numbers of their own; so has what one qid is a second time, where places are told apart.
    """

    def __init__(self, root: Fid, mode: int, live: dict[str, int]) -> None:
        super().__init__(root, mode, live)
        self._fresh = itertools.count(FRESH)

    def _number(self, key: int, path: int) -> int:
        if key >= 0 and p.ROOT_ID < path < FRESH and path not in self._by_id:
            return path
        return next(number for number in self._fresh if number not in self._by_id)


class PlacedInodeNodes(InodeNodes, PlacedNodes):
    """The same for a contained mount."""


class Listing(FileIO):
    """Directory entries with their attributes."""

    def __init__(self, mount: FuseMount, opens: Opens, nodes: Nodes,
                 found: Callable[[Call, Known, Fid | None], Answer[bytes]]) -> None:  # fmt: skip
        super().__init__(mount, opens, found)
        self.nodes = nodes

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
            directory = parent.fid.file
            assert isinstance(directory, Dir)
            fid = Fid(Refused(entry), Way(parent.fid.way, directory, entry.name), call, parent.fid.root)
        if st is None or st.qid.path != entry.qid.path:
            st = Stat(entry.qid, entry.dtype << 12)
        known = self.nodes.find(parent, entry.name, st.qid.path)
        known = self.nodes.look_up(known.fid if known is not None else fid, st, frozen=False, parent=parent)
        return p.ENTRY_OUT.pack(known.id, 0, 0, 0, 0, 0, *attributes(st))


class Refused(File):
    """A name that was listed and may not be walked to: it refuses everything."""

    def __init__(self, entry: Entry) -> None:
        self.qid = entry.qid
        self.perm = 0


class InodeOperations(Operations):
    """The operations of a mount that pyfuse3 serves."""

    plain = InodeNodes
    placed = PlacedInodeNodes
    io: Listing

    def new_io(self) -> Listing:
        return Listing(self.mount, self.opens, self.nodes, self.found)

    def handlers(self) -> dict[str, Callable[[Asked], Answer[Body]]]:
        return super().handlers() | {"readdirplus": cast("Callable[[Asked], Answer[Body]]", self.do_entries)}

    def do_entries(self, asked: Asked) -> Answer[Sequence[Entry]]:
        """The entries that follow an offset; their attributes are asked for one by one."""
        fh, offset = asked.args
        opened = self.opens.get(fh)
        if opened.rest and opened.at == offset:
            return opened.rest
        return self.session.entries(asked.call, opened.fid, max(0, offset - DOT_COOKIES), READDIR_ENTRIES)

    def st_ino(self, file: File) -> int:
        """pyfuse3 has one number for the node and for st_ino."""
        return file.qid.path
