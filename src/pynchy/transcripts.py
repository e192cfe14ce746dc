"""What the SDK has written of each conversation, line by line: the table of transcripts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pynchy.database import Database, as_key, as_text

#: A page of transcript entries is about this long, in characters.
_PAGE_CHARACTERS = 8 * 1024 * 1024


class Transcripts:
    """The transcripts of every group, by folder, session and (for a sub-agent's) subpath."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def append(self, folder: str, session_id: str, subpath: str, entries: Sequence[dict[str, Any]]) -> int:
        """Add entries in order; one with a uuid that is there already is left out.

        Returns the row id behind which whatever is stored later will be.
        """
        at = datetime.now(UTC).isoformat()
        rows = [(folder, session_id, subpath, _entry_key(entry), _storable_json(entry), at) for entry in entries]

        def append(db: sqlite3.Connection) -> int:
            db.executemany(
                "INSERT OR IGNORE INTO transcripts (folder, session_id, subpath, uuid, entry, at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
            return db.execute("SELECT coalesce(max(id), 0) FROM transcripts").fetchone()[0]

        return await self._db.write(append)

    async def load(
        self, folder: str, session_id: str, subpath: str, after: int, until: int | None = None
    ) -> tuple[list[dict[str, Any]], int | None]:
        """A page: entries with a row id above `after` and up to `until`, and where the next page starts."""

        def load(db: sqlite3.Connection) -> tuple[list[dict[str, Any]], int | None]:
            entries: list[dict[str, Any]] = []
            size = 0
            for row_id, entry in db.execute(
                "SELECT id, entry FROM transcripts WHERE folder = ? AND session_id = ? AND subpath = ?"
                " AND id > ? AND (? IS NULL OR id <= ?) AND NOT dropped ORDER BY id",
                (folder, session_id, subpath, after, until, until),
            ):
                entries.append(json.loads(entry))
                size += len(entry)
                if size > _PAGE_CHARACTERS:
                    return entries, row_id
            return entries, None

        return await self._db.read(load)

    async def subpaths(self, folder: str, session_id: str) -> list[str]:
        """The names of a session's sub-agent transcripts."""
        rows = await self._db.read(
            lambda db: db.execute(
                "SELECT DISTINCT subpath FROM transcripts"
                " WHERE folder = ? AND session_id = ? AND subpath != '' AND NOT dropped",
                (folder, session_id),
            ).fetchall()
        )
        return [row[0] for row in rows]


def _entry_key(entry: dict[str, Any]) -> str | None:
    key = entry.get("uuid")
    return as_key(key) if isinstance(key, str) else None


def _storable_json(entry: dict[str, Any]) -> str:
    text = json.dumps(entry, ensure_ascii=False)
    # Half a surrogate pair, where a text was cut inside an emoji, is kept as its escape.
    return text if text.isascii() or text == as_text(text) else json.dumps(entry)
