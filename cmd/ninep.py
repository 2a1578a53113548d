"""ninep: the front program.  Everything it does is a verb in ninep.cli."""

from __future__ import annotations

import sys

from ninep_cmd import hygiene

hygiene.trim_path()

from ninep.cli.main import front  # noqa: E402  # only what is installed may be found, so the path comes first


def main() -> int:
    """Run `ninep ARGS`; the exit code."""
    return front(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
