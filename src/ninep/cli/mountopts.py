"""-o of `ninep mount` and of mount(8): what is ours, what is for others, and a loud no to the rest."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .failure import UsageError

# What mount(8), systemd and fstab say to each other; a helper takes them and does nothing.
IGNORED = frozenset(
    {
        "_netdev", "nofail", "noauto", "auto", "user", "users", "nouser", "owner", "group", "defaults", "rw", "dev",
        "nodev", "suid", "nosuid", "exec", "async", "sync", "relatime", "norelatime", "atime", "noatime", "diratime",
        "nodiratime", "strictatime", "nostrictatime", "lazytime", "nolazytime", "loud", "silent", "nomand",
        "iversion", "noiversion",
    }
)  # fmt: skip
IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "username=")
HINT = (
    "ro, allow_other, noexec, cache=off, passthrough=off, symlinks=, timeout=, fsname=, aname=, uname=, dialect=, "
    "msize=, engine="
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of one mount.  `query` is what belongs into the server's address.

    `symlinks` empty: contain on a server's mount, all on a local tree's.  `timeout_seconds` 0: what the limits say.
    """

    read_only: bool = False
    allow_other: bool = False
    noexec: bool = False
    cache: bool = True
    passthrough: bool = True
    symlinks: str = ""
    timeout_seconds: float = 0.0
    fsname: str = ""
    engine: str = ""
    query: tuple[tuple[str, str], ...] = ()


def parse_options(texts: Iterable[str]) -> Options:
    """All -o of one command line; later words count.  Raises UsageError for a word that nobody knows."""
    held: dict[str, object] = {}
    query: dict[str, str] = {}
    for word in (word.strip() for text in texts for word in text.split(",")):
        key, equals, value = word.partition("=")
        if not word or word in IGNORED or word.startswith(IGNORED_PREFIXES):
            if word == "rw":
                held["read_only"] = False
            continue
        match key:
            case "ro" | "allow_other" | "noexec" if not equals:
                held["read_only" if key == "ro" else key] = True
            case "cache" | "passthrough" if value in ("on", "off"):
                held[key] = value == "on"
            case "fsname" if value:
                held["fsname"] = value
            case "engine" if value in ("dev", "pyfuse3"):
                held["engine"] = value
            case "symlinks" if value in ("contain", "deny", "all"):
                held["symlinks"] = value
            case "timeout" if _seconds(value) > 0:
                held["timeout_seconds"] = _seconds(value)
            case "aname" | "uname" | "dialect" | "msize" if value:
                query[key] = value
            case _:
                raise UsageError(f"unknown mount option: {word[:60]}", hint=HINT)
    return msgspec.convert({**held, "query": list(query.items())}, Options)


def _seconds(text: str) -> float:
    """A number of seconds up to a day; 0 for anything else."""
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if 0 < seconds <= 86_400 else 0.0


def with_query(url: str, query: Iterable[tuple[str, str]]) -> str:
    """The address with options of -o in it."""
    from urllib.parse import quote

    text = "&".join(f"{key}={quote(value, safe='')}" for key, value in query)
    if not text:
        return url
    return f"{url}{'&' if '?' in url else '?'}{text}"
