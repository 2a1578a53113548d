"""A guest whose kernel mounts 9P by itself: Debian's user-mode-linux, booted in two or three seconds.

Its root is the host's, through hostfs; it reaches the host's 127.0.0.1 through a tap of its own.  Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MEMORY = "384M"


@dataclass
class Outcome:
    """What a guest left: the exit code of its command (None: it died), its output, its kernel's messages."""

    code: int | None
    output: str
    dmesg: str


def missing() -> str:
    """Why no guest can be booted here; empty if one can."""
    for program in ("linux.uml", "busybox", "gcc", "ip"):
        if shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            return f"needs the program {program}"
    if os.geteuid() != 0:
        return "needs root, for a tap device"
    return "" if os.access("/dev/net/tun", os.R_OK | os.W_OK) else "needs /dev/net/tun"


def boot(mounts: dict[str, str], command: str, *, seconds: float) -> Outcome:
    """Boot, mount each name of `mounts` (with its options, port= among them) on /run/m/NAME, run the shell command."""
    with tempfile.TemporaryDirectory(prefix="ninep-uml-") as name, _tap() as number:
        directory = Path(name)
        (directory / "plan").write_text("".join(f"{k} {v}\n" for k, v in mounts.items()))
        (directory / "command").write_text(command)
        (directory / "net").write_text(f"10.191.{number}\n")
        console = _run(directory, number, seconds)
        code = _text(directory / "code").strip()
        output = _text(directory / "output") + ("" if code else f"\nthe guest died:\n{console[-2000:]}")
        return Outcome(int(code) if code else None, output, _text(directory / "dmesg"))


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _run(directory: Path, number: int, seconds: float) -> str:
    """The guest's console.  Its processes are one process group, ended in any case."""
    argv = ["linux.uml", f"mem={MEMORY}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]
    argv += [f"init={HERE / 'uml_init.sh'}", "quiet", "con0=null,fd:1", "con=null", "ssl=null"]
    argv += [f"vec0:transport=tap,ifname={_name(number)},depth=128,gro=1"]
    argv += [f"umid={directory.name}", f"uml_dir={directory}", f"NINEP_DIR={directory}"]
    env = {**os.environ, "LD_PRELOAD": str(_shim()), "TMPDIR": "/dev/shm"}
    with (directory / "console").open("wb") as console:
        guest = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=env, start_new_session=True
        )
        try:
            guest.wait(seconds)
        except subprocess.TimeoutExpired:
            console.write(f"\nended after {seconds} s".encode())
        finally:
            try:
                os.killpg(guest.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            guest.wait()
    return _text(directory / "console")


def _shim() -> Path:
    """umlshim.c, compiled once for each version of it."""
    source = HERE / "umlshim.c"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ninep-test"
    shim = cache / "umlshim.so"
    if not shim.exists() or shim.stat().st_mtime < source.stat().st_mtime:
        cache.mkdir(parents=True, exist_ok=True)
        fresh = cache / f"umlshim.{os.getpid()}"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", fresh, source], check=True, timeout=60)
        fresh.replace(shim)
    return shim


def _name(number: int) -> str:
    return f"n9uml{number}"


@contextmanager
def _tap() -> Iterator[int]:
    """A tap device with a number, and so a network, that no other guest has."""
    start = os.getpid() % 250
    for step in range(250):
        number = (start + step) % 250 + 1
        if _ip("tuntap", "add", _name(number), "mode", "tap", "vnet_hdr"):
            break
    else:
        raise RuntimeError("no tap device to be had")
    name, net = _name(number), f"10.191.{number}"
    try:
        ok = _ip("addr", "add", f"{net}.1/30", "dev", name) and _ip("link", "set", name, "up")
        # The guest's network driver loses a wake-up now and then: a retransmission after 1 ms heals it.
        ok = ok and _ip("route", "replace", f"{net}.0/30", "dev", name, "src", f"{net}.1", "rto_min", "1ms")
        assert ok, "the tap cannot be configured"
        Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").write_text("1")
        yield number
    finally:
        _ip("link", "del", name)


def _ip(*args: str) -> bool:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    done = subprocess.run(["ip", *args], capture_output=True, timeout=20, check=False, env={**os.environ, "PATH": path})
    return done.returncode == 0
