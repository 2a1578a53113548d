"""Runs the programs of this checkout as a user does: as processes, with a deadline."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

from servers import program

SECONDS_MAX = 20.0


@dataclass
class Ran:
    """One finished run."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output as one object."""
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        """Standard output as one object per line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def error(self) -> Any:
        """Standard error as one object."""
        return json.loads(self.err)


def run(name: str, *args: str, stdin: str | bytes = b"", env: dict[str, str] | None = None, **options: Any) -> Ran:
    """Run a program of this checkout to its end."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [program(name), *args],
        input=data,
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
        env={**os.environ, **(env or {})},
        **options,
    )
    return Ran(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="replace"))


def ninep(*args: str, **options: Any) -> Ran:
    return run("ninep", *args, **options)


def one_line(err: str) -> str:
    """Standard error, which must be exactly one line that is no traceback."""
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    return err.rstrip("\n")
