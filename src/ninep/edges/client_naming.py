"""Flows that make, move and remove names in each dialect: create, mkdir, link, remove, rename and their kin.

Each one names its object in the error where the server's did not.  What it walked to on the way it clunks again.  Knows
nothing of content and metadata (client_ops.py, client_meta.py).
"""

from __future__ import annotations

import os
import stat as _s
from typing import Final

from ninep.edges.client_core import Core
from ninep.edges.client_ops import DOTL, DOTU, P2000_OMODE, Opened, about, as_reply, l_flags, walk
from ninep.edges.client_pending import Flow
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto import messages as M
from ninep.proto.codec import Message
from ninep.proto.records import StatRecord
from ninep.proto.types import (
    DMAPPEND,
    DMDEVICE,
    DMDIR,
    DMEXCL,
    DMLINK,
    DMNAMEDPIPE,
    DMSOCKET,
    DMSYMLINK,
    DMTMP,
    OREAD,
    OTRUNC,
    QTDIR,
    QTSYMLINK,
    Qid,
    perm_of,
)

GID_NONE: Final = 0xFFFFFFFF  # "the server's choice" of a new file's group


# -- make


def create(core: Core, dirfid: int, name: str, perm: int, omode: int, gid: int = GID_NONE) -> Flow[Opened]:
    """A new regular file in the directory, open on a new fid.  Eexist if the name is taken, whatever the omode."""
    new, _ = yield from walk(core, dirfid, ())
    try:
        if core.mark is DOTL:
            flags = l_flags(omode & ~OTRUNC) | L.L_CREATE | L.L_EXCL
            reply = yield core.submit(L.Tlcreate(new, name, flags, perm & 0o7777, gid))
            made = as_reply(reply, L.Rlcreate)
            return Opened(new, made.qid, made.iounit)
        word = perm & 0o777 | perm & (DMAPPEND | DMEXCL | DMTMP)
        if core.mark is DOTU:
            word |= perm_of(perm & 0o7000, 0, dotu=True)
        reply = yield core.submit(M.Tcreate(new, name, word, omode & P2000_OMODE))
        rcreate = as_reply(reply, M.Rcreate)
        return Opened(new, rcreate.qid, rcreate.iounit)
    except BaseException as e:
        core.clunk_soon(new)
        raise about(e, name)


def _create_special(core: Core, dirfid: int, name: str, perm: int, extension: str = "") -> Flow[Qid]:
    """Tcreate of something that is not a file to be written: the fid is only a by-product."""
    new, _ = yield from walk(core, dirfid, ())
    try:
        reply = yield core.submit(M.Tcreate(new, name, perm, OREAD, extension))
    except BaseException as e:
        raise about(e, name)
    finally:
        core.clunk_soon(new)
    return as_reply(reply, M.Rcreate).qid


def mkdir(core: Core, dirfid: int, name: str, perm: int, gid: int = GID_NONE) -> Flow[Qid]:
    """A new directory.  Eexist if the name is taken."""
    if core.mark is DOTL:
        reply = yield from _named(core, L.Tmkdir(dirfid, name, perm & 0o7777, gid), name)
        return as_reply(reply, L.Rmkdir).qid
    return (yield from _create_special(core, dirfid, name, DMDIR | perm & 0o777))


def symlink(core: Core, dirfid: int, name: str, target: str, gid: int = GID_NONE) -> Flow[Qid]:
    """A symbolic link; 9P2000 has none: Eunsupported."""
    if core.mark is DOTL:
        reply = yield from _named(core, L.Tsymlink(dirfid, name, target, gid), name)
        return as_reply(reply, L.Rsymlink).qid
    _needs_dotu(core, "symlink")
    return (yield from _create_special(core, dirfid, name, DMSYMLINK | 0o777, target))


def link(core: Core, dirfid: int, fid: int, name: str) -> Flow[None]:
    """A further name for the file of fid."""
    if core.mark is DOTL:
        yield from _named(core, L.Tlink(dirfid, fid, name), name)
        return
    _needs_dotu(core, "link")
    yield from _create_special(core, dirfid, name, DMLINK | 0o777, f"{fid}\n")  # as Linux has it (v9fs_vfs_link)


def mknod(core: Core, dirfid: int, name: str, st_mode: int, rdev: int, gid: int = GID_NONE) -> Flow[Qid]:
    """A FIFO, socket or device as mknod(2) names it; 9P2000 has none: Eunsupported."""
    major, minor = os.major(rdev), os.minor(rdev)
    if core.mark is DOTL:
        reply = yield from _named(core, L.Tmknod(dirfid, name, st_mode, major, minor, gid), name)
        return as_reply(reply, L.Rmknod).qid
    _needs_dotu(core, "mknod")
    extension = ""
    kind = st_mode & 0o170000
    word = st_mode & 0o777
    if kind == _s.S_IFIFO:
        word |= DMNAMEDPIPE
    elif kind == _s.S_IFSOCK:
        word |= DMSOCKET
    elif kind in (_s.S_IFCHR, _s.S_IFBLK):
        word |= DMDEVICE
        extension = f"{'b' if kind == _s.S_IFBLK else 'c'} {major} {minor}"
    return (yield from _create_special(core, dirfid, name, word, extension))


def _needs_dotu(core: Core, what: str) -> None:
    if core.mark is not DOTU:
        raise E.Eunsupported(f"{what} over {core.dialect.name}")


def _named(core: Core, request: Message, name: str) -> Flow[Message]:
    try:
        return (yield core.submit(request))
    except E.FileError as e:
        raise about(e, name)


# -- remove and move


def remove(core: Core, dirfid: int, name: str, is_dir: bool | None, expect: Qid | None = None) -> Flow[None]:
    """Unlink a name.  With `expect`, only while it still is that file: Estale."""
    if core.mark is DOTL and expect is None and not core.lacks(L.Tunlinkat):
        try:
            yield from _unlinkat(core, dirfid, name, is_dir)
        except E.Eunsupported:
            core.note_lack(L.Tunlinkat)
        else:
            return
    fid, qids = yield from walk(core, dirfid, (name,))
    try:
        qid = qids[-1]
        if expect is not None and (qid.path != expect.path or (qid.type ^ expect.type) & (QTDIR | QTSYMLINK)):
            raise E.Estale(name)
        if is_dir is True and not qid.type & QTDIR:
            raise E.Enotdir(name)
        if is_dir is False and qid.type & QTDIR:
            raise E.Eisdir(name)
    except E.FileError:
        core.clunk_soon(fid)
        raise
    try:
        yield core.submit(M.Tremove(fid), frees=fid)
    except E.FileError as e:
        raise about(e, name)


def _unlinkat(core: Core, dirfid: int, name: str, is_dir: bool | None) -> Flow[None]:
    try:
        yield core.submit(L.Tunlinkat(dirfid, name, L.L_REMOVEDIR if is_dir else 0))
    except (E.Eisdir, E.Enotallowed) as e:  # unlink(2) of a directory is EISDIR on Linux, EPERM by POSIX
        if is_dir is not None:
            raise about(e, name)
        try:
            yield core.submit(L.Tunlinkat(dirfid, name, L.L_REMOVEDIR))
        except E.Enotdir:
            raise about(e, name)
    except E.FileError as e:
        raise about(e, name)


def rename(core: Core, dirfid: int, name: str, to_dirfid: int, to_name: str, *, same_dir: bool) -> Flow[None]:
    """rename(2), as far as the dialect goes: the older ones rename within one directory only, and never replace."""
    if core.mark is DOTL:
        if not core.lacks(L.Trenameat):
            try:
                yield core.submit(L.Trenameat(dirfid, name, to_dirfid, to_name))
            except E.Eunsupported:
                core.note_lack(L.Trenameat)
            except E.FileError as e:
                raise about(e, name)
            else:
                return
        fid, _ = yield from walk(core, dirfid, (name,))
        request: Message = L.Trename(fid, to_dirfid, to_name)
    else:
        if not same_dir:
            raise E.Exdev(f"{core.dialect.name} renames within one directory")
        fid, _ = yield from walk(core, dirfid, (name,))
        request = M.Twstat(fid, StatRecord(name=to_name))
    try:
        yield core.submit(request)
    except E.FileError as e:
        raise about(e, name)
    finally:
        core.clunk_soon(fid)
