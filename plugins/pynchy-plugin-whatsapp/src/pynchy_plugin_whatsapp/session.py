"""The linked device's keys on disk: whether there are any, whose they are, and that one process uses them at a time."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

NAME = "session.db"
NOT_LINKED = "no WhatsApp account is linked here, or its phone has unlinked this device: run `pynchy whatsapp login`"
IN_USE = "another process uses this WhatsApp session: stop the Pynchy service, then try again"


class SessionInUse(Exception):
    """Another process holds the session."""


def linked_number(folder: Path) -> str | None:
    """The phone number of the linked account, None where there is none."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as session:
            row = session.execute("SELECT jid FROM whatsmeow_device LIMIT 1").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    # A device's id is NUMBER.AGENT:DEVICE@SERVER, with the two in the middle left out where they are 0.
    return str(row[0]).partition("@")[0].partition(":")[0].partition(".")[0] if row else None


class SessionLock:
    """Held by the process that uses the session; the system lets it go when that process ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "session.lock"
        self._file: int | None = None

    def take(self, within: float = 0.0) -> None:
        """Take it, or raise SessionInUse after so many seconds."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + within
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    os.close(file)
                    raise SessionInUse(IN_USE) from None
                time.sleep(0.05)
            else:
                self._file = file
                return

    def release(self) -> None:
        """Let it go."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def in_use(folder: Path) -> bool:
    """Whether a process holds the session now."""
    lock = SessionLock(folder)
    try:
        lock.take()
    except SessionInUse:
        return True
    lock.release()
    return False
