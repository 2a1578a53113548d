"""What all nodes of one export share: its root, policy and identities, who a call acts as, and where a call may run.

Everything that decides is here and only once: `gate` (read-only), `as_caller` (ownership), `run` (this thread or
another), `inside` (containment), `refused` (what may not be exported at all).  Knows no File and no Handle.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, ParamSpec, TypeVar

import trio

from ..answer import Answer
from ..env import Env
from ..file import HASHED_PATH, Call
from ..limits import Limits
from ..proto import errors as E
from ..proto.types import NAME_BYTES_MAX
from . import host_sys as sys
from .host_cache import Held, Warm, share_of_descriptors

T = TypeVar("T")
P = ParamSpec("P")
Identity = tuple[int, int, int]  # device, inode, birth time
Ownership = Literal["squash", "native"]
NOBODY_ID = 65534  # who an unproven caller of a native export is: never the server, never root
ROOT_SECONDS = 1  # how long the root's own name is believed
SCRATCH_BYTES = 65_536
DISK_NS_MAX = 6_000_000  # what a lookup may take on the serving thread before the next ones go to workers
DISK_SLOW_NS = 1_000_000_000  # for so long
_pack_identity = struct.Struct("=QQQ").pack


class Export:
    """One exported directory.  Lives as long as any of its nodes."""

    def __init__(
        self,
        root: Held,
        *,
        readonly: bool,
        ownership: Ownership,
        cross_mounts: bool,
        key: bytes,
        limits: Limits,
        env: Env,
    ) -> None:
        self.root = root
        self.readonly = readonly
        self.native = ownership == "native"
        self.cross_mounts = cross_mounts
        self.limits = limits
        self.env = env
        self.fstype = sys.file_system(root.fd)
        self.inline = self.fstype in sys.INLINE
        self.in_memory = self.fstype in sys.MEMORY
        self.mount = sys.mount_of(root.fd)
        self.device = 0  # of the root, once it has been asked
        self.openat2 = sys.have_openat2()
        # The kernel takes set-id bits away on a write, unless the writer has CAP_FSETID: then this server does it.
        self.keeps_setid = sys.has_capability(sys.CAP_FSETID)
        self.uid = os.geteuid()
        self.umask = sys.umask()
        self.warm = Warm(share_of_descriptors(limits.host_fds_share))
        self.lock = threading.RLock()  # one node per identity: interning happens on worker threads too
        self._ino_keys: dict[int, int] = {}
        self._hash = hashlib.blake2b(key=(key or env.random(32))[:64], digest_size=8)
        self._limiter = trio.CapacityLimiter(limits.host_threads_max)
        self._descriptors = Held(os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self._below = b""
        self._below_until = 0
        self._slow_until = 0
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))  # the serving thread's, between two lines of one read
        self._own_ids = (os.geteuid(), os.getegid(), tuple(os.getgroups()))

    # -- policy
    def gate(self) -> None:
        """Every operation that changes anything asks here first, and nowhere else.  Raises Erofs."""
        if self.readonly:
            raise E.Erofs

    def as_caller(self, call: Call) -> AbstractContextManager[None]:
        """Squash: everything is done as the server.  Native: this thread's file system ids are the caller's."""
        if not self.native or call.principal.is_superuser:
            return nullcontext()
        return _As(self, call)

    # -- where a call runs
    def run(self, call: Call, op: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Answer[T]:
        """op(*args), here and now if the file system is a quick one, else on a worker thread.  For operations that
        change nothing: a cancelled one is abandoned."""
        if self.inline:
            return self._act(call, op, *args, **kwargs)
        return self.slow(call, False, op, *args, **kwargs)

    def change(self, call: Call, op: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Answer[T]:
        """As run, behind the gate.  A cancelled change is waited for, so that its outcome is known when it is told."""
        self.gate()
        if self.inline:
            return self._act(call, op, *args, **kwargs)
        return self.slow(call, True, op, *args, **kwargs)

    def _act(self, call: Call, op: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            if self.native:
                with self.as_caller(call):
                    return op(*args, **kwargs)
            return op(*args, **kwargs)
        except OSError as e:
            raise refusal(e) from None

    def is_disk_slow(self) -> bool:
        """Whether a lookup lately had to wait: then one that may wait is a worker's."""
        return self.env.now_ns() < self._slow_until

    def note_wait(self, start_ns: int) -> None:
        """A lookup that began then has ended: if it took long, the disk is a slow one for a while."""
        now_ns = self.env.now_ns()
        if now_ns - start_ns > DISK_NS_MAX:
            self._slow_until = now_ns + DISK_SLOW_NS

    async def slow(self, call: Call, changes: bool, op: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """op on a worker thread of this export's.  Etimedout after Limits.host_seconds_max, queueing included.

        The thread of a file system that never answers stays, and counts against this export alone.
        """
        deadline = trio.current_time() + self.limits.host_seconds_max
        with trio.CancelScope(deadline=deadline, shield=changes) as scope:
            return await trio.to_thread.run_sync(
                lambda: self._act(call, op, *args, **kwargs), limiter=self._limiter, abandon_on_cancel=True
            )
        if scope.cancelled_caught:
            raise E.Etimedout("host file system")
        raise AssertionError("unreachable")

    # -- containment
    def inside(self, fd: int) -> None:
        """Raise Estale unless the descriptor's file lies beneath the root now.

        Beneath-only resolution cannot say this of a descriptor that was opened earlier: its directory may have been
        moved out of the export since (docs/adr/0004-host-paths.md).  The names are compared, never opened.
        """
        path = os.readlink(b"%d" % fd, dir_fd=self._descriptors.fd)
        if not path.startswith(self._below) or self.env.now_ns() > self._below_until:
            self._look_at_root()
            if not path.startswith(self._below) and path != self._below[:-1]:
                raise E.Estale("moved out of the export")

    def _look_at_root(self) -> None:
        """Where the root is by now: it may be renamed while it is served, seldom enough to look once a second."""
        root = os.readlink(b"%d" % self.root.fd, dir_fd=self._descriptors.fd)
        self._below = root if root.endswith(b"/") else root + b"/"
        self._below_until = self.env.now_ns() + ROOT_SECONDS * 1_000_000_000

    def reopen(self, fd: int, flags: int) -> Held:
        """The O_PATH descriptor's own file, opened for use.  The caller knows that it is a regular file."""
        flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return self.hold(lambda: os.open(b"%d" % fd, flags, dir_fd=self._descriptors.fd))

    def hold(self, opener: Callable[[], int]) -> Held:
        """The descriptor that opener gives.  Out of descriptors: warm ones are let go and it is tried once more."""
        try:
            return Held(opener())
        except OSError as e:
            if e.errno not in (errno.EMFILE, errno.ENFILE) or not self.warm.shrink():
                raise
        return Held(opener())

    def beneath(self, dirfd: int, path: bytes) -> Held:
        """An O_PATH descriptor of a path of plain names beneath a directory: no symlink, no `..`, no other mount."""
        if self.openat2:
            open_how = sys.HOW_CROSSING if self.cross_mounts else sys.HOW
            return self.hold(lambda: sys.openat2(dirfd, path, open_how))
        held: Held | None = None
        for name in path.split(b"/"):
            at = dirfd if held is None else held.fd
            held = self.hold(functools.partial(os.open, name, sys.PATH_FLAGS, dir_fd=at))
            # A symlink in the middle is no directory: the next step answers ENOTDIR.
            if not self.cross_mounts and sys.mount_of(held.fd) != self.mount:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        assert held is not None
        return held

    # -- identity
    def qid_path(self, identity: Identity) -> int:
        """The keyed hash of an identity: the same after a restart with the same key, and telling nothing of inodes."""
        hashed = self._hash.copy()
        hashed.update(_pack_identity(*identity))
        return int.from_bytes(hashed.digest(), "little") | HASHED_PATH

    def ino_key(self, device: int) -> int:
        """What is XORed with a file's inode number for st_ino on a local mount: as cheap as a listing needs it, other
        for each device and export, so that files of two trees in one mount are told apart."""
        key = self._ino_keys.get(device)
        if key is None:
            key = self._ino_keys[device] = self.qid_path((device, 0, 0))
        return key


class _As:
    """The calling thread acts as the caller of a native export, until it leaves."""

    __slots__ = ("_export", "_groups", "_ids")

    def __init__(self, export: Export, call: Call) -> None:
        who = call.principal
        proven = who.proof != "none" and who.uid not in (0, 0xFFFFFFFF)
        self._export = export
        self._ids = (who.uid, who.gid if who.gid != 0xFFFFFFFF else NOBODY_ID) if proven else (NOBODY_ID, NOBODY_ID)
        self._groups = tuple(sorted(who.groups)) if proven else ()

    def __enter__(self) -> None:
        try:
            sys.set_groups(self._groups)
            sys.set_fsids(*self._ids)
        except OSError:
            self.__exit__()
            raise

    def __exit__(self, *_exc: object) -> None:
        # Failing to come back would leave the thread as somebody else: nothing sensible could follow.
        uid, gid, groups = self._export._own_ids
        sys.set_fsids(uid, gid)
        sys.set_groups(groups)


def refusal(e: OSError) -> E.FileError:
    """A host error as the row that fits; the about never carries a host path."""
    if e.errno == errno.ELOOP:
        return E.Enotdir("symbolic link")  # the server follows none: for it a symlink is no directory
    return E.from_errno(e.errno or errno.EIO)


def check_name(name: str) -> bytes:
    """The name as bytes, if it can be one element of a path.  The Session has asked too; here it guards the kernel."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise E.Ebadchar(repr(name[:40]))
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise E.Ebadchar(repr(name[:40])) from None
    if len(raw) > NAME_BYTES_MAX:
        raise E.Enametoolong
    return raw


def protected(force: bool) -> list[str]:
    """Directories of the user's secrets: none may be exported, nor entered through an export of what contains them."""
    home = os.path.expanduser("~")
    if force:
        return []
    found = [os.path.join(home, ".ssh"), os.path.join(home, ".gnupg")]
    for variable, standard in (("CONFIG", ".config"), ("STATE", ".local/state"), ("DATA", ".local/share")):
        base = os.environ.get(f"XDG_{variable}_HOME") or os.path.join(home, standard)
        found.append(os.path.join(base, "ninep"))
    found += [os.path.join(base, "ninep") for base in (os.environ.get("XDG_RUNTIME_DIR"), "/run", "/var/lib") if base]
    if state := os.environ.get("NINEP_STATE"):
        found.append(state)
    return [os.path.realpath(path) for path in found]  # allowed: compared with the export's own, never opened


KERNEL_FILE_SYSTEMS = frozenset({
    "proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "configfs",
    "fusectl", "efivarfs", "binfmt_misc", "pstore",
})  # fmt: skip


def refused(directory: str, fstype: str, force: bool) -> str:
    """Why a directory (its real path and kind of file system) may not be exported; empty if it may."""
    if force:
        return ""
    if directory == "/":
        return "the whole file system"
    if fstype in KERNEL_FILE_SYSTEMS:
        return f"{fstype} belongs to the kernel"
    if fstype == "fuse.ninep":
        return "it is a mount of ninep, perhaps this server's own"
    for kernel in ("/proc", "/sys", "/dev"):
        # /dev/shm is ordinary memory that users put files in.
        if (directory + "/").startswith(kernel + "/") and not directory.startswith("/dev/shm"):
            return f"{kernel} belongs to the kernel"
    for secret in protected(force):
        if (directory + "/").startswith(secret + "/"):
            return "it holds keys"
    return ""
