"""The database's schema: numbered migrations, each applied once, in order, and never edited after its release."""

from __future__ import annotations

import sqlite3
import uuid

#: A database's version is the number of these that it has had (SQLite's `user_version`).
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
    """
    -- How often an answer was tried, whether a tool may have acted for it, and what was said in the end.
    ALTER TABLE messages ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE messages ADD COLUMN acted INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE messages ADD COLUMN answered_by INTEGER REFERENCES outbox (id);
    -- One index a state: SQLite uses a partial index only where a query repeats its condition.
    DROP INDEX messages_open;
    CREATE INDEX messages_pending ON messages (chat_jid, id) WHERE state = 'pending';
    CREATE INDEX messages_claimed ON messages (chat_jid, id) WHERE state = 'claimed';
    DROP INDEX outbox_open;
    CREATE INDEX outbox_queued ON outbox (chat_jid, id) WHERE state = 'queued';
    -- Where a conversation ends: entries behind it belong to a turn that was not answered.
    ALTER TABLE groups ADD COLUMN session_end INTEGER NOT NULL DEFAULT 0;
    -- A conversation that could not be continued, until it is known whether a new one can, and what to say then.
    ALTER TABLE groups ADD COLUMN aside_id TEXT;
    ALTER TABLE groups ADD COLUMN aside_end INTEGER;
    ALTER TABLE groups ADD COLUMN aside_notice TEXT;
    UPDATE groups SET session_end = (
        SELECT coalesce(max(id), 0) FROM transcripts
        WHERE transcripts.folder = groups.folder AND transcripts.session_id = groups.session_id
    );
    ALTER TABLE transcripts ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- The names of the plugins that a group has, as a JSON list; NULL for all.
    ALTER TABLE groups ADD COLUMN plugins TEXT;
    -- How many characters of a text have been sent, where a channel takes it in parts only.
    ALTER TABLE outbox ADD COLUMN sent INTEGER NOT NULL DEFAULT 0;
    -- What was last heard of each part of a plugin; an empty trouble means that it works.
    CREATE TABLE plugin_reports (
        plugin TEXT NOT NULL,
        part TEXT NOT NULL,
        trouble TEXT NOT NULL,
        at TEXT NOT NULL,
        PRIMARY KEY (plugin, part)
    );
    """,
    """
    -- What a group may reach of the network, and its own limits where they are not those of the settings.
    ALTER TABLE groups ADD COLUMN network TEXT NOT NULL DEFAULT 'public';
    ALTER TABLE groups ADD COLUMN memory_bytes INTEGER;
    ALTER TABLE groups ADD COLUMN cpus REAL;
    ALTER TABLE groups ADD COLUMN pids INTEGER;
    -- Where agents have connected to, or tried to, by day (UTC). `refused` is why it was last not done.
    CREATE TABLE destinations (
        folder TEXT NOT NULL,
        day TEXT NOT NULL,
        host TEXT NOT NULL,
        port INTEGER NOT NULL,
        connections INTEGER NOT NULL,
        refusals INTEGER NOT NULL,
        sent INTEGER NOT NULL,
        received INTEGER NOT NULL,
        refused TEXT NOT NULL,
        last_at TEXT NOT NULL,
        PRIMARY KEY (folder, day, host, port)
    );
    """,
    """
    -- Who is answered in a group, and who may command; NULL for the default word and for everyone. A group of
    -- before goes on answering everything.
    ALTER TABLE groups ADD COLUMN trigger_word TEXT;
    ALTER TABLE groups ADD COLUMN needs_trigger INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE groups ADD COLUMN senders TEXT;
    ALTER TABLE groups ADD COLUMN commanders TEXT;
    -- Folders of the host, as a JSON list of [path, readonly]; then NULL where the settings say it.
    ALTER TABLE groups ADD COLUMN mounts TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE groups ADD COLUMN model TEXT;
    ALTER TABLE groups ADD COLUMN time_zone TEXT;
    ALTER TABLE groups ADD COLUMN usd_a_day REAL;
    -- Whether a message wants an answer; one that does not is context for the next that does. `attachments` is a
    -- JSON list of {"name", "media_type", "size", "file"}; without a file it was not kept.
    ALTER TABLE messages ADD COLUMN asks INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE messages ADD COLUMN attachments TEXT NOT NULL DEFAULT '[]';
    UPDATE messages SET asks = 0 WHERE chat_jid NOT IN (SELECT jid FROM groups);
    CREATE INDEX messages_failed ON messages (id) WHERE state = 'failed';
    CREATE INDEX messages_asking ON messages (chat_jid, id) WHERE state = 'pending' AND asks;
    -- A file that goes out with the text, by its path below the home's `sent` folder.
    ALTER TABLE outbox ADD COLUMN file TEXT;
    -- Whether the chat's own conversation has still to hear of it: a task said it, or another chat's agent.
    ALTER TABLE outbox ADD COLUMN unseen INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX outbox_unseen ON outbox (chat_jid, id) WHERE unseen;
    ALTER TABLE transcripts ADD COLUMN at TEXT;
    UPDATE transcripts SET at = json_extract(entry, '$.timestamp') WHERE json_valid(entry);
    CREATE INDEX transcripts_age ON transcripts (at);
    -- What was said, by its words.
    CREATE VIRTUAL TABLE messages_text USING fts5 (
        content, sender_name, content = 'messages', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
    );
    CREATE VIRTUAL TABLE outbox_text USING fts5 (
        text, content = 'outbox', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
    );
    INSERT INTO messages_text (messages_text) VALUES ('rebuild');
    INSERT INTO outbox_text (outbox_text) VALUES ('rebuild');
    CREATE TRIGGER message_said AFTER INSERT ON messages BEGIN
        INSERT INTO messages_text (rowid, content, sender_name) VALUES (new.id, new.content, new.sender_name);
    END;
    CREATE TRIGGER message_forgotten AFTER DELETE ON messages BEGIN
        INSERT INTO messages_text (messages_text, rowid, content, sender_name)
        VALUES ('delete', old.id, old.content, old.sender_name);
    END;
    CREATE TRIGGER outbox_said AFTER INSERT ON outbox BEGIN
        INSERT INTO outbox_text (rowid, text) VALUES (new.id, new.text);
    END;
    CREATE TRIGGER outbox_forgotten AFTER DELETE ON outbox BEGIN
        INSERT INTO outbox_text (outbox_text, rowid, text) VALUES ('delete', old.id, old.text);
    END;
    -- What is to be done later. Times are UTC; an interval is counted from its anchor, in seconds.
    CREATE TABLE tasks (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        folder TEXT NOT NULL,
        prompt TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('cron', 'interval', 'once')),
        schedule TEXT NOT NULL,
        anchor TEXT NOT NULL,
        context TEXT NOT NULL CHECK (context IN ('group', 'isolated')),
        missed TEXT NOT NULL CHECK (missed IN ('skip', 'once')),
        state TEXT NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'ended')),
        next_run TEXT,
        failures INTEGER NOT NULL DEFAULT 0,
        created_at TEXT NOT NULL
    );
    CREATE INDEX tasks_due ON tasks (next_run) WHERE state = 'active' AND next_run IS NOT NULL;
    CREATE INDEX tasks_of ON tasks (folder, id);
    CREATE TABLE task_runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        task_id INTEGER NOT NULL REFERENCES tasks (id),
        due_at TEXT NOT NULL,
        started_at TEXT,
        ended_at TEXT,
        state TEXT NOT NULL CHECK (state IN ('claimed', 'done', 'failed', 'skipped')),
        attempts INTEGER NOT NULL DEFAULT 0,
        acted INTEGER NOT NULL DEFAULT 0,
        result TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX task_runs_of ON task_runs (task_id, id);
    CREATE INDEX task_runs_due ON task_runs (task_id, due_at);
    CREATE INDEX task_runs_claimed ON task_runs (task_id) WHERE state = 'claimed';
    -- What the model has cost, by day (of the installation's time zone); task 0 is the chat itself.
    CREATE TABLE usage (
        folder TEXT NOT NULL,
        task_id INTEGER NOT NULL,
        day TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cache_read_tokens INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL,
        micro_usd INTEGER NOT NULL,
        unpriced INTEGER NOT NULL,
        PRIMARY KEY (day, folder, task_id, model)
    );
    """,
    """
    -- What a message replies to, in its words, and the message that it puts right.
    ALTER TABLE messages ADD COLUMN quote TEXT;
    ALTER TABLE messages ADD COLUMN edits TEXT;
    """,
)


class NewerSchema(Exception):
    """The database was written by a newer version of this program."""


def migrate(db: sqlite3.Connection) -> None:
    """Bring a database up to date; each migration happens whole or not at all. NewerSchema where it cannot."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise NewerSchema
    for number in range(version, len(MIGRATIONS)):
        try:
            db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    db.execute("INSERT OR IGNORE INTO meta VALUES ('installation_id', ?)", (uuid.uuid4().hex[:12],))
