"""What a process holds, taken before and after a test: descriptors, threads, child processes, mounts."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import dataclass

# Threads that wait for more work and end by themselves; they hold nothing.
CACHED_THREADS = ("Trio thread", "trio-thread", "Trio worker", "ThreadPoolExecutor")
SETTLE_SECONDS_MAX = 2.0


@dataclass(frozen=True)
class Held:
    """One count of what this process holds."""

    fds: dict[int, str]
    threads: frozenset[str]
    children: frozenset[int]
    mounts: frozenset[str]


def take(mounts_below: str) -> Held:
    """What is held now.  Of all mounts only those below one directory are ours: other tests run beside this one."""
    return Held(_fds(), _threads(), _children(), _mounts(mounts_below))


def _fds() -> dict[int, str]:
    found = {}
    with os.scandir("/proc/self/fd") as entries:
        for entry in entries:
            try:
                found[int(entry.name)] = os.readlink(entry.path)
            except OSError:
                continue
    # The descriptor of this listing itself.
    return {fd: what for fd, what in found.items() if not what.startswith(f"/proc/{os.getpid()}/fd")}


def _threads() -> frozenset[str]:
    return frozenset(f"{t.name} ({t.ident})" for t in threading.enumerate() if not t.name.startswith(CACHED_THREADS))


def _children() -> frozenset[int]:
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as f:
                found.update(int(pid) for pid in f.read().split())
        except OSError:  # the thread ended, or the kernel has no such file
            continue
    return frozenset(found)


def _mounts(below: str) -> frozenset[str]:
    with open("/proc/self/mountinfo", errors="surrogateescape") as f:
        points = (line.split(" ")[4] for line in f)
        return frozenset(p for p in points if p.startswith(below + "/"))


def lost_between(before: Held, after: Held) -> list[str]:
    """One phrase for each thing that is held after and was not before."""
    lost = [f"descriptor {fd} ({what})" for fd, what in after.fds.items() if before.fds.get(fd) != what]
    lost += [f"thread {name}" for name in sorted(after.threads - before.threads)]
    lost += [f"child process {pid} ({_command(pid)})" for pid in sorted(after.children - before.children)]
    lost += [f"mount {point}" for point in sorted(after.mounts - before.mounts)]
    return lost


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().replace(b"\0", b" ").decode(errors="replace").strip() or "zombie"
    except OSError:
        return "gone"


def wait_for_baseline(before: Held, mounts_below: str, seconds: float = SETTLE_SECONDS_MAX) -> list[str]:
    """What is still held when nothing more comes back; empty when all is as before.  May block for `seconds`."""
    lost = lost_between(before, take(mounts_below))
    if not lost:
        return []
    gc.collect()  # what only a cycle keeps alive is no leak
    deadline = time.monotonic() + seconds
    while (lost := lost_between(before, take(mounts_below))) and time.monotonic() < deadline:
        time.sleep(0.01)
    return lost
