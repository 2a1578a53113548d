"""ninepd: one node, its tree, its exports, its state directory."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest
from programs import ninep, one_line, run
from servers import start_ninep, wait_until

from ninep.cli import state
from ninep.cli.failure import Failure, Refusal

pytestmark = [pytest.mark.feature("ninepd"), pytest.mark.timeout(60)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    (made / "f").write_text("text")
    return made


def daemon(tmp_path: Path, *args: str) -> list[str]:
    """ninepd that touches nothing outside tmp_path."""
    return [
        "ninepd", "--no-node-socket", "--listen", f"9p+unix://{tmp_path}/run/s", "--state", f"{tmp_path}/state", *args,
    ]  # fmt: skip


def test_the_nodes_tree_holds_what_exists_and_exports_are_trees_of_their_own(tmp_path: Path, home: Path) -> None:
    with start_ninep(*daemon(tmp_path, "--export", f"src={home}:ro", "--export", f"rw={home}")) as server:
        assert ninep("ls", server.url).out == "dev\nexport\n"
        assert ninep("ls", f"{server.url}//export").out == "rw\nsrc\n"
        assert ninep("cat", f"{server.url}//export/src/f").out == "text"
        assert ninep("cat", f"{server.url}//f?aname=src").out == "text"
        assert ninep("write", f"{server.url}//f?aname=src", "x").code == 4
        assert ninep("write", f"{server.url}//f?aname=rw", "x").code == 0
        for aname in ("nope", "src/..", "/src", "../src"):
            ran = ninep("ls", f"{server.url}?aname={aname}")
            assert ran.code == 3, aname
        env = {"NINEP_NODE": server.url}
        assert ninep("cat", "/dev/user", env=env).out.strip() == ninep("cat", "/dev/user", "-n", server.url).out.strip()
        assert {row["name"]: row for row in ninep("doctor", "--json", env=env).lines()}["node"]["state"] == "ok"


@pytest.mark.sec(138)
def test_sec_138_a_second_daemon_on_one_state_directory_is_refused(tmp_path: Path) -> None:
    with start_ninep(*daemon(tmp_path)) as server:
        ran = run(
            "ninepd", "--no-node-socket", "--listen", f"9p+unix://{tmp_path}/run/t", "--state", f"{tmp_path}/state"
        )
        assert ran.code == 6
        line = one_line(ran.err)
        assert f"another daemon (pid {server.pid})" in line
        assert "--state DIR" in line
        assert not (tmp_path / "run/t").exists()
        # Negative control: the lock is what refuses; another state directory is no hindrance.
        with start_ninep("ninepd", "--no-node-socket", "--listen", f"9p+unix://{tmp_path}/run/t", "--state",
                         f"{tmp_path}/other"):  # fmt: skip
            pass
    with start_ninep(*daemon(tmp_path)):
        pass  # the lock died with its holder


@pytest.mark.sec(138)
def test_sec_138_the_lock_is_on_the_open_file_not_on_its_name(tmp_path: Path) -> None:
    first = state.State(str(tmp_path / "s"))
    first.lock()
    second = state.State(str(tmp_path / "s"))
    with pytest.raises(Failure, match="another daemon"):
        second.lock()
    fcntl.flock(first._lock_fd, fcntl.LOCK_UN)
    second.lock()
    for held in (first, second):
        held.close()


def test_a_key_is_made_once_whole_and_private(tmp_path: Path) -> None:
    held = state.State(str(tmp_path / "s"))
    key = held.qid_key()
    assert len(key) == 32
    assert held.qid_key() == key
    assert os.listdir(tmp_path / "s") == ["qid.key"]
    path = tmp_path / "s/qid.key"
    path.chmod(0o644)
    with pytest.raises(Refusal, match="readable by others"):
        held.qid_key()
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(Refusal, match="32 bytes"):
        held.qid_key()
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(Refusal):
        held.qid_key()
    held.close()


def test_a_state_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    ran = run(*daemon(tmp_path))
    assert ran.code == 78
    assert "try 'chmod 700" in one_line(ran.err)


@pytest.mark.feature("cli-config")
def test_sighup_reads_the_exports_again_and_a_broken_file_keeps_them(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[exports.one]\ndir = '{home}'\n")
    with start_ninep(*daemon(tmp_path, "--config", str(file))) as server:

        def names() -> str:
            return ninep("ls", f"{server.url}//export").out

        def hang_up(text: str, said: str) -> None:
            file.write_text(text)
            os.kill(server.pid, signal.SIGHUP)
            wait_until(lambda: said in server.stderr(), said)

        assert names() == "one\n"
        hang_up(f"[exports.two]\ndir = '{home}'\n", "exported: two")
        assert names() == "two\n"
        assert ninep("cat", f"{server.url}//f?aname=two").out == "text"
        assert ninep("ls", f"{server.url}?aname=one").code == 3
        hang_up("[exports.two]\ndirr = '/'\n", "exports.two.dirr: unknown key")
        wait_until(lambda: "exports.two: missing: dir" in server.stderr(), "the other mistake")
        assert names() == "two\n"
        hang_up("[exports.x]\ndir = '/no/such/dir'\n", "exports stay as they were")
        assert names() == "two\n"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--export", "x"], 2, "no = in"),
        (["--export", "a/b=/tmp"], 2, "not a name"),
        (["--export", "x=/no/such"], 3, "ENOENT"),
        (["--export", "x=/"], 78, "a directory below it"),
        (["--export", "x=/tmp", "--export", "x=/var"], 2, "exported twice"),
        (["--mount", "/"], 78, "not mounted over"),
        (["--mount", "/no/such/dir"], 3, "mkdir"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, args: list[str], code: int, said: str) -> None:
    ran = run(*daemon(tmp_path, *args))
    assert ran.code == code
    assert said in one_line(ran.err)


@pytest.mark.feature("fuse-engine", "cli-mount")
def test_the_node_is_mounted_and_the_mount_ends_with_it(tmp_path: Path, home: Path, needs_fuse: None) -> None:
    point = tmp_path / "n9"
    point.mkdir()
    with start_ninep(*daemon(tmp_path, "--mount", str(point), "--export", f"x={home}")) as server:
        import subprocess

        done = subprocess.run(["cat", point / "export/x/f"], capture_output=True, timeout=10, check=False)
        assert done.stdout == b"text"
        assert server.stop() == 0
    assert str(point) not in Path("/proc/self/mountinfo").read_text()
