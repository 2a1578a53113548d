"""./run: what a fresh user types first.  The demo is started twice, and interrupted; nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers

ROOT = Path(__file__).resolve().parent.parent
RUN = str(ROOT / "run")
FIRST_OUTPUT_SECONDS_MAX = 4 * 2.0  # of the second start: a bound on liveness, four times what a user should wait
DEMO_SECONDS_MAX = 60.0
STEPS = ("ls n9/dev", "cat counter.py", "echo add 3 >counter/ctl", "ninep serve host:project", "cat project/moved")
STEPS_WITHOUT_FUSE = ("ninep ls /dev", "cat counter.py", "'add 3'", "ninep serve host:project", "cat project/note")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's: pytest's own are too long under xdist."""
    with tempfile.TemporaryDirectory(prefix="demo-test-", dir="/tmp") as name:
        yield Path(name)


class Demo:
    """One `./run demo`, with a temporary directory of its own to look into afterwards."""

    def __init__(self, directory: Path) -> None:
        self.tmp = directory
        self.tmp.mkdir()
        self.started = time.monotonic()
        self.first_output_seconds = 0.0
        # A mark in the environment finds whatever it started, in whatever session.
        self.mark = f"DEMO_OF={directory}"
        env = {**os.environ, "TMPDIR": str(directory), "DEMO_OF": str(directory), "NINEP_VENV": venv()}
        self.process = subprocess.Popen(
            [RUN, "demo"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
            preexec_fn=hear_interrupts,
        )
        self.said = b""

    def read_until(self, word: str) -> None:
        """Blocks until the demo has said this; TimeoutError."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        ended = False

        def said() -> bool:
            nonlocal ended
            assert not ended or word.encode() in self.said, f"ended without saying {word}:\n{self.said.decode()}"
            ended = self.process.poll() is not None  # and once more after that: what it said last
            return self.take() and word.encode() in self.said

        servers.wait_until(said, f"the demo to say {word}", 60)

    def take(self) -> bool:
        assert self.process.stdout is not None
        while data := self.process.stdout.read(65536):
            self.first_output_seconds = self.first_output_seconds or time.monotonic() - self.started
            self.said += data
        return True

    def finish(self) -> tuple[int, str]:
        """(exit code, everything it said)."""
        self.read_until("")
        servers.wait_until(lambda: self.take() and self.process.poll() is not None, "the demo to end", DEMO_SECONDS_MAX)
        self.take()
        return self.process.returncode, self.said.decode()

    def left(self) -> list[str]:
        """What is still mounted, still running or still lying about."""
        mounts = [f"mounted: {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines()
                  if str(self.tmp) in line]  # fmt: skip
        return mounts + [f"running: {pid}" for pid in self.running()] + [f"left: {p}" for p in self.tmp.iterdir()]

    def running(self) -> list[int]:
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in environ.read_bytes().split(b"\0"):
                    found.append(int(environ.parent.name))
            except OSError:
                pass
        return found

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.running():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def hear_interrupts() -> None:
    """A parallel run of the tests ignores SIGINT, and what it starts would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def venv() -> str:
    """The environment that runs the tests: it is set up, or set up again once if ./run has changed."""
    return os.environ.get("NINEP_VENV") or str(Path(sys.prefix))


def can_fuse() -> bool:
    return os.access("/dev/fuse", os.R_OK | os.W_OK) and os.geteuid() == 0


@pytest.mark.feature("run-demo")
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_shows_the_main_job_twice_and_leaves_nothing(short_path: Path) -> None:
    for turn in (1, 2):
        with Demo(short_path / str(turn)) as demo:
            code, said = demo.finish()
            assert code == 0, said
            at = 0
            for step in STEPS if can_fuse() else STEPS_WITHOUT_FUSE:
                at = said.find(step, at)
                assert at >= 0, f"{step} is not shown, or not in this order:\n{said}"
            assert "Traceback" not in said
            assert demo.left() == []
    assert demo.first_output_seconds < FIRST_OUTPUT_SECONDS_MAX


@pytest.mark.feature("run-demo")
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("step", ["n9/dev/snarf", "counter/value", "project.sock", "grep -rn three"])
def test_ctrl_c_in_the_middle_of_the_demo_leaves_nothing(step: str, short_path: Path, needs_fuse: None) -> None:
    with Demo(short_path / "demo") as demo:
        demo.read_until(step)
        os.killpg(demo.process.pid, signal.SIGINT)  # as a terminal does: everybody in the foreground gets it
        code, said = demo.finish()
        assert code == 130, said
        assert "Traceback" not in said
        assert demo.left() == []


@pytest.mark.feature("run-test")
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_run_test_takes_what_pytest_takes_and_gives_its_exit_code(tmp_path: Path) -> None:
    good, bad = tmp_path / "test_good.py", tmp_path / "test_bad.py"
    good.write_text("def test_a(): pass\n")
    bad.write_text("def test_b(): assert 1 == 2\n")

    def run_test(*args: str) -> subprocess.CompletedProcess[str]:
        command = [RUN, "test", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *args]
        env = {**os.environ, "NINEP_VENV": venv()}
        return subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, check=False)

    passed = run_test(str(good))
    assert (passed.returncode, "1 passed" in passed.stdout) == (0, True), passed
    failed = run_test(str(bad), str(good))
    assert (failed.returncode, "1 failed, 1 passed" in failed.stdout) == (1, True), failed


@pytest.mark.feature("run-test")
def test_run_help_names_every_command_and_an_unknown_one_is_refused() -> None:
    told = subprocess.run([RUN, "help"], capture_output=True, text=True, timeout=20, check=True)
    for command in ("demo", "test", "ninep", "ninepd", "bench", "python", "setup", "help"):
        assert f"./run {command}" in told.stdout
    refused = subprocess.run([RUN, "tset"], capture_output=True, text=True, timeout=20, check=False)
    assert refused.returncode == 2
    assert "no such command: tset" in refused.stderr


@pytest.mark.feature("bench")
@pytest.mark.slow
def test_the_bench_prints_its_table(tmp_path: Path) -> None:
    results = (ROOT / "bench/RESULTS.md").read_bytes()
    command = [sys.executable, "-m", "bench", "codec", "--rounds", "1", "--dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Measured\n")
    assert "\n## Messages\n" in done.stdout
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| codec: ")]
    assert len(rows) > 20
    assert all(float(row[3]) > 0 for row in rows)
    assert list(tmp_path.iterdir()) == []
    assert (ROOT / "bench/RESULTS.md").read_bytes() == results, "only --write writes it"
    wrong = subprocess.run([*command[:3], "codecs"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert wrong.returncode == 2
    assert "no such part: codecs" in wrong.stderr
