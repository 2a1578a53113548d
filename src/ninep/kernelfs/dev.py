"""NAME
    dev - the server's own devices, after Plan 9's cons(3)

FILES
    null        reads as empty; takes and drops what is written
    zero        reads as zeros, for ever
    random      reads as random bytes, for ever
    time        seconds and nanoseconds since the epoch, ticks since the start, ticks per second.  The host's clock
                is never set: writing is refused
    uptime      seconds since the start
    user        the name of whoever reads it
    sysname     the name of this node; its owner may write another
    log         write a line `severity text` (debug, info, warning, error); reading gives the last 64 KiB and then
                waits for more
    kmesg       the last 64 KiB of log
    kprint      what is logged from its open on; waits for it
    errstr      the last 64 refusals of the reader: seconds since the start, operation, what was refused
    sleep       write a duration (`20ms`, `1.5s`): the write returns when it has passed
    snarf       the clip: what one open wrote replaces it when it is closed
    features    what this server does and which test shows it
    stats/      the server's own state (ninep.kernelfs.dev_stats)

EXAMPLES
    cat /n9/dev/time
    echo 'warning disk is full' > /n9/dev/log
    tail -f /n9/dev/log
    echo 100ms > /n9/dev/sleep

BUGS
    errstr tells callers apart by principal: two programs of one user read each other's refusals.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import trio

from .. import synth
from ..answer import Answer
from ..env import REAL, Env
from ..features import features
from ..file import Call, Dir, Handle
from ..limits import DEFAULT, Limits
from ..observe import SEVERITIES, Events
from ..principal import Principal
from ..proto import errors as E
from ..proto.types import ONONBLOCK, ORDWR, OREAD, Change
from ..synth import text
from ..synth_file import Owner, SynthFile, SynthHandle
from ..synth_stream import Queue, Stream, StreamFile, StreamHandle, events
from ..synth_words import parse_duration
from . import dev_stats

LOG_BYTES_MAX: Final = 65_536
LOG_LINE_BYTES_MAX: Final = 4096
SLEEP_SECONDS_MAX: Final = 86_400.0
CALLERS_MAX: Final = 1024  # whose refusals are kept
TICKS_PER_SECOND: Final = 1_000_000_000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class ErrorLog:
    """The last refusals of each principal.  The server records each one; /dev/errstr shows a caller its own."""

    def __init__(self, env: Env = REAL, limits: Limits = DEFAULT) -> None:
        self._now_ns = env.now_ns
        self._start_ns = env.now_ns()
        self._lines_max = limits.errstr_lines_max
        self._by_caller: dict[tuple[str, int, str], deque[tuple[int, str, str]]] = {}

    def record(self, who: Principal, op: str, error: E.FileError, path: str = "") -> None:
        """One refusal that `who` was sent.  Cheap: it is formatted when it is read."""
        key = (who.name, who.uid, who.proof)
        lines = self._by_caller.get(key)
        if lines is None:
            if len(self._by_caller) >= CALLERS_MAX:
                del self._by_caller[next(iter(self._by_caller))]  # who came first
            lines = self._by_caller[key] = deque(maxlen=self._lines_max)
        lines.append((self._now_ns(), f"{op} {path}" if path else op, error.ename))

    def text(self, who: Principal) -> str:
        lines = self._by_caller.get((who.name, who.uid, who.proof), ())
        return "".join(f"{(t - self._start_ns) / 1e9:.3f} {op}: {printable(error)}\n" for t, op, error in lines)


class Log:
    """Lines with a severity and who said them: the last 64 KiB, and a stream of what comes."""

    def __init__(self, env: Env = REAL, limits: Limits = DEFAULT) -> None:
        self._now_ns = env.now_ns
        self._start_ns = env.now_ns()
        self._lines: deque[str] = deque()
        self._bytes = 0
        self.stream = Stream(limits)

    def write(self, who: str, message: str) -> None:
        """Each line `severity text`.  Ebadarg, with nothing written, unless every line begins with a severity."""
        lines = [line.strip() for line in message.split("\n") if line.strip()]
        for line in lines:
            if line.split(None, 1)[0] not in SEVERITIES:
                raise E.Ebadarg(f"severity first: {' '.join(SEVERITIES)}")
            if len(line) > LOG_LINE_BYTES_MAX:
                raise E.Elarge(f"{len(line)} > {LOG_LINE_BYTES_MAX}")
        for line in lines:
            severity, _, rest = line.partition(" ")
            self.add(severity, who, rest.strip())

    def add(self, severity: str, who: str, message: str) -> None:
        """One line of the server's own or of a writer's."""
        seconds = (self._now_ns() - self._start_ns) / 1e9
        line = f"{seconds:.3f} {severity} {printable(who)}: {printable(message)}\n"
        self._lines.append(line)
        self._bytes += len(line)
        while self._bytes > LOG_BYTES_MAX:
            self._bytes -= len(self._lines.popleft())
        self.stream.put(line)

    @property
    def lines(self) -> list[str]:
        """The last 64 KiB, oldest first."""
        return list(self._lines)


def printable(line: str) -> str:
    """The line without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in line)


class _DeviceHandle(SynthHandle):
    """Reads what its function gives; drops what is written."""

    direct = True

    def __init__(self, owner: Owner, give: Callable[[int], bytes]) -> None:
        super().__init__(owner)
        self._give = give

    def read(self, call: Call, offset: int, count: int) -> Answer[bytes]:
        return self._give(count)

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        return len(data)

    def truncate(self, call: Call, size: int) -> Answer[None]:
        return None


class _Device(SynthFile):
    """A file without content of its own: null, zero, random."""

    def __init__(self, owner: Owner, give: Callable[[int], bytes], perm: int, doc: str) -> None:
        super().__init__(owner, perm, doc)
        self._give = give

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        self.check_alive()
        return _DeviceHandle(self.owner, self._give)

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        discard_size(change)
        return None


def discard_size(change: Change) -> None:
    """O_TRUNC may come as a change of size; it means nothing here, and nothing else can be changed."""
    if change.perm is not None or change.uid is not None or change.gid is not None:
        raise E.Eperm


class _LogFile(StreamFile):
    """/dev/log: what was logged and what will be, and a place to write more."""

    def __init__(self, owner: Owner, log: Log) -> None:
        super().__init__(owner, lambda call: log.stream, 0o666, "a line `severity text`; reads wait for more")
        self._log = log

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        self.check_alive()
        queue = self._log.stream.subscribe(self._log.lines if omode & 3 in (OREAD, ORDWR) else ())
        return _LogHandle(self.owner, queue, self._log, park=not omode & ONONBLOCK)

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        discard_size(change)
        return None


class _LogHandle(StreamHandle):
    def __init__(self, owner: Owner, queue: Queue, log: Log, *, park: bool) -> None:
        super().__init__(owner, queue, park=park)
        self._log = log

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        self._log.write(call.principal.name, bytes(data).decode("utf-8", "replace"))
        return len(data)

    def truncate(self, call: Call, size: int) -> Answer[None]:
        return None


class _Sleep(SynthFile):
    """/dev/sleep: a written duration is how long the write takes."""

    def open(self, call: Call, omode: int) -> Answer[Handle]:
        self.check_alive()
        return _SleepHandle(self.owner)

    def wstat(self, call: Call, change: Change) -> Answer[None]:
        discard_size(change)
        return None


class _SleepHandle(SynthHandle):
    # A stream, because its writes may park for longer than any request that is bound to end.
    stream = True
    direct = True

    def write(self, call: Call, offset: int, data: bytes | memoryview) -> Answer[int]:
        if len(data) > LOG_LINE_BYTES_MAX:
            raise E.Elarge
        word = bytes(data).decode("utf-8", "replace").strip()
        try:
            seconds = parse_duration(word)
        except ValueError as e:
            raise E.Ebadarg(f"{word[:20]}: {e}") from None
        if seconds > SLEEP_SECONDS_MAX:
            raise E.Erange(f"0s to {SLEEP_SECONDS_MAX:.0f}s")
        return self._sleep(seconds, len(data))

    async def _sleep(self, seconds: float, count: int) -> int:
        await trio.sleep(seconds)
        return count

    def truncate(self, call: Call, size: int) -> Answer[None]:
        return None


class Dev(synth.Dir):
    """The server's own devices, after Plan 9's cons(3)."""

    def __init__(self, sysname: str, log: Log, errors: ErrorLog, env: Env, limits: Limits) -> None:
        self.env = env
        self.limits = limits
        super().__init__()
        self._sysname = sysname
        self._log = log
        self._errors = errors
        self._start_ns = env.now_ns()
        self._snarf = b""
        zeros = bytes(1 << 16)
        self.add_child("null", _Device(self, lambda count: b"", 0o666, "reads as empty, drops what is written"))
        self.add_child("zero", _Device(self, lambda n: zeros[:n] if n <= len(zeros) else bytes(n), 0o444, "zeros"))
        self.add_child("random", _Device(self, env.random, 0o444, "random bytes"))
        self.add_child("log", _LogFile(self, log))
        self.add_child("sleep", _Sleep(self, 0o222, "a written duration is how long the write takes"))

    @text(perm=0o644, write="each")
    def time(self) -> str:
        """seconds and nanoseconds since the epoch, ticks since the start, ticks per second"""
        now = self.env.time_ns()
        # The widths of cons(3): programs find the numbers by position.
        return f"{now // 10**9:11d} {now:21d} {self._ticks():21d} {TICKS_PER_SECOND:21d} \n"

    @time.writer
    def _set_time(self, text: str) -> None:
        raise E.Ehost("settime")

    @text()
    def uptime(self) -> str:
        """seconds since the start"""
        return f"{self._ticks() / TICKS_PER_SECOND:.3f}\n"

    def _ticks(self) -> int:
        return self.env.now_ns() - self._start_ns

    @text()
    def user(self, call: Call) -> str:
        """the name of whoever reads it"""
        return f"{printable(call.principal.name)}\n"

    @text(perm=0o644, write="each")
    def sysname(self) -> str:
        """the name of this node"""
        return f"{self._sysname}\n"

    @sysname.writer
    def _set_sysname(self, text: str) -> None:
        name = text.strip()
        if not _NAME.fullmatch(name):
            raise E.Ebadarg("a name has letters, digits and . _ -")
        self._sysname = name

    @text()
    def kmesg(self) -> str:
        """the last 64 KiB of log"""
        return "".join(self._log.lines)

    @events()
    def kprint(self) -> Stream:
        """what is logged from now on"""
        return self._log.stream

    @text()
    def errstr(self, call: Call) -> str:
        """the last refusals of whoever reads it"""
        return self._errors.text(call.principal)

    @text(perm=0o666, edit=False)
    def snarf(self) -> bytes:
        """the clip; replaced when a writer closes"""
        return self._snarf

    @snarf.writer
    def _set_snarf(self, data: bytes) -> None:
        self._snarf = data

    @text(name="features")
    def all_features(self) -> str:
        """id, state and evidence of each feature"""
        return "".join(f"{feature.line()}\n" for feature in features())


def tree(
    events: Events,
    *,
    sysname: str = "ninep",
    uid: int = 0,
    gid: int = 0,
    log: Log | None = None,
    errors: ErrorLog | None = None,
    sessions: Callable[[], Iterable[msgspec.Struct]] | None = None,
    env: Env = REAL,
    limits: Limits = DEFAULT,
) -> Dir:
    """The devices of one server.  `uid` and `gid` own them: the host owner, who alone may write sysname.

    `log` and `errors` are what the server itself writes to; `sessions` lists what /dev/stats/sessions shows.
    """
    root = Dev(sysname, log or Log(env, limits), errors or ErrorLog(env, limits), env, limits)
    root.uid, root.gid = uid, gid
    about = root.add_child("stats", dev_stats.tree(events, limits, sessions))
    about.uid, about.gid = uid, gid
    return root
