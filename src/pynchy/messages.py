"""What is said in a chat, as rows: what a message is, which of them ask for an answer, and which go together."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

#: Whether a message is to be answered: its sender, its content, whether it is the user's own, when it was sent.
Wants = Callable[[str, str, bool, datetime], bool]


def nothing_asks(sender: str, content: str, is_from_me: bool, at: datetime) -> bool:
    """A chat in which nothing that was said before is to be answered."""
    return False


#: So many messages that nobody asked to have answered are context for one that is.
MOST_CONTEXT = 1000
#: So many characters of what a message replies to.
MOST_QUOTED = 500


@dataclass(frozen=True, slots=True)
class KeptAttachment:
    """A file that came with a message: `file` is its name in the group's folder of attachments, "" if not kept.

    `name` is what its sender calls it.
    """

    name: str
    media_type: str
    size: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """A text that went out and that the chat's own conversation has not heard of yet."""

    id: int
    text: str
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message with its row id. `attempts` counts how often an answer was tried and did not come.

    One that does not ask for an answer is context for one that does. `message_id`, `reply_to` and `edits` are the
    channel's ids, `quote` what it replies to.
    """

    id: int
    sender_name: str
    content: str
    timestamp: datetime
    attempts: int = 0
    asks: bool = True
    attachments: tuple[KeptAttachment, ...] = ()
    message_id: str = ""
    reply_to: str | None = None
    quote: str | None = None
    edits: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a message ended: `error` is None where it was answered."""

    error: str | None


def judge(db: sqlite3.Connection, jid: str, wants: Wants) -> None:
    """Let what was context ask for an answer where it does so as its group is set now."""
    rows = db.execute(
        "SELECT id, sender, content, is_from_me, timestamp FROM messages"
        " WHERE chat_jid = ? AND state = 'pending' AND NOT asks",
        (jid,),
    )
    asking = [
        row_id
        for row_id, sender, content, is_from_me, timestamp in rows
        if wants(sender, content, bool(is_from_me), datetime.fromisoformat(timestamp))
    ]
    db.execute("UPDATE messages SET asks = 1 WHERE id IN (SELECT value FROM json_each(?))", (as_ids(asking),))


def leave_unseen(db: sqlite3.Connection, jid: str, first: int) -> None:
    """Of a chat that nobody asked anything in for long, the latest is context enough."""
    db.execute(
        "UPDATE messages SET state = 'done' WHERE chat_jid = ? AND state = 'pending' AND NOT asks AND id <="
        " (SELECT id FROM messages WHERE chat_jid = ? AND state = 'pending' AND id < ?"
        "  ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (jid, jid, first, MOST_CONTEXT),
    )


def batch(
    pending: Sequence[StoredMessage], most: int, characters: int, alone: Callable[[str], bool]
) -> list[StoredMessage]:
    """What of these goes to an agent next, as `Store.claim` describes it."""
    taken: list[StoredMessage] = []
    context: list[StoredMessage] = []
    asking = 0
    left = characters
    for message in pending:
        if not message.asks:
            context.append(message)
            continue
        if alone(message.content):
            return taken or [message]
        # Context goes into a file where it is too long, and counts only as far as it does not.
        size = len(message.content) + min(sum(len(one.content) for one in context), characters // 2)
        if taken and (asking == most or size > left):
            return taken
        taken += [*context, message]
        context = []
        asking += 1
        left -= size
    return taken + context if sum(len(one.content) for one in context) <= left else taken


def stored(
    row_id: int,
    sender_name: str,
    content: str,
    timestamp: str,
    attempts: int,
    asks: int,
    attachments: str,
    message_id: str,
    reply_to: str | None,
    quote: str | None,
    edits: str | None,
) -> StoredMessage:
    """A message of its columns."""
    kept = tuple(KeptAttachment(**one) for one in json.loads(attachments))
    at = datetime.fromisoformat(timestamp)
    return StoredMessage(
        row_id, sender_name, content, at, attempts, bool(asks), kept, message_id, reply_to, quote, edits
    )


def as_ids(ids: Iterable[int]) -> str:
    """Row ids as the JSON list that `json_each` takes."""
    return json.dumps(list(ids))
