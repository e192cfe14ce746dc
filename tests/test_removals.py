"""What is too old leaves the database, and its file; what somebody waits for stays."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stored import column, damage, queued, raw, rows

from pynchy import removals
from pynchy.history import search
from pynchy.store import Store
from pynchy.types import Group

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
CUTOFF = NOW - timedelta(days=30)
OLD, NEW = CUTOFF - timedelta(seconds=1), CUTOFF + timedelta(seconds=1)
GROUP = Group("x:1", "One", "one")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pynchy.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with Store.open(path) as store:
        await store.register_group(GROUP, lambda *_: True)
        yield store


def message(db: sqlite3.Connection, content: str, at: datetime, jid: str = GROUP.jid, **columns: object) -> int:
    """A message that was done at once, unless it is said otherwise; returns its row id."""
    values = {
        "chat_jid": jid,
        "message_id": f"{content[:40]} {at} {db.total_changes}",
        "sender": "ada@x",
        "sender_name": "Ada",
        "content": content,
        "timestamp": at.isoformat(),
        "is_from_me": 0,
        "state": "done",
        **columns,
    }
    return insert(db, "messages", values)


def said(db: sqlite3.Connection, text: str, at: datetime, **columns: object) -> int:
    """A text that was sent, unless it is said otherwise; returns its row id."""
    values = {"chat_jid": GROUP.jid, "text": text, "kind": "reply", "state": "sent", "created_at": at.isoformat()}
    return insert(db, "outbox", {**values, **columns})


def entry(db: sqlite3.Connection, session: str, at: datetime | None, **columns: object) -> int:
    """A line of a transcript; returns its row id."""
    values = {"folder": "one", "session_id": session, "subpath": "", "entry": json.dumps({"of": session})}
    return insert(db, "transcripts", {**values, "at": at and at.isoformat(), **columns})


def insert(db: sqlite3.Connection, table: str, values: dict[str, object]) -> int:
    names, places = ", ".join(values), ", ".join("?" * len(values))
    row_id = db.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", tuple(values.values())).lastrowid
    assert row_id is not None
    return row_id


def is_in(path: Path, word: str) -> bool:
    """Whether it stands in the database's files, in a row or in what a row has left behind."""
    return word.encode() in bytes_of(path)


def numbers_in(path: Path) -> set[str]:
    """Everything in them that may be a number of six digits."""
    return {digits.decode() for digits in re.findall(rb"(?=([0-9]{6}))", bytes_of(path))}


def bytes_of(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in path.parent.glob(f"{path.name}*"))


# --- which rows ---------------------------------------------------------------------------------------------


async def test_messages_that_have_ended_or_were_only_context_are_removed_once_they_are_old(
    store: Store, path: Path
) -> None:
    with raw(path) as db:
        for name, at in (("old", OLD), ("new", NEW)):
            message(db, f"{name} done", at)
            message(db, f"{name} failed", at, state="failed")
            message(db, f"{name} context", at, state="pending", asks=0)
            message(db, f"{name} asks", at, state="pending")
            message(db, f"{name} claimed", at, state="claimed")
            message(db, f"{name} elsewhere", at, "x:unknown", state="pending")
    assert await store.removals.remove(CUTOFF, NOW) == 4
    left = column(path, "SELECT content FROM messages ORDER BY id")
    assert [one for one in left if one.startswith("old")] == ["old asks", "old claimed"]
    assert len([one for one in left if one.startswith("new")]) == 6
    assert damage(path) == []


async def test_a_message_whose_sender_lives_in_the_future_goes_with_those_around_it(store: Store, path: Path) -> None:
    with raw(path) as db:
        message(db, "first", OLD)
        message(db, "of the future", NOW + timedelta(days=9999))
        message(db, "second", OLD)
        message(db, "third", NEW)
        message(db, "also of the future", NOW + timedelta(days=9999))
        message(db, "late", OLD)
    await store.removals.remove(CUTOFF, NOW)
    assert column(path, "SELECT content FROM messages ORDER BY id") == ["third", "also of the future"]


async def test_what_was_sent_is_removed_but_not_while_a_message_says_that_it_is_its_answer(
    store: Store, path: Path
) -> None:
    with raw(path) as db:
        answer = said(db, "an answer that is needed", OLD)
        gone = said(db, "an answer to what goes too", OLD)
        said(db, "failed", OLD, state="failed")
        said(db, "waits", OLD, state="queued")
        said(db, "new", NEW)
        message(db, "question", NEW, answered_by=answer)
        message(db, "old question", OLD, answered_by=gone)
    await store.removals.remove(CUTOFF, NOW)
    assert column(path, "SELECT text FROM outbox ORDER BY id") == ["an answer that is needed", "waits", "new"]
    assert damage(path) == []


async def test_of_conversations_what_is_old_goes_but_a_current_one_stays_whole(store: Store, path: Path) -> None:
    with raw(path) as db:
        for session in ("current", "aside", "ended", "ended+task-1"):
            for name, at in (("old", OLD), ("new", NEW)):
                entry(db, session, at, uuid=f"{session} {name}")
                entry(db, session, at, uuid=f"{session} agent {name}", subpath="agents/1")
        entry(db, "current", OLD, uuid="current dropped", dropped=1)
        entry(db, "current", OLD, uuid="current of another group", folder="two")
        entry(db, "ended", None, uuid="ended, without a time")
        entry(db, "long ended", None, uuid="long ended, without a time")
        entry(db, "long ended", OLD, uuid="long ended")
        db.execute("UPDATE groups SET session_id = 'current', aside_id = 'aside'")
    await store.removals.remove(CUTOFF, NOW)
    assert set(column(path, "SELECT uuid FROM transcripts")) == {
        *(
            f"{session} {part}{age}"
            for session in ("current", "aside")
            for part in ("", "agent ")
            for age in ("old", "new")
        ),
        *(f"{session} {part}new" for session in ("ended", "ended+task-1") for part in ("", "agent ")),
        "ended, without a time",
    }


async def test_transcripts_are_found_by_their_age_and_not_by_reading_them(store: Store) -> None:
    asked: list[str] = []
    await store.look(lambda db: db.set_trace_callback(asked.append))
    await store.removals.remove(CUTOFF, NOW)
    await store.look(lambda db: db.set_trace_callback(None))
    (sql,) = [one for one in asked if one.startswith("SELECT id FROM transcripts")]
    plan = await store.look(lambda db: [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")])
    assert any("INDEX transcripts_age (at<?)" in step for step in plan), plan
    assert "SCAN transcripts" not in plan


async def test_what_is_claimed_meanwhile_is_not_removed(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "_ROWS", 1)
    with raw(path) as db:
        ids = [message(db, f"context {number}", OLD, state="pending", asks=0) for number in range(20)]
    going = asyncio.create_task(store.removals.remove(CUTOFF, NOW))
    while len(column(path, "SELECT id FROM messages")) == len(ids):
        await asyncio.sleep(0)
    with raw(path) as db:
        db.execute("UPDATE messages SET state = 'claimed'")
    removed = await going
    assert 1 <= removed < len(ids)
    assert column(path, "SELECT id FROM messages ORDER BY id") == ids[removed:]


async def test_a_huge_table_is_removed_in_steps_between_which_others_write(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raw(path) as db:
        db.execute("BEGIN")
        for number in range(20_000):
            message(db, f"old words {number}", OLD)
        kept = message(db, "new words", NEW)
        db.execute("COMMIT")
    steps: list[int] = []
    write = store.removals._db.write

    async def counted(work):
        if isinstance(result := await write(work), int):
            steps.append(result)
        return result

    monkeypatch.setattr(store.removals._db, "write", counted)
    going = asyncio.create_task(store.removals.remove(CUTOFF, NOW))
    beside = 0
    while not going.done():
        await store.note_chat(f"x:{beside}", "")
        beside += 1
    assert await going == 20_000
    assert steps == [500] * 40
    assert beside > 40
    assert column(path, "SELECT id FROM messages") == [kept]


async def test_long_rows_are_removed_a_few_at_a_time(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "_CHARACTERS", 1000)
    with raw(path) as db:
        for size in (400, 600, 1, 5000, 999, 1):
            entry(db, "ended", OLD, entry="x" * size)
    steps: list[int] = []
    write = store.removals._db.write

    async def counted(work):
        result = await write(work)
        steps.append(result)
        return result

    monkeypatch.setattr(store.removals._db, "write", counted)
    assert await store.removals.remove(CUTOFF, NOW) == 6
    assert steps == [2, 1, 1, 2]


async def test_two_removals_at_once_remove_each_row_once(store: Store, path: Path) -> None:
    with raw(path) as db:
        db.execute("BEGIN")
        for number in range(3000):
            message(db, f"old {number}", OLD)
        entry(db, "long", OLD)
        db.execute("UPDATE groups SET session_id = 'long'")
        db.execute("COMMIT")

    async def all_of_it() -> tuple[list[str], int]:
        ended, _ = await store.removals.end_conversations(CUTOFF, "ended")
        removed = await store.removals.remove(CUTOFF, NOW)
        await store.removals.erase_traces()
        return ended, removed

    (ended, removed), (ended_too, removed_too) = await asyncio.gather(all_of_it(), all_of_it())
    assert removed + removed_too == 3001
    assert ended + ended_too == [GROUP.jid]
    assert queued(path) == [(GROUP.jid, "ended", "notice")]
    assert column(path, "SELECT 1 FROM meta WHERE key = 'removals_with_traces'") == []
    assert damage(path) == []


# --- conversations ------------------------------------------------------------------------------------------


async def test_a_conversation_that_began_too_long_ago_is_ended_and_its_chat_is_told(store: Store, path: Path) -> None:
    await store.register_group(replace(GROUP, jid="x:2", folder="two"), lambda *_: True)
    with raw(path) as db:
        entry(db, "long", None, entry='{"type": "summary"}')
        entry(db, "long", OLD)
        entry(db, "long", NEW)
        entry(db, "young", OLD, dropped=1)
        entry(db, "young", NEW, folder="two")
        db.execute("UPDATE groups SET session_id = 'long', session_end = 9 WHERE jid = 'x:1'")
        db.execute("UPDATE groups SET session_id = 'young', session_end = 9 WHERE jid = 'x:2'")
        message(db, "only context", NEW, state="pending", asks=0)
    assert await store.removals.end_conversations(CUTOFF, "It has ended.") == ([GROUP.jid], True)
    assert await store.resume(GROUP.jid) is None
    assert await store.session("x:2") == ("young", 9)
    assert queued(path) == [(GROUP.jid, "It has ended.", "notice")]
    assert await store.removals.end_conversations(CUTOFF, "It has ended.") == ([], True)
    assert len(queued(path)) == 1


@pytest.mark.parametrize("under_way", ["pending", "claimed", "task"])
async def test_a_conversation_in_which_something_is_under_way_is_ended_later(
    store: Store, path: Path, under_way: str
) -> None:
    with raw(path) as db:
        entry(db, "long", OLD)
        db.execute("UPDATE groups SET session_id = 'long'")
        if under_way == "task":
            db.execute(
                "INSERT INTO tasks (id, folder, prompt, kind, schedule, anchor, context, missed, created_at)"
                " VALUES (1, 'one', 'p', 'once', '', '', 'group', 'skip', '')"
            )
            db.execute("INSERT INTO task_runs (task_id, due_at, state) VALUES (1, '', 'claimed')")
        else:
            message(db, "question", NEW, state=under_way)
    assert await store.removals.end_conversations(CUTOFF, "ended") == ([], False)
    assert await store.removals.remove(CUTOFF, NOW) == 0
    assert await store.session(GROUP.jid) == ("long", 0)
    with raw(path) as db:
        db.execute("UPDATE messages SET state = 'done'")
        db.execute("UPDATE task_runs SET state = 'done'")
    assert await store.removals.end_conversations(CUTOFF, "ended") == ([GROUP.jid], True)
    assert await store.removals.remove(CUTOFF, NOW) == 1


# --- traces -------------------------------------------------------------------------------------------------


async def test_nothing_of_what_was_removed_is_left_in_the_file(path: Path) -> None:
    """Texts that were written, changed and moved as a service does it, with some among them that stay."""
    numbers = [f"7{number:05d}" for number in range(3000)]
    kept = set(numbers[::37])
    async with Store.open(path) as store:
        # As SQLite is built, though not by everybody.
        await store._db.write(lambda db: db.execute("PRAGMA secure_delete = OFF").fetchall())
        with raw(path) as db:
            db.executescript("PRAGMA synchronous = OFF; PRAGMA secure_delete = OFF")
            for index, number in enumerate(numbers):
                at = NEW if number in kept else OLD
                row_id = message(db, " ".join([f"x{number}x"] * (1, 3, 8, 200)[index % 4]), at, state="pending")
                entry(db, "ended", at, entry=json.dumps({"text": number * (index % 50)}))
                answer = said(db, f"the answer to x{number}x", at)
                db.execute(
                    "UPDATE messages SET state = 'done', answered_by = ? WHERE id = ?", (answer, row_id - index % 5)
                )
            db.execute("UPDATE messages SET state = 'done', answered_by = NULL")
        assert numbers_in(path) >= set(numbers)
        await store.removals.remove(CUTOFF, NOW)
        await store.removals.erase_traces()
        assert path.with_name("pynchy.db-wal").stat().st_size < 50_000, "the log is emptied as well"
        assert numbers_in(path) & set(numbers) == kept
        assert len(await store.look(lambda db: search(db, f"x{min(kept)}x", None, 10))) == 2
    assert numbers_in(path) & set(numbers) == kept
    assert damage(path) == []


async def test_traces_of_a_removal_that_was_cut_off_are_erased_after_the_next_start(path: Path) -> None:
    async with Store.open(path) as store:
        await store._db.write(lambda db: message(db, "secretword", OLD))
        await store.removals.remove(CUTOFF, NOW)
    assert is_in(path, "secretword"), "or else this proves nothing"
    async with Store.open(path) as store:
        assert await store.removals.remove(CUTOFF, NOW) == 0
        await store.removals.erase_traces()
        assert not is_in(path, "secretword")
        before = path.stat().st_mtime_ns
        await store.removals.erase_traces()
        assert path.stat().st_mtime_ns == before, "the file is written anew only where something was removed"


async def test_a_reader_of_the_file_puts_off_the_end_of_traces_and_is_not_disturbed(store: Store, path: Path) -> None:
    await store._db.write(lambda db: db.execute("PRAGMA busy_timeout = 10"))
    await store._db.write(lambda db: message(db, "secretword", OLD))
    with raw(path) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT content FROM messages").fetchall() == [("secretword",)]
        await store.removals.remove(CUTOFF, NOW)
        with pytest.raises(sqlite3.OperationalError, match="reading the database"):
            await store.removals.erase_traces()
        assert reader.execute("SELECT content FROM messages").fetchall() == [("secretword",)]
    await store.removals.erase_traces()
    assert not is_in(path, "secretword")


async def test_what_is_removed_while_traces_are_erased_leaves_them_for_the_next_time(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store._db.write(lambda db: (message(db, "first", OLD), message(db, "secretword", NEW)))
    await store.removals.remove(CUTOFF, NOW)
    alone = store._db.alone

    async def removing_more(work):
        await alone(work)
        await store.removals.remove(NOW, NOW)

    with monkeypatch.context() as patched:
        patched.setattr(store.removals._db, "alone", removing_more)
        await store.removals.erase_traces()
    assert is_in(path, "secretword")
    await store.removals.erase_traces()
    assert not is_in(path, "secretword")


async def test_runs_and_tasks_that_are_to_be_forgotten_are_noticed_before(store: Store, path: Path) -> None:
    with raw(path) as db:
        db.execute(
            "INSERT INTO tasks (id, folder, prompt, kind, schedule, anchor, context, missed, created_at)"
            " VALUES (1, 'one', 'secretword', 'once', '', ?, 'group', 'skip', ?)",
            (OLD.isoformat(), OLD.isoformat()),
        )
    assert not await store.removals.expect_traces(CUTOFF), "it has not ended"
    with raw(path) as db:
        db.execute("UPDATE tasks SET state = 'ended'")
    assert await store.removals.expect_traces(CUTOFF)
    await store.tasks.forget_before(CUTOFF)
    assert not await store.removals.expect_traces(CUTOFF)
    await store.removals.erase_traces()
    assert not is_in(path, "secretword")


async def test_files_are_in_use_as_long_as_their_message_or_text_waits(store: Store, path: Path) -> None:
    with raw(path) as db:
        for state in ("pending", "claimed", "done"):
            files = [{"file": f"{state}.png"}, {"name": "not kept", "file": ""}]
            message(db, state, OLD, state=state, attachments=json.dumps(files))
        message(db, "elsewhere", OLD, "x:unknown", state="pending", attachments='[{"file": "elsewhere.png"}]')
        for state in ("queued", "sent", "failed"):
            said(db, "", OLD, state=state, file=f"one/{state}/x.pdf")
    attachments, sent = await store.removals.files_in_use()
    assert attachments - {"one/"} == {"one/pending.png", "one/claimed.png"}
    assert sent == {"one/queued/x.pdf"}
    assert rows(path, "SELECT count(*) FROM messages") == [(4,)]
