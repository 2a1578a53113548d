"""Descriptors that close themselves, and the bound on those kept only for speed.

Knows no file system.  A Held owns one descriptor and closes it with its last reference, so a thread that still works
on one can never find it closed, or given to another file, under its feet.
"""

from __future__ import annotations

import os
import resource
import threading
import weakref
from collections import OrderedDict
from typing import Protocol


class Held:
    """One descriptor, closed when nobody refers to it any more.  close(2)'s own error is lost: see HostHandle.flush."""

    __slots__ = ("__weakref__", "_warm", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._warm: Warm | None = None

    def __del__(self) -> None:
        # Out of the cache before the number is free for another file.
        if self._warm is not None:
            self._warm.forget(self.fd)
        try:
            os.close(self.fd)
        except OSError:
            pass


class Cooled(Protocol):
    """What the cache may ask to let go: a node."""

    held: Held | None
    recent: bool


class Warm:
    """The nodes that hold an O_PATH descriptor, at most `most` of them; the longest unused one is let go first.

    Second chance instead of a strict order: a use costs setting one attribute, not moving an entry.  Nodes are
    referred to weakly, so a forgotten node takes its descriptor with it.
    """

    def __init__(self, most: int) -> None:
        self.most = max(8, most)
        # By descriptor, oldest first.  Not a dict, which looks at all the entries that were there to find its first.
        self._nodes: OrderedDict[int, weakref.ref[Cooled]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._nodes)

    def keep(self, node: Cooled, held: Held) -> None:
        """Make `held` the node's descriptor, and let others go while there are too many."""
        gone: list[Held] = []  # closed after the lock: a Held's end calls forget
        with self._lock:
            if node.held is None:
                node.held = held
                held._warm = self
                self._nodes[held.fd] = weakref.ref(node)
                if len(self._nodes) > self.most:
                    self._cool(len(self._nodes) - self.most, gone)
        del gone

    def shrink(self) -> int:
        """Let half of all go (the process is out of descriptors); how many went."""
        gone: list[Held] = []
        with self._lock:
            self._cool((len(self._nodes) + 1) // 2, gone)
        return len(gone)

    def forget(self, fd: int) -> None:
        """A descriptor is about to be closed."""
        self._nodes.pop(fd, None)

    def _cool(self, count: int, gone: list[Held]) -> None:
        turns = 2 * len(self._nodes)
        while count > 0 and turns > 0 and self._nodes:
            turns -= 1
            try:
                fd, ref = self._nodes.popitem(last=False)
            except KeyError:
                break  # another thread's Held was the last
            node = ref()
            if node is None or node.held is None or node.held.fd != fd:
                count -= 1
            elif node.recent:
                node.recent = False
                self._nodes[fd] = ref
            else:
                gone.append(node.held)
                node.held = None
                count -= 1


def share_of_descriptors(share: float) -> int:
    """That share of RLIMIT_NOFILE, of which at least 8."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, int((65_536 if soft == resource.RLIM_INFINITY else soft) * share))
