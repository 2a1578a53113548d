"""The Linux system calls that a host export needs and the os module lacks.  Numbers in, numbers or OSError out.

Knows no file, no tree and no policy.  Every function may block as long as the file system below it does.
The ctypes functions release the interpreter lock, keep errno per thread and share only constant buffers.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
import threading
from typing import Final, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_long, _int, _ptr, _bytes = ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p
_MACHINE: Final = platform.machine()

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_STATX_DONT_SYNC: Final = 0x4000
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

# -- opening beneath: openat2
SYS_OPENAT2: Final = 437  # the same number on every architecture
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_CACHED: Final = 0x20
PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS

_openat2 = ctypes.CFUNCTYPE(_long, _long, _long, _bytes, _bytes, _long, use_errno=True)(("syscall", _libc))


def how(resolve: int) -> bytes:
    """A struct open_how for an O_PATH descriptor of a name beneath a directory, never through a symlink."""
    return struct.pack("=QQQ", PATH_FLAGS, 0, _BENEATH | resolve)


HOW: Final = how(RESOLVE_NO_XDEV)
HOW_CACHED: Final = how(RESOLVE_NO_XDEV | RESOLVE_CACHED)
HOW_CROSSING: Final = how(0)


def openat2(dirfd: int, path: bytes, open_how: bytes) -> int:
    """An O_PATH descriptor of `path` beneath `dirfd`.  EXDEV: it leaves the tree or the mount.  ELOOP: a symlink."""
    fd = _openat2(SYS_OPENAT2, dirfd, path, open_how, 24)
    if fd < 0:
        raise _error()
    return int(fd)


def have_openat2() -> bool:
    """Linux 5.6 has it; seccomp filters of old container runtimes answer ENOSYS or EPERM."""
    try:
        os.close(openat2(AT_FDCWD, b".", HOW))
    except OSError as e:
        return e.errno not in (errno.ENOSYS, errno.EPERM)
    return True


# -- identity: statx
_STATX_MASK: Final = 0x0FFF | 0x1000  # basic stats, birth time, mount id
_statx = ctypes.CFUNCTYPE(_int, _int, _bytes, _int, ctypes.c_uint, _ptr, use_errno=True)(("statx", _libc))
_STATX: Final = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQ")


class Statx(NamedTuple):
    """What statx(2) tells; times in nanoseconds since the epoch, `dev` as st_dev has it."""

    mode: int
    nlink: int
    uid: int
    gid: int
    ino: int
    size: int
    blocks: int
    blksize: int
    dev: int
    rdev: int
    atime_ns: int
    btime_ns: int
    ctime_ns: int
    mtime_ns: int
    mount: int


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.statx = ctypes.create_string_buffer(256)
        self.statx_at = ctypes.addressof(self.statx)


_buffers = _Buffers()


def statx(fd: int, name: bytes = b"", flags: int = AT_EMPTY_PATH) -> Statx:
    """The record of a descriptor, or of a name in it with AT_SYMLINK_NOFOLLOW.  btime_ns is 0 where none is kept."""
    if _statx(fd, name, flags, _STATX_MASK, _buffers.statx_at):
        raise _error()
    (_m, blksize, _a, nlink, uid, gid, mode, ino, size, blocks, _am, at, atn, bt, btn, ct, ctn, mt, mtn,
     rmaj, rmin, dmaj, dmin, mount) = _STATX.unpack_from(_buffers.statx)  # fmt: skip
    return Statx(
        mode, nlink, uid, gid, ino, size, blocks, blksize, os.makedev(dmaj, dmin), os.makedev(rmaj, rmin),
        at * 1_000_000_000 + atn, bt * 1_000_000_000 + btn, ct * 1_000_000_000 + ctn, mt * 1_000_000_000 + mtn, mount,
    )  # fmt: skip


_IDENTITY: Final = struct.Struct("=28xHxxQ40xqI44xII")  # mode, inode, birth time, device


def identify(fd: int) -> tuple[int, tuple[int, int, int]]:
    """st_mode and (device, inode, birth time): half the price of statx(), for every step of a walk."""
    if _statx(fd, b"", AT_EMPTY_PATH, 0x1802, _buffers.statx_at):  # inode, type, birth time
        raise _error()
    mode, ino, seconds, ns, major, minor = _IDENTITY.unpack_from(_buffers.statx)
    return mode, (_makedev(major, minor), ino, seconds * 1_000_000_000 + ns)


@functools.lru_cache(maxsize=64)
def _makedev(major: int, minor: int) -> int:
    return os.makedev(major, minor)


# -- listing: getdents64
_SYS_GETDENTS64: Final = {"x86_64": 217, "aarch64": 61, "riscv64": 61, "ppc64le": 202, "s390x": 220}.get(_MACHINE, 61)
_getdents = ctypes.CFUNCTYPE(_long, _long, _long, _ptr, _long, use_errno=True)(("syscall", _libc))
_DIRENT: Final = struct.Struct("=QqHB")  # d_ino, d_off, d_reclen, d_type; the name follows at 19


def getdents(fd: int, size: int = 32768) -> list[tuple[bytes, int, int, int]]:
    """The next entries of an open directory as (name, inode, type, offset after it); empty at the end."""
    buffer = ctypes.create_string_buffer(size)
    count = _getdents(_SYS_GETDENTS64, fd, ctypes.addressof(buffer), size)
    if count < 0:
        raise _error()
    raw = buffer.raw
    found = []
    at = 0
    while at < count:
        ino, offset, length, kind = _DIRENT.unpack_from(raw, at)
        name = raw[at + 19 : raw.index(b"\0", at + 19)]
        if name not in (b".", b".."):
            found.append((name, ino, kind, offset))
        at += length
    if count and not found:
        return getdents(fd, size)  # a batch of nothing but . and .. is not the end
    return found


DOTS: Final = (b".", b"..")


def getdents_names(fd: int, size: int, ino_key: int) -> list[tuple[int, int, int, bytes]]:
    """The next entries as (inode ^ ino_key, offset after it, type, name): a quarter of a microsecond for each."""
    size = max(size, 1024)
    while True:
        buffer = ctypes.create_string_buffer(size)  # zeros: the kernel leaves what is between two records as it was
        count = _getdents(_SYS_GETDENTS64, fd, ctypes.addressof(buffer), size)
        if count < 0:
            raise _error()
        raw = buffer.raw
        found: list[tuple[int, int, int, bytes]] = []
        add, unpack = found.append, _DIRENT.unpack_from
        at = 0
        while at < count:
            ino, offset, length, kind = unpack(raw, at)
            after = at + length
            add((ino ^ ino_key, offset, kind, raw[at + 19 : after].rstrip(b"\0")))
            at = after
        names = [entry for entry in found if entry[3] not in DOTS]
        if names or not count:
            return names
        # a batch of nothing but . and .. is not the end


# -- changes
_renameat2 = ctypes.CFUNCTYPE(_int, _int, _bytes, _int, _bytes, ctypes.c_uint, use_errno=True)(("renameat2", _libc))
_utimensat = ctypes.CFUNCTYPE(_int, _int, _bytes, _bytes, _int, use_errno=True)(("utimensat", _libc))
_fallocate = ctypes.CFUNCTYPE(_int, _int, _int, ctypes.c_int64, ctypes.c_int64, use_errno=True)(
    ("fallocate64", _libc)
)  # fmt: skip


def renameat2(old_dirfd: int, old: bytes, new_dirfd: int, new: bytes, flags: int) -> None:
    """renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE."""
    if _renameat2(old_dirfd, old, new_dirfd, new, flags):
        raise _error()


def utimens(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set the times of an O_PATH descriptor's file: None leaves one, -1 is the kernel's now (utimensat(2))."""
    times = struct.pack("=qqqq", *_timespec(atime_ns), *_timespec(mtime_ns))
    if _utimensat(AT_FDCWD, b"/proc/self/fd/%d" % fd, times, 0):
        raise _error()


def _timespec(ns: int | None) -> tuple[int, int]:
    if ns is None:
        return 0, UTIME_OMIT
    if ns == -1:
        return 0, UTIME_NOW
    return divmod(ns, 1_000_000_000)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    if _fallocate(fd, mode, offset, length):
        raise _error()


# -- which file system
# Those that answer from memory or a local disk, so that a call may be made on the serving thread (A9).
INLINE: Final = frozenset({"tmpfs", "ramfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "overlay"})
MEMORY: Final = frozenset({"tmpfs", "ramfs"})  # preadv2(RWF_NOWAIT) is refused there, and pointless


def file_system(fd: int) -> str:
    """The type of the file system that a descriptor is on, from /proc: a dead one is never asked.  "" if unknown."""
    try:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            mount = next(line.split()[1] for line in info if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                if line.split(" ", 1)[0] == mount:
                    return line.split(" - ", 1)[1].split(" ", 1)[0]
    except (OSError, StopIteration):
        pass
    return ""


def mount_of(fd: int) -> int:
    """The mount id of a descriptor, without asking its file system."""
    with open(f"/proc/self/fdinfo/{fd}") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("mnt_id:"))


def umask() -> int:
    """The process's umask, read without changing it (umask(2) could only by setting it)."""
    with open("/proc/self/status") as status:
        return next((int(line.split()[1], 8) for line in status if line.startswith("Umask:")), 0o022)


CAP_FSETID: Final = 4
CAP_SETUID: Final = 7


def has_capability(bit: int) -> bool:
    """Whether this thread holds a capability in its effective set (capabilities(7))."""
    with open("/proc/thread-self/status") as status:
        held = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    return bool(held >> bit & 1)


# -- who the kernel thinks this thread is
# glibc's setgroups changes every thread of the process; these act on the calling thread alone, which is the point.
_IDS: Final = {"x86_64": (116, 122, 123, 115)}.get(_MACHINE, (159, 151, 152, 158))
_SYS_SETGROUPS, _SYS_SETFSUID, _SYS_SETFSGID, _SYS_GETGROUPS = _IDS
_call3 = ctypes.CFUNCTYPE(_long, _long, _long, _ptr, use_errno=True)(("syscall", _libc))


def set_groups(groups: tuple[int, ...]) -> None:
    """The calling thread's supplementary groups.  Needs CAP_SETGID."""
    packed = (ctypes.c_uint32 * len(groups))(*groups)
    if _call3(_SYS_SETGROUPS, len(groups), ctypes.addressof(packed) if groups else None):
        raise _error()


def set_fsids(uid: int, gid: int) -> None:
    """The calling thread's file system uid and gid (setfsuid(2)); PermissionError if the kernel did not take them.

    Leaving uid 0 also takes CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_CHOWN, CAP_FSETID and CAP_MKNOD from the thread.
    """
    _call3(_SYS_SETFSGID, gid, None)
    _call3(_SYS_SETFSUID, uid, None)
    # setfsuid(2) reports no failure; asking for an impossible id tells the present one.
    if _call3(_SYS_SETFSUID, -1, None) & 0xFFFFFFFF != uid or _call3(_SYS_SETFSGID, -1, None) & 0xFFFFFFFF != gid:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
