"""What servers write to standard error: one escaped line per record, tracebacks below it."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable

from ninep.observe import SEVERITIES

from .output import escaped

MESSAGE_CHARS_MAX = 1024

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Formatter(logging.Formatter):
    """A peer's words are in some records: nothing of them may steer a terminal or begin a line (SEC-75)."""

    def __init__(self, *, for_journal: bool) -> None:
        super().__init__()
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        head = f"<{_PRIORITY.get(record.levelno, 6)}>" if self._for_journal else ""
        text = f"{head}ninep: {record.levelname.lower()}: {escaped(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            text += "\n" + "\n".join(f"{head}    {escaped(line)}" for line in trace.splitlines())
        return text


def start_logging(level: str, *, quiet: bool = False, verbose: int = 0) -> None:
    """Records of ninep and of the trees go to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(for_journal=bool(os.environ.get("JOURNAL_STREAM"))))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level, quiet=quiet, verbose=verbose)


def set_level(level: str, *, quiet: bool = False, verbose: int = 0) -> None:
    wanted = "error" if quiet else "debug" if verbose else os.environ.get("NINEP_LOG", level)
    number = logging.getLevelName(wanted.upper())
    logging.getLogger().setLevel(number if isinstance(number, int) else logging.INFO)


class _ToTree(logging.Handler):
    """Gives each record to /dev/log too.  Only from the thread that serves: streams are not for two threads."""

    def __init__(self, add: Callable[[str, str, str], None]) -> None:
        super().__init__()
        self._add = add

    def emit(self, record: logging.LogRecord) -> None:
        if threading.current_thread() is threading.main_thread():
            severity = record.levelname.lower()
            self._add(severity if severity in SEVERITIES else "error", "ninep", record.getMessage()[:MESSAGE_CHARS_MAX])


def also_to(add: Callable[[str, str, str], None]) -> None:
    """From now on `add(severity, who, message)` hears every record."""
    logging.getLogger().addHandler(_ToTree(add))


def to_syslog() -> None:
    """A process without a terminal: records go to the system's log, where there is one."""
    from logging.handlers import SysLogHandler

    root = logging.getLogger()
    handler: logging.Handler = logging.NullHandler()
    if os.path.exists("/dev/log"):
        try:
            handler = SysLogHandler("/dev/log")
        except OSError:
            pass
    handler.setFormatter(_Formatter(for_journal=False))
    root.handlers[:] = [handler, *(held for held in root.handlers if isinstance(held, _ToTree))]
