"""The blocking client: paths, walks, windows, interrupts and deadlines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from fake9p import Fake, Reply

from ninep.edges.blocking import Blocking
from ninep.edges.client_core import COPY_BYTES_MAX, Core, State, negotiate, own_name
from ninep.edges.dial import Link
from ninep.edges.policy import Peer, Policy
from ninep.edges.stream import serve_wire
from ninep.edges.wire import SocketWire
from ninep.limits import DEFAULT
from ninep.node import Node
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto import messages as M
from ninep.proto.types import NONUNAME, ORDWR, OREAD, QTDIR, Change, Qid
from ninep.servers import ram

DIALECTS = ["9P2000", "9P2000.u", "9P2000.L"]
QUICK = msgspec.structs.replace(DEFAULT, reply_seconds_max=2.0, connect_seconds_max=2.0)


def connected(fake: Fake, address: str = "9p://fake") -> Blocking:
    return Blocking(address, uname="u", limits=QUICK, link=fake.link)


class RamServer:
    """Our own server with a ram tree, on a thread, for one connection."""

    def __enter__(self) -> Link:
        import socket

        ours, theirs = socket.socketpair()
        self.thread = threading.Thread(target=trio.run, args=(self._serve, theirs), name="ram server")
        self.thread.start()
        return Link(ours)

    def __exit__(self, *error: object) -> None:
        self.thread.join(10)

    async def _serve(self, sock: Any) -> None:
        async with trio.open_nursery() as nursery:
            peer = Peer("test", 0, 0, 0, "peercred")
            await serve_wire(SocketWire(sock), Node(), ram.tree(), nursery, Policy(trust_uname=True), peer)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.feature("client-dialects", "client-blocking")
def test_every_verb_in_every_dialect(dialect: str) -> None:
    data = bytes(range(256)) * 20_000
    with RamServer() as link, Blocking(f"9p://ram/?dialect={dialect}", uname="root", link=link) as client:
        assert client.core.dialect.name == dialect
        client.mkdir("d", 0o755)
        with client.create("d/f", 0o640) as file:
            assert file.write(data) == len(data)
        assert client.read("d/f") == data
        assert client.stat("d/f").size == len(data)
        client.rename("d/f", "d/g")
        assert [e.name for e in client.ls("d")] == ["g"]
        (entry,) = client.ls("d", stats=True)
        assert entry.stat is not None
        assert entry.stat.size == len(data)
        assert client.write("d/g", [b"ab", b"cd"]) == 4
        with client.open("d/g", ORDWR) as file:
            file.seek(2)
            file.write(b"X")
            file.fsync()
            file.seek(0)
            assert file.read() == b"abXd"
            assert file.stat().size == 4
        client.wstat("d/g", Change(perm=0o600, size=2))
        assert client.read("d/g") == b"ab"
        if dialect != "9P2000":
            client.symlink("g", "d/l")
            assert client.readlink("d/l") == "g"
            client.link("d/g", "d/h")
            for name in ("l", "h"):
                client.remove(f"d/{name}")
        if dialect == "9P2000.L":
            client.setxattr("d/g", "user.x", b"v")
            assert client.listxattr("d/g") == ["user.x"]
            assert client.getxattr("d/g", "user.x") == b"v"
            client.removexattr("d/g", "user.x")
            client.rename("d/g", "g")
            client.rename("g", "d/g")
            assert client.statfs("d").namelen == 255
        assert [q.type & QTDIR for q in client.walk("d/g")] == [QTDIR, 0]
        with pytest.raises(E.Eexist):
            client.mkdir("d")
        with pytest.raises(E.Enotempty):
            client.remove("d")
        client.remove("d/g", is_dir=False)
        client.remove("d", is_dir=True)
        for path in ("d", "d/g/h"):
            with pytest.raises(E.Enonexist):
                client.stat(path)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_walks_of_more_than_sixteen_names_say_which_failed(dialect: str) -> None:
    with RamServer() as link, Blocking(f"9p://ram/?dialect={dialect}", uname="root", link=link) as client:
        names = [f"d{i}" for i in range(40)]
        for i in range(40):
            client.mkdir("/".join(names[: i + 1]), 0o755)
        assert len(client.walk("/".join(names))) == 40
        for missing_at in (0, 1, 15, 16, 17, 31, 32, 39):
            path = [*names[:missing_at], "missing", *names[missing_at + 1 :]]
            with pytest.raises(E.Enonexist, match="missing"):
                client.walk("/".join(path))
        with client.create("f") as file:
            file.write(b"x")
        for path in ("f/x", "f/x/y"):
            with pytest.raises((E.Enotdir, E.Enonexist)):
                client.walk(path)
        client.stat("f")
        client.stat()
        assert client.core.fids_open <= 2  # the root, and the clunk that the last stat has left


def test_a_walk_that_stops_short_leaves_no_fid_behind() -> None:
    with Fake() as fake:
        with connected(fake) as client:
            fake.on[M.Twalk] = lambda tag, t: (
                M.Rwalk((Qid(QTDIR, 0, 9),)) if len(t.wname) != 1 or t.wname[0] == "a" else fake.error(13)
            )
            with pytest.raises(E.Eperm, match="b"):
                client.walk("a/b/c")
            client.close()
        newfids = {t.newfid for t in fake.wait_for(M.Twalk)}
        assert newfids <= {t.fid for t in fake.wait_for(M.Tclunk)}


def test_paths_are_relative_to_the_addresses_own() -> None:
    with Fake({"a": b"x"}) as fake, connected(fake, "9p://fake/a") as client:
        assert client.stat().size == 1
        assert client.stat("/").is_dir
        with pytest.raises(E.Ebadarg):
            client.remove("/")


def test_the_user_is_the_caller_unless_said_otherwise() -> None:
    with Fake() as fake, Blocking("9p://fake/?aname=tree", limits=QUICK, link=fake.link):
        (attach,) = fake.wait_for(M.Tattach)
        assert (attach.uname, attach.n_uname, attach.aname) == (own_name(), os.getuid(), "tree")
    with Fake() as fake, Blocking("9p://fake/?uname=glenda", limits=QUICK, link=fake.link):
        (attach,) = fake.wait_for(M.Tattach)
        assert (attach.uname, attach.n_uname) == ("glenda", NONUNAME)


# -- reading ahead


def test_reads_of_a_sized_file_are_sent_ahead_and_of_a_stream_are_not() -> None:
    content = os.urandom(400_000)
    with Fake({"a": content}) as fake, connected(fake) as client:
        held: list[tuple[int, Any]] = []
        most = 0

        def slow(tag: int, t: M.Tread) -> Reply:
            nonlocal most
            held.append((tag, t))
            most = max(most, len(held))
            if len(held) >= 8 or t.offset + t.count >= len(content):
                replies = [fake.dialect.encode(g, M.Rread(content[r.offset : r.offset + r.count])) for g, r in held]
                held.clear()
                return replies[::-1]  # in any order
            return None

        fake.on[M.Tread] = slow
        assert client.read("a") == content
        assert most == 8
    with Fake({"a": content}) as fake, connected(fake) as client:
        fake.on[L.Tgetattr] = lambda tag, t: fake.getattr("a", size=0)
        chunk = client.core.io_bytes_max
        parts = client.chunks("a")
        assert next(parts) == content[:chunk]
        assert len(fake.wait_for(M.Tread)) == 1
        parts.close()  # type: ignore[attr-defined]  # a generator


def test_short_replies_are_read_again_at_the_right_place() -> None:
    content = os.urandom(50_000)
    with Fake({"a": content}) as fake, connected(fake) as client:
        fake.on[M.Tread] = lambda tag, t: M.Rread(content[t.offset : t.offset + min(t.count, 700 + t.offset % 5000)])
        assert client.read("a") == content


def test_read_is_bounded() -> None:
    with Fake({"a": b"x" * 20_000}) as fake, connected(fake) as client:
        with pytest.raises(E.Efbig):
            client.read("a", bytes_max=10_000)


# -- writing


def test_writes_are_cut_at_the_iounit_and_go_on_after_a_short_one() -> None:
    with Fake({"a": b""}) as fake:
        fake.on[L.Tlopen] = lambda tag, t: L.Rlopen(Qid(0, 0, 100), 1000)

        def short(tag: int, t: M.Twrite) -> Reply:
            data = bytes(t.data)[:700]
            fake.files["a"] = fake.files["a"][: t.offset] + data
            return M.Rwrite(len(data))

        fake.on[M.Twrite] = short
        data = os.urandom(5000)
        with connected(fake) as client:
            assert client.write("a", data) == 5000
        assert fake.files["a"] == data
        assert max(len(t.data) for t in fake.wait_for(M.Twrite)) == 1000


def test_a_payload_too_large_to_copy_goes_from_its_place() -> None:
    data = os.urandom(3 * COPY_BYTES_MAX)
    with Fake({"a": b""}, msize=1 << 20) as fake, connected(fake) as client:
        assert client.write("a", data) == len(data)
        assert fake.files["a"] == data


def test_a_refusal_in_the_middle_tells_how_much_was_taken() -> None:
    with Fake({"a": b""}) as fake, connected(fake) as client:
        fake.on[M.Twrite] = lambda tag, t: M.Rwrite(len(t.data)) if t.offset == 0 else fake.error(28)
        with client.open("a", 1) as file:
            assert file.write(bytes(20_000)) == client.core.io_bytes_max
            with pytest.raises(E.Enospc):
                file.write(b"more")


def test_an_error_at_the_close_of_a_written_file_is_not_lost() -> None:
    with Fake({"a": b""}) as fake, connected(fake) as client:
        fake.on[M.Tclunk] = lambda tag, t: fake.error(122)
        with pytest.raises(E.Edquot):
            client.write("a", b"x")


# -- many at once, interrupts, the end


def test_many_flows_run_at_once_and_refusals_stay_in_their_place() -> None:
    files = {f"f{i}": b"x" * i for i in range(200)}
    with Fake(files, msize=65536) as fake, connected(fake) as client:

        def getattr(tag: int, t: Any) -> Reply:
            name = fake.fids[t.fid]
            return fake.error(13) if name == "f7" else fake.getattr(name)

        fake.on[L.Tgetattr] = getattr
        entries = list(client.ls(stats=True))
        assert len(entries) == 200
        assert [e.stat.size if e.stat else None for e in entries] == [None if i == 7 else i for i in range(200)]


CHILD = """
import sys
from ninep.edges.blocking import Blocking
with Blocking("9p+fd://%d", uname="u") as client:
    print("ready", flush=True)
    client.read("a")
"""


def wait_until_asleep(pid: int) -> None:
    """Until the process waits in a system call."""
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < until


@pytest.mark.feature("client-interrupt")
def test_ctrl_c_ends_a_parked_read_and_tells_the_server() -> None:
    with Fake() as fake:
        parked = threading.Event()
        fake.on[M.Tread] = lambda tag, t: parked.set()
        fake.on[L.Tgetattr] = lambda tag, t: fake.getattr("a", size=0)
        fd = fake.sock.fileno()
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD % fd], pass_fds=[fd], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            assert parked.wait(10)
            wait_until_asleep(child.pid)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=10)
            assert b"KeyboardInterrupt" in err
        finally:
            child.kill()
            child.communicate()
        (read,) = [(tag, m) for tag, m in fake.seen if type(m) is M.Tread]
        assert fake.wait_for(M.Tflush)[0].oldtag == read[0]
        assert read[1].fid in {t.fid for t in fake.wait_for(M.Tclunk)}


def test_an_interrupt_in_the_middle_of_a_send_hangs_up_instead_of_saying_it_twice() -> None:
    with Fake() as fake, connected(fake) as client:
        send = client._line.send

        def interrupted(buffers: Any) -> int | None:
            send(buffers)
            raise KeyboardInterrupt

        client._line.send = interrupted  # type: ignore[method-assign]  # a signal between two instructions
        with pytest.raises(KeyboardInterrupt):
            client.stat("a")
        client._line.send = send  # type: ignore[method-assign]  # over
        with pytest.raises(E.Enotconn):
            client.stat("a")
        assert len(fake.wait_for(M.Twalk)) == 1


def test_a_server_that_hangs_up_is_told_at_once_and_stays_so() -> None:
    with Fake() as fake, connected(fake) as client:
        fake.on[L.Tgetattr] = lambda tag, t: fake.hang_up()
        with pytest.raises(E.Ehungup):
            client.stat("a")
        with pytest.raises(E.Enotconn):
            client.stat("a")


def test_a_pair_of_pipes_carries_a_session() -> None:
    with Fake() as fake:
        up, down = os.pipe(), os.pipe()

        def pump(read: int, write: int) -> None:
            while data := os.read(read, 65536):
                os.write(write, data)
            os.close(write)

        plain = os.dup(fake.sock.fileno())
        threads = [
            threading.Thread(target=pump, args=(up[0], plain), name="up"),
            threading.Thread(target=pump, args=(fake.sock.fileno(), down[1]), name="down"),
        ]
        for thread in threads:
            thread.start()
        with Blocking(f"9p+fd://{down[0]},{up[1]}", uname="u", limits=QUICK) as client:
            assert client.read("a") == b"hello\n"
        fake.hang_up()
        for thread in threads:
            thread.join(5)
        os.close(up[0])


def test_the_first_byte_of_a_cat_does_not_wait_for_what_it_does_not_need() -> None:
    with Fake() as fake, connected(fake) as client:
        assert next(client.chunks("a")) == b"hello\n"
        kinds = [type(m) for _, m in fake.seen]
    assert kinds[: kinds.index(M.Tread) + 1] == [M.Tversion, M.Tattach, M.Twalk, L.Tgetattr, L.Tlopen, M.Tread]


# -- the core alone


def test_the_core_takes_bytes_one_at_a_time() -> None:
    core = Core(lambda: 0.0)
    flow = negotiate(core)
    pending = next(flow)
    raw = core.dialect.encode(0xFFFF, M.Rversion(8192, "9P2000.L"))
    for byte in raw:
        assert not pending.is_done
        space = core.space()
        space[0] = byte
        core.received(1)
    assert pending.is_done
    with pytest.raises(StopIteration):
        flow.send(pending.result())
    assert (core.state, core.msize_bytes) == (State.READY, 8192)


def test_tags_and_fids_are_used_again() -> None:
    with Fake() as fake, connected(fake) as client:
        for _ in range(300):
            client.stat("a")
        assert max(tag for tag, m in fake.seen if type(m) is not M.Tversion) < 8
        assert max(t.newfid for t in fake.wait_for(M.Twalk)) < 8


def test_opening_does_not_change_the_position_of_others() -> None:
    with Fake({"a": b"0123456789" * 2000}) as fake, connected(fake) as client:
        with client.open("a", OREAD) as one, client.open("a", OREAD) as two:
            first = one.read()
            assert two.read() == first
            two.seek(3)
            assert two.read()[:3] == b"345"
            assert one.read()[:1] == b"%d" % (len(first) % 10)
