"""Runs the examples of a document: marked code blocks, in order, in one directory and one shell.

    ```sh test              lines after `$ ` are typed (`> ` goes on), the others are what must come out; `...` stands
                            for anything, in a line or as a whole line.  A block without `$ ` must succeed as a script.
    ```python test          a program that must succeed
    ```python file=x.py     written to x.py, for the blocks after it

A command must succeed, unless it ends with `# exit 3`.  `ninep`, `ninepd` and `./run` are this checkout's.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import servers

ROOT = Path(__file__).resolve().parent.parent
SECONDS_MAX = 120.0


@dataclass
class Command:
    """One thing typed, and what it must print (None: whatever it likes)."""

    line: int
    text: str
    output: list[str] | None
    code: int = 0


@dataclass
class Block:
    """One marked block of a document."""

    line: int
    language: str
    words: list[str]
    body: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """The name that the block is written to, if it has one."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), "")


class ExampleFailed(AssertionError):
    """A document shows what does not happen."""


def blocks(text: str) -> list[Block]:
    """The marked blocks of a document."""
    found, current = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if current is not None and line.strip() == "```":
            found.append(current)
            current = None
        elif current is not None:
            current.body.append(line)
        elif fence := re.fullmatch(r"```(\w+) +(.+)", line):
            current = Block(number, fence[1], fence[2].split())
        elif line.startswith("```") and line.strip() != "```":
            current = Block(number, line[3:].strip(), [])
        elif line.strip() == "```":
            current = Block(number, "", [])
    return [block for block in found if "test" in block.words or block.file]


def commands(block: Block) -> list[Command]:
    """What a shell block types."""
    if not any(line.startswith("$ ") for line in block.body):
        return [Command(block.line, "\n".join(block.body), None)]
    found: list[Command] = []
    for number, line in enumerate(block.body, block.line + 1):
        if line.startswith("$ "):
            text, _, code = line[2:].partition("  # exit ")
            # What a command in the background says, and when, is not what its example is about.
            found.append(Command(number, text, None if text.endswith(" &") else [], int(code or 0)))
        elif not found:
            raise ExampleFailed(f"line {number}: output before the first command: {line}")
        elif line.startswith("> ") and not found[-1].output:
            found[-1].text += "\n" + line[2:]
        else:
            found[-1].output = [*(found[-1].output or []), line]
    return found


def steps(text: str) -> Iterator[Command]:
    """Every command of a document, in order."""
    for block in blocks(text):
        body = "\n".join(block.body) + "\n"
        if block.file:
            yield Command(block.line, f"printf %s {shlex.quote(body)} >{shlex.quote(block.file)}", None)
        elif block.language == "python":
            yield Command(block.line, f"python -c {shlex.quote(body)}", None)
        elif block.language in ("sh", "bash", "console"):
            yield from commands(block)
        else:
            raise ExampleFailed(f"line {block.line}: no way to run a block of {block.language!r}")


def matches(shown: list[str], printed: list[str]) -> bool:
    """True when the output is what the document shows; `...` stands for anything."""
    pattern = []
    for line in shown:
        if line.strip() == "...":
            pattern.append(r"(?:[^\n]*\n)*?")
        else:
            pattern.append(r"[^\n]*".join(map(re.escape, line.rstrip().split("..."))) + r" *\n")
    return re.fullmatch("".join(pattern), "".join(line + "\n" for line in printed)) is not None


def script(todo: list[Command], where: Path) -> str:
    """One shell program that runs all, keeps output and exit code of each, and stops where a code is not as shown."""
    lines = []
    for i, command in enumerate(todo):
        (where / f"{i}.sh").write_text(command.text + "\n")
        lines += [f". {where}/{i}.sh >{where}/{i}.out 2>&1", f"code=$?; echo $code >{where}/{i}.code"]
        lines += [f"[ $code = {command.code} ] || exit 1"]
    return "\n".join(lines) + "\n"


def run(text: str, directory: Path) -> int:
    """Run a document's examples in this directory; the number of commands.  Raises ExampleFailed at the first that does
    not do what is shown, with both outputs.  Whatever they started is ended, whatever they mounted is unmounted."""
    todo = list(steps(text))
    where, home, runtime = directory / ".steps", directory / ".home", directory / ".run"
    for new in (where, home, runtime):
        new.mkdir(mode=0o700)
    for name in ("run", "check"):
        (directory / name).symlink_to(ROOT / name)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "XDG_", "NINEP_"))}
    env |= {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}:/usr/sbin:/sbin"
    program = where / "all.sh"
    program.write_text(script(todo, where))
    with open(where / "stray", "wb") as stray:
        shell = subprocess.Popen(
            ["bash", str(program)], cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=stray, stderr=stray,
            start_new_session=True,
        )  # fmt: skip
        with guarded(shell.pid):
            try:
                shell.wait(SECONDS_MAX)
            except subprocess.TimeoutExpired:
                pass  # the command without an exit code is the one that hangs
            finally:
                end_all(shell, directory)
    for i, command in enumerate(todo):
        verify(command, where / f"{i}.out", where / f"{i}.code")
    return len(todo)


GUARD = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if not sys.stdin.buffer.read(1):  # whoever ran the examples died without a word
    try:
        os.killpg(int(sys.argv[1]), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@contextmanager
def guarded(group: int) -> Iterator[None]:
    """Should this process be killed inside, even by SIGKILL, the process group is ended too: its servers would stay."""
    guard = subprocess.Popen(
        [sys.executable, "-S", "-c", GUARD, str(group)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        guard.communicate(b"x")


def end_all(shell: subprocess.Popen[bytes], directory: Path) -> None:
    """End the session of the shell, and unmount what it left."""
    try:
        os.killpg(shell.pid, signal.SIGTERM)
        servers.wait_until(lambda: not group_lives(shell), "the examples' processes to end", 5)
    except ProcessLookupError:
        pass
    except BaseException as e:  # too slow, or interrupted again: no gentleness then
        os.killpg(shell.pid, signal.SIGKILL)
        if not isinstance(e, TimeoutError):
            raise
    shell.wait()
    for point in sorted(mounts_below(str(directory)), reverse=True):
        servers.unmount(point)


def group_lives(shell: subprocess.Popen[bytes]) -> bool:
    shell.poll()
    try:
        os.killpg(shell.pid, 0)
    except ProcessLookupError:
        return False
    return True


def mounts_below(directory: str) -> list[str]:
    with open("/proc/self/mountinfo", errors="surrogateescape") as f:
        return [p for p in (line.split(" ")[4] for line in f) if p.startswith(directory + "/")]


def verify(command: Command, out: Path, code: Path) -> None:
    """Raises ExampleFailed when the command did not do what is shown."""
    printed = out.read_text(errors="replace").splitlines() if out.exists() else []
    got = code.read_text().strip() if code.exists() else "none"
    about = f"line {command.line}: $ {command.text}\n"
    if got != str(command.code):
        raise ExampleFailed(f"{about}exit code {got}, not {command.code}; it printed:\n" + "\n".join(printed))
    if command.output is not None and not matches(strip_blank(command.output), strip_blank(printed)):
        shown = "\n".join(command.output)
        raise ExampleFailed(f"{about}the document shows:\n{shown}\nit printed:\n" + "\n".join(printed))


def strip_blank(lines: list[str]) -> list[str]:
    """Without blank lines at the end."""
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return lines
