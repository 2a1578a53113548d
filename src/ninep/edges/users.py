"""User and group names beside their numbers, looked up once: the passwd and group files as every edge sees them.

An unknown name never becomes a number that somebody has, and above all never 0 (rsync's CVE-2026-53798).
"""

from __future__ import annotations

import functools
import grp
import os
import pwd

from ninep.principal import NOBODY, Principal, local_principal
from ninep.proto.types import UNKNOWN_ID

NAMES_MAX = 4096  # a bound for what strangers may make us remember


@functools.lru_cache(NAMES_MAX)
def user_name(uid: int) -> str:
    """The login name, or the number in digits."""
    if uid == UNKNOWN_ID:
        return "none"
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


@functools.lru_cache(NAMES_MAX)
def group_name(gid: int) -> str:
    if gid == UNKNOWN_ID:
        return "none"
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)


def user_number(name: str) -> int:
    """The uid of a login name or of digits; UNKNOWN_ID if there is none."""
    return _number(name, _user)


def group_number(name: str) -> int:
    return _number(name, _group)


@functools.lru_cache(NAMES_MAX)
def _user(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


@functools.lru_cache(NAMES_MAX)
def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _number(name: str, look: functools._lru_cache_wrapper[int]) -> int:
    if not name or "\0" in name:
        return UNKNOWN_ID
    try:
        return look(name)
    except (KeyError, UnicodeEncodeError, OverflowError):
        pass
    if name.isascii() and name.isdigit() and len(name) <= 10 and int(name) < UNKNOWN_ID:
        return int(name)
    return UNKNOWN_ID


def principal_of(uid: int, proof: str, gid: int | None = None) -> Principal:
    """A local user by number, with the groups that login would give; `gid` if the caller knows a better one."""
    if uid == UNKNOWN_ID:
        return NOBODY
    name, main, groups = _account(uid)
    return local_principal(uid, main if gid is None else gid, groups, name, proof)


@functools.lru_cache(NAMES_MAX)
def _account(uid: int) -> tuple[str, int, frozenset[int]]:
    try:
        entry = pwd.getpwuid(uid)
    except (KeyError, OverflowError):
        return str(uid), UNKNOWN_ID, frozenset()
    return entry.pw_name, entry.pw_gid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
