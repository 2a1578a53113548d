"""--listen on the command line: from URLs and inherited descriptors to open sockets, with what must be refused refused.

Each listener gets its own policy: what a unix socket proves must not be weakened by what is believed over TCP.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from ninep.config import ListenTable
from ninep.edges.dial import Address, parse
from ninep.edges.listen import bind, inherited, is_loopback
from ninep.edges.policy import Policy
from ninep.proto import errors as E

from .failure import Failure, Refusal, UsageError, from_error
from .output import Output
from .trees import host_spec

STDIO = ("stdio", "stdio:", "-")


class Rules(NamedTuple):
    """Whom to believe and where to listen: options over configuration."""

    plaintext_off_host: bool = False
    trust_uname: bool = False
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    socket_mode: int = 0o600
    as_root: bool = False

    @property
    def unix_policy(self) -> Policy:
        """The peer is whom the kernel says he is; the owner, root and the users named may connect (SEC-142)."""
        uids = frozenset((0, os.geteuid())) | self.uids if self.uids else None
        return Policy(allow_uids=uids, allow_gids=self.gids)

    @property
    def tcp_policy(self) -> Policy:
        return Policy(trust_uname=self.trust_uname)


class Opened(NamedTuple):
    """What was asked for, opened: listening sockets, connections that are there already, and whether stdio is one."""

    unix: list[socket.socket]
    tcp: list[socket.socket]
    connected: list[socket.socket]
    children: list[tuple[socket.socket, int]]
    stdio: tuple[int, int] | None
    texts: list[str]

    def close(self) -> None:
        for sock in [*self.unix, *self.tcp, *self.connected, *(sock for sock, _ in self.children)]:
            sock.close()


def rules(args: argparse.Namespace, table: ListenTable) -> Rules:
    """The rules of one server.  Raises UsageError."""
    uids = frozenset(_ids(args.allow_uid)) | frozenset(table.allow_uids)
    gids = frozenset(_ids(args.allow_gid)) | frozenset(table.allow_gids)
    mode = args.socket_mode
    if mode is None:
        mode = int(table.socket_mode, 8)
        if mode == 0o600 and (uids or gids):
            mode = 0o666  # who may connect is then decided when they do, by what the kernel says of them
    return Rules(
        args.plaintext_off_host or table.plaintext_off_host,
        args.trust_uname or table.trust_uname,
        uids,
        gids,
        mode,
        args.as_root or table.as_root,
    )


def _ids(texts: Sequence[str]) -> list[int]:
    for text in texts:
        if not text.isascii() or not text.isdigit() or int(text) >= 0xFFFFFFFF:
            raise UsageError(f"not a numeric id: {text[:20]!r}", hint="a number: id -u NAME prints it")
    return [int(text) for text in texts]


def urls_of(args: argparse.Namespace, table: ListenTable) -> list[str]:
    """Where to listen: options, else NINEP_LISTEN, else the file."""
    return list(args.listen) or os.environ.get("NINEP_LISTEN", "").split() or list(table.urls)


def keep_stdio() -> tuple[int, int]:
    """Standard input and output as descriptors of their own: from now on whatever a tree prints goes elsewhere."""
    fds = (os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return fds


def open_all(urls: Sequence[str], held: Rules, output: Output, stdio: tuple[int, int] | None = None) -> Opened:
    """Open everything or nothing.  Raises Failure; what must not be served so is refused before anything is bound.

    `stdio` is what keep_stdio gave, where one of the urls is stdio.
    """
    opened = Opened([], [], [], [], stdio, [])
    plans: list[tuple[str, Address | None]] = []
    for url in urls:
        address = None if _is_plain(url) else _address(url)
        if address is not None:
            check_allowed(address, held)
        plans.append((url, address))
    try:
        for url, address in plans:
            if url in STDIO:
                continue  # the caller has kept its descriptors, before any tree could print
            if url.startswith("fd:"):
                _take(_inherited_fd(url), opened)
            elif url.startswith("exec:"):
                opened.children.append(_spawned(url.removeprefix("exec:")))
            elif address is not None:
                _bind(address, held, opened)
        for sock in inherited():
            _take(sock, opened)
    except BaseException:
        opened.close()
        raise
    if opened.tcp and held.trust_uname:
        output.note("--trust-uname: whoever reaches the TCP port is whoever they say they are")
    return opened


def _is_plain(url: str) -> bool:
    return url in STDIO or url.startswith(("fd:", "exec:"))


def _address(url: str) -> Address:
    """The address to listen on; unlike a client's it may have port 0, which the kernel picks."""
    picks = url.startswith("9p://") and url.rstrip("/").endswith(":0")
    try:
        address = parse(url.rstrip("/")[:-2] if picks else url)
    except E.FileError as e:
        raise UsageError(f"--listen: {e.about or e.text}", hint="9p://127.0.0.1:5640 or 9p+unix:///path") from None
    if address.transport not in ("tcp", "unix"):
        raise UsageError(f"--listen: cannot listen on {url[:80]}", hint="9p://127.0.0.1:5640 or 9p+unix:///path")
    return msgspec.structs.replace(address, port=0) if picks else address


def check_allowed(address: Address, held: Rules) -> None:
    """Refuse what nobody should serve by accident (SEC-133)."""
    if is_loopback(address):
        return
    if not held.plaintext_off_host:
        raise Refusal(
            f"{address.text}: plain 9P beyond loopback is neither encrypted nor authenticated",
            "9p://127.0.0.1, ssh:// from the client, or --plaintext-off-host if the network is yours",
        )
    if os.geteuid() == 0 and not held.as_root:
        raise Refusal(f"{address.text}: root would serve beyond loopback", "another user, or --as-root")


def check_native(tree: str, urls: list[str]) -> None:
    """A network listener must not act with rights that nobody on the network has proven (architecture A8)."""
    if not tree.startswith("host:") or host_spec(tree[5:]).ownership != "native":
        return
    for url in urls:
        if not _is_plain(url) and _address(url).transport == "tcp":
            where = "loopback proves nobody" if is_loopback(_address(url)) else "the network proves nobody"
            raise Refusal(f"{url}: native ownership over TCP: {where}", "9p+unix:///path, or no :native")


def _bind(address: Address, held: Rules, opened: Opened) -> None:
    try:
        sockets = bind(address, socket_mode=held.socket_mode)
    except E.FileError as e:
        hint = "another path, or end that server" if isinstance(e, E.Einuse) else ""
        raise from_error(e, address.text, hint) from None
    except OSError as e:
        hint = {98: "another port, or end the server that has it", 13: "a port above 1023"}.get(e.errno or 0, "")
        raise from_error(e, address.text, hint) from None
    for sock in sockets:
        if address.transport == "unix":
            opened.unix.append(sock)
            opened.texts.append(address.text)
        else:
            sock.listen(512)
            opened.tcp.append(sock)
            opened.texts.append(url_of(sock))


def url_of(sock: socket.socket) -> str:
    """The URL that a client would use for a bound socket."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        text = os.fsdecode(name)
        return f"9p+unix://@{text[1:]}" if text.startswith("\0") else f"9p+unix://{text}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"9p://{host}:{name[1]}"


def _inherited_fd(url: str) -> socket.socket:
    number = url.removeprefix("fd:").lstrip("/")
    if not number.isascii() or not number.isdigit() or len(number) > 6:
        raise UsageError(f"--listen: not a descriptor: {url[:40]}", hint="fd:3")
    try:
        os.set_inheritable(int(number), False)
        return socket.socket(fileno=int(number))
    except OSError as e:
        raise from_error(e, url, "a socket that the parent process leaves open") from None


def _take(sock: socket.socket, opened: Opened) -> None:
    """An inherited socket: a listener or a connection.  Which family decides which policy."""
    if sock.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        raise Failure("inherited socket of an unknown family")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        opened.connected.append(sock)
        opened.texts.append(f"fd:{sock.fileno()}")
        return
    (opened.unix if sock.family == socket.AF_UNIX else opened.tcp).append(sock)
    opened.texts.append(url_of(sock))


def _spawned(command: str) -> tuple[socket.socket, int]:
    """A program that speaks 9P as a client on its stdin and stdout; it is started before the server is."""
    import shlex
    import subprocess

    try:
        argv = shlex.split(command)
        if not argv:
            raise ValueError("no command")
    except ValueError as e:
        raise UsageError(f"--listen exec: {e}", hint="'exec:PROGRAM ARGS'") from None
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno())
        except OSError as e:
            ours.close()
            raise from_error(e, argv[0]) from None
    return ours, process.pid
