"""`python -m interop.guest_run PLAN`: every check of the table on every mount that the plan names, inside the guest.

The plan is JSON: mounts below /run/m, each with its dialect, cache mode and tree.
"""

from __future__ import annotations

import os
import sys

# To import these two is to enter their checks, in this order: single calls first, then what makes many of them.
from interop import guest_checks, guest_loads  # noqa: F401
from interop.guest_kit import CHECKS, run_plan

__all__ = ["CHECKS"]

if __name__ == "__main__":
    os.umask(0o022)
    run_plan(sys.argv[1])
