"""The features ledger at run time: what is shown by a test, and by which.  Made by the tests; knows nothing of them.

features.json is written by `./check docs` from docs/features.toml and the markers of the tests; it is read on demand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

_FILE = Path(__file__).with_name("features.json")


class Feature(msgspec.Struct, frozen=True):
    """One row: its id, whether a test shows it, and the names of the first such tests."""

    id: str
    state: Literal["shown", "planned"]
    evidence: tuple[str, ...] = ()

    def line(self) -> str:
        """The row as one line of /dev/features: id, state, evidence."""
        return " ".join((self.id, self.state, *self.evidence))


def features() -> list[Feature]:
    """All rows, in the order of the ledger.  Reads a small file, so it may block for as long as the disk does."""
    return msgspec.json.decode(_FILE.read_bytes(), type=list[Feature])
