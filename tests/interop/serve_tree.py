"""Our server as a process, for judges: `serve_tree.py DIR [auth]` serves DIR and trees in memory on a port of its own.

Prints its address once it accepts.  The attach name selects the tree: host (DIR, with the callers' own rights), ram,
live (state, ctl and stream files) and ctl (the files that diod's tools ask a server for).
"""

from __future__ import annotations

import socket
import sys
import time

import trio

from ninep import synth
from ninep.edges.listen import Server
from ninep.edges.policy import AuthHandle, Peer, Policy
from ninep.file import Call, Dir, File
from ninep.kernelfs import dev
from ninep.namespace.namespace import Namespace
from ninep.node import Node
from ninep.principal import local_principal
from ninep.servers import host, ram


class Live(synth.Dir):
    """One of each kind of synthetic file, and how many operations are parked on this server."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node
        self.renders = 0
        self.said: list[str] = []
        self.stream = synth.Stream()

    @synth.text()
    def state(self) -> str:
        """Another at every look, of a length that always changes."""
        self.renders += 1
        return f"{self.renders} " + "x" * (self.renders * 37 % 5000) + f" {self.renders}\n"

    @synth.text()
    def parked(self) -> str:
        """How many operations wait for something."""
        return f"{self.node.live['parked']}\n"

    @synth.text()
    def log(self) -> str:
        """What was said so far."""
        return "".join(f"{line}\n" for line in self.said)

    @synth.events()
    def event(self) -> synth.Stream:
        """What is said, one message each."""
        return self.stream

    @synth.ctl
    def say(self, *words: str) -> None:
        """say words on the stream"""
        self.said.append(" ".join(words))
        self.stream.put(" ".join(words) + "\n")


class DiodControl(synth.Dir):
    """The files of the attach name `ctl` that diod's tools open."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node
        self.devices = dev.tree(node.events)

    @synth.text()
    def version(self) -> str:
        """The version that diod's tools print."""
        return "ninep\n"

    @synth.text()
    def date(self) -> str:
        """gettimeofday(2): seconds, microseconds, minutes west of Greenwich, kind of daylight saving."""
        seconds, ns = divmod(time.time_ns(), 1_000_000_000)
        return f"{seconds}.{ns // 1000} 0.0\n"

    @synth.text()
    def connections(self) -> str:
        """One line for each client."""
        return "localhost\n" * self.node.live["sessions"]

    def children(self, call: Call) -> list[tuple[str, File]]:
        return [(name, self.devices.walk(call, name)) for name in ("zero", "null")]  # type: ignore[misc]  # at once

    def child(self, call: Call, name: str) -> File | None:
        return dict(self.children(call)).get(name)


class AnyWord(AuthHandle):
    """Proves root to whoever writes anything."""

    def read(self, call: Call, offset: int, count: int) -> bytes:
        return b"say something"[offset : offset + count]

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> int:
        self.principal = local_principal(0, 0, frozenset(), "root", "password")
        return len(data)


class AnyWordAuth:
    """An Authenticator, so that a conversation can hold an Rauth."""

    def start(self, peer: Peer, uname: str, aname: str) -> AuthHandle:
        return AnyWord()


def tree_of(node: Node, directory: str) -> Dir:
    """The root is empty; every tree is behind its attach name."""
    names: dict[str, Dir] = {
        "host": host.tree(directory, ownership="native"),
        "ram": ram.tree(),
        "live": Live(node),
        "ctl": DiodControl(node),
    }
    return Namespace(ram.tree(), "judge", anames=names)


def main(directory: str, auth: bool) -> None:
    node = Node()
    policy = Policy(authenticator=AnyWordAuth()) if auth else Policy(trust_uname=True)
    listener = socket.create_server(("127.0.0.1", 0))

    async def run() -> None:
        server = Server(node, tree_of(node, directory), policy)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, [listener])
            print(f"9p://127.0.0.1:{listener.getsockname()[1]}", flush=True)

    trio.run(run)


if __name__ == "__main__":
    main(sys.argv[1], "auth" in sys.argv[2:])
