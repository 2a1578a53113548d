"""ninep mount and umount, mount.fuse.ninep, and the line in fstab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import SECONDS_MAX, ninep, one_line, run
from servers import is_mounted, program, serving, unmount, wait_until

from ninep.cli.failure import from_error
from ninep.edges.pyfuse3_engine import LIMITS
from ninep.proto import errors as E

pytestmark = [pytest.mark.feature("cli-mount"), pytest.mark.usefixtures("needs_fuse"), pytest.mark.timeout(60)]


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "point"
    made.mkdir()
    yield made
    unmount(str(made))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"NINEP_STATE": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(tmp_path)}


def shell(command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command that touches a mount: always in a process of its own, always with a deadline."""
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=SECONDS_MAX, check=False, **options
    )  # type: ignore[call-overload]  # the rest is for subprocess to check


def servers_of(point: Path) -> list[int]:
    """The processes that `ninep mount` left behind for this directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mount" in words and os.fsencode(point) in words:
            found.append(int(entry.parent.name))
    return found


def test_the_command_returns_when_the_mount_works_and_umount_ends_its_server(point: Path, env: dict[str, str]) -> None:
    ran = ninep("mount", "ram:", str(point), env=env)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert is_mounted(str(point))
    assert shell(f"echo hello >{point}/f && cat {point}/f").stdout == "hello\n"
    ran = ninep("umount", "--json", str(point))
    assert (ran.code, ran.json()["step"]) == (0, "unmounted")
    assert not is_mounted(str(point))
    wait_until(lambda: not servers_of(point), "the server to end")


@pytest.mark.feature("edge-client")
def test_a_server_is_mounted_and_its_errors_pass(point: Path, env: dict[str, str], tmp_path: Path) -> None:
    with serving("ram:") as server:
        ninep("mkdir", f"{server.url}//sub")
        assert ninep("mount", f"{server.url}//sub", str(point), "-o", "fsname=there,_netdev,x-systemd.automount",
                     env=env).code == 0  # fmt: skip
        done = shell(f"echo hi >{point}/a; cat {point}/a; cat {point}/b")
        assert done.stdout.startswith("hi\n")
        assert "No such file" in done.stderr
        assert ninep("cat", f"{server.url}//sub/a").out == "hi\n"
        assert "there" in Path("/proc/self/mounts").read_text()
        assert ninep("umount", str(point)).code == 0


def test_programs_that_keep_permissions_do_so_without_complaint(
    point: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """GNU programs set an access list first, and the mode if lists are not supported: any other error fails them."""
    (tmp_path / "project").mkdir()
    with serving(f"host:{tmp_path}/project") as server:
        assert ninep("mount", server.url, str(point), env=env).code == 0
        done = shell(
            f"cd {point} && echo two >a && chmod 640 a && cp -p a b && cp -a a c && install -m 600 a d && "
            "sed -i s/two/three/ a && stat -c %a a b c d && cat a"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "640\n640\n640\n600\nthree\n"
        assert ninep("umount", str(point)).code == 0


@pytest.mark.feature("pyfuse3-engine")
def test_the_second_engine_mounts_too(point: Path, env: dict[str, str], needs_pyfuse3: None) -> None:
    ran = ninep("mount", "ram:", str(point), "--engine", "pyfuse3", env=env)
    assert (ran.code, ran.err) == (0, "")
    assert shell(f"echo hello >{point}/f && cat {point}/f").stdout == "hello\n"
    assert ninep("umount", str(point)).code == 0
    wait_until(lambda: not servers_of(point), "the server to end")


@pytest.mark.feature("pyfuse3-engine")
def test_what_the_second_engine_cannot_do_is_told_to_who_wants_details(
    point: Path, env: dict[str, str], needs_pyfuse3: None
) -> None:
    ran = ninep("mount", "-v", "ram:", str(point), "-o", "engine=pyfuse3", env=env)
    assert ran.code == 0
    for limit in LIMITS:
        assert f"ninep: mount: pyfuse3: {limit}\n" in ran.err
    assert ninep("umount", str(point)).code == 0
    wait_until(lambda: not servers_of(point), "the server to end")
    assert "pyfuse3" not in ninep("mount", "-v", "ram:", str(point), env=env).err
    assert ninep("umount", str(point)).code == 0


@pytest.mark.feature("pyfuse3-engine")
@pytest.mark.parametrize("foreground", [(), ("--foreground",)])
def test_a_second_engine_that_cannot_be_imported_says_how_to_get_it(
    point: Path, env: dict[str, str], tmp_path: Path, foreground: tuple[str, ...]
) -> None:
    (tmp_path / "pyfuse3.py").write_text("raise ImportError('libfuse3.so.3: cannot open shared object file')\n")
    env = {**env, "PYTHONPATH": str(tmp_path)}
    ran = ninep("mount", "ram:", str(point), "--engine", "pyfuse3", *foreground, env=env)
    assert ran.code == 1
    line = one_line(ran.err)
    assert line == f"ninep: mount: pyfuse3 cannot be imported: {point}: ENOTSUP: try pip install 'ninep[pyfuse3]'"
    assert not is_mounted(str(point))


def test_what_this_host_cannot_do_is_not_blamed_on_the_dialect() -> None:
    told = from_error(E.Ehost("settime"), "/dev/time")
    assert (told.what, told.errno_name, told.hint) == ("not supported on this host: settime", "ENOTSUP", "")
    assert "dialect" in from_error(E.Eunsupported("symlink")).hint


def test_read_only_is_read_only(point: Path, env: dict[str, str]) -> None:
    assert ninep("mount", "ram:", str(point), "-o", "ro", env=env).code == 0
    assert "Read-only" in shell(f"echo x >{point}/f").stderr


def test_foreground_stays_and_unmounts_at_sigterm(point: Path, env: dict[str, str]) -> None:
    argv = [program("ninep"), "mount", "--foreground", "ram:", str(point)]
    with subprocess.Popen(argv, env={**os.environ, **env}, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: is_mounted(str(point)), "the mount")
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert not is_mounted(str(point))


@pytest.mark.parametrize(
    ("source", "where", "options", "code", "said"),
    [
        ("9p://127.0.0.1:9", "point", "", 5, "ECONNREFUSED"),
        ("ram:", "missing", "", 3, "mkdir"),
        ("ram:", "file", "", 1, "not a directory"),
        ("ram:", "link", "", 1, "symbolic link"),
        ("ram:", "point", "quick", 2, "unknown mount option: quick"),
        ("ram:", "point", "aname=x", 2, "for a server's URL"),
        ("thing", "point", "", 2, "neither a URL nor a tree"),
        ("host:/no/such", "point", "", 3, "ENOENT"),
    ],
)
def test_what_cannot_be_mounted_is_told_in_one_line(
    point: Path, tmp_path: Path, env: dict[str, str], source: str, where: str, options: str, code: int, said: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(point)
    words = ["-o", options] if options else []
    ran = ninep("mount", source, str(tmp_path / where), *words, env=env)
    assert ran.code == code
    assert said in one_line(ran.err)
    assert not is_mounted(str(point))
    assert not servers_of(point)


# -- umount


@pytest.mark.feature("cli-umount", "fuse-unmount")
def test_umount_of_a_busy_mount_detaches_it_and_says_so(point: Path, env: dict[str, str]) -> None:
    ninep("mount", "ram:", str(point), env=env)
    shell(f"echo x >{point}/f")
    holder = subprocess.Popen(["sh", "-c", f"exec 3<{point}/f; echo open; read x"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)  # fmt: skip
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        ran = ninep("umount", str(point))
        assert ran.code == 0
        assert "busy, so detached" in one_line(ran.err)
        assert not is_mounted(str(point))
        holder.communicate(b"\n", timeout=10)
    wait_until(lambda: not servers_of(point), "the server to end")


@pytest.mark.feature("cli-umount")
def test_umount_abort_ends_a_parked_read(point: Path, env: dict[str, str]) -> None:
    ninep("mount", "kernel:", str(point), env=env)
    with subprocess.Popen(["cat", f"{point}/dev/kprint"], stderr=subprocess.PIPE) as reader:
        wait_until(lambda: "parked 1" in shell(f"cat {point}/dev/stats/live").stdout, "a parked read")
        ran = ninep("umount", "--abort", "--json", str(point))
        assert (ran.code, ran.json()["step"]) == (0, "aborted")
        assert reader.wait(10) != 0
    wait_until(lambda: not servers_of(point), "the server to end")


@pytest.mark.feature("cli-umount")
def test_umount_ends_a_mount_whose_server_was_killed(point: Path, env: dict[str, str]) -> None:
    ninep("mount", "ram:", str(point), env=env)
    for pid in servers_of(point):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: shell(f"ls {point}").returncode != 0, "the mount to be dead")
    ran = ninep("mount", "ram:", str(point), env=env)
    assert ran.code == 1
    assert f"'ninep umount {point}'" in one_line(ran.err)
    assert ninep("umount", str(point)).code == 0
    assert ninep("mount", "ram:", str(point), env=env).code == 0


@pytest.mark.feature("cli-umount")
def test_umount_of_what_is_no_mount(tmp_path: Path) -> None:
    ran = ninep("umount", str(tmp_path))
    assert ran.code == 1
    assert "not a FUSE mount" in one_line(ran.err)
    ran = ninep("umount", str(tmp_path / "nope"))
    assert ran.code == 3
    assert f"no such file or directory: {tmp_path}/nope: ENOENT" in one_line(ran.err)


# -- mount(8)

HELPER = pytest.mark.feature("mount-helper")


@HELPER
def test_the_helper_takes_what_libmount_passes_and_refuses_what_nobody_knows(point: Path, env: dict[str, str]) -> None:
    words = "rw,_netdev,nofail,noauto,user,users,x-systemd.automount,dev,suid,defaults,user=joe,relatime"
    ran = run("mount.fuse.ninep", "ram:", str(point), "-o", words, env=env)
    assert (ran.code, ran.err) == (0, "")
    assert is_mounted(str(point))
    assert ninep("umount", str(point)).code == 0
    ran = run("mount.fuse.ninep", "ram:", str(point), "-o", "ro,frobnicate", env=env)
    assert ran.code == 1
    assert "unknown mount option: frobnicate" in one_line(ran.err)
    assert run("mount.fuse.ninep", "ram:", str(point), "-f", env=env).code == 0
    assert not is_mounted(str(point))
    assert run("mount.fuse.ninep", "ram:", env=env).code == 1
    assert run("mount.fuse.ninep", "9p://127.0.0.1:9", str(point), env=env).code == 32


IN_FRONT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None):
    sys.exit(f"unshare: {ctypes.get_errno()}")
helper = os.open(sys.argv[1], os.O_RDONLY)
where = "/usr/sbin/mount.fuse.ninep" if os.path.exists("/usr/sbin/mount.fuse.ninep") else ""
if not where:
    upper, work = sys.argv[2] + "/upper", sys.argv[2] + "/work"
    os.mkdir(upper); os.mkdir(work)
    with open(upper + "/mount.fuse.ninep", "w") as f:
        f.write(f"#!/bin/sh\\nexec {sys.argv[1]} \\"$@\\"\\n")
    os.chmod(upper + "/mount.fuse.ninep", 0o755)
    real = os.path.realpath("/sbin")
    options = f"lowerdir={real},upperdir={upper},workdir={work}".encode()
    if libc.mount(b"overlay", real.encode(), b"overlay", 0, options):
        sys.exit(f"overlay: {ctypes.get_errno()}")
os.execvp("sh", ["sh", "-ec", sys.argv[3]])
"""


@HELPER
def test_a_line_in_fstab_mounts_and_umount_8_ends_it(
    point: Path, env: dict[str, str], needs_root: None, needs_tool: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """In a mount namespace of its own, where /sbin/mount.fuse.ninep is this checkout's program."""
    needs_tool("mount")
    with serving("ram:") as server:
        ninep("write", "--create", f"{server.url}//f", "from the server")
        tab = point.parent / "fstab"
        tab.write_text(f"{server.url} {point} fuse.ninep ro,noauto,nofail,_netdev,x-systemd.automount 0 0\n")
        script = f"mount -T {tab} {point}; cat {point}/f; grep -o 'fuse.ninep ro' /proc/self/mounts; umount {point}"
        done = subprocess.run(
            [sys.executable, "-c", IN_FRONT, program("mount.fuse.ninep"), str(point.parent), script],
            capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **env},
        )  # fmt: skip
        if "overlay: " in done.stderr:
            pytest.skip(f"needs overlayfs over /sbin: {done.stderr.strip()}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "from the server\nfuse.ninep ro\n"
    wait_until(lambda: not servers_of(point), "the server to end")
