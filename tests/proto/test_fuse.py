"""The FUSE layouts and numbers are those of this system's own <linux/fuse.h>, as its C compiler reads them."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ninep.proto import fuse as p
from ninep.proto.errors import ProtocolError

pytestmark = pytest.mark.feature("proto-fuse")

HEADER = Path("/usr/include/linux/fuse.h")

# Layouts of ours that the header writes as several structs, or names otherwise.
PARTS = {
    "fuse_attr_out": "sizeof(struct fuse_attr_out)",
    "fuse_entry_out": "sizeof(struct fuse_entry_out)",
    "fuse_init_in.flags2": "sizeof(((struct fuse_init_in *)0)->flags2)",
    "fuse_init_in": "offsetof(struct fuse_init_in, flags2)",
    "fuse_dirent": "offsetof(struct fuse_dirent, name)",
}
# Requests whose fixed part is a struct of another name.
STRUCTS = {
    "opendir": "fuse_open_in", "readdir": "fuse_read_in", "readdirplus": "fuse_read_in",
    "releasedir": "fuse_release_in", "fsyncdir": "fuse_fsync_in", "getlk": "fuse_lk_in", "setlk": "fuse_lk_in",
    "setlkw": "fuse_lk_in", "listxattr": "fuse_getxattr_in",
}  # fmt: skip
SHORT = {"setxattr": 8}  # without FUSE_SETXATTR_EXT the kernel sends FUSE_COMPAT_SETXATTR_IN_SIZE
LAYOUTS = [value for value in vars(p).values() if isinstance(value, p.Layout)]
FLAGS = [
    *((f"FUSE_{name}", getattr(p, name)) for name in (
        "ASYNC_READ", "POSIX_LOCKS", "ATOMIC_O_TRUNC", "BIG_WRITES", "FLOCK_LOCKS", "AUTO_INVAL_DATA",
        "DO_READDIRPLUS", "READDIRPLUS_AUTO", "ASYNC_DIO", "WRITEBACK_CACHE", "PARALLEL_DIROPS", "ABORT_ERROR",
        "MAX_PAGES", "HANDLE_KILLPRIV_V2", "INIT_EXT", "DIRECT_IO_ALLOW_MMAP", "PASSTHROUGH", "LK_FLOCK",
        "RELEASE_FLUSH", "RELEASE_FLOCK_UNLOCK", "POLL_SCHEDULE_NOTIFY", "FSYNC_FDATASYNC", "GETATTR_FH")),
    *((name, value) for name, value in vars(p).items() if name.startswith(("FOPEN_", "FATTR_"))),
    ("FUSE_DEV_IOC_BACKING_OPEN", p.IOC_BACKING_OPEN),
    ("FUSE_DEV_IOC_BACKING_CLOSE", p.IOC_BACKING_CLOSE),
]  # fmt: skip
NEWER = ("PASSTHROUGH", "BACKING", "DIRECT_IO_ALLOW_MMAP", "FOPEN_PARALLEL", "KILL_SUIDGID", "KILLPRIV_V2")


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, str]], dict[str, int]]:
    """A function: C expressions by name, to their values; what this header does not have yet is left out."""
    if not HEADER.exists():
        pytest.skip(f"needs {HEADER} (package linux-libc-dev)")
    directory = tmp_path_factory.mktemp("c")

    def run(expressions: dict[str, str]) -> dict[str, int]:
        known = {name: c for name, c in expressions.items() if not (c.isidentifier() and not _defines(c))}
        lines = [f'printf("%s %llu\\n", "{name}", (unsigned long long)({c}));' for name, c in known.items()]
        source = "#include <linux/fuse.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        source += "#include <sys/ioctl.h>\n"
        (directory / "ask.c").write_text(source + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
        try:
            built = ["gcc", "-Wall", "-o", str(directory / "ask"), str(directory / "ask.c")]
            subprocess.run(built, check=True, timeout=30, capture_output=True)
        except FileNotFoundError:
            pytest.skip("needs gcc")
        out = subprocess.run([directory / "ask"], check=True, timeout=10, capture_output=True, text=True).stdout
        return {name: int(value) for name, value in (line.rsplit(" ", 1) for line in out.splitlines())}

    return run


def _defines(name: str) -> bool:
    return name in HEADER.read_text()


Ask = Callable[[dict[str, str]], dict[str, int]]


def test_every_layout_has_the_size_of_its_struct(ask: Ask) -> None:
    text = HEADER.read_text()
    wanted = {}
    for layout in LAYOUTS:
        expression = PARTS.get(layout.name, f"sizeof(struct {layout.name})")
        if f"struct {layout.name.partition('.')[0]} " in text:
            wanted[layout.name] = expression
    got = ask(wanted)
    assert {layout.name: layout.size for layout in LAYOUTS if layout.name in got} == got
    assert set(wanted) >= {layout.name for layout in LAYOUTS} - {"fuse_backing_map"}, "the header knows them all"


def test_every_request_has_its_number_and_the_size_of_its_fixed_part(ask: Ask) -> None:
    text = HEADER.read_text()
    numbers = ask({op.name: f"FUSE_{op.name.upper()}" for op in p.OPCODES.values()} | {"init": "FUSE_INIT"})
    assert numbers.pop("init") == p.INIT
    assert numbers == {op.name: number for number, op in p.OPCODES.items()}
    structs = {op.name: STRUCTS.get(op.name, f"fuse_{op.name}_in") for op in p.OPCODES.values()}
    sizes = ask({name: f"sizeof(struct {s})" for name, s in structs.items() if f"struct {s} " in text})
    ours = {op.name: op.layout.size for op in p.OPCODES.values() if op.name in sizes}
    assert ours == {**sizes, **{name: size for name, size in SHORT.items() if name in sizes}}
    bare = {op.name for op in p.OPCODES.values() if op.name not in sizes}
    assert all(p.OPCODES[numbers[name]].layout.size == 0 for name in bare), bare


def test_every_field_is_where_the_struct_has_it(ask: Ask) -> None:
    """The offsets, not only the sum: a swap of two fields of one size would pass the sizes."""
    text = HEADER.read_text()
    structs = {layout.name: layout for layout in LAYOUTS if layout.name not in PARTS and layout.name != "fuse_lk_out"}
    structs |= {STRUCTS.get(op.name, f"fuse_{op.name}_in"): op.layout for op in p.OPCODES.values()}
    wanted, ours = {}, {}
    for name, layout in structs.items():
        body = text.partition(f"struct {name} {{")[2].partition("}")[0]
        for field, at in offsets(layout).items():
            if f"\t{field};" in body:
                wanted[f"{name}.{field}"] = f"offsetof(struct {name}, {field})"
                ours[f"{name}.{field}"] = at
    assert len(wanted) > 100
    assert ask(wanted) == ours
    of_attr = {f: at for f, at in offsets(p.ATTR_OUT).items() if f in ("ino", "mode", "uid", "rdev", "blksize")}
    assert ask({f: f"offsetof(struct fuse_attr_out, attr.{f})" for f in of_attr}) == of_attr


def offsets(layout: p.Layout) -> dict[str, int]:
    """Where each field of a layout is, from its format alone."""
    found: dict[str, int] = {}
    names = iter(layout.fields)
    so_far = "="
    at = 0
    while at < len(layout.struct.format) - 1:
        at += 1
        piece = layout.struct.format[at]
        while piece.isdigit():
            at += 1
            piece += layout.struct.format[at]
        if not piece.endswith("x"):
            found[next(names)] = struct.calcsize(so_far)
        so_far += piece
    return found


def test_every_flag_and_ioctl_has_its_value(ask: Ask) -> None:
    got = ask({name: name for name, _ in FLAGS})
    assert got == {name: value for name, value in FLAGS if name in got}
    assert all(any(word in name for word in NEWER) for name, _ in FLAGS if name not in got)


def test_a_request_that_is_short_or_has_an_endless_name_is_refused() -> None:
    lookup, rename = p.OPCODES[1], p.OPCODES[12]
    head = bytes(p.IN_HEADER.size)
    assert lookup.parse(memoryview(head + b"n\xff\0"), len(head) + 3) == ("n\udcff",)
    newdir = (7).to_bytes(8, "little")
    assert rename.parse(memoryview(head + newdir + b"a\0b\0"), len(head) + 12) == (7, "a", "b")
    for tail in (b"", b"\0\0\0", newdir, newdir + b"a\0b"):
        with pytest.raises(ProtocolError):
            rename.parse(memoryview(head + tail), len(head) + len(tail))
