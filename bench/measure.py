"""Common ground of the measurements: pinned processes, interleaved rounds, CPU time of a server, rows of the table.

A noisy machine is the rule, so only what was measured within one round is compared: ours, then the peer's, and again;
a row's ratio is the median of the rounds' ratios.  Knows no server.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 5.0
PYTHON = sys.executable
NINEP = str(Path(PYTHON).parent / "ninep")


@dataclass
class Row:
    """One line of the table.  `target` is the least ratio, or with `less` the most of `ours`; None: only to be seen."""

    what: str
    ours: float
    unit: str
    peer: str = ""
    theirs: float | None = None
    ratio: float | None = None
    target: float | None = None
    less: bool = False
    our_cpu_us: float | None = None
    their_cpu_us: float | None = None

    @property
    def is_met(self) -> bool | None:
        """None without a target, or without the peer that it is about."""
        if self.target is None:
            return None
        if self.less:
            return self.ours <= self.target
        return None if self.ratio is None else self.ratio >= self.target


@dataclass
class Bench:
    """What every measurement gets: where to work, which CPU, how many rounds, how long one shot lasts."""

    work: Path
    cpu: int
    rounds: int = 5
    seconds: float = 0.3
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)

    def pinned(self, command: Sequence[str]) -> list[str]:
        """The command, on the one CPU that everything measured shares."""
        return ["taskset", "-c", str(self.cpu), *command]

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.say(line_of(row))


@dataclass
class Shot:
    """One measured run: how much per second (or how long), and the server's CPU microseconds per operation."""

    rate: float
    cpu_us: float | None = None


def in_turn(bench: Bench, shots: dict[str, Callable[[int], Shot]]) -> dict[str, list[Shot]]:
    """Each of them once in every round, given the round's number, in an order that turns around with the rounds."""
    taken: dict[str, list[Shot]] = {name: [] for name in shots}
    for turn in range(bench.rounds):
        # Who goes first changes, so that no one always finds the caches that the other left.
        for name in list(shots) if turn % 2 == 0 else reversed(list(shots)):
            taken[name].append(shots[name](turn))
    return taken


def beside(what: str, unit: str, ours: Sequence[Shot], peer: str, theirs: Sequence[Shot],
           target: float | None = None) -> Row:  # fmt: skip
    """The row of two that were measured in the same rounds."""
    row = Row(what, median([s.rate for s in ours]), unit, peer, target=target, our_cpu_us=median_known(ours))
    if theirs:
        row.theirs = median([s.rate for s in theirs])
        row.their_cpu_us = median_known(theirs)
        row.ratio = median([a.rate / b.rate for a, b in zip(ours, theirs, strict=True)])
    return row


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def median_known(shots: Sequence[Shot]) -> float | None:
    known = [s.cpu_us for s in shots if s.cpu_us is not None]
    return statistics.median(known) if known else None


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, all its threads, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def have(program: str) -> bool:
    return shutil.which(program) is not None


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(is_so: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Poll until it is so.  Raises RuntimeError when the process ends or the time is over."""
    ends = time.monotonic() + START_SECONDS_MAX
    while not is_so():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{what}: ended with {process.returncode}")
        if time.monotonic() > ends:
            raise RuntimeError(f"{what}: not ready in {START_SECONDS_MAX:.0f} s")
        time.sleep(0.01)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def running(command: Sequence[str], ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, from when it is ready to the end of the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            try:
                wait_until(ready, command[-1], process)
            except RuntimeError as e:
                log.seek(0)
                raise RuntimeError(f"{e}: {log.read().decode(errors='replace')[-500:]}") from None
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def load_program(bench: Bench) -> str:
    """The load client, compiled when its source is newer; the binary stays in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ninep-bench"
    cache.mkdir(parents=True, exist_ok=True)
    source, program = HERE / "load.c", cache / "load"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        made = cache / f"load.{os.getpid()}"
        subprocess.run(["gcc", "-O2", "-Wall", "-o", str(made), str(source)], check=True)
        os.replace(made, program)
    return str(program)


# -- the table


def number(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cells_of(row: Row) -> list[str]:
    target = ""
    if row.target is not None:
        target = f"<= {number(row.target)}" if row.less else f">= {row.target:.1f} x"
    met = {True: "met", False: "NOT MET", None: ""}[row.is_met]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
    return [row.what, row.unit, number(row.ours), row.peer, number(row.theirs), ratio, target, met,
            number(row.our_cpu_us), number(row.their_cpu_us)]  # fmt: skip


TITLES = ["what", "unit", "ninep", "peer", "peer's", "ratio", "target", "", "cpu us", "peer cpu us"]


def line_of(row: Row) -> str:
    what, unit, ours, peer, theirs, ratio, target, met, _, _ = cells_of(row)
    text = f"{what}: {ours} {unit}"
    if theirs:
        text += f"; {peer} {theirs}; {ratio}"
    return text + (f" ({target}: {met})" if target else "")


def table_of(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, which reads well as plain text too."""
    cells = [TITLES, *(cells_of(row) for row in rows)]
    shown = [i for i in range(len(TITLES)) if any(line[i] for line in cells[1:])]
    right = {2, 4, 5, 6, 8, 9}
    widths = {i: max(len(line[i]) for line in cells) for i in shown}
    lines = [
        "| " + " | ".join(line[i].rjust(w) if i in right else line[i].ljust(w) for i, w in widths.items()) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i in right else "-") for i, w in widths.items()) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
