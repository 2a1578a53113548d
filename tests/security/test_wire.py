"""Abuse cases of the protocol and of resources over a connection, each also shown with its guard taken away."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import fuse_mounts
import pytest
import trio
import trio.testing
from asks import mkdir, names, refuses
from raw9p import RawClient, Refused, serving
from trees import Parking, Tree

from ninep import checks, synth
from ninep.edges.listen import Server, bind_unix
from ninep.edges.policy import Policy
from ninep.fid import FidTable
from ninep.file import Call, Dir
from ninep.limits import Limits
from ninep.node import Node
from ninep.observe import Events
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.types import F_WRLCK, OWRITE
from ninep.proto.version import P2000
from ninep.requests import Requests
from ninep.servers import ram
from ninep.servers.ram_file import RamHandle
from ninep.session import Session
from ninep.synth_ctl import command_of, parse

VERSION = P2000.encode(0xFFFF, m.Tversion(8192, "9P2000"))
CHILD_SECONDS_MAX = 20


# -- fids and what is under way on them


@pytest.mark.sec(55)
@pytest.mark.hostile(34)
async def test_a_clunk_or_remove_ends_the_reads_of_its_fid_and_frees_it_once() -> None:
    for ending in (m.Tclunk(1), m.Tremove(1)):
        parking = Parking()
        async with serving(Tree(f=parking)) as server:
            c = await server.client()
            await c.walk(0, 1, "f")
            await c.open(1)
            c.send_all(
                *((tag, m.Tread(1, 0, 10)) for tag in range(10)), (50, ending), (51, ending), (52, m.Tread(1, 0, 1))
            )
            got = dict([await c.recv() for _ in range(13)])
            assert all(isinstance(got[tag], l.Rlerror) for tag in range(10))
            assert (got[51], got[52]) == (l.Rlerror(9), l.Rlerror(9)), "it is gone once"
            assert parking.closed == 1
            parking.say(b"nobody reads")
            await c.quiet()
            assert server.node.live["handles"] == server.node.live["parked"] == 0


@pytest.mark.sec(55)
@pytest.mark.hostile(34)
async def test_without_freeing_the_number_at_once_a_second_clunk_would_reach_the_fid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: pop is what makes the second clunk miss."""
    monkeypatch.setattr(FidTable, "pop", FidTable.get)
    with pytest.raises(AssertionError, match="left behind"):
        async with serving(ram.tree()) as server:
            c = await server.client()
            await c.walk(0, 1)
            c.send_all((1, m.Tclunk(1)), (2, m.Tclunk(1)))
            assert [type(reply) for _, reply in [await c.recv(), await c.recv()]] == [m.Rclunk, m.Rclunk]
            server.node.live["fids"] += 1  # what the client no longer has, the node still counts


@pytest.mark.sec(59)
async def test_without_the_release_at_clunk_a_dead_clients_lock_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the lock tests."""
    monkeypatch.setattr(RamHandle, "unlock_owner", lambda *_: None)
    async with serving(ram.tree()) as server:
        c, other = await server.client(), await server.client()
        await other.file(1, "f")
        await other.rpc(l.Tlock(1, F_WRLCK, 0, 0, 0, 1, "me"))
        other.close()
        await c.quiet()
        await c.walk(0, 1, "f")
        await c.open(1, 2)
        assert (await c.rpc(l.Tlock(1, F_WRLCK, 0, 0, 0, 1, "me"))).status == l.LOCK_BLOCKED


@pytest.mark.sec(44)
async def test_without_the_check_of_offsets_they_reach_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the tree is asked for what no file can have."""
    monkeypatch.setattr(checks, "check_range", lambda offset, count: None)
    async with serving(ram.tree()) as server:
        c = await server.client()
        await c.file(1, "f", b"content")
        assert await c.read(1, (1 << 64) - 1) == b"", "it was not refused"


@pytest.mark.sec(22, 23)
async def test_without_the_check_of_names_a_tree_is_asked_for_dotdot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a tree that does not check for itself would make a file called `..`."""

    class Trusting(Dir):
        perm = 0o777

        def __init__(self) -> None:
            super().__init__()
            self.made: list[str] = []

        def mkdir(self, call: object, name: str, perm: int) -> Dir:  # type: ignore[override]  # a Call
            self.made.append(name)
            return Dir()

    guarded, naked = Trusting(), Trusting()
    async with serving(guarded) as server:
        c = await server.client()
        for name in ("..", ".", "", "a/b"):
            with refuses(E.Ebadchar):
                await c.rpc(l.Tmkdir(0, name, 0o755, 0))
    monkeypatch.setattr(checks, "check_name", lambda name: None)
    async with serving(naked) as server:
        c = await server.client()
        await c.rpc(l.Tmkdir(0, "..", 0o755, 0))
    assert (guarded.made, naked.made) == ([], [".."])


@pytest.mark.sec(42)
@pytest.mark.hostile(32)
async def test_without_the_limit_on_fids_a_client_takes_what_it_wants() -> None:
    """The control of the fid limit's test."""
    async with serving(ram.tree(), limits=Limits(fids_max=1 << 30, fids_node_max=1 << 30)) as server:
        c = await server.client()
        for first in range(1, 70_000, 1000):
            c.send_all(*((fid - first, m.Twalk(0, fid, ())) for fid in range(first, first + 1000)))
            for _ in range(1000):
                assert isinstance((await c.recv())[1], m.Rwalk)
        assert server.node.live["fids"] > Limits().fids_max


@pytest.mark.sec(53)
async def test_without_the_check_of_tags_one_tag_gets_two_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the duplicate tag's test."""
    monkeypatch.setattr(Requests, "__contains__", lambda self, key: False)
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        c.send(7, m.Tread(1, 0, 10))
        await c.quiet()
        c.send(7, l.Tgetattr(0, 1))
        assert isinstance((await c.recv())[1], l.Rgetattr)
        parking.say(b"first")
        assert (await c.recv())[0] == 7


@pytest.mark.sec(54)
async def test_without_waiting_for_the_old_request_a_reply_follows_its_rflush(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the flush tests: an Rflush at once would be overtaken."""

    def hasty(self: Requests[object], key: int, oldkey: int, done: object) -> None:
        self.sink.reply(key, done)

    monkeypatch.setattr(Requests, "flush", hasty)
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        c.send_all((1, m.Tread(1, 0, 10)), (2, m.Tflush(1)))
        assert await c.recv() == (2, m.Rflush())
        parking.say(b"too late")
        assert isinstance((await c.recv())[1], m.Rread)


@pytest.mark.sec(57)
async def test_without_the_check_of_the_direction_a_reader_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it is the Session that keeps to the mode a fid was opened in."""
    opened = Session.opened
    monkeypatch.setattr(Session, "opened", lambda self, fid, handle, omode: opened(self, fid, handle, 2))
    async with serving(ram.tree()) as server:
        c = await server.client()
        await c.file(1, "f", b"content")
        await c.walk(0, 2, "f")
        await c.open(2, 0)
        await c.write(2, b"CON")
        assert await c.read(1) == b"CONtent"


# -- trees made to cost


@pytest.mark.sec(101)
async def test_ten_thousand_levels_end_in_a_refusal_and_no_recursion() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        depth = 0
        here, there = 1, 2
        await c.walk(0, here)
        with refuses(E.Enametoolong):
            while depth < 10_000:
                await mkdir(c, "d", fid=here)
                await c.walk(here, there, "d")
                await c.clunk(here)
                here, there = there, here
                depth += 1
        assert depth == server.node.limits.path_depth_max
        assert await names(c) == ["d"]
        for _ in range(depth // 16):  # and all the way back
            await c.walk(here, here, *[".."] * 16)
        assert sys.getrecursionlimit() < depth


@pytest.mark.sec(101)
async def test_without_the_limit_on_depth_a_client_goes_deeper() -> None:
    """The control."""
    async with serving(ram.tree(), limits=Limits(path_depth_max=1 << 30)) as server:
        c = await server.client()
        for here in range(5000):
            fid = here % 2 + 1
            if here == 0:
                await c.walk(0, fid)
            await mkdir(c, "d", fid=fid)
            await c.walk(fid, 3 - fid, "d")
            await c.clunk(fid)
        assert server.node.live["fids"] == 2


LINEAR_MAX = 8.0  # for four times as much: a linear cost grows by 4, a quadratic one by 16
SLACK_SECONDS = 0.01  # for the cases that take no time at all: four times as much is no longer in the caches


def cpu_seconds(work: Callable[[], object], times: int = 3) -> float:
    """The least CPU time of several runs: what others do on this machine only ever adds to it."""
    best = float("inf")
    gc.collect()
    gc.disable()
    try:
        for _ in range(times):
            start = time.process_time()
            work()
            best = min(best, time.process_time() - start)
    finally:
        gc.enable()
    return best


class Colliding(str):
    """Names as an attacker would like them: all with one hash."""

    __slots__ = ()
    __eq__ = str.__eq__

    def __hash__(self) -> int:
        return 1


@pytest.mark.sec(107)
def test_what_collides_in_one_process_does_not_in_the_next() -> None:
    """Text hashes are keyed with a secret of each process; the control is a process whose key is fixed."""

    def hashes(seed: str | None) -> list[str]:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"} | (
            {"PYTHONHASHSEED": seed} if seed else {}
        )
        program = "for i in range(200): print(hash(f'name{i}'))"
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.split()

    def colliding(of: list[str]) -> set[tuple[int, int]]:
        slots = [int(h) & 0xFF for h in of]
        return {(i, j) for i in range(200) for j in range(i) if slots[i] == slots[j]}

    first, second = hashes(None), hashes(None)
    assert not set(first) & set(second)
    assert colliding(first) != colliding(second), "what is worked out on one process serves nowhere"
    assert colliding(hashes("7")) == colliding(hashes("7")), "the control: under a fixed key it serves everywhere"


@pytest.mark.sec(107)
async def test_names_made_to_collide_cost_what_others_cost() -> None:
    """Names that collide under h = 31 h + c: four times as many cost four times as much."""
    alike = [f"{i:064b}".replace("0", "Aa").replace("1", "BB") for i in range(4000)]

    async def seconds(some: list[str]) -> float:
        async with serving(ram.tree()) as server:
            c = await server.client()
            start = time.process_time()
            for first in range(0, len(some), 500):
                c.send_all(*((i, l.Tmkdir(0, name, 0o755, 0)) for i, name in enumerate(some[first : first + 500])))
                for _ in some[first : first + 500]:
                    assert isinstance((await c.recv())[1], l.Rmkdir)
            return time.process_time() - start

    few = min([await seconds(alike[:1000]) for _ in range(3)])
    assert min([await seconds(alike) for _ in range(3)]) < LINEAR_MAX * few


@pytest.mark.sec(107)
def test_names_that_do_collide_cost_more_than_the_bound_allows() -> None:
    """The control: the bound sees a table whose names collide."""
    few, many = ([Colliding(i) for i in range(n)] for n in (500, 2000))
    assert cpu_seconds(lambda: dict.fromkeys(many)) > LINEAR_MAX * cpu_seconds(lambda: dict.fromkeys(few))


# -- ctl


class Machine(synth.Dir):
    """Commands that leave a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, ...]] = []

    @synth.ctl
    def say(self, *words: str) -> None:
        """Remember words."""
        self.said.append(words)


@asynccontextmanager
async def machine(limits: Limits | None = None) -> AsyncIterator[tuple[Machine, RawClient]]:
    """A served Machine and a client whose fid 1 is its ctl, open for writing."""
    made = Machine()
    if limits is not None:
        made.limits = limits
    async with serving(made) as server:
        c = await server.client(msize=1 << 20)
        await c.walk(0, 1, "ctl")
        await c.open(1, 1)
        yield made, c


@pytest.mark.hostile(63)
@pytest.mark.sec(104)
async def test_shell_and_newline_tricks_are_words_and_nothing_more(tmp_path: Path) -> None:
    async with machine() as (made, c):
        mark = tmp_path / "mark"
        await c.write(1, f"say $(touch {mark}) `touch {mark}` ;touch {mark} |sh && x > {mark}\n".encode())
        await c.write(1, b"say '; rm -rf /' 'it''s' *a*a*a* ~ \\n %s {0}\n")
        assert not mark.exists()
        assert made.said[1] == ("; rm -rf /", "it's", "*a*a*a*", "~", "\\n", "%s", "{0}")
        for bad in (b"say 'a\nsay b'\n", b"say 'open\n", b"\xff\xfe say\n", b"say a\0b\n"):
            with pytest.raises(Refused):
                await c.write(1, bad)
        assert len(made.said) == 2


MONSTERS = {
    "a megabyte": (b"say " + b"x" * ((1 << 20) - 200), E.Elarge),
    "a line": (b"say " + b"x" * 5000 + b"\n", E.Elarge),
    "words": (b"say" + b" x" * 2000 + b"\n", E.Elarge),
    "quotes": (b"say " + b"''" * 2000 + b"'\n", E.Ebadctl),
    "globs": (b"say " + b"*a" * 2040 + b"b\n", None),
    "lines": (b"nothing\n" * 7000, E.Ebadctl),
}


@pytest.mark.sec(104)
@pytest.mark.parametrize("name", MONSTERS)
async def test_monstrous_lines_are_refused_by_their_row_or_taken_as_they_are(name: str) -> None:
    message, row = MONSTERS[name]
    async with machine() as (made, c):
        c.send(1, m.Twrite(1, 0, message))
        _, reply = await c.recv()
        assert reply == (m.Rwrite(len(message)) if row is None else l.Rlerror(row.errno))
        assert [len(words) for words in made.said] == ([1] if row is None else [])


GIANTS = {
    "ten megabytes in a line": b"say " + b"x" * (10 << 20),
    "a million words": b"say" + b" x" * 1_000_000,
    "a million lines": b"say\n" * 1_000_000,
}


@pytest.mark.sec(104)
@pytest.mark.parametrize("name", GIANTS)
def test_a_ctl_given_a_giant_refuses_it_before_it_looks(name: str) -> None:
    """No wire carries so much at once; a tree's own caller might."""
    made = Machine()
    handle = made.walk(Call(), "ctl").open(Call(), OWRITE)  # type: ignore[union-attr]  # values: it never waits
    with pytest.raises(E.Elarge) as caught:
        handle.write(Call(), 0, GIANTS[name])  # type: ignore[union-attr]  # likewise
    assert caught.value.errno == errno.EMSGSIZE
    assert made.said == []
    # Each limit by itself: with the one before it lifted, the next one refuses.
    no_size = Limits(ctl_bytes_max=1 << 30)
    if name != "a million lines":
        with pytest.raises(E.Elarge, match="line 1"):
            parse(SAY, GIANTS[name], no_size)
    if name == "a million words":
        with pytest.raises(E.Elarge, match="1000001 words"):
            parse(SAY, GIANTS[name], Limits(ctl_bytes_max=1 << 30, ctl_line_bytes_max=1 << 30))


def say(self: object, *words: str) -> None:
    """Remember words."""


SAY = {"say": command_of("say", "say", say)}
WIDE = Limits(ctl_bytes_max=1 << 30, ctl_line_bytes_max=1 << 30, ctl_words_max=1 << 30)
GROWING: dict[str, tuple[int, Callable[[int], bytes]]] = {  # how many, and that many of them
    "bytes of a word": (2_500_000, lambda n: b"say " + b"x" * n),
    "words": (100_000, lambda n: b"say" + b" x" * n),
    "lines": (20_000, lambda n: b"say x\n" * n),
    "quotes": (500_000, lambda n: b"say '" + b"''" * n + b"'"),
    "quoted words": (100_000, lambda n: b"say" + b" 'x'" * n),
    "spaces": (2_500_000, lambda n: b"say" + b" " * n + b"x"),
    "an open quote": (500_000, lambda n: b"say '" + b"''" * n),
    "open quotes after words": (100_000, lambda n: b"say" + b" x" * n + b" '"),
}


def parsed(message: bytes) -> None:
    try:
        parse(SAY, message, WIDE)
    except E.Ebadctl:
        pass


@pytest.mark.sec(104)
@pytest.mark.parametrize("name", GROWING)
def test_even_without_limits_four_times_as_much_costs_four_times_as_much(name: str) -> None:
    count, make = GROWING[name]
    few, many = make(count), make(4 * count)
    assert cpu_seconds(lambda: parsed(many), 4) < LINEAR_MAX * cpu_seconds(lambda: parsed(few)) + SLACK_SECONDS


@pytest.mark.sec(104)
def test_a_parser_that_copies_the_rest_at_each_word_is_over_the_bound() -> None:
    """The control: the bound sees a quadratic parser."""

    def naive(line: bytes) -> None:
        while line:
            _, _, line = line.partition(b" ")

    few, many = (b"x " * n for n in (20_000, 80_000))
    assert cpu_seconds(lambda: naive(many), 1) > LINEAR_MAX * cpu_seconds(lambda: naive(few))


@pytest.mark.sec(104)
async def test_without_the_limits_a_monstrous_line_is_taken() -> None:
    """The control: it is the limits that refuse."""
    wide = Limits(ctl_bytes_max=1 << 30, ctl_line_bytes_max=1 << 30, ctl_words_max=1 << 30)
    async with machine(wide) as (made, c):
        await c.write(1, MONSTERS["words"][0])
        assert len(made.said[0]) == 2000


# -- who may connect


@asynccontextmanager
async def listening(path: str, limits: Limits, policy: Policy) -> AsyncIterator[Node]:
    node = Node(limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(Server(node, ram.tree(), policy).serve, [bind_unix(path, 0o666)])
        yield node
        nursery.cancel_scope.cancel()


def answered_as(uid: int, path: str) -> bool:
    """Whether a process of this user is answered.  Blocks; call it in a thread."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(5)
                s.connect(path)
                s.send(VERSION)
                code = 0 if s.recv(100) else 2
        except (BrokenPipeError, ConnectionResetError):
            code = 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + CHILD_SECONDS_MAX
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, 2), "it could not even connect"
            return code == 0
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("neither answered nor hung up")


@pytest.mark.sec(142)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_another_users_connection_is_refused_by_what_the_kernel_says_of_it(
    needs_root: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = f"{directory}/s"
        async with listening(path, Limits(), Policy()):
            assert await trio.to_thread.run_sync(answered_as, 0, path)
            assert not await trio.to_thread.run_sync(answered_as, 54_321, path)
            assert "uid 54321 may not connect" in caplog.text
        # The control: a policy that allows him lets him in.
        async with listening(path, Limits(), Policy(allow_uids=frozenset((0, 54_321)))):
            assert await trio.to_thread.run_sync(answered_as, 54_321, path)


async def silent_flood(count: int, path: str, node: Node, limits: Limits) -> None:
    """Connect and say nothing, `count` times; at every moment only so many are kept."""
    held: list[socket.socket] = []
    most = 0
    for i in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:
            pass  # the backlog is full for now
        held.append(sock)
        if i % 50 == 0:
            await trio.testing.wait_all_tasks_blocked(0.001)
            most = max(most, node.live["connections"])
        if len(held) > 400:
            held.pop(0).close()
    assert most <= limits.connections_max
    with trio.fail_after(limits.first_message_seconds_max + 5):
        while node.live["connections"]:
            await trio.sleep(0.02)
    with socket.socket(socket.AF_UNIX) as honest:
        start = time.monotonic()
        honest.setblocking(False)
        honest.connect(path)
        honest.send(VERSION)
        with trio.fail_after(2):
            await trio.lowlevel.wait_readable(honest)
        assert honest.recv(100)
        assert time.monotonic() - start < 2
    for sock in held:
        sock.close()


@pytest.mark.hostile(5)
@pytest.mark.sec(90)
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_silent_connections_are_few_and_short(count: int, tmp_path: Path) -> None:
    limits = Limits(connections_max=100, first_message_seconds_max=0.5)
    path = str(tmp_path / "s")
    async with listening(path, limits, Policy(trust_uname=True)) as node:
        await silent_flood(count, path, node, limits)


@pytest.mark.hostile(5)
@pytest.mark.sec(90)
async def test_without_the_bounds_silent_connections_are_many_and_stay(tmp_path: Path) -> None:
    """The control."""
    limits = Limits(connections_max=1 << 20, first_message_seconds_max=3600)
    path = str(tmp_path / "s")
    async with listening(path, limits, Policy(trust_uname=True)) as node:
        held = [socket.socket(socket.AF_UNIX) for _ in range(300)]
        for sock in held:
            sock.connect(path)
            await trio.testing.wait_all_tasks_blocked()
        assert node.live["connections"] == 300
        for sock in held:
            sock.close()


# -- a server's own mount


EXPORTER = """
import sys
from ninep.servers import host
try:
    host.tree(sys.argv[1], force=sys.argv[2] == "force")
    print("exported")
except Exception as e:
    print(e)
"""


@pytest.mark.hostile(62)
def test_a_mount_of_ninep_is_not_exported_again_unless_forced(tmp_path: Path, needs_fuse: None) -> None:
    def export(directory: Path, force: str = "") -> str:
        argv = [sys.executable, "-c", EXPORTER, str(directory), force]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout

    with fuse_mounts.serving("ram", tmp_path) as mount:
        assert "it is a mount of ninep" in export(mount.dir)
        assert export(mount.dir, "force") == "exported\n", "the control: without the guard it is"
        assert export(tmp_path) == "exported\n", "a directory around it is; the mount in it is a name without content"


# -- what holding something costs


async def grown_by(make: Callable[[int], Awaitable[None]], warm: int, count: int) -> float:
    """Bytes that each of `count` makings keeps, after `warm` to fill caches."""
    for i in range(warm):
        await make(i)
    gc.collect()
    tracemalloc.start()
    try:
        for i in range(warm, warm + count):
            await make(i)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()


@pytest.mark.sec(106)
async def test_what_is_kept_is_seen_by_the_measure() -> None:
    """The control of the two below, whose bounds are nobody's check but what holding something costs: a server that
    keeps 2 KiB more for each is over the bound."""
    kept: list[bytes] = []

    async def keep(i: int) -> None:
        kept.append(bytes(2048))

    assert await grown_by(keep, 10, 1000) > 1 << 10
    assert await grown_by(lambda i: trio.lowlevel.checkpoint(), 10, 1000) < 64


@pytest.mark.sec(106)
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_an_idle_connection_takes_at_most_64_kib() -> None:
    limits = Limits(connections_max=4000)
    async with serving(ram.tree(), limits=limits) as server:

        async def connect(_: int) -> None:
            c = await server.client()
            await c.walk(0, 1)
            c._scratch = memoryview(b"")  # the test's own buffer is not the server's
            c.buffer.clear()

        each = await grown_by(connect, 20, 2000)
        assert each <= 64 << 10, each
        print(f"an idle connection: {each:.0f} bytes, its client's end included")


@pytest.mark.sec(106)
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["ram", "host"])
async def test_a_walked_fid_takes_at_most_1_kib(kind: str, tmp_path: Path) -> None:
    from ninep.servers import host

    count = 50_000
    files = count + 2000  # a file of its own for each
    root: Dir = host.tree(tmp_path) if kind == "host" else ram.tree()
    few = Events(time.monotonic_ns, slots=1024)  # the ring of events is full by then, and none of a fid's
    async with serving(root, node=Node(events=few)) as server:
        c = await server.client()
        for i in range(files):
            if kind == "ram":
                root.create(Call(), f"f{i:05}", 0o644, 1)
            else:
                (tmp_path / f"f{i:05}").touch()

        async def walk(i: int) -> None:
            c.send(1, m.Twalk(0, i + 10, (f"f{i:05}",)))
            assert isinstance((await c.recv())[1], m.Rwalk)

        each = await grown_by(walk, 2000, count)
        assert each <= 1 << 10, each
        print(f"a walked fid ({kind}): {each:.0f} bytes")
