"""What the store asks of a big database costs what is open, not what has ended."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from stored import raw, rows

from pynchy.store import Store
from pynchy.types import Group, NewMessage

pytestmark = pytest.mark.anyio

Call = Callable[[Store], Awaitable[object]]

JID = "terminal:main"
#: Rows that have ended, in the same chats and folders as those that are open.
ENDED = """
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows)
    INSERT INTO {}
"""
FILL = (
    "messages (chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me, state)"
    " SELECT 'terminal:main', 'ended' || i, '', '', 'text', '2024-05-01T12:00:00+00:00', 0,"
    " iif(i % 2, 'done', 'failed') FROM n",
    "outbox (chat_jid, text, kind, created_at, state)"
    " SELECT 'terminal:main', 'text', 'reply', '', iif(i % 2, 'sent', 'failed') FROM n",
    "transcripts (folder, session_id, subpath, uuid, entry)"
    " SELECT iif(i % 2, 'main', 'family'), 'ended' || i % 3, '', i, '{}' FROM n",
)

#: The partial index that a call must use.
PARTIAL: dict[str, tuple[Call, str]] = {
    "claim": (lambda store: store.claim(JID, 2, 1000), "messages_asking"),
    "has_pending": (lambda store: store.has_pending(JID), "messages_asking"),
    "has_none_pending": (lambda store: store.has_pending("nobody"), "messages_asking"),
    "chats_with_pending": (lambda store: store.chats_with_pending(), "messages_asking"),
    "drop_pending": (lambda store: store.drop_pending(JID, "why", 9), "messages_asking"),
    "unheard": (lambda store: store.unheard(JID), "outbox_unseen"),
    "last_failure": (lambda store: store.last_failure(None), "messages_failed"),
    "release_all": (lambda store: store.release(None, "why", "notice"), "messages_claimed"),
    "chats_with_queued": (lambda store: store.chats_with_queued(), "outbox_queued"),
    "next_queued": (lambda store: store.next_queued(JID), "outbox_queued"),
    "nothing_queued": (lambda store: store.next_queued("nobody"), "outbox_queued"),
}
OTHERS: dict[str, Call] = {
    "add_message": lambda store: store.add_message(NewMessage("new", JID, "", "", "", datetime.now(UTC))),
    "add_message_again": lambda store: store.add_message(NewMessage("open1", JID, "", "", "", datetime.now(UTC))),
    "newest_message": lambda store: store.newest_message(),
    "mark_acted": lambda store: store.mark_acted([1, 2]),
    "release": lambda store: store.release([1, 2], "why", "notice"),
    "retry": lambda store: store.retry([1, 2], "why"),
    "complete": lambda store: store.complete(JID, [1, 2], "reply", "open"),
    "fail": lambda store: store.fail(JID, [1, 2], "why", "notice"),
    "has_message": lambda store: store.has_message(JID, "open1"),
    "session": lambda store: store.session(JID),
    "end_session": lambda store: store.end_session(JID),
    "outcome": lambda store: store.outcome(1),
    "enqueue": lambda store: store.enqueue(JID, "text", "message"),
    "mark_sent": lambda store: store.mark_sent(1),
    "mark_unsendable": lambda store: store.mark_unsendable(1, "why", (JID, "notice")),
    "set_session_aside": lambda store: store.set_session_aside(JID, "notice"),
    "resume": lambda store: store.resume(JID),
    "append_transcript": lambda store: store.transcripts.append("main", "open", "", [{"uuid": "a"}, {"uuid": "b"}]),
    "load_transcript": lambda store: store.transcripts.load("main", "open", "", 0),
    "transcript_subpaths": lambda store: store.transcripts.subpaths("main", "open"),
}


@dataclass
class Watch:
    """What the store's connections have done: their statements, and the steps of SQLite's machine."""

    statements: list[str] = field(default_factory=list)
    steps: int = 0

    def step(self) -> None:
        self.steps += 1

    def attach(self, db: sqlite3.Connection) -> None:
        db.set_trace_callback(self.statements.append)
        db.set_progress_handler(self.step, 1)

    @staticmethod
    def detach(db: sqlite3.Connection) -> None:
        db.set_trace_callback(None)
        db.set_progress_handler(None, 1)


@asynccontextmanager
async def store_with(path: Path, ended: int) -> AsyncIterator[Store]:
    """A store with two claimed messages, four pending ones, three texts to send, and so much that has ended."""
    async with Store.open(path) as store:
        await store.register_group(Group(JID, "main", "main", is_main=True))
        for number in range(6):
            await store.add_message(NewMessage(f"open{number}", JID, "", "", "text", datetime.now(UTC)))
        assert [one.id for one in await store.claim(JID, 2, 1000)] == [1, 2]
        for _ in range(3):
            await store.enqueue(JID, "text", "message")
        await store.transcripts.append("main", "open", "", [{"uuid": "a"}])
        await store.complete(JID, [], None, "open")
        with raw(path) as db:
            for rows_of in FILL:
                db.execute(ENDED.format(rows_of), {"rows": ended})
        await store.transcripts.append("main", "open", "", [{"uuid": "not answered"}])
        yield store


async def watch(path: Path, ended: int, call: Call) -> Watch:
    """What a call does with a database where so much has ended."""
    watch = Watch()
    async with store_with(path, ended) as store:
        await store._db.write(watch.attach)
        await store._db.read(watch.attach)
        await call(store)
        await store._db.read(watch.detach)
        await store._db.write(watch.detach)
    return watch


@pytest.mark.parametrize("name", PARTIAL)
async def test_what_looks_for_open_rows_uses_the_index_of_the_open_rows(tmp_path: Path, name: str) -> None:
    call, index = PARTIAL[name]
    path = tmp_path / "pynchy.db"
    statements = (await watch(path, 100, call)).statements
    asked = [sql for sql in statements if sql.startswith(("SELECT", "UPDATE"))]
    plans = {sql: [row[3] for row in rows(path, f"EXPLAIN QUERY PLAN {sql}")] for sql in asked}
    assert any(f" INDEX {index}" in step for step in plans[asked[0]]), plans
    whole_tables = [step for plan in plans.values() for step in plan if re.match(r"SCAN (messages|outbox)\b", step)]
    assert [step for step in whole_tables if f"INDEX {index}" not in step] == [], plans


@pytest.mark.parametrize("name", [*PARTIAL, *OTHERS])
async def test_no_call_takes_longer_for_what_has_ended(tmp_path: Path, name: str) -> None:
    call = PARTIAL[name][0] if name in PARTIAL else OTHERS[name]
    few = await watch(tmp_path / "small.db", 6, call)
    many = await watch(tmp_path / "big.db", 3000, call)
    assert few.steps > 0
    assert many.steps <= few.steps + 20, f"{few.steps} steps of SQLite became {many.steps}: {many.statements}"
