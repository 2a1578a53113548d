"""The architecture as a table: what may import what, and what appears nowhere.

`python tests/layers.py` prints violations.  A line that must break a ban says so at its end, with the reason:
`# allowed: ...`, or `# noqa: S102  # ...` where the linter wants a word too.  Imports have no such way out.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# From the bottom to the top: a module may import what stands in its own row or in an earlier one.
LEVELS: list[tuple[str, set[str]]] = [
    ("the wire", {"proto"}),
    ("what everyone may know", {"limits", "env", "observe", "principal", "features"}),
    ("the abstraction", {"answer", "file"}),
    ("helpers of trees", {"synth", "locks"}),
    ("the meaning of requests, and composition", {"session", "requests", "fid", "checks", "node", "namespace"}),
    ("trees", {"servers", "kernelfs"}),
    ("edges", {"edges"}),
    ("the public face", {"", "testing", "serve", "reload"}),
    ("programs", {"cli", "config", "cmd"}),
]
LEVEL = {name: level for level, (_, names) in enumerate(LEVELS) for name in names}
TREES = ("servers", "kernelfs")
FACE = LEVEL[""]

OUTSIDE_PROTO = {
    "trio", "asyncio", "os", "socket", "ssl", "select", "selectors", "threading", "subprocess", "signal",
    "time", "random", "secrets", "logging",
}  # fmt: skip
NOWHERE = {
    "pickle": "nothing that can build objects is read",
    "marshal": "nothing that can build objects is read",
    "shelve": "nothing that can build objects is read",
    "asyncio": "there is one event loop, trio's",
}
HOST_BY_NAME = {"listdir", "scandir", "walk", "realpath", "abspath", "exists", "isfile", "isdir", "islink", "getsize"}
HOST_BY_DESCRIPTOR = {
    "open", "stat", "lstat", "mkdir", "unlink", "rmdir", "rename", "replace", "link", "symlink", "readlink", "mknod",
    "chmod", "chown", "lchown", "utime", "access", "mkfifo", "truncate",
}  # fmt: skip
EXCUSE = re.compile(r"# allowed: \S|# noqa: S\d+  # \S")
OWN_PROC = ("/proc/self/", "/proc/thread-self/")
DIR_FD = {"dir_fd", "src_dir_fd", "dst_dir_fd"}


@dataclass(frozen=True, order=True)
class Violation:
    """One line that broke one sentence."""

    path: str
    line: int
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.sentence}"


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    name: str  # ninep.servers.ram, ninep_cmd.ninep
    path: str  # relative to the checkout
    text: str
    tree: ast.Module
    is_package: bool

    @property
    def area(self) -> str:
        """The word it stands under in LEVELS: proto, file, cmd; session_io and _session stand under session."""
        return area_of(self.name)


def area_of(name: str) -> str:
    """The key of LEVELS for a module of ours, or the name that has none."""
    top, _, rest = name.partition(".")
    if top == "ninep_cmd":
        return "cmd"
    head = rest.split(".")[0]
    return head if head in LEVEL else family(head)


def family(name: str) -> str:
    """host_walk, _host and host are one family: host."""
    return name.strip("_").split("_")[0]


def modules(root: Path) -> list[Module]:
    """All modules of src/ninep and cmd below root."""
    found = []
    for base, package in ((root / "src/ninep", "ninep"), (root / "cmd", "ninep_cmd")):
        for path in sorted(base.rglob("*.py")):
            parts = [package, *path.relative_to(base).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            text = path.read_text()
            found.append(Module(name, str(path.relative_to(root)), text, ast.parse(text, str(path)), is_package))
    return found


def imports(module: Module, known: set[str]) -> Iterator[tuple[int, str]]:
    """Each (line, module) that it imports anywhere, also inside functions and for type checking only."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=origin, level=level, names=names):
                base = origin or ""
                if level:
                    parts = module.name.split(".")
                    parts = parts[: len(parts) - level + module.is_package]
                    base = ".".join([*parts, origin] if origin else parts)
                for alias in names:
                    inner = f"{base}.{alias.name}"
                    yield node.lineno, inner if inner in known else base


def check(found: list[Module]) -> list[Violation]:
    """Every violation in these modules, in order of file and line."""
    known = {m.name for m in found}
    graph: dict[str, dict[str, int]] = {}
    bad: set[Violation] = set()
    for module in found:
        if module.area not in LEVEL:
            bad.add(
                Violation(module.path, 1, f"the module {module.name} stands in no row of LEVELS in tests/layers.py")
            )
            continue
        for line, target in imports(module, known):
            if sentence := why_not(module, target):
                bad.add(Violation(module.path, line, sentence))
            if target in known and target != module.name:
                graph.setdefault(module.name, {}).setdefault(target, line)
        bad.update(bans(module))
    bad.update(cycles(graph, {m.name: m.path for m in found}))
    return sorted(bad)


def why_not(module: Module, target: str) -> str:
    """The sentence that this import breaks, or nothing."""
    top = target.partition(".")[0]
    if top in NOWHERE:
        return f"{top} is imported nowhere: {NOWHERE[top]}"
    if module.area == "proto" and top in OUTSIDE_PROTO:
        return f"proto does no I/O and has no clock: it does not import {top}"
    if top not in ("ninep", "ninep_cmd"):
        return ""
    area = area_of(target)
    if area not in LEVEL:
        return f"{target} stands in no row of LEVELS in tests/layers.py"
    if module.area == "observe":
        return "" if area == "observe" else f"observe imports nothing of ours, and not {target}"
    if area == "" and module.area not in ("", "cmd", "testing"):
        return f"the public face is for users, not for us: import {target}'s names from where they are defined"
    if LEVEL[area] > LEVEL[module.area]:
        below, above = LEVELS[LEVEL[module.area]][0], LEVELS[LEVEL[area]][0]
        return f"imports go down only: {module.name} ({below}) does not import {target} ({above})"
    return why_not_from_a_tree(module, target, area) or why_not_from_an_edge(module, target, area)


def why_not_from_a_tree(module: Module, target: str, area: str) -> str:
    """A tree does not know who serves it, nor what stands beside it."""
    if module.area not in TREES:
        return ""
    if LEVELS[LEVEL[area]][0] == "the meaning of requests, and composition":
        return f"a tree does not know who serves it: {module.name} does not import {target}"
    if area in TREES and tree_name(module.name) != tree_name(target):
        return f"trees do not know each other: {module.name} does not import {target}"
    return ""


def why_not_from_an_edge(module: Module, target: str, area: str) -> str:
    """An edge serves any tree, so it knows none."""
    if module.area == "edges" and area in TREES:
        return f"an edge serves any tree: {module.name} does not import {target}"
    return ""


def tree_name(name: str) -> tuple[str, str]:
    """The tree that a module is part of: the package beside it, or its family (host, host_node, _host)."""
    parts = name.split(".")
    return (parts[1], family(parts[2]) if len(parts) > 2 else "")


def cycles(graph: dict[str, dict[str, int]], paths: dict[str, str]) -> Iterator[Violation]:
    """One violation for each import that closes a circle."""
    done: set[str] = set()
    for start in sorted(graph):
        trail: list[str] = []
        stack = [(start, iter(sorted(graph.get(start, {}))))]
        while stack:
            name, rest = stack[-1]
            if not trail or trail[-1] != name:
                trail.append(name)
            for target in rest:
                if target in trail:
                    circle = " -> ".join([*trail[trail.index(target) :], target])
                    yield Violation(paths[name], graph[name][target], f"no import cycles, by no trick: {circle}")
                elif target not in done:
                    stack.append((target, iter(sorted(graph.get(target, {})))))
                    break
            else:
                done.add(name)
                stack.pop()
                trail.pop()


def bans(module: Module) -> Iterator[Violation]:
    """What appears in no line, unless the line says why it may."""
    lines = module.text.splitlines()
    own = own_proc_names(module)
    by_descriptor = module.area == "servers" and tree_name(module.name)[1].startswith("host")
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        sentence = banned_call(node) or (by_name_on_the_host(node, own) if by_descriptor else "")
        last = node.end_lineno or node.lineno
        if sentence and not any(EXCUSE.search(line) for line in lines[node.lineno - 1 : last]):
            yield Violation(module.path, node.lineno, sentence)


def dotted(node: ast.expr) -> str:
    """os.path.realpath for that expression; nothing for what is no plain name."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr) if base := dotted(value):
            return f"{base}.{attr}"
    return ""


def banned_call(call: ast.Call) -> str:
    """Calls that no module makes."""
    name = dotted(call.func)
    if name in ("eval", "exec"):
        return f"nothing is evaluated: {name}()"
    if name in ("os.system", "os.popen"):
        return f"no shell: {name}()"
    if any(k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in call.keywords):
        return "no shell: shell=True"
    if name in ("tempfile.mktemp",):
        return f"a name that can be taken before it is used: {name}()"
    return ""


def by_name_on_the_host(call: ast.Call, own: set[str]) -> str:
    """A host export works on descriptors: a path string would be resolved again, perhaps elsewhere."""
    name = dotted(call.func)
    where, _, what = name.rpartition(".")
    if call.args and (is_own_proc(call.args[0]) or dotted(call.args[0]) in own):
        return ""
    if name == "open" or (where in ("os", "os.path") and what in HOST_BY_NAME):
        if where == "os" and what in ("listdir", "scandir") and call.args and is_descriptor(call.args[0]):
            return ""
        return f"a host export never uses a path string: {name}()"
    if where == "os" and what in HOST_BY_DESCRIPTOR:
        has_dir = any(k.arg in DIR_FD for k in call.keywords)
        if not has_dir and not (call.args and is_descriptor(call.args[0])):
            return f"a host export never uses a path string: {name}() without dir_fd"
    return ""


def is_descriptor(arg: ast.expr) -> bool:
    """True for an argument that is called a descriptor."""
    match arg:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.endswith("fd") or name == "fileno"
        case ast.Call(func=func):
            return is_descriptor(func)
    return False


def is_own_proc(arg: ast.expr) -> bool:
    """True for /proc/self/... and /proc/thread-self/...: no client chose that name, and it names this process."""
    match arg:
        case ast.BinOp(left=text, op=ast.Mod()) | ast.JoinedStr(values=[text, *_]):
            return is_own_proc(text)
        case ast.Constant(value=str(text)):
            return text.startswith(OWN_PROC)
        case ast.Constant(value=bytes(text)):
            return text.decode("latin-1").startswith(OWN_PROC)
    return False


def own_proc_names(module: Module) -> set[str]:
    """Variables that are only ever given such a name."""
    given: dict[str, bool] = {}
    for node in ast.walk(module.tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                given[name] = given.get(name, True) and is_own_proc(value)
            case ast.arg(arg=name):
                given[name] = False
    return {name for name, always in given.items() if always}


def init_files(root: Path) -> list[Violation]:
    """Directories that must not be packages: `cmd` would hide a module of Python's own."""
    names = ("cmd/__init__.py", "tests/__init__.py")
    return [
        Violation(n, 1, "this directory is no package, and must never be one") for n in names if (root / n).exists()
    ]


def main() -> int:
    """0 when the table holds; else 1, with one line for each violation."""
    bad = [*init_files(ROOT), *check(modules(ROOT))]
    for violation in bad:
        print(violation)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
