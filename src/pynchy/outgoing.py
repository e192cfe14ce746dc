"""What goes out, as rows: written in the same transaction as that which it tells of."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime

from pynchy.database import as_text


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Something to be sent: a reply, a message the agent sent by itself, or a notice of the host.

    `sent` is how many characters of it have been sent already. `file` goes out with it, by its path below the
    home's `sent` folder.
    """

    id: int
    chat_jid: str
    text: str
    kind: str
    sent: int = 0
    file: str | None = None


def enqueue(
    db: sqlite3.Connection, jid: str, text: str, kind: str, file: str | None = None, unseen: bool = False
) -> int:
    """Queue a text for a chat and return its row id; `kind` is reply, message or notice.

    `unseen`: the chat's own conversation does not know of it, and is told at its next turn.
    """
    row_id = db.execute(
        "INSERT INTO outbox (chat_jid, text, kind, created_at, file, unseen) VALUES (?, ?, ?, ?, ?, ?)",
        (jid, as_text(text), kind, datetime.now(UTC).isoformat(), file, unseen),
    ).lastrowid
    assert row_id is not None
    return row_id
