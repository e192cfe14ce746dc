"""A home with a past: groups with conversations, their messages, and the answers that were sent."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pynchy.channels.terminal import terminal_jid
from pynchy.store import Store

TRANSCRIPT_ENTRIES = 20  # a group

#: All chats talk in turns, so that each one's rows lie scattered. SQLite makes them up by itself, which is quick.
_PAST = f"""
    CREATE TEMP TABLE past AS
    WITH RECURSIVE numbers (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM numbers LIMIT :messages)
    SELECT id, '{terminal_jid("group-")}' || (id % :groups) AS jid,
        strftime('%Y-%m-%dT%H:%M:%S+00:00', 1735689600 + id, 'unixepoch') AS at,
        -- Of 60 to 180 characters, hexadecimal, since nobody reads it.
        hex(randomblob(30 + abs(random() % 60))) AS text
    FROM numbers;
"""
_GROUPS = f"""
    INSERT INTO groups (jid, name, folder, session_id)
    SELECT jid, jid, replace(jid, '{terminal_jid("")}', ''), lower(hex(randomblob(16))) FROM past GROUP BY jid;
"""
_MESSAGES = """
    INSERT INTO outbox (id, chat_jid, text, kind, state, created_at)
    SELECT id, jid, text, 'reply', 'sent', at FROM past;
    INSERT INTO messages (chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me, state, answered_by)
    SELECT jid, lower(hex(randomblob(16))), 'ada', 'Ada', text, at, 0, 'done', id FROM past;
"""
_TRANSCRIPTS = """
    WITH RECURSIVE entries (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM entries LIMIT :entries)
    INSERT INTO transcripts (folder, session_id, subpath, uuid, entry)
    SELECT folder, session_id, '', lower(hex(randomblob(16))), json_object('message', hex(randomblob(500)))
    FROM entries CROSS JOIN groups;
    UPDATE groups SET session_end = (SELECT max(id) FROM transcripts);
"""


async def fill(home: Path, groups: int, messages: int) -> list[str]:
    """Make a home whose groups have had so many messages together, all answered; returns the groups' folders."""
    home.mkdir(parents=True)
    database = home / "pynchy.db"
    async with Store.open(database):
        pass
    numbers = {"groups": groups, "messages": messages, "entries": TRANSCRIPT_ENTRIES}
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -400000"):  # there is nothing to lose
            db.execute(f"PRAGMA {pragma}").fetchall()
        db.execute("BEGIN")
        for statement in (_PAST + _GROUPS + _MESSAGES + _TRANSCRIPTS).split(";"):
            db.execute(statement, numbers)
        db.execute("COMMIT")
        return [row[0] for row in db.execute("SELECT folder FROM groups ORDER BY folder")]
