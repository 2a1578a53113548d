"""Makes docs/man from the table of verbs; `./check docs` calls it."""

from __future__ import annotations

import sys
from pathlib import Path

from ninep.cli.man import pages

HERE = Path(__file__).resolve().parent.parent / "man"


def main(argv: list[str]) -> int:
    """--write the pages, or --check that they are what the table says."""
    wanted = pages()
    there = {path.name: path.read_text() for path in HERE.glob("*.[18]")}
    if argv == ["--check"]:
        stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        for name in stale:
            print(f"docs/man/{name}: not what the table of verbs says; ./check docs writes it", file=sys.stderr)
        return 1 if stale else 0
    HERE.mkdir(exist_ok=True)
    for name in there.keys() - wanted.keys():
        (HERE / name).unlink()
    for name, text in wanted.items():
        (HERE / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
