"""Makes docs/protocol.md and docs/errors.md from the tables of ninep.proto; `./check docs` calls it."""

from __future__ import annotations

import sys

from ninep.proto.describe import main

sys.exit(main(sys.argv[1:]))
