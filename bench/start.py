"""How long does a user wait for `ninep cat` of a small file, from the shell's fork to the end?"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence

from bench.measure import HERE, NINEP, PYTHON, Bench, Row, answers, free_port, have, median, running

RUNS = 30
CONTENT = b"hello\n"
WALL_MS_MAX = 60.0
DEMO_SECONDS_MAX = 300


def run_once(command: Sequence[str], expected: bytes) -> tuple[float, float]:
    """(seconds to the first byte, seconds in all).  Raises RuntimeError when the output is not what it should be."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 65536)
        at_first = time.perf_counter() - start
        rest = process.stdout.read()
    at_end = time.perf_counter() - start
    if process.returncode or (expected and first + rest != expected):
        raise RuntimeError(f"{command}: exit {process.returncode}: {(first + rest)[:100]!r}")
    return at_first, at_end


def measure(bench: Bench) -> None:
    directory = bench.work / "small"
    directory.mkdir()
    (directory / "file").write_bytes(CONTENT)
    path = bench.work / "cat.sock"
    command = [NINEP, "serve", f"host:{directory}", "--listen", f"9p+unix://{path}", "--quiet"]
    cat = bench.pinned([NINEP, "cat", f"9p+unix://{path}//file"])
    bare = bench.pinned([PYTHON, "-I", "-S", "-c", "pass"])
    site = bench.pinned([PYTHON, "-c", "pass"])
    with running(bench.pinned(command), path.exists):
        run_once(cat, CONTENT)
        firsts, walls, bares, sites = [], [], [], []
        for _ in range(RUNS):
            first, wall = run_once(cat, CONTENT)
            firsts.append(first * 1e3)
            walls.append(wall * 1e3)
            bares.append(run_once(bare, b"")[1] * 1e3)
            sites.append(run_once(site, b"")[1] * 1e3)
    ratio = median([b / a for a, b in zip(walls, sites, strict=True)])
    what, site_ms = "ninep cat over a unix socket", median(sites)
    row = Row(f"{what}, to the end", median(walls), "ms", "python -c pass", site_ms, ratio, WALL_MS_MAX, less=True)
    bench.add(row)
    bench.add(Row(f"{what}, best of {RUNS}", min(walls), "ms", "python -I -S -c pass", min(bares)))
    bench.add(Row(f"{what}, first byte", median(firsts), "ms"))
    if have("diod") and have("diodcat"):
        _diodcat(bench, str(directory))


def _diodcat(bench: Bench, directory: str) -> None:
    port = free_port()
    command = [
        "diod",
        "-f",
        "-n",
        "-l",
        f"127.0.0.1:{port}",
        "-e",
        directory,
        "-S",
        "-U",
        os.environ.get("USER", "root"),
    ]
    with running(bench.pinned(command), lambda: answers(port)):
        cat = bench.pinned(["diodcat", "-s", f"127.0.0.1:{port}", "-a", directory, "file"])
        walls = [run_once(cat, CONTENT)[1] * 1e3 for _ in range(RUNS)]
    bench.add(Row("for comparison: diodcat, a C program, over TCP", median(walls), "ms"))


def measure_demo(bench: Bench) -> None:
    """The second start of `./run demo`: what it sets up was set up by whoever started this."""
    first, wall = run_once([str(HERE.parent / "run"), "demo"], b"")
    bench.add(Row("./run demo, to its first output", first, "s", target=2.0, less=True))
    bench.add(Row("./run demo, to the end", wall, "s"))
