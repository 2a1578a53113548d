"""The tests' own instruments, each seen to catch what it is for."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import leaks
import pytest
import servers
from stray_logs import StrayLogs


def test_the_leak_check_sees_a_descriptor_a_thread_and_a_child(tmp_path: Path) -> None:
    before = leaks.take(str(tmp_path))
    assert leaks.lost_between(before, leaks.take(str(tmp_path))) == []
    fd = os.open("/dev/null", os.O_RDONLY)
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="parked")
    thread.start()
    child = subprocess.Popen(["sleep", "60"])
    try:
        lost = " ".join(leaks.lost_between(before, leaks.take(str(tmp_path))))
        assert f"descriptor {fd} (/dev/null)" in lost
        assert "thread parked" in lost
        assert f"child process {child.pid} (" in lost
    finally:
        os.close(fd)
        go.set()
        thread.join()
        child.kill()
        child.wait()
    assert leaks.wait_for_baseline(before, str(tmp_path)) == []


def test_the_leak_check_sees_a_mount_of_this_test_only(tmp_path: Path, needs_root: None) -> None:
    point = tmp_path / "a dir"
    point.mkdir()
    before = leaks.take(str(tmp_path))
    subprocess.run(["mount", "-t", "tmpfs", "none", str(point)], check=True, timeout=10)
    try:
        assert servers.is_mounted(str(point))
        assert any("mount " in what for what in leaks.lost_between(before, leaks.take(str(tmp_path))))
        assert leaks.take(str(tmp_path / "elsewhere")).mounts == frozenset()
    finally:
        servers.unmount(str(point))
    assert not servers.is_mounted(str(point))


@pytest.mark.logs("the tide is low")
def test_a_warning_that_was_not_announced_is_a_complaint() -> None:
    with StrayLogs() as logs:
        logging.getLogger("ninep.somewhere").warning("the %s is low", "tide")
        logging.getLogger("ninep.somewhere").info("not worth a word")
    assert logs.complaints() == ["logged without announcement: WARNING ninep.somewhere: the tide is low"]
    logs.allow("tide")
    assert logs.complaints() == []
    logs.expect("never said")
    assert logs.complaints() == ["expected in the log, and not there: never said"]


def test_an_announced_warning_passes(checklogs: StrayLogs) -> None:
    checklogs.expect("announced")
    logging.getLogger("ninep").error("announced beforehand")


SERVER = """
import socket, sys
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
print(f"listening on 9p://127.0.0.1:{s.getsockname()[1]}", file=sys.stderr, flush=True)
while True: s.accept()
"""


def test_a_server_that_picks_its_port_is_found_and_ended() -> None:
    with servers.start([sys.executable, "-c", SERVER], listen="9p://127.0.0.1:0") as server:
        assert servers.accepts(server.url)
    assert server.process.returncode is not None
    assert not servers.accepts(server.url)


def test_a_server_that_dies_says_what_it_wrote() -> None:
    with pytest.raises(servers.ServerFailed, match="out of cheese"):
        with servers.start([sys.executable, "-c", "raise SystemExit('out of cheese')"], listen="9p://127.0.0.1:0"):
            pass


def test_a_unix_address_is_asked_by_connecting(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert not servers.accepts(f"9p+unix://{path}")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
        s.listen()
        assert servers.accepts(f"9p+unix://{path}")
