"""Log records of level warning and above: announced by the test, or a failure."""

from __future__ import annotations

import logging
import re
from types import TracebackType


class StrayLogs(logging.Handler):
    """Collects records of every logger while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self._expected: list[str] = []
        self._allowed: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def expect(self, pattern: str) -> None:
        """The test must log something that matches this regular expression."""
        self._expected.append(pattern)

    def allow(self, pattern: str) -> None:
        """The test may log something that matches this regular expression."""
        self._allowed.append(pattern)

    def complaints(self) -> list[str]:
        """What was logged and not announced, and what was expected and never logged."""
        texts = [(record, logging.Formatter().format(record)) for record in self.records]
        known = [*self._expected, *self._allowed]
        stray = [
            f"logged without announcement: {record.levelname} {record.name}: {text}"
            for record, text in texts
            if not any(re.search(pattern, text) for pattern in known)
        ]
        silent = [p for p in self._expected if not any(re.search(p, text) for _, text in texts)]
        return stray + [f"expected in the log, and not there: {pattern}" for pattern in silent]

    def __enter__(self) -> StrayLogs:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        logging.getLogger().removeHandler(self)
