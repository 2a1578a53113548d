"""Server processes for tests: started with a deadline, ended in any case, their standard error kept."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

READY_SECONDS_MAX = 15.0
END_SECONDS_MAX = 10.0


class ServerFailed(AssertionError):
    """The server ended or stayed silent; says what it wrote to its standard error."""


def program(name: str) -> str:
    """The path of a program of this checkout: ninep, ninepd, mount.fuse.ninep."""
    return str(Path(sys.executable).with_name(name))


@dataclass
class Server:
    """A running server.  url is its first address, as given or as it printed it."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""
    mountpoint: str = ""
    _dead: bool = field(default=False, repr=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    def stderr(self) -> str:
        """What it wrote to its standard error so far."""
        return self.log.read_text(errors="replace")

    def stop(self, sig: int = signal.SIGTERM, seconds: float = END_SECONDS_MAX) -> int:
        """Send a signal and wait; kills what does not end.  Returns the exit code (negative: the signal)."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ServerFailed(f"did not end within {seconds} s of signal {sig}:\n{self.stderr()}") from None


def wait_until(done: Callable[[], bool], what: str, seconds: float = READY_SECONDS_MAX) -> None:
    """Poll until done() is true; TimeoutError names what never came."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.005)


def _split(url: str) -> tuple[str, str, int]:
    """(socket path or "", host, port) of a URL.  urllib knows no scheme that begins with a digit."""
    scheme, _, rest = url.partition("://")
    parts = urlsplit("x://" + rest)
    if scheme.endswith("+unix"):
        return unquote(parts.path), "", 0
    return "", parts.hostname or "127.0.0.1", 564 if parts.port is None else parts.port


def accepts(url: str) -> bool:
    """True when somebody accepts connections at a 9p, 9p+unix or ninep URL."""
    path, host, port = _split(url)
    with socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        try:
            s.connect(path or (host, port))
        except OSError:
            return False
    return True


def is_mounted(point: str) -> bool:
    """True when something is mounted at exactly this path; asks the kernel's table and never the mount itself."""
    escaped = point.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    with open("/proc/self/mountinfo", errors="surrogateescape") as f:
        return any(line.split(" ")[4] == escaped for line in f)


def unmount(point: str) -> None:
    """Detach whatever is mounted there, without ever touching it."""
    while is_mounted(point):
        if subprocess.run(["umount", "-l", point], capture_output=True, timeout=20, check=False).returncode != 0:
            subprocess.run(["fusermount3", "-u", "-z", point], capture_output=True, timeout=20, check=True)


_URL = re.compile(r"\b(?:9p|9p\+unix|ninep)://[^\s'\"<>]+")


def _is_open_ended(url: str) -> bool:
    """True when the server picks the port, so that only it knows the address."""
    path, _, port = _split(url)
    return not path and port == 0


@contextmanager
def start(
    argv: list[str], *, listen: str = "", mountpoint: str = "", env: dict[str, str] | None = None, **popen: object
) -> Iterator[Server]:
    """Run a server until the block ends.  Ready means: `listen` (a URL; port 0 is read back from what it prints)
    accepts, and `mountpoint` is mounted; whichever was named.  Ends it with SIGTERM, then SIGKILL, and unmounts."""
    with tempfile.NamedTemporaryFile(prefix="ninep-server-", suffix=".log") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})}, **popen
        )  # type: ignore[call-overload]  # the rest is for Popen to check
        server = Server(process, Path(log.name), listen, mountpoint)

        def ready() -> bool:
            if process.poll() is not None:
                raise ServerFailed(f"{argv} ended with {process.returncode}:\n{server.stderr()}")
            if listen and _is_open_ended(listen):
                found = [url for url in _URL.findall(server.stderr()) if not _is_open_ended(url)]
                if not found:
                    return False
                server.url = found[0]
            return (not listen or accepts(server.url)) and (not mountpoint or is_mounted(mountpoint))

        try:
            try:
                wait_until(ready, f"{argv[0]} to be ready")
            except TimeoutError as e:
                raise ServerFailed(f"{e}:\n{server.stderr()}") from None
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if mountpoint:
                unmount(mountpoint)


@contextmanager
def start_ninep(*args: str, **options: object) -> Iterator[Server]:
    """Run `ninep ARGS` (or `ninepd ARGS`, when that is the first argument) until the block ends.  The addresses behind
    --listen, and the directories behind --mount or of `ninep mount WHAT DIR`, are waited for."""
    name, rest = (args[0], args[1:]) if args and args[0] == "ninepd" else ("ninep", args)
    listen = next((b for a, b in pairwise(rest) if a == "--listen"), "")
    mountpoint = next((b for a, b in pairwise(rest) if a == "--mount"), "")
    if name == "ninep" and rest[0] == "mount":
        mountpoint = rest[2]
    with start([program(name), *rest], listen=listen, mountpoint=mountpoint, **options) as server:  # type: ignore[arg-type]
        yield server


@contextmanager
def serving(tree: str, *options: str) -> Iterator[Server]:
    """`ninep serve TREE` on a unix socket of its own; .url is its address."""
    with tempfile.TemporaryDirectory(prefix="ninep-") as directory:
        with start_ninep("serve", tree, *options, "--listen", f"9p+unix://{directory}/s") as server:
            yield server
