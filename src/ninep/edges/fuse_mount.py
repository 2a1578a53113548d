"""Mounting and unmounting: how a /dev/fuse descriptor and a directory come together.  Knows no FUSE message.

As root, or as root of a user namespace, through fsopen(2) and move_mount(2): the mount is made first, on no path, and
then put onto a directory that is held open, so there is no path that somebody could exchange meanwhile; it is also
held, and so is unmounted itself and not whatever has its name by then.  Otherwise through the setuid fusermount3.
Everything here may block, so a server calls it from a thread; nothing here touches the mounted file system.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import re
import socket
import stat
import subprocess
from typing import Final

import msgspec

from ninep.proto import errors as E

DEVICE: Final = "/dev/fuse"
FUSERMOUNT: Final = "fusermount3"
FUSERMOUNT_SECONDS_MAX: Final = 10.0

_FSOPEN, _FSCONFIG, _FSMOUNT, _MOVE_MOUNT = 430, 431, 432, 429  # the same on every Linux machine but alpha
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOUNT_ATTR = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8}
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


class MountOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel is told.  nosuid and nodev are always set, and default_permissions never: the Session decides.

    `allow_other` lets other users in; as an ordinary user it needs user_allow_other in /etc/fuse.conf as well.
    """

    source: str = "ninep"
    allow_other: bool = False
    read_only: bool = False
    noexec: bool = False
    device_path: str = DEVICE


class Mounted:
    """A mount that we made.  `device_fd` is the caller's to close, after `unmount`."""

    def __init__(self, mountpoint: str, device_fd: int, mount_id: str, *, by_helper: bool) -> None:
        self.mountpoint = mountpoint
        self.device_fd = device_fd
        self.mount_id = mount_id
        self.connection = connection_of_id(mount_id)  # its number under /sys/fs/fuse/connections, or -1
        self._by_helper = by_helper

    def unmount(self) -> None:
        """Take the mount out of the tree, busy or not; whoever has a file open keeps it until the device is closed.

        Idempotent.  Raises OSError or FileError.
        """
        # No descriptor of the mount is kept for this: it would make every umount(8) say "busy".  So the kernel's table
        # says where the mount is by now, and what is opened there must be this very mount.
        place = _place_of(self.mount_id, self.connection)
        if not place:
            return
        if self._by_helper:
            _fusermount_unmount(self.mountpoint, self.connection)
            return
        try:
            fd = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return  # moved or unmounted meanwhile, or beneath another mount; closing the device ends it
        try:
            if _mount_id_of(fd) == self.mount_id:
                _umount2(f"/proc/self/fd/{fd}".encode(), _MNT_DETACH)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOENT):  # somebody unmounted it before us
                raise
        finally:
            os.close(fd)


def mount(mountpoint: str, options: MountOptions = MountOptions()) -> Mounted:  # noqa: B008  # frozen
    """Mount on an existing directory, which must not be a symbolic link.  May block.  Raises OSError or FileError."""
    mountpoint = os.path.abspath(mountpoint)
    if options.allow_other and not may_allow_other():
        raise E.Enotallowed("allow_other needs root, or user_allow_other in /etc/fuse.conf")
    directory = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if can_mount():
            return _mount_directly(mountpoint, directory, options)
        return _mount_by_helper(mountpoint, directory, options)
    finally:
        os.close(directory)


def can_mount() -> bool:
    """Whether this process may mount by itself: CAP_SYS_ADMIN in its own user namespace."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as f:
        for line in f:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> 21 & 1)
    return False


def may_allow_other(conf: str = "/etc/fuse.conf") -> bool:
    """Whether other users may be let in: root says so for itself, for everybody else the system's fuse.conf."""
    if os.geteuid() == 0:
        return True
    try:
        with open(conf, encoding="utf-8", errors="replace") as f:
            return any(line.strip() == "user_allow_other" for line in f)
    except OSError:
        return False


def _mount_directly(mountpoint: str, directory: int, options: MountOptions) -> Mounted:
    device = os.open(options.device_path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    context = mount_fd = -1
    try:
        context = _syscall(_FSOPEN, b"fuse", _FSOPEN_CLOEXEC)
        values = {
            "source": options.source,
            "subtype": "ninep",
            "fd": str(device),
            "rootmode": f"{stat.S_IFDIR:o}",
            "user_id": str(os.geteuid()),
            "group_id": str(os.getegid()),
        }
        for key, value in values.items():
            _syscall(_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)
        if options.allow_other:
            _syscall(_FSCONFIG, context, _FSCONFIG_SET_FLAG, b"allow_other", None, 0)
        _syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        attributes = _MOUNT_ATTR["nosuid"] | _MOUNT_ATTR["nodev"]
        attributes |= _MOUNT_ATTR["ro"] if options.read_only else 0
        attributes |= _MOUNT_ATTR["noexec"] if options.noexec else 0
        mount_fd = _syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
        _syscall(_MOVE_MOUNT, mount_fd, b"", directory, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
        mount_id = _mount_id_of(mount_fd)
        os.close(mount_fd)  # held, it would make the mount busy: umount(8) could never end it
        mount_fd = -1
        return Mounted(mountpoint, device, mount_id, by_helper=False)
    except BaseException:
        os.close(device)  # first: whatever still refers to the mount must not wait for us
        if mount_fd >= 0:
            os.close(mount_fd)
        raise
    finally:
        if context >= 0:
            os.close(context)


def _mount_by_helper(mountpoint: str, directory: int, options: MountOptions) -> Mounted:
    # fusermount3 enters the directory itself, checks that it is the caller's, and mounts on where it then is.
    if os.fstat(directory).st_uid != os.geteuid():
        raise E.Enotallowed(f"not your directory: {mountpoint}")
    words = ["nosuid", "nodev", f"fsname={_escaped(options.source)}", "subtype=ninep"]
    words += [word for word, on in (("allow_other", options.allow_other), ("ro", options.read_only),
                                    ("noexec", options.noexec)) if on]  # fmt: skip
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.settimeout(FUSERMOUNT_SECONDS_MAX)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "_FUSE_COMMFD": str(theirs.fileno())}
        done = subprocess.run(
            [FUSERMOUNT, "-o", ",".join(words), "--", mountpoint],
            env=environment,
            pass_fds=(theirs.fileno(),),
            capture_output=True,
            timeout=FUSERMOUNT_SECONDS_MAX,
            check=False,
        )
        if done.returncode:
            raise E.Enotallowed(_last_line(done.stderr) or "fusermount3")
        device = receive_fd(ours)
    os.set_blocking(device, False)
    return Mounted(mountpoint, device, (_top_row(mountpoint) or [""])[0], by_helper=True)


def receive_fd(sock: socket.socket) -> int:
    """One descriptor sent over a Unix socket.  Raises Eio when none came."""
    fds = array.array("i")
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not fds:
        raise E.Eio("no descriptor from fusermount3")
    return fds[0]


def unmount(mountpoint: str, *, force: bool = False) -> None:
    """Detach whatever FUSE file system is mounted there; with `force`, abort its connection first.

    For programs that did not make the mount.  May block.  Raises OSError or FileError.
    """
    mountpoint = os.path.abspath(mountpoint)
    connection = connection_of(mountpoint)
    if connection < 0:
        raise E.Ebadarg(f"not a FUSE mount: {mountpoint}")
    if force:
        abort(connection)
    if can_mount():
        _umount2(os.fsencode(mountpoint), _MNT_DETACH | _UMOUNT_NOFOLLOW | (_MNT_FORCE if force else 0))
        return
    _fusermount_unmount(mountpoint, connection)


def _fusermount_unmount(mountpoint: str, connection: int) -> None:
    argv = [FUSERMOUNT, "-u", "-q", "-z", "--", mountpoint]
    done = subprocess.run(argv, capture_output=True, timeout=FUSERMOUNT_SECONDS_MAX, check=False)
    if done.returncode and connection_of(mountpoint) == connection:
        raise E.Eio(_last_line(done.stderr) or "fusermount3")


def abort(connection: int) -> bool:
    """End a connection through fusectl: whoever waits for it gets an error.  False where that is not mounted."""
    try:
        with open(f"/sys/fs/fuse/connections/{connection}/abort", "w", encoding="ascii") as f:
            f.write("1")
    except OSError:
        return False
    return True


def connection_of(mountpoint: str) -> int:
    """The number of the FUSE connection mounted last at exactly this path, or -1.  Asks the kernel's table only."""
    row = _top_row(mountpoint)
    if row and row[row.index("-") + 1].partition(".")[0] == "fuse":
        return int(row[2].partition(":")[2])
    return -1


def _top_row(mountpoint: str) -> list[str]:
    """The words of the line of what was mounted last at a path; empty when nothing is."""
    escaped = mountpoint.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    found: list[str] = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            words = line.split(" ")
            if words[4] == escaped:
                found = words
    return found


def _mount_id_of(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as f:
        return next((line.split()[1] for line in f if line.startswith("mnt_id:")), "")


def _row_of(mount_id: str) -> list[str]:
    """The words of a mount's line in the kernel's table; empty when it is gone."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            words = line.split(" ")
            if words[0] == mount_id:
                return words
    return []


def connection_of_id(mount_id: str) -> int:
    """The number of the FUSE connection behind a mount, or -1."""
    row = _row_of(mount_id)
    return int(row[2].partition(":")[2]) if row else -1


def _place_of(mount_id: str, connection: int) -> str:
    """Where a mount is now; empty when it is gone, or its number is another mount's."""
    row = _row_of(mount_id)
    if not row or row[2] != f"0:{connection}":
        return ""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), row[4])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _last_line(raw: bytes) -> str:
    lines = raw.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _umount2(path: bytes, flags: int) -> None:
    if _libc.umount2(path, flags) != 0:
        _raise_errno()


def _syscall(number: int, *arguments: object) -> int:
    # Integers and NULL fill whole registers: syscall(2) is variadic, and ctypes would pass 32 bits.
    values = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) if isinstance(a, bytes) else None
              for a in arguments]  # fmt: skip
    result = int(_libc.syscall(ctypes.c_long(number), *values))
    if result < 0:
        _raise_errno()
    return result


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
