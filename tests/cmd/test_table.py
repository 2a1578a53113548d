"""Help, manual and completions say what the table says, and what they show exists."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ninep, run
from servers import program

from ninep.cli import complete, man, parse
from ninep.cli.table import Verb
from ninep.cli.verbs import VERBS, shown

pytestmark = pytest.mark.feature("cli-completion-man")

VISIBLE = [pytest.param(verb, id=verb.name) for verb in VERBS if not verb.is_hidden]


@pytest.mark.parametrize("verb", VISIBLE)
def test_help_is_short_and_begins_with_three_examples_that_parse(verb: Verb) -> None:
    lines = parse.help_of(verb).splitlines()
    assert len(lines) <= parse.HELP_LINES_MAX
    assert max(map(len, lines)) <= 120
    assert len(verb.examples) == 3
    assert lines[3] == ""
    assert lines[-1] == f"man {verb.title.replace(' ', '-')}"
    for (command, _), line in zip(verb.examples, lines):
        assert line.startswith(command)
        parse.parse(verb, example_words(verb, command))


def example_words(verb: Verb, command: str) -> list[str]:
    """The arguments of the program in an example: without pipes, redirections and its own name."""
    text = re.sub(r'.*\| *|^eval "\$\(|\)"$|[<>][^ ]+', "", command)
    words = shlex.split(text)
    assert words[0] == verb.program
    return words[1:] if verb.program != "ninep" else words[2:]


@pytest.mark.parametrize("verb", [pytest.param(verb, id=verb.name) for verb in VERBS])
def test_every_verb_of_the_table_has_a_function(verb: Verb) -> None:
    module, _, function = verb.run.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert ninep(verb.name, "--help").code == (0 if verb.program == "ninep" else 2)


def test_the_front_help_lists_every_verb_and_no_other() -> None:
    ran = ninep("--help")
    assert ran.code == 0
    assert len(ran.out.splitlines()) <= parse.HELP_LINES_MAX
    listed = re.findall(r"^  (\w+) ", ran.out, re.MULTILINE)
    assert listed == [verb.name for verb in shown()]
    assert run("ninepd", "--help").out.endswith("man ninepd\n")
    assert ninep("help", "cat").out == ninep("cat", "-h").out


def test_the_man_pages_in_the_checkout_are_what_the_table_says(repository: Path) -> None:
    there = {path.name: path.read_text() for path in (repository / "docs/man").iterdir()}
    assert there == man.pages()
    done = subprocess.run([sys.executable, "docs/generate/man.py", "--check"], cwd=repository, timeout=20, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["ninep.1", "ninep-serve.1", "ninep-write.1", "ninepd.8", "mount.fuse.ninep.8"])
def test_a_man_page_formats_without_a_warning(name: str, tmp_path: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("needs the program groff")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-z"], input=man.pages()[name], text=True, capture_output=True, timeout=20,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_one_that_its_shell_reads(shell: str, tmp_path: Path) -> None:
    script = complete.script(shell)
    assert ninep("completion", shell).out == script
    for verb in shown():
        assert verb.name in script
    if shutil.which(shell) is None:
        pytest.skip(f"needs the program {shell}")
    (tmp_path / "script").write_text(script)
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ninep", "ch"], {"chmod"}),
        (["ninep", "cat", "--js"], {"--json"}),
        (["ninep", "mount", "--engine", ""], {"dev", "pyfuse3"}),
        (["ninep", "serve", "ra"], {"ram:"}),
        (["ninep", "completion", "z"], {"zsh"}),
        (["ninepd", "--exp"], {"--export"}),
    ],
)
def test_bash_completes(typed: list[str], offered: set[str], tmp_path: Path) -> None:
    words = " ".join(shlex.quote(word) for word in typed)
    script = (
        f"{complete.script('bash')}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _ninep;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True
    )
    assert set(done.stdout.split()) == offered


def test_ninep_without_colour_where_it_is_not_wanted() -> None:
    ran = ninep("doctor", env={"NO_COLOR": "1"})
    assert "\x1b" not in ran.out


@pytest.mark.feature("client-no-trio")
def test_client_verbs_start_without_trio(tmp_path: Path) -> None:
    for words in (["cat", "/x"], ["ls"], ["write", "/x", "y"], ["stat", "/x"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", program("ninep"), *words],
            capture_output=True, text=True, timeout=20, check=False,
            env={**os.environ, "NINEP_NODE": f"9p+unix://{tmp_path}/none"},
        )  # fmt: skip
        modules = {
            line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time")
        }
        assert not modules & {"trio", "ninep.session", "ssl", "subprocess", "tomllib"}, words
