"""The ledger counts what tests show and refuses what they make up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ledger
import pytest

from ninep.features import features

pytestmark = pytest.mark.feature("features-ledger")


def ran(*args: str) -> subprocess.CompletedProcess[str]:
    """The ledger in a process of its own: pytest does not run inside pytest."""
    command = [sys.executable, str(Path(ledger.__file__)), *args]
    env = dict(os.environ)
    if "--root" in args:  # the small project needs no plugins, and starts three times as fast without
        env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, env=env)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_generated_documents_are_up_to_date() -> None:
    done = ran("--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_numbered_claim_has_a_test() -> None:
    done = ran("--missing")
    assert done.returncode == 0, "\n" + done.stdout + done.stderr


def test_every_abuse_case_has_a_negative_control() -> None:
    missing = ledger.uncontrolled(ledger.ROOT)
    assert not missing, "no test_without_..., and none that names its control: " + ", ".join(
        f"SEC-{n}" for n in missing
    )


def test_what_counts_as_a_control(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_x.py").write_text(
        "import pytest\n"
        "@pytest.mark.sec(21)\ndef test_without_a_guard(): pass\n"
        '@pytest.mark.sec(22)\ndef test_b():\n    """The control: it works."""\n'
        '@pytest.mark.sec(23)\nasync def test_c():\n    """No control: it is the kernel that refuses."""\n'
        '@pytest.mark.sec(24)\ndef test_d():\n    """Of control characters."""\n'
        "@pytest.mark.sec(25)\ndef test_e():\n    pass  # the control\n"
        "@pytest.mark.sec(26)\ndef test_f():\n    pass  # in control\n"
    )
    (tmp_path / "tests/test_y.py").write_text(
        "import pytest\npytestmark = pytest.mark.sec(27)\ndef test_with_its_control(): pass\n"
    )
    shown = {21, 22, 23, 25, 27}
    assert ledger.uncontrolled(tmp_path) == [number for number in ledger.CONTROLLED if number not in shown]


def test_features_are_read_at_run_time() -> None:
    rows = features()
    groups = ledger.Rows.read(ledger.ROOT).groups
    assert {row.id for row in rows} >= {"ram-tree", "proto-9p2000"}
    assert len(rows) == len({row.id for row in rows})
    assert sum(len(group["features"]) for group in groups.values()) > 60
    assert all(row.line().split(" ")[:2] == [row.id, row.state] for row in rows)
    assert all((row.state == "shown") == bool(row.evidence) for row in rows)


TESTS = """
import pytest
pytestmark = pytest.mark.feature("whole-module")
@pytest.mark.conformance(1, 2)
@pytest.mark.feature("one")
def test_a(): pass
@pytest.mark.parametrize("x", [pytest.param(n, marks=pytest.mark.conformance(n)) for n in (2, 3)])
def test_b(x): pass
class TestC:
    @pytest.mark.feature("one")
    async def test_d(self): pass
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with the same places for things."""
    for name in ("docs", "tests", "src/ninep"):
        (tmp_path / name).mkdir(parents=True)
    markers = "\n".join(f"    {kind}(*args): x" for kind in ledger.KINDS)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = --strict-markers\nmarkers =\n{markers}\n")
    (tmp_path / "tests/test_x.py").write_text(TESTS)
    features = '[g]\ntitle = "G"\n[g.features]\none = "first"\ntwo = "second"\nwhole-module = "third"\n'
    (tmp_path / "docs/features.toml").write_text(features)
    claims = '[conformance]\ntitle = "C"\nprefix = "C"\n[conformance.sections]\n1 = "S"\n[conformance.claims]\n'
    (tmp_path / "docs/conformance.toml").write_text(claims + '1 = "x"\n2 = "y"\n3 = "z"\n4 = "w"\n')
    return tmp_path


def test_what_the_markers_show_is_written(checkout: Path) -> None:
    assert ran("--check", "--root", str(checkout)).returncode == 1
    assert ran("--write", "--root", str(checkout)).returncode == 0
    assert ran("--check", "--root", str(checkout)).returncode == 0
    features = (checkout / "docs/features.md").read_text()
    assert "| one | shown | first | `test_x.py::test_a`, `test_x.py::TestC::test_d` |" in features
    assert "| two | planned | second |  |" in features
    assert "| whole-module | shown | third |" in features
    claims = (checkout / "docs/conformance.md").read_text()
    assert "| C2 | y | `test_x.py::test_a`, `test_x.py::test_b` |" in claims
    assert "| C4 | w | NO TEST |" in claims
    assert "3 of 4 have a test." in claims
    assert '{"id": "two", "state": "planned", "evidence": []}' in (checkout / "src/ninep/features.json").read_text()
    gaps = ran("--missing", "--root", str(checkout))
    assert (gaps.returncode, gaps.stdout) == (1, "C: no test for C4\n")


def test_a_new_test_makes_the_documents_stale(checkout: Path) -> None:
    ran("--write", "--root", str(checkout))
    with open(checkout / "tests/test_x.py", "a") as f:
        f.write('@pytest.mark.feature("two")\ndef test_e(): pass\n')
    done = ran("--check", "--root", str(checkout))
    assert done.returncode == 1
    assert "docs/features.md" in done.stderr


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ('feature("made-up")', "feature(made-up)"),
        ("conformance(5)", "conformance(5)"),
        ("hostile(1)", "hostile(1)"),
        ("feature()", "names nothing"),
    ],
)
def test_a_marker_that_names_no_row_is_refused(checkout: Path, marker: str, words: str) -> None:
    (checkout / "tests/test_y.py").write_text(f"import pytest\n@pytest.mark.{marker}\ndef test_f(): pass\n")
    done = ran("--write", "--root", str(checkout))
    assert done.returncode == 1
    assert words in done.stderr + done.stdout


def test_a_module_that_skips_itself_counts_all_the_same(checkout: Path) -> None:
    text = 'import pytest\npytest.importorskip("no_such_module")\n@pytest.mark.feature("two")\ndef test_g(): pass\n'
    (checkout / "tests/test_z.py").write_text(text)
    assert ran("--write", "--root", str(checkout)).returncode == 0
    assert "| two | shown | second | `test_z.py::test_g` |" in (checkout / "docs/features.md").read_text()


def test_a_module_that_cannot_be_imported_fails_the_check(checkout: Path) -> None:
    ran("--write", "--root", str(checkout))
    (checkout / "tests/test_z.py").write_text("import no_such_module\n")
    done = ran("--check", "--root", str(checkout))
    assert done.returncode == 1
    assert "no_such_module" in done.stderr
