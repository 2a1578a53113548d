"""Who an attach is: what the connection proves, what the client merely claims, and what this server makes of both.

A uname or n_uname is a claim.  Unix sockets prove their peer (SO_PEERCRED); TCP proves nothing, so everyone there is
`none` unless the server was told to trust the claims, which it prints at start (architecture A10).
"""

from __future__ import annotations

import os
from typing import Protocol

import msgspec

from ninep.edges.users import principal_of, user_number
from ninep.file import File, Handle, new_path
from ninep.principal import NOBODY, Principal
from ninep.proto import errors as E
from ninep.proto.types import NONUNAME, QTAUTH, UNKNOWN_ID, Qid


class Peer(msgspec.Struct, frozen=True):
    """The other end of a connection, as far as the transport proves it; UNKNOWN_ID where it proves nothing."""

    text: str = ""
    uid: int = UNKNOWN_ID
    gid: int = UNKNOWN_ID
    pid: int = 0
    proof: str = "none"


class AuthFile(File):
    """What an afid points at.  Its type byte says so, and the Session lets it be read, written and clunked only."""

    def __init__(self) -> None:
        self.qid = Qid(QTAUTH, 0, new_path())


class AuthHandle(Handle):
    """One run of an authentication protocol over an afid.  `principal` is set once it has succeeded."""

    principal: Principal | None = None


class Authenticator(Protocol):
    """What Tauth opens.  `start` may refuse with a FileError."""

    def start(self, peer: Peer, uname: str, aname: str) -> AuthHandle: ...


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How one listener answers attaches.

    `trust_uname`: believe claims (a closed network, a test).  `allow_uids`: who may connect to a unix socket at all;
    None for this server's user and root.  `rights` caps what anybody has here.
    """

    trust_uname: bool = False
    allow_uids: frozenset[int] | None = None
    allow_gids: frozenset[int] = frozenset()
    rights: int = -1
    authenticator: Authenticator | None = None

    def admit(self, peer: Peer) -> None:
        """Raise Eperm for a peer that may not connect (SEC-142)."""
        if peer.proof != "peercred":
            return
        allowed = self.allow_uids if self.allow_uids is not None else frozenset((0, os.geteuid()))
        if peer.uid in allowed or peer.gid in self.allow_gids:
            return
        raise E.Eperm(f"uid {peer.uid} may not connect")

    def principal(self, peer: Peer, uname: str, n_uname: int) -> Principal:
        """Who an attach without an afid is.  Raises Eperm for a claim that the proof contradicts."""
        if self.authenticator is not None:
            raise E.Eperm("authentication required")
        return self._capped(self._identify(peer, uname, n_uname))

    def _capped(self, who: Principal) -> Principal:
        return who if self.rights == -1 else who.narrowed(self.rights)

    def _identify(self, peer: Peer, uname: str, n_uname: int) -> Principal:
        if self.trust_uname:
            uid = n_uname if n_uname != NONUNAME else user_number(uname)
            return principal_of(uid, "trusted-uname")
        if peer.uid == UNKNOWN_ID:
            return NOBODY
        if n_uname in (NONUNAME, peer.uid):
            return principal_of(peer.uid, peer.proof, peer.gid if peer.gid != UNKNOWN_ID else None)
        if peer.uid == 0:  # root may be anybody: the kernel's client attaches once per local user
            return principal_of(n_uname, peer.proof)
        raise E.Eperm(f"you are uid {peer.uid}, not {n_uname}")
