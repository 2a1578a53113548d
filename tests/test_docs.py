"""The examples of README.md and docs/*.md do what they show; generated documents are what the code says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import examples
import pytest
import servers

pytestmark = pytest.mark.feature("docs-executed")

GENERATED = {"features.md", "conformance.md"}
DOCUMENTS = [
    path
    for path in (*examples.ROOT.glob("*.md"), *examples.ROOT.glob("docs/**/*.md"))
    if path.name not in GENERATED and examples.blocks(path.read_text())
]


@pytest.mark.timeout(180)
@pytest.mark.slow
@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(examples.ROOT))) for p in sorted(DOCUMENTS)])
def test_the_examples_do_what_they_show(path: Path, tmp_path: Path) -> None:
    assert examples.run(path.read_text(), tmp_path) > 0


def fenced(info: str, *lines: str) -> str:
    return "\n".join(["text", f"```{info}", *lines, "```", "more text", ""])


GOOD = {
    "output": fenced("sh test", "$ echo one; echo two", "one", "two"),
    "wildcards": fenced("sh test", "$ seq 5; echo pid 17 is here", "1", "...", "5", "pid ... is here"),
    "state is kept between blocks": fenced("sh test", "$ x=5; cd /") + fenced("sh test", "$ echo $x $PWD", "5 /"),
    "more lines": fenced("sh test", "$ for i in a b; do", "> echo $i", "> done", "a", "b"),
    "a failure that is shown": fenced("sh test", "$ echo no >&2; false  # exit 1", "no"),
    "a script": fenced("sh test", "cd /tmp", "true && echo anything at all"),
    "a program": fenced("python test", "assert 1 + 1 == 2"),
    "a file": fenced("python file=hello.py", "print('hello')") + fenced("sh test", "$ python hello.py", "hello"),
    "a server left behind": fenced("sh test", "$ sleep 100 &", "$ echo started", "started"),
    "unmarked": fenced("sh", "$ false") + fenced("text", "nonsense") + fenced("", "nonsense"),
}


@pytest.mark.parametrize("document", [pytest.param(text, id=name) for name, text in GOOD.items()])
def test_a_document_passes(document: str, tmp_path: Path) -> None:
    examples.run(document, tmp_path)


BAD = {
    "other output": (fenced("sh test", "$ echo one", "two"), "shows:\ntwo\nit printed:\none"),
    "more output": (fenced("sh test", "$ echo one; echo two", "one"), "it printed:\none\ntwo"),
    "output not shown": (fenced("sh test", "$ echo oops"), "oops"),
    "a failure": (fenced("sh test", "$ echo why; exit 4 | false"), "exit code 1, not 0"),
    "an unexpected success": (fenced("sh test", "$ true  # exit 2"), "exit code 0, not 2"),
    "a failing script": (fenced("sh test", "false"), "exit code 1"),
    "a failing program": (fenced("python test", "assert 1 + 1 == 3"), "AssertionError"),
    "after a failure": (fenced("sh test", "$ false", "$ echo two", "two"), "line 3: \\$ false"),
    "an unknown language": (fenced("cobol test", "DISPLAY 'x'"), "no way to run"),
}


@pytest.mark.parametrize(("document", "words"), [pytest.param(*case, id=name) for name, case in BAD.items()])
def test_a_document_that_shows_something_else_fails(document: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(examples.ExampleFailed, match=words):
        examples.run(document, tmp_path)


RUNNER = """
import pathlib, signal, sys
import examples
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parallel run of the tests ignores it
examples.run(open(sys.argv[1]).read(), pathlib.Path(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["INT", "TERM", "KILL"])
def test_whoever_ends_the_examples_ends_what_they_started(number: int, tmp_path: Path) -> None:
    document, directory = tmp_path / "doc.md", tmp_path / "d"
    directory.mkdir()
    document.write_text(fenced("sh test", "$ sleep 1000 & echo $! >server", "$ echo $$ >shell; sleep 1000"))
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(document), str(directory)],
        env={**os.environ, "PYTHONPATH": str(examples.ROOT / "tests")},
        stderr=subprocess.DEVNULL,
    )
    try:
        servers.wait_until(lambda: (directory / "shell").exists() and (directory / "shell").read_text(), "a shell", 10)
        pids = [int((directory / name).read_text()) for name in ("server", "shell")]
        assert all(map(is_running, pids))
        runner.send_signal(number)
        assert runner.wait(10) != 0
        servers.wait_until(lambda: not any(map(is_running, pids)), "the examples' processes to end", 10)
    finally:
        runner.kill()
        runner.wait()


def test_without_the_guard_a_killed_run_leaves_its_servers(tmp_path: Path) -> None:
    """The control."""
    document = tmp_path / "doc.md"
    document.write_text(fenced("sh test", "$ sleep 1000 & echo $! >server", "$ echo $$ >shell; sleep 1000"))
    naked = RUNNER.replace(
        "import examples\n", "import examples, contextlib\nexamples.guarded = contextlib.nullcontext\n"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", naked, str(document), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(examples.ROOT / "tests")},
    )
    servers.wait_until(lambda: (tmp_path / "shell").exists() and (tmp_path / "shell").read_text(), "a shell", 10)
    runner.kill()
    runner.wait()
    group = int((tmp_path / "shell").read_text())
    assert is_running(group)
    os.killpg(group, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
