"""mount.fuse.ninep: what mount(8) runs for `mount -t fuse.ninep` and for such a line in fstab."""

from __future__ import annotations

import sys

from ninep_cmd import hygiene

hygiene.trim_path()

from ninep.cli.mounthelper import helper  # noqa: E402  # only what is installed may be found, so the path comes first


def main() -> int:
    """Run `mount.fuse.ninep SRC DIR [-sfnv] [-o OPTS]`; the exit code."""
    return helper(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
