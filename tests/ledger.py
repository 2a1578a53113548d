"""The ledger: which features and numbered claims are shown by which tests.  Knows the markers, and nothing of ninep.

The rows are in docs/features.toml and docs/conformance.toml, the evidence is the markers of the tests; from the two are
made docs/features.md, docs/conformance.md and src/ninep/features.json (which /dev/features reads).
    python tests/ledger.py --write | --check | --missing      [--root DIR]
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("conformance", "hostile", "sec", "feature")
NAMES_SHOWN = 3  # enough to find the test; a row with 200 names would change with every commit

Evidence = dict[tuple[str, str], list[str]]  # (kind, number or id) -> names of tests, in order of collection


class LedgerError(Exception):
    """A marker that names nothing, or tests that cannot be collected."""


@dataclass
class Rows:
    """What the two tables say."""

    groups: dict[str, Any]  # of docs/features.toml
    claims: dict[str, Any]  # of docs/conformance.toml, by kind

    @classmethod
    def read(cls, root: Path) -> Rows:
        """The rows of the tree at root; an id in two groups is an error."""
        groups = tomllib.loads((root / "docs/features.toml").read_text())
        ids = [i for group in groups.values() for i in group["features"]]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise LedgerError(f"docs/features.toml: in two groups: {', '.join(twice)}")
        return cls(groups, tomllib.loads((root / "docs/conformance.toml").read_text()))

    def keys(self) -> set[tuple[str, str]]:
        """Everything that a marker may name."""
        claims = {(kind, number) for kind, table in self.claims.items() for number in table["claims"]}
        return claims | {("feature", i) for group in self.groups.values() for i in group["features"]}


# --- collecting


@dataclass(eq=False)
class Collector:
    """A pytest plugin: the markers of all tests, without running any."""

    evidence: Evidence = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for kind in KINDS:
                for mark in item.iter_markers(kind):
                    try:
                        note(self.evidence, kind, mark.args, item.nodeid.split("[")[0])
                    except LedgerError as e:
                        self.refused.append(str(e))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)
        elif report.failed:
            self.errors.append(f"{report.nodeid}\n{report.longreprtext}")


def note(evidence: Evidence, kind: str, args: tuple[Any, ...], test: str) -> None:
    """Enter one marker; refuses one that says nothing."""
    if not args:
        raise LedgerError(f"{test}: the marker {kind} names nothing")
    for arg in args:
        names = evidence.setdefault((kind, str(arg)), [])
        if test not in names:
            names.append(test)


def collect(root: Path, *, allow_errors: bool = False) -> Evidence:
    """What the tests at root show.  A module that skips itself here is read instead of imported, so that the documents
    do not depend on what this machine has.  Raises LedgerError when a module fails to import, unless allow_errors."""
    plugin, out = Collector(), io.StringIO()
    args = ["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(root)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.chdir(root):
        code = pytest.main([*args, str(root / "tests")], plugins=[plugin])
    if plugin.refused:
        raise LedgerError("\n".join(plugin.refused))
    if plugin.errors and not allow_errors:
        raise LedgerError("these tests cannot be collected:\n" + "\n".join(plugin.errors))
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not plugin.errors:
        raise LedgerError(f"pytest could not collect the tests:\n{out.getvalue()}")
    for nodeid in [*plugin.skipped, *(error.split("\n")[0] for error in plugin.errors)]:
        if (root / nodeid).is_file():
            read_markers(root, nodeid, plugin.evidence)
    return plugin.evidence


def read_markers(root: Path, nodeid: str, evidence: Evidence) -> None:
    """Enter the markers of a module that could not be imported, from its text: those with plain arguments."""
    module = ast.parse((root / nodeid).read_text())
    for test in ast.walk(module):
        if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) and test.name.startswith("test"):
            for decorator in test.decorator_list:
                for kind, args in marks_in(decorator):
                    note(evidence, kind, args, f"{nodeid}::{test.name}")


def marks_in(tree: ast.AST) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each `mark.KIND(constants)` in an expression."""
    for call in ast.walk(tree):
        match call:
            case ast.Call(func=ast.Attribute(attr=kind), args=args) if kind in KINDS:
                yield kind, tuple(arg.value for arg in args if isinstance(arg, ast.Constant))


# --- controls


def span(first: int, last: int) -> range:
    """Both ends included."""
    return range(first, last + 1)


# The abuse cases whose tests must show the attack as well: a test that no attack could fail proves nothing.
CONTROLLED = (*span(21, 45), *span(49, 57), *span(59, 65), *span(70, 76), 79, *span(94, 97), 100, 101, 104, 107, 138,
              *span(140, 142))  # fmt: skip
# In a docstring or a comment; "No control: ..." in a docstring says why there is none.
CONTROL = re.compile(r"\bcontrol\b(?! char)", re.IGNORECASE)
CONTROL_COMMENT = re.compile(r"#.*\b(the|negative) control\b", re.IGNORECASE)


def is_control(name: str, docstring: str, text: str) -> bool:
    """Whether a test shows an attack with its guard removed, or says why nothing can be removed."""
    if name.startswith("test_without") or "control" in name:
        return True
    return bool(CONTROL.search(docstring) or CONTROL_COMMENT.search(text))


def uncontrolled(root: Path) -> list[int]:
    """The cases of CONTROLLED without a control.  The tests are read, not imported: it takes no time."""
    shown: set[object] = set()
    for path in sorted((root / "tests").rglob("test_*.py")):
        text = path.read_text()
        module = ast.parse(text)
        lines = text.splitlines()
        of_all = [
            s.value for s in module.body if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "pytestmark"
        ]
        for test in ast.walk(module):
            if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
                body = "\n".join(lines[test.lineno - 1 : test.end_lineno])
                if is_control(test.name, ast.get_docstring(test) or "", body):
                    marks = (mark for place in (*of_all, *test.decorator_list) for mark in marks_in(place))
                    shown.update(number for kind, args in marks if kind == "sec" for number in args)
    return [number for number in CONTROLLED if number not in shown]


# --- writing


def shown_by(names: list[str]) -> str:
    """The first names of tests, as a cell of a table."""
    cell = ", ".join(f"`{name.removeprefix('tests/')}`" for name in names[:NAMES_SHOWN])
    return cell + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")


MADE = "<!-- Made by `./check docs` from {source} and the markers of the tests; changes here are lost. -->\n"


def features_page(rows: Rows, evidence: Evidence) -> str:
    """docs/features.md."""
    ids = [i for group in rows.groups.values() for i in group["features"]]
    shown = sum(("feature", i) in evidence for i in ids)
    lines = ["# Features", "", MADE.format(source="docs/features.toml")]
    lines += [
        f"{shown} of {len(ids)} are shown by a test; the others are planned. A node says the same in `/dev/features`."
    ]
    for group in rows.groups.values():
        lines += ["", f"## {group['title']}", "", "| id | state | what | shown by |", "|---|---|---|---|"]
        for i, what in group["features"].items():
            names = evidence.get(("feature", i), [])
            lines.append(f"| {i} | {'shown' if names else 'planned'} | {what} | {shown_by(names)} |")
    return "\n".join(lines) + "\n"


def conformance_page(rows: Rows, evidence: Evidence) -> str:
    """docs/conformance.md."""
    lines = ["# Conformance", "", MADE.format(source="docs/conformance.toml")]
    lines += ["What a peer may rely on, what a hostile peer gets, which abuse leads nowhere."]
    for kind, table in rows.claims.items():
        claims, missing = table["claims"], missing_of(kind, table, evidence)
        lines += ["", f"## {table['title']}", "", f"{len(claims) - len(missing)} of {len(claims)} have a test."]
        for number, claim in claims.items():
            if title := table["sections"].get(number):
                lines += ["", f"### {title}", "", "| | claim | shown by |", "|---|---|---|"]
            cell = shown_by(evidence.get((kind, number), [])) or "NO TEST"
            lines.append(f"| {table['prefix']}{number} | {claim} | {cell} |")
    return "\n".join(lines) + "\n"


def missing_of(kind: str, table: dict[str, Any], evidence: Evidence) -> list[str]:
    """The numbers of one table that no test shows."""
    return [f"{table['prefix']}{number}" for number in table["claims"] if (kind, number) not in evidence]


def features_file(rows: Rows, evidence: Evidence) -> str:
    """src/ninep/features.json: one row a line, so that two branches rarely collide."""
    lines = []
    for group in rows.groups.values():
        for i in group["features"]:
            names = [name.removeprefix("tests/") for name in evidence.get(("feature", i), [])][:NAMES_SHOWN]
            lines.append(json.dumps({"id": i, "state": "shown" if names else "planned", "evidence": names}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def pages(root: Path, evidence: Evidence) -> dict[Path, str]:
    """Every generated file with its content.  Raises LedgerError for a marker that names no row."""
    rows = Rows.read(root)
    if unknown := sorted(evidence.keys() - rows.keys()):
        names = "\n".join(f"  {kind}({key}): {', '.join(evidence[kind, key])}" for kind, key in unknown)
        raise LedgerError(f"markers that name no row of docs/features.toml or docs/conformance.toml:\n{names}")
    return {
        root / "docs/features.md": features_page(rows, evidence),
        root / "docs/conformance.md": conformance_page(rows, evidence),
        root / "src/ninep/features.json": features_file(rows, evidence),
    }


def missing(root: Path, evidence: Evidence) -> dict[str, list[str]]:
    """The numbered claims without a test, by the title of their table; tables that are complete are left out."""
    found = {t["title"]: missing_of(kind, t, evidence) for kind, t in Rows.read(root).claims.items()}
    return {title: numbers for title, numbers in found.items() if numbers}


def main(argv: list[str] | None = None) -> int:
    """0 when all is well; 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    for flag in ("--write", "--check", "--missing"):
        what.add_argument(flag, action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT)
    args = parser.parse_args(argv)
    try:
        evidence = collect(args.root, allow_errors=args.write)
        made = pages(args.root, evidence)
        gaps = missing(args.root, evidence)
    except LedgerError as e:
        print(f"ledger: {e}", file=sys.stderr)
        return 1
    if args.missing:
        for title, numbers in gaps.items():
            print(f"{title}: no test for {', '.join(numbers)}")
        return 1 if gaps else 0
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if args.write:
        for path in stale:
            path.write_text(made[path])
        return 0
    for path in stale:
        print(f"ledger: out of date, run `./check docs`: {path.relative_to(args.root)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
