"""What a URL on the command line means, and the connection to it.

A path without a scheme is one of the local node: -n URL, NINEP_NODE, the configuration, or the node's own socket.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ninep.edges.dial import Address, parse
from ninep.limits import DEFAULT
from ninep.proto import errors as E

from . import failure
from .places import config_file, node_socket

if TYPE_CHECKING:
    from ninep.edges.blocking import Blocking

NODE_PREFIX = "node:"


class Target:
    """One file on one server.  `text` is what the user wrote, `server` says which server for reuse of a connection."""

    def __init__(self, text: str, address: Address) -> None:
        self.text = text
        self.address = address

    @property
    def server(self) -> tuple[object, ...]:
        a = self.address
        return (a.transport, a.host, a.port, a.socket_path, a.argv, a.fds, a.aname, a.uname, a.dialect)

    @property
    def path(self) -> str:
        """The absolute path below the attach point."""
        return "/" + "/".join(self.address.path)

    @property
    def name(self) -> str:
        return self.address.path[-1] if self.address.path else "/"

    def child(self, name: str) -> Target:
        import msgspec

        text, mark, query = self._parts()
        joint = "/" if self.address.path or self.address.transport != "unix" or text.endswith("//") else "//"
        text = f"{text.rstrip('/')}{joint}{name}{mark}{query}"
        return Target(text, msgspec.structs.replace(self.address, path=(*self.address.path, name)))

    def parent(self) -> Target:
        text, mark, query = self._parts()
        text = text.rstrip("/").rpartition("/")[0].rstrip("/") or "/"
        return Target(f"{text}{mark}{query}", self.address.at(".."))

    def _parts(self) -> tuple[str, str, str]:
        """The text, and its query with the mark before it; a plain path has none."""
        return self.text.partition("?") if is_remote(self.text) else (self.text, "", "")


def is_remote(text: str) -> bool:
    """True for what can only be an address, or says `node:`; a plain path may mean either side."""
    if text.startswith((NODE_PREFIX, "unix!", "tcp!", "net!", "exec!", "9p+exec:")):
        return True
    return "://" in text and not text.startswith(("/", "."))


def node_url(args: argparse.Namespace) -> str:
    """The address of the local node, as a URL; whether anybody listens there is another question."""
    if url := args.node or os.environ.get("NINEP_NODE"):
        return str(url)
    if url := _configured("node", ""):
        return url
    return f"9p+unix://{node_socket()}"


def _configured(key: str, default: str) -> str:
    """A value of [client]; the file is only read if it is there, so that most starts do not pay for it."""
    if not os.path.exists(config_file()):
        return default
    from .settings import read_config

    return str(getattr(read_config(None)[0].client, key) or default)


def target(text: str, args: argparse.Namespace) -> Target:
    """The file that a URL or a path means.  Raises Failure (usage)."""
    try:
        if not text:
            raise E.Ebadarg("empty address")
        if is_remote(text) and not text.startswith(NODE_PREFIX):
            return Target(text, parse(text))
        path = text.removeprefix(NODE_PREFIX)
        node = parse(node_url(args))
        if "\0" in path:
            raise E.Ebadchar("NUL in path")
        import msgspec

        at = msgspec.structs.replace(node, path=()).at("/" + path)
        return Target(text, at)
    except E.FileError as e:
        raise failure.UsageError(e.about or e.text, hint="9p://host/path, 9p+unix:///socket//path or /path") from None


def _limits(args: argparse.Namespace) -> object:
    seconds = args.timeout
    if seconds is None and (text := os.environ.get("NINEP_TIMEOUT")):
        try:
            seconds = float(text)
        except ValueError:
            raise failure.UsageError(f"NINEP_TIMEOUT is not a number of seconds: {text[:20]!r}") from None
    if seconds is None:
        return DEFAULT
    import msgspec

    return msgspec.structs.replace(
        DEFAULT, reply_seconds_max=seconds, connect_seconds_max=min(seconds, DEFAULT.connect_seconds_max)
    )


class Connections:
    """The connections of one command: one per server, kept until the command ends."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._open: dict[tuple[object, ...], Blocking] = {}

    def to(self, where: Target, *, wants_text: bool = False) -> Blocking:
        """Connected and attached.  Raises Failure: what cannot be reached is exit code 5, or 4 when it refuses."""
        known = self._open.get(where.server)
        if known is not None:
            return known
        from ninep.edges.blocking import Blocking

        try:
            remote = Blocking(where.address, limits=_limits(self._args), wants_text=wants_text)  # type: ignore[arg-type]
        except E.FileError as e:
            raise _unreachable(e, where, self._args) from None
        self._open[where.server] = remote
        return remote

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unreachable(e: E.FileError, where: Target, args: argparse.Namespace) -> failure.Failure:
    told = failure.from_dialling(e, where.address, where.text)
    if isinstance(e, E.Enonexist) and where.address.aname:
        told.hint = "another aname, or none"
        return told
    if told.code not in (failure.DENIED, failure.UNREACHABLE):
        told.code = failure.UNREACHABLE
    if told.code == failure.DENIED:
        told.hint = "the user who runs the server, or root; or serve it with --allow-uid"
    elif not is_remote(where.text) or where.text.startswith(NODE_PREFIX):
        told.what = f"no node answers at {where.address.text[:200]}"
        told.hint = "'ninepd' to start one, or -n URL"
    elif e.errno in (2, 111):
        told.hint = "starting the server, or another address"
    return told


def errstr_of(where: Target) -> str:
    """What names /dev/errstr on the server of a file."""
    a = where.address
    if not is_remote(where.text) or where.text.startswith(NODE_PREFIX):
        return f"{NODE_PREFIX if where.text.startswith(NODE_PREFIX) else ''}/dev/errstr"
    if a.transport == "tcp":
        return f"9p://{f'[{a.host}]' if ':' in a.host else a.host}:{a.port}/dev/errstr"
    return f"9p+unix://{a.socket_path}//dev/errstr" if a.transport == "unix" else "SERVER//dev/errstr"


@contextmanager
def failing_at(where: Target, hint: str = "") -> Iterator[None]:
    """Whatever is refused inside is told with this file's name.  `hint` is for a file that does not exist."""
    try:
        yield
    except E.FileError as e:
        if isinstance(e, E.Eio | E.Einternal):
            # Over 9P2000.L only the number came; the words are where the node remembers each caller's refusals.
            hint = f"'ninep cat {errstr_of(where)}' if that is a node, or the server's log"
        elif not isinstance(e, E.Enonexist):
            hint = ""
        elif not hint and where.address.path:
            hint = f"'ninep ls {where.parent().text}'"
        raise failure.from_error(e, where.text, hint) from None


def each(urls: list[str], args: argparse.Namespace, use: object, program: str) -> int:
    """Run use(remote, target) for every URL; a failure is told, the others go on, and the first code is the result."""
    code = failure.OK
    with Connections(args) as connections:
        for url in urls:
            try:
                where = target(url, args)
                remote = connections.to(where)
                with failing_at(where):
                    use(remote, where)  # type: ignore[operator]
            except failure.Failure as e:
                if len(urls) == 1:
                    raise
                failure.tell(e, "ninep", program, is_json=args.json)
                code = code or e.code
    return code
