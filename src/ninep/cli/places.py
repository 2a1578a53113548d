"""Where things are on this machine: the node's socket, the state directory.  Never a predictable path in /tmp."""

from __future__ import annotations

import os


def runtime_dir() -> str:
    """Where the node's socket is: /run/ninep for root, else in $XDG_RUNTIME_DIR or /run/user/UID (SEC-141)."""
    if os.geteuid() == 0:
        return "/run/ninep"
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return os.path.join(base, "ninep")


def node_socket() -> str:
    return os.path.join(runtime_dir(), "node.sock")


def state_dir(named: str = "") -> str:
    """Where keys are kept: as named, NINEP_STATE, /var/lib/ninep for root, else below $XDG_STATE_HOME."""
    if named or (named := os.environ.get("NINEP_STATE", "")):
        return os.path.abspath(named)
    if os.geteuid() == 0:
        return "/var/lib/ninep"
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".local", "state")
    return os.path.join(base, "ninep")


def config_file() -> str:
    """NINEP_CONFIG, else the file in $XDG_CONFIG_HOME/ninep; root's is in /etc/ninep."""
    if named := os.environ.get("NINEP_CONFIG"):
        return named
    if os.geteuid() == 0:
        return "/etc/ninep/config.toml"
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.environ.get("HOME", "/"), ".config")
    return os.path.join(base, "ninep", "config.toml")
