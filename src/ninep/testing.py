"""Tools for tests of trees and servers: a conformance kit for any author's tree, and a simulated world.

    async def test_my_tree() -> None:
        await check_tree(my.tree, creates=True)

`check_tree` asks a tree, through the interface of ninep.file alone, everything that edges and namespaces rely on.
`checks()` lists the promises with the sentences that explain them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Protocol

import trio

from . import testing_read, testing_write
from .env import Env
from .file import Call, Dir
from .testing_kit import ROWS, Row, Tree, Wrong, awaited, superuser

CHECK_SECONDS_MAX = 20.0  # a liveness bound for one check, not a measurement
EPOCH_NS = 1_700_000_000 * 10**9


async def check_tree(
    make: Callable[[], Dir | Coroutine[Any, Any, Dir]],
    *,
    writable: bool | None = None,
    creates: bool = False,
    blocks: bool = False,
    judges: bool = True,
    call: Call | None = None,
    skip: Collection[str] = (),
) -> None:
    """Run every check that fits on a fresh tree each; AssertionError lists each promise that was broken.

    `make` gives a new tree, or a coroutine that will.  What the tree cannot do is declared: `creates` (the caller may
    create in the root), `writable` (wstat and opens for writing may be tried on what is there; as `creates` unless
    told), `blocks` (it has streams, whose reads park), `judges` (File.access follows the permission bits; False where a
    host or a remote server judges).  `call` asks, the superuser unless told.  `skip` names checks that do not apply.
    Takes up to 20 s for one check; a check that takes longer is a failure.
    """
    unknown = set(skip) - {row.name for row in ROWS}
    if unknown:
        raise ValueError(f"no such check: {', '.join(sorted(unknown))}")
    declared = {
        "": True,
        "creates": creates,
        "writable": creates if writable is None else writable,
        "blocks": blocks,
        "judges": judges,
    }
    broken = []
    for row in ROWS:
        if row.name in skip or not declared[row.needs]:
            continue
        root = await awaited(make())
        tree = Tree(
            root,
            call or superuser(),
            writable=declared["writable"],
            creates=creates,
            blocks=blocks,
            judges=judges,
        )
        if creates and not row.needs:
            await tree.populate()
        told = await _failure(row, tree)
        if told:
            broken.append(told)
    if broken:
        raise Wrong("\n".join([f"{len(broken)} of the promises in ninep.file are broken:", *broken]))


def checks() -> dict[str, str]:
    """The name of each check and what it promises."""
    return {row.name: (row.run.__doc__ or "").strip() for row in ROWS}


async def _failure(row: Row, tree: Tree) -> str | None:
    """What went wrong, in an author's words, or None."""
    with trio.move_on_after(CHECK_SECONDS_MAX) as scope:
        try:
            await row.run(tree)
        except Exception as e:
            said = str(e) if isinstance(e, Wrong) else f"{type(e).__name__} escaped: {e}"
            return _told(row, said)
    return _told(row, f"not done after {CHECK_SECONDS_MAX:.0f} s") if scope.cancelled_caught else None


def _told(row: Row, said: str) -> str:
    return f"  {row.name}: {said}\n    promised: {(row.run.__doc__ or '').strip()}"


class Clock(Protocol):
    """What SimEnv asks of a clock; trio.testing.MockClock is one."""

    def current_time(self) -> float: ...


class SimEnv(Env):
    """A world with a virtual clock and seeded randomness: the same seed gives the same run.

    With a `clock` (trio.testing.MockClock) time is that clock's, so timeouts of trio and times of files agree; without,
    it stands until `advance`.  Every time_ns is above the one before it, so that file times are distinct.
    `random` is predictable, which is the point: never use it outside a test.
    """

    def __init__(self, seed: int = 0, clock: Clock | None = None) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._clock = clock
        self._advanced_ns = 0
        self._last_ns = 0

    def now_ns(self) -> int:
        run_ns = 0 if self._clock is None else int(self._clock.current_time() * 10**9)
        return run_ns + self._advanced_ns

    def time_ns(self) -> int:
        self._last_ns = max(self._last_ns + 1, EPOCH_NS + self.now_ns())
        return self._last_ns

    def random(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def advance(self, seconds: float) -> None:
        """Let time pass; with a clock, beside what that clock tells."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self._advanced_ns += int(seconds * 10**9)

    def __repr__(self) -> str:
        return f"SimEnv(seed={self.seed})"


_TABLES = (testing_read, testing_write)  # imported for the rows they enter

__all__ = ["Clock", "SimEnv", "check_tree", "checks"]
