"""ninep: a userspace Plan 9 for Linux.  The names that an author of a file server needs; nothing is defined here.

Imported on first use, so that a program that only wants the codec or the blocking client does not pay for trio.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ninep.answer import Answer, settle
    from ninep.edges.listen import serve
    from ninep.edges.policy import Policy
    from ninep.file import Call, File, Handle, Symlink
    from ninep.limits import Limits
    from ninep.node import Node
    from ninep.principal import Principal, Rights
    from ninep.synth import Dir, clone, ctl, events, text

_HOMES = {
    "Answer": "ninep.answer",
    "Call": "ninep.file",
    "Dir": "ninep.synth",
    "File": "ninep.file",
    "Handle": "ninep.file",
    "Limits": "ninep.limits",
    "Node": "ninep.node",
    "Policy": "ninep.edges.policy",
    "Principal": "ninep.principal",
    "Rights": "ninep.principal",
    "Symlink": "ninep.file",
    "clone": "ninep.synth",
    "ctl": "ninep.synth",
    "events": "ninep.synth",
    "serve": "ninep.edges.listen",
    "settle": "ninep.answer",
    "text": "ninep.synth",
}


def __getattr__(name: str) -> Any:  # the type of each name is declared above
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ninep' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


__all__ = [
    "Answer",
    "Call",
    "Dir",
    "File",
    "Handle",
    "Limits",
    "Node",
    "Policy",
    "Principal",
    "Rights",
    "Symlink",
    "clone",
    "ctl",
    "events",
    "serve",
    "settle",
    "text",
]
