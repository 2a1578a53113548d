"""Real mounts for tests: the server is always another process, and whatever happens the mount is taken away."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

from servers import unmount

ANSWER_SECONDS_MAX = 20.0
PROGRAM = str(Path(__file__).with_name("fuse_server.py"))


@dataclass
class Mount:
    """A running server and the directories that it has mounted."""

    process: subprocess.Popen[str]
    dirs: list[Path]
    lines: Queue[str] = field(default_factory=Queue)

    @property
    def dir(self) -> Path:
        return self.dirs[0]

    def line(self) -> str:
        """The next line that the server prints.  Fails when none comes."""
        try:
            return self.lines.get(timeout=ANSWER_SECONDS_MAX)
        except Empty:
            raise AssertionError(f"the server said nothing (exit code {self.process.poll()})") from None

    def ask(self, question: str) -> str:
        """One question of fuse_server.py, and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.line()

    def cpu_seconds(self) -> float:
        return float(self.ask("cpu"))

    def end(self) -> str:
        """SIGTERM; what it says at its end."""
        self.process.terminate()
        line = self.line()
        self.process.wait(ANSWER_SECONDS_MAX)
        return line


@contextmanager
def serving(tree: str, base: Path, *options: str, count: int = 1, prefix: tuple[str, ...] = ()) -> Iterator[Mount]:
    """Serve a tree of fuse_server.py on `count` new directories below `base`.  `prefix` runs before the program."""
    dirs = [base / f"mount{n}" for n in range(count)]
    for directory in dirs:
        directory.mkdir(exist_ok=True)
    argv = [*prefix, sys.executable, PROGRAM, tree, *map(str, dirs), *options]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    mount = Mount(process, dirs)
    pump = threading.Thread(target=_pump, args=(process, mount.lines), daemon=True)
    pump.start()
    try:
        assert mount.line() == "ready"
        yield mount
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(ANSWER_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for directory in dirs:
            unmount(str(directory))
        pump.join(ANSWER_SECONDS_MAX)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


def _pump(process: subprocess.Popen[str], lines: Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip("\n"))
    lines.put(f"exit {process.wait()}")


def run(*argv: str | Path, seconds: float = 20, **options: object) -> subprocess.CompletedProcess[bytes]:
    """A command that must end in time; its output is kept."""
    return subprocess.run([str(a) for a in argv], capture_output=True, timeout=seconds, **options)  # type: ignore[call-overload,no-any-return]  # the rest is for subprocess to check


def shell(script: str, seconds: float = 20) -> str:
    """What a shell script prints.  It must end in time, with 0."""
    done = run("sh", "-euc", script, seconds=seconds)
    assert done.returncode == 0, (script, done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="surrogateescape")
