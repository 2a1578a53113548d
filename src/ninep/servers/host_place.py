"""Where a host file is: an identity, a name beneath a parent, and while it is warm an O_PATH descriptor.

A cold place is walked to again beneath its nearest warm ancestor and must have the same identity, else Estale: never
another file under an old fid.  No path string outlives a call.  Knows nothing of metadata and content: host_node.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ..proto import errors as E
from . import host_sys as sys
from .host_cache import Held
from .host_tree import Export, Identity

PATH_BYTES_MAX = 4095  # one openat2 path


class Place:
    """What finds one file again.  Shared by all who know the file."""

    export: Export
    parent: Place | None
    name: str
    identity: Identity
    held: Held | None
    recent: bool
    opens: tuple[Held, ...]  # descriptors of open handles: a way back when the name is gone

    def here(self) -> Held:
        """The O_PATH descriptor; keep the reference while using it.  Estale if the file cannot be found again."""
        held = self.held
        if held is not None:
            self.recent = True
            return held
        return self._find(contained=False)

    def contained(self) -> Held:
        """As here, for operations that open or act below: the file lies inside the export at this moment."""
        held = self.here()
        if self.parent is None:
            return held
        try:
            self.inside(held.fd)
        except E.Estale:
            # Perhaps it has another name inside (a hard link, or it was moved out and back): look by name.
            self.cool(held)
            return self._find(contained=True)
        return held

    def cool(self, held: Held) -> None:
        """Forget this descriptor, if it still is the node's."""
        if self.held is held and self.parent is not None:
            self.held = None
            self.export.warm.forget(held.fd)

    def inside(self, fd: int) -> None:
        """Raise Estale unless the descriptor, of this file or of a name just found beneath it, is inside the export."""
        try:
            self.export.inside(fd)
        except OSError as e:
            if e.errno != errno.ENAMETOOLONG:
                raise
            # The kernel prints no path over 4 KiB: go down the names from the root, to this very file.
            held = self._descend(self.export.root, self._names(lambda node: node.parent is None))
            if sys.identify(held.fd)[1] != self.identity:
                raise E.Estale from None

    def _find(self, contained: bool) -> Held:
        if self.opens:
            held = self.export.reopen(self.opens[0].fd, os.O_PATH)
            if contained:
                self.inside(held.fd)
        else:
            held = self._walk_again()
        self.export.warm.keep(self, held)
        return held

    def _walk_again(self) -> Held:
        tops: list[Held] = []

        def is_warm(node: Place) -> bool:
            if node.held is not None:
                tops.append(node.held)
            return node.held is not None

        names = self._names(is_warm)
        held = self._descend(tops[0], names)
        if sys.identify(held.fd)[1] != self.identity:
            raise E.Estale
        self.inside(held.fd)
        return held

    def _names(self, is_top: Callable[[Place], bool]) -> list[bytes]:
        """The names from an ancestor down to here."""
        names: list[bytes] = []
        node: Place = self
        while not is_top(node):
            # Directories that others moved about can leave parents in a circle for a while.
            if node.parent is None or len(names) > self.export.limits.path_depth_max:
                raise E.Estale
            names.append(os.fsencode(node.name))
            node = node.parent
        names.reverse()
        return names

    def _descend(self, held: Held, names: list[bytes]) -> Held:
        """What these names lead to, in pieces that one openat2 takes.  Estale if they no longer lead anywhere."""
        try:
            while names:
                count, length = 1, len(names[0])
                while count < len(names) and length + 1 + len(names[count]) <= PATH_BYTES_MAX:
                    length += 1 + len(names[count])
                    count += 1
                held = self.export.beneath(held.fd, b"/".join(names[:count]))
                del names[:count]
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise E.Estale from None
            raise
        return held
