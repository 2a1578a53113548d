"""The verb doctor: what works on this machine, what does not, and the one command that mends it.

Each row is a function that looks, changes nothing, and says `ok`, `missing` (the main job wants it) or `absent` (a
better way exists where it is there).
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import stat as _s
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from .failure import FAILED, OK, Failure
from .output import Output, wants_colour

State = Literal["ok", "missing", "absent"]
PYTHON_MIN = (3, 11)
FUSE_PASSTHROUGH_KERNEL = (6, 9)
_INSTALL = "sudo apt-get install -y"


class Row(NamedTuple):
    """One thing looked at.  `mend` is one command, or what to tell whoever administers the machine.

    `limits` is what it cannot do even where it is: for who asks for details.
    """

    name: str
    state: State
    what: str
    mend: str = ""
    limits: tuple[str, ...] = ()


def doctor(args: argparse.Namespace, output: Output) -> int:
    """Print every row; the exit code is 0 unless something is missing."""
    code = OK
    colour = wants_colour(1) and not output.is_json
    for look in rows(args):
        row = look()
        code = FAILED if row.state == "missing" else code
        if output.is_json:
            limits = {"limits": row.limits} if row.limits else {}
            output.json({"name": row.name, "state": row.state, "what": row.what, "mend": row.mend, **limits})
        elif row.state != "ok" or not output.quiet:
            word = f"{row.state:<8}"
            if colour:
                word = f"\x1b[{ {'ok': 32, 'missing': 31, 'absent': 33}[row.state] }m{word}\x1b[0m"
            output.line(f"{row.name:<16} {word} {row.what}")
            if row.mend:
                output.line(f"{'':<16} {'':<8} -> {row.mend}")
            for limit in row.limits if output.verbose else ():
                output.line(f"{'':<16} {'':<8} {limit}")
    return code


def rows(args: argparse.Namespace) -> Iterator[Callable[[], Row]]:
    """The rows, in the order in which one mends them."""
    yield python
    yield libraries
    yield fuse_device
    yield fusermount
    yield user_allow_other
    yield passthrough
    yield pyfuse3
    yield user_namespaces
    yield openat2
    yield kernel_9p
    yield lambda: state_directory(args.state or "")
    yield lambda: node(args)


def python() -> Row:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON_MIN:
        return Row("python", "missing", f"{version}; 3.11 is needed", f"{_INSTALL} python3.11")
    return Row("python", "ok", f"{version} ({sys.executable})")


def libraries() -> Row:
    from importlib import metadata

    found, lacking = [], []
    for name in ("trio", "msgspec", "cryptography"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lacking.append(name)
    if lacking:
        return Row("libraries", "missing", f"not there: {' '.join(lacking)}", "./run setup")
    return Row("libraries", "ok", ", ".join(found))


def fuse_device(path: str = "/dev/fuse") -> Row:
    try:
        st = os.stat(path)
    except OSError:
        return Row("fuse device", "missing", f"{path} is not there; serving and client verbs work without",
                   "sudo modprobe fuse")  # fmt: skip
    mode = f"{path} mode {st.st_mode & 0o777:04o} uid {st.st_uid}"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return Row("fuse device", "missing", f"{mode}: closed to you", f"sudo chmod 666 {path}")
    except OSError as e:
        return Row("fuse device", "missing", f"{mode}: {(e.strerror or '').lower()}", "sudo modprobe fuse")
    return Row("fuse device", "ok", mode)


def fusermount() -> Row:
    import shutil

    path = shutil.which("fusermount3")
    is_root = os.geteuid() == 0
    if path is None:
        state: State = "absent" if is_root else "missing"
        return Row("fusermount3", state, "not installed (root mounts without it)", f"{_INSTALL} fuse3")
    if not os.stat(path).st_mode & _s.S_ISUID and not is_root:
        return Row("fusermount3", "missing", f"{path} is not setuid", f"sudo chmod u+s {path}")
    return Row("fusermount3", "ok", path)


def user_allow_other(conf: str = "/etc/fuse.conf") -> Row:
    from ninep.edges.fuse_mount import may_allow_other

    if may_allow_other(conf):
        return Row("allow_other", "ok", "mounts may let other users in (-o allow_other)")
    return Row("allow_other", "absent", "an ordinary user's mounts are for that user only",
               f"echo user_allow_other | sudo tee -a {conf}")  # fmt: skip


def kernel_version() -> tuple[int, int]:
    numbers = os.uname().release.split(".")[:2]
    try:
        return int(numbers[0]), int(numbers[1].split("-")[0])
    except (IndexError, ValueError):
        return 0, 0


def passthrough() -> Row:
    """The kernel may read and write host files by itself; it wants CAP_SYS_ADMIN of whoever serves."""
    if kernel_version() < FUSE_PASSTHROUGH_KERNEL:
        return Row("passthrough", "absent", f"Linux {os.uname().release}; 6.9 is needed", "a newer kernel")
    if os.geteuid() != 0:
        return Row("passthrough", "absent", "the kernel has it, for root", "sudo ninep mount ...")
    return Row("passthrough", "ok", f"Linux {os.uname().release}, as root")


def pyfuse3() -> Row:
    from importlib import metadata

    try:
        version = metadata.version("pyfuse3")
    except metadata.PackageNotFoundError:
        return Row("pyfuse3", "absent", "the second engine; not needed", "pip install 'ninep[pyfuse3]'")
    from ninep.edges.pyfuse3_engine import LIMITS

    return Row("pyfuse3", "ok", f"{version} (the second engine)", limits=LIMITS)


def user_namespaces() -> Row:
    """Tried in a child: unshare(2) cannot be undone."""
    reason = _try_in_child(lambda: ctypes.CDLL(None, use_errno=True).unshare(0x10000000))
    if reason == 0:
        return Row("user namespaces", "ok", "an ordinary process can make one")
    for path, off, mend in (
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
         "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"),
    ):  # fmt: skip
        if _reads(path) == off:
            return Row("user namespaces", "absent", f"{os.path.basename(path)} is {off}", mend)
    why = errno.errorcode.get(reason, str(reason))
    return Row("user namespaces", "absent", f"unshare(CLONE_NEWUSER): {why}", "whoever administers this container")


def _try_in_child(call: Callable[[], int]) -> int:
    """The errno of a system call made in a child; 0 if it worked."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if call() == 0 else ctypes.get_errno() & 0xFF)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _reads(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def openat2() -> Row:
    """openat2(2) with RESOLVE_BENEATH: host exports are quicker and safer where it is."""
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, 0x08)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(ctypes.c_long(437), ctypes.c_long(-100), b".", how, ctypes.c_long(len(how)))
    if fd >= 0:
        os.close(fd)
        return Row("openat2", "ok", "host exports are resolved by the kernel")
    why = errno.errorcode.get(ctypes.get_errno(), "?")
    return Row("openat2", "absent", f"{why}: host exports walk name by name instead", "Linux 5.6, and no seccomp ban")


def kernel_9p() -> Row:
    with open("/proc/filesystems") as file:
        if any(line.split()[-1] == "9p" for line in file):
            return Row("kernel 9p", "ok", "mount -t 9p works too")
    release = os.uname().release
    has_module = os.path.isdir(f"/lib/modules/{release}/kernel/fs/9p")
    return Row("kernel 9p", "absent", "the kernel's own client is not loaded; not needed",
               "sudo modprobe 9p" if has_module else "a kernel with CONFIG_9P_FS")  # fmt: skip


def state_directory(named: str) -> Row:
    """Modes of what is there; nothing is made."""
    from .places import runtime_dir, state_dir

    for path in (state_dir(named), runtime_dir()):
        try:
            st = os.stat(path)
        except FileNotFoundError:
            continue
        except OSError as e:
            return Row("state", "missing", f"{path}: {(e.strerror or '').lower()}", "--state DIR")
        if st.st_uid not in (0, os.geteuid()):
            return Row("state", "missing", f"{path} belongs to uid {st.st_uid}", f"sudo chown {os.geteuid()} {path}")
        if st.st_mode & 0o022:
            return Row("state", "missing", f"{path} is writable by others", f"chmod 700 {path}")
        key = os.path.join(path, "qid.key")
        if os.path.exists(key) and os.stat(key).st_mode & 0o077:
            return Row("state", "missing", f"{key} is readable by others", f"chmod 600 {key}")
    return Row("state", "ok", state_dir(named))


def node(args: argparse.Namespace) -> Row:
    from .target import Connections, node_url, target

    args.timeout = 2.0
    url = node_url(args)
    try:
        with Connections(args) as connections:
            dialect = connections.to(target("/", args)).core.dialect.name
    except Failure as e:
        return Row("node", "absent", f"{url}: {e.what}", "ninepd")
    return Row("node", "ok", f"{url} ({dialect})")
