"""Every durable fact, as rows of one SQLite file. Each public method is one transaction.

Rows are ordered by their ids, never by time. A message is pending, claimed, done or failed; what goes out is
queued, sent or failed.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog

from pynchy.database import Database, as_key, as_text
from pynchy.destinations import Destinations
from pynchy.group_rows import GROUP_COLUMNS, end_session, group_columns, groups_in
from pynchy.messages import (
    MOST_CONTEXT,
    MOST_QUOTED,
    KeptAttachment,
    Outcome,
    Said,
    StoredMessage,
    Wants,
    as_ids,
    batch,
    judge,
    leave_unseen,
    nothing_asks,
    stored,
)
from pynchy.outgoing import Outgoing, enqueue
from pynchy.removals import Removals
from pynchy.schema import NewerSchema, migrate
from pynchy.tasks import Tasks
from pynchy.transcripts import Transcripts
from pynchy.types import Group, NewMessage, PluginReport
from pynchy.usage import Usage

log = structlog.get_logger(__name__)

_Result = TypeVar("_Result")


class StoreError(Exception):
    """The database cannot be used; the message says why and what to do."""


class Store:
    """The database of one PYNCHY_HOME. Open with `async with Store.open(path)`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.installation_id = ""
        self.destinations = Destinations(db)
        self.removals = Removals(db)
        self.tasks = Tasks(db)
        self.transcripts = Transcripts(db)
        self.usage = Usage(db)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Store]:
        """Open or create the database, bring its schema up to date, and close it at the end."""
        async with cls._opened(path) as db:
            store = cls(db)
            (store.installation_id,) = await db.read(
                lambda db: db.execute("SELECT value FROM meta WHERE key = 'installation_id'").fetchone()
            )
            yield store

    @staticmethod
    @asynccontextmanager
    async def _opened(path: Path) -> AsyncIterator[Database]:
        opening = Database.open(path, migrate)
        try:
            database = await opening.__aenter__()
        except NewerSchema:
            raise StoreError(f"the database {path} was written by a newer pynchy; upgrade pynchy") from None
        except sqlite3.OperationalError as error:
            raise StoreError(f"cannot open the database {path}: {error}") from None
        except sqlite3.Error as error:
            raise StoreError(f"cannot use the database {path}: {error}; restore it from a backup") from None
        try:
            yield database
        finally:
            await opening.__aexit__(None, None, None)

    async def until_stored(self, write: Callable[[], Awaitable[_Result]]) -> _Result:
        """Repeat a write until the database takes it: a full disk holds things up, and loses nothing."""
        pause = 0.25
        while True:
            try:
                return await write()
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
                    raise  # a statement that is wrong stays wrong
                log.error("the database does not take a write; trying again", error=str(error), pause=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 15)

    async def look(self, query: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """What a query finds that is none of this room's."""
        return await self._db.read(query)

    # --- groups and chats -----------------------------------------------------------------------------------

    async def register_group(self, group: Group, wants: Wants = nothing_asks) -> None:
        """Add a group; one that is registered already stays as it is. ValueError where its folder is taken.

        `wants` says which of the messages that were stored before ask for an answer.
        """

        def register(db: sqlite3.Connection) -> None:
            try:
                added = db.execute(
                    f"INSERT INTO groups (jid, folder, {', '.join(GROUP_COLUMNS)})"  # noqa: S608 - names of ours
                    f" VALUES (?, ?, {', '.join('?' for _ in GROUP_COLUMNS)}) ON CONFLICT (jid) DO NOTHING",
                    (group.jid, group.folder, *group_columns(group)),
                ).rowcount
            except sqlite3.IntegrityError:
                raise ValueError(f"the folder {group.folder!r} belongs to another chat; choose another") from None
            if added:
                judge(db, group.jid, wants)

        await self._db.write(register)

    async def groups(self) -> dict[str, Group]:
        """Every registered group by its jid."""
        return await self._db.read(groups_in)

    async def update_group(self, group: Group, wants: Wants = nothing_asks) -> None:
        """Give the group of this jid another name and other settings; its folder never changes.

        `wants` says which of the messages that were context ask for an answer now.
        """

        def update(db: sqlite3.Connection) -> None:
            db.execute(
                f"UPDATE groups SET {', '.join(f'{name} = ?' for name in GROUP_COLUMNS)} WHERE jid = ?",  # noqa: S608
                (*group_columns(group), group.jid),
            )
            judge(db, group.jid, wants)

        await self._db.write(update)

    async def remove_group(self, jid: str) -> None:
        """Answer a chat no longer; what was said in it stays in the history."""
        await self._db.write(lambda db: db.execute("DELETE FROM groups WHERE jid = ?", (jid,)))

    async def people(self, jid: str) -> dict[str, str]:
        """Who has written in a chat: what each is called, by their ids on the channel."""
        rows = await self._db.read(
            lambda db: db.execute(
                "SELECT sender, sender_name, max(id) FROM messages WHERE chat_jid = ?"
                " GROUP BY sender ORDER BY max(id) DESC LIMIT 200",
                (jid,),
            ).fetchall()
        )
        return {sender: name for sender, name, _ in rows}

    async def note_chat(self, jid: str, name: str) -> None:
        """Remember that a chat exists and what it is called."""
        await self._db.write(
            lambda db: db.execute(
                "INSERT INTO chats VALUES (?, ?, ?) ON CONFLICT (jid) DO UPDATE "
                "SET name = excluded.name, seen_at = excluded.seen_at",
                (jid, as_text(name), _now()),
            )
        )

    async def chats(self) -> dict[str, str]:
        """The names of the chats that were seen, by jid."""
        return dict(await self._db.read(lambda db: db.execute("SELECT jid, name FROM chats").fetchall()))

    # --- conversations --------------------------------------------------------------------------------------

    async def resume(self, jid: str) -> str | None:
        """The SDK session that a group's next run continues, None for a new one.

        It ends where its last answer does: what a run wrote that was never answered is dropped.
        """

        def end_at_the_last_answer(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT folder, session_id, session_end FROM groups WHERE jid = ?", (jid,)).fetchone()
            if row is None or row[1] is None:
                return None
            db.execute(
                "UPDATE transcripts SET dropped = 1, uuid = NULL"
                " WHERE folder = ? AND session_id = ? AND id > ? AND NOT dropped",
                row,
            )
            return row[1]

        return await self._db.write(end_at_the_last_answer)

    async def session(self, jid: str) -> tuple[str, int] | None:
        """A chat's conversation as it is now: its id, and the row id where its last answer ends."""
        row = await self._db.read(
            lambda db: db.execute("SELECT session_id, session_end FROM groups WHERE jid = ?", (jid,)).fetchone()
        )
        return (row[0], row[1]) if row and row[0] is not None else None

    async def end_session(self, jid: str) -> None:
        """Let a chat's next message begin a new conversation; this one stays in the history."""
        await self._db.write(lambda db: end_session(db, jid))

    async def set_session_aside(self, jid: str, notice: str) -> None:
        """Let the group's next run begin a new conversation, to see whether that is answered.

        If it is, the old one is forgotten and the notice queued; if not, the old one was not the reason and
        is taken up again.
        """
        await self._db.write(
            lambda db: db.execute(
                "UPDATE groups SET aside_id = session_id, aside_end = session_end, aside_notice = ?,"
                " session_id = NULL, session_end = 0 WHERE jid = ? AND session_id IS NOT NULL",
                (as_text(notice), jid),
            )
        )

    # --- messages in ----------------------------------------------------------------------------------------

    async def add_message(
        self,
        message: NewMessage,
        answer: str | None = None,
        asks: bool = True,
        attachments: Sequence[KeptAttachment] = (),
    ) -> int | None:
        """Store a message and return its row id; None where it was stored before.

        It is pending, or with an `answer`, which is then queued as a notice, done. One that does not ask waits
        to be seen with one that does.
        """
        values = (
            message.chat_jid,
            as_key(message.id),
            as_text(message.sender),
            as_text(message.sender_name),
            as_text(message.content),
            message.timestamp.astimezone(UTC).isoformat(),
            message.is_from_me,
            message.reply_to and as_key(message.reply_to),
            message.thread and as_key(message.thread),
            asks,
            json.dumps([asdict(one) for one in attachments]),
            message.quote and as_text(message.quote)[:MOST_QUOTED],
            message.edits and as_key(message.edits),
        )

        def add(db: sqlite3.Connection) -> int | None:
            row = db.execute(
                "INSERT INTO messages (chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me,"
                " reply_to, thread, asks, attachments, quote, edits)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (chat_jid, message_id) DO NOTHING RETURNING id",
                values,
            ).fetchone()
            if row:
                db.execute(
                    "INSERT INTO chats VALUES (?, '', ?) ON CONFLICT (jid) DO UPDATE SET seen_at = excluded.seen_at",
                    (message.chat_jid, _now()),
                )
            if row and answer is not None:
                outbox_id = enqueue(db, message.chat_jid, answer, "notice")
                db.execute("UPDATE messages SET state = 'done', answered_by = ? WHERE id = ?", (outbox_id, row[0]))
            return row[0] if row else None

        return await self._db.write(add)

    async def has_message(self, jid: str, message_id: str) -> bool:
        """Whether a message was stored before, by its id on the channel."""
        row = await self._db.read(
            lambda db: db.execute(
                "SELECT 1 FROM messages WHERE chat_jid = ? AND message_id = ?", (jid, as_key(message_id))
            ).fetchone()
        )
        return row is not None

    async def claim(
        self, jid: str, most: int, characters: int, alone: Callable[[str], bool] = lambda content: False
    ) -> list[StoredMessage]:
        """Take a chat's oldest pending messages for a run, with what is context for them.

        At most so many that ask, and so many characters of text in all; the first comes however long it is. One
        whose content is `alone` comes without any other. Of what was said before the first that asks, only the
        latest comes: older is done unseen, and still in the history.
        """

        def take(db: sqlite3.Connection) -> list[StoredMessage]:
            first = db.execute(
                "SELECT min(id) FROM messages WHERE chat_jid = ? AND state = 'pending' AND asks", (jid,)
            ).fetchone()[0]
            if first is None:
                return []
            leave_unseen(db, jid, first)
            rows = db.execute(
                "SELECT id, sender_name, content, timestamp, attempts, asks, attachments, message_id, reply_to, quote,"
                " edits FROM messages WHERE chat_jid = ? AND state = 'pending' ORDER BY id LIMIT ?",
                (jid, MOST_CONTEXT + most),
            )
            taken = batch([stored(*row) for row in rows], most, characters, alone)
            db.execute(
                "UPDATE messages SET state = 'claimed' WHERE id IN (SELECT value FROM json_each(?))",
                (as_ids(message.id for message in taken),),
            )
            return taken

        return await self._db.write(take)

    async def unheard(self, jid: str) -> list[Said]:
        """What was said in a chat without its own conversation, oldest first; of much, the latest."""
        rows = await self._db.read(
            lambda db: db.execute(
                "SELECT id, text, created_at FROM outbox WHERE chat_jid = ? AND unseen ORDER BY id DESC LIMIT 20",
                (jid,),
            ).fetchall()
        )
        return [Said(row_id, text, datetime.fromisoformat(at)) for row_id, text, at in reversed(rows)]

    async def newest_message(self) -> int:
        """The row id of the message that was stored last, in any chat; 0 before the first."""
        return await self._db.read(lambda db: db.execute("SELECT coalesce(max(id), 0) FROM messages").fetchone()[0])

    async def drop_pending(self, jid: str, reason: str, newest: int) -> list[int]:
        """Give up what waits for an answer in a chat and has not been begun, up to this message; returns which."""

        def drop(db: sqlite3.Connection) -> list[int]:
            return [
                row[0]
                for row in db.execute(
                    "UPDATE messages SET state = 'failed', error = ?"
                    " WHERE chat_jid = ? AND state = 'pending' AND asks AND id <= ? RETURNING id",
                    (as_text(reason), jid, newest),
                ).fetchall()
            ]

        return await self._db.write(drop)

    async def has_pending(self, jid: str) -> bool:
        """Whether a chat waits for an answer."""
        row = await self._db.read(
            lambda db: db.execute(
                "SELECT 1 FROM messages WHERE chat_jid = ? AND state = 'pending' AND asks LIMIT 1", (jid,)
            ).fetchone()
        )
        return row is not None

    async def chats_with_pending(self) -> list[str]:
        """The chats that wait for an answer, longest waiting first."""
        rows = await self._db.read(
            lambda db: db.execute(
                "SELECT chat_jid FROM messages WHERE state = 'pending' AND asks GROUP BY chat_jid ORDER BY min(id)"
            ).fetchall()
        )
        return [row[0] for row in rows]

    async def mark_acted(self, ids: Sequence[int]) -> None:
        """Record that a tool is about to run for these: from now on, repeating them could act twice."""
        await self._db.write(
            lambda db: db.execute(
                "UPDATE messages SET acted = 1 WHERE id IN (SELECT value FROM json_each(?)) AND state = 'claimed'",
                (as_ids(ids),),
            )
        )

    async def release(self, ids: Sequence[int] | None, reason: str, notice: str) -> list[int]:
        """End a run that gave no answer to these messages, or with None, every run of an earlier service.

        They are pending again; but those that a tool may have acted for are failed, with a notice in each
        chat, and returned.
        """

        def give_back(db: sqlite3.Connection) -> list[int]:
            these = ids
            if these is None:
                these = [row[0] for row in db.execute("SELECT id FROM messages WHERE state = 'claimed'")]
            acted = db.execute(
                "SELECT chat_jid, id FROM messages WHERE id IN (SELECT value FROM json_each(?))"
                " AND state = 'claimed' AND acted ORDER BY id",
                (as_ids(these),),
            ).fetchall()
            for jid in dict.fromkeys(jid for jid, _ in acted):
                _fail(db, jid, [row_id for chat, row_id in acted if chat == jid], reason, notice)
            db.execute(
                "UPDATE messages SET state = 'pending' WHERE id IN (SELECT value FROM json_each(?))"
                " AND state = 'claimed'",
                (as_ids(these),),
            )
            return [row_id for _, row_id in acted]

        return await self._db.write(give_back)

    async def retry(self, ids: Sequence[int], reason: str) -> None:
        """Record an attempt that failed; the messages are pending again."""
        await self._db.write(
            lambda db: db.execute(
                "UPDATE messages SET state = 'pending', attempts = attempts + 1, error = ?"
                " WHERE id IN (SELECT value FROM json_each(?)) AND state = 'claimed'",
                (as_text(reason), as_ids(ids)),
            )
        )

    async def complete(
        self,
        jid: str,
        ids: Sequence[int],
        reply: str | None,
        session_id: str | None,
        transcript_end: int | None = None,
        heard: int = 0,
    ) -> None:
        """Record an answer: the messages are done, the reply is queued and the session is kept, all at once.

        `transcript_end` is where the session's transcript ended when the answer was given; None leaves it
        where it was. `heard` is up to which text of others the conversation knows now.
        """

        def record(db: sqlite3.Connection) -> None:
            _forget_aside(db, jid)
            reply_id = enqueue(db, jid, reply, "reply") if reply else None
            db.execute(
                # The plus keeps SQLite from reading the whole chat through an index for these few rows.
                "UPDATE messages SET state = 'done', error = NULL, answered_by = ?"
                " WHERE id IN (SELECT value FROM json_each(?)) AND +chat_jid = ?",
                (reply_id, as_ids(ids), jid),
            )
            if heard:
                db.execute("UPDATE outbox SET unseen = 0 WHERE chat_jid = ? AND id <= ? AND unseen", (jid, heard))
            if session_id:
                db.execute(
                    "UPDATE groups SET session_id = ?, session_end = coalesce(?, session_end) WHERE jid = ?",
                    (as_text(session_id), transcript_end, jid),
                )

        await self._db.write(record)

    async def fail(self, jid: str, ids: Sequence[int], reason: str, notice: str | None) -> None:
        """Record that messages will not be answered, and queue the notice that says so, if there is one."""
        await self._db.write(lambda db: _fail(db, jid, ids, reason, notice))

    async def last_failure(self, jid: str | None) -> tuple[str, datetime, str] | None:
        """The chat of the last message, there or anywhere, that was not answered, when it was sent, and why not."""
        row = await self._db.read(
            lambda db: db.execute(
                "SELECT chat_jid, timestamp, error FROM messages WHERE state = 'failed'"
                " AND (? IS NULL OR chat_jid = ?) ORDER BY id DESC LIMIT 1",
                (jid, jid),
            ).fetchone()
        )
        return (row[0], datetime.fromisoformat(row[1]), row[2] or "") if row else None

    async def outcome(self, row_id: int) -> Outcome | None:
        """How a message ended; None while it is open."""
        row = await self._db.read(
            lambda db: db.execute("SELECT state, error FROM messages WHERE id = ?", (row_id,)).fetchone()
        )
        return Outcome(row[1] if row[0] == "failed" else None) if row and row[0] in ("done", "failed") else None

    # --- messages out ---------------------------------------------------------------------------------------

    async def enqueue(self, jid: str, text: str, kind: str, file: str | None = None, unseen: bool = False) -> None:
        """Queue a text for a chat, as `outgoing.enqueue` does."""
        await self._db.write(lambda db: enqueue(db, jid, text, kind, file, unseen))

    async def chats_with_queued(self) -> list[str]:
        """The chats that something waits to be sent to, longest waiting first."""
        rows = await self._db.read(
            lambda db: db.execute(
                "SELECT chat_jid FROM outbox WHERE state = 'queued' GROUP BY chat_jid ORDER BY min(id)"
            ).fetchall()
        )
        return [row[0] for row in rows]

    async def next_queued(self, jid: str) -> Outgoing | None:
        """What is to be sent to a chat next."""
        row = await self._db.read(
            lambda db: db.execute(
                "SELECT id, chat_jid, text, kind, sent, file FROM outbox WHERE chat_jid = ? AND state = 'queued'"
                " ORDER BY id LIMIT 1",
                (jid,),
            ).fetchone()
        )
        return Outgoing(*row) if row else None

    async def mark_sent(self, outgoing_id: int) -> None:
        """Record that the channel has taken it."""
        await self._db.write(lambda db: db.execute("UPDATE outbox SET state = 'sent' WHERE id = ?", (outgoing_id,)))

    async def mark_part_sent(self, outgoing_id: int, sent: int) -> None:
        """Record that the channel has taken it up to this character."""
        await self._db.write(lambda db: db.execute("UPDATE outbox SET sent = ? WHERE id = ?", (sent, outgoing_id)))

    async def mark_unsendable(self, outgoing_id: int, reason: str, tell: tuple[str, str] | None) -> None:
        """Record that it will not be tried again, and why; `tell` is the chat that hears of it, and the notice."""

        def give_up(db: sqlite3.Connection) -> None:
            db.execute("UPDATE outbox SET state = 'failed', error = ? WHERE id = ?", (as_text(reason), outgoing_id))
            if tell:
                enqueue(db, *tell, "notice")

        await self._db.write(give_up)

    # --- plugins --------------------------------------------------------------------------------------------

    async def plugin_reports(self) -> list[PluginReport]:
        """What was last heard of each part of each plugin."""
        rows = await self._db.read(lambda db: db.execute("SELECT plugin, part, trouble FROM plugin_reports").fetchall())
        return [PluginReport(*row) for row in rows]

    async def note_plugin_reports(self, reports: Sequence[PluginReport], notice: tuple[str, str] | None) -> None:
        """Record what was heard of plugins, and queue the notice that tells of it: a chat, and a text."""

        def note(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT OR REPLACE INTO plugin_reports VALUES (?, ?, ?, ?)",
                [(one.plugin, one.part, as_text(one.trouble), _now()) for one in reports],
            )
            if notice:
                enqueue(db, *notice, "notice")

        await self._db.write(note)

    async def forget_plugins(self, kept: Iterable[str]) -> None:
        """Forget what was heard of plugins that are none of these."""
        await self._db.write(
            lambda db: db.execute(
                "DELETE FROM plugin_reports WHERE plugin NOT IN (SELECT value FROM json_each(?))",
                (json.dumps(list(kept)),),
            )
        )


def _fail(db: sqlite3.Connection, jid: str, ids: Sequence[int], reason: str, notice: str | None) -> None:
    _take_up_aside(db, jid)
    notice_id = None if notice is None else enqueue(db, jid, notice, "notice")
    db.execute(
        "UPDATE messages SET state = 'failed', error = ?, answered_by = ?"
        " WHERE id IN (SELECT value FROM json_each(?)) AND +chat_jid = ? AND asks",
        (as_text(reason), notice_id, as_ids(ids), jid),
    )
    # What was only context is so for the next that asks.
    db.execute(
        "UPDATE messages SET state = 'pending' WHERE id IN (SELECT value FROM json_each(?)) AND +chat_jid = ?"
        " AND NOT asks",
        (as_ids(ids), jid),
    )


def _forget_aside(db: sqlite3.Connection, jid: str) -> None:
    row = db.execute("SELECT aside_notice FROM groups WHERE jid = ? AND aside_id IS NOT NULL", (jid,)).fetchone()
    if row:
        enqueue(db, jid, row[0], "notice")
        db.execute("UPDATE groups SET aside_id = NULL, aside_end = NULL, aside_notice = NULL WHERE jid = ?", (jid,))


def _take_up_aside(db: sqlite3.Connection, jid: str) -> None:
    db.execute(
        "UPDATE groups SET session_id = aside_id, session_end = aside_end,"
        " aside_id = NULL, aside_end = NULL, aside_notice = NULL WHERE jid = ? AND aside_id IS NOT NULL",
        (jid,),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
