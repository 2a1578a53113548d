"""The part of Session that deals with extended attributes, and with the fids that 9P2000.L makes of them.

What such fids hold is bounded per session: a peer may begin many attributes and end none.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from . import checks as c
from .answer import Answer, answering
from .fid import Fid, Xattr
from .file import Call
from .limits import Limits
from .proto import errors as E
from .proto.types import W_WANT, XATTR_CREATE, XATTR_REPLACE

T = TypeVar("T")
Steps = Generator[Answer[Any], Any, T]


class XattrOps:
    """What Session does with attributes."""

    limits: Limits
    xattr_bytes: int  # what attribute fids hold, or will hold once they are written

    def listxattr(self, call: Call, fid: Fid) -> Answer[Sequence[str]]:
        c.need(call, c.XATTR)
        return fid.file.listxattr(call)

    def getxattr(self, call: Call, fid: Fid, name: str) -> Answer[bytes]:
        c.need(call, c.XATTR)
        _xattr_name(name)
        return fid.file.getxattr(call, name)

    @answering
    def setxattr(self, call: Call, fid: Fid, name: str, value: bytes, flags: int) -> Steps[None]:
        c.need(call, c.XATTR)
        c.need(call, c.SETATTR)
        _xattr_name(name)
        if len(value) > self.limits.xattr_bytes_max:
            raise E.E2big(name)
        yield fid.file.access(call, W_WANT)
        yield fid.file.setxattr(call, name, value, flags)

    @answering
    def removexattr(self, call: Call, fid: Fid, name: str) -> Steps[None]:
        c.need(call, c.XATTR)
        c.need(call, c.SETATTR)
        _xattr_name(name)
        yield fid.file.access(call, W_WANT)
        yield fid.file.removexattr(call, name)

    @answering
    def xattr_walk(self, call: Call, fid: Fid, name: str) -> Steps[tuple[Fid, int]]:
        """Txattrwalk: a fid that reads an attribute, or with an empty name the list of their names."""
        if name:
            data: bytes = yield self.getxattr(call, fid, name)
        else:
            names: Sequence[str] = yield self.listxattr(call, fid)
            data = b"".join(n.encode("utf-8", "surrogateescape") + b"\0" for n in names)
        self._hold_xattr(len(data))
        new = Fid(fid.file, fid.way, fid.call, fid.root)
        new.xattr = Xattr(fid.file, name, data, len(data), 0, writing=False)
        return new, len(data)

    @answering
    def xattr_create(self, call: Call, fid: Fid, name: str, size: int, flags: int) -> Steps[None]:
        """Txattrcreate: the fid now only takes `size` bytes, which its clunk commits."""
        if fid.handle is not None or fid.xattr is not None or fid.is_auth:
            raise E.Ebadusefid("open")
        _xattr_name(name)
        if size > self.limits.xattr_bytes_max:
            raise E.E2big(f"{size} bytes, at most {self.limits.xattr_bytes_max}")
        if flags & ~(XATTR_CREATE | XATTR_REPLACE):
            raise E.Ebadarg(f"xattr flags {flags}")
        c.need(call, c.XATTR)
        c.need(call, c.SETATTR)
        yield fid.file.access(call, W_WANT)
        self._hold_xattr(size)
        fid.xattr = Xattr(fid.file, name, bytearray(), size, flags, writing=True)

    def _hold_xattr(self, size: int) -> None:
        if self.xattr_bytes + size > self.limits.xattr_pending_bytes_max:
            raise E.Enomem(f"attribute fids hold {self.xattr_bytes} bytes: clunk some")
        self.xattr_bytes += size

    def discard_xattr(self, fid: Fid) -> Xattr | None:
        """What a fid had to do with an attribute ends, and nothing is changed."""
        xattr, fid.xattr = fid.xattr, None
        if xattr is not None:
            self.xattr_bytes -= xattr.size
        return xattr

    def read_xattr(self, fid: Fid, offset: int, count: int) -> bytes:
        xattr = fid.xattr
        if xattr is None or xattr.writing:
            raise E.Ebadusefid("an attribute being written")
        return bytes(xattr.data[offset : offset + count])

    def write_xattr(self, fid: Fid, offset: int, data: bytes | memoryview) -> int:
        """Bytes in order only: what was declared bounds what is kept."""
        xattr = fid.xattr
        if xattr is None or not xattr.writing or not isinstance(xattr.data, bytearray):
            raise E.Ebadusefid("an attribute being read")
        if offset != len(xattr.data):
            raise E.Ebadarg(f"offset {offset}, expected {len(xattr.data)}")
        if offset + len(data) > xattr.size:
            raise E.Ebadarg(f"more than the {xattr.size} bytes declared")
        xattr.data += data
        return len(data)

    def commit_xattr(self, fid: Fid) -> Answer[None]:
        """The clunk of an attribute fid.  Zero bytes with XATTR_REPLACE is how Linux removes one (protocol.md D4)."""
        xattr = self.discard_xattr(fid)
        if xattr is None or not xattr.writing:
            return None
        if len(xattr.data) != xattr.size:
            raise E.Ebadarg(f"{len(xattr.data)} of {xattr.size} bytes written")
        if xattr.size == 0 and xattr.flags & XATTR_REPLACE:
            return xattr.file.removexattr(fid.call, xattr.name)
        return xattr.file.setxattr(fid.call, xattr.name, bytes(xattr.data), xattr.flags)


def _xattr_name(name: str) -> None:
    if not name or "\0" in name or len(name.encode("utf-8", "surrogateescape")) > 255:
        raise E.Erange(repr(name[:20])) if name else E.Ebadarg("an empty attribute name")
