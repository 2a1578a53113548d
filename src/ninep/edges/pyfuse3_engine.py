"""The second FUSE engine: serves a Dir on a mount point through pyfuse3 and libfuse, one mount to a process.

The mount itself, who asks, what a request means and what the kernel knows are those of our own engine; pyfuse3 reads
the device and writes the replies.  It exists so that every promise of the FUSE edge can be checked on two engines.
On one CPU a stat of which the kernel keeps nothing (three requests) costs 58 us, on our own 17; a 4 KiB read 49 and 15.

What it cannot do, because pyfuse3 has no call for it (LIMITS says the same, for users):
- more than one mount in a process: its session is a global variable;
- FUSE_INTERRUPT: a watchdog reads /proc instead (pyfuse3_engine_watch); a signal that is handled, and sent to one
  thread of a process with several blocked reads, interrupts them all;
- who reads, writes, flushes or locks: the opener is taken for the caller;
- lseek with SEEK_DATA and SEEK_HOLE (all is data, says the kernel), fallocate, ioctl, syncfs; copy_file_range
  is done by the kernel, by reading and writing;
- locks: they hold among the processes of this machine, in the kernel, and the tree never hears of them;
- passthrough, cached directories, the choice of timeouts of a listing, the size of a write (what libfuse chose);
- "now" as a time: libfuse makes a number of it.
Its node id is also the st_ino of LOOKUP: where ours has a number for the snapshot of a state file and another for the
file, the kernel is made to ask GETATTR, which may tell the file's own.  A listing names the file, not the snapshot.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import trio

from ninep.answer import Answer, settle
from ninep.file import Dir
from ninep.node import Node
from ninep.proto import errors as E
from ninep.session import Session

from . import fuse_mount
from .fuse_device import GONE, UNMOUNT_SECONDS_MAX, FuseMount, FuseOptions, Row

if TYPE_CHECKING:
    from .pyfuse3_engine_ops import Adapter, Replies

log = logging.getLogger(__name__)

TASKS_MAX: Final = 65_536  # each parked operation has a task of pyfuse3's, and a stat must find one that is free
INIT_SECONDS_MAX: Final = 10.0
END_SECONDS_MAX: Final = 5.0
WAKE_SECONDS: Final = 0.25
LIMITS: Final = (
    "one mount to a process",
    "a signal ends a blocked read within 0.1 s and not at once",
    "no SEEK_HOLE, fallocate, ioctl, passthrough; locks stay in this machine's kernel",
    "reads and writes count as the opener's",
)

_own: ContextVar[object] = ContextVar("the mount whose request is running", default=None)
_in_use = threading.Lock()


def check_installed() -> None:
    """Raises Ehost where pyfuse3 is not installed, or its library is missing."""
    try:
        import pyfuse3  # noqa: F401
    except ImportError:
        raise E.Ehost("pyfuse3 (pip install ninep[pyfuse3])") from None


async def serve_pyfuse3(
    node: Node,
    root: Dir,
    mountpoint: str,
    options: FuseOptions = FuseOptions(),  # noqa: B008  # frozen
    *,
    mounted: fuse_mount.Mounted | None = None,
    task_status: trio.TaskStatus[FuseMount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """As fuse.serve_fuse, for one mount at a time.  Raises Ehost without pyfuse3, Einuse when it serves one already."""
    check_installed()
    if not _in_use.acquire(blocking=False):
        raise E.Einuse("pyfuse3 serves one mount to a process")
    try:
        from .pyfuse3_engine_ops import Adapter, Replies
        from .pyfuse3_engine_tree import InodeOperations

        if mounted is None:
            mounted = await trio.to_thread.run_sync(fuse_mount.mount, mountpoint, options.mount)
        mount = Pyfuse3Mount(node, mounted, options)
        replies = Replies()
        async with trio.open_nursery() as nursery:
            mount.session = Session(node, root, nursery, replies, edge="fuse", peer=mountpoint,
                                    requests_max=node.limits.parked_max)  # fmt: skip
            operations = InodeOperations(mount)
            mount.replies = replies
            mount.adapter = Adapter(mount, operations, mount.rows, replies, mount.is_gone)
            try:
                await mount.run(task_status, operations.start)
            finally:
                operations.end()
            nursery.cancel_scope.cancel()
    finally:
        _in_use.release()


class Pyfuse3Mount(FuseMount):
    """One mount being served."""

    adapter: Adapter
    replies: Replies

    def __init__(self, node: Node, mounted: fuse_mount.Mounted, options: FuseOptions) -> None:
        super().__init__(node, mounted, options)
        self.rows: dict[str, Row] = {}
        self._main_scope = trio.CancelScope(shield=True)  # it must answer until the unmount is done

    def is_own(self) -> bool:
        return _own.get() is self

    async def run(self, task_status: trio.TaskStatus[FuseMount], serve_root: Callable[[], Answer[None]]) -> None:
        """The whole life: requests until the mount is gone, or until this is cancelled; then the end."""
        import pyfuse3

        ended = trio.Event()
        has_session = False
        async with trio.open_nursery() as nursery:
            try:
                with self._scope, interrupted_reads():
                    await settle(serve_root())
                    self.rows.update((row.op.name, row) for row in self._rows.values())
                    os.set_blocking(self.fd, True)  # pyfuse3 takes "nothing there" for the end of the mount
                    # The mount is ours, and libfuse takes it over: so it has our options, and no others.
                    try:
                        pyfuse3.init(self.adapter, f"/dev/fd/{self.fd}", set())
                    except RuntimeError as e:
                        raise E.Eio(str(e)) from None
                    has_session = True
                    nursery.start_soon(self._main, ended)
                    nursery.start_soon(self.notifier.run)
                    nursery.start_soon(self.adapter.watch.run)
                    with trio.fail_after(INIT_SECONDS_MAX):
                        await self.adapter.served.wait()
                    task_status.started(self)
                    await ended.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await self._finish(ended, has_session=has_session)
                nursery.cancel_scope.cancel()

    async def _main(self, ended: trio.Event) -> None:
        import pyfuse3

        _own.set(self)
        try:
            with self._main_scope:
                await pyfuse3.main(min_tasks=1, max_tasks=TASKS_MAX)
        except* OSError as group:
            # One that is unmounted ends it quietly, one that is aborted does not: both are how a mount ends.
            _, others = group.split(lambda e: isinstance(e, OSError) and e.errno in GONE)
            if others is not None:
                raise others from None
        finally:
            ended.set()

    def is_gone(self) -> bool:
        """Whether the kernel has ended the connection: nobody waits for what is parked."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return bool(poll.poll(0))

    async def _finish(self, ended: trio.Event, *, has_session: bool) -> None:
        # As in our own engine: requests are answered for as long as the unmount may cause some, then each gets an
        # error, and at last the device is closed, which ends the connection for whoever still has a file open.
        import pyfuse3

        try:
            with trio.move_on_after(UNMOUNT_SECONDS_MAX):
                await trio.to_thread.run_sync(self._unmount, abandon_on_cancel=True)
            self.adapter.is_ending = True
            running = self.session.requests.keys()
            await self.session.end()
            for key in running:
                self.replies.refuse(key, E.Eshutdown())
            if has_session and not ended.is_set():
                pyfuse3.terminate()
                with trio.move_on_after(END_SECONDS_MAX):
                    await ended.wait()
                self._main_scope.cancel()
                await ended.wait()
        finally:
            fd, self.fd, self.device.fd = self.fd, -1, -1
            if has_session:
                pyfuse3.close(unmount=False)  # and with it the descriptor
            else:
                os.close(fd)
            self.node.live["mounts"] -= 1
            self._closed.set()


@contextmanager
def interrupted_reads() -> Iterator[None]:
    """A timer, so that no read(2) of the device can stop the process for long.

    pyfuse3 reads when the device was readable, and a request may have been withdrawn in between, because its caller
    was killed; the read then waits for the next one, and everything else with it.  A signal ends it, and pyfuse3 goes
    back to waiting.  Only the main thread may do this; elsewhere the read waits.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, WAKE_SECONDS, WAKE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


__all__ = ["LIMITS", "Pyfuse3Mount", "check_installed", "serve_pyfuse3"]
