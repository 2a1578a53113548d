"""The Linux kernel's own 9P client on our ram, host and synthetic trees, in three dialects and three cache modes.

One guest is booted for all; each claim about each mount is a test of its own.  What a dialect cannot carry is answered
by the kernel itself with the errno that guest_checks.py and guest_loads.py name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import servers
from interop import uml
from interop.guest_kit import DOTL, DOTU, MANY, P2000, Mount, outcome_wanted
from interop.guest_run import CHECKS

from ninep.edges.blocking import Blocking

HERE = Path(__file__).resolve().parent
BOOT_SECONDS_MAX = 200
MOUNTS = [
    Mount("ram-L-none", DOTL, "none", "ram", twin="ram-L-loose"),
    Mount("host-L-none", DOTL, "none", "host", twin="host-L-mmap"),
    Mount("ram-L-loose", DOTL, "loose", "ram"),
    Mount("host-L-mmap", DOTL, "mmap", "host"),
    Mount("host-L-loose", DOTL, "loose", "host"),
    Mount("ram-u-none", DOTU, "none", "ram"),
    Mount("host-u-mmap", DOTU, "mmap", "host"),
    Mount("ram-2000-none", P2000, "none", "ram"),
    Mount("host-2000-none", P2000, "none", "host"),
    Mount("live-L", DOTL, "none", "live"),
    Mount("live-u", DOTU, "none", "live"),
    Mount("live-2000", P2000, "none", "live"),
]
CLAIMS = [(m.name, name, want) for m in MOUNTS for name in CHECKS if (want := outcome_wanted(name, m))]

pytestmark = [
    pytest.mark.interop,
    pytest.mark.slow,
    pytest.mark.timeout(BOOT_SECONDS_MAX + 60),
    pytest.mark.skipif(bool(uml.missing()), reason=uml.missing()),
]


@dataclass
class Told:
    """What the guest said: (mount, check) -> result, and the digests of what it left behind."""

    results: dict[tuple[str, str], str]
    kept: dict[str, dict[str, str]]
    output: str
    url: str
    directory: Path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    directory = tmp_path_factory.mktemp("export")
    work = tmp_path_factory.mktemp("work")
    (directory / "many").mkdir()
    for i in range(MANY):
        (directory / f"many/f{i:04}").touch()
    repository_at(work / "git")
    (work / "plan").write_text(json.dumps([asdict(m) for m in MOUNTS]))
    argv = [sys.executable, str(HERE / "serve_tree.py"), str(directory)]
    with servers.start(argv, listen="9p://127.0.0.1:0") as server:
        with Blocking(f"{server.url}?aname=ram") as ram:
            ram.mkdir("/many")
            for i in range(MANY):
                ram.create(f"/many/f{i:04}").close()
        port = server.url.rpartition(":")[2]
        mounts = {m.name: options(m, port) for m in MOUNTS}
        setting = f"NINEP_GIT={work / 'git'} PYTHONPATH={HERE.parent}"
        command = f"{setting} {sys.executable} -m interop.guest_run {work / 'plan'}\n"
        outcome = uml.boot(mounts, command, seconds=BOOT_SECONDS_MAX)
        yield understood(outcome.output, server.url, directory)
        assert "Traceback" not in server.stderr(), server.stderr()
    shutil.rmtree(directory)


def options(m: Mount, port: str) -> str:
    access = "user" if m.dialect == DOTL else "any"
    return f"port={port},version={m.dialect},aname={m.tree},uname=root,access={access},msize=131072,cache={m.cache}"


def repository_at(path: Path) -> None:
    """A small git repository with some history."""
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", str(path)], check=True, timeout=20)
    for i in range(5):
        (path / f"{i}.txt").write_text(f"{i}\n" * 500)
        subprocess.run(["git", "-C", str(path), "add", "."], check=True, timeout=20)
        subprocess.run(["git", "-C", str(path), *who, "commit", "-q", "-m", f"{i}"], check=True, timeout=20)


def understood(output: str, url: str, directory: Path) -> Told:
    told = Told({}, {}, output, url, directory)
    for line in output.splitlines():
        if line.startswith('{"mount"'):
            said = json.loads(line)
            if "kept" in said:
                told.kept[said["mount"]] = said["kept"]
            else:
                told.results[said["mount"], said["check"]] = said["said"]
    return told


@pytest.mark.conformance(129)
@pytest.mark.feature("judge-v9fs")
@pytest.mark.parametrize(("mount", "check", "want"), CLAIMS, ids=[f"{m}-{c}" for m, c, _ in CLAIMS])
def test_the_kernels_client(told: Told, mount: str, check: str, want: str) -> None:
    assert told.results.get((mount, check), told.output[-3000:]) == want


@pytest.mark.conformance(129)
@pytest.mark.feature("judge-v9fs")
@pytest.mark.parametrize("mount", [m.name for m in MOUNTS if m.tree != "live"])
def test_what_the_guest_wrote_is_what_the_host_has(told: Told, mount: str) -> None:
    tree = mount.partition("-")[0]
    kept = told.kept[mount]
    assert len(kept) >= 4
    if tree == "host":
        found = {path: (told.directory / path).read_bytes() for path in kept}
    else:
        with Blocking(f"{told.url}?aname=ram") as ram:
            found = {path: ram.read("/" + path) for path in kept}
    assert {path: hashlib.sha256(data).hexdigest() for path, data in found.items()} == kept


@pytest.mark.conformance(129)
@pytest.mark.feature("judge-v9fs")
def test_the_guest_mounts_and_unmounts_everything(told: Told) -> None:
    assert "cannot mount" not in told.output
    assert "cannot unmount" not in told.output


@pytest.mark.conformance(129)
@pytest.mark.feature("judge-v9fs")
def test_the_oldest_dialect_changes_no_owner(told: Told) -> None:
    assert told.results["host-2000-none", "chown_says_nothing"] == "works"
    assert (told.directory / "host-2000-none-chown_says_nothing/file").stat().st_uid == 0
