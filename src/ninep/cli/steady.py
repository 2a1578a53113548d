"""What a process does before it serves for long.  Knows no tree and no wire."""

from __future__ import annotations

import gc

NEW_OBJECTS = 20_000  # between two collections; Python's 700 are a few lookups


def settle_in() -> None:
    """What has been imported stays: it is never looked through for garbage again, and new objects less often.

    A server's requests leave next to no cycles behind; looking for them took a tenth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 20, 20)
