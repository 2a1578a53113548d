"""What a hostile server can do to our client: nothing but fail.  Each guard has a control that shows the attack."""

from __future__ import annotations

import contextlib
import functools
import os
import stat as _s
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from fake9p import Fake, Reply

from ninep.answer import settle
from ninep.edges import client_checks as checks
from ninep.edges import client_core, client_stream
from ninep.edges.blocking import Blocking
from ninep.edges.client import Client, on_wire
from ninep.edges.client_tree import RemoteFile
from ninep.edges.wire import SocketWire
from ninep.file import HASHED_PATH, Call
from ninep.limits import DEFAULT, Limits
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto import messages as M
from ninep.proto.records import DIRENT_HEAD_BYTES, StatRecord, pack_stat
from ninep.proto.types import DMDEVICE, DMDIR, OREAD, QTDIR, QTSYMLINK, Qid

CALL = Call()
QUICK = msgspec.structs.replace(
    DEFAULT, reply_seconds_max=0.3, close_seconds_max=0.1, connect_seconds_max=0.3, client_dir_entries_max=5000
)
HOSTILE_NAMES = [b"", b".", b"..", b"a/b", b"x\0y", b"n" * 300, b"/etc/passwd"]
ODD_NAMES = ["-rf", "a\nb", "\x1b]0;x", "\udcff"]


def connected(fake: Fake, **options: Any) -> Blocking:
    return Blocking("9p://fake", uname="u", limits=QUICK, link=fake.link, **options)


async def trio_client(nursery: trio.Nursery, fake: Fake, limits: Limits = QUICK) -> Client:
    return await on_wire(nursery, SocketWire(fake.sock), uname="u", limits=limits)


def dirent(name: bytes, cookie: int, dtype: int = 8) -> bytes:
    head = bytes([0]) + bytes(4) + (100 + cookie).to_bytes(8, "little") + cookie.to_bytes(8, "little")
    return head + bytes([dtype]) + len(name).to_bytes(2, "little") + name


def once(data: bytes) -> Callable[[int, Any], Reply]:
    return lambda tag, t: L.Rreaddir(data if t.offset == 0 else b"")


# -- SEC-61


@pytest.mark.sec(61)
def test_names_that_are_no_names_are_dropped_and_counted() -> None:
    names = [*HOSTILE_NAMES, b"good", *(n.encode("utf-8", "surrogateescape") for n in ODD_NAMES), b"good"]
    with Fake() as fake:
        fake.on[L.Treaddir] = once(b"".join(dirent(name, i) for i, name in enumerate(names, 1)))
        with connected(fake) as client:
            assert [e.name for e in client.ls()] == ["good", *ODD_NAMES]
            assert client.core.names_dropped == len(HOSTILE_NAMES) - 2 + 1  # `.` and `..` are left out, not counted


@pytest.mark.sec(61)
@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u"])
def test_old_directory_records_are_held_to_the_same(dialect: str) -> None:
    qid = Qid(0, 0, 5)
    records = [StatRecord(0, 0, qid, 0o644, 0, 0, 0, n, "u", "g", "m") for n in ("..", "a/b", "good", "n" * 300)]
    raw = b"".join(pack_stat(r, dialect == "9P2000.u") for r in records)
    nul = pack_stat(StatRecord(0, 0, qid, 0o644, 0, 0, 0, "x_y", "u", "g", "m"), dialect == "9P2000.u")
    with Fake(dialect=dialect) as fake:
        fake.on[M.Tread] = lambda tag, t: M.Rread(raw + nul.replace(b"x_y", b"x\0y") if t.offset == 0 else b"")
        with connected(fake) as client:
            assert [e.name for e in client.ls()] == ["good"]
            assert client.core.names_dropped == 3


@pytest.mark.sec(61)
def test_without_the_name_check_a_hostile_name_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "is_name", lambda name: True)
    with Fake() as fake:
        fake.on[L.Treaddir] = once(dirent(b"../../etc/passwd", 1))
        with connected(fake) as client:
            assert [e.name for e in client.ls()] == ["../../etc/passwd"]


@pytest.mark.sec(61)
@pytest.mark.parametrize("cut", [1, DIRENT_HEAD_BYTES - 1, DIRENT_HEAD_BYTES + 2])
def test_directory_entries_that_do_not_add_up_are_Eproto(cut: int) -> None:
    with Fake() as fake:
        fake.on[L.Treaddir] = once(dirent(b"name", 1)[:cut])
        with connected(fake) as client, pytest.raises(E.Eproto):
            list(client.ls())


# -- SEC-62, 72


def frame(number: int, tag: int, body: bytes = b"", size: int | None = None) -> bytes:
    return (7 + len(body) if size is None else size).to_bytes(4, "little") + bytes([number]) + tag.to_bytes(
        2, "little"
    ) + body  # fmt: skip


def _u32(n: int) -> bytes:
    return n.to_bytes(4, "little")


READ_LIES: dict[str, Callable[[int, M.Tread], Reply]] = {
    "more than asked": lambda tag, t: M.Rread(bytes(t.count + 1)),
    "count past the frame": lambda tag, t: frame(117, tag, _u32(0xFFFFFFFF) + b"x"),
    "count short of the frame": lambda tag, t: frame(117, tag, _u32(0) + b"x"),
    "another type": lambda tag, t: M.Rwrite(1),
    "a request": lambda tag, t: M.Tread(0, 0, 1),
    "unknown type": lambda tag, t: frame(251, tag),
    "twice": lambda tag, t: [M.Rread(b"x"), M.Rread(b"x"), frame(251, tag)],
    "unknown tag": lambda tag, t: frame(117, tag ^ 0x700, _u32(0)),
    "NOTAG": lambda tag, t: frame(117, 0xFFFF, _u32(0)),
    "frame too small": lambda tag, t: frame(117, tag, size=6),
    "frame of nothing": lambda tag, t: frame(117, tag, size=0),
    "frame past msize": lambda tag, t: frame(117, tag, size=8193),
    "frame of 4 GiB": lambda tag, t: frame(117, tag, size=0xFFFFFFFF),
    "rerror in .L": lambda tag, t: frame(107, tag, b"\x01\0x"),
}


@pytest.mark.sec(62, 72)
@pytest.mark.parametrize("lie", READ_LIES)
def test_a_lie_about_a_read_closes_the_session(lie: str) -> None:
    with Fake() as fake:
        fake.on[M.Tread] = READ_LIES[lie]
        with connected(fake) as client:
            with pytest.raises((E.Eproto, E.Enotconn) if lie == "twice" else E.Eproto):
                client.read("a")
            with pytest.raises(E.Enotconn):
                client.stat("a")


@pytest.mark.sec(62, 72)
@pytest.mark.parametrize("lie", ["more than asked", "unknown tag", "another type", "frame past msize"])
async def test_a_lie_fails_every_operation_in_flight_under_trio(lie: str) -> None:
    with Fake() as fake:
        parked: list[int] = []
        fake.on[L.Tgetattr] = lambda tag, t: parked.append(tag)
        fake.on[M.Tread] = READ_LIES[lie]
        async with trio.open_nursery() as nursery:
            # Not QUICK: these requests are parked until the lie, and a busy machine may take longer than its deadline.
            client = await trio_client(nursery, fake, DEFAULT)
            file = await settle(client.root.walk(CALL, "a"))
            errors: list[type[BaseException]] = []

            async def wait_for_error() -> None:
                try:
                    await settle(file.stat(CALL))
                except E.FileError as e:
                    errors.append(type(e))

            for _ in range(5):
                nursery.start_soon(wait_for_error)
            await trio.to_thread.run_sync(fake.wait_for, L.Tgetattr, 5)
            fake.on.pop(L.Tgetattr)
            handle = await settle(file.open(CALL, OREAD))
            with pytest.raises(E.Eproto):
                await settle(handle.read(CALL, 0, 10))
            await trio.testing.wait_all_tasks_blocked()
            assert errors == [E.Eproto] * 5
            assert not client.is_connected
            with pytest.raises(E.Enotconn):
                await settle(file.stat(CALL))


@pytest.mark.sec(62)
def test_without_the_check_a_long_read_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_core, "checked", lambda request, reply: M.Rread(bytes(reply.data)) if isinstance(
        reply, M.Rread) else reply)  # fmt: skip
    with Fake() as fake:
        fake.on[M.Tread] = lambda tag, t: M.Rread(bytes(t.count + 1)) if t.offset == 0 else M.Rread(b"")
        fake.on[L.Tgetattr] = lambda tag, t: fake.getattr("a", size=0)
        with connected(fake) as client:
            assert len(client.read("a")) > client.core.io_bytes_max


@pytest.mark.sec(62)
@pytest.mark.parametrize("taken", [0, 6, 0xFFFFFFFF])
def test_a_write_that_takes_nothing_or_too_much_closes_the_session(taken: int) -> None:
    with Fake() as fake:
        fake.on[M.Twrite] = lambda tag, t: M.Rwrite(taken)
        with connected(fake) as client:
            with pytest.raises(E.Eproto):
                client.write("a", b"12345")
            assert len(fake.wait_for(M.Twrite)) == 1


@pytest.mark.sec(62)
def test_more_qids_than_names_closes_the_session() -> None:
    with Fake() as fake:
        with connected(fake) as client:
            fake.on[M.Twalk] = lambda tag, t: M.Rwalk((Qid(0, 0, 1),) * (len(t.wname) + 1))
            with pytest.raises(E.Eproto):
                client.walk("a")


@pytest.mark.sec(62)
def test_a_larger_msize_than_offered_or_a_strange_version_is_refused() -> None:
    for answer in (M.Rversion(1 << 30, "9P2000.L"), M.Rversion(100, "9P2000.L"), M.Rversion(8192, "9P2000.X")):
        with Fake() as fake:
            fake.on[M.Tversion] = lambda tag, t, answer=answer: answer
            with pytest.raises(E.Eproto):
                connected(fake)


@pytest.mark.sec(72)
def test_without_the_check_of_tags_a_reply_to_nothing_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    take = client_core.Core._take

    def trusting(core: client_core.Core, view: memoryview, at: int, end: int, done: list[Any]) -> None:
        frame = bytearray(view[at:end])
        if int.from_bytes(frame[5:7], "little") not in core._pending:
            reads = (tag for tag, pending in core._pending.items() if type(pending.request) is M.Tread)
            frame[5:7] = next(reads).to_bytes(2, "little")
        take(core, memoryview(frame), 0, len(frame), done)

    monkeypatch.setattr(client_core.Core, "_take", trusting)
    with Fake() as fake:
        fake.on[M.Tread] = lambda tag, t: frame(117, tag ^ 0x700, _u32(5) + b"wrong") if t.offset == 0 else M.Rread(b"")
        with connected(fake) as client:
            assert client.read("a") == b"wrong"


# -- SEC-63


@pytest.mark.sec(63)
async def test_a_file_that_turns_into_a_directory_is_stale() -> None:
    with Fake({"a": b"x", "b": b"y"}) as fake:
        async with trio.open_nursery() as nursery:
            client = await trio_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            for kind in (QTDIR, QTSYMLINK):
                fake.on[L.Tlopen] = lambda tag, t, kind=kind: L.Rlopen(Qid(kind, 0, 100), 0)
                with pytest.raises(E.Estale):
                    await settle(file.open(CALL, OREAD))
            fake.on[L.Tgetattr] = lambda tag, t: msgspec.structs.replace(
                fake.getattr("a", mode=_s.S_IFDIR | 0o755), qid=Qid(QTDIR, 0, 100)
            )
            with pytest.raises(E.Estale):
                await settle(file.stat(CALL))
            fake.on[L.Tgetattr] = lambda tag, t: fake.getattr("a", mode=_s.S_IFDIR | 0o755)
            with pytest.raises(E.Eio):
                await settle(file.stat(CALL))
            client.close()


@pytest.mark.sec(63)
async def test_without_the_check_of_kinds_a_file_turns_into_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "same_kind", lambda was, now: now)
    with Fake({"a": b"x"}) as fake:
        async with trio.open_nursery() as nursery:
            client = await trio_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            fake.on[L.Tgetattr] = lambda tag, t: msgspec.structs.replace(
                fake.getattr("a", mode=_s.S_IFDIR | 0o755), qid=Qid(QTDIR, 0, 100)
            )
            st = await settle(file.stat(CALL))
            assert _s.S_ISDIR(st.st_mode)
            assert not st.qid.type & QTDIR
            client.close()


@pytest.mark.sec(63)
async def test_qid_paths_are_ours_and_the_kind_is_part_of_them() -> None:
    with Fake() as one, Fake() as two:
        async with trio.open_nursery() as nursery:
            clients = [await trio_client(nursery, fake) for fake in (one, two)]
            paths = {c.local_qid(Qid(kind, 0, 7)).path for c in clients for kind in (0, QTDIR, QTSYMLINK)}
            assert len(paths) == 6
            assert all(path & HASHED_PATH for path in paths)
            assert clients[0].local_qid(Qid(0, 3, 7)) == clients[0].local_qid(Qid(0, 3, 7))
            for client in clients:
                client.close()


# -- SEC-64


@pytest.mark.sec(64)
def test_an_endless_directory_stops_with_Eio() -> None:
    with Fake() as fake:
        fake.on[L.Treaddir] = lambda tag, t: L.Rreaddir(
            b"".join(dirent(b"%d" % i, i) for i in range(t.offset + 1, t.offset + 100))
        )
        count = 0
        with connected(fake) as client, pytest.raises(E.Eio):
            for _ in client.ls():
                count += 1
        assert count <= QUICK.client_dir_entries_max


@pytest.mark.sec(64)
@pytest.mark.parametrize("cookies", [(5, 5), (0, 0), (1 << 63, 1 << 63)])
def test_a_cookie_that_does_not_advance_is_Eio(cookies: tuple[int, int]) -> None:
    with Fake() as fake:
        fake.on[L.Treaddir] = lambda tag, t: L.Rreaddir(dirent(b"a", cookies[0]) + dirent(b"b", cookies[1]))
        with connected(fake) as client, pytest.raises(E.Eio):
            list(client.ls())
        assert len(fake.wait_for(L.Treaddir)) <= 3


@pytest.mark.sec(64)
def test_batches_without_one_good_name_do_not_go_on_for_ever() -> None:
    limits = msgspec.structs.replace(QUICK, client_dir_entries_max=50)
    with Fake() as fake:
        fake.on[L.Treaddir] = lambda tag, t: L.Rreaddir(dirent(b"..", t.offset + 1))
        with Blocking("9p://fake", uname="u", limits=limits, link=fake.link) as client, pytest.raises(E.Eio):
            list(client.ls())


@pytest.mark.sec(64)
def test_an_endless_old_directory_stops_too() -> None:
    record = pack_stat(StatRecord(0, 0, Qid(0, 0, 5), 0o644, 0, 0, 0, "same", "u", "g", "m"))
    with Fake(dialect="9P2000") as fake:
        fake.on[M.Tread] = lambda tag, t: M.Rread(record * 10)
        with connected(fake) as client, pytest.raises(E.Eio):
            list(client.ls())


@pytest.mark.sec(64)
def test_without_the_limit_the_directory_would_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlimited(client_stream.DirReader):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, 0 if name == "_seen" else value)

    monkeypatch.setattr("ninep.edges.blocking.DirReader", Unlimited)
    with Fake() as fake:
        fake.on[L.Treaddir] = lambda tag, t: L.Rreaddir(
            b"".join(dirent(b"%d" % i, i) for i in range(t.offset + 1, t.offset + 100))
        )
        with connected(fake) as client:
            entries = client.ls()
            assert sum(1 for _ in zip(range(2 * QUICK.client_dir_entries_max), entries)) == 10_000


# -- SEC-65


@pytest.mark.sec(65)
@pytest.mark.parametrize("silent", [M.Tversion, M.Tattach, M.Twalk, L.Tlopen, M.Twrite, M.Tclunk])
def test_a_server_that_hangs_is_timed_out(silent: type[Any]) -> None:
    with Fake() as fake:
        fake.on[silent] = lambda tag, t: None
        began = time.monotonic()
        with pytest.raises(E.Etimedout), connected(fake) as client:
            client.write("a", b"x", omode=1)
        assert time.monotonic() - began < 20 * QUICK.reply_seconds_max


@pytest.mark.sec(65)
async def test_under_trio_a_hung_request_fails_and_a_hung_flush_ends_the_session() -> None:
    with Fake() as fake:
        async with trio.open_nursery() as nursery:
            client = await trio_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            fake.on[L.Tgetattr] = lambda tag, t: None
            with pytest.raises(E.Etimedout):
                await settle(file.stat(CALL))
            await trio.to_thread.run_sync(fake.wait_for, M.Tflush)
            assert client.is_connected  # it answered the Tflush
            fake.on[M.Tflush] = lambda tag, t: None
            with pytest.raises(E.Etimedout):
                await settle(file.stat(CALL))
            while client.is_connected:
                await trio.sleep(0.01)
            with pytest.raises(E.Enotconn):
                await settle(file.stat(CALL))


@pytest.mark.sec(65)
async def test_without_the_deadline_a_hung_request_is_waited_for() -> None:
    for seconds, error in ((QUICK.reply_seconds_max, E.Etimedout), (1e6, None)):
        with Fake() as fake:
            async with trio.open_nursery() as nursery:
                limits = msgspec.structs.replace(QUICK, reply_seconds_max=seconds)
                client = await trio_client(nursery, fake, limits)
                file = await settle(client.root.walk(CALL, "a"))
                fake.on[L.Tgetattr] = lambda tag, t: None
                ended: type[E.FileError] | None = None
                with trio.move_on_after(10 if error else 4 * QUICK.reply_seconds_max) as scope:
                    try:
                        await settle(file.stat(CALL))
                    except E.FileError as e:
                        ended = type(e)
                assert (ended, scope.cancelled_caught) == (error, error is None)
                client.close()


@pytest.mark.sec(65)
async def test_a_server_that_hangs_up_fails_everything_at_once() -> None:
    with Fake() as fake:
        async with trio.open_nursery() as nursery:
            client = await trio_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            handle = await settle(file.open(CALL, OREAD))
            fake.on[M.Tread] = lambda tag, t: fake.hang_up()
            with pytest.raises(E.Ehungup):
                await settle(handle.read(CALL, 0, 10))
            with pytest.raises(E.Enotconn):
                await settle(handle.read(CALL, 0, 10))


# -- SEC-66, 68, 73, 74, 76


@pytest.mark.sec(66, 68)
async def test_set_id_bits_and_devices_do_not_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with Fake() as fake:
        async with trio.open_nursery() as nursery:
            client = await trio_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            fake.on[L.Tgetattr] = lambda tag, t: fake.getattr("a", mode=_s.S_IFREG | 0o7755)
            assert (await settle(file.stat(CALL))).st_mode == _s.S_IFREG | 0o755
            fake.on[L.Tgetattr] = lambda tag, t: fake.getattr("a", mode=_s.S_IFBLK | 0o666, rdev=0x801)
            st = await settle(file.stat(CALL))
            assert (st.st_mode, st.rdev) == (_s.S_IFREG, 0)
            monkeypatch.setattr(checks, "masked", lambda st: st)
            assert (await settle(file.stat(CALL))).st_mode == _s.S_IFBLK | 0o666  # the control
            client.close()


@pytest.mark.sec(73, 74)
def test_numbers_that_linux_cannot_hold_are_clamped() -> None:
    huge = (1 << 64) - 1
    with Fake() as fake:
        fake.on[L.Tgetattr] = lambda tag, t: fake.getattr(
            "a", valid=L.GETATTR_ALL, mode=0xFFFF_FFFF & ~0o160000, size=huge, nlink=huge, rdev=huge, blksize=huge,
            blocks=huge, atime_sec=huge, atime_nsec=huge, mtime_sec=huge, mtime_nsec=huge, ctime_sec=huge,
            ctime_nsec=huge, uid=0xFFFFFFFF, gid=0xFFFFFFFF,
        )  # fmt: skip
        with connected(fake) as client:
            st = client.stat("a")
    assert st.size == (1 << 63) - 1
    for time_ns in (st.atime_ns, st.mtime_ns, st.ctime_ns):
        assert 0 <= time_ns < 1 << 63
    assert 512 <= st.blksize <= 1 << 20
    assert st.blocks * 512 < 1 << 63
    assert st.nlink <= 0xFFFFFFFF


@pytest.mark.sec(73, 74)
def test_without_the_clamps_a_program_trips_over_sizes_and_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = (1 << 64) - 1
    (tmp_path / "f").touch()
    for clamped in (True, False):
        if not clamped:
            monkeypatch.setattr(checks, "OFFSET_MAX", huge)
            monkeypatch.setattr(checks, "_ns", lambda seconds, ns: seconds * 10**9 + ns)
        with Fake() as fake:
            fake.on[L.Tgetattr] = lambda tag, t: fake.getattr(
                "a", valid=L.GETATTR_ALL, size=huge, atime_sec=huge, mtime_sec=huge
            )
            with connected(fake) as client:
                st = client.stat("a")
        uses: list[Callable[[], None]] = [
            functools.partial(os.utime, tmp_path / "f", ns=(st.atime_ns, st.mtime_ns)),
            functools.partial(os.truncate, tmp_path / "f", st.size),
        ]
        for use in uses:
            if clamped:
                with contextlib.suppress(OSError):  # past what the file system holds: an ordinary refusal
                    use()
            else:
                with pytest.raises(OverflowError):
                    use()


@pytest.mark.sec(73)
def test_a_lie_about_the_size_makes_no_spin_and_no_hole() -> None:
    content = b"x" * 10_000
    for size in (0, 5, 1 << 62, (1 << 64) - 1):
        with Fake({"a": content}, msize=4096) as fake:
            fake.on[L.Tgetattr] = lambda tag, t, size=size: fake.getattr("a", size=size)
            with connected(fake) as client:
                assert client.read("a") == content


@pytest.mark.sec(74)
def test_old_records_are_clamped_and_their_devices_parsed_with_care() -> None:
    for extension in ("", "b 8 1", "c -1 2", "x 1 1", "b 99999999999999999999 1", "b ٣ 1"):
        record = StatRecord(0, 0, Qid(0, 0, 5), DMDEVICE | 0o644, 0xFFFFFFFF, 0xFFFFFFFF, (1 << 64) - 1, "a", "u", "g",
                            "m", extension, 1, 2, 3)  # fmt: skip
        st = checks.stat_of_record(record, True)
        assert st.size == (1 << 63) - 1
        assert 0 <= st.rdev <= 0xFFFFFFFF
    with pytest.raises(E.Eio):
        checks.stat_of_record(msgspec.structs.replace(record, perm=DMDIR), True)


@pytest.mark.sec(76)
def test_error_text_is_data() -> None:
    hostile = "%s%n {0.__class__} \x1b[31m [bold] " + "x" * 5000
    with Fake(dialect="9P2000") as fake:
        fake.on[M.Twalk] = lambda tag, t: M.Rerror(hostile)
        with connected(fake) as client, pytest.raises(E.Eio) as caught:
            client.stat("a")
    assert caught.value.about == hostile
    assert len(caught.value.ename.encode()) <= E.ENAME_BYTES_MAX


@pytest.mark.sec(76)
def test_without_care_for_error_text_it_is_a_format_and_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: text that is used as a format tells of our objects, and text that is not cut goes out whole."""
    monkeypatch.setattr(E.FileError, "__str__", lambda self: f"{self.text}: {self.about}".format(self))
    monkeypatch.setattr(E, "ENAME_BYTES_MAX", 1 << 20)
    with Fake(dialect="9P2000") as fake:
        fake.on[M.Twalk] = lambda tag, t: M.Rerror("{0.__class__} " + "x" * 5000)
        with connected(fake) as client, pytest.raises(E.Eio) as caught:
            client.stat("a")
    assert "ninep.proto.errors.Eio" in str(caught.value)
    assert len(caught.value.ename.encode()) > 126


@pytest.mark.sec(62)
def test_an_errno_out_of_range_is_Eproto() -> None:
    for number in (0, 4096, 0xFFFFFFFF):
        with Fake() as fake:
            with connected(fake) as client:
                fake.on[M.Twalk] = lambda tag, t, number=number: L.Rlerror(number)
                with pytest.raises(E.Eproto):
                    client.stat("a")


@pytest.mark.sec(60)
async def test_a_links_target_is_only_text() -> None:
    with Fake() as fake:
        async with trio.open_nursery() as nursery:
            client = await trio_client(nursery, fake)
            file = await settle(client.root.walk(CALL, "a"))
            assert isinstance(file, RemoteFile)
            fake.on[L.Treadlink] = lambda tag, t: L.Rreadlink("../../etc/passwd")
            assert await settle(file.readlink(CALL)) == "../../etc/passwd"  # whoever mounts it contains it
            for target in ("", "x" * 5000):
                fake.on[L.Treadlink] = lambda tag, t, target=target: L.Rreadlink(target)
                with pytest.raises(E.Eproto):
                    await settle(file.readlink(CALL))
            client.close()
