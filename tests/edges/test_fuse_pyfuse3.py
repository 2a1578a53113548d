"""What only the pyfuse3 engine has to show: its watchdog, its places, and what it says where it cannot serve."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from fuse_mounts import Mount, run, serving, shell

from ninep.edges import fuse_mount, pyfuse3_engine, pyfuse3_engine_watch
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
@pytest.mark.slow
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
async def test_reads_of_a_process_end_together_whenever_they_were_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each thread would be looked at once for each batch, and a killed process would take seconds to end."""
    ended: set[int] = set()
    watch = pyfuse3_engine_watch.Watch(lambda key: ended.add(key), lambda: False)
    threads: list[int] = []
    monkeypatch.setattr(pyfuse3_engine_watch, "waiting_threads", lambda which: list(threads) if 7 in which else [])
    monkeypatch.setattr(pyfuse3_engine_watch, "is_wanted", lambda thread: False)
    for batch in range(50):
        for key in range(batch * 10, batch * 10 + 10):
            threads.append(1000 + key)
            watch.add(pyfuse3_engine_watch.Waiter(key, 0, 7, 0))
        watch.look()
    assert not ended
    monkeypatch.setattr(pyfuse3_engine_watch, "is_wanted", lambda thread: True)
    watch.look()
    assert ended == set(range(500))
    for key in ended:
        watch.drop(key)
    assert len(watch) == 0


@pytest.mark.feature("pyfuse3-engine")
def test_a_forced_unmount_is_an_end_like_any_other(
    tmp_path: Path, needs_pyfuse3: None, needs_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NINEP_TEST_ENGINE", "pyfuse3")
    with serving("clockwork", tmp_path) as mount:
        fuse_mount.unmount(str(mount.dir), force=True)
        assert mount.line() == "ended {}"
        assert mount.process.wait(20) == 0


@pytest.mark.feature("pyfuse3-engine")
@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EIO])
async def test_a_connection_that_the_kernel_aborts_ends_the_engine_and_another_error_is_told(
    needs_pyfuse3: None, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import pyfuse3

    async def main(**_: int) -> None:
        async with trio.open_nursery():
            raise OSError(number, "receiving")

    monkeypatch.setattr(pyfuse3, "main", main)
    mount = object.__new__(pyfuse3_engine.Pyfuse3Mount)
    mount._main_scope = trio.CancelScope()
    ended = trio.Event()
    if number == errno.EIO:
        with pytest.raises(ExceptionGroup):
            await mount._main(ended)
    else:
        await mount._main(ended)
    assert ended.is_set()


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
