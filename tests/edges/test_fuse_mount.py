"""The life of a mount: made by a held directory, shared or not, ended in every way without hanging anybody."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuse_mounts import PROGRAM, run, serving, shell
from servers import is_mounted, unmount

from ninep.edges import fuse_mount
from ninep.proto import errors as E

ERROR_SECONDS_MAX = 4 * 0.5
NOBODY = 65534


def as_nobody(*argv: str | Path, groups: str = "--clear-groups") -> subprocess.CompletedProcess[bytes]:
    setpriv = shutil.which("setpriv")
    if setpriv is None or os.geteuid() != 0:
        pytest.skip("needs root and setpriv")
    return run(setpriv, "--reuid=65534", "--regid=65534", groups, *argv)


def mount_line(path: Path) -> str:
    with open("/proc/self/mountinfo") as f:
        return next(line for line in f if line.split(" ")[4] == str(path))


# -- the end


@pytest.mark.feature("fuse-unmount")
@pytest.mark.parametrize("way", ["umount", "fusermount3", "close", "SIGTERM"])
def test_a_mount_with_a_parked_read_can_be_unmounted(tmp_path: Path, needs_fuse: None, way: str) -> None:
    with serving("clockwork", tmp_path) as mount:
        reader = subprocess.Popen(["cat", mount.dir / "event"], stderr=subprocess.PIPE)
        try:
            while mount.ask("live parked") != "1":
                time.sleep(0.01)
            if way == "umount":
                assert run("umount", "-l", mount.dir).returncode == 0
                assert not is_mounted(str(mount.dir))
                reader.terminate()  # a lazy unmount lets who has a file open finish
            elif way == "fusermount3":
                assert run("fusermount3", "-u", "-z", mount.dir).returncode == 0
                reader.terminate()
            elif way == "close":
                assert mount.ask("close 0") == "closed"
            else:
                assert mount.end() == "ended {}"
            started = time.monotonic()
            assert reader.wait(20) != 0
            assert time.monotonic() - started < ERROR_SECONDS_MAX
            assert not is_mounted(str(mount.dir))
        finally:
            reader.kill()
            reader.communicate()


@pytest.mark.feature("fuse-unmount")
def test_a_killed_server_leaves_a_mount_that_fails_at_once_and_unmounts(tmp_path: Path, needs_fuse: None) -> None:
    with serving("clockwork", tmp_path) as mount:
        reader = subprocess.Popen(["cat", mount.dir / "event"], stderr=subprocess.PIPE)
        try:
            while mount.ask("live parked") != "1":
                time.sleep(0.01)
            mount.process.kill()
            mount.process.wait()
            assert reader.wait(ERROR_SECONDS_MAX) != 0
            with pytest.raises(OSError, match="Transport endpoint is not connected"):
                os.stat(mount.dir)
            assert run("umount", mount.dir).returncode == 0
            assert not is_mounted(str(mount.dir))
        finally:
            reader.kill()
            reader.communicate()


def test_the_server_ends_when_its_mount_is_taken_away(tmp_path: Path, needs_fuse: None) -> None:
    with serving("ram", tmp_path) as mount:
        shell(f"echo x > {mount.dir}/f; umount {mount.dir}")
        assert mount.line() == "ended {}"


@pytest.mark.feature("fuse-many-mounts")
def test_twenty_mounts_live_in_one_process(tmp_path: Path, needs_fuse: None) -> None:
    with serving("ram", tmp_path, count=20) as mount:
        (mount.dirs[0] / "f").write_text("shared by all")
        assert all((d / "f").read_text() == "shared by all" for d in mount.dirs)
        (mount.dirs[7] / "f").write_text("changed")
        deadline = time.monotonic() + 5
        while any((d / "f").read_text() != "changed" for d in mount.dirs) and time.monotonic() < deadline:
            pass
        assert all((d / "f").read_text() == "changed" for d in mount.dirs)
        assert mount.ask("close 3") == "closed"
        assert not is_mounted(str(mount.dirs[3]))
        assert (mount.dirs[4] / "f").read_text() == "changed"
        assert mount.end() == "ended {}"
        assert not any(is_mounted(str(d)) for d in mount.dirs)


# -- how it is mounted


@pytest.mark.sec(66)
def test_every_mount_is_nosuid_and_nodev(tmp_path: Path, needs_fuse: None) -> None:
    with serving("ram", tmp_path) as mount:
        options = mount_line(mount.dir).split(" ")[5].split(",")
        assert {"nosuid", "nodev"} <= set(options)
        assert " - fuse.ninep ninep " in mount_line(mount.dir)
        shutil.copy("/usr/bin/id", mount.dir / "id")
        os.chmod(mount.dir / "id", 0o4755)
        control = tmp_path / "id"
        shutil.copy("/usr/bin/id", control)
        os.chmod(control, 0o4755)
        os.chmod(mount.dir, 0o755)
        seen = as_nobody("sh", "-c", f"{control} -u").stdout if searchable(control) else b"0\n"
        assert seen == b"0\n"  # the control: elsewhere the bit counts


def searchable(path: Path) -> bool:
    return all(p.stat().st_mode & 1 for p in path.parents)


@pytest.mark.sec(70)
def test_a_mount_point_that_is_a_symbolic_link_is_refused(
    tmp_path: Path, needs_fuse: None, needs_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        fuse_mount.mount(str(tmp_path / "link"))
    assert not is_mounted(str(tmp_path / "target"))
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)  # the control: the guard is this flag
    made = fuse_mount.mount(str(tmp_path / "link"))
    try:
        assert is_mounted(str(tmp_path / "target"))
    finally:
        made.unmount()
        os.close(made.device_fd)


@pytest.mark.sec(70)
def test_a_mount_point_exchanged_for_a_link_meanwhile_is_not_followed(
    tmp_path: Path, needs_fuse: None, needs_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "victim").mkdir()

    def attack() -> bool:
        """Runs between the look at the directory and the mount."""
        (tmp_path / "mine").rename(tmp_path / "moved")
        (tmp_path / "mine").symlink_to("victim")
        return True

    monkeypatch.setattr(fuse_mount, "can_mount", attack)
    made = fuse_mount.mount(str(tmp_path / "mine"))
    try:
        assert is_mounted(str(tmp_path / "moved"))
        assert not is_mounted(str(tmp_path / "victim"))
        # The control: whoever mounts by name now mounts on the victim.
        assert run("mount", "-t", "tmpfs", "none", tmp_path / "mine").returncode == 0
        assert is_mounted(str(tmp_path / "victim"))
        # And it is our own mount that we unmount, whatever has its name.
        made.unmount()
        assert not is_mounted(str(tmp_path / "moved"))
        assert is_mounted(str(tmp_path / "victim"))
    finally:
        made.unmount()
        os.close(made.device_fd)
        unmount(str(tmp_path / "victim"))


def test_a_mount_point_that_is_no_directory_is_refused_and_leaks_nothing(tmp_path: Path, needs_fuse: None) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        fuse_mount.mount(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError):
        fuse_mount.mount(str(tmp_path / "none"))


# -- who may come in


@pytest.mark.sec(67)
def test_allow_other_is_refused_unless_root_or_the_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fuse_mount.may_allow_other() == (os.geteuid() == 0)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    conf = tmp_path / "fuse.conf"
    conf.write_text("#user_allow_other\n")
    assert not fuse_mount.may_allow_other(str(conf))
    assert not fuse_mount.may_allow_other(str(tmp_path / "none"))
    monkeypatch.setattr(fuse_mount, "may_allow_other", lambda: False)
    monkeypatch.setenv("NINEP_ALLOW_OTHER", "1")
    with pytest.raises(E.Enotallowed, match="allow_other"):
        fuse_mount.mount(str(tmp_path), fuse_mount.MountOptions(allow_other=True))
    # Nor does a source smuggle an option in.
    assert fuse_mount._escaped("a,allow_other") == "a\\,allow_other"
    conf.write_text("user_allow_other\n")  # the control
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert fuse_mount.may_allow_other(str(conf))


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A directory that every user can reach; pytest closes its own to others whenever it starts."""
    with tempfile.TemporaryDirectory(prefix="ninep-fuse-", dir="/tmp") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.mark.sec(69)
def test_another_local_user_has_no_access(open_tmp: Path, needs_fuse: None, needs_root: None) -> None:
    with serving("ram", open_tmp) as mount:
        os.chmod(mount.dir, 0o777)
        (mount.dir / "f").write_text("mine")
        os.chmod(mount.dir / "f", 0o666)
        for path in (mount.dir / "f", Path(f"/proc/{mount.process.pid}/root{mount.dir}/f")):
            assert as_nobody("cat", path).returncode != 0
        assert b"Permission denied" in as_nobody("ls", mount.dir).stderr
    with serving("ram", open_tmp, "allow_other=1") as mount:  # the control
        (mount.dir / "f").write_text("everybody's")
        os.chmod(mount.dir / "f", 0o644)
        assert as_nobody("cat", mount.dir / "f").stdout == b"everybody's"


def test_with_allow_other_the_permission_bits_of_the_tree_decide(
    open_tmp: Path, needs_fuse: None, needs_root: None
) -> None:
    with serving("ram", open_tmp, "allow_other=1") as mount:
        d = mount.dir
        (d / "private").mkdir(mode=0o700)
        (d / "private" / "f").write_text("secret")
        (d / "private" / "f").read_text()  # now the kernel has the names
        (d / "secret").write_text("secret")
        os.chmod(d / "secret", 0o600)
        (d / "group").write_text("for the group")
        os.chmod(d / "group", 0o640)
        os.chown(d / "group", 0, 12345)
        os.chmod(d, 0o777)
        assert b"Permission denied" in as_nobody("cat", d / "private" / "f").stderr
        assert b"Permission denied" in as_nobody("ls", d / "private").stderr
        assert b"Permission denied" in as_nobody("cat", d / "secret").stderr
        assert as_nobody("cat", d / "group").returncode != 0
        assert as_nobody("cat", d / "group", groups="--groups=12345").stdout == b"for the group"
        assert as_nobody("sh", "-c", f"echo by nobody > {d}/theirs").returncode == 0
        assert (d / "theirs").stat().st_uid == NOBODY
        assert as_nobody("chown", "0", d / "theirs").returncode != 0
        os.chmod(d, 0o1777)
        assert as_nobody("rm", "-f", d / "secret").returncode != 0
        shutil.copy("/usr/bin/id", d / "id")
        os.chmod(d / "id", 0o744)
        assert as_nobody("sh", "-c", f"exec {d}/id").returncode == 126
        assert as_nobody("test", "-r", d / "secret").returncode == 1
        assert as_nobody("test", "-r", d / "theirs").returncode == 0


def test_a_write_by_another_takes_the_set_id_bits_away(open_tmp: Path, needs_fuse: None, needs_root: None) -> None:
    with serving("ram", open_tmp, "allow_other=1") as mount:
        f = mount.dir / "f"
        f.write_text("x")
        os.chmod(f, 0o6777)
        assert stat.S_IMODE(f.stat().st_mode) == 0o6777
        assert as_nobody("sh", "-c", f"echo y >> {f}").returncode == 0
        assert stat.S_IMODE(f.stat().st_mode) == 0o777


# -- without privileges


def rootless(place: Path, *before: str) -> tuple[str, ...]:
    """A prefix that runs a command where /dev/fuse is open to all, and `place` shows this Python and its modules, which
    may be in root's home; the host's node and directories are not touched."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("setpriv", "unshare", "fusermount3"))):
        pytest.skip("needs root, setpriv, unshare and fusermount3")
    steps = [f"mknod {place}/fuse c 10 229 && chmod 666 {place}/fuse && mount --bind {place}/fuse /dev/fuse"]
    for name, source in SHOWN.items():
        (place / name).mkdir(exist_ok=True)
        steps.append(f"mount --bind {shlex.quote(str(source))} {place}/{name}")
    script = " && ".join([*steps, 'exec "$@"'])
    return ("unshare", "-m", "--propagation=private", "sh", "-c", script, "sh", *before)


@pytest.mark.feature("fuse-rootless")
@pytest.mark.parametrize("way", ["fusermount3", "user namespace"])
def test_an_ordinary_user_mounts(open_tmp: Path, needs_fuse: None, way: str) -> None:
    point = open_tmp / "point"
    point.mkdir()
    os.chown(point, NOBODY, NOBODY)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if way == "user namespace":
        nobody += ("unshare", "-Urm")
    script = (
        f"{python_for_all(open_tmp)} {open_tmp}/tests/fuse_server.py ram {point} < /dev/null > {open_tmp}/out & "
        f"i=0; while ! grep -q ready {open_tmp}/out; do sleep .05; i=$((i+1)); test $i -lt 200; done; "
        f"echo works > {point}/f; cat {point}/f; grep ' {point} ' /proc/self/mountinfo; kill $!; wait $!; "
        f"! grep ' {point} ' /proc/self/mountinfo"
    )
    (open_tmp / "out").touch()
    os.chmod(open_tmp / "out", 0o666)
    done = run(*rootless(open_tmp, *nobody), "sh", "-euc", script, seconds=40)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.startswith(b"works\n")
    assert b"nosuid,nodev" in done.stdout


TESTS = Path(PROGRAM).parent
SHOWN = {
    "python": sys.base_prefix,
    "libraries": sysconfig.get_path("purelib"),
    "ours": TESTS.parent / "src",
    "tests": TESTS,
}


def python_for_all(place: Path) -> str:
    """A command that runs this Python with these modules for any user, under rootless(place)."""
    variables = f"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={place}/libraries:{place}/ours"
    program = f"bin/python3.{sys.version_info.minor}"
    if sys.base_prefix in ("/usr", "/usr/local"):
        return f"env {variables} {sys.base_prefix}/{program}"
    return f"env {variables} LD_LIBRARY_PATH={place}/python/lib {place}/python/{program}"


# -- passthrough


@pytest.mark.feature("fuse-passthrough")
def test_host_files_are_read_and_written_by_the_kernel_itself(
    tmp_path: Path, needs_fuse: None, needs_root: None
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    data = os.urandom(8 << 20)
    (host / "f").write_bytes(data)
    with serving(f"host:{host}", tmp_path) as mount:
        f = mount.dir / "f"
        with open(f, "r+b") as opened:
            before = mount.ask("ops read"), mount.ask("ops write")
            assert opened.read() == data
            opened.seek(0)
            opened.write(b"written")
            opened.flush()
            if (mount.ask("ops read"), mount.ask("ops write")) != before:
                pytest.skip("needs FUSE_PASSTHROUGH: this kernel has none")
            with open(f, "rb") as second:
                assert second.read(7) == b"written"
        assert (host / "f").read_bytes() == b"written" + data[7:]
        assert f.stat().st_size == len(data)
        f.write_text("short")
        assert f.read_text() == "short"
        assert mount.end().startswith("ended")
    with serving(f"host:{host}", tmp_path, "passthrough=0") as mount:  # the control: now we are asked
        assert (mount.dir / "f").read_text() == "short"
        assert int(mount.ask("ops read")) > 0


@pytest.mark.sec(79)
def test_a_program_that_grows_while_it_runs_crashes_nobody(tmp_path: Path, needs_fuse: None) -> None:
    """There is no check of ours to take away: the kernel refuses local writers of what it runs, and cannot know of a
    change made behind it.  That neither the program nor the mount ends of it is the claim itself."""
    with serving("ram", tmp_path) as mount:
        program = mount.dir / "sleep"
        shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
        runs = subprocess.Popen([program, "60"])
        try:
            with pytest.raises(OSError, match="Text file busy"):
                os.open(program, os.O_WRONLY)
            os.chmod(program, 0o755)
            mount.ask("append sleep 100000")
            assert runs.poll() is None
            assert run("stat", program).returncode == 0
        finally:
            runs.kill()
            runs.wait()
        assert mount.end() == "ended {}"


def test_a_wrong_word_of_the_kernels_is_refused_and_the_mount_lives(tmp_path: Path, needs_fuse: None) -> None:
    """Operations that we do not know, on a directory that does not know them either."""
    with serving("ram", tmp_path) as mount:
        (mount.dir / "f").touch()
        fd = os.open(mount.dir, os.O_RDONLY)
        try:
            with pytest.raises(OSError):
                os.open(".", os.O_TMPFILE | os.O_RDWR, dir_fd=fd)
        finally:
            os.close(fd)
        assert (mount.dir / "f").exists()
