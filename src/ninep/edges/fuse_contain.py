"""Symbolic links of a server that is not trusted: none may lead out of its mount (SEC-60).

The kernel resolves a link's text in the caller's own tree, so `../../etc/passwd` would make every program open a local
file in the server's name.  A text passes when it is relative and its `..` all come first and are no more than the
directories between the link and the root of the mount.  A `..` behind a name is refused, because the name may itself
be a link to a higher place.

That is true only as long as the kernel and we agree on where a link lies.  So a directory or a link is a node of its
own at each place (parent, name): a server that shows one qid twice moves nothing in the kernel's tree.  Only a rename
through the mount does, and for that a place counts as no deeper than it has ever been: its text may be on its way.
Not seen from here: a directory of the mount that somebody binds elsewhere, or makes his root.
"""

from __future__ import annotations

import itertools
import math
import stat as _s
from typing import Final

from ninep.fid import Fid
from ninep.proto import errors as E
from ninep.proto.fuse import ROOT_ID
from ninep.proto.types import Stat

from .fuse_nodes import Known, Nodes

PLACED: Final = (_s.S_IFDIR, _s.S_IFLNK)
FIRST_KEY: Final = 1 << 64  # past every qid path


def check_target(target: str, depth: int) -> str:
    """The target, if a link in a directory `depth` levels below the root may have it.  Raises Enotallowed."""
    words = [word for word in target.split("/") if word not in ("", ".")]
    up = next((i for i, word in enumerate(words) if word != ".."), len(words))
    if target.startswith("/") or up > depth or ".." in words[up:]:
        raise E.Enotallowed("symbolic link out of the mount")
    return target


class Place:
    """Where a node is.  `lowest` is the least depth that it had or may be about to have."""

    __slots__ = ("known", "lowest", "name", "parent", "path")

    def __init__(self, known: Known, parent: Place | None, name: str, path: int) -> None:
        self.known = known
        self.parent = parent
        self.name = name
        self.path = path
        self.lowest: float = math.inf if parent is not None else 0

    def depth(self, steps_max: int = 65_536) -> int:
        """Levels below the root, at least; 0 at the root."""
        steps, least, at = 0, math.inf, self
        while at.parent is not None:
            least = min(least, at.lowest + steps)
            steps += 1
            at = at.parent
            if steps > steps_max:
                return 0  # a circle: nobody knows
        return int(min(least, steps))


class PlacedNodes(Nodes):
    """The table of a contained mount: files by qid, directories and links by place."""

    def __init__(self, root: Fid, mode: int, live: dict[str, int]) -> None:
        super().__init__(root, mode, live)
        self._keys: dict[tuple[int, str, int], int] = {}
        self._new_keys = itertools.count(FIRST_KEY)
        self._root = Place(self.get(ROOT_ID), None, "", root.file.qid.path)
        self._places: dict[int, Place] = {ROOT_ID: self._root}
        self._at: dict[tuple[int, str], set[Place]] = {}

    def look_up(self, fid: Fid, st: Stat, *, frozen: bool, parent: Known | None = None) -> Known:
        if parent is None or fid.way is None or frozen or st.st_mode & 0o170000 not in PLACED:
            return super().look_up(fid, st, frozen=frozen)
        name = fid.way.name
        where = (parent.id, name, st.qid.path)
        key = self._keys.get(where)
        if key is None:
            key = self._keys[where] = next(self._new_keys)
        known = self._look_up(key, fid, st, frozen=False)
        if known.id not in self._places:
            place = Place(known, self._places.get(parent.id, self._root), name, st.qid.path)
            self._places[known.id] = place
            self._at.setdefault((parent.id, name), set()).add(place)
        return known

    def find(self, parent: Known, name: str, path: int) -> Known | None:
        key = self._keys.get((parent.id, name, path))
        return self._by_key.get(key) if key is not None else super().find(parent, name, path)

    def forget(self, number: int, lookups: int) -> None:
        super().forget(number, lookups)
        if number not in self._by_id and (place := self._places.pop(number, None)) is not None:
            self._leave(place)

    def depth_above(self, known: Known) -> int:
        place = self._places.get(known.id)
        return max(0, place.depth() - 1) if place is not None else 0

    # -- renames through the mount

    def moving(self, parent: Known, name: str, to: Known) -> None:
        above = self._places.get(to.id, self._root)
        for place in self._at.get((parent.id, name), ()):
            place.lowest = min(place.depth(), above.depth() + 1)

    def moved(self, parent: Known, name: str, to: Known, to_name: str, *, exchange: bool) -> None:
        if (parent.id, name) == (to.id, to_name):
            return
        going = list(self._at.get((parent.id, name), ()))
        coming = list(self._at.get((to.id, to_name), ()))
        self.moving(parent, name, to)  # what was looked up meanwhile, too
        self.moving(to, to_name, parent)
        for place in going + coming:
            self._leave(place)
        for place in going:
            self._enter(place, to, to_name)
        if exchange:
            for place in coming:
                self._enter(place, parent, name)
        else:
            for place in coming:
                self.retire(place.known)

    def _enter(self, place: Place, parent: Known, name: str) -> None:
        place.parent, place.name = self._places.get(parent.id, self._root), name
        self._at.setdefault((parent.id, name), set()).add(place)
        self._keys[parent.id, name, place.path] = place.known.key

    def _leave(self, place: Place) -> None:
        assert place.parent is not None
        where = (place.parent.known.id, place.name)
        there = self._at.get(where)
        if there is not None:
            there.discard(place)
            if not there:
                del self._at[where]
        if self._keys.get((*where, place.path)) == place.known.key:
            del self._keys[(*where, place.path)]
