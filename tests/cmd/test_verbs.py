"""The client verbs do what they say, on a served ram tree, and fail with the right code and one line."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import ninep, one_line
from servers import program, serving

pytestmark = [pytest.mark.feature("cli-json"), pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("ram:") as server:
        yield server.url


@pytest.fixture
def base(url: str, request: pytest.FixtureRequest) -> str:
    """A directory of its own for each test."""
    made = f"{url}//{request.node.name[:100].replace('/', '_').replace('[', '_').rstrip(']')}"
    assert ninep("mkdir", made).code == 0
    return made


def put(where: str, text: str | bytes) -> None:
    ran = ninep("write", "--create", where, stdin=text)
    assert ran.code == 0, ran.err


def get(where: str) -> str:
    ran = ninep("cat", where)
    assert ran.code == 0, ran.err
    return ran.out


# -- looking


@pytest.mark.feature("cli-cat", "edge-stream", "client-blocking")
def test_cat_prints_whole_files_in_order_and_goes_on_after_one_that_fails(base: str) -> None:
    put(f"{base}/a", "one\n")
    put(f"{base}/b", "two\n")
    assert get(f"{base}/a") == "one\n"
    ran = ninep("cat", f"{base}/a", f"{base}/missing", f"{base}/b")
    assert (ran.code, ran.out) == (3, "one\ntwo\n")
    line = one_line(ran.err)
    assert line.startswith("ninep: cat: file does not exist: ")
    assert f": {base}/missing: ENOENT: try 'ninep ls {base}'" in line


@pytest.mark.feature("cli-cat")
def test_cat_of_a_large_file_is_byte_for_byte_the_same(base: str) -> None:
    data = os.urandom(3 << 20)
    put(f"{base}/big", data)
    done = subprocess.run([program("ninep"), "cat", f"{base}/big"], capture_output=True, timeout=20, check=True)
    assert done.stdout == data


@pytest.mark.feature("cli-cat")
def test_json_holds_text_or_base64_and_the_version(base: str) -> None:
    put(f"{base}/a", "hé\n")
    put(f"{base}/b", b"\xff\x00")
    first, second = ninep("cat", "--json", f"{base}/a", f"{base}/b").lines()
    assert first == {"v": 1, "url": f"{base}/a", "text": "hé\n"}
    assert second["base64"] == "/wA="


@pytest.mark.feature("cli-ls")
def test_ls_sorts_and_shows_long_and_json(base: str) -> None:
    for name in ("b", "a", "c"):
        put(f"{base}/{name}", name * 3)
    ninep("mkdir", "-m", "750", f"{base}/d")
    assert ninep("ls", base).out == "a\nb\nc\nd\n"
    long = ninep("ls", "-l", base).out.splitlines()
    assert long[0].startswith("-rw-r--r--")
    assert long[0].endswith(" a")
    assert " 3 " in long[0]
    assert long[3].startswith("drwxr-x---")
    rows = ninep("ls", "--json", base).lines()
    assert [(row["v"], row["name"], row["type"]) for row in rows][2:] == [(1, "c", "file"), (1, "d", "dir")]
    assert ninep("ls", "-l", "--json", base).lines()[0]["size"] == 3
    assert ninep("ls", f"{base}/a").out == "a\n"
    assert ninep("ls", "-d", base).out == f"{base}\n"
    assert sorted(ninep("ls", "-U", base).out.split()) == ["a", "b", "c", "d"]
    assert ninep("ls", f"{base}/nope").code == 3


@pytest.mark.feature("cli-stat")
def test_stat_shows_what_is_there(base: str) -> None:
    put(f"{base}/f", "12345")
    ninep("chmod", "640", f"{base}/f")
    out = ninep("stat", f"{base}/f").out
    assert "name   f\ntype   file\nmode   0640 -rw-r-----\nsize   5\n" in out
    told = ninep("stat", "--json", f"{base}/f").json()
    assert (told["size"], told["mode"], told["type"], told["uid"]) == (5, "0640", "file", os.getuid())
    assert told["qid"]["type"] == 0
    assert ninep("stat", f"{base}/x").code == 3


@pytest.mark.feature("cli-read")
def test_read_takes_a_part_or_one_message(base: str) -> None:
    put(f"{base}/f", "0123456789")
    assert ninep("read", "-o", "2", "-c", "3", f"{base}/f").out == "234"
    assert ninep("read", f"{base}/f").out == "0123456789"
    assert ninep("read", "--json", "-c", "1", f"{base}/f").json()["text"] == "0"
    assert ninep("read", "-c", "x", f"{base}/f").code == 2
    assert ninep("read", f"{base}/none").code == 3


@pytest.mark.feature("cli-walk")
def test_walk_shows_how_far_a_path_goes(base: str) -> None:
    ninep("mkdir", "-p", f"{base}/a/b")
    rows = ninep("walk", "--json", f"{base}/a/b").lines()
    assert [row["name"] for row in rows][-2:] == ["a", "b"]
    assert all(row["type"] == "dir" for row in rows)
    ran = ninep("walk", f"{base}/a/x/y")
    assert ran.code == 3
    assert ran.out.splitlines()[-1].endswith(" a")
    one_line(ran.err)


@pytest.mark.feature("cli-tail")
def test_tail_prints_the_last_lines_and_then_what_is_added(base: str) -> None:
    put(f"{base}/log", "".join(f"{n}\n" for n in range(20)))
    assert ninep("tail", "--once", f"{base}/log").out == "".join(f"{n}\n" for n in range(10, 20))
    assert ninep("tail", "--once", "--lines", "0", f"{base}/log").out == ""
    with subprocess.Popen([program("ninep"), "tail", "--lines", "1", f"{base}/log"], stdout=subprocess.PIPE) as tail:
        try:
            assert read_until(tail, b"19\n") == b"19\n"
            ninep("write", "-a", f"{base}/log", "more")
            assert read_until(tail, b"more\n") == b"more\n"
        finally:
            tail.send_signal(signal.SIGINT)
            assert tail.wait(10) == 130
    assert ninep("tail", "--once", f"{base}/no").code == 3


def read_until(process: subprocess.Popen[bytes], end: bytes) -> bytes:
    """What the process prints until it has printed `end`."""
    assert process.stdout is not None
    out, deadline = b"", time.monotonic() + 10
    while not out.endswith(end):
        assert time.monotonic() < deadline, out
        if select.select([process.stdout], [], [], 0.1)[0]:
            data = os.read(process.stdout.fileno(), 65536)
            assert data, out
            out += data
    return out


# -- changing


COUNTER = """
from ninep import Dir, ctl

class Counter(Dir):
    @ctl
    def add(self, amount: int = 1) -> None:
        "add amount to the counter"
"""


@pytest.mark.feature("cli-write")
def test_a_ctl_files_own_words_reach_the_writer(tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER)
    with serving(f"py:{tmp_path}/counter.py:Counter") as server:
        ran = ninep("write", f"{server.url}//ctl", "sub 3")
        assert ran.code == 1
        assert 'line 1: "sub 3": commands are add' in one_line(ran.err)
        assert ninep("write", f"{server.url}//ctl", "add 3").code == 0


@pytest.mark.feature("cli-write")
def test_write_takes_words_standard_input_or_lines(base: str) -> None:
    f = f"{base}/f"
    assert ninep("write", f, "x").code == 3
    assert "try --create" in ninep("write", f, "x").err
    assert ninep("write", "-c", f, "hello", "world").code == 0
    assert get(f) == "hello world\n"
    assert ninep("write", "--no-newline", f, "short").code == 0
    assert get(f) == "short"
    assert ninep("write", "-a", f, "er").code == 0
    assert get(f) == "shorter\n"
    assert ninep("write", "-o", "0", "--no-newline", f, "S").code == 0
    assert get(f) == "Shorter\n"
    assert ninep("write", "--json", f, stdin="from stdin").json()["written"] == 10
    assert ninep("write", "--lines", f, stdin="a\nb\n").code == 0
    assert get(f) == "a\nb\n"
    assert ninep("write", "-a", "-o", "3", f, "x").code == 2
    assert ninep("write", base, "x").code == 1


@pytest.mark.feature("cli-create")
def test_create_makes_an_empty_file_with_a_mode_or_says_that_it_is_there(base: str) -> None:
    assert ninep("create", "-m", "600", f"{base}/f").code == 0
    assert ninep("stat", "--json", f"{base}/f").json()["mode"] == "0600"
    ran = ninep("create", f"{base}/f")
    assert ran.code == 6
    assert ": EEXIST: try " in one_line(ran.err)
    assert ninep("create", "-m", "9", f"{base}/g").code == 2


@pytest.mark.feature("cli-mkdir", "cli-rm")
def test_mkdir_and_rm(base: str) -> None:
    assert ninep("mkdir", f"{base}/a/b").code == 3
    assert ninep("mkdir", "-p", f"{base}/a/b", f"{base}/a/b/c").code == 0
    assert ninep("mkdir", f"{base}/a").code == 6
    assert ninep("mkdir", "-p", f"{base}/a").code == 0
    put(f"{base}/a/b/f", "x")
    ran = ninep("rm", f"{base}/a")
    assert ran.code == 6
    assert "ENOTEMPTY: try 'ninep rm -r'" in ran.err
    assert ninep("rm", "-r", f"{base}/a").code == 0
    assert ninep("ls", base).out == ""
    assert ninep("rm", f"{base}/a").code == 3
    assert ninep("rm", "-f", f"{base}/a").code == 0


@pytest.mark.feature("cli-mv")
def test_mv_renames_in_place_and_across_directories(base: str, url: str) -> None:
    put(f"{base}/a", "x")
    ninep("mkdir", f"{base}/d")
    assert ninep("mv", f"{base}/a", "b").code == 0
    assert ninep("ls", base).out == "b\nd\n"
    assert ninep("mv", f"{base}/b", f"{base}/d/c").code == 0
    assert get(f"{base}/d/c") == "x"
    put(f"{base}/e", "y")
    ran = ninep("mv", "-T", f"{base}/e", "d")
    assert ran.code == 6
    assert ninep("mv", f"{base}/none", "x").code == 3
    assert ninep("mv", f"{base}/e", "9p://127.0.0.1:1/x").code == 2


@pytest.mark.feature("cli-chmod")
def test_chmod_knows_octal_and_letters(base: str) -> None:
    put(f"{base}/f", "")

    def mode() -> str:
        return str(ninep("stat", "--json", f"{base}/f").json()["mode"])

    for spec, wanted in (("600", "0600"), ("u+x,go=r", "0744"), ("a-r", "0300"), ("ug=rw", "0660"), ("o=X", "0660")):
        assert ninep("chmod", spec, f"{base}/f").code == 0
        assert mode() == wanted, spec
    assert ninep("chmod", "q+r", f"{base}/f").code == 2
    assert ninep("chmod", "600", f"{base}/none").code == 3


@pytest.mark.feature("cli-cp")
def test_cp_goes_both_ways_and_copies_trees(base: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    data = os.urandom(2 << 20)
    (tree / "sub/big").write_bytes(data)
    (tree / "x").write_text("x")
    (tree / "x").chmod(0o750)
    (tree / "link").symlink_to("x")
    assert ninep("cp", str(tree), f"{base}/t").code == 1
    ran = ninep("cp", "-r", "--json", str(tree), f"{base}/t")
    assert (ran.json()["files"], ran.json()["bytes"]) == (3, len(data) + 1)
    assert ninep("cp", "-r", f"{base}/t", str(tmp_path / "back")).code == 0
    back = tmp_path / "back"
    assert (back / "sub/big").read_bytes() == data
    assert (back / "x").stat().st_mode & 0o777 == 0o750
    assert (back / "link").readlink() == Path("x")
    assert ninep("cp", f"{base}/t/x", f"{base}/y").code == 0
    assert ninep("cp", f"{base}/y", "-").out == "x"
    assert ninep("cp", "-", f"{base}/z", stdin="piped").code == 0
    assert get(f"{base}/z") == "piped"
    assert ninep("cp", "-T", f"{base}/y", f"{base}/z").code == 6
    assert ninep("cp", f"{base}/none", str(tmp_path / "n")).code == 3
    assert not (tmp_path / "n").exists()
    assert ninep("cp", str(tmp_path / "none"), f"{base}/q").code == 3
    assert ninep("cp", "a", "b").code == 2


@pytest.mark.feature("cli-cp")
def test_cp_never_writes_through_a_link_that_is_in_the_way(base: str, tmp_path: Path) -> None:
    put(f"{base}/f", "theirs")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "f").symlink_to(victim)
    assert ninep("cp", f"{base}/f", str(tmp_path / "f")).code != 0
    assert victim.read_text() == "mine"


# -- how they fail


@pytest.mark.parametrize("args", [["ls"], ["cat", "x"], ["stat", "/"], ["rm", "x"], ["tail", "x"], ["walk", "x"]])
def test_a_server_that_is_not_there_is_exit_code_5(args: list[str], tmp_path: Path) -> None:
    ran = ninep(*args, env={"NINEP_NODE": f"9p+unix://{tmp_path}/none"})
    assert ran.code == 5
    assert "try 'ninepd' to start one, or -n URL" in one_line(ran.err)
    ran = ninep("cat", "9p://127.0.0.1:9/x")
    assert ran.code == 5
    assert "ECONNREFUSED" in ran.err


def test_a_server_that_says_nothing_times_out(tmp_path: Path) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ran = ninep("cat", "--timeout", "0.3", f"9p://127.0.0.1:{silent.getsockname()[1]}/x")
    assert ran.code == 5
    assert "ETIMEDOUT" in one_line(ran.err)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "no verb"),
        (["catt"], "no such verb: catt: try 'ninep cat'"),
        (["--nope"], "no such option: --nope"),
        (["cat"], "cat: the following arguments are required: URL"),
        (["cat", "--jso", "/x"], "unrecognized arguments: --jso"),
        (["ls", "--timeout", "0", "/"], "not a number of seconds"),
        (["cat", "9p://h:99999/"], "port"),
        (["cat", "http://h/"], "not an address"),
        (["cat", ""], "empty address"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_exit_code_2(args: list[str], said: str) -> None:
    ran = ninep(*args)
    assert ran.code == 2
    assert said in one_line(ran.err)
    assert ran.out == ""


def test_an_error_is_an_object_with_json(url: str) -> None:
    told = ninep("cat", "--json", f"{url}//no").error()
    assert told["v"] == 1
    assert (told["verb"], told["errno"], told["code"]) == ("cat", "ENOENT", 3)
    assert told["where"] == f"{url}//no"
    assert told["try"].startswith("'ninep ls")
    assert ninep("--json", "nope").error()["code"] == 2


def test_a_relative_path_goes_to_the_node(url: str) -> None:
    put(f"{url}//relative", "here")
    assert ninep("cat", "/relative", env={"NINEP_NODE": url}).out == "here"
    assert ninep("cat", "-n", url, "relative").out == "here"
    assert ninep("cp", "-n", url, "node:/relative", "-").out == "here"


@pytest.mark.feature("cli-read")
@pytest.mark.parametrize("verb", ["cat", "read", "tail"])
def test_ctrl_c_in_a_blocked_read_ends_with_130_and_no_words(verb: str) -> None:
    with serving("kernel:") as server:
        argv = [program("ninep"), verb, f"{server.url}//dev/kprint"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            time.sleep(0.01)
            wait_for_park(server.url)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
            assert time.monotonic() - begun < 1.0  # liveness: 4 x 250 ms
        assert (process.returncode, out, err) == (130, b"", b"")
        assert ninep("cat", f"{server.url}//dev/time").code == 0


def wait_for_park(url: str) -> None:
    """Until a read is parked at the server."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if "parked 1" in " ".join(ninep("cat", f"{url}//dev/stats/live").out.split("\n")):
            return
    raise AssertionError(ninep("ls", f"{url}//dev/stats").out)


def test_a_reader_that_goes_away_is_no_failure_worth_a_word(url: str) -> None:
    put(f"{url}//wide", "y\n" * 2_000_000)
    command = f"{program('ninep')} cat {url}//wide | head -c1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"y", b"")


def on_terminal(*argv: str) -> str:
    """What a program prints when its standard output is a terminal."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen([program("ninep"), *argv], stdout=theirs, stdin=theirs, stderr=subprocess.DEVNULL) as p:
            p.wait(20)
        os.set_blocking(ours, False)
        try:
            return os.read(ours, 65536).decode()
        except BlockingIOError:
            return ""
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.sec(75)
def test_sec_75_a_name_cannot_steer_the_terminal(base: str) -> None:
    evil = "a\x1b]0;owned\x07\u202eb"
    put(f"{base}/{evil.replace(chr(27), '%1B').replace(chr(7), '%07')}", "x")
    shown = on_terminal("ls", base)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert shown.strip() == "a\\x1b]0;owned\\x07\\u202eb"
    # Negative control: without the guard (which --raw takes away) the terminal gets it all.
    assert "\x1b]0;owned" in on_terminal("ls", "--raw", base)
    # A pipe gets the name as it is: programs need it, and the other end decides.
    assert ninep("ls", base).out == evil + "\n"


@pytest.mark.sec(75)
def test_sec_75_a_servers_words_in_an_error_are_one_harmless_line(url: str) -> None:
    ran = ninep("cat", f"{url}//%1B%5B31m%0Ano")
    assert ran.code in (2, 3)
    assert "\x1b" not in one_line(ran.err)


@pytest.mark.slow
@pytest.mark.feature("client-no-trio")
def test_cat_of_a_small_file_takes_no_time_worth_noticing(base: str) -> None:
    put(f"{base}/f", "x")
    took = []
    for _ in range(9):
        begun = time.monotonic()
        assert get(f"{base}/f") == "x"
        took.append(time.monotonic() - begun)
    assert sorted(took)[4] < 0.24  # liveness: 4 x 60 ms
