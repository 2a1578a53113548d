"""The FUSE edge on synthetic files: state files are never torn, ctl files take messages, streams park and wake."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from compat import READERS, WRITERS
from fuse_mounts import Mount, run, serving, shell

SIGNAL_SECONDS_MAX = 4 * 0.25  # a signal ends a parked read within 250 ms; four times that on a loaded machine


@pytest.fixture(scope="module")
def clockwork(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Mount]:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        pytest.skip(f"needs /dev/fuse: {e.strerror}")
    with serving("clockwork", tmp_path_factory.mktemp("clockwork")) as mount:
        yield mount


@contextmanager
def looked_at(path: Path) -> Iterator[None]:
    """Somebody else stats and reads the file all the while."""
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            os.stat(path)
            with open(path, "rb") as f:
                f.read(10)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def check_whole(data: bytes) -> None:
    """A rendering of `state`: two equal lines and an end that agrees with them."""
    first, second, end = data.split(b"\n")[:3]
    assert first == second
    assert data.endswith(b"end %s\n" % first.split(b" ")[0])
    assert data == b"%s\n%s\n%s\n" % (first, second, end)


@pytest.mark.feature("fuse-state-files", "fuse-compat-matrix")
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_ever_sees_a_torn_or_empty_state_file(
    clockwork: Mount, reader: str, needs_tool: Callable[[str], str]
) -> None:
    for tool in {"busybox", "rsync"} & set(reader.split()):
        needs_tool(tool)
    f = clockwork.dir / "state"
    command = READERS[reader].format(f=f, python=sys.executable)
    with looked_at(f):
        for _ in range(8):
            check_whole(run("sh", "-c", command).stdout)


@pytest.mark.feature("fuse-state-files")
def test_the_size_that_a_descriptor_tells_is_the_size_of_what_it_reads(clockwork: Mount) -> None:
    f = clockwork.dir / "state"
    inodes = set()
    with looked_at(f):
        for _ in range(200):
            fd = os.open(f, os.O_RDONLY)
            try:
                st = os.fstat(fd)
                data = os.read(fd, 1 << 20)
            finally:
                os.close(fd)
            assert len(data) == st.st_size > 0
            check_whole(data)
            inodes.add(st.st_ino)
    assert len(inodes) == 1


def test_a_state_file_larger_than_a_read_is_of_one_piece(clockwork: Mount) -> None:
    with looked_at(clockwork.dir / "big"):
        lines = set(shell(f"dd if={clockwork.dir}/big bs=8192 status=none").splitlines())
    assert len(lines) == 1


@pytest.mark.feature("fuse-ctl-writes", "fuse-compat-matrix")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_line_reaches_a_ctl_once_however_it_is_written(
    clockwork: Mount, writer: str, tmp_path: Path, needs_tool: Callable[[str], str]
) -> None:
    for tool in {"busybox"} & set(writer.split()):
        needs_tool(tool)
    before = (clockwork.dir / "log").read_text()
    command = WRITERS[writer].format(f=clockwork.dir / "ctl", o=tmp_path / "line", word="this", python=sys.executable)
    done = run("bash", "-c", command)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (clockwork.dir / "log").read_text() == before + "this\n"


@pytest.mark.feature("fuse-ctl-writes")
def test_two_lines_of_one_write_are_two_commands(clockwork: Mount) -> None:
    before = (clockwork.dir / "log").read_text()
    shell(f"printf 'say two\\nsay lines\\n' > {clockwork.dir}/ctl")
    assert (clockwork.dir / "log").read_text() == before + "two\nlines\n"


@pytest.mark.feature("fuse-ctl-writes")
def test_a_bad_line_is_an_error_of_the_write_and_does_nothing(clockwork: Mount) -> None:
    before = (clockwork.dir / "log").read_text()
    with open(clockwork.dir / "ctl", "wb", buffering=0) as f, pytest.raises(OSError, match="Invalid argument"):
        f.write(b"say this\nnonsense\n")
    assert run("sh", "-c", f"echo nonsense > {clockwork.dir}/ctl").returncode != 0
    assert (clockwork.dir / "log").read_text() == before


@pytest.mark.feature("fuse-ctl-writes")
def test_one_write_of_a_megabyte_arrives_as_one_message_or_is_refused_whole(clockwork: Mount) -> None:
    fd = os.open(clockwork.dir / "ctl", os.O_WRONLY)
    try:
        with pytest.raises(OSError):
            os.write(fd, b"say " + b"x" * (1 << 20) + b"\n")
        assert os.write(fd, b"# comment\n" * 6000) == 60_000
    finally:
        os.close(fd)


@pytest.mark.feature("fuse-ctl-writes")
def test_an_editor_saves_a_document_by_renaming_a_new_file_onto_it(clockwork: Mount) -> None:
    d = clockwork.dir
    (d / "doc").write_text("plain\n")
    assert (d / "doc").read_text() == "plain\n"
    shell(f"echo edited > {d}/.doc.swp; mv {d}/.doc.swp {d}/doc")
    assert (d / "doc").read_text() == "edited\n"
    shell(f"sed -i s/edited/again/ {d}/doc")
    assert (d / "doc").read_text() == "again\n"


def parked(mount: Mount, count: int) -> None:
    """Until so many operations are parked in the server."""
    deadline = time.monotonic() + 60
    while (now := int(mount.ask("live parked"))) != count:
        assert time.monotonic() < deadline, now
        time.sleep(0.01)


@pytest.mark.feature("fuse-streams", "fuse-interrupt")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_parked_read_at_once(clockwork: Mount, number: signal.Signals) -> None:
    reader = subprocess.Popen(["cat", clockwork.dir / "event"], stdout=subprocess.DEVNULL)
    try:
        parked(clockwork, 1)
        sent = time.monotonic()
        reader.send_signal(number)
        assert reader.wait(20) == -number
        assert time.monotonic() - sent < SIGNAL_SECONDS_MAX
        parked(clockwork, 0)
    finally:
        reader.kill()
        reader.wait()


@pytest.mark.feature("fuse-streams", "fuse-interrupt")
def test_a_handled_signal_interrupts_a_read_and_nothing_is_lost(clockwork: Mount) -> None:
    script = (
        "import os,signal,sys\n"
        "signal.signal(signal.SIGALRM, lambda *a: os.write(2, b'tick\\n'))\n"
        "signal.setitimer(signal.ITIMER_REAL, .05, .05)\n"
        "sys.stdout.buffer.write(os.read(os.open(sys.argv[1],0), 100))\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", script, clockwork.dir / "event"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert reader.stderr is not None
        for _ in range(5):
            assert reader.stderr.readline() == b"tick\n"
        shell(f"echo say whole > {clockwork.dir}/ctl")
        assert reader.communicate(timeout=20)[0] == b"whole\n"
    finally:
        reader.kill()
        reader.communicate()


@pytest.mark.feature("fuse-streams")
def test_a_stream_keeps_message_boundaries_and_wakes_its_reader(clockwork: Mount) -> None:
    fd = os.open(clockwork.dir / "event", os.O_RDONLY)
    try:
        shell(f"printf 'say one\\nsay two\\n' > {clockwork.dir}/ctl")
        assert os.read(fd, 1000) == b"one\n"
        assert os.read(fd, 2) == b"tw"
        assert os.read(fd, 1000) == b"o\n"
        assert os.fstat(fd).st_size == 0
    finally:
        os.close(fd)


@pytest.mark.feature("fuse-streams")
def test_fstat_works_on_a_descriptor_whose_read_is_parked(clockwork: Mount) -> None:
    fd = os.open(clockwork.dir / "event", os.O_RDONLY)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(os.read(fd, 100)))
    thread.start()
    try:
        parked(clockwork, 1)
        assert os.fstat(fd).st_size == 0
        assert os.stat(clockwork.dir / "steady").st_size == 16
    finally:
        shell(f"echo say free > {clockwork.dir}/ctl")
        thread.join(20)
        os.close(fd)
    assert got == [b"free\n"]


@pytest.mark.feature("fuse-streams")
def test_a_nonblocking_stream_says_try_again(clockwork: Mount) -> None:
    fd = os.open(clockwork.dir / "event", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(BlockingIOError):
            os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.feature("fuse-poll")
@pytest.mark.parametrize("way", ["poll", "select", "epoll"])
def test_poll_wakes_when_a_message_comes(clockwork: Mount, way: str) -> None:
    fd = os.open(clockwork.dir / "event", os.O_RDONLY)
    epoll = select.epoll()
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if way == "epoll":
            epoll.register(fd, select.EPOLLIN)
        assert poll.poll(0) == []
        speaker = threading.Thread(target=lambda: (time.sleep(0.2), shell(f"echo say now > {clockwork.dir}/ctl")))
        asked = time.monotonic()
        speaker.start()
        woken: list[object] = []
        if way == "poll":
            woken = list(poll.poll(10_000))
        elif way == "select":
            woken = list(select.select([fd], [], [], 10)[0])
        else:
            woken = list(epoll.poll(10))
        waited = time.monotonic() - asked
        speaker.join()
        assert woken
        assert 0.15 < waited < 5
        assert os.read(fd, 100) == b"now\n"
        assert poll.poll(0) == []
    finally:
        epoll.close()
        os.close(fd)


def hundred_stats(mount: Mount) -> float:
    """How many seconds they take."""
    started = time.monotonic()
    for _ in range(100):
        assert os.stat(mount.dir / "steady").st_size == 16
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.feature("fuse-parked-reads")
@pytest.mark.timeout(150)
def test_five_thousand_parked_reads_leave_stat_answering(tmp_path: Path, needs_fuse: None) -> None:
    script = (
        "import os,sys,threading\n"
        "threading.stack_size(65536)\n"
        "fd=os.open(sys.argv[1],0)\n"
        "for n in range(1000): threading.Thread(target=os.read,args=(os.open(sys.argv[1],0),10),daemon=True).start()\n"
        "sys.stdin.read()\n"
        "os._exit(0)\n"
    )
    with serving("clockwork", tmp_path) as mount:
        readers = [
            subprocess.Popen([sys.executable, "-c", script, mount.dir / "event"], stdin=subprocess.PIPE)
            for _ in range(5)
        ]
        try:
            parked(mount, 5000)
            # A server that is slow with so many is slow every time; a machine that is busy is not.
            deadline = time.monotonic() + 30
            while (taken := hundred_stats(mount)) >= 4 * 0.5:
                assert time.monotonic() < deadline, taken
            assert (mount.dir / "steady").read_text() == "always the same\n"
            for reader in readers:
                reader.kill()
            for reader in readers:
                reader.wait(20)
            parked(mount, 0)
        finally:
            for reader in readers:
                reader.kill()
                reader.communicate()
        assert mount.end() == "ended {}"
