"""Long answers, a piece at a time: a file read ahead, a directory read in batches.  Flows, for both drivers.

Nothing here keeps more than a window in memory, and nothing believes that a server comes to an end.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ninep.edges import client_checks as checks
from ninep.edges.client_core import Core
from ninep.edges.client_ops import DOTL, DOTU, Opened, as_reply, drop
from ninep.edges.client_pending import Flow, Pending
from ninep.proto import dotl as L
from ninep.proto import errors as E
from ninep.proto import messages as M
from ninep.proto.types import OFFSET_MAX, Entry, Qid, Stat, dtype_of

READDIR_BYTES_MAX: Final = 256 << 10
WINDOW_BYTES_FIRST: Final = 256 << 10


class ReadAhead:
    """One open file read in order, with several Treads in flight.

    Only inside the size that the server stated are reads sent ahead: a read past it may be one of a stream, where
    asking takes a message away.  The window doubles while replies come back full, to Limits.client_window_bytes.
    """

    def __init__(self, core: Core, fid: int, *, offset: int = 0, size: int = 0, iounit: int = 0) -> None:
        self._core = core
        self._fid = fid
        self._size = size
        self._chunk = min(iounit, core.io_bytes_max) if iounit else core.io_bytes_max
        self._window = min(WINDOW_BYTES_FIRST, core.limits.client_window_bytes)
        self._asked: deque[tuple[Pending, int]] = deque()
        self._asked_bytes = 0
        self._ask_at = offset
        self.offset = offset  # of the next piece

    def next(self) -> Flow[bytes]:
        """The next piece; b"" is the end, as far as the server says now.

        A piece that nobody waits for any more is asked for again by the next call.
        """
        self._ask()
        pending, count = self._asked.popleft()
        self._asked_bytes -= count
        try:
            reply = yield pending
        except BaseException:
            self._core.discard(pending)
            self._restart()
            raise
        data = bytes(as_reply(reply, M.Rread).data)
        self.offset += len(data)
        if len(data) < count:
            self._restart()  # what follows was asked for at the wrong place
            if not data:
                self._size = 0
        else:
            self._window = min(2 * self._window, self._core.limits.client_window_bytes)
        return data

    def close(self) -> None:
        """Flush what is in flight."""
        self._restart()

    def _ask(self) -> None:
        while True:
            ahead = self._size - self._ask_at
            if self._asked and (ahead <= 0 or self._asked_bytes >= self._window or len(self._asked) >= 64):
                return
            count = min(self._chunk, OFFSET_MAX - self._ask_at)
            if ahead > 0:
                count = min(count, ahead)
            if count <= 0:
                raise E.Efbig
            self._asked.append((self._core.submit(M.Tread(self._fid, self._ask_at, count)), count))
            self._asked_bytes += count
            self._ask_at += count

    def _restart(self) -> None:
        drop(self._core, [pending for pending, _ in self._asked])
        self._asked.clear()
        self._asked_bytes = 0
        self._ask_at = self.offset
        self._window = min(WINDOW_BYTES_FIRST, self._core.limits.client_window_bytes)


class DirReader:
    """One open directory.  Entries carry the server's own qids; names are checked, `.` and `..` left out.

    Cookies: .L's are the server's; for the older dialects they are ordinal numbers, and one that is no longer held
    costs a read from the start.
    """

    def __init__(self, core: Core, opened: Opened) -> None:
        self._core = core
        self.fid = opened.fid
        self._seen = 0
        self._at = 0  # the server's offset after the batch that is held
        self._base = 0  # ordinal of the first entry held
        self._held: list[Entry] = []

    def after(self, cookie: int) -> Flow[list[Entry]]:
        """Entries after the cookie; none is the end.  Raises Eio for a directory that does not end (SEC-64)."""
        if cookie == 0:
            self._seen = 0
        if self._core.mark is DOTL:
            entries = yield from self._readdir(cookie)
        else:
            entries = yield from self._read(cookie)
        self._seen += len(entries)
        if self._seen > self._core.limits.client_dir_entries_max:
            raise E.Eio(f"directory of more than {self._core.limits.client_dir_entries_max} entries")
        return entries

    def _readdir(self, cookie: int) -> Flow[list[Entry]]:
        core = self._core
        while True:
            reply = yield core.submit(L.Treaddir(self.fid, cookie, min(core.io_bytes_max, READDIR_BYTES_MAX)))
            data = bytes(as_reply(reply, L.Rreaddir).data)
            if not data:
                return []
            entries, dropped, last = checks.dirents(data)
            core.names_dropped += dropped
            if last == cookie or not 0 < last <= OFFSET_MAX:
                raise E.Eio("directory cookie that does not advance")
            if entries:
                return entries
            cookie = last
            self._count_empty()

    def _count_empty(self) -> None:
        """A batch without one good name counts as one entry, or a server could send such batches for ever."""
        self._seen += 1
        if self._seen > self._core.limits.client_dir_entries_max:
            raise E.Eio("directory without end")

    def _read(self, cookie: int) -> Flow[list[Entry]]:
        if cookie < self._base or cookie == 0:
            self._base = self._at = 0
            self._held = []
        while cookie >= self._base + len(self._held):
            more = yield from self._next_records()
            if not more:
                if cookie > self._base + len(self._held):
                    raise E.Ediroffset
                return []
            self._base += len(self._held)
            self._held = [e._replace(cookie=self._base + i) for i, e in enumerate(more, 1)]
        return self._held[cookie - self._base :]

    def _next_records(self) -> Flow[list[Entry]]:
        core = self._core
        dotu = core.mark is DOTU
        while True:
            count = min(core.io_bytes_max, READDIR_BYTES_MAX)
            reply = yield core.submit(M.Tread(self.fid, self._at, count))
            data = bytes(as_reply(reply, M.Rread).data)
            if not data:
                return []
            self._at += len(data)
            records, dropped = checks.stat_records(data, dotu)
            core.names_dropped += dropped
            entries = [_entry(r.name, checks.stat_of_record_lenient(r, dotu), r.qid) for r in records]
            if entries:
                return entries
            self._count_empty()


def _entry(name: str, st: Stat | None, qid: Qid) -> Entry:
    return Entry(name, qid, dtype_of(st.st_mode) if st else 0, 0, st)
