"""Makes docs/compatibility.md from the table that the tests run (tests/compat.py); `./check docs` calls it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from compat import FOLLOWERS, PROGRAMS, READERS, SQLITE_MODES, SQLITE_NO, TREES, WRITERS, No, Program  # noqa: E402

DOCUMENT = ROOT / "docs" / "compatibility.md"
HEAD = """# Programs on mounted trees

Made by `./check docs` from `tests/compat.py`.  Every cell of this page is a test: a script that the real program runs
on the real mount, and that either works or fails as the reason says.

| tree | what it is |
|---|---|
"""
SYNTHETIC = """
## Synthetic files

A state file is read whole, of one moment and never empty, by: {readers}.

A line reaches a ctl file once by: {writers}.

A stream is followed by:

"""


class Notes:
    """The reasons, numbered in the order in which they are first needed."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def number(self, no: No) -> int:
        if no.reason not in self.reasons:
            self.reasons.append(no.reason)
        return self.reasons.index(no.reason) + 1


def main(argv: list[str]) -> int:
    """--write the document, or --check that it is what the table says."""
    text = document()
    if argv == ["--check"]:
        if not DOCUMENT.exists() or DOCUMENT.read_text() != text:
            print("docs/compatibility.md: not what tests/compat.py says; ./check docs writes it", file=sys.stderr)
            return 1
        return 0
    DOCUMENT.write_text(text)
    return 0


def document() -> str:
    notes = Notes()
    text = HEAD + "".join(row((tree, what)) for tree, what in TREES.items())
    text += "\n## Files and directories\n\n" + table("program", PROGRAMS, tuple(TREES), notes)
    text += "\n## sqlite\n\nTwo writers, a reader, and a writer killed in the middle of a transaction.\n\n"
    modes = [Program(f"`{mode}`: {what}", "", no=SQLITE_NO) for mode, what in SQLITE_MODES.items()]
    text += table("journal mode", modes, tuple(TREES), notes)
    text += SYNTHETIC.format(readers=listed(READERS), writers=listed(WRITERS))
    text += table("program", FOLLOWERS, ("stream",), notes)
    text += "\n## What cannot work, and why\n\n"
    return text + "".join(f"{n}. {reason[0].upper()}{reason[1:]}.\n" for n, reason in enumerate(notes.reasons, 1))


def table(title: str, programs: Sequence[Program], columns: tuple[str, ...], notes: Notes) -> str:
    text = row((title, *columns)) + "|---" * (len(columns) + 1) + "|\n"
    return text + "".join(row((p.name, *(cell(p, column, notes) for column in columns))) for p in programs)


def cell(program: Program, column: str, notes: Notes) -> str:
    if column in program.no and (column in program.where or column not in TREES):
        return f"no ({notes.number(program.no[column])})"
    return "yes" if column in program.where or column not in TREES else "–"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
