"""A remote 9P tree as a Dir, over one connection under trio.

    async with connect("9p://host/?aname=/srv") as client:
        file = await settle(client.root.walk(call, "motd"))

`connect` keeps the connection's tasks in a nursery of its own, `open_client` in one of the caller's.  When the
connection is lost every operation fails at once; nothing is dialled again here.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ninep.edges import client_ops as ops
from ninep.edges.client_core import Core, negotiate, own_name
from ninep.edges.client_mux import Mux
from ninep.edges.client_tree import RemoteDir
from ninep.edges.dial import Address, Link, connect_link_trio, parse
from ninep.edges.wire import PipeWire, SocketWire, Wire
from ninep.limits import DEFAULT, Limits
from ninep.proto import errors as E
from ninep.proto.types import NONUNAME, QTDIR


class Client(Mux):
    """An attached connection.  `root` is the remote tree; `close` hangs up."""

    root: RemoteDir

    async def attach(self, aname: str = "") -> RemoteDir:
        """The root of another tree of the same server, as the same user.  May block; raises what the server answers."""
        n_uname = os.getuid() if self.core.uname == own_name() else NONUNAME
        fid, qid = await self.run(ops.attach(self.core, aname, n_uname))
        if not qid.type & QTDIR:
            self.clunk_soon(fid)
            raise E.Enotdir(aname)
        return RemoteDir(self, fid, qid)


@asynccontextmanager
async def connect(
    address: Address | str,
    *,
    uname: str | None = None,
    aname: str | None = None,
    dialect: str | None = None,
    limits: Limits = DEFAULT,
) -> AsyncIterator[Client]:
    """Dial, agree on a dialect, attach; hang up at the end.  What is None comes from the address.

    Raises the FileError that fits: Econnrefused, Etimedout, Eproto, or what the server answered.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            client = await open_client(nursery, address, uname=uname, aname=aname, dialect=dialect, limits=limits)
            try:
                yield client
            finally:
                client.close()
        except Exception as e:
            failure = e  # the nursery's own tasks never fail: a group of one would only hide what it is
    if failure is not None:
        raise failure


async def open_client(
    nursery: trio.Nursery,
    address: Address | str,
    *,
    uname: str | None = None,
    aname: str | None = None,
    dialect: str | None = None,
    limits: Limits = DEFAULT,
) -> Client:
    """As connect, for a connection that lives as long as the nursery or until `close`."""
    where = parse(address) if isinstance(address, str) else address
    link = await connect_link_trio(where, limits)
    try:
        return await on_wire(
            nursery,
            _wire(link, where.text),
            uname=uname if uname is not None else where.uname,
            aname=where.aname if aname is None else aname,
            dialect=where.dialect if dialect is None else dialect,
            msize_bytes=where.msize_bytes,
            limits=limits,
            link=link,
        )
    except E.Ehungup as e:
        raise await trio.to_thread.run_sync(link.hung_up, e) from None


async def on_wire(
    nursery: trio.Nursery,
    wire: Wire,
    *,
    uname: str | None = None,
    aname: str = "",
    dialect: str = "auto",
    msize_bytes: int = 0,
    limits: Limits = DEFAULT,
    link: Link | None = None,
) -> Client:
    """A Client on a wire that is connected already, and is owned from now on."""
    name = uname if uname is not None else own_name()
    client = Client(wire, Core(trio.current_time, limits, uname=name, msize_bytes=msize_bytes), link)
    nursery.start_soon(client.serve)
    try:
        await client.run(negotiate(client.core, dialect))
        client.root = await client.attach(aname)
    except BaseException:
        client.close()
        raise
    return client


def _wire(link: Link, peer: str) -> Wire:
    return SocketWire(link.sock, peer) if link.sock is not None else PipeWire(*link.fds, peer)
