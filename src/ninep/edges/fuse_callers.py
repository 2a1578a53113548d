"""Who makes a FUSE request: the Call for the uid, gid and thread that its header names.

The supplementary groups come from /proc and are believed for RECHECK_NS: far less than it takes to use up the process
numbers, so a recycled number never has another's groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ninep.edges.users import user_name
from ninep.file import Call
from ninep.principal import local_principal

RECHECK_NS: Final = 100_000_000
CALLERS_MAX: Final = 4096


class Callers:
    """The Calls of one mount.  `group` names its namespace group.

    `map_uid` and `map_gid` turn the header's numbers, which are those of the mount's user namespace, into ours.
    """

    def __init__(self, now_ns: Callable[[], int], group: str = "", map_uid: Callable[[int], int] | None = None,
                 map_gid: Callable[[int], int] | None = None) -> None:  # fmt: skip
        self._now_ns = now_ns
        self._group = group
        self._map_uid = map_uid
        self._map_gid = map_gid
        self._known: dict[tuple[int, int, int], tuple[int, Call]] = {}

    def call(self, uid: int, gid: int, pid: int) -> Call:
        """The Call of whoever asks.  Reads /proc at most every RECHECK_NS for each caller; raises nothing."""
        key = uid, gid, pid
        now = self._now_ns()
        known = self._known.get(key)
        if known is not None and now < known[0]:
            return known[1]
        call = self._look(uid, gid, pid)
        if known is not None and known[1] == call:
            call = known[1]
        if len(self._known) >= CALLERS_MAX:
            self._known.clear()
        self._known[key] = (now + RECHECK_NS, call)
        return call

    def _look(self, uid: int, gid: int, pid: int) -> Call:
        process, groups = status_of(pid) if pid else (0, frozenset[int]())
        if self._map_uid is not None:
            uid = self._map_uid(uid)
        if self._map_gid is not None:
            gid = self._map_gid(gid)
        return Call(
            local_principal(uid, gid, groups, user_name(uid), "fuse"),
            pid=process,
            pid_start=start_of(process) if process else 0,
            group=self._group,
            edge="fuse",
        )


def status_of(thread: int) -> tuple[int, frozenset[int]]:
    """(process, supplementary groups) of a thread; (thread, none) when it is gone."""
    try:
        with open(f"/proc/{thread}/status", "rb") as f:
            text = f.read(4096)
    except OSError:
        return thread, frozenset()
    process = thread
    for line in text.split(b"\n"):
        if line.startswith(b"Tgid:"):
            process = int(line[5:])
        elif line.startswith(b"Groups:"):
            return process, frozenset(map(int, line[7:].split()))
    return process, frozenset()


def start_of(process: int) -> int:
    """When a process began, in clock ticks since boot; 0 when it is gone."""
    try:
        with open(f"/proc/{process}/stat", "rb") as f:
            text = f.read(1024)
    except OSError:
        return 0
    # The command's name may hold anything, and ends at the last parenthesis; start is field 22.
    fields = text[text.rindex(b")") + 1 :].split()
    return int(fields[19])
