"""The main job, start to end, with real programs: every command is printed as a user would type it, then run.

Run by `./run demo`.  Everything lives in one temporary directory and is gone at the end, also after Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOME_BYTES_MAX = 90
SECONDS_MAX = 20.0  # no step takes so long; one that does has failed
BIN = Path(sys.executable).parent

COUNTER = '''\
from ninep import Dir, ctl, text

class Counter(Dir):
    """A counter: read value, write ctl."""
    n = 0

    @text()
    def value(self) -> str:
        return f"{self.n}\\n"

    @ctl
    def add(self, amount: int = 1) -> None:
        """add amount to the counter"""
        self.n += amount
'''


class Demo:
    """A shell session that prints itself."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.mounts: list[Path] = []
        self.servers: list[subprocess.Popen[bytes]] = []
        self.env = dict(os.environ, PATH=f"{BIN}:{os.environ['PATH']}", XDG_RUNTIME_DIR=str(home / "run"))
        self.env |= {"XDG_STATE_HOME": str(home / "state"), "NINEP_NODE": f"9p+unix://{home}/node.sock", "PS1": "$ "}
        self.env["NINEP_STATE"] = str(home / "state")
        self.bold, self.plain = ("\033[1m", "\033[0m") if _coloured() else ("", "")

    def say(self, text: str) -> None:
        print(f"\n{self.bold}# {text}{self.plain}", flush=True)

    def sh(self, command: str, *, fails: bool = False) -> str:
        """Run one command in the demo's directory, print it and what it prints.  SystemExit if it goes wrong."""
        print(f"$ {command}", flush=True)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.home,
            env=self.env,
            timeout=SECONDS_MAX,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout, end="", flush=True)
        if (done.returncode != 0) != fails:
            raise SystemExit(f"demo: the command above ended with {done.returncode}")
        return done.stdout

    def server(self, command: str, ready: Path) -> None:
        """Start a server in the background and wait until `ready` is there."""
        print(f"$ {command} &", flush=True)
        # Ctrl-C is for the foreground, as in a shell: it does not reach the server, nor come before close() knows it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=self.home, env=self.env)
            self.servers.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        deadline = time.monotonic() + SECONDS_MAX
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"demo: the server did not start: {command}")
            time.sleep(0.01)

    def mount(self, command: str, at: str) -> None:
        self.mounts.append(self.home / at)
        self.sh(command)

    def close(self) -> None:
        self._unmount()
        for process in self.servers:
            process.send_signal(signal.SIGTERM)
        for process in self.servers:
            try:
                process.wait(SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
        self._unmount()  # what a server mounted after all while it was being ended

    def _unmount(self) -> None:
        for at in reversed(self.mounts):
            if _is_mounted(at):
                subprocess.run([BIN / "ninep", "umount", at], env=self.env, timeout=SECONDS_MAX, check=False)


def main() -> int:
    home = _home()
    demo = Demo(home)
    print(f"Working in {home}; it is removed at the end.")
    has_fuse = _has_fuse()
    try:
        _node(demo, has_fuse)
        _own_server(demo, has_fuse)
        _host(demo, has_fuse)
        demo.say("Done. Everything above was ordinary files: unmount, stop the servers, remove the directory.")
    except KeyboardInterrupt:
        print("\ninterrupted")
        return 130
    finally:
        demo.close()
        left = [at for at in demo.mounts if _is_mounted(at)]
        if not left:
            shutil.rmtree(home, ignore_errors=True)
    if left:
        print(f"demo: still mounted: {left[0]}", file=sys.stderr)
        return 1
    return 0


def _home() -> Path:
    """A temporary directory in which a socket's name still fits the 107 bytes that unix(7) has for it."""
    home = tempfile.mkdtemp(prefix="ninep-demo-")
    if len(os.fsencode(home)) > HOME_BYTES_MAX:
        os.rmdir(home)
        home = tempfile.mkdtemp(prefix="ninep-demo-", dir="/tmp")
    return Path(home)


def _node(demo: Demo, has_fuse: bool) -> None:
    demo.say("A node: its devices are files, served over 9P and mounted by FUSE.")
    mount = " --mount n9" if has_fuse else ""
    if has_fuse:
        demo.mounts.append(demo.home / "n9")
        demo.sh("mkdir n9")
    demo.server(f"ninepd --no-node-socket --listen 9p+unix://{demo.home}/node.sock{mount}", demo.home / "node.sock")
    if not has_fuse:
        print("(no FUSE here: the same files through the client; `ninep doctor` says why)")
        demo.sh("ninep ls /dev && ninep cat /dev/sysname && echo cut | ninep write /dev/snarf && ninep cat /dev/snarf")
        return
    deadline = time.monotonic() + SECONDS_MAX
    while not _is_mounted(demo.home / "n9"):
        if time.monotonic() > deadline:
            raise SystemExit("demo: the node did not mount")
        time.sleep(0.01)
    demo.sh("ls n9/dev")
    demo.sh("cat n9/dev/sysname n9/dev/user")
    demo.sh("echo 'text for later' >n9/dev/snarf; cat n9/dev/snarf")
    demo.sh("cat n9/dev/.help | head -n 6")


def _own_server(demo: Demo, has_fuse: bool) -> None:
    demo.say("Your own file server, in fifteen lines.")
    (demo.home / "counter.py").write_text(COUNTER)
    demo.sh("cat counter.py")
    demo.server(
        f"ninep serve py:./counter.py:Counter --listen 9p+unix://{demo.home}/counter.sock", demo.home / "counter.sock"
    )
    if not has_fuse:
        url = f"9p+unix://{demo.home}/counter.sock"
        demo.sh(f"ninep write {url}//ctl 'add 3' && ninep cat {url}//value")
        return
    demo.sh("mkdir counter")
    demo.mount(f"ninep mount 9p+unix://{demo.home}/counter.sock counter", "counter")
    demo.sh("cat counter/value")
    demo.sh("echo add 3 >counter/ctl; echo add >counter/ctl; cat counter/value")
    demo.sh("cat counter/ctl")
    demo.sh("echo sub 3 >counter/ctl", fails=True)
    demo.sh(f"ninep write 9p+unix://{demo.home}/counter.sock//ctl 'sub 3'", fails=True)


def _host(demo: Demo, has_fuse: bool) -> None:
    demo.say("A directory of this machine, served over 9P and used from there.")
    demo.sh("mkdir project && echo 'hello from the host' >project/README")
    demo.server(f"ninep serve host:project --listen 9p+unix://{demo.home}/project.sock", demo.home / "project.sock")
    url = f"9p+unix://{demo.home}/project.sock"
    demo.sh(f"ninep ls {url} && ninep cat {url}//README")
    if not has_fuse:
        demo.sh(f"echo written | ninep write --create {url}//note && cat project/note")
        return
    demo.sh("mkdir far")
    demo.mount(f"ninep mount {url} far", "far")
    demo.sh("cd far && mkdir src && printf 'one\\ntwo\\n' >src/a && cp src/a src/b && ls -l src")
    demo.sh("cd far && sed -i s/two/three/ src/b")
    demo.sh("cd far && grep -rn three . && mv src/b moved && rm -r src && ls")
    demo.sh("cat project/moved")


def _has_fuse() -> bool:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        print(f"demo: /dev/fuse cannot be opened ({e.strerror}): showing everything through the 9P client instead")
        return False
    return os.geteuid() == 0 or shutil.which("fusermount3") is not None


def _is_mounted(at: Path) -> bool:
    name = str(at).replace(" ", "\\040")
    return any(line.split(" ")[4] == name for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


if __name__ == "__main__":
    sys.exit(main())
