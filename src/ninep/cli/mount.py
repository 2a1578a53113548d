"""The verb mount: a 9P server or a local tree on a directory, by FUSE.

Unless --foreground, the command returns when the kernel has been answered and the mount is in the mount table; what
serves it is then a process of its own, and whatever went wrong before is told by the command.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

import msgspec
import trio

from ninep.answer import settle
from ninep.edges.dial import Address, parse
from ninep.edges.fuse_mount import MountOptions, connection_of
from ninep.file import Call, Dir
from ninep.limits import Limits
from ninep.namespace.namespace import Namespace
from ninep.node import Node
from ninep.proto import errors as E

from . import logs
from .failure import FAILED, NOT_FOUND, OK, UNREACHABLE, Failure, Refusal, UsageError, from_dialling, from_error, tell
from .mountopts import Options, parse_options, with_query
from .notify import notify
from .output import Output
from .serve import lasting_key
from .settings import read_config
from .steady import settle_in
from .target import is_remote, node_url
from .trees import HINT, is_tree, tree_of

if TYPE_CHECKING:
    from ninep.edges.fuse import FuseMount

VISIBLE_SECONDS_MAX = 5.0
START_SECONDS_MAX = 60.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One mount, checked as far as can be without making it."""

    source: str
    directory: str
    options: Options
    engine: str
    state: str
    limits: Limits
    address: Address | None


def mount(args: argparse.Namespace, output: Output) -> int:
    """`ninep mount SOURCE DIR`."""
    held, _ = read_config(None)
    options = parse_options(args.options)
    plan = Plan(
        source=args.source,
        directory=os.path.abspath(args.dir),
        options=options,
        engine=options.engine or args.engine,
        state=args.state or held.node.state,
        limits=_limits(held.limits, options),
        address=_address(args, options),
    )
    _check(plan)
    if plan.address is not None and options.allow_other:
        output.note("mount: allow_other: to the server, every local user is the one who mounts")
    if plan.engine == "pyfuse3":
        from ninep.edges.pyfuse3_engine import LIMITS, check_installed

        try:
            check_installed()
        except E.Ehost:
            raise Failure("pyfuse3 cannot be imported", where=plan.directory, errno_name="ENOTSUP",
                          hint="pip install 'ninep[pyfuse3]'") from None  # fmt: skip
        for limit in LIMITS:
            output.detail(f"mount: pyfuse3: {limit}")
    logs.start_logging(held.log.level, quiet=args.quiet, verbose=args.verbose)
    if args.foreground:
        return run(plan, output, lambda: _say(plan, output))
    return in_background(plan, output, is_json=args.json)


def _say(plan: Plan, output: Output) -> None:
    notify("READY=1")
    if output.is_json:
        output.json({"mounted": plan.directory, "source": plan.source, "pid": os.getpid()})
        output.flush()
    else:
        output.note(f"mounted {plan.source} on {plan.directory}")


def _limits(limits: Limits, options: Options) -> Limits:
    """The limits, with -o timeout= in the place of how long a server may take."""
    seconds = options.timeout_seconds
    if not seconds:
        return limits
    return msgspec.structs.replace(
        limits, reply_seconds_max=seconds, connect_seconds_max=min(seconds, limits.connect_seconds_max)
    )


def _address(args: argparse.Namespace, options: Options) -> Address | None:
    """The server's address, or None for a local tree."""
    if is_tree(args.source):
        if options.query:
            raise UsageError(f"-o {options.query[0][0]}= is for a server's URL", hint="none with a local tree")
        return None
    source = args.source
    if not is_remote(source):
        if not source.startswith("/"):
            raise UsageError(f"neither a URL nor a tree: {source[:80]}", hint=HINT)
        args.node = None
        source = node_url(args)
    try:
        return parse(with_query(source.removeprefix("node:"), options.query))
    except E.FileError as e:
        raise UsageError(e.about or e.text, hint="9p://host/path or 9p+unix:///path") from None


def _check(plan: Plan) -> None:
    """What can be said before anything is started."""
    try:
        st = os.lstat(plan.directory)
    except OSError as e:
        if connection_of(plan.directory) >= 0:
            raise Failure("a dead mount is there", where=plan.directory, errno_name="ENOTCONN",
                          hint=f"'ninep umount {plan.directory}'") from None  # fmt: skip
        raise from_error(e, plan.directory, f"'mkdir {plan.directory}'" if e.errno == 2 else "") from None
    if (st.st_mode & 0o170000) == 0o120000:
        raise Failure("mount point is a symbolic link", where=plan.directory, errno_name="ELOOP", hint="its target")
    if (st.st_mode & 0o170000) != 0o040000:
        raise Failure("not a directory", where=plan.directory, errno_name="ENOTDIR", hint="a directory")
    for path, why in (("/", "the root"), ("/proc", "/proc"), ("/dev", "/dev"), ("/sys", "/sys")):
        if plan.directory == path:
            raise Refusal(f"{why} of this machine is not mounted over", "a directory such as /n9")


@asynccontextmanager
async def source_of(plan: Plan, node: Node, output: Output) -> AsyncIterator[Dir]:
    """The tree to be mounted, for as long as the block runs."""
    if plan.address is None:
        tree = tree_of(plan.source, node, lambda: lasting_key(plan.state, output), plan.limits)
        # A mount attaches once; a tree that is made anew at each attach is made here.
        yield Namespace(await settle(tree.attach(Call(), "")))
        return
    from ninep.edges.client import connect

    where = plan.address
    is_reached = False
    try:
        async with connect(where, limits=plan.limits) as client:
            root: Dir = client.root
            for name in where.path:
                found = await settle(root.walk(Call(), name))
                if not isinstance(found, Dir):
                    raise E.Enotdir(name)
                root = found
            is_reached = True
            yield Namespace(root)
    except E.FileError as e:
        if is_reached:
            raise
        told = from_dialling(e, where, plan.source)
        told.code = UNREACHABLE if told.code in (FAILED, NOT_FOUND) and not where.path else told.code
        raise told from None


async def serve_mount(
    plan: Plan, node: Node, root: Dir, *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED
) -> None:
    """Mount and serve with the engine that was asked for; started when the mount is in the mount table."""
    from ninep.edges.fuse import FuseOptions, serve_fuse

    wanted = FuseOptions(
        mount=MountOptions(
            source=plan.options.fsname or plan.source,
            allow_other=plan.options.allow_other,
            read_only=plan.options.read_only,
            noexec=plan.options.noexec,
        ),
        cache=plan.options.cache,
        passthrough=plan.options.passthrough,
        symlinks=plan.options.symlinks or ("contain" if plan.address is not None else "all"),
    )
    engine = serve_fuse
    if plan.engine == "pyfuse3":
        from ninep.edges.pyfuse3_engine import serve_pyfuse3

        engine = serve_pyfuse3
    async with trio.open_nursery() as nursery:
        mounted: FuseMount = await nursery.start(engine, node, root, plan.directory, wanted)
        with trio.fail_after(VISIBLE_SECONDS_MAX):
            while connection_of(plan.directory) < 0:
                await trio.sleep(0.005)
        task_status.started(mounted)


def run(plan: Plan, output: Output, ready: object) -> int:
    """Mount, call `ready`, and serve until it is unmounted or a signal comes.  Raises Failure."""
    assert callable(ready)

    async def main() -> None:
        node = Node(plan.limits)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with source_of(plan, node, output) as root, trio.open_nursery() as nursery:
                nursery.start_soon(_until_signal, signals, nursery.cancel_scope)
                async with trio.open_nursery() as serving:
                    await serving.start(serve_mount, plan, node, root)
                    ready()
                nursery.cancel_scope.cancel()

    settle_in()
    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        raise _plain(group, plan) from None
    except (OSError, E.FileError) as e:
        raise mount_failure(e, plan.directory) from None
    return OK


async def _until_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            scope.cancel()
            return


def _plain(group: BaseExceptionGroup[BaseException], plan: Plan) -> BaseException:
    """The one failure that a group of tasks ended with."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Failure):
        return error
    if isinstance(error, OSError | E.FileError):
        return mount_failure(error, plan.directory)
    return error


def mount_failure(e: Exception, directory: str) -> Failure:
    """Why a mount did not come to be, and what to do about it."""
    number = getattr(e, "errno", 0)
    hints = {
        1: "root, or fusermount3 from the package fuse3",
        2: "'ninep doctor'",
        13: "'ninep doctor': /dev/fuse may be closed to you",
        19: "'ninep doctor': the kernel has no FUSE",
        110: "'ninep doctor'",
    }
    return from_error(e, directory, hints.get(number, ""))


def in_background(plan: Plan, output: Output, *, is_json: bool) -> int:
    """Serve in a process of its own; this one returns when that one has mounted, or has said why not."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return _wait_for(pid, read, plan, output, is_json=is_json)
    os.close(read)
    os.setsid()
    return _child(plan, output, write)


def _wait_for(pid: int, read: int, plan: Plan, output: Output, *, is_json: bool) -> int:
    import select

    with os.fdopen(read, "rb") as file:
        if not select.select([file], [], [], START_SECONDS_MAX)[0]:
            os.kill(pid, signal.SIGTERM)
            raise Failure("not mounted in time", where=plan.directory, errno_name="ETIMEDOUT", hint="'ninep doctor'")
        raw = file.read()
    if raw == b"ok":
        if is_json:
            output.json({"mounted": plan.directory, "source": plan.source, "pid": pid})
        else:
            output.detail(f"mounted {plan.source} on {plan.directory} (pid {pid})")
        return OK
    os.waitpid(pid, 0)
    if not raw:
        raise Failure("the serving process ended", where=plan.directory, hint="--foreground, to see why")
    what, where, errno_name, hint, code = msgspec.json.decode(raw, type=tuple[str, str, str, str, int])
    raise Failure(what, where=where, errno_name=errno_name, hint=hint, code=code)


def _child(plan: Plan, output: Output, write: int) -> NoReturn:
    """The serving process: never returns."""
    code = FAILED
    told = False

    def ready() -> None:
        nonlocal told
        told = True
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        logs.to_syslog()
        os.write(write, b"ok")
        os.close(write)

    try:
        code = run(plan, output, ready)
    except Failure as e:
        code = e.code
        if told:
            tell(e, "ninep", "mount", is_json=False)
        else:
            os.write(write, msgspec.json.encode((e.what, e.where, e.errno_name, e.hint, e.code)))
    except BaseException as e:
        if not told:
            text = f"internal error: {type(e).__name__}: {e}"
            os.write(write, msgspec.json.encode((text, plan.directory, "", "--foreground -vv", FAILED)))
    finally:
        os._exit(code)
