"""What does a connection that does nothing cost the server, and what a walked fid?  Resident bytes of the process."""

from __future__ import annotations

import resource
import socket
import struct
import time
from pathlib import Path

from bench.conversation import Server, ninep
from bench.measure import Bench, Row
from ninep.observe import RING_SLOTS

CONNECTIONS = 300
FIDS = 20_000
IDLE_SECONDS_MAX = 75.0  # a server gives the buffers of quiet connections back now and then
CONNECTION_BYTES_MAX = 64 * 1024
FID_BYTES_MAX = 1024
NOFILE_USUAL, NOFILE_LARGE = 1024, 65_536


def resident(pid: int) -> int:
    """Bytes of memory that are this process's alone, anonymous (smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("smaps_rollup has no Anonymous:")


class Client:
    """A connection that has attached: fid 0 is the root."""

    def __init__(self, server: Server) -> None:
        self.sock = socket.create_connection(("127.0.0.1", server.port), 10)
        self.file = self.sock.makefile("rb")
        self.send(struct.pack("<BHI", 100, 0xFFFF, 1 << 20) + _string("9P2000.L"))
        self.receive(101)
        names = _string("bench") + _string(server.aname)
        self.send(struct.pack("<BHII", 104, 1, 0, 0xFFFFFFFF) + names + struct.pack("<I", 0xFFFFFFFF))
        self.receive(105)

    def send(self, *bodies: bytes) -> None:
        self.sock.sendall(b"".join(struct.pack("<I", len(body) + 4) + body for body in bodies))

    def receive(self, kind: int) -> None:
        """The next reply, which must be of this type."""
        (size,) = struct.unpack("<I", self.file.read(4))
        body = self.file.read(size - 4)
        if body[0] != kind:
            raise RuntimeError(f"reply {body[0]} instead of {kind}")

    def walk(self, fids: range, names: list[str]) -> None:
        """A new fid for each name below the root; a hundred in flight, because a server may answer in between."""
        for at in range(0, len(fids), 100):
            some = fids[at : at + 100]
            self.send(
                *(struct.pack("<BHIIH", 110, i, 0, fid, 1) + _string(names[at + i]) for i, fid in enumerate(some))
            )
            for _ in some:
                self.receive(111)

    def ask(self, count: int) -> None:
        """So many requests that leave nothing behind but their lines in the server's ring of events, which is then full
        and grows no more."""
        for _ in range(count // 100 + 1):
            self.send(*(struct.pack("<BHIQ", 24, tag, 0, 0x7FF) for tag in range(100)))
            for _ in range(100):
                self.receive(25)

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<H", len(raw)) + raw


def measure(bench: Bench) -> None:
    directory = bench.work / "many"
    directory.mkdir()
    names = [f"file{i:06}" for i in range(FIDS)]
    for name in names:
        (directory / name).touch()
    with ninep(bench, directory) as server:
        Client(server).close()
        _connections(bench, server)
    # Descriptors kept for speed have a bound of their own, a share of ulimit -n; most systems start programs with 1024.
    one = ["file000000"] * FIDS
    _fids(bench, directory, "walked fid, all on one file", one, NOFILE_USUAL, FID_BYTES_MAX)
    what = "walked fid, each its own file, ulimit -n"
    _fids(bench, directory, f"{what} {NOFILE_USUAL}", names, NOFILE_USUAL, FID_BYTES_MAX)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = NOFILE_LARGE if hard == resource.RLIM_INFINITY else min(hard, NOFILE_LARGE)
    _fids(bench, directory, f"{what} {most}", names, most, None)


def _fids(bench: Bench, directory: Path, what: str, names: list[str], nofile: int, target: float | None) -> None:
    with ninep(bench, directory, nofile) as server:
        client = Client(server)
        client.walk(range(1, 101), names)
        client.ask(RING_SLOTS)
        before = resident(server.pid)
        client.walk(range(101, FIDS + 1), names[100:])
        used = (resident(server.pid) - before) / (FIDS - 100)
        client.close()
    bench.add(Row(f"memory of a {what}", used, "bytes", target=target, less=True))


def _connections(bench: Bench, server: Server) -> None:
    before = resident(server.pid)
    clients: list[Client] = []
    try:
        clients += [Client(server) for _ in range(CONNECTIONS)]
        at_once = (resident(server.pid) - before) / CONNECTIONS
        # Quiet now; look until it stays where it is.
        used, ends = at_once, time.monotonic() + IDLE_SECONDS_MAX
        while used > CONNECTION_BYTES_MAX and time.monotonic() < ends:
            time.sleep(1)
            used = (resident(server.pid) - before) / CONNECTIONS
    finally:
        for client in clients:
            client.close()
    bench.add(Row("memory of an idle connection", used, "bytes", target=CONNECTION_BYTES_MAX, less=True))
