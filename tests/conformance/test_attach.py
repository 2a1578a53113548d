"""protocol.md 3.4: attach, authentication files, and what a claim is worth."""

from __future__ import annotations

import os
import posixpath

import pytest
from raw9p import RawClient, Refused, Serving, serving

from ninep.answer import Answer
from ninep.edges.policy import AuthHandle, Peer, Policy
from ninep.edges.users import principal_of
from ninep.file import Call
from ninep.namespace.namespace import Namespace
from ninep.proto import dotl as l
from ninep.proto import messages as m
from ninep.proto.types import NOFID, NONUNAME, QTAUTH
from ninep.servers import ram

ALICE, BOB = 54_321, 54_322


class Password(AuthHandle):
    """A one-message protocol: whoever writes the password is who he said he is."""

    def __init__(self, uid: int) -> None:
        self.uid = uid

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        if bytes(data) == b"secret":
            self.principal = principal_of(self.uid, "password")
        return len(data)

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        return b"welcome" if self.principal else b""


class Passwords:
    def start(self, peer: Peer, uname: str, aname: str) -> AuthHandle:
        return Password({"alice": ALICE, "bob": BOB}[uname])


async def authenticated(c: RawClient, afid: int = 9, uname: str = "alice") -> None:
    reply = await c.rpc(m.Tauth(afid, uname, "", NONUNAME))
    assert reply.aqid.type & QTAUTH
    await c.write(afid, b"secret")


def locked(server: Serving) -> RawClient:
    return server.connect(policy=Policy(authenticator=Passwords()))


@pytest.mark.conformance(42)
async def test_an_attach_needs_a_free_fid_that_is_not_nofid() -> None:
    async with serving(ram.tree()) as server:
        c = await server.client()
        for fid in (0, NOFID):
            with pytest.raises(Refused):
                await c.attach(fid)
        await c.attach(1)


@pytest.mark.conformance(43)
async def test_an_attach_without_the_required_authentication_is_refused_and_its_fid_stays_free() -> None:
    async with serving(ram.tree()) as server:
        c = locked(server)
        await c.version()
        with pytest.raises(Refused) as refused:
            await c.attach(1)
        assert refused.value.errno == 13
        await authenticated(c)
        await c.rpc(m.Tattach(1, 9, "alice", "", NONUNAME))


@pytest.mark.conformance(44)
@pytest.mark.parametrize("dialect", ["9P2000", "9P2000.u", "9P2000.L"])
async def test_auth_that_nobody_configured_is_refused_and_its_afid_stays_free(dialect: str) -> None:
    async with serving(ram.tree()) as server:
        c = await server.client(dialect)
        with pytest.raises(Refused) as refused:
            await c.rpc(m.Tauth(1, "root", ""))
        assert refused.value.errno == 2 or "authentication not required" in refused.value.ename
        await c.attach(1)


@pytest.mark.conformance(45)
@pytest.mark.hostile(40)
async def test_an_auth_fid_is_only_read_written_and_clunked() -> None:
    async with serving(ram.tree()) as server:
        c = locked(server)
        await c.version()
        await authenticated(c)
        for message in (
            m.Twalk(9, 10, ()),
            m.Twalk(9, 10, ("x",)),
            l.Tlopen(9, 0),
            l.Tlcreate(9, "x", 0o102, 0o644, 0),
            l.Tgetattr(9, 1),
            l.Treaddir(9, 0, 100),
            l.Tmkdir(9, "x", 0o755, 0),
        ):
            with pytest.raises(Refused):
                await c.rpc(message)
        assert await c.read(9) == b"welcome"
        with pytest.raises(Refused):
            await c.rpc(m.Tremove(9))
        await c.rpc(m.Tauth(9, "alice", ""))


@pytest.mark.conformance(46)
@pytest.mark.hostile(40)
async def test_an_afid_that_is_unfinished_or_for_another_user_or_tree_or_no_afid_is_refused() -> None:
    tree = ram.tree()
    async with serving(Namespace(tree, anames={"a": tree})) as server:
        c = locked(server)
        await c.version()
        await c.rpc(m.Tauth(8, "alice", ""))
        await authenticated(c)
        for afid, uname, aname, n_uname in (
            (8, "alice", "", NONUNAME),
            (9, "bob", "", NONUNAME),
            (9, "alice", "a", NONUNAME),
            (9, "alice", "", 0),
            (77, "alice", "", NONUNAME),
        ):
            with pytest.raises(Refused):
                await c.rpc(m.Tattach(1, afid, uname, aname, n_uname))
        await c.rpc(m.Tattach(1, 9, "alice", "", NONUNAME))
        with pytest.raises(Refused):
            await c.rpc(m.Tattach(2, 1, "alice", "", NONUNAME))


@pytest.mark.conformance(47, 48)
async def test_a_finished_afid_serves_two_attaches_and_dies_with_the_session() -> None:
    async with serving(ram.tree(perm=0o777)) as server:
        c = locked(server)
        await c.version()
        await authenticated(c)
        for fid in (1, 2):
            await c.rpc(m.Tattach(fid, 9, "alice", "", NONUNAME))
        await c.clunk(9)
        assert (await c.rpc(l.Tgetattr(1, l.GETATTR_BASIC))).mode & 0o777 == 0o777
        await c.walk(1, 3)
        await c.create(3, "hers")
        assert (await c.rpc(l.Tgetattr(3, l.GETATTR_BASIC))).uid == ALICE
        await authenticated(c)
        await c.version()
        with pytest.raises(Refused):
            await c.rpc(m.Tattach(1, 9, "alice", "", NONUNAME))


@pytest.mark.conformance(52)
async def test_a_proof_serves_only_where_for_whom_and_while_it_was_made() -> None:
    async with serving(ram.tree()) as server:
        c, other = locked(server), locked(server)
        await c.version()
        await other.version()
        await authenticated(c)
        attach = m.Tattach(1, 9, "alice", "", NONUNAME)
        with pytest.raises(Refused):
            await other.rpc(attach)  # the same bytes on another connection
        await other.rpc(m.Tauth(9, "alice", ""))
        with pytest.raises(Refused):
            await other.rpc(attach)  # begun there, and not finished
        with pytest.raises(Refused):
            await c.rpc(m.Tattach(1, 9, "bob", "", NONUNAME))  # changed
        await c.rpc(attach)
        await c.clunk(9)
        with pytest.raises(Refused):
            await c.rpc(m.Tattach(2, 9, "alice", "", NONUNAME))  # late


@pytest.mark.conformance(49)
@pytest.mark.parametrize(
    ("peer", "n_uname", "uid"),
    [(ALICE, NONUNAME, ALICE), (ALICE, ALICE, ALICE), (ALICE, 0, None), (ALICE, BOB, None), (0, BOB, BOB)],
)
async def test_a_claim_that_differs_from_the_proof_is_refused_unless_root_makes_it(
    peer: int, n_uname: int, uid: int | None
) -> None:
    async with serving(ram.tree(perm=0o777)) as server:
        c = server.connect(Peer("unix", peer, peer, 1, "peercred"), Policy())
        await c.version()
        if uid is None:
            with pytest.raises(Refused) as refused:
                await c.attach(0, "root", n_uname)
            assert refused.value.errno == 13
            return
        await c.attach(0, "root", n_uname)
        await c.walk(0, 1)
        await c.create(1, "mine")
        assert (await c.rpc(l.Tgetattr(1, l.GETATTR_BASIC))).uid == uid


async def test_where_nothing_is_proven_every_attach_is_none_whatever_it_claims() -> None:
    async with serving(ram.tree(perm=0o755)) as server:
        c = server.connect(policy=Policy())
        await c.version()
        await c.attach(0, "root", 0)
        await c.walk(0, 1)
        with pytest.raises(Refused) as refused:
            await c.create(1, "f")
        assert refused.value.errno == 13


@pytest.mark.conformance(50)
@pytest.mark.sec(25)
async def test_an_aname_is_matched_exactly() -> None:
    tree, other = ram.tree(), ram.tree()
    async with serving(Namespace(tree, anames={"other": other, "/srv/x": other})) as server:
        c = await server.client(attach=False)
        await c.attach(0)
        await c.attach(1, aname="/")
        for fid, aname in ((2, "other"), (3, "/srv/x")):
            assert (await c.attach(fid, aname=aname)).qid == other.qid
        for aname in ("../x", "//", "other/", "./other", "OTHER", "/srv/x/", "/srv//x", "оther", "other\u200b", "/etc"):
            with pytest.raises(Refused) as refused:
                await c.attach(4, aname=aname)
            assert refused.value.errno == 2


@pytest.mark.sec(25)
async def test_without_the_exact_match_other_spellings_select_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Namespace.attach
    monkeypatch.setattr(Namespace, "attach", lambda space, call, aname: exact(space, call, posixpath.normpath(aname)))
    tree, other = ram.tree(), ram.tree()
    async with serving(Namespace(tree, anames={"other": other, "/srv/x": other})) as server:
        c = await server.client(attach=False)
        for fid, aname in enumerate(("other/", "./other", "x/../other", "/srv//x")):
            assert (await c.attach(fid, aname=aname)).qid == other.qid


@pytest.mark.conformance(51)
async def test_two_identities_on_one_connection_are_checked_separately() -> None:
    async with serving(ram.tree(perm=0o777)) as server:
        c = await server.client(attach=False)
        await c.attach(0, "", ALICE)
        await c.attach(1, "", BOB)
        await c.file(2, "hers", b"x", root=0, perm=0o600)
        await c.walk(1, 3, "hers")
        with pytest.raises(Refused) as refused:
            await c.open(3)
        assert refused.value.errno == 13
        await c.walk(0, 4, "hers")
        await c.open(4)


def test_a_name_that_nobody_has_never_becomes_root() -> None:
    policy = Policy(trust_uname=True)
    for uname in ("", "no-such-user", "0x0", "00000000000", "-0", "４"):
        who = policy.principal(Peer(), uname, NONUNAME)
        assert (who.uid != 0, who.is_superuser) == (True, False), uname
    assert policy.principal(Peer(), "root", NONUNAME).uid == 0
    assert Policy().principal(Peer("u", os.getuid(), os.getgid(), 1, "peercred"), "root", NONUNAME).uid == os.getuid()
