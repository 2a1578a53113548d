"""The server's own devices, through the File contract."""

from __future__ import annotations

import itertools
from typing import TypeVar

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ninep import observe as ev
from ninep.answer import Answer, settle
from ninep.env import Env
from ninep.features import features
from ninep.file import Call, Dir, File, Handle
from ninep.kernelfs import dev, dev_stats
from ninep.limits import Limits
from ninep.observe import Events
from ninep.principal import Principal
from ninep.proto import errors as E
from ninep.proto.types import ORDWR, OREAD, OTRUNC, OWRITE, W_WANT, Change
from ninep.testing import check_tree

pytestmark = pytest.mark.feature("dev-tree")

T = TypeVar("T")
OWNER = Call(Principal("glenda", 1000, 1000, proof="local"))
OTHER = Call(Principal("rob", 1001, 1001, proof="local"))


class World(Env):
    """Time that a test moves, and random bytes that it knows."""

    ns = 5 * 10**9

    def now_ns(self) -> int:
        return self.ns

    def time_ns(self) -> int:
        return 1_700_000_000 * 10**9 + self.ns

    def random(self, count: int) -> bytes:
        return bytes(itertools.islice(itertools.cycle(b"random"), count))


class Node:
    """A dev tree and all that it was given."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.env = World()
        self.limits = limits or Limits()
        self.events = Events(self.env.now_ns)
        self.log = dev.Log(self.env, self.limits)
        self.errors = dev.ErrorLog(self.env, self.limits)
        self.root = dev.tree(
            self.events, sysname="gnot", uid=1000, gid=1000, log=self.log, errors=self.errors, env=self.env,
            limits=self.limits, sessions=lambda: [Row(1, "unix", "", 3, 0)],
        )  # fmt: skip

    def file(self, path: str) -> File:
        file: File = self.root
        for name in path.split("/"):
            assert isinstance(file, Dir)
            file = now(file.walk(OWNER, name))
        return file

    def open(self, path: str, omode: int = OREAD, call: Call = OWNER) -> Handle:
        return now(self.file(path).open(call, omode))

    def cat(self, path: str, call: Call = OWNER) -> str:
        handle = self.open(path, OREAD, call)
        data = now(handle.read(call, 0, 1 << 20))
        now(handle.close(call))
        return data.decode()

    def echo(self, path: str, text: str, call: Call = OWNER) -> None:
        handle = self.open(path, OWRITE | OTRUNC, call)
        try:
            assert now(handle.write(call, 0, text.encode())) == len(text.encode())
        finally:
            now(handle.close(call))


class Row(msgspec.Struct, frozen=True):
    id: int
    edge: str
    peer: str
    fids: int
    requests: int


def now(answer: Answer[T]) -> T:
    """The value of an answer that must be here already."""
    assert not hasattr(answer, "send")
    return answer


def test_every_file_can_be_listed_and_stat_and_tells_what_it_is() -> None:
    node = Node()
    about = {row.name: row for row in node.root.describe().files}  # type: ignore[attr-defined]  # it is a synthetic one
    names = [name for name, _ in now(node.root.list(OWNER))]
    assert set(names) == {
        "null", "zero", "random", "time", "uptime", "user", "sysname", "log", "kmesg", "kprint", "errstr", "sleep",
        "snarf", "features", "stats",
    }  # fmt: skip
    for name in names:
        assert about[name].doc, name
        stat = now(node.file(name).stat(OWNER))
        assert (stat.uid, stat.gid) == (1000, 1000)
    for name in names:  # the manual names each of them
        assert f"\n    {name}" in (dev.__doc__ or ""), name


def test_null_zero_and_random_give_what_they_say() -> None:
    node = Node()
    assert node.cat("null") == ""
    node.echo("null", "gone")
    assert now(node.open("zero").read(OWNER, 0, 100_000)) == bytes(100_000)
    assert now(node.open("random").read(OWNER, 99, 8)) == b"randomra"
    assert now(node.file("null").wstat(OWNER, Change(size=0))) is None
    with pytest.raises(E.Eperm):
        node.file("null").wstat(OWNER, Change(perm=0))
    with pytest.raises(E.Eperm):
        node.file("zero").access(OTHER, W_WANT)


def test_time_is_four_numbers_at_the_places_of_cons3() -> None:
    node = Node()
    node.env.ns += 7
    line = node.cat("time")
    assert line.split() == ["1700000005", "1700000005000000007", "7", "1000000000"]
    assert int(line[:11]) == 1_700_000_005
    assert int(line[12:33]) == 1_700_000_005_000_000_007


def test_nobody_sets_the_hosts_clock_and_others_may_not_try() -> None:
    node = Node()
    with pytest.raises(E.Ehost, match="not supported on this host: settime"):
        node.echo("time", "1")
    with pytest.raises(E.Eperm):
        node.file("time").access(OTHER, W_WANT)


def test_uptime_counts_from_the_start() -> None:
    node = Node()
    assert node.cat("uptime") == "0.000\n"
    node.env.ns += 61_500_000_000
    assert node.cat("uptime") == "61.500\n"


def test_user_is_whoever_reads_and_cannot_steer_a_terminal() -> None:
    node = Node()
    assert node.cat("user", OTHER) == "rob\n"
    assert node.cat("user", Call(Principal("a\x1b[2J\nb", proof="key"))) == "a?[2J?b\n"


def test_the_owner_names_the_node_and_a_bad_name_is_refused_at_the_write() -> None:
    node = Node()
    node.echo("sysname", "helix\n")
    assert node.cat("sysname") == "helix\n"
    for bad in ("", "a b", "../x", "x" * 64, "-f", "a\nb"):
        handle = node.open("sysname", OWRITE)
        with pytest.raises(E.Ebadarg):
            handle.write(OWNER, 0, bad.encode())
        now(handle.close(OWNER))
    assert node.cat("sysname") == "helix\n"
    with pytest.raises(E.Eperm):
        node.file("sysname").access(OTHER, W_WANT)


async def test_log_gives_what_was_said_and_then_waits_for_more() -> None:
    node = Node()
    node.echo("log", "warning disk is full\ninfo still here\n")
    handle = node.open("log")
    live = node.open("kprint")
    assert now(handle.read(OWNER, 0, 999)) == b"0.000 warning glenda: disk is full\n"
    assert now(handle.read(OWNER, 0, 999)) == b"0.000 info glenda: still here\n"
    got: list[bytes] = []

    async def reader(handle: Handle) -> None:
        got.append(await settle(handle.read(OWNER, 0, 999)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader, handle)
        nursery.start_soon(reader, live)
        await wait_all_tasks_blocked()
        node.env.ns += 10**9
        node.echo("log", "error \x1b]0;x\x07 bang", OTHER)
    assert got == [b"1.000 error rob: ?]0;x? bang\n"] * 2
    assert node.cat("kmesg").count("\n") == 3


def test_a_log_line_needs_a_severity_and_a_bad_one_writes_nothing() -> None:
    node = Node()
    with pytest.raises(E.Ebadarg, match="severity first: debug info warning error"):
        node.echo("log", "info fine\noops\n")
    with pytest.raises(E.Elarge):
        node.echo("log", "info " + "x" * 5000)
    assert node.cat("kmesg") == ""


def test_kmesg_keeps_the_last_64_kib() -> None:
    node = Node()
    for n in range(2000):
        node.log.add("info", "me", f"{n:04d} " + "x" * 60)
    last = node.cat("kmesg")
    assert 65_000 < len(last) <= dev.LOG_BYTES_MAX
    assert "1999 " in last
    assert "0000 " not in last


def test_errstr_shows_each_caller_its_own_last_refusals() -> None:
    node = Node(Limits(errstr_lines_max=3))
    for n in range(5):
        node.errors.record(OWNER.principal, "walk", E.Enonexist(f"f{n}"), f"/tmp/f{n}")
    node.env.ns += 2 * 10**9
    node.errors.record(OTHER.principal, "open", E.Eperm())
    assert node.cat("errstr") == "".join(f"0.000 walk /tmp/f{n}: file does not exist: f{n}\n" for n in (2, 3, 4))
    assert node.cat("errstr", OTHER) == "2.000 open: permission denied\n"


def test_the_refusals_of_many_callers_stay_bounded() -> None:
    node = Node()
    for n in range(dev.CALLERS_MAX + 10):
        node.errors.record(Principal(f"u{n}", n, proof="key"), "read", E.Eio())
    assert len(node.errors._by_caller) == dev.CALLERS_MAX
    assert node.cat("errstr", Call(Principal("u0", 0, proof="key"))) == ""
    assert node.cat("errstr", Call(Principal("u1033", 1033, proof="key"))) != ""


async def test_sleep_takes_as_long_as_was_written(mock_clock: MockClock) -> None:
    mock_clock.autojump_threshold = 0
    node = Node()
    handle = node.open("sleep", OWRITE)
    assert handle.stream  # so that a session lets it park for longer than other requests
    start = trio.current_time()
    assert await settle(handle.write(OWNER, 0, b"100s\n")) == 5
    assert trio.current_time() - start == 100
    for bad, row in ((b"5", E.Ebadarg), (b"soon", E.Ebadarg), (b"2d", E.Erange)):
        with pytest.raises(row):
            handle.write(OWNER, 0, bad)
    with trio.move_on_after(1) as scope:
        await settle(handle.write(OWNER, 0, b"1h"))
    assert scope.cancelled_caught


def test_snarf_is_replaced_when_the_writer_closes() -> None:
    node = Node()
    handle = node.open("snarf", OWRITE | OTRUNC)
    now(handle.write(OWNER, 0, b"part, "))
    assert node.cat("snarf") == ""
    now(handle.write(OWNER, 6, b"whole"))
    now(handle.close(OWNER))
    assert node.cat("snarf", OTHER) == "part, whole"


def test_a_mistyped_name_in_dev_is_an_error_and_no_scratch_file() -> None:
    node = Node()
    with pytest.raises(E.Eperm):
        node.root.access(OWNER, W_WANT)
    with pytest.raises(E.Eperm):
        node.root.create(OWNER, "nul", 0o644, OWRITE)


@pytest.mark.feature("dev-features")
def test_features_are_the_ledger() -> None:
    assert Node().cat("features").splitlines() == [feature.line() for feature in features()]


@pytest.mark.feature("dev-stats")
def test_stats_show_what_the_server_counts() -> None:
    node = Node()
    node.events.baseline()
    node.events.live["fids"] += 3
    node.events.live["parked"] += 1
    op = ev.register_op("test-stat")
    for _ in range(9):
        node.events.op(op, 1000, False)
    node.events.op(op, 100_000, True)
    node.events.emit(ev.SEC_DENY)
    assert node.cat("stats/fids") == f"3 {node.limits.fids_node_max}\n"
    assert node.cat("stats/requests") == f"0 1 {node.limits.parked_max}\n"
    assert node.cat("stats/leaks") == "fids +3\nparked +1\n"
    assert "fids 3  # walked and not clunked\n" in node.cat("stats/live")
    assert "test-stat 10 1 10.9 1.0 131.1\n" in node.cat("stats/ops")
    assert "sec.deny warning 1  # " in node.cat("stats/events")
    assert node.cat("stats/sessions") == "1 unix '' 3 0\n"
    assert dict(line.split(" ", 1) for line in node.cat("stats/limits").splitlines()) == {
        name: str(value) for name, value in msgspec.structs.asdict(node.limits).items()
    }


def test_stats_without_a_list_of_sessions_count_them() -> None:
    events = Events(World().now_ns)
    events.live["sessions"] = 2
    root = dev.tree(events)
    stats = now(root.walk(OWNER, "stats"))
    assert isinstance(stats, Dir)
    handle = now(now(stats.walk(OWNER, "sessions")).open(OWNER, OREAD))
    assert now(handle.read(OWNER, 0, 99)) == b"2\n"


def test_log_is_written_and_read_through_one_handle() -> None:
    node = Node()
    handle = node.open("log", ORDWR)
    now(handle.write(OWNER, 0, b"info one"))
    assert now(handle.read(OWNER, 0, 99)) == b"0.000 info glenda: one\n"


async def test_the_devices_keep_the_promises_of_the_contract_but_that_random_never_repeats() -> None:
    await check_tree(lambda: Node().root, blocks=True, skip=("short-reads",))
    await check_tree(lambda: dev_stats.tree(Events(World().now_ns)))
