"""The Session's promises: order (A9b), exact flush, clunk that cancels, a sink that may be swapped, bugs kept in."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from raw9p import Refused, serving
from trees import Broken, Nonsense, Parking, SlowDir, Tree

from ninep.fid import Fid
from ninep.file import Call
from ninep.limits import Limits
from ninep.node import Node
from ninep.observe import BUG, LIMIT, SEC_DENY, SESSION_ATTACH, SESSION_END
from ninep.proto import dotl as l
from ninep.proto import messages as m
from ninep.proto.types import NOFID, Qid, Stat
from ninep.servers import ram
from ninep.session import PARKS, Session


@pytest.mark.feature("session-order")
async def test_walk_open_read_clunk_in_one_segment_are_answered_in_order_of_their_fid() -> None:
    slow = SlowDir(Tree(f=Parking()))
    async with serving(Tree(slow=slow)) as server:
        c = await server.client()
        c.send_all(
            (1, m.Twalk(0, 1, ("slow", "x"))),
            (2, m.Twalk(1, 2, ("f",))),
            (3, l.Tlopen(2, 0)),
            (4, m.Tclunk(2)),
            (5, l.Tgetattr(0, l.GETATTR_BASIC)),
        )
        assert (await c.recv())[0] == 5, "a request on another fid does not wait"
        await c.quiet()
        slow.gate.set()
        assert [tag for tag, _ in [await c.recv() for _ in range(4)]] == [1, 2, 3, 4]


@pytest.mark.feature("session-order")
async def test_writes_of_a_stream_arrive_in_the_order_they_were_sent() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1, 1)
        c.send_all(*((tag, m.Twrite(1, 0, b"%d" % tag)) for tag in range(200)))
        assert [tag for tag, _ in [await c.recv() for _ in range(200)]] == list(range(200))
        assert parking.written == [b"%d" % tag for tag in range(200)]


@pytest.mark.feature("session-order")
async def test_reads_of_a_stream_are_answered_in_the_order_they_were_asked() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        c.send_all(*((tag, m.Tread(1, 0, 100)) for tag in range(50)))
        await c.quiet()
        for i in range(50):
            parking.say(b"%d" % i)
        got = [await c.recv() for _ in range(50)]
        assert [(tag, bytes(r.data)) for tag, r in got if isinstance(r, m.Rread)] == [
            (i, b"%d" % i) for i in range(50)
        ]  # fmt: skip


@pytest.mark.feature("session-order")
async def test_a_parked_walk_on_the_root_does_not_delay_a_thousand_others() -> None:
    slow = SlowDir()
    tree = Tree(slow=slow, fast=Tree())
    async with serving(tree) as server:
        c = await server.client()
        c.send(9000, m.Twalk(0, 9000, ("slow", "x")))
        for i in range(1, 1001):
            assert len(await c.walk(0, i, "fast")) == 1
        slow.gate.set()
        assert isinstance(await c.recv_tag(9000), m.Rwalk)


@pytest.mark.feature("session-order")
async def test_a_stat_answers_on_a_fid_with_a_parked_read() -> None:
    async with serving(Tree(f=Parking())) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        c.send(7, m.Tread(1, 0, 10))
        assert (await c.rpc(l.Tgetattr(1, l.GETATTR_BASIC))).mode & 0o777 == 0o666


@pytest.mark.hostile(34)
@pytest.mark.sec(55)
@pytest.mark.feature("session-clunk-cancels")
async def test_clunk_cancels_the_reads_that_are_parked_on_its_fid_and_frees_it_once() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        c.send_all((7, m.Tread(1, 0, 10)), (8, m.Tread(1, 0, 10)), (9, m.Tclunk(1)))
        got = [await c.recv() for _ in range(3)]
        assert ({tag for tag, _ in got[:2]}, got[2][0]) == ({7, 8}, 9)
        assert [getattr(r, "ecode", None) for _, r in got] == [4, 4, None], "EINTR to each, then Rclunk"
        assert parking.closed == 1
        with pytest.raises(Refused):
            await c.clunk(1)


@pytest.mark.feature("tflush-exact")
@pytest.mark.conformance(33)
async def test_a_flush_that_races_completion_shows_reply_then_rflush_or_rflush_alone() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        won = 0
        for i in range(10_000):
            c.send(1, m.Tread(1, 0, 10))
            if i % 3 == 0:
                await trio.lowlevel.checkpoint()
            if i % 2:
                parking.say(b"x")
            c.send(2, m.Tflush(1))
            if i % 5 == 0:
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
            tag, _ = await c.recv()
            if tag == 1:
                won += 1
                tag, _ = await c.recv()
            assert tag == 2
        while True:  # what no read took
            try:
                parking.receive.receive_nowait()
            except trio.WouldBlock:
                break
        await c.quiet()
        assert 0 < won < 10_000, "both outcomes were seen"


@pytest.mark.feature("tflush-exact")
async def test_an_interrupted_read_consumes_nothing() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        c.send(1, m.Tread(1, 0, 10))
        await c.quiet()
        c.send(2, m.Tflush(1))
        assert (await c.recv())[0] == 2
        parking.say(b"kept")
        assert await c.read(1) == b"kept"


@pytest.mark.feature("session-outlives-connection")
async def test_a_reply_goes_to_the_sink_that_is_there_when_the_request_ends() -> None:
    class Sink:
        def __init__(self) -> None:
            self.got: list[tuple[int, object]] = []

        def reply(self, key: int, message: object) -> None:
            self.got.append((key, message))

        def refuse(self, key: int, error: object) -> None:
            self.got.append((key, error))

        def cancelled(self, key: int) -> None: ...

    parking = Parking()
    node = Node()
    async with trio.open_nursery() as nursery:
        first, second = Sink(), Sink()
        session: Session[object] = Session(node, Tree(f=parking), nursery, first)
        fid = Fid(parking, None, Call(), None)
        session.open(Call(), fid, 0)
        session.serve(5, 0, lambda _: session.read(Call(), fid, 0, 10), None, PARKS)
        await trio.testing.wait_all_tasks_blocked()
        session.requests.sink = second
        parking.say(b"later")
        await trio.testing.wait_all_tasks_blocked()
        assert (first.got, second.got) == ([], [(5, b"later")])
        session.clunk(fid)
        await session.end()
        assert not any(node.live.values()), node.live


@pytest.mark.feature("author-bugs")
@pytest.mark.logs("internal error #1")
async def test_an_authors_bug_is_logged_with_its_traceback_and_answered_by_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Tree(f=Broken(), g=Parking())) as server:
        c = await server.client("9P2000.u")
        await c.walk(0, 1, "f")
        with pytest.raises(Refused, match="internal error: #1") as refused:
            await c.open(1)
        assert refused.value.errno == 5
        assert "ZeroDivisionError" in caplog.text
        assert "trees.py" in caplog.text
        assert server.node.events.counts[BUG] == 1  # and it is in the stats
        await c.walk(0, 2, "g")


async def test_past_the_limit_of_running_requests_one_is_refused_and_a_flush_still_works() -> None:
    async with serving(Tree(f=Parking()), limits=Limits(requests_max=4)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        c.send_all(*((tag, m.Tread(1, 0, 1)) for tag in range(5)))
        tag, refused = await c.recv()
        assert (tag, getattr(refused, "ecode", 0)) == (4, 11)
        assert (await c.rpc(l.Tgetattr(0, 1))).valid == 1, "what needs no waiting is still answered"
        c.send(10, m.Tflush(2))
        assert (await c.recv())[0] == 10


async def test_a_walk_that_never_ends_is_timed_out_and_leaves_its_newfid_free(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = SlowDir()
    async with serving(Tree(slow=slow)) as server:
        c = await server.client()
        c.send(1, m.Twalk(0, 1, ("slow", "x")))
        _, refused = await c.recv(120)
        assert getattr(refused, "ecode", 0) == 110
        await c.walk(0, 1)


@pytest.mark.conformance(40)
async def test_a_hang_up_with_fifty_parked_reads_leaves_nothing_behind() -> None:
    parking = Parking()
    async with serving(Tree(f=parking)) as server:
        c = await server.client()
        await c.walk(0, 1, "f")
        await c.open(1)
        c.send_all(*((tag, m.Tread(1, 0, 10)) for tag in range(50)))
        await c.quiet()
        assert server.node.live["parked"] == 50
        c.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not any(server.node.live.values()), server.node.live
        assert parking.closed == 1


async def test_attach_needs_no_auth_and_says_so() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(attach=False)
        with pytest.raises(Refused) as refused:
            await c.rpc(m.Tauth(1, "root", "", 0))
        assert refused.value.errno == 2
        await c.rpc(m.Tattach(1, NOFID, "root", "", 0))


NONSENSE = {
    "read": [None, "text", b"x" * 9000, 7],
    "write": [None, -1, 10_000, "3", True],
    "open": [None, "handle"],
    "walk": [None, 3],
    "stat": [
        None,
        Stat(Qid(0, 0, 1), 0o100666, size=-1),
        Stat(Qid(0, 0, 1), 0o100666, uid=1.5),
    ],  # type: ignore[arg-type]  # the point of the test
    "readlink": [None, 3],
}


@pytest.mark.feature("author-bugs")
@pytest.mark.logs("internal error #")
@pytest.mark.parametrize("later", [False, True], ids=["now", "later"])
@pytest.mark.parametrize("dialect", ["9P2000.u", "9P2000.L"])
@pytest.mark.parametrize(("operation", "value"), [(op, v) for op, values in NONSENSE.items() for v in values])
async def test_a_tree_that_answers_nonsense_costs_one_request_and_never_the_connection(
    operation: str, value: object, dialect: str, later: bool
) -> None:
    async with serving(Tree(t=Nonsense(later, **{operation: value}), good=Parking())) as server:
        c = await server.client(dialect)
        refused = 0
        for step in (
            lambda: c.walk(0, 1, "t", "f"),
            lambda: c.rpc(l.Tgetattr(1, l.GETATTR_ALL) if dialect == "9P2000.L" else m.Tstat(1)),
            lambda: c.rpc(l.Treadlink(1)) if dialect == "9P2000.L" else c.walk(0, 9),
            lambda: c.open(1, 2),
            lambda: c.read(1, 0, 8000),
            lambda: c.write(1, b"hello"),
            lambda: c.clunk(1),
        ):
            try:
                await step()
            except Refused:
                refused += 1
        assert refused or (dialect == "9P2000.u" and operation == "readlink"), ".u asks for no link's text here"
        await c.walk(0, 5, "good")
        await c.open(5)


@pytest.mark.feature("events-ring")
async def test_what_was_refused_for_lack_of_rights_or_of_room_is_an_event() -> None:
    async with serving(ram.tree(perm=0o755), limits=Limits(fids_max=2)) as server:
        c = await server.client(attach=False)
        await c.attach(0, "", 54_321)
        with pytest.raises(Refused):
            await c.rpc(l.Tmkdir(0, "d", 0o755, 0))
        await c.walk(0, 1)
        with pytest.raises(Refused):
            await c.walk(0, 2)
        counts = server.node.events.counts
        assert (counts[SEC_DENY], counts[LIMIT]) == (1, 1)
    assert (counts[SESSION_ATTACH], counts[SESSION_END]) == (1, 1)


@pytest.mark.feature("author-bugs")
@pytest.mark.logs("internal error #")
@pytest.mark.parametrize("later", [False, True], ids=["now", "later"])
@pytest.mark.parametrize("fault", [SystemExit(3), KeyboardInterrupt(), MemoryError(), RecursionError()])
async def test_no_exception_of_an_author_ends_the_server(fault: BaseException, later: bool) -> None:
    async with serving(Tree(f=Broken(fault, later=later), g=Parking())) as server:
        c, other = await server.client("9P2000.u"), await server.client()
        await c.walk(0, 1, "f")
        with pytest.raises(Refused, match="internal error: #1"):
            await c.open(1)
        for client in (c, other):
            await client.walk(0, 2, "g")
            await client.open(2)
