"""Files as text and as JSON: one way for every verb that shows them."""

from __future__ import annotations

import stat as _s
import time

from ninep.proto.types import DMAPPEND, DMEXCL, DMTMP, UNKNOWN_ID, Entry, Qid, Stat

from .output import Output, json_name

_KINDS = {
    _s.S_IFDIR: "dir", _s.S_IFREG: "file", _s.S_IFLNK: "symlink", _s.S_IFIFO: "fifo", _s.S_IFSOCK: "socket",
    _s.S_IFCHR: "char", _s.S_IFBLK: "block",
}  # fmt: skip
_DTYPES = {kind >> 12: name for kind, name in _KINDS.items()}
_FLAGS = ((DMAPPEND, "append"), (DMEXCL, "exclusive"), (DMTMP, "temporary"))


def kind_of(st_mode: int) -> str:
    return _KINDS.get(_s.S_IFMT(st_mode), "file")


def who(name: str, number: int) -> str:
    """A user or group: the server's name for it, else the number."""
    return name or ("?" if number == UNKNOWN_ID else str(number))


def when(ns: int, form: str = "%Y-%m-%d %H:%M") -> str:
    """Local time, or the bare number for one that no calendar holds."""
    try:
        return time.strftime(form, time.localtime(ns / 1e9))
    except (OverflowError, ValueError, OSError):
        return str(ns // 10**9)


def qid_text(qid: Qid) -> str:
    return f"{qid.path:016x} {qid.vers} {qid.type:02x}"


def qid_json(qid: Qid) -> dict[str, int]:
    return {"path": qid.path, "vers": qid.vers, "type": qid.type}


def stat_json(st: Stat) -> dict[str, object]:
    """Every field; times in nanoseconds since the epoch, mode in octal digits."""
    out: dict[str, object] = {
        "type": kind_of(st.st_mode), "mode": f"{st.st_mode & 0o7777:04o}", "size": st.size, "nlink": st.nlink,
        "uid": None if st.uid == UNKNOWN_ID else st.uid, "gid": None if st.gid == UNKNOWN_ID else st.gid,
        "mtime_ns": st.mtime_ns, "atime_ns": st.atime_ns, "ctime_ns": st.ctime_ns, "qid": qid_json(st.qid),
    }  # fmt: skip
    for key, name in (("user", st.uname), ("group", st.gname), ("muser", st.muname)):
        if name:
            out.update(json_name(name, key))
    for bit, word in _FLAGS:
        if st.flags & bit:
            out[word] = True
    return out


def entry_json(entry: Entry) -> dict[str, object]:
    out = {**json_name(entry.name), "type": _DTYPES.get(entry.dtype, "dir" if entry.qid.type & 0x80 else "file")}
    return out | (stat_json(entry.stat) if entry.stat is not None else {"qid": qid_json(entry.qid)})


def long_line(name: str, st: Stat | None, output: Output) -> str:
    """As `ls -l` has it."""
    if st is None:
        return f"??????????   ? {'?':<8} {'?':<8} {'?':>10} {'?':<16} {output.name(name)}"
    user, group = output.name(who(st.uname, st.uid)), output.name(who(st.gname, st.gid))
    return (
        f"{_s.filemode(st.st_mode)} {st.nlink:>3} {user:<8} {group:<8} {st.size:>10} {when(st.mtime_ns)} "
        f"{output.name(name)}"
    )


def stat_lines(name: str, st: Stat, output: Output) -> list[str]:
    """A stat for a person to read, one fact to a line."""
    flags = [word for bit, word in _FLAGS if st.flags & bit]
    user, group = output.name(who(st.uname, st.uid)), output.name(who(st.gname, st.gid))
    full = "%Y-%m-%d %H:%M:%S"
    return [
        f"name   {output.name(name)}",
        f"type   {' '.join([kind_of(st.st_mode), *flags])}",
        f"mode   {st.st_mode & 0o7777:04o} {_s.filemode(st.st_mode)}",
        f"size   {st.size}",
        f"owner  {user} {group}" + (f" (changed by {output.name(st.muname)})" if st.muname else ""),
        f"mtime  {when(st.mtime_ns, full)}",
        f"atime  {when(st.atime_ns, full)}",
        f"qid    {qid_text(st.qid)}",
    ]
