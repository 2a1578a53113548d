"""`./run bench`: the whole table, beside other servers measured in the same run.  `--write` keeps it in RESULTS.md."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Started as a directory or with -m, the modules beside this file are the package `bench`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import codec, conversation, memory, mount, start  # noqa: E402  # found by the line above
from bench.measure import HERE, Bench, Row, have, table_of  # noqa: E402  # likewise

PARTS: dict[str, tuple[str, Callable[[Bench], None]]] = {
    "codec": ("Messages", codec.measure),
    "9p": ("A host directory over 9P (TCP, loopback)", conversation.measure),
    "memory": ("Memory", memory.measure),
    "mount": ("A host directory mounted by FUSE", mount.measure),
    "start": ("ninep cat", start.measure),
    "demo": ("./run demo", start.measure_demo),
}
RESULTS = HERE / "RESULTS.md"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of: {' '.join(PARTS)} (default: all)")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} too")
    parser.add_argument("--rounds", type=int, default=7, help="times each is measured (default 7)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of one run of the load client (default 0.3)")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="the CPU that all share")
    parser.add_argument("--dir", default=None, help="where the served files are made (default: a temporary directory)")
    args = parser.parse_args(argv)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {unknown[0]}")
    return args


def machine(bench: Bench) -> list[str]:
    """What the figures depend on, one line each."""
    model, memory_kib = "", 0
    with open("/proc/cpuinfo") as info:
        model = next(
            (line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.machine()
        )
    with open("/proc/meminfo") as info:
        memory_kib = int(info.readline().split()[1])
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(bench.work)], capture_output=True, text=True, check=False)
    now = datetime.datetime.now(datetime.UTC)
    packages = [f"{name} {version}" for name in ("diod", "mergerfs", "bindfs") if (version := _version(name))]
    return [
        f"Date: {now:%Y-%m-%d %H:%M} UTC",
        f"Machine: {model}, {os.cpu_count()} CPUs, {memory_kib >> 20} GiB, load {os.getloadavg()[0]:.1f} at the end",
        f"Kernel: {platform.release()} ({platform.machine()})",
        f"Python: {platform.python_version()} ({platform.python_implementation()}, {platform.python_compiler()})",
        f"Peers: {', '.join(packages) or 'none'}",
        f"Files on: {kind.stdout.strip()}",
        f"Pinning: server and client share CPU {bench.cpu}",
        f"Rounds: {bench.rounds}, in turn; figures and ratios are medians, the ratio that of the rounds' own ratios",
    ]


def _version(package: str) -> str:
    if not have("dpkg-query"):
        return ""
    asked = ["dpkg-query", "-W", "-f=${Version}", package]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def report(bench: Bench, sections: list[tuple[str, list[Row]]]) -> str:
    """RESULTS.md."""
    rows = [row for _, some in sections for row in some]
    judged = [row for row in rows if row.is_met is not None]
    missed = [row for row in judged if not row.is_met]
    lines = [
        "# Measured",
        "",
        "Written by `./run bench --write`.  The ratio is ours to the peer's, measured in turn on one CPU; the last two",
        "columns are CPU time of the serving process: microseconds for each operation, or for each MiB.",
        "",
        *(f"- {line}" for line in [*machine(bench), *bench.notes]),
        "",
        f"Targets met: {len(judged) - len(missed)} of {len(judged)}."
        + "".join(f"\n- not met: {row.what}, beside {row.peer or 'nothing'}" for row in missed),
    ]
    for title, some in sections:
        lines += ["", f"## {title}", "", table_of(some)]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    args = parse(argv)
    work = Path(tempfile.mkdtemp(prefix="ninep-bench-", dir=args.dir))
    bench = Bench(work, args.cpu, args.rounds, args.seconds)
    sections: list[tuple[str, list[Row]]] = []
    failed = 0
    try:
        for name in args.parts or PARTS:
            title, measure = PARTS[name]
            at = len(bench.rows)
            try:
                measure(bench)
            except (RuntimeError, OSError, subprocess.SubprocessError) as e:
                failed += 1
                bench.notes.append(f"{name} failed: {e}")
                bench.say(bench.notes[-1])
            if bench.rows[at:]:
                sections.append((title, bench.rows[at:]))
        text = report(bench, sections)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(text, end="")
    if args.write:
        RESULTS.write_text(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
