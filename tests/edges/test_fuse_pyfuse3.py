"""What only the pyfuse3 engine has to show: its watchdog, and what it says where it cannot serve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuse_mounts import Mount, serving

from ninep.edges import pyfuse3_engine
from ninep.proto import errors as E

SIGNAL_SECONDS_MAX = 4 * 0.25


def parked(mount: Mount, count: int) -> None:
    deadline = time.monotonic() + 20
    while mount.ask("live parked") != str(count):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.feature("fuse-pyfuse3")
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


@pytest.mark.feature("fuse-pyfuse3")
def test_without_pyfuse3_the_refusal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyfuse3", None)
    with pytest.raises(E.Ehost, match=r"not supported on this host: pyfuse3 \(pip install"):
        pyfuse3_engine.check_installed()
