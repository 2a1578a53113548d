"""What happened and what is live: the registered event table, its ring, counters, histograms and gauges.

Imports nothing of ours and does no input or output: the server emits, and the files under /dev/stats, /trace and
/metrics read.  One Events belongs to one server and is passed down; only the table of names is shared, because names
mean the same everywhere.  One writer, the trio thread: helper threads hand over through trio.from_thread.

    ATTACH = register("session", "attach", ("session", "fids"), "a tree was attached")
    events = Events(env.now_ns)
    events.emit(ATTACH, 3, 0, kv={"user": "glenda"})
    events.op(op_index, dur_ns, failed=False)  # the one site per finished request
    events.live["fids"] += 1

Cost (Python 3.11, one loaded VM core): emit kept 0.15 us, emit off 0.03 us, op 0.29 us kept and 0.12 us off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

RING_SLOTS: Final = 65_536  # a power of two: a slot is found by a mask
KINDS_MAX: Final = 1024
OPS_MAX: Final = 128

DEBUG: Final = 0
INFO: Final = 1
WARNING: Final = 2
ERROR: Final = 3
SEVERITIES: Final = ("debug", "info", "warning", "error")


class Kind(NamedTuple):
    """One row of the event table.  The first two fields name a0 and a1 ("" for unused), the others keys of kv."""

    id: int
    cat: str
    name: str
    fields: tuple[str, ...]
    doc: str
    sev: int

    @property
    def full_name(self) -> str:
        return f"{self.cat}.{self.name}"


class Record(NamedTuple):
    """One event as a reader gets it.  `t_ns` is on the clock given to Events; seq has no holes."""

    seq: int
    t_ns: int
    kind: int
    a0: int
    a1: int
    dur_ns: int
    chain: int
    kv: Mapping[str, object] | None


_kinds: list[Kind] = []
_kind_ids: dict[tuple[str, str], int] = {}
_ops: list[str] = []


def register(cat: str, name: str, fields: Iterable[str] = (), doc: str = "", sev: int = INFO) -> int:
    """The id of a new row, for emit.  Called at import time.  ValueError if the name is taken with another meaning."""
    row = Kind(len(_kinds), cat, name, tuple(fields), doc, sev)
    known = _kind_ids.get((cat, name))
    if known is not None:
        if _kinds[known] != row._replace(id=known):
            raise ValueError(f"event registered twice: {row.full_name}")
        return known
    if len(_kinds) == KINDS_MAX:
        raise ValueError(f"too many event kinds: {row.full_name}")
    _kinds.append(row)
    _kind_ids[cat, name] = row.id
    return row.id


def kinds() -> tuple[Kind, ...]:
    """Every registered row, in order of id."""
    return tuple(_kinds)


def register_op(name: str) -> int:
    """The index of an operation, for Events.op; the same name gets the same index."""
    if name in _ops:
        return _ops.index(name)
    if len(_ops) == OPS_MAX:
        raise ValueError(f"too many operations: {name}")
    _ops.append(name)
    return len(_ops) - 1


def ops() -> tuple[str, ...]:
    """Every registered operation, in order of index."""
    return tuple(_ops)


# What the Session and the edges emit.  A tree registers its own rows beside its emit sites.
OP_EXIT = register("op", "exit", ("op", "failed"), "a request finished; dur is its time in the server", DEBUG)
SESSION_ATTACH = register("session", "attach", ("session", "", "edge", "peer"), "a connection or a mount began")
SESSION_END = register("session", "end", ("session", "", "user"), "a session ended")
BUG = register("life", "bug", ("id", "", "error"), "a handler raised what is no answer", ERROR)
LIMIT = register("life", "limit", ("op", "errno", "user", "about"), "a request met one of Limits", WARNING)
SEC_DENY = register("sec", "deny", ("op", "errno", "user", "about"), "a request lacked rights or permission", WARNING)


BUCKETS: Final = 64  # two per octave: each bound is at most 1.5 times the one before
_FIRST_BITS: Final = 7  # bucket 0 ends at 128 ns, the last begins at 2**38 ns = 275 s


def bucket_of(value: int) -> int:
    """The bucket that counts this value; everything small is in the first, everything huge in the last."""
    bits = value.bit_length()
    if bits <= _FIRST_BITS:
        return 0
    at = 2 * (bits - _FIRST_BITS) - 1 + (value >> (bits - 2) & 1)
    return at if at < BUCKETS else BUCKETS - 1


def bucket_end(index: int) -> int:
    """The smallest value above bucket `index` (which is what Prometheus calls `le`, but exclusive)."""
    octave, half = divmod(index, 2)
    return (2 + half) << (octave + _FIRST_BITS - 1)


class Histogram:
    """Log-linear counts of a duration in nanoseconds (or of any size).  Adding two gives that of both."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.total = 0  # the sum of the values

    def add(self, value: int) -> None:
        self.counts[bucket_of(value)] += 1
        self.total += value

    def merge(self, other: Histogram) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, q: float) -> int:
        """A bound that at least the share q of the values is below, at most 1.5 times the truth; 0 with no values."""
        left = q * self.count
        if not left:
            return 0
        for index, n in enumerate(self.counts):
            left -= n
            if left <= 0:
                return bucket_end(index)
        return bucket_end(BUCKETS - 1)


# What is alive, by name: each must be back where it was when its users are gone.
GAUGES: Final = {
    "connections": "accepted and not closed",
    "sessions": "attached or about to be",
    "fids": "walked and not clunked",
    "handles": "opened and not closed",
    "requests": "being answered",
    "parked": "requests that wait in a stream",
    "tasks": "trio tasks of requests",
    "mounts": "FUSE mounts of this process",
    "fds": "host descriptors held by trees",
}


class Events:
    """One server's ring, counters and gauges.  `now_ns` is its clock; `on` says whether the ring is written."""

    __slots__ = (
        "_baseline",
        "_now_ns",
        "_ring",
        "_wake",
        "counts",
        "live",
        "mask",
        "on",
        "op_failed",
        "op_time",
        "seq",
    )

    def __init__(self, now_ns: Callable[[], int], *, on: bool = True, slots: int = RING_SLOTS) -> None:
        if slots < 1 or slots & slots - 1:
            raise ValueError(f"not a power of two: {slots}")
        self._now_ns = now_ns
        self._ring: list[tuple[int, int, int, int, int, int, int, Mapping[str, object] | None] | None] = [None] * slots
        self.mask = slots - 1
        self.on = on
        self.seq = 0  # of the next record
        self.counts = [0] * KINDS_MAX  # emitted, by kind, whether the ring is on or off
        self.op_time = [Histogram() for _ in range(OPS_MAX)]
        self.op_failed = [0] * OPS_MAX
        self.live = dict.fromkeys(GAUGES, 0)
        self._baseline = dict(self.live)
        self._wake: list[Callable[[], None]] = []

    def emit(
        self,
        kind: int,
        a0: int = 0,
        a1: int = 0,
        dur_ns: int = 0,
        kv: Mapping[str, object] | None = None,
        chain: int = 0,
    ) -> None:
        """Record one event.  Never blocks, never awaits; with the ring off it only counts."""
        self.counts[kind] += 1
        if not self.on:
            return
        seq = self.seq
        self._ring[seq & self.mask] = (seq, self._now_ns(), kind, a0, a1, dur_ns, chain, kv)
        self.seq = seq + 1
        if self._wake:
            wake, self._wake = self._wake, []
            for callback in wake:
                callback()

    def op(self, index: int, dur_ns: int, failed: bool, chain: int = 0) -> None:
        """A request of operation `index` (register_op) finished after dur_ns.  The one site per request."""
        time = self.op_time[index]
        bits = dur_ns.bit_length()  # bucket_of, without the call
        at = 2 * (bits - _FIRST_BITS) - 1 + (dur_ns >> (bits - 2) & 1) if bits > _FIRST_BITS else 0
        time.counts[at if at < BUCKETS else BUCKETS - 1] += 1
        time.total += dur_ns
        if failed:
            self.op_failed[index] += 1
        if self.on:
            self.emit(OP_EXIT, index, failed, dur_ns, None, chain)

    def cursor(self, *, from_start: bool = False) -> Cursor:
        """A reader that starts now, or at the oldest record still held."""
        return Cursor(self, max(0, self.seq - self.mask - 1) if from_start else self.seq)

    def when_more(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call once, at the next emit.  Returns what takes it back; the callback must not emit."""
        self._wake.append(callback)

        def forget() -> None:
            if callback in self._wake:
                self._wake.remove(callback)

        return forget

    # -- gauges
    def baseline(self) -> dict[str, int]:
        """Remember what is live now as the idle state, and give it."""
        self._baseline = dict(self.live)
        return dict(self._baseline)

    def leaks(self) -> dict[str, int]:
        """What is live beyond the baseline (or missing from it, negative).  Empty when all came back."""
        return {
            name: n - self._baseline.get(name, 0) for name, n in self.live.items() if n != self._baseline.get(name, 0)
        }


class Cursor:
    """One reader's place in the ring.  A reader that was overtaken is told once, exactly how much it lost."""

    __slots__ = ("_events", "seq")

    def __init__(self, events: Events, seq: int) -> None:
        self._events = events
        self.seq = seq

    def take(self, most: int = 1024) -> tuple[int, list[Record]]:
        """(how many were lost since the last take, the next records in order)."""
        events = self._events
        oldest = events.seq - events.mask - 1
        lost = max(0, oldest - self.seq)
        self.seq += lost
        until = min(events.seq, self.seq + most)
        # Every slot in [oldest, seq) was written: a seq is given out only together with its slot.
        found = [slot for at in range(self.seq, until) if (slot := events._ring[at & events.mask]) is not None]
        self.seq = until
        return lost, [Record._make(slot) for slot in found]
