"""A server process for the tests of the FUSE edge: `fuse_server.py TREE DIR [DIR...] [key=value...]`.

Mounts the tree on each directory, prints "ready", then a line for each thing it is asked on its standard input.
NINEP_TEST_ENGINE names the engine; with NINEP_TEST_NO_WATCHDOG the one of pyfuse3 does not look for signals.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
from collections.abc import Callable

import trio

from ninep import synth
from ninep.edges import pyfuse3_engine_watch
from ninep.edges.fuse import FuseMount, FuseOptions, MountOptions, serve_fuse
from ninep.edges.pyfuse3_engine import serve_pyfuse3
from ninep.file import Call, Dir
from ninep.limits import Limits
from ninep.node import Node
from ninep.observe import register_op
from ninep.servers import ram

LIMITS = Limits()


class Clockwork(synth.Dir):
    """State files whose content is another at every look, ctl files and streams."""

    def __init__(self) -> None:
        super().__init__()
        self.renders = 0
        self.said: list[str] = []
        self.stream = synth.Stream()
        self.document = "first\n"

    @synth.text()
    def state(self) -> str:
        """Three lines that agree with each other, of a length that always changes."""
        self.renders += 1
        line = f"{self.renders} " + "x" * (self.renders * 37 % 5000)
        return f"{line}\n{line}\nend {self.renders}\n"

    @synth.text()
    def steady(self) -> str:
        """Always the same."""
        return "always the same\n"

    @synth.text()
    def big(self) -> str:
        """Larger than any one read."""
        self.renders += 1
        return f"{self.renders}\n" * 100_000

    @synth.text()
    def doc(self) -> str:
        """A document."""
        return self.document

    @doc.writer
    def write_doc(self, content: str) -> None:
        self.document = content

    @synth.events()
    def event(self) -> synth.Stream:
        """What was said, one message each."""
        return self.stream

    @synth.ctl
    def say(self, *words: str) -> None:
        """say words on the stream"""
        self.said.append(" ".join(words))
        self.stream.put(" ".join(words) + "\n")

    @synth.text()
    def log(self) -> str:
        """What was said so far."""
        return "".join(f"{line}\n" for line in self.said)


def ram_tree() -> Dir:
    return ram.tree(LIMITS, uid=os.geteuid(), gid=os.getegid())


def host_tree(path: str) -> Dir:
    from ninep.servers import host

    return host.tree(path)


ENGINES = {"dev": serve_fuse, "pyfuse3": serve_pyfuse3}
TREES: dict[str, Callable[[], Dir]] = {"ram": ram_tree, "clockwork": Clockwork}


def options_of(words: list[str]) -> FuseOptions:
    mount: dict[str, object] = {}
    edge: dict[str, object] = {}
    for word in words:
        key, _, value = word.partition("=")
        of_mount = key in MountOptions.__struct_fields__
        (mount if of_mount else edge)[key] = (
            value if key in ("locks", "aname", "source", "device_path", "symlinks") else value == "1"
        )
    return FuseOptions(mount=MountOptions(**mount), **edge)  # type: ignore[arg-type]  # strings of a test


async def answer_questions(tree: Dir, node: Node, mounts: list[FuseMount]) -> None:
    """Lines on standard input: what a test wants to know or to happen inside the server."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        buffer = b""
        while data := await stream.receive_some():
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                word, *rest = line.decode().split()
                if word == "cpu":
                    used = resource.getrusage(resource.RUSAGE_SELF)
                    print(used.ru_utime + used.ru_stime, flush=True)
                elif word == "live":
                    print(node.live[rest[0]], flush=True)
                elif word == "ops":
                    index = register_op(f"fuse.{rest[0]}")
                    print(node.events.op_time[index].count, flush=True)
                elif word == "append":
                    handle = tree.walk(Call(), rest[0]).open(Call(), 0x81)  # type: ignore[union-attr]  # a ram tree
                    handle.write(Call(), 0, bytes(int(rest[1])))  # type: ignore[union-attr]  # likewise
                    print("appended", flush=True)
                elif word == "close":
                    await mounts[int(rest[0])].close()
                    print("closed", flush=True)
                elif word == "write":  # behind the kernel's back, as another session would
                    file = tree.walk(Call(), rest[0])
                    handle = file.open(Call(), 0x11)  # type: ignore[union-attr]  # a ram tree answers at once
                    handle.write(Call(), 0, rest[1].encode())  # type: ignore[union-attr]  # likewise
                    handle.close(Call())  # type: ignore[union-attr]  # likewise
                    print("written", flush=True)
                elif word == "remove":
                    tree.remove(Call(), rest[0], None)
                    print("removed", flush=True)


async def main(name: str, directories: list[str], options: FuseOptions) -> None:
    tree = host_tree(name[5:]) if name.startswith("host:") else TREES[name]()
    node = Node(LIMITS)
    serve = ENGINES[os.environ.get("NINEP_TEST_ENGINE", "dev")]
    mounts: list[FuseMount] = []
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as serving:

                async def one(directory: str, task_status: trio.TaskStatus[FuseMount]) -> None:
                    await serve(node, tree, directory, options, task_status=task_status)

                async def stop() -> None:
                    async for _ in signals:
                        serving.cancel_scope.cancel()

                nursery.start_soon(stop)
                for directory in directories:
                    mounts.append(await serving.start(one, directory))
                nursery.start_soon(answer_questions, tree, node, mounts)
                print("ready", flush=True)
            nursery.cancel_scope.cancel()
    print("ended", {k: v for k, v in node.live.items() if v}, flush=True)


if __name__ == "__main__":
    if "NINEP_TEST_NO_WATCHDOG" in os.environ:
        pyfuse3_engine_watch.PERIOD_SECONDS = math.inf  # type: ignore[misc]  # a constant, except for a control
    dirs = [word for word in sys.argv[2:] if word.startswith("/")]
    trio.run(main, sys.argv[1], dirs, options_of([word for word in sys.argv[2:] if not word.startswith("/")]))
