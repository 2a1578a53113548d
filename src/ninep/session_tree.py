"""The part of Session that changes trees: create, remove, rename, link, wstat.

Every change passes one gate of rights (checks.need) and one rule of permission (File.access, File.may_wstat) here;
what is refused has changed nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any, TypeVar

from . import checks as c
from .answer import Answer, answering
from .fid import Fid, Way
from .file import Call, Dir, File, Handle, want_of
from .proto import errors as E
from .proto.types import (
    DMAPPEND,
    DMEXCL,
    NOW,
    OAPPEND,
    ORDWR,
    OREAD,
    OTRUNC,
    OWRITE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    W_WANT,
    X_WANT,
    Change,
    Qid,
    Stat,
    StatFs,
)
from .session_xattr import XattrOps

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]
S_ISVTX = 0o1000
S_ISUGID = 0o6000
CREATE_TRIES = 3  # open-or-create races with another's create or remove; each round is one loss of that race


class TreeOps(XattrOps, ABC):
    """What Session does to trees."""

    @abstractmethod
    def opened(self, fid: Fid, handle: Handle, omode: int) -> None: ...

    # -- making

    @answering
    def _place(self, call: Call, fid: Fid, name: str, right: int) -> Steps[Dir]:
        """The directory of a fid, if the caller may put `name` there."""
        if fid.is_auth or fid.xattr is not None:
            raise E.Ebadusefid("not a file")
        directory = c.as_dir(fid.file)
        c.check_name(name)
        c.need(call, right)
        yield directory.access(call, W_WANT | X_WANT)
        return directory

    @answering
    def create(
        self, call: Call, fid: Fid, name: str, perm: int, omode: int, *, inherit: bool, exclusive: bool
    ) -> Steps[tuple[Qid, int]]:
        """Create and open a regular file; `fid` becomes it (open(5)).

        `inherit`: apply 9P2000's rule, perm & (~0666 | (dir.perm & 0666)).  Not `exclusive`: an existing file is opened
        instead, with the checks of open.  perm may carry DMAPPEND and DMEXCL.
        """
        if fid.handle is not None:
            raise E.Ebadusefid("already open")
        directory = c.as_dir(fid.file)
        c.check_name(name)
        c.need(call, c.rights_of(omode))
        if not exclusive:
            yield directory.access(call, X_WANT)
            for _ in range(CREATE_TRIES):
                try:
                    file: File = yield directory.walk(call, name)
                except E.Enonexist:
                    pass
                else:
                    if isinstance(file, Dir):
                        raise E.Eisdir
                    if file.kind == 0o120000:
                        raise E.Eloop("a symbolic link cannot be opened")
                    yield file.access(call, want_of(omode))
                    handle: Handle = yield file.open(call, omode)
                    return self._became(fid, directory, name, file, handle, omode)
                try:
                    made: tuple[Qid, int] = yield self._make(call, fid, name, perm, omode, inherit)
                    return made
                except E.Eexist:
                    continue
            raise E.Eexist(name)
        made = yield self._make(call, fid, name, perm, omode, inherit)
        return made

    @answering
    def _make(self, call: Call, fid: Fid, name: str, perm: int, omode: int, inherit: bool) -> Steps[tuple[Qid, int]]:
        directory: Dir = yield self._place(call, fid, name, c.CREATE)
        if inherit:
            st: Stat = yield directory.stat(call)
            perm &= ~0o666 | (st.st_mode & 0o666)
        file, handle = yield directory.create(call, name, perm & (0o7777 | DMAPPEND | DMEXCL), omode)
        if inherit:
            yield self._inherit_group(call, file, st.gid)
        return self._became(fid, directory, name, file, handle, omode)

    def _became(self, fid: Fid, directory: Dir, name: str, file: File, handle: Handle, omode: int) -> tuple[Qid, int]:
        fid.way = Way(fid.way, directory, name)
        fid.file = file
        self.opened(fid, handle, omode | OAPPEND if file.flags & DMAPPEND else omode)
        return file.qid, handle.iounit

    @answering
    def mkdir(self, call: Call, fid: Fid, name: str, perm: int, *, inherit: bool = False) -> Steps[File]:
        directory: Dir = yield self._place(call, fid, name, c.CREATE)
        if inherit:
            st: Stat = yield directory.stat(call)
            perm &= ~0o777 | (st.st_mode & 0o777)
        made: File = yield directory.mkdir(call, name, perm & 0o7777)
        if inherit:
            yield self._inherit_group(call, made, st.gid)
        return made

    @answering
    def _inherit_group(self, call: Call, file: File, gid: int) -> Steps[None]:
        """A new file has its directory's group (open(5)); where the tree's own rules forbid that, they stand."""
        st: Stat = yield file.stat(call)
        if st.gid == gid or st.st_mode & S_ISUGID:
            return
        try:
            yield file.wstat(call, Change(gid=gid))
        except E.FileError:
            pass

    @answering
    def create_dir(self, call: Call, fid: Fid, name: str, perm: int, omode: int) -> Steps[tuple[Qid, int]]:
        """9P2000's Tcreate with DMDIR: made by the inheriting rule, and open for reading (open(5))."""
        if fid.handle is not None:
            raise E.Ebadusefid("already open")
        if omode & 3 != OREAD or omode & OTRUNC:
            raise E.Eisdir("a directory is created for reading")
        directory = c.as_dir(fid.file)
        file: File = yield self.mkdir(call, fid, name, perm, inherit=True)
        handle: Handle = yield file.open(call, omode)
        return self._became(fid, directory, name, file, handle, omode)

    @answering
    def symlink(self, call: Call, fid: Fid, name: str, target: str) -> Steps[File]:
        directory: Dir = yield self._place(call, fid, name, c.CREATE)
        if not target or "\0" in target:
            raise E.Enonexist("an empty link target") if not target else E.Ebadarg("NUL in a link target")
        if len(target.encode("utf-8", "surrogateescape")) > self.limits.symlink_bytes_max:
            raise E.Enametoolong("link target")
        made: File = yield directory.symlink(call, name, target)
        return made

    @answering
    def mknod(self, call: Call, fid: Fid, name: str, st_mode: int, rdev: int) -> Steps[File]:
        directory: Dir = yield self._place(call, fid, name, c.CREATE)
        made: File = yield directory.mknod(call, name, st_mode, rdev)
        return made

    @answering
    def link(self, call: Call, fid: Fid, name: str, file: Fid) -> Steps[None]:
        """A further name in the directory `fid` for the file of the fid `file`."""
        directory: Dir = yield self._place(call, fid, name, c.LINK)
        if isinstance(file.file, Dir):
            raise E.Enotallowed("link to a directory")
        if file.is_auth or file.xattr is not None:
            raise E.Ebadusefid("not a file")
        yield directory.link(call, name, file.file)

    # -- removing and renaming

    @answering
    def taking(self, call: Call, directory: Dir, name: str, right: int) -> Steps[None]:
        """May the caller take `name` away from there: rights, write and search, the sticky bit (unlink(2))."""
        c.check_name(name)
        c.need(call, right)
        yield directory.access(call, W_WANT | X_WANT)
        who = call.principal
        if who.is_superuser:
            return
        above: Stat = yield directory.stat(call)
        if above.st_mode & S_ISVTX and not who.owns(above.uid):
            file: File = yield directory.walk(call, name)
            st: Stat = yield file.stat(call)
            if not who.owns(st.uid):
                raise E.Enotallowed(f"sticky directory: {name}")

    @answering
    def unlink(self, call: Call, fid: Fid, name: str, is_dir: bool | None) -> Steps[None]:
        """Remove a name in the directory `fid`; open fids of the file stay good (unlinkat(2))."""
        directory = c.as_dir(fid.file)
        yield self.taking(call, directory, name, c.REMOVE)
        yield directory.remove(call, name, is_dir)

    @answering
    def remove(self, call: Call, fid: Fid) -> Steps[None]:
        """Tremove: the file the fid was walked to, if it still has that name.  The edge has freed the number."""
        if fid.is_auth or fid.xattr is not None:
            raise E.Ebadusefid("not a file")
        if fid.way is None:
            raise E.Eperm("cannot remove the attach point")
        directory, name = fid.way.dir, fid.way.name
        yield self.taking(call, directory, name, c.REMOVE)
        yield directory.remove(call, name, None, fid.file)

    @answering
    def rename(self, call: Call, fid: Fid, name: str, to: Fid, to_name: str, flags: int = 0) -> Steps[None]:
        """rename(2) between the directories of two fids."""
        directory, to_dir = c.as_dir(fid.file), c.as_dir(to.file)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise E.Ebadarg(f"rename flags {flags}")
        yield self.taking(call, directory, name, c.RENAME)
        yield self._replacing(call, to_dir, to_name, flags)
        yield directory.rename(call, name, to_dir, to_name, flags)

    @answering
    def _replacing(self, call: Call, to: Dir, name: str, flags: int) -> Steps[None]:
        c.check_name(name)
        yield to.access(call, W_WANT | X_WANT)
        if flags & RENAME_NOREPLACE or call.principal.is_superuser:
            return
        try:
            yield self.taking(call, to, name, c.RENAME)
        except E.Enonexist:
            pass  # nothing there to replace

    @answering
    def rename_fid(self, call: Call, fid: Fid, to: Fid, to_name: str, flags: int = 0) -> Steps[None]:
        """Trename: give the fid's file a new name, perhaps in another directory; the fid follows it."""
        if fid.way is None:
            raise E.Eperm("cannot rename the attach point")
        directory, name = fid.way.dir, fid.way.name
        yield self._expect(call, directory, name, fid.file)
        to_dir = c.as_dir(to.file)
        yield self.taking(call, directory, name, c.RENAME)
        yield self._replacing(call, to_dir, to_name, flags)
        yield directory.rename(call, name, to_dir, to_name, flags)
        fid.way = Way(to.way, to_dir, to_name)

    @answering
    def _expect(self, call: Call, directory: Dir, name: str, file: File) -> Steps[None]:
        there: File = yield directory.walk(call, name)
        if there.qid.path != file.qid.path:
            raise E.Estale(name)

    # -- metadata

    @answering
    def wstat(self, call: Call, fid: Fid, change: Change, name: str | None = None) -> Steps[None]:
        """Rename within the directory and change attributes: all of it or none (stat(5)).

        A size, on a fid open for writing, is ftruncate(2); Linux sends "now" for the times with it.  Everything is
        checked before anything is done; the rename comes first, because it alone can still be undone when the other
        fails.
        """
        if fid.is_auth or fid.xattr is not None:
            raise E.Ebadusefid("not a file")
        handle = fid.handle
        if change.size is not None:
            c.need(call, c.WRITE)
            c.check_range(change.size, 0)
            if isinstance(fid.file, Dir):
                raise E.Eisdir
            if handle is not None and fid.omode & 3 in (OWRITE, ORDWR) and name is None and _is_truncate(change):
                yield handle.truncate(call, change.size)
                return
        if change != Change(size=change.size):
            c.need(call, c.SETATTR)
        if not change.is_empty:
            yield fid.file.may_wstat(call, change)
        old = fid.way.name if fid.way is not None else ""
        if name is not None and name != old:
            yield self._rename_here(call, fid, name)
        else:
            name = None
        if change.is_empty:
            if name is None:
                yield handle.fsync(call, False) if handle is not None else None
            return
        try:
            yield fid.file.wstat(call, change)
        except E.FileError:
            if name is not None:
                yield self._rename_here(call, fid, old)
            raise

    @answering
    def _rename_here(self, call: Call, fid: Fid, name: str) -> Steps[None]:
        way = fid.way
        if way is None:
            raise E.Eperm("cannot rename the attach point")
        yield self._expect(call, way.dir, way.name, fid.file)
        yield self.taking(call, way.dir, way.name, c.RENAME)
        c.check_name(name)
        yield way.dir.rename(call, way.name, way.dir, name, RENAME_NOREPLACE)
        fid.way = Way(way.up, way.dir, name)

    def statfs(self, call: Call, fid: Fid) -> Answer[StatFs]:
        c.need(call, c.GETATTR)
        return fid.file.statfs(call)


def _is_truncate(change: Change) -> bool:
    """Nothing but a size, and the times that any truncation sets."""
    return change.mtime_ns in (None, NOW) and change == Change(
        size=change.size, mtime_ns=change.mtime_ns, touch_ctime=change.touch_ctime
    )
