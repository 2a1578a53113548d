"""A synthetic tree to be measured: a ctl file and a state file."""

from __future__ import annotations

from ninep import synth


class Counter(synth.Dir):
    """`echo add N >ctl` adds, `cat state` tells."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @synth.text()
    def state(self) -> str:
        """The sum."""
        return f"{self.total}\n"

    @synth.ctl
    def add(self, n: int) -> None:
        """add N"""
        self.total += n


def tree() -> Counter:
    return Counter()
