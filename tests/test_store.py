"""The database: what is told to it survives, in order, once, and all of it or nothing."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import types
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from pynchy import store as store_module
from pynchy.store import MIGRATIONS, Outcome, Store, StoreError
from pynchy.types import Group, NewMessage

pytestmark = pytest.mark.anyio

JID = "terminal:main"
NOON = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pynchy.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """An open store with the main group."""
    async with Store.open(path) as store:
        await store.register_group(Group(JID, "main", "main", is_main=True))
        yield store


def message(message_id: str, jid: str = JID, content: str = "hello", **fields: Any) -> NewMessage:
    return NewMessage(message_id, jid, "ada@example", "Ada", content, fields.pop("timestamp", NOON), **fields)


def raw(path: Path) -> closing[sqlite3.Connection]:
    """The same database through a connection of our own."""
    return closing(sqlite3.connect(path, isolation_level=None))


def states(path: Path) -> list[str]:
    with raw(path) as db:
        return [row[0] for row in db.execute("SELECT state FROM messages ORDER BY id")]


@contextmanager
def outbox_that_takes_nothing(path: Path) -> Iterator[None]:
    """Meanwhile every insert into the outbox fails."""
    with raw(path) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'no room'); END")
        yield
        db.execute("DROP TRIGGER full")


# --- messages in --------------------------------------------------------------------------------------------


async def test_a_message_that_comes_twice_is_stored_once(store: Store) -> None:
    first = await store.add_message(message("1"))
    assert first is not None
    assert await store.add_message(message("1", content="delivered again")) is None
    assert [one.content for one in await store.claim(JID, 10)] == ["hello"]
    assert await store.add_message(message("1")) is None, "nor is it when it has been taken"


async def test_the_same_id_in_another_chat_is_another_message(store: Store) -> None:
    assert await store.add_message(message("1")) != await store.add_message(message("1", jid="terminal:other"))
    assert len(await store.claim(JID, 10)) == 1
    assert len(await store.claim("terminal:other", 10)) == 1


async def test_messages_of_the_same_moment_and_of_a_wrong_clock_keep_the_order_of_arrival(store: Store) -> None:
    moments = [NOON, NOON, NOON - timedelta(days=1), NOON, NOON + timedelta(days=1), NOON]
    ids = [await store.add_message(message(f"m{9 - n}", timestamp=moment)) for n, moment in enumerate(moments)]
    claimed = [one for limit in (1, 2, 10) for one in await store.claim(JID, limit)]
    assert [one.id for one in claimed] == ids
    assert [one.timestamp for one in claimed] == moments


async def test_a_time_of_another_zone_is_the_same_moment(store: Store) -> None:
    await store.add_message(message("1", timestamp=NOON.astimezone(timezone(timedelta(hours=5, minutes=45)))))
    (claimed,) = await store.claim(JID, 1)
    assert claimed.timestamp == NOON
    assert claimed.timestamp.utcoffset() == timedelta(0)


async def test_any_text_survives_and_half_a_surrogate_pair_becomes_a_question_mark(store: Store) -> None:
    text = "'; DROP TABLE messages; -- \x00 \r\n \u2028 🦔 é"
    await store.add_message(message("1", content=text))
    await store.add_message(message("2", content="cut \ud83e in half"))
    assert [one.content for one in await store.claim(JID, 10)] == [text, "cut ? in half"]


async def test_claim_takes_the_oldest_of_one_chat_and_each_only_once(store: Store) -> None:
    for number in range(5):
        await store.add_message(message(f"{number}", content=f"{number}"))
        await store.add_message(message(f"{number}", jid="terminal:other"))
    assert [one.content for one in await store.claim(JID, 2)] == ["0", "1"]
    assert [one.content for one in await store.claim(JID, 10)] == ["2", "3", "4"]
    assert await store.claim(JID, 10) == []
    assert len(await store.claim("terminal:other", 10)) == 5


async def test_chats_that_wait_are_listed_longest_waiting_first(store: Store) -> None:
    for number, jid in enumerate(["b", "a", "b", "c"]):
        await store.add_message(message(f"{number}", jid=jid))
    assert await store.chats_with_pending() == ["b", "a", "c"]
    (first, second) = await store.claim("b", 10)
    assert await store.chats_with_pending() == ["a", "c"]
    await store.release([second.id])
    assert await store.chats_with_pending() == ["a", "b", "c"]
    await store.release([first.id])
    assert await store.chats_with_pending() == ["b", "a", "c"]


async def test_released_messages_are_claimed_again_in_order(store: Store) -> None:
    for number in range(3):
        await store.add_message(message(f"{number}", content=f"{number}"))
    claimed = await store.claim(JID, 3)
    await store.release([claimed[2].id, claimed[0].id])
    assert [one.content for one in await store.claim(JID, 10)] == ["0", "2"]


async def test_what_a_killed_service_had_claimed_is_pending_after_the_next_start(path: Path) -> None:
    async with Store.open(path) as store:
        for number in range(3):
            await store.add_message(message(f"{number}"))
        done, failed, _ = await store.claim(JID, 3)
        await store.complete(JID, [done.id], None, None)
        await store.fail(JID, [failed.id], "why", "notice")
    async with Store.open(path) as store:
        assert await store.claim(JID, 10) == []
        assert await store.chats_with_pending() == []
        await store.release()
        assert await store.chats_with_pending() == [JID]
        assert states(path) == ["done", "failed", "pending"]


async def test_release_opens_nothing_that_has_ended(store: Store, path: Path) -> None:
    for number in range(2):
        await store.add_message(message(f"{number}"))
    first, second = await store.claim(JID, 2)
    await store.complete(JID, [first.id], "reply", None)
    await store.fail(JID, [second.id], "why", "notice")
    await store.release([first.id, second.id])
    await store.release()
    assert states(path) == ["done", "failed"]


async def test_two_hundred_messages_at_once_are_all_stored_once(store: Store) -> None:
    ids = await asyncio.gather(*(store.add_message(message(f"{number % 150}")) for number in range(200)))
    stored = [one for one in ids if one is not None]
    assert len(stored) == 150
    assert [one.id for one in await store.claim(JID, 500)] == sorted(stored)


# --- how it ends --------------------------------------------------------------------------------------------


async def test_complete_ends_the_messages_queues_the_reply_and_keeps_the_session(store: Store, path: Path) -> None:
    row_id = await store.add_message(message("1"))
    await store.add_message(message("2"))
    assert row_id is not None
    (claimed,) = await store.claim(JID, 1)
    assert await store.outcome(row_id) is None
    assert await store.session(JID) is None
    await store.complete(JID, [claimed.id], "the reply", "session-1")
    assert states(path) == ["done", "pending"]
    assert await store.outcome(row_id) == Outcome(None)
    assert await store.session(JID) == "session-1"
    assert [(one.chat_jid, one.text, one.kind) for one in await store.queued()] == [(JID, "the reply", "reply")]


@pytest.mark.parametrize("reply", [None, ""])
async def test_an_answer_with_nothing_to_say_queues_nothing(store: Store, reply: str | None) -> None:
    await store.add_message(message("1"))
    (claimed,) = await store.claim(JID, 1)
    await store.complete(JID, [claimed.id], "first", "session-1")
    await store.mark_sent((await store.queued())[0].id)
    await store.complete(JID, [claimed.id], reply, None)
    assert await store.queued() == []
    assert await store.session(JID) == "session-1", "no session id does not forget the one there is"


async def test_complete_is_all_or_nothing(store: Store, path: Path) -> None:
    row_id = await store.add_message(message("1"))
    assert row_id is not None
    (claimed,) = await store.claim(JID, 1)
    with outbox_that_takes_nothing(path):
        with pytest.raises(aiosqlite.Error, match="no room"):
            await store.complete(JID, [claimed.id], "the reply", "session-1")
        assert states(path) == ["claimed"]
        assert await store.outcome(row_id) is None
        assert await store.session(JID) is None
        assert await store.queued() == []
    await store.complete(JID, [claimed.id], "the reply", "session-1")
    assert await store.outcome(row_id) == Outcome(None)


async def test_fail_ends_the_messages_with_a_reason_and_queues_the_notice(store: Store, path: Path) -> None:
    row_id = await store.add_message(message("1"))
    assert row_id is not None
    (claimed,) = await store.claim(JID, 1)
    with outbox_that_takes_nothing(path):
        with pytest.raises(aiosqlite.Error, match="no room"):
            await store.fail(JID, [claimed.id], "the reason", "the notice")
        assert await store.outcome(row_id) is None
    await store.fail(JID, [claimed.id], "the reason \ud83e", "the notice \ud83e")
    assert states(path) == ["failed"]
    assert await store.outcome(row_id) == Outcome("the reason ?")
    assert [(one.text, one.kind) for one in await store.queued()] == [("the notice ?", "notice")]


async def test_nobody_ends_the_messages_of_another_chat(store: Store, path: Path) -> None:
    await store.add_message(message("1"))
    (claimed,) = await store.claim(JID, 1)
    await store.complete("terminal:other", [claimed.id], None, None)
    await store.fail("terminal:other", [claimed.id], "why", "notice")
    assert states(path) == ["claimed"]


async def test_the_outcome_of_a_message_that_is_not_there_is_none(store: Store) -> None:
    assert await store.outcome(12345) is None


# --- messages out -------------------------------------------------------------------------------------------


async def test_the_outbox_keeps_its_order_and_gives_out_what_is_queued_page_by_page(store: Store) -> None:
    for number in range(5):
        await store.enqueue(f"jid{number % 2}", f"text {number}", "message")
    first, second, *_ = await store.queued()
    await store.mark_sent(first.id)
    await store.mark_unsendable(second.id, "it does not go \ud83e")
    left = await store.queued()
    assert [one.text for one in left] == ["text 2", "text 3", "text 4"]
    assert await store.queued(limit=2) == left[:2]
    assert await store.queued(after=left[1].id) == left[2:]
    assert await store.queued(after=left[2].id) == []


async def test_a_kind_that_does_not_exist_is_refused_and_the_store_goes_on(store: Store) -> None:
    with pytest.raises(aiosqlite.IntegrityError):
        await store.enqueue(JID, "text", "postcard")
    await store.enqueue(JID, "text", "message")
    assert len(await store.queued()) == 1


# --- groups -------------------------------------------------------------------------------------------------


async def test_groups_are_kept_and_registering_again_changes_nothing(path: Path) -> None:
    main, family = Group(JID, "main", "main", is_main=True), Group("wa:1", "Family", "family")
    async with Store.open(path) as store:
        await store.register_group(main)
        await store.register_group(family)
        await store.complete(JID, [], None, "session-1")
        await store.register_group(Group(JID, "renamed", "main"))
    async with Store.open(path) as store:
        assert await store.groups() == {JID: main, "wa:1": family}
        assert await store.session(JID) == "session-1"
        await store.clear_session(JID)
        assert await store.session(JID) is None
        assert await store.session("nobody") is None


async def test_a_chat_is_noted_under_its_latest_name(store: Store, path: Path) -> None:
    await store.note_chat("wa:1", "Family")
    await store.note_chat("wa:1", "The family")
    with raw(path) as db:
        assert db.execute("SELECT jid, name FROM chats").fetchall() == [("wa:1", "The family")]


# --- transcripts --------------------------------------------------------------------------------------------


async def test_a_transcript_comes_back_as_it_was_and_entries_sent_again_are_left_out(store: Store) -> None:
    first = [{"uuid": "a", "text": "é 🦔"}, {"uuid": "b", "nested": {"list": [1, None, 2.5]}}]
    await store.append_transcript("main", "s", "", first)
    await store.append_transcript("main", "s", "", [{"uuid": "b", "text": "changed"}, {"uuid": "c"}])
    assert await store.load_transcript("main", "s", "", 0) == ([*first, {"uuid": "c"}], None)


async def test_entries_without_a_uuid_are_all_kept(store: Store) -> None:
    entries = [{"type": "summary"}, {"type": "summary"}, {"uuid": None}]
    await store.append_transcript("main", "s", "", entries)
    await store.append_transcript("main", "s", "", entries)
    assert await store.load_transcript("main", "s", "", 0) == (entries * 2, None)


async def test_half_a_surrogate_pair_in_a_transcript_is_kept(store: Store) -> None:
    entries = [{"uuid": "a", "text": "cut \ud83e"}, {"uuid": "b", "text": "whole 🦔"}]
    await store.append_transcript("main", "s", "", entries)
    assert await store.load_transcript("main", "s", "", 0) == (entries, None)


async def test_a_long_transcript_is_loaded_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PAGE_CHARACTERS", 1000)
    entries = [{"uuid": f"{number}", "text": "x" * (number % 7 * 60)} for number in range(100)]
    await store.append_transcript("main", "s", "", entries)
    await store.append_transcript("main", "s", "", [{"uuid": "huge", "text": "x" * 5000}])
    loaded: list[dict[str, Any]] = []
    pages, after = 0, 0
    while after is not None:
        page, after = await store.load_transcript("main", "s", "", after)
        assert sum(len(one["text"]) for one in page[:-1]) <= 1000
        loaded += page
        pages += 1
    assert loaded == [*entries, {"uuid": "huge", "text": "x" * 5000}]
    assert pages > 10


async def test_no_folder_session_or_sub_agent_sees_the_entries_of_another(store: Store) -> None:
    keys = [("a", "s", ""), ("b", "s", ""), ("a", "t", ""), ("a", "s", "sub/1"), ("a", "s", "sub/2"), ("b", "s", "own")]
    for number, key in enumerate(keys):
        await store.append_transcript(*key, [{"uuid": "same", "number": number}, {"number": number}])
    for number, key in enumerate(keys):
        loaded, following = await store.load_transcript(*key, 0)
        assert [entry["number"] for entry in loaded] == [number, number]
        assert following is None
    assert sorted(await store.transcript_subpaths("a", "s")) == ["sub/1", "sub/2"]
    assert await store.transcript_subpaths("b", "s") == ["own"]
    assert await store.transcript_subpaths("a", "t") == []
    assert await store.load_transcript("nobody", "s", "", 0) == ([], None)


async def test_a_transcript_can_be_loaded_while_others_write(store: Store) -> None:
    entries = [{"uuid": f"{number}"} for number in range(1000)]
    await store.append_transcript("main", "s", "", entries)

    async def write(number: int) -> None:
        try:
            await store.enqueue(JID, "text", "message" if number % 2 else "postcard")
        except aiosqlite.IntegrityError:
            assert number % 2 == 0

    loads = [store.load_transcript("main", "s", "", 0) for _ in range(5)]
    loaded, *_ = await asyncio.gather(asyncio.gather(*loads), *(write(number) for number in range(100)))
    assert loaded == [(entries, None)] * 5
    assert len(await store.queued()) == 50


# --- opening ------------------------------------------------------------------------------------------------


async def test_a_fresh_database_is_of_the_newest_version_and_an_old_one_becomes_so(path: Path) -> None:
    async with Store.open(path) as store:
        identity = store.installation_id
    with raw(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    async with Store.open(path) as store:
        assert store.installation_id == identity
    async with Store.open(path.with_name("another.db")) as another:
        assert another.installation_id not in ("", identity)


async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Store.open(path) as store:
        await store.enqueue(JID, "kept", "message")
    broken = (*MIGRATIONS, "ALTER TABLE outbox ADD COLUMN half TEXT; ALTER TABLE nothing ADD COLUMN other TEXT")
    monkeypatch.setattr(store_module, "MIGRATIONS", broken)
    with pytest.raises(StoreError, match="nothing"):
        async with Store.open(path):
            pytest.fail("it was opened")
    monkeypatch.undo()
    async with Store.open(path) as store:
        assert [one.text for one in await store.queued()] == ["kept"]
    with raw(path) as db:
        assert "half" not in [row[1] for row in db.execute("PRAGMA table_info(outbox)")]


async def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    async with Store.open(path):
        pass
    with raw(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreError, match="upgrade pynchy"):
        async with Store.open(path):
            pytest.fail("it was opened")
    with raw(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)


async def test_a_file_that_is_no_database_is_an_error_that_names_it(path: Path) -> None:
    path.write_bytes(b"this is no database at all, whatever its name says\n" * 100)
    with pytest.raises(StoreError, match=r"cannot use the database .*/pynchy\.db"):
        async with Store.open(path):
            pytest.fail("it was opened")
    assert path.read_bytes().startswith(b"this is no database")


@pytest.mark.parametrize("where", ["missing/pynchy.db", "."])
async def test_a_place_where_no_file_can_be_is_an_error_that_names_it(tmp_path: Path, where: str) -> None:
    with pytest.raises(StoreError, match="cannot open the database"):
        async with Store.open(tmp_path / where):
            pytest.fail("it was opened")


# --- tasks that are cancelled -------------------------------------------------------------------------------


@types.coroutine
def with_a_cancelled_wait(number: int, action: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await `action`, and cancel what it waits for the `number`-th time, as cancelling its task then would."""
    cancelled: asyncio.CancelledError | None = None
    for wait in itertools.count(1):
        try:
            waits_for = action.throw(cancelled) if cancelled else action.send(None)
        except StopIteration:
            return
        if wait == number:
            waits_for.cancel()
        cancelled = None
        try:
            yield waits_for
        except asyncio.CancelledError as error:
            cancelled = error


async def test_a_cancelled_task_leaves_all_or_nothing_and_a_store_that_works(store: Store, path: Path) -> None:
    outcomes: list[bool] = []
    for number in itertools.count(1):
        row_id = await store.add_message(message(f"{number}"))
        assert row_id is not None
        (claimed,) = await store.claim(JID, 10)
        try:
            await with_a_cancelled_wait(number, store.complete(JID, [claimed.id], f"reply {number}", None))
            break  # it waited less often: every wait has had its turn
        except asyncio.CancelledError:
            pass
        outcomes.append(await store.outcome(row_id) is not None)
        assert (f"reply {number}" in [one.text for one in await store.queued()]) == outcomes[-1]
        with raw(path) as db:
            db.execute("BEGIN IMMEDIATE")  # no transaction was left open
            db.execute("ROLLBACK")
    assert outcomes[0] is False, "cancelled before anything was written"
    assert outcomes[-1] is True, "cancelled when it was being committed"
    assert len(outcomes) >= 4


async def test_a_task_cancelled_while_the_database_is_locked_leaves_no_transaction_behind(
    store: Store, path: Path
) -> None:
    with raw(path) as db:
        db.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(store.enqueue(JID, "cancelled", "message"))
        await asyncio.sleep(0)  # its own BEGIN waits in the database's thread now
        waiting.cancel()
        await asyncio.sleep(0)
        db.execute("ROLLBACK")
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.enqueue(JID, "after", "message")
    assert [one.text for one in await store.queued()] == ["after"]
