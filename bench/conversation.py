"""How many requests per second, and how many bytes, does a host tree give over 9P, beside diod?

Both serve the same directory over loopback TCP, and the load client shares one CPU with them.
"""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import NINEP, Bench, Shot, answers, cpu_seconds, free_port, have, in_turn, load_program, running
from bench.measure import beside as row_of

FILE_BYTES = 64 << 20
MSIZE = (1 << 20) + 24  # a payload of 1 MiB
DIOD_MSIZE = 65_536  # diod 1.0.24 takes no more


@dataclass
class Server:
    """One server of the directory."""

    pid: int
    port: int
    aname: str


@contextmanager
def ninep(bench: Bench, directory: Path, nofile: int = 0) -> Iterator[Server]:
    """Our server; `nofile` is its limit of open files, 0 that of whoever asks."""
    port = free_port()
    command = [NINEP, "serve", f"host:{directory}", "--listen", f"9p://127.0.0.1:{port}", "--trust-uname", "--quiet"]
    limited = ["prlimit", f"--nofile={nofile}:{nofile}", *command] if nofile else command
    with running(bench.pinned(limited), lambda: answers(port)) as process:
        yield Server(process.pid, port, "")


@contextmanager
def diod(bench: Bench, directory: Path) -> Iterator[Server]:
    port = free_port()
    # -S: everything is done as one user, as our squash; -n: no authentication, as --trust-uname.
    command = ["diod", "-f", "-n", "-l", f"127.0.0.1:{port}", "-e", str(directory), "-S", "-U", getpass.getuser()]
    with running(bench.pinned(command), lambda: answers(port)) as process:
        yield Server(process.pid, port, str(directory))


def shooter(
    bench: Bench, server: Server, test: str, depth: int, msize: int = MSIZE, connections: int = 1, *, in_bytes: bool
) -> Callable[[int], Shot]:
    """One run of the load client: requests per second, or MB/s."""
    file = "written" if test == "write" else "read"
    command = bench.pinned([
        load_program(bench), str(server.port), server.aname, getpass.getuser(), file, test, str(depth),
        str(connections), str(bench.seconds), str(msize),
    ])  # fmt: skip

    def shoot(_turn: int) -> Shot:
        before = cpu_seconds(server.pid)
        printed = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.split()
        used = cpu_seconds(server.pid) - before
        done, count, seconds = int(printed[0]), int(printed[1]), float(printed[2])
        if in_bytes:
            return Shot(count / seconds / 1e6, used / (count / 2**20) * 1e6)
        return Shot(done / seconds, used / done * 1e6)

    return shoot


def measure(bench: Bench) -> None:
    directory = bench.work / "tree"
    directory.mkdir()
    content = bytes(range(256)) * 4096
    with open(directory / "read", "wb") as file:
        for _ in range(FILE_BYTES // len(content)):
            file.write(content)
    (directory / "written").touch()
    with ninep(bench, directory) as ours:
        if not have("diod"):
            bench.notes.append("diod is not installed: 9P figures have no peer")
            _compare(bench, ours, None)
            return
        with diod(bench, directory) as theirs:
            _compare(bench, ours, theirs)


def _compare(bench: Bench, ours: Server, theirs: Server | None) -> None:
    def beside(
        what: str, test: str, depth: int, target: float | None, *, msize: int = MSIZE, connections: int = 1,
        peer_depth: int = 0,
    ) -> None:  # fmt: skip
        in_bytes = test in ("read", "write")
        shots = {"ninep": shooter(bench, ours, test, depth, msize, connections, in_bytes=in_bytes)}
        if theirs is not None:
            shots["diod"] = shooter(bench, theirs, test, peer_depth or depth, min(msize, DIOD_MSIZE), connections,
                                    in_bytes=in_bytes)  # fmt: skip
        taken = in_turn(bench, shots)
        unit = "MB/s" if in_bytes else "1/s"
        bench.add(row_of(what, unit, taken["ninep"], "diod", taken.get("diod", []), target))

    for test, label in (("getattr", "Tgetattr"), ("read4k", "Tread of 4 KiB")):
        for depth in (1, 32):
            beside(f"{label}, depth {depth}", test, depth, 0.6)
    for test, label in (("getattr", "Tgetattr"), ("read4k", "Tread of 4 KiB")):
        beside(f"{label}, 8 connections, depth 4", test, 4, 0.6, connections=8)
    for test, label in (("read", "sequential read"), ("write", "sequential write")):
        for kib in (64, 512, 1024):
            msize = (kib << 10) + (24 if kib > 64 else 0)
            target = 0.9 if test == "read" and kib == 1024 else None
            beside(f"{label}, msize {kib} KiB, depth 1", test, 1, target, msize=msize)
    beside("sequential read, msize 1 MiB depth 1, diod at depth 4", "read", 1, 0.9, peer_depth=4)
