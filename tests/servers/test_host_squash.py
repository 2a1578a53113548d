"""Whose authority a squashed export lends: the server's to its own user, and to others only what the bits say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ninep.edges.users import principal_of
from ninep.file import Call, File
from ninep.node import Node
from ninep.principal import NOBODY, Principal
from ninep.proto import errors as E
from ninep.proto.types import ORDWR, OREAD, OTRUNC, Change
from ninep.servers import host, host_node
from ninep.session import Session

STRANGER = principal_of(54_321, "peercred")


def attempts(directory: Path, who: Principal) -> dict[str, type[E.FileError] | None]:
    """What this principal is refused in an export of a private and a public file."""
    import trio

    found: dict[str, type[E.FileError] | None] = {}

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            class Sink:
                def reply(self, key: int, message: object) -> None: ...
                def refuse(self, key: int, error: E.FileError) -> None: ...
                def cancelled(self, key: int) -> None: ...

            session: Session[object] = Session(Node(), host.tree(directory), nursery, Sink())
            call = Call(who)

            def attempt(name: str, *path: str, omode: int = -1, change: Change | None = None, create: str = "") -> None:
                root = session.attach(call, "")
                assert not isinstance(root, File)
                try:
                    _, fid = session.walk(call, root, path)  # type: ignore[misc,arg-type]  # a local disk answers at once
                    if fid is None:
                        raise E.Eperm("stopped on the way")
                    if create:
                        session.create(call, fid, create, 0o644, ORDWR, inherit=False, exclusive=True)
                    elif change is not None:
                        session.wstat(call, fid, change)
                    else:
                        session.open(call, fid, omode)
                    found[name] = None
                    session.clunk(fid)
                except E.FileError as e:
                    found[name] = type(e)

            attempt("read public", "public", omode=OREAD)
            attempt("write public", "public", omode=ORDWR)
            attempt("truncate public", "public", omode=ORDWR | OTRUNC)
            attempt("chmod public", "public", change=Change(perm=0o600))
            attempt("read private", "private", omode=OREAD)
            attempt("walk closed", "closed", "x", omode=OREAD)
            attempt("create", create="new")
            await session.end()

    trio.run(main)
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "public").write_text("for all to read")
    (tmp_path / "public").chmod(0o644)
    (tmp_path / "private").write_text("for its owner")
    (tmp_path / "private").chmod(0o600)
    (tmp_path / "closed").mkdir(0o700)
    (tmp_path / "closed/x").write_text("x")
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.mark.feature("host-uid-policy")
@pytest.mark.sec(47)
@pytest.mark.parametrize("who", [NOBODY, STRANGER], ids=["none", "another user"])
def test_whoever_is_not_the_servers_user_gets_what_the_bits_give_others(directory: Path, who: Principal) -> None:
    found = attempts(directory, who)
    assert found.pop("read public") is None
    assert set(found.values()) <= {E.Eperm, E.Enotallowed}, found


@pytest.mark.feature("host-uid-policy")
def test_the_servers_own_user_may_what_the_kernel_lets_it(directory: Path) -> None:
    found = attempts(directory, principal_of(os.geteuid(), "peercred"))
    assert set(found.values()) == {None}, found


@pytest.mark.sec(47)
def test_without_the_question_a_stranger_would_act_as_the_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_node.Node, "_acts_as_asked", lambda self, call: True)
    assert set(attempts(directory, NOBODY).values()) == {None}
