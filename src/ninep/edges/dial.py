"""Addresses: where a 9P server is and how to reach it.  Nothing here knows a message, a fid or a tree.

An address is parsed once into an `Address`; whatever reads one afterwards reads fields, never text.

    9p://host[:port]/path?aname=A&dialect=9P2000.L     TCP; port 564 if none
    9p+unix:///run/x.sock[//path]                      a Unix socket; `//` begins the path inside the tree
    ssh://[user@]host[:port]/dir[//path]               the user's own ssh, serving the remote directory on its stdio
    9p+exec:cmd args    exec!cmd args                  a program that speaks 9P on its stdin and stdout
    9p+fd://N[,M]       stdio:                         descriptors that are open already
    ninep://host[:port]/path                           9P-NG over TLS: parsed here, dialled by the NG edge
    tcp!host!port[/path]   unix!/path                  Plan 9 dial strings

No shell is ever run here: programs are argument vectors, and a host or user that an option parser could mistake for
an option is refused before any vector exists.  Importing this module does not import trio.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypedDict, cast

import msgspec

from ninep.limits import DEFAULT, Limits
from ninep.proto import errors as E
from ninep.proto.types import NAME_BYTES_MAX

if TYPE_CHECKING:
    import subprocess

PORT_9P: Final = 564
PORT_NINEP: Final = 5640
DIALECTS: Final = ("auto", "9P2000", "9P2000.u", "9P2000.L")
SSH_REMOTE: Final = ("ninep", "serve", "--stdio")  # followed by host:DIR; the remote end of ssh://
DIAL_ENDS_SECONDS: Final = 2.0  # a dialled program may take so long to end by itself once its stdin is closed

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?\Z")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z")
_PORT: Final = re.compile(r"[0-9]{1,5}\Z")
_URL: Final = re.compile(r"(9p|9p\+unix|9p\+fd|ninep|ssh)://(.*)\Z", re.DOTALL)
_SERVICES: Final = {"9fs": PORT_9P, "9p": PORT_9P, "styx": 6666}


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed address.  `transport` is tcp, unix, exec, fd or tls; the fields of the others are empty.

    `path` is the way from the attach point, `dialect` one of DIALECTS, `uname` None for the caller's own name,
    `msize_bytes` 0 for the largest that Limits allow.
    """

    text: str
    transport: str
    host: str = ""
    port: int = 0
    socket_path: str = ""
    argv: tuple[str, ...] = ()
    fds: tuple[int, int] = (-1, -1)
    path: tuple[str, ...] = ()
    aname: str = ""
    uname: str | None = None
    dialect: str = "auto"
    msize_bytes: int = 0

    def at(self, path: str) -> Address:
        """The same server with another path below the attach point; a relative path continues this one."""
        base = () if path.startswith("/") else self.path
        return msgspec.structs.replace(self, path=_clean((*base, *path.split("/")), self.text))

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Address:
    """The address that a text means.  Raises Ebadarg, whose text names what is wrong; touches nothing outside."""
    if any(c < " " or c == "\x7f" for c in text):
        raise E.Ebadarg("control character in address")
    if text in ("-", "stdio:", "9p+stdio:"):
        return Address(text=text, transport="fd", fds=(0, 1))
    for prefix in ("exec!", "9p+exec:"):
        if text.startswith(prefix):
            return Address(text=text, transport="exec", argv=_argv(text[len(prefix) :]))
    if text.startswith("unix!"):
        return Address(text=text, transport="unix", socket_path=_socket_path(text[5:]))
    if text.startswith(("tcp!", "net!")):
        return _dial_tcp(text)
    found = _URL.match(text)
    if not found:
        raise E.Ebadarg(f"not an address: {text[:60]!r}; try 9p://host/path or unix!/path")
    scheme, rest = found.groups()
    rest, _, query = rest.partition("?")
    if "#" in rest:
        raise E.Ebadarg("'#' in address: write it as %23")
    options = _options(query)
    match scheme:
        case "9p" | "ninep":
            authority, _, path = rest.partition("/")
            host, port = _host_port(authority, PORT_9P if scheme == "9p" else PORT_NINEP)
            transport = "tcp" if scheme == "9p" else "tls"
            return Address(text=text, transport=transport, host=host, port=port, path=_path(path), **options)
        case "9p+unix":
            name, path = _split_tree(rest)
            return Address(text=text, transport="unix", socket_path=_socket_path(name), path=path, **options)
        case "9p+fd":
            return Address(text=text, transport="fd", fds=_fds(rest), **options)
    authority, _, rest = rest.partition("/")
    directory, path = _split_tree("/" + rest)
    return Address(text=text, transport="exec", argv=_ssh(authority, directory), path=path, **options)


class _Options(TypedDict, total=False):
    aname: str
    uname: str
    dialect: str
    msize_bytes: int


def _options(query: str) -> _Options:
    options: _Options = {}
    for part in query.split("&") if query else ():
        key, _, raw = part.partition("=")
        value = _unquote(raw)
        if key in options or (key == "msize" and "msize_bytes" in options):
            raise E.Ebadarg(f"given twice in address: {key}")
        match key:
            case "aname":
                options["aname"] = value
            case "uname":
                options["uname"] = value
            case "dialect":
                if value not in DIALECTS:
                    raise E.Ebadarg(f"dialect is one of {' '.join(DIALECTS)}: {value[:20]!r}")
                options["dialect"] = value
            case "msize":
                if not re.fullmatch("[0-9]{1,9}", value):
                    raise E.Ebadarg(f"msize is a number of bytes: {value[:20]!r}")
                options["msize_bytes"] = int(value)
            case _:
                raise E.Ebadarg(f"address options are aname uname dialect msize: {key[:20]!r}")
    return options


def _unquote(text: str) -> str:
    """Percent escapes undone.  Bytes that are not UTF-8 become surrogate escapes, as in every name here."""
    if "%" not in text:
        return text
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise E.Ebadarg("'%' in address: write it as %25")
    raw = re.sub(rb"%(..)", lambda m: bytes.fromhex(m[1].decode()), text.encode("utf-8", "surrogateescape"))
    if b"\0" in raw:
        raise E.Ebadarg("%00 in address")
    return raw.decode("utf-8", "surrogateescape")


def _clean(names: tuple[str, ...], text: str) -> tuple[str, ...]:
    """The names of a path, with `.` and `..` resolved: `..` above the attach point stays there, as in walk(5)."""
    out: list[str] = []
    for name in names:
        if name == "..":
            del out[-1:]
        elif name not in ("", "."):
            if "/" in name or "\0" in name:
                raise E.Ebadchar(f"in path of {text[:60]!r}")
            if len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
                raise E.Enametoolong(name[:40])
            out.append(name)
    return tuple(out)


def _path(path: str) -> tuple[str, ...]:
    return _clean(tuple(_unquote(name) for name in path.split("/")), path)


def _split_tree(rest: str) -> tuple[str, tuple[str, ...]]:
    """The transport's own path, and the path inside the tree after the first `//` that does not begin the text."""
    at = rest.find("//", 1)
    return (_unquote(rest), ()) if at < 0 else (_unquote(rest[:at]), _path(rest[at + 2 :]))


def _socket_path(path: str) -> str:
    if not path or path == "@" or "\0" in path:
        raise E.Ebadarg("socket path in address")
    if len(os.fsencode(path)) > 107:  # sun_path, unix(7)
        raise E.Enametoolong(f"socket path: {path[:40]}")
    return path


def _host_port(authority: str, default: int) -> tuple[str, int]:
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise E.Ebadarg(f"address of host: {authority[:40]!r}")
        port = rest[1:]
    else:
        host, _, port = authority.partition(":")
    return _host(host, bracketed=authority.startswith("[")), _port(port, default)


def _host(host: str, *, bracketed: bool = False) -> str:
    """A host name, IPv4 or IPv6 address that no program can take for an option, a shell word or a path."""
    if bracketed:
        address, percent, zone = host.partition("%")
        try:
            socket.inet_pton(socket.AF_INET6, address)
        except (OSError, ValueError):
            raise E.Ebadarg(f"IPv6 address: {host[:40]!r}") from None
        if percent and not re.fullmatch("[A-Za-z0-9_.]{1,15}", zone):
            raise E.Ebadarg(f"IPv6 zone: {host[:40]!r}")
        return host
    if not _HOST.match(host):
        raise E.Ebadarg(f"host name: {host[:40]!r}")
    return host


def _port(text: str, default: int) -> int:
    if not text:
        return default
    if text in _SERVICES:
        return _SERVICES[text]
    if not _PORT.match(text) or not 0 < int(text) < 65536:
        raise E.Ebadarg(f"port: {text[:20]!r}")
    return int(text)


def _dial_tcp(text: str) -> Address:
    """net!host!service, dial(2).  What follows the service's first `/` is a path, which dial(2) does not know."""
    rest, _, query = text.partition("?")
    _, _, rest = rest.partition("!")
    rest, _, path = rest.partition("/")
    host, _, port = rest.rpartition("!") if "!" in rest else (rest, "", "")
    bracketed = host.startswith("[") and host.endswith("]")
    host = _host(host[1:-1], bracketed=True) if bracketed else _host(host, bracketed=":" in host)
    return Address(
        text=text, transport="tcp", host=host, port=_port(port, PORT_9P), path=_path(path), **_options(query)
    )


def _fds(rest: str) -> tuple[int, int]:
    if not re.fullmatch("[0-9]{1,6}(,[0-9]{1,6})?", rest):
        raise E.Ebadarg(f"descriptors are N or N,M: {rest[:20]!r}")
    read, _, write = rest.partition(",")
    return int(read), int(write or read)


def _argv(words: str) -> tuple[str, ...]:
    import shlex

    try:
        argv = tuple(shlex.split(words))
    except ValueError as e:
        raise E.Ebadarg(f"command: {e}") from None
    if not argv or not argv[0]:
        raise E.Ebadarg("command missing in address")
    return argv


def _ssh(authority: str, directory: str) -> tuple[str, ...]:
    """The ssh command for a remote directory.  `--` ends its options; host and user cannot look like one (SEC-71)."""
    import shlex

    user, at, host_port = authority.rpartition("@")
    if at and not _USER.match(user):
        raise E.Ebadarg(f"user name: {user[:40]!r}")
    host, port = _host_port(host_port, 0)
    argv = ["ssh", "-T", "-x", "-o", "ClearAllForwardings=yes"]
    if user:
        argv += ["-l", user]
    if port:
        argv += ["-p", str(port)]
    tree = f"host:{directory}" if directory != "/" else "host:."
    return (*argv, "--", host, shlex.join((*SSH_REMOTE, tree)))


# -- connecting


class Link:
    """One connected byte stream, and the program behind it if it is one.  `reader` and `writer` may be one descriptor.

    Owns what it holds: `close` closes the stream and waits for the program, at most DIAL_ENDS_SECONDS before it is
    ended.  Either `sock` is set, or the two descriptors are pipes or terminals.
    """

    def __init__(
        self,
        sock: socket.socket | None = None,
        fds: tuple[int, int] = (-1, -1),
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.sock = sock
        self.fds = fds
        self.process = process
        self._program = process  # also after close: how it ended is worth telling

    def close(self) -> None:
        """Idempotent.  Blocks only for a program that does not end when its stdin does."""
        if self.sock is not None:
            self.sock.close()
        for fd in {fd for fd in self.fds if fd > 2}:
            try:
                os.close(fd)
            except OSError:
                pass
        self.fds = (-1, -1)
        process, self.process = self.process, None
        if process is not None:
            _reap(process)

    def hung_up(self, error: E.Ehungup) -> E.Ehungup:
        """The error of a conversation that never began, with the end of the program behind it, if that ended.

        Blocks until the program has ended, at most DIAL_ENDS_SECONDS.
        """
        process = self._program
        if process is None:
            return error
        import subprocess

        try:
            code = process.wait(DIAL_ENDS_SECONDS)
        except subprocess.TimeoutExpired:
            return error
        argv = cast("tuple[str, ...]", process.args)
        name = os.path.basename(argv[0])
        return E.Ehungup(f"{name} ended with exit code {code}" if code >= 0 else f"{name} was ended by signal {-code}")


def _reap(process: subprocess.Popen[bytes]) -> None:
    import subprocess

    steps: tuple[Callable[[], None], ...] = (lambda: None, process.terminate, process.kill)
    for step in steps:
        step()
        try:
            process.wait(DIAL_ENDS_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return


def connect_link(address: Address, limits: Limits = DEFAULT) -> Link:
    """Connect with blocking calls, at most Limits.connect_seconds_max (name look-up apart).

    Raises the FileError that fits, with the address in its text.
    """
    where = address.text[:60]
    try:
        match address.transport:
            case "tcp":
                sock = socket.create_connection((address.host, address.port), limits.connect_seconds_max)
                return Link(tuned(sock))
            case "unix":
                return Link(_connect_unix(address.socket_path, limits.connect_seconds_max))
            case "exec":
                return _spawn(address.argv)
            case "fd":
                return adopt(*address.fds)
    except socket.gaierror as e:
        raise E.Enxio(f"{where}: {e.strerror}")
    except TimeoutError:
        raise E.Etimedout(where)
    except OSError as e:
        raise E.from_oserror(e, where)
    raise E.Eunsupported(f"{where}: this version has no encrypted transport")


def tuned(sock: socket.socket) -> socket.socket:
    """The socket without Nagle's delay: a request is a small segment that must not wait for the next one."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _sun_path(path: str) -> str | bytes:
    """The kernel's name of a Unix socket; a leading `@` is the abstract name space, unix(7)."""
    return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path


def _connect_unix(path: str, seconds: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(_sun_path(path))
    except BaseException:
        sock.close()
        raise
    return sock


def _spawn(argv: tuple[str, ...]) -> Link:
    """Start the program with one end of a socket pair as its stdin and stdout; its stderr stays ours."""
    import subprocess

    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno())
        except BaseException:
            ours.close()
            raise
    return Link(ours, process=process)


def adopt(read: int, write: int) -> Link:
    """Descriptors that are open already, as a Link that owns them.  Raises OSError if one is not open."""
    if read == write and stat.S_ISSOCK(os.fstat(read).st_mode):
        return Link(socket.socket(fileno=read))
    os.fstat(write)
    return Link(fds=(read, write))


async def connect_link_trio(address: Address, limits: Limits = DEFAULT) -> Link:
    """As connect_link, for a trio program: may block, may be cancelled; the socket comes back non-blocking."""
    import trio

    if address.transport == "fd":
        link = connect_link(address, limits)
    elif address.transport in ("exec", "unix"):
        # A local connect or a fork: short, but a full backlog would stop everybody else's work.
        link = await trio.to_thread.run_sync(connect_link, address, limits)
    else:
        link = await _connect_tcp_trio(address, limits)
    if link.sock is not None:
        link.sock.setblocking(False)
    return link


async def _connect_tcp_trio(address: Address, limits: Limits) -> Link:
    import trio

    where = address.text[:60]
    if address.transport != "tcp":
        raise E.Eunsupported(f"{where}: this version has no encrypted transport")
    try:
        with trio.fail_after(limits.connect_seconds_max):
            stream = await trio.open_tcp_stream(address.host, address.port)
    except trio.TooSlowError:
        raise E.Etimedout(where)
    except socket.gaierror as e:
        raise E.Enxio(f"{where}: {e.strerror}")
    except OSError as e:
        raise E.from_oserror(_first_cause(e), where)
    # The client waits for the raw socket itself (datapath B): take it out of trio's wrapper, which keeps nothing of it.
    return Link(tuned(socket.socket(fileno=stream.socket.detach())))


def _first_cause(e: OSError) -> OSError:
    """Why the first address of a host failed: trio groups what happened to each of them."""
    group = e.__cause__
    if isinstance(group, BaseExceptionGroup):
        return next((one for one in group.exceptions if isinstance(one, OSError)), e)
    return group if isinstance(group, OSError) else e
