"""pyroute2's 9P2000 server as a process: a few files, and one that calls a function.  Prints its address."""

import asyncio
import socket

from pyroute2 import Plan9ServerSocket


def add(a: int, b: int) -> int:
    return a + b


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    server = Plan9ServerSocket(address=("127.0.0.1", port))
    server.filesystem.create("hello", data="hello from pyroute2\n")
    server.register_function(add, server.filesystem.create("add"))
    task = await server.async_run()
    print(f"9p://127.0.0.1:{port}", flush=True)
    await task


if __name__ == "__main__":
    asyncio.run(main())
