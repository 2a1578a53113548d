"""The compatibility matrix: real programs on every kind of mounted tree do what the table of compat.py says."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import fuse_mounts
import pytest
from compat import FOLLOWERS, NO_SIZE, PROGRAMS, SQLITE_MODES, SQLITE_NO, TREES, Program
from servers import is_mounted, serving, start_ninep, wait_until

SECONDS_MAX = 40.0
FAST = ("ram",)  # what ./check tries; the other trees take seconds

Find = Callable[[str], str]


@dataclass
class Place:
    """A mounted tree, and the directory behind it if there is one."""

    tree: str
    dir: Path
    behind: Path | None


@pytest.fixture(scope="module", params=[pytest.param(t, marks=[] if t in FAST else pytest.mark.slow) for t in TREES])
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        pytest.skip(f"needs /dev/fuse: {e.strerror}")
    tree = str(request.param)
    if tree == "pyfuse3" and importlib.util.find_spec("pyfuse3") is None:
        pytest.skip("needs pyfuse3")
    base = tmp_path_factory.mktemp("compat")
    behind = base / "behind"
    point = base / "point"
    behind.mkdir()
    point.mkdir()
    with ExitStack() as stack:
        if tree in ("remote", "9P2000"):
            server = stack.enter_context(serving(f"host:{behind}"))
            dialect = ("-o", "dialect=9P2000") if tree == "9P2000" else ()
            stack.enter_context(start_ninep("mount", server.url, str(point), "--foreground", *dialect))
        else:
            what = "ram:" if tree == "ram" else f"host:{behind}"
            engine = ("--engine", "pyfuse3") if tree == "pyfuse3" else ()
            stack.enter_context(start_ninep("mount", what, str(point), "--foreground", *engine))
        yield Place(tree, point, None if tree == "ram" else behind)


@pytest.fixture
def place(mounted: Place, request: pytest.FixtureRequest, needs_fuse: None) -> Place:
    """A new directory of this test's own."""
    assert is_mounted(str(mounted.dir))
    name = re.sub(r"\W+", "_", request.node.name)[:100]
    (mounted.dir / name).mkdir()
    return Place(mounted.tree, mounted.dir / name, mounted.behind and mounted.behind / name)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the scripts copy from."""
    made = tmp_path_factory.mktemp("outside")
    (made / "text").write_text("".join(f"{n}\n" for n in range(1, 2001)))
    (made / "bytes").write_bytes(os.urandom(300_000))
    return made


def bash(script: str, place: Place, outside: Path) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "O": str(outside), "PY": sys.executable, "BEHIND": str(place.behind), "LC_ALL": "C",
           "HOME": str(outside), "GIT_CONFIG_NOSYSTEM": "1"}  # fmt: skip
    return fuse_mounts.run("bash", "-euo", "pipefail", "-c", script, seconds=SECONDS_MAX, cwd=place.dir, env=env)


@pytest.mark.feature("fuse-compat-matrix")
@pytest.mark.parametrize("program", [pytest.param(p, id=p.name) for p in PROGRAMS])
def test_a_program_works_on_a_mounted_tree_or_fails_as_documented(
    place: Place, program: Program, outside: Path, needs_tool: Find
) -> None:
    if place.tree not in program.where:
        pytest.skip(f"does not apply to {place.tree}")
    for tool in program.needs:
        needs_tool(tool)
    done = bash(program.script, place, outside)
    said = done.stderr.decode(errors="replace")
    refusal = program.no.get(place.tree)
    if refusal is None:
        assert not said, said
        assert done.returncode == 0, done.stdout
    else:
        assert done.returncode != 0
        assert re.search(refusal.says, said), said


@pytest.fixture(scope="module")
def clockwork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fuse_mounts.Mount]:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        pytest.skip(f"needs /dev/fuse: {e.strerror}")
    with fuse_mounts.serving("clockwork", tmp_path_factory.mktemp("compat-clockwork")) as mount:
        yield mount


@pytest.mark.feature("fuse-compat-matrix", "fuse-streams")
@pytest.mark.parametrize("program", [pytest.param(p, id=p.name) for p in FOLLOWERS])
def test_a_program_reads_a_line_of_a_stream_or_fails_as_documented(
    clockwork: fuse_mounts.Mount, program: Program, needs_tool: Find
) -> None:
    for tool in program.needs:
        needs_tool(tool)
    command = program.script.format(f=clockwork.dir / "event", python=sys.executable)
    follower = subprocess.Popen(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"}
    )
    try:
        refusal = program.no.get("stream")
        if refusal is not NO_SIZE:
            wait_until(lambda: clockwork.ask("live parked") == "1", "the reader")
            (clockwork.dir / "ctl").write_text("say now\n")
            if program.name.endswith("cat"):  # it sees that nobody listens when it writes again
                wait_until(lambda: clockwork.ask("live parked") == "1", "the reader")
                (clockwork.dir / "ctl").write_text("say more\n")
        out, err = follower.communicate(timeout=SECONDS_MAX)
    finally:
        follower.kill()
        follower.communicate()
    assert (out, follower.returncode) == (b"" if refusal is NO_SIZE else b"now\n", 0)
    assert (refusal is None and not err) or (refusal is not None and re.search(refusal.says, err.decode()))


# -- sqlite


WRITER = """
import sqlite3, sys
path, mode, number = sys.argv[1:]
db = sqlite3.connect(path, timeout=40, isolation_level=None)
db.execute("pragma journal_mode=" + mode)
for n in range(15):
    db.execute("begin immediate")
    db.execute("insert into a values(?, ?)", (number, n))
    db.execute("insert into b values(?, ?)", (number, n))
    db.execute("commit")
"""
READER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=40, isolation_level=None)
count = looks = 0
while count < 30:
    db.execute("begin")
    count = db.execute("select count(*) from a").fetchone()[0]
    assert count == db.execute("select count(*) from b").fetchone()[0]
    db.execute("commit")
    looks += 1
print(looks)
"""
DYING = """
import sqlite3, sys
path, mode = sys.argv[1:]
db = sqlite3.connect(path, timeout=40, isolation_level=None)
db.execute("pragma journal_mode=" + mode)
db.execute("pragma cache_size=5")  # pages go to the disk before the commit
db.execute("begin immediate")
db.execute("update a set n = n + 1000")
for n in range(3000):
    db.execute("insert into b values(7, ?)", (n,))
print("written", flush=True)
sys.stdin.read()
"""


def database(place: Place, mode: str) -> Path:
    path = place.dir / "db"
    with closing(sqlite3.connect(path, timeout=40, isolation_level=None)) as db:
        assert db.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
        db.execute("create table a(who, n)")
        db.execute("create table b(who, n)")
    return path


def needs_locks(place: Place) -> None:
    if place.tree in SQLITE_NO:
        pytest.skip(f"{SQLITE_NO[place.tree].reason}: another test")


@pytest.mark.feature("fuse-sqlite")
@pytest.mark.parametrize("mode", SQLITE_MODES)
def test_sqlite_keeps_its_promises_to_two_writers_and_a_reader(place: Place, mode: str) -> None:
    needs_locks(place)
    path = str(database(place, mode))
    everybody = [
        subprocess.Popen([sys.executable, "-c", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for argv in ([READER, path], [WRITER, path, mode, "1"], [WRITER, path, mode, "2"])
    ]
    try:
        for process in everybody:
            _, err = process.communicate(timeout=50)
            assert (process.returncode, err) == (0, b"")
    finally:
        for process in everybody:
            process.kill()
            process.communicate()
    with closing(sqlite3.connect(path, timeout=40)) as db:
        assert db.execute("select who, count(distinct n) from a group by who").fetchall() == [("1", 15), ("2", 15)]
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        assert db.execute("pragma journal_mode").fetchone() == (mode,)


@pytest.mark.feature("fuse-sqlite")
@pytest.mark.parametrize("mode", SQLITE_MODES)
def test_sqlite_recovers_from_a_writer_that_was_killed_in_the_middle_of_a_transaction(place: Place, mode: str) -> None:
    needs_locks(place)
    path = database(place, mode)
    with closing(sqlite3.connect(path, timeout=40)) as db, db:
        db.executemany("insert into a values(0, ?)", [(n,) for n in range(300)])
    argv = [sys.executable, "-c", DYING, str(path), mode]
    dying = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert dying.stdout is not None
        assert dying.stdout.readline() == b"written\n"
        left = path.with_name("db-journal" if mode == "delete" else "db-wal")
        assert left.stat().st_size > 0
        with closing(sqlite3.connect(path, timeout=0)) as db, pytest.raises(sqlite3.OperationalError, match="locked"):
            db.execute("begin immediate")
    finally:
        dying.kill()
        dying.communicate()
    with closing(sqlite3.connect(path, timeout=40)) as db, db:
        assert db.execute("select count(*), max(n) from a").fetchone() == (300, 299)
        assert db.execute("select count(*) from b").fetchone() == (0,)
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        db.execute("insert into b values(0, 0)")


@pytest.mark.feature("fuse-sqlite")
def test_sqlite_fails_clearly_where_no_lock_can_be_had_and_harms_nothing(place: Place) -> None:
    """On a tree without locks; elsewhere the same commands are the control: they work."""
    path = place.dir / "db"
    refusal = SQLITE_NO.get(place.tree)
    if refusal is not None:
        assert place.behind is not None
        with closing(sqlite3.connect(place.behind / "db")) as db, db:
            db.execute("create table a(n)")
        fd = os.open(path, os.O_RDWR)
        with pytest.raises(OSError) as refused:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)  # nor does the close fail for a lock that was never had
        assert refused.value.errno == errno.EOPNOTSUPP
        before = (place.behind / "db").read_bytes()
        with closing(sqlite3.connect(path)) as db:
            for act in ("insert into a values(1)", "pragma journal_mode=wal", "select * from a"):
                with pytest.raises(sqlite3.OperationalError, match=refusal.says):
                    db.execute(act)
        assert (place.behind / "db").read_bytes() == before
        assert sorted(os.listdir(place.behind)) == ["db"]
    # Its own locks, by names, work everywhere.
    made = f"file:{path if place.tree != '9P2000' else place.dir / 'other'}?vfs=unix-dotfile"
    with closing(sqlite3.connect(made, uri=True)) as db, db:
        db.execute("create table a(n)")
        db.execute("insert into a values(1)")
    with closing(sqlite3.connect(made, uri=True)) as db:
        assert db.execute("select * from a").fetchall() == [(1,)]
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    if refusal is None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("insert into a values(1)")
