"""Parts of the programs that no run of them shows quickly: progress, an executed client, what a server hides."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ninep, one_line
from servers import program, serving, start, wait_until

from ninep.cli import output
from ninep.cli.copy import Progress, human
from ninep.cli.output import Output, escaped


@pytest.mark.feature("cli-cp")
def test_progress_tells_rate_and_time_left() -> None:
    progress = Progress(Output(), 300 << 20)
    progress.done = 100 << 20
    assert progress.line(progress._begun + 2.0) == "100.0 MiB  50.0 MiB/s  33 %  0:04 left"
    assert Progress(Output(), 0).line(progress._begun + 1).startswith("0 B  0 B/s")
    assert [human(n) for n in (0, 1023, 1024, 5 << 40)] == ["0 B", "1023 B", "1.0 KiB", "5.0 TiB"]


@pytest.mark.sec(75)
def test_sec_75_every_character_that_steers_is_escaped_and_no_other() -> None:
    for code in (*range(0x20), 0x7F, 0x85, 0x9B, 0x202E, 0x2066, 0x2028, 0x200F, 0xFEFF):
        shown = escaped(f"a{chr(code)}b")
        assert chr(code) not in shown
        assert shown.startswith("a\\")
    for text in ("plain", "é", "日本", "a b", "ü\u0301"):
        assert escaped(text) == text
    assert escaped("\udcff") == "\\xff"


@pytest.mark.sec(75)
def test_without_the_list_of_characters_that_steer_they_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "is_control", lambda char: False)
    assert escaped("a\x1b]0;owned\x07b") == "a\x1b]0;owned\x07b"


@pytest.mark.feature("edge-exec")
def test_a_program_that_speaks_9p_as_a_client_is_served(tmp_path: Path) -> None:
    """The program's standard input and output are the connection; the server ends when it does."""
    client = tmp_path / "client.py"
    client.write_text(
        "import os\n"
        "os.write(1, bytes.fromhex('1300000064ffff002000000600395032303030'))\n"
        f"open({str(tmp_path / 'got')!r}, 'wb').write(os.read(0, 100))\n"
    )
    argv = [program("ninep"), "serve", "ram:", "--listen", f"exec:{sys.executable} {client}"]
    with start(argv) as server:
        assert server.process.wait(15) == 0
    assert (tmp_path / "got").read_bytes()[4] == 101
    assert ninep("serve", "ram:", "--listen", "exec:/no/such/program").code == 3
    assert ninep("serve", "ram:", "--listen", "exec:").code == 2


@pytest.mark.sec(133)
def test_sec_133_the_state_directory_is_never_exported(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    words = ("serve", f"host:{state}", "--listen", f"9p+unix://{tmp_path}/run/s")
    ran = ninep(*words, env={"NINEP_STATE": str(state)})
    assert ran.code == 78
    assert "it holds keys" in one_line(ran.err)


def closed(how: str, *args: str) -> tuple[int, str]:
    """(exit code, standard error) of ninep under a redirection of the shell."""
    done = subprocess.run(
        ["sh", "-c", f'"$@" {how}', "sh", program("ninep"), *args], stderr=subprocess.PIPE, timeout=20, check=False
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.feature("cli-json")
def test_a_closed_standard_output_is_one_line_and_never_the_connection() -> None:
    with serving("ram:") as server:
        assert closed(">&-", "mkdir", f"{server.url}//d")[0] == 0  # it has nothing to print
        for words in (("ls", server.url), ("--version",), ("ls", "--help"), ("config", "show"), ("completion", "zsh")):
            code, err = closed(">&-", *words)
            assert code == 1, words
            assert one_line(err).endswith("standard output is closed: EBADF"), words
            code, err = closed(">/dev/full", *words)
            assert (code, one_line(err).endswith("no space left on device: ENOSPC")) == (1, True), words
            assert closed(">&- 2>&- <&-", *words) == (1, "")
        assert ninep("ls", server.url).out == "d\n"


@pytest.mark.feature("edge-exec")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_client_that_is_told_to_end_ends_the_program_behind_it_first(tmp_path: Path, number: signal.Signals) -> None:
    pid_file = tmp_path / "pid"
    child = tmp_path / "child"
    child.write_text(f"#!/bin/sh\necho $$ >{pid_file}.new && mv {pid_file}.new {pid_file}\nexec sleep 77\n")
    child.chmod(0o755)
    client = subprocess.Popen([program("ninep"), "ls", f"9p+exec:{child}"], stderr=subprocess.PIPE)
    try:
        wait_until(pid_file.exists, "the program behind the connection")
        pid = int(pid_file.read_text())
        client.send_signal(number)
        _, err = client.communicate(timeout=20)
    finally:
        client.kill()
    assert client.returncode == (130 if number == signal.SIGINT else -number)
    assert err == b""
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.feature("cli-json")
def test_json_is_json_also_of_the_version_the_help_and_the_completion() -> None:
    version = ninep("--version").out.split()[1]
    for words in (("--json", "--version"), ("--version", "--json"), ("--json", "version")):
        assert ninep(*words).json() == {"v": 1, "version": version}
    for json_words, words in (
        (("--json", "--help"), ("--help",)),
        (("ls", "--help", "--json"), ("ls", "--help")),
        (("--json", "help", "ls"), ("ls", "--help")),
        (("--json", "completion", "bash"), ("completion", "bash")),
    ):
        assert ninep(*json_words).json() == {"v": 1, "text": ninep(*words).out}
