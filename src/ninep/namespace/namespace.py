"""A Namespace: what a process group sees.  Today the degenerate one, a single tree mounted at its root.

It is a Dir, so whatever can be done with a tree can be done with a namespace: served, mounted, exported again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ninep.answer import Answer
from ninep.file import Call, Dir, File, Handle
from ninep.proto import errors as E
from ninep.proto.types import Change, Qid, Stat, StatFs


class Namespace(Dir):
    """`root`, under the name `group`; `anames` are the trees that an attach may ask for by name, matched exactly."""

    def __init__(self, root: Dir, group: str = "", anames: Mapping[str, Dir] | None = None) -> None:
        self.root = root
        self.group = group
        self.anames: dict[str, Dir] = dict(anames or {})

    @property
    def qid(self) -> Qid:  # type: ignore[override]  # the mounted root's identity, whatever it is by now
        return self.root.qid

    def attach(self, call: Call, aname: str) -> Answer[Dir]:
        """The tree that `aname` selects; "" and "/" are the root.  No normalising: `../x` is merely unknown."""
        if aname in ("", "/"):
            return self.root.attach(call, "")
        tree = self.anames.get(aname)
        if tree is None:
            raise E.Enonexist(aname)
        return tree.attach(call, "")

    def walk(self, call: Call, name: str) -> Answer[File]:
        return self.root.walk(call, name)

    def list(self, call: Call) -> Answer[Iterable[tuple[str, File]]]:
        return self.root.list(call)

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        return self.root.open(call, omode)

    def stat(self, call: Call) -> Answer[Stat]:
        return self.root.stat(call)

    def access(self, call: Call, want: int) -> Answer[None]:
        return self.root.access(call, want)

    def may_wstat(self, call: Call, change: Change) -> Answer[None]:
        return self.root.may_wstat(call, change)

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        return self.root.wstat(call, change)

    def statfs(self, call: Call) -> Answer[StatFs]:
        return self.root.statfs(call)

    def create(self, call: Call, name: str, perm: int, omode: int) -> Answer[tuple[File, Handle]]:
        return self.root.create(call, name, perm, omode)

    def mkdir(self, call: Call, name: str, perm: int) -> Answer[File]:
        return self.root.mkdir(call, name, perm)

    def symlink(self, call: Call, name: str, target: str) -> Answer[File]:
        return self.root.symlink(call, name, target)

    def link(self, call: Call, name: str, file: File) -> Answer[None]:
        return self.root.link(call, name, file)

    def mknod(self, call: Call, name: str, st_mode: int, rdev: int) -> Answer[File]:
        return self.root.mknod(call, name, st_mode, rdev)

    def remove(self, call: Call, name: str, is_dir: bool | None, expect: File | None = None) -> Answer[None]:
        return self.root.remove(call, name, is_dir, expect)

    def rename(self, call: Call, name: str, to: Dir, to_name: str, flags: int) -> Answer[None]:
        target = to.root if isinstance(to, Namespace) else to
        return self.root.rename(call, name, target, to_name, flags)

    def backing(self) -> int | None:
        return self.root.backing()

    def subscribe(self, changed: Callable[[str | None], None]) -> Callable[[], None] | None:
        return self.root.subscribe(changed)
