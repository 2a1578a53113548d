"""ninep serve: trees, listeners, what is refused, signals, readiness, activation."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import ninep, one_line
from servers import program, serving, start, start_ninep, wait_until

pytestmark = [pytest.mark.feature("cli-serve"), pytest.mark.timeout(60)]


@pytest.fixture
def sock(tmp_path: Path) -> str:
    return f"9p+unix://{tmp_path}/run/s"


# -- trees


@pytest.mark.feature("host-export")
def test_a_host_directory_is_served_read_only_or_not(tmp_path: Path, sock: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "f").write_text("text")
    with start_ninep("serve", f"host:{home}:ro", "--listen", sock, "--state", f"{tmp_path}/state"):
        assert ninep("cat", f"{sock}//f").out == "text"
        ran = ninep("write", f"{sock}//f", "no")
        assert ran.code == 4
        assert "EROFS" in one_line(ran.err)
    with start_ninep("serve", f"host:{home}", "--listen", sock, "--state", f"{tmp_path}/state"):
        assert ninep("write", f"{sock}//f", "yes").code == 0
    assert (home / "f").read_text() == "yes\n"


@pytest.mark.feature("host-qid-stable")
def test_a_restart_keeps_every_identity(tmp_path: Path, sock: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "f").write_text("text")

    def qid(state: str) -> int:
        with start_ninep("serve", f"host:{home}", "--listen", sock, "--state", str(tmp_path / state)):
            return int(ninep("stat", "--json", f"{sock}//f").json()["qid"]["path"])

    first = qid("state")
    assert qid("state") == first
    assert qid("other") != first  # the key is what keeps them
    key = tmp_path / "state/qid.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.stat().st_size == 32


@pytest.mark.feature("library-reload")
def test_a_python_tree_is_loaded_again_and_a_broken_edit_keeps_the_old_one(tmp_path: Path, sock: str) -> None:
    source = (
        "import ninep\n\nclass Hello(ninep.Dir):\n    @ninep.text()\n    def greeting(self):\n        return '{}\\n'\n"
    )
    file = tmp_path / "hello.py"
    file.write_text(source.format("one"))
    with start_ninep("serve", f"py:{file}:Hello", "--listen", sock) as server:
        assert ninep("cat", f"{sock}//greeting").out == "one\n"
        file.write_text(source.format("two"))
        assert ninep("cat", f"{sock}//greeting").out == "two\n"
        file.write_text("def broken(:\n")
        assert ninep("cat", f"{sock}//greeting").out == "two\n"
        assert "the old tree stays: SyntaxError" in server.stderr()
        assert server.stderr().count("the old tree stays") == 1
        ninep("ls", sock)
        assert server.stderr().count("the old tree stays") == 1
        file.write_text(source.format("six"))
        assert ninep("cat", f"{sock}//greeting").out == "six\n"


@pytest.mark.parametrize(
    ("tree", "code", "said"),
    [
        ("nonsense:", 2, "not a tree"),
        ("host:", 2, "no directory"),
        ("host:/no/such/dir", 3, "ENOENT"),
        ("py:./no_such.py:tree", 3, "no such"),
        ("py:string:digits", 1, "is no tree"),
        ("ram:x", 2, "not a tree"),
    ],
)
def test_a_tree_that_is_none_is_told_in_one_line(tree: str, code: int, said: str, sock: str) -> None:
    ran = ninep("serve", tree, "--listen", sock)
    assert ran.code == code
    assert said in one_line(ran.err)


# -- listeners


@pytest.mark.feature("listen-tcp")
def test_port_0_is_picked_and_printed_and_everyone_on_tcp_is_nobody() -> None:
    with start_ninep("serve", "kernel:", "--listen", "9p://127.0.0.1:0") as server:
        assert ninep("cat", f"{server.url}/dev/user").out.strip() == "none"
    with start_ninep("serve", "kernel:", "--listen", "9p://127.0.0.1:0", "--trust-uname") as server:
        assert ninep("cat", f"{server.url}/dev/user?uname=nobody").out.strip() != "none"
        assert "whoever they say they are" in server.stderr()


@pytest.mark.feature("edge-stdio")
def test_stdio_is_served_and_nothing_else_reaches_it(tmp_path: Path) -> None:
    url = f"9p+exec:{program('ninep')} serve --stdio kernel:"
    ran = ninep("cat", url)
    assert ran.code == 1
    assert "EISDIR" in ran.err
    file = tmp_path / "noisy.py"
    file.write_text("import ninep\n\ndef tree():\n    print('noise')\n    return ninep.Dir()\n")
    assert ninep("ls", f"exec!{program('ninep')} serve --stdio py:{file}:tree").code == 0


@pytest.mark.feature("edge-exec", "listen-fd")
def test_an_inherited_connection_is_served() -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    with start([program("ninep"), "serve", "ram:", "--listen", f"fd:{fd}"], pass_fds=(fd,)):
        theirs.close()
        with ours:
            ours.settimeout(10)
            ours.sendall(bytes.fromhex("13000000 64 ffff 00200000 0600 395032303030".replace(" ", "")))
            assert ours.recv(100)[4] == 101


@pytest.mark.feature("systemd", "listen-fd")
def test_socket_activation_takes_the_sockets_that_a_parent_listens_on(tmp_path: Path) -> None:
    path = str(tmp_path / "activated")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        code = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            " os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
            " os.execv(sys.argv[2], sys.argv[2:])"
        )
        argv = [sys.executable, "-c", code, str(listener.fileno()), program("ninep"), "serve", "ram:"]
        with start(argv, listen=f"9p+unix://{path}", pass_fds=(listener.fileno(),)):
            assert ninep("write", "--create", f"9p+unix://{path}//f", "x").code == 0
            assert ninep("ls", f"9p+unix://{path}").out == "f\n"
        assert os.path.exists(path)  # the service manager's, for the next start


@pytest.mark.feature("systemd")
def test_the_service_manager_hears_ready_reloading_and_stopping(tmp_path: Path, sock: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        with start_ninep("serve", "ram:", "--listen", sock, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as server:
            assert manager.recv(1000).startswith(b"READY=1")
            os.kill(server.pid, signal.SIGHUP)
            assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(1000) == b"READY=1"
            assert server.stop() == 0
            assert manager.recv(1000) == b"STOPPING=1"


def test_sigterm_ends_a_server_with_parked_reads_and_leaves_no_socket(tmp_path: Path, sock: str) -> None:
    with start_ninep("serve", "kernel:", "--listen", sock) as server:
        with subprocess.Popen([program("ninep"), "cat", f"{sock}//dev/kprint"], stderr=subprocess.PIPE) as reader:
            wait_until(lambda: "parked 1" in ninep("cat", f"{sock}//dev/stats/live").out, "a parked read")
            begun = time.monotonic()
            assert server.stop(signal.SIGTERM) == 0
            assert time.monotonic() - begun < 4
            assert reader.wait(10) == 5
            assert reader.stderr is not None
            assert b"Traceback" not in reader.stderr.read()
    assert not (tmp_path / "run/s").exists()


def test_json_says_where_it_listens(sock: str) -> None:
    argv = [program("ninep"), "serve", "ram:", "--listen", sock, "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert (told["v"], told["listening"], told["pid"]) == (1, sock, process.pid)
        process.terminate()
        assert process.wait(10) == 0


def test_a_taken_address_and_no_address_are_told(sock: str) -> None:
    with serving("ram:") as server:
        ran = ninep("serve", "ram:", "--listen", server.url)
        assert ran.code == 6
        assert "a server answers" in one_line(ran.err)
    assert "nowhere to listen" in one_line(ninep("serve", "ram:").err)
    assert ninep("serve", "ram:", "--listen", "gopher://x").code == 2
    assert ninep("serve", "ram:", "--listen", sock, "--allow-uid", "joe").code == 2


# -- what is refused


@pytest.mark.sec(133)
@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        (["ram:", "--listen", "9p://0.0.0.0:0"], "--plaintext-off-host"),
        (["ram:", "--listen", "9p://[::]:0"], "--plaintext-off-host"),
        (["host:/", "--listen", "9p://127.0.0.1:0"], "a directory below it"),
        (["host:/proc", "--listen", "9p://127.0.0.1:0"], "a directory below it"),
        (["host:/tmp:native", "--listen", "9p://127.0.0.1:0"], "9p+unix:///path"),
    ],
)
def test_sec_133_what_must_not_be_served_so_is_refused_with_78_and_a_remedy(
    args: list[str], remedy: str, tmp_path: Path
) -> None:
    ran = ninep("serve", *args, "--state", str(tmp_path / "state"))
    assert ran.code == 78
    assert f"try {remedy}" in one_line(ran.err).replace("9p://127.0.0.1, ssh:// from the client, or ", "")


@pytest.mark.sec(133)
def test_sec_133_root_needs_a_word_more_and_with_both_words_it_starts(needs_root: None) -> None:
    ran = ninep("serve", "ram:", "--listen", "9p://0.0.0.0:0", "--plaintext-off-host")
    assert ran.code == 78
    assert "--as-root" in one_line(ran.err)
    # Negative control: the same address is served once both guards are told off.
    words = ("--plaintext-off-host", "--as-root")
    with start_ninep("serve", "ram:", "--listen", "9p://0.0.0.0:0", *words) as server:
        assert ninep("ls", server.url.replace("0.0.0.0", "127.0.0.1")).code == 0


@pytest.mark.sec(142)
@pytest.mark.feature("peercred", "listen-unix")
def test_sec_142_only_the_owner_and_root_may_connect_to_a_unix_socket(
    needs_root: None, needs_tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ninep-142-") as name:
        os.chmod(name, 0o755)
        url = f"9p+unix://{name}/s"

        def as_nobody() -> tuple[int, bytes]:
            code = (
                "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
                "s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1]);"
                "s.sendall(bytes.fromhex('1300000064ffff002000000600395032303030'));"
                "sys.stdout.buffer.write(s.recv(5)[4:])"
            )
            done = subprocess.run(
                [sys.executable, "-I", "-c", code, f"{name}/s"], capture_output=True, timeout=20, check=False
            )
            return done.returncode, done.stdout

        with start_ninep("serve", "ram:", "--listen", url):
            assert os.stat(f"{name}/s").st_mode & 0o777 == 0o600
            assert as_nobody()[0] != 0  # the mode keeps them out
        with start_ninep("serve", "ram:", "--listen", url, "--socket-mode", "666", "-v") as server:
            assert as_nobody() == (0, b"") or as_nobody()[0] != 0  # connected, and hung up on without a word
            assert "refused" in server.stderr()
        # Negative control: when they are named, they are answered.
        with start_ninep("serve", "ram:", "--listen", url, "--allow-uid", "65534"):
            assert as_nobody() == (0, b"\x65")


@pytest.mark.sec(141)
def test_sec_141_a_socket_directory_that_others_made_or_may_write_to_is_refused(
    needs_root: None, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 65534, 65534)
    ran = ninep("serve", "ram:", "--listen", f"9p+unix://{theirs}/s")
    assert ran.code == 4
    assert "belongs to uid 65534" in one_line(ran.err)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    ran = ninep("serve", "ram:", "--listen", f"9p+unix://{open_to_all}/s")
    assert ran.code == 4
    assert "writable by others" in one_line(ran.err)
    link = tmp_path / "link"
    link.symlink_to(theirs)
    assert ninep("serve", "ram:", "--listen", f"9p+unix://{link}/s").code != 0
    # A directory that is missing is made for us alone.
    with start_ninep("serve", "ram:", "--listen", f"9p+unix://{tmp_path}/new/s"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    # Negative control: the guard is what refuses; the same bind succeeds without it.
    from ninep.edges import listen

    check, listen._check_directory = listen._check_directory, lambda parent: None
    try:
        listen.bind_unix(f"{open_to_all}/s").close()
    finally:
        listen._check_directory = check


@pytest.mark.sec(71)
@pytest.mark.parametrize(
    "url", ["ssh://-oProxyCommand=touch$IFS@/", "ssh://[-oX]/", "ssh://a;b@host/", "ssh://host%00/", "ssh://h\nost/"]
)
def test_sec_71_an_address_that_is_an_option_or_a_command_never_reaches_ssh(url: str, tmp_path: Path) -> None:
    spy = tmp_path / "bin"
    spy.mkdir()
    (spy / "ssh").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/called\nexit 1\n')
    (spy / "ssh").chmod(0o755)
    env = {"PATH": f"{spy}:{os.environ['PATH']}"}
    ran = ninep("ls", url, env=env)
    assert ran.code == 2
    one_line(ran.err)
    assert not (tmp_path / "called").exists()
    # Negative control: the spy is called for an address that is one.
    ninep("ls", "ssh://user@host/", env=env)
    assert "-l user -- host" in (tmp_path / "called").read_text()


@pytest.mark.parametrize("verb", ["ls", "mount"])
def test_a_program_that_ends_before_it_speaks_is_told_with_its_exit_code(verb: str, tmp_path: Path) -> None:
    spy = tmp_path / "bin"
    spy.mkdir()
    (spy / "ssh").write_text("#!/bin/sh\nexit 255\n")
    (spy / "ssh").chmod(0o755)
    env = {"PATH": f"{spy}:{os.environ['PATH']}"}
    (tmp_path / "m").mkdir()
    where = [str(tmp_path / "m")] if verb == "mount" else []
    ran = ninep(verb, "ssh://bob@nohost/srv", *where, env=env)
    assert ran.code == 5
    line = one_line(ran.err)
    assert (
        f"ninep: {verb}: ssh ended with exit code 255: ssh://bob@nohost/srv: try 'ssh nohost ninep --version'" in line
    )
    assert "EPIPE" not in line
    ran = ninep(verb, "exec!sh -c 'kill -9 $$'", *where)
    assert f"ninep: {verb}: sh was ended by signal 9: " in one_line(ran.err)


@pytest.mark.parametrize("verb", ["cat", "mount"])
def test_an_encrypted_address_is_told_what_there_is_instead(verb: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    ran = ninep(verb, "ninep://host/x", *([str(tmp_path / "m")] if verb == "mount" else []))
    line = one_line(ran.err)
    assert "this version has no encrypted transport yet: ninep://host/x: " in line
    assert line.endswith("try 9p+unix:// on the same machine, or ssh://HOST/DIR")


def test_an_authors_bug_over_numbers_says_where_its_words_are(tmp_path: Path, sock: str) -> None:
    file = tmp_path / "boom.py"
    file.write_text(
        "from ninep import Dir, text\n\nclass Boom(Dir):\n    @text()\n    def value(self):\n        return 1 // 0\n"
    )
    with start_ninep("serve", f"py:{file}:Boom", "--listen", sock):
        ran = ninep("cat", f"{sock}//value")
    assert ran.code == 1
    line = one_line(ran.err)
    assert f"i/o error: {sock}//value: EIO: try 'ninep cat {sock}//dev/errstr' if that is a node, or the server" in line
