"""SQLite: every durable fact. Each public method is one transaction, and there is one writer.

Rows are ordered by their ids, never by time. A message is pending, claimed, done or failed; what goes out is
queued, sent or failed.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiosqlite

from pynchy.types import Group, NewMessage

#: Numbered by position, applied in order, never edited once released.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE groups (
        jid TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        folder TEXT NOT NULL UNIQUE,
        is_main INTEGER NOT NULL DEFAULT 0,
        session_id TEXT
    );
    CREATE TABLE chats (jid TEXT PRIMARY KEY, name TEXT NOT NULL, seen_at TEXT NOT NULL);
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        chat_jid TEXT NOT NULL,
        message_id TEXT NOT NULL,
        sender TEXT NOT NULL,
        sender_name TEXT NOT NULL,
        content TEXT NOT NULL,
        timestamp TEXT NOT NULL,
        is_from_me INTEGER NOT NULL,
        reply_to TEXT,
        thread TEXT,
        state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'claimed', 'done', 'failed')),
        error TEXT,
        UNIQUE (chat_jid, message_id)
    );
    CREATE INDEX messages_open ON messages (chat_jid, id) WHERE state IN ('pending', 'claimed');
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        chat_jid TEXT NOT NULL,
        text TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('reply', 'message', 'notice')),
        state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'sent', 'failed')),
        error TEXT,
        created_at TEXT NOT NULL
    );
    CREATE INDEX outbox_open ON outbox (id) WHERE state = 'queued';
    CREATE TABLE transcripts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        folder TEXT NOT NULL,
        session_id TEXT NOT NULL,
        subpath TEXT NOT NULL,
        uuid TEXT,
        entry TEXT NOT NULL,
        UNIQUE (folder, session_id, subpath, uuid)
    );
    CREATE INDEX transcripts_session ON transcripts (folder, session_id, subpath, id);
    """,
)

#: A page of transcript entries is about this long, in characters.
_PAGE_CHARACTERS = 8 * 1024 * 1024


class StoreError(Exception):
    """The database cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message with its row id."""

    id: int
    sender_name: str
    content: str
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a message ended: `error` is None where it was answered."""

    error: str | None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Something to be sent: a reply, a message the agent sent by itself, or a notice of the host."""

    id: int
    chat_jid: str
    text: str
    kind: str


class Store:
    """The database of one PYNCHY_HOME. Open with `async with Store.open(path)`."""

    def __init__(self, db: aiosqlite.Connection) -> None:
        self._db = db
        self._writing = asyncio.Lock()
        self.installation_id = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Store]:
        """Open or create the database, bring its schema up to date, and close it at the end."""
        try:
            # Not by aiosqlite.connect(): where that fails it leaves a thread that may outlive the event loop.
            opened = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreError(f"cannot open the database {path}: {error}") from None
        db = await aiosqlite.Connection(lambda: opened, iter_chunk_size=64)
        try:
            store = cls(db)
            try:
                await store._prepare(path)
            except aiosqlite.DatabaseError as error:
                raise StoreError(f"cannot use the database {path}: {error}; restore it from a backup") from None
            yield store
        finally:
            await db.close()

    async def _prepare(self, path: Path) -> None:
        await self._db.execute("PRAGMA journal_mode = WAL")
        await self._db.execute("PRAGMA synchronous = FULL")  # a committed row survives a power cut
        await self._db.execute("PRAGMA foreign_keys = ON")
        version = (await self._row("PRAGMA user_version"))[0]
        if version > len(MIGRATIONS):
            raise StoreError(f"the database {path} was written by a newer pynchy; upgrade pynchy")
        for number in range(version, len(MIGRATIONS)):
            await self._db.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;"
            )
        async with self._transaction() as db:
            await db.execute("INSERT OR IGNORE INTO meta VALUES ('installation_id', ?)", (uuid.uuid4().hex[:12],))
        self.installation_id = (await self._row("SELECT value FROM meta WHERE key = 'installation_id'"))[0]

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self._writing:
            try:
                # A cancelled task leaves its statement to the database's thread, which still carries it out:
                # so the BEGIN is inside, and the rollback, behind it in the queue, does nothing if none is due.
                await self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                await asyncio.shield(self._db.execute("COMMIT"))
            except BaseException:
                await asyncio.shield(self._db.rollback())
                raise

    async def _row(self, sql: str, *parameters: Any) -> Any:
        async with self._writing, self._db.execute(sql, parameters) as cursor:  # sees what is committed alone
            return await cursor.fetchone()

    async def _rows(self, sql: str, *parameters: Any) -> Iterable[Any]:
        async with self._writing, self._db.execute(sql, parameters) as cursor:
            return await cursor.fetchall()

    # --- groups and chats -----------------------------------------------------------------------------------

    async def register_group(self, group: Group) -> None:
        """Add a group; one that is registered already stays as it is."""
        async with self._transaction() as db:
            await db.execute(
                "INSERT OR IGNORE INTO groups (jid, name, folder, is_main) VALUES (?, ?, ?, ?)",
                (group.jid, group.name, group.folder, group.is_main),
            )

    async def groups(self) -> dict[str, Group]:
        """Every registered group by its jid."""
        rows = await self._rows("SELECT jid, name, folder, is_main FROM groups")
        return {jid: Group(jid, name, folder, bool(is_main)) for jid, name, folder, is_main in rows}

    async def note_chat(self, jid: str, name: str) -> None:
        """Remember that a chat exists and what it is called."""
        async with self._transaction() as db:
            await db.execute(
                "INSERT INTO chats VALUES (?, ?, ?) ON CONFLICT (jid) DO UPDATE "
                "SET name = excluded.name, seen_at = excluded.seen_at",
                (jid, name, _now()),
            )

    async def session(self, jid: str) -> str | None:
        """The SDK session that a group's next run resumes."""
        row = await self._row("SELECT session_id FROM groups WHERE jid = ?", jid)
        return row[0] if row else None

    async def clear_session(self, jid: str) -> None:
        """Let the group's next run start a new conversation."""
        async with self._transaction() as db:
            await db.execute("UPDATE groups SET session_id = NULL WHERE jid = ?", (jid,))

    # --- messages in ----------------------------------------------------------------------------------------

    async def add_message(self, message: NewMessage) -> int | None:
        """Store a message as pending and return its row id; None where it was stored before."""
        async with (
            self._transaction() as db,
            db.execute(
                "INSERT OR IGNORE INTO messages (chat_jid, message_id, sender, sender_name, content, timestamp,"
                " is_from_me, reply_to, thread) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (
                    message.chat_jid,
                    message.id,
                    message.sender,
                    _storable(message.sender_name),
                    _storable(message.content),
                    message.timestamp.astimezone(UTC).isoformat(),
                    message.is_from_me,
                    message.reply_to,
                    message.thread,
                ),
            ) as cursor,
        ):
            row = await cursor.fetchone()
        return row[0] if row else None

    async def claim(self, jid: str, limit: int) -> list[StoredMessage]:
        """Take a chat's oldest pending messages, at most `limit`, for a run."""
        async with (
            self._transaction() as db,
            db.execute(
                "UPDATE messages SET state = 'claimed' WHERE id IN (SELECT id FROM messages"
                " WHERE chat_jid = ? AND state = 'pending' ORDER BY id LIMIT ?)"
                " RETURNING id, sender_name, content, timestamp",
                (jid, limit),
            ) as cursor,
        ):
            rows = await cursor.fetchall()
        return [StoredMessage(r[0], r[1], r[2], datetime.fromisoformat(r[3])) for r in sorted(rows)]

    async def release(self, ids: Sequence[int] | None = None) -> None:
        """Make claimed messages pending again: these, or with None all, as at a start."""
        async with self._transaction() as db:
            if ids is None:
                await db.execute("UPDATE messages SET state = 'pending' WHERE state = 'claimed'")
            else:
                await db.executemany(
                    "UPDATE messages SET state = 'pending' WHERE id = ? AND state = 'claimed'", [(i,) for i in ids]
                )

    async def chats_with_pending(self) -> list[str]:
        """The chats that wait for an answer, longest waiting first."""
        rows = await self._rows(
            "SELECT chat_jid FROM messages WHERE state = 'pending' GROUP BY chat_jid ORDER BY min(id)"
        )
        return [row[0] for row in rows]

    async def complete(self, jid: str, ids: Sequence[int], reply: str | None, session_id: str | None) -> None:
        """Record an answer: the messages are done, the reply is queued and the session is kept, all at once."""
        async with self._transaction() as db:
            await db.executemany(
                "UPDATE messages SET state = 'done' WHERE id = ? AND chat_jid = ?", [(i, jid) for i in ids]
            )
            if reply:
                await self._enqueue(db, jid, reply, "reply")
            if session_id:
                await db.execute("UPDATE groups SET session_id = ? WHERE jid = ?", (_storable(session_id), jid))

    async def fail(self, jid: str, ids: Sequence[int], reason: str, notice: str) -> None:
        """Record that messages were not answered, and queue the notice that says so."""
        async with self._transaction() as db:
            await db.executemany(
                "UPDATE messages SET state = 'failed', error = ? WHERE id = ? AND chat_jid = ?",
                [(_storable(reason), i, jid) for i in ids],
            )
            await self._enqueue(db, jid, notice, "notice")

    async def outcome(self, row_id: int) -> Outcome | None:
        """How a message ended; None while it is open."""
        row = await self._row("SELECT state, error FROM messages WHERE id = ?", row_id)
        return Outcome(row[1] if row[0] == "failed" else None) if row and row[0] in ("done", "failed") else None

    # --- messages out ---------------------------------------------------------------------------------------

    async def enqueue(self, jid: str, text: str, kind: str) -> None:
        """Queue a text for a chat; `kind` is reply, message or notice."""
        async with self._transaction() as db:
            await self._enqueue(db, jid, text, kind)

    async def _enqueue(self, db: aiosqlite.Connection, jid: str, text: str, kind: str) -> None:
        await db.execute(
            "INSERT INTO outbox (chat_jid, text, kind, created_at) VALUES (?, ?, ?, ?)",
            (jid, _storable(text), kind, _now()),
        )

    async def queued(self, after: int = 0, limit: int = 500) -> list[Outgoing]:
        """What waits to be sent, oldest first: at most `limit`, with ids above `after`."""
        rows = await self._rows(
            "SELECT id, chat_jid, text, kind FROM outbox WHERE state = 'queued' AND id > ? ORDER BY id LIMIT ?",
            after,
            limit,
        )
        return [Outgoing(*row) for row in rows]

    async def mark_sent(self, outgoing_id: int) -> None:
        """Record that the channel has taken it."""
        async with self._transaction() as db:
            await db.execute("UPDATE outbox SET state = 'sent' WHERE id = ?", (outgoing_id,))

    async def mark_unsendable(self, outgoing_id: int, reason: str) -> None:
        """Record that it will not be tried again, and why."""
        async with self._transaction() as db:
            await db.execute(
                "UPDATE outbox SET state = 'failed', error = ? WHERE id = ?", (_storable(reason), outgoing_id)
            )

    # --- transcripts ----------------------------------------------------------------------------------------

    async def append_transcript(
        self, folder: str, session_id: str, subpath: str, entries: Sequence[dict[str, Any]]
    ) -> None:
        """Add transcript entries in order; one with a uuid that is there already is left out."""
        rows = [(folder, session_id, subpath, entry.get("uuid"), _storable_json(entry)) for entry in entries]
        async with self._transaction() as db:
            await db.executemany(
                "INSERT OR IGNORE INTO transcripts (folder, session_id, subpath, uuid, entry) VALUES (?, ?, ?, ?, ?)",
                rows,
            )

    async def load_transcript(
        self, folder: str, session_id: str, subpath: str, after: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """A page of a transcript: entries with a row id above `after`, and where the next page starts."""
        entries: list[dict[str, Any]] = []
        size = 0
        async with self._db.execute(
            "SELECT id, entry FROM transcripts WHERE folder = ? AND session_id = ? AND subpath = ? AND id > ?"
            " ORDER BY id",
            (folder, session_id, subpath, after),
        ) as cursor:
            async for row_id, entry in cursor:
                entries.append(json.loads(entry))
                size += len(entry)
                if size > _PAGE_CHARACTERS:
                    return entries, row_id
        return entries, None

    async def transcript_subpaths(self, folder: str, session_id: str) -> list[str]:
        """The names of a session's sub-agent transcripts."""
        rows = await self._rows(
            "SELECT DISTINCT subpath FROM transcripts WHERE folder = ? AND session_id = ? AND subpath != ''",
            folder,
            session_id,
        )
        return [row[0] for row in rows]


def _storable(text: str) -> str:
    """SQLite's text is UTF-8: a question mark takes the place of half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _storable_json(entry: dict[str, Any]) -> str:
    text = json.dumps(entry, ensure_ascii=False)
    # Half a surrogate pair, where a text was cut inside an emoji, is kept as its escape.
    return text if text.isascii() or text == _storable(text) else json.dumps(entry)


def _now() -> str:
    return datetime.now(UTC).isoformat()
