"""The FUSE edge: serves a Dir on a mount point, by reading /dev/fuse itself.

fuse_mount makes the mount, fuse_device reads and answers, fuse_ops, fuse_open and fuse_io say what a request means.
Any number of mounts may live in one process; the process must never use a mount of its own.
"""

from __future__ import annotations

import trio

from ninep.file import Dir
from ninep.node import Node
from ninep.session import Session

from . import fuse_mount
from .fuse_device import FuseMount, FuseOptions
from .fuse_mount import MountOptions
from .fuse_ops import Operations


async def serve_fuse(
    node: Node,
    root: Dir,
    mountpoint: str,
    options: FuseOptions = FuseOptions(),  # noqa: B008  # frozen
    *,
    mounted: fuse_mount.Mounted | None = None,
    task_status: trio.TaskStatus[FuseMount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount `root` on a directory and serve it until it is unmounted or this is cancelled; then unmount it.

    Started means that the kernel has been answered: the mount works.  `mounted` is a mount made elsewhere.  Raises
    OSError or FileError when the directory cannot be mounted on.
    """
    if mounted is None:
        mounted = await trio.to_thread.run_sync(fuse_mount.mount, mountpoint, options.mount)
    mount = FuseMount(node, mounted, options)
    async with trio.open_nursery() as nursery:
        mount.session = Session(node, root, nursery, mount.device, edge="fuse", peer=mountpoint,
                                requests_max=node.limits.parked_max)  # fmt: skip
        operations = Operations(mount)
        try:
            await mount.run(task_status, operations.start)
        finally:
            operations.end()
        nursery.cancel_scope.cancel()


__all__ = ["FuseMount", "FuseOptions", "MountOptions", "serve_fuse"]
