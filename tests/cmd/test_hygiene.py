"""SEC-140: nothing is imported from the current directory, whatever lies there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ninep, run
from servers import program

pytestmark = pytest.mark.sec(140)

MODULES = ("ninep", "ninep_cmd", "trio", "ssl", "msgspec", "argparse", "json", "sitecustomize", "usercustomize")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A directory whose modules leave a mark when they are imported."""
    directory = tmp_path / "trap"
    directory.mkdir()
    text = f"open({str(tmp_path / 'sprung')!r}, 'a').write(__name__)\n"
    for name in MODULES:
        (directory / f"{name}.py").write_text(text)
    (directory / "evil.pth").write_text(f"import trio{os.linesep}")
    return directory


def sprung(trap: Path) -> bool:
    return (trap.parent / "sprung").exists()


@pytest.mark.parametrize("argv", [["ninep", "--help"], ["ninep", "ls"], ["ninep", "config", "show"],
                                  ["ninep", "serve", "py:no_such_module:tree", "--listen", "stdio"],
                                  ["ninepd", "--help"], ["mount.fuse.ninep"]])  # fmt: skip
@pytest.mark.parametrize("pythonpath", [None, "", ":", ".", ":/nowhere"])
def test_sec_140_the_programs_import_nothing_from_here(trap: Path, argv: list[str], pythonpath: str | None) -> None:
    env = {"PYTHONSTARTUP": str(trap / "trio.py"), "NINEP_NODE": "9p+unix:///nowhere/s"}
    if pythonpath is not None:
        env["PYTHONPATH"] = pythonpath
    if pythonpath in (":", ".", ":/nowhere"):
        # Python itself imports sitecustomize and whatever it shadows before any program of ours runs: the user's say.
        for name in ("sitecustomize", "usercustomize", "ninep_cmd", "ninep", "argparse", "json"):
            (trap / f"{name}.py").unlink()
    run(argv[0], *argv[1:], cwd=trap, env=env)
    assert not sprung(trap), (trap.parent / "sprung").read_text()


@pytest.mark.parametrize("guarded", [True, False])
def test_sec_140_negative_control_without_the_guard_the_trap_springs(trap: Path, guarded: bool) -> None:
    for name in MODULES:
        if name not in ("trio", "ssl"):
            (trap / f"{name}.py").unlink()
    guard = "" if guarded else "from ninep_cmd import hygiene; hygiene.trim_path = lambda: None; "
    code = (
        f"import sys; {guard}sys.argv = ['ninep', 'serve', 'ram:', '--listen', 'stdio'];"
        " from ninep_cmd.ninep import main; main()"
    )
    env = {**os.environ, "PYTHONPATH": ":/nowhere"}
    subprocess.run(
        [sys.executable, "-c", code], cwd=trap, env=env, timeout=20, check=False, capture_output=True, input=b""
    )
    assert sprung(trap) is not guarded


def test_sec_140_a_tree_module_comes_from_the_current_directory_only_when_its_path_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import ninep\n\ndef tree():\n    return ninep.Dir()\n")
    ran = ninep("serve", "py:mine:tree", "--listen", "stdio", cwd=tmp_path)
    assert ran.code == 3
    assert "py:./mine.py" in ran.err
    assert ninep("serve", "py:./mine.py:tree", "--listen", "stdio", cwd=tmp_path).code == 0


def test_the_console_script_is_the_installed_one() -> None:
    assert Path(program("ninep")).is_file()
