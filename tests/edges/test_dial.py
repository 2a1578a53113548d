"""Addresses mean what the manual says, and none of them becomes an option, a shell word or a path of ours."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ninep.edges import dial
from ninep.edges.dial import Address, Link, connect_link, connect_link_trio, parse
from ninep.proto import errors as E


def fields(text: str) -> dict[str, object]:
    """What of an address differs from the defaults."""
    address = parse(text)
    plain = Address(text=text, transport=address.transport)
    return {
        f: getattr(address, f)
        for f in address.__struct_fields__
        if f != "text" and (f == "transport" or getattr(address, f) != getattr(plain, f))
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9p://h", {"transport": "tcp", "host": "h", "port": 564}),
        ("9p://h:5/a/b%20c", {"transport": "tcp", "host": "h", "port": 5, "path": ("a", "b c")}),
        ("9p://[::1]:5/", {"transport": "tcp", "host": "::1", "port": 5}),
        ("9p://[fe80::1%eth0]", {"transport": "tcp", "host": "fe80::1%eth0", "port": 564}),
        ("9p://h/a/../../b/./c", {"transport": "tcp", "host": "h", "port": 564, "path": ("b", "c")}),
        (
            "9p://h/?aname=%2Fsrv&dialect=9P2000.u&uname=glenda&msize=8192",
            {
                "transport": "tcp",
                "host": "h",
                "port": 564,
                "aname": "/srv",
                "dialect": "9P2000.u",
                "uname": "glenda",
                "msize_bytes": 8192,
            },
        ),
        ("9p+unix:///run/x.sock", {"transport": "unix", "socket_path": "/run/x.sock"}),
        ("9p+unix:///run/x.sock//a/b", {"transport": "unix", "socket_path": "/run/x.sock", "path": ("a", "b")}),
        ("9p+unix:///run/x.sock?aname=A", {"transport": "unix", "socket_path": "/run/x.sock", "aname": "A"}),
        ("unix!/run/x.sock", {"transport": "unix", "socket_path": "/run/x.sock"}),
        ("unix!@abstract", {"transport": "unix", "socket_path": "@abstract"}),
        ("tcp!h!9fs", {"transport": "tcp", "host": "h", "port": 564}),
        ("tcp!::1!17/a", {"transport": "tcp", "host": "::1", "port": 17, "path": ("a",)}),
        ("tcp![::1]!17/a", {"transport": "tcp", "host": "::1", "port": 17, "path": ("a",)}),
        ("exec!prog 'a b' c", {"transport": "exec", "argv": ("prog", "a b", "c")}),
        ("9p+exec:prog -x", {"transport": "exec", "argv": ("prog", "-x")}),
        ("9p+fd://3", {"transport": "fd", "fds": (3, 3)}),
        ("9p+fd://3,4", {"transport": "fd", "fds": (3, 4)}),
        ("stdio:", {"transport": "fd", "fds": (0, 1)}),
        ("ninep://h/x", {"transport": "tls", "host": "h", "port": dial.PORT_NINEP, "path": ("x",)}),
    ],
)
def test_address_means(text: str, expected: dict[str, object]) -> None:
    assert fields(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "h", "http://h", "9p:/h", "9p://", "9p://h:0", "9p://h:65536", "9p://h:x", "9p://-h", "9p://h h", "9p://h/%00",
        "9p://h/%zz", "9p://h/a%2Fb", "9p://h/?x=1", "9p://h/?aname=a&aname=b", "9p://h/?dialect=9P3000", "9p://h/?msize=-1",
        "9p://[::1", "9p://[zz]", "9p://h/a\nb", "9p://h/#f", "9p+unix://", "unix!", "exec!", "exec!'a", "9p+fd://x",
        "9p+fd://-1", "tcp!", "tcp!-h!1", "9p://h/" + "n" * 256, "unix!/" + "n" * 108,
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(E.FileError):
        parse(text)


@pytest.mark.sec(71)
@pytest.mark.parametrize(
    "text",
    [
        "ssh://-oProxyCommand=x/", "ssh://[-oX]/", "ssh://a;b@h/", "ssh://$(x)@h/", "ssh://u%00@h/", "ssh://h%00/",
        "ssh://u\n@h/", "ssh://h\n/", "ssh://-u@h/", "ssh://h:-p/", "ssh://h/%00", "ssh://u@h:22;x/", "ssh://`x`/", "ssh://",
        "ssh://h:22 -x/", "ssh://u@@h/", "ssh://h&x/",
    ],
)  # fmt: skip
def test_ssh_host_or_user_that_could_be_an_option_is_refused(text: str) -> None:
    with pytest.raises(E.FileError):
        parse(text)


@pytest.mark.sec(71)
def test_ssh_runs_an_argument_vector_with_dashes_before_the_host() -> None:
    argv = parse("ssh://bob@host:2222/srv/my%20files//notes").argv
    assert argv[0] == "ssh"
    at = argv.index("--")
    assert argv[at + 1] == "host"
    assert argv[at + 2 :] == ("ninep serve --stdio 'host:/srv/my files'",)
    assert argv[argv.index("-l") + 1] == "bob"
    assert argv[argv.index("-p") + 1] == "2222"
    assert parse("ssh://bob@host/srv//notes/x").path == ("notes", "x")
    assert parse("ssh://host/$(touch x);y").argv[-1] == "ninep serve --stdio 'host:/$(touch x);y'"


@pytest.mark.sec(71)
def test_without_the_host_check_an_option_would_reach_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "_host", lambda host, *, bracketed=False: host)
    argv = parse("ssh://-oProxyCommand=x/").argv
    assert "-oProxyCommand=x" in argv
    assert argv.index("-oProxyCommand=x") > argv.index("--")  # and the second guard would still stand


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_FileError(text: str) -> None:
    for prefix in ("", "9p://", "ssh://", "9p+unix://", "tcp!", "exec!", "9p://h/?"):
        try:
            address = parse(prefix + text)
        except E.FileError:
            continue
        assert not any("/" in name or "\0" in name or name in ("", ".", "..") for name in address.path)
        assert not address.host.startswith("-")


def test_at_continues_or_replaces_the_path() -> None:
    address = parse("9p://h/a/b")
    assert address.at("c/d").path == ("a", "b", "c", "d")
    assert address.at("/c").path == ("c",)
    assert address.at("..").path == ("a",)
    assert address.at("").path == ("a", "b")


def echo(link: Link) -> bytes:
    """What the other end of an echo server says."""
    assert link.sock is not None
    link.sock.setblocking(True)
    link.sock.sendall(b"ping")
    return link.sock.recv(4)


def listener(tmp_path: Path) -> tuple[socket.socket, str]:
    sock = socket.socket(socket.AF_UNIX)
    path = str(tmp_path / "s")
    sock.bind(path)
    sock.listen()
    return sock, path


def test_connects_to_a_program_and_ends_it() -> None:
    link = connect_link(parse("exec!cat"))
    assert echo(link) == b"ping"
    process = link.process
    assert process is not None
    link.close()
    assert process.returncode == 0
    link.close()


def test_program_that_is_not_there_is_a_FileError() -> None:
    with pytest.raises(E.Enonexist):
        connect_link(parse("exec!/no/such/program"))


async def test_connects_under_trio(tmp_path: Path) -> None:
    link = await connect_link_trio(parse("exec!cat"))
    assert link.sock is not None
    assert not link.sock.getblocking()
    assert echo(link) == b"ping"
    link.close()
    server, path = listener(tmp_path)
    with server:
        link = await connect_link_trio(parse(f"unix!{path}"))
        link.close()
    with pytest.raises(E.Econnrefused):
        await connect_link_trio(parse(f"unix!{path}"))


async def test_refused_tcp_says_so_in_both_connectors() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = parse(f"9p://127.0.0.1:{sock.getsockname()[1]}")
        with pytest.raises(E.Econnrefused):
            connect_link(address)
        with pytest.raises(E.Econnrefused):
            await connect_link_trio(address)


def test_adopts_descriptors() -> None:
    a, b = socket.socketpair()
    with b:
        link = connect_link(parse(f"9p+fd://{a.detach()}"))
        assert link.sock is not None
        link.close()
        assert b.recv(1) == b""
    read, write = os.pipe()
    link = connect_link(parse(f"9p+fd://{read},{write}"))
    assert link.fds == (read, write)
    link.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)


def test_importing_the_blocking_client_imports_no_event_loop() -> None:
    code = "import sys, ninep.edges.blocking; print([m for m in ('trio','asyncio','subprocess') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert out.stdout.strip() == "[]"
