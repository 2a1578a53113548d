"""How a guest checks its mounts: the table of checks, which mounts each is for, and a line of JSON for each result.

Uses only the standard library.  A check (guest_checks.py, guest_loads.py) gets a fresh directory of its own and raises
if the mount is not what Linux promises.  Knows no check.
"""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MANY = 2000
DOTL, DOTU, P2000 = "9p2000.L", "9p2000.u", "9p2000"
FILES, LIVE = ("ram", "host"), ("live",)


@dataclass
class Mount:
    """One mount; `twin` is another client's mount of the same tree."""

    name: str
    dialect: str
    cache: str
    tree: str
    twin: str = ""
    kept: dict[str, str] = field(default_factory=dict)  # path below the tree's root -> SHA-256, as the guest read it
    directory: str = ""  # of the running check, below the tree's root

    @property
    def root(self) -> Path:
        return Path("/run/m") / self.name

    @property
    def here(self) -> Path:
        return self.root / self.directory

    def keep(self, path: Path) -> None:
        """The host shall find the same content there."""
        self.kept[str(path.relative_to(self.root))] = hashlib.sha256(path.read_bytes()).hexdigest()


Check = Callable[[Mount], None]


@dataclass
class Row:
    """A check, the trees, dialects and cache modes it is for, and the errno that other dialects answer (0: not run)."""

    run: Check
    trees: tuple[str, ...]
    dialects: tuple[str, ...]
    caches: tuple[str, ...]
    refused: int


CHECKS: dict[str, Row] = {}


def check(
    trees: tuple[str, ...] = FILES,
    dialects: tuple[str, ...] = (DOTL, DOTU, P2000),
    caches: tuple[str, ...] = ("none", "loose", "mmap"),
    refused: int = 0,
) -> Callable[[Check], Check]:
    def enter(run: Check) -> Check:
        CHECKS[run.__name__] = Row(run, trees, dialects, caches, refused)
        return run

    return enter


def outcome_wanted(name: str, mount: Mount) -> str | None:
    """ "works", the name of an errno, or None where the check says nothing about this mount."""
    row = CHECKS[name]
    if mount.tree not in row.trees or mount.cache not in row.caches:
        return None
    if mount.dialect in row.dialects:
        return "works"
    return errno.errorcode[row.refused] if row.refused else None


@contextmanager
def raises(*codes: int) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in codes:
            raise AssertionError(f"{e} instead of errno {codes}") from e
    else:
        raise AssertionError(f"no error; errno {codes} was due")


def run(*argv: str, cwd: Path | None = None, seconds: float = 60) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, timeout=seconds, check=False, text=True)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def result_of(name: str, mount: Mount) -> str:
    """ "works", the name of the errno of a refusal, or a traceback."""
    mount.directory = f"{mount.name}-{name}" if mount.tree in FILES else ""
    try:
        if mount.directory:
            mount.here.mkdir()
        CHECKS[name].run(mount)
    except OSError as e:
        if outcome_wanted(name, mount) != "works":
            return errno.errorcode.get(e.errno or 0, str(e))
        return traceback.format_exc()
    except BaseException:
        return traceback.format_exc()
    return "works"


def run_plan(plan: str) -> None:
    """Every check that says something about a mount of the plan, a file of JSON."""
    for mount in [Mount(**row) for row in json.loads(Path(plan).read_text())]:
        for name in CHECKS:
            if outcome_wanted(name, mount) is None:
                continue
            start = time.monotonic()
            said = result_of(name, mount)
            line = {"mount": mount.name, "check": name, "said": said, "seconds": round(time.monotonic() - start, 3)}
            print(json.dumps(line), flush=True)
        print(json.dumps({"mount": mount.name, "kept": mount.kept}), flush=True)
