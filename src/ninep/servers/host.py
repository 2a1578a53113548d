"""A directory of this host as a tree.  Never a path string: every file is a descriptor below the exported directory.

NAME
    host: serve a host directory (`host:DIR` and `host:DIR:ro` on the command line)

FILES
    Those of the directory, with their names, modes, times, owners, links and `user.` attributes.  Regular files and
    directories can be opened; FIFOs, sockets and devices are seen but never opened.  Symbolic links are text: the
    server follows none, the client may.  Mount points inside are names without content, unless cross_mounts.

OWNERSHIP
    squash   Everything is done as the server's own user; stat shows the real owners.  Whoever is not that user (or
             root), provenly, may besides only what the file's permission bits give to him: over plain TCP, where
             everybody is `none`, that is what everyone may.  New files get mode & 0777 & ~umask and are the server's.
             Set-id and sticky bits cannot be set, a write takes set-id bits away, chown is refused.
    native   For a root server on a unix socket or FUSE: each operation is done with the caller's file system uid, gid
             and groups, and the kernel judges.  A caller without proof is nobody (65534), never root.

READ ONLY
    Every change is refused with "read only file system", and nothing changes: not even a time.

LIMITS
    Limits.host_fds_share, host_threads_max, host_seconds_max, xattr_bytes_max, xattr_names_max.  A file system that is
    not local memory or a local disk is called on worker threads of this export; if it does not answer, only this
    export's callers are told "timed out".

EXAMPLES
    >>> from ninep.servers import host
    >>> root = host.tree("/tmp", readonly=True)
    >>> root.export.readonly
    True

BUGS
    A directory moved out of the export answers ESTALE from then on, but an operation that was already past the check
    ends in the directory where it is by then.  `remove` of an expected file and another program's rename to the same
    name can cross (see HostDir.remove).  Where the file system keeps no birth time, an inode number used again cannot
    be told from the old file.  Changes made by others are not announced: clients see them when they ask, at the latest
    after a second.
"""

from __future__ import annotations

import os

from ..env import REAL, Env
from ..limits import DEFAULT, Limits
from ..proto import errors as E
from .host_cache import Held
from .host_dir import HostDir, root_of
from .host_node import NodeExport
from .host_sys import file_system
from .host_tree import Ownership, protected, refused


def tree(
    directory: str | os.PathLike[str],
    *,
    readonly: bool = False,
    ownership: Ownership = "squash",
    cross_mounts: bool = False,
    key: bytes = b"",
    limits: Limits = DEFAULT,
    env: Env = REAL,
    force: bool = False,
) -> HostDir:
    """The directory, exported.  It is opened here and held: what its path means later is of no importance.

    `key` makes qids (at most 64 bytes; keep it in the state directory so that a restart keeps them; empty: a new one).
    `force` allows what is refused by default: the whole file system, /proc, /sys, /dev and directories of keys.
    Raises Enotallowed for those and Ehost without /proc or, for native, without the right to change ids; OSError if
    the directory cannot be opened.  Blocks as long as that takes.
    """
    if not os.path.isdir("/proc/self/fd"):
        raise E.Ehost("/proc is not mounted")
    root = Held(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))  # allowed: the operator's word, once
    path = os.readlink(f"/proc/self/fd/{root.fd}")  # what was opened, whatever the name means by now
    why = refused(path, file_system(root.fd), force)
    if why:
        raise E.Enotallowed(f"export refused, {why} (force allows it): {path}")
    if ownership not in ("squash", "native"):
        raise E.Ebadarg(f"ownership is squash or native: {ownership}")
    if ownership == "native" and os.geteuid() != 0:
        raise E.Ehost("native ownership needs root")
    export = NodeExport(
        root,
        readonly=readonly,
        ownership=ownership,
        cross_mounts=cross_mounts,
        key=key,
        limits=limits,
        env=env,
    )
    node = root_of(export)
    node.guarded = tuple(
        tuple(secret[len(path) :].strip("/").split("/"))
        for secret in protected(force)
        if secret.startswith(path.rstrip("/") + "/")
    )
    return node
