"""Every bound of ninep.limits is reached by a test, here or where the table says, and answered as documented."""

from __future__ import annotations

import ast
import errno
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from asks import mkdir, put, refuses
from raw9p import RawClient, serving
from trees import Parking, SlowDir, Tree

from ninep.answer import Answer, settle
from ninep.edges import fuse_device, fuse_mount
from ninep.edges.client import on_wire
from ninep.edges.client_stream import ReadAhead
from ninep.edges.listen import Server, bind_unix
from ninep.edges.policy import Peer, Policy
from ninep.edges.stream import serve_wire
from ninep.edges.wire import MemoryWire, SocketWire
from ninep.file import Call, File, Handle
from ninep.limits import DEFAULT, Limits
from ninep.node import Node
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import fuse as p
from ninep.proto import messages as m
from ninep.proto.types import F_WRLCK, NOFID
from ninep.proto.version import P2000
from ninep.servers import host, ram

ELSEWHERE = {
    "msize_bytes_max": "conformance/test_version.py::test_the_msize_given_is_at_most_the_one_asked_and_at_least_4096",
    "first_message_bytes_max": "conformance/test_hostile_frames.py::test_another_protocol_is_hung_up_quietly",
    "first_message_seconds_max": "conformance/test_hostile_frames.py::"
    "test_a_silent_stranger_is_hung_up_after_ten_seconds",
    "frame_seconds_max": "conformance/test_hostile_frames.py::"
    "test_a_frame_begun_and_never_ended_is_given_thirty_seconds",
    "queued_bytes_max": "conformance/test_hostile_frames.py::"
    "test_who_takes_no_replies_is_not_read_from_and_dropped_after_a_minute",
    "send_seconds_max": "conformance/test_hostile_frames.py::"
    "test_who_takes_no_replies_is_not_read_from_and_dropped_after_a_minute",
    "bad_messages_max": "conformance/test_hostile_frames.py::"
    "test_a_flood_of_unknown_types_is_answered_and_then_hung_up",
    "requests_max": "test_session.py::test_past_the_limit_of_running_requests_one_is_refused_and_a_flush_still_works",
    "fids_max": "conformance/test_walk.py::test_fids_past_the_limit_are_refused_and_other_sessions_live",
    "fids_node_max": "conformance/test_walk.py::test_fids_past_the_limit_are_refused_and_other_sessions_live",
    "xattr_pending_bytes_max": "conformance/test_xattr.py::test_attribute_fids_hold_a_bounded_number_of_bytes",
    "text_bytes_max": "test_synth.py::test_a_rendering_past_the_limit_is_refused",
    "ctl_bytes_max": "test_synth_ctl.py::test_a_message_past_the_limits_is_refused",
    "ctl_line_bytes_max": "test_synth_ctl.py::test_a_message_past_the_limits_is_refused",
    "ctl_words_max": "test_synth_ctl.py::test_words_past_the_limit_are_refused_before_they_are_converted",
    "stream_queue_max": "test_synth_stream.py::test_a_slow_reader_is_told_how_much_it_lost_where_it_was",
    "scratch_files_max": "test_synth.py::test_scratch_files_are_few_small_and_forgotten_after_a_minute",
    "errstr_lines_max": "kernelfs/test_dev.py::test_errstr_shows_each_caller_its_own_last_refusals",
    "host_threads_max": "servers/test_host_limits.py::test_a_file_system_that_never_answers_stops_only_its_own_export",
    "host_seconds_max": "servers/test_host_limits.py::test_a_file_system_that_never_answers_stops_only_its_own_export",
    "reply_seconds_max": "security/test_hostile_server.py::test_a_server_that_hangs_is_timed_out",
    "connect_seconds_max": "security/test_hostile_server.py::test_a_server_that_hangs_is_timed_out",
    "client_dir_entries_max": "security/test_hostile_server.py::test_an_endless_directory_stops_with_Eio",
}
HERE = Path(__file__).parent
pytestmark = pytest.mark.feature("limits")
SMALL = Limits(
    connections_max=3, connections_peer_max=2, parked_max=5, parked_principal_max=3, path_depth_max=5,
    name_bytes_max=10, symlink_bytes_max=10, xattr_bytes_max=100, xattr_names_max=3, locks_max=4,
    ram_bytes_max=1 << 20, ram_files_max=6,
)  # fmt: skip


def test_every_field_is_reached_here_or_where_the_table_says() -> None:
    here = Path(__file__).read_text()
    for field in Limits.__struct_fields__:
        if field in ELSEWHERE:
            path, _, name = ELSEWHERE[field].partition("::")
            tests = {
                node.name
                for node in ast.parse((HERE / path).read_text()).body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert name in tests, f"{field}: {path} has no {name}"
        else:
            assert f"test_{field}" in here, f"no test reaches {field}"
    assert set(ELSEWHERE) <= set(Limits.__struct_fields__)


def test_every_field_is_kept_by_somebody() -> None:
    package = HERE.parent / "src/ninep"
    source = "\n".join(f.read_text() for f in package.rglob("*.py") if f.name not in ("limits.py", "config.py"))
    unused = [field for field in Limits.__struct_fields__ if f"limits.{field}" not in source]
    assert unused == [], "a bound that nobody keeps"


# -- connections


@asynccontextmanager
async def listening(tmp_path: Path, limits: Limits, policy: Policy | None = None) -> AsyncIterator[tuple[Node, str]]:
    """A server on a unix socket."""
    node = Node(limits)
    path = str(tmp_path / "s")
    server = Server(node, ram.tree(), policy or Policy(trust_uname=True))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, [bind_unix(path, 0o666)])
        yield node, path
        nursery.cancel_scope.cancel()


async def is_served(sock: socket.socket) -> bool:
    """Whether a Tversion is answered."""
    try:
        sock.setblocking(False)
        sock.send(P2000.encode(0xFFFF, m.Tversion(8192, "9P2000")))
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(sock)
        return bool(sock.recv(100))
    except (ConnectionResetError, BrokenPipeError):
        return False


async def dial(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    await trio.testing.wait_all_tasks_blocked(0.01)
    return sock


async def test_connections_max_refuses_the_newest(tmp_path: Path) -> None:
    async with listening(tmp_path, SMALL) as (node, path):
        socks = [await dial(path) for _ in range(5)]
        assert [await is_served(s) for s in socks] == [True, True, True, False, False]
        assert node.live["connections"] == 3
        socks[0].close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        socks[0] = await dial(path)
        assert await is_served(socks[0])
        for s in socks:
            s.close()


async def test_connections_peer_max_is_for_each_identity_but_the_owner(tmp_path: Path) -> None:
    server = Server(Node(SMALL), ram.tree(), Policy(allow_uids=frozenset((0, 7, 8))))
    for uid, admitted in ((7, 2), (8, 2), (0, 3)):
        peer = Peer(f"uid {uid}", uid, uid, 1, "peercred")
        server._peers.clear()
        for count in range(3):
            server._peers[uid] = count
            if count < admitted:
                server._admit(peer)
            else:
                with pytest.raises(E.Etoomany, match=f"2 connections of uid {uid}"):
                    server._admit(peer)


async def test_drain_seconds_max_is_what_running_requests_are_given(autojump_clock: trio.testing.MockClock) -> None:
    node = Node()
    slow = SlowDir()
    ours, theirs = socket.socketpair()
    server = Server(node, Tree(slow=slow), Policy(trust_uname=True))
    with ours:
        async with trio.open_nursery() as nursery:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(b"\0ninep-test-drain-%d" % os.getpid())
            listener.listen(1)
            async with trio.open_nursery() as inner:
                await inner.start(server.serve, [listener])
                nursery.start_soon(
                    serve_wire, SocketWire(theirs), node, server.root, nursery, server.policy, Peer("test")
                )
                ours.send(P2000.encode(0xFFFF, m.Tversion(8192, "9P2000")))
                ours.send(P2000.encode(1, m.Tattach(0, NOFID, "root", "")))
                ours.send(P2000.encode(1, m.Twalk(0, 1, ("slow", "x"))))
                while node.live["requests"] == 0:
                    await trio.sleep(0.01)
                start = trio.current_time()
                server.drain()
            assert trio.current_time() - start == pytest.approx(DEFAULT.drain_seconds_max, abs=0.1)
            nursery.cancel_scope.cancel()


# -- what may be blocked, and for how long


async def parked(c: RawClient, count: int, tag: int = 0) -> list[int]:
    """Which of so many reads were refused."""
    refused = []
    for i in range(tag, tag + count):
        c.send(i, m.Tread(1, 0, 10))
        await trio.testing.wait_all_tasks_blocked()
    while True:
        with trio.move_on_after(0.05) as scope:
            got, reply = await c.recv(1)
            assert reply == l.Rlerror(errno.EAGAIN)
            refused.append(got)
        if scope.cancelled_caught:
            return refused


async def test_parked_principal_max_and_the_rest_go_on() -> None:
    async with serving(Tree(f=Parking()), limits=SMALL) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        assert await parked(c, 5) == [3, 4]
        other = await server.client(attach=False)
        await other.attach(0, "", 54_321)
        await other.walk(0, 1, "f")
        await other.open(1)
        assert await parked(other, 2) == []


async def test_parked_max_is_the_nodes() -> None:
    async with serving(Tree(f=Parking()), limits=SMALL) as server:
        clients = []
        for uid in (0, 54_321, 54_322):
            c = await server.client(attach=False)
            await c.attach(0, "", uid)
            await c.walk(0, 1, "f")
            await c.open(1)
            clients.append(c)
        assert [await parked(c, 2) for c in clients] == [[], [], [1]]
        clients[0].close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await parked(clients[2], 1, 5) == []


async def test_call_seconds_max_ends_what_is_no_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Tree(slow=SlowDir()), limits=Limits(call_seconds_max=7)) as server:
        c = await server.client()
        start = trio.current_time()
        c.send(1, m.Twalk(0, 1, ("slow", "x")))
        assert await c.recv(100) == (1, l.Rlerror(errno.ETIMEDOUT))
        assert trio.current_time() - start == pytest.approx(7, abs=0.1)


class Clinging(File):
    """A file whose close never ends."""

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        return ClingingHandle()


class ClingingHandle(Handle):
    async def close(self, call: Call) -> None:  # type: ignore[override]  # an Answer too
        await trio.sleep_forever()


async def test_close_seconds_max_ends_a_close_that_never_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Tree(f=Clinging()), limits=Limits(close_seconds_max=3)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        start = trio.current_time()
        c.send(1, m.Tclunk(1))
        assert await c.recv(100) == (1, l.Rlerror(errno.ETIMEDOUT))
        assert trio.current_time() - start == pytest.approx(3, abs=0.1)
        with refuses(E.Ebadfid):
            await c.clunk(1)


# -- names and metadata


async def test_path_depth_max_is_counted_from_the_attach_point() -> None:
    async with serving(_deep(8), limits=SMALL) as server:
        c = await server.client()
        assert len(await c.walk(0, 1, *["d"] * 5)) == 5
        with refuses(E.Enametoolong):
            await c.walk(1, 2, "d")
        assert len(await c.walk(0, 3, *["d"] * 8)) == 5
        assert len(await c.walk(1, 4, "..", "d")) == 2


def _deep(levels: int) -> Tree:
    tree = Tree()
    for _ in range(levels):
        tree = Tree(d=tree)
    return tree


async def test_name_bytes_max() -> None:
    async with serving(ram.tree(SMALL), limits=SMALL) as server:
        c = await server.client()
        await put(c, "x" * 10)
        await c.walk(0, 1)
        for name in ("x" * 11, "é" * 6):
            with refuses(E.Enametoolong):
                await c.create(1, name)


async def test_symlink_bytes_max() -> None:
    async with serving(ram.tree(SMALL), limits=SMALL) as server:
        c = await server.client()
        await c.rpc(l.Tsymlink(0, "a", "x" * 10, 0))
        with refuses(E.Enametoolong):
            await c.rpc(l.Tsymlink(0, "b", "x" * 11, 0))


async def test_xattr_bytes_max() -> None:
    async with serving(ram.tree(SMALL), limits=SMALL) as server:
        c = await server.client()
        await put(c, "f")
        await c.walk(0, 1, "f")
        with refuses(E.E2big):
            await c.rpc(l.Txattrcreate(1, "user.a", 101, 0))
        await c.rpc(l.Txattrcreate(1, "user.a", 100, 0))


async def test_xattr_names_max() -> None:
    async with serving(ram.tree(SMALL), limits=SMALL) as server:
        c = await server.client()
        await put(c, "f")
        for i in range(4):
            await c.walk(0, 1, "f")
            await c.rpc(l.Txattrcreate(1, f"user.{i}", 1, 0))
            await c.write(1, b"v")
            if i < 3:
                await c.clunk(1)
        with refuses(E.Enospc):
            await c.clunk(1)


async def test_locks_max_is_the_sessions() -> None:
    async with serving(ram.tree(SMALL), limits=SMALL) as server:
        c = await server.client()
        for fid, name in ((1, "f"), (2, "g")):
            await c.file(fid, name)
            for i in range(2):
                assert (await c.rpc(l.Tlock(fid, F_WRLCK, 0, 2 * i, 1, 1, "me"))).status == l.LOCK_SUCCESS
        for fid in (1, 2):
            with refuses(E.Enolck):
                await c.rpc(l.Tlock(fid, F_WRLCK, 0, 10, 1, 1, "me"))


# -- trees


@pytest.mark.sec(45)
async def test_ram_bytes_max_is_answered_full_and_removal_gives_back() -> None:
    async with serving(ram.tree(SMALL), limits=SMALL) as server:
        c = await server.client()
        await c.file(1, "f")
        written = 0
        with refuses(E.Enospc):
            while written < 4 << 20:
                written += await c.write(1, bytes(60_000), written)
        assert (1 << 19) < written <= 1 << 20
        await c.rpc(m.Tremove(1))
        await c.file(1, "g", bytes(60_000))


@pytest.mark.sec(45)
async def test_ram_files_max_is_answered_full_and_removal_gives_back() -> None:
    async with serving(ram.tree(SMALL), limits=SMALL) as server:
        c = await server.client()
        made = 0
        with refuses(E.Enospc):
            while made < 20:
                await put(c, f"f{made}")
                made += 1
        assert made == 5, "and the root"
        with refuses(E.Enospc):
            await mkdir(c, "d")
        await c.rpc(l.Tunlinkat(0, "f0", 0))
        await mkdir(c, "d")


@pytest.mark.sec(45)
async def test_without_the_bounds_of_a_ram_tree_a_client_fills_the_memory() -> None:
    """The control of the two above."""
    wide = Limits(ram_bytes_max=1 << 40, ram_files_max=1 << 40)
    async with serving(ram.tree(wide), limits=wide) as server:
        c = await server.client()
        await c.file(1, "f")
        for at in range(0, 4 << 20, 60_000):
            assert await c.write(1, bytes(60_000), at) == 60_000
        for i in range(20):
            await put(c, f"f{i}")


async def test_host_fds_share_is_what_walked_files_may_hold(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"f{i}").touch()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limits = Limits(host_fds_share=20 / soft)
    before = len(os.listdir("/proc/self/fd"))
    async with serving(host.tree(tmp_path, limits=limits), limits=limits) as server:
        c = await server.client()
        for i in range(200):
            await c.walk(0, 1 + i, f"f{i}")
        assert len(os.listdir("/proc/self/fd")) - before <= 20 + 5
        assert (await c.rpc(l.Tgetattr(7, 1))).valid == 1


# -- FUSE, as the kernel is told


@pytest.mark.parametrize("write_bytes", [1 << 17, 1 << 20, 1 << 24])
async def test_fuse_write_bytes_max_and_test_fuse_background_max_are_told_to_the_kernel(write_bytes: int) -> None:
    node = Node(Limits(fuse_write_bytes_max=write_bytes, fuse_background_max=77))
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device.setblocking(False)
    with kernel, device:
        mounted = fuse_mount.Mounted("/nowhere", device.fileno(), -1, by_helper=False)
        mount = fuse_device.FuseMount(node, mounted, fuse_device.FuseOptions())
        body = p.INIT_IN.pack(7, 41, 1 << 17, 0)
        kernel.send(
            p.IN_HEADER.pack(p.IN_HEADER.size + len(body), p.INIT, 1, *[0] * (len(p.IN_HEADER.fields) - 3)) + body
        )
        await mount.init()
        reply = kernel.recv(1000)[p.OUT_HEADER.size :]
        told = dict(zip(p.INIT_OUT.fields, p.INIT_OUT.unpack_from(reply)))
        assert told["max_write"] == min(write_bytes, 1 << 20)
        assert told["max_background"] == 77


# -- our client


class Counting(File):
    """A large file that counts how many bytes are asked for at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def stat(self, call: Call) -> object:  # type: ignore[override]  # a Stat
        return msgspec.structs.replace(super().stat(call), size=64 << 20)  # type: ignore[type-var]  # a Stat

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        return CountingHandle(self)


class CountingHandle(Handle):
    def __init__(self, file: Counting) -> None:
        self.file = file

    async def read(self, call: Call, offset: int, count: int) -> bytes:  # type: ignore[override]  # an Answer too
        self.file.now += count
        self.file.most = max(self.file.most, self.file.now)
        await trio.sleep(0.001)
        self.file.now -= count
        return bytes(min(count, (64 << 20) - offset))


async def test_client_window_bytes_is_what_one_file_has_in_flight() -> None:
    counting = Counting()
    limits = Limits(client_window_bytes=1 << 20)
    theirs, ours = MemoryWire.pair()
    theirs.capacity = ours.capacity = 16 << 20
    async with trio.open_nursery() as nursery:
        peer = Peer("test", 0, 0, 0, "peercred")
        nursery.start_soon(serve_wire, theirs, Node(), Tree(f=counting), nursery, Policy(trust_uname=True), peer)
        client = await on_wire(nursery, ours, uname="root", msize_bytes=65536, limits=limits)
        file = await settle(client.root.walk(Call(), "f"))
        handle = await settle(file.open(Call(), 0))
        ahead = ReadAhead(client.core, handle.fid, size=64 << 20)  # type: ignore[attr-defined]  # a RemoteHandle
        read = 0
        while read < 8 << 20:
            read += len(await client.run(ahead.next()))
        assert (1 << 19) < counting.most <= (1 << 20) + 65536
        client.close()
        nursery.cancel_scope.cancel()
