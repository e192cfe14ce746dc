"""The database: what is told to it survives, in order, once, and all of it or nothing."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from stored import column, outbox_that_takes_nothing, queued, rows, set_room

from pynchy.messages import Outcome, StoredMessage
from pynchy.store import Outgoing, Store
from pynchy.types import Group, NewMessage

pytestmark = pytest.mark.anyio

JID, OTHER = "terminal:main", "wa:1"
MAIN, FAMILY = Group(JID, "main", "main", is_main=True), Group(OTHER, "Family", "family")
NOON = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
_numbers = itertools.count()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pynchy.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """An open store with two groups."""
    async with Store.open(path) as store:
        await store.register_group(MAIN)
        await store.register_group(FAMILY)
        yield store


def message(message_id: str, jid: str = JID, content: str = "hello", timestamp: datetime = NOON) -> NewMessage:
    return NewMessage(message_id, jid, "ada@example", "Ada", content, timestamp)


async def add(store: Store, *contents: str, jid: str = JID) -> list[int]:
    """Pending messages with these texts; their row ids."""
    ids = [await store.add_message(message(f"m{next(_numbers)}", jid, content)) for content in contents]
    return [row_id for row_id in ids if row_id is not None]


async def take(store: Store, jid: str = JID, most: int = 1000, characters: int = 1_000_000) -> list[StoredMessage]:
    return await store.claim(jid, most, characters)


async def texts(store: Store, jid: str = JID, most: int = 1000, characters: int = 1_000_000) -> list[str]:
    """The texts of what is claimed now."""
    return [one.content for one in await store.claim(jid, most, characters)]


async def claimed(store: Store, *contents: str, jid: str = JID) -> list[int]:
    """Messages with these texts that are claimed; their row ids."""
    await add(store, *contents, jid=jid)
    return [one.id for one in await take(store, jid)]


def states(path: Path) -> list[str]:
    return column(path, "SELECT state FROM messages ORDER BY id")


def answers(path: Path) -> list[str | None]:
    """What each message was answered by."""
    return column(path, "SELECT text FROM messages LEFT JOIN outbox ON answered_by = outbox.id ORDER BY messages.id")


# --- messages in --------------------------------------------------------------------------------------------


async def test_a_message_that_comes_twice_is_stored_once(store: Store) -> None:
    assert await store.add_message(message("1")) is not None
    assert await store.add_message(message("1", content="delivered again")) is None
    assert await texts(store) == ["hello"]
    assert await store.add_message(message("1")) is None, "nor is it when it has been taken"


async def test_the_same_id_in_another_chat_is_another_message(store: Store) -> None:
    assert await store.add_message(message("1")) != await store.add_message(message("1", jid=OTHER))
    assert len(await take(store)) == len(await take(store, OTHER)) == 1


async def test_messages_of_the_same_moment_and_of_a_wrong_clock_keep_the_order_of_arrival(store: Store) -> None:
    moments = [NOON, NOON, NOON - timedelta(days=1), NOON, NOON + timedelta(days=1), NOON]
    ids = [await store.add_message(message(f"m{9 - n}", timestamp=moment)) for n, moment in enumerate(moments)]
    taken = [one for most in (1, 2, 10) for one in await take(store, most=most)]
    assert [one.id for one in taken] == ids
    assert [one.timestamp for one in taken] == moments


async def test_a_time_of_another_zone_is_the_same_moment(store: Store) -> None:
    await store.add_message(message("1", timestamp=NOON.astimezone(timezone(timedelta(hours=5, minutes=45)))))
    (taken,) = await take(store)
    assert taken.timestamp == NOON
    assert taken.timestamp.utcoffset() == timedelta(0)


async def test_any_text_survives_and_half_a_surrogate_pair_becomes_a_question_mark(store: Store) -> None:
    text = "'; DROP TABLE messages; -- \x00 \r\n \u2028 🦔 é"
    await add(store, text, "cut \ud83e in half")
    assert await texts(store) == [text, "cut ? in half"]


async def test_what_a_message_replies_to_or_puts_right_comes_with_it(store: Store) -> None:
    await store.add_message(replace(message("7"), reply_to="5", quote="x\ud83d" * 400, edits="6"))
    await store.add_message(message("8"))
    replying, plain = await store.claim(JID, 20, 100_000)
    assert (replying.message_id, replying.reply_to, replying.edits) == ("7", "5", "6")
    assert replying.quote == "x?" * 250
    assert (plain.message_id, plain.reply_to, plain.quote, plain.edits) == ("8", None, None, None)


async def test_claim_takes_the_oldest_of_one_chat_and_each_only_once(store: Store) -> None:
    for number in range(5):
        await add(store, f"{number}")
        await add(store, f"{number}", jid=OTHER)
    assert await texts(store, most=2) == ["0", "1"]
    assert await texts(store) == ["2", "3", "4"]
    assert await take(store) == []
    assert len(await take(store, OTHER)) == 5


async def test_claim_takes_so_many_characters_and_at_least_one_message(store: Store, path: Path) -> None:
    await add(store, "a" * 6, "b" * 4, "", "c", "d" * 11, "e")
    assert await texts(store, characters=10) == ["a" * 6, "b" * 4, ""], "exactly so many fit"
    assert states(path) == ["claimed"] * 3 + ["pending"] * 3, "what it did not take it did not touch"
    assert await texts(store, characters=10) == ["c"], "the longer one behind does not come with it"
    assert await texts(store, characters=10) == ["d" * 11], "but alone"
    assert await texts(store, characters=0) == ["e"]
    await add(store, "🦔🦔", "🦔")
    assert await texts(store, characters=3) == ["🦔🦔", "🦔"], "characters, not bytes"


async def test_chats_that_wait_are_listed_longest_waiting_first(store: Store) -> None:
    for jid in ["b", "a", "b", "c"]:
        await add(store, "text", jid=jid)
    assert await store.chats_with_pending() == ["b", "a", "c"]
    first, second = await take(store, "b")
    assert await store.chats_with_pending() == ["a", "c"]
    assert [await store.has_pending(jid) for jid in "abcd"] == [True, False, True, False]
    assert await store.release([second.id], "why", "notice") == []
    assert await store.chats_with_pending() == ["a", "b", "c"]
    await store.release([first.id], "why", "notice")
    assert await store.chats_with_pending() == ["b", "a", "c"]
    assert await store.has_pending("b")


async def test_two_hundred_messages_at_once_are_all_stored_once(store: Store) -> None:
    ids = await asyncio.gather(*(store.add_message(message(f"{number % 150}")) for number in range(200)))
    stored = [one for one in ids if one is not None]
    assert len(stored) == 150
    assert [one.id for one in await take(store)] == sorted(stored)


# --- runs that gave no answer -------------------------------------------------------------------------------


async def test_released_messages_are_claimed_again_in_order(store: Store, path: Path) -> None:
    first, _, third = await claimed(store, "0", "1", "2")
    await store.release([third, first], "why", "notice")
    assert await texts(store) == ["0", "2"]
    assert queued(path) == []


async def test_what_a_killed_service_had_claimed_is_pending_after_the_next_start(path: Path) -> None:
    async with Store.open(path) as store:
        done, failed, _ = await claimed(store, "0", "1", "2")
        await store.complete(JID, [done], None, None)
        await store.fail(JID, [failed], "why", "notice")
    async with Store.open(path) as store:
        assert await take(store) == await store.chats_with_pending() == []
        assert await store.release(None, "why", "notice") == []
        assert await store.chats_with_pending() == [JID]
        assert states(path) == ["done", "failed", "pending"]


@pytest.mark.parametrize("everything", [False, True])
async def test_what_a_tool_may_have_acted_for_is_failed_with_one_notice_a_chat(
    store: Store, path: Path, everything: bool
) -> None:
    here, there = await claimed(store, "a", "b", "c"), await claimed(store, "d", "e", jid=OTHER)
    await store.mark_acted([here[2], here[0], there[1]])
    ids = None if everything else [*here, *there]
    assert await store.release(ids, "it broke \ud83e", "I was stopped") == [here[0], here[2], there[1]]
    assert states(path) == ["failed", "pending", "failed", "pending", "failed"]
    assert queued(path) == [(jid, "I was stopped", "notice") for jid in (JID, OTHER)]
    assert answers(path) == ["I was stopped", None, "I was stopped", None, "I was stopped"]
    assert [await store.outcome(row_id) for row_id in here] == [Outcome("it broke ?"), None, Outcome("it broke ?")]
    assert await store.release(ids, "again", "again") == [], "once is enough"
    assert len(queued(path)) == 2


async def test_only_claimed_messages_can_be_acted_for(store: Store, path: Path) -> None:
    await store.mark_acted(await add(store, "not taken yet"))
    ids = [one.id for one in await take(store)]
    assert await store.release(ids, "why", "notice") == []
    assert states(path) == ["pending"]


async def test_release_opens_nothing_that_has_ended(store: Store, path: Path) -> None:
    first, second = await claimed(store, "0", "1")
    await store.mark_acted([first, second])
    await store.complete(JID, [first], "reply", None)
    await store.fail(JID, [second], "why", "notice")
    assert await store.release([first, second], "why", "notice") == []
    assert await store.release(None, "why", "notice") == []
    assert states(path) == ["done", "failed"]
    assert len(queued(path)) == 2


async def test_release_is_all_or_nothing(store: Store, path: Path) -> None:
    first, second = await claimed(store, "0", "1")
    await store.mark_acted([second])
    with outbox_that_takes_nothing(path), pytest.raises(sqlite3.Error, match="no room"):
        await store.release([first, second], "why", "notice")
    assert states(path) == ["claimed", "claimed"]


async def test_attempts_are_counted_and_the_message_comes_again_in_its_place(store: Store, path: Path) -> None:
    (tried,) = await claimed(store, "first")
    await add(store, "second")
    for _ in range(3):
        await store.retry([tried], "it broke \ud83e")
        await store.retry([tried], "it is pending already")
        await store.claim(JID, 1, 1000)
    await store.release([tried], "stopped", "notice")
    assert [(one.content, one.attempts) for one in await take(store)] == [("first", 3), ("second", 0)]
    assert await store.outcome(tried) is None
    why = "SELECT error FROM messages WHERE id = ?"
    assert column(path, why, tried) == ["it broke ?"]
    await store.complete(JID, [tried], None, None)
    assert await store.outcome(tried) == Outcome(None)
    assert column(path, why, tried) == [None], "what went wrong before counts no more"


# --- how it ends --------------------------------------------------------------------------------------------


async def test_complete_ends_the_messages_queues_the_reply_and_keeps_the_session(store: Store, path: Path) -> None:
    first, second = await claimed(store, "1", "2")
    await add(store, "3")
    assert await store.outcome(first) is None
    assert await store.resume(JID) is None
    await store.enqueue(OTHER, "another row", "message")
    await store.complete(JID, [first, second], "the reply", "session-1")
    assert states(path) == ["done", "done", "pending"]
    assert await store.outcome(first) == Outcome(None)
    assert await store.resume(JID) == "session-1"
    assert await store.next_queued(JID) == Outgoing(2, JID, "the reply", "reply")
    assert answers(path) == ["the reply", "the reply", None]


@pytest.mark.parametrize("reply", [None, ""])
async def test_an_answer_with_nothing_to_say_queues_nothing(store: Store, path: Path, reply: str | None) -> None:
    await store.complete(JID, [], None, "session-1")
    await store.complete(JID, await claimed(store, "1"), reply, None)
    assert queued(path) == []
    assert answers(path) == [None]
    assert await store.resume(JID) == "session-1", "no session id does not forget the one there is"


async def test_complete_is_all_or_nothing(store: Store, path: Path) -> None:
    (row_id,) = await claimed(store, "1")
    with outbox_that_takes_nothing(path), pytest.raises(sqlite3.Error, match="no room"):
        await store.complete(JID, [row_id], "the reply", "session-1")
    assert states(path) == ["claimed"]
    assert await store.outcome(row_id) is await store.resume(JID) is None
    assert queued(path) == []
    await store.complete(JID, [row_id], "the reply", "session-1")
    assert await store.outcome(row_id) == Outcome(None)


async def test_fail_ends_the_messages_with_a_reason_and_queues_the_notice(store: Store, path: Path) -> None:
    ids = await claimed(store, "1", "2")
    with outbox_that_takes_nothing(path), pytest.raises(sqlite3.Error, match="no room"):
        await store.fail(JID, ids, "the reason", "the notice")
    assert await store.outcome(ids[0]) is None
    await store.fail(JID, ids, "the reason \ud83e", "the notice \ud83e")
    assert states(path) == ["failed", "failed"]
    assert await store.outcome(ids[1]) == Outcome("the reason ?")
    assert queued(path) == [(JID, "the notice ?", "notice")]
    assert answers(path) == ["the notice ?"] * 2


async def test_nobody_ends_the_messages_of_another_chat(store: Store, path: Path) -> None:
    ids = await claimed(store, "1")
    await store.complete(OTHER, ids, None, None)
    await store.fail(OTHER, ids, "why", "notice")
    assert states(path) == ["claimed"]


async def test_the_outcome_of_a_message_that_is_not_there_is_none(store: Store) -> None:
    assert await store.outcome(12345) is None


# --- messages out -------------------------------------------------------------------------------------------


async def test_each_chat_is_sent_what_is_queued_for_it_in_order(store: Store) -> None:
    for number in range(5):
        await store.enqueue(f"jid{number % 2}", f"text {number}", "message")
    assert await store.chats_with_queued() == ["jid0", "jid1"]
    first = await store.next_queued("jid0")
    assert first == await store.next_queued("jid0") == Outgoing(1, "jid0", "text 0", "message"), "until it is sent"
    await store.mark_sent(1)
    assert await store.chats_with_queued() == ["jid1", "jid0"], "who waits longest comes first"
    assert await store.next_queued("jid0") == Outgoing(3, "jid0", "text 2", "message")
    await store.mark_sent(3)
    await store.mark_sent(5)
    assert await store.next_queued("jid0") is None
    assert await store.chats_with_queued() == ["jid1"]


async def test_what_cannot_be_sent_is_given_up_and_told_all_or_nothing(store: Store, path: Path) -> None:
    await store.enqueue(OTHER, "first", "reply")
    await store.enqueue(OTHER, "second", "reply")
    tell = (JID, "it did not reach the family \ud83e")
    with outbox_that_takes_nothing(path), pytest.raises(sqlite3.Error, match="no room"):
        await store.mark_unsendable(1, "why", tell)
    assert len(queued(path)) == 2
    await store.mark_unsendable(1, "it does not go \ud83e", tell)
    await store.mark_unsendable(2, "neither", None)
    assert queued(path) == [(JID, "it did not reach the family ?", "notice")]
    assert rows(path, "SELECT state, error FROM outbox WHERE id < 3") == [
        ("failed", "it does not go ?"),
        ("failed", "neither"),
    ]


async def test_a_kind_that_does_not_exist_is_refused_and_the_store_goes_on(store: Store, path: Path) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        await store.enqueue(JID, "text", "postcard")
    await store.enqueue(JID, "text", "message")
    assert len(queued(path)) == 1


# --- a disk that is full ------------------------------------------------------------------------------------


async def test_a_write_that_finds_no_room_is_repeated_until_there_is_some(store: Store, path: Path) -> None:
    await store._db.write(lambda db: set_room(db, 2))
    attempts = 0

    async def write_a_lot() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            await store._db.write(lambda db: set_room(db, 10_000))
        await store.enqueue(JID, "x" * 1_000_000, "message")
        return "stored"

    assert await store.until_stored(write_a_lot) == "stored"
    assert attempts == 2
    assert len(queued(path)) == 1


@pytest.mark.parametrize("error", [sqlite3.IntegrityError, sqlite3.DatabaseError, ValueError, asyncio.CancelledError])
async def test_a_write_that_fails_for_another_reason_is_not_repeated(store: Store, error: type[BaseException]) -> None:
    attempts = 0

    async def fail() -> None:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            pytest.fail("it was repeated")
        raise error("no")

    with pytest.raises(error, match="no"):
        await store.until_stored(fail)


# --- groups -------------------------------------------------------------------------------------------------


async def test_groups_are_kept_and_registering_again_changes_nothing(path: Path) -> None:
    async with Store.open(path) as store:
        await store.register_group(MAIN)
        await store.register_group(FAMILY)
        await store.complete(JID, [], None, "session-1")
        await store.register_group(Group(JID, "renamed", "main"))
    async with Store.open(path) as store:
        assert await store.groups() == {JID: MAIN, OTHER: FAMILY}
        assert await store.resume(JID) == "session-1"


async def test_a_folder_that_is_taken_is_refused_and_nothing_changes(store: Store) -> None:
    with pytest.raises(ValueError, match="'family' belongs to another chat"):
        await store.register_group(Group("wa:2", "Impostor", "family"))
    assert await store.groups() == {JID: MAIN, OTHER: FAMILY}


async def test_a_chat_is_noted_under_its_latest_name(store: Store, path: Path) -> None:
    await store.note_chat(OTHER, "Family")
    await store.note_chat(OTHER, "The family")
    assert rows(path, "SELECT jid, name FROM chats") == [(OTHER, "The family")]
