"""How fast is a host directory through our FUSE mount, beside mergerfs, bindfs, and the directory itself?

Every mount of the directory and the program that uses it share one CPU.  Each round looks at files that no mount has
looked at before, so that the kernel has nothing of them cached.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import HERE, NINEP, Bench, Shot, beside, cpu_seconds, have, in_turn, wait_until

STATS, CREATES, ENTRIES, READS = 1000, 300, 10_000, 4000
MIBS, WHOLE_MIBS = 64, 192
WORK_SECONDS_MAX = 60
NATIVE = 0.9  # of the directory itself, for what passthrough leaves to the kernel


@dataclass
class Mount:
    """One way to the directory."""

    name: str
    path: Path
    pid: int = 0  # of the server; 0 for the directory itself


def is_mounted(path: Path) -> bool:
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(line.split(" ")[1] == str(path) for line in mounts)


@contextmanager
def mounted(bench: Bench, name: str, command: list[str], path: Path) -> Iterator[Mount]:
    """A FUSE mount in the foreground, unmounted and ended whatever happens."""
    path.mkdir()
    log = open(bench.work / f"{path.name}.log", "wb")
    process = subprocess.Popen(bench.pinned(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_mounted(path), name, process)
        yield Mount(name, path, process.pid)
    finally:
        log.close()
        umount = ["umount", "-l", str(path)] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", str(path)]
        subprocess.run(umount, capture_output=True, timeout=10, check=False)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def worker(bench: Bench, mount: Mount, test: str, *args: str, units: float = 1) -> Shot:
    """One run of filework in a mount; `units` in one run, for the server's CPU time of each."""
    before = cpu_seconds(mount.pid) if mount.pid else 0.0
    command = bench.pinned([sys.executable, "-I", "-S", str(HERE / "filework.py"), test, *args])
    done = subprocess.run(command, capture_output=True, timeout=WORK_SECONDS_MAX, check=False)
    if done.returncode:
        raise RuntimeError(f"{mount.name}: {test}: {done.stderr.decode(errors='replace')[-400:]}")
    used = cpu_seconds(mount.pid) - before if mount.pid else None
    return Shot(float(done.stdout), None if used is None else used / units * 1e6)


def prepare(bench: Bench, tree: Path) -> None:
    """What the rounds look at: made beneath the mounts, and in the host's own caches."""
    content = os.urandom(1 << 20)
    small = b"x" * 1000
    (tree / "stat").mkdir()
    for i in range(bench.rounds * STATS):
        (tree / f"stat/f{i:05}").write_bytes(small)
    for turn in range(bench.rounds):
        for kind in ("list", "look"):
            directory = tree / f"{kind}{turn}"
            directory.mkdir()
            for i in range(ENTRIES):
                os.close(os.open(f"{directory}/f{i:05}", os.O_CREAT | os.O_WRONLY, 0o644))
        for kind in ("random", "whole"):
            with open(tree / f"{kind}{turn}", "wb") as file:
                for _ in range(WHOLE_MIBS if kind == "whole" else MIBS):
                    file.write(content)


def measure(bench: Bench) -> None:
    tree = bench.work / "mounted"
    tree.mkdir()
    bench.say("making the files that are looked at")
    prepare(bench, tree)
    with ExitStack() as stack:
        mounts = {"native": Mount("native", tree)}

        def mount(name: str, command: list[str], *after: str) -> None:
            path = bench.work / f"m.{len(mounts)}"
            mounts[name] = stack.enter_context(mounted(bench, name, [*command, str(path), *after], path))

        ninep = [NINEP, "mount", "--foreground", "--quiet", f"host:{tree}"]
        mount("ninep", ninep)
        mount("plain", ninep, "-o", "passthrough=off")
        for peer in ("mergerfs", "bindfs"):
            if have(peer):
                mount(peer, [peer, "-f", str(tree)])
            else:
                bench.notes.append(f"{peer} is not installed: mounts are not measured beside it")
        for test in TESTS:
            _compare(bench, tree, mounts, test)
    _synthetic(bench)


@dataclass
class Test:
    """One thing to do in a mount.  `target` is beside mergerfs; `data`: what passthrough takes off our hands."""

    what: str
    name: str
    unit: str
    target: float | None
    args: Callable[[Mount, int], list[str]]
    units: float  # operations, or MiB, in one shot
    data: bool = False


TESTS = [
    Test("uncached stat", "stat", "1/s", 1.0, lambda m, n: [f"{m.path}/stat", str(n * STATS), str(STATS)], STATS),
    Test("create, write a byte, close", "create", "1/s", 1.0,
         lambda m, n: [f"{m.path}/made.{m.path.name}.{n}", str(CREATES)], CREATES),
    Test("readdir of 10,000, for the first time", "readdir", "entries/s", 1.0,
         lambda m, n: [f"{m.path}/list{n}", str(ENTRIES)], ENTRIES),
    Test("readdir of 10,000, a second time", "readdir", "entries/s", 1.0,
         lambda m, n: [f"{m.path}/list{n}", str(ENTRIES)], ENTRIES),
    Test("readdir and lstat of 10,000", "readdir_stat", "entries/s", None,
         lambda m, n: [f"{m.path}/look{n}", str(ENTRIES)], ENTRIES),
    Test("open, read, close", "open_read_close", "1/s", None,
         lambda m, n: [f"{m.path}/stat", str(n * STATS), str(STATS)], STATS),
    Test("4 KiB random reads", "random_read", "1/s", 0.8,
         lambda m, n: [f"{m.path}/random{n}", str(READS)], READS, True),
    Test("sequential read", "read", "MB/s", 0.9, lambda m, n: [f"{m.path}/whole{n}"], WHOLE_MIBS, True),
    Test("sequential write", "write", "MB/s", 0.9, lambda m, n: [f"{m.path}/wrote.{m.path.name}.{n}", str(MIBS)], MIBS,
         True),
]  # fmt: skip


def _compare(bench: Bench, tree: Path, mounts: dict[str, Mount], test: Test) -> None:
    def shooter(mount: Mount) -> Callable[[int], Shot]:
        def shoot(turn: int) -> Shot:
            args = test.args(mount, turn)
            shot = worker(bench, mount, test.name, *args, units=test.units)
            if test.name == "write":
                (tree / Path(args[0]).name).unlink()  # beneath the mount: disks are small
            return shot

        return shoot

    taken = in_turn(bench, {name: shooter(m) for name, m in mounts.items() if test.data or name != "plain"})
    what = f"mount: {test.what}"
    kinds = [("ninep", what)] + ([("plain", f"{what}, no passthrough")] if test.data else [])
    for name, label in kinds:
        for peer in ("mergerfs", "bindfs", "native"):
            if peer not in taken or (name == "plain" and peer == "native"):
                continue
            target = test.target if peer == "mergerfs" else None
            if peer == "native" and test.data:
                target = NATIVE
            bench.add(beside(label, test.unit, taken[name], peer, taken[peer], target))


def _synthetic(bench: Bench) -> None:
    """A tree of files that are made up as they are read: nothing like it exists to be measured beside."""
    path = bench.work / "m.synthetic"
    command = [NINEP, "mount", "--foreground", "--quiet", f"py:{HERE / 'trees.py'}:tree", str(path)]
    with mounted(bench, "synthetic", command, path) as mount:
        for what, args in (
            ("echo add 1 >ctl", ("ctl", str(path / "ctl"), "add 1", str(STATS))),
            ("cat state", ("cat", str(path / "state"), str(STATS))),
        ):
            shots = [worker(bench, mount, *args, units=STATS) for _ in range(bench.rounds)]
            bench.add(beside(f"mount, synthetic: {what}", "1/s", shots, "", []))
