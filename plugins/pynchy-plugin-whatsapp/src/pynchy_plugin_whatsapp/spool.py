"""What WhatsApp has handed over and Pynchy has not stored yet, on disk; and whose message ids are known.

WhatsApp's own acknowledgement goes out before anybody can store a message, so what is added here must survive
everything until it is removed. Once `add` has returned it survives the process; for the sake of a power failure the
disk is told at once, without anybody waiting: while a caller waits, more would stay in the memory of Go.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

NAME = "spool.db"
_REMEMBERED = 20_000
_SET_ASIDE = 100
_SCHEMA = """
CREATE TABLE IF NOT EXISTS received (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, event BLOB NOT NULL,
    reading INTEGER NOT NULL DEFAULT 0, fetching INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS set_aside (seq INTEGER PRIMARY KEY, event BLOB NOT NULL, why TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS known (
    row INTEGER PRIMARY KEY AUTOINCREMENT, chat TEXT NOT NULL, id TEXT NOT NULL, sender TEXT NOT NULL,
    ours INTEGER NOT NULL, UNIQUE (chat, id));
"""


class Received(NamedTuple):
    """One event: `reading` and `fetching` count how often that began with it and did not come to an end."""

    seq: int
    event: bytes
    reading: int
    fetching: int


class Spool:
    """The spool in a folder. Every method may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        self._lock = threading.Lock()
        self._file = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = NORMAL")
        self._file.executescript(_SCHEMA)
        self._added = threading.Event()
        self._closed = False
        self._syncing = threading.Thread(target=self._sync, args=(folder / f"{NAME}-wal",), daemon=True)
        self._syncing.start()

    def add(self, event: bytes) -> int:
        """Keep an event; returns its number."""
        with self._lock:
            seq = self._file.execute("INSERT INTO received (event) VALUES (?)", (event,)).lastrowid or 0
        self._added.set()
        return seq

    def _sync(self, path: Path) -> None:
        """Have the disk take what was added, as often as it can."""
        while self._added.wait() and not self._closed:
            self._added.clear()
            try:
                log = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.fsync(log)
                finally:
                    os.close(log)
            except OSError:
                continue  # there is nothing in it, or the next one will be told

    def after(self, seq: int) -> Received | None:
        """The first event after that one."""
        query = "SELECT seq, event, reading, fetching FROM received WHERE seq > ? ORDER BY seq LIMIT 1"
        with self._lock, closing(self._file.execute(query, (seq,))) as found:
            row = found.fetchone()
        return Received(*row) if row else None

    def get(self, seq: int) -> Received | None:
        """One event, if it is still here."""
        found = self.after(seq - 1)
        return found if found and found.seq == seq else None

    @contextmanager
    def during(self, work: Literal["reading", "fetching"], seq: int) -> Iterator[None]:
        """Note that some work on an event begins, which may end this process, and when it comes to an end."""
        self._write(f"UPDATE received SET {work} = {work} + 1 WHERE seq = ?", seq)  # noqa: S608 - one of two words
        try:
            yield
        finally:
            self._write(f"UPDATE received SET {work} = 0 WHERE seq = ?", seq)  # noqa: S608

    def remove(self, seq: int) -> None:
        """Forget an event that is stored elsewhere or concerns nobody."""
        self._write("DELETE FROM received WHERE seq = ?", seq)

    def set_aside(self, seq: int, why: str) -> None:
        """Take an event out of the way that cannot be delivered; the latest of them are kept."""
        with self._lock:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.execute(
                "INSERT OR REPLACE INTO set_aside SELECT seq, event, ? FROM received WHERE seq = ?", (why, seq)
            )
            self._file.execute("DELETE FROM received WHERE seq = ?", (seq,))
            self._file.execute(
                "DELETE FROM set_aside WHERE seq NOT IN (SELECT seq FROM set_aside ORDER BY seq DESC LIMIT ?)",
                (_SET_ASIDE,),
            )
            self._file.execute("COMMIT")

    def waiting(self) -> int:
        """How many events wait."""
        with self._lock, closing(self._file.execute("SELECT count(*) FROM received")) as found:
            return int(found.fetchone()[0])

    def remember(self, chat: str, message_id: str, sender: str, ours: bool = False) -> None:
        """Note whose a message is, and whether this device has sent it."""
        with self._lock:
            row = self._file.execute(
                "INSERT INTO known (chat, id, sender, ours) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (chat, message_id, sender, ours),
            ).lastrowid
            if row and row % 500 == 0:
                self._file.execute("DELETE FROM known WHERE row <= ?", (row - _REMEMBERED,))

    def sender_of(self, chat: str, message_id: str) -> str | None:
        """Who has sent a message, if that is remembered."""
        return self._known("SELECT sender FROM known WHERE chat = ? AND id = ?", chat, message_id)

    def is_ours(self, chat: str, message_id: str) -> bool:
        """Whether this device has sent it."""
        return self._known("SELECT 1 FROM known WHERE chat = ? AND id = ? AND ours", chat, message_id) is not None

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._file.close()
        self._closed = True
        self._added.set()
        self._syncing.join()

    def _write(self, statement: str, seq: int) -> None:
        with self._lock:
            self._file.execute(statement, (seq,))

    def _known(self, query: str, chat: str, message_id: str) -> str | None:
        with self._lock, closing(self._file.execute(query, (chat, message_id))) as found:
            row = found.fetchone()
        return row[0] if row else None
