"""What is too old is removed from the database in steps that nobody waits for, and then from its file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from pynchy.database import Database
from pynchy.group_rows import end_session
from pynchy.outgoing import enqueue

#: What one transaction removes, at most, so that nobody waits long for the next; a single row may be longer.
_ROWS, _CHARACTERS = 500, 4_000_000
#: So much of an index of words is written anew in one transaction, in its pages of some 4 kB.
_PAGES = 500
_INDEXES = ("messages_text", "outbox_text")
#: The row of `meta` that is there while something of a removal may be left in the file; each removal changes it.
_TRACES = "removals_with_traces"
_AMONG = "id IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a table that are too `old`, as long as they are `still` of no use to anybody; `text` is their longest."""

    table: str
    text: str
    old: str
    still: str


_ALL_ROWS = (
    # A time is what the sender's clock said. One from the future counts as old once what came after it does.
    # A message that asks waits for its answer however long that takes, but not in a chat that nobody answers.
    _Rows(
        "messages",
        "content",
        "(timestamp < :cutoff OR timestamp > :now AND id < (SELECT id FROM messages WHERE timestamp BETWEEN :cutoff"
        " AND :now ORDER BY id LIMIT 1))",
        "(state IN ('done', 'failed') OR state = 'pending' AND (NOT asks OR chat_jid NOT IN (SELECT jid FROM groups)))",
    ),
    _Rows(
        "outbox",
        "text",
        "created_at < :cutoff AND id NOT IN (SELECT answered_by FROM messages WHERE answered_by IS NOT NULL)",
        "state IN ('sent', 'failed')",
    ),
    # A group's own conversation is whole or ended. What has no time at all is as old as what is beside it.
    _Rows(
        "transcripts",
        "entry",
        "(at < :cutoff OR at IS NULL AND NOT EXISTS (SELECT 1 FROM transcripts other WHERE"
        " other.folder = transcripts.folder AND other.session_id = transcripts.session_id AND other.at >= :cutoff))",
        "(dropped OR NOT EXISTS (SELECT 1 FROM groups WHERE groups.folder = transcripts.folder"
        " AND transcripts.session_id IN (groups.session_id, groups.aside_id)))",
    ),
)

#: Groups whose conversation began too long ago, and whether one of their messages or tasks is under way.
_LONG_CONVERSATIONS = """
    SELECT jid,
        EXISTS (SELECT 1 FROM messages WHERE chat_jid = jid AND state = 'pending' AND asks)
        OR EXISTS (SELECT 1 FROM messages WHERE chat_jid = jid AND state = 'claimed')
        OR EXISTS (SELECT 1 FROM tasks JOIN task_runs ON task_id = tasks.id
            WHERE tasks.folder = groups.folder AND task_runs.state = 'claimed')
    FROM groups JOIN json_each(json_array(session_id, aside_id)) session ON session.value IS NOT NULL
    WHERE (
        SELECT at FROM transcripts WHERE folder = groups.folder AND session_id = session.value
        AND subpath = '' AND at IS NOT NULL AND NOT dropped ORDER BY id LIMIT 1
    ) < ?
    GROUP BY jid
"""


class Removals:
    """What of the database is removed for its age, in steps that nobody waits for."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def end_conversations(self, before: datetime, notice: str) -> tuple[list[str], bool]:
        """End each conversation that began before this, and say so there, but none that something is under way in.

        Returns the chats, and whether that was all.
        """

        def end(db: sqlite3.Connection) -> tuple[list[str], bool]:
            found = db.execute(_LONG_CONVERSATIONS, (before.isoformat(),)).fetchall()
            ended = [jid for jid, busy in found if not busy]
            for jid in ended:
                end_session(db, jid)
                enqueue(db, jid, notice, "notice")
            return ended, len(ended) == len(found)

        return await self._db.write(end)

    async def remove(self, before: datetime, now: datetime) -> int:
        """Remove what people wrote, what was answered and what the SDK kept of it before this; returns the rows."""
        times = {"cutoff": before.isoformat(), "now": now.isoformat()}
        return sum([await self._remove(rows, times) for rows in _ALL_ROWS])

    async def _remove(self, rows: _Rows, times: dict[str, str]) -> int:
        def find(db: sqlite3.Connection) -> list[int]:
            # Sorted here: SQLite would read the whole table to have them in order.
            sql = f"SELECT id FROM {rows.table} WHERE {rows.old} AND {rows.still}"  # noqa: S608 - names of ours
            return sorted(row[0] for row in db.execute(sql, times))

        def measure(ids: Sequence[int], db: sqlite3.Connection) -> list[tuple[int, int]]:
            sql = f"SELECT id, length({rows.text}) FROM {rows.table} WHERE {_AMONG}"  # noqa: S608 - names of ours
            return db.execute(sql, (json.dumps(ids),)).fetchall()

        def delete(ids: Sequence[int], db: sqlite3.Connection) -> int:
            sql = f"DELETE FROM {rows.table} WHERE {_AMONG} AND {rows.still}"  # noqa: S608 - names of ours
            removed = db.execute(sql, (json.dumps(ids),)).rowcount
            if removed:
                _note_traces(db)
            return removed

        ids = await self._db.read(find)
        removed = 0
        for start in range(0, len(ids), _ROWS):
            sizes = await self._db.read(partial(measure, ids[start : start + _ROWS]))
            for step in _steps(sizes):
                removed += await self._db.write(partial(delete, step))
        return removed

    async def expect_traces(self, before: datetime) -> bool:
        """Whether there are runs of tasks, or ended tasks, from before this; then their traces are noted in advance."""

        def look(db: sqlite3.Connection) -> bool:
            (some,) = db.execute(
                "SELECT EXISTS (SELECT 1 FROM task_runs WHERE state != 'claimed' AND ended_at < ?1) OR EXISTS ("
                " SELECT 1 FROM tasks WHERE state = 'ended' AND created_at < ?1"
                " AND NOT EXISTS (SELECT 1 FROM task_runs WHERE task_id = tasks.id))",
                (before.isoformat(),),
            ).fetchone()
            if some:
                _note_traces(db)
            return bool(some)

        return await self._db.write(look)

    async def erase_traces(self) -> None:
        """Let nothing of what was removed be left in the file, also of an earlier time when this did not succeed.

        Copies of a row stay in pages that SQLite has moved it from, whatever its `secure_delete` says, and words
        in the index's older parts: so the index is merged, the file written anew and the log beside it emptied.
        Writes wait meanwhile, for some seconds where the file has hundreds of megabytes. Raises what SQLite raises.
        """
        noted = await self._db.read(_traces)
        if noted is None:
            return
        for index in _INDEXES:
            pages = -_PAGES  # negative: all parts become one, however few they are
            while await self._db.write(partial(_merge, index, pages)):
                pages = _PAGES
        await self._db.alone(_write_anew)
        await self._db.write(lambda db: db.execute("DELETE FROM meta WHERE key = ? AND value = ?", (_TRACES, noted)))

    async def files_in_use(self) -> tuple[set[str], set[str]]:
        """Attachments of messages that wait, and files that are still to be sent, by their paths in their folders."""

        def look(db: sqlite3.Connection) -> tuple[set[str], set[str]]:
            kept = db.execute(
                "SELECT folder || '/' || json_extract(one.value, '$.file') FROM messages JOIN groups ON jid = chat_jid"
                " JOIN json_each(attachments) one WHERE state IN ('pending', 'claimed')"
            )
            to_send = db.execute("SELECT file FROM outbox WHERE state = 'queued' AND file IS NOT NULL")
            return {row[0] for row in kept}, {row[0] for row in to_send}

        return await self._db.read(look)


def _steps(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Rows by their ids, so many at once that their texts are no longer than one transaction may remove."""
    step: list[int] = []
    left = _CHARACTERS
    for row_id, size in sizes:
        if step and size > left:
            yield step
            step, left = [], _CHARACTERS
        step.append(row_id)
        left -= size
    if step:
        yield step


def _note_traces(db: sqlite3.Connection) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, hex(randomblob(8)))", (_TRACES,))


def _traces(db: sqlite3.Connection) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (_TRACES,)).fetchone()
    return row and row[0]


def _merge(index: str, pages: int, db: sqlite3.Connection) -> bool:
    """One step of a merge; False where there was nothing left to do (https://sqlite.org/fts5.html#the_merge_command)."""
    before = db.total_changes
    db.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('merge', ?)", (pages,))  # noqa: S608 - a name of ours
    return db.total_changes - before > 1


def _write_anew(db: sqlite3.Connection) -> None:
    db.execute("VACUUM")
    (busy, *_) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError("somebody else is reading the database")
