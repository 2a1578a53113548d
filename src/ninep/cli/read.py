"""The verbs that look: ls cat read stat tail walk."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from . import show
from .failure import OK
from .output import Output
from .target import Connections, Target, each, failing_at, target
from .waiting import within

if TYPE_CHECKING:
    from ninep.edges.blocking import Blocking, BlockingFile
    from ninep.proto.types import Entry, Qid, Stat

POLL_SECONDS_MIN = 0.1  # how often tail looks whether a file has grown: doubled while it has not
POLL_SECONDS_MAX = 1.0
TAIL_BYTES_MAX = 1 << 20  # how far back tail looks for the lines to begin with


def ls(args: argparse.Namespace, output: Output) -> int:
    urls: list[str] = args.url or ["/"]

    def one(remote: Blocking, where: Target) -> None:
        st = remote.stat(where.path)
        if args.directory or not st.is_dir:
            _show_stat(where.text if args.directory else where.name, st, args.long, output)
            return
        if len(urls) > 1 and not output.is_json:
            output.line(f"{output.name(where.text)}:")
        entries = remote.ls(where.path, stats=args.long)
        if args.unsorted:
            for entry in entries:
                _show_entry(entry, args.long, output)
                output.flush()
        else:
            for entry in sorted(entries, key=lambda e: e.name):
                _show_entry(entry, args.long, output)

    return each(urls, args, one, "ls")


def _show_stat(name: str, st: Stat, is_long: bool, output: Output) -> None:
    if output.is_json:
        from .output import json_name

        output.json({**json_name(name), **show.stat_json(st)})
    else:
        output.line(show.long_line(name, st, output) if is_long else output.name(name))


def _show_entry(entry: Entry, is_long: bool, output: Output) -> None:
    if output.is_json:
        output.json(show.entry_json(entry))
    elif is_long:
        output.line(show.long_line(entry.name, entry.stat, output))
    else:
        output.line(output.name(entry.name))


def cat(args: argparse.Namespace, output: Output) -> int:
    def one(remote: Blocking, where: Target) -> None:
        if output.is_json:
            _show_content(where, remote.read(where.path), output)
            return
        for data in remote.chunks(where.path):
            output.write(data)
            output.flush()

    return each(args.url, args, one, "cat")


def _show_content(where: Target, data: bytes, output: Output) -> None:
    """Content as one object: text where it is text, else base64."""
    try:
        shown: dict[str, object] = {"text": data.decode()}
    except UnicodeDecodeError:
        import base64

        shown = {"base64": base64.b64encode(data).decode()}
    output.json({"url": where.text, **shown})


def read(args: argparse.Namespace, output: Output) -> int:
    """One read, or as many as it takes for --count bytes.  --timeout bounds the wait here too."""
    where = target(args.url, args)
    with Connections(args) as connections:
        remote = connections.to(where)
        with failing_at(where), within(args.timeout), remote.open(where.path) as file:
            file.seek(args.offset)
            data = file.read() if args.count is None else _read_count(file, args.count)
    if output.is_json:
        _show_content(where, data, output)
    else:
        output.write(data)
    return OK


def _read_count(file: BlockingFile, count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0 and (data := file.read()):
        parts.append(data[:count])
        count -= len(data)
    return b"".join(parts)


def stat(args: argparse.Namespace, output: Output) -> int:
    def one(remote: Blocking, where: Target) -> None:
        st = remote.stat(where.path)
        if output.is_json:
            _show_stat(where.name, st, False, output)
            return
        for line in show.stat_lines(where.name, st, output):
            output.line(line)
        if show.kind_of(st.st_mode) == "symlink":
            output.line(f"target {output.name(remote.readlink(where.path))}")

    return each(args.url, args, one, "stat")


def walk(args: argparse.Namespace, output: Output) -> int:
    """Each step, as far as it goes: where a path ends is the question this verb is for."""
    where = target(args.url, args)
    names = where.address.path
    with Connections(args) as connections:
        remote = connections.to(where)
        steps = [("/", remote.root_qid)]
        failed: Exception | None = None
        try:
            steps += zip(names, remote.walk(where.path))
        except Exception as e:  # told below, after the steps that did work
            failed = e
            steps += _steps_that_work(remote, names)
        for depth, (name, qid) in enumerate(steps):
            kind = "dir" if qid.type & 0x80 else "symlink" if qid.type & 0x02 else "file"
            if output.is_json:
                from .output import json_name

                output.json({**json_name(name), "depth": depth, "type": kind, "qid": show.qid_json(qid)})
            else:
                output.line(f"{depth:<3} {kind:<8} {show.qid_text(qid)}  {output.name(name)}")
        if failed is not None:
            with failing_at(where):
                raise failed
    return OK


def _steps_that_work(remote: Blocking, names: tuple[str, ...]) -> list[tuple[str, Qid]]:
    from ninep.proto.errors import FileError

    steps: list[tuple[str, Qid]] = []
    for count in range(1, len(names) + 1):
        try:
            steps.append((names[count - 1], remote.walk("/" + "/".join(names[:count]))[-1]))
        except FileError:
            break
    return steps


def tail(args: argparse.Namespace, output: Output) -> int:
    """The last lines, then what is added.  A file that states no size is read from its start, as it comes."""
    where = target(args.url, args)
    with Connections(args) as connections:
        remote = connections.to(where)
        with failing_at(where), remote.open(where.path) as file:
            size = file.stat().size
            if size:
                _last_lines(file, size, args.lines, output)
            pause = POLL_SECONDS_MIN
            while True:
                data = file.read()
                if data:
                    _show_piece(where, data, output)
                    pause = POLL_SECONDS_MIN
                elif args.once:
                    return OK
                else:
                    time.sleep(pause)
                    pause = min(2 * pause, POLL_SECONDS_MAX)
                    if file.stat().size < file.offset and size:
                        output.note("tail: the file was cut; going on from its start")
                        file.seek(0)


def _last_lines(file: BlockingFile, size: int, lines: int, output: Output) -> None:
    """Print the last lines within TAIL_BYTES_MAX and leave the position after them."""
    file.seek(max(0, size - TAIL_BYTES_MAX))
    held = b""
    while file.offset < size and (data := file.read()):
        held = (held + data)[-TAIL_BYTES_MAX:]
    kept = held.splitlines(keepends=True)[-lines:] if lines else []
    if kept and output.is_json:
        for line in kept:
            output.json({"text": line.decode("utf-8", "replace")})
    else:
        output.write(b"".join(kept))
    output.flush()


def _show_piece(where: Target, data: bytes, output: Output) -> None:
    if output.is_json:
        _show_content(where, data, output)
    else:
        output.write(data)
    output.flush()
