"""The server's own state: what /dev/stats holds.  Reads the Events and the Limits it is given, and changes nothing.

FILES
    live        one line per gauge: name, count, `# ` what it counts
    leaks       gauges that are not back at the baseline: name and difference; empty is good
    sessions    one line per session: id, edge, peer, fids, requests running
    fids        fids of the whole node, and their bound
    requests    requests running, requests parked, and the bound of the parked
    limits      every bound: name and value
    ops         one line per operation: name, calls, failed, mean, p50, p99 (microseconds)
    events      one line per registered event: category.name, severity, times emitted, `# ` what it means

BUGS
    p50 and p99 are bounds of histogram buckets, at most half above the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from ..limits import DEFAULT, Limits
from ..observe import GAUGES, SEVERITIES, Events, kinds, ops
from ..synth import Dir, join, text


class Stats(Dir):
    """The server's own state."""

    def __init__(
        self, events: Events, limits: Limits = DEFAULT, sessions: Callable[[], Iterable[msgspec.Struct]] | None = None
    ) -> None:
        super().__init__()
        self.limits = limits
        self._events = events
        self._sessions = sessions

    @text()
    def live(self) -> str:
        """what is alive now: name, count, meaning"""
        return "".join(f"{name} {n}  # {GAUGES.get(name, '')}\n" for name, n in sorted(self._events.live.items()))

    @text()
    def leaks(self) -> str:
        """gauges that are not back at their baseline"""
        return "".join(f"{name} {n:+d}\n" for name, n in sorted(self._events.leaks().items()))

    @text()
    def sessions(self) -> str:
        """id, edge, peer, fids and running requests of each session; the count where nobody keeps the list"""
        if self._sessions is None:
            return f"{self._events.live.get('sessions', 0)}\n"
        rows = [join(map(str, msgspec.structs.astuple(session))) for session in self._sessions()]
        return "".join(f"{row}\n" for row in rows)

    @text()
    def fids(self) -> str:
        """fids of the whole node, and their bound"""
        return f"{self._events.live.get('fids', 0)} {self.limits.fids_node_max}\n"

    @text()
    def requests(self) -> str:
        """running, parked, and the bound of the parked"""
        live = self._events.live
        return f"{live.get('requests', 0)} {live.get('parked', 0)} {self.limits.parked_max}\n"

    @text(name="limits")
    def all_limits(self) -> str:
        """every bound: name and value"""
        return "".join(f"{name} {value}\n" for name, value in msgspec.structs.asdict(self.limits).items())

    @text(name="ops")
    def op_times(self) -> str:
        """name, calls, failed, mean, p50 and p99 in microseconds"""
        lines = []
        for index, name in enumerate(ops()):
            time = self._events.op_time[index]
            calls = time.count
            if calls:
                mean, p50, p99 = time.total / calls, time.quantile(0.5), time.quantile(0.99)
                failed = self._events.op_failed[index]
                lines.append(f"{name} {calls} {failed} {mean / 1e3:.1f} {p50 / 1e3:.1f} {p99 / 1e3:.1f}\n")
        return "".join(lines)

    @text(name="events")
    def all_events(self) -> str:
        """category.name, severity, times emitted, meaning"""
        counts = self._events.counts
        return "".join(f"{row.full_name} {SEVERITIES[row.sev]} {counts[row.id]}  # {row.doc}\n" for row in kinds())


def tree(
    events: Events, limits: Limits = DEFAULT, sessions: Callable[[], Iterable[msgspec.Struct]] | None = None
) -> Dir:
    """The stats of one server.  `sessions()` gives the fields to be shown of each session, a line each."""
    return Stats(events, limits, sessions)
