"""Opening, closing, and how the kernel may cache what is open.

Three ways to do I/O, and one for all opens of a node at a time: direct (streams, ctl files, drafts: each call reaches
us), cached (the page cache), passthrough (a host file that the kernel reads and writes by itself).
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

from ninep.answer import Answer, answering
from ninep.fid import Fid
from ninep.file import Call, Dir, File, Handle
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.proto.types import OAPPEND, OEXEC, ONONBLOCK, ORDWR, OREAD, OSYNC, OTRUNC, OWRITE, Qid

from .fuse_device import Asked, Body, FuseMount
from .fuse_nodes import Known, Nodes, Opened

log = logging.getLogger(__name__)

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]
EXEC_FLAG: Final = 0x20  # __FMODE_EXEC: the kernel opens the file to run it
_ACCESS: Final = (OREAD, OWRITE, ORDWR, ORDWR)
FH_MAX: Final = 1 << 32  # a fid number is 32 bits; so a handle is too, and the Session's table bounds both


def omode_of(flags: int) -> int:
    """The open mode that open(2)'s flags ask for."""
    omode = _ACCESS[flags & 3]
    if flags & EXEC_FLAG and omode == OREAD:
        omode = OEXEC
    if flags & os.O_TRUNC:
        omode |= OTRUNC
    if flags & os.O_APPEND:
        omode |= OAPPEND
    if flags & os.O_NONBLOCK:
        omode |= ONONBLOCK
    if flags & os.O_DSYNC:
        omode |= OSYNC
    return omode


class Opens:
    """The file handles of one mount."""

    def __init__(self, mount: FuseMount, nodes: Nodes, made: Callable[[Call, Known, str, File], Answer[bytes]]) -> None:
        """`made` gives the entry of a file just created."""
        self._mount = mount
        self._nodes = nodes
        self._made = made
        self._session = mount.session
        self._opened: dict[int, Opened] = {}
        self._next = 1
        self._passthrough = bool(self._mount.flags & p.PASSTHROUGH)

    def get(self, fh: int) -> Opened:
        """Raises Enotopen."""
        try:
            return self._opened[fh]
        except KeyError:
            raise E.Enotopen(f"handle {fh}") from None

    def end(self) -> None:
        """The Session has closed the handles; give the kernel's backing files back."""
        for opened in self._opened.values():
            self._uncount(opened)
        self._opened.clear()

    # -- open, opendir, create

    def do_open(self, asked: Asked) -> Answer[Body]:
        known = self._nodes.get(asked.nodeid)
        return self._open(asked, known, omode_of(asked.args[0]))

    do_opendir = do_open

    @answering
    def _open(self, asked: Asked, known: Known, omode: int) -> Steps[Body]:
        fid = self._session.clone(known.fid)
        fid.call = asked.call
        yield self._session.open(asked.call, fid, omode)
        try:
            return self._reply(known, fid)
        except BaseException:
            yield self._session.clunk(fid)
            raise

    @answering
    def do_create(self, asked: Asked) -> Steps[Body]:
        flags, mode, _umask, _open_flags, name = asked.args
        parent = self._nodes.get(asked.nodeid)
        fid = self._session.clone(parent.fid)
        fid.call = asked.call
        _qid: tuple[Qid, int] = yield self._session.create(
            asked.call, fid, name, mode & 0o7777, omode_of(flags), inherit=False, exclusive=bool(flags & os.O_EXCL)
        )
        try:
            entry: bytes = yield self._made(asked.call, parent, name, fid.file)
            known = self._nodes.get(p.ENTRY_OUT.unpack_from(entry)[0])
            return entry + self._reply(known, fid)
        except BaseException:
            yield self._session.clunk(fid)
            raise

    def _reply(self, known: Known, fid: Fid) -> bytes:
        """Raises Enofids; the caller then closes the handle."""
        fh = self._free_number()
        self._session.fids.put(fh, fid)
        opened = self._opened[fh] = Opened(fid, known)
        flags, backing_id = self._how(opened, fid)
        return p.OPEN_OUT.pack(fh, flags, backing_id)

    def _free_number(self) -> int:
        while self._next in self._opened:
            self._next = self._next % (FH_MAX - 2) + 1
        fh = self._next
        self._next = fh % (FH_MAX - 2) + 1
        return fh

    # -- one way of I/O per node

    def _how(self, opened: Opened, fid: Fid) -> tuple[int, int]:
        """(FOPEN flags, backing id) of an open."""
        handle, known = fid.handle, opened.known
        assert handle is not None
        flags = 0
        if _flushes_nothing(handle):
            flags |= p.FOPEN_NOFLUSH
        if isinstance(fid.file, Dir):
            if self._mount.options.cache and fid.file.entry_seconds and fid.file.qid.vers:
                flags |= p.FOPEN_CACHE_DIR | self._keep(known, fid)
            return flags, 0
        if known.frozen and fid.omode & 3:
            # Its writer's view of size and content is not what a reader of the snapshot may see.
            self._nodes.retire(known)
        if handle.stream:
            return flags | p.FOPEN_DIRECT_IO | p.FOPEN_NONSEEKABLE | p.FOPEN_STREAM, 0
        if handle.direct:
            return flags | p.FOPEN_DIRECT_IO, 0
        backing_id = self._backing(known, handle)
        known.opens += 1
        opened.cached = True
        if backing_id:
            return flags | p.FOPEN_PASSTHROUGH, backing_id
        return flags | self._keep(known, fid), 0

    def _keep(self, known: Known, fid: Fid) -> int:
        """FOPEN_KEEP_CACHE while the content is what the kernel read before."""
        if known.frozen:
            return p.FOPEN_KEEP_CACHE  # a snapshot is never another
        vers = fid.file.qid.vers
        kept = self._mount.options.cache and vers and known.vers == vers
        known.vers = vers
        return p.FOPEN_KEEP_CACHE if kept and not fid.omode & OTRUNC else 0

    def _backing(self, known: Known, handle: Handle) -> int:
        """The id of a backing file that the kernel may use itself, or 0."""
        if known.backing_id or known.opens:
            return known.backing_id
        if not self._passthrough:
            return 0
        fd = handle.backing()
        if fd is None:
            return 0
        request = bytearray(p.BACKING_MAP.pack(fd, 0))
        try:
            known.backing_id = fcntl.ioctl(self._mount.fd, p.IOC_BACKING_OPEN, request, True)
        except PermissionError:
            self._passthrough = False  # not privileged: nobody will be
        except OSError as e:
            log.debug("no passthrough: %s", e)  # a file system that stacks too deep, or is itself FUSE
        return known.backing_id

    def _uncount(self, opened: Opened) -> None:
        if not opened.cached:
            return
        opened.cached = False
        known = opened.known
        known.opens -= 1
        if not known.opens and known.backing_id:
            number, known.backing_id = known.backing_id, 0
            if self._mount.fd < 0:
                return  # the connection is gone, and took it along
            try:
                fcntl.ioctl(self._mount.fd, p.IOC_BACKING_CLOSE, number.to_bytes(4, "little"))
            except OSError as e:
                log.debug("backing file: %s", e)

    # -- close

    @answering
    def do_release(self, asked: Asked) -> Steps[Body]:
        fh, _flags, release_flags, owner = asked.args
        opened = self.get(fh)
        del self._opened[fh]
        fid = self._session.fids.pop(fh)
        self._uncount(opened)
        if release_flags & p.RELEASE_FLOCK_UNLOCK and fid.handle is not None:
            yield fid.handle.unlock_owner(fid.call, self.owner(owner), True)
        yield self._session.clunk(fid)
        return b""

    do_releasedir = do_release

    def owner(self, number: int) -> tuple[int, int]:
        """The owner of locks that the kernel calls `number`."""
        return self._session.id, number


def _flushes_nothing(handle: Handle) -> bool:
    """Whether close(2) need not tell us: nothing to write, no locks to drop."""
    kind = type(handle)
    return kind.flush is Handle.flush and kind.unlock_owner is Handle.unlock_owner
