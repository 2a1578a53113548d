"""The message and error tables for people: manual pages, and one line per message for traces.

    python -m ninep.proto.describe --write | --check      make docs/protocol.md and docs/errors.md, or compare them

Everything here is read from the tables that the codec uses, so it cannot say anything else.
"""

from __future__ import annotations

import errno
import sys

from ninep.proto.codec import Dialect, Message
from ninep.proto.errors import TABLE
from ninep.proto.records import StatRecord
from ninep.proto.version import DIALECTS, DOTL, DOTU, P2000, UNKNOWN

SHOWN_CHARS_MAX = 64


def manual(cls: type[Message], dialect: Dialect) -> str:
    """The message as section 5 of the manual writes it: `size[4] Twalk tag[2] fid[4] ...`."""
    fields = [f"[{f.kind.manual(f.name)}]" if f.may_lack else f.kind.manual(f.name) for f in dialect.fields_of(cls)]
    return " ".join(["size[4]", cls.__name__, "tag[2]", *fields])


def line(tag: int, msg: Message) -> str:
    """One message on one line, for traces: `Twalk tag 5 fid 1 newfid 2 wname 'usr' 'bob'`.

    Text of a peer is escaped and cut; data is only counted.
    """
    words = [type(msg).__name__, f"tag {tag}"]
    words += [f"{field.name} {_shown(getattr(msg, field.name))}" for field in msg.fields]
    return " ".join(words)


def _shown(value: object) -> str:
    match value:
        case str():
            return ascii(value if len(value) <= SHOWN_CHARS_MAX else value[:SHOWN_CHARS_MAX] + "...")
        case bytes() | bytearray() | memoryview():
            return f"({len(value)} bytes)"
        case StatRecord():
            return "(" + " ".join(f"{f} {_shown(getattr(value, f))}" for f in sorted(value.touched())) + ")"
        case (int(kind), int(vers), int(path)):
            return f"({path:#x} {vers} {kind:#04x})"
        case tuple() | list():
            return " ".join(_shown(one) for one in value) or "-"
        case _:
            return str(value)


def protocol_page() -> str:
    """docs/protocol.md."""
    out = [
        "# The messages",
        "",
        "Made from `src/ninep/proto` by `./check docs`; do not edit.",
        "",
        "`f[n]` is a little-endian unsigned number of n bytes, `f[s]` is `len[2]` and that many bytes of UTF-8 without",
        "NUL, `f[13]` is a qid: `type[1] version[4] path[8]`. A frame is `size[4] type[1] tag[2]` and the fields in",
        "order, nothing between them and nothing after them; `size` counts itself. A field in brackets may be missing.",
        "User names and versions must be UTF-8; in file names any bytes but NUL travel unchanged. A name in a Twalk of",
        "more than 255 bytes, or a Twalk of more than 16 names, is refused before it is read.",
        "",
        "Before a dialect is agreed only Tversion may be sent, with the largest frame that the client handles; after",
        f"the answer `{UNKNOWN}` only another Tversion.",
        "",
    ]
    for dialect in DIALECTS:
        out += [f"## {dialect.name}", "", "| type | message | bytes | what it is |", "|---|---|---|---|"]
        for number, cls in dialect.messages.items():
            doc = " ".join((cls.__doc__ or "").split())
            out.append(f"| {number} | `{manual(cls, dialect)}` | {_sizes(cls, dialect)} | {doc} |")
        out.append("")
    out += [
        "## Stat records",
        "",
        "`size[2] type[2] dev[4] qid[13] mode[4] atime[4] mtime[4] length[8] name[s] uid[s] gid[s] muid[s]`, and in",
        f"{DOTU.name} also `extension[s] n_uid[4] n_gid[4] n_muid[4]`. `size` does not count itself, `nstat` counts",
        "`size` too. In a Twstat the largest number of a field's width, or an empty string, means: leave it as it is.",
        f"A directory read in {P2000.name} and {DOTU.name} gives whole records without `nstat`.",
        "",
        "## Directory entries",
        "",
        f"An Rreaddir of {DOTL.name} carries whole entries: `qid[13] offset[8] type[1] name[s]`; `offset` resumes",
        "after the entry.",
        "",
    ]
    return "\n".join(out)


def _sizes(cls: type[Message], dialect: Dialect) -> str:
    least = dialect.bytes_min(cls)
    return str(least) if dialect.bytes_max(cls) == least else f"{least}+"


def errors_page() -> str:
    """docs/errors.md."""
    out = [
        "# The errors",
        "",
        "Made from `src/ninep/proto/errors.py` by `./check docs`; do not edit.",
        "",
        "9P2000 sends the text, 9P2000.u the text and the number, 9P2000.L and FUSE the number. What the error is",
        "about follows the text after a colon. An errno of the host without a row passes with its number and name",
        "unchanged.",
        "",
        "| class | errno | number | text |",
        "|---|---|---|---|",
    ]
    out += [f"| {row.__name__} | {_errno_name(row.errno)} | {row.errno} | {row.text} |" for row in TABLE]
    return "\n".join([*out, ""])


def _errno_name(number: int) -> str:
    """The name that the manual uses, where the C library has two for one number."""
    usual = {errno.EDEADLK: "EDEADLK", errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EAGAIN: "EAGAIN"}
    return usual.get(number) or errno.errorcode[number]


def pages() -> dict[str, str]:
    """What this module makes: file name under docs to content."""
    return {"protocol.md": protocol_page(), "errors.md": errors_page()}


def main(args: list[str], docs: str = "") -> int:
    """`--write` makes the files in `docs`, `--check` exits with 1 if one of them differs."""
    from pathlib import Path  # what an edge needs of this module, `line`, needs no files

    if args not in (["--write"], ["--check"]):
        print("usage: python -m ninep.proto.describe --write | --check", file=sys.stderr)
        return 2
    folder = Path(docs) if docs else Path(__file__).resolve().parents[3] / "docs"
    stale = 0
    for name, text in pages().items():
        path = folder / name
        if args == ["--write"]:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            print(f"docs/{name} differs from the code: ./check docs writes it again", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
