"""The state directory: what must survive a restart.  Private, owned, and used by one daemon at a time."""

from __future__ import annotations

import fcntl
import os
import stat as _s

from .failure import CONFLICT, Failure, Refusal

KEY_BYTES = 32
KEY_NAME = "qid.key"
LOCK_NAME = "lock"


class State:
    """An open state directory.  Everything in it is reached through its descriptor, never through its path."""

    def __init__(self, path: str) -> None:
        """Open it, made 0700 if it is missing.  Raises Refusal for one that others could have written to."""
        self.path = path
        self._lock_fd = -1
        try:
            os.makedirs(path, 0o700, exist_ok=True)
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as e:
            raise Refusal(f"state directory: {(e.strerror or '').lower()}: {path}", "--state DIR") from None
        st = os.fstat(self.fd)
        if problem := _problem(st):
            os.close(self.fd)
            raise Refusal(f"state directory {path} {problem}", f"'chmod 700 {path}', or --state DIR")

    def close(self) -> None:
        """Let it go, and the lock with it."""
        for fd in (self.fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._lock_fd = -1

    def lock(self) -> None:
        """Be the only daemon here until this process ends (SEC-138).  Raises Failure when another one is."""
        fd = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            os.close(fd)
            who = f" (pid {holder})" if holder.isdigit() else ""
            raise Failure(
                f"another daemon{who} uses this state directory", where=self.path, errno_name="EBUSY",
                hint="--state DIR for a second one, or end the first", code=CONFLICT,
            ) from None  # fmt: skip
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd  # held, and let go by the kernel whatever happens to us

    def qid_key(self) -> bytes:
        """The secret that makes qids of host files, the same at every start.  Made at the first use, whole or not."""
        for _ in range(2):
            key = self._read_key()
            if key is not None:
                return key
            self._make_key()
        raise Refusal(f"{KEY_NAME} cannot be made in {self.path}", "--state DIR")

    def _read_key(self) -> bytes | None:
        try:
            fd = os.open(KEY_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise Refusal(f"{self.path}/{KEY_NAME}: {(e.strerror or '').lower()}", "removing it") from None
        try:
            st = os.fstat(fd)
            key = os.read(fd, KEY_BYTES + 1)
        finally:
            os.close(fd)
        path = f"{self.path}/{KEY_NAME}"
        if not _s.S_ISREG(st.st_mode) or st.st_uid not in (0, os.geteuid()) or st.st_mode & 0o077:
            raise Refusal(f"{path} is readable by others", f"'chmod 600 {path}', or remove it for a new one")
        if len(key) != KEY_BYTES:
            raise Refusal(f"{path} is not {KEY_BYTES} bytes long", "removing it for a new one")
        return key

    def _make_key(self) -> None:
        """Under another name first: nobody ever reads half a key, and whoever links second takes the first one's."""
        name = f".{KEY_NAME}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=self.fd)
            try:
                os.write(fd, os.urandom(KEY_BYTES))
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                os.link(name, KEY_NAME, src_dir_fd=self.fd, dst_dir_fd=self.fd)
                os.fsync(self.fd)
            except FileExistsError:
                pass
            finally:
                os.unlink(name, dir_fd=self.fd)
        except OSError as e:
            raise Refusal(f"{self.path}: {(e.strerror or '').lower()}", "--state DIR") from None


def _problem(st: os.stat_result) -> str:
    if st.st_uid not in (0, os.geteuid()):
        return f"belongs to uid {st.st_uid}"
    if st.st_mode & 0o022:
        return f"is writable by others (mode {st.st_mode & 0o777:o})"
    return ""
