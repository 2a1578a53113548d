"""Rights: each operation asks for its own, a missing one is refused as its row says, and nothing gives any back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import pytest
from asks import refuses
from raw9p import RawClient, serving

from ninep import checks
from ninep.edges.policy import Policy
from ninep.file import Call
from ninep.principal import ALL, CHANGES, Principal, Rights
from ninep.proto import dotl as l
from ninep.proto import errors as E
from ninep.proto import messages as m
from ninep.proto.records import StatRecord
from ninep.proto.types import DMDIR, F_WRLCK, NOFID
from ninep.servers import ram

pytestmark = pytest.mark.feature("rights")

Ask = Callable[[RawClient], Awaitable[object]]
R = Rights
READONLY = ALL & ~CHANGES & ~int(R.ADMIN)


def on_file(message: Callable[[int], object]) -> Ask:
    """Ask something of a fid on the file `f`."""

    async def ask(c: RawClient) -> None:
        await c.walk(0, 1, "f")
        await c.rpc(message(1))  # type: ignore[arg-type]  # a Message

    return ask


def opened(mode: int, message: Callable[[int], object]) -> Ask:
    async def ask(c: RawClient) -> None:
        await c.walk(0, 1, "f")
        await c.open(1, mode)
        await c.rpc(message(1))  # type: ignore[arg-type]  # a Message

    return ask


async def listed(c: RawClient) -> None:
    await c.walk(0, 1)
    await c.open(1)
    await c.rpc(l.Treaddir(1, 0, 1000))


async def linked(c: RawClient) -> None:
    await c.walk(0, 1, "f")
    await c.rpc(l.Tlink(0, 1, "hard"))


# What needs which right, as protocol.md 2.10 has it.
NEEDS: dict[str, tuple[Rights, Ask]] = {
    "walk": (R.TRAVERSE, lambda c: c.walk(0, 1, "f")),
    "open for reading": (R.READ, opened(0, lambda fid: m.Tread(fid, 0, 1))),
    "open for writing": (R.WRITE, opened(1, lambda fid: m.Twrite(fid, 0, b"x"))),
    "open with O_TRUNC": (R.WRITE, on_file(lambda fid: l.Tlopen(fid, l.L_TRUNC))),
    "list": (R.ENUM, listed),
    "statfs": (R.GETATTR, lambda c: c.rpc(l.Tstatfs(0))),
    "chmod": (R.SETATTR, on_file(lambda fid: l.Tsetattr(fid, l.SETATTR_MODE, 0o600))),
    "truncate": (R.WRITE, on_file(lambda fid: l.Tsetattr(fid, l.SETATTR_SIZE, size=0))),
    "create": (R.CREATE, lambda c: c.rpc(l.Tlcreate(0, "new", 2 | l.L_CREATE | l.L_EXCL, 0o644, 0))),
    "mkdir": (R.CREATE, lambda c: c.rpc(l.Tmkdir(0, "new", 0o755, 0))),
    "symlink": (R.CREATE, lambda c: c.rpc(l.Tsymlink(0, "new", "f", 0))),
    "link": (R.LINK, linked),
    "unlink": (R.REMOVE, lambda c: c.rpc(l.Tunlinkat(0, "f", 0))),
    "rename": (R.RENAME, lambda c: c.rpc(l.Trenameat(0, "f", 0, "g"))),
    "lock": (R.LOCK, opened(2, lambda fid: l.Tlock(fid, F_WRLCK, 0, 0, 0, 1, "me"))),
    "read an attribute": (R.XATTR, on_file(lambda fid: l.Txattrwalk(fid, 9, ""))),
}
CHANGES_NOTHING = ("walk", "open for reading", "list", "statfs", "read an attribute")


async def prepared(c: RawClient) -> None:
    await c.file(1, "f", b"content", perm=0o666)
    await c.clunk(1)


async def asked(what: str, rights: int, refused: type[E.FileError] | None = None) -> None:
    """Ask it as a superuser with only these rights; it is done, or refused so."""
    root = ram.tree()
    async with serving(root) as server:
        await prepared(await server.client())
        c = server.connect(policy=Policy(trust_uname=True, rights=rights))
        await c.version()
        await c.attach()
        with nullcontext() if refused is None else refuses(refused):
            await NEEDS[what][1](c)


@pytest.mark.parametrize("what", NEEDS)
async def test_an_operation_without_its_right_is_refused_and_with_it_is_done(what: str) -> None:
    await asked(what, ALL)
    right = NEEDS[what][0]
    if right is not R.TRAVERSE:  # without which there is not even an attach
        await asked(what, ALL & ~int(right), E.Eperm)


async def test_without_the_right_to_traverse_there_is_not_even_an_attach_and_nothing_is_found() -> None:
    async with serving(ram.tree()) as server:
        c = server.connect(policy=Policy(trust_uname=True, rights=ALL & ~int(R.TRAVERSE)))
        await c.version()
        with refuses(E.Enonexist):
            await c.attach()
        other = await server.client()
        [fid] = [session.fids.get(0) for session in server.node.sessions if len(session.fids)]
        fid.call = Call(fid.call.principal.narrowed(ALL & ~int(R.TRAVERSE)))
        with refuses(E.Enonexist):
            await other.walk(0, 1, "f")


@pytest.mark.parametrize("what", NEEDS)
async def test_who_may_change_nothing_reads_that_the_file_system_is_read_only(what: str) -> None:
    if what in CHANGES_NOTHING:
        await asked(what, READONLY)
    else:
        await asked(what, READONLY, E.Erofs)


@pytest.mark.parametrize("what", NEEDS)
async def test_without_the_gate_every_right_is_given(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it is the one gate that refuses, and the tree that would not."""
    monkeypatch.setattr(checks, "need", lambda call, right: None)
    await asked(what, 0)


@pytest.mark.feature("session-fids")
async def test_rights_hold_in_the_old_dialects_too() -> None:
    for dialect in ("9P2000", "9P2000.u"):
        async with serving(ram.tree()) as server:
            await prepared(await server.client())
            c = server.connect(policy=Policy(trust_uname=True, rights=READONLY))
            await c.version(dialect)
            await c.attach()
            for fid, ask in enumerate((m.Topen(1, 1), m.Tremove(1), m.Twstat(1, StatRecord(perm=0o600)))):
                await c.walk(0, 1, "f")
                with refuses(E.Erofs):
                    await c.rpc(ask)
                if fid != 1:
                    await c.clunk(1)
            await c.walk(0, 2)
            with refuses(E.Erofs):
                await c.rpc(m.Tcreate(2, "d", DMDIR | 0o755, 0))


def test_rights_only_narrow() -> None:
    who = Principal("u", 1000, 1000, rights=ALL, proof="local")
    less = who.narrowed(READONLY)
    assert less.rights == READONLY
    assert less.narrowed(ALL) == less, "nothing is ever added"
    assert who.narrowed(int(R.READ)).narrowed(int(R.WRITE)).rights == 0
    assert not Principal("root", 0, 0, rights=READONLY, proof="local").is_superuser, "ADMIN is a right like any other"
    with pytest.raises(AttributeError):
        less.rights = ALL  # type: ignore[misc]  # it is frozen
    with pytest.raises(AttributeError):
        Call(less).principal = who  # type: ignore[misc]  # likewise


async def test_two_attaches_of_one_connection_keep_their_own_rights() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        await prepared(c)
        await c.rpc(m.Tattach(50, NOFID, "root", "", 0))
        [session] = server.node.sessions
        fid, other = session.fids.get(0), session.fids.get(50)
        other.call = Call(fid.call.principal.narrowed(READONLY))
        with refuses(E.Erofs):
            await c.rpc(l.Tmkdir(50, "d", 0o755, 0))
        await c.walk(50, 51, "f")
        with refuses(E.Erofs):
            await c.open(51, 1)
        await c.rpc(l.Tmkdir(0, "d", 0o755, 0))
