"""What the tests see of a database file from outside, and the trouble that they make there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any


def raw(path: Path) -> closing[sqlite3.Connection]:
    """A connection that commits each statement by itself, and closes at the end of its `with`."""
    return closing(sqlite3.connect(path, isolation_level=None))


def rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """What a query finds in a file now."""
    with raw(path) as db:
        return db.execute(sql, values).fetchall()


def column(path: Path, sql: str, *values: Any) -> list[Any]:
    """The first column of what a query finds."""
    return [row[0] for row in rows(path, sql, *values)]


def set_room(db: sqlite3.Connection, pages: int) -> None:
    """Let the file grow by so many pages and no more, as on a disk that is nearly full (for this connection)."""
    (now,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {now + pages}").fetchone()


def damage(path: Path) -> list[tuple[Any, ...]]:
    """What SQLite finds wrong with a file, and references to rows that are not there."""
    return [row for row in rows(path, "PRAGMA integrity_check") if row != ("ok",)] + rows(
        path, "PRAGMA foreign_key_check"
    )


def queued(path: Path) -> list[tuple[Any, ...]]:
    """The chat, text and kind of everything that waits to be sent."""
    return rows(path, "SELECT chat_jid, text, kind FROM outbox WHERE state = 'queued' ORDER BY id")


@contextmanager
def outbox_that_takes_nothing(path: Path) -> Iterator[None]:
    """Meanwhile every insert into the outbox fails."""
    with raw(path) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'no room'); END")
        yield
        db.execute("DROP TRIGGER full")
