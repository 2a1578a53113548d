"""sd_notify(3): tell the service manager how the start goes.  Nothing happens where there is none."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send `state` (such as READY=1) to $NOTIFY_SOCKET.  Never fails: a service manager that is gone is no reason."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), "\0" + path[1:] if path[0] == "@" else path)
        except OSError:
            pass
