"""The service's log in PYNCHY_HOME: a file for each day (UTC), a line of JSON for each event."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

from pynchy.home import make_private

#: An agent can make lines as quickly as it likes, and the disk is for more than that.
_MOST_A_DAY = 256 * 1024 * 1024
_FULL = b'{"time": "%s", "level": "error", "event": "the log of this day is full; no more is written until the next"}\n'


def utc_now() -> datetime:
    """The time of a line."""
    return datetime.now(UTC)


def log_folder(home: Path) -> Path:
    """Where the files are; it may not exist yet."""
    return home / "logs"


def log_files(home: Path) -> dict[date, Path]:
    """The files that there are, by their day, oldest first."""
    found = {}
    for path in log_folder(home).glob("*.jsonl"):
        with contextlib.suppress(ValueError):
            found[date.fromisoformat(path.stem)] = path
    return dict(sorted(found.items()))


def remove_before(home: Path, day: date) -> int:
    """Remove the files of the days before this one (UTC); returns how many. OSError where one stays."""
    old = [path for written, path in log_files(home).items() if written < day]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


class LogFile(logging.Handler):
    """Appends each line to the file of its day. What the disk does not take is lost, and disturbs nobody.

    The file is opened for each line: it may be removed, or become writable again, at any time.
    """

    def __init__(self, home: Path, level: int, most: int = _MOST_A_DAY, now: Callable[[], datetime] = utc_now) -> None:
        super().__init__(level)
        self._home = home
        self._most = most
        self._now = now
        self._full: date | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        with contextlib.suppress(Exception):  # also one that a plugin's arguments do not fit into
            now = self._now()
            if self._full != now.date():
                self._append(now, self.format(record).encode("utf-8", "backslashreplace") + b"\n")

    def _append(self, now: datetime, line: bytes) -> None:
        path = log_folder(self._home) / f"{now.date()}.jsonl"
        try:
            descriptor = _open(path)
        except FileNotFoundError:
            make_private(path.parent)
            descriptor = _open(path)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # the disk was full in the middle of a line
            if size + len(line) > self._most:
                self._full = now.date()
                line = _FULL % now.isoformat().encode()
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
