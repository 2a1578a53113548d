"""What all sessions of one server share: limits, clock, events, the totals, and what becomes of a bug.

Knows no wire and no tree.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from .env import REAL, Env
from .limits import DEFAULT, Limits
from .observe import BUG, LIMIT, SEC_DENY, Events, ops
from .principal import Principal
from .proto import errors as E

log = logging.getLogger(__name__)


# Refusals that somebody may want to see: for lack of rights, and for want of room.
EVENT_OF = {
    **dict.fromkeys((E.Eperm, E.Enotallowed, E.Erofs), SEC_DENY),
    **dict.fromkeys((E.Enofids, E.Emfile, E.Etoomany, E.Enolck, E.Elarge, E.Enospc, E.Edquot), LIMIT),
}


class Sweepable(Protocol):
    """What holds memory that it can give back when idle."""

    def sweep(self) -> None: ...


class HasStatistics(Protocol):
    """A session, as far as statistics are concerned."""

    def statistics(self) -> Struct: ...


class Node:
    """One server.  `on_error(who, op, error)` hears every refusal that a client reads (it feeds /dev/errstr)."""

    def __init__(self, limits: Limits = DEFAULT, env: Env = REAL, events: Events | None = None) -> None:
        self.limits = limits
        self.env = env
        self.events = events or Events(env.now_ns)
        self.live = self.events.live
        self.on_error: Callable[[Principal, str, E.FileError], None] | None = None
        self.sessions: set[HasStatistics] = set()
        self.connections: set[Sweepable] = set()
        self._parked: Counter[tuple[str, int]] = Counter()
        self._bugs = itertools.count(1)
        self._sessions = itertools.count(1)
        for name in ("sessions", "fids", "handles", "requests", "parked"):
            self.live.setdefault(name, 0)

    def sweep(self) -> None:
        for connection in self.connections:
            connection.sweep()

    def statistics(self) -> list[Struct]:
        """One immutable record per session, for /dev/stats/sessions."""
        return [session.statistics() for session in self.sessions]

    def refused(self, who: Principal, op: int, error: E.FileError) -> None:
        """A client reads this error: it is an event if it says "no", and its caller's /dev/errstr remembers it."""
        kind = EVENT_OF.get(type(error))
        if kind is not None:
            self.events.emit(kind, op, error.errno, 0, {"user": who.name, "about": error.about})
        if self.on_error is not None:
            self.on_error(who, ops()[op], error)

    def new_session_id(self) -> int:
        return next(self._sessions)

    def take_fids(self, count: int) -> None:
        """Account `count` fids more (or fewer).  Raises Enofids past Limits.fids_node_max."""
        total = self.live["fids"] + count
        if count > 0 and total > self.limits.fids_node_max:
            raise E.Enofids(f"{self.limits.fids_node_max} in this node")
        self.live["fids"] = total

    def park(self, who: Principal) -> None:
        """One more blocked operation.  Raises Etoomany past the node's or the principal's share."""
        key = (who.name, who.uid)
        if self.live["parked"] >= self.limits.parked_max or self._parked[key] >= self.limits.parked_principal_max:
            raise E.Etoomany(who.name)
        self.live["parked"] += 1
        self._parked[key] += 1

    def unpark(self, who: Principal) -> None:
        key = (who.name, who.uid)
        self.live["parked"] -= 1
        self._parked[key] -= 1
        if not self._parked[key]:
            del self._parked[key]

    def bug(self, e: BaseException) -> E.FileError:
        """An exception that no tree should let out: logged with its traceback under a number that the client reads."""
        number = next(self._bugs)
        log.error("internal error #%d: %s: %s", number, type(e).__name__, e, exc_info=e)
        self.events.emit(BUG, number, kv={"error": type(e).__name__})
        return E.Einternal(f"#{number}")
