"""The verb umount: ask, then detach, then abort, and say which of them worked.

Never touches the mounted file system itself: one whose server is gone or hangs must not take this program with it.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import subprocess
import threading
from collections.abc import Callable

from ninep.edges.fuse_mount import abort, can_mount, connection_of

from .failure import FAILED, OK, Failure, from_error, tell
from .output import Output

ASK_SECONDS_MAX = 5.0  # unmounting writes back what is dirty, so it may hang with its server
_MNT_FORCE, _MNT_DETACH, _NOFOLLOW = 1, 2, 8


def umount(args: argparse.Namespace, output: Output) -> int:
    """`ninep umount DIR...`."""
    code = OK
    for directory in args.dir:
        try:
            step = _end(directory, lazy=args.lazy, first_abort=args.abort)
        except Failure as e:
            tell(e, "ninep", "umount", is_json=args.json)
            code = code or e.code
            continue
        if output.is_json:
            output.json({"dir": directory, "step": step})
        elif step != "unmounted" or output.verbose:
            output.note(f"umount: {_WORDS[step]}: {directory}")
    return code


_WORDS = {
    "unmounted": "unmounted",
    "detached": "busy, so detached: files that are open stay until they are closed (--abort ends them)",
    "aborted": "aborted, and unmounted",
}


def _end(directory: str, *, lazy: bool, first_abort: bool) -> str:
    """The step that worked: unmounted, detached or aborted.  Raises Failure."""
    # The parent is resolved and the last name is not: resolving a dead mount point would fail.
    parent, name = os.path.split(os.path.abspath(directory))
    path = os.path.join(os.path.realpath(parent), name)
    connection = connection_of(path)
    if connection < 0:
        # Only what is no mount of ours is touched, so a dead one cannot hang this.
        try:
            os.lstat(path)
        except OSError as e:
            raise from_error(e, directory, "'findmnt -t fuse.ninep'") from None
        raise Failure("not a FUSE mount", where=directory, errno_name="EINVAL", hint="'findmnt -t fuse.ninep'")
    last = ""
    if first_abort:
        abort(connection)
        if _detach(path, _MNT_DETACH | _MNT_FORCE) == 0 and _is_gone(path, connection):
            return "aborted"
    if not lazy and not first_abort:
        number = _within(lambda: _detach(path, 0))
        if _is_gone(path, connection):
            return "unmounted"
        last = errno.errorcode.get(number, "")
    number = _detach(path, _MNT_DETACH)
    if _is_gone(path, connection):
        return "detached"
    last = errno.errorcode.get(number, last)
    abort(connection)
    _detach(path, _MNT_DETACH | _MNT_FORCE)
    if _is_gone(path, connection):
        return "aborted"
    raise Failure("cannot be unmounted", where=directory, errno_name=last, code=FAILED,
                  hint="root, or the user who mounted it")  # fmt: skip


def _is_gone(path: str, connection: int) -> bool:
    return connection_of(path) != connection


def _within(ask: Callable[[], int]) -> int:
    """What `ask` returns, or ETIMEDOUT when it hangs; the thread is then left to itself."""
    result = [errno.ETIMEDOUT]
    thread = threading.Thread(target=lambda: result.__setitem__(0, ask()), daemon=True)
    thread.start()
    thread.join(ASK_SECONDS_MAX)
    return result[0]


def _detach(path: str, flags: int) -> int:
    """umount2(2), or fusermount3 for who may not; 0 or an errno."""
    if can_mount():
        libc = ctypes.CDLL(None, use_errno=True)
        return 0 if libc.umount2(os.fsencode(path), flags | _NOFOLLOW) == 0 else ctypes.get_errno()
    argv = ["fusermount3", "-u", "-q", *(["-z"] if flags & _MNT_DETACH else []), "--", path]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=ASK_SECONDS_MAX, check=False)
    except FileNotFoundError:
        return errno.ENOENT
    except subprocess.TimeoutExpired:
        return errno.ETIMEDOUT
    return 0 if done.returncode == 0 else errno.EBUSY
