"""The units name programs, options and files that exist, and systemd itself has nothing to say about them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import program

from ninep.cli import parse
from ninep.cli.verbs import BY_NAME

pytestmark = pytest.mark.feature("systemd")

UNITS = sorted((Path(__file__).parents[2] / "packaging/systemd").rglob("*.service"))


@pytest.mark.parametrize("unit", [pytest.param(u, id="/".join(u.parts[-2:])) for u in UNITS])
def test_the_commands_of_a_unit_parse(unit: Path) -> None:
    commands = re.findall(r"^Exec(?:Start|Stop)=(.*)$", unit.read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command)
        name = Path(words[0]).name
        verb = BY_NAME[name if name == "ninepd" else words[1]]
        parse.parse(verb, words[1 if name == "ninepd" else 2 :])


def test_systemd_reads_them_without_a_complaint(tmp_path: Path, needs_tool: Callable[[str], str]) -> None:
    tool = needs_tool("systemd-analyze")
    for unit in (*UNITS, *UNITS[0].parents[0].glob("*.socket")):
        if "user" in unit.parts:
            continue
        text = unit.read_text()
        for name in ("ninepd", "ninep"):
            text = text.replace(f"/usr/bin/{name} ", f'"{program(name)}" ')
        (tmp_path / unit.name.replace("@.", "@x.")).write_text(text)
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run([tool, "verify", "--man=no", *names], capture_output=True, text=True, timeout=30, check=False)
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "ninep" in line]
    assert complaints == []
