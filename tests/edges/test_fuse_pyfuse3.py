"""What only the pyfuse3 engine has to show: its watchdog, its places, and what it says where it cannot serve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuse_mounts import Mount, run, serving, shell

from ninep.edges import pyfuse3_engine
from ninep.proto import errors as E

SIGNAL_SECONDS_MAX = 4 * 0.25


def parked(mount: Mount, count: int) -> None:
    deadline = time.monotonic() + 20
    while mount.ask("live parked") != str(count):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.feature("pyfuse3-engine")
def test_a_signal_ends_the_one_reader_it_is_for_also_on_a_descriptor_passed_on(
    tmp_path: Path, needs_pyfuse3: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NINEP_TEST_ENGINE", "pyfuse3")
    with serving("clockwork", tmp_path) as mount:
        fd = os.open(mount.dir / "event", os.O_RDONLY)  # opened here, read by a child
        readers = [subprocess.Popen(["cat"], stdin=fd), subprocess.Popen(["cat", mount.dir / "event"])]
        try:
            parked(mount, 2)
            for left, reader in ((1, readers[0]), (0, readers[1])):
                sent = time.monotonic()
                reader.send_signal(signal.SIGTERM)
                assert reader.wait(20) == -signal.SIGTERM
                assert time.monotonic() - sent < SIGNAL_SECONDS_MAX
                parked(mount, left)
        finally:
            os.close(fd)
            for reader in readers:
                reader.kill()
                reader.wait()


@pytest.mark.feature("pyfuse3-engine")
def test_without_the_watchdog_a_signal_waits_for_the_end_of_the_server(
    tmp_path: Path, needs_pyfuse3: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: it is the watchdog that ends the reads, and nothing else."""
    monkeypatch.setenv("NINEP_TEST_ENGINE", "pyfuse3")
    monkeypatch.setenv("NINEP_TEST_NO_WATCHDOG", "1")
    with serving("clockwork", tmp_path) as mount:
        reader = subprocess.Popen(["cat", mount.dir / "event"])
        try:
            parked(mount, 1)
            reader.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                reader.wait(2)
            assert mount.ask("live parked") == "1"
            assert mount.end() == "ended {}"
            assert reader.wait(20) == -signal.SIGTERM
        finally:
            mount.process.kill()  # whatever failed: only then can the reader end
            reader.kill()
            reader.wait()


@pytest.mark.feature("pyfuse3-engine")
@pytest.mark.sec(60)
@pytest.mark.parametrize("rule", ["contain", "all"])
def test_a_link_is_judged_by_its_place_on_this_engine_too(
    tmp_path: Path, needs_pyfuse3: None, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """One link in two places is one inode of the host's.  With "all", the control, every one of them leads out."""
    monkeypatch.setenv("NINEP_TEST_ENGINE", "pyfuse3")
    tree, outside = tmp_path / "tree", tmp_path / "secret"
    (tree / "d/e").mkdir(parents=True)
    (tree / "secret").write_text("inside\n")
    outside.write_text("local secret\n")
    (tree / "absolute").symlink_to(outside)
    (tree / "d/l").symlink_to("../secret")
    os.link(tree / "d/l", tree / "l", follow_symlinks=False)
    (tree / "d/e/l").symlink_to("../../secret")
    led_out = b"" if rule == "contain" else b"local secret\n"
    with serving(f"host:{tree}", tmp_path, f"symlinks={rule}") as mount:
        for _ in range(2):  # before and after a listing, which tells the kernel of the same places
            assert run("cat", mount.dir / "d/l").stdout == b"inside\n"
            assert run("cat", mount.dir / "d/e/l").stdout == b"inside\n"
            for name in ("l", "absolute"):
                read = run("cat", mount.dir / name)
                assert read.stdout == led_out
                assert rule == "all" or b"Operation not permitted" in read.stderr
            shell(f"ls -lR {mount.dir} >/dev/null 2>&1 || :")
        numbers = {os.lstat(mount.dir / name).st_ino for name in ("l", "d/l")}
        assert len(numbers) == 1
        shell(f"mv {mount.dir}/d/e {mount.dir}/e")
        (tree / "e/l").unlink()
        (tree / "e/l").symlink_to("../../secret")
        assert run("cat", mount.dir / "e/l").stdout == led_out
        assert mount.end() == "ended {}"


@pytest.mark.feature("pyfuse3-engine")
def test_without_pyfuse3_the_refusal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyfuse3", None)
    with pytest.raises(E.Ehost, match=r"not supported on this host: pyfuse3 \(pip install"):
        pyfuse3_engine.check_installed()
