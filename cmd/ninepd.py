"""ninepd: the daemon, one node."""

from __future__ import annotations

import sys

from ninep_cmd import hygiene

hygiene.trim_path()

from ninep.cli.main import program  # noqa: E402  # only what is installed may be found, so the path comes first


def main() -> int:
    """Run `ninepd ARGS`; the exit code."""
    return program("ninepd", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
