"""Imports go down only, bans hold, and the checker that says so is seen to refuse what it should."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import layers
import pytest

pytestmark = pytest.mark.feature("layers-enforced")

VERBS = ["ls", "cat", "read", "write", "create", "stat", "rm", "mkdir", "mv", "cp", "tail", "chmod"]


def test_imports_go_down_only_and_every_ban_holds() -> None:
    bad = [*layers.init_files(layers.ROOT), *layers.check(layers.modules(layers.ROOT))]
    assert not bad, "\n" + "\n".join(map(str, bad))


def module(name: str, text: str) -> layers.Module:
    return layers.Module(name, name.replace(".", "/") + ".py", text, ast.parse(text), False)


REST = [
    module(name, "")
    for name in (
        "ninep.proto.types", "ninep.limits", "ninep.file", "ninep.synth", "ninep.session", "ninep.servers.ram",
        "ninep.servers.host_node", "ninep.kernelfs.dev", "ninep.edges.stream", "ninep.namespace.table", "ninep",
    )
]  # fmt: skip


def verdict(name: str, text: str) -> list[str]:
    """What the checker says about one made-up module among the rest."""
    return [f"{v.line}: {v.sentence}" for v in layers.check([*REST, module(name, text)])]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("ninep.proto.bad", "import trio", "does not import trio"),
        ("ninep.proto.bad", "from os import path", "does not import os"),
        ("ninep.proto.bad", "from ninep.limits import Limits", "go down only"),
        ("ninep.proto.bad", "from ..limits import Limits", "go down only"),
        ("ninep.proto.bad", "def f():\n    from ..file import File", "go down only"),
        ("ninep.proto.bad", "if TYPE_CHECKING:\n    from ninep.file import File", "go down only"),
        ("ninep.observe", "from .proto import types", "imports nothing of ours"),
        ("ninep.file", "from . import session", "go down only"),
        ("ninep.session", "from .edges import stream", "go down only"),
        ("ninep.servers.bad", "from ..session import Session", "does not know who serves it"),
        ("ninep.servers.bad", "from ninep.namespace.table import Table", "does not know who serves it"),
        ("ninep.servers.bad", "from . import ram", "trees do not know each other"),
        ("ninep.kernelfs.bad", "from ..servers.ram import tree", "trees do not know each other"),
        ("ninep.edges.bad", "from ..servers import ram", "an edge serves any tree"),
        ("ninep.edges.bad", "import ninep", "the public face is for users"),
        ("ninep.session", "import ninep_cmd.ninep", "go down only"),
        ("ninep.helpers", "", "stands in no row"),
        ("ninep.servers.bad", "import pickle", "imported nowhere"),
        ("ninep.edges.bad", "import asyncio", "imported nowhere"),
        ("ninep.edges.bad", "eval(text)", "nothing is evaluated"),
        ("ninep_cmd.bad", "subprocess.run(line, shell=True)", "no shell"),
        ("ninep_cmd.bad", "os.system(line)", "no shell"),
        ("ninep.servers.host_bad", "os.path.realpath(p)", "never uses a path string"),
        ("ninep.servers.host", "open(p)", "never uses a path string"),
        ("ninep.servers.host", "os.open(p, flags)", "without dir_fd"),
        ("ninep.servers.host", "os.rename(a, b)", "without dir_fd"),
        ("ninep.servers.host", "def f(path): os.chmod(path, b'/proc/self/x')", "without dir_fd"),
    ],
)
def test_the_checker_refuses(name: str, text: str, words: str) -> None:
    (said,) = verdict(name, text)
    assert words in said
    assert said.startswith(f"{text.count(chr(10)) + 1}: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ninep.proto.good", "import struct\nfrom .types import Qid"),
        ("ninep.limits", "import msgspec\nfrom .proto import types"),
        ("ninep.servers.host", "from .host_node import Node\nfrom ..synth import text\nfrom ..file import Dir"),
        (
            "ninep.servers.host",
            "os.open(name, flags, dir_fd=parent)\nos.stat(fd)\nos.open(f'/proc/self/fd/{fd}', flags)",
        ),
        ("ninep.servers.host", "os.open(root, flags)  # allowed: the export's root, opened once, by its owner's word"),
        ("ninep.servers.host", "path = b'/proc/self/fd/%d' % x.fd\nos.chmod(path, mode)\nos.stat(x.here().fd)"),
        ("ninep.servers.host_sys", "open('/proc/thread-self/status')\nopen(f'/proc/self/fdinfo/{fd}')"),
        ("ninep.edges.good", "from ..session import Session\nfrom ..namespace import table\nimport trio"),
        ("ninep_cmd.good", "from ninep.servers import ram\nfrom ninep.edges import stream\nimport ninep"),
    ],
)
def test_the_checker_lets_pass(name: str, text: str) -> None:
    assert verdict(name, text) == []


def test_a_cycle_is_found_even_when_it_hides_in_a_function() -> None:
    one = module("ninep.edges.one", "from . import two")
    two = module("ninep.edges.two", "def f():\n    from .three import x")
    three = module("ninep.edges.three", "if TYPE_CHECKING:\n    from .one import y")
    (said,) = {str(v) for v in layers.check([*REST, module("ninep.edges", ""), one, two, three])}
    assert "ninep.edges.one -> ninep.edges.two -> ninep.edges.three -> ninep.edges.one" in said


def test_no_init_file_in_cmd_or_tests(tmp_path: Path) -> None:
    (tmp_path / "cmd").mkdir()
    assert layers.init_files(tmp_path) == []
    (tmp_path / "cmd/__init__.py").touch()
    assert [v.path for v in layers.init_files(tmp_path)] == ["cmd/__init__.py"]


def imported(code: str, cwd: Path) -> set[str]:
    """The modules that a fresh Python has loaded after running this code."""
    code += "\nimport sys; print('\\nLOADED', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=50,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED ")[2].split())


def test_the_wire_needs_nothing_but_msgspec(tmp_path: Path) -> None:
    ours = [m.name for m in layers.modules(layers.ROOT) if m.name.startswith("ninep.proto")]
    loaded = imported("".join(f"import {name}\n" for name in ours), tmp_path)
    third = {"trio", "cryptography", "outcome", "sniffio", "attr", "pyfuse3"}
    assert loaded & {*third, "socket", "asyncio", "subprocess"} == set()


PUBLIC = """
import importlib, types, ninep
for name in {modules!r}:
    importlib.import_module(name)
from ninep import *
hidden = [name for name in ninep.__all__ if isinstance(globals()[name], types.ModuleType)]
assert not hidden, f"public names hidden by modules of the same name: {{hidden}}"
"""


def test_no_public_name_is_hidden_by_a_module_that_was_imported_before(tmp_path: Path) -> None:
    ours = [m.name for m in layers.modules(layers.ROOT) if m.name.startswith("ninep.") and "__main__" not in m.name]
    imported(PUBLIC.format(modules=[name for name in ours if "pyfuse3" not in name]), tmp_path)


@pytest.mark.feature("client-no-trio")
def test_the_blocking_client_starts_without_trio(tmp_path: Path) -> None:
    loaded = imported("import ninep.edges.blocking", tmp_path)
    assert loaded & {"trio", "asyncio", "cryptography", "ssl"} == set()


RUN_VERBS = """
import contextlib, io, sys
from ninep_cmd.ninep import main
for verb in {verbs!r}:
    sys.argv = ["ninep", verb, {url!r}] + ([{url!r}] if verb in ("mv", "cp") else ["600"] if verb == "chmod" else [])
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main()
        except SystemExit as e:
            code = e.code
    assert code, f"{{verb}} of nothing succeeded"
"""


@pytest.mark.feature("client-no-trio")
def test_client_verbs_start_without_trio(tmp_path: Path) -> None:
    loaded = imported(RUN_VERBS.format(verbs=VERBS, url=f"9p+unix://{tmp_path}/nobody"), tmp_path)
    assert loaded & {"trio", "asyncio", "cryptography"} == set()


@pytest.mark.sec(140)
def test_SEC_140_modules_planted_in_the_working_directory_are_not_imported(tmp_path: Path) -> None:
    for name in ("trio", "ssl", "msgspec", "sitecustomize", "argparse"):
        (tmp_path / f"{name}.py").write_text(f"open('owned', 'w').write({name!r})\nraise SystemExit(9)\n")
    (tmp_path / "x.pth").write_text("import os; open('owned', 'w')\n")
    for name in ("ninep", "ninepd"):
        program = Path(sys.executable).with_name(name)
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        env["PYTHONSTARTUP"] = str(tmp_path / "trio.py")
        done = subprocess.run([program, "--help"], cwd=tmp_path, env=env, capture_output=True, timeout=50)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "owned").exists()
    # The control: a program that looks in its working directory does import what lies there.
    done = subprocess.run([sys.executable, "-c", "import trio"], cwd=tmp_path, capture_output=True, timeout=50)
    assert done.returncode == 9
    assert (tmp_path / "owned").exists()
