"""What the kernel knows: the files behind its node ids, and the opens behind its file handles.

A node id is one file for as long as the kernel remembers it.  A state file is special (architecture A5): its id means
one snapshot, so that the size which a reader was told is the size of what it then reads; when the content differs, the
next LOOKUP gives another id.  Knows no message and no device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from ninep.fid import Fid
from ninep.proto import errors as E
from ninep.proto.fuse import ROOT_ID
from ninep.proto.types import Stat

S_IFMT = 0o170000


class Known:
    """One node id.  `mode` is the st_mode last told; `vers` the qid.vers whose content the kernel may hold.

    `opens` counts the opens that use the page cache (or, with `backing_id`, the passthrough), because the kernel wants
    one way for all opens of a node.
    """

    __slots__ = ("backing_id", "fid", "forget", "frozen", "id", "key", "lookups", "mode", "opens", "vers")

    def __init__(self, number: int, key: int, fid: Fid, mode: int, *, frozen: bool) -> None:
        self.id = number
        self.key = key
        self.fid = fid
        self.mode = mode
        self.frozen = frozen
        self.lookups = 0
        self.vers = 0
        self.opens = 0
        self.backing_id = 0
        self.forget: Callable[[], None] | None = None  # ends the subscription


class Opened:
    """One file handle of the kernel's."""

    __slots__ = ("at", "cached", "fid", "known", "rest")

    def __init__(self, fid: Fid, known: Known) -> None:
        self.fid = fid
        self.known = known
        self.cached = False  # counted in known.opens
        self.at = 0  # the offset at which `rest` continues a directory
        self.rest: Sequence[Any] = ()  # Names; over pyfuse3, Entries


class Nodes:
    """The table of one mount.  The kernel bounds it: what it does not remember, it forgets here."""

    def __init__(self, root: Fid, mode: int, live: dict[str, int]) -> None:
        """`live` is where the number of nodes is accounted, as "nodeids"."""
        self._live = live
        live["nodeids"] = live.get("nodeids", 0) + 1
        known = Known(ROOT_ID, root.file.qid.path, root, mode, frozen=False)
        known.lookups = 1  # never forgotten
        self._by_id = {ROOT_ID: known}
        # Qid paths are not negative; the identity of a snapshot object is told apart by its sign.
        self._by_key = {known.key: known}
        self._ids = itertools.count(ROOT_ID + 1)

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, number: int) -> Known:
        """Raises Estale."""
        try:
            return self._by_id[number]
        except KeyError:
            raise E.Estale(f"node {number}") from None

    def find(self, parent: Known, name: str, path: int) -> Known | None:
        """What is known of the ordinary file with this qid path, as it is found in `parent`."""
        return self._by_key.get(path)

    def look_up(self, fid: Fid, st: Stat, *, frozen: bool, parent: Known | None = None) -> Known:
        """The node of a file that a LOOKUP (or what counts as one) found in `parent`; counts it."""
        return self._look_up(-id(fid.file) if frozen else st.qid.path, fid, st, frozen=frozen)

    def _look_up(self, key: int, fid: Fid, st: Stat, *, frozen: bool) -> Known:
        known = self._by_key.get(key)
        if known is None or (known.mode ^ st.st_mode) & S_IFMT:
            # A file that changed its type is another file; the kernel would mark the old node bad.
            number = self._number(key, st.qid.path)
            known = self._by_id[number] = self._by_key[key] = Known(number, key, fid, st.st_mode, frozen=frozen)
            self._live["nodeids"] += 1
        else:
            known.fid = fid
            known.mode = st.st_mode
        known.lookups += 1
        return known

    def _number(self, key: int, path: int) -> int:
        """The id of a new node: none that the kernel still knows."""
        return next(self._ids)

    def depth_above(self, known: Known) -> int:
        """How many levels below the root a node's directory is, at least; a table that does not know says 0."""
        return 0

    def moving(self, parent: Known, name: str, to: Known) -> None:
        """A rename is about to be asked for."""

    def moved(self, parent: Known, name: str, to: Known, to_name: str, *, exchange: bool) -> None:
        """A rename has happened; the kernel hears it next."""

    def retire(self, known: Known) -> None:
        """Later LOOKUPs get another node, although the content is the same."""
        if self._by_key.get(known.key) is known:
            del self._by_key[known.key]

    def forget(self, number: int, lookups: int) -> None:
        """The kernel forgot so many LOOKUPs; the node is gone with the last."""
        known = self._by_id.get(number)
        if known is None or number == ROOT_ID:
            return
        known.lookups -= lookups
        if known.lookups > 0:
            return
        del self._by_id[number]
        self._live["nodeids"] -= 1
        self.retire(known)
        if known.forget is not None:
            known.forget()

    def clear(self) -> None:
        """Ends every subscription."""
        for known in self._by_id.values():
            if known.forget is not None:
                known.forget()
        self._live["nodeids"] -= len(self._by_id)
        self._by_id.clear()
        self._by_key.clear()
