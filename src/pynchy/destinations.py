"""Where agents have connected to, or tried to: a row for each group, day, host and port."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from pynchy.database import Database

log = structlog.get_logger(__name__)

#: An agent chooses the names: so many of one group and day have a row, the others share one.
_MOST_A_DAY = 1000
_OTHERS = "(others)"
_FIND = "SELECT 1 FROM destinations WHERE folder = ? AND day = ? AND host = ? AND port = ?"
_KEPT_FOR = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Destination:
    """What one group's agents did with one host and port on one day: bytes, and why it was last refused."""

    folder: str
    host: str
    port: int
    connections: int
    refusals: int
    sent: int
    received: int
    refused: str


class Destinations:
    """The table of destinations."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def note(
        self, folder: str, host: str, port: int, sent: int = 0, received: int = 0, refused: str = ""
    ) -> None:
        """Count a connection that has ended, or was refused for this reason. A disk that is full is only logged."""
        now = datetime.now(UTC)
        day, oldest = now.date().isoformat(), (now - _KEPT_FOR).date().isoformat()
        host = host.encode("utf-8", "replace").decode()

        def write(db: sqlite3.Connection) -> None:
            where, key = host, (folder, day, host, port)
            if not db.execute(_FIND, key).fetchone():
                (rows,) = db.execute(
                    "SELECT count(*) FROM destinations WHERE folder = ? AND day = ?", (folder, day)
                ).fetchone()
                where = host if rows < _MOST_A_DAY else _OTHERS
                db.execute("DELETE FROM destinations WHERE day < ?", (oldest,))
            db.execute(
                "INSERT INTO destinations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (folder, day, host, port) DO UPDATE SET connections = connections + excluded.connections,"
                " refusals = refusals + excluded.refusals, sent = sent + excluded.sent,"
                " received = received + excluded.received, refused = excluded.refused, last_at = excluded.last_at",
                (
                    *(folder, day, where, port if where == host else 0, 0 if refused else 1, 1 if refused else 0),
                    *(sent, received, refused, now.isoformat()),
                ),
            )

        try:
            await self._db.write(write)
        except sqlite3.Error as error:
            log.warning("could not note a connection", group=folder, host=host, port=port, error=str(error))

    async def today(self, folder: str | None = None, most: int = 20) -> Sequence[Destination]:
        """The latest of today (UTC), of one group or of all."""
        day = datetime.now(UTC).date().isoformat()
        rows = await self._db.read(
            lambda db: db.execute(
                "SELECT folder, host, port, connections, refusals, sent, received, refused FROM destinations"
                " WHERE day = ? AND (? IS NULL OR folder = ?) ORDER BY last_at DESC LIMIT ?",
                (day, folder, folder, most),
            ).fetchall()
        )
        return [Destination(*row) for row in rows]

    async def bytes_today(self) -> dict[str, int]:
        """What each group has sent and received today (UTC), together."""
        day = datetime.now(UTC).date().isoformat()
        rows = await self._db.read(
            lambda db: db.execute(
                "SELECT folder, sum(sent + received) FROM destinations WHERE day = ? GROUP BY folder", (day,)
            ).fetchall()
        )
        return dict(rows)
