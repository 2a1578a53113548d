"""Who asks, and what they may.  Immutable: rights only narrow, and an identity never changes once proven.

Knows no wire and no file; edges make principals, the Session and the trees read them.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

import msgspec

from .proto.types import UNKNOWN_ID


class Rights(IntFlag):
    """What a principal may do, before any file's own permission is asked (protocol.md 2.10)."""

    READ = 1 << 0
    WRITE = 1 << 1
    EXEC = 1 << 2
    GETATTR = 1 << 3
    SETATTR = 1 << 4
    ENUM = 1 << 5
    TRAVERSE = 1 << 6
    CREATE = 1 << 7
    REMOVE = 1 << 8
    RENAME = 1 << 9
    LINK = 1 << 10
    LOCK = 1 << 11
    XATTR = 1 << 12
    WATCH = 1 << 13
    LEASE = 1 << 14
    COPY = 1 << 15
    DESCRIBE = 1 << 16
    APPEND = 1 << 17
    MINT = 1 << 18
    CHOWN = 1 << 19
    CTL = 1 << 20
    SPAWN = 1 << 21
    NET = 1 << 22
    ADMIN = 1 << 63


# Plain ints: an IntFlag operation costs a microsecond, an int operation 30 ns, and every request makes one.
ALL: Final[int] = (1 << 23) - 1 | 1 << 63
CHANGES: Final[int] = int(
    Rights.WRITE | Rights.SETATTR | Rights.CREATE | Rights.REMOVE | Rights.RENAME | Rights.LINK | Rights.APPEND
    | Rights.CHOWN | Rights.CTL | Rights.SPAWN
)  # fmt: skip


class Principal(msgspec.Struct, frozen=True, gc=False):
    """One proven (or unproven) identity.  `proof` says how: none, peercred, fuse, trusted-uname, key, local.

    An identity that is not proven has rights like any other; trees see uid UNKNOWN_ID and name "none".
    `rights` is a plain int of Rights bits.
    """

    name: str = "none"
    uid: int = UNKNOWN_ID
    gid: int = UNKNOWN_ID
    groups: frozenset[int] = frozenset()
    rights: int = ALL & ~(1 << 63)
    proof: str = "none"

    @property
    def is_superuser(self) -> bool:
        """uid 0, proven: permission bits do not bind it (only Rights do)."""
        return self.uid == 0 and self.proof != "none" and bool(self.rights >> 63)

    def narrowed(self, rights: int) -> Principal:
        """The same identity with at most `rights`; nothing can ever be added."""
        return msgspec.structs.replace(self, rights=self.rights & rights)

    def owns(self, uid: int) -> bool:
        """Whether this is, provenly, the user with that number."""
        return uid == self.uid and self.proof != "none"

    def in_group(self, gid: int) -> bool:
        """Whether this is, provenly, a member of that group."""
        return self.proof != "none" and (gid == self.gid or gid in self.groups)


NOBODY: Final = Principal()


def local_principal(uid: int, gid: int, groups: frozenset[int], name: str, proof: str) -> Principal:
    """A user of this machine.  Only uid 0 gets ADMIN; nobody is made uid 0 by default."""
    rights = ALL if uid == 0 else ALL & ~int(Rights.ADMIN)
    return Principal(name, uid, gid, groups, rights, proof)
